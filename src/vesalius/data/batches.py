"""Batch k is a pure function of (seed, k): the same after a crash, on one process or on eight."""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class Draws(ABC):
    """Which cases each batch holds: a pure function of (seed, step), cut evenly among the processes.

    Parameters
    ----------
    rows
        ``(N,)``: rows of a store.
    size
        Global batch size; `world` must divide it.

    Raises
    ------
    ValueError
        Without cases, or for a batch that does not divide.
    """

    ahead = 2
    """Batches that are read while the caller computes, the present one included."""

    def __init__(self, rows: NDArray[np.int64], *, size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if len(rows) == 0:
            raise ValueError("no training cases")
        if size % world:
            raise ValueError(f"a batch of {size} does not divide over {world} processes; choose a multiple of {world}")
        self.rows = np.asarray(rows, dtype=np.int64)
        self.size, self.seed, self.rank, self.world = size, seed, rank, world
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
            self._epoch = (epoch, self._drawn(generator(self.seed, "order", epoch)))
        return self._epoch[1]

    def _drawn(self, draw: np.random.Generator) -> NDArray[np.int64]:
        """One epoch: every case once."""
        return np.asarray(draw.permutation(len(self.rows)), dtype=np.int64)

    def places(self, step: int) -> NDArray[np.int64]:
        """The cases of the whole global batch of a step, as places in the list of training cases."""
        count = len(self.rows)
        stream = np.arange(step * self.size, (step + 1) * self.size)
        out = np.empty(self.size, dtype=np.int64)
        for epoch in range(int(stream[0]) // count, int(stream[-1]) // count + 1):
            here = stream // count == epoch
            out[here] = self.order(epoch)[stream[here] % count]
        return out

    def own(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The first place of this process in the global batch of a step, and its cases."""
        share = self.size // self.world
        first = self.rank * share
        return first, self.places(step)[first : first + share]

    @abstractmethod
    def __call__(self, step: int) -> Batch:
        """This process's part of batch `step`."""

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop`, the next ones being read while the caller computes."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting: deque[Future[Batch]] = deque()
            for step in range(start, stop):
                while len(waiting) < self.ahead and step + len(waiting) < stop:
                    waiting.append(pool.submit(self, step + len(waiting)))
                yield waiting.popleft().result()


class Batches(Draws):
    """Training batches from a store.

    Cases are drawn without replacement within an epoch. With ``balance`` b, class c gets the part
    ``(1 - b) * frequency + b / classes`` of an epoch; cases of rare classes are then repeated as evenly as possible.

    Parameters
    ----------
    rows, size
        As for `Draws`.
    targets
        ``(N,)`` or ``(N, K)``, in the order of `rows`.
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
        super().__init__(rows, size=size, seed=seed, rank=rank, world=world)
        self.store, self.targets, self.balance = store, np.asarray(targets), balance

    def _drawn(self, draw: np.random.Generator) -> NDArray[np.int64]:
        return self._balanced(draw) if self.balance > 0 and self.targets.ndim == 1 else super()._drawn(draw)

    def __call__(self, step: int) -> Batch:
        """This process's part of batch `step`."""
        first, places = self.own(step)
        return Batch(step, first, self.size, places, self.store.read(self.rows[places]), self.targets[places])

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
