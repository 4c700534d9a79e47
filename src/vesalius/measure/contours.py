"""Outlines of labels, slice by slice, as closed polygons, and polygons back to masks.

An outline is the level 0.5 of the label's mask (marching squares): it crosses the line between a pixel centre inside
and one outside at its middle, and pixels that touch at a corner only stay apart. A slice is cut into runs of equal
labels, and every ring is followed once from the first run it bounds, so all labels of a map cost one pass. A ring that
is first met at the left end of a run is an outer ring, one first met at a right end is a hole, and the ring left of
that run tells whose hole it is (the order of Suzuki and Abe, CVGIP 1985, 30:32).

Filling counts, for each row of pixel centres, where rings cross it: a centre is inside when an odd number of crossings
lies at or left of it (even-odd rule; a centre on an upper or left edge is inside, on a lower or right edge outside).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray, Grid
from vesalius.measure.boxes import checked_labels
from vesalius.measure.compiled import in_threads, kernel, slabs


@dataclass(frozen=True, eq=False)
class Contour:
    """One closed ring of a label in one slice.

    Parameters
    ----------
    label
        Label value.
    slice_index
        Index of the slice along the first axis; None for a two-dimensional map.
    points
        ``(N, 2)`` in index units (y, x), or ``(N, 3)`` in (z, y, x) for a volume; the last point is joined to the
        first, which is not repeated. Pixel centres are whole numbers. Outer rings run counter-clockwise in a frame
        with x to the right and y upwards (on a screen, where y points down: clockwise), holes the other way round.
    hole
        Whether the inside of the ring is not part of the label.
    parent
        For a hole the position of its outer ring in the list that `contours` returned, else -1.
    """

    label: int
    slice_index: int | None
    points: FloatArray
    hole: bool
    parent: int

    @property
    def area(self) -> float:
        """Enclosed area in squared index units, positive for holes too."""
        return abs(signed_area(self.points[:, -2:]))

    def to_patient(self, grid: Grid) -> FloatArray:
        """Points ``(N, 3)`` in patient LPS mm (x, y, z).

        Raises
        ------
        ValueError
            If the grid has no position in the patient, or other axes than the contour.
        """
        return grid.to_patient(self.points)


def signed_area(points: FloatArray) -> float:
    """Area of a ring ``(N, 2)`` of (y, x), positive when it runs counter-clockwise with x right and y up."""
    if len(points) < 3:
        return 0.0
    y, x = (points - points[0]).T
    return 0.5 * float(x @ np.roll(y, -1) - np.roll(x, -1) @ y)


def contours(labels: NDArray[Any], label: int | None = None, *, workers: int | None = None) -> list[Contour]:
    """Rings of every label of a map (or of one `label`), slice by slice, each hole after its outer ring.

    Points where a ring runs straight on are left out; nothing else is. `fill` gives the map back exactly.

    Parameters
    ----------
    labels
        ``(Y, X)`` or ``(Z, Y, X)`` of whole numbers, 0 for the background, or a mask. An empty map has no rings.
    label
        Only this one.

    Raises
    ------
    ValueError
        For other axes, negative values or fractions.
    """
    array = checked_labels(labels)
    volume = array if array.ndim == 3 else array[None]
    only = 0 if label is None else int(label)
    if label is not None and only <= 0:
        raise ValueError(f"label must be positive, got {label}; 0 is the background")
    if array.size == 0 or only > np.iinfo(array.dtype).max:
        return []

    def scan(part: tuple[int, int]) -> list[tuple[NDArray[Any], ...]]:
        return [_trace_plane(plane, label is None, only) for plane in volume[part[0] : part[1]]]

    cores = workers or available_cores()
    traced = [one for part in in_threads(scan, slabs(len(volume), 4 * cores), workers=workers) for one in part]
    found: list[Contour] = []
    for z, (doubled, starts, names, parents) in enumerate(traced):
        points = doubled.astype(np.float64) / 2
        if array.ndim == 3:
            points = np.column_stack([np.full(len(points), float(z)), points])
        offset = len(found)
        for (first, last), name, parent in zip(
            pairwise(starts.tolist()), names.tolist(), parents.tolist(), strict=True
        ):
            above = parent + offset if parent >= 0 else -1
            found.append(Contour(name, z if array.ndim == 3 else None, points[first:last], parent >= 0, above))
    return found


@kernel
def _runs(plane, every, only):  # type: ignore[no-untyped-def]
    """Runs of equal labels: ``first`` (rows + 1,) into ``begin`` and ``stop``, of `every` label or `only` one."""
    rows, columns = plane.shape
    first = np.zeros(rows + 1, np.int64)
    for y in range(rows):
        count = 0
        before = plane.dtype.type(0)
        for x in range(columns):
            here = plane[y, x]
            if here != before:
                count += here != 0 and (every or here == only)
                before = here
        first[y + 1] = first[y] + count
    begin, stop = np.empty(first[rows], np.int64), np.empty(first[rows], np.int64)
    k = 0
    for y in range(rows):
        if first[y + 1] == first[y]:
            continue
        x = 0
        while x < columns:
            here = plane[y, x]
            start = x
            x += 1
            while x < columns and plane[y, x] == here:
                x += 1
            if here != 0 and (every or here == only):
                begin[k], stop[k] = start, x
                k += 1
    return first, begin, stop


@kernel
def _trace_plane(plane, every, only):  # type: ignore[no-untyped-def]
    """Rings of one slice: doubled points (y, x), ``starts``, label of each and the outer ring of each hole (or -1)."""
    first, begin, stop = _runs(plane, every, only)
    count = len(begin)
    # Every kept point lies next to a turn and every turn next to an end of a run: at most eight points per run.
    points = np.empty((8 * count, 2), np.int32)
    starts = np.zeros(2 * count + 1, np.int64)
    names, parents = np.empty(2 * count, np.int64), np.empty(2 * count, np.int64)
    left = np.full(count, -1, np.int64)
    right = np.zeros(count, np.bool_)
    rings = 0
    for y in range(plane.shape[0]):
        for run in range(first[y], first[y + 1]):
            for side in range(2):
                if (side == 0 and left[run] >= 0) or (side == 1 and right[run]):
                    continue
                x, way = (begin[run], 2) if side == 0 else (stop[run] - 1, 0)
                parent = -1
                if side == 1:
                    parent = left[run] if parents[left[run]] < 0 else parents[left[run]]
                names[rings], parents[rings] = plane[y, x], parent
                starts[rings + 1] = _follow(plane, y, x, way, first, begin, left, right, rings, points, starts[rings])
                rings += 1
    return points[: starts[rings]].copy(), starts[: rings + 1].copy(), names[:rings].copy(), parents[:rings].copy()


@kernel
def _follow(plane, y, x, way, first, begin, left, right, ring, points, used):  # type: ignore[no-untyped-def]
    """Follow one ring from the edge of pixel (y, x) towards `way` (0 to 3: +x, +y, -x, -y), inside on its left."""
    rows, columns = plane.shape
    value = plane[y, x]
    step_y, step_x = (0, 1, 0, -1), (1, 0, -1, 0)
    y0, x0, way0 = y, x, way
    last_y, last_x, first_y, first_x = 9, 9, 9, 9  # no step is that long
    while True:
        if way % 2 == 0:
            run = first[y] + np.searchsorted(begin[first[y] : first[y + 1]], x, side="right") - 1
            if way == 2:
                left[run] = ring
            else:
                right[run] = True
        along = (way + 1) % 4
        py, px = y + step_y[along], x + step_x[along]
        qy, qx = py + step_y[way], px + step_x[way]
        if not (0 <= py < rows and 0 <= px < columns and plane[py, px] == value):
            ny, nx, turned = y, x, along
        elif 0 <= qy < rows and 0 <= qx < columns and plane[qy, qx] == value:
            ny, nx, turned = qy, qx, (way + 3) % 4
        else:
            ny, nx, turned = py, px, way
        here_y, here_x = 2 * y + step_y[way], 2 * x + step_x[way]
        move_y = 2 * ny + step_y[turned] - here_y
        move_x = 2 * nx + step_x[turned] - here_x
        # Steps along an axis have one length and steps across a corner another: parallel ones are equal.
        if last_y == 9:
            first_y, first_x = move_y, move_x
        elif move_y != last_y or move_x != last_x:
            points[used, 0], points[used, 1] = here_y, here_x
            used += 1
        last_y, last_x = move_y, move_x
        y, x, way = ny, nx, turned
        if y == y0 and x == x0 and way == way0:
            break
    if last_y != first_y or last_x != first_x:
        points[used, 0], points[used, 1] = 2 * y + step_y[way], 2 * x + step_x[way]
        used += 1
    return used


def polygon_mask(rings: Sequence[FloatArray], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of a slice of `shape` (Y, X) whose centres lie inside the `rings` together, by the even-odd rule.

    Each ring is ``(N, 2)`` of (y, x) in index units; it may leave the image. Rings of fewer than three points have no
    inside.
    """
    out = np.zeros(shape, dtype=np.uint8)
    _paint(out, rings, 1)
    return out.view(np.bool_)


