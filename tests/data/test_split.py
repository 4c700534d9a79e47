"""Splits keep patients and duplicates together, classes balanced, and what came with the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vesalius.core.errors import DataError, UsageError
from vesalius.core.labels import Labels
from vesalius.data.manifest import Manifest
from vesalius.data.split import split_manifest


def make(
    patients: list[str],
    labels: list[str] | None = None,
    *,
    task: str = "classify",
    source: str = "none",
    multilabel: bool = False,
    **columns: list,
) -> Manifest:
    labels = labels or ["yes" if index % 2 else "no" for index in range(len(patients))]
    frame = pd.DataFrame(
        {
            "case_id": [f"c{index:05d}" for index in range(len(patients))],
            "patient_id": patients,
            "path": [f"{index}.png" for index in range(len(patients))],
            "label": labels,
            **columns,
        }
    )
    names = sorted({part for label in labels for part in label.split("|")} - {""})
    return Manifest(Path("/d"), frame, "table", task, Labels(tuple(names), multilabel=multilabel), "column", source)


def cohort(patients: int, seed: int = 0, *, shares: tuple[float, ...] = (0.7, 0.3)) -> Manifest:
    """Patients with one to nine images each, and a class per patient."""
    rng = np.random.default_rng(seed)
    people, labels = [], []
    for patient in range(patients):
        name = f"class {rng.choice(len(shares), p=shares)}"
        for _ in range(rng.integers(1, 10)):
            people.append(f"p{patient}")
            labels.append(name)
    return make(people, labels)


def parts_of(manifest: Manifest, column: str) -> pd.Series:
    return manifest.cases.groupby(column)["split"].nunique()


@given(st.lists(st.integers(0, 30), min_size=12, max_size=120), st.integers(0, 2**31), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_no_patient_and_no_group_of_duplicates_is_divided(people, seed, data):
    assume(len(set(people)) >= 12)
    groups = data.draw(st.lists(st.lists(st.integers(0, len(people) - 1), min_size=2, max_size=3), max_size=3))
    manifest = make([f"p{number}" for number in people], task="unlabelled")
    made = split_manifest(manifest, seed=seed, groups=groups)
    assert set(made.cases["split"]) <= {"train", "val", "test"}
    assert (parts_of(made, "patient_id") == 1).all()
    for group in groups:
        assert made.cases["split"].iloc[group].nunique() == 1


@given(st.integers(0, 2**31), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_split_is_a_function_of_seed_and_cases_not_of_the_row_order(seed, shuffle):
    manifest = cohort(40, seed % 7)
    first = split_manifest(manifest, seed=seed)
    again = split_manifest(manifest, seed=seed)
    assert first.frame.equals(again.frame)
    turned = manifest.with_frame(manifest.frame.sample(frac=1, random_state=shuffle))
    other = split_manifest(turned, seed=seed).frame.sort_values("case_id").reset_index(drop=True)
    assert other["split"].tolist() == first.frame["split"].tolist()


def test_another_seed_gives_another_split():
    manifest = cohort(100)
    splits = {tuple(split_manifest(manifest, seed=seed).frame["split"]) for seed in range(5)}
    assert len(splits) == 5


@given(st.integers(0, 10_000), st.sampled_from([(0.15, 0.2), (0.1, 0.1), (0.25, 0.25), (0.0, 0.3)]))
@settings(max_examples=15, deadline=None)
def test_parts_and_classes_have_the_shares_asked_for(seed, shares):
    val, test = shares
    manifest = cohort(400, seed, shares=(0.6, 0.3, 0.1))
    made = split_manifest(manifest, seed=seed, val=val, test=test).cases
    for _, rows in [("all", made), *made.groupby("label")]:
        for part, share in (("val", val), ("test", test)):
            # 400 patients of at most nine images: the last one dealt can shift a class of ~200 cases by 2 or 3 %.
            assert (rows["split"] == part).mean() == pytest.approx(share, abs=0.03)
    # Large and small patients alike: no part may collect one kind.
    per_patient = made.groupby(["split", "patient_id"]).size().groupby("split").mean()
    assert per_patient.max() / per_patient.min() < 1.25


def test_every_class_stands_in_every_part_even_with_three_patients():
    labels = ["common"] * 60 + ["rare"] * 3
    manifest = make([f"p{index}" for index in range(63)], labels)
    for seed in range(20):
        made = split_manifest(manifest, seed=seed).cases
        assert sorted(made.loc[made["label"] == "rare", "split"]) == ["test", "train", "val"]


def test_a_class_with_too_few_patients_is_refused_by_name():
    # Five cases, but of two people only.
    labels = ["common"] * 30 + ["rare"] * 5
    patients = [f"p{index}" for index in range(30)] + ["q", "q", "q", "r", "r"]
    with pytest.raises(DataError, match=r"'rare' has 5 cases of 2 patient\(s\).*merge it") as caught:
        split_manifest(make(patients, labels), seed=0)
    assert "\n" not in str(caught.value)
    made = split_manifest(make(patients, labels), seed=0, val=0)
    assert set(made.cases.loc[made.cases["label"] == "rare", "split"]) == {"train", "test"}


def test_fewer_patients_than_parts_are_refused():
    with pytest.raises(DataError, match="2 patients cannot fill 3 parts"):
        split_manifest(make(["a", "a", "b"], task="unlabelled"), seed=0)


def test_several_labels_per_case_are_balanced():
    rng = np.random.default_rng(5)
    labels = [
        "|".join(name for name, rate in (("a", 0.5), ("b", 0.2), ("c", 0.05)) if rng.random() < rate)
        for _ in range(2000)
    ]
    made = split_manifest(make([f"p{index // 2}" for index in range(2000)], labels, multilabel=True), seed=3).cases
    for name in "abc":
        shown = made[made["label"].str.contains(name)]
        assert (shown["split"] == "test").mean() == pytest.approx(0.2, abs=0.02)
        assert (shown["split"] == "val").mean() == pytest.approx(0.15, abs=0.02)
    assert (made.loc[made["label"] == "", "split"] == "test").mean() == pytest.approx(0.2, abs=0.03)


def test_duplicates_tie_patients_together_through_others():
    manifest = make([f"p{index}" for index in range(40)], task="unlabelled")
    made = split_manifest(manifest, seed=0, groups=[[0, 1], [1, 2], [2, 3]])
    assert made.cases["split"].iloc[:4].nunique() == 1
    with pytest.raises(UsageError, match="row 40, but there are 40 cases"):
        split_manifest(manifest, seed=0, groups=[[0, 40]])


def test_a_given_split_is_kept():
    given_parts = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
    manifest = make([f"p{index}" for index in range(30)], split=given_parts, source="official")
    made = split_manifest(manifest, seed=0)
    assert made.frame["split"].tolist() == given_parts
    assert made.split_source == "official"


def test_only_a_missing_validation_is_cut_out_of_training_by_patient():
    patients = [f"p{index // 4}" for index in range(200)]
    given_parts = ["train"] * 160 + ["test"] * 40
    made = split_manifest(make(patients, split=given_parts, source="folder"), seed=0, val=0.25)
    assert (made.frame["split"].iloc[160:] == "test").all()
    assert (made.frame["split"].iloc[:160] == "val").mean() == pytest.approx(0.25, abs=0.02)
    assert (parts_of(made, "patient_id") == 1).all()
    assert made.split_source == "folder"
    assert any("has no val" in problem.text for problem in made.problems)


def test_a_patient_who_stands_in_the_given_test_is_not_moved_to_validation():
    # p0 has been put into both parts by whoever made the split; the leakage check tells him. We must not make it worse.
    patients = ["p0"] * 10 + [f"p{index}" for index in range(1, 41)]
    given_parts = ["train"] * 9 + ["test"] + ["train"] * 40
    made = split_manifest(make(patients, split=given_parts, source="column"), seed=1, val=0.5)
    assert set(made.frame["split"].iloc[:9]) == {"train"}
    assert (made.frame["split"].iloc[10:] == "val").sum() == 20


def test_a_missing_test_is_cut_or_told():
    given_parts = ["train"] * 80 + ["val"] * 20
    manifest = make([f"p{index}" for index in range(100)], split=given_parts, source="column")
    made = split_manifest(manifest, seed=0, test=0.25)
    assert made.counts()["splits"] == {"train": 60, "val": 20, "test": 20}
    told = split_manifest(manifest, seed=0, test=0)
    assert told.frame["split"].tolist() == given_parts
    assert any("there is no test part" in problem.text for problem in told.problems)


def test_cases_without_a_given_part_stay_without():
    given_parts = ["train"] * 80 + ["val"] * 10 + ["test"] * 9 + [""]
    made = split_manifest(make([f"p{index}" for index in range(100)], split=given_parts, source="column"), seed=0)
    assert made.frame["split"].tolist() == given_parts


def test_a_given_split_without_training_is_refused():
    with pytest.raises(DataError, match="no training cases"):
        split_manifest(make(["a", "b", "c"], split=["test"] * 3, source="folder"), seed=0)


def test_folds_are_equal_parts_of_all_but_the_test():
    manifest = cohort(200, 4)
    made = split_manifest(manifest, seed=0, folds=5)
    cases = made.cases
    assert (cases.loc[cases["split"] == "test", "fold"] == -1).all()
    rest = cases[cases["split"] != "test"]
    assert sorted(rest["fold"].unique()) == [0, 1, 2, 3, 4]
    assert (rest.groupby("patient_id")["fold"].nunique() == 1).all()
    for _, rows in [("all", rest), *rest.groupby("label")]:
        shares = rows["fold"].value_counts(normalize=True)
        assert shares.max() - shares.min() < 0.05
    assert "fold" in made.covariates


def test_whole_sites_are_left_out():
    sites = ["A"] * 50 + ["B"] * 30 + ["C"] * 20
    manifest = make([f"p{index}" for index in range(100)], site=sites)
    made = split_manifest(manifest, seed=0, by="site", test=0.2).cases
    # C alone is exactly a fifth.
    assert set(made.loc[made["split"] == "test", "site"]) == {"C"}
    assert (made.loc[made["site"] == "C", "split"] == "test").all()
    # 15 by share: 7 or 8 of each class, since 7.5 cannot be.
    assert 14 <= (made["split"] == "val").sum() <= 16


def test_sites_that_share_a_patient_stay_together():
    sites = ["A"] * 40 + ["B"] * 40 + ["C"] * 20
    patients = [f"p{index}" for index in range(100)]
    patients[40] = "p99"  # seen at B and at C
    made = split_manifest(make(patients, site=sites), seed=0, by="site").cases
    assert made.groupby("site")["split"].apply(lambda parts: "test" in set(parts)).to_dict() in (
        {"A": True, "B": False, "C": False},
        {"A": False, "B": True, "C": True},
    )
    assert (made.groupby("patient_id")["split"].nunique() == 1).all()


def test_many_sites_come_near_to_the_share():
    sites = [f"s{index // 10}" for index in range(300)]
    made = split_manifest(make([f"p{index}" for index in range(300)], site=sites), seed=2, by="site").cases
    assert (made["split"] == "test").mean() == pytest.approx(0.2, abs=0.04)
    assert (made.groupby("site")["split"].apply(lambda parts: "test" in set(parts) and len(set(parts)) > 1)).sum() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 0.6, "test": 0.5}, "val=0.6 test=0.5"),
        ({"val": -0.1}, "expected parts of at least 0"),
        ({"by": "sit"}, "no such column, did you mean 'site'"),
        ({"folds": 1}, "folds=1"),
    ],
)
def test_senseless_settings_are_refused(options, message):
    manifest = make([f"p{index}" for index in range(30)], site=["A"] * 30)
    with pytest.raises(UsageError, match=message):
        split_manifest(manifest, seed=0, **options)


def test_one_site_cannot_be_left_out():
    with pytest.raises(DataError, match="at least two"):
        split_manifest(make([f"p{index}" for index in range(30)], site=["A"] * 30), seed=0, by="site")


def test_masks_follow_their_image():
    cases = [f"c{index}" for index in range(20) for _ in range(2)]
    frame = pd.DataFrame(
        {
            "case_id": cases,
            "patient_id": cases,
            "path": [f"{index}.nii" for index in range(40)],
            "role": ["image", "mask"] * 20,
        }
    )
    manifest = Manifest(Path("/d"), frame, "decathlon", "segment", Labels(("background", "x")), "none", "none")
    made = split_manifest(manifest, seed=0).frame
    assert (made.groupby("case_id")["split"].nunique() == 1).all()
    assert made.loc[made["role"] == "image", "split"].value_counts().to_dict() == {"train": 13, "test": 4, "val": 3}


def test_a_patient_too_large_for_its_part_is_told():
    patients = ["big"] * 50 + [f"p{index}" for index in range(10)]
    made = split_manifest(make(patients, task="unlabelled"), seed=0)
    assert any("cannot be divided" in problem.text for problem in made.problems)


@pytest.mark.realdata
def test_chest_xray_keeps_1952_patients_apart(real_data):
    from vesalius.data.discover import discover

    made = split_manifest(discover(real_data / "chest-xray"), seed=0)
    assert (parts_of(made, "patient_id") == 1).all()
    assert parts_of(made, "patient_id").size == 1952
    shares = made.cases.groupby("label")["split"].value_counts(normalize=True)
    for name in ("normal", "pneumonia"):
        assert shares[name, "test"] == pytest.approx(0.2, abs=0.01)
        assert shares[name, "val"] == pytest.approx(0.15, abs=0.01)
