"""Exact Euclidean distance to the nearest of a set of voxels, on a whole grid or only where it is asked for.

The transform goes axis by axis: along x the nearest voxel of each row, then along y and z the lower envelope of the
parabolas that stand on the values so far (Felzenszwalb and Huttenlocher, Theory of Computing 2012, 8:19; Maurer et
al., IEEE TPAMI 2003, 25:265). It is exact for any spacing, and takes time in proportion to the number of voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_mask, checked_spacing
from vesalius.measure.compiled import in_threads, kernel, slabs
from vesalius.measure.surface_bits import PointSet, packed
from vesalius.measure.surface_search import look_in_bricks, look_near

# Columns that are copied side by side before their parabolas are worked on: a few cache lines wide.
_TILE = 16
# A query in bricks takes about as long as so many voxels of a plane.
_BRICK_WORK = 120
_NEVER = np.uint16(65535)


def distance_field(
    points: NDArray[Any],
    spacing: Sequence[float] | None = None,
    workers: int | None = None,
    *,
    limit: float | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Distance from the centre of each voxel to the centre of the nearest set voxel.

    Parameters
    ----------
    points
        ``(Z, Y, X)`` or ``(Y, X)``; anything but 0 is set. For the distance inside a mask to its background give the
        background; the outside of the array is not part of it, so pad first where the border should count.
    spacing
        Step per axis of `points`, e.g. in mm; None for pixels.
    workers
        Number of threads; all cores if None.
    limit
        Distances above it become inf, which makes the work less.
    dtype
        float32 (relative error below 4e-7) or float64.

    Returns
    -------
    Array of the shape of `points`: 0 at set voxels, inf everywhere if none is set.

    Raises
    ------
    ValueError
        For other axes, a bad spacing, a negative limit or another dtype.
    """
    mask = checked_mask(points, "points")
    steps = checked_spacing(spacing, mask.ndim)
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    if limit is not None and not limit >= 0:
        raise ValueError(f"limit must not be negative, got {limit}")
    out = np.empty(mask.shape, dtype=kind)
    if not mask.size:
        return out
    # A little above, so that rounding does not push out a distance that equals the limit.
    most = np.inf if limit is None else limit * limit * (1 + 4e-7)
    flat = (1,) * (3 - mask.ndim)
    sz, sy, sx = (1.0,) * len(flat) + steps
    _transform(mask.reshape(flat + mask.shape), out.reshape(flat + mask.shape), (sz, sy, sx), most, workers)
    return out


def _transform(
    volume: NDArray[np.uint8],
    values: NDArray[Any],
    spacing: tuple[float, float, float],
    most: float,
    workers: int | None,
) -> None:
    """Fill `values` with the distances, those with a square above `most` with inf."""
    sz, sy, sx = spacing
    pieces = workers or available_cores()

    def rows(part: tuple[int, int]) -> None:
        _rows(volume[:, slice(*part)], values[:, slice(*part)], sx * sx, most)

    def down(part: tuple[int, int]) -> None:
        _columns(values[0, :, slice(*part)], sy, most)

    def planes(part: tuple[int, int]) -> None:
        for z in range(*part):
            _rows(volume[z : z + 1], values[z : z + 1], sx * sx, most)
            _columns(values[z], sy, most)

    def across(part: tuple[int, int]) -> None:
        for y in range(*part):
            _columns(values[:, y], sz, most)

    def root(part: tuple[int, int]) -> None:
        np.sqrt(values[:, slice(*part)], out=values[:, slice(*part)])

    if volume.shape[0] == 1:
        in_threads(rows, slabs(volume.shape[1], pieces), workers=workers)
        in_threads(down, slabs(volume.shape[2], pieces), workers=workers)
    else:
        in_threads(planes, slabs(volume.shape[0], pieces), workers=workers)
        in_threads(across, slabs(volume.shape[1], pieces), workers=workers)
    in_threads(root, slabs(volume.shape[1], pieces), workers=workers)


