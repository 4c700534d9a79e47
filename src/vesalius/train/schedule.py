"""The learning rate as a pure function of how far training is, and the clock that keeps a budget.

Progress runs from 0 to 1. With a fixed number of steps it is ``step / total``. Under a wall-time budget the total is
set from measured speed and may be revised; every revision is written to disk before it takes effect, so that a resumed
run follows the same curve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def rate(settings: Mapping[str, Any], progress: float) -> float:
    """Learning rate at `progress` for section ``optim`` of a plan.

    ``one_cycle`` rises linearly to the maximum and falls linearly to a hundredth of it (Smith and Topin 2018, in the
    linear form of Page 2018); ``cosine`` warms up and follows half a cosine (Loshchilov and Hutter 2017); ``step``
    divides by ten at the given parts; ``constant`` stays.
    """
    top, warm = float(settings["lr"]), float(settings["warmup"])
    kind = settings["schedule"]
    if kind == "step":
        return top * 0.1 ** sum(progress >= float(at) for at in settings["step_at"])
    if kind == "constant":
        return top
    if warm > 0 and progress < warm:
        return top * (0.05 + 0.95 * progress / warm)
    rest = (progress - warm) / max(1 - warm, 1e-9)
    if kind == "cosine":
        return top * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0))))
    return top * (0.01 + 0.99 * max(0.0, 1 - rest))


@dataclass
class Course:
    """How many steps there will be, and what was decided when.

    Parameters
    ----------
    total
        Steps of the whole training as planned at the start.
    journal
        File that keeps revisions, one JSON object a line; None keeps none.
    writes
        Whether this process writes the journal; of several, the first does.
    """

    total: int
    journal: Path | None = None
    writes: bool = True
    revisions: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.journal is not None and self.journal.exists():
            for line in self.journal.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the line a killed process was writing: it never took effect
                    continue
                self.revisions.append((int(entry["step"]), int(entry["total"])))

    def end(self, step: int) -> int:
        """The last step as decided for `step`."""
        end = self.total
        for since, total in self.revisions:
            if since <= step:
                end = total
        return end

    def progress(self, step: int) -> float:
        """How far training is before `step`, continuous over revisions."""
        done, place, end = 0.0, 0, self.total
        for since, total in self.revisions:
            if since > step:
                break
            done += (1 - done) * (since - place) / max(end - place, 1)
            place, end = since, total
        return min(1.0, done + (1 - done) * (step - place) / max(end - place, 1))

    def decided(self, step: int) -> bool:
        """Whether the question of revising at `step` has been answered before (by a process that was killed)."""
        return any(since == step for since, _ in self.revisions)

    def revise(self, step: int, total: int) -> None:
        """From `step` on training ends at `total`; on disk before it returns."""
        import os

        total = max(int(total), step)
        if self.journal is not None and self.writes:
            with self.journal.open("a", encoding="utf-8") as file:
                # A line break first: the line before may be torn.
                file.write("\n" + json.dumps({"step": step, "total": total}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.revisions.append((step, total))
