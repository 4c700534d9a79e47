"""Training patches: batch k is a pure function of (seed, k), as in `data.batches`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.randomness import generator
from vesalius.data.batches import Batch, Draws
from vesalius.data.cases import CaseStore, mask_values


class Patches(Draws):
    """Patches of cases; targets are ``(B, 1, *patch)`` label maps, or float16 with the further targets of the store.

    Cases are drawn without replacement within an epoch. With probability `foreground` a patch lies around a voxel of
    a label: first a label is drawn evenly from those that the case has, then a voxel of it, then where in the patch it
    lies; other patches lie anywhere. What a patch reaches beyond its case is zero, and `outside` in the mask.

    Parameters
    ----------
    rows, size
        As for `Draws`.
    patch
        Sides.
    outside
        Value of the label map beyond the case.
    """

    ahead = 3

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
        super().__init__(rows, size=size, seed=seed, rank=rank, world=world)
        self.store = store
        self.patch, self.foreground, self.outside = tuple(int(side) for side in patch), foreground, outside
        self.values = len(mask_values(store.labels))

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
        first, places = self.own(step)
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
