"""Outlines without the steps of the pixels and with fewer points, never further from the original than allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import kernel
from vesalius.measure.contours import Contour, signed_area

# Pass band of Taubin's filter: 1 / 0.5 - 1 / 0.53 = 0.11 (Taubin, ICCV 1995).
_SHRINK, _GROW = 0.5, -0.53
# Of a tolerance, the part spent on leaving points out; the rest may go to restoring the area.
_FOR_CHORDS = 0.6
_RETRIES = 5


def smoothed(
    rings: Sequence[Contour],
    spacing: Sequence[float] | None = None,
    *,
    max_deviation_mm: float = 0.5,
    iterations: int = 20,
) -> list[Contour]:
    """`rings` without the steps of the pixels, in the same order.

    Points are set at most a pixel apart, moved by Taubin's filter (ICCV 1995) and then along their normals so far
    that the area of each ring is that of before. No point moves further than `max_deviation_mm`, so neither curve is
    further than that from the other. An outer ring that would cross itself or its holes gets half the deviation, and
    so on; if nothing helps, it stays.

    Parameters
    ----------
    spacing
        Step per axis of the map in mm; None for pixels, which is then the unit of the deviation too.
    max_deviation_mm
        Largest movement. Half a pixel removes the steps and nothing else.

    Raises
    ------
    ValueError
        For a deviation or a number of iterations that is negative, or a spacing that does not fit.
    """
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")

    def change(points: FloatArray, limit: float, step: FloatArray) -> FloatArray:
        dense = _densified(points, float(step.min()))
        return _taubin_ring(dense, iterations, limit)

    return _changed(rings, spacing, max_deviation_mm, change)


def simplified(
    rings: Sequence[Contour], spacing: Sequence[float] | None = None, *, tolerance_mm: float = 0.25
) -> list[Contour]:
    """`rings` with as few points as needed to stay within `tolerance_mm` of what they were, in the same order.

    Douglas and Peucker (Cartographica 1973, 10:112) within 0.6 of the tolerance; the rest is for moving the points that
    remain outwards or inwards, so that the area is kept. Neither curve is further than the tolerance from the other.
    Outer rings that would cross themselves or their holes get half the tolerance, and so on. Arguments and errors as
    `smoothed`.
    """

    def change(points: FloatArray, limit: float, step: FloatArray) -> FloatArray:
        if len(points) <= 3:
            return points
        kept = points[_douglas_peucker(points, _FOR_CHORDS * limit)]
        return _area_kept(kept, signed_area(points), (1 - _FOR_CHORDS) * limit)

    return _changed(rings, spacing, tolerance_mm, change)


def _changed(
    rings: Sequence[Contour],
    spacing: Sequence[float] | None,
    limit: float,
    change: Callable[[FloatArray, float, FloatArray], FloatArray],
) -> list[Contour]:
    """`change` applied to each outer ring and its holes together, with ever smaller limits until nothing crosses."""
    if not (np.isfinite(limit) and limit >= 0):
        raise ValueError(f"the largest deviation must not be negative, got {limit}")
    families: dict[int, list[int]] = {k: [k] for k, ring in enumerate(rings) if not ring.hole}
    for k, ring in enumerate(rings):
        if ring.hole:
            if ring.parent not in families:
                raise ValueError(f"ring {k} is a hole of ring {ring.parent}, which is no outer ring of the list")
            families[ring.parent].append(k)
    out = list(rings)
    step = _plane_spacing(rings, spacing)
    for family in families.values():
        before = [np.ascontiguousarray(rings[k].points[:, -2:] * step) for k in family]
        allowed = limit
        for _ in range(_RETRIES):
            after = [change(points, allowed, step) for points in before]
            kept = all(signed_area(a) * signed_area(b) > 0 for a, b in zip(after, before, strict=True))
            if kept and not _any_crossing(after):
                for k, points in zip(family, after, strict=True):
                    flat = points / step
                    fixed = np.broadcast_to(rings[k].points[:1, :-2], (len(flat), rings[k].points.shape[1] - 2))
                    out[k] = replace(rings[k], points=np.concatenate([fixed, flat], axis=1))
                break
            allowed /= 2
    return out


def _plane_spacing(rings: Sequence[Contour], spacing: Sequence[float] | None) -> FloatArray:
    if spacing is None or not rings:
        return np.ones(2)
    steps = np.asarray(spacing, dtype=np.float64)
    axes = rings[0].points.shape[1]
    if steps.shape != (axes,) or not (np.isfinite(steps).all() and (steps > 0).all()):
        raise ValueError(f"spacing must have one positive number for each of {axes} axes, got {tuple(spacing)}")
    return steps[-2:]


def _densified(points: FloatArray, step: float) -> FloatArray:
    """Points no further apart than `step` on the same ring."""
    move = np.roll(points, -1, axis=0) - points
    pieces = np.maximum(np.ceil(np.hypot(*move.T) / step - 1e-9).astype(np.int64), 1)
    first = np.repeat(np.arange(len(points)), pieces)
    part = np.arange(len(first)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return points[first] + move[first] * (part / pieces[first])[:, None]


@kernel
def _area_and_rate(points):  # type: ignore[no-untyped-def]
    """Signed area, and how fast it grows when every point moves along its outer normal."""
    count = len(points)
    area = rate = 0.0
    for k in range(count):
        after, before = points[(k + 1) % count], points[k - 1]
        area += points[k, 1] * (after[0] - before[0])
        rate += np.hypot(after[0] - before[0], after[1] - before[1])
    return area / 2, rate / 2


@kernel
def _area_kept(points, target, most):  # type: ignore[no-untyped-def]
    """`points` moved along their normals, none further than `most`, so that the signed area comes near `target`."""
    count = len(points)
    out = points.copy()
    area, rate = _area_and_rate(points)
    if rate == 0:
        return out
    push = min(max((target - area) / rate, -most), most)
    for k in range(count):
        dy = points[(k + 1) % count, 0] - points[k - 1, 0]
        dx = points[(k + 1) % count, 1] - points[k - 1, 1]
        length = np.hypot(dy, dx)
        if length > 0:  # counter-clockwise: the outside is on the right hand
            out[k, 1] += push * dy / length
            out[k, 0] -= push * dx / length
    return out


@kernel
def _taubin_ring(points, iterations, limit):  # type: ignore[no-untyped-def]
    """Taubin's filter on a ring, then its area back; every point stays within `limit` of where it was."""
    count = len(points)
    now = points.copy()
    moved = np.empty_like(now)
    for turn in range(2 * iterations):
        factor = _SHRINK if turn % 2 == 0 else _GROW
        for k in range(count):
            for axis in range(2):
                middle = 0.5 * (now[k - 1, axis] + now[(k + 1) % count, axis])
                moved[k, axis] = now[k, axis] + factor * (middle - now[k, axis])
        now, moved = moved, now
    target = _area_and_rate(points)[0]
    for _ in range(3):  # what the limit cuts off, the other points have to give
        now = _area_kept(now, target, limit)
        for k in range(count):
            dy, dx = now[k, 0] - points[k, 0], now[k, 1] - points[k, 1]
            length = np.hypot(dy, dx)
            if length > limit:
                now[k, 0] = points[k, 0] + dy * limit / length
                now[k, 1] = points[k, 1] + dx * limit / length
    return now


