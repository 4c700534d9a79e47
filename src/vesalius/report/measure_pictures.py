"""Pictures of what was measured: outlines on the image, contact sheets, and maps of density.

Drawings that are made of lines and not of pixels (vessel graphs, Ripley's curve) are in `measure_plots`.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Raster
from PIL import ImageDraw, ImageFont

from vesalius.core.image import Image
from vesalius.core.labels import PALETTE
from vesalius.report.measure_planes import PAPER, Plane, gray_levels, plain, planes
from vesalius.report.measure_plots import ripley_chart, vessel_graph_picture
from vesalius.report.page import DARK_PAPER, readable
from vesalius.report.pictures import Bytes8, contact_sheet, fitted, png, squared
from vesalius.report.svg import short, ticks

__all__ = ["contour_picture", "density_picture", "montage", "ripley_chart", "vessel_graph_picture"]

# Black cannot be seen on a radiograph; the rest is lightened until it stands out from a dark ground.
OUTLINES = tuple(readable(colour, DARK_PAPER) for colour in PALETTE if colour != "#000000")
# Lines are drawn at this many times the size of the picture and averaged: no stairs beyond those of the labels.
FINE = 3
WORDS = (228, 232, 238)
# More labels than this without a name are single objects, and are counted rather than listed.
MOST_UNNAMED = 6
# Dark violet to pale yellow, lightness rising steadily (points of matplotlib's "inferno", CC0).
HEAT = np.array(
    [
        *((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99)),
        *((212, 72, 66), (245, 125, 21), (250, 193, 39), (252, 255, 164)),
    ]
)


def contour_picture(
    image: Image | None,
    labels: NDArray[Any],
    names: Mapping[int, str],
    *,
    side: int = 320,
    slice_index: int | None = None,
    spacing: Sequence[float] | None = None,
    views: bool = False,
    kinds: Sequence[str] = (),
    legend: bool = True,
) -> bytes:
    """The image with the outline of every label, as PNG; pixels have their true shape.

    Parameters
    ----------
    image
        On the grid of `labels`; None draws the labels alone, filled faintly.
    labels
        ``(Y, X)`` or ``(Z, Y, X)`` of whole numbers, 0 for the background. Touching labels keep separate outlines.
    names
        Names of label values. Labels that share a name (cells of one kind) share a colour; labels without one are
        single objects, whose colours differ from their neighbours'.
    side
        Pixels of the longer side, of each plane if there are several.
    slice_index
        Slice along the first axis as stored; default the plane in which the labels cover most.
    spacing
        Per axis of `labels`; default that of the image's grid, else square pixels.
    views
        Three orthogonal planes instead of one, each through where the labels cover most.
    kinds
        Names in the order of their colours, for pictures that are to agree although each lacks some names.
    legend
        A strip with the names under the picture.

    Raises
    ------
    ValueError
        For labels with other axes, another shape than the image, spacing or slice that do not fit.
    """
    array = np.asarray(labels)
    _check(array, image, spacing, slice_index, side)
    steps = tuple(float(s) for s in spacing) if spacing is not None else _steps(image, array.ndim)
    cuts = planes(image, array, steps, slice_index, views)
    levels = gray_levels(image, array)
    values = np.unique(np.concatenate([_distinct(cut.labels) for cut in cuts]))
    colours = _colours_of(values, names, kinds, cuts)
    drawn = [_outlined(cut, values, colours, side, levels) for cut in cuts]
    picture = drawn[0] if len(drawn) == 1 else np.concatenate([squared(one, side) for one in drawn], axis=1)
    if not legend:
        return png(picture)
    entries = _legend_entries(values, names, colours)
    where = ", ".join(cut.name for cut in cuts if cut.name)
    return png(np.concatenate([picture, _strip(entries, picture.shape[1], where)]))


def _check(
    labels: NDArray[Any], image: Image | None, spacing: Sequence[float] | None, slice_index: int | None, side: int
) -> None:
    if labels.ndim not in (2, 3) or not labels.size:
        raise ValueError(f"labels must have axes (Y, X) or (Z, Y, X) and not be empty, got shape {labels.shape}")
    if labels.dtype != np.bool_ and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}")
    if image is not None and image.grid.shape != labels.shape:
        raise ValueError(f"the image has shape {image.grid.shape}, the labels {labels.shape}; they must be equal")
    if spacing is not None and (len(spacing) != labels.ndim or not all(s > 0 and np.isfinite(s) for s in spacing)):
        raise ValueError(f"spacing must have {labels.ndim} positive numbers, got {tuple(spacing)}")
    if slice_index is not None and (labels.ndim == 2 or not 0 <= slice_index < labels.shape[0]):
        raise ValueError(f"slice {slice_index} is not one of labels with shape {labels.shape}")
    if side < 16:
        raise ValueError(f"a picture needs a side of at least 16 pixels, got {side}")


def _steps(image: Image | None, ndim: int) -> tuple[float, ...]:
    return (image.grid.spacing_mm if image is not None else None) or (1.0,) * ndim


def _distinct(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Label values without 0, in rising order."""
    if labels.max() < 1 << 22 and labels.min() >= 0:
        found = np.flatnonzero(np.bincount(labels.ravel()))
    else:
        found = np.unique(labels).astype(np.int64)
    return np.asarray(found[found != 0], dtype=np.int64)


