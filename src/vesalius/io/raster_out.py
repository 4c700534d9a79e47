"""Pictures out: PNG without loss (8 and 16 bit), JPEG for layouts that ask for it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from vesalius.core.errors import UsageError
from vesalius.core.files import atomic

# libjpeg's JPEG_MAX_DIMENSION.
_LONGEST_JPEG = 65500


def write_png(path: str | Path, pixels: NDArray[Any], *, level: int = 3) -> Path:
    """Write ``(Y, X)``, ``(1, Y, X)`` or ``(3, Y, X)`` of uint8 or uint16 as PNG; the same pixels give the same bytes.

    Raises
    ------
    UsageError
        Another shape or type. Values are never scaled on the way out.
    """
    data = imagecodecs.png_encode(_samples_last(path, pixels, (np.uint8, np.uint16)), level=level)
    with atomic(path) as file:
        file.write(data)
    return Path(path)


def write_jpeg(path: str | Path, pixels: NDArray[Any], *, quality: int = 92) -> Path:
    """Write ``(Y, X)``, ``(1, Y, X)`` or ``(3, Y, X)`` of uint8 as JPEG without chroma subsampling (with loss)."""
    buffer = io.BytesIO()
    picture = Pillow.fromarray(_samples_last(path, pixels, (np.uint8,)))
    if max(picture.size) > _LONGEST_JPEG:
        raise UsageError(f"{path}: JPEG sides are at most {_LONGEST_JPEG}, got {picture.size}; write PNG")
    picture.save(buffer, format="JPEG", quality=quality, subsampling=0)
    with atomic(path) as file:
        file.write(buffer.getvalue())
    return Path(path)


def _samples_last(path: str | Path, pixels: NDArray[Any], kinds: tuple[type, ...]) -> NDArray[Any]:
    """``(Y, X)`` or ``(Y, X, 3)``, contiguous."""
    names = " or ".join(np.dtype(kind).name for kind in kinds)
    if pixels.dtype.newbyteorder("=") not in [np.dtype(kind) for kind in kinds]:
        raise UsageError(f"{path}: {names} pixels are written, got {pixels.dtype}; window and convert them first")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1) if pixels.shape[0] == 3 else pixels[0]
    elif pixels.ndim != 2:
        raise UsageError(f"{path}: a picture has axes (Y, X) or (3, Y, X), got shape {pixels.shape}; write one slice")
    if pixels.size == 0:
        raise UsageError(f"{path}: a picture has at least one pixel, got shape {pixels.shape}")
    # A copy always: of a side of length 1 numpy keeps any stride, which the encoder takes for another layout.
    return np.array(pixels, order="C")
