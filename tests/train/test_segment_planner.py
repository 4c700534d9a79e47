"""Plans of segmentation from fingerprints made by hand; the speed of the machine is given, so that rules are tested."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vesalius.core.errors import PlanError, ResourceError
from vesalius.core.labels import Labels
from vesalius.data.segment_survey import SegmentFingerprint
from vesalius.models.segmenters import activation_values, strides_for
from vesalius.tasks.segment import Segment
from vesalius.train import segment_planner
from vesalius.train.segment_planner import SegmentFacts, plan_segmentation
from vesalius.train.segment_speed import SegmentSpeed, measure_segmenter
from vesalius.train.segmenting import Present, make_segmenter

CPU = torch.device("cpu")
ORGANS = Labels(("background", "liver", "spleen"))
CELLS = Labels(("background", "cell"), instances=True)


def fingerprint(shape, spacing=None, *, count=20, **changes):
    """Cases of one shape; `spacing` is one for all, or one per case ``(N, dims)``."""
    dims = len(shape)
    voxels = int(np.prod(shape))
    base = SegmentFingerprint(
        cases=count,
        looked=count,
        dims=dims,
        channels=1,
        shapes=np.tile(shape, (count, 1)),
        spacings=None if spacing is None else np.broadcast_to(np.asarray(spacing, float), (count, dims)).copy(),
        unit="intensity",
        modality="MR",
        dtype="int16",
        colour=False,
        foreground=np.array([[40.0, 20.0, -30.0, 110.0]]),
        lowest=-50.0,
        values=np.array([[0.0, 900.0]]),
        volumes=np.tile([voxels - voxels // 10 - voxels // 100, voxels // 10, voxels // 100], (count, 1)),
        objects=(0.0, 0.0),
        failed=(),
    )
    return replace(base, **changes)


CT = fingerprint((120, 256, 256), (2.5, 0.8, 0.8), unit="HU", modality="CT")
MR = fingerprint((35, 50, 35), (1.0, 1.0, 1.0))
PROSTATE = fingerprint((20, 320, 320), np.stack([[s, 0.6, 0.6] for s in np.linspace(3.0, 4.0, 20)]))
PICTURES = fingerprint((520, 696), channels=3, colour=True, dtype="uint8", modality="")
SMEAR = replace(PICTURES, objects=(80.0, 30.0), volumes=np.tile([300_000, 60_000], (20, 1)), foreground=np.ones((3, 4)))
TINY = fingerprint((5, 9, 7), (1.0, 1.0, 1.0), count=3)
HUGE = fingerprint((900, 1024, 1024), (0.3, 0.3, 0.3), count=400, unit="HU", modality="CT")
KINDS = {
    "ct": (CT, ORGANS),
    "mr": (MR, ORGANS),
    "thick": (PROSTATE, ORGANS),
    "pictures": (PICTURES, ORGANS),
    "cells": (SMEAR, CELLS),
    "tiny": (TINY, ORGANS),
    "huge": (HUGE, ORGANS),
}


def facts(labels=ORGANS, **changes):
    return SegmentFacts(
        **{"labels": labels, "train_cases": 13, "other_cases": 7, "device": CPU, "workers": 2} | changes
    )


@pytest.fixture
def machine(monkeypatch):
    """A machine whose step takes a time in proportion to the values of the real network; what was asked is kept."""
    asked = []

    def measured(plan, labels, device, **options):
        features, voxels = plan["model.features"] or [32], float(np.prod(plan["model.patch"]))
        values = int(voxels * features[0] * 6)
        batch = int(plan["optim.batch_size"])
        asked.append(list(features))
        speed = machine.seconds_per_value
        return SegmentSpeed(values * batch * speed * 3, values * speed, 10_000 * features[0], values)

    machine = type("Machine", (), {"asked": asked, "seconds_per_value": 2e-9})()
    monkeypatch.setattr(segment_planner, "measure_segmenter", measured)
    return machine


@pytest.mark.parametrize("kind", KINDS)
def test_every_plan_is_whole(machine, kind):
    found, labels = KINDS[kind]
    plan, flight = plan_segmentation(found, facts(labels))
    patch, strides = plan["model.patch"], plan["model.strides"]
    assert len(patch) == found.dims
    assert strides[0] == [1] * found.dims
    steps = np.prod(strides, axis=0)
    assert (np.asarray(patch) % steps == 0).all()
    assert (np.asarray(patch) // steps >= 2).all()
    assert len(plan["model.features"]) == len(strides)
    most = 256 * 256 if found.dims == 2 else 96_000
    assert np.prod(np.asarray(patch) - steps) < most  # sides are rounded up to whole strides
    assert flight.steps == plan["optim.max_steps"] > 0
    assert flight.train_s > 0
    assert flight.memory_bytes > 0
    assert all(line for line in flight.lines())
    for key, decision in plan:
        assert decision.because.strip(), f"{key} has no reason"
        assert "see below" not in decision.because, key
    plan.check()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "huge"])
def test_the_network_of_a_plan_exists_and_takes_its_patch(machine, kind):
    found, labels = KINDS[kind]
    plan, _ = plan_segmentation(found, facts(labels), {"model.features": None})
    plan.overrule({"model.features": [4] * len(plan["model.strides"])})
    task = Segment(labels, plan.section("loss"))
    network = make_segmenter(plan, task, 0).eval()
    multiple = np.asarray(network.multiple)
    np.testing.assert_array_equal(multiple, np.prod(plan["model.strides"], axis=0))
    with torch.inference_mode():
        out = network(torch.zeros(1, found.channels, *plan["model.patch"]))
    assert out.shape == (1, task.outputs, *plan["model.patch"])


class TestPixels:
    def test_hounsfield_units_keep_their_level(self, machine):
        plan, _ = plan_segmentation(CT, facts())
        assert plan["conform.window"] == [-30.0, 110.0]
        assert plan["conform.normalise"] == {"kind": "fixed", "mean": [40.0], "std": [20.0]}
        assert plan["predict.skip_below"] is not None

    def test_lungs_are_not_skipped_as_air(self, machine):
        plan, _ = plan_segmentation(replace(CT, lowest=-950.0), facts())
        assert plan["predict.skip_below"] is None

    def test_mr_is_normalised_in_the_body_and_never_skipped(self, machine):
        plan, _ = plan_segmentation(MR, facts())
        assert plan["conform.normalise"] == {"kind": "body"}
        assert plan["conform.window"] is None
        assert plan["predict.skip_below"] is None

    def test_pictures(self, machine):
        plan, _ = plan_segmentation(PICTURES, facts())
        assert (plan["conform.dims"], plan["conform.channels"]) == (2, 3)
        assert plan["conform.normalise"]["kind"] == "percentile"
        assert plan["conform.spacing_mm"] is None


class TestSpacing:
    def test_one_spacing_is_kept(self, machine):
        plan, _ = plan_segmentation(MR, facts())
        assert plan["conform.spacing_mm"] is None
        assert "one spacing" in plan.because("conform.spacing_mm")

    def test_the_median(self, machine):
        spacings = np.array([[1.0, 0.7, 0.7], [2.0, 0.8, 0.8], [1.5, 0.9, 0.9]])
        found = fingerprint((60, 100, 100), spacings, count=3)
        assert plan_segmentation(found, facts())[0]["conform.spacing_mm"] == [1.5, 0.8, 0.8]

    def test_thick_slices_take_the_tenth_percentile(self, machine):
        """Isensee et al. 2021, online methods: more than three times as thick."""
        plan, _ = plan_segmentation(PROSTATE, facts())
        wanted = np.percentile(PROSTATE.spacings[:, 0], 10)
        assert plan["conform.spacing_mm"] == pytest.approx([wanted, 0.6, 0.6], abs=1e-3)

    def test_the_thick_axis_is_never_finer_than_the_plane(self, machine):
        spacings = np.tile([5.0, 1.0, 1.0], (20, 1))
        spacings[:4, 0] = 0.5
        plan, _ = plan_segmentation(fingerprint((60, 100, 100), spacings), facts())
        assert plan["conform.spacing_mm"] == [1.0, 1.0, 1.0]

    def test_the_axis_may_be_any(self, machine):
        spacings = np.stack([[0.6, s, 0.6] for s in np.linspace(3.0, 4.0, 20)])
        plan, _ = plan_segmentation(fingerprint((320, 20, 320), spacings), facts())
        wanted = np.percentile(spacings[:, 1], 10)
        assert plan["conform.spacing_mm"] == pytest.approx([0.6, wanted, 0.6], abs=1e-3)
        assert [stride[1] for stride in plan["model.strides"]][:2] == [1, 1]


class TestStrides:
    def test_thick_slices_are_halved_later(self, machine):
        plan, _ = plan_segmentation(PROSTATE, facts())
        across = [stride[0] for stride in plan["model.strides"]]
        assert across[:3] == [1, 1, 1]
        assert [stride[1:] for stride in plan["model.strides"]][1:3] == [[2, 2], [2, 2]]

    def test_by_hand(self):
        # (64, 64) halves while 8 or more are left: 64 32 16 8 -> 4.
        assert strides_for((64, 64), (1, 1)) == ((1, 1), *[(2, 2)] * 4)
        assert strides_for((7, 7, 7), (1, 1, 1)) == ((1, 1, 1),)
        # 4 mm slices beside 1 mm pixels: two halvings in the plane until the steps are 4, 4, 4.
        assert strides_for((16, 64, 64), (4, 1, 1))[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
        # A side that does not divide is not halved when the patch is given: 20 10 5, then 32 goes on alone.
        assert strides_for((20, 32), (1, 1), exact=True) == ((1, 1), (2, 2), (2, 2), (1, 2))

    @pytest.mark.parametrize("patch", [[12, 20, 28], [9, 33, 16], [17, 19, 23], [64, 8, 8], [5, 6, 7]])
    def test_a_given_patch_divides(self, machine, patch):
        plan, _ = plan_segmentation(MR, facts(), {"model.patch": patch})
        assert plan["model.patch"] == patch
        steps = np.prod(plan["model.strides"], axis=0)
        assert (np.asarray(patch) % steps == 0).all()

    def test_a_patch_that_given_strides_do_not_divide_is_refused(self, machine):
        settings = {"model.patch": [15, 16, 16], "model.strides": [[1, 1, 1], [2, 2, 2]]}
        with pytest.raises(PlanError, match=r"model\.patch"):
            plan_segmentation(MR, facts(), settings)

    def test_given_strides_shape_the_patch(self, machine):
        strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
        plan, _ = plan_segmentation(MR, facts(), {"model.strides": strides})
        assert plan["model.strides"] == strides
        assert (np.asarray(plan["model.patch"]) % 4 == 0).all()
        assert len(plan["model.features"]) == 3


class TestSizes:
    def test_a_small_case_is_seen_whole(self, machine):
        plan, _ = plan_segmentation(MR, facts())
        assert (np.asarray(plan["model.patch"]) >= MR.shape).all()
        assert "whole" in plan.because("model.patch")

    def test_a_large_case_in_parts_that_are_cubes_in_mm(self, machine):
        plan, _ = plan_segmentation(CT, facts())
        sides = np.asarray(plan["model.patch"]) * (2.5, 0.8, 0.8)
        assert sides.max() / sides.min() < 1.6
        assert "more does not fit" in plan.because("model.patch")

    def test_objects_are_shrunk_to_what_a_network_sees(self, machine):
        assert plan_segmentation(SMEAR, facts(CELLS))[0]["conform.scale"] == pytest.approx(32 / 80)
        small = replace(SMEAR, objects=(20.0, 30.0))
        assert plan_segmentation(small, facts(CELLS))[0]["conform.scale"] == 1.0


class TestLimits:
    def test_the_stated_memory_is_kept(self, machine):
        free, flight = plan_segmentation(CT, facts())
        limit = flight.memory_bytes - 1
        plan, less = plan_segmentation(CT, facts(memory_bytes=limit))
        assert less.memory_bytes <= limit
        assert plan["model.features"][0] < free["model.features"][0]
        assert plan["run.memory_bytes"] == limit

    @pytest.mark.parametrize("kind", ["ct", "huge", "pictures"])
    def test_what_fits_nowhere_is_said(self, machine, kind):
        found, labels = KINDS[kind]
        with pytest.raises(ResourceError, match="--memory") as caught:
            plan_segmentation(found, facts(labels, memory_bytes=200 << 20))
        assert caught.value.exit_code == 5
        assert "\n" not in str(caught.value)

    def test_a_budget_decides_width_and_steps(self, machine):
        found, widths = [], []
        for budget in (30.0, 300.0, 30_000.0):
            plan, flight = plan_segmentation(MR, facts(budget_s=budget))
            assert flight.train_s <= budget
            assert plan["optim.max_steps"] >= 8
            assert plan["run.budget_s"] == budget
            found.append(flight.steps)
            widths.append(plan["model.features"][0])
        assert widths == sorted(widths)
        assert widths[0] < widths[-1] == 32

    def test_time_is_kept_for_choosing_how_objects_are_cut_apart(self, machine):
        def kept(labels, others):
            plan, _ = plan_segmentation(SMEAR, facts(labels, budget_s=3000.0, other_cases=others))
            return plan["run.reserve_s"]

        plain = Labels(("background", "cell"))
        some, many, more = (kept(CELLS, others) - kept(plain, others) for others in (7, 300, 600))
        assert some > 520 * 696 * 3 * 4e-6
        assert many > 5 * some
        assert more == pytest.approx(many), "a limited number of cases is looked at"

    def test_without_a_budget_the_default_length(self, machine):
        assert plan_segmentation(MR, facts())[0]["optim.max_steps"] == 6000


class TestSettings:
    def test_what_a_person_sets_is_kept(self, machine):
        settings = {
            "model.patch": [16, 32, 32],
            "model.features": [4, 8, 16],
            "model.strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "optim.max_steps": 7,
            "optim.batch_size": 2,
            "conform.spacing_mm": [2.0, 1.0, 1.0],
            "conform.normalise": {"kind": "none"},
            "loss.name": "tversky_ce",
            "predict.overlap": 0.25,
        }
        plan, flight = plan_segmentation(CT, facts(), settings)
        for key, value in settings.items():
            assert plan[key] == value
            assert plan.because(key) == "set by the user"
        assert flight.steps == 7
        assert plan["model.norm"] == "instance"  # follows from the batch that was set

    def test_epochs_become_steps(self, machine):
        plan, flight = plan_segmentation(MR, facts(train_cases=40), {"optim.epochs": 3, "optim.batch_size": 4})
        assert flight.steps == 30
        assert plan["optim.max_steps"] is None

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"optim.epochs": 2, "optim.max_steps": 9}, "optim.epochs"),
            ({"model.patch": [16, 16]}, "model.patch"),
            ({"conform.spacing_mm": [1.0, 1.0]}, "conform.spacing_mm"),
            ({"model.features": [4, 8], "model.strides": [[1, 1, 1]]}, "model.features"),
            ({"model.features": [4]}, "model.features"),
            ({"model.strides": [[1, 1], [2, 2]]}, "model.strides"),
            ({"optim.batch_size": 5, "optim.accumulate": 2}, "optim.accumulate"),
            ({"predict.views": [[3]]}, "predict.views"),
            ({"loss.focal_gamma": 2.0}, "loss.focal_gamma"),
            ({"post.steps": [{"kind": "largest"}]}, "post.steps"),
            ({"post.steps": [{"label": 1, "keep": "all"}]}, "post.steps"),
            ({"model.nmae": "unet"}, "model.nmae"),
        ],
        ids=lambda v: " ".join(v) if isinstance(v, dict) else "",
    )
    def test_contradictions_are_refused(self, settings, words, machine):
        with pytest.raises(PlanError, match=words) as caught:
            plan_segmentation(MR, facts(), settings)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("labels", "name"), [(ORGANS, "mixup"), (CELLS, "cutmix"), (CELLS, "nosuch")])
def test_masks_are_not_blended(labels, name):
    """The strong preset mixes images for classification; a person who asks for it here is told."""
    settings = {"model.patch": [32, 32], "model.features": [4, 8], "model.strides": [[1, 1], [2, 2]]}
    found = SMEAR if labels.instances else PICTURES
    plan, _ = plan_segmentation(found, facts(labels), settings)
    assert plan["augment.preset"] == "strong"
    present = Present(plan, Segment(labels, plan.section("loss")), CPU, 0)
    assert not present.augment.spec["mixup"]
    with pytest.raises(PlanError, match=name):
        plan_segmentation(found, facts(labels), settings | {"augment.change": {name: {"p": 0.5}}})


class TestStructures:
    def test_weights_are_the_inverse_root_of_frequency(self, machine):
        plan, _ = plan_segmentation(MR, facts())
        share = MR.volumes[0] / MR.volumes[0].sum()
        wanted = np.clip(np.sqrt(share[0] / share), 1, 12)
        np.testing.assert_allclose(plan["loss.class_weights"], wanted, atol=0.01)

    def test_left_and_right_are_not_mirrored(self, machine):
        sided = Labels(("background", "left kidney", "right kidney"))
        change = plan_segmentation(CT, facts(sided))[0]
        assert "flip" not in change["augment.change"] or change["augment.change"]["flip"]["p"] == 0
        assert change["predict.views"] in ([], [[]])
        free = plan_segmentation(CT, facts(ORGANS))[0]
        assert free["augment.change"]["flip"]["axes"] == ["x"]


@pytest.mark.parametrize("labels", [ORGANS, CELLS], ids=["classes", "objects"])
def test_the_measured_network_is_the_planned_one(labels):
    settings = {"model.patch": [32, 32], "model.features": [4, 8], "model.strides": [[1, 1], [2, 2]]}
    found = replace(SMEAR if labels.instances else PICTURES, foreground=np.ones((3, 4)))
    plan, flight = plan_segmentation(found, facts(labels), settings | {"optim.max_steps": 5})
    network = make_segmenter(plan, Segment(labels, plan.section("loss")), 0)
    assert flight.parameters == sum(p.numel() for p in network.parameters())
    speed = measure_segmenter(plan, labels, CPU, steps=1)
    assert speed.values == activation_values(network, 3, (32, 32))
    assert 0 < speed.tile_s < speed.step_s * 2
