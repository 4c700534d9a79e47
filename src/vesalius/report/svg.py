"""Small pieces of SVG: a scale, ticks, and a drawing that escapes every text it is given.

Colours are CSS classes and variables of the page (`page.py`), so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from markupsafe import Markup

# Eight colours; from the ninth series on the dash changes, so that colour alone never tells two lines apart.
DASHES = ("", "7 4", "2 3", "9 3 2 3")
SERIES_COLOURS = 8


@dataclass(frozen=True)
class Scale:
    """A number to a place on the drawing.

    Parameters
    ----------
    low, high
        The ends of the axis in data units; two equal ends are moved apart.
    start, stop
        Their places in drawing units. For a vertical axis `start` is the larger number, since SVG counts downwards.
    log
        Logarithmic; `low` must then be above zero.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high)):
            raise ValueError(f"an axis needs finite ends, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic axis must start above zero, got {self.low}")
        if self.high <= self.low:
            object.__setattr__(self, "high", self.low * 10 if self.log else self.low + 1)

    def __call__(self, value: float) -> float:
        """The place of `value`."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = log10(low), log10(high), log10(max(value, self.low / 10))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], roughly `about` of them, in steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not isfinite(span) or span <= 0:
        return [low]
    raw = span / max(about, 1)
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = ceil(low / step - 1e-9)
    last = floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high]; the two ends when there are fewer than two."""
    powers = [10.0**p for p in range(ceil(log10(low) - 1e-9), floor(log10(high) + 1e-9) + 1)]
    return powers if len(powers) > 1 else [low, high]


def short(value: float) -> str:
    """A tick label: 0.25, 1200, 3e-05."""
    return f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e6 else f"{value:.0f}"


def text_width(text: str, size: float = 12.0) -> float:
    """An estimate of the width of `text`; Chinese and other wide letters count as one em."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return size * (wide + 0.56 * (len(text) - wide))


def clipped(text: str, width: float, size: float = 12.0) -> str:
    """`text`, shortened with an ellipsis until it fits into `width`."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def series_class(index: int) -> str:
    """The CSS class of series `index`."""
    return f"s{index % SERIES_COLOURS}"


def series_dash(index: int) -> str:
    """The dash pattern of series `index`; empty for a full line."""
    return DASHES[index // SERIES_COLOURS % len(DASHES)]


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


class Drawing:
    """One SVG, built piece by piece.

    Parameters
    ----------
    width, height
        Size of the view box; on the page the drawing takes the width it is given.
    label
        What a person who cannot see it is told; it must hold the finding, not only the kind of chart.
    name
        A CSS class for the whole drawing.
    """

    def __init__(self, width: float, height: float, label: str, name: str) -> None:
        self.width = width
        self.height = height
        self._head = Markup(
            '<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-label="{}" style="--wide:{}px">'
        ).format(name, number(width), number(height), label, number(width))
        self._parts: list[Markup] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line of CSS class `kind`."""
        self._parts.append(
            Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                kind, number(x1), number(y1), number(x2), number(y2)
            )
        )

    def curve(self, points: Sequence[tuple[float, float]], kind: str, *, dash: str = "", tip: str = "") -> None:
        """An open line through `points`, with a text that appears under the pointer."""
        places = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        dashes = Markup(' stroke-dasharray="{}"').format(dash) if dash else ""
        self._parts.append(
            Markup('<polyline class="{}" points="{}"{}>{}</polyline>').format(kind, places, dashes, _tip(tip))
        )

    def area(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A filled outline."""
        places = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self._parts.append(Markup('<polygon class="{}" points="{}"/>').format(kind, places))

    def bar(self, x: float, y: float, width: float, height: float, kind: str, *, tip: str = "") -> None:
        """A rectangle."""
        self._parts.append(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}">{}</rect>').format(
                kind, number(x), number(y), number(max(width, 0)), number(max(height, 0)), _tip(tip)
            )
        )

    def dot(self, x: float, y: float, kind: str, *, radius: float = 4, tip: str = "") -> None:
        """A round mark."""
        self._parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="{}">{}</circle>').format(
                kind, number(x), number(y), number(radius), _tip(tip)
            )
        )

    def diamond(self, x: float, y: float, kind: str, *, radius: float = 6, tip: str = "") -> None:
        """A mark that is told from a dot without colour."""
        corners = ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))
        places = " ".join(f"{number(a)},{number(b)}" for a, b in corners)
        self._parts.append(Markup('<polygon class="{}" points="{}">{}</polygon>').format(kind, places, _tip(tip)))

    def text(
        self, x: float, y: float, words: str, *, kind: str = "tick", anchor: str = "start", turn: bool = False
    ) -> None:
        """Words whose baseline starts, has its middle or ends at (x, y); `turn` reads upwards."""
        turned = Markup(' transform="rotate(-90 {} {})"').format(number(x), number(y)) if turn else ""
        self._parts.append(
            Markup('<text class="{}" x="{}" y="{}" text-anchor="{}"{}>{}</text>').format(
                kind, number(x), number(y), anchor, turned, words
            )
        )

    def axes(
        self,
        x: Scale,
        y: Scale,
        *,
        x_name: str = "",
        y_name: str = "",
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
        x_labels: bool = True,
    ) -> None:
        """Grid, tick labels and axis names; drawn first, under the data."""
        for value in ticks(x.low, x.high) if x_ticks is None else x_ticks:
            self.line(x(value), y.start, x(value), y.stop, "grid")
            if x_labels:
                self.text(x(value), y.start + 16, short(value), anchor="middle")
        for value in ticks(y.low, y.high) if y_ticks is None else y_ticks:
            self.line(x.start, y(value), x.stop, y(value), "grid")
            self.text(x.start - 6, y(value) + 4, short(value), anchor="end")
        self.line(x.start, y.start, x.stop, y.start, "axis")
        self.line(x.start, y.start, x.start, y.stop, "axis")
        if x_name:
            self.text((x.start + x.stop) / 2, y.start + 34, x_name, kind="name", anchor="middle")
        if y_name:
            self.text(13, (y.start + y.stop) / 2, y_name, kind="name", anchor="middle", turn=True)

    def markup(self) -> Markup:
        """The finished SVG."""
        return self._head + Markup("").join(self._parts) + Markup("</svg>")


def _tip(words: str) -> Markup:
    return Markup("<title>{}</title>").format(words) if words else Markup("")


def legend(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """A list of (CSS class, dash, words) with a short sample of each line; it wraps like text on a narrow screen."""
    items = [
        Markup(
            '<li><svg class="key" viewBox="0 0 26 10" aria-hidden="true"><line class="curve {}" x1="1" y1="5" '
            'x2="25" y2="5" stroke-dasharray="{}"/></svg>{}</li>'
        ).format(kind, dash or "none", words)
        for kind, dash, words in entries
    ]
    return Markup('<ul class="legend">') + Markup("").join(items) + Markup("</ul>")
