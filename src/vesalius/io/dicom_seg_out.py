"""Masks out as a DICOM Segmentation (PS3.3 A.51, C.8.20), and masks of such files onto a given grid.

A segmentation of the standard refers to images. Where these are DICOM, the frames lie on their planes whenever mask and
images share one lattice of voxels, whatever the order and direction of the mask's axes. Where there are none (a NIfTI
case), a derived series is written beside the file, on the axes of the mask's own grid. Voxels are never resampled.

Encoding is done by highdicom (Bridge et al., J Digit Imaging 2022, doi:10.1007/s10278-022-00683-y). UIDs follow from
the content and `seed`, and dates from the images, so that the same call writes the same bytes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.extras import extra
from vesalius.core.files import atomic
from vesalius.core.geometry import Grid
from vesalius.core.image import Act, Image
from vesalius.core.labels import Labels
from vesalius.io.dicom_codes import coding_of
from vesalius.io.dicom_frames import frame_planes
from vesalius.io.dicom_geometry import check_parallel, positions, single, stack
from vesalius.io.dicom_header import plain, read_header
from vesalius.io.dicom_out import uid_of, write_dicom_series
from vesalius.io.lattice import as_volume, lattice_of, set_into
from vesalius.io.limits import ReadLimits, active_limits

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Array = NDArray[Any]

# highdicom asks for these of the first source image; empty is what the standard has for an unknown value (type 2).
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_DATES = ("ContentDate", "AcquisitionDate", "SeriesDate", "StudyDate")
_TIMES = ("ContentTime", "AcquisitionTime", "SeriesTime", "StudyTime")
# Content Date and Time must have a value; these stand where nothing is known of the images.
_NO_DATE, _NO_TIME = "19000101", "000000"
_SERIES_NUMBER = 300
# highdicom 0.28 packs the bits of smaller frames as if each began a byte, which PS3.5 8.1.1 does not allow.
_FEWEST_PIXELS = 8
_LONGEST_TEXT = 64  # VR LO


def write_dicom_seg(
    path: str | Path,
    mask: Array,
    grid: Grid,
    labels: Labels,
    *,
    source: str | Path | Dataset | Sequence[str | Path | Dataset] | None = None,
    image: Image | None = None,
    algorithm: str,
    version: str,
    series_description: str = "Segmentation",
    meta: Mapping[str, Any] | None = None,
    seed: int | str = 0,
) -> Path:
    """Write a mask as one binary DICOM segmentation, a segment per structure, empty frames left out.

    Parameters
    ----------
    mask
        Label map ``grid.shape`` of the values that `labels` names (or of its regions, or of object numbers for
        ``labels.instances``), or layers ``(K, *grid.shape)`` of 0 and 1 that may overlap, one per
        ``labels.structures``.
    grid
        Where the voxels are. Two-dimensional grids need `source`.
    labels
        Names, colours and, where given, coded concepts of the segments. Other codes are found by name
        (`vesalius.io.dicom_codes`).
    source
        The DICOM images that were segmented: a folder of one series, files, or data sets (headers are enough).
    image
        Without `source`: written on `grid` as the derived series ``STEM-source`` beside `path`; zeros if None.
    algorithm, version
        Name and version of what made the mask.
    meta
        Header facts of a derived series (patient_id, study_uid, study_date..., see `write_dicom_series`), and
        ``series_uid``, ``series_number``, ``content_date``, ``content_time`` of the segmentation.

    Raises
    ------
    UsageError
        A mask that does not fit `grid` or `labels`, a missing `source`, or one that no segmentation can refer to.
    """
    path, facts = Path(path), dict(meta or {})
    layers, names = _structures(np.asarray(mask), grid, labels, path)
    digest = _digest(layers, grid)
    headers = _headers(source, path) if source is not None else _derived(path, image, grid, facts, seed, digest)
    frames = _on_source(layers, grid, headers, path)
    first = headers[0]
    series = str(facts.get("series_uid") or uid_of("seg series", seed, first.SeriesInstanceUID, algorithm, digest))
    instance = uid_of("seg", series, algorithm, version, digest)
    segments = _segments(names, labels, algorithm, version, uid_of("tracking", seed, first.StudyInstanceUID))
    words = {
        "segment_descriptions": segments, "series_instance_uid": series, "sop_instance_uid": instance,
        "manufacturer_model_name": _text(algorithm), "software_versions": _text(version),
        "series_description": _text(series_description),
    }  # fmt: skip
    dataset = _encoded(frames, words, facts, path)
    _settle(dataset, first, frames.step_mm, facts, uid_of("dimensions", instance))
    with atomic(path) as file:
        dataset.save_as(file, enforce_file_format=True)
    return path


def mask_on_grid(image: Image, grid: Grid) -> Image:
    """The voxels of `image` on `grid`, which is the same lattice up to the order and direction of axes and its extent.

    Nothing is interpolated: axes are permuted and flipped, voxels of `grid` outside `image` get 0 (a segmentation
    leaves empty slices out), and voxels of `image` outside `grid` must be 0.

    Raises
    ------
    GeometryError
        If the lattices differ by more than a twentieth of a voxel, or something other than 0 lies outside `grid`.
    """
    where = image.source or "this image"
    if image.grid.affine is None or grid.affine is None:
        if image.grid.shape != grid.shape or (image.grid.affine is None) != (grid.affine is None):
            raise GeometryError(
                where,
                found=f"a grid of {image.grid.shape}{' without' if image.grid.affine is None else ' with'} a position",
                expected=f"{grid.shape}{' without' if grid.affine is None else ' with'} one",
                do="give the grid of the image that was segmented",
            )
        return replace(image, grid=grid)
    found = lattice_of(as_volume(image.grid), as_volume(grid))
    if found is None:
        raise GeometryError(
            where,
            found="voxels that do not lie on those of the grid",
            expected="one lattice up to the order and direction of its axes",
            do="resample the mask to the grid first",
        )
    pixels = image.pixels if image.grid.ndim == 3 else image.pixels[:, None]
    moved, lost = set_into(pixels, found, as_volume(grid).shape)
    if lost:
        raise GeometryError(where, found=f"{lost} voxels of the mask outside the grid", expected="none")
    placed = replace(image, grid=grid, pixels=moved.reshape(len(moved), *grid.shape))
    return placed if image.grid.same_place(grid) else placed.noted(Act.NOTED, "set on the grid of another image")


@dataclass(frozen=True, eq=False)
class _Frames:
    """Pixels as highdicom wants them: label map ``(Z, Y, X)``, or ``(Z, Y, X, K)`` of 0 and 1 with overlaps."""

    pixels: Array
    sources: list[Dataset]
    places: dict[str, Any]
    """Plane positions, orientation and pixel measures; empty where plane z is that of source image z."""
    step_mm: float | None
    """Distance of neighbouring planes along their normal."""


def _encoded(frames: _Frames, words: Mapping[str, Any], facts: Mapping[str, Any], path: Path) -> Dataset:
    seg = extra("highdicom", group="dicom", purpose="writing a DICOM segmentation").seg
    try:
        dataset: Dataset = seg.Segmentation(
            source_images=frames.sources,
            pixel_array=frames.pixels,
            segmentation_type="BINARY",
            instance_number=1,
            manufacturer="Vesalius",
            device_serial_number="0",
            series_number=int(facts.get("series_number") or _SERIES_NUMBER),
            content_label="SEGMENTATION",
            content_description=_text(f"{words['manufacturer_model_name']} {words['software_versions']}"),
            specific_character_set="ISO_IR 192",
            **words,
            **frames.places,
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: these source images cannot carry a DICOM segmentation: {reason}") from error
    return dataset


def _structures(mask: Array, grid: Grid, labels: Labels, path: Path) -> tuple[Array, list[tuple[str, int]]]:
    """Layers ``(K, Z, Y, X)`` of bool that overlap, or one label map ``(Z, Y, X)`` of segment numbers from 1.

    With it, name and position in `labels` of each segment.
    """
    if mask.dtype.kind not in "biu":
        raise UsageError(f"{path}: a mask holds whole numbers, got {mask.dtype}; convert it first")
    if grid.shape[-1] * grid.shape[-2] < _FEWEST_PIXELS:
        raise UsageError(f"{path}: slices of {grid.shape[-2:]} pixels are not written, the fewest are {_FEWEST_PIXELS}")
    names = [(name, index) for index, name in enumerate(labels.names)][0 if labels.multilabel else 1 :]
    shape = (1, *grid.shape) if grid.ndim == 2 else grid.shape
    if mask.shape == grid.shape:
        return _from_map(mask.reshape(shape), labels, names, path)
    if mask.shape != (len(names), *grid.shape):
        raise UsageError(
            f"{path}: mask of shape {mask.shape}, expected {grid.shape} or a layer for each of {len(names)} structures"
        )
    if mask.size and (int(mask.min()) < 0 or int(mask.max()) > 1):
        raise UsageError(f"{path}: layers hold 0 and 1, got {int(mask.min())} to {int(mask.max())}")
    return _joined(mask.reshape(len(names), *shape).astype(bool, copy=False)), names


def _from_map(
    mask: Array, labels: Labels, names: list[tuple[str, int]], path: Path
) -> tuple[Array, list[tuple[str, int]]]:
    if labels.ignore is not None:
        mask = np.where(mask == labels.ignore, 0, mask)
    low, high = int(mask.min()), int(mask.max())
    if labels.regions:
        return _joined(np.stack([np.isin(mask, region) for region in labels.regions])), names
    if labels.multilabel and len(names) > 1:
        raise UsageError(f"{path}: {len(names)} structures that may overlap are written from one layer each")
    if low < 0 or (high > len(names) and not labels.instances) or high > np.iinfo(np.uint16).max:
        raise UsageError(f"{path}: mask values from {low} to {high}, expected 0 to {len(names)}: {labels.structures}")
    if labels.instances:
        numbers, inverse = np.unique(np.append(mask.ravel(), mask.dtype.type(0)), return_inverse=True)
        named = [(f"{names[0][0]} {number}", names[0][1]) for number in numbers[1:].tolist()] or names
        mask = inverse[:-1].reshape(mask.shape)
        return mask.astype(np.uint8 if len(named) < 256 else np.uint16), named
    return mask.astype(np.uint8 if len(names) < 256 else np.uint16, copy=False), names


def _joined(layers: Array) -> Array:
    """One map of numbers from 1 if no layers meet, which is smaller and faster to write; else the layers."""
    joined = np.zeros(layers.shape[1:], np.uint8 if len(layers) < 256 else np.uint16)
    for number, layer in enumerate(layers, 1):
        if joined[layer].any():
            return layers
        joined[layer] = number
    return joined


def _digest(layers: Array, grid: Grid) -> str:
    content = hashlib.blake2b(digest_size=16)
    content.update(repr((layers.shape, layers.dtype.str)).encode())
    content.update(np.ascontiguousarray(layers).data)
    if grid.affine is not None:
        content.update(np.ascontiguousarray(grid.affine).data)
    return content.hexdigest()


def _headers(source: str | Path | Dataset | Sequence[str | Path | Dataset], path: Path) -> list[Dataset]:
    """Headers of the source images, made complete in copies: type 2 attributes, and a frame of reference."""
    if isinstance(source, (str, Path)):
        source = _files(Path(source), path) if Path(source).is_dir() else [source]
    given: Sequence[Any] = source if isinstance(source, (list, tuple)) else [source]
    if not given:
        raise UsageError(f"{path}: no source image given; a segmentation refers to at least one")
    headers = []
    for one in given:
        header = read_header(one) if isinstance(one, (str, Path)) else copy.copy(one)
        for keyword in _MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
        if str(header.PatientSex or "") not in ("", "M", "F", "O"):
            header.PatientSex = ""
        headers.append(header)
    series = {str(header.get("SeriesInstanceUID", "")) for header in headers}
    if len(series) > 1:
        raise UsageError(f"{path}: the source images are of {len(series)} series; give those of one")
    return headers


def _files(folder: Path, path: Path) -> list[Path]:
    from vesalius.core.progress import Silent
    from vesalius.io.dicom_series import list_series

    found = [series for series in list_series(folder, Silent()) if series.has_pixels and series.modality != "SEG"]
    if len(found) != 1:
        raise UsageError(f"{path}: {folder} holds {len(found)} series of images, expected one; give the files of one")
    return list(found[0].files)


def _derived(
    path: Path, image: Image | None, grid: Grid, facts: dict[str, Any], seed: int | str, digest: str
) -> list[Dataset]:
    """Headers of a series written beside `path`, for masks that come from no DICOM."""
    if grid.affine is None or grid.ndim != 3:
        raise UsageError(
            f"{path}: a mask of {grid.shape} without a place in a volume refers to a DICOM image; give it as source"
        )
    content = digest if image is None else _digest(image.pixels, image.grid)
    if image is None:
        image = Image(grid, np.zeros((1, *grid.shape), np.int16))
    if not image.grid.same_place(grid):
        raise UsageError(f"{path}: image and mask lie on different grids; give the image that was segmented")
    image = replace(image, pixels=image.pixels[:1], channels=image.channels[:1])
    known = {**image.meta, **facts}
    modality = str(known.get("modality") or ("CT" if image.unit == "HU" else "MR"))
    modality = modality if modality in ("CT", "MR", "PT") else "MR"
    # The content keeps cases without a patient or study number apart.
    study = str(known.get("study_uid") or uid_of("study", seed, known.get("patient_id", ""), content))
    told = {
        "series_description": "Derived for a segmentation", **facts, "study_uid": study,
        "series_uid": uid_of("seg source", seed, study, content), "series_number": 1,
        "frame_of_reference_uid": str(known.get("frame_of_reference_uid") or uid_of("frame", study, content)),
    }  # fmt: skip
    folder = path.parent / f"{path.name.removesuffix('.dcm')}-source"
    files = write_dicom_series(image, folder, modality=modality, meta=told, seed=seed, derived=True)
    return _headers(files, path)


def _on_source(layers: Array, grid: Grid, headers: list[Dataset], path: Path) -> _Frames:
    """The mask on the planes of its source images, or on its own ones where the two share no lattice."""
    limits = active_limits(None)
    placed = [frame_planes(header, path, int(header.get("NumberOfFrames") or 1)) for header in headers]
    planes = [plane for found in placed for plane in found or ()]
    if grid.affine is None or not planes:
        return _flat(layers, grid, headers, bool(planes), path)
    for header in headers:
        if not header.get("FrameOfReferenceUID"):
            header.FrameOfReferenceUID = uid_of("frame", header.SeriesInstanceUID)
    volume = as_volume(grid)
    ordered = _source_grid(planes, path, limits)
    found = lattice_of(volume, ordered[0]) if ordered is not None else None
    stacked = layers if layers.ndim == 4 else layers[None]
    if ordered is None or found is None:
        return _Frames(_last(layers), headers, _places(volume, slice(None)), _step(volume))
    moved, lost = set_into(stacked, found, ordered[0].shape)
    if lost:
        raise UsageError(f"{path}: {lost} voxels of the mask lie outside its source images; give all images")
    moved = moved if layers.ndim == 4 else moved[0]
    if not moved.any():
        # One plane says that nothing was found; highdicom would write every segment on every plane.
        return _Frames(_last(moved)[:1], headers, _places(ordered[0], slice(1)), _step(ordered[0]))
    pixels = _last(moved)
    if len(headers) > 1 or len(planes) == 1:
        return _Frames(pixels, [headers[place] for place in ordered[1]], {}, _step(ordered[0]))
    in_file = np.empty_like(pixels)
    in_file[list(ordered[1])] = pixels
    return _Frames(in_file, headers, {}, _step(ordered[0]))


def _flat(layers: Array, grid: Grid, headers: list[Dataset], placed: bool, path: Path) -> _Frames:
    """A picture without a place in the patient: pixel for pixel that of its source."""
    first = headers[0]
    shape = (int(first.get("Rows", 0)), int(first.get("Columns", 0)))
    if placed or grid.affine is not None or len(headers) > 1 or layers.shape[-3:] != (1, *shape):
        raise UsageError(
            f"{path}: a mask of {grid.shape} {'with' if grid.affine is not None else 'without'} a position does not "
            f"belong to {len(headers)} source images of {shape} {'with' if placed else 'without'} one"
        )
    if "FrameOfReferenceUID" in first:
        del first.FrameOfReferenceUID
    return _Frames(_last(layers), headers, {}, None)


def _last(layers: Array) -> Array:
    """Segments as the last axis; a label map as it is."""
    return np.moveaxis(layers, 0, -1).astype(np.uint8) if layers.ndim == 4 else layers


def _source_grid(planes: Sequence[Any], path: Path, limits: ReadLimits) -> tuple[Grid, tuple[int, ...]] | None:
    """Grid of the source images and the position of each of its slices in `planes`; None if they form none."""
    try:
        check_parallel(planes, limits)
        groups = positions(planes, limits)
        if any(len(group) > 1 for group in groups):  # several images at one place: times, echoes
            return None
        order = [group[0] for group in groups]
        if len(order) == 1:
            return as_volume(single(planes[0])[0]), (0,)
        plan = stack([planes[place] for place in order], str(path), replace(limits, tilt="keep", irregular="refuse"))
    except GeometryError:
        return None
    return plan.grid, tuple(order)


def _step(grid: Grid) -> float | None:
    affine = np.asarray(grid.affine)
    normal = np.cross(affine[:3, 1], affine[:3, 2])
    return abs(float(affine[:3, 0] @ normal / np.linalg.norm(normal))) if grid.shape[0] > 1 else None


def _places(grid: Grid, slices: slice) -> dict[str, Any]:
    """Planes of `grid` along its first axis, in the words of highdicom."""
    content = extra("highdicom", group="dicom", purpose="writing a DICOM segmentation").content
    affine, steps = np.asarray(grid.affine), grid.spacing_mm or (1.0, 1.0, 1.0)
    tops = affine[:3, 3] + np.arange(grid.shape[0])[slices, None] * affine[:3, 0]
    cosines = [*(affine[:3, 2] / steps[2]), *(affine[:3, 1] / steps[1])]
    step = _step(grid)
    return {
        "plane_positions": [content.PlanePositionSequence("PATIENT", top.tolist()) for top in tops],
        "plane_orientation": content.PlaneOrientationSequence("PATIENT", [float(one) for one in cosines]),
        "pixel_measures": content.PixelMeasuresSequence(steps[1:], step or steps[0], step),
    }


def _segments(
    names: Sequence[tuple[str, int]], labels: Labels, algorithm: str, version: str, tracking: str
) -> list[Dataset]:
    """One item of the Segment Sequence per structure (C.8.20.4)."""
    from pydicom.sr.codedict import codes

    highdicom = extra("highdicom", group="dicom", purpose="writing a DICOM segmentation")
    identification = highdicom.AlgorithmIdentificationSequence(
        name=_text(algorithm), version=_text(version), family=codes.DCM.ArtificialIntelligence
    )
    found: list[Dataset] = []
    for number, (name, index) in enumerate(names, 1):
        coding = coding_of(labels.names[index], labels.concepts[index])
        colour = bytes.fromhex(labels.colours[index].removeprefix("#"))
        item = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=_text(name) or f"segment {number}",
            segmented_property_category=coding.category,
            segmented_property_type=coding.kind,
            algorithm_type="AUTOMATIC",
            algorithm_identification=identification,
            tracking_uid=uid_of(tracking, name),
            tracking_id=_text(name) or f"segment {number}",
            anatomic_regions=[coding.region] if coding.region is not None else None,
            display_color=highdicom.color.CIELabColor.from_rgb(*colour[:3]),
        )
        if coding.side is not None:
            side = highdicom.sr.CodedConcept.from_code(coding.side)
            owner = (
                item.AnatomicRegionSequence[0]
                if coding.region is not None
                else item.SegmentedPropertyTypeCodeSequence[0]
            )
            keyword = (
                "AnatomicRegionModifierSequence"
                if coding.region is not None
                else "SegmentedPropertyTypeModifierCodeSequence"
            )
            setattr(owner, keyword, [side])
        found.append(item)
    return found


def _text(value: str) -> str:
    """`value` as a DICOM long string: one line of at most 64 characters, without the sign that separates values."""
    return " ".join(str(value).replace("\\", "/").split())[:_LONGEST_TEXT]


def _settle(
    dataset: Dataset, first: Dataset, step_mm: float | None, facts: Mapping[str, Any], organisation: str
) -> None:
    """What highdicom takes from the clock, from chance, or from the source where the grid knows better."""
    from pydicom.valuerep import DSfloat

    dataset.ContentCreatorName = ""  # type 2 in PS3.3 table 10-12: there, though nobody is named
    dataset.ContentDate = _known(first, facts.get("content_date"), _DATES, _NO_DATE)
    dataset.ContentTime = _known(first, facts.get("content_time"), _TIMES, _NO_TIME)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            delattr(dataset, keyword)
    for item in dataset.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organisation
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if step_mm is not None and "PixelMeasuresSequence" in shared:
        measures = shared.PixelMeasuresSequence[0]
        # Vendors write gaps or nothing there; readers need the distance, since empty slices are left out.
        measures.SpacingBetweenSlices = DSfloat(step_mm, auto_format=True)
        if not measures.get("SliceThickness"):
            measures.SliceThickness = DSfloat(step_mm, auto_format=True)


def _known(first: Dataset, given: Any, keywords: Sequence[str], otherwise: str) -> str:
    found = [str(value) for keyword in keywords if (value := plain(first, keyword))]
    return str(given or (found[0] if found else otherwise))
