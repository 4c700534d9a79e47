"""DICOM trees of phantoms: patients, studies and series, with labels in folders or in a table."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

from vesalius.core.errors import UsageError
from vesalius.core.randomness import generator
from vesalius.io.dicom_out import uid_of, write_dicom_image, write_dicom_series, write_dicomdir
from vesalius.phantoms.cohort import Cohort, write_table
from vesalius.phantoms.phantom import Phantom

# What the writer knows; other kinds go out as the nearest of these.
_VOLUMES, _PICTURES = ("CT", "MR", "PT"), ("DX", "CR", "US", "OT")
_FIRST_DAY = datetime.date(2015, 1, 1)


def write_dicom(cohort: Cohort, folder: Path, *, labelled_by: str = "folders", dicomdir: bool = False) -> None:
    """One study with one series per case.

    Parameters
    ----------
    labelled_by
        ``"folders"``: ``[split/]class/patient/case/IM0000.dcm``. ``"table"``: ``[split/]patient/case/...`` and a
        manifest.csv with series_uid, patient_id, label, split (if there are any) and site.
    dicomdir
        Copy the files under the names of a file-set and write a DICOMDIR; labels stand in the table.

    Raises
    ------
    UsageError
        For another `labelled_by`, or a DICOMDIR with class folders: a file-set names its own folders.
    """
    if labelled_by not in ("folders", "table"):
        raise UsageError(f"labelled_by {labelled_by!r} is unknown; choose folders or table")
    if dicomdir and labelled_by == "folders":
        raise UsageError("a DICOMDIR has no class folders; choose labelled_by='table'")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as waiting:
        top = Path(waiting) if dicomdir else folder
        files: list[Path] = []
        for phantom, split in cohort:
            place = top / split / (phantom.label if labelled_by == "folders" else "")
            written, series = write_study(phantom, place / phantom.case.patient_id / phantom.case.case_id, cohort.seed)
            files += written
            row = {"series_uid": series, "patient_id": phantom.case.patient_id, "label": phantom.label}
            site = {"site": phantom.case.covariates.get("site", "")}
            rows.append({**row, **({"split": split} if split else {}), **site})
        if dicomdir:
            write_dicomdir(files, folder, name=f"VESALIUS {cohort.kind}".upper()[:16], seed=cohort.seed)
    if labelled_by == "table":
        write_table(folder / "manifest.csv", rows)


def write_study(phantom: Phantom, folder: Path, seed: int) -> tuple[list[Path], str]:
    """Write the image of a phantom as a study of its own; the files and the series UID.

    The date of the study is made up from `seed`, patient and case, so that the same call writes the same bytes.
    """
    case, image = phantom.case, phantom.case.image()
    draw = generator(seed, f"phantom:study:{case.patient_id}:{case.case_id}")
    day = _FIRST_DAY + datetime.timedelta(days=int(draw.integers(3000)))
    series = uid_of("phantom series", seed, case.case_id)
    known = _VOLUMES if image.grid.ndim == 3 else _PICTURES
    modality = str(image.meta.get("modality", ""))
    # A green channel or a test body has no object class of its own.
    modality = modality if modality in known else "MR" if image.grid.ndim == 3 else "OT"
    meta = {
        "patient_id": case.patient_id,
        "patient_name": f"Phantom^{case.patient_id}",
        "study_uid": uid_of("phantom study", seed, case.case_id),
        "series_uid": series,
        "study_date": day.strftime("%Y%m%d"),
        "study_time": f"{int(draw.integers(8, 18)):02d}{int(draw.integers(60)):02d}00",
        "study_id": case.case_id[-16:],
        "study_description": f"{case.case_id.rstrip('0123456789')} phantom",
        "age": case.covariates.get("age", ""),
        "sex": case.covariates.get("sex", ""),
        "institution": case.covariates.get("site", ""),
    }
    if image.grid.ndim == 3:
        return write_dicom_series(image, folder, modality=modality, meta=meta, seed=seed), series
    path = write_dicom_image(image, folder / "IM0000.dcm", modality=modality, meta=meta, seed=seed)
    return [path], series
