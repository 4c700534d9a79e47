"""One gradient step, compared with torch written out."""

import copy

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from vesalius.core.labels import Labels
from vesalius.models.factory import Classifier, Shape, build_encoder
from vesalius.tasks.classify import Classify
from vesalius.train.policy import Average, PlainStep, optimiser, parameter_groups

OPTIM = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "accumulate": 1, "clip": None, "ema": 0.0}
TASK = Classify(Labels(("a", "b", "c")))


def network(name="convnet", seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(build_encoder(name, Shape(dims=2, inputs=1, size=(16, 16), width=4)), 3)


def policy(net=None, **changes):
    return PlainStep(Fabric(accelerator="cpu", devices=1), TASK, net or network(), {**OPTIM, **changes})


def batch(step=0, count=12):
    draw = np.random.default_rng(step)
    pixels = torch.from_numpy(draw.normal(size=(count, 1, 16, 16)).astype(np.float32))
    return pixels, TASK.encode(draw.integers(0, 3, count))


def trained(steps=3, rate=0.01, **changes):
    made = policy(**changes)
    losses = [made.step(*batch(k), rate) for k in range(steps)]
    return made.weights(), losses


def close(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], **(tolerance or {"rtol": 1e-4, "atol": 1e-5}))


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_batch_in_parts_is_one_batch(parts, clip):
    whole, losses = trained(clip=clip)
    pieces, same = trained(accumulate=parts, clip=clip)
    close(whole, pieces)
    assert losses == pytest.approx(same, rel=1e-5)


def test_a_step_is_nesterov_sgd_written_out():
    """Sutskever et al. 2013 in torch's form: v = m v + g; w -= lr (g + m v), decay added to g of weights only."""
    net = network(seed=4)
    by_hand = copy.deepcopy(net)
    made = policy(net)
    velocity = {}
    for step, rate in enumerate((0.1, 0.05, 0.2)):
        made.step(*batch(step), rate)
        pixels, target = batch(step)
        by_hand.zero_grad()
        nn.functional.cross_entropy(by_hand(pixels), target).backward()
        with torch.no_grad():
            for name, value in by_hand.named_parameters():
                g = value.grad + (0.01 * value if value.ndim > 1 else 0)
                velocity[name] = 0.9 * velocity[name] + g if name in velocity else g.clone()
                value.sub_(rate * (g + 0.9 * velocity[name]))
    close(made.weights(), by_hand.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_optimiser_of_the_plan(name, kind):
    made = optimiser(network(), {**OPTIM, "name": name})
    assert type(made) is kind


def test_decay_acts_on_weights_of_layers_only():
    net = network("lean")
    with_decay, without = parameter_groups(net, 0.03)
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.03, 0.0)
    names = {id(p): (n, m) for m in net.modules() for n, p in m.named_parameters(recurse=False)}
    for p in with_decay["params"]:
        name, owner = names[id(p)]
        assert name == "weight"
        assert isinstance(owner, (nn.Conv2d, nn.Linear))
    for p in without["params"]:
        name, owner = names[id(p)]
        assert name == "bias" or isinstance(owner, nn.BatchNorm2d)
    assert len(with_decay["params"]) + len(without["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize("limit", [1e-3, 0.1])
def test_a_long_gradient_is_cut_to_the_limit(limit):
    net = network()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    made = policy(net, momentum=0.0, weight_decay=0.0, clip=limit)
    made.step(*batch(), 1.0)
    moved = torch.cat([(p.detach() - before[n]).flatten() for n, p in net.named_parameters()])
    assert float(moved.norm()) == pytest.approx(limit, rel=1e-2)


def test_a_short_gradient_is_left_alone():
    free, _ = trained(momentum=0.0)
    limited, _ = trained(momentum=0.0, clip=1e6)
    close(free, limited, rtol=1e-6, atol=1e-8)


def test_the_average_by_hand():
    net = network("lean", seed=2)
    made = policy(net, ema=0.8)
    values = {n: v.clone().double() for n, v in net.state_dict().items()}
    for n in range(1, 8):
        made.step(*batch(n), 0.05)
        decay = min(0.8, (1 + n) / (10 + n))
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                values[name] = decay * values[name] + (1 - decay) * value.double()
            else:
                values[name] = value.clone().double()
    kept = made.weights()
    assert any("running_mean" in name for name in kept)
    for name in kept:
        torch.testing.assert_close(kept[name].double(), values[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(kept[n], v) for n, v in net.state_dict().items() if v.is_floating_point())


def test_without_an_average_the_weights_are_those_of_the_network():
    net = network()
    made = policy(net)
    kept = made.weights()
    made.step(*batch(), 0.1)
    assert not torch.equal(kept["head.2.weight"], net.state_dict()["head.2.weight"])  # a copy, not a view
    close(made.weights(), net.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"name": "adamw"}, {"momentum": 0.0}])
def test_a_restored_policy_goes_on_with_the_same_bits(changes):
    import io

    one = policy(network("lean"), **changes)
    for step in range(3):
        one.step(*batch(step), 0.05)
    buffer = io.BytesIO()
    torch.save(one.state(), buffer)
    buffer.seek(0)
    two = policy(network("lean", seed=9), **changes)
    two.restore(torch.load(buffer, weights_only=True))
    for step in range(3, 6):
        assert one.step(*batch(step), 0.02) == two.step(*batch(step), 0.02)
    close(one.weights(), two.weights(), rtol=0, atol=0)
    close(one.plain.state_dict(), two.plain.state_dict(), rtol=0, atol=0)


def test_an_average_copies_counters():
    net = nn.BatchNorm1d(2)
    average = Average(net, 0.5)
    net.num_batches_tracked += 7
    average.update(net)
    assert int(average.weights()["num_batches_tracked"]) == 7
