"""DICOM out: CT and MR volumes as series, single pictures as DX, CR, US or secondary capture, and a DICOMDIR.

Modules follow PS3.3 of the standard (A.3 CT, A.4 MR, A.26 DX, A.2 CR, A.8 secondary capture). UIDs are made from the
content's names (PS3.5 B.2, UUID of a name), so that the same call writes the same bytes.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pydicom.valuerep import DSfloat

from vesalius.core.errors import UsageError
from vesalius.core.files import atomic
from vesalius.core.image import Image
from vesalius.core.version import __version__

_IMPLEMENTATION = "Vesalius " + __version__
_VOLUME_CLASS = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}
_PICTURE_CLASS = {
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
}
# In-plane axes that are further from a right angle than this cannot be said in ImageOrientationPatient.
_RIGHT_ANGLE = 1e-4


class Syntax(StrEnum):
    """Transfer syntaxes that are written; all of them without loss."""

    IMPLICIT = "implicit"
    EXPLICIT = "explicit"
    RLE = "rle"
    JPEG_LS = "jpeg-ls"
    JPEG_2000 = "jpeg-2000"

    @classmethod
    def _missing_(cls, value: object) -> Syntax:
        raise UsageError(f"transfer syntax {value!r} is not written; choose one of {', '.join(cls)}")


_SYNTAX_UID = {
    Syntax.IMPLICIT: ImplicitVRLittleEndian,
    Syntax.EXPLICIT: ExplicitVRLittleEndian,
    Syntax.RLE: RLELossless,
    Syntax.JPEG_LS: JPEGLSLossless,
    Syntax.JPEG_2000: JPEG2000Lossless,
}

# Named, since pydicom would take whatever is installed, and GDCM's RLE encoder ends the process on odd sizes.
_ENCODER = {Syntax.RLE: "pydicom", Syntax.JPEG_LS: "pyjpegls", Syntax.JPEG_2000: "pylibjpeg"}

_TEXT_TAGS = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
    "age": "PatientAge",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "study_id": "StudyID",
    "accession_number": "AccessionNumber",
    "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
    "series_number": "SeriesNumber",
    "body_part": "BodyPartExamined",
    "manufacturer": "Manufacturer",
    "station_name": "StationName",
    "institution": "InstitutionName",
    "frame_of_reference_uid": "FrameOfReferenceUID",
    "view_position": "ViewPosition",
    "laterality": "ImageLaterality",
    "window_center": "WindowCenter",
    "window_width": "WindowWidth",
    "protocol": "ProtocolName",
}


def uid_of(*names: object) -> str:
    """A valid UID that is the same for the same names: 2.25. and the name-based UUID as a number (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(31).join(str(name) for name in names)).int}"


def write_dicom_series(
    image: Image,
    folder: str | Path,
    *,
    modality: str = "CT",
    meta: Mapping[str, Any] | None = None,
    syntax: Syntax | str = Syntax.EXPLICIT,
    seed: int | str = 0,
    stem: str = "IM",
    derived: bool = False,
) -> list[Path]:
    """Write a volume as one file per slice.

    Parameters
    ----------
    image
        One channel ``(1, Z, Y, X)`` on a grid with an affine, of any orientation. Whole numbers in 16 bit are stored as
        they are; others are stored as int16 with a slope and intercept that lose at most half a step.
    folder
        Made if missing; receives ``IM0000.dcm``, ``IM0001.dcm``... in the order of the first axis.
    modality
        ``CT`` (values are HU), ``MR`` or ``PT``.
    meta
        Header facts by the keys of `Image.meta` (patient_id, sex, age, study_uid, series_uid, study_description...).
        They win over ``image.meta``; UIDs that are not given follow from `seed` and these facts.
    derived
        The pixels come from another file and not from a scanner: Image Type says so, and no tube voltage or echo time
        is stated that is not among the facts.

    Returns
    -------
    list[Path]
        The files in the order of the first axis.

    Raises
    ------
    UsageError
        No position, several channels, or in-plane axes that are not at right angles.
    """
    if modality not in _VOLUME_CLASS:
        raise UsageError(f"modality {modality!r} is not written as a series; choose one of {', '.join(_VOLUME_CLASS)}")
    if image.grid.affine is None or image.grid.ndim != 3 or image.pixels.shape[0] != 1:
        raise UsageError(
            f"a series is written from one channel on a volume with a position, got {image.pixels.shape} "
            f"with affine {image.grid.affine is not None}; write NIfTI instead"
        )
    facts = {**image.meta, **(meta or {})}
    stored, slope, intercept = _stored(image.pixels[0])
    plane = _plane(image)
    folder, paths = Path(folder), []
    for index in range(stored.shape[0]):
        dataset = _base(facts, modality, _VOLUME_CLASS[modality], seed, index)
        _put_plane(dataset, image, plane, index)
        _put_modality(dataset, modality, facts)
        if derived:
            _put_derived(dataset, facts)
        _put_rescale(dataset, modality, slope, intercept)
        _put_pixels(dataset, stored[index], "MONOCHROME2", modality)
        paths.append(_save(dataset, folder / f"{stem}{index:04d}.dcm", Syntax(syntax)))
    return paths


