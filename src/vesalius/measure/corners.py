"""Corners of voxels: the lattice on which distances between voxel boxes are exact.

Corner ``(z, y, x)`` is the one that voxel ``(z, y, x)`` shares with voxel ``(z-1, y-1, x-1)``; in index units it lies
at ``(z, y, x) - 0.5``. A map of shape (Z, Y, X) has (Z+1, Y+1, X+1) corners. The nearest point of a closed box to a
corner is again a corner, so the distance of two unions of boxes is the distance of their sets of corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import in_threads, kernel, slabs

IntArray = NDArray[np.int64]

# Label values up to here index a table; larger ones are renumbered first.
_LARGEST_DIRECT = 1 << 22


def corners_of(labels: NDArray[Any], value: int, low: IntArray, high: IntArray) -> NDArray[np.uint8]:
    """Which corners from `low` to `high` (both included) belong to a voxel of `labels` ``(Z, Y, X)`` with `value`.

    Returns
    -------
    points
        uint8 of shape ``high - low + 1``, 1 at the corners of the structure.
    """
    points = np.zeros(tuple(int(side) for side in high - low + 1), dtype=np.uint8)
    _mark(labels, value, np.asarray(low, np.int64), points)
    return points


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Corners on the surface of each label, one label after the other, in scan order.

    Parameters
    ----------
    starts
        ``(L+1,)``: the corners of row k are ``starts[k]:starts[k+1]``.
    places
        ``(N, 3)`` corner indices.
    areas
        ``(N,)`` a quarter of the area of each surface face around the corner; over a label they add up to the area of
        all its faces. Faces on the edge of the array are not surface.
    """

    starts: IntArray
    places: NDArray[np.int32]
    areas: NDArray[np.float32]

    def of(self, row: int, low: IntArray, high: IntArray) -> tuple[NDArray[np.int32], FloatArray]:
        """Places and areas of the corners of `row` from `low` to `high` (both included)."""
        part = slice(int(self.starts[row]), int(self.starts[row + 1]))
        places, areas = self.places[part], self.areas[part].astype(np.float64)
        inside = ((places >= low) & (places <= high)).all(1)
        return (places, areas) if inside.all() else (places[inside], areas[inside])


def surface_corners(
    labels: NDArray[Any], values: NDArray[Any], spacing: FloatArray, *, workers: int | None = None
) -> Surfaces:
    """Corners on the surfaces of the labels `values` of ``(Z, Y, X)``, found in two looks at each voxel.

    Surface is where a label meets any other value, whether that is among `values` or not.
    """
    quarter = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]]) / 4
    part, names = row_numbers(labels, values)
    pieces = slabs(part.shape[0] + 1, workers or available_cores())
    none = np.zeros((0, 3), dtype=np.int32)
    sizes = np.zeros((len(pieces), len(values) + 1), dtype=np.int64)

    def count(number: int) -> None:
        _surface(part, *pieces[number], names, quarter, sizes[number], none, np.zeros(0, dtype=np.float32))

    in_threads(count, range(len(pieces)), workers=workers)
    flat = sizes[:, 1:].T.ravel()  # by label, then by slab
    begins = np.concatenate([[0], np.cumsum(flat)])
    places, areas = np.zeros((begins[-1], 3), dtype=np.int32), np.zeros(begins[-1], dtype=np.float32)
    offsets = np.zeros_like(sizes)
    offsets[:, 1:] = begins[:-1].reshape(len(values), len(pieces)).T

    def fill(number: int) -> None:
        _surface(part, *pieces[number], names, quarter, offsets[number], places, areas)

    in_threads(fill, range(len(pieces)), workers=workers)
    return Surfaces(begins[:: len(pieces)], places, areas)


