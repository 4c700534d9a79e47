"""How well separate objects - nuclei, cells, lesions - were found and told apart: one count of pairs serves them all.

Inputs are instance maps: every object has its own number, the numbers of the two maps need not agree. IoU is the
intersection over the union of two objects. Pairs whose IoU is above 0.5 are unique without any search, because no
object can hold more than half of two others at once (Kirillov et al., CVPR 2019); at lower thresholds the pairs are
the largest one-to-one assignment, and among the largest the one with the highest sum of IoU.

Empty rule: a score without any object in either map is NaN; objects in one map only give 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesalius.measure.contingency import Contingency, contingency
from vesalius.measure.quantities import Quantity
from vesalius.measure.weights import FloatArray, IntArray, mean_defined, ratio

# 0.50, 0.55 ... 0.95 as COCO and the Data Science Bowl 2018 have them, without the rounding of a running sum.
THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
CONVENTIONS = ("stardist", "dsb2018")

_PQ = "Kirillov et al., CVPR 2019, 'Panoptic segmentation'"
_AJI = "Kumar et al., IEEE TMI 2017, 36:1550"
_NONE = "NaN if neither map has objects."

QUANTITIES: tuple[Quantity, ...] = (
    Quantity("instances_truth", "count", "Objects of the truth."),
    Quantity("instances_prediction", "count", "Objects of the prediction, without unmatched ones in ignored voxels."),
    Quantity("instances_matched", "count", "Pairs of a predicted and a true object with an IoU above 0.5."),
    Quantity("panoptic_quality", "1", f"Sum of the IoU of the matched pairs over TP + FP/2 + FN/2. {_NONE}", _PQ),
    Quantity("segmentation_quality", "1", "Mean IoU of the matched pairs (above 0.5). NaN without pairs.", _PQ),
    Quantity("recognition_quality", "1", f"F1 of the objects at an IoU above 0.5. {_NONE}", _PQ),
    Quantity(
        "instance_ap_50",
        "1",
        f"TP / (TP + FP + FN) with pairs of an IoU of at least 0.5 ('dsb2018': above 0.5). {_NONE}",
        "Schmidt et al., MICCAI 2018; Caicedo et al., Nature Methods 2019, 16:1247",
    ),
    Quantity("instance_ap_75", "1", f"As instance_ap_50 at an IoU of 0.75. {_NONE}", "Schmidt et al., MICCAI 2018"),
    Quantity(
        "instance_ap",
        "1",
        f"Mean of TP / (TP + FP + FN) over the IoU thresholds 0.50, 0.55 ... 0.95. {_NONE}",
        "Caicedo et al., Nature Methods 2019, 16:1247",
    ),
    Quantity(
        "aji",
        "1",
        "Aggregated Jaccard index: each true object with the predicted one of the highest IoU, intersections over "
        f"unions summed, predictions used by nobody added to the unions. {_NONE}",
        _AJI,
    ),
    Quantity(
        "aji_plus",
        "1",
        f"AJI with a one-to-one assignment of the highest sum of IoU, so that no prediction serves twice. {_NONE}",
        "Graham et al., Medical Image Analysis 2019, 58:101563",
    ),
    Quantity(
        "mean_true_iou",
        "1",
        "Mean over the true objects of the IoU with the predicted object matched above 0.5, 0 where there is none. NaN "
        "without true objects.",
        "Schmidt et al., MICCAI 2018",
    ),
    Quantity(
        "seg",
        "1",
        "Mean over the true objects of the IoU with the predicted object that holds more than half of it, 0 where none "
        "does. NaN without true objects.",
        "Maska et al., Bioinformatics 2014, 30:1609 (Cell Tracking Challenge, SEG)",
    ),
    Quantity("instances_split", "count", "True objects that hold most voxels of two or more predicted objects."),
    Quantity("instances_merged", "count", "Predicted objects that hold most voxels of two or more true objects."),
)  # fmt: skip


def instance_scores(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    ignore: int | None = None,
    convention: str = "stardist",
    workers: int | None = None,
) -> dict[str, float]:
    """Every score of `QUANTITIES` for two instance maps.

    Parameters
    ----------
    prediction, truth
        Whole numbers of one shape (any axes), 0 for the background.
    ignore
        A value of the truth that marks voxels without a verdict (void). They are left out of every count, and predicted
        objects with more than half of their voxels there are not counted as false (Kirillov et al. 2019).
    convention
        ``"stardist"``: a pair needs an IoU of at least the threshold. ``"dsb2018"``: an IoU above it. This concerns the
        keys ``instance_ap*``.

    Raises
    ------
    ValueError
        For shapes that differ, negative or fractional numbers, and unknown conventions.
    """
    return scores_of(contingency(prediction, truth, workers=workers), ignore=ignore, convention=convention)


def scores_of(counts: Contingency, *, ignore: int | None = None, convention: str = "stardist") -> dict[str, float]:
    """`instance_scores` of counts that are there already: prediction first, truth second."""
    pairs = Pairs(counts, ignore=ignore)
    precision = pairs.precision(THRESHOLDS, convention=convention)
    match = np.flatnonzero(pairs.iou > 0.5)
    matched, summed = len(match), float(pairs.iou[match].sum())
    said, true = matched + pairs.false(match), len(pairs.true)
    middle = (said + true) / 2
    inside, holds = 2 * pairs.shared > pairs.said[pairs.row], 2 * pairs.shared > pairs.true[pairs.column]
    return {
        "instances_truth": float(true),
        "instances_prediction": float(said),
        "instances_matched": float(matched),
        "panoptic_quality": float(ratio(summed, middle)),
        "segmentation_quality": float(ratio(summed, matched)),
        "recognition_quality": float(ratio(matched, middle)),
        "instance_ap_50": float(precision[THRESHOLDS.index(0.5)]),
        "instance_ap_75": float(precision[THRESHOLDS.index(0.75)]),
        "instance_ap": float(mean_defined(precision)),
        "aji": pairs.aji(),
        "aji_plus": pairs.aji_plus(),
        "mean_true_iou": float(ratio(summed, true)),
        "seg": float(ratio(pairs.iou[holds].sum(), true)),
        "instances_split": float((np.bincount(pairs.column[inside], minlength=1) > 1).sum()),
        "instances_merged": float((np.bincount(pairs.row[holds], minlength=1) > 1).sum()),
    }


class Pairs:
    """The objects of two instance maps and the pairs of them that touch.

    Attributes
    ----------
    said, true
        ``(S,)`` and ``(T,)``: voxels of the objects of the prediction and of the truth, without ignored ones.
    doubtful
        ``(S,)`` bool: predicted objects with more than half of their voxels among the ignored ones.
    row, column, shared, iou
        ``(P,)``: pairs that share voxels, as positions in `said` and `true`, the voxels they share, and their IoU.
    """

    def __init__(self, counts: Contingency, *, ignore: int | None = None) -> None:
        before = counts.first_voxels
        if ignore is not None:
            counts = counts.without(ignore)
        said, true = counts.first_voxels, counts.second_voxels
        keep_said, keep_true = said > 0, true > 0
        keep_said[0] = keep_true[0] = False
        row, column, self.shared = counts.foreground()
        # Positions among the objects that are left.
        self.row = (np.cumsum(keep_said) - 1)[row]
        self.column = (np.cumsum(keep_true) - 1)[column]
        self.said, self.true = said[keep_said], true[keep_true]
        self.doubtful = 2 * self.said < before[keep_said]
        self.iou = ratio(self.shared, self.said[self.row] + self.true[self.column] - self.shared)

    def matched(self, threshold: float, *, strict: bool = False) -> IntArray:
        """Numbers of the pairs that are matched one to one at an IoU of `threshold` or more (`strict`: more)."""
        if not 0 <= threshold <= 1:
            raise ValueError(f"an IoU threshold lies in 0..1, got {threshold}")
        able = np.flatnonzero(self.iou > threshold if strict else self.iou >= threshold)
        return able[best_pairs(self.row[able], self.column[able], self.iou[able])]

    def precision(self, thresholds: ArrayLike = THRESHOLDS, *, convention: str = "stardist") -> FloatArray:
        """``TP / (TP + FP + FN)`` at each IoU threshold, ``(K,)``; NaN without objects in either map."""
        return ratio(*self.tally(thresholds, convention=convention))

    def tally(self, thresholds: ArrayLike, *, convention: str = "stardist") -> tuple[IntArray, IntArray]:
        """``TP`` and ``TP + FP + FN`` at each IoU threshold, each ``(K,)``."""
        if convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
        levels = np.atleast_1d(np.asarray(thresholds, dtype=np.float64)).tolist()
        chosen = [self.matched(level, strict=convention == "dsb2018") for level in levels]
        hits = np.array([len(pairs) for pairs in chosen], dtype=np.int64)
        return hits, np.array([self.false(pairs) for pairs in chosen], dtype=np.int64) + len(self.true)

    def false(self, chosen: IntArray) -> int:
        """How many predicted objects are in none of the `chosen` pairs and not excused by ignored voxels."""
        open_ones = ~self.doubtful
        open_ones[self.row[chosen]] = False
        return int(open_ones.sum())

    def aji(self) -> float:
        """Aggregated Jaccard index; of predictions with equal IoU the one of the lowest number serves."""
        order = np.lexsort((self.row, -self.iou, self.column))
        best = order[np.r_[True, self.column[order][1:] != self.column[order][:-1]]] if len(order) else order
        return self._aggregated(best)

    def aji_plus(self) -> float:
        """AJI with one-to-one pairs of the highest sum of IoU."""
        return self._aggregated(best_pairs(self.row, self.column, self.iou, most=False))

    def _aggregated(self, chosen: IntArray) -> float:
        shared = int(self.shared[chosen].sum())
        unused = ~self.doubtful
        unused[self.row[chosen]] = False
        # Unions of the pairs, true objects without a pair, and predictions that nobody used.
        joined = int(self.true.sum()) + int(self.said[self.row[chosen]].sum()) - shared
        return float(ratio(shared, joined + int(self.said[unused].sum())))


def best_pairs(row: IntArray, column: IntArray, weight: FloatArray, *, most: bool = True) -> IntArray:
    """Which of the pairs ``(P,)`` to keep so that every row and column is used at most once; rising numbers.

    The kept pairs have the highest sum of `weight` (0..1); with `most` only among the choices with the most pairs. The
    problem falls apart into groups of objects that are linked by pairs, each solved on its own (Kuhn and Munkres).
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(row):
        return np.zeros(0, dtype=np.int64)
    rows, columns = int(row.max()) + 1, int(column.max()) + 1
    alone = (np.bincount(row)[row] == 1) & (np.bincount(column)[column] == 1)
    kept = [np.flatnonzero(alone)]
    rest = np.flatnonzero(~alone)
    if len(rest):
        size = rows + columns
        links = coo_array((np.ones(len(rest), np.int8), (row[rest], column[rest] + rows)), shape=(size, size))
        group = connected_components(links, directed=False)[1][row[rest]]
        order = np.argsort(group, kind="stable")
        cuts = np.flatnonzero(np.diff(group[order])) + 1
        for part in np.split(rest[order], cuts):
            ours, r = np.unique(row[part], return_inverse=True)
            theirs, c = np.unique(column[part], return_inverse=True)
            gain, number = np.zeros((len(ours), len(theirs))), np.full((len(ours), len(theirs)), -1)
            # One more pair outweighs any sum of weights.
            gain[r, c] = weight[part] + (min(len(ours), len(theirs)) + 1.0 if most else 0.0)
            number[r, c] = part
            picked = number[linear_sum_assignment(gain, maximize=True)]
            kept.append(picked[picked >= 0])
    return np.sort(np.concatenate(kept))


def pool_precision(
    cases: Sequence[Pairs], thresholds: ArrayLike = THRESHOLDS, *, convention: str = "stardist"
) -> FloatArray:
    """``TP / (TP + FP + FN)`` at each threshold ``(K,)`` with the objects of all `cases` counted together.

    The Data Science Bowl takes the mean of the values of the images instead.
    """
    levels = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    hits, objects = np.zeros(len(levels)), np.zeros(len(levels))
    for pairs in cases:
        one, other = pairs.tally(levels, convention=convention)
        hits += one
        objects += other
    return ratio(hits, objects)
