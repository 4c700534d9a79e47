"""The table behind every number of a segmentation: one row per case and structure.

Rules, the same for every row:

* Both masks empty (``absent``): there is nothing to overlap. Dice, IoU, surface Dice and distances are NaN and drop out
  of means; the case counts as a correct rejection instead (Metrics Reloaded: Maier-Hein et al., Nature Methods 2024,
  21:195). Only one is empty (``missed``, ``invented``): Dice, IoU and surface Dice are 0, distances infinite.
* Voxels whose truth has the value `Labels.ignore` are taken out of both masks.
* The tolerance of the surface Dice is stated in each row. Default: the larger of 1 mm and the largest voxel step, since
  no outline is known better than to a voxel; 1 pixel without a physical size.
* Names carry the unit: ``hd95_mm``, or ``hd95_px`` for images without a physical size; volumes (3-D) in ml, areas (2-D)
  in mm2, or voxels and pixels (``_px``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError, UnreadableFile
from vesalius.core.labels import Labels
from vesalius.measure.boxes import checked_labels, label_boxes
from vesalius.measure.contingency import Contingency, contingency
from vesalius.measure.instances import scores_of
from vesalius.measure.lesions import lesion_scores
from vesalius.measure.overlap import table_of
from vesalius.measure.surface import quantities, surface_table

Mask = NDArray[Any]
Row = dict[str, Any]
Tolerances = float | Mapping[str, float]

IDENTITY = ("case_id", "patient_id", "split", "label", "outcome")
# Keep this order: prediction and truth hold the structure, only the truth, only the prediction, neither.
OUTCOMES = ("found", "missed", "invented", "absent")
LEAST_TOLERANCE_MM = 1.0
# Names of `measure.instances` and what they are called in tables and reports.
INSTANCES = {
    "instance_ap_50": "ap50",
    "instance_ap": "ap50_95",
    "panoptic_quality": "pq",
    "recognition_quality": "rq",
    "segmentation_quality": "sq",
    "aji": "aji",
}


def score_case(
    prediction: Mask,
    truth: Mask,
    spacing: Sequence[float] | None,
    labels: Labels,
    *,
    case_id: str,
    patient_id: str = "",
    split: str = "",
    tolerances_mm: Tolerances | None = None,
    lesions: bool = True,
    workers: int | None = None,
) -> list[Row]:
    """Judge the mask of one case: one row for each of ``labels.structures``.

    Parameters
    ----------
    prediction, truth
        Label maps ``(Z, Y, X)`` or ``(Y, X)``. Overlapping structures (`Labels.multilabel`): masks ``(K, *S)``, or a
        label map that `Labels.regions` splits; two arrays ``(K, Y, X)`` without a spacing are flat masks.
    spacing
        mm per axis of the image, as `Grid.spacing_mm`; None without a physical size.
    patient_id
        Empty where nobody knows.
    tolerances_mm
        Tolerance of the surface Dice, one or by name; pixels without a size. None: see the top of this module.
    lesions
        Also count connected components; any shared voxel finds one (`measure.lesions`).

    Returns
    -------
    rows
        ``case_id, patient_id, split, label, outcome`` (`OUTCOMES`), ``tolerance_mm``, ``dice, iou, nsd, hd95_mm,
        assd_mm``, ``volume_true_ml, volume_pred_ml, volume_error_ml`` (prediction minus truth),
        ``volume_error_percent``; ``lesions_true, lesions_detected, lesions_false, lesion_sensitivity``; for single
        objects ``ap50, ap50_95, pq, rq, sq, aji, count_true, count_pred, count_error``. Units as at the top.

    Raises
    ------
    DataError
        For a truth with values that are no class.
    ValueError
        For shapes that differ or do not fit the labels, and tolerances that are not positive.
    """
    flat = _flat_masks(prediction, truth, spacing, labels, case_id)
    names = labels.structures
    steps = tuple(float(step) for step in spacing) if spacing is not None else (1.0,) * flat.ndim
    wide = _tolerances(tolerances_mm, names, steps, physical=spacing is not None)
    who = {"case_id": str(case_id), "patient_id": str(patient_id) or str(case_id), "split": str(split)}
    if labels.instances:
        rows = [_instance_row(flat.prediction, flat.truth, spacing, labels, wide[0], workers)]
    elif flat.layers:
        pairs = zip(flat.prediction, flat.truth, strict=True)
        rows = [
            _rows(said, true, spacing, [1], [tolerance], lesions, workers)[0]
            for (said, true), tolerance in zip(pairs, wide, strict=True)
        ]
    else:
        values = list(range(1, len(names) + 1))
        rows = _rows(flat.prediction, flat.truth, spacing, values, wide, lesions, workers)
    return [{**who, "label": name, **row} for name, row in zip(names, rows, strict=True)]


class _Masks:
    """Prediction and truth in one form: label maps ``S``, or with `layers` one mask per structure ``(K, *S)``."""

    def __init__(self, prediction: Mask, truth: Mask, *, layers: bool) -> None:
        self.prediction, self.truth, self.layers = prediction, truth, layers
        self.ndim = prediction.ndim - layers


def _flat_masks(prediction: Mask, truth: Mask, spacing: Sequence[float] | None, labels: Labels, case_id: str) -> _Masks:
    said, true = np.asarray(prediction), np.asarray(truth)
    if not labels.multilabel:
        if said.shape != true.shape or said.ndim not in (2, 3):
            raise ValueError(f"{case_id}: prediction and truth must be one label map each, got {said.shape} "
                             f"and {true.shape}")  # fmt: skip
        said, true = _known(said, true, labels.ignore)
        return _Masks(checked_labels(said, name="prediction"), checked_labels(true, name="truth"), layers=False)
    ndim = _spatial(said, true, spacing, len(labels))
    said, _ = _layers(said, ndim, labels)
    true, unknown = _layers(true, ndim, labels)
    if said.shape != true.shape:
        raise ValueError(f"{case_id}: prediction and truth have shapes {said.shape} and {true.shape}")
    if unknown is not None:
        said, true = said & ~unknown, true & ~unknown
    return _Masks(said, true, layers=True)


def _known(said: Mask, true: Mask, ignore: int | None) -> tuple[Mask, Mask]:
    """Both maps with 0 where the truth says nobody knows; copied only where there is such a voxel."""
    unknown = true == ignore if ignore is not None else None
    if unknown is None or not unknown.any():
        return said, true
    return np.where(unknown, 0, said).astype(said.dtype), np.where(unknown, 0, true).astype(true.dtype)


def _spatial(said: Mask, true: Mask, spacing: Sequence[float] | None, structures: int) -> int:
    """How many axes the image has: from its spacing, else from the array that has fewer axes."""
    if spacing is not None:
        return len(spacing)
    least = min(said.ndim, true.ndim)
    if said.ndim != true.ndim or least == 2:
        return least
    return 2 if least == 3 and said.shape[0] == true.shape[0] == structures else 3


def _layers(mask: Mask, ndim: int, labels: Labels) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """Masks ``(K, *S)`` and where nobody knows, from such masks or from a label map of the regions."""
    if mask.ndim == ndim and labels.regions:
        out = np.stack([np.isin(mask, region) for region in labels.regions])
        return out, None if labels.ignore is None else mask == labels.ignore
    if mask.ndim != ndim + 1 or mask.shape[0] != len(labels):
        raise ValueError(f"a mask of {len(labels)} overlapping structures must have axes (K, *image), got {mask.shape}")
    if labels.ignore is None or mask.dtype == np.bool_ or labels.ignore in (0, 1):
        return mask != 0, None
    unknown = mask == labels.ignore
    return (mask != 0) & ~unknown, unknown


def _tolerances(
    given: Tolerances | None, names: Sequence[str], steps: Sequence[float], *, physical: bool
) -> list[float]:
    default = max(LEAST_TOLERANCE_MM, *steps) if physical else 1.0
    if given is None:
        return [default] * len(names)
    wide = [float(given.get(name, default) if isinstance(given, Mapping) else given) for name in names]
    unknown = sorted(set(given) - set(names)) if isinstance(given, Mapping) else []
    if unknown or not all(np.isfinite(one) and one > 0 for one in wide):
        raise ValueError(f"tolerances must be positive and name structures ({', '.join(names)}), got {given}")
    return wide


# ------------------------------------------------------------------------------------------------------------ numbers


def _rows(
    said: Mask,
    true: Mask,
    spacing: Sequence[float] | None,
    values: Sequence[int],
    tolerances: Sequence[float],
    lesions: bool,
    workers: int | None,
) -> list[Row]:
    """The rows of some values of two label maps; every map is read once, surfaces only within boxes."""
    counts = contingency(said, true, workers=workers)
    _check_values(counts, values)
    steps = tuple(float(s) for s in spacing) if spacing is not None else (1.0,) * true.ndim
    overlap = table_of(counts, steps, values, physical=spacing is not None)
    # Only labels that both maps hold have two surfaces; all else follows from the rule for empty masks.
    both = [value for value, tp in zip(values, _in_both(overlap), strict=True) if tp]
    wide = sorted(set(tolerances))
    found = surface_table(said, true, spacing, both, tolerances=wide, workers=workers) if both else {"label": both}
    place = {int(label): k for k, label in enumerate(found["label"])}
    at = dict(zip(wide, (q.name for q in quantities(wide) if q.name.startswith("surface_dice")), strict=True))
    boxes = _boxes(said, true, workers) if lesions else {}
    unit = "mm" if spacing is not None else "px"
    rows = []
    for k, value in enumerate(values):
        sizes = _sizes(overlap, k, true.ndim, unit)
        outcome = _outcome(sizes)
        overlaps = {name: float(overlap[name][k]) for name in ("dice", "iou")}
        names = (at[tolerances[k]], "hausdorff_distance_95", "assd")
        three = [float(found[name][place[value]]) for name in names] if value in place else _without(outcome)
        surface = dict(zip(("nsd", f"hd95_{unit}", f"assd_{unit}"), three, strict=True))
        row = {"outcome": outcome, f"tolerance_{unit}": tolerances[k], **overlaps, **surface, **sizes}
        rows.append(row | _lesions(said, true, value, boxes.get(value)) if lesions else row)
    return rows


def _check_values(counts: Contingency, values: Sequence[int]) -> None:
    for side, held in (("truth", counts.second), ("prediction", counts.first)):
        strange = sorted(set(held.tolist()) - {0, *values})
        if strange and side == "truth":
            raise DataError(
                f"the truth holds the value {strange[0]}, which is no class (classes are 0 to {max(values)}); "
                "name it in the labels or mark it as ignored"
            )
        if strange:
            raise ValueError(f"the prediction holds the value {strange[0]}, which is no class")


def _in_both(overlap: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    said, true = overlap["tp"] + overlap["fp"], overlap["tp"] + overlap["fn"]
    return np.asarray((said > 0) & (true > 0))


def _sizes(overlap: Mapping[str, NDArray[Any]], k: int, ndim: int, unit: str) -> Row:
    """Volumes (areas) of truth and prediction and how far they differ."""
    kind = "volume" if ndim == 3 else "area"
    shown = {"px": "px"}.get(unit, "ml" if ndim == 3 else "mm2")
    return {
        f"{kind}_true_{shown}": float(overlap[f"{kind}_truth"][k]),
        f"{kind}_pred_{shown}": float(overlap[f"{kind}_prediction"][k]),
        f"{kind}_error_{shown}": float(overlap[f"{kind}_error"][k]),
        f"{kind}_error_percent": float(overlap["relative_volume_error"][k]),
    }


def _outcome(sizes: Row) -> str:
    true = next(value for name, value in sizes.items() if "_true_" in name) > 0
    said = next(value for name, value in sizes.items() if "_pred_" in name) > 0
    return OUTCOMES[(not true) * 2 + (not said)]


def _without(outcome: str) -> list[float]:
    """Surface Dice, HD95 and ASSD where one of the masks is empty, or both are."""
    return [float("nan")] * 3 if outcome == "absent" else [0.0, float("inf"), float("inf")]


def _boxes(said: Mask, true: Mask, workers: int | None) -> dict[int, tuple[slice, ...]]:
    """The box around each label of either map."""
    out: dict[int, tuple[slice, ...]] = {}
    for found in (label_boxes(said, workers=workers), label_boxes(true, workers=workers)):
        for row, value in enumerate(found.values.tolist()):
            mine = found.slices(row)
            before = out.get(value, mine)
            out[value] = tuple(
                slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(mine, before, strict=True)
            )
    return out


def _lesions(said: Mask, true: Mask, value: int, box: tuple[slice, ...] | None) -> Row:
    """Components of one label, within the box around it; None where neither map holds it."""
    names = ("lesions_true", "lesions_detected", "lesions_false", "lesion_sensitivity")
    if box is None:
        return dict(zip(names, (0.0, 0.0, 0.0, float("nan")), strict=True))
    found = lesion_scores(said[box] == value, true[box] == value)
    keys = ("lesions_truth", "lesions_detected", "lesions_false", "lesion_sensitivity")
    return {name: found[key] for name, key in zip(names, keys, strict=True)}


def _instance_row(
    said: Mask, true: Mask, spacing: Sequence[float] | None, labels: Labels, tolerance: float, workers: int | None
) -> Row:
    """Single objects: how many were found and how well, and the overlap of all of them together."""
    whole = _rows((said != 0).view(np.uint8), (true != 0).view(np.uint8), spacing, [1], [tolerance], False, workers)
    found = scores_of(contingency(said, true, workers=workers))
    row = {name: found[key] for key, name in INSTANCES.items()}
    counted = {"count_true": found["instances_truth"], "count_pred": found["instances_prediction"]}
    return whole[0] | row | counted | {"count_error": counted["count_pred"] - counted["count_true"]}


# -------------------------------------------------------------------------------------------------------------- table


def segment_table(rows: Iterable[Row], covariates: pd.DataFrame | None = None) -> pd.DataFrame:
    """Rows of `score_case` of all cases as one table, with the covariates (a frame with ``case_id``) beside them.

    Raises
    ------
    DataError
        Without a row, and for a case that stands in it twice.
    """
    table = pd.DataFrame(list(rows))
    if table.empty:
        raise DataError("no case was judged; give at least one case with a mask")
    twice = table.duplicated(["case_id", "label"])
    if twice.any():
        raise DataError(f"case {table.loc[twice, 'case_id'].iloc[0]!r} was judged more than once; "
                        "give every case its own case_id")  # fmt: skip
    if covariates is None:
        return table
    extra = [name for name in covariates.columns if name == "case_id" or name not in table.columns]
    known = covariates[extra].drop_duplicates("case_id").assign(case_id=covariates["case_id"].astype(str))
    return table.merge(known, on="case_id", how="left")


def read_segment_table(path: str | Path) -> pd.DataFrame:
    """Read a table that was written with `evaluate.table.write_table`.

    Raises
    ------
    UnreadableFile
        If the file is absent, broken, or no table of segmentations.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        found = str(error) or type(error).__name__
        raise UnreadableFile(path, found=found, expected="a table of cases (Parquet)", do="evaluate again") from error
    absent = [name for name in (*IDENTITY, "dice") if name not in table.columns]
    if absent:
        raise UnreadableFile(
            path, found=f"no column {absent[0]!r}", expected="a table of segmentations", do="evaluate the run again"
        )
    return table
