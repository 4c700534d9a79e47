"""TIFF files by tifffile: gray or RGB, 8 to 32 bit, one page or a stack of pages of one size.

TIFF 6.0 (1992) and BigTIFF. Pyramids of whole slides are refused here: they are read by tiles, not at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from vesalius.core.errors import LimitError, UnreadableFile
from vesalius.core.image import Act, Image, Note
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes, check_pixels
from vesalius.io.raster import blend_alpha, raster_image, upright

# tifffile's letters: S samples, C channels, Z depth; Q and I are pages without a meaning.
_PAGES = "ZQI"
_READABLE = {
    "YX",
    "YXS",
    "SYX",
    "CYX",
    "CYXS",
    *(f"{page}{rest}" for page in _PAGES for rest in ("YX", "YXS", "SYX", "CYX")),
    *(f"C{page}YX" for page in _PAGES),
}
_EXTRA_ALPHA = (1, 2)
_MINISWHITE, _RGB, _PALETTE, _SEPARATED, _YCBCR, _LAB = 0, 2, 3, 5, 6, 8
_JPEG_COMPRESSIONS = (6, 7, 34933, 33007)


def read_tiff(
    path: str | Path, limits: ReadLimits | None = None, *, palette: Literal["colours", "indices"] = "colours"
) -> Image:
    """Read a TIFF; see `vesalius.io.raster.read_raster`, which comes here for TIFF content."""
    path = Path(path)
    limits = active_limits(limits)
    check_file_bytes(path, limits)
    record: list[Note] = []
    try:
        with tifffile.TiffFile(path) as file:
            pixels, meta = _decoded(path, file, limits, palette, record)
    except (UnreadableFile, LimitError):
        raise
    except Exception as error:  # tifffile and its codecs raise from a dozen families, some of them bare RuntimeError
        raise UnreadableFile(
            path,
            found=f"a broken or truncated TIFF ({error})",
            expected="all of its pixels",
            do="copy or export the file again",
        ) from error
    return raster_image(path, pixels, record, meta)


def _decoded(
    path: Path, file: tifffile.TiffFile, limits: ReadLimits, palette: str, record: list[Note]
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Pixels ``(C, [Z,] Y, X)``."""
    series = _one_series(path, file)
    shape, axes = tuple(int(s) for s in series.shape), str(series.axes)
    check_pixels(path, shape, limits)
    if axes not in _READABLE:
        raise UnreadableFile(
            path,
            found=f"axes {axes} of lengths {shape}",
            expected="a picture or a stack of pages",
            do="split time points and mixed stacks into one file each",
        )
    page = series.keyframe
    _require_whole(path, series)
    if page.dtype is None or page.dtype.kind not in "iufb" or page.dtype.itemsize > 8:
        raise UnreadableFile(
            path, found=f"pixels of type {page.dtype}", expected="8 to 64-bit numbers", do="convert it to 16 bit"
        )
    stored = series.asarray()
    if stored.shape != shape:
        raise UnreadableFile(
            path,
            found=f"pixels of shape {stored.shape}, header {shape}",
            expected="the same shape",
            do="export the file again",
        )
    meta = {"format": "TIFF", "photometric": page.photometric.name.lower(), "bits": int(page.bitspersample)}
    pixels = _colours(path, page, _samples_last(stored, axes), palette, record)
    if pixels.ndim == 4:
        record.append(Note(Act.NOTED, f"{pixels.shape[0]} pages taken as slices; their distance is unknown"))
    tag = page.tags.get(274)
    return upright(np.moveaxis(pixels, -1, 0), int(tag.value) if tag else 1, record), meta


def _one_series(path: Path, file: tifffile.TiffFile) -> Any:
    """The file's only picture or stack; thumbnails (reduced pages) do not count."""
    series = [one for one in file.series if not (one.keyframe.is_reduced or one.keyframe.is_mask)]
    if len(series) != 1:
        sizes = ", ".join("x".join(str(s) for s in one.shape) for one in series[:4])
        raise UnreadableFile(
            path,
            found=f"{len(series)} pictures of different kinds ({sizes})",
            expected="pages of one size",
            do="export the pages as separate files",
        )
    if len(series[0].levels) > 1:
        raise UnreadableFile(
            path,
            found=f"a pyramid of {len(series[0].levels)} levels",
            expected="one resolution",
            do="export the region that is needed",
        )
    return series[0]


def _require_whole(path: Path, series: Any) -> None:
    """tifffile gives zeros for pieces that lie outside the file; that must not pass for an image."""
    size = path.stat().st_size
    for page in series.pages:
        if page is None:
            continue
        for start, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if count <= 0 or start + count > size:
                raise UnreadableFile(
                    path,
                    found=f"pixel data at bytes {start}..{start + count} of {size}",
                    expected="all of it inside the file",
                    do="copy the file again",
                )


def _samples_last(stored: NDArray[Any], axes: str) -> NDArray[Any]:
    """``([Z,] Y, X, samples)``; separate channels count as samples."""
    if axes == "CYXS":
        raise ValueError("channels that are coloured themselves")
    letter = "S" if "S" in axes else "C"
    return np.moveaxis(stored, axes.index(letter), -1) if letter in axes else stored[..., None]


def _colours(path: Path, page: Any, pixels: NDArray[Any], palette: str, record: list[Note]) -> NDArray[Any]:
    """Gray or RGB ``(..., samples)`` from whatever the photometric interpretation says."""
    kind = int(page.photometric)
    if pixels.dtype.kind == "b":
        record.append(Note(Act.NOTED, "fewer than 8 bits per pixel, stretched to 0..255"))
        pixels = pixels.astype(np.uint8) * 255
    if kind == _MINISWHITE and pixels.dtype.kind == "u":
        record.append(Note(Act.REPAIRED, "stored with white as 0; inverted so that more is brighter"))
        top = 255 if page.bitspersample < 8 else (1 << int(page.bitspersample)) - 1
        return (top - pixels).astype(pixels.dtype)
    if kind == _PALETTE and palette == "colours" and page.colormap is not None:
        record.append(Note(Act.NOTED, "palette expanded to RGB"))
        table = np.asarray(page.colormap)
        return (table[:, pixels[..., 0]] >> 8).astype(np.uint8).transpose(*range(1, pixels.ndim), 0)
    if kind == _SEPARATED:
        return _from_cmyk(path, pixels, record)
    if kind == _LAB or (kind == _YCBCR and int(page.compression) not in _JPEG_COMPRESSIONS):
        raise UnreadableFile(
            path,
            found=f"colours stored as {page.photometric.name}",
            expected="gray, RGB or palette",
            do="convert it to RGB",
        )
    alpha = any(int(extra) in _EXTRA_ALPHA for extra in page.extrasamples)
    return blend_alpha(path, pixels, record) if alpha else pixels


def _from_cmyk(path: Path, pixels: NDArray[Any], record: list[Note]) -> NDArray[Any]:
    if pixels.shape[-1] != 4 or pixels.dtype.kind != "u":
        raise UnreadableFile(path, found=f"{pixels.shape[-1]} inks", expected="CMYK", do="convert it to RGB")
    record.append(Note(Act.NOTED, "CMYK colours converted to RGB without a colour profile"))
    top = float(np.iinfo(pixels.dtype).max)
    inks = pixels.astype(np.float64) / top
    return np.rint(top * (1 - inks[..., :3]) * (1 - inks[..., 3:])).astype(pixels.dtype)
