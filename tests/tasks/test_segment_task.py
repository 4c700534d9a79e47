"""The three kinds of question of segmentation: outputs, targets, loss and decision, against torch and numpy."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from vesalius.core.labels import Labels
from vesalius.core.plan import Plan
from vesalius.data.cases import joined, mask_values
from vesalius.predict.segmentation import decided
from vesalius.tasks.instances import instance_targets
from vesalius.tasks.segment import BORDER, DISTANCE, FOREGROUND, Segment, layers_of, regions_of
from vesalius.train.segmenting import dice_per_structure

ORGANS = Labels(("background", "liver", "spleen"))
BRATS = Labels(("whole", "core", "enhancing"), multilabel=True, regions=((1, 2, 4), (1, 4), (4,)))
FREE = Labels(("lung", "lesion", "vessel"), multilabel=True)
CELLS = Labels(("background", "cell"), instances=True)
MODEL = {"name": "unet", "features": [4, 8], "strides": [[1, 1], [2, 2]], "deep_supervision": True}


@pytest.mark.parametrize(
    ("labels", "outputs", "activation"),
    [(ORGANS, 3, "softmax"), (BRATS, 3, "sigmoid"), (FREE, 3, "sigmoid"), (CELLS, 3, "sigmoid")],
)
@pytest.mark.parametrize("dims", [2, 3])
def test_network_of_each_kind(labels, outputs, activation, dims):
    task = Segment(labels)
    assert task.outputs == outputs
    assert task.activation == activation
    model = MODEL | {"strides": [[1] * dims, [2] * dims]}
    network = task.network(model, dims=dims, inputs=2, size=(16,) * dims)
    x = torch.zeros(2, 2, *(16,) * dims)
    assert network.eval()(x).shape == (2, outputs, *(16,) * dims)
    levels = network.train()(x)
    assert isinstance(levels, list)
    assert levels[0].shape == (2, outputs, *(16,) * dims)


def test_a_hundred_labels():
    labels = Labels(tuple(f"structure {k}" for k in range(101)))
    task = Segment(labels)
    network = task.network(MODEL, dims=2, inputs=1, size=(16, 16)).eval()
    logits = network(torch.randn(1, 1, 16, 16)).detach()
    assert logits.shape == (1, 101, 16, 16)
    target = torch.arange(256).reshape(1, 1, 16, 16) % 101
    found = float(task.loss(logits, target))
    p = torch.softmax(logits, dim=1)
    hot = functional.one_hot(target[:, 0], 101).movedim(-1, 1).float()
    overlap = (p * hot).sum((2, 3))
    dice = (2 * overlap + 1e-5) / (p.sum((2, 3)) + hot.sum((2, 3)) + 1e-5)
    wanted = functional.cross_entropy(logits, target[:, 0]) + 1 - dice[:, 1:].mean()
    assert found == pytest.approx(float(wanted), rel=1e-4)
    guess = decided(logits[0].numpy(), task)
    assert guess.dtype == np.uint8
    np.testing.assert_array_equal(guess, logits[0].argmax(0).numpy())


def test_many_labels_need_wider_numbers():
    task = Segment(Labels(tuple(map(str, range(300)))))
    logits = np.zeros((300, 2, 2), dtype=np.float32)
    logits[299] = 1
    guess = decided(logits, task)
    assert guess.dtype == np.uint16
    assert (guess == 299).all()


class TestRegions:
    def test_values_of_free_structures_are_bits(self):
        assert regions_of(FREE) == ((1, 3, 5, 7), (2, 3, 6, 7), (4, 5, 6, 7))
        assert regions_of(BRATS) == BRATS.regions
        assert regions_of(ORGANS) == ()

    def test_layers_come_back_from_bits(self):
        planes = np.random.default_rng(0).integers(0, 2, (3, 4, 5, 6)).astype(np.uint8)
        np.testing.assert_array_equal(layers_of(joined(planes, 3), FREE), planes)

    def test_layers_of_joined_values(self):
        mask = np.array([[0, 1, 2], [4, 4, 0]], dtype=np.uint8)
        found = layers_of(mask, BRATS)
        for layer, values in zip(found, BRATS.regions, strict=True):
            np.testing.assert_array_equal(layer, np.isin(mask, values))
        assert layers_of(np.zeros((2, 3), np.uint8), BRATS).shape == (3, 2, 3)

    @pytest.mark.parametrize("labels", [BRATS, FREE], ids=["joined", "bits"])
    def test_the_loss_is_that_of_each_layer(self, labels):
        draw = np.random.default_rng(1)
        mask = draw.choice(mask_values(labels), (2, 1, 8, 9)).astype(np.uint8)
        logits = torch.from_numpy(draw.normal(size=(2, 3, 8, 9)).astype(np.float32))
        task = Segment(labels)
        found = float(task.loss(logits, task.encode(mask)))
        layers = torch.from_numpy(np.stack([layers_of(one[0], labels) for one in mask])).float()
        p = torch.sigmoid(logits)
        dice = (2 * (p * layers).sum((2, 3)) + 1e-5) / (p.sum((2, 3)) + layers.sum((2, 3)) + 1e-5)
        wanted = functional.binary_cross_entropy_with_logits(logits, layers) + 1 - dice.mean()
        assert found == pytest.approx(float(wanted), rel=1e-4)

    def test_decision(self):
        logits = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
        np.testing.assert_array_equal(decided(logits, Segment(BRATS)), logits > 0)


class TestIgnored:
    LABELS = Labels(("background", "liver"), ignore=255)

    def test_what_is_ignored_may_be_anything(self):
        task = Segment(self.LABELS)
        draw = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 2, 8, 8, generator=draw)
        mask = np.random.default_rng(0).choice([0, 1, 255], (2, 1, 8, 8)).astype(np.uint8)
        target = task.encode(mask)
        one = task.loss(logits, target)
        moved = torch.where(target == 255, logits + 50 * torch.randn(logits.shape, generator=draw), logits)
        torch.testing.assert_close(task.loss(moved, target), one)

    def test_dice_counts_judged_voxels_only(self):
        truth = np.array([[1, 1, 255, 0]])
        guess = np.array([[1, 0, 1, 1]])
        # Of the three judged voxels 1 is found, 1 missed, 1 invented.
        assert dice_per_structure(guess, truth, Segment(self.LABELS)) == [pytest.approx(2 / (2 + 2))]


class TestObjects:
    def target(self):
        objects = np.zeros((16, 16), dtype=np.uint16)
        objects[2:8, 2:8], objects[2:8, 8:13], objects[11:15, 4:9] = 1, 2, 3
        further = instance_targets(objects)
        return np.concatenate([(objects > 0)[None].astype(np.float16), further])[None]

    def test_the_loss_is_the_sum_of_its_parts(self):
        task, target = Segment(CELLS), self.target()
        logits = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        found = float(task.loss(logits, task.encode(target)))
        want = torch.from_numpy(target.astype(np.float32))
        inside, p = want[:, FOREGROUND], torch.sigmoid(logits[:, FOREGROUND])
        dice = (2 * (p * inside).sum() + 1e-5) / (p.sum() + inside.sum() + 1e-5)
        area = 1 - dice + functional.binary_cross_entropy(p, inside)
        far = ((torch.sigmoid(logits[:, DISTANCE]) - want[:, DISTANCE]) ** 2).mean()
        wall = functional.binary_cross_entropy(torch.sigmoid(logits[:, BORDER]), want[:, BORDER])
        assert found == pytest.approx(float(area + 4 * far + wall), rel=1e-4)

    def test_the_ideal_answer_costs_less_than_any_change_of_it(self):
        task, target = Segment(CELLS), self.target()
        encoded = task.encode(target)
        ideal = torch.logit(encoded.clamp(1e-4, 1 - 1e-4))
        best = float(task.loss(ideal, encoded))
        for channel in range(3):
            worse = ideal.clone()
            worse[:, channel] = worse[:, channel].flip(-1)
            assert float(task.loss(worse, encoded)) > best + 0.02

    def test_coarser_levels_weigh_half(self):
        task, encoded = Segment(CELLS), Segment(CELLS).encode(self.target())
        draw = torch.Generator().manual_seed(0)
        levels = [torch.randn(1, 3, 16 >> k, 16 >> k, generator=draw) for k in range(3)]
        # nearest-exact: the centre of a block of two is its second row.
        targets = [encoded, encoded[..., 1::2, 1::2], encoded[..., 2::4, 2::4]]
        single = [float(task.loss(level, target)) for level, target in zip(levels, targets, strict=True)]
        assert float(task.loss(levels, encoded)) == pytest.approx(np.dot(single, [4 / 7, 2 / 7, 1 / 7]), rel=1e-5)

    def test_a_single_tensor_is_its_own_list(self):
        task, encoded = Segment(CELLS), Segment(CELLS).encode(self.target())
        level = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        assert float(task.loss(level, encoded)) == float(task.loss([level], encoded))


class TestDice:
    def test_of_classes(self):
        truth = np.random.default_rng(0).integers(0, 3, (6, 7))
        guess = np.random.default_rng(1).integers(0, 3, (6, 7))
        found = dice_per_structure(guess, truth, Segment(ORGANS))
        for k, value in enumerate(found, 1):
            a, b = set(map(tuple, np.argwhere(guess == k))), set(map(tuple, np.argwhere(truth == k)))
            assert value == pytest.approx(2 * len(a & b) / (len(a) + len(b)))

    def test_of_regions_and_objects(self):
        truth = np.array([[0, 1, 2], [4, 4, 0]])
        guess = layers_of(np.array([[0, 1, 1], [4, 2, 0]]), BRATS)
        # whole: 4 of 4; core: guess {01, 02, 10}, truth {01, 10, 11}; enhancing: guess {10}, truth {10, 11}.
        assert dice_per_structure(guess, truth, Segment(BRATS)) == pytest.approx([1.0, 4 / 6, 2 / 3])
        assert dice_per_structure(np.array([1, 1, 0, 0]), np.array([7, 3, 9, 0]), Segment(CELLS)) == [0.8]

    def test_absent_on_both_sides_is_no_number(self):
        found = dice_per_structure(np.array([0, 1]), np.array([0, 1]), Segment(ORGANS))
        assert found[0] == 1
        assert np.isnan(found[1])
        assert dice_per_structure(np.array([0, 2]), np.array([0, 0]), Segment(ORGANS))[1] == 0


def test_settings_of_the_plan_reach_the_loss():
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 3, (1, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    plan = Plan("segment")
    plan.overrule({"loss.name": "ce", "loss.class_weights": [1.0, 5.0, 2.0]})
    found = float(Segment(ORGANS, plan.section("loss")).loss(logits, target))
    wanted = functional.cross_entropy(logits, target[:, 0], weight=torch.tensor([1.0, 5.0, 2.0]))
    assert found == pytest.approx(float(wanted), rel=1e-5)
