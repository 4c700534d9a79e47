"""The segmentation report, its pictures, charts and card as a reader and a browser get them."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Raster
from report_material import Page

from vesalius.core.files import write_json
from vesalius.core.geometry import Grid
from vesalius.core.image import Image, Unit
from vesalius.core.labels import Labels
from vesalius.evaluate.segment_study import segment_study
from vesalius.evaluate.segment_table import score_case, segment_table
from vesalius.report import segment_words
from vesalius.report.measure_pictures import OUTLINES
from vesalius.report.segment_card import segment_card
from vesalius.report.segment_charts import agreement_limits, bland_altman_figure
from vesalius.report.segment_page import write_segment_report
from vesalius.report.segment_pictures import case_picture, cases_worth_a_picture

LABELS = Labels(("background", "liver", "tumour"))
NASTY = Labels(("b", "<script>alert('x')</script>", 'c" onload="x', "肺 & 其他"))
PLAN = {"model": {"name": {"value": "unet", "because": "fits <4 GB>"}}}
PROVENANCE = {"schema": 1, "command": ["/opt/bin/vesalius", "train", "my data"], "seed": 7}
EVIDENCE = pd.DataFrame(
    [["largest component", "liver", 60, 0.931, 0.9342, 0.0032, 0.0008, 0.0061, True, "Taken: it rises."],
     ["fill holes", "<b>tumour</b>", 60, 0.52, 0.521, 0.001, np.nan, np.nan, False, "Not taken: too few."],
     ["all chosen steps", "all labels", 60, 0.7, 0.71, 0.01, 0.005, 0.02, True, "Taken."]],
    columns=["name", "label", "cases", "before", "after", "difference", "low", "high", "chosen", "reason"],
)  # fmt: skip


def scored(labels=LABELS, cases=12, spacing=(3.0, 1.0, 1.0), *, name="case-{}"):
    """Real scores of small moved boxes; case 3 misses its last structure, case 4 invents it, case 5 is empty."""
    draw = np.random.default_rng(1)
    rows = []
    shape = (8, 16, 16)[-len(spacing) if spacing else -2 :]
    for n in range(cases):
        truth = np.zeros(shape, np.uint8)
        for k in range(1, len(labels)):
            inside = (..., slice(2, 10), slice(3 * k, 3 * k + 3))
            truth[inside] = k
        said = np.roll(truth, int(draw.integers(-2, 3)), axis=-2)
        last = len(labels) - 1
        truth[(truth == last) & (n in (4, 5))] = 0
        said[(said == last) & (n in (3, 5))] = 0
        rows += score_case(said, truth, spacing, labels, case_id=name.format(n), patient_id=f"p{n}", split="test")
    return segment_table(rows)


def write(folder, labels=LABELS, table=None, **changes):
    table = scored(labels) if table is None else table
    study = segment_study(table, labels, resamples=40)
    metrics = json.loads(write_json(folder / "metrics.json", study.metrics()).read_text(encoding="utf-8"))
    content = {"metrics": metrics | changes.pop("more", {}), "table": table, "plan": PLAN, "provenance": PROVENANCE}
    text = write_segment_report(folder, **(content | changes)).read_text(encoding="utf-8")
    return text, Page(text)


def forbidden(text):
    """What would make a browser ask somebody for something, or run something."""
    found = re.findall(r'(?:src|href|data|action|poster)\s*=\s*"(?!#|data:)[^"]*"', text)
    return found + re.findall(r"url\([^)]*\)|@import|<script|<link|<iframe|<object|<[^>]*\son\w+=\"", text)


# ---------------------------------------------------------------------------------------------------------------- page


def test_the_page_says_what_was_found(tmp_path):
    table = scored()
    text, page = write(tmp_path, table=table, evidence=EVIDENCE, notes=["a note"])
    assert page.complaints == []
    assert forbidden(text) == []
    finite = table.replace(np.inf, np.nan)
    means = finite.groupby("label")["dice"].mean()
    assert f"with a mean Dice of {means.mean():.2f}" in page.text
    assert f"It did worst on tumour (Dice {means['tumour']:.2f})" in page.text
    for case in table["case_id"]:
        assert case in page.text
    assert "tumour: missed in 1 and invented in 1 of 12 cases." in page.text
    assert "The tolerance of the surface Dice is 3 mm." in page.text
    assert "2 steps tried" in page.text
    assert "1 step taken" in page.text
    assert "+0.0032" in page.text
    assert "a note" in page.text
    assert "fits <4 GB>" in page.text
    anchors = {attrs["id"] for tag, attrs in page.tags if tag == "section"}
    assert {attrs["href"].removeprefix("#") for attrs in page.all("a")} == anchors


def test_hostile_names_stay_text(tmp_path):
    table = scored(NASTY, name="<img src=x onerror=y>{}&\u202e")
    text, page = write(
        tmp_path, NASTY, table, title="<b>bold</b>", evidence=EVIDENCE, notes=["</main><script>"], card={"name": "<i>"}
    )
    assert page.complaints == []
    assert forbidden(text) == []
    assert "<script>alert('x')</script>" in page.text
    assert "肺 & 其他" in page.text
    assert "<img src=x onerror=y>7&\u202e" in page.text
    assert len(page.all("script")) == len(page.all("b")) == len(page.all("i")) == 0


@pytest.mark.parametrize("spacing", [None, (0.5, 0.5), (3.0, 1.0, 1.0)])
@pytest.mark.parametrize("names", [("b", "a"), ("b", *(f"organ {k}" for k in range(5)))])
def test_pages_of_other_kinds(tmp_path, spacing, names):
    labels = Labels(names)
    text, page = write(tmp_path, labels, scored(labels, 7, spacing))
    assert page.complaints == []
    assert forbidden(text) == []
    unit = "px" if spacing is None else "mm"
    assert re.search(rf"\d {unit}\b", page.text)
    assert ("mean Dice" in page.text.split("Key numbers")[0]) == (len(names) > 2)


def test_the_page_of_single_objects(tmp_path):
    labels = Labels(("background", "nucleus"), instances=True)
    draw = np.random.default_rng(0)
    rows = []
    for n in range(6):
        truth = np.kron(np.arange(1, 17).reshape(4, 4), np.pad(np.ones((6, 6), int), 2))
        said = truth * (draw.random(truth.shape) > 0.05 * n)
        said[said == n] = 0
        rows += score_case(said, truth, None, labels, case_id=f"tile-{n}", split="test")
    table = segment_table(rows)
    text, page = write(tmp_path, labels, table)
    assert page.complaints == []
    assert forbidden(text) == []
    assert f"found single objects (nucleus) with Panoptic quality of {table['pq'].mean():.2f}" in page.text
    assert next(case for case, _ in cases_worth_a_picture(table)) == table.loc[table["pq"].idxmin(), "case_id"]


def test_a_study_of_nothing_but_empty_masks(tmp_path):
    empty = np.zeros((4, 4, 4), np.uint8)
    rows = [row for n in range(3) for row in score_case(empty, empty, None, LABELS, case_id=f"e{n}", split="test")]
    text, page = write(tmp_path, table=segment_table(rows))
    assert page.complaints == []
    assert forbidden(text) == []
    assert "no overlap could be computed" in page.text
    assert "no case has a score" in page.text


def test_what_else_the_metrics_hold_is_shown(tmp_path):
    bins = [{"from": k / 4, "to": (k + 1) / 4, "cases": 100, "confidence": k / 4 + 0.1, "share": k / 4 + 0.05,
             "low": k / 4, "high": k / 4 + 0.1} for k in range(4)]  # fmt: skip
    more = {
        "calibration": {"temperature": 1.3, "ece": {"before": 0.04, "after": 0.02}, "reliability": bins},
        "band": {"level": 0.95, "labels": {"liver": {"inner_mm": 3.25, "outer_mm": 2.5, "cases": 20}}},
        "timing": {"train_s": 3700.0, "predict_ms_per_case": 4200.0},
        "leakage": {"patients_shared": 3, "near_duplicates": 0, "allowed": True},
        "subgroups": {"site": {"groups": {"x": {"cases": 3, "patients": 3, "note": "not enough cases: 3"}}}},
    }
    history = pd.DataFrame({"step": [1, 2, 3], "train_loss": [1.0, 0.5, 0.4], "val_dice": [0.1, 0.6, 0.7]})
    text, page = write(tmp_path, more=more, history=history, card={"data": {"patient_source": "none"}})
    assert page.complaints == []
    assert forbidden(text) == []
    for words in ("3.25", "2.50", "0.040 before, 0.020 after", "4.2 s", "1 h 01 min", "not enough cases: 3",
                  "probably too good", "Nobody knows which images belong to the same person"):  # fmt: skip
        assert words in page.text, words
    charts = {(attrs.get("class") or "").split()[-1] for attrs in page.all("svg", "chart")}
    assert {"spread", "forest", "scatter", "bland-altman", "reliability", "training"} <= charts


def test_pictures_are_on_the_page_with_their_reasons(tmp_path):
    table = scored()
    chosen = cases_worth_a_picture(table)
    picture = case_picture(None, np.eye(8, dtype=np.uint8), np.eye(8, dtype=np.uint8), LABELS)
    _, page = write(tmp_path, table=table, pictures={case: picture for case, _ in chosen} | {"other": picture})
    shown = page.all("img")
    assert len(shown) == len(chosen)
    assert all(one["src"].startswith("data:image/png;base64,") for one in shown)
    assert all(f"{case}: {why}" in [one["alt"] for one in shown] for case, why in chosen)


# ------------------------------------------------------------------------------------------------------------- choices


def test_cases_worth_a_picture():
    table = scored()
    mean = table.groupby("case_id")["dice"].mean().sort_values()
    chosen = dict(cases_worth_a_picture(table, most=2))
    assert len(chosen) == len(cases_worth_a_picture(table, most=2))
    assert chosen[mean.index[0]].startswith("worst")
    assert any("missed tumour" in why for why in chosen.values())
    assert any("invented tumour" in why for why in chosen.values())
    assert {why.split(":")[0] for why in chosen.values()} >= {"worst", "median", "best"}
    best = next(case for case, why in chosen.items() if why.startswith("best"))
    assert mean[best] == mean.max()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=9), st.integers(1, 5))
def test_no_case_is_chosen_twice(dice, most):
    table = pd.DataFrame({"case_id": [f"c{k}" for k in range(len(dice))], "patient_id": "p", "label": "a",
                          "outcome": "found", "dice": pd.Series(dice, dtype=float)})  # fmt: skip
    chosen = [case for case, _ in cases_worth_a_picture(table, most)]
    known = table.dropna(subset="dice")
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(known["case_id"])
    assert bool(chosen) == bool(len(known))
    if chosen:
        assert table.set_index("case_id").loc[chosen[0], "dice"] == known["dice"].min()


def test_limits_of_agreement_are_those_of_the_formula():
    draw = np.random.default_rng(2)
    true = draw.gamma(4, 10, 200)
    said = true + draw.normal(1.5, 3.0, 200)
    bias, low, high = agreement_limits(said - true)
    gap = pd.Series(said - true)
    assert bias == pytest.approx(gap.mean())
    assert (low, high) == (pytest.approx(gap.mean() - 1.96 * gap.std()), pytest.approx(gap.mean() + 1.96 * gap.std()))
    figure = bland_altman_figure("liver", true, said, [f"c{k}" for k in range(200)], "volume", "ml")
    assert figure.chart.count("<circle") == 200
    assert f"Bias {bias:.3g} ml" in figure.caption


# ------------------------------------------------------------------------------------------------------------ pictures


def pixels(picture):
    return np.asarray(Raster.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def share_of(picture, colour, tolerance=24):
    """Where a picture has a colour of the palette."""
    wanted = [int(OUTLINES[colour][i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels(picture) - wanted) < tolerance).all(axis=-1)


def test_one_structure_has_two_colours_and_the_outlines_are_where_the_masks_are():
    labels = Labels(("b", "a"))
    truth, said = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    truth[8:40, 8:24], said[8:40, 36:56] = 1, 1
    image = Image(Grid((64, 64)), np.full((1, 64, 64), 40, np.int16))
    picture = case_picture(image, truth, said, labels, side=256)
    reference, model = share_of(picture, 0)[:192], share_of(picture, 4)[:192]
    # Rows 0 to 48 are shown, four times as large; the legend with its samples of colour lies below them.
    for found, (left, right) in ((reference, (8, 24)), (model, (36, 56))):
        columns = np.flatnonzero(found.any(axis=0))
        assert columns[0] == pytest.approx(left * 4, abs=4)
        assert columns[-1] == pytest.approx(right * 4, abs=4)
        rows = np.flatnonzero(found.any(axis=1))
        assert rows[0] == pytest.approx(32, abs=4)
        assert rows[-1] == pytest.approx(160, abs=4)


def test_several_structures_have_a_colour_each_and_the_model_is_dashed():
    truth, said = np.zeros((60, 60), np.uint8), np.zeros((60, 60), np.uint8)
    truth[5:25, 5:25], said[5:25, 32:52], truth[35:55, 5:25] = 1, 1, 2
    picture = case_picture(None, truth, said, LABELS, side=240)
    inked = share_of(picture, 0)[:240]
    full, dashed = inked[:, :120].sum(), inked[:, 120:].sum()
    assert 0.3 < dashed / full < 0.85
    assert share_of(picture, 1)[:240].any()


def test_a_volume_shows_the_planes_where_the_masks_differ_most():
    labels = Labels(("b", "a"))
    truth = np.zeros((20, 30, 40), np.uint8)
    truth[4:16, 5:25, 5:35] = 1
    said = truth.copy()
    said[11] = 0
    said[:, 7] = 0
    said[:, :, 31] = 0
    affine = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    draw = np.random.default_rng(0).normal(40, 10, (1, 20, 30, 40)).astype(np.int16)
    image = Image(Grid((20, 30, 40), affine), draw, unit=Unit.HU)
    from vesalius.report.segment_pictures import _cuts

    names = [cut.plane.name for cut in _cuts(image, truth[None], said[None], (2.0, 1.0, 1.0))]
    assert names == ["axial 12 of 20", "coronal 8 of 30", "sagittal 32 of 40"]
    shape = pixels(case_picture(image, truth, said, labels, side=100)).shape
    assert shape[1] == 300
    assert shape[0] > 100


@pytest.mark.parametrize("kind", ["empty", "regions", "instances", "ignored", "colour"])
def test_pictures_of_every_kind(kind):
    labels, image = LABELS, None
    truth, said = np.zeros((5, 12, 12), np.uint8), np.zeros((5, 12, 12), np.uint8)
    if kind != "empty":
        truth[1:4, 2:6, 2:6], said[1:4, 3:7, 2:6] = 1, 2
    if kind == "regions":
        labels = Labels(("whole", "core"), multilabel=True, regions=((1, 2), (2,)))
        said = np.stack([said > 0, said == 2])
    if kind == "instances":
        labels = Labels(("b", "cell"), instances=True)
        truth[1:4, 7:9, 7:9] = 300 % 256
    if kind == "ignored":
        labels = Labels(("b", "a", "c"), ignore=7)
        truth[0] = 7
    if kind == "colour":
        truth, said = truth[2], said[2]
        image = Image(Grid((12, 12)), np.zeros((3, 12, 12), np.uint8), unit=Unit.RED_GREEN_BLUE)
    spacing = (2.0, 1.0, 1.0)[-2 if kind == "colour" else -3 :]
    shape = pixels(case_picture(image, truth, said, labels, side=96, spacing=spacing)).shape
    assert shape[1] == 288 if truth.ndim == 3 else 0 < shape[1] <= 96


def test_pictures_of_what_does_not_fit():
    with pytest.raises(ValueError, match="shapes"):
        case_picture(None, np.zeros((4, 4), int), np.zeros((4, 5), int), LABELS)
    with pytest.raises(ValueError, match="2 axes"):
        case_picture(Image(Grid((4, 4)), np.zeros((1, 4, 4))), np.zeros((9, 4, 4), int), np.zeros((4, 4), int), LABELS)


# ---------------------------------------------------------------------------------------------------------------- card


def test_the_card_says_the_same_as_the_page(tmp_path):
    table = scored()
    metrics = segment_study(table, LABELS, resamples=40).metrics()
    card = {"name": "A *model*", "bundle": "runs/x", "model": "unet", "parameters": 1200}
    text = segment_card(metrics=metrics, card=card, provenance=PROVENANCE, plan=PLAN, evidence=EVIDENCE)
    dice = table["dice"].groupby(table["label"]).mean()
    assert text.startswith("# A \\*model\\*\n")
    assert f"mean Dice of {dice.mean():.2f}" in text
    assert "0 background, 1 liver, 2 tumour" in text
    assert "vesalius predict runs/x" in text
    assert "largest component (liver): Taken: it rises." in text
    assert "all chosen" not in text
    for line in segment_words.limits(metrics, patients_known=True, labels=LABELS):
        assert line.split(".")[0][:40] in text
    nasty = segment_study(scored(NASTY), NASTY, resamples=20).metrics()
    assert "<script>" not in segment_card(metrics=nasty, card={})
