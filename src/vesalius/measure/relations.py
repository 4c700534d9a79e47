"""How structures lie to each other: gaps, margins, contact areas, and how far a tumour goes around a vessel.

A structure is the union of its closed voxel boxes. Between two such sets every distance is attained between corners of
voxels, so gaps and margins are distances on the lattice of corners: exact, 0 for voxels that share a face, an edge or a
corner, and 1 mm for two blocks with one empty layer of 1 mm between them. Distances between voxel centres, which other
programs report, are larger by about one voxel.

Contact is measured twice. ``contact_faces`` adds the shared faces of voxels: exact for blocks, up to 1.7 times too
large on oblique surfaces. ``contact_area`` is half of S(a) + S(b) - S(a and b together), where S is the area of the
surface at 0.5 (see `vesalius.measure.cube`): within 10 % on smooth surfaces, too small by up to 0.3 voxels along the
rim of the contact.

Nothing is known beyond the edge of the picture: faces there are no surface, and touch nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import LabelBoxes, checked_labels, label_boxes
from vesalius.measure.contact import Contacts, contact_pass
from vesalius.measure.corners import Surfaces, corners_of, nearest_corner, surface_corners, weighted_percentile
from vesalius.measure.distance import distance_field
from vesalius.measure.quantities import Quantity

BoolArray = NDArray[np.bool_]

_HERE = "docs/relations.md"
_CUBES = "Lorensen and Cline, SIGGRAPH 1987; docs/relations.md"

_PAIR = (
    Quantity("first", "1", "Lower label of the pair."),
    Quantity("second", "1", "Higher label of the pair."),
    Quantity(
        "gap",
        "mm",
        "Smallest distance between the two structures, voxel box to voxel box; 0 where they touch or overlap; "
        "undefined beyond the distance limit or if one is empty.",
        _HERE,
    ),
    Quantity("centroid_distance", "mm", "Distance between the centres of mass of the two structures."),
    Quantity(
        "margin_p5_first",
        "mm",
        "5 % of the surface of the first structure lie at most this far from the second; undefined beyond the limit.",
        _HERE,
    ),
    Quantity(
        "margin_p5_second",
        "mm",
        "5 % of the surface of the second structure lie at most this far from the first; undefined beyond the limit.",
        _HERE,
    ),
    Quantity("contact_area", "mm2", "Area in which the two smooth surfaces touch; 0 if they do not.", _CUBES),
    Quantity("contact_faces", "mm2", "Area of the voxel faces that the two structures share.", _HERE),
    Quantity("contact_length", "mm", "In two dimensions: length over which the two smooth outlines touch.", _CUBES),
    Quantity("contact_edges", "mm", "In two dimensions: length of the pixel edges that the two structures share."),
    Quantity("contact_fraction_first", "1", "Shared voxel faces as part of all surface faces of the first structure."),
    Quantity("contact_fraction_second", "1", "Shared voxel faces as part of the surface faces of the second one."),
    *(
        Quantity(
            f"nearest_{which}_{axis}",
            "1",
            f"Place of the {which} structure's nearest point along {axis}, in index units (voxel centres are whole).",
        )
        for which in ("first", "second")
        for axis in "zyx"
    ),
)
_OVERLAP = (
    Quantity("overlap_volume", "mm3", "Volume that belongs to both structures."),
    Quantity("overlap_area", "mm2", "In two dimensions: area that belongs to both structures."),
    Quantity("contained_first", "1", "Part of the first structure that lies in the second; undefined if it is empty."),
    Quantity("contained_second", "1", "Part of the second structure that lies in the first; undefined if it is empty."),
)
_MARGIN = (
    Quantity("margin_min", "mm", "Smallest distance from the surface of the tumour to the other structure.", _HERE),
    Quantity("margin_p5", "mm", "5 % of the tumour's surface lie at most this far from the other structure.", _HERE),
    Quantity("margin_p25", "mm", "25 % of the tumour's surface lie at most this far from the other structure."),
    Quantity("margin_median", "mm", "Half of the tumour's surface lies at most this far from the other structure."),
    Quantity("margin_mean", "mm", "Mean distance, by area, from the tumour's surface to the other structure."),
    Quantity("margin_max", "mm", "Largest distance from the tumour's surface to the other structure."),
    Quantity("surface_touching", "1", "Part of the tumour's surface at distance 0 from the other structure."),
    Quantity("surface_within_1", "1", "Part of the tumour's surface at most 1 mm away (an R1 margin in pathology)."),
    Quantity("surface_within_5", "1", "Part of the tumour's surface at most 5 mm away."),
    Quantity("surface_within_10", "1", "Part of the tumour's surface at most 10 mm away."),
)
QUANTITIES: tuple[Quantity, ...] = (*_PAIR, *_OVERLAP, *_MARGIN)


@dataclass(frozen=True, eq=False)
class _Scene:
    """What all pairs of a label map share."""

    labels: NDArray[Any]  # (Z, Y, X)
    spacing: FloatArray  # (3,)
    limit: float
    boxes: LabelBoxes  # in three dimensions
    contacts: Contacts
    surfaces: Surfaces
    centroids: FloatArray


def relations(
    labels: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    pairs: Iterable[tuple[int, int]] | None = None,
    structures: Iterable[int] | None = None,
    max_distance_mm: float | None = 30.0,
    workers: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Gap, margins, contact and nearest points of pairs of labels.

    Parameters
    ----------
    labels
        ``(Z, Y, X)`` or ``(Y, X)`` whole numbers, 0 for the background.
    spacing
        Voxel size per axis in mm; None counts in voxels.
    pairs
        Which pairs; each gets a row, in this order. None: every pair whose gap is at most `max_distance_mm`.
    structures
        Labels to look at (all). What belongs to none of them is background.
    max_distance_mm
        Distances beyond it are NaN, which keeps the work near the structures. None for no limit.

    Returns
    -------
    table
        One row per pair. Columns: see `QUANTITIES`; the contact is called ``contact_area`` and ``contact_faces`` in
        three dimensions, ``contact_length`` and ``contact_edges`` in two. A pair with an absent label is NaN.
    """
    array = checked_labels(labels)
    ndim = array.ndim
    steps = _steps(spacing, ndim)
    limit = _limit(max_distance_mm)
    wanted = None if structures is None else {int(one) for one in structures}
    asked = None if pairs is None else _asked(pairs)
    if asked is not None:
        named = {one for pair in asked for one in pair}
        wanted = named if wanted is None else wanted & named
    volume = array.reshape((1,) * (3 - ndim) + array.shape)
    scene = _scene(volume, steps, limit, wanted, workers)
    rows = scene.boxes.values
    number = {int(value): row for row, value in enumerate(rows)}
    if asked is None:
        near = [(a, b) for a in range(len(rows)) for b in _neighbours(scene, a, after=True)]
    else:
        near = [(number[a], number[b]) for a, b in asked if a in number and b in number]
    found = _distances(scene, sorted({(min(pair), max(pair)) for pair in near}))
    if asked is None:
        asked = [(int(rows[a]), int(rows[b])) for (a, b), one in sorted(found.items()) if np.isfinite(one["gap"])]
    return _table(scene, asked, number, found, ndim)


