"""Skeletons: thinning that keeps the topology and ends on the ridge of the distance from the surface.

Voxels are peeled off in the order of their exact distance from the background, nearest first (distance-ordered
homotopic thinning: Pudney, Computer Vision and Image Understanding 1998, 72:404), so that what stays is centred also
where voxels are not cubes. A voxel goes only if it is *simple*: taking it away changes no piece, tunnel or cavity.
That is so when its 26 neighbours in the mask are one piece and the background voxels that touch its faces are one
piece within its 18-neighbourhood (Malandain and Bertrand, ICPR 1992). A voxel with a single neighbour is the end of a
line and stays. Equal distances are peeled from one side after the other, as Lee, Kashyap and Chu do (CVGIP 1994,
56:462), so that no side wins.

The mask is 26-connected (8-connected in a plane), the background 6-connected (4-connected).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_spacing
from vesalius.measure.compiled import kernel
from vesalius.measure.vessel_voxels import (
    Voxels,
    Words,
    around,
    checked_volume,
    is_set,
    packed,
    row_of,
    squared_depths,
)

# Distances within this part of the smallest voxel side are peeled together.
_LAYER = 1 / 8

_NO_TABLE = np.zeros(0, dtype=np.bool_)

# Bits of a 3 x 3 x 3 neighbourhood, 9 * z + 3 * y + x.
_PLACE = [(k // 9, k // 3 % 3, k % 3) for k in range(27)]
_ALL = (1 << 27) - 1
_CENTRE = 1 << 13
_FACES = sum(1 << k for k, place in enumerate(_PLACE) if sum(p != 1 for p in place) == 1)
_NEAR18 = sum(1 << k for k, place in enumerate(_PLACE) if 1 <= sum(p != 1 for p in place) <= 2)
_NOT_X0, _NOT_X2 = (sum(1 << k for k, place in enumerate(_PLACE) if place[2] != side) for side in (0, 2))
_NOT_Y0, _NOT_Y2 = (sum(1 << k for k, place in enumerate(_PLACE) if place[1] != side) for side in (0, 2))


def skeletonize(
    mask: NDArray[Any], spacing: Sequence[float] | None = None, *, fill_cavities: bool = True
) -> NDArray[np.bool_]:
    """The skeleton of a mask ``(Y, X)`` or ``(Z, Y, X)``, one voxel thin, with the topology of the mask.

    Parameters
    ----------
    mask
        What is not 0 is set. Outside the array is background. An empty mask has an empty skeleton.
    spacing
        mm per axis; orders the peeling. None for cubes.
    fill_cavities
        Fill enclosed background of a volume first: a closed shell has no line as skeleton. Holes of a plane stay.

    Raises
    ------
    ValueError
        For other axes, values that are not finite, or a spacing that is not positive.
    """
    ndim = np.ndim(mask)
    volume = checked_volume(mask)
    steps = (1.0,) * (3 - ndim) + checked_spacing(spacing, ndim)
    voxels = packed(volume, fill_cavities=fill_cavities)
    thin = Voxels(thinned(voxels, squared_depths(voxels, steps), steps), voxels.shape)
    return thin.dense().reshape(np.shape(mask))


def thinned(voxels: Voxels, squared: FloatArray, spacing: Sequence[float]) -> Words:
    """Bit map of the skeleton of `voxels`, whose squared distances from the background are `squared` ``(N,)``."""
    smallest = min(spacing) if voxels.shape[0] > 1 else min(spacing[1:])
    layer = np.rint(np.sqrt(squared) / (smallest * _LAYER)).astype(np.int64)
    order = np.argsort(layer, kind="stable")
    counts = np.bincount(layer) if len(layer) else np.zeros(1, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64)
    words = voxels.words.copy()
    slab, row, _ = voxels.steps
    # Sides in turn: opposite ones follow each other.
    sides = np.array([-slab, slab, -row, row, -1, 1] if voxels.shape[0] > 1 else [-row, row, -1, 1])
    _thin(words, voxels.address[order], starts, sides, slab, row, _plane_table() if voxels.shape[0] == 1 else _NO_TABLE)
    return words


@lru_cache(maxsize=1)
def _plane_table() -> NDArray[np.bool_]:
    """``(512,)``: which pixels may go, by their neighbourhood in a plane."""
    return np.array([_may_go(code << 9) for code in range(512)])


@kernel
def spread6(bits):  # type: ignore[no-untyped-def]
    """A set of voxels of a neighbourhood and all that share a face with it."""
    return (
        bits
        | ((bits << 1) & _NOT_X0)
        | ((bits >> 1) & _NOT_X2)
        | ((bits << 3) & _NOT_Y0)
        | ((bits >> 3) & _NOT_Y2)
        | (bits << 9)
        | (bits >> 9)
    ) & _ALL


@kernel
def spread26(bits):  # type: ignore[no-untyped-def]
    """A set of voxels of a neighbourhood and all that share a face, an edge or a corner with it."""
    bits = bits | ((bits << 1) & _NOT_X0) | ((bits >> 1) & _NOT_X2)
    bits = bits | ((bits << 3) & _NOT_Y0) | ((bits >> 3) & _NOT_Y2)
    return (bits | (bits << 9) | (bits >> 9)) & _ALL


@kernel
def is_simple(code):  # type: ignore[no-untyped-def]
    """Whether the centre of a neighbourhood `code` (of `around`) can change sides without changing the topology."""
    inside = code & ~_CENTRE
    if inside == 0:
        return False
    faces = ~code & _FACES
    if faces == 0:
        return False
    piece = inside & -inside
    while True:
        grown = spread26(piece) & inside
        if grown == piece:
            break
        piece = grown
    if piece != inside:
        return False
    outside = ~code & _NEAR18
    piece = faces & -faces
    while True:
        grown = spread6(piece) & outside
        if grown == piece:
            break
        piece = grown
    return faces & ~piece == 0


@kernel
def _may_go(code):  # type: ignore[no-untyped-def]
    """Whether a voxel may be peeled: it is simple, and not the end of a line (a voxel with one neighbour)."""
    inside = code & ~_CENTRE
    return inside & (inside - 1) != 0 and is_simple(code)


@kernel
def _goes(words, here, slab, row, plane):  # type: ignore[no-untyped-def]
    """Whether the voxel at `here` may be peeled now; `plane` answers for the 512 neighbourhoods of a plane."""
    if plane.shape[0] == 0:
        return _may_go(around(words, here, slab, row))
    code = np.int64(0)
    for dy in range(3):
        first = here + (dy - 1) * row - 1
        word, shift = first >> 6, first & 63
        bits = words[word] >> np.uint64(shift)
        if shift > 61:
            bits |= words[word + 1] << np.uint64(64 - shift)
        code |= np.int64(bits & np.uint64(7)) << (3 * dy)
    return plane[code]


@kernel
def _thin(words, address, starts, sides, slab, row, plane):  # type: ignore[no-untyped-def]
    """Peel layer by layer; `address` is sorted by layer. A voxel is looked at again when a neighbour has gone."""
    seen = np.zeros_like(words)
    queued = np.zeros_like(words)
    now = np.empty(address.shape[0], dtype=np.int64)
    after = np.empty(address.shape[0], dtype=np.int64)
    chosen = np.empty(address.shape[0], dtype=np.int64)
    field = np.empty(address.shape[0], dtype=np.uint8)
    for layer in range(starts.shape[0] - 1):
        count = 0
        for k in range(starts[layer], starts[layer + 1]):
            here = address[k]
            seen[here >> 6] |= np.uint64(1) << np.uint64(here & 63)
            now[count] = here
            count += 1
        while count > 0:
            waiting = 0
            for side in sides:
                picked = 0
                for k in range(count):
                    here = now[k]
                    if is_set(words, here) and not is_set(words, here + side) and _goes(words, here, slab, row, plane):
                        chosen[picked] = here
                        field[picked] = (here & 1) + 2 * ((here // row) & 1) + 4 * ((here // slab) & 1)
                        picked += 1
                # One after the other, no two that touch in a row: else a line two voxels wide is eaten from its end.
                for part in range(8):
                    for k in range(picked):
                        here = chosen[k]
                        if field[k] == part and _goes(words, here, slab, row, plane):
                            words[here >> 6] &= ~(np.uint64(1) << np.uint64(here & 63))
                            waiting = _wake(words, seen, queued, here, slab, row, after, waiting)
            for k in range(waiting):
                here = after[k]
                queued[here >> 6] &= ~(np.uint64(1) << np.uint64(here & 63))
            now, after = after, now
            count = waiting


@kernel
def _wake(words, seen, queued, here, slab, row, after, waiting):  # type: ignore[no-untyped-def]
    """Put the neighbours of a voxel that has gone into the next round, as far as their layer has come."""
    code = around(words, here, slab, row)
    code &= around(seen, here, slab, row)
    code &= ~around(queued, here, slab, row) & ~_CENTRE
    for k in range(27):
        if code >> k & 1:
            other = here + (k // 9 - 1) * slab + (k // 3 % 3 - 1) * row + k % 3 - 1
            queued[other >> 6] |= np.uint64(1) << np.uint64(other & 63)
            after[waiting] = other
            waiting += 1
    return waiting


def grown_simply(mask: NDArray[Any], depth: NDArray[Any], seed: Sequence[int]) -> NDArray[np.bool_]:
    """The part of a mask ``(Z, Y, X)`` that grows from the voxel `seed` without ever closing a loop or a cavity.

    Of the voxels that touch what has grown the deepest comes next, and joins only if that changes no topology; it is
    asked again whenever a neighbour has joined. What is left out are walls at the shallowest places of every tunnel.

    Parameters
    ----------
    depth
        Like `mask`: how early a voxel should join.
    """
    volume = checked_volume(mask)
    if volume.shape[0] < 2:
        raise ValueError(f"mask must have axes (Z, Y, X) with more than one slice, got shape {np.shape(mask)}")
    voxels = packed(volume, fill_cavities=False)
    keys = np.ascontiguousarray(np.asarray(depth, dtype=np.float64).reshape(volume.shape))
    start = int(voxels.addresses(np.asarray(seed, dtype=np.int64)))
    if not is_set(voxels.words, start):
        raise ValueError(f"seed {tuple(seed)} is not in the mask")
    words = np.zeros_like(voxels.words)
    slab, row, _ = voxels.steps
    _grow(words, voxels.words, keys[tuple(voxels.places(voxels.address).T)], voxels.before, start, slab, row)
    return Voxels(words, voxels.shape).dense()


@kernel
def _grow(words, allowed, keys, before, start, slab, row):  # type: ignore[no-untyped-def]
    """Grow from `start` inside `allowed`, highest key first."""
    waiting = [(-keys[row_of(allowed, before, start)], start)]
    first = True
    while len(waiting) > 0:
        _, here = heappop(waiting)
        if is_set(words, here):
            continue
        if not first and not is_simple(around(words, here, slab, row)):
            continue
        first = False
        words[here >> 6] |= np.uint64(1) << np.uint64(here & 63)
        code = around(allowed, here, slab, row) & ~around(words, here, slab, row)
        for k in range(27):
            if code >> k & 1:
                other = here + (k // 9 - 1) * slab + (k // 3 % 3 - 1) * row + k % 3 - 1
                heappush(waiting, (-keys[row_of(allowed, before, other)], other))
