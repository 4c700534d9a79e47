"""NIfTI-1 and NIfTI-2 files (.nii, .nii.gz, .hdr + .img) as images on a LPS grid.

The rules are those of the format's header (nifti1.h, nifti2.h, https://nifti.nimh.nih.gov): sform where its code says
that it means something, else qform, else no position at all. nibabel parses the header and decodes the voxels.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from vesalius.core.errors import GeometryError, LimitError, UnreadableFile
from vesalius.core.geometry import FloatArray, Grid, affine_from_nifti
from vesalius.core.image import Act, Image, Note, Unit
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes, check_pixels

# xyzt_units & 7 of the header: what one step of pixdim, sform and qform is, in mm. 0 is "unknown".
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAME = {1: "metres", 2: "millimetres", 3: "micrometres"}
# intent_code of the header.
_INTENT_LABEL = 1002
# Header extensions lie before the voxels; more than this is no header any more.
_LARGEST_PREFIX = 64 << 20
# deflate can not do better than 1032 : 1 (https://zlib.net/zlib_tech.html).
_MOST_DEFLATED = 1032
_COLOURS = ("red", "green", "blue", "alpha")
_TOO_BROKEN = (
    OSError,
    EOFError,
    zlib.error,
    struct.error,
    HeaderDataError,
    ImageFileError,
    ValueError,
    OverflowError,
    KeyError,
)


@dataclass(frozen=True)
class _Axes:
    """How the stored array becomes (C, ...): its spatial rank and its channels."""

    dims: Literal[2, 3]
    channels: int
    note: str = ""


def read_nifti(
    path: str | Path, limits: ReadLimits | None = None, *, fourth: Literal["refuse", "channels"] = "refuse"
) -> Image:
    """Read one NIfTI file.

    Parameters
    ----------
    path
        ``.nii``, ``.nii.gz`` or the ``.hdr`` of a pair; recognised by content, the name does not matter.
    limits
        Checked against the header before any voxel is decoded; the active limits if None.
    fourth
        A fourth axis longer than 1 is usually time and is refused. ``"channels"`` takes it as channels, for data sets
        whose description says so (Medical Segmentation Decathlon with several modalities).

    Returns
    -------
    Image
        Pixels ``(C, Z, Y, X)``, or ``(C, Y, X)`` if the header has two axes. The grid has an affine if the sform or
        qform code is positive; otherwise it has no position, and a spacing only if the header states its unit.
        Integers stay integers, and floats keep their width, unless a scale factor asks for fractions.

    Raises
    ------
    UnreadableFile
        Not NIfTI, truncated, complex or bit-packed voxels, a time series.
    GeometryError
        The affine is singular or not finite.
    LimitError
        More voxels or bytes than the limits allow.
    """
    path = Path(path)
    limits = active_limits(limits)
    if not path.is_file():
        raise UnreadableFile(path, found="no such file", expected="a NIfTI file", do="check the path")
    check_file_bytes(path, limits)
    try:
        return _read(path, limits, fourth)
    except (UnreadableFile, GeometryError, LimitError):
        raise
    except _TOO_BROKEN as error:
        raise UnreadableFile(
            path,
            found=f"no complete NIfTI file ({error})",
            expected="a header and all of its voxels",
            do="copy or export the file again",
        ) from error


def _read(path: Path, limits: ReadLimits, fourth: str) -> Image:
    record: list[Note] = []
    with _opened(path, limits) as (header, data):
        axes = _axes(path, header, fourth)
        check_pixels(path, header.get_data_shape(), limits)
        _check_size(path, header, data)
        # Not mapped: pixels that change, or kill the process, when somebody rewrites the file are no record of it.
        proxy = nib.Nifti1Image.ImageArrayProxy(data, header, mmap=False)
        pixels = _channels_first(np.asarray(proxy.get_unscaled()), axes)
        if isinstance(data, gzip.GzipFile):
            _drain(data)
    if axes.note:
        record.append(Note(Act.NOTED, axes.note))
    if not _coloured(header):
        slope, inter = header.get_slope_inter()
        pixels = _rescaled(pixels, slope, inter, record)
    _note_not_finite(pixels, record)
    return Image(
        grid=_grid(path, header, pixels.shape[1:], record),
        pixels=pixels,
        unit=_unit(header, axes),
        channels=_COLOURS[: axes.channels] if _coloured(header) else (),
        record=tuple(record),
        meta=_meta(header),
        source=str(path),
    )


@contextmanager
def _opened(path: Path, limits: ReadLimits) -> Iterator[tuple[Any, IO[bytes] | str]]:
    """The parsed header and where its voxels are: the same (decompressed) stream, or the .img of a pair."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb") as stream:
        head = stream.read(540)
        stream.seek(0)
        kind = _header_class(path, head)
        if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
            partner = _partner(path)
            check_file_bytes(partner, limits)
            yield kind.from_fileobj(stream, check=False), str(partner)
        else:
            _check_prefix(path, kind(head[: kind.sizeof_hdr], check=False))
            yield kind.from_fileobj(stream, check=False), stream


