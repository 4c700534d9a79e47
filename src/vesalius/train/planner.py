"""From a fingerprint to a plan in which every decision carries its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vesalius.core.plan import Plan
from vesalius.data.fingerprint import Fingerprint
from vesalius.predict.device import fast_bf16
from vesalius.train import speed as trial
from vesalius.train.circumstances import Circumstances, Preflight, decide_run
from vesalius.train.ladder import Rung, ladder, wanted_epochs


@dataclass(frozen=True, kw_only=True)
class Facts(Circumstances):
    """What a plan is made from, beside the images: the question, cases, machine and time.

    Parameters
    ----------
    classes, multilabel
        The question.
    """

    classes: int
    multilabel: bool


BASE_MEMORY = 700 << 20
"""What Python, torch and the tables of a run take before any pixel."""

LOOKS, VALIDATED = 8, 0.4
"""Validations during a training, at most, and the part of the held-out cases that is for validation."""

MOST_TIMES = 3
"""A budget buys at most this many times the wanted epochs; more only learns the training cases by heart."""

REPORT_S = 5.0
"""Seconds from the last prediction to the finished report: bootstrap, pictures, page."""


def plan_classification(
    found: Fingerprint, facts: Facts, settings: Mapping[str, Any] | None = None
) -> tuple[Plan, Preflight]:
    """The plan and what it will take.

    Parameters
    ----------
    settings
        A person's own decisions; they are kept, and the rest is planned around them.

    Raises
    ------
    PlanError
        If settings contradict each other.
    """
    settings = dict(settings or {})
    plan = Plan("classify")
    decide_run(plan, facts)
    _pixels(plan, found)
    _learning(plan, found, facts)
    if settings.get("loss.class_weights") is not None:
        settings.setdefault("sampling.balance", 0.0)  # the person's way of correcting the imbalance
    plan.overrule(settings)
    plan.check()
    plan, measured = _size(plan, found, facts, settings)
    _schedule(plan, facts, settings, measured)
    plan.overrule(settings)
    plan.check()
    return plan, preflight(plan, facts, measured)


def _pixels(plan: Plan, found: Fingerprint) -> None:
    dims = found.dims or len(found.shape.median)
    plan.decide("preprocess.dims", dims, f"the images have {dims} dimensions")
    colour = int(max(found.channels, key=lambda c: found.channels[c])) if found.channels else 1
    gray = colour == 3 and found.equal_channels
    channels = 1 if gray else colour
    plan.decide(
        "preprocess.channels", channels, "colour files that hold gray pictures" if gray else f"the images have {colour}"
    )
    spread = found.aspect.high[0] / max(found.aspect.low[0], 1e-9)
    same = spread < 1.15 or found.one_shape
    plan.decide(
        "preprocess.fit",
        "stretch" if same else "pad",
        "all images have about the same aspect ratio"
        if same
        else f"aspect ratios differ by a factor of {spread:.2f}; nothing is squeezed",
    )
    kinds = set(found.dtypes)
    if set(found.units) == {"HU"}:
        plan.decide(
            "preprocess.window", [-1000.0, 1000.0], "HU beyond air and dense bone carry no disease; metal is clipped"
        )
        plan.decide("preprocess.storage", "int16", "HU are whole numbers")
    elif kinds == {"uint8"}:
        plan.decide("preprocess.storage", "uint8", "the files hold 8 bit")
    elif kinds <= {"uint16", "uint8"}:
        plan.decide("preprocess.storage", "uint16", "the files hold up to 16 bit")
    elif kinds <= {"int16", "uint8"}:
        plan.decide("preprocess.storage", "int16", "the files hold signed 16 bit")
    else:
        plan.decide("preprocess.storage", "float32", f"the files hold {', '.join(sorted(kinds))}")
    # Gray pictures saved as colour call themselves rgb, but their values mean no more than those of any gray picture.
    absolute = (set(found.units) <= {"HU", "SUV", "rgb", "label"} and not gray) or _few_values(found)
    if absolute:
        stats = found.intensity
        mean = list(stats.mean) if stats else [0.0]
        std = [max(s, 1e-3) for s in stats.std] if stats else [1.0]
        plan.decide(
            "preprocess.normalise",
            {"kind": "fixed", "mean": mean, "std": std},
            "values mean the same in every image, so their level is kept",
        )
    else:
        plan.decide(
            "preprocess.normalise",
            {"kind": "per_image"},
            "brightness and contrast differ by machine and exposure, not by disease",
        )


def _few_values(found: Fingerprint) -> bool:
    """Masks and shapes: the middle value is one of the extremes, and the mean follows the filled part."""
    stats = found.intensity
    return (
        stats is not None
        and all(m in (low, high) for m, low, high in zip(stats.p50, stats.low, stats.high, strict=True))
        and found.dims == 3
    )


def _learning(plan: Plan, found: Fingerprint, facts: Facts) -> None:
    plan.decide("model.name", "lean", "small enough to see every case often on two cores")
    imbalance = found.imbalance or 1.0
    if not facts.multilabel and imbalance > 1.5:
        plan.decide(
            "sampling.balance",
            0.5,
            f"the largest class is {imbalance:.1f} times the smallest; half-way between the classes as they are and "
            "equally often",
        )
    shapes = plan["preprocess.dims"] == 3 and plan["preprocess.normalise"]["kind"] == "fixed"
    plan.decide(
        "augment.preset",
        "light" if shapes else "medium",
        "size and level are part of what is asked, so they are changed little"
        if shapes
        else "positions, exposure and noise vary between machines and people; anatomy does not",
    )
    if plan["preprocess.dims"] == 3 and found.spacing_mm is None:
        why = "the files do not say where left and front are, so a mirrored volume is as likely"
        plan.decide("augment.change", {"flip": {"p": 0.5, "axes": ["z", "y", "x"]}}, why)
        plan.decide("predict.views", [[], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]], why)
    plan.decide("loss.name", "cross_entropy", "proper: its minimum is the true probability")
    plan.decide("optim.name", "sgd", "with one cycle the best weights after few epochs")
    plan.decide("optim.schedule", "one_cycle", "the whole length is known before training starts")
    plan.decide("optim.weight_decay", 2e-3, "for short trainings of small networks; how it was chosen: docs/models.md")
    plan.decide("optim.clip", 2.0, "one odd batch must not undo the training")
    bf16 = facts.device.type != "mps" and fast_bf16(facts.device)
    plan.decide(
        "optim.precision",
        "bf16" if bf16 else "fp32",
        "bfloat16 is in the hardware and halves the time" if bf16 else "no fast bfloat16 here",
    )
    plan.decide(
        "validate.keep",
        "last",
        "after a full cycle the averaged last weights are as good as the best, and no case chooses them",
    )
    plan.decide(
        "validate.metric", "auroc" if facts.classes <= 2 or facts.multilabel else "accuracy", "what is reported first"
    )


def _size(plan: Plan, found: Fingerprint, facts: Facts, settings: Mapping[str, Any]) -> tuple[Plan, trial.Speed]:
    """Image size, width and batch: the richest rung that can be trained long enough in the time there is."""
    rungs = ladder(found, plan, facts.device)
    fixed = {key for key in ("preprocess.size", "model.width", "model.stem", "optim.batch_size") if key in settings}
    chosen, measured = rungs[-1], None
    for rung in rungs:
        _apply(plan, rung, fixed, "")
        measured = trial.measure(plan, facts.classes, facts.device)
        chosen = rung
        if facts.budget_s is None or facts.device.type != "cpu":
            break
        left = _train_seconds(plan, facts, measured)
        if left / measured.step_s * plan["optim.batch_size"] / facts.train_cases >= wanted_epochs(facts.train_cases):
            break
    timed = measured or trial.measure(plan, facts.classes, facts.device)
    reason = (
        "the default for this image size"
        if facts.budget_s is None
        else f"the largest that passes {wanted_epochs(facts.train_cases):.0f} times over the cases in the budget "
        f"({timed.step_s * 1e3:.0f} ms a step)"
    )
    _apply(plan, chosen, fixed, reason)
    return plan, timed


def _apply(plan: Plan, rung: Rung, fixed: set[str], reason: str) -> None:
    for key, value in (
        ("preprocess.size", list(rung.size)),
        ("model.width", rung.width),
        ("optim.batch_size", rung.batch),
        ("model.stem", rung.stem if plan["model.name"] == "lean" else None),
    ):
        if key not in fixed and value is not None:
            plan.decide(key, value, reason)


def _train_seconds(plan: Plan, facts: Facts, measured: trial.Speed) -> float:
    """What the budget leaves for training."""
    budget = facts.budget_s or 0.0
    return max(budget - _test_seconds(plan, facts, measured), 0.3 * budget)


def _test_seconds(plan: Plan, facts: Facts, measured: trial.Speed) -> float:
    views = max(1, len(plan["predict.views"]))
    return REPORT_S + measured.case_s * facts.other_cases * (views + LOOKS * VALIDATED)


def _schedule(plan: Plan, facts: Facts, settings: Mapping[str, Any], measured: trial.Speed) -> None:
    batch = int(plan["optim.batch_size"])
    per_epoch = facts.train_cases / batch
    wanted = wanted_epochs(facts.train_cases)
    if "optim.max_steps" in settings and settings["optim.max_steps"] is not None:
        total = int(plan["optim.max_steps"])
        plan.decide("optim.epochs", None, "steps are given instead")
    elif "optim.epochs" in settings:
        total = round(float(plan["optim.epochs"]) * per_epoch)
    elif facts.budget_s is not None:
        plan.decide(
            "run.reserve_s",
            round(_test_seconds(plan, facts, measured), 1),
            "measured speed of prediction, and what the report takes",
        )
        seconds = _train_seconds(plan, facts, measured)
        total = max(8, int(seconds / measured.step_s))
        most = int(per_epoch * wanted * MOST_TIMES)
        total = min(total, most)
        plan.decide("optim.max_steps", total, f"{seconds:.0f} s for training at {measured.step_s * 1e3:.0f} ms a step")
    else:
        plan.decide(
            "optim.epochs", float(round(1.5 * wanted)), f"{facts.train_cases} cases need about this many passes"
        )
        total = round(1.5 * wanted * per_epoch)
    plan.decide("optim.lr", 0.1 if batch < 64 else 0.15, "for this batch; how it was chosen: docs/models.md")
    plan.decide(
        "optim.ema",
        round(min(0.998, max(0.9, 1 - 12 / max(total, 1))), 4),
        "averages about the last tenth of the steps",
    )
    look = measured.case_s * VALIDATED * facts.other_cases
    looks = max(1, min(LOOKS, int(0.15 * total * measured.step_s / max(look, 1e-9))))
    plan.decide("validate.every", max(1, -(-total // looks)), f"{looks} looks at the validation cases cost little")
    plan.decide("predict.batch_size", max(8, min(256, 2 * batch)), "prediction keeps no activations")


def preflight(plan: Plan, facts: Facts, measured: trial.Speed) -> Preflight:
    """Time, memory and disk of a plan."""
    batch, size = int(plan["optim.batch_size"]), plan["preprocess.size"]
    steps = plan["optim.max_steps"] or round(plan["optim.epochs"] * facts.train_cases / batch)
    values = int(plan["preprocess.channels"])
    for side in size:
        values *= int(side)
    bytes_each = {"uint8": 1, "uint16": 2, "int16": 2, "float32": 4}[plan["preprocess.storage"]]
    disk = values * bytes_each * (facts.train_cases + facts.other_cases)
    width = int(plan["model.width"] or 32)
    # Activations of a residual network are about 14 maps of the first width at the resolution after the stem.
    reduce = 1 if min(size) < 64 else 16 if len(size) == 2 else 64
    activations = (
        batch
        * values
        * width
        * 14
        * (2 if plan["optim.precision"] != "fp32" else 4)
        // reduce
        // int(plan["optim.accumulate"])
    )
    memory = BASE_MEMORY + activations + 12 * 4 * measured.parameters + min(disk, (facts.memory_bytes or 4 << 30) // 8)
    return Preflight(
        train_s=steps * measured.step_s,
        test_s=_test_seconds(plan, facts, measured),
        memory_bytes=int(memory),
        disk_bytes=disk,
        parameters=measured.parameters,
        steps=int(steps),
        epochs=steps * batch / max(facts.train_cases, 1),
    )
