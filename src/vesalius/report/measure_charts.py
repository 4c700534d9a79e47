"""Charts of measured quantities: a histogram with its quartiles, structures one above the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from vesalius.report.cases import Floats
from vesalius.report.measure_numbers import digits_of, quantile_shown, shown, statistics
from vesalius.report.svg import Drawing, Scale, clipped, decades, text_width, ticks

WIDTH, HEIGHT = 420.0, 210.0
# The left margin holds counts of five digits beside the name of the axis.
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 24.0, 44.0
# A histogram of fewer values shows its bins and not the data; then every value is drawn.
FEWEST_FOR_BINS = 12
MOST_DOTS = 400
# Structures of very different size (liver, adrenal gland) need an axis on which both can be seen.
LOG_FROM = 100.0


def use_log(values: Floats) -> bool:
    """Whether the finite values are all above zero and span more than two decades."""
    finite = values[np.isfinite(values)]
    return bool(finite.size) and finite.min() > 0 and float(finite.max() / finite.min()) > LOG_FROM


def histogram_chart(values: Floats, *, x_name: str, label: str, noun: str = "values") -> Markup:
    """How often each value occurs, with the median as a line and the quartiles as a band."""
    finite = values[np.isfinite(values)]
    drawing = Drawing(WIDTH, HEIGHT, label, "histogram")
    if not finite.size:
        drawing.text(WIDTH / 2, HEIGHT / 2, "no finite values", anchor="middle")
        return drawing.markup()
    log = use_log(finite)
    edges = _edges(finite, log, most=40)
    counts, _ = np.histogram(finite, edges)
    x = Scale(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT, log=log)
    y = Scale(0, float(max(counts.max(), 1)), HEIGHT - BOTTOM, TOP)
    one = statistics(finite)
    left = x(one.low_quartile)
    drawing.bar(left, y.stop, max(x(one.high_quartile) - left, 1), y.start - y.stop, "quartiles")
    whole = [tick for tick in ticks(0, y.high, about=4) if float(tick).is_integer()]
    drawing.axes(x, y, x_name=x_name, y_name=noun, x_ticks=_axis_ticks(x), y_ticks=whole)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            wide = x(high) - x(low)
            gap = min(wide * 0.08, 1.0)
            tip = f"{shown(low, digits_of(edges))} to {shown(high, digits_of(edges))}: {count}"
            drawing.bar(x(low) + gap / 2, y(count), wide - gap, y.start - y(count), "fill s0", tip=tip)
    middle = x(one.median)
    drawing.line(middle, y.stop - 4, middle, y.start, "median")
    words = f"median {quantile_shown(one.median, finite)}"
    half = text_width(words) / 2
    drawing.text(
        min(max(middle, x.start + half), x.stop - half + 8), y.stop - 9, words, kind="tick strong", anchor="middle"
    )
    return drawing.markup()


def _edges(finite: Floats, log: bool, *, most: int) -> Floats:
    """Borders of the bins by the rule of Freedman and Diaconis (1981); whole numbers get bins around them."""
    low, high = float(finite.min()), float(finite.max())
    if high <= low:
        half = max(abs(low) * 0.05, 0.5)
        return np.linspace(low - half, low + half, 4)
    if not log and high - low < most and bool((finite == np.round(finite)).all()):
        return np.arange(low - 0.5, high + 1.5)
    work = np.log10(finite) if log else finite
    spread = float(np.subtract(*np.percentile(work, (75, 25))))
    step = 2 * spread / len(work) ** (1 / 3)
    span = float(work.max() - work.min())
    bins = int(np.clip(np.ceil(span / step) if step > 0 else 10, 6, most))
    edges = np.linspace(float(work.min()), float(work.max()), bins + 1)
    if log:
        edges = 10**edges
        # Rounding of the power must not put the least and the greatest value outside.
        edges[0], edges[-1] = low, high
    return np.asarray(edges)


def spread_chart(groups: Mapping[str, Floats], *, x_name: str, label: str) -> Markup:
    """One row per structure: the shape of its values above, and its quartiles, median and range below.

    Small groups are drawn value by value.
    """
    step, names = 46.0, min(max([text_width(name) for name in groups] + [50.0]) + 14, 150.0)
    joined = np.concatenate([values[np.isfinite(values)] for values in groups.values()] or [np.zeros(0)])
    bottom = 8 + step * len(groups)
    drawing = Drawing(WIDTH, bottom + 40, label, "spread")
    if not joined.size:
        drawing.text(WIDTH / 2, 24, "no finite values", anchor="middle")
        return drawing.markup()
    log = use_log(joined)
    x = _padded(joined, log, names, WIDTH - 52)
    for value in _axis_ticks(x):
        drawing.line(x(value), 4, x(value), bottom, "grid")
        drawing.text(x(value), bottom + 15, _tick(value), anchor="middle")
    drawing.text((x.start + x.stop) / 2, bottom + 33, x_name, kind="name", anchor="middle")
    edges = _edges(joined, log, most=36)
    for index, (name, values) in enumerate(groups.items()):
        base = 8 + step * index
        drawing.text(0, base + 27, clipped(name, names - 12), kind="tick strong")
        finite = values[np.isfinite(values)]
        drawing.text(WIDTH, base + 27, f"n {shown(finite.size, 0)}", kind="tiny", anchor="end")
        if finite.size:
            _row(drawing, x, finite, edges, base, name)
    return drawing.markup()


def _row(drawing: Drawing, x: Scale, finite: Floats, edges: Floats, base: float, name: str) -> None:
    """One structure of `spread_chart`: histogram or dots above, box below."""
    one = statistics(finite)
    floor_at, box = base + 25, base + 34
    if finite.size >= FEWEST_FOR_BINS:
        counts, _ = np.histogram(finite, edges)
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
            tall = 21.0 * float(count) / max(float(counts.max()), 1)
            if count:
                left, right = max(x(low), x.start), min(x(high), x.stop)
                drawing.bar(left, floor_at - tall, max(right - left - 0.5, 0.8), tall, "fill s0 pale")
    else:
        # Values side by side at three heights, so that equal ones are seen to be several.
        for place, value in enumerate(np.sort(finite)[:MOST_DOTS]):
            drawing.dot(x(value), floor_at - 4 - 6 * (place % 3), "dot s0 pale", radius=2.6)
    digits = digits_of(finite, exact=True)
    tip = (
        f"{name}: median {shown(one.median, digits)}, quartiles {shown(one.low_quartile, digits)} to "
        f"{shown(one.high_quartile, digits)}, range {shown(one.least, digits)} to {shown(one.most, digits)}"
    )
    drawing.line(x(one.least), box, x(one.most), box, "whisker s0")
    left = x(one.low_quartile)
    drawing.bar(left, box - 5, max(x(one.high_quartile) - left, 1.5), 10, "box", tip=tip)
    drawing.line(x(one.median), box - 7, x(one.median), box + 7, "median")


def _padded(finite: Floats, log: bool, start: float, stop: float) -> Scale:
    low, high = float(finite.min()), float(finite.max())
    if log:
        return Scale(low / 1.15, high * 1.15, start, stop, log=True)
    pad = (high - low) * 0.03 or max(abs(low) * 0.05, 0.5)
    # Of a share the axis must not run past what can be.
    inside = low >= 0 and high <= 1
    return Scale(
        max(low - pad, 0) if low >= 0 else low - pad, min(high + pad, 1.0) if inside else high + pad, start, stop
    )


def _axis_ticks(x: Scale) -> list[float]:
    if not x.log:
        return ticks(x.low, x.high, about=5)
    marks = decades(x.low, x.high)
    if len(marks) < 4:
        marks = [m * f for m in [10.0 ** (np.floor(np.log10(x.low)) + k) for k in range(5)] for f in (1, 3)]
    return [float(mark) for mark in marks if x.low <= mark <= x.high]


def _tick(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if value >= 1000 else f"{value:.3g}"
