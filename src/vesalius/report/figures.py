"""The figures of a study: which charts its cases allow, with captions that say what is to be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from vesalius.measure.calibration import reliability_curve
from vesalius.report import charts
from vesalius.report.cases import Cases, area, claims, precision_recall, roc, threshold_used
from vesalius.report.words import (
    SMALLER_IS_BETTER,
    Interval,
    interval,
    is_number,
    listed,
    metric_name,
    percent,
    show,
    unit_name,
)

# More lines than this cannot be followed by eye; the weakest classes are the ones to look at.
MOST_CURVES = 12
RULES = {
    "half": "one half",
    "youden": "best sum (Youden)",
    "sensitivity_95": "sensitivity 95 %",
}


@dataclass(frozen=True)
class Figure:
    """A chart with its title, legend and caption."""

    title: str
    chart: Markup
    caption: str = ""
    legend: Markup = Markup("")  # noqa: RUF009 - markup is immutable


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it does."""

    name: str
    threshold: float | None
    numbers: Mapping[str, Interval]
    chosen_on: str = ""
    warning: str = ""


def operating_points(data: Any) -> list[OperatingPoint]:
    """From ``{name: {threshold, sensitivity, ...}}``, the same by class, or a list with names."""
    if isinstance(data, Mapping):
        pairs = list(data.items())
    elif isinstance(data, Sequence) and not isinstance(data, str):
        pairs = [(str(p.get("name", "")), p) for p in data if isinstance(p, Mapping)]
    else:
        return []
    out = []
    for name, content in pairs:
        if isinstance(content, Mapping) and "threshold" in content:
            numbers = {str(k): interval(v) for k, v in content.items() if k != "threshold" and is_number(v)}
            chosen, warning = str(content.get("chosen_on") or ""), str(content.get("warning") or "")
            threshold = interval(content["threshold"]).value
            out.append(
                OperatingPoint(RULES.get(str(name), str(name).replace("_", " ")), threshold, numbers, chosen, warning)
            )
        elif isinstance(content, (Mapping, list)):
            out += [replace(point, name=f"{name}: {point.name}") for point in operating_points(content)]
    return out


def letter(index: int) -> str:
    """The letter of an operating point in the table and on the charts."""
    return chr(ord("A") + index) if index < 26 else ""


def case_figures(cases: Cases, points: Sequence[OperatingPoint], *, threshold: float | None = None) -> list[Figure]:
    """ROC, precision-recall, reliability and the histogram of probabilities, as far as the cases allow them."""
    if not len(cases):
        return []
    figures = [
        roc_figure(cases, points),
        precision_recall_figure(cases, points),
        reliability_figure(cases),
        histogram_figure(cases, threshold),
    ]
    return [figure for figure in figures if figure is not None]


def _shown_classes(cases: Cases) -> list[int]:
    """Columns to draw: the positive class of two, else all, else the weakest ones."""
    if cases.labels.binary:
        return [cases.labels.positive]
    areas = [area(*roc(cases.truth[:, k], cases.probability[:, k])) for k in range(len(cases.labels))]
    known = [k for k in range(len(areas)) if np.isfinite(areas[k])]
    if len(known) <= MOST_CURVES:
        return known
    return sorted(known, key=lambda k: areas[k])[:MOST_CURVES]


def _left_out(cases: Cases, shown: Sequence[int]) -> str:
    if len(shown) == MOST_CURVES and len(cases.labels) > MOST_CURVES:
        return f" The {MOST_CURVES} weakest of {len(cases.labels)} classes are drawn."
    return ""


