"""Synthetic blood smears in colour: red cells, white cells and platelets with an exact instance map.

Cells are ellipses that do not overlap (neighbours may touch), drawn where their outline says, so that counts, areas and
boxes are known from the construction. Stain, light and focus vary between slides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UsageError
from vesalius.core.geometry import Grid
from vesalius.core.image import Unit
from vesalius.core.randomness import generator
from vesalius.phantoms.phantom import (
    Array,
    Phantom,
    assembled,
    blur,
    boxes_of,
    smooth_noise,
    soft_step,
    subject,
)

CLASSES = ("normal", "leukocytosis")
KINDS = ("RBC", "WBC", "Platelets")
STRUCTURES = ("background", *KINDS)
_SMALLEST = 64
# Half axes relative to a red cell (7.5 micrometres across), and how much they vary.
_SIZE = {"RBC": (1.0, 0.07), "WBC": (1.75, 0.12), "Platelets": (0.36, 0.2)}
# Absorption of red, green and blue light at full thickness.
_STAIN = {
    "RBC": (0.10, 0.42, 0.34),
    "plasma": (0.28, 0.36, 0.14),
    "nucleus": (0.85, 1.25, 0.42),
    "Platelets": (0.40, 0.62, 0.18),
}


@dataclass(frozen=True)
class Cell:
    """One cell: class, centre (y, x) and half axes in pixels, and the angle of the first half axis to the x axis."""

    kind: str
    centre: tuple[float, float]
    axes: tuple[float, float]
    angle: float

    @property
    def area_px(self) -> float:
        """Area of the ellipse."""
        return float(np.pi * self.axes[0] * self.axes[1])

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(y, x, y, x) of the ellipse in index units plus one half: pixel edges, upper exclusive."""
        a, b, cos, sin = *self.axes, np.cos(self.angle), np.sin(self.angle)
        across, down = float(np.hypot(a * cos, b * sin)), float(np.hypot(a * sin, b * cos))
        y, x = self.centre[0] + 0.5, self.centre[1] + 0.5
        return (y - down, x - across, y + down, x + across)


def make_smear(*, seed: int, index: int, size: int = 192, cells: int = 45) -> Phantom:
    """One field of view ``(3, size, size)``, uint8 RGB.

    Parameters
    ----------
    cells
        About how many red cells there are; fewer where they find no room.

    Returns
    -------
    Phantom
        `mask` says which kind of cell covers a pixel, ``layers["instances"]`` which one (uint16; cell k of
        ``truth["cells"]`` has the value k + 1); `boxes` and `box_names` follow the same order. `truth`: ``cells``
        (kind, centre_px, axes_px, angle of the first half axis to x, area_px), ``counts`` per kind.

    Raises
    ------
    UsageError
        For a picture in which a platelet would be smaller than a pixel.
    """
    if size < _SMALLEST:
        raise UsageError(f"a blood smear needs at least {_SMALLEST} pixels a side, got {size}")
    who = subject(seed, "smear", index, CLASSES)
    draw = generator(seed, "phantom:smear", index)
    unit = float(draw.normal(1.0, 0.05)) * size / 17.0
    placed = _placed(draw, size, unit, who.kind, cells)
    mask = np.zeros((size, size), dtype=np.uint16)
    absorbed = np.zeros((3, size, size), dtype=np.float32)
    for number, cell in enumerate(placed, start=1):
        _draw_cell(draw, cell, absorbed, mask, number)
    kinds = np.array([0, *(STRUCTURES.index(cell.kind) for cell in placed)], dtype=np.uint8)
    pixels = _photographed(draw, absorbed)
    truth: dict[str, Any] = {
        "cells": [
            {"kind": c.kind, "centre_px": c.centre, "axes_px": c.axes, "angle": c.angle, "area_px": c.area_px}
            for c in placed
        ],
        "counts": {name: sum(cell.kind == name for cell in placed) for name in KINDS},
    }
    meta = {"unit": Unit.RED_GREEN_BLUE, "modality": "SM"}
    return assembled(
        who,
        Grid((size, size)),
        pixels,
        meta,
        truth=truth,
        mask=kinds[mask],
        structures=STRUCTURES,
        boxes=boxes_of(mask, len(placed)),
        box_names=tuple(cell.kind for cell in placed),
        layers={"instances": mask},
    )


