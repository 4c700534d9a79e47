"""Two segmentation models on the same cases."""

import numpy as np
import pandas as pd
import pytest

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.evaluate.segment_compare import compare_segments

LABELS = Labels(("background", "liver", "spleen"))


def table(seed=0, shift=0.0, noise=0.0, cases=40, per_patient=2):
    hard, own = np.random.default_rng(5), np.random.default_rng(seed)
    rows = []
    for number in range(cases):
        for label in LABELS.structures:
            dice = 0.8 + 0.1 * hard.normal() + shift + noise * own.normal()
            rows.append({"case_id": f"c{number:03d}", "patient_id": f"p{number // per_patient}", "split": "test",
                         "label": label, "outcome": "found", "dice": dice, "hd95_mm": 2 - dice})  # fmt: skip
    return pd.DataFrame(rows)


def test_what_is_hard_for_both_cancels_out():
    first, second = table(), table(shift=-0.02)
    found = compare_segments(first, second.sample(frac=1, random_state=1), LABELS)
    change = found.difference["dice"]
    assert change.value == pytest.approx(-0.02)
    assert change.high - change.low < 1e-9
    assert found.first["dice"] - found.second["dice"] == pytest.approx(0.02)
    assert (found.cases, found.patients) == (40, 20)
    assert found.per_class["liver"]["dice"].value == pytest.approx(-0.02)
    assert found.to_json()["metrics"]["hd95_mm"]["difference"]["value"] == pytest.approx(0.02)


def test_intervals_of_differences_hold_the_truth_as_often_as_they_say():
    hits = 0
    for seed in range(60):
        found = compare_segments(table(), table(seed=seed, shift=0.01, noise=0.03), LABELS, resamples=300, seed=seed)
        hits += found.difference["dice"].low <= 0.01 <= found.difference["dice"].high
    assert hits >= 50  # 57 of 60 expected


def test_a_distance_that_one_model_lacks_counts_for_neither():
    first, second = table(), table()
    second.loc[0, "hd95_mm"] = np.inf
    assert compare_segments(first, second, LABELS).difference["hd95_mm"].value == pytest.approx(0)


def test_other_cases_are_refused():
    with pytest.raises(DataError, match="c039"):
        compare_segments(table(), table(cases=39), LABELS)
