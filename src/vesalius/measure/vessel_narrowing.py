"""Stenosis candidates: where a vessel is narrower than its own course lets expect."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.quantities import Quantity
from vesalius.measure.vessel_graph import Branch, VesselGraph

# Samples compared in the fit of the healthy calibre: all pairs of at most this many.
_PAIRS_OF = 48
# Samples below this part of the fit are diseased, and left out of the next one.
_HEALTHY, _ROUNDS = 0.88, 4

STENOSIS_QUANTITIES = (
    Quantity("branch", "count", "Number of the branch."),
    Quantity("position", "mm", "Distance of the narrowest place from the first point of the branch, along it."),
    Quantity("narrowed_length", "mm", "Stretch over which at least half of the narrowing is present."),
    Quantity("calibre_narrowest", "mm", "Diameter at the narrowest place."),
    Quantity("calibre_healthy", "mm", "Diameter expected there from the rest of the branch."),
    Quantity(
        "diameter_stenosis",
        "percent",
        "How much the diameter lacks of the one expected.",
        "NASCET, N Engl J Med 1991, 325:445 (reference: fit along the vessel)",
    ),
    Quantity("place_z", "1", "Index z of the narrowest place (3-D only)."),
    Quantity("place_y", "1", "Index y of the narrowest place."),
    Quantity("place_x", "1", "Index x of the narrowest place."),
)


def stenoses(graph: VesselGraph, *, least_percent: float = 25.0) -> dict[str, NDArray[np.float64]]:
    """Candidates, one row each, in the order of the branches; columns as in `STENOSIS_QUANTITIES`.

    The healthy diameter is a straight line along the branch (median of the slopes of all pairs, and of the intercepts:
    Theil-Sen). It begins as the upper quartile of the diameter; samples more than 12 % below it are left out and it is
    fitted again, four times, so that more than half of a branch may be diseased. Stretches fused with other vessels,
    and half a radius before a blind end, are left out, as are branches with less than 1.5 diameters of clear length. A
    candidate is a stretch that lacks `least_percent` or more of the
    diameter at its narrowest place and wins back a quarter of that on both sides within the clear part of the branch:
    a vessel that only tapers, or ends, has none.
    """
    if not 0 < least_percent < 100:
        raise ValueError(f"least_percent must lie between 0 and 100, got {least_percent}")
    degree = graph.degree
    rows: list[dict[str, float]] = []
    for number, branch in enumerate(graph.branches):
        for row in _in_branch(graph, branch, degree, least_percent / 100):
            rows.append({"branch": float(number), **row})
    names = [one.name for one in STENOSIS_QUANTITIES]
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}


def _in_branch(graph: VesselGraph, branch: Branch, degree: NDArray[np.int64], least: float) -> list[dict[str, float]]:
    points = graph.in_mm(branch.points)
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    clear = ~branch.fused
    if degree[branch.first] == 1:
        clear &= along >= branch.radius[0] / 2
    if degree[branch.last] == 1:
        clear &= along <= along[-1] - branch.radius[-1] / 2
    rows = np.flatnonzero(clear)
    if len(rows) < 6 or along[rows[-1]] - along[rows[0]] < 3 * float(np.median(branch.radius[rows])):
        return []
    healthy = _healthy(along[rows], branch.radius[rows])
    lack = 1 - branch.radius[rows] / healthy
    out = []
    rest = lack.copy()
    while rest.max() >= least:
        deepest = int(rest.argmax())
        half = lack[deepest] / 2
        low, high = deepest, deepest
        while low > 0 and lack[low - 1] > half:
            low -= 1
        while high < len(lack) - 1 and lack[high + 1] > half:
            high += 1
        rest[low : high + 1] = -1
        if min(lack[deepest] - lack[: deepest + 1].min(), lack[deepest] - lack[deepest:].min()) < half / 2:
            continue
        at = int(rows[deepest])
        place = branch.points[at]
        found = {
            "position": float(along[at]),
            "narrowed_length": float(along[rows[high]] - along[rows[low]]),
            "calibre_narrowest": 2 * float(branch.radius[at]),
            "calibre_healthy": 2 * float(healthy[deepest]),
            "diameter_stenosis": 100 * float(lack[deepest]),
        }
        found.update({f"place_{axis}": float(x) for axis, x in zip("zyx"[-len(place) :], place, strict=True)})
        out.append(found)
    return out


def _healthy(along: FloatArray, radius: FloatArray) -> FloatArray:
    """A straight line through the calibre of the healthy part, nowhere below half of its median there."""
    some = np.linspace(0, len(along) - 1, min(len(along), _PAIRS_OF)).astype(np.int64)
    x, y = along[some], radius[some]
    slope, offset = 0.0, float(np.quantile(y, 0.75))
    for _ in range(_ROUNDS):
        kept = y >= _HEALTHY * (offset + slope * x)
        if kept.sum() < 3:
            break
        one, two = np.triu_indices(int(kept.sum()), 1)
        slope = float(np.median((y[kept][two] - y[kept][one]) / (x[kept][two] - x[kept][one])))
        offset = float(np.median(y[kept] - slope * x[kept]))
    return np.maximum(offset + slope * along, 0.5 * float(np.quantile(y, 0.75)))
