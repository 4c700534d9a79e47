"""Which files `vesalius measure` was given, and which image and reference belong to which mask."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vesalius.core.errors import DataError, UsageError
from vesalius.data.listing import Listing, list_files, split_suffix, stem_of
from vesalius.io.sniff import Kind, sniff

# Words that people append to the name of an image to name its mask, and channel numbers of nnU-Net.
_ENDING = re.compile(
    r"[ _.\-](masks?|seg(mentation)?s?|labels?|lbl|gt|truth|instances?|pred(iction)?s?|roi|0000)$", re.IGNORECASE
)
_MOST_NAMED = 5
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66"


@dataclass(frozen=True)
class MeasureCase:
    """One mask with what belongs to it; each is what `io.open.open_image` opens."""

    case_id: str
    mask: str
    image: str | None = None
    reference: str | None = None
    systole: str | None = None
    """For the heart: the mask of the other phase."""


@dataclass
class Found:
    """Cases in order, and lines about what did not match."""

    cases: list[MeasureCase]
    problems: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)


def find_cases(
    masks: Sequence[str | Path], image: str | Path | None = None, reference: str | Path | None = None
) -> Found:
    """The cases of files and folders.

    A mask and an image (or reference) belong together if their paths below the folders given are equal but for the
    suffix, or else their names, or else their names without an ending such as ``_mask``, ``_seg`` or ``_0000``.

    Raises
    ------
    UsageError
        If a path does not exist.
    DataError
        If a folder holds no mask, or nothing matches.
    """
    if not masks:
        raise UsageError("measure needs at least one MASK: a label image or a folder of them")
    found = Found([])
    entries: list[tuple[str, str]] = []
    for given in masks:
        entries += _entries(Path(given), str(given))
        found.names |= known_names(Path(given))
    ids = _unique([name for name, _ in entries])
    images = _partners(entries, image, "image", found.problems)
    references = _partners(entries, reference, "reference", found.problems)
    found.cases = [
        MeasureCase(case, path, images.get(path), references.get(path))
        for case, (_, path) in zip(ids, entries, strict=True)
    ]
    return found


def _entries(path: Path, given: str) -> list[tuple[str, str]]:
    """(name, path) of every mask in a file or folder; the name is the path below the folder without its suffix."""
    if not path.exists():
        if "#" in given and Path(given.split("#", maxsplit=1)[0]).exists():
            return [(given.rpartition("#")[2], given)]
        raise UsageError(f"{given}: there is no such file or folder; check the path")
    if path.is_file():
        return [(stem_of(path.name), str(path))]
    root = path / "predictions" if (path / "predictions").is_dir() else path
    listing = list_files(root)
    found = _members(listing)
    if not found:
        raise DataError(
            f"{given}: no mask here, found {listing.summary()}; "
            "expected label images (NIfTI, NRRD, MetaImage, PNG, TIFF, DICOM SEG)"
        )
    return [(name, str(root / where)) for name, where in found]


def _members(listing: Listing) -> list[tuple[str, str]]:
    """Images, and DICOM files or the folders that are a series."""
    found = [(stem_of(path), path) for path in listing.of("image")]
    dicom = listing.of("dicom")
    folders: dict[str, list[str]] = {}
    for path in dicom:
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    for folder, paths in folders.items():
        if len(paths) > 1 and not any(_is_mask(listing.root / path) for path in paths):
            found.append((folder or listing.root.name, folder or "."))
        else:
            found += [(stem_of(path), path) for path in paths]
    return sorted(found)


def _is_mask(path: Path) -> bool:
    return dicom_class(path).startswith((_SEGMENTATION, STRUCTURE_SET))


def dicom_class(path: Path) -> str:
    """SOP Class UID of a DICOM file; empty for anything else."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    if not path.is_file() or sniff(path) is not Kind.DICOM:
        return ""
    try:
        head = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except (InvalidDicomError, OSError, ValueError):
        return ""
    return str(head.get("SOPClassUID", ""))


def _unique(names: Sequence[str]) -> list[str]:
    """The last part of each name where these differ, else the whole name, numbered if even that is not enough."""
    short = [name.rpartition("/")[2] for name in names]
    chosen = short if len(set(short)) == len(short) else list(names)
    seen: dict[str, int] = {}
    out = []
    for name in chosen:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return out


