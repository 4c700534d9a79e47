"""`vesalius compress`: lighter forms of a run, each with what it saves and what it costs in accuracy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vesalius.core.environment import available_cores, cache_folder
from vesalius.core.errors import FileError, UsageError
from vesalius.core.files import write_json
from vesalius.core.plan import Plan
from vesalius.core.progress import Progress
from vesalius.data.cohort import assembled_before
from vesalius.data.manifest import Manifest
from vesalius.data.prepare import prepare
from vesalius.deploy.prune import prune
from vesalius.deploy.weigh import weigh
from vesalius.evaluate.compare import compare
from vesalius.evaluate.decision import Decision
from vesalius.evaluate.segment_compare import compare_segments
from vesalius.evaluate.segment_table import read_segment_table
from vesalius.evaluate.table import read_table
from vesalius.predict.bundle import Bundle, learned_values
from vesalius.predict.device import pick_device
from vesalius.report.compress_page import write_compress_page
from vesalius.serve import again, calibrating, segment_again
from vesalius.serve.segmenting import SegmentWorkshop
from vesalius.serve.workshop import Workshop
from vesalius.train.run import RunFolder
from vesalius.train.smaller import pruned_plan, student_plan
from vesalius.transforms.preprocess import Preprocess

KINDS = ("int8", "pruned", "student")
KEEP = {"pruned": 0.5, "student": 0.25}
"""Part of the operations that pruning keeps, and of the learned values that a student has."""

SCHEMA = 1
_FIRST = {"classify": ("auroc", "accuracy"), "segment": ("dice", "pq", "iou")}


@dataclass(frozen=True)
class Wish:
    """What a person asks for; see `serve.jobs.compress`."""

    to: str
    keep: float | None = None
    settings: Mapping[str, Any] | None = None
    budget_s: float | None = None
    device: str = "auto"
    workers: int | None = None
    resume: bool = False
    force: bool = False
    command: Sequence[str] | None = None
    start: float = 0.0


def compress_run(run: str | Path, out: str | Path | None, wish: Wish, progress: Progress) -> dict[str, Any]:
    """A lighter bundle of a run, compared with it; returns the record of the variant.

    Raises
    ------
    UsageError
        For an unknown kind, or a bundle without the run whose cases are needed.
    """
    if wish.to not in KINDS:
        raise UsageError(f"--to {wish.to}: a run can become {', '.join(KINDS)}")
    parent = _run_of(run)
    target = Path(out) if out is not None else parent.root / "compressed" / wish.to
    if target.resolve() == parent.root.resolve():
        raise UsageError(f"--out {target}: is the run itself; choose another folder")
    make = _quantised if wish.to == "int8" else _trained
    make(parent, target, wish, progress)
    return report(parent, target, wish.to, progress)


def _run_of(run: str | Path) -> RunFolder:
    folder = RunFolder(Path(run))
    if not folder.bundle.is_dir() or not folder.cohort.is_file() or not folder.cases.is_file():
        found = "nothing at this path" if not folder.root.exists() else "no bundle/, cohort.parquet and cases.parquet"
        raise FileError(
            folder.root, found=found, expected="a finished run", do="compress a run: its cases are needed again"
        )
    return folder


# ------------------------------------------------------------------------------------------------- student and pruned


def _trained(parent: RunFolder, target: Path, wish: Wish, progress: Progress) -> None:
    """A run in `target` that imitates the parent's bundle."""
    folder = RunFolder(target)
    old = json.loads(parent.request.read_text(encoding="utf-8"))
    manifest = Manifest.from_parquet(parent.cohort)
    budget = wish.budget_s if wish.budget_s is not None else old.get("budget_s")
    request = {**old, "settings": dict(wish.settings or {}), "budget_s": budget, "device": wish.device,
               "workers": wish.workers, "data": str(manifest.root), "compress": wish.to}  # fmt: skip
    request = folder.start(request, resume=wish.resume, force=wish.force)
    if not folder.plan.exists():
        _plan(parent, folder, manifest, wish, request, progress).write(folder.plan)
    plan = Plan.read(folder.plan)
    kind = SegmentWorkshop if plan.task == "segment" else Workshop
    store = kind.prepared(manifest, plan, progress)
    cohort = assembled_before(manifest, store)
    workshop = kind.with_cohort(folder, cohort, store, plan, request, progress)
    members = workshop.train(wish.start, progress)
    workshop.finish(members, wish.start, wish.command, progress)


