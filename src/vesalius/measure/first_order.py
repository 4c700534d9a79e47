"""Intensities within regions: statistics, histograms and peaks of IBSI 1.

Definitions follow sections 3.2 to 3.5 of the reference manual of the Image Biomarker Standardisation Initiative
(Zwanenburg et al., Radiology 2020, 295:328; arXiv 1612.07003). Percentiles interpolate linearly between the sorted
values. Variance, skewness and kurtosis are those of the population (divided by n).

NaN and infinite intensities within a region are refused, not skipped: a mean of what is left would not say so. What is
undefined (skewness of a constant, a ratio to zero) is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_steps
from vesalius.measure.boxes import LabelBoxes, checked_labels, label_boxes
from vesalius.measure.compiled import in_threads, kernel
from vesalius.measure.quantities import Quantity
from vesalius.measure.shape_kernels import IntArray, numbered

_SOURCE = "IBSI 1 reference manual, arXiv 1612.07003, section 3."
_MOMENTS: tuple[tuple[str, str, str, str], ...] = (
    ("mean", "intensity", "Mean", "mean"),
    ("variance", "intensity2", "Mean squared distance from the mean", "var"),
    ("skewness", "1", "Mean cubed distance from the mean over the cubed standard deviation", "skew"),
    ("excess_kurtosis", "1", "Mean fourth power of the distance over the squared variance, less 3", "kurt"),
    ("median", "intensity", "Median", "median"),
    ("minimum", "intensity", "Smallest value", "min"),
    ("percentile_10", "intensity", "Value that 10 % do not exceed", "p10"),
    ("percentile_90", "intensity", "Value that 90 % do not exceed", "p90"),
    ("maximum", "intensity", "Largest value", "max"),
    ("interquartile_range", "intensity", "75th less 25th percentile", "iqr"),
    ("range", "intensity", "Largest less smallest value", "range"),
    ("mean_absolute_deviation", "intensity", "Mean distance from the mean", "mad"),
    ("robust_mean_absolute_deviation", "intensity", "The same of values from percentile 10 to 90 only", "rmad"),
    ("median_absolute_deviation", "intensity", "Mean distance from the median", "medad"),
    ("variation_coefficient", "1", "Standard deviation over mean", "cov"),
    ("quartile_dispersion", "1", "75th less 25th percentile over their sum", "qcod"),
    ("energy", "intensity2", "Sum of squares", "energy"),
    ("root_mean_square", "intensity", "Root of the mean square", "rms"),
)
STATISTICS: tuple[Quantity, ...] = tuple(
    Quantity(name, unit, f"{meaning}, of the intensities.", _SOURCE + "3", f"stat_{tag}")
    for name, unit, meaning, tag in _MOMENTS
)


def _histogram_quantity(name: str, meaning: str, tag: str) -> Quantity:
    return Quantity(f"histogram_{name}", "1", meaning, _SOURCE + "4", f"ih_{tag}")


HISTOGRAM: tuple[Quantity, ...] = (
    *(_histogram_quantity(name, f"{meaning}, of the bin numbers.", tag) for name, _, meaning, tag in _MOMENTS[:-2]),
    _histogram_quantity("mode", "Bin with most voxels; of several, the closest to the mean.", "mode"),
    _histogram_quantity("entropy", "Shannon entropy of the bins in bits.", "entropy"),
    _histogram_quantity("uniformity", "Sum of squared shares of the bins.", "uniformity"),
    _histogram_quantity("maximum_gradient", "Steepest rise of the voxel count from bin to bin.", "max_grad"),
    _histogram_quantity("maximum_gradient_bin", "Bin of the steepest rise.", "max_grad_g"),
    _histogram_quantity("minimum_gradient", "Steepest fall of the voxel count from bin to bin.", "min_grad"),
    _histogram_quantity("minimum_gradient_bin", "Bin of the steepest fall.", "min_grad_g"),
)
VOLUME_HISTOGRAM: tuple[Quantity, ...] = tuple(
    Quantity(name, unit, meaning, _SOURCE + "5", f"ivh_{tag}")
    for name, unit, meaning, tag in (
        ("volume_fraction_10", "1", "Share of voxels with at least 10 % of the range.", "v10"),
        ("volume_fraction_90", "1", "Share of voxels with at least 90 % of the range.", "v90"),
        ("intensity_fraction_10", "intensity", "Least level that at most 10 % of the voxels reach.", "i10"),
        ("intensity_fraction_90", "intensity", "Least level that at most 90 % of the voxels reach.", "i90"),
        ("volume_fraction_difference", "1", "Volume fraction 10 less 90.", "diff_v10_v90"),
        ("intensity_fraction_difference", "intensity", "Intensity fraction 10 less 90.", "diff_i10_i90"),
        ("volume_histogram_area", "1", "Area under the share of voxels against the share of the range.", "auc"),
    )
)
PEAKS: tuple[Quantity, ...] = tuple(
    Quantity(name, "intensity", f"{meaning}, in the region or not.", _SOURCE + "2", f"loc_peak_{tag}")
    for name, meaning, tag in (
        ("local_peak", "Mean in a ball of 1 ml around the brightest voxel, of all voxels", "loc"),
        ("global_peak", "Largest mean in a ball of 1 ml around a voxel of the region, of all voxels", "glob"),
    )
)
QUANTITIES: tuple[Quantity, ...] = (
    Quantity("label", "1", "Value of the region in the label map."),
    Quantity("voxel_count", "count", "Number of voxels of the region."),
    *STATISTICS, *HISTOGRAM, *VOLUME_HISTOGRAM, *PEAKS,
)  # fmt: skip
# Without a natural step, an intensity-volume histogram takes this many levels (IBSI manual, section 3.5).
_LEVELS = 1000
# A ball of 1 ml.
_PEAK_RADIUS = 10 * (3 / (4 * np.pi)) ** (1 / 3)


def discretised(
    values: ArrayLike, *, bins: int | None = None, width: float | None = None, minimum: float | None = None
) -> IntArray:
    """Bin numbers from 1 up.

    Parameters
    ----------
    values
        Finite intensities of any shape.
    bins
        This many bins of equal width from the least to the largest value; a constant lies in bin 1.
    width
        Bins of this width from `minimum` (default: the least value) upwards. Give either `bins` or `width`.
    minimum
        Where the first bin of given width begins, so that bins mean the same in all images.

    Raises
    ------
    ValueError
        For both or neither of `bins` and `width`, values that are not positive, or intensities below `minimum`.
    """
    array = _checked_values(values)
    if (bins is None) == (width is None):
        raise ValueError(f"give either bins or width, got bins={bins}, width={width}")
    if not array.size:
        return np.zeros(array.shape, dtype=np.int64)
    low, high = float(array.min()), float(array.max())
    if bins is not None:
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        if high == low:
            return np.ones(array.shape, dtype=np.int64)
        return np.minimum(np.floor(bins * (array - low) / (high - low)), bins - 1).astype(np.int64) + 1
    if width is None or not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    start = low if minimum is None else float(minimum)
    if low < start:
        raise ValueError(f"intensities begin at {low:g}, below the minimum of {start:g}")
    return np.floor((array - start) / width).astype(np.int64) + 1


def statistics(values: ArrayLike) -> dict[str, float]:
    """`STATISTICS` of intensities of any shape; all NaN if there are none. ValueError for values not finite."""
    array = np.sort(_checked_values(values).ravel())
    return dict(zip((one.name for one in STATISTICS), _statistics(array).tolist(), strict=True))


def histogram(levels: ArrayLike, *, bins: int | None = None) -> dict[str, float]:
    """`HISTOGRAM` of bin numbers of any shape (see `discretised`); all NaN if there are none.

    Parameters
    ----------
    levels
        Whole numbers. Whole intensities may be taken as they are.
    bins
        Number of bins, if the histogram is to run from 1 to `bins`; otherwise from the least to the largest level.
    """
    array = np.asarray(levels)
    if not np.issubdtype(array.dtype, np.integer) and array.dtype != np.bool_:
        raise ValueError(f"levels must be whole numbers, got {array.dtype}; use discretised first")
    array = np.sort(array.ravel()).astype(np.int64)
    return dict(zip((one.name for one in HISTOGRAM), _histogram(array, bins), strict=True))


def volume_histogram(values: ArrayLike, *, step: float | None = None) -> dict[str, float]:
    """`VOLUME_HISTOGRAM` of intensities of any shape; all NaN if there are none.

    Parameters
    ----------
    values
        Finite intensities.
    step
        Distance of the levels at which the histogram is taken; None: 1 for whole numbers, else a thousandth of the
        range.
    """
    array = np.sort(_checked_values(values).ravel())
    whole = step is None and np.issubdtype(np.asarray(values).dtype, np.integer)
    found = _volume_histogram(array, 1.0 if whole else step)
    return dict(zip((one.name for one in VOLUME_HISTOGRAM), found, strict=True))


def first_order_table(
    image: NDArray[Any],
    labels: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    bins: int | None = None,
    width: float | None = None,
    peaks: bool = False,
    workers: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Intensity features of every region of a label map.

    Parameters
    ----------
    image
        ``(Z, Y, X)`` or ``(Y, X)`` intensities.
    labels
        Whole numbers of the same shape, 0 for the background.
    spacing
        Distance of voxel centres per axis in mm, needed for `peaks` only.
    bins, width
        How to discretise each region for `HISTOGRAM`, see `discretised`. With neither, whole intensities are taken as
        they are, and images of other numbers get no such columns.
    peaks
        Whether to add `PEAKS`, a hundred times the work of all others; three dimensions only.
    workers
        Threads; None for all cores.

    Returns
    -------
    table
        A column ``(L,)`` per quantity, one row per label in rising order.

    Raises
    ------
    ValueError
        For shapes that differ, intensities within a region that are NaN or infinite, or `peaks` without spacing.
    """
    array, shades = _checked_images(image, labels)
    if peaks and (spacing is None or array.ndim != 3):
        raise ValueError("peaks need axes (Z, Y, X) and a spacing in mm: a ball of 1 ml has no size in voxels")
    boxes = label_boxes(array, workers=workers)
    values, first = collected(shades, array, boxes)
    whole = np.issubdtype(shades.dtype, np.integer)
    groups = [STATISTICS, *([HISTOGRAM] if whole or bins or width else []), VOLUME_HISTOGRAM]

    def measure(row: int) -> FloatArray:
        own = np.sort(values[first[row] : first[row + 1]])
        if not whole and not (np.isfinite(own[0]) and np.isfinite(own[-1])):
            raise ValueError(f"label {boxes.values[row]} holds intensities that are NaN or infinite")
        found = [_statistics(own.astype(np.float64))]
        if len(groups) == 3:
            levels = own.astype(np.int64) if not bins and not width else discretised(own, bins=bins, width=width)
            found.append(_histogram(levels, bins))
        return np.concatenate([*found, _volume_histogram(own.astype(np.float64), 1.0 if whole else None)])

    names = [one.name for group in groups for one in group]
    rows = np.array(in_threads(measure, range(len(boxes)), workers=workers)).reshape(-1, len(names))
    table: dict[str, NDArray[Any]] = {"label": boxes.values, "voxel_count": boxes.voxels}
    table |= {name: rows[:, k] for k, name in enumerate(names)}
    return table | (_peaks(shades, array, boxes, checked_steps(spacing, 3), workers) if peaks else {})


