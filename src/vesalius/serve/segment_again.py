"""A segmentation judged once more: the report of a run from its tables and masks, or its model on other data."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from vesalius.core.errors import DataError
from vesalius.core.files import write_json
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.core.provenance import provenance
from vesalius.data.manifest import Manifest
from vesalius.data.truth import open_case_image
from vesalius.evaluate.segment_study import segment_study
from vesalius.evaluate.segment_table import read_segment_table
from vesalius.evaluate.table import write_table
from vesalius.predict.bundle import Bundle
from vesalius.report.segment_page import write_segment_report
from vesalius.serve.results import problem_lines
from vesalius.serve.segment_results import PREDICTIONS, Held, Judge, named_band
from vesalius.serve.workshop import Trained
from vesalius.train.run import RunFolder, history


def report_segments_again(
    folder: RunFolder, model: Bundle, command: Sequence[str] | None, progress: Progress
) -> Trained:
    """The report of a run once more, from its tables and the masks it left."""
    table = read_segment_table(folder.cases)
    old = json.loads((folder.report / "metrics.json").read_text(encoding="utf-8"))
    origin = json.loads(folder.provenance.read_text(encoding="utf-8"))
    known = ("timing", "leakage", "calibration", "band", "decision")
    study = segment_study(
        table,
        model.labels,
        split=old["split"],
        seed=int(origin["seed"]),
        **{name: old[name] for name in known if old.get(name)},
    )
    metrics = {
        **study.to_json(),
        "labels": model.labels.to_json(),
        "patient_source": old.get("patient_source", "none"),
    }
    evidence_file = folder.root / "postprocessing.csv"
    evidence = pd.read_csv(evidence_file) if evidence_file.exists() else None
    manifest = Manifest.from_parquet(folder.cohort) if folder.cohort.exists() else None
    judged = table[table["split"] == metrics["split"]]
    pictures: dict[str, bytes] = {}
    notes: list[str] = []
    plan = Plan.read(folder.plan)
    if manifest is not None:
        held = [Held(str(case), str(case), metrics["split"]) for case in judged["case_id"].unique()]
        judge = Judge(plan, manifest, model.labels, model, folder.root / PREDICTIONS, held, progress)
        try:
            pictures = judge.pictures(judged)
        except DataError as error:  # the data have gone; numbers and tables are still there
            notes.append(f"no pictures: {error}")
    write_json(folder.report / "metrics.json", metrics)
    page = write_segment_report(
        folder.report,
        metrics=metrics,
        table=judged,
        plan=plan.to_mapping(),
        provenance=origin,
        history=history(folder),
        card=_card(folder.root.name, model, folder, manifest),
        pictures=pictures,
        evidence=evidence,
        notes=[*notes, *problem_lines(manifest)],
        title=folder.root.name,
    )
    return Trained(folder.root, page, folder.bundle, metrics, notes)


def _card(name: str, model: Bundle, folder: RunFolder, manifest: Manifest | None) -> dict[str, Any]:
    card: dict[str, Any] = {
        "name": name,
        "labels": model.labels.to_json(),
        "model": model.model["name"],
        "bundle": str(folder.bundle),
    }
    if manifest is not None:
        card["data"] = {
            "name": manifest.root.name,
            "counts": manifest.counts(),
            "patient_source": manifest.patient_source,
            "split_source": manifest.split_source,
            "published": manifest.published,
        }
    return card


def with_structures_of(manifest: Manifest, model: Bundle) -> Manifest:
    """The manifest with the model's structures.

    Raises
    ------
    DataError
        If its masks name other structures than the model.
    """
    theirs, ours = manifest.labels, model.labels
    if theirs is None:
        raise DataError(f"{manifest.root}: has no masks to judge the model by")
    nameless = all(name.startswith(("label ", "foreground", "object", "unused ")) for name in theirs.structures)
    same = tuple(theirs.names) == tuple(ours.names)
    if theirs.instances != ours.instances or not (same or (nameless and len(theirs) == len(ours))):
        raise DataError(
            f"{manifest.root}: its masks show {', '.join(theirs.structures)}, the model finds "
            f"{', '.join(ours.structures)}; rename or leave out the masks of other structures"
        )
    return replace(manifest, labels=replace(theirs, names=ours.names, colours=(), concepts=()))


def external_segments(
    model: Bundle,
    manifest: Manifest,
    out: Path,
    *,
    start: float,
    command: Sequence[str] | None,
    known: RunFolder,
    progress: Progress,
    own: bool = False,
) -> Trained:
    """A model judged on other data: every readable case with a mask is a test case.

    With `own` the data are the test part of the model's own run (a lighter form of it is judged).
    """
    title = f"{known.root.name} {out.parent.name}" if own else f"{known.root.name} on {manifest.root.name}"
    plan = Plan.from_mapping(yaml.safe_load(model.plan_yaml) or {}, source="the plan of the bundle")
    manifest = with_structures_of(manifest, model)
    held, failed = _openable(manifest, progress)
    judge = Judge(plan, manifest, model.labels, model, out / PREDICTIONS, held, progress)
    judge.predict()
    table = judge.table()
    notes = [f"{len(failed)} of {len(manifest)} cases cannot be read and were left out"] if failed else []
    notes += _seen(known, manifest)
    study = segment_study(
        table,
        model.labels,
        split="test",
        calibration=judge.trust.to_json("test"),
        band=named_band(model.inference["band"], model.labels) if "band" in model.inference else {},
        timing={"predict_ms_per_case": round(judge.seconds / max(judge.predicted, 1) * 1e3, 3)},
    )
    metrics = {
        **study.to_json(),
        "labels": model.labels.to_json(),
        "patient_source": manifest.patient_source,
        **({} if own else {"external": manifest.root.name}),
    }
    write_table(out / "cases.parquet", table)
    write_json(out / "metrics.json", metrics)
    origin = provenance(seed=0, data_hash=manifest.content_hash(), command=command, bundle=model.checksum)
    write_json(out / "provenance.json", origin)
    page = write_segment_report(
        out,
        metrics=metrics,
        table=table,
        plan=plan.to_mapping(),
        provenance=origin,
        card=_card(title, model, known, manifest),
        pictures=judge.pictures(table),
        notes=[*notes, *judge.notes, *problem_lines(manifest)],
        title=title,
    )
    return Trained(out, page, known.bundle, metrics, notes, time.monotonic() - start)


def _openable(manifest: Manifest, progress: Progress) -> tuple[list[Held], list[str]]:
    """Cases whose images can be read, and why the others cannot."""
    held, failed = [], []
    for case, patient in zip(manifest.cases["case_id"], manifest.cases["patient_id"], strict=True):
        try:
            open_case_image(manifest, case)
        except DataError as error:
            failed.append(str(error))
            progress.warn(str(error))
        else:
            held.append(Held(case, patient, "test"))
    if not held:
        raise DataError(f"{manifest.root}: no case can be read; the first: {failed[0]}")
    return held, failed


def _seen(known: RunFolder, manifest: Manifest) -> list[str]:
    """Patients of the other data that the model was trained or validated on."""
    if not known.cohort.exists():
        return []
    own = Manifest.from_parquet(known.cohort)
    if "none" in (own.patient_source, manifest.patient_source):
        return []
    used = own.cases["split"].isin(["train", "val"])
    shared = set(own.cases.loc[used, "patient_id"]) & set(manifest.cases["patient_id"])
    if not shared:
        return []
    return [
        f"{len(shared)} patient ids also stand in the training data of this model (first: {sorted(shared)[0]}); "
        "if they are the same people, this is no external validation"
    ]
