"""Encoded DICOM pixels to arrays: every transfer syntax, colour to RGB, nothing believed that cannot be checked.

Sources: PS3.5 section 8 and annex A (encodings), PS3.3 C.7.6.3 (Image Pixel module). Decoding is pydicom's, with the
plug-in chosen per syntax, save where a damaged stream would take the process with it (GDCM's lossless JPEG aborts, the
Rust RLE decoder panics) or where no plug-in reads it (12-bit JPEG): there it is libjpeg-turbo and PackBits through
imagecodecs, which report errors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UnreadableFile
from vesalius.io.dicom_header import frame_count, guarded
from vesalius.io.limits import ReadLimits, check_pixels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_JPEG_BASELINE, _JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_RLE = "1.2.840.10008.1.2.5"
# The plug-in whose result agreed with the uncompressed twins of the test files, per syntax.
_PLUGIN = {
    _JPEG_BASELINE: "pillow",
    _JPEG_EXTENDED: "pillow",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
_VIDEO = (
    "1.2.840.10008.1.2.4.100",
    "1.2.840.10008.1.2.4.101",
    "1.2.840.10008.1.2.4.102",
    "1.2.840.10008.1.2.4.103",
    "1.2.840.10008.1.2.4.104",
    "1.2.840.10008.1.2.4.105",
    "1.2.840.10008.1.2.4.106",
    "1.2.840.10008.1.2.4.107",
    "1.2.840.10008.1.2.4.108",
)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")


def decode(dataset: Dataset, path: str | Path, limits: ReadLimits, *, workers: int = 1) -> NDArray[Any]:
    """Stored values of every frame, colour already RGB.

    Returns
    -------
    ``(F, Y, X)`` for one sample per pixel, ``(F, 3, Y, X)`` for colour (also palette colour), in the native type.

    Raises
    ------
    UnreadableFile, LimitError
        If the pixels are absent, fewer than the header says, broken, of another size, or more than `limits` allow.
    """
    frames = frame_count(dataset, path)
    photometric = _check_header(dataset, path)
    samples = 3 if photometric == "PALETTE COLOR" else int(dataset.get("SamplesPerPixel", 1) or 1)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_pixels(path, (frames, samples, rows, columns), limits)
    syntax = dataset.file_meta.TransferSyntaxUID
    with guarded(path, f"decoding the pixels ({syntax.name})"):
        if "PixelData" not in dataset:
            return _floats(dataset, path, (frames, rows, columns))
        native = not syntax.is_encapsulated
        pixels = _native(dataset, path) if native else _encapsulated(dataset, path, frames, workers)
        pixels = pixels.reshape(frames, rows, columns, -1)
        if photometric == "PALETTE COLOR":
            pixels = _palette(pixels[..., 0], dataset)
        if not pixels.dtype.isnative:
            pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        if pixels.shape[-1] == 1:
            return pixels[..., 0]
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 1))


def _check_header(dataset: Dataset, path: str | Path) -> str:
    """Refuse what cannot be decoded, before any library tries; returns the photometric interpretation."""
    from pydicom.uid import UID

    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if syntax.startswith(_VIDEO):
        raise UnreadableFile(
            path, found=f"a video stream ({syntax.name})", expected="still frames", do="open it as a clip"
        )
    if not syntax.is_transfer_syntax:
        raise UnreadableFile(
            path,
            found=f"transfer syntax {syntax}",
            expected="one of PS3.5 annex A",
            do="convert the file to Explicit VR Little Endian",
        )
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UnreadableFile(path, found="an image header without pixel data", do="get the whole file from its source")
    rows, columns = (int(dataset.get(keyword) or 0) for keyword in ("Rows", "Columns"))
    if rows < 1 or columns < 1:
        raise UnreadableFile(
            path, found=f"an image of {rows} rows and {columns} columns", expected="at least one of each"
        )
    photometric = str(dataset.get("PhotometricInterpretation", "") or "MONOCHROME2").strip()
    samples = int(dataset.get("SamplesPerPixel", 1) or 1)
    if photometric not in _GREY + _COLOUR:
        raise UnreadableFile(
            path, found=f"photometric interpretation {photometric!r}", expected=", ".join(_GREY + _COLOUR)
        )
    wanted = 1 if photometric in (*_GREY, "PALETTE COLOR") else 3
    if samples != wanted:
        raise UnreadableFile(path, found=f"{samples} samples per pixel for {photometric}", expected=str(wanted))
    return photometric


def _floats(dataset: Dataset, path: str | Path, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Float Pixel Data or Double Float Pixel Data (PS3.3 C.7.6.24)."""
    double = "DoubleFloatPixelData" in dataset
    raw = dataset.DoubleFloatPixelData if double else dataset.FloatPixelData
    order = "<" if dataset.original_encoding[1] else ">"
    values = np.frombuffer(bytes(raw), dtype=np.dtype(order + ("f8" if double else "f4")))
    if values.size < np.prod(shape):
        raise _too_short(path, values.nbytes, int(np.prod(shape)) * values.itemsize)
    return values[: int(np.prod(shape))].reshape(shape).astype(np.float64 if double else np.float32)


