"""Voxels of one grid among those of another: the same lattice up to the order and direction of axes and its extent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import Grid

# Two grids are one lattice if no corner of one is further than this from a centre of the other, in voxels: above what
# decimal strings of a header round, far below where a voxel could be mistaken for its neighbour.
_ON_LATTICE = 0.05


@dataclass(frozen=True)
class Lattice:
    """Where the voxels of one volume are in another.

    Parameters
    ----------
    axes, signs
        For each axis (z, y, x) of the first the axis of the second, and 1 or -1 for its direction.
    origin
        Index in the second of the first's voxel (0, 0, 0).
    """

    axes: tuple[int, ...]
    signs: tuple[int, ...]
    origin: tuple[int, ...]


def as_volume(grid: Grid) -> Grid:
    """A two-dimensional grid as a volume of one slice."""
    return grid if grid.ndim == 3 else Grid((1, *grid.shape), affine=grid.affine)


def lattice_of(own: Grid, other: Grid) -> Lattice | None:
    """Where the voxels of `own` are in `other`, both three-dimensional with an affine; None if between its voxels."""
    turn = np.linalg.inv(np.asarray(other.affine)) @ np.asarray(own.affine)
    matrix, start = turn[:3, :3], turn[:3, 3]
    axes, signs = [-1, -1, -1], [1, 1, 1]
    # An axis of one voxel has no direction that could contradict: it takes what the others leave.
    for axis in sorted(range(3), key=lambda one: own.shape[one] == 1):
        free = [one for one in range(3) if one not in axes]
        axes[axis] = max(free, key=lambda one: abs(float(matrix[one, axis])))
        signs[axis] = -1 if matrix[axes[axis], axis] < 0 else 1
    whole = np.zeros((3, 3))
    whole[axes, range(3)] = signs
    origin = np.rint(start)
    ends = np.array(np.meshgrid(*[(0, side - 1) for side in own.shape])).reshape(3, -1)
    gap = np.abs((matrix - whole) @ ends + (start - origin)[:, None]).max()
    if gap > _ON_LATTICE:
        return None
    return Lattice(tuple(axes), tuple(signs), tuple(int(one) for one in origin))


def set_into(layers: NDArray[Any], lattice: Lattice, shape: Sequence[int]) -> tuple[NDArray[Any], int]:
    """Layers ``(K, Z, Y, X)`` set into zeros of ``(K, *shape)``, and how many values other than 0 lie outside of it."""
    axes, signs, origin = lattice.axes, lattice.signs, lattice.origin
    back = [list(axes).index(axis) for axis in range(3)]
    turned = np.transpose(layers, (0, *[1 + axis for axis in back]))
    turned = turned[(slice(None), *[slice(None, None, signs[axis]) for axis in back])]
    target, cut = [slice(None)], [slice(None)]
    for axis in range(3):
        length = turned.shape[1 + axis]
        first = origin[axis] - (length - 1 if signs[back[axis]] < 0 else 0)
        low, high = max(first, 0), min(first + length, shape[axis])
        target.append(slice(low, max(low, high)))
        cut.append(slice(low - first, max(low, high) - first))
    moved = np.zeros((len(layers), *shape), layers.dtype)
    moved[tuple(target)] = turned[tuple(cut)]
    lost = 0 if turned[tuple(cut)].size == turned.size else np.count_nonzero(turned) - np.count_nonzero(moved)
    return moved, int(lost)
