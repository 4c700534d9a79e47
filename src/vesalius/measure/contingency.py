"""How many voxels carry each pair of labels of two maps: one pass, whatever the labels are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.measure.compiled import in_threads, kernel, slabs
from vesalius.measure.weights import IntArray


@dataclass(frozen=True, eq=False)
class Contingency:
    """How many voxels carry each pair of labels of two maps.

    Row 0 and column 0 stand for the background (label 0), whether or not a voxel has it.

    Parameters
    ----------
    first, second
        ``(A,)`` and ``(B,)`` int64: the label values of each map in rising order, the first of them 0.
    row, column
        ``(P,)``: pairs that occur, as positions in `first` and `second`, sorted by row, then by column.
    count
        ``(P,)`` int64: voxels of each pair, at least 1.
    """

    first: IntArray
    second: IntArray
    row: IntArray
    column: IntArray
    count: IntArray

    @property
    def total(self) -> int:
        """Number of voxels counted."""
        return int(self.count.sum())

    @property
    def first_voxels(self) -> IntArray:
        """``(A,)`` voxels of each label of the first map."""
        return _sums(self.row, self.count, len(self.first))

    @property
    def second_voxels(self) -> IntArray:
        """``(B,)`` voxels of each label of the second map."""
        return _sums(self.column, self.count, len(self.second))

    def dense(self) -> IntArray:
        """The whole table, ``(A, B)``."""
        table = np.zeros((len(self.first), len(self.second)), dtype=np.int64)
        table[self.row, self.column] = self.count
        return table

    def foreground(self) -> tuple[IntArray, IntArray, IntArray]:
        """Row, column and count of the pairs in which neither label is the background."""
        both = (self.row > 0) & (self.column > 0)
        return self.row[both], self.column[both], self.count[both]

    def without(self, label: int) -> Contingency:
        """The counts without the voxels where the second map holds `label`; the lists of labels stay as they are."""
        keep = self.second[self.column] != label
        return Contingency(self.first, self.second, self.row[keep], self.column[keep], self.count[keep])


def contingency(first: NDArray[Any], second: NDArray[Any], *, workers: int | None = None) -> Contingency:
    """Count the pairs of labels of two maps in one pass over both.

    Runs of equal pairs are stepped over together and counted in a hash table per thread, so the cost does not depend
    on how many labels there are or how large their values are, and memory only on the number of pairs.

    Parameters
    ----------
    first, second
        Label maps of one shape with any axes: whole numbers of any type (or booleans), 0 for the background. Maps of
        one memory order (C or Fortran) are not copied.
    workers
        Number of threads; all cores if None.

    Raises
    ------
    ValueError
        For shapes that differ, values that are negative, not whole or above 2**63 - 1.
    """
    one, two = np.asarray(first), np.asarray(second)
    if one.shape != two.shape:
        raise ValueError(f"the two label maps must have one shape, got {one.shape} and {two.shape}")
    if one.flags.f_contiguous and two.flags.f_contiguous:
        one, two = one.T, two.T
    (bits_one, signed_one), (bits_two, signed_two) = _as_unsigned(one, "first"), _as_unsigned(two, "second")

    def scan(part: tuple[int, int]) -> tuple[NDArray[np.uint64], IntArray]:
        keys, counts = np.zeros((64, 2), dtype=np.uint64), np.zeros(64, dtype=np.int64)
        at, used = part[0], 0
        while True:
            at, used = _count_runs(bits_one, bits_two, at, part[1], keys, counts, used)
            if at >= part[1]:
                break
            larger, sums = np.zeros((len(keys) * 4, 2), dtype=np.uint64), np.zeros(len(keys) * 4, dtype=np.int64)
            _rehash(keys, counts, larger, sums)
            keys, counts = larger, sums
        held = counts > 0
        return keys[held], counts[held]

    parts = slabs(bits_one.size, workers or available_cores()) if bits_one.size else []
    found = in_threads(scan, parts, workers=workers)
    keys = np.concatenate([np.zeros((0, 2), np.uint64), *(key for key, _ in found)])
    counts = np.concatenate([np.zeros(0, np.int64), *(count for _, count in found)])
    first_names, row = _names(keys[:, 0], bits_one.dtype, signed_one, "first")
    second_names, column = _names(keys[:, 1], bits_two.dtype, signed_two, "second")
    pairs, place = np.unique(row * len(second_names) + column, return_inverse=True)
    summed = np.zeros(len(pairs), dtype=np.int64)
    np.add.at(summed, place, counts)
    return Contingency(first_names, second_names, pairs // len(second_names), pairs % len(second_names), summed)


def _sums(group: IntArray, values: IntArray, groups: int) -> IntArray:
    """Sums of `values` per group, exact where ``np.bincount`` with weights would round."""
    out = np.zeros(groups, dtype=np.int64)
    np.add.at(out, group, values)
    return out


def _as_unsigned(array: NDArray[Any], name: str) -> tuple[NDArray[Any], bool]:
    """The map as one flat row of unsigned numbers with the same bits, without a pass over it; were they signed?"""
    if array.dtype != np.bool_ and not np.issubdtype(array.dtype, np.integer):
        with np.errstate(invalid="ignore"):
            whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            raise ValueError(f"the {name} label map must hold whole numbers, got fractions or values not finite")
        array = whole
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    signed = np.issubdtype(array.dtype, np.signedinteger)
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}"), signed


def _names(keys: NDArray[np.uint64], bits: np.dtype[Any], signed: bool, name: str) -> tuple[IntArray, IntArray]:
    """Label values in rising order, 0 first, and the position of each key among them.

    A negative number has become a large one: it is found here, among the few labels, not among the voxels.
    """
    top = np.uint64((1 << (8 * bits.itemsize - 1)) - 1) if signed else np.uint64((1 << 63) - 1)
    values, place = np.unique(keys, return_inverse=True)
    if len(values) and values[-1] > top:
        what = "not be negative" if signed else "be below 2**63"
        raise ValueError(f"labels of the {name} map must {what}")
    if not len(values) or values[0] != 0:
        values, place = np.concatenate([np.zeros(1, np.uint64), values]), place + 1
    return values.astype(np.int64), place.astype(np.int64)


@kernel
def _slot(keys, counts, a, b):  # type: ignore[no-untyped-def]
    """Place of the pair in the table, or the free place where it belongs (linear probing)."""
    mask = np.uint64(len(counts) - 1)
    mixed = a * np.uint64(0x9E3779B97F4A7C15) ^ (b + np.uint64(0x7F4A7C15)) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    at = (mixed * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)) & mask
    while counts[at] and (keys[at, 0] != a or keys[at, 1] != b):
        at = (at + np.uint64(1)) & mask
    return at


@kernel
def _uniform(first, second, a, b, x, many):  # type: ignore[no-untyped-def]
    """Whether the next `many` voxels all hold the pair."""
    # Unsigned places: a negative one would count from the end, and the test for it keeps the loop from vector code.
    begin = np.uint64(x)
    other = 0
    for k in range(np.uint64(many)):
        other |= (first[begin + k] != a) | (second[begin + k] != b)
    return other == 0


@kernel
def _count_runs(first, second, start, stop, keys, counts, used):  # type: ignore[no-untyped-def]
    """Count runs of equal pairs from `start` until `stop` or until the table is half full; says where it ended."""
    x = start
    while x < stop and 2 * used < len(counts):
        a = first[x]
        b = second[x]
        begin = x
        x += 1
        near = min(begin + 8, stop)
        while x < near and first[x] == a and second[x] == b:
            x += 1
        if x == near:
            # A long run: 64, then 8 voxels at a time without a way out in between, so that it becomes vector code.
            while x + 64 <= stop and _uniform(first, second, a, b, x, 64):
                x += 64
            while x + 8 <= stop and _uniform(first, second, a, b, x, 8):
                x += 8
            while x < stop and first[x] == a and second[x] == b:
                x += 1
        at = _slot(keys, counts, np.uint64(a), np.uint64(b))
        if counts[at] == 0:
            keys[at, 0] = a
            keys[at, 1] = b
            used += 1
        counts[at] += x - begin
    return x, used


@kernel
def _rehash(keys, counts, larger, sums):  # type: ignore[no-untyped-def]
    """Move the pairs of a table into a larger one."""
    for old in range(len(counts)):
        if counts[old]:
            at = _slot(larger, sums, keys[old, 0], keys[old, 1])
            larger[at, 0] = keys[old, 0]
            larger[at, 1] = keys[old, 1]
            sums[at] = counts[old]
