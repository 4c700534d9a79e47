"""Data sets with a dataset.json: Medical Segmentation Decathlon and nnU-Net raw folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vesalius.core.files import write_json
from vesalius.phantoms.cohort import Cohort, write_image, write_mask


def write_decathlon(cohort: Cohort, folder: Path) -> None:
    """``imagesTr``, ``labelsTr``, and test images without truth in ``imagesTs``; all ``.nii.gz``."""
    training: list[dict[str, str]] = []
    tests: list[str] = []
    for phantom, split in cohort:
        stem = phantom.case.case_id
        if split == "test":
            tests.append(f"./imagesTs/{write_image(phantom, folder / 'imagesTs', stem, suffix='.nii.gz').name}")
            continue
        image = write_image(phantom, folder / "imagesTr", stem, suffix=".nii.gz")
        mask = write_mask(phantom, folder / "labelsTr", stem, suffix=".nii.gz")
        training.append({"image": f"./imagesTr/{image.name}", "label": f"./labelsTr/{mask.name}"})
    described = {
        "name": f"Vesalius {cohort.kind} phantoms",
        "description": "synthetic",
        "licence": "CC0",
        "tensorImageSize": f"{cohort.first.case.image().grid.ndim}D",
        "modality": {"0": _modality(cohort)},
        "labels": {str(value): name for value, name in enumerate(cohort.first.structures)},
        "numTraining": len(training),
        "numTest": len(tests),
        "training": training,
        "test": tests,
    }
    write_json(folder / "dataset.json", described)


def write_nnunet(cohort: Cohort, folder: Path) -> None:
    """``imagesTr/CASE_0000`` with ``labelsTr/CASE``, the same with Ts for the split test; PNG or ``.nii.gz``."""
    count = 0
    for phantom, split in cohort:
        ending = "Ts" if split == "test" else "Tr"
        count += ending == "Tr"
        write_image(phantom, folder / f"images{ending}", f"{phantom.case.case_id}_0000")
        write_mask(phantom, folder / f"labels{ending}", phantom.case.case_id)
    described: dict[str, Any] = {
        "channel_names": {"0": _modality(cohort)},
        "labels": {name: value for value, name in enumerate(cohort.first.structures)},
        "numTraining": count,
        "file_ending": ".png" if cohort.first.case.image().grid.ndim == 2 else ".nii.gz",
    }
    write_json(folder / "dataset.json", described)


def _modality(cohort: Cohort) -> str:
    return str(cohort.first.case.image().meta.get("modality", "image"))
