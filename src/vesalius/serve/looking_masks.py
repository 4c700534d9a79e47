"""What `vesalius inspect` says about masks: which structures there are, how large, and which masks cannot be used."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.core.progress import Progress
from vesalius.core.randomness import generator
from vesalius.data.manifest import Manifest
from vesalius.data.truth import open_case_image, open_truth, region_planes
from vesalius.report.measure_pictures import contour_picture
from vesalius.serve.segment_predicting import label_map


@dataclass(frozen=True, eq=False)
class _Mask:
    """Voxels of every structure of a case, the size of a voxel (mm³, mm² or 1) and its unit; objects of one kind."""

    sizes: NDArray[np.int64]
    step: float
    unit: str
    diameters: NDArray[np.float64]


def look_at_masks(manifest: Manifest, workers: int, progress: Progress) -> dict[str, Any]:
    """Every mask opened on the grid of its image.

    Returns
    -------
    ``structures``: by name the ``cases`` that have it and their ``size`` (5th, 50th and 95th percentile, in ``unit``);
    of single objects also their number and diameter. ``unusable``: by case the line that says why.
    """
    labels = manifest.labels
    if labels is None:
        return {"structures": {}, "unusable": {}}
    cases = manifest.cases["case_id"].tolist()
    unusable: dict[str, str] = {}
    found: list[_Mask] = []
    progress.start("masks", len(cases), "cases")
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="masks") as pool:
        for case, one in zip(cases, pool.map(lambda case: _looked(manifest, labels, case), cases), strict=True):
            progress.advance()
            if isinstance(one, str):
                unusable[str(case)] = one
            else:
                found.append(one)
    progress.stop()
    return {"structures": _summed(found, labels), "unusable": unusable}


def _looked(manifest: Manifest, labels: Labels, case: str) -> _Mask | str:
    try:
        image = open_case_image(manifest, case)
        truth = open_truth(manifest, case, image)
    except DataError as error:
        return " ".join(str(error).split())
    spacing, dims = image.grid.spacing_mm, image.grid.ndim
    step = 1.0 if spacing is None else float(np.prod(spacing))
    unit = "px" if spacing is None else "mm2" if dims == 2 else "ml"
    diameters = np.empty(0)
    if labels.instances:
        counts = np.bincount(truth.reshape(-1).astype(np.int64))[1:]
        counts = counts[counts > 0]
        sizes = np.array([counts.sum()])
        diameters = 2 * np.sqrt(counts / np.pi) if dims == 2 else np.cbrt(6 * counts / np.pi)
    elif labels.multilabel:
        sizes = region_planes(truth, labels).reshape(len(labels.structures), -1).sum(axis=1, dtype=np.int64)
    else:
        sizes = np.bincount(truth.reshape(-1).astype(np.int64), minlength=len(labels))[1 : len(labels)]
    return _Mask(sizes.astype(np.int64), step / 1000 if unit == "ml" else step, unit, diameters)


def _summed(found: list[_Mask], labels: Labels) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for number, name in enumerate(labels.structures):
        have = [one for one in found if one.sizes[number] > 0]
        entry: dict[str, Any] = {"cases": len(have)}
        # Sizes in mm and in pixels do not mix: those of the commoner unit are told.
        units = [one.unit for one in have]
        if units:
            unit = max(sorted(set(units)), key=units.count)
            sizes = [one.sizes[number] * one.step for one in have if one.unit == unit]
            entry |= {"unit": unit, "size": [float(v) for v in np.percentile(sizes, (5, 50, 95))]}
        if labels.instances and have:
            diameters = np.concatenate([one.diameters for one in have])
            counts = [len(one.diameters) for one in have]
            entry |= {
                "objects": int(sum(counts)),
                "objects_per_case": [float(v) for v in np.percentile(counts, (5, 50, 95))],
                "diameter_px": [float(v) for v in np.percentile(diameters, (5, 50, 95))],
            }
        out[name] = entry
    return out


def outlined_cases(manifest: Manifest, most: int, side: int) -> list[bytes]:
    """Pictures of cases drawn at random with the outlines of their masks; those that cannot be opened are left out."""
    labels = manifest.labels
    if labels is None:
        return []
    cases = manifest.cases["case_id"].tolist()
    pictures: list[bytes] = []
    for place in generator(0, "outlined").permutation(len(cases)):
        if len(pictures) == most:
            break
        try:
            image = open_case_image(manifest, cases[int(place)])
            truth = open_truth(manifest, cases[int(place)], image)
        except DataError:
            continue
        shown = label_map(region_planes(truth, labels) if labels.multilabel else truth, image.grid, labels)
        names = {} if labels.instances else dict(enumerate(labels.structures, 1))
        if labels.ignore is not None:
            shown = np.where(shown == labels.ignore, 0, shown)
        pictures.append(contour_picture(image, shown, names, side=side, kinds=labels.structures, legend=False))
    return pictures
