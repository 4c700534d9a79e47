"""Tables on standard output."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

MOST_PROBLEMS = 20
MOST_DUPLICATES = 10


def print_inspection(found: dict[str, Any]) -> None:
    """What `vesalius inspect` prints."""
    console = Console(soft_wrap=True)
    console.print(f"[bold]{found['data']}[/bold]  layout {found['layout']}, task {found['task']}", highlight=False)
    several = (
        f", {found['patients_with_several_images']} of them with several images "
        f"(at most {found['most_images_of_one_patient']})"
    )
    known = (
        several
        if found["patient_source"] != "none"
        else " (no patient ids known: every image counts as its own patient)"
    )
    console.print(f"{found['images']} images, {found['patients']} patients{known}", highlight=False)
    _classes(console, found)
    _structures(console, found.get("masks") or {})
    _geometry(console, found["geometry"])
    _duplicates(console, found)
    for path, reason in list(found["unreadable"].items())[:MOST_PROBLEMS]:
        console.print(f"[red]unreadable[/red] {path}: {reason}", highlight=False)
    for problem in found["problems"][:MOST_PROBLEMS]:
        colour = {"note": "dim", "warning": "yellow", "error": "red"}[problem["severity"]]
        where = f"{problem['path']}: " if problem["path"] else ""
        console.print(f"[{colour}]{problem['severity']}[/{colour}] {where}{problem['text']}", highlight=False)
    if len(found["problems"]) > MOST_PROBLEMS:
        console.print(
            f"... and {len(found['problems']) - MOST_PROBLEMS} more; --json or --out lists all", highlight=False
        )
    if "page" in found:
        console.print(f"page  {found['page']}", highlight=False)


def _classes(console: Console, found: dict[str, Any]) -> None:
    classes = found.get("classes") or {}
    if not classes:
        return
    splits = list(found.get("splits") or {})
    table = Table("class", "images", "patients", *splits)
    for name, count in classes.items():
        parts = [str(found["split_classes"][split].get(name, 0)) for split in splits]
        table.add_row(name, str(count), str(found["class_patients"].get(name, "")), *parts)
    console.print(table)


def _structures(console: Console, masks: dict[str, Any]) -> None:
    from vesalius.serve.looking import structure_row

    rows = [structure_row(name, entry) for name, entry in (masks.get("structures") or {}).items()]
    if rows:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
    unusable = masks.get("unusable") or {}
    for case, reason in list(unusable.items())[:MOST_PROBLEMS]:
        console.print(f"[red]unusable[/red] {case}: {reason}", highlight=False)
    if len(unusable) > MOST_PROBLEMS:
        console.print(f"... and {len(unusable) - MOST_PROBLEMS} more; --json or --out lists all", highlight=False)


def _geometry(console: Console, facts: dict[str, Any]) -> None:
    shape = facts["shape"]
    sides = ["x".join(f"{side:.0f}" for side in shape[key]) for key in ("low", "median", "high")]
    size = sides[1] if facts["one_shape"] else f"{sides[0]} to {sides[2]}, median {sides[1]}"
    spacing = facts["spacing_mm"]
    steps = (
        "no physical size in the files"
        if spacing is None
        else "x".join(f"{step:.3g}" for step in spacing["median"]) + " mm (median)"
    )
    kinds = ", ".join(f"{name} ({count})" for name, count in facts["dtypes"].items())
    channels = ", ".join(f"{name} ({count})" for name, count in facts["channels"].items())
    console.print(
        f"shape {size}; {steps}; channels {channels}; type {kinds}; "
        f"modality {facts['modality']}, from {facts['modality_because']}",
        highlight=False,
    )


def _duplicates(console: Console, found: dict[str, Any]) -> None:
    same = found["duplicates"]
    console.print(
        f"duplicates: {same['exact_groups']} groups of equal images ({same['exact_images']} images), "
        f"{same['near_pairs']} pairs of near duplicates",
        highlight=False,
    )
    for group in same["exact"][:MOST_DUPLICATES]:
        console.print("  " + " = ".join(group), highlight=False)
    for pair in same["near"][:MOST_DUPLICATES]:
        console.print(f"  {pair['first']} ~ {pair['second']} ({pair['similarity']:.3f})", highlight=False)
    rest = max(len(same["exact"]) - MOST_DUPLICATES, 0) + max(len(same["near"]) - MOST_DUPLICATES, 0)
    if rest:
        console.print(f"  ... and {rest} more; --json or --out lists all", highlight=False)
    for line in found["leakage"]["lines"]:
        console.print(f"[yellow]split[/yellow] {line}", highlight=False)


def print_measured(done: Any) -> None:
    """What `vesalius measure` prints: an answer, the middle of what matters, and where things are."""
    console = Console(soft_wrap=True)
    console.print(f"\n{done.summary.get('answer', '')}", highlight=False, markup=False)
    for table in done.summary.get("tables", ()):
        shown = Table(*table["head"])
        for row in table["rows"]:
            shown.add_row(*(str(cell) for cell in row))
        console.print(shown)
        if table.get("caption"):
            console.print(table["caption"], highlight=False, markup=False)
    for name, paths in done.tables.items():
        where = ", ".join(str(path) for path in paths.values())
        console.print(f"{name:<12} {done.rows[name]} rows  {where}", highlight=False, markup=False)
    console.print(f"{'dictionary':<12} {done.dictionary}", highlight=False, markup=False)
    if done.page is not None:
        console.print(f"{'page':<12} {done.page}  ({done.seconds:.1f} s)", highlight=False, markup=False)