def fill(rings: Iterable[Contour], shape: tuple[int, ...]) -> NDArray[Any]:
    """The label map of `shape` (Y, X) or (Z, Y, X) that has these outlines; the inverse of `contours`.

    The rings of one label in one slice are combined by the even-odd rule. Where changed outlines of two labels
    overlap, the higher label stands. The type is the smallest unsigned one that holds the labels.

    Raises
    ------
    ValueError
        For rings of other axes than `shape`, or slices outside it.
    """
    groups: dict[tuple[int, int], list[FloatArray]] = defaultdict(list)
    for ring in rings:
        if ring.points.ndim != 2 or ring.points.shape[1] != len(shape):
            raise ValueError(f"rings for a map of shape {shape} have points (N, {len(shape)}), got {ring.points.shape}")
        z = ring.slice_index or 0
        if len(shape) == 3 and not 0 <= z < shape[0]:
            raise ValueError(f"a ring lies in slice {z}, the map has {shape[0]} slices")
        groups[(ring.label, z)].append(ring.points[:, -2:])
    top = max((label for label, _ in groups), default=0)
    out = np.zeros(shape, dtype=np.min_scalar_type(top))
    planes = out if len(shape) == 3 else out[None]
    for label, z in sorted(groups):
        _paint(planes[z], groups[(label, z)], label)
    return out