# --------------------------------------------------------------------------------------------------------- outlines


def _outlined(
    cut: Plane, values: NDArray[Any], colours: Mapping[int, int], side: int, levels: tuple[float, float]
) -> Bytes8:
    """The plane with a line inside the border of each label, and a dark hair line around it and between two labels."""
    base = plain(cut, side, levels)
    height, width = int(base.shape[0]), int(base.shape[1])
    rank = np.zeros(cut.labels.shape, np.int32) if not values.size else np.searchsorted(values, cut.labels) + 1
    rank = np.where(cut.labels == 0, 0, rank).astype(np.int32)
    rows = ((np.arange(height * FINE) + 0.5) * cut.labels.shape[0] / (height * FINE)).astype(np.intp)
    columns = ((np.arange(width * FINE) + 0.5) * cut.labels.shape[1] / (width * FINE)).astype(np.intp)
    fine = rank[rows][:, columns]
    edge = _borders(fine)
    inside = fine > 0
    thick = 4 if side > 200 else 3
    line = _grown(edge, thick) & inside
    dark = _grown(edge, 2) & ~inside
    between = _between(fine)
    if between.any():
        # Two lines of one colour side by side would be read as one: a dark line parts them, and they move inwards.
        dark |= _grown(between, 1) & inside
        line |= _grown(between, thick + 2) & inside
    # 0 nothing, 1 dark, 2 faint fill of the first label, ...: one look-up gives colour and cover together.
    count = len(values)
    table = np.zeros((2 + 2 * count, 4), np.float32)
    table[1] = (*PAPER, 0.6)
    for place, value in enumerate(values):
        red, green, blue = _rgb(OUTLINES[colours[int(value)] % len(OUTLINES)])
        table[2 + place] = (red, green, blue, 0.25 if cut.values is None else 0.0)
        table[2 + count + place] = (red, green, blue, 1.0)
    table[:, :3] *= table[:, 3:]
    paint = np.where(inside, fine + 1, 0)
    paint[line] = fine[line] + 1 + count
    paint[dark] = 1
    cover = table[paint].reshape(height, FINE, width, FINE, 4).mean(axis=(1, 3))
    mixed = base * (1 - cover[..., 3:]) + cover[..., :3]
    picture = np.round(mixed).astype(np.uint8)
    return _lettered(picture, cut.edge) if cut.edge and side >= 120 else picture


