"""How far a tumour goes around a vessel, in degrees, slice by slice.

Whether a pancreatic cancer can be resected is read from axial slices by this angle: contact of at most 180 degrees of
a vessel's circumference (abutment) or more (encasement) (NCCN Guidelines, Pancreatic Adenocarcinoma, "Criteria
defining resectability status"; Al-Hawary et al., Radiology 2014;270:248). In each slice, for each piece of the vessel,
the edges of pixels with tumour on their other side are seen from the centre of mass of the piece; the angles they
cover are added, so contact on two sides adds up. An angle does not depend on the staircase of the pixels.

Limits: a vessel that runs within the slice shows its length, not its circumference; a vessel that the tumour has
replaced is no longer in the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import label_boxes
from vesalius.measure.distance import distance_field
from vesalius.measure.quantities import Quantity

_NCCN = "NCCN Guidelines, Pancreatic Adenocarcinoma; Al-Hawary et al., Radiology 2014;270:248"

QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        "encasement_angle",
        "deg",
        "Largest angle of a vessel's circumference in contact with the tumour in any slice; 0 without contact, "
        "undefined without a vessel.",
        _NCCN,
    ),
    Quantity("encasement_slice", "1", "Index of the slice of the largest angle; undefined without contact."),
    Quantity("encasement_above_180", "1", "1 if the largest angle exceeds 180 degrees, else 0.", _NCCN),
    Quantity("encasement_slices", "count", "Number of slices in which tumour and vessel are in contact."),
    Quantity("encasement_length", "mm", "Those slices times their distance: how far along the axis contact goes."),
)


def encasement(
    vessel: NDArray[Any],
    tumour: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    axis: int = 0,
    tolerance: float = 0.0,
) -> dict[str, float]:
    """Angle and length of contact of a tumour with a vessel.

    Parameters
    ----------
    vessel, tumour
        Masks ``(Z, Y, X)`` or ``(Y, X)``; where both hold it is vessel.
    spacing
        Voxel size per axis in mm; None counts in voxels.
    axis
        Slices are perpendicular to it; 0 for axial slices of a volume stored as (z, y, x). Without meaning in 2-D.
    tolerance
        A gap within the slice up to this many mm still counts as contact, as the wall lies between lumen and tumour.

    Returns
    -------
    values
        See `QUANTITIES`; in 2-D ``encasement_angle`` and ``encasement_above_180`` only.
    """
    angles = encasement_angles(vessel, tumour, spacing, axis=axis, tolerance=tolerance)
    flat = np.ndim(vessel) == 2
    known = angles[np.isfinite(angles)]
    most = float(known.max()) if len(known) else np.nan
    # Half a circle of pixels gives 180 up to rounding.
    above = float(most > 180 + 1e-6) if len(known) else np.nan
    if flat:
        return {"encasement_angle": most, "encasement_above_180": above}
    touching = int((known > 0).sum())
    return {
        "encasement_angle": most,
        "encasement_slice": float(np.nanargmax(angles)) if touching else np.nan,
        "encasement_above_180": above,
        "encasement_slices": float(touching) if len(known) else np.nan,
        "encasement_length": touching * checked_spacing(spacing, 3)[axis] if len(known) else np.nan,
    }


def encasement_angles(
    vessel: NDArray[Any],
    tumour: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    axis: int = 0,
    tolerance: float = 0.0,
) -> FloatArray:
    """The largest angle of contact per slice ``(slices,)`` in degrees; NaN where there is no vessel."""
    tube, mass = (np.asarray(mask) != 0 for mask in (vessel, tumour))
    if tube.shape != mass.shape or tube.ndim not in (2, 3):
        raise ValueError(f"masks must share a shape (Z, Y, X) or (Y, X), got {tube.shape} and {mass.shape}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    steps = checked_spacing(spacing, tube.ndim)
    if tube.ndim == 2:
        tube, mass, plane = tube[None], mass[None], steps
    else:
        if not 0 <= axis < 3:
            raise ValueError(f"axis must be 0, 1 or 2, got {axis}")
        tube, mass = np.moveaxis(tube, axis, 0), np.moveaxis(mass, axis, 0)
        plane = tuple(step for k, step in enumerate(steps) if k != axis)
    angles = np.full(len(tube), np.nan)
    boxes = label_boxes(tube)
    if not len(boxes):
        return angles
    reach = [1 + int(np.ceil(tolerance / step)) for step in plane]
    low = np.maximum(boxes.start[0, 1:] - reach, 0)
    high = np.minimum(boxes.stop[0, 1:] + reach, tube.shape[1:])
    window = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    for k in range(int(boxes.start[0, 0]), int(boxes.stop[0, 0])):
        lumen, solid = tube[k][window], mass[k][window]
        if lumen.any():
            angles[k] = _slice_angle(lumen, solid & ~lumen, plane, tolerance) if solid.any() else 0.0
    return angles


def _slice_angle(
    lumen: NDArray[np.bool_], solid: NDArray[np.bool_], plane: tuple[float, ...], tolerance: float
) -> float:
    """The largest angle over the pieces of the vessel in one slice."""
    from scipy.ndimage import binary_fill_holes, find_objects, label

    if tolerance > 0 and solid.any():
        solid = np.asarray(distance_field(solid, plane) <= tolerance * (1 + 1e-6))
    pieces, _ = label(lumen, structure=np.ones((3, 3)))
    most = 0.0
    for number, box in enumerate(find_objects(pieces), start=1):
        wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        piece = binary_fill_holes(pieces[wide] == number)
        most = max(most, _piece_angle(piece, solid[wide] & ~piece, plane))
    return most


def _piece_angle(piece: NDArray[np.bool_], solid: NDArray[np.bool_], plane: tuple[float, ...]) -> float:
    """Sum of the angles under which the touching edges are seen from the centre of mass of `piece`."""
    inside, touched = np.pad(piece, 1), np.pad(solid, 1)
    centre = np.argwhere(inside).mean(0)
    total = 0.0
    # Walking around the piece in one sense: edge towards (dy, dx) runs from one corner to the other.
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        # np.roll brings the neighbour at (dy, dx) to each pixel; the padding keeps it from wrapping.
        edges = np.argwhere(inside & np.roll(touched, (-dy, -dx), axis=(0, 1)))
        if not len(edges):
            continue
        middle = edges + np.array([dy, dx]) / 2 - centre
        along = np.array([dx, -dy]) / 2
        start, stop = (middle - along) * plane, (middle + along) * plane
        cross = stop[:, 0] * start[:, 1] - stop[:, 1] * start[:, 0]
        total += float(np.arctan2(cross, (start * stop).sum(1)).sum())
    return float(np.clip(np.degrees(total), 0.0, 360.0))
