"""Prepared pixels on disk, read back by row or by patch.

Two kinds behind one interface. Images that fit many times into a batch lie in one array file, rows one after the
other; volumes lie in one compressed, chunked file each (Blosc2), so that a patch is read without the rest.
A store is a folder::

    store.json      spec, kind, shape, dtype, number of rows, key
    index.parquet   one row per image: path, ok, reason, original shape and spacing, notes
    pixels.bin      (N, C, *S), rows in C order         or    volumes/0000000.b2nd ...
    signatures.npz  for the search for duplicates

It is complete or it does not exist: `data.prepare` builds it beside its place and renames it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import UnreadableFile
from vesalius.data.signature import Signatures

Pixels = NDArray[Any]

PIXELS, VOLUMES, INDEX, HEAD, SIGNATURES = "pixels.bin", "volumes", "index.parquet", "store.json", "signatures.npz"


class Store:
    """A finished store.

    Parameters
    ----------
    folder
        Where `prepare` put it.
    resident_bytes
        Array stores up to this size are kept in memory; larger ones are read row by row from the file. Row reads go
        through the system's file cache, which is not counted as memory of this process, unlike touched pages of a
        memory map; that is what keeps ``--memory`` true for data much larger than it.
    """

    def __init__(self, folder: str | Path, *, resident_bytes: int = 256 << 20) -> None:
        self.folder = Path(folder)
        head = json.loads((self.folder / HEAD).read_text(encoding="utf-8"))
        self.key: str = head["key"]
        self.spec: dict[str, Any] = head["spec"]
        self.kind: str = head["kind"]
        self.rows: int = head["rows"]
        self.shape: tuple[int, ...] = tuple(head["shape"])
        self.dtype = np.dtype(head["dtype"])
        self.row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self._index: pd.DataFrame | None = None
        self._file: int | None = None
        self._map: Pixels | None = None
        if self.kind == "array" and self.row_bytes * self.rows <= resident_bytes:
            self._map = np.memmap(self.folder / PIXELS, dtype=self.dtype, mode="r", shape=(self.rows, *self.shape))

    @property
    def index(self) -> pd.DataFrame:
        """What is known of every row; ``ok`` is False for images that could not be read."""
        if self._index is None:
            self._index = pd.read_parquet(self.folder / INDEX)
        return self._index

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Pixels:
        """Rows as one array ``(B, C, *S)`` in the storage type, in the order asked for."""
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.rows):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of a store of {self.rows}")
        if self._map is not None:
            return np.asarray(self._map[wanted])
        out = np.empty((len(wanted), *self.shape), dtype=self.dtype)
        if self.kind == "array":
            for place, row in enumerate(wanted):
                self._read_row(int(row), out[place])
        else:
            for place, row in enumerate(wanted):
                out[place] = self._volume(int(row))[...]
        return out

    def read_patch(self, row: int, start: Sequence[int], size: Sequence[int]) -> Pixels:
        """The part ``(C, *size)`` of one row that begins at index `start` (z, y, x); chunks outside it stay unread."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of a store of {self.rows}")
        part = (slice(None), *(slice(a, a + n) for a, n in zip(start, size, strict=True)))
        if self.kind == "chunked":
            return np.asarray(self._volume(row)[part])
        return np.ascontiguousarray(self.read([row])[0][part])

    def _read_row(self, row: int, out: Pixels) -> None:
        if self._file is None:
            self._file = os.open(self.folder / PIXELS, os.O_RDONLY)
        got = os.preadv(self._file, [out.reshape(-1).data.cast("B")], row * self.row_bytes)
        if got != self.row_bytes:
            raise UnreadableFile(
                self.folder / PIXELS,
                found=f"{got} bytes in row {row}",
                expected=f"{self.row_bytes}",
                do="remove the folder; it is prepared again",
            )

    def _volume(self, row: int) -> Any:
        import blosc2

        return blosc2.open(str(volume_path(self.folder, row)), mode="r")

    def signatures(self) -> Signatures:
        """Signatures of all rows."""
        return Signatures.load(self.folder / SIGNATURES)

    def close(self) -> None:
        """Give back the file handle."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._map = None

    def __getstate__(self) -> dict[str, Any]:
        # File handles and maps belong to one process; the next one opens its own.
        return {**self.__dict__, "_file": None, "_map": None}


def volume_path(folder: Path, row: int) -> Path:
    """File of one volume, a thousand per folder so that no folder grows without bound."""
    return folder / VOLUMES / f"{row // 1000:04d}" / f"{row:07d}.b2nd"


def write_volume(folder: Path, row: int, pixels: Pixels) -> None:
    """Write ``(C, Z, Y, X)`` as one chunked file; chunks of about 32 voxels a side suit patches of 64 to 128."""
    import blosc2

    path = volume_path(folder, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.b2nd")
    part.unlink(missing_ok=True)
    chunks = (pixels.shape[0], *(min(side, 64) for side in pixels.shape[1:]))
    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}
    blosc2.asarray(np.ascontiguousarray(pixels), urlpath=str(part), mode="w", chunks=chunks, cparams=settings)
    part.replace(path)
