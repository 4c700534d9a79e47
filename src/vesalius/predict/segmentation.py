"""Prepared pixels of one case to logits and to a decision: what validation, judgement and prediction share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.predict.backends import Backend
from vesalius.predict.tiles import TileSettings, predict_slabs
from vesalius.tasks.segment import Segment


def case_logits(backend: Backend, pixels: NDArray[np.float32], settings: TileSettings, outputs: int) -> NDArray[Any]:
    """Logits ``(K, *S)`` of prepared pixels ``(C, *S)``, all in memory: for cases of a validation."""
    found = [
        np.array(values, dtype=np.float32)
        for _, _, values in predict_slabs(pixels, pixels.shape[1:], backend, settings, outputs)
    ]
    return np.concatenate(found, axis=1)


def decided(logits: NDArray[Any], task: Segment) -> NDArray[Any]:
    """The label map ``(*S)`` of logits ``(K, *S)``; layers ``(K, *S)`` of labels that overlap; 0/1 of objects."""
    if task.labels.instances:
        return np.asarray(logits[0] > 0, dtype=np.uint8)
    if task.labels.multilabel:
        return np.asarray(logits > 0, dtype=np.uint8)
    return np.asarray(logits.argmax(axis=0), dtype=np.uint8 if len(logits) <= 256 else np.uint16)


def sides_of(patch: Sequence[int]) -> tuple[int, ...]:
    """A patch of a plan as whole numbers."""
    return tuple(int(side) for side in patch)
