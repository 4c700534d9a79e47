"""One member of a segmentation run from a plan and a store of cases to weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vesalius.core.errors import PlanError
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.core.randomness import key
from vesalius.data.batches import Batch
from vesalius.data.cases import CaseStore
from vesalius.data.patches import Patches
from vesalius.predict.backends import Backend, make_backend
from vesalius.predict.segmentation import case_logits, decided, sides_of
from vesalius.predict.tiles import TileSettings
from vesalius.tasks.segment import Segment, layers_of
from vesalius.train.distill import make_policy, started
from vesalius.train.run import RunFolder, augment_spec, make_fabric, memory_order, run_loop
from vesalius.transforms.augment import Augment
from vesalius.transforms.spatial import warp_together

MOST_VALIDATED = 24
"""Cases that a validation during training looks at; the final judgement uses all of them."""


def make_segmenter(plan: Plan, task: Segment, seed: int) -> torch.nn.Module:
    """A network whose initial weights are a function of `seed`, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "weights") % (1 << 63))
        return task.network(
            plan.section("model"),
            dims=plan["conform.dims"],
            inputs=plan["conform.channels"],
            size=plan["model.patch"],
        )


class Present:
    """Stored patches as the network sees them in training: image and truth moved together."""

    def __init__(self, plan: Plan, task: Segment, device: torch.device, seed: int) -> None:
        self.task, self.device = task, device
        spec = _unblended(plan, objects=task.labels.instances)
        self.augment = Augment(spec, dims=int(plan["conform.dims"]), seed=seed)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pixels ``(B, C, *S)`` float32 and targets as the task encodes them, on the device."""
        pixels = torch.as_tensor(batch.pixels).to(self.device, non_blocking=True).float()
        targets = self.task.encode(batch.targets).to(self.device)
        params = self.augment.sample(batch.step, batch.total)[batch.first : batch.first + len(pixels)]
        if not self.task.labels.instances:
            seen = self.augment.apply(pixels, targets, params)
            return seen.image, targets if seen.label is None else seen.label
        # Distance and border are pictures: they move by interpolation, and by the same field as the image.
        moved = warp_together(targets, None, params.spatial, padding=self.augment.spec["padding"])[0]
        return self.augment.apply(pixels, None, params).image, moved


def _unblended(plan: Plan, *, objects: bool) -> dict[str, Any]:
    """The augmentation of a plan without what changes the image but not its mask.

    Raises
    ------
    PlanError
        If a person asks for that.
    """
    refused = ("mixup", "cutmix") if objects else ("mixup",)
    asked = [name for name in refused if plan["augment.change"].get(name)]
    if asked:
        raise PlanError(
            f"augment.change: {asked[0]} mixes images whose masks cannot be mixed in the same way; leave it out"
        )
    return {name: value for name, value in augment_spec(plan).items() if name not in refused}


def train_segment_member(
    plan: Plan,
    task: Segment,
    store: CaseStore,
    *,
    member: int,
    train: NDArray[np.int64],
    val: NDArray[np.int64] | None,
    folder: RunFolder,
    device: torch.device,
    deadline_s: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Train one network of the ensemble (or the only one) and return its weights.

    Parameters
    ----------
    train, val
        Rows of the store.
    deadline_s
        Seconds this member may train; the schedule adapts to it.
    """
    seed = int(plan["run.seed"]) + 1000 * member
    fabric = make_fabric(plan, device)
    network = started(plan, make_segmenter(plan, task, seed), member)
    policy = make_policy(plan, fabric, task, network.to(**memory_order(plan)))
    batches = Patches(
        store,
        train,
        size=int(plan["optim.batch_size"]),
        seed=seed,
        patch=plan["model.patch"],
        foreground=float(plan["sampling.foreground"]),
        outside=0 if task.labels.ignore is None else task.labels.ignore,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    return run_loop(
        plan,
        fabric,
        policy,
        batches,
        Present(plan, task, fabric.device, seed),
        None if val is None or not len(val) else SegmentValidator(plan, task, store, val, device=fabric.device),
        folder=folder,
        member=member,
        deadline_s=deadline_s,
        progress=progress,
    )


class SegmentValidator:
    """Scores weights on validation cases by predicting them whole, as prepared (the final test uses the files)."""

    def __init__(
        self, plan: Plan, task: Segment, store: CaseStore, rows: NDArray[np.int64], *, device: torch.device
    ) -> None:
        self.plan, self.task, self.store, self.device = plan, task, store, device
        order = np.random.default_rng(int(plan["run.seed"])).permutation(len(rows))[:MOST_VALIDATED]
        self.rows = np.sort(rows[order])
        self.settings = TileSettings(sides_of(plan["model.patch"]), overlap=0.25, batch=2)
        self.network = make_segmenter(plan, task, 0).to(**memory_order(plan)).to(device)

    def __call__(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """``dice``, the mean over structures of the mean over cases that have or predict them."""
        self.network.load_state_dict(weights)
        self.network.eval()
        backend = make_backend(
            [self.network],
            inputs=int(self.plan["conform.channels"]),
            patch=self.settings.patch,
            batch=self.settings.batch,
            name="torch",
            precision="fp32" if self.plan["optim.precision"] == "fp32" else "bf16",
            device=self.device,
        )
        found = [self._dice(int(row), backend) for row in self.rows]
        table = np.array(found)
        counted = ~np.isnan(table)
        per_structure = [float(table[counted[:, k], k].mean()) for k in range(table.shape[1]) if counted[:, k].any()]
        return {"dice": float(np.mean(per_structure)) if per_structure else 0.0}

    def _dice(self, row: int, backend: Backend) -> list[float]:
        pixels = np.asarray(self.store.image(row)[...], dtype=np.float32)
        logits = case_logits(backend, pixels, self.settings, self.task.outputs)
        guess = decided(logits, self.task)
        truth = np.asarray(self.store.mask(row)[...])[0]
        return dice_per_structure(guess, truth, self.task)


def dice_per_structure(guess: NDArray[Any], truth: NDArray[Any], task: Segment) -> list[float]:
    """Dice of every structure; NaN where neither has it."""
    labels = task.labels
    if labels.instances:
        pairs = [(guess > 0, truth > 0)]
    elif labels.multilabel:
        pairs = list(zip(guess != 0, layers_of(truth, labels) != 0, strict=True))
    else:
        pairs = [(guess == k, truth == k) for k in range(1, len(labels))]
    valid = None if labels.ignore is None else truth != labels.ignore
    out = []
    for said, true in pairs:
        mine, theirs = (said, true) if valid is None else (said & valid, true & valid)
        size = int(mine.sum()) + int(theirs.sum())
        out.append(2 * int((mine & theirs).sum()) / size if size else float("nan"))
    return out
