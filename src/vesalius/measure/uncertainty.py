"""How sure a segmentation is: at each voxel, and whether its probabilities come true.

*Per voxel*: `entropy` of the probabilities, and `disagreement` of several networks or test-time views.

*Calibration*: `VoxelCounts` gathers, case by case, how often a stated probability came true. Only voxels near the truth
or the prediction count, since the endless background is always right.

For a border with an error bar see `vesalius.measure.boundary_band`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, xlogy

from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import label_boxes
from vesalius.measure.calibration import TEMPERATURES
from vesalius.measure.weights import FloatArray, ratio

BoolArray = NDArray[np.bool_]

# Voxels worked on at a time, so that temporary arrays stay small.
_BLOCK = 1 << 18
# Fine bins of the margin: a temperature fitted on their means differs from that of single voxels in the fifth digit.
_MARGIN, _FINE = 24.0, 960


def entropy(probabilities: NDArray[Any], axis: int = 0) -> NDArray[np.float32]:
    """Entropy of the classes at each voxel over that of an even guess: 0 is sure, 1 knows nothing.

    Parameters
    ----------
    probabilities
        Any axes; `axis` are the K classes, which sum to 1. With K = 1 it is the probability of yes.

    Returns
    -------
    float32 of the other axes.
    """
    table = np.moveaxis(np.asarray(probabilities), axis, 0)
    flat = table.reshape(len(table), -1)
    out = np.empty(flat.shape[1], dtype=np.float32)
    for start in range(0, len(out), _BLOCK):
        part = flat[:, start : start + _BLOCK].astype(np.float64)
        if len(part) == 1:
            part = np.concatenate([1 - part, part])
        out[start : start + _BLOCK] = -xlogy(part, part).sum(axis=0) / math.log(max(len(part), 2))
    # Rounding of float16 probabilities can lift the sum a little above an even guess.
    return np.clip(out, 0, 1).reshape(table.shape[1:])


@dataclass(frozen=True, eq=False)
class Disagreement:
    """How members of an ensemble differ, float32 ``(*S)`` each.

    `entropy` of their mean, the `mutual_information` in it (both over that of an even guess: the part of the entropy
    that more training data could remove), and the `spread`: the standard deviation over members of the probability of
    the class that the mean says.
    """

    entropy: NDArray[np.float32]
    mutual_information: NDArray[np.float32]
    spread: NDArray[np.float32]


def disagreement(members: Iterable[NDArray[Any]]) -> Disagreement:
    """Compare the probabilities of several networks (Lakshminarayanan et al., NeurIPS 2017) or test-time views.

    The mutual information is the entropy of the mean less the mean entropy (Depeweg et al., ICML 2018); views of one
    image as members measure what Wang et al., Neurocomputing 2019, 338:34 call aleatoric uncertainty.

    Parameters
    ----------
    members
        Probabilities ``(K, *S)`` one after the other, or all as ``(M, K, *S)``; K = 1 is the probability of yes. They
        are read once and not kept.

    Raises
    ------
    ValueError
        Without members, or for members of different shapes.
    """
    total = squares = inner = None
    count = 0
    for member in members:
        table = np.asarray(member, dtype=np.float32)
        if total is None or squares is None or inner is None:
            total, squares, inner = np.zeros_like(table), np.zeros_like(table), np.zeros(table.shape[1:], np.float32)
            first = table
        if table.shape != total.shape:
            raise ValueError(f"members must have one shape, got {total.shape} and {table.shape}")
        # Around the first member, so that the variance of nearly equal numbers is not lost in rounding.
        total += table - first
        squares += (table - first) ** 2
        inner += entropy(table)
        count += 1
    if total is None or squares is None or inner is None:
        raise ValueError("at least one member is needed")
    shift = total / count
    mean = first + shift
    whole = entropy(mean)
    top = np.argmax(mean, axis=0)[None]
    variance = np.take_along_axis(squares / count - shift**2, top, axis=0)[0]
    information = np.clip(whole - inner / count, 0, None)
    spread = np.sqrt(np.clip(variance, 0, None))
    return Disagreement(whole, information.astype(np.float32, copy=False), spread.astype(np.float32, copy=False))


@dataclass(frozen=True, eq=False)
class VoxelCounts:
    """How often stated probabilities came true; counts of several cases are added with ``+``.

    `weight`, `hits`, `stated` ``(K, bins)``: voxels whose probability lies in the bin of equal width, how many of them
    have the label, and the sum of their probabilities. `margins` ``(2, 2, K, fine)``: in fine bins of the logit, for
    voxels without and with the label, their number and the sum of their logits.
    """

    weight: FloatArray
    hits: FloatArray
    stated: FloatArray
    margins: FloatArray

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        return VoxelCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def curve(self) -> tuple[FloatArray, FloatArray]:
        """Mean stated probability and share with the label in each bin, ``(K, bins)`` each; NaN in empty bins.

        Voxels are not independent, so their number gives no interval; resample patients for one.
        """
        return ratio(self.stated, self.weight), ratio(self.hits, self.weight)

    def ece(self) -> FloatArray:
        """Expected calibration error of each label over the voxels near it, ``(K,)``; NaN without voxels."""
        return ratio(np.abs(self.hits - self.stated).sum(axis=1), self.weight.sum(axis=1))

    def temperature(self, label: int | None = None) -> float:
        """As `calibrate_temperature`."""
        return calibrate_temperature(self, label)


def count_voxels(
    logits: NDArray[Any],
    truth: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    layers: bool = False,
    ignore: int | None = None,
    reach: float = 10.0,
    bins: int = 15,
) -> VoxelCounts:
    """Count one case: each label against the rest, in the box around its truth and its prediction.

    Parameters
    ----------
    logits
        ``(K, *S)``: exclusive classes with the background first (logarithms of probabilities serve as well), or with
        `layers` one yes/no logit per layer.
    truth
        ``(*S)`` class numbers, or with `layers` ``(K, *S)``.
    spacing
        mm per axis; None for pixels.
    ignore
        Value of the truth that marks voxels without a verdict.
    reach
        The box is wider by so much at every side, in mm (pixels).

    Returns
    -------
    Counts with one row per label without the background, or one per layer.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    """
    scores, true = np.asarray(logits), np.asarray(truth)
    if scores.ndim not in (3, 4) or true.shape != (scores.shape if layers else scores.shape[1:]):
        raise ValueError(f"truth of shape {true.shape} does not fit logits of shape {scores.shape}")
    steps = checked_spacing(spacing, scores.ndim - 1)
    first = 0 if layers else 1
    said = None if layers else np.argmax(scores, axis=0)
    rows = len(scores) - first
    weight, hits, stated = np.zeros((3, rows, bins))
    counts = VoxelCounts(weight, hits, stated, np.zeros((2, 2, rows, _FINE)))
    for row in range(rows):
        held = true[row] != 0 if layers else true == row + 1
        near = held | (scores[row] > 0 if said is None else said == row + 1)
        found = label_boxes(near)
        if not len(found):
            continue
        wide = [math.ceil(reach / step) for step in steps]
        low, high = np.maximum(found.start[0] - wide, 0), np.minimum(found.stop[0] + wide, near.shape)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        known = np.ones(near[box].size, dtype=bool)
        if ignore is not None:
            known = ((true[row] if layers else true)[box] != ignore).reshape(-1)
        part = scores[(slice(None), *box)].reshape(len(scores), -1)[:, known]
        _count_margins(part, held[box].reshape(-1)[known], row + first, row, counts, layers)
    return counts


def _count_margins(
    part: NDArray[Any], held: BoolArray, label: int, row: int, counts: VoxelCounts, layers: bool
) -> None:
    """Add voxels ``(K, N)`` to one row of the counts."""
    bins = counts.weight.shape[1]
    for start in range(0, len(held), _BLOCK):
        scores = part[:, start : start + _BLOCK].astype(np.float64)
        yes = held[start : start + _BLOCK]
        # What the label lies above all others together: its probability is the sigmoid of this.
        margin = scores[label] if layers else scores[label] - _log_sum(np.delete(scores, label, axis=0))
        stated = expit(margin)
        # Bins (low, high] as in `measure.calibration`.
        which = np.clip(np.ceil(stated * bins).astype(np.int64) - 1, 0, bins - 1)
        counts.weight[row] += np.bincount(which, minlength=bins)
        counts.hits[row] += np.bincount(which[yes], minlength=bins)
        counts.stated[row] += np.bincount(which, stated, bins)
        # Logits beyond the bins are as good as certain.
        margin = np.clip(margin, -_MARGIN, _MARGIN)
        fine = np.minimum(((margin + _MARGIN) * (_FINE / (2 * _MARGIN))).astype(np.int64), _FINE - 1)
        for side, those in enumerate((~yes, yes)):
            counts.margins[side, 0, row] += np.bincount(fine[those], minlength=_FINE)
            counts.margins[side, 1, row] += np.bincount(fine[those], margin[those], _FINE)


def _log_sum(scores: FloatArray) -> FloatArray:
    top = scores.max(axis=0)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(top + np.log(np.exp(scores - top).sum(axis=0)))


def calibrate_temperature(counts: VoxelCounts, label: int | None = None) -> float:
    """The temperature that makes voxel probabilities come true (Guo et al., ICML 2017), from binned logits.

    It minimises the likelihood loss of each label against the rest. For two classes and for layers it is the usual
    temperature of the network; with more classes that of the logit of one label, ``p = sigmoid(logit / T)``.

    Parameters
    ----------
    counts
        Of held-out cases, added up.
    label
        Row of the counts; None for one temperature of all.

    Returns
    -------
    In 0.05..20; 1 when no voxel is wrong, since that is no evidence for more confidence.
    """
    chosen = counts.margins if label is None else counts.margins[:, :, label : label + 1]
    sizes, sums = chosen[:, 0].reshape(2, -1), chosen[:, 1].reshape(2, -1)
    # How far each voxel lies on the wrong side, one mean for each fine bin.
    wrong = ratio(sums, sizes) * np.array([[1.0], [-1.0]])
    filled = sizes > 0
    wrong, sizes = wrong[filled], sizes[filled]
    if not len(wrong) or (wrong <= 0).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(sizes @ np.logaddexp(0.0, wrong * np.exp(-log_temperature)) / sizes.sum())

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(float(low), float(high)), method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(found.x), *TEMPERATURES))
