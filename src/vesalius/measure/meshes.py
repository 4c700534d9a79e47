"""Surfaces of labels as closed triangle meshes: marching cubes at level 0.5, and what can be measured on a mesh.

The triangles of a cell come from `vesalius.measure.cube`: every line between a voxel centre inside and one outside is
cut at its middle, and voxels that share an edge or corner only stay apart; so do outside voxels that share a corner
only. Cells that share a cut line share its vertex, so every edge of the mesh has two triangles and there is no gap. The
meshes of two labels touch but never overlap. Outside the array is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray, Grid
from vesalius.measure.boxes import LabelBoxes, checked_labels, label_boxes
from vesalius.measure.compiled import in_threads, kernel
from vesalius.measure.cube import EDGES, triangles
from vesalius.measure.quantities import Quantity

IntArray = NDArray[np.int64]
_LORENSEN = "Lorensen and Cline, SIGGRAPH 1987"

QUANTITIES = (
    Quantity("mesh_area", "mm2", "Sum of the areas of a mesh's triangles; 0 for an empty mesh."),
    Quantity(
        "mesh_volume",
        "mm3",
        "Volume enclosed by a closed mesh (divergence theorem), negative where it is inside out; 0 for an empty mesh, "
        "undefined for an open one.",
        "Zhang and Chen, ICIP 2001",
    ),
    Quantity("mesh_vertices", "count", "Number of vertices of a mesh."),
    Quantity("mesh_triangles", "count", "Number of triangles of a mesh."),
    Quantity("mesh_components", "count", "Number of parts of a mesh that share no vertex; 0 for an empty mesh."),
    Quantity(
        "mesh_euler_number",
        "count",
        "Vertices minus edges plus triangles of a mesh: 2 per closed part without handles, 2 less per handle.",
    ),
    Quantity("mesh_watertight", "1", "1 if each edge of a mesh has two triangles that run along it in opposite ways."),
)


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh.

    Parameters
    ----------
    vertices
        ``(V, 3)`` places (x, y, z): patient LPS mm for a grid with an affine; else column, row and slice times their
        spacing (mm), or plain indices where there is no spacing.
    faces
        ``(F, 3)`` vertex numbers, counter-clockwise seen from outside.
    """

    vertices: FloatArray
    faces: IntArray

    def __post_init__(self) -> None:
        vertices = np.ascontiguousarray(self.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(self.faces, dtype=np.int64)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
            raise ValueError(f"a mesh has vertices (V, 3) and faces (F, 3), got {vertices.shape} and {faces.shape}")
        if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise ValueError(f"faces name vertices {faces.min()} to {faces.max()}, the mesh has {len(vertices)}")
        if not np.isfinite(vertices).all():
            raise ValueError("the vertices of a mesh must be finite")
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", faces)

    @property
    def corners(self) -> FloatArray:
        """``(F, 3, 3)``: the corners of every triangle."""
        return self.vertices[self.faces]

    @property
    def area(self) -> float:
        """Sum of the triangles' areas."""
        return float(triangle_areas(self).sum())

    @property
    def volume(self) -> float:
        """Enclosed volume of a closed mesh, positive with outward triangles."""
        if not len(self.faces):
            return 0.0
        # Seen from a near point, so that far-off patient coordinates cost no digits.
        a, b, c = np.moveaxis(self.corners - self.vertices.mean(axis=0), 1, 0)
        return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)

    @property
    def is_watertight(self) -> bool:
        """Whether every edge belongs to two triangles that run along it in opposite ways; False for an empty mesh."""
        if not len(self.faces):
            return False
        ends = _directed_edges(self)
        forth = ends[:, 0] * len(self.vertices) + ends[:, 1]
        back = ends[:, 1] * len(self.vertices) + ends[:, 0]
        forth.sort()
        back.sort()
        return bool((forth[1:] != forth[:-1]).all() and np.array_equal(forth, back))

    @property
    def euler(self) -> int:
        """Vertices minus edges plus faces; vertices of no face do not count."""
        return len(np.unique(self.faces)) - len(edges(self)) + len(self.faces)

    @property
    def components(self) -> int:
        """Number of parts that share no vertex."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        used = np.unique(self.faces)
        if not len(used):
            return 0
        a, b = np.searchsorted(used, edges(self)).T
        links = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(len(used), len(used)))
        return int(connected_components(links, directed=False)[0])


def measured(mesh: Mesh) -> dict[str, float]:
    """The `QUANTITIES` of a mesh; the volume of a mesh that is not closed is NaN."""
    closed = mesh.is_watertight
    return {
        "mesh_area": mesh.area,
        "mesh_volume": mesh.volume if closed or not len(mesh.faces) else float("nan"),
        "mesh_vertices": float(len(mesh.vertices)),
        "mesh_triangles": float(len(mesh.faces)),
        "mesh_components": float(mesh.components),
        "mesh_euler_number": float(mesh.euler),
        "mesh_watertight": float(closed),
    }


def triangle_areas(mesh: Mesh) -> FloatArray:
    """``(F,)``: area of every triangle."""
    a, b, c = np.moveaxis(mesh.corners, 1, 0)
    return np.asarray(np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2)


def edges(mesh: Mesh) -> IntArray:
    """``(E, 2)``: every edge once, the lower vertex number first, in rising order."""
    ends = np.sort(_directed_edges(mesh), axis=1)
    codes = np.unique(ends[:, 0] * max(len(mesh.vertices), 1) + ends[:, 1])
    return np.stack(np.divmod(codes, max(len(mesh.vertices), 1)), axis=1)


def _directed_edges(mesh: Mesh) -> IntArray:
    return np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])


def mesh_of(labels: NDArray[Any], where: Grid | Sequence[float] | None = None, label: int | None = None) -> Mesh:
    """Surface of a mask, or of one `label` of a label map; everything but 0 without a label.

    Parameters
    ----------
    labels
        ``(Z, Y, X)`` of whole numbers or booleans. An empty mask gives a mesh without vertices.
    where
        The map's grid, its spacing (z, y, x) in mm, or None for index units.

    Raises
    ------
    ValueError
        For other axes, or a grid or spacing that does not fit.
    """
    array = _volume(labels)
    affine = affine_of(where, array.shape)
    inside = array != 0 if label is None else array == label
    boxes = label_boxes(inside)
    return _of_box(inside, boxes, 0, affine) if len(boxes) else Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))


def meshes_of(
    labels: NDArray[Any], where: Grid | Sequence[float] | None = None, *, workers: int | None = None
) -> dict[int, Mesh]:
    """A mesh for every label of a map, by label in rising order; arguments and errors as `mesh_of`."""
    array = _volume(labels)
    affine = affine_of(where, array.shape)
    boxes = label_boxes(array, workers=workers)
    # Large ones first, so that no thread is left alone with one at the end.
    order = np.argsort(-np.prod(boxes.stop - boxes.start, axis=1), kind="stable").tolist()
    made = in_threads(lambda row: _of_box(array, boxes, row, affine), order, workers=workers)
    found = dict(zip(order, made, strict=True))
    return {int(value): found[row] for row, value in enumerate(boxes.values)}


def affine_of(where: Grid | Sequence[float] | None, shape: tuple[int, ...]) -> FloatArray:
    """``(4, 4)``: voxel index (z, y, x, 1) to the places that vertices of a mesh are given in.

    Raises
    ------
    ValueError
        If the grid or spacing does not belong to an array of `shape`.
    """
    if isinstance(where, Grid):
        if where.shape != tuple(shape):
            raise ValueError(f"the map has shape {tuple(shape)}, its grid {where.shape}")
        if where.affine is not None:
            return where.affine
        where = where.spacing_mm
    steps = np.ones(3) if where is None else np.asarray(where, dtype=np.float64)
    if steps.shape != (3,) or not (np.isfinite(steps).all() and (steps > 0).all()):
        raise ValueError(f"spacing must be three positive numbers (z, y, x), got {where}")
    affine = np.eye(4)
    affine[:3, :3] = np.diag(steps)[::-1]
    return affine


def _volume(labels: NDArray[Any]) -> NDArray[Any]:
    array = checked_labels(labels)
    if array.ndim != 3:
        raise ValueError(f"a mesh is made of a volume (Z, Y, X), got shape {array.shape}; outlines are for pictures")
    return array


def _of_box(array: NDArray[Any], boxes: LabelBoxes, row: int, affine: FloatArray) -> Mesh:
    part = boxes.slices(row)
    starts, corners = triangles()
    doubled, faces = _march(array[part], boxes.values[row], starts, corners, _edge_places())
    index = doubled / 2 + boxes.start[row]
    # The table runs counter-clockwise in (z, y, x) taken as right-handed; an affine of negative determinant mirrors it.
    if np.linalg.det(affine[:3, :3]) < 0:
        faces = faces[:, ::-1]
    return Mesh(index @ affine[:3, :3].T + affine[:3, 3], faces.astype(np.int64))


@lru_cache(maxsize=1)
def _edge_places() -> IntArray:
    """``(12, 4)``: of each edge of a cell its lower corner (z, y, x) and its axis, 0 for z."""
    rows = []
    for a, b in EDGES:
        rows.append((a >> 2 & 1, a >> 1 & 1, a & 1, {4: 0, 2: 1, 1: 2}[a ^ b]))
    return np.array(rows)


@kernel
def _march(box, value, starts, corners, places):  # type: ignore[no-untyped-def]
    """Doubled vertices (z, y, x) and faces of the voxels of `box` that equal `value`; outside the box is background."""
    depth, rows, columns = box.shape
    faces, vertices = np.empty((1024, 3), np.int32), np.empty((512, 3), np.int32)
    used = made = 0
    # Vertex on the line from a voxel onwards: along y and x in the two layers of voxels, along z between them.
    lower = np.full((rows + 1, columns + 1, 2), -1, np.int32)
    upper = np.full((rows + 1, columns + 1, 2), -1, np.int32)
    between = np.full((rows + 1, columns + 1), -1, np.int32)
    ids = np.empty(12, np.int32)
    for z in range(-1, depth):
        for y in range(-1, rows):
            code = 0
            for x in range(-1, columns):
                code = (code & 0b10101010) >> 1
                if x + 1 < columns:
                    for k in range(4):
                        cz, cy = z + (k >> 1), y + (k & 1)
                        if 0 <= cz < depth and 0 <= cy < rows and box[cz, cy, x + 1] == value:
                            code |= 2 << (2 * k)
                if code == 0 or code == 255:  # noqa: PLR1714 - a set is slow here
                    continue
                if used + 8 > len(faces):
                    faces = _longer(faces)
                if made + 12 > len(vertices):
                    vertices = _longer(vertices)
                ids[:] = -1
                for t in range(starts[code], starts[code + 1]):
                    for c in range(3):
                        edge = corners[t, c]
                        if ids[edge] < 0:
                            oz, oy, ox, axis = places[edge]
                            vy, vx = y + oy + 1, x + ox + 1
                            if axis == 0:
                                known = between[vy, vx]
                            else:
                                known = upper[vy, vx, axis - 1] if oz else lower[vy, vx, axis - 1]
                            if known < 0:
                                known = made
                                vertices[made, 0] = 2 * (z + oz) + (axis == 0)
                                vertices[made, 1] = 2 * (y + oy) + (axis == 1)
                                vertices[made, 2] = 2 * (x + ox) + (axis == 2)
                                made += 1
                                if axis == 0:
                                    between[vy, vx] = known
                                elif oz:
                                    upper[vy, vx, axis - 1] = known
                                else:
                                    lower[vy, vx, axis - 1] = known
                            ids[edge] = known
                        faces[used, c] = ids[edge]
                    used += 1
        lower, upper = upper, lower
        upper[:] = -1
        between[:] = -1
    return vertices[:made].copy(), faces[:used].copy()


@kernel
def _longer(table):  # type: ignore[no-untyped-def]
    out = np.empty((2 * len(table), table.shape[1]), table.dtype)
    out[: len(table)] = table
    return out
