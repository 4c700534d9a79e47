"""The registry of segmentation networks: every one by name, each with its card.

Names with a colon set a network on an encoder of `models.factory`: ``unet:resnet18``, ``deeplabv3plus:lean``.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vesalius.core.errors import PlanError
from vesalius.models import factory, monai_nets
from vesalius.models.deeplab import DeepLab
from vesalius.models.encoders import ResNet
from vesalius.models.unet import Axes, EncoderUNet, Segmenter, Style, UNet

RESIDUAL_DEPTHS = (1, 3, 4, 6, 6, 6, 6, 6)
"""Residual blocks per stage of ResEnc (Isensee et al., MICCAI 2024)."""


@dataclass(frozen=True)
class SegmenterShape:
    """What a builder is told.

    Parameters
    ----------
    dims, inputs, outputs
        Spatial axes (2 or 3), channels of the image, classes with background.
    patch
        Sides that the network will see, (z, y, x) or (y, x).
    strides
        One per stage, the first all ones; derived from the patch where missing.
    features
        Channels per stage; where missing doubled from `width` up to 320 (3-D) or 512 (2-D).
    depths
        Convolutions or residual blocks per stage.
    deep_supervision
        Return logits of coarser levels too while training.
    norm, activation
        ``instance`` or ``batch``; ``leaky`` or ``relu``. Networks on an encoder use ReLU throughout.
    dropout
        Rate at which whole channels are dropped at the end of each stage.
    width
        Channels of the first stage.
    kernels
        Kernel per stage; derived from the strides where missing.
    up
        ``transposed`` or ``nearest``; see `models.unet.Decoder`.
    """

    dims: int
    inputs: int
    outputs: int
    patch: Axes
    strides: tuple[Axes, ...] | None = None
    features: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    deep_supervision: bool = True
    norm: str = "instance"
    activation: str = "leaky"
    dropout: float = 0.0
    width: int | None = None
    kernels: tuple[Axes, ...] | None = None
    up: str = "transposed"

    def __post_init__(self) -> None:
        if len(self.patch) != self.dims:
            raise ValueError(f"a patch in {self.dims} dimensions has {self.dims} sides, got {self.patch}")
        if self.inputs < 1 or self.outputs < 1:
            raise ValueError(f"a network needs inputs and outputs, got {self.inputs} and {self.outputs}")


@dataclass(frozen=True)
class SegmenterCard:
    """What a person should know before choosing a network.

    `settings` are the optional fields of `SegmenterShape` that it follows; the others of strides, features, depths,
    width and kernels are refused, as its design fixes them.
    """

    name: str
    summary: str
    source: str
    settings: frozenset[str] = frozenset()
    licence: str = "Apache-2.0 (definition); no pretrained weights"
    dims: tuple[int, ...] = (2, 3)


Builder = Callable[[SegmenterShape, str | None], Segmenter]
_REGISTRY: dict[str, tuple[Builder, SegmenterCard]] = {}
_OPTIONAL = ("strides", "features", "depths", "width", "kernels")


def segmenter(card: SegmenterCard) -> Callable[[Builder], Builder]:
    """Register a builder under ``card.name``; a second builder of the same name is refused.

    A name that ends in ``:*`` stands for one network per encoder; the builder gets the name of the encoder.
    """

    def keep(builder: Builder) -> Builder:
        if card.name in _REGISTRY:
            raise ValueError(f"segmentation network {card.name!r} is registered twice")
        _REGISTRY[card.name] = (builder, card)
        return builder

    return keep


def segmenter_names() -> list[str]:
    """All names that `build_segmenter` knows, those on an encoder written out."""
    found = []
    for name in _REGISTRY:
        found += [name] if not name.endswith(":*") else [f"{name[:-1]}{body}" for body in _bodies()]
    return sorted(found)


def segmenter_card(name: str) -> SegmenterCard:
    """The card of a network."""
    _, card, body = _entry(name)
    if body is None:
        return card
    about = factory.card(body)
    return replace(card, name=name, summary=f"{card.summary} Encoder: {about.summary}", dims=about.dims)


def build_segmenter(name: str, shape: SegmenterShape) -> Segmenter:
    """A freshly initialised network.

    Raises
    ------
    PlanError
        If no network has that name (the nearest are given), if it does not exist in that many dimensions, or if a
        setting is given that its design fixes or that contradicts another one.
    """
    builder, _, body = _entry(name)
    card = segmenter_card(name)
    if shape.dims not in card.dims:
        raise PlanError(f"model.name {name!r} exists in {card.dims} dimensions only, the images have {shape.dims}")
    for setting in _OPTIONAL:
        if getattr(shape, setting) is not None and setting not in card.settings:
            takes = f"it takes {', '.join(sorted(card.settings))}" if card.settings else "it takes none"
            raise PlanError(f"model.{setting} cannot be set for {name!r}, whose design fixes it; {takes}")
    _check_stages(shape)
    return builder(shape, body)


def _check_stages(shape: SegmenterShape) -> None:
    """One entry per stage, one number per axis: these come from a plan that a person may have edited."""
    for setting, rows in (("strides", shape.strides), ("kernels", shape.kernels)):
        for row in rows or ():
            if len(row) != shape.dims or min(row) < 1:
                raise PlanError(f"model.{setting}: expected {shape.dims} positive numbers per stage, found {row}")
    if shape.strides is not None and (not shape.strides or max(shape.strides[0]) > 1):
        raise PlanError(f"model.strides must start with a stage of ones, found {shape.strides[:1]}")
    for row in shape.kernels or ():
        if any(side % 2 == 0 for side in row):
            raise PlanError(f"model.kernels must be odd, found {row}")
    width = 1 if shape.width is None else shape.width
    if min((*(shape.features or (1,)), *(shape.depths or (1,)), width)) < 1:
        raise PlanError("model.features, model.depths and model.width must be positive")


def _check_lengths(shape: SegmenterShape, stages: int) -> None:
    for setting in ("features", "depths", "kernels"):
        given = getattr(shape, setting)
        if given is not None and len(given) != stages:
            raise PlanError(f"model.{setting} has {len(given)} entries, model.strides has {stages} stages")


def _entry(name: str) -> tuple[Builder, SegmenterCard, str | None]:
    if name in _REGISTRY and not name.endswith(":*"):
        return (*_REGISTRY[name], None)
    family, _, body = name.partition(":")
    if f"{family}:*" in _REGISTRY and body in _bodies():
        return (*_REGISTRY[f"{family}:*"], body)
    near = difflib.get_close_matches(name, segmenter_names(), n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(segmenter_names())}"
    raise PlanError(f"model.name {name!r} is not in the registry of segmentation networks; {hint}")


def _bodies() -> list[str]:
    """Encoders with a pyramid; the convolutions of the classic one are not padded, its maps fit no image."""
    return [name for name in factory.names() if name != "convnet"]


def strides_for(
    patch: Sequence[int],
    spacing: Sequence[float] | None = None,
    *,
    smallest: int = 4,
    stages: int = 6,
    exact: bool = False,
) -> tuple[Axes, ...]:
    """One stride per stage: axes are halved while `smallest` cells are left, in at most `stages` stages.

    An axis whose voxels are at least twice as long as the finest of those that can still be halved waits (Isensee et
    al. 2021).

    Parameters
    ----------
    spacing
        mm per axis; None for equal steps.
    exact
        Only sides that divide evenly are halved.
    """
    sides, steps = [int(side) for side in patch], [float(step) for step in spacing or (1.0,) * len(patch)]
    found: list[Axes] = [(1,) * len(sides)]
    while len(found) < stages:
        can = [side >= 2 * smallest and not (exact and side % 2) for side in sides]
        if not any(can):
            break
        finest = min(step for step, one in zip(steps, can, strict=True) if one)
        stride = tuple(2 if one and step < 2 * finest else 1 for one, step in zip(can, steps, strict=True))
        found.append(stride)
        sides = [-(-side // by) for side, by in zip(sides, stride, strict=True)]
        steps = [step * by for step, by in zip(steps, stride, strict=True)]
    return tuple(found)


def features_for(shape: SegmenterShape, stages: int) -> tuple[int, ...]:
    """Channels per stage: `width` doubled at every stage up to 320 in 3-D, 512 in 2-D (Isensee et al. 2021)."""
    most = 320 if shape.dims == 3 else 512
    return shape.features or tuple(min((shape.width or 32) * 2**stage, most) for stage in range(stages))


def style_of(shape: SegmenterShape) -> Style:
    """The layers that a shape asks for."""
    return Style(shape.dims, shape.norm, shape.activation, shape.dropout)


_TOPOLOGY = frozenset({"strides", "features", "depths", "width", "kernels"})


@segmenter(
    SegmenterCard(
        "unet",
        "Plain U-Net: two convolutions per stage, strided convolutions down; the default.",
        "Ronneberger et al., MICCAI 2015; proportions of Isensee et al., nnU-Net, Nature Methods 2021",
        _TOPOLOGY,
    )
)
def _unet(shape: SegmenterShape, body: str | None = None) -> Segmenter:
    return _plain(shape, residual=False)


@segmenter(
    SegmenterCard(
        "resunet",
        "U-Net with a residual encoder of many blocks and a light decoder: about twice the work of unet.",
        "Isensee et al., nnU-Net Revisited, MICCAI 2024 (ResEnc)",
        _TOPOLOGY,
    )
)
def _resunet(shape: SegmenterShape, body: str | None = None) -> Segmenter:
    return _plain(shape, residual=True)


def _plain(shape: SegmenterShape, *, residual: bool) -> Segmenter:
    strides = shape.strides or strides_for(shape.patch)
    stages = len(strides)
    _check_lengths(shape, stages)
    usual = (*RESIDUAL_DEPTHS, *([6] * stages))[:stages] if residual else (2,) * stages
    return UNet(
        style_of(shape),
        shape.inputs,
        shape.outputs,
        strides=strides,
        features=features_for(shape, stages),
        depths=shape.depths or usual,
        residual=residual,
        kernels=shape.kernels,
        deep_supervision=shape.deep_supervision,
        up=shape.up,
    )


@segmenter(
    SegmenterCard(
        "unet:*",
        "U-Net on an encoder of the classification registry.",
        "Ronneberger et al., MICCAI 2015; the encoder's own source",
        frozenset({"width", "depths"}),
    )
)
def _encoder_unet(shape: SegmenterShape, body: str | None = None) -> Segmenter:
    encoder = factory.build_encoder(str(body), encoder_shape(shape))
    style = replace(style_of(shape), activation="relu")
    return EncoderUNet(
        style,
        encoder,
        shape.inputs,
        shape.outputs,
        width=max(8, encoder.skip_channels[0] // 2),
        deep_supervision=shape.deep_supervision,
        up=shape.up,
    )


def encoder_shape(shape: SegmenterShape) -> factory.Shape:
    """What the builder of an encoder is told.

    Small volumes get the stem that halves them: at full resolution the first stage alone would cost more than all the
    others, and the decoder has a skip of full resolution anyway.
    """
    stem = "half" if shape.dims == 3 and min(shape.patch) < 64 else "auto"
    return factory.Shape(shape.dims, shape.inputs, shape.patch, shape.width, shape.depths, stem)


@segmenter(
    SegmenterCard(
        "deeplabv3plus:*",
        "Atrous spatial pyramid on an encoder of the classification registry; smooth borders, few small structures.",
        "Chen et al., Encoder-decoder with atrous separable convolution, ECCV 2018; the encoder's own source",
        frozenset({"width", "depths"}),
    )
)
def _deeplab_on(shape: SegmenterShape, body: str | None = None) -> Segmenter:
    encoder = factory.build_encoder(str(body), encoder_shape(shape))
    if not isinstance(encoder, ResNet):
        raise PlanError(f"model.name 'deeplabv3plus:{body}': the encoder has no stages to dilate; choose a ResNet")
    style = replace(style_of(shape), activation="relu")
    return DeepLab(style, encoder, shape.outputs, shape.patch, deep_supervision=shape.deep_supervision)


@segmenter(
    SegmenterCard(
        "deeplabv3plus",
        "Atrous spatial pyramid on resnet18; smooth borders, few small structures.",
        "Chen et al., Encoder-decoder with atrous separable convolution, ECCV 2018",
        frozenset({"width", "depths"}),
    )
)
def _deeplab(shape: SegmenterShape, body: str | None = None) -> Segmenter:
    return _deeplab_on(shape, "resnet18")


@segmenter(
    SegmenterCard(
        "dynunet",
        "MONAI's DynUNet, for comparison with unet and for weights trained there.",
        "Isensee et al., nnU-Net, Nature Methods 2021; MONAI",
        frozenset({"strides", "features", "width", "kernels"}),
    )
)
def _dynunet(shape: SegmenterShape, body: str | None = None) -> Segmenter:
    strides = shape.strides or strides_for(shape.patch)
    _check_lengths(shape, len(strides))
    return monai_nets.dynunet(
        style_of(shape),
        shape.inputs,
        shape.outputs,
        strides=strides,
        features=features_for(shape, len(strides)),
        kernels=shape.kernels,
        deep_supervision=shape.deep_supervision,
    )


@segmenter(
    SegmenterCard(
        "segresnet",
        "MONAI's SegResNet: residual blocks before normalisation in groups, linear enlargement.",
        "Myronenko, 3D MRI brain tumor segmentation using autoencoder regularization, BrainLes 2018; MONAI",
        frozenset({"width", "depths"}),
    )
)
def _segresnet(shape: SegmenterShape, body: str | None = None) -> Segmenter:
    return monai_nets.segresnet(
        style_of(shape),
        shape.inputs,
        shape.outputs,
        width=shape.width or 16,
        depths=shape.depths or (1, 2, 2, 4),
        deep_supervision=shape.deep_supervision,
    )


@segmenter(
    SegmenterCard(
        "swinunetr",
        "MONAI's Swin UNETR: attention in shifted windows; slow on a processor, for large data sets and a GPU.",
        "Hatamizadeh et al., Swin UNETR, BrainLes 2021; MONAI",
        frozenset({"width"}),
    )
)
def _swinunetr(shape: SegmenterShape, body: str | None = None) -> Segmenter:
    return monai_nets.swinunetr(
        style_of(shape),
        shape.inputs,
        shape.outputs,
        width=shape.width or 24,
        deep_supervision=shape.deep_supervision,
    )


def segmenter_multiple(name: str, shape: SegmenterShape) -> Axes:
    """What the sides must be multiples of, found without memory for weights; for a planner that rounds a patch."""
    with torch.device("meta"):
        return build_segmenter(name, shape).multiple


def parameter_count(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(value.numel() for value in network.parameters() if value.requires_grad)


def activation_values(network: nn.Module, inputs: int, patch: Axes) -> int:
    """Number of values kept for the backward pass, per sample; weights are not among them.

    Counted on a copy without memory (device ``meta``) in training mode, by what autograd saves: a tensor that several
    operations keep counts once, an activation in place does not count twice. What the loss keeps comes on top.

    Parameters
    ----------
    inputs, patch
        Channels and sides of the image.
    """
    ghost = copy.deepcopy(network).to("meta").train()
    weights = {_storage(value) for value in (*ghost.parameters(), *ghost.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        if _storage(value) not in weights:
            # The tensor is held so that its address is not given to another one.
            kept[_storage(value)] = value
        return value

    # Two samples: batch statistics of one sample need not exist.
    batch = 2
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        ghost(torch.empty(batch, inputs, *patch, device="meta"))
    return sum(value.untyped_storage().nbytes() // value.element_size() for value in kept.values()) // batch


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """A copy for inference, in evaluation mode, with batch normalisation folded into the convolution before it.

    Exact up to rounding. Only pairs that follow each other in an ``nn.Sequential`` are folded, which are all of them
    in our networks; other modules and other normalisations stay as they are. The copy is not meant for training.
    """
    folded = copy.deepcopy(network).eval()
    for part in folded.modules():
        if not isinstance(part, nn.Sequential):
            continue
        for (_, first), (after, second) in pairwise(list(part.named_children())):
            if not (isinstance(first, _CONVOLUTIONS) and isinstance(second, _BATCHNORMS)):
                continue
            if second.running_mean is not None and second.running_var is not None:
                transposed = isinstance(first, (nn.ConvTranspose2d, nn.ConvTranspose3d))
                weight, bias = fuse_conv_bn_weights(
                    first.weight,
                    first.bias,
                    second.running_mean,
                    second.running_var,
                    second.eps,
                    second.weight,
                    second.bias,
                    transpose=transposed,
                )
                first.weight, first.bias = weight, bias
                setattr(part, after, nn.Identity())
    return folded


_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCHNORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
