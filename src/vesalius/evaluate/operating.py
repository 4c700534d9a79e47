"""Operating points: thresholds chosen on validation, judged on test.

A threshold that was chosen on the cases it is judged by looks better than it is, so the two tables are separate
arguments. A case is called positive when its probability is at least the threshold.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vesalius.core.labels import Labels
from vesalius.evaluate.certain import proportion
from vesalius.evaluate.decision import HALF, Decision
from vesalius.evaluate.interval import Estimate, Patients, bootstrap
from vesalius.evaluate.table import probabilities_of, truth_of
from vesalius.measure import confusion
from vesalius.measure.ranking import roc_curve

SENSITIVITY = 0.95
# Below this many positive validation cases a sensitivity of 95 % is decided by a single case.
ENOUGH_POSITIVES = 20


def choose_thresholds(truth: ArrayLike, score: ArrayLike, *, sensitivity: float = SENSITIVITY) -> dict[str, float]:
    """Thresholds by rule from validation cases: ``truth`` ``(N,)`` bool, ``score`` ``(N,)`` probabilities of yes.

    ``youden`` maximises sensitivity + specificity - 1 (Youden, Cancer 1950), of equals the one with more sensitivity.
    ``sensitivity_95`` (named after `sensitivity`) is the highest threshold that reaches that sensitivity, hence the one
    with the best specificity. A threshold lies halfway to the next lower score, so that rounding of another device does
    not move a case across it. Empty when a class is absent.
    """
    wrong, right, thresholds = roc_curve(truth, score)
    if len(thresholds) < 2 or np.isnan(wrong).any() or np.isnan(right).any():
        return {}
    gain = right - wrong
    # The curve runs to looser thresholds: the last of equal gains has the most sensitivity.
    youden = int(np.flatnonzero(gain >= gain.max() - 1e-12)[-1])
    sensitive = int(np.flatnonzero(right >= sensitivity - 1e-12)[0])
    return {
        "youden": _halfway(thresholds, youden),
        f"sensitivity_{round(100 * sensitivity)}": _halfway(thresholds, sensitive),
    }


def youden_decision(validation: pd.DataFrame, labels: Labels) -> Decision:
    """The decision by Youden's threshold of a validation table; the default one where no threshold can be chosen."""
    found = {name: choose_thresholds(truth, score) for name, truth, score in _questions(validation, labels)}
    thresholds = {name: rules["youden"] for name, rules in found.items() if rules}
    return Decision(thresholds, "val", "youden") if thresholds else Decision()


def operating_points(
    table: pd.DataFrame,
    validation: pd.DataFrame | None,
    labels: Labels,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """What each threshold gives on the cases of `table`, with patient-level intervals, as plain data.

    For a yes/no question ``{rule: point}``, for labels that may hold together ``{label: {rule: point}}``, for more
    exclusive classes nothing. A point has ``threshold``, ``chosen_on``, ``sensitivity, specificity, ppv, npv``
    (predictive values at the prevalence of `table`), and ``warning`` where few validation cases chose it. The rule
    ``half`` is 0.5, chosen before any data.
    """
    held_out = [] if validation is None else _questions(validation, labels)
    chosen = {name: (truth, score) for name, truth, score in held_out}
    points: dict[str, Any] = {}
    for name, truth, score in _questions(table, labels):
        rules: dict[str, float] = {"half": HALF}
        positives = 0
        if name in chosen:
            rules |= choose_thresholds(*chosen[name])
            positives = int(chosen[name][0].sum())
        patients = Patients.of(table["patient_id"], truth.astype(np.int64))
        judged = _judge(truth, score, rules, patients, resamples=resamples, level=level, seed=seed)
        points[name] = {rule: _point(threshold, judged[rule], rule, positives) for rule, threshold in rules.items()}
    return points[labels.names[labels.positive]] if labels.binary else points


def _judge(
    truth: NDArray[np.bool_], score: NDArray[np.float64], rules: Mapping[str, float], patients: Patients, *,
    resamples: int, level: float, seed: int,
) -> dict[str, dict[str, Estimate]]:  # fmt: skip
    """Rates by rule and name."""
    said = {rule: score >= threshold for rule, threshold in rules.items()}

    def rates(weights: NDArray[np.float64] | None) -> dict[Hashable, NDArray[np.float64]]:
        found: dict[Hashable, NDArray[np.float64]] = {}
        for rule, guess in said.items():
            counts = confusion.confusion_matrix(truth, guess, 2, weights)
            found[rule, "sensitivity"] = confusion.sensitivity(counts)[..., 1]
            found[rule, "specificity"] = confusion.specificity(counts)[..., 1]
            found[rule, "ppv"] = confusion.precision(counts)[..., 1]
            found[rule, "npv"] = confusion.negative_predictive_value(counts)[..., 1]
        return found

    estimates = bootstrap(rates, patients, resamples=resamples, level=level, seed=seed)
    judged: dict[str, dict[str, Estimate]] = {}
    for rule, guess in said.items():
        among = {"sensitivity": truth, "specificity": ~truth, "ppv": guess, "npv": ~guess}
        judged[rule] = {rate: proportion(estimates[rule, rate], patients.count(cases)) for rate, cases in among.items()}
    return judged


def _point(threshold: float, rates: Mapping[str, Estimate], rule: str, positives: int) -> dict[str, Any]:
    point: dict[str, Any] = {"threshold": threshold, "chosen_on": "fixed" if rule == "half" else "val"}
    point |= {name: estimate.to_json() for name, estimate in rates.items()}
    if rule != "half" and positives < ENOUGH_POSITIVES:
        point["warning"] = (
            f"chosen on {positives} positive validation cases; collect at least {ENOUGH_POSITIVES} before using it"
        )
    return point


def _questions(table: pd.DataFrame, labels: Labels) -> list[tuple[str, NDArray[np.bool_], NDArray[np.float64]]]:
    """Name, truth ``(N,)`` and probability ``(N,)`` of each yes/no question."""
    if not labels.binary and not labels.multilabel:
        return []
    truth, stated = truth_of(table, labels), probabilities_of(table, labels)
    if labels.binary:
        return [(labels.names[labels.positive], truth == labels.positive, stated[:, labels.positive])]
    return [(name, truth[:, k], stated[:, k]) for k, name in enumerate(labels.names)]


def _halfway(thresholds: NDArray[np.float64], index: int) -> float:
    """Between the threshold and the next lower score; below the last score, the score itself."""
    if index == 0:
        # Nothing is called positive: any number above the highest score.
        return float(np.nextafter(thresholds[1], np.inf))
    if index + 1 == len(thresholds):
        return float(thresholds[index])
    return float((thresholds[index] + thresholds[index + 1]) / 2)
