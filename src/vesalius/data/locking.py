"""One writer at a time: a lock file that the system releases when its holder dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vesalius.core.errors import ResourceError


@contextmanager
def exclusive(path: Path, *, patience_s: float = 24 * 3600.0, poll_s: float = 0.2) -> Iterator[bool]:
    """Hold the lock `path` while the block runs; yields whether another process was waited for.

    Advisory locks of the operating system are used: a process that is killed leaves no lock behind. Where the file
    system or system has none (some network shares, Windows), the block runs unguarded; results are still moved into
    place atomically, so that the loser of a race only repeats work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield False
        return
    start, waited = time.monotonic(), False
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = True
                if time.monotonic() - start > patience_s:
                    raise ResourceError(
                        f"{path}: held by another process for {patience_s:.0f} s; end it or remove its run"
                    ) from None
                time.sleep(poll_s)
            except OSError:
                break
        yield waited
