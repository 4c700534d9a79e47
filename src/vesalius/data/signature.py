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

LEAST_DETAIL = {2: 130.0, 3: 260.0}
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
        ``(N,)`` bool: every pixel has the same value. Blank images are nobody's duplicate.
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
        arrays: dict[str, Any] = {"schema": np.int64(SCHEMA), "hashes": self.hashes, "blank": self.blank,
                                  "detail": self.detail}
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
                parts = {dims: Descriptors(arrays[f"rows{dims}"], arrays[f"coarse{dims}"], arrays[f"fine{dims}"])
                         for dims in GRID if f"rows{dims}" in arrays}
                return cls(arrays["hashes"], arrays["blank"], arrays["detail"], parts)
        except (OSError, ValueError, KeyError, AttributeError, EOFError) as error:
            raise UnreadableFile(path, found=f"no signatures ({error})", expected="an .npz of image signatures",
                                 do="delete it, it will be made again") from None
        raise UnreadableFile(path, found=f"signatures of schema {schema}", expected=f"schema {SCHEMA}",
                             do="delete it, it will be made again")


def concatenate(parts: Iterable[Signatures]) -> Signatures:
    """One `Signatures` out of pieces, in their order."""
    pieces = list(parts)
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])
    joined = {}
    for dims, side in GRID.items():
        have = [(start, piece.descriptors[dims]) for start, piece in zip(starts, pieces, strict=False)
                if dims in piece.descriptors and len(piece.descriptors[dims])]
        if have:
            joined[dims] = Descriptors(np.concatenate([start + part.rows for start, part in have]),
                                       np.concatenate([part.coarse for _, part in have]),
                                       np.concatenate([part.fine for _, part in have]).reshape(-1, side**dims))
    return Signatures(np.concatenate([np.zeros((0, 2), np.uint64), *(piece.hashes for piece in pieces)]),
                      np.concatenate([np.zeros(0, bool), *(piece.blank for piece in pieces)]),
                      np.concatenate([np.zeros(0, np.float32), *(piece.detail for piece in pieces)]), joined)


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
    grey = _without_equal_channels(batch)
    hashes, blank = _hashes(grey)
    dims = batch.ndim - 2
    detail = np.zeros(len(batch), dtype=np.float32)
    if sorted(batch.shape[2:])[-2] < LEAST_SIDE or blank.all():
        return Signatures(hashes, blank, detail)
    cells = _shrink(grey[0] if grey[0].ndim == batch.ndim else np.stack(list(grey)), GRID[dims]) \
        if isinstance(grey, list) else _shrink(grey, GRID[dims])
    coarse, fine, detail = describe(cells)
    detail[blank] = 0
    rows = np.flatnonzero(detail >= LEAST_DETAIL[dims])
    return Signatures(hashes, blank, detail, {dims: Descriptors(rows, coarse[rows], fine[rows])})
