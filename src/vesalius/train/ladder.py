"""The rungs of effort a budget can buy: image size, width and batch, from rich to frugal."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vesalius.core.plan import Plan
from vesalius.data.fingerprint import Fingerprint

DEFAULT_SIDE = {2: 224, 3: 64}
"""Longest side by default; classification gains little beyond it, and cost grows with its square or cube."""


@dataclass(frozen=True)
class Rung:
    """One level of effort; a width of None is the network's own.

    The stem belongs to the images, not to the rung: a picture that is made smaller to save time must not get a first
    layer that spends it again.
    """

    size: tuple[int, ...]
    width: int | None
    batch: int
    stem: str = "auto"


def wanted_epochs(cases: int) -> float:
    """Passes over the cases that a training needs: many over few cases, few over many.

    A rule of thumb from trainings on 1,000 to 55,000 cases: a smaller network that sees every case often enough did
    better than a larger one that did not.
    """
    return float(min(100.0, max(4.0, 60.0 * (1000.0 / max(cases, 1)) ** 0.4)))


def ladder(found: Fingerprint, plan: Plan, device: torch.device) -> list[Rung]:
    """Rungs for these images, the richest first."""
    dims = int(plan["preprocess.dims"])
    shape = found.shape.median
    sides = [min(int(side), DEFAULT_SIDE[dims]) for side in shape]
    if plan["preprocess.fit"] != "stretch":
        sides = [max(sides)] * dims if dims == 2 else sides
    rich = device.type != "cpu"
    rungs: list[Rung] = []
    scales = (1.0,) if max(sides) < 64 else (1.0, 0.86, 0.72, 0.57, 0.43)
    for scale in scales:
        size = tuple(_round(side * scale, 16 if max(sides) >= 64 else 1) for side in sides)
        batch = _batch(size, rich)
        if max(sides) < 64:
            widths = (64, 48, 32, 24, 16) if dims == 2 else (32, 24, 16, 8)
            rungs += [Rung(size, width, batch) for width in (widths[:1] if rich else widths[1:])]
        else:
            rungs.append(Rung(size, 48 if rich else 32, batch, "patch"))
    return rungs


def _round(side: float, step: int) -> int:
    return max(step, round(side / step) * step)


def _batch(size: tuple[int, ...], rich: bool) -> int:
    values = 1
    for side in size:
        values *= side
    batch = 128 if values <= 64 * 64 else 64 if values <= 128 * 128 else 32
    return batch * 2 if rich and len(size) == 2 else batch