@kernel
def _rows(mask, out, squared, most):  # type: ignore[no-untyped-def]
    """Squared distance to the nearest set voxel of the same row, `squared` for one step; inf above `most`."""
    end = mask.shape[2]
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            row, line = mask[z, y], out[z, y]
            since = -1
            for x in range(end):
                if row[x] == 0:
                    continue
                # Fill the gap between this set voxel and the one before it, from both sides.
                middle = 0 if since < 0 else since + (x - since) // 2 + 1
                for k in range(since + 1, middle):
                    line[k] = squared * ((k - since) * (k - since))
                for k in range(middle, x):
                    line[k] = squared * ((x - k) * (x - k))
                line[x] = 0.0
                since = x
            if since < 0:
                line[:] = np.inf
            else:
                for k in range(since + 1, end):
                    line[k] = squared * ((k - since) * (k - since))
            if most < np.inf:
                for k in range(end):
                    if line[k] > most:
                        line[k] = np.inf


@kernel
def _columns(plane, step, most):  # type: ignore[no-untyped-def]
    """Lower envelope down each column of `plane` (N, M), in place; `step` is the distance of its rows."""
    length, width = plane.shape
    squared = step * step
    halves = np.empty(length + 1)
    for k in range(1, length + 1):
        halves[k] = 0.5 / (squared * k)
    tile = np.empty((_TILE, length))
    answer = np.empty((_TILE, length))
    site = np.empty(length, dtype=np.int64)
    height = np.empty(length)
    start = np.empty(length + 1)
    for x in range(0, width, _TILE):
        wide = min(_TILE, width - x)
        for y in range(length):
            for k in range(wide):
                tile[k, y] = plane[y, x + k]
        for k in range(wide):
            _envelope(tile[k], answer[k], squared, halves, site, height, start, most)
        for y in range(length):
            for k in range(wide):
                plane[y, x + k] = answer[k, y]


@kernel
def _envelope(line, answer, squared, halves, site, height, start, most):  # type: ignore[no-untyped-def]
    """``answer[y] = min over q of line[q] + squared * (y - q)²``; `site`, `height` and `start` are room to work in."""
    length = line.shape[0]
    count = 0
    for q in range(length):
        value = line[q]
        if not value < np.inf:
            continue
        lifted = value + squared * (q * q)
        # From where on the parabola of q lies below the last of the envelope; that one goes if it never shows.
        where = -np.inf
        while count:
            where = (lifted - height[count - 1]) * halves[q - site[count - 1]]
            if where > start[count - 1]:
                break
            count -= 1
            where = -np.inf
        if where >= length - 1:
            continue
        site[count], height[count], start[count] = q, lifted, where
        count += 1
    if count == 0:
        answer[:] = np.inf
        return
    k = 0
    for y in range(length):
        while k + 1 < count and start[k + 1] < y:
            k += 1
        away = y - site[k]
        value = line[site[k]] + squared * (away * away)
        answer[y] = value if value <= most else np.inf


def nearest(points: PointSet, queries: PointSet, spacing: tuple[float, float, float]) -> FloatArray:
    """Distance from each of `queries` to the nearest of `points`, both on the same grid; inf if there are none.

    Queries that find nothing within a few voxels go through bricks of points; many of them, through the lower envelope,
    worked out plane by plane and only in planes where it is needed.
    """
    out = np.empty(len(queries))
    if not len(points):
        out[:] = np.inf
        return out
    sz, sy, sx = (float(step) for step in spacing)
    missed = look_near(points, queries, (sz, sy, sx), out)
    depth, height = queries.bits.shape[:2]
    if missed:
        planes = _open_planes(queries.start, out, height)
        if missed * _BRICK_WORK < len(planes) * height * points.width:
            missed = look_in_bricks(points, queries, (sz, sy, sx), out)
            planes = _open_planes(queries.start, out, height)
    if missed:
        away = _along_z(points.start, points.columns, planes, depth, height, points.width)
        plane = np.empty(away.shape[1:])
        for row, z in enumerate(planes):
            _lift(away[row], sz, plane)
            _columns(plane, sy, np.inf)
            _look_along(plane, sx, queries.start[z * height : (z + 1) * height + 1], queries.columns, out)
    return np.sqrt(out, out=out)


