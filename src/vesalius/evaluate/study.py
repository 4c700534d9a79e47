"""A study: every number of a classification with its interval, and the tables and curves behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.evaluate.certain import widened
from vesalius.evaluate.decision import Decision
from vesalius.evaluate.interval import Estimate, Patients, bootstrap
from vesalius.evaluate.operating import operating_points
from vesalius.evaluate.scores import Scores, of_class, of_whole
from vesalius.evaluate.subgroup import subgroups
from vesalius.evaluate.table import covariates_of, decided, logits_of
from vesalius.measure.calibration import Reliability, apply_temperature, ece, reliability_curve
from vesalius.measure.ranking import precision_recall_curve, roc_curve
from vesalius.measure.weights import mean_defined

SCHEMA = 1
CURVE_POINTS = 200


@dataclass(frozen=True, eq=False)
class Study:
    """What is known about a model on a set of cases; `to_json` is the content of ``metrics.json``.

    `table` holds the judged cases with the decisions that the numbers were made from. `per_class` is by class and
    metric. The other mappings are plain data as they stand in the JSON.
    """

    labels: Labels
    split: str
    table: pd.DataFrame
    metrics: Mapping[str, Estimate]
    per_class: Mapping[str, Mapping[str, Estimate]]
    classes: Mapping[str, Any]
    subgroups: Mapping[str, Any]
    calibration: Mapping[str, Any]
    operating_points: Mapping[str, Any]
    confusion: Mapping[str, Any]
    curves: Mapping[str, Any]
    decision: Decision
    intervals: Mapping[str, Any]
    timing: Mapping[str, Any]
    leakage: Mapping[str, Any]
    task: str = "classify"

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json`` (schema 1); a number that is not defined is NaN, written as null."""
        return {
            "schema": SCHEMA,
            "task": self.task,
            "split": self.split,
            "cases": len(self.table),
            "patients": int(self.table["patient_id"].nunique()),
            "labels": self.labels.to_json(),
            "metrics": {name: estimate.to_json() for name, estimate in self.metrics.items()},
            "per_class": {
                label: {name: estimate.to_json() for name, estimate in rates.items()}
                for label, rates in self.per_class.items()
            },
            "classes": dict(self.classes),
            "subgroups": dict(self.subgroups),
            "calibration": dict(self.calibration),
            "operating_points": dict(self.operating_points),
            "confusion": dict(self.confusion),
            "curves": dict(self.curves),
            "decision": self.decision.to_json(),
            "intervals": dict(self.intervals),
            "timing": dict(self.timing),
            "leakage": dict(self.leakage),
        }


def study(
    table: pd.DataFrame,
    labels: Labels,
    *,
    split: str = "test",
    validation: pd.DataFrame | None = None,
    decision: Decision | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    timing: Mapping[str, Any] | None = None,
    leakage: Mapping[str, Any] | None = None,
    covariates: Sequence[str] | None = None,
    calibration_info: Mapping[str, Any] | None = None,
) -> Study:
    """Judge the cases of one split.

    Parameters
    ----------
    table
        As `table.build_table` makes it; only cases of `split` are judged (``""``: those of no split, external data).
    validation
        Cases that operating points are chosen on; default the rows of `table` with split ``val``, if any.
    decision
        How cases are decided (``predicted``, ``correct`` are made anew); default the most probable class, or 0.5.
    level, resamples, seed
        Of the patient-level bootstrap.
    timing, leakage, calibration_info
        Recorded as given; what is not known is null in the JSON, not 0.
    covariates
        Columns for subgroups; None takes every covariate of the table, an empty list none.

    Raises
    ------
    DataError
        When the split has no cases, and for labels that are not among the classes.
    """
    decision = decision or Decision()
    judged = decided(_of_split(table, split), labels, decision)
    validation = _held_out(table, split) if validation is None else validation
    scores = Scores.of(judged, labels, decision)
    patients = Patients.of(judged["patient_id"], scores.truth)
    draws: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    estimates, mended = widened(bootstrap(scores, patients, **draws), scores, patients)
    columns = covariates_of(table) if covariates is None else covariates
    return Study(
        labels=labels,
        split=split,
        table=judged,
        metrics=of_whole(estimates),
        per_class={name: of_class(estimates, name) for name in labels.names},
        **_pictures(scores, patients),
        subgroups=subgroups(judged, labels, columns, decision=decision, whole=table, **draws),
        calibration=_calibration(judged, scores, level, calibration_info or {}),
        operating_points=operating_points(judged, validation, labels, **draws),
        decision=decision,
        intervals=_settings(resamples, level, seed, mended),
        timing=_recorded(timing, "train_s", "predict_ms_per_case"),
        leakage=_recorded(leakage, "patients_shared", "near_duplicates"),
    )


def _of_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    part = table.loc[table["split"] == split].reset_index(drop=True)
    if part.empty:
        there = ", ".join(repr(name) for name in sorted(table["split"].unique()))
        raise DataError(f"no case belongs to split {split!r}; the table has {there or 'no cases'}")
    return part


