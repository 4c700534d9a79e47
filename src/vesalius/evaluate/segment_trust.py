"""Do the probabilities of voxels come true? Counted case by case, with intervals from drawing patients.

Voxels near the truth or the prediction count, each label against the rest (`measure.uncertainty`); a temperature is
fitted on the validation cases and judged on those of the test part.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.labels import Labels
from vesalius.evaluate.interval import Estimate, FloatArray, Patients, bootstrap
from vesalius.measure.uncertainty import VoxelCounts, count_voxels
from vesalius.measure.weights import ratio

MOST_CASES = 200
MOST_VALUES = 1 << 29
"""Values (classes times voxels) of the largest case that is counted."""

_LEAST = 6e-8  # the smallest step of a float16 probability
_RESAMPLES = 1000


def scores_of(probabilities: NDArray[Any], labels: Labels) -> FloatArray:
    """Logarithms of probabilities ``(K, *S)``; of structures that overlap and of single objects their logits."""
    p = np.clip(probabilities.astype(np.float32), _LEAST, 1.0)
    if labels.multilabel or labels.instances:
        return np.asarray(np.log(p) - np.log(np.clip(1.0 - probabilities.astype(np.float32), _LEAST, 1.0)))
    return np.asarray(np.log(p))


@dataclass
class VoxelTrust:
    """Counts of the held-out cases.

    Parameters
    ----------
    labels
        The classes of the masks.
    temperature
        What logits are divided by; None until `fit`.
    """

    labels: Labels
    temperature: float | None = None
    plain: dict[str, list[VoxelCounts]] = field(default_factory=dict)
    scaled: dict[str, list[VoxelCounts]] = field(default_factory=dict)
    patients: dict[str, list[str]] = field(default_factory=dict)
    left_out: int = 0

    def wants(self, split: str, shape: tuple[int, ...]) -> bool:
        """Whether one more case of this size is counted; those that are too large or too many are left out."""
        layers = len(self.labels.structures) if self.labels.multilabel or self.labels.instances else len(self.labels)
        fits = layers * int(np.prod(shape, dtype=np.int64)) <= MOST_VALUES
        wanted = fits and len(self.plain.get(split, ())) < MOST_CASES
        self.left_out += not wanted
        return wanted

    def add(
        self,
        split: str,
        patient: str,
        probabilities: NDArray[Any],
        truth: NDArray[Any],
        spacing: tuple[float, ...] | None,
    ) -> None:
        """Count a case: ``(K, *S)`` probabilities before any temperature and its truth, as `layered_truth` gives it."""
        layers = self.labels.multilabel or self.labels.instances
        true = (truth > 0)[None] if self.labels.instances else truth
        scores = scores_of(probabilities, self.labels)

        def count(of: FloatArray) -> VoxelCounts:
            return count_voxels(of, true, spacing, layers=layers, ignore=self.labels.ignore)

        self.plain.setdefault(split, []).append(count(scores))
        self.patients.setdefault(split, []).append(patient)
        if self.temperature is not None:
            self.scaled.setdefault(split, []).append(count(scores / np.float32(self.temperature)))

    def fit(self, split: str = "val") -> float | None:
        """The temperature that the cases of `split` ask for; None where there are none."""
        counted = self.plain.get(split)
        if counted:
            self.temperature = _sum(counted).temperature()
        return self.temperature

    def to_json(self, split: str) -> dict[str, Any]:
        """The section ``calibration`` of ``metrics.json``; empty where no case of `split` was counted."""
        plain = self.plain.get(split)
        if not plain:
            return {}
        scaled = self.scaled.get(split)
        if scaled is None or len(scaled) != len(plain):
            scaled = None
        patients = Patients.of(self.patients[split])
        before = _estimates(plain, patients)
        after = before if scaled is None else _estimates(scaled, patients)
        return {
            "temperature": self.temperature,
            "chosen_on": None if self.temperature is None else "val",
            "ece": {"before": None if scaled is None else before["ece"].value, "after": after["ece"].value},
            "ece_interval": {
                "before": None if scaled is None else _shown(before["ece"]),
                "after": _shown(after["ece"]),
            },
            "cases": len(plain),
            "left_out": self.left_out,
            "reliability": _bins(_sum(plain if scaled is None else scaled), after),
        }


def _sum(counts: list[VoxelCounts]) -> VoxelCounts:
    total = counts[0]
    for one in counts[1:]:
        total = total + one
    return total


def _estimates(counts: list[VoxelCounts], patients: Patients) -> Mapping[Hashable, Estimate]:
    """Calibration error, and the share that came true in every bin, over all labels."""
    weight, hits, stated = (np.stack([getattr(one, name).sum(axis=0) for one in counts])
                            for name in ("weight", "hits", "stated"))  # fmt: skip

    def score(drawn: FloatArray | None) -> Mapping[Hashable, FloatArray]:
        draw = np.ones(len(counts)) if drawn is None else drawn
        w, h, s = draw @ weight, draw @ hits, draw @ stated
        share = ratio(h, w)
        error = ratio(np.abs(h - s).sum(axis=-1), w.sum(axis=-1))
        return {"ece": error, **{bin_: share[..., bin_] for bin_ in range(share.shape[-1])}}

    return bootstrap(score, patients, resamples=_RESAMPLES, purpose="voxel calibration")


def _shown(estimate: Estimate) -> dict[str, Any]:
    return {name: value for name, value in estimate.to_json().items() if name != "level"}


def _bins(total: VoxelCounts, found: Mapping[Hashable, Estimate]) -> list[dict[str, Any]]:
    weight, stated = total.weight.sum(axis=0), total.stated.sum(axis=0)
    edges = np.linspace(0, 1, len(weight) + 1)
    mean = ratio(stated, weight)
    return [
        {
            "from": float(edges[k]),
            "to": float(edges[k + 1]),
            "cases": int(weight[k]),
            "confidence": float(mean[k]),
            "share": found[k].value,
            "low": found[k].low,
            "high": found[k].high,
        }
        for k in np.flatnonzero(weight > 0).tolist()
    ]
