"""Progress and warnings on standard error; results on standard output."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

from vesalius.core.quantity import show_seconds


class Screen:
    """The `core.progress.Progress` of the command line: a line that redraws itself, or sparse lines in a log.

    Parameters
    ----------
    verbosity
        -1 shows warnings only, 0 the usual, 1 more.
    """

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.live = sys.stderr.isatty()
        self._what, self._unit = "", ""
        self._total: int | None = None
        self._done, self._begin, self._drawn, self._note, self._resumed = 0, 0.0, 0.0, "", 0

    def start(self, what: str, total: int | None, unit: str = "") -> None:
        """A stage begins."""
        self._what, self._total, self._unit = what, total, unit
        self._done, self._begin, self._drawn, self._note, self._resumed = 0, time.monotonic(), 0.0, "", -1

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Redraw, at most ten times a second."""
        self._done += steps
        if self._resumed < 0:  # the first report may hold what an earlier process did
            self._resumed = self._done
        self._note = note or self._note
        now = time.monotonic()
        if self.live and self.verbosity >= 0 and now - self._drawn > 0.1:
            self._drawn = now
            sys.stderr.write("\r\x1b[2K" + self._line(now))
            sys.stderr.flush()

    def stop(self, summary: str = "") -> None:
        """The stage has ended; one line stays."""
        if self.verbosity < 0:
            return
        if self.live:
            sys.stderr.write("\r\x1b[2K")
        seconds = time.monotonic() - self._begin
        if self.verbosity > 0 or seconds > 1.0 or not self.live:
            many = f"{self._done} {self._unit}".strip()
            sys.stderr.write(
                f"  {self._what:<14} {many:<18} {show_seconds(seconds)}{'  ' + self._note if self._note else ''}\n"
            )
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.verbosity >= 0:
            self._clear()
            print(f"  {text}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A warning."""
        self._clear()
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[2K")

    def _line(self, now: float) -> str:
        elapsed = max(now - self._begin, 1e-6)
        rate = (self._done - max(self._resumed, 0)) / elapsed
        text = f"  {self._what:<14}"
        if self._total:
            part = min(self._done / self._total, 1.0)
            bar = "#" * int(24 * part)
            left = (self._total - self._done) / rate if rate > 0 else 0.0
            text += f" [{bar:<24}] {self._done}/{self._total} {self._unit}  {rate:.1f}/s  {show_seconds(left)} left"
        else:
            text += f" {self._done} {self._unit}  {rate:.1f}/s"
        return f"{text}  {self._note}"


def emit(data: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    from vesalius.core.files import jsonable

    print(json.dumps(jsonable(data), ensure_ascii=False, allow_nan=False), flush=True)


def interval_line(name: str, entry: dict[str, Any], level: float = 0.95) -> str:
    """``auroc 0.971 (95 % interval 0.960 to 0.981)``."""
    value, low, high = (_known(entry.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return f"{name:<20} not defined"
    if low is None or high is None:
        return f"{name:<20} {value:.3f}"
    return f"{name:<20} {value:.3f}  ({level:.0%} interval {low:.3f} to {high:.3f})"


def _known(number: float | None) -> float | None:
    """None for what is not a number."""
    return None if number is None or math.isnan(number) else number
