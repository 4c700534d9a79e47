"""Named damages of five strengths, to ask how a finished model bears them.

After the idea of Hendrycks and Dietterich ("Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019), with damages that scanners make. Strengths are relative to each sample's own deviation,
range or size. Sample b is a pure function of (name, severity, seed, number of the sample): results can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vesalius.core.randomness import generator, key
from vesalius.transforms import intensity
from vesalius.transforms.noise import uniform

SEVERITIES = (1, 2, 3, 4, 5)
_NOISE = (0.1, 0.2, 0.35, 0.55, 0.8)  # deviations of the sample
_BLUR = (0.01, 0.02, 0.03, 0.045, 0.06)  # part of the shortest (y, x) side
_CONTRAST = (0.75, 0.6, 0.45, 0.3, 0.2)
_BIAS = (0.2, 0.4, 0.6, 0.9, 1.2)  # of the logarithm of the field
_MOTION = (0.01, 0.02, 0.03, 0.045, 0.06)  # shift as part of the side
_QUALITY = (50, 30, 18, 10, 5)
_BIAS_CELLS = 2

# Luminance table of ITU-T T.81 (JPEG), annex K.1.
_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


def corrupt(image: Tensor, name: str, severity: int, *, seed: int = 0, first: int = 0) -> Tensor:
    """A damaged copy of a batch.

    Parameters
    ----------
    image
        ``(B, C, *S)`` floating point, 2-D or 3-D.
    name
        One of `CORRUPTIONS`.
    severity
        1 (hardly seen) to 5 (severe).
    seed, first
        Sample b uses randomness number ``first + b``, so batches of any size give the same result.

    Raises
    ------
    ValueError
        For an unknown name or severity, or wrong axes.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r} is unknown; choose one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be a whole number from 1 to 5, got {severity}")
    if image.ndim not in (4, 5) or not image.is_floating_point():
        raise ValueError(f"image must be floating (B, C, Y, X) or (B, C, Z, Y, X), got {tuple(image.shape)}")
    purpose = f"corrupt.{name}"
    ids = range(first, first + image.shape[0])
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        damaged = CORRUPTIONS[name](image.to(torch.float32), severity - 1, seed, purpose, ids)
    return damaged.to(image.dtype)


def _keys(seed: int, purpose: str, ids: range) -> NDArray[np.int64]:
    return np.array([key(seed, purpose, number) & ((1 << 63) - 1) for number in ids], dtype=np.int64)


def _noise(x: Tensor, level: int, seed: int, purpose: str, ids: range) -> Tensor:
    return intensity.add_noise(x, np.full(len(ids), _NOISE[level]), _keys(seed, purpose, ids))


def _blur(x: Tensor, level: int, seed: int, purpose: str, ids: range) -> Tensor:
    # At least a third of a pixel, or severity 1 does nothing to thumbnails.
    sigma = max(_BLUR[level] * min(x.shape[-2:]), (level + 1) / 3)
    return intensity.blur(x, np.full(len(ids), sigma))


def _contrast(x: Tensor, level: int, seed: int, purpose: str, ids: range) -> Tensor:
    return intensity.contrast(x, np.full(len(ids), _CONTRAST[level]))


def _bias(x: Tensor, level: int, seed: int, purpose: str, ids: range) -> Tensor:
    shape = (1, *(_BIAS_CELLS + 3,) * (x.ndim - 2))
    control = [generator(seed, purpose, number).uniform(-1, 1, shape) for number in ids]
    return intensity.bias_field(x, np.stack(control) * _BIAS[level])


def _motion(x: Tensor, level: int, seed: int, purpose: str, ids: range) -> Tensor:
    """A patient who moves while k-space is filled line by line: some lines of y see the object elsewhere.

    A shift by s pixels turns the phase of frequency f by ``-2 pi f s``; three of ten lines are disturbed, the lowest
    frequencies are spared (they are acquired in one go).
    """
    keys = torch.from_numpy(_keys(seed, purpose, ids)).to(x.device)
    height, width = x.shape[-2:]
    drawn = uniform(keys, (3, height))
    f_y = torch.fft.fftfreq(height, device=x.device)
    f_x = torch.fft.rfftfreq(width, device=x.device)
    moved = ((drawn[:, 0] < 0.3) & (f_y.abs() > 2.5 / height)).to(torch.float32)
    reach = _MOTION[level]
    shift_y = (2 * drawn[:, 1] - 1) * moved * reach * height
    shift_x = (2 * drawn[:, 2] - 1) * moved * reach * width
    phase = -2 * math.pi * (f_y[None, :, None] * shift_y[:, :, None] + f_x * shift_x[:, :, None])
    turn = torch.polar(torch.ones_like(phase), phase).view(-1, *(1,) * (x.ndim - 3), height, f_x.numel())
    moving: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * turn, s=(height, width))
    return moving


def _jpeg(x: Tensor, level: int, seed: int, purpose: str, ids: range) -> Tensor:
    """Quantised cosine coefficients of 8 x 8 blocks of the (y, x) plane, each channel with the luminance table."""
    low, high = intensity.range_of(x)
    extent = torch.where(high > low, high - low, 1.0)
    height, width = x.shape[-2:]
    rows = torch.arange(-(-height // 8) * 8, device=x.device).clamp_max(height - 1)
    columns = torch.arange(-(-width // 8) * 8, device=x.device).clamp_max(width - 1)
    grey = ((x - low) / extent * 255 - 128).index_select(-2, rows).index_select(-1, columns)
    tiles = (grey.shape[-2] // 8, 8, grey.shape[-1] // 8, 8)
    blocks = grey.reshape(*grey.shape[:-2], *tiles).transpose(-3, -2)
    cosine = _cosine_matrix().to(x.device)
    quality = _QUALITY[level]
    # The usual reading of "quality" (Independent JPEG Group).
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = (torch.tensor(_TABLE, dtype=torch.float32, device=x.device) * percent / 100).round().clamp(1, 255)
    coefficients = ((cosine @ blocks @ cosine.T) / table).round() * table
    back: Tensor = (cosine.T @ coefficients @ cosine).transpose(-3, -2).reshape(grey.shape)
    grey = back[..., :height, :width].clamp(-128, 127)
    return (grey + 128) / 255 * extent + low


def _cosine_matrix() -> Tensor:
    """Orthonormal DCT-II of 8 points."""
    k = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * k[None, :] + 1) * k[:, None] / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(torch.float32)


CORRUPTIONS: dict[str, Callable[[Tensor, int, int, str, range], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "bias": _bias,
    "motion": _motion,
    "jpeg": _jpeg,
}
"""Damages by name; the values are internal, call `corrupt`."""
