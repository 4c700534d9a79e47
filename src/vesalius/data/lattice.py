"""Whether two grids are the same lattice of voxels, apart from the order and direction of their axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray, Grid

TOLERANCE_MM = 0.05
# No lattice may pass for another by a good part of its own step.
_PART_OF_STEP = 0.25
_SAME_STEP = 1e-3


@dataclass(frozen=True)
class Placement:
    """How an array of one grid becomes one of another: axes permuted, some flipped, put at an offset."""

    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    start: tuple[int, ...]
    ndim: int

    def apply(self, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """`values` on the other grid of `shape`; 0 where the first grid does not reach."""
        volume = values.reshape((1,) * (3 - values.ndim) + values.shape)
        volume = volume.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        full = (1,) * (3 - len(shape)) + tuple(shape)
        if volume.shape != full:
            whole = np.zeros(full, dtype=values.dtype)
            whole[tuple(slice(at, at + side) for at, side in zip(self.start, volume.shape, strict=True))] = volume
            volume = whole
        return np.ascontiguousarray(volume.reshape(shape))


def placement(one: Grid, other: Grid, *, inside: bool = False) -> Placement | Literal["shape", "place"]:
    """How an array on grid `one` is laid onto grid `other` without interpolation, else what forbids it.

    Grids agree when every corner of `one` lies within 0.05 mm (at most a quarter of the smallest step) of a voxel of
    `other`: NIfTI files keep the affine in single precision and often twice. Without a position in one of them the
    shapes alone decide, and the spacings where both are known.

    Parameters
    ----------
    inside
        Whether `one` may be a block of `other`, as a DICOM segmentation that stores only some of the slices.
    """
    shape_one, shape_other = _three(one.shape), _three(other.shape)
    if one.affine is None or other.affine is None:
        if shape_one != shape_other:
            return "shape"
        steps, others = one.spacing_mm, other.spacing_mm
        both = min(one.ndim, other.ndim)
        if steps and others and not np.allclose(steps[-both:], others[-both:], rtol=_SAME_STEP):
            return "place"
        return Placement((0, 1, 2), (False,) * 3, (0, 0, 0), other.ndim)
    affine = _with_step_across(one.affine, shape_one, other.affine)
    target = _with_step_across(other.affine, shape_other, affine)
    across = np.linalg.inv(target) @ affine
    turn = np.rint(across[:3, :3])
    if not (np.abs(turn).sum(axis=0) == 1).all() or not (np.abs(turn).sum(axis=1) == 1).all():
        return "place" if inside or sorted(shape_one) == sorted(shape_other) else "shape"
    axes = tuple(int(axis) for axis in np.abs(turn).argmax(axis=1))
    flips = tuple(bool(turn[row, axis] < 0) for row, axis in enumerate(axes))
    turned = tuple(shape_one[axis] for axis in axes)
    if not inside and turned != shape_other:
        return "shape"
    offset = np.rint(across[:3, 3])
    corners = _corners(shape_one)
    here = corners @ affine[:3, :3].T + affine[:3, 3]
    there = (corners @ turn.T + offset) @ target[:3, :3].T + target[:3, 3]
    steps_mm = np.linalg.norm(target[:3, :3], axis=0)
    if float(np.linalg.norm(here - there, axis=1).max()) > min(TOLERANCE_MM, _PART_OF_STEP * float(steps_mm.min())):
        return "place"
    start = tuple(int(offset[row]) - (turned[row] - 1 if flip else 0) for row, flip in enumerate(flips))
    fits = all(at >= 0 and at + side <= whole for at, side, whole in zip(start, turned, shape_other, strict=True))
    return Placement(axes, flips, start, other.ndim) if fits else "place"


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = (1,) * (3 - len(shape)) + tuple(shape)
    return z, y, x


def _with_step_across(affine: FloatArray, shape: tuple[int, int, int], other: FloatArray) -> FloatArray:
    """One slice has no step across of its own (2-D grids have a unit normal there): that of the other grid is taken."""
    if shape[0] != 1:
        return affine
    own = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    columns = other[:3, :3]
    steps = np.linalg.norm(columns, axis=0)
    nearest = int(np.abs(own @ (columns / steps)).argmax())
    out = affine.copy()
    out[:3, 0] = own * steps[nearest]
    return np.asarray(out, dtype=np.float64)


def _corners(shape: tuple[int, int, int]) -> FloatArray:
    ends = [(0, side - 1) for side in shape]
    return np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float64)


def shape_text(grid: Grid) -> str:
    """``20x512x512``."""
    return "x".join(map(str, grid.shape))


def steps_text(grid: Grid) -> str:
    """``2.5x0.7x0.7``; ``unknown`` without a physical size."""
    return "x".join(f"{step:.4g}" for step in grid.spacing_mm or ()) or "unknown"


def ends_text(grid: Grid) -> str:
    """``, first voxel (..), last (..)``: two turned grids may share one of them; empty without a position."""
    if grid.affine is None:
        return ""
    ends = ([0.0] * grid.ndim, [side - 1.0 for side in grid.shape])
    first, last = ("(" + ", ".join(f"{value:.2f}" for value in grid.to_patient(end)) + ")" for end in ends)
    return f", first voxel {first}, last {last}"
