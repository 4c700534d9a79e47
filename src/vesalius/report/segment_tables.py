"""Tables of a segmentation page: structures, all cases, evidence for post-processing, the boundary band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vesalius.core.labels import Labels
from vesalius.evaluate.segment_ranking import case_scores
from vesalius.report import segment_words, words
from vesalius.report.measure_numbers import MISSING, digits_of, shown
from vesalius.report.segment_words import name_of
from vesalius.report.tables import Cell, Grid, cell_of

# Columns of the table of structures; the rest stands in metrics.json.
MOST_METRICS = 7
# With more structures than this a row per case holds their mean and the weakest one.
MOST_BESIDE = 6
# The row in which `evaluate.postprocessing` compares all chosen steps together with none.
ALL_STEPS = "all chosen steps"
UNITS = {"mm": "mm", "px": "px", "ml": "ml", "mm2": "mm²", "percent": "%"}


def structures_grid(metrics: Mapping[str, Any], labels: Labels | None) -> Grid | None:
    """One row per structure: how many cases have it, and its numbers with intervals."""
    per_class = {str(k): segment_words.numbers_of(v) for k, v in (metrics.get("per_class") or {}).items()}
    order = [name for name in (labels.structures if labels is not None else ()) if name in per_class]
    order += [name for name in per_class if name not in order]
    keys = list(segment_words.in_order({key: data for name in order for key, data in per_class[name].items()}))
    keys = [key for key in keys if not key.startswith(("count_error", "iou"))][:MOST_METRICS]
    if not order or not keys:
        return None
    sizes = metrics.get("classes") or {}
    digits = {key: max((words.decimals(per_class[n][key]) for n in order if key in per_class[n]), default=2)
              for key in keys}  # fmt: skip
    rows = []
    for name in order:
        held = (sizes.get(name) or {}).get("cases")
        cells = [cell_of(per_class[name].get(key, words.Interval(None)), digits=digits[key]) for key in keys]
        rows.append([name, "" if held is None else str(held), *cells])
    return Grid(["Structure", "Cases with it", *(name_of(key) for key in keys)], rows, right=("Cases with it",))


def outcomes_grid(empty: Mapping[str, Any]) -> Grid | None:
    """How many cases had each structure found, missed, invented or rightly empty; only where that is of interest."""
    kinds = list(segment_words.OUTCOMES)
    counted = {str(name): [int(found.get(kind) or 0) for kind in kinds] for name, found in empty.items()}
    if not any(sum(counts[1:]) for counts in counted.values()):
        return None
    head = ["Structure", *(segment_words.OUTCOMES[kind].capitalize() for kind in kinds)]
    return Grid(head, [[name, *map(str, counts)] for name, counts in counted.items()], right=tuple(head[1:]))


def cases_grid(table: pd.DataFrame, labels: Labels | None = None) -> Grid | None:
    """Every case, worst first: its score, and the numbers of its structures (of the weakest, if there are many)."""
    if table.empty:
        return None
    scores = case_scores(table)
    names = list(labels.structures if labels is not None else dict.fromkeys(table["label"]))
    if len(names) == 1:
        return _single(table, scores)
    wide = table.pivot_table(index="case_id", columns="label", values="dice", aggfunc="first", dropna=False)
    beside = [name for name in names if name in wide.columns] if len(names) <= MOST_BESIDE else []
    columns = _distances(table)
    far = {key: table.groupby("case_id")[key].max() for key in columns}
    rows = []
    for _, row in scores.iterrows():
        case = str(row["case_id"])
        cells = [shown(row["score"], 3), str(row["worst"])]
        cells += [shown(wide.loc[case, name], 3) for name in beside]
        cells += [shown(far[key].get(case), 1) for key in columns]
        rows.append([case, *cells, _remark(row)])
    head = ["Case", "Mean Dice", "Weakest", *beside, *(f"Largest {_heading(key)}" for key in columns), "Remark"]
    return Grid(_unique(head), rows, right=("Mean Dice",))


def _remark(row: pd.Series) -> str:
    """Structures that one of the masks lacks."""
    data = {"missed": row["missed"], "invented": row["invented"]}
    return segment_words.verdict(data) if row["missed"] or row["invented"] else ""


def _single(table: pd.DataFrame, scores: pd.DataFrame) -> Grid:
    """Cases of a single structure with all numbers that a reader compares."""
    wanted = ("pq", "ap50", "dice", "nsd", *_distances(table), "lesions_true", "lesions_detected", "lesions_false",
              "count_true", "count_pred")  # fmt: skip
    wanted = (*wanted, *(c for c in table.columns if c.startswith(("volume_", "area_")) and "_error_" not in c))
    keys = [key for key in wanted if key in table.columns and table[key].notna().any()]
    by_case = table.set_index("case_id")
    digits = {key: 3 if key in ("pq", "ap50", "dice", "nsd") else digits_of(by_case[key].to_numpy(dtype=np.float64))
              for key in keys}  # fmt: skip
    rows = [
        [case, *(shown(by_case.loc[case, key], digits[key]) for key in keys),
         {"found": ""}.get(str(by_case.loc[case, "outcome"]), segment_words.OUTCOMES.get(
             str(by_case.loc[case, "outcome"]), ""))]
        for case in scores["case_id"].astype(str)
    ]  # fmt: skip
    head = ["Case", *(_heading(key) for key in keys), "Remark"]
    return Grid(_unique(head), rows, right=tuple(head[1:-1]))


def _distances(table: pd.DataFrame) -> list[str]:
    return [key for key in ("hd95_mm", "hd95_px") if key in table.columns and table[key].notna().any()]


def _heading(key: str) -> str:
    unit = UNITS.get(key.rpartition("_")[2], "")
    bare = key.removesuffix("_" + key.rpartition("_")[2]) if unit else key
    name = segment_words.NAMES.get(key) or bare.replace("_", " ").replace("pred", "model").replace("true", "reference")
    return f"{name[0].upper()}{name[1:]}{f' ({unit})' if unit else ''}"


def _unique(head: Sequence[str]) -> list[str]:
    """Headings that differ: a structure may be called as a column is."""
    out: list[str] = []
    for name in head:
        out.append(name if name not in out else f"{name} ")
    return out


def subgroups_grid(data: Mapping[str, Any]) -> Grid | None:
    """One row per group with the first numbers; groups too small to judge say so across the row."""
    found = words.flat_subgroups(data)
    if not found:
        return None
    numbers = [segment_words.numbers_of(content.get("metrics") or {}) for _, _, content in found]
    keys = list(segment_words.in_order({key: words.Interval(None) for one in numbers for key in one}))[:5] or ["dice"]
    rows = []
    for (covariate, group, content), mine in zip(found, numbers, strict=True):
        why = str(content.get("note") or "not enough cases")
        cells = [cell_of(mine.get(key, words.Interval(None)), why) for key in keys]
        if not mine:
            cells = [Cell(why, known=False, span=len(keys))]
        counted = [str(content.get(key, "")) for key in ("cases", "patients")]
        rows.append([f"{covariate}: {group}" if group else covariate, *counted, *cells])
    head = ["Group", "Cases", "Patients", *(name_of(key) for key in keys)]
    return Grid(head, rows, right=("Cases", "Patients"))


def single_steps(evidence: pd.DataFrame | None) -> pd.DataFrame:
    """The steps that were tried one by one, without the row of all chosen ones together."""
    if evidence is None or evidence.empty or "name" not in evidence.columns:
        return pd.DataFrame()
    return evidence.loc[evidence["name"] != ALL_STEPS]


def evidence_grid(evidence: pd.DataFrame | None) -> Grid | None:
    """What post-processing was tried, what it changed on held-out cases, and what was taken."""
    if evidence is None or evidence.empty:
        return None
    heads = {"name": "Step", "label": "Structure", "cases": "Cases", "before": "Dice before", "after": "Dice after",
             "difference": "Change", "chosen": "Taken", "reason": "Because"}  # fmt: skip
    keys = [key for key in heads if key in evidence.columns]
    rows = [[_evidence_cell(row, key) for key in keys] for _, row in evidence.iterrows()]
    return Grid([heads[key] for key in keys], rows, right=("Cases", "Dice before", "Dice after"))


def _evidence_cell(row: pd.Series, key: str) -> str | Cell:
    value = row[key]
    if key == "difference":
        low, high = (words.interval(row.get(end)).value for end in ("low", "high"))
        if not segment_words.is_finite(value):
            return MISSING
        between = "" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
        return Cell(f"{value:+.4f}", between)
    if key in ("before", "after"):
        return shown(value, 4)
    if key == "chosen":
        return "yes" if bool(value) else "no"
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else words.as_text(value)


def band_grid(band: Mapping[str, Any]) -> Grid | None:
    """The boundary band by structure; numbers of each structure stand in a mapping under its name."""
    content = next((band[key] for key in ("labels", "per_label", "structures") if isinstance(band.get(key), Mapping)),
                   band)  # fmt: skip
    found = {str(name): data for name, data in content.items() if isinstance(data, Mapping)}
    keys = list(dict.fromkeys(str(key) for data in found.values() for key in data))
    if not keys:
        return None
    rows = [[name, *(_band_cell(data.get(key)) for key in keys)] for name, data in found.items()]
    return Grid(["Structure", *(_heading(key) for key in keys)], rows, right=tuple(_heading(key) for key in keys))


def _band_cell(value: Any) -> str | Cell:
    if isinstance(value, Mapping):
        return cell_of(words.interval(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return MISSING if value is None else words.as_text(value)
    return shown(value, 0 if isinstance(value, int) else 2)
