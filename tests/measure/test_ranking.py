"""AUROC and average precision against scikit-learn and against counting pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn import metrics as reference

from vesalius.measure import ranking, weights


def cases(seed: int, n: int = 60, levels: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Truth with both classes, and scores with ties."""
    random = np.random.default_rng(seed)
    truth = random.random(n) < 0.3
    truth[:2] = True, False
    return truth, np.round(random.random(n) + 0.4 * truth, 1) if levels < 10 else random.random(n) + 0.4 * truth


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_areas_equal_scikit_learn_for_any_ties_and_weights(data):
    n = data.draw(st.integers(2, 25))
    truth = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    truth[:2] = True, False
    score = np.array(data.draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n)), dtype=float)
    weight = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), dtype=float)
    weight[:2] = np.maximum(weight[:2], 1)
    assert ranking.auroc(truth, score, weight) == pytest.approx(
        reference.roc_auc_score(truth, score, sample_weight=weight), abs=1e-12
    )
    assert ranking.auprc(truth, score, weight) == pytest.approx(
        reference.average_precision_score(truth, score, sample_weight=weight), abs=1e-12
    )


def test_auroc_is_the_mann_whitney_statistic():
    truth, score = cases(1)
    pairs = mannwhitneyu(score[truth], score[~truth]).statistic
    assert ranking.auroc(truth, score) == pytest.approx(pairs / (truth.sum() * (~truth).sum()), abs=1e-12)


def test_hanley_and_mcneil_1982_table_1():
    # 109 CT images rated from 1 (definitely normal) to 5 (definitely abnormal); the paper's area is 0.893.
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    score = np.repeat([1, 2, 3, 4, 5] * 2, normal + abnormal)
    truth = np.arange(109) >= sum(normal)
    assert round(float(ranking.auroc(truth, score)), 3) == 0.893


def test_weights_by_replicate_equal_one_at_a_time_and_repeated_cases(monkeypatch):
    truth, score = cases(2)
    table = np.random.default_rng(0).integers(0, 4, (23, len(truth))).astype(float)
    whole = ranking.Ranks.of(truth, score).areas(table)
    monkeypatch.setattr(weights, "BLOCK", 5 * len(truth))  # several blocks, the last one smaller
    assert [b.stop - b.start for b in weights.blocks(23, len(truth))] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(ranking.auroc(truth, score, table), whole[0])
    np.testing.assert_array_equal(ranking.auprc(truth, score, table), whole[1])
    for row, roc, pr in zip(table.astype(int), *whole, strict=True):
        repeated = np.repeat(truth, row), np.repeat(score, row)
        assert roc == pytest.approx(reference.roc_auc_score(*repeated), abs=1e-12)
        assert pr == pytest.approx(reference.average_precision_score(*repeated), abs=1e-12)


def test_an_absent_class_gives_nan_also_when_only_its_weight_is_zero():
    assert np.isnan(ranking.auroc([True, True], [0.1, 0.2]))
    assert np.isnan(ranking.auprc([False, False], [0.1, 0.2]))
    truth, score = np.array([True, False, False]), np.array([0.9, 0.1, 0.4])
    table = np.array([[1.0, 1, 1], [0, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(ranking.auroc(truth, score, table), [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(ranking.auprc(truth, score, table), [1.0, np.nan, np.nan])
    assert np.isnan(ranking.auroc([], []))


@pytest.mark.parametrize("weighted", [False, True])
def test_one_vs_rest_and_macro_equal_scikit_learn(weighted):
    random = np.random.default_rng(3)
    truth = np.r_[0, 1, 2, random.integers(0, 3, 80)]
    scores = random.random((83, 3)) + 0.5 * (truth[:, None] == np.arange(3))
    scores /= scores.sum(axis=1, keepdims=True)
    weight = random.integers(1, 4, 83).astype(float) if weighted else None
    expected = reference.roc_auc_score(truth, scores, multi_class="ovr", sample_weight=weight, average="macro")
    assert ranking.macro_auroc(truth, scores, weight) == pytest.approx(expected, abs=1e-12)
    held = truth[:, None] == np.arange(3)
    expected = reference.average_precision_score(held, scores, average=None, sample_weight=weight)
    np.testing.assert_allclose(ranking.one_vs_rest(truth, scores, weight)[1], expected, atol=1e-12)
    assert ranking.macro_auprc(held, scores, weight) == pytest.approx(np.mean(expected), abs=1e-12)


def test_macro_leaves_out_a_class_without_cases():
    truth = np.array([0, 1, 0, 1])
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.2, 0.6, 0.2]])
    assert np.isnan(ranking.one_vs_rest(truth, scores)[0][2])
    assert ranking.macro_auroc(truth, scores) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_roc_curve_equals_scikit_learn(seed):
    truth, score = cases(seed)
    weight = np.random.default_rng(seed).integers(1, 4, len(truth)).astype(float)
    expected = reference.roc_curve(truth, score, sample_weight=weight, drop_intermediate=False)
    for ours, theirs in zip(ranking.roc_curve(truth, score, weight), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_precision_recall_curve_equals_scikit_learn(seed):
    truth, score = cases(seed)
    recall, precision, thresholds = ranking.precision_recall_curve(truth, score)
    their_precision, their_recall, their_thresholds = reference.precision_recall_curve(truth, score)
    np.testing.assert_allclose(recall, their_recall[::-1], atol=1e-12)
    np.testing.assert_allclose(precision, their_precision[::-1], atol=1e-12)
    np.testing.assert_allclose(thresholds[1:], their_thresholds[::-1])


@pytest.mark.parametrize(
    ("truth", "score", "weight", "words"),
    [
        ([True, False], [0.1, np.nan], None, "NaN for 1 of 2"),
        ([True, False], [0.1], None, "axes"),
        ([0, 2], [0.1, 0.2], None, "bool, or 0 and 1"),
        ([True, False], [0.1, 0.2], [1.0, -1.0], "not negative"),
        ([True, False], [0.1, 0.2], [1.0, np.nan], "finite"),
        ([True, False], [0.1, 0.2], [1.0, np.inf], "finite"),
        ([True, False], [0.1, 0.2], [1.0], "N = 2"),
    ],
)
def test_wrong_input_is_refused(truth, score, weight, words):
    with pytest.raises(ValueError, match=words):
        ranking.auroc(truth, score, weight)


def test_a_curve_refuses_replicates_and_scores_need_classes():
    with pytest.raises(ValueError, match="a curve takes"):
        ranking.roc_curve([True, False], [0.1, 0.2], np.ones((3, 2)))
    with pytest.raises(ValueError, match="must have axes"):
        ranking.one_vs_rest([0, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="does not fit"):
        ranking.one_vs_rest([0, 1, 1], [[0.1, 0.2], [0.1, 0.2]])