def _drain(stream: gzip.GzipFile) -> None:
    """Read on to the end of the stream, where its checksum is verified: nibabel stops at the last voxel."""
    left = _LARGEST_PREFIX  # what follows the voxels is nothing of ours, and may be made to be endless
    while left > 0 and (piece := len(stream.read(1 << 20))):
        left -= piece


def _header_class(path: Path, head: bytes) -> Any:
    """nibabel's header class for the first bytes of a file."""
    pair = head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0"
    if head[344:348] in (b"n+1\0", b"ni1\0") and len(head) >= 348:
        return nib.nifti1.Nifti1PairHeader if pair else nib.nifti1.Nifti1Header
    if head[4:8] in (b"n+2\0", b"ni2\0") and len(head) >= 540:
        return nib.nifti2.Nifti2PairHeader if pair else nib.nifti2.Nifti2Header
    raise UnreadableFile(
        path,
        found=f"{len(head)} bytes without a NIfTI signature" if len(head) < 348 else "no NIfTI signature in the header",
        expected="a NIfTI-1 or NIfTI-2 file",
        do="convert it, for example Analyze 7.5 with the software that wrote it",
    )


def _check_prefix(path: Path, header: Any) -> None:
    offset, first = int(header["vox_offset"]), int(header.single_vox_offset)
    if not first <= offset <= _LARGEST_PREFIX:
        raise UnreadableFile(
            path,
            found=f"voxels that start at byte {offset}",
            expected=f"{first} to {_LARGEST_PREFIX}",
            do="export the file again",
        )


def _check_size(path: Path, header: Any, data: IO[bytes] | str) -> None:
    """Refuse a file that cannot hold its voxels before memory is taken for them."""
    offset = int(header.get_data_offset()) if isinstance(data, str) else int(header["vox_offset"])
    wanted = offset + math.prod(header.get_data_shape()) * int(header.get_data_dtype().itemsize)
    file = Path(data) if isinstance(data, str) else path
    packed = isinstance(data, gzip.GzipFile) or file.name.endswith(".gz")
    found = file.stat().st_size
    if found * (_MOST_DEFLATED if packed else 1) < wanted:
        raise UnreadableFile(
            path,
            found=f"{found} bytes{' (compressed)' if packed else ''} in {file.name} where the header says {wanted}",
            expected="all of its voxels",
            do="copy or export the file again",
        )


def _partner(path: Path) -> Path:
    """The .img (or .img.gz) beside a .hdr."""
    stem = path.name.removesuffix(".gz").removesuffix(".hdr")
    for name in (f"{stem}.img", f"{stem}.img.gz"):
        if path.with_name(name).is_file():
            return path.with_name(name)
    raise UnreadableFile(
        path, found="a header without its voxels", expected=f"{stem}.img beside it", do="copy both files of the pair"
    )


def _coloured(header: Any) -> bool:
    return bool(header.get_data_dtype().fields)


