"""How well a score puts the positive cases above the negative ones: ROC and precision-recall.

Ties are exact: a positive and a negative case of equal score count as half a correct pair (Mann and Whitney 1947;
Hanley and McNeil, Radiology 1982). The area under the precision-recall curve is the average precision, a step sum
without interpolation (Davis and Goadrich, ICML 2006, on why interpolation flatters).

Empty-set rule: with no positive or no negative case (of non-zero weight) an area is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesalius.measure.weights import FloatArray, IntArray, as_replicates, blocks, mean_defined, ratio

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Ranks:
    """The order of the cases, found once and asked for any number of weightings.

    `positive` ``(P,)`` and `negative` ``(Q,)`` are indices of cases by rising score. Counts for each positive case:
    `below` and `upto` negatives with a lower score, and with a lower or equal one; `peers` positives with a lower one.
    """

    cases: int
    positive: IntArray
    negative: IntArray
    below: IntArray
    upto: IntArray
    peers: IntArray

    @classmethod
    def of(cls, truth: ArrayLike, score: ArrayLike) -> Ranks:
        """Sort cases by `score` ``(N,)``, `truth` ``(N,)`` bool; raises ValueError for shapes that differ or NaN."""
        held, values = _checked(truth, score)
        order = np.argsort(values, kind="stable")
        positive, negative = order[held[order]], order[~held[order]]
        high, low = values[positive], values[negative]
        return cls(
            len(values),
            positive,
            negative,
            np.searchsorted(low, high, "left"),
            np.searchsorted(low, high, "right"),
            np.searchsorted(high, high, "left"),
        )

    def areas(self, weights: ArrayLike | None = None) -> tuple[FloatArray, FloatArray]:
        """AUROC and average precision, each ``()`` or ``(R,)``."""
        table, single = as_replicates(weights, self.cases)
        roc, pr = np.full(len(table), np.nan), np.full(len(table), np.nan)
        if len(self.positive) and len(self.negative):
            for block in blocks(len(table), self.cases):
                roc[block], pr[block] = self._areas(table[block])
        return (roc[0], pr[0]) if single else (roc, pr)

    def _areas(self, table: FloatArray) -> tuple[FloatArray, FloatArray]:
        hits = np.take(table, self.positive, axis=1)
        found, false = _running(hits), _running(np.take(table, self.negative, axis=1))
        positives, negatives = found[:, -1:], false[:, -1:]
        lower = np.take(false, self.below, axis=1)
        pairs = np.einsum("rp,rp->r", hits, lower + np.take(false, self.upto, axis=1)) / 2
        roc = ratio(pairs, (positives * negatives)[:, 0])
        # At the threshold of each positive case: how much is called positive, and how much of that rightly so.
        right = positives - np.take(found, self.peers, axis=1)
        called = right + (negatives - lower)
        precision = np.divide(right, called, out=np.zeros_like(right), where=called > 0)
        pr = ratio(np.einsum("rp,rp->r", hits, precision), positives[:, 0])
        return roc, np.where(negatives[:, 0] > 0, pr, np.nan)


def auroc(truth: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Area under the ROC curve: the chance that a positive case scores above a negative one, ties counting half.

    Parameters
    ----------
    truth
        ``(N,)`` bool.
    score
        ``(N,)``, higher means more positive; any monotonic scale.
    weights
        None, ``(N,)`` or ``(R, N)``.

    Returns
    -------
    area
        ``()`` or ``(R,)`` in [0, 1], unit 1; NaN when a class is absent.
    """
    return Ranks.of(truth, score).areas(weights)[0]


