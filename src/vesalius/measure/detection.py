"""Boxes found against boxes drawn: average precision and FROC, in 2-D and 3-D.

A box is ``(lower corner, upper corner)`` in index units, ``(z0, y0, x0, z1, y1, x1)`` or ``(y0, x0, y1, x1)``. The
upper corner is not part of the box, as in `LabelBoxes`, so the sides are plain differences; a point is a box without
sides.

Who hits what is decided image by image, detections in the order of falling scores (equal scores: as given):

``coco``
    A detection takes the free true box of the highest IoU, if that is at least the threshold (Lin et al., ECCV 2014).
``voc``
    A detection looks at the true box of the highest IoU only; if that is taken already, the detection is false
    (Everingham et al., IJCV 2010).

True boxes marked as ignored are not asked for, and excuse any number of detections that hit nothing else.

Empty rule: without true boxes every score is NaN; with true boxes and no detections it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesalius.measure.arguments import checked_spacing
from vesalius.measure.compiled import kernel
from vesalius.measure.instances import THRESHOLDS
from vesalius.measure.quantities import Quantity
from vesalius.measure.weights import FloatArray, IntArray, mean_defined, ratio

METHODS = ("coco", "voc", "step")
# False positives per image of the LUNA16 challenge.
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

_COCO = "Lin et al., ECCV 2014; cocodataset.org, detection evaluation"
_LUNA = "Setio et al., Medical Image Analysis 2017, 42:1 (LUNA16)"
_NONE = "NaN without true boxes."

SCORE_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("boxes_truth", "count", "True boxes that are asked for."),
    Quantity("boxes_prediction", "count", "Detections, whatever their score."),
    Quantity(
        "box_ap", "1", f"Mean of the average precision over the IoU thresholds 0.50, 0.55 ... 0.95. {_NONE}", _COCO
    ),
    Quantity("box_ap_50", "1", f"Average precision at an IoU of 0.50. {_NONE}", _COCO),
    Quantity("box_ap_75", "1", f"Average precision at an IoU of 0.75. {_NONE}", _COCO),
    Quantity(
        "box_recall",
        "1",
        f"Share of the true boxes that any detection hits, mean over those thresholds. {_NONE}",
        _COCO,
    ),
)
FROC_QUANTITIES: tuple[Quantity, ...] = (
    *(
        Quantity(
            f"froc_sensitivity_{name}",
            "1",
            f"Share of the true boxes found when {rate} false detections per image are allowed. {_NONE}",
            _LUNA,
        )
        for rate, name in zip(
            ("1/8", "1/4", "1/2", "1", "2", "4", "8"), ("0_125", "0_25", "0_5", "1", "2", "4", "8"), strict=True
        )
    ),
    Quantity(
        "cpm",
        "1",
        "Competition performance metric: mean of the seven sensitivities from 1/8 to 8 false per image.",
        _LUNA,
    ),
)
QUANTITIES = (Quantity("label", "1", "Value of the region in the label map."), *SCORE_QUANTITIES, *FROC_QUANTITIES)


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """Detections and true boxes of one image.

    Parameters
    ----------
    boxes, truth
        ``(N, 2 * ndim)`` and ``(M, 2 * ndim)``, lower then upper corner in index units, ndim 2 or 3.
    scores
        ``(N,)``, higher is surer.
    labels, truth_labels
        ``(N,)`` and ``(M,)`` class of each box; None for one class.
    ignore
        ``(M,)`` bool: true boxes that are not asked for; None for none.
    spacing
        mm per axis, for distances; None for index units.

    Raises
    ------
    ValueError
        For shapes that do not fit, boxes with the upper corner below the lower one, and numbers that are not finite.
    """

    boxes: ArrayLike
    scores: ArrayLike
    truth: ArrayLike
    labels: ArrayLike | None = None
    truth_labels: ArrayLike | None = None
    ignore: ArrayLike | None = None
    spacing: Sequence[float] | None = None

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        boxes, truth = np.asarray(self.boxes, dtype=np.float64), np.asarray(self.truth, dtype=np.float64)
        # An empty list has no second axis: it takes that of the other one, or of the spacing.
        width = 2 * len(self.spacing) if self.spacing is not None else 4
        width = next((one.shape[1] for one in (boxes, truth) if one.ndim == 2 and one.shape[1]), width)
        boxes, truth = (one if one.size else one.reshape(0, width) for one in (boxes, truth))
        boxes, truth = _checked_boxes(boxes, "boxes"), _checked_boxes(truth, "truth")
        if boxes.shape[1] != truth.shape[1]:
            raise ValueError(f"boxes and truth must have the same axes, got shapes {boxes.shape} and {truth.shape}")
        if scores.reshape(-1).shape != (len(boxes),) or not np.isfinite(scores).all():
            raise ValueError(f"scores must be {len(boxes)} finite numbers, one per box, got shape {scores.shape}")
        checked_spacing(self.spacing, boxes.shape[1] // 2)
        for name, count, default in (
            ("labels", len(boxes), 0),
            ("truth_labels", len(truth), 0),
            ("ignore", len(truth), False),
        ):
            given = getattr(self, name)
            kind = type(default)
            values = np.full(count, default) if given is None else np.asarray(given, dtype=kind).reshape(-1)
            if values.shape != (count,):
                raise ValueError(f"{name} must have one entry per box, got {len(values)} for {count}")
            object.__setattr__(self, name, values)
        for name, array in (("boxes", boxes), ("scores", scores.reshape(-1)), ("truth", truth)):
            object.__setattr__(self, name, array)


def box_iou(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Intersection over union of every pair of boxes.

    Parameters
    ----------
    first, second
        ``(N, 2 * ndim)`` and ``(M, 2 * ndim)``, lower then upper corner, ndim 2 or 3.

    Returns
    -------
    ``(N, M)`` in [0, 1]; 0 where both boxes have no size.
    """
    one, two = _checked_boxes(first, "first"), _checked_boxes(second, "second")
    if one.shape[1] != two.shape[1]:
        raise ValueError(f"both sets of boxes must have the same axes, got shapes {one.shape} and {two.shape}")
    out = np.zeros((len(one), len(two)))
    _all_iou(one, two, out)
    return out


