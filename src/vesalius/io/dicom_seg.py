"""DICOM segmentations (PS3.3 A.51, C.8.20) to label images on their own grid."""

from __future__ import annotations

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
from vesalius.io.dicom_pixels import decode
from vesalius.io.dicom_resample import resample
from vesalius.io.limits import ReadLimits, check_pixels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


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
    places, grid, plan, notes = _slices(dataset, path, len(stored), limits)
    channels = 1 if kind == "LABELMAP" else len(names)
    depth = len(plan.order) if plan is not None else 1
    check_pixels(path, (channels, depth, *stored.shape[1:]), limits)
    dtype = np.float32 if kind == "FRACTIONAL" else (stored.dtype if kind == "LABELMAP" else np.uint8)
    volume = np.zeros((channels, depth, *stored.shape[1:]), dtype)
    row_of = {number: row for row, number in enumerate(names)}
    filled: set[tuple[int, int]] = set()
    for index, (number, z) in enumerate(zip(numbers, places, strict=True)):
        channel = 0 if kind == "LABELMAP" else row_of[number]
        if (channel, z) in filled:
            raise GeometryError(
                path,
                found=f"two frames of segment {number} at one position (frame {index + 1})",
                expected="one frame per segment and position",
            )
        filled.add((channel, z))
        volume[channel, z] = _frame(stored[index], dataset, kind, path)
    labels: tuple[str, ...] = tuple(names.values())
    if kind == "BINARY":
        volume, labels, more = _merged(volume, names)
        notes += more
    elif kind == "LABELMAP":
        labels = ("labels",)
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
    dataset: Dataset, path: str | Path, frames: int, limits: ReadLimits
) -> tuple[list[int], Grid, Stack | None, tuple[Note, ...]]:
    """Slice index of each frame, and the grid; slices that no frame fills are background."""
    planes: list[Plane] | None = frame_planes(dataset, path, frames)
    if planes is None:
        if frames > 1:
            raise GeometryError(
                path,
                found="segment frames without position, orientation or spacing",
                expected="Plane Position, Plane Orientation and Pixel Measures",
                do="write the segmentation again with its geometry",
            )
        note = Note(Act.NOTED, "segmentation without a place in the patient")
        return [0], Grid((int(dataset.Rows), int(dataset.Columns))), None, (note,)
    check_parallel(planes, limits)
    at = positions(planes, limits)
    ordered = [planes[group[0]] for group in at]
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


def _frame(stored: NDArray[Any], dataset: Dataset, kind: str, path: str | Path) -> NDArray[Any]:
    if kind == "FRACTIONAL":
        return stored.astype(np.float32) / float(plain(dataset, "MaximumFractionalValue") or 255)
    if kind == "BINARY" and stored.size and int(stored.max()) > 1:
        raise UnreadableFile(path, found=f"the value {int(stored.max())} in a binary segmentation", expected="0 and 1")
    return stored


def _merged(volume: NDArray[Any], names: dict[int, str]) -> tuple[NDArray[Any], tuple[str, ...], tuple[Note, ...]]:
    """One map of segment numbers if no voxel belongs to two segments, else the channels as they are."""
    count = np.zeros(volume.shape[1:], np.uint8 if len(volume) < 256 else np.uint16)
    for channel in volume:
        count += channel
    if count.max() > 1:
        note = Note(
            Act.NOTED, f"segments overlap in {int((count > 1).sum())} voxels: one channel of 0 and 1 per segment"
        )
        return volume, tuple(names.values()), (note,)
    merged = np.zeros((1, *volume.shape[1:]), np.uint8 if max(names) < 256 else np.uint16)
    for number, channel in zip(names, volume, strict=True):
        merged[0][channel > 0] = number
    return merged, ("labels",), ()


def _distinct(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Channel names that differ: a repeated label gets its place behind it."""
    return tuple(f"{label} {place + 1}" if labels.count(label) > 1 else label for place, label in enumerate(labels))
