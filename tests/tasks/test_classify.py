"""Losses against torch and hand formulas, probabilities against scipy."""

import numpy as np
import pytest
import scipy.special
import torch
from torch.nn import functional as F

from vesalius.core.errors import PlanError
from vesalius.core.labels import Labels
from vesalius.tasks.classify import Classify, class_weights

THREE = Labels(("a", "b", "c"))
MANY = Labels(("a", "b", "c"), multilabel=True)
TARGETS = np.array([0, 2, 1, 1, 0, 2])
ROWS = np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]], dtype=np.uint8)


def logits(rows=6, seed=0, scale=3.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, 3)) * scale).float()


def loss(labels, settings, z, targets):
    task = Classify(labels, settings)
    return task.loss(z, task.encode(targets))


def test_cross_entropy_is_that_of_torch():
    ours = loss(THREE, {"name": "cross_entropy"}, logits(), TARGETS)
    torch.testing.assert_close(ours, F.cross_entropy(logits(), torch.from_numpy(TARGETS)))


@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.5])
def test_label_smoothing_is_that_of_torch(smoothing):
    ours = loss(THREE, {"label_smoothing": smoothing}, logits(), TARGETS)
    torch.testing.assert_close(ours, F.cross_entropy(logits(), torch.from_numpy(TARGETS), label_smoothing=smoothing))


def test_class_weights_weigh_each_case():
    weights = [0.5, 2.0, 1.25]
    ours = loss(THREE, {"class_weights": weights}, logits(), TARGETS)
    # torch divides by the sum of weights by default; the sum over cases is the same, the mean is over cases here.
    theirs = F.cross_entropy(logits(), torch.from_numpy(TARGETS), weight=torch.tensor(weights), reduction="sum") / len(
        TARGETS
    )
    torch.testing.assert_close(ours, theirs)


def test_weights_and_smoothing_together():
    weights = [0.5, 2.0, 1.25]
    ours = loss(THREE, {"class_weights": weights, "label_smoothing": 0.2}, logits(), TARGETS)
    theirs = F.cross_entropy(
        logits(), torch.from_numpy(TARGETS), weight=torch.tensor(weights), label_smoothing=0.2, reduction="sum"
    )
    torch.testing.assert_close(ours, theirs / len(TARGETS))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_by_hand(gamma):
    ours = loss(THREE, {"name": "focal", "focal_gamma": gamma}, logits(), TARGETS)
    p = scipy.special.softmax(logits().double().numpy(), axis=1)[np.arange(6), TARGETS]
    assert float(ours) == pytest.approx(float(np.mean(-((1 - p) ** gamma) * np.log(p))), rel=1e-5)


