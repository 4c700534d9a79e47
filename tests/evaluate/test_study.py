"""metrics.json: the contract, values against scikit-learn, intervals that are honest."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from evaluate_cases import cohort, findings
from scipy.special import softmax
from sklearn import metrics as reference

from vesalius.core.errors import DataError
from vesalius.core.files import write_json
from vesalius.core.labels import Labels
from vesalius.evaluate.decision import Decision
from vesalius.evaluate.scores import METRICS
from vesalius.evaluate.study import study, thinned
from vesalius.evaluate.table import build_table
from vesalius.measure.intervals import wilson

FEW = {"resamples": 64, "covariates": ()}


def values(found):
    return {name: estimate.value for name, estimate in found.metrics.items()}


def test_the_contract_of_metrics_json(binary, tmp_path):
    labels, table = binary
    found = study(table, labels, resamples=64, timing={"train_s": 3.5}, leakage={"patients_shared": 0},
                  calibration_info={"temperature": 2.0})  # fmt: skip
    data = json.loads(write_json(tmp_path / "metrics.json", found.to_json()).read_text())
    assert (data["schema"], data["task"], data["split"], data["cases"], data["patients"]) == (
        1,
        "classify",
        "test",
        120,
        60,
    )
    assert tuple(data["metrics"]) == METRICS
    for estimate in data["metrics"].values():
        assert set(estimate) == {"value", "low", "high", "unit", "level"}
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert (estimate["unit"], estimate["level"]) == ("1", 0.95)
    assert data["timing"] == {"train_s": 3.5, "predict_ms_per_case": None}
    assert data["leakage"] == {"patients_shared": 0, "near_duplicates": None}
    assert data["per_class"]["PNEUMONIA"]["auroc"] == data["metrics"]["auroc"]
    assert data["calibration"]["temperature"] == 2.0
    assert data["calibration"]["ece"]["before"] > data["calibration"]["ece"]["after"] > 0
    assert sum(bin["cases"] for bin in data["calibration"]["reliability"]) == 120
    assert np.sum(data["confusion"]["counts"]) == 120
    assert set(data["operating_points"]) == {"half", "youden", "sensitivity_95"}
    assert data["classes"]["NORMAL"] == {"cases": 60, "patients": 30}
    assert data["subgroups"]["cause"]["excluded"].startswith("determines the label")
    assert Labels.from_json(data["labels"]) == labels
    assert data["decision"] == {"rule": "half", "thresholds": {}, "chosen_on": "fixed"}


def test_calibration_error_before_is_that_of_the_bare_logits(several):
    labels, table = several
    found = study(table, labels, **FEW).calibration["ece"]
    test = table[table["split"] == "test"]
    bare = softmax(test[["logit.a", "logit.b", "logit.c"]].to_numpy(), axis=1)
    right = np.array(["a", "b", "c"])[bare.argmax(axis=1)] == test["label"].to_numpy()
    which = np.ceil(bare.max(axis=1) * 15)
    gaps = [
        (which == k).mean() * abs(right[which == k].mean() - bare.max(axis=1)[which == k].mean()) for k in set(which)
    ]
    assert found["before"] == pytest.approx(sum(gaps))
    assert found["after"] < found["before"]


@pytest.mark.parametrize("positive", [0, 1])
def test_yes_no_values_equal_scikit_learn(binary, positive):
    _, table = binary
    labels = Labels(("NORMAL", "PNEUMONIA"), positive=positive)
    test = table[table["split"] == "test"]
    yes = labels.names[positive]
    truth, guess, stated = test["label"] == yes, test["predicted"] == yes, test[f"p.{yes}"]
    expected = {
        "accuracy": reference.accuracy_score(truth, guess),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, guess),
        "sensitivity": reference.recall_score(truth, guess),
        "specificity": reference.recall_score(~truth, ~guess),
        "precision": reference.precision_score(truth, guess),
        "recall": reference.recall_score(truth, guess),
        "f1": reference.f1_score(truth, guess),
        "auroc": reference.roc_auc_score(truth, stated),
        "auprc": reference.average_precision_score(truth, stated),
        "kappa": reference.cohen_kappa_score(truth, guess),
        "brier": reference.brier_score_loss(truth, stated),
    }
    found = study(table, labels, **FEW)
    assert {k: v for k, v in values(found).items() if k != "ece"} == pytest.approx(expected)
    other = labels.names[1 - positive]
    area = reference.average_precision_score(~truth, test[f"p.{other}"])
    assert found.per_class[other]["auprc"].value == pytest.approx(area)
    assert found.per_class[other]["f1"].value == pytest.approx(reference.f1_score(~truth, ~guess))


def test_values_of_several_classes_equal_scikit_learn(several):
    labels, table = several
    test = table[table["split"] == "test"]
    truth, guess = test["label"], test["predicted"]
    stated = test[["p.a", "p.b", "p.c"]].to_numpy()
    macro = {"average": "macro", "zero_division": np.nan}
    expected = {
        "accuracy": reference.accuracy_score(truth, guess),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, guess),
        "sensitivity": reference.recall_score(truth, guess, **macro),
        "specificity": np.mean([reference.recall_score(truth != k, guess != k) for k in "abc"]),
        "precision": reference.precision_score(truth, guess, **macro),
        "recall": reference.recall_score(truth, guess, **macro),
        "f1": reference.f1_score(truth, guess, **macro),
        "auroc": reference.roc_auc_score(truth, stated, multi_class="ovr"),
        "auprc": reference.average_precision_score(pd.get_dummies(truth), stated),
        "kappa": reference.cohen_kappa_score(truth, guess),
        "brier": reference.brier_score_loss(truth, stated, scale_by_half=False),
    }
    found = study(table, labels, **FEW)
    assert {k: v for k, v in values(found).items() if k != "ece"} == pytest.approx(expected)
    assert found.operating_points == {}
    np.testing.assert_array_equal(found.confusion["counts"], reference.confusion_matrix(truth, guess))
    assert set(found.curves["roc"]) == {"a", "b", "c"}


def test_values_of_labels_that_may_hold_together_equal_scikit_learn():
    labels, table, held = findings()
    test = (table["split"] == "test").to_numpy()
    truth, stated = held[test], table.loc[test, [f"p.{n}" for n in labels.names]].to_numpy()
    guess = stated >= 0.5
    each = range(3)
    expected = {
        "accuracy": np.mean(truth == guess),
        "subset_accuracy": reference.accuracy_score(truth, guess),
        "balanced_accuracy": np.mean([reference.balanced_accuracy_score(truth[:, k], guess[:, k]) for k in each]),
        "recall": reference.recall_score(truth, guess, average="macro"),
        "precision": reference.precision_score(truth, guess, average="macro"),
        "f1": reference.f1_score(truth, guess, average="macro"),
        "auroc": reference.roc_auc_score(truth, stated),
        "auprc": reference.average_precision_score(truth, stated),
        "kappa": np.mean([reference.cohen_kappa_score(truth[:, k], guess[:, k]) for k in each]),
        "brier": np.mean((truth - stated) ** 2),
    }
    found = study(table, labels, **FEW)
    assert {k: v for k, v in values(found).items() if k in expected} == pytest.approx(expected)
    np.testing.assert_array_equal(
        list(found.confusion["per_label"].values()), reference.multilabel_confusion_matrix(truth, guess)
    )
    assert set(found.operating_points["nodule"]) == {"half", "youden", "sensitivity_95"}
    assert set(found.metrics) == {*METRICS, "subset_accuracy"}
    json.dumps(found.to_json())


def test_an_interval_is_by_patient(binary):
    labels, table = binary
    alone = table.assign(patient_id=table["case_id"])
    together, apart = (study(t, labels, resamples=400, covariates=()).metrics["auroc"] for t in (table, alone))
    assert together.value == apart.value
    assert together.high - together.low > 1.1 * (apart.high - apart.low)


def test_perfect_results_have_no_perfect_intervals():
    labels, table = cohort(("no", "yes"), patients=40, signal=60.0)
    found = study(table, labels, **FEW)
    low20, low10 = float(wilson(20, 20)[0]), float(wilson(10, 10)[0])
    assert all(found.metrics[m].value == 1 for m in ("accuracy", "auroc", "f1", "kappa", "precision", "auprc"))
    # 40 cases of 20 patients, 10 of each class.
    assert found.metrics["accuracy"].low == pytest.approx(low20)
    assert found.metrics["sensitivity"].low == pytest.approx(low10)
    assert found.metrics["auroc"].low == pytest.approx(low10)
    assert found.metrics["balanced_accuracy"].low == pytest.approx(low10)
    assert found.metrics["f1"].low == pytest.approx(low10)
    assert found.metrics["kappa"].low == pytest.approx(1 - (1 - low20) / 0.5)
    assert np.isnan(found.metrics["auprc"].low)
    assert {"accuracy", "auroc", "yes/f1"} <= set(found.intervals["mended"])
    assert found.operating_points["half"]["sensitivity"]["low"] == pytest.approx(low10)


def test_a_model_that_always_says_no():
    labels, table = cohort(("no", "yes"), patients=40)
    table = table.assign(**{"p.no": 0.8, "p.yes": 0.2})
    found = study(table, labels, **FEW)
    assert (found.metrics["sensitivity"].value, found.metrics["specificity"].value) == (0, 1)
    assert found.metrics["sensitivity"].high == pytest.approx(float(wilson(0, 10)[1]))
    assert np.isnan(found.metrics["precision"].value)
    assert found.metrics["auroc"].value == 0.5
    assert np.isnan(found.metrics["auroc"].low)


def test_a_threshold_is_applied_and_recorded(binary):
    labels, table = binary
    found = study(table, labels, decision=Decision({"PNEUMONIA": 0.2}, "val", "youden"), **FEW)
    said = table.loc[table["split"] == "test", "p.PNEUMONIA"] >= 0.2
    assert np.sum(found.confusion["counts"], axis=0)[1] == said.sum()
    np.testing.assert_array_equal(found.table["predicted"] == "PNEUMONIA", said)
    assert found.to_json()["decision"] == {"rule": "youden", "thresholds": {"PNEUMONIA": 0.2}, "chosen_on": "val"}


def test_the_same_seed_gives_the_same_numbers(binary):
    labels, table = binary
    one, again, other = (study(table, labels, resamples=64, seed=s) for s in (1, 1, 2))
    assert one.to_json() == again.to_json()
    assert one.metrics["auroc"] != other.metrics["auroc"]
    assert one.metrics["auroc"].value == other.metrics["auroc"].value


def test_order_of_rows_does_not_matter(binary):
    labels, table = binary
    mixed = table.sample(frac=1, random_state=0)
    assert values(study(mixed, labels, **FEW)) == pytest.approx(values(study(table, labels, **FEW)))


def test_a_split_without_cases_is_refused(binary):
    labels, table = binary
    with pytest.raises(DataError, match="the table has 'test', 'val'"):
        study(table, labels, split="train")


def test_a_class_that_is_absent_in_test_is_null_and_not_zero(tmp_path):
    labels, table = cohort(("a", "b", "c"))
    table = table[(table["label"] != "c") | (table["split"] == "val")]
    found = study(table, labels, **FEW)
    assert np.isnan(found.per_class["c"]["sensitivity"].value)
    assert found.metrics["recall"].value == pytest.approx(
        np.mean([found.per_class[k]["sensitivity"].value for k in "ab"])
    )
    data = json.loads(write_json(tmp_path / "m.json", found.to_json()).read_text())
    assert data["per_class"]["c"]["auroc"]["value"] is None
    assert set(data["curves"]["roc"]) == {"a", "b"}


def test_external_data_without_split_or_logits():
    labels = Labels(("no", "yes"))
    rows = pd.DataFrame({"case_id": list("abcd"), "patient_id": list("abcd"), "label": ["no", "yes"] * 2})
    found = study(build_table(rows, labels, [0.1, 0.8, 0.6, 0.7]), labels, split="", resamples=20)
    assert found.calibration["ece"]["before"] is None
    assert set(found.operating_points) == {"half"}


def test_curves_are_short_and_keep_their_ends():
    x = np.linspace(0, 1, 5000)
    keep = thinned(x, x**0.3)
    assert len(keep) <= 200
    assert (keep[0], keep[-1]) == (0, 4999)
    # The area under the thinned curve is that under the whole.
    assert np.trapezoid((x**0.3)[keep], x[keep]) == pytest.approx(np.trapezoid(x**0.3, x), abs=1e-3)
    np.testing.assert_array_equal(thinned(x[:7], x[:7]), np.arange(7))
