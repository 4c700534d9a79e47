"""Scores of single cases against other programs and formulas; studies against loops over the same draws."""

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_iou, compute_surface_dice
from monai.metrics.meandice import compute_dice
from scipy import ndimage

from vesalius.core.errors import DataError, UnreadableFile
from vesalius.core.files import write_json
from vesalius.core.labels import Labels
from vesalius.evaluate.interval import Patients
from vesalius.evaluate.segment_ranking import case_scores
from vesalius.evaluate.segment_study import covariates_of, segment_study
from vesalius.evaluate.segment_table import OUTCOMES, read_segment_table, score_case, segment_table
from vesalius.evaluate.table import write_table

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "metrics.schema.json"
ORGANS = Labels(("background", "liver", "kidney", "tumour"))


def blobs(seed, shape=(9, 14, 12), values=3):
    """A label map of smooth random regions."""
    draw = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(draw.normal(size=shape), 1.5) for _ in range(values + 1)])
    return fields.argmax(axis=0).astype(np.uint8)


def rows_of(prediction, truth, spacing, labels=ORGANS, **options):
    rows = score_case(prediction, truth, spacing, labels, case_id="c", **options)
    return {row["label"]: row for row in rows}


# -------------------------------------------------------------------------------------------------------- single cases


@pytest.mark.parametrize("seed", range(4))
def test_overlap_is_that_of_monai_and_simpleitk(seed):
    truth, said = blobs(seed), blobs(seed + 100)
    said[truth == 1] = np.where(np.random.default_rng(seed).random((truth == 1).sum()) < 0.7, 1, said[truth == 1])
    found = rows_of(said, truth, (3.0, 1.0, 0.8))
    filter_ = sitk.LabelOverlapMeasuresImageFilter()
    filter_.Execute(sitk.GetImageFromArray(truth), sitk.GetImageFromArray(said))
    for value, name in enumerate(ORGANS.structures, 1):
        pair = [torch.from_numpy((mask == value)[None, None]).float() for mask in (said, truth)]
        assert found[name]["dice"] == pytest.approx(float(compute_dice(*pair)), abs=1e-6)
        assert found[name]["iou"] == pytest.approx(float(compute_iou(*pair)), abs=1e-6)
        assert found[name]["dice"] == pytest.approx(filter_.GetDiceCoefficient(value), abs=1e-12)
        assert found[name]["iou"] == pytest.approx(filter_.GetJaccardCoefficient(value), abs=1e-12)
        voxel_ml = 3.0 * 0.8 / 1000
        assert found[name]["volume_true_ml"] == pytest.approx((truth == value).sum() * voxel_ml)
        error = ((said == value).sum() - (truth == value).sum()) * voxel_ml
        assert found[name]["volume_error_ml"] == pytest.approx(error)
        assert found[name]["volume_error_percent"] == pytest.approx(100 * error / found[name]["volume_true_ml"])


def test_surface_dice_is_that_of_monai_with_the_tolerance_of_each_structure():
    truth = blobs(3)
    said = np.roll(truth, 1, axis=2)
    spacing, wide = (2.0, 1.0, 0.8), {"liver": 0.9, "kidney": 1.7, "tumour": 3.1}
    found = rows_of(said, truth, spacing, tolerances_mm=wide)
    for value, name in enumerate(ORGANS.structures, 1):
        pair = [torch.from_numpy((mask == value)[None, None]).float() for mask in (said, truth)]
        theirs = compute_surface_dice(
            *pair, class_thresholds=[wide[name]], include_background=True, spacing=spacing, use_subvoxels=True
        )
        assert found[name]["tolerance_mm"] == wide[name]
        assert found[name]["nsd"] == pytest.approx(float(theirs), abs=2e-3), name


@pytest.mark.parametrize("axis", range(3))
def test_distances_of_a_shifted_slab_are_the_shift(axis):
    spacing = (3.0, 1.5, 0.5)
    truth = np.zeros((16, 16, 16), np.uint8)
    inside = [slice(None)] * 3
    inside[axis] = slice(4, 9)
    truth[tuple(inside)] = 1
    said = np.roll(truth, 2, axis=axis)
    row = rows_of(said, truth, spacing, Labels(("background", "slab")))["slab"]
    assert row["hd95_mm"] == pytest.approx(2 * spacing[axis])
    assert row["assd_mm"] <= row["hd95_mm"]
    # Without a size the same in pixels, under other names.
    row = rows_of(said, truth, None, Labels(("background", "slab")))["slab"]
    assert row["hd95_px"] == pytest.approx(2)
    assert row["tolerance_px"] == 1
    assert row["volume_true_px"] == 5 * 256
    assert not [name for name in row if name.endswith(("_mm", "_ml"))]


