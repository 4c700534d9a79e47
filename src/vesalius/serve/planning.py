"""From a manifest and what a person asks for to a plan, for every task that can be trained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vesalius.core.errors import ResourceError
from vesalius.core.load import Load
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.core.quantity import show_bytes
from vesalius.data.manifest import Manifest
from vesalius.data.segment_survey import SegmentFingerprint, survey_segments
from vesalius.data.survey import survey
from vesalius.predict.device import pick_device, use_cores
from vesalius.train.circumstances import Preflight
from vesalius.train.planner import Facts, plan_classification
from vesalius.train.segment_planner import SegmentFacts, plan_segmentation


@dataclass(frozen=True)
class Order:
    """What a person asks for beside the data; `start` is ``time.monotonic()`` when the budget began to count."""

    settings: Mapping[str, Any]
    budget_s: float | None
    memory_bytes: int | None
    device: str
    seed: int
    workers: int | None
    start: float


def make_plan(manifest: Manifest, order: Order, progress: Progress) -> tuple[Plan, Preflight]:
    """The plan with its reasons from a survey of the cases and measured speed, and what it will take.

    Raises
    ------
    ResourceError
        If no plan fits the stated memory.
    """
    made, flight = (_segmentation if manifest.task == "segment" else _classification)(manifest, order, progress)
    for line in flight.lines():
        progress.say(line)
    if order.memory_bytes is not None and flight.memory_bytes > order.memory_bytes:
        raise ResourceError(
            f"--memory {show_bytes(order.memory_bytes)}: this plan takes about {show_bytes(flight.memory_bytes)}; "
            "set a smaller optim.batch_size or preprocess.size, or more memory"
        )
    why = "counted: values kept for the backward pass, weights, prepared data"
    made.decide("run.estimate_bytes", flight.memory_bytes, why)
    return made, flight


def _classification(manifest: Manifest, order: Order, progress: Progress) -> tuple[Plan, Preflight]:
    found = survey(manifest, seed=order.seed, progress=progress)
    labels = manifest.labels
    facts = Facts(
        classes=len(labels) if labels else 2,
        multilabel=bool(labels and labels.multilabel),
        **_circumstances(manifest, order, _seconds_to_prepare(found, len(manifest))),
    )
    return plan_classification(found, facts, order.settings)


def _segmentation(manifest: Manifest, order: Order, progress: Progress) -> tuple[Plan, Preflight]:
    found = survey_segments(manifest, seed=order.seed, progress=progress)
    for reason in found.failed[:5]:
        progress.warn(reason)
    facts = SegmentFacts(
        labels=manifest.labels,  # type: ignore[arg-type]  # the question was checked
        **_circumstances(manifest, order, _seconds_to_prepare_masks(found)),
    )
    return plan_segmentation(found, facts, order.settings)


def _circumstances(manifest: Manifest, order: Order, preparing_s: float) -> dict[str, Any]:
    """Fields of `train.circumstances.Circumstances`."""
    device = pick_device(order.device)
    if device.type == "cpu":
        use_cores(None if order.budget_s is None else Load().spare_cores())
    count = len(manifest)
    given = manifest.cases["split"].value_counts()
    val, test = float(order.settings.get("split.val", 0.15)), float(order.settings.get("split.test", 0.2))
    train_cases = int(given.get("train", 0)) or round(count * (1 - val - test))
    left = None if order.budget_s is None else order.budget_s - (time.monotonic() - order.start) - preparing_s
    return {
        "train_cases": max(train_cases, 1),
        "other_cases": max(count - train_cases, 1),
        "device": device,
        "seed": order.seed,
        "memory_bytes": order.memory_bytes,
        "budget_s": None if left is None else max(left, 5.0),
        "workers": order.workers,
    }


def _seconds_to_prepare(found: Any, count: int) -> float:
    """A cautious guess of the time to decode the rest: 2 ms a small picture, 30 MB/s of volume."""
    values = float(np.prod(found.shape.median))
    return 1.0 + count * (
        1e-5 if found.one_shape and values < 64**2 else 2e-3 if len(found.shape.median) == 2 else values / 3e7
    )


def _seconds_to_prepare_masks(found: SegmentFingerprint) -> float:
    """A cautious guess of the time to decode, resample and store: 20 million voxels a second."""
    voxels = float(found.shapes.prod(axis=1).mean()) * found.channels
    return 1.0 + found.cases * (0.01 + voxels / 2e7)
