"""Weights of cases: none, one set, or one set per bootstrap replicate.

Every function of `measure` that scores cases takes ``weights`` of shape ``(N,)`` or ``(R, N)``. A case of weight 2
counts as two equal cases, a case of weight 0 is absent, so whole numbers give the result of repeating cases, which is
what a bootstrap does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Temporary arrays hold about this many numbers (8 MB), so that memory does not grow with the number of replicates and
# a block stays near the processor's cache.
BLOCK = 1 << 20


def as_replicates(weights: ArrayLike | None, cases: int) -> tuple[FloatArray, bool]:
    """`weights` as ``(R, N)``, and whether the caller wants the leading axis removed again.

    Raises
    ------
    ValueError
        For a wrong shape, or weights that are negative or not finite.
    """
    if weights is None:
        return np.ones((1, cases)), True
    array = np.asarray(weights, dtype=np.float64)
    if array.ndim not in (1, 2) or array.shape[-1] != cases:
        raise ValueError(f"weights must have axes (N,) or (R,N) with N = {cases}, got shape {array.shape}")
    # One pass without a temporary: the minimum of an array that holds NaN is NaN, which fails the comparison as well.
    if array.size and not (array.min() >= 0 and array.max() < np.inf):
        raise ValueError("weights must be finite and not negative")
    return (array[None], True) if array.ndim == 1 else (array, False)


def blocks(replicates: int, cases: int) -> Iterator[slice]:
    """Slices of the replicate axis of which each holds about `BLOCK` numbers, at least one replicate."""
    step = max(1, BLOCK // max(cases, 1))
    for start in range(0, replicates, step):
        yield slice(start, min(start + step, replicates))


def ratio(part: ArrayLike, whole: ArrayLike) -> FloatArray:
    """``part / whole``; NaN where `whole` is zero, without a warning."""
    top, bottom = np.broadcast_arrays(np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64))
    out = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=out, where=bottom != 0)
    return out


def mean_defined(values: ArrayLike, axis: int = -1) -> FloatArray:
    """Mean over the entries along `axis` that are not NaN; NaN where all are."""
    array = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(array)
    return ratio(np.where(known, array, 0.0).sum(axis=axis), known.sum(axis=axis))


def sum_by_group(values: FloatArray, group: IntArray, groups: int) -> FloatArray:
    """Sums ``(R, groups)`` of values ``(R, N)`` over the cases of each group; `group` ``(N,)`` is in 0..groups-1.

    Cost and memory do not depend on the number of groups that are empty, so a confusion matrix of 100 classes is as
    cheap as one of 2.
    """
    out = np.zeros((len(values), groups))
    if not len(group):
        return out
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    for block in blocks(len(values), len(group)):
        out[block, ordered[starts]] = np.add.reduceat(np.take(values[block], order, axis=1), starts, axis=1)
    return out
