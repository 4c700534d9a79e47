"""Small pictures of cases: windowed by percentiles, volumes as three orthogonal slices, many as one contact sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Raster

from vesalius.core.geometry import Grid
from vesalius.core.image import Clip, Image, Unit

Bytes8 = NDArray[np.uint8]

# Percentiles and not the extremes: one hot pixel or a metal clip must not turn the rest of the picture black.
WINDOW = (0.5, 99.5)
SAMPLE = 1_000_000


def thumbnail(image: Image | Clip, *, side: int = 144) -> bytes:
    """A PNG of one case: `side` pixels high for a flat image, a strip of `side`-pixel panels for volumes and clips."""
    return png(panels(image, side=side))


def panels(image: Image | Clip, *, side: int = 144) -> Bytes8:
    """What `thumbnail` shows as an array ``(Y, X)`` or ``(Y, X, 3)``."""
    if isinstance(image, Clip):
        return _clip(image, side)
    if image.pixels.ndim == 4:
        return _volume(image, side)
    step = image.grid.spacing_mm or (1.0, 1.0)
    return fitted(_colours(image.pixels, image.unit), side, ratio=step[0] / step[1])


def window(pixels: NDArray[Any], percentiles: tuple[float, float] = WINDOW) -> Bytes8:
    """Values to 0..255 between two percentiles of the finite ones; a constant image becomes middle gray."""
    values = np.asarray(pixels, dtype=np.float32)
    finite = np.isfinite(values)
    sample = values[finite]
    if not sample.size:
        return np.zeros(values.shape, np.uint8)
    # A percentile over a huge volume costs seconds and a regular sample tells the same.
    low, high = np.percentile(sample[:: max(sample.size // SAMPLE, 1)], percentiles)
    if high <= low:
        low, high = float(sample.min()), float(sample.max())
    if high <= low:
        return np.where(finite, 128, 0).astype(np.uint8)
    scaled = np.clip((np.where(finite, values, low) - low) / (high - low), 0, 1)
    return np.asarray(np.round(scaled * 255), dtype=np.uint8)


def _colours(pixels: NDArray[Any], unit: Unit) -> Bytes8:
    """``(C, Y, X)`` to ``(Y, X)`` or ``(Y, X, 3)``: colour stays colour, of other channels the first is shown."""
    if pixels.shape[0] >= 3 and (unit == Unit.RED_GREEN_BLUE or (pixels.shape[0] == 3 and pixels.dtype == np.uint8)):
        colour = np.moveaxis(pixels[:3], 0, -1)
        return colour if colour.dtype == np.uint8 else window(colour, (0, 100))
    if unit == Unit.LABEL:
        return window(pixels[0], (0, 100))
    return window(pixels[0])


def fitted(picture: Bytes8, side: int, *, ratio: float = 1.0) -> Bytes8:
    """`picture` inside a square of `side`, with square pixels in millimetres (`ratio` = row step / column step).

    Tiny images (MedMNIST has 28 pixels) are enlarged by whole factors without smoothing, so that a reader sees the
    pixels that the model saw.
    """
    height, width = picture.shape[0] * ratio, float(picture.shape[1])
    scale = side / max(height, width)
    if scale >= 2 and ratio == 1:
        scale = float(int(scale))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    how = Raster.Resampling.NEAREST if scale >= 2 and ratio == 1 else Raster.Resampling.LANCZOS
    return np.asarray(Raster.fromarray(picture).resize(size, how))


def _volume(image: Image, side: int) -> Bytes8:
    """Axial, coronal and sagittal slice through the middle, side by side; head up, patient's left on the right."""
    pixels, steps = _facing(image)
    middle = [length // 2 for length in pixels.shape[1:]]
    cuts = (
        (pixels[:, middle[0]], steps[1] / steps[2]),
        (pixels[:, :, middle[1]], steps[0] / steps[2]),
        (pixels[:, :, :, middle[2]], steps[0] / steps[1]),
    )
    colour = image.unit == Unit.RED_GREEN_BLUE
    # One window for the three, or the same tissue would be gray in one and white in the next.
    flat = [cut[:3].reshape(3, -1) if colour else cut[:1].reshape(1, -1) for cut, _ in cuts]
    joined = window(np.concatenate(flat, axis=1), (0, 100) if image.unit == Unit.LABEL or colour else WINDOW)
    shown, start = [], 0
    for cut, ratio in cuts:
        size = cut.shape[1] * cut.shape[2]
        part = joined[:, start : start + size].reshape(-1, *cut.shape[1:])
        start += size
        flatten = np.moveaxis(part, 0, -1) if colour else part[0]
        shown.append(squared(fitted(np.ascontiguousarray(flatten), side, ratio=ratio), side))
    return np.concatenate(shown, axis=1)


def turning(grid: Grid | None) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], bool]:
    """Axes in the order (head to foot, front to back, right to left), which to flip, and whether the grid says so."""
    as_stored = (0, 1, 2), (False, False, False), False
    if grid is None or grid.affine is None:
        return as_stored
    strength = np.abs(grid.affine[:3, :3]) / np.linalg.norm(grid.affine[:3, :3], axis=0)
    along = [int(np.argmax(strength[row])) for row in (2, 1, 0)]
    if sorted(along) != [0, 1, 2]:
        return as_stored
    # Rows of the affine are x to the left, y to the back, z to the head.
    flips = [
        bool(grid.affine[row, axis] * way < 0) for axis, row, way in zip(along, (2, 1, 0), (-1, 1, 1), strict=True)
    ]
    return (along[0], along[1], along[2]), (flips[0], flips[1], flips[2]), True


