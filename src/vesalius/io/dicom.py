"""One DICOM file to an `Image`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import GeometryError
from vesalius.core.geometry import Grid
from vesalius.core.image import Act, Image, Note, Unit
from vesalius.io.dicom_frames import flat_spacing, frame_group, frame_key, frame_planes, groups
from vesalius.io.dicom_geometry import Plane, check_parallel, positions, single, stack
from vesalius.io.dicom_header import (
    gather_meta,
    guarded,
    number,
    plain,
    read_dataset,
    refusal,
    stray_byte,
)
from vesalius.io.dicom_pixels import decode
from vesalius.io.dicom_resample import resample
from vesalius.io.dicom_values import Meaning, fitted, meaning, narrowed, result_type, stored_range, value_meta
from vesalius.io.limits import ReadLimits, active_limits, check_pixels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_PARAMETRIC = "1.2.840.10008.5.1.4.1.1.30"
RGB = ("red", "green", "blue")


def read_dicom(path: str | Path, limits: ReadLimits | None = None, *, workers: int = 1) -> Image:
    """The image in one DICOM file.

    Parameters
    ----------
    path
        A file of any transfer syntax, with or without preamble; single-frame, multi-frame, enhanced, SEG, RT dose or
        parametric map.
    limits
        Those of the surrounding `read_limits` if None.
    workers
        Threads that decode the frames.

    Returns
    -------
    ``(C, Y, X)`` for a projection, a photograph or a slice without thickness, else ``(C, Z, Y, X)``, slices rising
    along row x column direction. Frames without a place in the patient keep their order on the Z axis, and a note
    says so.

    Raises
    ------
    UnreadableFile, GeometryError, LimitError
        With one line: what was found, what was expected, what to do.
    """
    limits = active_limits(limits)
    dataset = read_dataset(path, limits)
    with guarded(path, "reading the image"):
        refused = refusal(dataset, path)
        if refused is not None:
            raise refused
        if str(dataset.get("SOPClassUID", "")) in _SEG:
            from vesalius.io.dicom_seg import read_segmentation

            return read_segmentation(dataset, path, limits, workers=workers)
        stored = decode(dataset, path, limits, workers=workers)
        record = oddities(dataset)
        if stray_byte(path):
            record += (Note(Act.REPAIRED, "one stray byte before the first data element was skipped"),)
        image = _placed(dataset, path, stored, limits)
        return Image(
            image.grid,
            image.pixels,
            image.unit,
            image.channels,
            (*record, *image.record),
            {**gather_meta(dataset), **image.meta},
            str(path),
        )


def _placed(dataset: Dataset, path: str | Path, stored: NDArray[Any], limits: ReadLimits) -> Image:
    """Values on their grid, without the header's facts."""
    frames = stored.shape[0]
    values, unit, meta, notes = frame_values(dataset, stored)
    channels: tuple[str, ...] = RGB if values.shape[1] == 3 else ("image",)
    planes = frame_planes(dataset, path, frames)
    if planes is None:
        spacing, more = flat_spacing(dataset)
        if frames == 1:
            return Image(Grid(stored.shape[-2:], spacing=spacing), values[0], unit, channels, (*notes, *more), meta)
        text = f"{frames} frames without a place in the patient: the first axis counts frames, not millimetres"
        if spacing is not None:
            meta["pixel_spacing"] = list(spacing)
        volume = np.ascontiguousarray(np.moveaxis(values, 1, 0))
        return Image(Grid(volume.shape[1:]), volume, unit, channels, (*notes, *more, Note(Act.NOTED, text)), meta)
    if frames == 1:
        grid, more = single(planes[0])
        pixels = values[0] if grid.ndim == 2 else values[0][:, None]
        return Image(grid, pixels, unit, channels, (*notes, *more), meta)
    check_parallel(planes, limits)
    groups_at = positions(planes, limits)
    volume, channels = _by_position(dataset, path, np.moveaxis(values, 1, 0), groups_at, channels)
    sorted_planes = [planes[group[0]] for group in groups_at]
    grid, volume, more = on_grid(volume, sorted_planes, path, limits)
    return Image(grid, volume, unit, channels, (*notes, *more), meta)


def on_grid(
    volume: NDArray[Any], planes: Sequence[Plane], path: str | Path, limits: ReadLimits
) -> tuple[Grid, NDArray[Any], tuple[Note, ...]]:
    """`volume` ``(C, n, Y, X)``, its slices at `planes` in rising order, on the even grid that they fill."""
    if len(planes) == 1:
        grid, notes = single(planes[0])
        return grid, volume if grid.ndim == 3 else volume[:, 0], notes
    plan = stack(planes, str(path), limits)
    if plan.resampling is not None:
        check_pixels(path, (volume.shape[0], *plan.grid.shape), limits)
        volume = resample(volume, plan.resampling)
    return plan.grid, np.ascontiguousarray(volume), plan.notes


