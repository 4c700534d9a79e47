"""Surface distances next to other programs: ``python benchmarks/surface.py [--quick] [--repeats 5]``.

Run it with the interpreter of the peers' environment (`benchmarks/peers.txt`, which must hold vesalius as well). Two
tasks are timed: one pair of masks of an organ of 180 voxels in a volume of 256 x 256 x 256, and one pair of label maps
of 512 x 512 x 300 with 20 organs. Every program runs in a process of its own. The first call of each is not counted: it
compiles our kernels and loads what others load late. Times are medians of the calls after it; memory is the peak of the
resident set during all of them, less what was resident before (Linux): masks and modules are not counted.

What the others are asked for: MONAI its Hausdorff distance (95 %), average symmetric surface distance and surface Dice;
DeepMind's surface-distance the same numbers from one `compute_surface_distances`; MedPy `hd95` and `assd`; SimpleITK
(the usual recipe) two outlines, two signed Maurer distance maps, numbers in numpy. For the label maps the peers are
given each label's mask cut to the box around it in both maps, which most users do not do.
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
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

SPACING = (1.0, 0.8, 0.8)
TOLERANCES = (1.0, 2.0)
NAMES = ("hausdorff_distance", "hausdorff_distance_95", "assd", "surface_dice_at_1", "surface_dice_at_2")
HOME = Path(__file__).resolve().parents[1]
Work = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def organ(side: int, radius: float, seed: int, shift: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """A ball with a wavy border."""
    z, y, x = (np.arange(side, dtype=np.float32) - side / 2 - step for step in shift)
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    rng = np.random.default_rng(seed)
    across, around = np.arctan2(np.sqrt(x * x + y * y), z), np.arctan2(y + 0 * x, x + 0 * y)
    wave = np.zeros((side, side, side), dtype=np.float32)
    for _ in range(12):
        k, m = rng.integers(2, 9), rng.integers(0, 7)
        one, two = rng.uniform(0, 2 * np.pi, 2)
        wave += rng.normal() * np.cos(k * across + one) * np.cos(m * around + two)
    return np.sqrt(z * z + y * y + x * x) < radius + wave * radius / 90


def pair_of_masks(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    side = 96 if quick else 256
    radius = side * 90 / 256
    return organ(side, radius, 0), organ(side, radius, 1, (1, -1, 1))


def pair_of_maps(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """Twenty organs of different size on a grid; the second map has them a little elsewhere."""
    shape = (60, 128, 128) if quick else (300, 512, 512)
    maps = np.zeros((2, *shape), dtype=np.uint8)
    rng = np.random.default_rng(0)
    step = shape[1] // 4
    for label in range(1, 21):
        place = np.unravel_index(label - 1, (2, 3, 4))
        side = int(step * rng.uniform(0.5, 0.95))
        corner = [
            min(int(at * length), total - side - 4)
            for at, length, total in zip(place, (shape[0] / 2, shape[1] / 3, step), shape, strict=True)
        ]
        for row in range(2):
            mask = organ(side, side * 0.4, 2 * label + row)
            z, y, x = (max(0, start + 2 * row) for start in corner)
            maps[row, z : z + side, y : y + side, x : x + side][mask] = label
    return maps[0], maps[1]


# --- The programs ---------------------------------------------------------------------------------------------------


def ours(definition: str) -> Work:
    from vesalius.measure.surface import surface_distances

    def work(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        return surface_distances(first, second, SPACING, tolerances=TOLERANCES, definition=definition)

    return work


def monai() -> Work:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    def work(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        one, two = (torch.from_numpy(mask)[None, None] for mask in (first, second))
        options = {"include_background": True, "spacing": SPACING}
        return {
            "hausdorff_distance_95": float(compute_hausdorff_distance(one, two, percentile=95, **options)),
            "assd": float(compute_average_surface_distance(one, two, symmetric=True, **options)),
            "surface_dice_at_1": float(compute_surface_dice(one, two, [TOLERANCES[0]], **options)),
        }

    return work


def deepmind() -> Work:
    from surface_distance import metrics

    def work(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        found = metrics.compute_surface_distances(first, second, SPACING)
        sums = [
            ((found[f"distances_{way}"] * found[f"surfel_areas_{side}"]).sum(), found[f"surfel_areas_{side}"].sum())
            for way, side in (("gt_to_pred", "gt"), ("pred_to_gt", "pred"))
        ]
        return {
            "hausdorff_distance": metrics.compute_robust_hausdorff(found, 100),
            "hausdorff_distance_95": metrics.compute_robust_hausdorff(found, 95),
            "assd": (sums[0][0] + sums[1][0]) / (sums[0][1] + sums[1][1]),
            **{
                f"surface_dice_at_{tolerance:g}": metrics.compute_surface_dice_at_tolerance(found, tolerance)
                for tolerance in TOLERANCES
            },
        }

    return work


def medpy() -> Work:
    from medpy.metric.binary import assd, hd95

    def work(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        return {"hausdorff_distance_95": hd95(first, second, SPACING), "assd": assd(first, second, SPACING)}

    return work


def simpleitk() -> Work:
    import SimpleITK as sitk  # noqa: N813 - as everyone writes it

    def work(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        outlines = []
        for mask in (first, second):
            image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
            image.SetSpacing(SPACING[::-1])
            outlines.append(sitk.LabelContour(image, fullyConnected=False))
        away = [
            np.abs(sitk.GetArrayFromImage(
                sitk.SignedMaurerDistanceMap(one, squaredDistance=False, useImageSpacing=True)
            ))
            for one in outlines
        ]  # fmt: skip
        held = [sitk.GetArrayFromImage(one) > 0 for one in outlines]
        there, back = away[1][held[0]], away[0][held[1]]
        both = np.concatenate([there, back])
        return {
            "hausdorff_distance": float(both.max()),
            "hausdorff_distance_95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
            "assd": float(both.mean()),
            **{f"surface_dice_at_{tolerance:g}": float((both <= tolerance).mean()) for tolerance in TOLERANCES},
        }

    return work


PROGRAMS: dict[str, Callable[[], Work]] = {
    "vesalius, elements": lambda: ours("elements"),
    "vesalius, voxels": lambda: ours("voxels"),
    "MONAI": monai,
    "surface-distance": deepmind,
    "MedPy": medpy,
    "SimpleITK": simpleitk,
}
# The one of ours that uses the same definition of a surface.
LIKE = {"surface-distance": "vesalius, elements"}


def over_labels(work: Work) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """Mean over labels, each within the box around it in both maps."""
    from scipy.ndimage import find_objects

    def every(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        rows = []
        for label, box in enumerate(find_objects(np.maximum(first, second)), start=1):
            # Organs do not overlap here, so the larger value is that of either map.
            if box is not None:
                rows.append(work(*(np.ascontiguousarray(one[box] == label) for one in (first, second))))
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    return every


def tables(definition: str) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    from vesalius.measure.surface import surface_table

    def every(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        table = surface_table(first, second, SPACING, tolerances=TOLERANCES, definition=definition)
        return {name: float(np.mean(column)) for name, column in table.items() if name != "label"}

    return every


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM`, the peak, of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Let the peak of the resident set begin anew (Linux, proc(5): clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def child(program: str, task: str, masks: str, repeats: int) -> None:
    """One program on one task in this process; the answer is a line of JSON."""
    warnings.filterwarnings("ignore")
    with np.load(masks) as held:
        first, second = held["first"], held["second"]
    if task == "labels":
        mine = program.startswith("vesalius")
        work = tables(program.split(", ")[1]) if mine else over_labels(PROGRAMS[program]())
    else:
        work = PROGRAMS[program]()
    small = (first[:40, :40, :40] > 0) | (np.indices((40, 40, 40)).sum(0) < 30)
    work(small.astype(first.dtype), np.roll(small, 1, 0).astype(first.dtype))
    seconds = []
    forget_peak()
    before = resident("VmRSS")
    for turn in range(repeats + 1):
        begin = time.perf_counter()
        values = work(first, second)
        if turn:
            seconds.append(time.perf_counter() - begin)
    peak = resident("VmHWM")
    print(json.dumps({
        "seconds": statistics.median(seconds or [0.0]), "repeats": len(seconds), "extra_mib": (peak - before) / 2**20,
        "values": {name: values[name] for name in NAMES if name in values},
    }))  # fmt: skip


def measure(task: str, quick: bool, repeats: int) -> dict[str, dict]:
    first, second = pair_of_masks(quick) if task == "pair" else pair_of_maps(quick)
    print(f"{task}: {' x '.join(map(str, first.shape))}, {int((first > 0).sum())} and {int((second > 0).sum())} voxels")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.npz"
        np.savez(path, first=first, second=second)
        del first, second
        for program in PROGRAMS:
            times = repeats if program.startswith("vesalius") or quick else max(1, min(repeats, 3))
            command = [sys.executable, __file__, "--child", program, task, str(path)]
            if program.startswith("vesalius"):  # compile, so that the compiler's memory is not counted either
                subprocess.run([*command, "0"], capture_output=True, check=False)
            command.append(str(times))
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"  {program}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
                continue
            results[program] = json.loads(done.stdout.splitlines()[-1])
    show(results)
    return results


def show(results: dict[str, dict]) -> None:
    """Seconds, ratio to ours, memory, and values rounded to 4 decimals."""
    print(f"  {'':20} {'s':>8} {'ratio':>6} {'MiB':>6}  {' '.join(f'{name:>21}' for name in NAMES)}")
    for program, one in results.items():
        mine = results.get(LIKE.get(program, "vesalius, voxels"))
        ratio = "" if program.startswith("vesalius") or not mine else f"{one['seconds'] / mine['seconds']:.1f}"
        values = " ".join(f"{one['values'][name]:21.4f}" if name in one["values"] else f"{'':21}" for name in NAMES)
        print(f"  {program:20} {one['seconds']:8.3f} {ratio:>6} {one['extra_mib']:6.0f}  {values}")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes; nothing is written")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of ours; at most 3 of the slow programs")
    parser.add_argument("--tasks", nargs="+", choices=("pair", "labels"), default=["pair", "labels"])
    parser.add_argument("--out", type=Path, default=HOME / "bench" / "surface.json")
    args = parser.parse_args()
    results = {task: measure(task, args.quick, args.repeats) for task in args.tasks}
    if not args.quick:
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps({"spacing": SPACING, "cores": os.cpu_count(), **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
