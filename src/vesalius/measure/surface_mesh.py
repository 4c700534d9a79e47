"""The reference for surface distances: from points of one marching-cubes mesh to the nearest triangle of the other.

The mesh is that of `vesalius.measure.cube` (its contour in an image). Distances of points to triangles are exact; what
is sampled is only where on the first mesh they start. Triangles are cut until no edge is longer than the resolution.
The centroid of each piece stands for its area, in means and percentiles; its corners count for the largest distance
as well. A distance changes by no more than the step along the surface, and no point of a piece is further from a corner
than the resolution divided by the root of 3: the true largest distance exceeds the one found by at most that.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import kernel
from vesalius.measure.cube import CORNERS, EDGES, edge_middles, triangles
from vesalius.measure.surface_points import Surface

# Triangles in a leaf of the tree, on average at most.
_LEAF = 8


def mesh_distances(
    start: Surface,
    goal: Surface,
    spacing: tuple[float, float, float],
    flat: bool,
    resolution: float | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Distances from points of one mesh to the other mesh.

    Parameters
    ----------
    start, goal
        Surface elements of the two masks, on one grid, none of them empty.
    spacing
        (z, y, x) in mm.
    flat
        Whether they are contours in an image.
    resolution
        Longest edge of a piece in mm; None is the smallest spacing.

    Returns
    -------
    Distances ``(N,)`` in mm and the area in mm² (length in mm) that each stands for; corners of pieces weigh 0.
    """
    limit = resolution or min(spacing[1:] if flat else spacing)
    points, weights = _samples(mesh(start, spacing, flat), limit, flat)
    return _to_mesh(points, mesh(goal, spacing, flat)), weights


