"""Thickness of structures and walls, as a map and in numbers.

`local_thickness` is the diameter of the largest ball that fits into the structure and covers the voxel (Hildebrand and
Ruegsegger, J. Microscopy 1997;185:67). Centres of balls are looked for at voxel centres, faces, edges and corners, and
kept where the distance to the boundary has a ridge. The boundary is not taken for a staircase: each boundary face is a
small disk, turned and moved along its normal to where a slightly blurred mask crosses 0.5. Slabs along the axes come
out exactly, oblique ones within 0.4 voxels, shells within 0.2 on average; tubes are up to 1.1 voxels too thin and balls
up to 1.4, as the nearest of many noisy pieces of boundary decides.

`wall_thickness` is for walls with two sides (myocardium, cortex, a vessel's wall): the length of the streamlines of
Laplace's equation from one side to the other (Jones, Buchbinder and Aharon, Human Brain Mapping 2000;11:12), found
without tracing them (Yezzi and Prince, IEEE TMI 2003;22:1332). Both sides are at the faces between voxels. Flat walls
along the axes come out exactly, curved and oblique ones within 0.15 voxels on average and 0.8 at single voxels.

Beyond the edge of the array nothing is known: no boundary lies there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_mask, checked_spacing
from vesalius.measure.boxes import label_boxes
from vesalius.measure.compiled import kernel
from vesalius.measure.distance import distance_field
from vesalius.measure.quantities import Quantity

_LOCAL = "Hildebrand and Ruegsegger, J. Microscopy 1997;185:67"
_WALL = "Jones et al., Human Brain Mapping 2000;11:12; Yezzi and Prince, IEEE TMI 2003;22:1332"
_BOTH = f"{_LOCAL}; {_WALL}"
_EMPTY = "undefined for an empty map."

QUANTITIES: tuple[Quantity, ...] = (
    Quantity("thickness_mean", "mm", f"Mean thickness over the voxels of the structure; {_EMPTY}", _BOTH),
    Quantity("thickness_sd", "mm", "Standard deviation (n - 1) of the thickness over voxels.", _BOTH),
    Quantity("thickness_min", "mm", f"Smallest thickness of any voxel; {_EMPTY}", _BOTH),
    Quantity("thickness_p5", "mm", f"5th percentile of the thickness over voxels; {_EMPTY}", _BOTH),
    Quantity("thickness_p25", "mm", f"25th percentile of the thickness over voxels; {_EMPTY}", _BOTH),
    Quantity("thickness_median", "mm", f"Median thickness over voxels; {_EMPTY}", _BOTH),
    Quantity("thickness_p75", "mm", f"75th percentile of the thickness over voxels; {_EMPTY}", _BOTH),
    Quantity("thickness_p95", "mm", f"95th percentile of the thickness over voxels; {_EMPTY}", _BOTH),
    Quantity("thickness_max", "mm", f"Largest thickness of any voxel; {_EMPTY}", _BOTH),
)

# Blur of the mask in voxels: enough to see the slope of a staircase, too little to round a sheet of one voxel away.
_BLUR = 0.85
# A centre is dropped if the distance to the boundary rises at least this steeply towards a neighbour. Edges and corners
# of a box rise by 0.71 and 0.58 along its medial sheet, which is kept.
_STEEP = 0.72
_NEAREST = 12  # boundary faces looked at per centre
_CHUNK = 1 << 16

_OPEN, _INNER, _OUTER = -1, -2, -3


def thickness_summary(thickness: NDArray[Any]) -> dict[str, float]:
    """Mean, spread and percentiles of the positive finite values of a thickness map; NaN if there are none."""
    values = np.asarray(thickness, dtype=np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return {quantity.name: np.nan for quantity in QUANTITIES}
    p5, p25, median, p75, p95 = np.percentile(values, (5, 25, 50, 75, 95))
    return {
        "thickness_mean": float(values.mean()),
        "thickness_sd": float(values.std(ddof=1)) if values.size > 1 else np.nan,
        "thickness_min": float(values.min()),
        "thickness_p5": float(p5),
        "thickness_p25": float(p25),
        "thickness_median": float(median),
        "thickness_p75": float(p75),
        "thickness_p95": float(p95),
        "thickness_max": float(values.max()),
    }


def local_thickness(mask: NDArray[Any], spacing: Sequence[float] | None = None) -> NDArray[np.float32]:
    """Diameter of the largest ball inside the structure that covers each voxel.

    Parameters
    ----------
    mask
        ``(Z, Y, X)``, or ``(Y, X)`` for disks instead of balls.
    spacing
        Voxel size per axis in mm; None counts in voxels.

    Returns
    -------
    thickness
        float32 of the shape of `mask`; 0 outside it, infinite if there is no boundary in the array.
    """
    inside = checked_mask(mask, "mask")
    steps = checked_spacing(spacing, inside.ndim)
    out = np.zeros(inside.shape, dtype=np.float32)
    boxes = label_boxes(inside)
    if not len(boxes):
        return out
    box = boxes.slices(0, margin=3, shape=inside.shape)
    flat = inside.ndim == 2
    part = inside[box][None] if flat else inside[box]
    full_steps = np.array([min(steps), *steps]) if flat else np.array(steps)
    if part.all():
        out[box] = np.inf
        return out
    part = np.ascontiguousarray(part)
    centres, radii = _balls(part, full_steps, flat)
    order = np.argsort(-radii, kind="stable")
    found = np.zeros(part.shape, dtype=np.float32)
    _paint(part, centres[order], radii[order], full_steps, found)
    _fill(part > 0, found)
    out[box] = found[0] if flat else found
    return out


def _fill(inside: NDArray[np.bool_], found: NDArray[np.float32]) -> None:
    """Give voxels that no ball reached (spikes off the ridges) the largest value beside them."""
    from scipy.ndimage import maximum_filter

    while True:
        left = inside & (found == 0)
        beside = maximum_filter(found, 3)[left] if left.any() else np.zeros(0)
        if not beside.any():
            return
        found[left] = beside


def _balls(part: NDArray[np.uint8], steps: FloatArray, flat: bool) -> tuple[FloatArray, FloatArray]:
    """Centres ``(N, 3)`` in index units and radii ``(N,)`` of the balls on the ridges of the distance."""
    from scipy.spatial import cKDTree

    places, normals, reach = _boundary(part, steps)
    field = distance_field(_closed(part == 0), tuple(steps / 2))
    first = 0
    if flat:  # disks lie in the plane of the pixel centres
        field, first = np.ascontiguousarray(field[1:2]), 1
    ridge = _ridge(field, steps / 2, _STEEP)
    inner = field[ridge > 0].astype(np.float64)
    centres = (np.argwhere(ridge > 0) - 1) / 2
    centres[:, 0] += first / 2
    tree = cKDTree(places)
    radii = np.empty(len(centres))
    count = min(_NEAREST, len(places))
    smallest = steps[1:].min() if flat else steps.min()
    for begin in range(0, len(centres), _CHUNK):
        some = slice(begin, begin + _CHUNK)
        here = centres[some] * steps
        _, faces = tree.query(here, k=count, workers=available_cores())
        faces = faces.reshape(len(here), count)
        # In sheets of about one voxel the blur reaches both sides: trust the faces themselves.
        trust = np.clip((inner[some] / smallest - 0.5) / 0.5, 0, 1)[:, None]
        shift = reach[faces, 0] * trust
        way = places[faces] + shift[..., None] * normals[faces] - here[:, None]
        along = np.abs((way * normals[faces]).sum(-1))
        aside = np.sqrt(np.maximum((way**2).sum(-1) - along**2, 0))
        radii[some] = np.sqrt(along**2 + np.maximum(aside - reach[faces, 1], 0) ** 2).min(1)
    return centres, np.maximum(radii, inner)


def _boundary(part: NDArray[np.uint8], steps: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Per boundary face its middle ``(N, 3)`` in mm, outward normal, and shift along it and radius ``(N, 2)``."""
    from scipy.ndimage import gaussian_filter
    from scipy.special import ndtri

    # Two voxels of room for the gradient; at the edge of the array the picture goes on as it is.
    room = 4
    blurred = gaussian_filter(np.pad(part, room, mode="edge").astype(np.float32), _BLUR, truncate=4)
    found = []
    for axis in range(3):
        low, high = ([slice(None)] * 3 for _ in range(2))
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        here = np.argwhere(part[tuple(low)] != part[tuple(high)])
        there = here.copy()
        there[:, axis] += 1
        slope, level = np.zeros((len(here), 3)), np.zeros(len(here))
        for side in (here, there):
            spot = side + room
            level += blurred[tuple(spot.T)] / 2
            for k in range(3):
                step = np.eye(3, dtype=np.int64)[k]
                ahead, back = blurred[tuple((spot + step).T)], blurred[tuple((spot - step).T)]
                slope[:, k] += (back - ahead) / (4 * steps[k])
        normal = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-12)
        width = _BLUR * np.sqrt(((normal * steps) ** 2).sum(1))
        shift = np.clip(width * ndtri(np.clip(level, 0.02, 0.98)), -steps[axis] / 2, steps[axis] / 2)
        radius = np.full(len(here), 0.5 * float(np.linalg.norm(np.delete(steps, axis))))
        found.append(((here + there) / 2 * steps, normal, np.stack([shift, radius], axis=1)))
    middles, normals, reach = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return middles, normals, reach


