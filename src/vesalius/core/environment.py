"""The only place that reads the environment of the process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def variable(name: str, default: str | None = None) -> str | None:
    """The environment variable `name`; an empty one counts as absent."""
    return os.environ.get(name) or default


def cache_folder() -> Path:
    """Where prepared data are: ``VESALIUS_CACHE``, else ``XDG_CACHE_HOME/vesalius``, else ``~/.cache/vesalius``."""
    named = variable("VESALIUS_CACHE")
    if named:
        return Path(named)
    return Path(variable("XDG_CACHE_HOME") or Path.home() / ".cache") / "vesalius"


def process_rank() -> tuple[int, int]:
    """(rank, world size) as torchrun sets them; (0, 1) for a single process."""
    return int(variable("RANK", "0") or 0), int(variable("WORLD_SIZE", "1") or 1)


def available_cores() -> int:
    """Cores this process may use (its affinity, not the machine's count)."""
    mine = own_cores()
    return (os.cpu_count() or 1) if mine is None else len(mine)


def own_cores() -> list[int] | None:
    """Numbers of the cores this process may use; None where the system knows no affinity."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def share_cores() -> None:
    """Let idle threads sleep instead of spinning, unless the person decided otherwise; before torch is imported.

    OpenMP threads that spin while they wait take the cores from whatever else the machine does: with two other busy
    processes on two cores a training step took four times as long as with sleeping threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where the system does not tell."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    import sys

    if sys.platform == "win32":
        return 0
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(found) << (0 if sys.platform == "darwin" else 10)


def resident_memory() -> int:
    """Resident memory of this process now, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def forget_peak_memory() -> None:
    """Let `peak_memory` count from now, where the system allows it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def available_memory() -> int:
    """Bytes of memory that can be taken now: free on the machine and under the control group's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue
    return max(free, 0)