def relation(first: NDArray[Any], second: NDArray[Any], spacing: Sequence[float] | None = None) -> dict[str, float]:
    """Gap, margins, contact, overlap and nearest points of two masks ``(Z, Y, X)`` or ``(Y, X)``, which may overlap.

    Contact is counted between voxels of which each belongs to one structure only. Where they overlap the gap is 0 and
    there are no nearest points. Everything but the overlap is NaN if a mask is empty.
    """
    one, two = _masks(first, second)
    ndim = one.ndim
    steps = _steps(spacing, ndim)
    both = one.view(np.uint8) + 2 * two.view(np.uint8)
    table = relations(both, spacing, pairs=[(1, 2)], max_distance_mm=None)
    out = {name: float(column[0]) for name, column in table.items() if name not in ("first", "second")}
    common, sizes = int((both == 3).sum()), (int(one.sum()), int(two.sum()))
    if common:
        out.update({name: np.nan for name in out if name.startswith("nearest")})
        sides = [_margins(*margin_distances(a, b, spacing))["margin_p5"] for a, b in ((one, two), (two, one))]
        out.update(gap=0.0, margin_p5_first=sides[0], margin_p5_second=sides[1])
        centres = [np.argwhere(mask).mean(0) * steps[3 - ndim :] for mask in (one, two)]
        out["centroid_distance"] = float(np.linalg.norm(centres[0] - centres[1]))
        faces = "contact_faces" if ndim == 3 else "contact_edges"
        smooth = "contact_area" if ndim == 3 else "contact_length"
        out[faces], out[smooth] = (0.0 if np.isnan(out[name]) else out[name] for name in (faces, smooth))
        for name, mask in (("contact_fraction_first", one), ("contact_fraction_second", two)):
            volume = mask.reshape((1,) * (3 - ndim) + mask.shape).view(np.uint8)
            surface = contact_pass(volume, np.array([1]), steps).surface[0]
            out[name] = out[faces] / surface if surface else np.nan
    out["overlap_volume" if ndim == 3 else "overlap_area"] = common * float(np.prod(steps[3 - ndim :]))
    out["contained_first"], out["contained_second"] = (common / size if size else np.nan for size in sizes)
    return out


