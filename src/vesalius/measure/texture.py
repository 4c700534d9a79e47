"""Texture of the grey levels inside labels, for many labels in one call: definitions of IBSI 1.

Source of every formula: Image Biomarker Standardisation Initiative, reference manual, section 3.6
(arXiv:1612.07003v11; Zwanenburg et al., Radiology 2020, 295:328), after Haralick, Shanmugam and Dinstein (IEEE Trans.
SMC 1973).

Grey levels are whole numbers from 1; 0 takes a pixel out. `fixed_bins` and `fixed_width` make them. Pairs, runs, zones
and neighbourhoods never leave the label. Neighbours are counted in pixels, so anisotropic images should be resampled.

How directions and slices are put together (`method`): ``2D_avg`` a matrix per slice and direction, features averaged;
``2D_comb`` a matrix per slice, all directions in it, features averaged over slices; ``2_5D_avg`` a matrix per
direction, all slices in it; ``2_5D_comb`` one matrix of the four directions in the plane; ``3D_avg`` a matrix for each
of 13 directions; ``3D_comb`` one matrix of all 13. Only 3D looks across slices (the first axis). Matrices without an
entry take no part in an average, nor do undefined features.

Undefined features are NaN: all of a label without a pair (run, zone), the correlation of a label of one grey level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.environment import available_cores
from vesalius.measure.boxes import LabelBoxes, checked_labels, label_boxes
from vesalius.measure.compiled import in_threads, kernel
from vesalius.measure.quantities import Quantity

METHODS = ("2D_avg", "2D_comb", "2_5D_avg", "2_5D_comb", "3D_avg", "3D_comb")
# Below this many pixels a thread costs more than it saves.
_SMALL = 1 << 20
# Sums of two levels index a table; finer levels than this make matrices that are empty nearly everywhere.
MOST_LEVELS = 4096

# (name, IBSI tag, meaning); the order is that of the kernels.
_PAIRS = (
    ("joint_maximum", "joint_max", "Share of the most frequent pair"),
    ("joint_average", "joint_avg", "Mean grey level of the pairs"),
    ("joint_variance", "joint_var", "Variance of the grey level of the pairs"),
    ("joint_entropy", "joint_entr", "Entropy of the pairs in bits: disorder"),
    ("difference_average", "diff_avg", "Mean difference of neighbours in grey levels"),
    ("difference_variance", "diff_var", "Variance of the difference of neighbours"),
    ("difference_entropy", "diff_entr", "Entropy in bits of the difference of neighbours"),
    ("sum_average", "sum_avg", "Mean sum of neighbours"),
    ("sum_variance", "sum_var", "Variance of the sum of neighbours"),
    ("sum_entropy", "sum_entr", "Entropy in bits of the sum of neighbours"),
    ("energy", "energy", "Sum of squared shares of the pairs (angular second moment): uniformity"),
    ("contrast", "contrast", "Mean squared difference of neighbours"),
    ("dissimilarity", "dissimilarity", "Mean absolute difference of neighbours"),
    ("inverse_difference", "inv_diff", "Mean of 1 / (1 + difference): homogeneity"),
    ("inverse_difference_normalised", "inv_diff_norm", "Mean of 1 / (1 + difference / number of levels)"),
    ("inverse_difference_moment", "inv_diff_mom", "Mean of 1 / (1 + squared difference): homogeneity"),
    ("inverse_difference_moment_normalised", "inv_diff_mom_norm", "Mean of 1 / (1 + (difference / levels) squared)"),
    ("inverse_variance", "inv_var", "Mean of 1 / squared difference, equal neighbours counting 0"),
    ("correlation", "corr", "Correlation of neighbours; NaN where all are equal"),
    ("autocorrelation", "auto_corr", "Mean product of neighbours"),
    ("cluster_tendency", "clust_tend", "Second central moment of the sum of neighbours"),
    ("cluster_shade", "clust_shade", "Third central moment of the sum of neighbours"),
    ("cluster_prominence", "clust_prom", "Fourth central moment of the sum of neighbours"),
    ("information_correlation_1", "info_corr1", "(joint entropy - 2 marginal entropy) / marginal entropy"),
    ("information_correlation_2", "info_corr2", "Square root of 1 - exp(-2 (2 marginal entropy - joint entropy))"),
)
_SOURCE = "IBSI 1, arXiv:1612.07003, section "
GLCM = tuple(
    Quantity(f"glcm_{name}", "1", f"{meaning}, of the grey-level co-occurrence matrix.", f"{_SOURCE}3.6", f"cm_{tag}")
    for name, tag, meaning in _PAIRS
)

# Not of IBSI: from the pixels of the label alone, so that its edge does not stand out.
ROUGHNESS = (
    Quantity("gradient_mean", "intensity", "Mean length of the intensity gradient per pixel step inside the label."),
    Quantity("local_sd_mean", "intensity", "Mean standard deviation in 3 x 3 (x 3) pixels inside the label."),
)

QUANTITIES: tuple[Quantity, ...] = (*GLCM, *ROUGHNESS)


def fixed_bins(
    image: NDArray[Any],
    labels: NDArray[Any],
    bins: int = 32,
    *,
    value_range: tuple[float, float] | None = None,
    boxes: LabelBoxes | None = None,
) -> NDArray[np.uint16]:
    """Grey levels 1..`bins` of equal width (IBSI 2.7, fixed bin number); 0 outside every label and where not finite.

    Parameters
    ----------
    image, labels
        Of one shape, ``(Y, X)`` or ``(Z, Y, X)``.
    value_range
        Lowest and highest intensity of all labels together, so that levels can be compared between labels and images;
        what lies beyond counts as the end. None takes the range of each label, as IBSI does: the contrast of the label
        is then lost. A label of one intensity has level 1.
    """
    pixels, names = _same_place(image, labels)
    if not 1 <= bins <= MOST_LEVELS:
        raise ValueError(f"bins must lie in 1..{MOST_LEVELS}, got {bins}")
    if value_range is not None:
        low, high = (float(end) for end in value_range)
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(f"value_range must be finite and rising, got {value_range}")
        return _binned(pixels, names, low, (high - low) / bins, bins)
    out = np.zeros(names.shape, dtype=np.uint16)
    found = boxes or label_boxes(names, workers=threads_for(names.size))
    for row in range(len(found)):
        box = found.slices(row)
        inside = (names[box] == found.values[row]) & np.isfinite(pixels[box])
        values = pixels[box][inside].astype(np.float64)
        if values.size:
            low, width = float(values.min()), float(np.ptp(values)) / bins
            levels = np.minimum(np.floor((values - low) / width) + 1, bins) if width > 0 else np.ones(values.size)
            out[box][inside] = levels
    return out


def fixed_width(image: NDArray[Any], labels: NDArray[Any], width: float, *, lowest: float) -> NDArray[np.uint16]:
    """Grey levels ``floor((image - lowest) / width) + 1``, at least 1 (IBSI 2.7, fixed bin size); 0 as in `fixed_bins`.

    Raises
    ------
    ValueError
        If the highest level would exceed 4096.
    """
    pixels, names = _same_place(image, labels)
    if not (np.isfinite(width) and width > 0 and np.isfinite(lowest)):
        raise ValueError(f"width must be positive and lowest finite, got {width} and {lowest}")
    held = pixels[(names > 0) & np.isfinite(pixels)]
    most = int((float(held.max()) - lowest) // width) + 1 if held.size else 1
    if most > MOST_LEVELS:
        raise ValueError(f"bins of width {width} from {lowest} make {most} levels, at most {MOST_LEVELS} are allowed")
    return _binned(pixels, names, lowest, width, max(most, 1))


def _binned(pixels: NDArray[Any], names: NDArray[Any], low: float, width: float, most: int) -> NDArray[np.uint16]:
    out = np.zeros(names.shape, dtype=np.uint16)
    held = (names > 0) & np.isfinite(pixels)
    levels = np.floor((pixels[held].astype(np.float64) - low) / width) + 1
    out[held] = np.clip(levels, 1, most)
    return out


def cooccurrence(
    levels: NDArray[Any],
    labels: NDArray[Any],
    *,
    method: str | None = None,
    distance: int = 1,
    level_count: int | None = None,
    boxes: LabelBoxes | None = None,
) -> dict[str, NDArray[np.float64]]:
    """The 25 features of the grey-level co-occurrence matrix of every label, ``(L,)`` each, labels in rising order.

    Parameters
    ----------
    levels
        ``(Y, X)`` or ``(Z, Y, X)`` grey levels from 1 to 4096; 0 leaves a pixel out.
    labels
        Whole numbers of the same shape, 0 for the background.
    method
        One of `METHODS` (see the top of this module); None is ``2D_comb`` for images and ``3D_comb`` for volumes.
    distance
        Distance of the two of a pair in pixels along each direction (Chebyshev).
    level_count
        The number of grey levels of the two normalised features; None is the highest level inside each label.
    boxes
        `label_boxes(labels)`, where it is at hand.

    Raises
    ------
    ValueError
        For shapes that differ, levels out of range, an unknown method.
    """
    if distance < 1:
        raise ValueError(f"distance must be at least 1 pixel, got {distance}")
    grey, names, found = _prepared(levels, labels, boxes)
    way = method or ("2D_comb" if np.ndim(labels) == 2 else "3D_comb")
    if way not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {way!r}")
    steps = _directions(3 if way.startswith("3D") else 2) * distance
    out = np.full((len(found), len(_PAIRS)), np.nan)
    most = int(grey.max()) if grey.size else 0

    def work(rows: slice) -> None:
        _cooccurrence(
            grey, names, found.values[rows], *_box_table(found, rows), steps, way.startswith("2D"),
            way.endswith("avg"), most, level_count or 0, out[rows],
        )  # fmt: skip

    in_threads(work, _shares(len(found), threads_for(names.size)))
    return {quantity.name: out[:, column] for column, quantity in enumerate(GLCM)}


def roughness(
    image: NDArray[Any], labels: NDArray[Any], *, boxes: LabelBoxes | None = None
) -> dict[str, NDArray[np.float64]]:
    """Mean gradient and mean local standard deviation (divisor n) of each label, ``(L,)`` each.

    The gradient takes central differences of pixels of the label, one-sided where a neighbour is missing, 0 where both
    are. `image` and `labels` are ``(Y, X)`` or ``(Z, Y, X)``; pixels that are not finite are left out.
    """
    pixels, names = _same_place(checked_pixels(image), labels)
    out = per_label(
        _roughness, pixels, names, boxes or label_boxes(names, workers=threads_for(names.size)), len(ROUGHNESS)
    )
    return {one.name: out[:, column] for column, one in enumerate(ROUGHNESS)}


def checked_pixels(image: NDArray[Any]) -> NDArray[Any]:
    """C-contiguous pixels of a type that the kernels are compiled for."""
    pixels = np.asarray(image)
    if pixels.dtype.kind not in "biuf":
        raise ValueError(f"image must hold real numbers, got {pixels.dtype}")
    if pixels.dtype not in (np.uint8, np.uint16, np.int16, np.float32, np.float64):
        pixels = pixels.astype(np.float64)
    return np.ascontiguousarray(pixels)


def per_label(
    work: Callable[..., None], pixels: NDArray[Any], names: NDArray[Any], boxes: LabelBoxes, columns: int
) -> NDArray[np.float64]:
    """``(L, columns)`` that the kernel ``work(pixels, names, values, starts, stops, out)`` fills in, all 3-D."""
    out = np.full((len(boxes), columns), np.nan)
    shape = (1,) * (3 - names.ndim) + names.shape
    whole, held = pixels.reshape(shape), names.reshape(shape)
    in_threads(
        lambda rows: work(whole, held, boxes.values[rows], *_box_table(boxes, rows), out[rows]),
        _shares(len(boxes), threads_for(names.size)),
    )
    return out


def _directions(ndim: int) -> NDArray[np.int64]:
    """``(4, 3)`` or ``(13, 3)``: one of each pair of opposite steps to the neighbours."""
    steps = [(z, y, x) for z in (0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if (z, y, x) > (0, 0, 0)]
    return np.array([step for step in steps if ndim == 3 or step[0] == 0], dtype=np.int64)


def _same_place(image: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    pixels, names = np.asarray(image), checked_labels(labels)
    if pixels.shape != names.shape:
        raise ValueError(f"image of shape {pixels.shape} and labels of shape {names.shape} differ")
    return pixels, names


def _prepared(
    levels: NDArray[Any], labels: NDArray[Any], boxes: LabelBoxes | None
) -> tuple[NDArray[np.uint16], NDArray[Any], LabelBoxes]:
    """Levels and labels with three axes, and the boxes of the labels."""
    grey, names = _same_place(checked_labels(levels, name="levels"), labels)
    if grey.size and int(grey.max()) > MOST_LEVELS:
        raise ValueError(f"levels must not exceed {MOST_LEVELS}, got {int(grey.max())}")
    found = boxes or label_boxes(names, workers=threads_for(names.size))
    shape = (1,) * (3 - names.ndim) + names.shape
    return grey.astype(np.uint16, copy=False).reshape(shape), names.reshape(shape), found


def _box_table(found: LabelBoxes, rows: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and stops of some boxes with three axes."""
    start, stop = found.start[rows], found.stop[rows]
    flat = 3 - start.shape[1]
    return np.pad(start, ((0, 0), (flat, 0))), np.pad(stop, ((0, 0), (flat, 0)), constant_values=1)


