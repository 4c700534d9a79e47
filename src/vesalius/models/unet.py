"""U-Nets in two and three dimensions: plain, with residual encoder, and on any encoder of the registry.

Ronneberger et al., U-Net, MICCAI 2015; the plain network follows the proportions of Isensee et al., nnU-Net, Nature
Methods 2021 (strided convolutions down, instance normalisation, leaky ReLU, supervision of the coarser levels), the
residual one those of Isensee et al., nnU-Net Revisited, MICCAI 2024 (ResEnc).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vesalius.models.blocks import AVG_POOL, CONV, NORM, InstanceNorm
from vesalius.models.encoders import Encoder

NORMS = ("batch", "instance")
TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
DROPOUT: dict[int, type[nn.Module]] = {2: nn.Dropout2d, 3: nn.Dropout3d}
LEAK = 0.01
"""Negative slope of the leaky ReLU."""

Axes = tuple[int, ...]


class Segmenter(nn.Module):
    """What every segmentation network promises.

    ``(B, C, *S)`` to logits ``(B, K, *S)``; while training with deep supervision a list of logits, the full resolution
    first and the coarsest last (of length one where a network has a single output).

    Attributes
    ----------
    dims
        Number of spatial axes.
    multiple
        What the side of each axis must be a multiple of.
    deep_supervision
        Whether training mode returns a list.
    cells
        Smallest number of cells of the coarsest level: two where instance normalisation would turn a single cell
        into zero.
    """

    dims: int
    multiple: Axes
    deep_supervision: bool
    cells: int = 1

    def check(self, x: Tensor) -> None:
        """Refuse a tensor of other sides than the network can halve.

        Raises
        ------
        ValueError
            With the sides to pad to.
        """
        # While a graph is recorded the sides are fixed (or symbols that a comparison would freeze).
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if x.ndim != self.dims + 2:
            raise ValueError(
                f"a {self.dims}-D network takes tensors of {self.dims + 2} axes, (B, C, *S), got {tuple(x.shape)}"
            )
        sides = tuple(int(side) for side in x.shape[2:])
        padded = tuple(-(-side // step) * step for side, step in zip(sides, self.multiple, strict=True))
        if padded != sides:
            raise ValueError(f"sides {sides} must be multiples of {self.multiple}; pad to {padded}")
        if math.prod(side // step for side, step in zip(sides, self.multiple, strict=True)) < self.cells:
            larger = (*sides[:-1], sides[-1] * self.cells)
            raise ValueError(f"sides {sides} leave one cell at the coarsest level; pad to {larger}")


@dataclass(frozen=True)
class Style:
    """What all layers of a network share: dimensions, normalisation, activation and dropout of channels."""

    dims: int
    norm: str = "instance"
    activation: str = "leaky"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.dims not in CONV:
            raise ValueError(f"networks exist in 2 and 3 dimensions, got {self.dims}")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}")
        if self.activation not in ("relu", "leaky"):
            raise ValueError(f"activation must be 'relu' or 'leaky', got {self.activation!r}")

    def normalise(self, features: int) -> nn.Module:
        """A normalisation with learned scale and shift."""
        return NORM[self.dims](features) if self.norm == "batch" else InstanceNorm(features)

    def activate(self) -> nn.Module:
        """The activation, in place: what lies under it is never needed again."""
        return nn.ReLU(inplace=True) if self.activation == "relu" else nn.LeakyReLU(LEAK, inplace=True)

    def conv(self, inputs: int, outputs: int, kernel: Axes, stride: Axes | None = None) -> nn.Module:
        """A convolution padded to keep the side (divided by `stride`), without bias: a normalisation follows."""
        padding = tuple((side - 1) // 2 for side in kernel)
        make: Callable[..., nn.Module] = CONV[self.dims]
        return make(inputs, outputs, kernel, stride=stride or 1, padding=padding, bias=False)

    def unit(self, inputs: int, outputs: int, kernel: Axes, stride: Axes | None = None) -> nn.Sequential:
        """Convolution, normalisation, activation."""
        return nn.Sequential(self.conv(inputs, outputs, kernel, stride), self.normalise(outputs), self.activate())

    def drop(self) -> list[nn.Module]:
        """Dropout of whole channels at the end of a stage; nothing where the rate is zero."""
        return [DROPOUT[self.dims](self.dropout)] if self.dropout > 0 else []


def kernels_of(strides: Sequence[Axes]) -> tuple[Axes, ...]:
    """Kernels that fit the strides: 1 along an axis that is still coarser than the others, else 3.

    An axis whose first stride comes later than that of another axis is taken as sampled more coarsely; the stage
    before its first stride is where the axes have become alike (Isensee et al. 2021, section "Network topology").
    An axis without any stride joins at the last stage.
    """
    last = len(strides) - 1
    joined = []
    for axis in range(len(strides[0])):
        first = next((stage for stage, step in enumerate(strides) if step[axis] > 1), last + 1)
        joined.append(max(first - 1, 0))
    return tuple(tuple(3 if stage >= start else 1 for start in joined) for stage in range(last + 1))


def total_strides(strides: Sequence[Axes]) -> tuple[Axes, ...]:
    """The reduction of each stage against the input: the running product."""
    totals = [tuple(strides[0])]
    for step in strides[1:]:
        totals.append(tuple(a * b for a, b in zip(totals[-1], step, strict=True)))
    return tuple(totals)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement after a 1x1 convolution, which then runs on the small map."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: Axes) -> None:
        super().__init__()
        self.stride = tuple(float(step) for step in stride)
        self.mix = CONV[dims](inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *S) -> (B, outputs, *(S * stride))``."""
        return nn.functional.interpolate(self.mix(x), scale_factor=self.stride, mode="nearest")


