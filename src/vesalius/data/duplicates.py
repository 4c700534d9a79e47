"""Images that stand twice in a collection: equal pixels, or the same picture saved again.

Candidates are the nearest neighbours on the coarse descriptor (blocked matrix products, bounded memory). Each is then
verified on the fine descriptor after the small shift, turn and scale that fits best, so that a cropped copy is found
and two people's chests, which look alike from afar, are not. Thresholds and their evidence: ``docs/leakage.md``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.progress import Progress, Silent
from vesalius.data.signature import GRID, Descriptors, Signatures

NEAR = 0.97
"""Least correlation of fine detail, after alignment, of two images that count as one picture."""

CANDIDATES = 8
"""Nearest neighbours of an image that are verified."""

LEAST_COARSE = 0.75
"""Least coarse correlation of a candidate."""

_BLOCK = 1024
_PAIR_BLOCK = 256
_WORTH_ALIGNING = (0.35, 0.75)  # fine correlation needed before the first and before the second alignment step
_FITS = 0.998  # aligning further would change nothing
_STEPS = 3
_REACH = 0.08  # largest shift, turn (rad) and scaling that is tried, in half sides of the image
_BORDER = 2  # cells at the edge that a shift would draw from outside

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What stands twice among N images.

    Parameters
    ----------
    group
        ``(N,)``: number of the group of equal images an image belongs to, -1 if it is alone.
    pairs
        ``(M, 2)`` rows of near duplicates, first row smaller; equal images are not repeated here, and one image
        stands for all that equal it.
    similarity
        ``(M,)`` in [NEAR, 1].
    flipped
        ``(M,)`` bool: the second image resembles the mirrored first one.
    """

    group: Rows
    pairs: Rows
    similarity: NDArray[np.float32]
    flipped: NDArray[np.bool_]