def row_numbers(labels: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """A map and a table with ``table[map]`` 0 for the background and k + 1 for ``values[k]`` (rising).

    The map is `labels` itself unless its values are too large to index a table.
    """
    largest = int(labels.max()) if labels.size else 0
    if largest <= _LARGEST_DIRECT:
        names = np.zeros(largest + 1, dtype=np.int32)
        fits = values <= largest
        names[values[fits]] = np.flatnonzero(fits) + 1
        return labels, names
    spots = np.minimum(np.searchsorted(values, labels), len(values) - 1)
    return np.where(values[spots] == labels, spots + 1, 0).astype(np.int32), np.arange(len(values) + 1, dtype=np.int32)


def nearest_corner(points: NDArray[np.uint8], place: IntArray, spacing: FloatArray, within: float) -> IntArray:
    """The set corner nearest to `place`, known to lie `within` a distance; the first in scan order of equal ones."""
    reach = np.ceil(within * (1 + 1e-5) / spacing).astype(np.int64)
    low = np.maximum(place - reach, 0)
    high = np.minimum(place + reach + 1, points.shape)
    window = points[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    set_ones = np.argwhere(window) + low
    away = (((set_ones - place) * spacing) ** 2).sum(1)
    return set_ones[int(np.argmin(away))]


def weighted_percentile(values: FloatArray, weights: FloatArray, share: float, total: float) -> float:
    """The smallest value that, with all below it, carries `share` of `total`; NaN if the weights do not reach it."""
    if not len(values) or not total > 0:
        return float("nan")
    order = np.argsort(values, kind="stable")
    running = np.cumsum(weights[order])
    place = int(np.searchsorted(running, share * total * (1 - 1e-9)))
    return float(values[order[place]]) if place < len(values) else float("nan")


@kernel
def _mark(labels, value, low, points):  # type: ignore[no-untyped-def]
    """Set the corners of every voxel with `value`; rows are walked in runs."""
    depth, height, width = points.shape
    for z in range(max(low[0] - 1, 0), min(low[0] + depth, labels.shape[0])):
        for y in range(max(low[1] - 1, 0), min(low[1] + height, labels.shape[1])):
            row = labels[z, y]
            x = max(low[2] - 1, 0)
            end = min(low[2] + width, labels.shape[2])
            while x < end:
                if row[x] != value:
                    x += 1
                    continue
                begin = x
                while x < end and row[x] == value:
                    x += 1
                first, last = max(begin - low[2], 0), min(x - low[2], width - 1)
                for dz in range(2):
                    for dy in range(2):
                        cz, cy = z + dz - low[0], y + dy - low[1]
                        if 0 <= cz < depth and 0 <= cy < height:
                            points[cz, cy, first : last + 1] = 1


@kernel
def _surface(labels, begin, end, names, quarter, offsets, places, areas):  # type: ignore[no-untyped-def]
    """Corners of planes ``begin .. end-1`` with surface faces: `offsets` counts them, and they are written if there
    is room in `places`."""
    depth, height, width = labels.shape
    eight = np.zeros(8, dtype=np.int64)
    known = np.zeros(8, dtype=np.bool_)
    for z in range(begin, end):
        z0, z1 = max(z - 1, 0), min(z, depth - 1)
        for y in range(height + 1):
            y0, y1 = max(y - 1, 0), min(y, height - 1)
            a, b, c, d = labels[z0, y0], labels[z0, y1], labels[z1, y0], labels[z1, y1]
            even = a[0] == b[0] and a[0] == c[0] and a[0] == d[0]
            for x in range(width + 1):
                x0, x1 = max(x - 1, 0), min(x, width - 1)
                was = even
                even = a[x1] == b[x1] and a[x1] == c[x1] and a[x1] == d[x1]
                if was and even and a[x0] == a[x1]:
                    continue
                eight[0], eight[1], eight[2], eight[3] = a[x0], a[x1], b[x0], b[x1]
                eight[4], eight[5], eight[6], eight[7] = c[x0], c[x1], d[x0], d[x1]
                for k in range(8):
                    vz, vy, vx = z - 1 + (k >> 2), y - 1 + (k >> 1 & 1), x - 1 + (k & 1)
                    known[k] = 0 <= vz < depth and 0 <= vy < height and 0 <= vx < width
                for k in range(8):
                    name = names[eight[k]]
                    area = 0.0
                    if name > 0 and known[k]:
                        area = _faces(eight, known, k, quarter)
                    if area > 0:
                        if len(areas):
                            spot = offsets[name]
                            places[spot, 0], places[spot, 1], places[spot, 2] = z, y, x
                            areas[spot] = area
                        offsets[name] += 1


@kernel
def _faces(eight, known, place, quarter):  # type: ignore[no-untyped-def]
    """Quarter faces around a corner of the label at `place`; 0 if the label was met at a lower place."""
    value = eight[place]
    for k in range(place):
        if known[k] and eight[k] == value:
            return 0.0
    area = 0.0
    for axis in range(3):
        step = 4 >> axis
        for k in range(8):
            if k & step == 0 and known[k] and known[k | step]:
                area += quarter[axis] * ((eight[k] == value) != (eight[k | step] == value))
    return area
