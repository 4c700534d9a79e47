"""From what images and masks are like to a plan of segmentation, every decision with its reason.

The rules for spacing, patch and strides follow Isensee et al., "nnU-Net", Nature Methods 2021; what the machine can do
in the time there is decides how much network they are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vesalius.core.errors import PlanError, ResourceError
from vesalius.core.labels import Labels
from vesalius.core.plan import Plan
from vesalius.core.quantity import show_bytes
from vesalius.data.cases import mask_values
from vesalius.data.segment_survey import SegmentFingerprint
from vesalius.measure.components import Step
from vesalius.models.segmenters import strides_for
from vesalius.predict.device import fast_bf16
from vesalius.predict.tiles import tile_starts
from vesalius.tasks.instances import MOST_TUNED
from vesalius.tasks.segment import regions_of
from vesalius.train.circumstances import Circumstances, Preflight, decide_run
from vesalius.train.segment_speed import SegmentSpeed, measure_segmenter
from vesalius.transforms.conform import Conform

_THICK = 3.0
"""Spacings that differ by more than this factor are treated as thick slices."""

_PATCH_VALUES = {("cpu", 2): 256 * 256, ("cpu", 3): 96_000, ("gpu", 2): 512 * 512, ("gpu", 3): 128**3}
_BATCH = {("cpu", 2): 8, ("cpu", 3): 4, ("gpu", 2): 12, ("gpu", 3): 2}
_WIDTHS = {"cpu": (32, 24, 16, 12, 8), "gpu": (32,)}
_LARGEST = {("cpu", 2): 256, ("cpu", 3): 320, ("gpu", 2): 512, ("gpu", 3): 320}
# Pictures hold many objects each: a wide top layer is worth more than a deep, expensive bottom (docs/segmentation.md).
_STAGES = {("cpu", 2): 6, ("cpu", 3): 7, ("gpu", 2): 7, ("gpu", 3): 7}
_WANTED_STEPS = {2: 500, 3: 1800}
"""Gradient steps after which a wider network starts to pay; how it was measured: docs/segmentation.md."""

_MOST_STEPS = 60_000
_DEFAULT_STEPS = {"cpu": 6_000, "gpu": 30_000}
_BASE_BYTES = 1000 << 20
REPORT_S = 10.0
_TUNING_S = 4.5e-6
"""Seconds a pixel to try every setting that cuts objects apart, measured on pictures of nuclei."""
LOOKS = 8


@dataclass(frozen=True, kw_only=True)
class SegmentFacts(Circumstances):
    """What a plan is made from, beside the data: the classes of the masks, cases, machine and time."""

    labels: Labels


def plan_segmentation(
    found: SegmentFingerprint, facts: SegmentFacts, settings: Mapping[str, Any] | None = None
) -> tuple[Plan, Preflight]:
    """The plan and what it will take; a person's `settings` are kept and the rest is planned around them.

    Raises
    ------
    PlanError
        If settings contradict each other.
    ResourceError
        If no plan fits the stated memory.
    """
    settings = dict(settings or {})
    plan = Plan("segment")
    decide_run(plan, facts)
    plan.decide("split.folds", 0, "the time buys one network on one split; set 5 for a cross-validated ensemble")
    _pixels(plan, found)
    _learning(plan, found, facts)
    plan.overrule(settings)
    plan.check()
    _check_settings(plan)
    _patch(plan, found, facts, settings)
    plan.overrule(settings)
    plan.check()
    speed = _network(plan, found, facts, settings)
    _schedule(plan, found, facts, settings, speed)
    _inference(plan, found, facts)
    plan.overrule(settings)
    plan.check()
    flight = _preflight(plan, found, facts, speed)
    if facts.memory_bytes is not None and flight.memory_bytes > facts.memory_bytes:
        raise ResourceError(
            f"--memory {show_bytes(facts.memory_bytes)}: the smallest plan takes about "
            f"{show_bytes(flight.memory_bytes)}; give more memory, or set a smaller model.patch"
        )
    return plan, flight


def _check_settings(plan: Plan) -> None:
    """Mistakes that would be noticed only when cases are prepared, or after the training, are told now."""
    Conform(plan.section("conform"))
    for step in plan["post.steps"] or ():
        try:
            Step.of(step)
        except (ValueError, TypeError) as error:
            raise PlanError(f"post.steps: {error}") from None


def _pixels(plan: Plan, found: SegmentFingerprint) -> None:
    plan.decide("conform.dims", found.dims, f"the images have {found.dims} dimensions")
    plan.decide("conform.channels", found.channels, f"the images have {found.channels} channels")
    plan.decide("conform.crop", "border" if found.dims == 3 else "none", "planes of padding hold nothing")
    _spacing(plan, found)
    if found.hounsfield:
        mean, std, low, high = (float(v) for v in found.foreground[0])
        plan.decide(
            "conform.window", [round(low, 1), round(high, 1)], "0.5th to 99.5th percentile of HU inside structures"
        )
        normal = {"kind": "fixed", "mean": [round(mean, 2)], "std": [round(max(std, 1e-3), 2)]}
        plan.decide("conform.normalise", normal, "HU mean the same in every scanner, so their level is kept")
    elif found.dims == 2:
        plan.decide(
            "conform.normalise",
            {"kind": "percentile"},
            "exposure and stain differ by image; one robust range for all channels keeps their relation",
        )
    else:
        plan.decide(
            "conform.normalise", {"kind": "body"}, "intensities of MR have no absolute level: per case, inside the body"
        )


def _spacing(plan: Plan, found: SegmentFingerprint) -> None:
    if found.spacings is None:
        scale = _scale(found)
        if scale != 1.0:
            plan.decide("conform.scale", scale, f"objects of {found.objects[0]:.0f} pixels are larger than needed")
        return
    target = np.median(found.spacings, axis=0)
    why = "median spacing of the training cases"
    thick = int(np.argmax(target))
    if target[thick] > _THICK * np.min(np.delete(target, thick)):
        target[thick] = max(float(np.percentile(found.spacings[:, thick], 10)), float(np.max(np.delete(target, thick))))
        why = "median in the plane; across thick slices the 10th percentile, so that thin ones are not thrown away"
    spread = found.spacings.max(axis=0) / found.spacings.min(axis=0)
    if float(spread.max()) < 1.02:
        plan.decide("conform.spacing_mm", None, "all cases have one spacing; nothing is resampled")
        return
    plan.decide("conform.spacing_mm", [round(float(s), 4) for s in target], why)


def _scale(found: SegmentFingerprint) -> float:
    """Objects of more than 48 pixels across are seen as well at half the size, for a quarter of the work."""
    diameter = found.objects[0]
    return 1.0 if diameter <= 48 or found.dims == 3 else round(max(0.1, 32 / diameter), 3)


def _sides(plan: Plan, found: SegmentFingerprint) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Median sides and spacing (ones where unknown) as the network sees them."""
    shape = np.median(found.shapes, axis=0).astype(float)
    spacing = np.ones(found.dims) if found.spacings is None else np.median(found.spacings, axis=0)
    target = plan["conform.spacing_mm"]
    if target is not None and found.spacings is not None:
        shape = np.median(found.shapes * found.spacings / np.asarray(target), axis=0)
        spacing = np.asarray(target, dtype=float)
    elif found.spacings is None:
        shape = shape * float(plan["conform.scale"])
    return np.maximum(np.round(shape), 1), np.asarray(spacing, dtype=float)


