"""The page that `vesalius measure` writes: the answer, pictures, numbers by structure, and what every column means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from vesalius.report import words
from vesalius.report.figures import Figure
from vesalius.report.measure_charts import histogram_chart, spread_chart
from vesalius.report.measure_numbers import (
    Measure,
    Measured,
    digits_of,
    measured,
    rows_grid,
    shown,
    statistics_grid,
    turned_grid,
)
from vesalius.report.page import write_page
from vesalius.report.pictures import data_uri, png_size
from vesalius.report.tables import Grid

# As for the study report: a page that opens on a phone.
PICTURE_BUDGET = 2_200_000
FEW_ROWS, FEW_TURNED = 60, 4
MOST_COLUMNS, MOST_LINES, MOST_TURNED = 24, 240, 120
MOST_STATISTICS, MOST_FIGURES, MOST_GROUPS = 16, 6, 24
MOST_NOTES = 60
# Of a score against a reference: which end is bad, by the start of the quantity's name.
_HIGH_IS_GOOD = ("dice", "surface_dice", "iou", "panoptic_quality", "instance_ap", "lesion_f1", "aji")
WORST = 5


@dataclass(frozen=True, eq=False)
class MeasureTable:
    """One table of the folder.

    Parameters
    ----------
    name, lead
        Heading, and what a row is.
    frame
        Rows (those the page may look at; the file beside it holds all).
    highlight
        Columns that a reader wants first.
    """

    name: str
    lead: str
    frame: pd.DataFrame
    highlight: Sequence[str] = ()


@dataclass(frozen=True)
class MeasurePicture:
    """A PNG or a drawing, with its caption and what a person who cannot see it is told."""

    name: str
    caption: str
    picture: bytes | Markup
    alt: str


def write_measure_page(
    path: str | Path,
    *,
    title: str,
    summary: Mapping[str, Any],
    tables: Sequence[MeasureTable],
    pictures: Sequence[MeasurePicture] = (),
    dictionary: pd.DataFrame,
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
    next_steps: str = "",
) -> Path:
    """Write the page to `path` and return it.

    Parameters
    ----------
    summary
        ``answer`` in one sentence, and facts by name in order.
    dictionary
        Columns ``table``, ``column``, ``quantity``, ``unit``, ``meaning``, ``source``.
    problems
        A line for each case that failed.
    notes
        Lines about what was assumed or repaired.
    """
    shown_pictures, left_out = _pictures(pictures)
    content = {
        "title": title,
        "answer": str(summary.get("answer") or ""),
        "warnings": [("Not measured", words.listed(list(problems)))] if problems else [],
        "facts": [
            (str(key).replace("_", " "), words.as_text(value)) for key, value in summary.items() if key != "answer"
        ],
        "pictures": shown_pictures,
        "pictures_left": left_out,
        "tables": [_section(table, dictionary) for table in tables],
        "dictionary": _dictionary_grid(dictionary),
        "problems": list(problems)[:MOST_NOTES],
        "notes": list(dict.fromkeys(notes))[:MOST_NOTES],
        "notes_more": f"and {len(notes) - MOST_NOTES} more" if len(notes) > MOST_NOTES else "",
        "next_steps": next_steps,
    }
    return write_page(path, "measure.html", **content)


def _pictures(pictures: Sequence[MeasurePicture]) -> tuple[list[dict[str, Any]], str]:
    """Pictures in order, as many as the size of the page allows."""
    out: list[dict[str, Any]] = []
    spent = 0
    for one in pictures:
        entry: dict[str, Any] = {"name": one.name, "caption": one.caption, "alt": one.alt, "chart": None, "uri": ""}
        if isinstance(one.picture, bytes):
            entry["uri"] = data_uri(one.picture)
            entry["width"], entry["height"] = png_size(one.picture)
            spent += len(entry["uri"])
        else:
            entry["chart"] = one.picture
            spent += len(one.picture)
        if spent > PICTURE_BUDGET:
            break
        out.append(entry)
    left = len(pictures) - len(out)
    return out, f"{words.count(left, 'picture')} left out, to keep the page small." if left else ""


def _section(table: MeasureTable, dictionary: pd.DataFrame) -> dict[str, Any]:
    """What the page shows of one table."""
    here = dictionary[dictionary["table"] == table.name.replace(" ", "_")] if "table" in dictionary else dictionary
    known = measured(table.frame, table.highlight, here)
    rows = len(table.frame)
    grids: list[Grid] = []
    if rows and rows <= FEW_TURNED and known.measures:
        grids = [turned_grid(known, most_rows=MOST_TURNED)]
    elif rows and rows <= FEW_ROWS:
        grids = [rows_grid(known, most_columns=MOST_COLUMNS)]
    more: Grid | None = None
    figures: list[Figure] = []
    if rows > FEW_TURNED:
        chosen = list(known.highlights) or list(known.measures[:MOST_FIGURES])
        rest = [one for one in known.measures if one not in chosen and not _is_place(one)]
        rest = rest[: max(MOST_STATISTICS - len(chosen), 0)]
        spread = statistics_grid(known, chosen + rest, most_rows=MOST_LINES)
        if rows > FEW_ROWS:
            grids = [spread]
        else:
            more = spread
        figures = [figure for one in chosen[:MOST_FIGURES] if (figure := _figure(known, one, table.name)) is not None]
    return {
        "id": table.name.replace(" ", "-"),
        "name": table.name[:1].upper() + table.name[1:],
        "lead": f"{table.lead} {words.count(rows, 'row')}.".strip(),
        "grids": grids,
        "more": more,
        "figures": figures,
        "worst": _worst(known) if table.name.startswith("reference") else [],
        "empty": not rows,
    }


def _is_place(measure: Measure) -> bool:
    """Where something is, of which a mean says nothing."""
    name = measure.quantity
    return name.startswith(
        ("box_", "centroid_", "longest_start", "longest_stop", "nearest_first", "nearest_second")
    ) or (name.endswith(("_z", "_y", "_x")))


def _figure(table: Measured, measure: Measure, noun: str) -> Figure | None:
    """A histogram, or one row for each of several structures."""
    values = table.values(measure)
    if np.isfinite(values).sum() < 2:
        return None
    groups = table.groups()
    said = f"{measure.heading}: median {shown(float(np.nanmedian(values)), digits_of(values, exact=True))}"
    if 1 < len(groups) <= MOST_GROUPS:
        parts = {name: values[rows] for name, rows in groups.items()}
        return Figure(measure.name, spread_chart(parts, x_name=measure.heading, label=f"{said}, by structure"))
    return Figure(measure.name, histogram_chart(values, x_name=measure.heading, label=said, noun=noun))


def _worst(table: Measured) -> list[tuple[str, str]]:
    """For each score the cases that are worst, by name."""
    if not table.case or len(table.frame) <= FEW_TURNED:
        return []
    out = []
    for measure in table.highlights[:3]:
        values = table.values(measure)
        good_high = measure.quantity.startswith(_HIGH_IS_GOOD)
        order = np.argsort(values if good_high else -values, kind="stable")
        order = order[np.isfinite(values[order])][:WORST]
        digits = digits_of(values, exact=True)
        names = [str(table.frame[table.case].iloc[row]) for row in order]
        if table.structure:
            names = [
                f"{name} ({table.frame[table.structure].iloc[row]})" for name, row in zip(names, order, strict=True)
            ]
        said = [f"{name} {shown(float(values[row]), digits)}" for name, row in zip(names, order, strict=True)]
        if said:
            out.append((f"Worst by {measure.name}", "; ".join(said)))
    return out


def _dictionary_grid(dictionary: pd.DataFrame) -> Grid:
    head = [name for name in ("table", "column", "unit", "meaning", "source") if name in dictionary]
    rows = [["" if pd.isna(value) else str(value) for value in row] for row in dictionary[head].itertuples(index=False)]
    return Grid([name.capitalize() for name in head], rows)