def exact_groups(group: Rows) -> list[Rows]:
    """Rows of each group of equal images, from `Duplicates.group`."""
    order = np.argsort(group, kind="stable")
    order = order[group[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []


def find_duplicates(
    signatures: Signatures,
    *,
    near: float = NEAR,
    parts: Sequence[Any] | NDArray[Any] | None = None,
    mirrored: bool = True,
    progress: Progress | None = None,
) -> Duplicates:
    """Equal and near-equal images.

    Parameters
    ----------
    signatures
        Of N images.
    near
        Least similarity of near duplicates; above 1 for equal images only.
    parts
        ``(N,)``: name of the split of each image. If given, near duplicates are looked for across splits only (equal
        images always everywhere).
    mirrored
        Also compare with the left-right mirrored image.

    Raises
    ------
    ValueError
        If `parts` has another length.
    """
    count = len(signatures)
    if parts is not None and len(parts) != count:
        raise ValueError(f"parts must name a split for each of {count} images, got {len(parts)}")
    group = _exact(signatures)
    codes = np.zeros(count, np.int64) if parts is None else np.unique(np.asarray(parts), return_inverse=True)[1]
    found: list[tuple[Rows, NDArray[np.float32], NDArray[np.bool_]]] = []
    if near <= 1:
        standing = _standing(group, codes)
        for dims, have in signatures.descriptors.items():
            chosen = standing[have.rows]
            some = Descriptors(have.rows[chosen], have.coarse[chosen], have.fine[chosen])
            found += _near(
                some,
                dims,
                codes[some.rows],
                near,
                across=parts is not None,
                mirrored=mirrored,
                progress=progress or Silent(),
            )
    pairs, similarity, flipped = _merged(found)
    same = (group[pairs[:, 0]] >= 0) & (group[pairs[:, 0]] == group[pairs[:, 1]])
    return Duplicates(group, pairs[~same], similarity[~same], flipped[~same])


def _exact(signatures: Signatures) -> Rows:
    if not len(signatures):
        return np.zeros(0, dtype=np.int64)
    _, inverse, counts = np.unique(signatures.hashes, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    number = np.cumsum(counts > 1) - 1
    return np.where(counts[inverse] > 1, number[inverse], -1)


def _standing(group: Rows, codes: Rows) -> NDArray[np.bool_]:
    """One image of each group of equal ones in each part, so that copies do not crowd out other neighbours."""
    standing = group < 0
    copies = np.flatnonzero(~standing)
    _, first = np.unique(np.stack([group[copies], codes[copies]], axis=1), axis=0, return_index=True)
    standing[copies[first]] = True
    return standing


def _near(
    have: Descriptors, dims: int, codes: Rows, near: float, *, across: bool, mirrored: bool, progress: Progress
) -> list[tuple[Rows, NDArray[np.float32], NDArray[np.bool_]]]:
    order = np.argsort(np.bincount(codes, minlength=1), kind="stable")  # the smaller split asks, the larger answer
    found = []
    progress.start("near duplicates", len(have) * (2 if mirrored else 1), "images")
    for flip in (False, True) if mirrored else (False,):
        asked = [np.zeros((0, 2), np.int64)]
        for place, code in enumerate(order):
            asking = np.flatnonzero(codes == code)
            against = np.flatnonzero(np.isin(codes, order[place + 1 :])) if across else np.arange(len(have))
            for start in range(0, len(asking), _BLOCK):
                block = asking[start : start + _BLOCK]
                asked.append(_candidates(have.coarse, block, against, dims, flip=flip))
                progress.advance(len(block))
        pairs = np.unique(np.sort(np.concatenate(asked), axis=1), axis=0)
        similarity = _verified(have.fine, pairs, dims, flip=flip)
        kept = similarity >= near
        found.append((have.rows[pairs[kept]], similarity[kept], np.full(int(kept.sum()), flip)))
    progress.stop()
    return found


def _candidates(coarse: NDArray[np.float16], block: Rows, against: Rows, dims: int, *, flip: bool) -> Rows:
    """``(K, 2)``: the nearest neighbours among `against` of each image in `block`."""
    asked = mirror(coarse[block], dims) if flip else coarse[block]
    asked = asked.astype(np.float32)
    best = np.full((len(block), 0), 0, np.float32)
    who = np.full((len(block), 0), 0, np.int64)
    for start in range(0, len(against), 4 * _BLOCK):
        some = against[start : start + 4 * _BLOCK]
        match = asked @ coarse[some].astype(np.float32).T
        match[block[:, None] == some[None]] = -1
        best = np.concatenate([best, match], axis=1)
        who = np.concatenate([who, np.broadcast_to(some, match.shape)], axis=1)
        if best.shape[1] > CANDIDATES:
            top = np.argpartition(best, -CANDIDATES, axis=1)[:, -CANDIDATES:]
            best, who = np.take_along_axis(best, top, axis=1), np.take_along_axis(who, top, axis=1)
    row, column = np.nonzero(best >= LEAST_COARSE)
    return np.stack([block[row], who[row, column]], axis=1)


def mirror(flat: NDArray[Any], dims: int) -> NDArray[Any]:
    """Descriptors ``(N, G**dims)`` of the left-right mirrored images."""
    side = round(flat.shape[1] ** (1 / dims))
    return flat.reshape(len(flat), *(side,) * dims)[..., ::-1].reshape(len(flat), -1)


def _verified(fine: NDArray[np.int8], pairs: Rows, dims: int, *, flip: bool) -> NDArray[np.float32]:
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(pairs), _PAIR_BLOCK):
        first, second = fine[pairs[start : start + _PAIR_BLOCK]].transpose(1, 0, 2)
        parts.append(likeness(mirror(first, dims) if flip else first, second, dims))
    return np.concatenate(parts)


def likeness(first: NDArray[Any], second: NDArray[Any], dims: int) -> NDArray[np.float32]:
    """Correlation of fine detail after the best small shift, turn and scale.

    Gauss-Newton on the residual ``second - gain * warp(first)`` (Lucas and Kanade 1981; the gain as in Evangelidis and
    Psarakis 2008, doi:10.1109/TPAMI.2008.113). Pairs that already fit, or have no hope, are not aligned.

    Parameters
    ----------
    first, second
        ``(P, G**dims)`` fine descriptors.

    Returns
    -------
    NDArray
        ``(P,)`` in [-1, 1].
    """
    shape = (len(first), *(GRID[dims],) * dims)
    moving = first.reshape(shape).astype(np.float32)
    still = second.reshape(shape).astype(np.float32)[(slice(None), *(slice(_BORDER, -_BORDER),) * dims)]
    still = _centred(still.reshape(len(first), -1))
    move = np.zeros((len(first), len(_moves(dims)[0])), dtype=np.float32)
    best = np.full(len(first), -1, dtype=np.float32)
    active = np.arange(len(first))
    for step in range(_STEPS + 1):
        value, change = _step(moving[active], still[active], move[active], dims, last=step == _STEPS)
        best[active] = np.maximum(best[active], value)
        move[active] = np.clip(move[active] + change, -_REACH, _REACH)
        hope = _WORTH_ALIGNING[min(step, 1)]
        active = active[(value >= hope) & (best[active] < _FITS)]
        if not len(active):
            break
    return best


def _step(
    moving: NDArray[np.float32], still: NDArray[np.float32], move: NDArray[np.float32], dims: int, *, last: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Correlation at the present place, and the change of place that improves it most (linearised)."""
    fields, flow = _moves(dims)
    half, middle = GRID[dims] / 2, (GRID[dims] - 1) / 2
    inner = _inner(dims)
    index = (inner + np.einsum("pk,kav->pav", move, flow)) * half + middle
    warp = _Warp(index, GRID[dims])
    here = _centred(warp(moving))
    value = (here * still).sum(axis=1) / np.maximum(_norm(here) * _norm(still), 1e-9)
    if last:
        return value, np.zeros_like(move)
    slopes = [warp(np.gradient(moving, axis=axis + 1)) * half for axis in range(dims)]
    columns = [here, *(_centred(sum(slopes[a] * flow[k, a] for a in range(dims))) for k in range(fields.shape[0]))]
    matrix = np.stack(columns, axis=1)
    normal = matrix @ matrix.transpose(0, 2, 1)
    ridge = 1e-3 * np.trace(normal, axis1=1, axis2=2) / normal.shape[1] + 1e-6
    normal += ridge[:, None, None] * np.eye(normal.shape[1], dtype=np.float32)
    solved = np.linalg.solve(normal, matrix @ still[:, :, None])[..., 0]
    gain = np.maximum(solved[:, :1], 0.2)  # a vanishing gain would throw the images apart
    change: NDArray[np.float32] = (solved[:, 1:] / gain).astype(np.float32)
    return value, change


class _Warp:
    """Linear interpolation of ``(P, G, ...)`` at places ``(P, dims, V)``, which may be asked for several arrays."""

    def __init__(self, index: NDArray[np.float32], side: int) -> None:
        index = np.clip(index, 0, side - 1)
        low = np.minimum(index.astype(np.int32), side - 2)
        part = (index - low).astype(np.float32)
        self.corners = []
        for corner in itertools.product((0, 1), repeat=index.shape[1]):
            place, weight = np.zeros_like(low[:, 0]), np.ones_like(part[:, 0])
            for axis, up in enumerate(corner):
                place = place * side + low[:, axis] + up
                weight = weight * (part[:, axis] if up else 1 - part[:, axis])
            self.corners.append((place, weight))

    def __call__(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = array.reshape(len(array), -1)
        total = np.zeros_like(self.corners[0][1])
        for place, weight in self.corners:
            total += weight * np.take_along_axis(flat, place, axis=1)
        return total


@cache
def _inner(dims: int) -> NDArray[np.float32]:
    """``(dims, V)``: places of the cells inside the border, in half sides from the centre."""
    axis = (np.arange(GRID[dims]) - (GRID[dims] - 1) / 2)[_BORDER:-_BORDER] / (GRID[dims] / 2)
    return np.stack([c.ravel() for c in np.meshgrid(*(axis,) * dims, indexing="ij")]).astype(np.float32)


@cache
def _moves(dims: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Generators ``(K, dims, dims + 1)`` of shifts, one scaling and the turns, and their flow ``(K, dims, V)``."""
    found = []
    for axis in range(dims):
        shift = np.zeros((dims, dims + 1), np.float32)
        shift[axis, dims] = 1
        found.append(shift)
    found.append(np.eye(dims, dims + 1, dtype=np.float32))
    for a, b in itertools.combinations(range(dims), 2):
        turn = np.zeros((dims, dims + 1), np.float32)
        turn[a, b], turn[b, a] = 1, -1
        found.append(turn)
    places = np.concatenate([_inner(dims), np.ones((1, _inner(dims).shape[1]), np.float32)])
    fields = np.stack(found)
    flow: NDArray[np.float32] = (fields @ places).astype(np.float32)
    return fields, flow


def _centred(rows: Any) -> NDArray[np.float32]:
    centred: NDArray[np.float32] = rows - rows.mean(axis=1, keepdims=True)
    return centred


def _norm(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.sqrt((rows * rows).sum(axis=1))
    return lengths


def _merged(
    found: list[tuple[Rows, NDArray[np.float32], NDArray[np.bool_]]],
) -> tuple[Rows, NDArray[np.float32], NDArray[np.bool_]]:
    """All pairs once, first row smaller, with the better of two findings."""
    pairs = np.sort(np.concatenate([np.zeros((0, 2), np.int64), *(f[0] for f in found)]), axis=1)
    similarity = np.concatenate([np.zeros(0, np.float32), *(f[1] for f in found)])
    flipped = np.concatenate([np.zeros(0, bool), *(f[2] for f in found)])
    order = np.lexsort((flipped, -similarity, pairs[:, 1], pairs[:, 0]))
    pairs, similarity, flipped = pairs[order], similarity[order], flipped[order]
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[new], similarity[new], flipped[new]