class ResidualBlock(nn.Module):
    """Two convolutions and a ResNet-D shortcut: average pooling, then 1x1 convolution (He et al., CVPR 2019)."""

    def __init__(self, style: Style, inputs: int, outputs: int, kernel: Axes, stride: Axes) -> None:
        super().__init__()
        self.first = style.unit(inputs, outputs, kernel, stride)
        self.second = nn.Sequential(style.conv(outputs, outputs, kernel), style.normalise(outputs))
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            pool: Callable[..., nn.Module] = AVG_POOL[style.dims]
            shortcut.append(pool(stride, stride))
        if inputs != outputs:
            shortcut += [style.conv(inputs, outputs, (1,) * style.dims), style.normalise(outputs)]
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = style.activate()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *S) -> (B, outputs, *(S / stride))``."""
        # In place: no backward pass needs what a normalisation returned.
        out = self.second(self.first(x))
        out += self.shortcut(x)
        return self.activation(out)


class Decoder(nn.Module):
    """The expanding path: from the coarsest features to logits, one skip per level.

    Parameters
    ----------
    style, outputs
        Layers and number of classes.
    features
        Channels per level, finest first; what the contracting path hands over.
    strides
        Step from each level to the next coarser one, hence one fewer than levels.
    kernels, depths
        Kernel and number of convolutions per level, without the coarsest.
    deep
        Give a head to the coarser levels, except the coarsest of the decoder, which has the least to say
        (its weight is zero in Isensee et al. 2021).
    up
        ``transposed`` convolution, or 1x1 convolution and ``nearest`` neighbour, which has fewer weights but is no
        faster (docs/segment-models.md).
    """

    def __init__(
        self,
        style: Style,
        outputs: int,
        features: Sequence[int],
        strides: Sequence[Axes],
        kernels: Sequence[Axes],
        depths: Sequence[int],
        *,
        deep: bool,
        up: str,
    ) -> None:
        super().__init__()
        levels = len(features) - 1
        self.heads_used = max(1, levels - 1) if deep else 1
        self.up = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.heads = nn.ModuleList()
        for level in range(levels):
            wide = features[level]
            self.up.append(_enlarge(style.dims, features[level + 1], wide, strides[level], up))
            units = [style.unit(wide * 2 if n == 0 else wide, wide, kernels[level]) for n in range(depths[level])]
            self.stages.append(nn.Sequential(*units, *style.drop()))
        for level in range(self.heads_used):
            self.heads.append(CONV[style.dims](features[level], outputs, 1))

    def forward(self, pyramid: list[Tensor], *, coarse: bool) -> list[Tensor]:
        """Features, finest first, to logits, finest first; the finest ones alone without `coarse`.

        The list is emptied on the way, so that in inference each skip is freed once it is used.
        """
        x = pyramid.pop()
        logits = []
        wanted = self.heads_used if coarse else 1
        for level in range(len(self.stages) - 1, -1, -1):
            x = self.stages[level](torch.cat([self.up[level](x), pyramid.pop()], dim=1))
            if level < wanted:
                logits.append(self.heads[level](x))
        if not self.stages:
            logits.append(self.heads[0](x))
        return logits[::-1]


def _enlarge(dims: int, inputs: int, outputs: int, stride: Axes, kind: str) -> nn.Module:
    if kind == "nearest":
        return Upsample(dims, inputs, outputs, stride)
    if kind == "transposed":
        return TRANSPOSED[dims](inputs, outputs, stride, stride=stride, bias=False)
    raise ValueError(f"up must be 'transposed' or 'nearest', got {kind!r}")


class UNet(Segmenter):
    """Contracting path, expanding path, skips by concatenation.

    Parameters
    ----------
    style
        Layers; see `Style`.
    inputs, outputs
        Channels and classes.
    strides
        One per stage, the first all ones.
    features, depths
        Channels and number of convolutions (or residual blocks) per stage.
    residual
        Residual encoder: a convolution as stem, then `depths` residual blocks per stage.
    decoder_depths
        Convolutions per level of the expanding path; by default those of the encoder (plain) or one (residual).
    kernels
        Kernel per stage; derived from the strides by `kernels_of` where missing.
    """

    def __init__(
        self,
        style: Style,
        inputs: int,
        outputs: int,
        *,
        strides: Sequence[Axes],
        features: Sequence[int],
        depths: Sequence[int],
        residual: bool = False,
        decoder_depths: Sequence[int] | None = None,
        kernels: Sequence[Axes] | None = None,
        deep_supervision: bool = True,
        up: str = "transposed",
    ) -> None:
        super().__init__()
        kernels = kernels_of(strides) if kernels is None else kernels
        _same_length(strides=strides, features=features, depths=depths, kernels=kernels)
        if max(strides[0]) > 1:
            raise ValueError(f"the first stride must be all ones, got {tuple(strides[0])}")
        self.dims = style.dims
        self.multiple = total_strides(strides)[-1]
        self.deep_supervision = deep_supervision
        self.cells = 2 if style.norm == "instance" else 1
        self.stem = style.unit(inputs, features[0], kernels[0]) if residual else nn.Identity()
        self.encoder = nn.ModuleList()
        before = features[0] if residual else inputs
        for wide, depth, stride, kernel in zip(features, depths, strides, kernels, strict=True):
            self.encoder.append(_stage(style, before, wide, depth, tuple(kernel), tuple(stride), residual))
            before = wide
        if decoder_depths is None:
            decoder_depths = (1,) * (len(features) - 1) if residual else depths[:-1]
        self.decoder = Decoder(
            style,
            outputs,
            features,
            [tuple(stride) for stride in strides[1:]],
            [tuple(kernel) for kernel in kernels[:-1]],
            decoder_depths,
            deep=deep_supervision,
            up=up,
        )
        start_segmenter(self, style.activation)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, *S)`` to logits ``(B, K, *S)``, or a list of them while training; see `Segmenter`."""
        self.check(x)
        x = self.stem(x)
        pyramid = []
        for stage in self.encoder:
            x = stage(x)
            pyramid.append(x)
        coarse = self.training and self.deep_supervision
        logits = self.decoder(pyramid, coarse=coarse)
        return logits if coarse else logits[0]


