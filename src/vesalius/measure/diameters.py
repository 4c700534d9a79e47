"""Diameters of lesions: in the slice as radiologists take them (RECIST 1.1, WHO), and in space.

All run between points of the outline at level 0.5, which crosses halfway between an inside and an outside voxel
centre. A slice is a plane of constant z. In it every connected part (8 neighbours) of a label is measured on its own,
since no reader draws a line from one island to another.

- longest diameter: the largest distance of two points of the part's outline (its largest Feret diameter). As with
  callipers on a screen, the line may leave a concave lesion.
- short axis: the longest chord perpendicular to the longest diameter that stays within the part; a hole ends it.

Discs, ellipses and rectangles that are sampled at voxel centres come out within one voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_steps
from vesalius.measure.boxes import LabelBoxes, checked_labels, label_boxes
from vesalius.measure.compiled import in_threads, kernel
from vesalius.measure.planar import calipers, outline_hull
from vesalius.measure.quantities import Quantity
from vesalius.measure.shape_kernels import Scan, scan

_RECIST = "RECIST 1.1: Eisenhauer et al., Eur. J. Cancer 2009, 45:228"
_WHO = "WHO Handbook for Reporting Results of Cancer Treatment, 1979"
_ENDS = tuple(f"{line}_{end}_{axis}" for line in ("longest", "short") for end in ("start", "stop") for axis in "zyx")

IN_SLICE: tuple[Quantity, ...] = (
    Quantity("label", "1", "Value of the region in the label map."),
    Quantity("slice", "1", "Index of the slice (z)."),
    Quantity("longest_diameter", "mm", "Largest distance of two points of the outline in the slice.", _RECIST),
    Quantity("short_axis", "mm", "Longest chord within the region, perpendicular to the longest diameter.", _RECIST),
    Quantity("who_product", "mm2", "Longest diameter times short axis.", _WHO),
    Quantity("slice_feret_min", "mm", "Smallest distance of two parallel lines in the slice that hold the region."),
    *(Quantity(name, "1", "End point for drawing (index; voxel centres are whole numbers).") for name in _ENDS),
)
_SPACE_ENDS = tuple(f"diameter_{end}_{axis}" for end in ("start", "stop") for axis in "zyx")
MAXIMUM_DIAMETER = Quantity(
    "maximum_diameter",
    "mm",
    "Largest distance of two vertices of the surface at level 0.5, in any direction of space.",
    "IBSI 1 reference manual, arXiv 1612.07003, section 3.1",
    "morph_diam",
)
QUANTITIES: tuple[Quantity, ...] = (
    *IN_SLICE,
    MAXIMUM_DIAMETER,
    *(Quantity(name, "1", "End point of the maximum diameter (index).") for name in _SPACE_ENDS),
)


def slice_diameters(
    labels: NDArray[Any], spacing: Sequence[float] | None = None, *, workers: int | None = None
) -> dict[str, NDArray[Any]]:
    """Diameters of every label in every slice that holds it.

    Parameters
    ----------
    labels
        ``(Z, Y, X)`` or ``(Y, X)`` (one slice) whole numbers, 0 for the background.
    spacing
        Distance of voxel centres per axis in mm; None measures in voxels.
    workers
        Threads; None for all cores.

    Returns
    -------
    table
        A column per entry of `IN_SLICE`, one row per label and slice, rising. Of several parts in a slice the one with
        the longest diameter counts.

    Raises
    ------
    ValueError
        For other axes, negative or fractional labels, or a spacing that does not fit.
    """
    volume, steps = _volume(labels, spacing)
    boxes = label_boxes(volume, workers=workers)
    rows = in_threads(lambda row: _label_slices(volume, boxes, row, steps), range(len(boxes)), workers=workers)
    found = np.concatenate([np.zeros((0, len(IN_SLICE))), *rows])
    return _columns(found)


def lesion_diameters(
    labels: NDArray[Any], spacing: Sequence[float] | None = None, *, workers: int | None = None
) -> dict[str, NDArray[Any]]:
    """One row per label: the slice with the longest diameter, and the largest diameter in space.

    Arguments as for `slice_diameters`; columns are `QUANTITIES`. Of slices with equal diameters the one with the longer
    short axis is taken, then the lowest.
    """
    volume, steps = _volume(labels, spacing)
    table = slice_diameters(volume, tuple(steps), workers=workers)
    order = np.lexsort((table["slice"], -table["short_axis"], -table["longest_diameter"], table["label"]))
    _, first = np.unique(table["label"][order], return_index=True)
    best = {name: column[order[first]] for name, column in table.items()}
    best |= maximum_diameters(scan(volume, workers=workers), steps, workers=workers)
    return {one.name: best[one.name] for one in QUANTITIES}


def maximum_diameters(found: Scan, steps: FloatArray, *, workers: int | None = None) -> dict[str, FloatArray]:
    """Largest distance ``(L,)`` of two points of each label's surface, and its ends (index)."""
    corners = [found.corners[found.first[k] : found.first[k + 1]] for k in range(len(found.boxes))]
    pairs = in_threads(lambda one: _farthest(np.ascontiguousarray(one), steps), corners, workers=workers)
    ends = np.array([end.ravel() for _, end in pairs]).reshape(len(pairs), 6)
    columns = {"maximum_diameter": np.array([length for length, _ in pairs], dtype=np.float64)}
    return columns | {name: ends[:, k] for k, name in enumerate(_SPACE_ENDS)}


