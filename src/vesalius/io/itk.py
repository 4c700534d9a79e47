"""NRRD and MetaImage files through SimpleITK, which keeps positions in LPS mm as we do.

ITK answers every question about geometry, also where the file is silent (spacing 1, origin 0). What the file itself
says is therefore read from its text header first (http://teem.sourceforge.net/nrrd/format.html,
https://itk.org/Wiki/ITK/MetaIO/Documentation), and only that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 the name that SimpleITK's own documentation uses
from numpy.typing import NDArray

from vesalius.core.errors import GeometryError, UnreadableFile
from vesalius.core.geometry import Grid, affine_from_axes
from vesalius.core.image import Act, Image, Note, Unit
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes, check_pixels

_HEADER_BYTES = 1 << 20
_MM = {
    "mm": 1.0,
    "millimeter": 1.0,
    "millimeters": 1.0,
    "cm": 10.0,
    "m": 1000.0,
    "um": 1e-3,
    "µm": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
}
_PATIENT_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")


@dataclass(frozen=True)
class _Stated:
    """What the text header says of itself."""

    reader: str
    position: bool
    spacing: bool
    mm_per_unit: float
    data_file: str
    format: str


def read_itk(path: str | Path, limits: ReadLimits | None = None) -> Image:
    """Read NRRD (.nrrd, .nhdr) or MetaImage (.mha, .mhd).

    Returns
    -------
    Image
        Pixels ``(C, Y, X)`` or ``(C, Z, Y, X)`` in the stored type. An affine only where the header states directions
        in a patient space (NRRD) or a position or transform (MetaImage); else a spacing where it states one; else
        neither.

    Raises
    ------
    UnreadableFile
        Another format, truncated, complex values, more than three axes, or pixel data in another folder.
    GeometryError
        Directions that do not span space.
    LimitError
        More values or bytes than the limits allow.
    """
    path = Path(path)
    limits = active_limits(limits)
    if not path.is_file():
        raise UnreadableFile(path, found="no such file", expected="an NRRD or MetaImage file", do="check the path")
    check_file_bytes(path, limits)
    stated = _stated(path)
    _check_data_file(path, stated, limits)
    try:
        volume = _read(path, stated, limits)
    except RuntimeError as error:
        raise UnreadableFile(
            path,
            found=f"no complete image ({_short(error)})",
            expected="a header and all its voxels",
            do="copy or export the file again",
        ) from error
    record: list[Note] = []
    components = volume.GetNumberOfComponentsPerPixel()
    stored = sitk.GetArrayFromImage(volume)
    if stored.dtype.kind not in "iuf":
        raise UnreadableFile(
            path, found=f"values of type {stored.dtype}", expected="real numbers", do="convert it to magnitude"
        )
    pixels: NDArray[Any] = np.moveaxis(stored, -1, 0) if components > 1 else stored[None]
    grid = _grid(path, volume, stated, record)
    coloured = components == 3 and stored.dtype == np.uint8
    return Image(
        grid=grid,
        pixels=np.ascontiguousarray(pixels),
        unit=Unit.RED_GREEN_BLUE if coloured else Unit.INTENSITY,
        channels=("red", "green", "blue") if coloured else (),
        record=tuple(record),
        meta={"format": stated.format, "bits": 8 * stored.dtype.itemsize},
        source=str(path),
    )


def _short(error: Exception) -> str:
    """The last line of ITK's many: the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _read(path: Path, stated: _Stated, limits: ReadLimits) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(stated.reader)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = [int(side) for side in reader.GetSize()]
    check_pixels(path, (*size[::-1], reader.GetNumberOfComponents()), limits)
    if len(size) > 3 and max(size[3:]) > 1:
        raise UnreadableFile(
            path, found=f"{len(size)} axes {tuple(size)}", expected="two or three", do="split the series into volumes"
        )
    if len(size) > 3:
        reader.SetExtractSize([*size[:3], *([0] * (len(size) - 3))])
    return reader.Execute()


