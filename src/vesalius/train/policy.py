"""How one gradient step is made: optimiser, accumulation, clipping, averaging of weights.

`StepPolicy` is the protocol of the step; differential privacy will be another policy over the same loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class StepPolicy(Protocol):
    """What the loop asks for."""

    def step(self, pixels: Tensor, targets: Tensor, learning_rate: float) -> float:
        """One gradient step on ``(B, C, *S)`` and soft targets ``(B, K)``; returns the loss."""

    def at(self, progress: float) -> None:
        """How far training is, from 0 to 1, before each step."""

    def state(self) -> dict[str, Any]:
        """Everything a resumed step needs."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""


def parameter_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay on weights of convolutions and linear layers, none on biases and normalisation."""
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": weights, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def optimiser(network: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser of section ``optim`` of a plan."""
    groups = parameter_groups(network, float(settings["weight_decay"]))
    lr = float(settings["lr"])
    if settings["name"] == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    if settings["name"] == "adam":
        return torch.optim.Adam(groups, lr=lr)
    momentum = float(settings["momentum"])
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


class PlainStep:
    """Forward, backward, clip, step, average: the policy of ordinary training.

    Parameters
    ----------
    fabric
        Lightning Fabric; it owns precision and devices.
    task
        Gives the loss.
    network
        The module, not yet set up by Fabric.
    settings
        Section ``optim`` of the plan.
    """

    def __init__(self, fabric: Any, task: Any, network: nn.Module, settings: Mapping[str, Any]) -> None:
        self.fabric, self.task, self.settings = fabric, task, settings
        self.plain = network
        self.network, self.optimiser = fabric.setup(network, optimiser(network, settings))
        self.average = Average(network, float(settings["ema"])) if settings["ema"] else None

    def step(self, pixels: Tensor, targets: Tensor, learning_rate: float) -> float:
        """One gradient step; see `StepPolicy.step`."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.network.train()
        parts = int(self.settings["accumulate"])
        total = 0.0
        for place, (x, y) in enumerate(zip(pixels.chunk(parts), targets.chunk(parts), strict=True)):
            with self.fabric.no_backward_sync(self.network, enabled=place < parts - 1):
                loss = self.loss(x, y) / parts
                self.fabric.backward(loss)
            total += float(loss.detach())
        if self.settings["clip"]:
            self.fabric.clip_gradients(self.network, self.optimiser, max_norm=float(self.settings["clip"]))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.plain)
        return total

    def loss(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """What is minimised, of pixels ``(B, C, *S)`` and encoded targets."""
        loss: Tensor = self.task.loss(self.network(pixels), targets)
        return loss

    def at(self, progress: float) -> None:
        """Told to the task, whose loss may change on the way."""
        change = getattr(self.task, "at", None)
        if change is not None:
            change(progress)

    def weights(self) -> dict[str, Tensor]:
        """The weights that validation and the bundle use: averaged ones if the plan keeps an average."""
        if self.average is not None:
            return self.average.weights()
        return {name: value.detach().clone() for name, value in self.plain.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Network, optimiser and average."""
        kept: dict[str, Any] = {"network": self.plain.state_dict(), "optimiser": self.optimiser.state_dict()}
        if self.average is not None:
            kept["average"] = {"values": self.average.values, "updates": self.average.updates}
        return kept

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.plain.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            for name, value in state["average"]["values"].items():
                self.average.values[name].copy_(value)
            self.average.updates = int(state["average"]["updates"])


class Average:
    """Exponential moving average of weights and normalisation statistics (Polyak averaging).

    The decay warms up as ``min(decay, (1 + n) / (10 + n))``, so that early weights are forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours, theirs = [], []
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                ours.append(self.values[name])
                theirs.append(value.detach())
            else:
                self.values[name].copy_(value)
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the averaged weights."""
        return {name: value.clone() for name, value in self.values.items()}
