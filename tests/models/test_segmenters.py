"""One contract for every segmentation network; MONAI, PyTorch and the papers as references."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vesalius.core.errors import PlanError
from vesalius.models import factory
from vesalius.models.blocks import InstanceNorm
from vesalius.models.deeplab import dilate, rates_for
from vesalius.models.segmenters import (
    SegmenterShape,
    activation_values,
    build_segmenter,
    fold_batchnorm,
    parameter_count,
    segmenter,
    segmenter_card,
    segmenter_multiple,
    segmenter_names,
)
from vesalius.models.unet import Decoder, Style, UNet, kernels_of

MONAI = ("dynunet", "segresnet", "swinunetr")
PATCH = {2: (64, 32), 3: (16, 32, 32)}
WIDTH = {"swinunetr": 12, "segresnet": 8}

both = pytest.mark.parametrize("dims", [2, 3])
every = pytest.mark.parametrize("name", segmenter_names())
# One deep encoder stands for the others where the encoder itself is not in question.
FEWER = [name for name in segmenter_names() if not name.endswith(("resnet34", "resnet101"))]
most = pytest.mark.parametrize("name", FEWER)
ours = pytest.mark.parametrize("name", [name for name in FEWER if name not in MONAI])
norms = pytest.mark.parametrize("norm", ["instance", "batch"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def needs(name):
    if name in MONAI:
        pytest.importorskip("monai")
    if name == "swinunetr":
        pytest.importorskip("einops")


def patch_of(name, dims):
    # 32 cells a side leave one at the coarsest level of the transformer.
    return ((64,) + (32,) * (dims - 1)) if name == "swinunetr" else PATCH[dims]


def shape_of(name, dims, **changes):
    family = name.partition(":")[2]
    width = 4 if family in ("resnet34", "resnet50", "resnet101") else 8
    options = {"dims": dims, "inputs": 2, "outputs": 3, "patch": patch_of(name, dims), "width": WIDTH.get(name, width)}
    if family == "resnet101":
        options["depths"] = (1, 2, 2, 1)
    if name == "resunet":
        options["features"] = (8, 8, 12, 12)
        options["strides"] = strides_of(dims)
        options["depths"] = (1, 2, 1, 1)
    return SegmenterShape(**{**options, **changes})


def strides_of(dims):
    return ((1,) * dims, (1,) * (dims - 2) + (2, 2), (2,) * dims, (2,) * dims)


def make(name, dims, seed=0, **changes):
    needs(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_segmenter(name, shape_of(name, dims, **changes))


def images(sides, batch=2, channels=2):
    draw = np.random.default_rng(sum(sides))
    return torch.from_numpy(draw.normal(size=(batch, channels, *sides)).astype(np.float32))


def awake(network):
    """Noise on all weights: residual branches start switched off, their last scale being zero."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=draw))
        for part in network.modules():
            if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)):
                part.running_mean.normal_(generator=draw)
                part.running_var.uniform_(0.5, 2, generator=draw)
    return network


@both
@every
def test_logits_have_the_size_of_the_image_and_every_weight_learns(name, dims):
    network = awake(make(name, dims))
    sides = patch_of(name, dims)
    x = images(sides)
    network.train()
    levels = network(x)
    assert isinstance(levels, list)
    assert levels[0].shape == (2, 3, *sides)
    sizes = [math.prod(level.shape[2:]) for level in levels]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    sum(level.square().mean() for level in levels).backward()
    still = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    # The bias of a convolution that instance normalisation follows has a gradient of zero by arithmetic (MONAI).
    assert [key for key in still if not (name in MONAI and key.endswith(".bias"))] == []
    network.eval()
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (2, 3, *sides)
    assert torch.isfinite(logits).all()


@both
@most
def test_without_deep_supervision_training_gives_one_tensor(name, dims):
    network = make(name, dims, deep_supervision=False).train()
    assert network(images(patch_of(name, dims))).shape[1:] == (3, *patch_of(name, dims))


