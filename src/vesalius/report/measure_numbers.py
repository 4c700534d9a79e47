"""Columns of measured tables as people read them: names, units, digits, and statistics by structure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, isnan, log10
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.report.cases import Floats
from vesalius.report.tables import Grid

MISSING = "–"
# The thin space of `words.count`; thousands must not break over two lines.
THIN = "\u202f"
CASES = ("case", "case_id", "image", "file", "patient", "patient_id")
STRUCTURES = ("structure", "name", "class", "class_name", "kind", "cell_type", "type", "group")
_NUMBERED = {"label", "instance", "cell", "object", "branch", "node", "component", "slice", "frame", "index", "id"}
_ACRONYMS = {
    "hd": "HD", "hd95": "HD95", "hd99": "HD99", "nsd": "NSD", "assd": "ASSD", "masd": "MASD", "asd": "ASD",
    "iou": "IoU", "dice": "Dice", "cldice": "clDice", "pq": "PQ", "rq": "RQ", "sq": "SQ", "aji": "AJI", "sd": "SD",
    "cv": "CV", "pca": "PCA", "2d": "2-D", "3d": "3-D", "glcm": "GLCM", "glrlm": "GLRLM", "glszm": "GLSZM",
    "gldzm": "GLDZM", "ngtdm": "NGTDM", "ngldm": "NGLDM", "hu": "HU", "feret": "Feret", "murray": "Murray",
    "clark": "Clark", "evans": "Evans", "euler": "Euler",
}  # fmt: skip
_UNIT = re.compile(r"_((?:mm|px|um|cm)-?[0-9]?|ml|deg|percent|count|HU2?|SUV2?|intensity2?)$")
# A tolerance in mm or pixels at the end of a name; a point is written as an underscore there.
_TOLERANCE = re.compile(r"_at_([0-9]+(?:_[0-9]+)?)$")
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Measure:
    """One measured column: what the reader sees of it."""

    column: str
    quantity: str
    name: str
    unit: str

    @property
    def heading(self) -> str:
        """``Volume (mm³)``."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True, eq=False)
class Measured:
    """A table split into what names a row and what was measured.

    Parameters
    ----------
    identifiers
        Columns that say which case, structure or cell a row is.
    measures
        Measured columns, the highlighted ones first.
    structure, case
        Column of the structure and of the case; empty where there is none.
    """

    frame: pd.DataFrame
    identifiers: tuple[str, ...]
    measures: tuple[Measure, ...]
    highlights: tuple[Measure, ...]
    structure: str
    case: str

    def groups(self) -> dict[str, NDArray[np.intp]]:
        """Rows of each structure in order of appearance; one group without a name where there is no such column."""
        if not self.structure:
            return {"": np.arange(len(self.frame))}
        codes, names = pd.factorize(self.frame[self.structure].astype(object).where(self.frame[self.structure].notna()))
        found = {str(name): np.flatnonzero(codes == place) for place, name in enumerate(names)}
        if (codes < 0).any():
            found["no name"] = np.flatnonzero(codes < 0)
        return found

    def values(self, measure: Measure) -> Floats:
        """A measured column as floats; what is missing is NaN."""
        return pd.to_numeric(self.frame[measure.column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)


def measured(frame: pd.DataFrame, highlight: Sequence[str], dictionary: pd.DataFrame) -> Measured:
    """Sort out the columns of `frame` with the dictionary of columns; unknown ones are read from their names."""
    known: dict[str, Mapping[str, Any]] = {}
    if len(dictionary):
        known = {str(row["column"]): {str(k): v for k, v in row.items()} for row in dictionary.to_dict("records")}
    identifiers = [str(name) for name in frame.columns if not _is_measure(frame, name)]
    order = {"case": 0, "structure": 1}
    case = next((name for name in CASES if name in identifiers), "")
    structure = next((name for name in STRUCTURES if name in identifiers and name != case), "")
    identifiers.sort(key=lambda name: order.get({case: "case", structure: "structure"}.get(name, ""), 2))
    found = {str(name): measure_of(str(name), known) for name in frame.columns if str(name) not in identifiers}
    first = [name for name in dict.fromkeys(highlight) if name in found]
    rest = [name for name in found if name not in first]
    return Measured(
        frame,
        tuple(identifiers),
        tuple(found[name] for name in first + rest),
        tuple(found[name] for name in first),
        structure,
        case,
    )


def _is_measure(frame: pd.DataFrame, name: Any) -> bool:
    kind = frame[name].dtype
    if pd.api.types.is_bool_dtype(kind) or str(name) in (*CASES, *STRUCTURES):
        return False
    text = str(name)
    if text in _NUMBERED or (text.endswith(("_id", "_label", "_number")) and not text.endswith("euler_number")):
        return False
    if pd.api.types.is_numeric_dtype(kind):
        return True
    # A column of which every value is missing comes out of a reader as objects, and is still a measure.
    return bool(len(frame)) and bool(frame[name].isna().all())


def measure_of(column: str, known: Mapping[str, Mapping[str, Any]]) -> Measure:
    """Name and unit of a column, from its row of the dictionary or else from its ending."""
    row = known.get(column)
    if row is not None:
        quantity, unit = _text(row.get("quantity")) or column, _text(row.get("unit"))
    else:
        ending = _UNIT.search(column)
        quantity, unit = (column[: ending.start()], ending.group(1)) if ending else (column, "")
    name = named(quantity)
    if _TOLERANCE.search(quantity):
        name = f"{name} {_length_unit(known)}".rstrip()
    return Measure(column, quantity, name, unit_shown(unit))


def _length_unit(known: Mapping[str, Mapping[str, Any]]) -> str:
    """``mm`` or ``px``, as the lengths of the same table have it; empty where they differ or are not known."""
    found = {unit for row in known.values() if (unit := _text(row.get("unit"))) in ("mm", "px")}
    return found.pop() if len(found) == 1 else ""


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and not isfinite(value)) else str(value)


