"""One row per cell of an instance map: shape, intensity, texture and neighbours; and what they say about the image.

Shape is that of `measure.planar`, texture that of `measure.texture`. A cell is all the pixels of its label, in one
piece or not. Spacing is in mm per (y, x); without it lengths are in pixels. Intensities are those of the pixels
of the label that are finite; a label without such a pixel has NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from vesalius.core.geometry import FloatArray
from vesalius.measure import planar, texture
from vesalius.measure.arguments import checked_steps
from vesalius.measure.boxes import LabelBoxes, checked_labels, label_boxes
from vesalius.measure.compiled import in_threads, kernel, slabs
from vesalius.measure.quantities import Quantity
from vesalius.measure.shape_kernels import numbered
from vesalius.measure.spatial import nearest_distances

# Weights of red, green and blue in the luma of ITU-R BT.709, applied to the values as they are stored.
LUMINANCE = (0.2126, 0.7152, 0.0722)
RGB = ("red", "green", "blue")
# Border pixels per tile that the search for the nearest other cell aims at.
_PER_TILE = 8
_GUNDERSEN = "Gundersen, J. Microsc. 1977, 111:219"
_LANTUEJOUL = "Miles 1974 and Lantuejoul 1978; Serra, Image Analysis and Mathematical Morphology 1982"

PLACE = (
    Quantity("touches_border", "1", "1 where the cell has a pixel at the edge of the image (it may be cut), else 0."),
    Quantity("touching_cells", "count", "Number of other cells with a pixel that shares an edge or corner with it."),
    Quantity(
        "nearest_centroid_distance", "mm", "Distance from its centre to the nearest other centre; NaN for one cell."
    ),
    Quantity(
        "gap_distance", "mm", "Smallest gap to another cell, between pixel squares; 0 if touching, NaN for one cell."
    ),
)
INTENSITY = (
    Quantity("cell_intensity_mean", "intensity", "Mean intensity of the pixels of the cell."),
    Quantity("cell_intensity_sd", "intensity", "Standard deviation of the intensity, divisor n."),
    Quantity("cell_intensity_min", "intensity", "Lowest intensity of the cell."),
    Quantity("cell_intensity_max", "intensity", "Highest intensity of the cell."),
    Quantity("cell_intensity_median", "intensity", "Median intensity of the cell."),
    Quantity("cell_intensity_sum", "intensity", "Sum of the intensities of the pixels (integrated intensity)."),
)
_GLCM = ("contrast", "correlation", "energy", "inverse_difference_moment", "joint_entropy")
_PAIRS = tuple(one for one in texture.GLCM if one.name.removeprefix("glcm_") in _GLCM)
TEXTURE = (*texture.ROUGHNESS, *_PAIRS)
SUMMARY = (
    Quantity("cell_count", "count", "Number of cells of which a part is in the image."),
    Quantity("cell_count_low", "count", "Lower end of the exact Poisson interval of the count.", "Garwood 1936"),
    Quantity("cell_count_high", "count", "Upper end of the exact Poisson interval of the count.", "Garwood 1936"),
    Quantity("cell_density", "mm-2", "Cells per area of the image: too high, as cut cells count in full."),
    Quantity("cell_density_low", "mm-2", "Lower end of the Poisson interval of the density.", "Garwood 1936"),
    Quantity("cell_density_high", "mm-2", "Upper end of the Poisson interval of the density.", "Garwood 1936"),
    Quantity("cells_per_megapixel", "1", "Cells per million pixels of the image."),
    Quantity("frame_count", "count", "Cells that do not touch the left or the bottom edge of the image.", _GUNDERSEN),
    Quantity(
        "frame_density", "mm-2", "Cells per area by the counting frame: free of the bias of the edge.", _GUNDERSEN
    ),
    Quantity("frame_density_low", "mm-2", "Lower end of the Poisson interval of the frame density.", "Garwood 1936"),
    Quantity("frame_density_high", "mm-2", "Upper end of the Poisson interval of the frame density.", "Garwood 1936"),
    Quantity("border_cells", "count", "Number of cells that touch the edge of the image."),
    Quantity("cell_area_mean", "mm2", "Mean area of all cells, cut ones as far as they are seen."),
    Quantity("cell_area_median", "mm2", "Median area of all cells."),
    Quantity("cell_area_sd", "mm2", "Standard deviation of the area, divisor n - 1; NaN below two cells."),
    Quantity(
        "cell_area_mean_corrected",
        "mm2",
        "Mean area of the cells off the edge, each weighted by the inverse chance that its box fits; NaN without any.",
        _LANTUEJOUL,
    ),
    Quantity("cell_area_fraction", "1", "Area of all cells over the area of the image."),
    Quantity("confluence", "percent", "Area of all cells in percent of the area of the image."),
)
QUANTITIES: tuple[Quantity, ...] = (*planar.QUANTITIES, *PLACE, *INTENSITY, *TEXTURE, *SUMMARY)


def cell_table(
    labels: NDArray[Any],
    spacing: Sequence[float] | None = None,
    image: NDArray[Any] | None = None,
    channels: Sequence[str] | None = None,
    *,
    grey_levels: int = 32,
    value_range: tuple[float, float] | None = None,
) -> dict[str, NDArray[Any]]:
    """Everything that is measured of each cell.

    Parameters
    ----------
    labels
        ``(Y, X)`` whole numbers, 0 for the background.
    spacing
        Distance of pixel centres ``(y, x)`` in mm; None measures in pixels.
    image
        ``(Y, X)`` or ``(C, Y, X)``; None leaves intensity and texture out.
    channels
        Names of the C channels, which become suffixes of columns (``cell_intensity_mean_dapi``). None: three channels
        of uint8 are ``red``, ``green``, ``blue``, others ``channel_1`` and so on. With the names red, green, blue there
        is also ``luminance`` (ITU-R BT.709), and texture is measured on it alone. ``(Y, X)`` has no suffix.
    grey_levels, value_range
        Levels of equal width for co-occurrence over `value_range`; None is 0 to 256 for uint8, else the range of the
        channel in this image (levels of two images then differ).

    Returns
    -------
    table
        Columns ``(L,)`` of `planar.QUANTITIES`, `PLACE` and, for each channel, `INTENSITY` and `TEXTURE`,
        one row per label in rising order.

    Raises
    ------
    ValueError
        For other axes, shapes that differ, or a number of names that is not that of the channels.
    """
    array = checked_labels(labels)
    table = planar.planar_table(array, spacing, workers=texture.threads_for(array.size))
    start, stop = (np.stack([table[f"box_{end}_y"], table[f"box_{end}_x"]], axis=1) for end in ("start", "stop"))
    boxes = LabelBoxes(table["label"], table["pixel_count"], start, stop)
    table |= _places(array, table, boxes, checked_steps(spacing, 2))
    if image is None:
        return table
    for name, pixels, measure_texture in _channels(array, image, channels):
        tail = f"_{name}" if name else ""
        found = intensity_table(array, pixels, boxes=boxes)
        if measure_texture:
            found |= texture.roughness(pixels, array, boxes=boxes)
            levels = texture.fixed_bins(pixels, array, grey_levels, value_range=value_range or _range(pixels))
            pairs = texture.cooccurrence(levels, array, level_count=grey_levels, boxes=boxes)
            found |= {one.name: pairs[one.name] for one in _PAIRS}
        table |= {f"{key}{tail}": column for key, column in found.items()}
    return table


def cell_quantities(channels: Sequence[str] = ()) -> tuple[Quantity, ...]:
    """The quantities of a `cell_table` with these channels, as suffixes of the columns; for RGB add ``luminance``."""
    measured = (*INTENSITY, *TEXTURE)
    each = [
        replace(one, name=f"{one.name}_{name}", meaning=f"{one.meaning.rstrip('.')} (channel {name}).")
        for name in channels
        for one in measured
    ]
    return (*planar.QUANTITIES, *PLACE, *(each if channels else measured))


def cell_points(table: Mapping[str, NDArray[Any]], spacing: Sequence[float] | None = None) -> FloatArray:
    """``(L, 2)`` centres (y, x) measured from the outer corner of the image, as `measure.spatial` takes them."""
    index = np.stack([table["centroid_index_y"], table["centroid_index_x"]], axis=1)
    return np.asarray((index + 0.5) * checked_steps(spacing, 2))


def intensity_table(
    labels: NDArray[Any], image: NDArray[Any], *, boxes: LabelBoxes | None = None
) -> dict[str, NDArray[np.float64]]:
    """Columns ``(L,)`` of `INTENSITY` for one channel; `labels` and `image` are ``(Y, X)`` or ``(Z, Y, X)``."""
    array, pixels = checked_labels(labels), texture.checked_pixels(image)
    if array.shape != pixels.shape:
        raise ValueError(f"image of shape {pixels.shape} and labels of shape {array.shape} differ")
    out = texture.per_label(
        _statistics, pixels, array, boxes or label_boxes(array, workers=texture.threads_for(array.size)), len(INTENSITY)
    )
    return {one.name: out[:, column] for column, one in enumerate(INTENSITY)}


def touching_pairs(labels: NDArray[Any]) -> NDArray[np.int64]:
    """``(P, 2)`` pairs of label values of a map ``(Y, X)`` with pixels that share an edge or corner, once each."""
    array = checked_labels(labels)
    if array.ndim != 2:
        raise ValueError(f"labels must have axes (Y, X), got shape {array.shape}")
    boxes = label_boxes(array)
    dense, rows = numbered(array, boxes)
    return np.asarray(boxes.values[_contacts(dense, rows)])


def poisson_interval(count: ArrayLike, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Exact interval of the mean of a Poisson count (Garwood, Biometrika 1936, 28:437); 0 counts give a low end of 0.

    It is that of independent cells: clustering makes it too narrow.
    """
    seen = np.asarray(count, dtype=np.float64)
    if not 0 < level < 1 or np.any(seen < 0):
        raise ValueError(f"level must lie between 0 and 1 and counts not below 0, got {level} and {seen.min():g}")
    tail = (1 - level) / 2
    low = np.where(seen > 0, chi2.ppf(tail, 2 * np.maximum(seen, 1)) / 2, 0.0)
    return low, np.asarray(chi2.ppf(1 - tail, 2 * seen + 2) / 2)


