"""Where the frames of one file are: enhanced functional groups, dose grids, tomographic NM, single slices.

Sources: PS3.3 C.7.6.16 (multi-frame functional groups), C.8.8.3.2 (Grid Frame Offset Vector), C.8.4.15 (NM
reconstruction), C.7.6.2 (image plane), C.7.6.3.1.7 and 10.7 (pixel sizes of projections).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.core.errors import GeometryError
from vesalius.core.image import Act, Note
from vesalius.io.dicom_geometry import Plane, make_plane
from vesalius.io.dicom_header import items, number, numbers, plain

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"


def groups(dataset: Dataset, index: int) -> tuple[Dataset | None, Dataset | None]:
    """(shared, per-frame) functional groups of frame `index`; None where the file has none."""
    shared = items(dataset, "SharedFunctionalGroupsSequence")
    frames = items(dataset, "PerFrameFunctionalGroupsSequence")
    return (shared[0] if shared else None), (frames[index] if index < len(frames) else None)


def frame_group(dataset: Dataset, index: int, keyword: str) -> Dataset | None:
    """First item of functional group `keyword` for frame `index`: its own, else the shared one."""
    shared, own = groups(dataset, index)
    for source in (own, shared):
        found: list[Dataset] = items(source, keyword)
        if found:
            return found[0]
    return None


def frame_planes(dataset: Dataset, path: str | Path, frames: int) -> list[Plane] | None:
    """One `Plane` per frame, or None where the file does not say where its frames are.

    Raises
    ------
    GeometryError
        If the file says it for some frames only, or says it wrongly.
    """
    if "PerFrameFunctionalGroupsSequence" in dataset or "SharedFunctionalGroupsSequence" in dataset:
        return _enhanced(dataset, path, frames)
    if str(dataset.get("SOPClassUID", "")) == _DOSE:
        return _dose(dataset, path, frames)
    if frames == 1:
        plane = slice_plane(dataset, str(path))
        return None if plane is None else [plane]
    if dataset.get("Modality") in ("NM", "PT"):
        return _reconstructed(dataset, path, frames)
    return None


def slice_plane(dataset: Dataset, name: str) -> Plane | None:
    """The plane of a single-frame image, or None without a position and orientation in the patient."""
    position = numbers(dataset, "ImagePositionPatient", 3)
    orientation = numbers(dataset, "ImageOrientationPatient", 6)
    spacing = numbers(dataset, "PixelSpacing", 2)
    if position is None or orientation is None:
        return None
    if spacing is None:
        raise GeometryError(
            name,
            found="a position in the patient without Pixel Spacing",
            expected="two numbers in mm",
            do="repair the header or get the file again",
        )
    shape = (int(dataset.Rows), int(dataset.Columns))
    return make_plane(name, shape, position, orientation, spacing, thickness=number(dataset, "SliceThickness"))


def _enhanced(dataset: Dataset, path: str | Path, frames: int) -> list[Plane] | None:
    planes: list[Plane] = []
    shape = (int(dataset.Rows), int(dataset.Columns))
    for index in range(frames):
        where = frame_group(dataset, index, "PlanePositionSequence")
        turn = frame_group(dataset, index, "PlaneOrientationSequence")
        size = frame_group(dataset, index, "PixelMeasuresSequence")
        position = numbers(where, "ImagePositionPatient", 3) if where is not None else None
        orientation = numbers(turn, "ImageOrientationPatient", 6) if turn is not None else None
        spacing = numbers(size, "PixelSpacing", 2) if size is not None else None
        if position is None or orientation is None or spacing is None:
            if planes:
                raise GeometryError(
                    path,
                    found=f"frame {index + 1} without position, orientation or pixel spacing",
                    expected="all frames to have them",
                    do="get the file again from its source",
                )
            return None
        thickness = number(size, "SliceThickness") if size is not None else None
        planes.append(
            make_plane(f"{path} frame {index + 1}", shape, position, orientation, spacing, thickness=thickness)
        )
    return planes


def _dose(dataset: Dataset, path: str | Path, frames: int) -> list[Plane] | None:
    """Frame positions of a dose grid: offsets along the normal (first one 0), or z coordinates of transverse planes."""
    first = slice_plane(dataset, str(path))
    if first is None:
        return None
    offsets = numbers(dataset, "GridFrameOffsetVector")
    if frames == 1 and (offsets is None or len(offsets) != 1):
        return [first]  # one frame taken out of a grid keeps the vector of the whole; its own place is known
    if offsets is None or len(offsets) != frames:
        raise GeometryError(
            path,
            found=f"{0 if offsets is None else len(offsets)} values in Grid Frame Offset Vector",
            expected=f"{frames}, one per frame",
            do="get the dose again from the planning system",
        )
    along = np.asarray(offsets)
    if along[0] != 0:
        transverse = abs(abs(first.normal[2]) - 1) < 1e-4
        if not transverse or abs(along[0] - first.position[2]) > 0.1:
            raise GeometryError(
                path,
                found=f"Grid Frame Offset Vector that starts at {along[0]:g}",
                expected=f"0, or the z of the first frame ({first.position[2]:g}) for transverse planes",
                do="get the dose again from the planning system",
            )
        along = (along - first.position[2]) * np.sign(first.normal[2])
    return [
        Plane(
            f"{path} frame {index + 1}",
            first.shape,
            first.position + offset * first.normal,
            first.along_row,
            first.along_column,
            first.spacing,
            first.thickness,
        )
        for index, offset in enumerate(along)
    ]


def _reconstructed(dataset: Dataset, path: str | Path, frames: int) -> list[Plane] | None:
    """Frames of an NM reconstruction, evenly apart from the position of the first (C.8.4.15)."""
    detector = items(dataset, "DetectorInformationSequence")
    vector = plain(dataset, "SliceVector")
    step = number(dataset, "SpacingBetweenSlices")
    image_type = plain(dataset, "ImageType") or []
    if not detector or not step or "RECON TOMO" not in image_type:
        return None
    position = numbers(detector[0], "ImagePositionPatient", 3)
    orientation = numbers(detector[0], "ImageOrientationPatient", 6)
    spacing = numbers(dataset, "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None:
        return None
    shape = (int(dataset.Rows), int(dataset.Columns))
    slices = vector if isinstance(vector, list) and len(vector) == frames else range(1, frames + 1)
    first = make_plane(str(path), shape, position, orientation, spacing, thickness=number(dataset, "SliceThickness"))
    # A negative distance means that the slices go against the normal (C.8.4.15.1.1 is silent; vendors write it so).
    return [
        Plane(
            f"{path} frame {index + 1}",
            shape,
            first.position + (int(place) - 1) * step * first.normal,
            first.along_row,
            first.along_column,
            first.spacing,
            first.thickness,
        )
        for index, place in enumerate(slices)
    ]


def flat_spacing(dataset: Dataset) -> tuple[tuple[float, float] | None, tuple[Note, ...]]:
    """Pixel size in mm (rows, columns) of an image without a position, or None, with notes on what it is worth."""
    spacing, notes = numbers(dataset, "PixelSpacing", 2), []
    if spacing is not None and min(spacing) > 0:
        kind = str(plain(dataset, "PixelSpacingCalibrationType") or "")
        if kind:
            notes.append(Note(Act.NOTED, f"pixel spacing calibrated by {kind.lower()}"))
        return (spacing[0], spacing[1]), tuple(notes)
    if spacing is not None:
        notes.append(Note(Act.NOTED, f"Pixel Spacing {spacing[0]:g} x {spacing[1]:g} is impossible: no physical size"))
    for keyword, text in (
        ("ImagerPixelSpacing", "pixel spacing is that of the detector plane: sizes in the patient are smaller"),
        ("ImagePlanePixelSpacing", "pixel spacing is that of the RT image plane"),
        ("NominalScannedPixelSpacing", "pixel spacing is that of the scanned film"),
    ):
        spacing = numbers(dataset, keyword, 2)
        if spacing is not None and min(spacing) > 0:
            factor = number(dataset, "EstimatedRadiographicMagnificationFactor")
            more = f" (magnified {factor:g} times, by the header)" if factor and keyword == "ImagerPixelSpacing" else ""
            return (spacing[0], spacing[1]), (*notes, Note(Act.NOTED, text + more))
    regions = items(dataset, "SequenceOfUltrasoundRegions")
    size = _ultrasound_spacing(regions[0]) if len(regions) == 1 else None
    if size is not None:
        return size, (*notes, Note(Act.NOTED, "pixel spacing holds inside the ultrasound region only"))
    ratio = numbers(dataset, "PixelAspectRatio", 2)
    if ratio is not None and ratio[0] != ratio[1]:
        notes.append(Note(Act.NOTED, f"pixels are not square: aspect ratio {ratio[0]:g} to {ratio[1]:g}, size unknown"))
    return None, tuple(notes)


def _ultrasound_spacing(region: Dataset) -> tuple[float, float] | None:
    """mm per pixel of a two-dimensional tissue region in cm (C.8.5.5)."""
    in_cm = all(plain(region, keyword) == 3 for keyword in ("PhysicalUnitsXDirection", "PhysicalUnitsYDirection"))
    down, across = number(region, "PhysicalDeltaY"), number(region, "PhysicalDeltaX")
    if not in_cm or plain(region, "RegionSpatialFormat") != 1 or not down or not across:
        return None
    return abs(down) * 10, abs(across) * 10


def frame_key(dataset: Dataset, index: int) -> tuple[tuple[str, Any], ...]:
    """What may tell two frames at one position apart: (name, value) pairs, in order of preference."""
    content = frame_group(dataset, index, "FrameContentSequence")
    found: list[tuple[str, Any]] = []
    for sequence, keyword, name in (
        ("FrameContentSequence", "TemporalPositionIndex", "time"),
        ("MREchoSequence", "EffectiveEchoTime", "echo time"),
        ("MRDiffusionSequence", "DiffusionBValue", "b-value"),
        ("CTExposureSequence", "ExposureTimeInms", "exposure"),
        ("CTXRayDetailsSequence", "KVP", "kVp"),
        ("FrameContentSequence", "StackID", "stack"),
    ):
        item = frame_group(dataset, index, sequence)
        value = plain(item, keyword) if item is not None else None
        if value not in (None, "", []):
            found.append((name, value))
    for sequence in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"):
        item = frame_group(dataset, index, sequence)
        kind = plain(item, "FrameType") if item is not None else None
        if kind:
            found.append(("type", "/".join(map(str, kind)) if isinstance(kind, list) else str(kind)))
    acquired = plain(content, "FrameAcquisitionNumber") if content is not None else None
    if acquired is not None:
        found.append(("acquisition", acquired))
    return tuple(found)