def _stated(path: Path) -> _Stated:
    """Parse the text header."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head.startswith(b"NRRD"):
        text = head.replace(b"\r\n", b"\n").split(b"\n\n")[0].decode("latin-1")
        return _nrrd(path, _fields(text, ":"))
    end = head.find(b"ElementDataFile")
    if end >= 0 and b"NDims" in head[:end]:
        stop = head.find(b"\n", end)
        return _meta_image(_fields(head[: stop if stop >= 0 else None].decode("latin-1"), "="))
    raise UnreadableFile(
        path, found="neither an NRRD nor a MetaImage header", expected="one of them", do="convert it to NIfTI or NRRD"
    )


def _fields(text: str, mark: str) -> dict[str, str]:
    lines = [line.split(mark, 1) for line in text.splitlines() if mark in line and not line.startswith("#")]
    return {key.strip().lower(): value.strip().lstrip("=").strip() for key, value in lines}


def _nrrd(path: Path, fields: Mapping[str, str]) -> _Stated:
    directions = fields.get("space directions", "")
    space = fields.get("space", "").lower()
    units = {unit.strip('"').lower() for unit in fields.get("space units", fields.get("units", "")).split()} - {""}
    scales = {_MM.get(unit) for unit in units} or {1.0}
    if len(scales) != 1 or None in scales:
        raise GeometryError(
            path, found=f"space units {sorted(units)}", expected="mm for every axis", do="convert the geometry to mm"
        )
    numbers = fields.get("spacings", "").lower().replace("nan", "").split()
    return _Stated(
        reader="NrrdImageIO",
        position=bool(directions) and space in _PATIENT_SPACES,
        spacing=bool(directions) or bool(numbers),
        mm_per_unit=float(scales.pop() or 1.0),
        data_file=fields.get("data file", fields.get("datafile", "")),
        format="NRRD",
    )


def _meta_image(fields: Mapping[str, str]) -> _Stated:
    placed = {"offset", "position", "origin", "transformmatrix", "rotation", "orientation"} & fields.keys()
    file = fields.get("elementdatafile", "")
    return _Stated(
        reader="MetaImageIO",
        position=bool(placed) and "elementspacing" in fields,
        spacing="elementspacing" in fields or "elementsize" in fields,
        mm_per_unit=1.0,
        data_file="" if file.upper() == "LOCAL" else file,
        format="MetaImage",
    )


def _check_data_file(path: Path, stated: _Stated, limits: ReadLimits) -> None:
    """A header may name only a file beside it: one that names /etc/passwd must not turn it into pixels."""
    name = stated.data_file
    if not name:
        return
    if name.upper().split()[0] == "LIST" or "%" in name:
        raise UnreadableFile(
            path,
            found=f"pixel data in several files ({name})",
            expected="one file",
            do="save it as one .mha or .nrrd file",
        )
    name = name.removeprefix("./")
    if PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
        raise UnreadableFile(
            path,
            found=f"pixel data in another folder ({name})",
            expected="a file beside the header",
            do="put both files into one folder and correct the name",
        )
    data = path.with_name(name)
    if not data.is_file():
        raise UnreadableFile(
            path, found="a header without its pixel data", expected=f"{name} beside it", do="copy both files"
        )
    check_file_bytes(data, limits)


def _grid(path: Path, volume: sitk.Image, stated: _Stated, record: list[Note]) -> Grid:
    """The grid with as much geometry as the header states."""
    ndim = volume.GetDimension()
    shape = tuple(int(side) for side in volume.GetSize()[::-1])
    spacing = np.array(volume.GetSpacing()[::-1]) * stated.mm_per_unit
    if stated.position and ndim == 3:
        directions = np.array(volume.GetDirection()).reshape(3, 3).T[::-1]
        try:
            affine = affine_from_axes(np.array(volume.GetOrigin()) * stated.mm_per_unit, directions, tuple(spacing))
            return Grid(shape, affine=affine)
        except ValueError as error:
            raise GeometryError(
                path, found=str(error), expected="three independent axes", do="correct the directions of the header"
            ) from error
    if stated.spacing:
        record.append(Note(Act.NOTED, "no position in a patient space stated, only a voxel size"))
        return Grid(shape, spacing=tuple(float(step) for step in spacing))
    record.append(Note(Act.NOTED, "no physical geometry stated"))
    return Grid(shape)
