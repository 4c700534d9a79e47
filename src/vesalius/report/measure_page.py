"""The page that `vesalius measure` writes: numbers, charts, pictures, and the definition of every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from vesalius.report import words
from vesalius.report.cases import Floats
from vesalius.report.figures import Figure
from vesalius.report.measure_agreement import agreement, direction
from vesalius.report.measure_charts import histogram_chart, spread_chart, use_log
from vesalius.report.measure_numbers import (
    MISSING,
    Measure,
    Measured,
    digits_of,
    inside_sentence,
    measured,
    quantile_shown,
    rows_grid,
    shown,
    statistics,
    statistics_grid,
    turned_grid,
    unit_shown,
)
from vesalius.report.page import write_page
from vesalius.report.pictures import data_uri, png_size
from vesalius.report.tables import Grid

# With more rows a table is read by its statistics; the rows are in the files beside the page.
MOST_ROWS = 60
MOST_COLUMNS = 60
MOST_LINES = 400
MOST_CHARTS = 8
# More structures than this are not told apart in one chart.
MOST_STRUCTURES = 14
MOST_PROBLEMS = 300
# A distribution of fewer values is read better from the table.
FEWEST_FOR_CHART = 5
# Few rows with many columns are turned, so that nobody has to scroll sideways through a hundred numbers.
MOST_TURNED = 4
WIDE_FROM = 9
# As for the other pages: one that opens on a phone.
PICTURE_BUDGET = 2_000_000


@dataclass(frozen=True, eq=False)
class MeasureTable:
    """One measured table for the page.

    Parameters
    ----------
    name
        Heading: ``Cells``.
    lead
        A sentence on what a row is.
    frame
        One row per structure, cell or branch; columns that name the row (case, structure, label) and measured ones.
    highlight
        Measured columns that come first and get a chart.
    """

    name: str
    lead: str
    frame: pd.DataFrame
    highlight: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class MeasurePicture:
    """One picture for the page.

    Parameters
    ----------
    name
        Heading; pictures that follow each other with the same name stand under one.
    caption, alt
        What is to be seen, below the picture and for people who cannot see it.
    png
        A PNG, or a drawing of our own (`measure_plots`) as SVG, which says by itself what `alt` says of a PNG.
    """

    name: str
    caption: str
    png: bytes | Markup
    alt: str


def write_measure_page(
    path: str | Path,
    *,
    title: str,
    summary: Mapping[str, Any],
    tables: Sequence[MeasureTable],
    pictures: Sequence[MeasurePicture],
    dictionary: pd.DataFrame,
    problems: Sequence[str],
    notes: Sequence[str],
    next_steps: str = "",
) -> Path:
    """Write the page to `path` and return it.

    Parameters
    ----------
    summary
        Facts by name, shown in order; ``answer`` is the first sentence of the page.
    dictionary
        Columns ``table``, ``column``, ``quantity``, ``unit``, ``meaning`` and ``source``: what every measured column
        is. Without ``table`` a row holds for every table.
    problems, notes
        Lines; problems are announced at the top of the page.
    next_steps
        Commands to type next.

    Raises
    ------
    ValueError
        For a dictionary without a column ``column``.
    """
    if len(dictionary) and "column" not in dictionary.columns:
        raise ValueError(f"the dictionary must have a column 'column', it has {list(dictionary.columns)}")
    sorted_out = [
        (table, measured(table.frame, table.highlight, _of_table(dictionary, table.name))) for table in tables
    ]
    shown_tables = [_table(table, columns, f"table-{n}") for n, (table, columns) in enumerate(sorted_out, 1)]
    compared = [found for table, columns in sorted_out if (found := agreement(columns, table.name)) is not None]
    figures, left_out = _pictures(pictures)
    content = {
        "title": title,
        "answer": str(summary.get("answer") or _answer(sorted_out)),
        "warnings": _warnings(problems),
        "facts": [(str(k).replace("_", " "), _fact(v)) for k, v in summary.items() if k != "answer"],
        "figures": figures,
        "left_out": left_out,
        "agreements": compared,
        "tables": shown_tables,
        "dictionary": _dictionary_grid(dictionary),
        "problems": [str(line) for line in problems[:MOST_PROBLEMS]],
        "problems_more": f"and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else "",
        "notes": [str(note) for note in notes],
        "next_steps": next_steps,
    }
    content["sections"] = _sections(content)
    return write_page(path, "measure.html", **content)


def _of_table(dictionary: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of the dictionary for one table: columns of two tables may share a name and differ in meaning."""
    if "table" not in dictionary.columns:
        return dictionary
    return dictionary[dictionary["table"] == name.replace(" ", "_")]


