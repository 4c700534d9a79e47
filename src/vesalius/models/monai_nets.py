"""Networks of MONAI behind the interface of `models.unet.Segmenter`: same names of attributes, same messages.

MONAI is optional and imported when one of them is built: ``pip install 'vesalius[monai]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vesalius.core.errors import PlanError
from vesalius.core.extras import extra
from vesalius.models.unet import LEAK, Axes, Segmenter, Style, kernels_of, total_strides


class Wrapped(Segmenter):
    """A network with a single output of full resolution."""

    def __init__(self, net: nn.Module, multiple: Axes, *, deep_supervision: bool, cells: int = 1) -> None:
        super().__init__()
        self.net = net
        self.dims = len(multiple)
        self.multiple = multiple
        self.deep_supervision = deep_supervision
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, *S)`` to logits ``(B, K, *S)``, alone in a list while training with deep supervision."""
        self.check(x)
        logits = self.net(x)
        return [logits] if self.training and self.deep_supervision else logits


class WrappedDynUNet(Wrapped):
    """DynUNet, whose coarser logits are handed on at their own size.

    MONAI enlarges them to full resolution and stacks them; that costs memory and a loss at full size per level.
    """

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, *S)`` to logits ``(B, K, *S)``, or a list of them while training; see `Segmenter`."""
        self.check(x)
        net: Any = self.net
        logits = net.output_block(net.skip_layers(x))
        if not (self.training and self.deep_supervision):
            return logits
        if not net.deep_supervision:
            return [logits]
        found = [logits, *net.heads]
        # MONAI leaves the tensors on the module, where they keep the whole graph alive until the next step.
        for place in range(len(net.heads)):
            net.heads[place] = torch.empty(0)
        return found


def _nets(name: str) -> Any:
    return extra("monai.networks.nets", group="monai", purpose=f"model.name '{name}'")


def dynunet(
    style: Style,
    inputs: int,
    outputs: int,
    *,
    strides: Sequence[Axes],
    features: Sequence[int],
    kernels: Sequence[Axes] | None,
    deep_supervision: bool,
) -> Segmenter:
    """MONAI's rebuilding of the U-Net of Isensee et al. 2021: two convolutions per stage, three stages or more.

    Raises
    ------
    PlanError
        If there are fewer than three stages.
    """
    if len(strides) < 3:
        raise PlanError(
            f"model.name dynunet needs at least 3 stages, got {len(strides)}; choose unet or larger patches"
        )
    # All but the full resolution and the coarsest of the decoder, as in `models.unet.Decoder`.
    heads = len(strides) - 3
    slope: dict[str, Any] = {"inplace": True}
    act = ("relu", slope) if style.activation == "relu" else ("leakyrelu", {**slope, "negative_slope": LEAK})
    net = _nets("dynunet").DynUNet(
        style.dims,
        inputs,
        outputs,
        kernel_size=[list(kernel) for kernel in kernels or kernels_of(strides)],
        strides=[list(step) for step in strides],
        upsample_kernel_size=[list(step) for step in strides[1:]],
        filters=list(features),
        dropout=style.dropout or None,
        norm_name=("INSTANCE", {"affine": True}) if style.norm == "instance" else "BATCH",
        act_name=act,
        deep_supervision=deep_supervision and heads > 0,
        deep_supr_num=max(1, heads),
    )
    # Its tree of skips names the same layers once more; out of the register, so that a state holds them once.
    net.__dict__["skip_layers"] = net._modules.pop("skip_layers")
    cells = 2 if style.norm == "instance" else 1
    return WrappedDynUNet(net, total_strides(strides)[-1], deep_supervision=deep_supervision, cells=cells)


def segresnet(
    style: Style, inputs: int, outputs: int, *, width: int, depths: Sequence[int], deep_supervision: bool
) -> Segmenter:
    """SegResNet without its autoencoder (Myronenko, BrainLes 2018): pre-activated residual blocks, group normalisation.

    Raises
    ------
    PlanError
        If `width` is not a multiple of the 8 groups.
    """
    if width % 8:
        raise PlanError(
            f"model.name segresnet normalises in 8 groups: model.width must be a multiple of 8, got {width}"
        )
    net = _nets("segresnet").SegResNet(
        style.dims,
        width,
        inputs,
        outputs,
        dropout_prob=style.dropout or None,
        blocks_down=tuple(depths),
        blocks_up=(1,) * (len(depths) - 1),
    )
    return Wrapped(net, (2 ** (len(depths) - 1),) * style.dims, deep_supervision=deep_supervision)


def swinunetr(style: Style, inputs: int, outputs: int, *, width: int, deep_supervision: bool) -> Segmenter:
    """Swin UNETR (Hatamizadeh et al., BrainLes 2021): shifted-window attention down, convolutions up.

    Raises
    ------
    PlanError
        If `width` is not a multiple of 12.
    """
    if width % 12:
        raise PlanError(
            f"model.name swinunetr splits its width into heads: model.width must be a multiple of 12, got {width}"
        )
    # MONAI imports it only in the forward pass and would fail there.
    extra("einops", group="monai", purpose="model.name 'swinunetr'")
    nets = _nets("swinunetr")
    # Its constructor reads values of a tensor, which the device `meta` does not have.
    with torch.device("cpu"):
        net = nets.SwinUNETR(inputs, outputs, feature_size=width, drop_rate=style.dropout, spatial_dims=style.dims)
    # `Wrapped` has looked at the sides already. MONAI does so with numpy, which graph capture cannot follow.
    net._check_input_size = _fits
    return Wrapped(net, (32,) * style.dims, deep_supervision=deep_supervision, cells=2)


def _fits(sides: object) -> None:
    """Whether the sides of an image can be halved often enough: asked before."""
