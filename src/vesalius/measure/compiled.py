"""Compiled kernels: numba, with the machine code kept on disk and the interpreter's lock released while they run.

Kernels take plain arrays and numbers. They are compiled at their first call (a second or so each) and loaded from the
cache ever after; two threads that call one therefore run on two cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar, cast

from vesalius.core.environment import available_cores

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
R = TypeVar("R")


def kernel(function: F) -> F:
    """`function`, compiled when it is first called; without fast-math, so that sums do not depend on the machine."""
    from numba import njit

    return cast(F, njit(cache=True, nogil=True, error_model="numpy")(function))


def in_threads(work: Callable[[T], R], parts: Iterable[T], *, workers: int | None = None) -> list[R]:
    """``[work(part) for part in parts]``, in order, on as many threads as there are cores (or `workers`)."""
    todo = list(parts)
    threads = min(workers or available_cores(), len(todo))
    if threads <= 1:
        return [work(part) for part in todo]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, todo))


def slabs(length: int, pieces: int) -> list[tuple[int, int]]:
    """``range(length)`` cut into at most `pieces` nearly equal stretches ``(start, stop)``."""
    pieces = max(1, min(pieces, length))
    cuts = [length * k // pieces for k in range(pieces + 1)]
    return list(pairwise(cuts))
