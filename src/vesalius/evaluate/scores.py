"""All metrics of a classification, for all cases once or for many weightings at a time.

For a yes/no question sensitivity, specificity, precision, recall, F1, AUROC and average precision are those of the
positive class; `recall` is then another word for sensitivity. For more exclusive classes they are means over the
classes (macro, one against the rest), so that `recall`, `sensitivity` and `balanced_accuracy` agree. For labels that
may hold together every metric is the mean over labels, `accuracy` included; the share of cases in which all labels are
right is `subset_accuracy`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.labels import Labels
from vesalius.evaluate.decision import Decision
from vesalius.evaluate.table import probabilities_of, truth_of
from vesalius.measure import calibration, confusion
from vesalius.measure.ranking import Ranks
from vesalius.measure.weights import as_replicates, mean_defined, ratio

FloatArray = NDArray[np.float64]
T = TypeVar("T")

METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "recall", "f1", "auroc", "auprc",
           "kappa", "brier", "ece")  # fmt: skip
PER_CLASS = ("sensitivity", "specificity", "precision", "f1", "auroc", "auprc")

ClassMetric = tuple[str, str]
"""(class name, metric); the class name is empty for a metric of the whole."""


class Scores:
    """Truth, probabilities and decisions of N cases, ready to be weighted.

    Parameters
    ----------
    labels
        The K classes.
    truth, guess
        Class numbers ``(N,)``, or ``(N, K)`` bool for labels that may hold together.
    probabilities
        ``(N, K)``.
    """

    def __init__(self, labels: Labels, truth: NDArray[Any], guess: NDArray[Any], probabilities: FloatArray) -> None:
        self.labels = labels
        self.truth = truth
        self.guess = guess
        self.probabilities = probabilities
        held = self.held()
        scores = probabilities
        if labels.binary:
            # The mirrored score keeps both classes' areas consistent where 1 - p rounds two scores to one.
            scores = np.repeat(probabilities[:, labels.positive, None], 2, axis=1)
            scores[:, 1 - labels.positive] *= -1
        self._ranks = [Ranks.of(held[:, k], scores[:, k]) for k in range(len(labels))]

    @classmethod
    def of(cls, table: pd.DataFrame, labels: Labels, decision: Decision) -> Scores:
        """From a table of cases; decisions are made anew from its probabilities."""
        stated = probabilities_of(table, labels)
        return cls(labels, truth_of(table, labels), decision.guess(labels, stated), stated)

    def __call__(self, weights: FloatArray | None) -> dict[Hashable, FloatArray]:
        """Metrics by `ClassMetric`, each ``()`` or ``(R,)`` for weights ``(R, N)``."""
        per_class = self._per_class(weights)
        named: dict[Hashable, FloatArray] = {}
        for metric, rates in per_class.items():
            plain = rates[..., self.labels.positive] if self.labels.binary else mean_defined(rates)
            named["", metric] = plain
            if metric in PER_CLASS:
                for k, name in enumerate(self.labels.names):
                    named[name, metric] = rates[..., k]
        named["", "recall"] = named["", "sensitivity"]
        named |= self._calibration(weights)
        if self.labels.multilabel:
            table, single = as_replicates(weights, len(self.truth))
            right = (self.truth == self.guess).all(axis=1).astype(np.float64)
            subset = ratio(table @ right, table.sum(axis=1))
            named["", "subset_accuracy"] = subset[0] if single else subset
        return {key: named[key] for key in sorted(named, key=_order)}

    def held(self) -> NDArray[np.bool_]:
        """Which class holds for which case, ``(N, K)``."""
        if self.labels.multilabel:
            return np.asarray(self.truth, dtype=bool)
        return np.asarray(self.truth[:, None] == np.arange(len(self.labels)))

    def matrix(self, weights: FloatArray | None = None) -> FloatArray:
        """``(K, K)`` counts, or ``(K, 2, 2)`` for labels that may hold together, with the axis of weights in front."""
        if self.labels.multilabel:
            return confusion.binary_matrices(self.truth, self.guess, weights)
        return confusion.confusion_matrix(self.truth, self.guess, len(self.labels), weights)

    def _per_class(self, weights: FloatArray | None) -> dict[str, FloatArray]:
        """Rates with a last axis of K (of 1 for those that belong to the whole question)."""
        counts = self.matrix(weights)
        areas = [ranks.areas(weights) for ranks in self._ranks]
        rates = {
            "sensitivity": confusion.sensitivity(counts),
            "specificity": confusion.specificity(counts),
            "precision": confusion.precision(counts),
            "f1": confusion.f1(counts),
        }
        if self.labels.multilabel:
            rates = {metric: values[..., 1] for metric, values in rates.items()}
        rates["auroc"] = np.stack([roc for roc, _ in areas], axis=-1)
        rates["auprc"] = np.stack([pr for _, pr in areas], axis=-1)
        for metric, rate in (("accuracy", confusion.accuracy), ("balanced_accuracy", confusion.balanced_accuracy),
                             ("kappa", confusion.kappa)):  # fmt: skip
            whole = rate(counts)
            rates[metric] = whole if self.labels.multilabel else np.stack([whole] * len(self.labels), axis=-1)
        return rates

    def _calibration(self, weights: FloatArray | None) -> dict[Hashable, FloatArray]:
        if not self.labels.multilabel:
            asked = self.truth == self.labels.positive if self.labels.binary else self.truth
            stated = self.probabilities[:, self.labels.positive] if self.labels.binary else self.probabilities
            return {
                ("", "brier"): calibration.brier(asked, stated, weights),
                ("", "ece"): calibration.ece(self.truth, self.probabilities, weights),
            }
        pairs = [(self.truth[:, k], self.probabilities[:, k]) for k in range(len(self.labels))]
        return {
            ("", "brier"): mean_defined([calibration.brier(t, p, weights) for t, p in pairs], axis=0),
            ("", "ece"): mean_defined([calibration.ece(t, p, weights) for t, p in pairs], axis=0),
        }


def of_whole(named: Mapping[Hashable, T]) -> dict[str, T]:
    """The entries of the whole question, by metric."""
    return {key[1]: value for key, value in named.items() if isinstance(key, tuple) and not key[0]}


def of_class(named: Mapping[Hashable, T], name: str) -> dict[str, T]:
    """The entries of one class, by metric."""
    return {key[1]: value for key, value in named.items() if isinstance(key, tuple) and key[0] == name}


def _order(key: Hashable) -> tuple[bool, int]:
    """Metrics of the whole first, in the order of the contract; the order of the classes stays as it is."""
    name, metric = key if isinstance(key, tuple) else ("", str(key))
    return bool(name), METRICS.index(metric) if not name and metric in METRICS else len(METRICS)
