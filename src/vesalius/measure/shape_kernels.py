"""One pass over a label map that collects all that shape is made of.

Every row is read once, as runs of equal labels. From the runs follow, exactly and in whole numbers:

- moments up to the second order of each label, in closed form per run;
- how often each of the 256 cells of `measure.cube` (16 in two dimensions) occurs on its surface, found by merging the
  runs of four neighbouring rows, so that the work grows with the surface and not with the volume. Area, enclosed
  volume and Euler number are sums over those counts;
- the corners of the convex hull of its voxel centres within each slice. The surface at level 0.5 has its vertices half
  a step along an axis from a voxel centre, so the hull of the surface is the hull of the centres plus an octahedron.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.measure.boxes import LabelBoxes, checked_labels, label_boxes
from vesalius.measure.compiled import in_threads, kernel, slabs

IntArray = NDArray[np.int64]

# Label values up to here index a table; maps with larger ones are renumbered.
_LARGEST_DIRECT = 1 << 22
# Tables with a row for every value up to the largest, and one per label and line, may have this many rows: then one
# pass is enough. Otherwise a pass before finds out which labels there are.
_LARGEST_TABLE = 1 << 12
_MOST_LINES = 1 << 22
_WORTH_SKIPPING = 1 << 24


@dataclass(frozen=True, eq=False)
class Scan:
    """What one pass finds; rows are labels in rising order.

    Parameters
    ----------
    boxes
        Labels, voxel counts and boxes, with the axes of the map.
    moments
        ``(L, 10)``: 1, z, y, x, zz, yy, xx, zy, zx, yx summed over the voxels' indices.
    codes
        ``(L, 256)`` or, for a plane, ``(L, 16)``: number of cells of each kind; code 0 is not counted.
    corners
        ``(P, 3)``: voxels (z, y, x) at the corners of the hull of each label in each slice, sorted by label and slice.
    first
        ``(L + 1,)``: where the corners of each label begin.
    """

    boxes: LabelBoxes
    moments: IntArray
    codes: IntArray
    corners: NDArray[np.int32]
    first: IntArray


def numbered(labels: NDArray[Any], boxes: LabelBoxes) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The map and a table from its values to rows of `boxes` (-1 for 0); huge values are renumbered in a copy."""
    largest = int(boxes.values[-1]) if len(boxes) else 0
    if largest <= _LARGEST_DIRECT:
        rows = np.full(largest + 1, -1, dtype=np.int32)
        rows[boxes.values] = np.arange(len(boxes), dtype=np.int32)
        return labels, rows
    dense = np.searchsorted(boxes.values, labels).astype(np.int32) + 1
    dense[labels == 0] = 0
    return dense, np.arange(-1, len(boxes), dtype=np.int32)


def scan(labels: NDArray[Any], *, workers: int | None = None) -> Scan:
    """Moments, cell counts and hull corners of every label of a map ``(Y, X)`` or ``(Z, Y, X)``."""
    array, rows, values, low, high = _planned(checked_labels(labels), workers)
    flat = array.ndim == 2
    volume = array[None] if flat else array
    words, per = _words(volume)

    def run(part: tuple[int, int]) -> tuple[IntArray, IntArray, IntArray, NDArray[np.int32]]:
        moments = np.zeros((len(values), 10), dtype=np.int64)
        codes = np.zeros((len(values), 16 if flat else 256), dtype=np.int64)
        edges = np.zeros((len(values), 6), dtype=np.int64)
        edges[:, :3] = np.iinfo(np.int64).max
        closing = not flat and part[1] == len(volume)
        sides = (low, high, edges)
        found = _scan_slab(volume, words, per, part, closing, rows, sides, moments, codes, 4 if flat else 0)
        return moments, codes, edges, found

    # Labels are seldom spread evenly; small tables allow more pieces than threads.
    pieces = (workers or available_cores()) * (4 if len(values) < _LARGEST_TABLE else 1)
    done = in_threads(run, slabs(len(volume), pieces) if volume.size else [(0, 0)], workers=workers)
    moments, codes = (np.sum([one[k] for one in done], axis=0) for k in (0, 1))
    held = np.flatnonzero(moments[:, 0])
    start = np.min([one[2][:, :3] for one in done], axis=0)[held, 3 - array.ndim :]
    stop = np.max([one[2][:, 3:] for one in done], axis=0)[held, 3 - array.ndim :]
    boxes = LabelBoxes(values[held], moments[held, 0], start, stop)
    found = np.concatenate([one[3] for one in done])
    # Numbers of 16 bits are sorted by radix, many times faster.
    order = np.argsort(found[:, 0].astype(np.uint16 if len(values) < 1 << 16 else np.int32), kind="stable")
    many = np.bincount(found[:, 0], minlength=len(values))[held]
    first = np.concatenate([[0], np.cumsum(many)]).astype(np.int64)
    return Scan(boxes, moments[held], codes[held], found[order, 1:], first)


