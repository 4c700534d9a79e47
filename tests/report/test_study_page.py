"""The study report as a reader and a browser get it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_material import BINARY, Page, estimate, metrics_of, table_of

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.evaluate.study import study
from vesalius.report.cases import cases_worth_a_picture
from vesalius.report.pictures import png
from vesalius.report.study import PICTURE_BUDGET, write_study_report

NASTY = Labels(("<script>alert('x')</script>", 'b" onload="x', "肺结核 & 其他"))
PLAN = {"model": {"name": {"value": "resnet18", "because": "fits <4 GB>"}}, "seed": {"value": 7, "because": "default"}}
PROVENANCE = {"schema": 1, "created": "2026-11-22", "command": ["/opt/bin/vesalius", "train", "my data"], "seed": 7,
              "versions": {"vesalius": "0.1.0"}, "data_hash": "abc123"}  # fmt: skip


def write(folder: Path, labels: Labels = BINARY, **changes: Any) -> tuple[str, Page]:
    table = changes.pop("table", None)
    content: dict[str, Any] = {
        "metrics": metrics_of(labels), "table": table_of(labels) if table is None else table, "plan": PLAN,
        "provenance": PROVENANCE, "title": "A study",
    }  # fmt: skip
    text = write_study_report(folder, **(content | changes)).read_text(encoding="utf-8")
    return text, Page(text)


def forbidden(text: str) -> list[str]:
    """What would make a browser ask somebody for something, or run something."""
    found = re.findall(r'(?:src|href|data|action|poster)\s*=\s*"(?!#|data:)[^"]*"', text)
    return found + re.findall(r"url\([^)]*\)|@import|<script|<link|<iframe|<object|\son\w+=\"", text)


def history() -> pd.DataFrame:
    return pd.DataFrame({"step": [1, 2, 3], "train_loss": [0.9, 0.5, 0.4], "val_auroc": [0.6, np.nan, 0.9], "lr": 1e-3})


@pytest.mark.parametrize(
    "labels",
    [BINARY, Labels(tuple(f"class {k}" for k in range(10))), Labels(("a", "b", "c"), multilabel=True), NASTY,
     Labels(("only",), multilabel=True)],
    ids=["binary", "ten", "multilabel", "nasty", "one finding"],
)  # fmt: skip
def test_page_is_balanced_and_asks_nobody(tmp_path: Path, labels: Labels) -> None:
    table = table_of(labels)
    pictures = {case: png(np.full((20, 20), 90, np.uint8)) for case in cases_worth_a_picture(table, labels)}
    text, page = write(tmp_path, labels, table=table, history=history(), pictures=pictures, notes=["<b>note</b>"])
    assert page.complaints == []
    assert forbidden(text) == []
    assert "default-src 'none'" in text
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("img")) >= len(pictures) > 0
    assert all(svg["aria-label"] for svg in page.all("svg", "chart"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.all("a")} <= {f"#{i}" for i in ids}
    for name in labels.names:
        assert name in page.text


def test_the_detector_of_requests_detects() -> None:
    assert forbidden('<img src="https://x/y.png">')
    assert forbidden('<div style="background:url(http://x)">')
    assert forbidden("<script>1</script>")
    assert forbidden('<p onload="x">')
    assert Page("<p><b></p></b>").complaints
    assert Page("<div>").complaints


def test_every_number_of_the_metrics_is_on_the_page(tmp_path: Path) -> None:
    points = {"youden": {"threshold": 0.4321, "chosen_on": "val", "sensitivity": estimate(0.9123, 0.8612, 0.9534),
                         "specificity": estimate(0.6789, 0.6011, 0.7322), "warning": "chosen on few"}}  # fmt: skip
    groups = {"sex": {"groups": {"F": {"cases": 301, "patients": 299,
                                       "metrics": {"auroc": estimate(0.6612, 0.61, 0.72)}},
                                 "X": {"cases": 3, "patients": 3, "note": "not enough cases: 3 (at least 20)"}}},
              "site": {"excluded": "has one value only"}}  # fmt: skip
    _, page = write(tmp_path, metrics=metrics_of(operating_points=points, subgroups=groups))
    said = ["On 624 cases of 611 patients it had never seen, the model told pneumonia from normal with AUROC 0.97 "
            "(95 % interval 0.95 to 0.98).", "0.88 0.84 to 0.90", "0.77 0.70 to 0.81", "0.432", "0.91 0.86 to 0.95",
            "0.66 0.61 to 0.72", "301", "299", "not enough cases: 3 (at least 20)", "site: has one value only", "1.37",
            "7 min 11 s", "3.25 ms", "chosen on few", "resnet18", "fits <4 GB>", "vesalius train 'my data'",
            "abc123"]  # fmt: skip
    assert [words for words in said if words not in page.text] == []


def test_evaluate_and_report_fit_together(tmp_path: Path) -> None:
    table = table_of(BINARY, 120).assign(split="test", spread=np.nan, sex=["F", "M"] * 30 + ["M", "F"] * 30)
    found = study(table, BINARY, resamples=50)
    _, page = write(tmp_path, metrics=found.to_json(), table=found.table)
    assert page.complaints == []
    assert f"{found.metrics['auroc'].value:.2f}" in page.text
    assert "sex: F" in page.text
    assert "one half" in page.text


@pytest.mark.parametrize(
    ("changes", "card", "warning"),
    [
        ({"leakage": {"patients_shared": 3, "near_duplicates": 0}}, {}, "3 shared patients"),
        ({"leakage": {"allowed": True}}, {}, "Training, validation and test overlap"),
        ({"leakage": {}}, {"leakage_allowed": True}, "Training, validation and test overlap"),
        ({}, {"data": {"patient_source": "none"}}, "Nobody knows which images belong to the same person"),
        ({"patients": 40, "cases": 50}, {}, "Only 40 patients"),
        ({"split": "val"}, {}, "These are not test cases"),
    ],
)
def test_weak_studies_carry_a_band(tmp_path: Path, changes: dict, card: dict, warning: str) -> None:
    _, page = write(tmp_path, metrics=metrics_of(**changes), card=card)
    assert len(page.all("div", "band")) == 1
    assert warning in page.text
    never_seen = "never seen" in page.text
    assert never_seen == ("leakage" not in changes and changes.get("split") != "val")


def test_the_leakage_check_is_told_in_words_and_without_its_lists(tmp_path: Path) -> None:
    leakage = {"patients_shared": 0, "near_duplicates": 0, "duplicates_within": 37, "exact": [{"first": "secret.png"}]}
    _, page = write(tmp_path, metrics=metrics_of(leakage=leakage, external="another hospital"))
    assert "Patients in more than one part 0" in page.text
    assert "Surplus equal images within a part 37" in page.text
    assert "secret.png" not in page.text
    _, mended = write(tmp_path, metrics=metrics_of(leakage={"exact_duplicates": 2, "allowed": False}))
    assert "taken out before training" in mended.text
    assert mended.all("div", "band") == []
    assert "of 611 patients from “another hospital” it had never seen" in page.text


def test_sound_studies_carry_none(tmp_path: Path) -> None:
    _, page = write(tmp_path, card={"data": {"patient_source": "column"}})
    assert page.all("div", "band") == []


def test_what_is_missing_is_said_and_breaks_nothing(tmp_path: Path) -> None:
    _, page = write(tmp_path, metrics={"metrics": {"auroc": estimate(None)}}, plan={}, provenance={}, title="")
    assert page.complaints == []
    for words in ("No plan was recorded", "No subgroups were tested", "There is no history", "not recorded",
                  "no number", "nobody stated it", "No pictures were made"):  # fmt: skip
        assert words in page.text


def test_cases_without_a_known_label_are_left_out_of_the_curves(tmp_path: Path) -> None:
    table = table_of(BINARY)
    table.loc[:9, "label"] = ""
    _, page = write(tmp_path, table=table)
    assert page.complaints == []
    _, empty = write(tmp_path, table=table.assign(label=""))
    assert empty.complaints == []
    assert not empty.all("svg", "roc")


def test_one_class_only_draws_no_roc(tmp_path: Path) -> None:
    table = table_of(BINARY)
    _, page = write(tmp_path, table=table[table["label"] == "normal"])
    assert not page.all("svg", "roc")
    assert page.all("svg", "reliability")


def test_too_many_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    table = table_of(BINARY)
    noise = np.random.default_rng(0).integers(0, 255, (700, 700), dtype=np.uint8)
    chosen = cases_worth_a_picture(table, BINARY)
    text, page = write(tmp_path, table=table, pictures=dict.fromkeys(chosen, png(noise)))
    assert len(text) < PICTURE_BUDGET + 400_000
    assert 0 < len(page.all("img")) < len(chosen)
    assert "left out to keep the page small" in page.text


def test_a_table_that_lacks_columns_or_holds_strange_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks predicted.*vesalius evaluate"):
        write(tmp_path, table=table_of(BINARY).drop(columns="predicted"))
    with pytest.raises(DataError, match="'flu' in the table"):
        write(tmp_path, table=table_of(BINARY).replace({"label": {"normal": "flu"}}))


def test_forty_classes_give_a_list_of_mistakes_in_place_of_a_matrix(tmp_path: Path) -> None:
    labels = Labels(tuple(f"kind {k}" for k in range(40)))
    table = table_of(labels, 400, skill=9.0)
    table.loc[table["label"] == "kind 7", "predicted"] = "kind 9"
    _, page = write(tmp_path, labels, table=table)
    assert page.complaints == []
    assert not page.all("table", "confusion")
    assert "kind 7 kind 9 10 100 %" in page.text


def test_pictures_of_a_class_name_with_a_bar_stay_one_class(tmp_path: Path) -> None:
    labels = Labels(("a|b", "c"))
    _, page = write(tmp_path, labels)
    assert page.complaints == []
