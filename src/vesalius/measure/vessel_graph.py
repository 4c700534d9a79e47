"""The graph of a vessel mask: nodes, and branches as centrelines with the radius along them.

1. The mask is thinned (`vesalius.measure.skeleton`); cavities of a volume are filled first.
2. Rings around holes narrower than sampling can tell are closed, and the mask is thinned again.
3. Spurs are pruned, bifurcations closer than the local radius merged (`vesalius.measure.vessel_trace`).
4. Centrelines are smoothed and moved to the centres of their cross-sections (`vesalius.measure.vessel_lines`).
5. Nodes move to where the straight continuations of their branches meet, blind ends to where the axis of the vessel
   ends (`vesalius.measure.vessel_ends`).
6. The radius is that of the circle with the area of the cross-section; in a plane half the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_spacing
from vesalius.measure.skeleton import thinned
from vesalius.measure.vessel_ends import Scale, moved_nodes, tips
from vesalius.measure.vessel_lines import (
    IntArray,
    Lines,
    Sections,
    evenly,
    owners,
    section_means,
    sections,
    smoothed,
    spread_along,
)
from vesalius.measure.vessel_trace import Net, false_loops, loops_in, merge_close, prune_spurs, traced, trim_tails
from vesalius.measure.vessel_voxels import Voxels, checked_volume, packed, squared_depths

# Centrelines are smoothed over this many voxels, or this part of the radius where that is more.
_SMOOTH_VOXELS, _SMOOTH_RADII = 2.0, 1.0
# Cross-sections are averaged over this many voxels, or this part of the radius.
_MEAN_VOXELS, _MEAN_RADII = 1.5, 0.5
# The distance to the nearest voxel centre outside is about this part of a voxel more than the radius of a thin tube.
_DEPTH_EXCESS = 0.3
# How often false loops are closed at most; one round nearly always does.
_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class Branch:
    """A vessel between two nodes.

    Parameters
    ----------
    first, last
        Numbers of its nodes; equal for a ring.
    points
        ``(n, ndim)`` in index units, evenly spaced in mm, from node to node.
    radius
        ``(n,)`` in mm.
    fused
        ``(n,)``: where the vessel cannot be told from another; the radius there is interpolated.
    """

    first: int
    last: int
    points: FloatArray
    radius: FloatArray
    fused: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class VesselGraph:
    """Centrelines of a vessel mask.

    Parameters
    ----------
    shape
        Of the mask.
    spacing
        mm per axis; ones if `physical` is false.
    nodes
        ``(K, ndim)`` places in index units: ends, bifurcations, pieces without length, and one per ring.
    depth
        ``(K,)``: radius in mm of the ball inscribed at each node.
    branches
        All vessels between nodes.
    spurs, merged, closed
        How many spurs were pruned, bifurcations merged with another, and rings around too small holes closed.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    physical: bool
    nodes: FloatArray
    depth: FloatArray
    branches: tuple[Branch, ...]
    spurs: int = 0
    merged: int = 0
    closed: int = 0

    @property
    def ends(self) -> IntArray:
        """``(B, 2)``: first and last node of each branch."""
        return np.array([(one.first, one.last) for one in self.branches], dtype=np.int64).reshape(-1, 2)

    @property
    def degree(self) -> IntArray:
        """``(K,)``: branch ends at each node; a ring counts twice."""
        return np.bincount(self.ends.ravel(), minlength=len(self.nodes))

    @property
    def pieces(self) -> IntArray:
        """``(K,)``: the connected piece of each node, numbered from 0 in the order of their first nodes."""
        parent = list(range(len(self.nodes)))

        def root(node: int) -> int:
            while parent[node] != node:
                parent[node] = node = parent[parent[node]]
            return node

        for first, last in self.ends.tolist():
            one, two = root(first), root(last)
            parent[max(one, two)] = min(one, two)
        _, number = np.unique([root(node) for node in range(len(parent))], return_inverse=True)
        return np.asarray(number, dtype=np.int64)

    @property
    def loops(self) -> int:
        """First Betti number: branches less nodes plus pieces."""
        return len(self.branches) - len(self.nodes) + (int(self.pieces.max()) + 1 if len(self.nodes) else 0)

    def in_mm(self, points: FloatArray) -> FloatArray:
        """Index units to mm from the first voxel's centre."""
        return np.asarray(points * np.array(self.spacing))


