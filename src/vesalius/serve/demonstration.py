"""`vesalius demo`: the whole journey on synthetic cases that are made on the spot."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vesalius.core.errors import UsageError
from vesalius.core.progress import Progress
from vesalius.core.quantity import show_seconds
from vesalius.io.raster_out import write_png
from vesalius.phantoms.chest import make_chest
from vesalius.phantoms.layouts import write_tree

PATIENTS, PER_PATIENT, SIDE, SEED = 600, 2, 96, 1543
NEW_CASES = 6
BUDGET_S = 75


def run(what: str, out: Path, progress: Progress, *, force: bool, command: Sequence[str] | None) -> dict[str, Any]:
    """Make cases, inspect, plan, train, evaluate, predict; returns facts and the lines to show.

    Raises
    ------
    UsageError
        For a journey that this version does not have.
    """
    from vesalius.serve import jobs

    if what == "measure":
        from vesalius.serve import demonstration_measure

        return demonstration_measure.run(out, progress, command=command)
    if what == "segment":
        from vesalius.serve import demonstration_segment

        return demonstration_segment.run(out, progress, command=command)
    if what != "classify":
        raise UsageError(f"demo {what!r} is not in this version; it has classify, segment and measure")
    start = time.monotonic()
    scans, fresh = out / "phantoms", out / "new-patients"
    if out.exists() and force:
        for folder in (scans, fresh, out / "predictions"):
            shutil.rmtree(folder, ignore_errors=True)
    write_cohort(scans, progress)
    _write_new(fresh)
    found = jobs.inspect(scans, out=out / "inspect.html", progress=progress)
    done = jobs.train(
        scans,
        out=out / "run",
        budget=BUDGET_S,
        force=force,
        command=command or ["vesalius", "demo", what],
        progress=progress,
    )
    again = jobs.evaluate(out / "run", progress=progress)
    outcome = jobs.predict(out / "run", fresh, out=out / "predictions", formats=("json", "png"), progress=progress)
    seconds = time.monotonic() - start
    metrics = again.metrics["metrics"]
    lines = _lines(found, again.metrics, outcome.predictions, out, seconds)
    return {
        "run": str(done.run),
        "report": str(done.report),
        "bundle": str(done.bundle),
        "seconds": round(seconds, 1),
        "metrics": metrics,
        "cases": again.metrics["cases"],
        "patients": again.metrics["patients"],
        "predictions": outcome.predictions,
        "lines": lines,
    }


def _lines(
    found: dict[str, Any], tested: dict[str, Any], predictions: Sequence[dict[str, Any]], out: Path, seconds: float
) -> list[str]:
    """What the demo says at the end."""
    said = {entry["case_id"]: entry for entry in predictions}
    lines = [
        f"{found['images']} synthetic chest films of {found['patients']} patients: "
        "inspected, split by patient, trained on, tested",
        f"on {tested['cases']} films of {tested['patients']} patients it had never seen:",
    ]
    for name in ("auroc", "accuracy", "sensitivity", "specificity"):
        entry = tested["metrics"][name]
        lines.append(f"  {name:<12} {entry['value']:.3f}  (95% interval {entry['low']:.3f} to {entry['high']:.3f})")
    lines += [
        "new films:",
        *(
            f"  {case:<20} {entry['class']:<10} {entry['probabilities'][entry['class']]:.2f}"
            for case, entry in sorted(said.items())
        ),
    ]
    lines += [
        f"done in {show_seconds(seconds)}",
        f"data page    {out / 'inspect.html'}",
        f"plan         {out / 'run' / 'plan.yaml'}",
        f"predictions  {out / 'predictions' / 'predictions.csv'}",
        f"report       {out / 'run' / 'report' / 'index.html'}",
    ]
    return lines


def write_cohort(folder: Path, progress: Progress) -> None:
    """PNG files and a table with patient, age, sex and site, as a department might hand them over."""
    options: dict[str, Any] = {"size": SIDE, "images_per_patient": PER_PATIENT}
    cases = PATIENTS * PER_PATIENT
    write_tree("chest", folder, layout="csv", cases=cases, seed=SEED, over=True, progress=progress, **options)


def _write_new(folder: Path) -> None:
    """Films of patients who are in no part of the cohort; their names tell what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(NEW_CASES):
        phantom = make_chest(seed=SEED + 1, index=index, size=SIDE)
        write_png(folder / f"new-{index}-{phantom.label}.png", phantom.case.image().pixels[0])
