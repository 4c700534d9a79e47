"""Batch k is a function of (seed, k), whoever asks and whenever."""

import numpy as np
import pytest

from vesalius.data.batches import Batches


class Rows:
    """A store whose pixels say which row they are."""

    def read(self, rows):
        return np.asarray(rows, dtype=np.int64).reshape(-1, 1, 1, 1) * 10


def make(count=53, size=12, seed=3, targets=None, **options):
    rows = np.arange(count) + 1000
    targets = np.arange(count) % 3 if targets is None else targets
    return Batches(Rows(), rows, targets, size=size, seed=seed, **options)


def drawn(batches, steps):
    return np.concatenate([batches(step).places for step in range(steps)])


def test_pixels_and_targets_belong_to_their_places():
    batch = make()(7)
    assert batch.step == 7
    assert (batch.first, batch.total) == (0, 12)
    assert np.array_equal(batch.pixels[:, 0, 0, 0], (batch.places + 1000) * 10)
    assert np.array_equal(batch.targets, batch.places % 3)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("balance", [0.0, 0.6])
def test_many_processes_draw_what_one_draws(world, balance):
    alone = make(balance=balance)
    several = [make(balance=balance, rank=rank, world=world) for rank in range(world)]
    for step in range(15):
        parts = [batches(step) for batches in several]
        assert [part.first for part in parts] == [rank * 12 // world for rank in range(world)]
        assert {part.total for part in parts} == {12}
        assert np.array_equal(np.concatenate([part.places for part in parts]), alone(step).places)
        assert np.array_equal(np.concatenate([part.pixels for part in parts]), alone(step).pixels)
        assert np.array_equal(np.concatenate([part.targets for part in parts]), alone(step).targets)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_a_restart_and_any_order_of_asking_give_the_same(balance):
    expected = [make(balance=balance)(step).places for step in range(20)]
    again = make(balance=balance)
    for step in (19, 0, 7, 19, 3):
        assert np.array_equal(again(step).places, expected[step])
    assert [batch.step for batch in make().stream(4, 9)] == [4, 5, 6, 7, 8]
    for batch in make(balance=balance).stream(5, 15):
        assert np.array_equal(batch.places, expected[batch.step])
    assert list(make().stream(3, 3)) == []


def test_an_epoch_holds_every_case_once_across_batch_borders():
    stream = drawn(make(), 53)  # 53 batches of 12 are 12 epochs of 53
    for epoch in range(12):
        assert sorted(stream[epoch * 53 : (epoch + 1) * 53]) == list(range(53))
    orders = {tuple(stream[epoch * 53 : (epoch + 1) * 53]) for epoch in range(12)}
    assert len(orders) == 12


def test_a_batch_larger_than_the_cohort():
    stream = drawn(make(count=5, size=12), 5)
    assert [sorted(stream[k : k + 5]) for k in range(0, 60, 5)] == [[0, 1, 2, 3, 4]] * 12


def test_seeds_differ():
    assert not np.array_equal(drawn(make(seed=1), 4), drawn(make(seed=2), 4))


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
def test_balance_gives_each_class_its_part(balance):
    targets = np.repeat([0, 1, 2], [140, 50, 10])
    batches = make(count=200, targets=targets, balance=balance)
    for epoch in range(3):
        order = batches.order(epoch)
        assert len(order) == 200
        for label, frequency in enumerate((0.7, 0.25, 0.05)):
            places, counts = np.unique(order[targets[order] == label], return_counts=True)
            wanted = 200 * ((1 - balance) * frequency + balance / 3)
            assert abs(counts.sum() - wanted) <= 1
            # As evenly as possible: no case twice more often than another, and left out only where there are too many.
            missing = (targets == label).sum() - len(places)
            assert counts.max() - (0 if missing else counts.min()) <= 1


def test_balanced_epochs_are_mixed_and_differ():
    targets = np.repeat([0, 1], [190, 10])
    batches = make(count=200, targets=targets, balance=1.0)
    first, second = batches.order(0).copy(), batches.order(1).copy()
    assert not np.array_equal(first, second)
    halves = targets[first][:100].mean(), targets[first][100:].mean()
    assert all(0.3 < half < 0.7 for half in halves)


def test_classes_without_a_case_and_several_labels_do_no_harm():
    assert len(make(count=30, targets=np.repeat([0, 4], 15), balance=1.0).order(0)) == 30
    rows = np.zeros((30, 2), dtype=np.uint8)
    several = make(count=30, size=10, targets=rows, balance=0.5)
    assert sorted(several.order(0)) == list(range(30))
    assert several(0).targets.shape == (10, 2)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no training cases"):
        Batches(Rows(), np.array([], dtype=np.int64), np.array([]), size=4, seed=0)
    with pytest.raises(ValueError, match="multiple of 5"):
        make(size=12, world=5)


def test_length():
    assert len(make()) == 53
    assert make().steps_per_epoch == pytest.approx(53 / 12)
