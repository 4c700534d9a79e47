"""Synthetic vessel trees in two or three dimensions whose graph is known: nodes, edges, radii, length, bifurcations.

A trunk divides again and again; radii follow Murray's law (r^3 = r1^3 + r2^3; PNAS 1926, 12:207). Edges that do not
share a node keep a gap, so that the picture has the topology of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesalius.core.errors import UsageError
from vesalius.core.geometry import FloatArray, Grid, affine_from_axes
from vesalius.core.randomness import generator
from vesalius.measure.skeleton import grown_simply
from vesalius.phantoms.phantom import (
    Array,
    Phantom,
    assembled,
    blur,
    boxes_of,
    smooth_noise,
    soft_step,
    subject,
)

CLASSES = ("normal", "narrowed")
STRUCTURES = ("background", "vessel")
# A narrowing leaves this part of the radius, over this part of the edge's length.
_LEFT_OPEN, _NARROW_PART = 0.35, 0.3
# Thinner than this radius in pixels the mask of a vessel would fall apart, and the picture lose the graph's topology.
_THINNEST_PX = 0.9
_SMALLEST = 32


@dataclass
class _Tree:
    """Grown in index units (z, y, x) or (y, x)."""

    nodes: list[FloatArray] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)


def make_vessels(
    *, seed: int, index: int, dims: int = 2, size: int = 128, spacing_mm: float = 0.5, generations: int = 5
) -> Phantom:
    """A tree of vessels: dark on an eye-like disc ``(1, Y, X)`` uint8, or bright in a volume ``(1, Z, Y, X)`` uint16.

    Parameters
    ----------
    dims
        2 or 3.
    spacing_mm
        Isotropic; pictures carry it without a position, volumes with one.
    generations
        Most divisions from trunk to tip; a division is left out where there is no room.

    Returns
    -------
    Phantom
        `truth`: ``nodes_px (N, dims)`` in order (z, y, x), ``edges`` pairs of node numbers, ``radii_px`` per edge,
        ``length_px``, ``length_mm``, ``bifurcations``, ``ends`` (trunk's start included), and ``narrowing``
        (edge, centre_px, the part of the radius left open) for the class *narrowed*, else None.

    Raises
    ------
    UsageError
        For other dimensions, or a picture too small for a tree.
    """
    if dims not in (2, 3) or size < _SMALLEST:
        raise UsageError(
            f"vessels have 2 or 3 dimensions and at least {_SMALLEST} pixels a side, got {dims} and {size}"
        )
    who = subject(seed, "vessels", index, CLASSES, question=str(dims))
    draw = generator(seed, f"phantom:vessels{dims}", index)
    shape = (size,) * dims
    tree = _grow(draw, shape, generations)
    narrowing = _narrowing(draw, tree) if who.kind == 1 else None
    cover = _rendered(tree, shape, narrowing)
    pixels = _fundus(draw, cover) if dims == 2 else _angiogram(draw, cover)
    mask = _tree_mask(tree, cover).astype(np.uint8)
    boxes = boxes_of(mask, 1)
    meta = {"modality": "OP" if dims == 2 else "MR"}
    return assembled(
        who,
        _grid(shape, spacing_mm),
        pixels[None],
        meta,
        truth=_truth(tree, spacing_mm, narrowing),
        mask=mask,
        structures=STRUCTURES,
        boxes=boxes,
        box_names=("vessel",) * len(boxes),
        layers={"cover": cover},
    )


def _grid(shape: tuple[int, ...], spacing_mm: float) -> Grid:
    if len(shape) == 2:
        return Grid(shape, spacing=(spacing_mm,) * 2)
    return Grid(shape, affine=affine_from_axes((0, 0, 0), ((0, 0, 1), (0, 1, 0), (1, 0, 0)), (spacing_mm,) * 3))


def _truth(tree: _Tree, spacing_mm: float, narrowing: dict[str, Any] | None) -> dict[str, Any]:
    nodes = np.array(tree.nodes)
    edges = np.array(tree.edges)
    length = float(np.linalg.norm(nodes[edges[:, 0]] - nodes[edges[:, 1]], axis=1).sum())
    degree = np.bincount(edges.ravel(), minlength=len(nodes))
    return {
        "nodes_px": nodes,
        "edges": edges,
        "radii_px": np.array(tree.radii),
        "length_px": length,
        "length_mm": length * spacing_mm,
        "bifurcations": int((degree == 3).sum()),
        "ends": int((degree == 1).sum()),
        "narrowing": narrowing,
    }


def _grow(draw: np.random.Generator, shape: tuple[int, ...], generations: int) -> _Tree:
    """Divide tips in turn while there is room."""
    dims, size = len(shape), shape[-1]
    tree = _Tree()
    start = np.full(dims, 0.5 * size) + draw.normal(0, 0.03 * size, dims)
    start[-1] = 0.08 * size
    heading = np.zeros(dims)
    heading[-1] = 1.0
    tree.nodes += [start, start + heading * size * float(draw.uniform(0.14, 0.2))]
    tree.edges.append((0, 1))
    tree.radii.append(max(0.026 * size, 2.2) * float(draw.uniform(0.9, 1.1)))
    tips = [(1, heading, 0, 0)]
    while tips:
        tip, heading, edge, depth = tips.pop(0)
        if depth == generations:
            continue
        made = _divided(draw, tree, tip, heading, edge, shape)
        tips += [(node, way, number, depth + 1) for node, way, number in made]
    return tree


def _divided(
    draw: np.random.Generator,
    tree: _Tree,
    tip: int,
    heading: FloatArray,
    edge: int,
    shape: tuple[int, ...],
) -> list[tuple[int, FloatArray, int]]:
    """Two new edges at node `tip`, or none after 30 tries without room."""
    size, radius = shape[-1], tree.radii[edge]
    for _ in range(30):
        part = float(draw.uniform(0.35, 0.65))
        radii = [radius * part ** (1 / 3), radius * (1 - part) ** (1 / 3)]
        across = draw.normal(size=len(shape))
        across -= across @ heading * heading
        across /= np.linalg.norm(across)
        ways, ends = [], []
        for sign in (1, -1):
            angle = float(draw.uniform(0.42, 0.85))
            ways.append(np.cos(angle) * heading + sign * np.sin(angle) * across)
            ends.append(tree.nodes[tip] + ways[-1] * max(size * float(draw.uniform(0.09, 0.19)), 8 * radius))
        if all(_fits(tree, tip, edge, end, one, shape) for end, one in zip(ends, radii, strict=True)):
            made = []
            for end, way, one in zip(ends, ways, radii, strict=True):
                tree.nodes.append(end)
                tree.edges.append((tip, len(tree.nodes) - 1))
                tree.radii.append(one)
                made.append((len(tree.nodes) - 1, way, len(tree.edges) - 1))
            return made
    return []


def _fits(tree: _Tree, tip: int, parent: int, end: FloatArray, radius: float, shape: tuple[int, ...]) -> bool:
    """Whether the edge from `tip` to `end` stays inside and clear of every edge but its parent."""
    # In two dimensions the vessels stay on the disc of the eye.
    away = np.abs(end - np.array(shape) / 2) if len(shape) == 3 else np.linalg.norm(end - np.array(shape) / 2)
    if np.max(away) > 0.45 * shape[-1] - radius or radius < 0.75:
        return False
    line = np.linspace(tree.nodes[tip], end, 24)
    for number, (first, second) in enumerate(tree.edges):
        if number != parent and distance_to_segment(line, tree.nodes[first], tree.nodes[second]).min() < (
            radius + tree.radii[number] + 2.5
        ):
            return False
    return True


def distance_to_segment(points: FloatArray, start: FloatArray, end: FloatArray) -> FloatArray:
    """Distance of points ``(..., dims)`` to a straight segment."""
    way = end - start
    place = np.clip((points - start) @ way / float(way @ way), 0, 1)
    return np.asarray(np.linalg.norm(points - start - place[..., None] * way, axis=-1))


def _narrowing(draw: np.random.Generator, tree: _Tree) -> dict[str, Any]:
    """One of the thicker edges, narrowed around its middle."""
    thick = np.argsort(tree.radii)[::-1][: max(len(tree.radii) // 4, 1)]
    edge = int(draw.choice(thick))
    first, second = tree.edges[edge]
    centre = tree.nodes[first] + (tree.nodes[second] - tree.nodes[first]) * float(draw.uniform(0.45, 0.6))
    return {
        "edge": edge,
        "centre_px": tuple(float(c) for c in centre),
        "open": max(_LEFT_OPEN, min(_THINNEST_PX / tree.radii[edge], 1.0)),
    }


def _rendered(tree: _Tree, shape: tuple[int, ...], narrowing: dict[str, Any] | None) -> Array:
    """Part of each pixel inside a vessel, from the distance to its axis (rounded ends)."""
    cover = np.zeros(shape, dtype=np.float32)
    for number, (first, second) in enumerate(tree.edges):
        start, end, radius = tree.nodes[first], tree.nodes[second], tree.radii[number]
        low = np.maximum(np.floor(np.minimum(start, end) - radius - 2), 0).astype(int)
        high = np.minimum(np.ceil(np.maximum(start, end) + radius + 3), shape).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        points = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
        wide = np.full(points.shape[:-1], radius)
        if narrowing is not None and narrowing["edge"] == number:
            gap = np.linalg.norm(points - np.array(narrowing["centre_px"]), axis=-1)
            reach = max(_NARROW_PART * float(np.linalg.norm(end - start)), 1.5 * radius) / 2
            wide = radius * (1 - (1 - narrowing["open"]) * np.exp(-((gap / reach) ** 4)))
        cover[box] = np.maximum(cover[box], soft_step(wide - distance_to_segment(points, start, end), 1.0))
    return cover


def _tree_mask(tree: _Tree, cover: Array) -> NDArray[np.bool_]:
    """Where vessels cover half a pixel or more, mended to be a tree like the graph.

    Between two daughters single pixels may be walled in: in the plane such a hole is filled. In a volume it is a tunnel
    below a bridge of voxels that touch; the mask is grown again from the trunk, from the axes outwards, and what would
    close a loop (the bridge) stays out.
    """
    inside = ndimage.binary_fill_holes(cover >= 0.5)
    if cover.ndim == 2:
        return np.asarray(inside, dtype=np.bool_)
    places = np.argwhere(inside).astype(np.float64)
    depth = np.full(len(places), -np.inf)
    for (first, second), radius in zip(tree.edges, tree.radii, strict=True):
        start, end = tree.nodes[first], tree.nodes[second]
        near = ((places >= np.minimum(start, end) - radius - 2) & (places <= np.maximum(start, end) + radius + 2)).all(
            1
        )
        depth[near] = np.maximum(depth[near], -distance_to_segment(places[near], start, end) / radius)
    keys = np.zeros(cover.shape)
    keys[inside] = depth
    return grown_simply(inside, keys, places[int(np.argmax(depth))].astype(np.int64).tolist())


def _fundus(draw: np.random.Generator, cover: Array) -> NDArray[np.uint8]:
    """The green channel of a photograph of the retina: bright disc, dark vessels, black surround, uneven light."""
    size = cover.shape[0]
    line = (np.arange(size) + 0.5) / size * 2 - 1
    away = np.hypot(line[None, :], line[:, None])
    ground = 0.52 + 0.05 * smooth_noise(draw, cover.shape, size / 3) + 0.015 * smooth_noise(draw, cover.shape, 3)
    ground = ground * (1 - 0.3 * away**2) + draw.normal(0, 0.06) * line[None, :]
    optic = np.exp(-((np.hypot(line[None, :] + 0.84, line[:, None]) / 0.17) ** 4))
    light = (ground + 0.25 * optic) * (1 - 0.38 * blur(cover, 0.7)) * soft_step((0.96 - away) * size / 2, 1.5)
    light = light + draw.normal(0, 0.018, cover.shape)
    return np.clip(np.rint(light * float(np.exp(draw.normal(0, 0.15))) * 255), 0, 255).astype(np.uint8)


def _angiogram(draw: np.random.Generator, cover: Array) -> NDArray[np.uint16]:
    """Bright vessels in darker tissue with a bias field and Rician noise."""
    shape = cover.shape
    tissue = 0.28 * np.exp(0.2 * smooth_noise(draw, shape, shape[0] / 3)) * (1 + 0.15 * smooth_noise(draw, shape, 3))
    signal = tissue + (1.0 - tissue) * blur(cover, 0.4)
    noisy = np.hypot(signal + draw.normal(0, 0.05, shape), draw.normal(0, 0.05, shape))
    return np.rint(np.clip(noisy * 1200 * float(np.exp(draw.normal(0, 0.2))), 0, 65535)).astype(np.uint16)