def _learning(plan: Plan, found: SegmentFingerprint, facts: SegmentFacts) -> None:
    labels = facts.labels
    free = found.dims == 2 and found.spacings is None
    plan.decide(
        "model.name", "unet", "the most accurate for its cost on small machines" if facts.kind == "cpu" else "see below"
    )
    if facts.kind == "gpu":
        plan.decide(
            "model.name", "resunet", "residual encoders are the more accurate where a GPU has the time for them"
        )
    plan.decide("loss.name", "dice_ce", "overlap is what is reported, cross-entropy is proper for every voxel")
    _weights(plan, found, labels)
    present = found.volumes[:, 1:] if found.volumes.shape[1] > 1 else found.volumes
    share = np.median(present / np.maximum(found.volumes.sum(axis=1, keepdims=True), 1), axis=0)
    if not labels.instances and len(share) and float(share.min()) < 1e-3:
        plan.decide(
            "loss.batch_dice", True, f"the smallest structure takes {share.min():.1e} of a case; some patches lack it"
        )
    plan.decide("sampling.foreground", 0.5, "half of the patches lie around a structure, each structure equally often")
    plan.decide(
        "augment.preset",
        "strong" if free else "medium",
        "stains, magnification and exposure vary widely"
        if free
        else "position, scanner and noise vary; anatomy does not",
    )
    change, views, why = _mirrors(found, labels)
    if change:
        plan.decide("augment.change", change, why)
        plan.decide("predict.views", views, why)
    plan.decide("optim.name", "adamw", "reaches a good optimum in few steps")
    plan.decide("optim.lr", 3e-3, "for this optimiser and batch; how it was chosen: docs/segmentation.md")
    plan.decide("optim.weight_decay", 1e-2, "decoupled (Loshchilov and Hutter 2019)")
    plan.decide("optim.schedule", "one_cycle", "the whole length is known before training starts")
    plan.decide("optim.warmup", 0.1, "the rate falls during most of the time")
    plan.decide("optim.clip", 5.0, "one odd patch must not undo the training")
    bf16 = facts.device.type != "mps" and fast_bf16(facts.device)
    plan.decide(
        "optim.precision",
        "bf16" if bf16 else "fp32",
        "bfloat16 is in the hardware and halves the time" if bf16 else "no fast bfloat16 here",
    )
    plan.decide("validate.metric", "dice", "what is reported first")
    plan.decide(
        "validate.keep", "last", "after a full cycle the averaged last weights are best, and no case chooses them"
    )