def _borders(fine: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels with a neighbour (up, down, left, right) of another label; the frame of the picture is no border."""
    edge = np.zeros(fine.shape, bool)
    down, across = fine[1:] != fine[:-1], fine[:, 1:] != fine[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge


def _between(fine: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Labelled pixels next to a pixel of another label, not of the background."""
    found = np.zeros(fine.shape, bool)
    for a, b in (((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
                 ((slice(None), slice(1, None)), (slice(None), slice(None, -1)))):  # fmt: skip
        here = (fine[a] != fine[b]) & (fine[a] > 0) & (fine[b] > 0)
        found[a] |= here
        found[b] |= here
    return found


def _grown(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """`mask` widened by a disc: rows are widened by the half width of the disc at each height and joined."""
    out = np.zeros_like(mask)
    wide, reach = mask.copy(), 0
    # From the top of the disc to its middle the half width only grows, so each row of it continues the last.
    for height in range(radius, -1, -1):
        half = int(np.sqrt(radius * radius + radius * 0.8 - height * height))
        while reach < half:
            stretched = wide.copy()
            stretched[:, 1:] |= wide[:, :-1]
            stretched[:, :-1] |= wide[:, 1:]
            wide, reach = stretched, reach + 1
        out[height:] |= wide[: wide.shape[0] - height]
        out[: out.shape[0] - height] |= wide[height:]
    return out


def _colours_of(
    values: NDArray[Any], names: Mapping[int, str], kinds: Sequence[str], cuts: Sequence[Plane]
) -> dict[int, int]:
    """Place in the palette for each label value: by name, and for single objects unlike their neighbours'."""
    order = list(dict.fromkeys([*kinds, *(names[value] for value in sorted(names) if value != 0)]))
    place = {name: index for index, name in enumerate(order)}
    found = {int(v): place[names[int(v)]] for v in values if int(v) in names}
    free = [int(v) for v in values if int(v) not in names]
    if not free:
        return found
    if len(free) <= MOST_UNNAMED and not names:
        return {value: index for index, value in enumerate(free)}
    beside = _neighbours(cuts)
    for value in free:
        taken = {found[other] % len(OUTLINES) for other in beside.get(value, ()) if other in found}
        turns = [(value - 1 + step) % len(OUTLINES) for step in range(len(OUTLINES))]
        found[value] = next((colour for colour in turns if colour not in taken), turns[0])
    return found


def _neighbours(cuts: Sequence[Plane]) -> dict[int, set[int]]:
    """Labels that lie within two pixels of each other."""
    beside: dict[int, set[int]] = {}
    for cut in cuts:
        # Of a slide of many thousand pixels a coarser look is enough.
        step = max(cut.labels.shape) // 1024 + 1
        labels = cut.labels[::step, ::step].astype(np.int64)
        for down, across in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
            one = labels[: labels.shape[0] - down, : labels.shape[1] - across]
            other = labels[down:, across:]
            meet = (one != other) & (one != 0) & (other != 0)
            if meet.any():
                for a, b in np.unique(np.stack([one[meet], other[meet]], 1), axis=0).tolist():
                    beside.setdefault(a, set()).add(b)
                    beside.setdefault(b, set()).add(a)
    return beside


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


# ------------------------------------------------------------------------------------------------------ words, sheets


def _legend_entries(
    values: NDArray[Any], names: Mapping[int, str], colours: Mapping[int, int]
) -> list[tuple[int | None, str]]:
    """(place in the palette, words); objects without a name are counted in one entry."""
    out: dict[str, int | None] = {}
    free = [int(v) for v in values if int(v) not in names]
    for value in values:
        if int(value) in names:
            out.setdefault(_latin(names[int(value)]) or f"label {int(value)}", colours[int(value)])
    if len(free) > MOST_UNNAMED:
        out[f"{len(free)} objects"] = None
    else:
        out.update({f"label {value}": colours[value] for value in free})
    return [(colour, words) for words, colour in out.items()]


def _latin(text: str) -> str:
    """`text` in the letters that the built-in font has; empty if that would lose letters."""
    plain = unicodedata.normalize("NFKD", text)
    kept = "".join(c for c in plain if c.isascii() and c.isprintable())
    lost = [c for c in plain if not c.isascii() and not unicodedata.combining(c)]
    return "" if lost else kept.strip()


def _strip(entries: Sequence[tuple[int | None, str]], width: int, where: str) -> Bytes8:
    """Names with a sample of their colour, broken into lines; where the plane lies comes last."""
    font = _font(12)
    line, gap = 18, 12
    places: list[tuple[float, int, int | None, str]] = []
    x, y = 6.0, 0
    for colour, words in [*entries, *([(None, where)] if where else [])]:
        room = width - 12 - (16 if colour is not None else 0)
        shown = _shortened(words, font, room)
        wide = font.getlength(shown) + (16 if colour is not None else 0)
        if x > 6 and x + wide > width - 6:
            x, y = 6.0, y + line
        places.append((x, y, colour, shown))
        x += wide + gap
    strip = Raster.new("RGB", (width, y + line + 4 if places else 1), PAPER)
    pen = ImageDraw.Draw(strip)
    for left, top, colour, words in places:
        start = left
        if colour is not None:
            pen.rectangle((left, top + 6, left + 10, top + 14), fill=OUTLINES[colour % len(OUTLINES)])
            start += 16
        pen.text((start, top + 2), words, font=font, fill=WORDS)
    return np.asarray(strip)


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _shortened(words: str, font: Any, room: float) -> str:
    if font.getlength(words) <= room:
        return words
    while words and font.getlength(words + "...") > room:
        words = words[:-1]
    return words + "..."


def _lettered(picture: Bytes8, letter: str) -> Bytes8:
    """`picture` with the letter of the patient's side at its left edge."""
    raster = Raster.fromarray(picture)
    ImageDraw.Draw(raster).text(
        (4, picture.shape[0] // 2 - 8), letter, font=_font(13), fill=WORDS, stroke_width=1, stroke_fill=(0, 0, 0)
    )
    return np.asarray(raster)


def montage(
    pictures: Sequence[bytes], columns: int = 6, *, names: Sequence[str] = (), most_bytes: int = 900_000
) -> bytes:
    """Pictures (PNG) as one contact sheet of at most about `most_bytes`: first fewer colours, then a smaller size.

    `names`, if given, is written under each picture.

    Raises
    ------
    ValueError
        Without a picture, or for another number of names.
    """
    if names and len(names) != len(pictures):
        raise ValueError(f"{len(names)} names for {len(pictures)} pictures")
    tiles: list[bytes | Bytes8] = list(pictures)
    if names:
        tiles = [_titled(one, name) for one, name in zip(pictures, names, strict=True)]
    sheet = contact_sheet(tiles, columns=max(columns, 1))
    if len(sheet) <= most_bytes:
        return sheet
    raster = Raster.open(io.BytesIO(sheet)).convert("RGB")
    for scale in (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2):
        size = max(round(raster.width * scale), 1), max(round(raster.height * scale), 1)
        smaller = raster if scale == 1 else raster.resize(size, Raster.Resampling.LANCZOS)
        file = io.BytesIO()
        smaller.quantize(256, dither=Raster.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() <= most_bytes:
            break
    return file.getvalue()


def _titled(picture: bytes, name: str) -> Bytes8:
    pixels = np.asarray(Raster.open(io.BytesIO(picture)).convert("RGB"))
    return np.concatenate([pixels, _strip([(None, _latin(name) or "case")], pixels.shape[1], "")])


# ---------------------------------------------------------------------------------------------------------- density


def density_picture(
    density: NDArray[Any],
    *,
    spacing: Sequence[float] | None = None,
    unit: str = "",
    points: NDArray[Any] | None = None,
    side: int = 320,
) -> bytes:
    """A map as PNG, dark for little and bright for much, with a scale of its values; undefined pixels are gray.

    Parameters
    ----------
    density
        ``(Y, X)``.
    spacing
        Per axis (y, x), for the shape of the pixels.
    unit
        Written over the scale.
    points
        ``(N, 2)`` places in index units (y, x), drawn as small rings.

    Raises
    ------
    ValueError
        For a map with other axes.
    """
    values = np.asarray(density, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a density map must have axes (Y, X) and not be empty, got shape {values.shape}")
    ratio = float(spacing[0]) / float(spacing[1]) if spacing is not None else 1.0
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 1.0)
    low = 0.0 if 0 <= low <= 0.5 * high else low
    high = high if high > low else low + 1
    share = (np.where(finite, values, low) - low) / (high - low)
    picture = fitted(np.where(finite[..., None], _heat(share), 110).astype(np.uint8), side, ratio=ratio)
    raster = Raster.fromarray(picture)
    pen = ImageDraw.Draw(raster)
    for y, x in np.asarray(points if points is not None else np.zeros((0, 2)), dtype=float).tolist():
        row, column = (y + 0.5) * raster.height / values.shape[0], (x + 0.5) * raster.width / values.shape[1]
        pen.ellipse((column - 2.5, row - 2.5, column + 2.5, row + 2.5), outline=(255, 255, 255))
    return png(np.concatenate([np.asarray(raster), _scale_bar(low, high, raster.height, unit)], axis=1))


def _heat(share: NDArray[np.float64]) -> NDArray[np.float64]:
    places = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(share, places, HEAT[:, channel]) for channel in range(3)], axis=-1)


def _scale_bar(low: float, high: float, height: int, unit: str) -> Bytes8:
    bar = Raster.new("RGB", (84, height), PAPER)
    top, bottom = 26 if unit else 10, max(height - 10, 12)
    column = _heat(np.linspace(1, 0, max(bottom - top, 1)))
    strip = np.repeat(column[:, None].astype(np.uint8), 14, axis=1)
    bar.paste(Raster.fromarray(strip), (10, top))
    pen = ImageDraw.Draw(bar)
    font = _font(11)
    for value in ticks(low, high, about=max(height // 60, 2)):
        y = bottom - (value - low) / (high - low) * (bottom - top)
        pen.line((24, y, 28, y), fill=WORDS)
        pen.text((32, y - 7), short(value), font=font, fill=WORDS)
    if unit:
        pen.text((8, 5), _latin(unit), font=font, fill=WORDS)
    return np.asarray(bar)
