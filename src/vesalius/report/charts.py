"""Charts of a study as SVG of our own: each is one function from numbers to markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from vesalius.measure.calibration import Reliability
from vesalius.report.cases import Floats, thinned
from vesalius.report.svg import Drawing, Scale, clipped, decades, legend, series_class, series_dash, text_width, ticks
from vesalius.report.words import Interval, percent, show

SIDE = 380.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 12.0, 44.0


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a chart."""

    name: str
    x: Floats
    y: Floats
    note: str = ""


@dataclass(frozen=True)
class Point:
    """An operating point on a chart: its letter, and the text shown under the pointer."""

    x: float
    y: float
    words: str
    mark: str = ""


def unit_square(height: float = SIDE) -> tuple[Scale, Scale]:
    """The axes of ROC, precision-recall and reliability: 0 to 1 both ways."""
    return Scale(0, 1, LEFT, SIDE - RIGHT), Scale(0, 1, height - BOTTOM, TOP)


def roc_chart(curves: Sequence[Curve], points: Sequence[Point] = (), *, label: str) -> Markup:
    """Sensitivity against false alarms, with the diagonal of guessing and the operating points."""
    x, y = unit_square()
    drawing = Drawing(SIDE, SIDE, label, "roc")
    drawing.axes(x, y, x_name="false alarms (1 − specificity)", y_name="sensitivity")
    drawing.line(x(0), y(0), x(1), y(1), "chance")
    _draw_curves(drawing, x, y, curves)
    _draw_points(drawing, x, y, points)
    return drawing.markup()


def precision_recall_chart(
    curves: Sequence[Curve], points: Sequence[Point] = (), *, prevalence: float | None = None, label: str
) -> Markup:
    """Precision against recall; the dashed line is what guessing reaches, the share of cases with the finding."""
    x, y = unit_square()
    drawing = Drawing(SIDE, SIDE, label, "precision-recall")
    drawing.axes(x, y, x_name="recall (sensitivity)", y_name="precision (PPV)")
    if prevalence is not None:
        drawing.line(x(0), y(prevalence), x(1), y(prevalence), "chance")
    _draw_curves(drawing, x, y, curves)
    _draw_points(drawing, x, y, points)
    return drawing.markup()


def _draw_curves(drawing: Drawing, x: Scale, y: Scale, curves: Sequence[Curve]) -> None:
    for index, curve in enumerate(curves):
        if len(curve.x):
            xs, ys = thinned(curve.x, curve.y)
            places = [(x(a), y(b)) for a, b in zip(xs, ys, strict=True)]
            tip = f"{curve.name} {curve.note}".strip()
            drawing.curve(places, f"curve {series_class(index)}", dash=series_dash(index), tip=tip)


def _draw_points(drawing: Drawing, x: Scale, y: Scale, points: Sequence[Point]) -> None:
    for point in points:
        drawing.diamond(x(point.x), y(point.y), "operating", tip=point.words)
        if point.mark:
            left = point.x > 0.85
            drawing.text(
                x(point.x) + (-9 if left else 9),
                y(point.y) + 14,
                point.mark,
                kind="name",
                anchor="end" if left else "start",
            )


def curve_legend(curves: Sequence[Curve]) -> Markup:
    """The names of the lines; empty for a single one, which needs none."""
    if len(curves) < 2:
        return Markup("")
    return legend([(series_class(i), series_dash(i), f"{c.name} {c.note}".strip()) for i, c in enumerate(curves)])


