"""From a folder, a table or one file to a manifest: which layout is this, and what does it say?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from vesalius.core.errors import DataError, FileError, UsageError
from vesalius.core.progress import Progress, Silent
from vesalius.data import layouts_annotations as boxes
from vesalius.data import layouts_arrays as arrays
from vesalius.data import layouts_dicom as dicom
from vesalius.data import layouts_folders as folders
from vesalius.data import layouts_json as datasets
from vesalius.data import layouts_masks as masks
from vesalius.data import layouts_table as tables
from vesalius.data.found import Ask, Found, collect_labels, patients_by_pattern, some
from vesalius.data.listing import KIND_OF, Listing, list_files, split_suffix, stem_of
from vesalius.data.manifest import TASKS, Manifest, find_problems
from vesalius.data.naming import nearest
from vesalius.data.problem import Problem

Reader = Callable[[Listing, Ask], Found | None]

# In the order in which they are tried: what somebody wrote on purpose first, what folders merely suggest last.
LAYOUTS: Mapping[str, Reader] = {
    "manifest": tables.manifest_in,
    "nnunet": datasets.nnunet,
    "decathlon": datasets.decathlon,
    "coco": datasets.coco,
    "voc": boxes.voc,
    "yolo": boxes.yolo,
    "brats": masks.brats,
    "page-stacks": masks.page_stacks,
    "dicom": dicom.dicom_tree,
    "table": tables.table_in,
    "medmnist": arrays.arrays_in,
    "paired-folders": folders.paired_folders,
    "structure-masks": masks.structure_files,
    "class-folders": folders.class_folders,
    "images": folders.images,
}
# Readers that are stricter or bolder when a person named the layout.
_NAMED: Mapping[str, Reader] = {"class-folders": partial(folders.class_folders, sure=True)}
_MARKS = ("manifest.csv", "dataset.json", "data.yaml", "DICOMDIR")


def discover(
    root: str | Path,
    *,
    task: str | None = None,
    layout: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    patient_pattern: str | None = None,
    split_column: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Read whatever `root` is as a manifest.

    Parameters
    ----------
    root
        A folder in one of `LAYOUTS`, a CSV, TSV or Parquet table, an ``.npz`` of MedMNIST, a ``dataset.json``, a COCO
        JSON file, or a single image.
    task
        ``classify``, ``segment``, ``detect``, ``video`` or ``unlabelled`` when the data could answer several.
    layout
        A name of `LAYOUTS` when the guess was wrong; the notes of the manifest say what was guessed and why.
    label_column, patient_column, split_column
        Columns of the table; several label columns of 0 and 1 are joined by commas.
    patient_pattern
        Regular expression whose first group (or group ``patient``) is the patient in each path.

    Raises
    ------
    UsageError
        If the path or an option is wrong, or the layout is ambiguous (the message names the choices).
    DataError
        If there is nothing to read, or what is there contradicts itself.
    """
    root = Path(root).expanduser()
    if task is not None and task not in TASKS:
        raise UsageError(f"task {task!r} is unknown{nearest(task, TASKS)}; choose one of {', '.join(TASKS)}")
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is unknown{nearest(layout, LAYOUTS)}; choose one of {', '.join(LAYOUTS)}")
    if not root.exists():
        raise UsageError(f"{root}: there is no such file or folder; check the path")
    ask = Ask(task, label_column, patient_column, patient_pattern, split_column, progress or Silent())
    if root.is_dir():
        listing = list_files(root)
        name, found = _read_folder(listing, ask, layout)
        if name in ("manifest", "table"):
            found = masks.settled_tables(found, listing)
        found = found.noting(*_empty_files(listing))
    else:
        kept = _kept_manifest(root)
        if kept is not None:
            return kept
        name, found = _read_file(root, ask)
    if (label_column or patient_column or split_column) and name not in ("manifest", "table", "dicom"):
        option = "--label-column" if label_column else "--patient-column" if patient_column else "--split-column"
        raise UsageError(f"{root}: {option} needs a table, but this was read as {name}; give the CSV file itself")
    return _finish(found, found.root or (root if root.is_dir() else root.parent), name, ask)


def _read_folder(listing: Listing, ask: Ask, layout: str | None) -> tuple[str, Found]:
    if layout is not None:
        found = (_NAMED.get(layout) or LAYOUTS[layout])(listing, ask)
        if found is None:
            raise DataError(
                f"{listing.root}: this is not layout {layout} (found {listing.summary()}); leave --layout out "
                "to see what it is read as"
            )
        return layout, found
    _refuse_shelf(listing)
    for name, read in LAYOUTS.items():
        found = read(listing, ask)
        if found is not None:
            return name, found
    if listing.empty:
        raise DataError(
            f"{listing.root}: all {len(listing.empty)} images are empty files, first {listing.empty[0]}; copy "
            "them again"
        )
    raise DataError(
        f"{listing.root}: no images were found (there is {listing.summary()}); expected images, videos, DICOM "
        "files or a MedMNIST .npz; give the folder that holds them"
    )


def _refuse_shelf(listing: Listing) -> None:
    """A folder of data sets is not a data set."""
    marked = {path.split("/")[0] for path in listing.known if path.count("/") == 1 and path.endswith(_MARKS)}
    marked |= {path.split("/")[0] for path in listing.of("arrays") if path.count("/") == 1}
    if len(marked) > 1 and not any(path in listing.known for path in _MARKS):
        raise UsageError(
            f"{listing.root}: this folder holds several data sets ({', '.join(sorted(marked)[:5])}); give one of "
            f"them, for example {listing.root / min(marked)}"
        )


