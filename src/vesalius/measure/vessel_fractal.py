"""Fractal dimension of a set of points by box counting."""

from __future__ import annotations

from itertools import product

import numpy as np

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import in_threads, kernel

# Boxes below this many voxels see the voxels, boxes above this part of the extent see the whole.
_SMALLEST_BOX, _LARGEST_PART = 2.0, 0.25
_SHIFTS = (0.0, 0.5)


def box_dimension(points: FloatArray, voxel: float) -> float:
    """Box-counting dimension of points ``(N, ndim)`` in mm that are at most one `voxel` apart.

    Boxes are cubes with sides from 2 voxels to a quarter of the largest extent, doubling. Of the positions of the
    grid, shifted by half a box along each axis or not, the one with the fewest boxes counts, because the dimension is
    defined by the fewest that cover the set (Foroutan-pour, Dutilleul and Smith, Appl. Math. Comput. 1999, 105:195).
    The dimension is the slope of log count over log 1 / side. NaN for fewer than three sides.
    """
    if not len(points):
        return float("nan")
    low = points.min(axis=0) - voxel / 2
    extent = points.max(axis=0) + voxel / 2 - low
    sides = []
    side = _SMALLEST_BOX * voxel
    while side <= _LARGEST_PART * float(extent.max()) * (1 + 1e-9):
        sides.append(side)
        side *= 2
    if len(sides) < 3:
        return float("nan")
    place = np.ascontiguousarray(points - low)
    shifts = np.array(list(product(_SHIFTS, repeat=points.shape[1])))

    def fewest(side: float) -> int:
        cells = np.ceil(extent / side).astype(np.int64) + 1
        return min(int(_boxes(place, side, shift * side, cells)) for shift in shifts)

    counts = in_threads(fewest, sides)
    x, y = -np.log(sides), np.log(counts)
    return float(np.polyfit(x, y, 1)[0])


@kernel
def _boxes(points, side, shift, cells):  # type: ignore[no-untyped-def]
    """Boxes that hold a point, for a grid that begins `shift` before the origin."""
    total = 1
    for cell in cells:
        total *= cell
    seen = np.zeros(total, dtype=np.bool_)
    count = 0
    for k in range(points.shape[0]):
        box = 0
        for axis in range(points.shape[1]):
            box = box * cells[axis] + int((points[k, axis] + shift[axis]) / side)
        if not seen[box]:
            seen[box] = True
            count += 1
    return count
