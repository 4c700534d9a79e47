"""Plans of lighter models: a student that learns from a trained run, and a pruned network that is trained again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vesalius.core.errors import PlanError, UsageError
from vesalius.core.plan import Plan

Count = Callable[[Mapping[str, Any]], int]
"""Learned values of the network of a section ``model``."""


def student_plan(teacher: Plan, source: str, *, limit: int, count: Count, settings: Mapping[str, Any]) -> Plan:
    """The plan of a run, for a narrower network of at most `limit` learned values that imitates the run's bundle.

    Parameters
    ----------
    source
        Where the teacher's bundle is.
    settings
        What the person overrules; a person who names another network decides its size as well.

    Raises
    ------
    UsageError
        If the design of the network has no narrower form.
    """
    made = _again(teacher)
    if not any(key in settings for key in ("model.name", "model.width", "model.features")):
        for name, value in narrower(made.section("model"), limit, count).items():
            made.decide(f"model.{name}", value, f"the widest network of at most {limit:,} learned values")
    made.decide("distill.teacher", source, "the student learns what the larger model answers")
    made.overrule(settings)
    return made


def pruned_plan(teacher: Plan, source: str, start: str, widths: Mapping[str, Any], settings: Mapping[str, Any]) -> Plan:
    """The plan of a run, for its pruned network: trained again from what pruning left, imitating the run's bundle.

    With the learning rate of the run: pruned at once, a network answers nothing any more and has much to learn again
    (at half of the rate a U-Net lost a structure that it kept at the whole one).
    """
    made = _again(teacher)
    made.decide("model.widths", dict(widths), "what structured pruning left")
    made.decide("start.weights", start, "the weights that pruning left")
    made.decide("distill.teacher", source, "the pruned network learns what the whole one answers")
    made.overrule(settings)
    return made


def narrower(model: Mapping[str, Any], limit: int, count: Count) -> dict[str, Any]:
    """The widest ``features`` or ``width`` of a network with at most `limit` learned values.

    Raises
    ------
    UsageError
        If the design has no width that could be changed, or none is small enough.
    """
    for settings in _narrower(model):
        try:
            if count({**model, **settings}) <= limit:
                return settings
        except (PlanError, ValueError):
            continue
    raise UsageError(
        f"model {model['name']!r} has no narrower form with at most {limit:,} learned values; choose the student by "
        "--set model.name=... with model.width or model.features"
    )


def _narrower(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if model.get("features"):
        for part in range(31, 1, -1):
            yield {"features": [max(4, 4 * round(int(value) * part / 128)) for value in model["features"]]}
        return
    width = int(model.get("width") or 64)
    for value in range(width - (width % 4 or 4), 3, -4):
        yield {"width": value}


def _again(teacher: Plan) -> Plan:
    """The same decisions for one network; what a person set for the teacher is now the reason "as the larger model"."""
    made = Plan(task=teacher.task)
    for key, decision in teacher:
        why = "as the larger model" if decision.because == "set by the user" else decision.because
        made.decide(key, decision.value, why)
    made.decide("split.folds", 0, "one network")
    made.decide("run.estimate_bytes", None, "not counted again")
    return made
