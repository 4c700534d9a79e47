"""Drawings of vessel graphs and point patterns as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from vesalius.report.cases import Floats
from vesalius.report.measure_numbers import unit_shown
from vesalius.report.svg import Drawing, Scale, number, short, ticks

Path = tuple[ArrayLike, ArrayLike]
WIDE = 480.0
# Colours of calibre from thin to thick (style.css, v0 to v7).
CALIBRES = 8
# More branches than these make a page slow and cannot be told apart.
MOST_BRANCHES = 3000
THINNEST, THICKEST = 1.2, 16.0
_SIGNS = ("fork", "end", "narrowing")


class _Map(Drawing):
    """A drawing with strokes of any width."""

    def stroke(self, points: Floats, kind: str, width: float, *, tip: str = "") -> None:
        """A line through `points` ``(N, 2)`` (x, y), `width` drawing units wide."""
        places = " ".join(f"{number(round(x, 1))},{number(round(y, 1))}" for x, y in points.tolist())
        title = Markup("<title>{}</title>").format(tip) if tip else Markup("")
        self._parts.append(
            Markup('<polyline class="{}" stroke-width="{}" points="{}">{}</polyline>').format(
                kind, number(round(width, 1)), places, title
            )
        )


def vessel_graph_picture(
    polylines: Sequence[Path],
    nodes: ArrayLike,
    degrees: ArrayLike,
    *,
    shape: Sequence[int],
    spacing: Sequence[float] | None = None,
    narrowings: Sequence[tuple[ArrayLike, float]] = (),
    label: str = "",
) -> Markup:
    """The branches of a vessel graph in the width and colour of their calibre, with forks, ends and narrowings.

    Parameters
    ----------
    polylines
        For each branch its points ``(N, 2 | 3)`` in index units (y, x) or (z, y, x), and its radius at each, ``(N,)``,
        in mm (pixels where there is no spacing).
    nodes, degrees
        ``(M, 2 | 3)`` in index units, and the number of branches that meet in each: 1 an end, 3 or more a fork.
    shape, spacing
        Of the picture. A volume is seen along the axis in which the vessels reach least; its z axis points up.
    narrowings
        (place in index units, narrowing in percent), drawn as circles with their number.
    label
        For people who cannot see it; by default the counts and the range of calibre.

    Returns
    -------
    Markup
        SVG for a page in light, dark and print.

    Raises
    ------
    ValueError
        For points with other axes than `shape`, or a spacing that does not fit it.
    """
    if len(shape) not in (2, 3) or (spacing is not None and len(spacing) != len(shape)):
        raise ValueError(f"a vessel graph needs a shape of 2 or 3 axes and as many steps, got {shape} and {spacing}")
    steps = np.asarray(spacing if spacing is not None else (1.0,) * len(shape), dtype=float)
    branches = _branches(polylines, len(shape))
    places = np.asarray(nodes, dtype=float).reshape(-1, len(shape))
    meet = np.asarray(degrees).ravel()
    if len(places) != len(meet):
        raise ValueError(f"{len(places)} nodes but {len(meet)} degrees")
    seen = _view(branches, steps, shape)
    ends = _calibre_range(branches)
    counts = (int((meet >= 3).sum()), int((meet == 1).sum()), len(narrowings))
    unit = "mm" if spacing is not None else "px"
    said = label or _graph_words(len(polylines), counts, ends, unit)
    drawing = _Map(max(seen.width, 300.0), seen.height + 74, said, "vessels")
    for points, radii in sorted(branches, key=lambda one: float(one[1].mean())):
        _branch(drawing, seen.put(points), radii, seen.scale, ends, unit)
    _nodes(drawing, seen.put(places), meet)
    for place, percent in narrowings:
        _narrowing(drawing, seen.put(np.asarray(place, dtype=float).reshape(1, len(shape)))[0], float(percent))
    _key(drawing, seen.height, ends, unit, seen.scale, counts)
    return drawing.markup()


@dataclass(frozen=True)
class _View:
    """Where index places lie on the drawing.

    Parameters
    ----------
    axes
        Axes of the array drawn downwards and to the right.
    steps
        Their spacing.
    scale
        Drawing units for one mm (or pixel).
    width, height
        Of the picture in drawing units.
    upwards
        Whether the first of the axes points up.
    """

    axes: tuple[int, int]
    steps: tuple[float, float]
    scale: float
    width: float
    height: float
    upwards: bool

    def put(self, points: Floats) -> Floats:
        """Index places ``(N, 2 | 3)`` to drawing places ``(N, 2)`` (x, y)."""
        rows, columns = ((points[:, a] + 0.5) * s * self.scale for a, s in zip(self.axes, self.steps, strict=True))
        return np.stack([columns, self.height - rows if self.upwards else rows], axis=1)


def _view(branches: Sequence[tuple[Floats, Floats]], steps: Floats, shape: Sequence[int]) -> _View:
    down, across = _seen_along(branches, steps, shape)
    tall, wide = shape[down] * float(steps[down]), shape[across] * float(steps[across])
    scale = WIDE / max(wide, tall * 0.75)
    upwards = len(shape) == 3 and down == 0
    return _View((down, across), (float(steps[down]), float(steps[across])), scale, wide * scale, tall * scale, upwards)


def _graph_words(branches: int, counts: tuple[int, int, int], calibre: tuple[float, float], unit: str) -> str:
    forks, ends, narrowings = (_many(count, one) for count, one in zip(counts, _SIGNS, strict=True))
    return (
        f"Vessel graph of {branches} branch{'' if branches == 1 else 'es'}, {forks}, {ends} and {narrowings}; "
        f"calibre {short(calibre[0])} to {short(calibre[1])} {unit}"
    )


def _branches(polylines: Sequence[Path], ndim: int) -> list[tuple[Floats, Floats]]:
    out = []
    for points, radius in polylines:
        line, wide = np.asarray(points, dtype=float), np.asarray(radius, dtype=float).ravel()
        if line.ndim != 2 or line.shape[1] != ndim or len(line) != len(wide):
            raise ValueError(f"a branch needs points (N, {ndim}) and N radii, got {line.shape} and {wide.shape}")
        if len(line):
            out.append((line, np.nan_to_num(wide)))
    # Of too many the thickest are drawn.
    return sorted(out, key=lambda one: -float(one[1].mean()))[:MOST_BRANCHES]


def _seen_along(branches: Sequence[tuple[Floats, Floats]], steps: Floats, shape: Sequence[int]) -> tuple[int, int]:
    """The two axes (down, across) in which the vessels reach farthest, in the order of the array."""
    if len(shape) == 2:
        return 0, 1
    extent = np.asarray(shape) * steps
    if branches:
        joined = np.concatenate([points for points, _ in branches])
        extent = np.ptp(joined, axis=0) * steps
    least = int(np.argmin(extent))
    down, across = (axis for axis in range(3) if axis != least)
    return down, across


def _calibre_range(branches: Sequence[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Diameters between which the colours run; a few outliers do not stretch it."""
    if not branches:
        return 0.0, 1.0
    low, high = np.percentile(2 * np.concatenate([radii for _, radii in branches]), (2, 98))
    return (float(low), float(high)) if high - low > 1e-9 else (float(low) * 0.9, float(high) * 1.1 + 1e-9)