def cell_summary(
    table: Mapping[str, NDArray[Any]],
    shape: tuple[int, int],
    spacing: Sequence[float] | None = None,
    *,
    level: float = 0.95,
) -> dict[str, float]:
    """Count, density, size and coverage of the cells of one image.

    Counting frame (Gundersen 1977): cells with a pixel in the left column or the bottom row of the image are not
    counted, all others are, so that a cell on the seam of two images counts once. The frame's lines go on beyond the
    image where they cannot be seen; that matters for long cells at two corners. Mean area with the correction of Miles
    and Lantuejoul: only cells off the edge are sure to be whole, and large ones are less often so.

    Parameters
    ----------
    table
        From `cell_table` or `planar.planar_table`.
    shape
        ``(Y, X)`` of the image.
    spacing
        As for the table.
    level
        Coverage of the intervals.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be (Y, X) with sides of at least 1, got {shape}")
    steps = checked_steps(spacing, 2)
    start, stop = (np.stack([table[f"box_{end}_y"], table[f"box_{end}_x"]], axis=1) for end in ("start", "stop"))
    if len(stop) and np.any(stop.max(0) > shape):
        raise ValueError(f"a cell ends at {tuple(stop.max(0).tolist())}, beyond the image of shape {shape}")
    areas, whole, count = np.asarray(table["area"]), float(np.prod(shape) * np.prod(steps)), len(start)
    edge = _at_edge(start, stop, shape)
    framed = int(np.sum((start[:, 1] > 0) & (stop[:, 0] < shape[0])))
    low, high = (float(end) for end in poisson_interval(count, level))
    frame_low, frame_high = (float(end) for end in poisson_interval(framed, level))
    # A box of h x w pixels fits off the edge at (H - h - 1) (W - w - 1) places.
    room = np.prod(np.array(shape) - (stop - start) - 1, axis=1, dtype=np.float64)[~edge]
    nan = float("nan")
    return {
        "cell_count": float(count),
        "cell_count_low": low,
        "cell_count_high": high,
        "cell_density": count / whole,
        "cell_density_low": low / whole,
        "cell_density_high": high / whole,
        "cells_per_megapixel": 1e6 * count / float(np.prod(shape)),
        "frame_count": float(framed),
        "frame_density": framed / whole,
        "frame_density_low": frame_low / whole,
        "frame_density_high": frame_high / whole,
        "border_cells": float(np.sum(edge)),
        "cell_area_mean": float(areas.mean()) if count else nan,
        "cell_area_median": float(np.median(areas)) if count else nan,
        "cell_area_sd": float(areas.std(ddof=1)) if count > 1 else nan,
        "cell_area_mean_corrected": float(np.average(areas[~edge], weights=1 / room)) if len(room) else nan,
        "cell_area_fraction": float(areas.sum()) / whole,
        "confluence": 100 * float(areas.sum()) / whole,
    }


def _at_edge(start: NDArray[Any], stop: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.asarray(np.any((start == 0) | (stop == np.array(shape)), axis=1))


def _places(
    array: NDArray[Any], table: dict[str, NDArray[Any]], boxes: LabelBoxes, steps: FloatArray
) -> dict[str, NDArray[Any]]:
    """The columns of `PLACE`."""
    dense, rows = numbered(array, boxes)
    pairs = _contacts(dense, rows)
    touching = np.bincount(pairs.ravel(), minlength=len(boxes))
    centres = np.stack([table["centroid_y"], table["centroid_x"]], axis=1)
    return {
        "touches_border": _at_edge(boxes.start, boxes.stop, array.shape).astype(np.int64),
        "touching_cells": touching,
        "nearest_centroid_distance": nearest_distances(centres),
        "gap_distance": _gaps(dense, rows, touching, steps),
    }


def _contacts(dense: NDArray[Any], rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """``(P, 2)`` rows of labels that touch, each pair once, the smaller first."""
    found = in_threads(
        lambda part: _touching(dense, rows, part[0], part[1]), slabs(dense.shape[0], texture.threads_for(dense.size))
    )
    keys = np.unique(np.concatenate([*found, np.zeros(0, np.int64)]))
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)


def _gaps(dense: NDArray[Any], rows: NDArray[np.int32], touching: NDArray[Any], steps: FloatArray) -> FloatArray:
    """``(L,)`` smallest gap of each label to another, by a search among border pixels sorted into square tiles."""
    gaps = np.where(touching > 0, 0.0, np.inf)
    if len(gaps) < 2:
        return np.full(len(gaps), np.nan)
    parts = in_threads(
        lambda part: _border(dense, rows, part[0], part[1]), slabs(dense.shape[0], texture.threads_for(dense.size))
    )
    border = np.concatenate(parts)
    tile = max(4, int(np.sqrt(dense.size * _PER_TILE / max(len(border), 1))))
    across = -(-dense.shape[1] // tile)
    number = (border[:, 0] // tile).astype(np.int64) * across + border[:, 1] // tile
    order = np.argsort(number, kind="stable")
    tiles = (-(-dense.shape[0] // tile), across)
    first = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=tiles[0] * tiles[1]))])
    border_of = border[np.argsort(border[:, 2], kind="stable")]
    begin = np.searchsorted(border_of[:, 2], np.arange(len(gaps) + 1))
    threads = min(texture.threads_for(dense.size), len(gaps))
    in_threads(
        lambda part: _search(border_of, begin, border[order], first, tiles, tile, steps, part, threads, gaps),
        range(threads),
    )
    return gaps


def _channels(
    array: NDArray[Any], image: NDArray[Any], channels: Sequence[str] | None
) -> list[tuple[str, NDArray[Any], bool]]:
    """Name, pixels and whether texture is measured, for each channel."""
    held = np.asarray(image)
    if held.shape == array.shape:
        if channels is not None and len(channels) > 1:
            raise ValueError(f"{len(channels)} channel names were given for an image of one channel")
        return [(channels[0] if channels else "", texture.checked_pixels(held), True)]
    if held.ndim != 3 or held.shape[1:] != array.shape:
        raise ValueError(
            f"image must have axes (Y, X) or (C, Y, X) over labels of shape {array.shape}, got {held.shape}"
        )
    if channels is None:
        colour = len(held) == 3 and held.dtype == np.uint8
        names = RGB if colour else tuple(f"channel_{k + 1}" for k in range(len(held)))
    else:
        names = tuple(channels)
    if len(names) != len(held) or len(set(names)) != len(names):
        raise ValueError(f"channels must be {len(held)} different names, got {', '.join(names)}")
    found = [(name, texture.checked_pixels(one), names != RGB) for name, one in zip(names, held, strict=True)]
    if names == RGB:
        luminance = held[0] * np.float32(LUMINANCE[0])
        for weight, one in zip(LUMINANCE[1:], held[1:], strict=True):
            luminance += one * np.float32(weight)
        found.append(("luminance", luminance, True))
    return found


def _range(pixels: NDArray[Any]) -> tuple[float, float]:
    if pixels.dtype == np.uint8:
        return (0.0, 256.0)
    held = pixels[np.isfinite(pixels)]
    low, high = (float(held.min()), float(held.max())) if held.size else (0.0, 1.0)
    return (low, high) if low < high else (low, low + 1)


@kernel
def _statistics(image, names, values, starts, stops, out):  # type: ignore[no-untyped-def]
    """Mean, standard deviation, least, greatest, median and sum of the finite pixels of some labels."""
    for row in range(len(values)):
        low, high = starts[row], stops[row]
        held = np.empty((high[0] - low[0]) * (high[1] - low[1]) * (high[2] - low[2]), dtype=image.dtype)
        count, total = 0, 0.0
        for z in range(low[0], high[0]):
            for y in range(low[1], high[1]):
                for x in range(low[2], high[2]):
                    if names[z, y, x] == values[row] and np.isfinite(image[z, y, x]):
                        held[count] = image[z, y, x]
                        total += image[z, y, x]
                        count += 1
        if count == 0:
            continue
        mean, squares = total / count, 0.0
        least = greatest = held[0]
        for k in range(count):
            squares += (held[k] - mean) ** 2
            least, greatest = min(least, held[k]), max(greatest, held[k])
        out[row, 0], out[row, 1] = mean, np.sqrt(squares / count)
        out[row, 2], out[row, 3] = least, greatest
        out[row, 4], out[row, 5] = np.median(held[:count]), total


@kernel
def _touching(dense, rows, start, stop):  # type: ignore[no-untyped-def]
    """Pairs of rows of labels of neighbouring pixels as ``smaller << 32 | larger``, with repeats."""
    found, count, last = np.empty(1024, dtype=np.int64), 0, np.int64(-1)
    for y in range(start, stop):
        for x in range(dense.shape[1]):
            a = np.int64(rows[dense[y, x]])
            if a < 0:
                continue
            for k in range(4):
                v, u = y + (k > 0), x + (1 if k == 0 else k - 2)
                if v >= dense.shape[0] or u < 0 or u >= dense.shape[1]:
                    continue
                b = np.int64(rows[dense[v, u]])
                if b < 0 or b == a:
                    continue
                key = (min(a, b) << 32) | max(a, b)
                if key != last:
                    if count == len(found):
                        found = np.concatenate((found, np.empty(count, dtype=np.int64)))
                    found[count] = key
                    count, last = count + 1, key
    return found[:count].copy()


@kernel
def _border(dense, rows, start, stop):  # type: ignore[no-untyped-def]
    """``(P, 3)``: y, x and row of the pixels of labels with a neighbour across an edge that is not of the label."""
    height, width = dense.shape
    found, count = np.empty((1024, 3), dtype=np.int32), 0
    for y in range(start, stop):
        for x in range(width):
            here = dense[y, x]
            if rows[here] < 0 or not (
                (y > 0 and dense[y - 1, x] != here)
                or (y + 1 < height and dense[y + 1, x] != here)
                or (x > 0 and dense[y, x - 1] != here)
                or (x + 1 < width and dense[y, x + 1] != here)
            ):
                continue
            if count == len(found):
                found = np.concatenate((found, np.empty((count, 3), dtype=np.int32)))
            found[count, 0], found[count, 1], found[count, 2] = y, x, rows[here]
            count += 1
    return found[:count].copy()


@kernel
def _search(border, begin, sorted_border, first, tiles, tile, steps, part, stride, gaps):  # type: ignore[no-untyped-def]
    """Smallest gap of every `stride`-th label, in rings of tiles around each of its border pixels."""
    for row in range(part, len(gaps), stride):
        best = gaps[row]
        if best == 0:
            continue
        for k in range(begin[row], begin[row + 1]):
            y, x = border[k, 0], border[k, 1]
            v, u = y // tile, x // tile
            ring = 0
            while ring <= max(tiles[0], tiles[1]) and (ring - 1) * tile * min(steps[0], steps[1]) < best:
                for i in range(max(v - ring, 0), min(v + ring + 1, tiles[0])):
                    # Inside the ring only the two ends of a line belong to it.
                    skip = 2 * ring if ring > 0 and abs(i - v) < ring else 1
                    for j in range(u - ring, u + ring + 1, skip):
                        if j < 0 or j >= tiles[1]:
                            continue
                        for p in range(first[i * tiles[1] + j], first[i * tiles[1] + j + 1]):
                            if sorted_border[p, 2] != row:
                                dy = max(abs(sorted_border[p, 0] - y) - 1, 0) * steps[0]
                                dx = max(abs(sorted_border[p, 1] - x) - 1, 0) * steps[1]
                                best = min(best, np.sqrt(dy * dy + dx * dx))
                ring += 1
        gaps[row] = best