_LARGEST_WEIGHT = 12.0


def _weights(plan: Plan, found: SegmentFingerprint, labels: Labels) -> None:
    """Voxel weights by the inverse root of frequency: without them short trainings stay at background for long."""
    if labels.instances:
        return
    if labels.multilabel:
        _region_weights(plan, found, labels)
        return
    share = found.volumes.sum(axis=0) / max(float(found.volumes.sum()), 1.0)
    weights = np.clip(np.sqrt(share[0] / np.maximum(share, 1e-9)), 1.0, _LARGEST_WEIGHT)
    if weights.max() > 1.5:
        plan.decide(
            "loss.class_weights",
            [round(float(w), 2) for w in weights],
            "inverse root of the number of voxels: small structures are learnt in hundreds of steps, not thousands",
        )


def _region_weights(plan: Plan, found: SegmentFingerprint, labels: Labels) -> None:
    values = mask_values(labels)
    total = found.volumes.sum(axis=0)
    inside = np.array([sum(total[values.index(v)] for v in region if v in values) for region in regions_of(labels)])
    weights = np.clip(np.sqrt((total.sum() - inside) / np.maximum(inside, 1)), 1.0, _LARGEST_WEIGHT)
    if weights.max() > 1.5:
        plan.decide(
            "loss.positive_weights",
            [round(float(w), 2) for w in weights],
            "inverse root of the share of each region: small regions are learnt in hundreds of steps, not thousands",
        )


def _mirrors(found: SegmentFingerprint, labels: Labels) -> tuple[dict[str, Any], list[list[int]], str]:
    """Which mirror images are as likely as the original."""
    if found.dims == 2 and found.spacings is None:
        change = {"flip": {"p": 0.5, "axes": ["y", "x"]}}
        return change, [[], [0], [1], [0, 1]], "pictures without a position have no up or left"
    sided = any(word in name.casefold() for name in labels.names for word in ("left", "right", "links", "rechts"))
    if found.dims == 3 and found.spacings is not None and not sided:
        change = {"flip": {"p": 0.5, "axes": ["x"]}}
        return change, [[], [2]], "no structure is called left or right, and bodies are nearly symmetric"
    return {}, [], ""