@pytest.mark.parametrize(("spacing", "expected"), [((0.5, 0.5, 0.5), 1.0), ((5.0, 0.7, 0.7), 5.0), ((0.9, 0.4), 1.0)])
def test_default_tolerance_is_a_voxel_and_at_least_a_millimetre(spacing, expected):
    mask = np.ones((4,) * len(spacing), np.uint8)
    assert rows_of(mask, mask, spacing, Labels(("b", "a")))["a"]["tolerance_mm"] == expected


def test_flat_images_have_areas():
    truth = np.zeros((10, 10), np.uint8)
    truth[2:6, 2:6] = 1
    said = np.zeros_like(truth)
    said[2:6, 2:8] = 1
    row = rows_of(said, truth, (0.5, 2.0), Labels(("b", "a")))["a"]
    assert (row["area_true_mm2"], row["area_pred_mm2"], row["area_error_percent"]) == (16, 24, 50)
    assert row["dice"] == pytest.approx(2 * 16 / 40)


def test_the_rule_for_empty_masks():
    truth, said = np.zeros((6, 6, 6), np.uint8), np.zeros((6, 6, 6), np.uint8)
    truth[1:3], said[4:5] = 1, 2
    found = rows_of(said, truth, (1.0, 1.0, 1.0))
    assert [found[name]["outcome"] for name in ORGANS.structures] == ["missed", "invented", "absent"]
    for name in ("liver", "kidney"):
        assert found[name]["dice"] == found[name]["iou"] == found[name]["nsd"] == 0
        assert math.isinf(found[name]["hd95_mm"])
        assert math.isinf(found[name]["assd_mm"])
    assert all(math.isnan(found["tumour"][key]) for key in ("dice", "iou", "nsd", "hd95_mm", "assd_mm"))
    assert found["liver"]["volume_error_percent"] == -100
    assert math.isnan(found["kidney"]["volume_error_percent"])
    assert math.isnan(found["tumour"]["lesion_sensitivity"])
    assert found["kidney"]["lesions_false"] == 1


def test_a_perfect_mask():
    truth = blobs(8)
    for row in rows_of(truth.copy(), truth, (2.0, 1.0, 1.0)).values():
        assert row["dice"] == row["iou"] == row["nsd"] == row["lesion_sensitivity"] == 1
        assert row["hd95_mm"] == row["assd_mm"] == row["volume_error_ml"] == row["lesions_false"] == 0


def test_unknown_voxels_count_on_neither_side():
    labels = Labels(("background", "a"), ignore=255)
    truth, said = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    truth[:4], said[:4] = 1, 1
    said[:, 6:] = 1
    whole = rows_of(said, truth, None, labels)["a"]["dice"]
    truth[:, 6:] = 255
    assert whole < 1
    assert rows_of(said, truth, None, labels)["a"]["dice"] == 1
    assert (said[7, 7], truth[7, 7]) == (1, 255), "the arrays of the caller stay as they are"


def test_overlapping_structures():
    regions = Labels(("whole", "core"), multilabel=True, regions=((1, 2), (2,)), ignore=9)
    truth = np.zeros((6, 8, 8), np.uint8)
    truth[1:5, 1:7, 1:7], truth[2:4, 2:5, 2:5], truth[0] = 1, 2, 9
    layers = np.stack([np.isin(truth, (1, 2)), truth == 2])
    layers[1, 2:4, 5:7, 2:5] = True
    found = rows_of(layers, truth, (1.0, 1.0, 1.0), regions)
    assert found["whole"]["dice"] == 1
    assert found["core"]["dice"] == pytest.approx(2 * 18 / (18 + 30))
    both = rows_of(layers, np.stack([np.isin(truth, (1, 2)), truth == 2]), (1.0, 1.0, 1.0), regions)
    assert both["core"] == found["core"]
    with pytest.raises(ValueError, match="axes"):
        rows_of(layers[:1], truth, (1.0, 1.0, 1.0), regions)


