"""Instance segmentation of touching cells and lesions: what a network learns, and objects from what it says.

Besides the foreground a network learns two maps: how deep a voxel lies in its object (1 on the ridge, as in Naylor et
al., IEEE TMI 2019, 38:448, scaled per object), and where two objects come close (after the weight map of Ronneberger
et al., MICCAI 2015). Objects are the prominent maxima of depth, grown inside the foreground by a watershed (Meyer,
Signal Processing 1994, 38:113), with the close places flooded last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import checked_labels
from vesalius.measure.compiled import in_threads, slabs
from vesalius.measure.instances import instance_scores
from vesalius.tasks.instance_kernels import (
    find_prominences,
    flood,
    hole_owners,
    mark_seeds,
    renumbered,
    run_distances,
    tell_near,
    to_depth,
)

IntMap = NDArray[np.int32]
Score = Callable[[NDArray[Any], NDArray[Any]], float]

# Width in voxels of the border map, and the sum of two distances from which it is 0 (where it would be 0.03).
_BORDER_SIGMA = 1.5
_BORDER_REACH = 5
# Relief is worked on in whole steps, so that rounding decides nothing and queues are one per step.
_LEVELS = 4095
# How far a border lowers the relief: not to 0, since depth still orders the voxels of thin objects.
_BORDER_DEPTH = 0.99

DEFAULTS: dict[str, float] = {"threshold": 0.5, "seed_threshold": 0.1, "min_size": 0.0, "smooth": 1.0}

MOST_TUNED = 40
"""Validation images that `tune_decoding` is asked to look at when a model is made."""


@dataclass(frozen=True, eq=False)
class InstanceCase:
    """One case to tune on: maps of a network ``(*S)``, the true instance map, and the spacing per axis or None."""

    foreground: NDArray[Any]
    distance: NDArray[Any]
    border: NDArray[Any] | None
    truth: NDArray[Any]
    spacing: Sequence[float] | None = None


def instance_targets(instances: NDArray[Any], spacing: Sequence[float] | None = None) -> NDArray[np.float16]:
    """What a network is to learn about separate objects.

    Parameters
    ----------
    instances
        ``(Y, X)`` or ``(Z, Y, X)`` whole numbers, one per object, 0 for the background.
    spacing
        Step per axis, e.g. in mm; None for voxels.

    Returns
    -------
    ``(2, *S)`` float16.

    Channel 0, depth: distance from the centre of a voxel to that of the nearest voxel outside its object, divided by
    the largest of the object; in (0, 1], 0 in the background. The edge of the array is not a border: an object that is
    cut off there goes on.

    Channel 1, border: ``exp(-(s - 1)² / 2σ²)`` with σ = 1.5 and s the sum of the distances to the nearest and the
    second nearest object (0 to the voxel's own), in voxels for any spacing; 0 from s = 5 on. It is 1 on both sides of
    a contact.

    Raises
    ------
    ValueError
        For other axes, negative or fractional numbers, or a bad spacing.
    """
    array = checked_labels(instances, name="instances")
    steps = checked_spacing(spacing, array.ndim)
    dense = _dense(array)
    out = np.empty((2, *array.shape), dtype=np.float16)
    out[0] = _depth(dense, steps)
    out[1] = _border(dense)
    return out


def _dense(array: NDArray[Any]) -> IntMap:
    """The same objects with small numbers."""
    top = int(array.max(initial=0))
    if top <= max(1 << 16, array.size):
        return np.ascontiguousarray(array, dtype=np.int32)
    values, flat = np.unique(array, return_inverse=True)
    return np.ascontiguousarray(flat.reshape(array.shape) + (values[0] != 0), dtype=np.int32)


def _depth(dense: IntMap, steps: tuple[float, ...]) -> NDArray[np.float32]:
    """Channel 0: squared distances axis by axis, inside runs of one label."""
    field = np.full(dense.shape, np.inf, dtype=np.float32)
    # Along x first: there the nearest end of the run is the answer, without any search.
    for axis in reversed(range(dense.ndim)):
        form = (math.prod(dense.shape[:axis]), dense.shape[axis], math.prod(dense.shape[axis + 1 :]))
        label, values, squared = dense.reshape(form), field.reshape(form), steps[axis] ** 2
        cut = 0 if axis else 2

        def work(
            part: tuple[int, int],
            label: IntMap = label,
            values: NDArray[np.float32] = values,
            squared: float = squared,
            cut: int = cut,
        ) -> None:
            piece = (slice(*part),) if cut == 0 else (slice(None), slice(None), slice(*part))
            run_distances(label[piece], values[piece], squared)

        in_threads(work, slabs(form[cut], 1 if dense.size < 1 << 16 else 8))
    to_depth(dense.reshape(-1), field.reshape(-1), int(dense.max(initial=0)))
    return field


def _border(dense: IntMap) -> NDArray[np.float32]:
    """Channel 1: surface voxels tell their neighbourhood which object is near."""
    ndim, reach = dense.ndim, _BORDER_REACH
    wide = [1] * (3 - ndim) + [n + 2 * reach for n in dense.shape]
    padded = np.pad(dense, reach).reshape(wide)
    span = np.arange(-reach + 1, reach)
    moves = np.stack(np.meshgrid(span[: 1 if ndim == 2 else None], span, span, indexing="ij"), -1).reshape(-1, 3)
    if ndim == 2:
        moves[:, 0] = 0
    lengths = (moves**2).sum(1)
    offsets = moves[(lengths > 0) & (lengths < reach * reach)]
    squares = (offsets**2).sum(1)
    jumps = offsets @ np.array([wide[1] * wide[2], wide[2], 1])
    faces = jumps[squares == 1]
    far = np.int16(10 * reach * reach)
    near = np.full((2, padded.size), far, dtype=np.int16)
    tell_near(padded.reshape(-1), faces, jumps, squares.astype(np.int16), near[0], near[1])
    inner = tuple(slice(reach, -reach) for _ in range(ndim))
    shape = wide[3 - ndim :]
    first, second = (np.sqrt(part.reshape(shape)[inner], dtype=np.float32) for part in near)
    first[dense != 0] = 0
    apart = first + second
    return np.where(apart < reach, np.exp(-((apart - 1) ** 2) / np.float32(2 * _BORDER_SIGMA**2)), np.float32(0))


def decode_instances(
    foreground: NDArray[Any],
    distance: NDArray[Any],
    border: NDArray[Any] | None = None,
    *,
    threshold: float = DEFAULTS["threshold"],
    seed_threshold: float = DEFAULTS["seed_threshold"],
    min_size: float = DEFAULTS["min_size"],
    spacing: Sequence[float] | None = None,
    smooth: float = DEFAULTS["smooth"],
) -> IntMap:
    """Separate objects from the maps of a network.

    Parameters
    ----------
    foreground
        ``(Y, X)`` or ``(Z, Y, X)``, probability that a voxel is part of any object.
    distance, border
        Same shape: the two channels of `instance_targets`, in 0..1 (values beyond are cut off). Without a border map
        the line between objects of different size may be one voxel off.
    threshold
        Foreground is where the probability is at least this.
    seed_threshold
        A maximum of the smoothed distance (times 1 - border / 2) becomes an object if it stands at least this high
        above the saddle that joins it to a higher one (its prominence). The highest of every connected piece of
        foreground always does.
    min_size
        Smaller objects are removed: area or volume in units of `spacing`, or number of voxels without one.
    spacing
        Step per axis; None for voxels.
    smooth
        Standard deviation of the Gaussian smoothing, in voxels of the axis with the smallest step. 0: none.

    Returns
    -------
    ``(*S)`` int32: 0 and objects 1, 2, ... in the order of their first voxels. Holes that one object surrounds belong
    to it.

    Raises
    ------
    ValueError
        For shapes that differ, NaN, or impossible settings.
    """
    maps = _Maps.of(foreground, distance, border, spacing=spacing, smooth=smooth)
    return maps.cleaned(maps.split(maps.tree(threshold), seed_threshold), min_size)


@dataclass(frozen=True, eq=False)
class _Tree:
    """Foreground at one threshold, padded by one voxel and flat, and its maxima."""

    inside: NDArray[np.bool_]
    place: NDArray[np.int64]
    """``(P,)`` flat index of each maximum."""
    prominence: NDArray[np.int64]
    """``(P,)`` in steps; larger than any step for the highest of a connected piece."""


@dataclass(frozen=True, eq=False)
class _Maps:
    """The maps of one case in steps of 1 / `_LEVELS`, padded by one voxel; what no setting but `smooth` changes."""

    foreground: NDArray[np.float32]
    peaks: NDArray[np.int32]
    """Distance, a little lower at borders, and smoothed: where seeds are looked for."""
    relief: NDArray[np.int32]
    """Distance, lowered at borders: what is flooded from the top."""
    voxel: float

    @classmethod
    def of(
        cls,
        foreground: NDArray[Any],
        distance: NDArray[Any],
        border: NDArray[Any] | None,
        *,
        spacing: Sequence[float] | None,
        smooth: float,
    ) -> _Maps:
        """Checked, smoothed and padded."""
        given = [np.asarray(part, dtype=np.float32) for part in (foreground, distance, border) if part is not None]
        shape = given[0].shape
        if len(shape) not in (2, 3) or any(part.shape != shape for part in given):
            raise ValueError(f"maps must share one shape (Y, X) or (Z, Y, X), got {[part.shape for part in given]}")
        if any(np.isnan(part).any() for part in given):
            raise ValueError("the maps hold NaN")
        if not 0 <= smooth < math.inf:
            raise ValueError(f"smooth must be 0 or more, got {smooth}")
        steps = checked_spacing(spacing, len(shape))
        depth = given[1].clip(0, 1)
        close = np.zeros_like(depth) if border is None else given[2].clip(0, 1)
        # Half of the border's depth is enough to part two maxima, and does not cut thin objects beside a neighbour.
        hills = depth * (1 - np.float32(0.5) * close)
        if smooth and hills.size:
            sigma = [smooth * min(steps) / step for step in steps]
            hills = ndimage.gaussian_filter(hills, sigma, mode="nearest", truncate=3.0)
        relief = depth * (1 - np.float32(_BORDER_DEPTH) * close)
        return cls(np.pad(given[0], 1, constant_values=-np.inf), _in_steps(hills), _in_steps(relief), math.prod(steps))

    def tree(self, threshold: float) -> _Tree:
        """The foreground at a threshold and the prominence of its maxima."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in 0..1 and above 0, got {threshold}")
        inside = (self.foreground >= threshold).reshape(-1)
        voxels = np.flatnonzero(inside)
        peaks = self.peaks.reshape(-1)
        # From the top; a stable order of 16-bit numbers is a radix sort.
        order = voxels[np.argsort((_LEVELS - peaks[voxels]).astype(np.uint16), kind="stable")]
        place, prominence = find_prominences(peaks, inside, order, _jumps(self.peaks.shape, full=True))
        return _Tree(inside, place, prominence)

    def split(self, tree: _Tree, seed_threshold: float) -> IntMap:
        """Objects of the foreground ``(*S)``, any numbers."""
        if not 0 < seed_threshold <= 1:
            raise ValueError(f"seed_threshold must lie in 0..1 and above 0, got {seed_threshold}")
        height = max(1, round(seed_threshold * _LEVELS))
        labels = np.zeros(tree.inside.shape, dtype=np.int32)
        full = _jumps(self.peaks.shape, full=True)
        mark_seeds(self.peaks.reshape(-1), tree.inside, tree.place[tree.prominence >= height], height, full, labels)
        relief = self.relief.reshape(-1)
        flood(relief, tree.inside, labels, _jumps(self.peaks.shape, full=False), _LEVELS)
        # Voxels that hang on their object by a corner.
        flood(relief, tree.inside, labels, full, _LEVELS)
        return labels.reshape(self.peaks.shape)[(slice(1, -1),) * self.peaks.ndim]

    def cleaned(self, labels: IntMap, min_size: float) -> IntMap:
        """Holes filled, small objects removed, the rest numbered from 1."""
        if not 0 <= min_size < math.inf:
            raise ValueError(f"min_size must be 0 or more, got {min_size}")
        filled = _filled(labels)
        counts = np.bincount(filled.reshape(-1), minlength=1)
        kept = counts * self.voxel >= min_size
        return renumbered(filled.reshape(-1), kept).reshape(filled.shape)


