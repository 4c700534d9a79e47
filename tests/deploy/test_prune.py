"""Structured pruning leaves a smaller dense network that computes what the channels that are left say."""

import pytest
import torch
from torch import nn

from vesalius.core.errors import UsageError
from vesalius.core.labels import Labels
from vesalius.deploy.prune import example_input, operations, prune
from vesalius.models.factory import Classifier, Shape, build_encoder
from vesalius.predict.bundle import Bundle
from vesalius.tasks.segment import Segment
from vesalius.transforms.preprocess import Preprocess

pytest.importorskip("torch_pruning")

ORGANS = Labels(("background", "liver", "spleen"))


def classifier_of(name, dims=2, width=16):
    size = (32,) * dims if dims == 2 else (16,) * dims
    spec = {"dims": dims, "size": list(size), "channels": 1, "normalise": {"kind": "per_image"}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Classifier(build_encoder(name, Shape(dims=dims, inputs=1, size=size, width=width)), 3)
    return Bundle("classify", Labels(("a", "b", "c")), Preprocess.from_spec(spec).spec, {"name": name, "width": width},
                  [network.state_dict()])  # fmt: skip


def segmenter_of(name, dims=3, norm="instance", **more):
    model = {"name": name, "patch": [16] * dims if dims == 3 else [64] * dims, "norm": norm, **more}
    labels = ORGANS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Segment(labels).network(model, dims=dims, inputs=1, size=model["patch"])
    conform = {"dims": dims, "channels": 1, "normalise": {"kind": "none"}}
    return Bundle("segment", labels, conform, model, [network.state_dict()],
                  inference={"tile": {"patch": model["patch"], "overlap": 0.5, "batch": 1}})  # fmt: skip


STAGES3 = {"features": [8, 16, 16, 16], "strides": [[1] * 3, [2] * 3, [2] * 3, [1, 2, 2]]}
CASES = {
    "lean": lambda: classifier_of("lean"),
    "lean volumes": lambda: classifier_of("lean", dims=3),
    "resnet18": lambda: classifier_of("resnet18"),
    "resnet50": lambda: classifier_of("resnet50"),
    "convnet": lambda: classifier_of("convnet"),
    "unet": lambda: segmenter_of("unet", **STAGES3),
    "unet batch": lambda: segmenter_of("unet", norm="batch", **STAGES3),
    "resunet": lambda: segmenter_of("resunet", **STAGES3),
    "unet on an encoder": lambda: segmenter_of("unet:lean", dims=2, width=16),
    "deeplab": lambda: segmenter_of("deeplabv3plus:resnet18", dims=2, width=16),
}


@pytest.mark.parametrize("name", CASES)
def test_about_half_of_the_operations_are_left(name):
    bundle = CASES[name]()
    found = prune(bundle, keep=0.5)
    before, after = found.operations
    assert 0.15 < after / before <= 0.5
    small = Bundle(bundle.task, bundle.labels, bundle.preprocess, {**bundle.model, "widths": found.widths},
                   [found.weights], inference=bundle.inference)  # fmt: skip
    network = small.networks()[0]
    example = example_input(bundle)
    assert operations(network, example) == after
    whole = bundle.networks()[0]
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in whole.parameters())
    outputs = network(example)
    assert outputs.shape == whole(example).shape
    assert torch.isfinite(outputs).all()
    with torch.random.fork_rng(devices=[]):
        levels = network.train()(example.expand(2, *example.shape[1:]))  # all outputs of deep supervision fit as well
    assert all(torch.isfinite(level).all() for level in (levels if isinstance(levels, list) else [levels]))


def test_channels_that_say_nothing_go_first():
    # In every layer half of the channels are silent: without them the network says the same.
    bundle = segmenter_of("unet", dims=2, norm="batch", features=[16, 32], strides=[[1, 1], [2, 2]])
    network = bundle.networks()[0]
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.weight[1::2] = 0
                part.bias[1::2] = 0
            if isinstance(part, nn.ConvTranspose2d):
                part.weight[:, 1::2] = 0
            if isinstance(part, nn.Conv2d) and part.bias is None:
                part.weight[1::2] = 0
    bundle.members = [network.state_dict()]
    found = prune(bundle, keep=0.3)
    small = Bundle(bundle.task, bundle.labels, bundle.preprocess, {**bundle.model, "widths": found.widths},
                   [found.weights], inference=bundle.inference)  # fmt: skip
    x = example_input(bundle)
    with torch.no_grad():
        torch.testing.assert_close(small.networks()[0](x), network.eval()(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keep", [0, 1, 1.5, -0.1, 0.0001])
def test_a_part_that_is_none_is_refused(keep):
    with pytest.raises(UsageError, match="keep"):
        prune(CASES["lean"](), keep=keep)


def test_operations_are_those_counted_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, groups=4),
                            nn.Flatten(), nn.Linear(16 * 4 * 5, 6))  # fmt: skip
    by_hand = 8 * 10 * 12 * (3 * 9) + 16 * 4 * 5 * (2 * 9) + 320 * 6
    assert operations(network.eval(), torch.zeros(1, 3, 10, 12)) == by_hand
