"""Bodies whose volume is known by formula, and the exact part of each voxel that they fill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesalius.core.geometry import FloatArray, Grid
from vesalius.phantoms.phantom import Array

# Nodes of the quadrature over directions: spikes of width 0.12 rad are met by several.
_POLAR, _AROUND = 96, 192


@dataclass(frozen=True, eq=False)
class Star:
    """An ellipsoid whose radius grows by spikes in some directions: ``r = (1 + sum spikes) * ellipsoid``.

    Parameters
    ----------
    centre_mm
        LPS.
    radii_mm
        Half axes of the ellipsoid.
    turn
        ``(3, 3)`` rotation; row i is the direction of half axis i in LPS.
    spikes
        ``(N, 3)`` unit directions in the ellipsoid's own frame, with heights (a part of the radius) and sharpness.
    """

    centre_mm: FloatArray
    radii_mm: FloatArray
    turn: FloatArray
    spikes: FloatArray
    heights: FloatArray
    sharpness: float = 60.0

    @classmethod
    def random(cls, draw: np.random.Generator, radii_mm: ArrayLike, *, spiculated: bool) -> Star:
        """An ellipsoid of given half axes, turned at random, with 10 to 16 spikes if `spiculated`."""
        turn, _ = np.linalg.qr(draw.normal(size=(3, 3)))
        count = int(draw.integers(10, 17)) if spiculated else 0
        spikes = draw.normal(size=(count, 3))
        spikes /= np.maximum(np.linalg.norm(spikes, axis=1, keepdims=True), 1e-9)
        return cls(
            centre_mm=np.zeros(3),
            radii_mm=np.asarray(radii_mm, dtype=np.float64),
            turn=turn,
            spikes=spikes,
            heights=draw.uniform(0.35, 0.8, count),
        )

    def at(self, centre_mm: ArrayLike) -> Star:
        """The same body elsewhere."""
        return replace(self, centre_mm=np.asarray(centre_mm, dtype=np.float64))

    @property
    def reach_mm(self) -> float:
        """No point of the body is further from its centre."""
        return float(self.radii_mm.max() * (1 + self.heights.max(initial=0.0) * 2))

    @property
    def volume_mm3(self) -> float:
        """4/3 pi abc without spikes; else the integral of r^3 / 3 over all directions (Gauss and trapezoid)."""
        ellipsoid = 4 / 3 * np.pi * float(np.prod(self.radii_mm))
        if not len(self.heights):
            return ellipsoid
        height, weight = np.polynomial.legendre.leggauss(_POLAR)
        around = np.arange(_AROUND) * (2 * np.pi / _AROUND)
        across = np.sqrt(1 - height**2)[:, None]
        directions = np.stack(
            [across * np.cos(around), across * np.sin(around), np.broadcast_to(height[:, None], (_POLAR, _AROUND))],
            axis=-1,
        )
        # In the frame where the ellipsoid is the unit ball, the body is r(direction); its volume scales by abc.
        cubes = self._growth(directions) ** 3 / 3
        return float(np.prod(self.radii_mm) * (cubes.sum(axis=1) @ weight) * (2 * np.pi / _AROUND))

    def inside(self, points_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether LPS points ``(..., 3)`` lie in the body."""
        local = (points_mm - self.centre_mm) @ self.turn.T / self.radii_mm
        reach = np.linalg.norm(local, axis=-1)
        if not len(self.heights):
            return reach <= 1
        return reach <= self._growth(local / np.maximum(reach, 1e-9)[..., None])

    def _growth(self, directions: FloatArray) -> FloatArray:
        """Radius in unit directions ``(..., 3)`` as a multiple of the ellipsoid's."""
        bumps = np.exp(self.sharpness * (directions @ self.spikes.T - 1))
        return np.asarray(1 + np.minimum(bumps @ self.heights, 2 * self.heights.max(initial=0.0)))

    def describe(self) -> dict[str, Any]:
        """Numbers for the truth table."""
        volume = self.volume_mm3
        return {
            "centre_mm": tuple(float(c) for c in self.centre_mm),
            "radii_mm": tuple(float(r) for r in self.radii_mm),
            "radius_mm": float((volume * 3 / 4 / np.pi) ** (1 / 3)),
            "volume_ml": volume / 1000,
            "margin": "spiculated" if len(self.heights) else "smooth",
        }


def fraction_inside(grid: Grid, body: Star, *, samples: int = 5) -> Array:
    """The part of each voxel ``grid.shape`` that `body` fills, from ``samples ** 3`` points per voxel near it."""
    affine = np.asarray(grid.affine)
    # Half sides of the index box around a ball: row norms of the inverse map.
    half = np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1) * body.reach_mm + 1
    middle = grid.to_index(body.centre_mm)
    low = np.maximum(np.floor(middle - half), 0).astype(int)
    high = np.minimum(np.ceil(middle + half) + 1, grid.shape).astype(int)
    out = np.zeros(grid.shape, dtype=np.float32)
    if (high <= low).any():
        return out
    shift = (np.arange(samples) + 0.5) / samples - 0.5
    lines = [(np.arange(a, b)[:, None] + shift).ravel() for a, b in zip(low, high, strict=True)]
    index = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)
    filled = body.inside(grid.to_patient(index))
    sides = high - low
    blocks = filled.reshape(sides[0], samples, sides[1], samples, sides[2], samples)
    out[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = blocks.mean(axis=(1, 3, 5))
    return out
