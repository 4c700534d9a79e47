"""Bodies in space, and the exact part of every voxel that they fill.

A body is a function of points in patient LPS mm that is positive inside. Voxels that a surface cuts are sampled at a
finer lattice (partial volume), all others once: the sum of the parts times the volume of a voxel converges to the
volume of the body.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from vesalius.core.errors import UsageError
from vesalius.core.geometry import FloatArray, Grid, affine_from_axes
from vesalius.phantoms.phantom import Array

Level = Callable[[FloatArray], FloatArray]
Window = tuple[slice, ...]

# Unit vectors along the index axes (z, y, x), in LPS. Coronal and sagittal stacks have the head at the top.
ORIENTATIONS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    "sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}
# Finest lattice in one voxel, per axis.
_FINEST = 16
# Samples per smallest half axis; lattice sums over a ball then miss its volume by less than half a percent.
_SAMPLES = 14


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """An ellipsoid.

    Parameters
    ----------
    centre_mm, radii_mm
        ``(3,)``: centre in patient LPS mm, half axes in mm.
    axes
        ``(3, 3)``: row i is the unit vector of half axis i.
    """

    centre_mm: FloatArray
    radii_mm: FloatArray
    axes: FloatArray = field(default_factory=lambda: np.eye(3))

    @property
    def volume_ml(self) -> float:
        """Volume by the formula."""
        return float(4 / 3 * np.pi * np.prod(self.radii_mm) / 1000)

    def inward(self, points: FloatArray) -> FloatArray:
        """1 at the centre of the ellipsoid, 0 on its surface, for points ``(..., 3)``."""
        return 1 - np.sqrt(self.reduced(points))

    def reduced(self, points: FloatArray) -> FloatArray:
        """Squared distance from the centre in half axes: below 1 inside."""
        seen = (points - self.centre_mm) @ (self.axes.T / self.radii_mm)
        return np.einsum("...i,...i->...", seen, seen)

    def reach(self, grid: Grid) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest fractional voxel index ``(3,)`` that the ellipsoid touches on `grid`."""
        inverse = np.linalg.inv(_affine(grid)[:3, :3])
        half = np.linalg.norm(inverse @ (self.axes.T * self.radii_mm), axis=1)
        middle = grid.to_index(self.centre_mm)
        return middle - half, middle + half

    def fits(self, grid: Grid) -> bool:
        """Whether all of it lies in voxels of `grid`."""
        low, high = self.reach(grid)
        return bool((low >= -0.5).all() and (high <= np.array(grid.shape) - 0.5).all())

    def box(self, grid: Grid) -> FloatArray:
        """``(6,)``: lower and upper corner (z, y, x) in index units, where voxel i covers i to i + 1."""
        low, high = self.reach(grid)
        return np.concatenate([low + 0.5, high + 0.5])


def volume_grid(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], orientation: str | ArrayLike, centre_mm: ArrayLike
) -> Grid:
    """A grid ``(Z, Y, X)`` around a point.

    Parameters
    ----------
    orientation
        A name of `ORIENTATIONS`, or ``(3, 3)`` with the unit vectors of the index axes (z, y, x) in LPS as rows.

    Raises
    ------
    UsageError
        For an unknown name, or a shape or spacing that is no volume's.
    """
    if isinstance(orientation, str) and orientation not in ORIENTATIONS:
        raise UsageError(
            f"orientation {orientation!r} is unknown; choose one of {', '.join(ORIENTATIONS)}, or give three unit vectors"
        )
    if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 4 or not all(step > 0 for step in spacing_mm):
        raise UsageError(f"a volume needs three sides of at least 4 and three spacings, got {shape} and {spacing_mm}")
    rows = ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation
    axes = np.array(rows, dtype=np.float64)
    if axes.shape != (3, 3) or not np.allclose(np.linalg.norm(axes, axis=1), 1, atol=1e-6):
        raise UsageError(f"orientation must be three unit vectors as rows (z, y, x), got {axes.tolist()}")
    steps = (np.array(shape) - 1) / 2 * np.array(spacing_mm)
    return Grid(shape, affine=affine_from_axes(np.asarray(centre_mm) - steps @ axes, axes, spacing_mm))


