"""The surface of a mask as a weighted set of points, found on rows of bits: 64 voxels at a time.

``elements`` are the cells of eight voxel centres (four pixel centres in an image) that hold both inside and outside
corners. Each lies at the middle of its cell and weighs the area of the surface in it (Nikolov et al., arXiv:1809.04430;
tables in `vesalius.measure.cube`). ``voxels`` are the voxels of the mask with a background voxel at one of their six
(four) faces; each weighs 1. Outside of the array is background for both, so a mask that touches the border is closed
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import kernel
from vesalius.measure.cube import areas
from vesalius.measure.surface_bits import PointSet

_SIXTY_THREE = np.uint64(63)
_ONE = np.uint64(1)


@dataclass(frozen=True, eq=False)
class Surface:
    """Where a surface is and how much of it.

    Parameters
    ----------
    points
        Cells (`elements`) or voxels.
    codes
        ``(N,)`` which corners of each cell are inside (see `vesalius.measure.cube`); None for voxels.
    weights
        ``(N,)`` area of each element in mm² (length in mm in two dimensions); None where all weigh the same.
    """

    points: PointSet
    codes: NDArray[np.uint8] | None
    weights: FloatArray | None

    def __len__(self) -> int:
        return len(self.points)


def elements(bits: NDArray[np.uint64], width: int, flat: bool, table: FloatArray) -> Surface:
    """Surface elements of a mask.

    Parameters
    ----------
    bits
        ``(Z + 2, Y + 2, W)`` from `packed` with a border of 1.
    width
        Number of voxels in a row.
    flat
        Whether it is an image: cells of four pixels.
    table
        ``(256,)``: from `element_sizes`.
    """
    depth, height = bits.shape[0] - 2, bits.shape[1] - 2
    marks = np.zeros((1 if flat else depth + 1, height + 1, bits.shape[2]), dtype=np.uint64)
    _mark_cells(bits, flat, marks)
    points = PointSet.of(marks, width + 1)
    codes = np.empty(len(points), dtype=np.uint8)
    _codes(bits, flat, height + 1, points.start, points.columns, codes)
    return Surface(points, codes, table[codes])


def boundary_voxels(bits: NDArray[np.uint64], width: int, flat: bool) -> Surface:
    """Voxels of the mask (bits as for `elements`) that have a face in common with the background."""
    marks = np.zeros((bits.shape[0] - 2, bits.shape[1] - 2, bits.shape[2]), dtype=np.uint64)
    _mark_voxels(bits, flat, marks)
    return Surface(PointSet.of(marks, width), None, None)


@lru_cache(maxsize=64)
def element_sizes(spacing: tuple[float, ...]) -> FloatArray:
    """``(256,)``: area of the surface in a cell by its code; with two spacings, length of the contour.

    In an image both planes of the cell are the same. A single corner that differs from the others is cut off by half a
    diagonal, opposite inside corners by two of them; two neighbours are parted by a straight line.
    """
    if len(spacing) == 3:
        return areas(spacing)
    tall, wide = spacing
    half = 0.5 * float(np.hypot(tall, wide))
    table = np.zeros(256)
    for code in range(1, 15):
        inside = [bool(code >> k & 1) for k in range(4)]  # (y, x): 00, 01, 10, 11
        if sum(inside) != 2:
            length = half
        elif inside[0] == inside[3]:
            length = 2 * half
        else:
            length = wide if inside[0] == inside[1] else tall
        table[code | code << 4] = length
    return table


@kernel
def _mark_cells(bits, flat, marks):  # type: ignore[no-untyped-def]
    """Cells with some but not all corners inside; cell (z, y, x) has the voxels z-1 and z, y-1 and y, x-1 and x."""
    for z in range(marks.shape[0]):
        below, above = (bits[1], bits[1]) if flat else (bits[z], bits[z + 1])
        for y in range(marks.shape[1]):
            some_before, all_before = np.uint64(0), np.uint64(0)
            for w in range(marks.shape[2]):
                a, b, c, d = below[y, w], below[y + 1, w], above[y, w], above[y + 1, w]
                some, every = a | b | c | d, a & b & c & d
                touched = some | some << _ONE | some_before >> _SIXTY_THREE
                full = every & (every << _ONE | all_before >> _SIXTY_THREE)
                marks[z, y, w] = touched & ~full
                some_before, all_before = some, every


@kernel
def _mark_voxels(bits, flat, marks):  # type: ignore[no-untyped-def]
    words = marks.shape[2]
    for z in range(marks.shape[0]):
        for y in range(marks.shape[1]):
            row = bits[z + 1, y + 1]
            for w in range(words):
                here = row[w]
                if here == 0:
                    continue
                left = here << _ONE | (row[w - 1] >> _SIXTY_THREE if w else np.uint64(0))
                right = here >> _ONE | (row[w + 1] << _SIXTY_THREE if w + 1 < words else np.uint64(0))
                inner = left & right & bits[z + 1, y, w] & bits[z + 1, y + 2, w]
                if not flat:
                    inner &= bits[z, y + 1, w] & bits[z + 2, y + 1, w]
                marks[z, y, w] = here & ~inner


@kernel
def _codes(bits, flat, height, start, columns, codes):  # type: ignore[no-untyped-def]
    """Bit ``4 z + 2 y + x`` of a code is the corner (z, y, x) of the cell."""
    for row in range(start.shape[0] - 1):
        z, y = row // height, row % height
        below, above = (bits[1], bits[1]) if flat else (bits[z], bits[z + 1])
        for n in range(start[row], start[row + 1]):
            x = columns[n]
            code = np.int64(0)
            for k in range(8):
                voxel = x - 1 + (k & 1)
                if voxel >= 0:
                    plane = above if k & 4 else below
                    word = plane[y + (k >> 1 & 1), voxel >> 6]
                    code |= np.int64(word >> np.uint64(voxel & 63) & _ONE) << k
            codes[n] = code
