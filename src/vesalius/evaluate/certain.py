"""Intervals where resampling has nothing to say.

When all 20 cases are right, every replicate is right as well, and the bootstrap gives (1, 1): a certainty that 20 cases
cannot give. An interval without width is therefore never reported. Where the value is 0 or 1:

* a proportion takes its Wilson interval, with the number of patients (not cases) as its size;
* AUROC takes the Wilson interval of min(patients with, patients without) pairs: that many pairs can be formed in which
  no patient stands twice, and all of them were ordered alike;
* a mean over classes takes the mean of the limits of its classes, F1 the harmonic mean of those of precision and
  recall, and kappa those of accuracy at the same agreement by chance.

Anything else without width has the interval NaN: not known.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace

import numpy as np

from vesalius.evaluate.interval import Estimate, Patients
from vesalius.evaluate.scores import PER_CLASS, Scores
from vesalius.measure.intervals import wilson
from vesalius.measure.weights import mean_defined

Limits = tuple[float, float]
UNKNOWN = (float("nan"), float("nan"))


def without_width(estimate: Estimate) -> bool:
    """Whether resampling said nothing: both limits are the value itself."""
    return bool(estimate.low == estimate.high == estimate.value)


def proportion(estimate: Estimate, patients: int) -> Estimate:
    """`estimate` itself, or if it has no width with the Wilson interval of so many `patients` (NaN between 0 and 1)."""
    if not without_width(estimate):
        return estimate
    low, high = _wilson(estimate.value, patients, estimate.level)
    return replace(estimate, low=low, high=high)


def widened(
    estimates: Mapping[Hashable, Estimate], scores: Scores, patients: Patients
) -> tuple[dict[Hashable, Estimate], list[str]]:
    """The estimates, those without width mended, and the names of these (``metric`` or ``class/metric``)."""
    out = dict(estimates)
    changed: list[str] = []
    # Classes first: the limits of the whole are made from theirs.
    for key in sorted(estimates, key=lambda key: (not _split(key)[0], _split(key)[1] == "f1")):
        if not without_width(out[key]):
            continue
        name, metric = _split(key)
        low, high = _of_class(out, name, metric, scores, patients) if name else _of_all(out, metric, scores, patients)
        out[key] = replace(out[key], low=low, high=high)
        changed.append(f"{name}/{metric}" if name else metric)
    return {key: out[key] for key in estimates}, sorted(changed)


def _of_class(known: Mapping[Hashable, Estimate], name: str, metric: str, scores: Scores, patients: Patients) -> Limits:
    estimate = known[name, metric]
    k = scores.labels.names.index(name)
    held = scores.truth[:, k] if scores.labels.multilabel else scores.truth == k
    said = scores.guess[:, k] if scores.labels.multilabel else scores.guess == k
    with_it, without = patients.count(held), patients.count(~held)
    size = {"sensitivity": with_it, "specificity": without, "precision": patients.count(said),
            "auroc": min(with_it, without)}  # fmt: skip
    if metric in size:
        return _wilson(estimate.value, size[metric], estimate.level)
    if metric == "f1" and estimate.value == 1:
        right, found = known[name, "precision"].low, known[name, "sensitivity"].low
        return (2 * right * found / (right + found) if right + found > 0 else 0.0, 1.0)
    return UNKNOWN


def _of_all(known: Mapping[Hashable, Estimate], metric: str, scores: Scores, patients: Patients) -> Limits:
    labels, estimate = scores.labels, known["", metric]
    if metric in ("accuracy", "subset_accuracy"):
        return _wilson(estimate.value, len(patients), estimate.level)
    same = "sensitivity" if metric in ("recall", "balanced_accuracy") else metric
    if same in PER_CLASS:
        chosen = [labels.names[labels.positive]] if labels.binary and metric != "balanced_accuracy" else labels.names
        rates = ("sensitivity", "specificity") if metric == "balanced_accuracy" and labels.multilabel else (same,)
        limits = [(known[name, rate].low, known[name, rate].high) for name in chosen for rate in rates]
        low, high = mean_defined(np.array(limits), axis=0)
        return float(low), float(high)
    if metric == "kappa" and estimate.value == 1 and not labels.multilabel:
        share = scores.matrix().sum(axis=1) / len(scores.truth)
        by_chance = float((share**2).sum())
        low = _wilson(1.0, len(patients), estimate.level)[0]
        return 1 - (1 - low) / (1 - by_chance), 1.0
    return UNKNOWN


def _wilson(value: float, size: int, level: float) -> Limits:
    if value not in (0.0, 1.0):
        return UNKNOWN
    low, high = wilson(value * size, size, level)
    return float(low), float(high)


def _split(key: Hashable) -> tuple[str, str]:
    name, metric = key if isinstance(key, tuple) else ("", key)
    return str(name), str(metric)
