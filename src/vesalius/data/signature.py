"""What an image is recognised by: a hash of its exact pixels and a small descriptor of its detail.

Both come from pixels that are already decoded, so one pass over the files serves signatures, fingerprint and store.
The hash does not depend on the container: the same values in PNG, NIfTI or npz, in 8 or 64 bit, as grey or as three
equal colour channels, give the same hash. The descriptor is for `data.duplicates`; its parts and why they are as they
are: ``docs/leakage.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UnreadableFile
from vesalius.core.files import atomic
from vesalius.core.image import Image

SCHEMA = 1

GRID = {2: 32, 3: 16}
"""Side of the fine grid per number of dimensions; the coarse one has half of it."""

LEAST_SIDE = 33
"""An image is compared for likeness only if two of its sides have at least this many pixels. On 28-pixel images two
people's digits or chests look as alike as a picture and its copy, so likeness there proves nothing."""

LEAST_DETAIL = {2: 180.0, 3: 360.0}
"""Least number of grid cells that must carry detail (`Signatures.detail`). An empty head rest or a plain white oval
looks like every other one; see the table of false alarms in docs/leakage.md."""

_FINE_SIGMA, _WIDE_SIGMA = 0.7, 1.5  # cells; the band in between holds anatomy, neither noise nor overall shading
_KNEE = 0.25  # detail above a quarter of its own spread is compressed, so that a skull does not outvote the brain
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class Descriptors:
    """Descriptors of the M images that can be compared.

    Parameters
    ----------
    rows
        ``(M,)``: which image of the `Signatures` each belongs to, ascending.
    coarse
        ``(M, (G/2)**dims)`` float16: brightness on a coarse grid, zero mean and unit norm.
    fine
        ``(M, G**dims)`` int8: detail on the fine grid.
    """

    rows: NDArray[np.int64]
    coarse: NDArray[np.float16]
    fine: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Signatures:
    """Signatures of N images, in the order in which they were given.

    Parameters
    ----------
    hashes
        ``(N, 2)`` uint64: 128 bits of BLAKE2b over the values and the shape.
    blank
        ``(N,)`` bool: every pixel has the same value. Blank images are nobody's near duplicate.
    detail
        ``(N,)`` float32: number of grid cells that carry detail (exponential of the entropy of its energy); 0 where
        the image is too small to be compared.
    descriptors
        By number of dimensions, 2 or 3.
    """

    hashes: NDArray[np.uint64]
    blank: NDArray[np.bool_]
    detail: NDArray[np.float32]
    descriptors: Mapping[int, Descriptors] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def comparable(self) -> NDArray[np.bool_]:
        """``(N,)``: whether an image has enough detail to be compared for likeness."""
        found = np.zeros(len(self), dtype=bool)
        for descriptors in self.descriptors.values():
            found[descriptors.rows] = True
        return found

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Signatures:
        """The signatures of `rows`, in that order; a row may come more than once."""
        chosen = np.asarray(rows, dtype=np.int64)
        parts = {}
        for dims, have in self.descriptors.items():
            place = np.full(len(self), -1, dtype=np.int64)
            place[have.rows] = np.arange(len(have))
            places = place[chosen]
            kept = np.flatnonzero(places >= 0)
            parts[dims] = Descriptors(kept, have.coarse[places[kept]], have.fine[places[kept]])
        return Signatures(self.hashes[chosen], self.blank[chosen], self.detail[chosen], parts)

    def save(self, path: str | Path) -> Path:
        """Write as ``.npz`` (plain arrays, no pickle), atomically."""
        arrays: dict[str, Any] = {
            "schema": np.int64(SCHEMA),
            "hashes": self.hashes,
            "blank": self.blank,
            "detail": self.detail,
        }
        for dims, part in self.descriptors.items():
            arrays |= {f"rows{dims}": part.rows, f"coarse{dims}": part.coarse, f"fine{dims}": part.fine}
        with atomic(path) as file:
            np.savez(file, **arrays)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Signatures:
        """The inverse of `save`.

        Raises
        ------
        UnreadableFile
            If the file is not one of ours or is of another schema.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            schema = int(arrays.get("schema", -1))
            if schema == SCHEMA:
                parts = {
                    dims: Descriptors(arrays[f"rows{dims}"], arrays[f"coarse{dims}"], arrays[f"fine{dims}"])
                    for dims in GRID
                    if f"rows{dims}" in arrays
                }
                return cls(arrays["hashes"], arrays["blank"], arrays["detail"], parts)
        except (OSError, ValueError, KeyError, AttributeError, EOFError) as error:
            raise UnreadableFile(
                path,
                found=f"no signatures ({error})",
                expected="an .npz of image signatures",
                do="delete it, it will be made again",
            ) from None
        raise UnreadableFile(
            path,
            found=f"signatures of schema {schema}",
            expected=f"schema {SCHEMA}",
            do="delete it, it will be made again",
        )


def concatenate(parts: Iterable[Signatures]) -> Signatures:
    """One `Signatures` out of pieces, in their order."""
    pieces = list(parts)
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])
    joined = {}
    for dims, side in GRID.items():
        have = [
            (start, piece.descriptors[dims])
            for start, piece in zip(starts, pieces, strict=False)
            if dims in piece.descriptors and len(piece.descriptors[dims])
        ]
        if have:
            joined[dims] = Descriptors(
                np.concatenate([start + part.rows for start, part in have]),
                np.concatenate([part.coarse for _, part in have]),
                np.concatenate([part.fine for _, part in have]).reshape(-1, side**dims),
            )
    return Signatures(
        np.concatenate([np.zeros((0, 2), np.uint64), *(piece.hashes for piece in pieces)]),
        np.concatenate([np.zeros(0, bool), *(piece.blank for piece in pieces)]),
        np.concatenate([np.zeros(0, np.float32), *(piece.detail for piece in pieces)]),
        joined,
    )


def signatures_from_image(image: Image) -> Signatures:
    """The signature of one image (N = 1)."""
    return signatures_from_arrays(image.pixels[None])


def signatures_from_arrays(batch: NDArray[Any]) -> Signatures:
    """Signatures of a stack of images of one size.

    Parameters
    ----------
    batch
        ``(N, C, Y, X)`` or ``(N, C, Z, Y, X)``, any number type. Axes of a stack without channels must be added by
        the caller: ``images[:, None]``. A volume of one slice counts as two-dimensional.

    Raises
    ------
    ValueError
        If the axes are others or a side is empty.
    """
    if batch.ndim not in (4, 5) or 0 in batch.shape[1:]:
        raise ValueError(f"images must have axes (N, C, Y, X) or (N, C, Z, Y, X), got shape {batch.shape}")
    if batch.ndim == 5 and batch.shape[2] == 1:
        batch = batch[:, :, 0]
    step = max(1, _CHUNK_BYTES // max(1, 4 * int(np.prod(batch.shape[1:]))))
    return concatenate(_signatures(batch[start : start + step]) for start in range(0, len(batch), step))


def _signatures(batch: NDArray[Any]) -> Signatures:
    dims = batch.ndim - 2
    hashes, blank = _hashes(batch)
    if sorted(batch.shape[2:])[-2] < LEAST_SIDE or blank.all():
        return Signatures(hashes, blank, np.zeros(len(batch), dtype=np.float32))
    coarse, fine, detail = describe(_shrink(batch, GRID[dims]))
    detail[blank] = 0
    rows = np.flatnonzero(detail >= LEAST_DETAIL[dims])
    return Signatures(hashes, blank, detail, {dims: Descriptors(rows, coarse[rows], fine[rows])})


def _hashes(batch: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """128-bit hashes ``(N, 2)`` and whether each image is blank ``(N,)``."""
    flat = batch.reshape(len(batch), -1)
    blank = (flat == flat[:, :1]).all(axis=1) | ~np.isfinite(flat).any(axis=1)
    grey = (batch == batch[:, :1]).reshape(len(batch), -1).all(axis=1) if batch.shape[1] > 1 else blank
    digests = bytearray()
    for pixels, is_grey in zip(batch, grey, strict=True):
        values = _narrowest(pixels[:1] if is_grey else pixels)
        state = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
        state.update(values.dtype.str.encode())
        state.update(np.ascontiguousarray(values).data)
        digests += state.digest()
    return np.frombuffer(bytes(digests), dtype="<u8").reshape(-1, 2).astype(np.uint64), blank


def _narrowest(values: NDArray[Any]) -> NDArray[Any]:
    """The same values in the narrowest type that holds them, so that a hash depends on values alone."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        if np.isfinite(values).all() and np.abs(values).max() < 2**31 and (values == np.rint(values)).all():
            return _narrowest(values.astype(np.int64))
        narrow = values.astype("<f4")
        return narrow if np.array_equal(narrow, values, equal_nan=True) else values.astype("<f8")
    low, high = int(values.min()), int(values.max())
    for kind in ("u1", "<i2", "<u2", "<i4", "<i8"):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return values.astype(kind, copy=False)
    return values.astype("<u8")