def distances_at(
    points: NDArray[Any],
    queries: NDArray[Any],
    spacing: Sequence[float] | None = None,
) -> FloatArray:
    """Distance to the nearest set voxel at some voxels only, for less than the whole `distance_field` costs.

    Parameters
    ----------
    points
        ``(Z, Y, X)`` or ``(Y, X)``; anything but 0 is set.
    queries
        A mask of the same shape.
    spacing
        Step per axis, e.g. in mm; None for pixels.

    Returns
    -------
    ``(N,)`` float64: one distance for each voxel of `queries`, in the order of ``numpy.nonzero``; inf if `points` is
    empty.

    Raises
    ------
    ValueError
        For shapes that differ, other axes or a bad spacing.
    """
    target, asked = checked_mask(points, "points"), checked_mask(queries, "queries")
    if target.shape != asked.shape:
        raise ValueError(f"points and queries must have one shape, got {target.shape} and {asked.shape}")
    steps = checked_spacing(spacing, target.ndim)
    sets = []
    for mask in (target, asked):
        volume = mask.reshape((1,) * (3 - mask.ndim) + mask.shape)
        sets.append(PointSet.of(packed(volume, 1, 0), volume.shape[2]))
    sz, sy, sx = (1.0,) * (3 - target.ndim) + steps
    return nearest(sets[0], sets[1], (sz, sy, sx))


def _open_planes(start: NDArray[np.int64], out: FloatArray, height: int) -> NDArray[np.int64]:
    """Planes that hold queries without an answer yet."""
    rows = np.searchsorted(start, np.flatnonzero(np.isinf(out)), side="right") - 1
    return np.unique(rows // height)


@kernel
def _along_z(start, columns, planes, depth, height, width):  # type: ignore[no-untyped-def]
    """``(P, Y, X)``: planes between each voxel of `planes` and the nearest point straight above or below it."""
    away = np.empty((planes.shape[0], height, width), dtype=np.uint16)
    for up in range(2):
        since = np.full((height, width), _NEVER, dtype=np.uint16)
        done = 0
        for turn in range(depth):
            z = depth - 1 - turn if up else turn
            for y in range(height):
                line = since[y]
                for x in range(width):
                    line[x] = line[x] + np.uint16(1) if line[x] < _NEVER else _NEVER
                for n in range(start[z * height + y], start[z * height + y + 1]):
                    line[columns[n]] = 0
            if done < planes.shape[0] and planes[planes.shape[0] - 1 - done if up else done] == z:
                plane = away[planes.shape[0] - 1 - done if up else done]
                done += 1
                for y in range(height):
                    for x in range(width):
                        plane[y, x] = min(plane[y, x], since[y, x]) if up else since[y, x]
    return away


@kernel
def _lift(away, step, plane):  # type: ignore[no-untyped-def]
    """Numbers of steps as squared distances."""
    for y in range(away.shape[0]):
        for x in range(away.shape[1]):
            length = away[y, x] * step
            plane[y, x] = np.inf if away[y, x] == _NEVER else length * length


@kernel
def _look_along(plane, step, start, columns, out):  # type: ignore[no-untyped-def]
    """Answer the queries of one plane that are still open: outwards along x from squared distances in the plane."""
    width = plane.shape[1]
    for y in range(plane.shape[0]):
        line = plane[y]
        for n in range(start[y], start[y + 1]):
            if out[n] < np.inf:
                continue
            x = columns[n]
            best = line[x]
            for away in range(1, width):
                square = away * step * (away * step)
                if square >= best:
                    break
                if x >= away:
                    best = min(best, line[x - away] + square)
                if x + away < width:
                    best = min(best, line[x + away] + square)
            out[n] = best
