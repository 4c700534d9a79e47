"""Shape of 100 labels against SimpleITK, scikit-image and MIRP: ``python benchmarks/shape.py [--quick] [--only NAME]``.

Each library measures the same label map, each run in a process of its own (peak memory), several runs, medians. Run it
with an interpreter that has all four. Loading the map and importing are not timed; ours is also timed at its first
call. Nothing else should run on the machine meanwhile. Results go to bench/shape.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SPACING = (1.0, 0.7, 0.7)
SHAPES = {"full": ((400, 512, 512), (5, 4, 5)), "quick": ((80, 128, 128), (2, 2, 2))}
# MIRP takes one mask at a time: of many labels, this many are measured and the time is scaled up.
MIRP_LABELS = 5
# Quantities with one definition; decimals to which the values are compared.
SAME = {"voxel_volume": 3, "equivalent_diameter": 4, "major_moment": 4, "least_moment": 4, "euler_number": 0}
MESH = {"volume": 1, "surface_area": 1, "maximum_diameter": 3, "major_axis_length": 3, "sphericity": 4}
NAMES = ("ours", "ours-bounds", "simpleitk", "simpleitk-all", "skimage", "mirp")


def lumps(size: str) -> np.ndarray:
    """Lumpy ellipsoids, one to a cell of a lattice."""
    shape, counts = SHAPES[size]
    random = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    cell = np.array(shape) // counts
    for label, place in enumerate(np.ndindex(*counts), start=1):
        room = tuple(slice(int(a), int(a + b)) for a, b in zip(place * cell, cell, strict=True))
        grid = np.moveaxis(np.indices(cell), 0, -1) - cell / 2 + random.uniform(-1, 1, 3)
        turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
        radii = cell.min() / 2 * random.uniform(0.45, 0.85, 3)
        away = np.linalg.norm((grid * SPACING) @ turn / radii, axis=-1)
        wave = sum(np.sin(grid @ random.normal(scale=2.2 / radii.mean(), size=3)) for _ in range(4))
        labels[room][away < 1 + 0.05 * wave] = label
    return labels


Answer = dict[str, list[float]]


def ours(labels: np.ndarray, *, bounds: bool) -> Answer:
    from vesalius.measure.shape import shape_table

    return {name: column.tolist() for name, column in shape_table(labels, SPACING, bounds=bounds).items()}


def simpleitk(labels: np.ndarray, *, everything: bool) -> Answer:
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(SPACING[::-1])
    found = sitk.LabelShapeStatisticsImageFilter()
    if everything:
        found.ComputeFeretDiameterOn()
        found.ComputeOrientedBoundingBoxOn()
    found.Execute(image)
    names = found.GetLabels()
    out = {
        "voxel_volume": [found.GetPhysicalSize(k) for k in names],
        "equivalent_diameter": [2 * found.GetEquivalentSphericalRadius(k) for k in names],
        "least_moment": [found.GetPrincipalMoments(k)[0] for k in names],
        "major_moment": [found.GetPrincipalMoments(k)[2] for k in names],
        "perimeter (Crofton)": [found.GetPerimeter(k) for k in names],
    }
    if everything:
        out["feret (voxel centres)"] = [found.GetFeretDiameter(k) for k in names]
    return out


def skimage(labels: np.ndarray) -> Answer:
    from skimage import measure

    out: Answer = {}
    for one in measure.regionprops(labels, spacing=SPACING):
        values = one.inertia_tensor_eigvals
        mesh = measure.marching_cubes(np.pad(one.image, 1).astype(np.float32), 0.5, spacing=SPACING)
        row = {
            "voxel_volume": one.area,
            "equivalent_diameter": one.equivalent_diameter_area,
            # Principal moments from those of inertia.
            "major_moment": sum(values) / 2 - values[2],
            "least_moment": sum(values) / 2 - values[0],
            "euler_number": one.euler_number,
            "surface_area": measure.mesh_surface_area(*mesh[:2]),
            "solidity (voxels)": one.solidity,
            "centroid_z": one.centroid[0],
        }
        for name, value in row.items():
            out.setdefault(name, []).append(float(value))
    return out


def mirp(labels: np.ndarray, chosen: list[int]) -> Answer:
    from mirp import extract_features

    tags = {
        "volume": "morph_volume",
        "surface_area": "morph_area_mesh",
        "maximum_diameter": "morph_diam",
        "major_axis_length": "morph_pca_maj_axis",
        "sphericity": "morph_sphericity",
        "voxel_volume": "morph_vol_approx",
    }
    out: Answer = {name: [] for name in tags}
    with tempfile.TemporaryDirectory() as folder:
        import SimpleITK as sitk  # noqa: N813

        for label in chosen:
            for name, values in (("image", np.ones(labels.shape, np.float32)), ("mask", labels == label)):
                image = sitk.GetImageFromArray(values.astype(np.float32 if name == "image" else np.uint8))
                image.SetSpacing(SPACING[::-1])
                sitk.WriteImage(image, f"{folder}/{name}.nii")
            table = extract_features(
                image=f"{folder}/image.nii", mask=f"{folder}/mask.nii", base_feature_families=["morphological"]
            )[0]
            for name, tag in tags.items():
                out[name].append(float(table[next(c for c in table.columns if c.startswith(tag))].iloc[0]))
    return out


def work(name: str, path: Path, chosen: list[int]) -> dict[str, object]:
    labels = np.load(path)
    tasks: dict[str, Callable[[], Answer]] = {
        "ours": lambda: ours(labels, bounds=False),
        "ours-bounds": lambda: ours(labels, bounds=True),
        "simpleitk": lambda: simpleitk(labels, everything=False),
        "simpleitk-all": lambda: simpleitk(labels, everything=True),
        "skimage": lambda: skimage(labels),
        "mirp": lambda: mirp(labels, chosen),
    }
    quick = name.startswith("ours") or name == "simpleitk"
    times = []
    for _ in range(4 if quick else 1):
        start = time.perf_counter()
        values = tasks[name]()
        times.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    later = times[1:] or times
    return {"first_s": times[0], "seconds": statistics.median(later), "peak_mb": memory - labels.nbytes / 2**20,
            "values": values}  # fmt: skip


def compare(found: dict[str, dict], labels: int, chosen: list[int]) -> dict[str, dict[str, float]]:
    """Share of labels whose values agree with ours after rounding (`SAME`), or the largest relative gap (`MESH`)."""
    mine, out = found["ours"]["values"], {}
    for name, one in found.items():
        if name.startswith("ours"):
            continue
        rows = [k - 1 for k in chosen] if name == "mirp" else range(labels)
        for key, theirs in one["values"].items():
            if key not in mine:
                continue
            own, their = np.array([mine[key][k] for k in rows]), np.array(theirs)
            gap = float(np.max(np.abs(own - their) / np.maximum(np.abs(own), 1e-12)))
            note = {"largest_relative_gap": gap}
            if key in SAME or key in MESH:
                decimals = {**SAME, **MESH}[key]
                note |= {"decimals": decimals, "equal": float(np.mean(np.abs(own - their) <= 0.5 * 10.0**-decimals))}
            out.setdefault(key, {})[name] = note
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 small labels")
    parser.add_argument("--only", choices=NAMES, action="append")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/shape.json"))
    parser.add_argument("--work", nargs=2, metavar=("NAME", "MAP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = "quick" if args.quick else "full"
    count = int(np.prod(SHAPES[size][1]))
    chosen = np.unique(np.linspace(1, count, min(MIRP_LABELS, count)).astype(int)).tolist()
    if args.work:
        print("RESULT " + json.dumps(work(args.work[0], Path(args.work[1]), chosen)))
        return
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.npy"
        np.save(path, lumps(size))
        for name in NAMES:
            if args.only and name not in args.only and name != "ours":
                continue
            runs = []
            for _ in range(args.runs if name not in ("mirp", "skimage") else 1):
                command = [sys.executable, __file__, "--work", name, str(path), *(["--quick"] if args.quick else [])]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{name}: {done.stderr[-2000:]}")
                runs.append(json.loads(done.stdout.split("RESULT ")[-1]))
            found[name] = {k: statistics.median(run[k] for run in runs) for k in ("first_s", "seconds", "peak_mb")}
            found[name]["values"] = runs[0]["values"]
            if name == "mirp" and len(chosen) < count:
                found[name]["seconds"] *= count / len(chosen)
                found[name]["note"] = f"{len(chosen)} labels measured, time times {count / len(chosen):g}"
            line = {k: round(v, 3) for k, v in found[name].items() if isinstance(v, float)}
            print(f"{name:14} {line} {found[name].get('note', '')}", flush=True)
    agreement = compare(found, count, chosen)
    for key, notes in agreement.items():
        print(key, {name: {k: float(f"{v:.3g}") for k, v in note.items()} for name, note in notes.items()})
    times = {name: {k: v for k, v in one.items() if k != "values"} for name, one in found.items()}
    result = {"shape": SHAPES[size][0], "labels": count, "spacing": SPACING, "times": times, "agreement": agreement}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