def test_focal_gamma_has_a_default_and_may_be_zero():
    default = loss(THREE, {"name": "focal", "focal_gamma": None}, logits(), TARGETS)
    torch.testing.assert_close(default, loss(THREE, {"name": "focal", "focal_gamma": 2.0}, logits(), TARGETS))
    nothing = loss(THREE, {"name": "focal", "focal_gamma": 0.0}, logits(), TARGETS)
    torch.testing.assert_close(nothing, F.cross_entropy(logits(), torch.from_numpy(TARGETS)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_multi_label_is_binary_cross_entropy_per_class(smoothing):
    ours = loss(MANY, {"label_smoothing": smoothing}, logits(4), ROWS)
    soft = torch.from_numpy(ROWS).float() * (1 - smoothing) + 0.5 * smoothing
    torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(logits(4), soft))


def test_multi_label_weights():
    weights = [0.5, 2.0, 1.25]
    ours = loss(MANY, {"class_weights": weights}, logits(4), ROWS)
    theirs = F.binary_cross_entropy_with_logits(logits(4), torch.from_numpy(ROWS).float(), weight=torch.tensor(weights))
    torch.testing.assert_close(ours, theirs)


def test_multi_label_focal_by_hand():
    ours = loss(MANY, {"name": "focal", "focal_gamma": 2.0}, logits(4), ROWS)
    p = scipy.special.expit(logits(4).double().numpy())
    right = np.where(ROWS == 1, p, 1 - p)
    assert float(ours) == pytest.approx(float(np.mean(-((1 - right) ** 2) * np.log(right))), rel=1e-5)


@pytest.mark.parametrize("labels", [THREE, MANY], ids=["exclusive", "multi-label"])
@pytest.mark.parametrize(
    "settings", [{}, {"name": "focal", "focal_gamma": 0.5}, {"name": "focal"}, {"label_smoothing": 0.1}]
)
def test_certain_logits_give_finite_slopes(labels, settings):
    z = torch.tensor([[80.0, -80.0, -80.0], [-80.0, 80.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    task = Classify(labels, settings)
    target = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    value = task.loss(z, target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


def test_soft_targets_from_mixing():
    z = logits(2)
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
    torch.testing.assert_close(Classify(THREE).loss(z, mixed), F.cross_entropy(z, mixed))


def test_half_precision_logits_are_judged_in_full():
    z = logits().to(torch.bfloat16)
    torch.testing.assert_close(loss(THREE, {}, z, TARGETS), F.cross_entropy(z.float(), torch.from_numpy(TARGETS)))


def test_targets_are_encoded():
    assert torch.equal(Classify(THREE).encode(np.array([2, 0])), torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    assert torch.equal(Classify(MANY).encode(ROWS), torch.from_numpy(ROWS).float())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.3])
def test_probabilities_are_those_of_scipy(temperature):
    z = np.random.default_rng(1).normal(size=(2, 5, 3)) * 20
    np.testing.assert_allclose(
        Classify(THREE).probabilities(z, temperature), scipy.special.softmax(z / temperature, axis=-1), rtol=1e-10
    )
    np.testing.assert_allclose(
        Classify(MANY).probabilities(z, temperature), scipy.special.expit(z / temperature), rtol=1e-10, atol=1e-25
    )


def test_probabilities_of_huge_logits_are_finite():
    p = Classify(THREE).probabilities(np.array([[1e5, -1e5, 0.0]]))
    assert np.array_equal(p, [[1.0, 0.0, 0.0]])
    q = Classify(MANY).probabilities(np.array([[1e5, -1e5, 0.0]]))
    np.testing.assert_allclose(q, [[1.0, 0.0, 0.5]], atol=1e-20)


def test_views_are_averaged_as_log_probabilities():
    views = np.random.default_rng(2).normal(size=(4, 6, 3)) * 5
    task = Classify(THREE)
    log_p = scipy.special.log_softmax(views, axis=-1).mean(axis=0)
    np.testing.assert_allclose(
        task.probabilities(task.average(views)), scipy.special.softmax(log_p, axis=-1), rtol=1e-10
    )
    # The mean of logarithms does not depend on a constant that one view adds to its logits.
    moved = views + np.array([0, 100, -3, 7.0])[:, None, None]
    np.testing.assert_allclose(task.average(moved), task.average(views), atol=1e-9)


def test_multi_label_views_are_averaged_as_log_odds():
    views = np.random.default_rng(3).normal(size=(4, 6, 3))
    np.testing.assert_allclose(
        scipy.special.logit(Classify(MANY).probabilities(Classify(MANY).average(views))), views.mean(axis=0), rtol=1e-6
    )


def test_one_view_stays_what_it_was():
    z = np.random.default_rng(4).normal(size=(1, 5, 3))
    task = Classify(THREE)
    np.testing.assert_allclose(task.probabilities(task.average(z)), scipy.special.softmax(z[0], axis=-1), rtol=1e-10)


def test_weights_of_rare_classes():
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    targets = np.array([0] * 70 + [1] * 20 + [2] * 10)
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(class_weights(targets, 3), expected, atol=1e-4)
    assert np.isfinite(class_weights(np.zeros(4, dtype=int), 2)).all()


def test_weights_must_fit_the_classes():
    with pytest.raises(PlanError, match="2 numbers for 3 classes"):
        Classify(THREE, {"class_weights": [1.0, 2.0]})


def test_the_network_follows_the_plan():
    network = Classify(THREE).network(
        {"name": "lean", "width": 8, "depths": [1, 1], "stem": "auto", "dropout": 0.25}, dims=2, inputs=2, size=[20, 20]
    )
    assert network(torch.zeros(2, 2, 20, 20)).shape == (2, 3)
    assert network.body.channels == (8, 16)
    assert [part.p for part in network.modules() if isinstance(part, torch.nn.Dropout)] == [0.25]
    with pytest.raises(PlanError, match="registry"):
        Classify(THREE).network({"name": "leen2000"}, dims=2, inputs=1, size=[20, 20])