def _partners(
    masks: Sequence[tuple[str, str]], given: str | Path | None, what: str, problems: list[str]
) -> dict[str, str]:
    """Path of a mask to the path of its `what`."""
    if given is None:
        return {}
    path = Path(given)
    if not path.exists() and "#" not in str(given):
        raise UsageError(f"--{what} {given}: there is no such file or folder; check the path")
    if len(masks) == 1 and (not path.is_dir() or _one_series(path)):
        return {masks[0][1]: str(given)}
    if not path.is_dir():
        raise UsageError(f"--{what} {given}: one file for {len(masks)} masks; give a folder with one {what} per mask")
    others = _members(list_files(path))
    tables = [
        dict(others),
        _unambiguous(others, lambda name: name.rpartition("/")[2]),
        _unambiguous(others, plain_name),
    ]
    found, missing = {}, []
    for name, mask in masks:
        keys = (name, name.rpartition("/")[2], plain_name(name))
        hit = next((table[key] for table, key in zip(tables, keys, strict=True) if key in table), None)
        if hit is None and len(masks) == len(others) == 1:
            hit = others[0][1]
        if hit is None:
            missing.append(name)
        else:
            found[mask] = str(path / hit)
    if not found:
        raise DataError(
            f"--{what} {given}: none of {len(others)} files has the name of a mask, such as {masks[0][0]}; "
            f"name each {what} like its mask"
        )
    if missing:
        shown = ", ".join(missing[:_MOST_NAMED]) + (" ..." if len(missing) > _MOST_NAMED else "")
        problems.append(f"{len(missing)} of {len(masks)} masks have no {what} in {given}: {shown}")
    return found


def _one_series(path: Path) -> bool:
    """A folder of DICOM slices and nothing else to look at."""
    listing = list_files(path)
    return bool(listing.of("dicom")) and not listing.of("image")


def plain_name(name: str) -> str:
    """``case_01_seg`` and ``sub/case_01_0000`` as ``case_01``."""
    short = name.rpartition("/")[2]
    return _ENDING.sub("", short) or short


def _unambiguous(entries: Sequence[tuple[str, str]], key: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    twice = set()
    for name, where in entries:
        if key(name) in found:
            twice.add(key(name))
        found[key(name)] = where
    return {name: where for name, where in found.items() if name not in twice}


def known_names(path: Path) -> dict[int, str]:
    """Names of label values from a ``dataset.json`` (Decathlon, nnU-Net) beside the masks or one folder above."""
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder.parent):
        file = place / "dataset.json"
        if not file.is_file():
            continue
        try:
            listed = json.loads(file.read_text(encoding="utf-8")).get("labels", {})
        except (ValueError, OSError, AttributeError):
            return {}
        return _as_names(listed)
    return {}


def _as_names(listed: Any) -> dict[int, str]:
    if not isinstance(listed, Mapping):
        return {}
    out: dict[int, str] = {}
    for key, value in listed.items():
        first = _value_of(str(key))
        # nnU-Net 2 writes name: number
        number, name = (first, value) if first is not None else (_value_of(str(value)), key)
        if number:
            out[number] = str(name)
    return out


def _value_of(text: str) -> int | None:
    """A label value written as a number or, in a mask in colour, as ``#ff0000``."""
    text = text.strip()
    if text.isdecimal():
        return int(text)
    return int(text[1:], 16) if re.fullmatch("#[0-9a-fA-F]{6}", text) else None


def parse_names(text: str | None) -> dict[int, str]:
    """``1=liver,2=tumour``, ``#ff0000=vessel`` in a mask in colour, or a JSON file with names by value.

    Raises
    ------
    UsageError
        For anything else.
    """
    if not text:
        return {}
    if split_suffix(text)[1] == ".json":
        try:
            data = json.loads(Path(text).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"--names {text}: not a readable JSON file ({error})") from error
        found = _as_names(data.get("labels", data) if isinstance(data, Mapping) else data)
        if not found:
            raise UsageError(f'--names {text}: holds no names; expected {{"1": "liver", ...}}')
        return found
    out = {}
    for part in text.split(","):
        number, equal, name = part.partition("=")
        value = _value_of(number)
        if not equal or value is None or not name.strip():
            raise UsageError(f"--names {part!r}: expected VALUE=NAME, for example 1=liver,2=tumour")
        out[value] = name.strip()
    return out
