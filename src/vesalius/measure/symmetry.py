"""Left against right: the plane of best symmetry, how symmetric a structure is about it, and paired structures.

The plane is where the reflected structure overlaps the structure most. Overlap, not distance, decides: a mass on one
side should show as asymmetry and not pull the plane. The search starts at planes across the left-right axis near the
centre of mass and improves direction and place on ever less blurred copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray, Grid
from vesalius.measure.arguments import checked_mask, checked_spacing
from vesalius.measure.boxes import checked_labels, label_boxes
from vesalius.measure.compiled import kernel
from vesalius.measure.distance import distance_field
from vesalius.measure.quantities import Quantity

_HERE = "docs/relations.md"
QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        "symmetry_dice",
        "1",
        "Dice overlap of the structure with its reflection in the plane; 1 is perfect symmetry, undefined if empty.",
        "Dice, Ecology 1945;26:297",
    ),
    Quantity(
        "symmetry_distance",
        "mm",
        "Mean distance between the surfaces of the structure and of its reflection, both ways; undefined if empty.",
        _HERE,
    ),
    Quantity("symmetry_tilt", "deg", "Angle between the normal of the plane and the left-right axis.", _HERE),
    Quantity("symmetry_shift", "mm", "Distance of the plane from the structure's centre of mass.", _HERE),
    Quantity(
        "side_asymmetry",
        "1",
        "(L - R) / ((L + R) / 2) of the parts on the two sides of the plane: positive if the left one is larger.",
        "Galaburda et al., Neuropsychologia 1987;25:853",
    ),
    Quantity(
        "asymmetry_index",
        "1",
        "(L - R) / ((L + R) / 2) of a quantity of two paired structures; undefined if both are 0.",
        "Galaburda et al., Neuropsychologia 1987;25:853",
    ),
    Quantity(
        "pair_dice",
        "1",
        "Dice overlap of the left structure with the reflection of the right one; undefined if both are empty.",
        "Dice, Ecology 1945;26:297",
    ),
)

_POINTS = 20_000  # voxels looked at per step of the search
_BLURS = (4.0, 1.5)  # half-widths of the soft edge, in the largest voxel step
_TURNS = (-12.0, 0.0, 12.0)  # degrees, starts of the search
_SHIFTS = (-0.06, 0.0, 0.06)  # of the structure's extent along the axis


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane in the frame of a grid's axes: all points p, in mm (index times spacing), with ``p @ normal == offset``.

    Parameters
    ----------
    normal
        ``(ndim,)`` unit vector in the order of the array's axes, pointing to the patient's left.
    offset
        In mm.
    """

    normal: FloatArray
    offset: float

    def reflect(self, points: FloatArray) -> FloatArray:
        """Mirror images of points ``(..., ndim)`` in mm."""
        away = points @ self.normal - self.offset
        return points - 2 * away[..., None] * self.normal


def left_axis(grid: Grid) -> FloatArray:
    """``(ndim,)``: the direction of the patient's left along the axes of the array, from the affine.

    Raises
    ------
    ValueError
        If the grid has no affine, or its plane is across the left-right axis (a sagittal slice).
    """
    if grid.affine is None:
        raise ValueError("this grid has no position in the patient; say which axis runs left to right")
    columns = grid.affine[:3, 3 - grid.ndim : 3]
    across = columns[0] / np.linalg.norm(columns, axis=0)
    size = float(np.linalg.norm(across))
    if size < 0.5:
        raise ValueError("the axes of this grid hardly run from right to left: it has no left-right symmetry to find")
    return across / size