def test_lesions_one_by_one():
    truth, said = np.zeros((4, 20, 20), np.uint8), np.zeros((4, 20, 20), np.uint8)
    for place in (1, 6, 11):
        truth[1:3, place : place + 3, 2:5] = 1
    said[1:3, 1:4, 2:5] = said[1:3, 6:7, 2:3] = said[2:3, 16:18, 12:14] = 1
    row = rows_of(said, truth, None, Labels(("b", "lesion")))["lesion"]
    assert (row["lesions_true"], row["lesions_detected"], row["lesions_false"]) == (3, 2, 1)
    assert row["lesion_sensitivity"] == pytest.approx(2 / 3)


def test_single_objects():
    labels = Labels(("background", "nucleus"), instances=True)
    truth, said = np.zeros((20, 20), np.int32), np.zeros((20, 20), np.int32)
    truth[1:5, 1:5], truth[10:14, 1:5], truth[1:5, 10:14] = 7, 3, 500
    said[1:5, 1:5], said[10:14, 1:4], said[15:18, 15:18] = 1, 2, 3
    row = rows_of(said, truth, None, labels)["nucleus"]
    ious = [1.0, 12 / 16]
    assert row["ap50"] == pytest.approx(2 / 4)  # two found, one missed, one invented
    assert row["rq"] == pytest.approx(2 / 3)
    assert row["sq"] == pytest.approx(np.mean(ious))
    assert row["pq"] == pytest.approx(sum(ious) / 3)
    expected = [sum(iou >= t for iou in ious) for t in np.arange(0.5, 0.96, 0.05).round(2)]
    assert row["ap50_95"] == pytest.approx(np.mean([hit / (6 - hit) for hit in expected]))
    assert (row["count_true"], row["count_pred"], row["count_error"]) == (3, 3, 0)
    assert row["dice"] == pytest.approx(2 * 28 / (48 + 37))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda said, true: (said, np.where(true == 1, 9, true)), DataError, "value 9"),
        (lambda said, true: (np.where(said == 1, 9, said), true), ValueError, "value 9"),
        (lambda said, true: (said[:-1], true), ValueError, "one label map each"),
    ],
)
def test_what_does_not_fit_is_refused(change, kind, words):
    said, true = change(blobs(1), blobs(2))
    with pytest.raises(kind, match=words):
        rows_of(said, true, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("wide", [0.0, -1.0, float("nan"), {"liver": 0.0}, {"spleen": 1.0}])
def test_tolerances_that_make_no_sense(wide):
    with pytest.raises(ValueError, match="tolerances"):
        rows_of(blobs(1), blobs(2), (1.0, 1.0, 1.0), tolerances_mm=wide)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_turning_the_image_changes_nothing(seed, order, flips):
    truth, said = blobs(seed, (6, 7, 8)), blobs(seed + 1, (6, 7, 8))
    spacing = (2.0, 1.0, 0.5)
    before = rows_of(said, truth, spacing, tolerances_mm=1.5)
    cut = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    turned = [np.asfortranarray(mask.transpose(order)[cut]) for mask in (said, truth)]
    after = rows_of(*turned, tuple(spacing[axis] for axis in order), tolerances_mm=1.5)
    for name in ORGANS.structures:
        for key, value in before[name].items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-9, nan_ok=True)
            assert after[name][key] == expected, key


# --------------------------------------------------------------------------------------------------------------- table


