"""DICOM trees: one case per series, patients from the headers, labels from folders or from a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from vesalius.core.errors import DataError
from vesalius.core.progress import Progress
from vesalius.data.found import Ask, Found, some
from vesalius.data.layouts_dicom_masks import with_truth
from vesalius.data.layouts_folders import folder_classes
from vesalius.data.layouts_table import Reading, describe
from vesalius.data.listing import Listing, common_folder, stem_of
from vesalius.data.locate import locate
from vesalius.data.problem import Problem
from vesalius.data.tables import MANIFEST_NAMES, as_covariate, read_table
from vesalius.io.dicom_series import Series
from vesalius.io.open import list_series

_MOST_CLASSES = 20
_LEFT_OUT = "are left out"
_KEY_SHARE = 0.5
# Made from images, and truth rather than something to predict on.
_DERIVED = frozenset({"SEG", "RTDOSE", "RTSTRUCT", "PR", "KO", "SR"})


def is_dicom_tree(listing: Listing) -> bool:
    """Whether most of what can be looked at is DICOM."""
    dicom = len(listing.of("dicom"))
    return dicom > 0 and 2 * dicom >= len(listing.pixels)


def dicom_tree(listing: Listing, ask: Ask, table: str | None = None) -> Found | None:
    """Every series with pixels below a folder (or named by its DICOMDIR).

    Parameters
    ----------
    table
        The only table to look at for labels; None for those in the folder.

    Raises
    ------
    DataError
        If that table names neither series nor patients nor files.
    """
    if not is_dicom_tree(listing):
        return None
    heard = _Heard(ask.progress)
    series = list_series(listing.root, heard)
    images = [one for one in series if one.has_pixels and one.modality not in _DERIVED]
    if not images:
        return None
    here = f"{listing.root}/"
    problems = []
    for text in heard.warnings[:5]:
        place, _, reason = text.removeprefix(here).partition(": ")
        problems.append(
            Problem("warning", place, f"{reason}; it is left out") if reason else Problem("warning", "", text)
        )
    if len(heard.warnings) > 5:
        problems.append(Problem("warning", "", f"{len(heard.warnings) - 5} more DICOM files cannot be read"))
    chosen = {id(one) for one in images}
    silent = sorted({one.modality or "unknown" for one in series if id(one) not in chosen})
    if silent:
        text = f"{len(series) - len(images)} objects that are no images ({', '.join(silent)}) {_LEFT_OUT}"
        problems.append(Problem("note", "", text))
    problems += _other_files(listing)
    nobody = [str(one.files[0].relative_to(listing.root)) for one in images if not one.patient_id]
    consequence = "series of one study count as one patient, others as patients of their own"
    problems += some(nobody, "series have no patient id", consequence)
    # A segmentation in the same folder also counts when a folder is opened, so places are found for everything.
    pixels = [one for one in series if one.has_pixels]
    places = dict(zip(map(id, pixels), _places(pixels, listing.root), strict=True))
    frame = _rows(images, [places[id(one)] for one in images], listing.root)
    reason = f"{sum(len(one.files) for one in images)} DICOM files in {len(images)} series"
    found = Found(frame, task="unlabelled", reason=reason, patient_source="dicom", problems=tuple(problems))
    asked = ask.task == "segment"
    outlined = with_truth(found, series, images, listing.root, asked=True) if asked else None
    if outlined is not None:
        return _without_note_of_truths(outlined)
    labelled = _labelled_by_table(found, images, listing, ask, table)
    if labelled is None and table is not None:
        raise DataError(
            f"{listing.root / table}: no column names a DICOM series, study, patient or file below {listing.root}; "
            "expected a column patient_id, series_uid or path"
        )
    if labelled is None and ask.task is None:
        outlined = with_truth(found, series, images, listing.root, asked=False)
    return labelled or (_without_note_of_truths(outlined) if outlined is not None else _labelled_by_folders(found, ask))


def _without_note_of_truths(found: Found) -> Found:
    """Segmentations were left out as images, but are the truth."""
    kept = tuple(p for p in found.problems if not (p.text.endswith(_LEFT_OUT) and p.severity == "note"))
    return replace(found, problems=kept)


class _Heard:
    """A progress that also remembers warnings, so that they end in the manifest."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.warnings: list[str] = []
        self.start, self.advance, self.stop, self.say = progress.start, progress.advance, progress.stop, progress.say

    def warn(self, text: str) -> None:
        """Keep the text."""
        self.warnings.append(text)


def _other_files(listing: Listing) -> list[Problem]:
    return some(listing.of("image", "video"), "files lie among the DICOM files", "they are left out", "note")


def _rows(images: Sequence[Series], places: Sequence[str], root: Path) -> pd.DataFrame:
    rows = []
    for one, path in zip(images, places, strict=True):
        row = {
            "case_id": _case_id(path, root),
            "path": path,
            # Without a patient's id, a study still belongs to one person.
            "patient_id": one.patient_id or str(one.meta.get("study_uid") or ""),
            "label": "",
            "split": "",
            "modality": one.modality,
            "description": one.description,
        }
        for name in ("sex", "age", "manufacturer", "model", "body_part"):
            row[name] = str(one.meta.get(name) or "")
        row["age"] = _years(row["age"])
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame["age"] = as_covariate(frame["age"])
    empty = [str(name) for name in frame.columns[7:] if (frame[name].isna() | (frame[name] == "")).all()]
    return frame.drop(columns=empty)