def vessel_graph(
    mask: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    spur_factor: float = 1.45,
    spur_margin: float = 1.5,
    merge_factor: float = 1.0,
    smallest_hole: float = 8.0,
) -> VesselGraph:
    """The graph of a vessel mask.

    Parameters
    ----------
    mask
        ``(Y, X)`` or ``(Z, Y, X)``; what is not 0 is vessel. Outside the array is background. An empty mask has an
        empty graph.
    spacing
        mm per axis; None for pixels.
    spur_factor, spur_margin
        A blind branch is a spur if the ball inscribed at its end reaches no farther from the bifurcation than
        ``spur_factor * R + spur_margin`` voxels, R being the inscribed radius at the bifurcation.
    merge_factor
        Two bifurcations are one if the way between them is shorter than ``merge_factor * R`` of the larger.
    smallest_hole
        Perimeter in voxels below which a hole that a ring goes around is a flaw of sampling, and is closed.

    Raises
    ------
    ValueError
        For other axes, values that are not finite, a spacing that is not positive, or negative factors.
    """
    for name, value in {"spur_factor": spur_factor, "spur_margin": spur_margin, "merge_factor": merge_factor}.items():
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    ndim = np.ndim(mask)
    volume = checked_volume(mask)
    steps = checked_spacing(spacing, ndim)
    scale = Scale(ndim, np.array((1.0,) * (3 - ndim) + steps))
    voxels, net, closed = _net(packed(volume), scale, smallest_hole)
    lone = {node for node, at in enumerate(net.at) if not at}
    spurs, merged = _cleaned(net, spur_factor, spur_margin * scale.side, merge_factor)
    kept = np.array([node for node, at in enumerate(net.at) if at or node in lone], dtype=np.int64)
    depths = np.array(net.depths)[kept] if len(kept) else np.zeros(0)
    places = np.array(net.places)[kept] if len(kept) else np.zeros((0, 3))
    branches: tuple[Branch, ...] = ()
    if net.chains:
        places, branches = _branches(voxels, net, kept, scale)
    return VesselGraph(
        shape=tuple(np.shape(mask)),
        spacing=steps,
        physical=spacing is not None,
        nodes=(places / scale.spacing)[:, 3 - ndim :],
        depth=depths,
        branches=branches,
        spurs=spurs,
        merged=merged,
        closed=closed,
    )


def _cleaned(net: Net, spur_factor: float, spur_margin: float, merge_factor: float) -> tuple[int, int]:
    """Prune and merge in turn until nothing changes, then trim the tails: how many spurs and merged nodes."""
    spurs = merged = 0
    while True:
        pruned = prune_spurs(net, factor=spur_factor, margin=spur_margin)
        joined = merge_close(net, factor=merge_factor)
        spurs, merged = spurs + pruned, merged + joined
        if not joined:
            break
    trim_tails(net, factor=spur_factor, margin=spur_margin)
    return spurs, merged


def _net(voxels: Voxels, scale: Scale, smallest_hole: float) -> tuple[Voxels, Net, int]:
    """Thin and trace; close false loops in the mask and do it again."""
    spacing = tuple(scale.spacing.tolist())
    closed = rounds = 0
    while True:
        squared = squared_depths(voxels, spacing)
        skeleton = Voxels(thinned(voxels, squared, spacing), voxels.shape)
        depth = np.sqrt(squared[np.searchsorted(voxels.address, skeleton.address)])
        net = traced(skeleton, depth, spacing)
        rings = list(false_loops(net, hole=smallest_hole * scale.side)) if rounds < _ROUNDS and loops_in(net) else []
        if not rings:
            return voxels, net, closed
        closed, rounds = closed + len(rings), rounds + 1
        voxels = _with_rings_closed(voxels, rings, scale)


def _with_rings_closed(voxels: Voxels, rings: list[FloatArray], scale: Scale) -> Voxels:
    """The mask and, for each ring, the lines from its points to their mean: a disc across the hole."""
    volume = voxels.dense()
    for ring in rings:
        middle = ring.mean(axis=0)
        far = np.linalg.norm((ring - middle) / scale.spacing, axis=1).max()
        parts = np.linspace(0, 1, int(4 * far) + 2)[:, None, None]
        cells = np.rint((ring * (1 - parts) + middle * parts) / scale.spacing).astype(np.int64).reshape(-1, 3)
        volume[tuple(cells.T)] = True
    return packed(volume.view(np.uint8))


