"""Slices onto an orthogonal grid: gantry tilt undone in the plane, uneven distances along the normal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.io.dicom_geometry import Resampling


def resample(volume: NDArray[Any], plan: Resampling, *, nearest: bool = False) -> NDArray[Any]:
    """`volume` ``(C, n, Y, X)``, slices in the order of `plan`, on the grid of the plan ``(C, Z, Y', X')``.

    Linear in the plane and along the normal, or `nearest` for labels. The type stays: integers are rounded. What no
    slice covers takes the lowest value of the volume (0 for labels).
    """
    channels = volume.shape[0]
    fill = volume.dtype.type(0) if nearest else volume.min()
    result = np.empty((channels, len(plan.targets), *plan.shape), volume.dtype)
    below, above, weight = _neighbours(plan, nearest=nearest)
    for channel in range(channels):
        kept: dict[int, NDArray[Any]] = {}
        for z, (low, high, part) in enumerate(zip(below, above, weight, strict=True)):
            for index in (low, high):
                if index not in kept:
                    kept[index] = _placed(volume[channel, index], plan, index, fill, nearest=nearest)
            mixed = kept[low] if part == 0 else (1 - part) * kept[low] + part * kept[high]
            result[channel, z] = _as(mixed, volume.dtype)
            kept = {index: kept[index] for index in (low, high)}  # targets rise: earlier slices are not needed again
    return result


def _neighbours(plan: Resampling, *, nearest: bool) -> tuple[list[int], list[int], list[float]]:
    """For each target the slices below and above it, and the weight of the one above."""
    last = len(plan.distances) - 1
    below = np.clip(np.searchsorted(plan.distances, plan.targets + 1e-9, side="right") - 1, 0, max(last - 1, 0))
    above = np.minimum(below + 1, last)
    gap = np.maximum(plan.distances[above] - plan.distances[below], 1e-12)
    weight = np.clip((plan.targets - plan.distances[below]) / gap, 0.0, 1.0)
    if nearest:
        weight = np.rint(weight)
    weight[weight < 1e-6] = 0.0  # a target on a slice takes that slice, whatever its neighbour holds
    below = np.where(weight > 1 - 1e-6, above, below)
    weight[weight > 1 - 1e-6] = 0.0
    return [int(i) for i in below], [int(i) for i in above], [float(w) for w in weight]


def _placed(pixels: NDArray[Any], plan: Resampling, index: int, fill: Any, *, nearest: bool) -> NDArray[Any]:
    """One slice ``(Y, X)`` on the output plane, moved by its shift."""
    from scipy import ndimage

    shift = plan.shifts[index]
    whole = np.rint(shift)
    if np.abs(shift - whole).max() < 1e-6:  # whole pixels need no interpolation and lose nothing
        placed = np.full(plan.shape, fill, pixels.dtype)
        row, column = int(whole[0]), int(whole[1])
        placed[row : row + pixels.shape[0], column : column + pixels.shape[1]] = pixels
        return placed
    work = pixels if nearest else pixels.astype(np.float64)
    moved: NDArray[Any] = ndimage.affine_transform(
        work,
        np.ones(2),
        offset=-shift,
        output_shape=plan.shape,
        order=0 if nearest else 1,
        mode="constant",
        cval=float(fill),
    )
    return moved


def _as(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if values.dtype == dtype:
        return values
    # A weighted mean never leaves the range of what it was made from, so nothing can overflow here.
    return np.rint(values).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)
