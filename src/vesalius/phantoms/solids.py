"""Large bodies in space: only the voxels that a surface cuts are sampled finely.

A body is a function of points in patient LPS mm that is positive inside. Surfaces may be folded without a change of
volume: a radius with ``r ** 3 = 1 + f(direction)`` encloses the ball's volume as long as ``f`` has zero mean over the
sphere, which every odd function has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from vesalius.core.geometry import FloatArray, Grid
from vesalius.phantoms.phantom import Array

Level = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """An ellipsoid, smooth or with folds.

    Parameters
    ----------
    centre_mm, radii_mm
        ``(3,)``: centre in patient LPS mm, half axes in mm.
    axes
        ``(3, 3)``: row i is the unit vector of half axis i.
    waves
        ``(N, 3)`` wave vectors of the folds over the unit sphere; none for a smooth surface.
    depth
        Height of the folds as a part of the cubed radius; ``N * depth`` below 1.
    """

    centre_mm: FloatArray
    radii_mm: FloatArray
    axes: FloatArray = field(default_factory=lambda: np.eye(3))
    waves: FloatArray = field(default_factory=lambda: np.zeros((0, 3)))
    depth: float = 0.0

    @property
    def volume_ml(self) -> float:
        """Volume by the formula, which folds do not change."""
        return float(4 / 3 * np.pi * np.prod(self.radii_mm) / 1000)

    def inward(self, points: FloatArray) -> FloatArray:
        """Positive inside the body, for points ``(..., 3)``: 1 at the centre, 0 on the surface."""
        seen = (points - self.centre_mm) @ (self.axes.T / self.radii_mm)
        reach = np.sqrt(np.einsum("...i,...i->...", seen, seen))
        if not len(self.waves):
            return np.asarray(1 - reach)
        way = seen / np.maximum(reach, 1e-9)[..., None]
        return np.asarray(np.cbrt(1 + self.depth * np.sin(way @ self.waves.T).sum(-1)) - reach)


def points_of(grid: Grid) -> FloatArray:
    """Centres ``(Z, Y, X, 3)`` of the voxels of a volume in LPS mm."""
    return grid.to_patient(np.moveaxis(np.indices(grid.shape), 0, -1))


def coverage(grid: Grid, inward: Level, points: FloatArray, *, fine: int = 4) -> Array:
    """Part ``(Z, Y, X)`` of each voxel in which `inward` is positive.

    Parameters
    ----------
    points
        `points_of` of the grid, which several bodies share.
    fine
        Samples per axis in voxels with a neighbour on the other side of the surface. What is thinner than a voxel may
        be missed; `shapes.fraction_inside` samples every voxel near a small body.
    """
    inside = inward(points) > 0
    block = np.ones((3, 3, 3), dtype=bool)
    edge = ndimage.binary_dilation(inside, block) & ~ndimage.binary_erosion(inside, block, border_value=1)
    out = inside.astype(np.float32)
    line = (np.arange(fine) + 0.5) / fine - 0.5
    affine = np.asarray(grid.affine)[:3, :3]
    steps = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3) @ affine.T
    centres, count = points[edge], np.zeros(int(edge.sum()), dtype=np.float32)
    # One offset after the other: memory stays that of one coarse lattice.
    for step in steps:
        count += inward(centres + step) > 0
    out[edge] = count / np.float32(len(steps))
    return out