def _axes(path: Path, header: Any, fourth: str) -> _Axes:
    """Which stored axes are space and which are channels; refuses what is neither."""
    shape = tuple(int(side) for side in header.get_data_shape())
    if len(shape) < 2 or min(shape) < 1:
        raise UnreadableFile(
            path, found=f"axes of lengths {shape}", expected="two or three spatial axes", do="export the file again"
        )
    dtype = header.get_data_dtype()
    if dtype.fields:
        channels = len(dtype.fields)
    elif dtype.kind in "iuf" and dtype.itemsize <= 8:
        channels = 1
    else:
        raise UnreadableFile(
            path,
            found=f"voxels of type {dtype}",
            expected="real numbers or RGB",
            do="convert it to magnitude in 32-bit floating point",
        )
    dims: Literal[2, 3] = 2 if len(shape) == 2 else 3
    time, more = (*shape[3:], 1)[0], int(np.prod(shape[4:], dtype=np.int64))
    if time > 1 and (fourth != "channels" or more > 1):
        raise UnreadableFile(
            path,
            found=f"a fourth axis of length {time} (shape {shape})",
            expected="one volume",
            do="split the series into volumes, or read it with fourth='channels' if the axis holds modalities",
        )
    if time * more > 1 and channels > 1:
        raise UnreadableFile(
            path, found=f"colours and a fourth axis (shape {shape})", expected="one of them", do="split the file"
        )
    if more > 1 or time > 1:
        return _Axes(dims, time * more, f"axis {5 if more > 1 else 4} of length {time * more} taken as channels")
    note = f"trailing axes of length 1 dropped (stored shape {shape})" if len(shape) > 3 else ""
    return _Axes(dims, channels, note)


def _channels_first(stored: NDArray[Any], axes: _Axes) -> NDArray[Any]:
    """``(I, J[, K[, 1, C]])`` as ``(C, [K,] J, I)`` in native byte order."""
    if stored.dtype.fields:
        stored = np.stack([stored[name] for name in stored.dtype.names or ()], axis=-1)
    stored = stored.reshape(*stored.shape[: axes.dims], axes.channels)
    return np.ascontiguousarray(stored.T, dtype=stored.dtype.newbyteorder("="))


def _rescaled(pixels: NDArray[Any], slope: float | None, inter: float | None, record: list[Note]) -> NDArray[Any]:
    """Apply scl_slope and scl_inter; whole numbers stay integers of the smallest type that keeps the sign and range."""
    if slope is None or (slope, inter) == (1.0, 0.0):
        return pixels
    offset = 0.0 if inter is None else float(inter)
    record.append(Note(Act.NOTED, f"stored values scaled by {slope:g} and shifted by {offset:g}, as the header says"))
    if pixels.dtype.kind in "iu" and float(slope).is_integer() and offset.is_integer():
        ends = [int(pixels.min()) * int(slope) + int(offset), int(pixels.max()) * int(slope) + int(offset)]
        for kind in (pixels.dtype, np.dtype(np.int16), np.dtype(np.int32), np.dtype(np.int64)):
            if min(ends) >= np.iinfo(kind).min and max(ends) <= np.iinfo(kind).max:
                return (pixels.astype(np.int64) * int(slope) + int(offset)).astype(kind)
    # 24 bits of mantissa hold 16-bit integers exactly, but not 32-bit ones.
    wide = pixels.dtype.itemsize > (2 if pixels.dtype.kind in "iu" else 4)
    return (pixels.astype(np.float64) * slope + offset).astype(np.float64 if wide else np.float32)


def _note_not_finite(pixels: NDArray[Any], record: list[Note]) -> None:
    if pixels.dtype.kind != "f":
        return
    count = int(np.count_nonzero(~np.isfinite(pixels)))
    if count:
        record.append(Note(Act.NOTED, f"{count} of {pixels.size} values are NaN or infinite"))


def _grid(path: Path, header: Any, shape: tuple[int, ...], record: list[Note]) -> Grid:
    """The grid of the header: sform, else qform, else spacing without position, else nothing but the shape."""
    unit = int(header["xyzt_units"]) & 7
    scale = _MM_PER_UNIT.get(unit, 1.0)
    affine = _affine(path, header, np.diag([scale, scale, scale, 1.0]), record)
    if affine is not None:
        if unit in (1, 3):
            record.append(Note(Act.NOTED, f"geometry given in {_UNIT_NAME[unit]}, converted to mm"))
        try:
            return Grid(shape, affine=affine_from_nifti(affine))
        except ValueError as error:
            raise GeometryError(
                path, found=str(error), expected="an invertible affine", do="correct the sform or qform of the header"
            ) from error
    steps = np.abs(np.asarray(header["pixdim"], dtype=np.float64)[1 : len(shape) + 1])[::-1] * scale
    if unit in _MM_PER_UNIT and np.isfinite(steps).all() and (steps > 0).all():
        record.append(Note(Act.NOTED, "sform and qform codes are 0: no position in the patient, only a voxel size"))
        return Grid(shape, spacing=tuple(steps))
    record.append(Note(Act.NOTED, "sform and qform codes are 0 and the unit is not stated: no physical geometry"))
    return Grid(shape)