def _closed(outside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The closed voxels of a mask on the lattice of centres, faces, edges and corners: shape ``2 n + 1``."""
    out = outside
    for axis in range(out.ndim):
        moved = np.moveaxis(out, axis, 0)
        fine = np.zeros((2 * len(moved) + 1, *moved.shape[1:]), dtype=np.bool_)
        fine[1::2] = moved
        fine[:-1:2] |= moved
        fine[2::2] |= moved
        out = np.moveaxis(fine, 0, axis)
    return np.ascontiguousarray(out)


def wall_thickness(
    wall: NDArray[Any],
    inner: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    outer: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """Length of the streamline through each voxel of a wall, from its inner to its outer side.

    Parameters
    ----------
    wall, inner
        Masks ``(Z, Y, X)`` or ``(Y, X)``: the wall, and what lies on its inner side (cavity, white matter).
    spacing
        Voxel size per axis in mm; None counts in voxels.
    outer
        What lies on the outer side; None for everything that is neither wall nor inner. Give it where a wall ends
        (the open base of a ventricle): sides that touch neither are closed to streamlines.

    Returns
    -------
    thickness
        float32 of the shape of `wall`; NaN outside it, and in parts of it that do not reach both sides.
    """
    solid, hollow = checked_mask(wall, "wall"), checked_mask(inner, "inner")
    around = None if outer is None else checked_mask(outer, "outer")
    for name, mask in (("inner", hollow), ("outer", around)):
        if mask is not None and mask.shape != solid.shape:
            raise ValueError(f"{name} must have the shape of the wall, {solid.shape}, got {mask.shape}")
    steps = np.array(checked_spacing(spacing, solid.ndim))
    out = np.full(solid.shape, np.nan, dtype=np.float32)
    boxes = label_boxes(solid)
    if not len(boxes):
        return out
    box = boxes.slices(0, margin=1, shape=solid.shape)
    part = solid[box]
    kind = np.full(part.shape, _OUTER if around is None else _OPEN, dtype=np.int32)
    if around is not None:
        kind[around[box] > 0] = _OUTER
    kind[hollow[box] > 0] = _INNER
    inside = part > 0
    kind[inside] = np.arange(int(inside.sum()), dtype=np.int32)
    lift = (1,) * (3 - part.ndim)
    near = _neighbours(kind.reshape(lift + part.shape))
    full_steps = np.concatenate([np.full(3 - part.ndim, min(steps)), steps])
    potential = np.full(len(near), 0.5)
    _laplace(near, full_steps, potential, 1e-6, 5000)
    length = _lengths(near, full_steps, potential)
    values = np.full(part.shape, np.nan, dtype=np.float32)
    values[inside] = length
    out[box] = values
    return out


def _neighbours(kind: NDArray[np.int32]) -> NDArray[np.int32]:
    """``(N, 6)``: per wall voxel what lies before and after it along z, y, x: a number, or which side."""
    padded = np.pad(kind, 1, constant_values=_OPEN)
    inside = np.argwhere(padded >= 0)
    near = np.empty((len(inside), 6), dtype=np.int32)
    for axis in range(3):
        for side, step in enumerate((-1, 1)):
            place = inside.copy()
            place[:, axis] += step
            near[:, 2 * axis + side] = padded[tuple(place.T)]
    return near


def _lengths(near: NDArray[np.int32], steps: FloatArray, potential: FloatArray) -> FloatArray:
    """Length of the streamline through each wall voxel; NaN where the potential is flat."""
    tangent = np.zeros((len(near), 3))
    _tangents(near, steps, potential, tangent)
    order = np.argsort(potential, kind="stable")
    down, up = np.full(len(near), np.nan), np.full(len(near), np.nan)
    _march(near, steps, tangent, order, down, _INNER, 40)
    _march(near, steps, -tangent, order[::-1].copy(), up, _OUTER, 40)
    return down + up


@kernel
def _ridge(field, steps, steep):  # type: ignore[no-untyped-def]
    """1 where no neighbour's distance to the boundary is larger by `steep` times the way there."""
    depth, height, width = field.shape
    out = np.zeros(field.shape, dtype=np.uint8)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                here = field[z, y, x]
                if not here > 0:
                    continue
                kept = True
                for k in range(27):
                    dz, dy, dx = k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1
                    a, b, c = z + dz, y + dy, x + dx
                    if k == 13 or a < 0 or b < 0 or c < 0 or a >= depth or b >= height or c >= width:
                        continue
                    way = np.sqrt((dz * steps[0]) ** 2 + (dy * steps[1]) ** 2 + (dx * steps[2]) ** 2)
                    if field[a, b, c] >= here + steep * way:
                        kept = False
                        break
                out[z, y, x] = kept
    return out


@kernel
def _paint(mask, centres, radii, steps, out):  # type: ignore[no-untyped-def]
    """Write the diameters of balls, largest first, into the voxels they cover that are still empty.

    A ball covers the voxels it reaches into, not only those whose centre it holds, or surfaces would be left to tiny
    balls: it is widened by half a voxel along each axis. Rows know their next empty voxel, so each voxel is written
    once and full stretches are jumped over.
    """
    depth, height, width = mask.shape
    after = np.empty((depth, height, width + 1), dtype=np.int32)
    for z in range(depth):
        for y in range(height):
            after[z, y, width] = width
            for x in range(width - 1, -1, -1):
                after[z, y, x] = x if mask[z, y, x] else after[z, y, x + 1]
    for i in range(len(radii)):
        cz, cy, cx = centres[i, 0], centres[i, 1], centres[i, 2]
        # A little more, so that rounding does not decide about voxels that a ball just touches.
        grown, half_voxel = radii[i] * (1 + 1e-6), 0.5 + 1e-6
        tall, deep = grown / steps[0] + half_voxel, grown / steps[1] + half_voxel
        wide = grown / steps[2] + half_voxel
        for z in range(max(int(np.ceil(cz - tall)), 0), min(int(np.floor(cz + tall)), depth - 1) + 1):
            rest = 1.0 - ((z - cz) / tall) ** 2
            far = deep * np.sqrt(max(rest, 0.0))
            for y in range(max(int(np.ceil(cy - far)), 0), min(int(np.floor(cy + far)), height - 1) + 1):
                half = wide * np.sqrt(max(rest - ((y - cy) / deep) ** 2, 0.0))
                last = min(int(np.floor(cx + half)), width - 1)
                row = after[z, y]
                x = max(int(np.ceil(cx - half)), 0)
                while x <= last:
                    spot = x
                    while row[spot] != spot:
                        spot = row[spot]
                    while row[x] != spot:  # shorten the way for the next ball
                        row[x], x = spot, row[x]
                    if spot > last:
                        break
                    out[z, y, spot] = 2 * radii[i]
                    row[spot] = spot + 1
                    x = spot + 1


@kernel
def _laplace(near, steps, potential, tolerance, sweeps):  # type: ignore[no-untyped-def]
    """Solve Laplace's equation in the wall with 0 on the inner and 1 on the outer faces, by over-relaxation."""
    relax = 1.8
    for _ in range(sweeps):
        change = 0.0
        for i in range(len(near)):
            total, weight = 0.0, 0.0
            for k in range(6):
                other = near[i, k]
                share = 1.0 / steps[k // 2] ** 2
                if other >= 0:
                    total += share * potential[other]
                    weight += share
                elif other == -3:
                    total += 2 * share  # the face is half a step away
                    weight += 2 * share
                elif other == -2:
                    weight += 2 * share
            if weight > 0:
                step = relax * (total / weight - potential[i])
                potential[i] += step
                change = max(change, abs(step))
        if change < tolerance:
            break


@kernel
def _tangents(near, steps, potential, tangent):  # type: ignore[no-untyped-def]
    """Unit gradient of the potential; 0 where it is flat."""
    for i in range(len(near)):
        size = 0.0
        for axis in range(3):
            slopes = np.zeros(2)
            ways = np.full(2, steps[axis])
            for side in range(2):
                other = near[i, 2 * axis + side]
                value = potential[i]  # closed: no slope across that side
                if other >= 0:
                    value = potential[other]
                elif other != -1:
                    value = 1.0 if other == -3 else 0.0
                    ways[side] = steps[axis] / 2
                slopes[side] = (value - potential[i]) / ways[side] * (2 * side - 1)
            tangent[i, axis] = (slopes[0] * ways[1] + slopes[1] * ways[0]) / (ways[0] + ways[1])
            size += (tangent[i, axis] * steps[axis]) ** 2
        # Below this the part of the wall does not reach both sides: the potential is 0 or 1 all over.
        norm = np.sqrt((tangent[i] ** 2).sum())
        for axis in range(3):
            tangent[i, axis] = tangent[i, axis] / norm if size > 1e-10 else 0.0


@kernel
def _march(near, steps, tangent, order, length, goal, sweeps):  # type: ignore[no-untyped-def]
    """Way against `tangent` to the faces of side `goal`, upwind, voxels sorted so that one sweep does nearly all."""
    for _ in range(sweeps):
        change = 0.0
        for i in order:
            total, weight = 1.0, 0.0
            for axis in range(3):
                lean = tangent[i, axis]
                if lean == 0.0:
                    continue
                other = near[i, 2 * axis + (0 if lean > 0 else 1)]
                if other == goal:
                    weight += abs(lean) / (steps[axis] / 2)
                elif other >= 0 and not np.isnan(length[other]):
                    weight += abs(lean) / steps[axis]
                    total += abs(lean) / steps[axis] * length[other]
            if weight > 0:
                found = total / weight
                change = max(change, 1.0 if np.isnan(length[i]) else abs(found - length[i]))
                length[i] = found
        if change < 1e-5:
            break