def auprc(truth: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Average precision, the sum of precision times gain in recall over the distinct scores; arguments as in `auroc`.

    A score without information has the prevalence, not 0.5. NaN when a class is absent (where scikit-learn says 0 for
    no positives and 1 for no negatives: neither is an answer to a question about ranking).
    """
    return Ranks.of(truth, score).areas(weights)[1]


def one_vs_rest(truth: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> tuple[FloatArray, FloatArray]:
    """AUROC and average precision of each class against all others, each ``(K,)`` or ``(R, K)``.

    Parameters
    ----------
    truth
        ``(N,)`` class numbers 0..K-1 for exclusive classes, or ``(N, K)`` bool where several may hold.
    scores
        ``(N, K)``.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"scores must have axes (N,K), got shape {table.shape}")
    known = np.asarray(truth)
    held = known.astype(bool) if known.ndim == 2 else known[:, None] == np.arange(table.shape[1])
    if held.shape != table.shape:
        raise ValueError(f"truth of shape {known.shape} does not fit scores of shape {table.shape}")
    found = [Ranks.of(held[:, index], table[:, index]).areas(weights) for index in range(table.shape[1])]
    return np.stack([roc for roc, _ in found], axis=-1), np.stack([pr for _, pr in found], axis=-1)


def macro_auroc(truth: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Mean of the one-vs-rest AUROC over the classes that have one, ``()`` or ``(R,)``; arguments as `one_vs_rest`."""
    return mean_defined(one_vs_rest(truth, scores, weights)[0])


def macro_auprc(truth: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Mean of the one-vs-rest average precision over the classes that have one; ``()`` or ``(R,)``."""
    return mean_defined(one_vs_rest(truth, scores, weights)[1])


def roc_curve(
    truth: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """False-positive rate, sensitivity and threshold, each ``(T,)``, from the strictest threshold to the loosest.

    A case is called positive when its score is at least the threshold; the first threshold is infinite (nothing is
    called). One point per distinct score, none left out. A rate whose class is absent is NaN. `weights` is None or
    ``(N,)``.
    """
    thresholds, right, wrong = _counts(truth, score, weights)
    return ratio(wrong, wrong[-1]), ratio(right, right[-1]), thresholds


def precision_recall_curve(
    truth: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Recall, precision and threshold, each ``(T,)``, from the strictest threshold to the loosest.

    The first point is recall 0 at an infinite threshold; precision, undefined there, is set to 1 by convention, as
    scikit-learn does. Recall is NaN without positive cases.
    """
    thresholds, right, wrong = _counts(truth, score, weights)
    precision = ratio(right, right + wrong)
    precision[np.isnan(precision)] = 1.0
    return ratio(right, right[-1]), precision, thresholds


def _counts(truth: ArrayLike, score: ArrayLike, weights: ArrayLike | None) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distinct scores downwards after infinity, and the weight of positives and negatives at or above each."""
    held, values = _checked(truth, score)
    table, single = as_replicates(weights, len(values))
    if not single:
        raise ValueError("a curve takes weights of axes (N,)")
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if len(ordered) else np.zeros(0, dtype=np.int64)
    right = _running((table * held)[:, order])[0]
    wrong = _running((table * ~held)[:, order])[0]
    keep = np.r_[0, last + 1]
    return np.r_[np.inf, ordered[last]], right[keep], wrong[keep]


def _running(table: FloatArray) -> FloatArray:
    """Running sums along the last axis, with a zero in front."""
    sums = np.zeros((len(table), table.shape[1] + 1))
    np.cumsum(table, axis=1, out=sums[:, 1:])
    return sums


def _checked(truth: ArrayLike, score: ArrayLike) -> tuple[BoolArray, FloatArray]:
    held, values = np.asarray(truth), np.asarray(score, dtype=np.float64)
    if held.ndim != 1 or held.shape != values.shape:
        raise ValueError(f"truth and score must both have axes (N,), got shapes {held.shape} and {values.shape}")
    if held.dtype != bool:
        if not np.isin(held, (0, 1)).all():
            raise ValueError("truth must be bool, or 0 and 1")
        held = held.astype(bool)
    if np.isnan(values).any():
        raise ValueError(f"score is NaN for {int(np.isnan(values).sum())} of {len(values)} cases")
    return held, values
