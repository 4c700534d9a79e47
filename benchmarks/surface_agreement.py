"""Surface metrics of several programs on shapes with known answers: ``python benchmarks/surface_agreement.py``.

Run it with the interpreter of the peers' environment (`benchmarks/peers.txt`, which must hold vesalius as well). Writes
the tables of `docs/surface-metrics.md` between its markers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.integrate import quad

PAGE = Path(__file__).resolve().parents[1] / "docs" / "surface-metrics.md"
BEGIN, END = "<!-- agreement: begin -->", "<!-- agreement: end -->"
QUANTITIES = {
    "HD": "hausdorff_distance",
    "HD95": "hausdorff_distance_95",
    "ASSD": "assd",
    "NSD 1 mm": "surface_dice_at_1",
}


@dataclass(frozen=True)
class Case:
    """Two masks and what is known of their surfaces without a grid."""

    name: str
    first: np.ndarray
    second: np.ndarray
    spacing: tuple[float, ...]
    known: dict[str, float]


def ball(side: int, radius: float, spacing: tuple[float, ...], centre: tuple[float, ...] | None = None) -> np.ndarray:
    """Voxels whose centre lies in a ball (disc) around the middle of the array."""
    shape = [round(side / step) + 1 for step in spacing]
    square: np.ndarray | float = 0.0
    for axis, (length, step) in enumerate(zip(shape, spacing, strict=True)):
        line = (np.arange(length) - (length - 1) / 2) * step - (centre[axis] if centre else 0.0)
        square = square + (line**2).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return np.asarray(square <= radius**2)


def box(side: int, low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((side,) * len(low), dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def shifted_balls(radius: float, shift: float) -> dict[str, float]:
    """A point of a sphere at height u (in radii) is |root(R² + s² - 2 R s u) - R| from the same sphere, moved."""

    def away(u: float) -> float:
        return abs(float(np.sqrt(radius**2 + shift**2 - 2 * radius * shift * u)) - radius)

    turn = shift / (2 * radius)
    mean = (quad(away, -1, turn)[0] + quad(away, turn, 1)[0]) / 2
    heights = np.linspace(-1, 1, 2_000_001)
    near = np.abs(np.sqrt(radius**2 + shift**2 - 2 * radius * shift * heights) - radius)
    return {"HD": shift, "HD95": float(np.percentile(near, 95)), "ASSD": mean, "NSD 1 mm": float((near <= 1).mean())}


def cases() -> list[Case]:
    one, thick, flat = (1.0, 1.0, 1.0), (2.5, 0.8, 0.8), (1.0, 1.0)
    apart = {"HD": 4.0, "HD95": 4.0, "ASSD": 4.0, "NSD 1 mm": 0.0}
    full = ball(30, 12, one)
    return [
        Case("concentric spheres, 20 and 16 mm", ball(46, 20, one), ball(46, 16, one), one, apart),
        Case("the same, voxels 2.5 x 0.8 x 0.8 mm", ball(46, 20, thick), ball(46, 16, thick), thick, apart),
        Case("concentric discs (2-D), 20 and 16 mm", ball(46, 20, flat), ball(46, 16, flat), flat, apart),
        Case(
            "sphere of 20 mm moved by 3 mm",
            ball(50, 20, one), ball(50, 20, one, (3.0, 0, 0)), one, shifted_balls(20, 3),
        ),
        Case(
            "sphere of 20 mm moved by 2 mm, voxels 2.5 x 0.8 x 0.8 mm",
            ball(50, 20, thick), ball(50, 20, thick, (0, 2.0, 0)), thick, shifted_balls(20, 2),
        ),
        Case("cube moved by 3 mm", box(30, (8,) * 3, (20,) * 3), box(30, (8, 8, 11), (20, 20, 23)), one, {"HD": 3.0}),
        Case(
            "cube grown by 2 mm at all sides",
            box(30, (8,) * 3, (20,) * 3), box(30, (6,) * 3, (22,) * 3), one, {"HD": 2 * 3**0.5},
        ),
        Case(
            "plates one voxel thick, 4 mm apart",
            box(40, (10, 5, 5), (11, 35, 35)), box(40, (14, 5, 5), (15, 35, 35)), one, {"HD": 4.0},
        ),
        Case(
            "blocks that touch the border, one 3 mm longer",
            box(20, (0, 0, 0), (10, 20, 20)), box(20, (0, 0, 0), (13, 20, 20)), one, {"HD": 3.0},
        ),
        Case("voxels 5 mm apart", box(12, (3, 5, 5), (4, 6, 6)), box(12, (8, 5, 5), (9, 6, 6)), one, {"HD": 5.0}),
        Case(
            "sphere of 12 mm, the second with a hole of 4 mm",
            full, full & ~ball(30, 4, one), one, {"HD": 8.0},
        ),
        Case("second mask empty", full, np.zeros_like(full), one, {}),
        Case("both masks empty", np.zeros_like(full), np.zeros_like(full), one, {}),
    ]  # fmt: skip


# --- Programs: each returns what it can ------------------------------------------------------------------------------


def ours(definition: str) -> Callable[[Case], dict[str, float]]:
    from vesalius.measure.surface import surface_distances

    def work(case: Case) -> dict[str, float]:
        found = surface_distances(case.first, case.second, case.spacing, tolerances=(1.0,), definition=definition)
        return {short: found[name] for short, name in QUANTITIES.items()}

    return work


def monai(case: Case) -> dict[str, float]:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    one, two = (torch.from_numpy(mask)[None, None] for mask in (case.first, case.second))
    options = {"include_background": True, "spacing": case.spacing}
    return {
        "HD": float(compute_hausdorff_distance(one, two, **options)),
        "HD95": float(compute_hausdorff_distance(one, two, percentile=95, **options)),
        "ASSD": float(compute_average_surface_distance(one, two, symmetric=True, **options)),
        "NSD 1 mm": float(compute_surface_dice(one, two, [1.0], **options)),
    }


def deepmind(case: Case) -> dict[str, float]:
    from surface_distance import metrics

    found = metrics.compute_surface_distances(case.first, case.second, case.spacing)
    sums = [
        ((found[f"distances_{way}"] * found[f"surfel_areas_{side}"]).sum(), found[f"surfel_areas_{side}"].sum())
        for way, side in (("gt_to_pred", "gt"), ("pred_to_gt", "pred"))
    ]
    return {
        "HD": metrics.compute_robust_hausdorff(found, 100),
        "HD95": metrics.compute_robust_hausdorff(found, 95),
        "ASSD": (sums[0][0] + sums[1][0]) / (sums[0][1] + sums[1][1]),
        "NSD 1 mm": metrics.compute_surface_dice_at_tolerance(found, 1.0),
    }


def medpy(case: Case) -> dict[str, float]:
    from medpy.metric.binary import assd, hd, hd95

    pair = (case.first, case.second, case.spacing)
    return {"HD": hd(*pair), "HD95": hd95(*pair), "ASSD": assd(*pair)}


def simpleitk(case: Case) -> dict[str, float]:
    import SimpleITK as sitk  # noqa: N813 - as everyone writes it

    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (case.first, case.second)]
    for image in images:
        image.SetSpacing(case.spacing[::-1])
    judge = sitk.HausdorffDistanceImageFilter()
    judge.Execute(*images)
    return {"HD": judge.GetHausdorffDistance()}


PROGRAMS: dict[str, Callable[[Case], dict[str, float]]] = {
    "elements": ours("elements"),
    "voxels": ours("voxels"),
    "mesh": ours("mesh"),
    "MONAI": monai,
    "surface-distance": deepmind,
    "MedPy": medpy,
    "SimpleITK": simpleitk,
}


def table() -> list[str]:
    """Markdown: a row for each case and quantity."""
    lines = [
        f"| | | known | {' | '.join(PROGRAMS)} |",
        f"|---|---|---|{'---|' * len(PROGRAMS)}",
    ]
    for case in cases():
        found = {name: attempt(work, case) for name, work in PROGRAMS.items()}
        for number, short in enumerate(QUANTITIES):
            known = f"{case.known[short]:.3f}" if short in case.known else ""
            cells = [found[name] if isinstance(found[name], str) else shown(found[name], short) for name in PROGRAMS]
            lines.append(f"| {case.name if number == 0 else ''} | {short} | {known} | {' | '.join(cells)} |")
    return lines


def attempt(work: Callable[[Case], dict[str, float]], case: Case) -> dict[str, float] | str:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return work(case)
    except Exception as trouble:  # what a program does with an empty mask is part of the table
        return f"error ({type(trouble).__name__})"


def shown(found: dict[str, float], short: str) -> str:
    return f"{found[short]:.3f}" if short in found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("monai", "surface-distance", "medpy", "SimpleITK")
    )
    made = [f"Made by `python benchmarks/surface_agreement.py` with {versions}.", "", *table()]
    text = args.page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    args.page.write_text("\n".join([before + BEGIN, *made, END + after]), encoding="utf-8")
    print("\n".join(made))


if __name__ == "__main__":
    main()
