"""A set of voxels as rows of bits and as a list: the form in which surfaces are found and searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.compiled import kernel

_ONE = np.uint64(1)


@dataclass(frozen=True, eq=False)
class PointSet:
    """Voxels of a grid as bits and as a list.

    Parameters
    ----------
    bits
        ``(Z, Y, W)`` uint64: bit ``x & 63`` of word ``x >> 6`` says that the voxel x of the row is in the set.
    width
        Number of voxels in a row.
    start
        ``(Z * Y + 1,)``: where each row begins in `columns`.
    columns
        ``(N,)``: x of each voxel, rising within a row.
    """

    bits: NDArray[np.uint64]
    width: int
    start: NDArray[np.int64]
    columns: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.columns)

    @classmethod
    def of(cls, bits: NDArray[np.uint64], width: int) -> PointSet:
        """The set with these bits; those from `width` on must be 0."""
        counts = np.bitwise_count(bits).sum(-1, dtype=np.int64).ravel()
        start = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
        columns = np.empty(start[-1], dtype=np.int32)
        _list_bits(bits, start, columns)
        return cls(bits, width, start, columns)


def packed(
    volume: NDArray[Any], value: int, border: int, box: tuple[slice, slice, slice] | None = None
) -> NDArray[np.uint64]:
    """Voxels of ``(Z, Y, X)`` in `box` that equal `value`, as bits ``(Z + 2 b, Y + 2 b, X // 64 + 1)``.

    There are `border` empty rows at every side, and at least one empty bit after the last voxel of each row.
    """
    cut = box or (slice(0, volume.shape[0]), slice(0, volume.shape[1]), slice(0, volume.shape[2]))
    depth, height, width = (one.stop - one.start for one in cut)
    bits = np.zeros((depth + 2 * border, height + 2 * border, width // 64 + 1), dtype=np.uint64)
    low = np.array([one.start for one in cut])
    _pack(volume, volume.dtype.type(value), low, width, bits[border : border + depth, border : border + height])
    return bits


@kernel
def _pack(volume, value, low, width, bits):  # type: ignore[no-untyped-def]
    for z in range(bits.shape[0]):
        for y in range(bits.shape[1]):
            row = volume[low[0] + z, low[1] + y]
            words = bits[z, y]
            for w in range((width + 63) // 64):
                begin = low[2] + 64 * w
                word = np.uint64(0)
                for k in range(min(64, width - 64 * w)):
                    word |= np.uint64(row[begin + k] == value) << np.uint64(k)
                words[w] = word


@kernel
def _list_bits(bits, start, columns):  # type: ignore[no-untyped-def]
    """x of every set bit, row by row."""
    for z in range(bits.shape[0]):
        for y in range(bits.shape[1]):
            here = start[z * bits.shape[1] + y]
            for w in range(bits.shape[2]):
                word = bits[z, y, w]
                while word:
                    columns[here] = 64 * w + _trailing_zeros(word)
                    here += 1
                    word &= word - _ONE


@kernel
def _trailing_zeros(word):  # type: ignore[no-untyped-def]
    """Number of the lowest set bit of a uint64 that is not 0: the count of ones below it."""
    ones = (word & (~word + _ONE)) - _ONE
    ones = ones - ((ones >> np.uint64(1)) & np.uint64(0x5555555555555555))
    ones = (ones & np.uint64(0x3333333333333333)) + ((ones >> np.uint64(2)) & np.uint64(0x3333333333333333))
    ones = (ones + (ones >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((ones * np.uint64(0x0101010101010101)) >> np.uint64(56))