def write_dicom_image(
    image: Image,
    path: str | Path,
    *,
    modality: str = "DX",
    meta: Mapping[str, Any] | None = None,
    syntax: Syntax | str = Syntax.EXPLICIT,
    seed: int | str = 0,
    instance: int = 0,
) -> Path:
    """Write one picture ``(1, Y, X)`` or RGB ``(3, Y, X)``: a projection (``DX``, ``CR``), ``US`` or ``OT``.

    Whole numbers up to 16 bit are stored as they are, with BitsStored from ``meta["bits_stored"]`` or the type. The
    spacing of the grid is written as PixelSpacing, with ImagerPixelSpacing for DX and CR; without one neither is.

    Raises
    ------
    UsageError
        A volume, fractions, RGB that is not uint8, or a modality that has no such picture.
    """
    if modality not in _PICTURE_CLASS:
        raise UsageError(f"modality {modality!r} has no single picture here; choose one of {', '.join(_PICTURE_CLASS)}")
    pixels = image.pixels
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        raise UsageError(
            f"{path}: a picture is written from 8 or 16-bit (1, Y, X) or (3, Y, X), got {pixels.dtype} "
            f"{pixels.shape}; window and convert it first"
        )
    if pixels.shape[0] == 3 and (pixels.dtype != np.uint8 or modality in ("DX", "CR")):
        raise UsageError(f"{path}: colours are written as uint8 US or OT, got {pixels.dtype} {modality}; convert them")
    facts = {**image.meta, **(meta or {})}
    dataset = _base(facts, modality, _PICTURE_CLASS[modality], seed, instance)
    if image.grid.spacing_mm is not None:
        steps = [_number(step) for step in image.grid.spacing_mm]
        dataset.PixelSpacing = steps
        if modality in ("DX", "CR"):
            dataset.ImagerPixelSpacing = steps
    _put_modality(dataset, modality, facts)
    coloured = pixels.shape[0] == 3
    stored = np.moveaxis(pixels, 0, -1) if coloured else pixels[0]
    _put_pixels(dataset, stored, "RGB" if coloured else "MONOCHROME2", modality, facts.get("bits_stored"))
    return _save(dataset, Path(path), Syntax(syntax))


def write_dicomdir(
    files: Mapping[str, Path] | list[Path], folder: str | Path, *, name: str = "VESALIUS", seed: int | str = 0
) -> Path:
    """Copy DICOM `files` into `folder` under the names of a file-set and write its DICOMDIR (PS3.10).

    Returns
    -------
    Path
        The DICOMDIR.
    """
    from pydicom.fileset import FileSet

    folder = Path(folder)
    if (folder / "DICOMDIR").exists():
        raise UsageError(f"{folder}: holds a DICOMDIR already; choose an empty folder")
    fileset = FileSet()
    fileset.ID = name[:16]
    fileset.UID = UID(uid_of("fileset", name, seed))
    for file in files.values() if isinstance(files, Mapping) else files:
        try:
            fileset.add(file)
        except ValueError as error:
            raise UsageError(
                f"{file}: cannot stand in a DICOMDIR ({error}); give study_date, study_time and study_id "
                "when writing it"
            ) from error
    folder.mkdir(parents=True, exist_ok=True)
    fileset.write(folder)
    return folder / "DICOMDIR"


def _number(value: float) -> DSfloat:
    """A decimal string of at most 16 characters (VR DS)."""
    return DSfloat(float(value), auto_format=True)