def invented_table(cases=24, seed=0, labels=ORGANS):
    """Rows as `score_case` writes them, with what can be missing."""
    draw = np.random.default_rng(seed)
    rows = []
    for n in range(cases):
        for k, name in enumerate(labels.structures):
            outcome = "absent" if k and draw.random() < 0.3 else "missed" if k and draw.random() < 0.1 else "found"
            dice = {"absent": np.nan, "missed": 0.0}.get(outcome, draw.beta(9 - 3 * k, 2))
            far = {"absent": np.nan, "missed": np.inf}.get(outcome, draw.gamma(2, 2))
            true = 0.0 if outcome == "absent" else draw.gamma(4, 20)
            rows.append(
                {"case_id": f"c{n}", "patient_id": f"p{n // 2}", "split": "test", "label": name, "outcome": outcome,
                 "tolerance_mm": 2.0, "dice": dice, "iou": dice / (2 - dice), "nsd": dice, "hd95_mm": far,
                 "assd_mm": far / 3, "volume_true_ml": true, "volume_pred_ml": true * 1.1,
                 "volume_error_ml": true * draw.normal(0, 0.1), "volume_error_percent": draw.normal(0, 10),
                 "lesions_true": float(draw.integers(1, 5)), "lesions_detected": 1.0, "lesions_false": float(n % 2),
                 "lesion_sensitivity": 1.0, "site": "ab"[n % 2], "age": 30.0 + n}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_a_table_of_real_scores_goes_to_disk_and_back(tmp_path):
    rows = [row for n in range(3) for row in score_case(blobs(n), blobs(n + 9), None, ORGANS, case_id=f"c{n}")]
    table = segment_table(rows, pd.DataFrame({"case_id": ["c0", "c1", "c2"], "site": ["x", "y", "x"], "dice": 5}))
    assert table["patient_id"].tolist() == table["case_id"].tolist()
    assert table["site"].tolist() == ["x"] * 3 + ["y"] * 3 + ["x"] * 3
    assert table["dice"].max() <= 1
    pd.testing.assert_frame_equal(read_segment_table(write_table(tmp_path / "cases.parquet", table)), table)
    with pytest.raises(DataError, match="more than once"):
        segment_table([*rows, rows[0]])
    with pytest.raises(DataError, match="no case"):
        segment_table([])


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(UnreadableFile):
        read_segment_table(tmp_path / "absent.parquet")
    pd.DataFrame({"case_id": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UnreadableFile, match="patient_id"):
        read_segment_table(tmp_path / "other.parquet")


# --------------------------------------------------------------------------------------------------------------- study


def test_means_are_those_of_pandas():
    table = invented_table()
    found = segment_study(table, ORGANS, resamples=50)
    finite = table.replace([np.inf], np.nan)
    by_label = finite.groupby("label")[["dice", "nsd", "hd95_mm", "volume_error_ml"]].mean()
    for name in ORGANS.structures:
        for metric in by_label.columns:
            assert found.per_class[name][metric].value == pytest.approx(by_label.loc[name, metric]), metric
    for metric in by_label.columns:
        assert found.whole[metric].value == pytest.approx(by_label[metric].mean())
    size = finite["volume_error_ml"].abs().groupby(finite["label"]).mean()
    assert found.whole["absolute_volume_error_ml"].value == pytest.approx(size.mean())
    part = table[table["label"] == "tumour"]
    pooled = part["lesions_detected"].sum() / part["lesions_true"].sum()
    assert found.per_class["tumour"]["lesion_sensitivity"].value == pytest.approx(pooled)
    assert found.per_class["tumour"]["lesion_false_per_case"].value == pytest.approx(part["lesions_false"].mean())


def judged(number, said, true, spacing):
    return score_case(said, true, spacing, ORGANS, case_id=str(number), split="test")


def test_pooled_dice_is_that_of_all_masks_side_by_side():
    pairs = [(blobs(n), blobs(n + 50)) for n in range(5)]
    pairs[0] = tuple(np.where(mask == 3, 0, mask) for mask in pairs[0])  # a structure in neither mask
    pairs[1] = (np.where(pairs[1][0] == 2, 0, pairs[1][0]), pairs[1][1])  # one that was missed
    rows = [row for n, (said, true) in enumerate(pairs) for row in judged(n, said, true, None)]
    found = segment_study(segment_table(rows), ORGANS, resamples=50)
    filter_ = sitk.LabelOverlapMeasuresImageFilter()
    filter_.Execute(*(sitk.GetImageFromArray(np.concatenate(side)) for side in list(zip(*pairs, strict=True))[::-1]))
    expected = [filter_.GetDiceCoefficient(value) for value in range(1, 4)]
    pooled = [found.per_class[name]["dice_pooled"] for name in ORGANS.structures]
    assert [one.value for one in pooled] == pytest.approx(expected)
    assert all(one.low < one.value < one.high for one in pooled)
    assert found.whole["dice_pooled"].value == pytest.approx(np.mean(expected))
    assert found.whole["dice_pooled"].value != pytest.approx(found.whole["dice"].value, abs=1e-3)


def test_sizes_in_two_units_are_not_pooled():
    rows = [row for n, spacing in enumerate([None, (1.0, 1.0, 1.0)])
            for row in judged(n, blobs(n), blobs(n + 9), spacing)]  # fmt: skip
    assert "dice_pooled" not in segment_study(segment_table(rows), ORGANS, resamples=50).whole


def test_intervals_are_those_of_a_loop_over_the_same_draws():
    table = invented_table(20, seed=3)
    found = segment_study(table, ORGANS, resamples=300, seed=5, method="percentile")
    cases = table.drop_duplicates("case_id")
    patients = Patients.of(cases["patient_id"])
    weights = np.concatenate(list(patients.draws(300, 5)))
    replicates = {name: [] for name in ("dice", "liver", "kidney", "tumour", "sensitivity")}
    for draw in weights:
        # Every case as often as its patient was drawn, then pandas.
        chosen = np.repeat(cases["case_id"].to_numpy(), draw.astype(int))
        drawn = table.set_index("case_id").loc[chosen]
        means = drawn.groupby("label")["dice"].mean()
        for name in ORGANS.structures:
            replicates[name].append(means.get(name, np.nan))
        replicates["dice"].append(means.mean())
        tumour = drawn[drawn["label"] == "tumour"]
        replicates["sensitivity"].append(tumour["lesions_detected"].sum() / tumour["lesions_true"].sum())
    estimates = {"dice": found.whole["dice"], "sensitivity": found.per_class["tumour"]["lesion_sensitivity"],
                 **{name: found.per_class[name]["dice"] for name in ORGANS.structures}}  # fmt: skip
    for name, estimate in estimates.items():
        low, high = np.nanquantile(replicates[name], (0.025, 0.975))
        assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high)), name
        assert estimate.low <= estimate.value <= estimate.high


