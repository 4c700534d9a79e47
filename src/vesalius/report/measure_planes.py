"""Planes of a volume with its labels, turned as radiology shows them, in gray or colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.image import Image, Unit
from vesalius.report.pictures import WINDOW, Bytes8, fitted, turning

PAPER = (22, 26, 31)
# Windows in HU (low, high) by what the labels hold: lung, soft tissue, bone.
LUNG, SOFT, BONE = (-1350.0, 150.0), (-160.0, 240.0), (-450.0, 1050.0)
SAMPLE = 200_000


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of an image with its labels.

    Parameters
    ----------
    values
        ``(3, Y, X)`` of colour or ``(1, Y, X)`` of gray; None where there is no image.
    labels
        ``(Y, X)``.
    ratio
        Row step divided by column step.
    name, edge
        Such as ``axial 12 of 40``, and the letter of the patient's side that lies at the left edge.
    """

    values: NDArray[Any] | None
    labels: NDArray[Any]
    ratio: float
    name: str = ""
    edge: str = ""


def planes(
    image: Image | None, labels: NDArray[Any], steps: tuple[float, ...], slice_index: int | None, views: bool
) -> list[Plane]:
    """The plane of a flat image, or those of a volume: the fullest or the chosen one, or with `views` all three.

    `steps` is the spacing per axis of `labels`; `slice_index` counts along their first axis as stored.
    """
    pixels = None if image is None else image.pixels[: 3 if _in_colour(image) else 1]
    if labels.ndim == 2:
        return [Plane(pixels, labels, steps[0] / steps[1])]
    order, flips, known = turning(None if image is None else image.grid)
    turned = labels.transpose(order)
    shown = None if pixels is None else pixels.transpose(0, *(axis + 1 for axis in order))
    for place, flip in enumerate(flips):
        if flip:
            turned = np.flip(turned, place)
            shown = None if shown is None else np.flip(shown, place + 1)
    lengths = [steps[axis] for axis in order]
    first = order.index(0) if slice_index is not None else 0
    if slice_index is not None and flips[first]:
        slice_index = labels.shape[0] - 1 - slice_index
    cuts = []
    for place in range(3) if views else (first,):
        index = slice_index if slice_index is not None and place == first else _fullest(turned, place)
        rows, columns = (axis for axis in range(3) if axis != place)
        word = ("axial", "coronal", "sagittal")[place] if known else "slice"
        stored = turned.shape[place] - index if flips[place] else index + 1
        cuts.append(
            Plane(
                None if shown is None else shown.take(index, place + 1),
                turned.take(index, place),
                lengths[rows] / lengths[columns],
                f"{word} {stored} of {turned.shape[place]}",
                ("R", "R", "A")[place] if known else "",
            )
        )
    return cuts


def _fullest(labels: NDArray[Any], axis: int) -> int:
    """The plane that labels cover most; the middle one if there are none.

    Of planes within 2 % of the fullest the middle one is taken: a body that fills every slice is not shown at its end.
    """
    others = tuple(k for k in range(3) if k != axis)
    covered = np.count_nonzero(labels, axis=others)
    near = np.flatnonzero(covered >= 0.98 * covered.max())
    return int(near[len(near) // 2])


def gray_levels(image: Image | None, labels: NDArray[Any]) -> tuple[float, float]:
    """Values shown as black and white: a window of radiology for HU, else percentiles; one for all planes."""
    if image is None or (_in_colour(image) and image.pixels.dtype == np.uint8):
        return 0.0, 255.0
    step = max(int(np.ceil((labels.size / SAMPLE) ** (1 / labels.ndim))), 1)
    every = (slice(None, None, step),) * labels.ndim
    sample = np.asarray(image.pixels[(slice(0, 3 if _in_colour(image) else 1), *every)], dtype=np.float32)
    finite = np.isfinite(sample)
    if image.unit is Unit.HU:
        inside = sample[0][finite[0] & (labels[every] != 0)]
        middle = float(np.median(inside)) if inside.size else 0.0
        return LUNG if middle < -250 else BONE if middle > 250 else SOFT
    if not finite.any():
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(sample[finite], WINDOW))
    if high <= low:
        low, high = float(sample[finite].min()), float(sample[finite].max())
    return (low, high) if high > low else (low - 1, low + 1)


def _in_colour(image: Image) -> bool:
    pixels = image.pixels
    photograph = pixels.shape[0] == 3 and pixels.dtype == np.uint8
    return pixels.shape[0] >= 3 and (image.unit is Unit.RED_GREEN_BLUE or photograph)


def plain(plane: Plane, side: int, levels: tuple[float, float]) -> Bytes8:
    """The plane without outlines ``(h, w, 3)``, its longer side `side` pixels, its pixels in their true shape."""
    if plane.values is None:
        size = fitted(np.zeros(plane.labels.shape, np.uint8), side, ratio=plane.ratio).shape
        return np.full((*size, 3), PAPER, np.uint8)
    low, high = levels
    values = np.moveaxis(plane.values, 0, -1) if plane.values.shape[0] == 3 else plane.values[0]
    if values.dtype != np.uint8 or levels != (0.0, 255.0):
        share = np.clip((values.astype(np.float32) - low) / (high - low), 0, 1)
        values = np.round(np.nan_to_num(share) * 255).astype(np.uint8)
    return in_three(fitted(np.ascontiguousarray(values), side, ratio=plane.ratio))


def in_three(picture: Bytes8) -> Bytes8:
    """Gray ``(h, w)`` as colour ``(h, w, 3)``; colour as it is."""
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