def reliability_chart(bins: Reliability, *, x_name: str, y_name: str, label: str) -> Markup:
    """Predicted against observed, with whiskers, over a strip of how many cases each bin holds."""
    strip = 56.0
    height = SIDE + strip
    x = Scale(0, 1, LEFT, SIDE - RIGHT)
    y = Scale(0, 1, height - BOTTOM - strip, TOP)
    base = height - BOTTOM
    drawing = Drawing(SIDE, height, label, "reliability")
    drawing.axes(x, y, y_name=y_name, x_labels=False)
    drawing.line(x(0), y(0), x(1), y(1), "chance")
    for value in ticks(0, 1):
        drawing.text(x(value), base + 16, f"{value:.3g}", anchor="middle")
    drawing.line(x.start, base, x.stop, base, "axis")
    drawing.text((x.start + x.stop) / 2, base + 34, x_name, kind="name", anchor="middle")
    filled = np.flatnonzero(bins.weight > 0)
    most = float(bins.weight.max(initial=1))
    for index in filled:
        left, right = x(bins.edges[index]), x(bins.edges[index + 1])
        tall = (strip - 26) * float(bins.weight[index]) / most
        cases = int(bins.weight[index])
        drawing.bar(left + 1, base - tall, right - left - 2, tall, "count", tip=f"{cases} cases")
        drawing.text((left + right) / 2, base - tall - 3, _compact(cases), kind="tiny", anchor="middle")
    drawing.curve([(x(bins.confidence[i]), y(bins.share[i])) for i in filled], "curve s0 faint")
    for i in filled:
        place = x(bins.confidence[i])
        words = f"predicted {bins.confidence[i]:.2f}, came true {bins.share[i]:.2f} in {int(bins.weight[i])} cases"
        drawing.line(place, y(bins.low[i]), place, y(bins.high[i]), "whisker s0")
        drawing.dot(place, y(bins.share[i]), "dot s0", tip=words)
    return drawing.markup()


def _compact(count: int) -> str:
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 10_000 else f"{count // 1000}k"


@dataclass(frozen=True)
class ForestRow:
    """One metric with its interval; `n` is shown after the name."""

    name: str
    interval: Interval
    heading: bool = False


def forest_chart(
    rows: Sequence[ForestRow], *, label: str, low: float | None = None, high: float | None = None
) -> Markup:
    """Each metric as a dot with whiskers from low to high; rows without a number say so."""
    finite = [v for row in rows for v in row.interval.ends() if v is not None]
    least, most = (min(finite), max(finite)) if finite else (0.0, 1.0)
    # Shares above one half are told apart better without the empty half; 0.5 is also where guessing lies.
    low = low if low is not None else (0.5 if least >= 0.55 and most <= 1 else min(0.0, least))
    high = high if high is not None else (1.0 if most <= 1 else most)
    width, step = 400.0, 28.0
    names = min(max([text_width(row.name) for row in rows] + [60.0]) + 12, 150.0)
    x = Scale(low, high, names, width - 130)
    bottom = TOP + step * len(rows)
    drawing = Drawing(width, bottom + 28, label, "forest")
    for value in ticks(low, high, about=4):
        drawing.line(x(value), TOP - 4, x(value), bottom, "grid")
        drawing.text(x(value), bottom + 16, f"{value:.3g}", anchor="middle")
    for index, row in enumerate(rows):
        middle = TOP + step * (index + 0.5)
        drawing.text(0, middle + 4, clipped(row.name, names - 10), kind="tick strong")
        words = show(row.interval)
        drawing.text(width, middle + 4, words, kind="tick", anchor="end")
        if row.interval.value is None:
            continue
        if row.interval.low is not None and row.interval.high is not None:
            ends = x(row.interval.low), x(row.interval.high)
            drawing.line(ends[0], middle, ends[1], middle, "whisker s0")
            for end in ends:
                drawing.line(end, middle - 4, end, middle + 4, "whisker s0")
        drawing.dot(x(row.interval.value), middle, "dot s0", radius=4, tip=f"{row.name}: {words}")
    return drawing.markup()


