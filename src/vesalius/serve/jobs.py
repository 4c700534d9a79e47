"""The verbs: the one file that knows the whole journey.

Each function is what the command of the same name does, without the printing; it returns plain facts and writes files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesalius.core.environment import available_cores, cache_folder, forget_peak_memory, process_rank
from vesalius.core.errors import DataError, PlanError, UsageError
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress, Silent
from vesalius.core.quantity import parse_bytes, parse_seconds
from vesalius.data.discover import discover
from vesalius.data.manifest import Manifest
from vesalius.data.prepare import prepare
from vesalius.predict.bundle import Bundle
from vesalius.predict.cohort import Outcome, gather, predict_cohort
from vesalius.predict.device import pick_device
from vesalius.predict.predictor import Predictor
from vesalius.serve import again, results, segment_again
from vesalius.serve.planning import Order, make_plan
from vesalius.serve.segmenting import SegmentWorkshop
from vesalius.serve.workshop import Trained, Workshop
from vesalius.train.circumstances import Preflight
from vesalius.train.run import RunFolder, join_processes, wait_for_all
from vesalius.transforms.preprocess import Preprocess

TRAINED = ("classify", "segment")
"""Tasks that can be trained."""


@dataclass(frozen=True)
class Reading:
    """How data are found: the options that every verb with DATA shares."""

    layout: str | None = None
    label_column: str | None = None
    patient_column: str | None = None
    patient_pattern: str | None = None
    split_column: str | None = None

    def manifest(self, data: str | Path, task: str | None, progress: Progress) -> Manifest:
        """The manifest of `data`."""
        return discover(
            data,
            task=task,
            layout=self.layout,
            label_column=self.label_column,
            patient_column=self.patient_column,
            patient_pattern=self.patient_pattern,
            split_column=self.split_column,
            progress=progress,
        )


def plan(
    data: str | Path,
    *,
    task: str | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    budget: str | float | None = None,
    memory: str | int | None = None,
    device: str = "auto",
    seed: int = 0,
    workers: int | None = None,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, Preflight]:
    """The plan for `data` with its reasons, and what it will take; written to `out` if given."""
    progress = progress or Silent()
    start = time.monotonic()
    manifest = _readable_question(data, task, reading or Reading(), progress)
    order = Order(settings or {}, _seconds(budget), _bytes(memory), device, seed, workers, start)
    made, flight = make_plan(manifest, order, progress)
    if out is not None:
        made.write(out)
    return made, flight


def train(
    data: str | Path | None,
    *,
    out: str | Path,
    task: str | None = None,
    plan: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    budget: str | float | None = None,
    memory: str | int | None = None,
    device: str = "auto",
    seed: int = 0,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    allow_leakage: bool = False,
    reading: Reading | None = None,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    started: float | None = None,
) -> Trained:
    """Prepare, split, train, calibrate, test, report: the run folder `out`.

    Parameters
    ----------
    started
        ``time.monotonic()`` at the start of the process, so that a budget counts from there.

    Raises
    ------
    VesaliusError
        With the exit code of the command line; `core.errors`.
    """
    progress, start = progress or Silent(), started if started is not None else time.monotonic()
    forget_peak_memory()
    folder = RunFolder(Path(out))
    request = _request(data, task, settings, budget, memory, device, seed, workers, allow_leakage, reading)
    if resume and data is None and not folder.request.exists():
        raise UsageError(f"{folder.root}: holds no run to resume; give the data as well")
    if data is None and not resume:
        raise UsageError("train needs DATA, or --resume with the --out of a run")
    join_processes(pick_device(device))
    first = process_rank()[0] == 0
    if first:
        _warn_of_ignored(folder, resume and bool(settings or plan), progress)
        request = folder.start(request, resume=resume, force=force)
    wait_for_all()
    if not first:  # what the first process decided holds for all
        request, progress = json.loads(folder.request.read_text(encoding="utf-8")), Silent()
    ask = Reading(**request["reading"])
    manifest = _readable_question(request["data"], request["task"], ask, progress)
    if first:
        made = _plan_of_run(folder, manifest, request, plan, start, progress)
        made.write(folder.plan)
    wait_for_all()
    made = Plan.read(folder.plan)
    kind = SegmentWorkshop if made.task == "segment" else Workshop
    workshop = kind.open(folder, manifest, made, request, progress)
    members = workshop.train(start, progress)
    if process_rank()[0] != 0:
        return Trained(folder.root, folder.report, folder.bundle, {})
    return workshop.finish(members, start, command, progress)


def _warn_of_ignored(folder: RunFolder, changed: bool, progress: Progress) -> None:
    """Say that a run which goes on keeps its plan."""
    if changed and folder.request.exists():
        progress.warn(f"{folder.root}: goes on with its own plan; --set, --precision and --plan change nothing in it")


def _request(
    data: Any,
    task: str | None,
    settings: Any,
    budget: Any,
    memory: Any,
    device: str,
    seed: int,
    workers: Any,
    allow_leakage: bool,
    reading: Reading | None,
) -> dict[str, Any]:
    """Everything that decides what a run becomes, as plain data, so that ``--resume`` repeats it."""
    return {
        "schema": 1,
        "data": None if data is None else str(Path(data).absolute()),
        "task": task,
        "settings": dict(settings or {}),
        "budget_s": _seconds(budget),
        "memory_bytes": _bytes(memory),
        "device": device,
        "seed": seed,
        "workers": workers,
        "allow_leakage": allow_leakage,
        "reading": dict(vars(reading or Reading())),
    }


def _seconds(budget: str | float | None) -> float | None:
    return None if budget is None else parse_seconds(budget)


def _bytes(memory: str | int | None) -> int | None:
    return None if memory is None else parse_bytes(memory)


def _readable_question(data: str | Path, task: str | None, reading: Reading, progress: Progress) -> Manifest:
    if task is not None and task not in TRAINED:
        raise UsageError(f"--task {task!r} cannot be trained by this version; it trains {', '.join(TRAINED)}")
    manifest = reading.manifest(data, task, progress)
    if manifest.labels is None:
        raise DataError(
            f"{data}: no classes found (layout {manifest.layout}); give class folders, or a table with --label-column"
        )
    if manifest.task not in TRAINED:
        raise UsageError(
            f"{data}: holds the truth for task {manifest.task}, this version trains {', '.join(TRAINED)}; give --task"
        )
    for problem in manifest.problems:
        if problem.severity != "note":
            progress.warn(str(problem))
    return manifest


def _plan_of_run(
    folder: RunFolder,
    manifest: Manifest,
    request: dict[str, Any],
    plan_file: str | Path | None,
    start: float,
    progress: Progress,
) -> Plan:
    """The plan that is there (resume), a person's, or a new one; written before anything else happens."""
    if folder.plan.exists():
        return Plan.read(folder.plan)
    if plan_file is not None:
        made = Plan.read(plan_file)
        made.overrule(request["settings"])
        made.check()
        if made.task == "segment" and made["model.patch"] is None:
            raise PlanError(f"{plan_file}: model.patch is not set; write a whole plan with `vesalius plan`")
        if made.task == "classify" and made["preprocess.size"] is None:
            raise PlanError(f"{plan_file}: preprocess.size is not set; write a whole plan with `vesalius plan`")
    else:
        order = Order(
            request["settings"],
            request["budget_s"],
            request["memory_bytes"],
            request["device"],
            request["seed"],
            request["workers"],
            start,
        )
        made, _ = make_plan(manifest, order, progress)
    return made


