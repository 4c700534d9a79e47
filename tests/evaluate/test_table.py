"""The table of cases: what it holds, what it refuses, and that it survives the disk."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.core.errors import DataError, UnreadableFile, UsageError
from vesalius.core.labels import Labels
from vesalius.evaluate import table as tables
from vesalius.evaluate.decision import Decision

YES_NO = Labels(("no", "yes"))


def rows(labels, **more):
    n = len(labels)
    return pd.DataFrame({"case_id": [f"c{k}" for k in range(n)], "patient_id": [f"p{k}" for k in range(n)],
                         "label": labels, **more})  # fmt: skip


def test_columns_stand_in_order_and_places_are_left_out():
    found = tables.build_table(rows(["no", "yes"], path="x", role="image", split="test", sex=["F", "M"]), YES_NO,
                               [[0.9, 0.1], [0.6, 0.4]], [[1.0, 0.0], [2.0, 0.0]], spread=[0.1, 0.2])  # fmt: skip
    assert list(found.columns) == ["case_id", "patient_id", "split", "label", "predicted", "correct", "p.no", "p.yes",
                                   "logit.no", "logit.yes", "spread", "sex"]  # fmt: skip
    assert list(found["predicted"]) == ["no", "no"]
    assert list(found["correct"]) == [True, False]
    assert tables.covariates_of(found) == ["sex"]


@pytest.mark.parametrize("positive", [0, 1])
def test_one_column_of_the_positive_class_is_completed(positive):
    labels = Labels(("no", "yes"), positive=positive)
    found = tables.build_table(rows(["no", "yes"]), labels, [0.2, 0.7], [-1.0, 1.0])
    name, other = labels.names[positive], labels.names[1 - positive]
    np.testing.assert_allclose(found[f"p.{name}"], [0.2, 0.7])
    np.testing.assert_allclose(found[f"p.{other}"], [0.8, 0.3])
    np.testing.assert_array_equal(found[f"logit.{name}"], [-1, 1])
    np.testing.assert_array_equal(found[f"logit.{other}"], [0, 0])


def test_a_threshold_moves_the_decision_and_only_that():
    table = tables.build_table(rows(["no", "yes"]), YES_NO, [0.2, 0.4])
    strict = tables.decided(table, YES_NO, Decision({"yes": 0.4}))
    assert list(strict["predicted"]) == ["no", "yes"]
    assert list(table["predicted"]) == ["no", "no"]
    pd.testing.assert_frame_equal(
        strict.drop(columns=["predicted", "correct"]), table.drop(columns=["predicted", "correct"])
    )
    assert list(strict.columns) == list(table.columns)


def test_labels_that_may_hold_together():
    labels = Labels(("a", "b"), multilabel=True)
    table = tables.build_table(rows(["a|b", "", "b", None]), labels, [[0.9, 0.9], [0.1, 0.2], [0.6, 0.7], [0.1, 0.1]])
    assert list(table["predicted"]) == ["a|b", "", "a|b", ""]
    assert list(table["correct"]) == [True, True, False, True]
    decided = tables.decided(table, labels, Decision({"a": 0.8}))
    assert list(decided["predicted"]) == ["a|b", "", "b", ""]


def test_decisions_refuse_what_they_cannot_do():
    stated = np.array([[0.2, 0.3, 0.5]])
    with pytest.raises(UsageError, match="classes are no, yes"):
        Decision({"maybe": 0.5}).guess(YES_NO, stated[:, :2])
    with pytest.raises(UsageError, match="positive class 'yes'"):
        Decision({"no": 0.5}).guess(YES_NO, stated[:, :2])
    with pytest.raises(UsageError, match="yes/no question"):
        Decision({"b": 0.5}).guess(Labels(("a", "b", "c")), stated)
    kept = Decision({"yes": 0.25}, "val", "youden")
    assert Decision.from_json(kept.to_json()) == kept


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (rows(["no", "maybe"]), "case c1: label 'maybe' is not one of no, yes"),
        (rows(["no", None]), "case c1: label ''"),
        (rows(["no", "yes"]).assign(case_id="c0"), "'c0' stands in the table more than once"),
        (rows(["no", "yes"]).drop(columns="patient_id"), "no column 'patient_id'"),
    ],
)
def test_wrong_rows_are_refused(frame, words):
    with pytest.raises(DataError, match=words):
        tables.build_table(frame, YES_NO, [0.1, 0.2])


def test_wrong_arrays_and_unknown_findings_are_refused():
    with pytest.raises(ValueError, match="shape"):
        tables.build_table(rows(["no", "yes"]), YES_NO, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        tables.build_table(rows(["no", "yes"]), YES_NO, [0.1, np.nan])
    with pytest.raises(DataError, match="case c0: label 'z'"):
        tables.build_table(rows(["a|z"]), Labels(("a", "b"), multilabel=True), [[0.1, 0.2]])
    with pytest.raises(DataError, match=r"no column 'p\.a'"):
        tables.probabilities_of(tables.build_table(rows(["no"]), YES_NO, [0.1]), Labels(("a", "b")))


@given(
    st.lists(st.tuples(st.text(max_size=5), st.sampled_from(["no", "yes"]), st.floats(0, 1)), min_size=1, max_size=8)
)
@settings(max_examples=25, deadline=None)
def test_a_table_survives_the_disk(tmp_path_factory, content):
    people, names, stated = zip(*content, strict=True)
    table = tables.build_table(rows(list(names)).assign(patient_id=people, age=3.5), YES_NO, stated)
    path = tables.write_table(tmp_path_factory.mktemp("t") / "cases.parquet", table)
    pd.testing.assert_frame_equal(tables.read_table(path, YES_NO), table)


def test_a_broken_or_foreign_file_says_what_to_do(tmp_path):
    path = tmp_path / "cases.parquet"
    with pytest.raises(UnreadableFile, match="evaluate the run again"):
        tables.read_table(path)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(UnreadableFile, match="table of cases"):
        tables.read_table(path)
    tables.write_table(path, tables.build_table(rows(["no"]), YES_NO, [0.1]))
    with pytest.raises(UnreadableFile, match=r"no column 'p\.other'"):
        tables.read_table(path, Labels(("no", "other")))


def test_lists_of_cases_for_the_report():
    table = tables.build_table(rows(["no", "no", "yes", "yes", "yes"]), YES_NO, [0.1, 0.95, 0.2, 0.55, 0.99])
    assert list(tables.failing(table, 2)["case_id"]) == ["c1", "c2"]
    assert list(tables.failing(table, 1)["confidence"]) == [0.95]
    assert list(tables.surest(table, 2)["case_id"]) == ["c4", "c0"]
    assert list(tables.borderline(table, 1)["case_id"]) == ["c3"]
    labels = Labels(("a", "b", "c"), multilabel=True)
    table = tables.build_table(rows(["a", "a"]), labels, [[0.9, 0.5, 0.1], [0.9, 0.1, 0.2]])
    np.testing.assert_allclose(tables.confidence_of(table), [0.5, 0.8])
