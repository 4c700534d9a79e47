"""MedMNIST array files: ``train_images``, ``train_labels`` and so on in one ``.npz``."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError, FileError, UnreadableFile, UsageError
from vesalius.core.labels import Labels
from vesalius.data.found import Ask, Found
from vesalius.data.listing import Listing
from vesalius.data.naming import SPLITS
from vesalius.data.problem import Problem

# (images, labels) per split: MedMNIST's own names, then those of Keras' mnist.npz.
_KEYS = {split: ((f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")) for split in SPLITS}
_MOST_LABEL_BYTES = 1 << 28


def arrays_in(listing: Listing, ask: Ask) -> Found | None:
    """The only array file of a folder that holds nothing else to look at.

    Raises
    ------
    UsageError
        If there are several.
    """
    paths = listing.of("arrays")
    if not paths or listing.pixels:
        return None
    if len(paths) > 1:
        raise UsageError(
            f"{listing.root}: {len(paths)} array files ({', '.join(paths[:4])}) are as many data sets; give "
            f"one of them, for example {listing.root / paths[0]}"
        )
    return read_arrays(listing.root / paths[0], ask, root=listing.root)


def read_arrays(path: Path, ask: Ask, *, root: Path | None = None) -> Found:
    """Rows of a MedMNIST file, with its official splits.

    Only the headers of the image arrays are read; labels are read whole.

    Raises
    ------
    UnreadableFile
        If it is no such archive.
    DataError
        If images and labels of a split do not belong together.
    """
    root = path.parent if root is None else root
    shapes = _shapes(path)
    parts, kinds = [], {}
    for split in SPLITS:
        for images, truths in _KEYS[split]:
            if images in shapes:
                truth = _labels(path, truths, shapes, images)
                kinds[split] = truth
                parts.append(_rows(path.relative_to(root).as_posix(), images, split, truth))
                break
    if not parts:
        raise UnreadableFile(
            path,
            found=f"arrays {sorted(shapes)[:6]}",
            expected="train_images, train_labels and so on as in MedMNIST",
            do="rename the arrays, or write one file per image",
        )
    widths = {truth.shape[1] for truth in kinds.values()}
    if len(widths) != 1:
        raise DataError(
            f"{path}: labels have {sorted(widths)} columns in different splits; expected the same number in "
            "each; correct the file"
        )
    width = widths.pop()
    labels = Labels(tuple(str(index) for index in range(width)), multilabel=True) if width > 1 else None
    published = "train" in kinds and "test" in kinds
    problems = () if published else (Problem("note", "", f"the file has only {' and '.join(kinds)}"),)
    return Found(
        pd.concat(parts, ignore_index=True),
        task=ask.require_task("medmnist", "classify"),
        labels=labels,
        multilabel=width > 1,
        reason=f"{path.name} holds arrays of images and labels for {', '.join(kinds)}",
        split_source="official",
        published=published,
        problems=problems,
        root=root,
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each array, from its header."""
    found: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(file)
                if dtype.hasobject:
                    raise UnreadableFile(
                        path,
                        found=f"array {name} of Python objects",
                        expected="numbers",
                        do="save it again without pickled objects",
                    )
                found[name.removesuffix(".npy")] = shape
    except FileNotFoundError:
        raise FileError(path, found="there is no such file", do="check the path") from None
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UnreadableFile(
            path,
            found=f"not readable as an array file ({error})",
            expected="an .npz archive of numeric arrays",
            do="copy or download it again",
        ) from error
    return found


def _labels(path: Path, key: str, shapes: dict[str, tuple[int, ...]], images: str) -> NDArray[Any]:
    """Labels as ``(N, columns)`` integers that fit the images."""
    if key not in shapes:
        raise DataError(f"{path}: array {images} has no {key}; expected both; correct the file")
    if shapes[key][:1] != shapes[images][:1] or len(shapes[key]) > 2:
        raise DataError(
            f"{path}: {images} has shape {shapes[images]} but {key} {shapes[key]}; expected one label per "
            "image; correct the file"
        )
    if np.prod(shapes[key], dtype=np.int64) * 8 > _MOST_LABEL_BYTES:
        raise DataError(
            f"{path}: {key} has shape {shapes[key]}; expected class labels, not whole images; correct the file"
        )
    with np.load(path, allow_pickle=False) as archive:
        values = archive[key]
    whole = values.reshape(len(values), -1)
    if whole.dtype.kind not in "iub" and not (whole.dtype.kind == "f" and np.array_equal(whole, np.floor(whole))):
        raise DataError(f"{path}: {key} holds {whole.dtype} values that are no class numbers; expected whole numbers")
    return whole.astype(np.int64)


def _rows(name: str, images: str, split: str, truth: NDArray[Any]) -> pd.DataFrame:
    count, width = truth.shape
    if width == 1:
        labels = [str(value) for value in truth[:, 0].tolist()]
    else:
        if not np.isin(truth, (0, 1)).all():
            raise DataError(
                f"{name}: the {width} label columns of {split} hold {np.unique(truth)[:5].tolist()}; expected "
                "0 and 1 per class"
            )
        labels = ["|".join(str(index) for index in np.flatnonzero(row)) for row in truth]
    return pd.DataFrame(
        {
            "case_id": [f"{split}-{index:05d}" for index in range(count)],
            "path": [f"{name}#{images}/{index}" for index in range(count)],
            "label": labels,
            "split": split,
        }
    )
