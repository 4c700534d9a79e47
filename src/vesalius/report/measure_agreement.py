"""Agreement with a reference: means and ranges by structure, and the worst cases by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vesalius.report import words
from vesalius.report.cases import Floats
from vesalius.report.figures import Figure
from vesalius.report.measure_charts import spread_chart
from vesalius.report.measure_numbers import MISSING, Measure, Measured, digits_of, shown
from vesalius.report.tables import Cell, Grid

# Quantities that only a comparison has, best first for ranking; the larger the better, then the smaller the better.
OVERLAPS = (
    *("dice", "panoptic_quality", "pq", "iou", "jaccard", "aji", "cldice", "cl_dice"),
    *("nsd", "surface_dice", "boundary_iou", "volumetric_similarity"),
    *("instance_ap", "recognition_quality", "segmentation_quality", "lesion_f1", "lesion_sensitivity"),
    *("lesion_precision", "lesion_dice_detected", "lesion_wise_dice"),
)
DISTANCES = ("hd95", "hd", "hausdorff", "assd", "asd", "masd", "msd", "rmsd", "mae")
# Shown beside them where they are in the same table.
OTHERS = ("precision", "recall", "sensitivity", "specificity", "f1", "volume_difference", "volume_error")
MOST_METRICS = 8
MOST_WORST = 8
MOST_BESIDE = (3, 2)


@dataclass(frozen=True)
class Agreement:
    """What the page shows of a table with reference metrics."""

    name: str
    lead: str
    grid: Grid
    figures: list[Figure] = field(default_factory=list)
    worst: Grid | None = None


def direction(quantity: str) -> int:
    """1 where larger is better, -1 where smaller is, 0 for anything else."""
    if any(quantity == name or quantity.startswith(f"{name}_") for name in OVERLAPS):
        return 1
    return -1 if any(quantity == name or quantity.startswith(f"{name}_") for name in DISTANCES) else 0


def agreement(table: Measured, name: str) -> Agreement | None:
    """The section for `table`; None for one without reference metrics or without a row."""
    ranked = sorted((m for m in table.measures if direction(m.quantity)), key=_order)
    if not ranked or not len(table.frame):
        return None
    others = [m for m in table.measures if m.quantity.startswith(OTHERS)]
    metrics = (ranked + others)[:MOST_METRICS]
    groups = table.groups()
    rows: list[list[Any]] = [
        [group or "All", shown(len(place), 0), *(_cell(table.values(m)[place], table.values(m)) for m in metrics)]
        for group, place in groups.items()
    ]
    head = ["Structure", "n", *(m.heading for m in metrics)]
    said = "Mean over cases; below it the least and the greatest value."
    return Agreement(
        name,
        f"{said} {_undefined(table, ranked)}".strip(),
        Grid(head, rows, caption="", right=("n",)),
        _figures(table, ranked[:2]),
        _worst(table, ranked),
    )


def _order(measure: Measure) -> int:
    every = (*OVERLAPS, *DISTANCES)
    return next(
        k for k, name in enumerate(every) if measure.quantity == name or measure.quantity.startswith(f"{name}_")
    )


def _cell(values: Floats, column: Floats) -> Cell:
    known = values[~np.isnan(values)]
    finite = known[np.isfinite(known)]
    digits = digits_of(column, exact=True)
    if not known.size:
        return Cell(MISSING, known=False)
    # The mean of a distance that is infinite once is infinite and says nothing: it is of the others, and this is said.
    mean = shown(finite.mean(), digits) if finite.size else shown(np.inf, digits)
    ends = f"{shown(known.min(), digits)} to {shown(known.max(), digits)}"
    return Cell(mean, ends if known.size > 1 else "one case")


def _undefined(table: Measured, metrics: Sequence[Measure]) -> str:
    parts = []
    for measure in metrics:
        values = table.values(measure)
        missing, endless = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if missing:
            parts.append(f"{measure.name} is undefined in {words.count(missing, 'row')}")
        if endless:
            parts.append(f"{measure.name} is infinite in {words.count(endless, 'row')}, left out of the mean")
    return "; ".join(parts[:4]) + "." if parts else ""


def _figures(table: Measured, metrics: Sequence[Measure]) -> list[Figure]:
    out = []
    groups = list(table.groups().items())[:14]
    for measure in metrics:
        values = table.values(measure)
        if np.isfinite(values).sum() < 2:
            continue
        rows = {name or "All": values[place] for name, place in groups}
        said = f"{measure.heading} by structure over {words.count(len(values), 'row')}"
        chart = spread_chart(rows, x_name=measure.heading, label=said)
        better = "Larger is better." if direction(measure.quantity) > 0 else "Smaller is better."
        out.append(Figure(measure.name, chart, f"{better} Box: quartiles and median. Line: the whole range."))
    return out


def _worst(table: Measured, ranked: Sequence[Measure]) -> Grid | None:
    """The rows that agree least, by the first metric and then by the others; only where there are some to choose."""
    if len(table.frame) < 2 or not table.identifiers:
        return None
    # What is undefined (both masks empty) cannot be worst: it goes last.
    keys = [np.where(np.isnan(v := table.values(m)), np.inf, v * direction(m.quantity)) for m in ranked]
    order = np.lexsort(tuple(keys[::-1]))[: min(MOST_WORST, len(table.frame) // 2 or 1)]
    first = table.values(ranked[0])
    order = order[~np.isnan(first[order])]
    if not len(order):
        return None
    names = [name for name in (table.case, table.structure) if name] or list(table.identifiers[:2])
    # The first of either kind: so many fit beside the names without scrolling.
    kinds = ([m for m in ranked if direction(m.quantity) == way] for way in (1, -1))
    metrics = [m for kind, most in zip(kinds, MOST_BESIDE, strict=True) for m in kind[:most]]
    digits = [digits_of(table.values(m), exact=True) for m in metrics]
    rows = [
        [
            *(str(table.frame[name].iloc[row]) for name in names),
            *(shown(table.values(m)[row], d) for m, d in zip(metrics, digits, strict=True)),
        ]
        for row in order
    ]
    head = [*(name.replace("_", " ").capitalize() for name in names), *(m.heading for m in metrics)]
    which = "lowest" if direction(ranked[0].quantity) > 0 else "highest"
    caption = (
        f"The {len(rows)} with the {which} {ranked[0].name}." if len(rows) > 1 else f"The {which} {ranked[0].name}."
    )
    return Grid(head, rows, caption=caption, right=tuple(head[len(names) :]))
