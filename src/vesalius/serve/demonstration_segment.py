"""`vesalius demo segment`: heads whose tissue volumes are known by formula, from scans of three scanners to masks."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.core.files import write_json
from vesalius.core.progress import Progress
from vesalius.core.quantity import show_seconds
from vesalius.phantoms.brain import make_brain
from vesalius.phantoms.cohort import write_image, write_mask
from vesalius.phantoms.layouts_dicom import write_study
from vesalius.phantoms.phantom import Phantom

CASES, NEW_CASES, SEED = 40, 3, 1543
BUDGET_S = 120
STRUCTURES = ("background", "grey matter", "white matter", "ventricles")
PATIENT = r"(brain\d+)"
FORMATS = ("nifti", "dicomseg", "overlay")
# What a person with so little time would overrule: many small steps, overlap weighs more than voxels, fewer tiles.
SETTINGS: dict[str, Any] = {
    "model.patch": [32, 32, 32],
    "optim.lr": 0.01,
    "loss.dice_weight": 3.0,
    "predict.overlap": 0.25,
}
# Four protocols: plane of the slices, voxels and their size (z, y, x in the order of the file) in mm.
PROTOCOLS: tuple[dict[str, Any], ...] = (
    {"orientation": "axial", "shape": (52, 64, 52), "spacing_mm": (3.4, 3.4, 3.4)},
    {"orientation": "axial", "shape": (36, 72, 60), "spacing_mm": (5.0, 3.0, 3.0)},
    {"orientation": "coronal", "shape": (64, 52, 52), "spacing_mm": (3.4, 3.4, 3.4)},
    {"orientation": "sagittal", "shape": (40, 56, 68), "spacing_mm": (4.2, 3.2, 3.2)},
)


def run(
    out: Path,
    progress: Progress,
    *,
    command: Sequence[str] | None,
    cases: int = CASES,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make heads, inspect, plan, train, test, segment new patients; returns facts and the lines to show.

    Parameters
    ----------
    cases, settings
        Number of heads to learn from, and lines of the plan that are overruled beside `SETTINGS`.
    """
    from vesalius.serve import jobs

    start = time.monotonic()
    for name in ("phantoms", "new-patients", "masks"):
        shutil.rmtree(out / name, ignore_errors=True)
    write_cohort(out / "phantoms", cases, progress)
    fresh = write_new(out / "new-patients")
    reading = jobs.Reading(patient_pattern=PATIENT)
    found = jobs.inspect(out / "phantoms", out=out / "inspect.html", reading=reading, progress=progress)
    done = jobs.train(
        out / "phantoms",
        out=out / "run",
        budget=BUDGET_S,
        settings={**SETTINGS, **(settings or {})},
        reading=reading,
        force=True,
        command=command or ["vesalius", "demo", "segment"],
        progress=progress,
    )
    outcome = jobs.predict(
        out / "run",
        out / "new-patients",
        out=out / "masks",
        formats=FORMATS,
        force=True,
        progress=progress,
    )
    seconds = time.monotonic() - start
    said = {entry["case_id"]: entry["structures"]["ventricles"]["volume_ml"] for entry in outcome.predictions}
    volumes = {name: (said[name], phantom) for name, phantom in fresh.items()}
    return {
        "run": str(done.run),
        "report": str(done.report),
        "bundle": str(done.bundle),
        "seconds": round(seconds, 1),
        "metrics": done.metrics["metrics"],
        "per_class": done.metrics["per_class"],
        "cases": done.metrics["cases"],
        "patients": done.metrics["patients"],
        "predictions": outcome.predictions,
        "lines": [*_result_lines(found, done.metrics), *_new_lines(volumes), *_file_lines(out, seconds)],
    }


def write_cohort(folder: Path, cases: int, progress: Progress) -> None:
    """Heads in the layout of nnU-Net: ``imagesTr/CASE_0000``, ``labelsTr/CASE`` and ``dataset.json``."""
    progress.start("make heads", cases, "cases")
    for index in range(cases):
        phantom = make_head(SEED, index)
        write_image(phantom, folder / "imagesTr", f"{phantom.case.case_id}_0000")
        write_mask(phantom, folder / "labelsTr", phantom.case.case_id)
        progress.advance()
    progress.stop()
    described = {
        "channel_names": {"0": "MR"},
        "labels": {name: value for value, name in enumerate(STRUCTURES)},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", described)


def write_new(folder: Path) -> dict[str, Phantom]:
    """DICOM series of patients who are in no part of the cohort, by the name of their folder."""
    made = {}
    for index in range(NEW_CASES):
        phantom = make_head(SEED + 1, index)
        name = f"new-{index}-{phantom.label.replace(' ', '-')}"
        write_study(phantom, folder / name, SEED + 1)
        made[name] = phantom
    return made


def make_head(seed: int, index: int) -> Phantom:
    """Head `index` of a cohort, with `STRUCTURES` in its mask; the protocols take turns."""
    phantom = make_brain(seed=seed, index=index, **PROTOCOLS[index % len(PROTOCOLS)])
    table = np.array([STRUCTURES.index(name) if name in STRUCTURES else 0 for name in phantom.structures], np.uint8)
    return replace(phantom, mask=table[phantom.mask], structures=STRUCTURES)


def _result_lines(found: Mapping[str, Any], tested: Mapping[str, Any]) -> list[str]:
    whole, named = tested["metrics"]["dice"], tested["per_class"]
    return [
        f"{found['images']} synthetic heads, {len(PROTOCOLS)} protocols: inspected, split, trained on, tested",
        f"on {tested['cases']} heads it had never seen:",
        f"  {'Dice':<15} {_interval(whole)}",
        *(f"    {name:<13} {_interval(entry['dice'])}{_distance(entry)}" for name, entry in named.items()),
    ]


def _new_lines(volumes: Mapping[str, tuple[float, Phantom]]) -> list[str]:
    """The ventricles of new patients beside the formula they were made by."""
    lines = ["new patients, DICOM series; volume of the ventricles (true):"]
    for name, (volume, phantom) in volumes.items():
        lines.append(f"  {name:<28} {volume:5.1f} ml ({phantom.truth['volumes_ml']['ventricles']:.1f})")
    return lines


def _file_lines(out: Path, seconds: float) -> list[str]:
    return [
        f"done in {show_seconds(seconds)}",
        f"data page    {out / 'inspect.html'}",
        f"plan         {out / 'run' / 'plan.yaml'}",
        f"masks        {out / 'masks'} (NIfTI, DICOM SEG, outlines as PNG)",
        f"report       {out / 'run' / 'report' / 'index.html'}",
    ]


def _interval(entry: Mapping[str, Any]) -> str:
    value, low, high = (entry[key] for key in ("value", "low", "high"))
    known = all(end is not None and math.isfinite(end) for end in (low, high))
    said = f"  (95% interval {low:.3f} to {high:.3f})" if known else "  (no interval)"
    return ("-" if value is None else f"{value:.3f}") + said


def _distance(entry: Mapping[str, Any]) -> str:
    """HD95, which a structure that was never found does not have."""
    return f"  HD95 {entry['hd95_mm']['value']:.2f} mm" if "hd95_mm" in entry else ""