@both
@most
def test_a_seed_fixes_the_first_weights(name, dims):
    one, two, other = (make(name, dims, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@both
@every
def test_the_multiple_is_enough_and_known_without_building(name, dims):
    shape = shape_of(name, dims)
    network = make(name, dims).eval()
    assert segmenter_multiple(name, shape) == network.multiple
    # Every side may be any multiple, not only that of the patch.
    sides = tuple(step * (axis + 1) for axis, step in enumerate(network.multiple))
    with torch.no_grad():
        assert network(images(sides, batch=1)).shape == (1, 3, *sides)


@both
@most
def test_other_sides_are_refused_with_the_sides_to_pad_to(name, dims):
    network = make(name, dims).eval()
    step = network.multiple[0]
    sides = (step * 2 + 1, *network.multiple[1:])
    padded = (step * 3, *network.multiple[1:])
    with pytest.raises(ValueError, match="must be multiples of") as caught:
        network(images(sides, batch=1))
    assert str(caught.value) == f"sides {sides} must be multiples of {network.multiple}; pad to {padded}"


def test_the_message_of_the_brief():
    network = build_segmenter("unet", SegmenterShape(2, 1, 2, (40, 40), strides=((1, 1), (2, 2), (2, 2), (2, 2))))
    with pytest.raises(ValueError, match=r"sides \(33, 40\) must be multiples of \(8, 8\); pad to \(40, 40\)"):
        network(torch.zeros(1, 1, 33, 40))
    with pytest.raises(ValueError, match=r"2-D network takes tensors of 4 axes"):
        network(torch.zeros(1, 33, 40))


@pytest.mark.parametrize("name", ["unet", "resunet", "unet:lean", "deeplabv3plus"])
def test_a_single_cell_is_refused_where_normalisation_would_erase_it(name):
    network = make(name, 2).eval()
    side = network.multiple
    with pytest.raises(ValueError, match="leave one cell"):
        network(torch.zeros(1, 2, *side))
    fine = make(name, 2, norm="batch").eval()
    assert fine(torch.zeros(1, 2, *side)).shape == (1, 3, *side)


@pytest.mark.parametrize("name", ["unet", "resunet", "dynunet"])
def test_anisotropic_strides_give_the_sizes_of_each_level(name):
    needs(name)
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 1))
    features = (4, 4, 8, 8, 12)
    network = build_segmenter(name, SegmenterShape(3, 1, 2, (8, 32, 32), strides=strides, features=features))
    assert network.multiple == (4, 16, 8)
    sizes = [tuple(level.shape[2:]) for level in network.train()(images((8, 32, 32), channels=1))]
    assert sizes == [(8, 32, 32), (8, 16, 16), (8, 8, 8)]


def test_heads_start_so_small_that_the_first_prediction_is_undecided():
    network = make("unet", 3).train()
    for level in network(images(PATCH[3])):
        assert (level.softmax(dim=1) - 1 / 3).abs().max() < 0.1


# --- kernels -----------------------------------------------------------------------------------------------------


