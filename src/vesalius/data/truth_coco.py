"""Masks of COCO annotations: polygons and run lengths (https://cocodataset.org/#format-data) as a label map."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import FileError
from vesalius.core.geometry import Grid
from vesalius.core.labels import Labels


def coco_mask(path: Path, image_id: str, grid: Grid, labels: Labels) -> NDArray[Any]:
    """``(Y, X)`` label map of one image; of annotations that overlap the later one shows.

    Parameters
    ----------
    image_id
        The ``id`` of the image in the file.
    grid
        Of the image: a picture.

    Raises
    ------
    FileError
        If an annotation is broken or made for a picture of another size.
    """
    if grid.ndim != 2:
        raise FileError(path, found="annotations of a volume", expected="a picture", do="give label maps for volumes")
    categories, by_image, sizes = _annotations(str(path), path.stat().st_mtime_ns)
    out = np.zeros(grid.shape, dtype=np.uint8 if len(labels) < 1 << 8 else np.uint16)
    size = sizes.get(image_id)
    if size is not None and None not in size and size != grid.shape:
        raise FileError(
            path,
            found=f"image {image_id} of {size[0]}x{size[1]} pixels",
            expected=f"the size of the picture, {grid.shape[0]}x{grid.shape[1]}",
            do="correct the annotations",
        )
    index = {name: place for place, name in enumerate(labels.names)}
    for entry in by_image.get(image_id, ()):
        name = categories.get(entry.get("category_id"))
        if name not in index:
            continue  # discover has told which annotations name no category
        try:
            shown = _shown(entry.get("segmentation"), (grid.shape[0], grid.shape[1]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise FileError(
                path,
                found=f"annotation {entry.get('id')} with a broken segmentation ({error})",
                expected="polygons [x, y, ...] or run lengths with counts and size",
                do="export it again",
            ) from error
        out[shown] = index[name]
    return out


@lru_cache(maxsize=2)
def _annotations(
    path: str, changed: int
) -> tuple[dict[Any, str], dict[str, list[dict[str, Any]]], dict[str, tuple[Any, Any]]]:
    """Category names, annotations by image and sizes; `changed` makes a file that was rewritten another one."""
    from vesalius.data.layouts_json import load

    data = load(Path(path))
    by_image: dict[str, list[dict[str, Any]]] = {}
    for entry in data.get("annotations", ()):
        by_image.setdefault(str(entry.get("image_id")), []).append(entry)
    names = {entry.get("id"): str(entry.get("name")) for entry in data.get("categories", ())}
    sizes = {str(one.get("id")): (one.get("height"), one.get("width")) for one in data.get("images", ())}
    return names, by_image, sizes


def _shown(given: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    from vesalius.io.rtstruct import inside

    if isinstance(given, dict):
        height, width = (int(side) for side in given["size"])
        if (height, width) != shape:
            raise ValueError(f"run lengths of {height}x{width} pixels")
        counts = given["counts"]
        return _run_lengths(_unpacked(counts) if isinstance(counts, str) else [int(one) for one in counts], shape)
    out = np.zeros(shape, dtype=np.bool_)
    for ring in given or ():
        points = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
        # COCO counts from the corner of the first pixel, indices from its centre.
        out |= inside([points[:, ::-1] - 0.5], shape)
    return out


def _run_lengths(counts: list[int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Runs of 0 and 1 in turn, down the columns."""
    if min(counts, default=0) < 0 or sum(counts) != shape[0] * shape[1]:
        raise ValueError(f"run lengths of {sum(counts)} pixels for {shape[0]}x{shape[1]}")
    values = np.arange(len(counts)) % 2 == 1
    return np.asarray(np.repeat(values, counts).reshape(shape[1], shape[0]).T)


def _unpacked(text: str) -> list[int]:
    """Counts packed as text: five bits a letter from ASCII 48, a sixth for more to come.

    From the fourth on each count is the difference to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text.encode("ascii"):
        bits = letter - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the letter {chr(letter)!r} in packed run lengths")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("packed run lengths end in the middle of a number")
    return counts
