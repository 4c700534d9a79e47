"""Small volumes with one body each, for quick tests of three-dimensional classification: ball, block or ring.

All classes have volumes from the same range and the same contrast: neither brightness nor size tells them apart.
"""

from __future__ import annotations

import numpy as np

from vesalius.core.errors import UsageError
from vesalius.core.geometry import FloatArray, Grid
from vesalius.core.randomness import generator
from vesalius.phantoms.ct import centred_grid
from vesalius.phantoms.phantom import Phantom, assembled, boxes_of, smooth_noise, subject
from vesalius.phantoms.solids import Level, coverage, points_of

CLASSES = ("ball", "block", "ring")
STRUCTURES = ("background", "body")
# Distance of the middle of a ring's tube from the axis, as a multiple of the tube's radius.
_RING = 2.3


def make_solid(
    *, seed: int, index: int, size: int = 28, classes: int = 2, spacing_mm: float = 1.0, noise: float = 18.0
) -> Phantom:
    """One body ``(1, size, size, size)``, uint8, in any pose.

    Parameters
    ----------
    classes
        2 (ball, block) or 3 (and ring).
    noise
        Deviation of the white noise in grey values; the body is 60 to 110 brighter than its surroundings.

    Returns
    -------
    Phantom
        `truth`: ``centre_mm`` (LPS), ``volume_ml`` by the formula; ``layers["fraction"]`` the part of each voxel that
        the body fills.

    Raises
    ------
    UsageError
        For another number of classes, or fewer than 16 voxels a side.
    """
    if classes not in (2, 3) or size < 16:
        raise UsageError(f"solids have 2 or 3 classes and at least 16 voxels a side, got {classes} and {size}")
    who = subject(seed, "solid", index, CLASSES[:classes])
    draw = generator(seed, "phantom:solid", index)
    grid: Grid = centred_grid((size,) * 3, (spacing_mm,) * 3)
    # A ring of this volume is as wide as two thirds of the field.
    volume = (size * spacing_mm) ** 3 * float(draw.uniform(0.022, 0.05))
    centre = draw.uniform(-0.09, 0.09, 3) * size * spacing_mm
    turn, _ = np.linalg.qr(draw.standard_normal((3, 3)))
    part = coverage(grid, _body(who.label, volume, centre, turn), points_of(grid))
    ground = 90 + 14 * smooth_noise(draw, part.shape, size / 3) + draw.normal(0, 12)
    values = ground + draw.uniform(60, 110) * part + noise * draw.standard_normal(part.shape)
    pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    mask = (part >= 0.5).astype(np.uint8)
    truth = {"centre_mm": tuple(centre.tolist()), "volume_ml": volume / 1000}
    return assembled(
        who,
        grid,
        pixels[None],
        {"modality": "OT"},
        truth=truth,
        mask=mask,
        structures=STRUCTURES,
        boxes=boxes_of(mask, 1),
        box_names=("body",),
        layers={"fraction": part},
    )


def _body(name: str, volume: float, centre: FloatArray, turn: FloatArray) -> Level:
    """A function of LPS points that is positive inside a body of this volume in mm3."""
    ball = (volume * 3 / (4 * np.pi)) ** (1 / 3)
    half = (volume / 8) ** (1 / 3)
    # Volume of a torus: 2 pi^2 R r^2 with R = _RING r.
    tube = (volume / (2 * np.pi**2 * _RING)) ** (1 / 3)

    def inward(points: FloatArray) -> FloatArray:
        seen = (points - centre) @ turn.T
        if name == "ball":
            return np.asarray(ball - np.linalg.norm(seen, axis=-1))
        if name == "block":
            return np.asarray(half - np.abs(seen).max(axis=-1))
        ring = np.linalg.norm(seen[..., :2], axis=-1) - _RING * tube
        return np.asarray(tube - np.hypot(ring, seen[..., 2]))

    return inward
