"""Augmentation as a pure function of (seed, step, sample)."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.core.errors import PlanError
from vesalius.transforms.augment import PRESETS, Augment, Mix
from vesalius.transforms.augment_spec import PLAIN, SECTIONS

EVERYTHING = {
    **PRESETS["strong"],
    "flip": {"p": 0.5, "axes": ["y", "x"]},
    "colour": {"p": 0.4},
    "invert": {"p": 0.3},
    "cutmix": {"p": 0.5},
}
# Each operation alone, always on.
ALONE = {
    "flip": {"flip": {"p": 1, "axes": ["x"]}},
    "rotate": {"spatial_p": 1, "rotate_deg": 20},
    "scale": {"spatial_p": 1, "scale": [1.1, 1.3]},
    "anisotropy": {"spatial_p": 1, "anisotropy": 0.3},
    "shear": {"spatial_p": 1, "shear": 0.2},
    "translate": {"spatial_p": 1, "translate": 0.1},
    "crop": {"crop": {"p": 1, "scale": [0.6, 0.9]}},
    "elastic": {"elastic": {"p": 1}},
    "bias": {"bias": {"p": 1}},
    "gamma": {"gamma": {"p": 1, "range": [1.2, 1.5]}},
    "contrast": {"contrast": {"p": 1}},
    "brightness": {"brightness": {"p": 1}},
    "colour": {"colour": {"p": 1}},
    "invert": {"invert": {"p": 1}},
    "blur": {"blur": {"p": 1}},
    "lowres": {"lowres": {"p": 1}},
    "noise": {"noise": {"p": 1, "sigma": [0.05, 0.1]}},
    "cutout": {"cutout": {"p": 1}},
    "mixup": {"mixup": {"p": 1, "alpha": 1.0}},
    "cutmix": {"cutmix": {"p": 1}},
}


def images(batch, *shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32))


def test_every_key_is_tried_alone():
    used = {key for spec in ALONE.values() for key in spec}
    assert used == {*SECTIONS, *PLAIN} - {"padding", "spacing"}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("shape", [(1, 24, 30), (3, 12, 14, 16)])
def test_certain_operations_change_every_sample_and_impossible_ones_none(name, shape):
    x, dims = images(4, *shape), len(shape) - 1
    kept = x.clone()
    changed = Augment(ALONE[name], dims=dims, seed=3)(x, step=0).image
    assert torch.equal(x, kept)  # the caller's batch is his
    assert changed.shape == x.shape
    assert torch.isfinite(changed).all()
    assert all(not torch.equal(changed[k], x[k]) for k in range(4))
    never = {key: {**value, "p": 0} if isinstance(value, dict) else value for key, value in ALONE[name].items()}
    if "spatial_p" in never:
        never["spatial_p"] = 0
    out = Augment(never, dims=dims, seed=3)(x, step=0)
    assert torch.equal(out.image, x)
    targets = torch.eye(4)
    assert out.mix(targets) is targets


@pytest.mark.parametrize("name", [name for name in ALONE if name not in ("mixup", "cutmix")])
def test_samples_that_are_not_chosen_keep_their_bits(name):
    spec = {k: {**v, "p": 0.5} if isinstance(v, dict) else v for k, v in ALONE[name].items()}
    if "spatial_p" in spec:
        spec["spatial_p"] = 0.5
    x = images(64, 1, 12, 12)
    same = [torch.equal(a, b) for a, b in zip(Augment(spec, dims=2, seed=1)(x, step=2).image, x, strict=True)]
    assert 16 <= sum(same) <= 48


@pytest.mark.parametrize(("dims", "shape"), [(2, (1, 28, 28)), (2, (3, 33, 20)), (3, (1, 14, 15, 16))])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_any_number_of_processes_makes_the_same_batch(dims, shape, processes):
    augment, x = Augment(EVERYTHING, dims=dims, seed=5), images(16, *shape)
    targets = torch.eye(16)
    each = 16 // processes
    for step in (0, 7):
        whole = augment(x, step=step)
        # Another process has its own object.
        parts = [Augment(EVERYTHING, dims=dims, seed=5)(x[k : k + each], step=step, first=k, total=16)
                 for k in range(0, 16, each)]  # fmt: skip
        assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
        mixed = torch.cat([part.mix(targets[k * each : (k + 1) * each]) for k, part in enumerate(parts)])
        assert torch.equal(mixed, whole.mix(targets))
        assert not torch.equal(whole.image, x)


def test_a_step_can_be_repeated_and_differs_from_the_next():
    augment, x = Augment(EVERYTHING, dims=2, seed=5), images(8, 1, 20, 20)
    first = augment(x, step=4)
    augment(x, step=5)
    assert torch.equal(augment(x, step=4).image, first.image)
    assert not torch.equal(augment(x, step=5).image, first.image)
    assert not torch.equal(Augment(EVERYTHING, dims=2, seed=6)(x, step=4).image, first.image)


def test_switching_one_operation_off_leaves_the_numbers_of_the_others():
    all_of_them = Augment(EVERYTHING, dims=2, seed=5).sample(3, 8)
    without = Augment({**EVERYTHING, "noise": 0, "gamma": None}, dims=2, seed=5).sample(3, 8)
    assert "noise" not in without.chosen
    for name in without.draws:
        for key, values in without.draws[name].items():
            np.testing.assert_array_equal(values, all_of_them.draws[name][key])
    np.testing.assert_array_equal(without.spatial.matrix, all_of_them.spatial.matrix)


def test_image_and_label_are_moved_and_pasted_together():
    x = torch.zeros(8, 1, 40, 40)
    for k in range(8):
        x[k, 0, 8 : 20 + k, 10 : 25 + k] = 1.0
    label = x.to(torch.int64)
    spec = {"spatial_p": 1, "rotate_deg": 20, "translate": 0.1, "elastic": {"p": 0.5},
            "flip": {"p": 0.5, "axes": ["x"]}, "cutmix": {"p": 0.5}}  # fmt: skip
    out = Augment(spec, dims=2, seed=2)(x, label, step=1)
    assert out.label.dtype == torch.int64
    clear = (out.image - 0.5).abs() > 0.499
    assert torch.equal(out.image[clear] > 0.5, out.label[clear] > 0)
    assert float(clear.float().mean()) > 0.8
    assert not torch.equal(out.label, label)


def test_grey_changes_leave_the_label_alone():
    label = torch.randint(0, 3, (4, 1, 9, 9))
    spec = {name: {"p": 1} for name in ("bias", "gamma", "contrast", "brightness", "blur", "noise", "cutout", "invert")}
    assert torch.equal(Augment(spec, dims=2, seed=2)(images(4, 1, 9, 9), label, step=1).label, label)


def test_mixup_blends_neighbours_and_their_targets_alike():
    x, targets = images(7, 1, 6, 6), torch.eye(7)
    out = Augment({"mixup": {"p": 1, "alpha": 1.0}}, dims=2, seed=1)(x, step=0)
    mixed = out.mix(targets)
    torch.testing.assert_close(mixed.sum(1), torch.ones(7))
    # Targets that name the samples say of what each image is made.
    torch.testing.assert_close(torch.einsum("bk,kcyx->bcyx", mixed, x), out.image, atol=1e-6, rtol=0)
    for k in range(6):
        assert set(torch.nonzero(mixed[k]).flatten().tolist()) == {k, k ^ 1}
        assert float(mixed[k, k]) == pytest.approx(float(mixed[k ^ 1, k ^ 1]))
    assert torch.equal(out.image[6], x[6])  # no partner
    assert mixed[6, 6] == 1


def test_mixup_weights_follow_the_beta_distribution():
    from scipy import stats

    params = Augment({"mixup": {"p": 1, "alpha": 0.4}}, dims=2, seed=1).sample(0, 4000)
    weights = params.draws["mixup"]["weight"]
    np.testing.assert_array_equal(weights[::2], weights[1::2])
    assert stats.kstest(weights[::2], stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(31, 17), (12, 13, 14)])
def test_cutmix_counts_the_pixels_it_pasted(shape):
    x = torch.arange(8.0).view(8, 1, *(1,) * len(shape)).expand(8, 1, *shape).contiguous()
    out = Augment({"cutmix": {"p": 1}}, dims=len(shape), seed=3)(x, step=0)
    mixed = out.mix(torch.eye(8))
    for k in range(8):
        own = float((out.image[k] == k).float().mean())
        assert float(((out.image[k] == k) | (out.image[k] == (k ^ 1))).float().mean()) == 1
        assert float(mixed[k, k]) == pytest.approx(own, abs=1e-6)
    assert 0.05 < float(mixed.diagonal().mean()) < 0.95


def test_mixup_and_cutmix_share_the_pairs():
    x = images(400, 1, 4, 4)
    params = Augment({"mixup": {"p": 0.5}, "cutmix": {"p": 0.5}}, dims=2, seed=3).sample(0, 400)
    both = params.chosen["mixup"] & params.chosen["cutmix"]
    assert both.any()  # the case that must be resolved occurs
    out = Augment({"mixup": {"p": 0.5}, "cutmix": {"p": 0.5}}, dims=2, seed=3).apply(x, None, params)
    torch.testing.assert_close(out.mix(torch.eye(400)).sum(1), torch.ones(400))
    rebuilt = torch.einsum("bk,kcyx->bcyx", out.mix(torch.eye(400)), x)
    torch.testing.assert_close(rebuilt[params.chosen["mixup"]], out.image[params.chosen["mixup"]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_both_of_a_pair_are_chosen_or_neither(name):
    chosen = Augment({name: {"p": 0.5}}, dims=2, seed=3).sample(0, 201).chosen[name]
    np.testing.assert_array_equal(chosen[:200:2], chosen[1:200:2])
    assert 35 < chosen[:200:2].sum() < 65
    assert not chosen[200]


def test_mix_without_blending_and_with_wrong_targets():
    targets = torch.eye(4)
    assert Mix()(targets) is targets
    with pytest.raises(ValueError, match="one-hot"):
        Mix(torch.ones(4))(torch.arange(4))
    with pytest.raises(ValueError, match="B of 4"):
        Mix(torch.ones(4))(torch.eye(3))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dims", [2, 3])
def test_presets_work_and_never_flip(name, dims):
    x = images(6, 1, *(16,) * dims)
    given_spec = copy.deepcopy(PRESETS[name])
    augment = Augment(PRESETS[name], dims=dims, seed=1)
    out = augment(x, step=0)
    assert out.image.shape == x.shape
    assert torch.isfinite(out.image).all()
    assert (name == "none") == torch.equal(out.image, x)
    assert not augment.sample(0, 100).spatial.flip.any()
    assert PRESETS[name] == given_spec
    again = Augment(json.loads(json.dumps(augment.spec)), dims=dims, seed=1)
    assert again.spec == augment.spec
    assert torch.equal(again(x, step=0).image, out.image)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 9))
def test_flip_rates_and_axes(step, size):
    flips = Augment({"flip": {"p": 1, "axes": ["z", "x"]}}, dims=3, seed=1).sample(step, size).spatial.flip
    np.testing.assert_array_equal(flips, np.tile([True, False, True], (size, 1)))


def test_ranges_are_kept():
    spec = {
        "spatial_p": 1,
        "rotate_deg": 10,
        "scale": [0.9, 1.2],
        "translate": 0.05,
        "gamma": {"p": 0.3, "range": [0.5, 2]},
    }
    params = Augment(spec, dims=2, seed=1).sample(0, 4000)
    area = 1 / np.linalg.det(params.spatial.matrix)
    assert 0.81 <= area.min() < 0.83
    assert 1.42 < area.max() <= 1.44
    angle = np.rad2deg(np.arctan2(params.spatial.matrix[:, 0, 1], params.spatial.matrix[:, 0, 0]))
    assert 9.9 < np.abs(angle).max() <= 10
    assert 0.049 < np.abs(params.spatial.shift).max() <= 0.05
    exponent = params.draws["gamma"]["exponent"]
    assert 0.5 <= exponent.min() < exponent.max() <= 2
    assert abs(np.log(exponent).mean()) < 0.03  # darkening is as likely as brightening
    assert 0.27 < params.chosen["gamma"].mean() < 0.33


def test_crops_stay_inside_the_image():
    params = Augment({"crop": {"p": 1, "scale": [0.5, 0.9]}}, dims=2, seed=1).sample(0, 500)
    window = params.spatial.matrix[:, 0, 0]
    assert (np.abs(params.spatial.shift) <= (1 - window[:, None]) / 2 + 1e-12).all()


def test_bfloat16_batches_keep_their_type():
    x = images(4, 1, 16, 16).to(torch.bfloat16)
    assert Augment(PRESETS["strong"], dims=2, seed=1)(x, step=0).image.dtype == torch.bfloat16


def test_autocast_does_not_reach_the_coordinates():
    x, augment = images(4, 1, 32, 32), Augment({"elastic": {"p": 1}}, dims=2, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(x, step=0).image
    assert torch.equal(inside, augment(x, step=0).image)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"rotation": 5}, r"no key \['rotation'\]; it has"),
        ({"gamma": {"p": 0.5, "gama": 1}}, r"augment.gamma has no key \['gama'\]"),
        ({"gamma": {"range": [1, 2]}}, "must be 0 or hold p"),
        ({"gamma": 0.5}, "must be 0 or hold p"),
        ({"gamma": {"p": 1.5}}, "gamma.p must be from 0.0 to 1.0"),
        ({"gamma": {"p": True}}, "gamma.p must be a number"),
        ({"gamma": {"p": 1, "range": [2, 1]}}, "gamma.range must be low then high"),
        ({"gamma": {"p": 1, "range": 2}}, r"gamma.range must be \[low, high\]"),
        ({"cutout": {"p": 1, "count": 1.5}}, "cutout.count must be a whole number"),
        ({"flip": {"p": 1, "axes": ["z"]}}, r"flip.axes must be different ones of \['y', 'x'\]"),
        ({"flip": {"p": 1, "axes": "x"}}, "flip.axes"),
        ({"padding": "wrap"}, "padding must be one of border"),
        ({"spacing": [1.0]}, "spacing must hold 2"),
        ({"scale": [0.0, 1.0]}, "scale must be from 0.1"),
        ({"translate": -0.1}, "translate must be from 0"),
        ({"rotate_deg": [1, 2, 3]}, "rotate_deg must hold 1"),
        ({"elastic": {"p": 1, "alpha": 0.2, "grid": 4}}, "can fold"),
    ],
)
def test_a_wrong_spec_names_its_key(spec, words):
    with pytest.raises(PlanError, match=words):
        Augment(spec, dims=2, seed=0)


def test_wrong_calls_say_what_is_wrong():
    augment = Augment({"mixup": {"p": 1}}, dims=2, seed=0)
    with pytest.raises(ValueError, match="cut a pair"):
        augment(images(2, 1, 4, 4), step=0, first=1, total=4)
    with pytest.raises(ValueError, match="cut a pair"):
        augment(images(3, 1, 4, 4), step=0, first=0, total=4)
    with pytest.raises(ValueError, match="outside a batch of 4"):
        augment(images(3, 1, 4, 4), step=0, first=2, total=4)
    with pytest.raises(ValueError, match="cannot blend a label map"):
        augment(images(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.int64), step=0)
    with pytest.raises(ValueError, match="floating point"):
        augment(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), step=0)
    with pytest.raises(ValueError, match=r"\(B, C, Y, X\)"):
        augment(torch.zeros(2, 4, 4), step=0)
    with pytest.raises(ValueError, match="at most 4 channels"):
        Augment({"colour": {"p": 1}}, dims=2, seed=0)(images(1, 5, 4, 4), step=0)
    with pytest.raises(PlanError, match="2 or 3 dimensions"):
        Augment({}, dims=1, seed=0)