def nnunet_topology(spacing, patch, least=4):
    """Strides and kernels from spacing and patch as the supplement of Isensee et al. 2021 states them.

    An axis is halved where its spacing is within a factor of two of the finest one and enough cells remain; its kernel
    is 3 once its spacing is within that factor.
    """
    spacing, patch = list(spacing), list(patch)
    kernel = [1] * len(patch)
    strides, kernels = [(1,) * len(patch)], []
    while True:
        for axis, size in enumerate(spacing):
            if size / min(spacing) < 2:
                kernel[axis] = 3
        kernels.append(tuple(kernel))
        able = [axis for axis, side in enumerate(patch) if side >= 2 * least]
        if not able:
            return strides, kernels
        finest = min(spacing[axis] for axis in able)
        step = tuple(2 if axis in able and spacing[axis] / finest < 2 else 1 for axis in range(len(patch)))
        strides.append(step)
        spacing = [size * stride for size, stride in zip(spacing, step, strict=True)]
        patch = [side // stride for side, stride in zip(patch, step, strict=True)]


@settings(max_examples=60, deadline=None)
@given(thick=st.sampled_from([1.0, 1.9, 2.0, 3.9, 4.0, 7.0, 8.0, 15.0]), axis=st.integers(0, 2))
def test_kernels_are_those_of_the_paper_wherever_each_axis_is_halved(thick, axis):
    spacing, patch = [1.0] * 3, [128] * 3
    spacing[axis], patch[axis] = thick, 64
    strides, kernels = nnunet_topology(spacing, patch)
    assert any(step[axis] > 1 for step in strides)
    assert list(kernels_of(strides)) == kernels


def test_kernels_of_an_axis_that_is_never_halved():
    assert kernels_of(((1, 1, 1), (1, 2, 2), (1, 2, 2))) == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert kernels_of(((1, 1),)) == ((3, 3),)


def test_slices_do_not_mix_before_the_axes_are_alike():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    style = Style(3, norm="batch")
    network = UNet(style, 1, 2, strides=strides, features=(4, 4, 4), depths=(1, 1, 1)).eval()
    x = images((8, 16, 16), batch=1, channels=1).requires_grad_()
    network.encoder[0](x)[0, :, 3].sum().backward()
    assert set(x.grad[0, 0].abs().sum(dim=(1, 2)).nonzero().flatten().tolist()) == {3}


# --- against MONAI -----------------------------------------------------------------------------------------------


def weights_for_dynunet(network):
    """Our weights under MONAI's names."""
    found = {}

    def unit(ours, theirs, place):
        found[f"{theirs}.conv{place}.conv.weight"] = ours[0].weight
        for key, value in ours[1].state_dict().items():
            found[f"{theirs}.norm{place}.{key}"] = value

    stages = len(network.encoder)
    for level, stage in enumerate(network.encoder):
        inner = f"downsamples.{level - 1}"
        theirs = "input_block" if level == 0 else "bottleneck" if level == stages - 1 else inner
        for place in (0, 1):
            unit(stage[place], theirs, place + 1)
    for level in range(stages - 1):
        theirs = f"upsamples.{stages - 2 - level}"
        found[f"{theirs}.transp_conv.conv.weight"] = network.decoder.up[level].weight
        for place in (0, 1):
            unit(network.decoder.stages[level][place], f"{theirs}.conv_block", place + 1)
    for level, head in enumerate(network.decoder.heads):
        theirs = "output_block" if level == 0 else f"deep_supervision_heads.{level - 1}"
        found[f"{theirs}.conv.conv.weight"], found[f"{theirs}.conv.conv.bias"] = head.weight, head.bias
    return found


@both
@norms
@pytest.mark.parametrize("activation", ["relu", "leaky"])
def test_unet_is_the_dynunet_of_monai_with_the_same_weights(dims, norm, activation):
    needs("dynunet")
    options = {
        "norm": norm,
        "activation": activation,
        "up": "transposed",
        "strides": ((1,) * dims, *((2,) * dims,) * 3),
    }
    mine, theirs = (awake(make(name, dims, **options)) for name in ("unet", "dynunet"))
    assert parameter_count(mine) == parameter_count(theirs)
    inner = theirs.net
    inner.load_state_dict({**inner.state_dict(), **weights_for_dynunet(mine)}, strict=True)
    x = images(PATCH[dims])
    for mode in (True, False):
        mine.train(mode), theirs.train(mode)
        with torch.no_grad():
            ours, other = mine(x), theirs(x)
        for a, b in zip(ours, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert len(mine.train()(x)) == 2


@pytest.mark.parametrize(("dims", "stages"), [(3, 6), (2, 8)])
def test_the_default_proportions_have_as_many_weights_as_in_monai(dims, stages):
    needs("dynunet")
    shape = SegmenterShape(dims, 1, 2, (512,) * dims, strides=((1,) * dims, *((2,) * dims,) * (stages - 1)))
    with torch.device("meta"):
        mine = build_segmenter("unet", replace(shape, up="transposed"))
        theirs = build_segmenter("dynunet", shape)
    assert parameter_count(mine) == parameter_count(theirs)


@both
@pytest.mark.parametrize("name", MONAI)
def test_a_wrapped_network_returns_what_monai_returns(name, dims):
    needs(name)
    from monai.networks.nets import DynUNet, SegResNet, SwinUNETR

    network = make(name, dims)
    strides = [(1,) * dims, *((2,) * dims,) * 3]
    if name == "dynunet":
        network = make(name, dims, strides=tuple(strides), features=(8, 8, 12, 12))
        free = DynUNet(
            dims, 2, 3, [3] * 4, strides, strides[1:], filters=[8, 8, 12, 12], deep_supervision=True, deep_supr_num=1
        )
    elif name == "segresnet":
        free = SegResNet(dims, 8, 2, 3, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    else:
        free = SwinUNETR(2, 3, feature_size=12, spatial_dims=dims)
    odd = free.load_state_dict(network.net.state_dict(), strict=False)
    # MONAI's tree of skips names the same layers once more.
    assert all(name.startswith("skip_layers.") for name in odd.missing_keys)
    assert odd.unexpected_keys == []
    x = images(patch_of(name, dims))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), free.eval()(x))
        if name == "dynunet":
            fine, coarse = network.train()(x)
            stacked = free.train()(x)
            torch.testing.assert_close(fine, stacked[:, 0])
            torch.testing.assert_close(nn.functional.interpolate(coarse, size=fine.shape[2:]), stacked[:, 1])
    copy.deepcopy(network)  # no graph is left behind on the module


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("dynunet", {"strides": ((1, 1), (2, 2))}, "at least 3 stages"),
        ("segresnet", {"width": 12}, "multiple of 8"),
        ("swinunetr", {"width": 16}, "multiple of 12"),
    ],
)
def test_limits_of_wrapped_networks_are_told_as_ours(name, changes, told):
    needs(name)
    with pytest.raises(PlanError, match=told):
        make(name, 2, **changes)


