"""A first look: a few images of a data set, decoded to plan from, before any work is done on all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np

from vesalius.core.errors import DataError
from vesalius.core.progress import Progress, Silent
from vesalius.core.randomness import generator
from vesalius.data.fingerprint import Fingerprint, FingerprintBuilder, class_counts, imbalance
from vesalius.data.manifest import Manifest
from vesalius.data.prepare import split_item, with_channels

MOST_IMAGES = 200
MOST_VALUES = 400_000_000
"""A survey stops after this many pixel values: a dozen CT volumes tell as much as two hundred."""


def survey(
    manifest: Manifest, *, seed: int = 0, most: int = MOST_IMAGES, progress: Progress | None = None
) -> Fingerprint:
    """The fingerprint of up to `most` cases, drawn at random; intensities from cases that are not for the test.

    Raises
    ------
    DataError
        If none of the drawn images can be read.
    """
    cases = manifest.cases.reset_index(drop=True)
    progress = progress or Silent()
    builder = FingerprintBuilder(seed=seed)
    drawn = np.sort(generator(seed, "survey").permutation(len(cases))[:most])
    paths = cases["path"].to_numpy(dtype=object)
    seen: list[int] = []
    values, reason = 0, ""
    progress.start("survey", len(drawn), "images")
    for array, group in groupby(drawn.tolist(), key=lambda row: _array_of(str(paths[row]))):
        rows = list(group)
        if array:
            _look_at_items(builder, manifest, [str(paths[row]) for row in rows])
            seen += rows
            progress.advance(len(rows))
            continue
        for row in rows:
            progress.advance()
            if values >= MOST_VALUES:
                continue
            size, why = _look_at(builder, manifest, str(paths[row]))
            values, reason = values + size, reason or why
            seen += [row] if size else []
    progress.stop()
    if not seen:
        raise DataError(f"{manifest.root}: none of {len(drawn)} images can be read; the first: {reason}")
    found = builder.build(
        cases.iloc[seen],
        task=manifest.task,
        multilabel=bool(manifest.labels and manifest.labels.multilabel),
        known_patients=manifest.patient_source != "none",
    )
    # The images are a sample, the table is known whole.
    classes = class_counts(cases)
    return replace(
        found,
        cases=len(cases),
        patients=int(cases["patient_id"].nunique()),
        classes=classes,
        imbalance=imbalance(classes),
        splits={str(k): int(v) for k, v in cases["split"].value_counts().items()},
    )


def _array_of(path: str) -> str:
    """File and key of an item of an array file; "" for any other path."""
    return path.rpartition("/")[0] if "#" in path else ""


def _look_at(builder: FingerprintBuilder, manifest: Manifest, path: str) -> tuple[int, str]:
    from vesalius.io.open import open_image

    try:
        image = open_image(manifest.root / path)
    except DataError as error:
        return 0, str(error)
    builder.add(image)
    return image.pixels.size, ""


def _look_at_items(builder: FingerprintBuilder, manifest: Manifest, paths: list[str]) -> None:
    from vesalius.io.stacks import StackReader

    file, key, _ = split_item(paths[0])
    with StackReader(manifest.root / file, key) as reader:
        shape = reader.shape[1:]
        dims = 2 if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (3, 4)) else 3
        items = np.concatenate([reader.read(item, item + 1) for item in (split_item(p)[2] for p in paths)])
    builder.add_stack(with_channels(items, dims))
