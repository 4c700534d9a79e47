"""What an int8 conversion is calibrated on: network inputs of training cases, and of validation cases to judge by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vesalius.core.environment import available_cores, cache_folder
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.data.cases import prepare_cases
from vesalius.data.manifest import Manifest
from vesalius.data.patches import Patches
from vesalius.data.prepare import prepare
from vesalius.predict.bundle import Bundle
from vesalius.transforms.preprocess import Preprocess

IMAGES, TILES = 256, 48
"""Calibration inputs: images of a classifier, tiles of a segmentation; for judging a third of it."""

Arrays = list[NDArray[np.float32]]


def inputs(bundle: Bundle, plan: Plan, manifest: Manifest, progress: Progress) -> tuple[Arrays, Arrays]:
    """Inputs ``(1, C, *S)`` after preprocessing, spread over the training part, and over the validation part.

    Tiles are drawn as in training, so that half of those with structures show one.
    """
    parts = [manifest.with_frame(_part(manifest, split)) for split in ("train", "val")]
    make = _tiles if bundle.task == "segment" else _images
    found = [make(bundle, plan, part, most, progress) for part, most in zip(parts, _counts(bundle), strict=True)]
    return found[0], found[1]


def _part(manifest: Manifest, split: str) -> Any:
    """Rows of a split; of a run with folds, every other case is calibrated on and the rest judged by."""
    frame = manifest.frame
    if (frame["split"] == "val").any():
        return frame[frame["split"] == split]
    training = frame[frame["split"] == "train"]
    ids = sorted(training["case_id"].unique())
    chosen = set(ids[::2] if split == "train" else ids[1::2])
    return training[training["case_id"].isin(chosen)]


def _counts(bundle: Bundle) -> tuple[int, int]:
    most = TILES if bundle.task == "segment" else IMAGES
    return most, max(1, most // 3)


def _images(bundle: Bundle, plan: Plan, manifest: Manifest, most: int, progress: Progress) -> Arrays:
    preprocess = Preprocess.from_spec(bundle.preprocess)
    store = prepare(
        _spread(manifest, most), preprocess, cache=cache_folder(), workers=available_cores(), progress=progress
    )
    rows = np.flatnonzero(store.index["ok"].to_numpy(dtype=bool))
    pixels = preprocess.finish(torch.as_tensor(store.read(rows)))
    return [one[None].numpy().astype(np.float32) for one in pixels]


def _tiles(bundle: Bundle, plan: Plan, manifest: Manifest, most: int, progress: Progress) -> Arrays:
    store = prepare_cases(
        _spread(manifest, most),
        bundle.preprocess,
        cache=cache_folder(),
        workers=available_cores(),
        progress=progress,
    )
    rows = np.flatnonzero(store.index["ok"].to_numpy(dtype=bool))
    patches = Patches(
        store,
        rows,
        size=1,
        seed=int(plan["run.seed"]),
        patch=plan["model.patch"],
        foreground=0.5,
        outside=0 if bundle.labels.ignore is None else bundle.labels.ignore,
    )
    return [np.asarray(batch.pixels, dtype=np.float32) for batch in patches.stream(0, most)]


def _spread(manifest: Manifest, most: int) -> Manifest:
    """About `most` cases, spread over the list, which is often sorted by class or site."""
    ids = manifest.cases["case_id"].tolist()
    step = max(1, len(ids) // most)
    chosen = set(ids[::step][:most])
    return manifest.with_frame(manifest.frame[manifest.frame["case_id"].isin(chosen)])
