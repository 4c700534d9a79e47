"""Where pixels go: one sampling field and one interpolation for the whole spatial chain, in two and three dimensions.

An output pixel p (index, order z, y, x) takes its value from the input at::

    q = M F (p - c) + c + t + u(p)

with c the centre of the image, F flips, M a linear map (rotation, scale, shear, zoom), t a shift and u a smooth
displacement. M works in pixel units, so a rotation of a 300 x 200 image stays a rotation; t and u are fractions of the
image's sides, so parameters can be drawn before the image is known.

Samples whose map is the identity are returned bit for bit; samples that are only flipped are never interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from vesalius.transforms.resample import apply_matrices, spline_matrix

FloatArray = NDArray[np.float64]

PADDINGS = ("border", "zeros", "reflection", "minimum")
"""What lies outside the image: its edge, zero, its mirror image, or the smallest value of each sample."""

# Control displacements below this part of a control cell cannot fold a cubic B-spline field in 3-D (1 / 2.479; Choi
# and Lee, "Injectivity conditions of 2D and 3D uniform cubic B-spline functions", Graphical Models 62, 2000).
FOLD_FREE = 0.40
_INVERSE_STEPS = 30


@dataclass(frozen=True, eq=False)
class SpatialParams:
    """One spatial map per sample, independent of the image size.

    Parameters
    ----------
    matrix
        ``(B, d, d)``: M, output to input, in pixel units.
    shift
        ``(B, d)``: t as a fraction of the sides.
    flip
        ``(B, d)`` bool: axes to mirror.
    elastic
        ``(B, d, g + 3, ...)`` control points of u as fractions of the sides, a cubic B-spline over g cells per axis;
        None for no displacement at all.
    """

    matrix: FloatArray
    shift: FloatArray
    flip: NDArray[np.bool_]
    elastic: FloatArray | None = None

    def __post_init__(self) -> None:
        count, dims = self.shift.shape
        if self.matrix.shape != (count, dims, dims) or self.flip.shape != (count, dims) or dims not in (2, 3):
            raise ValueError(
                f"matrix (B, d, d), shift (B, d) and flip (B, d) must agree with d of 2 or 3, got "
                f"{self.matrix.shape}, {self.shift.shape} and {self.flip.shape}"
            )
        if self.elastic is not None and (self.elastic.ndim != dims + 2 or self.elastic.shape[:2] != (count, dims)):
            raise ValueError(f"elastic must be (B, d, g + 3, ...) for {count} samples, got {self.elastic.shape}")

    @classmethod
    def identity(cls, count: int, dims: int) -> SpatialParams:
        """`count` maps that change nothing."""
        return cls(np.tile(np.eye(dims), (count, 1, 1)), np.zeros((count, dims)), np.zeros((count, dims), bool))

    def __len__(self) -> int:
        return int(self.shift.shape[0])

    def __getitem__(self, which: slice | NDArray[np.int64]) -> SpatialParams:
        elastic = None if self.elastic is None else self.elastic[which]
        return SpatialParams(self.matrix[which], self.shift[which], self.flip[which], elastic)

    @property
    def dims(self) -> int:
        """2 or 3."""
        return int(self.shift.shape[1])

    @property
    def warped(self) -> NDArray[np.bool_]:
        """``(B,)``: samples that need interpolation; the others are at most flipped."""
        moved = (self.matrix != np.eye(self.dims)).any(axis=(1, 2)) | (self.shift != 0).any(axis=1)
        if self.elastic is not None:
            moved |= (self.elastic != 0).reshape(len(self), -1).any(axis=1)
        return np.asarray(moved)


def linear_maps(
    *,
    rotation: ArrayLike,
    scale: ArrayLike | None = None,
    shear: ArrayLike | None = None,
    spacing: Sequence[float] | None = None,
) -> FloatArray:
    """M of `SpatialParams` from what a person would say.

    Parameters
    ----------
    rotation
        Radians: ``(B,)`` or ``(B, 1)`` in the (y, x) plane, or ``(B, 3)`` about the axes z, y and x in this order.
        Positive angles turn the content from the first towards the second axis of the plane.
    scale
        ``(B, d)``: magnification of the content per axis (2 makes it twice as large).
    shear
        ``(B, d, d)``: off-diagonal slopes, the diagonal is ignored.
    spacing
        Relative size of a pixel per axis: rotation and shear then happen in physical space (thick slices).
    """
    angles = np.atleast_2d(np.asarray(rotation, dtype=np.float64))
    if angles.shape[0] == 1 and np.ndim(rotation) == 1:
        angles = angles.T
    planes = [(0, 1)] if angles.shape[1] == 1 else [(1, 2), (0, 2), (0, 1)]
    dims = 2 if len(planes) == 1 else 3
    maps = np.tile(np.eye(dims), (len(angles), 1, 1))
    for k, (a, b) in enumerate(planes):
        turn = np.tile(np.eye(dims), (len(angles), 1, 1))
        # Output to input: the inverse of the turn that the content makes.
        turn[:, a, a] = turn[:, b, b] = np.cos(angles[:, k])
        turn[:, a, b] = np.sin(angles[:, k])
        turn[:, b, a] = -np.sin(angles[:, k])
        maps = maps @ turn
    if shear is not None:
        slopes = np.array(shear, dtype=np.float64)
        slopes[:, np.arange(dims), np.arange(dims)] = 1.0
        maps = maps @ slopes
    if scale is not None:
        maps = maps / np.asarray(scale, dtype=np.float64)[:, None, :]
    if spacing is not None:
        size = np.asarray(spacing, dtype=np.float64)
        maps = maps * size[None, None, :] / size[None, :, None]
    return np.asarray(maps, dtype=np.float64)


def smooth_field(control: Tensor, shape: Sequence[int]) -> Tensor:
    """Cubic B-spline through control points ``(B, K, g + 3, ...)`` at every pixel, ``(B, K, *shape)``."""
    cells = [int(side) - 3 for side in control.shape[2:]]
    return apply_matrices(control, [spline_matrix(int(n), g) for n, g in zip(shape, cells, strict=True)])


def flip(x: Tensor, which: NDArray[np.bool_]) -> Tensor:
    """Mirror ``(B, C, *S)`` along the axes that `which` ``(B, d)`` names per sample; `x` itself where there is none."""
    for axis in range(which.shape[1]):
        rows = which[:, axis]
        if rows.all():
            x = x.flip(axis + 2)
        elif rows.any():
            index = torch.from_numpy(np.flatnonzero(rows)).to(x.device)
            x = x.index_copy(0, index, x[index].flip(axis + 2))
    return x


def sampling_grid(params: SpatialParams, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Where every output pixel looks, ``(B, *S, d)`` in the coordinates of `torch.nn.functional.grid_sample`.

    (order x, y, z; -1 and 1 are the outer edges of the first and last pixel, ``align_corners=False``).
    """
    sides = np.asarray(shape, dtype=np.float64)
    linear = params.matrix * np.where(params.flip, -1.0, 1.0)[:, None, :]
    to_unit = 2.0 / sides
    theta = _tensor(linear * to_unit[None, :, None], device)
    start = _tensor(params.shift * 2.0, device)
    shift = None
    if params.elastic is not None and params.elastic.any():
        shift = 2.0 * smooth_field(_tensor(params.elastic, device), shape)
    return _affine_grid(theta, start, shape, shift)


