"""How fast this machine really is: a few training and prediction steps on made-up pixels of the planned shape."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vesalius.core.labels import Labels
from vesalius.core.plan import Plan
from vesalius.core.randomness import generator
from vesalius.tasks.classify import Classify
from vesalius.train.policy import PlainStep
from vesalius.train.run import augment_spec, make_network
from vesalius.transforms.augment import Augment


@dataclass(frozen=True)
class Speed:
    """Seconds per training step (augmentation included) and per predicted case and view."""

    step_s: float
    case_s: float
    parameters: int


class LocalFabric:
    """What `PlainStep` asks of Fabric, for one process: a trial leaves no process group behind."""

    def __init__(self, precision: str, device: torch.device) -> None:
        self.precision, self.device = precision, device
        self.kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def setup(self, network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> tuple[object, torch.optim.Optimizer]:
        """The network under autocast, and the optimiser as it is."""
        network.to(self.device)

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, self.kind, enabled=self.kind is not None):
                return network(x)

        forward.train = network.train  # type: ignore[attr-defined]
        return forward, optimiser

    def no_backward_sync(self, network: object, enabled: bool = True) -> torch.autograd.grad_mode.set_grad_enabled:
        """Nothing to hold back in one process."""
        return torch.enable_grad()  # type: ignore[return-value]

    def backward(self, loss: torch.Tensor) -> None:
        """Of a loss without scaling."""
        loss.backward()

    def clip_gradients(self, network: object, optimiser: object, max_norm: float) -> None:
        """A trial needs no clipping."""


def measure(plan: Plan, classes: int, device: torch.device, *, steps: int = 3, seconds: float = 2.0) -> Speed:
    """Time the plan's network, batch and augmentation; the fastest of up to `steps` steps within `seconds` counts.

    The fastest and not the mean, since the first steps also pay for memory and kernel choice.
    """
    dims, channels, size = plan["preprocess.dims"], plan["preprocess.channels"], tuple(plan["preprocess.size"])
    labels = Labels(tuple(f"class {k}" for k in range(max(classes, 2))))
    task = Classify(labels)
    order: Any = {"memory_format": torch.channels_last if dims == 2 else torch.channels_last_3d}
    network = make_network(plan, task, 0).to(**order)
    # A trial step must not depend on section loss: its cost does not.
    policy = PlainStep(LocalFabric(plan["optim.precision"], device), task, network, plan.section("optim"))
    augment = Augment(augment_spec(plan), dims=dims, seed=0)
    draw = generator(0, "speed")
    batch = int(plan["optim.batch_size"])
    stored = torch.from_numpy(draw.random((batch, channels, *size), dtype=np.float32)).to(device)
    target = task.encode(np.arange(batch) % len(labels)).to(device)
    order = torch.channels_last if dims == 2 else torch.channels_last_3d
    times: list[float] = []
    begin = time.perf_counter()
    for step in range(steps + 1):
        start = time.perf_counter()
        with torch.no_grad():
            seen = augment(stored, step=step)
            pixels, soft = seen.image.contiguous(memory_format=order), seen.mix(target)
        policy.step(pixels, soft, 1e-4)
        wait_for_device(device)
        times.append(time.perf_counter() - start)
        if step >= 1 and time.perf_counter() - begin > seconds:
            break
    case_s = _forward_seconds(network, stored.contiguous(memory_format=order), device)
    return Speed(min(times[1:]), case_s, sum(p.numel() for p in network.parameters()))


@torch.inference_mode()
def _forward_seconds(network: torch.nn.Module, pixels: torch.Tensor, device: torch.device) -> float:
    network.eval()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        network(pixels)
        wait_for_device(device)
        times.append(time.perf_counter() - start)
    return min(times) / len(pixels)


def wait_for_device(device: torch.device) -> None:
    """Until everything that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
