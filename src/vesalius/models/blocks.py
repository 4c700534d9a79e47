"""Layers that are the same in two and three dimensions: the convolution is chosen from a number, not from a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_AVG_POOL = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def conv(dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, bias: bool = False) -> nn.Module:
    """A convolution that keeps the side (divided by `stride`), padded with zeros."""
    return CONV[dims](inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2, bias=bias)


class ConvNormAct(nn.Sequential):
    """Convolution, batch normalisation, ReLU: ``(B, inputs, *S) -> (B, outputs, *(S / stride))``."""

    def __init__(self, dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(conv(dims, inputs, outputs, kernel, stride), NORM[dims](outputs), nn.ReLU(inplace=True))


class Shortcut(nn.Sequential):
    """The residual path where shape changes: average pooling, then 1x1 convolution.

    Pooling before the projection keeps every input value in play, unlike a strided 1x1 convolution
    (He et al., "Bag of tricks", CVPR 2019, ResNet-D).
    """

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int) -> None:
        layers: list[nn.Module] = []
        if stride > 1:
            layers.append(AVG_POOL[dims](stride, stride, ceil_mode=True, count_include_pad=False))
        if inputs != outputs:
            layers += [conv(dims, inputs, outputs, 1), NORM[dims](outputs)]
        super().__init__(*layers)


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean (Hu et al., CVPR 2018)."""

    def __init__(self, dims: int, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.down = CONV[dims](channels, hidden, 1)
        self.up = CONV[dims](hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        mean = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        return x * torch.sigmoid(self.up(torch.relu(self.down(mean))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""

    expansion = 1

    def __init__(self, dims: int, inputs: int, width: int, stride: int = 1, *, excite: bool = False) -> None:
        super().__init__()
        self.first = ConvNormAct(dims, inputs, width, stride=stride)
        last = NORM[dims](width)
        self.second = nn.Sequential(conv(dims, width, width), last)
        self.excite = SqueezeExcite(dims, width) if excite else nn.Identity()
        self.shortcut = Shortcut(dims, inputs, width, stride)
        # Each block starts as the identity, which lets short schedules use large rates (Goyal et al. 2017).
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *S) -> (B, width, *(S / stride))``."""
        return torch.relu(self.excite(self.second(self.first(x))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width, and a shortcut (He et al., CVPR 2016; stride in the 3x3)."""

    expansion = 4

    def __init__(self, dims: int, inputs: int, width: int, stride: int = 1, *, excite: bool = False) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.first = ConvNormAct(dims, inputs, width, kernel=1)
        self.second = ConvNormAct(dims, width, width, stride=stride)
        last = NORM[dims](outputs)
        self.third = nn.Sequential(conv(dims, width, outputs, 1), last)
        self.excite = SqueezeExcite(dims, outputs) if excite else nn.Identity()
        self.shortcut = Shortcut(dims, inputs, outputs, stride)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *S) -> (B, 4 * width, *(S / stride))``."""
        return torch.relu(self.excite(self.third(self.second(self.first(x)))) + self.shortcut(x))


class InstanceNorm(nn.Module):
    """Instance normalisation with scale and shift (Ulyanov et al. 2016), the same numbers as ``nn.InstanceNorm3d``.

    PyTorch's own copies a tensor whose channels lie last, the layout in which convolutions on a processor are fastest,
    and hands the result on in the other one. Here the layout stays, which takes a sixth off a training step
    (docs/segment-models.md).
    """

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.features, self.eps = features, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"{self.features}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """``(B, features, *S) -> (B, features, *S)``."""
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if recorded or x.device.type != "cpu" or not _channels_last(x):
            return nn.functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        # Batch statistics of one sample are those of the instance. `group_norm` with a group per channel would need no
        # loop, but in this layout it takes E[x^2] - E[x]^2 in single precision: an error of 6 % where a mean is
        # a hundred times its deviation.
        parts = [
            nn.functional.batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for sample in x.split(1)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _channels_last(x: Tensor) -> bool:
    if x.ndim not in (4, 5):
        return False
    return x.is_contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def start_weights(module: nn.Module) -> None:
    """He initialisation of convolutions and linear layers (He et al., ICCV 2015), in module order."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