def _planned(
    array: NDArray[Any], workers: int | None
) -> tuple[NDArray[Any], NDArray[np.int32], IntArray, IntArray, IntArray]:
    """The map to scan, the row of each of its values, the value of each row, and the lines (y) each may lie on."""
    # Large maps of bytes need no look: 255 rows are few.
    large = array.dtype == np.uint8 and array.size > _WORTH_SKIPPING
    largest = 255 if large else int(array.max()) if array.size else 0
    height = array.shape[-2]
    if largest < _LARGEST_TABLE and (largest + 1) * height <= _MOST_LINES:
        rows = np.arange(-1, largest, dtype=np.int32)
        return array, rows, rows[1:] + np.int64(1), np.zeros(largest, np.int64), np.full(largest, height, np.int64)
    boxes = label_boxes(array, workers=workers)
    array, rows = numbered(array, boxes)
    low, high = (np.ascontiguousarray(side[:, -2]) for side in (boxes.start, boxes.stop))
    return array, rows, boxes.values, low, high


def _words(volume: NDArray[Any]) -> tuple[NDArray[np.uint64], int]:
    """Eight bytes of each line as one number, and how many voxels that is; no words if lines are no multiple of it."""
    per = 8 // volume.itemsize
    if per < 2 or volume.shape[-1] % per or not volume.size:
        return np.zeros((len(volume), volume.shape[1], 0), np.uint64), 1
    return volume.view(np.uint64), per


@kernel
def _scan_slab(volume, words, per, part, closing, rows, sides, moments, codes, shift):  # type: ignore[no-untyped-def]
    """Slices of `part` and the cells below each (and above the last if `closing`); hull corners (row, z, y, x)."""
    z0, z1 = part
    low, high, edges = sides
    height, width, count = volume.shape[1], volume.shape[2], low.shape[0]
    at = np.zeros(count + 1, np.int64)
    for row in range(count):
        at[row + 1] = at[row] + high[row] - low[row]
    at[:count] -= low  # line y of a label is kept at at[row] + y
    left = np.full(at[count], width, np.int32)
    right = np.full(at[count], -1, np.int32)
    stack = np.empty((height, 2), np.int32)
    lines = np.full((count, 3), -1, np.int64)
    seen = np.empty(count, np.int32)
    points, size = np.empty((1024, 4), np.int32), 0
    below = (np.empty(1024, np.int32), np.empty(1024, np.int32), np.zeros(height + 1, np.int64))
    above = (np.empty(1024, np.int32), np.empty(1024, np.int32), np.zeros(height + 1, np.int64))
    if z0 > 0:
        below = _encode(volume[z0 - 1], words[z0 - 1], per, rows, below)
    for z in range(z0, z1):
        above = _encode(volume[z], words[z], per, rows, above)
        many = _measure_runs(above, z, width, at, edges, moments, left, right, lines, seen)
        for k in range(many):
            points, size = _slice_corners(seen[k], z, lines, at, left, right, stack, points, size)
        _cells(below, above, width, codes, shift)
        below, above = above, below
    if closing:
        above[2][:] = 0
        _cells(below, above, width, codes, shift)
    return points[:size].copy()


@kernel
def _encode(plane, words, per, rows, runs):  # type: ignore[no-untyped-def]
    """Runs of equal labels of each row of a plane: first x, label row (-1 background), first run of each row."""
    starts, kinds, offsets = runs
    width, size, steps = plane.shape[1], 0, words.shape[1]
    bits = 64 // per
    for y in range(plane.shape[0]):
        offsets[y] = size
        if size + width > starts.shape[0]:
            more = max(width, starts.shape[0])
            starts = np.concatenate((starts, np.empty(more, np.int32)))
            kinds = np.concatenate((kinds, np.empty(more, np.int32)))
        line = plane[y]
        x = 0
        while x < width:
            label = line[x]
            starts[size], kinds[size] = x, rows[label]
            size += 1
            x += 1
            while x < width and line[x] == label:
                x += 1
                if steps and x % per == 0:
                    # A word full of this label is compared at once.
                    full = np.uint64(label)
                    if per > 4:
                        full |= full << np.uint64(bits)
                        full |= full << np.uint64(2 * bits)
                        full |= full << np.uint64(4 * bits)
                    elif per > 2:
                        full |= full << np.uint64(bits)
                        full |= full << np.uint64(2 * bits)
                    else:
                        full |= full << np.uint64(bits)
                    step = x // per
                    while step < steps and words[y, step] == full:
                        step += 1
                    x = step * per
    offsets[plane.shape[0]] = size
    return starts, kinds, offsets


