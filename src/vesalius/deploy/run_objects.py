"""Single objects from the maps of an exported model.

A part of ``run.py``, see `vesalius.deploy.one_file`; it needs Python and numpy. Maxima of depth that stand high enough
above their saddles become seeds, the foreground is flooded from them with the places between objects last, holes are
filled, small objects go. Loops over voxels are plain Python: a second or two for a picture of a million pixels, longer
for volumes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from vesalius.deploy.run_masks import Case, components, tiles
from vesalius.deploy.runner import ANSWERS, Array, Call, Contract, Scan

LEVELS = 4095  # heights are whole steps, so that rounding decides nothing
TOLERANCE, SCALES = 1.15, (0.2, 5.0)


def find(call: Call, contract: Contract, scan: Scan) -> Array:
    """The objects ``(*S)`` on the grid of the file, numbered from 1.

    Pictures whose objects are much larger or smaller than those of training are looked at again in the size of those.
    """
    case = Case(contract, scan)
    found = objects(call, contract, case)
    scale = better_scale(found, contract.get("diameters"), float(contract["conform"].get("scale") or 1.0))
    if scale is not None and contract["conform"].get("spacing_mm") is None:
        case = Case({**contract, "conform": {**contract["conform"], "scale": scale}}, scan)
        found = objects(call, contract, case)
    return case.turned_back(enlarged(found, case.cut)[None])[0]


ANSWERS["objects"] = find


def objects(call: Call, contract: Contract, case: Case) -> Array:
    """Single objects ``(*S)`` on the grid that the network sees."""
    maps = 1 / (1 + np.exp(-np.clip(tiles(call, contract, case), -30, 30)))
    return decode(maps.astype(np.float32), contract["decode"])


def decode(maps: Array, rule: dict[str, float]) -> Array:
    """Objects ``(*S)`` int32 from foreground, inner distance and border ``(3, *S)`` in 0..1, numbered as they come."""
    foreground, depth, close = maps[0], maps[1].clip(0, 1), maps[2].clip(0, 1)
    hills = smoothed(depth * (1 - np.float32(0.5) * close), rule["smooth"])
    relief = steps(depth * (1 - np.float32(0.99) * close))
    peaks = steps(hills)
    inside = np.pad(foreground >= rule["threshold"], 1).reshape(-1)
    shape = tuple(side + 2 for side in foreground.shape)
    near, far = jumps(shape, full=False), jumps(shape, full=True)
    height = max(1, round(rule["seed_threshold"] * LEVELS))
    labels = [0] * inside.size
    flat, ground, open_ = peaks.reshape(-1).tolist(), relief.reshape(-1).tolist(), inside.tolist()
    voxels = np.flatnonzero(inside)
    order = voxels[np.argsort(LEVELS - peaks.reshape(-1)[voxels], kind="stable")].tolist()
    tops = [place for place, high in prominences(flat, order, far) if high >= height]
    mark(flat, open_, tops, height, far, labels)
    flood(ground, open_, labels, near)
    flood(ground, open_, labels, far)  # voxels that hang on their object by a corner
    found = np.array(labels, np.int32).reshape(shape)[(slice(1, -1),) * foreground.ndim]
    found = filled(found)
    return renumbered(found, np.bincount(found.reshape(-1)) >= rule["min_size"])


def smoothed(values: Array, sigma: float) -> Array:
    """A Gaussian over each axis, cut at three deviations, edges repeated."""
    if not sigma or not values.size:
        return values
    reach = int(3 * sigma + 0.5)
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    line /= line.sum()
    for axis in range(values.ndim):
        wide = np.pad(values, [(reach, reach) if k == axis else (0, 0) for k in range(values.ndim)], mode="edge")
        parts = np.lib.stride_tricks.sliding_window_view(wide, len(line), axis=axis)
        values = (parts.astype(np.float64) @ line).astype(np.float32)
    return values


def steps(values: Array) -> Array:
    """Heights as whole numbers, with one voxel of zeros around."""
    return np.pad(np.rint(values * LEVELS).astype(np.int64), 1)


def jumps(shape: tuple[int, ...], *, full: bool) -> list[int]:
    """Steps in a flat array to the neighbours: those across faces, or all."""
    stride = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    moves = [move for move in itertools.product((-1, 0, 1), repeat=len(shape)) if any(move)]
    some = moves if full else [move for move in moves if sum(map(abs, move)) == 1]
    return [sum(a * b for a, b in zip(move, stride, strict=True)) for move in some]


def prominences(peaks: list[int], order: list[int], near: list[int]) -> Iterable[tuple[int, int]]:
    """Maxima and how high they stand above the saddle that joins them to a higher one, from the top down."""
    parent: dict[int, int] = {}
    fall: dict[int, int] = {}
    for at in order:
        parent[at] = mine = at
        for jump in near:
            other = at + jump
            if other not in parent:
                continue
            while parent[other] != other:
                parent[other] = parent[parent[other]]
                other = parent[other]
            if other == mine:
                continue
            if peaks[other] < peaks[mine]:
                other, mine = mine, other
            fall[mine] = peaks[mine] - peaks[at]
            parent[mine] = mine = other
    for at in order:
        if parent[at] == at:
            yield at, 1 << 30
        elif fall.get(at, 0) > 0:
            yield at, fall[at]


def mark(
    peaks: list[int], inside: list[bool], tops: list[int], height: int, near: list[int], labels: list[int]
) -> None:
    """Number each maximum and all that is joined to it less than `height` below."""
    for number, top in enumerate(tops, start=1):
        floor, room = peaks[top] - height, [top]
        labels[top] = number
        while room:
            at = room.pop()
            for jump in near:
                there = at + jump
                if inside[there] and not labels[there] and peaks[there] > floor:
                    labels[there] = number
                    room.append(there)


def flood(relief: list[int], inside: list[bool], labels: list[int], near: list[int]) -> None:
    """Grow the numbers over the foreground from high to low; equal heights in the order they are reached."""
    queues: list[list[int]] = [[] for _ in range(LEVELS + 1)]
    for at, number in enumerate(labels):
        if number and any(inside[at + jump] and not labels[at + jump] for jump in near):
            queues[relief[at]].append(at)
    for level in range(LEVELS, -1, -1):
        queue = queues[level]
        for at in queue:  # it grows while it is read
            for jump in near:
                there = at + jump
                if inside[there] and not labels[there]:
                    labels[there] = labels[at]
                    queues[min(relief[there], level)].append(there)


def filled(labels: Array) -> Array:
    """Holes that a single object surrounds belong to it; those at the edge of the picture are none."""
    if not labels.any() or labels.all():
        return labels
    holes = components(labels == 0, 4 if labels.ndim == 2 else 6)
    owner = np.zeros(int(holes.max()) + 1, np.int64)
    wide, around = np.pad(holes, 1), np.pad(labels, 1, constant_values=-1)
    inner = (slice(1, -1),) * labels.ndim
    seen: list[set[int]] = [set() for _ in owner]
    for axis in range(labels.ndim):
        for step in (-1, 1):
            beside = np.roll(around, step, axis)[inner]
            edge = (wide[inner] > 0) & (beside != 0)
            for hole, number in np.unique(np.stack([wide[inner][edge], beside[edge]]), axis=1).T.tolist():
                seen[hole].add(number)
    for hole, numbers in enumerate(seen):
        if len(numbers) == 1 and -1 not in numbers:
            owner[hole] = numbers.pop()
    return np.where(holes > 0, owner[holes], labels).astype(np.int32)


def renumbered(labels: Array, kept: Array) -> Array:
    """Kept objects numbered by their first voxels."""
    kept[0] = False
    numbers, first = np.unique(labels.reshape(-1), return_index=True)
    table = np.zeros(len(kept), np.int32)
    stay = numbers[np.argsort(first)]
    stay = stay[kept[stay]]
    table[stay] = np.arange(1, len(stay) + 1)
    return table[labels]


def better_scale(found: Array, known: Any, scale: float) -> float | None:
    """Where objects are much larger or smaller than in training: the magnification that brings them to that size."""
    sizes = np.bincount(found.reshape(-1))[1:]
    sizes = sizes[sizes > 0]
    if not known or found.ndim != 2 or len(sizes) < 3:
        return None
    middle = float(np.median(2 * np.sqrt(sizes / np.pi)))
    if known[0] / TOLERANCE <= middle <= known[2] * TOLERANCE:
        return None
    return min(max(scale * float(known[1]) / middle, SCALES[0]), SCALES[1])


def enlarged(values: Array, sides: Any) -> Array:
    """Nearest values on another number of voxels."""
    index = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for old, new in zip(values.shape, sides, strict=True)
    ]
    return values[np.ix_(*index)]