def _affine_grid(theta: Tensor, start: Tensor, shape: Sequence[int], shift: Tensor | None) -> Tensor:
    """Sums of one-dimensional ramps: cheaper than a product with all coordinates, and the same bits in any batch."""
    dims = len(shape)
    ramps = []
    for axis, side in enumerate(shape):
        ramp = torch.arange(side, dtype=torch.float32, device=theta.device) - (side - 1) / 2
        ramps.append(ramp.view([-1 if k == axis else 1 for k in range(dims)]))
    grid = torch.empty((theta.shape[0], *shape, dims), dtype=torch.float32, device=theta.device)
    ones = (1,) * dims
    for row in range(dims):
        place = start[:, row].view(-1, *ones)
        for axis in range(dims):
            place = place + theta[:, row, axis].view(-1, *ones) * ramps[axis]
        # grid_sample wants x first.
        grid[..., dims - 1 - row] = place if shift is None else place + shift[:, row]
    return grid


def warp(image: Tensor, params: SpatialParams, *, mode: str = "linear", padding: str = "border") -> Tensor:
    """Move a batch.

    Parameters
    ----------
    image
        ``(B, C, *S)``; float, or an integer label map with ``mode="nearest"`` (values below 2**24).
    mode
        ``"linear"`` or ``"nearest"``.
    padding
        One of `PADDINGS`.

    Returns
    -------
    Tensor
        Same shape and type; `image` itself if nothing moves.
    """
    return warp_together(image, None, params, padding=padding, mode=mode)[0]