def roc_figure(cases: Cases, points: Sequence[OperatingPoint]) -> Figure | None:
    """ROC of the positive class, or of each class against the rest."""
    shown = _shown_classes(cases)
    curves = []
    for k in shown:
        x, y = roc(cases.truth[:, k], cases.probability[:, k])
        if len(x):
            curves.append(charts.Curve(cases.labels.names[k], x, y, f"({area(x, y):.3f})"))
    if not curves:
        return None
    marks = _marks(points, "specificity", "sensitivity", flip=True) if cases.labels.binary else []
    used = _used_point(cases) if cases.labels.binary and not marks else None
    found = ", ".join(f"{c.name} {c.note.strip('()')}" for c in curves)
    chart = charts.roc_chart(
        curves, marks or ([used] if used else []), label=f"ROC curve; area under it: {found}. The diagonal is guessing."
    )
    title = f"ROC for {curves[0].name}" if cases.labels.binary else "ROC of each class against the rest"
    caption = "The dashed diagonal is guessing."
    if marks:
        caption += " The lettered diamonds are the operating points of the table above."
    elif used:
        caption += f" The diamond is the threshold in use: {used.words}."
    if len(curves) > 1:
        caption += " In brackets: area under the curve."
    return Figure(title, chart, caption + _left_out(cases, shown), charts.curve_legend(curves))


def _marks(points: Sequence[OperatingPoint], x_name: str, y_name: str, *, flip: bool = False) -> list[charts.Point]:
    """Operating points that have both numbers; with `flip` the horizontal axis counts from the other end."""
    out = []
    for index, point in enumerate(points):
        x, y = (point.numbers.get(name, Interval(None)).value for name in (x_name, y_name))
        if x is not None and y is not None:
            out.append(charts.Point(1 - x if flip else x, y, _point_words(point), letter(index)))
    return out


def _point_words(point: OperatingPoint) -> str:
    at = f" at threshold {point.threshold:.3g}" if point.threshold is not None else ""
    return f"{point.name}{at}: " + ", ".join(f"{metric_name(k)} {show(v)}" for k, v in point.numbers.items())


def _used_point(cases: Cases) -> charts.Point | None:
    """Where the answers of the table lie on the ROC curve."""
    truth = cases.truth[:, cases.labels.positive]
    called = cases.decided[:, cases.labels.positive]
    if truth.all() or not truth.any():
        return None
    sensitivity, specificity = float(called[truth].mean()), float((~called)[~truth].mean())
    return charts.Point(1 - specificity, sensitivity, f"sensitivity {sensitivity:.2f}, specificity {specificity:.2f}")


def precision_recall_figure(cases: Cases, points: Sequence[OperatingPoint]) -> Figure | None:
    """Precision and recall of the positive class, or of each class."""
    shown = _shown_classes(cases)
    curves = []
    for k in shown:
        x, y = precision_recall(cases.truth[:, k], cases.probability[:, k])
        if len(x):
            curves.append(charts.Curve(cases.labels.names[k], x, y))
    if not curves:
        return None
    one = len(curves) == 1
    share = float(cases.truth[:, shown[0]].mean())
    marks = _marks(points, "sensitivity", "ppv") if cases.labels.binary else []
    chart = charts.precision_recall_chart(
        curves,
        marks,
        prevalence=share if one else None,
        label=f"Precision against recall for {listed([c.name for c in curves])}",
    )
    caption = (
        f"The dashed line is guessing: {percent(share)} of these cases are {curves[0].name}. With another share, this "
        "curve moves; the ROC curve does not."
        if one
        else "Where a class is rare, this picture is stricter than the ROC curve."
    )
    return Figure("Precision and recall", chart, caption + _left_out(cases, shown), charts.curve_legend(curves))


def reliability_figure(cases: Cases) -> Figure | None:
    """Whether 0.8 comes true in 8 of 10 cases."""
    happened, probability = claims(cases)
    bins = reliability_curve(happened, probability, bins=10)
    if cases.labels.binary:
        yes = _brief(cases.labels.names[cases.labels.positive])
        x_name, y_name = f"predicted probability of {yes}", "share that had it"
    elif cases.labels.multilabel:
        x_name, y_name = "predicted probability, all findings", "share that had it"
    else:
        x_name, y_name = "probability of the named class", "share that was right"
    filled = [i for i in range(len(bins.weight)) if bins.weight[i] > 0]
    said = "; ".join(f"predicted {bins.confidence[i]:.2f}, came true {bins.share[i]:.2f}" for i in filled)
    chart = charts.reliability_chart(bins, x_name=x_name, y_name=y_name, label=f"Reliability diagram: {said}")
    caption = (
        "On the diagonal, 0.8 comes true in 8 of 10 cases; below it, the model is too sure. Whiskers: 95 % interval "
        "(cases taken as independent). Gray bars: number of cases"
        + (" and findings." if cases.labels.multilabel else ".")
    )
    return Figure("Calibration", chart, caption)


