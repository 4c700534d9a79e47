"""Look at every image once and keep nothing but what it is recognised by: for `inspect`, where nothing is prepared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.progress import Progress, Silent
from vesalius.data.fingerprint import Fingerprint, FingerprintBuilder
from vesalius.data.manifest import Manifest
from vesalius.data.prepare import is_array_item, runs, split_item, with_channels
from vesalius.data.signature import Signatures, concatenate, signatures_from_arrays, signatures_from_image

CHUNK = 64


@dataclass(frozen=True, eq=False)
class Scan:
    """What was seen; `ok` marks the readable cases in the order of ``manifest.cases``, the rest is of those."""

    ok: NDArray[np.bool_]
    signatures: Signatures
    fingerprint: Fingerprint
    failed: dict[str, str]


@dataclass
class _Part:
    start: int
    ok: list[bool]
    signatures: list[Signatures]
    prints: dict[str, Any]
    failed: dict[str, str]


def scan(manifest: Manifest, *, workers: int = 1, progress: Progress | None = None) -> Scan:
    """Decode every case in a few threads; nothing is written.

    Raises
    ------
    DataError
        If not one image can be read.
    """
    progress = progress or Silent()
    paths: list[str] = manifest.cases["path"].tolist()
    progress.start("inspect", len(paths), "images")
    parts: list[_Part] = []
    starts = iter(range(0, len(paths), CHUNK))
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="inspect") as pool:
        while block := list(islice(starts, 2 * max(1, workers))):
            for part in pool.map(lambda start: _part(manifest, paths, start), block):
                parts.append(part)
                progress.advance(len(part.ok))
    progress.stop()
    ok = np.array([good for part in parts for good in part.ok], dtype=bool)
    failed = {path: why for part in parts for path, why in part.failed.items()}
    if not ok.any():
        raise DataError(
            f"{manifest.root}: none of {len(ok)} images can be read; the first: {next(iter(failed.values()))}"
        )
    builder = FingerprintBuilder()
    for part in parts:
        builder.merge(part.prints)
    signatures = concatenate(s for part in parts for s in part.signatures)
    frame = manifest.cases.reset_index(drop=True)[ok]
    fingerprint = builder.build(
        frame,
        task=manifest.task,
        multilabel=bool(manifest.labels and manifest.labels.multilabel),
        known_patients=manifest.patient_source != "none",
        signatures=signatures,
    )
    return Scan(ok, signatures, fingerprint, failed)


def _part(manifest: Manifest, all_paths: list[str], start: int) -> _Part:
    paths = all_paths[start : start + CHUNK]
    builder = FingerprintBuilder(seed=start)
    part = _Part(start, [], [], {}, {})
    for first, last in runs(paths):
        if is_array_item(paths[first]):
            part.ok += _items(manifest, paths, first, last, builder, part.signatures)
        else:
            part.ok.append(_image(manifest, paths[first], builder, part))
    part.prints = builder.state()
    return part


def _image(manifest: Manifest, path: str, builder: FingerprintBuilder, part: _Part) -> bool:
    from vesalius.data.truth_files import open_member

    try:
        image = open_member(manifest.root / path)
    except DataError as error:
        part.failed[path] = str(error)
        return False
    builder.add(image)
    part.signatures.append(signatures_from_image(image))
    return True


def _items(
    manifest: Manifest,
    paths: list[str],
    first: int,
    last: int,
    builder: FingerprintBuilder,
    signatures: list[Signatures],
) -> list[bool]:
    from vesalius.io.stacks import StackReader

    file, key, item = split_item(paths[first])
    with StackReader(manifest.root / file, key) as reader:
        shape = reader.shape[1:]
        dims = 2 if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (3, 4)) else 3
        stack = with_channels(reader.read(item, item + last - first), dims)
    builder.add_stack(stack)
    signatures.append(signatures_from_arrays(stack))
    return [True] * len(stack)
