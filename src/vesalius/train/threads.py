"""How many threads a training under a budget computes with, decided anew at its milestones.

Another number of threads adds in another order, so every decision is on disk before it is used, and a resumed run
computes as the killed one did. Without a budget the number stays, and the same plan gives the same weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from vesalius.core.load import Load
from vesalius.predict.device import use_cores


class Threads:
    """Decisions so far, kept in a file of one JSON object a line.

    Parameters
    ----------
    journal
        The file; made with the first decision.
    spare
        How many cores are worth a thread now.
    """

    def __init__(self, journal: Path, spare: Callable[[], int] | None = None) -> None:
        self.journal, self._spare = journal, spare or Load().spare_cores
        self.decisions: dict[int, int] = {}
        if journal.exists():
            for line in journal.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the line a killed process was writing: it never took effect
                    continue
                self.decisions[int(entry["step"])] = int(entry["threads"])
        self._resumed = bool(self.decisions)

    def at(self, step: int) -> int:
        """Compute with the number decided for `step`: now, unless a process that was killed has decided it."""
        if step not in self.decisions and not self._resumed:
            self._decide(step, self._spare())
        self._resumed = False
        # The last decision before it: a checkpoint may lie between two milestones.
        known = max(since for since in self.decisions if since <= step)
        return use_cores(self.decisions[known])

    def _decide(self, step: int, threads: int) -> None:
        with self.journal.open("a", encoding="utf-8") as file:
            # A line break first: the line before may be torn.
            file.write("\n" + json.dumps({"step": step, "threads": threads}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.decisions[step] = threads