def _answer(tables: Sequence[tuple[MeasureTable, Measured]]) -> str:
    """What the first table says, where nobody wrote a sentence."""
    if not tables or not len(tables[0][1].frame):
        return "Nothing was measured."
    table, columns = tables[0]
    parts = []
    if columns.case:
        parts.append(words.count(columns.frame[columns.case].nunique(), columns.case.removesuffix("_id")))
    parts.append(words.count(len(columns.frame), "row") + f" in “{table.name}”")
    text = ", ".join(parts)
    if columns.highlights and len(columns.groups()) == 1:
        text += f"; {_middle(columns.highlights[0], columns.values(columns.highlights[0]))}"
    return text + "."


def _middle(measure: Measure, values: Floats) -> str:
    """``median area 143 px² (quartiles 121 to 168)``."""
    one, name = statistics(values), inside_sentence(measure.name)
    if not one.n:
        return f"{name} without a value"
    unit = f" {measure.unit}" if measure.unit else ""
    low, middle, high = (quantile_shown(v, values) for v in (one.low_quartile, one.median, one.high_quartile))
    return f"median {name} {middle}{unit} (quartiles {low} to {high})"


def _warnings(problems: Sequence[str]) -> list[tuple[str, str]]:
    if not problems:
        return []
    few = "; ".join(str(line).rstrip(".") for line in problems[:3]) + "."
    more = f" All {len(problems)} are listed below." if len(problems) > 3 else ""
    return [(words.count(len(problems), "problem") + " found while measuring", few + more)]


def _fact(value: Any) -> str:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return shown(int(value), 0)
    if isinstance(value, (float, np.floating)):
        return shown(float(value), digits_of(np.array([float(value)])))
    return words.as_text(value)