def _shrink(batch: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Mean over channels and over equal areas: ``(N, C, ...)`` to ``(N, side, side)`` or ``(N, side, side, side)``."""
    if batch.ndim == 4:
        return _shrink_planes(batch, side)
    planes = np.empty((len(batch), batch.shape[2], side, side), dtype=np.float32)
    for z in range(batch.shape[2]):  # slice by slice: a large volume never stands in memory as float32
        planes[:, z] = _shrink_planes(batch[:, :, z], side)
    shrunk: NDArray[np.float32] = np.einsum("kz,nzyx->nkyx", _areas(batch.shape[2], side), planes)
    return shrunk


def _shrink_planes(batch: NDArray[Any], side: int) -> NDArray[np.float32]:
    count, channels, height, width = batch.shape
    grey: NDArray[np.float32] = (
        batch[:, 0].astype(np.float32) if channels == 1 else batch.mean(axis=1, dtype=np.float32)
    )
    if batch.dtype.kind == "f":
        grey = np.nan_to_num(grey, posinf=0, neginf=0)
    # Two large products instead of N small ones, which threads of BLAS would spend on waiting for each other.
    across = grey.reshape(-1, width) @ _areas(width, side).T
    down: NDArray[Any] = (
        across.reshape(count, height, side).transpose(0, 2, 1).reshape(-1, height) @ _areas(height, side).T
    )
    return down.reshape(count, side, side).transpose(0, 2, 1)


def _areas(length: int, side: int) -> NDArray[np.float32]:
    """``(side, length)``: the part of each pixel that lies in each of `side` equal intervals; rows sum to 1."""
    edges = np.linspace(0, length, side + 1)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    parts: NDArray[np.float32] = (np.clip(overlap, 0, None) * (side / length)).astype(np.float32)
    return parts


def describe(cells: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.int8], NDArray[np.float32]]:
    """Coarse brightness, fine detail and the amount of detail of images on the fine grid.

    Parameters
    ----------
    cells
        ``(N, G, G)`` or ``(N, G, G, G)`` float32.

    Returns
    -------
    tuple
        ``(N, (G/2)**dims)`` float16, ``(N, G**dims)`` int8 and ``(N,)`` float32. Brightness and contrast of the whole
        image cancel out of all three.
    """
    from scipy.ndimage import gaussian_filter

    count, dims = len(cells), cells.ndim - 1
    axes = tuple(range(1, cells.ndim))
    level = cells - cells.mean(axis=axes, keepdims=True)
    level /= np.maximum(level.std(axis=axes, keepdims=True), 1e-12)
    half = cells.shape[1] // 2
    coarse = level.reshape(count, *(half, 2) * dims).mean(axis=tuple(range(2, 2 * dims + 1, 2))).reshape(count, -1)
    coarse /= np.maximum(np.linalg.norm(coarse, axis=1, keepdims=True), 1e-12)

    narrow, wide = (
        gaussian_filter(level, (0, *(sigma,) * dims), mode="nearest") for sigma in (_FINE_SIGMA, _WIDE_SIGMA)
    )
    band = narrow - wide
    spread = np.maximum(band.std(axis=axes, keepdims=True), 1e-9)
    band = np.sign(band) * (np.sqrt(1 + np.abs(band) / (_KNEE * spread)) - 1)
    flat = band.reshape(count, -1)
    energy = flat**2 / np.maximum((flat**2).sum(axis=1, keepdims=True), 1e-12)
    entropy = -(energy * np.log(np.maximum(energy, 1e-12))).sum(axis=1)
    fine = np.rint(127 * flat / np.maximum(np.abs(flat).max(axis=1, keepdims=True), 1e-9))
    return coarse.astype(np.float16), fine.astype(np.int8), np.exp(entropy).astype(np.float32)
