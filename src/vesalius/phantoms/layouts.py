"""Cohorts of phantoms on disk, in every layout that `vesalius.data.discover` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.core.errors import UsageError
from vesalius.core.progress import Progress, Silent
from vesalius.io.array_out import write_npz
from vesalius.phantoms.cohort import SPLITS, Cohort, new_folder, write_image, write_mask, write_table
from vesalius.phantoms.layouts_boxes import write_coco, write_voc, write_yolo
from vesalius.phantoms.layouts_dicom import write_dicom
from vesalius.phantoms.layouts_masks import MASK_LAYOUTS, write_decathlon, write_nnunet

# MedMNIST files are always split; these are the parts if nobody says.
_MEDMNIST_SHARES = (0.7, 0.1, 0.2)


def write_tree(
    kind: str,
    folder: str | Path,
    *,
    layout: str,
    cases: int,
    seed: int,
    splits: Sequence[float] | None = None,
    labelled_by: str = "folders",
    dicomdir: bool = False,
    instances: bool = False,
    over: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Path:
    """Make phantoms and write them as a data set.

    Parameters
    ----------
    kind
        A name of `registry.PHANTOMS`.
    layout
        A name of `LAYOUTS` or of `layouts_masks.MASK_LAYOUTS`.
    splits
        Parts of the patients in train, val and test, e.g. ``(0.6, 0.2, 0.2)``; None for no splits. Decathlon keeps
        test images without truth, nnU-Net knows only training (with val) and test.
    labelled_by
        For ``dicom``: class ``"folders"``, or a ``"table"`` manifest.csv with series_uid, patient_id and label.
    dicomdir
        For ``dicom`` with a table: files under the names of a file-set, and a DICOMDIR.
    instances
        For ``paired-folders``: masks number single objects.
    over
        Write into a folder that holds files already.
    options
        Options of the phantom, such as ``size`` or ``images_per_patient``.

    Returns
    -------
    Path
        What `discover` is to be given: the folder, for ``medmnist`` the file in it.

    Raises
    ------
    UsageError
        For an unknown kind, layout or option, a kind that the layout cannot hold, or a folder that is not empty.
    """
    if layout not in _WRITERS:
        raise UsageError(f"layout {layout!r} is not written; choose one of {', '.join(_WRITERS)}")
    _refuse_strange_options(layout, labelled_by=labelled_by, dicomdir=dicomdir, instances=instances)
    shares = tuple(splits) if splits is not None else _MEDMNIST_SHARES if layout == "medmnist" else None
    cohort = Cohort(kind, cases, seed, shares, options, progress or Silent())
    cohort.check()  # refuses wrong names and options before anything is written
    if instances and "instances" not in cohort.first.layers:
        raise UsageError(f"phantom {kind} has no map of instances; use smear")
    folder = new_folder(folder, over=over)
    further: dict[str, dict[str, Any]] = {
        "dicom": {"labelled_by": labelled_by, "dicomdir": dicomdir},
        "paired-folders": {"instances": instances},
    }
    return _WRITERS[layout](cohort, folder, **further.get(layout, {})) or folder


def _refuse_strange_options(layout: str, *, labelled_by: str, dicomdir: bool, instances: bool) -> None:
    """Options that belong to one layout are refused for the others."""
    if (dicomdir or labelled_by != "folders") and layout != "dicom":
        raise UsageError(f"layout {layout} has no dicomdir and no labelled_by; these belong to dicom")
    if instances and layout != "paired-folders":
        raise UsageError(f"layout {layout} has no instances; this belongs to paired-folders")


def _class_folders(cohort: Cohort, folder: Path) -> None:
    """``[split/]class/patient_case.png``."""
    for phantom, split in cohort:
        stem = f"{phantom.case.patient_id}_{phantom.case.case_id}"
        write_image(phantom, folder / split / phantom.label, stem)


def _csv(cohort: Cohort, folder: Path) -> None:
    """``images/case.png`` and manifest.csv with path, label, patient_id, split (if there are any) and covariates."""
    rows = []
    for phantom, split in cohort:
        path = write_image(phantom, folder / "images", phantom.case.case_id)
        row = {"path": f"images/{path.name}", "label": phantom.label, "patient_id": phantom.case.patient_id}
        rows.append({**row, **({"split": split} if split else {}), **phantom.case.covariates})
    write_table(folder / "manifest.csv", rows)


def _medmnist(cohort: Cohort, folder: Path) -> Path:
    """One ``.npz`` of ``(N, Y, X)``, ``(N, Y, X, 3)`` or ``(N, Z, Y, X)`` uint8 per split, labels ``(N, 1)``."""
    if cohort.first.case.image().pixels.dtype != np.uint8:
        raise UsageError(
            f"medmnist files hold 8-bit images; {cohort.kind} has more; use chest, smear, vessels or solid"
        )
    images: dict[str, list[Any]] = {name: [] for name in SPLITS}
    labels: dict[str, list[int]] = {name: [] for name in SPLITS}
    for phantom, split in cohort:
        pixels = phantom.case.image().pixels
        images[split].append(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
        labels[split].append(phantom.classes.names.index(phantom.label))
    arrays = {}
    for name in SPLITS:
        if images[name]:
            arrays[f"{name}_images"] = np.stack(images[name])
            arrays[f"{name}_labels"] = np.array(labels[name], dtype=np.uint8)[:, None]
    return write_npz(folder / f"{cohort.kind}.npz", **arrays)


def _paired_folders(cohort: Cohort, folder: Path, *, instances: bool = False) -> None:
    """``images/[split/]case`` and ``labels/[split/]case`` with the same suffix."""
    for phantom, split in cohort:
        write_image(phantom, folder / "images" / split, phantom.case.case_id)
        write_mask(phantom, folder / "labels" / split, phantom.case.case_id, instances=instances)


LAYOUTS: Mapping[str, Callable[..., Path | None]] = {
    "class-folders": _class_folders,
    "csv": _csv,
    "medmnist": _medmnist,
    "decathlon": write_decathlon,
    "nnunet": write_nnunet,
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "dicom": write_dicom,
    "paired-folders": _paired_folders,
}
_WRITERS: Mapping[str, Callable[..., Path | None]] = {**LAYOUTS, **MASK_LAYOUTS}
