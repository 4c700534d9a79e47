"""The long axis of a ventricle in an apical view, found from its outline, and the widths along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import checked_labels, label_boxes
from vesalius.measure.lesions import components
from vesalius.measure.weights import FloatArray

# Discs of the guideline (Lang et al., JASE 2015, 28:1).
DISCS = 20
# Each pixel is shared out between discs in 4 x 4 parts.
_PARTS = 4

Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class LongAxis:
    """The long axis of a ventricle in one apical view, and its width along it.

    Parameters
    ----------
    base, apex
        Ends of the axis as (y, x) in index units.
    length
        mm (pixels without spacing).
    diameters
        ``(discs,)`` width of the ventricle from base to apex, mm (pixels).
    """

    base: Point
    apex: Point
    length: float
    diameters: FloatArray

    @property
    def area(self) -> float:
        """Area of the view, mm2 (square pixels)."""
        return float(self.diameters.mean() * self.length)


def long_axis(
    mask: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    atrium: NDArray[Any] | None = None,
    apex: Point | None = None,
    discs: int = DISCS,
) -> LongAxis | None:
    """Find the long axis of a ventricle in an apical view and cut it into discs; None for an empty mask.

    The base is the end that is nearer to the centre of area, the wide one; if both are alike, the lower in the picture.
    The axis starts along the longest direction of the mask and is then led through the middles of its widths at 20 to
    50 % of the height, to the point of the mask that is farthest from them; it ends where it leaves the mask. With the
    left atrium, the base is the middle of the border between the two instead. The width of a disc is its area over its
    height; what lies beyond the ends of the axis belongs to the first and the last disc.

    Parameters
    ----------
    mask
        ``(Y, X)``; of several pieces the largest counts, with its holes filled.
    spacing
        mm per row and column.
    atrium
        ``(Y, X)`` mask of the left atrium.
    apex
        A rough place (y, x) in index units that says which end is the apex, where the shape alone is not to decide.
    discs
        Number of discs, 20 in the guideline.
    """
    array = checked_labels(mask, name="mask")
    if array.ndim != 2:
        raise ValueError(f"a view must have axes (Y, X), got shape {array.shape}")
    step = np.array(checked_spacing(spacing, 2))
    if discs < 1:
        raise ValueError(f"discs must be at least 1, got {discs}")
    other = None if atrium is None else checked_labels(atrium, name="atrium") != 0
    if other is not None and other.shape != array.shape:
        raise ValueError(f"mask and atrium must have one shape, got {array.shape} and {other.shape}")
    body, corner = _largest_piece(array)
    if body is None:
        return None
    points = (np.argwhere(body) + corner) * step
    border = towards = None
    if other is not None and other.any():
        border, towards = (
            _contact(body, corner, other, step),
            points.mean(axis=0) - np.argwhere(other).mean(axis=0) * step,
        )
    if apex is not None:
        towards = np.array(apex) * step - points.mean(axis=0)
    middle, along = _axis(points, border, towards, float(step.max()))
    base = middle - along * _reach(body, corner, step, middle, -along)
    tip = middle + along * _reach(body, corner, step, middle, along)
    length = float(np.linalg.norm(tip - base))
    area = _areas((points - base) @ along / length, along * step / length, discs) * float(np.prod(step))
    ends = [(float(point[0] / step[0]), float(point[1] / step[1])) for point in (base, tip)]
    return LongAxis(ends[0], ends[1], length, area * discs / length)


def _areas(height: FloatArray, slope: FloatArray, discs: int) -> FloatArray:
    """Pixels in each disc, from their heights ``(N,)`` in 0..1 and the change of height per row and column."""
    part = (np.arange(_PARTS) + 0.5) / _PARTS - 0.5
    shift = np.add.outer(part * slope[0], part * slope[1]).ravel()
    place = np.clip(((height[:, None] + shift) * discs).astype(np.int64), 0, discs - 1)
    return np.bincount(place.ravel(), minlength=discs) / len(shift)


def _largest_piece(mask: NDArray[Any]) -> tuple[NDArray[np.bool_] | None, NDArray[np.int64]]:
    """The largest connected piece with its holes filled, cut to its box, and the first corner of that box."""
    from scipy.ndimage import binary_fill_holes

    pieces = components(mask != 0)
    boxes = label_boxes(pieces)
    if not len(boxes):
        return None, np.zeros(2, dtype=np.int64)
    row = int(boxes.voxels.argmax())
    return binary_fill_holes(pieces[boxes.slices(row)] == boxes.values[row]), boxes.start[row]


def _contact(
    body: NDArray[np.bool_], corner: NDArray[np.int64], atrium: NDArray[np.bool_], step: FloatArray
) -> FloatArray | None:
    """The middle of the border between ventricle and atrium, from its two ends; None where they do not touch."""
    from scipy.ndimage import binary_dilation
    from scipy.spatial.distance import cdist

    wide = np.zeros_like(atrium)
    wide[corner[0] : corner[0] + body.shape[0], corner[1] : corner[1] + body.shape[1]] = body
    edge = np.argwhere(binary_dilation(atrium, np.ones((3, 3), bool)) & wide) * step
    if not len(edge):
        return None
    one, two = np.unravel_index(int(cdist(edge, edge).argmax()), (len(edge), len(edge)))
    return (edge[one] + edge[two]) / 2


def _axis(
    points: FloatArray, border: FloatArray | None, towards: FloatArray | None, pixel: float
) -> tuple[FloatArray, FloatArray]:
    """A point of the long axis and its direction from base to apex, from `points` ``(N, 2)`` of the mask in mm.

    `towards` points roughly to the apex where that is known; `pixel` is the larger side of one.
    """
    centre = points.mean(axis=0)
    along = np.linalg.eigh(np.cov((points - centre).T) if len(points) > 1 else np.eye(2))[1][:, -1]
    if along[0] > 0:
        along = -along  # the apex is up, unless the widths say otherwise
    if towards is not None:
        along = along if towards @ along >= 0 else -along
    else:
        height = (points - centre) @ along
        # The centre of area lies nearer to the wide end; less than 0.5 % of the height decides nothing.
        along = -along if height.max() + height.min() < -0.01 * np.ptp(height) else along
    if border is not None:
        return border, _farthest(points - border, pixel)
    middle = centre
    for _ in range(3):
        across = np.array([-along[1], along[0]])
        height, side = (points - centre) @ along, (points - centre) @ across
        share = (height - height.min()) / max(float(np.ptp(height)), 1e-9)
        levels = [side[(share >= low) & (share < low + 0.05)] for low in np.arange(0.2, 0.5, 0.05)]
        held = [level for level in levels if len(level)]
        offset = float(np.mean([(level.min() + level.max()) / 2 for level in held])) if held else 0.0
        middle = centre + across * offset + along * (height.min() + 0.35 * float(np.ptp(height)))
        apart = points - middle
        ahead = apart[apart @ along > 0]
        if not len(ahead):
            break
        along = _farthest(ahead, pixel)
    return middle, along


def _farthest(offsets: FloatArray, pixel: float) -> FloatArray:
    """Direction of the farthest points: the mean of all within a pixel of the farthest, for a blunt tip is flat."""
    far = np.linalg.norm(offsets, axis=1)
    mean = offsets[far >= far.max() - pixel].mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-9)


def _reach(
    body: NDArray[np.bool_], corner: NDArray[np.int64], step: FloatArray, start: FloatArray, along: FloatArray
) -> float:
    """How far one can go from `start` before the mask is left for good, to a twentieth of a pixel."""
    fine = float(step.min()) / 20
    far = float(np.linalg.norm(np.array(body.shape) * step)) + 2 * float(step.max())
    along_way = np.arange(0.0, far + np.abs(start - corner * step).max(), fine)
    place = np.rint((start + along_way[:, None] * along) / step).astype(np.int64) - corner
    inside: NDArray[np.bool_] = np.asarray(((place >= 0) & (place < body.shape)).all(axis=1))
    inside[inside] = body[tuple(place[inside].T)]
    return float(along_way[np.flatnonzero(inside)[-1]] + fine / 2) if inside.any() else float(step.min()) / 2
