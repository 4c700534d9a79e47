"""From trained segmentation weights to what a person gets: masks, evidence, metrics, report, bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.files import safe_stem, write_json
from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.core.plan import Plan
from vesalius.core.prediction import Mask
from vesalius.core.progress import Progress
from vesalius.data.cases import CaseStore
from vesalius.data.cohort import Cohort
from vesalius.data.manifest import Manifest
from vesalius.data.truth import open_case_image, open_truth, region_planes
from vesalius.evaluate.postprocessing import choose_steps
from vesalius.evaluate.segment_study import SegmentStudy, segment_study
from vesalius.evaluate.segment_table import score_case, segment_table
from vesalius.evaluate.segment_trust import VoxelTrust
from vesalius.evaluate.table import write_table
from vesalius.io.nifti_out import write_nifti
from vesalius.io.open import open_image
from vesalius.io.raster_out import write_png
from vesalius.measure.boundary_band import Band, fit_band
from vesalius.measure.components import apply_steps, apply_to_layers
from vesalius.predict.bundle import Bundle
from vesalius.predict.segmenter import SegmentPredictor, Wanted, diameters_of
from vesalius.report.segment_card import segment_card
from vesalius.report.segment_page import write_segment_report
from vesalius.report.segment_pictures import case_picture, cases_worth_a_picture
from vesalius.serve.results import bundle_facts, plan_yaml, problem_lines, run_card, stated
from vesalius.tasks.instances import MOST_TUNED, InstanceCase, tune_decoding
from vesalius.tasks.segment import BORDER, DISTANCE, FOREGROUND, Segment
from vesalius.train.run import RunFolder, folds, history

FEWEST_FOR_POST = 5
PREDICTIONS = "predictions"


@dataclass
class JudgedSegments:
    """A model and what it is worth on cases it has not seen."""

    bundle: Bundle
    table: pd.DataFrame
    study: SegmentStudy
    evidence: pd.DataFrame | None
    pictures: dict[str, bytes]
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)


def bundle_of(
    plan: Plan, cohort: Cohort, store: CaseStore, members: list[dict[str, torch.Tensor]], task: Segment
) -> Bundle:
    """The bundle of a finished training; decoding, post-processing and band are still to be chosen."""
    inference: dict[str, Any] = {
        "tile": {
            "patch": list(plan["model.patch"]),
            "overlap": float(plan["predict.overlap"]),
            "slack": float(plan["predict.slack"]),
            "batch": int(plan["predict.batch_size"]),
        },
        "backend": plan["predict.backend"],
        "precision": plan["predict.precision"],
        "skip_below": plan["predict.skip_below"],
        "post": list(plan["post.steps"] or []),
    }
    if task.labels.instances:
        inference["diameters"] = _training_diameters(cohort, store)
    return Bundle(
        task="segment",
        labels=cohort.labels,
        preprocess=plan.section("conform"),
        model=plan.section("model"),
        members=members,
        views=[list(v) for v in plan["predict.views"]] or [[]],
        inference={key: value for key, value in inference.items() if value not in (None, [])},
    )


def _training_diameters(cohort: Cohort, store: CaseStore) -> list[float]:
    """2nd, 50th and 98th percentile of the median diameter of objects of the training images, prepared pixels."""
    medians = []
    for place in cohort.places("train")[:200]:
        found = diameters_of(np.asarray(store.mask(int(cohort.rows[place]))[...])[0].astype(np.int64))
        if len(found) >= 3:
            medians.append(float(np.median(found)))
    return [round(float(v), 3) for v in np.percentile(medians, (2, 50, 98))] if medians else []


def judge_segments(
    plan: Plan,
    task: Segment,
    store: CaseStore,
    cohort: Cohort,
    members: list[dict[str, torch.Tensor]],
    folder: RunFolder,
    progress: Progress,
) -> JudgedSegments:
    """Predict every held-out case from its file, choose post-processing on validation, and judge the test part."""
    bundle = bundle_of(plan, cohort, store, members, task)
    held = _held_out(plan, cohort)
    judge = Judge(plan, cohort.manifest, cohort.labels, bundle, folder.root / PREDICTIONS, held, progress)
    if task.labels.instances:
        judge.tune()
    judge.predict()
    evidence = judge.choose() if plan["post.choose"] and plan["post.steps"] is None else None
    band = judge.fit_band()
    split = "test" if any(entry.split == "test" for entry in held) else "val"
    table = judge.table()
    study = segment_study(
        table,
        cohort.labels,
        split=split,
        seed=int(plan["run.seed"]),
        leakage={**cohort.leakage.counts(), "allowed": cohort.leaked},
        calibration=judge.trust.to_json(split),
        band={} if band is None else named_band(band.to_json(), cohort.labels),
        timing={"predict_ms_per_case": round(judge.seconds / max(judge.predicted, 1) * 1e3, 3)},
    )
    pictures = judge.pictures(table[table["split"] == split])
    return JudgedSegments(bundle, table, study, evidence, pictures, judge.notes)


def named_band(data: Mapping[str, Any], labels: Labels) -> dict[str, Any]:
    """A band with the names of structures in place of their numbers; layers count from 0, values of a map from 1."""
    first = 0 if labels.multilabel else 1
    widths = {labels.structures[int(number) - first]: width for number, width in data["labels"].items()}
    return {**data, "labels": widths}


@dataclass(frozen=True)
class Held:
    """A case that was kept from training: its split, and the member that did not see it (None: all of them)."""

    case_id: str
    patient_id: str
    split: str
    member: int | None = None


def _held_out(plan: Plan, cohort: Cohort) -> list[Held]:
    frame = cohort.frame
    found: list[Held] = []
    count = int(plan["split.folds"])
    for member, (_, validation) in enumerate(folds(frame, count)):
        for place in validation:
            row = frame.iloc[int(place)]
            found.append(Held(row["case_id"], row["patient_id"], "val", member if count >= 2 else None))
    for place in cohort.places("test"):
        row = frame.iloc[int(place)]
        found.append(Held(row["case_id"], row["patient_id"], "test"))
    if not found:
        raise DataError(f"{cohort.manifest.root}: no case was kept from training; set split.val or split.test above 0")
    return found


class Judge:
    """Held-out cases, predicted once and then looked at several times."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        labels: Labels,
        bundle: Bundle,
        folder: Path,
        held: Sequence[Held],
        progress: Progress,
    ) -> None:
        self.plan, self.manifest, self.labels, self.bundle = plan, manifest, labels, bundle
        self.folder, self.held, self.progress = folder, list(held), progress
        self.seconds, self.predicted = 0.0, 0
        self.notes: list[str] = []
        self.trust = VoxelTrust(labels, None if bundle.temperature == 1 else bundle.temperature)
        self._predictors: dict[int | None, SegmentPredictor] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob(".*.part"):  # of a process that was killed while it wrote
            rest.unlink(missing_ok=True)

    def predictor(self, member: int | None) -> SegmentPredictor:
        """The ensemble, or one member of it."""
        if member not in self._predictors:
            bundle = self.bundle if member is None else replace(self.bundle, members=[self.bundle.members[member]])
            made = SegmentPredictor(bundle, device=self.plan["run.device"])
            self.notes += [note for note in made.backend.notes if note not in self.notes]
            self._predictors[member] = made
        return self._predictors[member]

    def tune(self) -> None:
        """Choose how single objects are decoded, on validation images."""
        cases = []
        for entry in [one for one in self.held if one.split == "val"][:MOST_TUNED]:
            predictor = self.predictor(entry.member)
            image = open_case_image(self.manifest, entry.case_id)
            maps = predictor.maps(predictor.conform(image))
            truth = predictor.conform(image).labels(open_truth(self.manifest, entry.case_id, image))
            cases.append(InstanceCase(maps[FOREGROUND], maps[DISTANCE], maps[BORDER], truth))
        if cases:
            self.bundle.inference["decode"] = tune_decoding(cases)
            said = ", ".join(f"{key} {value:g}" for key, value in self.bundle.inference["decode"].items())
            self.notes.append(f"decoding of objects, chosen on {len(cases)} validation images: {said}")

    def predict(self) -> None:
        """Masks of all held-out cases on the grids of their files, without post-processing.

        Probabilities are counted on the way: those of validation cases, which come first, fit the temperature of the
        bundle, and those of the test part judge it.
        """
        fitted = not self.plan["calibrate.temperature"]
        self.progress.start("predict", len(self.held), "cases")
        for entry in self.held:
            path = self.path(entry)
            predictor = self.predictor(entry.member)
            if entry.split != "val" and not fitted:
                self.trust.fit()
                fitted = True
            image = open_case_image(self.manifest, entry.case_id)
            counted = self.trust.wants(entry.split, image.grid.shape)
            begin = time.perf_counter()
            found = predictor.segment(image, entry.case_id, Wanted(post=False, probabilities=counted, calibrated=False))
            self.seconds += time.perf_counter() - begin
            self.predicted += 1
            write_mask(found.mask, path)
            if found.probabilities is not None:
                truth = self.truth(entry, image)
                spacing = image.grid.spacing_mm
                self.trust.add(entry.split, entry.patient_id, found.probabilities, truth, spacing)
            self.progress.advance()
        self.progress.stop()
        if not fitted:
            self.trust.fit()
        if self.trust.temperature is not None:
            self.bundle.temperature = self.trust.temperature

    def path(self, entry: Held) -> Path:
        """Where the mask of a case lies."""
        flat = self.bundle.preprocess["dims"] == 2 and not self.labels.multilabel
        return self.folder / f"{safe_stem(entry.case_id)}{'.png' if flat else '.nii.gz'}"

    def mask(self, entry: Held) -> NDArray[Any]:
        """The predicted mask, with the steps that are chosen by now."""
        found = read_mask(self.path(entry), layers=self.labels.multilabel)
        steps = self.bundle.inference.get("post") or []
        if not steps:
            return found
        process = apply_to_layers if self.labels.multilabel else apply_steps
        return np.asarray(process(found, steps, self.image(entry).grid.spacing_mm))

    def image(self, entry: Held) -> Image:
        """The image of a case."""
        return open_case_image(self.manifest, entry.case_id)

    def truth(self, entry: Held, image: Image) -> NDArray[Any]:
        """Truth on the grid of the image; one layer per structure where they overlap."""
        return layered_truth(self.manifest, entry.case_id, image, self.labels)

    def pairs(self, split: str) -> Iterator[tuple[Any, ...]]:
        """(prediction, truth, spacing, patient) of a split, one at a time."""
        for entry in self.held:
            if entry.split == split:
                image = self.image(entry)
                yield self.mask(entry), self.truth(entry, image), image.grid.spacing_mm, entry.patient_id

    def choose(self) -> pd.DataFrame | None:
        """Post-processing that the validation cases speak for; kept in the bundle."""
        cases = sum(entry.split == "val" for entry in self.held)
        if self.labels.instances or cases < FEWEST_FOR_POST:
            return None
        self.progress.say("choosing post-processing")
        choice = choose_steps(self.pairs("val"), self.labels, seed=int(self.plan["run.seed"]))
        steps = [step.to_json() for step in choice.steps]
        if steps:
            self.bundle.inference["post"] = steps
        return choice.evidence

    def fit_band(self) -> Band | None:
        """Between which surfaces the true border lies, from the validation cases."""
        if self.labels.instances or sum(entry.split == "val" for entry in self.held) < FEWEST_FOR_POST:
            return None
        band = fit_band(self.pairs("val"), layers=self.labels.multilabel)
        self.bundle.inference["band"] = band.to_json()
        return band

    def table(self) -> pd.DataFrame:
        """One row per case and structure; masks on disk get their final form."""
        rows: list[dict[str, Any]] = []
        self.progress.start("judge", len(self.held), "cases")
        for entry in self.held:
            image = self.image(entry)
            mask = self.mask(entry)
            who: dict[str, Any] = {"case_id": entry.case_id, "patient_id": entry.patient_id, "split": entry.split}
            truth = self.truth(entry, image)
            rows += score_case(mask, truth, image.grid.spacing_mm, self.labels, **who)
            if self.bundle.inference.get("post"):
                write_mask(
                    Mask(entry.case_id, self.labels, image.grid, mask), self.folder / "final" / self.path(entry).name
                )
            self.progress.advance()
        self.progress.stop()
        final = self.folder / "final"
        if final.is_dir():  # one move at the end: a run that was killed before starts from masks without steps
            for path in final.iterdir():
                path.replace(self.folder / path.name)
            final.rmdir()
        known = [name for name in self.manifest.covariates if name not in ("fold", "place")]
        covariates = self.manifest.cases[["case_id", *known]] if known else None
        return segment_table(rows, covariates)

    def pictures(self, table: pd.DataFrame) -> dict[str, bytes]:
        """PNG of the cases that the report shows."""
        entries = {entry.case_id: entry for entry in self.held}
        found = {}
        for case, _ in cases_worth_a_picture(table):
            entry = entries[case]
            image = self.image(entry)
            mask = read_mask(self.path(entry), layers=self.labels.multilabel)
            found[case] = case_picture(image, self.truth(entry, image), mask, self.labels)
        return found


