"""The registry: every network by name, each with its card.

A builder is registered explicitly; nothing walks folders or looks names up in modules. A new network is one builder
here (or in a file that this one imports) and then is tested by being registered.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vesalius.core.errors import PlanError
from vesalius.models.encoders import ConvNet, Encoder, ResNet


@dataclass(frozen=True)
class ModelCard:
    """What a person should know before choosing a network."""

    name: str
    summary: str
    source: str
    licence: str = "Apache-2.0 (definition); no pretrained weights"
    dims: tuple[int, ...] = (2, 3)


@dataclass(frozen=True)
class Shape:
    """What a builder is told: dimensions, input channels, the size it will see and the person's wishes."""

    dims: int
    inputs: int
    size: tuple[int, ...]
    width: int | None = None
    depths: tuple[int, ...] | None = None
    stem: str = "auto"


Builder = Callable[[Shape], Encoder]
_REGISTRY: dict[str, tuple[Builder, ModelCard]] = {}


def encoder(card: ModelCard) -> Callable[[Builder], Builder]:
    """Register a builder under ``card.name``; a second builder of the same name is refused."""

    def keep(builder: Builder) -> Builder:
        if card.name in _REGISTRY:
            raise ValueError(f"network {card.name!r} is registered twice")
        _REGISTRY[card.name] = (builder, card)
        return builder

    return keep


def names() -> list[str]:
    """Names of all registered networks."""
    return sorted(_REGISTRY)


def card(name: str) -> ModelCard:
    """The card of a network."""
    return _entry(name)[1]


def build_encoder(name: str, shape: Shape) -> Encoder:
    """A freshly initialised encoder.

    Raises
    ------
    PlanError
        If no network has that name (the nearest are given) or it does not exist in that many dimensions.
    """
    builder, about = _entry(name)
    if shape.dims not in about.dims:
        raise PlanError(f"model.name {name!r} exists in {about.dims} dimensions only, the images have {shape.dims}")
    return builder(shape)


class Classifier(nn.Module):
    """An encoder and its head: ``(B, C, *S)`` to logits ``(B, classes)``."""

    def __init__(self, body: Encoder, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = body
        self.head = body.head(classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits; probabilities are the business of the task."""
        return self.head(self.body(x)[-1])


def _entry(name: str) -> tuple[Builder, ModelCard]:
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, names(), n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
        raise PlanError(f"model.name {name!r} is not in the registry; {hint}")
    return _REGISTRY[name]


def stem_for(size: Sequence[int], wish: str = "auto") -> str:
    """The stem that suits a size: small pictures stay whole, small volumes are halved, the rest is reduced by 4.

    A volume of 28 voxels a side costs as much as a picture of 148 pixels; at full resolution most of it would be spent
    in the first two layers.
    """
    if wish != "auto":
        return wish
    if min(size) >= 64:
        return "patch"
    return "small" if len(size) == 2 else "half"


@encoder(
    ModelCard(
        "convnet",
        "Two 5x5 convolutions with max pooling, 256-120-84-classes on 28x28: the classic to compare with.",
        "LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 1998",
    )
)
def _convnet(shape: Shape) -> Encoder:
    if min(shape.size) < 16:
        raise PlanError(f"model convnet needs images of at least 16 pixels a side, got {shape.size}; choose lean")
    return ConvNet(shape.dims, shape.inputs, width=shape.width or 6)


@encoder(
    ModelCard(
        "lean",
        "One residual block per resolution with channel gates: the default, scaled to data and budget.",
        "Residual blocks of He et al. 2016 with ResNet-D shortcuts and squeeze-excitation (Hu et al. 2018)",
    )
)
def _lean(shape: Shape) -> Encoder:
    stem = stem_for(shape.size, shape.stem)
    side = min(shape.size) // {"small": 1, "half": 2}.get(stem, 4)
    levels = 1
    # Down to a map of about 4 to 8 cells a side, beyond which position is lost.
    while side > (8 if shape.dims == 2 else 6) and levels < 4:
        side, levels = -(-side // 2), levels + 1
    width = shape.width or (32 if shape.dims == 2 else 16)
    return ResNet(shape.dims, shape.inputs, depths=shape.depths or (1,) * levels, width=width, stem=stem, excite=True)


def _register_resnets() -> None:
    family = {
        "resnet18": ((2, 2, 2, 2), False),
        "resnet34": ((3, 4, 6, 3), False),
        "resnet50": ((3, 4, 6, 3), True),
        "resnet101": ((3, 4, 23, 3), True),
    }
    for name, (depths, bottleneck) in family.items():
        about = ModelCard(
            name,
            f"ResNet of {name[6:]} layers with ResNet-D shortcuts.",
            "He et al., Deep residual learning for image recognition, CVPR 2016",
        )
        encoder(about)(_resnet_builder(depths, bottleneck))


def _resnet_builder(depths: tuple[int, ...], bottleneck: bool) -> Builder:
    def build(shape: Shape) -> Encoder:
        stem = shape.stem if shape.stem != "auto" else ("small" if min(shape.size) < 64 else "large")
        return ResNet(
            shape.dims,
            shape.inputs,
            depths=shape.depths or depths,
            width=shape.width or 64,
            bottleneck=bottleneck,
            stem=stem,
        )

    return build


_register_resnets()
