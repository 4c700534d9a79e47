"""Encoders: ``(B, C, *S)`` to a feature pyramid, in two and three dimensions from one definition.

An encoder has ``channels`` (one number per level), ``strides`` (the total reduction of each level) and returns a list
of features, finest first, so that a classifier takes the last one and a U-Net takes them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vesalius.models.blocks import ADAPTIVE_AVG_POOL, CONV, MAX_POOL, BasicBlock, Bottleneck, ConvNormAct
from vesalius.models.blocks import start_weights as _start


class Encoder(nn.Module):
    """What every encoder promises."""

    dims: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(B, C, *S)`` to features ``(B, channels[i], *ceil(S / strides[i]))``."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    @property
    def skip_channels(self) -> tuple[int, ...]:
        """Channels of `skips`."""
        return self.channels

    @property
    def skip_strides(self) -> tuple[int, ...]:
        """Reductions of `skips`."""
        return self.strides

    def skips(self, x: Tensor) -> list[Tensor]:
        """What a decoder can use: the features of `forward`, and before them finer ones from within the stem."""
        return self(x)

    def head(self, classes: int, dropout: float) -> nn.Module:
        """The last layers of a classifier on this encoder: features of the coarsest level to logits."""
        return PooledHead(self.channels[-1], classes, dropout)


class PooledHead(nn.Module):
    """Mean and maximum over space, dropout, one linear layer.

    The mean answers for what is spread out, the maximum for a small finding that a mean would drown.
    """

    def __init__(self, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, features, *S) -> (B, classes)``."""
        space = tuple(range(2, x.ndim))
        return self.linear(self.dropout(torch.cat([x.mean(dim=space), x.amax(dim=space)], dim=1)))


class ConvNet(Encoder):
    """Two 5x5 convolutions with max pooling, after LeNet-5 (LeCun et al. 1998).

    On 28x28 the features are 16 x 4 x 4 = 256, followed by layers of 256-120-84-classes. Other sizes are averaged to
    four cells per side before the linear layers.
    """

    def __init__(self, dims: int, inputs: int, *, width: int = 6) -> None:
        super().__init__()
        self.dims = dims
        wide = round(width * 16 / 6)
        self.channels = (width, wide)
        self.strides = (2, 4)
        pool = MAX_POOL[dims]
        self.first = nn.Sequential(CONV[dims](inputs, width, 5), nn.ReLU(inplace=True), pool(2))
        self.second = nn.Sequential(CONV[dims](width, wide, 5), nn.ReLU(inplace=True), pool(2))
        _start(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The convolutions are not padded, so sides are ``(S - 4) / 2`` and ``((S - 4) / 2 - 4) / 2``."""
        fine = self.first(x)
        return [fine, self.second(fine)]

    def head(self, classes: int, dropout: float) -> nn.Module:
        """256-120-84-classes."""
        flat = self.channels[-1] * 4**self.dims
        layers = nn.Sequential(
            ADAPTIVE_AVG_POOL[self.dims](4),
            nn.Flatten(),
            nn.Linear(flat, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(84, classes),
        )
        _start(layers)
        return layers


class ResNet(Encoder):
    """The ResNet family (He et al., CVPR 2016) with ResNet-D shortcuts.

    Parameters
    ----------
    stem
        ``large``: 7x7 stride 2 and max pooling (reduction 4); ``patch``: two strided 3x3 convolutions (reduction 4);
        ``half``: one strided 3x3 convolution (reduction 2);
        ``small``: one 3x3 convolution at full resolution, for images of a few dozen pixels.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        *,
        depths: Sequence[int],
        width: int = 64,
        bottleneck: bool = False,
        stem: str = "large",
        excite: bool = False,
    ) -> None:
        super().__init__()
        self.dims = dims
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck if bottleneck else BasicBlock
        self.stem, stride = _stem(dims, inputs, width, stem)
        stages: list[nn.Module] = []
        channels: list[int] = []
        strides: list[int] = []
        features = width
        for level, depth in enumerate(depths):
            step = 1 if level == 0 else 2
            stride *= step
            wide = width * 2**level
            blocks: list[nn.Module] = []
            for place in range(depth):
                blocks.append(block(dims, features, wide, step if place == 0 else 1, excite=excite))
                features = wide * block.expansion
            stages.append(nn.Sequential(*blocks))
            channels.append(features)
            strides.append(stride)
        self.stages = nn.ModuleList(stages)
        self.channels, self.strides = tuple(channels), tuple(strides)
        # A stem of two layers passes half the resolution on its way to a quarter.
        self.fine = {"patch": width // 2, "large": width}.get(stem)
        _start_residual(self)

    @property
    def skip_channels(self) -> tuple[int, ...]:
        """Channels of `skips`."""
        return self.channels if self.fine is None else (self.fine, *self.channels)

    @property
    def skip_strides(self) -> tuple[int, ...]:
        """Reductions of `skips`."""
        return self.strides if self.fine is None else (2, *self.strides)

    def skips(self, x: Tensor) -> list[Tensor]:
        """Features of every stage, finest first, preceded by those of half the resolution where the stem makes them."""
        if self.fine is None:
            return self(x)
        first, second = self.stem.children()
        half = first(x)
        pyramid = [half]
        x = second(half)
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of every stage, finest first."""
        x = self.stem(x)
        pyramid = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid


def _stem(dims: int, inputs: int, width: int, kind: str) -> tuple[nn.Module, int]:
    if kind == "small":
        return ConvNormAct(dims, inputs, width), 1
    if kind == "half":
        return ConvNormAct(dims, inputs, width, stride=2), 2
    if kind == "patch":
        return nn.Sequential(
            ConvNormAct(dims, inputs, width // 2, stride=2), ConvNormAct(dims, width // 2, width, stride=2)
        ), 4
    return nn.Sequential(ConvNormAct(dims, inputs, width, kernel=7, stride=2), MAX_POOL[dims](3, 2, padding=1)), 4


def _start_residual(net: nn.Module) -> None:
    _start(net)
    for part in net.modules():
        if isinstance(part, BasicBlock):
            nn.init.zeros_(part.second[1].weight)  # type: ignore[arg-type]
        elif isinstance(part, Bottleneck):
            nn.init.zeros_(part.third[1].weight)  # type: ignore[arg-type]
