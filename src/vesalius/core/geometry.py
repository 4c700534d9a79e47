"""Where voxels are. Geometry can exist without pixels, and is never invented.

Conventions of the whole house: arrays are indexed (z, y, x); physical coordinates are patient **LPS** millimetres
(x to the Left, y to Posterior, z to Superior), as in DICOM (PS3.3 C.7.6.2); NIfTI's RAS is converted at the door.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

AXES = {2: "Y, X", 3: "Z, Y, X"}


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and place of a regular grid of pixels or voxels.

    Parameters
    ----------
    shape
        ``(Y, X)`` or ``(Z, Y, X)``, every side at least 1.
    affine
        ``(4, 4)``: homogeneous voxel index ``(z, y, x, 1)`` to patient LPS mm ``(x, y, z, 1)``. For a two-dimensional
        grid the first column is the slice normal (unit length) and the index z is 0. None where the file says nothing
        about the position in the patient.
    spacing
        Distance of pixel centres in mm per axis of `shape`, for files that know a pixel size but no position (a
        projection radiograph). Leave it None when `affine` is given: the spacing then follows from it.
    """

    shape: tuple[int, ...]
    affine: FloatArray | None = None
    spacing: tuple[float, ...] | None = field(default=None)

    def __post_init__(self) -> None:
        shape = tuple(int(side) for side in self.shape)
        if len(shape) not in AXES or min(shape) < 1:
            raise ValueError(f"grid shape must be (Y, X) or (Z, Y, X) with sides of at least 1, got {self.shape}")
        object.__setattr__(self, "shape", shape)
        if self.affine is not None:
            object.__setattr__(self, "affine", _checked_affine(self.affine))
            if self.spacing is not None:
                raise ValueError("give a grid either affine or spacing; the spacing follows from the affine")
        elif self.spacing is not None:
            spacing = tuple(float(step) for step in self.spacing)
            if len(spacing) != len(shape) or not all(np.isfinite(step) and step > 0 for step in spacing):
                raise ValueError(f"spacing must have one positive number per axis of {shape}, got {self.spacing}")
            object.__setattr__(self, "spacing", spacing)

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def spacing_mm(self) -> tuple[float, ...] | None:
        """Distance of neighbouring centres per axis of `shape` in mm; None where the file has no physical size."""
        if self.affine is None:
            return self.spacing
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(step) for step in steps[3 - self.ndim :])

    @property
    def voxel_mm3(self) -> float | None:
        """Volume of one voxel in mm³ (three-dimensional grids with an affine or spacing), else None."""
        if self.ndim != 3:
            return None
        if self.affine is not None:
            return float(abs(np.linalg.det(self.affine[:3, :3])))
        return float(np.prod(self.spacing)) if self.spacing is not None else None

    def to_patient(self, index: ArrayLike) -> FloatArray:
        """Voxel indices ``(..., ndim)`` in order (z, y, x) to patient LPS mm ``(..., 3)``.

        Raises
        ------
        ValueError
            If the grid has no position in the patient.
        """
        points = self._three(np.asarray(index, dtype=np.float64))
        affine = self._require_affine()
        return points @ affine[:3, :3].T + affine[:3, 3]

    def to_index(self, point_mm: ArrayLike) -> FloatArray:
        """Patient LPS mm ``(..., 3)`` to fractional voxel indices ``(..., ndim)``; inverse of `to_patient`."""
        affine = self._require_affine()
        inverse = np.linalg.inv(affine)
        points = np.asarray(point_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]
        return points[..., 3 - self.ndim :]

    def same_place(self, other: Grid, *, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same shape and every corner lies at the same place within `tolerance_mm`."""
        if self.shape != other.shape or (self.affine is None) != (other.affine is None):
            return False
        if self.affine is None or other.affine is None:
            mine, theirs = self.spacing, other.spacing
            if mine is None or theirs is None:
                return mine is theirs
            return bool(np.allclose(mine, theirs, rtol=0, atol=tolerance_mm / max(self.shape)))
        corners = self._corners()
        gap = np.linalg.norm(self.to_patient(corners) - other.to_patient(corners), axis=-1)
        return bool(gap.max() <= tolerance_mm)

    def _corners(self) -> FloatArray:
        ends = [(0, side - 1) for side in self.shape]
        return np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, self.ndim).astype(np.float64)

    def _three(self, index: FloatArray) -> FloatArray:
        if index.shape[-1] != self.ndim:
            raise ValueError(f"index must end in an axis of {self.ndim} ({AXES[self.ndim]}), got {index.shape}")
        if self.ndim == 3:
            return index
        return np.concatenate([np.zeros_like(index[..., :1]), index], axis=-1)

    def _require_affine(self) -> FloatArray:
        if self.affine is None:
            raise ValueError("this grid has no position in the patient; measure in pixels instead")
        return self.affine


def _checked_affine(affine: ArrayLike) -> FloatArray:
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"affine must have shape (4, 4), got {matrix.shape}")
    if not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ValueError("affine must be finite with the last row (0, 0, 0, 1)")
    if abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise ValueError("affine is singular: two voxel axes point the same way or a spacing is zero")
    matrix.setflags(write=False)
    return matrix


def affine_from_axes(origin_mm: ArrayLike, directions: ArrayLike, spacing_mm: Sequence[float]) -> FloatArray:
    """The affine of a grid from its first voxel, its axes and its spacing.

    Parameters
    ----------
    origin_mm
        ``(3,)``: patient LPS mm of voxel (0, 0, 0).
    directions
        ``(3, 3)``: row i is the unit vector along index axis i, in the order (z, y, x).
    spacing_mm
        Three steps in the order (z, y, x).
    """
    matrix = np.eye(4)
    matrix[:3, :3] = (np.asarray(directions, dtype=np.float64) * np.asarray(spacing_mm, dtype=np.float64)[:, None]).T
    matrix[:3, 3] = np.asarray(origin_mm, dtype=np.float64)
    return matrix


RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_from_nifti(affine_ras: ArrayLike) -> FloatArray:
    """NIfTI affine, index (i, j, k) to RAS mm, as the house's affine, index (z=k, y=j, x=i) to LPS mm."""
    matrix = RAS_TO_LPS @ np.asarray(affine_ras, dtype=np.float64)
    return matrix[:, [2, 1, 0, 3]]


def affine_to_nifti(affine: ArrayLike) -> FloatArray:
    """The inverse of `affine_from_nifti`."""
    return (RAS_TO_LPS @ np.asarray(affine, dtype=np.float64))[:, [2, 1, 0, 3]]
