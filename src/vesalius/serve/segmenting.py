"""Segmentation runs: the workshop that trains and judges them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vesalius.core.environment import cache_folder
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.data.cases import CaseStore, prepare_cases
from vesalius.data.cohort import Cohort
from vesalius.data.manifest import Manifest
from vesalius.serve import segment_results
from vesalius.serve.workshop import Places, Workshop
from vesalius.tasks.instances import instance_targets
from vesalius.tasks.segment import Segment
from vesalius.train.segmenting import train_segment_member


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
