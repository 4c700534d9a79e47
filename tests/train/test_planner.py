"""Decisions of the planner: each follows from the fingerprint and carries its reason; tuned numbers are not tested."""

import numpy as np
import pandas as pd
import pytest
import torch

from vesalius.core.errors import PlanError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image, Unit
from vesalius.data.fingerprint import FingerprintBuilder
from vesalius.train.ladder import ladder, wanted_epochs
from vesalius.train.planner import Facts, plan_classification

CPU = torch.device("cpu")
SMALL = {"model.width": 4, "optim.batch_size": 4, "optim.max_steps": 4}


def fingerprint(images, labels=None):
    builder = FingerprintBuilder()
    for image in images:
        builder.add(image)
    labels = labels or ["no", "yes"] * (len(images) // 2)
    rows = {"case_id": [f"c{i}" for i in range(len(images))], "patient_id": [f"p{i}" for i in range(len(images))]}
    return builder.build(pd.DataFrame({**rows, "label": labels, "split": ""}))


def pictures(count=8, shape=(1, 32, 32), unit=Unit.INTENSITY, dtype=np.uint8, **grid):
    draw = np.random.default_rng(0)
    return [Image(Grid(shape[1:], **grid), draw.integers(0, 200, shape).astype(dtype), unit) for _ in range(count)]


def facts(**changes):
    return Facts(**{"classes": 2, "multilabel": False, "train_cases": 100, "other_cases": 50, "device": CPU, **changes})


def planned(images, settings=None, labels=None, **changes):
    return plan_classification(fingerprint(images, labels), facts(**changes), {**SMALL, **(settings or {})})


def test_every_decision_has_a_reason():
    plan, _ = planned(pictures())
    assert len(list(plan)) > 20
    assert all(decision.because for _, decision in plan)


def test_gray_pictures_saved_as_colour_are_gray():
    gray = [Image(i.grid, np.repeat(i.pixels, 3, axis=0), Unit.RED_GREEN_BLUE) for i in pictures()]
    plan, _ = planned(gray)
    assert plan["preprocess.channels"] == 1
    assert plan["preprocess.normalise"] == {"kind": "per_image"}


def test_colour_keeps_its_level_and_its_channels():
    plan, _ = planned(pictures(shape=(3, 32, 32), unit=Unit.RED_GREEN_BLUE))
    assert plan["preprocess.channels"] == 3
    assert plan["preprocess.normalise"]["kind"] == "fixed"
    assert len(plan["preprocess.normalise"]["mean"]) == 3


def test_hounsfield_units_are_windowed_and_keep_their_level():
    grid = {"affine": np.diag([2.0, 2.0, 2.0, 1.0])}
    plan, _ = planned(pictures(4, (1, 16, 16, 16), Unit.HU, np.int16, **grid))
    assert plan["preprocess.window"][0] < -900
    assert plan["preprocess.storage"] == "int16"
    assert plan["preprocess.normalise"]["kind"] == "fixed"


def test_only_volumes_without_any_geometry_are_mirrored():
    nowhere, _ = planned(pictures(4, (1, 16, 16, 16)))
    assert sorted(nowhere["augment.change"]["flip"]["axes"]) == ["x", "y", "z"]
    assert len(nowhere["predict.views"]) == 8
    placed, _ = planned(pictures(4, (1, 16, 16, 16), affine=np.diag([2.0, 2.0, 2.0, 1.0])))
    flat, _ = planned(pictures())
    assert "flip" not in placed["augment.change"]
    assert "flip" not in flat["augment.change"]


def test_other_aspect_ratios_are_not_squeezed():
    images = [*pictures(4), *pictures(4, (1, 32, 64))]
    assert planned(images)[0]["preprocess.fit"] == "pad"
    assert planned(pictures())[0]["preprocess.fit"] == "stretch"


def test_imbalance_is_balanced_unless_the_person_weighs_the_classes():
    labels = ["no"] * 7 + ["yes"]
    assert planned(pictures(), labels=labels)[0]["sampling.balance"] > 0
    assert planned(pictures())[0]["sampling.balance"] == 0
    weighed, _ = planned(pictures(), {"loss.class_weights": [1.0, 5.0]}, labels)
    assert weighed["sampling.balance"] == 0


def test_a_persons_settings_stand():
    plan, flight = planned(pictures(), {"preprocess.size": [24, 24], "optim.lr": 0.01, "model.name": "convnet"})
    assert (plan["preprocess.size"], plan["optim.lr"], plan["model.name"]) == ([24, 24], 0.01, "convnet")
    assert plan.because("optim.lr") == "set by the user"
    assert flight.epochs == pytest.approx(4 * 4 / 100)


def test_contradictions_are_refused_before_anything_is_measured():
    with pytest.raises(PlanError, match=r"preprocess\.dims"):
        planned(pictures(), {"preprocess.dims": 3, "preprocess.size": [24, 24]})


def test_a_smaller_budget_never_buys_a_richer_rung():
    shape = pictures(shape=(1, 200, 160))
    rungs = ladder(fingerprint(shape), planned(shape)[0], CPU)
    areas = [np.prod(rung.size) for rung in rungs]
    assert areas == sorted(areas, reverse=True)
    # The stem of the large picture stays: a small rung must not compute at full resolution.
    assert {rung.stem for rung in rungs} == {"patch"}
    assert wanted_epochs(100) >= wanted_epochs(1000) > wanted_epochs(50_000)


def test_validation_never_costs_more_than_training():
    settings = {"optim.max_steps": 40}
    few = planned(pictures(), settings, other_cases=4)[0]["validate.every"]
    many = planned(pictures(), settings, other_cases=10_000_000)[0]["validate.every"]
    assert few < many == 40
