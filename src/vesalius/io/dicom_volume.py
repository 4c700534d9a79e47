"""The files of one DICOM series to one `Image`: ordered by position, decoded in parallel, nothing assumed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.core.errors import GeometryError, UnreadableFile, UsageError
from vesalius.core.image import Act, Image, Note, Unit
from vesalius.io.dicom import RGB, oddities, on_grid, read_dicom
from vesalius.io.dicom_frames import slice_plane
from vesalius.io.dicom_geometry import Plane, check_parallel, positions
from vesalius.io.dicom_header import frame_count, gather_meta, guarded, read_dataset, read_header, refusal
from vesalius.io.dicom_pixels import decode
from vesalius.io.dicom_series import Series
from vesalius.io.dicom_values import Meaning, fitted, meaning, narrowed, result_type, stored_range, value_meta
from vesalius.io.limits import ReadLimits, active_limits, check_pixels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Facts that slices of one volume share; a difference means that the files are not one image.
_COMMON = (
    "PatientID",
    "FrameOfReferenceUID",
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "PixelRepresentation",
    "BitsAllocated",
    "Units",
)


def read_series(
    files: Series | Sequence[str | Path], limits: ReadLimits | None = None, *, workers: int | None = None
) -> Image:
    """One image ``(C, Z, Y, X)`` from the files of one series, slices rising along row x column direction.

    Parameters
    ----------
    files
        In any order; names mean nothing. A single file is read as `read_dicom` reads it.
    limits
        Those of the surrounding `read_limits` if None.
    workers
        Threads that read and decode; as many as cores if None.

    Raises
    ------
    GeometryError
        If slices differ in size, spacing or orientation, are missing, uneven, or share a position with other pixels.
    UnreadableFile, LimitError, UsageError
        For a broken file, too many pixels, or no file at all.
    """
    limits = active_limits(limits)
    paths = [Path(path) for path in (files.files if isinstance(files, Series) else files)]
    if not paths:
        raise UsageError("no files: give at least one DICOM file of a series")
    workers = workers or available_cores()
    if len(paths) == 1:
        return read_dicom(paths[0], limits, workers=workers)
    where = _folder_of(paths)
    with ThreadPoolExecutor(workers) as pool:
        headers = list(pool.map(read_header, paths))
        with guarded(where, "putting the series together"):
            planes = _planes(paths, headers)
            check_parallel(planes, limits)
            at = positions(planes, limits)
            kept, notes = _without_copies(at, paths, planes, limits)
            colour = int(headers[0].get("SamplesPerPixel") or 1) == 3 or "PALETTE" in str(
                headers[0].get("PhotometricInterpretation")
            )
            check_pixels(where, (3 if colour else 1, len(kept), *planes[0].shape), limits)
            hows = [meaning(headers[index]) for index in kept]
            _check_units(hows, [paths[index] for index in kept])
            volume = _decoded(pool, [paths[index] for index in kept], hows, headers[kept[0]], limits, colour=colour)
            grid, volume, more = on_grid(volume, [planes[index] for index in kept], where, limits)
        first = headers[kept[0]]
        unit = Unit.RED_GREEN_BLUE if colour else hows[0].unit
        meta = {**gather_meta(first), **({} if colour else value_meta(first, hows[0])), "files": len(paths)}
        meta.pop("sop_uid", None)
        record = (*oddities(first), *hows[0].notes, *notes, *more)
        return Image(grid, volume, unit, RGB if colour else ("image",), record, meta, str(where))


def _folder_of(paths: Sequence[Path]) -> Path:
    """The folder of all files, or the first file if they lie apart."""
    return paths[0].parent if len({path.parent for path in paths}) == 1 else paths[0]


def _planes(paths: Sequence[Path], headers: Sequence[Dataset]) -> list[Plane]:
    """One plane per file, after checking that the files can be slices of one volume."""
    planes: list[Plane] = []
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        refused = refusal(header, path)
        if refused is not None:
            raise refused
        frames = frame_count(header, path)
        if frames > 1:
            raise GeometryError(
                path,
                found=f"{frames} frames among {len(paths)} files",
                expected="one slice per file",
                do="open this file by itself",
            )
        for keyword in _COMMON:
            mine, theirs = str(header.get(keyword, "")), str(first.get(keyword, ""))
            if mine != theirs:
                raise GeometryError(
                    path,
                    found=f"{keyword} {mine!r} while {paths[0].name} has {theirs!r}",
                    expected="one value in a series",
                    do="open the files of each kind apart",
                )
        plane = slice_plane(header, str(path))
        if plane is None:
            raise GeometryError(
                path,
                found="no position and orientation in the patient",
                expected=f"both, to order {len(paths)} files",
                do="open the files one by one",
            )
        planes.append(plane)
    return planes


def _without_copies(
    at: list[list[int]], paths: Sequence[Path], planes: Sequence[Plane], limits: ReadLimits
) -> tuple[list[int], tuple[Note, ...]]:
    """One file per position. Copies of the same pixels are dropped with a note; different pixels are refused."""
    crowded = [group for group in at if len(group) > 1]
    dropped: list[str] = []
    for group in crowded:
        first = _values_of(paths[group[0]], limits)
        for other in group[1:]:
            if not np.array_equal(first, _values_of(paths[other], limits)):
                where = ", ".join(f"{value:.4g}" for value in planes[other].position)
                raise GeometryError(
                    _folder_of(paths),
                    found=f"{len(group)} different slices at ({where}) mm, among them "
                    f"{paths[group[0]].name} and {paths[other].name}; {len(crowded)} of {len(at)} positions "
                    "are shared",
                    expected="one slice per position",
                    do="phases, echoes or b-values are told apart by list_series",
                )
            dropped.append(paths[other].name)
    if not dropped:
        return [group[0] for group in at], ()
    names = ", ".join(dropped[:3]) + (f" and {len(dropped) - 3} more" if len(dropped) > 3 else "")
    note = Note(Act.REPAIRED, f"{len(dropped)} copies of slices that are there already were left out: {names}")
    return [group[0] for group in at], (note,)


def _values_of(path: Path, limits: ReadLimits) -> NDArray[Any]:
    dataset = read_dataset(path, limits)
    stored = decode(dataset, path, limits)
    values: NDArray[Any] = stored[0] if stored.ndim == 4 else meaning(dataset).apply(stored[0])
    return values


def _check_units(hows: Sequence[Meaning], paths: Sequence[Path]) -> None:
    for how, path in zip(hows, paths, strict=True):
        if how.unit is not hows[0].unit or (how.table is None) != (hows[0].table is None):
            raise UnreadableFile(
                path,
                found=f"values in {how.unit} while {paths[0].name} has {hows[0].unit}",
                expected="one unit in a series",
                do="repair the headers or leave the file out",
            )


def _decoded(
    pool: ThreadPoolExecutor,
    paths: Sequence[Path],
    hows: Sequence[Meaning],
    first: Dataset,
    limits: ReadLimits,
    *,
    colour: bool,
) -> NDArray[Any]:
    """``(C, n, Y, X)``: every file decoded into its place, by the threads of `pool`."""
    start = decode(read_dataset(paths[0], limits), paths[0], limits)
    dtype = start.dtype if colour else result_type(list(hows), start.dtype, stored_range(first))
    volume = np.empty((start.shape[1] if colour else 1, len(paths), *start.shape[-2:]), dtype)

    def put(index: int) -> None:
        stored = start if index == 0 else decode(read_dataset(paths[index], limits), paths[index], limits)
        if colour:
            volume[:, index] = stored[0]
        elif hows[index].plain:
            volume[0, index] = stored[0]
        else:
            volume[0, index] = fitted(hows[index].apply(stored[0]), dtype)

    list(pool.map(put, range(len(paths))))
    return narrowed(volume) if any(not how.plain for how in hows) else volume
