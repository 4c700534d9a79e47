"""What pixels say: brightness, contrast, blur and the like, batched, with one set of numbers per sample.

Every function takes ``(B, C, *S)`` float32 in 2-D or 3-D and host arrays of parameters whose first axis is B, and
returns a new tensor. Amounts are relative to the sample's own mean, deviation or range, so they mean the same before
and after normalisation. `Augment` calls them on the chosen samples only; the others are not touched.

Nothing here depends on how many samples are in the batch: sums are taken in double precision and filters by shifting,
so a sample comes out with the same bits alone or among others.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vesalius.transforms.noise import normal
from vesalius.transforms.resample import resize
from vesalius.transforms.spatial import smooth_field

# A Gaussian is cut at this many deviations, as scipy.ndimage does.
_TRUNCATE = 4.0


def mean_of(x: Tensor) -> Tensor:
    """Mean of each sample over channels and pixels, ``(B, 1, 1, ...)``."""
    # In double precision and row by row: the order of a sum depends on the size of the batch and on the device, and
    # here that must not reach the bits of the result.
    rows = x.sum(dim=-1, dtype=torch.float64).flatten(1)
    mean = rows.sum(dim=1) / (x.numel() // max(1, x.shape[0]))
    return mean.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


def deviation_of(x: Tensor) -> Tensor:
    """Standard deviation of each sample over channels and pixels, ``(B, 1, 1, ...)``."""
    return mean_of((x - mean_of(x)).square()).sqrt()


def range_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each sample, ``(B, 1, 1, ...)`` each."""
    low, high = x.flatten(1).aminmax(dim=1)
    ones = (1,) * (x.ndim - 1)
    return low.view(-1, *ones), high.view(-1, *ones)


def brightness(x: Tensor, amount: ArrayLike) -> Tensor:
    """Add `amount` ``(B,)`` deviations of the sample."""
    return x + _column(amount, x) * deviation_of(x)


def contrast(x: Tensor, factor: ArrayLike) -> Tensor:
    """Spread values around the sample's mean by `factor` ``(B,)``."""
    middle = mean_of(x)
    return (x - middle) * _column(factor, x) + middle


def gamma(x: Tensor, exponent: ArrayLike, *, keep_moments: bool = False) -> Tensor:
    """Bend the grey scale: ``v ** exponent`` with v in [0, 1] between the sample's smallest and largest value.

    The range is kept; `keep_moments` then restores the sample's mean and deviation instead. A blank sample stays.
    """
    low, high = range_of(x)
    extent = high - low
    unit = (x - low) / torch.where(extent > 0, extent, 1.0)
    # Not pow: its last few pixels are computed by other code than the rest, so bits would depend on the batch.
    bent = (unit.log() * _column(exponent, x)).exp() * extent + low
    if keep_moments:
        old, new = deviation_of(x), deviation_of(bent)
        bent = (bent - mean_of(bent)) * (old / torch.where(new > 0, new, 1.0)) + mean_of(x)
    return torch.where(extent > 0, bent, x)


def invert(x: Tensor) -> Tensor:
    """Swap dark and bright within the sample's range."""
    low, high = range_of(x)
    return low + high - x


def colour(x: Tensor, gain: ArrayLike, shift: ArrayLike) -> Tensor:
    """Per channel: multiply around the sample's mean by `gain` ``(B, C)``, add `shift` ``(B, C)`` deviations.

    Stains and cameras differ like this.
    """
    middle = mean_of(x)
    return (x - middle) * _column(gain, x) + (middle + _column(shift, x) * deviation_of(x))


def bias_field(x: Tensor, control: NDArray[np.float64]) -> Tensor:
    """Multiply by a smooth positive field, as a coil or a beam does.

    Parameters
    ----------
    control
        ``(B, 1, g + 3, ...)``: logarithm of the field at the control points of a cubic B-spline. Values are taken
        above the sample's minimum, which stays where it is.
    """
    points = torch.from_numpy(np.ascontiguousarray(control, dtype=np.float32)).to(x.device)
    low, _ = range_of(x)
    return (x - low) * smooth_field(points, x.shape[2:]).exp() + low


def add_noise(x: Tensor, sigma: ArrayLike, keys: NDArray[np.int64]) -> Tensor:
    """Add Gaussian noise of `sigma` ``(B,)`` deviations of the sample; noise b is a function of ``keys[b]`` alone."""
    drawn = normal(torch.from_numpy(np.ascontiguousarray(keys, dtype=np.int64)).to(x.device), x.shape[1:])
    return x + drawn.to(x.dtype) * (_column(sigma, x) * deviation_of(x))


