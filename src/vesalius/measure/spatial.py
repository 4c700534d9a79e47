"""Where cells lie relative to each other: nearest neighbours, Ripley's K, pair correlation, Delaunay graph, Moran's I.

Points are ``(N, 2)`` places (y, x) in mm, or in pixels where there is no spacing, measured from the outer corner of
the image: the centre of pixel (i, j) lies at ``((i + 0.5) * spacing_y, (j + 0.5) * spacing_x)``. A `Window` says where
points could have been seen; without it no density and no statement on clustering makes sense.

Sources: Illian, Penttinen, Stoyan, Stoyan, Statistical Analysis and Modelling of Spatial Point Patterns (2008), ch. 4;
Ripley, J. R. Stat. Soc. B 1977, 39:172 (K, isotropic correction); Ohser and Stoyan, Biometrical J. 1981, 23:523
(translation correction); Clark and Evans, Ecology 1954, 35:445 with Donnelly 1978 for edges; Moran, Biometrika 1950.

Rule for too few points: with fewer than two points distances and K are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import Delaunay, QhullError, cKDTree
from scipy.special import ndtr

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray
from vesalius.core.randomness import generator
from vesalius.measure.arguments import checked_steps
from vesalius.measure.compiled import in_threads, kernel
from vesalius.measure.quantities import Quantity

CORRECTIONS = ("isotropic", "translation", "none")
_CODE = {"none": 0, "isotropic": 1, "translation": 2}
# Masks are coarsened to this many pixels a side before the correlation that the translation correction needs.
_FINEST_MASK = 1024

_ILLIAN, _DONNELLY = "Illian et al. 2008", "Clark and Evans 1954; Donnelly 1978"
QUANTITIES: tuple[Quantity, ...] = (
    Quantity("point_count", "count", "Number of points in the window."),
    Quantity("window_area", "mm2", "Area of the window in which points could be seen."),
    Quantity("point_density", "mm-2", "Points per area of the window.", _ILLIAN),
    Quantity("nearest_distance_mean", "mm", "Mean distance of a point to its nearest neighbour; NaN below two points."),
    Quantity("nearest_distance_median", "mm", "Median distance of a point to its nearest neighbour."),
    Quantity("clark_evans", "1", "Mean nearest distance over that under randomness: below 1 clustered.", _DONNELLY),
    Quantity("clark_evans_z", "1", "Standard score of the mean nearest distance under randomness.", _DONNELLY),
    Quantity("clark_evans_p", "1", "Two-sided p value of the Clark-Evans index.", _DONNELLY),
    Quantity("delaunay_degree_mean", "1", "Mean number of neighbours in the Delaunay graph."),
    Quantity("delaunay_length_mean", "mm", "Mean length of the edges of the Delaunay graph."),
    Quantity("ripley_radius", "mm", "Distance at which K, L and g are given."),
    Quantity("ripley_k", "mm2", "Mean number of further points within the radius of a point, over density.", _ILLIAN),
    Quantity("ripley_l", "mm", "Square root of K over pi: equals the radius under randomness.", _ILLIAN),
    Quantity("pair_correlation", "1", "Frequency of pairs at this distance over that under randomness.", _ILLIAN),
    Quantity("ripley_l_low", "mm", "Lower pointwise envelope of L under randomness.", _ILLIAN),
    Quantity("ripley_l_high", "mm", "Upper pointwise envelope of L under randomness.", _ILLIAN),
    Quantity("randomness_p", "1", "Monte-Carlo p value of the largest deviation of L from the radius.", _ILLIAN),
    Quantity("point_moran_i", "1", "Likeness of a value between neighbours: near 0 none, above alike.", "Moran 1950"),
    Quantity("point_moran_expected", "1", "Moran's I without spatial dependence, -1 / (n - 1).", "Moran 1950"),
    Quantity("point_moran_z", "1", "Standard score of Moran's I under random arrangement.", "Cliff and Ord 1981"),
    Quantity("point_moran_p", "1", "Two-sided p value of Moran's I: permutations where there are any, else normal."),
)


@dataclass(frozen=True, eq=False)
class Window:
    """The part of the plane that was observed: a rectangle from (0, 0), or the True pixels of a mask over it.

    Parameters
    ----------
    size
        ``(height, width)`` in mm, or pixels.
    mask
        ``(Y, X)`` bool spread over the rectangle; None for all of it.
    """

    size: tuple[float, float]
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(np.isfinite(side) and side > 0 for side in self.size):
            raise ValueError(f"a window needs a positive height and width, got {self.size}")
        if self.mask is not None and (np.ndim(self.mask) != 2 or not np.any(self.mask)):
            raise ValueError("the mask of a window must have axes (Y, X) and at least one True pixel")

    @classmethod
    def of_image(
        cls, shape: tuple[int, ...], spacing: tuple[float, ...] | None = None, mask: NDArray[Any] | None = None
    ) -> Window:
        """The window of an image of `shape` (Y, X), or of the pixels of `mask`, of the same shape, that are not 0."""
        if len(shape) != 2:
            raise ValueError(f"a window has axes (Y, X), got shape {shape}")
        held = None if mask is None else np.asarray(mask) != 0
        if held is not None and held.shape != tuple(shape):
            raise ValueError(f"the mask must have the shape {shape} of the image, got {held.shape}")
        size = checked_steps(spacing, 2) * shape
        return cls((float(size[0]), float(size[1])), held)

    @property
    def area(self) -> float:
        """In mm², or pixels."""
        whole = self.size[0] * self.size[1]
        return whole if self.mask is None else whole * float(np.mean(self.mask))

    def contains(self, points: ArrayLike) -> NDArray[np.bool_]:
        """``(N,)``: which points lie in the window, its edge included."""
        places = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        inside = np.all((places >= 0) & (places <= self.size), axis=1)
        if self.mask is not None:
            shape = np.array(self.mask.shape)
            index = np.clip(np.where(inside[:, None], places, 0) / self.size * shape, 0, shape - 1).astype(np.int64)
            inside &= self.mask[index[:, 0], index[:, 1]]
        return np.asarray(inside)

    def random_points(self, count: int, draw: np.random.Generator) -> FloatArray:
        """``(count, 2)`` independent uniform points: complete spatial randomness with a given number."""
        if self.mask is None:
            return draw.random((count, 2)) * self.size
        pixels = self._held[draw.integers(len(self._held), size=count)]
        return (pixels + draw.random((count, 2))) * self.size / self.mask.shape

    @cached_property
    def _held(self) -> NDArray[np.int64]:
        return np.argwhere(np.ones((1, 1)) if self.mask is None else self.mask)

    @cached_property
    def covariance(self) -> tuple[FloatArray, FloatArray]:
        """Area shared by the mask and its shift by whole pixels, ``(2 Y + 1, 2 X + 1)`` around no shift; pixel size.

        Between whole shifts the area is bilinear, so that interpolation is exact. Masks above 1024 pixels a side are
        averaged over blocks first.
        """
        share = np.ones((1, 1)) if self.mask is None else self.mask.astype(np.float64)
        step = np.array(self.size) / share.shape
        block = -(-max(share.shape) // _FINEST_MASK)
        if block > 1:
            share = np.pad(share, [(0, -side % block) for side in share.shape])
            share = share.reshape(share.shape[0] // block, block, -1, block).mean((1, 3))
        padded = [2 * side + 1 for side in share.shape]
        spectrum = np.fft.rfft2(share, padded)
        shared = np.fft.fftshift(np.fft.irfft2(np.abs(spectrum) ** 2, padded))
        return np.maximum(shared, 0) * float(np.prod(step * block)), step * block


def nearest_distances(points: ArrayLike, others: ArrayLike | None = None) -> FloatArray:
    """``(N,)`` distance of each point to its nearest neighbour, or to the nearest of `others`; NaN if there is none."""
    places = _places(points)
    if others is not None:
        goal = _places(others, "others")
        return cKDTree(goal).query(places)[0] if len(goal) else np.full(len(places), np.nan)
    if len(places) < 2:
        return np.full(len(places), np.nan)
    return cKDTree(places).query(places, k=2)[0][:, 1]


def clark_evans(points: ArrayLike, window: Window, *, simulations: int = 199, seed: int = 0) -> dict[str, float]:
    """Clark-Evans index with its standard score and p value.

    In a rectangle the expected mean distance has Donnelly's correction for the edge (fitted for 7 points and more). In
    a masked window mean, spread and p value come from `simulations` of randomness drawn with `seed`.
    """
    places = _inside(points, window)
    number, area = len(places), window.area
    if simulations < 2:
        raise ValueError(f"at least 2 simulations are needed, got {simulations}")
    if number < 2:
        return dict.fromkeys(("clark_evans", "clark_evans_z", "clark_evans_p"), float("nan"))
    mean = float(np.mean(nearest_distances(places)))
    if window.mask is None:
        around = 2 * sum(window.size)
        expected = 0.5 * np.sqrt(area / number) + (0.0514 + 0.0412 / np.sqrt(number)) * around / number
        spread = np.sqrt(0.0703 * area / number**2 + 0.037 * around * np.sqrt(area / number**5))
        score = (mean - expected) / spread
        chance = 2 * ndtr(-abs(score))
    else:
        drawn = np.array(
            [
                np.mean(nearest_distances(window.random_points(number, generator(seed, "clark-evans", k))))
                for k in range(simulations)
            ]
        )
        expected, spread = drawn.mean(), drawn.std(ddof=1)
        score = (mean - expected) / spread
        chance = (1 + np.sum(np.abs(drawn - expected) >= abs(mean - expected))) / (simulations + 1)
    return {"clark_evans": float(mean / expected), "clark_evans_z": float(score), "clark_evans_p": float(chance)}


def ripley(
    points: ArrayLike,
    window: Window,
    radii: ArrayLike | None = None,
    *,
    others: ArrayLike | None = None,
    correction: str | None = None,
    bandwidth: float | None = None,
) -> dict[str, FloatArray]:
    """Ripley's K, L and the pair correlation g, each ``(R,)``; of two kinds of points where `others` are given.

    K(r) is the area of the window times the weighted number of ordered pairs not farther apart than r, over n (n - 1),
    or over n m for two kinds (cross-type K).

    Parameters
    ----------
    points, others
        ``(N, 2)`` and ``(M, 2)`` in the window.
    radii
        Rising, from 0 to less than the shorter side; None takes 50 steps up to a quarter of it, beyond which the
        estimate is unsteady, but not beyond 1000 expected neighbours.
    correction
        ``isotropic`` (a pair counts by the share of the circle around the first point through the second that lies in
        the window), ``translation`` (by the share of the window that overlaps its shift by the pair; also for masks) or
        ``none``. None is ``isotropic`` for rectangles, ``translation`` for masks.
    bandwidth
        Half width of the Epanechnikov kernel of g; None is ``0.15 sqrt(5 / intensity)`` (Stoyan's rule). g is NaN at
        radius 0 and too low at radii below the bandwidth.
    """
    places = _inside(points, window)
    goal = places if others is None else _inside(others, window, "others")
    steps = _radii(radii, window, len(goal))
    way = correction or ("isotropic" if window.mask is None else "translation")
    if way not in CORRECTIONS:
        raise ValueError(f"correction must be one of {', '.join(CORRECTIONS)}, got {way!r}")
    if way == "isotropic" and window.mask is not None:
        raise ValueError("the isotropic correction is for rectangles; masked windows take 'translation'")
    pairs = len(places) * (len(goal) - (others is None))
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    width = bandwidth or 0.15 * np.sqrt(5 * window.area / max(len(goal), 1))
    counted, smooth = _pair_sums(places, goal, others is None, steps, window, way, float(width))
    scale = window.area / pairs if pairs > 0 else float("nan")
    k, g = np.cumsum(counted) * scale, np.where(steps > 0, smooth, np.nan) * scale / (2 * np.pi)
    return {"ripley_radius": steps, "ripley_k": k, "ripley_l": np.sqrt(k / np.pi), "pair_correlation": g}


def randomness_test(
    points: ArrayLike,
    window: Window,
    radii: ArrayLike | None = None,
    *,
    simulations: int = 199,
    level: float = 0.95,
    seed: int = 0,
    correction: str | None = None,
) -> dict[str, Any]:
    """Ripley's functions with envelopes of complete spatial randomness of the same number of points.

    Returns
    -------
    dict
        Everything of `ripley`; ``ripley_l_low`` and ``ripley_l_high`` ``(R,)``, the k-th smallest and largest of the
        simulations with ``k = (1 - level) / 2 (simulations + 1)`` rounded down, which hold at one radius chosen in
        advance; ``randomness_p``, of the largest ``|L(r) - r|``, which holds for all radii together.

    Raises
    ------
    ValueError
        For fewer simulations than the level needs (39 for 0.95).
    """
    rank = int((1 - level) / 2 * (simulations + 1) + 1e-9)
    if not 0 < level < 1 or rank < 1:
        raise ValueError(f"an envelope of level {level} needs more than {simulations} simulations (39 for 0.95)")
    found: dict[str, Any] = dict(ripley(points, window, radii, correction=correction))
    number, steps = len(_places(points)), found["ripley_radius"]
    if number < 2:
        empty = np.full(len(steps), np.nan)
        return found | {"ripley_l_low": empty, "ripley_l_high": empty.copy(), "randomness_p": float("nan")}
    drawn = np.empty((simulations, len(steps)))
    for k in range(simulations):
        random = window.random_points(number, generator(seed, "ripley", k))
        drawn[k] = ripley(random, window, steps, correction=correction)["ripley_l"]
    largest = np.abs(drawn - steps).max(1)
    chance = (1 + np.sum(largest >= np.abs(found["ripley_l"] - steps).max())) / (simulations + 1)
    order = np.sort(drawn, axis=0)
    return found | {"ripley_l_low": order[rank - 1], "ripley_l_high": order[-rank], "randomness_p": float(chance)}


def delaunay_pairs(points: ArrayLike, *, longest: float | None = None) -> NDArray[np.int64]:
    """``(E, 2)`` rows of points joined in the Delaunay graph, each pair once and rising, none above `longest`.

    Points on one line, or fewer than three, have no triangles and no pairs.
    """
    places = _places(points)
    try:
        corners = Delaunay(places).simplices if len(places) >= 3 else np.zeros((0, 3), dtype=np.int64)
    except QhullError:
        corners = np.zeros((0, 3), dtype=np.int64)
    edges = np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]]), axis=1)
    pairs = np.unique(edges.astype(np.int64), axis=0)
    if longest is not None:
        pairs = pairs[np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1) <= longest]
    return pairs


def density_map(
    points: ArrayLike, window: Window, shape: tuple[int, int], *, bandwidth: float | None = None
) -> FloatArray:
    """Points per mm² (or per pixel area) on a grid of `shape` over the window, NaN outside it.

    A Gaussian of standard deviation `bandwidth` (None: an eighth of the shorter side) around each point, cut off at
    four of them, divided by the part of it that lies in the window (uniform edge correction, Diggle 1985).
    """
    places = _inside(points, window)
    width = bandwidth or min(window.size) / 8
    if min(shape) < 1 or not width > 0:
        raise ValueError(f"shape and bandwidth must be positive, got {shape} and {width}")
    pixel = np.array(window.size) / shape
    index = np.clip(places / pixel, 0, np.array(shape) - 1).astype(np.int64)
    count = np.zeros(shape)
    np.add.at(count, (index[:, 0], index[:, 1]), 1.0)
    share = np.ones(shape)
    if window.mask is not None:
        centres = np.stack(np.meshgrid(*[np.arange(side) + 0.5 for side in shape], indexing="ij"), -1) * pixel
        share = window.contains(centres.reshape(-1, 2)).reshape(shape).astype(np.float64)
    around = gaussian_filter(share, width / pixel, mode="constant")
    smooth = gaussian_filter(count, width / pixel, mode="constant") / float(np.prod(pixel))
    return np.where(share > 0, smooth / np.where(share > 0, around, 1.0), np.nan)


def moran(values: ArrayLike, pairs: NDArray[np.int64], *, permutations: int = 0, seed: int = 0) -> dict[str, float]:
    """Moran's I of a value per point with weight 1 for neighbours, e.g. `delaunay_pairs`.

    Parameters
    ----------
    values
        ``(N,)``, finite.
    pairs
        ``(E, 2)`` rows that are neighbours, each pair once.
    permutations
        How often values are shuffled for the p value; 0 takes the normal approximation with the variance under random
        arrangement (Cliff and Ord 1981, needs 4 points). NaN for constant values or no pairs.
    """
    held = np.asarray(values, dtype=np.float64)
    if held.ndim != 1 or not np.isfinite(held).all():
        raise ValueError(f"values must have axes (N,) and be finite, got shape {held.shape}")
    number, edges = len(held), len(pairs)
    off = held - held.mean() if number else held
    squares = float(off @ off)
    expected = -1 / (number - 1) if number > 1 else float("nan")
    names = ("point_moran_i", "point_moran_expected", "point_moran_z", "point_moran_p")
    if edges == 0 or squares == 0 or number < 4:
        return dict.fromkeys(names, float("nan")) | {"point_moran_expected": expected}

    def index(values: FloatArray) -> float:
        return number / edges * float(values[pairs[:, 0]] @ values[pairs[:, 1]]) / squares

    found = index(off)
    degree = np.bincount(pairs.ravel(), minlength=number)
    s0, s1, s2 = 2.0 * edges, 4.0 * edges, 4.0 * float(degree @ degree)
    peak = number * float(np.sum(off**4)) / squares**2
    n = float(number)
    first = n * ((n * n - 3 * n + 3) * s1 - n * s2 + 3 * s0**2)
    second = peak * ((n * n - n) * s1 - 2 * n * s2 + 6 * s0**2)
    variance = (first - second) / ((n - 1) * (n - 2) * (n - 3) * s0**2) - expected**2
    score = (found - expected) / np.sqrt(variance) if variance > 0 else float("nan")
    chance = float(2 * ndtr(-abs(score)))
    if permutations > 0:
        draw = generator(seed, "moran")
        drawn = np.array([index(draw.permutation(off)) for _ in range(permutations)])
        chance = float(1 + np.sum(np.abs(drawn - expected) >= abs(found - expected))) / (permutations + 1)
    return dict(zip(names, (found, expected, float(score), chance), strict=True))


def spatial_summary(points: ArrayLike, window: Window, *, seed: int = 0) -> dict[str, float]:
    """Count, density, nearest distances, Clark-Evans index and Delaunay graph of the points in one image."""
    places = _inside(points, window)
    near = nearest_distances(places)
    pairs = delaunay_pairs(places)
    lengths = np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1)
    nan = float("nan")
    return {
        "point_count": float(len(places)),
        "window_area": window.area,
        "point_density": len(places) / window.area,
        "nearest_distance_mean": float(near.mean()) if len(near) > 1 else nan,
        "nearest_distance_median": float(np.median(near)) if len(near) > 1 else nan,
        **clark_evans(places, window, seed=seed),
        "delaunay_degree_mean": 2 * len(pairs) / len(places) if len(pairs) else nan,
        "delaunay_length_mean": float(lengths.mean()) if len(pairs) else nan,
    }


def _places(points: ArrayLike, name: str = "points") -> FloatArray:
    places = np.asarray(points, dtype=np.float64)
    if places.size == 0:
        return np.zeros((0, 2))
    if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
        raise ValueError(f"{name} must have axes (N, 2) and be finite, got shape {places.shape}")
    return places


def _inside(points: ArrayLike, window: Window, name: str = "points") -> FloatArray:
    places = _places(points, name)
    outside = int(np.sum(~window.contains(places)))
    if outside:
        raise ValueError(f"{outside} of {len(places)} {name} lie outside the window; keep those that it contains")
    return places


def _radii(radii: ArrayLike | None, window: Window, number: int) -> FloatArray:
    if radii is None:
        return np.linspace(0, min(min(window.size) / 4, np.sqrt(1000 * window.area / (np.pi * max(number, 1)))), 51)
    steps = np.atleast_1d(np.asarray(radii, dtype=np.float64))
    if steps.ndim != 1 or not np.isfinite(steps).all() or steps[0] < 0 or np.any(np.diff(steps) <= 0):
        raise ValueError("radii must be finite, not negative and rising")
    if steps[-1] >= min(window.size):
        raise ValueError(f"radii must stay below the shorter side {min(window.size):g}, got {steps[-1]:g}")
    return steps


def _pair_sums(
    places: FloatArray, goal: FloatArray, same: bool, steps: FloatArray, window: Window, way: str, width: float
) -> tuple[FloatArray, FloatArray]:
    """Weights of ordered pairs, by the first radius they lie within, and the kernel sum of g."""
    first, second = places[np.argsort(places[:, 0])], goal[np.argsort(goal[:, 0])]
    shared, pixel = np.zeros((1, 1)), np.ones(2)
    if way == "translation" and window.mask is not None:
        shared, pixel = window.covariance
    threads = available_cores() if len(first) > 2000 else 1

    def work(part: int) -> tuple[FloatArray, FloatArray]:
        counted, smooth = np.zeros(len(steps)), np.zeros(len(steps))
        _sum_pairs(
            first[part::threads], second, same, part, threads, steps, np.array(window.size), window.area, _CODE[way],
            shared, pixel, width, counted, smooth,
        )  # fmt: skip
        return counted, smooth

    sums = in_threads(work, range(threads))
    return np.sum([one for one, _ in sums], axis=0), np.sum([one for _, one in sums], axis=0)


@kernel
def _sum_pairs(first, second, same, part, stride, steps, size, area, way, shared, pixel, width, counted, smooth):  # type: ignore[no-untyped-def]
    """Sums over the ordered pairs of some points with all points of `second`, both sorted along y."""
    reach = steps[-1] + width
    begin = 0
    for i in range(len(first)):
        y, x = first[i, 0], first[i, 1]
        while begin < len(second) and second[begin, 0] < y - reach:
            begin += 1
        for j in range(begin, len(second)):
            dy, dx = second[j, 0] - y, second[j, 1] - x
            if dy > reach:
                break
            square = dy * dy + dx * dx
            if square > reach * reach or (same and j == i * stride + part):
                continue
            apart = np.sqrt(square)
            weight = 1.0
            if way == 1:
                weight = _circle(y, x, apart, size)
            elif way == 2 and len(shared) == 1:
                weight = area / ((size[0] - abs(dy)) * (size[1] - abs(dx)))
            elif way == 2:
                weight = area / _overlap(dy, dx, shared, pixel)
            if apart <= steps[-1]:
                counted[np.searchsorted(steps, apart)] += weight
            # A pair across the whole window has no finite weight; only g at its last radii could see it.
            if apart > 0 and weight < np.inf:
                k = np.searchsorted(steps, apart - width)
                while k < len(steps) and steps[k] < apart + width:
                    off = (steps[k] - apart) / width
                    smooth[k] += 0.75 * (1 - off * off) / width * weight / apart
                    k += 1


@kernel
def _circle(y, x, radius, size):  # type: ignore[no-untyped-def]
    """Full circle over the part of the circle around (y, x) inside the rectangle."""
    outside = 0.0
    for side in range(2):
        up = y if side == 0 else size[0] - y
        tilt = np.arccos(up / radius) if up < radius else 0.0
        outside += 2 * tilt
        for end in range(2):
            across = x if end == 0 else size[1] - x
            lean = np.arccos(across / radius) if across < radius else 0.0
            if side == 0:
                outside += 2 * lean
            # Around a corner both sides took away the same arc.
            if tilt + lean > np.pi / 2:
                outside -= tilt + lean - np.pi / 2
    return 2 * np.pi / (2 * np.pi - outside)


@kernel
def _overlap(dy, dx, shared, pixel):  # type: ignore[no-untyped-def]
    """Area that a masked window shares with its shift by (dy, dx)."""
    v, u = dy / pixel[0] + shared.shape[0] // 2, dx / pixel[1] + shared.shape[1] // 2
    i, j = min(int(v), shared.shape[0] - 2), min(int(u), shared.shape[1] - 2)
    a, b = v - i, u - j
    upper = (1 - b) * shared[i, j] + b * shared[i, j + 1]
    lower = (1 - b) * shared[i + 1, j] + b * shared[i + 1, j + 1]
    return (1 - a) * upper + a * lower
