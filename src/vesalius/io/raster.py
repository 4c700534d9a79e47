"""PNG, JPEG, BMP, GIF, WebP, PNM and TIFF pictures as images without physical geometry.

A resolution in a raster file is that of a printer or scanner, not of the patient, so it is never taken as spacing.
Sizes are read from the header and checked before anything is decoded; a truncated file is refused, not shown half.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from vesalius.core.errors import LimitError, UnreadableFile
from vesalius.core.geometry import Grid
from vesalius.core.image import Act, Image, Note, Unit
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes, check_pixels

# Named one by one: Pillow would otherwise also try formats that start other programs (EPS) or hold vectors.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CODESTREAM = b"\xff\x4f\xff\x51"
# A colour box that says sYCC (ISO/IEC 15444-1 I.5.3.3).
_YCC = b"colr\x01\x00\x00\x00\x00\x00\x12"
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_ORIENTATION_TAG = 274
_TOO_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    zlib.error,
    struct.error,
    LookupError,
    RuntimeError,
)
_ORIENTATIONS = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "transposed",
    6: "turned clockwise by 90 degrees",
    7: "transposed across the other diagonal",
    8: "turned counter-clockwise by 90 degrees",
}

Palette = Literal["colours", "indices"]


def read_raster(path: str | Path, limits: ReadLimits | None = None, *, palette: Palette = "colours") -> Image:
    """Read one still picture, or a TIFF of several pages of one size as a volume.

    Parameters
    ----------
    path
        The file; its content decides, not its name.
    limits
        Checked against the header before decoding; the active limits if None.
    palette
        What a palette picture means: its colours, or (for label maps such as Pascal VOC's) the palette's indices.

    Returns
    -------
    Image
        Pixels ``(1, Y, X)`` or ``(3, Y, X)``, 8 or 16 bit as stored; ``(C, Z, Y, X)`` for pages. Opaque alpha is
        dropped, other alpha is blended onto black, the orientation of the camera is applied; each with a note.
        `Grid.spacing_mm` is None.

    Raises
    ------
    UnreadableFile
        Truncated, animated, pages of different sizes, or a format that is not read.
    LimitError
        More pixels or bytes than the limits allow.
    """
    path = Path(path)
    limits = active_limits(limits)
    if not path.is_file():
        raise UnreadableFile(path, found="no such file", expected="a picture", do="check the path")
    check_file_bytes(path, limits)
    with path.open("rb") as file:
        head = file.read(33)
    if head[:4] in _TIFF:
        from vesalius.io.tiff import read_tiff

        return read_tiff(path, limits, palette=palette)
    record: list[Note] = []
    with _readable(path):
        pixels, meta = _decoded(path, head, limits, palette, record)
        return raster_image(path, pixels, record, meta)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever breaks inside becomes one readable line."""
    try:
        yield
    except (UnreadableFile, LimitError):
        raise
    except Pillow.DecompressionBombError as error:
        raise LimitError(
            path,
            found=str(error),
            expected="a picture that Pillow opens",
            do="store it as TIFF or DICOM if you trust it",
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableFile(
            path,
            found="no known picture format",
            expected="PNG, JPEG, TIFF, BMP, GIF, WebP or PNM",
            do="convert it to PNG",
        ) from error
    except _TOO_BROKEN as error:
        raise UnreadableFile(
            path,
            found=f"a broken or truncated picture ({error})",
            expected="all of its pixels",
            do="copy or export the file again",
        ) from error


def raster_image(path: Path, pixels: NDArray[Any], record: list[Note], meta: dict[str, Any]) -> Image:
    """Pixels ``(Y, X)`` or ``(..., Y, X, samples)`` marked by `meta` ``samples``, as an `Image` without geometry."""
    coloured = pixels.shape[0] == 3
    return Image(
        grid=Grid(pixels.shape[1:]),
        pixels=np.ascontiguousarray(pixels),
        unit=Unit.RED_GREEN_BLUE if coloured else Unit.INTENSITY,
        channels=("red", "green", "blue") if coloured else (),
        record=tuple(record),
        meta=meta,
        source=str(path),
    )


def _decoded(
    path: Path, head: bytes, limits: ReadLimits, palette: Palette, record: list[Note]
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Pixels ``(C, Y, X)`` and the header's facts."""
    with warnings.catch_warnings():
        # Pillow warns at a third of its own size limit, where ours was asked for, and of odd EXIF, which gets a note.
        warnings.simplefilter("ignore")
        with Pillow.open(path, formats=FORMATS) as picture:
            check_pixels(path, (picture.height, picture.width, len(picture.getbands())), limits)
            _refuse_animation(path, picture, record)
            meta: dict[str, Any] = {"format": str(picture.format), "mode": picture.mode}
            pixels, orientation = None, 1
            if (head[:8] == _PNG and head[24] == 16) or picture.format == "JPEG2000":
                pixels, orientation = _deep_pixels(path, picture, record)
            if pixels is None:
                picture.load()
                orientation = _orientation(picture, record)
                pixels = _pillow_pixels(path, picture, palette, record, head)
    pixels = blend_alpha(path, pixels, record)
    meta["bits"] = 8 * pixels.dtype.itemsize
    return upright(np.moveaxis(pixels, -1, 0), orientation, record), meta


def _orientation(picture: Pillow.Image, record: list[Note]) -> int:
    """Tag 274; a broken tag is no reason to refuse the picture."""
    try:
        tags = picture.getexif()
        value = tags.get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        tags, value = Pillow.Exif(), None
    if isinstance(value, int) and (tags or "exif" not in picture.info):
        return value
    record.append(Note(Act.NOTED, "the EXIF data are broken; the picture is taken to be upright"))
    return 1


def _refuse_animation(path: Path, picture: Pillow.Image, record: list[Note]) -> None:
    frames = int(getattr(picture, "n_frames", 1))
    if frames == 1:
        return
    if picture.format == "MPO":
        record.append(Note(Act.NOTED, f"the first of {frames} pictures in the file is used"))
        return
    raise UnreadableFile(
        path,
        found=f"an animation of {frames} frames",
        expected="one picture",
        do="read it as a clip, or export the frame that is meant",
    )


def _deep_pixels(path: Path, picture: Pillow.Image, record: list[Note]) -> tuple[NDArray[Any] | None, int]:
    """``(Y, X, samples)`` and orientation of a 16-bit PNG or a JPEG 2000 of other than 8 bits, None for one of 8.

    Pillow would cut 16-bit colours down to 8 bits and stretch the 12 bits of a JPEG 2000 to 16.
    """
    import imagecodecs

    data = path.read_bytes()
    try:
        if picture.format == "PNG":
            pixels = imagecodecs.png_decode(data)
        elif _plain_jpeg2000(data):
            return None, 1
        elif _YCC in data[: data.find(_CODESTREAM)]:
            raise UnreadableFile(
                path, found="YCbCr of more than 8 bits", expected="gray or RGB", do="convert it to PNG"
            )
        else:
            pixels = imagecodecs.jpeg2k_decode(data)
    except (imagecodecs.PngError, imagecodecs.Jpeg2kError) as error:
        raise UnreadableFile(
            path,
            found=f"a broken or truncated picture ({error})",
            expected="all of its pixels",
            do="copy or export the file again",
        ) from error
    if pixels.shape[:2] != (picture.height, picture.width):
        raise UnreadableFile(
            path,
            found=f"pixels of shape {pixels.shape}, header {picture.height} x {picture.width}",
            expected="the same shape",
            do="export the file again",
        )
    # Pillow decodes a whole PNG to look for tags after the pixels: only where there can be one.
    orientation = _orientation(picture, record) if any(mark in data for mark in _PNG_EXIF) else 1
    return pixels if pixels.ndim == 3 else pixels[..., None], orientation


def _plain_jpeg2000(data: bytes) -> bool:
    """Whether every component is unsigned with at most 8 bits, by the SIZ marker (ISO/IEC 15444-1 A.5.1)."""
    at = data.find(_CODESTREAM)
    if at < 0 or len(data) < at + 42:
        return True
    count = struct.unpack(">H", data[at + 40 : at + 42])[0]
    # Ssiz of a component: the sign in the highest bit, its bits less one in the others.
    return all(size < 8 for size in data[at + 42 : at + 42 + 3 * count : 3])


def _pillow_pixels(
    path: Path, picture: Pillow.Image, palette: Palette, record: list[Note], head: bytes
) -> NDArray[Any]:
    """``(Y, X, samples)`` with samples gray, gray + alpha, RGB or RGBA."""
    mode = picture.mode
    if mode in ("P", "PA"):
        return _palette_pixels(picture, palette, record)
    if mode == "1" or (head[:8] == _PNG and head[24] < 8):
        record.append(Note(Act.NOTED, "fewer than 8 bits per pixel, stretched to 0..255"))
        picture = picture.convert("L")
    elif mode == "CMYK":
        record.append(Note(Act.NOTED, "CMYK colours converted to RGB without a colour profile"))
        picture = picture.convert("RGB")
    elif mode in ("RGBX", "YCbCr"):
        picture = picture.convert("RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"):
        raise UnreadableFile(
            path, found=f"pixels of mode {mode}", expected="gray, RGB, palette or CMYK", do="convert it to PNG"
        )
    if "transparency" in picture.info and picture.mode in ("L", "RGB"):
        picture = picture.convert("RGBA" if picture.mode == "RGB" else "LA")
    pixels = np.array(picture)
    if pixels.dtype.kind == "i" or pixels.dtype == np.dtype(">u2"):
        # 16-bit PNM arrives as 32-bit integers.
        pixels = pixels.astype(np.uint16) if pixels.min() >= 0 and pixels.max() < 1 << 16 else pixels
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _palette_pixels(picture: Pillow.Image, palette: Palette, record: list[Note]) -> NDArray[Any]:
    if palette == "indices":
        record.append(Note(Act.NOTED, "indices of the palette are used, not its colours"))
        indices = np.array(picture)
        return indices[..., :1] if indices.ndim == 3 else indices[..., None]
    transparent = "transparency" in picture.info or picture.mode == "PA"
    return expanded(np.array(picture.convert("RGBA" if transparent else "RGB")), record)


def expanded(colours: NDArray[Any], record: list[Note]) -> NDArray[Any]:
    """``(..., 3 or 4)`` from a palette, as gray (with alpha) if no pixel has a colour."""
    if (colours[..., 0] == colours[..., 1]).all() and (colours[..., 1] == colours[..., 2]).all():
        record.append(Note(Act.NOTED, "palette of grays expanded to gray values"))
        return colours[..., [0, 3]] if colours.shape[-1] == 4 else colours[..., :1]
    record.append(Note(Act.NOTED, "palette expanded to RGB"))
    return colours


def blend_alpha(path: Path, pixels: NDArray[Any], record: list[Note]) -> NDArray[Any]:
    """Gray or RGB without alpha from ``(..., samples)``; what shows through is black, like the air around a patient."""
    samples = pixels.shape[-1]
    if samples in (1, 3):
        return pixels
    if samples not in (2, 4) or pixels.dtype.kind != "u":
        raise UnreadableFile(
            path,
            found=f"{samples} samples per pixel of type {pixels.dtype}",
            expected="gray or RGB, with or without alpha",
            do="convert it to PNG",
        )
    opaque = int(np.iinfo(pixels.dtype).max)
    alpha, colours = pixels[..., -1:], pixels[..., :-1]
    if (alpha == opaque).all():
        record.append(Note(Act.NOTED, "alpha channel dropped: everything is opaque"))
        return colours
    record.append(Note(Act.NOTED, "transparent pixels blended onto black"))
    return np.rint(colours * (alpha / opaque)).astype(pixels.dtype)


def upright(pixels: NDArray[Any], orientation: int, record: list[Note]) -> NDArray[Any]:
    """``(..., Y, X)`` turned as the EXIF or TIFF tag 274 asks (TIFF 6.0, page 36); 1 is upright."""
    if orientation not in _ORIENTATIONS:
        return pixels
    record.append(Note(Act.REPAIRED, f"orientation tag {orientation} applied: {_ORIENTATIONS[orientation]}"))
    if orientation >= 5:
        pixels = np.swapaxes(pixels, -1, -2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[..., ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[..., ::-1, :]
    return pixels
