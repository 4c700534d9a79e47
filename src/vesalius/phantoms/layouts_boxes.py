"""Boxes in pictures: COCO, Pascal VOC and YOLO.

Boxes of phantoms are pixel edges (pixel i covers i to i + 1), which COCO and YOLO mean too; VOC counts pixels from 1
and includes the last (VOC2012 development kit, section 4.1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from vesalius.core.files import write_json, write_text
from vesalius.phantoms.cohort import SPLITS, Cohort, flat_cohort, names_seen, write_image
from vesalius.phantoms.phantom import Phantom


def write_coco(cohort: Cohort, folder: Path) -> None:
    """``images/[split/]`` and ``annotations/instances[_split].json``; kinds with an instance map add masks as RLE."""
    flat_cohort(cohort, "coco")
    images: dict[str, list[dict[str, Any]]] = {}
    seen: dict[str, list[dict[str, Any]]] = {}
    number = 0
    for index, (phantom, split) in enumerate(cohort, start=1):
        path = write_image(phantom, folder / "images" / split, phantom.case.case_id)
        height, width = phantom.case.image().grid.shape
        images.setdefault(split, []).append({"id": index, "file_name": path.name, "width": width, "height": height})
        for annotation in _annotations(phantom):
            number += 1
            seen.setdefault(split, []).append({"id": number, "image_id": index, **annotation})
    names = names_seen([[one["name"] for one in rows] for rows in seen.values()])
    for split, entries in images.items():
        rows = [{**one, "category_id": names.index(one["name"]) + 1} for one in seen.get(split, [])]
        for row in rows:
            del row["name"]
        content = {
            "info": {"description": f"Vesalius {cohort.kind} phantoms"},
            "images": entries,
            "annotations": rows,
            "categories": [{"id": place, "name": name} for place, name in enumerate(names, start=1)],
        }
        write_json(folder / "annotations" / f"instances{f'_{split}' if split else ''}.json", content)


def _annotations(phantom: Phantom) -> list[dict[str, Any]]:
    """Name, bbox (x, y, width, height), area, and the mask where single objects are known."""
    instances = phantom.layers.get("instances")
    rows = []
    for place, (box, name) in enumerate(zip(phantom.boxes, phantom.box_names, strict=True), start=1):
        y0, x0, y1, x1 = (float(edge) for edge in box)
        row: dict[str, Any] = {"name": name, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
        if instances is None:
            rows.append({**row, "area": (x1 - x0) * (y1 - y0)})
        else:
            mine = instances == place
            rows.append({**row, "area": int(mine.sum()), "segmentation": run_lengths(mine)})
    return rows


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask ``(Y, X)`` as COCO's uncompressed RLE: lengths of runs down the columns, beginning with zeros."""
    flat = mask.ravel(order="F").astype(np.int8)
    turns = np.flatnonzero(np.diff(flat, prepend=0)) if flat.size else np.zeros(0, dtype=int)
    ends = np.concatenate([[0], turns, [flat.size]])
    return {"size": list(mask.shape), "counts": np.diff(ends).tolist()}


def write_voc(cohort: Cohort, folder: Path) -> None:
    """``JPEGImages`` (PNG, without loss), ``Annotations``, and lists in ``ImageSets/Main`` if there are splits."""
    flat_cohort(cohort, "voc")
    lists: dict[str, list[str]] = {name: [] for name in SPLITS}
    names = []
    for phantom, split in cohort:
        stem = phantom.case.case_id
        path = write_image(phantom, folder / "JPEGImages", stem)
        write_text(folder / "Annotations" / f"{stem}.xml", _voc_xml(phantom, path.name))
        names.append(phantom.box_names)
        if split:
            lists[split].append(stem)
    names_seen(names)
    for split, stems in lists.items():
        if stems:
            write_text(folder / "ImageSets" / "Main" / f"{split}.txt", "\n".join(stems) + "\n")


def _voc_xml(phantom: Phantom, file_name: str) -> str:
    """Corners as whole pixels, counted from 1, that hold the box."""
    pixels = phantom.case.image().pixels
    lines = [
        "<annotation>",
        f"  <folder>JPEGImages</folder><filename>{escape(file_name)}</filename>",
        f"  <size><width>{pixels.shape[2]}</width><height>{pixels.shape[1]}</height>"
        f"<depth>{pixels.shape[0]}</depth></size>",
    ]
    for box, name in zip(phantom.boxes, phantom.box_names, strict=True):
        y0, x0 = (int(edge) + 1 for edge in np.floor(box[:2]))
        y1, x1 = (int(edge) for edge in np.ceil(box[2:]))
        corners = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        lines.append(f"  <object><name>{escape(name)}</name><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


def write_yolo(cohort: Cohort, folder: Path) -> None:
    """``images/[split/]``, ``labels/[split/]`` with ``class x y width height`` in parts of the picture, data.yaml."""
    flat_cohort(cohort, "yolo")
    kept: list[tuple[str, str, tuple[str, ...], NDArray[np.float64]]] = []
    for phantom, split in cohort:
        write_image(phantom, folder / "images" / split, phantom.case.case_id)
        height, width = phantom.case.image().grid.shape
        sides = np.array([height, width, height, width], dtype=np.float64)
        kept.append((split, phantom.case.case_id, phantom.box_names, phantom.boxes / sides))
    names = names_seen([one[2] for one in kept])
    for split, stem, mine, boxes in kept:
        lines = [
            f"{names.index(name)} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}\n"
            for name, (y0, x0, y1, x1) in zip(mine, boxes, strict=True)
        ]
        write_text(folder / "labels" / split / f"{stem}.txt", "".join(lines))
    parts = [f"{split}: images/{split}".rstrip("/") for split in dict.fromkeys(one[0] for one in kept) if split]
    text = ["path: .", *(parts or ["train: images"]), f"nc: {len(names)}", "names:", *(f"  - {name}" for name in names)]
    write_text(folder / "data.yaml", "\n".join(text) + "\n")