def symmetry_plane(
    mask: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    left: int | Sequence[float] = -1,
) -> Plane:
    """The plane (in 2-D: line) about which a structure is most symmetric.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` or ``(Y, X)``, with at least one voxel.
    spacing
        Voxel size per axis in mm; None counts in voxels.
    left
        The axis that runs from the patient's right to left (default the last: arrays stored towards the left, as the
        house's grids of upright patients are), or a direction such as `left_axis` gives. The plane's normal is looked
        for within about 30 degrees of it.

    Raises
    ------
    ValueError
        If the mask is empty.
    """
    inside = checked_mask(mask, "mask")
    steps = np.array(checked_spacing(spacing, inside.ndim))
    axis = _direction(left, inside.ndim)
    boxes = label_boxes(inside)
    if not len(boxes):
        raise ValueError("an empty mask has no plane of symmetry")
    reach = [int(np.ceil(2 * _BLURS[0] * steps.max() / step)) for step in steps]
    low = boxes.start[0] - reach
    part = inside[boxes.slices(0)]
    part = np.pad(part, [(r, r) for r in reach])
    signed = distance_field(part, tuple(steps)) - distance_field(part == 0, tuple(steps))
    points = np.argwhere(part) * steps
    points = points[:: max(1, len(points) // _POINTS)]
    centre = points.mean(0)
    extent = float(np.ptp(points @ axis))
    turns = _across(axis)

    def plane(free: FloatArray) -> Plane:
        normal = axis + np.tan(np.clip(free[:-1], -1.2, 1.2)) @ turns
        normal /= np.linalg.norm(normal)
        return Plane(normal, float(centre @ normal + free[-1]))

    field = np.ascontiguousarray(signed.reshape((1,) * (3 - inside.ndim) + signed.shape), dtype=np.float32)
    best = _search(field, points, steps, plane, extent)
    return Plane(best.normal, best.offset + float((low * steps) @ best.normal))


def symmetry(
    mask: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    left: int | Sequence[float] = -1,
    plane: Plane | None = None,
) -> dict[str, float]:
    """How symmetric a structure is about a plane, by default the best one; arguments as `symmetry_plane`.

    Returns
    -------
    values
        ``symmetry_dice``, ``symmetry_distance``, ``symmetry_tilt``, ``symmetry_shift``, ``side_asymmetry``; NaN for an
        empty mask.
    """
    inside = checked_mask(mask, "mask")
    steps = np.array(checked_spacing(spacing, inside.ndim))
    axis = _direction(left, inside.ndim)
    names = [quantity.name for quantity in QUANTITIES[:5]]
    boxes = label_boxes(inside)
    if not len(boxes):
        return dict.fromkeys(names, np.nan)
    found = symmetry_plane(inside, spacing, left=left) if plane is None else plane
    part, low = inside[boxes.slices(0)], boxes.start[0]
    points = np.argwhere(part) + low
    images = found.reflect(points * steps) / steps
    # Room for the reflection, which may leave the array.
    start = np.minimum(low, np.floor(images.min(0)).astype(int)) - 1
    stop = np.maximum(boxes.stop[0], np.ceil(images.max(0)).astype(int) + 1) + 1
    own = np.zeros(tuple(stop - start), dtype=np.uint8)
    own[tuple((points - start).T)] = 1
    mirrored = reflected(own, Plane(found.normal, found.offset - float((start * steps) @ found.normal)), tuple(steps))
    away = (points * steps) @ found.normal - found.offset
    # A voxel that the plane cuts belongs to both sides in part: exactly so if the plane runs along the axes.
    left_part = float(np.clip(0.5 + away / float(np.abs(found.normal) @ steps), 0, 1).sum())
    values = (
        2.0 * float((own & mirrored).sum()) / float(own.sum() + mirrored.sum()),
        _surface_distance(own, mirrored, steps),
        float(np.degrees(np.arccos(np.clip(abs(found.normal @ axis), 0, 1)))),
        abs(float((points * steps).mean(0) @ found.normal - found.offset)),
        float(asymmetry_index(left_part, len(points) - left_part)),
    )
    return dict(zip(names, values, strict=True))


def reflected(mask: NDArray[Any], plane: Plane, spacing: Sequence[float] | None = None) -> NDArray[np.uint8]:
    """The mirror image of a mask in its own array: linear interpolation, inside from 0.5. Parts beyond it are lost."""
    inside = checked_mask(mask, "mask")
    steps = np.array(checked_spacing(spacing, inside.ndim))
    if plane.normal.shape != (inside.ndim,):
        raise ValueError(f"the plane must have {inside.ndim} dimensions, got {plane.normal.shape[0]}")
    volume = inside.reshape((1,) * (3 - inside.ndim) + inside.shape)
    lift = np.zeros(3 - inside.ndim)
    out = np.zeros(volume.shape, dtype=np.uint8)
    full_steps = np.concatenate([lift + 1, steps])
    _reflect(volume, np.concatenate([lift, plane.normal]), plane.offset, full_steps, out)
    return out.reshape(inside.shape)


def asymmetry_index(left: Any, right: Any) -> FloatArray:
    """(L - R) / ((L + R) / 2) of any quantity, element by element; between -2 and 2; NaN where L + R is 0."""
    one, two = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    total = one + two
    known = total != 0
    return np.divide(2 * (one - two), total, out=np.full(np.shape(total), np.nan), where=known)


def paired_asymmetry(
    table: Mapping[str, Any], labels: Sequence[int], pairs: Iterable[tuple[int, int]]
) -> dict[str, NDArray[Any]]:
    """Asymmetry index of every quantity of a table of labels, for pairs of a left and a right label.

    Parameters
    ----------
    table
        A column ``(L,)`` per quantity (volume, surface, mean intensity...).
    labels
        ``(L,)`` the label of each row.
    pairs
        ``(left, right)`` labels.

    Returns
    -------
    indices
        ``left``, ``right``, and a column per quantity under its own name, one row per pair; NaN if a label is absent.
    """
    asked = [(int(a), int(b)) for a, b in pairs]
    row = {int(label): k for k, label in enumerate(labels)}
    out: dict[str, NDArray[Any]] = {
        "left": np.array([a for a, _ in asked], dtype=np.int64),
        "right": np.array([b for _, b in asked], dtype=np.int64),
    }
    for name, column in table.items():
        values = np.asarray(column, dtype=np.float64)
        if values.shape != (len(row),):
            raise ValueError(f"{name} must have a value for each of {len(row)} labels, got shape {values.shape}")
        sides = [[values[row[one]] if one in row else np.nan for one in side] for side in zip(*asked, strict=True)]
        out[name] = asymmetry_index(*sides) if asked else np.zeros(0)
    return out


def paired_symmetry(
    labels: NDArray[Any],
    pairs: Iterable[tuple[int, int]],
    spacing: Sequence[float] | None = None,
    *,
    left: int | Sequence[float] = -1,
    plane: Plane | None = None,
) -> dict[str, NDArray[Any]]:
    """Paired structures of a label map: volume asymmetry, and overlap of the left one with the mirrored right one.

    Parameters
    ----------
    labels
        ``(Z, Y, X)`` or ``(Y, X)`` whole numbers, 0 for the background.
    pairs
        ``(left, right)`` labels.
    plane
        None for the best plane of all labels together.

    Returns
    -------
    table
        ``left``, ``right``, ``asymmetry_index`` (of the voxel counts), ``pair_dice``.
    """
    array = checked_labels(labels)
    boxes = label_boxes(array)
    asked = [(int(a), int(b)) for a, b in pairs]
    found = plane
    if found is None and len(boxes):
        found = symmetry_plane(array > 0, spacing, left=left)
    counts = {int(value): int(size) for value, size in zip(boxes.values, boxes.voxels, strict=True)}
    sizes = np.array([[counts.get(a, 0), counts.get(b, 0)] for a, b in asked], dtype=np.int64).reshape(-1, 2)
    dice = np.full(len(asked), np.nan)
    for line, (a, b) in enumerate(asked):
        if sizes[line].sum() and found is not None:
            mirrored = reflected(array == b, found, spacing)
            own = array == a
            both = float(own.sum() + mirrored.sum())
            dice[line] = 2 * float((own & (mirrored > 0)).sum()) / both if both else np.nan
    return {
        "left": np.array([a for a, _ in asked], dtype=np.int64),
        "right": np.array([b for _, b in asked], dtype=np.int64),
        "asymmetry_index": asymmetry_index(sizes[:, 0], sizes[:, 1]),
        "pair_dice": dice,
    }


def _search(field: NDArray[np.float32], points: FloatArray, steps: FloatArray, plane: Any, extent: float) -> Plane:
    """The best plane from several starts, refined on sharper edges."""
    from scipy.optimize import minimize

    ndim = points.shape[1]
    lift = np.zeros(3 - ndim)
    cloud = np.hstack([np.zeros((len(points), 3 - ndim)), points])
    full_steps = np.concatenate([np.ones(3 - ndim), steps])

    def missed(free: FloatArray, width: float, step: int) -> float:
        tried = plane(free)
        return -_overlap(field, cloud[::step], full_steps, np.concatenate([lift, tried.normal]), tried.offset, width)

    coarse = max(1, len(points) // 2000)
    widths = [blur * float(steps.max()) for blur in _BLURS]
    angles = np.radians(_TURNS)
    grids = np.meshgrid(*([angles] * (ndim - 1)), np.array(_SHIFTS) * extent, indexing="ij")
    starts = np.stack([grid.ravel() for grid in grids], axis=1)
    first = np.array([missed(start, widths[0], coarse) for start in starts])
    scale = np.array([np.radians(6)] * (ndim - 1) + [0.03 * extent + widths[1]])
    best: tuple[float, FloatArray] = (np.inf, starts[0])
    for start in starts[np.argsort(first, kind="stable")[:3]]:
        spot, room = start, scale
        for width, step in zip(widths, (coarse, 1), strict=True):
            simplex = np.vstack([spot, spot + np.diag(room)])
            options = {"initial_simplex": simplex, "xatol": 1e-4, "fatol": 1e-6, "maxiter": 150}
            spot, room = minimize(missed, spot, args=(width, step), method="Nelder-Mead", options=options).x, room / 4
        value = missed(spot, widths[-1], 1)
        if value < best[0]:
            best = (value, spot)
    return plane(best[1])


def _across(axis: FloatArray) -> FloatArray:
    """``(ndim-1, ndim)`` unit vectors at right angles to `axis` and to each other."""
    _, _, rows = np.linalg.svd(axis[None])
    return np.asarray(rows[1:])


def _direction(left: int | Sequence[float], ndim: int) -> FloatArray:
    if isinstance(left, (int, np.integer)):
        if not -ndim <= left < ndim:
            raise ValueError(f"left must be an axis of {ndim}, got {left}")
        return np.eye(ndim)[left]
    axis = np.asarray(left, dtype=np.float64)
    if axis.shape != (ndim,) or not np.isfinite(axis).all() or not axis.any():
        raise ValueError(f"left must be an axis or {ndim} numbers, not all 0, got {left}")
    return axis / np.linalg.norm(axis)


def _surface_distance(one: NDArray[np.uint8], two: NDArray[np.uint8], steps: FloatArray) -> float:
    """Mean over the surface voxels of both masks of the distance to the other surface."""
    from scipy.ndimage import binary_erosion

    if not two.any():
        return float("nan")
    edges = [np.asarray(mask.astype(bool) & ~binary_erosion(mask)) for mask in (one, two)]
    there = distance_field(edges[1], tuple(steps))[edges[0]]
    back = distance_field(edges[0], tuple(steps))[edges[1]]
    return float((there.sum(dtype=np.float64) + back.sum(dtype=np.float64)) / (there.size + back.size))


@kernel
def _overlap(field, points, steps, normal, offset, width):  # type: ignore[no-untyped-def]
    """Mean, over mirrored points, of a soft mask: 1 well inside, 0 well outside, a ramp of half-width `width`."""
    total = 0.0
    for i in range(len(points)):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        twice = 2 * (z * normal[0] + y * normal[1] + x * normal[2] - offset)
        z, y, x = z - twice * normal[0], y - twice * normal[1], x - twice * normal[2]
        total += _soft(_linear(field, z / steps[0], y / steps[1], x / steps[2], 1e6), width)
    return total / max(len(points), 1)


@kernel
def _soft(distance, width):  # type: ignore[no-untyped-def]
    """A smooth step down from 1 to 0 over ``-width .. width`` (positive outside)."""
    place = min(max((distance / width + 1) / 2, 0.0), 1.0)
    return 1.0 - place * place * (3 - 2 * place)


@kernel
def _linear(field, z, y, x, outside):  # type: ignore[no-untyped-def]
    """`field` at a place in index units, interpolated; the outer half voxel goes on flat, then comes `outside`."""
    depth, height, width = field.shape
    if z < -0.5 or y < -0.5 or x < -0.5 or z > depth - 0.5 or y > height - 0.5 or x > width - 0.5:
        return outside
    z, y, x = min(max(z, 0.0), depth - 1.0), min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    z0, y0, x0 = int(z), int(y), int(x)
    z1, y1, x1 = min(z0 + 1, depth - 1), min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    w, v, u = z - z0, y - y0, x - x0
    front = (1 - v) * ((1 - u) * field[z0, y0, x0] + u * field[z0, y0, x1])
    front += v * ((1 - u) * field[z0, y1, x0] + u * field[z0, y1, x1])
    back = (1 - v) * ((1 - u) * field[z1, y0, x0] + u * field[z1, y0, x1])
    back += v * ((1 - u) * field[z1, y1, x0] + u * field[z1, y1, x1])
    return (1 - w) * front + w * back


@kernel
def _reflect(mask, normal, offset, steps, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the mirror image of `mask`."""
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            for i in range(out.shape[2]):
                z, y, x = k * steps[0], j * steps[1], i * steps[2]
                twice = 2 * (z * normal[0] + y * normal[1] + x * normal[2] - offset)
                z, y, x = z - twice * normal[0], y - twice * normal[1], x - twice * normal[2]
                # Rounding must not decide about a place halfway.
                out[k, j, i] = _linear(mask, z / steps[0], y / steps[1], x / steps[2], 0.0) >= 0.5 - 1e-9
