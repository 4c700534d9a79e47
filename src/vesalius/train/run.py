"""The run folder, and one member of it from a plan and a store to weights."""

from __future__ import annotations

import csv
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from vesalius.core.environment import process_rank
from vesalius.core.errors import UsageError
from vesalius.core.files import write_json, write_text
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress, Silent
from vesalius.core.randomness import key
from vesalius.data.batches import Batch, Batches
from vesalius.data.store import Store
from vesalius.measure import calibration, confusion, ranking
from vesalius.predict.forward import Forward
from vesalius.tasks.classify import Classify
from vesalius.train.distill import make_policy, started
from vesalius.train.loop import Job, Present, Stream, Validate, fit
from vesalius.train.policy import PlainStep
from vesalius.train.schedule import Course
from vesalius.train.threads import Threads
from vesalius.transforms.augment import PRESETS, Augment
from vesalius.transforms.preprocess import Preprocess


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of a run; the formats are described in docs/formats.md."""

    root: Path

    @property
    def plan(self) -> Path:
        """``plan.yaml``."""
        return self.root / "plan.yaml"

    @property
    def cohort(self) -> Path:
        """``cohort.parquet``: the manifest with its split."""
        return self.root / "cohort.parquet"

    @property
    def request(self) -> Path:
        """``request.json``: what was asked for, so that ``--resume`` needs no other argument."""
        return self.root / "request.json"

    @property
    def cases(self) -> Path:
        """``cases.parquet``: results per case."""
        return self.root / "cases.parquet"

    @property
    def bundle(self) -> Path:
        """``bundle/``."""
        return self.root / "bundle"

    @property
    def report(self) -> Path:
        """``report/``."""
        return self.root / "report"

    @property
    def provenance(self) -> Path:
        """``provenance.json``."""
        return self.root / "provenance.json"

    @property
    def metrics(self) -> Path:
        """``metrics.csv``: the training curves."""
        return self.root / "metrics.csv"

    @property
    def seen(self) -> Path:
        """``seen.npy``: hashes of the images that training and validation used, to recognise them in other data."""
        return self.root / "seen.npy"

    def checkpoints(self, member: int) -> Path:
        """Where one member keeps its checkpoints and the journal of its course."""
        return self.root / "checkpoints" / f"member-{member}"

    def start(self, request: dict[str, Any], *, resume: bool, force: bool) -> dict[str, Any]:
        """Make the folder, or continue in it; returns the request that holds (the old one when resuming).

        Raises
        ------
        UsageError
            If it holds another run and neither `resume` nor `force` was given.
        """
        if self.request.exists() and resume:
            kept: dict[str, Any] = json.loads(self.request.read_text(encoding="utf-8"))
            return kept
        # A run that failed before it had a plan left nothing but its request, and is no reason to refuse.
        if self.root.exists() and any(path != self.request for path in self.root.iterdir()):
            if not force:
                raise UsageError(
                    f"{self.root}: is not empty; use --resume to go on, --force to replace it, or another --out"
                )
            self._remove_run()
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.request, request)
        return request

    def _remove_run(self) -> None:
        """Remove what a run writes, and nothing else: the folder may hold a person's own files."""
        import shutil

        for name in ("bundle", "report", "checkpoints", "events", "predictions"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in (self.plan, self.cohort, self.request, self.cases, self.provenance, self.metrics, self.seen):
            path.unlink(missing_ok=True)


class Curves:
    """Training curves as CSV and TensorBoard events; one row per milestone, the last word on a step counts."""

    def __init__(self, folder: RunFolder, member: int) -> None:
        self.path, self.events, self.member = folder.metrics, folder.root / "events" / f"member-{member}", member
        self._writer: Any = None

    def __call__(self, row: dict[str, Any]) -> None:
        """Add a row."""
        rows = [
            r for r in self.read(self.path) if not (int(r["member"]) == self.member and int(r["step"]) >= row["step"])
        ]
        rows.append({"member": self.member, **{k: _short(v) for k, v in row.items()}})
        fields = list(dict.fromkeys(name for r in rows for name in r))
        lines: list[str] = []
        sink = _Lines(lines)
        writer = csv.DictWriter(sink, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, "".join(lines))
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.events))
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush the events."""
        if self._writer is not None:
            self._writer.close()

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """Rows of a curves file; none if there is no file."""
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


class _Lines:
    """A file object for the csv writer that only collects."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that ctrl-C and SIGTERM set; a second ctrl-C interrupts at once."""
    event = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def augment_spec(plan: Plan) -> dict[str, Any]:
    """The augmentation that a plan means: its preset with the person's changes."""
    return {**PRESETS[plan["augment.preset"]], **plan["augment.change"]}