def test_cases_of_one_patient_count_as_one():
    """Twice the same cases, once as new patients and once as the same ones: only the former narrows the interval."""
    table = invented_table(16, seed=1).assign(patient_id=lambda t: t["case_id"])
    again = table.assign(case_id="again-" + table["case_id"])
    same = segment_study(pd.concat([table, again]), ORGANS, resamples=500, method="percentile").whole["dice"]
    new = segment_study(
        pd.concat([table, again.assign(patient_id=again["case_id"])]), ORGANS, resamples=500, method="percentile"
    ).whole["dice"]
    once = segment_study(table, ORGANS, resamples=500, method="percentile").whole["dice"]
    assert same.value == pytest.approx(once.value)
    assert same.value == pytest.approx(new.value)
    assert same.high - same.low == pytest.approx(once.high - once.low, rel=0.15)
    assert new.high - new.low < 0.85 * (same.high - same.low)


def test_bca_intervals_hold_the_true_mean_about_as_often_as_they_say():
    draw = np.random.default_rng(11)
    labels = Labels(("b", "a"))
    held = 0
    for _ in range(60):
        dice = draw.beta(6, 1.2, 30)
        table = pd.DataFrame({"case_id": [f"c{n}" for n in range(30)], "patient_id": "", "split": "test", "label": "a",
                              "outcome": "found", "dice": dice})  # fmt: skip
        one = segment_study(table, labels, resamples=400).whole["dice"]
        held += one.low <= 6 / 7.2 <= one.high
    # 95 % of 60 is 57; three standard deviations of a binomial and the known shortfall of 30 cases below it.
    assert held >= 50


def test_unknown_patients_are_their_cases():
    table = invented_table(12).assign(patient_id="")
    assert segment_study(table, ORGANS, resamples=20).to_json()["patients"] == 12


def test_what_is_counted_beside_the_means():
    table = invented_table(30, seed=2)
    found = segment_study(table, ORGANS, resamples=20)
    counted = table.groupby("label")["outcome"].value_counts()
    for name in ORGANS.structures:
        assert found.empty[name] == {outcome: int(counted.get((name, outcome), 0)) for outcome in OUTCOMES}
        held = table[(table["label"] == name) & table["outcome"].isin(["found", "missed"])]
        assert found.classes[name] == {"cases": len(held), "patients": held["patient_id"].nunique()}
        spread = found.distribution[name]["dice"]
        known = table.loc[table["label"] == name, "dice"].dropna()
        assert (spread["cases"], spread["least"], spread["most"]) == (len(known), known.min(), known.max())
        assert abs((known <= spread["median"]).mean() - 0.5) <= 1 / len(known)
        assert found.distribution[name]["hd95_mm"]["infinite"] == found.empty[name]["missed"]


