"""Where: target, network, loss and decoding of segmentation.

Three kinds of question, told apart by `Labels`: classes of which one holds at each voxel (soft-max), regions that may
overlap (a sigmoid each), and single objects of one class that touch (foreground, inner distance and border of objects).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.core.labels import Labels
from vesalius.models.segmenters import SegmenterShape, build_segmenter
from vesalius.models.widths import narrowed
from vesalius.tasks.segment_loss import SegmentLoss

FOREGROUND, DISTANCE, BORDER = range(3)
"""Outputs of a network for single objects."""

# Parts of a training up to which weights of rare structures hold, and from which they are gone.
_WHOLE, _FADED = 1 / 3, 2 / 3

_DISTANCE_WEIGHT, _BORDER_WEIGHT = 4.0, 1.0
_LOSS_KEYS = (
    "name",
    "ce_weight",
    "dice_weight",
    "batch_dice",
    "tversky_alpha",
    "tversky_beta",
    "topk",
    "boundary_weight",
    "class_weights",
    "positive_weights",
    "label_smoothing",
    "focal_gamma",
)


class Segment:
    """The task object that the training loop and the predictor talk to.

    Parameters
    ----------
    labels
        The classes of the masks.
    loss
        Section ``loss`` of the plan.
    """

    name = "segment"

    def __init__(self, labels: Labels, loss: Mapping[str, Any] | None = None) -> None:
        self.labels = labels
        settings = {key: value for key, value in dict(loss or {}).items() if key in _LOSS_KEYS and value is not None}
        settings.setdefault("name", "dice_ce")
        self.regions = regions_of(labels)
        if labels.instances:
            self.criterion = SegmentLoss({**settings, "class_weights": None, "positive_weights": None}, 1, ((1,),))
        else:
            self.criterion = SegmentLoss(settings, self.outputs, self.regions, labels.ignore)
        self._weights: dict[str, Tensor] = {
            name: weights.clone()
            for name in ("weights", "positive")
            if isinstance(weights := getattr(self.criterion, name), Tensor)
        }

    def at(self, progress: float) -> None:
        """Tell how far training is, from 0 to 1: the weights of rare structures fade from a third to two thirds of it.

        They carry a short training over its first steps; later they would only make structures too large.
        """
        part = float(np.clip((_FADED - progress) / (_FADED - _WHOLE), 0.0, 1.0))
        for name, weights in self._weights.items():
            setattr(self.criterion, name, weights**part)

    @property
    def outputs(self) -> int:
        """Channels of the network's last layer."""
        return 3 if self.labels.instances else len(self.labels)

    @property
    def activation(self) -> str:
        """What turns logits into probabilities."""
        return "sigmoid" if self.labels.multilabel or self.labels.instances else "softmax"

    @property
    def exclusive(self) -> bool:
        """Whether one class holds at each voxel (soft-max) and not several may (sigmoids)."""
        return self.activation == "softmax"

    def network(self, model: Mapping[str, Any], *, dims: int, inputs: int, size: Sequence[int]) -> nn.Module:
        """The network of section ``model`` of a plan for patches of `size`."""
        strides, depths = model.get("strides"), model.get("depths")
        features = model.get("features")
        shape = SegmenterShape(
            dims=dims,
            inputs=inputs,
            outputs=self.outputs,
            patch=tuple(int(side) for side in size),
            strides=None if strides is None else tuple(tuple(int(s) for s in stage) for stage in strides),
            features=None if features is None else tuple(int(f) for f in features),
            depths=None if depths is None else tuple(int(d) for d in depths),
            deep_supervision=bool(model.get("deep_supervision", True)),
            norm=str(model.get("norm") or "instance"),
            activation=str(model.get("activation") or "leaky"),
            dropout=float(model.get("dropout") or 0.0),
            width=model.get("width"),
        )
        return narrowed(build_segmenter(str(model["name"]), shape), model.get("widths"))

    def encode(self, targets: NDArray[Any]) -> Tensor:
        """Label maps ``(B, 1, *S)`` as int64; of single objects ``(B, 3, *S)`` float32."""
        if self.labels.instances:
            return torch.from_numpy(np.ascontiguousarray(targets, dtype=np.float32))
        return torch.from_numpy(np.ascontiguousarray(targets, dtype=np.int64))

    def loss(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The scalar to minimise.

        Of single objects: overlap and cross-entropy of the foreground, squared error of the inner distance and
        weighted cross-entropy of the border between objects.
        """
        if not self.labels.instances:
            loss: Tensor = self.criterion(outputs, target)
            return loss
        levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        weights = np.array([0.5**k for k in range(len(levels))])
        total = levels[0].new_zeros((), dtype=torch.float32)
        for weight, level in zip(weights / weights.sum(), levels, strict=True):
            total = total + float(weight) * self._objects(level, _reduced(target, level.shape[2:]))
        return total

    def _objects(self, logits: Tensor, target: Tensor) -> Tensor:
        inside = (target[:, FOREGROUND : FOREGROUND + 1] > 0.5).long()
        area: Tensor = self.criterion(logits[:, FOREGROUND : FOREGROUND + 1], inside)
        far = (torch.sigmoid(logits[:, DISTANCE].float()) - target[:, DISTANCE]).square().mean()
        wall = F.binary_cross_entropy_with_logits(logits[:, BORDER].float(), target[:, BORDER].clamp(0, 1))
        return area + _DISTANCE_WEIGHT * far + _BORDER_WEIGHT * wall


def regions_of(labels: Labels) -> tuple[tuple[int, ...], ...]:
    """For each output the values of the stored label map it stands for; empty for exclusive classes.

    Structures that overlap freely are stored as bits: structure k is in every value with bit k set.
    """
    if labels.regions or not labels.multilabel:
        return labels.regions
    return tuple(tuple(value for value in range(1 << len(labels)) if value >> bit & 1) for bit in range(len(labels)))


def layers_of(mask: NDArray[Any], labels: Labels) -> NDArray[np.uint8]:
    """A stored label map ``(*S)`` as one layer per structure ``(K, *S)`` for labels that overlap."""
    table = np.zeros((len(labels), int(mask.max(initial=0)) + 1), dtype=np.uint8)
    for structure, values in enumerate(regions_of(labels)):
        table[structure, [value for value in values if value < table.shape[1]]] = 1
    return np.asarray(table[:, mask])


def _reduced(target: Tensor, size: Sequence[int]) -> Tensor:
    return target if target.shape[2:] == tuple(size) else F.interpolate(target, size=tuple(size), mode="nearest-exact")
