"""What every planner is told beside the data, and what it says a run will take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vesalius.core.environment import available_cores
from vesalius.core.plan import Plan
from vesalius.core.quantity import show_bytes, show_seconds


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """How many cases there are, and what machine and time.

    Parameters
    ----------
    train_cases, other_cases
        Cases that will be trained on, and that will be validated and tested on.
    memory_bytes
        What the whole run may take; None without a limit.
    budget_s
        Seconds that training, testing and the report may take from now; None without a budget.
    workers
        Threads that decode files; None for one per core.
    """

    train_cases: int
    other_cases: int
    device: torch.device
    seed: int = 0
    memory_bytes: int | None = None
    budget_s: float | None = None
    workers: int | None = None

    @property
    def kind(self) -> str:
        """``cpu`` or ``gpu``."""
        return "cpu" if self.device.type == "cpu" else "gpu"


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What the plan will take, from measured speed and counted values."""

    train_s: float
    test_s: float
    memory_bytes: int
    disk_bytes: int
    parameters: int
    steps: int
    epochs: float

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"training {show_seconds(self.train_s)} for {self.steps} steps ({self.epochs:.1f} epochs), "
            f"testing and report {show_seconds(self.test_s)}",
            f"memory about {show_bytes(self.memory_bytes)}, prepared data {show_bytes(self.disk_bytes)} on disk, "
            f"{self.parameters / 1e6:.2f} million parameters",
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))


def decide_run(plan: Plan, facts: Circumstances) -> None:
    """Section ``run``: seed, device, workers, memory and budget."""
    why = "asked for" if facts.seed else "the default; another seed shows how much chance there is"
    plan.decide("run.seed", facts.seed, why)
    cpu = facts.kind == "cpu"
    plan.decide("run.device", str(facts.device), "no GPU was found or wanted" if cpu else "the fastest device there is")
    plan.decide("run.workers", facts.workers or available_cores(), f"{available_cores()} cores are available")
    if facts.memory_bytes:
        plan.decide("run.memory_bytes", facts.memory_bytes, "asked for")
    if facts.budget_s:
        plan.decide("run.budget_s", round(facts.budget_s, 1), "what is left of the budget after reading the data")
