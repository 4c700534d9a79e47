"""From a skeleton to nodes and chains of voxels, and cleaning that net: spurs, close bifurcations, false loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush

import numpy as np

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import kernel
from vesalius.measure.vessel_voxels import Voxels, around, popcount, row_of

_CENTRE = 1 << 13


@dataclass
class Chain:
    """A way between two nodes: places in mm from node to node ``(n, 3)``, and the depth at each ``(n,)``."""

    first: int
    last: int
    points: FloatArray
    depths: FloatArray

    @cached_property
    def length(self) -> float:
        """Sum of the steps in mm."""
        return float(np.linalg.norm(np.diff(self.points, axis=0), axis=1).sum())

    def other(self, node: int) -> int:
        """The node at the other end."""
        return self.last if node == self.first else self.first

    def leaving(self, node: int) -> tuple[FloatArray, FloatArray]:
        """Points and depths in the order in which one walks away from `node`."""
        if node == self.first:
            return self.points, self.depths
        return self.points[::-1], self.depths[::-1]


@dataclass
class Net:
    """Nodes and chains while they are cleaned.

    Parameters
    ----------
    places
        Place of each node in mm.
    depths
        Largest distance in mm from the background over the voxels of the node.
    chains, at, rings
        Chains by number, those at each node, and how many of them begin and end there.
    """

    places: list[FloatArray]
    depths: list[float]
    chains: dict[int, Chain] = field(default_factory=dict)
    at: list[set[int]] = field(default_factory=list)
    rings: dict[int, int] = field(default_factory=dict)

    def degree(self, node: int) -> int:
        """Chain ends at a node; a chain from the node to itself counts twice."""
        return len(self.at[node]) + self.rings.get(node, 0)

    def add(self, key: int, chain: Chain) -> None:
        """Enter a chain."""
        self.chains[key] = chain
        self.at[chain.first].add(key)
        self.at[chain.last].add(key)
        if chain.first == chain.last:
            self.rings[chain.first] = self.rings.get(chain.first, 0) + 1

    def remove(self, key: int) -> Chain:
        """Take a chain out."""
        chain = self.chains.pop(key)
        self.at[chain.first].discard(key)
        self.at[chain.last].discard(key)
        if chain.first == chain.last:
            self.rings[chain.first] -= 1
        return chain

    def dissolve(self, node: int) -> None:
        """Join the two chains of a node that only two are left of, unless it is one ring."""
        if len(self.at[node]) != 2 or self.degree(node) != 2:
            return
        one, two = (self.remove(key) for key in sorted(self.at[node]))
        (here, before), (there, after) = one.leaving(node), two.leaving(node)
        points = np.concatenate([here[::-1], there[1:]])
        depths = np.concatenate([before[::-1], after[1:]])
        self.add(_free(self.chains), Chain(one.other(node), two.other(node), points, depths))


def _free(chains: dict[int, Chain]) -> int:
    return max(chains, default=-1) + 1


def traced(skeleton: Voxels, depth: FloatArray, spacing: tuple[float, ...]) -> Net:
    """The net of a skeleton. `depth` ``(S,)`` is the distance in mm from the background at its voxels.

    Voxels with one neighbour, with none, and groups of touching voxels with three or more are nodes; a ring without
    any is cut at one voxel, which becomes a node of degree 2.
    """
    slab, row, _ = skeleton.steps
    node_of = np.full(len(skeleton), -1, dtype=np.int64)
    nodes = int(_nodes(skeleton.words, skeleton.before, skeleton.address, slab, row, node_of))
    found = _chains(skeleton.words, skeleton.before, skeleton.address, slab, row, node_of, nodes)
    nodes, ends, starts, path = found
    places = skeleton.places(skeleton.address) * np.array(spacing)
    held = node_of >= 0
    count = np.bincount(node_of[held], minlength=nodes)
    middle = np.stack(
        [np.bincount(node_of[held], places[held, axis], minlength=nodes) / np.maximum(count, 1) for axis in range(3)], 1
    )
    deepest = np.zeros(nodes)
    np.maximum.at(deepest, node_of[held], depth[held])
    net = Net(list(middle), deepest.tolist(), at=[set() for _ in range(nodes)])
    for key, (first, last) in enumerate(ends.tolist()):
        inner = path[starts[key] : starts[key + 1]]
        points = np.concatenate([middle[first][None], places[inner], middle[last][None]])
        net.add(key, Chain(first, last, points, np.r_[deepest[first], depth[inner], deepest[last]]))
    return net


def prune_spurs(net: Net, *, factor: float, margin: float) -> int:
    """Take out short chains that end blindly; returns how many.

    A chain from an end to a node of three or more is a spur if the ball inscribed at its end reaches no farther from
    the node than ``factor * depth + margin``, with the depth of the node: it hardly leaves the ball inscribed there.
    Spurs of a node go together, unless nothing else meets there: then the two longest stay. Nodes of which two chains
    are left are dissolved, and it begins again.
    """
    removed = 0
    while True:
        short: dict[int, list[tuple[float, int]]] = {}
        for key, chain in net.chains.items():
            for tip, node in ((chain.first, chain.last), (chain.last, chain.first)):
                if net.degree(tip) == 1 and net.degree(node) > 2:
                    reach = float(np.linalg.norm(net.places[tip] - net.places[node])) + net.depths[tip]
                    if reach <= factor * net.depths[node] + margin:
                        short.setdefault(node, []).append((chain.length, key))
        if not short:
            return removed
        for node, spurs in short.items():
            keep = 2 if len(spurs) == net.degree(node) else 0
            for _, key in sorted(spurs)[: len(spurs) - keep]:
                net.remove(key)
                removed += 1
            net.dissolve(node)


def trim_tails(net: Net, *, factor: float, margin: float) -> None:
    """Cut blind ends back to the first point from which all that follows would be a spur.

    At a blunt end thinning may run into a corner: to a point that the ball inscribed farther back nearly reaches. In
    thin vessels (depth below ``5 * margin``) less of the margin is granted. At most half of a chain goes.
    """
    for key in sorted(net.chains):
        for side in (0, 1):
            chain = net.chains[key]
            tip = chain.last if side else chain.first
            if net.degree(tip) != 1 or len(chain.points) < 3:
                continue
            points, depths = chain.leaving(tip)
            reach = np.linalg.norm(points - points[0], axis=1) + net.depths[tip]
            covered = reach <= factor * depths + np.minimum(margin, 0.2 * depths)
            covered[len(points) // 2 :] = False
            cut = int(np.flatnonzero(covered)[-1]) if covered.any() else 0
            if cut:
                net.remove(key)
                net.places[tip], net.depths[tip] = points[cut], float(depths[cut])
                net.add(key, Chain(tip, chain.other(tip), points[cut:], depths[cut:]))


def merge_close(net: Net, *, factor: float) -> int:
    """Make one node of two that a chain shorter than ``factor * depth`` of the deeper joins, shortest first.

    Only nodes of degree three or more; the new one lies at the deeper node. Returns how many chains went.
    """

    def close(key: int) -> bool:
        chain = net.chains[key]
        return (
            chain.first != chain.last
            and chain.length < factor * max(net.depths[chain.first], net.depths[chain.last])
            and min(net.degree(chain.first), net.degree(chain.last)) > 2
        )

    merged = 0
    while True:
        short = sorted((net.chains[key].length, key) for key in net.chains if close(key))
        if not short:
            return merged
        for _, key in short:
            if close(key):
                _contract(net, key)
                merged += 1


def _contract(net: Net, key: int) -> None:
    """Take out a chain and hang what meets at its shallower node on the deeper one."""
    gone = net.remove(key)
    keep, lost = sorted((gone.first, gone.last), key=lambda node: (-net.depths[node], node))
    for other in sorted(net.at[lost]):
        chain = net.remove(other)
        points = chain.points.copy()
        first, last = chain.first, chain.last
        if first == lost:
            first, points[0] = keep, net.places[keep]
        if last == lost:
            last, points[-1] = keep, net.places[keep]
        net.add(other, Chain(first, last, points, chain.depths))


def false_loops(net: Net, *, hole: float) -> Iterator[FloatArray]:
    """Closed ways ``(n, 3)`` in mm around holes too small to be real.

    A ring of tubes of radius r around a hole of perimeter p is ``p + 2 pi r`` long if the hole is convex. The shortest
    ring through every chain is given if its p, with the mean radius of its chains, is less than `hole`.
    """
    done: set[frozenset[int]] = set()
    limit = hole + 2 * np.pi * max(net.depths, default=0.0)
    for key, chain in net.chains.items():
        ring = _shortest_ring(net, key, limit - chain.length)
        if ring is None or frozenset(ring) in done:
            continue
        done.add(frozenset(ring))
        lengths = np.array([net.chains[one].length for one in ring])
        radius = float(np.concatenate([net.chains[one].depths for one in ring]).mean())
        if lengths.sum() - 2 * np.pi * radius < hole:
            yield np.concatenate([net.chains[one].points for one in ring])


def loops_in(net: Net) -> int:
    """First Betti number: chains less nodes plus pieces."""
    parent = list(range(len(net.places)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    extra = 0
    for chain in net.chains.values():
        one, two = root(chain.first), root(chain.last)
        extra += one == two
        parent[one] = two
    return extra


def _shortest_ring(net: Net, key: int, limit: float) -> list[int] | None:
    """Chains of the shortest ring through chain `key`, or None if the rest of it is longer than `limit`."""
    start, goal = net.chains[key].first, net.chains[key].last
    best: dict[int, float] = {start: 0.0}
    came: dict[int, int] = {}
    waiting = [(0.0, start)]
    while waiting:
        far, node = heappop(waiting)
        if node == goal:
            ring = [key]
            while node != start:
                ring.append(came[node])
                node = net.chains[came[node]].other(node)
            return ring
        if far > best[node]:
            continue
        for other in net.at[node]:
            there = net.chains[other].other(node)
            way = far + net.chains[other].length
            if other != key and way <= limit and way < best.get(there, np.inf):
                best[there], came[there] = way, other
                heappush(waiting, (way, there))
    return None


@kernel
def _neighbours(words, before, address, slab, row, out):  # type: ignore[no-untyped-def]
    """Rows of the neighbours of the voxel at `address`; returns how many."""
    code = around(words, address, slab, row) & ~_CENTRE
    count = 0
    for k in range(27):
        if code >> k & 1:
            out[count] = row_of(words, before, address + (k // 9 - 1) * slab + (k // 3 % 3 - 1) * row + k % 3 - 1)
            count += 1
    return count


@kernel
def _nodes(words, before, address, slab, row, node_of):  # type: ignore[no-untyped-def]
    """Number the nodes: lone voxels, ends, and groups of voxels with three neighbours or more."""
    count = 0
    near = np.empty(26, dtype=np.int64)
    stack = np.empty(address.shape[0], dtype=np.int64)
    for k in range(address.shape[0]):
        if node_of[k] >= 0:
            continue
        found = popcount(np.uint64(around(words, address[k], slab, row) & ~_CENTRE))
        if found == 2:
            continue
        node_of[k] = count
        if found > 2:
            stack[0] = k
            high = 1
            while high > 0:
                high -= 1
                for j in range(_neighbours(words, before, address[stack[high]], slab, row, near)):
                    other = near[j]
                    there = popcount(np.uint64(around(words, address[other], slab, row) & ~_CENTRE))
                    if there > 2 and node_of[other] < 0:
                        node_of[other] = count
                        stack[high] = other
                        high += 1
        count += 1
    return count


@kernel
def _chains(words, before, address, slab, row, node_of, nodes):  # type: ignore[no-untyped-def]
    """Follow every chain once: (number of nodes, ends (C, 2), starts (C + 1,), rows of inner voxels)."""
    total = address.shape[0]
    ends = np.empty((14 * total + 1, 2), dtype=np.int64)
    starts = np.zeros(14 * total + 2, dtype=np.int64)
    path = np.empty(total, dtype=np.int64)
    used = np.zeros(total, dtype=np.bool_)
    near = np.empty(26, dtype=np.int64)
    ahead = np.empty(26, dtype=np.int64)
    count = 0
    filled = 0
    for rings in (False, True):
        for k in range(total):
            if rings:
                if node_of[k] >= 0 or used[k]:
                    continue
                node_of[k] = nodes
                nodes += 1
            elif node_of[k] < 0:
                continue
            for j in range(_neighbours(words, before, address[k], slab, row, near)):
                here = near[j]
                if node_of[here] >= 0:
                    if node_of[here] == node_of[k] or here < k:
                        continue
                elif used[here]:
                    continue
                behind = k
                while node_of[here] < 0:
                    used[here] = True
                    path[filled] = here
                    filled += 1
                    _neighbours(words, before, address[here], slab, row, ahead)
                    step = ahead[0] if ahead[0] != behind else ahead[1]
                    behind, here = here, step
                ends[count, 0] = node_of[k]
                ends[count, 1] = node_of[here]
                count += 1
                starts[count] = filled
    return nodes, ends[:count].copy(), starts[: count + 1].copy(), path[:filled].copy()
