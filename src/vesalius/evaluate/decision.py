"""From probabilities to an answer, and what the answer was chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UsageError
from vesalius.core.labels import Labels

HALF = 0.5


@dataclass(frozen=True)
class Decision:
    """How a case is decided.

    Parameters
    ----------
    thresholds
        Smallest probability that counts as yes, by class name; for two exclusive classes that of the positive class.
        Empty: the most probable class, or for labels that may hold together every label of at least 0.5.
    chosen_on
        Where the thresholds come from: ``"fixed"`` (before any data were seen) or the name of a split, ``"val"``.
    rule
        What they were chosen by, such as ``"youden"``.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    chosen_on: str = "fixed"
    rule: str = "half"

    def guess(self, labels: Labels, probabilities: NDArray[np.float64]) -> NDArray[Any]:
        """Class numbers ``(N,)``, or ``(N, K)`` bool for labels that may hold together, of probabilities ``(N, K)``.

        Raises
        ------
        UsageError
            For a threshold of a class that does not exist, or thresholds on more than two exclusive classes.
        """
        unknown = [name for name in self.thresholds if name not in labels.names]
        if unknown:
            raise UsageError(f"threshold for {unknown[0]!r}, but the classes are {', '.join(labels.names)}")
        if labels.multilabel:
            limits = np.array([self.thresholds.get(name, HALF) for name in labels.names])
            return np.asarray(probabilities >= limits)
        if not self.thresholds:
            return np.asarray(np.argmax(probabilities, axis=1))
        positive = labels.names[labels.positive]
        if not labels.binary or list(self.thresholds) != [positive]:
            raise UsageError(
                f"a threshold needs a yes/no question and is that of its positive class {positive!r}; "
                "leave it out to decide for the most probable class"
            )
        said_yes = probabilities[:, labels.positive] >= self.thresholds[positive]
        return np.asarray(np.where(said_yes, labels.positive, 1 - labels.positive))

    def to_json(self) -> dict[str, Any]:
        """Plain data for metrics.json and the bundle."""
        return {"rule": self.rule, "thresholds": dict(self.thresholds), "chosen_on": self.chosen_on}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        """The inverse of `to_json`."""
        thresholds = {str(name): float(value) for name, value in data.get("thresholds", {}).items()}
        return cls(thresholds, str(data.get("chosen_on", "fixed")), str(data.get("rule", "half")))
