"""Resizing and smooth fields as one small matrix per axis.

A linear resampling of a regular grid is separable: one ``(target, source)`` matrix with few values per axis. The same
code serves two and three dimensions, needs no data-dependent control flow (it exports), and the matrices are made in
double precision from formulas that can be read below.

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

    Not by a matrix product: libraries round those by the size of the batch and even by where it lies in memory. The
    few values other than zero of each row are gathered, multiplied and added one after the other, which has the same
    bits for a sample alone, in a batch and in an exported graph, and is no slower.
    """
    axes = []
    for axis, matrix in zip(range(-len(matrices), 0), matrices, strict=True):
        if matrix is not None:
            # The axis that shrinks most goes first: the others then work on fewer values. Gathering whole lines is
            # fast and gathering single pixels is not, so the last axis is taken while the others are short.
            ratio = matrix.shape[0] / matrix.shape[1]
            axes.append((ratio, axis if ratio < 1 else -axis, axis, matrix))
    for _, _, axis, matrix in sorted(axes, key=lambda item: item[:2]):
        x = _along(x, matrix, axis)
    return x


def _along(x: Tensor, matrix: NDArray[np.float32], axis: int) -> Tensor:
    places, weights = _taps(matrix)
    column = (-1,) + (1,) * (-axis - 1)
    index = torch.from_numpy(places).to(x.device)
    parts = torch.from_numpy(weights).to(x.device, x.dtype)
    total: Tensor | None = None
    for tap in range(len(places)):
        # In place: fresh buffers for every tap cost more than the arithmetic.
        part = x.index_select(axis, index[tap]).mul_(parts[tap].view(column))
        total = part if total is None else total.add_(part)
    if total is None:
        raise ValueError(f"a matrix of shape {matrix.shape} holds no weights")
    return total


def _taps(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns and weights ``(taps, target)`` of the band of `matrix` that is not zero."""
    used = matrix != 0
    first = used.argmax(axis=1)
    last = np.where(used.any(axis=1), matrix.shape[1] - 1 - used[:, ::-1].argmax(axis=1), first)
    places = first + np.arange(int((last - first).max(initial=0)) + 1)[:, None]
    inside = places <= last
    places = np.minimum(places, matrix.shape[1] - 1)
    weights = np.where(inside, matrix[np.arange(matrix.shape[0]), places], np.float32(0))
    return places.astype(np.int64), weights


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
