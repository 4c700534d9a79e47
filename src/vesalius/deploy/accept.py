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
from vesalius.core.prediction import ClassScores
from vesalius.core.version import __version__
from vesalius.deploy import mobile_runner, run_masks, run_objects, runner
from vesalius.deploy.artefact import MOBILE, Artefact
from vesalius.deploy.mobile import check_contract
from vesalius.measure.instances import instance_scores
from vesalius.predict.bundle import Bundle
from vesalius.predict.predictor import Predictor
from vesalius.predict.segmenter import SegmentPredictor

SCHEMA = 1
TOLERANCE = {"classify": 1e-4, "segment": 0.999}
"""Largest difference of a probability, and smallest Dice of a structure between both masks."""
MOBILE_TOLERANCE = 1e-3
"""The same for probabilities of files for mobile devices, whose libraries order sums in their own ways."""
INT8_TOLERANCE = {"classify": 0.02, "segment": 0.99}
"""The same for int8: a sum that another library orders otherwise may round to the next of 256 values."""


@dataclass(frozen=True)
class Trial:
    """One real case: its id and the file (None where a library must open it), and how to open it."""

    case_id: str
    path: Path | None
    open: Callable[[], Image]


Ask = Callable[[Trial, Image], tuple[dict[str, Any], str]]
"""Something that reads files itself: its answer (``probabilities`` or ``mask``, and ``ms``), and who read."""


def accept(
    artefact: Artefact,
    bundle: Bundle,
    trials: Sequence[Trial],
    *,
    tolerance: float | None = None,
    ask: Ask | None = None,
) -> dict[str, Any]:
    """Run file and bundle on the cases and compare; the record that travels with the file.

    With `ask` the answers to be compared come from there (a page in a browser), not from `artefact.call`.

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
    if artefact.kind in MOBILE:
        check_contract(artefact.path, artefact.contract, bundle)
    usual = MOBILE_TOLERANCE if artefact.kind in MOBILE and bundle.task == "classify" else TOLERANCE[bundle.task]
    usual = INT8_TOLERANCE[bundle.task] if bundle.arithmetic == "int8" else usual
    allowed = usual if tolerance is None else tolerance
    compare = _classes if bundle.task == "classify" else _masks
    model = _reference(bundle)
    cases = [_tried(trial, compare, artefact, model) if ask is None else _asked(trial, ask, model) for trial in trials]
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
        "arithmetic": bundle.arithmetic,
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


def _reference(bundle: Bundle) -> Any:
    """Torch in full precision, not another conversion; an int8 bundle is its own graph, as `predict` computes it."""
    if bundle.task == "classify":
        return Predictor(bundle, device="cpu")
    return SegmentPredictor(bundle, device="cpu", backend="torch", precision="fp32")


def _tried(trial: Trial, compare: Any, artefact: Artefact, model: Any) -> dict[str, Any]:
    try:
        image = trial.open()
    except DataError as error:
        return {"case": trial.case_id, "error": str(error)}
    scan, by = _scan(trial, image)
    begin = time.perf_counter()
    found = compare(artefact, model, image, scan)
    return {"case": trial.case_id, "read_by": by, **found, "both_s": round(time.perf_counter() - begin, 4)}


def _asked(trial: Trial, ask: Ask, model: Any) -> dict[str, Any]:
    try:
        image = trial.open()
    except DataError as error:
        return {"case": trial.case_id, "error": str(error)}
    begin = time.perf_counter()
    found, by = ask(trial, image)
    apart = _overlap(found["mask"], model, image) if "mask" in found else {"difference": _apart(found, model(image))}
    return {"case": trial.case_id, "read_by": by, **apart, "ms": round(float(found["ms"]), 3),
            "both_s": round(time.perf_counter() - begin, 4)}  # fmt: skip


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
    run: Any = mobile_runner if artefact.kind in MOBILE else runner
    found = run.classify(artefact.call, artefact.contract, scan)
    ms = (time.perf_counter() - begin) * 1e3
    return {"difference": _apart(found, model(image)), "ms": round(ms, 3)}


def _apart(found: dict[str, Any], wanted: ClassScores) -> float:
    """Largest difference of a probability."""
    said = np.array([found["probabilities"][name] for name in wanted.labels.names])
    return float(np.abs(said - wanted.probabilities).max())


def _masks(artefact: Artefact, model: Any, image: Image, scan: runner.Scan) -> dict[str, Any]:
    begin = time.perf_counter()
    find = run_objects.find if artefact.contract["decide"] == "objects" else run_masks.segment
    found = find(artefact.call, artefact.contract, scan)
    ms = (time.perf_counter() - begin) * 1e3
    return {**_overlap(found, model, image), "ms": round(ms, 3)}


def _overlap(found: NDArray[Any], model: Any, image: Image) -> dict[str, Any]:
    """How far a mask is from that of the bundle, and the Dice of every structure."""
    wanted = model.segment(image, "case").mask.values
    if model.labels.instances:
        return _objects(found, wanted, str(model.labels.structures[0]))
    layers = wanted.ndim > image.grid.ndim
    numbers = range(len(wanted)) if layers else range(1, len(model.labels))
    dice = {
        name: _dice(found[k], wanted[k]) if layers else _dice(found == k, wanted == k)
        for name, k in zip(model.labels.structures, numbers, strict=True)
    }
    return {"difference": 1 - min(dice.values()), "dice": dice}


def _objects(found: NDArray[Any], wanted: NDArray[Any], name: str) -> dict[str, Any]:
    """Dice of the foreground and panoptic quality; the latter may fall short ten times as far.

    A border between two objects that is one pixel off changes no Dice, but the quality of both.
    """
    dice = _dice(found, wanted)
    if found.shape != wanted.shape:
        return {"difference": 1.0, "dice": {name: dice}, "pq": 0.0}
    pq = instance_scores(found, wanted)["panoptic_quality"] if found.any() or wanted.any() else 1.0
    return {"difference": max(1 - dice, (1 - pq) / 10), "dice": {name: dice}, "pq": pq}


def _dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape:
        return 0.0
    size = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero((one != 0) & (other != 0))) / size if size else 1.0