def mesh(surface: Surface, spacing: tuple[float, float, float], flat: bool) -> FloatArray:
    """``(T, 3, 3)``: corners (z, y, x) in mm of the triangles of the surface; pieces of a contour end twice in a point.

    Voxel (0, 0, 0) of the grid lies at the origin.
    """
    if surface.codes is None:
        raise ValueError("a mesh is made of surface elements, got boundary voxels")
    starts, corners = _segments() if flat else triangles()
    counts = np.diff(starts)[surface.codes]
    first = starts[surface.codes]
    # Row of the table for each triangle: those of its code, one after the other.
    ends = np.cumsum(counts)
    rows = np.arange(ends[-1]) + np.repeat(first - (ends - counts), counts)
    height = surface.points.bits.shape[1]
    row = np.repeat(np.arange(len(surface.points.start) - 1), np.diff(surface.points.start))
    # Cell (z, y, x) begins at the voxel before.
    cells = np.stack(
        [np.zeros_like(row) if flat else row // height - 1, row % height - 1, surface.points.columns - 1], -1
    )
    middles = edge_middles()
    if flat:
        middles[:, 0] = 0
    return np.asarray((np.repeat(cells, counts, axis=0)[:, None] + middles[corners[rows]]) * np.asarray(spacing))


@lru_cache(maxsize=1)
def _segments() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The contour in a cell of four pixels, as `triangles`: each inside corner, or pair of neighbours, is cut off."""
    ring = (0, 1, 3, 2)  # the corners of the plane z = 0, around
    edge = {frozenset(pair): number for number, pair in enumerate(EDGES) if not CORNERS[list(pair), 0].any()}
    starts, rows = [0], []
    for code in range(256):
        inside = [bool(code >> corner & 1) for corner in ring]
        if code & 15 == code >> 4:
            for k in range(4):
                if inside[k] and not inside[k - 1]:
                    last = k
                    while inside[(last + 1) % 4]:
                        last += 1
                    a = edge[frozenset((ring[k - 1], ring[k]))]
                    b = edge[frozenset((ring[last % 4], ring[(last + 1) % 4]))]
                    rows.append((a, b, b))
        starts.append(len(rows))
    return np.array(starts), np.array(rows, dtype=np.int64)


def _samples(corners: FloatArray, limit: float, flat: bool) -> tuple[FloatArray, FloatArray]:
    """Centroids of the pieces with their sizes, and corners of the pieces with 0."""
    sides = corners - np.roll(corners, 1, axis=1)
    pieces = np.maximum(1, np.ceil(np.linalg.norm(sides, axis=-1).max(1) / limit - 1e-9).astype(np.int64))
    if flat:
        sizes = np.linalg.norm(sides[:, 1], axis=-1)
    else:
        sizes = 0.5 * np.linalg.norm(np.cross(sides[:, 1], sides[:, 2]), axis=-1)
    points, weights = [], []
    for count in np.unique(pieces):
        held = pieces == count
        centres, ends = _cut_line(count) if flat else _cut_triangle(count)
        middle = np.einsum("pk,tkd->tpd", centres, corners[held])
        points += [middle.reshape(-1, 3), np.einsum("pk,tkd->tpd", ends, corners[held]).reshape(-1, 3)]
        weights += [np.repeat(sizes[held] / len(centres), len(centres)), np.zeros(len(points[-1]))]
    return np.concatenate(points), np.concatenate(weights)


def _cut_triangle(count: int) -> tuple[FloatArray, FloatArray]:
    """Barycentric centroids and corners of the ``count²`` pieces of a triangle whose edges are cut in `count`."""
    i, j = (part.ravel() for part in np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij"))
    ends = np.stack([i, j], -1)[i + j <= count] / count
    upright = (np.stack([i, j], -1)[i + j < count] + 1 / 3) / count
    turned = (np.stack([i, j], -1)[i + j < count - 1] + 2 / 3) / count
    centres = np.concatenate([upright, turned])
    return _with_third(centres), _with_third(ends)


def _cut_line(count: int) -> tuple[FloatArray, FloatArray]:
    centres, ends = (np.arange(count) + 0.5) / count, np.arange(count + 1) / count
    return tuple(np.stack([1 - part, part, np.zeros_like(part)], -1) for part in (centres, ends))  # type: ignore[return-value]


def _with_third(two: FloatArray) -> FloatArray:
    return np.concatenate([1 - two.sum(-1, keepdims=True), two], axis=-1)


def _to_mesh(points: FloatArray, corners: FloatArray) -> FloatArray:
    """Exact distance of each point to the nearest triangle.

    The triangles stand in the order of a space-filling curve (Morton), so that neighbours in the list are neighbours in
    space. A binary tree of boxes lies over the list; a box is entered only if it is nearer than the best triangle.
    """
    centroids = corners.mean(1)
    low, high = centroids.min(0), centroids.max(0)
    cells = ((centroids - low) / max(float((high - low).max()), 1e-300) * 1023).astype(np.int64)
    place = np.zeros(len(cells), dtype=np.int64)
    for bit in range(10):
        for axis in range(3):
            place |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    ordered = corners[np.argsort(place, kind="stable")]
    leaves = 1 << max(0, int(np.ceil(np.log2(len(ordered) / _LEAF))))
    edges = np.arange(leaves + 1) * len(ordered) // leaves
    boxes = np.empty((2 * leaves, 6))
    boxes[leaves:, :3] = np.minimum.reduceat(ordered.min(1), edges[:-1])
    boxes[leaves:, 3:] = np.maximum.reduceat(ordered.max(1), edges[:-1])
    first = leaves // 2
    while first:  # the two halves of node k are 2 k and 2 k + 1
        below = boxes[2 * first : 4 * first].reshape(first, 2, 6)
        boxes[first : 2 * first, :3] = below[:, :, :3].min(1)
        boxes[first : 2 * first, 3:] = below[:, :, 3:].max(1)
        first //= 2
    places, back = np.unique(points, axis=0, return_inverse=True)
    out = np.empty(len(places))
    _descend(places, ordered, edges, boxes, out)
    return np.asarray(out[back.ravel()])


@kernel
def _descend(points, corners, edges, boxes, out):  # type: ignore[no-untyped-def]
    """Distance of each point to the nearest triangle of the tree."""
    leaves = boxes.shape[0] // 2
    stack = np.empty(128, dtype=np.int64)
    last = 0
    for n in range(points.shape[0]):
        px, py, pz = points[n, 0], points[n, 1], points[n, 2]
        # What was nearest to the point before is not far from this one.
        best = _to_triangle(px, py, pz, corners, last)
        stack[0], size = 1, 1
        while size:
            size -= 1
            node = stack[size]
            if _to_box(px, py, pz, boxes, node) >= best:
                continue
            if node >= leaves:
                for k in range(edges[node - leaves], edges[node - leaves + 1]):
                    square = _to_triangle(px, py, pz, corners, k)
                    if square < best:
                        best, last = square, k
                continue
            near = _to_box(px, py, pz, boxes, 2 * node) > _to_box(px, py, pz, boxes, 2 * node + 1)
            stack[size], stack[size + 1] = 2 * node + (not near), 2 * node + near
            size += 2
        out[n] = np.sqrt(best)


@kernel
def _to_box(px, py, pz, boxes, node):  # type: ignore[no-untyped-def]
    """Squared distance of a point to a box, 0 inside."""
    x = max(boxes[node, 0] - px, px - boxes[node, 3], 0.0)
    y = max(boxes[node, 1] - py, py - boxes[node, 4], 0.0)
    z = max(boxes[node, 2] - pz, pz - boxes[node, 5], 0.0)
    return x * x + y * y + z * z


@kernel
def _to_triangle(px, py, pz, corners, k):  # type: ignore[no-untyped-def]
    """Squared distance: to the plane where the point projects into the triangle, else to the nearest edge."""
    ax, ay, az = corners[k, 0, 0], corners[k, 0, 1], corners[k, 0, 2]
    ux, uy, uz = corners[k, 1, 0] - ax, corners[k, 1, 1] - ay, corners[k, 1, 2] - az
    vx, vy, vz = corners[k, 2, 0] - ax, corners[k, 2, 1] - ay, corners[k, 2, 2] - az
    wx, wy, wz = px - ax, py - ay, pz - az
    uu, uv, vv = ux * ux + uy * uy + uz * uz, ux * vx + uy * vy + uz * vz, vx * vx + vy * vy + vz * vz
    wu, wv = wx * ux + wy * uy + wz * uz, wx * vx + wy * vy + wz * vz
    area = uu * vv - uv * uv  # 0 for a piece of a contour, which has edges only
    if area > 1e-14 * uu * vv:
        s, t = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
        if s >= 0 and t >= 0 and s + t <= 1:
            dx, dy, dz = wx - s * ux - t * vx, wy - s * uy - t * vy, wz - s * uz - t * vz
            return dx * dx + dy * dy + dz * dz
    return min(
        _to_edge(wx, wy, wz, ux, uy, uz),
        _to_edge(wx, wy, wz, vx, vy, vz),
        _to_edge(wx - ux, wy - uy, wz - uz, vx - ux, vy - uy, vz - uz),
    )


@kernel
def _to_edge(wx, wy, wz, ux, uy, uz):  # type: ignore[no-untyped-def]
    """Squared distance of a point to an edge along u, both from the edge's beginning."""
    length = ux * ux + uy * uy + uz * uz
    t = 0.0
    if length > 0:
        t = min(1.0, max(0.0, (wx * ux + wy * uy + wz * uz) / length))
    dx, dy, dz = wx - t * ux, wy - t * uy, wz - t * uz
    return dx * dx + dy * dy + dz * dz
