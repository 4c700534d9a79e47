"""Prepared cases of segmentation on disk, read back by patch.

A store is a folder::

    cases.json        spec, labels, key, number of cases
    index.parquet     one row per case: case_id, ok, reason, sides, spacing, voxels of each label
    arrays/0000000.*  image float16 (C, *S), mask (1 + further, *S), and places of labels for balanced sampling
    signatures.npz    for the search for duplicates

A case is written whole before its record appears, so that a killed process goes on where it was; the folder is built
under a hidden name and renamed when complete, as in `data.prepare`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.files import atomic, write_json
from vesalius.core.labels import Labels
from vesalius.core.progress import Progress, Silent
from vesalius.core.randomness import generator
from vesalius.data.locking import exclusive
from vesalius.data.manifest import Manifest
from vesalius.data.parallel import in_threads
from vesalius.data.prepare import store_key
from vesalius.data.signature import Signatures, concatenate, signatures_from_arrays, signatures_from_image
from vesalius.transforms.conform import Conform

FORMAT = 2
HEAD, INDEX, SIGNATURES, ARRAYS = "cases.json", "index.parquet", "signatures.npz", "arrays"
_PLACES = 4096
# Sides of a chunk by dimensions: about a patch; many small chunks cost more to write than they save in reading.
_CHUNK = {2: 256, 3: 64}


class CaseStore:
    """A finished store of cases.

    Parameters
    ----------
    folder
        Where `prepare_cases` put it.
    resident_bytes
        Cases are kept in memory once read as long as all of them take no more than this.
    """

    def __init__(self, folder: str | Path, *, resident_bytes: int = 1 << 30) -> None:
        self.folder = Path(folder)
        head = json.loads((self.folder / HEAD).read_text(encoding="utf-8"))
        self.key: str = head["key"]
        self.spec: dict[str, Any] = head["spec"]
        self.labels = Labels.from_json(head["labels"])
        self.rows: int = head["rows"]
        self.bytes: int = head["bytes"]
        self._index = pd.read_parquet(self.folder / INDEX)
        self._resident = self.bytes <= resident_bytes
        self._kept: dict[tuple[int, str], NDArray[Any]] = {}
        self._places: dict[int, list[NDArray[np.int64]]] = {}

    @property
    def index(self) -> pd.DataFrame:
        """One row per case; ``ok`` is False for cases that could not be read, ``reason`` says why."""
        return self._index

    def shape(self, row: int) -> tuple[int, ...]:
        """Sides of a prepared case."""
        return tuple(int(side) for side in json.loads(self._index["sides"].iloc[row]))

    def counts(self, row: int) -> NDArray[np.int64]:
        """Voxels of every label value of a case, ``(values,)``."""
        return np.asarray(json.loads(self._index["counts"].iloc[row]), dtype=np.int64)

    def image(self, row: int) -> Any:
        """``(C, *S)`` float16; an array, or something that gives parts of one by slicing."""
        return self._array(row, "image")

    def mask(self, row: int) -> Any:
        """``(1, *S)``: the label map (bits of overlapping structures where `Labels.regions` are free)."""
        return self._array(row, "mask")

    def further(self, row: int) -> Any:
        """``(E, *S)`` float16: further targets that the task asked for."""
        return self._array(row, "further")

    def has_further(self) -> bool:
        """Whether the task stored further targets."""
        return bool(self.spec.get("further"))

    def places(self, row: int, value: int) -> NDArray[np.int64]:
        """``(N, dims)``: a sample of the voxels of a label; none where the case lacks it."""
        if row not in self._places:
            with np.load(_stem(self.folder, row).with_suffix(".npz"), allow_pickle=False) as found:
                self._places[row] = [found[f"label{k}"] for k in range(len(found.files))]
        known = self._places[row]
        return known[value] if value < len(known) else np.empty((0, len(self.shape(row))), dtype=np.int64)

    def signatures(self) -> Signatures:
        """Signatures of all rows."""
        return Signatures.load(self.folder / SIGNATURES)

    def _array(self, row: int, what: str) -> Any:
        import blosc2

        if (row, what) in self._kept:
            return self._kept[row, what]
        opened = blosc2.open(str(_stem(self.folder, row)) + f".{what}.b2nd", mode="r")
        if not self._resident:
            return opened
        self._kept[row, what] = opened[...]
        return self._kept[row, what]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_places": {}}


def prepare_cases(
    manifest: Manifest,
    conform: dict[str, Any],
    *,
    cache: Path,
    further: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    workers: int = 1,
    memory_bytes: int | None = None,
    progress: Progress | None = None,
) -> CaseStore:
    """The store of the cases of `manifest`, in their order; made now, or found made.

    Parameters
    ----------
    conform
        Section ``conform`` of the plan.
    further
        Makes further targets ``(E, *S)`` of a label map that are stored beside it (single objects need them).

    Raises
    ------
    DataError
        If not one case can be read.
    """
    if manifest.labels is None:
        raise DataError(f"{manifest.root}: no classes of masks are known")
    progress = progress or Silent()
    spec = {
        "format": FORMAT,
        "conform": conform,
        "further": "" if further is None else further.__name__,
        "labels": manifest.labels.to_json(),
    }
    key = store_key(manifest, spec, manifest.frame["path"].tolist())
    home = cache / "cases"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    final = home / key
    if not (final / HEAD).exists():
        with exclusive(home / f"{key}.lock"):
            if not (final / HEAD).exists():
                _Maker(manifest, spec, home / f".{key}.part", key, workers, further).make(progress)
                shutil.rmtree(final, ignore_errors=True)
                (home / f".{key}.part").rename(final)
    return CaseStore(final, resident_bytes=(memory_bytes or (8 << 30)) // 4)


class _Maker:
    """Builds one store folder, case by case."""

    def __init__(
        self,
        manifest: Manifest,
        spec: dict[str, Any],
        folder: Path,
        key: str,
        workers: int,
        further: Callable[[NDArray[Any]], NDArray[Any]] | None,
    ) -> None:
        self.further = further
        self.manifest, self.spec, self.folder, self.key = manifest, spec, folder, key
        self.conform = Conform(spec["conform"])
        self.ids: list[str] = manifest.cases["case_id"].tolist()
        self.workers = max(1, workers)
        self.values = mask_values(manifest.labels)  # type: ignore[arg-type]
        self.objects = manifest.labels is not None and manifest.labels.instances

    def make(self, progress: Progress) -> None:
        """All cases, then the tables."""
        (self.folder / ARRAYS).mkdir(parents=True, exist_ok=True, mode=0o700)
        todo = [row for row in range(len(self.ids)) if not _stem(self.folder, row).with_suffix(".json").exists()]
        progress.start("prepare", len(self.ids), "cases")
        progress.advance(len(self.ids) - len(todo))
        for _ in in_threads(self._one, todo, self.workers, "prepare"):
            progress.advance()
        progress.stop()
        self._finish()

    def _one(self, row: int) -> None:
        from vesalius.data.truth import open_case_image, open_truth

        case = self.ids[row]
        record: dict[str, Any] = {
            "case_id": case,
            "ok": True,
            "reason": "",
            "sides": "[]",
            "spacing": "",
            "counts": "[]",
        }
        stem = _stem(self.folder, row)
        image = None
        try:
            image = open_case_image(self.manifest, case)
            try:
                fitted = self.conform(image)
            except ValueError as error:
                raise DataError(f"{image.source or case}: {error}") from None
            truth = joined(open_truth(self.manifest, case, image), image.grid.ndim)
            mask = fitted.labels(truth)
        except DataError as error:
            record |= {"ok": False, "reason": " ".join(str(error).split())}
        else:
            _write(stem, "image", fitted.all().astype(np.float16))
            _write(stem, "mask", mask[None])
            if self.further is not None:
                _write(stem, "further", self.further(mask).astype(np.float16))
            places, counts = places_of(mask, self.values, key=case, objects=self.objects)
            named: dict[str, Any] = {f"label{k}": found for k, found in enumerate(places)}
            with atomic(stem.with_suffix(".npz")) as file:
                np.savez_compressed(file, allow_pickle=False, **named)
            record |= {"sides": json.dumps(fitted.shape), "counts": json.dumps(counts.tolist())}
            record["spacing"] = "x".join(f"{s:.4g}" for s in fitted.spacing_mm or ())
        blank = np.zeros((1, 1, *(1,) * self.conform.dims), dtype=np.uint8)
        signature = signatures_from_arrays(blank) if image is None else signatures_from_image(image)
        signature.save(stem.with_suffix(".sig.npz"))
        write_json(stem.with_suffix(".json"), record)

    def _finish(self) -> None:
        stems = [_stem(self.folder, row) for row in range(len(self.ids))]
        index = pd.DataFrame([json.loads(s.with_suffix(".json").read_text(encoding="utf-8")) for s in stems])
        if not index["ok"].any():
            reason = index["reason"].iloc[0]
            raise DataError(f"{self.manifest.root}: not one of {len(index)} cases can be read; the first: {reason}")
        concatenate([Signatures.load(s.with_suffix(".sig.npz")) for s in stems]).save(self.folder / SIGNATURES)
        with atomic(self.folder / INDEX) as file:
            index.to_parquet(file)
        channels = int(self.spec["conform"]["channels"])
        voxels = sum(int(np.prod(json.loads(sides))) for sides in index["sides"] if sides != "[]")
        labels: dict[str, Any] = self.spec["labels"]
        facts = {"key": self.key, "spec": self.spec, "labels": labels, "rows": len(index)}
        write_json(self.folder / HEAD, {**facts, "bytes": voxels * (2 * channels + (6 if self.spec["further"] else 2))})


def mask_values(labels: Labels) -> list[int]:
    """Values of a stored label map that are sampled on: every class, or every value that a region joins."""
    if labels.instances:
        return [0, 1]
    if labels.regions:
        return sorted({0, *(value for region in labels.regions for value in region)})
    return list(range(1 << len(labels))) if labels.multilabel else list(range(len(labels)))


def joined(truth: NDArray[Any], dims: int) -> NDArray[Any]:
    """Planes of freely overlapping structures ``(R, *S)`` as bits of one map; a label map as it is."""
    if truth.ndim == dims:
        return truth
    if len(truth) > 16:
        raise DataError(f"{len(truth)} overlapping structures; at most 16 can be learnt at once, leave some out")
    out = np.zeros(truth.shape[1:], dtype=np.uint8 if len(truth) <= 8 else np.uint16)
    for bit, plane in enumerate(truth):
        out |= (plane != 0).astype(out.dtype) << np.array(bit, out.dtype)
    return out


def places_of(
    mask: NDArray[Any], values: Sequence[int], *, key: str, objects: bool = False
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Up to 4096 voxels of every value, drawn by a generator that belongs to the case, and how many there are.

    Of numbered single objects (`objects`) the value 1 stands for all of them.
    """
    flat = mask.reshape(-1)
    draw = generator(0, f"places.{key}")
    places, counts = [], []
    for value in values:
        found = np.flatnonzero(flat > 0 if objects and value else flat == value)
        counts.append(len(found))
        if len(found) > _PLACES:
            found = np.sort(found[draw.integers(0, len(found), _PLACES)])
        places.append(np.stack(np.unravel_index(found, mask.shape), axis=1).astype(np.int64))
    return places, np.asarray(counts, dtype=np.int64)


def _stem(folder: Path, row: int) -> Path:
    return folder / ARRAYS / f"{row:07d}"


def _write(stem: Path, what: str, array: NDArray[Any]) -> None:
    """One chunked, compressed array; a patch is read without the rest."""
    import blosc2

    path = Path(f"{stem}.{what}.b2nd")
    part = Path(f"{stem}.{what}.part.b2nd")
    part.unlink(missing_ok=True)
    chunks = (array.shape[0], *(min(side, _CHUNK[array.ndim - 1]) for side in array.shape[1:]))
    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}
    blosc2.asarray(np.ascontiguousarray(array), urlpath=str(part), mode="w", chunks=chunks, cparams=settings)
    part.replace(path)