def _branch(drawing: _Map, places: Floats, radii: Floats, scale: float, ends: tuple[float, float], unit: str) -> None:
    """One branch as runs of equal colour, each as wide as the vessel."""
    smooth = _smoothed(radii)
    bins = np.clip((2 * smooth - ends[0]) / (ends[1] - ends[0]) * CALIBRES, 0, CALIBRES - 1).astype(int)
    tip = f"calibre {short(2 * float(np.mean(radii)))} {unit}"
    starts = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1))
    for start, stop in zip(starts, [*starts[1:], len(bins)], strict=True):
        # One point of the next run, or the branch would fall apart where the colour changes.
        run = slice(int(start), min(int(stop) + 1, len(bins)))
        width = float(np.clip(2 * smooth[run].mean() * scale, THINNEST, THICKEST))
        drawing.stroke(_thinned(places[run]), f"vessel v{bins[start]}", width, tip=tip)


def _smoothed(radii: Floats) -> Floats:
    if len(radii) < 5:
        return np.full(len(radii), float(radii.mean()))
    padded = np.pad(radii, 2, mode="edge")
    return np.convolve(padded, np.full(5, 0.2), mode="valid")


def _thinned(places: Floats) -> Floats:
    """Points at least 2.5 drawing units apart, with both ends; a single point becomes a short stroke."""
    if len(places) == 1:
        return np.concatenate([places, places + np.array([0.01, 0.0])])
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(places, axis=0), axis=1))])
    keep = np.flatnonzero(np.diff(np.floor(way / 2.5), prepend=-1))
    keep = np.unique(np.append(keep, len(places) - 1))
    return np.asarray(places[keep] if len(keep) > 1 else places[[0, -1]])


def _nodes(drawing: _Map, places: Floats, meet: NDArray[Any]) -> None:
    for (x, y), count in zip(places.tolist(), meet.tolist(), strict=True):
        if count >= 3:
            drawing.diamond(x, y, "fork", radius=4, tip=f"fork of {count} branches")
        elif count == 1:
            drawing.dot(x, y, "tip", radius=2.6, tip="end")


def _narrowing(drawing: _Map, place: Floats, percent: float) -> None:
    x, y = float(place[0]), float(place[1])
    words = f"{percent:.0f} %" if np.isfinite(percent) else "?"
    drawing.dot(x, y, "narrowing", radius=13, tip=f"narrowing, {words}")
    left = x > drawing.width - 60
    drawing.text(x + (-17 if left else 17), y - 6, words, kind="name halo", anchor="end" if left else "start")


