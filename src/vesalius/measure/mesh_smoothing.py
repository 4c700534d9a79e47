"""Meshes without the steps of the voxels and with fewer triangles, with the distance to what they were.

Smoothing is Taubin's filter (ICCV 1995), which shrinks and grows in turn so that only fine detail goes; what it still
takes from the volume is given back along the normals. Reduction removes edges by the quadric error of Garland and
Heckbert (SIGGRAPH 1997) in the library fast-simplification.
"""

from __future__ import annotations

import numpy as np

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import kernel
from vesalius.measure.mesh_distance import QUANTITIES, deviation, distances, triangle_tree
from vesalius.measure.meshes import IntArray, Mesh, edges

# Pass band 1 / 0.5 - 1 / 0.53 = 0.11.
_SHRINK, _GROW = 0.5, -0.53
# The strongest reduction is looked for between these parts of the triangles and all of them, by halving the interval
# of the logarithm so many times: to 4 percent of the number.
_FEWEST = 0.005
_STEPS = 7
_VOLUME_CHANGE = 0.01
# Removing edges may pinch a mesh at some numbers of triangles and not at others nearby.
_NEARBY = (1.0, 0.98, 1.02, 0.95, 1.05, 0.9, 1.1)
_LEAST = 4
_SAME = {quantity.name: 0.0 for quantity in QUANTITIES}


def smooth(mesh: Mesh, *, iterations: int = 20, max_deviation_mm: float | None = None) -> tuple[Mesh, dict[str, float]]:
    """A smoother mesh with the same triangles, and its deviation from `mesh`.

    Parameters
    ----------
    iterations
        Pairs of a shrinking and a growing step; 0 changes nothing.
    max_deviation_mm
        No vertex moves further than this (in the unit of the vertices), so no point of either surface is further than
        this from the other. Half a voxel removes the steps of the voxels; None sets no limit.

    Returns
    -------
    Mesh, dict[str, float]
        The quantities of `vesalius.measure.mesh_distance.deviation`.

    Raises
    ------
    ValueError
        If the number of iterations or the limit is negative.
    """
    if iterations < 0 or (max_deviation_mm is not None and not max_deviation_mm >= 0):
        raise ValueError(f"iterations and deviation must not be negative, got {iterations} and {max_deviation_mm}")
    if not len(mesh.faces) or not iterations:
        return mesh, dict(_SAME)
    limit = np.inf if max_deviation_mm is None else float(max_deviation_mm)
    pairs = edges(mesh)
    count = np.bincount(pairs.ravel(), minlength=len(mesh.vertices))
    centre = mesh.vertices.mean(axis=0)
    start = mesh.vertices - centre
    places = _taubin(start, pairs, count, iterations)
    for _ in range(3):  # what the limit cuts off, the other vertices have to give
        places = _held(_volume_kept(places, mesh.faces, mesh.volume), start, limit)
    out = Mesh(places + centre, mesh.faces)
    return out, deviation(out, mesh)


def simplify(
    mesh: Mesh, *, ratio: float | None = None, max_deviation_mm: float | None = None
) -> tuple[Mesh, dict[str, float]]:
    """A mesh with fewer triangles, and its deviation from `mesh`. Give a ratio or a deviation.

    Parameters
    ----------
    ratio
        Part of the triangles to keep, above 0 up to 1. Some more or less may be kept, to keep a closed mesh closed; one
        that cannot be reduced so comes back as it is.
    max_deviation_mm
        Search the strongest reduction that is closed if `mesh` is, changes its volume by at most 1 % and is measured to
        lie within this distance (in the unit of the vertices). The number of triangles is found to about 4 %, down to
        0.5 % of them; a larger deviation at fewer triangles is taken to grow further. If there is none, `mesh`
        comes back as it is.

    Returns
    -------
    Mesh, dict[str, float]
        The quantities of `vesalius.measure.mesh_distance.deviation`.

    Raises
    ------
    ValueError
        For none or both of the options, or one out of range.
    """
    if (ratio is None) == (max_deviation_mm is None):
        raise ValueError("give either a ratio of triangles to keep or the largest deviation")
    if ratio is not None:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, got {ratio}")
        out = _reduced(mesh, ratio)
        return out, deviation(out, mesh)
    limit = float(max_deviation_mm or 0)
    if not limit >= 0:
        raise ValueError(f"the largest deviation must not be negative, got {limit}")
    best, told = mesh, dict(_SAME)
    if not len(mesh.faces) or limit == 0:
        return best, told
    closed = mesh.is_watertight
    few, many = np.log(_FEWEST), 0.0
    for step in range(_STEPS + 1):
        kept = few if step == 0 else (few + many) / 2
        made = _reduced(mesh, float(np.exp(kept)))
        sound = not closed or (
            made.is_watertight and abs(made.volume - mesh.volume) <= _VOLUME_CHANGE * abs(mesh.volume)
        )
        # The vertices that were there before tell most failures at a fraction of the cost.
        sound = sound and len(made.faces) > 0
        sound = sound and float(distances(mesh.vertices, triangle_tree(made)).max()) <= limit
        found = deviation(made, mesh) if sound else told
        if sound and found["mesh_deviation_max"] <= limit:
            if len(made.faces) < len(best.faces):
                best, told = made, found
            many = kept
            if step == 0:
                break
        elif step > 0:
            few = kept
    return best, told


