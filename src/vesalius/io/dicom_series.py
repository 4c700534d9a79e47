"""Which series a DICOM tree holds: headers only, DICOMDIR if it is true, one Series UID split where it mixes images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.core.environment import available_cores
from vesalius.core.errors import UnreadableFile, UsageError, VesaliusError
from vesalius.core.progress import Progress, Silent
from vesalius.io.dicom_header import items, number, numbers, plain, read_header
from vesalius.io.sniff import dicom_start

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# What a listing and the order of slices need; everything else is skipped while parsing.
TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription",
    "StudyDescription", "SeriesNumber", "StudyDate", "PatientID", "PatientSex", "PatientAge", "Manufacturer",
    "ManufacturerModelName", "BodyPartExamined", "Rows", "Columns", "NumberOfFrames", "ImageType", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber", "AcquisitionNumber", "EchoTime",
    "EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime", "AcquisitionTime", "ContentTime",
    "ConvolutionKernel", "FlipAngle", "InversionTime", "SequenceName",
)  # fmt: skip
# What may tell apart several images at one position, in this order, and what to call it.
_TELLING = (
    ("ImageType", "image type"), ("EchoTime", "echo time"), ("EchoNumbers", "echo"),
    ("TemporalPositionIdentifier", "time"), ("DiffusionBValue", "b-value"), ("TriggerTime", "trigger time"),
    ("ConvolutionKernel", "kernel"), ("FlipAngle", "flip angle"), ("InversionTime", "inversion time"),
    ("SequenceName", "sequence"), ("AcquisitionNumber", "acquisition"), ("AcquisitionTime", "acquisition time"),
    ("ContentTime", "content time"),
)  # fmt: skip
_META = {
    "sex": "PatientSex", "age": "PatientAge", "study_date": "StudyDate", "study_description": "StudyDescription",
    "study_uid": "StudyInstanceUID", "series_number": "SeriesNumber", "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName", "body_part": "BodyPartExamined",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One group of files that belong into one image.

    Parameters
    ----------
    uid
        Series Instance UID; several `Series` share it if the files of one are no single volume.
    files
        In the order of Instance Number, then of name; `open_series` orders them by position.
    modality, description, patient_id
        From the first header; empty strings where it says nothing.
    shape
        (rows, columns); (0, 0) for objects without pixels (reports, contours, plans).
    part
        0 if the UID is one group, else 1, 2...
    because
        What tells this part from the others of its UID, e.g. ``orientation`` or ``echo time 4.6``.
    meta
        study_uid, study_date, sex, age, series_number...
    """

    uid: str
    files: tuple[Path, ...]
    modality: str = ""
    description: str = ""
    patient_id: str = ""
    shape: tuple[int, int] = (0, 0)
    part: int = 0
    because: str = ""
    meta: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        """What picks this series out of its folder: ``folder#key``."""
        return f"{self.uid}/{self.part}" if self.part else self.uid

    @property
    def has_pixels(self) -> bool:
        """Whether it is made of images."""
        return min(self.shape) > 0

    def __str__(self) -> str:
        text = (
            f"{self.modality or '?'} {self.description!r}, {len(self.files)} file{'s' if len(self.files) != 1 else ''}"
        )
        return (
            text
            + (f" of {self.shape[0]}x{self.shape[1]}" if self.has_pixels else "")
            + (f" ({self.because})" if self.because else "")
        )


