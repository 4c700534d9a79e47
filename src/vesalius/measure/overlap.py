"""How much of two label maps is the same: counted once, for all labels and all pairs of labels together.

`contingency` passes once over both maps and counts the voxels that carry each pair of labels. Every number of this
module, of `lesions` and of `instances` is a sum over that short list.

Rule for a label that neither map holds: there is nothing to overlap, Dice is 0/0 and therefore NaN, and drops out of a
mean instead of raising it by the share of healthy cases. That is how Metrics Reloaded treats it (Maier-Hein et al.,
Nature Methods 2024, 21:195; Reinke et al., ibid. 182, extended data fig. 2b); whether the absence itself was seen is a
question of sensitivity and specificity per case. ``empty="one"`` gives 1 instead, as some challenges do. A label that
only one of the maps holds has a Dice of 0 under either rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.arguments import checked_spacing
from vesalius.measure.contingency import Contingency, contingency
from vesalius.measure.quantities import Quantity
from vesalius.measure.weights import FloatArray, IntArray, ratio

_TABLE = "Taha and Hanbury, BMC Medical Imaging 2015, 15:29, table 1"
_EMPTY = "NaN where neither map holds the label (1 with empty='one')."

TABLE_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("label", "1", "Value of the region in the label map."),
    Quantity(
        "dice",
        "1",
        f"Twice the shared voxels over the voxels of both: 2 TP / (2 TP + FP + FN). {_EMPTY}",
        "Dice, Ecology 1945, 26:297",
    ),
    Quantity(
        "iou",
        "1",
        f"Shared voxels over voxels that either map holds, the Jaccard index: TP / (TP + FP + FN). {_EMPTY}",
        "Jaccard, New Phytologist 1912, 11:37",
    ),
    Quantity(
        "sensitivity", "1", "Share of the true voxels that were found: TP / (TP + FN). NaN without truth.", _TABLE
    ),
    Quantity(
        "precision", "1", "Share of the predicted voxels that are true: TP / (TP + FP). NaN without prediction.", _TABLE
    ),
    Quantity(
        "specificity",
        "1",
        "Share of the other voxels of the image that were left alone: TN / (TN + FP). NaN where there are none.",
        _TABLE,
    ),
    Quantity(
        "volumetric_similarity",
        "1",
        f"One minus the difference of the volumes over their sum: 1 - |FN - FP| / (2 TP + FP + FN). {_EMPTY}",
        _TABLE,
    ),
    Quantity("volume_prediction", "ml", "Voxels of the label in the prediction times the volume of a voxel (3-D)."),
    Quantity("volume_truth", "ml", "Voxels of the label in the truth times the volume of a voxel (3-D)."),
    Quantity("volume_error", "ml", "Volume of the prediction minus volume of the truth (3-D)."),
    Quantity("area_prediction", "mm2", "Pixels of the label in the prediction times the area of a pixel (2-D)."),
    Quantity("area_truth", "mm2", "Pixels of the label in the truth times the area of a pixel (2-D)."),
    Quantity("area_error", "mm2", "Area of the prediction minus area of the truth (2-D)."),
    Quantity(
        "relative_volume_error",
        "percent",
        "Error of the volume (2-D: the area) in percent of the truth; positive is too large. NaN without truth.",
    ),
    Quantity("tp", "count", "Voxels with the label in both maps."),
    Quantity("fp", "count", "Voxels with the label in the prediction only."),
    Quantity("fn", "count", "Voxels with the label in the truth only."),
)
MAP_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("accuracy", "1", "Share of the voxels with equal labels, background included."),
    Quantity(
        "kappa",
        "1",
        "Agreement of the labels beyond chance, background included; NaN if both maps hold one and the same label.",
        "Cohen, Educational and Psychological Measurement 1960, 20:37",
    ),
    Quantity(
        "generalised_dice",
        "1",
        "Dice of all labels together, each weighted by one over the squared voxels of its truth; a label without truth "
        "has the largest weight among the others. NaN where neither map holds a label (1 with empty='one').",
        "Sudre et al., DLMIA 2017; Crum et al., IEEE TMI 2006, 25:1451",
    ),
    Quantity(
        "adjusted_rand",
        "1",
        "Agreement on which pairs of voxels belong together, beyond chance; the values of the labels do not matter.",
        "Hubert and Arabie, Journal of Classification 1985, 2:193",
    ),
    Quantity(
        "vi_split",
        "1",
        "Bits needed to tell the predicted label of a voxel from its true one, H(prediction | truth): too many pieces.",
        "Meila, Journal of Multivariate Analysis 2007, 98:873",
    ),
    Quantity(
        "vi_merge",
        "1",
        "Bits needed to tell the true label of a voxel from its predicted one, H(truth | prediction): pieces joined.",
        "Meila, Journal of Multivariate Analysis 2007, 98:873",
    ),
    Quantity("vi", "1", "Variation of information in bits: vi_split + vi_merge; 0 for the same division of the image."),
)
QUANTITIES = TABLE_QUANTITIES + MAP_QUANTITIES


def overlap_table(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing: Sequence[float] | None = None,
    labels: Iterable[int] | None = None,
    *,
    ignore: int | None = None,
    empty: str = "nan",
    workers: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Overlap of each label, one row per label in rising order; the columns are `TABLE_QUANTITIES`.

    Parameters
    ----------
    prediction, truth
        Label maps ``(Z, Y, X)`` or ``(Y, X)``, 0 for the background.
    spacing
        mm per axis; None counts voxels where the quantities say ml or mm2.
    labels
        The labels of the rows; None for all that either map holds, without 0. Name 0 to score the background.
    ignore
        Voxels where the truth has this label are left out of every count.
    empty
        ``"nan"`` or ``"one"``: Dice, iou and volumetric similarity of a label that neither map holds.

    Raises
    ------
    ValueError
        For shapes that differ, other axes, a bad spacing and bad labels.
    """
    if np.ndim(truth) not in (2, 3):
        raise ValueError(f"label maps must have axes (Y, X) or (Z, Y, X), got shape {np.shape(truth)}")
    steps = checked_spacing(spacing, np.ndim(truth))
    counts = contingency(prediction, truth, workers=workers)
    return table_of(counts, steps, labels, ignore=ignore, empty=empty, physical=spacing is not None)


