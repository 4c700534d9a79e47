"""Probabilities of voxels: temperature, calibration error and reliability against what was drawn."""

import numpy as np
import pytest

from vesalius.core.labels import Labels
from vesalius.evaluate.segment_trust import MOST_CASES, VoxelTrust, scores_of

TWO = Labels(("background", "organ"))
LAYERS = Labels(("whole", "core"), multilabel=True)
OBJECTS = Labels(("background", "cell"), instances=True)
OVERCONFIDENT = 2.0


def drawn(seed, labels, shape=(12, 14, 10)):
    """Probabilities that are too sure by a factor of two in the logit, and a truth drawn from the honest ones."""
    draw = np.random.default_rng(seed)
    layers = 2 if labels.multilabel else 1
    honest = draw.normal(0, 1.5, (layers, *shape))
    truth = draw.random((layers, *shape)) < 1 / (1 + np.exp(-honest))
    stated = 1 / (1 + np.exp(-OVERCONFIDENT * honest))
    if labels.multilabel:
        return stated.astype(np.float16), truth.astype(np.uint8)
    if labels.instances:
        return stated.astype(np.float16), np.where(truth[0], 7, 0)
    return np.stack([1 - stated[0], stated[0]]).astype(np.float16), truth[0].astype(np.uint8)


def counted(labels, *, fit=True):
    trust = VoxelTrust(labels)
    for case in range(6):
        trust.add("val", f"v{case}", *drawn(case, labels), (1.0, 1.0, 1.0))
    if fit:
        trust.fit()
    for case in range(8):
        trust.add("test", f"t{case}", *drawn(100 + case, labels), (1.0, 1.0, 1.0))
    return trust


@pytest.mark.parametrize("labels", [TWO, LAYERS, OBJECTS], ids=["classes", "layers", "objects"])
def test_what_was_too_sure_is_found_and_mended(labels):
    trust = counted(labels)
    assert trust.temperature == pytest.approx(OVERCONFIDENT, abs=0.1)
    found = trust.to_json("test")
    before, after = found["ece_interval"]["before"], found["ece_interval"]["after"]
    assert found["ece"] == {"before": before["value"], "after": after["value"]}
    # By integration: the mean of |sigmoid(2 z) - sigmoid(z)| over z of deviation 1.5.
    z = np.random.default_rng(9).normal(0, 1.5, 400_000)
    expected = np.abs(1 / (1 + np.exp(-2 * z)) - 1 / (1 + np.exp(-z))).mean()
    assert before["value"] == pytest.approx(expected, abs=0.01)
    assert before["low"] <= before["value"] <= before["high"]
    assert after["value"] < 0.02
    for one in found["reliability"]:
        if one["cases"] > 300:
            assert one["share"] == pytest.approx(one["confidence"], abs=0.08)
            assert one["low"] <= one["share"] <= one["high"]
    assert (found["cases"], found["left_out"]) == (8, 0)


def test_without_a_fit_there_is_one_number():
    found = counted(TWO, fit=False).to_json("test")
    assert found["ece"]["before"] is None
    assert found["ece"]["after"] > 0.1
    assert found["temperature"] is None
    assert VoxelTrust(TWO).to_json("test") == {}
    assert VoxelTrust(TWO).fit() is None


def test_large_and_many_cases_are_left_out():
    trust = VoxelTrust(TWO)
    assert not trust.wants("test", (1024, 1024, 512))
    assert trust.wants("test", (64, 64, 64))
    trust.plain["test"] = [None] * MOST_CASES
    assert not trust.wants("test", (64, 64, 64))
    assert trust.left_out == 2


def test_ignored_voxels_do_not_count():
    labels = Labels(("background", "organ"), ignore=255)
    p, truth = drawn(0, TWO)
    hidden = truth.copy()
    hidden[:6] = 255
    half, whole = VoxelTrust(labels), VoxelTrust(labels)
    half.add("test", "a", p, hidden, None)
    whole.add("test", "a", p[:, 6:], truth[6:], None)
    ours, theirs = half.to_json("test")["reliability"], whole.to_json("test")["reliability"]
    assert [(one["cases"], one["share"]) for one in ours] == [(one["cases"], one["share"]) for one in theirs]


def test_scores_of_certain_voxels_are_finite():
    p = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]], dtype=np.float16)[:, :, None]
    assert np.isfinite(scores_of(p, TWO)).all()
    assert np.isfinite(scores_of(p, LAYERS)).all()
    assert scores_of(p, LAYERS)[0, 2, 0] == pytest.approx(0.0, abs=1e-6)