def _volume(labels: NDArray[Any], spacing: Sequence[float] | None) -> tuple[NDArray[Any], FloatArray]:
    array = checked_labels(labels)
    steps = checked_steps(spacing, array.ndim)
    return (array, steps) if array.ndim == 3 else (array[None], np.concatenate([[1.0], steps]))


def _columns(found: FloatArray) -> dict[str, NDArray[Any]]:
    table: dict[str, NDArray[Any]] = {one.name: found[:, k] for k, one in enumerate(IN_SLICE)}
    return table | {name: table[name].astype(np.int64) for name in ("label", "slice")}


def _label_slices(volume: NDArray[Any], boxes: LabelBoxes, row: int, steps: FloatArray) -> FloatArray:
    """Rows of `IN_SLICE` for one label."""
    import cc3d

    z0, y0, x0 = (int(side) for side in boxes.start[row])
    value, rows = boxes.values[row], []
    for z, plane in enumerate(volume[boxes.slices(row)]):
        region = plane == value
        if not region.any():
            continue
        parts = np.ascontiguousarray(np.pad(cc3d.connected_components(region.astype(np.uint8), connectivity=8), 1))
        best = np.zeros(0)
        for part in range(1, int(parts.max()) + 1):
            one = _measure_part(parts == part, steps[1:])
            if not len(best) or (one[0], one[1]) > (best[0], best[1]):
                best = one
        ends = np.full((4, 3), float(z + z0))
        ends[:, 1:] = best[3:].reshape(4, 2) + np.array([y0 - 1, x0 - 1])
        head = [float(value), z + z0, best[0], best[1], best[0] * best[1], best[2]]
        rows.append(np.concatenate([head, ends.ravel()]))
    return np.array(rows)


def _measure_part(region: NDArray[np.bool_], steps: FloatArray) -> FloatArray:
    """Longest diameter, short axis, smallest Feret diameter and four end points (y, x) of a part with a margin of 1."""
    edge = np.argwhere(region & ~(np.roll(region, 1, 1) & np.roll(region, -1, 1)))
    half = outline_hull(edge.astype(np.int32))
    _, _, longest, narrow, _, one, two = calipers(half * (steps / 2))
    start, stop = half[one] / 2, half[two] / 2
    along = (stop - start) * steps / longest
    length, ends = _longest_chord(_outline(region), along, steps)
    return np.concatenate([[longest, length, narrow], start, stop, ends[0], ends[1]])


def _outline(region: NDArray[np.bool_]) -> FloatArray:
    """Pieces ``(S, 4)`` of the outline at level 0.5, from (y, x) to (y, x), unordered; region with a margin of 1."""
    return _outline_pieces(np.ascontiguousarray(region))


@kernel
def _outline_pieces(region):  # type: ignore[no-untyped-def]
    """Straight pieces of the outline, cell by cell."""
    height, width = region.shape
    pieces, many = np.empty((2 * height * width, 4)), 0
    middles = np.array([[0.0, 0.5], [0.5, 0.0], [0.5, 1.0], [1.0, 0.5]])
    for y in range(height - 1):
        for x in range(width - 1):
            a, b, c, d = region[y, x], region[y, x + 1], region[y + 1, x], region[y + 1, x + 1]
            if a == b and a == c and a == d:
                continue
            # Edges of the cell (top, left, right, bottom) that the outline crosses, in the order in which they pair.
            crossed = (a != b, a != c, b != d, c != d)
            if crossed[0] and crossed[1] and crossed[2] and crossed[3]:
                # Two diagonal corners are cut off one by one.
                order, count = ((0, 1, 2, 3) if a else (0, 2, 1, 3)), 4
            else:
                first = 0 if crossed[0] else 1 if crossed[1] else 2
                second = 3 if crossed[3] else 2 if crossed[2] else 1
                order, count = (first, second, 0, 0), 2
            for k in range(0, count, 2):
                p, q = middles[order[k]], middles[order[k + 1]]
                pieces[many, 0], pieces[many, 1] = y + p[0], x + p[1]
                pieces[many, 2], pieces[many, 3] = y + q[0], x + q[1]
                many += 1
    return pieces[:many].copy()


