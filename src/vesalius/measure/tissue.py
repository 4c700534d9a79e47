"""How much of an image each kind of tissue covers, how long their borders are, and where the tissue is.

A class map is ``(Y, X)`` of whole numbers; every value is a class, 0 included. Areas count pixels. The length of the
interface between two classes is the Cauchy-Crofton estimate from the changes of class between neighbours along four
directions, each weighted by the angles it stands for (Legland, Kieu, Devaux, Image Anal. Stereol. 2007, 26:83): a
straight line comes out 5 % too short along an axis and at most 3 % too long in between (square pixels), a circle right
to 1 %. The edge of the image is no interface.

A tissue mask rests on Otsu's threshold (IEEE Trans. SMC 1979, 9:62) of the saturation of the colour, or of its mean
optical density (Ruifrok and Vogelstein 2001). Both take the glass for bright and grey; ink and dark edges of the slide
are taken for tissue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesalius.core.environment import available_cores
from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_steps
from vesalius.measure.boxes import checked_labels
from vesalius.measure.compiled import in_threads, kernel, slabs
from vesalius.measure.quantities import Quantity

_LEGLAND = "Legland et al., Image Anal. Stereol. 2007, 26:83"
# One count per pair of classes and direction is kept.
_MOST_CLASSES = 1024
TISSUE_METHODS = ("saturation", "optical_density")

QUANTITIES: tuple[Quantity, ...] = (
    Quantity("class", "1", "Value of the class in the class map."),
    Quantity("class_pixels", "count", "Number of pixels of the class."),
    Quantity("class_area", "mm2", "Area of the pixels of the class."),
    Quantity("image_fraction", "1", "Area of the class over the area of the image."),
    Quantity(
        "tissue_fraction", "1", "Area of the class inside the tissue mask over the tissue area; NaN without tissue."
    ),
    Quantity("interface_length", "mm", "Length of the border between two classes, from four directions.", _LEGLAND),
    Quantity("tissue_area", "mm2", "Area of the tissue mask."),
    Quantity("tissue_share", "1", "Area of the tissue mask over the area of the image."),
)


def class_areas(
    classes: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    tissue: NDArray[Any] | None = None,
    count: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Area and share of every class.

    Parameters
    ----------
    classes
        ``(Y, X)`` or ``(Z, Y, X)`` class numbers; in 3-D areas are volumes in mm³.
    spacing
        Distance of pixel centres per axis in mm; None measures in pixels.
    tissue
        Mask of the same shape for `tissue_fraction`; None takes the whole image for tissue.
    count
        Number of classes; None takes those up to the largest value.

    Returns
    -------
    table
        ``class``, ``class_pixels``, ``class_area``, ``image_fraction`` and ``tissue_fraction``, each ``(K,)`` for the
        classes 0..K-1, absent ones included.
    """
    array, classes_held = _checked_classes(classes, count)
    pixel = float(np.prod(checked_steps(spacing, array.ndim)))
    pixels = np.bincount(array.ravel(), minlength=classes_held)
    inside = pixels
    if tissue is not None:
        mask = _checked_mask(tissue, array.shape)
        inside = np.bincount(array[mask], minlength=classes_held)
    return {
        "class": np.arange(classes_held),
        "class_pixels": pixels,
        "class_area": pixels * pixel,
        "image_fraction": _shares(pixels),
        "tissue_fraction": _shares(inside),
    }


