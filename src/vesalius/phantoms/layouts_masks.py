"""Data sets of masks: Decathlon and nnU-Net with their dataset.json, BraTS, stacks of pages, a file per structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from vesalius.core.errors import UsageError
from vesalius.core.files import atomic, write_json
from vesalius.core.image import Image, Unit
from vesalius.phantoms.cohort import Cohort, write_image, write_mask, write_pixels
from vesalius.phantoms.phantom import Phantom

# Gain and power of the made-up contrasts: four channels that differ, of which none is a real sequence.
_CONTRASTS = ((1.0, 1.0), (-1.0, 1.0), (1.0, 0.5), (-1.0, 2.0))


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


def write_brats(cohort: Cohort, folder: Path, *, year: int = 2020) -> None:
    """``CASE/CASE_flair.nii.gz`` with ``_t1``, ``_t1ce``, ``_t2`` and ``_seg``, or the names of 2023 with ``-t1n``.

    Structures 1, 2 and 3 and above stand for core, oedema and enhancing tumour: values 1, 2, 4, from 2023 on 1, 2, 3.
    """
    _volume(cohort, "brats")
    new = year >= 2023
    names = ("t2f", "t1n", "t1c", "t2w") if new else ("flair", "t1", "t1ce", "t2")
    for phantom, _ in cohort:
        case = f"BraTS-GLI-{phantom.case.case_id[-5:]}-000" if new else f"BraTS20_Training_{phantom.case.case_id[-5:]}"
        joint = "-" if new else "_"
        for channel, name in enumerate(names):
            image = _contrast(phantom, channel)
            write_pixels(image, folder / case, f"{case}{joint}{name}", suffix=".nii.gz")
        values = np.minimum(_mask_of(phantom), 3)
        if not new:
            values = np.where(values == 3, 4, values)
        _write_values(phantom, values.astype(np.uint8), folder / case, f"{case}{joint}seg")


def write_decathlon_channels(cohort: Cohort, folder: Path, *, channels: int = 4) -> None:
    """Decathlon with ``tensorImageSize`` 4D: the fourth axis of each image holds modalities."""
    import nibabel

    from vesalius.core.geometry import affine_to_nifti

    _volume(cohort, "decathlon-channels")
    training = []
    for phantom, _ in cohort:
        stem, grid = phantom.case.case_id, phantom.case.image().grid
        planes = [_contrast(phantom, channel).pixels[0] for channel in range(channels)]
        affine = np.eye(4) if grid.affine is None else affine_to_nifti(grid.affine)
        (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
        stored = nibabel.Nifti1Image(np.stack(planes).transpose(3, 2, 1, 0), affine)
        nibabel.save(stored, folder / "imagesTr" / f"{stem}.nii.gz")
        mask = write_mask(phantom, folder / "labelsTr", stem, suffix=".nii.gz")
        training.append({"image": f"./imagesTr/{stem}.nii.gz", "label": f"./labelsTr/{mask.name}"})
    described = {
        "name": f"Vesalius {cohort.kind} phantoms",
        "tensorImageSize": "4D",
        "modality": {str(channel): f"contrast {channel}" for channel in range(channels)},
        "labels": {str(value): name for value, name in enumerate(cohort.first.structures)},
        "numTraining": len(training),
        "training": training,
        "test": [],
    }
    write_json(folder / "dataset.json", described)


def write_pages(cohort: Cohort, folder: Path) -> None:
    """``train-volume.tif`` and ``train-labels.tif`` with one page per case, 0 and 255 as in the challenges of ISBI."""
    images, masks = [], []
    for phantom, _ in cohort:
        image = phantom.case.image()
        if image.grid.ndim != 2:
            raise UsageError(f"pages are pictures, but {cohort.kind} is a volume; use chest, smear or vessels")
        images.append(image.pixels[0])
        masks.append(np.where(_mask_of(phantom) > 0, 255, 0).astype(np.uint8))
    for name, pages in (("volume", images), ("labels", masks)):
        with atomic(folder / f"train-{name}.tif") as file:
            tifffile.imwrite(file, np.stack(pages), photometric="minisblack", metadata=None)


def write_structures(cohort: Cohort, folder: Path, *, nested: str = "case") -> None:
    """One mask file for each structure of each case.

    Parameters
    ----------
    nested
        ``case``: ``masks/CASE/heart.png``; ``structure``: ``masks/heart/CASE.png``; ``name``:
        ``masks/CASE_mask_heart.png``; ``folder``: ``CASE/ct.nii.gz`` with ``CASE/segmentations/heart.nii.gz``.
    """
    suffix = ".nii.gz" if cohort.first.case.image().grid.ndim == 3 else ".png"
    for phantom, _ in cohort:
        case, values = phantom.case.case_id, _mask_of(phantom)
        if nested == "folder":
            write_image(phantom, folder / case, "ct", suffix=suffix)
        else:
            write_image(phantom, folder / "images", case, suffix=suffix)
        for value, structure in enumerate(phantom.structures):
            if not value:
                continue
            name = structure.replace(" ", "_")
            place = {
                "case": (folder / "masks" / case, name),
                "structure": (folder / "masks" / name, case),
                "name": (folder / "masks", f"{case}_mask_{name}"),
                "folder": (folder / case / "segmentations", name),
            }[nested]
            _write_values(phantom, np.where(values == value, 255, 0).astype(np.uint8), *place)


def write_colours(cohort: Cohort, folder: Path) -> None:
    """``images`` and ``masks`` with one colour per structure, and a labels.json that names the colours."""
    from vesalius.core.labels import PALETTE

    names = cohort.first.structures
    shades = ("#000000", *PALETTE[: len(names) - 1])
    table = np.array([[int(shade[at : at + 2], 16) for at in (1, 3, 5)] for shade in shades], dtype=np.uint8)
    for phantom, _ in cohort:
        if phantom.case.image().grid.ndim != 2:
            raise UsageError(f"masks in colour are pictures, but {cohort.kind} is a volume; use chest or smear")
        write_image(phantom, folder / "images", phantom.case.case_id)
        colours = np.moveaxis(table[_mask_of(phantom)], -1, 0)
        image = Image(phantom.case.image().grid, colours, Unit.RED_GREEN_BLUE, ("red", "green", "blue"))
        write_pixels(image, folder / "masks", phantom.case.case_id)
    write_json(folder / "labels.json", dict(zip(names, shades, strict=True)))


def write_dicom_outlines(cohort: Cohort, folder: Path) -> None:
    """``CASE/IM0000.dcm``... with ``CASE/RTSTRUCT.dcm``, the outlines of the structures of each case."""
    from vesalius.io.rtstruct_out import Region, write_rtstruct
    from vesalius.measure.contours import contours
    from vesalius.phantoms.layouts_dicom import write_study

    _volume(cohort, "dicom-outlines")
    for phantom, _ in cohort:
        place = folder / phantom.case.case_id
        files, _series = write_study(phantom, place, cohort.seed)
        rings, grid = contours(_mask_of(phantom)), phantom.case.image().grid
        regions = []
        for value, name in enumerate(phantom.structures[1:], 1):
            mine = [at for at, ring in enumerate(rings) if ring.label == value]
            order = {at: number for number, at in enumerate(mine)}
            parents = [order.get(rings[at].parent, -1) for at in mine]
            regions.append(Region(name, [rings[at].to_patient(grid) for at in mine], parents))
        write_rtstruct(regions, place / "RTSTRUCT.dcm", source=files, seed=cohort.seed)


def _volume(cohort: Cohort, layout: str) -> None:
    if cohort.first.case.image().grid.ndim != 3:
        raise UsageError(f"layout {layout} holds volumes, but {cohort.kind} is a picture; use brain, ct or solid")


def _contrast(phantom: Phantom, channel: int) -> Image:
    """The image of a phantom under another made-up contrast, in the same type."""
    image = phantom.case.image()
    gain, power = _CONTRASTS[channel % len(_CONTRASTS)]
    pixels = image.pixels.astype(np.float64)
    low, high = float(pixels.min()), max(float(pixels.max()), float(pixels.min()) + 1)
    part = ((pixels - low) / (high - low)) ** power
    changed = low + (high - low) * (part if gain > 0 else 1 - part)
    return Image(image.grid, np.rint(changed).astype(image.pixels.dtype), image.unit, image.channels, (), image.meta)


def _mask_of(phantom: Phantom) -> NDArray[Any]:
    if phantom.mask is None:
        raise UsageError(f"phantom {phantom.case.case_id} has no map of labels")
    return phantom.mask


def _write_values(phantom: Phantom, values: NDArray[Any], folder: Path, stem: str) -> Path:
    return write_pixels(Image(phantom.case.image().grid, values[None], Unit.LABEL), folder, stem)


# Beside those of `layouts.LAYOUTS`: they hold masks and nothing to classify by.
MASK_LAYOUTS: Mapping[str, Callable[..., Path | None]] = {
    "brats": write_brats,
    "decathlon-channels": write_decathlon_channels,
    "page-stacks": write_pages,
    "structure-masks": write_structures,
    "coloured-masks": write_colours,
    "dicom-outlines": write_dicom_outlines,
}