def threads_for(pixels: int) -> int:
    """How many threads are worth starting for an image of so many pixels."""
    return 1 if pixels < _SMALL else available_cores()


def _shares(rows: int, threads: int) -> list[slice]:
    """Every n-th row for each of n threads, so that a stretch of large labels is shared."""
    pieces = max(1, min(threads, rows))
    return [slice(k, None, pieces) for k in range(pieces)]


@kernel
def _present(grey, names, label, low, high, rank):  # type: ignore[no-untyped-def]
    """Rising levels inside a label; `rank` holds the place of each among them."""
    rank[:] = -1
    for z in range(low[0], high[0]):
        for y in range(low[1], high[1]):
            for x in range(low[2], high[2]):
                if names[z, y, x] == label:
                    rank[grey[z, y, x]] = 0
    rank[0] = -1
    count = 0
    for level in range(1, len(rank)):
        if rank[level] == 0:
            rank[level] = count
            count += 1
    value = np.empty(count, dtype=np.int64)
    for level in range(1, len(rank)):
        if rank[level] >= 0:
            value[rank[level]] = level
    return value


@kernel
def _cooccurrence(grey, names, values, starts, stops, steps, by_slice, by_step, most, count, out):  # type: ignore[no-untyped-def]
    """Features of some labels, the means over their matrices."""
    rank = np.empty(most + 1, dtype=np.int64)
    one = np.empty(out.shape[1])
    for row in range(len(values)):
        low, high = starts[row].copy(), stops[row].copy()
        value = _present(grey, names, values[row], low, high, rank)
        if len(value) == 0:
            continue
        matrix = np.zeros((len(value), len(value)))
        total, defined = np.zeros(len(one)), np.zeros(len(one))
        first, last = low[0], high[0]
        for slot in range(last - first if by_slice else 1):
            if by_slice:
                low[0], high[0] = first + slot, first + slot + 1
            for number in range(len(steps)):
                if by_step or number == 0:
                    matrix[:] = 0
                _pairs(grey, names, values[row], low, high, steps[number], rank, matrix)
                if by_step or number == len(steps) - 1:
                    _of_pairs(matrix, value, count if count > 0 else value[-1], one)
                    for k in range(len(one)):
                        if one[k] == one[k]:
                            total[k] += one[k]
                            defined[k] += 1
        for k in range(len(one)):
            if defined[k] > 0:
                out[row, k] = total[k] / defined[k]