def _reduced(mesh: Mesh, ratio: float) -> Mesh:
    """`mesh` with about `ratio` of its triangles, closed and of the same volume to first order if it is closed."""
    if ratio >= 1 or len(mesh.faces) <= _LEAST:
        return mesh
    closed = mesh.is_watertight
    for factor in _NEARBY if closed else (1.0,):
        made = _collapsed(mesh, 1 - min(ratio * factor, 1.0))
        if not closed:
            return made
        if made.is_watertight:  # chords cut off convex parts: give their volume back
            return Mesh(_volume_kept(made.vertices, made.faces, mesh.volume), made.faces)
    return mesh


def _collapsed(mesh: Mesh, reduction: float) -> Mesh:
    """Edges removed until `reduction` of the triangles are gone; vertices that no triangle uses are left out."""
    from fast_simplification import simplify as collapse

    # Near the origin, so that far-off patient coordinates cost no digits.
    centre = mesh.vertices.mean(axis=0)
    places, faces = collapse(mesh.vertices - centre, mesh.faces.astype(np.int32), target_reduction=reduction)[:2]
    faces = np.asarray(faces, dtype=np.int64).reshape(-1, 3)
    proper = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    used, numbers = np.unique(faces[proper], return_inverse=True)
    return Mesh(np.asarray(places, dtype=np.float64)[used] + centre, numbers.reshape(-1, 3))


def _volume_kept(places: FloatArray, faces: IntArray, volume: float) -> FloatArray:
    """`places` moved along the normals until the enclosed volume is `volume`, to first order."""
    normals = _vertex_normals(places, faces)
    size = np.linalg.norm(normals, axis=1)
    rate = float(size.sum()) / 3  # each triangle's area counts for its three corners
    if not rate > 0:
        return places
    missing = volume - Mesh(places, faces).volume
    return places + normals / np.maximum(size, np.finfo(float).tiny)[:, None] * (missing / rate)


def _vertex_normals(places: FloatArray, faces: IntArray) -> FloatArray:
    """``(V, 3)``: sum of the outward area vectors of the triangles around each vertex."""
    a, b, c = places[faces[:, 0]], places[faces[:, 1]], places[faces[:, 2]]
    across = np.cross(b - a, c - a) / 2
    sums = [np.bincount(faces.ravel(), np.repeat(across[:, k], 3), minlength=len(places)) for k in range(3)]
    return np.stack(sums, axis=1)


def _held(places: FloatArray, start: FloatArray, limit: float) -> FloatArray:
    """`places`, none further than `limit` from where it started."""
    move = places - start
    length = np.linalg.norm(move, axis=1)
    scale = np.minimum(1.0, limit / np.maximum(length, np.finfo(float).tiny))
    return start + move * scale[:, None]


@kernel
def _taubin(start, pairs, count, iterations):  # type: ignore[no-untyped-def]
    """Every vertex moved towards, then away from, the mean of its neighbours."""
    now = start.copy()
    total = np.empty_like(now)
    for turn in range(2 * iterations):
        factor = _SHRINK if turn % 2 == 0 else _GROW
        total[:] = 0
        for k in range(len(pairs)):
            a, b = pairs[k]
            for axis in range(3):
                total[a, axis] += now[b, axis]
                total[b, axis] += now[a, axis]
        for v in range(len(now)):
            if count[v] > 0:
                for axis in range(3):
                    now[v, axis] += factor * (total[v, axis] / count[v] - now[v, axis])
    return now
