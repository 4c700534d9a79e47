"""Which labels a map holds, how many voxels each has and the box around it, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.measure.compiled import in_threads, kernel, slabs

# Label values up to here index a table; larger ones are renumbered first.
_LARGEST_DIRECT = 1 << 22


@dataclass(frozen=True, eq=False)
class LabelBoxes:
    """Labels of a map in rising order, without 0.

    Parameters
    ----------
    values
        ``(L,)`` label values.
    voxels
        ``(L,)`` number of voxels of each.
    start, stop
        ``(L, ndim)``: the half-open box around each, in index units.
    """

    values: NDArray[np.int64]
    voxels: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)

    def slices(self, row: int, *, margin: int = 0, shape: tuple[int, ...] | None = None) -> tuple[slice, ...]:
        """The box of the label in `row`, widened by `margin` and, if `shape` is given, kept inside it."""
        low, high = self.start[row] - margin, self.stop[row] + margin
        if shape is not None:
            low, high = np.maximum(low, 0), np.minimum(high, shape)
        return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def checked_labels(labels: NDArray[Any], *, name: str = "labels") -> NDArray[Any]:
    """`labels` as a C-contiguous array of integers (booleans become uint8).

    Raises
    ------
    ValueError
        For other axes than (Y, X) or (Z, Y, X), negative values, or numbers that are not whole.
    """
    array = np.asarray(labels)
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must have axes (Y, X) or (Z, Y, X), got shape {array.shape}")
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array).view(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            raise ValueError(f"{name} must be whole numbers, got fractions or values that are not finite")
        array = whole
    if np.issubdtype(array.dtype, np.signedinteger) and array.size and int(array.min()) < 0:
        raise ValueError(f"{name} must not be negative, got {int(array.min())}")
    return np.ascontiguousarray(array)


def label_boxes(labels: NDArray[Any], *, workers: int | None = None) -> LabelBoxes:
    """Boxes of every label of a map ``(Y, X)`` or ``(Z, Y, X)`` of whole numbers, 0 for the background."""
    array = checked_labels(labels)
    ndim = array.ndim
    if not array.size:
        empty = np.zeros(0, dtype=np.int64)
        return LabelBoxes(empty, empty, np.zeros((0, ndim), np.int64), np.zeros((0, ndim), np.int64))
    largest = int(array.max())
    names: NDArray[np.int64] | None = None
    if largest > _LARGEST_DIRECT:
        found, flat = np.unique(array, return_inverse=True)
        if found[0] != 0:  # keep number 0 for the background
            found, flat = np.concatenate([[0], found]), flat + 1
        names, array, largest = found.astype(np.int64), flat.reshape(array.shape).astype(np.int32), len(found) - 1
    volume = array.reshape((1,) * (3 - ndim) + array.shape)
    cut = 0 if ndim == 3 else 1
    parts = slabs(volume.shape[cut], workers or available_cores())

    def scan(part: tuple[int, int]) -> NDArray[np.int64]:
        table = np.zeros((largest + 1, 7), dtype=np.int64)
        table[:, 1:4] = np.iinfo(np.int64).max
        piece = volume[part[0] : part[1]] if cut == 0 else volume[:, part[0] : part[1]]
        _scan(piece, part[0] if cut == 0 else 0, part[0] if cut == 1 else 0, table)
        return table

    tables = in_threads(scan, parts, workers=workers)
    whole = tables[0]
    for table in tables[1:]:
        whole[:, 0] += table[:, 0]
        whole[:, 1:4] = np.minimum(whole[:, 1:4], table[:, 1:4])
        whole[:, 4:7] = np.maximum(whole[:, 4:7], table[:, 4:7])
    rows = np.flatnonzero(whole[:, 0] > 0)
    rows = rows[rows != 0]
    values = rows.astype(np.int64) if names is None else names[rows]
    return LabelBoxes(values, whole[rows, 0], whole[rows, 4 - ndim : 4], whole[rows, 7 - ndim : 7])


@kernel
def _scan(volume, z0, y0, table):  # type: ignore[no-untyped-def]
    """Runs of equal labels along x; `table` rows are count, three lower and three upper bounds."""
    for z in range(volume.shape[0]):
        for y in range(volume.shape[1]):
            row = volume[z, y]
            x = 0
            end = row.shape[0]
            while x < end:
                label = row[x]
                begin = x
                x += 1
                while x < end and row[x] == label:
                    x += 1
                if label == 0:
                    continue
                one = table[label]
                one[0] += x - begin
                one[1] = min(one[1], z + z0)
                one[2] = min(one[2], y + y0)
                one[3] = min(one[3], begin)
                one[4] = max(one[4], z + z0 + 1)
                one[5] = max(one[5], y + y0 + 1)
                one[6] = max(one[6], x)
