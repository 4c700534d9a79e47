"""Thresholds: chosen on validation only, by the stated rule."""

from __future__ import annotations

import numpy as np
import pytest
from evaluate_cases import cohort, findings
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.evaluate.operating import choose_thresholds, operating_points, youden_decision


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=2, max_size=30))
@settings(max_examples=150, deadline=None)
def test_thresholds_are_best_by_exhaustive_search(content):
    truth = np.array([t for t, _ in content])
    score = np.array([s for _, s in content]) / 10
    found = choose_thresholds(truth, score)
    if truth.all() or not truth.any():
        assert found == {}
        return
    candidates = np.r_[np.unique(score), 2.0]
    rates = [((score >= t)[truth].mean(), (score < t)[~truth].mean()) for t in candidates]
    reached = (score >= found["youden"])[truth].mean(), (score < found["youden"])[~truth].mean()
    assert sum(reached) == pytest.approx(max(sum(pair) for pair in rates))
    assert reached[0] == pytest.approx(max(s for s, p in rates if s + p >= sum(reached) - 1e-9))
    limit = found["sensitivity_95"]
    assert (score >= limit)[truth].mean() >= 0.95
    best = max(p for s, p in rates if s >= 0.95)
    assert (score < limit)[~truth].mean() == pytest.approx(best)


def test_a_threshold_lies_between_scores():
    assert choose_thresholds([False, True], [0.2, 0.6])["youden"] == pytest.approx(0.4)


def test_points_are_chosen_on_validation_and_judged_on_test():
    labels, table = cohort(("no", "yes"), patients=200)
    test, val = (table[table["split"] == s] for s in ("test", "val"))
    points = operating_points(test, val, labels, resamples=64)
    held = val["label"] == "yes"
    for rule, threshold in choose_thresholds(held, val["p.yes"]).items():
        point = points[rule]
        assert point["threshold"] == threshold
        assert point["chosen_on"] == "val"
        said, true = test["p.yes"] >= threshold, test["label"] == "yes"
        assert point["sensitivity"]["value"] == pytest.approx(said[true].mean())
        assert point["specificity"]["value"] == pytest.approx((~said)[~true].mean())
        assert point["ppv"]["value"] == pytest.approx(true[said].mean())
        assert point["npv"]["value"] == pytest.approx((~true)[~said].mean())
        assert point["sensitivity"]["low"] <= point["sensitivity"]["value"] <= point["sensitivity"]["high"]
        assert "warning" not in point
    assert points["half"] | {"threshold": 0.5, "chosen_on": "fixed"} == points["half"]
    # Another test set leaves the thresholds where they are.
    again = operating_points(test.iloc[::2], val, labels, resamples=20)
    assert again["youden"]["threshold"] == points["youden"]["threshold"]


def test_few_positive_validation_cases_are_warned_of():
    labels, table = cohort(("no", "yes"), patients=24)
    test, val = (table[table["split"] == s] for s in ("test", "val"))
    points = operating_points(test, val, labels, resamples=20)
    assert "12 positive validation cases" in points["youden"]["warning"]
    assert "warning" not in points["half"]


def test_a_decision_by_youden():
    labels, table = cohort(("no", "yes"))
    decision = youden_decision(table[table["split"] == "val"], labels)
    assert (decision.rule, decision.chosen_on, list(decision.thresholds)) == ("youden", "val", ["yes"])
    assert youden_decision(table[table["label"] == "no"], labels).thresholds == {}
    labels, table, _ = findings()
    assert list(youden_decision(table, labels).thresholds) == list(labels.names)