def margin(tumour: NDArray[Any], other: NDArray[Any], spacing: Sequence[float] | None = None) -> dict[str, float]:
    """How far the surface of a tumour lies from another structure (a vessel, a resection plane, an ablation's edge).

    Every corner of a voxel on the tumour's surface has a distance to the nearest voxel box of `other` (0 inside it) and
    stands for a quarter of each surface face around it; percentiles and parts are by area.

    Parameters
    ----------
    tumour, other
        Masks ``(Z, Y, X)`` or ``(Y, X)``.
    spacing
        Voxel size per axis in mm; None counts in voxels (also for ``surface_within_5``).

    Returns
    -------
    margins
        ``margin_min``, ``margin_p5``, ..., ``surface_within_10``; NaN if a mask is empty.
    """
    return _margins(*margin_distances(tumour, other, spacing))


def margin_distances(
    tumour: NDArray[Any], other: NDArray[Any], spacing: Sequence[float] | None = None
) -> tuple[FloatArray, FloatArray]:
    """The distribution behind `margin`: distance ``(N,)`` and area ``(N,)`` per point of the tumour's surface.

    Both are empty if a mask is.
    """
    one, two = _masks(tumour, other)
    steps = _steps(spacing, one.ndim)
    volume = [mask.reshape((1,) * (3 - one.ndim) + mask.shape) for mask in (one, two)]
    boxes = [label_boxes(mask) for mask in volume]
    if not len(boxes[0]) or not len(boxes[1]):
        return np.zeros(0), np.zeros(0)
    low = np.minimum(boxes[0].start[0], boxes[1].start[0])
    high = np.maximum(boxes[0].stop[0], boxes[1].stop[0])
    field = distance_field(corners_of(volume[1].view(np.uint8), 1, low, high), tuple(steps))
    surface = surface_corners(volume[0].view(np.uint8), np.array([1]), steps)
    return field[tuple((surface.places - low).T)].astype(np.float64), surface.areas.astype(np.float64)


def _margins(distances: FloatArray, areas: FloatArray) -> dict[str, float]:
    names = [quantity.name for quantity in _MARGIN]
    total = float(areas.sum())
    if not total > 0:
        return dict.fromkeys(names, np.nan)
    percentiles = (weighted_percentile(distances, areas, share, total) for share in (0.05, 0.25, 0.5))
    mean = float(np.average(distances, weights=areas))
    # A distance of exactly 5 mm may come out as 5.0000002 from a field of float32.
    within = (float(areas[distances <= reach * (1 + 1e-6)].sum()) / total for reach in (0.0, 1.0, 5.0, 10.0))
    values = (float(distances.min()), *percentiles, mean, float(distances.max()), *within)
    return dict(zip(names, values, strict=True))


def _scene(
    volume: NDArray[Any], steps: FloatArray, limit: float, wanted: set[int] | None, workers: int | None
) -> _Scene:
    boxes = label_boxes(volume, workers=workers)
    if wanted is not None:
        keep = np.isin(boxes.values, sorted(wanted))
        boxes = LabelBoxes(boxes.values[keep], boxes.voxels[keep], boxes.start[keep], boxes.stop[keep])
    contacts = contact_pass(volume, boxes.values, steps, boxes=boxes, workers=workers)
    surfaces = surface_corners(volume, boxes.values, steps, workers=workers)
    return _Scene(volume, steps, limit, boxes, contacts, surfaces, contacts.sums / boxes.voxels[:, None])


def _neighbours(scene: _Scene, row: int, *, after: bool = False) -> NDArray[np.int64]:
    """Rows (above `row` if `after`) whose boxes come within the limit of the box of `row`."""
    boxes = scene.boxes
    first = row + 1 if after else 0
    apart = np.maximum(boxes.start[first:] - boxes.stop[row], boxes.start[row] - boxes.stop[first:])
    reach = np.linalg.norm(np.maximum(apart, 0) * scene.spacing, axis=1)
    return np.flatnonzero(reach <= scene.limit) + first


