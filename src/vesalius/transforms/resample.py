"""Resizing and smooth fields as one small matrix per axis.

A linear resampling of a regular grid is separable, so it is a product with one ``(target, source)`` matrix per axis.
The same code serves two and three dimensions, needs no data-dependent control flow (it exports), and the matrices are
made in double precision from formulas that can be read below.

Pixel centres lie at ``index + 0.5`` (what torch calls ``align_corners=False``), so the edges of the image stay where
they are when its number of pixels changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KERNELS = ("linear", "area", "nearest")


@lru_cache(maxsize=256)
def interpolation_matrix(
    source: int, target: int, *, kernel: str = "linear", antialias: bool = True
) -> NDArray[np.float32]:
    """Weights ``(target, source)`` that resample one axis; every row sums to 1.

    Parameters
    ----------
    source, target
        Number of pixels before and after, at least 1.
    kernel
        ``"linear"`` (a triangle), ``"area"`` (the exact overlap of old and new pixels) or ``"nearest"``.
    antialias
        Widen the triangle to the size of a new pixel when shrinking, so that no old pixel is skipped
        (Heckbert, "Fundamentals of texture mapping and image warping", 1989, section 3.5; Pillow does the same).

    Raises
    ------
    ValueError
        For an unknown kernel or an empty axis.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel {kernel!r} is unknown; choose one of {', '.join(KERNELS)}")
    if source < 1 or target < 1:
        raise ValueError(f"an axis needs at least one pixel, got {source} -> {target}")
    step = source / target
    centres = ((np.arange(target) + 0.5) * step - 0.5)[:, None]
    pixels = np.arange(source)[None, :]
    if kernel == "nearest":
        chosen = np.minimum(np.floor((np.arange(target) + 0.5) * step).astype(int), source - 1)
        weights = np.eye(source)[chosen]
    elif kernel == "area":
        upper = np.minimum(pixels + 0.5, centres + step / 2)
        lower = np.maximum(pixels - 0.5, centres - step / 2)
        weights = np.clip(upper - lower, 0, None)
    else:
        width = max(step, 1.0) if antialias else 1.0
        weights = np.clip(1 - np.abs(pixels - centres) / width, 0, None)
    matrix: NDArray[np.float32] = np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=256)
def spline_matrix(pixels: int, cells: int) -> NDArray[np.float32]:
    """Weights ``(pixels, cells + 3)`` of the uniform cubic B-spline over `cells` equal intervals of one axis.

    Control point k belongs to position ``(k - 1) / cells`` of the axis; rows sum to 1, so a constant stays constant
    (de Boor, "A practical guide to splines", 1978).
    """
    if pixels < 1 or cells < 1:
        raise ValueError(f"a spline needs at least one pixel and one cell, got {pixels} and {cells}")
    place = (np.arange(pixels) + 0.5) / pixels * cells
    cell = np.minimum(place.astype(int), cells - 1)
    t = place - cell
    basis = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    matrix = np.zeros((pixels, cells + 3), dtype=np.float32)
    for k in range(4):
        matrix[np.arange(pixels), cell + k] = basis[k]
    matrix.setflags(write=False)
    return matrix


def apply_matrices(x: Tensor, matrices: Sequence[NDArray[np.float32] | None]) -> Tensor:
    """Multiply the last ``len(matrices)`` axes of `x` with a ``(target, source)`` matrix each; None leaves an axis.

    The axis that shrinks most goes first: the others then work on fewer values.
    """
    axes = [(m.shape[0] / m.shape[1], k - len(matrices), m) for k, m in enumerate(matrices) if m is not None]
    for _, axis, matrix in sorted(axes, key=lambda item: item[:2]):
        # A copy, because the cached array is read-only and torch wants to own what it wraps.
        weights = torch.from_numpy(matrix.copy()).to(x.device, x.dtype)
        x = _along(x, weights, axis)
    return x


def _along(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    if axis == -1:
        return torch.matmul(x, weights.T)
    if axis == -2:
        return torch.matmul(weights, x)
    product = torch.matmul(weights, x.flatten(axis + 1))
    return product.reshape(*product.shape[:-1], *x.shape[axis + 1 :])


def resize(x: Tensor, size: Sequence[int], *, antialias: bool = True, kernel: str = "linear") -> Tensor:
    """Resample a batch to `size` pixels.

    Parameters
    ----------
    x
        ``(B, C, Y, X)`` or ``(B, C, Z, Y, X)``, floating point.
    size
        ``(y, x)`` or ``(z, y, x)``. Axes that keep their number of pixels are not touched at all.
    antialias, kernel
        See `interpolation_matrix`.

    Raises
    ------
    ValueError
        If `x` is not floating point or `size` does not have one number per spatial axis.
    """
    shape = tuple(x.shape[2:])
    if len(size) != len(shape):
        raise ValueError(f"size must have one number per spatial axis of {tuple(x.shape)}, got {tuple(size)}")
    if not x.is_floating_point():
        raise ValueError(f"resize needs floating point values, got {x.dtype}; convert first")
    return apply_matrices(x, [
        None if old == new else interpolation_matrix(int(old), int(new), kernel=kernel, antialias=antialias)
        for old, new in zip(shape, size, strict=True)
    ])  # fmt: skip


def spaced_shape(shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> tuple[int, ...]:
    """Pixels per axis after resampling from `spacing_mm` to `target_mm`, at least 1; the extent in mm is kept."""
    if not len(shape) == len(spacing_mm) == len(target_mm):
        raise ValueError(f"shape {tuple(shape)}, spacing {tuple(spacing_mm)} and target {tuple(target_mm)} must agree")
    if min(*spacing_mm, *target_mm) <= 0:
        raise ValueError(f"spacings must be positive mm, got {tuple(spacing_mm)} and {tuple(target_mm)}")
    return tuple(max(1, round(side * old / new)) for side, old, new in zip(shape, spacing_mm, target_mm, strict=True))


def resample_to_spacing(
    x: Tensor, spacing_mm: Sequence[float], target_mm: Sequence[float], *, kernel: str = "linear"
) -> Tensor:
    """Resample ``(B, C, *S)`` from pixels of `spacing_mm` to pixels of about `target_mm` (order z, y, x).

    The new spacing is exact only up to the rounding of the number of pixels: it is ``side * spacing / new_side``.
    """
    return resize(x, spaced_shape(x.shape[2:], spacing_mm, target_mm), kernel=kernel)
