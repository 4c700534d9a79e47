"""Convex hull of a region, in exact arithmetic.

It encloses the vertices of the surface at level 0.5. Those lie half a step along an axis from a voxel centre
(see `shape_kernels`), so in half voxels they are whole numbers, and the convex hull is found in exact arithmetic: a
quickhull (Barber, Dobkin, Huhdanpaa: ACM Trans. Math. Softw. 1996, 22:469) on integers needs no tolerance, and flat or
collinear points do not confuse it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import kernel
from vesalius.measure.shape_kernels import IntArray


class Hull(NamedTuple):
    """A closed surface of triangles around all points.

    Parameters
    ----------
    points
        ``(V, 3)`` vertices in half voxels, (z, y, x).
    faces
        ``(F, 3)`` numbers of vertices; coplanar triangles are not merged.
    neighbours
        ``(F, 3)``: the face beyond the edge from vertex k to vertex k + 1.
    normals
        ``(F, 3)`` whole numbers, outward, as long as twice the area of the triangle.
    """

    points: IntArray
    faces: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    normals: IntArray


def surface_hull(corners: NDArray[np.int32]) -> Hull:
    """Convex hull of the surface at level 0.5 of voxels (z, y, x) ``(P, 3)``; the corners of each slice are enough."""
    return Hull(*_quickhull(_surface_points(np.ascontiguousarray(corners))))


@kernel
def _surface_points(corners):  # type: ignore[no-untyped-def]
    """The six vertices around each voxel, in half voxels."""
    many = corners.shape[0]
    points = np.empty((6 * many, 3), np.int64)
    for k in range(many):
        for j in range(6):
            for axis in range(3):
                points[6 * k + j, axis] = 2 * np.int64(corners[k, axis])
            points[6 * k + j, j >> 1] += 2 * (j & 1) - 1
    return points


@kernel
def _plane(points, a, b, c):  # type: ignore[no-untyped-def]
    """Normal of a triangle and its product with the first corner."""
    uz, uy, ux = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
    vz, vy, vx = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
    nz, ny, nx = uy * vx - ux * vy, ux * vz - uz * vx, uz * vy - uy * vz
    return nz, ny, nx, nz * points[a, 0] + ny * points[a, 1] + nx * points[a, 2]


@kernel
def _first_four(points):  # type: ignore[no-untyped-def]
    """Four points that span a large tetrahedron, the fourth below the triangle of the first three."""
    one = two = 0
    for k in range(points.shape[0]):
        one = k if points[k, 0] < points[one, 0] else one
        two = k if points[k, 0] > points[two, 0] else two
    three, best = 0, -1.0
    for k in range(points.shape[0]):
        nz, ny, nx, _ = _plane(points, one, two, k)
        size = float(nz) * nz + float(ny) * ny + float(nx) * nx
        if size > best:
            three, best = k, size
    nz, ny, nx, level = _plane(points, one, two, three)
    four, most, sign = 0, np.int64(-1), 1
    for k in range(points.shape[0]):
        height = nz * points[k, 0] + ny * points[k, 1] + nx * points[k, 2] - level
        if abs(height) > most:
            four, most, sign = k, abs(height), 1 if height > 0 else -1
    return (two, one, three, four) if sign > 0 else (one, two, three, four)


@kernel
def _assign(point, points, new, count, planes, head, after, far):  # type: ignore[no-untyped-def]
    """Puts a point on the list of the first of `new` faces that it lies beyond; far: farthest of each list."""
    for k in range(count):
        face = new[k]
        n = planes[face]
        height = n[0] * points[point, 0] + n[1] * points[point, 1] + n[2] * points[point, 2] - n[3]
        if height > 0:
            if head[face] >= 0 and height <= far[face]:
                # The farthest stays in front.
                after[point] = after[head[face]]
                after[head[face]] = point
            else:
                after[point] = head[face]
                head[face], far[face] = point, height
            return


@kernel
def _open(seed, eye, points, near, planes, seen, visible, rim):  # type: ignore[no-untyped-def]
    """Faces that `eye` sees, and the rim around them as (face, edge); returns how many of each."""
    visible[0], seen[seed] = seed, eye
    many, edges, k = 1, 0, 0
    while k < many:
        face = visible[k]
        k += 1
        for side in range(3):
            other = near[face, side]
            if seen[other] == eye:
                continue
            n = planes[other]
            if n[0] * points[eye, 0] + n[1] * points[eye, 1] + n[2] * points[eye, 2] > n[3]:
                seen[other] = eye
                visible[many] = other
                many += 1
            else:
                rim[edges, 0], rim[edges, 1] = face, side
                edges += 1
    return many, edges


@kernel
def _close(eye, points, edges, rim, new, faces, near, planes, head, entry):  # type: ignore[no-untyped-def]
    """Joins the rim to `eye` with the faces `new`."""
    for k in range(edges):
        old, side, face = rim[k, 0], rim[k, 1], new[k]
        a, b, other = faces[old, side], faces[old, (side + 1) % 3], near[old, side]
        faces[face, 0], faces[face, 1], faces[face, 2] = a, b, eye
        planes[face, 0], planes[face, 1], planes[face, 2], planes[face, 3] = _plane(points, a, b, eye)
        near[face, 0], head[face] = other, -1
        for back in range(3):
            if near[other, back] == old and faces[other, back] == b:
                near[other, back] = face
        entry[a] = face
    for k in range(edges):
        face = new[k]
        following = entry[faces[face, 1]]
        near[face, 1], near[following, 2] = following, face


@kernel
def _quickhull(points):  # type: ignore[no-untyped-def]
    """Vertices, faces, neighbours and normals of the hull of whole numbers that are not all in one plane."""
    count = points.shape[0]
    room = 6 * count + 64
    faces, near = np.empty((room, 3), np.int64), np.empty((room, 3), np.int64)
    planes = np.empty((room, 4), np.int64)
    head, far = np.full(room, -1, np.int64), np.zeros(room, np.int64)
    seen, dead = np.full(room, -1, np.int64), np.zeros(room, np.bool_)
    after, entry = np.full(count, -1, np.int64), np.empty(count, np.int64)
    visible, new, free = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    rim, todo = np.empty((room, 2), np.int64), np.empty(room, np.int64)
    queued = np.zeros(room, np.bool_)
    a, b, c, d = _first_four(points)
    top, spare, waiting = 4, 0, 0
    corners = ((a, b, c), (a, d, b), (b, d, c), (c, d, a))
    beside = ((1, 2, 3), (3, 2, 0), (1, 3, 0), (2, 1, 0))
    for k in range(4):
        new[k] = k
        for j in range(3):
            faces[k, j], near[k, j] = corners[k][j], beside[k][j]
        planes[k, 0], planes[k, 1], planes[k, 2], planes[k, 3] = _plane(points, faces[k, 0], faces[k, 1], faces[k, 2])
        todo[waiting], queued[waiting] = waiting, True
        waiting += 1
    for point in range(count):
        _assign(point, points, new, 4, planes, head, after, far)
    while waiting:
        waiting -= 1
        seed = todo[waiting]
        queued[seed] = False
        if dead[seed] or head[seed] < 0:
            continue
        eye = head[seed]
        many, edges = _open(seed, eye, points, near, planes, seen, visible, rim)
        for k in range(edges):
            if spare:
                spare -= 1
                new[k] = free[spare]
            else:
                new[k] = top
                top += 1
            dead[new[k]], seen[new[k]] = False, -1
        _close(eye, points, edges, rim, new, faces, near, planes, head, entry)
        for k in range(many):
            face = visible[k]
            point = head[face]
            while point >= 0:
                following = after[point]
                if point != eye:
                    _assign(point, points, new, edges, planes, head, after, far)
                point = following
            dead[face], head[face] = True, -1
            free[spare] = face
            spare += 1
        for k in range(edges):
            if head[new[k]] >= 0 and not queued[new[k]]:
                todo[waiting], queued[new[k]] = new[k], True
                waiting += 1
    return _compact(points, faces, near, planes, dead, top)


@kernel
def _compact(points, faces, near, planes, dead, top):  # type: ignore[no-untyped-def]
    """What is left, renumbered."""
    number, vertex = np.full(top, -1, np.int64), np.full(points.shape[0], -1, np.int64)
    count = many = 0
    for face in range(top):
        if dead[face]:
            continue
        number[face] = count
        count += 1
        for k in range(3):
            if vertex[faces[face, k]] < 0:
                vertex[faces[face, k]] = many
                many += 1
    places = np.empty((many, 3), np.int64)
    for point in range(points.shape[0]):
        if vertex[point] >= 0:
            places[vertex[point]] = points[point]
    out, beside = np.empty((count, 3), np.int64), np.empty((count, 3), np.int64)
    normals = np.empty((count, 3), np.int64)
    for face in range(top):
        if not dead[face]:
            for k in range(3):
                out[number[face], k] = vertex[faces[face, k]]
                beside[number[face], k] = number[near[face, k]]
            normals[number[face]] = planes[face, :3]
    return places, out, beside, normals


def hull_size(hull: Hull, steps: FloatArray) -> tuple[float, float]:
    """Volume and area of a hull for voxels of size `steps`, in its units."""
    flux = (hull.points[hull.faces[:, 0]] * hull.normals).sum()
    area = np.linalg.norm(scaled_normals(hull, steps), axis=1).sum() / 2
    return float(flux) / 48 * float(np.prod(steps)), float(area)


def scaled_normals(hull: Hull, steps: FloatArray) -> FloatArray:
    """Normals of the faces for voxels of size `steps`, as long as twice the area."""
    return hull.normals * (np.prod(steps) / steps / 4)
