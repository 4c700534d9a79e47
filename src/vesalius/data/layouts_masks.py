"""Layouts of masks that names of files and folders tell: BraTS, stacks of pages, and one mask file per structure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from vesalius.core.errors import DataError, VesaliusError
from vesalius.core.labels import Labels
from vesalius.data.found import Ask, Found, some
from vesalius.data.layouts_folders import IMAGE_FOLDERS, TRUTH_FOLDERS, split_of_path
from vesalius.data.listing import Listing, split_suffix, stem_of
from vesalius.data.mask_look import TWO, look_at, settle
from vesalius.data.mask_values import COLUMN, MaskValues
from vesalius.data.problem import Problem

_ROWS = ("case_id", "path", "role", "label", "split", COLUMN)
# BraTS 2012 to 2020 (Menze et al. 2015, doi:10.1109/TMI.2014.2377694; 2021 as well) and 2023 onwards.
_OLD, _NEW = ("flair", "t1", "t1ce", "t2"), ("t2f", "t1n", "t1c", "t2w")
_BRATS = re.compile(r"(.+)[_-](flair|t1ce|t1n|t1c|t1|t2w|t2f|t2|seg)", re.I)
_STACK = re.compile(r"(.*?)[_-]?(volume|images?|raw)", re.I)
_STACK_TRUTH = ("labels", "label", "masks", "mask", "gt", "segmentation")
_BESIDE = re.compile(r"(.+?)[_-](?:mask|masks|label|labels|seg|segmentation|gt)(?:[_-](.+))?", re.I)
_MOST_STRUCTURES = 256
_MOST_BYTES, _FEW_CASES = 64 << 20, 4


def brats(listing: Listing, ask: Ask) -> Found | None:
    """BraTS: ``CASE/CASE_flair.nii.gz``, ``_t1``, ``_t1ce``, ``_t2`` and ``_seg``, or the names of 2023 with ``-``."""
    cases: dict[str, dict[str, str]] = defaultdict(dict)
    for path in listing.of("image"):
        if split_suffix(path)[1] not in (".nii", ".nii.gz"):
            continue
        folder, _, name = path.rpartition("/")
        match = _BRATS.fullmatch(stem_of(name))
        if match is not None:
            cases[f"{folder}/{match[1]}"][match[2].lower()] = path
        elif re.search(r"_segm$", stem_of(name), re.I):
            # BraTS20_Training_355 came with the name of its source: W39_1998.09.19_Segm.nii.
            cases[f"{folder}/{folder.rpartition('/')[2]}"].setdefault("seg", path)
    names = next((kind for kind in (_OLD, _NEW) if any({*kind, "seg"} <= set(c) for c in cases.values())), None)
    if names is None or ask.task not in (None, "segment", "unlabelled"):
        return None
    whole = {key: found for key, found in cases.items() if set(names) <= set(found)}
    without = [found[names[0]] for found in whole.values() if "seg" not in found]
    partial = [min(found.values()) for key, found in cases.items() if key not in whole]
    rows = []
    for key, found in sorted(whole.items()):
        if "seg" not in found:
            continue
        case = key.rpartition("/")[2]
        # 2023: BraTS-GLI-00005-101 is the second visit of patient BraTS-GLI-00005.
        patient = re.sub(r"-\d{3}$", "", case) if names is _NEW else case
        for channel, modality in enumerate(names):
            rows.append((case, found[modality], f"image_{channel}" if channel else "image", "", patient))
        rows.append((case, found["seg"], "mask", "", patient))
    frame = pd.DataFrame(rows, columns=["case_id", "path", "role", "label", "patient_id"])
    labels, problem = _brats_labels(listing, frame.loc[frame["role"] == "mask", "path"].tolist(), names is _NEW)
    problems = some(without, "cases have no mask", "they are left out and can only be predicted on", "note")
    problems += some(partial, "cases lack a modality", f"they are left out; expected {', '.join(names)}")
    return Found(
        frame,
        task=ask.require_task("brats", "segment"),
        reason=f"the names of BraTS, {frame['case_id'].nunique()} cases with the channels {', '.join(names)}",
        labels=labels,
        patient_source="pattern",
        problems=(problem, *problems),
    )


def _brats_labels(listing: Listing, masks: Sequence[str], new: bool) -> tuple[Labels, Problem]:
    """The nested regions that BraTS judges, by the values that are in use.

    Raises
    ------
    DataError
        If the masks hold other values.
    """
    seen = set(look_at(listing.root, masks).seen)
    if seen - {0, 1, 2, 3, 4}:
        raise DataError(
            f"{listing.root}: the masks hold the values {sorted(seen)[:8]}; expected those of BraTS, 0 to 4; correct "
            "them, or name them in a dataset.json"
        )
    names: tuple[str, ...] = ("whole tumour", "tumour core", "enhancing tumour")
    regions: tuple[tuple[int, ...], ...] = ((1, 2, 3), (1, 3), (3,))
    if {3, 4} <= seen and new:
        # 2024, after treatment: 4 is the resection cavity.
        names, regions = (*names, "resection cavity"), (*regions, (4,))
    elif {3, 4} <= seen:
        regions = ((1, 2, 3, 4), (1, 3, 4), (4,))  # until 2014, with 3 for the core that does not enhance
    elif 4 in seen or not (new or 3 in seen):
        regions = ((1, 2, 4), (1, 4), (4,))
    said = "; ".join(f"{name} joins {list(values)}" for name, values in zip(names, regions, strict=True))
    text = f"the masks hold the values {sorted(seen)}, read as the overlapping regions of BraTS: {said}"
    return Labels(names, multilabel=True, regions=regions), Problem("note", "", text)


def page_stacks(listing: Listing, ask: Ask) -> Found | None:
    """``train-volume.tif`` with ``train-labels.tif`` (ISBI challenges): each page is a picture with its mask."""
    tiffs = [path for path in listing.of("image") if split_suffix(path)[1] in (".tif", ".tiff")]
    if not tiffs or len(tiffs) > 64 or ask.task not in (None, "segment", "unlabelled"):
        return None
    by_stem = {stem_of(path).casefold(): path for path in tiffs}
    rows: list[tuple[str, str, str, str, str]] = []
    alone: list[str] = []
    for path in tiffs:
        folder, mark, name = stem_of(path).rpartition("/")
        match = _STACK.fullmatch(name)
        if match is None:
            continue
        ends = [
            f"{folder}{mark}{match[1]}{joint}{word}".casefold() for word in _STACK_TRUTH for joint in ("-", "_", "")
        ]
        truth = next((by_stem[end] for end in ends if end in by_stem), None)
        if truth is None:
            alone.append(path)
            continue
        pages = _pages(listing, path, truth)
        if pages < 2:
            continue
        stem = f"{folder}{mark}{match[1] or name}"
        for page in range(pages):
            rows.append((f"{stem}#{page}", f"{path}#{page}", "image", "", split_of_path(f"{match[1]}/x")))
            rows.append((f"{stem}#{page}", f"{truth}#{page}", "mask", "", rows[-1][4]))
    if not rows:
        return None
    frame = pd.DataFrame(rows, columns=["case_id", "path", "role", "label", "split"])
    if frame["split"].nunique() < 2:
        frame["split"] = ""
    masks = frame.loc[frame["role"] == "mask", "path"].tolist()
    settled = settle(listing.root, masks)
    frame = _with_values(frame, settled.values)
    pages_text = (
        "neighbouring pages of one stack show the same structures, so results on other pages of it look better than "
        "results on another specimen would"
    )
    problems = some(alone, "stacks have no labels", "they are left out and can only be predicted on", "note")
    return Found(
        frame,
        task=ask.require_task("page-stacks", "segment"),
        reason=f"{len(masks)} pages of stacks with labels of the same number of pages; each page is a case",
        labels=settled.labels,
        split_source="official" if (frame["split"] != "").any() else "none",
        problems=(*settled.problems, Problem("warning", "", pages_text), *problems),
    )


def _pages(listing: Listing, image: str, truth: str) -> int:
    """Pages of a stack; 0 for files that are no stacks of the same length.

    Raises
    ------
    DataError
        If image and labels have different numbers of pages.
    """
    import tifffile

    counts = []
    for path in (image, truth):
        try:
            with tifffile.TiffFile(listing.root / path) as file:
                counts.append(len(file.pages))
        except (OSError, ValueError, IndexError, KeyError, tifffile.TiffFileError):
            return 0
    if counts[0] != counts[1] and max(counts) > 1:
        raise DataError(
            f"{listing.root / truth}: {counts[1]} pages, but {image} has {counts[0]}; expected one page of labels per "
            "page of the image; export the stack again"
        )
    return counts[0]


def _with_values(frame: pd.DataFrame, values: MaskValues) -> pd.DataFrame:
    if not values:
        return frame
    return frame.assign(**{COLUMN: [str(values) if role == "mask" else "" for role in frame["role"]]})


@dataclass(frozen=True)
class _Part:
    """One file of a truth: whose, and which structure it shows ("" for a label map or any structure)."""

    case: str
    path: str
    name: str


def structure_files(listing: Listing, ask: Ask) -> Found | None:
    """One mask file per structure or object, beside or below the image of each case.

    ``masks/CASE/liver.png``, ``masks/liver/CASE.png``, ``CASE_mask_liver.png``, ``CASE.png`` with ``CASE_mask.png`` in
    one folder, and folders of cases: ``CASE/ct.nii.gz`` with ``CASE/segmentations/liver.nii.gz``,
    ``CASE/imaging.nii.gz`` with ``CASE/segmentation.nii.gz``, ``CASE/images/x.png`` with ``CASE/masks/*.png``.
    """
    if ask.task not in (None, "segment", "unlabelled"):
        return None
    parts, images = _parts(listing)
    of_case: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        of_case[part.case].append(part)
    if not of_case or 2 * len(of_case) < len(images):
        return None
    named = {part.name for part in parts}
    if max(map(len, of_case.values())) == 1 and len(named) <= 1:
        return _one_each(listing, ask, of_case, images)
    if _are_objects(of_case):
        return _objects(listing, ask, of_case, images)
    return _structures(listing, ask, of_case, images)


def _parts(listing: Listing) -> tuple[list[_Part], list[str]]:
    """Files of truths with the image that each belongs to, and all images."""
    truths: list[str] = []
    images: list[str] = []
    for path in listing.of("image"):
        folders = [folder.casefold() for folder in path.split("/")[:-1]]
        (truths if set(folders) & TRUTH_FOLDERS else images).append(path)
    by_key: dict[tuple[str, ...], str] = {}
    inside: dict[str, list[str]] = defaultdict(list)
    for path in images:
        prefix, rest = _around(path, IMAGE_FOLDERS)
        by_key[(prefix, *rest, stem_of(path.rpartition("/")[2]))] = path
        inside[prefix].append(path)
    parts = [part for path in truths if (part := _part_in_folders(path, by_key, inside)) is not None]
    if truths:
        return parts, images
    return _beside(images)


def _around(path: str, folders: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    """The path above the folder that says what the file is, and the folders below it; else the whole folder."""
    parts = path.split("/")
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].casefold() in folders:
            return "/".join(parts[:index]), tuple(parts[index + 1 : -1])
    return "/".join(parts[:-1]), ()


def _part_in_folders(
    path: str, by_key: Mapping[tuple[str, ...], str], inside: Mapping[str, Sequence[str]]
) -> _Part | None:
    prefix, rest = _around(path, TRUTH_FOLDERS)
    stem = stem_of(path.rpartition("/")[2])
    if rest and (prefix, *rest) in by_key:  # masks/CASE/liver.png
        name = stem.removeprefix(rest[-1]).strip("_-") or stem
        return _Part(by_key[(prefix, *rest)], path, name)
    for at in (0, len(rest) - 1) if rest else ():  # masks/liver/CASE.png
        key = (prefix, *rest[:at], *rest[at + 1 :], stem)
        if key in by_key:
            return _Part(by_key[key], path, rest[at])
    match = _BESIDE.fullmatch(stem)
    if match is not None and match[2] and (prefix, *rest, match[1]) in by_key:  # masks/CASE_mask_liver.png
        return _Part(by_key[(prefix, *rest, match[1])], path, match[2])
    if prefix and not rest and len(inside.get(prefix, ())) == 1:  # CASE/segmentations/liver.nii.gz
        return _Part(inside[prefix][0], path, stem)
    return None


def _beside(paths: Sequence[str]) -> tuple[list[_Part], list[str]]:
    """Truths in the folder of their images: CASE_mask.png by CASE.png, segmentation.nii.gz by imaging.nii.gz."""
    by_stem = {stem_of(path): path for path in paths}
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folders[path.rpartition("/")[0]].append(path)
    parts = []
    for path in paths:
        folder, mark, name = path.rpartition("/")
        stem = stem_of(name)
        match = _BESIDE.fullmatch(stem)
        image = by_stem.get(f"{folder}{mark}{match[1]}") if match is not None else None
        if match is not None and image is not None:
            further = match[2] or ""
            parts.append(_Part(image, path, "" if further.isdecimal() else further))
        elif stem.casefold() in TRUTH_FOLDERS and len(folders[folder]) == 2 and folder:
            other = next(one for one in folders[folder] if one != path)
            parts.append(_Part(other, path, ""))
    shown = {part.path for part in parts}
    return parts, [path for path in paths if path not in shown]


def _case_names(of_case: Mapping[str, Sequence[_Part]]) -> dict[str, str]:
    """Case ids: the folder where each case has one and its files all have the same name, else the path."""
    stems = {image: stem_of(image) for image in of_case}
    if len({stem.rpartition("/")[2] for stem in stems.values()}) == 1 and len(stems) > 1:
        return {image: re.sub(r"/(images?|imgs?)$", "", stem.rpartition("/")[0]) for image, stem in stems.items()}
    return stems


def _found(
    listing: Listing,
    ask: Ask,
    rows: Sequence[tuple[str, ...]],
    labels: Labels,
    problems: Sequence[Problem],
    lonely: Sequence[str],
    reason: str,
) -> Found:
    frame = pd.DataFrame(rows, columns=list(_ROWS))
    if (frame[COLUMN] == "").all():
        frame = frame.drop(columns=COLUMN)
    more = some(lonely, "images have no mask", "they are left out; add the masks or remove the images")
    return Found(
        frame,
        task=ask.require_task("structure-masks", "segment"),
        reason=reason,
        labels=labels,
        split_source="folder" if (frame["split"] != "").any() else "none",
        problems=(*problems, *more),
    )


def _one_each(listing: Listing, ask: Ask, of_case: Mapping[str, list[_Part]], images: Sequence[str]) -> Found:
    """One label map beside each image."""
    masks = {image: parts[0].path for image, parts in of_case.items()}
    settled = settle(listing.root, list(masks.values()))
    name = next(iter(of_case.values()))[0].name
    if settled.labels == TWO and name and name.casefold() not in TRUTH_FOLDERS:
        settled = replace(settled, labels=Labels(("background", name)))
    rows: list[tuple[str, ...]] = []
    for image, case in _case_names(of_case).items():
        split = split_of_path(image)
        rows.append((case, image, "image", "", split, ""))
        rows.append((case, masks[image], "mask", "", split, str(settled.values)))
    lonely = [image for image in images if image not in of_case]
    reason = f"{len(masks)} images with a mask beside them, first {next(iter(masks.values()))}"
    return _found(listing, ask, rows, settled.labels, settled.problems, lonely, reason)


def _are_objects(of_case: Mapping[str, list[_Part]]) -> bool:
    """Names that hardly any two cases share, or mere numbers of varying count, are objects and not structures."""
    cases_of: dict[str, set[str]] = defaultdict(set)
    for image, parts in of_case.items():
        for part in parts:
            cases_of[part.name].add(image)
    numbers = all(name.isdecimal() for name in cases_of)
    counts = {len(parts) for parts in of_case.values()}
    if numbers and len(counts) > 1:
        return True
    shared = sum(len(cases) for cases in cases_of.values()) / len(cases_of)
    return len(of_case) > 1 and len(cases_of) > 3 and shared < 1.5


def _objects(listing: Listing, ask: Ask, of_case: Mapping[str, list[_Part]], images: Sequence[str]) -> Found:
    rows: list[tuple[str, ...]] = []
    for image, case in _case_names(of_case).items():
        split = split_of_path(image)
        rows.append((case, image, "image", "", split, ""))
        for number, part in enumerate(of_case[image]):
            role = f"mask_{number}" if number else "mask"
            rows.append((case, part.path, role, "", split, str(MaskValues(every=number + 1))))
    objects = sum(map(len, of_case.values()))
    text = f"each of {objects} mask files is taken as one object, so there is one class 'object'"
    lonely = [image for image in images if image not in of_case]
    reason = f"{len(of_case)} images with one mask file per object"
    labels = Labels(("background", "object"), instances=True)
    return _found(listing, ask, rows, labels, [Problem("note", "", text)], lonely, reason)


def _structures(listing: Listing, ask: Ask, of_case: Mapping[str, list[_Part]], images: Sequence[str]) -> Found:
    """One file per structure; structures that overlap anywhere may hold together everywhere."""
    names = sorted({part.name or "foreground" for parts in of_case.values() for part in parts})
    if len(names) > _MOST_STRUCTURES:
        raise DataError(
            f"{listing.root}: the mask files have {len(names)} different names, first {names[0]!r} and {names[1]!r}; "
            "expected one per structure, the same for every case; rename them, or write label maps"
        )
    overlapping = len(names) > 1 and _overlap(listing, of_case)
    labels = Labels(tuple(names), multilabel=True) if overlapping else Labels(("background", *names))
    place = {name: index + (0 if overlapping else 1) for index, name in enumerate(names)}
    rows: list[tuple[str, ...]] = []
    few: list[str] = []
    for image, case in _case_names(of_case).items():
        split = split_of_path(image)
        rows.append((case, image, "image", "", split, ""))
        if {part.name or "foreground" for part in of_case[image]} != set(names):
            few.append(image)
        for number, part in enumerate(of_case[image]):
            role = f"mask_{number}" if number else "mask"
            values = str(MaskValues(every=place[part.name or "foreground"]))
            rows.append((case, part.path, role, "", split, values))
    text = f"each mask file shows one structure ({', '.join(names[:8])}); everything in it that is not 0 counts" + (
        ", and structures may overlap" if overlapping else ""
    )
    problems = [Problem("note", "", text)]
    problems += some(few, "images lack the file of a structure", "it counts as absent there", "note")
    lonely = [image for image in images if image not in of_case]
    reason = f"{len(of_case)} images with one mask file for each of {len(names)} structures"
    return _found(listing, ask, rows, labels, problems, lonely, reason)


def _overlap(listing: Listing, of_case: Mapping[str, list[_Part]]) -> bool:
    """Whether two structures of a case share a pixel; of large collections a few cases are looked at."""
    from vesalius.data.truth_files import open_member

    total = sum((listing.root / part.path).stat().st_size for parts in of_case.values() for part in parts)
    looked = list(of_case.values())
    if total > _MOST_BYTES:
        looked = looked[:: -(-len(looked) // _FEW_CASES)]
    for parts in looked:
        seen: dict[str, np.ndarray] = {}
        for part in parts:
            try:
                shown = open_member(listing.root / part.path).pixels[0] > 0
            except VesaliusError:
                continue
            name = part.name or "foreground"
            if any(other.shape == shown.shape and (other & shown).any() for n, other in seen.items() if n != name):
                return True
            seen[name] = shown | seen[name] if name in seen and seen[name].shape == shown.shape else shown
    return False


def settled_tables(found: Found, listing: Listing) -> Found:
    """Masks that a table names without saying what their values mean: a look at them tells."""
    if found.task != "segment" or COLUMN in found.frame or found.labels not in (None, TWO):
        return found
    masks = found.frame.loc[found.frame["role"] == "mask", "path"].tolist()
    from vesalius.data.mask_look import names_beside

    beside = names_beside(listing.root, listing.known)
    settled = settle(listing.root, masks, beside[0] if beside else None)
    frame = _with_values(found.frame, settled.values)
    return replace(found, frame=frame, labels=settled.labels, problems=(*found.problems, *settled.problems))
