"""Vessel graphs against scikit-image + skan: ``python benchmarks/vessels.py [--quick] [--repeats 3]``.

Two masks with a known graph, mosaics of phantom trees: 27 trees in 384 x 384 x 384 voxels (vessels 2 to 7 wide) and 25
in 2000 x 2000 pixels (4 to 20 wide). Each tool runs in a process of its own. The first run compiles or loads what the
tool compiles; the best of the following ones is the time. Memory is the largest resident set during the runs less that
before them (mask loaded, libraries imported; Linux). *ours graph* is the skeleton, the graph and the calibres, *ours
all* every table of `measure_vessels`. *skimage + skan* knows lengths; *with radii* it gets scipy's distance transform
as pixel values, which is how skan measures calibres.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CASES = {
    "angiogram": {"dims": 3, "size": 128, "tiles": 3},
    "fundus": {"dims": 2, "size": 400, "tiles": 5},
}
QUICK = {
    "angiogram": {"dims": 3, "size": 96, "tiles": 2},
    "fundus": {"dims": 2, "size": 400, "tiles": 2},
}
TOOLS = ("ours graph", "ours all", "skimage + skan", "with radii")


def write(path: Path, dims: int, size: int, tiles: int) -> dict[str, float]:
    """Save the mask of a mosaic of phantoms; its truth."""
    from vesalius.phantoms.vessels import make_vessels

    mask = np.zeros((size * tiles,) * dims, dtype=bool)
    sums = {"length": 0.0, "branches": 0, "bifurcations": 0}
    for index, tile in enumerate(np.ndindex(*(tiles,) * dims)):
        one = make_vessels(seed=0, index=index, dims=dims, size=size)
        mask[tuple(slice(k * size, (k + 1) * size) for k in tile)] = one.mask > 0
        sums["length"] += one.truth["length_px"]
        sums["branches"] += len(one.truth["edges"])
        sums["bifurcations"] += one.truth["bifurcations"]
    np.save(path, mask)
    return {**sums, "voxels": int(np.count_nonzero(mask))}


def run(tool: str, mask: np.ndarray) -> dict[str, float]:
    if tool == "with radii":
        import skan
        from scipy.ndimage import distance_transform_edt
        from skimage.morphology import skeletonize

        radii = skeletonize(mask) * distance_transform_edt(mask)
        table = skan.summarize(skan.Skeleton(radii), separator="-")
        return {"length": float(table["branch-distance"].sum()), "branches": len(table)}
    if tool == "skimage + skan":
        import skan
        from skimage.morphology import skeletonize

        table = skan.summarize(skan.Skeleton(skeletonize(mask)), separator="-")
        return {"length": float(table["branch-distance"].sum()), "branches": len(table)}
    if tool == "ours graph":
        from vesalius.measure.vessel_graph import total_length, vessel_graph

        graph = vessel_graph(mask)
        return {"length": total_length(graph), "branches": len(graph.branches)}
    from vesalius.measure.vessels import measure_vessels

    whole = measure_vessels(mask).whole
    return {"length": whole["total_length"], "branches": whole["branches"]}


def memory(row: str) -> float:
    """A row of /proc/self/status in MB: VmRSS now, VmHWM at most since the mark was reset."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(row)) / 1024


def one(tool: str, path: str, repeats: int) -> None:
    """Run in a process of its own and print the result."""
    mask = np.load(path)
    warm = np.zeros((8,) * mask.ndim, dtype=bool)
    warm[(4,) * (mask.ndim - 1)] = True
    run(tool, warm)  # imports
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    before = memory("VmRSS")
    times, found = [], {}
    for _ in range(repeats + 1):
        start = time.perf_counter()
        found = run(tool, mask)
        times.append(time.perf_counter() - start)
    print(json.dumps({**found, "first": times[0], "seconds": min(times[1:]), "memory_mb": memory("VmHWM") - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small masks; writes nothing")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "MASK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(*args.one, args.repeats)
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in (QUICK if args.quick else CASES).items():
            path = Path(folder) / f"{name}.npy"
            truth = write(path, **options)
            print(f"{name}: {options['size'] * options['tiles']}^{options['dims']}, {truth}", flush=True)
            results[name] = {"truth": {**truth, **options}}
            for tool in TOOLS:
                command = [sys.executable, __file__, "--repeats", str(args.repeats), "--one", tool, str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{tool}: {done.stderr}")
                found = json.loads(done.stdout)
                results[name][tool] = found
                print(
                    f"  {tool:<15} {found['seconds']:7.3f} s (first {found['first']:6.2f})  "
                    f"{found['memory_mb']:6.0f} MB  length {100 * (found['length'] / truth['length'] - 1):+6.2f} %  "
                    f"branches {found['branches']:.0f} of {truth['branches']}",
                    flush=True,
                )
    if not args.quick:
        Path("bench").mkdir(exist_ok=True)
        Path("bench/vessels.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