def _distances(scene: _Scene, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], dict[str, Any]]:
    """Gap, nearest corners and both margins of each pair of rows ``a < b``."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    partners: dict[int, list[int]] = {}
    for a, b in pairs:
        found[a, b] = {"gap": np.nan, "first": None, "second": None, "p5_first": np.nan, "p5_second": np.nan}
        partners.setdefault(a, []).append(b)
        partners.setdefault(b, []).append(a)
    for row, others in partners.items():
        _from_one(scene, row, others, found)
    return found


def _from_one(scene: _Scene, row: int, others: list[int], found: dict[tuple[int, int], dict[str, Any]]) -> None:
    """Distances of the surfaces of `others` to the structure in `row`, from one field around it."""
    boxes = scene.boxes
    reach = np.array(scene.labels.shape) if np.isinf(scene.limit) else np.ceil(scene.limit / scene.spacing).astype(int)
    parts = []
    for other in others:
        # Only what lies within the limit of the partner's box can be nearest to it; in units of corners.
        seen = [
            (
                np.maximum(boxes.start[a], boxes.start[b] - reach),
                np.minimum(boxes.stop[a], boxes.stop[b] + reach),
            )
            for a, b in ((row, other), (other, row))
        ]
        parts.append(seen if all((low <= high).all() for low, high in seen) else None)
    kept = [(other, part) for other, part in zip(others, parts, strict=True) if part is not None]
    if not kept:
        return
    low = np.min([side[0] for _, part in kept for side in part], axis=0)
    high = np.max([side[1] for _, part in kept for side in part], axis=0)
    mine = int(boxes.values[row])
    points = corners_of(scene.labels, mine, low, high)
    field = distance_field(
        points, tuple(scene.spacing), limit=None if np.isinf(scene.limit) else scene.limit * (1 + 1e-6)
    )
    for other, part in kept:
        places, areas = scene.surfaces.of(other, *part[1])
        away = field[tuple((places - low).T)].astype(np.float64)
        near = away <= scene.limit * (1 + 1e-6)
        pair = found[min(row, other), max(row, other)]
        total = float(scene.contacts.surface[other])
        pair["p5_second" if other > row else "p5_first"] = weighted_percentile(away[near], areas[near], 0.05, total)
        if other > row and near.any():
            best = int(np.argmin(away))
            there = places[best]
            here = nearest_corner(points, there - low, scene.spacing, float(away[best])) + low
            pair.update(gap=float(np.linalg.norm((here - there) * scene.spacing)), first=here, second=there)


def _table(
    scene: _Scene,
    asked: list[tuple[int, int]],
    number: dict[int, int],
    found: dict[tuple[int, int], dict[str, Any]],
    ndim: int,
) -> dict[str, NDArray[Any]]:
    """Columns from the findings; a pair is written as it was asked for."""
    smooth, faces = ("contact_area", "contact_faces") if ndim == 3 else ("contact_length", "contact_edges")
    names = ["gap", "centroid_distance", "margin_p5_first", "margin_p5_second", smooth, faces]
    names += ["contact_fraction_first", "contact_fraction_second"]
    names += [f"nearest_{which}_{axis}" for which in ("first", "second") for axis in "zyx"[3 - ndim :]]
    table: dict[str, NDArray[Any]] = {name: np.full(len(asked), np.nan) for name in names}
    for line, (a, b) in enumerate(asked):
        if a not in number or b not in number:
            continue
        rows = (number[a], number[b])
        key = (min(rows), max(rows))
        one, touching = found[key], scene.contacts.pairs.get(key)
        turned = rows[0] > rows[1]
        sides = ("second", "first") if turned else ("first", "second")
        table["gap"][line] = one["gap"]
        between = scene.centroids[rows[0]] - scene.centroids[rows[1]]
        table["centroid_distance"][line] = np.linalg.norm(between * scene.spacing)
        table[smooth][line], table[faces][line] = (touching.area, touching.faces) if touching else (0.0, 0.0)
        for which, side, row in zip(("first", "second"), sides, rows, strict=True):
            table[f"margin_p5_{which}"][line] = one[f"p5_{side}"]
            surface = scene.contacts.surface[row]
            table[f"contact_fraction_{which}"][line] = table[faces][line] / surface if surface else np.nan
            if one[side] is not None:
                for axis in range(3 - ndim, 3):
                    table[f"nearest_{which}_{'zyx'[axis]}"][line] = one[side][axis] - 0.5
    given = np.array(asked, dtype=np.int64).reshape(-1, 2)
    return {"first": given[:, 0], "second": given[:, 1], **table}


def _asked(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    asked = [(int(a), int(b)) for a, b in pairs]
    for a, b in asked:
        if a == b or a <= 0 or b <= 0:
            raise ValueError(f"a pair needs two different labels above 0, got {(a, b)}")
    return asked


def _masks(first: NDArray[Any], second: NDArray[Any]) -> tuple[BoolArray, BoolArray]:
    one, two = (np.ascontiguousarray(np.asarray(mask) != 0) for mask in (first, second))
    if one.shape != two.shape or one.ndim not in (2, 3):
        raise ValueError(f"masks must share a shape (Z, Y, X) or (Y, X), got {one.shape} and {two.shape}")
    return one, two


def _limit(max_distance_mm: float | None) -> float:
    if max_distance_mm is None:
        return float("inf")
    if not max_distance_mm >= 0:
        raise ValueError(f"max_distance_mm must be at least 0, got {max_distance_mm}")
    return float(max_distance_mm)


def _steps(spacing: Sequence[float] | None, ndim: int) -> FloatArray:
    """Spacing along (z, y, x); 1 along z for pictures, so that faces are lengths."""
    return np.concatenate([np.ones(3 - ndim), checked_spacing(spacing, ndim)])
