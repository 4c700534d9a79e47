"""Calibre summaries of the retina: equivalents of the central artery and vein from the widest vessels near the disc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.quantities import Quantity
from vesalius.measure.vessel_graph import VesselGraph

ARTERIOLE, VENULE = 1, 2
# Knudtson et al. 2003: branching coefficients of arterioles and venules.
_COEFFICIENT = {ARTERIOLE: 0.88, VENULE: 0.95}
_VESSELS = 6
# Zone B in radii from the middle of the disc: half to one disc diameter beyond its margin.
_ZONE = (2.0, 3.0)
_SOURCE = "Knudtson et al., Curr Eye Res 2003, 27:143"

FUNDUS_QUANTITIES = (
    Quantity("crae", "mm", "Equivalent of the central retinal artery from the six widest arterioles.", _SOURCE),
    Quantity("crve", "mm", "Equivalent of the central retinal vein from the six widest venules.", _SOURCE),
    Quantity("avr", "1", "Arteriole-to-venule ratio: crae by crve.", _SOURCE),
    Quantity("arterioles", "count", "Arterioles summarised (six, or as many as there are)."),
    Quantity("venules", "count", "Venules summarised (six, or as many as there are)."),
)


def equivalent(calibres: Sequence[float], coefficient: float) -> float:
    """Calibre of the one vessel that would branch into these: the widest is joined with the narrowest, and so on.

    A pair becomes ``coefficient * sqrt(a**2 + b**2)``; with an odd number the middle one waits for the next round.
    NaN for none.
    """
    left = sorted(calibres)
    if not left:
        return float("nan")
    while len(left) > 1:
        pairs = [coefficient * float(np.hypot(left[k], left[-1 - k])) for k in range(len(left) // 2)]
        left = sorted(pairs + ([left[len(left) // 2]] if len(left) % 2 else []))
    return float(left[0])


def retinal_calibres(
    graph: VesselGraph, classes: NDArray[Any], disc: Sequence[float] | None = None
) -> dict[str, float]:
    """Summaries of the calibres of arterioles and venules; keys as in `FUNDUS_QUANTITIES`.

    Parameters
    ----------
    graph
        Of a mask with axes (Y, X).
    classes
        Label map of the same shape: 1 arteriole, 2 venule. A branch has the label of most of its points.
    disc
        Middle (y, x) in index units and radius in mm of the optic disc: the mean calibre of each branch within zone B
        (2 to 3 disc radii from the middle) counts, of pieces at least as long as half the zone is wide. Without it the
        mean calibre of whole branches: a summary *like* that of the paper.

    Raises
    ------
    ValueError
        For a graph or a map with other axes, or a radius that is not positive.
    """
    if len(graph.shape) != 2 or np.shape(classes) != graph.shape:
        raise ValueError(f"classes must be (Y, X) like the mask {graph.shape}, got {np.shape(classes)}")
    if disc is not None and not (len(disc) == 3 and disc[2] > 0):
        raise ValueError(f"disc must be (y, x, radius) with a positive radius, got {disc}")
    labels = np.asarray(classes)
    found: dict[int, list[float]] = {ARTERIOLE: [], VENULE: []}
    for branch in graph.branches:
        points = graph.in_mm(branch.points)
        inside = ~branch.fused
        needed = 0.0
        if disc is not None:
            middle = graph.in_mm(np.array(disc[:2]))
            away = np.linalg.norm(points - middle, axis=1) / disc[2]
            inside &= (away >= _ZONE[0]) & (away <= _ZONE[1])
            needed = 0.5 * (_ZONE[1] - _ZONE[0]) * disc[2]
        step = float(np.linalg.norm(points[1] - points[0]))
        if not inside.any() or inside.sum() * step < needed:
            continue
        cells = np.clip(np.rint(branch.points[inside]).astype(np.int64), 0, np.array(graph.shape) - 1)
        votes = np.bincount(np.clip(labels[tuple(cells.T)].astype(np.int64), 0, VENULE), minlength=VENULE + 1)
        kind = int(votes[1:].argmax()) + 1
        if votes[kind]:
            found[kind].append(2 * float(branch.radius[inside].mean()))
    widest = {kind: sorted(values)[-_VESSELS:] for kind, values in found.items()}
    crae, crve = (equivalent(widest[kind], _COEFFICIENT[kind]) for kind in (ARTERIOLE, VENULE))
    return {
        "crae": crae,
        "crve": crve,
        "avr": crae / crve if crve > 0 else float("nan"),
        "arterioles": float(len(widest[ARTERIOLE])),
        "venules": float(len(widest[VENULE])),
    }