def _stored(volume: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    """Values as int16 or uint16, with slope and intercept back to what they mean."""
    if volume.dtype.kind == "b":
        volume = volume.astype(np.uint8)
    low, high = (float(volume.min()), float(volume.max())) if volume.size else (0.0, 0.0)
    if not np.isfinite([low, high]).all():
        raise UsageError("a DICOM series holds no NaN or infinite values; replace them before writing")
    whole = volume.dtype.kind in "iu" or bool((volume == np.rint(volume)).all())
    if whole and low >= -32768 and high <= 32767:
        return volume.astype(np.int16), 1.0, 0.0
    if whole and low >= 0 and high <= 65535:
        return volume.astype(np.uint16), 1.0, 0.0
    if whole and high - low <= 65535:
        intercept = low + 32768
        return (volume.astype(np.float64) - intercept).astype(np.int16), 1.0, intercept
    # The intercept is the middle of the range, so that the 2^16 steps of int16 cover it.
    slope = float(_number((high - low) / 65534 or 1.0))
    intercept = float(_number((high + low) / 2))
    steps = np.rint((volume.astype(np.float64) - intercept) / slope)
    return np.clip(steps, -32768, 32767).astype(np.int16), slope, intercept


def _plane(image: Image) -> NDArray[np.float64]:
    """``(2, 3)``: direction of growing column index, then of growing row index (ImageOrientationPatient)."""
    axes = np.asarray(image.grid.affine)[:3, :3]
    row, column = axes[:, 2] / np.linalg.norm(axes[:, 2]), axes[:, 1] / np.linalg.norm(axes[:, 1])
    if abs(float(row @ column)) > _RIGHT_ANGLE:
        raise UsageError(
            f"the rows and columns of {image.source or 'this image'} are not at right angles; "
            "resample it before writing DICOM"
        )
    return np.stack([row, column])


def _put_plane(dataset: FileDataset, image: Image, plane: NDArray[np.float64], index: int) -> None:
    """Frame of reference and image plane modules (PS3.3 C.7.4.1, C.7.6.2)."""
    affine = np.asarray(image.grid.affine)
    spacing = image.grid.spacing_mm or (1.0, 1.0, 1.0)
    position = affine[:3, 0] * index + affine[:3, 3]
    dataset.ImagePositionPatient = [_number(value) for value in position]
    dataset.ImageOrientationPatient = [_number(value) for value in plane.ravel()]
    dataset.PixelSpacing = [_number(spacing[1]), _number(spacing[2])]
    normal = np.cross(plane[0], plane[1])
    dataset.SliceThickness = _number(abs(float(normal @ affine[:3, 0])))
    dataset.SpacingBetweenSlices = dataset.SliceThickness
    dataset.SliceLocation = _number(float(normal @ position))
    dataset.PositionReferenceIndicator = ""


def _base(facts: Mapping[str, Any], modality: str, sop_class: str, seed: int | str, index: int) -> FileDataset:
    """Patient, study, series, equipment and SOP common modules, with UIDs for what is not given."""
    patient = str(facts.get("patient_id", "ANON"))
    study = str(facts.get("study_uid") or uid_of("study", seed, patient, facts.get("study_description", "")))
    series = str(
        facts.get("series_uid")
        or uid_of("series", study, modality, facts.get("series_description", ""), facts.get("series_number", 1))
    )
    file_meta = FileMetaDataset()
    file_meta.MediaStorageSOPClassUID = UID(sop_class)
    file_meta.MediaStorageSOPInstanceUID = UID(uid_of("instance", series, index))
    file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file_meta.ImplementationClassUID = UID(uid_of("implementation", "vesalius"))
    file_meta.ImplementationVersionName = _IMPLEMENTATION[:16]
    dataset = FileDataset("", {}, file_meta=file_meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID(sop_class), file_meta.MediaStorageSOPInstanceUID
    for keyword in (
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "StudyID",
    ):
        setattr(dataset, keyword, "")
    dataset.PatientID, dataset.Modality = patient, modality
    dataset.Manufacturer = "Vesalius"
    dataset.SoftwareVersions = _IMPLEMENTATION
    dataset.SeriesNumber = 1
    for key, keyword in _TEXT_TAGS.items():
        if facts.get(key) not in (None, ""):
            setattr(dataset, keyword, _header_value(key, facts[key]))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    if modality in _VOLUME_CLASS and "frame_of_reference_uid" not in facts:
        dataset.FrameOfReferenceUID = uid_of("frame", study)
    dataset.InstanceNumber = index + 1
    return dataset


def _header_value(key: str, value: Any) -> Any:
    """`value` in the form that the header wants."""
    if key == "age" and not isinstance(value, str):
        return f"{round(float(value)):03d}Y"
    if key == "sex":
        return str(value)[:1].upper()
    if key in ("window_center", "window_width"):
        return [_number(one) for one in value] if isinstance(value, (list, tuple)) else _number(value)
    return str(value)


def _put_modality(dataset: FileDataset, modality: str, facts: Mapping[str, Any]) -> None:
    """The attributes that the information object of a modality requires."""
    derived = ["DERIVED", "PRIMARY"]
    if modality == "CT":
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.KVP, dataset.AcquisitionNumber = _number(facts.get("kvp", 120)), 1
    elif modality == "MR":
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "NONE", ""
        dataset.MRAcquisitionType, dataset.EchoTrainLength = "3D", ""
        dataset.RepetitionTime, dataset.EchoTime = _number(facts.get("tr_ms", 10)), _number(facts.get("te_ms", 4))
    elif modality == "DX":
        dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
        dataset.PresentationIntentType = "FOR PRESENTATION"
        dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "US"
        dataset.PresentationLUTShape, dataset.BurnedInAnnotation = "IDENTITY", "NO"
        dataset.LossyImageCompression = "00"
        dataset.PatientOrientation = ["L", "F"]
        dataset.setdefault("ImageLaterality", "U")
        dataset.ImageLaterality = facts.get("laterality") or "U"
        dataset.AnatomicRegionSequence = [
            _code(
                "43799004" if facts.get("body_part") else "38266002",
                "SCT",
                "Chest" if facts.get("body_part") else "Entire body",
            )
        ]
        dataset.AcquisitionContextSequence = []
    elif modality == "CR":
        dataset.ImageType = ["ORIGINAL", "PRIMARY"]
        dataset.PatientOrientation = ["L", "F"]
        dataset.setdefault("ViewPosition", "")
        dataset.setdefault("BodyPartExamined", "")
    elif modality == "OT":
        dataset.ImageType, dataset.ConversionType, dataset.PatientOrientation = derived, "WSD", ""
    else:
        dataset.ImageType, dataset.PatientOrientation = derived, ""


def _put_derived(dataset: FileDataset, facts: Mapping[str, Any]) -> None:
    """Image Type of pixels that no scanner made, without the made-up values of type 2 attributes."""
    dataset.ImageType = ["DERIVED", "SECONDARY", *dataset.ImageType[2:]]
    for keyword, key in (("KVP", "kvp"), ("AcquisitionNumber", ""), ("RepetitionTime", "tr_ms"), ("EchoTime", "te_ms")):
        if keyword in dataset and key not in facts:
            setattr(dataset, keyword, None)
    for keyword in ("PatientPosition", "Laterality"):  # type 2C: unknown is empty, not absent
        dataset.setdefault(keyword, "")


def _code(value: str, scheme: str, meaning: str) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _put_rescale(dataset: FileDataset, modality: str, slope: float, intercept: float) -> None:
    """Modality LUT; MR has none in the standard (PS3.3 A.4) and gets one only where values had to be quantised."""
    if modality == "MR" and (slope, intercept) == (1.0, 0.0):
        return
    dataset.RescaleSlope, dataset.RescaleIntercept = _number(slope), _number(intercept)
    dataset.RescaleType = "HU" if modality == "CT" else "US"
    if modality == "PT":
        dataset.Units = "BQML"


def _put_pixels(
    dataset: FileDataset, stored: NDArray[Any], photometric: str, modality: str, bits_stored: Any = None
) -> None:
    """Image pixel module for ``(Y, X)`` or ``(Y, X, 3)``."""
    bits = 8 * stored.dtype.itemsize
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    # A fact of the image before it was converted to fewer bits must not claim more than there are.
    dataset.BitsAllocated, dataset.BitsStored = bits, min(int(bits_stored or bits), bits)
    signed = stored.dtype.kind == "i"
    top = 1 << (dataset.BitsStored - signed)
    if int(stored.max()) >= top or int(stored.min()) < -top * signed:
        raise UsageError(
            f"pixels reach from {int(stored.min())} to {int(stored.max())}, more than {dataset.BitsStored} bits hold; "
            "correct bits_stored"
        )
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(signed)
    if modality in ("DX", "CR", "MR", "CT") and "WindowCenter" not in dataset:
        low, high = float(stored.min()), float(stored.max())
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        # A window over the whole range: viewers without automatic windowing show something.
        dataset.WindowCenter = _number((low + high) / 2 * slope + intercept)
        dataset.WindowWidth = _number(max((high - low) * slope, 1.0))
    dataset.PixelData = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<")).tobytes()
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"


def _save(dataset: FileDataset, path: Path, syntax: Syntax) -> Path:
    # OpenJPEG always makes five levels of wavelets, which a side below 32 does not have.
    if syntax is Syntax.JPEG_2000 and min(dataset.Rows, dataset.Columns) < 32:
        raise UsageError(
            f"{path}: JPEG 2000 needs at least 32 x 32 pixels, got {dataset.Rows} x {dataset.Columns}; choose jpeg-ls"
        )
    if syntax in _ENCODER:
        dataset.compress(_SYNTAX_UID[syntax], encoding_plugin=_ENCODER[syntax], generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = _SYNTAX_UID[syntax]
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    with atomic(path) as file:
        file.write(buffer.getvalue())
    return path
