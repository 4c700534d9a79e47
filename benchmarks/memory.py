"""Peak memory of training on many images: ``python benchmarks/memory.py [--images 100000] [--memory 2G]``.

Synthetic 224x224 pictures are written as PNG in class folders, then one ``vesalius train`` runs on them in a process of
its own. What is shown is the largest resident set of that process as the system counted it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imagecodecs
import numpy as np

SIDE = 224


def write(folder: Path, count: int) -> None:
    """Two classes of smooth random pictures; one has a bright disc at a random place."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    for name in ("with", "without"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        coarse = rng.integers(40, 160, (8, 8), dtype=np.uint8)
        picture = np.kron(coarse, np.ones((SIDE // 8, SIDE // 8), dtype=np.uint8))
        name = "without"
        if index % 2:
            name = "with"
            row, column = rng.uniform(30, SIDE - 30, 2)
            picture = np.where((y - row) ** 2 + (x - column) ** 2 < 200, 230, picture).astype(np.uint8)
        (folder / name / f"{index:06d}.png").write_bytes(imagecodecs.png_encode(picture, level=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where pictures and prepared data go (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        home = Path(folder)
        start = time.perf_counter()
        write(home / "pictures", args.images)
        print(f"wrote {args.images} pictures in {time.perf_counter() - start:.0f} s", flush=True)
        command = [
            str(Path(sys.executable).parent / "vesalius"),
            "train",
            str(home / "pictures"),
            "--out",
            str(home / "run"),
            "--memory",
            args.memory,
            "--set",
            f"optim.max_steps={args.steps}",
            "--json",
        ]
        start = time.perf_counter()
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "VESALIUS_CACHE": str(home / "cache")},
        )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        facts = {
            "images": args.images,
            "memory": args.memory,
            "peak_mb": round(peak),
            "seconds": round(time.perf_counter() - start),
            "exit": done.returncode,
        }
    Path("bench").mkdir(exist_ok=True)
    Path("bench/memory.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(facts)


if __name__ == "__main__":
    main()
