"""Tables of a vessel graph: one row per branch, one per bifurcation.

Curvature is measured on centrelines sampled at even steps, from points a little apart, and only where a branch is not
fused with another: there the line is a straight guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.quantities import Quantity
from vesalius.measure.vessel_graph import Branch, VesselGraph

IntArray = NDArray[np.int64]
Table = dict[str, NDArray[np.float64]]

# Curvature is taken from points this many voxels, or this many radii, before and behind.
_CURVE_VOXELS, _CURVE_RADII = 5.0, 1.0
# A bend counts as a turn of its own if it strays this part of a voxel from the chord of those points.
_TURN = 0.1
# Directions and radii at a bifurcation come from this many radii beyond the fused stretch.
_NEAR_RADII = 3.0

BRANCH_QUANTITIES = (
    Quantity("first_node", "count", "Number of the node at which the branch begins (its end towards the root)."),
    Quantity("last_node", "count", "Number of the node at which the branch ends."),
    Quantity("length", "mm", "Length of the centreline from node to node."),
    Quantity("chord", "mm", "Straight distance between the two nodes of the branch."),
    Quantity("calibre_mean", "mm", "Mean diameter along the branch."),
    Quantity("calibre_sd", "mm", "Standard deviation of the diameter along the branch."),
    Quantity("calibre_min", "mm", "Smallest diameter outside the stretches fused with other vessels."),
    Quantity("calibre_max", "mm", "Largest diameter outside the stretches fused with other vessels."),
    Quantity("arc_chord", "1", "Length by chord; NaN for a ring.", "Hart et al., Int J Med Inform 1999, 53:239"),
    Quantity(
        "sum_of_angles",
        "mm-1",
        "Sum of the angles (radians) by which the centreline turns, by its length; NaN for a branch too short to tell.",
        "Bullitt et al., IEEE Trans Med Imaging 2003, 22:1163 (in-plane angles)",
    ),
    Quantity(
        "inflections",
        "count",
        "How often the centreline changes the side to which it bends.",
        "Bullitt et al., IEEE Trans Med Imaging 2003, 22:1163",
    ),
    Quantity(
        "inflection_count_metric",
        "1",
        "One more than the inflections, times length by chord.",
        "Bullitt et al., IEEE Trans Med Imaging 2003, 22:1163",
    ),
    Quantity(
        "squared_curvature",
        "mm-1",
        "Squared curvature integrated along the centreline.",
        "Hart et al., Int J Med Inform 1999, 53:239",
    ),
    Quantity(
        "grisan_tau",
        "mm-1",
        "(n - 1) / n / length times the sum of (length by chord, less 1) over the n parts between inflections.",
        "Grisan, Foracchia and Ruggeri, IEEE Trans Med Imaging 2008, 27:310",
    ),
    Quantity(
        "generation", "count", "Bifurcations between the root and the branch; the root branch has 0; NaN without root."
    ),
    Quantity(
        "strahler",
        "count",
        "Order of Strahler: 1 for branches that end, one more where two of equal order meet; NaN in pieces with loops.",
        "Strahler, Trans Am Geophys Union 1957, 38:913",
    ),
    Quantity("piece", "count", "Number of the connected piece."),
)

BIFURCATION_QUANTITIES = (
    Quantity("node", "count", "Number of the node."),
    Quantity("parent", "count", "Branch that leads to the root (without a root: the widest)."),
    Quantity("major_daughter", "count", "The wider of the other two branches."),
    Quantity("minor_daughter", "count", "The narrower one."),
    Quantity("angle_daughters", "deg", "Angle between the two daughters."),
    Quantity("angle_major", "deg", "Angle by which the wider daughter departs from the direction of the parent."),
    Quantity("angle_minor", "deg", "Angle by which the narrower daughter departs from the direction of the parent."),
    Quantity("calibre_parent", "mm", "Median diameter of the parent next to the bifurcation."),
    Quantity("calibre_major", "mm", "Median diameter of the wider daughter next to the bifurcation."),
    Quantity("calibre_minor", "mm", "Median diameter of the narrower daughter next to the bifurcation."),
    Quantity(
        "murray_exponent",
        "1",
        "x with parent^x = major^x + minor^x of the diameters (Murray: 3); NaN if a daughter is as wide as the parent.",
        "Murray, PNAS 1926, 12:207",
    ),
    Quantity(
        "area_ratio",
        "1",
        "Sum of the squared diameters of the daughters by that of the parent.",
        "Zamir, J Biomech 1978, 11:57",
    ),
    Quantity("asymmetry", "1", "Diameter of the narrower daughter by that of the wider."),
)


@dataclass(frozen=True, eq=False)
class Tree:
    """Which way branches lead: `parent_node` ``(B,)`` is the node towards the root, -1 in pieces without a root."""

    parent_node: IntArray
    generation: FloatArray
    strahler: FloatArray


def rooted(graph: VesselGraph, roots: NDArray[np.float64] | None = None) -> Tree:
    """Direct all branches away from a root of each piece.

    The root is the end whose branch is widest, or, with `roots` ``(R, ndim)`` in index units, the end nearest to each.
    Branches are reached by the fewest bifurcations. A piece without ends has no root.
    """
    ends, degree, pieces = graph.ends, graph.degree, graph.pieces
    at: list[list[int]] = [[] for _ in graph.nodes]
    for number, (first, last) in enumerate(ends.tolist()):
        at[first].append(number)
        if last != first:
            at[last].append(number)
    starts = _roots(graph, degree, pieces, at, roots)
    parent_node = np.full(len(ends), -1, dtype=np.int64)
    generation = np.full(len(ends), np.nan)
    order: list[int] = []
    seen = set(starts)
    front = [(node, 0) for node in starts]
    while front:
        reached: list[tuple[int, int]] = []
        for node, depth in front:
            for number in at[node]:
                if parent_node[number] >= 0:
                    continue
                parent_node[number], generation[number] = node, depth
                order.append(number)
                other = int(ends[number, 0] + ends[number, 1] - node)
                if other not in seen:
                    seen.add(other)
                    reached.append((other, depth + 1))
        front = reached
    return Tree(parent_node, generation, _strahler(ends, pieces, parent_node, order))


def _roots(
    graph: VesselGraph, degree: IntArray, pieces: IntArray, at: list[list[int]], wanted: NDArray[np.float64] | None
) -> list[int]:
    """One end per piece."""
    tips = np.flatnonzero(degree == 1)
    chosen: dict[int, int] = {}
    if wanted is not None and len(tips):
        for point in np.atleast_2d(np.asarray(wanted, dtype=np.float64)):
            away = np.linalg.norm(graph.in_mm(graph.nodes[tips] - point), axis=1)
            tip = int(tips[away.argmin()])
            chosen.setdefault(int(pieces[tip]), tip)
    widest: dict[int, tuple[float, int]] = {}
    for tip in tips.tolist():
        piece = int(pieces[tip])
        size = float(np.mean(graph.branches[at[tip][0]].radius))
        if piece not in chosen and (piece not in widest or size > widest[piece][0]):
            widest[piece] = (size, tip)
    chosen.update({piece: tip for piece, (_, tip) in widest.items()})
    return [chosen[piece] for piece in sorted(chosen)]


def _strahler(ends: IntArray, pieces: IntArray, parent_node: IntArray, order: list[int]) -> FloatArray:
    out = np.full(len(ends), np.nan)
    nodes, branches = np.bincount(pieces), np.zeros(int(pieces.max()) + 1 if len(pieces) else 0, dtype=np.int64)
    np.add.at(branches, pieces[ends[:, 0]], 1)
    below: dict[int, list[float]] = {}
    for number in reversed(order):
        if branches[pieces[ends[number, 0]]] != nodes[pieces[ends[number, 0]]] - 1:
            continue
        node = int(parent_node[number])
        orders = sorted(below.get(int(ends[number].sum()) - node, []), reverse=True)
        out[number] = 1.0 if not orders else orders[0] + (len(orders) > 1 and orders[0] == orders[1])
        below.setdefault(node, []).append(float(out[number]))
    return out


def branch_table(graph: VesselGraph, tree: Tree) -> Table:
    """One row per branch; columns as in `BRANCH_QUANTITIES`."""
    table = {one.name: np.full(len(graph.branches), np.nan) for one in BRANCH_QUANTITIES}
    pieces = graph.pieces
    side = float(np.exp(np.log(graph.spacing).mean()))
    for row, branch in enumerate(graph.branches):
        turned = tree.parent_node[row] == branch.last
        values = _measured(graph.in_mm(branch.points), branch, side)
        values["first_node"], values["last_node"] = (
            (branch.last, branch.first) if turned else (branch.first, branch.last)
        )
        values["generation"], values["strahler"] = tree.generation[row], tree.strahler[row]
        values["piece"] = pieces[branch.first]
        for name, value in values.items():
            table[name][row] = value
    return table


def _measured(points: FloatArray, branch: Branch, side: float) -> dict[str, float]:
    """Length, calibre and tortuosity of one branch; `points` in mm, `side` of a voxel."""
    gaps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    length, chord = float(gaps.sum()), float(np.linalg.norm(points[-1] - points[0]))
    share = np.zeros(len(points))
    share[1:] += gaps / 2
    share[:-1] += gaps / 2
    calibre = 2 * branch.radius
    mean = float(np.average(calibre, weights=share)) if length > 0 else float(calibre.mean())
    spread = float(np.average((calibre - mean) ** 2, weights=share)) if length > 0 else 0.0
    clear = calibre[~branch.fused] if not branch.fused.all() else calibre
    ratio = length / chord if chord > 0 and branch.first != branch.last else float("nan")
    out = {
        "length": length,
        "chord": chord,
        "calibre_mean": mean,
        "calibre_sd": float(np.sqrt(spread)),
        "calibre_min": float(clear.min()),
        "calibre_max": float(clear.max()),
        "arc_chord": ratio,
    }
    step = length / (len(points) - 1)
    far = max(2, int(np.ceil(max(_CURVE_VOXELS * side, _CURVE_RADII * mean / 2) / step))) if step > 0 else len(points)
    if len(points) < 2 * far + 1:
        return out
    bends = (points[2 * far :] - 2 * points[far:-far] + points[: -2 * far]) / (far * step) ** 2
    known = _unfused(branch.fused, far)
    bends = np.where(known[:, None], bends, 0.0)
    size = np.linalg.norm(bends, axis=1)
    turns = _turns(bends, size, 2 * _TURN * side / (far * step) ** 2) + far
    parts = np.concatenate([[0], turns, [len(points) - 1]])
    along = np.concatenate([[0.0], np.cumsum(gaps)])
    chords = np.linalg.norm(points[parts[1:]] - points[parts[:-1]], axis=1)
    excess = np.diff(along[parts]) / np.where(chords > 0, chords, np.nan) - 1
    count = len(turns) + 1
    out["sum_of_angles"] = float(size.sum() * step / length)
    out["inflections"] = float(len(turns))
    out["inflection_count_metric"] = count * ratio
    out["squared_curvature"] = float((size**2).sum() * step)
    out["grisan_tau"] = float((count - 1) / count / length * excess.sum())
    return out


def _unfused(fused: NDArray[np.bool_], far: int) -> NDArray[np.bool_]:
    """Of the samples with `far` others on both sides, those whose stretch is not fused anywhere."""
    running = np.concatenate([[0], np.cumsum(fused)])
    return np.asarray(running[2 * far + 1 :] == running[: len(running) - 2 * far - 1])


def _turns(bends: FloatArray, size: FloatArray, least: float) -> IntArray:
    """Where the curvature vector turns to the other side, between stretches of curvature above `least`."""
    strong = np.flatnonzero(size > least)
    if len(strong) < 2:
        return np.zeros(0, dtype=np.int64)
    flips = np.flatnonzero((bends[strong[1:]] * bends[strong[:-1]]).sum(axis=1) < 0)
    # The turn lies half-way between the last strong bend to one side and the first to the other.
    return np.asarray((strong[flips] + strong[flips + 1] + 1) // 2)


def bifurcation_table(graph: VesselGraph, tree: Tree) -> Table:
    """One row per node with exactly three branches; columns as in `BIFURCATION_QUANTITIES`."""
    nodes = np.flatnonzero(graph.degree == 3)
    table = {one.name: np.full(len(nodes), np.nan) for one in BIFURCATION_QUANTITIES}
    at: dict[int, list[tuple[int, int]]] = {int(node): [] for node in nodes}
    for number, branch in enumerate(graph.branches):
        for side, node in enumerate((branch.first, branch.last)):
            if node in at:
                at[node].append((number, side))
    for row, node in enumerate(nodes.tolist()):
        arms = []
        for number, side in at[node]:
            way, calibre = _arm(graph, graph.branches[number], side)
            leads_here = tree.parent_node[number] >= 0 and tree.parent_node[number] != node
            arms.append((leads_here, calibre, number, way))
        arms.sort(key=lambda arm: (arm[0], arm[1]), reverse=True)
        (_, wide, parent, to_parent), (_, one, major, first), (_, two, minor, second) = arms
        table["node"][row], table["parent"][row] = node, parent
        table["major_daughter"][row], table["minor_daughter"][row] = major, minor
        table["angle_daughters"][row] = _angle(first, second)
        table["angle_major"][row], table["angle_minor"][row] = _angle(-to_parent, first), _angle(-to_parent, second)
        table["calibre_parent"][row], table["calibre_major"][row], table["calibre_minor"][row] = wide, one, two
        table["murray_exponent"][row] = murray_exponent(wide, one, two)
        table["area_ratio"][row] = (one**2 + two**2) / wide**2
        table["asymmetry"][row] = two / one
    return table


def _arm(graph: VesselGraph, branch: Branch, side: int) -> tuple[FloatArray, float]:
    """Unit direction in which a branch leaves its node (side 0: the first), and its median diameter nearby."""
    turn = slice(None) if side == 0 else slice(None, None, -1)
    points, radius, fused = graph.in_mm(branch.points)[turn], branch.radius[turn], branch.fused[turn]
    clear = np.flatnonzero(~fused)
    start = int(clear[0]) if len(clear) else len(points) // 2
    step = float(np.linalg.norm(points[1] - points[0]))
    more = max(3, int(np.ceil(_NEAR_RADII * float(radius[start]) / max(step, 1e-12))))
    # The far end of a branch may be a bifurcation of its own: keep to the nearer half where there is room.
    stop = min(start + more, max(len(points) // 2, start + 2), len(points) - 1)
    near = radius[start : stop + 1][~fused[start : stop + 1]]
    way = points[stop] - points[0]
    size = float(np.linalg.norm(way))
    return way / size if size > 0 else way, 2 * float(np.median(near if len(near) else radius))


def _angle(one: FloatArray, two: FloatArray) -> float:
    return float(np.degrees(np.arccos(np.clip(one @ two, -1, 1))))


def murray_exponent(parent: float, major: float, minor: float) -> float:
    """x with ``parent**x = major**x + minor**x``; NaN where a daughter is as wide as the parent."""
    if not 0 < minor <= parent or not 0 < major < parent or minor >= parent:
        return float("nan")
    low, high = 0.0, 1.0
    while (major / parent) ** high + (minor / parent) ** high > 1 and high < 1024:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        if (major / parent) ** middle + (minor / parent) ** middle > 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2
