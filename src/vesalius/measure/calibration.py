"""Whether a probability of 0.8 comes true in 8 of 10 cases, and the temperature that makes it so.

Binary questions of the form "does this label hold" give probabilities ``(N,)`` of yes and a truth ``(N,)`` of bool;
exclusive classes give ``(N, K)`` and class numbers ``(N,)``. Several labels that may hold at once are asked one by one.
All results have unit 1 except `nll`, in nats. Without cases (of non-zero weight) they are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from vesalius.measure.intervals import wilson
from vesalius.measure.weights import FloatArray, IntArray, as_replicates, ratio

TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of confidence, each array ``(bins,)``; an empty bin has NaN as confidence and share.

    `edges` ``(bins + 1,)``; `weight` is the number of cases; `confidence` their mean stated probability; `share` the
    part of them in which it came true, with its Wilson interval `low`..`high`.
    """

    edges: FloatArray
    weight: FloatArray
    confidence: FloatArray
    share: FloatArray
    low: FloatArray
    high: FloatArray


def brier(truth: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Mean squared error of the probabilities, ``()`` or ``(R,)`` (Brier 1950).

    For ``(N,)`` the error of the probability of yes, in [0, 1]. For ``(N, K)`` the sum over classes, in [0, 2]: with
    two exclusive classes it is twice the binary score.
    """
    held, table = _truth_table(truth, probabilities)
    return _mean(((table - held) ** 2).sum(axis=1), weights)


def nll(truth: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Mean negative logarithm of the probability of what was true, in nats, ``()`` or ``(R,)``.

    Probabilities are kept above the smallest step of their number type, so that one certain error gives a large number
    instead of infinity.
    """
    given = np.asarray(probabilities)
    tiny = float(np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps)
    held, table = _truth_table(truth, probabilities)
    if table.shape[1] == 1:
        chosen = np.where(held[:, 0] > 0, table[:, 0], 1.0 - table[:, 0])
    else:
        chosen = (table * held).sum(axis=1)
    return _mean(-np.log(np.clip(chosen, tiny, 1.0)), weights)


def top_label(truth: ArrayLike, probabilities: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Whether the most probable class is right ``(N,)``, and its probability ``(N,)``.

    For ``(N,)`` probabilities of yes this is the truth and the probability itself, since "yes" is the statement whose
    frequency is asked.
    """
    held, table = _truth_table(truth, probabilities)
    if table.shape[1] == 1:
        return held[:, 0], table[:, 0]
    best = np.argmax(table, axis=1)
    rows = np.arange(len(table))
    return held[rows, best], table[rows, best]


def ece(
    truth: ArrayLike,
    probabilities: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    bins: int = 15,
    adaptive: bool = False,
) -> FloatArray:
    """Expected calibration error: mean gap between stated and true frequency over bins, ``()`` or ``(R,)``.

    Equal-width bins ``(low, high]`` on the top-label confidence (Naeini et al., AAAI 2015; Guo et al., ICML 2017), or
    with `adaptive` bins of equally many cases (Nguyen and O'Connor 2015). Adaptive edges come from the cases as given,
    not from each replicate. The estimate is biased upwards in small sets, more so with more bins.
    """
    right, confidence = top_label(truth, probabilities)
    table, single = as_replicates(weights, len(right))
    edges = _edges(confidence, bins, adaptive)
    which = _bin_of(confidence, edges)
    # The gap of a bin is |sum of w (right - confidence)|: one weighted sum per bin, no division by its size.
    sums = _weighted_sums(table, right - confidence, which, len(edges) - 1)
    gaps = ratio(np.abs(sums).sum(axis=1), table.sum(axis=1))
    return gaps[0] if single else gaps


def reliability_curve(
    truth: ArrayLike, probabilities: ArrayLike, *, bins: int = 15, adaptive: bool = False, level: float = 0.95
) -> Reliability:
    """The bins behind `ece`, with Wilson intervals that treat cases as independent."""
    right, confidence = top_label(truth, probabilities)
    edges = _edges(confidence, bins, adaptive)
    which = _bin_of(confidence, edges)
    size = len(edges) - 1
    count = np.bincount(which, minlength=size).astype(np.float64)
    hits = np.bincount(which, weights=right, minlength=size)
    low, high = wilson(hits, count, level)
    stated = np.bincount(which, weights=confidence, minlength=size)
    return Reliability(edges, count, ratio(stated, count), ratio(hits, count), low, high)


def apply_temperature(logits: ArrayLike, temperature: float, *, multilabel: bool = False) -> FloatArray:
    """Probabilities of logits divided by `temperature`, of the same shape.

    ``(N, K)`` gives a softmax over K, or with `multilabel` a sigmoid of each; ``(N,)`` gives a sigmoid.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    values = _logits(logits) / temperature
    if values.ndim == 1 or multilabel:
        return np.exp(-np.logaddexp(0.0, -values))
    return np.exp(values - logsumexp(values, axis=1, keepdims=True))


def fit_temperature(logits: ArrayLike, truth: ArrayLike, *, multilabel: bool = False) -> float:
    """The temperature that minimises the negative log-likelihood on held-out cases (Guo et al., ICML 2017).

    Parameters
    ----------
    logits
        ``(N, K)`` for exclusive classes or, with `multilabel`, for labels that may hold together; ``(N,)`` for yes/no.
    truth
        ``(N,)`` class numbers, ``(N, K)`` bool with `multilabel`, or ``(N,)`` bool.

    Returns
    -------
    temperature
        In 0.05..20. The loss is convex in 1/T, so the one-dimensional search over log T finds its only minimum.
        Exactly 1 (leave the logits as they are) when no case is wrong: then the likelihood grows for ever as T
        falls, and a validation set without an error is no evidence for more confidence.

    Raises
    ------
    ValueError
        For shapes that do not fit, logits that are not finite, and class numbers out of range.
    """
    margins = _margins(_logits(logits), np.asarray(truth), multilabel)
    if margins.size == 0 or (margins <= 0).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        # log(1 + sum of exp of what each wrong class lies above the true one), which is the NLL of the softmax.
        scaled = margins * np.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0.0, logsumexp(scaled, axis=1))))

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(float(low), float(high)), method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(found.x), *TEMPERATURES))