def match_boxes(iou: ArrayLike, threshold: float, *, ignore: ArrayLike | None = None, rule: str = "coco") -> IntArray:
    """Which true box each detection takes.

    Parameters
    ----------
    iou
        ``(N, M)``, detections in order of falling score.
    threshold
        Smallest IoU of a hit, in (0, 1].
    ignore
        ``(M,)`` bool, true boxes that are not asked for.
    rule
        ``"coco"`` or ``"voc"``: see the top of this module.

    Returns
    -------
    ``(N,)``: number of the true box, -1 for a false detection, -2 for one that hits an ignored box only.
    """
    table = np.ascontiguousarray(iou, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"iou must have axes (N, M), got shape {table.shape}")
    excused = np.zeros(table.shape[1], bool) if ignore is None else np.asarray(ignore, dtype=bool)
    if excused.shape != (table.shape[1],):
        raise ValueError(f"ignore must have {table.shape[1]} entries, got shape {excused.shape}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    if rule not in ("coco", "voc"):
        raise ValueError(f"rule must be coco or voc, got {rule!r}")
    taken = np.full(len(table), -1, dtype=np.int64)
    _greedy(table, excused, threshold, rule == "voc", taken)
    return taken


def precision_recall(
    images: Sequence[ImageBoxes], threshold: float = 0.5, *, label: int = 0, rule: str = "coco", ties: str = "together"
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Recall, precision and score, each ``(K,)``, of one class from the highest score to the lowest.

    With ``ties="together"`` equal scores make one point, so that the order of images and detections does not matter
    (Cityscapes, scikit-learn); with ``"order"`` each detection makes one (COCO, VOC). Recall is NaN without true boxes.
    """
    return _curve(_Class(images, label), threshold, rule, ties)


def average_precision(
    images: Sequence[ImageBoxes],
    threshold: float = 0.5,
    *,
    label: int = 0,
    method: str = "coco",
    ties: str = "together",
    max_detections: int | None = None,
) -> float:
    """Average precision of one class at one IoU threshold.

    Parameters
    ----------
    images
        All images that were looked at, those without boxes as well.
    threshold
        Smallest IoU of a hit.
    label
        The class.
    method
        ``"coco"``: mean over 101 recalls 0, 0.01 ... 1 of the best precision at that recall or above, COCO matching.
        ``"voc"``: area under that best precision at every recall (VOC 2010 and later), VOC matching.
        ``"step"``: sum of precision times gain in recall without taking the best, COCO matching (scikit-learn).
    ties
        ``"together"`` or ``"order"``: see `precision_recall`. pycocotools is ``"order"``.
    max_detections
        Only that many of the surest detections of each image; None for all (COCO uses 100).
    """
    return _average(_Class(images, label, max_detections), threshold, method, ties)


def detection_table(
    images: Sequence[ImageBoxes], *, method: str = "coco", ties: str = "together", max_detections: int | None = None
) -> dict[str, NDArray[Any]]:
    """One row per class in rising order; the columns are ``label`` and `SCORE_QUANTITIES`. Arguments as above."""
    held = [np.asarray(one) for image in images for one in (image.labels, image.truth_labels)]
    labels = np.unique(np.concatenate([np.zeros(0, np.int64), *held]))
    rows = [_scores(_Class(images, label, max_detections), method, ties) for label in labels.tolist()]
    return {"label": labels} | {one.name: np.array([row[one.name] for row in rows]) for one in SCORE_QUANTITIES}


def detection_scores(
    images: Sequence[ImageBoxes], *, method: str = "coco", ties: str = "together", max_detections: int | None = None
) -> dict[str, float]:
    """Scores of all classes: counts added up, rates averaged over the classes that have true boxes (mAP).

    The keys are `SCORE_QUANTITIES`; arguments as in `average_precision`.
    """
    table = detection_table(images, method=method, ties=ties, max_detections=max_detections)
    return {
        one.name: float(table[one.name].sum() if one.unit == "count" else mean_defined(table[one.name]))
        for one in SCORE_QUANTITIES
    }


def froc_curve(
    images: Sequence[ImageBoxes], *, label: int = 0, hit: str = "iou", threshold: float = 0.5
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """False detections per image, sensitivity and score, each ``(K,)``, from an infinite score downwards.

    A detection counts for the one true box that it hits best. A true box is found at the highest score of what counts
    for it; further detections that count for it are neither hits nor false, as in LUNA16.

    Parameters
    ----------
    images
        All images that were looked at, those without boxes as well.
    hit
        ``"iou"``: the IoU is at least `threshold`. ``"centre"``: the centres are less than the radius of the true box
        apart, half the mean of its sides, in mm of the image's spacing (LUNA16; `threshold` is not used).
    """
    falls, best = [np.zeros(0)], [np.zeros(0)]
    total = 0
    for image in images:
        one = _only(image, label)
        asked = ~np.asarray(one.ignore, dtype=bool)
        total += int(asked.sum())
        value = _hits(one, hit, threshold)
        scores = np.asarray(one.scores, dtype=np.float64)
        # A box that is asked for goes before one that is ignored, however well the latter is hit.
        reach = np.where(asked, value, -np.inf)
        useful = (reach > -np.inf).any(axis=1)
        falls.append(scores[~(value > -np.inf).any(axis=1)])
        highest = np.full(len(asked), -np.inf)
        if useful.any():
            np.maximum.at(highest, reach[useful].argmax(axis=1), scores[useful])
        best.append(highest[highest > -np.inf])
    wrong, found = np.sort(np.concatenate(falls)), np.sort(np.concatenate(best))
    levels = np.r_[np.inf, np.unique(np.r_[wrong, found])[::-1]]
    false = len(wrong) - np.searchsorted(wrong, levels, "left")
    right = len(found) - np.searchsorted(found, levels, "left")
    return ratio(false, len(images)), ratio(right, total), levels


def froc_scores(
    images: Sequence[ImageBoxes], *, label: int = 0, hit: str = "iou", threshold: float = 0.5
) -> dict[str, float]:
    """Sensitivity at 1/8, 1/4 ... 8 false detections per image and their mean; the keys are `FROC_QUANTITIES`.

    Between the points of `froc_curve` sensitivity is read off a straight line, beyond the last it stays (LUNA16).
    """
    rate, sensitivity, _ = froc_curve(images, label=label, hit=hit, threshold=threshold)
    values = np.interp(RATES, rate, sensitivity) if len(images) else np.full(len(RATES), np.nan)
    names = [one.name for one in FROC_QUANTITIES]
    return dict(zip(names, [*values.tolist(), float(values.mean())], strict=True))


class _Class:
    """The boxes of one class: per image the IoU of its detections, by falling score, with the true boxes."""

    def __init__(self, images: Sequence[ImageBoxes], label: int, most: int | None = None) -> None:
        self.scores: list[FloatArray] = []
        self.iou: list[FloatArray] = []
        self.ignore: list[NDArray[np.bool_]] = []
        if most is not None and most < 0:
            raise ValueError(f"max_detections must not be negative, got {most}")
        for image in images:
            one = _only(image, label)
            scores = np.asarray(one.scores, dtype=np.float64)
            order = np.argsort(-scores, kind="stable")[:most]
            self.scores.append(scores[order])
            self.iou.append(box_iou(np.asarray(one.boxes)[order], one.truth))
            self.ignore.append(np.asarray(one.ignore, dtype=bool))
        self.truth = sum(int((~ignore).sum()) for ignore in self.ignore)

    def hits(self, threshold: float, rule: str) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Scores of the detections that count, falling, and whether each is right."""
        taken = [
            match_boxes(iou, threshold, ignore=ignore, rule=rule)
            for iou, ignore in zip(self.iou, self.ignore, strict=True)
        ]
        state = np.concatenate([np.zeros(0, np.int64), *taken])
        scores = np.concatenate([np.zeros(0), *self.scores])
        scores, state = scores[state != -2], state[state != -2]
        order = np.argsort(-scores, kind="stable")
        return scores[order], state[order] >= 0


def _only(image: ImageBoxes, label: int) -> ImageBoxes:
    said, true = np.asarray(image.labels) == label, np.asarray(image.truth_labels) == label
    if said.all() and true.all():
        return image
    return ImageBoxes(
        np.asarray(image.boxes)[said],
        np.asarray(image.scores)[said],
        np.asarray(image.truth)[true],
        ignore=np.asarray(image.ignore)[true],
        spacing=image.spacing,
    )


def _curve(boxes: _Class, threshold: float, rule: str, ties: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    if ties not in ("together", "order"):
        raise ValueError(f"ties must be together or order, got {ties!r}")
    scores, right = boxes.hits(threshold, rule)
    last = np.arange(len(scores))
    if ties == "together" and len(scores):
        last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
    found = np.cumsum(right)[last]
    return ratio(found, boxes.truth), ratio(found, last + 1), scores[last]


def _average(boxes: _Class, threshold: float, method: str, ties: str) -> float:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    recall, precision, _ = _curve(boxes, threshold, "voc" if method == "voc" else "coco", ties)
    if not boxes.truth:
        return float("nan")
    if not len(recall):
        return 0.0
    if method != "step":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    if method == "coco":
        # As pycocotools to the last bit: some of these are a rounding above k/100, so that a recall of k/100 is below.
        place = np.searchsorted(recall, np.linspace(0, 1, 101), "left")
        return float(np.where(place < len(recall), precision[np.minimum(place, len(recall) - 1)], 0.0).mean())
    return float(np.diff(recall, prepend=0.0) @ precision)


def _scores(boxes: _Class, method: str, ties: str) -> dict[str, float]:
    values = [_average(boxes, threshold, method, ties) for threshold in THRESHOLDS]
    rule = "voc" if method == "voc" else "coco"
    right = [int(boxes.hits(threshold, rule)[1].sum()) for threshold in THRESHOLDS]
    return {
        "boxes_truth": float(boxes.truth),
        "boxes_prediction": float(sum(len(scores) for scores in boxes.scores)),
        "box_ap": float(np.mean(values)),
        "box_ap_50": values[THRESHOLDS.index(0.5)],
        "box_ap_75": values[THRESHOLDS.index(0.75)],
        "box_recall": float(ratio(np.mean(right), boxes.truth)),
    }


def _hits(image: ImageBoxes, hit: str, threshold: float) -> FloatArray:
    """How well each detection hits each true box ``(N, M)``; minus infinity where it does not."""
    boxes, truth = np.asarray(image.boxes), np.asarray(image.truth)
    if hit == "iou":
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
        iou = box_iou(boxes, truth)
        return np.where(iou >= threshold, iou, -np.inf)
    if hit != "centre":
        raise ValueError(f"hit must be iou or centre, got {hit!r}")
    ndim = boxes.shape[1] // 2
    step = np.array(checked_spacing(image.spacing, ndim))
    middle, target = ((one[:, :ndim] + one[:, ndim:]) / 2 * step for one in (boxes, truth))
    radius = ((truth[:, ndim:] - truth[:, :ndim]) * step).mean(axis=1) / 2
    apart = np.linalg.norm(middle[:, None] - target[None], axis=-1)
    return np.where(apart < radius, -apart, -np.inf)


def _checked_boxes(boxes: ArrayLike, name: str) -> FloatArray:
    array = np.ascontiguousarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] not in (4, 6):
        raise ValueError(f"{name} must have axes (N, 4) or (N, 6), got shape {array.shape}")
    half = array.shape[1] // 2
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers")
    if (array[:, :half] > array[:, half:]).any():
        row = int(np.flatnonzero((array[:, :half] > array[:, half:]).any(axis=1))[0])
        raise ValueError(f"{name} must be (lower corner, upper corner), got {array[row].tolist()} in row {row}")
    return array


@kernel
def _all_iou(first, second, out):  # type: ignore[no-untyped-def]
    """IoU of every pair of boxes."""
    half = first.shape[1] // 2
    for i in range(len(first)):
        for j in range(len(second)):
            shared = 1.0
            one = 1.0
            two = 1.0
            for k in range(half):
                side = min(first[i, half + k], second[j, half + k]) - max(first[i, k], second[j, k])
                shared *= max(side, 0.0)
                one *= first[i, half + k] - first[i, k]
                two *= second[j, half + k] - second[j, k]
            union = one + two - shared
            out[i, j] = shared / union if union > 0 else 0.0


@kernel
def _greedy(iou, ignore, threshold, only_best, taken):  # type: ignore[no-untyped-def]
    """Let each detection in turn take a true box; `only_best` looks at the best box only, free or not."""
    free = np.ones(iou.shape[1], dtype=np.bool_)
    for i in range(iou.shape[0]):
        best = -1
        for j in range(iou.shape[1]):
            if iou[i, j] < threshold:
                continue
            if only_best:
                if best < 0 or iou[i, j] > iou[i, best]:
                    best = j
                continue
            if not ignore[j] and not free[j]:
                continue
            # A box that is asked for goes before one that is ignored; of equal IoU the last one is taken.
            if best < 0 or ignore[best] > ignore[j] or (ignore[best] == ignore[j] and iou[i, j] >= iou[i, best]):
                best = j
        if best < 0:
            continue
        if ignore[best]:
            taken[i] = -2
        elif free[best]:
            taken[i] = best
            free[best] = False
