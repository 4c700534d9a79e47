"""Bodies around a region: the smallest box of any direction and the smallest ellipsoid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import kernel
from vesalius.measure.hull import Hull, scaled_normals


class Box(NamedTuple):
    """A box of any direction: edge `lengths` ``(3,)`` from long to short and their unit vectors, rows of ``(3, 3)``."""

    lengths: FloatArray
    axes: FloatArray


def smallest_box(hull: Hull, steps: FloatArray) -> Box:
    """The smallest box that has a side flush with a face of the hull.

    For each direction of a face the box is exact: the height of the hull over that face times the smallest rectangle
    around its shadow, which is flush with an edge of the shadow. The smallest box of all may touch the hull with edges
    only (O'Rourke, Int. J. Comput. Inf. Sci. 1985, 14:183); it can be smaller than this one, for hulls of many faces by
    little.
    """
    normals = scaled_normals(hull, steps)
    lengths, axes = _smallest_box(hull.points * (steps / 2), hull.faces, hull.neighbours, hull.normals, normals)
    order = np.argsort(-lengths, kind="stable")
    return Box(lengths[order], axes[order])


@kernel
def _directions(whole, normals):  # type: ignore[no-untyped-def]
    """Directions of faces as unit vectors, opposite ones taken as one; their area, doubled; that of each face, signed.

    A face has the number of its direction plus 1, negative where it looks the other way.
    """
    count = whole.shape[0]
    reduced, keys = np.empty((count, 3), np.int64), np.empty(count, np.int64)
    which = np.empty(count, np.int64)
    for k in range(count):
        z, y, x = whole[k]
        a, b = abs(z), abs(y)
        while b:
            a, b = b, a % b
        b = abs(x)
        while b:
            a, b = b, a % b
        which[k] = -1 if z < 0 or (z == 0 and (y < 0 or (y == 0 and x < 0))) else 1
        a *= which[k]
        reduced[k, 0], reduced[k, 1], reduced[k, 2] = z // a, y // a, x // a
        keys[k] = reduced[k, 0] * 73856093 ^ reduced[k, 1] * 19349663 ^ reduced[k, 2] * 83492791
    units, areas, many, last = np.empty((count, 3)), np.zeros(count), 0, -1
    for k in np.argsort(keys):
        # Equal keys of different directions do no harm: a direction is then listed twice.
        size = np.sqrt(normals[k, 0] ** 2 + normals[k, 1] ** 2 + normals[k, 2] ** 2)
        if last < 0 or not (
            reduced[last, 0] == reduced[k, 0]
            and reduced[last, 1] == reduced[k, 1]
            and reduced[last, 2] == reduced[k, 2]
        ):
            units[many] = normals[k] * (which[k] / size)
            last = k
            many += 1
        areas[many - 1] += size
        which[k] *= many
    return units[:many], areas[:many], which


@kernel
def _seams(faces, near, which):  # type: ignore[no-untyped-def]
    """Edges between faces that are not coplanar: signed directions of the two, first and last vertex."""
    out, many = np.empty((3 * faces.shape[0] // 2, 4), np.int64), 0
    for face in range(faces.shape[0]):
        for side in range(3):
            other = near[face, side]
            if face < other and which[face] != which[other]:
                out[many, 0], out[many, 1] = which[face], which[other]
                out[many, 2], out[many, 3] = faces[face, side], faces[face, (side + 1) % 3]
                many += 1
    return out[:many]


@kernel
def _smallest_box(points, faces, near, whole, normals):  # type: ignore[no-untyped-def]
    """Lengths and axes of the smallest box flush with a face."""
    units, areas, which = _directions(whole, normals)
    seams = _seams(faces, near, which)
    ends = np.unique(seams[:, 2:])  # other vertices lie within a flat side
    many = units.shape[0]
    bounds, heights = np.empty(many), np.empty(many)
    for k in range(many):
        z, y, x = units[k, 0], units[k, 1], units[k, 2]
        shadow = 0.0
        for j in range(many):
            shadow += abs(z * units[j, 0] + y * units[j, 1] + x * units[j, 2]) * areas[j]
        low, high = np.inf, -np.inf
        for j in ends:
            level = z * points[j, 0] + y * points[j, 1] + x * points[j, 2]
            low, high = min(low, level), max(high, level)
        heights[k] = high - low
        # A rectangle around the shadow is no smaller than the shadow.
        bounds[k] = heights[k] * shadow / 4
    best, lengths, axes = np.inf, np.zeros(3), np.zeros((3, 3))
    ahead = np.empty(many)
    places = np.empty((seams.shape[0], 2))
    for k in np.argsort(bounds):
        if bounds[k] >= best:
            break
        area, across, along, angle, first, second = _rectangle(units[k], points, units, seams, ahead, places)
        if heights[k] * area < best:
            best = heights[k] * area
            lengths[0], lengths[1], lengths[2] = heights[k], along, across
            axes[0] = units[k]
            axes[1] = np.cos(angle) * first + np.sin(angle) * second
            axes[2] = np.cos(angle) * second - np.sin(angle) * first
    return lengths, axes


@kernel
def _rectangle(unit, points, units, seams, ahead, places):  # type: ignore[no-untyped-def]
    """The smallest rectangle around the shadow along `unit`: area, sides, angle of the long side, axes of the plane."""
    least = 0
    for axis in range(1, 3):
        least = axis if abs(unit[axis]) < abs(unit[least]) else least
    first = -unit * unit[least]
    first[least] += 1
    first /= np.sqrt(first[0] ** 2 + first[1] ** 2 + first[2] ** 2)
    second = np.empty(3)
    for k in range(3):
        second[k] = unit[(k + 1) % 3] * first[(k + 2) % 3] - unit[(k + 2) % 3] * first[(k + 1) % 3]
    for k in range(units.shape[0]):
        ahead[k] = units[k, 0] * unit[0] + units[k, 1] * unit[1] + units[k, 2] * unit[2]
    # The rim of the shadow lies between faces that look ahead and faces that do not.
    many = 0
    for k in range(seams.shape[0]):
        a, b = seams[k, 0], seams[k, 1]
        one = ahead[a - 1] > 0 if a > 0 else ahead[-a - 1] < 0
        two = ahead[b - 1] > 0 if b > 0 else ahead[-b - 1] < 0
        if one != two:
            p = points[seams[k, 2] if one else seams[k, 3]]
            places[many, 0] = p[0] * first[0] + p[1] * first[1] + p[2] * first[2]
            places[many, 1] = p[0] * second[0] + p[1] * second[1] + p[2] * second[2]
            many += 1
    rim = _around(places[:many])
    area, across, along, angle = _turn(rim)
    return area, across, along, angle, first, second


@kernel
def _around(places):  # type: ignore[no-untyped-def]
    """Hull of points in the plane, counter-clockwise (Andrew's monotone chain); points that coincide are one."""
    many = places.shape[0]
    order = np.argsort(places[:, 0])
    for k in range(1, many):
        # Equal first coordinates go by the second.
        j = k
        while (
            j > 0 and places[order[j], 0] == places[order[j - 1], 0] and places[order[j], 1] < places[order[j - 1], 1]
        ):
            order[j], order[j - 1] = order[j - 1], order[j]
            j -= 1
    near = 1e-9 * max(np.abs(places[:, 0]).max(), np.abs(places[:, 1]).max())
    hull, depth = np.empty((2 * many + 2, 2)), 0
    for half in range(2):
        floor = depth + 1 if half == 0 else depth
        for step in range(many):
            place = places[order[step] if half == 0 else order[many - 1 - step]]
            while depth > floor:
                last, before = hull[depth - 1], hull[depth - 2]
                if (last[0] - before[0]) * (place[1] - before[1]) > (last[1] - before[1]) * (place[0] - before[0]):
                    break
                depth -= 1
            if depth and abs(place[0] - hull[depth - 1, 0]) <= near and abs(place[1] - hull[depth - 1, 1]) <= near:
                continue
            hull[depth, 0], hull[depth, 1] = place[0], place[1]
            depth += 1
    # The second half ends where the first began.
    if abs(hull[depth - 1, 0] - hull[0, 0]) <= near and abs(hull[depth - 1, 1] - hull[0, 1]) <= near:
        depth -= 1
    return hull[:depth]


@kernel
def _turn(hull):  # type: ignore[no-untyped-def]
    """The smallest rectangle around a convex polygon by rotating calipers: area, height, base, angle of the base."""
    many = hull.shape[0]
    best, across, along, angle = np.inf, 0.0, 0.0, 0.0
    right = far = left = 1
    for k in range(many):
        one, two = hull[k], hull[(k + 1) % many]
        u, v = two[0] - one[0], two[1] - one[1]
        size = np.sqrt(u * u + v * v)
        u, v = u / size, v / size
        right = _climb(hull, right, u, v)
        far = _climb(hull, right if k == 0 else far, -v, u)
        left = _climb(hull, far if k == 0 else left, -u, -v)
        base = u * (hull[right, 0] - hull[left, 0]) + v * (hull[right, 1] - hull[left, 1])
        height = u * (hull[far, 1] - one[1]) - v * (hull[far, 0] - one[0])
        if base * height < best:
            best, across, along, angle = base * height, height, base, np.arctan2(v, u)
    return best, across, along, angle


@kernel
def _climb(hull, place, u, v):  # type: ignore[no-untyped-def]
    """From `place` onwards the vertex farthest in the direction (u, v)."""
    many = hull.shape[0]
    for _ in range(many):
        following = place + 1 if place + 1 < many else 0
        if u * (hull[following, 0] - hull[place, 0]) + v * (hull[following, 1] - hull[place, 1]) <= 0:
            break
        place = following
    return place


class Ellipsoid(NamedTuple):
    """`centre` ``(3,)``, semi-axes `radii` ``(3,)`` from long to short and their unit vectors, rows of ``(3, 3)``."""

    centre: FloatArray
    radii: FloatArray
    axes: FloatArray


def smallest_ellipsoid(points: FloatArray, *, tolerance: float = 1e-3) -> Ellipsoid:
    """The ellipsoid of least volume around points ``(P, 3)`` that are not all in one plane.

    Khachiyan's algorithm with steps away from points inside (Todd and Yildirim, Discrete Appl. Math. 2007, 155:1731),
    leaving out points that cannot be on it (Harman and Pronzato, Stat. Probab. Lett. 2007, 77:90), scaled at the end so
    that it holds every point. Its volume exceeds the least one by at most twice `tolerance`.
    """
    middle = points.mean(axis=0)
    scale = float(np.abs(points - middle).max())
    weights, worst = _khachiyan(np.ascontiguousarray((points - middle) / scale), tolerance)
    centre = weights @ ((points - middle) / scale)
    spread = ((points - middle) / scale - centre).T * weights @ ((points - middle) / scale - centre)
    sizes, axes = np.linalg.eigh(spread)
    order = np.argsort(-sizes)
    radii = np.sqrt(sizes[order] * (worst - 1)) * scale
    return Ellipsoid(centre * scale + middle, radii, axes.T[order])


@kernel
def _khachiyan(points, tolerance):  # type: ignore[no-untyped-def]
    """Weights of the points whose scatter has the largest determinant, and the largest squared norm under it."""
    count = points.shape[0]
    lifted = np.ones((count, 4))
    lifted[:, :3] = points
    weights = np.zeros(count)
    for axis in range(3):
        weights[np.argmin(points[:, axis])] += 1 / 6
        weights[np.argmax(points[:, axis])] += 1 / 6
    if np.linalg.matrix_rank(_scatter(lifted, weights)) < 4:
        weights[:] = 1 / count
    kept, left = np.arange(count), count
    norms, side = np.empty(count), np.empty(4)
    inverse = np.empty((4, 4))
    for turn in range(1000000):
        if turn % 100 == 0:
            # From scratch now and then: updates gather rounding errors.
            inverse = np.linalg.inv(_scatter(lifted, weights))
            left = _reduce(lifted, inverse, weights, norms, kept, left)
        up, down = kept[0], -1
        for k in kept[:left]:
            up = k if norms[k] > norms[up] else up
            if weights[k] > 0 and (down < 0 or norms[k] < norms[down]):
                down = k
        if norms[up] / 4 - 1 <= tolerance:
            break
        pick = up if norms[up] - 4 >= 4 - norms[down] else down
        step = (norms[pick] - 4) / (4 * (norms[pick] - 1))
        if pick == down:
            step = max(step, -weights[pick] / (1 - weights[pick]))
        for i in range(4):
            side[i] = 0.0
            for j in range(4):
                side[i] += inverse[i, j] * lifted[pick, j]
        factor = step / (1 - step + step * norms[pick])
        for k in kept[:left]:
            weights[k] *= 1 - step
            cross = lifted[k, 0] * side[0] + lifted[k, 1] * side[1] + lifted[k, 2] * side[2] + side[3]
            norms[k] = (norms[k] - factor * cross * cross) / (1 - step)
        weights[pick] = max(weights[pick] + step, 0.0)
        for i in range(4):
            for j in range(4):
                inverse[i, j] = (inverse[i, j] - factor * side[i] * side[j]) / (1 - step)
    inverse = np.linalg.inv(_scatter(lifted, weights))
    worst = 0.0
    for k in range(count):
        worst = max(worst, _norm(lifted[k], inverse))
    return weights, worst


@kernel
def _scatter(lifted, weights):  # type: ignore[no-untyped-def]
    """Weighted sum of the outer products of points with themselves."""
    out = np.zeros((4, 4))
    for k in range(lifted.shape[0]):
        if weights[k] > 0:
            for i in range(4):
                for j in range(4):
                    out[i, j] += weights[k] * lifted[k, i] * lifted[k, j]
    return out


@kernel
def _norm(point, inverse):  # type: ignore[no-untyped-def]
    """Squared length of a point under the inverse of the scatter."""
    total = 0.0
    for i in range(4):
        for j in range(4):
            total += point[i] * inverse[i, j] * point[j]
    return total


@kernel
def _reduce(lifted, inverse, weights, norms, kept, left):  # type: ignore[no-untyped-def]
    """Norms anew, and the points that may still lie on the ellipsoid (Harman and Pronzato 2007); returns how many."""
    worst = 0.0
    for k in kept[:left]:
        norms[k] = _norm(lifted[k], inverse)
        worst = max(worst, norms[k])
    excess = max(worst / 4 - 1, 0.0)
    limit = 4 * (1 + excess / 2 - np.sqrt(excess * (3 + excess)) / 2) - 1e-9
    many = 0
    for k in kept[:left]:
        if norms[k] >= limit or weights[k] > 0:
            kept[many] = k
            many += 1
    return many