def _key(
    drawing: _Map, top: float, ends: tuple[float, float], unit: str, scale: float, counts: tuple[int, int, int]
) -> None:
    """Under the drawing: the length scale, the colours of calibre, and what the signs mean."""
    bar = _round_length(drawing.width * 0.14 / scale)
    drawing.line(8, top + 12, 8 + bar * scale, top + 12, "ruler")
    drawing.text(8, top + 30, f"{short(bar)} {unit}")
    wide, right = 20.0, drawing.width - 8
    left = right - CALIBRES * wide
    for index in range(CALIBRES):
        drawing.bar(left + index * wide, top + 8, wide, 9, f"calibre v{index}")
    for value in (ends[0], sum(ends) / 2, ends[1]):
        place = left + (value - ends[0]) / (ends[1] - ends[0]) * CALIBRES * wide
        anchor = "start" if value == ends[0] else "end" if value == ends[1] else "middle"
        drawing.text(place, top + 30, short(value), anchor=anchor)
    drawing.text(left - 8, top + 16, f"calibre, {unit}", kind="name", anchor="end")
    y = top + 58
    drawing.diamond(14, y - 4, "fork", radius=4)
    drawing.text(24, y, _many(counts[0], "fork"))
    drawing.dot(104, y - 4, "tip", radius=2.6)
    drawing.text(113, y, _many(counts[1], "end"))
    if counts[2]:
        drawing.dot(194, y - 4, "narrowing", radius=7)
        drawing.text(208, y, _many(counts[2], "narrowing"))


def _many(count: int, one: str) -> str:
    return f"{count} {one}" if count == 1 else f"{count} {one}s"


def _round_length(most: float) -> float:
    """1, 2 or 5 times a power of ten, at most `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(factor * power for factor in (1, 2, 5) if factor * power <= most * 1.0001))


# ------------------------------------------------------------------------------------------------------ point pattern


def ripley_chart(
    r: ArrayLike,
    l: ArrayLike,  # noqa: E741 - the function's name in the literature
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    *,
    unit: str = "px",
    name: str = "L(r) − r",
    label: str = "",
) -> Markup:
    """Ripley's function over distance, with the envelope of random points; above it points cluster, below they avoid.

    Parameters
    ----------
    r, l, low, high
        ``(N,)``: distances, the function, and the envelope. Values that are not finite are left out.
    unit, name
        Of the distance; what is drawn upwards.

    Raises
    ------
    ValueError
        For arrays of different length.
    """
    x_values, y_values = np.asarray(r, dtype=float).ravel(), np.asarray(l, dtype=float).ravel()
    none = np.full(len(x_values), np.nan)
    least = none if low is None else np.asarray(low, dtype=float).ravel()
    most = none if high is None else np.asarray(high, dtype=float).ravel()
    if not len(x_values) == len(y_values) == len(least) == len(most):
        raise ValueError(f"got {len(x_values)} distances for {len(y_values)}, {len(least)} and {len(most)} values")
    good = np.isfinite(x_values) & np.isfinite(y_values)
    width, height = 420.0, 250.0
    if not good.any():
        drawing = Drawing(width, height, label or "Ripley's function: no finite values", "ripley")
        drawing.text(width / 2, height / 2, "no finite values", anchor="middle")
        return drawing.markup()
    drawing = Drawing(width, height, label or ripley_words(x_values, y_values, least, most, unit=unit), "ripley")
    shown = np.concatenate([one[np.isfinite(one)] for one in (y_values, least, most)])
    pad = float(np.ptp(shown)) * 0.06 or 1.0
    x = Scale(float(x_values[good].min()), float(x_values[good].max()), 50, width - 14)
    y = Scale(float(shown.min()) - pad, float(shown.max()) + pad, height - 44, 12)
    drawing.axes(x, y, x_name=f"distance r ({unit_shown(unit)})", y_name=name, x_ticks=ticks(x.low, x.high, about=6))
    band = np.isfinite(least) & np.isfinite(most) & np.isfinite(x_values)
    if band.any():
        upper = [(x(a), y(b)) for a, b in zip(x_values[band], most[band], strict=True)]
        lower = [(x(a), y(b)) for a, b in zip(x_values[band], least[band], strict=True)]
        drawing.area(upper + lower[::-1], "envelope")
    if y.low < 0 < y.high:
        drawing.line(x.start, y(0), x.stop, y(0), "chance")
    drawing.curve([(x(a), y(b)) for a, b in zip(x_values[good], y_values[good], strict=True)], "curve s0")
    return drawing.markup()


def ripley_words(r: Floats, l: Floats, low: Floats, high: Floats, *, unit: str = "px") -> str:  # noqa: E741
    """What the curve shows, in a sentence."""
    known = np.isfinite(low) & np.isfinite(high) & np.isfinite(l)
    if not known.any():
        return "Ripley's function, without an envelope to judge it by"
    above, below = known & (l > high), known & (l < low)
    parts = []
    if above.any():
        parts.append(
            f"above the envelope between {short(r[above].min())} and {short(r[above].max())} {unit}: clustered"
        )
    if below.any():
        parts.append(f"below it between {short(r[below].min())} and {short(r[below].max())} {unit}: regular")
    return "Ripley's function " + ("; ".join(parts) or "stays inside the envelope of random points")