def _affine(path: Path, header: Any, to_mm: FloatArray, record: list[Note]) -> FloatArray | None:
    """(4, 4) index (i, j, k) to RAS mm, or None if neither form has a code."""
    sform = to_mm @ header.get_sform() if int(header["sform_code"]) > 0 else None
    qform = None
    if int(header["qform_code"]) > 0:
        try:
            qform = to_mm @ _with_legal_steps(header, sform is None, record).get_qform()
        except (HeaderDataError, ValueError) as error:
            if sform is None:
                raise GeometryError(
                    path,
                    found=f"a broken qform ({error})",
                    expected="a unit quaternion",
                    do="correct the qform of the header",
                ) from error
            record.append(Note(Act.NOTED, "the qform is broken; the sform is used"))
    if sform is not None and (not np.isfinite(sform).all() or abs(np.linalg.det(sform[:3, :3])) < 1e-12):
        if qform is None:
            raise GeometryError(
                path,
                found="a singular sform and no qform",
                expected="an invertible affine",
                do="correct the sform of the header",
            )
        record.append(Note(Act.NOTED, "the sform is singular; the qform is used"))
        return qform
    if sform is not None and qform is not None:
        _note_quarrel(sform, qform, header, record)
    return sform if sform is not None else qform


def _with_legal_steps(header: Any, used: bool, record: list[Note]) -> Any:
    """The header with pixdim as nifti1.h wants it: qfac 0 "which should not occur" is 1, steps are positive."""
    pixdim = np.array(header["pixdim"])
    legal = pixdim.copy()
    legal[0] = pixdim[0] if pixdim[0] in (-1, 1) else 1
    legal[1:4] = np.abs(pixdim[1:4])
    if np.array_equal(legal, pixdim):
        return header
    repaired = header.copy()
    repaired["pixdim"] = legal
    if used:
        was, now = pixdim[:4].tolist(), legal[:4].tolist()
        record.append(Note(Act.REPAIRED, f"pixdim {was} taken as {now}: qfac is 1 or -1 and steps are positive"))
    return repaired


def _note_quarrel(sform: FloatArray, qform: FloatArray, header: Any, record: list[Note]) -> None:
    corner = np.array([*(int(side) - 1 for side in (*header.get_data_shape(), 1)[:3]), 1.0])
    gap = max(float(np.linalg.norm((sform - qform)[:3, 3])), float(np.linalg.norm(((sform - qform) @ corner)[:3])))
    if gap > 0.1 * float(np.linalg.norm(sform[:3, :3], axis=0).min()):
        record.append(Note(Act.NOTED, f"sform and qform disagree by {gap:.3g} mm at a corner; the sform is used"))


def _unit(header: Any, axes: _Axes) -> Unit:
    if _coloured(header):
        return Unit.RED_GREEN_BLUE
    return Unit.LABEL if int(header["intent_code"]) == _INTENT_LABEL and axes.channels >= 1 else Unit.INTENSITY


def _meta(header: Any) -> dict[str, Any]:
    text = bytes(header["descrip"]).split(b"\0")[0].decode("latin-1").strip()
    dtype = header.get_data_dtype()
    meta: dict[str, Any] = {
        "format": "NIfTI-2" if int(header["sizeof_hdr"]) == 540 else "NIfTI-1",
        "bits": 8 if dtype.fields else 8 * dtype.itemsize,
        "sform_code": int(header["sform_code"]),
        "qform_code": int(header["qform_code"]),
    }
    return meta | ({"description": text} if text else {})