def evaluate(
    run: str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    reading: Reading | None = None,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """The report of a run again, or of its model on other data (external validation).

    Raises
    ------
    DataError
        If the other data name classes that the model does not know.
    """
    progress, start = progress or Silent(), time.monotonic()
    model = Bundle.load(run)
    folder = RunFolder(Path(run))
    if data is None:
        remake = segment_again.report_segments_again if model.task == "segment" else again.report_again
        return remake(folder, model, command, progress)
    manifest = _readable_question(data, model.task, reading or Reading(), progress)
    target = Path(out) if out is not None else Path(run) / "report" / f"external-{Path(data).name.split('.')[0]}"
    if model.task == "segment":
        return segment_again.external_segments(
            model, manifest, target, start=start, command=command, known=folder, progress=progress
        )
    manifest = again.with_labels_of(manifest, model)
    store = prepare(
        manifest,
        Preprocess.from_spec(model.preprocess),
        cache=cache_folder(),
        workers=workers or available_cores(),
        progress=progress,
    )
    return again.external(
        model,
        manifest,
        store,
        target,
        device=pick_device(device),
        start=start,
        command=command,
        known=folder,
        progress=progress,
    )


def predict(
    model: str | Path,
    *inputs: str | Path,
    out: str | Path,
    device: str = "auto",
    workers: int | None = None,
    batch_size: int = 32,
    force: bool = False,
    formats: Sequence[str] = (),
    backend: str | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Predictions of files, folders, DICOM series and array files in `out`; what is done is skipped.

    Parameters
    ----------
    formats
        Classification: json, csv, png. Segmentation: `serve.segment_predicting.FORMATS`; by default the label map, as
        NIfTI or PNG, and a JSON record.
    backend, precision
        Of segmentation, in place of those of the bundle.
    """
    if not inputs:
        raise UsageError("predict needs at least one INPUT: an image file, a folder or an array file")
    progress = progress or Silent()
    bundle = Bundle.load(model)
    if bundle.task == "segment":
        from vesalius.predict.segmenter import SegmentPredictor
        from vesalius.serve.segment_predicting import predict_segments

        segmenter = SegmentPredictor(bundle, device=device, backend=backend, precision=precision)
        for note in segmenter.backend.notes:
            progress.warn(note)
        return predict_segments(segmenter, inputs, out, formats=formats, force=force, progress=progress)
    predictor = Predictor(bundle, device=device)
    items = gather(inputs)
    outcome = predict_cohort(
        predictor,
        items,
        out,
        batch_size=batch_size,
        workers=workers or available_cores(),
        force=force,
        progress=progress,
    )
    results.write_predictions(Path(out), outcome, items, predictor, formats or ("json",))
    return outcome


def export(
    model: str | Path,
    *,
    to: str = "onnx",
    out: str | Path | None = None,
    data: str | Path | None = None,
    cases: int | None = None,
    accept: str | Path | None = None,
    runtime: str | Path | None = None,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One file with the preprocessing inside, accepted on real cases; or, with `accept`, a file that is there, checked.

    Parameters
    ----------
    to
        ``onnx``, ``openvino`` or ``web``; of classifiers also ``litert`` or ``executorch``, whose converters may be in
        another environment (`serve.elsewhere`).
    data, cases
        Where the cases come from (default: the test part of the run), and how many of them.
    runtime
        For ``web``, a folder instead of a file: where the files of onnxruntime-web are, if not to be fetched by npm.

    Raises
    ------
    AcceptanceError
        If the file does not give the bundle's answers (exit code 6).
    """
    from vesalius.serve import elsewhere, exporting, exporting_web

    progress = progress or Silent()
    if runtime is not None and to != "web":
        raise UsageError(f"--runtime is for --to web, not for --to {to}")
    if elsewhere.wanted(kind := elsewhere.kind_of(to, accept)):
        return elsewhere.export(model, kind, progress, reading, out=out, data=data, cases=cases, accept=accept)
    manifest = None if data is None else (reading or Reading()).manifest(data, Bundle.load(model).task, progress)
    if accept is not None and Path(accept).is_dir():
        return exporting_web.check_web_folder(model, accept, manifest=manifest, cases=cases, progress=progress)
    if accept is None and to == "web":
        return exporting_web.export_web(
            model, out=out, manifest=manifest, cases=cases, runtime=runtime, progress=progress
        )
    if accept is not None:
        return exporting.check_model(model, accept, manifest=manifest, cases=cases, progress=progress)
    return exporting.export_model(model, to=to, out=out, manifest=manifest, cases=cases, progress=progress)


def compress(
    run: str | Path,
    *,
    to: str,
    out: str | Path | None = None,
    keep: float | None = None,
    settings: Mapping[str, Any] | None = None,
    budget: str | float | None = None,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """A lighter bundle of a run and what it cost in accuracy, with intervals; the page compares all forms of the run.

    Parameters
    ----------
    to
        ``int8`` (quantised after training), ``pruned`` (channels taken out, trained again) or ``student`` (a narrower
        network that imitates the run's).
    keep
        Part of the operations that pruning keeps (default 0.5), or of the learned values that a student has (0.25).
    settings, budget, resume
        As of `train`, for the training of a student or a pruned network; default the budget of the run.

    Raises
    ------
    VesaliusError
        With the exit code of the command line; `core.errors`.
    """
    from vesalius.serve import compressing

    wish = compressing.Wish(
        to=to,
        keep=keep,
        settings=settings,
        budget_s=_seconds(budget),
        device=device,
        workers=workers,
        resume=resume,
        force=force,
        command=command,
        start=started if started is not None else time.monotonic(),
    )
    return compressing.compress_run(run, out, wish, progress or Silent())


def inspect(
    data: str | Path,
    *,
    out: str | Path | None = None,
    task: str | None = None,
    workers: int | None = None,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What is here: layout, cases, patients, classes, geometry, duplicates, problems; a page if `out` is given."""
    from vesalius.serve import looking

    progress = progress or Silent()
    manifest = (reading or Reading()).manifest(data, task, progress)
    return looking.inspect(
        manifest, Path(data), None if out is None else Path(out), workers or available_cores(), progress
    )


def demo(
    what: str = "classify",
    *,
    out: str | Path = "runs/demo-classify",
    progress: Progress | None = None,
    force: bool = True,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The whole journey on embedded synthetic cases."""
    from vesalius.serve import demonstration

    return demonstration.run(what, Path(out), progress or Silent(), force=force, command=command)
