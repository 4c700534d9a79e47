"""The loop may be stopped at any step and ends with the same bits."""

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from vesalius.core.errors import DataError, Interrupted
from vesalius.core.labels import Labels
from vesalius.core.progress import Silent
from vesalius.data.batches import Batches
from vesalius.models.factory import Classifier, Shape, build_encoder
from vesalius.tasks.classify import Classify
from vesalius.train import checkpoint
from vesalius.train.loop import Job, fit
from vesalius.train.policy import PlainStep
from vesalius.train.schedule import Course
from vesalius.transforms.augment import PRESETS, Augment
from vesalius.transforms.preprocess import Preprocess

SIDE, COUNT, STEPS, EVERY = 12, 40, 11, 4
OPTIM = {
    "name": "sgd",
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "accumulate": 1,
    "clip": 1.0,
    "ema": 0.8,
    "schedule": "one_cycle",
    "warmup": 0.2,
    "step_at": [],
    "channels_last": True,
    "batch_size": 8,
}
VALIDATION = {"metric": "accuracy", "patience": None, "keep": "last", "every": EVERY}


class Rows:
    """Pixels in memory in the place of a store."""

    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 1, SIDE, SIDE), dtype=np.uint8)

    def read(self, rows):
        return self.pixels[np.asarray(rows)]


