"""Data sets that a JSON file describes: Medical Segmentation Decathlon, nnU-Net raw folders, COCO."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vesalius.core.errors import DataError, UnreadableFile, UsageError
from vesalius.core.labels import Labels
from vesalius.data.found import Ask, Found, missing_files, some
from vesalius.data.label_lists import mask_labels
from vesalius.data.listing import Listing, stem_of
from vesalius.data.locate import locate
from vesalius.data.mask_look import doubled
from vesalius.data.mask_values import COLUMN, MaskValues
from vesalius.data.naming import canonical_split
from vesalius.data.problem import Problem
from vesalius.data.truth_files import CHANNELS

DESCRIPTION = "dataset.json"
_CHANNEL = re.compile(r"_(\d{4})$")
_COCO_KEYS = ("images", "annotations", "categories")
_MOST_BYTES = 1 << 31


def read_json(path: Path, listing: Listing, ask: Ask) -> tuple[str, Found]:
    """A data set by its description file: the name of the layout, and its rows.

    Raises
    ------
    UnreadableFile
        If it is none of the known descriptions.
    """
    data = load(path)
    where = path.relative_to(listing.root).as_posix()
    if all(key in data for key in _COCO_KEYS):
        return "coco", _coco({where: data}, listing, ask)
    if path.name == DESCRIPTION and _is_nnunet(data, listing):
        return "nnunet", _read_nnunet(data, listing, ask)
    if "training" in data:
        return "decathlon", _read_decathlon(data, listing, ask, where)
    raise UnreadableFile(
        path,
        found=f"JSON with the keys {sorted(data)[:6]}",
        expected="a Decathlon or nnU-Net dataset.json, or COCO (images, annotations, categories)",
        do="give the folder or a CSV table instead",
    )


def load(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    UnreadableFile
        If it is none.
    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise UnreadableFile(path, found=f"{size} bytes", expected="at most 2 GB of JSON", do="split it")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableFile(path, found=f"not readable as JSON ({error})", do="copy or export it again") from error
    if not isinstance(data, dict):
        raise UnreadableFile(path, found=f"a JSON {type(data).__name__}", expected="an object", do="export it again")
    return data


def _described(listing: Listing) -> dict[str, Any] | None:
    return load(listing.root / DESCRIPTION) if DESCRIPTION in listing.known else None


def decathlon(listing: Listing, ask: Ask) -> Found | None:
    """Medical Segmentation Decathlon: ``dataset.json`` with pairs under ``training``."""
    data = _described(listing)
    if data is None or not isinstance(data.get("training"), list):
        return None
    return _read_decathlon(data, listing, ask, DESCRIPTION)


def _read_decathlon(data: dict[str, Any], listing: Listing, ask: Ask, where: str) -> Found:
    below = where.rpartition("/")[0]
    pairs = []
    for index, entry in enumerate(data["training"]):
        if not isinstance(entry, Mapping) or not {"image", "label"} <= set(entry):
            raise DataError(
                f"{listing.root / where}: entry {index} of `training` is {str(entry)[:60]}; expected an object "
                "with image and label"
            )
        pair = [f"{below}/{entry[key]}" if below else str(entry[key]) for key in ("image", "label")]
        pairs.append([re.sub(r"(^|/)(\./)+", r"\1", path) for path in pair])
    if not pairs:
        raise DataError(f"{listing.root / where}: `training` is empty; expected pairs of image and label")
    missing_files(listing, [path for pair in pairs for path in pair], str(listing.root / where))
    problems = []
    stated = data.get("numTraining")
    if isinstance(stated, int) and stated != len(pairs):
        problems.append(Problem("note", where, f"numTraining says {stated}, but {len(pairs)} pairs are listed"))
    tests = data.get("test") or []
    if tests:
        problems.append(
            Problem(
                "note",
                where,
                f"{len(tests)} test images have no truth here; they are left out and can only be predicted on",
            )
        )
    modality = data.get("modality") or data.get("channel_names") or {}
    labels, values, more = mask_labels(data.get("labels"), str(listing.root / where))
    if isinstance(modality, Mapping) and len(modality) > 1:
        # The fourth axis of a NIfTI is time unless somebody says otherwise; this description does.
        pairs = [[f"{image}#{CHANNELS}", mask] for image, mask in pairs]
        named = ", ".join(str(modality[key]) for key in sorted(modality, key=str))
        problems.append(Problem("note", where, f"the fourth axis of the images holds the channels {named}"))
    frame = _meant(_pairs(pairs), values)
    if isinstance(modality, Mapping) and len(modality) == 1:
        frame["modality"] = str(next(iter(modality.values())))
    return Found(
        frame,
        task=ask.require_task("decathlon", "segment"),
        labels=labels,
        problems=(*problems, *more),
        reason=f"{where} lists {len(pairs)} pairs of image and mask",
    )


def _pairs(pairs: Sequence[Sequence[str]], split: str = "") -> pd.DataFrame:
    """Two rows per case; the case is the name of the mask."""
    rows = []
    for image, mask in pairs:
        case = stem_of(mask.rpartition("/")[2])
        rows += [(case, image, "image", "", split), (case, mask, "mask", "", split)]
    return pd.DataFrame(rows, columns=["case_id", "path", "role", "label", "split"])


def _meant(frame: pd.DataFrame, values: MaskValues) -> pd.DataFrame:
    """Rows of masks with what their values mean, where the file does not hold those of the labels."""
    if not values:
        return frame
    return frame.assign(**{COLUMN: [str(values) if role == "mask" else "" for role in frame["role"]]})


def _is_nnunet(data: Mapping[str, Any], listing: Listing) -> bool:
    if isinstance(data.get("training"), list) and data["training"]:
        return False
    named = "channel_names" in data or "file_ending" in data or "modality" in data
    return named and any(path.startswith(("imagesTr/", "imagesTs/")) for path in listing.of("image"))


def nnunet(listing: Listing, ask: Ask) -> Found | None:
    """nnU-Net raw data: ``imagesTr/CASE_0000.nii.gz`` per channel, ``labelsTr/CASE.nii.gz``."""
    data = _described(listing)
    if data is None or not _is_nnunet(data, listing):
        return None
    return _read_nnunet(data, listing, ask)


def _read_nnunet(data: dict[str, Any], listing: Listing, ask: Ask) -> Found:
    where = str(listing.root / DESCRIPTION)
    channels = data.get("channel_names") or data.get("modality") or {"0": "image"}
    problems: list[Problem] = []
    rows: list[tuple[str, str, str, str, str]] = []
    for ending, split in (("Tr", "train"), ("Ts", "test")):
        masks = {
            stem_of(path.rpartition("/")[2]): path
            for path in listing.of("image")
            if path.startswith(f"labels{ending}/")
        }
        images: dict[str, dict[int, str]] = defaultdict(dict)
        for path in listing.of("image"):
            if path.startswith(f"images{ending}/"):
                stem = stem_of(path.rpartition("/")[2])
                match = _CHANNEL.search(stem)
                images[_CHANNEL.sub("", stem)][int(match[1]) if match else 0] = path
        for case in sorted(set(images) & set(masks)):
            if len(images[case]) != len(channels):
                raise DataError(
                    f"{listing.root}: case {case!r} has {len(images[case])} channel(s), but {DESCRIPTION} names "
                    f"{len(channels)}; expected one file per channel; copy the missing ones"
                )
            rows += [
                (case, path, f"image_{channel}" if channel else "image", "", split)
                for channel, path in sorted(images[case].items())
            ]
            rows.append((case, masks[case], "mask", "", split))
        alone = [next(iter(images[case].values())) for case in sorted(set(images) - set(masks))]
        problems += some(
            alone, f"images in images{ending} have no mask", "they are left out of training and testing", "note"
        )
        problems += some(
            [masks[case] for case in sorted(set(masks) - set(images))],
            f"masks in labels{ending} have no image",
            "they are left out; check their names",
        )
    if not rows:
        raise DataError(
            f"{listing.root}: no image in imagesTr has a mask of the same name in labelsTr; expected "
            "imagesTr/CASE_0000 with labelsTr/CASE"
        )
    frame = pd.DataFrame(rows, columns=["case_id", "path", "role", "label", "split"])
    official = (frame["split"] == "test").any()
    if not official:
        frame["split"] = ""
    if len(channels) == 1 and "0" in channels and ("channel_names" in data or "modality" in data):
        frame["modality"] = str(channels["0"])
    labels, values, more = mask_labels(data.get("labels"), where)
    values, doubt = doubled(listing.root, frame.loc[frame["role"] == "mask", "path"].tolist(), labels, values)
    problems += doubt
    return Found(
        _meant(frame, values),
        task=ask.require_task("nnunet", "segment"),
        labels=labels,
        problems=(*problems, *more),
        split_source="official" if official else "none",
        reason=f"{DESCRIPTION} with imagesTr and labelsTr of {frame['case_id'].nunique()} cases",
    )


def coco(listing: Listing, ask: Ask) -> Found | None:
    """COCO: JSON files with images, annotations and categories, one per split or one for all."""
    names = [path for path in listing.of("json") if path.count("/") <= 2 and _looks_like_coco(listing.root / path)]
    data = {name: content for name in names if all(key in (content := load(listing.root / name)) for key in _COCO_KEYS)}
    if not data:
        return None
    splits = [_json_split(name) for name in data]
    if len(data) > 1 and (not all(splits) or len(set(splits)) < len(splits)):
        raise UsageError(
            f"{listing.root}: {len(data)} COCO files ({', '.join(sorted(data)[:4])}) are not one per split; give "
            f"one of them, for example {listing.root / min(data)}"
        )
    return _coco(data, listing, ask)


def _looks_like_coco(path: Path) -> bool:
    """Whether the file mentions the three keys at all; cheaper than to parse every JSON in a folder."""
    with path.open("rb") as file:
        head = file.read(1 << 12)
    if not any(f'"{key}"'.encode() in head for key in ("images", "annotations", "categories", "info", "licenses")):
        return False
    content = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
    return all(f'"{key}"'.encode() in content for key in _COCO_KEYS)


def _json_split(name: str) -> str:
    """The split in ``instances_train2017.json`` or ``valid/_annotations.coco.json``; "" if there is none."""
    words = re.findall(r"[a-z]+", name.casefold())
    found = {split for word in words if (split := canonical_split(word))}
    return found.pop() if len(found) == 1 else ""


def _coco(files: dict[str, dict[str, Any]], listing: Listing, ask: Ask) -> Found:
    task = ask.require_task("coco", "detect", "segment")
    names: dict[str, None] = {}
    rows: list[tuple[str, str, str, str, str]] = []
    problems: list[Problem] = []
    for where, data in files.items():
        categories, shown, found = _coco_boxes(data, where)
        problems += found
        names.update(dict.fromkeys(categories.values()))
        paths = [locate(str(image.get("file_name", "")), listing, where) for image in data["images"]]
        missing = [str(image.get("file_name")) for image, path in zip(data["images"], paths, strict=True) if not path]
        missing_files(listing, [*filter(None, paths), *missing], str(listing.root / where))
        split = _json_split(where) if len(files) > 1 else ""
        for image, path in zip(data["images"], paths, strict=True):
            label = "|".join(name for name in categories.values() if name in shown[image["id"]])
            case = stem_of(path)
            rows.append((case, path, "image", label, split))
            rows.append((case, f"{where}#{image['id']}", "boxes" if task == "detect" else "mask", label, split))
    frame = pd.DataFrame(rows, columns=["case_id", "path", "role", "label", "split"])
    boxes = sum(len(data["annotations"]) for data in files.values())
    labels = Labels(tuple(names), multilabel=True) if task == "detect" else Labels(("background", *names))
    return Found(
        frame,
        task=task,
        labels=labels,
        multilabel=True,
        problems=tuple(problems),
        split_source="official" if len(files) > 1 else "none",
        reason=f"{', '.join(sorted(files))} in COCO format with {boxes} annotations",
    )


def _coco_boxes(data: dict[str, Any], where: str) -> tuple[dict[Any, str], dict[Any, set[str]], list[Problem]]:
    """Category names by id, the names that each image shows, and what is wrong with the boxes."""
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
        sizes = {image["id"]: (image.get("width"), image.get("height")) for image in data["images"]}
        shown: dict[Any, set[str]] = {image: set() for image in sizes}
        lost, odd = [], []
        for annotation in data["annotations"]:
            image, category = annotation["image_id"], annotation["category_id"]
            if image not in sizes or category not in categories:
                lost.append(f"annotation {annotation.get('id')}")
                continue
            shown[image].add(categories[category])
            if "bbox" in annotation and not _box_fits(annotation["bbox"], *sizes[image]):
                odd.append(f"annotation {annotation.get('id')} {annotation['bbox']}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: an entry lacks or garbles {error}; expected COCO images, annotations and categories with ids"
        ) from error
    if len(set(categories.values())) < len(categories):
        raise DataError(f"{where}: two categories have the same name; expected {len(categories)} different ones")
    problems = []
    if lost:
        problems.append(
            Problem(
                "warning",
                where,
                f"{len(lost)} annotations name an image or category that does not exist, "
                f"first {lost[0]}; they are left out",
            )
        )
    if odd:
        problems.append(
            Problem(
                "warning",
                where,
                f"{len(odd)} boxes are empty or outside their image, first {odd[0]}; "
                "empty ones are left out, others are cut at the border",
            )
        )
    return categories, shown, problems


def _box_fits(box: Sequence[float], width: float | None, height: float | None) -> bool:
    x, y, w, h = (float(number) for number in box)
    # Half a pixel beyond the border is rounding.
    inside = x >= -0.5 and y >= -0.5 and (not width or x + w <= width + 0.5) and (not height or y + h <= height + 0.5)
    return w > 0 and h > 0 and inside