def _kept_manifest(path: Path) -> Manifest | None:
    """A manifest that Vesalius wrote as Parquet, with everything it knew."""
    if path.suffix.lower() != ".parquet":
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vesalius.data.manifest import read_facts

    try:
        facts = read_facts(pq.read_schema(path).metadata)
    except (pa.ArrowException, OSError):
        return None  # reading it as a table says what is wrong with it
    return None if facts is None else Manifest.from_parquet(path)


def _read_file(path: Path, ask: Ask) -> tuple[str, Found]:
    kind = KIND_OF.get(split_suffix(path.name)[1], "")
    if path.stat().st_size == 0:
        raise FileError(path, found="the file is empty", expected="an image, a table or a data set", do="copy it again")
    if kind == "table":
        listing = list_files(path.parent)
        found = dicom.dicom_tree(listing, ask, table=path.name)
        if found is not None:
            return "dicom", found
        found = tables.read_rows(path, listing, ask, reason=f"the table {path.name} was given")
        return "table", masks.settled_tables(found, listing)
    if kind == "arrays":
        return "medmnist", arrays.read_arrays(path, ask)
    if kind == "json":
        # COCO keeps its JSON in a folder beside the images.
        root = path.parent.parent if path.parent.name.casefold() == "annotations" else path.parent
        name, found = datasets.read_json(path, list_files(root), ask)
        return name, replace(found, root=root)
    return "images", _single(path, kind, ask)


def _single(path: Path, kind: str, ask: Ask) -> Found:
    from vesalius.io.sniff import Kind, sniff

    if kind not in ("image", "video", "dicom"):
        content = sniff(path)
        if content in (Kind.TEXT, Kind.UNKNOWN, Kind.ZIP, Kind.GZIP, Kind.HDF5):
            raise FileError(
                path,
                found=f"content of kind {content}",
                expected="an image, a video, a DICOM file, a table (.csv, .tsv, .parquet), .npz or .json",
                do="give the folder or the file that lists the images",
            )
    frame = pd.DataFrame({"path": [path.name], "label": [""]})
    return Found(frame, task=ask.require_task("images", "unlabelled"), reason="a single file was given")


def _empty_files(listing: Listing) -> list[Problem]:
    return some(listing.empty, "files hold no byte", "they are left out; copy them again")


def _finish(found: Found, root: Path, layout: str, ask: Ask) -> Manifest:
    """Case ids, patients and classes, the same for every layout."""
    frame = found.frame.reset_index(drop=True).copy()
    if "role" not in frame:
        frame["role"] = "image"
    frame["role"] = frame["role"].replace("", "image")
    if "case_id" not in frame or not (frame["case_id"] != "").all():
        frame["case_id"] = _case_ids(frame)
    frame, problems = _leave_out_unlabelled(frame, found, root)
    frame, source, more = _patients(frame, found, root, ask)
    problems += more
    labels = found.labels
    if labels is None and found.task in ("classify", "detect", "video"):
        labels, more = collect_labels(frame, multilabel=found.multilabel)
        problems += more
    task = found.task
    if labels is None and task in ("classify", "video"):
        names = [name for name in frame["label"].unique() if name]
        if ask.task == task:
            raise DataError(
                f"{root}: the only class is {names}; expected at least two to tell apart; add cases of another"
            )
        problems.append(
            Problem(
                "warning",
                "",
                f"the only class is {names[0]!r}, so there is nothing to tell apart; add cases of another class",
            )
        )
        task = "unlabelled"
    if ask.task == "unlabelled":
        frame, labels, task = frame[frame["role"] == "image"], None, "unlabelled"
    elif ask.task not in (None, task):
        raise UsageError(
            f"{root}: the data answer task {task}, not {ask.task}; leave --task out, or give data with the truth for it"
        )
    noted = (Problem("note", "", f"read as {layout}: {found.reason}"), *found.problems, *problems)
    manifest = Manifest(root, frame, layout, task, labels, source, found.split_source, found.published, noted)
    return manifest.with_problems(*find_problems(manifest))


def _case_ids(frame: pd.DataFrame) -> pd.Series:
    """Paths without suffix; where two differ in nothing else (a.png, a.jpg), all keep it."""
    stems = frame["path"].map(stem_of)
    twice = pd.DataFrame({"stem": stems, "role": frame["role"]}).duplicated(keep=False)
    return frame["path"].where(twice, stems)


def _leave_out_unlabelled(frame: pd.DataFrame, found: Found, root: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """Cases without a class teach nothing where classes exclude each other."""
    if found.task not in ("classify", "video") or found.multilabel:
        return frame, []
    empty = frame[frame["label"] == ""]
    if len(empty) == len(frame):
        raise DataError(
            f"{root}: none of {len(frame)} cases has a label; fill the column of labels or leave --task out"
        )
    return frame[frame["label"] != ""], some(
        empty["path"].tolist(), "cases have no label", "they are left out; fill the column of labels"
    )


def _patients(frame: pd.DataFrame, found: Found, root: Path, ask: Ask) -> tuple[pd.DataFrame, str, list[Problem]]:
    if ask.patient_pattern is not None:
        frame = frame.assign(patient_id=patients_by_pattern(frame["path"], ask.patient_pattern, root))
        return frame, "pattern", []
    if "patient_id" not in frame:
        return frame.assign(patient_id=frame["case_id"]), "none", []
    unknown = frame.loc[frame["patient_id"] == "", "path"].tolist()
    return (
        frame,
        found.patient_source,
        some(unknown, "cases have no patient id", "each counts as its own patient; fill the column of patients"),
    )
