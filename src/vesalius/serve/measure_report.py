"""What a measured cohort says in one sentence, in a small table, and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vesalius.report.measure_numbers import digits_of, shown, unit_shown
from vesalius.report.measure_page import MeasureTable, write_measure_page
from vesalius.serve.measure_cases import MeasureCase
from vesalius.serve.measure_tables import TableStore

# Rows of a table that the page looks at; the files hold all.
MOST_ROWS = 200_000
# By table: the quantities that a reader wants first, and what a row is.
HIGHLIGHTS: Mapping[str, tuple[str, ...]] = {
    "structures": (
        "volume",
        "surface_area",
        "sphericity",
        "maximum_diameter",
        "longest_diameter",
        "short_axis",
        "area",
        "perimeter",
        "circularity",
        "feret_max",
        "mean",
    ),
    "cells": ("area", "perimeter", "eccentricity", "solidity", "circularity", "gap_distance"),
    "images": ("cell_count", "frame_density", "cell_area_median", "cell_area_fraction", "clark_evans"),
    "vessels": (
        "total_length",
        "mean_calibre",
        "bifurcations",
        "mean_arc_chord",
        "vessel_density",
        "fractal_dimension",
    ),
    "branches": ("length", "calibre_mean", "arc_chord"),
    "bifurcations": ("angle_daughters", "murray_exponent"),
    "narrowings": ("diameter_stenosis", "calibre"),
    "relations": ("gap", "contact_area", "centroid_distance"),
    "reference": ("dice", "surface_dice", "hausdorff_distance_95", "hausdorff_distance", "assd", "volume_error"),
    "reference_images": (
        "panoptic_quality",
        "instance_ap_50",
        "aji",
        "lesion_sensitivity",
        "lesions_false",
        "lesion_f1",
    ),
    "tissue": ("tissue_fraction", "image_fraction", "class_area"),
    "heart": ("ejection_fraction", "end_diastolic_volume", "end_systolic_volume", "stroke_volume"),
    "chest": ("cardiothoracic_ratio", "heart_width", "thorax_width"),
}
ROWS: Mapping[str, tuple[str, str]] = {
    "structures": ("structure", "structures"),
    "cells": ("cell", "cells"),
    "images": ("image", "images"),
    "vessels": ("vessel tree", "vessel trees"),
    "branches": ("branch", "branches"),
    "bifurcations": ("bifurcation", "bifurcations"),
    "narrowings": ("narrowing", "narrowings"),
    "relations": ("pair", "pairs"),
    "reference": ("comparison", "comparisons"),
    "reference_images": ("image compared", "images compared"),
    "tissue": ("tissue class", "tissue classes"),
    "heart": ("heart", "hearts"),
    "chest": ("chest film", "chest films"),
}
LEADS: Mapping[str, str] = {
    "structures": "One row for each label of each mask.",
    "cells": "One row for each cell.",
    "images": "One row for each image: counts with 95 % intervals, and summaries of its cells.",
    "vessels": "One row for each mask.",
    "branches": "One row for each branch of the vessel graph.",
    "bifurcations": "One row for each bifurcation.",
    "narrowings": "Places where the calibre falls below what the branch is elsewhere; candidates, not diagnoses.",
    "relations": "One row for each pair of labels near one another.",
    "reference": "The masks against the reference, one row for each label.",
    "reference_images": "The masks against the reference, one row for each image: objects found and missed.",
    "tissue": "One row for each class of tissue.",
    "heart": "Volumes by the method of discs.",
    "chest": "Widths of heart and chest.",
}
_MAIN = ("cells", "structures", "vessels", "tissue", "heart", "chest")


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that was measured in one call."""

    folder: Path
    kind: str
    because: str
    cases: Sequence[MeasureCase]
    store: TableStore
    records: Sequence[Mapping[str, Any]]
    dictionary: pd.DataFrame
    failed: Mapping[str, str]
    notes: list[str]

    def tables(self) -> list[str]:
        """Names of the tables, in order."""
        return list(dict.fromkeys(name for record in self.records for name in record["parts"]))

    def highlights(self, table: str) -> list[str]:
        """Columns of a table that matter most, in order."""
        here = self.dictionary[self.dictionary["table"] == table]
        out: list[str] = []
        for quantity in HIGHLIGHTS.get(table, ()):
            hit = here["quantity"].str.fullmatch(rf"{quantity}(_at_.*)?")
            out += [column for column in here.loc[hit, "column"] if column not in out]
        return out


def summarise(study: Study) -> dict[str, Any]:
    """``answer`` in one sentence, and small tables (head, rows, caption) for the screen."""
    frames = {name: study.store.frame(study.records, name, MOST_ROWS) for name in study.tables()}
    tables = []
    for name, (frame, rows) in frames.items():
        chosen = [column for column in study.highlights(name) if column in frame][:6]
        if chosen and len(frame):
            tables.append(_screen_table(study, name, frame, rows, chosen))
    return {"answer": _answer(study, frames), "tables": tables}


