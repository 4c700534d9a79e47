"""One run with everything at hand: from a manifest and a plan to weights, and from weights to what a person gets."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vesalius.core.environment import cache_folder, peak_memory, process_rank
from vesalius.core.files import atomic, write_json
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.core.provenance import provenance
from vesalius.core.quantity import show_bytes
from vesalius.data.cohort import Cohort, assemble
from vesalius.data.manifest import Manifest
from vesalius.data.prepare import prepare
from vesalius.predict.device import pick_device, use_cores
from vesalius.serve import results
from vesalius.tasks.classify import Classify
from vesalius.train.run import RunFolder, folds, train_member
from vesalius.transforms.preprocess import Preprocess

Places = NDArray[np.int64]

# Part of a budget that stays free.
_MARGIN = 0.006

# What takes more than the estimate by this part of it is warned of.
_MEMORY_TOLERANCE = 0.25


@dataclass
class Trained:
    """What `train` returns: where everything is and what came out."""

    run: Path
    report: Path
    bundle: Path
    metrics: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Workshop:
    """One run with everything at hand: folder, cohort, store, plan."""

    folder: RunFolder
    cohort: Cohort
    store: Any
    plan: Plan
    task: Any
    request: dict[str, Any]

    @classmethod
    def open(
        cls, folder: RunFolder, manifest: Manifest, plan: Plan, request: dict[str, Any], progress: Progress
    ) -> Workshop:
        """Prepare the pixels, split, look for leakage; the cohort is written."""
        store = cls.prepared(manifest, plan, progress)
        cohort = assemble(
            manifest,
            store,
            seed=int(plan["run.seed"]),
            val=float(plan["split.val"]),
            test=float(plan["split.test"]),
            by=plan["split.by"],
            folds=int(plan["split.folds"]),
            allow_leakage=bool(request["allow_leakage"]),
            progress=progress,
        )
        return cls.with_cohort(folder, cohort, store, plan, request, progress)

    @classmethod
    def with_cohort(
        cls, folder: RunFolder, cohort: Cohort, store: Any, plan: Plan, request: dict[str, Any], progress: Progress
    ) -> Workshop:
        """A run on a cohort that stands; it is written."""
        for note in cohort.notes:
            progress.say(note)
        if process_rank()[0] == 0:
            cohort.manifest.to_parquet(folder.cohort)
            used = cohort.frame["split"].isin(["train", "val"]).to_numpy()
            with atomic(folder.seen) as file:
                np.save(file, store.signatures().hashes[cohort.rows[used]])
        return cls(folder, cohort, store, plan, cls.question(cohort, plan), request)

    @classmethod
    def prepared(cls, manifest: Manifest, plan: Plan, progress: Progress) -> Any:
        """The store of the cases."""
        return prepare(
            manifest,
            Preprocess.from_spec(plan.section("preprocess")),
            cache=cache_folder(),
            workers=int(plan["run.workers"]),
            memory_bytes=plan["run.memory_bytes"],
            progress=progress,
        )

    @classmethod
    def question(cls, cohort: Cohort, plan: Plan) -> Any:
        """The task object."""
        return Classify(cohort.labels, plan.section("loss"))

    def member(
        self, index: int, training: Places, validation: Places, device: torch.device, **options: Any
    ) -> dict[str, torch.Tensor]:
        """The weights of one member."""
        return train_member(
            self.plan,
            self.task,
            self.store,
            member=index,
            train=self.cohort.part(training),
            val=self.cohort.part(validation) if len(validation) else None,
            folder=self.folder,
            device=device,
            **options,
        )

    def train(self, start: float, progress: Progress) -> list[dict[str, Any]]:
        """The weights of every member."""
        device = pick_device(self.request["device"])
        if device.type == "cpu":
            use_cores()  # also when resuming: another number of threads adds in another order
        parts = folds(self.cohort.frame, int(self.plan["split.folds"]))
        deadline = self._deadline(start)
        members = []
        for index, (training, validation) in enumerate(parts):
            options = {"deadline_s": None if deadline is None else deadline / len(parts), "progress": progress}
            members.append(self.member(index, training, validation, device, **options))
        return members

    def _deadline(self, start: float) -> float | None:
        """Seconds of training that the budget leaves; decided once, kept for a resumed run."""
        if (
            self.plan["run.budget_s"] is None
            or self.request["budget_s"] is None
            or "set by the user" in (self.plan.because("optim.max_steps"), self.plan.because("optim.epochs"))
        ):
            return None
        path = self.folder.root / "checkpoints" / "deadline.json"
        if path.exists():
            return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
        budget = float(self.request["budget_s"])
        # The last look at the clock comes some steps before the end, and the process takes a moment to leave.
        kept = float(self.plan["run.reserve_s"]) + max(1.0, _MARGIN * budget)
        left = max(budget - (time.monotonic() - start) - kept, 1.0)
        if process_rank()[0] == 0:
            write_json(path, {"seconds": left})
        return left

    def finish(
        self, members: list[dict[str, Any]], start: float, command: Sequence[str] | None, progress: Progress
    ) -> Trained:
        """Calibrate, test, write bundle and report."""
        trained_s = time.monotonic() - start
        origin = provenance(
            seed=int(self.plan["run.seed"]),
            data_hash=self.cohort.data_hash,
            command=command,
            device=str(pick_device(self.request["device"])),
            store=self.store.key,
            threads=_threads(),
            budget_s=self.request["budget_s"],
            memory=self._memory(progress),
        )
        write_json(self.folder.provenance, origin)
        report, metrics, notes = self.results(members, origin, trained_s, progress)
        return Trained(self.folder.root, report, self.folder.bundle, metrics, notes, time.monotonic() - start)

    def _memory(self, progress: Progress) -> dict[str, int | None]:
        """The peak of planning, preparing and training beside what the plan expected."""
        peak, expected = peak_memory(), self.plan["run.estimate_bytes"]
        said = f"memory: {show_bytes(peak)} at most"
        if expected is not None and pick_device(self.request["device"]).type == "cpu":
            said += f", {show_bytes(expected)} expected"
            if peak > (1 + _MEMORY_TOLERANCE) * expected:
                progress.warn(f"{said}; the estimate was too low, leave room when you state --memory")
        progress.say(said)
        return {"peak_bytes": peak, "estimated_bytes": expected}

    def results(
        self, members: list[dict[str, Any]], origin: dict[str, Any], trained_s: float, progress: Progress
    ) -> tuple[Path, dict[str, Any], list[str]]:
        """The report's path, the metrics and notes; bundle and tables are written."""
        judged = results.judge(self.plan, self.task, self.store, self.cohort, members, self.folder, progress)
        report = results.write_run(
            self.folder, self.plan, self.cohort, judged, origin, train_s=trained_s, progress=progress
        )
        return report, judged.metrics, list(self.cohort.notes)


def _threads() -> int:
    return int(torch.get_num_threads())