def _paint(plane: NDArray[Any], rings: Sequence[FloatArray], value: int) -> None:
    kept = [np.ascontiguousarray(ring, dtype=np.float64) for ring in rings if len(ring) >= 3]
    if not kept:
        return
    points = np.concatenate(kept)
    if not np.isfinite(points).all():
        raise ValueError("the points of a ring must be finite")
    low = np.maximum(np.ceil(points.min(axis=0)), 0).astype(np.int64)
    high = np.minimum(np.floor(points.max(axis=0)) + 1, plane.shape).astype(np.int64)
    if (low >= high).any():
        return
    odd = np.zeros(tuple(high - low), dtype=np.bool_)
    starts = np.cumsum([0] + [len(ring) for ring in kept])
    _cross(points, starts, low[0], low[1], odd)
    _spread(odd, plane[low[0] : high[0], low[1] : high[1]], plane.dtype.type(value))


@kernel
def _cross(points, starts, y0, x0, odd):  # type: ignore[no-untyped-def]
    """Turn over the first pixel of `odd` at or right of every crossing of a ring with a row of centres."""
    rows, columns = odd.shape
    for ring in range(len(starts) - 1):
        first, end = starts[ring], starts[ring + 1]
        for k in range(first, end):
            after = k + 1 if k + 1 < end else first
            ay, ax, by, bx = points[k, 0], points[k, 1], points[after, 0], points[after, 1]
            if ay > by:
                ay, ax, by, bx = by, bx, ay, ax
            # Rows with ay <= y < by: neighbours that share a point never count it twice.
            start = int(min(max(np.ceil(ay) - y0, 0), rows))
            for y in range(start, int(min(max(np.ceil(by) - y0, 0), rows))):
                x = ax + (bx - ax) * ((y + y0 - ay) / (by - ay))
                column = max(np.ceil(x) - x0, 0)
                if column < columns:
                    odd[y, int(column)] ^= True


@kernel
def _spread(odd, out, value):  # type: ignore[no-untyped-def]
    for y in range(odd.shape[0]):
        inside = False
        for x in range(odd.shape[1]):
            inside ^= odd[y, x]
            if inside:
                out[y, x] = value
