"""Losses of segmentation against MONAI, torch, plain formulas in NumPy, and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, TverskyLoss
from scipy.ndimage import distance_transform_edt
from torch.nn import functional as F

from vesalius.core.errors import PlanError
from vesalius.tasks.segment_loss import DEFAULTS, NAMES, SegmentLoss, picked, signed_distance


def case(seed=0, batch=2, outputs=4, size=(9, 7, 8), kind=torch.float32):
    """Logits and a label map."""
    draw = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn((batch, outputs, *size), generator=draw, dtype=torch.float64)
    return z.to(kind), torch.randint(0, outputs, (batch, 1, *size), generator=draw)


def value_and_slope(loss, z, y):
    z = z.detach().clone().requires_grad_()
    value = loss(z, y)
    value.backward()
    return value.detach(), z.grad


def same(ours, theirs, z, y, other=None):
    """Equal values and gradients."""
    value, slope = value_and_slope(ours, z, y)
    expected, expected_slope = value_and_slope(theirs, z, y if other is None else other)
    torch.testing.assert_close(value, expected, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(slope, expected_slope, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("size", [(17, 12), (9, 7, 8)])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_dice_ce_is_that_of_monai(size, batch_dice, background):
    z, y = case(size=size)
    theirs = DiceCELoss(include_background=background, to_onehot_y=True, softmax=True, batch=batch_dice,
                        lambda_dice=0.7, lambda_ce=1.3)  # fmt: skip
    chosen = {"batch_dice": batch_dice, "background": background, "ce_weight": 1.3, "dice_weight": 0.7}
    same(SegmentLoss(chosen, 4), theirs, z, y)


def test_tversky_is_that_of_monai():
    z, y = case(1)
    theirs = TverskyLoss(include_background=False, to_onehot_y=True, softmax=True, alpha=0.2, beta=0.9)
    chosen = {"name": "tversky_ce", "ce_weight": 0, "tversky_alpha": 0.2, "tversky_beta": 0.9}
    same(SegmentLoss(chosen, 4), theirs, z, y)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_focal_of_a_soft_max_is_that_of_monai_without_its_mean_over_outputs(gamma):
    z, y = case(2)
    focal = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma)
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)
    chosen = {"name": "dice_focal", "focal_gamma": gamma}
    same(SegmentLoss(chosen, 4), lambda a, b: 4 * focal(a, b) + dice(a, b), z, y)


def layers(y, regions):
    """``(B, K, *S)`` truth of regions, one by one."""
    return torch.cat([sum((y == label) for label in members).bool() for members in regions], dim=1).float()


def test_regions_are_sigmoids_as_in_monai():
    regions = ((1, 2, 3), (2, 3), (3,))
    z, y = case(3)
    z = z[:, :3]
    truth = layers(y, regions)
    dice = DiceLoss(sigmoid=True)
    same(SegmentLoss({}, 3, regions), lambda a, b: dice(a, b) + F.binary_cross_entropy_with_logits(a, b), z, y, truth)
    focal = DiceFocalLoss(sigmoid=True, gamma=2.0)
    same(SegmentLoss({"name": "dice_focal"}, 3, regions), focal, z, y, truth)


def test_labels_of_no_region_are_background_of_each():
    z, y = case(3)
    far = torch.where(y == 0, 250, y)
    loss = SegmentLoss({}, 2, ((1, 2), (3,)))
    torch.testing.assert_close(loss(z[:, :2], far), loss(z[:, :2], y))
    for kind in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(loss(z[:, :2], far.to(kind)), loss(z[:, :2], y))
        torch.testing.assert_close(SegmentLoss({}, 4)(z, y.to(kind)), SegmentLoss({}, 4)(z, y))
    assert loss(z[:, :2], torch.where(y == 3, 250, y)) != loss(z[:, :2], y)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0, 0.0]])
@pytest.mark.parametrize("ignore", [None, 3])
def test_cross_entropy_is_that_of_torch(smoothing, weights, ignore):
    z, y = case(4)
    factor = None if weights is None else torch.tensor(weights)
    chosen = {"name": "ce", "label_smoothing": smoothing, "class_weights": weights}
    extra = {} if ignore is None else {"ignore_index": ignore}

    def theirs(a, b):
        return F.cross_entropy(a, b[:, 0], weight=factor, label_smoothing=smoothing, **extra)

    same(SegmentLoss(chosen, 4, ignore=ignore), theirs, z, y)


def test_regions_with_weights_and_smoothing():
    z, y = case(5)
    regions, weights = ((1, 2), (2,)), torch.tensor([0.5, 2.0])
    goal = layers(y, regions) * 0.9 + 0.05

    def theirs(a, b):
        each = F.binary_cross_entropy_with_logits(a, b, reduction="none").mean((0, 2, 3, 4))
        return (each * weights).sum() / weights.sum()

    chosen = {"name": "ce", "label_smoothing": 0.1, "class_weights": weights.tolist()}
    same(SegmentLoss(chosen, 2, regions), theirs, z[:, :2], y, goal)


@pytest.mark.parametrize("ignore", [None, 2])
def test_top_k_is_the_mean_of_the_highest(ignore):
    z, y = case(6)
    each = F.cross_entropy(z, y[:, 0], reduction="none")
    if ignore is not None:
        each = each[y[:, 0] != ignore]
    worst = np.sort(each.numpy().ravel())[::-1]
    worst = worst[: math.ceil(0.25 * len(worst))]
    loss = SegmentLoss({"name": "dice_topk", "topk": 0.25, "dice_weight": 0}, 4, ignore=ignore)
    assert float(loss(z, y)) == pytest.approx(float(worst.mean()), rel=1e-5)


def test_ignored_voxels_could_hold_anything():
    """The loss is that of the other voxels alone, and the ignored ones have no slope."""
    z, y = case(7, size=(10, 12))
    y[..., 6:] = 255
    for name in NAMES:
        loss = SegmentLoss({"name": name, "boundary_weight": 0}, 4, ignore=255)
        value, slope = value_and_slope(loss, z, y)
        alone, alone_slope = value_and_slope(loss, z[..., :6], y[..., :6])
        torch.testing.assert_close(value, alone)
        assert not slope[..., 6:].any()
        torch.testing.assert_close(slope[..., :6], alone_slope)
        other = torch.where(y == 255, 30 * torch.ones_like(z), z)
        torch.testing.assert_close(loss(other, y), value)


@pytest.mark.parametrize("regions", [(), ((1, 2), (2,), (3,), (1,))])
@pytest.mark.parametrize("name", NAMES)
def test_a_patch_without_verdict_has_no_loss_and_no_slope(name, regions):
    z, y = case(8, size=(8, 8))
    weights = [1.0, 2.0, 3.0, 4.0]
    loss = SegmentLoss({"name": name, "class_weights": weights, "label_smoothing": 0.1}, 4, regions, ignore=-1)
    value, slope = value_and_slope(loss, z, torch.full_like(y, -1))
    assert value == 0
    assert torch.equal(slope, torch.zeros_like(slope))
    # Next to a sample with truth it does not count in the mean of Dice either.
    half = y.clone()
    half[1] = -1
    torch.testing.assert_close(loss(z, half), loss(z[:1], y[:1]))


@pytest.mark.parametrize("ignore", [None, 2])
@pytest.mark.parametrize("regions", [(), ((1, 2), (1,), (3,))])
@pytest.mark.parametrize("name", NAMES)
def test_slopes_are_those_of_finite_differences(name, regions, ignore):
    if ignore is not None and regions:
        regions = ((1, 3), (1,), (3,))
    z, y = case(9, batch=2, outputs=3, size=(4, 5), kind=torch.float64)
    y[0, 0, 0] = 0
    chosen = {"name": name, "label_smoothing": 0.1, "class_weights": [0.5, 1.0, 2.0], "boundary_weight": 0.3}
    loss = SegmentLoss(chosen, 3, regions, ignore)
    assert torch.autograd.gradcheck(lambda a: loss(a, y), z.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_missing_classes_and_sure_logits_have_finite_slopes(name):
    y = torch.zeros((1, 1, 8, 8), dtype=torch.long)
    for size in (0.0, 1e4):
        for sign in (1, -1):
            z = torch.zeros(1, 3, 8, 8)
            z[:, 0] = sign * size
            for loss in (
                SegmentLoss({"name": name, "focal_gamma": 0.5}, 3),
                SegmentLoss({"name": name}, 3, ((1,), (2,), (1, 2))),
            ):
                value, slope = value_and_slope(loss, z, y)
                assert torch.isfinite(value)
                assert torch.isfinite(slope).all()


def test_a_perfect_answer_costs_nothing():
    _, y = case(10)
    z = 60.0 * F.one_hot(y[:, 0], 4).movedim(-1, 1).float()
    for name in ("dice_ce", "dice_focal", "tversky_ce", "dice_topk", "ce"):
        assert float(SegmentLoss({"name": name}, 4)(z, y)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_close_and_keeps_its_type(name):
    z, y = case(11, size=(24, 24, 24))
    loss = SegmentLoss({"name": name}, 4)
    rounded = z.bfloat16()
    value, slope = value_and_slope(loss, rounded.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, low_slope = value_and_slope(loss, rounded, y)
    assert (low.dtype, low_slope.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(low, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(low_slope.float(), slope, rtol=1e-2, atol=1e-9)


def test_sums_of_large_patches_do_not_saturate():
    z = torch.zeros(1, 2, 160, 160, 160).bfloat16()
    y = torch.ones((1, 1, 160, 160, 160), dtype=torch.uint8)
    # p = 1/2 everywhere: Dice 2 (N / 2) / (N / 2 + N) = 2/3.
    assert float(SegmentLoss({"ce_weight": 0}, 2)(z, y)) == pytest.approx(1 / 3, abs=1e-6)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=3))
def test_coarse_targets_are_those_at_block_centres(sides):
    full, coarse = [max(pair) for pair in sides], [min(pair) for pair in sides]
    target = torch.arange(math.prod(full)).reshape(1, 1, *full)
    expected = target
    for axis, (new, old) in enumerate(zip(coarse, full, strict=True), start=2):
        expected = expected.index_select(axis, torch.tensor([int((i + 0.5) * old / new) for i in range(new)]))
    assert torch.equal(picked(target, coarse), expected)
    if len(sides) == 2:
        other = F.interpolate(target.double(), size=coarse, mode="nearest-exact")
        # torch multiplies by a rounded factor, so only even divisions are the same beyond doubt.
        if all(old % new == 0 for new, old in zip(coarse, full, strict=True)):
            assert torch.equal(picked(target, coarse).double(), other)


def test_deep_supervision_halves_from_level_to_level():
    z, y = case(12, size=(16, 12))
    levels = [z, z[..., ::2, ::2].contiguous(), z[..., ::4, ::4].contiguous()]
    loss = SegmentLoss({}, 4)
    each = [
        loss(level, y[..., step // 2 :: step, step // 2 :: step]) for level, step in zip(levels, (1, 2, 4), strict=True)
    ]
    torch.testing.assert_close(loss(levels, y), (4 * each[0] + 2 * each[1] + each[2]) / 7)
    other = SegmentLoss({"deep_weights": [3, 0, 1]}, 4)
    torch.testing.assert_close(other(levels, y), (3 * each[0] + each[2]) / 4)
    torch.testing.assert_close(loss([z], y), loss(z, y))


def paper_distance(mask):
    """Signed distance as Kervadec et al. define it, on the whole grid."""
    if not mask.any():
        return np.zeros(mask.shape)
    return distance_transform_edt(~mask) * ~mask - (distance_transform_edt(mask) - 1) * mask


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([(20, 31), (9, 12, 10)]), st.sampled_from([2.0, 5.5, math.inf]))
def test_signed_distance_is_that_of_scipy(seed, shape, limit):
    draw = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    low = [draw.integers(0, n - 2) for n in shape]
    mask[tuple(slice(a, a + draw.integers(1, n - 1)) for a, n in zip(low, shape, strict=True))] = True
    mask &= draw.random(shape) < draw.uniform(0.3, 1.1)
    if mask.all():
        return
    np.testing.assert_allclose(
        signed_distance(mask, limit), paper_distance(mask).clip(-limit, limit), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("regions", [(), ((1, 2), (2,), (3,), (0, 1))])
def test_boundary_term_is_the_formula_of_the_paper(regions):
    z, y = case(13, size=(11, 14))
    y[1][y[1] == 2] = 1
    p = torch.sigmoid(z) if regions else torch.softmax(z, 1)[:, 1:]
    truth = layers(y, regions).bool() if regions else torch.cat([y == k for k in (1, 2, 3)], 1)
    maps = np.array([[paper_distance(mask) for mask in sample] for sample in truth.numpy()])
    expected = float((p.numpy() * maps).mean())
    loss = SegmentLoss({"name": "dice_boundary", "ce_weight": 0, "dice_weight": 0, "boundary_weight": 1}, 4, regions)
    assert float(loss(z, y)) == pytest.approx(expected, rel=1e-5)


def test_nothing_of_the_size_of_one_hot_floats_is_kept():
    """Backward keeps one copy of the probabilities; the index and the numbers per voxel come on top."""
    z, y = case(14, batch=1, outputs=8, size=(16, 16, 16))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        SegmentLoss({}, 8)(z.requires_grad_(), y)
    large = {t.data_ptr(): t for t in kept if t.is_floating_point() and t.numel() >= z.numel()}
    assert len(large) == 1


def test_the_network_learns_a_square_with_every_loss():
    y = torch.zeros((1, 1, 12, 12), dtype=torch.long)
    y[..., 3:8, 4:9] = 1
    for name in NAMES:
        z = torch.zeros(1, 2, 12, 12, requires_grad=True)
        adam, loss = torch.optim.Adam([z], lr=0.3), SegmentLoss({"name": name}, 2)
        for _ in range(60):
            adam.zero_grad()
            loss(z, y).backward()
            adam.step()
        assert torch.equal(z.argmax(1), y[:, 0]), name


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "dice"}, {"gamma": 2}, {"topk": 0}, {"topk": 2}, {"ce_weight": -1}, {"class_weights": [1, 2]},
        {"class_weights": [0, 0, 0]}, {"deep_weights": []}, {"label_smoothing": 0.9}, {"smooth": 0},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(bad):
    with pytest.raises(PlanError, match="loss"):
        SegmentLoss(bad, 3)


def test_calls_that_cannot_be():
    z, y = case()
    loss = SegmentLoss(dict.fromkeys(DEFAULTS), 4)
    for logits, target in (
        (z, y[:, 0]),
        (z[:, :3], y),
        (z, y.float()),
        (z, y + 3),
        (z, y - 1),
        ([], y),
        ([z[..., ::2], z], y),
    ):
        with pytest.raises(ValueError, match=r"logits|target|label|outputs"):
            loss(logits, target)
    with pytest.raises(PlanError, match="deep_weights"):
        SegmentLoss({"deep_weights": [1, 2]}, 4)([z, z, z], y)
    for outputs, regions, ignore in ((1, (), None), (2, ((1,),), None), (1, ((),), None), (1, ((1, 9),), 9)):
        with pytest.raises(ValueError, match=r"output|region"):
            SegmentLoss({}, outputs, regions, ignore)