def test_cases_are_ranked_by_their_mean():
    table = invented_table(15, seed=6)
    expected = table.groupby("case_id")["dice"].mean().sort_values()
    found = case_scores(table)
    assert found["score"].to_numpy() == pytest.approx(expected.to_numpy())
    listed = segment_study(table, ORGANS, resamples=20).ranked
    assert listed["worst"][0]["case_id"] == expected.index[0]
    assert listed["best"][0]["case_id"] == expected.index[-1]
    assert listed["median"][0]["case_id"] == expected.index[7]
    lost = table[table["outcome"] == "missed"].groupby("case_id")["label"].agg(list)
    assert {row["case_id"]: row["missed"] for row in listed["worst"] if row["missed"]}.items() <= lost.to_dict().items()


def test_a_number_without_spread_has_no_false_certainty():
    table = invented_table(12).assign(dice=1.0, outcome="found", lesions_detected=lambda t: t["lesions_true"],
                                      lesions_false=0.0)  # fmt: skip
    found = segment_study(table, ORGANS, resamples=50)
    assert found.whole["dice"].value == 1
    assert math.isnan(found.whole["dice"].low)
    lesions = found.per_class["tumour"]["lesion_sensitivity"]
    # Wilson with 6 patients: 6 / (6 + z^2).
    assert lesions.low == pytest.approx(6 / (6 + 1.959964**2), abs=1e-6)
    assert lesions.high == 1
    false = found.per_class["tumour"]["lesion_false_per_case"]
    assert math.exp(-false.high * 6) == pytest.approx(0.025), "no event in 6 patients at the upper limit"
    assert "dice" in found.intervals["mended"]


def test_subgroups_and_their_reasons():
    table = invented_table(24)
    found = segment_study(table.assign(scanner="one"), ORGANS, resamples=50).subgroups
    assert found["scanner"] == {"excluded": "has one value only"}
    for name in "ab":
        group = found["site"]["groups"][name]
        part = table[table["site"] == name]
        assert (group["cases"], group["patients"]) == (12, 12)
        mean = part.groupby("label")["dice"].mean().mean()
        assert group["metrics"]["dice"]["value"] == pytest.approx(mean)
    few = found["age"]["groups"]
    assert sum(one["cases"] for one in few.values()) == 24
    assert all("metrics" not in one and "not enough" in one["note"] for one in few.values() if one["cases"] < 10)
    assert covariates_of(table) == ["site", "age"]


def test_the_json_is_what_the_schema_says(tmp_path):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    labels = Labels(("whole", "core"), multilabel=True, regions=((1, 2), (2,)), ignore=9)
    for names, table in (
        (ORGANS, invented_table()),
        (labels, invented_table(labels=labels)),
        (
            Labels(("b", "a")),
            invented_table(labels=Labels(("b", "a"))).assign(outcome="absent", dice=np.nan, hd95_mm=np.nan),
        ),
    ):
        found = segment_study(table, names, resamples=20, timing={"train_s": 3.0}, band={"level": 0.95})
        data = json.loads(write_json(tmp_path / "metrics.json", found.metrics()).read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator(schema).validate(data)
        assert set(data) <= set(schema["properties"])
        assert data["task"] == "segment"
        assert Labels.from_json(data["labels"]) == names
        assert data["timing"] == {"train_s": 3.0, "predict_ms_per_case": None}


def test_tables_that_do_not_fit():
    table = invented_table(6)
    with pytest.raises(DataError, match="'val'"):
        segment_study(table, ORGANS, split="val")
    with pytest.raises(DataError, match="0 rows for 'tumour'"):
        segment_study(table[~((table["case_id"] == "c3") & (table["label"] == "tumour"))], ORGANS)
    with pytest.raises(DataError, match="not one of"):
        segment_study(table, Labels(("b", "liver", "kidney")))
    with pytest.raises(ValueError, match="spleen"):
        segment_study(table, ORGANS, lesions=["spleen"])
