"""Many masks: several at a time within the memory, what is done is skipped, what fails does not stop the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from vesalius.core.environment import available_memory
from vesalius.core.errors import ResourceError, VesaliusError
from vesalius.core.progress import Progress
from vesalius.core.quantity import parse_bytes, show_bytes
from vesalius.io.peek import voxels_of
from vesalius.serve.measure_cases import MeasureCase
from vesalius.serve.measure_tables import CaseTables, TableStore

# Working memory of a case in bytes per voxel of the mask: label map, codes of the box, distances of one label.
_BYTES_PER_VOXEL = 14
_BYTES_PER_PARTNER_VOXEL = 5
_BASE_BYTES = 64 << 20
# Part of the free memory that is taken when nobody says how much.
_SHARE = 0.7


@dataclass
class Outcome:
    """Records of the cases that are done, and a line for each that failed."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure_cohort(
    cases: Sequence[MeasureCase],
    store: TableStore,
    gate: Gate,
    work: Callable[[MeasureCase], CaseTables],
    workers: int,
    progress: Progress,
) -> Outcome:
    """The record of every case, written to `store` as soon as it is known."""
    done = Outcome()
    todo: list[tuple[MeasureCase, str, int]] = []
    for case in cases:
        key = store.key_of([case.mask, case.image, case.reference, case.systole])
        record = store.known(case.case_id, key)
        if record is not None:
            done.records[case.case_id] = record
            continue
        todo.append((case, key, gate.check(case)))
    progress.start("measure", len(cases), "cases")
    progress.advance(len(done.records))

    def one(entry: tuple[MeasureCase, str, int]) -> dict[str, Any]:
        case, key, need = entry
        with gate.hold(need):
            return store.put(case.case_id, key, work(case))

    for (case, _, _), result in _in_order(one, todo, workers):
        if isinstance(result, str):
            done.failed[case.case_id] = result
            progress.warn(result)
        else:
            done.records[case.case_id] = result
        progress.advance()
    progress.stop()
    return done


def _in_order(
    one: Callable[[Any], dict[str, Any]], todo: Sequence[Any], workers: int
) -> Iterator[tuple[Any, dict[str, Any] | str]]:
    """Results in order, a few cases ahead at most; a case that fails gives its line instead."""

    def safely(entry: Any) -> dict[str, Any] | str:
        try:
            return one(entry)
        except VesaliusError as error:
            return str(error)
        except (ValueError, MemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"{entry[0].mask}: {reason}"

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        entries = iter(todo)
        waiting = [(entry, pool.submit(safely, entry)) for entry in islice(entries, workers * 2)]
        try:
            while waiting:
                entry, future = waiting.pop(0)
                result = future.result()
                waiting += [(fresh, pool.submit(safely, fresh)) for fresh in islice(entries, 1)]
                yield entry, result
        finally:
            for _, future in waiting:
                future.cancel()


class Gate:
    """Lets cases in as long as their estimated memory together stays below a limit; a lone case always fits."""

    def __init__(self, memory: str | int | None) -> None:
        self.stated = memory is not None
        self.limit = parse_bytes(memory) if memory is not None else int(available_memory() * _SHARE)
        self._free = threading.Condition()
        self._held = 0

    def check(self, case: MeasureCase) -> int:
        """Estimated bytes of a case.

        Raises
        ------
        ResourceError
            If it needs more than the limit that a person stated.
        """
        need = _BASE_BYTES + voxels_of(case.mask) * _BYTES_PER_VOXEL
        for partner in (case.image, case.reference, case.systole):
            if partner is not None:
                need += voxels_of(partner) * _BYTES_PER_PARTNER_VOXEL
        if self.stated and need > self.limit:
            raise ResourceError(
                f"{case.mask}: takes about {show_bytes(need)}, more than --memory {show_bytes(self.limit)}; "
                "give more memory, or crop the mask"
            )
        return need

    @contextmanager
    def hold(self, need: int) -> Iterator[None]:
        """Wait until there is room for `need` bytes, and keep them while the block runs."""
        with self._free:
            self._free.wait_for(lambda: self._held == 0 or self._held + need <= self.limit)
            self._held += need
        try:
            yield
        finally:
            with self._free:
                self._held -= need
                self._free.notify_all()
