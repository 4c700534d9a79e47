"""Layers of three dimensions from layers of two, for runtimes that compute planes only.

A volume becomes a batch of planes. A convolution sees the planes that its kernel reaches as channels of one plane;
pooling goes over each plane and then, with the plane as one line, along z. The numbers are the same up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def in_planes(network: nn.Module) -> nn.Module:
    """A copy of a network whose convolutions and poolings of volumes are those of planes; others stay as they are."""
    return _replaced(copy.deepcopy(network))


def _replaced(module: nn.Module) -> nn.Module:
    for kind, made in _PLANES.items():
        if isinstance(module, kind):
            return made(module)
    for name, part in module.named_children():
        setattr(module, name, _replaced(part))
    return module


class PlaneConv(nn.Module):
    """``nn.Conv3d`` without groups and dilation: ``(B, C, Z, Y, X)`` to ``(B, K, Z', Y', X')``."""

    def __init__(self, layer: nn.Conv3d) -> None:
        super().__init__()
        known = (layer.groups, tuple(layer.dilation), layer.padding_mode) == (1, (1, 1, 1), "zeros")
        if not known or isinstance(layer.padding, str):
            raise ValueError(f"{layer} is not computed plane by plane")
        self.reach, self.step, self.around = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        inputs, kernel = layer.in_channels * self.reach, layer.kernel_size[1:]
        self.plane = nn.Conv2d(inputs, layer.out_channels, kernel, layer.stride[1:], layer.padding[1:], bias=True)  # type: ignore[arg-type]
        with torch.no_grad():
            # The channels of one plane after the other, as `forward` lays them.
            self.plane.weight.copy_(layer.weight.movedim(2, 1).flatten(1, 2))
            bias: Any = self.plane.bias
            bias.copy_(torch.zeros_like(bias) if layer.bias is None else layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Every plane with those around it."""
        if self.around:
            x = F.pad(x, (0, 0, 0, 0, self.around, self.around))
        count = (x.shape[2] - self.reach) // self.step + 1
        last = (count - 1) * self.step + 1
        near = torch.cat([x[:, :, k : k + last : self.step] for k in range(self.reach)], dim=1)
        return _apart(self.plane(_planes(near)), x.shape[0])


class PlanePool(nn.Module):
    """Pooling that separates into one within planes and one along z; both take ``(N, C, rows, columns)``."""

    def __init__(self, within: Callable[[Tensor], Tensor], along: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.within, self.along = within, along

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, Z, Y, X)`` to ``(B, C, Z', Y', X')``."""
        y = _apart(self.within(_planes(x)), x.shape[0])
        return self.along(y.flatten(3)).unflatten(3, y.shape[3:])


def _planes(x: Tensor) -> Tensor:
    """``(B, C, Z, Y, X)`` as ``(B * Z, C, Y, X)``."""
    return x.movedim(2, 1).flatten(0, 1)


def _apart(x: Tensor, batch: int) -> Tensor:
    """The inverse of `_planes`."""
    return x.unflatten(0, (batch, x.shape[0] // batch)).movedim(1, 2)


def _three(value: Any) -> tuple[int, int, int]:
    z, y, x = (value,) * 3 if isinstance(value, int) else value
    return int(z), int(y), int(x)


def _max_pool(layer: Any) -> nn.Module:
    size, step, around = _three(layer.kernel_size), _three(layer.stride), _three(layer.padding)

    def pool(cut: slice) -> nn.Module:
        return nn.MaxPool2d(*_both(cut, size, step, around), ceil_mode=layer.ceil_mode)

    return PlanePool(pool(slice(1, 3)), pool(slice(0, 1)))


def _mean_pool(layer: Any) -> nn.Module:
    size, step, around = _three(layer.kernel_size), _three(layer.stride), _three(layer.padding)
    if layer.divisor_override is not None:
        raise ValueError(f"{layer} is not computed plane by plane")

    def pool(cut: slice) -> nn.Module:
        sides = _both(cut, size, step, around)
        return nn.AvgPool2d(*sides, ceil_mode=layer.ceil_mode, count_include_pad=layer.count_include_pad)

    return PlanePool(pool(slice(1, 3)), pool(slice(0, 1)))


def _both(
    cut: slice, size: tuple[int, ...], step: tuple[int, ...], around: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding of two axes; along z the columns stay as they are."""
    one, two, three = size[cut], step[cut], around[cut]
    if len(one) == 1:
        return (one[0], 1), (two[0], 1), (three[0], 0)
    return (one[0], one[1]), (two[0], two[1]), (three[0], three[1])


def _adaptive(layer: Any) -> nn.Module:
    z, y, x = _three(layer.output_size)
    return PlanePool(nn.AdaptiveAvgPool2d((y, x)), nn.AdaptiveAvgPool2d((z, y * x)))


_PLANES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Conv3d: PlaneConv,
    nn.MaxPool3d: _max_pool,
    nn.AvgPool3d: _mean_pool,
    nn.AdaptiveAvgPool3d: _adaptive,
}