def blur(x: Tensor, sigma: ArrayLike) -> Tensor:
    """Gaussian filter with `sigma` pixels, ``(B,)`` or ``(B, d)`` per axis; the edge value continues outside."""
    dims = x.ndim - 2
    widths = np.asarray(sigma, dtype=np.float64)
    widths = np.broadcast_to(widths[:, None], (len(widths), dims)) if widths.ndim == 1 else widths
    if widths.shape != (x.shape[0], dims) or (widths < 0).any():
        raise ValueError(f"sigma must be ({x.shape[0]},) or ({x.shape[0]}, {dims}) and not negative")
    for axis in range(dims):
        weights = _half_gaussian(widths[:, axis])
        if weights.shape[1] > 1:
            x = _filter_axis(x, weights, axis + 2)
    return x


def _half_gaussian(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights ``(B, radius + 1)`` of the middle and one side, each row cut at its own radius."""
    radii = (_TRUNCATE * sigma + 0.5).astype(int)
    steps = np.arange(radii.max(initial=0) + 1)
    safe = np.where(sigma > 0, sigma, 1.0)[:, None]
    weights = np.where(steps <= radii[:, None], np.exp(-0.5 * (steps / safe) ** 2), 0.0)
    return np.asarray(weights / (2 * weights.sum(axis=1, keepdims=True) - weights[:, :1]))


def _filter_axis(x: Tensor, weights: NDArray[np.float64], axis: int) -> Tensor:
    radius, side = weights.shape[1] - 1, x.shape[axis]
    reach = torch.arange(-radius, side + radius, device=x.device).clamp(0, side - 1)
    padded = x.index_select(axis, reach)
    out = x * _column(weights[:, 0], x)
    for step in range(1, radius + 1):
        both = padded.narrow(axis, radius - step, side) + padded.narrow(axis, radius + step, side)
        out += both * _column(weights[:, step], x)
    return out


def low_resolution(x: Tensor, factor: ArrayLike, *, axes: tuple[int, ...] | None = None) -> Tensor:
    """Shrink by `factor` ``(B,)`` with anti-aliasing and enlarge again; `axes` are spatial axes, all by default."""
    shape = x.shape[2:]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, by in enumerate(np.asarray(factor, dtype=np.float64)):
        few = tuple(
            max(1, round(side / by)) if axes is None or axis in axes else side for axis, side in enumerate(shape)
        )
        groups.setdefault(few, []).append(row)
    out = torch.empty_like(x)
    for few, rows in groups.items():
        index = torch.tensor(rows, device=x.device)
        out.index_copy_(0, index, resize(resize(x[index], few), shape))
    return out


def cutout(x: Tensor, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> Tensor:
    """Replace boxes by the sample's mean.

    Parameters
    ----------
    lower, upper
        ``(B, count, d)``: corners of the boxes as fractions of the sides; a box without extent is none.
    """
    return torch.where(boxes_mask(lower, upper, x.shape[2:], x.device), mean_of(x), x)


def boxes_mask(
    lower: NDArray[np.float64], upper: NDArray[np.float64], shape: torch.Size, device: torch.device
) -> Tensor:
    """Pixels inside any of the boxes ``(B, count, d)``: ``(B, 1, *shape)`` bool."""
    count, dims = lower.shape[1:]
    inside = torch.zeros((lower.shape[0], 1, *shape), dtype=torch.bool, device=device)
    starts, stops = pixel_bounds(lower, shape), pixel_bounds(upper, shape)
    for box in range(count):
        whole: Tensor | None = None
        for axis in range(dims):
            place = np.arange(shape[axis])
            rows = (place >= starts[:, box, axis, None]) & (place < stops[:, box, axis, None])
            line = torch.from_numpy(rows).to(device)
            line = line.view(-1, 1, *(shape[axis] if k == axis else 1 for k in range(dims)))
            whole = line if whole is None else whole & line
        if whole is not None:
            inside |= whole
    return inside


def pixel_bounds(fraction: NDArray[np.float64], shape: torch.Size) -> NDArray[np.int64]:
    """Fractions ``(..., d)`` of the sides as pixel edges, rounded and inside the image."""
    sides = np.asarray(shape)
    return np.asarray(np.clip(np.rint(fraction * sides), 0, sides), dtype=np.int64)


def _column(values: ArrayLike, x: Tensor) -> Tensor:
    """Host numbers ``(B,)`` or ``(B, C)`` as a tensor that broadcasts over `x`."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.shape[0] != x.shape[0]:
        raise ValueError(f"{array.shape[0]} parameters for a batch of {x.shape[0]}")
    column = torch.from_numpy(array).to(x.device)
    return column.view(*array.shape, *(1,) * (x.ndim - array.ndim))