def _plan(
    parent: RunFolder, folder: RunFolder, manifest: Manifest, wish: Wish, request: Mapping[str, Any], progress: Progress
) -> Plan:
    """The plan of a student, or of a network that is pruned here."""
    teacher, bundle = Plan.read(parent.plan), Bundle.load(parent.bundle)
    keep = KEEP[wish.to] if wish.keep is None else wish.keep
    settings, source = dict(wish.settings or {}), str(parent.bundle)
    if wish.to == "student":
        if not 0 < keep < 1:
            raise UsageError(f"--keep {keep:g}: a student has a part of the learned values, for example 0.25")
        limit = int(keep * learned_values(bundle.members))
        made = student_plan(teacher, source, limit=limit, count=lambda model: _count(bundle, model), settings=settings)
    else:
        progress.say("pruning")
        found = prune(bundle, keep=keep)
        progress.say(f"{found.operations[1] / found.operations[0]:.0%} of the operations are left")
        start = Bundle(
            task=bundle.task,
            labels=bundle.labels,
            preprocess=bundle.preprocess,
            model={**bundle.model, "widths": found.widths},
            members=[found.weights],
            views=bundle.views,
            inference=bundle.inference,
            facts={"pruned_from": bundle.checksum},
            plan_yaml=bundle.plan_yaml,
            card="Channels were taken out; this network was not trained again yet.\n",
        )
        start.save(folder.root / "start")
        made = pruned_plan(teacher, source, str(folder.root / "start"), found.widths, settings)
    if request["budget_s"] is not None:
        made.decide("run.budget_s", float(request["budget_s"]), "asked for, or that of the larger model")
    made.check()
    return made


def _count(bundle: Bundle, model: Mapping[str, Any]) -> int:
    """Learned values of the network of a section ``model``."""
    size = model["patch"] if bundle.task == "segment" else bundle.preprocess["size"]
    network = bundle.make_task().network(
        model, dims=int(bundle.preprocess["dims"]), inputs=int(bundle.preprocess["channels"]), size=size
    )
    return sum(value.numel() for value in network.parameters())


# --------------------------------------------------------------------------------------------------------------- int8


def _quantised(parent: RunFolder, target: Path, wish: Wish, progress: Progress) -> None:
    """An int8 bundle in `target`, judged on the test cases of the run."""
    from vesalius.deploy.quantize import quantize

    if target.exists() and any(target.iterdir()):
        if not (wish.force or wish.resume):
            raise UsageError(f"{target}: is not empty; use --force to replace it, or another --out")
        for name in ("bundle", "report"):
            shutil.rmtree(target / name, ignore_errors=True)
    bundle, plan = Bundle.load(parent.bundle), Plan.read(parent.plan)
    manifest = Manifest.from_parquet(parent.cohort)
    progress.say("collecting calibration cases from the training part")
    calibration, validation = calibrating.inputs(bundle, plan, manifest, progress)
    found = quantize(bundle, calibration, validation=validation, progress=progress)
    small = found.bundle
    small.facts = {
        **bundle.facts,
        "quantised_from": bundle.checksum,
        "kept_float": list(found.kept),
        "deviation": [round(float(value), 5) for value in found.deviation],
    }
    small.plan_yaml = bundle.plan_yaml
    small.card = f"{bundle.card.rstrip()}\n\n## int8\n\n{_said(found)}\n"
    small.save(target / "bundle")
    write_json(
        target / "sensitivity.json",
        {"schema": SCHEMA, "kept_float": list(found.kept), "deviation": list(found.deviation),
         "layers": dict(found.sensitivity)},
    )  # fmt: skip
    shutil.copyfile(parent.cohort, target / parent.cohort.name)  # its test cases are those to accept exports on
    _judge(parent, target, small, manifest, wish, progress)


def _said(found: Any) -> str:
    kept = (
        f"{len(found.kept)} layers stay in float32: {', '.join(found.kept)}" if found.kept else "no layer stays float"
    )
    return (
        "Weights and activations were quantised to eight bits after training, calibrated on training cases; "
        f"{kept}. The logits deviate by {found.deviation[1]:.2g} of their spread."
    )