def list_series(folder: str | Path, progress: Progress | None = None, *, workers: int | None = None) -> list[Series]:
    """The series in a DICOM tree, or in one file, sorted by patient, study and series number.

    A DICOMDIR at the top is used if every file that it names is there; otherwise every file of the tree is looked at,
    and what is no DICOM file is passed over. A file whose header is broken is reported through ``progress.warn``.

    Raises
    ------
    UsageError
        If there is no such folder.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UsageError(f"{folder}: there is no such folder; give a folder with DICOM files")
    progress = progress or Silent()
    files = _files_of(folder, progress)
    headers: list[tuple[Path, Dataset]] = []
    progress.start("Reading DICOM headers", len(files), "file")
    for path, header in _in_parallel(_header_or_reason, files, workers):
        progress.advance()
        if isinstance(header, str):
            progress.warn(header)
        elif header is not None and "SOPClassUID" in header and "DirectoryRecordSequence" not in header:
            headers.append((path, header))
    progress.stop(f"{len(headers)} DICOM files")
    return group_series(headers)


def _in_parallel(
    function: Callable[[Path], Any], files: Sequence[Path], workers: int | None
) -> Iterable[tuple[Path, Any]]:
    with ThreadPoolExecutor(workers or min(8, 2 * available_cores())) as pool:
        yield from zip(files, pool.map(function, files), strict=True)


def _header_or_reason(path: Path) -> Dataset | str | None:
    """The header, None for what is no DICOM file, or the reason why it cannot be read."""
    try:
        with path.open("rb") as file:
            if dicom_start(file.read(4096)) is None:
                return None
        header: Dataset = read_header(path, TAGS)
        return header
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    except VesaliusError as error:
        return str(error)


def _files_of(folder: Path, progress: Progress) -> list[Path]:
    if folder.is_file():
        folder, directory = folder.parent, folder
        if directory.name.upper() != "DICOMDIR":
            return [directory]
    for directory in sorted(path for path in folder.iterdir() if path.name.upper() == "DICOMDIR" and path.is_file()):
        try:
            return files_of_directory(directory)
        except VesaliusError as error:
            progress.warn(f"{error}; looking at every file instead")
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def files_of_directory(path: str | Path) -> list[Path]:
    """The files that a DICOMDIR names (PS3.3 F.3.2.2, Referenced File ID), all of which exist.

    Raises
    ------
    UnreadableFile
        If it is no DICOMDIR, a file that it names is missing, or a name leads out of its folder.
    """
    path = Path(path)
    header = read_header(path)
    if "DirectoryRecordSequence" not in header:
        raise UnreadableFile(path, found="no directory records", expected="a DICOMDIR")
    root = path.parent.resolve()
    found: list[Path] = []
    for record in items(header, "DirectoryRecordSequence"):
        name = plain(record, "ReferencedFileID")
        if name in (None, "", []):
            continue  # a patient, study or series record
        parts = [str(part) for part in (name if isinstance(name, list) else [name])]
        file = _on_disk(path.parent, parts)
        if file is None:
            raise UnreadableFile(
                path,
                found=f"the name of a missing file, {'/'.join(parts)}",
                expected="every file that it names",
                do="copy the medium again",
            )
        if not file.resolve().is_relative_to(root):
            raise UnreadableFile(
                path, found=f"the name {'/'.join(parts)}, outside its own folder", expected="files below it"
            )
        found.append(file)
    if not found:
        raise UnreadableFile(path, found="no files in its records", expected="at least one")
    return found


def _on_disk(folder: Path, parts: Sequence[str]) -> Path | None:
    """`parts` below `folder`; copying from a CD often turns the capitals of a DICOMDIR into small letters."""
    for change in (str, str.lower, str.upper):
        candidate = folder.joinpath(*(change(part) for part in parts))
        if candidate.is_file():
            return candidate
    return None


def group_series(headers: Sequence[tuple[Path, Dataset]]) -> list[Series]:
    """`Series` of (file, header) pairs."""
    by_uid: dict[str, list[tuple[Path, Dataset]]] = {}
    for path, header in headers:
        by_uid.setdefault(str(header.get("SeriesInstanceUID") or f"file:{path.name}"), []).append((path, header))
    found: list[Series] = []
    for uid, members in by_uid.items():
        members.sort(key=lambda member: (number(member[1], "InstanceNumber") or 0.0, str(member[0])))
        parts = _parts(members)
        made = [_series(uid, part, because) for part, because in parts]
        found += [replace(one, part=index + 1) for index, one in enumerate(made)] if len(made) > 1 else made
    return sorted(
        found,
        key=lambda one: (
            one.patient_id,
            one.meta.get("study_date", ""),
            one.meta.get("study_uid", ""),
            _order(one.meta.get("series_number")),
            one.uid,
            one.part,
        ),
    )


def _order(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _series(uid: str, members: Sequence[tuple[Path, Dataset]], because: str) -> Series:
    first = members[0][1]
    meta = {key: plain(first, keyword) for key, keyword in _META.items() if plain(first, keyword) not in (None, "", [])}
    shape = (int(first.get("Rows") or 0), int(first.get("Columns") or 0))
    return Series(
        uid,
        tuple(path for path, _ in members),
        str(plain(first, "Modality") or ""),
        str(plain(first, "SeriesDescription") or ""),
        str(plain(first, "PatientID") or ""),
        shape,
        because=because,
        meta=meta,
    )


def _parts(members: list[tuple[Path, Dataset]]) -> list[tuple[list[tuple[Path, Dataset]], str]]:
    """Members of one UID as groups that can each be one image, with what tells each from the others."""
    parts = [(members, "")]
    for name, key in (
        ("kind of object", _object),
        ("size", _size),
        ("orientation", _orientation),
        ("image type", _image_type),
        ("pixel spacing", _spacing),
    ):
        parts = [
            (group, _joined(because, label)) for part, because in parts for group, label in _split(part, name, key)
        ]
    for split in (_split_alone, _split_crowded):
        parts = [(group, _joined(because, label)) for part, because in parts for group, label in split(part)]
    return parts


def _joined(*labels: str) -> str:
    return ", ".join(label for label in labels if label)


def _split(
    members: list[tuple[Path, Dataset]], name: str, key: Callable[[Dataset], Any]
) -> list[tuple[list[tuple[Path, Dataset]], str]]:
    groups: dict[Any, list[tuple[Path, Dataset]]] = {}
    for member in members:
        value = key(member[1])
        near = next((known for known in groups if _same(known, value)), value)
        groups.setdefault(near, []).append(member)
    if len(groups) == 1:
        return [(members, "")]
    return [(group, f"{name} {_shown(value)}") for value, group in groups.items()]


def _same(one: Any, other: Any) -> bool:
    """Equal, or the same direction cosines or spacings but for rounding."""
    if one == other:
        return True
    numeric = all(
        isinstance(value, tuple) and value and all(isinstance(item, float) for item in value) for value in (one, other)
    )
    return numeric and len(one) == len(other) and bool(np.allclose(one, other, rtol=1e-3, atol=2e-3))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return (
            "x".join(str(item) for item in value)
            if all(isinstance(i, int) for i in value)
            else "/".join(f"{item:.3g}" if isinstance(item, float) else str(item) for item in value) or "absent"
        )
    return str(value) if value not in (None, "") else "absent"


def _object(header: Dataset) -> str:
    name = getattr(header.get("SOPClassUID"), "name", "")
    return str(name)


def _size(header: Dataset) -> tuple[int, ...]:
    return int(header.get("Rows") or 0), int(header.get("Columns") or 0)


def _orientation(header: Dataset) -> tuple[float, ...]:
    return tuple(numbers(header, "ImageOrientationPatient", 6) or ())


def _spacing(header: Dataset) -> tuple[float, ...]:
    return tuple(numbers(header, "PixelSpacing", 2) or ())


def _image_type(header: Dataset) -> tuple[str, ...]:
    """The first three values: pixels made how, patient examined how, and the kind (AXIAL, LOCALIZER, MPR...)."""
    values = plain(header, "ImageType")
    return tuple(str(value) for value in values[:3]) if isinstance(values, list) else ()


def _split_alone(members: list[tuple[Path, Dataset]]) -> list[tuple[list[tuple[Path, Dataset]], str]]:
    """Each file by itself that can be no slice of a volume: it has several frames, or no place in the patient."""
    alone = [member for member in members if min(_size(member[1])) > 0 and not _is_slice(member[1])]
    rest = [member for member in members if member not in alone]
    if len(members) == 1 or not alone:
        return [(members, "")]
    return [([member], f"file {member[0].name}") for member in alone] + ([(rest, "slices")] if rest else [])


def _is_slice(header: Dataset) -> bool:
    return (number(header, "NumberOfFrames") or 1) <= 1 and numbers(header, "ImagePositionPatient", 3) is not None


def _split_crowded(members: list[tuple[Path, Dataset]]) -> list[tuple[list[tuple[Path, Dataset]], str]]:
    """Split where several images share a position and one element tells them apart (echoes, phases, b-values)."""
    where = [numbers(header, "ImagePositionPatient", 3) for _, header in members]
    if any(position is None for position in where) or not _crowded(where):
        return [(members, "")]
    for keyword, name in _TELLING:
        values = [_hashable(plain(header, keyword)) for _, header in members]
        if len(set(values)) < 2:
            continue
        groups: dict[Any, list[int]] = {}
        for index, value in enumerate(values):
            groups.setdefault(value, []).append(index)
        sizes = {len(group) for group in groups.values()}
        if len(sizes) == 1 and not any(_crowded([where[index] for index in group]) for group in groups.values()):
            return [([members[index] for index in group], f"{name} {_shown(value)}") for value, group in groups.items()]
    return [(members, "")]


def _crowded(where: Sequence[Any]) -> bool:
    return len({tuple(np.round(position, 2)) for position in where}) < len(where)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