@kernel
def _longest_chord(pieces, along, steps):  # type: ignore[no-untyped-def]
    """The longest chord within the outline perpendicular to `along` (unit vector in mm): length and ends (y, x)."""
    many = pieces.shape[0]
    flat = np.empty((many, 4))
    for k in range(many):
        for end in range(2):
            y, x = pieces[k, 2 * end] * steps[0], pieces[k, 2 * end + 1] * steps[1]
            flat[k, 2 * end] = y * along[0] + x * along[1]
            flat[k, 2 * end + 1] = x * along[0] - y * along[1]
    levels = np.sort(np.concatenate((flat[:, 0], flat[:, 2])))
    margin = 1e-7 * min(steps[0], steps[1])
    order = np.argsort(np.minimum(flat[:, 0], flat[:, 2]))
    reach = np.abs(flat[:, 0] - flat[:, 2]).max()
    lowest = np.minimum(flat[:, 0], flat[:, 2])[order]
    hits = np.empty(many)
    best, best_level, best_from = 0.0, levels[0], flat[0, 1]
    last = -np.inf
    for level in levels:
        if level - last <= margin:
            continue
        last = level
        # The length changes in steps at corners: take both sides of each.
        for t in (level - margin, level + margin):
            count = 0
            for k in range(np.searchsorted(lowest, t - reach), np.searchsorted(lowest, t)):
                one = flat[order[k]]
                if (one[0] < t) != (one[2] < t):
                    hits[count] = one[1] + (t - one[0]) / (one[2] - one[0]) * (one[3] - one[1])
                    count += 1
            crossed = np.sort(hits[:count])
            for k in range(0, count - 1, 2):
                if crossed[k + 1] - crossed[k] > best + margin:
                    best, best_level, best_from = crossed[k + 1] - crossed[k], t, crossed[k]
    ends = np.empty((2, 2))
    for end in range(2):
        across = best_from + end * best
        ends[end, 0] = (best_level * along[0] - across * along[1]) / steps[0]
        ends[end, 1] = (best_level * along[1] + across * along[0]) / steps[1]
    return best, ends


@kernel
def _farthest(corners, steps):  # type: ignore[no-untyped-def]
    """Largest distance of two vertices of the surface around voxels ``(P, 3)``, and the two, in voxels ``(2, 3)``.

    The vertices around two voxels that lie farthest apart follow from the voxels in closed form.
    """
    count = corners.shape[0]
    places = corners * steps
    middle = np.array([(places[:, k].min() + places[:, k].max()) / 2 for k in range(3)])
    radii = np.empty(count)
    for k in range(count):
        radii[k] = np.sqrt(((places[k] - middle) ** 2).sum())
    order = np.argsort(-radii)
    places, radii = places[order], radii[order]
    slack, best, one, two = steps.max(), 0.0, 0, 0
    lower = -1.0
    for i in range(count):
        if radii[i] + radii[0] + slack < np.sqrt(best):
            break
        z, y, x = places[i, 0], places[i, 1], places[i, 2]
        for j in range(i + 1):
            square = (z - places[j, 0]) ** 2 + (y - places[j, 1]) ** 2 + (x - places[j, 2]) ** 2
            if square <= lower:
                continue
            for a in range(3):
                for b in range(3):
                    gain = steps[a] * abs(places[i, a] - places[j, a]) + steps[b] * abs(places[i, b] - places[j, b])
                    gain += (steps[a] ** 2 + steps[b] ** 2) / (2 if a == b else 4)
                    if square + gain > best:
                        best, one, two = square + gain, 3 * i + a, 3 * j + b
                        lower = max(np.sqrt(best) - slack, 0.0) ** 2 - 1e-9 * best if best > slack**2 else -1.0
    ends = np.empty((2, 3))
    for k in range(3):
        ends[0, k], ends[1, k] = corners[order[one // 3], k], corners[order[two // 3], k]
    a, b = one % 3, two % 3
    toward_a = 0.5 if ends[0, a] >= ends[1, a] else -0.5
    toward_b = 0.5 if ends[0, b] > ends[1, b] or (a == b and toward_a > 0) else -0.5
    ends[0, a] += toward_a
    ends[1, b] -= toward_b
    return np.sqrt(best), ends
