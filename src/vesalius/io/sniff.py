"""What a file is, by its content; its name decides only where the content cannot."""

from __future__ import annotations

import gzip
import struct
import zlib
from enum import StrEnum
from itertools import islice
from pathlib import Path

from vesalius.core.errors import UnreadableFile


class Kind(StrEnum):
    """Formats that are told apart."""

    DICOM = "dicom"
    DICOMDIR = "dicomdir"
    DICOM_FOLDER = "dicom folder"
    FOLDER = "folder"
    NIFTI = "nifti"
    NRRD = "nrrd"
    METAIMAGE = "metaimage"
    PNG = "png"
    JPEG = "jpeg"
    JPEG2000 = "jpeg 2000"
    TIFF = "tiff"
    BMP = "bmp"
    GIF = "gif"
    NPY = "npy"
    NPZ = "npz"
    VIDEO = "video"
    ZIP = "zip"
    GZIP = "gzip"
    HDF5 = "hdf5"
    TEXT = "text"
    EMPTY = "empty file"
    UNKNOWN = "unknown"


_HEAD_BYTES = 4096
_FOLDER_LOOKS = 256
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", Kind.PNG),
    (b"\xff\xd8\xff", Kind.JPEG),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", Kind.JPEG2000),
    (b"\xff\x4f\xff\x51", Kind.JPEG2000),
    (b"II*\x00", Kind.TIFF),
    (b"MM\x00*", Kind.TIFF),
    (b"II+\x00", Kind.TIFF),
    (b"MM\x00+", Kind.TIFF),
    (b"GIF87a", Kind.GIF),
    (b"GIF89a", Kind.GIF),
    (b"NRRD", Kind.NRRD),
    (b"\x93NUMPY", Kind.NPY),
    (b"\x89HDF\r\n\x1a\n", Kind.HDF5),
    (b"\x1aE\xdf\xa3", Kind.VIDEO),  # Matroska, WebM
    (b"FLV\x01", Kind.VIDEO),
    (b"\x00\x00\x01\xba", Kind.VIDEO),  # MPEG program stream
    (b"\x00\x00\x01\xb3", Kind.VIDEO),  # MPEG video
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind.VIDEO),  # ASF, WMV
)
# Value representations, PS3.5 table 6.2-1.
_VR = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
# A data set without file meta information starts in one of these groups, PS3.6 table 6-1.
_FIRST_GROUPS = (0x0002, 0x0008)


def sniff(path: str | Path) -> Kind:
    """The kind of the file or folder at `path`.

    Raises
    ------
    UnreadableFile
        If there is nothing at `path`, or it may not be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _sniff_folder(path)
        if path.exists() and not path.is_file():
            # Opening a pipe would wait for ever.
            raise UnreadableFile(path, found="neither a file nor a folder", expected="a file", do="check the path")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UnreadableFile(
            path, found=reason[:1].lower() + reason[1:], do="check the path and its permissions"
        ) from error
    return _sniff_bytes(head, path)


def dicom_start(head: bytes) -> int | None:
    """Offset of the first data element (after the preamble) if `head` is the start of a DICOM file, else None.

    Files from before PS3.10 have neither preamble nor file meta information; they are known by a first element of
    group 2 or 8 whose value representation or length makes sense. One byte may stand before it: what a careless tool
    left of a padded value when it cut the header off.
    """
    if head[128:132] == b"DICM":
        return 132
    for start in (0, 1):
        if _starts_element(head[start:]):
            return start
    return None


def _starts_element(head: bytes) -> bool:
    if len(head) < 16:
        return False
    for order in ("<", ">"):
        group, element = struct.unpack(order + "HH", head[:4])
        if group not in _FIRST_GROUPS or element > 0x2000:
            continue
        explicit = head[4:6] in _VR
        length = struct.unpack(order + ("H" if explicit else "I"), head[6:8] if explicit else head[4:8])[0]
        if length > 1024 or (element == 0 and length != 4):
            continue
        follower = 8 + length
        if follower + 4 > len(head):
            continue
        # The second tag must follow the first in order, or chance bytes of other formats would pass.
        second = struct.unpack(order + "HH", head[follower : follower + 4])
        if (group, element) < second and second[0] <= 0x0040:
            return True
    return False


def _sniff_bytes(head: bytes, path: Path) -> Kind:  # noqa: PLR0911 - one return per family of formats
    if not head:
        return Kind.EMPTY
    if head[128:132] == b"DICM":
        return Kind.DICOMDIR if _is_directory(head) else Kind.DICOM
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") or (head[:4] == b"RIFF" and head[8:11] == b"AVI"):
        return Kind.VIDEO
    if head[:1] == b"\x47" and head[188:189] == b"\x47":  # MPEG transport stream: packets of 188 bytes
        return Kind.VIDEO
    if head[:2] == b"BM" and len(head) >= 6 and struct.unpack("<I", head[2:6])[0] == path.stat().st_size:
        return Kind.BMP
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head.startswith(b"\x1f\x8b"):
        return _sniff_gzip(path)
    if _is_nifti(head):
        return Kind.NIFTI
    if (b"ObjectType" in head[:512] and b"ElementDataFile" in head) or (b"NDims" in head[:512] and b"DimSize" in head):
        return Kind.METAIMAGE
    if dicom_start(head) is not None:
        return Kind.DICOM
    return Kind.TEXT if _is_text(head) else Kind.UNKNOWN


def _is_directory(head: bytes) -> bool:
    # Media Storage SOP Class UID (0002,0002), always explicit little endian: Media Storage Directory Storage (PS3.4)
    return b"\x02\x00\x02\x00UI\x14\x001.2.840.10008.1.3.10" in head[132:]


def _is_nifti(head: bytes) -> bool:
    if len(head) < 348:
        return False
    if head[4:12] in (b"n+2\x00\r\n\x1a\n", b"ni2\x00\r\n\x1a\n"):
        return True
    if head[344:348] in (b"n+1\x00", b"ni1\x00"):
        return True
    # Analyze 7.5: header size 348 and a number of dimensions between 1 and 7 at byte 40
    for order in ("<", ">"):
        if struct.unpack(order + "i", head[:4])[0] == 348 and 1 <= struct.unpack(order + "h", head[40:42])[0] <= 7:
            return True
    return False


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not merely a letter cut in two at the end of the head
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\r\n\t\f" for letter in text)


def _sniff_zip(path: Path) -> Kind:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        # A truncated .npz has lost the table at its end: the reader of arrays says so better than "unknown".
        return Kind.NPZ if path.suffix.lower() == ".npz" else Kind.ZIP
    return Kind.NPZ if names and all(name.endswith(".npy") for name in names) else Kind.ZIP


def _sniff_gzip(path: Path) -> Kind:
    try:
        with gzip.open(path) as file:
            inner = file.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return Kind.NIFTI if path.name.lower().endswith(".nii.gz") else Kind.GZIP
    return Kind.NIFTI if _is_nifti(inner) else Kind.GZIP


def _sniff_folder(path: Path) -> Kind:
    """A folder counts as DICOM if one of the first files that its tree yields is."""
    files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    for file in islice(files, _FOLDER_LOOKS):
        with file.open("rb") as opened:
            if dicom_start(opened.read(_HEAD_BYTES)) is not None:
                return Kind.DICOM_FOLDER
    return Kind.FOLDER
