"""How far two triangle meshes lie apart: exact distances from points of one to the triangles of the other, both ways.

The triangles stand in a tree of boxes over their order along a Morton curve. Points are tried in an order along the
surface, each starting from the triangle that was nearest to the one before, so that most of the tree is never opened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import in_threads, kernel, slabs
from vesalius.measure.meshes import Mesh, triangle_areas
from vesalius.measure.quantities import Quantity

_HAUSDORFF = "Aspert et al., MESH, ICME 2002"
QUANTITIES = (
    Quantity(
        "mesh_deviation_max",
        "mm",
        "Largest distance from a point of one mesh to the nearest triangle of the other, the larger of both ways "
        "(Hausdorff distance over sampled points); undefined if a mesh is empty.",
        _HAUSDORFF,
    ),
    Quantity(
        "mesh_deviation_p95",
        "mm",
        "Distance to the other mesh that 95 percent of a mesh's area stays below, the larger of both ways; undefined "
        "if a mesh is empty.",
        _HAUSDORFF,
    ),
    Quantity(
        "mesh_deviation_mean",
        "mm",
        "Mean distance to the other mesh over the area of both; undefined if a mesh is empty.",
        _HAUSDORFF,
    ),
    Quantity(
        "mesh_deviation_rms",
        "mm",
        "Root of the mean squared distance to the other mesh over the area of both; undefined if a mesh is empty.",
        _HAUSDORFF,
    ),
)
_LEAF = 4  # triangles in a leaf of the tree


@dataclass(frozen=True, eq=False)
class TriangleTree:
    """The triangles of a mesh, ready to be asked for distances.

    Parameters
    ----------
    triangles
        ``(F, 3, 3)`` in the order of the tree's leaves.
    boxes
        ``(nodes, 6)``: lower and upper corner of each node; the children of node n are 2 n + 1 and 2 n + 2.
    """

    triangles: FloatArray
    boxes: FloatArray


def triangle_tree(mesh: Mesh) -> TriangleTree:
    """The tree of a mesh.

    Raises
    ------
    ValueError
        If the mesh has no triangles.
    """
    if not len(mesh.faces):
        raise ValueError("a mesh without triangles has no distance to it")
    corners = mesh.corners
    ordered = np.ascontiguousarray(corners[np.argsort(_morton(corners.mean(axis=1)), kind="stable")])
    leaves = 1 << max(int(np.ceil(np.log2(-(-len(ordered) // _LEAF)))), 0)
    boxes = np.empty((2 * leaves - 1, 6))
    _fill_boxes(ordered, leaves, boxes)
    return TriangleTree(ordered, boxes)


def distances(points: FloatArray, tree: TriangleTree, *, workers: int | None = None) -> FloatArray:
    """``(N,)``: distance from each of the points ``(N, 3)`` to the nearest triangle."""
    places = np.ascontiguousarray(points, dtype=np.float64)
    if places.ndim != 2 or places.shape[1] != 3 or not np.isfinite(places).all():
        raise ValueError(f"points must be finite with axes (N, 3), got shape {places.shape}")
    out = np.empty(len(places))

    def work(part: tuple[int, int]) -> None:
        _nearest(places[part[0] : part[1]], tree.triangles, tree.boxes, out[part[0] : part[1]])

    if len(places):
        in_threads(work, slabs(len(places), 4 * (workers or available_cores())), workers=workers)
    return out


def deviation(mesh: Mesh, reference: Mesh, *, points: int = 50_000, workers: int | None = None) -> dict[str, float]:
    """The `QUANTITIES` between two meshes, in the unit of their vertices.

    Each mesh is sampled at all its vertices and at centres of equal parts of its triangles, about `points` of them but
    one per triangle at least, weighted by the area they stand for; vertices count for the maximum only. The distance
    from a sample to the other mesh is exact.

    Returns
    -------
    dict[str, float]
        ``mesh_deviation_max``, ``mesh_deviation_p95``, ``mesh_deviation_mean``, ``mesh_deviation_rms``; NaN if a mesh
        is empty.
    """
    names = [quantity.name for quantity in QUANTITIES]
    if not len(mesh.faces) or not len(reference.faces):
        return dict.fromkeys(names, float("nan"))
    largest, high, total, squares, weight = 0.0, 0.0, 0.0, 0.0, 0.0
    for this, other in ((mesh, reference), (reference, mesh)):
        places, areas = _samples(this, points)
        found = distances(places, triangle_tree(other), workers=workers)
        largest = max(largest, float(found.max()))
        high = max(high, _percentile(found, areas, 0.95))
        total += float(found @ areas)
        squares += float((found**2) @ areas)
        weight += float(areas.sum())
    mean, rms = (total / weight, float(np.sqrt(squares / weight))) if weight > 0 else (float("nan"),) * 2
    return dict(zip(names, (largest, high, mean, rms), strict=True))


def _samples(mesh: Mesh, points: int) -> tuple[FloatArray, FloatArray]:
    """Places ``(N, 3)`` on a mesh, and the area that each stands for."""
    areas = triangle_areas(mesh)
    # A triangle is cut into n^2 equal parts, at least one.
    per = np.sqrt(areas * points / max(float(areas.sum()), np.finfo(float).tiny))
    cuts = np.maximum(np.rint(per), 1).astype(np.int64)
    count = int((cuts**2).sum())
    places, shares = np.empty((count, 3)), np.empty(count)
    _cut_triangles(mesh.corners, areas, cuts, places, shares)
    used = mesh.vertices[np.unique(mesh.faces)]
    return np.concatenate([places, used]), np.concatenate([shares, np.zeros(len(used))])


def _percentile(values: FloatArray, weights: FloatArray, part: float) -> float:
    order = np.argsort(values, kind="stable")
    running = np.cumsum(weights[order])
    if not running[-1] > 0:
        return float("nan")
    return float(values[order][min(int(np.searchsorted(running, part * running[-1])), len(values) - 1)])


def _morton(points: FloatArray) -> NDArray[np.uint64]:
    """Place of each point on a Morton curve of 2^20 steps per axis."""
    low = points.min(axis=0)
    extent = max(float(np.ptp(points, axis=0).max()), np.finfo(float).tiny)
    steps = ((points - low) / extent * ((1 << 20) - 1)).astype(np.uint64)
    code = np.zeros(len(points), dtype=np.uint64)
    for bit in range(20):
        for axis in range(3):
            code |= (steps[:, axis] >> np.uint64(bit) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return code


@kernel
def _fill_boxes(triangles, leaves, boxes):  # type: ignore[no-untyped-def]
    boxes[:, :3] = np.inf
    boxes[:, 3:] = -np.inf
    for t in range(len(triangles)):
        box = boxes[leaves - 1 + t // _LEAF]
        for c in range(3):
            for axis in range(3):
                box[axis] = min(box[axis], triangles[t, c, axis])
                box[3 + axis] = max(box[3 + axis], triangles[t, c, axis])
    for node in range(leaves - 2, -1, -1):
        for axis in range(3):
            boxes[node, axis] = min(boxes[2 * node + 1, axis], boxes[2 * node + 2, axis])
            boxes[node, 3 + axis] = max(boxes[2 * node + 1, 3 + axis], boxes[2 * node + 2, 3 + axis])


@kernel
def _to_box(point, box):  # type: ignore[no-untyped-def]
    total = 0.0
    for axis in range(3):
        gap = max(box[axis] - point[axis], point[axis] - box[3 + axis], 0.0)
        total += gap * gap
    return total


@kernel
def _nearest(points, triangles, boxes, out):  # type: ignore[no-untyped-def]
    """Depth-first search, the nearer child first; `out` receives distances."""
    leaves = (len(boxes) + 1) // 2
    stack = np.empty(128, np.int64)
    near = 0
    for p in range(len(points)):
        point = points[p]
        best = _to_triangle(point, triangles[near])
        stack[0] = 0
        height = 1
        while height > 0:
            height -= 1
            node = stack[height]
            if _to_box(point, boxes[node]) >= best:
                continue
            if node >= leaves - 1:
                first = (node - leaves + 1) * _LEAF
                for t in range(first, min(first + _LEAF, len(triangles))):
                    distance = _to_triangle(point, triangles[t])
                    if distance < best:
                        best, near = distance, t
                continue
            one, two = 2 * node + 1, 2 * node + 2
            if _to_box(point, boxes[one]) < _to_box(point, boxes[two]):
                one, two = two, one
            stack[height], stack[height + 1] = one, two
            height += 2
        out[p] = np.sqrt(best)


@kernel
def _to_triangle(point, corners):  # type: ignore[no-untyped-def]
    """Squared distance: to the plane where the foot lies inside the triangle, else to the nearest of its sides."""
    ox, oy, oz = corners[0, 0], corners[0, 1], corners[0, 2]
    ux, uy, uz = corners[1, 0] - ox, corners[1, 1] - oy, corners[1, 2] - oz
    vx, vy, vz = corners[2, 0] - ox, corners[2, 1] - oy, corners[2, 2] - oz
    px, py, pz = point[0] - ox, point[1] - oy, point[2] - oz
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    square = nx * nx + ny * ny + nz * nz
    if square > 0:
        # Twice the signed areas of the parts opposite the third and second corner, times the normal's length.
        third = (uy * pz - uz * py) * nx + (uz * px - ux * pz) * ny + (ux * py - uy * px) * nz
        second = (py * vz - pz * vy) * nx + (pz * vx - px * vz) * ny + (px * vy - py * vx) * nz
        if third >= 0 and second >= 0 and third + second <= square:
            height = px * nx + py * ny + pz * nz
            return height * height / square
    return min(
        _to_side(point, corners[0], corners[1]),
        _to_side(point, corners[1], corners[2]),
        _to_side(point, corners[2], corners[0]),
    )


@kernel
def _to_side(point, start, end):  # type: ignore[no-untyped-def]
    length = along = 0.0
    for axis in range(3):
        length += (end[axis] - start[axis]) ** 2
        along += (point[axis] - start[axis]) * (end[axis] - start[axis])
    part = min(max(along / length, 0.0), 1.0) if length > 0 else 0.0
    total = 0.0
    for axis in range(3):
        total += (point[axis] - start[axis] - part * (end[axis] - start[axis])) ** 2
    return total


@kernel
def _cut_triangles(corners, areas, cuts, places, shares):  # type: ignore[no-untyped-def]
    """Centres of the n^2 equal parts of every triangle, n = `cuts`."""
    row = 0
    for t in range(len(corners)):
        n = cuts[t]
        for i in range(n):
            for j in range(n - i):
                for flipped in range(2):
                    if flipped == 1 and i + j > n - 2:
                        continue
                    u = (i + (1 + flipped) / 3) / n
                    v = (j + (1 + flipped) / 3) / n
                    for axis in range(3):
                        origin = corners[t, 0, axis]
                        places[row, axis] = (
                            origin + u * (corners[t, 1, axis] - origin) + v * (corners[t, 2, axis] - origin)
                        )
                    shares[row] = areas[t] / (n * n)
                    row += 1
