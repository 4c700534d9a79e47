"""Batch k is a pure function of (seed, k): the same after a crash, on one process or on eight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.randomness import generator
from vesalius.data.store import Store


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's part of a global batch.

    Parameters
    ----------
    step
        Which batch of the run.
    first, total
        This part holds places ``first`` to ``first + len(places)`` of a global batch of ``total``.
    places
        ``(B,)``: positions in the list of training cases.
    pixels
        ``(B, C, *S)`` in the storage type.
    targets
        ``(B,)`` class indices or ``(B, K)`` for multi-label.
    """

    step: int
    first: int
    total: int
    places: NDArray[np.int64]
    pixels: NDArray[Any]
    targets: NDArray[Any]


class Batches:
    """Training batches from a store.

    Cases are drawn without replacement within an epoch. With ``balance`` b, class c gets the part
    ``(1 - b) * frequency + b / classes`` of an epoch; cases of rare classes are then repeated as evenly as possible.

    Parameters
    ----------
    rows
        ``(N,)``: rows of the store.
    targets
        ``(N,)`` or ``(N, K)``, in the order of `rows`.
    size
        Global batch size; `world` must divide it.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        targets: NDArray[Any],
        *,
        size: int,
        seed: int,
        balance: float = 0.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("no training cases")
        if size % world:
            raise ValueError(f"a batch of {size} does not divide over {world} processes; choose a multiple of {world}")
        self.store, self.rows, self.targets = store, np.asarray(rows, dtype=np.int64), np.asarray(targets)
        self.size, self.seed, self.balance, self.rank, self.world = size, seed, balance, rank, world
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def steps_per_epoch(self) -> float:
        """Gradient steps in one pass over the cases."""
        return len(self.rows) / self.size

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The ``N`` draws of an epoch, as places in the list of training cases."""
        if self._epoch[0] != epoch:
            draw = generator(self.seed, "order", epoch)
            if self.balance > 0 and self.targets.ndim == 1:
                order = self._balanced(draw)
            else:
                order = draw.permutation(len(self.rows))
            self._epoch = (epoch, order)
        return self._epoch[1]

    def places(self, step: int) -> NDArray[np.int64]:
        """The places of the whole global batch of a step."""
        count = len(self.rows)
        stream = np.arange(step * self.size, (step + 1) * self.size)
        out = np.empty(self.size, dtype=np.int64)
        for epoch in range(int(stream[0]) // count, int(stream[-1]) // count + 1):
            here = stream // count == epoch
            out[here] = self.order(epoch)[stream[here] % count]
        return out

    def __call__(self, step: int) -> Batch:
        """This process's part of batch `step`."""
        share = self.size // self.world
        first = self.rank * share
        places = self.places(step)[first : first + share]
        return Batch(step, first, self.size, places, self.store.read(self.rows[places]), self.targets[places])

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop`, the next one being read while the caller computes."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting: deque[Future[Batch]] = deque()
            for step in range(start, stop):
                while len(waiting) < 2 and step + len(waiting) < stop:
                    waiting.append(pool.submit(self, step + len(waiting)))
                yield waiting.popleft().result()

    def _balanced(self, draw: np.random.Generator) -> NDArray[np.int64]:
        count = len(self.rows)
        classes, inverse, counts = np.unique(self.targets, return_inverse=True, return_counts=True)
        share = (1 - self.balance) * counts / count + self.balance / len(classes)
        ends = np.round(np.cumsum(share) * count).astype(np.int64)
        wanted = np.diff(ends, prepend=0)
        parts = []
        for label, number in enumerate(wanted):
            members = np.flatnonzero(inverse == label)
            rounds = -(-int(number) // len(members))
            parts.append(np.concatenate([draw.permutation(members) for _ in range(max(rounds, 1))])[:number])
        order = np.concatenate(parts)
        return order[draw.permutation(len(order))]