@kernel
def _measure_runs(runs, z, width, at, edges, moments, left, right, lines, seen):  # type: ignore[no-untyped-def]
    """Adds the moments of a slice; leaves first and last x of each label in each line; returns how many labels."""
    starts, kinds, offsets = runs
    many = 0
    for y in range(offsets.shape[0] - 1):
        for k in range(offsets[y], offsets[y + 1]):
            row = kinds[k]
            if row < 0:
                continue
            begin = np.int64(starts[k])
            end = np.int64(starts[k + 1]) if k + 1 < offsets[y + 1] else np.int64(width)
            if lines[row, 0] != z:
                lines[row, 0], lines[row, 1] = z, y
                seen[many] = row
                many += 1
                edge = edges[row]
                edge[0], edge[3] = min(edge[0], z), max(edge[3], z + 1)
                edge[1] = min(edge[1], y)
            lines[row, 2] = y
            place = at[row] + y
            left[place] = min(left[place], begin)
            right[place] = max(right[place], end - 1)
            n, last = end - begin, end - 1
            line = (begin + last) * n // 2
            square = (last * end * (2 * last + 1) - (begin - 1) * begin * (2 * begin - 1)) // 6
            m = moments[row]
            m[0] += n
            m[1] += n * z
            m[2] += n * y
            m[3] += line
            m[4] += n * z * z
            m[5] += n * y * y
            m[6] += square
            m[7] += n * z * y
            m[8] += line * z
            m[9] += line * y
    for k in range(many):
        row = seen[k]
        edge = edges[row]
        edge[4] = max(edge[4], lines[row, 2] + 1)
        for y in range(lines[row, 1], lines[row, 2] + 1):
            place = at[row] + y
            if left[place] <= right[place]:
                edge[2], edge[5] = min(edge[2], left[place]), max(edge[5], right[place] + 1)
    return many


@kernel
def _slice_corners(row, z, lines, at, left, right, stack, points, size):  # type: ignore[no-untyped-def]
    """Appends the hull corners of one label in one slice: the left chain downwards, then the right one."""
    for side in range(2):
        edge = left if side == 0 else right
        sign = 1 if side == 0 else -1
        depth = 0
        for y in range(lines[row, 1], lines[row, 2] + 1):
            place = at[row] + y
            if left[place] > right[place]:
                continue
            x = edge[place]
            while depth >= 2:
                y1, x1 = np.int64(stack[depth - 1, 0]), np.int64(stack[depth - 1, 1])
                y0, x0 = np.int64(stack[depth - 2, 0]), np.int64(stack[depth - 2, 1])
                if sign * ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) < 0:
                    break
                depth -= 1
            stack[depth, 0], stack[depth, 1] = y, x
            depth += 1
        if size + depth > points.shape[0]:
            points = np.concatenate((points, np.empty((points.shape[0] + depth, 4), np.int32)))
        for k in range(depth):
            points[size, 0], points[size, 1] = row, z
            points[size, 2], points[size, 3] = stack[k, 0], stack[k, 1]
            size += 1
    for place in range(at[row] + lines[row, 1], at[row] + lines[row, 2] + 1):
        left[place], right[place] = np.int32(2147483647), -1
    return points, size


@kernel
def _cells(below, above, width, codes, shift):  # type: ignore[no-untyped-def]
    """Counts the cells between two slices; rows beyond the edge of the map are background."""
    s0, k0, o0 = below
    s1, k1, o1 = above
    height = o0.shape[0] - 1
    eight = np.empty(8, np.int32)
    for y in range(-1, height):
        a, b, c, d, a_end, b_end, c_end, d_end = 0, 0, 0, 0, 0, 0, 0, 0
        if y >= 0:
            a, a_end, c, c_end = o0[y], o0[y + 1], o1[y], o1[y + 1]
        if y + 1 < height:
            b, b_end, d, d_end = o0[y + 1], o0[y + 2], o1[y + 1], o1[y + 2]
        if not (
            _holds_labels(k0, a, a_end)
            or _holds_labels(k0, b, b_end)
            or _holds_labels(k1, c, c_end)
            or _holds_labels(k1, d, d_end)
        ):
            continue
        _merge_rows(s0, k0, s1, k1, a, a_end, b, b_end, c, c_end, d, d_end, width, codes, shift, eight)