def _placed(draw: np.random.Generator, size: int, unit: float, kind: int, red: int) -> list[Cell]:
    """White cells first, then red ones and platelets where there is room; all of them whole inside the field."""
    white = int(draw.integers(0, 3)) if kind == 0 else int(draw.integers(3, 6))
    wanted = ["WBC"] * white + ["RBC"] * int(draw.normal(red, 5)) + ["Platelets"] * int(draw.poisson(4))
    placed: list[Cell] = []
    for name in wanted:
        mean, spread = _SIZE[name]
        for _ in range(60):
            radius = unit * mean * float(np.clip(draw.normal(1, spread), 0.7, 1.3))
            flat = float(np.exp(draw.normal(0, 0.05)))
            reach = radius * max(flat, 1 / flat)
            y, x = draw.uniform(reach + 1, size - reach - 2, 2)
            # Circles around the ellipses keep apart by a pixel: the map is exact, and a gap stays visible.
            if all(np.hypot(y - o.centre[0], x - o.centre[1]) > reach + max(o.axes) + 1 for o in placed):
                placed.append(
                    Cell(name, (float(y), float(x)), (radius * flat, radius / flat), float(draw.uniform(0, np.pi)))
                )
                break
    return placed


def _draw_cell(draw: np.random.Generator, cell: Cell, absorbed: Array, mask: NDArray[np.uint16], number: int) -> None:
    """Add one cell to the absorption ``(3, Y, X)`` and to the instance map, in its own box."""
    y0, x0, y1, x1 = (int(np.floor(v)) for v in cell.box)
    rows, columns = slice(max(y0 - 1, 0), y1 + 2), slice(max(x0 - 1, 0), x1 + 2)
    y = np.arange(mask.shape[0])[rows, None] - cell.centre[0]
    x = np.arange(mask.shape[1])[None, columns] - cell.centre[1]
    cos, sin = np.cos(cell.angle), np.sin(cell.angle)
    along, across = (x * cos + y * sin) / cell.axes[0], (y * cos - x * sin) / cell.axes[1]
    rho = np.hypot(along, across)
    cover = soft_step((1 - rho) * min(cell.axes), 1.2)
    mask[rows, columns][rho <= 1] = number
    texture = 1 + 0.12 * smooth_noise(draw, rho.shape, max(min(cell.axes) / 3, 1.5))
    if cell.kind == "RBC":
        # A disc that is thinner in its middle.
        thickness = cover * (1 - float(draw.uniform(0.35, 0.7)) * np.exp(-((rho / 0.5) ** 2))) * (0.9 + 0.1 * texture)
        layers = [("RBC", thickness)]
    elif cell.kind == "WBC":
        layers = [("plasma", cover * texture), ("nucleus", _nucleus(draw, along, across, cell) * texture * cover)]
    else:
        layers = [("Platelets", cover * texture)]
    for stain, thickness in layers:
        absorbed[:, rows, columns] += np.array(_STAIN[stain], dtype=np.float32)[:, None, None] * thickness


def _nucleus(draw: np.random.Generator, along: NDArray[Any], across: NDArray[Any], cell: Cell) -> Array:
    """One large round nucleus (lymphocyte) or two to four lobes in a row (neutrophil)."""
    width = 1.5 / min(cell.axes)
    lobes = int(draw.choice([1, 2, 3, 4], p=[0.35, 0.2, 0.3, 0.15]))
    turn, out = float(draw.uniform(0, 2 * np.pi)), np.zeros(along.shape, dtype=np.float32)
    radius = 0.70 if lobes == 1 else 0.33
    for lobe in range(lobes):
        angle, away = turn + lobe * 1.15, 0.0 if lobes == 1 else 0.42
        gap = np.hypot(along - away * np.cos(angle), across - away * np.sin(angle))
        out = np.maximum(out, soft_step(radius - gap, width))
    return out


def _photographed(draw: np.random.Generator, absorbed: Array) -> NDArray[np.uint8]:
    """Light through the slide (Beer and Lambert), background stain, focus, uneven lamp and sensor noise."""
    shape = absorbed.shape[1:]
    strength = float(np.exp(draw.normal(0, 0.15))) * np.exp(draw.normal(0, 0.08, 3)).astype(np.float32)
    light = np.exp(-absorbed * strength[:, None, None])
    lamp = np.array([0.93, 0.88, 0.88]) * np.exp(draw.normal(0, 0.03, 3))
    uneven = 1 + 0.03 * smooth_noise(draw, shape, shape[0] / 2) + 0.008 * smooth_noise(draw, shape, 6)
    focus = float(draw.uniform(0.4, 0.9))
    picture = np.stack([blur(channel * level * uneven, focus) for channel, level in zip(light, lamp, strict=True)])
    noisy = picture + draw.normal(0, 0.012, picture.shape)
    return np.clip(np.rint(noisy * 255), 0, 255).astype(np.uint8)