@kernel
def _pairs(grey, names, label, low, high, step, rank, matrix):  # type: ignore[no-untyped-def]
    """Add the pairs of one direction, each counted once from its first to its second pixel."""
    dz, dy, dx = step
    for z in range(low[0], min(high[0], high[0] - dz)):
        for y in range(max(low[1], low[1] - dy), min(high[1], high[1] - dy)):
            for x in range(max(low[2], low[2] - dx), min(high[2], high[2] - dx)):
                if names[z, y, x] == label and names[z + dz, y + dy, x + dx] == label:
                    a, b = rank[grey[z, y, x]], rank[grey[z + dz, y + dy, x + dx]]
                    if a >= 0 and b >= 0:
                        matrix[a, b] += 1


@kernel
def _of_pairs(matrix, value, count, one):  # type: ignore[no-untyped-def]
    """The 25 features, in the order of the table, of the matrix made symmetric; all NaN for an empty one."""
    one[:] = np.nan
    whole = 2 * matrix.sum()
    if whole == 0:
        return
    one[:] = 0
    mean, marginal = 0.0, 0.0
    for a in range(len(value)):
        share = (matrix[a].sum() + matrix[:, a].sum()) / whole
        mean += share * value[a]
        if share > 0:
            marginal -= share * np.log2(share)
    apart, both = np.zeros(value[-1] - value[0] + 1), np.zeros(2 * value[-1] + 1)
    for a in range(len(value)):
        for b in range(a, len(value)):
            share = (matrix[a, b] + matrix[b, a]) / whole
            if share == 0:
                continue
            # Off the diagonal the entry stands for two.
            weight = share if a == b else 2 * share
            apart[value[b] - value[a]] += weight
            both[value[a] + value[b]] += weight
            one[0] = max(one[0], share)
            one[2] += weight * ((value[a] - mean) ** 2 + (value[b] - mean) ** 2) / 2
            one[3] -= weight * np.log2(share)
            one[10] += weight * share
            one[18] += weight * (value[a] - mean) * (value[b] - mean)
            one[19] += weight * value[a] * value[b]
    one[1] = mean
    _of_differences(apart, count, one)
    _of_sums(both, mean, one)
    one[18] = one[18] / one[2] if one[2] > 0 else np.nan
    # With equal marginals both entropies of the independent pair are twice the marginal one.
    one[23] = (one[3] - 2 * marginal) / marginal if marginal > 0 else np.nan
    one[24] = np.sqrt(1 - np.exp(-2 * max(2 * marginal - one[3], 0.0)))


