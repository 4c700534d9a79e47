"""Counter-based randomness: every random decision is a pure function of (seed, purpose, counters).

Nothing keeps a state that a crash could lose, and batch k is the same on one process or on eight. The generator is
Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as numpy implements it; purposes are
hashed into its key, so that two uses of one seed never share numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 128-bit integer that depends on every argument, the same on every machine."""
    text = "\x1f".join([str(int(seed)), purpose, *(str(int(c)) for c in counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A fresh generator for one decision, e.g. ``generator(seed, "augment", step)``."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *counters)))