def interface_lengths(
    classes: NDArray[Any], spacing: Sequence[float] | None = None, *, count: int | None = None
) -> FloatArray:
    """``(K, K)``: length of the border between each two classes of a map ``(Y, X)``, symmetric, 0 on the diagonal.

    In mm, or in pixels where `spacing` is None. Lengths of three classes that meet add up to that of their union.
    """
    array, held = _checked_classes(classes, count)
    if array.ndim != 2:
        raise ValueError(f"classes must have axes (Y, X), got shape {array.shape}")
    sy, sx = (float(step) for step in checked_steps(spacing, 2))

    def work(part: tuple[int, int]) -> NDArray[np.int64]:
        changes = np.zeros((3, held, held), dtype=np.int64)
        _changes(array, part[0], part[1], changes)
        return changes

    changes = np.sum(in_threads(work, slabs(array.shape[0], available_cores())), axis=0) if array.size else 0
    # Half the angle a direction stands for, times the distance of its lines: the length that one crossing stands for.
    angle, slope = np.arctan2(sy, sx), np.hypot(sy, sx)
    weights = np.array([angle / 2 * sy, (np.pi / 2 - angle) / 2 * sx, np.pi / 8 * sx * sy / slope])
    length = np.tensordot(weights, changes + np.zeros((3, held, held)), axes=1)
    return np.asarray(length + length.T)


