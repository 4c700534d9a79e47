"""Layouts in which the folders say everything: classes, splits, images beside masks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import median

import pandas as pd

from vesalius.core.errors import DataError, UsageError
from vesalius.data.found import Ask, Found, some
from vesalius.data.listing import Listing, common_folder, stem_of
from vesalius.data.mask_look import names_beside, settle
from vesalius.data.mask_values import COLUMN
from vesalius.data.naming import canonical_split
from vesalius.data.problem import Problem

IMAGE_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "scans", "raw"})
TRUTH_FOLDERS = frozenset(
    {
        "labels",
        "label",
        "masks",
        "mask",
        "annotations",
        "segmentations",
        "segmentation",
        "seg",
        "gt",
        "ground_truth",
        "groundtruth",
        "truth",
    }
)
_TRUTH_ENDING = re.compile(r"[_-](mask|masks|label|labels|seg|segmentation|gt|truth|labelids)$", re.I)
_PERSON = re.compile(r"(patient|pat|subject|subj|sub|case|person|pid|p|s|id|study|series)?[-_ ]?\d{2,}", re.I)
_MANY_CLASSES = 20
_FEW_IMAGES = 5


def folder_classes(paths: Sequence[str]) -> tuple[pd.DataFrame, str] | None:
    """Rows with ``path``, ``label`` and ``split`` for ``[split/]class/.../file`` or ``class/split/.../file``.

    Returns
    -------
    tuple or None
        The rows and the folder they all lie in; None if the folders below it are no classes.
    """
    top = common_folder(paths)
    # "data/train/..." and "data/NORMAL/..." alike: the shared part says nothing, unless it is a split itself.
    parts = [path[len(top) :].split("/") for path in paths]
    inside = [part for part in parts if len(part) > 1]
    if not inside:
        return None
    firsts = {part[0] for part in inside}
    if all(canonical_split(first) for first in firsts):
        rows = [
            (path, part[1] if len(part) > 2 else "", canonical_split(part[0]) or "")
            for path, part in zip(paths, parts, strict=True)
            if len(part) > 1
        ]
    elif all(len(part) > 2 and canonical_split(part[1]) for part in inside):
        rows = [
            (path, part[0], canonical_split(part[1]) or "")
            for path, part in zip(paths, parts, strict=True)
            if len(part) > 2
        ]
    else:
        rows = [(path, part[0], "") for path, part in zip(paths, parts, strict=True) if len(part) > 1]
    frame = pd.DataFrame(rows, columns=["path", "label", "split"])
    return (frame, top) if frame["label"].nunique() > 1 and (frame["label"] != "").all() else None


def class_folders(listing: Listing, ask: Ask, *, sure: bool = False) -> Found | None:
    """``class/file``, with or without folders for the splits, of images or of videos.

    Raises
    ------
    UsageError
        If the folders look like patients rather than classes, unless `sure` (the person named the layout).
    """
    kind = "video" if len(listing.of("video")) > len(listing.of("image")) else "image"
    paths = listing.of(kind)
    found = folder_classes(paths)
    if found is None:
        if sure:
            raise DataError(
                f"{listing.root}: no two folders with {kind}s; expected one folder per class; put the "
                f"{kind}s of each class into a folder of its own"
            )
        return None
    frame, top = found
    if not sure:
        _refuse_patients_as_classes(frame["label"], listing)
    outside = sorted(set(paths) - set(frame["path"]))
    split_source = "folder" if (frame["split"] != "").any() else "none"
    problems = some(outside, f"{kind}s lie outside the class folders", "they are left out; move them into a class")
    problems += _classes_missing_in_splits(frame)
    names = sorted(frame["label"].unique())
    reason = f"{len(names)} folders of {kind}s{f' below {top}' if top else ''} are the classes"
    return Found(
        frame,
        task=ask.require_task("class-folders", "video" if kind == "video" else "classify"),
        reason=reason + (", with folders for the splits" if split_source == "folder" else ""),
        split_source=split_source,
        problems=tuple(problems),
    )


def _refuse_patients_as_classes(labels: pd.Series, listing: Listing) -> None:
    sizes = Counter(labels.tolist())
    persons = sum(bool(_PERSON.fullmatch(name)) for name in sizes)
    many_small = len(sizes) > _MANY_CLASSES and median(sizes.values()) < _FEW_IMAGES
    # Digits 0 to 9 are classes; "patient_003" and "01234" are people.
    numbered = persons == len(sizes) and not all(name.isdecimal() and len(name) < 3 for name in sizes)
    if numbered or many_small:
        example = next(iter(sizes))
        raise UsageError(
            f"{listing.root}: {len(sizes)} folders such as {example!r} with {median(sizes.values()):g} images "
            "each may be classes or patients; say which: --layout class-folders, or --layout images with "
            "--patient-pattern '([^/]+)/'"
        )


def _classes_missing_in_splits(frame: pd.DataFrame) -> list[Problem]:
    everything = set(frame["label"])
    problems = []
    for split, rows in frame[frame["split"] != ""].groupby("split"):
        gone = sorted(everything - set(rows["label"]))
        if gone:
            problems.append(
                Problem(
                    "warning",
                    str(split),
                    f"split {split} has no image of class {gone[0]!r}"
                    f"{f' and {len(gone) - 1} more' if len(gone) > 1 else ''}; check the folder names",
                )
            )
    return problems


def images(listing: Listing, ask: Ask) -> Found | None:
    """Files without any truth."""
    paths = listing.of("image", "video")
    if not paths:
        return None
    kinds = [name for name in ("image", "video") if listing.of(name)]
    frame = pd.DataFrame({"path": paths, "label": ""})
    return Found(
        frame,
        task=ask.require_task("images", "unlabelled"),
        reason=f"{' and '.join(kinds)} files without labels",
        problems=(
            Problem(
                "note",
                "",
                "no labels were found, so these cases can be looked at and predicted on but "
                "not trained on; put each class into a folder, or add a manifest.csv with columns "
                "path and label",
            ),
        ),
    )


def pair_key(path: str, folders: frozenset[str], *, truth: bool) -> tuple[str, str] | None:
    """What an image and its truth have in common: the path around the folder, and the stem.

    None if no folder of the path is in `folders`; the one nearest to the file counts.
    """
    parts = path.split("/")
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].casefold() in folders:
            stem = stem_of(parts[-1])
            if truth:
                stem = _TRUTH_ENDING.sub("", stem)
            return "/".join([*parts[:index], "*", *parts[index + 1 : -1]]), stem
    return None


def paired(listing: Listing, truth_paths: Sequence[str]) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Images with their truth: (pairs, images without truth, truth without image)."""
    truths = {}
    for path in truth_paths:
        key = pair_key(path, TRUTH_FOLDERS, truth=True)
        if key is not None:
            truths[key] = path
    pairs, lonely = [], []
    used = set()
    for path in listing.of("image"):
        key = pair_key(path, IMAGE_FOLDERS, truth=False)
        if key is None:
            continue
        if key in truths:
            pairs.append((path, truths[key]))
            used.add(key)
        else:
            lonely.append(path)
    return pairs, lonely, [path for key, path in truths.items() if key not in used]


