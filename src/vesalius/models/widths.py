"""Networks whose layers are narrower than their design: what structured pruning leaves.

A pruned network is stored as its design and the shapes of the weights that differ from it (`model.widths` of a plan
and of a bundle), so that it is built again without any code of the pruner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vesalius.core.errors import PlanError
from vesalius.models.blocks import InstanceNorm

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    """Shape of the weight of every layer that has one, by the layer's name."""
    return {
        name: list(part.weight.shape)
        for name, part in network.named_modules()
        if isinstance(getattr(part, "weight", None), torch.Tensor)
    }


def widths_of(narrow: nn.Module, design: nn.Module) -> dict[str, list[int]]:
    """Shapes in `narrow` that differ from those of its `design`."""
    full = shapes_of(design)
    return {name: shape for name, shape in shapes_of(narrow).items() if full[name] != shape}


def narrowed(network: nn.Module, widths: Mapping[str, Sequence[int]] | None) -> nn.Module:
    """The network with layers of the given shapes, freshly zero where they changed; their weights are loaded later.

    Raises
    ------
    PlanError
        For a layer that does not exist or cannot have that shape.
    """
    for name, shape in (widths or {}).items():
        try:
            part = network.get_submodule(name)
        except AttributeError:
            raise PlanError(f"model.widths: the network has no layer {name!r}; keep widths with their model") from None
        _reshape(name, part, [int(side) for side in shape])
    return network


def _reshape(name: str, part: Any, shape: list[int]) -> None:
    grouped = isinstance(part, (*_CONVOLUTIONS, *_TRANSPOSED)) and part.groups != 1
    fits = isinstance(getattr(part, "weight", None), torch.Tensor) and len(part.weight.shape) == len(shape)
    if grouped or not fits or min(shape, default=0) < 1 or list(part.weight.shape[2:]) != shape[2:]:
        raise PlanError(f"model.widths: layer {name!r} cannot have weights of shape {shape}")
    outputs = shape[0]
    if isinstance(part, _CONVOLUTIONS):
        part.out_channels, part.in_channels = shape[:2]
    elif isinstance(part, _TRANSPOSED):
        part.in_channels, part.out_channels = shape[:2]
        outputs = shape[1]
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = shape
    elif isinstance(part, _NORMS):
        part.num_features = outputs
        part.running_mean, part.running_var = torch.zeros(outputs), torch.ones(outputs)
    elif isinstance(part, InstanceNorm):
        part.features = outputs
    else:
        raise PlanError(f"model.widths: layer {name!r} is a {type(part).__name__}, whose width is fixed")
    part.weight = nn.Parameter(torch.zeros(shape))
    if part.bias is not None:
        part.bias = nn.Parameter(torch.zeros(outputs))
