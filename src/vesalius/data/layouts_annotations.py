"""Boxes in one small file per image: Pascal VOC and YOLO."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from vesalius.core.errors import DataError, UnreadableFile
from vesalius.core.labels import Labels
from vesalius.core.progress import track
from vesalius.data.found import Ask, Found, some
from vesalius.data.layouts_folders import IMAGE_FOLDERS, pair_key, split_of_path
from vesalius.data.listing import Listing, stem_of
from vesalius.data.naming import SPLITS, canonical_split, order_classes
from vesalius.data.problem import Problem

_MOST_BYTES = 1 << 24


@dataclass
class _Boxes:
    """What is seen while the files are read."""

    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, image: str, truth: str, names: list[str], split: str) -> None:
        """One image and its file of boxes."""
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + 1
        label = "|".join(sorted(set(names)))
        case = stem_of(image)
        self.rows += [(case, image, "image", label, split), (case, truth, "boxes", label, split)]

    def report(self) -> list[Problem]:
        """Each odd box by name, up to a handful."""
        shown = [Problem("warning", text.split(":")[0], text.partition(": ")[2]) for text in self.odd[:8]]
        if len(self.odd) > len(shown):
            shown.append(
                Problem("warning", "", f"{len(self.odd) - len(shown)} more boxes are empty or outside their image")
            )
        return [*self.problems, *shown]

    def found(
        self, ask: Ask, layout: str, reason: str, names: tuple[str, ...] | None = None, split_source: str = "none"
    ) -> Found:
        """The rows as a data set for detection."""
        names = names or tuple(sorted(order_classes(self.counts)[0]))
        if not names:
            raise DataError(
                f"no file of boxes names a class ({len(self.rows) // 2} were read); expected at least one box"
            )
        total = ", ".join(f"{self.counts.get(name, 0)} {name}" for name in names[:6])
        frame = pd.DataFrame(self.rows, columns=["case_id", "path", "role", "label", "split"])
        return Found(
            frame,
            task=ask.require_task(layout, "detect"),
            labels=Labels(names, multilabel=True),
            multilabel=True,
            reason=f"{reason} ({total})",
            split_source=split_source,
            problems=tuple(self.report()),
        )


def voc(listing: Listing, ask: Ask) -> Found | None:
    """Pascal VOC: ``Annotations/*.xml``, images beside them, splits in ``ImageSets/Main``."""
    files = [path for path in listing.of("xml") if path.split("/")[-2:-1] == ["Annotations"]] or listing.of("xml")
    if not files or not listing.of("image") or not _is_voc(listing.root / files[0]):
        return None
    images = {stem_of(path.rpartition("/")[2]): path for path in listing.of("image")}
    splits, problems = _image_sets(listing)
    boxes = _Boxes(problems=problems)
    missing = []
    for path in track(files, ask.progress, "reading boxes", unit="files"):
        stem = stem_of(path.rpartition("/")[2])
        names, odd = _voc_objects(listing.root / path, path)
        boxes.odd += odd
        if stem in images:
            boxes.add(images[stem], path, names, splits.get(stem, ""))
        else:
            missing.append(path)
    if missing:
        raise DataError(
            f"{listing.root}: {len(missing)} of {len(files)} annotation files have no image, first {missing[0]}; "
            "expected an image of the same name; copy the images or remove the files"
        )
    listed = {stem_of(path.rpartition("/")[2]) for path in files}
    boxes.problems += some(
        [path for stem, path in sorted(images.items()) if stem not in listed],
        "images have no annotation file",
        "they are left out; an image without objects needs a file too",
    )
    boxes.problems += some(
        sorted(set(splits) - listed), "names in ImageSets have no annotation file", "they are left out"
    )
    return boxes.found(ask, "voc", f"{len(files)} Pascal VOC files", split_source="official" if splits else "none")


def _parse(path: Path) -> ElementTree.Element:
    try:
        text = path.read_bytes()
        if len(text) > _MOST_BYTES or b"<!ENTITY" in text:
            raise UnreadableFile(
                path,
                found="an oversized file or one that defines entities",
                expected="plain boxes",
                do="export it again",
            )
        # Entities, the way in which XML bites, were refused above.
        return ElementTree.fromstring(text)  # noqa: S314
    except (OSError, ElementTree.ParseError) as error:
        raise UnreadableFile(
            path, found=f"not readable as XML ({error})", expected="a Pascal VOC annotation", do="export it again"
        ) from error


def _is_voc(path: Path) -> bool:
    try:
        return _parse(path).tag == "annotation"
    except UnreadableFile:
        return "Annotations" in path.parts


def _voc_objects(path: Path, name: str) -> tuple[list[str], list[str]]:
    """Class of each box of a file, and the boxes that are no boxes."""
    root = _parse(path)
    try:
        width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
        names: list[str] = []
        odd: list[str] = []
        for thing in root.iter("object"):
            word = (thing.findtext("name") or "").strip()
            box = [float(thing.findtext(f"bndbox/{key}") or "nan") for key in ("xmin", "ymin", "xmax", "ymax")]
            if not word or any(number != number for number in box):  # noqa: PLR0124 - NaN marks a number that is absent
                raise ValueError(f"object {len(names) + 1} lacks a name or a corner")
            names.append(word)
            fault = box_fault(box, width, height)
            if fault:
                corners = ", ".join(f"{number:g}" for number in box)
                odd.append(f"{name}: box {len(names)} ({word}; {corners}) {fault}")
    except ValueError as error:
        raise UnreadableFile(
            path,
            found=str(error),
            expected="name, xmin, ymin, xmax and ymax per object",
            do="correct or remove the file",
        ) from error
    return names, odd


def box_fault(box: list[float], width: float, height: float) -> str:
    """What is wrong with corners (xmin, ymin, xmax, ymax) in an image of this size (0: unknown); "" if nothing."""
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return "has no area; it is left out"
    if x0 < 0 or y0 < 0 or (width and x1 > width) or (height and y1 > height):
        return f"leaves the image of {width:g}x{height:g}; it is cut at the border"
    return ""


def _image_sets(listing: Listing) -> tuple[dict[str, str], list[Problem]]:
    """Split by stem, from ``ImageSets/Main/{train,val,test}.txt``; ``trainval`` is their union and says nothing new."""
    splits: dict[str, str] = {}
    twice = []
    for path in listing.of("text"):
        parts = path.split("/")
        split = canonical_split(stem_of(parts[-1]))
        if "ImageSets" not in parts or split is None:
            continue
        for line in (listing.root / path).read_text(encoding="utf-8", errors="replace").splitlines():
            stem = line.split()[0] if line.split() else ""
            if stem and splits.setdefault(stem, split) != split:
                twice.append(stem)
    if twice:
        raise DataError(
            f"{listing.root}: {len(twice)} names stand in two lists of ImageSets, first {twice[0]!r}; expected "
            f"each in one of {', '.join(SPLITS)}; correct the lists"
        )
    return splits, []


def yolo(listing: Listing, ask: Ask) -> Found | None:
    """YOLO: ``images/...`` beside ``labels/...`` with one line ``class x y width height`` per box."""
    truths = {
        key: path
        for path in listing.of("text")
        if (key := pair_key(path, frozenset({"labels"}), truth=False)) is not None
    }
    pairs = [
        (path, truths[key])
        for path in listing.of("image")
        if (key := pair_key(path, IMAGE_FOLDERS, truth=False)) is not None and key in truths
    ]
    if not pairs:
        return None
    names, problems = _yolo_names(listing)
    boxes = _Boxes(problems=problems)
    rows = [
        (image, truth, *_yolo_boxes(listing.root / truth, truth))
        for image, truth in track(pairs, ask.progress, "reading boxes", unit="files")
    ]
    top = max((max(numbers, default=-1) for _, _, numbers, _ in rows), default=-1)
    if names is not None and top >= len(names):
        raise DataError(
            f"{listing.root}: a box has class {top}, but {len(names)} names are given ({list(names)[:6]}); "
            "expected one name per class; correct data.yaml"
        )
    if names is None:
        names = tuple(str(number) for number in range(max(top, 0) + 1))
    for image, truth, numbers, odd in rows:
        boxes.odd += odd
        boxes.add(image, truth, [names[number] for number in numbers], split_of_path(image))
    used = {image for image, _ in pairs}
    alone = [path for path in listing.of("image") if path not in used]
    boxes.problems += some(
        alone, "images have no file of boxes", "they are left out; an image without objects needs an empty .txt"
    )
    folder_splits = any(row[4] for row in boxes.rows)
    return boxes.found(ask, "yolo", f"{len(pairs)} YOLO files", names, "folder" if folder_splits else "none")


def _yolo_names(listing: Listing) -> tuple[tuple[str, ...] | None, list[Problem]]:
    """Class names from ``data.yaml`` or ``classes.txt``; None if nobody wrote them down."""
    import yaml

    for path in listing.of("yaml"):
        try:
            data: Any = yaml.safe_load((listing.root / path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UnreadableFile(
                listing.root / path,
                found=f"not readable as YAML ({type(error).__name__})",
                expected="a list `names`",
                do="correct it",
            ) from error
        names = data.get("names") if isinstance(data, dict) else None
        if isinstance(names, dict):
            return tuple(
                str(names.get(index, f"class {index}")) for index in range(max(map(int, names), default=-1) + 1)
            ), []
        if isinstance(names, list):
            return tuple(str(name) for name in names), []
    for path in listing.of("text"):
        if path.rpartition("/")[2] in ("classes.txt", "obj.names"):
            lines = (listing.root / path).read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip()), []
    return None, [Problem("note", "", "no data.yaml names the classes, so they are called by their numbers")]


def _yolo_boxes(path: Path, name: str) -> tuple[list[int], list[str]]:
    """Class of each line of a file, and the boxes that are no boxes."""
    numbers, odd = [], []
    for index, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        try:
            number = int(cells[0])
            places = [float(cell) for cell in cells[1:]]
        except ValueError:
            number, places = -1, []
        if number < 0 or not (len(places) == 4 or (len(places) >= 6 and len(places) % 2 == 0)):
            raise UnreadableFile(
                path,
                found=f"line {index} is {line[:40]!r}",
                expected="class, x, y, width and height (or a polygon), parts of the image between 0 and 1",
                do="correct it",
            )
        numbers.append(number)
        if len(places) == 4:
            x, y, w, h = places
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        else:
            box = [min(places[::2]), min(places[1::2]), max(places[::2]), max(places[1::2])]
        # Written with six digits, a box at the border may end at 1.000001.
        slack = [min(max(number, -1e-3), 1 + 1e-3) for number in box]
        if slack != box or box[2] <= box[0] or box[3] <= box[1]:
            odd.append(f"{name}: line {index} ({line[:40]}) has no area or leaves the image")
    return numbers, odd
