"""Which disease: target, network, loss, decoding and calibration of classification.

Binary, multi-class (one class holds) and multi-label (several may hold). Two exclusive classes are two logits with a
soft-max, so that every exclusive question is computed by the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.core.errors import PlanError
from vesalius.core.labels import Labels
from vesalius.models.factory import Classifier, Shape, build_encoder
from vesalius.models.widths import narrowed


class Classify:
    """The task object that the training loop and the predictor talk to.

    Parameters
    ----------
    labels
        The classes, in the order of the logits.
    loss
        Section ``loss`` of the plan.
    """

    name = "classify"

    def __init__(self, labels: Labels, loss: Mapping[str, Any] | None = None) -> None:
        self.labels = labels
        settings = dict(loss or {})
        if settings.get("name", "cross_entropy") not in ("cross_entropy", "focal"):
            raise PlanError(f"loss.name {settings['name']!r} is for segmentation; classes need cross_entropy or focal")
        self.smoothing = float(settings.get("label_smoothing") or 0.0)
        gamma = settings.get("focal_gamma")
        self.gamma = float(2.0 if gamma is None else gamma) if settings.get("name") == "focal" else 0.0
        weights = settings.get("class_weights")
        if weights is not None and len(weights) != len(labels):
            raise PlanError(f"loss.class_weights has {len(weights)} numbers for {len(labels)} classes")
        self.class_weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)

    def network(self, model: Mapping[str, Any], *, dims: int, inputs: int, size: Sequence[int]) -> nn.Module:
        """The network of section ``model`` of a plan for inputs ``(B, inputs, *size)``."""
        depths = model.get("depths")
        shape = Shape(
            dims=dims,
            inputs=inputs,
            size=tuple(int(s) for s in size),
            width=model.get("width"),
            depths=None if depths is None else tuple(depths),
            stem=str(model.get("stem") or "auto"),
        )
        network = Classifier(
            build_encoder(str(model["name"]), shape), len(self.labels), float(model.get("dropout") or 0.0)
        )
        return narrowed(network, model.get("widths"))

    @property
    def exclusive(self) -> bool:
        """Whether one class holds (soft-max) and not several may (sigmoids)."""
        return not self.labels.multilabel

    def encode(self, targets: NDArray[Any]) -> Tensor:
        """Class indices ``(N,)``, or 0/1 rows ``(N, K)`` of a multi-label question, as soft targets ``(N, K)``."""
        values = torch.as_tensor(np.ascontiguousarray(targets))
        if self.labels.multilabel:
            return values.to(torch.float32)
        return F.one_hot(values.long(), len(self.labels)).to(torch.float32)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits ``(B, K)`` against soft targets ``(B, K)``.

        Cross-entropy (binary per class when multi-label), optionally focal (Lin et al., ICCV 2017), with label
        smoothing (Szegedy et al., CVPR 2016) and class weights.
        """
        logits = logits.float()
        classes = logits.shape[1]
        if self.smoothing:
            uniform = 0.5 if self.labels.multilabel else 1.0 / classes
            target = target * (1 - self.smoothing) + self.smoothing * uniform
        if self.labels.multilabel:
            log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
            if self.gamma:
                log_yes, log_no = log_yes * self._focus(log_no.exp()), log_no * self._focus(log_yes.exp())
            terms = -(target * log_yes + (1 - target) * log_no)
        else:
            log_p = F.log_softmax(logits, dim=1)
            if self.gamma:
                log_p = log_p * self._focus(-torch.expm1(log_p))
            terms = -target * log_p
        if self.class_weights is not None:
            terms = terms * self.class_weights.to(terms.device)
        if self.labels.multilabel:
            return terms.mean()
        return terms.sum(dim=1).mean()

    def _focus(self, doubt: Tensor) -> Tensor:
        """``doubt ** gamma``; a doubt of exactly zero would have an infinite slope where gamma is below 1."""
        return doubt.clamp_min(1e-6) ** self.gamma

    def probabilities(self, logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
        """Logits ``(..., K)`` as probabilities, calibrated by `temperature` (Guo et al., ICML 2017)."""
        z = np.asarray(logits, dtype=np.float64) / temperature
        if self.labels.multilabel:
            return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -60, 60))))
        z = z - z.max(axis=-1, keepdims=True)
        e = np.exp(z)
        return np.asarray(e / e.sum(axis=-1, keepdims=True))

    def average(self, views: NDArray[Any]) -> NDArray[np.float64]:
        """Logits ``(V, N, K)`` of several views or members as one set ``(N, K)``: the mean of log-probabilities."""
        views = np.asarray(views, dtype=np.float64)
        if self.labels.multilabel:
            return np.asarray(views.mean(axis=0))
        return np.asarray((views - _logsumexp(views)).mean(axis=0))


def _logsumexp(z: NDArray[np.float64]) -> NDArray[np.float64]:
    top = z.max(axis=-1, keepdims=True)
    return np.asarray(top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True)))


def class_weights(targets: NDArray[Any], classes: int) -> list[float]:
    """Weights inverse to class frequency with mean 1 over the cases."""
    counts = np.bincount(np.asarray(targets, dtype=np.int64), minlength=classes).astype(np.float64)
    weights = counts.sum() / (classes * np.maximum(counts, 1))
    return [round(float(w), 4) for w in weights]
