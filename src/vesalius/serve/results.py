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
from vesalius.core.provenance import provenance
from vesalius.data.cohort import Cohort
from vesalius.data.manifest import Manifest
from vesalius.data.prepare import for_dims
from vesalius.data.store import Store
from vesalius.evaluate.decision import Decision
from vesalius.evaluate.operating import youden_decision
from vesalius.evaluate.study import Study, study
from vesalius.evaluate.table import build_table, read_table, write_table
from vesalius.io.open import open_image
from vesalius.measure.calibration import fit_temperature
from vesalius.predict.bundle import Bundle
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
class _PerCase:
    """Logits of all members and views; for out-of-fold cases only of the member that had not seen them."""

    views: list[NDArray[np.float64]]
    rows: list[NDArray[np.int64]]
    count: int
    classes: int
    seconds: float

    def mean_logits(self, task: Classify) -> NDArray[np.float64]:
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
) -> tuple[pd.DataFrame, _PerCase]:
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
    return pd.concat(pieces, ignore_index=True), _PerCase(logits, rows, start, len(cohort.labels), seconds)


def _table(
    held_out: pd.DataFrame,
    labels: Labels,
    task: Classify,
    bundle: Bundle,
    per_case: _PerCase,
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
    metrics = {
        **judged.study.to_json(),
        "labels": cohort.labels.to_json(),
        "patient_source": cohort.manifest.patient_source,
    }
    judged.metrics = metrics
    write_table(folder.cases, judged.table)
    card = _card(folder, plan, cohort, judged.bundle, metrics)
    bundle = judged.bundle
    bundle.plan_yaml = _yaml(plan)
    bundle.card = model_card(metrics=metrics, card=card, provenance=origin, plan=plan.to_mapping(), notes=cohort.notes)
    bundle.facts = {
        "training_cases": len(cohort.places("train")),
        "data_hash": cohort.data_hash,
        "seed": plan["run.seed"],
        "metrics": {name: entry["value"] for name, entry in metrics["metrics"].items()},
        "split": metrics["split"],
        "patient_source": cohort.manifest.patient_source,
        "leakage_allowed": cohort.leaked,
    }
    bundle.save(folder.bundle)
    return _report(
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


def _yaml(plan: Plan) -> str:
    import yaml

    return str(yaml.safe_dump(plan.to_mapping(), sort_keys=False, allow_unicode=True, width=110))


def _report(
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
        notes=[*notes, *_problem_lines(manifest)],
        title=str(card.get("name", "")),
    )


def _problem_lines(manifest: Manifest | None) -> list[str]:
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


def _card(folder: RunFolder, plan: Plan, cohort: Cohort, bundle: Bundle, metrics: Mapping[str, Any]) -> dict[str, Any]:
    manifest = cohort.manifest
    parameters = sum(
        int(np.prod(value.shape))
        for member in bundle.members
        for name, value in member.items()
        if "running_" not in name and "num_batches" not in name
    )
    size = " x ".join(str(side) for side in plan["preprocess.size"])
    return {
        "name": folder.root.name,
        "labels": cohort.labels.to_json(),
        "model": plan["model.name"],
        "parameters": parameters,
        "input": f"{plan['preprocess.dims']}-dimensional images, {plan['preprocess.channels']} channel(s), resized to {size}",
        "bundle": str(folder.bundle),
        "operating_points": metrics.get("operating_points"),
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


def again(folder: RunFolder, model: Bundle, command: Sequence[str] | None, progress: Progress) -> Any:
    """The report of a run once more, from its tables."""
    import json

    from vesalius.serve.jobs import Trained

    table = read_table(folder.cases, model.labels)
    old = json.loads((folder.report / "metrics.json").read_text(encoding="utf-8"))
    origin = json.loads(folder.provenance.read_text(encoding="utf-8"))
    manifest = Manifest.from_parquet(folder.cohort) if folder.cohort.exists() else None
    decision = Decision.from_json(old["decision"])
    judged = study(
        table,
        model.labels,
        split=old["split"],
        decision=decision,
        seed=int(origin["seed"]),
        leakage=old["leakage"],
        timing=old["timing"],
        calibration_info={"temperature": model.temperature},
    )
    metrics = {
        **judged.to_json(),
        "labels": model.labels.to_json(),
        "patient_source": old.get("patient_source", "none"),
    }
    plan = Plan.read(folder.plan)
    card = {
        "name": folder.root.name,
        "labels": model.labels.to_json(),
        "model": plan["model.name"],
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
    page = _report(
        folder.report, metrics, table, plan.to_mapping(), origin, card, manifest, (), history(folder), progress
    )
    return Trained(folder.root, page, folder.bundle, metrics)


def with_labels_of(manifest: Manifest, model: Bundle) -> Manifest:
    """The manifest with the model's classes in the model's order.

    Raises
    ------
    DataError
        If it names a class that the model does not know.
    """
    names = {name for text in manifest.cases["label"] for name in str(text).split("|") if name}
    unknown = sorted(names - set(model.labels.names))
    if unknown:
        raise DataError(
            f"{manifest.root}: classes {unknown} are unknown to the model, which tells apart "
            f"{', '.join(model.labels.names)}; rename them in the table"
        )
    return replace(manifest, labels=model.labels)


def external(
    model: Bundle,
    manifest: Manifest,
    store: Store,
    out: Path,
    *,
    device: torch.device,
    start: float,
    command: Sequence[str] | None,
    known: RunFolder,
    progress: Progress,
) -> Any:
    """A model judged on other data: every readable, labelled case is a test case."""
    from vesalius.data.manifest import targets
    from vesalius.serve.jobs import Trained

    ok = store.index["ok"].to_numpy(dtype=bool) & (manifest.cases["label"] != "").to_numpy()
    if not ok.any():
        raise DataError(f"{manifest.root}: no case with a label can be read")
    kept = manifest.with_frame(manifest.cases[ok].assign(split="test"))
    notes = (
        [] if ok.all() else [f"{int((~ok).sum())} of {len(ok)} cases cannot be read or have no label and were left out"]
    )
    task = model.make_task()
    forward = Forward(model.networks(), Preprocess.from_spec(model.preprocess), task, device=device, views=model.views)
    begin = time.perf_counter()
    views = forward.over_store(store, np.flatnonzero(ok), progress=progress)
    ms = (time.perf_counter() - begin) / len(kept) * 1e3
    logits = task.average(views)
    per_case = _PerCase([views], [np.arange(len(kept))], len(kept), len(model.labels), 0.0)
    table = build_table(
        kept.cases.drop(columns=["fold"], errors="ignore"),
        model.labels,
        task.probabilities(logits, model.temperature),
        logits,
        spread=per_case.spread(task, model.temperature),
    )
    validation = read_table(known.cases, model.labels) if known.cases.exists() else None
    if validation is not None:
        validation = validation[validation["split"] == "val"]
    positive = model.labels.names[model.labels.positive] if model.labels.binary else ""
    decision = Decision() if model.threshold is None else Decision({positive: model.threshold}, "val", "youden")
    leakage = _seen_in_training(kept, known, store, ok, notes)
    judged = study(
        table,
        model.labels,
        validation=validation,
        decision=decision,
        leakage=leakage,
        calibration_info={"temperature": model.temperature},
        timing={"predict_ms_per_case": round(ms, 3)},
    )
    metrics = {
        **judged.to_json(),
        "labels": model.labels.to_json(),
        "patient_source": kept.patient_source,
        "external": str(manifest.root.name),
    }
    targets(kept)  # every label is one of the model's
    write_table(out / "cases.parquet", table)
    origin = provenance(seed=0, data_hash=store.key, command=command, bundle=model.checksum)
    write_json(out / "provenance.json", origin)
    card = {
        "name": f"{known.root.name} on {manifest.root.name}",
        "labels": model.labels.to_json(),
        "bundle": str(known.bundle),
        "data": {
            "name": manifest.root.name,
            "counts": kept.counts(),
            "patient_source": kept.patient_source,
            "split_source": "none",
        },
    }
    import yaml

    page = _report(
        out, metrics, table, yaml.safe_load(model.plan_yaml) or {}, origin, card, kept, notes, None, progress
    )
    return Trained(out, page, known.bundle, metrics, notes, time.monotonic() - start)


def _seen_in_training(
    kept: Manifest, known: RunFolder, store: Store, ok: NDArray[np.bool_], notes: list[str]
) -> dict[str, Any]:
    """Patients of the external data that also stand in the run's own cohort, where both know patients."""
    del store, ok
    if not known.cohort.exists() or kept.patient_source == "none":
        return {}
    own = Manifest.from_parquet(known.cohort)
    shared = set(own.cases.loc[own.cases["split"] != "test", "patient_id"]) & set(kept.cases["patient_id"])
    if shared and own.patient_source != "none":
        notes.append(
            f"{len(shared)} patient ids also stand in the training data of this model (first: {sorted(shared)[0]}); "
            "if they are the same people, this is no external validation"
        )
        return {"patients_shared": len(shared)}
    return {"patients_shared": 0}


FORMATS = ("json", "csv", "png", "sr")


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
