"""Two models on the same cases: differences with intervals, and the classical tests.

The same patients are drawn for both models, so that what makes a case hard for both cancels out. Two intervals that
overlap do not answer whether models differ; the interval of the difference does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import binomtest, rankdata

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.evaluate.decision import Decision
from vesalius.evaluate.interval import Estimate, Patients, bootstrap
from vesalius.evaluate.scores import Scores, of_whole

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class PairedAreas:
    """Two AUROCs of the same cases. `p` is two-sided for "no difference"; NaN where it cannot be tested."""

    first: float
    second: float
    standard_error: float
    z: float
    p: float

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


@dataclass(frozen=True)
class McNemar:
    """Cases that only one of two models decides rightly; `p` is exact, two-sided, 1 where there are none."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True, eq=False)
class Paired:
    """Two models on the same cases: numbers of both, and their differences (second minus first), by metric."""

    cases: int
    patients: int
    first: Mapping[str, float]
    second: Mapping[str, float]
    difference: Mapping[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report."""
        metrics = {
            name: {"first": self.first[name], "second": self.second[name], "difference": found.to_json()}
            for name, found in self.difference.items()
        }
        return {"schema": 1, "cases": self.cases, "patients": self.patients, "metrics": metrics}


@dataclass(frozen=True, eq=False)
class Comparison(Paired):
    """Two classifiers, with the tests that apply."""

    delong: Mapping[str, PairedAreas] = field(default_factory=dict)
    mcnemar: McNemar | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report."""
        tests: dict[str, Any] = {
            "delong": {
                name: {
                    "difference": found.difference,
                    "standard_error": found.standard_error,
                    "z": found.z,
                    "p": found.p,
                }
                for name, found in self.delong.items()
            }
        }
        if self.mcnemar is not None:
            tests["mcnemar"] = {"only_first_right": self.mcnemar.only_first,
                                "only_second_right": self.mcnemar.only_second, "p": self.mcnemar.p}  # fmt: skip
        return {**super().to_json(), "tests": tests}


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    labels: Labels,
    *,
    split: str = "test",
    decisions: tuple[Decision, Decision] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two tables of the same cases (in any order).

    Parameters
    ----------
    first, second
        As `evaluate.table.build_table` makes them.
    decisions
        How each model decides; default the most probable class, or 0.5.

    Raises
    ------
    DataError
        When the tables hold different cases, or a case has two truths or two patients.
    """
    one, two = _aligned(first, second, split)
    chosen = decisions or (Decision(), Decision())
    scores = (Scores.of(one, labels, chosen[0]), Scores.of(two, labels, chosen[1]))
    patients = Patients.of(one["patient_id"], scores[0].truth)

    def difference(weights: FloatArray | None) -> dict[Hashable, FloatArray]:
        before, after = of_whole(scores[0](weights)), of_whole(scores[1](weights))
        return {name: after[name] - before[name] for name in before}

    found = bootstrap(difference, patients, resamples=resamples, level=level, seed=seed)
    held = scores[0].held()
    asked = [labels.positive] if labels.binary else range(len(labels))
    areas = {
        labels.names[k]: delong(
            held[:, k], scores[0].probabilities[:, k], scores[1].probabilities[:, k], patients=patients.of_case
        )
        for k in asked
    }
    right = [s.guess == s.truth for s in scores]
    return Comparison(
        cases=len(one),
        patients=len(patients),
        first={name: float(value) for name, value in of_whole(scores[0](None)).items()},
        second={name: float(value) for name, value in of_whole(scores[1](None)).items()},
        difference={str(name): estimate for name, estimate in found.items()},
        delong=areas,
        # The test counts independent cases; with several per patient, or several labels, it would be too sure.
        mcnemar=mcnemar(right[0], right[1]) if len(patients) == len(one) and not labels.multilabel else None,
    )


def delong(truth: ArrayLike, first: ArrayLike, second: ArrayLike, *, patients: ArrayLike | None = None) -> PairedAreas:
    """Test of two correlated AUROCs (DeLong, DeLong and Clarke-Pearson, Biometrics 1988; ranks as Sun and Xu 2014).

    Parameters
    ----------
    truth
        ``(N,)`` bool.
    first, second
        Scores ``(N,)`` of the two models.
    patients
        ``(N,)`` patient of each case. Cases of one patient then count as dependent (Obuchowski, Biometrics 1997); where
        each has one case this is the test of DeLong itself.

    Returns
    -------
    areas
        ``z`` and ``p`` are NaN with fewer than two positive or negative patients, and when the models rank alike (no
        variance).
    """
    held = np.asarray(truth, dtype=bool)
    who = np.arange(len(held)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not held.shape == one.shape == two.shape == who.shape:
        raise ValueError(f"truth and scores must have axes (N,), got {held.shape}, {one.shape} and {two.shape}")
    placed = [_placements(held, score) for score in (one, two)]
    areas = [float(np.mean(of_positive)) if len(of_positive) else float("nan") for of_positive, _ in placed]
    variance = _variance(
        placed[1][0] - placed[0][0], placed[1][1] - placed[0][1], who[held], who[~held], areas[1] - areas[0]
    )
    if not variance > 0:
        return PairedAreas(areas[0], areas[1], 0.0 if variance == 0 else float("nan"), float("nan"), float("nan"))
    error = float(np.sqrt(variance))
    z = (areas[1] - areas[0]) / error
    return PairedAreas(areas[0], areas[1], error, z, float(2 * ndtr(-abs(z))))


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> McNemar:
    """Exact test of two paired accuracies (McNemar, Psychometrika 1947); both arguments ``(N,)`` bool."""
    one, two = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    if one.shape != two.shape or one.ndim != 1:
        raise ValueError(f"both must have axes (N,), got shapes {one.shape} and {two.shape}")
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    total = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, total).pvalue) if total else 1.0)


def _placements(held: NDArray[np.bool_], score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Share of negatives below each positive ``(P,)``, and of positives above each negative ``(Q,)``; ties half."""
    positive, negative = score[held], score[~held]
    if not len(positive) or not len(negative):
        return np.full(len(positive), np.nan), np.full(len(negative), np.nan)
    together = rankdata(score)
    of_positive = (together[held] - rankdata(positive)) / len(negative)
    of_negative = 1 - (together[~held] - rankdata(negative)) / len(positive)
    return of_positive, of_negative


def _variance(
    of_positive: FloatArray, of_negative: FloatArray, who: NDArray[np.int64], whose: NDArray[np.int64], mean: float
) -> float:
    """Variance of a mean placement (or difference of two) over clusters; equation 4 of Obuchowski 1997."""
    if len(np.unique(who)) < 2 or len(np.unique(whose)) < 2:
        return float("nan")
    size = int(max(who.max(), whose.max())) + 1
    m, n = len(of_positive), len(of_negative)
    positive = np.bincount(who, of_positive - mean, size)
    negative = np.bincount(whose, of_negative - mean, size)
    with_positive, with_negative = len(np.unique(who)), len(np.unique(whose))
    clusters = len(np.union1d(who, whose))
    s10 = with_positive / ((with_positive - 1) * m) * float((positive**2).sum())
    s01 = with_negative / ((with_negative - 1) * n) * float((negative**2).sum())
    s11 = clusters / (clusters - 1) * float((positive * negative).sum())
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def _aligned(first: pd.DataFrame, second: pd.DataFrame, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    one, two = (t.loc[t["split"] == split].sort_values("case_id").reset_index(drop=True) for t in (first, second))
    ids, others = set(one["case_id"]), set(two["case_id"])
    if ids != others:
        odd = sorted(ids ^ others)[0]
        raise DataError(
            f"case {odd!r} of split {split!r} is in one table only ({len(ids)} and {len(others)} cases, "
            f"{len(ids & others)} in both); predict the same cases with both models"
        )
    if not ids:
        raise DataError(f"no case belongs to split {split!r} in either table")
    for column in ("label", "patient_id"):
        differs = one["case_id"][one[column] != two[column]]
        if len(differs):
            raise DataError(f"case {differs.iloc[0]!r} has a different {column} in the two tables")
    return one, two
