"""DICOM data sets as plain facts: load them safely, say what is no image, gather the header into `Image.meta`."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.core.errors import LimitError, ResourceError, UnreadableFile, VesaliusError
from vesalius.core.quantity import show_bytes
from vesalius.io.limits import ReadLimits, check_file_bytes
from vesalius.io.sniff import dicom_start

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# pydicom warns about every odd value of a header, once per file. What matters to a reader is refused or noted here.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

_DEFLATED = "1.2.840.10008.1.2.1.99"
_HEAD_BYTES = 4096

# What is not an image, by its SOP Class UID (PS3.4 table B.5-1), with what to do instead; an entry that ends in a dot
# stands for every UID that starts with it.
_NO_IMAGE = {
    "1.2.840.10008.5.1.4.1.1.88.": ("a structured report", "it holds findings, not pixels"),
    "1.2.840.10008.5.1.4.1.1.481.3": ("an RT structure set (contours)", "open the image series that it refers to"),
    "1.2.840.10008.5.1.4.1.1.481.5": ("an RT plan", "open the image or dose of the plan"),
    "1.2.840.10008.5.1.4.1.1.481.8": ("an RT ion plan", "open the image or dose of the plan"),
    "1.2.840.10008.5.1.4.1.1.481.4": ("an RT beams treatment record", "open the image or dose of the plan"),
    "1.2.840.10008.5.1.4.1.1.481.6": ("an RT brachytherapy treatment record", "open the image or dose of the plan"),
    "1.2.840.10008.5.1.4.1.1.481.7": ("an RT treatment summary", "open the image or dose of the plan"),
    "1.2.840.10008.5.1.4.1.1.11.": ("a presentation state", "open the image that it refers to"),
    "1.2.840.10008.5.1.4.1.1.66.1": ("a spatial registration", "open the images that it refers to"),
    "1.2.840.10008.5.1.4.1.1.66.3": ("a deformable registration", "open the images that it refers to"),
    "1.2.840.10008.5.1.4.1.1.66.2": ("spatial fiducials", "open the image that they refer to"),
    "1.2.840.10008.5.1.4.1.1.66.5": ("a surface segmentation (meshes)", "open the image that it refers to"),
    "1.2.840.10008.5.1.4.1.1.66.6": ("tractography results", "open the image that they refer to"),
    "1.2.840.10008.5.1.4.1.1.66": ("raw data", "open the reconstructed image"),
    "1.2.840.10008.5.1.4.1.1.67": ("a real world value mapping", "open the image that it refers to"),
    "1.2.840.10008.5.1.4.1.1.9.": ("a waveform", "signals are not read as images"),
    "1.2.840.10008.5.1.4.1.1.104.": ("an encapsulated document", "take the document out of it first"),
    "1.2.840.10008.5.1.4.1.1.4.2": ("MR spectroscopy", "spectra are not read as images"),
    "1.2.840.10008.1.3.10": ("a DICOMDIR", "open its folder"),
}
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"

# Image.meta key -> DICOM keyword
_META = {
    "modality": "Modality",
    "patient_id": "PatientID",
    "sex": "PatientSex",
    "age": "PatientAge",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "sop_uid": "SOPInstanceUID",
    "frame_of_reference_uid": "FrameOfReferenceUID",
    "study_date": "StudyDate",
    "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
    "series_number": "SeriesNumber",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "institution": "InstitutionName",
    "body_part": "BodyPartExamined",
    "laterality": "ImageLaterality",
    "view": "ViewPosition",
    "patient_position": "PatientPosition",
    "protocol": "ProtocolName",
    "kernel": "ConvolutionKernel",
    "kvp": "KVP",
    "echo_time": "EchoTime",
    "repetition_time": "RepetitionTime",
    "field_strength": "MagneticFieldStrength",
    "sequence": "SequenceName",
    "contrast_agent": "ContrastBolusAgent",
    "slice_thickness": "SliceThickness",
    "image_type": "ImageType",
    "photometric": "PhotometricInterpretation",
    "bits_stored": "BitsStored",
    "bits_allocated": "BitsAllocated",
    "burned_in_annotation": "BurnedInAnnotation",
    "lossy": "LossyImageCompression",
    "pixel_padding_value": "PixelPaddingValue",
    "detector_tilt": "GantryDetectorTilt",
}


@contextmanager
def guarded(path: str | Path, doing: str) -> Iterator[None]:
    """Turn whatever a library raises inside the block into one readable line; our own errors pass."""
    try:
        yield
    except VesaliusError:
        raise
    except MemoryError as error:
        raise ResourceError(
            f"{path}: not enough memory for {doing}; read a smaller part or free some memory"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableFile(
            path,
            found=f"{doing} failed: {reason[:200]}",
            expected="an intact DICOM file",
            do="get the file again from its source",
        ) from error


def read_header(path: str | Path, tags: Sequence[str] | None = None) -> Dataset:
    """The data set of `path` up to its pixels, or only the elements `tags` of it.

    Raises
    ------
    UnreadableFile
        If it is no DICOM file or breaks off inside the header.
    """
    return _read(Path(path), tags=tags, pixels=False)


def read_dataset(path: str | Path, limits: ReadLimits) -> Dataset:
    """The whole data set of `path`, pixels still encoded; ``file_meta.TransferSyntaxUID`` is always set.

    Raises
    ------
    UnreadableFile, LimitError
        If it is no DICOM file, breaks off, or is larger than `limits` allow.
    """
    path = Path(path)
    with guarded(path, "opening"):
        check_file_bytes(path, limits)
    dataset = _read(path, tags=None, pixels=True, inflate_limit=limits.max_file_bytes)
    return dataset


def _read(path: Path, *, tags: Sequence[str] | None, pixels: bool, inflate_limit: int | None = None) -> Dataset:
    from pydicom import dcmread

    with guarded(path, "reading the header"), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        start = dicom_start(head)
        if start is None:
            raise UnreadableFile(path, found="no DICOM file", expected="the letters DICM after a preamble of 128 bytes")
        if inflate_limit is not None and _DEFLATED.encode() in head[:1024]:
            _check_inflated(path, inflate_limit)
        file.seek(0 if start == 132 else start)
        # pydicom looks for the preamble from the very start, so a stray byte has to be out of its sight.
        source = BytesIO(file.read()) if start == 1 else file
        dataset = dcmread(
            source, force=True, stop_before_pixels=not pixels, specific_tags=None if tags is None else list(tags)
        )
        if not dataset:
            raise UnreadableFile(
                path, found="a DICOM header without a data set", do="get the file again from its source"
            )
    _settle_syntax(dataset)
    return dataset


def _settle_syntax(dataset: Dataset) -> None:
    """Files without file meta information are native; the byte order was found while parsing (PS3.5 A.1, A.2)."""
    from pydicom import uid

    if not hasattr(dataset, "file_meta"):
        from pydicom.dataset import FileMetaDataset

        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" in dataset.file_meta and dataset.file_meta.TransferSyntaxUID:
        return
    implicit, little = dataset.original_encoding
    if not little:
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    else:
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian


def stray_byte(path: str | Path) -> bool:
    """Whether one byte stands before the first data element, which reading skips."""
    with Path(path).open("rb") as file:
        head: bytes = file.read(_HEAD_BYTES)
    return bool(dicom_start(head) == 1)


def _check_inflated(path: Path, limit: int) -> None:
    """Count what a deflated data set (PS3.5 A.5) inflates to, a piece at a time, before it is taken into memory."""
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    if meta.TransferSyntaxUID != _DEFLATED:
        return
    with path.open("rb") as file:
        file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        total = 0
        while piece := file.read(1 << 16):
            while piece:
                total += len(inflater.decompress(piece, 1 << 20))
                piece = inflater.unconsumed_tail
                if total > limit:
                    raise LimitError(
                        path,
                        found=f"a deflated data set of more than {show_bytes(limit)}",
                        expected=f"at most {show_bytes(limit)}",
                        do="if the file is to be trusted, raise the limit with read_limits(max_file_bytes=...)",
                    )


def has_pixels(dataset: Dataset) -> bool:
    """Whether the data set holds pixel data of any kind (not only a header)."""
    return any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


def refusal(dataset: Dataset, path: str | Path) -> UnreadableFile | None:
    """The error for a data set that is no image that this door reads; None for an image."""
    sop_class = str(dataset.get("SOPClassUID", "") or "")
    for prefix, (what, do) in _NO_IMAGE.items():
        if sop_class.startswith(prefix) if prefix.endswith(".") else sop_class == prefix:
            return UnreadableFile(path, found=what, expected="an image", do=do)
    if "DirectoryRecordSequence" in dataset:
        return UnreadableFile(path, found="a DICOMDIR", expected="an image", do="open its folder")
    if sop_class == _WHOLE_SLIDE:
        return UnreadableFile(
            path,
            found="a whole-slide image",
            expected="an image of one field of view",
            do="whole slides are read tile by tile, not by this door",
        )
    if "Rows" not in dataset or "Columns" not in dataset:
        return UnreadableFile(path, found=f"{_name_of(sop_class)} without rows and columns", expected="an image")
    return None


def _name_of(sop_class: str) -> str:
    from pydicom.uid import UID

    name = UID(sop_class).name if sop_class else ""
    return f"a DICOM object ({name})" if name else "a DICOM data set without SOP class,"


def gather_meta(dataset: Dataset) -> dict[str, Any]:
    """Plain facts of the header for `Image.meta`; what is absent or empty has no key."""
    meta: dict[str, Any] = {}
    for key, keyword in _META.items():
        value = plain(dataset, keyword)
        if value not in (None, "", []):
            meta[key] = value
    sop_class = dataset.get("SOPClassUID")
    if sop_class:
        meta["sop_class"] = str(getattr(sop_class, "name", sop_class))
        meta["sop_class_uid"] = str(sop_class)
    meta["transfer_syntax"] = str(dataset.file_meta.TransferSyntaxUID.name)
    return meta


def plain(dataset: Dataset, keyword: str) -> Any:
    """Value of an element as str, int, float or a list of them; None if it is absent or cannot be parsed."""
    try:
        value = dataset.get(keyword)
    except (ValueError, TypeError, NotImplementedError, AttributeError, OverflowError):
        return None  # e.g. letters in a number: the fact is unknown, the image may still be readable
    if value is None or isinstance(value, bytes):
        return None
    if not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        return [_plain_item(item) for item in value]
    return _plain_item(value)


def _plain_item(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) or type(value).__name__ in ("DSdecimal", "Decimal"):
        return float(value)
    text = str(value).strip()
    number = re.fullmatch(r"[+-]?\d+", text)
    return int(text) if number and hasattr(value, "original_string") else text


def numbers(dataset: Dataset, keyword: str, count: int | None = None) -> list[float] | None:
    """An element as a list of finite floats; None if it is absent, malformed or has not `count` values."""
    value = plain(dataset, keyword)
    if value is None or value == "":
        return None
    values = value if isinstance(value, list) else [value]
    try:
        result = [float(item) for item in values]
    except (TypeError, ValueError):
        return None
    if count is not None and len(result) != count:
        return None
    return result


def number(dataset: Dataset, keyword: str) -> float | None:
    """An element with one value as a float; None if it is absent or malformed."""
    values = numbers(dataset, keyword)
    return values[0] if values else None


def items(dataset: Dataset | None, keyword: str) -> list[Dataset]:
    """The items of a sequence; an absent, empty or broken one has none."""
    if dataset is None:
        return []
    try:
        return list(dataset.get(keyword) or [])
    except (TypeError, ValueError, NotImplementedError):
        return []


def frame_count(dataset: Dataset, path: str | Path) -> int:
    """Number of Frames; 1 where the element is absent or empty.

    Raises
    ------
    UnreadableFile
        If it is no positive number.
    """
    with guarded(path, "reading Number of Frames"):
        element = dataset.get_item("NumberOfFrames")
        if element is None:
            return 1
        raw = element.value
        text = (
            raw.decode("ascii", "replace") if isinstance(raw, bytes) else str(raw if raw is not None else "")
        ).strip(" \x00")
    if text in ("", "None", "0"):
        return 1  # written by some secondary captures for a single frame
    if not re.fullmatch(r"\+?\d+", text):
        raise UnreadableFile(
            path,
            found=f"Number of Frames {text!r}",
            expected="a positive whole number",
            do="repair the header or get the file again",
        )
    return int(text)
