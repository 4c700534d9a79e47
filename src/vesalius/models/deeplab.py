"""DeepLabv3+ on any encoder, in two and three dimensions (Chen et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vesalius.models.blocks import CONV
from vesalius.models.encoders import ResNet
from vesalius.models.unet import Axes, Segmenter, Style, renormalise, start_segmenter

RATES = (6, 12, 18)
"""Atrous rates of the paper, for a map of `PAPER_CELLS` cells a side (513 pixels at an output stride of 16)."""
PAPER_CELLS = 33
OUTPUT_STRIDE = {2: 16, 3: 8}
"""Reduction at which the pyramid stands. Patches of volumes are small: at 16 too few cells would remain."""


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: the same map seen at several rates, and its mean."""

    def __init__(self, style: Style, inputs: int, outputs: int, rates: Sequence[int]) -> None:
        super().__init__()
        point = (1,) * style.dims
        self.point = style.unit(inputs, outputs, point)
        self.atrous = nn.ModuleList()
        for rate in rates:
            unit = style.unit(inputs, outputs, (3,) * style.dims)
            dilate(unit, rate)
            self.atrous.append(unit)
        # Without normalisation: one cell per channel has no variance, and a batch of one has none either.
        self.mean = nn.Sequential(CONV[style.dims](inputs, outputs, 1), style.activate())
        self.mix = nn.Sequential(style.unit(outputs * (len(rates) + 2), outputs, point), *style.drop())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *S) -> (B, outputs, *S)``."""
        whole = self.mean(x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.mix(torch.cat([self.point(x), *(branch(x) for branch in self.atrous), whole], dim=1))


class DeepLab(Segmenter):
    """Encoder with atrous last stages, spatial pyramid, and a decoder with one skip.

    The stages of `body` below the output stride keep their resolution: strides become rates, weights stay what they
    were. Logits are drawn at a quarter of the output stride and enlarged linearly, so borders finer than that cannot
    be learned; for small structures choose a U-Net.

    Parameters
    ----------
    patch
        Sides seen while training; the rates keep the proportion to the map that they have in the paper.
    """

    def __init__(self, style: Style, body: ResNet, outputs: int, patch: Axes, *, deep_supervision: bool = True) -> None:
        super().__init__()
        self.dims = style.dims
        self.deep_supervision = deep_supervision
        self.cells = 2 if style.norm == "instance" else 1
        reduction = _hold(body, OUTPUT_STRIDE[style.dims])
        self.multiple = (reduction,) * style.dims
        skips = body.skip_strides
        self.low = next(level for level, stride in enumerate(skips) if stride >= reduction / 4)
        wide = min(256, max(32, body.channels[-1] // 2))
        # 48 of 256 channels in the paper: enough for borders, too few to drown the pyramid.
        narrow = wide * 3 // 16
        self.reduce = style.unit(body.skip_channels[self.low], narrow, (1,) * style.dims)
        self.pyramid = Pyramid(style, body.channels[-1], wide, rates_for(patch, reduction))
        kernel = (3,) * style.dims
        self.refine = nn.Sequential(
            style.unit(wide + narrow, wide, kernel), style.unit(wide, wide, kernel), *style.drop()
        )
        self.head = CONV[style.dims](wide, outputs, 1)
        start_segmenter(self, style.activation)
        nn.init.normal_(self.head.weight, std=0.01)
        renormalise(body, style)
        self.body = body

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, *S)`` to logits ``(B, K, *S)``, alone in a list while training with deep supervision."""
        self.check(x)
        features = self.body.skips(x)
        low = self.reduce(features[self.low])
        mode = "bilinear" if self.dims == 2 else "trilinear"
        context = nn.functional.interpolate(
            self.pyramid(features[-1]), size=low.shape[2:], mode=mode, align_corners=False
        )
        logits = self.head(self.refine(torch.cat([context, low], dim=1)))
        if logits.shape[2:] != x.shape[2:]:
            logits = nn.functional.interpolate(logits, size=x.shape[2:], mode=mode, align_corners=False)
        return [logits] if self.training and self.deep_supervision else logits


def rates_for(patch: Axes, reduction: int) -> tuple[int, ...]:
    """Atrous rates in the paper's proportion to the shortest side of the map, each at least 1, without repeats.

    A rate beyond the map would see padding only and turn its 3x3 convolution into a 1x1 (Chen et al. 2017, section
    3.3).
    """
    cells = min(patch) / reduction
    return tuple(sorted({max(1, round(rate * cells / PAPER_CELLS)) for rate in RATES}))


def dilate(stage: nn.Module, rate: int) -> None:
    """Let the 3x3 convolutions of `stage` look `rate` cells apart and take away strides, in place."""
    for part in stage.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)):
            dims = len(part.kernel_size)
            part.stride = (1,) * dims  # type: ignore[assignment]
            if max(part.kernel_size) > 1:
                part.dilation = part.padding = (rate,) * dims  # type: ignore[assignment]
                # torch keeps the padding a second time, in the order of `functional.pad`.
                part._reversed_padding_repeated_twice = [rate] * (2 * dims)
        for name, child in part.named_children():
            if isinstance(child, (nn.AvgPool2d, nn.AvgPool3d)):
                setattr(part, name, nn.Identity())


def _hold(body: ResNet, most: int) -> int:
    """Keep the stages of `body` at a reduction of `most` or less; returns what is reached."""
    reductions = list(body.strides)
    rate = 1
    for level, stage in enumerate(body.stages):
        over = reductions[level] // most
        if over <= 1:
            continue
        before, rate = rate, over
        blocks = list(stage.children())
        # The first block still reads a map of the rate before.
        dilate(blocks[0], before)
        for block in blocks[1:]:
            dilate(block, rate)
        reductions[level] = most
    body.strides = tuple(reductions)
    return reductions[-1]
