"""Outlines out as a DICOM RT Structure Set (PS3.3 A.19, C.8.8.5 to C.8.8.8).

Holes are written by the keyhole technique unless asked otherwise: a hole is joined to its outer ring by a channel of no
width, so that even-odd, winding and drawing programs all see the same region. ``xor`` writes every ring of its own as
CLOSEDPLANAR_XOR, which the standard has for this since 2019 and older readers do not know; ``separate`` writes every
ring as CLOSED_PLANAR, which most programs combine by exclusive or, though the standard does not say so.

The transfer syntax is implicit little endian, since explicit ones cannot hold more than 64 KB of points in one contour.
UIDs follow from the content and `seed`, so that the same call writes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ImplicitVRLittleEndian

from vesalius.core.errors import UsageError
from vesalius.core.files import atomic
from vesalius.core.labels import PALETTE
from vesalius.core.version import __version__
from vesalius.io.dicom_header import numbers, plain, read_header
from vesalius.io.dicom_out import uid_of

if TYPE_CHECKING:
    FloatArray = NDArray[np.float64]

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, which the sequence of studies asks for
_CONTOUR_DATA = Tag("ContourData")
# Points further off the plane of every source image than this part of the slice distance name no image.
_ON_IMAGE = 0.1
_COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip


class Holes(StrEnum):
    """How rings inside rings are written."""

    KEYHOLE = "keyhole"
    XOR = "xor"
    SEPARATE = "separate"


@dataclass(frozen=True, eq=False)
class Region:
    """One region of interest.

    Parameters
    ----------
    name
        What it is called.
    rings
        Closed rings ``(N, 3)`` in patient LPS mm, each in one plane; the last point is joined to the first.
    parents
        Per ring the position of the outer ring whose hole it is, or -1. Empty: every ring is an outer one.
    colour
        Red, green and blue from 0 to 255; None for the next of the house's colours.
    number
        ROI Number; None for the place in the list, from 1.
    kind
        RT ROI Interpreted Type, such as ``ORGAN``, ``GTV``, ``CTV``, ``PTV`` or ``EXTERNAL``; may be empty.
    """

    name: str
    rings: Sequence[FloatArray]
    parents: Sequence[int] = ()
    colour: tuple[int, int, int] | None = None
    number: int | None = None
    kind: str = ""
    algorithm: str = "AUTOMATIC"
    """``AUTOMATIC``, ``SEMIAUTOMATIC``, ``MANUAL`` or empty."""
    description: str = field(default="")


def write_rtstruct(
    regions: Sequence[Region],
    path: str | Path,
    *,
    source: Sequence[Dataset | str | Path] = (),
    holes: Holes | str = Holes.KEYHOLE,
    meta: Mapping[str, Any] | None = None,
    label: str = "Vesalius",
    seed: int | str = 0,
) -> Path:
    """Write regions as one structure set.

    Parameters
    ----------
    regions
        At least one; names may repeat, numbers may not. A region without rings is written without contours.
    source
        Data sets or files of the series that the outlines belong to (headers are enough). Patient and study are taken
        from them, their images are listed, and each contour names the image in whose plane it lies. Without them the
        structure set stands in a frame of reference of its own.
    holes
        ``keyhole``, ``xor`` or ``separate``.
    meta
        patient_id, patient_name, study_uid, series_uid, frame_of_reference_uid, structure_set_date (YYYYMMDD),
        structure_set_time, series_description: they win over `source`.
    label
        Structure Set Label, at most 16 characters.

    Raises
    ------
    UsageError
        For no region, repeated numbers, points that are no ``(N, 3)`` finite numbers, or sources of several series or
        frames of reference.
    """
    path = Path(path)
    numbers_of = [region.number if region.number is not None else k + 1 for k, region in enumerate(regions)]
    if not regions or len(set(numbers_of)) < len(numbers_of):
        raise UsageError(f"{path}: a structure set has regions with different numbers, got {numbers_of}")
    if str(holes) not in tuple(Holes):
        raise UsageError(f"{path}: holes are written as {', '.join(Holes)}, got {holes!r}")
    headers = [one if isinstance(one, Dataset) else read_header(one) for one in source]
    images = _images(headers, path)
    dataset = _base(regions, headers, dict(meta or {}), label, seed)
    frame = str(dataset.FrameOfReferenceUID)
    _put_frame(dataset, headers, frame)
    structures, drawn, observed = [], [], []
    for k, (region, number) in enumerate(zip(regions, numbers_of, strict=True)):
        structures.append(_structure(region, number, frame))
        drawn.append(_contours(region, number, k, Holes(holes), images, path))
        observed.append(_observation(region, number, k + 1))
    dataset.StructureSetROISequence = structures
    dataset.ROIContourSequence = drawn
    dataset.RTROIObservationsSequence = observed
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    with atomic(path) as file:
        file.write(buffer.getvalue())
    return path


@dataclass(frozen=True, eq=False)
class _Images:
    """Planes of the source images: what is needed to find the image of a contour."""

    classes: list[str]
    uids: list[str]
    normal: FloatArray
    heights: FloatArray
    reach: float

    def at(self, ring: FloatArray) -> int | None:
        """The image in whose plane `ring` lies."""
        heights = ring @ self.normal
        nearest = int(np.argmin(np.abs(self.heights - heights.mean())))
        return nearest if float(np.abs(heights - self.heights[nearest]).max()) <= self.reach else None


def _images(headers: Sequence[Dataset], path: Path) -> _Images | None:
    if not headers:
        return None
    for keyword in ("SeriesInstanceUID", "FrameOfReferenceUID"):
        found = {str(header.get(keyword, "")) for header in headers}
        if len(found) > 1:
            raise UsageError(f"{path}: the source images have {len(found)} different {keyword}; give one series")
    placed = [
        (header, position, axes)
        for header in headers
        if (position := numbers(header, "ImagePositionPatient", 3)) is not None
        and (axes := numbers(header, "ImageOrientationPatient", 6)) is not None
    ]
    if not placed:
        return None
    normal = np.cross(placed[0][2][:3], placed[0][2][3:])
    normal = normal / max(float(np.linalg.norm(normal)), np.finfo(float).tiny)
    heights = np.array([float(np.dot(position, normal)) for _, position, _ in placed])
    gaps = np.diff(np.unique(np.round(heights, 4)))
    thickness = numbers(placed[0][0], "SliceThickness", 1) or [1.0]
    reach = _ON_IMAGE * (float(gaps.min()) if len(gaps) else max(thickness[0], 1e-3))
    classes = [str(header.get("SOPClassUID", "")) for header, _, _ in placed]
    return _Images(classes, [str(header.SOPInstanceUID) for header, _, _ in placed], normal, heights, reach)


def _base(
    regions: Sequence[Region], headers: Sequence[Dataset], facts: dict[str, Any], label: str, seed: int | str
) -> FileDataset:
    """Patient, study, RT series, equipment and structure set modules without the sequences."""
    content = hashlib.blake2b(digest_size=16)
    for region in regions:
        content.update(region.name.encode())
        for ring in region.rings:
            content.update(np.ascontiguousarray(ring, dtype=np.float64).tobytes())
    first = headers[0] if headers else Dataset()
    patient = str(facts.get("patient_id") or plain(first, "PatientID") or "ANON")
    study = str(facts.get("study_uid") or plain(first, "StudyInstanceUID") or uid_of("study", seed, patient))
    series = str(facts.get("series_uid") or uid_of("rtstruct series", seed, study, content.hexdigest()))
    file_meta = FileMetaDataset()
    file_meta.MediaStorageSOPClassUID = UID(RTSTRUCT_CLASS)
    file_meta.MediaStorageSOPInstanceUID = UID(uid_of("rtstruct", series, content.hexdigest()))
    file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file_meta.ImplementationClassUID = UID(uid_of("implementation", "vesalius"))
    file_meta.ImplementationVersionName = f"Vesalius {__version__}"[:16]
    dataset = FileDataset("", {}, file_meta=file_meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID(RTSTRUCT_CLASS), file_meta.MediaStorageSOPInstanceUID
    for keyword in _COPIED:
        setattr(dataset, keyword, str(plain(first, keyword) or "") if keyword in first else "")
    if not dataset.StudyDescription:
        del dataset.StudyDescription
    dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = patient, study, series
    if facts.get("patient_name"):
        dataset.PatientName = str(facts["patient_name"])
    dataset.Modality, dataset.SeriesNumber = "RTSTRUCT", 1
    dataset.SeriesDescription = str(facts.get("series_description") or label)[:64]
    dataset.OperatorsName = ""
    dataset.Manufacturer, dataset.ManufacturerModelName = "Vesalius", "Vesalius"
    dataset.SoftwareVersions = f"Vesalius {__version__}"
    frame = facts.get("frame_of_reference_uid") or plain(first, "FrameOfReferenceUID")
    dataset.FrameOfReferenceUID = str(frame or uid_of("frame", study, seed))
    dataset.PositionReferenceIndicator = ""
    dataset.StructureSetLabel = label[:16]
    # Never the clock: the same content gives the same bytes.
    dataset.StructureSetDate = str(facts.get("structure_set_date") or dataset.StudyDate)
    dataset.StructureSetTime = str(facts.get("structure_set_time") or dataset.StudyTime)
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _put_frame(dataset: FileDataset, headers: Sequence[Dataset], frame: str) -> None:
    """Referenced Frame of Reference Sequence, with every source image."""
    item = Dataset()
    item.FrameOfReferenceUID = frame
    if headers:
        series, study = Dataset(), Dataset()
        series.SeriesInstanceUID = str(headers[0].SeriesInstanceUID)
        series.ContourImageSequence = [
            _reference(str(header.get("SOPClassUID", "")), str(header.SOPInstanceUID)) for header in headers
        ]
        study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, dataset.StudyInstanceUID
        study.RTReferencedSeriesSequence = [series]
        item.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [item]


def _reference(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


def _structure(region: Region, number: int, frame: str) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ReferencedFrameOfReferenceUID = number, frame
    item.ROIName = " ".join(region.name.split())[:64] or f"region {number}"
    if region.description:
        item.ROIDescription = region.description[:1024]
    item.ROIGenerationAlgorithm = region.algorithm
    return item


def _observation(region: Region, number: int, place: int) -> Dataset:
    item = Dataset()
    item.ObservationNumber, item.ReferencedROINumber = place, number
    item.RTROIInterpretedType, item.ROIInterpreter = region.kind, ""
    return item


def _contours(region: Region, number: int, place: int, holes: Holes, images: _Images | None, path: Path) -> Dataset:
    rings = [np.asarray(ring, dtype=np.float64) for ring in region.rings]
    for ring in rings:
        if ring.ndim != 2 or ring.shape[1] != 3 or len(ring) < 3 or not np.isfinite(ring).all():
            raise UsageError(
                f"{path}: a ring of {region.name} is (N, 3) finite numbers with N of at least 3, got {ring.shape}"
            )
    parents = list(region.parents) or [-1] * len(rings)
    if len(parents) != len(rings) or any(p >= 0 and (p >= len(rings) or parents[p] >= 0) for p in parents):
        raise UsageError(f"{path}: {region.name} has {len(rings)} rings, but their parents are {parents}")
    if holes is Holes.KEYHOLE:
        inner: dict[int, list[FloatArray]] = {k: [] for k, parent in enumerate(parents) if parent < 0}
        for ring, parent in zip(rings, parents, strict=True):
            if parent >= 0:
                inner[parent].append(ring)
        rings = [keyhole(rings[k], found) for k, found in inner.items()]
    item = Dataset()
    colour = region.colour or tuple(bytes.fromhex(PALETTE[place % (len(PALETTE) - 1)][1:]))
    item.ROIDisplayColor = [int(part) for part in colour]
    item.ReferencedROINumber = number
    if rings:  # an empty sequence is not allowed
        kind = "CLOSEDPLANAR_XOR" if holes is Holes.XOR else "CLOSED_PLANAR"
        item.ContourSequence = [_contour(ring, k + 1, kind, images) for k, ring in enumerate(rings)]
    return item


def _contour(ring: FloatArray, number: int, kind: str, images: _Images | None) -> Dataset:
    item = Dataset()
    where = images.at(ring) if images is not None else None
    if images is not None and where is not None:
        item.ContourImageSequence = [_reference(images.classes[where], images.uids[where])]
    item.ContourGeometricType, item.NumberOfContourPoints, item.ContourNumber = kind, len(ring), number
    # A nanometre, in at most 16 characters as VR DS asks.
    text = "\\".join(_decimal(value) for value in ring.ravel().tolist()).encode("ascii")
    text += b" " * (len(text) % 2)
    item[_CONTOUR_DATA] = RawDataElement(_CONTOUR_DATA, "DS", len(text), text, 0, True, True)
    return item


def _decimal(value: float) -> str:
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    if len(text) > 16:
        text = f"{value:.9g}"
    return "0" if text == "-0" else text


def keyhole(outer: FloatArray, holes: Sequence[FloatArray]) -> FloatArray:
    """One ring ``(N, 3)`` of an outer ring and its holes: each is joined by the shortest channel between two points.

    The channel is walked once each way along the same points, so that it encloses nothing by any rule. A hole must turn
    the other way round than the outer ring to be a hole by the non-zero rule too; it is turned if it does not.
    """
    ring = np.asarray(outer, dtype=np.float64)
    normal = _area_vector(ring)
    turned = [hole[::-1] if float(_area_vector(hole) @ normal) > 0 else hole for hole in holes]
    # Near ones first, so that later ones are joined to them rather than across them.
    for hole in sorted(turned, key=lambda one: _closest(ring, one)[0]):
        _, here, there = _closest(ring, hole)
        around = np.roll(hole, -there, axis=0)
        ring = np.concatenate([ring[: here + 1], around, around[:1], ring[here:]])
    return ring


def _closest(ring: FloatArray, hole: FloatArray) -> tuple[float, int, int]:
    """Distance and places of the two nearest points."""
    from scipy.spatial import cKDTree

    gaps, there = cKDTree(hole).query(ring)
    here = int(np.argmin(gaps))
    return float(gaps[here]), here, int(there[here])


def _area_vector(ring: FloatArray) -> FloatArray:
    local = ring - ring[0]
    return np.asarray(np.cross(local, np.roll(local, -1, axis=0)).sum(axis=0) / 2)