@kernel
def _douglas_peucker(points, tolerance):  # type: ignore[no-untyped-def]
    """Which points of a ring to keep."""
    count = len(points)
    keep = np.zeros(count, np.bool_)
    # A ring has no ends: it is cut at its lowest point, a corner of its hull, and at the point furthest from that.
    anchor = 0
    for k in range(1, count):
        if points[k, 0] < points[anchor, 0] or (points[k, 0] == points[anchor, 0] and points[k, 1] < points[anchor, 1]):
            anchor = k
    far, best = 0, -1.0
    for k in range(count):
        there = points[(anchor + k) % count]
        distance = np.hypot(there[0] - points[anchor, 0], there[1] - points[anchor, 1])
        if distance > best:
            far, best = k, distance
    keep[anchor] = keep[(anchor + far) % count] = True
    stack = [(0, far), (far, count)]
    while len(stack) > 0:
        a, b = stack.pop()
        start, end = points[(anchor + a) % count], points[(anchor + b) % count]
        worst, where = tolerance, -1
        for k in range(a + 1, b):
            distance = _to_segment(points[(anchor + k) % count], start, end)
            if distance > worst:
                worst, where = distance, k
        if where >= 0:
            keep[(anchor + where) % count] = True
            stack.append((a, where))
            stack.append((where, b))
    return keep


@kernel
def _to_segment(point, start, end):  # type: ignore[no-untyped-def]
    dy, dx = end[0] - start[0], end[1] - start[1]
    square = dy * dy + dx * dx
    part = 0.0
    if square > 0:
        part = min(max(((point[0] - start[0]) * dy + (point[1] - start[1]) * dx) / square, 0.0), 1.0)
    return np.hypot(point[0] - start[0] - part * dy, point[1] - start[1] - part * dx)


def _any_crossing(rings: Sequence[FloatArray]) -> bool:
    """Whether two edges of the rings meet other than as neighbours at their common point."""
    first = np.concatenate(rings)
    after = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    number = np.arange(len(first))
    following = np.concatenate(
        [np.roll(part, -1) for part in np.split(number, np.cumsum([len(r) for r in rings])[:-1])]
    )
    order = np.argsort(np.minimum(first[:, 0], after[:, 0]), kind="stable")
    return bool(_edges_cross(first, after, following, order))


@kernel
def _edges_cross(first, after, following, order):  # type: ignore[no-untyped-def]
    """Sweep over edges in rising order of their least y."""
    for i in range(len(order)):
        a = order[i]
        top = max(first[a, 0], after[a, 0])
        low_x, high_x = min(first[a, 1], after[a, 1]), max(first[a, 1], after[a, 1])
        for j in range(i + 1, len(order)):
            b = order[j]
            if min(first[b, 0], after[b, 0]) > top:
                break
            if following[a] == b or following[b] == a:
                continue
            if max(first[b, 1], after[b, 1]) < low_x or min(first[b, 1], after[b, 1]) > high_x:
                continue
            if (
                _side(first[a], after[a], first[b]) * _side(first[a], after[a], after[b]) <= 0
                and _side(first[b], after[b], first[a]) * _side(first[b], after[b], after[a]) <= 0
            ):
                return True
    return False


@kernel
def _side(a, b, c):  # type: ignore[no-untyped-def]
    turn = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return 1 if turn > 0 else (-1 if turn < 0 else 0)