def _branches(voxels: Voxels, net: Net, kept: IntArray, scale: Scale) -> tuple[FloatArray, tuple[Branch, ...]]:
    """Nodes in mm and branches with their radius."""
    number = {int(node): k for k, node in enumerate(kept)}
    chains = [net.chains[key] for key in sorted(net.chains)]
    ends = np.array([(number[one.first], number[one.last]) for one in chains])
    degree = np.bincount(ends.ravel(), minlength=len(kept))
    places, depths = np.array(net.places)[kept], np.array(net.depths)[kept]
    starts = np.concatenate([[0], np.cumsum([len(one.points) for one in chains])]).astype(np.int64)
    table = np.concatenate([np.column_stack([one.points, one.depths]) for one in chains])
    counts = np.array([max(4, round(one.length / scale.step) + 1) for one in chains])
    table, starts = evenly(table, starts, counts)
    depth = np.maximum(table[:, 3] - _DEPTH_EXCESS * scale.side, 0.3 * scale.side)
    closed = (ends[:, 0] == ends[:, 1]) & (degree[ends[:, 0]] == 2)
    lines = Lines(np.ascontiguousarray(table[:, :3]), starts, closed)
    where = (voxels.places(voxels.address) * scale.spacing).astype(np.float32)
    owner, found = _centred(voxels, where, lines, depth, scale)
    radius = _radii(found, lines, depth, scale)
    placed, cut = moved_nodes(lines, ends, places, depths, degree, found.fused, radius, scale)
    ended = tips(lines, ends, degree, radius, voxels, where, owner, scale, found.fused, cut)
    for (branch, side), place in ended.items():
        placed[ends[branch, side]] = place
    placed[ends[closed, 0]] = lines.points[starts[:-1][closed]]
    lines = _joined(lines, ends, placed, cut, degree)
    found = sections(voxels, where, scale.voxel, lines, owner, depth / scale.step, move=True)
    radius = _radii(found, lines, depth, scale)
    index = (lines.points / scale.spacing)[:, 3 - scale.ndim :]
    branches = tuple(
        Branch(int(first), int(last), index[low:high], radius[low:high], found.fused[low:high])
        for (first, last), low, high in zip(ends, starts[:-1], starts[1:], strict=True)
    )
    return placed, branches


def _centred(
    voxels: Voxels, where: NDArray[np.float32], lines: Lines, depth: FloatArray, scale: Scale
) -> tuple[NDArray[np.int32], Sections]:
    """Smooth `lines` in place and move them to the centres of the cross-sections; ends stay."""
    sigma = np.maximum(_SMOOTH_VOXELS * scale.side, _SMOOTH_RADII * depth) / scale.step
    reach = depth / scale.step
    lines.points = smoothed(lines, sigma)
    owner = owners(voxels, where, scale.spacing, lines)
    inner = np.ones(len(lines.points), dtype=np.bool_)
    inner[lines.starts[:-1]] = inner[lines.starts[1:] - 1] = False
    found = sections(voxels, where, scale.voxel, lines, owner, reach, move=False)
    lines.points = lines.points + np.where((inner & ~found.fused)[:, None], found.shift, 0.0)
    lines.points = smoothed(lines, sigma)
    return owner, sections(voxels, where, scale.voxel, lines, owner, reach, move=True)


def _radii(found: Sections, lines: Lines, depth: FloatArray, scale: Scale) -> FloatArray:
    """Radius in mm at each sample; widens ``found.fused`` by one sample, which shares its slabs' voxels."""
    branch = lines.branch_of()
    beside = branch[1:] == branch[:-1]
    wide = found.fused.copy()
    wide[1:] |= found.fused[:-1] & beside
    wide[:-1] |= found.fused[1:] & beside
    found.fused = wide
    sigma = np.maximum(_MEAN_VOXELS * scale.side, _MEAN_RADII * depth) / scale.step
    section = section_means(found, lines.starts, ~wide, sigma)
    radius = spread_along(scale.radius_of(section), ~wide & (section > 0), lines.starts)
    return np.where(np.isnan(radius), depth, radius)


def _joined(lines: Lines, ends: IntArray, placed: FloatArray, cut: IntArray, degree: IntArray) -> Lines:
    """Branches from node to node: straight over what was cut, resampled to as many samples as before."""
    pieces, lengths = [], []
    for branch in range(len(ends)):
        low, high = int(lines.starts[branch] + cut[branch, 0]), int(lines.starts[branch + 1] - cut[branch, 1])
        inner = lines.points[low:high]
        first, last = placed[ends[branch, 0]][None], placed[ends[branch, 1]][None]
        # A node that did not move is still the first sample; a second copy of it would be a step of length 0.
        points = np.concatenate([first, inner[int(cut[branch, 0] == 0) : len(inner) - int(cut[branch, 1] == 0)], last])
        pieces.append(points)
        lengths.append(len(points))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    points, fresh = evenly(np.concatenate(pieces), starts, np.diff(lines.starts))
    return replace(lines, points=points, starts=fresh)


def total_length(graph: VesselGraph) -> float:
    """Sum of the branches' lengths in mm."""
    return float(sum(np.linalg.norm(np.diff(graph.in_mm(one.points), axis=0), axis=1).sum() for one in graph.branches))
