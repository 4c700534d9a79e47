"""Segmentation runs: planning, and the workshop that trains and judges them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vesalius.core.environment import cache_folder
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.data.cases import CaseStore, prepare_cases
from vesalius.data.cohort import Cohort
from vesalius.data.manifest import Manifest
from vesalius.data.segment_survey import SegmentFingerprint, survey_segments
from vesalius.predict.device import pick_device, use_cores
from vesalius.serve import segment_results
from vesalius.serve.workshop import Places, Workshop
from vesalius.tasks.instances import instance_targets
from vesalius.tasks.segment import Segment
from vesalius.train.segment_planner import SegmentFacts, SegmentPreflight, plan_segmentation
from vesalius.train.segmenting import train_segment_member


def planned(
    manifest: Manifest,
    settings: Mapping[str, Any],
    budget_s: float | None,
    memory: int | None,
    device: str,
    seed: int,
    workers: int | None,
    start: float,
    progress: Progress,
) -> tuple[Plan, SegmentPreflight]:
    """The plan of a segmentation, from a survey of its cases and measured speed."""
    found = survey_segments(manifest, seed=seed, progress=progress)
    for reason in found.failed[:5]:
        progress.warn(reason)
    where = pick_device(device)
    if where.type == "cpu":
        use_cores()
    count = len(manifest)
    given = manifest.cases["split"].value_counts()
    val, test = float(settings.get("split.val", 0.15)), float(settings.get("split.test", 0.2))
    train_cases = int(given.get("train", 0)) or round(count * (1 - val - test))
    left = None if budget_s is None else budget_s - (time.monotonic() - start) - _preparing_seconds(found)
    facts = SegmentFacts(
        labels=manifest.labels,  # type: ignore[arg-type]  # the question was checked
        train_cases=max(train_cases, 1),
        other_cases=max(count - train_cases, 1),
        device=where,
        seed=seed,
        memory_bytes=memory,
        budget_s=None if left is None else max(left, 5.0),
        workers=workers,
    )
    made, flight = plan_segmentation(found, facts, settings)
    for line in flight.lines():
        progress.say(line)
    return made, flight


def _preparing_seconds(found: SegmentFingerprint) -> float:
    """A cautious guess of the time to decode, resample and store: 20 million voxels a second."""
    voxels = float(found.shapes.prod(axis=1).mean()) * found.channels
    return 1.0 + found.cases * (0.01 + voxels / 2e7)


class SegmentWorkshop(Workshop):
    """One segmentation run with everything at hand."""

    @classmethod
    def prepared(cls, manifest: Manifest, plan: Plan, progress: Progress) -> CaseStore:
        """The store of the cases."""
        objects = manifest.labels is not None and manifest.labels.instances
        return prepare_cases(
            manifest,
            plan.section("conform"),
            cache=cache_folder(),
            further=instance_targets if objects else None,
            workers=int(plan["run.workers"]),
            memory_bytes=plan["run.memory_bytes"],
            progress=progress,
        )

    @classmethod
    def question(cls, cohort: Cohort, plan: Plan) -> Segment:
        """The task object."""
        return Segment(cohort.labels, plan.section("loss"))

    def member(
        self, index: int, training: Places, validation: Places, device: torch.device, **options: Any
    ) -> dict[str, torch.Tensor]:
        """The weights of one member."""
        return train_segment_member(
            self.plan,
            self.task,
            self.store,
            member=index,
            train=self.cohort.rows[training],
            val=self.cohort.rows[validation] if len(validation) else None,
            folder=self.folder,
            device=device,
            **options,
        )

    def results(
        self, members: list[dict[str, Any]], origin: dict[str, Any], trained_s: float, progress: Progress
    ) -> tuple[Path, dict[str, Any], list[str]]:
        """The report's path, the metrics and notes; bundle, masks and tables are written."""
        judged = segment_results.judge_segments(
            self.plan, self.task, self.store, self.cohort, members, self.folder, progress
        )
        report = segment_results.write_segment_run(
            self.folder, self.plan, self.cohort, judged, origin, train_s=trained_s, progress=progress
        )
        return report, judged.metrics, [*self.cohort.notes, *judged.notes]
