"""Sums of tiles for as many planes as a tile is high, and the means of those that are finished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Sides = tuple[int, ...]
Slab = tuple[int, int, NDArray[np.float32]]

# Planes that are handed on at once.
PLANES = 8
# Sums in float16 hold logits up to this size: a difference of that much is certain, and the sums stay below 65504.
LARGEST = 256.0


@dataclass(frozen=True)
class Frame:
    """A volume, padded to at least one tile, and the rows of tiles in it.

    Parameters
    ----------
    sides, padded, before
        Of the volume, of the padded volume, and the padding before the first voxel.
    rows
        First plane of each row, in the padded volume, rising.
    """

    sides: Sides
    padded: Sides
    before: Sides
    rows: tuple[int, ...]


class Sums:
    """Weighted sums of the rows that are not finished: a ring of as many planes as a tile is high.

    Parameters
    ----------
    frame
        The volume and the rows of tiles in it.
    weights
        ``(*patch)``, above 0.
    background
        ``(K,)``: what a skipped tile says everywhere.
    half
        Hold the sums in float16; `spread` then bounds the sum of the weights over one voxel.
    """

    def __init__(
        self,
        frame: Frame,
        weights: NDArray[np.float32],
        background: Tensor,
        *,
        half: bool,
        spread: float,
    ) -> None:
        self.frame, self.background = frame, background
        # A factor of all weights cancels out: it keeps float16 between overflow and the subnormal numbers.
        factor = np.float32(6e4 / (LARGEST * spread) if half else 1)
        self.weights = torch.from_numpy(weights * factor).to(background.device)
        self.height = weights.shape[0]
        self.ring = torch.zeros(
            (len(background), self.height, *frame.padded[1:]),
            dtype=torch.float16 if half else torch.float32,
            device=background.device,
        )
        self.row = 0
        # Of each row that still touches unfinished planes: the corners of all tiles, and whether each was skipped.
        self.live: dict[int, list[tuple[Sides, bool]]] = {}

    def add(
        self, places: list[tuple[int, Sides, int | None]], found: Tensor | None, air: Tensor | None
    ) -> Iterator[Slab]:
        """Sum tiles, each a row, its corner and its place in `found`; planes that are finished come out.

        A tile without a place was skipped: it counts as `air` ``(K, *patch)``, or as the background.
        """
        for row, corner, place in places:
            while self.row < row:
                yield from self._finish()
            tile = air if place is None or found is None else found[place]
            if tile is not None:
                self._sum(corner, tile)
            self.live.setdefault(row, []).append((corner, tile is None))

    def rest(self) -> Iterator[Slab]:
        """The planes of the last row."""
        while self.row < len(self.frame.rows):
            yield from self._finish()

    def _sum(self, corner: Sides, values: Tensor) -> None:
        plane = tuple(slice(a, a + own) for a, own in zip(corner[1:], self.weights.shape[1:], strict=True))
        turn = corner[0] % self.height
        # The tile starts at plane `turn` of the ring and goes on at its beginning.
        for ring, tile in (
            (slice(turn, self.height), slice(0, self.height - turn)),
            (slice(0, turn), slice(self.height - turn, self.height)),
        ):
            if ring.start == ring.stop:
                continue
            into = self.ring[(slice(None), ring, *plane)]
            if into.dtype == torch.float32:
                into.addcmul_(values[:, tile], self.weights[tile])
            else:
                into.add_((values[:, tile].clamp(-LARGEST, LARGEST) * self.weights[tile]).to(into.dtype))

    def _finish(self) -> Iterator[Slab]:
        """Planes that end with the current row, cut back to the volume."""
        rows, pad = self.frame.rows, self.frame.before
        start = rows[self.row]
        stop = rows[self.row + 1] if self.row + 1 < len(rows) else start + self.height
        inside = tuple(slice(a, a + side) for a, side in zip(pad[1:], self.frame.sides[1:], strict=True))
        while start < stop:
            end = min(stop, start + PLANES, (start // self.height + 1) * self.height)
            part = self.ring[:, start % self.height : (end - 1) % self.height + 1]
            values = self._mean(part, start, end)
            part.zero_()
            low, high = max(start - pad[0], 0), min(end - pad[0], self.frame.sides[0])
            if low < high:
                own = values[(slice(None), slice(low + pad[0] - start, high + pad[0] - start), *inside)]
                yield low, high, own.contiguous().cpu().numpy()
            start = end
        self.row += 1
        after = rows[self.row] if self.row < len(rows) else stop
        self.live = {row: tiles for row, tiles in self.live.items() if rows[row] + self.height > after}

    def _mean(self, sums: Tensor, start: int, end: int) -> Tensor:
        """Sums of the padded planes `start` to `end` over the sum of their weights."""
        weight = torch.zeros(sums.shape[1:], device=sums.device)
        skipped: Tensor | None = None
        for tiles in self.live.values():
            for corner, air in tiles:
                stop = min(end, corner[0] + self.height)
                if stop <= start:
                    continue
                place = (
                    slice(0, stop - start),
                    *(slice(a, a + own) for a, own in zip(corner[1:], self.weights.shape[1:], strict=True)),
                )
                own = self.weights[start - corner[0] : stop - corner[0]]
                weight[place] += own
                if air:
                    skipped = torch.zeros_like(weight) if skipped is None else skipped
                    skipped[place] += own
        values = sums.to(torch.float32, copy=True)
        if skipped is not None:
            values.addcmul_(self.background.view(-1, *(1,) * weight.ndim), skipped)
        return values.div_(weight)
