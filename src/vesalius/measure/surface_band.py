"""Boundary IoU: overlap of the parts of two masks that lie close to their own boundaries.

Cheng et al. (CVPR 2021, arXiv:2103.16562) compare the bands of two masks within a distance d of the contour. Here the
band is what an erosion takes away, with a ball of radius d, in mm, together with the direct neighbours (so that a band
is never thinner than one voxel); outside of the array is background. Their code erodes with squares, d times.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.compiled import kernel
from vesalius.measure.distance import distance_field
from vesalius.measure.surface_bits import packed

# With more rows than this in the ball the distance transform is quicker; longer ones do not fit in two words.
_MOST_ROWS = 400
_LONGEST = 63
_SIXTY_FOUR = np.uint64(64)


def boundary_iou(
    first: NDArray[np.uint64],
    second: NDArray[np.uint64],
    width: int,
    flat: bool,
    spacing: tuple[float, float, float],
    radius: float,
) -> float:
    """Voxels in both bands over voxels in at least one; NaN if there are none.

    Parameters
    ----------
    first, second
        ``(Z + 2, Y + 2, W)``: two masks from `packed` with a border of 1.
    width
        Number of voxels in a row.
    flat
        Whether they are images, without a z axis.
    spacing
        (z, y, x) in mm.
    radius
        Width of the band in mm.
    """
    one, two = (band(bits, width, flat, spacing, radius) for bits in (first, second))
    either = int(np.bitwise_count(one | two).sum(dtype=np.int64))
    return int(np.bitwise_count(one & two).sum(dtype=np.int64)) / either if either else np.nan


def band(
    bits: NDArray[np.uint64], width: int, flat: bool, spacing: tuple[float, float, float], radius: float
) -> NDArray[np.uint64]:
    """The voxels of a mask that an erosion with the ball takes away, as bits like `bits`."""
    rows, halves = _ball(flat, spacing, radius)
    if len(rows) > _MOST_ROWS or halves.max() > _LONGEST:
        return _band_by_distance(bits, width, flat, spacing, radius)
    shrunk = np.zeros((int(halves.max()) + 1, *bits.shape), dtype=np.uint64)
    wanted = np.zeros(len(shrunk), dtype=np.bool_)
    wanted[halves] = True
    _shrink_rows(bits, wanted, shrunk)
    out = np.zeros_like(bits)
    _band(bits, shrunk, rows, halves, flat, out)
    return out


def _ball(
    flat: bool, spacing: tuple[float, float, float], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows ``(R, 2)`` (z, y) of the ball, the nearest first, and how many voxels each reaches to both sides."""
    reach = [0 if flat and axis == 0 else max(1, int(radius / spacing[axis] + 1e-9)) for axis in (0, 1)]
    rows, halves = [], []
    for z in range(-reach[0], reach[0] + 1):
        for y in range(-reach[1], reach[1] + 1):
            left = radius * radius * (1 + 1e-9) - (z * spacing[0]) ** 2 - (y * spacing[1]) ** 2
            half = int(np.sqrt(left) / spacing[2] + 1e-9) if left >= 0 else -1
            if abs(z) + abs(y) <= 1:  # the direct neighbours, however far they are
                half = max(half, 1 if z == y == 0 else 0)
            if half >= 0:
                rows.append((z, y))
                halves.append(half)
    order = np.argsort(np.abs(rows).sum(-1), kind="stable")
    return np.array(rows, dtype=np.int64)[order], np.array(halves, dtype=np.int64)[order]


def _band_by_distance(
    bits: NDArray[np.uint64], width: int, flat: bool, spacing: tuple[float, float, float], radius: float
) -> NDArray[np.uint64]:
    """The same from the distance to the background."""
    depth, height = bits.shape[0] - 2, bits.shape[1] - 2
    inside = np.zeros((1 if flat else depth + 2, height + 2, width + 2), dtype=np.uint8)
    _unpack(bits[1:2] if flat else bits, inside)
    away = distance_field(inside == 0, spacing, limit=radius, workers=1)
    near = (away <= radius * (1 + 1e-6)) & (inside == 1)
    for axis, step in enumerate(spacing):
        if step > radius and not (flat and axis == 0):  # the direct neighbours, however far they are
            for shift in (1, -1):
                near |= (inside == 1) & (np.roll(inside, shift, axis) == 0)
    out = np.zeros_like(bits)
    out[slice(1, 2) if flat else slice(None)] = packed(np.ascontiguousarray(near[:, :, 1:-1]).view(np.uint8), 1, 0)
    return out


@kernel
def _unpack(bits, inside):  # type: ignore[no-untyped-def]
    """Bits as bytes, with an empty voxel at both ends of each row."""
    for z in range(inside.shape[0]):
        for y in range(inside.shape[1]):
            for x in range(inside.shape[2] - 2):
                inside[z, y, x + 1] = bits[z, y, x >> 6] >> np.uint64(x & 63) & np.uint64(1)


@kernel
def _shrink_rows(bits, wanted, shrunk):  # type: ignore[no-untyped-def]
    """``shrunk[h]``: voxels of each row whose h neighbours to both sides are set, for the wanted h below 64."""
    words = bits.shape[2]
    line = np.empty(words, dtype=np.uint64)
    for z in range(bits.shape[0]):
        for y in range(bits.shape[1]):
            some = np.uint64(0)
            for w in range(words):
                line[w] = bits[z, y, w]
                some |= line[w]
            if some == 0:
                continue
            for half in range(shrunk.shape[0]):
                if half:
                    shift = np.uint64(half)
                    for w in range(words):
                        left, right = bits[z, y, w] << shift, bits[z, y, w] >> shift
                        if w:
                            left |= bits[z, y, w - 1] >> (_SIXTY_FOUR - shift)
                        if w + 1 < words:
                            right |= bits[z, y, w + 1] << (_SIXTY_FOUR - shift)
                        line[w] &= left & right
                if wanted[half]:
                    for w in range(words):
                        shrunk[half, z, y, w] = line[w]


@kernel
def _band(bits, shrunk, rows, halves, flat, out):  # type: ignore[no-untyped-def]
    """Voxels that are in the mask but not in all of the shifted rows of the ball."""
    depth, height, words = bits.shape
    kept = np.empty(words, dtype=np.uint64)
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            some = np.uint64(0)
            for w in range(words):
                kept[w] = bits[z, y, w]
                some |= kept[w]
            if some == 0:
                continue
            for k in range(rows.shape[0]):
                zz, yy = z + rows[k, 0], y + rows[k, 1]
                left = np.uint64(0)
                if 0 <= zz < depth and 0 <= yy < height:
                    for w in range(words):
                        kept[w] &= shrunk[halves[k], zz, yy, w]
                        left |= kept[w]
                if left == 0:
                    for w in range(words):
                        kept[w] = 0
                    break
            for w in range(words):
                out[z, y, w] = bits[z, y, w] & ~kept[w]