def _case_id(path: str, root: Path) -> str:
    """The path without what says nothing: "." is the folder itself."""
    place, mark, key = path.partition("#")
    if place == ".":
        return key or root.resolve().name
    return stem_of(place) + mark + key


def _years(age: str) -> str:
    """An age string (PS3.5 6.2, e.g. 072Y, 018M) in years; anything else as it is."""
    per_year = {"Y": 1, "M": 12, "W": 52.1775, "D": 365.2425}
    if age[:-1].isdecimal() and age[-1] in per_year:
        return f"{int(age[:-1]) / per_year[age[-1]]:.4g}"
    return age


def _places(images: Sequence[Series], root: Path) -> list[str]:
    """What opens each series: its folder, its only file, or ``folder#key`` where a folder holds several."""
    files = [[file.relative_to(root).as_posix() for file in one.files] for one in images]
    # Of several readings of one path, the folder is right only for a series that has it to itself.
    owner: dict[str, set[int]] = {}
    for index, paths in enumerate(files):
        for path in paths:
            folder = path.rpartition("/")[0]
            while True:
                owner.setdefault(folder, set()).add(index)
                if not folder:
                    break
                folder = folder.rpartition("/")[0]
    places = []
    for index, (one, paths) in enumerate(zip(images, files, strict=True)):
        folder = common_folder(paths).rstrip("/")
        alone = owner[folder] == {index}
        if len(paths) == 1 and not (alone and folder):
            places.append(paths[0])
        else:
            places.append((folder or ".") + ("" if alone else f"#{one.key}"))
    return places


def _labelled_by_folders(found: Found, ask: Ask) -> Found:
    """Top folders as classes, if each of them holds several patients: a folder of one patient is that patient's."""
    classes = folder_classes(found.frame["path"].tolist())
    asked = ask.task == "classify"
    if classes is not None and len(classes[0]) == len(found.frame):
        frame = found.frame.assign(label=classes[0]["label"].tolist(), split=classes[0]["split"].tolist())
        people = frame.groupby("label")["patient_id"].nunique()
        if asked or (2 <= len(people) <= _MOST_CLASSES and int(people.min()) > 1):
            source = "folder" if (frame["split"] != "").any() else "none"
            reason = f"{found.reason}; the folders {', '.join(map(str, people.index[:6]))} are the classes"
            return Found(
                frame, "classify", reason, patient_source="dicom", split_source=source, problems=found.problems
            )
    ask.require_task("dicom", "unlabelled")
    text = (
        "no labels were found; put the series of each class into a folder, or add a manifest.csv with columns "
        "patient_id (or series_uid, or path) and label"
    )
    return found.noting(Problem("note", "", text))


def _labelled_by_table(
    found: Found, images: Sequence[Series], listing: Listing, ask: Ask, only: str | None
) -> Found | None:
    """Labels and covariates from a table in the folder that names series, patients or paths."""
    names = [name for name in MANIFEST_NAMES if name in listing.known]
    names += [name for name in listing.of("table") if "/" not in name and name not in names]
    names = names if only is None else [only]
    for name in names:
        table = read_table(listing.root / name)
        joined = _join(found.frame, images, table, listing, name)
        if joined is None:
            continue
        rows, key, by = joined
        keep = [index for index, row in enumerate(rows) if row >= 0]
        frame = found.frame.iloc[keep].reset_index(drop=True)
        aligned = table.iloc[[rows[index] for index in keep]].reset_index(drop=True)
        reading = Reading(aligned, listing.root / name, listing, ask, used=[key])
        left = [found.frame["path"].iloc[index] for index, row in enumerate(rows) if row < 0]
        reading.problems += [*found.problems, *some(left, f"series are not in {name}", "they are left out", "note")]
        described = describe(frame, reading, reason=f"{found.reason}; column {key!r} of {name} names the {by}")
        if described.patient_source == "none":
            return replace(described, patient_source="dicom")
        return described
    return None


def _join(
    frame: pd.DataFrame, images: Sequence[Series], table: pd.DataFrame, listing: Listing, where: str
) -> tuple[list[int], str, str] | None:
    """For each series the row of the table (-1 for none), the column that names it, and what that column holds."""
    by_file = {
        file.relative_to(listing.root).as_posix(): index for index, one in enumerate(images) for file in one.files
    }
    by_place = {path: index for index, path in enumerate(frame["path"].tolist())}
    keys = {
        "series": [one.uid for one in images],
        "studies": [str(one.meta.get("study_uid") or "") for one in images],
        "patients": [one.patient_id for one in images],
    }
    for column in map(str, table.columns):
        cells = table[column].tolist()
        for what, values in keys.items():
            row_of = {cell: row for row, cell in enumerate(cells) if cell}
            rows = [row_of.get(value, -1) if value else -1 for value in values]
            matched = sum(row >= 0 for row in rows)
            # Either most series are named, or everything that the column holds is a name of this kind.
            if matched and (matched >= _KEY_SHARE * len(rows) or set(cells) - {""} <= set(values)):
                return rows, column, what
        rows = [-1] * len(images)
        for row, cell in enumerate(cells):
            path = locate(str(cell), listing, where)
            index = by_place.get(path, by_file.get(path, -1))
            if index >= 0:
                rows[index] = row
        if any(row >= 0 for row in rows):
            return rows, column, "files"
    return None
