"""Files to a store, once.

The work is cut into chunks of rows. A chunk writes its part of the pixel file, flushes it, and then leaves a small
record; a process that is killed and started again skips every chunk that has one. The folder is built under a hidden
name, guarded by a lock that dies with its holder, and renamed when whole: two processes that prepare the same data do
it once, and a half-made store is never seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError, ResourceError
from vesalius.core.files import atomic, write_json
from vesalius.core.image import Image
from vesalius.core.progress import Progress, Silent
from vesalius.core.quantity import show_bytes
from vesalius.data.locking import exclusive
from vesalius.data.manifest import Manifest
from vesalius.data.parallel import in_threads
from vesalius.data.signature import Signatures, concatenate, signatures_from_arrays, signatures_from_image
from vesalius.data.store import HEAD, INDEX, PIXELS, SIGNATURES, VOLUMES, Store, write_volume
from vesalius.transforms.preprocess import Preprocess

FORMAT = 2
VOLUME_BYTES = 1 << 20
"""Items larger than this (prepared volumes) are kept one file each, chunked and compressed."""

_WHOLE_BYTES = 1 << 29
_SAMPLE = 1 << 16


@dataclass
class Chunk:
    """What one run of rows became."""

    start: int
    pixels: NDArray[Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    signatures: list[Signatures] = field(default_factory=list)


def store_key(manifest: Manifest, spec: dict[str, Any], paths: Sequence[str] | None = None) -> str:
    """Name of the store of these files (of the cases, or `paths`) under this preprocessing.

    Every byte of the files counts while they hold less than 512 MB in all; of larger collections size, time of change
    and 128 kB of each file.
    """
    digest = hashlib.blake2b(json.dumps([FORMAT, spec], sort_keys=True).encode(), digest_size=16)
    paths = manifest.cases["path"].tolist() if paths is None else paths
    files = _files(manifest, paths)
    whole = sum(path.stat().st_size for path in files) <= _WHOLE_BYTES
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(manifest.root).as_posix()}\0{stat.st_size}\0".encode())
        with path.open("rb") as file:
            if whole:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
            else:
                digest.update(f"{stat.st_mtime_ns}".encode() + file.read(_SAMPLE))
                file.seek(max(0, stat.st_size - _SAMPLE))
                digest.update(file.read(_SAMPLE))
    for text in paths:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


def _files(manifest: Manifest, paths: Sequence[str]) -> list[Path]:
    """The files behind the cases, each once; a folder stands for the files in it."""
    found: dict[Path, None] = {}
    for text in dict.fromkeys(path.split("#")[0] for path in paths):
        path = manifest.root / text
        if path.is_dir():
            found.update(dict.fromkeys(sorted(p for p in path.iterdir() if p.is_file())))
        else:
            found[path] = None
    return list(found)


def prepare(
    manifest: Manifest,
    preprocess: Preprocess,
    *,
    cache: Path,
    workers: int = 1,
    memory_bytes: int | None = None,
    progress: Progress | None = None,
) -> Store:
    """The store of the cases of `manifest`, in their order; made now, or found made.

    Raises
    ------
    DataError
        If not one image can be read.
    ResourceError
        If the disk has too little room; the message says how much is needed.
    """
    progress = progress or Silent()
    key = store_key(manifest, preprocess.spec)
    home = cache / "store"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)  # prepared pixels are patients' pixels
    final = home / key
    resident = min(1 << 30, (memory_bytes or (4 << 30)) // 8)
    if not (final / HEAD).exists():
        with exclusive(home / f"{key}.lock"):
            if not (final / HEAD).exists():
                Maker(manifest, preprocess, home / f".{key}.part", key, workers, memory_bytes).make(progress)
                shutil.rmtree(final, ignore_errors=True)
                (home / f".{key}.part").rename(final)
    return Store(final, resident_bytes=resident)


class Maker:
    """Builds one store folder."""

    def __init__(
        self, manifest: Manifest, preprocess: Preprocess, folder: Path, key: str, workers: int, memory_bytes: int | None
    ) -> None:
        self.manifest, self.preprocess, self.folder, self.key = manifest, preprocess, folder, key
        self.paths: list[str] = manifest.cases["path"].tolist()
        self.shape = (preprocess.channels, *preprocess.size)
        self.dtype = np.dtype(preprocess.spec["storage"])
        self.row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.chunked = len(self.shape) == 4 and self.row_bytes > VOLUME_BYTES
        self.workers = max(1, workers)
        # A chunk in memory: decoded originals pass one by one, prepared rows stay until written.
        room = (memory_bytes or (2 << 30)) // 16 // (self.workers + 1)
        self.size = int(np.clip(room // max(self.row_bytes, 1), 1, 512 if preprocess.dims == 2 else 32))

    def make(self, progress: Progress) -> None:
        """All chunks, then the tables."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._record("head", {"size": self.size, "key": self.key}) is False:
            shutil.rmtree(self.folder)
            self.folder.mkdir(mode=0o700)
            self._record("head", {"size": self.size, "key": self.key})
        self._check_disk()
        if not self.chunked:
            with (self.folder / PIXELS).open("ab") as file:
                file.truncate(self.row_bytes * len(self.paths))
        starts = [s for s in range(0, len(self.paths), self.size) if not self._done(s).exists()]
        progress.start("prepare", len(self.paths), "images")
        progress.advance(len(self.paths) - sum(min(self.size, len(self.paths) - s) for s in starts))
        for done in in_threads(self._chunk, starts, self.workers, "prepare"):
            progress.advance(done)
        progress.stop()
        self._finish()

    def _record(self, name: str, facts: dict[str, Any]) -> bool | None:
        """Write `facts` once; False if the folder holds others (another chunk size), True if the same."""
        path = self.folder / f"{name}.record"
        if path.exists():
            return bool(json.loads(path.read_text(encoding="utf-8")) == facts)
        write_json(path, facts)
        return None

    def _check_disk(self) -> None:
        need = self.row_bytes * len(self.paths)
        have = shutil.disk_usage(self.folder).free
        if need > have:
            raise ResourceError(
                f"{self.folder.parent}: preparing {len(self.paths)} images takes {show_bytes(need)}, "
                f"{show_bytes(have)} are free; set VESALIUS_CACHE to a larger disk or choose a smaller preprocess.size"
            )

    def _done(self, start: int) -> Path:
        return self.folder / "chunks" / f"{start:09d}.json"

    def _chunk(self, start: int) -> int:
        paths = self.paths[start : start + self.size]
        chunk = Chunk(start, np.zeros((len(paths), *self.shape), dtype=self.dtype))
        for first, last in runs(paths):
            if is_array_item(paths[first]):
                self._stack(chunk, paths, first, last)
            else:
                self._one(chunk, paths[first], first)
        self._write(chunk)
        return len(paths)

    def _stack(self, chunk: Chunk, paths: Sequence[str], first: int, last: int) -> None:
        """Neighbouring items of one array, in one go."""
        from vesalius.io.stacks import StackReader

        file, key, item = split_item(paths[first])
        with StackReader(self.manifest.root / file, key) as reader:
            items = with_channels(reader.read(item, item + last - first), self.preprocess.dims)
        chunk.pixels[first:last] = self.preprocess.store_stack(items).numpy()
        chunk.signatures.append(signatures_from_arrays(items))
        chunk.rows += [
            {
                "path": path,
                "ok": True,
                "reason": "",
                "shape": "x".join(map(str, items.shape[2:])),
                "spacing": "",
                "notes": "",
            }
            for path in paths[first:last]
        ]

    def _one(self, chunk: Chunk, path: str, place: int) -> None:
        from vesalius.io.open import open_image

        row: dict[str, Any] = {"path": path, "ok": True, "reason": "", "shape": "", "spacing": "", "notes": ""}
        try:
            image = for_dims(open_image(self.manifest.root / path), self.preprocess.dims)
            chunk.pixels[place] = self.preprocess.store(image.pixels, image.grid.spacing_mm).numpy()
        except (DataError, ValueError) as error:
            row |= {"ok": False, "reason": " ".join(str(error).split())}
            blank = np.zeros((1, 1, *(1,) * self.preprocess.dims), dtype=np.uint8)
            chunk.signatures.append(signatures_from_arrays(blank))
        else:
            row |= {
                "shape": "x".join(map(str, image.grid.shape)),
                "notes": "; ".join(n.text for n in image.record),
                "spacing": "x".join(f"{s:.4g}" for s in image.grid.spacing_mm or ()),
            }
            chunk.signatures.append(signatures_from_image(image))
        chunk.rows.append(row)

    def _write(self, chunk: Chunk) -> None:
        if self.chunked:
            for place, pixels in enumerate(chunk.pixels):
                write_volume(self.folder, chunk.start + place, pixels)
        else:
            handle = os.open(self.folder / PIXELS, os.O_WRONLY)
            try:
                os.pwrite(handle, chunk.pixels.data.cast("B"), chunk.start * self.row_bytes)
                os.fsync(handle)
            finally:
                os.close(handle)
        stem = self._done(chunk.start)
        concatenate(chunk.signatures).save(stem.with_suffix(".sig.npz"))
        write_json(stem, chunk.rows)  # this name is the record that the chunk is done

    def _finish(self) -> None:
        rows: list[dict[str, Any]] = []
        signatures = []
        for start in range(0, len(self.paths), self.size):
            rows += json.loads(self._done(start).read_text(encoding="utf-8"))
            signatures.append(Signatures.load(self._done(start).with_suffix(".sig.npz")))
        index = pd.DataFrame(rows)
        if not index["ok"].any():
            raise DataError(
                f"{self.manifest.root}: not one of {len(index)} images can be read; "
                f"the first: {index['reason'].iloc[0]}"
            )
        with atomic(self.folder / INDEX) as file:
            index.to_parquet(file)
        concatenate(signatures).save(self.folder / SIGNATURES)
        shutil.rmtree(self.folder / "chunks")
        (self.folder / "head.record").unlink()
        write_json(
            self.folder / HEAD,
            {
                "format": FORMAT,
                "key": self.key,
                "spec": self.preprocess.spec,
                "kind": "chunked" if self.chunked else "array",
                "rows": len(index),
                "shape": list(self.shape),
                "dtype": str(self.dtype),
                "volumes": VOLUMES,
            },
        )