def make_network(plan: Plan, task: Classify, seed: int) -> torch.nn.Module:
    """A network whose initial weights are a function of `seed`, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "weights") % (1 << 63))
        return task.network(
            plan.section("model"),
            dims=plan["preprocess.dims"],
            inputs=plan["preprocess.channels"],
            size=plan["preprocess.size"],
        )


def join_processes(device: torch.device) -> None:
    """Under torchrun, meet the other processes before anything is decided; alone, nothing happens."""
    _, world = process_rank()
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def make_fabric(plan: Plan, device: torch.device) -> Any:
    """Lightning Fabric for this device and, under torchrun, for this group of processes."""
    import logging

    from lightning_fabric import Fabric

    # Fabric announces its precision on every start; the plan says it already. Importing it sets the level to INFO.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    precision: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[plan["optim.precision"]]
    _, world = process_rank()
    many = world > 1
    devices: Any = world if many else ([device.index or 0] if device.type == "cuda" else 1)
    fabric = Fabric(accelerator=device.type, devices=devices, strategy="ddp" if many else "auto", precision=precision)
    fabric.launch()
    return fabric


def train_member(
    plan: Plan,
    task: Classify,
    store: Store,
    *,
    member: int,
    train: tuple[NDArray[np.int64], NDArray[Any]],
    val: tuple[NDArray[np.int64], NDArray[Any]] | None,
    folder: RunFolder,
    device: torch.device,
    deadline_s: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Train one network of the ensemble (or the only one) and return its weights.

    Parameters
    ----------
    train, val
        Rows of the store and their targets, in the same order.
    deadline_s
        Seconds this member may train; the schedule adapts to it.
    """
    seed = int(plan["run.seed"]) + 1000 * member
    fabric = make_fabric(plan, device)
    network = started(plan, make_network(plan, task, seed), member)
    policy = make_policy(plan, fabric, task, network.to(**memory_order(plan)))
    return run_loop(
        plan,
        fabric,
        policy,
        _batches(plan, store, train, fabric, seed),
        _Present(plan, task, fabric.device, seed),
        None if val is None else Validator(plan, task, store, *val, device=fabric.device),
        folder=folder,
        member=member,
        deadline_s=deadline_s,
        progress=progress,
    )


class _Present:
    """Stored pixels as the network sees them in training."""

    def __init__(self, plan: Plan, task: Classify, device: torch.device, seed: int) -> None:
        self.task, self.device = task, device
        self.preprocess = Preprocess.from_spec(plan.section("preprocess")).to(device)
        self.augment = Augment(augment_spec(plan), dims=int(plan["preprocess.dims"]), seed=seed)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pixels = self.preprocess.finish(torch.as_tensor(batch.pixels).to(self.device, non_blocking=True))
        targets = self.task.encode(batch.targets).to(self.device)
        seen = self.augment(pixels, step=batch.step, first=batch.first, total=batch.total)
        return seen.image, seen.mix(targets)


