"""Brier score, log-likelihood, calibration error and temperature against scikit-learn, scipy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from vesalius.measure import calibration


def exclusive(seed: int = 0, n: int = 400, classes: int = 4, sharpness: float = 3.0):
    """Logits that are `sharpness` times too confident, and their truth."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, classes)) * 1.5
    truth = np.array([random.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return logits * sharpness, truth


def yes_no(seed: int = 0, n: int = 400):
    random = np.random.default_rng(seed)
    stated = random.random(n)
    return random.random(n) < stated**1.5, stated


def test_brier_equals_scikit_learn():
    truth, stated = yes_no()
    weight = np.random.default_rng(1).integers(0, 3, len(truth)).astype(float)
    expected = reference.brier_score_loss(truth, stated, sample_weight=weight)
    assert calibration.brier(truth, stated, weight) == pytest.approx(expected)
    logits, truth = exclusive()
    stated = softmax(logits, axis=1)
    expected = reference.brier_score_loss(truth, stated, labels=range(4), scale_by_half=False)
    assert calibration.brier(truth, stated) == pytest.approx(expected)


def test_two_exclusive_classes_have_twice_the_binary_score():
    truth, stated = yes_no()
    both = calibration.brier(truth.astype(int), np.stack([1 - stated, stated], axis=1))
    assert both == pytest.approx(2 * calibration.brier(truth, stated))


def test_nll_equals_scikit_learn_also_for_certain_errors():
    truth, stated = yes_no()
    stated[0], truth[0] = 0.0, True
    assert calibration.nll(truth, stated) == pytest.approx(reference.log_loss(truth, stated))
    logits, truth = exclusive()
    stated = softmax(logits, axis=1)
    weight = np.random.default_rng(1).integers(0, 3, len(truth)).astype(float)
    expected = reference.log_loss(truth, stated, labels=range(4), sample_weight=weight)
    assert calibration.nll(truth, stated, weight) == pytest.approx(expected)


def test_reliability_and_ece_equal_scikit_learns_calibration_curve():
    truth, stated = yes_no()
    curve = calibration.reliability_curve(truth, stated, bins=15)
    held = curve.weight > 0
    share, confidence = calibration_curve(truth, stated, n_bins=15)
    np.testing.assert_allclose(curve.share[held], share)
    np.testing.assert_allclose(curve.confidence[held], confidence)
    expected = np.sum(curve.weight[held] / len(truth) * np.abs(share - confidence))
    assert calibration.ece(truth, stated) == pytest.approx(expected)
    assert np.all(curve.low <= np.nan_to_num(curve.share, nan=0.5))
    assert np.all(np.nan_to_num(curve.share, nan=0.5) <= curve.high)


def test_multiclass_ece_is_about_the_top_label():
    logits, truth = exclusive()
    stated = softmax(logits, axis=1)
    right, confidence = stated.argmax(axis=1) == truth, stated.max(axis=1)
    gap = 0.0
    for low in range(15):  # the definition, bin by bin
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration.ece(truth, stated) == pytest.approx(gap)
    np.testing.assert_array_equal(calibration.top_label(truth, stated)[0].astype(bool), right)
    np.testing.assert_array_equal(calibration.top_label(truth, stated)[1], confidence)


def test_bins_are_open_below_and_closed_above():
    curve = calibration.reliability_curve([True, True, False], [0.0, 0.5, 1.0], bins=2)
    np.testing.assert_array_equal(curve.weight, [2, 1])


def test_adaptive_bins_hold_equally_many_cases_and_equal_scikit_learn():
    truth, stated = yes_no(n=300)
    curve = calibration.reliability_curve(truth, stated, bins=10, adaptive=True)
    assert np.ptp(curve.weight) <= 1
    share, confidence = calibration_curve(truth, stated, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(curve.share, share)
    expected = np.sum(curve.weight / 300 * np.abs(share - confidence))
    assert calibration.ece(truth, stated, bins=10, adaptive=True) == pytest.approx(expected)
    # Equal confidences leave fewer bins, none of them without width.
    assert len(calibration.reliability_curve([True, False], [0.3, 0.3], bins=10, adaptive=True).weight) <= 2


@pytest.mark.parametrize("score", [calibration.brier, calibration.nll, calibration.ece])
def test_replicates_equal_repeated_cases(score):
    logits, truth = exclusive(n=80)
    stated = softmax(logits, axis=1)
    table = np.random.default_rng(0).integers(0, 3, (7, 80))
    found = score(truth, stated, table)
    assert found.shape == (7,)
    for row, value in zip(table, found, strict=True):
        assert value == pytest.approx(score(np.repeat(truth, row), np.repeat(stated, row, axis=0)))
    assert np.isnan(score(truth, stated, np.zeros(80)))


def test_temperature_equals_an_unbounded_minimiser():
    logits, truth = exclusive(sharpness=3.0)

    def loss(t):
        return -log_softmax(logits / t[0], axis=1)[np.arange(len(truth)), truth].mean()

    expected = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x[0]
    found = calibration.fit_temperature(logits, truth)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found == pytest.approx(3.0, rel=0.15)  # the confidence that was put in comes out
    calibrated = calibration.apply_temperature(logits, found)
    assert calibration.ece(truth, calibrated) < calibration.ece(truth, softmax(logits, axis=1)) / 2
    assert calibration.nll(truth, calibrated) < calibration.nll(truth, softmax(logits, axis=1))


@pytest.mark.parametrize("shape", [(500,), (250, 2)])
def test_temperature_of_yes_no_and_of_labels_that_may_hold_together(shape):
    random = np.random.default_rng(4)
    logits = random.normal(size=shape) * 2
    truth = random.random(shape) < expit(logits)
    several = len(shape) == 2
    losses = [
        (np.logaddexp(0, np.where(truth, -1, 1) * logits * 0.5 / t).mean(), t) for t in np.geomspace(0.05, 20, 4000)
    ]
    assert calibration.fit_temperature(logits * 0.5, truth, multilabel=several) == pytest.approx(
        min(losses)[1], rel=3e-3
    )


def test_two_exclusive_classes_have_the_temperature_of_their_difference():
    logits, truth = exclusive(classes=2)
    one = calibration.fit_temperature(logits[:, 1] - logits[:, 0], truth == 1)
    assert calibration.fit_temperature(logits, truth) == pytest.approx(one, rel=1e-6)


def test_a_validation_set_without_an_error_leaves_the_logits_alone():
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert calibration.fit_temperature(logits, [0, 1]) == 1.0
    assert calibration.fit_temperature([3.0, -2.0], [True, False]) == 1.0
    assert calibration.fit_temperature(np.zeros((3, 2)), [0, 1, 0]) == 1.0
    assert calibration.fit_temperature(np.zeros((0, 2)), []) == 1.0


def test_temperature_stays_in_range():
    assert calibration.fit_temperature([[1.0, 0.0], [0.0, 1.0]], [1, 0]) == pytest.approx(20, rel=1e-3)
    assert calibration.fit_temperature([[1e4, 0.0], [0.0, 1e4], [0.0, 1e4]], [0, 0, 1]) <= 20
    # One marginal error among confident truths asks for far more confidence than is allowed.
    nearly = np.r_[np.full(50, 1.0), 1e-9]
    assert calibration.fit_temperature(nearly, [True] * 50 + [False]) == pytest.approx(0.05, rel=1e-3)


def test_apply_temperature_equals_scipy():
    logits = np.array([[1000.0, 0.0, -1000.0], [1.0, 2.0, 3.0]])
    np.testing.assert_allclose(calibration.apply_temperature(logits, 2.0), softmax(logits / 2, axis=1))
    np.testing.assert_allclose(calibration.apply_temperature(logits, 2.0, multilabel=True), expit(logits / 2))
    np.testing.assert_allclose(calibration.apply_temperature(logits[0], 2.0), expit(logits[0] / 2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: calibration.fit_temperature([[np.inf, 0.0]], [0]), "finite"),
        (lambda: calibration.fit_temperature([[1.0, 0.0]], [2]), "0..1"),
        (lambda: calibration.fit_temperature([[1.0, 0.0]], [0, 1]), "N = 1"),
        (lambda: calibration.fit_temperature([1.0, 0.0], [True]), "does not fit"),
        (lambda: calibration.fit_temperature(1.0, [True]), "axes"),
        (lambda: calibration.apply_temperature([1.0], 0.0), "positive"),
        (lambda: calibration.brier([True], [1.5]), "between 0 and 1"),
        (lambda: calibration.brier([True], [np.nan]), "between 0 and 1"),
        (lambda: calibration.brier([3], [0.5]), "bool, or 0 and 1"),
        (lambda: calibration.brier([3], [[0.5, 0.5]]), "0..1"),
        (lambda: calibration.brier([True, False], [0.5]), "axes"),
        (lambda: calibration.ece([True], [0.5], bins=0), "at least one bin"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
