"""The files below a folder, looked at once: names, kinds and sizes, without opening them."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from vesalius.core.errors import UsageError
from vesalius.io.sniff import Kind, sniff

_SUFFIXES = {
    "image": "png jpg jpeg jfif bmp tif tiff webp jp2 nii nii.gz nrrd nhdr mha mhd npy",
    "video": "mp4 m4v avi mov mpg mpeg mkv webm wmv gif ts",
    "dicom": "dcm dicom ima seg",
    "table": "csv tsv parquet",
    "arrays": "npz",
    "json": "json",
    "xml": "xml",
    "yaml": "yaml yml",
    "text": "txt",
}
KIND_OF = {"." + suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
PIXELS = ("image", "video", "dicom")
_NOT_DATA = re.compile(
    r"(licen[cs]e|readme|copying|changelog|citation|checksums?|sha256sums|thumbs\.db|desktop\.ini)", re.I
)
_SKIPPED_FOLDERS = frozenset({"__MACOSX", "__pycache__", "$RECYCLE.BIN", "System Volume Information"})
# A file without a known suffix may be DICOM (scanners write "IM00001" or "1.2.840.113619.2"); its first bytes tell.
_NAMELESS = re.compile(r"(\.\d+)?", re.I)


def split_suffix(name: str) -> tuple[str, str]:
    """``("scan", ".nii.gz")``: the name without its suffix, and the suffix in lower case ("" if there is none)."""
    low = name.lower()
    if low.endswith(".nii.gz"):
        return name[:-7], ".nii.gz"
    stem, suffix = os.path.splitext(name)
    return stem, suffix.lower()


def stem_of(path: str) -> str:
    """`path` without the suffix of its last part; an unknown suffix stays, since it may belong to the name."""
    stem, suffix = split_suffix(path)
    return stem if suffix in KIND_OF else path


@dataclass(frozen=True)
class Listing:
    """Files below `root`, sorted, by kind; hidden files and system litter are left out.

    Parameters
    ----------
    root
        The folder.
    files
        Paths with ``/``, relative to the root, by kind: ``image``, ``video``, ``dicom``, ``table``, ``arrays``,
        ``json``, ``xml``, ``yaml``, ``text``, ``other``.
    empty
        Files of a kind with pixels that hold no byte; they are not in `files`.
    """

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)
    empty: tuple[str, ...] = ()

    def of(self, *kinds: str) -> list[str]:
        """Paths of these kinds, sorted."""
        if len(kinds) == 1:
            return self.files.get(kinds[0], [])
        return sorted(path for kind in kinds for path in self.files.get(kind, []))

    @cached_property
    def pixels(self) -> list[str]:
        """Everything that can be looked at."""
        return self.of(*PIXELS)

    @cached_property
    def known(self) -> frozenset[str]:
        """Every path."""
        return frozenset(path for paths in self.files.values() for path in paths)

    @cached_property
    def folders(self) -> frozenset[str]:
        """Every folder that holds something to look at, at any depth."""
        return _folders(self.pixels)

    @cached_property
    def dicom_folders(self) -> frozenset[str]:
        """Those with DICOM files: only they can be one image as a whole."""
        return _folders(self.of("dicom"))

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """Paths by file name."""
        return _grouped(self.pixels, lambda path: path.rpartition("/")[2])

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Paths by file name without suffix."""
        return _grouped(self.pixels, lambda path: stem_of(path.rpartition("/")[2]))

    def summary(self) -> str:
        """``4 csv, 2 nii.gz`` for messages."""
        suffixes = Counter(split_suffix(path)[1].lstrip(".") or "nameless" for path in self.known)
        return ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5)) or "no file"


def _folders(paths: Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return frozenset(found)


def _grouped(paths: Iterable[str], name: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[name(path)].append(path)
    return groups


def list_files(root: Path) -> Listing:
    """Walk `root` once.

    Links to folders are followed, each real folder once, so that a circle of links ends.

    Raises
    ------
    UsageError
        If a folder cannot be read.
    """
    files: dict[str, list[str]] = defaultdict(list)
    empty: list[str] = []
    seen: set[tuple[int, int]] = set()
    pending = [("", str(root))]
    while pending:
        prefix, folder = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(folder))
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise UsageError(f"{folder}: {reason}; check the path and its permissions") from error
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name in _SKIPPED_FOLDERS:
                continue
            if entry.is_dir():
                pending.append((f"{prefix}{name}/", entry.path))
                continue
            kind = _kind_of(entry)
            if kind in PIXELS and not _has_bytes(entry):
                empty.append(prefix + name)
            elif kind:
                files[kind].append(prefix + name)
    return Listing(root, {kind: sorted(paths) for kind, paths in files.items()}, tuple(sorted(empty)))


def _kind_of(entry: os.DirEntry[str]) -> str:
    """The kind by the name, "" for what is no data; only nameless files are opened."""
    suffix = split_suffix(entry.name)[1]
    kind = KIND_OF.get(suffix)
    if kind is not None and kind in PIXELS:
        return kind
    if _NOT_DATA.match(entry.name) or suffix in (".license", ".md5", ".db", ".py", ".md", ".html", ".log"):
        return ""
    if kind is None and _NAMELESS.fullmatch(suffix) and entry.is_file() and _has_bytes(entry):
        found = sniff(entry.path)
        return {Kind.DICOM: "dicom", Kind.DICOMDIR: "dicomdir"}.get(found, "other")
    return kind or "other"


def _has_bytes(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat().st_size > 0
    except OSError:
        return False  # a link to nowhere has nothing to read either


def common_folder(paths: Sequence[str]) -> str:
    """The deepest folder, with a trailing ``/``, that holds all `paths`; "" for the root itself."""
    if not paths:
        return ""
    first, last = min(paths), max(paths)
    folders = zip(first.split("/")[:-1], last.split("/")[:-1], strict=False)
    shared = takewhile(lambda pair: pair[0] == pair[1], folders)
    return "".join(f"{name}/" for name, _ in shared)