def _held_out(table: pd.DataFrame, split: str) -> pd.DataFrame | None:
    """The validation cases of the table, unless they are the ones to be judged."""
    return _of_split(table, "val") if split != "val" and (table["split"] == "val").any() else None


def _recorded(given: Mapping[str, Any] | None, *names: str) -> dict[str, Any]:
    """What is known, and None for what the contract names but nobody measured."""
    return {**dict.fromkeys(names), **(given or {})}


def _pictures(scores: Scores, patients: Patients) -> dict[str, Any]:
    """What tables and charts show besides the numbers."""
    return {"classes": _sizes(scores, patients), "confusion": _confusion(scores), "curves": _curves(scores)}


def _settings(resamples: int, level: float, seed: int, mended: Sequence[str]) -> dict[str, Any]:
    """How the intervals were made; `mended` had no width and took the rules of `evaluate.certain`."""
    return {
        "method": "percentile bootstrap over patients, stratified by their rarest class",
        "resamples": resamples,
        "level": level,
        "seed": seed,
        "mended": list(mended),
    }


def _sizes(scores: Scores, patients: Patients) -> dict[str, Any]:
    """Cases and patients of each class."""
    held = scores.held()
    return {
        name: {"cases": int(held[:, k].sum()), "patients": patients.count(held[:, k])}
        for k, name in enumerate(scores.labels.names)
    }


def _confusion(scores: Scores) -> dict[str, Any]:
    """Whole counts: rows are the truth, columns the decision; per label ``[[tn, fp], [fn, tp]]``."""
    counts = scores.matrix().astype(int).tolist()
    names = list(scores.labels.names)
    if scores.labels.multilabel:
        return {"labels": names, "per_label": dict(zip(names, counts, strict=True))}
    return {"labels": names, "counts": counts}


def _curves(scores: Scores) -> dict[str, Any]:
    """ROC and precision-recall curves by class; for a yes/no question of the positive class alone."""
    labels, held = scores.labels, scores.held()
    asked = [labels.positive] if labels.binary else range(len(labels))
    curves: dict[str, Any] = {"roc": {}, "pr": {}}
    for k in asked:
        if held[:, k].all() or not held[:, k].any():
            continue
        wrong, right, _ = roc_curve(held[:, k], scores.probabilities[:, k])
        keep = thinned(wrong, right)
        curves["roc"][labels.names[k]] = {"fpr": wrong[keep].tolist(), "tpr": right[keep].tolist()}
        found, precise, _ = precision_recall_curve(held[:, k], scores.probabilities[:, k])
        keep = thinned(found, precise)
        curves["pr"][labels.names[k]] = {"recall": found[keep].tolist(), "precision": precise[keep].tolist()}
    return curves


def thinned(x: NDArray[np.float64], y: NDArray[np.float64], points: int = CURVE_POINTS) -> NDArray[np.int64]:
    """Indices of at most `points` points of a curve, evenly along its length, the ends among them."""
    if len(x) <= points:
        return np.arange(len(x))
    way = np.r_[0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))]
    return np.unique(np.r_[0, np.searchsorted(way, np.linspace(0, way[-1], points))[1:-1], len(x) - 1])


def _calibration(table: pd.DataFrame, scores: Scores, level: float, given: Mapping[str, Any]) -> dict[str, Any]:
    labels = scores.labels
    raw = logits_of(table, labels)
    before = None
    if raw is not None:
        before = _ece(scores, apply_temperature(raw, 1.0, multilabel=labels.multilabel))
    if labels.multilabel:
        pooled = reliability_curve(scores.truth.ravel(), scores.probabilities.ravel(), level=level)
    else:
        pooled = reliability_curve(scores.truth, scores.probabilities, level=level)
    found: dict[str, Any] = {
        "temperature": None,
        **given,
        "ece": {"before": before, "after": _ece(scores, scores.probabilities)},
        "reliability": _bins(pooled),
    }
    if labels.binary:
        positive = scores.probabilities[:, labels.positive]
        found["reliability_positive"] = _bins(reliability_curve(scores.truth == labels.positive, positive, level=level))
    return found


def _ece(scores: Scores, stated: NDArray[np.float64]) -> float:
    if not scores.labels.multilabel:
        return float(ece(scores.truth, stated))
    return float(mean_defined([ece(scores.truth[:, k], stated[:, k]) for k in range(stated.shape[1])]))


def _bins(curve: Reliability) -> list[dict[str, float]]:
    """Bins that hold cases."""
    return [
        {
            "from": float(curve.edges[k]),
            "to": float(curve.edges[k + 1]),
            "cases": int(curve.weight[k]),
            "confidence": float(curve.confidence[k]),
            "share": float(curve.share[k]),
            "low": float(curve.low[k]),
            "high": float(curve.high[k]),
        }
        for k in np.flatnonzero(curve.weight > 0)
    ]
