"""The page that `vesalius inspect` writes: what a data set holds and what is wrong with it, before anyone trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vesalius.report import words
from vesalius.report.charts import counts_bar
from vesalius.report.figures import Figure
from vesalius.report.page import write_page
from vesalius.report.pictures import data_uri, png_size
from vesalius.report.tables import Grid, counts_grid

MOST_PROBLEMS = 300
MOST_DUPLICATES = 100
MOST_ROWS = 200
# As for the study report: a page that opens on a phone.
PICTURE_BUDGET = 2_200_000


def write_inspect_page(
    path: str | Path,
    *,
    summary: Mapping[str, Any],
    counts: pd.DataFrame | Mapping[str, Any] | None = None,
    problems: Sequence[Any] = (),
    duplicates: pd.DataFrame | Sequence[Any] | None = None,
    geometry: pd.DataFrame | Mapping[str, Any] | None = None,
    structures: pd.DataFrame | None = None,
    montage: Mapping[str, bytes] | None = None,
    title: str = "",
    next_steps: str = "",
) -> Path:
    """Write the page to `path` and return it.

    Parameters
    ----------
    summary
        Facts by name, shown in order; ``cases``, ``patients``, ``layout``, ``task`` and ``patient_source`` also make
        the first sentence and the warnings.
    counts
        `data.Manifest.counts`, or a table whose first column (or index) names the class.
    problems
        `data.problem.Problem` or lines; those of severity ``error`` and ``warning`` come first.
    duplicates
        A table, or one line (or pair) for each group of equal images.
    geometry
        A table, or facts by name.
    structures
        Of masks: one row per structure.
    montage
        One contact sheet (PNG) by class.
    title
        Heading; default the name of the data.
    next_steps
        Commands to type next.
    """
    found = counts if isinstance(counts, Mapping) else {}
    lines = _problem_lines(problems)
    doubles = _grid_of(duplicates, "Group", MOST_DUPLICATES)
    content = {
        "title": title or str(summary.get("name") or Path(str(summary.get("root") or "Data")).name),
        "answer": _answer(summary, found),
        "warnings": _warnings(summary, problems),
        "facts": [(str(key).replace("_", " "), words.as_text(value)) for key, value in summary.items()],
        "counts": counts_grid(found) if found else _grid_of(counts, "Class", MOST_ROWS),
        "bars": _bars(found.get("classes") or {}),
        "sheets": _sheets(montage or {}),
        "geometry": None if isinstance(geometry, Mapping) else _grid_of(geometry, "Geometry", MOST_ROWS),
        "geometry_facts": _facts(geometry),
        "structures": None if structures is None else _grid_of(structures, "Structure", MOST_ROWS),
        "duplicates": doubles,
        "duplicates_lead": "Equal or nearly equal images. A pair split between training and test makes the test "
        "worthless.",
        "problems": lines[:MOST_PROBLEMS],
        "problems_more": f"and {len(lines) - MOST_PROBLEMS} more" if len(lines) > MOST_PROBLEMS else "",
        "next_steps": next_steps,
    }
    return write_page(path, "inspect.html", **content)


def _answer(summary: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    cases = summary.get("cases", counts.get("cases"))
    patients = summary.get("patients", counts.get("patients"))
    if cases is None:
        return "What was found in the folder."
    text = words.count(cases, "case")
    classes = counts.get("classes") or {}
    if str(summary.get("patient_source") or "") == "none":
        text += " of an unknown number of patients"
    elif patients is not None:
        text += f" of {words.count(patients, 'patient')}"
    if classes:
        text += f" in {words.count(len(classes), 'class', 'classes')}"
        most = max(classes, key=lambda name: classes[name])
        total = sum(classes.values())
        if total:
            text += f"; the commonest, {most}, makes up {words.percent(classes[most] / total)}"
    return text + "."


def _warnings(summary: Mapping[str, Any], problems: Sequence[Any]) -> list[tuple[str, str]]:
    out = []
    if str(summary.get("patient_source") or "") == "none":
        out.append(
            (
                "Nobody knows which images belong to the same person",
                "A split by patient is then impossible. If file names or a table tell people apart, say how with a "
                "patient pattern or column.",
            )
        )
    errors = [str(p) for p in problems if getattr(p, "severity", "") == "error"]
    if errors:
        out.append((f"{words.count(len(errors), 'contradiction')} in the data", words.listed(errors)))
    return out


def _problem_lines(problems: Sequence[Any]) -> list[str]:
    """Grave ones first, each with its severity where it has one."""
    order = {"error": 0, "warning": 1, "note": 2}
    ranked = sorted(problems, key=lambda p: order.get(getattr(p, "severity", "note"), 2))
    return [f"{p.severity}: {p}" if getattr(p, "severity", "") else str(p) for p in ranked]


def _bars(classes: Mapping[str, int]) -> Figure | None:
    if not classes:
        return None
    shown = dict(sorted(classes.items(), key=lambda item: -item[1])[:30])
    said = ", ".join(f"{name} {number}" for name, number in shown.items())
    caption = f"The 30 commonest of {len(classes)} classes." if len(classes) > len(shown) else ""
    return Figure("Cases per class", counts_bar(shown, label=f"Cases per class: {said}"), caption)


def _sheets(montage: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Contact sheets in order, as many as the size of the page allows."""
    out: list[dict[str, Any]] = []
    spent = 0
    for name, picture in montage.items():
        uri = data_uri(picture)
        spent += len(uri)
        if spent > PICTURE_BUDGET:
            break
        width, height = png_size(picture)
        out.append(
            {
                "name": name or "no class",
                "uri": uri,
                "width": width,
                "height": height,
                "alt": f"Contact sheet of cases of class {name or 'none'}",
            }
        )
    return out


def _facts(data: Any) -> list[tuple[str, str]]:
    if not isinstance(data, Mapping):
        return []
    return [(str(key).replace("_", " "), words.as_text(value)) for key, value in data.items()]


def _grid_of(data: Any, first: str, most: int) -> Grid | None:
    """A table from a frame, or from lines, of at most `most` rows; the caption says what was left out."""
    if data is None or not len(data):
        return None
    if isinstance(data, pd.DataFrame):
        frame = data.reset_index() if data.index.name else data
        head = [str(column).replace("_", " ") for column in frame.columns]
        rows = [[_cell(value) for value in row] for row in frame.head(most).itertuples(index=False)]
        right = [name for name, kind in zip(head, frame.dtypes, strict=True) if pd.api.types.is_numeric_dtype(kind)]
    else:
        parts = [list(line) if isinstance(line, (list, tuple)) else [line] for line in list(data)[:most]]
        wide = max(len(part) for part in parts)
        head = [first, *(f"Image {k}" for k in range(1, wide + 1))]
        rows = [[str(n), *(_cell(v) for v in part), *([""] * (wide - len(part)))] for n, part in enumerate(parts, 1)]
        right = []
    caption = f"The first {most} of {len(data)}." if len(data) > most else ""
    return Grid(head, rows, caption=caption, right=tuple(right))


def _cell(value: Any) -> str:
    if not isinstance(value, (list, tuple, Mapping)) and pd.isna(value):
        return ""
    return words.as_text(value)
