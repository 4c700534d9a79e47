"""Pixel noise as a pure function of (key, pixel), the same on every device and for any number of processes.

A library's generator gives other numbers on a GPU than on a CPU, and other numbers when a batch is split. Here pixel i
of a sample is a hash of the sample's key and i: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014) in 64-bit integers that wrap around, then Box and Muller (1958). Only the rounding of
logarithm, sine and cosine differs between devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# The constants of SplitMix64, as signed 64-bit integers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_A = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_B = 0x94D049BB133111EB - (1 << 64)
_BITS = 24
# Hashes made at once: small enough for the cache of a core, large enough to keep a GPU busy.
_BLOCK = {"cpu": 1 << 16, "other": 1 << 24}


def hashed(keys: Tensor, count: int, *, first: int = 0) -> Tensor:
    """Well mixed 64-bit integers ``(B, count)`` for int64 `keys` ``(B,)`` and the counters first, first + 1, ..."""
    if keys.ndim != 1 or keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64 of shape (B,), got {keys.dtype} {tuple(keys.shape)}")
    # Keys are mixed themselves, so that neighbouring keys start far apart on the sequence.
    start = _mix_(keys + _STEP)
    counters = torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=keys.device)
    return _mix_(start[:, None] + counters * _STEP)


def uniform(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers in [0, 1), ``(B, *shape)`` float32 with 24 random bits each."""
    bits = _shift(hashed(keys, math.prod(shape)), 64 - _BITS)
    return (bits.to(torch.float32) * 2.0**-_BITS).view(-1, *shape)


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers for each key.

    Parameters
    ----------
    keys
        ``(B,)`` int64, one per sample; any values, also neighbouring ones.
    shape
        Shape of one sample, e.g. ``(C, Y, X)``.

    Returns
    -------
    Tensor
        ``(B, *shape)`` float32 on the device of `keys`. Row b depends on ``keys[b]`` and `shape` alone. The largest
        possible magnitude is 5.77 (24 random bits).
    """
    total = math.prod(shape)
    pairs = (total + 1) // 2
    out = torch.empty((keys.shape[0], total), dtype=torch.float32, device=keys.device)
    block = max(1, _BLOCK["cpu" if keys.device.type == "cpu" else "other"] // max(1, pairs))
    for start in range(0, keys.shape[0], block):
        bits = hashed(keys[start : start + block], pairs)
        angle = (bits & ((1 << _BITS) - 1)).to(torch.float32).mul_(2 * math.pi * 2.0**-_BITS)
        # (0, 1]: the logarithm of zero is never asked for.
        radius = _shift(bits, 64 - _BITS).add_(1).to(torch.float32).mul_(2.0**-_BITS).log_().mul_(-2).sqrt_()
        out[start : start + block, :pairs] = angle.cos() * radius
        out[start : start + block, pairs:] = (angle.sin_() * radius)[:, : total - pairs]
    return out.view(-1, *shape)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own copies the sign bit."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix_(z: Tensor) -> Tensor:
    z ^= _shift(z, 30)
    z *= _MIX_A
    z ^= _shift(z, 27)
    z *= _MIX_B
    z ^= _shift(z, 31)
    return z
