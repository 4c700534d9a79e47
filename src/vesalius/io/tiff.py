"""TIFF files by tifffile: gray or RGB, 8 to 32 bit, one page or a stack of pages of one size.

TIFF 6.0 (1992) and BigTIFF. Pyramids of whole slides are refused here: they are read by tiles, not at once.
"""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from vesalius.core.errors import LimitError, UnreadableFile
from vesalius.core.image import Act, Image, Note
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes, check_pixels
from vesalius.io.raster import blend_alpha, expanded, raster_image, upright

# tifffile logs what it raises; without a handler Python would write that to the screen of a person who gets our line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
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
_ASSOCIATED, _UNASSOCIATED = 1, 2
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
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
        return raster_image(path, pixels, record, meta)
    except (UnreadableFile, LimitError):
        raise
    except Exception as error:  # tifffile and its codecs raise from a dozen families, some of them bare RuntimeError
        raise UnreadableFile(
            path,
            found=f"a broken or truncated TIFF ({error})",
            expected="all of its pixels",
            do="copy or export the file again",
        ) from error


def _decoded(
    path: Path, file: tifffile.TiffFile, limits: ReadLimits, palette: str, record: list[Note]
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Pixels ``(C, [Z,] Y, X)``."""
    _require_chain(path)
    series = _one_series(path, file)
    shape, axes = tuple(int(s) for s in series.shape), str(series.axes)
    check_pixels(path, shape, limits)
    if axes not in _READABLE or min(shape) < 1:
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


def _require_chain(path: Path) -> None:
    """tifffile gives the pages before a break in their chain; a stack cut short must not pass for a whole one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        # BigTIFF has 8-byte offsets and counts and entries of 20 bytes, TIFF 6.0 has 4, 2 and 12.
        count_as, entry, next_as, start = ("Q", 20, "Q", 8) if 43 in head[2:4] else ("H", 12, "I", 4)
        at = struct.unpack_from(order + next_as, head, start)[0]
        seen: set[int] = set()
        while at and at not in seen:
            seen.add(at)
            file.seek(at)
            counted = file.read(struct.calcsize(count_as))
            if len(counted) == struct.calcsize(count_as):
                end = at + len(counted) + entry * struct.unpack(order + count_as, counted)[0]
                if end + struct.calcsize(next_as) <= size:
                    file.seek(end)
                    at = struct.unpack(order + next_as, file.read(struct.calcsize(next_as)))[0]
                    continue
            raise UnreadableFile(
                path,
                found=f"page {len(seen)} at byte {at} of {size}",
                expected="every page inside the file",
                do="copy the file again",
            )


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
    kind, bits = int(page.photometric), int(page.bitspersample)
    pixels = pixels.astype(np.uint8) if pixels.dtype.kind == "b" else pixels
    if kind == _PALETTE and page.colormap is not None:
        if palette == "indices":
            record.append(Note(Act.NOTED, "indices of the palette are used, not its colours"))
            return pixels
        return expanded((np.asarray(page.colormap).T[pixels[..., 0]] >> 8).astype(np.uint8), record)
    if kind == _MINISWHITE:
        if pixels.dtype.kind != "u":
            raise UnreadableFile(
                path,
                found=f"white as 0 in numbers of type {pixels.dtype}",
                expected="unsigned numbers, which have a black",
                do="save it with black as 0",
            )
        record.append(Note(Act.REPAIRED, "stored with white as 0; inverted so that more is brighter"))
        pixels = (((1 << bits) - 1) - pixels).astype(pixels.dtype)
    if kind in (_MINISWHITE, _MINISBLACK) and bits < 8:
        record.append(Note(Act.NOTED, "fewer than 8 bits per pixel, stretched to 0..255"))
        pixels = np.rint(pixels * (255 / ((1 << bits) - 1))).astype(np.uint8)
    if kind == _SEPARATED:
        return _from_cmyk(path, pixels, record)
    if kind == _LAB or (kind == _YCBCR and int(page.compression) not in _JPEG_COMPRESSIONS):
        raise UnreadableFile(
            path,
            found=f"colours stored as {page.photometric.name}",
            expected="gray, RGB or palette",
            do="convert it to RGB",
        )
    return _without_extras(path, kind, [int(extra) for extra in page.extrasamples], pixels, record)


def _without_extras(path: Path, kind: int, extras: list[int], pixels: NDArray[Any], record: list[Note]) -> NDArray[Any]:
    """``(..., samples)`` without alpha and, beside RGB, without samples that have no meaning."""
    if extras == [_ASSOCIATED]:
        record.append(Note(Act.NOTED, "alpha channel dropped: it had been multiplied in, as if blended onto black"))
        return pixels[..., :-1]
    if _UNASSOCIATED in extras or _ASSOCIATED in extras:
        return blend_alpha(path, pixels, record)
    if kind == _RGB and extras:
        record.append(Note(Act.NOTED, f"{len(extras)} samples beside red, green and blue left out"))
        return pixels[..., :3]
    return pixels


def _from_cmyk(path: Path, pixels: NDArray[Any], record: list[Note]) -> NDArray[Any]:
    if pixels.shape[-1] != 4 or pixels.dtype.kind != "u":
        raise UnreadableFile(path, found=f"{pixels.shape[-1]} inks", expected="CMYK", do="convert it to RGB")
    record.append(Note(Act.NOTED, "CMYK colours converted to RGB without a colour profile"))
    top = float(np.iinfo(pixels.dtype).max)
    inks = pixels.astype(np.float64) / top
    return np.rint(top * (1 - inks[..., :3]) * (1 - inks[..., 3:])).astype(pixels.dtype)
