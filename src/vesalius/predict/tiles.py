"""A sliding window that streams: tiles of a volume in, finished planes of the result out.

Tiles stand in rows across the first spatial axis. When a row is done, the planes that no later row touches are finished
and handed on, so that sums are held for the height of one tile and never for the volume. While a network computes, the
next tiles are read and the last ones are summed.

The grid of tiles and the weights are those of Isensee et al., "nnU-Net", Nature Methods 2021, as MONAI's
``sliding_window_inference`` lays them: a regular step, the last tile flush with the edge, a Gaussian over each tile.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vesalius.predict.backends import Backend
from vesalius.predict.tile_sums import Frame, Sides, Slab, Sums

FloatArray = NDArray[np.float32]
Source = Callable[[int, int], NDArray[Any]] | NDArray[Any]

# Batches that wait for the network.
AHEAD = 2
# The least weight in a tile, relative to its middle: far corners of a Gaussian would be lost in rounding.
FLOOR = 1e-3
BACKGROUND_LOGIT = 10.0
# Logits of views that are computed at once, over all networks: 64 MB.
_MOST_VALUES = 1 << 24


@dataclass(frozen=True, eq=False)
class SkipRule:
    """Which tiles hold nothing but air, and what stands in their place.

    A tile is skipped only if none of its voxels belongs to the body. So a body voxel is seen by exactly the tiles that
    would see it without skipping, and its result has the same bits. Where skipped and computed tiles overlap, which
    happens in air only, both take part with their weights.

    Parameters
    ----------
    value, tolerance
        A voxel is air if every channel is within `tolerance` of `value` (one number, or one per channel), as the
        network sees it, after normalisation. NaN is never air.
    body
        Where the body is: ``(*s)`` bool over the whole volume, of any lower resolution, or a function of the first and
        one past the last voxel of a tile (both inside the volume) that says whether it holds body. With `value` as
        well, both must call a tile empty.
    answer
        ``"background"``: a skipped tile says `logits`. ``"network"``: it says what the network says of a tile of
        `value`, computed once; without a tolerance this changes no bit anywhere.
    logits
        ``(K,)``; by default the first class high and the others low.
    """

    value: float | tuple[float, ...] | None = None
    tolerance: float = 0.0
    body: NDArray[np.bool_] | Callable[[Sides, Sides], bool] | None = None
    answer: Literal["background", "network"] = "background"
    logits: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.value is None and (self.body is None or self.answer == "network"):
            raise ValueError("a rule that skips tiles needs the value of air, or where the body is")
        if self.tolerance < 0 or self.answer not in ("background", "network"):
            raise ValueError(f"tolerance must be at least 0 and answer background or network, got {self}")


@dataclass(frozen=True, eq=False)
class TileSettings:
    """How a volume is cut into tiles.

    Parameters
    ----------
    patch
        Sides of a tile, ``(z, y, x)`` or ``(y, x)``.
    overlap
        Part of a side that neighbours share, from 0 to below 1.
    batch
        Tiles that are handed to the network together.
    mirror
        Axes that are flipped, one tuple per view; the views are averaged. ``((),)`` is the image as it is.
    sigma
        Deviation of the Gaussian weight over the side of a tile.
    skip
        Tiles that need not be computed, or None.
    half
        Sums in float16: half the memory, at an error of about a thousandth of the largest logit.
    pad
        What the network sees outside of a volume that is smaller than a tile.
    slack
        Part of a step that steps may grow by to save a row of tiles; those then stand at even distances. 0 is the
        grid of MONAI.
    """

    patch: Sides
    overlap: float = 0.5
    batch: int = 2
    mirror: tuple[tuple[int, ...], ...] = ((),)
    sigma: float = 0.125
    skip: SkipRule | None = None
    half: bool = False
    pad: float = 0.0
    slack: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1 or self.batch < 1 or self.sigma <= 0 or not 0 <= self.slack <= 0.5:
            raise ValueError(
                f"overlap in [0, 1), batch from 1, sigma above 0, slack in [0, 0.5] are needed, got {self}"
            )
        if min(self.patch) < 1 or not self.mirror:
            raise ValueError(f"sides of a tile from 1 and at least one view are needed, got {self}")
        if any(not 0 <= axis < len(self.patch) for view in self.mirror for axis in view):
            raise ValueError(f"mirrored axes must be from 0 to {len(self.patch) - 1}, got {self.mirror}")


@dataclass
class TileCount:
    """What was done, for the log: tiles in all, and how many were skipped."""

    tiles: int = 0
    skipped: int = 0


def tile_starts(side: int, patch: int, overlap: float = 0.5, slack: float = 0.0) -> list[int]:
    """First voxels of the tiles along one axis of `side` voxels; the last tile ends with the axis."""
    side = max(side, patch)
    step = max(1, int(patch * (1 - overlap)))
    steps = math.ceil((side - patch) / step)
    fewer = math.ceil((side - patch) / step - slack)
    if 0 < fewer < steps and side - patch <= fewer * patch:  # no voxel between two tiles
        return [round(k * (side - patch) / fewer) for k in range(fewer + 1)]
    return [min(k * step, side - patch) for k in range(steps + 1)]


def tile_weights(patch: Sides, sigma: float = 0.125) -> FloatArray:
    """Gaussian weight ``(*patch)`` of a tile, at most 1 and at least `FLOOR`."""
    weights = np.ones((), dtype=np.float32)
    for side in patch:
        place = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
        line = np.exp(place**2 / np.float32(-2 * (sigma * side) ** 2))
        weights = weights[..., None] * line
    return np.maximum(weights, np.float32(max(float(weights.min()), FLOOR)))


def predict_slabs(
    read: Source,
    shape: Sequence[int],
    backend: Backend,
    settings: TileSettings,
    classes: int,
    *,
    activation: Literal["softmax", "sigmoid"] | None = None,
    count: TileCount | None = None,
) -> Iterator[Slab]:
    """Finished planes of the prediction, from the first to the last.

    Parameters
    ----------
    read
        The volume ``(C, *shape)``, or a function of the first and one past the last plane that gives ``(C, n, ...)``;
        it is called from another thread, each plane once.
    shape
        ``(z, y, x)``, or ``(y, x)``, where planes are lines along y.
    classes
        Channels of the output.
    activation
        None averages logits over tiles, views and networks; otherwise the probabilities are averaged.
    count
        Is filled with the number of tiles.

    Yields
    ------
    tuple
        ``(start, stop, values)`` with values ``(K, stop - start, *shape[1:])``, float32.

    Raises
    ------
    ValueError
        If shapes of volume, tile and back end do not fit.
    """
    sides = tuple(int(side) for side in shape)
    if settings.patch != backend.patch or len(sides) != len(settings.patch) or min(sides) < 1:
        raise ValueError(f"tiles {settings.patch}, back end {backend.patch} and volume {sides} do not fit")
    if not callable(read) and read.shape != (backend.inputs, *sides):
        raise ValueError(f"the volume must be {(backend.inputs, *sides)}, got {read.shape}")
    window = _Window(read, sides, settings, backend, count or TileCount())
    answers = _Answers(backend, settings, classes, activation)
    weights = tile_weights(settings.patch, settings.sigma)
    sums = Sums(window.frame, weights, answers.background(), half=settings.half, spread=_spread(settings))
    by_network = settings.skip is not None and settings.skip.answer == "network"
    air: Future[Tensor] | None = None
    with ThreadPoolExecutor(1) as computer, ThreadPoolExecutor(1) as reader:
        waiting: deque[tuple[_Batch, Future[Tensor] | None]] = deque()
        for batch in window.batches(reader):
            if by_network and air is None and any(place is None for _, _, place in batch.places):
                air = computer.submit(answers.constant)  # a back end has one caller
            waiting.append((batch, computer.submit(answers, batch.tiles) if len(batch.tiles) else None))
            while len(waiting) > AHEAD:
                yield from _added(sums, *waiting.popleft(), air)
        while waiting:
            yield from _added(sums, *waiting.popleft(), air)
        yield from sums.rest()


def _added(sums: Sums, batch: _Batch, answer: Future[Tensor] | None, air: Future[Tensor] | None) -> Iterator[Slab]:
    found = None if answer is None else answer.result()
    yield from sums.add(batch.places, found, None if air is None else air.result())


def _spread(settings: TileSettings) -> float:
    """What the weights over one voxel sum to, at most.

    Along an axis 1 + sqrt(2 pi) sigma / step, and 1 for the tile that is flush with the edge.
    """
    return (2 + math.sqrt(2 * math.pi) * settings.sigma / (1 - settings.overlap)) ** len(settings.patch)


@dataclass
class _Batch:
    """Tiles in the order of the grid: row, corner, and the place in `tiles` or None for air."""

    tiles: FloatArray
    places: list[tuple[int, Sides, int | None]] = field(default_factory=list)


class _Window:
    """The planes of the volume that the current row needs, and the tiles cut out of them."""

    def __init__(self, read: Source, sides: Sides, settings: TileSettings, backend: Backend, count: TileCount) -> None:
        self.read, self.sides, self.settings, self.count = read, sides, settings, count
        self.inputs = backend.inputs
        self.patch = settings.patch
        self.padded = tuple(max(side, own) for side, own in zip(sides, self.patch, strict=True))
        # As MONAI and nnU-Net pad: the volume in the middle, the odd voxel behind it.
        self.before = tuple((long - side) // 2 for long, side in zip(self.padded, sides, strict=True))
        starts = [
            tile_starts(side, own, settings.overlap, settings.slack)
            for side, own in zip(self.padded, self.patch, strict=True)
        ]
        self.rows, self.columns = starts[0], list(itertools.product(*starts[1:]))
        self.frame = Frame(sides, self.padded, self.before, tuple(self.rows))
        self.air = None if settings.skip is None else _Air(settings.skip, sides, self.inputs)
        self.held: NDArray[Any] = np.empty((self.inputs, 0, *sides[1:]), dtype=np.float32)
        self.first, self.next = 0, 0

    def batches(self, reader: ThreadPoolExecutor) -> Iterator[_Batch]:
        """All tiles in batches, which go on over the ends of rows."""
        spans = [
            (max(z - self.before[0], 0), min(z - self.before[0] + self.patch[0], self.sides[0])) for z in self.rows
        ]
        batch = self._batch()
        coming = self._ask(reader, spans[0])
        filled = 0
        for row, z in enumerate(self.rows):
            self._advance(spans[row], coming)
            if row + 1 < len(self.rows):
                coming = self._ask(reader, spans[row + 1])
            for column in self.columns:
                corner = (z, *column)
                place = filled if self._cut(corner, batch.tiles[filled]) else None
                batch.places.append((row, corner, place))
                filled += place is not None
                self.count.tiles += 1
                self.count.skipped += place is None
                if filled == self.settings.batch:
                    yield batch
                    batch, filled = self._batch(), 0
        batch.tiles = batch.tiles[:filled]
        yield batch

    def _batch(self) -> _Batch:
        return _Batch(np.empty((self.settings.batch, self.inputs, *self.patch), dtype=np.float32))

    def _ask(self, reader: ThreadPoolExecutor, span: tuple[int, int]) -> Future[NDArray[Any]] | None:
        """Read the planes of `span` that were not read yet, in the other thread."""
        if not callable(self.read):
            return None
        start, self.next = self.next, max(span[1], self.next)
        return reader.submit(self.read, start, self.next) if self.next > start else None

    def _advance(self, span: tuple[int, int], coming: Future[NDArray[Any]] | None) -> None:
        if not callable(self.read):
            self.held = self.read
            return
        new = None if coming is None else np.asarray(coming.result())
        fresh = 0 if new is None else new.shape[1]
        kept = span[1] - span[0] - fresh
        if new is not None and (new.shape[0] != self.inputs or new.shape[2:] != self.sides[1:]):
            raise ValueError(f"planes must be ({self.inputs}, n, {self.sides[1:]}), got {new.shape}")
        if kept < 0 or kept > self.held.shape[1]:
            raise ValueError(f"planes {span[0]} to {span[1]} were asked for, {fresh} were given")
        if self.held.shape[1] != span[1] - span[0]:
            self.held = np.empty((self.inputs, span[1] - span[0], *self.sides[1:]), dtype=np.float32)
        away = self.held.shape[1] - kept
        for k in range(kept):  # plane by plane, in place: numpy would copy overlapping ranges as a whole
            self.held[:, k] = self.held[:, k + away]
        if new is not None:
            self.held[:, kept:] = new
        self.first = span[0]

    def _cut(self, corner: Sides, tile: FloatArray) -> bool:
        """Fill `tile` with the voxels from `corner` on; False if it may be skipped."""
        lower = tuple(start - pad for start, pad in zip(corner, self.before, strict=True))
        low = tuple(max(a, 0) for a in lower)
        high = tuple(min(a + own, side) for a, own, side in zip(lower, self.patch, self.sides, strict=True))
        inside = tuple(slice(a - b, c - b) for a, b, c in zip(low, lower, high, strict=True))
        source = (slice(low[0] - self.first, high[0] - self.first), *map(slice, low[1:], high[1:]))
        if self.padded != self.sides:
            tile.fill(self.settings.pad)
        tile[(slice(None), *inside)] = self.held[(slice(None), *source)]
        return self.air is None or not self.air.only(tile, low, high)


class _Air:
    """Whether a tile holds nothing but air."""

    def __init__(self, rule: SkipRule, sides: Sides, inputs: int) -> None:
        self.rule, self.sides = rule, sides
        self.value: FloatArray = np.empty(0, dtype=np.float32)
        if rule.value is not None:
            values = np.ravel(np.asarray(rule.value, dtype=np.float32))
            if values.size not in (1, inputs):
                raise ValueError(f"the value of air needs 1 or {inputs} numbers, got {values.size}")
            self.value = np.resize(values, inputs).reshape(-1, *(1,) * len(sides))
        if isinstance(rule.body, np.ndarray) and rule.body.ndim != len(sides):
            raise ValueError(f"the mask of the body must have {len(sides)} axes, got {rule.body.shape}")

    def only(self, tile: FloatArray, low: Sides, high: Sides) -> bool:
        """True if no voxel of the tile, which covers `low` to `high` of the volume, belongs to the body."""
        if self.rule.body is not None and self._body(low, high):
            return False
        if self.rule.value is None:
            return True
        # A coarse look first: most tiles with body show it there.
        coarse = (slice(None), *(slice(None, None, 8),) * len(self.sides))
        return self._is_air(tile[coarse]) and self._is_air(tile)

    def _is_air(self, values: FloatArray) -> bool:
        return bool((np.abs(values - self.value) <= np.float32(self.rule.tolerance)).all())

    def _body(self, low: Sides, high: Sides) -> bool:
        body = self.rule.body
        if callable(body):
            return bool(body(low, high))
        cover = np.asarray(body, dtype=np.bool_)
        # Every cell of the mask that the tile touches, even by a part of a voxel.
        cells = tuple(
            slice(a * own // side, -(-b * own // side))
            for a, b, own, side in zip(low, high, cover.shape, self.sides, strict=True)
        )
        return bool(cover[cells].any())


class _Answers:
    """Tiles to averaged logits or probabilities, and what a skipped tile says."""

    def __init__(self, backend: Backend, settings: TileSettings, classes: int, activation: str | None) -> None:
        self.backend, self.settings, self.classes, self.activation = backend, settings, classes, activation

    def __call__(self, tiles: FloatArray) -> Tensor:
        """``(B, K, *patch)`` on the device of the back end."""
        total: Tensor | None = None
        views, count = self.settings.mirror, len(tiles)
        step = self._together(count)
        for start in range(0, len(views), step):
            group = [tuple(axis + 2 for axis in view) for view in views[start : start + step]]
            seen = [np.flip(tiles, axes) if axes else tiles for axes in group]
            found: Iterable[Tensor] = self.backend.each(np.concatenate(seen) if step > 1 else seen[0])
            # Sums go view by view in either case: another order would round in another way.
            found = list(found) if step > 1 else found
            for place, axes in enumerate(group):
                for logits in found:
                    if logits.shape[1] != self.classes:
                        raise ValueError(f"the network gives {logits.shape[1]} channels, {self.classes} were expected")
                    part = self._activated(logits[place * count : (place + 1) * count])
                    part = part.flip(axes) if axes else part
                    total = part if total is None else total.add_(part)
        if total is None:
            raise ValueError("a back end needs at least one network")
        parts = len(self.settings.mirror) * self.backend.members
        return total.div_(parts) if parts > 1 else total

    def _together(self, count: int) -> int:
        """Views that are computed at once: as many as fill a batch, which keeps every core busy with few tiles."""
        values = count * self.backend.members * self.classes * math.prod(self.settings.patch)
        most = min(self.settings.batch // count, _MOST_VALUES // values, len(self.settings.mirror))
        return max(1, most)

    def _activated(self, logits: Tensor) -> Tensor:
        if self.activation == "softmax":
            return logits.softmax(1)
        return logits.sigmoid() if self.activation == "sigmoid" else logits

    def background(self) -> Tensor:
        """``(K,)``: what a skipped tile says everywhere."""
        rule = self.settings.skip
        logits = torch.full((1, self.classes), -BACKGROUND_LOGIT)
        if self.activation != "sigmoid":
            logits[0, 0] = BACKGROUND_LOGIT
        if rule is not None and rule.logits is not None:
            if len(rule.logits) != self.classes:
                raise ValueError(f"logits of background need {self.classes} numbers, got {len(rule.logits)}")
            logits = torch.tensor([rule.logits], dtype=torch.float32)
        return self._activated(logits)[0].to(self.backend.device)

    def constant(self) -> Tensor:
        """``(K, *patch)``: what the network says of a tile of air."""
        rule = self.settings.skip
        value = np.resize(np.ravel(np.asarray(0.0 if rule is None else rule.value, np.float32)), self.backend.inputs)
        tile = np.empty((1, self.backend.inputs, *self.settings.patch), dtype=np.float32)
        tile[:] = value.reshape(-1, *(1,) * len(self.settings.patch))
        return self(tile)[0]