def _stage(
    style: Style, inputs: int, outputs: int, depth: int, kernel: Axes, stride: Axes, residual: bool
) -> nn.Sequential:
    parts: list[nn.Module] = []
    for place in range(depth):
        source, step = (inputs, stride) if place == 0 else (outputs, (1,) * style.dims)
        if residual:
            parts.append(ResidualBlock(style, source, outputs, kernel, step))
        else:
            parts.append(style.unit(source, outputs, kernel, step))
    return nn.Sequential(*parts, *style.drop())


class EncoderUNet(Segmenter):
    """A U-Net whose contracting path is an encoder of `models.factory`.

    Where the encoder starts below full resolution, a convolution of the image itself gives the finest skip, so that
    borders are not drawn from features of half the resolution. `width` is its number of channels, `depth` the number of
    convolutions per level of the expanding path.
    """

    def __init__(
        self,
        style: Style,
        body: Encoder,
        inputs: int,
        outputs: int,
        *,
        width: int,
        depth: int = 1,
        deep_supervision: bool = True,
        up: str = "transposed",
    ) -> None:
        super().__init__()
        self.dims = style.dims
        self.deep_supervision = deep_supervision
        self.cells = 2 if style.norm == "instance" else 1
        channels, reductions = list(body.skip_channels), list(body.skip_strides)
        kernel = (3,) * style.dims
        self.full: nn.Module | None = None
        if reductions[0] > 1:
            self.full = style.unit(inputs, width, kernel)
            channels, reductions = [width, *channels], [1, *reductions]
        self.multiple = (reductions[-1],) * style.dims
        steps = [(coarse // fine,) * style.dims for fine, coarse in pairwise(reductions)]
        levels = len(steps)
        self.decoder = Decoder(
            style, outputs, channels, steps, [kernel] * levels, [depth] * levels, deep=deep_supervision, up=up
        )
        start_segmenter(self, style.activation)
        # Added after the start above: an encoder brings its own start, or weights that were trained.
        renormalise(body, style)
        self.body = body

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, *S)`` to logits ``(B, K, *S)``, or a list of them while training; see `Segmenter`."""
        self.check(x)
        pyramid = self.body.skips(x)
        if self.full is not None:
            pyramid = [self.full(x), *pyramid]
        coarse = self.training and self.deep_supervision
        logits = self.decoder(pyramid, coarse=coarse)
        return logits if coarse else logits[0]


def renormalise(network: nn.Module, style: Style) -> None:
    """Replace batch normalisation by that of `style`, in place, keeping scale and shift.

    Batches of two volumes, as memory allows, give batch statistics too noisy to train with.
    """
    if style.norm == "batch":
        return
    for part in list(network.modules()):
        for name, child in part.named_children():
            if isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
                fresh = style.normalise(child.num_features)
                fresh.weight, fresh.bias = child.weight, child.bias
                setattr(part, name, fresh)


def start_segmenter(network: nn.Module, activation: str) -> None:
    """He initialisation for the activation in use (He et al., ICCV 2015); heads start near zero.

    Small heads make the first prediction of every level nearly uniform, so that no level dominates the first steps.
    """
    for part in network.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            # A transposed convolution whose kernel equals its stride reads each input channel once per output cell.
            fan = part.in_channels * (1 if isinstance(part, _TRANSPOSED_KINDS) else math.prod(part.kernel_size))
            gain = math.sqrt(2 / (1 + (0 if activation == "relu" else LEAK) ** 2))
            nn.init.normal_(part.weight, std=gain / math.sqrt(fan))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in network.modules():
        if isinstance(part, Decoder):
            for head in part.heads:
                nn.init.normal_(head.weight, std=0.01)  # type: ignore[arg-type]


_TRANSPOSED_KINDS = (nn.ConvTranspose2d, nn.ConvTranspose3d)


def _same_length(**parts: Sequence[object]) -> None:
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise ValueError(f"one entry per stage is needed, got {told}")
