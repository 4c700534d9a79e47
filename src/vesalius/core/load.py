"""How many of our cores other processes use.

Threads that compute together wait for each other many hundred times a second. Where another process has one of the
cores, each of these waits lasts until the system gives that core back: a training step on two shared cores took six
times as long with two threads as with one.
"""

from __future__ import annotations

import time
from contextlib import suppress

from vesalius.core.environment import available_cores, own_cores

# A core that somebody uses for less than this part is still worth a thread.
_WORTH = 0.6
_SHORTEST_S = 0.25


class Load:
    """Looks at what other processes do, from one look to the next."""

    def __init__(self) -> None:
        self._before = _reading()

    def spare_cores(self) -> int:
        """Cores worth computing on now, at least 1; all if the system does not tell who uses them.

        Counts the time since the last look, at least a quarter of a second.
        """
        cores = available_cores()
        if self._before is None or cores == 1:
            return cores
        rest = _SHORTEST_S - (time.monotonic() - self._before[0])
        if rest > 0:
            time.sleep(rest)
        now = _reading()
        if now is None:
            return cores
        (since, busy, own), self._before = self._before, now
        others = (now[1] - busy - (now[2] - own)) / max(now[0] - since, 1e-9)
        return spare(cores, others)


def spare(cores: int, others: float) -> int:
    """Of `cores`, those worth a thread while other processes keep `others` of them busy."""
    return min(cores, max(1, int(cores - others + _WORTH)))


def _reading() -> tuple[float, float, float] | None:
    """Now, seconds that our cores have been busy, and seconds of them that were ours; None where nobody tells."""
    import psutil

    with suppress(psutil.Error, OSError, AttributeError, NotImplementedError, IndexError):
        each = psutil.cpu_times(percpu=True)
        mine = own_cores()
        some = [each[core] for core in mine] if mine is not None else each
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        busy = sum(float(getattr(one, kind, 0.0)) for one in some for kind in kinds)
        me = psutil.Process()
        used = me.cpu_times()
        own = used.user + used.system + getattr(used, "children_user", 0.0) + getattr(used, "children_system", 0.0)
        for child in me.children(recursive=True):
            with suppress(psutil.Error):
                times = child.cpu_times()
                own += times.user + times.system
        return time.monotonic(), busy, float(own)
    return None
