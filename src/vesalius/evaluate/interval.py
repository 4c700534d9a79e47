"""Intervals from resampling patients.

Cases of one patient resemble each other, so patients are drawn, with replacement, and bring all their cases (Field and
Welsh, J R Stat Soc B 2007). A draw is written as a weight per case: how often its patient was drawn. Where every
patient has one case this is the ordinary bootstrap.

Draws are stratified: as many patients are drawn from each stratum as it holds, and a patient's stratum is the rarest
class he has a case of. A yes/no question therefore never loses a class. With more classes a class can be lost only if
all its patients also have a rarer one; a replicate without a value for a metric is left out of that metric's interval.
Stratified intervals describe patients drawn anew at the same prevalence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from vesalius.core.randomness import generator

FloatArray = NDArray[np.float64]
Score = Callable[[FloatArray | None], Mapping[Hashable, FloatArray]]

# Replicates are drawn in units, each from its own counter: results do not depend on how many units fit in memory.
UNIT = 16
# A block of weights holds about this many numbers (8 MB).
BLOCK = 1 << 20
METHODS = ("percentile", "bca")


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, in `unit`; NaN where it is not defined."""

    value: float
    low: float
    high: float
    level: float = 0.95
    unit: str = "1"

    def to_json(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        return {"value": self.value, "low": self.low, "high": self.high, "unit": self.unit, "level": self.level}


@dataclass(frozen=True, eq=False)
class Patients:
    """Who the cases belong to: `of_case` ``(N,)`` numbers 0..P-1, and the `stratum` ``(P,)`` of each patient."""

    of_case: NDArray[np.int64]
    stratum: NDArray[np.int64]

    @classmethod
    def of(cls, patient_ids: ArrayLike, truth: ArrayLike | None = None) -> Patients:
        """From the patient id of each case; stratified by `truth` if given, ``(N,)`` numbers or ``(N, K)`` bool."""
        names, numbers = np.unique(np.asarray(patient_ids).astype(str), return_inverse=True)
        codes = numbers.reshape(-1).astype(np.int64)
        if truth is None:
            return cls(codes, np.zeros(len(names), dtype=np.int64))
        return cls(codes, _rarest_class(codes, len(names), np.asarray(truth)))

    def __len__(self) -> int:
        return len(self.stratum)

    def count(self, cases: NDArray[np.bool_]) -> int:
        """How many patients have one of the `cases` ``(N,)``."""
        return len(np.unique(self.of_case[cases]))

    def draws(self, resamples: int, seed: int, purpose: str = "bootstrap") -> Iterator[FloatArray]:
        """Blocks ``(R, N)`` of case weights, `resamples` replicates in all; memory is bounded."""
        pools = [np.flatnonzero(self.stratum == code) for code in np.unique(self.stratum)]
        units = max(1, BLOCK // (UNIT * max(len(self.of_case), 1)))
        for start in range(0, resamples, units * UNIT):
            first, last = start // UNIT, -(-min(start + units * UNIT, resamples) // UNIT)
            counts = np.concatenate([self._unit(pools, generator(seed, purpose, u)) for u in range(first, last)])
            yield np.take(counts[: resamples - start].astype(np.float64), self.of_case, axis=1)

    def _unit(self, pools: list[NDArray[np.int64]], random: np.random.Generator) -> NDArray[np.int64]:
        """How often each patient is drawn, ``(UNIT, P)``."""
        offset = np.arange(UNIT)[:, None] * len(self)
        drawn = [pool[random.integers(0, len(pool), (UNIT, len(pool)))] + offset for pool in pools]
        flat = np.concatenate(drawn, axis=1).ravel() if drawn else np.zeros(0, dtype=np.int64)
        return np.bincount(flat, minlength=UNIT * len(self)).reshape(UNIT, len(self))

    def left_out(self) -> Iterator[FloatArray]:
        """Blocks of case weights in which one patient after another is absent, ``(P, N)`` in all."""
        step = max(1, BLOCK // max(len(self.of_case), 1))
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            yield (self.of_case[None] != np.arange(start, stop)[:, None]).astype(np.float64)


def bootstrap(
    score: Score,
    patients: Patients,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
    purpose: str = "bootstrap",
) -> dict[Hashable, Estimate]:
    """Every number that `score` gives, with its patient-level interval.

    Parameters
    ----------
    score
        Takes None (all cases once) or weights ``(R, N)``; gives by key numbers ``()`` or ``(R,)``.
    resamples
        Number of replicates.
    method
        ``"percentile"``, or ``"bca"`` (bias-corrected and accelerated; Efron, JASA 1987) for metrics whose replicates
        are skewed; it also asks `score` once per patient.

    Returns
    -------
    estimates
        By key. The interval is NaN when fewer than half of the replicates have a value.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be positive and level between 0 and 1, got {resamples} and {level}")
    values = {key: float(value) for key, value in score(None).items()}
    replicates = _collect(score, patients.draws(resamples, seed, purpose))
    spared = _collect(score, patients.left_out()) if method == "bca" else {}
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    out: dict[Hashable, Estimate] = {}
    for key, value in values.items():
        found = replicates[key][~np.isnan(replicates[key])]
        low = high = float("nan")
        if 2 * len(found) >= resamples and not np.isnan(value):
            asked = tails if method == "percentile" else _bca_tails(value, found, spared[key], tails)
            low, high = (float(limit) for limit in np.quantile(found, asked))
            # Replicates of a biased statistic (ece) can all lie on one side; an interval holds its value.
            low, high = min(low, value), max(high, value)
        out[key] = Estimate(value, low, high, level)
    return out


def _collect(score: Score, blocks: Iterator[FloatArray]) -> dict[Hashable, FloatArray]:
    parts: dict[Hashable, list[FloatArray]] = {}
    for weights in blocks:
        for key, value in score(weights).items():
            parts.setdefault(key, []).append(value)
    return {key: np.concatenate(found) for key, found in parts.items()}


def _bca_tails(value: float, found: FloatArray, spared: FloatArray, tails: FloatArray) -> FloatArray:
    """The quantiles that BCa takes instead of `tails`; plain ones where its corrections are not finite."""
    # Replicates equal to the estimate count half, otherwise metrics with few values (accuracy) look biased.
    below = float(np.mean((found < value) + 0.5 * (found == value)))
    gap = np.nanmean(spared) - spared[~np.isnan(spared)]
    spread = float((gap**2).sum())
    if not 0 < below < 1 or spread == 0:
        return tails
    bias = float(ndtri(below))
    acceleration = float((gap**3).sum()) / (6 * spread**1.5)
    shifted = bias + ndtri(tails)
    return np.asarray(ndtr(bias + shifted / (1 - acceleration * shifted)))


def _rarest_class(codes: NDArray[np.int64], patients: int, truth: NDArray[Any]) -> NDArray[np.int64]:
    """Number of the rarest class that each patient has a case of; for labels that may hold together K means none."""
    if truth.ndim == 1:
        truth = truth[:, None] == np.unique(truth)
    has = np.zeros((patients, truth.shape[1]), dtype=bool)
    np.logical_or.at(has, codes, truth.astype(bool))
    order = np.argsort(has.sum(axis=0), kind="stable")
    ranked = has[:, order]
    rarest = np.where(ranked.any(axis=1), order[np.argmax(ranked, axis=1)], truth.shape[1])
    return np.asarray(rarest, dtype=np.int64)
