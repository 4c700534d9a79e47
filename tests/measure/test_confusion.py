"""Confusion matrices and rates against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from vesalius.measure import confusion, weights


@st.composite
def decisions(draw):
    classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    numbers = st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)
    weight = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    weight[0] = max(weight[0], 1)
    return np.array(draw(numbers)), np.array(draw(numbers)), classes, np.array(weight, dtype=float)


@given(decisions())
@settings(max_examples=150, deadline=None)
def test_matrix_and_rates_equal_scikit_learn(given_cases):
    truth, guess, classes, weight = given_cases
    names = np.arange(classes)
    matrix = confusion.confusion_matrix(truth, guess, classes, weight)
    np.testing.assert_array_equal(matrix, reference.confusion_matrix(truth, guess, labels=names, sample_weight=weight))
    assert confusion.accuracy(matrix) == pytest.approx(reference.accuracy_score(truth, guess, sample_weight=weight))
    kind = {"labels": names, "average": None, "sample_weight": weight, "zero_division": np.nan}
    np.testing.assert_allclose(confusion.precision(matrix), reference.precision_score(truth, guess, **kind))
    np.testing.assert_allclose(confusion.recall(matrix), reference.recall_score(truth, guess, **kind))
    np.testing.assert_array_equal(confusion.sensitivity(matrix), confusion.recall(matrix))
    np.testing.assert_allclose(confusion.f1(matrix), reference.f1_score(truth, guess, **kind))
    # Specificity and negative predictive value are recall and precision of "not this class".
    for k in names:
        negative = {"sample_weight": weight, "zero_division": np.nan}
        expected = reference.recall_score(truth != k, guess != k, **negative)
        np.testing.assert_allclose(confusion.specificity(matrix)[k], expected)
        expected = reference.precision_score(truth != k, guess != k, **negative)
        np.testing.assert_allclose(confusion.negative_predictive_value(matrix)[k], expected)


@given(decisions())
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_agreement_equals_scikit_learn_where_it_is_defined(given_cases):
    truth, guess, classes, weight = given_cases
    weight += 1
    matrix = confusion.confusion_matrix(truth, guess, classes, weight)
    if len({*truth, *guess}) > 1:
        for ours, theirs in (("none", None), ("linear", "linear"), ("quadratic", "quadratic")):
            expected = reference.cohen_kappa_score(
                truth, guess, labels=np.arange(classes), weights=theirs, sample_weight=weight
            )
            assert confusion.kappa(matrix, ours) == pytest.approx(expected, abs=1e-9)
    else:
        assert np.isnan(confusion.kappa(matrix))
    if len(set(truth)) > 1 and len(set(guess)) > 1:
        expected = reference.matthews_corrcoef(truth, guess, sample_weight=weight)
        assert confusion.mcc(matrix) == pytest.approx(expected, abs=1e-9)
    else:
        assert np.isnan(confusion.mcc(matrix))
    present = reference.balanced_accuracy_score(truth, guess, sample_weight=weight)
    assert confusion.balanced_accuracy(matrix) == pytest.approx(present)
    expected = reference.precision_score(
        truth, guess, labels=np.arange(classes), average="macro", sample_weight=weight, zero_division=np.nan
    )
    assert confusion.macro(confusion.precision(matrix)) == pytest.approx(expected)


def test_replicates_equal_one_at_a_time(monkeypatch):
    random = np.random.default_rng(0)
    truth, guess = random.integers(0, 4, 50), random.integers(0, 4, 50)
    table = random.integers(0, 3, (11, 50)).astype(float)
    monkeypatch.setattr(weights, "BLOCK", 150)
    matrices = confusion.confusion_matrix(truth, guess, 4, table)
    for row, matrix in zip(table.astype(int), matrices, strict=True):
        expected = reference.confusion_matrix(np.repeat(truth, row), np.repeat(guess, row), labels=range(4))
        np.testing.assert_array_equal(matrix, expected)
    assert confusion.kappa(matrices, "quadratic").shape == (11,)
    assert confusion.f1(matrices).shape == (11, 4)
    for rate in (confusion.accuracy, confusion.mcc, confusion.kappa, confusion.balanced_accuracy):
        np.testing.assert_array_equal(rate(matrices)[7], rate(matrices[7]))


def test_binary_matrices_equal_scikit_learn():
    random = np.random.default_rng(1)
    truth, guess = random.random((40, 3)) < 0.3, random.random((40, 3)) < 0.4
    np.testing.assert_array_equal(
        confusion.binary_matrices(truth, guess), reference.multilabel_confusion_matrix(truth, guess)
    )
    assert confusion.binary_matrices(truth, guess, np.ones((5, 40))).shape == (5, 3, 2, 2)


def test_empty_classes_are_nan_and_means_leave_them_out():
    matrix = confusion.confusion_matrix([0, 0, 1], [0, 1, 1], 3)
    assert np.isnan(confusion.recall(matrix)[2])
    assert np.isnan(confusion.precision(matrix)[2])
    assert np.isnan(confusion.f1(matrix)[2])
    assert confusion.balanced_accuracy(matrix) == 0.75
    assert np.isnan(confusion.accuracy(np.zeros((2, 2))))
    never_said = confusion.confusion_matrix([0, 1], [0, 0], 2)
    assert np.isnan(confusion.precision(never_said)[1])
    assert confusion.f1(never_said)[1] == 0


@pytest.mark.parametrize(
    ("truth", "guess", "words"),
    [([0, 3], [0, 1], "0..2"), ([0, -1], [0, 1], "0..2"), ([0, 0.5], [0, 1], "0..2"), ([0], [0, 1], "same shape"),
     ([[0]], [[0]], "axes")],
)  # fmt: skip
def test_wrong_class_numbers_are_refused(truth, guess, words):
    with pytest.raises(ValueError, match=words):
        confusion.confusion_matrix(truth, guess, 3)


def test_other_wrong_input_is_refused():
    with pytest.raises(ValueError, match="none, linear, quadratic"):
        confusion.kappa(np.eye(2), "cubic")
    with pytest.raises(ValueError, match=r"\(...,K,K\)"):
        confusion.accuracy(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"\(N,K\)"):
        confusion.binary_matrices([True], [True])