def _margins(values: FloatArray, truth: np.ndarray, multilabel: bool) -> FloatArray:
    """How far each wrong answer lies above the right one, ``(cases, wrong answers)``; negative where rightly below."""
    if values.ndim == 1 or multilabel:
        if truth.shape != values.shape:
            raise ValueError(f"truth of shape {truth.shape} does not fit logits of shape {values.shape}")
        return np.where(truth.astype(bool), -values, values).reshape(-1, 1)
    if truth.shape != values.shape[:1]:
        raise ValueError(f"truth must have axes (N,) with N = {len(values)}, got shape {truth.shape}")
    held = _one_hot(truth, values.shape[1])
    others = values[~held].reshape(len(values), values.shape[1] - 1)
    return others - values[held][:, None]


def _logits(logits: ArrayLike) -> FloatArray:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim not in (1, 2):
        raise ValueError(f"logits must have axes (N,) or (N,K), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite")
    return values


def _one_hot(truth: np.ndarray, classes: int) -> np.ndarray:
    if truth.size and not np.isin(truth, np.arange(classes)).all():
        raise ValueError(f"truth must hold class numbers 0..{classes - 1}")
    return np.asarray(truth[:, None] == np.arange(classes))


def _truth_table(truth: ArrayLike, probabilities: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Truth as 0/1 and probabilities, both ``(N, K)``, with K = 1 for a yes/no question."""
    table, known = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    if table.ndim not in (1, 2) or known.shape != table.shape[:1]:
        raise ValueError(
            f"truth must have axes (N,) and probabilities (N,) or (N,K), got shapes {known.shape} and {table.shape}"
        )
    if table.size and not (table.min() >= 0 and table.max() <= 1 + 1e-6):
        raise ValueError("probabilities must lie between 0 and 1")
    if table.ndim == 2:
        return _one_hot(known, table.shape[1]).astype(np.float64), table
    if not np.isin(known, (0, 1)).all():
        raise ValueError("truth must be bool, or 0 and 1")
    return known.astype(np.float64)[:, None], table[:, None]


def _mean(values: FloatArray, weights: ArrayLike | None) -> FloatArray:
    table, single = as_replicates(weights, len(values))
    means = ratio(table @ values, table.sum(axis=1))
    return means[0] if single else means


def _weighted_sums(table: FloatArray, values: FloatArray, group: IntArray, groups: int) -> FloatArray:
    """``(R, groups)`` sums of weight times value by group, as one product with a ``(N, groups)`` matrix."""
    spread = np.zeros((len(values), groups))
    spread[np.arange(len(values)), group] = values
    return table @ spread


def _edges(confidence: FloatArray, bins: int, adaptive: bool) -> FloatArray:
    if bins < 1:
        raise ValueError(f"at least one bin is needed, got {bins}")
    if not adaptive or not len(confidence):
        return np.linspace(0.0, 1.0, bins + 1)
    edges = np.quantile(confidence, np.linspace(0.0, 1.0, bins + 1))
    edges[0], edges[-1] = 0.0, 1.0
    # Many equal confidences make edges coincide; bins of no width hold nothing.
    return np.unique(edges)


def _bin_of(confidence: FloatArray, edges: FloatArray) -> IntArray:
    return np.searchsorted(edges[1:-1], confidence, side="left")
