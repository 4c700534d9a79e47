"""Many cases: decoding and computing overlap, what is done is skipped, what fails does not stop the rest."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import DataError, UsageError
from vesalius.core.files import safe_stem, write_json
from vesalius.core.prediction import ClassScores
from vesalius.core.progress import Progress, Silent
from vesalius.predict.predictor import Predictor


@dataclass(frozen=True)
class Item:
    """One case to predict: its id and what `io.open.open_image` opens."""

    case_id: str
    source: str


@dataclass
class Outcome:
    """What a cohort prediction did."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)


def gather(inputs: Sequence[str | Path]) -> list[Item]:
    """Files, folders and array files as items, ids unique.

    A folder of DICOM gives one item per series, any other folder one per image file in it, at any depth; an array file
    gives one per item of its image arrays (with ``#key``, of that array).

    Raises
    ------
    UsageError
        If a path does not exist.
    DataError
        If nothing that can be opened is found.
    """
    from vesalius.data.discover import discover
    from vesalius.data.listing import stem_of

    found: list[Item] = []
    for given in inputs:
        text = str(given)
        path = Path(text.split("#", maxsplit=1)[0]) if not Path(text).exists() else Path(text)
        if not path.exists():
            raise UsageError(f"{text}: no such file or folder; check the path")
        if path.is_file() and ("#" in text or path.suffix.lower() not in (".npz", ".npy", ".csv", ".parquet")):
            found.append(Item(stem_of(path.name) if "#" not in text else text.rpartition("#")[2], text))
            continue
        manifest = discover(path)
        found += [
            Item(case, str(manifest.root / where))
            for case, where in zip(manifest.cases["case_id"], manifest.cases["path"], strict=True)
        ]
    if not found:
        raise DataError(
            f"{', '.join(map(str, inputs))}: no image found; give image files, DICOM folders or array files"
        )
    return _unique(found)


def _unique(items: Iterable[Item]) -> list[Item]:
    seen: dict[str, int] = {}
    taken: set[str] = set()
    out = []
    for item in items:
        case, count = item.case_id, seen.get(item.case_id, 0) + 1
        while (name := case if count == 1 else f"{case}-{count}") in taken:
            count += 1
        seen[case] = count
        taken.add(name)
        out.append(Item(name, item.source))
    return out


def predict_cohort(
    predictor: Predictor,
    items: Sequence[Item],
    out: str | Path,
    *,
    batch_size: int = 32,
    workers: int = 2,
    force: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """One JSON file per case in `out`, written as soon as it is known.

    A case is done if its file exists and was made by the same weights; `force` predicts it again. Cases that cannot
    be read are listed in ``failed.json`` and in the outcome.
    """
    out, progress = Path(out), progress or Silent()
    out.mkdir(parents=True, exist_ok=True)
    outcome = Outcome()
    todo = []
    for item in items:
        known = None if force else _done(result_path(out, item), item, predictor.bundle.checksum)
        if known is None:
            todo.append(item)
        else:
            outcome.skipped.append(item.case_id)
            outcome.predictions.append(known)
    progress.start("predict", len(items), "cases")
    progress.advance(len(outcome.skipped))
    waiting: list[tuple[Item, NDArray[Any]]] = []
    for item, stored in _decoded(predictor, todo, workers):
        if isinstance(stored, str):
            outcome.failed[item.case_id] = stored
            progress.warn(stored)
            progress.advance()
            continue
        waiting.append((item, stored))
        if len(waiting) == batch_size:
            _flush(predictor, waiting, out, outcome, progress)
    _flush(predictor, waiting, out, outcome, progress)
    progress.stop()
    failed = out / "failed.json"
    if outcome.failed:
        write_json(failed, outcome.failed)
    else:
        failed.unlink(missing_ok=True)
    return outcome


def result_path(out: Path, item: Item) -> Path:
    """Where the prediction of an item is written."""
    return out / f"{safe_stem(item.case_id)}.json"


def _done(path: Path, item: Item, checksum: str) -> dict[str, Any] | None:
    """The prediction that is already there, if it is whole and of the same weights and source."""
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if known.get("model") == checksum and known.get("source") == item.source else None


def _decoded(predictor: Predictor, items: Sequence[Item], workers: int) -> Iterator[tuple[Item, NDArray[Any] | str]]:
    """Stored pixels of each item in order, or the one line that says why not; a few are read ahead."""
    from vesalius.io.open import open_image

    def read(item: Item) -> NDArray[Any] | str:
        try:
            return predictor.stored(open_image(item.source))
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode") as pool:
        ahead: deque[tuple[Item, Future[NDArray[Any] | str]]] = deque()
        queue = iter(items)
        for item in queue:
            ahead.append((item, pool.submit(read, item)))
            if len(ahead) > 4 * max(1, workers):
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()


def _flush(
    predictor: Predictor, waiting: list[tuple[Item, NDArray[Any]]], out: Path, outcome: Outcome, progress: Progress
) -> None:
    if not waiting:
        return
    scores = predictor.decode(np.stack([stored for _, stored in waiting]), [item.case_id for item, _ in waiting])
    for (item, _), score in zip(waiting, scores, strict=True):
        data = as_json(score, item, predictor)
        write_json(result_path(out, item), data)
        outcome.written.append(item.case_id)
        outcome.predictions.append(data)
    progress.advance(len(waiting))
    waiting.clear()


def as_json(score: ClassScores, item: Item, predictor: Predictor) -> dict[str, Any]:
    """What `vesalius predict` writes: docs/schemas/prediction.schema.json."""
    return {"schema": 1, **score.to_json(), "source": item.source, "model": predictor.bundle.checksum}