def _native(dataset: Dataset, path: str | Path) -> NDArray[Any]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import as_pixel_options, get_expected_length

    expected, actual = get_expected_length(dataset), len(dataset.PixelData)
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        expected = expected // 3 * 2
    if actual < expected:
        raise _too_short(path, actual, expected)
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    options = as_pixel_options(dataset)
    options["allow_excess_frames"] = False
    pixels, facts = decoder.as_array(dataset, **options)
    return _rgb(pixels, str(facts["photometric_interpretation"]))


def _too_short(path: str | Path, actual: int, expected: int) -> UnreadableFile:
    return UnreadableFile(
        path,
        found=f"{actual} bytes of pixel data",
        expected=f"{expected}",
        do="the file is truncated: get it again from its source",
    )


def _encapsulated(dataset: Dataset, path: str | Path, frames: int, workers: int) -> NDArray[Any]:
    from pydicom.encaps import generate_frames

    extended: dict[str, Any] = {}
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        extended["extended_offsets"] = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    pieces = list(generate_frames(dataset.PixelData, number_of_frames=frames, **extended))
    if len(pieces) < frames:
        raise UnreadableFile(
            path,
            found=f"{len(pieces)} encoded frames",
            expected=f"{frames}",
            do="the file is truncated: get it again from its source",
        )
    one = _frame_decoder(dataset, path)
    if workers > 1 and frames > 1:
        with ThreadPoolExecutor(workers) as pool:
            return np.stack(list(pool.map(one, pieces[:frames])))
    first = one(pieces[0])
    result = np.empty((frames, *first.shape), first.dtype)
    result[0] = first
    for index in range(1, frames):
        result[index] = one(pieces[index])
    return result


