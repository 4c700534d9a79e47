"""The voxels of a sparse mask: one bit each in a map of the whole volume, and tables with one row per voxel.

Vessels fill a few percent of a scan. Everything that is computed per voxel (distance, owner) is kept in tables of N
rows; the bit map says where a voxel is, and how many set bits lie before it is its row. A plane is a volume with one
slice. One empty voxel of margin all around makes every neighbour addressable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_mask
from vesalius.measure.compiled import in_threads, kernel, slabs

Words = NDArray[np.uint64]

# Starting threads costs about as much as reading this many bytes.
_WORTH_THREADS = 1 << 20


@dataclass(frozen=True, eq=False)
class Voxels:
    """Set voxels of a volume ``shape`` (Z, Y, X).

    Parameters
    ----------
    words
        Bit map; a row along x takes `width` words, rows run over the padded y, then z.
    before
        Set bits in earlier words.
    address
        ``(N,)`` bit addresses of the set voxels, rising (the order of the array).
    """

    words: Words
    shape: tuple[int, int, int]
    before: NDArray[np.int64] = field(init=False)
    address: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        before = np.empty(len(self.words), dtype=np.int64)
        count = _count(self.words, before)
        address = np.empty(count, dtype=np.int64)
        _list(self.words, address)
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "address", address)

    def __len__(self) -> int:
        return len(self.address)

    @property
    def steps(self) -> tuple[int, int, int]:
        """Difference of address to the next voxel along z, y and x."""
        return steps_of(self.shape)

    def places(self, address: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices ``(n, 3)`` in (z, y, x) of addresses."""
        slab, row, _ = self.steps
        z, rest = np.divmod(address, slab)
        y, x = np.divmod(rest, row)
        return np.stack([z - 1, y - 1, x - 1], axis=-1)

    def addresses(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Inverse of `places`."""
        slab, row, _ = self.steps
        return (places[..., 0] + 1) * slab + (places[..., 1] + 1) * row + places[..., 2] + 1

    def dense(self) -> NDArray[np.bool_]:
        """The volume ``(Z, Y, X)``."""
        out = np.zeros(self.shape, dtype=np.bool_)
        out[tuple(self.places(self.address).T)] = True
        return out


def steps_of(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Difference of address to the next voxel along z, y and x in a bit map of a volume `shape`."""
    row = (shape[2] + 2 + 63) // 64 * 64
    return (shape[1] + 2) * row, row, 1


def checked_volume(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """`checked_mask` as ``(Z, Y, X)``, a plane as one slice."""
    array = checked_mask(mask)
    return array.reshape((1,) * (3 - array.ndim) + array.shape)


def pieces(rows: int, work: int) -> list[tuple[int, int]]:
    """``range(rows)`` cut for the threads; in one piece if the `work` in bytes is not worth starting any."""
    return slabs(rows, available_cores() if work > _WORTH_THREADS else 1) if rows else []


def packed(mask: NDArray[np.uint8], *, fill_cavities: bool = True) -> Voxels:
    """Voxels of a volume ``(Z, Y, X)``; cavities (background that no path along faces joins to the rest) are filled.

    In a volume of one slice there are no cavities: holes of a plane are loops.
    """
    shape = (int(mask.shape[0]), int(mask.shape[1]), int(mask.shape[2]))
    words = np.zeros((shape[0] + 2) * steps_of(shape)[0] // 64, dtype=np.uint64)
    flat = mask.reshape(-1, shape[2])
    rows = np.arange(len(flat), dtype=np.int64)
    width = steps_of(shape)[1] // 64
    firsts = ((rows // max(shape[1], 1) + 1) * (shape[1] + 2) + rows % max(shape[1], 1) + 1) * width
    in_threads(
        lambda part: _pack(flat[part[0] : part[1]], firsts[part[0] : part[1]], words),
        pieces(len(flat), flat.size),
    )
    if fill_cavities and shape[0] > 1:
        _fill_cavities(words, shape, width)
    return Voxels(words, shape)


def squared_depths(voxels: Voxels, spacing: Sequence[float]) -> FloatArray:
    """``(N,)``: square of the distance in mm from each voxel centre to the nearest centre outside the mask.

    Exact. Outside the array is background, as far as the volume has more than one slice or, in a plane, along y and x.
    """
    depth = np.empty(len(voxels))
    _along_rows(voxels.words, voxels.address, float(spacing[2]), depth)
    slab, row, _ = voxels.steps
    for step, size in ((row, float(spacing[1])), (slab, float(spacing[0])))[: 2 if voxels.shape[0] > 1 else 1]:
        out = np.empty_like(depth)
        parts = pieces(len(voxels), 8 * len(voxels))

        def sweep(
            part: tuple[int, int], step: int = step, size: float = size, old: Any = depth, out: Any = out
        ) -> None:
            _across_rows(voxels.words, voxels.before, voxels.address, part[0], part[1], step, size, old, out)

        in_threads(sweep, parts)
        depth = out
    return depth


@kernel
def popcount(word):  # type: ignore[no-untyped-def]
    """Set bits of a uint64."""
    one = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    two = (one & np.uint64(0x3333333333333333)) + ((one >> np.uint64(2)) & np.uint64(0x3333333333333333))
    four = (two + (two >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((four * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def is_set(words, address):  # type: ignore[no-untyped-def]
    """Whether the bit at `address` is set."""
    return (words[address >> 6] >> np.uint64(address & 63)) & np.uint64(1) != np.uint64(0)


@kernel
def row_of(words, before, address):  # type: ignore[no-untyped-def]
    """Row in the tables of the set voxel at `address`."""
    word = address >> 6
    lower = (np.uint64(1) << np.uint64(address & 63)) - np.uint64(1)
    return before[word] + popcount(words[word] & lower)


@kernel
def around(words, address, slab, row):  # type: ignore[no-untyped-def]
    """The 27 voxels around `address` as bits ``9 * dz + 3 * dy + dx`` with offsets 0, 1, 2; bit 13 is the centre."""
    code = np.int64(0)
    for dz in range(3):
        for dy in range(3):
            first = address + (dz - 1) * slab + (dy - 1) * row - 1
            word = first >> 6
            shift = first & 63
            bits = words[word] >> np.uint64(shift)
            if shift > 61:
                bits |= words[word + 1] << np.uint64(64 - shift)
            code |= np.int64(bits & np.uint64(7)) << (9 * dz + 3 * dy)
    return code


@kernel
def _pack(rows, firsts, words):  # type: ignore[no-untyped-def]
    """Write the bits of `rows`, each from its first word on; column 0 goes to bit 1."""
    for number in range(rows.shape[0]):
        row = rows[number]
        any_set = np.uint8(0)
        for x in range(row.shape[0]):
            any_set |= row[x]
        if any_set == 0:
            continue
        first = firsts[number]
        for x in range(row.shape[0]):
            if row[x] != 0:
                words[first + ((x + 1) >> 6)] |= np.uint64(1) << np.uint64((x + 1) & 63)


@kernel
def _count(words, before):  # type: ignore[no-untyped-def]
    """Running count of set bits."""
    total = 0
    for number in range(words.shape[0]):
        before[number] = total
        if words[number] != np.uint64(0):
            total += popcount(words[number])
    return total


@kernel
def _list(words, address):  # type: ignore[no-untyped-def]
    """Addresses of the set bits."""
    count = 0
    for number in range(words.shape[0]):
        rest = words[number]
        while rest != np.uint64(0):
            lowest = rest & (~rest + np.uint64(1))
            address[count] = (number << 6) + popcount(lowest - np.uint64(1))
            count += 1
            rest ^= lowest


@kernel
def _along_rows(words, address, size, depth):  # type: ignore[no-untyped-def]
    """Squared distance to the nearer end of the run along x that holds each voxel."""
    count = address.shape[0]
    begin = 0
    while begin < count:
        end = begin + 1
        while end < count and address[end] == address[end - 1] + 1:
            end += 1
        for k in range(begin, end):
            near = min(k - begin, end - 1 - k) + 1
            depth[k] = (near * size) * (near * size)
        begin = end


@kernel
def _across_rows(words, before, address, start, stop, step, size, depth, out):  # type: ignore[no-untyped-def]
    """One pass of the separable distance transform: the best of the column through each voxel, outwards."""
    for k in range(start, stop):
        best = depth[k]
        here = address[k]
        for side in (-step, step):
            far = 1
            while True:
                gap = (far * size) * (far * size)
                if gap >= best:
                    break
                other = here + side * far
                if not is_set(words, other):
                    best = gap  # behind a voxel outside there is nothing nearer
                    break
                best = min(best, depth[row_of(words, before, other)] + gap)
                far += 1
        out[k] = best


@kernel
def _root(parent, node):  # type: ignore[no-untyped-def]
    """Root of a node, halving the path to it."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@kernel
def _gaps(words, rows, width, starts, begin, stop, count_only):  # type: ignore[no-untyped-def]
    """Runs of unset bits, row by row; returns how many."""
    count = 0
    length = width * 64
    for row in range(rows):
        starts[row] = count
        first = row * width
        x = 0
        while x < length:
            word = words[first + (x >> 6)]
            if word == ~np.uint64(0) and x & 63 == 0:
                x += 64
                continue
            if (word >> np.uint64(x & 63)) & np.uint64(1) != np.uint64(0):
                x += 1
                continue
            low = x
            while x < length:
                word = words[first + (x >> 6)]
                if word == np.uint64(0) and x & 63 == 0:
                    x += 64
                elif (word >> np.uint64(x & 63)) & np.uint64(1) == np.uint64(0):
                    x += 1
                else:
                    break
            if not count_only:
                begin[count] = low
                stop[count] = x
            count += 1
    starts[rows] = count
    return count


@kernel
def _join_gaps(starts, begin, stop, rows, high, parent):  # type: ignore[no-untyped-def]
    """Union of the runs that overlap those of the row before and of the slice before."""
    for row in range(rows):
        for back in (1, high):
            if row < back:
                continue
            i = starts[row - back]
            for k in range(starts[row], starts[row + 1]):
                while i < starts[row - back + 1] and stop[i] <= begin[k]:
                    i += 1
                j = i
                while j < starts[row - back + 1] and begin[j] < stop[k]:
                    one, two = _root(parent, k), _root(parent, j)
                    if one != two:
                        parent[max(one, two)] = min(one, two)
                    j += 1


@kernel
def _fill_gaps(words, starts, begin, stop, rows, width, parent):  # type: ignore[no-untyped-def]
    """Set the bits of every run that does not hang together with the first; returns how many bits."""
    filled = 0
    for row in range(rows):
        for k in range(starts[row], starts[row + 1]):
            if _root(parent, k) != 0:
                for x in range(begin[k], stop[k]):
                    words[row * width + (x >> 6)] |= np.uint64(1) << np.uint64(x & 63)
                filled += stop[k] - begin[k]
    return filled


def _fill_cavities(words: Words, shape: tuple[int, int, int], width: int) -> int:
    rows = (shape[0] + 2) * (shape[1] + 2)
    starts = np.zeros(rows + 1, dtype=np.int64)
    none = np.zeros(0, dtype=np.int32)
    count = int(_gaps(words, rows, width, starts, none, none, True))
    begin, stop = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.int32)
    _gaps(words, rows, width, starts, begin, stop, False)
    parent = np.arange(count, dtype=np.int64)
    _join_gaps(starts, begin, stop, rows, shape[1] + 2, parent)
    return int(_fill_gaps(words, starts, begin, stop, rows, width, parent))