def _checked_images(image: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    array, shades = checked_labels(labels), np.ascontiguousarray(image)
    if shades.shape != array.shape:
        raise ValueError(f"image of shape {shades.shape} does not fit labels of shape {array.shape}")
    return array, shades.view(np.uint8) if shades.dtype == np.bool_ else shades


def collected(image: NDArray[Any], labels: NDArray[Any], boxes: LabelBoxes) -> tuple[NDArray[Any], IntArray]:
    """Intensities of all regions, label after label, and where each begins ``(L + 1,)``; one pass over the map."""
    dense, rows = numbered(labels, boxes)
    first = np.concatenate([[0], np.cumsum(boxes.voxels)]).astype(np.int64)
    out = np.empty(first[-1], dtype=image.dtype)
    _collect(dense.ravel(), image.ravel(), rows, first[:-1].copy(), out)
    return out, first


@kernel
def _collect(labels, image, rows, place, out):  # type: ignore[no-untyped-def]
    """Copies each intensity to the next free place of its label."""
    for k in range(labels.shape[0]):
        if labels[k] != 0:
            row = rows[labels[k]]
            out[place[row]] = image[k]
            place[row] += 1


def _checked_values(values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} intensities are NaN or infinite")
    return array


@kernel
def _percentile(ordered, share):  # type: ignore[no-untyped-def]
    """Linear interpolation between sorted values."""
    place = share * (ordered.shape[0] - 1)
    low = int(np.floor(place))
    high = min(low + 1, ordered.shape[0] - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@kernel
def _statistics(ordered):  # type: ignore[no-untyped-def]
    """The values of `STATISTICS` from sorted float64."""
    out, n = np.full(18, np.nan), ordered.shape[0]
    if n == 0:
        return out
    total = squares = 0.0
    for value in ordered:
        total += value
        squares += value * value
    mean = total / n
    median = _percentile(ordered, 0.5)
    low, high = _percentile(ordered, 0.1), _percentile(ordered, 0.9)
    first, third = _percentile(ordered, 0.25), _percentile(ordered, 0.75)
    second = cubes = fourth = away = apart = inner = 0.0
    count = 0
    for value in ordered:
        gap = value - mean
        second += gap * gap
        cubes += gap**3
        fourth += gap**4
        away += abs(gap)
        apart += abs(value - median)
        if low <= value <= high:
            inner += value
            count += 1
    middle, robust = inner / count, 0.0
    for value in ordered:
        if low <= value <= high:
            robust += abs(value - middle)
    variance = second / n
    out[0], out[1] = mean, variance
    if ordered[0] < ordered[-1]:
        out[2], out[3] = cubes / n / variance**1.5, fourth / n / variance**2 - 3
    out[4], out[5], out[6], out[7], out[8] = median, ordered[0], low, high, ordered[-1]
    out[9], out[10], out[11], out[12] = third - first, ordered[-1] - ordered[0], away / n, robust / count
    out[13] = apart / n
    if mean != 0:
        out[14] = np.sqrt(variance) / mean
    if first + third != 0:
        out[15] = (third - first) / (third + first)
    out[16], out[17] = squares, np.sqrt(squares / n)
    return out


def _histogram(ordered: IntArray, bins: int | None) -> list[float]:
    """The values of `HISTOGRAM` from sorted bin numbers."""
    if not len(ordered):
        return [float("nan")] * len(HISTOGRAM)
    moments = _statistics(ordered.astype(np.float64))[:-2]
    start = 1 if bins else int(ordered[0])
    levels, counts = np.unique(ordered, return_counts=True)
    share = counts / len(ordered)
    most = levels[counts == counts.max()]
    mode = most[np.argmin(np.abs(most - moments[0]))]
    out = [*moments, float(mode), float(-(share * np.log2(share)).sum()) + 0.0, float((share**2).sum())]
    stop = max(bins or 0, int(ordered[-1]))
    if stop == start:
        return [*out, *[float("nan")] * 4]
    filled = np.zeros(stop - start + 1)
    filled[levels - start] = counts
    slope = np.gradient(filled)
    for at in (int(slope.argmax()), int(slope.argmin())):
        out += [float(slope[at]), float(at + start)]
    return out


def _volume_histogram(ordered: FloatArray, step: float | None) -> list[float]:
    """The values of `VOLUME_HISTOGRAM` from sorted intensities."""
    if not len(ordered):
        return [float("nan")] * len(VOLUME_HISTOGRAM)
    n, low, high = len(ordered), float(ordered[0]), float(ordered[-1])
    if high == low:
        return [float("nan")] * len(VOLUME_HISTOGRAM)
    size = (high - low) / _LEVELS if step is None else step
    levels = low + size * np.arange(int(np.ceil((high - low) / size - 1e-9)) + 2)
    # Rounding of a level must not move a voxel that lies on it.
    reached = 1 - np.searchsorted(ordered, levels - 1e-9 * size, side="left") / n
    volumes = [1 - float(np.searchsorted(ordered, low + share * (high - low), side="left")) / n for share in (0.1, 0.9)]
    heights = [float(levels[np.argmax(reached <= share)]) for share in (0.1, 0.9)]
    area = float(np.trapezoid(reached[:-1], (levels[:-1] - low) / (levels[-2] - low)))
    return [*volumes, *heights, volumes[0] - volumes[1], heights[0] - heights[1], area]


def _peaks(
    image: NDArray[Any], labels: NDArray[Any], boxes: LabelBoxes, steps: FloatArray, workers: int | None
) -> dict[str, NDArray[Any]]:
    reach = np.floor(_PEAK_RADIUS / steps + 1e-9).astype(np.int64)
    z, y = np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    left = _PEAK_RADIUS**2 - (z * steps[0]) ** 2 - (y * steps[1]) ** 2
    held = left >= -1e-9
    half = np.floor(np.sqrt(np.maximum(left[held], 0)) / steps[2] + 1e-9)
    ball = np.stack([z[held], y[held], half], axis=1).astype(np.int64)

    def measure(row: int) -> tuple[float, float]:
        start = np.maximum(boxes.start[row] - reach, 0)
        stop = np.minimum(boxes.stop[row] + reach, labels.shape)
        box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        values = image[box].astype(np.float64)
        sums, counts = np.zeros((2, *values.shape[:2], values.shape[2] + 1))
        np.cumsum(np.where(np.isfinite(values), values, 0), axis=2, out=sums[..., 1:])
        np.cumsum(np.isfinite(values), axis=2, out=counts[..., 1:])
        return _highest(np.ascontiguousarray(labels[box] == boxes.values[row]), values, sums, counts, ball)

    found = np.array(in_threads(measure, range(len(boxes)), workers=workers)).reshape(-1, 2)
    return {"local_peak": found[:, 0], "global_peak": found[:, 1]}


@kernel
def _highest(mask, values, sums, counts, ball):  # type: ignore[no-untyped-def]
    """Mean in the ball around the brightest voxel (the largest, of several) and the largest of all."""
    depth, height, width = mask.shape
    brightest, local, best = -np.inf, -np.inf, -np.inf
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if not mask[z, y, x]:
                    continue
                total = count = 0.0
                for k in range(ball.shape[0]):
                    v, w = z + ball[k, 0], y + ball[k, 1]
                    if 0 <= v < depth and 0 <= w < height:
                        a, b = max(x - ball[k, 2], 0), min(x + ball[k, 2] + 1, width)
                        total += sums[v, w, b] - sums[v, w, a]
                        count += counts[v, w, b] - counts[v, w, a]
                mean = total / count
                best = max(best, mean)
                if values[z, y, x] > brightest or (values[z, y, x] == brightest and mean > local):
                    brightest, local = values[z, y, x], mean
    return local, best
