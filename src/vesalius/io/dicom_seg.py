"""DICOM segmentations (PS3.3 A.51, C.8.20) to label images on their own grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import GeometryError, UnreadableFile
from vesalius.core.geometry import Grid
from vesalius.core.image import Act, Image, Note, Unit
from vesalius.io.dicom_frames import frame_group, frame_planes
from vesalius.io.dicom_geometry import Plane, Stack, check_parallel, positions, single, stack
from vesalius.io.dicom_header import gather_meta, items, plain
from vesalius.io.dicom_header import numbers as numbers_of
from vesalius.io.dicom_pixels import decode
from vesalius.io.dicom_resample import resample
from vesalius.io.limits import ReadLimits, check_pixels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Gaps of this part of a slice off a multiple of the stated distance contradict it.
_MULTIPLE = 0.05


def read_segmentation(dataset: Dataset, path: str | Path, limits: ReadLimits, *, workers: int = 1) -> Image:
    """The segments of a SEG file.

    Returns
    -------
    One channel of segment numbers (0 is background) where no two segments overlap, else one channel of 0 and 1 per
    segment, unit LABEL. A fractional segmentation has one float32 channel in [0, 1] per segment. ``meta["segments"]``
    lists ``"number: label"``.

    Raises
    ------
    UnreadableFile, GeometryError
        If segments or frames contradict each other, or frames have no common grid.
    """
    stored = decode(dataset, path, limits, workers=workers)
    if stored.ndim != 3:
        raise UnreadableFile(path, found="a segmentation in colour", expected="one sample per pixel")
    kind = str(plain(dataset, "SegmentationType") or "BINARY").upper()
    names = _segment_names(dataset, path)
    numbers = _frame_segments(dataset, path, len(stored), kind, names)
    places, grid, plan, notes = _slices(dataset, path, numbers, limits)
    _check_once(numbers, places, path)
    depth = len(plan.order) if plan is not None else 1
    shape = (depth, *stored.shape[1:])
    check_pixels(path, shape, limits)
    labels: tuple[str, ...] = ("labels",)
    volume = _joined(stored, numbers, places, shape, dataset, path) if kind == "BINARY" else None
    if volume is None:
        labels = ("labels",) if kind == "LABELMAP" else tuple(names.values())
        check_pixels(path, (len(labels), *shape), limits)
        dtype = np.float32 if kind == "FRACTIONAL" else (stored.dtype if kind == "LABELMAP" else np.uint8)
        volume = np.zeros((len(labels), *shape), dtype)
        row_of = {number: row for row, number in enumerate([0] if kind == "LABELMAP" else names)}
        for frame, number, z in zip(stored, numbers, places, strict=True):
            volume[row_of[number], z] = _frame(frame, dataset, kind, path)
        if kind == "BINARY":
            notes += (_overlap_note(volume),)
    if plan is not None and plan.resampling is not None:
        volume = resample(volume, plan.resampling, nearest=kind != "FRACTIONAL")
    pixels = volume[:, 0] if grid.ndim == 2 else volume
    meta = {
        **gather_meta(dataset),
        "segments": [f"{number}: {name}" for number, name in names.items()],
        "segmentation_type": kind.lower(),
    }
    unit = Unit.INTENSITY if kind == "FRACTIONAL" else Unit.LABEL
    return Image(grid, np.ascontiguousarray(pixels), unit, _distinct(labels), notes, meta, str(path))


def _check_once(numbers: list[int], places: list[int], path: str | Path) -> None:
    filled: set[tuple[int, int]] = set()
    for index, key in enumerate(zip(numbers, places, strict=True)):
        if key in filled:
            raise GeometryError(
                path,
                found=f"two frames of segment {key[0]} at one position (frame {index + 1})",
                expected="one frame per segment and position",
            )
        filled.add(key)


def _segment_names(dataset: Dataset, path: str | Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for item in items(dataset, "SegmentSequence"):
        number = plain(item, "SegmentNumber")
        if number is None or int(number) in names:
            raise UnreadableFile(path, found=f"segment number {number} absent or twice", expected="every segment once")
        names[int(number)] = str(plain(item, "SegmentLabel") or f"segment {number}")
    if not names:
        raise UnreadableFile(path, found="a segmentation without segments", expected="a Segment Sequence")
    return names


def _frame_segments(dataset: Dataset, path: str | Path, frames: int, kind: str, names: dict[int, str]) -> list[int]:
    if kind == "LABELMAP":
        return [0] * frames
    found: list[int] = []
    for index in range(frames):
        item = frame_group(dataset, index, "SegmentIdentificationSequence")
        number = plain(item, "ReferencedSegmentNumber") if item is not None else None
        if number is None and len(names) == 1:
            number = next(iter(names))  # only one segment: the frame can belong to no other
        if number is None or int(number) not in names:
            raise UnreadableFile(
                path, found=f"frame {index + 1} of segment {number}", expected=f"one of the segments {sorted(names)}"
            )
        found.append(int(number))
    return found


def _slices(
    dataset: Dataset, path: str | Path, numbers: list[int], limits: ReadLimits
) -> tuple[list[int], Grid, Stack | None, tuple[Note, ...]]:
    """Slice index of each frame, given its segment number, and the grid; slices that no frame fills are background."""
    frames = len(numbers)
    planes: list[Plane] | None = frame_planes(dataset, path, frames)
    if planes is None:
        if len(set(numbers)) < frames:
            raise GeometryError(
                path,
                found="segment frames without position, orientation or spacing",
                expected="Plane Position, Plane Orientation and Pixel Measures",
                do="write the segmentation again with its geometry",
            )
        note = Note(Act.NOTED, "segmentation without a place in the patient")
        size = frame_group(dataset, 0, "PixelMeasuresSequence")
        spacing = _positive(size, "PixelSpacing", 2)
        grid = Grid((int(dataset.Rows), int(dataset.Columns)), spacing=None if spacing is None else tuple(spacing))
        return [0] * frames, grid, None, (note,)
    check_parallel(planes, limits)
    at = positions(planes, limits)
    ordered = _with_step([planes[group[0]] for group in at], frame_group(dataset, 0, "PixelMeasuresSequence"))
    if len(ordered) == 1:
        grid, notes = single(ordered[0])
        return [0] * frames, grid, None, notes
    plan = stack(ordered, str(path), limits, sparse=True)
    notes = plan.notes
    absent = plan.order.count(-1)
    if absent:
        notes += (Note(Act.NOTED, f"{absent} slices without a frame are background"),)
    slice_of = {place: z for z, place in enumerate(plan.order) if place >= 0}
    places = [0] * frames
    for place, group in enumerate(at):
        for index in group:
            places[index] = slice_of[place]
    return places, plan.grid, plan, notes


def _with_step(ordered: list[Plane], size: Dataset | None) -> list[Plane]:
    """Planes that know the slice distance: what the file says of it, if the distances of its frames are multiples.

    Slice Thickness stays where it says nothing: empty frames are left out, so gaps alone do not tell the distance.
    """
    said = _positive(size, "SpacingBetweenSlices", 1)
    if said is None:
        return ordered
    steps = np.diff([plane.position @ ordered[0].normal for plane in ordered]) / said[0]
    if steps.size and (np.abs(steps - np.rint(steps)).max() > _MULTIPLE or np.rint(steps).min() < 1):
        return ordered
    return [replace(plane, thickness=said[0]) for plane in ordered]


def _positive(item: Dataset | None, keyword: str, count: int) -> list[float] | None:
    values = numbers_of(item, keyword, count) if item is not None else None
    return values if values is not None and min(values) > 0 else None


def _joined(
    stored: NDArray[Any],
    numbers: list[int],
    places: list[int],
    shape: tuple[int, ...],
    dataset: Dataset,
    path: str | Path,
) -> NDArray[Any] | None:
    """One map ``(1, *shape)`` of segment numbers, or None where two segments share a voxel."""
    joined = np.zeros((1, *shape), np.uint8 if max(numbers) < 256 else np.uint16)
    for frame, number, z in zip(stored, numbers, places, strict=True):
        inside = _frame(frame, dataset, "BINARY", path) > 0
        if joined[0, z][inside].any():
            return None
        joined[0, z][inside] = number
    return joined


def _frame(stored: NDArray[Any], dataset: Dataset, kind: str, path: str | Path) -> NDArray[Any]:
    if kind == "FRACTIONAL":
        return stored.astype(np.float32) / float(plain(dataset, "MaximumFractionalValue") or 255)
    if kind == "BINARY" and stored.size and int(stored.max()) > 1:
        raise UnreadableFile(path, found=f"the value {int(stored.max())} in a binary segmentation", expected="0 and 1")
    return stored


def _overlap_note(volume: NDArray[Any]) -> Note:
    count = volume.sum(axis=0, dtype=np.uint8 if len(volume) < 256 else np.uint16)
    return Note(Act.NOTED, f"segments overlap in {int((count > 1).sum())} voxels: one channel of 0 and 1 per segment")


def _distinct(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Channel names that differ: a repeated label gets its place behind it."""
    return tuple(f"{label} {place + 1}" if labels.count(label) > 1 else label for place, label in enumerate(labels))