def warp_together(
    image: Tensor, label: Tensor | None, params: SpatialParams, *, padding: str = "border", mode: str = "linear",
    label_fill: int = 0,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Move an image and the label map ``(B, 1, *S)`` on it by the same field; labels by nearest neighbour.

    `label_fill` is the label of what lies outside, for the paddings ``"zeros"`` and ``"minimum"``.
    """
    _check(image, params, padding)
    if label is not None and (label.shape[0] != image.shape[0] or label.shape[2:] != image.shape[2:]):
        raise ValueError(f"label {tuple(label.shape)} and image {tuple(image.shape)} must have the same B and sides")
    rows = np.flatnonzero(params.warped)
    still = params.flip.copy()
    still[rows] = False
    image = flip(image, still)
    label = None if label is None else flip(label, still)
    if rows.size:
        grid = sampling_grid(params[rows], image.shape[2:], image.device)
        image = _sample_rows(image, rows, grid, mode=mode, padding=padding)
        if label is not None:
            label = _sample_rows(label, rows, grid, mode="nearest", padding=padding, fill=label_fill)
    return image, label


def invert(image: Tensor, params: SpatialParams, *, mode: str = "linear", padding: str = "border") -> Tensor:
    """Move a batch back: ``invert(warp(x, p), p)`` is x up to interpolation and what left the image.

    Flips come back exactly. A displacement is inverted by fixed-point iteration (Chen et al., "A simple fixed-point
    approach to invert a deformation field", Medical Physics 35, 2008).
    """
    _check(image, params, padding)
    rows = np.flatnonzero(params.warped)
    still = params.flip.copy()
    still[rows] = False
    image = flip(image, still)
    if not rows.size:
        return image
    chosen = params[rows]
    shape = tuple(image.shape[2:])
    axes = [torch.arange(side, dtype=torch.float32, device=image.device) for side in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(1, -1, len(shape))
    places = _inverse_places(index.expand(len(chosen), -1, -1), chosen, shape)
    sides = torch.tensor(shape, dtype=torch.float32, device=image.device)
    grid = ((2 * places + 1) / sides - 1).flip(-1).view(len(chosen), *shape, len(shape))
    return _sample_rows(image, rows, grid, mode=mode, padding=padding)


def map_points(points: Tensor, params: SpatialParams, shape: Sequence[int]) -> Tensor:
    """Where `warp` puts points of the input, ``(B, N, d)`` in index units (z, y, x), same shape and order out."""
    if points.ndim != 3 or points.shape[0] != len(params) or points.shape[2] != params.dims:
        raise ValueError(f"points must be (B, N, {params.dims}) for {len(params)} samples, got {tuple(points.shape)}")
    return _inverse_places(points.to(torch.float32), params, shape)


def map_boxes(boxes: Tensor, params: SpatialParams, shape: Sequence[int]) -> Tensor:
    """Boxes ``(B, N, 2 d)``, lower then upper corner, to the boxes around their moved corners (not clipped)."""
    dims = params.dims
    if boxes.ndim != 3 or boxes.shape[2] != 2 * dims:
        raise ValueError(f"boxes must be (B, N, {2 * dims}), lower then upper corner, got {tuple(boxes.shape)}")
    choices = [[k + dims * side for k, side in enumerate(corner)] for corner in product((0, 1), repeat=dims)]
    corners = boxes[:, :, choices]
    moved = map_points(corners.flatten(1, 2), params, shape).view(corners.shape)
    return torch.cat([moved.amin(dim=2), moved.amax(dim=2)], dim=-1)


def _inverse_places(places: Tensor, params: SpatialParams, shape: Sequence[int]) -> Tensor:
    """Solve q = M F (p - c) + c + t + u(p) for p; `places` ``(B, N, d)`` hold q in index units."""
    device = places.device
    sides = np.asarray(shape, dtype=np.float64)
    linear = params.matrix * np.where(params.flip, -1.0, 1.0)[:, None, :]
    back = _tensor(np.linalg.inv(linear), device)
    centre = _tensor((sides - 1) / 2, device)
    target = places - centre - _tensor(params.shift * sides, device)[:, None, :]
    found = (back[:, None] * target[:, :, None, :]).sum(-1) + centre
    if params.elastic is None or not params.elastic.any():
        return found
    field = smooth_field(_tensor(params.elastic * sides[:, *(None,) * len(shape)], device), shape)
    size = _tensor(sides, device)
    ones = (1,) * (len(shape) - 1)
    for _ in range(_INVERSE_STEPS):
        grid = ((2 * found + 1) / size - 1).flip(-1).view(len(params), *ones, -1, len(shape))
        u = F.grid_sample(field, grid, mode="bilinear", padding_mode="border", align_corners=False)
        u = u.flatten(2).transpose(1, 2)
        found = (back[:, None] * (target - u)[:, :, None, :]).sum(-1) + centre
    return found


def _sample_rows(x: Tensor, rows: NDArray[np.int64], grid: Tensor, *, mode: str, padding: str, fill: int = 0) -> Tensor:
    everything = rows.size == x.shape[0]
    index = torch.from_numpy(rows).to(x.device)
    part = (x if everything else x[index]).to(torch.float32)
    base: Tensor | float = float(fill)
    if padding == "minimum" and mode == "linear":
        base = part.flatten(2).amin(dim=2).view(*part.shape[:2], *(1,) * (part.ndim - 2))
    outside = "zeros" if padding == "minimum" else padding
    plain = outside != "zeros" or (not isinstance(base, Tensor) and base == 0)
    method = "bilinear" if mode == "linear" else "nearest"
    moved = F.grid_sample(part if plain else part - base, grid, method, outside, align_corners=False)
    moved = (moved if plain else moved + base).to(x.dtype)
    return moved if everything else x.index_copy(0, index, moved)


def _check(image: Tensor, params: SpatialParams, padding: str) -> None:
    axes = "Y, X" if params.dims == 2 else "Z, Y, X"
    if image.ndim != params.dims + 2:
        raise ValueError(f"image must have axes (B, C, {axes}), got shape {tuple(image.shape)}")
    if image.shape[0] != len(params):
        raise ValueError(f"{len(params)} spatial maps for a batch of {image.shape[0]}")
    if padding not in PADDINGS:
        raise ValueError(f"padding {padding!r} is unknown; choose one of {', '.join(PADDINGS)}")


def _tensor(array: NDArray[np.floating[Any]], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)
