"""The classification spine on real data: ``python benchmarks/spine.py [DATA] [--only NAME] [--seeds 0,1,2]``.

Each row is one ``vesalius train`` in a process of its own, timed from start to report. The data are looked for in
VESALIUS_TEST_DATA or in ../shared/data; nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = {
    "pneumoniamnist": ("medmnist/pneumoniamnist.npz", "60s", []),
    "adrenalmnist3d": ("medmnist/adrenalmnist3d.npz", "5m", []),
    "mnist": ("mnist/mnist.npz", "90s", []),
    "mnist-convnet": ("mnist/mnist.npz", "90s", ["--set", "model.name=convnet"]),
    "chest-xray": ("chest-xray", "6m", []),
}


def one(data: Path, budget: str, extra: list[str], seed: int, out: Path) -> dict[str, float]:
    """Metrics and wall time of one run."""
    command = [
        str(Path(sys.executable).parent / "vesalius"),
        "train",
        str(data),
        "--out",
        str(out),
        "--budget",
        budget,
        "--seed",
        str(seed),
        "--json",
        "-q",
        *extra,
    ]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    metrics = json.loads(done.stdout)["metrics"]
    return {"auroc": metrics["auroc"]["value"], "accuracy": metrics["accuracy"]["value"], "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", default=os.environ.get("VESALIUS_TEST_DATA", "../shared/data"), type=Path)
    parser.add_argument("--only", choices=sorted(ROWS))
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    found = {}
    for name, (path, budget, extra) in ROWS.items():
        if args.only and name != args.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            runs = [
                one(args.data / path, budget, extra, int(seed), Path(folder) / seed) for seed in args.seeds.split(",")
            ]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        found[name] = {"budget": budget, "median": middle, "runs": runs}
        each = "; ".join(f"{run['auroc']:.4f} {run['accuracy']:.4f} {run['seconds']:.0f} s" for run in runs)
        print(
            f"{name:<16} budget {budget:<4} auroc {middle['auroc']:.4f}  accuracy {middle['accuracy']:.4f}  "
            f"{middle['seconds']:.0f} s  ({each})",
            flush=True,
        )
    Path("bench").mkdir(exist_ok=True)
    Path("bench/spine.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
