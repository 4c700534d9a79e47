"""How far the surfaces of two masks lie apart: Hausdorff distance, mean distances, surface Dice, boundary IoU.

All numbers of a pair come from one pass: the surface of each mask as weighted points, and for each point the distance
to the nearest one of the other surface. Three definitions of the surface are at hand (`docs/surface-metrics.md` tells
how they and other programs differ):

``elements``
    cells of eight voxels (four pixels) through which the surface passes, weighted by its area in the cell
    (Nikolov et al., arXiv:1809.04430): the default, since a voxel count depends on the direction of a surface.
``voxels``
    boundary voxels, each with weight 1, as in MONAI and MedPy.
``mesh``
    the triangles of the marching-cubes surface itself, with exact distances of points to triangles: the reference,
    and slow (`vesalius.measure.surface_mesh`).

Empty masks: if both are empty they agree, so distances are 0 and the overlaps 1. If only one is, distances are inf and
the overlaps 0. With ``empty="nan"`` distances are NaN if a mask is empty, overlaps NaN if both are (Metrics Reloaded,
Maier-Hein et al., Nature Methods 2024, leaves the choice to the study).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_mask, checked_spacing
from vesalius.measure.boxes import LabelBoxes, checked_labels, label_boxes
from vesalius.measure.compiled import in_threads
from vesalius.measure.distance import nearest
from vesalius.measure.quantities import Quantity
from vesalius.measure.surface_band import band
from vesalius.measure.surface_bits import packed
from vesalius.measure.surface_mesh import mesh_distances
from vesalius.measure.surface_points import Surface, boundary_voxels, element_sizes, elements

DEFINITIONS = ("elements", "voxels", "mesh")
TOLERANCES = (1.0, 2.0)
PERCENTILES = (95.0,)
# A distance that equals a tolerance counts as within it, whatever was rounded in the square root.
_ROUNDING = 1e-9
_BINS = 2048
_NIKOLOV = "Nikolov et al., J Med Internet Res 2021, arXiv:1809.04430"
_RELOADED = "Metrics Reloaded: Maier-Hein et al., Nature Methods 2024, 21:195"
_EMPTY = "both masks empty: 0, only one: inf"
_EMPTY_OVERLAP = "both masks empty: 1, only one: 0"

Box = tuple[slice, slice, slice]


def _checked_numbers(
    tolerances: Sequence[float], percentiles: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    wide, ranks = tuple(float(one) for one in tolerances), tuple(float(one) for one in percentiles)
    if not all(np.isfinite(one) and one >= 0 for one in wide) or len(set(wide)) != len(wide):
        raise ValueError(f"tolerances must be different numbers of at least 0, got {tolerances}")
    if not all(0 < one <= 100 for one in ranks) or len(set(ranks)) != len(ranks):
        raise ValueError(f"percentiles must be different numbers above 0 and up to 100, got {percentiles}")
    return wide, ranks


def _text(number: float) -> str:
    return f"{number:.12g}".replace(".", "_").replace("-", "m").replace("+", "")


def quantities(
    tolerances: Sequence[float] = TOLERANCES, percentiles: Sequence[float] = PERCENTILES
) -> tuple[Quantity, ...]:
    """What `surface_distances` returns for these tolerances and percentiles, in order.

    A tolerance of 2 is called ``surface_dice_at_2``, one of 0.5 ``surface_dice_at_0_5``; a percentile of 95
    ``hausdorff_distance_95``.
    """
    wide, ranks = _checked_numbers(tolerances, percentiles)
    one_way = "Mean distance from the surface of the {} mask to that of the {}"
    return (
        Quantity(
            "hausdorff_distance", "mm", f"Largest distance from either surface to the other; {_EMPTY}.", _RELOADED
        ),
        *(
            Quantity(
                f"hausdorff_distance_{_text(rank)}",
                "mm",
                f"The larger of two distances: within it lie {rank:g} % of one surface, as seen from the other; "
                f"{_EMPTY}.",
                _NIKOLOV,
            )
            for rank in ranks
        ),
        Quantity("assd", "mm", f"Mean distance over both surfaces together; {_EMPTY}.", _RELOADED),
        Quantity("masd", "mm", f"Mean of the two mean distances from one surface to the other; {_EMPTY}.", _RELOADED),
        Quantity("mean_distance_first_to_second", "mm", f"{one_way.format('first', 'second')}; {_EMPTY}."),
        Quantity("mean_distance_second_to_first", "mm", f"{one_way.format('second', 'first')}; {_EMPTY}."),
        *(
            Quantity(
                f"surface_dice_at_{_text(width)}",
                "1",
                f"Part of both surfaces within {width:g} mm (pixels without geometry) of the other; {_EMPTY_OVERLAP}.",
                _NIKOLOV,
            )
            for width in wide
        ),
        Quantity(
            "boundary_iou",
            "1",
            f"Intersection over union of bands of 2 mm (pixels) inside both boundaries; {_EMPTY_OVERLAP}.",
            "Cheng et al., CVPR 2021, arXiv:2103.16562",
        ),
    )


QUANTITIES: tuple[Quantity, ...] = quantities()
_LABEL = Quantity("label", "1", "Value of the region in the label map.")
TABLE_QUANTITIES: tuple[Quantity, ...] = (_LABEL, *QUANTITIES)


@dataclass(frozen=True, eq=False)
class _Plan:
    """The checked options of a call."""

    spacing: tuple[float, float, float]
    flat: bool
    tolerances: tuple[float, ...]
    percentiles: tuple[float, ...]
    definition: str
    radius: float
    empty: str
    resolution: float | None
    sizes: FloatArray
    names: tuple[str, ...]

    def without_surface(self, empty_masks: int) -> dict[str, float]:
        """The answer where `empty_masks` of the two are empty; 0 stands for two equal masks."""
        distance, overlap = (np.inf, 0.0) if empty_masks == 1 else (0.0, 1.0)
        if self.empty == "nan" and empty_masks:
            distance, overlap = np.nan, 0.0 if empty_masks == 1 else np.nan
        return {name: overlap if name.startswith(("surface_dice", "boundary_iou")) else distance for name in self.names}


@dataclass(frozen=True)
class _Side:
    """From one surface to the other."""

    total: float
    summed: float
    largest: float
    within: tuple[float, ...]
    ranks: tuple[float, ...]


def surface_distances(
    first: NDArray[Any],
    second: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    tolerances: Sequence[float] = TOLERANCES,
    percentiles: Sequence[float] = PERCENTILES,
    definition: str = "elements",
    band_mm: float = 2.0,
    empty: str = "worst",
    resolution: float | None = None,
    workers: int | None = None,
) -> dict[str, float]:
    """Distances between the surfaces of two masks.

    Parameters
    ----------
    first, second
        ``(Z, Y, X)`` or ``(Y, X)`` of one shape; anything but 0 is inside. Exchanging them exchanges nothing but the
        two one-way means.
    spacing
        Step per axis in mm; None for pixels.
    tolerances
        For the surface Dice, in mm.
    percentiles
        For the Hausdorff distance, in (0, 100]. By area for ``elements`` and ``mesh`` (the smallest distance within
        which at least that part of the surface lies), interpolated linearly between voxels for ``voxels``.
    definition
        ``elements``, ``voxels`` or ``mesh``: see the top of this module.
    band_mm
        Width of the bands of the boundary IoU, whatever the definition.
    empty
        ``worst`` or ``nan``: the rule for empty masks at the top of this module.
    resolution
        For ``mesh``: triangles are cut until no edge is longer; None is the smallest spacing.
    workers
        Threads; all cores if None.

    Returns
    -------
    One number for each of ``quantities(tolerances, percentiles)``.

    Raises
    ------
    ValueError
        For shapes that differ, other axes, or an option out of range.
    """
    first, second, spacing = _by_memory(first, second, spacing, definition)
    one, two = checked_mask(first, "first"), checked_mask(second, "second")
    plan = _plan(one, two, spacing, tolerances, percentiles, definition, band_mm, empty, resolution)
    pair = [mask.reshape((1,) * (3 - mask.ndim) + mask.shape) for mask in (one, two)]
    bits = in_threads(lambda volume: packed(volume, 1, 0), pair, workers=workers)
    filled = [bool(array.any()) for array in bits]
    if not all(filled):
        return plan.without_surface(2 - sum(filled))
    box = _box(bits[0] | bits[1])
    bits = in_threads(lambda volume: packed(volume, 1, 1, box), pair, workers=workers)
    return _compare(bits[0], bits[1], box[2].stop - box[2].start, plan, workers)


def surface_table(
    first: NDArray[Any],
    second: NDArray[Any],
    spacing: Sequence[float] | None = None,
    labels: Sequence[int] | None = None,
    *,
    tolerances: Sequence[float] = TOLERANCES,
    percentiles: Sequence[float] = PERCENTILES,
    definition: str = "elements",
    band_mm: float = 2.0,
    empty: str = "worst",
    resolution: float | None = None,
    workers: int | None = None,
) -> dict[str, NDArray[Any]]:
    """`surface_distances` of every label of two label maps.

    Each map is read once to find the labels, then each label only within the box around it in both.

    Parameters
    ----------
    first, second
        ``(Z, Y, X)`` or ``(Y, X)`` of one shape: whole numbers, 0 for the background.
    labels
        Which labels; None for all that are in either map. Rows are in rising order.

    Returns
    -------
    Column ``label`` and one column for each of ``quantities(tolerances, percentiles)``, one row per label.

    Raises
    ------
    ValueError
        As `surface_distances`, and for labels that are negative, 0 or not whole.
    """
    first, second, spacing = _by_memory(first, second, spacing, definition)
    one, two = checked_labels(first, name="first"), checked_labels(second, name="second")
    plan = _plan(one, two, spacing, tolerances, percentiles, definition, band_mm, empty, resolution)
    pair = [array.reshape((1,) * (3 - array.ndim) + array.shape) for array in (one, two)]
    boxes = [label_boxes(volume, workers=workers) for volume in pair]
    if labels is None:
        wanted = np.union1d(boxes[0].values, boxes[1].values)
    else:
        wanted = np.unique(np.asarray(labels, dtype=np.int64))
        if wanted.size and wanted[0] < 1:
            raise ValueError(f"labels must be 1 or more, got {int(wanted[0])}")
    alone = 1 if len(wanted) > 1 else workers

    def work(label: int) -> dict[str, float]:
        rows = [_row(found, label) for found in boxes]
        held = [(found, row) for found, row in zip(boxes, rows, strict=True) if row is not None]
        if len(held) < 2:
            return plan.without_surface(2 - len(held))
        low = np.minimum(*(found.start[row] for found, row in held))
        high = np.maximum(*(found.stop[row] for found, row in held))
        z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        bits = [packed(volume, label, 1, (z, y, x)) for volume in pair]
        return _compare(bits[0], bits[1], x.stop - x.start, plan, alone)

    results = in_threads(work, [int(label) for label in wanted], workers=workers)
    columns = {name: np.array([result[name] for result in results], dtype=np.float64) for name in plan.names}
    return {"label": wanted.astype(np.int64), **columns}


def _by_memory(
    first: NDArray[Any], second: NDArray[Any], spacing: Sequence[float] | None, definition: str
) -> tuple[NDArray[Any], NDArray[Any], Sequence[float] | None]:
    """The same with the axes as they lie in memory (x first in NIfTI), so that nothing is copied.

    No distance depends on the order of the axes, but the triangles of a mesh do: of equal ways to cut a polygon the
    first is taken.
    """
    one, two = np.asarray(first), np.asarray(second)
    if definition != "mesh" and all(array.flags.f_contiguous and not array.flags.c_contiguous for array in (one, two)):
        return one.T, two.T, None if spacing is None else tuple(spacing)[::-1]
    return one, two, spacing


def _row(found: LabelBoxes, label: int) -> int | None:
    row = int(np.searchsorted(found.values, label))
    return row if row < len(found) and found.values[row] == label else None


def _plan(
    first: NDArray[Any],
    second: NDArray[Any],
    spacing: Sequence[float] | None,
    tolerances: Sequence[float],
    percentiles: Sequence[float],
    definition: str,
    band_mm: float,
    empty: str,
    resolution: float | None,
) -> _Plan:
    if first.shape != second.shape:
        raise ValueError(f"first and second must have one shape, got {first.shape} and {second.shape}")
    steps = checked_spacing(spacing, first.ndim)
    wide, ranks = _checked_numbers(tolerances, percentiles)
    if definition not in DEFINITIONS:
        raise ValueError(f"definition must be one of {', '.join(DEFINITIONS)}, got {definition!r}")
    if not (np.isfinite(band_mm) and band_mm > 0):
        raise ValueError(f"band_mm must be positive, got {band_mm}")
    if empty not in ("worst", "nan"):
        raise ValueError(f"empty must be 'worst' or 'nan', got {empty!r}")
    if resolution is not None and not (np.isfinite(resolution) and resolution > 0):
        raise ValueError(f"resolution must be positive, got {resolution}")
    sz, sy, sx = (1.0,) * (3 - len(steps)) + steps
    names = tuple(one.name for one in quantities(wide, ranks))
    sizes = element_sizes(steps)
    return _Plan((sz, sy, sx), first.ndim == 2, wide, ranks, definition, float(band_mm), empty, resolution, sizes,
                 names)  # fmt: skip


def _box(bits: NDArray[np.uint64]) -> Box:
    """The box around the set bits, of which there is at least one."""
    rows = np.bitwise_or.reduce(bits, axis=-1) != 0
    z, y = np.flatnonzero(rows.any(axis=1)), np.flatnonzero(rows.any(axis=0))
    words = np.bitwise_or.reduce(bits.reshape(-1, bits.shape[-1]), axis=0)
    x = np.flatnonzero((words[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).ravel())
    return (slice(int(z[0]), int(z[-1]) + 1), slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1))


def _compare(
    first: NDArray[np.uint64], second: NDArray[np.uint64], width: int, plan: _Plan, workers: int | None
) -> dict[str, float]:
    """Two masks in bits with a border of 1, none of them empty."""
    if np.array_equal(first, second):
        return plan.without_surface(0)
    bands = in_threads(
        lambda bits: band(bits, width, plan.flat, plan.spacing, plan.radius), (first, second), workers=workers
    )
    either, both = (
        int(np.bitwise_count(bits).sum(dtype=np.int64)) for bits in (bands[0] | bands[1], bands[0] & bands[1])
    )
    surfaces = in_threads(lambda bits: _surface(bits, width, plan), (first, second), workers=workers)
    one, two = in_threads(
        lambda pair: _side(*_one_way(*pair, plan), plan),
        [(surfaces[0], surfaces[1]), (surfaces[1], surfaces[0])],
        workers=workers,
    )
    total, means = one.total + two.total, (one.summed / one.total, two.summed / two.total)
    values = [
        max(one.largest, two.largest),
        *(max(pair) for pair in zip(one.ranks, two.ranks, strict=True)),
        (one.summed + two.summed) / total,
        (means[0] + means[1]) / 2,
        *means,
        *((a + b) / total for a, b in zip(one.within, two.within, strict=True)),
        both / either,
    ]
    return dict(zip(plan.names, values, strict=True))


def _surface(bits: NDArray[np.uint64], width: int, plan: _Plan) -> Surface:
    if plan.definition == "voxels":
        return boundary_voxels(bits, width, plan.flat)
    return elements(bits, width, plan.flat, plan.sizes)


def _one_way(start: Surface, goal: Surface, plan: _Plan) -> tuple[FloatArray, FloatArray | None]:
    """Distances from points of the one surface to the other, and the weights of these points."""
    if plan.definition == "mesh":
        return mesh_distances(start, goal, plan.spacing, plan.flat, plan.resolution)
    return nearest(goal.points, start.points, plan.spacing), start.weights


def _side(distances: FloatArray, weights: FloatArray | None, plan: _Plan) -> _Side:
    """Sums over one surface; without weights each distance counts 1."""
    within = [distances <= tolerance * (1 + _ROUNDING) for tolerance in plan.tolerances]
    largest = float(distances.max())
    if weights is None:
        ranks = [float(np.percentile(distances, rank)) for rank in plan.percentiles]
        return _Side(
            float(len(distances)),
            float(distances.sum()),
            largest,
            tuple(float(np.count_nonzero(near)) for near in within),
            tuple(ranks),
        )
    return _Side(
        float(weights.sum()),
        float((distances * weights).sum()),
        largest,
        tuple(float(weights[near].sum()) for near in within),
        _weighted_percentiles(distances, weights, largest, plan.percentiles),
    )


def _weighted_percentiles(
    distances: FloatArray, weights: FloatArray, largest: float, percentiles: Sequence[float]
) -> tuple[float, ...]:
    """The smallest distance within which at least so many per cent of the weight lie; only one bin is sorted."""
    if not percentiles or not largest:
        return tuple(0.0 for _ in percentiles)
    bins = np.minimum((distances * (_BINS / largest)).astype(np.int32), _BINS - 1)
    upto = np.cumsum(np.bincount(bins, weights=weights, minlength=_BINS))
    out = []
    for rank in percentiles:
        goal = rank / 100 * upto[-1] * (1 - _ROUNDING)
        chosen = int(np.searchsorted(upto, goal))
        held = np.flatnonzero(bins == chosen)
        held = held[np.argsort(distances[held], kind="stable")]
        reached = np.cumsum(weights[held]) + (upto[chosen - 1] if chosen else 0.0)
        place = min(int(np.searchsorted(reached, goal)), len(held) - 1)
        out.append(float(distances[held[place]]))
    return tuple(out)