def _facing(image: Image) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Pixels and steps with the axes turned to (head to foot, front to back, right to left).

    A volume without a position in the patient is shown as it is stored.
    """
    order, flips, _ = turning(image.grid)
    steps = image.grid.spacing_mm or (1.0, 1.0, 1.0)
    turned = image.pixels.transpose(0, *(axis + 1 for axis in order))
    turned = np.flip(turned, tuple(place + 1 for place, flip in enumerate(flips) if flip))
    return turned, tuple(steps[axis] for axis in order)


def _clip(clip: Clip, side: int, *, frames: int = 4) -> Bytes8:
    """A few frames from beginning to end, side by side."""
    which = sorted({round(i) for i in np.linspace(0, clip.frames - 1, frames)})
    shown = [_colours(clip.read(i, i + 1)[0], Unit.INTENSITY) for i in which]
    return np.concatenate([squared(fitted(picture, side), side) for picture in shown], axis=1)


def squared(picture: Bytes8, side: int) -> Bytes8:
    """`picture` in the middle of a black square."""
    height, width = picture.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    out = np.zeros((side, side, *picture.shape[2:]), np.uint8)
    out[top : top + height, left : left + width] = picture
    return out


def contact_sheet(pictures: Sequence[bytes | Bytes8], *, columns: int = 8, gap: int = 4) -> bytes:
    """Pictures of any size as one PNG, row by row; each row is as high as its highest picture.

    Raises
    ------
    ValueError
        Without a picture.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    tiles = [Raster.open(io.BytesIO(p)) if isinstance(p, bytes) else Raster.fromarray(p) for p in pictures]
    columns = min(columns, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    cell = max(tile.width for tile in tiles)
    heights = [max(tile.height for tile in row) for row in rows]
    mode = "L" if all(tile.mode == "L" for tile in tiles) else "RGB"
    size = columns * (cell + gap) - gap, sum(heights) + gap * (len(rows) - 1)
    sheet = Raster.new(mode, size)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for place, tile in enumerate(row):
            left = place * (cell + gap) + (cell - tile.width) // 2
            sheet.paste(tile.convert(mode), (left, top + (height - tile.height) // 2))
        top += height + gap
    return png(np.asarray(sheet))


def png(picture: Bytes8) -> bytes:
    """An array as PNG."""
    file = io.BytesIO()
    Raster.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def data_uri(picture: bytes) -> str:
    """A PNG as an address that a page carries inside itself."""
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def png_size(picture: bytes) -> tuple[int, int]:
    """Width and height of a PNG."""
    with Raster.open(io.BytesIO(picture)) as raster:
        return raster.width, raster.height