# --- normalisation -----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("last", [False, True])
def test_instance_norm_equals_that_of_torch_forwards_and_backwards(dims, last):
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims] if last else torch.contiguous_format
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((3, 5, 6, 7, 8)[: dims + 2], generator=draw, dtype=torch.double)
    pull = torch.randn(x.shape, generator=draw, dtype=torch.double)
    mine = awake(InstanceNorm(5)).double()
    theirs = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](5, affine=True).double()
    theirs.load_state_dict(mine.state_dict())
    found = []
    for module in (mine, theirs):
        here = x.clone().contiguous(memory_format=layout).requires_grad_()
        out = module(here)
        (out * pull).sum().backward()
        found.append((out, here.grad, module.weight.grad, module.bias.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert not last or mine(x.contiguous(memory_format=layout)).is_contiguous(memory_format=layout)


def test_instance_norm_keeps_its_digits_far_from_zero():
    draw = torch.Generator().manual_seed(0)
    x = (100 + torch.randn(2, 4, 16, 16, 16, generator=draw)).contiguous(memory_format=torch.channels_last_3d)
    exact = nn.functional.instance_norm(x.double())
    assert (InstanceNorm(4)(x) - exact).abs().max() < 1e-3
    with torch.no_grad():
        assert (InstanceNorm(4)(x) - exact).abs().max() < 1e-3


@both
@ours
def test_folding_changes_nothing_and_leaves_no_batch_normalisation(name, dims):
    network = awake(make(name, dims, norm="batch", up="transposed")).eval()
    before = copy.deepcopy(network.state_dict())
    folded = fold_batchnorm(network)
    assert not [part for part in folded.modules() if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d))]
    x = images(patch_of(name, dims), batch=1)
    with torch.no_grad():
        expected, found = network(x), folded(x)
    assert (expected - found).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_folding_a_transposed_convolution():
    network = awake(nn.Sequential(nn.ConvTranspose3d(3, 4, 2, 2), nn.BatchNorm3d(4))).eval()
    x = torch.randn(1, 3, 4, 4, 4)
    torch.testing.assert_close(fold_batchnorm(network)(x), network(x), rtol=1e-5, atol=1e-5)


# --- counts ------------------------------------------------------------------------------------------------------


def test_kept_values_of_a_network_that_can_be_counted_by_hand():
    # One stage, one unit: image, map before and after normalisation; mean and deviation of the batch.
    features, cells = 6, 8 * 8
    network = UNet(Style(2, norm="batch"), 1, 2, strides=((1, 1),), features=(features,), depths=(1,))
    assert activation_values(network, 1, (8, 8)) == cells * (1 + 2 * features) + features


