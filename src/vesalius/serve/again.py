"""A model judged once more: the report of a run from its tables, or its model on other data."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from vesalius.core.errors import DataError, UsageError
from vesalius.core.files import write_json
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.core.provenance import provenance
from vesalius.data.manifest import Manifest, targets
from vesalius.data.store import Store
from vesalius.evaluate.decision import Decision
from vesalius.evaluate.study import Study, study
from vesalius.evaluate.table import build_table, read_table, write_table
from vesalius.predict.bundle import Bundle
from vesalius.predict.forward import Forward
from vesalius.serve.results import PerCase, write_report
from vesalius.serve.workshop import Trained
from vesalius.tasks.classify import Classify
from vesalius.train.run import RunFolder, history
from vesalius.transforms.preprocess import Preprocess


def report_again(folder: RunFolder, model: Bundle, command: Sequence[str] | None, progress: Progress) -> Trained:
    """The report of a run once more, from its tables."""
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
    page = write_report(
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
    own: bool = False,
) -> Trained:
    """A model judged on other data: every readable, labelled case is a test case.

    With `own` the data are the test part of the model's own run (a lighter form of it is judged).
    """
    ok = store.index["ok"].to_numpy(dtype=bool) & (manifest.cases["label"] != "").to_numpy()
    if not ok.any():
        raise DataError(f"{manifest.root}: no case with a label can be read")
    kept = manifest.with_frame(manifest.cases[ok].assign(split="test"))
    lost = f"{int((~ok).sum())} of {len(ok)} cases cannot be read or have no label and were left out"
    notes = [] if ok.all() else [lost]
    task = model.make_task()
    if not isinstance(task, Classify):
        raise UsageError(f"{known.root}: holds a model for task {model.task}")
    forward = Forward(model.networks(), Preprocess.from_spec(model.preprocess), task, device=device, views=model.views)
    begin = time.perf_counter()
    views = forward.over_store(store, np.flatnonzero(ok), progress=progress)
    ms = (time.perf_counter() - begin) / len(kept) * 1e3
    logits = task.average(views)
    per_case = PerCase([views], [np.arange(len(kept))], len(kept), len(model.labels), 0.0)
    table = build_table(
        kept.cases.drop(columns=["fold"], errors="ignore"),
        model.labels,
        task.probabilities(logits, model.temperature),
        logits,
        spread=per_case.spread(task, model.temperature),
    )
    leakage = _seen_in_training(kept, known, store, ok, notes)
    metrics = {
        **_judged_elsewhere(table, model, known, leakage, ms).to_json(),
        "labels": model.labels.to_json(),
        "patient_source": kept.patient_source,
        **({} if own else {"external": str(manifest.root.name)}),
    }
    targets(kept)  # every label is one of the model's
    write_table(out / "cases.parquet", table)
    origin = provenance(seed=0, data_hash=store.key, command=command, bundle=model.checksum)
    write_json(out / "provenance.json", origin)
    name = f"{known.root.name} {out.parent.name}" if own else f"{known.root.name} on {manifest.root.name}"
    card = _card_elsewhere(name, model, known, kept)
    page = write_report(
        out, metrics, table, yaml.safe_load(model.plan_yaml) or {}, origin, card, kept, notes, None, progress
    )
    return Trained(out, page, known.bundle, metrics, notes, time.monotonic() - start)


def _card_elsewhere(name: str, model: Bundle, known: RunFolder, kept: Manifest) -> dict[str, Any]:
    return {
        "name": name,
        "labels": model.labels.to_json(),
        "bundle": str(known.bundle),
        "data": {
            "name": kept.root.name,
            "counts": kept.counts(),
            "patient_source": kept.patient_source,
            "split_source": "none",
        },
    }


def _judged_elsewhere(
    table: pd.DataFrame, model: Bundle, known: RunFolder, leakage: dict[str, Any], ms: float
) -> Study:
    """Operating points and decision stay those that the run chose on its own validation cases."""
    validation = read_table(known.cases, model.labels) if known.cases.exists() else None
    if validation is not None:
        validation = validation[validation["split"] == "val"]
    positive = model.labels.names[model.labels.positive] if model.labels.binary else ""
    decision = Decision() if model.threshold is None else Decision({positive: model.threshold}, "val", "youden")
    return study(
        table,
        model.labels,
        validation=validation,
        decision=decision,
        leakage=leakage,
        calibration_info={"temperature": model.temperature},
        timing={"predict_ms_per_case": round(ms, 3)},
    )


def _seen_in_training(
    kept: Manifest, known: RunFolder, store: Store, ok: NDArray[np.bool_], notes: list[str]
) -> dict[str, Any]:
    """Patients and images of the other data that the model was trained or validated on."""
    found: dict[str, Any] = {}
    if known.cohort.exists():
        own = Manifest.from_parquet(known.cohort)
        if "none" not in (own.patient_source, kept.patient_source):
            used = own.cases["split"].isin(["train", "val"])
            shared = set(own.cases.loc[used, "patient_id"]) & set(kept.cases["patient_id"])
            found["patients_shared"] = len(shared)
            if shared:
                notes.append(
                    f"{len(shared)} patient ids also stand in the training data of this model (first: "
                    f"{sorted(shared)[0]}); if they are the same people, this is no external validation"
                )
    if known.seen.exists():
        seen = {tuple(pair) for pair in np.load(known.seen, allow_pickle=False).tolist()}
        here = store.signatures().hashes[ok].tolist()
        copies = sum(tuple(pair) in seen for pair in here)
        found["exact_duplicates"] = copies
        if copies:
            found["allowed"] = True
            notes.append(
                f"{copies} of {len(here)} images are the very images this model was trained or validated on; "
                "these numbers do not say how it does on new patients"
            )
    return found
