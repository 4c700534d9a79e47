"""Layers of three dimensions from layers of two, for runtimes that compute planes only.

A volume becomes a batch of planes. A convolution sees the planes that its kernel reaches as channels of one plane;
pooling goes over each plane and then, with the plane as one line, along z. A transposed convolution whose kernel is its
stride makes the planes between one after the other. The numbers are the same up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.models.blocks import InstanceNorm


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
    """``nn.Conv3d`` without groups: ``(B, C, Z, Y, X)`` to ``(B, K, Z', Y', X')``."""

    def __init__(self, layer: nn.Conv3d) -> None:
        super().__init__()
        if (layer.groups, layer.padding_mode) != (1, "zeros") or isinstance(layer.padding, str):
            raise ValueError(f"{layer} is not computed plane by plane")
        self.reach, self.step, self.around = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        self.apart = layer.dilation[0]
        inputs, kernel = layer.in_channels * self.reach, layer.kernel_size[1:]
        within: Any = (layer.stride[1:], layer.padding[1:], layer.dilation[1:])
        self.plane = nn.Conv2d(inputs, layer.out_channels, kernel, *within)  # type: ignore[arg-type]
        with torch.no_grad():
            # The channels of one plane after the other, as `forward` lays them.
            self.plane.weight.copy_(layer.weight.movedim(2, 1).flatten(1, 2))
            bias: Any = self.plane.bias
            bias.copy_(torch.zeros_like(bias) if layer.bias is None else layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Every plane with those around it."""
        if self.around:
            x = F.pad(x, (0, 0, 0, 0, self.around, self.around))
        offsets = range(0, self.reach * self.apart, self.apart)
        count = (x.shape[2] - offsets[-1] - 1) // self.step + 1
        last = (count - 1) * self.step + 1
        near = torch.cat([x[:, :, k : k + last : self.step] for k in offsets], dim=1)
        return _apart(self.plane(_planes(near)), x.shape[0])


class PlaneTransposed(nn.Module):
    """``nn.ConvTranspose3d`` whose kernel is its stride, so that no two outputs overlap."""

    def __init__(self, layer: nn.ConvTranspose3d) -> None:
        super().__init__()
        plain: Any = ((0, 0, 0), (0, 0, 0), (1, 1, 1), 1)
        if (layer.padding, layer.output_padding, layer.dilation, layer.groups) != plain or (
            tuple(layer.kernel_size) != tuple(layer.stride)
        ):
            raise ValueError(f"{layer} is not computed plane by plane")
        self.planes = nn.ModuleList()
        for k in range(layer.kernel_size[0]):
            kernel = layer.kernel_size[1:]
            plane = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, kernel, kernel, bias=True)  # type: ignore[arg-type]
            with torch.no_grad():
                plane.weight.copy_(layer.weight[:, :, k])
                bias: Any = plane.bias
                bias.copy_(torch.zeros_like(bias) if layer.bias is None else layer.bias)
            self.planes.append(plane)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, Z, Y, X)`` to ``(B, K, Z * step, Y * step, X * step)``."""
        flat = _planes(x)
        # (B * Z, step * K, Y, X): the new planes of each old one lie side by side.
        wide = torch.cat([plane(flat) for plane in self.planes], dim=1)
        return _apart(wide.unflatten(1, (len(self.planes), -1)).flatten(0, 1), x.shape[0])


class PlaneNorm(nn.Module):
    """Instance normalisation of volumes, whose planes lie as one; of planes too."""

    def __init__(self, layer: InstanceNorm | nn.InstanceNorm3d) -> None:
        super().__init__()
        if getattr(layer, "track_running_stats", False):
            raise ValueError(f"{layer} is not computed plane by plane")
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        flat = x.flatten(2, 3) if x.ndim == 5 else x
        y = F.instance_norm(flat, weight=self.weight, bias=self.bias, eps=self.eps)
        return y.unflatten(2, x.shape[2:4]) if x.ndim == 5 else y


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
    if x.shape[0] == 1:
        # In four dimensions: of a volume in five whose sides are all alike, and equal to its channels, LiteRT's
        # converter (0.10) takes one order of the axes for another.
        return x.squeeze(0).transpose(0, 1)
    return x.movedim(2, 1).flatten(0, 1)


def _apart(x: Tensor, batch: int) -> Tensor:
    """The inverse of `_planes`."""
    if batch == 1:
        return x.transpose(0, 1).unsqueeze(0)
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
    nn.ConvTranspose3d: PlaneTransposed,
    InstanceNorm: PlaneNorm,
    nn.InstanceNorm3d: PlaneNorm,
    nn.MaxPool3d: _max_pool,
    nn.AvgPool3d: _mean_pool,
    nn.AdaptiveAvgPool3d: _adaptive,
}
