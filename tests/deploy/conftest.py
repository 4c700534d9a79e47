"""Bundles with random weights that say something, and the files they are asked about."""

import os

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.core.errors import UsageError
from vesalius.core.labels import Labels
from vesalius.core.progress import Silent
from vesalius.deploy import web_runtime
from vesalius.deploy.chromium import Browser, find_browser
from vesalius.models.factory import Classifier, Shape, build_encoder
from vesalius.predict.bundle import Bundle
from vesalius.tasks.segment import Segment
from vesalius.transforms.preprocess import Preprocess


def stirred(network, seed=0):
    """Weights and running statistics away from their start, so that every layer matters."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 2)
    return network.eval()


def classifier(folder, *, dims=2, channels=1, members=1, names=("no", "maybe", "yes"), labels=None, **spec):
    """A saved bundle of classification."""
    side = [18] * dims if dims == 2 else [10, 12, 14]
    plain = {"dims": dims, "size": side, "channels": channels,
             "normalise": {"kind": "fixed", "mean": [120.0], "std": [50.0]}}  # fmt: skip
    options = {key: spec.pop(key) for key in ("temperature", "threshold", "views") if key in spec}
    labels = labels or Labels(names)
    states = []
    for seed in range(members):
        encoder = build_encoder("lean", Shape(dims=dims, inputs=channels, size=tuple(side), width=8))
        states.append(stirred(Classifier(encoder, len(labels)), seed).state_dict())
    made = Bundle("classify", labels, Preprocess.from_spec(plain | spec).spec, {"name": "lean", "width": 8}, states,
                  **options)  # fmt: skip
    made.save(folder)
    return folder


def segmenter(
    folder, labels, *, dims=3, channels=1, members=1, norm="batch", model=None, spec=None, views=None, **inference
):
    """A saved bundle of segmentation whose classes all win somewhere; `model`: another network than a small U-Net."""
    model = model or {"name": "unet", "features": [4, 8], "strides": [[1] * dims, [2] * dims], "patch": [16] * dims}
    model = {"norm": norm} | model
    states = []
    for seed in range(members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Segment(labels).network(model, dims=dims, inputs=channels, size=model["patch"])
        network = stirred(network, seed)
        x = torch.randn(1, channels, *model["patch"], generator=torch.Generator().manual_seed(seed))
        levelled(network, x)
        states.append(network.state_dict())
    plain = {"dims": dims, "channels": channels, "orient": True, "crop": "none", "spacing_mm": None, "scale": 1.0,
             "window": None, "normalise": {"kind": "body" if dims == 3 else "percentile"}}  # fmt: skip
    tile = {"patch": model["patch"], "overlap": 0.5, "slack": 0.4, "batch": 2}
    made = Bundle("segment", labels, plain | (spec or {}), model, states, views=views or [[]],
                  inference={"tile": tile, "backend": "torch"} | inference)  # fmt: skip
    made.save(folder)
    return folder


@torch.no_grad()
def levelled(network, x):
    """Outputs of the last layer get zero mean and equal spread."""
    parts = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)]
    head = next(p for p in reversed(parts) if p.out_channels == network(x).shape[1] and p.bias is not None)
    axes = [0, *range(2, x.ndim)]
    spread = network(x).std(axes)
    head.weight.mul_((3 / spread).view(-1, *(1,) * (x.ndim - 1)))
    head.bias.mul_(3 / spread)
    head.bias.sub_(network(x).mean(axes))


@pytest.fixture(scope="session")
def make_classifier():
    return classifier


@pytest.fixture
def make_segmenter():
    return segmenter


@pytest.fixture(scope="session")
def smooth():
    def made(shape, seed=0, low=0, high=255):
        from scipy import ndimage

        draw = np.random.default_rng(seed)
        values = ndimage.gaussian_filter(draw.normal(0, 1, shape), 2)
        values = (values - values.min()) / (values.max() - values.min())
        return low + (high - low) * values

    return made


@pytest.fixture(scope="session")
def runtime():
    """The package of onnxruntime-web: VESALIUS_TEST_RUNTIME (its file or a folder), else npm's."""
    given = os.environ.get("VESALIUS_TEST_RUNTIME")
    try:
        web_runtime.runtime_files(given, Silent())
    except UsageError as error:
        pytest.skip(str(error))
    return given


@pytest.fixture
def browser(tmp_path):
    (tmp_path / "profile").mkdir()
    with Browser(find_browser(), tmp_path / "profile") as running:
        yield running