@kernel
def _holds_labels(kinds, start, stop):  # type: ignore[no-untyped-def]
    """Whether a row, none or a single run of background excepted, has a label."""
    return stop - start > 1 or (stop > start and kinds[start] >= 0)


@kernel
def _merge_rows(s0, k0, s1, k1, a, a_end, b, b_end, c, c_end, d, d_end, width, codes, shift, eight):  # type: ignore[no-untyped-def]
    """Walks along four rows (runs a.. and b.. of one slice, c.. and d.. of the next) from change to change."""
    none = np.int32(-1)
    a_next, b_next = 0 if a < a_end else width, 0 if b < b_end else width
    c_next, d_next = 0 if c < c_end else width, 0 if d < d_end else width
    a_old = b_old = c_old = d_old = none
    a_now = b_now = c_now = d_now = none
    # Of the four voxels of a column: the highest label, which hold it, and whether the others are background.
    top_old, held_old, plain_old = none, 0, True
    x = 0
    while True:
        if x == width:
            a_now = b_now = c_now = d_now = none
        else:
            if a_next == x:
                a_now = k0[a]
                a += 1
                a_next = s0[a] if a < a_end else width
            if b_next == x:
                b_now = k0[b]
                b += 1
                b_next = s0[b] if b < b_end else width
            if c_next == x:
                c_now = k1[c]
                c += 1
                c_next = s1[c] if c < c_end else width
            if d_next == x:
                d_now = k1[d]
                d += 1
                d_next = s1[d] if d < d_end else width
        top = max(a_now, b_now, c_now, d_now)
        held, plain = 0, True
        if top >= 0:
            # Bits 0, 2, 4, 6: where the first column of a cell stands in its code.
            held = (a_now == top) | (b_now == top) << 2 | (c_now == top) << 4 | (d_now == top) << 6
            free = (a_now < 0) | (b_now < 0) << 2 | (c_now < 0) << 4 | (d_now < 0) << 6
            plain = (held | free) == 85
        if plain and plain_old and (top == top_old or top < 0 or top_old < 0):
            label = max(top, top_old)
            if label >= 0:
                codes[label, (held_old | held << 1) >> shift] += 1
        else:
            _count(a_old, a_now, b_old, b_now, c_old, c_now, d_old, d_now, 1, codes, shift, eight)
        if x == width:
            return
        following = min(a_next, b_next, c_next, d_next)
        if following - x > 1:
            if plain:
                if top >= 0:
                    codes[top, (held | held << 1) >> shift] += following - x - 1
            else:
                _count(a_now, a_now, b_now, b_now, c_now, c_now, d_now, d_now, following - x - 1, codes, shift, eight)
        a_old, b_old, c_old, d_old = a_now, b_now, c_now, d_now
        top_old, held_old, plain_old = top, held, plain
        x = following


@kernel
def _count(v0, v1, v2, v3, v4, v5, v6, v7, many, codes, shift, eight):  # type: ignore[no-untyped-def]
    """Adds `many` cells with labels v0..v7 at their corners, once for each label among them."""
    label = max(v0, v1, v2, v3, v4, v5, v6, v7)
    if label < 0:
        return
    code = (v0 == label) | (v1 == label) << 1 | (v2 == label) << 2 | (v3 == label) << 3
    code |= (v4 == label) << 4 | (v5 == label) << 5 | (v6 == label) << 6 | (v7 == label) << 7
    codes[label, code >> shift] += many
    free = (v0 < 0) | (v1 < 0) << 1 | (v2 < 0) << 2 | (v3 < 0) << 3
    free |= (v4 < 0) << 4 | (v5 < 0) << 5 | (v6 < 0) << 6 | (v7 < 0) << 7
    done = code | free
    if done == 255:
        return
    eight[0], eight[1], eight[2], eight[3], eight[4], eight[5], eight[6], eight[7] = v0, v1, v2, v3, v4, v5, v6, v7
    for k in range(8):
        if done >> k & 1:
            continue
        code = 0
        for j in range(8):
            code |= (eight[j] == eight[k]) << j
        done |= code
        codes[eight[k], code >> shift] += many
