"""Pictures of a segmentation: the image with the outlines of reference and model, where they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image as Raster
from PIL import ImageDraw

from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.evaluate.segment_ranking import case_scores
from vesalius.measure.contours import contours
from vesalius.report import segment_words
from vesalius.report.measure_pictures import OUTLINES, _latin, _lettered, _strip
from vesalius.report.measure_planes import PAPER, Plane, _in_colour, gray_levels, plain
from vesalius.report.pictures import Bytes8, png, squared, turning

Bools = NDArray[np.bool_]
# Lines are drawn this many times larger and averaged.
FINE = 3
REFERENCE, MODEL = 0, 4
# Lengths of dash and gap in pixels of the picture.
DASH, GAP = 6.0, 4.0
# The part of an axis that a picture shows at least, and the room around the structure.
LEAST_SHOWN, ROOM = 0.35, 0.25
MOST_EACH = 4


def case_picture(
    image: Image | None,
    truth: NDArray[Any],
    prediction: NDArray[Any],
    labels: Labels,
    *,
    side: int = 280,
    spacing: Sequence[float] | None = None,
) -> bytes:
    """Reference and model as outlines on the image, as PNG; a volume in three planes.

    Each plane is the one in which the masks differ most (they cover most, where they do not differ), cut to the
    surroundings of the structures. One structure: reference and model in two colours. Several: a colour each, full
    lines for the reference, dashed ones for the model.

    Parameters
    ----------
    image
        On the grid of the masks; None draws the outlines alone.
    truth, prediction
        Label maps ``(Z, Y, X)`` or ``(Y, X)``, or for overlapping structures masks ``(K, *S)``. Objects of
        `Labels.instances` are all of one kind.
    side
        Pixels of the longer side of each plane.
    spacing
        Per axis of the image; default that of its grid, else cubes.

    Raises
    ------
    ValueError
        For masks that do not fit each other, the image or the spacing.
    """
    ndim = _ndim(image, spacing, truth, prediction, labels)
    true, said = (_layers(np.asarray(mask), ndim, labels) for mask in (truth, prediction))
    if true.shape != said.shape or (image is not None and image.grid.shape != true.shape[1:]):
        where = "" if image is None else f" and the image {image.grid.shape}"
        raise ValueError(f"truth and prediction have shapes {true.shape[1:]} and {said.shape[1:]}{where}")
    if labels.ignore is not None and np.ndim(truth) == ndim:
        said = np.where(np.asarray(truth) == labels.ignore, 0, said)
    steps = tuple(spacing) if spacing is not None else (image.grid.spacing_mm if image is not None else None)
    cuts = _cuts(image, true, said, steps or (1.0,) * ndim)
    union = (true != 0).any(axis=0) | (said != 0).any(axis=0)
    levels = gray_levels(image, union.view(np.uint8))
    several = len(labels.structures) > 1
    drawn = [_drawn(cut, side, levels, several=several) for cut in cuts]
    joined = drawn[0] if len(drawn) == 1 else np.concatenate([squared(one, side) for one in drawn], axis=1)
    names = [(k, _latin(name) or f"structure {k + 1}") for k, name in enumerate(labels.structures)]
    entries: list[tuple[int | None, str]] = [(REFERENCE, "reference"), (MODEL, "model")]
    if several:
        held = [bool(true[k].any() or said[k].any()) for k in range(len(names))]
        entries = [entry for entry, there in zip(names, held, strict=True) if there]
        entries.append((None, "full line: reference, dashed: model"))
    where = ", ".join(cut.plane.name for cut in cuts if cut.plane.name)
    return png(np.concatenate([joined, _strip(entries, joined.shape[1], where)]))


def cases_worth_a_picture(table: pd.DataFrame, most: int = MOST_EACH) -> list[tuple[str, str]]:
    """(case_id, why): the `most` worst cases, the median and the best, and one that missed or invented a structure.

    `table` as `evaluate.segment_table` makes it; no case stands there twice.
    """
    scores = case_scores(table)
    metric = "panoptic quality" if "pq" in table.columns and table["pq"].notna().any() else "Dice"
    known = scores.dropna(subset="score").reset_index(drop=True)
    if known.empty:
        return []
    places = [(k, "worst") for k in range(min(most, len(known)))]
    places += [((len(known) - 1) // 2, "median"), (len(known) - 1, "best")]
    for kind in ("missed", "invented"):
        places += [(int(k), kind) for k in np.flatnonzero(known[kind].str.len() > 0)[:1]]
    out: dict[str, str] = {}
    for k, why in places:
        row = {str(key): value for key, value in known.iloc[k].items()}
        out.setdefault(str(row["case_id"]), f"{why}: {segment_words.verdict(row, metric)}")
    return list(out.items())


# ------------------------------------------------------------------------------------------------------------- planes


@dataclass(frozen=True, eq=False)
class _Cut:
    """One plane with the masks ``(K, Y, X)`` of reference and model."""

    plane: Plane
    true: NDArray[Any]
    said: NDArray[Any]


def _ndim(
    image: Image | None, spacing: Sequence[float] | None, truth: NDArray[Any], prediction: NDArray[Any], labels: Labels
) -> int:
    if image is not None:
        return image.grid.ndim
    if spacing is not None:
        return len(spacing)
    least = min(np.ndim(truth), np.ndim(prediction))
    stacked = labels.multilabel and np.shape(truth)[0] == np.shape(prediction)[0] == len(labels)
    return least - 1 if stacked and least in (3, 4) else least


def _layers(mask: NDArray[Any], ndim: int, labels: Labels) -> NDArray[Any]:
    """``(K, *S)``: one mask per structure; objects keep their numbers, in one layer."""
    if mask.ndim == ndim + 1 and mask.shape[0] == len(labels.structures):
        return mask
    if mask.ndim != ndim:
        raise ValueError(f"a mask of an image with {ndim} axes and {len(labels.structures)} structures has the shape "
                         f"{mask.shape}")  # fmt: skip
    known = mask if labels.ignore is None else np.where(mask == labels.ignore, 0, mask)
    if labels.instances:
        return np.asarray(known)[None]
    if labels.regions:
        return np.stack([np.isin(known, region) for region in labels.regions])
    return np.stack([known == value for value in range(1, len(labels))])


def _cuts(image: Image | None, true: NDArray[Any], said: NDArray[Any], steps: Sequence[float]) -> list[_Cut]:
    """Planes to show, turned as radiology shows them and cut to the surroundings of the masks."""
    pixels = None if image is None else image.pixels[: 3 if _in_colour(image) else 1]
    ndim = true.ndim - 1
    if ndim == 2:
        box = _window((true != 0).any(axis=0) | (said != 0).any(axis=0))
        shown = None if pixels is None else pixels[:, box[0], box[1]]
        hull = np.zeros((box[0].stop - box[0].start, box[1].stop - box[1].start), np.uint8)
        return [_Cut(Plane(shown, hull, steps[0] / steps[1]), true[:, box[0], box[1]], said[:, box[0], box[1]])]
    order, flips, known = turning(None if image is None else image.grid)
    true, said = (_turned(mask, order, flips) for mask in (true, said))
    shown = None if pixels is None else _turned(pixels, order, flips)
    lengths = [steps[axis] for axis in order]
    either = (true != 0).any(axis=0) | (said != 0).any(axis=0)
    differ = ((true != 0) != (said != 0)).any(axis=0)
    box = _window(either)
    cuts = []
    for place in range(3):
        index = _fullest(differ if differ.any() else either, place)
        at = tuple(index if axis == place else box[axis] for axis in range(3))
        rows, columns = (axis for axis in range(3) if axis != place)
        word = ("axial", "coronal", "sagittal")[place] if known else "slice"
        size = either.shape[place]
        stored = size - index if flips[place] else index + 1
        part = None if shown is None else shown[(slice(None), *at)]
        plane = Plane(part, np.zeros(either[at].shape, np.uint8), lengths[rows] / lengths[columns],
                      f"{word} {stored} of {size}", ("R", "R", "A")[place] if known else "")  # fmt: skip
        cuts.append(_Cut(plane, true[(slice(None), *at)], said[(slice(None), *at)]))
    return cuts


def _turned(array: NDArray[Any], order: Sequence[int], flips: Sequence[bool]) -> NDArray[Any]:
    turned = array.transpose(0, *(axis + 1 for axis in order))
    return np.flip(turned, tuple(place + 1 for place, flip in enumerate(flips) if flip))


def _fullest(mask: Bools, axis: int) -> int:
    """The slice that holds most of `mask`, the middle one of nearly equal ones."""
    covered = np.count_nonzero(mask, axis=tuple(k for k in range(3) if k != axis))
    near = np.flatnonzero(covered >= 0.98 * covered.max())
    return int(near[len(near) // 2])


def _window(mask: Bools) -> tuple[slice, ...]:
    """The box around `mask` with room, never a small part of the image only: a reader must see where he is."""
    out = []
    for axis, size in enumerate(mask.shape):
        held = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        if not held.size:
            out.append(slice(0, size))
            continue
        low, high = int(held[0]), int(held[-1]) + 1
        wide = min(size, max(round((high - low) * (1 + 2 * ROOM)), round(size * LEAST_SHOWN), 1))
        start = int(np.clip((low + high - wide) // 2, 0, size - wide))
        out.append(slice(start, start + wide))
    return tuple(out)


# -------------------------------------------------------------------------------------------------------------- lines


def _drawn(cut: _Cut, side: int, levels: tuple[float, float], *, several: bool) -> Bytes8:
    """The plane with all outlines."""
    base = plain(cut.plane, side, levels)
    height, width = int(base.shape[0]), int(base.shape[1])
    canvas = Raster.fromarray(base).resize((width * FINE, height * FINE), Raster.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    scale = np.array([height * FINE / cut.true.shape[1], width * FINE / cut.true.shape[2]])
    thick = 2.0 if side > 200 else 1.5
    for mine, colour, dashed in ((cut.true, REFERENCE, False), (cut.said, MODEL, several)):
        for k, layer in enumerate(mine):
            ink = OUTLINES[(k if several else colour) % len(OUTLINES)]
            for ring in contours(np.ascontiguousarray(layer)):
                points = ((ring.points + 0.5) * scale)[:, ::-1]
                _stroke(pen, np.concatenate([points, points[:1]]), ink, thick * FINE, dashed=dashed)
    picture = np.asarray(canvas.resize((width, height), Raster.Resampling.BOX))
    return _lettered(picture, cut.plane.edge) if cut.plane.edge and side >= 120 else picture


def _stroke(pen: Any, points: NDArray[np.float64], ink: str, width: float, *, dashed: bool) -> None:
    """A closed line with a dark rim, so that it stands out from any image; in dashes along its length."""
    parts = _dashes(points, DASH * FINE, GAP * FINE) if dashed else [points]
    for part in parts:
        places = [(float(x), float(y)) for x, y in part]
        for colour, wide in ((PAPER, width + FINE), (ink, width)):
            pen.line(places, fill=colour, width=max(round(wide), 1), joint="curve")


def _dashes(points: NDArray[np.float64], dash: float, gap: float) -> list[NDArray[np.float64]]:
    """Pieces of a line, `dash` long and `gap` apart; a line shorter than two dashes stays whole."""
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    if way[-1] < 2 * (dash + gap):
        return [points]
    # A whole number of dashes, so that the ends of a ring meet in a gap.
    count = max(int(way[-1] // (dash + gap)), 1)
    step = way[-1] / count
    out = []
    for start in np.arange(count) * step:
        stop = start + step * dash / (dash + gap)
        inside = np.unique(np.concatenate([[start], way[(way > start) & (way < stop)], [stop]]))
        out.append(np.stack([np.interp(inside, way, points[:, axis]) for axis in range(2)], axis=1))
    return out
