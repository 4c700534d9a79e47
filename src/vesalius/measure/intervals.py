"""Intervals of a proportion that need no resampling."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from vesalius.measure.weights import FloatArray, ratio


def wilson(hits: ArrayLike, total: ArrayLike, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Score interval of the proportion ``hits / total`` (Wilson, JASA 1927; method 3 of Newcombe, Stat Med 1998).

    It stays honest where a bootstrap gives an interval of no width: 20 of 20 correct is (0.84, 1).

    Parameters
    ----------
    hits, total
        Counts of any shapes that broadcast, ``0 <= hits <= total``; fractions from weights are allowed.
    level
        Coverage, for example 0.95.

    Returns
    -------
    low, high
        In [0, 1]. Where ``total`` is 0 nothing is known: (0, 1).
    """
    found, size = np.broadcast_arrays(np.asarray(hits, dtype=np.float64), np.asarray(total, dtype=np.float64))
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if np.any(found < 0) or np.any(found > size):
        raise ValueError("hits must lie between 0 and total")
    z = float(ndtri(0.5 + level / 2))
    share = np.where(size > 0, ratio(found, size), 0.5)
    spread = z * np.sqrt(share * (1 - share) * size + z * z / 4)
    centre = share * size + z * z / 2
    low = np.where(found == 0, 0.0, (centre - spread) / (size + z * z))
    high = np.where(found == size, 1.0, (centre + spread) / (size + z * z))
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)
