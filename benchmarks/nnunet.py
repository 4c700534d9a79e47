"""nnU-Net v2 and Vesalius with the same time: ``python benchmarks/nnunet.py --data FOLDER --minutes 10 [--seed 0]``.

Both get the same wall time on the same cores, and the same cases to train with; then both predict the same test cases,
which neither had before, and one function scores the files against the masks as they were published. The time holds
everything from the raw files to a model that is saved: start of the processes, planning, preparing, training, and with
Vesalius also its report. Prediction is timed apart. docs/benchmark-nnunet.md has the protocol in full.

The arms can run apart: ``--arm nnunet``, ``--arm vesalius``, ``--arm score``. Each step that is done leaves a record in
the folder of the work and is not repeated without ``--force``. This script runs with the interpreter that holds
Vesalius; nnU-Net runs with that of ``--peer`` (`make nnunet-peers`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vesalius.data.manifest import Manifest

HOME = Path(__file__).resolve().parents[1]
DATASET = "Dataset001_Bench"
TRAINER = "TimedTrainer"
CONFIGURATION = "3d_fullres"
ENDING = ".nii.gz"
# Seconds kept back for saving the weights, ending the workers and leaving Python.
RESERVE = 4.0
ARMS = ("nnunet", "vesalius")
TITLES = {"nnunet": "nnU-Net", "vesalius": "Vesalius"}
SCORES = ("dice", "hd95_mm")
HD95 = "hausdorff_distance_95"


# --- nnU-Net's side: this file run with the interpreter of the peer --------------------------------------------------


def peer(verb: str, arguments: list[str]) -> None:
    """A command of nnU-Net in this process, as its console script would run it, with two repairs.

    nnU-Net takes as many threads as the machine has cores, not as it may use: it is told the latter. And it imports
    timm, which imports torchvision, whose compiled part does not load where torch is a build without CUDA. Two of its
    operators are then declared, for their names are asked for; none is called.
    """
    import multiprocessing

    cores = len(os.sched_getaffinity(0))
    os.cpu_count = multiprocessing.cpu_count = lambda: cores
    sys.argv = [f"nnUNetv2_{verb}", *arguments]
    if verb == "plan_and_preprocess":
        from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as entry
    else:
        _declare_operators()
        if verb == "train":
            from nnunetv2.run.run_training import run_training_entry as entry
        else:
            from nnunetv2.inference.predict_from_raw_data import predict_entry_point as entry
    entry()


def _declare_operators() -> None:
    from importlib.util import find_spec

    import torch

    compiled = sorted(Path(find_spec("torchvision").origin).parent.glob("_C*.so"))
    try:
        for path in compiled:
            torch.ops.load_library(str(path))
    except OSError:
        compiled = []
    if not compiled:
        _declare_operators.kept = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _declare_operators.kept.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


# --- What both get --------------------------------------------------------------------------------------------------


def divided(data: Path, test: float, val: float, seed: int, most: int | None) -> Manifest:
    """The cohort with column ``split``: whole patients by chance, the same for both arms."""
    from vesalius.data.discover import discover

    found = discover(data, task="segment")
    frame = found.frame
    if set(frame["role"]) != {"image", "mask"} or not frame["path"].str.endswith(ENDING).all():
        sys.exit(f"{data}: expected one image and one mask per case, all {ENDING}; found roles {set(frame['role'])}")
    if found.labels is None:
        sys.exit(f"{data}: the names of the labels are unknown; expected a dataset.json")
    patients = np.array(sorted(frame["patient_id"].unique()))
    patients = np.random.default_rng(seed).permutation(patients)[:most]
    held = max(1, round(test * len(patients)))
    checked = max(1, round(val * (len(patients) - held)))
    part = dict.fromkeys(patients, "train")
    part |= dict.fromkeys(patients[:held], "test") | dict.fromkeys(patients[held : held + checked], "val")
    frame = frame[frame["patient_id"].isin(part)]
    return found.with_frame(frame.assign(split=frame["patient_id"].map(part)), split_source="column")


def files(cohort: Manifest, splits: tuple[str, ...]) -> dict[str, dict[str, Path]]:
    """Image and mask of each case of these splits."""
    found: dict[str, dict[str, Path]] = {}
    for row in cohort.frame[cohort.frame["split"].isin(splits)].itertuples():
        found.setdefault(str(row.case_id), {})[str(row.role)] = cohort.absolute(str(row.path)).resolve()
    return dict(sorted(found.items()))


def keep_split(cohort: Manifest, work: Path) -> None:
    """Write who is where; a folder that was begun with other cases is not gone on with."""
    work.mkdir(parents=True, exist_ok=True)
    split = {name: list(files(cohort, (name,))) for name in ("train", "val", "test")}
    path = work / "split.json"
    if path.exists() and json.loads(path.read_text()) != split:
        sys.exit(f"{path}: was made with other cases (--test, --val or the data changed); give another --work")
    path.write_text(json.dumps(split, indent=1) + "\n")


class Records:
    """What an arm has done so far, in a JSON file."""

    def __init__(self, path: Path, force: bool) -> None:
        self.path = path
        self.done: dict[str, dict] = json.loads(path.read_text()) if path.exists() and not force else {}

    def add(self, step: str, **facts: object) -> None:
        self.done[step] = {**facts, "load_before": facts.get("load_before", round(os.getloadavg()[0], 2))}
        self.path.write_text(json.dumps(self.done, indent=2) + "\n")


def timed(command: list[str | Path], log: Path, settings: dict[str, str], cores: int) -> float:
    """Wall time of a command on `cores` cores; its output goes to `log`."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "nnUNet_"))}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        begin = time.perf_counter()
        done = subprocess.run(
            [str(word) for word in command], stdout=file, stderr=subprocess.STDOUT, env={**keep, **settings},
            preexec_fn=lambda: os.sched_setaffinity(0, allowed), check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        sys.exit(f"{' '.join(str(word) for word in command[:6])} ... ended with {done.returncode}, see {log}:\n{tail}")
    return seconds


# --- The arms -------------------------------------------------------------------------------------------------------


def run_nnunet(cohort: Manifest, work: Path, args: argparse.Namespace) -> None:
    records = Records(work / "nnunet.json", args.force)
    home = work / "nnunet"
    places = {name: home / name for name in ("raw", "preprocessed", "results")}
    settings = {
        **{f"nnUNet_{name}": str(path) for name, path in places.items()},
        "nnUNet_extTrainer": str(home / "trainer"),
        "nnUNet_compile": "f",
        "nnUNet_def_n_proc": str(args.cores),
        "nnUNet_n_proc_DA": str(args.augmenters),
        "BENCH_SEED": str(args.seed),
        "BENCH_RECORD": str(home / "training.json"),
    }
    command = [args.peer, Path(__file__).resolve(), "--as-nnunet"]
    which = ["-tr", TRAINER, "-device", "cpu"]
    if "train" not in records.done:
        shutil.rmtree(home, ignore_errors=True)
        _write_raw(cohort, places["raw"] / DATASET, _modality(cohort, args.modality))
        (home / "trainer").mkdir()
        shutil.copy(HOME / "benchmarks" / "nnunet_trainer.py", home / "trainer")
        load, begin = os.getloadavg()[0], time.time()
        settings["BENCH_DEADLINE"] = str(begin + 60 * args.minutes - RESERVE)
        counts = ["-np", args.cores, "-npfp", args.cores]
        prepare = [*command, "plan_and_preprocess", "-d", "1", "-c", CONFIGURATION, *counts, "--no_pbar"]
        prepared = timed(prepare, home / "prepare.log", settings, args.cores)
        print(f"nnU-Net: planned and prepared in {prepared:.0f} s", flush=True)
        train = [*command, "train", "1", CONFIGURATION, "all", *which]
        trained = timed(train, home / "train.log", settings, args.cores)
        inside = json.loads((home / "training.json").read_text())
        records.add(
            "train", seconds=time.time() - begin, phases={"prepare": prepared, "train": trained},
            augmenters=args.augmenters, load_before=round(load, 2), **inside,
        )  # fmt: skip
    if "predict" not in records.done:
        out = _fresh(work / "predictions" / "nnunet")
        inputs = _fresh(home / "test")
        cases = files(cohort, ("test",))
        for case, paths in cases.items():
            _copy(paths["image"], inputs / f"{case}_0000{ENDING}")
        predict = [*command, "predict", "-i", inputs, "-o", out, "-d", "1", "-c", CONFIGURATION, "-f", "all", *which]
        predict += ["-npp", "1", "-nps", "1", "--disable_progress_bar"]
        records.add("predict", seconds=timed(predict, home / "predict.log", settings, args.cores), cases=len(cases))


def _write_raw(cohort: Manifest, folder: Path, modality: str) -> None:
    """Training and validation cases as nnU-Net wants them; the test cases are not there."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    cases = files(cohort, ("train", "val"))
    for case, paths in cases.items():
        _copy(paths["image"], folder / "imagesTr" / f"{case}_0000{ENDING}")
        _copy(paths["mask"], folder / "labelsTr" / f"{case}{ENDING}")
    about = {
        "channel_names": {"0": modality},
        "labels": {name: value for value, name in enumerate(cohort.labels.names)},
        "numTraining": len(cases),
        "file_ending": ENDING,
    }
    (folder / "dataset.json").write_text(json.dumps(about, indent=2))


def _modality(cohort: Manifest, asked: str | None) -> str:
    """nnU-Net normalises CT (and only what is called so) in its own way."""
    named = set(cohort.frame["modality"]) if "modality" in cohort.frame else set()
    if asked is None and len(named) != 1:
        sys.exit(f"{cohort.root}: says nothing about its modality; give --modality CT, MRI...")
    return asked or str(named.pop())


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def run_vesalius(cohort: Manifest, work: Path, args: argparse.Namespace) -> None:
    records = Records(work / "vesalius.json", args.force)
    home = work / "vesalius"
    command = [sys.executable, "-m", "vesalius.cli.main"]
    # A cache of its own: what an earlier run prepared would be time that is not counted.
    settings = {"VESALIUS_CACHE": str(home / "cache")}
    run = home / "run"
    if "train" not in records.done:
        _fresh(home)
        known = cohort.frame[cohort.frame["split"] != "test"]
        table = cohort.with_frame(known).to_parquet(home / "cohort.parquet")
        load, budget = os.getloadavg()[0], f"{60 * args.minutes:.0f}s"
        train = [*command, "train", table, "--task", "segment", "--budget", budget, "--seed", args.seed, "--out", run]
        seconds = timed(train, home / "train.log", settings, args.cores)
        records.add("train", seconds=seconds, load_before=round(load, 2), **_described(run))
    if "predict" not in records.done:
        out = _fresh(work / "predictions" / "vesalius")
        cases = files(cohort, ("test",))
        images = [paths["image"] for paths in cases.values()]
        predict = [*command, "predict", run, *images, "--out", out, "--format", "nifti"]
        records.add("predict", seconds=timed(predict, home / "predict.log", settings, args.cores), cases=len(cases))


def _described(run: Path) -> dict[str, object]:
    """Iterations, parameters and the plan of a finished run, from its files (docs/formats.md)."""
    import pandas as pd
    import yaml
    from safetensors import safe_open

    curves = pd.read_csv(run / "metrics.csv")
    with safe_open(run / "bundle" / "model.safetensors", framework="numpy") as weights:
        size = sum(int(np.prod(weights.get_slice(name).get_shape())) for name in weights.keys())  # noqa: SIM118
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    return {
        "iterations": int(curves.groupby("member")["step"].max().sum()),
        "parameters": size,
        "phases": metrics.get("timing") or {},
        "plan": _values(yaml.safe_load((run / "plan.yaml").read_text())),
    }


def _values(node: object) -> object:
    """A plan without its reasons."""
    if isinstance(node, dict):
        return node["value"] if {"value", "because"} <= set(node) else {key: _values(one) for key, one in node.items()}
    return node


# --- Scores ---------------------------------------------------------------------------------------------------------


def score(cohort: Manifest, work: Path) -> dict[str, dict[str, np.ndarray]]:
    """Dice and HD95 of each arm that has predicted: arrays (cases, labels); distances are inf where a label is missed.

    The truth is read from the published file. A prediction on another grid is an error, not resampled. Surfaces are
    centres of voxels, as MONAI has them, whose HD95 is the same number.
    """
    from vesalius.io.open import open_image
    from vesalius.measure.overlap import overlap_table
    from vesalius.measure.surface import surface_table

    labels = range(1, len(cohort.labels.names))
    found: dict[str, dict[str, np.ndarray]] = {}
    for arm in ARMS:
        folder = work / "predictions" / arm
        if "predict" not in Records(work / f"{arm}.json", False).done:
            continue
        rows: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
        for case, paths in files(cohort, ("test",)).items():
            truth, said = open_image(paths["mask"]), open_image(folder / f"{case}{ENDING}")
            if truth.grid.shape != said.grid.shape or not np.allclose(truth.grid.affine, said.grid.affine, atol=1e-3):
                sys.exit(f"{folder / case}{ENDING}: not on the grid of {paths['mask']}; expected the same")
            pair = [np.rint(one.pixels[0]).astype(np.int64) for one in (said, truth)]
            spacing = truth.grid.spacing
            rows["dice"].append(overlap_table(*pair, spacing, labels, empty="one")["dice"])
            rows["hd95_mm"].append(surface_table(*pair, spacing, list(labels), definition="voxels")[HD95])
        found[arm] = {name: np.array(values) for name, values in rows.items()}
    return found


def summary(scores: dict[str, dict[str, np.ndarray]], names: tuple[str, ...], seed: int) -> dict[str, object]:
    """Means over test cases; HD95 over the cases where it is finite, with how many are not.

    `difference` is Vesalius less nnU-Net in mean Dice, case by case, with the interval of 95 % of a bootstrap of cases.
    """
    arms: dict[str, object] = {}
    for arm, values in scores.items():
        dice, distance = values["dice"], values["hd95_mm"]
        finite = np.isfinite(distance)
        reached = [distance[finite[:, k], k] for k in range(len(names))]
        arms[arm] = {
            "dice": float(dice.mean()),
            "dice_sd": float(dice.mean(1).std(ddof=1)) if len(dice) > 1 else None,
            "dice_worst_case": float(dice.mean(1).min()),
            "hd95_mm": float(np.mean([one.mean() for one in reached])) if all(map(len, reached)) else None,
            "missed": int((~finite).sum()),
            "per_class": {
                name: {
                    "dice": float(dice[:, k].mean()),
                    "hd95_mm": float(reached[k].mean()) if len(reached[k]) else None,
                }
                for k, name in enumerate(names)
            },
        }
    result: dict[str, object] = {"arms": arms}
    if len(scores) == len(ARMS):
        apart = scores["vesalius"]["dice"].mean(1) - scores["nnunet"]["dice"].mean(1)
        drawn = np.random.default_rng(seed).integers(0, len(apart), (10_000, len(apart)))
        low, high = np.percentile(apart[drawn].mean(1), [2.5, 97.5])
        result["difference"] = {"dice": float(apart.mean()), "low": float(low), "high": float(high), "level": 0.95}
    return result


def show(report: dict, names: tuple[str, ...]) -> None:
    arms = list(report["arms"])
    scored, runs = report["arms"], report["runs"]

    def line(title: str, *cells: object) -> None:
        print(f"  {title:28}" + "".join(f"{cell:>14}" for cell in cells))

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    line("", *(TITLES[arm] for arm in arms))
    for name in names:
        line(f"Dice {name}", *(number(scored[arm]["per_class"][name]["dice"], 4) for arm in arms))
    line("Dice, mean", *(number(scored[arm]["dice"], 4) for arm in arms))
    line("Dice of the worst case", *(number(scored[arm]["dice_worst_case"], 4) for arm in arms))
    for name in names:
        line(f"HD95 {name}, mm", *(number(scored[arm]["per_class"][name]["hd95_mm"], 2) for arm in arms))
    line("HD95, mean, mm", *(number(scored[arm]["hd95_mm"], 2) for arm in arms))
    line("labels missed", *(scored[arm]["missed"] for arm in arms))
    line("raw files to model, s", *(number(runs[arm]["train"]["seconds"], 1) for arm in arms))
    line("iterations", *(runs[arm]["train"]["iterations"] for arm in arms))
    line("parameters, million", *(number(runs[arm]["train"]["parameters"] / 1e6, 2) for arm in arms))
    line("prediction, s a case", *(number(_per_case(runs[arm]["predict"]), 2) for arm in arms))
    for arm in arms:
        train = runs[arm]["train"]
        print(f"  {TITLES[arm]}: {json.dumps(train['phases'])}, load before {train['load_before']}")
        print(f"    {json.dumps(train['plan'])[:600]}")
    if "difference" in report:
        apart = report["difference"]
        print(f"  Dice, Vesalius less nnU-Net: {apart['dice']:+.4f} [{apart['low']:+.4f}, {apart['high']:+.4f}] (95 %)")


def _per_case(done: dict) -> float:
    return float(done["seconds"]) / int(done["cases"])


def report(cohort: Manifest, work: Path, args: argparse.Namespace) -> None:
    scores = score(cohort, work)
    if not scores:
        sys.exit(f"{work}: no arm has predicted; run --arm nnunet or --arm vesalius first")
    names = cohort.labels.names[1:]
    runs = {arm: Records(work / f"{arm}.json", False).done for arm in scores}
    sizes = {split: len(files(cohort, (split,))) for split in ("train", "val", "test")}
    told = {
        "data": cohort.root.name,
        "minutes": args.minutes,
        "seed": args.seed,
        "cores": args.cores,
        "cases": sizes,
        "labels": names,
        **summary(scores, names, args.seed),
        "runs": runs,
        "per_case": {
            arm: {
                case: {name: [round(float(value), 5) for value in values[name][row]] for name in SCORES}
                for row, case in enumerate(files(cohort, ("test",)))
            }
            for arm, values in scores.items()
        },
    }
    print(f"{told['data']}: {sizes}, {args.minutes:g} minutes on {args.cores} cores, seed {args.seed}")
    show(told, names)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"nnunet-{work.name}.json"
    path.write_text(json.dumps(told, indent=1) + "\n")
    print(f"  {path}")


def main() -> None:
    if sys.argv[1:2] == ["--as-nnunet"]:
        peer(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with dataset.json (Decathlon or nnU-Net)")
    parser.add_argument("--minutes", type=float, default=10.0, help="wall time of each arm, from raw files to a model")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of both trainings")
    parser.add_argument("--arm", choices=(*ARMS, "score", "all"), default="all")
    parser.add_argument("--test", type=float, default=0.25, help="part of the patients that is held out")
    parser.add_argument("--val", type=float, default=0.1, help="part of the others that Vesalius validates with")
    parser.add_argument("--cases", type=int, help="use only so many patients (to try this script)")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--augmenters", type=int, default=1, help="nnUNet_n_proc_DA: processes that augment")
    parser.add_argument("--modality", help="what nnU-Net is told, if the data do not say")
    parser.add_argument("--peer", type=Path, default=HOME / ".venv-nnunet" / "bin" / "python")
    parser.add_argument("--work", type=Path, default=HOME / "runs" / "bench-nnunet", help="folder for what both write")
    parser.add_argument("--out", type=Path, default=HOME / "bench")
    parser.add_argument("--force", action="store_true", help="do again what has a record")
    args = parser.parse_args()
    cohort = divided(args.data.resolve(), args.test, args.val, args.seed, args.cases)
    cut = f"-{args.cases}cases" if args.cases else ""
    work = (args.work / f"{args.data.resolve().name}-{args.minutes:g}min-seed{args.seed}{cut}").resolve()
    keep_split(cohort, work)
    if args.arm in ("nnunet", "all"):
        # Not resolved: the link is what tells Python its environment.
        args.peer = args.peer.absolute()
        if not args.peer.exists():
            sys.exit(f"{args.peer}: there is no such interpreter; run `make nnunet-peers` or give --peer")
        run_nnunet(cohort, work, args)
    if args.arm in ("vesalius", "all"):
        run_vesalius(cohort, work, args)
    if args.arm in ("score", "all"):
        report(cohort, work, args)


if __name__ == "__main__":
    main()