@both
@most
def test_kept_values_are_those_of_a_real_step(name, dims):
    network = make(name, dims).train()
    weights = {value.untyped_storage().data_ptr() for value in (*network.parameters(), *network.buffers())}
    kept = {}

    def pack(value):
        if value.untyped_storage().data_ptr() not in weights:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    sides = patch_of(name, dims)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        network(images(sides))
    real = sum(value.untyped_storage().nbytes() / value.element_size() for value in kept.values()) / 2
    # Masks of kinds other than float and small statistics may be held differently on the two devices.
    assert activation_values(network, 2, sides) == pytest.approx(real, rel=0.03)


# --- networks on an encoder --------------------------------------------------------------------------------------


@both
@norms
@pytest.mark.parametrize("family", ["unet", "deeplabv3plus"])
@pytest.mark.parametrize("body", ["lean", "resnet18"])
def test_the_weights_of_a_classifier_fit_the_encoder(family, body, dims, norm):
    network = make(f"{family}:{body}", dims, norm=norm)
    stem = "half" if dims == 3 else "auto"
    trained = factory.build_encoder(body, factory.Shape(dims, 2, PATCH[dims], 8, None, stem)).state_dict()
    gone = network.body.load_state_dict(trained, strict=False)
    assert gone.missing_keys == []
    assert all((norm == "instance" and "running" in key) or "num_batches" in key for key in gone.unexpected_keys)


@both
@pytest.mark.parametrize("body", ["lean", "resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["small", "half", "patch", "large"])
def test_skips_hold_the_features_of_the_encoder_and_their_sizes(body, dims, stem):
    encoder = factory.build_encoder(body, factory.Shape(dims, 1, (64,) * dims, 4, (1, 1, 1), stem)).eval()
    x = images((32,) * dims, batch=1, channels=1)
    with torch.no_grad():
        skips, features = encoder.skips(x), encoder(x)
    assert [value.shape[1] for value in skips] == list(encoder.skip_channels)
    assert [32 // value.shape[2] for value in skips] == list(encoder.skip_strides)
    assert encoder.skip_strides[0] <= 2
    for a, b in zip(skips[-len(features) :], features, strict=True):
        assert torch.equal(a, b)


def test_atrous_convolutions_are_the_strided_ones_at_full_density():
    # Chen et al.: sampled at the stride, the dense map is the strided one.
    strided = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, 1, 1))
    dense = copy.deepcopy(strided)
    dilate(dense[0], 1)
    dilate(dense[2], 2)
    x = images((16, 12))
    torch.testing.assert_close(dense(x)[..., ::2, ::2], strided(x))
    assert dense(x).shape[2:] == (16, 12)


def test_rates_are_those_of_the_paper_at_its_size_and_fit_smaller_maps():
    assert rates_for((528, 528), 16) == (6, 12, 18)
    for side in (32, 64, 128, 256):
        assert max(rates_for((side, side), 8)) <= side // 8


@pytest.mark.parametrize(("dims", "reduction"), [(2, 16), (3, 8)])
def test_the_pyramid_stands_at_its_output_stride(dims, reduction):
    network = make("deeplabv3plus:resnet34", dims, patch=(64,) * dims)
    seen = []
    network.pyramid.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[2]))
    network.eval()(images((64,) * dims, batch=1))
    assert 64 // seen[0] == reduction


# --- the registry ------------------------------------------------------------------------------------------------


def test_an_unknown_name_gets_the_nearest_ones():
    for name, near in (("unett", "unet"), ("unet:resnet19", "unet:resnet18"), ("deeplab", "deeplabv3plus")):
        with pytest.raises(PlanError, match=f"did you mean .*{near}"):
            build_segmenter(name, SegmenterShape(2, 1, 2, (64, 64)))
    for name in ("unet:*", "unet:convnet", "zzzz"):
        with pytest.raises(PlanError, match="not in the registry"):
            build_segmenter(name, SegmenterShape(2, 1, 2, (64, 64)))


@every
def test_every_network_has_a_card_with_its_source(name):
    card = segmenter_card(name)
    assert card.name == name
    assert card.summary.endswith(".")
    assert any(character.isdigit() for character in card.source) or "encoder" in card.source