def runs(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Cut a list of paths where the next is not the next item of the same array: [(first, last), ...]."""
    found, first = [], 0
    for place in range(1, len(paths) + 1):
        if place == len(paths) or not _follows(paths[place - 1], paths[place]):
            found.append((first, place))
            first = place
    return found


def is_array_item(path: str) -> bool:
    """Whether a path means one item of an array file, and not a page of a stack or a series of a folder."""
    file, mark, inside = path.rpartition("#")
    return bool(mark) and file.lower().endswith((".npz", ".npy")) and inside.rpartition("/")[2].isdecimal()


def _follows(one: str, two: str) -> bool:
    if not (is_array_item(one) and is_array_item(two)):
        return False
    (file, key, item), (file2, key2, item2) = split_item(one), split_item(two)
    return file == file2 and key == key2 and item2 == item + 1


def split_item(path: str) -> tuple[str, str, int]:
    """``"f.npz#key/17"`` as (file, key, 17)."""
    file, _, inside = path.rpartition("#")
    key, _, item = inside.rpartition("/")
    return file, key, int(item)


def with_channels(items: NDArray[Any], dims: int) -> NDArray[Any]:
    """Items of an array file, ``(N, *S)`` or ``(N, *S, 3)``, as ``(N, C, *S)``."""
    if items.ndim == dims + 1:
        return items[:, None]
    if items.ndim == dims + 2 and items.shape[-1] in (3, 4):
        return np.ascontiguousarray(np.moveaxis(items[..., :3], -1, 1))
    raise DataError(
        f"array items have shape {items.shape[1:]}; expected {dims} axes, with 3 colours last if there are any"
    )


def for_dims(image: Image, dims: int) -> Image:
    """A volume of one slice as an image where the plan has two dimensions, and the other way round.

    Raises
    ------
    DataError
        If the image has another number of dimensions than the plan.
    """
    from dataclasses import replace

    from vesalius.core.geometry import Grid

    have = image.grid.ndim
    if have == dims:
        return image
    if have == 3 and dims == 2 and image.grid.shape[0] == 1:
        spacing = image.grid.spacing_mm
        grid = Grid(image.grid.shape[1:], spacing=None if spacing is None else spacing[1:])
        return replace(image, grid=grid, pixels=image.pixels[:, 0])
    raise DataError(
        f"{image.source}: has {have} dimensions {image.grid.shape}, the plan has {dims}; keep such images apart"
    )
