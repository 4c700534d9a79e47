"""Training patches: batch k is a pure function of (seed, k), as in `data.batches`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.randomness import generator
from vesalius.data.batches import Batch
from vesalius.data.cases import CaseStore, mask_values


class Patches:
    """Patches of cases; targets are ``(B, 1, *patch)`` label maps, or float16 with the further targets of the store.

    Cases are drawn without replacement within an epoch. With probability `foreground` a patch lies around a voxel of
    a label: first a label is drawn evenly from those that the case has, then a voxel of it, then where in the patch it
    lies; other patches lie anywhere. What a patch reaches beyond its case is zero, and `outside` in the mask.

    Parameters
    ----------
    rows
        ``(N,)``: rows of the store.
    size
        Global batch size; `world` must divide it.
    patch
        Sides.
    outside
        Value of the label map beyond the case.
    """

    def __init__(
        self,
        store: CaseStore,
        rows: NDArray[np.int64],
        *,
        size: int,
        seed: int,
        patch: Sequence[int],
        foreground: float = 0.5,
        outside: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("no training cases")
        if size % world:
            raise ValueError(f"a batch of {size} does not divide over {world} processes; choose a multiple of {world}")
        self.store, self.rows = store, np.asarray(rows, dtype=np.int64)
        self.size, self.seed, self.rank, self.world = size, seed, rank, world
        self.patch, self.foreground, self.outside = tuple(int(side) for side in patch), foreground, outside
        self.values = len(mask_values(store.labels))
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def steps_per_epoch(self) -> float:
        """Gradient steps in which every case is drawn once."""
        return len(self.rows) / self.size

    def places(self, step: int) -> NDArray[np.int64]:
        """The cases of the whole global batch of a step, as places in the list of training cases."""
        count = len(self.rows)
        stream = np.arange(step * self.size, (step + 1) * self.size)
        out = np.empty(self.size, dtype=np.int64)
        for epoch in range(int(stream[0]) // count, int(stream[-1]) // count + 1):
            if self._epoch[0] != epoch:
                self._epoch = (epoch, generator(self.seed, "order", epoch).permutation(count))
            here = stream // count == epoch
            out[here] = self._epoch[1][stream[here] % count]
        return out

    def start(self, step: int, item: int, row: int) -> tuple[int, ...]:
        """First voxel of the patch of one sample; negative where the patch begins before the case."""
        draw = generator(self.seed, "patch", step, item)
        shape = self.store.shape(row)
        # A side longer than the patch is covered by patches inside it; a shorter one lies anywhere in the patch.
        low = [min(0, side - part) for side, part in zip(shape, self.patch, strict=True)]
        high = [max(0, side - part) for side, part in zip(shape, self.patch, strict=True)]
        if draw.random() < self.foreground:
            present = [v for v in range(1, self.values) if len(self.store.places(row, v))]
            if present:
                found = self.store.places(row, present[int(draw.integers(len(present)))])
                voxel = found[int(draw.integers(len(found)))]
                inside = [int(draw.integers(part)) for part in self.patch]
                return tuple(int(np.clip(v - k, a, b)) for v, k, a, b in zip(voxel, inside, low, high, strict=True))
        return tuple(int(draw.integers(a, b + 1)) for a, b in zip(low, high, strict=True))

    def __call__(self, step: int) -> Batch:
        """This process's part of batch `step`."""
        share = self.size // self.world
        first = self.rank * share
        places = self.places(step)[first : first + share]
        pixels, targets = [], []
        for item, place in enumerate(places, start=first):
            row = int(self.rows[place])
            start = self.start(step, item, row)
            pixels.append(cut(self.store.image(row), start, self.patch, 0))
            mask = cut(self.store.mask(row), start, self.patch, self.outside)
            if self.store.has_further():
                further = cut(self.store.further(row), start, self.patch, 0)
                mask = np.concatenate([(mask > 0).astype(np.float16), further])
            targets.append(mask)
        return Batch(step, first, self.size, places, np.stack(pixels), np.stack(targets))

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop`, the next ones being read while the caller computes."""
        with ThreadPoolExecutor(1, thread_name_prefix="patches") as pool:
            waiting: deque[Future[Batch]] = deque()
            for step in range(start, stop):
                while len(waiting) < 3 and step + len(waiting) < stop:
                    waiting.append(pool.submit(self, step + len(waiting)))
                yield waiting.popleft().result()


def cut(array: Any, start: Sequence[int], size: Sequence[int], fill: float) -> NDArray[Any]:
    """The part ``(C, *size)`` of ``(C, *S)`` from `start`; what lies outside is `fill`."""
    sides = array.shape[1:]
    inner = tuple(slice(max(a, 0), min(a + n, side)) for a, n, side in zip(start, size, sides, strict=True))
    part = np.asarray(array[(slice(None), *inner)])
    if part.shape[1:] == tuple(size):
        return part
    out = np.full((array.shape[0], *size), fill, dtype=part.dtype)
    place = tuple(slice(i.start - a, i.stop - a) for i, a in zip(inner, start, strict=True))
    out[(slice(None), *place)] = part
    return out
