"""The skeleton that every page shares: one file, no request to anywhere, light, dark and paper, phone and desk.

A page carries its style, charts and pictures inside itself, runs no script, and forbids the browser any request with a
content security policy, so that a report with patient pictures can be opened anywhere without a word leaving.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vesalius.core.files import write_text
from vesalius.core.labels import PALETTE
from vesalius.core.version import __version__
from vesalius.report import words

TEMPLATES = Path(__file__).parent / "templates"
LIGHT_PAPER = "#ffffff"
DARK_PAPER = "#171b21"
# WCAG 2.2: marks of a chart need a contrast of 3 to 1 (1.4.11), words 4.5 to 1 (1.4.3); the colours serve both.
CONTRAST = 4.5


def render(template: str, **content: Any) -> str:
    """A page as text; everything that is not `Markup` is escaped."""
    return _environment().get_template(template).render(**content)


def write_page(path: str | Path, template: str, **content: Any) -> Path:
    """Render `template` and write it, atomically."""
    return write_text(path, render(template, **content))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=words.show, metric=words.metric_name, number=grouped)
    environment.globals.update(style=style(), version=__version__)
    return environment


def grouped(value: Any) -> str:
    """``12034`` as ``12 034`` with a narrow space that does not break; other things as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else f"{value:.4g}"


def style() -> Markup:
    """The style sheet with the colours of the series for light and dark paper."""
    sheet = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light = "".join(f"--s{i}:{readable(c, LIGHT_PAPER)};" for i, c in enumerate(PALETTE))
    dark = "".join(f"--s{i}:{readable(c, DARK_PAPER)};" for i, c in enumerate(PALETTE))
    sheet = sheet.replace("/*light-series*/", light).replace("/*dark-series*/", dark)
    # Nothing in the sheet comes from data.
    return Markup(re.sub(r"\s*\n\s*", "\n", sheet))  # noqa: S704


def readable(colour: str, paper: str) -> str:
    """`colour`, darkened or lightened in small steps until it stands out from `paper`."""
    target = 0.0 if luminance(paper) > 0.5 else 255.0
    parts = [float(int(colour[i : i + 2], 16)) for i in (1, 3, 5)]
    for _ in range(100):
        shown = "#" + "".join(f"{round(part):02x}" for part in parts)
        if contrast(shown, paper) >= CONTRAST:
            return shown
        parts = [part + (target - part) * 0.04 for part in parts]
    return shown


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21 (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
