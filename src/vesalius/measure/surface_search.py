"""The nearest voxel of a set, found by looking around each query instead of transforming the whole grid.

First rows of bits around the query, from near to far: one look-up in a table covers 13 voxels. It is all that most
points of two similar surfaces need. The others go through bricks of the grid, again from near to far, and through the
points in each brick. Both stop when nothing nearer can follow, so the distances are exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import kernel
from vesalius.measure.surface_bits import PointSet

# Voxels left and right of a query that one look-up covers, and the most rows around it that are looked at.
_REACH = 6
_MOST_ROWS = 128
# Voxels along the side of a brick where the spacing is the same along all axes.
_BRICK = 6.0
# Bricks to each side of that of a query that are searched.
_AROUND = 4
# After so many misses in a row only every eighth query is tried: the surfaces are far apart there.
_STREAK = 16
_ONE = np.uint64(1)
_SIXTY_THREE = np.uint64(63)

Spacing = tuple[float, float, float]


def look_near(points: PointSet, queries: PointSet, spacing: Spacing, out: FloatArray) -> int:
    """Squared distances to points within a few voxels; inf for the other queries, whose number is returned."""
    offsets, squares, sure = _near_rows(points.bits.shape, spacing)
    return int(
        _look_near(points.bits, queries.bits.shape[1], queries.start, queries.columns, offsets, squares, sure,
                   spacing[2] ** 2, _look_up(), out)
    )  # fmt: skip


def look_in_bricks(points: PointSet, queries: PointSet, spacing: Spacing, out: FloatArray) -> int:
    """Squared distances for the queries whose `out` is inf, up to a few bricks away; how many stay inf.

    There must be at least one point.
    """
    steps = np.asarray(spacing)
    shape = np.array([*points.bits.shape[:2], points.width])
    sides = np.clip(np.rint(_BRICK * np.prod(steps) ** (1 / 3) / steps), 1, shape).astype(np.int64)
    counts = -(-shape // sides)
    start = np.zeros(int(np.prod(counts)) + 1, dtype=np.int64)
    places = np.empty((len(points), 3), dtype=np.int32)
    _fill_bricks(points.start, points.columns, points.bits.shape[1], sides, counts, start, places)
    offsets = np.indices((2 * _AROUND + 1,) * 3).reshape(3, -1).T - _AROUND
    # Voxel centres of bricks k apart are at least (k - 1) sides and one step apart.
    gaps = np.where(offsets == 0, 0.0, ((np.abs(offsets) - 1) * sides + 1) * steps)
    squares = (gaps**2).sum(-1)
    order = np.argsort(squares, kind="stable")
    limit = min(
        [((_AROUND * sides + 1) * steps)[axis] ** 2 for axis in range(3) if counts[axis] > _AROUND + 1] or [np.inf]
    )
    return int(
        _look_in_bricks(queries.start, queries.columns, queries.bits.shape[1], steps, sides, counts, start, places,
                        offsets[order], squares[order], limit, out)
    )  # fmt: skip


def _near_rows(shape: tuple[int, ...], spacing: Spacing) -> tuple[NDArray[np.int64], FloatArray, float]:
    """Rows ``(R, 2)`` around a query from near to far, their squared distances, and up to where they miss nothing."""
    # The cap on the number of rows bounds each axis as well.
    most = [min(int((_REACH + 1) * spacing[2] / step), _MOST_ROWS) for step in spacing[:2]]
    return _sorted_rows((min(most[0], shape[0] - 1), min(most[1], shape[1] - 1)),
                        (most[0] < shape[0] - 1, most[1] < shape[1] - 1), spacing)  # fmt: skip


@lru_cache(maxsize=64)
def _sorted_rows(
    counts: tuple[int, int], more: tuple[bool, bool], spacing: Spacing
) -> tuple[NDArray[np.int64], FloatArray, float]:
    """Up to `counts` rows to each side along z and y; `more` says where the grid goes on beyond them."""
    rows = np.indices((2 * counts[0] + 1, 2 * counts[1] + 1)).reshape(2, -1).T - counts
    squares = (rows[:, 0] * spacing[0]) ** 2 + (rows[:, 1] * spacing[1]) ** 2
    order = np.argsort(squares, kind="stable")
    rows, squares = rows[order], squares[order]
    # What lies beyond the window of a row, or in a row that is not on the list, may be nearer than this.
    limit = ((_REACH + 1) * spacing[2]) ** 2
    for axis in range(2):
        if more[axis]:
            limit = min(limit, ((counts[axis] + 1) * spacing[axis]) ** 2)
    if len(rows) > _MOST_ROWS:
        limit = min(limit, float(squares[_MOST_ROWS]))
    keep = squares[:_MOST_ROWS] < limit
    return rows[:_MOST_ROWS][keep], squares[:_MOST_ROWS][keep], limit


@lru_cache(maxsize=1)
def _look_up() -> NDArray[np.uint8]:
    """Steps from the middle of a window of ``2 * _REACH + 1`` bits to the nearest set one, 255 if there is none."""
    windows = np.arange(1 << (2 * _REACH + 1))
    table = np.full(len(windows), 255, dtype=np.uint8)
    for away in range(_REACH, -1, -1):
        hit = (windows >> (_REACH - away) | windows >> (_REACH + away)) & 1
        table[hit == 1] = away
    return table


@kernel
def _look_near(bits, height, start, columns, offsets, squares, limit, step, table, out):  # type: ignore[no-untyped-def]
    """Squared distances below `limit`, inf for queries that have none; returns the number of those."""
    mask = np.uint64((1 << (2 * _REACH + 1)) - 1)
    words = bits.shape[2]
    missed, streak = 0, 0
    for row in range(start.shape[0] - 1):
        z, y = row // height, row % height
        for n in range(start[row], start[row + 1]):
            if streak > _STREAK and n & 7:
                out[n] = np.inf
                missed += 1
                continue
            left = columns[n] - _REACH
            word = max(left, 0) >> 6
            shift = np.uint64(max(left, 0) & 63)
            best, before = np.inf, streak
            for k in range(offsets.shape[0]):
                if squares[k] >= best:
                    break
                zz, yy = z + offsets[k, 0], y + offsets[k, 1]
                if zz < 0 or zz >= bits.shape[0] or yy < 0 or yy >= bits.shape[1]:
                    continue
                window = bits[zz, yy, word] >> shift
                if shift and word + 1 < words:
                    window |= bits[zz, yy, word + 1] << (_SIXTY_THREE - shift + _ONE)
                if left < 0:
                    window <<= np.uint64(-left)
                away = table[window & mask]
                if away != 255:
                    best = min(best, squares[k] + step * (away * away))
            streak = 0
            if best > limit:
                best = np.inf
                missed += 1
                streak = before + 1
            out[n] = best
    return missed


@kernel
def _fill_bricks(rows, columns, height, sides, counts, start, places):  # type: ignore[no-untyped-def]
    """The points (z, y, x) sorted by brick, and where each brick begins."""
    for turn in range(2):
        for row in range(rows.shape[0] - 1):
            z, y = row // height, row % height
            base = (z // sides[0] * counts[1] + y // sides[1]) * counts[2]
            for n in range(rows[row], rows[row + 1]):
                brick = base + columns[n] // sides[2]
                if turn == 0:
                    start[brick + 1] += 1
                else:
                    here = start[brick]
                    places[here, 0], places[here, 1], places[here, 2] = z, y, columns[n]
                    start[brick] += 1
        if turn == 0:
            for k in range(1, start.shape[0]):
                start[k] += start[k - 1]
    # Filling has moved each beginning to that of the next brick.
    for k in range(start.shape[0] - 1, 0, -1):
        start[k] = start[k - 1]
    start[0] = 0


@kernel
def _look_in_bricks(  # type: ignore[no-untyped-def]
    rows, columns, height, steps, sides, counts, start, places, offsets, squares, limit, out
):
    """Nearest points in the bricks around; a query that may have nearer ones further out stays inf."""
    sz, sy, sx = steps
    last, missed, streak = 0, 0, 0
    for row in range(rows.shape[0] - 1):
        z, y = row // height, row % height
        bz, by = z // sides[0], y // sides[1]
        for n in range(rows[row], rows[row + 1]):
            if out[n] < np.inf:
                continue
            if streak > _STREAK and n & 7:
                missed += 1
                continue
            x = columns[n]
            bx = x // sides[2]
            # What was nearest to the query before is not far from this one.
            best = _square(z - places[last, 0], y - places[last, 1], x - places[last, 2], sz, sy, sx)
            for k in range(offsets.shape[0]):
                if squares[k] >= best:
                    break
                kz, ky, kx = bz + offsets[k, 0], by + offsets[k, 1], bx + offsets[k, 2]
                if min(kz, ky, kx) < 0 or kz >= counts[0] or ky >= counts[1] or kx >= counts[2]:
                    continue
                brick = (kz * counts[1] + ky) * counts[2] + kx
                if start[brick] == start[brick + 1]:
                    continue
                low_z, low_y, low_x = kz * sides[0], ky * sides[1], kx * sides[2]
                away_z = max(low_z - z, z - low_z - sides[0] + 1, 0)
                away_y = max(low_y - y, y - low_y - sides[1] + 1, 0)
                away_x = max(low_x - x, x - low_x - sides[2] + 1, 0)
                if _square(away_z, away_y, away_x, sz, sy, sx) >= best:
                    continue
                for p in range(start[brick], start[brick + 1]):
                    square = _square(z - places[p, 0], y - places[p, 1], x - places[p, 2], sz, sy, sx)
                    if square < best:
                        best, last = square, p
            if best <= limit:
                out[n] = best
                streak = 0
            else:
                missed += 1
                streak += 1
    return missed


@kernel
def _square(z, y, x, sz, sy, sx):  # type: ignore[no-untyped-def]
    return z * sz * (z * sz) + y * sy * (y * sy) + x * sx * (x * sx)
