"""Small cohorts of real files for the tests of prepared data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vesalius.core.labels import Labels
from vesalius.data.manifest import Manifest
from vesalius.transforms.preprocess import Preprocess

SIDE = 20


def pictures(count: int, *, seed: int = 0, shape: tuple[int, ...] = (SIDE, SIDE)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def png_folder(root: Path, values: np.ndarray) -> Manifest:
    root.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(values):
        Image.fromarray(picture).save(root / f"p{index:03d}.png")
    return manifest_of(root, [f"p{index:03d}.png" for index in range(len(values))])


def manifest_of(root: Path, paths: list[str]) -> Manifest:
    frame = pd.DataFrame(
        {
            "case_id": [f"c{index}" for index in range(len(paths))],
            "patient_id": "",
            "path": paths,
            "label": ["no" if index % 2 else "yes" for index in range(len(paths))],
        }
    )
    return Manifest(root=root, frame=frame, layout="table", task="classify", labels=Labels(("no", "yes")))


def plain(side: int = SIDE, **changes) -> Preprocess:
    """A preprocessing that keeps every pixel of a picture of that side as it is."""
    return Preprocess.from_spec({"dims": 2, "size": [side, side], **changes})