def _in_steps(values: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.pad(np.rint(values * _LEVELS).astype(np.int32), 1)


def _jumps(shape: tuple[int, ...], *, full: bool) -> NDArray[np.int64]:
    """Steps in a flat array of `shape` to the neighbours: those across faces, or all."""
    stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    moves = [move for move in product((-1, 0, 1), repeat=len(shape)) if any(move)]
    near = moves if full else [move for move in moves if sum(map(abs, move)) == 1]
    return np.array([sum(a * b for a, b in zip(move, stride, strict=True)) for move in near], dtype=np.int64)


def _filled(labels: IntMap) -> IntMap:
    """`labels` with the holes that a single object surrounds, none of them at the edge of the array."""
    import cc3d

    if not labels.size or not labels.any():
        return labels
    holes, count = cc3d.connected_components(labels == 0, connectivity=4 if labels.ndim == 2 else 6, return_N=True)
    if count < 2:
        return labels
    shape = (1,) * (3 - labels.ndim) + labels.shape
    owner = hole_owners(np.ascontiguousarray(holes).reshape(shape), np.ascontiguousarray(labels).reshape(shape), count)
    if not (owner > 0).any():
        return labels
    return np.where(holes > 0, np.maximum(owner, 0)[holes], labels).astype(np.int32)


def average_precision_50(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """``TP / (TP + FP + FN)`` at an IoU of 0.5; NaN without objects in either map."""
    return instance_scores(prediction, truth)["instance_ap_50"]


def tune_decoding(
    cases: Sequence[InstanceCase],
    score: Score = average_precision_50,
    *,
    thresholds: Sequence[float] = (0.5, 0.4, 0.6),
    seed_thresholds: Sequence[float] = (0.1, 0.05, 0.15, 0.2, 0.3, 0.4),
    smooths: Sequence[float] = (1.0, 2.0),
) -> dict[str, float]:
    """Settings of `decode_instances` with the highest mean score over `cases`.

    Maps are prepared once for each smoothing, maxima found once for each threshold, so that a setting costs little more
    than its watershed. Sizes to try follow the true objects: none, half of the smallest, a quarter of the median.

    Parameters
    ----------
    cases
        Cases that the network was not trained on.
    score
        ``score(prediction, truth)`` of two instance maps, higher is better; NaN leaves a case out of the mean.
    thresholds, seed_thresholds, smooths
        What to try; of equal settings the first wins.

    Returns
    -------
    ``threshold``, ``seed_threshold``, ``min_size`` and ``smooth``: keyword arguments of `decode_instances`. The
    defaults if no case has objects.
    """
    sizes = _sizes_to_try(cases)
    grid = list(product(smooths, thresholds, seed_thresholds, sizes))
    total, counted = np.zeros(len(grid)), np.zeros(len(grid), dtype=np.int64)
    for case in cases:
        values = np.array(list(_case_scores(case, score, smooths, thresholds, seed_thresholds, sizes)))
        total += np.nan_to_num(values)
        counted += ~np.isnan(values)
    if not counted.any():
        return dict(DEFAULTS)
    # Rounded, so that the order of a sum does not pick among equals.
    mean = np.round(total / np.maximum(counted, 1), 9)
    smooth, threshold, seed_threshold, min_size = grid[int(mean.argmax())]
    return {"threshold": threshold, "seed_threshold": seed_threshold, "min_size": min_size, "smooth": smooth}


def _case_scores(
    case: InstanceCase,
    score: Score,
    smooths: Sequence[float],
    thresholds: Sequence[float],
    seed_thresholds: Sequence[float],
    sizes: Sequence[float],
) -> list[float]:
    """Scores of one case for every setting, in the order of the grid."""
    found = []
    for smooth in smooths:
        maps = _Maps.of(case.foreground, case.distance, case.border, spacing=case.spacing, smooth=smooth)
        for threshold in thresholds:
            tree = maps.tree(threshold)
            for seed_threshold in seed_thresholds:
                objects = maps.split(tree, seed_threshold)
                found += [float(score(maps.cleaned(objects, size), case.truth)) for size in sizes]
    return found


def _sizes_to_try(cases: Sequence[InstanceCase]) -> list[float]:
    """0, half of the smallest true object and a quarter of the median one, in units of the spacing."""
    areas: list[NDArray[Any]] = []
    for case in cases:
        counts = np.bincount(_dense(checked_labels(case.truth, name="truth")).reshape(-1), minlength=1)[1:]
        areas.append(counts[counts > 0] * math.prod(checked_spacing(case.spacing, case.truth.ndim)))
    every = np.concatenate(areas) if areas else np.zeros(0)
    if not len(every):
        return [0.0]
    return sorted({0.0, float(every.min()) / 2, float(np.median(every)) / 4})
