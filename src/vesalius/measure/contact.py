"""Which labels touch, over what area, in one pass over a label map for all pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray
from vesalius.measure import cube
from vesalius.measure.boxes import LabelBoxes, label_boxes
from vesalius.measure.compiled import in_threads, kernel, slabs
from vesalius.measure.corners import row_numbers


class Touching(NamedTuple):
    """Contact of two labels: area of the smooth surface, of the shared voxel faces, and cells where both are."""

    area: float
    faces: float
    cells: int


@dataclass(frozen=True, eq=False)
class Contacts:
    """What one pass finds.

    Parameters
    ----------
    pairs
        By rows ``(a, b)``, a < b: every pair with voxels that share a face, an edge or a corner.
    surface
        ``(L,)`` area of the voxel faces between a label and anything else, without the edge of the array.
    sums
        ``(L, 3)`` sums of the voxel indices of each label: centroids times voxel counts.
    """

    pairs: dict[tuple[int, int], Touching]
    surface: FloatArray
    sums: FloatArray


def contact_pass(
    labels: NDArray[Any],
    values: NDArray[Any],
    spacing: FloatArray,
    *,
    boxes: LabelBoxes | None = None,
    workers: int | None = None,
) -> Contacts:
    """All contacts between the labels `values` (rising) of ``(Z, Y, X)``; others count as background.

    The time is that of one look at each voxel, whatever the number of labels.
    """
    count = len(values)
    if count == 0:
        return Contacts({}, np.zeros(0), np.zeros((0, 3)))
    known = boxes if boxes is not None else label_boxes(labels, workers=workers)
    held = np.isin(known.values, values)
    # One voxel around the labels: faces there are surface. The edge of the array stays the edge.
    low = np.maximum(known.start[held].min(0) - 1, 0)
    high = np.minimum(known.stop[held].max(0) + 1, labels.shape)
    part = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    part, names = row_numbers(part, np.asarray(values))
    face = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]])
    areas = cube.areas(tuple(spacing))

    def scan(piece: tuple[int, int]) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
        capacity = 1 << 10
        while True:
            keys, found = np.full(capacity, -1, dtype=np.int64), np.zeros((capacity, 5))
            each = np.zeros((count + 1, 6))
            if _scan(part, piece[0], piece[1], names, count + 1, areas, keys, found, each):
                used = keys >= 0
                return keys[used], found[used], each
            capacity *= 4

    results = in_threads(scan, slabs(part.shape[0] + 1, workers or available_cores()), workers=workers)
    keys, inverse = np.unique(np.concatenate([keys for keys, _, _ in results]), return_inverse=True)
    table = np.zeros((len(keys), 5))
    np.add.at(table, inverse, np.concatenate([found for _, found, _ in results]))
    each = sum((each for _, _, each in results), np.zeros((count + 1, 6)))[1:]
    pairs = {
        (int(key) // (count + 1) - 1, int(key) % (count + 1) - 1): Touching(
            max(float(row[3]), 0.0), float(row[:3] @ face), int(row[4])
        )
        for key, row in zip(keys, table, strict=True)
    }
    return Contacts(pairs, each[:, :3] @ face, each[:, 3:] + low * known.voxels[held][:, None])


@kernel
def _slot(keys, key):  # type: ignore[no-untyped-def]
    """Place of `key` in an open-addressed table, or of the gap where it belongs; -1 if the table is full."""
    mask = len(keys) - 1
    place = ((key * 0x9E3779B1) >> 12) & mask
    for _ in range(64):
        if keys[place] == key or keys[place] < 0:
            return place
        place = (place + 1) & mask
    return -1


@kernel
def _scan(labels, begin, end, names, base, areas, keys, found, each):  # type: ignore[no-untyped-def]
    """Cells of eight voxels with the lower corner at planes ``begin-1 .. end-2``; False when the table is too small.

    Planes are repeated beyond the edge and such cells weigh half, so the cells fill the picture to its outer faces.
    `found` rows are faces across z, y, x, area of the smooth surface, cells; `each` rows faces, index sums.
    """
    depth, height, width = labels.shape
    eight = np.zeros(8, dtype=np.int64)
    for z in range(begin - 1, end - 1):
        z0, z1 = max(z, 0), min(z + 1, depth - 1)
        for y in range(-1, height):
            y0, y1 = max(y, 0), min(y + 1, height - 1)
            a, b, c, d = labels[z0, y0], labels[z0, y1], labels[z1, y0], labels[z1, y1]
            if z >= 0 and y >= 0:
                _index_sums(a, z, y, names, each)
            side = 0.5 if z0 == z1 else 1.0
            side *= 0.5 if y0 == y1 else 1.0
            even = a[0] == b[0] and a[0] == c[0] and a[0] == d[0]
            for x in range(-1, width):
                x0, x1 = max(x, 0), min(x + 1, width - 1)
                was = even
                even = a[x1] == b[x1] and a[x1] == c[x1] and a[x1] == d[x1]
                if was and even and a[x0] == a[x1]:
                    continue
                eight[0], eight[1], eight[2], eight[3] = names[a[x0]], names[a[x1]], names[b[x0]], names[b[x1]]
                eight[4], eight[5], eight[6], eight[7] = names[c[x0]], names[c[x1]], names[d[x0]], names[d[x1]]
                if not _cell(eight, side * (0.5 if x0 == x1 else 1.0), base, areas, keys, found):
                    return False
                if z < 0 or y < 0 or x < 0:
                    continue
                for axis in range(3):
                    # Beyond the edge planes are repeated: no face there.
                    one, two = eight[0], eight[4 >> axis]
                    if one == two:
                        continue
                    each[one, axis] += 1
                    each[two, axis] += 1
                    if one > 0 and two > 0:
                        found[_slot(keys, min(one, two) * base + max(one, two)), axis] += 1
    return True


@kernel
def _cell(eight, weight, base, areas, keys, found):  # type: ignore[no-untyped-def]
    """Smooth contact of each pair of labels in one cell: (S(a) + S(b) - S(a or b)) / 2."""
    for i in range(8):
        one = eight[i]
        if one == 0:
            continue
        code_one = 0
        for k in range(8):
            code_one |= (eight[k] == one) << k
        if code_one & ((1 << i) - 1):
            continue  # seen before
        for j in range(8):
            two = eight[j]
            if two <= one:
                continue
            code_two = 0
            for k in range(8):
                code_two |= (eight[k] == two) << k
            if code_two & ((1 << j) - 1):
                continue
            place = _slot(keys, one * base + two)
            if place < 0:
                return False
            keys[place] = one * base + two
            found[place, 3] += weight * (areas[code_one] + areas[code_two] - areas[code_one | code_two]) / 2
            found[place, 4] += 1
    return True


@kernel
def _index_sums(row, z, y, names, each):  # type: ignore[no-untyped-def]
    """Add the indices of a row of voxels to its labels, run by run."""
    x, end = 0, row.shape[0]
    while x < end:
        label = row[x]
        begin = x
        while x < end and row[x] == label:
            x += 1
        name = names[label]
        if name > 0:
            length = x - begin
            each[name, 3] += z * length
            each[name, 4] += y * length
            each[name, 5] += (begin + x - 1) * length / 2.0
