"""What the functions of `measure` are given, checked once and in the same words: masks and spacings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray


def checked_spacing(spacing: Sequence[float] | None, ndim: int) -> tuple[float, ...]:
    """`spacing` as `ndim` floats; ones where it is None.

    Raises
    ------
    ValueError
        Unless there is one positive finite number per axis.
    """
    if spacing is None:
        return (1.0,) * ndim
    steps = tuple(float(step) for step in spacing)
    if len(steps) != ndim or not all(np.isfinite(step) and step > 0 for step in steps):
        raise ValueError(f"spacing must be {ndim} positive numbers, one per axis, got {spacing}")
    return steps


def checked_steps(spacing: Sequence[float] | None, ndim: int) -> FloatArray:
    """`checked_spacing` as an array ``(ndim,)``."""
    return np.array(checked_spacing(spacing, ndim))


def checked_mask(mask: NDArray[Any], name: str = "mask") -> NDArray[np.uint8]:
    """`mask` as contiguous uint8, 1 where it is not 0; a boolean array is not copied.

    Raises
    ------
    ValueError
        For other axes than (Y, X) or (Z, Y, X), or values that are not finite.
    """
    array = np.asarray(mask)
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must have axes (Y, X) or (Z, Y, X), got shape {array.shape}")
    if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if array.dtype != np.bool_:
        array = array != 0
    return np.ascontiguousarray(array).view(np.uint8)
