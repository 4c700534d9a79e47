"""The table of a data set keeps what it knows and refuses what contradicts itself."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.core.errors import DataError, UnreadableFile, UsageError
from vesalius.core.labels import Labels
from vesalius.data.manifest import COLUMNS, Manifest, find_problems, targets
from vesalius.data.naming import canonical_split, natural_key, order_classes
from vesalius.data.problem import Problem

LABELS = Labels(("normal", "pneumonia"))


def make(
    root: Path = Path("/data"), labels: Labels | None = LABELS, task: str = "classify", **columns: list
) -> Manifest:
    given = {
        "case_id": ["a", "b", "c"],
        "patient_id": ["p", "p", "q"],
        "path": ["a.png", "b.png", "c.png"],
        "label": ["normal", "pneumonia", "pneumonia"],
        "split": ["train", "train", "test"],
        **columns,
    }
    return Manifest(root, pd.DataFrame(given), "table", task, labels, "column", "column")


def test_columns_are_text_and_covariates_stay_as_they_are():
    manifest = make(age=[1.0, np.nan, 3.0], patient_id=[7.0, 7.0, 8.0])
    assert list(manifest.frame.columns) == [*COLUMNS, "age"]
    assert manifest.frame["patient_id"].tolist() == ["7", "7", "8"]
    assert manifest.frame["role"].tolist() == ["image"] * 3
    assert manifest.covariates == ["age"]
    assert manifest.frame["age"].isna().tolist() == [False, True, False]


def test_counts_are_those_counted_by_hand():
    counts = make().counts()
    assert counts["cases"] == 3
    assert counts["patients"] == 2
    assert counts["classes"] == {"normal": 1, "pneumonia": 2}
    assert counts["class_patients"] == {"normal": 1, "pneumonia": 2}
    assert counts["splits"] == {"train": 2, "test": 1}
    assert counts["split_classes"] == {"train": {"normal": 1, "pneumonia": 1}, "test": {"normal": 0, "pneumonia": 1}}


def test_a_case_without_a_patient_is_its_own_patient():
    manifest = make(patient_id=["", "", "q"])
    assert manifest.frame["patient_id"].tolist() == ["a", "b", "q"]


def test_truth_rows_are_no_cases():
    manifest = make(
        case_id=["a", "a", "c"], role=["image", "mask", "image"], task="segment", labels=Labels(("background", "x"))
    )
    assert manifest.cases["path"].tolist() == ["a.png", "c.png"]
    assert len(manifest) == 2
    assert manifest.counts()["cases"] == 2


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"case_id": ["a", "a", "c"]}, ["'a'", "a.png and b.png", "case_id"]),
        ({"split": ["train", "tets", "test"]}, ["'tets'", "did you mean 'test'?", "1 rows"]),
    ],
)
def test_contradictions_are_refused_in_one_line(columns, expected):
    with pytest.raises(DataError) as caught:
        make(**columns)
    assert all(part in str(caught.value) for part in expected)
    assert "\n" not in str(caught.value)


def test_missing_columns_and_no_rows_are_refused():
    with pytest.raises(DataError, match=r"lacks the columns \['patient_id'\]"):
        Manifest(Path("/d"), pd.DataFrame({"case_id": ["a"], "path": ["a.png"]}), "table", "classify")
    with pytest.raises(DataError, match="no cases"):
        Manifest(Path("/d"), pd.DataFrame(columns=list(COLUMNS)), "table", "classify")
    with pytest.raises(UsageError, match="task 'clasify' is unknown"):
        make(task="clasify")


def test_targets_of_exclusive_classes_are_indices():
    found = targets(make())
    assert found.dtype == np.int64
    assert found.tolist() == [0, 1, 1]


def test_targets_of_several_classes_are_columns():
    labels = Labels(("x", "xy", "z"), multilabel=True)
    found = targets(make(labels=labels, label=["x|z", "", "xy"]))
    assert found.dtype == np.uint8
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("labels", "label"),
    [
        (LABELS, ["normal", "pneumona", "normal"]),
        (LABELS, ["normal", "", "normal"]),
        (Labels(("x", "y"), multilabel=True), ["x|q", "", "y"]),
    ],
)
def test_targets_refuse_labels_that_are_no_class(labels, label):
    with pytest.raises(DataError, match="1 cases"):
        targets(make(labels=labels, label=label))


def test_targets_need_classes():
    with pytest.raises(DataError, match="no class per case"):
        targets(make(labels=None, task="unlabelled"))


def test_content_hash_sees_every_cell_but_not_the_order_or_the_folder():
    manifest = make(age=[1.0, 2.0, 3.0])
    base = manifest.content_hash()
    turned = manifest.with_frame(manifest.frame.iloc[::-1])
    assert turned.content_hash() == base
    assert make(Path("/elsewhere"), age=[1.0, 2.0, 3.0]).content_hash() == base
    assert make(age=[1.0, 2.0, 4.0]).content_hash() != base
    assert make(age=[1.0, 2.0, 3.0], split=["train", "val", "test"]).content_hash() != base
    assert make(age=[1.0, 2.0, 3.0], labels=Labels(("pneumonia", "normal"))).content_hash() != base


def test_parquet_keeps_everything(tmp_path):
    manifest = make(age=[1.0, np.nan, 3.0], site=["A", "B", "é"]).with_problems(Problem("note", "x", "y"))
    again = Manifest.from_parquet(manifest.to_parquet(tmp_path / "deep" / "cohort.parquet"))
    pd.testing.assert_frame_equal(again.frame, manifest.frame)
    for name in ("root", "layout", "task", "labels", "patient_source", "split_source", "published", "problems"):
        assert getattr(again, name) == getattr(manifest, name)
    assert again.content_hash() == manifest.content_hash()
    moved = Manifest.from_parquet(tmp_path / "deep" / "cohort.parquet", root=tmp_path)
    assert moved.absolute("a.png") == tmp_path / "a.png"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cohort.parquet"]


names = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=8).map(str.strip).filter(bool)


@given(
    st.lists(
        st.tuples(names, names, st.sampled_from(["train", "val", "test", ""])),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[0],
    )
)
def test_parquet_round_trip_of_any_text(tmp_path_factory, rows):
    frame = pd.DataFrame(
        [(case, patient, f"{case}.png", split) for case, patient, split in rows],
        columns=["case_id", "patient_id", "path", "split"],
    )
    manifest = Manifest(Path("/d"), frame, "table", "unlabelled")
    path = manifest.to_parquet(tmp_path_factory.mktemp("round") / "m.parquet")
    again = Manifest.from_parquet(path)
    pd.testing.assert_frame_equal(again.frame, manifest.frame)
    assert again.frame["case_id"].tolist() == [case for case, _, _ in rows]


def test_a_foreign_parquet_is_named(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UnreadableFile, match="without the facts of a manifest"):
        Manifest.from_parquet(tmp_path / "t.parquet")
    (tmp_path / "u.parquet").write_bytes(b"nonsense")
    with pytest.raises(UnreadableFile, match="not readable as Parquet"):
        Manifest.from_parquet(tmp_path / "u.parquet")
    with pytest.raises(DataError, match="no such file"):
        Manifest.from_parquet(tmp_path / "v.parquet")


def test_a_manifest_travels_between_processes():
    manifest = make()
    assert pickle.loads(pickle.dumps(manifest)).content_hash() == manifest.content_hash()


def texts(manifest: Manifest) -> str:
    return " / ".join(map(str, find_problems(manifest)))


def test_cohort_problems_are_found():
    assert "class 'normal' has 1 case(s) of one patient" in texts(make())
    assert "no patient ids are known" not in texts(make())
    shared = make(patient_id=["p", "q", "p"])
    assert "1 patients stand in more than one split, first 'p'" in texts(shared)
    spelled = make(labels=Labels(("Normal", "normal")), label=["normal", "Normal", "normal"])
    assert "differ only in spelling" in texts(spelled)


def test_problem_severity_is_checked():
    with pytest.raises(ValueError, match="note, warning, error"):
        Problem("fatal", "", "x")


@pytest.mark.parametrize(
    ("given", "expected", "sure"),
    [
        ({"NORMAL", "PNEUMONIA"}, ("NORMAL", "PNEUMONIA"), True),
        ({"pneumonia", "abnormal", "x"}, ("abnormal", "pneumonia", "x"), True),
        ({"abnormal", "normal"}, ("normal", "abnormal"), True),
        ({"malignant", "benign"}, ("benign", "malignant"), True),
        ({"0", "1"}, ("0", "1"), True),
        ({"Yes", "No"}, ("No", "Yes"), True),
        ({"positive", "negative"}, ("negative", "positive"), True),
        ({"COVID", "NonCOVID"}, ("NonCOVID", "COVID"), True),
        ({"a disease", "healthy"}, ("healthy", "a disease"), True),
        ({"Lesion", "Skin"}, ("Skin", "Lesion"), True),
        ({"no finding", "finding"}, ("no finding", "finding"), True),
        ({"left", "right"}, ("left", "right"), False),
        ({"grade 10", "grade 2", "grade 1"}, ("grade 1", "grade 2", "grade 10"), True),
    ],
)
def test_the_finding_is_the_second_of_two_classes(given, expected, sure):
    assert order_classes(given) == (expected, sure)


@given(st.lists(st.text(max_size=6), min_size=2, max_size=6, unique=True))
def test_the_order_of_classes_does_not_depend_on_the_order_given(names_given):
    assert order_classes(names_given) == order_classes(reversed(names_given))
    assert sorted(order_classes(names_given)[0]) == sorted(names_given)


def test_split_words():
    assert [canonical_split(word) for word in ("Train", "valid", " TESTING ", "fold1", "")] == [
        "train",
        "val",
        "test",
        None,
        None,
    ]
    assert sorted(["10", "9", "x1", "x"], key=natural_key) == ["9", "10", "x", "x1"]