def _patch(plan: Plan, found: SegmentFingerprint, facts: SegmentFacts, settings: Mapping[str, Any]) -> None:
    shape, spacing = _sides(plan, found)
    if "model.patch" not in settings:
        most = _PATCH_VALUES[facts.kind, found.dims]
        if facts.budget_s is not None and facts.kind == "cpu":
            # In a few minutes many small patches teach more than few large ones.
            most = int(most * np.clip(facts.budget_s / 300, 0.35, 1.0))
        sides = _fitted(shape, spacing, most)
        strides = plan["model.strides"] or strides_for(sides, spacing.tolist(), stages=_STAGES[facts.kind, found.dims])
        steps = np.prod(np.array(strides), axis=0)
        patch = [int(max(-(-side // step) * step, step)) for side, step in zip(sides, steps, strict=True)]
        whole = all(p >= s for p, s in zip(patch, shape, strict=True))
        plan.decide(
            "model.patch",
            patch,
            "a median case is seen whole"
            if whole
            else f"median case {[int(s) for s in shape]}; more does not fit time and memory",
        )
    if "model.strides" not in settings and plan["model.name"] in ("unet", "resunet"):
        chosen = strides_for(plan["model.patch"], spacing.tolist(), stages=_STAGES[facts.kind, found.dims], exact=True)
        plan.decide("model.strides", [list(s) for s in chosen], "halved until about 4 cells a side, thick slices later")
    if "optim.batch_size" not in settings:
        plan.decide("optim.batch_size", _BATCH[facts.kind, found.dims], "enough for stable statistics on this device")
    normal = "batch" if plan["optim.batch_size"] >= 4 else "instance"
    plan.decide(
        "model.norm",
        normal,
        "statistics of a batch cost nothing at prediction: they fold into the convolutions"
        if normal == "batch"
        else "the batch is too small for its statistics",
    )


def _fitted(shape: np.ndarray[Any, Any], spacing: np.ndarray[Any, Any], most: int) -> list[int]:
    """Sides of at most `most` values: the median case, its longest side in mm shortened first."""
    sides = np.maximum(shape.copy(), 4)
    while np.prod(sides) > most:
        sides[int(np.argmax(sides * spacing * (sides > 8)))] *= 0.96
    return [max(4, round(float(side))) for side in sides]


def _network(plan: Plan, found: SegmentFingerprint, facts: SegmentFacts, settings: Mapping[str, Any]) -> SegmentSpeed:
    """The widest network that can be trained long enough in the time and memory there is."""
    if "model.features" in settings or "model.width" in settings or plan["model.name"] not in ("unet", "resunet"):
        return measure_segmenter(plan, facts.labels, facts.device)
    stages = len(plan["model.strides"])
    speed = None
    for width in _WIDTHS[facts.kind]:
        features = [min(_LARGEST[facts.kind, found.dims], width * 2**k) for k in range(stages)]
        plan.decide("model.features", features, "")
        if facts.kind == "cpu" and "model.depths" not in settings and plan["model.name"] == "unet":
            plan.decide("model.depths", [2] * stages, "two convolutions per stage")
        if facts.budget_s is None and facts.kind == "cpu" and width > 16:
            continue
        speed = measure_segmenter(plan, facts.labels, facts.device)
        fits = facts.memory_bytes is None or _memory(plan, found, speed) <= facts.memory_bytes
        wanted = _WANTED_STEPS[found.dims]
        if fits and (
            facts.budget_s is None
            or facts.kind != "cpu"
            or _train_seconds(facts, found, plan, speed) / speed.step_s >= wanted
        ):
            break
    if speed is None:
        raise PlanError("no width of the network is left to choose from")
    reason = (
        f"{speed.step_s * 1e3:.0f} ms a step: the widest that leaves {_WANTED_STEPS[found.dims]} steps in the budget"
    )
    plan.decide("model.features", plan["model.features"], reason if facts.budget_s else "the default for this device")
    return speed


def _tiles(plan: Plan, found: SegmentFingerprint) -> float:
    """Tiles of a median case."""
    shape, _ = _sides(plan, found)
    grid = float(plan["predict.overlap"]), float(plan["predict.slack"])
    sides = zip(shape, plan["model.patch"], strict=True)
    return float(math.prod(len(tile_starts(int(side), int(patch), *grid)) for side, patch in sides))


def _case_seconds(plan: Plan, found: SegmentFingerprint, speed: SegmentSpeed) -> float:
    voxels = float(np.prod(np.median(found.shapes, axis=0)))
    return _tiles(plan, found) * speed.tile_s + voxels * 4e-8 + 0.02


def _test_seconds(facts: SegmentFacts, found: SegmentFingerprint, plan: Plan, speed: SegmentSpeed) -> float:
    case = _case_seconds(plan, found, speed) * max(1, len(plan["predict.views"]))
    seconds = REPORT_S + facts.other_cases * (case + 0.05) * 0.8
    if not facts.labels.instances:
        return seconds
    # How objects are cut apart is chosen by trying a hundred settings on validation cases.
    val, test = float(plan["split.val"]), float(plan["split.test"])
    tuned = min(MOST_TUNED, facts.other_cases * val / max(val + test, 1e-9))
    return seconds + tuned * (case + float(np.prod(np.median(found.shapes, axis=0))) * _TUNING_S)


def _train_seconds(facts: SegmentFacts, found: SegmentFingerprint, plan: Plan, speed: SegmentSpeed) -> float:
    budget = facts.budget_s or 0.0
    return max(budget - _test_seconds(facts, found, plan, speed), 0.3 * budget)


def _schedule(
    plan: Plan, found: SegmentFingerprint, facts: SegmentFacts, settings: Mapping[str, Any], speed: SegmentSpeed
) -> None:
    per_epoch = facts.train_cases / int(plan["optim.batch_size"])
    if settings.get("optim.max_steps") is not None:
        total = int(plan["optim.max_steps"])
    elif settings.get("optim.epochs") is not None:
        total = round(float(plan["optim.epochs"]) * per_epoch)
    elif facts.budget_s is not None:
        reserve = _test_seconds(facts, found, plan, speed)
        plan.decide("run.reserve_s", round(reserve, 1), "measured speed of prediction, and what the report takes")
        seconds = _train_seconds(facts, found, plan, speed)
        total = int(np.clip(seconds / speed.step_s, 8, _MOST_STEPS))
        plan.decide("optim.max_steps", total, f"{seconds:.0f} s for training at {speed.step_s * 1e3:.0f} ms a step")
    else:
        total = _DEFAULT_STEPS[facts.kind]
        plan.decide("optim.max_steps", total, "without a budget: what most data sets need on this device")
    average = round(min(0.999, max(0.9, 1 - 20 / max(total, 1))), 4)
    plan.decide("optim.ema", average, "averages about the last twentieth of the steps")
    look = _case_seconds(plan, found, speed) * min(24, max(1.0, 0.4 * facts.other_cases))
    looks = max(1, min(LOOKS, int(0.08 * total * speed.step_s / max(look, 1e-9))))
    plan.decide("validate.every", max(1, -(-total // looks)), f"{looks} looks at the validation cases cost little")


def _inference(plan: Plan, found: SegmentFingerprint, facts: SegmentFacts) -> None:
    values = int(np.prod(plan["model.patch"]))
    plan.decide(
        "predict.batch_size", int(np.clip((1 << 20) // values, 1, 8)), "tiles of about a million values at a time"
    )
    if found.hounsfield and found.lowest > -500 and facts.device.type == "cpu":
        plan.decide(
            "predict.skip_below", -900.0, f"99.9 % of structures lie above {found.lowest:.0f} HU; air needs no network"
        )


def _memory(plan: Plan, found: SegmentFingerprint, speed: SegmentSpeed) -> int:
    batch = int(plan["optim.batch_size"]) // int(plan["optim.accumulate"])
    width = 2 if plan["optim.precision"] != "fp32" else 4
    pixels = int(np.prod(plan["model.patch"]))
    activations = batch * (speed.values * width + pixels * (8 * int(plan["conform.channels"]) + 40))
    # Weights, the network, gradients, two moments and the average, which is decided after the width is.
    weights = speed.parameters * 4 * 6
    return int(_BASE_BYTES + activations * 1.15 + weights + min(_disk(plan, found) * 2, (8 << 30) // 4))


def _disk(plan: Plan, found: SegmentFingerprint) -> int:
    shape, _ = _sides(plan, found)
    return int(np.prod(shape)) * found.cases * (2 * found.channels + 1)


def _preflight(plan: Plan, found: SegmentFingerprint, facts: SegmentFacts, speed: SegmentSpeed) -> Preflight:
    per_epoch = facts.train_cases / int(plan["optim.batch_size"])
    steps = int(plan["optim.max_steps"] or round(float(plan["optim.epochs"] or 1) * per_epoch))
    return Preflight(
        train_s=steps * speed.step_s,
        test_s=_test_seconds(facts, found, plan, speed),
        memory_bytes=_memory(plan, found, speed),
        disk_bytes=_disk(plan, found),
        parameters=speed.parameters,
        steps=steps,
        epochs=steps / max(per_epoch, 1e-9),
    )
