"""How fast a segmentation network is on this machine: a few steps and tiles on noise of the planned shape."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vesalius.core.labels import Labels
from vesalius.core.plan import Plan
from vesalius.core.randomness import generator
from vesalius.data.batches import Batch
from vesalius.models.segmenters import activation_values
from vesalius.tasks.segment import Segment
from vesalius.train.policy import PlainStep
from vesalius.train.run import memory_order
from vesalius.train.segmenting import Present, make_segmenter
from vesalius.train.speed import LocalFabric, wait_for_device


@dataclass(frozen=True)
class SegmentSpeed:
    """Seconds per step and per tile and view; parameters, and values kept for the backward pass per sample."""

    step_s: float
    tile_s: float
    parameters: int
    values: int


def measure_segmenter(
    plan: Plan, labels: Labels, device: torch.device, *, steps: int = 3, seconds: float = 3.0
) -> SegmentSpeed:
    """Time the plan's network, batch, loss and augmentation; the fastest step within `seconds` counts.

    The fastest and not the mean, since the first steps also pay for memory and kernel choice.
    """
    task = Segment(labels, plan.section("loss"))
    network = make_segmenter(plan, task, 0).to(**memory_order(plan))
    values = activation_values(network, int(plan["conform.channels"]), tuple(plan["model.patch"]))
    parameters = sum(p.numel() for p in network.parameters())
    policy = PlainStep(LocalFabric(plan["optim.precision"], device), task, network, plan.section("optim"))
    present = Present(plan, task, device, 0)
    batch = _noise(plan, task)
    times: list[float] = []
    begin = time.perf_counter()
    for step in range(steps + 1):
        start = time.perf_counter()
        pixels, targets = present(Batch(step, 0, batch.total, batch.places, batch.pixels, batch.targets))
        policy.step(_ordered(pixels), targets, 1e-5)
        wait_for_device(device)
        times.append(time.perf_counter() - start)
        if step >= 1 and time.perf_counter() - begin > seconds:
            break
    return SegmentSpeed(min(times[1:]), _tile_seconds(network, batch, plan, device), parameters, values)


def _noise(plan: Plan, task: Segment) -> Batch:
    draw = generator(0, "speed")
    size, patch = int(plan["optim.batch_size"]), tuple(plan["model.patch"])
    pixels = draw.random((size, int(plan["conform.channels"]), *patch), dtype=np.float32).astype(np.float16)
    if task.labels.instances:
        targets = draw.random((size, 3, *patch), dtype=np.float32).astype(np.float16)
    else:
        targets = draw.integers(0, 2, (size, 1, *patch)).astype(np.uint8)
    return Batch(0, 0, size, np.arange(size), pixels, targets)


def _ordered(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


@torch.inference_mode()
def _tile_seconds(network: torch.nn.Module, batch: Batch, plan: Plan, device: torch.device) -> float:
    network.eval()
    pixels: Any = _ordered(torch.as_tensor(batch.pixels[:1]).float().to(device))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        network(pixels)
        wait_for_device(device)
        times.append(time.perf_counter() - start)
    return min(times)