def _brief(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def histogram_figure(cases: Cases, threshold: float | None = None) -> Figure | None:
    """Probabilities by truth."""
    happened, probability = claims(cases)
    if cases.labels.binary:
        yes, no = cases.labels.names[cases.labels.positive], cases.labels.names[1 - cases.labels.positive]
        words = (yes, no, f"probability of {_brief(yes)}")
        title, caption = "Probabilities by true class", f"Above the line: cases that are {yes}. Below: {no}."
    elif cases.labels.multilabel:
        words = ("present", "absent", "probability, all findings")
        title, caption = "Probabilities by truth", "Above the line: findings that are present. Below: absent."
    else:
        words = ("right", "wrong", "probability of the named class")
        title = "How sure it was when right and when wrong"
        caption = "Above the line: right answers. Below: wrong ones; those far to the right are sure and wrong."
    up, down = probability[happened], probability[~happened]
    chart = charts.mirrored_histogram(
        up,
        down,
        up_name=words[0],
        down_name=words[1],
        x_name=words[2],
        up_kind=1 if cases.labels.binary else 0,
        threshold=threshold_used(cases) if threshold is None else threshold,
        label=f"Histogram of probabilities: {len(up)} × {words[0]}, {len(down)} × {words[1]}",
    )
    return Figure(title, chart, caption + " Each side is drawn as a share of its own cases.")


def forest_figures(numbers: Mapping[str, Interval]) -> list[Figure]:
    """The metrics with their intervals; errors and numbers with a unit get a chart of their own."""
    parts: dict[str, list[charts.ForestRow]] = {}
    for key, data in numbers.items():
        if data.unit not in ("1", ""):
            title = f"In {unit_name(data.unit)}"
        elif key in SMALLER_IS_BETTER:
            title = "Errors of the probabilities (smaller is better)"
        else:
            title = "All numbers with their intervals"
        parts.setdefault(title, []).append(charts.ForestRow(metric_name(key), data))
    figures = []
    for title, rows in parts.items():
        said = "; ".join(f"{row.name} {show(row.interval)}" for row in rows)
        figures.append(Figure(title, charts.forest_chart(rows, high=_nice_end(rows), label=f"{title}: {said}")))
    return figures


def _nice_end(rows: Sequence[charts.ForestRow]) -> float | None:
    """The right end of the axis where 1 would leave the chart empty: errors of 0.05, or millimetres."""
    ends = [v for row in rows for v in row.interval.ends() if v is not None]
    if not ends or 0.35 < max(ends) <= 1:
        return None
    return max(ends) * 1.15 or None


def per_class_forest(per_class: Mapping[str, Mapping[str, Interval]]) -> list[Figure]:
    """The first metric that most classes have, class by class."""
    keys = [
        key
        for key in ("auroc", "dice", "ap50", "f1", "sensitivity", "recall")
        if any(key in v for v in per_class.values())
    ]
    if not keys or len(per_class) < 2 or len(per_class) > 40:
        return []
    key = keys[0]
    rows = [charts.ForestRow(name, data.get(key, Interval(None))) for name, data in per_class.items()]
    said = "; ".join(f"{row.name} {show(row.interval)}" for row in rows)
    title = f"{metric_name(key)[0].upper()}{metric_name(key)[1:]} of each class"
    return [Figure(title, charts.forest_chart(rows, label=f"{title}: {said}"))]


def training_figures(history: pd.DataFrame | None) -> list[Figure]:
    """Losses, validation metrics and the learning rate over the steps."""
    if history is None or not len(history):
        return []
    figures = []
    for title, columns in charts.panels_of(history):
        log = title == "Learning rate"
        last = [f"{c} ends at {history[c].dropna().iloc[-1]:.3g}" for c in columns]
        chart = charts.training_chart(history, columns, log=log, label=f"{title} over training; {listed(last)}")
        names = [charts.Curve(str(c).replace("_", " "), np.empty(0), np.empty(0)) for c in columns]
        caption = "Logarithmic scale." if log else ""
        figures.append(Figure(title, chart, caption, charts.curve_legend(names)))
    return figures