def points_of(grid: Grid, window: Window | None = None) -> FloatArray:
    """Centres ``(Z, Y, X, 3)`` of the voxels of `grid` (or of a window of it) in LPS mm."""
    window = window or tuple(slice(0, side) for side in grid.shape)
    lines = [np.arange(cut.start, cut.stop, dtype=np.float64) for cut in window]
    return grid.to_patient(np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1))


def coverage(grid: Grid, inward: Level, points: FloatArray, *, fine: int = 3) -> Array:
    """Part ``(Z, Y, X)`` of each voxel in which `inward` is positive.

    Parameters
    ----------
    points
        `points_of` of the grid, which several bodies share.
    fine
        Samples per axis in voxels whose neighbours lie on the other side of the surface. Structures thinner than a
        voxel may be missed; use `ellipsoid_coverage` where the volume must be exact.
    """
    inside = inward(points) > 0
    edge = ndimage.binary_dilation(inside, np.ones((3, 3, 3))) & ~ndimage.binary_erosion(
        inside, np.ones((3, 3, 3)), border_value=1
    )
    out = inside.astype(np.float32)
    out[edge] = _sampled(grid, inward, points[edge], fine)
    return out


def ellipsoid_coverage(grid: Grid, body: Ellipsoid) -> tuple[Window, Array]:
    """Part of each voxel that an ellipsoid fills: the window of the grid that it touches, and the parts in it.

    The error of the summed volume is below half a percent also for bodies of the size of a voxel, since the lattice
    follows the shortest half axis.
    """
    low, high = body.reach(grid)
    # A body outside the grid leaves an empty window.
    ends = np.array(grid.shape)
    starts = np.clip(np.floor(low + 0.5).astype(int), 0, ends)
    stops = np.clip(np.ceil(high + 0.5).astype(int), starts, ends)
    window = tuple(slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))
    points = points_of(grid, window)
    if points.size == 0:
        return window, np.zeros(points.shape[:-1], dtype=np.float32)
    affine = _affine(grid)[:3, :3]
    corners = (np.indices((2, 2, 2)).reshape(3, -1).T - 0.5) @ affine.T
    # How far a corner of a voxel can be from its centre, in half axes.
    slack = np.linalg.norm(corners @ (body.axes.T / body.radii_mm), axis=1).max()
    level = body.inward(points)
    out = (level > 0).astype(np.float32)
    edge = np.abs(level) <= slack
    step = np.linalg.norm(affine, axis=0).max()
    fine = int(np.clip(np.ceil(_SAMPLES * step / body.radii_mm.min()), 3, _FINEST))
    out[edge] = _sampled(grid, body.inward, points[edge], fine)
    return window, out


def rotation(draw: np.random.Generator, most: float = np.pi) -> FloatArray:
    """A random rotation ``(3, 3)`` by at most `most` radians about a random axis (Rodrigues' formula)."""
    axis = draw.standard_normal(3)
    axis /= np.linalg.norm(axis)
    angle = draw.uniform(-most, most)
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _sampled(grid: Grid, inward: Level, centres: FloatArray, fine: int) -> Array:
    """Part ``(N,)`` of the voxels at `centres` that is inside, from ``fine ** 3`` points each."""
    line = (np.arange(fine) + 0.5) / fine - 0.5
    steps = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3) @ _affine(grid)[:3, :3].T
    count: NDArray[np.float32] = np.zeros(len(centres), dtype=np.float32)
    # One offset after the other: memory stays that of one coarse lattice.
    for step in steps:
        count += inward(centres + step) > 0
    return count / np.float32(len(steps))


def _affine(grid: Grid) -> FloatArray:
    return np.asarray(grid.affine, dtype=np.float64)
