"""`vesalius demo measure`: organs, vessels and cells whose truth is known from their construction, measured."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from vesalius.core.image import Image, Unit
from vesalius.core.progress import Progress
from vesalius.core.quantity import show_seconds
from vesalius.io.nifti_out import write_nifti
from vesalius.io.raster_out import write_png
from vesalius.phantoms.ct import make_ct
from vesalius.phantoms.phantom import Phantom
from vesalius.phantoms.smear import make_smear
from vesalius.phantoms.vessels import make_vessels
from vesalius.serve import measuring

SEED, CHESTS, SMEARS, TREES = 1543, 4, 6, 4
_PARTS = ("organs", "vessels", "cells")


def run(out: Path, progress: Progress, *, command: Sequence[str] | None) -> dict[str, Any]:
    """Make the cases, measure them, and say what came out beside what was put in."""
    start = time.monotonic()
    for name in (*_PARTS, "phantoms"):
        shutil.rmtree(out / name, ignore_errors=True)
    chests = _chests(out / "phantoms" / "organs")
    trees = _trees(out / "phantoms" / "vessels")
    smears = _smears(out / "phantoms" / "cells")
    ask: dict[str, Any] = {"progress": progress, "command": command or ["vesalius", "demo", "measure"]}
    done = {}
    for name, more in (
        ("organs", {"reference": out / "phantoms" / "organs" / "reader", "extras": ["relations"]}),
        ("vessels", {"kind": "vessels"}),
        ("cells", {"kind": "cells", "contours": ["geojson"], "extras": ["ripley"]}),
    ):
        folder = out / "phantoms" / name
        done[name] = measuring.measure(folder / "masks", image=folder / "images", out=out / name, **more, **ask)
    lines = [
        *_organ_lines(done["organs"], chests),
        *_vessel_lines(done["vessels"], trees),
        *_cell_lines(done["cells"], smears),
        f"done in {show_seconds(time.monotonic() - start)}",
        *(f"{name:<8} {one.page}" for name, one in done.items()),
    ]
    return {
        "out": str(out),
        "seconds": round(time.monotonic() - start, 1),
        "pages": {name: str(one.page) for name, one in done.items()},
        "lines": lines,
    }


def _chests(folder: Path) -> list[Phantom]:
    made = []
    for index in range(CHESTS):
        phantom = make_ct(seed=SEED, index=index, shape=(60, 128, 128), spacing_mm=(4.0, 3.0, 3.0))
        mask = np.asarray(phantom.mask, dtype=np.uint8)
        grid, name = phantom.case.image().grid, f"chest-{index}.nii.gz"
        # A second reader, who draws the lungs a voxel smaller.
        lung = phantom.structures.index("lung")
        reader = np.where((mask == lung) & ~ndimage.binary_erosion(mask == lung), 0, mask)
        for part, values in (("masks", mask), ("reader", reader.astype(np.uint8))):
            (folder / part).mkdir(parents=True, exist_ok=True)
            write_nifti(Image(grid=grid, pixels=values[None], unit=Unit.LABEL), folder / part / name)
        (folder / "images").mkdir(exist_ok=True)
        write_nifti(phantom.case.image(), folder / "images" / name)
        made.append(phantom)
    names = {str(value): name for value, name in enumerate(made[0].structures)}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}), encoding="utf-8")
    return made


def _trees(folder: Path) -> dict[str, Phantom]:
    made = {}
    for index in range(TREES):
        dims = 2 + index % 2
        phantom = make_vessels(seed=SEED, index=index, dims=dims, size=256 if dims == 2 else 128)
        name = f"{'fundus' if dims == 2 else 'angiography'}-{index}"
        image = phantom.case.image()
        for part in ("masks", "images"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        mask = Image(grid=image.grid, pixels=np.asarray(phantom.mask, np.uint8)[None], unit=Unit.LABEL)
        write_nifti(mask, folder / "masks" / f"{name}.nii.gz")
        write_nifti(image, folder / "images" / f"{name}.nii.gz")
        made[name] = phantom
    return made


def _smears(folder: Path) -> list[Phantom]:
    made = []
    for index in range(SMEARS):
        phantom = make_smear(seed=SEED, index=index)
        for part, pixels in (
            ("masks", np.asarray(phantom.layers["instances"], np.uint16)),
            ("images", phantom.case.image().pixels),
        ):
            (folder / part).mkdir(parents=True, exist_ok=True)
            write_png(folder / part / f"smear-{index}.png", pixels)
        made.append(phantom)
    return made


def _organ_lines(done: measuring.Measured, chests: Sequence[Phantom]) -> list[str]:
    table, compared = done.table("structures"), done.table("reference")
    lines = [f"{len(chests)} synthetic chests, {len(table)} structures; one reader draws the lungs a voxel smaller:"]
    for name in dict.fromkeys(table["name"]):
        mine, other = table[table["name"] == name], compared[compared["name"] == name]
        lines.append(
            f"  {name:<12} volume {mine['volume_mm3'].median() / 1000:8.1f} ml   sphericity "
            f"{mine['sphericity'].median():.3f}   Dice {other['dice'].median():.3f}   HD95 "
            f"{other['hausdorff_distance_95_mm'].median():.2f} mm"
        )
    return lines


def _vessel_lines(done: measuring.Measured, trees: dict[str, Phantom]) -> list[str]:
    lines = ["vessel trees, measured (true):"]
    table = done.table("vessels").set_index("case_id")
    for name, phantom in trees.items():
        row, truth = table.loc[name], phantom.truth
        scale = truth["length_mm"] / truth["length_px"]
        length = next(float(row[key]) / (1 if "mm" in key else 1 / scale) for key in row.index if "total_length" in key)
        lines.append(
            f"  {name:<15} length {length:6.1f} mm ({truth['length_mm']:.1f})   bifurcations "
            f"{int(row['bifurcations'])} ({truth['bifurcations']})"
        )
    return lines


def _cell_lines(done: measuring.Measured, smears: Sequence[Phantom]) -> list[str]:
    cells = done.table("cells")
    truth = [cell for smear in smears for cell in smear.truth["cells"]]
    whole = (cells["touches_border"] == 0).to_numpy()
    area = next(column for column in cells if column in ("area_px2", "area_mm2"))
    scale = 1.0 if area == "area_px2" else float("nan")
    mean = float(cells[area][whole].mean()) * scale
    true = float(np.mean([cell["area_px"] for cell, keep in zip(truth, whole, strict=True) if keep]))
    return [f"blood smears: {len(cells)} cells ({len(truth)}), mean area {mean:.1f} px² ({true:.1f})"]
