"""The surface inside one cell of eight voxel centres, for each of the 256 ways they can be inside or outside.

The surface of a mask at level 0.5 (marching cubes: Lorensen and Cline, SIGGRAPH 1987) cuts every edge between an inside
and an outside voxel at its middle, so area and volume in a cell depend on nothing but its eight voxels. They are summed
over a table instead of a mesh. The table is derived here, not copied: in each face of the cell the crossing edges are
joined so that diagonal inside voxels stay apart (neighbouring cells agree on a shared face, so the mesh is closed), and
the pieces are chained to polygons.

A polygon of more than three corners need not be flat. It is cut into the triangles of the largest area on an isotropic
grid: those of the table of Lewiner et al. (J. Graphics Tools 2003, 8:1), which scikit-image uses, and of DeepMind's
surface-distance. Area and volume of equal choices are averaged, so flips and permutations of the axes change nothing.
Those two tables treat a cell with more than four inside corners as the complement of its opposite, which for 44 codes
with a diagonal face leaves holes between cells; here such corners stay apart too. Smooth masks do not have such cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray

# Corner k of a cell lies at (k >> 2 & 1, k >> 1 & 1, k & 1) in (z, y, x); bit k of a code says that it is inside.
CORNERS = np.array([(k >> 2 & 1, k >> 1 & 1, k & 1) for k in range(8)])
# The twelve edges as pairs of corners, the first the lower one.
EDGES = tuple((a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1)
_EDGE_OF = {frozenset(edge): number for number, edge in enumerate(EDGES)}


def edge_middles() -> FloatArray:
    """``(12, 3)``: middle of each edge in index units (z, y, x) within the cell."""
    return np.array([(CORNERS[a] + CORNERS[b]) / 2 for a, b in EDGES])


def _faces() -> list[tuple[int, int, int, int]]:
    """Corners of the six faces, counter-clockwise seen from outside the cell in the right-handed frame (z, y, x)."""
    faces = []
    for axis in range(3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        for side in (0, 1):
            around = [(0, 0), (1, 0), (1, 1), (0, 1)] if side else [(0, 0), (0, 1), (1, 1), (1, 0)]
            corners = []
            for u, v in around:
                place = [0, 0, 0]
                place[axis], place[first], place[second] = side, u, v
                corners.append(place[0] * 4 + place[1] * 2 + place[2])
            faces.append((corners[0], corners[1], corners[2], corners[3]))
    return faces


@lru_cache(maxsize=1)
def polygons() -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Per code the closed polygons of its surface, each a chain of edge numbers.

    Seen from outside the mask a polygon runs counter-clockwise in the frame (z, y, x) taken as right-handed.
    """
    faces = _faces()
    table = []
    for code in range(256):
        follows: dict[int, int] = {}
        for corners in faces:
            inside = [bool(code >> corner & 1) for corner in corners]
            for k in range(4):
                # Each stretch of inside corners of the face is cut off on its own, from where it is entered
                # to where it is left.
                if inside[k] and not inside[k - 1]:
                    last = k
                    while inside[(last + 1) % 4]:
                        last += 1
                    entered = _EDGE_OF[frozenset((corners[k - 1], corners[k]))]
                    left = _EDGE_OF[frozenset((corners[last % 4], corners[(last + 1) % 4]))]
                    follows[entered] = left
        table.append(_chains(follows))
    return tuple(table)


def _chains(follows: dict[int, int]) -> tuple[tuple[int, ...], ...]:
    chains = []
    rest = dict(follows)
    while rest:
        start = min(rest)
        chain, here = [start], rest.pop(start)
        while here != start:
            chain.append(here)
            here = rest.pop(here)
        chains.append(tuple(chain))
    return tuple(chains)


def areas(spacing: Sequence[float]) -> FloatArray:
    """``(256,)``: area of the surface in a cell, in units of `spacing` (z, y, x) squared."""
    middles = edge_middles() * np.asarray(spacing, dtype=np.float64)
    out = np.zeros(256)
    for code, chains in enumerate(polygons()):
        for chain in chains:
            choices = _cuts(chain)
            sizes = np.linalg.norm(_normals(middles[choices]), axis=-1)
            out[code] += 0.5 * float(sizes.sum()) / len(choices)
    return out


@lru_cache(maxsize=1)
def volumes() -> FloatArray:
    """``(256,)``: part of a cell's volume that lies on the inner side of the surface; 0 for code 0, 1 for code 255."""
    out = np.zeros(256)
    middles = edge_middles()
    for code in range(1, 256):
        # Divergence theorem: the solid inside the cell is bounded by the surface and by parts of the cell's faces.
        total = sum(_face_part(code, corners) for corners in _faces())
        for chain in polygons()[code]:
            choices = _cuts(chain)
            total += float(np.einsum("ctd,ctd->", middles[choices[:, :, 0]], _normals(middles[choices]))) / len(choices)
        out[code] = total / 6
    return out


def _normals(corners: FloatArray) -> FloatArray:
    """Normals, twice the area long, of triangles ``(..., 3, 3)``."""
    first = corners[..., 0, :]
    return np.asarray(np.cross(corners[..., 1, :] - first, corners[..., 2, :] - first))


def _cuts(chain: tuple[int, ...]) -> NDArray[np.int64]:
    """``(choices, triangles, 3)`` edge numbers: the ways to cut a polygon that have the largest area."""
    ways = np.array([[[chain[k] for k in corner] for corner in way] for way in _all_cuts(0, len(chain) - 1)])
    sizes = np.linalg.norm(_normals(edge_middles()[ways]), axis=-1).sum(-1)
    return np.asarray(ways[sizes > sizes.max() - 1e-9])


@lru_cache(maxsize=64)
def _all_cuts(first: int, last: int) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """Every triangulation of the polygon with the corners ``first..last``."""
    if last - first < 2:
        return ((),)
    return tuple(
        ((first, middle, last), *left, *right)
        for middle in range(first + 1, last)
        for left in _all_cuts(first, middle)
        for right in _all_cuts(middle, last)
    )


def _face_part(code: int, corners: tuple[int, int, int, int]) -> float:
    """Six times the flux of x/3 through the inside part of a face: its area times its distance, doubled."""
    places = CORNERS[list(corners)]
    axis = int(np.flatnonzero(np.ptp(places, axis=0) == 0)[0])
    if places[0, axis] == 0:
        return 0.0  # the plane through the origin
    inside = [bool(code >> corner & 1) for corner in corners]
    count = sum(inside)
    # A single corner cuts off a triangle of 1/8; two neighbours a half; diagonal ones two triangles.
    diagonal = count == 2 and inside[0] == inside[2]
    area = {0: 0.0, 1: 1 / 8, 2: 1 / 4 if diagonal else 1 / 2, 3: 7 / 8, 4: 1.0}[count]
    return 2 * area


@lru_cache(maxsize=1)
def triangles() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The mesh of every code: ``starts (257,)`` into ``corners (T, 3)`` of edge numbers, oriented as `polygons`.

    Of equally large triangulations the first is taken.
    """
    starts, rows = [0], []
    for chains in polygons():
        for chain in chains:
            rows += _cuts(chain)[0].tolist()
        starts.append(len(rows))
    return np.array(starts), np.array(rows, dtype=np.int64)
