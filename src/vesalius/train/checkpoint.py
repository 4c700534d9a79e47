"""Checkpoints: whole or absent, two generations, read without running code."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from vesalius.core.errors import UnreadableFile
from vesalius.core.files import atomic

_NAME = re.compile(r"step-(\d{9})\.pt")


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write the checkpoint of `step` atomically, then remove all but the last `keep`."""
    path = folder / f"step-{step:09d}.pt"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())
    for old in steps(folder)[:-keep]:
        (folder / f"step-{old:09d}.pt").unlink(missing_ok=True)
    return path


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def load(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint that can be read, as (step, state); None if there is none.

    Tensors and plain data only (``weights_only=True``): a checkpoint from somewhere else cannot run code.
    """
    broken: Path | None = None
    for step in reversed(steps(folder)):
        path = folder / f"step-{step:09d}.pt"
        try:
            return step, _read(path)
        except MemoryError:
            raise
        except Exception:  # damaged bytes end in any of a dozen errors, depending on where the damage is
            broken = path
    if broken is not None:
        raise UnreadableFile(
            broken,
            found="no checkpoint can be read",
            expected="a file written by this program",
            do="remove the checkpoints folder to start again",
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch writes checksums but does not compare them
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"checksum of {damaged}")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