def make(folder, *, stop_at=None, scores=None, course=None, deadline_s=None, total=STEPS, **changes):
    """A job with dropout, augmentation, averaging and momentum; `stop_at` asks it to stop after that many steps."""
    validation = {**VALIDATION, **{k: v for k, v in changes.items() if k in VALIDATION}}
    optim = {**OPTIM, **{k: v for k, v in changes.items() if k in OPTIM}}
    task = Classify(Labels(("a", "b")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = Classifier(build_encoder("lean", Shape(dims=2, inputs=1, size=(SIDE, SIDE), width=4)), 2, dropout=0.3)
    fabric = Fabric(accelerator="cpu", devices=1)
    logged, asked = [], []

    def validate(weights):
        asked.append({name: value.clone() for name, value in weights.items()})
        return {"accuracy": scores[len(logged)] if scores else 0.5, "nll": 1.0}

    steps = []

    def stop():
        steps.append(1)
        return stop_at is not None and len(steps) >= stop_at

    preprocess = Preprocess.from_spec({"dims": 2, "size": [SIDE, SIDE], "normalise": {"kind": "per_image"}})
    augment = Augment(PRESETS["strong"], dims=2, seed=5)

    def present(batch):
        seen = augment(
            preprocess.finish(torch.as_tensor(batch.pixels)), step=batch.step, first=batch.first, total=batch.total
        )
        return seen.image, seen.mix(task.encode(batch.targets))

    job = Job(
        fabric=fabric,
        policy=PlainStep(fabric, task, network, optim),
        batches=Batches(Rows(), np.arange(COUNT), np.arange(COUNT) % 2, size=8, seed=5),
        present=present,
        optim=optim,
        validation=validation,
        validate=validate,
        course=course or Course(total),
        every=EVERY,
        folder=folder,
        seed=5,
        log=logged.append,
        stop=stop,
        deadline_s=deadline_s,
    )
    return job, logged, asked


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def straight(one_thread, tmp_path_factory):
    """What an uninterrupted training ends with, and what it logged."""
    job, logged, _ = make(tmp_path_factory.mktemp("straight"))
    return fit(job, Silent()), logged


def test_training_is_repeatable_and_changes_the_weights(straight, tmp_path):
    job, logged, _ = make(tmp_path)
    before = job.policy.weights()
    after = fit(job, Silent())
    assert same(after, straight[0])
    assert not same(after, before)
    assert [row["step"] for row in logged] == [4, 8, 11]
    assert [row["epoch"] for row in logged] == [pytest.approx(step * 8 / COUNT) for step in (4, 8, 11)]
    assert logged == straight[1]


@pytest.mark.parametrize("stop_at", range(1, STEPS + 1))
def test_stopped_after_any_step_and_resumed_the_bits_are_the_same(straight, tmp_path, stop_at):
    job, first, _ = make(tmp_path, stop_at=stop_at)
    torch.manual_seed(stop_at)  # whatever the process did before
    with pytest.raises(Interrupted, match=f"step {stop_at}, state saved"):
        fit(job, Silent())
    assert checkpoint.load(tmp_path)[0] == stop_at
    job, second, _ = make(tmp_path)
    torch.manual_seed(1000 + stop_at)
    assert same(fit(job, Silent()), straight[0])
    assert [row for row in first if row["step"] <= stop_at] + second == straight[1]


def test_stopped_after_every_step(straight, tmp_path):
    for _ in range(STEPS + 5):
        job, _, _ = make(tmp_path, stop_at=1)
        try:
            weights = fit(job, Silent())
            break
        except Interrupted:
            continue
    assert same(weights, straight[0])


def test_a_finished_training_is_not_repeated(straight, tmp_path):
    fit(make(tmp_path)[0], Silent())
    job, logged, _ = make(tmp_path)
    assert same(fit(job, Silent()), straight[0])
    assert logged == []


@pytest.mark.parametrize("stop_at", [None, 6, 8, 9])
def test_the_best_weights_are_kept_also_over_a_stop(tmp_path, stop_at):
    scores = [0.6, 0.9, 0.7]
    job, _, asked = make(tmp_path / "a", scores=scores, keep="best")
    weights = fit(job, Silent())
    assert same(weights, asked[1])
    assert not same(weights, asked[2])
    if stop_at is not None:
        job, logged, _ = make(tmp_path / "b", scores=scores, keep="best", stop_at=stop_at)
        with pytest.raises(Interrupted):
            fit(job, Silent())
        job, _, _ = make(tmp_path / "b", scores=scores[len(logged) :], keep="best")
        assert same(fit(job, Silent()), weights)


def test_nll_is_better_when_smaller(tmp_path):
    job, _, asked = make(tmp_path, keep="best", metric="nll")
    values = iter([3.0, 1.0, 2.0])
    inner = job.validate
    job.validate = lambda weights: {**inner(weights), "nll": next(values)}
    assert same(fit(job, Silent()), asked[1])


def test_patience_ends_training(tmp_path):
    job, logged, _ = make(tmp_path, scores=[0.9, 0.8, 0.9, 0.7, 0.9], patience=2, total=40)
    fit(job, Silent())
    assert [row["step"] for row in logged] == [4, 8, 12]  # an equal value is not a better one
    job, again, _ = make(tmp_path, scores=[1.0], patience=2, total=40)
    fit(job, Silent())
    assert again == []  # resuming does not forget that it had ended


def test_a_budget_is_kept_and_the_decision_repeated(tmp_path):
    """With almost no time left training ends at the next milestone; a resumed run reads the decision."""
    path = tmp_path / "course.jsonl"
    job, logged, _ = make(tmp_path, course=Course(1000, path), deadline_s=1e-6, total=1000)
    fit(job, Silent())
    assert [row["step"] for row in logged] == [4]
    assert Course(1000, path).end(4) == 4
    job, logged, _ = make(tmp_path, course=Course(1000, path), deadline_s=1e9, total=1000)
    fit(job, Silent())
    assert logged == []


def test_a_loss_that_is_no_number_stops_training(tmp_path):
    job, _, _ = make(tmp_path, lr=1e30, clip=None)
    with pytest.raises(DataError, match=r"at step .*lower optim\.lr"):
        fit(job, Silent())


def test_the_clock_is_asked_between_validations_and_the_end_is_validated(tmp_path):
    job, logged, _ = make(tmp_path, deadline_s=1e-6)
    job.review = 2
    fit(job, Silent())
    assert [row["step"] for row in logged] == [2]


def test_reviews_between_validations_change_no_bit_without_a_budget(straight, tmp_path):
    job, logged, _ = make(tmp_path)
    job.review = 3
    assert same(fit(job, Silent()), straight[0])
    assert logged == straight[1]
