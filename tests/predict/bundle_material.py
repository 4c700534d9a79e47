"""A bundle made by hand, with networks that say something."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from vesalius.core.labels import Labels
from vesalius.models.factory import Classifier, Shape, build_encoder
from vesalius.predict.bundle import Bundle
from vesalius.transforms.preprocess import Preprocess

SIDE = 18
SPEC = {"dims": 2, "size": [SIDE, SIDE], "normalise": {"kind": "fixed", "mean": [120.0], "std": [50.0]}}
NAMES = ("no", "maybe", "yes")


def network(seed: int, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Classifier(build_encoder("lean", Shape(dims=2, inputs=1, size=(SIDE, SIDE), width=8)), classes)
        with torch.no_grad():
            for value in made.parameters():
                value.add_(0.1 * torch.randn_like(value))
            for part in made.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_(0, 0.2)
                    part.running_var.uniform_(0.5, 2)
    return made.eval()


def bundle(members: int = 1, names: tuple[str, ...] = NAMES, **options) -> Bundle:
    spec = Preprocess.from_spec(SPEC).spec
    labels = options.pop("labels", Labels(names))
    states = [network(seed, len(labels)).state_dict() for seed in range(members)]
    return Bundle(
        task="classify", labels=labels, preprocess=spec, model={"name": "lean", "width": 8}, members=states, **options
    )


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)


def write_pictures(folder, values, stem="p"):
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, picture in enumerate(values):
        paths.append(folder / f"{stem}{index:02d}.png")
        Image.fromarray(picture).save(paths[-1])
    return paths