def mirrored_histogram(
    up: Floats,
    down: Floats,
    *,
    up_name: str,
    down_name: str,
    x_name: str,
    threshold: float | None = None,
    up_kind: int = 1,
    label: str,
) -> Markup:
    """Two histograms back to back over [0, 1]: `up` above the line, `down` below it, each a share of its own cases.

    `up_kind` is the colour of the upper one, 1 or 0; the lower one has the other.
    """
    bins = 25
    height = 260.0
    x = Scale(0, 1, LEFT, SIDE - RIGHT)
    edges = np.linspace(0, 1, bins + 1)
    shares = []
    for values in (up, down):
        counts, _ = np.histogram(np.clip(values, 0, 1), edges)
        shares.append((counts, counts / max(len(values), 1)))
    tallest = max(float(shares[0][1].max()), float(shares[1][1].max()), 1e-9)
    middle = TOP + (height - BOTTOM - TOP) / 2
    reach = (height - BOTTOM - TOP) / 2 - 12
    drawing = Drawing(SIDE, height, label, "histogram")
    for value in ticks(0, 1):
        drawing.line(x(value), TOP, x(value), height - BOTTOM, "grid")
        drawing.text(x(value), height - BOTTOM + 16, f"{value:.3g}", anchor="middle")
    for (counts, share), kind, name, sign in (
        (shares[0], f"s{up_kind}", up_name, -1),
        (shares[1], f"s{1 - up_kind}", down_name, 1),
    ):
        for index in range(bins):
            tall = reach * float(share[index]) / tallest
            left = x(edges[index]) + 0.5
            top = middle - tall if sign < 0 else middle
            wide = x(edges[1]) - x(0) - 1
            drawing.bar(left, top, wide, tall, f"fill {kind}", tip=f"{name}: {int(counts[index])} cases")
    drawing.line(x.start, middle, x.stop, middle, "axis")
    drawing.text((x.start + x.stop) / 2, height - 10, x_name, kind="name", anchor="middle")
    drawing.text(16, (TOP + middle) / 2, clipped(up_name, reach), kind=f"name t{up_kind}", anchor="middle", turn=True)
    drawing.text(
        16,
        (height - BOTTOM + middle) / 2,
        clipped(down_name, reach),
        kind=f"name t{1 - up_kind}",
        anchor="middle",
        turn=True,
    )
    if threshold is not None and 0 <= threshold <= 1:
        drawing.line(x(threshold), TOP, x(threshold), height - BOTTOM, "threshold")
        anchor = "end" if threshold > 0.8 else "start"
        drawing.text(
            x(threshold) + (-4 if anchor == "end" else 4), TOP + 10, f"threshold {threshold:.2f}", anchor=anchor
        )
    return drawing.markup()


# --------------------------------------------------------------------------------------------------------- training