def _sections(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and anchors of the sections that the page has."""
    every = (
        ("pictures", "Pictures", content["figures"] or content["left_out"]),
        ("agreement", "Agreement with the reference", content["agreements"]),
        *((table["id"], table["name"], True) for table in content["tables"]),
        ("summary", "Summary", content["facts"]),
        ("problems", "Problems", content["problems"]),
        ("notes", "Notes", content["notes"]),
        ("dictionary", "What the numbers mean", content["dictionary"]),
    )
    counted = [(anchor, name) for anchor, name, there in every if there]
    return counted if len(counted) > 2 else []


# ----------------------------------------------------------------------------------------------------------- tables


def _table(table: MeasureTable, columns: Measured, anchor: str) -> dict[str, Any]:
    """What the template shows of one table."""
    rows = len(columns.frame)
    out: dict[str, Any] = {
        "id": anchor,
        "name": table.name[:1].upper() + table.name[1:],
        "lead": table.lead,
        "size": f"{words.count(rows, 'row')}, {words.count(len(columns.measures), 'measure')}.",
        "figures": [],
        "grid": None,
        "more": None,
        "more_name": "",
        "rows": None,
    }
    if not rows or not (columns.measures or columns.identifiers):
        out["size"] = ""
        return out
    out["figures"] = _figures(columns)
    if rows > MOST_ROWS:
        first = columns.highlights or columns.measures[:MOST_CHARTS]
        rest = [measure for measure in columns.measures if measure not in first]
        out["grid"] = statistics_grid(columns, first, most_rows=MOST_LINES) if first else None
        out["size"] += " All rows are in the tables beside this page."
        if rest:
            out["more"] = statistics_grid(columns, rest, most_rows=MOST_LINES)
            out["more_name"] = f"{words.count(len(rest), 'more measure')}"
    elif rows <= MOST_TURNED and len(columns.measures) >= WIDE_FROM:
        out["rows"] = turned_grid(columns, most_rows=MOST_LINES)
    else:
        out["rows"] = rows_grid(columns, most_columns=MOST_COLUMNS)
    return out


def _figures(columns: Measured) -> list[Figure]:
    """One chart for each highlighted measure: a histogram, or the structures one above the other."""
    groups = columns.groups()
    out = []
    for measure in columns.highlights[:MOST_CHARTS]:
        values = columns.values(measure)
        # What compares with a reference has its charts in the section on agreement.
        if np.isfinite(values).sum() < FEWEST_FOR_CHART or direction(measure.quantity):
            continue
        out.append(_histogram(measure, values) if len(groups) == 1 else _spread(measure, values, groups))
    return out


def _histogram(measure: Measure, values: Floats) -> Figure:
    finite = int(np.isfinite(values).sum())
    middle = _middle(measure, values)
    said = middle[:1].upper() + middle[1:]
    missing = f"; {words.count(len(values) - finite, 'row')} without a value" if finite < len(values) else ""
    log = " The axis is logarithmic." if use_log(values) else ""
    chart = histogram_chart(
        values, x_name=measure.heading, label=f"Histogram. {said}, of {finite} values", noun="number"
    )
    return Figure(measure.name, chart, f"{said}, shaded; n {shown(finite, 0)}{missing}.{log}")


def _spread(measure: Measure, values: Floats, groups: Mapping[str, Any]) -> Figure:
    shown_groups = {name: values[place] for name, place in list(groups.items())[:MOST_STRUCTURES]}
    middles = [f"{name} {quantile_shown(statistics(one).median, one)}" for name, one in shown_groups.items()]
    unit = f" {measure.unit}" if measure.unit else ""
    said = f"{measure.name}, medians{unit}: {', '.join(middles)}"
    chart = spread_chart(shown_groups, x_name=measure.heading, label=said)
    joined = np.concatenate(list(shown_groups.values()))
    log = " The axis is logarithmic." if use_log(joined) else ""
    left = len(groups) - len(shown_groups)
    more = f" {words.count(left, 'more structure')} in the table." if left else ""
    return Figure(measure.name, chart, f"Box: quartiles and median. Line: the whole range.{log}{more}")


def _dictionary_grid(dictionary: pd.DataFrame) -> Grid | None:
    if not len(dictionary):
        return None
    keys = [name for name in ("table", "column", "unit", "meaning", "source") if name in dictionary.columns]
    rows = []
    for row in dictionary[keys].itertuples(index=False):
        cells = ["" if v is None or (not isinstance(v, str) and pd.isna(v)) else str(v) for v in row]
        if "unit" in keys:
            place = keys.index("unit")
            cells[place] = unit_shown(cells[place]) or ("number" if cells[place] in ("1", "count") else MISSING)
        rows.append(cells)
    return Grid([key.capitalize() for key in keys], rows)


# --------------------------------------------------------------------------------------------------------- pictures


def _pictures(pictures: Sequence[MeasurePicture]) -> tuple[list[dict[str, Any]], str]:
    """Pictures in groups of one name, as many as the size of the page allows, and what was left out."""
    groups: list[dict[str, Any]] = []
    spent, left = 0, 0
    for one in pictures:
        drawn = isinstance(one.png, Markup)
        size = len(one.png) if drawn else (len(one.png) + 2) // 3 * 4
        if spent + size > PICTURE_BUDGET:
            left += 1
            continue
        spent += size
        if not groups or groups[-1]["name"] != one.name:
            groups.append({"name": one.name, "pictures": []})
        groups[-1]["pictures"].append(_picture(one))
    if not left:
        return groups, ""
    were = "was" if left == 1 else "were"
    said = f"{words.count(left, 'picture')} {were} left out to keep this page small."
    return groups, said


def _picture(one: MeasurePicture) -> dict[str, Any]:
    if isinstance(one.png, Markup):
        return {"svg": one.png, "caption": one.caption, "alt": one.alt}
    width, height = png_size(one.png)
    alt = one.alt or one.caption or one.name
    return {"svg": "", "uri": data_uri(one.png), "width": width, "height": height, "alt": alt, "caption": one.caption}