def named(quantity: str) -> str:
    """``volume_mesh`` as ``Volume mesh``, ``hd95`` as ``HD95``, ``surface_dice_at_0_5`` as ``Surface Dice at 0.5``."""
    quantity = _TOLERANCE.sub(lambda found: f"_at_{found.group(1).replace('_', '.')}", quantity)
    words = [_ACRONYMS.get(word, word) for word in quantity.split("_") if word]
    text = " ".join(words) or quantity
    return text if text.startswith("clDice") else text[:1].upper() + text[1:]


def inside_sentence(name: str) -> str:
    """A measure's name without its capital letter, which acronyms and people keep."""
    return name if name.partition(" ")[0] in _ACRONYMS.values() else name[:1].lower() + name[1:]


def unit_shown(unit: str) -> str:
    """``mm3`` as ``mm³``; pure numbers and counts have no unit."""
    if unit in ("", "1", "count", "text"):
        return ""
    if unit in ("percent", "deg", "um"):
        return {"percent": "%", "deg": "°", "um": "µm"}[unit]
    parts = re.fullmatch(r"(.*?[A-Za-z])(-?\d)", unit)
    return parts.group(1) + parts.group(2).translate(_RAISED) if parts else unit


# ---------------------------------------------------------------------------------------------------------- digits


def digits_of(values: Floats, *, exact: bool = False) -> int:
    """Digits after the point that give a typical value three significant ones; none for whole numbers.

    `exact` treats whole numbers like others, for their means.
    """
    finite = values[np.isfinite(values)]
    if not finite.size or (not exact and bool((finite == np.round(finite)).all())):
        return 0
    sizes = np.abs(finite[finite != 0])
    if not sizes.size:
        return 0
    return min(max(2 - floor(log10(float(np.median(sizes)))), 0), 5)


def shown(value: Any, digits: int) -> str:
    """A number for the page; what is undefined is a dash, and no number that is not zero becomes 0."""
    if value is None or value is pd.NA or value is pd.NaT:
        return MISSING
    number = float(value)
    if isnan(number):
        return MISSING
    sign = "−" if number < 0 else ""
    size = abs(number)
    if not isfinite(size):
        return f"{sign}∞"
    if size >= 1e9 or (size and (float(f"{size:.{digits}f}") == 0 or (digits >= 5 and size < 1e-3))):
        return sign + _compact(size)
    # 0.9996 must not be shown as a perfect 1.
    while digits and digits < 6 and size < 1 and float(f"{size:.{digits}f}") == 1:
        digits += 1
    return sign + f"{size:,.{digits}f}".replace(",", THIN)


def _compact(size: float) -> str:
    text = f"{size:.3g}"
    if "e" not in text:
        return text
    head, _, power = text.partition("e")
    return f"{head} × 10{str(int(power)).translate(_RAISED)}"


# ------------------------------------------------------------------------------------------------------ statistics