def run_loop(
    plan: Plan,
    fabric: Any,
    policy: PlainStep,
    batches: Stream,
    present: Present,
    validate: Validate | None,
    *,
    folder: RunFolder,
    member: int,
    deadline_s: float | None,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Train one member to the end of its course, or to a signal; its state is kept in the run folder."""
    total = total_steps(plan, batches.steps_per_epoch)
    home = folder.checkpoints(member)
    home.mkdir(parents=True, exist_ok=True)
    curves = Curves(folder, member)
    shared = deadline_s is not None and fabric.world_size == 1 and fabric.device.type == "cpu"
    with stopped_by_signals() as stop:
        job = Job(
            fabric=fabric,
            policy=policy,
            batches=batches,
            present=present,
            optim=plan.section("optim"),
            validation=plan.section("validate"),
            validate=validate,
            course=Course(total, home / "course.jsonl", writes=fabric.global_rank == 0),
            every=int(plan["validate.every"] or total),
            review=review_every(plan, total, deadline_s),
            folder=home,
            seed=int(plan["run.seed"]) + 1000 * member,
            log=curves if fabric.global_rank == 0 else _quiet,
            stop=_any_process(fabric, stop),
            deadline_s=deadline_s,
            threads=Threads(home / "threads.jsonl") if shared else None,
        )
        try:
            return fit(job, progress or Silent())
        finally:
            curves.close()


def review_every(plan: Plan, total: int, deadline_s: float | None) -> int:
    """Steps between looks at the clock: 40 in a training under a budget, so that schedule and time end together."""
    every = int(plan["validate.every"] or total)
    if deadline_s is None:
        return every
    parts = max(1, round(every / max(1, total // 40)))
    return max(1, every // parts)


def _batches(
    plan: Plan, store: Store, train: tuple[NDArray[np.int64], NDArray[Any]], fabric: Any, seed: int
) -> Batches:
    balance = float(plan["sampling.balance"])
    size, rank, world = int(plan["optim.batch_size"]), fabric.global_rank, fabric.world_size
    return Batches(store, *train, size=size, seed=seed, balance=balance, rank=rank, world=world)


def _any_process(fabric: Any, stop: threading.Event) -> Callable[[], bool]:
    """Whether any process was asked to stop: all of them must leave at the same step."""
    if fabric.world_size == 1:
        return stop.is_set
    return lambda: bool(
        fabric.all_reduce(torch.tensor(float(stop.is_set()), device=fabric.device), reduce_op="sum") > 0
    )


def _quiet(row: dict[str, Any]) -> None:
    """Other processes than the first keep no curves."""


def memory_order(plan: Plan) -> Any:
    """Keywords of ``Module.to``, whose stub lacks ``memory_format``."""
    if not plan["optim.channels_last"]:
        return {"memory_format": torch.contiguous_format}
    dims = plan["conform.dims"] if plan.task == "segment" else plan["preprocess.dims"]
    return {"memory_format": torch.channels_last if dims == 2 else torch.channels_last_3d}


def total_steps(plan: Plan, steps_per_epoch: float) -> int:
    """Steps of the whole training as the plan states them."""
    if plan["optim.max_steps"] is not None:
        return int(plan["optim.max_steps"])
    return max(1, round(float(plan["optim.epochs"] or 1) * steps_per_epoch))


class Validator:
    """Scores weights on the validation cases by predicting them, in full precision."""

    def __init__(
        self,
        plan: Plan,
        task: Classify,
        store: Store,
        rows: NDArray[np.int64],
        targets: NDArray[Any],
        *,
        device: torch.device,
    ) -> None:
        self.task, self.store, self.rows, self.targets = task, store, rows, targets
        self.network = make_network(plan, task, 0)
        self.batch_size = int(plan["predict.batch_size"])
        self.forward = Forward([self.network], Preprocess.from_spec(plan.section("preprocess")), task, device=device)

    def __call__(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """``nll``, ``accuracy``, ``balanced_accuracy`` and ``auroc`` of `weights`."""
        self.network.load_state_dict(weights)
        views = self.forward.over_store(self.store, self.rows, batch_size=self.batch_size)
        return scores(self.task, views[0], self.targets)


def scores(task: Classify, logits: NDArray[np.float64], targets: NDArray[Any]) -> dict[str, float]:
    """The validation scores of logits ``(N, K)``; ranking scores are 0.5 where a class is absent."""
    p = task.probabilities(logits)
    found = {"nll": float(calibration.nll(targets, p))}
    if task.labels.multilabel:
        guess = (p >= 0.5).astype(np.int64)
        found["accuracy"] = float((guess == targets).mean())
        found["balanced_accuracy"] = found["accuracy"]
        auroc = ranking.macro_auroc(targets, p)
    else:
        matrix = confusion.confusion_matrix(targets, p.argmax(axis=1), len(task.labels))
        found["accuracy"] = float(confusion.accuracy(matrix))
        found["balanced_accuracy"] = float(confusion.balanced_accuracy(matrix))
        auroc = ranking.auroc(targets == 1, p[:, 1]) if task.labels.binary else ranking.macro_auroc(targets, p)
    found["auroc"] = float(np.nan_to_num(auroc, nan=0.5))
    return found


def history(folder: RunFolder) -> pd.DataFrame | None:
    """The training curves as numbers; None before the first milestone."""
    rows = Curves.read(folder.metrics)
    return pd.DataFrame(rows).apply(pd.to_numeric) if rows else None


def folds(frame: pd.DataFrame, count: int) -> Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(training places, validation places) of every member, from columns ``split`` and ``fold``."""
    split = frame["split"].to_numpy()
    if count < 2:
        return [(np.flatnonzero(split == "train"), np.flatnonzero(split == "val"))]
    fold = frame["fold"].to_numpy()
    usable = split != "test"
    return [(np.flatnonzero(usable & (fold != k)), np.flatnonzero(usable & (fold == k))) for k in range(count)]
