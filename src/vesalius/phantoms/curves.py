"""Branching trees of straight pieces without crossings, in the plane and in space.

Branching follows Murray's law (PNAS 12:207, 1926): the cubes of the radii of two daughters add up to that of the
parent. A piece that would come too near to another is turned; if no turn helps, its branch ends there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.phantoms.phantom import Array

_TRIES = 12


@dataclass
class Tree:
    """A rooted tree of straight pieces.

    Parameters
    ----------
    nodes
        Points ``(N, D)`` in index units, node 0 is the root.
    edges
        Pairs (from, to), away from the root.
    radii
        One per edge, in index units.
    """

    nodes: list[FloatArray]
    edges: list[tuple[int, int]] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Number of pieces at each node."""
        return np.bincount(np.array(self.edges, dtype=int).ravel(), minlength=len(self.nodes))

    @property
    def lengths(self) -> FloatArray:
        """Length of each piece in index units."""
        return np.array([np.linalg.norm(self.nodes[end] - self.nodes[start]) for start, end in self.edges])

    def add(self, start: int, point: FloatArray, radius: float) -> int:
        """A new piece from node `start`; returns the new node."""
        self.nodes.append(point)
        self.edges.append((start, len(self.nodes) - 1))
        self.radii.append(radius)
        return len(self.nodes) - 1


@dataclass(frozen=True)
class Growth:
    """How a tree grows; lengths in index units.

    Parameters
    ----------
    low, high
        Corners ``(D,)`` of the box that it stays in.
    gap
        Clear space between pieces that do not meet.
    piece, branch
        Length of a piece, and number of pieces between two bifurcations at the thickest vessels.
    thinnest
        Branches below this radius end.
    bend
        Standard deviation of the turn between pieces, in radians.
    """

    low: FloatArray
    high: FloatArray
    gap: float
    piece: float
    branch: int
    thinnest: float
    bend: float = 0.16


def grow(draw: np.random.Generator, root: FloatArray, heading: FloatArray, radius: float, rule: Growth) -> Tree:
    """A tree from `root` in direction `heading`, thickest branches first."""
    tree = Tree([np.asarray(root, dtype=np.float64)])
    waiting = [(radius, 0, np.asarray(heading, dtype=np.float64))]
    while waiting:
        waiting.sort(key=lambda item: item[0])
        width, start, direction = waiting.pop()
        count = max(2, round(rule.branch * (width / radius) ** 0.5 * draw.uniform(0.7, 1.3)))
        end, direction = _branch(draw, tree, start, direction, width, count, rule)
        if end != start:
            waiting += _fork(draw, tree, end, direction, width, rule)
    return tree


def _branch(
    draw: np.random.Generator, tree: Tree, start: int, direction: FloatArray, radius: float, count: int, rule: Growth
) -> tuple[int, FloatArray]:
    """Up to `count` pieces one after the other; the last node and direction."""
    for _ in range(count):
        for _ in range(_TRIES):
            turned = _turned(draw, direction, draw.normal(0, rule.bend))
            point = tree.nodes[start] + turned * rule.piece
            if _free(tree, start, point, radius, rule):
                start, direction = tree.add(start, point, radius), turned
                break
        else:
            break
    return start, direction


def _fork(
    draw: np.random.Generator, tree: Tree, end: int, direction: FloatArray, radius: float, rule: Growth
) -> list[tuple[float, int, FloatArray]]:
    """Two first pieces of daughters at `end`, or none: a node with one daughter would be no bifurcation."""
    share = draw.uniform(0.3, 0.5)
    radii = (radius * (1 - share) ** (1 / 3), radius * share ** (1 / 3))
    if min(radii) < rule.thinnest:
        return []
    for _ in range(_TRIES):
        angle = draw.uniform(0.45, 0.75)
        first = _turned(draw, direction, angle)
        # The other daughter leaves on the other side, in the same plane.
        across = first - direction * float(first @ direction)
        across /= np.linalg.norm(across)
        second = direction * np.cos(angle * 1.25) - across * np.sin(angle * 1.25)
        points = [tree.nodes[end] + way * rule.piece for way in (first, second)]
        if all(_free(tree, end, point, width, rule) for point, width in zip(points, radii, strict=True)):
            return [
                (width, tree.add(end, point, width), way)
                for point, width, way in zip(points, radii, (first, second), strict=True)
            ]
    return []


def _turned(draw: np.random.Generator, direction: FloatArray, angle: float) -> FloatArray:
    """`direction` turned by `angle` into a random plane (in 2-D, to a random side)."""
    across = draw.standard_normal(len(direction))
    across -= direction * float(across @ direction)
    across /= np.linalg.norm(across)
    return direction * np.cos(angle) + across * np.sin(angle)


def _free(tree: Tree, start: int, point: FloatArray, radius: float, rule: Growth) -> bool:
    """Whether a piece to `point` stays in the box and clear of all pieces that do not end at `start`."""
    if (point - radius < rule.low).any() or (point + radius > rule.high).any():
        return False
    others = [index for index, edge in enumerate(tree.edges) if start not in edge]
    if not others:
        return True
    samples = tree.nodes[start] + np.linspace(0.0, 1.0, 7)[:, None] * (point - tree.nodes[start])
    begins = np.stack([tree.nodes[tree.edges[index][0]] for index in others])
    ends = np.stack([tree.nodes[tree.edges[index][1]] for index in others])
    near = segment_distance(samples[:, None], begins, ends).min(axis=0)
    # Pieces one step away meet this one through a short neighbour: they need no more than their own width.
    family = {node for edge in tree.edges if start in edge for node in edge}
    kin = np.array([bool(family & set(tree.edges[index])) for index in others])
    room = radius + np.array([tree.radii[index] for index in others]) + np.where(kin, 0.25 * rule.gap, rule.gap)
    return bool((near > room).all())


def segment_distance(points: FloatArray, begin: FloatArray, end: FloatArray) -> FloatArray:
    """Distance of points ``(..., D)`` from the segments between `begin` and `end`, which broadcast."""
    along = end - begin
    place = np.clip(((points - begin) * along).sum(-1) / (along * along).sum(-1), 0, 1)
    return np.linalg.norm(points - begin - place[..., None] * along, axis=-1)


def inward(tree: Tree, shape: tuple[int, ...], scale: FloatArray | None = None, margin: float = 2.0) -> Array:
    """How deep each voxel centre of `shape` lies in the tree, negative outside, down to ``-margin``.

    Parameters
    ----------
    scale
        ``(D,)`` steps that turn index units of the array into those of the tree; 1 if left out.
    """
    steps = np.ones(len(shape)) if scale is None else np.asarray(scale, dtype=np.float64)
    out = np.full(shape, -margin, dtype=np.float32)
    for (start, end), radius in zip(tree.edges, tree.radii, strict=True):
        a, b = tree.nodes[start], tree.nodes[end]
        reach = radius + margin
        low = np.maximum(np.floor((np.minimum(a, b) - reach) / steps).astype(int), 0)
        high = np.minimum(np.ceil((np.maximum(a, b) + reach) / steps).astype(int) + 1, shape)
        if (high <= low).any():
            continue
        window = tuple(slice(int(x), int(y)) for x, y in zip(low, high, strict=True))
        lines = [np.arange(x, y) * step for x, y, step in zip(low, high, steps, strict=True)]
        points = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)
        depth = radius - segment_distance(points, a, b)
        out[window] = np.maximum(out[window], depth.astype(np.float32))
    return out
