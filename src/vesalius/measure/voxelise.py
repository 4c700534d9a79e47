"""Closed meshes to masks: which voxel centres lie inside, exactly.

Every layer of voxel centres cuts the mesh in closed polygons, and every row of centres cuts those in points; a centre
is inside when an odd number of points (or, by the non-zero rule, a sum of directions other than 0) lies at or before
it. A vertex at exactly the height of a layer or row counts as below it, always, so a box owns the centres on its lower
faces and not those on its upper ones; and a cut of an edge is computed from its ends in one fixed order. Triangles that
share an edge therefore agree to the last bit, and no hit is counted twice or lost, whatever the mesh touches; shared
vertices need only equal coordinates, not equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray, Grid
from vesalius.measure.compiled import in_threads, kernel, slabs
from vesalius.measure.meshes import Mesh, affine_of


class Rule(StrEnum):
    """Which centres are inside where a mesh has several sheets."""

    EVEN_ODD = "even-odd"
    """An odd number of crossings: a part inside another is a hole, however its triangles turn."""
    NON_ZERO = "non-zero"
    """Directions of crossings do not cancel: overlapping parts are joined; triangles must turn the same way."""


def mask_of(
    mesh: Mesh,
    where: Grid | Sequence[float] | None,
    shape: tuple[int, int, int] | None = None,
    *,
    rule: Rule | str = Rule.EVEN_ODD,
    workers: int | None = None,
) -> NDArray[np.bool_]:
    """Voxels whose centres lie inside a closed mesh; the inverse of `vesalius.measure.meshes.mesh_of`.

    Parameters
    ----------
    mesh
        Vertices in the places that `where` gives to voxels. It may reach out of the grid. An empty mesh gives an empty
        mask.
    where
        The grid of the mask; or its spacing (z, y, x) in mm, or None for index units, with `shape`.
    shape
        ``(Z, Y, X)``; needed without a grid.
    rule
        ``even-odd`` or ``non-zero``.

    Returns
    -------
    NDArray[bool]
        ``(Z, Y, X)``.

    Raises
    ------
    ValueError
        Without a three-dimensional shape, for an unknown rule, or where rows of centres leave the mesh another number
        of times than they enter it (it is open).
    """
    chosen = Rule(rule)
    sides = tuple(shape or (where.shape if isinstance(where, Grid) else ()))
    if len(sides) != 3 or min(sides) < 1:
        raise ValueError(f"a mask is made on a grid or shape of three axes, got {sides}")
    inverse = np.linalg.inv(affine_of(where, sides))
    out = np.zeros(sides, dtype=np.bool_)
    if not len(mesh.faces):
        return out
    corners = np.ascontiguousarray((mesh.vertices @ inverse[:3, :3].T + inverse[:3, 3])[mesh.faces])
    open_rows = _fill(corners, out, chosen is Rule.EVEN_ODD, workers)
    if open_rows:
        raise ValueError(
            f"the mesh is not closed or its triangles turn different ways: {open_rows} rows of voxels enter it more or "
            "less often than they leave it; expected a watertight mesh"
        )
    return out


def _fill(corners: FloatArray, out: NDArray[np.bool_], odd: bool, workers: int | None) -> int:
    """Fill `out` from triangles ``(F, 3, 3)`` in index units; the number of rows that do not close."""
    low = np.clip(np.ceil(corners.min(axis=(0, 1))), 0, out.shape).astype(np.int64)
    high = np.clip(np.floor(corners.max(axis=(0, 1))) + 1, 0, out.shape).astype(np.int64)
    if (low >= high).any():
        return 0
    bottom, top = corners[:, :, 0].min(axis=1), corners[:, :, 0].max(axis=1)

    def work(part: tuple[int, int]) -> int:
        z0, z1 = int(low[0]) + part[0], int(low[0]) + part[1]
        reach = corners[(top > z0 - 1) & (bottom < z1)]
        # One column more than needed: what lies right of the grid is counted there, so that every row closes.
        turns = np.zeros((z1 - z0, high[1] - low[1], high[2] - low[2] + 1), dtype=np.int16)
        _cut(reach, z0, low[1], low[2], turns)
        return int(_spread(turns, odd, out[z0:z1, low[1] : high[1], low[2] : high[2]]))

    parts = slabs(int(high[0] - low[0]), 4 * (workers or available_cores()))
    return sum(in_threads(work, parts, workers=workers))


@kernel
def _before(a, b):  # type: ignore[no-untyped-def]
    """A fixed order of two points, so that an edge is the same from both of its triangles."""
    for axis in range(3):
        if a[axis] != b[axis]:
            return a[axis] < b[axis]
    return True


@kernel
def _on_layer(a, b, z):  # type: ignore[no-untyped-def]
    """Where the edge from a to b passes height `z`: y and x."""
    if not _before(a, b):
        a, b = b, a
    part = (z - a[0]) / (b[0] - a[0])
    return a[1] + part * (b[1] - a[1]), a[2] + part * (b[2] - a[2])


@kernel
def _cut(triangles, z0, y0, x0, turns):  # type: ignore[no-untyped-def]
    """Add to `turns`, at the first centre at or right of each crossing of a row, which way the mesh crosses it."""
    depth, rows, columns = turns.shape
    for t in range(len(triangles)):
        corners = triangles[t]
        lowest = min(corners[0, 0], corners[1, 0], corners[2, 0])
        highest = max(corners[0, 0], corners[1, 0], corners[2, 0])
        # Layers with a corner at or below them and another above.
        first = int(min(max(np.ceil(lowest) - z0, 0), depth))
        last = int(min(max(np.ceil(highest) - z0, 0), depth))
        for k in range(first, last):
            z = k + z0
            up_y = up_x = down_y = down_x = 0.0
            for c in range(3):
                a, b = corners[c], corners[(c + 1) % 3]
                if (a[0] > z) != (b[0] > z):
                    if b[0] > z:
                        up_y, up_x = _on_layer(a, b, z)
                    else:
                        down_y, down_x = _on_layer(a, b, z)
            low_y, high_y = min(up_y, down_y), max(up_y, down_y)
            way = 1 if up_y < down_y else -1
            start = int(min(max(np.ceil(low_y) - y0, 0), rows))
            stop = int(min(max(np.ceil(high_y) - y0, 0), rows))
            for j in range(start, stop):
                part = (j + y0 - up_y) / (down_y - up_y)
                column = np.ceil(up_x + part * (down_x - up_x)) - x0
                turns[k, j, int(min(max(column, 0), columns - 1))] += way


@kernel
def _spread(turns, odd, out):  # type: ignore[no-untyped-def]
    """Fill `out` from running sums along x; the number of rows that do not end at 0 (or an even number)."""
    depth, rows, columns = turns.shape
    broken = 0
    for z in range(depth):
        for y in range(rows):
            total = 0
            for x in range(columns - 1):
                total += turns[z, y, x]
                if odd:
                    out[z, y, x] = total & 1 == 1
                else:
                    out[z, y, x] = total != 0
            total += turns[z, y, columns - 1]
            broken += (total & 1 if odd else total) != 0
    return broken
