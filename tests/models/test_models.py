"""One contract for every registered network, and published numbers for those that have some."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.core.errors import PlanError
from vesalius.models import factory
from vesalius.models.blocks import BasicBlock, Bottleneck
from vesalius.models.factory import Classifier, ModelCard, Shape, build_encoder, encoder, stem_for

SIZE = {2: (29, 22), 3: (9, 17, 12)}
SMALLEST = 16
"""Side below which the classic network has no features left."""
SMALL = {"convnet": None, "lean": 8, "resnet18": 8, "resnet34": 4, "resnet50": 4, "resnet101": 4}

both = pytest.mark.parametrize("dims", [2, 3])
every = pytest.mark.parametrize("name", factory.names())


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster on one core, and other tests may want the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def size_of(name, dims):
    return tuple(max(side, SMALLEST) for side in SIZE[dims]) if name == "convnet" else SIZE[dims]


def shape_of(name, dims, **changes):
    options = {"dims": dims, "inputs": 2, "size": size_of(name, dims), "width": SMALL.get(name, 8), **changes}
    return Shape(**options)


def make(name, dims, classes=3, seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(build_encoder(name, shape_of(name, dims, **changes)), classes)


def images(name, dims, count=3, size=None):
    draw = np.random.default_rng(dims)
    return torch.from_numpy(draw.normal(size=(count, 2, *(size or size_of(name, dims)))).astype(np.float32))


def awake(network):
    """Residual branches start switched off (their last scale is zero); a small noise wakes all of them."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=draw))
    return network


@both
@every
def test_logits_have_the_right_shape(name, dims):
    network = make(name, dims, classes=5).eval()
    out = network(images(name, dims))
    assert out.shape == (3, 5)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


