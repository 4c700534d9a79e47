"""Counts of truth against decision, and the rates that follow from them.

A confusion matrix ``(..., K, K)`` is counted once; every rate is a function of it and keeps its leading axes, so the
matrices ``(R, K, K)`` of R bootstrap replicates give ``(R,)`` or ``(R, K)``. Rows are the truth, columns the decision.

Empty-set rules: a rate whose denominator is zero is NaN (sensitivity of an absent class, precision of a class that was
never decided); a mean over classes is taken over the classes where the rate is defined. For precision this flatters a
model that never dares to decide for a class; F1, which is 0 there, does not. All results have unit 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vesalius.measure.weights import FloatArray, as_replicates, mean_defined, ratio, sum_by_group

AGREEMENTS = ("none", "linear", "quadratic")


def confusion_matrix(truth: ArrayLike, guess: ArrayLike, classes: int, weights: ArrayLike | None = None) -> FloatArray:
    """Weight of the cases with each (truth, decision), ``(K, K)`` or ``(R, K, K)``.

    Parameters
    ----------
    truth, guess
        ``(N,)`` class numbers 0..K-1.
    classes
        K.
    weights
        None, ``(N,)`` or ``(R, N)``.

    Raises
    ------
    ValueError
        For shapes that differ, and class numbers that are not whole or not below K.
    """
    true, said = _class_numbers(truth, classes, "truth"), _class_numbers(guess, classes, "guess")
    if true.shape != said.shape:
        raise ValueError(f"truth and guess must have the same shape, got {true.shape} and {said.shape}")
    table, single = as_replicates(weights, len(true))
    counts = sum_by_group(table, true * classes + said, classes * classes).reshape(-1, classes, classes)
    return counts[0] if single else counts


def binary_matrices(truth: ArrayLike, guess: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """One matrix ``[[tn, fp], [fn, tp]]`` per label, ``(K, 2, 2)`` or ``(R, K, 2, 2)``, where several labels may hold.

    Parameters
    ----------
    truth, guess
        ``(N, K)`` bool.
    """
    true, said = np.asarray(truth).astype(bool), np.asarray(guess).astype(bool)
    if true.ndim != 2 or true.shape != said.shape:
        raise ValueError(f"truth and guess must both have axes (N,K), got shapes {true.shape} and {said.shape}")
    matrices = [confusion_matrix(true[:, k], said[:, k], 2, weights) for k in range(true.shape[1])]
    return np.stack(matrices, axis=-3)


def accuracy(matrix: ArrayLike) -> FloatArray:
    """Share of the cases decided rightly, ``(...)``; NaN without cases."""
    counts = _checked(matrix)
    return ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1)))


def recall(matrix: ArrayLike) -> FloatArray:
    """Share of the cases of each class that were found, ``(..., K)``; for a positive class this is its sensitivity."""
    counts = _checked(matrix)
    return ratio(_diagonal(counts), counts.sum(axis=-1))


def sensitivity(matrix: ArrayLike) -> FloatArray:
    """Another word for `recall`: ``(..., K)``, one class against the rest."""
    return recall(matrix)


def specificity(matrix: ArrayLike) -> FloatArray:
    """Share of the cases of all other classes that were not given this class, ``(..., K)``."""
    counts = _checked(matrix)
    others = counts.sum(axis=(-2, -1))[..., None] - counts.sum(axis=-1)
    return ratio(others - (counts.sum(axis=-2) - _diagonal(counts)), others)


def precision(matrix: ArrayLike) -> FloatArray:
    """Share of the decisions for each class that were right, ``(..., K)``; the positive predictive value."""
    counts = _checked(matrix)
    return ratio(_diagonal(counts), counts.sum(axis=-2))


def negative_predictive_value(matrix: ArrayLike) -> FloatArray:
    """Share of the decisions against each class that were right, ``(..., K)``."""
    counts = _checked(matrix)
    refused = counts.sum(axis=(-2, -1))[..., None] - counts.sum(axis=-2)
    return ratio(refused - (counts.sum(axis=-1) - _diagonal(counts)), refused)


def f1(matrix: ArrayLike) -> FloatArray:
    """Harmonic mean of precision and recall of each class, ``(..., K)``; NaN for a class neither true nor decided."""
    counts = _checked(matrix)
    return ratio(2 * _diagonal(counts), counts.sum(axis=-1) + counts.sum(axis=-2))


def balanced_accuracy(matrix: ArrayLike) -> FloatArray:
    """Mean recall over the classes that occur, ``(...)`` (Brodersen et al., ICPR 2010)."""
    return mean_defined(recall(matrix))


def macro(rates: ArrayLike) -> FloatArray:
    """Mean over the last axis of the rates that are defined, ``(..., K)`` to ``(...)``."""
    return mean_defined(rates)


def kappa(matrix: ArrayLike, agreement: str = "none") -> FloatArray:
    """Agreement beyond chance, ``(...)`` (Cohen 1960; weighted: Cohen 1968).

    `agreement` is ``"none"``, or for ordered classes ``"linear"`` or ``"quadratic"``: a miss costs the distance of the
    classes, or its square. NaN where chance alone would agree fully (one class only).
    """
    if agreement not in AGREEMENTS:
        raise ValueError(f"agreement {agreement!r} is unknown; choose one of {', '.join(AGREEMENTS)}")
    counts = _checked(matrix)
    distance = np.abs(np.subtract.outer(np.arange(counts.shape[-1]), np.arange(counts.shape[-1]))).astype(np.float64)
    cost = (distance > 0).astype(np.float64) if agreement == "none" else distance ** AGREEMENTS.index(agreement)
    total = counts.sum(axis=(-2, -1))
    by_chance = np.einsum("...i,...j,ij->...", counts.sum(axis=-1), counts.sum(axis=-2), cost)
    return 1.0 - ratio(np.einsum("...ij,ij->...", counts, cost) * total, by_chance)


def mcc(matrix: ArrayLike) -> FloatArray:
    """Matthews correlation for K classes, ``(...)`` in [-1, 1] (Gorodkin 2004).

    NaN where all cases are of one class or get one decision; scikit-learn says 0 there, which reads as "no better than
    chance" although nothing was measured.
    """
    counts = _checked(matrix)
    true, said, total = counts.sum(axis=-1), counts.sum(axis=-2), counts.sum(axis=(-2, -1))
    joint = np.trace(counts, axis1=-2, axis2=-1) * total - (true * said).sum(axis=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (said**2).sum(axis=-1))
    return ratio(joint, np.sqrt(np.maximum(spread, 0.0)))


def _diagonal(counts: FloatArray) -> FloatArray:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _checked(matrix: ArrayLike) -> FloatArray:
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
        raise ValueError(f"a confusion matrix must have axes (...,K,K), got shape {counts.shape}")
    return counts


def _class_numbers(values: ArrayLike, classes: int, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have axes (N,), got shape {array.shape}")
    whole = array.astype(np.int64)
    if array.size and (not np.array_equal(whole, array) or whole.min() < 0 or whole.max() >= classes):
        raise ValueError(f"{name} must hold class numbers 0..{classes - 1}")
    return whole
