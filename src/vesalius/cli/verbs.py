"""One function per verb: options, call, what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from vesalius.cli import options
from vesalius.cli.screen import Screen, emit, interval_line
from vesalius.core.errors import DataError

SHOWN = (
    "auroc",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "f1",
    "dice",
    "nsd",
    "hd95_mm",
    "hd95_px",
    "ap50",
    "pq",
)


def inspect_options(parser: argparse.ArgumentParser) -> None:
    """vesalius inspect DATA."""
    parser.add_argument("data", metavar="DATA", help="a folder, a table, an .npz, a dataset.json")
    parser.add_argument("--out", metavar="FILE.html", help="write a page with pictures")
    parser.add_argument("--task", metavar="T", help="the question, if the data could answer several")
    options.reading(parser)
    options.compute(parser)


def inspect(args: argparse.Namespace, screen: Screen) -> int:
    """What is here."""
    from vesalius.serve import jobs

    found = jobs.inspect(
        args.data, out=args.out, task=args.task, workers=args.workers, reading=options.reading_of(args), progress=screen
    )
    if args.json:
        emit(found)
        return 0
    from vesalius.cli.tables import print_inspection

    print_inspection(found)
    return 0


def plan_options(parser: argparse.ArgumentParser) -> None:
    """vesalius plan DATA."""
    parser.add_argument("data", metavar="DATA", help="what would be trained on")
    parser.add_argument(
        "--out", metavar="FILE", default="plan.yaml", help="where the plan is written (default plan.yaml)"
    )
    options.planning(parser)
    options.reading(parser)
    options.compute(parser)


def plan(args: argparse.Namespace, screen: Screen) -> int:
    """The plan with reasons."""
    from vesalius.serve import jobs

    made, flight = jobs.plan(
        args.data,
        task=args.task,
        out=args.out,
        settings=options.settings_of(args),
        budget=args.budget,
        memory=args.memory,
        device=args.device,
        seed=args.seed,
        workers=args.workers,
        reading=options.reading_of(args),
        progress=screen,
    )
    if args.json:
        emit({"plan": made.to_mapping(), "preflight": flight.to_json(), "path": args.out})
        return 0
    for key, decision in made:
        print(f"{key:<26} {decision.value!s:<28} {decision.because}")
    print(f"\nwritten to {args.out}; change a line and train with --plan {args.out}")
    return 0


def train_options(parser: argparse.ArgumentParser) -> None:
    """vesalius train DATA --out RUN."""
    parser.add_argument(
        "data", metavar="DATA", nargs="?", help="a folder, a table, an .npz (may be left out with --resume)"
    )
    parser.add_argument("--out", metavar="RUN", required=True, help="the run folder")
    parser.add_argument("--plan", metavar="FILE", help="a plan to follow, from `vesalius plan` or another run")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped, exactly")
    parser.add_argument("--force", action="store_true", help="replace what is in RUN")
    parser.add_argument(
        "--allow-leakage",
        action="store_true",
        help="train although a patient or image stands in two splits; the report is marked",
    )
    options.planning(parser)
    options.reading(parser)
    options.compute(parser)


def train(args: argparse.Namespace, screen: Screen) -> int:
    """Prepare, split, train, calibrate, test, report."""
    from vesalius.serve import jobs

    done = jobs.train(
        args.data,
        out=args.out,
        task=args.task,
        plan=args.plan,
        settings=options.settings_of(args),
        budget=args.budget,
        memory=args.memory,
        device=args.device,
        seed=args.seed,
        workers=args.workers,
        resume=args.resume,
        force=args.force,
        allow_leakage=args.allow_leakage,
        reading=options.reading_of(args),
        command=args.typed,
        progress=screen,
        started=args.started,
    )
    _finished(args, done)
    return 0


def evaluate_options(parser: argparse.ArgumentParser) -> None:
    """vesalius evaluate RUN."""
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--data", metavar="OTHER", help="judge the model on other data (external validation)")
    parser.add_argument(
        "--out", metavar="DIR", help="where the report of other data goes (default RUN/report/external-NAME)"
    )
    options.reading(parser)
    options.compute(parser)


def evaluate(args: argparse.Namespace, screen: Screen) -> int:
    """The report again, or on other data."""
    from vesalius.serve import jobs

    done = jobs.evaluate(
        args.run,
        data=args.data,
        out=args.out,
        device=args.device,
        workers=args.workers,
        reading=options.reading_of(args),
        command=args.typed,
        progress=screen,
    )
    _finished(args, done)
    return 0


def export_options(parser: argparse.ArgumentParser) -> None:
    """vesalius export MODEL."""
    parser.add_argument("model", metavar="MODEL", help="a run folder or a bundle folder")
    kinds = ("onnx", "openvino", "litert", "executorch", "web")
    parser.add_argument("--to", choices=kinds, default="onnx", help="kind of file (default onnx)")
    parser.add_argument("--out", metavar="FILE", help="the file, of web a folder (default: export/ beside the bundle)")
    parser.add_argument("--data", metavar="DATA", help="cases to accept the file on (default: the run's test cases)")
    many = "how many (default 50, of masks 5; web 10 and 3, litert and executorch 100 and 5)"
    parser.add_argument("--cases", type=options.positive, metavar="N", help=many)
    parser.add_argument("--accept", metavar="FILE", help="do not export; check a file that was exported before")
    parser.add_argument("--runtime", metavar="PATH", help="of web: package file or folder of onnxruntime-web")
    options.reading(parser)


def export(args: argparse.Namespace, screen: Screen) -> int:
    """One accepted file."""
    from vesalius.serve import jobs

    found = jobs.export(
        args.model,
        to=args.to,
        out=args.out,
        data=args.data,
        cases=args.cases,
        accept=args.accept,
        runtime=args.runtime,
        reading=options.reading_of(args),
        progress=screen,
    )
    if args.json:
        emit(found)
        return 0
    told = [case for case in found["cases"] if "error" not in case]
    print(
        f"accepted on {len(told)} cases: {found['measure']} {found['worst']:.2g} at most; "
        f"{found['latency_ms']:.1f} ms a case, {found['bytes'] / 1e6:.1f} MB"
    )
    if found.get("browser"):
        print(f"browser {found['browser']}")
    elif "browser" in found:
        print(f"not tried in a browser ({found['browser_why']}); the same model was checked with ONNX Runtime")
    print(f"file    {found['path']}")
    if found["record"]:
        print(f"record  {found['record']}")
    return 0


def compress_options(parser: argparse.ArgumentParser) -> None:
    """vesalius compress RUN --to KIND."""
    parser.add_argument("run", metavar="RUN", help="a finished run; its cases are needed again")
    parser.add_argument("--to", choices=("int8", "pruned", "student"), required=True, help="what it becomes")
    parser.add_argument("--out", metavar="DIR", help="the folder of the lighter model (default: RUN/compressed/KIND)")
    parser.add_argument(
        "--keep",
        type=float,
        metavar="PART",
        help="part of the operations that pruning keeps (default 0.5), or of the learned values of a student (0.25)",
    )
    parser.add_argument("--budget", metavar="TIME", help="wall time of pruned and student (default: that of the run)")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted training stopped, exactly")
    parser.add_argument("--force", action="store_true", help="replace what is in the folder")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="overrule a line of the plan of pruned and student, e.g. model.width=16",
    )
    options.compute(parser)


def compress(args: argparse.Namespace, screen: Screen) -> int:
    """A lighter model, compared with the run."""
    from vesalius.core.plan import parse_settings
    from vesalius.serve import jobs

    found = jobs.compress(
        args.run,
        to=args.to,
        out=args.out,
        keep=args.keep,
        settings=parse_settings(args.settings),
        budget=args.budget,
        device=args.device,
        workers=args.workers,
        resume=args.resume,
        force=args.force,
        command=args.typed,
        progress=screen,
        started=args.started,
    )
    if args.json:
        emit(found)
        return 0
    whole, metric = found["original"], found["metric"]
    change = found["comparison"]["metrics"][metric]["difference"]
    print(
        f"{metric} {whole['metrics'][metric]:.4f} -> {found['metrics'][metric]:.4f}, difference {change['value']:+.4f} "
        f"({change['low']:+.4f} to {change['high']:+.4f})"
    )
    for name, key, part, unit in (
        ("one pass", "latency_ms", 1.0, "ms"),
        ("weights ", "bytes", 1e6, "MB"),
        ("memory  ", "memory_bytes", 1e6, "MB"),
    ):
        print(f"{name} {whole[key] / part:.2f} -> {found[key] / part:.2f} {unit}")
    print(f"bundle  {found['bundle']}")
    print(f"page    {found['page']}")
    return 0


def predict_options(parser: argparse.ArgumentParser) -> None:
    """vesalius predict MODEL INPUT..."""
    parser.add_argument("model", metavar="MODEL", help="a run folder or a bundle folder")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="image files, folders, DICOM series, array files")
    parser.add_argument("--out", metavar="DIR", required=True, help="one JSON file per case, and predictions.csv")
    parser.add_argument(
        "--format",
        metavar="F",
        action="append",
        default=[],
        dest="formats",
        help="may be repeated; classification: json, csv, png; segmentation: "
        "nifti, png, overlay, dicomseg, rtstruct, mesh, probabilities, uncertainty, disagreement, band",
    )
    parser.add_argument(
        "--backend", choices=("auto", "torch", "openvino", "onnxruntime"), help="what computes the tiles"
    )
    parser.add_argument("--tile-precision", choices=("fp32", "bf16"), help="arithmetic of the tiles of a segmentation")
    parser.add_argument(
        "--batch-size", type=options.positive, default=32, metavar="N", help="cases per forward pass (default 32)"
    )
    parser.add_argument("--force", action="store_true", help="predict again what is already there")
    options.compute(parser)


def predict(args: argparse.Namespace, screen: Screen) -> int:
    """Predictions on files."""
    from vesalius.serve import jobs

    formats = [word for text in args.formats for word in text.split(",")]
    outcome = jobs.predict(
        args.model,
        *args.inputs,
        out=args.out,
        device=args.device,
        workers=args.workers,
        batch_size=args.batch_size,
        force=args.force,
        formats=formats,
        backend=args.backend,
        precision=args.tile_precision,
        progress=screen,
    )
    if args.json:
        emit(
            {
                "out": args.out,
                "written": len(outcome.written),
                "skipped": len(outcome.skipped),
                "failed": outcome.failed,
                "predictions": outcome.predictions,
            }
        )
    else:
        for entry in outcome.predictions[:20]:
            if entry["kind"] == "mask":
                print(f"{entry['case_id']:<32} {_structures(entry['structures'])}")
                continue
            said = entry.get("class") or ", ".join(entry.get("classes", ())) or "none"
            chance = max(entry["probabilities"].values())
            print(f"{entry['case_id']:<32} {said:<20} {chance:.3f}")
        if len(outcome.predictions) > 20:
            print(f"... and {len(outcome.predictions) - 20} more")
        print(
            f"{len(outcome.written)} predicted, {len(outcome.skipped)} were there, "
            f"{len(outcome.failed)} failed; {args.out}"
        )
    return _unless_failed(outcome.failed, len(outcome.predictions))


def _structures(found: Mapping[str, Mapping[str, float]]) -> str:
    """One line about a mask: objects, volume or size of each structure."""
    parts = []
    for name, sizes in found.items():
        key = next(k for k in ("objects", "volume_ml", "area_mm2", "voxels", "pixels") if k in sizes)
        parts.append(f"{name} {sizes[key]:g} {key.rpartition('_')[2]}")
    return ", ".join(parts)


def measure_options(parser: argparse.ArgumentParser) -> None:
    """vesalius measure MASK..."""
    parser.add_argument("masks", metavar="MASK", nargs="+", help="label images, or folders of them")
    parser.add_argument(
        "--out", metavar="DIR", help="where tables, pictures and the page go (default runs/measure-NAME)"
    )
    parser.add_argument(
        "--image", metavar="PATH", help="the image of the mask, or a folder of images with the same names"
    )
    parser.add_argument("--reference", metavar="PATH", help="the true mask, or a folder of them: metrics are added")
    options.measuring(parser)
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--memory", metavar="SIZE", help="memory that may be taken, e.g. 4G (default 70 %% of what is free)"
    )
    group.add_argument("--workers", type=options.positive, metavar="N", help="cases at a time (default: all cores)")
    parser.add_argument("--force", action="store_true", help="measure again what is already there")


def measure(args: argparse.Namespace, screen: Screen) -> int:
    """Numbers with units from masks."""
    from vesalius.cli.tables import print_measured
    from vesalius.serve import measuring

    done = measuring.measure(
        *args.masks,
        out=args.out,
        image=args.image,
        reference=args.reference,
        memory=args.memory,
        workers=args.workers,
        force=args.force,
        page=not args.no_page,
        command=args.typed,
        progress=screen,
        **options.wishes_of(args),
    )
    if args.json:
        emit(done.to_json())
    else:
        print_measured(done)
    return _unless_failed(done.failed, done.cases)


def _unless_failed(failed: Mapping[str, str], done: int) -> int:
    """0, or the error of a command whose other cases are written."""
    if failed:
        first = next(iter(failed.values()))
        whole = done + len(failed)
        raise DataError(f"{len(failed)} of {whole} cases failed (failed.json lists them); the first: {first}")
    return 0


def demo_options(parser: argparse.ArgumentParser) -> None:
    """vesalius demo [classify|segment|measure]."""
    parser.add_argument(
        "what",
        nargs="?",
        default="classify",
        choices=("classify", "segment", "measure"),
        help="which journey (default classify)",
    )
    parser.add_argument("--out", metavar="RUN", help="where it works (default runs/demo-JOURNEY)")


def demo(args: argparse.Namespace, screen: Screen) -> int:
    """The whole journey on embedded synthetic cases."""
    from vesalius.serve import jobs

    found = jobs.demo(args.what, out=args.out or f"runs/demo-{args.what}", progress=screen, command=args.typed)
    if args.json:
        emit(found)
        return 0
    print()
    for line in found["lines"]:
        print(line)
    return 0


def _finished(args: argparse.Namespace, done: Any) -> None:
    metrics = done.metrics.get("metrics", {})
    if not metrics:  # a process that is not the first of its group
        return
    if args.json:
        emit(
            {
                "run": str(done.run),
                "report": str(done.report),
                "bundle": str(done.bundle),
                "seconds": round(done.seconds, 1),
                "cases": done.metrics["cases"],
                "patients": done.metrics["patients"],
                "split": done.metrics["split"],
                "metrics": metrics,
                "notes": done.notes,
            }
        )
        return
    print(f"\n{done.metrics['split']}: {done.metrics['cases']} cases of {done.metrics['patients']} patients")
    for name in SHOWN:
        if name in metrics:
            print("  " + interval_line(name, metrics[name]))
    print(f"report  {done.report}\nbundle  {done.bundle}")