def tile_fractions(
    classes: NDArray[Any], tile: int | tuple[int, int], *, tissue: NDArray[Any] | None = None, count: int | None = None
) -> FloatArray:
    """Share of each class per tile, ``(rows, columns, K)``; the last row and column may be narrower.

    Parameters
    ----------
    classes
        ``(Y, X)`` class numbers.
    tile
        Side, or (height, width), in pixels.
    tissue
        Mask of the same shape: shares are then of the tissue in the tile, NaN for tiles without.
    """
    array, held = _checked_classes(classes, count)
    if array.ndim != 2:
        raise ValueError(f"classes must have axes (Y, X), got shape {array.shape}")
    high, wide = (tile, tile) if isinstance(tile, int) else tile
    if min(high, wide) < 1:
        raise ValueError(f"a tile needs at least one pixel a side, got {tile}")
    mask = np.ones((1, 1), dtype=np.bool_) if tissue is None else _checked_mask(tissue, array.shape)
    counts = np.zeros((-(-array.shape[0] // high), -(-array.shape[1] // wide), held), dtype=np.int64)
    # A thread takes whole rows of tiles: no two write to one place.
    in_threads(
        lambda part: _count_tiles(array, mask, tissue is not None, part[0], part[1], high, wide, counts),
        slabs(len(counts), available_cores()) if counts.size else [],
    )
    return _shares(counts)


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Where there is tissue: `mask` ``(Y, X)`` bool, and the `threshold` above which a pixel of `method` is tissue."""

    mask: NDArray[np.bool_]
    threshold: float
    method: str

    def measures(self, spacing: Sequence[float] | None = None) -> dict[str, float]:
        """``tissue_area`` and ``tissue_share``."""
        pixel = float(np.prod(checked_steps(spacing, 2)))
        held = int(np.count_nonzero(self.mask))
        share = held / self.mask.size if self.mask.size else float("nan")
        return {"tissue_area": held * pixel, "tissue_share": share}


def tissue_mask(
    rgb: NDArray[Any],
    *,
    method: str = "saturation",
    threshold: float | None = None,
    white: float = 255.0,
    smallest_px: int = 0,
    smallest_hole_px: int = 0,
) -> TissueMask:
    """Tissue on a bright slide.

    Parameters
    ----------
    rgb
        ``(3, Y, X)``.
    method
        ``saturation``: (largest - smallest) / largest of the three channels, 0 for black. ``optical_density``: mean of
        ``-log10`` of the channels over `white`, channels below 1 counting as 1 (for `white` at 255).
    threshold
        A pixel above it is tissue; None is Otsu's threshold of this image, which also cuts an image without any tissue
        (or without glass) in two: fix the threshold where that can happen.
    white
        Value of a channel without absorption.
    smallest_px, smallest_hole_px
        Pieces of tissue, and holes in it, of fewer pixels are removed (neighbours share an edge).

    Raises
    ------
    ValueError
        For other axes, an unknown method or values that are not finite.
    """
    pixels = np.asarray(rgb)
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"rgb must have axes (3, Y, X), got shape {pixels.shape}")
    if method not in TISSUE_METHODS:
        raise ValueError(f"method must be one of {', '.join(TISSUE_METHODS)}, got {method!r}")
    if not white > 0:
        raise ValueError(f"white must be positive, got {white}")
    if not np.isfinite(pixels).all():
        raise ValueError("rgb holds values that are not finite")
    if method == "saturation":
        high, low = pixels.max(0).astype(np.float32), pixels.min(0).astype(np.float32)
        value = np.divide(high - low, high, out=np.zeros_like(high), where=high > 0)
    else:
        light = np.clip(pixels.astype(np.float32) / np.float32(white), np.float32(1 / 255), 1)
        value = -np.log10(light).mean(0, dtype=np.float32)
    cut = otsu(value) if threshold is None else float(threshold)
    mask = value > cut
    if smallest_px > 1:
        mask = _without_small(mask, smallest_px)
    if smallest_hole_px > 1:
        mask = ~_without_small(~mask, smallest_hole_px)
    return TissueMask(mask, cut, method)


def otsu(values: NDArray[Any], bins: int = 256) -> float:
    """The threshold, of `bins` equal steps over the range, with the largest variance between what is above and not.

    Of equal thresholds the middle one; the value itself for constant values, NaN for none.
    """
    flat = np.asarray(values).ravel()
    if flat.size == 0:
        return float("nan")
    low, high = float(flat.min()), float(flat.max())
    if not low < high:
        return low
    count, edges = np.histogram(flat, bins=bins, range=(low, high))
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(count)[:-1].astype(np.float64)
    mass = np.cumsum(count * middle)
    above = flat.size - below
    between = below * above * (mass[:-1] / below - (mass[-1] - mass[:-1]) / above) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(edges[1:-1][best].mean())


def _checked_classes(classes: NDArray[Any], count: int | None) -> tuple[NDArray[Any], int]:
    array = checked_labels(classes, name="classes")
    found = int(array.max()) + 1 if array.size else 0
    if count is not None and found > count:
        raise ValueError(f"classes holds the value {found - 1}, expected values below {count}")
    held = found if count is None else count
    if held > _MOST_CLASSES:
        raise ValueError(
            f"at most {_MOST_CLASSES} classes are allowed, got the value {held - 1}; is it an instance map?"
        )
    return array, held


def _checked_mask(tissue: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.asarray(tissue) != 0
    if mask.shape != shape:
        raise ValueError(f"the tissue mask has shape {mask.shape}, the classes have {shape}")
    return mask


def _shares(counts: NDArray[np.int64]) -> FloatArray:
    """Counts over their sum along the last axis, NaN where that is 0."""
    whole = counts.sum(axis=-1, keepdims=True).astype(np.float64)
    return np.divide(counts, whole, out=np.full(counts.shape, np.nan), where=whole > 0)


def _without_small(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    pieces, _ = ndimage.label(mask)
    keep = np.bincount(pieces.ravel()) >= smallest
    keep[0] = False
    return np.asarray(keep[pieces])


@kernel
def _changes(classes, start, stop, changes):  # type: ignore[no-untyped-def]
    """Changes of class from the pixels of some rows to the next along x, along y and along both diagonals."""
    rows, columns = classes.shape
    for y in range(start, stop):
        for x in range(columns):
            here = classes[y, x]
            if x + 1 < columns and classes[y, x + 1] != here:
                changes[0, here, classes[y, x + 1]] += 1
            if y + 1 < rows:
                if classes[y + 1, x] != here:
                    changes[1, here, classes[y + 1, x]] += 1
                if x + 1 < columns and classes[y + 1, x + 1] != here:
                    changes[2, here, classes[y + 1, x + 1]] += 1
                if x > 0 and classes[y + 1, x - 1] != here:
                    changes[2, here, classes[y + 1, x - 1]] += 1


@kernel
def _count_tiles(classes, mask, masked, start, stop, high, wide, counts):  # type: ignore[no-untyped-def]
    """Pixels per class in some rows of tiles."""
    for row in range(start, stop):
        for y in range(row * high, min((row + 1) * high, classes.shape[0])):
            for x in range(classes.shape[1]):
                if not masked or mask[y, x]:
                    counts[row, x // wide, classes[y, x]] += 1
