"""Measurements of a vessel mask, from the fundus (Y, X) to angiography (Z, Y, X): docs/vessels.md.

`measure_vessels` builds the graph (`vesalius.measure.vessel_graph`) and everything that follows from it: numbers of the
whole, one row per branch, per bifurcation and per stenosis candidate, and for the retina the calibres of arterioles and
venules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.quantities import Quantity
from vesalius.measure.vessel_fractal import box_dimension
from vesalius.measure.vessel_fundus import FUNDUS_QUANTITIES, retinal_calibres
from vesalius.measure.vessel_graph import VesselGraph, vessel_graph
from vesalius.measure.vessel_narrowing import STENOSIS_QUANTITIES, stenoses
from vesalius.measure.vessel_tables import (
    BIFURCATION_QUANTITIES,
    BRANCH_QUANTITIES,
    Table,
    bifurcation_table,
    branch_table,
    rooted,
)

WHOLE_QUANTITIES = (
    Quantity("total_length", "mm", "Sum of the lengths of all centrelines; 0 for an empty mask."),
    Quantity("mean_calibre", "mm", "Mean diameter, every mm of centreline counting alike; NaN without a centreline."),
    Quantity("median_calibre", "mm", "Median diameter, every mm of centreline counting alike."),
    Quantity("vessel_volume", "mm3", "Voxels of the mask by the volume of one (3-D only)."),
    Quantity("vessel_area", "mm2", "Pixels of the mask by the area of one (2-D only)."),
    Quantity(
        "bifurcations",
        "count",
        "Divisions in two: a node at which k branches meet counts k - 2, so a crossing counts 2.",
    ),
    Quantity("crossings", "count", "Nodes at which four branches or more meet."),
    Quantity("ends", "count", "Blind ends."),
    Quantity("branches", "count", "Vessels between two nodes."),
    Quantity("components", "count", "Connected pieces of the mask (neighbours share a face, an edge or a corner)."),
    Quantity("loops", "count", "Independent rings (first Betti number), without those around holes below sampling."),
    Quantity("length_per_area", "mm-1", "Total length by the area of the field of view (2-D only)."),
    Quantity("length_per_volume", "mm-2", "Total length by the volume of the field of view (3-D only)."),
    Quantity("vessel_density", "1", "Part of the field of view that is vessel."),
    Quantity(
        "fractal_dimension",
        "1",
        "Box-counting dimension of the mask; NaN where it is too small for three box sizes.",
        "Foroutan-pour et al., Appl Math Comput 1999, 105:195",
    ),
    Quantity(
        "skeleton_fractal_dimension",
        "1",
        "Box-counting dimension of the centrelines.",
        "Foroutan-pour et al., Appl Math Comput 1999, 105:195",
    ),
    Quantity("mean_arc_chord", "1", "Mean of length by chord over the branches, weighted by length; rings left out."),
    Quantity("largest_strahler", "count", "Largest Strahler order; NaN if every piece has loops."),
)

QUANTITIES: tuple[Quantity, ...] = (
    *WHOLE_QUANTITIES,
    *FUNDUS_QUANTITIES,
    *BRANCH_QUANTITIES,
    *BIFURCATION_QUANTITIES,
    *STENOSIS_QUANTITIES,
)


@dataclass(frozen=True, eq=False)
class VesselMeasures:
    """What `measure_vessels` found.

    Parameters
    ----------
    graph
        Nodes and centrelines; enough to draw them.
    whole
        Numbers of the whole mask, described by `WHOLE_QUANTITIES`.
    branches, bifurcations, stenoses
        Tables: a column per quantity, described by `BRANCH_QUANTITIES`, `BIFURCATION_QUANTITIES` and
        `STENOSIS_QUANTITIES`; rows of `branches` are those of ``graph.branches``.
    fundus
        Described by `FUNDUS_QUANTITIES`; empty without classes.
    """

    graph: VesselGraph
    whole: dict[str, float]
    branches: Table
    bifurcations: Table
    stenoses: Table
    fundus: dict[str, float]


def measure_vessels(
    mask: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    field: NDArray[Any] | None = None,
    classes: NDArray[Any] | None = None,
    disc: Sequence[float] | None = None,
    roots: NDArray[np.float64] | None = None,
    least_stenosis: float = 25.0,
    **rules: float,
) -> VesselMeasures:
    """Measure a vessel mask.

    Parameters
    ----------
    mask
        ``(Y, X)`` or ``(Z, Y, X)``; what is not 0 is vessel.
    spacing
        mm per axis; None for pixels.
    field
        Field of view, like `mask`; None for all of the image.
    classes
        For a fundus: 1 arteriole, 2 venule, like `mask`.
    disc
        Middle (y, x) in index units and radius in mm of the optic disc.
    roots
        ``(R, ndim)`` in index units: where blood enters. None: the widest end of each piece.
    least_stenosis
        Percent of the diameter that a stenosis candidate lacks at least.
    rules
        Of `vessel_graph`: spur_factor, spur_margin, merge_factor, smallest_hole.

    Raises
    ------
    ValueError
        For axes, shapes, spacing or rules that are not as described.
    """
    graph = vessel_graph(mask, spacing, **rules)
    if field is not None and np.shape(field) != graph.shape:
        raise ValueError(f"field must have the shape of the mask {graph.shape}, got {np.shape(field)}")
    tree = rooted(graph, roots)
    branches = branch_table(graph, tree)
    return VesselMeasures(
        graph=graph,
        whole=_whole(np.asarray(mask), graph, branches, field),
        branches=branches,
        bifurcations=bifurcation_table(graph, tree),
        stenoses=stenoses(graph, least_percent=least_stenosis),
        fundus={} if classes is None else retinal_calibres(graph, classes, disc),
    )


def _whole(mask: NDArray[Any], graph: VesselGraph, branches: Table, field: NDArray[Any] | None) -> dict[str, float]:
    flat = len(graph.shape) == 2
    voxel = float(np.prod(graph.spacing))
    inside = mask != 0
    count = int(np.count_nonzero(inside))
    seen = float(inside.size) if field is None else float(np.count_nonzero(field))
    shown = float(count) if field is None else float(np.count_nonzero(inside & (np.asarray(field) != 0)))
    length, degree = float(branches["length"].sum()), graph.degree
    calibre, share = _along(graph)
    ratio, weight = branches["arc_chord"], branches["length"]
    known = np.isfinite(ratio)
    orders = branches["strahler"][np.isfinite(branches["strahler"])]
    side = float(np.max(graph.spacing))
    lines = np.concatenate([graph.in_mm(one.points) for one in graph.branches]) if graph.branches else np.zeros((0, 2))
    return {
        "total_length": length,
        "mean_calibre": float(np.average(calibre, weights=share)) if length > 0 else float("nan"),
        "median_calibre": _weighted_median(calibre, share),
        "vessel_area" if flat else "vessel_volume": count * voxel,
        "bifurcations": float((degree[degree > 2] - 2).sum()),
        "crossings": float((degree > 3).sum()),
        "ends": float((degree == 1).sum()),
        "branches": float(len(graph.branches)),
        "components": float(graph.pieces.max() + 1 if len(graph.nodes) else 0),
        "loops": float(graph.loops),
        "length_per_area" if flat else "length_per_volume": length / (seen * voxel) if seen else float("nan"),
        "vessel_density": shown / seen if seen else float("nan"),
        "fractal_dimension": box_dimension(np.argwhere(inside) * np.array(graph.spacing), side),
        "skeleton_fractal_dimension": box_dimension(lines, side),
        "mean_arc_chord": float(np.average(ratio[known], weights=weight[known])) if known.any() else float("nan"),
        "largest_strahler": float(orders.max()) if len(orders) else float("nan"),
    }


def _along(graph: VesselGraph) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Diameter at, and length of centreline around, every sample."""
    calibre, share = [np.zeros(0)], [np.zeros(0)]
    for branch in graph.branches:
        half = np.linalg.norm(np.diff(graph.in_mm(branch.points), axis=0), axis=1) / 2
        calibre.append(2 * branch.radius)
        share.append(np.concatenate([half, [0.0]]) + np.concatenate([[0.0], half]))
    return np.concatenate(calibre), np.concatenate(share)


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    if not weights.sum() > 0:
        return float("nan")
    order = np.argsort(values, kind="stable")
    running = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(running, running[-1] / 2)])