def panels_of(history: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """The columns of a training history by chart: losses, learning rate, and everything else that is a number."""
    skip = {"step", "epoch", "time", "seconds", "time_s", "elapsed_s"}
    loss, rate, other = [], [], []
    for column in history.columns:
        name = str(column)
        if name in skip or not pd.api.types.is_numeric_dtype(history[column]) or history[column].notna().sum() == 0:
            continue
        if "loss" in name:
            loss.append(name)
        elif name in ("lr", "learning_rate"):
            rate.append(name)
        else:
            other.append(name)
    # Numbers between 0 and 1 share an axis; others (mm, cases per second) would flatten them.
    small = [name for name in other if history[name].dropna().between(0, 1).all()]
    charts = [("Loss", loss), ("On the validation cases", small)]
    charts += [(name, [name]) for name in other if name not in small]
    charts.append(("Learning rate", rate))
    return [(title, columns) for title, columns in charts if columns]


def training_chart(history: pd.DataFrame, columns: Sequence[str], *, log: bool = False, label: str) -> Markup:
    """Some columns of a training history over its steps; gaps are skipped, so rare validation points stay joined."""
    width, height = SIDE, 230.0
    steps = _steps(history)
    values = history[list(columns)].to_numpy(dtype=float)
    good = np.isfinite(values) & ((values > 0) if log else True)
    drawing = Drawing(width, height, label, "training")
    if not good.any():
        drawing.text(width / 2, height / 2, "no finite values", anchor="middle")
        return drawing.markup()
    low, high = float(values[good].min()), float(values[good].max())
    pad = 0.0 if log else (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    x = Scale(float(steps.min()), float(steps.max()), LEFT + 4, width - RIGHT)
    y = Scale(low - pad, high + pad, height - BOTTOM, TOP, log=log)
    drawing.axes(x, y, x_name=_step_name(history), y_ticks=decades(low, high) if log else None)
    for index, _ in enumerate(columns):
        mine = good[:, index]
        places = [(x(a), y(b)) for a, b in zip(steps[mine], values[mine, index], strict=True)]
        places = places[:: max(len(places) // 600, 1)] + places[-1:]
        drawing.curve(places, f"curve {series_class(index)}", dash=series_dash(index), tip=str(columns[index]))
        if 0 < len(places) <= 40:
            for place in places:
                drawing.dot(*place, f"dot {series_class(index)}", radius=2.2)
    return drawing.markup()


def _step_name(history: pd.DataFrame) -> str:
    return next((name for name in ("step", "epoch") if name in history.columns), "row")


def _steps(history: pd.DataFrame) -> Floats:
    name = _step_name(history)
    if name == "row":
        return np.arange(len(history), dtype=float)
    return history[name].to_numpy(dtype=float)


# -------------------------------------------------------------------------------------------------------- confusion


def confusion_table(counts: NDArray[np.int64], names: Sequence[str]) -> Markup:
    """True class by named class as a table; the shade is the share of the row, errors have another hue.

    With many classes the columns carry the numbers of the rows: long names side by side would not fit any screen.
    """
    numbered = len(names) > 5
    head = Markup("").join(
        Markup('<th scope="col"><abbr title="{}">{}</abbr></th>').format(name, place)
        if numbered
        else Markup('<th scope="col"><span>{}</span></th>').format(name)
        for place, name in enumerate(names, 1)
    )
    rows = []
    for i, name in enumerate(names):
        total = int(counts[i].sum())
        cells = Markup("").join(_confusion_cell(counts, names, i, j) for j in range(len(names)))
        shown = f"{i + 1}\u2002{name}" if numbered else name
        rows.append(
            Markup('<tr><th scope="row"><span>{}</span></th>{}<td class="total">{}</td></tr>').format(
                shown, cells, total
            )
        )
    columns = "what the model said, numbered as the rows" if numbered else "what the model said"
    return Markup(
        '<div class="scroll" tabindex="0" role="group" aria-label="Confusion matrix"><table class="confusion"><caption>'
        "Rows: true class. Columns: {}. Shade: share of the row.</caption>"
        '<thead><tr><td></td>{}<th scope="col">all</th></tr></thead><tbody>{}</tbody></table></div>'
    ).format(columns, head, Markup("").join(rows))


def _confusion_cell(counts: NDArray[np.int64], names: Sequence[str], i: int, j: int) -> Markup:
    total, here = int(counts[i].sum()), int(counts[i, j])
    share = here / total if total else 0.0
    kind = "right" if i == j else "wrong"
    tip = f"{here} of {total} {names[i]} cases were called {names[j]}"
    part = Markup("<small>{}</small>").format(percent(share)) if here else Markup("")
    return Markup('<td class="{}{}" style="--heat:{:.3f}" title="{}">{}{}</td>').format(
        kind, "" if here else " zero", share, tip, here, part
    )


def counts_bar(counts: Mapping[str, int], *, label: str) -> Markup:
    """Cases per class as one bar each."""
    step, width = 24.0, 440.0
    names = min(max([text_width(name) for name in counts] + [60.0]) + 12, 170.0)
    most = max([*counts.values(), 1])
    drawing = Drawing(width, step * len(counts) + 4, label, "counts")
    for index, (name, count) in enumerate(counts.items()):
        top = 2 + step * index
        drawing.text(0, top + 15, clipped(name, names - 10), kind="tick strong")
        long = (width - names - 56) * count / most
        drawing.bar(names, top + 3, long, step - 8, "fill s0", tip=f"{name}: {count}")
        drawing.text(names + long + 6, top + 15, str(count))
    return drawing.markup()