def test_a_second_network_of_the_same_name_is_refused():
    with pytest.raises(ValueError, match="registered twice"):
        segmenter(segmenter_card("unet"))(lambda shape, body: None)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("unet:lean", {"strides": ((1, 1), (2, 2))}, "model.strides cannot be set for 'unet:lean'"),
        ("unet", {"strides": ((2, 2), (2, 2))}, "must start with a stage of ones"),
        ("unet", {"strides": ((1, 1, 1), (2, 2, 2))}, "expected 2 positive numbers"),
        ("unet", {"strides": ((1, 1), (2, 2)), "features": (8, 8, 8)}, "features has 3 entries, model.strides has 2"),
        ("resunet", {"strides": ((1, 1), (2, 2)), "depths": (1,)}, "depths has 1 entries"),
        ("unet", {"kernels": ((2, 2),)}, "must be odd"),
        ("unet", {"width": 0}, "must be positive"),
    ],
)
def test_contradictions_are_refused_by_name(name, changes, told):
    with pytest.raises(PlanError, match=told):
        build_segmenter(name, SegmenterShape(**{"dims": 2, "inputs": 1, "outputs": 2, "patch": (64, 64), **changes}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"norm": "layer"}, "norm must be"), ({"activation": "gelu"}, "activation must be"), ({"up": "x"}, "up must be")],
)
def test_unknown_words_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        make("unet", 2, **changes)


# --- use ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["unet", "resunet"])
def test_the_layout_with_channels_last_gives_the_same_numbers(name, dims):
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    network = awake(make(name, dims)).train()
    other = copy.deepcopy(network).to(memory_format=layout)
    x = images(PATCH[dims])
    for a, b in zip(network(x), other(x.to(memory_format=layout)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@both
def test_training_works_in_half_precision(dims):
    network = make("unet", dims).to(memory_format={2: torch.channels_last, 3: torch.channels_last_3d}[dims])
    with torch.autocast("cpu", torch.bfloat16):
        levels = network.train()(images(PATCH[dims]))
    sum(level.float().square().mean() for level in levels).backward()
    assert all(torch.isfinite(value.grad).all() for value in network.parameters())


@pytest.mark.parametrize(("name", "dims"), [("unet", 3), ("resunet", 2), ("unet:lean", 2), ("deeplabv3plus", 2)])
def test_the_graph_can_be_exported_for_any_batch(name, dims):
    network = awake(make(name, dims)).eval()
    x = images(PATCH[dims])
    batch = torch.export.Dim("batch", min=1, max=8)
    graph = torch.export.export(network, (x,), dynamic_shapes=({0: batch},)).module()
    for count in (2, 3):
        y = images(PATCH[dims], batch=count)
        with torch.no_grad():
            torch.testing.assert_close(graph(y), network(y), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@both
@norms
@pytest.mark.parametrize("name", ["unet", "resunet", "unet:lean"])
def test_onnx_runtime_gives_the_same_logits(name, dims, norm, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network = awake(make(name, dims, norm=norm)).eval()
    x = images(PATCH[dims])
    torch.onnx.export(network, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, network(x).numpy(), rtol=1e-3, atol=1e-4)


def test_dropout_is_for_training_only():
    network = make("unet", 2, dropout=0.5)
    x = images(PATCH[2])
    with torch.no_grad():
        assert not torch.equal(network.train()(x)[0], network(x)[0])
        assert torch.equal(network.eval()(x), network(x))


def test_a_step_down_the_gradient_lowers_the_loss():
    network = make("unet", 2, outputs=2)
    x = images((32, 32), channels=2)
    truth = (x[:, 0] > 0).long()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(network.train()(x)[0], truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.05)
    assert losses[-1] < 0.2


def test_inference_frees_the_skips_as_it_goes():
    decoder = Decoder(
        Style(2), 2, (4, 6, 8), [(2, 2), (2, 2)], [(3, 3), (3, 3)], [1, 1], deep=False, up="nearest"
    ).eval()
    pyramid = [torch.randn(1, wide, side, side) for wide, side in ((4, 16), (6, 8), (8, 4))]
    decoder(pyramid, coarse=False)
    assert pyramid == []
