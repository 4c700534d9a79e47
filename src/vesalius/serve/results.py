"""From trained weights to what a person gets: tables, metrics, report, bundle, predictions on disk."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from vesalius.core.errors import DataError, UsageError
from vesalius.core.files import safe_stem, write_json, write_text
from vesalius.core.labels import Labels
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.data.cohort import Cohort
from vesalius.data.manifest import Manifest
from vesalius.data.prepare import for_dims
from vesalius.data.store import Store
from vesalius.evaluate.decision import Decision
from vesalius.evaluate.operating import youden_decision
from vesalius.evaluate.study import Study, study
from vesalius.evaluate.table import build_table, write_table
from vesalius.io.open import open_image
from vesalius.measure.calibration import fit_temperature
from vesalius.predict.bundle import Bundle, learned_values
from vesalius.predict.cohort import Item, Outcome
from vesalius.predict.device import pick_device
from vesalius.predict.forward import Forward
from vesalius.predict.predictor import Predictor
from vesalius.report.card import model_card
from vesalius.report.cases import cases_worth_a_picture
from vesalius.report.pictures import thumbnail
from vesalius.report.study import write_study_report
from vesalius.tasks.classify import Classify
from vesalius.train.run import RunFolder, folds, history
from vesalius.transforms.preprocess import Preprocess


@dataclass
class Judged:
    """A model and what it is worth on cases it has not seen."""

    bundle: Bundle
    table: pd.DataFrame
    study: Study
    metrics: dict[str, Any]


def judge(
    plan: Plan,
    task: Classify,
    store: Store,
    cohort: Cohort,
    members: list[dict[str, torch.Tensor]],
    folder: RunFolder,
    progress: Progress,
) -> Judged:
    """Calibrate on validation, predict the test part, and put numbers with intervals on it."""
    preprocess = plan.section("preprocess")
    bundle = Bundle(
        task="classify",
        labels=cohort.labels,
        preprocess=preprocess,
        model=plan.section("model"),
        members=members,
        views=[list(v) for v in plan["predict.views"]] or [[]],
        plan_yaml="",
    )
    held_out, per_case = _predictions(plan, task, store, cohort, bundle, progress)
    val = held_out["split"].to_numpy() == "val"
    truth = cohort.targets[held_out["place"].to_numpy()]
    logits = per_case.mean_logits(task)
    if plan["calibrate.temperature"] and val.sum() >= 20:
        bundle.temperature = float(fit_temperature(logits[val], truth[val], multilabel=cohort.labels.multilabel))
    table = _table(held_out, cohort.labels, task, bundle, per_case, logits)
    decision = Decision()
    if plan["calibrate.operating_point"] == "youden" and cohort.labels.binary and val.any():
        decision = youden_decision(table[table["split"] == "val"], cohort.labels)
        bundle.threshold = next(iter(decision.thresholds.values()), None)
    split = "test" if (table["split"] == "test").any() else "val"
    if not (table["split"] == split).any():
        raise DataError(f"{cohort.manifest.root}: no case is left to test on; set split.test above 0")
    result = study(
        table,
        cohort.labels,
        split=split,
        decision=decision,
        seed=int(plan["run.seed"]),
        leakage={**cohort.leakage.counts(), "allowed": cohort.leaked},
        calibration_info={"temperature": bundle.temperature},
        timing={"predict_ms_per_case": round(per_case.seconds / max(len(table), 1) * 1e3, 3)},
    )
    return Judged(bundle, table, result, {})


@dataclass
class PerCase:
    """Logits of all members and views; for out-of-fold cases only of the member that had not seen them."""

    views: list[NDArray[np.float64]]
    rows: list[NDArray[np.int64]]
    count: int
    classes: int
    seconds: float

    def mean_logits(self, task: Classify) -> NDArray[np.float64]:
        """``(N, K)``: the mean over the views that count for each case."""
        out = np.zeros((self.count, self.classes))
        for views, rows in zip(self.views, self.rows, strict=True):
            out[rows] = task.average(views)
        return out

    def spread(self, task: Classify, temperature: float) -> NDArray[np.float64] | None:
        """Standard deviation of the top probability; None where there is one view only."""
        if all(len(views) < 2 for views in self.views):
            return None
        out = np.full(self.count, np.nan)
        for views, rows in zip(self.views, self.rows, strict=True):
            p = task.probabilities(views, temperature)
            top = task.probabilities(task.average(views), temperature).argmax(axis=1)
            out[rows] = p[:, np.arange(len(rows)), top].std(axis=0) if len(views) > 1 else np.nan
        return out


def _predictions(
    plan: Plan, task: Classify, store: Store, cohort: Cohort, bundle: Bundle, progress: Progress
) -> tuple[pd.DataFrame, PerCase]:
    """Held-out cases (validation, out-of-fold, test) and their logits."""
    device = pick_device(plan["run.device"])
    frame = cohort.frame
    frame["place"] = np.arange(len(frame))
    count = int(plan["split.folds"])
    networks = bundle.networks()
    batch = int(plan["predict.batch_size"])
    pieces, logits, rows, seconds = [], [], [], 0.0
    start = 0
    jobs = [(networks, frame.index[frame["split"] == "test"].to_numpy(), "test")]
    if count < 2:
        jobs.insert(0, (networks, frame.index[frame["split"] == "val"].to_numpy(), "val"))
    else:
        jobs = [([networks[k]], validation, "val") for k, (_, validation) in enumerate(folds(frame, count))] + jobs
    for members, places, split in jobs:
        if not len(places):
            continue
        forward = Forward(members, Preprocess.from_spec(bundle.preprocess), task, device=device, views=bundle.views)
        begin = time.perf_counter()
        logits.append(
            forward.over_store(store, cohort.rows[places], batch_size=batch, progress=progress, what=f"predict {split}")
        )
        seconds += time.perf_counter() - begin
        pieces.append(frame.loc[places].assign(split=split))
        rows.append(np.arange(start, start + len(places)))
        start += len(places)
    if not pieces:
        raise DataError(f"{cohort.manifest.root}: no case was kept from training; set split.val or split.test above 0")
    return pd.concat(pieces, ignore_index=True), PerCase(logits, rows, start, len(cohort.labels), seconds)


def _table(
    held_out: pd.DataFrame,
    labels: Labels,
    task: Classify,
    bundle: Bundle,
    per_case: PerCase,
    logits: NDArray[np.float64],
) -> pd.DataFrame:
    rows = held_out.drop(columns=["place", "fold"], errors="ignore")
    return build_table(
        rows,
        labels,
        task.probabilities(logits, bundle.temperature),
        logits,
        spread=per_case.spread(task, bundle.temperature),
    )


def write_run(
    folder: RunFolder,
    plan: Plan,
    cohort: Cohort,
    judged: Judged,
    origin: Mapping[str, Any],
    *,
    train_s: float,
    progress: Progress,
) -> Path:
    """Everything a run leaves: metrics, cases, bundle with its card, report."""
    judged.study = replace(judged.study, timing={**judged.study.timing, "train_s": round(train_s, 2)})
    metrics = stated(judged.study.to_json(), cohort)
    judged.metrics = metrics
    write_table(folder.cases, judged.table)
    card = _card(folder, plan, cohort, judged.bundle, metrics)
    bundle = judged.bundle
    bundle.plan_yaml = plan_yaml(plan)
    bundle.card = model_card(
        metrics=metrics,
        card={**card, "bundle": folder.root.name},
        provenance=origin,
        plan=plan.to_mapping(),
        notes=cohort.notes,
    )
    bundle.facts = bundle_facts(plan, cohort, metrics)
    bundle.save(folder.bundle)
    return write_report(
        folder.report,
        metrics,
        judged.table,
        plan.to_mapping(),
        origin,
        card,
        cohort.manifest,
        cohort.notes,
        history(folder),
        progress,
    )


def plan_yaml(plan: Plan) -> str:
    """A plan as the text that a bundle keeps."""
    import yaml

    return str(yaml.safe_dump(plan.to_mapping(), sort_keys=False, allow_unicode=True, width=110))


def write_report(
    folder: Path,
    metrics: dict[str, Any],
    table: pd.DataFrame,
    plan: Mapping[str, Any],
    origin: Mapping[str, Any],
    card: Mapping[str, Any],
    manifest: Manifest | None,
    notes: Sequence[str],
    curves: pd.DataFrame | None,
    progress: Progress,
) -> Path:
    """``metrics.json`` and ``index.html`` in `folder`; `plan` and `card` as `report.study` takes them."""
    write_json(folder / "metrics.json", metrics)
    judged = table[table["split"] == metrics["split"]]
    pictures = {} if manifest is None else case_pictures(manifest, judged, Labels.from_json(metrics["labels"]))
    progress.say(f"report: {len(pictures)} pictures")
    return write_study_report(
        folder,
        metrics=metrics,
        table=judged,
        plan=plan,
        provenance=origin,
        history=curves,
        card=card,
        pictures=pictures,
        notes=[*notes, *problem_lines(manifest)],
        title=str(card.get("name", "")),
    )


def problem_lines(manifest: Manifest | None) -> list[str]:
    """What a reader of the report should know of the data."""
    return [] if manifest is None else [str(p) for p in manifest.problems if p.severity != "note"][:50]


def case_pictures(manifest: Manifest, table: pd.DataFrame, labels: Labels) -> dict[str, bytes]:
    """Thumbnails of the cases that the report shows; a file that has gone is left out."""
    wanted = set(cases_worth_a_picture(table, labels))
    paths = dict(zip(manifest.cases["case_id"], manifest.cases["path"], strict=True))
    found = {}
    for case in wanted & set(paths):
        try:
            found[case] = thumbnail(open_image(manifest.root / paths[case]))
        except DataError:
            continue
    return found


def stated(study: Mapping[str, Any], cohort: Cohort) -> dict[str, Any]:
    """The content of ``metrics.json``: a study with the classes and where the patients are known from."""
    return {**study, "labels": cohort.labels.to_json(), "patient_source": cohort.manifest.patient_source}


def bundle_facts(plan: Plan, cohort: Cohort, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What ``bundle.json`` tells about the training."""
    return {
        "training_cases": len(cohort.places("train")),
        "data_hash": cohort.data_hash,
        "seed": plan["run.seed"],
        "metrics": {name: entry["value"] for name, entry in metrics["metrics"].items()},
        "split": metrics["split"],
        "patient_source": cohort.manifest.patient_source,
        "leakage_allowed": cohort.leaked,
    }