@kernel
def _of_differences(apart, count, one):  # type: ignore[no-untyped-def]
    """Features that only depend on how far the two levels of a pair are apart."""
    for k in range(len(apart)):
        share = apart[k]
        if share == 0:
            continue
        one[4] += share * k
        one[6] -= share * np.log2(share)
        one[11] += share * k * k
        one[13] += share / (1 + k)
        one[14] += share / (1 + k / count)
        one[15] += share / (1 + k * k)
        one[16] += share / (1 + (k / count) ** 2)
        if k > 0:
            one[17] += share / (k * k)
    for k in range(len(apart)):
        one[5] += apart[k] * (k - one[4]) ** 2
    one[12] = one[4]


@kernel
def _of_sums(both, mean, one):  # type: ignore[no-untyped-def]
    """Features that only depend on the sum of the two levels of a pair."""
    for k in range(len(both)):
        share = both[k]
        if share == 0:
            continue
        off = k - 2 * mean
        one[9] -= share * np.log2(share)
        one[8] += share * off**2
        one[21] += share * off**3
        one[22] += share * off**4
    one[7] = 2 * mean
    one[20] = one[8]


@kernel
def _held(image, names, label, z, y, x):  # type: ignore[no-untyped-def]
    """Whether a place is in the image, in the label, and has a finite value."""
    if z < 0 or y < 0 or x < 0 or z >= names.shape[0] or y >= names.shape[1] or x >= names.shape[2]:
        return False
    return names[z, y, x] == label and np.isfinite(image[z, y, x])


