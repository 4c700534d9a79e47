"""The training loop, readable in one screen.

Between two milestones the loop only takes batches and makes steps. At a milestone it asks whether the budget still
holds and writes a checkpoint; at some of them it validates. Everything random is a function of (seed, step), so that a
run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vesalius.core.errors import DataError, Interrupted
from vesalius.core.progress import Progress
from vesalius.core.randomness import key
from vesalius.data.batches import Batch
from vesalius.train import checkpoint
from vesalius.train.policy import PlainStep
from vesalius.train.schedule import Course, rate
from vesalius.train.threads import Threads

Validate = Callable[[dict[str, Tensor]], dict[str, float]]
Present = Callable[[Batch], tuple[Tensor, Tensor]]
"""A batch as the network sees it: pixels ``(B, C, *S)`` and targets, on the device, augmented."""


class Stream(Protocol):
    """Batches as a function of the step."""

    @property
    def steps_per_epoch(self) -> float:
        """Gradient steps in one pass over the cases."""

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop`."""


CHECKPOINT_EVERY_S = 20.0


@dataclass
class Job:
    """Everything the loop works with; made by `train.run`."""

    fabric: Any
    policy: PlainStep
    batches: Stream
    present: Present
    optim: dict[str, Any]
    validation: dict[str, Any]
    validate: Validate | None
    course: Course
    every: int
    folder: Path
    seed: int
    log: Callable[[dict[str, Any]], None]
    stop: Callable[[], bool]
    review: int | None = None
    """Steps between questions whether the budget still holds; a validation is due every `every` steps."""
    deadline_s: float | None = None
    """Seconds of training that the budget leaves; None without a budget."""
    threads: Threads | None = None
    """Under a budget on a processor: as many as other processes leave cores for."""


@dataclass
class State:
    """What changes while training; kept in checkpoints together with the policy's state."""

    step: int = 0
    elapsed_s: float = 0.0
    best: float = -np.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    since_best: int = 0
    finished: bool = False
    validated: int = -1
    loss_sum: float = 0.0
    loss_count: int = 0


def fit(job: Job, progress: Progress) -> dict[str, Tensor]:
    """Train to the end of the course and return the weights that the plan keeps.

    Raises
    ------
    Interrupted
        After ctrl-C or SIGTERM, when the state is on disk.
    """
    state, seconds = _resume(job), Seconds()
    seconds.start(state.elapsed_s)
    progress.start("train", job.course.end(state.step), "steps")
    progress.advance(state.step)
    while not state.finished and state.step < job.course.end(state.step):
        if job.threads is not None:
            job.threads.at(state.step)
        steps = (job.every, job.review or job.every)
        milestone = min(*((state.step // k + 1) * k for k in steps), job.course.end(state.step))
        for batch in job.batches.stream(state.step, milestone):
            _step(job, state, batch)
            progress.advance(1, f"loss {state.loss_sum / state.loss_count:.3f}")
            if state.step == milestone:  # nothing is saved between a milestone's last step and its validation
                break
            if job.stop():
                _save(job, state, seconds)
                raise _interrupted(state)
            # Several processes would not agree on the time; they save at milestones only.
            if job.fabric.world_size == 1 and seconds.since_save() > CHECKPOINT_EVERY_S:
                _save(job, state, seconds)
        if state.step % job.every == 0 or state.step >= job.course.end(state.step):
            _milestone(job, state)
        _review(job, state, seconds)
        if state.step >= job.course.end(state.step) and state.validated != state.step:
            _milestone(job, state)  # the review ended the training here
        _save(job, state, seconds)
        if job.stop():
            raise _interrupted(state)
    progress.stop(f"{state.step} steps")
    return _chosen(job, state)


def _interrupted(state: State) -> Interrupted:
    return Interrupted(f"stopped at step {state.step}, state saved; go on with --resume")


def _step(job: Job, state: State, batch: Batch) -> None:
    # Dropout draws from the global generator: seeding it by step keeps resume exact.
    torch.manual_seed(key(job.seed, "step", batch.step, job.fabric.global_rank) % (1 << 63))
    with torch.no_grad():
        pixels, targets = job.present(batch)
        if job.optim["channels_last"]:
            pixels = pixels.contiguous(
                memory_format=torch.channels_last if pixels.ndim == 4 else torch.channels_last_3d
            )
    progress = job.course.progress(batch.step)
    job.policy.at(progress)
    loss = job.policy.step(pixels, targets, rate(job.optim, progress))
    if not np.isfinite(loss):
        raise DataError(
            f"the loss became {loss} at step {batch.step}; lower optim.lr, or use --precision fp32, and train again"
        )
    state.step = batch.step + 1
    state.loss_sum += loss
    state.loss_count += 1


def _milestone(job: Job, state: State) -> None:
    row: dict[str, Any] = {
        "step": state.step,
        "epoch": state.step / job.batches.steps_per_epoch,
        "lr": rate(job.optim, job.course.progress(state.step - 1)),
        "train_loss": state.loss_sum / max(state.loss_count, 1),
    }
    state.loss_sum, state.loss_count = 0.0, 0
    if job.validate is not None:
        weights = job.policy.weights()
        row |= {f"val_{name}": value for name, value in job.validate(weights).items()}
        score = row[f"val_{job.validation['metric']}"]
        score = -score if job.validation["metric"] == "nll" else score
        if score > state.best:
            state.best, state.best_step, state.since_best = float(score), state.step, 0
            if job.validation["keep"] == "best":
                state.best_weights = weights
        else:
            state.since_best += 1
        patience = job.validation["patience"]
        state.finished = patience is not None and state.since_best >= patience
    state.validated = state.step
    job.log(row)


def _review(job: Job, state: State, seconds: Seconds) -> None:
    """Under a budget: shorten or lengthen the rest so that it ends in time. The answer is written before it is used."""
    end = job.course.end(state.step)
    if job.deadline_s is None or state.step >= end or job.course.decided(state.step):
        return
    used = seconds.elapsed()
    per_step = used / state.step
    possible = state.step + int(max(job.deadline_s - used, 0) / max(per_step, 1e-9))
    # Small changes are left alone: they would only make runs differ.
    new = possible if abs(possible - end) > 0.05 * (end - state.step) else end
    total = int(job.fabric.broadcast(new))
    job.course.revise(state.step, total)


def _save(job: Job, state: State, seconds: Seconds) -> None:
    state.elapsed_s = seconds.elapsed()
    seconds.saved()
    if job.fabric.global_rank == 0:
        checkpoint.save(job.folder, state.step, {"state": vars(state), "policy": job.policy.state()})
    job.fabric.barrier()


def _resume(job: Job) -> State:
    found = checkpoint.load(job.folder)
    if found is None:
        return State()
    _, kept = found
    job.policy.restore(kept["policy"])
    return State(**kept["state"])


def _chosen(job: Job, state: State) -> dict[str, Tensor]:
    if job.validation["keep"] == "best" and state.best_weights:
        return state.best_weights
    return job.policy.weights()


class Seconds:
    """Wall time of training over all resumptions, and since the last checkpoint."""

    def __init__(self) -> None:
        self.before = 0.0
        self._begin = self._save = time.monotonic()

    def start(self, before: float) -> None:
        """Begin, with `before` seconds spent by earlier processes."""
        self.before, self._begin = before, time.monotonic()
        self._save = self._begin

    def elapsed(self) -> float:
        """Seconds in all."""
        return self.before + time.monotonic() - self._begin

    def since_save(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._save

    def saved(self) -> None:
        """A checkpoint was written now."""
        self._save = time.monotonic()
