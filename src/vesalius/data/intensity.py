"""Pixel values of many images in a few numbers per image, so that the images that count can be chosen later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.randomness import generator

PERCENTILES = (0.5, 50.0, 99.5)
_DRAWN = {"small": 32, "picture": 128, "volume": 2048}  # pixels of an image that are kept for percentiles
_SMALL = 4096
_SLAB = 4 << 20


@dataclass(frozen=True)
class Intensity:
    """Values of the training images: exact extremes and moments, percentiles of a drawn sample.

    Every number is per channel.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    p0_5: tuple[float, ...]
    p50: tuple[float, ...]
    p99_5: tuple[float, ...]
    images: int
    """How many training images these numbers come from."""


@dataclass(frozen=True, eq=False)
class ImageValues:
    """Per image and channel: number of finite pixels, low, high, mean, variance; and some of its pixels."""

    kind: str
    rows: NDArray[np.int64]
    stats: NDArray[np.float64]  # (n, C, 5)
    drawn: NDArray[Any]  # (n, C, S), native type

    def chosen(self, mask: NDArray[np.bool_]) -> ImageValues:
        """The images that `mask` marks by their number."""
        keep = mask[self.rows]
        return ImageValues(self.kind, self.rows[keep], self.stats[keep], self.drawn[keep])


def values_of(batch: NDArray[Any], first: int, seed: int) -> ImageValues:
    """Numbers of images ``(N, C, ...)``, the first of which has number `first`."""
    flat = batch.reshape(*batch.shape[:2], -1)
    size = "small" if flat.shape[2] < _SMALL else "volume" if batch.ndim == 5 else "picture"
    places = generator(seed, "fingerprint", first).integers(0, flat.shape[2], (len(flat), _DRAWN[size]))
    drawn = np.take_along_axis(flat, places[:, None, :], axis=2)
    stats = _moments(flat)
    rows = np.arange(first, first + len(flat), dtype=np.int64)
    return ImageValues(f"{flat.shape[1]}|{_DRAWN[size]}|{flat.dtype}", rows, stats, drawn)


def _moments(flat: NDArray[Any]) -> NDArray[np.float64]:
    """``(n, C, 5)`` of ``(n, C, P)``, in slabs, so that a large volume never stands in memory in double precision."""
    step = max(1, _SLAB // (flat.shape[0] * flat.shape[1]))
    slabs = [slice(start, start + step) for start in range(0, flat.shape[2], step)]
    count, total, squares = (np.zeros(flat.shape[:2]) for _ in range(3))
    low, high = np.full(flat.shape[:2], np.inf), np.full(flat.shape[:2], -np.inf)
    for slab in slabs:
        wide, fine = _finite(flat[:, :, slab])
        count += fine.sum(axis=2)
        total += wide.sum(axis=2)
        low = np.minimum(low, wide.min(axis=2, where=fine, initial=np.inf))
        high = np.maximum(high, wide.max(axis=2, where=fine, initial=-np.inf))
    mean = total / np.maximum(count, 1)
    for slab in slabs:
        wide, fine = _finite(flat[:, :, slab])
        wide -= mean[:, :, None]
        wide[~fine] = 0
        squares += np.einsum("ncp,ncp->nc", wide, wide)
    return np.stack([count, low, high, mean, squares / np.maximum(count, 1)], axis=2)


def _finite(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values with 0 for what is not a number, and which are numbers."""
    wide = values.astype(np.float64)
    fine = np.isfinite(wide)
    wide[~fine] = 0
    return wide, fine


def joined(parts: list[ImageValues]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[Any]]:
    """Rows, statistics and drawn pixels of parts of one kind."""
    return (
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.stats for part in parts]),
        np.concatenate([part.drawn for part in parts]),
    )


def intensity(parts: Iterable[ImageValues], chosen: NDArray[np.bool_]) -> Intensity | None:
    """Numbers over the images that `chosen` ``(N,)`` marks; None if there are none.

    Where images differ in the number of channels, those of the most frequent number speak.
    """
    some = [part.chosen(chosen) for part in parts]
    channels = Counter[int]()
    for part in some:
        channels[part.stats.shape[1]] += len(part.rows)
    if not channels.total():
        return None
    usual = max(sorted(channels), key=lambda n: channels[n])
    some = [part for part in some if part.stats.shape[1] == usual and len(part.rows)]
    stats = np.concatenate([part.stats for part in some])
    count = stats[:, :, 0].sum(axis=0)
    if not count.all():
        return None
    mean = (stats[:, :, 0] * stats[:, :, 3]).sum(axis=0) / count
    variance = (stats[:, :, 0] * (stats[:, :, 4] + (stats[:, :, 3] - mean) ** 2)).sum(axis=0) / count
    points = _percentiles(some)
    columns = (stats[:, :, 1].min(axis=0), stats[:, :, 2].max(axis=0), mean, np.sqrt(variance), *points)
    low, high, centre, std, p0_5, p50, p99_5 = (tuple(float(v) for v in column) for column in columns)
    return Intensity(low, high, centre, std, p0_5, p50, p99_5, images=len(stats))


def _percentiles(parts: list[ImageValues]) -> NDArray[np.float64]:
    """``(3, C)`` percentiles; each image counts the same, however many of its pixels are kept."""
    least = min(part.drawn.shape[2] for part in parts)
    values = np.concatenate(
        [
            part.drawn[:, :, :least].transpose(1, 0, 2).reshape(part.drawn.shape[1], -1).astype(np.float64)
            for part in parts
        ],
        axis=1,
    )
    return np.nanpercentile(np.where(np.isfinite(values), values, np.nan), PERCENTILES, axis=1)