@dataclass(frozen=True)
class Statistics:
    """Of the finite values of one structure."""

    n: int
    mean: float
    sd: float
    median: float
    low_quartile: float
    high_quartile: float
    least: float
    most: float


def statistics(values: Floats) -> Statistics:
    """Number, mean, deviation (n - 1), quartiles and range of the finite values; NaN where there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Statistics(0, *(np.nan,) * 7)
    low, middle, high = (float(v) for v in np.percentile(finite, (25, 50, 75)))
    sd = float(finite.std(ddof=1)) if finite.size > 1 else np.nan
    ends = float(finite.min()), float(finite.max())
    return Statistics(finite.size, float(finite.mean()), sd, middle, low, high, *ends)


def quantile_shown(value: float, values: Floats) -> str:
    """A quantile of `values`: that of whole numbers is whole, or lies half way or a quarter between two."""
    digits = digits_of(values)
    if not digits and isfinite(value) and value != round(value):
        digits = max(digits_of(values, exact=True), 1)
    return shown(value, digits)


def statistics_grid(table: Measured, measures: Sequence[Measure], *, most_rows: int) -> Grid:
    """One row per measure and structure: n, mean, SD, median, quartiles, least and most."""
    groups = table.groups()
    several = bool(table.structure)
    rows = []
    for measure in measures:
        values = table.values(measure)
        digits, finer = digits_of(values), digits_of(values, exact=True)
        for name, place in groups.items():
            one = statistics(values[place])
            low, middle, high = (quantile_shown(v, values) for v in (one.low_quartile, one.median, one.high_quartile))
            rows.append(
                [
                    measure.heading,
                    *([name] if several else []),
                    shown(one.n, 0),
                    shown(one.mean, finer),
                    shown(one.sd, finer),
                    middle,
                    f"{low} to {high}" if one.n else MISSING,
                    shown(one.least, digits),
                    shown(one.most, digits),
                ]
            )
    head = ["Measure", *(["Structure"] if several else []), "n", "Mean", "SD", "Median", "Quartiles", "Min", "Max"]
    cut = len(rows) > most_rows
    caption = f"The first {most_rows} of {len(rows)} lines; the rest is in the tables beside this page." if cut else ""
    return Grid(head, rows[:most_rows], caption=caption, right=tuple(head[2 if several else 1 :]))


# ------------------------------------------------------------------------------------------------------------ rows


def rows_grid(table: Measured, *, most_columns: int) -> Grid:
    """The rows themselves, identifiers first."""
    measures = table.measures[:most_columns]
    columns = [[_identifier(v) for v in table.frame[name]] for name in table.identifiers]
    for measure in measures:
        values = table.values(measure)
        digits = digits_of(values)
        columns.append([shown(value, digits) for value in values])
    head = _different([*(_spaced(name) for name in table.identifiers), *(m.heading for m in measures)])
    if not table.identifiers:
        head, columns = ["Row", *head], [[str(n) for n in range(1, len(table.frame) + 1)], *columns]
    left = len(table.measures) - len(measures)
    caption = f"{left} more columns are in the table beside this page." if left else ""
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Grid(head, rows, caption=caption, right=tuple(head[len(head) - len(measures) :]))


def turned_grid(table: Measured, *, most_rows: int) -> Grid:
    """Measures as rows and each row of the table as a column: few cases with many measures read better that way."""
    keys = [[_identifier(v) for v in table.frame[name]] for name in table.identifiers]
    names = [" · ".join(row) for row in zip(*keys, strict=True)] if keys else [""] * len(table.frame)
    head = _different(["Measure", *(name or f"row {n}" for n, name in enumerate(names, 1))])
    rows = [
        [measure.heading, *(shown(value, digits_of(np.array([value]))) for value in table.values(measure))]
        for measure in table.measures[:most_rows]
    ]
    left = len(table.measures) - len(rows)
    caption = f"{left} more measures are in the table beside this page." if left else ""
    return Grid(head, rows, caption=caption, right=tuple(head[1:]))


def _different(head: Sequence[str]) -> list[str]:
    """Headings with a number added where two are equal: the columns to align are named by their heading."""
    seen: dict[str, int] = {}
    out = []
    for name in head:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} [{seen[name]}]")
    return out


def _spaced(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def _identifier(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if not isinstance(value, (list, tuple, Mapping, np.ndarray)) and pd.isna(value):
        return MISSING
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)