def table_of(
    counts: Contingency,
    steps: Sequence[float],
    labels: Iterable[int] | None = None,
    *,
    ignore: int | None = None,
    empty: str = "nan",
    physical: bool = True,
) -> dict[str, NDArray[Any]]:
    """`overlap_table` of counts that are there already: prediction first, truth second."""
    for_empty = _value_for_empty(empty)
    if labels is None:
        names = np.union1d(counts.first[1:], counts.second[1:])
        names = names[names != ignore] if ignore is not None else names
    else:
        names = np.unique(np.array(list(labels), dtype=np.int64))
    if ignore is not None:
        counts = counts.without(ignore)
    said = _lookup(counts.first, counts.first_voxels, names)
    true = _lookup(counts.second, counts.second_voxels, names)
    equal = counts.first[counts.row] == counts.second[counts.column]
    tp = _lookup(counts.first[counts.row[equal]], counts.count[equal], names)
    fp, fn = said - tp, true - tp
    both = said + true

    def filled(values: FloatArray) -> FloatArray:
        return np.where(both == 0, for_empty, values)

    solid = len(steps) == 3
    unit = float(np.prod(steps)) / (1000.0 if solid and physical else 1.0)
    size = "volume" if solid else "area"
    return {
        "label": names,
        "dice": filled(ratio(2 * tp, both)),
        "iou": filled(ratio(tp, both - tp)),
        "sensitivity": ratio(tp, true),
        "precision": ratio(tp, said),
        "specificity": ratio(counts.total - both + tp, counts.total - true),
        "volumetric_similarity": filled(1 - ratio(np.abs(said - true), both)),
        f"{size}_prediction": said * unit,
        f"{size}_truth": true * unit,
        f"{size}_error": (said - true) * unit,
        "relative_volume_error": 100 * ratio(said - true, true),
        "tp": tp,
        "fp": fp,
        "fn": fn,
    }