def run_card(folder: RunFolder, plan: Plan, cohort: Cohort, bundle: Bundle, *, seen_as: str) -> dict[str, Any]:
    """Facts of a finished run for `report.card`; `seen_as` says how the network sees an image."""
    manifest = cohort.manifest
    return {
        "name": folder.root.name,
        "labels": cohort.labels.to_json(),
        "model": plan["model.name"],
        "parameters": learned_values(bundle.members),
        "input": seen_as,
        "bundle": str(folder.bundle),
        "leakage_allowed": cohort.leaked,
        "data": {
            "name": manifest.root.name,
            "source": manifest.layout,
            "counts": manifest.counts(),
            "patient_source": manifest.patient_source,
            "split_source": manifest.split_source,
            "published": manifest.published,
            "duplicates": cohort.leakage.lines(),
            "problems": [str(p) for p in manifest.problems],
            "covariates": {
                name: f"known for {int(manifest.cases[name].notna().sum())} cases"
                for name in manifest.covariates
                if name not in ("fold", "place")
            },
        },
    }


def _card(folder: RunFolder, plan: Plan, cohort: Cohort, bundle: Bundle, metrics: Mapping[str, Any]) -> dict[str, Any]:
    size = " x ".join(str(side) for side in plan["preprocess.size"])
    seen = f"{plan['preprocess.dims']}-dimensional images, {plan['preprocess.channels']} channel(s), resized to {size}"
    card = run_card(folder, plan, cohort, bundle, seen_as=seen)
    return {**card, "operating_points": metrics.get("operating_points")}


def write_predictions(
    out: Path, outcome: Outcome, items: Sequence[Item], predictor: Predictor, formats: Sequence[str]
) -> None:
    """The overview ``predictions.csv`` and, if asked for, a picture of every case."""
    unknown = sorted(set(formats) - {"json", "csv", "png"})
    if unknown:
        raise UsageError(f"--format {', '.join(unknown)}: classification writes json, csv and png")
    names = predictor.labels.names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case_id", "class", *(f"p.{name}" for name in names), "source"])
    for entry in sorted(outcome.predictions, key=lambda e: str(e["case_id"])):
        said = entry.get("class", "|".join(entry.get("classes", ())))
        writer.writerow(
            [entry["case_id"], said, *(f"{entry['probabilities'][name]:.6g}" for name in names), entry["source"]]
        )
    write_text(out / "predictions.csv", text.getvalue())
    if "png" in formats:
        for item in items:
            if item.case_id not in outcome.failed:
                picture = thumbnail(for_dims(open_image(item.source), predictor.preprocess.dims), side=256)
                (out / f"{safe_stem(item.case_id)}.png").write_bytes(picture)
