"""An exported file is believed only after it gave the bundle's answers on real cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import AcceptanceError, DataError
from vesalius.core.image import Image
from vesalius.core.version import __version__
from vesalius.deploy import runner
from vesalius.deploy.artefact import Artefact
from vesalius.predict.bundle import Bundle
from vesalius.predict.predictor import Predictor
from vesalius.predict.segmenter import SegmentPredictor

SCHEMA = 1
TOLERANCE = {"classify": 1e-4, "segment": 0.999}
"""Largest difference of a probability, and smallest Dice of a structure between both masks."""


@dataclass(frozen=True)
class Trial:
    """One real case: its id and the file (None where a library must open it), and how to open it."""

    case_id: str
    path: Path | None
    open: Callable[[], Image]


def accept(
    artefact: Artefact, bundle: Bundle, trials: Sequence[Trial], *, tolerance: float | None = None
) -> dict[str, Any]:
    """Run file and bundle on the cases and compare; the record that travels with the file.

    Raises
    ------
    AcceptanceError
        If the file was made from another bundle, or differs by more than the tolerance on any case (exit code 6).
    DataError
        If no case can be read.
    """
    if artefact.contract.get("bundle") != bundle.checksum:
        raise AcceptanceError(
            f"{artefact.path}: was made from other weights than this bundle's; export the bundle again"
        )
    allowed = TOLERANCE[bundle.task] if tolerance is None else tolerance
    compare = _classes if bundle.task == "classify" else _masks
    # The reference is torch in full precision, not another conversion.
    model: Any = (
        Predictor(bundle, device="cpu")
        if bundle.task == "classify"
        else SegmentPredictor(bundle, device="cpu", backend="torch", precision="fp32")
    )
    cases = [_tried(trial, compare, artefact, model) for trial in trials]
    told = [case for case in cases if "error" not in case]
    if not told:
        raise DataError(f"{artefact.path}: none of {len(trials)} cases can be read; the first: {cases[0]['error']}")
    worst = max(case["difference"] for case in told)
    limit = allowed if bundle.task == "classify" else 1 - allowed
    record = {
        "schema": SCHEMA,
        "kind": "vesalius.acceptance",
        "made_by": f"vesalius {__version__}",
        "artefact": artefact.path.name,
        "sha256": artefact.digest(),
        "bytes": artefact.bytes(),
        "bundle": bundle.checksum,
        "task": bundle.task,
        "tolerance": allowed,
        "measure": "largest difference of a probability" if bundle.task == "classify" else "1 - Dice of a structure",
        "worst": worst,
        "latency_ms": round(float(np.median([case["ms"] for case in told])), 3),
        "accepted": bool(worst <= limit),
        "cases": cases,
    }
    if not record["accepted"]:
        case = max(told, key=lambda one: one["difference"])
        raise AcceptanceError(
            f"{artefact.path}: differs from its bundle by {worst:.3g} on case {case['case']} ({record['measure']}), "
            f"{limit:.3g} is allowed; it was changed, or cannot be computed exactly here: do not use it"
        )
    return record


def _tried(trial: Trial, compare: Any, artefact: Artefact, model: Any) -> dict[str, Any]:
    try:
        image = trial.open()
    except DataError as error:
        return {"case": trial.case_id, "error": str(error)}
    scan, by = _scan(trial, image)
    begin = time.perf_counter()
    found = compare(artefact, model, image, scan)
    return {"case": trial.case_id, "read_by": by, **found, "both_s": round(time.perf_counter() - begin, 4)}


def _scan(trial: Trial, image: Image) -> tuple[runner.Scan, str]:
    """The case as the stand-alone runner reads it, or as we do where it cannot."""
    if trial.path is not None:
        try:
            return runner.read(trial.path), "runner"
        except (SystemExit, ValueError, KeyError, IndexError):
            pass
    return runner.Scan(image.pixels, image.grid.affine, image.grid.spacing_mm), "vesalius"


def _classes(artefact: Artefact, model: Any, image: Image, scan: runner.Scan) -> dict[str, Any]:
    begin = time.perf_counter()
    found = runner.classify(artefact.call, artefact.contract, scan)
    ms = (time.perf_counter() - begin) * 1e3
    wanted = model(image)
    said = np.array([found["probabilities"][name] for name in wanted.labels.names])
    return {"difference": float(np.abs(said - wanted.probabilities).max()), "ms": round(ms, 3)}


def _masks(artefact: Artefact, model: Any, image: Image, scan: runner.Scan) -> dict[str, Any]:
    begin = time.perf_counter()
    found = runner.segment(artefact.call, artefact.contract, scan)
    ms = (time.perf_counter() - begin) * 1e3
    wanted = model.segment(image, "case").mask.values
    layers = wanted.ndim > image.grid.ndim
    numbers = range(len(wanted)) if layers else range(1, len(model.labels))
    dice = {
        name: _dice(found[k], wanted[k]) if layers else _dice(found == k, wanted == k)
        for name, k in zip(model.labels.structures, numbers, strict=True)
    }
    return {"difference": 1 - min(dice.values()), "dice": dice, "ms": round(ms, 3)}


def _dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape:
        return 0.0
    size = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero((one != 0) & (other != 0))) / size if size else 1.0
