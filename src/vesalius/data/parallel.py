"""Work in a few threads, with a bound on how much is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], workers: int, name: str) -> Iterator[Result]:
    """The results of ``work(item)``, in the order in which they are finished.

    Readers and compressors release the interpreter, so threads are enough. At most one item more than there are
    `workers` is under way, since an item may be a volume.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        running: set[Future[Result]] = set()
        for item in items:
            running.add(pool.submit(work, item))
            if len(running) > workers:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