@both
@every
def test_the_pyramid_keeps_its_promise(name, dims):
    body = build_encoder(name, shape_of(name, dims)).eval()
    assert body.dims == dims
    pyramid = body(images(name, dims))
    assert len(pyramid) == len(body.channels) == len(body.strides)
    for level, features in enumerate(pyramid):
        assert features.shape[:2] == (3, body.channels[level])
        if name == "convnet":  # unpadded, as LeNet: after each 5x5 four pixels less, then halved
            sides = size_of(name, dims)
            for _ in range(level + 1):
                sides = tuple((side - 4) // 2 for side in sides)
        else:
            sides = tuple(math.ceil(side / body.strides[level]) for side in size_of(name, dims))
        assert tuple(features.shape[2:]) == sides
    assert list(body.strides) == sorted(body.strides)


@both
@every
def test_the_gradient_reaches_every_parameter(name, dims):
    network = awake(make(name, dims)).train()
    loss = nn.functional.cross_entropy(network(images(name, dims, count=4)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    silent = [
        n
        for n, p in network.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.abs().max() > 0
    ]
    assert silent == []


@both
@every
def test_evaluation_is_deterministic_and_by_case(name, dims):
    network = awake(make(name, dims)).eval()
    batch = images(name, dims)
    with torch.inference_mode():
        together = network(batch)
        assert torch.equal(together, network(batch))
        for place in range(3):  # a batch of one, and no case that sees its neighbours
            torch.testing.assert_close(network(batch[place : place + 1])[0], together[place], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


@both
@every
def test_weights_come_back_from_their_state(name, dims):
    one, two = awake(make(name, dims, seed=1)), make(name, dims, seed=2)
    with torch.no_grad():
        one.train()(images(name, dims))  # running statistics are part of the state
    two.load_state_dict(one.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(one.eval()(images(name, dims)), two.eval()(images(name, dims)))


@both
@every
def test_the_same_seed_gives_the_same_weights(name, dims):
    one, two, three = (make(name, dims, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], three[k]) for k in one)


@both
@pytest.mark.parametrize("name", ["lean", "convnet"])
def test_a_network_is_exported_for_any_batch(name, dims):
    network = awake(make(name, dims)).eval()
    program = torch.export.export(
        network, (images(name, dims),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    ).module()
    for count in (3, 1, 2):
        batch = images(name, dims)[:count]
        torch.testing.assert_close(program(batch), network(batch), rtol=1e-5, atol=1e-5)


@every
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (64, 65), (28, 28)])
def test_odd_sizes_pass(name, size):
    network = make(name, 2, size=size).eval()
    with torch.inference_mode():
        assert network(images(name, 2, count=1, size=size)).shape == (1, 3)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_convnet_is_the_classic_one():
    network = Classifier(build_encoder("convnet", Shape(dims=2, inputs=1, size=(28, 28))), 10)
    seen = {}
    for name, part in network.named_modules():
        if isinstance(part, nn.Linear):
            seen[name] = (part.in_features, part.out_features)
    assert list(seen.values()) == [(256, 120), (120, 84), (84, 10)]
    # conv 1->6 and 6->16 of 5x5 with bias, then the three linear layers: the sum of the textbook.
    assert (
        count(network)
        == (25 * 6 + 6) + (25 * 6 * 16 + 16) + (256 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
        == 44426
    )
    fine, coarse = network.body(torch.zeros(1, 1, 28, 28))
    assert fine.shape == (1, 6, 12, 12)
    assert coarse.shape == (1, 16, 4, 4)
    # On 28 x 28 the averaging in front of the linear layers does nothing.
    assert torch.equal(network.head[0](coarse), coarse)


def stem_by_hand():
    return (
        7 * 7 * 3 * 64 + 2 * 64
    )  # 7x7 on three colours to 64 channels; batch normalisation has two numbers per channel


def basic(depths):
    """Parameters of a ResNet of basic blocks without its last layer, and its features."""
    total, features = stem_by_hand(), 64
    for level, depth in enumerate(depths):
        wide = 64 * 2**level
        for _ in range(depth):
            total += 9 * features * wide + 2 * wide + 9 * wide * wide + 2 * wide
            total += features * wide + 2 * wide if features != wide else 0
            features = wide
    return total, features


def bottle(depths):
    """The same for bottleneck blocks."""
    total, features = stem_by_hand(), 64
    for level, depth in enumerate(depths):
        wide = 64 * 2**level
        for _ in range(depth):
            total += features * wide + 2 * wide + 9 * wide * wide + 2 * wide + wide * 4 * wide + 2 * 4 * wide
            total += features * 4 * wide + 2 * 4 * wide if features != 4 * wide else 0
            features = 4 * wide
    return total, features


@pytest.mark.parametrize(
    ("name", "by_hand", "published"),
    [
        ("resnet18", basic((2, 2, 2, 2)), 11_689_512),
        ("resnet34", basic((3, 4, 6, 3)), 21_797_672),
        ("resnet50", bottle((3, 4, 6, 3)), 25_557_032),
        ("resnet101", bottle((3, 4, 23, 3)), 44_549_160),
    ],
)
def test_resnets_have_the_published_number_of_parameters(name, by_hand, published):
    """Published: torchvision's table, three colours and 1000 classes behind one linear layer on the mean.

    Pooling in the shortcut (ResNet-D) has no parameters; our head is our own and is not counted.
    """
    with torch.device("meta"):
        body = build_encoder(name, Shape(dims=2, inputs=3, size=(224, 224), stem="large"))
    total, features = by_hand
    assert body.channels[-1] == features
    assert count(body) == total == published - (features * 1000 + 1000)


@pytest.mark.parametrize(("kind", "last"), [(BasicBlock, "second"), (Bottleneck, "third")])
def test_a_block_starts_as_the_identity(kind, last):
    block = kind(2, 16, 16 // kind.expansion).eval()
    x = torch.from_numpy(np.random.default_rng(0).random((2, 16, 9, 8), dtype=np.float32))
    torch.testing.assert_close(block(x), x)
    nn.init.ones_(getattr(block, last)[1].weight)
    assert not torch.allclose(block(x), x)


def test_three_dimensions_are_the_same_definition():
    """Every kernel of the slice has one more axis of the same side in the volume, and nothing else differs."""
    flat = make("lean", 2, size=(20, 20), depths=(1, 1)).state_dict()
    deep = make("lean", 3, size=(20, 20, 20), depths=(1, 1)).state_dict()
    assert flat.keys() == deep.keys()
    for name in flat:
        if flat[name].ndim == 4:
            assert deep[name].shape == (*flat[name].shape[:2], flat[name].shape[2], *flat[name].shape[2:])
        else:
            assert deep[name].shape == flat[name].shape


@pytest.mark.parametrize(("stem", "reduction"), [("small", 1), ("half", 2), ("patch", 4), ("large", 4)])
def test_stems_reduce_as_they_say(stem, reduction):
    body = build_encoder("lean", Shape(dims=2, inputs=2, size=(64, 48), width=8, stem=stem)).eval()
    assert body.strides[0] == reduction
    assert tuple(body(images("lean", 2, size=(64, 48)))[0].shape[2:]) == (64 // reduction, 48 // reduction)


def test_small_images_keep_their_resolution_and_a_wish_is_followed():
    assert stem_for((28, 28)) == "small"
    assert stem_for((224, 224)) != "small"
    assert stem_for((28, 28), "large") == "large"


def test_wishes_are_heard():
    body = build_encoder("resnet18", Shape(dims=2, inputs=1, size=(32, 32), width=12, depths=(1, 2, 1)))
    assert body.channels == (12, 24, 48)
    assert body.strides == (1, 2, 4)
    assert [len(stage) for stage in body.stages] == [1, 2, 1]


def test_dropout_acts_while_training_only():
    network = Classifier(build_encoder("lean", shape_of("lean", 2)), 3, dropout=0.5)
    batch = images("lean", 2)
    network.eval()
    assert torch.equal(network(batch), network(batch))
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    network.head.train()
    assert not torch.equal(network(batch), network(batch))


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(PlanError, match="resnet18") as caught:
        build_encoder("resnet-18", shape_of("lean", 2))
    assert "model.name" in str(caught.value)
    with pytest.raises(PlanError, match="there are convnet"):
        factory.card("zzz")


def test_too_small_for_the_classic_one():
    with pytest.raises(PlanError, match="16 pixels"):
        build_encoder("convnet", shape_of("convnet", 2, size=(15, 40)))


def test_the_registry_refuses_a_second_owner_and_wrong_dimensions(monkeypatch):
    monkeypatch.setattr(factory, "_REGISTRY", copy.copy(factory._REGISTRY))
    keep = encoder(ModelCard("flat", "for tests", "nobody", dims=(2,)))
    keep(lambda shape: build_encoder("lean", shape))
    assert "flat" in factory.names()
    with pytest.raises(ValueError, match="registered twice"):
        keep(lambda shape: None)
    with pytest.raises(PlanError, match="dimensions only"):
        build_encoder("flat", shape_of("lean", 3))


@every
def test_every_card_says_what_and_from_where(name):
    about = factory.card(name)
    assert about.name == name
    assert about.summary.endswith(".")
    assert any(year in about.source for year in map(str, range(1980, 2030)))
    assert about.licence