def map_agreement(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    ignore: int | None = None,
    empty: str = "nan",
    workers: int | None = None,
) -> dict[str, float]:
    """Agreement of two whole label maps; the keys are `MAP_QUANTITIES`.

    The background counts as one label among the others, except in the generalised Dice. ``ignore=0`` leaves out what
    is background in the truth, as the adapted Rand error of SNEMI3D and the scores of CREMI do. All NaN when no voxel
    is left.

    Parameters
    ----------
    prediction, truth, ignore, empty
        As in `overlap_table`, with any axes.
    """
    return agreement_of(contingency(prediction, truth, workers=workers), ignore=ignore, empty=empty)


def agreement_of(counts: Contingency, *, ignore: int | None = None, empty: str = "nan") -> dict[str, float]:
    """`map_agreement` of counts that are there already: prediction first, truth second."""
    for_empty = _value_for_empty(empty)
    if ignore is not None:
        counts = counts.without(ignore)
    total = counts.total
    if not total:
        return {quantity.name: float("nan") for quantity in MAP_QUANTITIES}
    names = np.union1d(counts.first, counts.second)
    said = _lookup(counts.first, counts.first_voxels, names)
    true = _lookup(counts.second, counts.second_voxels, names)
    equal = counts.first[counts.row] == counts.second[counts.column]
    tp = _lookup(counts.first[counts.row[equal]], counts.count[equal], names)
    accuracy = float(tp.sum()) / total
    chance = float((said / total) @ (true / total))
    split, merge = _conditional_entropies(counts, total)
    solid = (names != 0) & (said + true > 0)
    return {
        "accuracy": accuracy,
        "kappa": (accuracy - chance) / (1 - chance) if chance < 1 else float("nan"),
        "generalised_dice": _generalised_dice(tp[solid], said[solid], true[solid], for_empty),
        "adjusted_rand": _adjusted_rand(counts),
        "vi_split": split,
        "vi_merge": merge,
        "vi": split + merge,
    }


def _generalised_dice(tp: IntArray, said: IntArray, true: IntArray, for_empty: float) -> float:
    if not len(tp):
        return for_empty
    held = true > 0
    if not held.any():
        return 0.0
    weights = np.zeros(len(tp))
    weights[held] = 1.0 / true[held].astype(np.float64) ** 2
    weights[~held] = weights[held].max()
    return float(2 * (weights @ tp) / (weights @ (said + true)))


def _adjusted_rand(counts: Contingency) -> float:
    """Of ordered pairs of voxels, in whole numbers without rounding: a billion voxels have 10^18 pairs."""
    total = counts.total
    together = _sum_of_squares(counts.count)
    said, true = _sum_of_squares(counts.first_voxels), _sum_of_squares(counts.second_voxels)
    both, only_said, only_true = together - total, said - together, true - together
    neither = total * total - said - true + together
    if not only_said and not only_true:
        return 1.0
    below = (both + only_true) * (only_true + neither) + (both + only_said) * (only_said + neither)
    return 2 * (both * neither - only_true * only_said) / below


def _sum_of_squares(values: IntArray) -> int:
    if len(values) and int(values.sum()) >= 1 << 31:
        return sum(value * value for value in values.tolist())
    return int(values @ values)


def _conditional_entropies(counts: Contingency, total: int) -> tuple[float, float]:
    """H(first | second) and H(second | first) in bits."""
    share = counts.count / total
    split = -share @ np.log2(counts.count / counts.second_voxels[counts.column])
    merge = -share @ np.log2(counts.count / counts.first_voxels[counts.row])
    return float(split) + 0.0, float(merge) + 0.0


def _value_for_empty(empty: str) -> float:
    if empty not in ("nan", "one"):
        raise ValueError(f"empty must be 'nan' or 'one', got {empty!r}")
    return 1.0 if empty == "one" else float("nan")


def _lookup(known: IntArray, values: IntArray, names: IntArray) -> IntArray:
    """The value at each of `names` (rising), 0 for names that are not among the `known` ones (rising)."""
    out = np.zeros(len(names), dtype=np.int64)
    if len(known):
        place = np.minimum(np.searchsorted(known, names), len(known) - 1)
        hit = known[place] == names
        out[hit] = values[place[hit]]
    return out
