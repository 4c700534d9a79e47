"""Files that are whole or absent: atomic writes, checksums, safe names."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# File systems allow 255 bytes; the rest is for suffixes and the hidden name while writing.
_LONGEST_STEM = 200


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` only when the block ends without an error, and then is on disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically."""
    with atomic(path) as file:
        file.write(text.encode())
    return Path(path)


def write_json(path: str | Path, data: Any) -> Path:
    """Write `data` as indented JSON, atomically; NaN becomes null, since JSON has no NaN."""
    return write_text(path, json.dumps(jsonable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def jsonable(data: Any) -> Any:
    """`data` with what JSON can hold: arrays as lists, NaN and infinity as None, other things as text."""
    if isinstance(data, dict):
        return {str(k): jsonable(v) for k, v in data.items()}
    if isinstance(data, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in data]
    if hasattr(data, "tolist"):
        return jsonable(data.tolist())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if data is None or isinstance(data, (bool, int, str)):
        return data
    return str(data)


def sha256(path: str | Path) -> str:
    """Checksum of a file, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_stem(text: str) -> str:
    """`text` as a file name: letters, digits, dot, dash and underscore; never empty, hidden or a path.

    Two different texts never give the same name: a text that had to be changed carries a short hash of the original
    behind a tilde, which no unchanged text holds.
    """
    stem = re.sub(r"[^\w.\-]+", "_", text).strip("._")
    if stem == text and 0 < len(stem.encode()) <= _LONGEST_STEM:
        return stem
    short = stem.encode()[: _LONGEST_STEM - 9].decode(errors="ignore")
    return f"{short or 'case'}~{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"