@kernel
def _slope(image, names, label, z, y, x, dz, dy, dx):  # type: ignore[no-untyped-def]
    """Central difference along one axis within a label, one-sided where one neighbour is missing, else 0."""
    here = float(image[z, y, x])
    after, before, span = here, here, 0
    if _held(image, names, label, z + dz, y + dy, x + dx):
        after, span = float(image[z + dz, y + dy, x + dx]), span + 1
    if _held(image, names, label, z - dz, y - dy, x - dx):
        before, span = float(image[z - dz, y - dy, x - dx]), span + 1
    return (after - before) / span if span > 0 else 0.0


@kernel
def _roughness(image, names, values, starts, stops, out):  # type: ignore[no-untyped-def]
    """Mean gradient and mean local standard deviation of some labels, from their own pixels alone."""
    for row in range(len(values)):
        low, high, label = starts[row], stops[row], values[row]
        count, steep, uneven = 0, 0.0, 0.0
        for z in range(low[0], high[0]):
            for y in range(low[1], high[1]):
                for x in range(low[2], high[2]):
                    if not _held(image, names, label, z, y, x):
                        continue
                    a = _slope(image, names, label, z, y, x, 1, 0, 0)
                    b = _slope(image, names, label, z, y, x, 0, 1, 0)
                    c = _slope(image, names, label, z, y, x, 0, 0, 1)
                    near, total, squares = 0, 0.0, 0.0
                    for v in range(max(z - 1, low[0]), min(z + 2, high[0])):
                        for u in range(max(y - 1, low[1]), min(y + 2, high[1])):
                            for t in range(max(x - 1, low[2]), min(x + 2, high[2])):
                                if names[v, u, t] == label and np.isfinite(image[v, u, t]):
                                    # About the middle pixel, so that large values lose nothing.
                                    off = float(image[v, u, t]) - float(image[z, y, x])
                                    near, total, squares = near + 1, total + off, squares + off * off
                    steep += np.sqrt(a * a + b * b + c * c)
                    uneven += np.sqrt(max(squares / near - (total / near) ** 2, 0.0))
                    count += 1
        if count > 0:
            out[row, 0], out[row, 1] = steep / count, uneven / count