def _judge(parent: RunFolder, target: Path, bundle: Bundle, manifest: Manifest, wish: Wish, progress: Progress) -> None:
    """Report and tables of a bundle on the part that the run was judged on."""
    split = json.loads((parent.report / "metrics.json").read_text(encoding="utf-8"))["split"]
    part = manifest.with_frame(manifest.frame[manifest.frame["split"] == split])
    options: dict[str, Any] = {"start": wish.start, "command": wish.command, "known": parent, "progress": progress}
    if bundle.task == "segment":
        segment_again.external_segments(bundle, part, target / "report", own=True, **options)
        return
    store = prepare(
        part,
        Preprocess.from_spec(bundle.preprocess),
        cache=cache_folder(),
        workers=wish.workers or available_cores(),
        progress=progress,
    )
    again.external(bundle, part, store, target / "report", device=pick_device(wish.device), own=True, **options)


# ------------------------------------------------------------------------------------------------------------- report


def report(parent: RunFolder, target: Path, name: str, progress: Progress) -> dict[str, Any]:
    """Compare, measure, and write record and page beside the other variants of the run; returns the variant."""
    home = parent.root / "compressed"
    path = home / "variants.json"
    known = json.loads(path.read_text(encoding="utf-8"))["variants"] if path.is_file() else []
    bundle = Bundle.load(parent.bundle)
    metrics = json.loads((parent.report / "metrics.json").read_text(encoding="utf-8"))
    # All are measured together, so that the ratios are of one moment of this machine.
    progress.say("measuring time and memory")
    whole = {"name": "original", "bundle": str(parent.bundle), **weigh(bundle, parent.bundle)}
    whole["metrics"] = {key: entry["value"] for key, entry in metrics["metrics"].items()}
    variant = {"name": name, "bundle": str(target / "bundle"), **_weighed(target / "bundle", name, whole)}
    variant["comparison"] = _comparison(parent, target, bundle, metrics["split"])
    variant["metrics"] = {key: entry["second"] for key, entry in variant["comparison"]["metrics"].items()}
    others = [
        {**one, **_weighed(Path(one["bundle"]), one["name"], whole)}
        for one in known
        if one["name"] not in ("original", name) and Path(one["bundle"]).is_dir()
    ]
    order = [whole, *sorted([*others, variant], key=lambda one: KINDS.index(one["name"]))]
    metric = next(key for key in _FIRST[bundle.task] if variant["metrics"].get(key) is not None)
    record = {"schema": SCHEMA, "run": parent.root.name, "task": bundle.task, "split": metrics["split"],
              "metric": metric, "cores": available_cores(), "variants": order}  # fmt: skip
    write_json(path, record)
    page = write_compress_page(home / "index.html", run=parent.root.name, record=record)
    return {**variant, "original": whole, "metric": metric, "page": str(page), "record": str(path)}


def _weighed(folder: Path, name: str, whole: dict[str, Any]) -> dict[str, Any]:
    """What a variant costs; int8 has as many learned values and operations as the run."""
    return weigh(Bundle.load(folder), folder, like=whole if name == "int8" else None)


def _comparison(parent: RunFolder, target: Path, bundle: Bundle, split: str) -> dict[str, Any]:
    """Differences of the lighter model on the cases that the run was judged on."""
    beside = target / "cases.parquet"  # of a training; an int8 bundle has its table in the report
    paths = (parent.cases, beside if beside.is_file() else target / "report" / "cases.parquet")
    if bundle.task == "segment":
        first, second = (_judged(read_segment_table(path), split) for path in paths)
        return compare_segments(first, second, bundle.labels).to_json()
    first, second = (_judged(read_table(path, bundle.labels), split) for path in paths)
    before, after = (
        Decision.from_json(json.loads((root / "report" / "metrics.json").read_text(encoding="utf-8"))["decision"])
        for root in (parent.root, target)
    )
    return compare(first, second, bundle.labels, decisions=(before, after)).to_json()


def _judged(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The cases of that part of the run; the table of a bundle that was judged on files holds no others."""
    some = table[table["split"] == split]
    return (some if len(some) else table).assign(split="test")
