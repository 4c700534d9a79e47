"""The charts: every mark at its place."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from report_material import BINARY, Page, table_of
from sklearn.metrics import confusion_matrix, roc_auc_score

from vesalius.core.labels import PALETTE, Labels
from vesalius.measure.calibration import reliability_curve
from vesalius.report import charts
from vesalius.report.cases import confusion, groups, precision_recall, read_cases, roc, thinned, threshold_used
from vesalius.report.page import CONTRAST, DARK_PAPER, LIGHT_PAPER, contrast, readable
from vesalius.report.svg import Scale, clipped, decades, text_width, ticks
from vesalius.report.words import Interval


def places(attrs: dict[str, str | None]) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in (attrs["points"] or "").split()]  # type: ignore[misc]


def test_scale_maps_ends_and_middle_also_logarithmically() -> None:
    scale = Scale(0, 10, 100, 0)
    assert [scale(0), scale(5), scale(10)] == [100, 50, 0]
    log = Scale(1e-4, 1e-2, 0, 10, log=True)
    assert log(1e-3) == pytest.approx(5)
    with pytest.raises(ValueError, match="above zero"):
        Scale(0, 1, 0, 1, log=True)
    with pytest.raises(ValueError, match="finite"):
        Scale(0, float("nan"), 0, 1)
    assert Scale(2, 2, 0, 10)(2) == 0, "equal ends must not divide by zero"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.62, 0.97), (-3, 17), (0, 2400), (1e-5, 3e-5)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert low - 1e-9 <= found[0] < found[-1] <= high + 1e-9
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert round(steps[0] / 10.0 ** np.floor(np.log10(steps[0]) + 1e-9), 6) in (1, 2, 5)
    assert decades(1e-5, 1e-2) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])


def test_wide_letters_count_as_wide() -> None:
    assert text_width("肺结核") > text_width("abc")
    assert clipped("a very long name indeed", 60).endswith("…")
    assert text_width(clipped("肺结核活动性与陈旧性", 60)) <= 60
    assert clipped("short", 200) == "short"


def test_roc_diagonal_curve_and_operating_point() -> None:
    cases = read_cases(table_of(BINARY, 80))
    x, y = roc(cases.truth[:, 1], cases.probability[:, 1])
    svg = str(charts.roc_chart([charts.Curve("pneumonia", x, y)], [charts.Point(0.25, 0.75, "here", "A")], label="ROC"))
    page = Page(svg)
    across, up = charts.unit_square()
    diagonal = page.all("line", "chance")[0]
    assert [float(diagonal[k] or "nan") for k in ("x1", "y1", "x2", "y2")] == [across(0), up(0), across(1), up(1)]
    drawn = places(page.all("polyline", "curve")[0])
    assert drawn[0] == pytest.approx((across(0), up(0)))
    assert drawn[-1] == pytest.approx((across(1), up(1)))
    fpr = [(a - across(0)) / (across(1) - across(0)) for a, _ in drawn]
    tpr = [(b - up(0)) / (up(1) - up(0)) for _, b in drawn]
    area = np.trapezoid(tpr, fpr)
    assert area == pytest.approx(roc_auc_score(cases.truth[:, 1], cases.probability[:, 1]), abs=1e-4)
    diamond = places(page.all("polygon", "operating")[0])
    assert np.mean(diamond, axis=0) == pytest.approx((across(0.25), up(0.75)))
    assert "A" in page.texts


def test_thinning_keeps_ends_and_area() -> None:
    random = np.random.default_rng(3)
    truth = random.random(20_000) < 0.4
    x, y = roc(truth, truth + random.normal(0, 1, 20_000))
    small_x, small_y = thinned(x, y)
    assert len(small_x) < 700 < len(x)
    assert (small_x[0], small_y[-1]) == (0, 1)
    assert np.trapezoid(small_y, small_x) == pytest.approx(np.trapezoid(y, x), abs=0.003)


def test_curves_of_a_class_that_is_absent_are_empty() -> None:
    nobody = np.zeros(5, bool)
    assert all(len(part) == 0 for part in (*roc(nobody, np.arange(5.0)), *precision_recall(nobody, np.arange(5.0))))


def test_reliability_marks_lie_where_the_bins_say() -> None:
    p = np.r_[np.full(10, 0.15), np.full(30, 0.85)]
    happened = np.r_[np.arange(10) < 2, np.arange(30) < 24]
    bins = reliability_curve(happened, p, bins=10)
    page = Page(str(charts.reliability_chart(bins, x_name="x", y_name="y", label="r")))
    across = Scale(0, 1, charts.LEFT, charts.SIDE - charts.RIGHT)
    dots = page.all("circle", "dot")
    assert [float(d["cx"] or "nan") for d in dots] == pytest.approx([across(0.15), across(0.85)], abs=0.01)
    up = charts.unit_square()[1]
    assert [float(d["cy"] or "nan") for d in dots] == pytest.approx([up(0.2), up(0.8)], abs=0.01)
    bars = page.all("rect", "count")
    assert float(bars[1]["height"] or 0) == pytest.approx(3 * float(bars[0]["height"] or 0), rel=0.01)
    assert {"10", "30"} <= set(page.texts), "the counts are written on the bars"


def test_forest_whiskers_end_at_the_interval_and_gaps_are_named() -> None:
    rows = [
        charts.ForestRow("AUROC", Interval(0.9, 0.8, 0.95)),
        charts.ForestRow("F1", Interval(None, why="one class")),
    ]
    page = Page(str(charts.forest_chart(rows, label="forest", low=0, high=1)))
    dot = float(page.all("circle", "dot")[0]["cx"] or "nan")
    whisker = page.all("line", "whisker")[0]
    left, right = float(whisker["x1"] or "nan"), float(whisker["x2"] or "nan")
    assert (dot - left) / (right - left) == pytest.approx((0.9 - 0.8) / (0.95 - 0.8), abs=0.01)
    assert len(page.all("circle", "dot")) == 1
    assert {"one class", "0.90 (0.80–0.95)"} <= set(page.texts)


def test_histogram_bars_are_shares_of_their_own_side() -> None:
    up, down = np.full(10, 0.9), np.r_[np.full(50, 0.1), np.full(50, 0.5)]
    page = Page(str(charts.mirrored_histogram(up, down, up_name="yes", down_name="no", x_name="p", label="h")))
    tall = {kind: max(float(b["height"] or 0) for b in page.all("rect", kind)) for kind in ("s0", "s1")}
    assert tall["s1"] == pytest.approx(2 * tall["s0"], rel=0.01)


def test_confusion_counts_agree_with_scikit_learn_and_errors_have_their_own_hue() -> None:
    labels = Labels(("a", "b", "c"))
    table = table_of(labels, 90, skill=1.0)
    counts = confusion(read_cases(table, labels))
    assert np.array_equal(counts, confusion_matrix(table["label"], table["predicted"], labels=list(labels.names)))
    markup = str(charts.confusion_table(counts, labels.names))
    cells = re.findall(r'<td class="(right|wrong)[^"]*" style="--heat:([\d.]+)"[^>]*>(\d+)', markup)
    assert [int(n) for _, _, n in cells] == counts.ravel().tolist()
    assert [kind for kind, _, _ in cells] == ["right" if i == j else "wrong" for i in range(3) for j in range(3)]
    assert float(cells[0][1]) == pytest.approx(counts[0, 0] / counts[0].sum(), abs=1e-3)
    assert markup.count('scope="row"') == 3


def test_training_history_is_sorted_into_panels_and_gaps_are_skipped() -> None:
    history = pd.DataFrame(
        {"step": [0, 10, 20], "epoch": [0, 1, 2], "train_loss": [1.0, 0.5, 0.2], "val_loss": [np.nan, 0.6, np.nan],
         "val_auroc": [0.5, np.nan, 0.9], "val_hd95_mm": [9.0, 8.0, 7.0], "lr": [1e-3, 1e-4, 0.0],
         "note": ["a", "b", "c"]}
    )  # fmt: skip
    panels = dict(charts.panels_of(history))
    assert panels == {"Loss": ["train_loss", "val_loss"], "On the validation cases": ["val_auroc"],
                      "val_hd95_mm": ["val_hd95_mm"], "Learning rate": ["lr"]}  # fmt: skip
    page = Page(str(charts.training_chart(history, ["val_auroc"], label="t")))
    drawn = places(page.all("polyline", "curve")[0])
    assert drawn[0][0] < drawn[-1][0]
    assert drawn[0][1] > drawn[-1][1], "a rising number goes up"
    assert "nan" not in str(charts.training_chart(history, ["lr"], log=True, label="t"))


@pytest.mark.parametrize("paper", [LIGHT_PAPER, DARK_PAPER])
@pytest.mark.parametrize("colour", PALETTE)
def test_series_colours_stand_out_on_both_papers(colour: str, paper: str) -> None:
    assert contrast(readable(colour, paper), paper) >= CONTRAST
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_groups_show_the_surest_errors_first_and_the_threshold_is_found() -> None:
    table = pd.DataFrame(
        {"case_id": list("abcdef"), "patient_id": list("abcdef"), "label": ["no", "no", "yes", "yes", "no", "yes"],
         "p.yes": [0.9, 0.7, 0.2, 0.45, 0.1, 0.95]}
    )  # fmt: skip
    table["p.no"] = 1 - table["p.yes"]
    table["predicted"] = np.where(table["p.yes"] >= 0.4, "yes", "no")
    table["correct"] = table["predicted"] == table["label"]
    cases = read_cases(table, Labels(("no", "yes")))
    assert threshold_used(cases) == pytest.approx((0.2 + 0.45) / 2)
    found = {group.title.split(":")[0]: group.case_ids for group in groups(cases)}
    assert found["False alarms"] == ("a", "b")
    assert found["Missed"] == ("c",)
    assert set(found["Borderline"][:2]) == {"c", "d"}
    assert found["Surest right answers"][0] == "f"
