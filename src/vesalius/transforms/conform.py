"""A case as a segmentation network sees it, and the way back to the file.

The array is turned to the closest patient axes (z to superior, y to posterior, x to left), so that a result does not
depend on how a file stores its volume; empty borders are cut off; values are clipped and normalised; and the rest is
resampled to the spacing of the plan. Everything is computed by planes when it is asked for: a volume needs no second
copy in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vesalius.core.errors import PlanError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.transforms.resample import apply_matrices, interpolation_matrix, spaced_shape

NORMALISE = ("fixed", "body", "percentile", "none")
_SAMPLES = 1 << 21
# Percentiles of the robust range, and the part of that range below which a voxel of an MR volume counts as air.
_ROBUST, _AIR = (0.5, 99.5), 0.1


@dataclass(frozen=True)
class Pose:
    """How an array is turned: axis k of the turned array is axis ``axes[k]`` of the file, mirrored if ``flips[k]``."""

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    def turn(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of ``(..., *S)`` in the turned order."""
        lead = array.ndim - len(self.axes)
        view = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return np.asarray(view[self._mirror()])

    def back(self, array: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `turn`, as a view."""
        lead = array.ndim - len(self.axes)
        view = np.asarray(array[self._mirror()])
        order = np.argsort(self.axes)
        return view.transpose(*range(lead), *(lead + int(axis) for axis in order))

    def _mirror(self) -> tuple[Any, ...]:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))

    @property
    def still(self) -> bool:
        """Nothing is turned."""
        return self.axes == tuple(range(len(self.axes))) and not any(self.flips)


def pose_of(grid: Grid) -> Pose:
    """The turn that brings the axes of a volume closest to patient z, y, x; none without a position in the patient.

    The assignment with the largest sum of direction cosines is taken, so that no axis is used twice in oblique grids.
    """
    if grid.ndim == 2 or grid.affine is None:
        return Pose(tuple(range(grid.ndim)), (False,) * grid.ndim)
    columns = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    # Row k: how much each array axis runs along patient axis z, y, x.
    along = columns[::-1]
    best = max(
        itertools.permutations(range(3)), key=lambda order: sum(abs(along[k, axis]) for k, axis in enumerate(order))
    )
    return Pose(tuple(best), tuple(bool(along[k, axis] < 0) for k, axis in enumerate(best)))


@dataclass(frozen=True, eq=False)
class Conformed:
    """One case, ready for a network, computed by planes.

    Parameters
    ----------
    source
        ``(C, *S)`` turned and cut, in the type of the file.
    pose, lower, whole
        The turn, the first voxel that was kept, and the turned shape before the cut.
    shape
        Sides after resampling; the last axes of what `read` returns.
    spacing_mm
        Of the resampled planes, or None.
    scale, shift
        ``(C,)``: value * scale + shift is what the network sees, after clipping to `window`.
    """

    source: NDArray[Any]
    pose: Pose
    lower: tuple[int, ...]
    whole: tuple[int, ...]
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    window: tuple[NDArray[np.float32], NDArray[np.float32]] | None

    @property
    def cut(self) -> tuple[int, ...]:
        """Sides after the cut, before resampling."""
        return tuple(self.source.shape[1:])

    @property
    def resampled(self) -> bool:
        """Whether planes are interpolated."""
        return self.cut != self.shape

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Planes `start` to `stop` along the first spatial axis, ``(C, stop - start, ...)`` float32."""
        if self.cut[0] == self.shape[0]:
            return self._in_plane(self.source[:, start:stop])
        matrix = interpolation_matrix(self.cut[0], self.shape[0])[start:stop]
        used = np.flatnonzero(matrix.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        planes = self._in_plane(self.source[:, first:last])
        part = np.ascontiguousarray(matrix[:, first:last])
        rest: list[NDArray[np.float32] | None] = [None] * (len(self.shape) - 1)
        return np.asarray(apply_matrices(torch.from_numpy(planes), [part, *rest]).numpy())

    def all(self) -> NDArray[np.float32]:
        """Every plane, ``(C, *shape)``."""
        return self.read(0, self.shape[0])

    def _in_plane(self, planes: NDArray[Any]) -> NDArray[np.float32]:
        # A copy in any case: what follows works in place, and the planes may be those of the file.
        values = np.array(planes, dtype=np.float32, order="C")
        column = (-1,) + (1,) * (values.ndim - 1)
        if self.window is not None:
            np.clip(values, self.window[0].reshape(column), self.window[1].reshape(column), out=values)
        values *= self.scale.reshape(column)
        values += self.shift.reshape(column)
        matrices = [
            None if old == new else interpolation_matrix(old, new)
            for old, new in zip(self.cut[1:], self.shape[1:], strict=True)
        ]
        if all(matrix is None for matrix in matrices):
            return values
        return np.asarray(apply_matrices(torch.from_numpy(values), matrices).numpy())

    def labels(self, mask: NDArray[Any]) -> NDArray[Any]:
        """A label map ``(*S)`` of the file on the grid of `shape`: every voxel takes the label with the largest part.

        Each label is interpolated by itself inside its box, as the image is; on a tie the smaller label wins.
        """
        turned = self.pose.turn(mask)
        box = tuple(slice(a, a + n) for a, n in zip(self.lower, self.cut, strict=True))
        turned = turned[box]
        if not self.resampled:
            return np.ascontiguousarray(turned)
        return resampled_labels(turned, self.shape)


class Conform:
    """Preprocessing of segmentation as section ``conform`` of a plan describes it.

    Parameters
    ----------
    spec
        ``dims``, ``channels``, ``orient``, ``crop``, ``spacing_mm``, ``scale``, ``window``, ``normalise``.

    Raises
    ------
    PlanError
        For a normalisation that does not exist or lacks its numbers, and a window without a width.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = dict(spec)
        self.dims, self.channels = int(spec["dims"]), int(spec["channels"])
        self.spacing = None if spec.get("spacing_mm") is None else tuple(float(s) for s in spec["spacing_mm"])
        self.kind = str(spec["normalise"].get("kind"))
        if self.kind not in NORMALISE:
            raise PlanError(f"conform.normalise kind {self.kind!r} is unknown; choose one of {', '.join(NORMALISE)}")
        if self.kind == "fixed" and not {"mean", "std"} <= spec["normalise"].keys():
            raise PlanError(f"conform.normalise of kind fixed needs mean and std, got {dict(spec['normalise'])}")
        window = spec.get("window")
        if window is not None and not (len(window) == 2 and window[0] < window[1]):
            raise PlanError(f"conform.window needs [low, high] with low below high, got {list(window)}")

    def __call__(self, image: Image, *, scale: float | None = None) -> Conformed:
        """A case.

        Parameters
        ----------
        image
            One image whose channels are those of the plan.
        scale
            Magnification in place of the plan's, for images without physical size.

        Raises
        ------
        ValueError
            One line saying what is wrong with the pixels: other axes or channels, values that are not finite, or one
            single value everywhere.
        """
        self._check(image)
        pose = pose_of(image.grid) if self.spec.get("orient", True) else Pose(tuple(range(self.dims)), (False,) * 3)
        turned = pose.turn(image.pixels)
        if turned.shape[0] != self.channels:
            turned = _channels(turned, self.channels)
        whole = tuple(turned.shape[1:])
        lower, upper = _used_box(turned) if self.spec.get("crop") == "border" else ((0,) * self.dims, whole)
        cut = turned[(slice(None), *(slice(a, b) for a, b in zip(lower, upper, strict=True)))]
        spacing = image.grid.spacing_mm
        spacing = None if spacing is None else tuple(spacing[axis] for axis in pose.axes)
        shape, new = self._shape(cut.shape[1:], spacing, scale)
        window = self._window()
        factor, shift = self._normalise(cut, window)
        return Conformed(cut, pose, lower, whole, shape, new, factor, shift, window)

    def _check(self, image: Image) -> None:
        shape = image.grid.shape
        if image.grid.ndim != self.dims:
            raise ValueError(
                f"has {image.grid.ndim} dimensions {shape}, the model has {self.dims}; give an image of that kind"
            )
        if self.dims == 3 and min(shape) < 2:
            raise ValueError(f"has one slice only (shape {shape}); the model needs a volume of at least 2 slices")
        have = image.pixels.shape[0]
        if have != self.channels and not (have in (1, 3, 4) and self.channels in (1, 3) and self.dims == 2):
            raise ValueError(f"has {have} channels, the model needs {self.channels}; give every channel of a case")
        if image.pixels.dtype.kind == "f" and not np.isfinite(image.pixels).all():
            count = int(image.pixels.size - np.isfinite(image.pixels).sum())
            raise ValueError(f"{count} values are not finite numbers (NaN or infinite); export the image again")
        if image.pixels.min() == image.pixels.max():
            raise ValueError(f"every pixel has the value {image.pixels.flat[0]}; there is nothing to see in it")

    def _shape(
        self, cut: Sequence[int], spacing: tuple[float, ...] | None, scale: float | None
    ) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
        cut = tuple(int(side) for side in cut)
        if self.spacing is not None and spacing is not None:
            shape = spaced_shape(cut, spacing, self.spacing)
            return shape, tuple(s * a / b for s, a, b in zip(spacing, cut, shape, strict=True))
        factor = float(scale if scale is not None else self.spec.get("scale") or 1.0)
        if factor == 1.0:
            return cut, spacing
        return tuple(max(1, round(side * factor)) for side in cut), spacing

    def _window(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        window = self.spec.get("window")
        if window is None:
            return None
        low, high = (np.full(self.channels, value, dtype=np.float32) for value in window)
        return low, high

    def _normalise(
        self, cut: NDArray[Any], window: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self.kind == "none":
            return np.ones(self.channels, np.float32), np.zeros(self.channels, np.float32)
        if self.kind == "fixed":
            mean = np.resize(np.asarray(self.spec["normalise"]["mean"], np.float64), self.channels)
            std = np.resize(np.asarray(self.spec["normalise"]["std"], np.float64), self.channels)
            return (1 / std).astype(np.float32), (-mean / std).astype(np.float32)
        drawn = sampled(cut)
        if window is not None:
            drawn = np.clip(drawn, window[0][:, None], window[1][:, None])
        if self.kind == "percentile":
            # One range for all channels: colours keep their relation.
            low, high = np.percentile(drawn, _ROBUST)
            width = max(float(high - low), 1e-6)
            return np.full(self.channels, 4 / width, np.float32), np.full(
                self.channels, -4 * low / width - 2, np.float32
            )
        mean, std = np.empty(self.channels), np.empty(self.channels)
        for channel, values in enumerate(drawn):
            inside = values[values > air_level(values)]
            inside = inside if inside.size > 16 else values
            mean[channel], std[channel] = inside.mean(), max(float(inside.std()), 1e-6)
        return (1 / std).astype(np.float32), (-mean / std).astype(np.float32)


def sampled(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Up to two million values per channel ``(C, N)`` on a regular pattern, float32."""
    step = max(1, int(np.ceil(np.prod(pixels.shape[1:]) / _SAMPLES)))
    if step == 1:
        return np.ascontiguousarray(pixels, dtype=np.float32).reshape(pixels.shape[0], -1)
    planes = max(1, round(step ** (1 / (pixels.ndim - 1))))
    some = pixels[(slice(None), *(slice(None, None, planes) for _ in pixels.shape[1:]))]
    return np.ascontiguousarray(some, dtype=np.float32).reshape(pixels.shape[0], -1)


def air_level(values: NDArray[Any]) -> float:
    """Values up to this one are outside the body.

    Where many voxels share the smallest value (skull-stripped or padded volumes) only those are outside; else a tenth
    of the robust range of the values.
    """
    smallest = float(values.min())
    if float((values == smallest).mean()) > 0.02:
        return smallest
    low, high = np.percentile(values, _ROBUST)
    return float(low + _AIR * (high - low))


def resampled_labels(mask: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """A label map ``(*S)`` interpolated to `shape`: the label with the largest linear weight wins at every voxel."""
    out = np.zeros(tuple(shape), dtype=mask.dtype)
    best = np.zeros(tuple(shape), dtype=np.float32)
    matrices = [
        None if old == new else interpolation_matrix(old, new) for old, new in zip(mask.shape, shape, strict=True)
    ]
    taken = np.zeros(tuple(shape), dtype=np.float32)
    for value in np.unique(mask):
        if value == 0:
            continue
        box, part = _weights(mask == value, matrices)
        taken[box] += part
        better = part > best[box]
        out[box] = np.where(better, value, out[box])
        best[box] = np.where(better, part, best[box])
    # What the labels leave belongs to the background.
    out[1.0 - taken >= best] = 0
    return out


def _weights(
    chosen: NDArray[np.bool_], matrices: Sequence[NDArray[np.float32] | None]
) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """Where a mask has weight after resampling, and how much."""
    source: list[slice] = []
    target: list[slice] = []
    parts: list[NDArray[np.float32] | None] = []
    for axis, matrix in enumerate(matrices):
        others = tuple(other for other in range(chosen.ndim) if other != axis)
        used = np.flatnonzero(chosen.any(axis=others))
        first, last = int(used[0]), int(used[-1]) + 1
        source.append(slice(first, last))
        if matrix is None:
            target.append(slice(first, last))
            parts.append(None)
            continue
        rows = np.flatnonzero(matrix[:, first:last].any(axis=1))
        target.append(slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0))
        parts.append(np.ascontiguousarray(matrix[target[-1], first:last]))
    if any(part.stop == part.start for part in target):
        return tuple(target), np.zeros([part.stop - part.start for part in target], dtype=np.float32)
    values = torch.from_numpy(np.ascontiguousarray(chosen[tuple(source)], dtype=np.float32))
    return tuple(target), np.asarray(apply_matrices(values, parts).numpy())


def _channels(pixels: NDArray[Any], wanted: int) -> NDArray[Any]:
    """Gray as three equal colours, colours as gray, transparency left out."""
    colours = pixels[:3] if pixels.shape[0] == 4 else pixels
    if wanted == 3:
        return np.repeat(colours[:1], 3, axis=0) if colours.shape[0] == 1 else colours
    gray = np.tensordot(np.array([0.299, 0.587, 0.114]), colours.astype(np.float32), axes=1)
    return np.asarray(gray[None], dtype=np.float32)


def _used_box(pixels: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The box outside which every plane has one and the same value in all channels: padding, never anatomy."""
    corner = np.asarray([channel.flat[0] for channel in pixels])
    differs = (pixels != corner.reshape(-1, *(1,) * (pixels.ndim - 1))).any(axis=0)
    lower, upper = [], []
    for axis in range(differs.ndim):
        used = np.flatnonzero(differs.any(axis=tuple(other for other in range(differs.ndim) if other != axis)))
        lower.append(int(used[0]) if used.size else 0)
        upper.append(int(used[-1]) + 1 if used.size else differs.shape[axis])
    return tuple(lower), tuple(upper)