def _frame_decoder(dataset: Dataset, path: str | Path) -> Callable[[bytes], NDArray[Any]]:
    """A function from one encoded frame to its pixels ``(Y, X)`` or ``(Y, X, 3)``; several threads may call it."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import as_pixel_options

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == _RLE:
        return partial(_run_length, dataset=dataset)
    size = (int(dataset.Rows), int(dataset.Columns))
    turbo = syntax in _JPEG_LOSSLESS or (syntax == _JPEG_EXTENDED and int(dataset.get("BitsStored", 8)) > 8)
    decoder = get_decoder(syntax)
    options = as_pixel_options(dataset)
    options.update(number_of_frames=1, pixel_keyword="PixelData")
    options.pop("extended_offsets", None)

    def one(frame: bytes) -> NDArray[Any]:
        _check_stream(frame, size, path)
        if turbo:
            return _turbo_jpeg(frame, dataset)
        pixels, facts = decoder.as_array(
            encapsulate([frame], has_bot=False), decoding_plugin=_PLUGIN.get(syntax, ""), **options
        )
        return _rgb(pixels, str(facts["photometric_interpretation"]))

    return one


def _turbo_jpeg(frame: bytes, dataset: Dataset) -> NDArray[Any]:
    """Lossless and 12-bit JPEG (ITU-T T.81 annexes G and H); colours as they are stored, then to RGB."""
    import imagecodecs

    colour = int(dataset.get("SamplesPerPixel", 1) or 1) == 3
    same: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if colour else {}
    pixels = np.asarray(imagecodecs.jpeg8_decode(frame, **same))
    if int(dataset.get("PixelRepresentation") or 0) == 1:
        # The stream knows no sign: what it holds is the two's complement of Bits Stored.
        spare = 8 * pixels.dtype.itemsize - int(dataset.BitsStored)
        pixels = (pixels << spare).view(pixels.dtype.str.replace("u", "i")) >> spare
    return _rgb(pixels, str(dataset.get("PhotometricInterpretation", "")))


def _run_length(frame: bytes, *, dataset: Dataset) -> NDArray[Any]:
    """RLE Lossless (PS3.5 annex G): one PackBits segment per byte of a sample, the most significant first."""
    import imagecodecs

    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel", 1) or 1)
    wide = int(dataset.BitsAllocated) // 8
    if len(frame) < 64:
        raise ValueError(f"RLE frame of {len(frame)} bytes, its header alone has 64")
    count, *offsets = struct.unpack("<16I", frame[:64])
    if count != samples * wide:
        raise ValueError(f"RLE frame of {count} segments, {samples} samples of {wide} bytes need {samples * wide}")
    ends = [*offsets[1:count], len(frame)]
    planes = np.empty((samples, rows, columns, wide), np.uint8)
    for index, (start, end) in enumerate(zip(offsets[:count], ends, strict=True)):
        if not 64 <= start < end <= len(frame):
            raise ValueError(f"RLE segment {index + 1} from byte {start} to {end} of {len(frame)}")
        decoded = imagecodecs.packbits_decode(frame[start:end])
        if len(decoded) < rows * columns:
            raise ValueError(f"RLE segment {index + 1} holds {len(decoded)} of {rows * columns} pixels")
        sample, place = divmod(index, wide)
        planes[sample, :, :, wide - 1 - place] = np.frombuffer(decoded, np.uint8, rows * columns).reshape(rows, columns)
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    values = planes.view(np.dtype(f"<{'i' if signed else 'u'}{wide}"))[..., 0]
    pixels = values[0] if samples == 1 else np.moveaxis(values, 0, -1)
    return _rgb(pixels, str(dataset.get("PhotometricInterpretation", "")))


def _check_stream(frame: bytes, size: tuple[int, int], path: str | Path) -> None:
    """Refuse a code stream that breaks off, or whose own size differs from the header (decoders allocate by it)."""
    if frame.rfind(b"\xff\xd9", len(frame) // 2) < 0:
        raise UnreadableFile(
            path,
            found="an encoded frame without its end marker",
            expected="FFD9",
            do="the file is truncated: get it again from its source",
        )
    found = stream_size(frame)
    if found is not None and found != size:
        raise UnreadableFile(
            path,
            found=f"an encoded frame of {found[0]} rows and {found[1]} columns",
            expected=f"{size[0]} and {size[1]} as in the header",
            do="get the file again from its source",
        )


def stream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 code stream declares; None if no such header is found.

    JPEG and JPEG-LS: the start-of-frame segment (ITU-T T.81 B.2.2, T.87 C.2.2). JPEG 2000: the SIZ segment (T.800
    A.5.1).
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, 512)
    if start >= 0:
        if len(frame) < start + 24:
            return None
        width, height, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
        return height - top, width - left
    place = 2
    while place + 9 <= len(frame):
        if frame[place] != 0xFF:
            return None
        marker = frame[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7):
            rows, columns = struct.unpack(">2H", frame[place + 5 : place + 9])
            return rows, columns
        else:
            place += 2 + struct.unpack(">H", frame[place + 2 : place + 4])[0]
    return None


def _rgb(pixels: NDArray[Any], photometric: str) -> NDArray[Any]:
    """YBR that the decoder has left as it was, to RGB (PS3.3 C.7.6.3.1.2)."""
    if photometric not in ("YBR_FULL", "YBR_FULL_422") or pixels.shape[-1] != 3:
        return pixels
    from pydicom.pixels.processing import convert_color_space

    return convert_color_space(pixels, photometric, "RGB", per_frame=True)


def _palette(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Palette indices ``(F, Y, X)`` to colours ``(F, Y, X, 3)`` (PS3.3 C.7.9; segmented tables too)."""
    from pydicom.pixels.processing import apply_color_lut

    return np.stack([apply_color_lut(frame, dataset)[..., :3] for frame in stored])
