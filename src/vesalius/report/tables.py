"""The tables of a page: metrics over their intervals, counts, operating points, subgroups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.report import figures, words

MOST_COLUMNS = 5
MOST_MIXUPS = 25
# A confusion matrix of more classes is wider than a screen and longer than a page.
MOST_CLASSES = 30
FIRST = (
    "auroc",
    "accuracy",
    "sensitivity",
    "specificity",
    "auprc",
    "balanced_accuracy",
    "f1",
    "dice",
    "nsd",
    "map50",
)


@dataclass(frozen=True)
class Grid:
    """A table for the page; `right` names the columns of counts."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    right: Sequence[str] = ()


@dataclass(frozen=True)
class Cell:
    """A number over its interval."""

    value: str
    range: str = ""
    known: bool = True
    span: int = 1


def cell_of(data: words.Interval, missing: str = "", *, digits: int | None = None) -> Cell:
    """A metric as two lines, or the reason why there is none; `digits` where a column shall have equally many."""
    if data.value is None:
        return Cell(data.why or missing or words.show(data), known=False)
    digits = words.decimals(data) if digits is None else digits
    value = f"{data.value:.{digits}f} {words.unit_name(data.unit)}".strip()
    if data.low is None or data.high is None:
        return Cell(value, "no interval")
    return Cell(value, f"{data.low:.{digits}f} to {data.high:.{digits}f}")


def in_order(numbers: Mapping[str, words.Interval]) -> dict[str, words.Interval]:
    """What readers look for first comes first; recall is left out where sensitivity says the same."""
    keys = [key for key in FIRST if key in numbers] + [key for key in numbers if key not in FIRST]
    if "sensitivity" in numbers and "recall" in numbers and numbers["recall"] == numbers["sensitivity"]:
        keys.remove("recall")
    return {key: numbers[key] for key in keys}


def operating_grid(points: Sequence[figures.OperatingPoint], *, lettered: bool) -> Grid | None:
    """Thresholds and what each does; `lettered` where the charts show them."""
    if not points:
        return None
    keys = list(dict.fromkeys(key for point in points for key in point.numbers))
    chosen = any(point.chosen_on for point in points)
    rows: list[list[Cell | str]] = []
    for index, p in enumerate(points):
        cells = [
            f"{figures.letter(index)} {p.name}".strip() if lettered else p.name,
            "none" if p.threshold is None else f"{p.threshold:.3g}",
        ]
        if chosen:
            where = (
                "before any data" if p.chosen_on == "fixed" else f"{words.SPLITS.get(p.chosen_on, p.chosen_on)} cases"
            )
            cells.append(where if p.chosen_on else "unknown")
        rows.append([*cells, *(cell_of(p.numbers.get(key, words.Interval(None))) for key in keys)])
    head = ["Point", "Threshold", *(["Chosen on"] if chosen else []), *(heading(k) for k in keys)]
    return Grid(head, rows)


def heading(key: str) -> str:
    """A metric's or fact's name with a capital letter."""
    name = words.metric_name(key)
    return name[0].upper() + name[1:]


def _digits(found: Sequence[Mapping[str, words.Interval]], key: str) -> int:
    """Digits after the point for a column: as many as its most exact number deserves."""
    return max((words.decimals(one[key]) for one in found if key in one), default=2)


def per_class_grid(per_class: Mapping[str, Mapping[str, words.Interval]], tally: Mapping[str, int]) -> Grid | None:
    """One row per class; `tally` holds the test cases of each."""
    if not per_class:
        return None
    keys = list(dict.fromkeys(key for data in per_class.values() for key in data))
    digits = {key: _digits(list(per_class.values()), key) for key in keys}
    rows = [
        [
            name,
            str(tally.get(name, "")),
            *(cell_of(data.get(key, words.Interval(None)), digits=digits[key]) for key in keys),
        ]
        for name, data in per_class.items()
    ]
    return Grid(["Class", "Cases", *(heading(k) for k in keys)], rows, right=("Cases",))


def subgroups_grid(data: Mapping[str, Any]) -> Grid | None:
    """One row per group; groups too small to judge say so across the row."""
    found = words.flat_subgroups(data)
    if not found:
        return None
    numbers = [in_order(words.numbers_of(content)) for _, _, content in found]
    keys = list(in_order({key: words.Interval(None) for one in numbers for key in one}))[:MOST_COLUMNS] or ["result"]
    rows = []
    for (covariate, group, content), mine in zip(found, numbers, strict=True):
        why = str(content.get("why") or content.get("note") or "not enough cases")
        counted = [str(content[k]) if content.get(k) is not None else "" for k in ("cases", "patients")]
        cells = [cell_of(mine.get(key, words.Interval(None)), why, digits=_digits(numbers, key)) for key in keys]
        if len({(cell.value, cell.known) for cell in cells}) == 1 and not cells[0].known:
            cells = [Cell(cells[0].value, known=False, span=len(keys))]
        rows.append([f"{covariate}: {group}" if group else covariate, *counted, *cells])
    head = ["Group", "Cases", "Patients", *(heading(k) for k in keys)]
    return Grid(head, rows, right=("Cases", "Patients"))


def counts_grid(counts: Mapping[str, Any]) -> Grid | None:
    """Cases by class and split, from `data.Manifest.counts`."""
    by_split = counts.get("split_classes") or {}
    splits = list(counts.get("splits") or by_split)
    classes = list(counts.get("classes") or dict.fromkeys(c for per in by_split.values() for c in per))
    if not splits and not classes:
        return None
    rows = [
        [
            name,
            *(str((by_split.get(s) or {}).get(name, "")) for s in splits),
            str((counts.get("classes") or {}).get(name, "")),
        ]
        for name in classes
    ]
    rows.append(
        ["All cases", *(str((counts.get("splits") or {}).get(s, "")) for s in splits), str(counts.get("cases", ""))]
    )
    people = counts.get("split_patients") or {}
    if people or counts.get("patients"):
        rows.append(["Patients", *(str(people.get(s, "")) for s in splits), str(counts.get("patients", ""))])
    head = ["Class", *(words.SPLITS.get(s, s) for s in splits), "all"]
    return Grid(head, rows, right=tuple(head[1:]))


def mixups_grid(counts: NDArray[np.int64], names: Sequence[str]) -> Grid | None:
    """The commonest mistakes, for questions of so many classes that nobody can read a confusion matrix."""
    errors = counts - np.diag(np.diag(counts))
    order = np.argsort(-errors, axis=None, kind="stable")[:MOST_MIXUPS]
    places = [divmod(int(place), len(names)) for place in order]
    rows = [
        [names[i], names[j], str(int(errors[i, j])), words.percent(float(errors[i, j] / counts[i].sum()))]
        for i, j in places
        if errors[i, j]
    ]
    head = ["In truth", "Called", "Cases", "Of that class"]
    return Grid(head, rows, caption="The commonest mistakes.", right=tuple(head[2:])) if rows else None
