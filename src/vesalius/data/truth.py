"""The truth of a case for segmentation: a label map on the grid of its image, however it is stored.

A truth is brought to its image only by what loses nothing: axes are permuted and flipped, slices that a segmentation
object leaves out are filled with background. Anything that would need interpolation is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError, FileError, GeometryError, UsageError
from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.data.lattice import Placement, ends_text, placement, shape_text, steps_text
from vesalius.data.manifest import IMAGE, Manifest
from vesalius.data.mask_values import COLUMN, MaskValues, recoded, whole_values
from vesalius.data.truth_files import MaskFile, open_mask, open_member

MASK = "mask"


@dataclass(frozen=True)
class Source:
    """One file of the truth of a case, and what its values mean."""

    path: str
    values: MaskValues


def truth_paths(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """The files of the truth of each case, relative to the root; cases without truth are absent."""
    rows = _mask_rows(manifest)
    found: dict[str, list[str]] = {}
    for case, path in zip(rows["case_id"].tolist(), rows["path"].tolist(), strict=True):
        found.setdefault(str(case), []).append(str(path))
    return {case: tuple(paths) for case, paths in found.items()}


def sources_of(manifest: Manifest, case_id: str) -> tuple[Source, ...]:
    """The files of the truth of one case, in the order of their roles.

    Raises
    ------
    UsageError
        If the case has no truth, or there is no such case.
    DataError
        If the column ``mask_values`` holds something else than values.
    """
    rows = _mask_rows(manifest)
    rows = rows[rows["case_id"] == case_id]
    if rows.empty:
        known = bool((manifest.frame["case_id"] == case_id).any())
        raise UsageError(f"{manifest.root}: case {case_id!r} {'has no mask' if known else 'does not exist'}")
    texts = [str(text) for text in rows[COLUMN].fillna("")] if COLUMN in rows else [""] * len(rows)
    try:
        meanings = [MaskValues.parse(text) for text in texts]
    except ValueError as error:
        raise DataError(f"{manifest.root}: case {case_id!r}: column {COLUMN}: {error}; read the data again") from error
    paths = [str(path) for path in rows["path"]]
    return tuple(Source(path, meaning) for path, meaning in zip(paths, meanings, strict=True))


def _mask_rows(manifest: Manifest) -> pd.DataFrame:
    return manifest.frame[manifest.frame["role"].str.fullmatch(r"mask(_\d+)?")]


def open_truth(manifest: Manifest, case_id: str, image: Image) -> NDArray[Any]:
    """The truth of a case on the grid of its image.

    Parameters
    ----------
    image
        The case's image; only its grid and its name are looked at.

    Returns
    -------
    NDArray
        ``(Y, X)`` or ``(Z, Y, X)`` in uint8 or uint16 (uint16 or int32 for numbered objects). Where ``labels.regions``
        is given the values are those that the regions join. Structures that overlap freely (multilabel without
        regions) come as ``(R, *S)`` uint8 planes of 0 and 1, one per name.

    Raises
    ------
    UsageError
        If the case has no truth.
    FileError, GeometryError
        If the file is no label map, holds values that are no label, or lies elsewhere than the image.
    """
    labels = manifest.labels
    if manifest.task != "segment" or labels is None:
        raise UsageError(f"{manifest.root}: the data answer task {manifest.task}; masks belong to task segment")
    sources = sources_of(manifest, case_id)
    free = labels.multilabel and not labels.regions
    first = open_mask(manifest.root / sources[0].path, image.grid, labels)
    if len(sources) == 1 and not first.overlap and not free:
        return on_image(named_values(first, sources[0].values, labels), first, image)
    # One file after the other: a hundred organs of a CT would not fit into memory at once.
    files = (
        (first if place == 0 else open_mask(manifest.root / source.path, image.grid, labels), source.values)
        for place, source in enumerate(sources)
    )
    if labels.instances:
        return _numbered(files, len(sources), image)
    if labels.regions:
        raise FileError(
            first.path,
            found=f"one of {len(sources)} files" if len(sources) > 1 else "segments that overlap",
            expected="one label map with the values that the regions join",
            do="write one label map per case",
        )
    if not free:
        return _merged(files, image, labels)
    planes = np.zeros((len(labels), *image.grid.shape), dtype=np.uint8)
    for file, meaning in files:
        for index, shown in _structures(file, meaning, image, labels):
            planes[index] |= shown
    return planes


Files = Iterable[tuple[MaskFile, MaskValues]]


def _numbered(files: Files, count: int, image: Image) -> NDArray[Any]:
    """Numbered objects of one file each; where two share a pixel the later one shows."""
    out = np.zeros(image.grid.shape, dtype=np.uint16 if count < 1 << 16 else np.int32)
    for number, (file, meaning) in enumerate(files, 1):
        out[on_image(np.any(file.pixels > 0, axis=0, keepdims=True)[0], file, image)] = meaning.every or number
    return out


def _merged(files: Files, image: Image, labels: Labels) -> NDArray[Any]:
    """One label map from structures that exclude each other.

    Raises
    ------
    FileError
        If two of them share a voxel.
    """
    merged = np.zeros(image.grid.shape, dtype=np.uint8 if len(labels) < 1 << 8 else np.uint16)
    for file, meaning in files:
        for index, shown in _structures(file, meaning, image, labels):
            before = merged[shown]
            both = int(np.count_nonzero((before > 0) & (before != index)))
            if both:
                raise FileError(
                    file.path,
                    found=f"{labels.names[index]!r} in {both} voxels that show another structure",
                    expected="one label per voxel, as in the other masks",
                    do="correct the masks",
                )
            merged[shown] = index
    return merged


def _structures(
    mask: MaskFile, meaning: MaskValues, image: Image, labels: Labels
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """(index among the names, where it is on the image) of every structure that a file shows."""
    shift = 1 if labels.multilabel else 0
    if meaning.every is not None:
        shown = np.zeros(mask.pixels.shape[1:], dtype=np.bool_)
        for channel in mask.pixels:
            shown |= whole_values(channel, mask.path) > 0
        yield meaning.every, on_image(shown, mask, image)
        return
    if mask.overlap:
        for value, channel in zip(mask.segments, mask.pixels, strict=True):
            index = meaning.values.get(value) if meaning.values else value - shift
            if index is None:
                continue  # a region of a structure set that encloses nothing is no class, nor is a replaced outline
            if not 0 <= index < len(labels):
                raise FileError(
                    mask.path,
                    found=f"segment {value}",
                    expected=f"one of {_values_text(labels)}",
                    do="read the data set again",
                )
            yield index, on_image(channel > 0, mask, image)
        return
    if meaning.values:
        # 0 is the index of a structure where labels overlap, but no segment of a file: the values are looked for.
        values = on_image(whole_values(mask.pixels[0], mask.path), mask, image)
        for value, index in meaning.values.items():
            if index or shift:
                yield index, values == value
        return
    values = on_image(named_values(mask, meaning, labels), mask, image)
    for index in range(1 - shift, len(labels)):
        yield index, values == index + shift


def on_image(values: NDArray[Any], mask: MaskFile, image: Image, kind: str = "mask") -> NDArray[Any]:
    """`values` ``(*S)`` of a mask (or of what `kind` calls it) on the grid of its image.

    Raises
    ------
    GeometryError
        If the mask lies on another lattice.
    """
    place = placement(mask.grid, image.grid, inside=mask.partial)
    if isinstance(place, Placement):
        return place.apply(values, image.grid.shape)
    name = image.source or "the image"
    if place == "shape":
        flat = (mask.grid.ndim == 2 or 1 in mask.grid.shape) and image.grid.ndim == 3 and min(image.grid.shape) > 1
        raise GeometryError(
            mask.path,
            found=f"{'one slice' if flat else 'shape'} {shape_text(mask.grid)}",
            expected=f"that of the image {name}, {shape_text(image.grid)}",
            do=f"pair each image with its own {kind}, or resample the {kind} to the image",
        )
    raise GeometryError(
        mask.path,
        found=f"another place, direction or spacing ({steps_text(mask.grid)} mm{ends_text(mask.grid)})",
        expected=f"that of the image {name} ({steps_text(image.grid)} mm{ends_text(image.grid)})",
        do=f"resample the {kind} to the image",
    )


def named_values(mask: MaskFile, meaning: MaskValues, labels: Labels) -> NDArray[Any]:
    """The label map of a mask on its own grid, with the values of `labels`.

    Raises
    ------
    FileError
        If a value is no whole number or no label.
    """
    values = _decoded(mask, meaning)
    if labels.instances:
        return values.astype(np.uint16 if not values.size or int(values.max()) < 1 << 16 else np.int32, copy=False)
    highest = int(values.max()) if values.size else 0
    top = max(map(max, labels.regions)) if labels.regions else len(labels) - (0 if labels.multilabel else 1)
    if highest > top or labels.regions:
        known = {value for region in labels.regions for value in region} if labels.regions else set(range(top + 1))
        known |= {0} | ({labels.ignore} if labels.ignore is not None else set())
        strange = [int(value) for value in np.unique(values).tolist() if int(value) not in known]
        if strange:
            raise FileError(
                mask.path,
                found=f"the value{'s' if len(strange) > 1 else ''} {', '.join(map(str, strange[:5]))}",
                expected=f"those of the labels, {_values_text(labels)}",
                do="correct the mask, or name the value among the labels",
            )
    return values.astype(np.uint8 if highest < 1 << 8 else np.uint16, copy=False)


def _decoded(mask: MaskFile, meaning: MaskValues) -> NDArray[Any]:
    """Whole values ``(*S)`` after the meaning that was settled for the data set."""
    if mask.coloured:
        if not meaning.colours:
            raise FileError(
                mask.path,
                found="a mask in colour",
                expected="one channel of label values, as in the other masks",
                do="write label values, or read the data set again",
            )
        values, unknown = recoded(mask.pixels[0], meaning.colours)
        names = [f"#{value:06x}" for value in unknown]
    else:
        values = whole_values(mask.pixels[0], mask.path)
        if meaning.every is not None:
            return np.where(values > 0, meaning.every, 0).astype(np.int64)
        if meaning.bright is not None:
            return np.where(values >= 128, meaning.bright, 0).astype(np.int64)
        if meaning.colours and not meaning.values:  # a coloured mask that shows nothing is often saved as gray
            values = values.astype(np.int64) * 0x010101
            values, unknown = recoded(values, meaning.colours)
            names = [f"#{value:06x}" for value in unknown]
        elif meaning.values:
            values, unknown = recoded(values, {0: 0, **meaning.values})
            names = [str(value) for value in unknown]
        else:
            return values
    if unknown:
        settled = [f"#{value:06x}" for value in meaning.colours] or [str(value) for value in meaning.values]
        raise FileError(
            mask.path,
            found=f"the value{'s' if len(names) > 1 else ''} {', '.join(names[:5])}",
            expected=f"those found in the other masks, {', '.join(settled[:12])}",
            do="correct the mask, or read the data set again",
        )
    return values


def _values_text(labels: Labels) -> str:
    if labels.regions:
        named = ", ".join(f"{list(values)} {name}" for name, values in zip(labels.names, labels.regions, strict=True))
    else:
        first = 1 if labels.multilabel else 0
        named = ", ".join(f"{value} {name}" for value, name in list(enumerate(labels.names, first))[:8])
        named += f" and {len(labels) - 8} more" if len(labels) > 8 else ""
    return named + (f", {labels.ignore} ignored" if labels.ignore is not None else "")


def label_counts(truth: NDArray[Any], labels: Labels) -> dict[str, int]:
    """Voxels of each structure in a truth as `open_truth` gives it; ignored voxels count for none.

    Parameters
    ----------
    truth
        ``(*S)``, or ``(R, *S)`` planes for labels that overlap freely.

    Returns
    -------
    dict
        One number per name of ``labels.structures``; for numbered objects the voxels of all of them.
    """
    if labels.multilabel and not labels.regions:
        if len(truth) != len(labels):
            raise ValueError(f"expected {len(labels)} planes, got shape {truth.shape}")
        return {name: int(np.count_nonzero(plane)) for name, plane in zip(labels.names, truth, strict=True)}
    if labels.instances:
        return {labels.names[1]: int(np.count_nonzero(truth))}
    values, counts = np.unique(truth, return_counts=True)
    of = dict(zip(values.tolist(), counts.tolist(), strict=True))
    if labels.regions:
        return {
            n: sum(of.get(v, 0) for v in set(region)) for n, region in zip(labels.names, labels.regions, strict=True)
        }
    return {name: int(of.get(index, 0)) for index, name in enumerate(labels.names) if index}


def region_planes(truth: NDArray[Any], labels: Labels) -> NDArray[np.uint8]:
    """``(R, *S)`` planes of 0 and 1, one per name of ``labels.structures``, from a truth as `open_truth` gives it."""
    if labels.multilabel and not labels.regions:
        return truth.astype(np.uint8, copy=False)
    if labels.instances:
        return (truth > 0).astype(np.uint8)[None]
    joined = labels.regions or tuple((index,) for index in range(1, len(labels)))
    return np.stack([np.isin(truth, values) for values in joined]).astype(np.uint8)


def open_case_image(manifest: Manifest, case_id: str) -> Image:
    """The image of a case with all of its channels (roles ``image``, ``image_1``...), on the grid of the first.

    Raises
    ------
    UsageError
        If there is no such case.
    GeometryError
        If the channels lie on different lattices.
    """
    rows = manifest.frame[(manifest.frame["case_id"] == case_id)]
    rows = rows[rows["role"].str.fullmatch(r"image(_\d+)?")]
    if rows.empty:
        raise UsageError(f"{manifest.root}: case {case_id!r} does not exist")
    roles = [str(role) for role in rows["role"]]
    order = sorted(range(len(roles)), key=lambda row: int(roles[row][len(IMAGE) + 1 :] or 0))
    return open_channels([manifest.root / str(rows["path"].iloc[row]) for row in order])


def open_channels(paths: Sequence[str | Path]) -> Image:
    """The files of one case as one image, a channel (or several) each, on the grid of the first.

    Raises
    ------
    GeometryError
        If they lie on different lattices.
    """
    images = [open_member(path) for path in paths]
    first = images[0]
    if len(images) == 1:
        return first
    planes = [first.pixels]
    for other in images[1:]:
        file = MaskFile(other.source, other.grid, other.pixels)
        planes.append(np.stack([on_image(channel, file, first, "channel") for channel in other.pixels]))
    pixels = np.concatenate(planes)
    return Image(first.grid, pixels, first.unit, (), first.record, first.meta, first.source)
