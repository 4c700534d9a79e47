"""What a model says about a case: plain data on the case's own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import Grid
from vesalius.core.labels import Labels


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Calibrated probabilities ``(classes,)``; they sum to 1 unless the labels are multi-label."""

    case_id: str
    labels: Labels
    probabilities: NDArray[np.float64]
    logits: NDArray[np.float64]
    spread: float | None = None
    """Standard deviation of the top probability over ensemble members and test-time views; None with one view."""
    threshold: float | None = None
    """For two classes: the positive one is said from this probability on; None for the more probable one."""

    def __post_init__(self) -> None:
        if self.probabilities.shape != (len(self.labels),):
            raise ValueError(f"{len(self.labels)} classes but probabilities of shape {self.probabilities.shape}")

    @property
    def top(self) -> str:
        """Name of the class that is said."""
        if self.threshold is not None and self.labels.binary:
            positive = self.labels.positive
            return self.labels.names[positive if self.probabilities[positive] >= self.threshold else 1 - positive]
        return self.labels.names[int(np.argmax(self.probabilities))]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `vesalius predict` writes it."""
        data: dict[str, Any] = {
            "case_id": self.case_id,
            "kind": "class_scores",
            "probabilities": {name: float(p) for name, p in zip(self.labels.names, self.probabilities, strict=True)},
        }
        if self.labels.multilabel:
            data["classes"] = [n for n, p in zip(self.labels.names, self.probabilities, strict=True) if p >= 0.5]
        else:
            data["class"] = self.top
        if self.spread is not None:
            data["spread"] = float(self.spread)
        return data


@dataclass(frozen=True, eq=False)
class Mask:
    """A label map ``grid.shape``, or one mask per overlapping region ``(classes, *grid.shape)``."""

    case_id: str
    labels: Labels
    grid: Grid
    values: NDArray[Any]
    probabilities: NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes ``(N, 2 * ndim)`` as lower then upper corner in index units (z, y, x), with class and score per box."""

    case_id: str
    labels: Labels
    grid: Grid
    corners: NDArray[np.float64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Timeline:
    """Probabilities ``(T, classes)`` at times ``(T,)`` in seconds."""

    case_id: str
    labels: Labels
    seconds: NDArray[np.float64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """A number with its unit."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Measurements:
    """Numbers with units, each belonging to a case and a structure of it."""

    case_id: str
    structures: Mapping[str, Sequence[Measurement]]


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Generated pixels ``(N, C, ...)`` and what they were asked to show."""

    case_id: str
    pixels: NDArray[Any]
    asked: Mapping[str, Any] = field(default_factory=dict)


Prediction = ClassScores | Mask | Boxes | Timeline | Measurements | Synthetic