def _by_position(
    dataset: Dataset, path: str | Path, frames: NDArray[Any], at: list[list[int]], channels: tuple[str, ...]
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Frames ``(C, F, Y, X)`` as ``(channels, positions, Y, X)``: several frames at each position become channels."""
    each = len(at[0])
    if any(len(group) != each for group in at):
        counts = sorted({len(group) for group in at})
        raise GeometryError(
            path,
            found=f"between {counts[0]} and {counts[-1]} frames at one position",
            expected="the same number of frames at every position",
        )
    if each == 1:
        return frames[:, [group[0] for group in at]], channels
    keys = {index: frame_key(dataset, index) for group in at for index in group}
    name, order = _telling(keys, at)
    if name is None:
        raise GeometryError(
            path,
            found=f"{each} frames at each position with nothing to tell them apart",
            expected="a time, echo, b-value, type or stack per frame",
        )
    parts = [frames[:, [group[place] for group in order]] for place in range(each)]
    labels = [f"{name} {dict(keys[order[0][place]])[name]}" for place in range(each)]
    names = tuple(labels) if len(channels) == 1 else tuple(f"{label} {c}" for label in labels for c in channels)
    return np.concatenate(parts), names


def _telling(keys: dict[int, tuple[tuple[str, Any], ...]], at: list[list[int]]) -> tuple[str | None, list[list[int]]]:
    """The first name whose values differ within every position and agree between them, and frames ordered by it."""
    for name, _ in keys[at[0][0]]:
        values: list[list[Any]] = [[dict(keys[index]).get(name) for index in group] for group in at]
        if any(None in row or len(set(row)) != len(row) for row in values):
            continue
        if len({tuple(sorted(row)) for row in values}) == 1:
            order = [
                [index for _, index in sorted(zip(row, group, strict=True))]
                for row, group in zip(values, at, strict=True)
            ]
            return name, order
    return None, at


def frame_values(dataset: Dataset, stored: NDArray[Any]) -> tuple[NDArray[Any], Unit, dict[str, Any], tuple[Note, ...]]:
    """Stored ``(F, Y, X)`` or ``(F, 3, Y, X)`` as values ``(F, C, Y, X)``, with unit, display facts and notes."""
    if stored.ndim == 4:
        return stored, Unit.RED_GREEN_BLUE, {}, ()
    frames = stored.shape[0]
    enhanced = "PerFrameFunctionalGroupsSequence" in dataset or "SharedFunctionalGroupsSequence" in dataset
    hows = [frame_meaning(dataset, index) for index in range(frames)] if enhanced else [meaning(dataset)] * frames
    shared, own = groups(dataset, 0)
    meta = value_meta(dataset, hows[0], shared, own)
    if str(dataset.get("SOPClassUID", "")) == _PARAMETRIC:
        item = frame_group(dataset, 0, "RealWorldValueMappingSequence")
        if item is not None:
            codes = item.get("MeasurementUnitsCodeSequence") or []
            meta["unit_code"] = str(plain(codes[0], "CodeValue")) if codes else ""
    return to_values(stored, hows, dataset)[:, None], hows[0].unit, meta, hows[0].notes


def to_values(stored: NDArray[Any], hows: list[Meaning], dataset: Dataset) -> NDArray[Any]:
    """Apply one `Meaning` per frame to ``(F, Y, X)``; the type is the same for all frames."""
    if all(how.plain for how in hows):
        return stored
    dtype = result_type(hows, stored.dtype, stored_range(dataset))
    values: NDArray[Any] = np.empty(stored.shape, dtype)
    for index, how in enumerate(hows):
        values[index] = fitted(how.apply(stored[index]), dtype)
    result: NDArray[Any] = narrowed(values)
    return result


def frame_meaning(dataset: Dataset, index: int) -> Meaning:
    """The `Meaning` of frame `index`; a parametric map is scaled to real world values (PS3.3 C.7.6.16.2.11)."""
    shared, own = groups(dataset, index)
    if str(dataset.get("SOPClassUID", "")) != _PARAMETRIC or "PixelData" not in dataset:
        return meaning(dataset, shared, own)
    item = frame_group(dataset, index, "RealWorldValueMappingSequence")
    slope = number(item, "RealWorldValueSlope") if item is not None else None
    intercept = number(item, "RealWorldValueIntercept") if item is not None else None
    if slope is None:
        return Meaning(
            notes=(Note(Act.NOTED, "parametric map without a linear real world value mapping: stored values"),)
        )
    return Meaning(slope, intercept or 0.0, notes=(Note(Act.NOTED, "stored values scaled to real world values"),))


def oddities(dataset: Dataset) -> tuple[Note, ...]:
    """Notes on what the header holds and the pixels do not show."""
    notes: list[Note] = []
    overlays = sum(1 for element in dataset if element.tag.group & 0xFF01 == 0x6000 and element.tag.element == 0x3000)
    if overlays:
        notes.append(Note(Act.NOTED, f"{overlays} overlay{'s' if overlays > 1 else ''} (drawings, text) left out"))
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        notes.append(Note(Act.NOTED, "text is burned into the pixels, by the header"))
    if str(dataset.get("LossyImageCompression", "")) == "01":
        notes.append(Note(Act.NOTED, "the image was compressed with loss"))
    if "PixelPaddingValue" in dataset:
        notes.append(Note(Act.NOTED, "pixels outside the image hold the padding value in meta"))
    if (
        str(dataset.get("PhotometricInterpretation", "")) == "MONOCHROME2"
        and "RedPaletteColorLookupTableData" in dataset
    ):
        notes.append(Note(Act.NOTED, "supplemental colours left out: the grey values are kept"))
    return tuple(notes)