def layered_truth(manifest: Manifest, case_id: str, image: Image, labels: Labels) -> NDArray[Any]:
    """Truth on the grid of the image; ``(K, *S)`` where structures overlap."""
    truth = open_truth(manifest, case_id, image)
    if labels.multilabel and truth.ndim == image.grid.ndim:
        return region_planes(truth, labels)
    return truth


def write_mask(mask: Mask, path: Path) -> Path:
    """A label map as PNG (pictures) or NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        values = mask.values
        return write_png(path, values.astype(np.uint8 if int(values.max(initial=0)) < 256 else np.uint16))
    small = np.uint8 if int(mask.values.max(initial=0)) < 256 else np.int32
    return write_nifti(replace(mask, values=mask.values.astype(small)), path, level=1)


def read_mask(path: Path, *, layers: bool) -> NDArray[Any]:
    """What `write_mask` wrote."""
    pixels = open_image(path).pixels
    return pixels if layers else pixels[0]


def write_segment_run(
    folder: RunFolder,
    plan: Plan,
    cohort: Cohort,
    judged: JudgedSegments,
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
    notes = [*cohort.notes, *judged.notes]
    card = _card(folder, plan, cohort, judged.bundle)
    bundle = judged.bundle
    bundle.plan_yaml = plan_yaml(plan)
    bundle.card = segment_card(
        metrics=metrics,
        card={**card, "bundle": folder.root.name},
        provenance=origin,
        plan=plan.to_mapping(),
        evidence=judged.evidence,
        notes=notes,
    )
    bundle.facts = bundle_facts(plan, cohort, metrics)
    bundle.save(folder.bundle)
    if judged.evidence is not None:
        judged.evidence.to_csv(folder.root / "postprocessing.csv", index=False)
    write_json(folder.report / "metrics.json", metrics)
    progress.say(f"report: {len(judged.pictures)} pictures")
    return write_segment_report(
        folder.report,
        metrics=metrics,
        table=judged.table[judged.table["split"] == metrics["split"]],
        plan=plan.to_mapping(),
        provenance=origin,
        history=history(folder),
        card=card,
        pictures=judged.pictures,
        evidence=judged.evidence,
        notes=[*notes, *problem_lines(cohort.manifest)],
        title=folder.root.name,
    )


def _card(folder: RunFolder, plan: Plan, cohort: Cohort, bundle: Bundle) -> dict[str, Any]:
    tile = " x ".join(str(side) for side in plan["model.patch"])
    spacing = plan["conform.spacing_mm"]
    at = "" if spacing is None else f" at {' x '.join(f'{s:g}' for s in spacing)} mm"
    seen = (
        f"{plan['conform.dims']}-dimensional images, {plan['conform.channels']} channel(s), seen in tiles of {tile}{at}"
    )
    return run_card(folder, plan, cohort, bundle, seen_as=seen)