def split_of_path(path: str) -> str:
    """The split that a folder of `path` names, or ""."""
    for part in path.split("/")[:-1]:
        split = canonical_split(part)
        if split:
            return split
    return ""


def truth_rows(pairs: Sequence[tuple[str, str]], role: str) -> pd.DataFrame:
    """Two rows per case: the image and its truth."""
    rows = []
    for image, truth in pairs:
        split = split_of_path(image)
        case = stem_of(image)
        rows.append((case, image, "image", split))
        rows.append((case, truth, role, split))
    return pd.DataFrame(rows, columns=["case_id", "path", "role", "split"])


def paired_folders(listing: Listing, ask: Ask) -> Found | None:
    """``images/`` beside ``labels/`` (or ``masks/``...), same stems: segmentation."""
    folders = {part.casefold() for folder in listing.folders for part in folder.split("/")}
    if not folders & IMAGE_FOLDERS or not folders & TRUTH_FOLDERS:
        return None
    pairs, lonely, orphans = paired(listing, listing.of("image"))
    if not pairs:
        return None
    frame = truth_rows(pairs, "mask")
    frame["label"] = ""
    beside = names_beside(listing.root, listing.known)
    settled = settle(listing.root, [truth for _, truth in pairs], beside[0] if beside else None)
    problems = list(settled.problems)
    if beside is not None:
        problems.append(Problem("note", beside[1], "names the classes"))
    if settled.values:
        frame[COLUMN] = [str(settled.values) if role == "mask" else "" for role in frame["role"]]
    problems = some(lonely, "images have no mask", "they are left out; add the masks or remove the images") + problems
    problems += some(orphans, "masks have no image", "they are left out; check their names")
    names = sorted({pair.split("/")[-2] for image_and_mask in pairs[:100] for pair in image_and_mask})
    return Found(
        frame,
        task=ask.require_task("paired-folders", "segment"),
        labels=settled.labels,
        reason=f"folders {' and '.join(names)} hold {len(pairs)} images and masks of the same names",
        split_source="folder" if (frame["split"] != "").any() else "none",
        problems=tuple(problems),
    )