def _answer(study: Study, frames: Mapping[str, tuple[pd.DataFrame, int]]) -> str:
    cases = len(study.records)
    parts = [f"{cases:,} {'mask' if cases == 1 else 'masks'}"]
    main = next((name for name in _MAIN if name in frames), None)
    if main is not None:
        frame, rows = frames[main]
        parts.append(f"{rows:,} {ROWS[main][rows != 1]}")
        parts += [_middle(study, main, column, frame) for column in study.highlights(main)[:1] if column in frame]
    if study.failed:
        parts.append(f"{len(study.failed)} masks failed")
    return "; ".join([", ".join(parts[:2]), *(part for part in parts[2:] if part)]) + "."


def _middle(study: Study, table: str, column: str, frame: pd.DataFrame) -> str:
    """``median volume: liver 1 512 mm³, spleen 203 mm³``, or the median and quartiles of all."""
    row = study.dictionary[(study.dictionary["table"] == table) & (study.dictionary["column"] == column)].iloc[0]
    unit = f" {unit_shown(str(row['unit']))}".rstrip()
    name = str(row["quantity"]).replace("_", " ")
    values = frame[column].to_numpy(dtype=float)
    known = np.isfinite(values)
    if not known.any():
        return ""
    digits = digits_of(values, exact=True)
    names = list(frame["name"].unique()) if "name" in frame else []
    if 1 < len(names) <= _MOST_ACROSS + 2:
        middles = [(one, float(np.nanmedian(values[(frame["name"] == one).to_numpy()]))) for one in names]
        said = [(f"label {one}" if str(one).isdigit() else one, shown(middle, _few(middle))) for one, middle in middles]
        return f"median {name}: " + ", ".join(f"{one} {middle}{unit}" for one, middle in said)
    if len(names) > 1:
        return ""
    if known.sum() == 1:
        return f"{name} {shown(values[known][0], digits)}{unit}"
    low, middle, high = (shown(value, digits) for value in np.percentile(values[known], [25, 50, 75]))
    return f"median {name} {middle}{unit} (quartiles {low} to {high})"


def _few(value: float) -> int:
    return digits_of(np.array([value]), exact=True)


def _screen_table(study: Study, name: str, frame: pd.DataFrame, rows: int, chosen: list[str]) -> dict[str, Any]:
    """The chosen columns of a table: of every row where there are few, else median and quartiles by structure."""
    by = "name" if name in ("structures", "reference", "tissue") and "name" in frame else ""
    caption = ""
    if rows <= _FEW:
        keys = [key for key in ("case_id", by, *_PAIR) if key and key in frame and (rows > 1 or key != "case_id")]
        listed = [row for _, row in frame.iterrows()]
        heads = [" ".join(str(row[key]) for key in keys) or str(row["case_id"]) for row in listed]
        cells = [[_short(row[column]) for row in listed] for column in chosen]
    else:
        parts = list(frame.groupby(by, sort=False)) if by and frame[by].nunique() <= _FEW else [("all", frame)]
        heads = [f"{key} (n {len(part)})" for key, part in parts]
        cells = [[_quartiles(part[column]) for _, part in parts] for column in chosen]
        caption = f"{name}: median (quartiles)" + (
            "" if rows == len(frame) else f" of the first {len(frame)} of {rows}"
        )
    if len(heads) <= _MOST_ACROSS:
        body = [[column, *row] for column, row in zip(chosen, cells, strict=True)]
        return {"head": [name, *heads], "rows": body, "caption": caption}
    across = [list(row) for row in zip(*cells[:_MOST_ACROSS], strict=True)]
    body = [[head, *row] for head, row in zip(heads, across, strict=True)]
    return {"head": [name, *chosen[:_MOST_ACROSS]], "rows": body, "caption": caption}


_FEW, _MOST_ACROSS = 12, 4
_PAIR = ("first_name", "second_name")


def _short(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def _quartiles(column: pd.Series[Any]) -> str:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def write_page(study: Study, work: Any, summary: Mapping[str, Any]) -> Path:
    """``index.html``: the answer, tables, pictures of some cases, the dictionary."""
    from vesalius.serve.measure_pictures import pictures_of

    tables = [
        MeasureTable(
            name.replace("_", " "),
            LEADS.get(name, ""),
            study.store.frame(study.records, name, MOST_ROWS)[0],
            study.highlights(name),
        )
        for name in study.tables()
    ]
    facts = {
        "answer": summary["answer"],
        "kind": f"{study.kind} ({study.because})",
        "masks": len(study.records),
        "failed": len(study.failed),
    }
    return write_measure_page(
        study.folder / "index.html",
        title=f"Measurements: {study.folder.name}",
        summary=facts,
        tables=tables,
        pictures=pictures_of(study, work),
        dictionary=study.dictionary,
        problems=list(study.failed.values()),
        notes=study.notes,
        next_steps="",
    )
