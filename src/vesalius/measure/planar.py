"""Shape of the regions of a two-dimensional label map.

Two outlines are in use. Counting squares gives `area`. The outline at level 0.5 (marching squares: it crosses halfway
between an inside and an outside pixel centre; diagonal neighbours stay apart) gives `polygon_area`,
`polygon_perimeter`, the convex hull and the Feret diameters. The outline has at most eight directions, so its length
does not converge to that of a smooth curve (a disc comes out 5.5 % too long). `perimeter` is therefore the
Cauchy-Crofton estimate from the crossings along four directions, weighted by the angles they stand for (Legland, Kieu,
Devaux: Image Anal. Stereol. 2007, 26:83): for discs of a radius from 5 pixels on, with centres anywhere, the mean error
is below 0.3 % and the standard deviation below 1.1 %. `feret_max` takes the most distant of many corners of the
outline; that of a disc comes out 0.5 to 0.9 pixels too long.

All is measured per label, whatever else the image holds; pixels beyond its edge are background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_steps
from vesalius.measure.boxes import checked_labels
from vesalius.measure.compiled import in_threads, kernel, slabs
from vesalius.measure.quantities import Quantity
from vesalius.measure.shape_kernels import IntArray, scan

_LEVEL = "outline at level 0.5, halfway between pixel centres inside and outside"
_LEGLAND = "Legland et al., Image Anal. Stereol. 2007, 26:83"

QUANTITIES: tuple[Quantity, ...] = (
    Quantity("label", "1", "Value of the region in the label map."),
    Quantity("pixel_count", "count", "Number of pixels of the region."),
    Quantity("area", "mm2", "Number of pixels times the area of one."),
    Quantity("box_start_y", "1", "First row of the region (index)."),
    Quantity("box_start_x", "1", "First column of the region (index)."),
    Quantity("box_stop_y", "1", "One past the last row of the region (index)."),
    Quantity("box_stop_x", "1", "One past the last column of the region (index)."),
    Quantity("extent", "1", "Share of the axis-aligned box of pixels that the region fills."),
    Quantity("centroid_index_y", "1", "Row of the centre of the region (index, pixel centres are whole numbers)."),
    Quantity("centroid_index_x", "1", "Column of the centre of the region (index)."),
    Quantity("centroid_y", "mm", "Distance of the centre from the centre of pixel (0, 0) along y."),
    Quantity("centroid_x", "mm", "Distance of the centre from the centre of pixel (0, 0) along x."),
    Quantity("major_axis_length", "mm", "Four times the root of the larger principal moment of the pixel centres."),
    Quantity("minor_axis_length", "mm", "Four times the root of the smaller principal moment of the pixel centres."),
    Quantity("elongation", "1", "Minor over major axis length; NaN for a single pixel."),
    Quantity("eccentricity", "1", "Root of 1 - elongation squared: 0 for a circle; NaN for a single pixel."),
    Quantity("orientation", "deg", "Angle from the x axis to the major axis, turning towards y, in (-90, 90]."),
    Quantity("equivalent_diameter", "mm", "Diameter of the circle of the same area."),
    Quantity("perimeter", "mm", "Crofton estimate of the boundary length from four directions.", _LEGLAND),
    Quantity("polygon_perimeter", "mm", f"Length of the {_LEVEL}; holes count too."),
    Quantity("polygon_area", "mm2", f"Area within the {_LEVEL}."),
    Quantity("circularity", "1", "4 pi area over perimeter squared: 1 for a disc; a few pixels can exceed 1."),
    Quantity("convex_area", "mm2", f"Area of the convex hull of the {_LEVEL}."),
    Quantity("convex_perimeter", "mm", f"Perimeter of the convex hull of the {_LEVEL}."),
    Quantity("solidity", "1", "Polygon area over convex area: 1 for a convex region."),
    Quantity("convexity", "1", "Convex perimeter over polygon perimeter."),
    Quantity("feret_max", "mm", f"Largest distance of two points of the {_LEVEL}."),
    Quantity("feret_min", "mm", f"Smallest distance of two parallel lines that hold the {_LEVEL}."),
    Quantity("box_min_area", "mm2", "Area of the smallest rectangle of any direction around the outline."),
    Quantity("euler_number", "count", "Parts minus holes; pixels that touch at a corner belong together."),
)


def planar_table(
    labels: NDArray[Any], spacing: Sequence[float] | None = None, *, workers: int | None = None
) -> dict[str, NDArray[Any]]:
    """Shape of every region of a two-dimensional label map.

    Parameters
    ----------
    labels
        ``(Y, X)`` whole numbers, 0 for the background; bool is one region.
    spacing
        Distance of pixel centres ``(y, x)`` in mm; None measures in pixels.
    workers
        Threads; None for all cores.

    Returns
    -------
    table
        A column ``(L,)`` per entry of `QUANTITIES`, one row per label in rising order; no rows without labels.

    Raises
    ------
    ValueError
        For other axes, negative or fractional labels, or a spacing that is not two positive numbers.
    """
    array = checked_labels(labels)
    if array.ndim != 2:
        raise ValueError(f"labels must have axes (Y, X), got shape {array.shape}")
    steps = checked_steps(spacing, 2)
    found = scan(array, workers=workers)
    boxes, pixel = found.boxes, float(np.prod(steps))
    count = boxes.voxels.astype(np.float64)
    table: dict[str, NDArray[Any]] = {"label": boxes.values, "pixel_count": boxes.voxels, "area": count * pixel}
    for end, side in (("start", boxes.start), ("stop", boxes.stop)):
        table[f"box_{end}_y"], table[f"box_{end}_x"] = side[:, 0], side[:, 1]
    table["extent"] = count / np.prod(boxes.stop - boxes.start, axis=1)
    table |= _moments(found.moments, steps)
    table["equivalent_diameter"] = np.sqrt(4 / np.pi * table["area"])
    weights = _cell_weights(steps)
    for name, weight in weights.items():
        table[name] = found.codes @ weight
    with np.errstate(divide="ignore", invalid="ignore"):
        table["circularity"] = 4 * np.pi * table["area"] / table["perimeter"] ** 2
    hulls = _hulls(np.ascontiguousarray(found.corners[:, 1:]), found.first, steps, workers)
    for k, name in enumerate(("convex_area", "convex_perimeter", "feret_max", "feret_min", "box_min_area")):
        table[name] = hulls[:, k]
    table["solidity"] = table["polygon_area"] / table["convex_area"]
    table["convexity"] = table["convex_perimeter"] / table["polygon_perimeter"]
    return {one.name: table[one.name] for one in QUANTITIES}


def _moments(moments: IntArray, steps: FloatArray) -> dict[str, FloatArray]:
    """Centroid and principal axes from sums over pixels."""
    n = moments[:, 0].astype(np.float64)
    mean = moments[:, [2, 3]] / n[:, None]
    # Whole numbers about the rounded mean lose nothing; what is left of the mean is less than one.
    middle = np.rint(mean).astype(np.int64)
    rest = mean - middle
    y, x = middle.T
    yy = (moments[:, 5] - 2 * y * moments[:, 2] + y * y * moments[:, 0]) / n - rest[:, 0] ** 2
    xx = (moments[:, 6] - 2 * x * moments[:, 3] + x * x * moments[:, 0]) / n - rest[:, 1] ** 2
    yx = (moments[:, 9] - y * moments[:, 3] - x * moments[:, 2] + y * x * moments[:, 0]) / n - rest[:, 0] * rest[:, 1]
    yy, xx, yx = yy * steps[0] ** 2, xx * steps[1] ** 2, yx * steps[0] * steps[1]
    half, spread = (yy + xx) / 2, np.hypot((xx - yy) / 2, yx)
    major, minor = half + spread, np.maximum(half - spread, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(minor / major)
    angle = np.degrees(np.arctan2(2 * yx, xx - yy)) / 2
    return {
        "centroid_index_y": mean[:, 0],
        "centroid_index_x": mean[:, 1],
        "centroid_y": mean[:, 0] * steps[0],
        "centroid_x": mean[:, 1] * steps[1],
        "major_axis_length": 4 * np.sqrt(major),
        "minor_axis_length": 4 * np.sqrt(minor),
        "elongation": ratio,
        "eccentricity": np.sqrt(1 - ratio**2),
        "orientation": np.where(spread > 0, np.where(angle <= -90, angle + 180, angle), np.nan),
    }


def _cell_weights(steps: FloatArray) -> dict[str, FloatArray]:
    """What each of the 16 cells of four pixels adds to perimeters, area and Euler number; bit 2 y + x of a code."""
    sy, sx = (float(step) for step in steps)
    slope, pixel = float(np.hypot(sy, sx)), sy * sx
    angle = np.arctan2(sy, sx)
    # Share of all directions that each of the four stands for, times the distance of its lines.
    along_x, along_y, oblique = angle / np.pi * sy, (np.pi / 2 - angle) / np.pi * sx, pixel / slope / 4
    out = {name: np.zeros(16) for name in ("perimeter", "polygon_perimeter", "polygon_area", "euler_number")}
    for code in range(1, 16):
        a, b, c, d = (code >> k & 1 for k in range(4))
        inside = a + b + c + d
        corner = inside in (1, 3) or (inside == 2 and a == d)
        straight = 0.0 if inside == 4 else sx if a == b else sy
        pieces = 2 if inside == 2 else 1
        out["polygon_perimeter"][code] = pieces * slope / 2 if corner else straight
        parts = {1: 1 / 8, 2: 1 / 4 if corner else 1 / 2, 3: 7 / 8, 4: 1.0}
        out["polygon_area"][code] = parts[inside] * pixel
        # Steps along x and y lie in two cells each, diagonals in one.
        crossings = along_x * ((a != b) + (c != d)) / 2 + along_y * ((a != c) + (b != d)) / 2
        out["perimeter"][code] = np.pi / 2 * (crossings + oblique * ((a != d) + (b != c)))
        # Vertices less edges plus squares of the union of closed pixels.
        edges = ((a | b) + (c | d) + (a | c) + (b | d)) / 2
        out["euler_number"][code] = 1 - edges + inside / 4
    return out


def _hulls(corners: NDArray[np.int32], first: IntArray, steps: FloatArray, workers: int | None) -> FloatArray:
    """``(L, 5)``: area, perimeter, largest and smallest Feret diameter, smallest rectangle of each hull."""
    out = np.full((len(first) - 1, 5), np.nan)
    pieces = slabs(len(out), 4 * (workers or available_cores())) if len(out) else []
    in_threads(lambda part: _measure_hulls(corners, first, part[0], part[1], steps, out), pieces, workers=workers)
    return out


@kernel
def outline_hull(corners):  # type: ignore[no-untyped-def]
    """Hull ``(H, 2)``, in half pixels and in order, of the outline at level 0.5 of pixels (y, x) ``(P, 2)``."""
    many = corners.shape[0]
    points = np.empty((4 * many, 2), np.int64)
    for k in range(many):
        y, x = 2 * np.int64(corners[k, 0]), 2 * np.int64(corners[k, 1])
        points[4 * k, 0], points[4 * k, 1] = y - 1, x
        points[4 * k + 1, 0], points[4 * k + 1, 1] = y, x - 1
        points[4 * k + 2, 0], points[4 * k + 2, 1] = y, x + 1
        points[4 * k + 3, 0], points[4 * k + 3, 1] = y + 1, x
    order = np.argsort(points[:, 0] * (np.int64(1) << 32) + points[:, 1])
    hull, depth = np.empty((8 * many, 2), np.int64), 0
    for side in range(2):
        floor = depth + 1 if side == 0 else depth
        for step in range(4 * many):
            here = order[step] if side == 0 else order[4 * many - 1 - step]
            y, x = points[here, 0], points[here, 1]
            if depth > 0 and hull[depth - 1, 0] == y and hull[depth - 1, 1] == x:
                continue
            while depth > floor:
                y1, x1, y0, x0 = hull[depth - 1, 0], hull[depth - 1, 1], hull[depth - 2, 0], hull[depth - 2, 1]
                if (y1 - y0) * (x - x0) - (x1 - x0) * (y - y0) > 0:
                    break
                depth -= 1
            hull[depth, 0], hull[depth, 1] = y, x
            depth += 1
    return hull[: depth - 1].copy()


@kernel
def calipers(hull):  # type: ignore[no-untyped-def]
    """Area, perimeter, Feret max and min, smallest rectangle's area, and ends (two rows) of the longest diameter."""
    many = hull.shape[0]
    area = length = farthest = 0.0
    narrow = rectangle = np.inf
    one = two = 0
    for k in range(many):
        ay, ax = hull[k, 0], hull[k, 1]
        ey, ex = hull[(k + 1) % many, 0] - ay, hull[(k + 1) % many, 1] - ax
        area += (ay - hull[0, 0]) * ex - (ax - hull[0, 1]) * ey
        size = np.sqrt(ey * ey + ex * ex)
        length += size
        across = low = high = 0.0
        for j in range(many):
            dy, dx = hull[j, 0] - ay, hull[j, 1] - ax
            distance = dy * dy + dx * dx
            if distance > farthest:
                farthest, one, two = distance, k, j
            across = max(across, abs(ey * dx - ex * dy))
            along = ey * dy + ex * dx
            low, high = min(low, along), max(high, along)
        narrow = min(narrow, across / size)
        rectangle = min(rectangle, across * (high - low) / (size * size))
    return abs(area) / 2, length, np.sqrt(farthest), narrow, rectangle, one, two


@kernel
def _measure_hulls(corners, first, start, stop, steps, out):  # type: ignore[no-untyped-def]
    """Fills rows start..stop of `out` for the pixels ``corners[first[r]:first[r + 1]]``."""
    for row in range(start, stop):
        half = outline_hull(corners[first[row] : first[row + 1]])
        hull = half * (steps / 2)
        out[row, 0], out[row, 1], out[row, 2], out[row, 3], out[row, 4], _, _ = calipers(hull)
