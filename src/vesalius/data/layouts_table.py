"""A table with one row per image, beside the images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from vesalius.core.errors import DataError, UsageError
from vesalius.core.labels import Labels
from vesalius.data.found import Ask, Found, some
from vesalius.data.listing import KIND_OF, Listing, split_suffix, stem_of
from vesalius.data.locate import Match, locate, locate_all, match_paths
from vesalius.data.naming import SPLITS, canonical_split, suggest_split
from vesalius.data.problem import Problem
from vesalius.data.tables import (
    LABEL_NAMES,
    MANIFEST_NAMES,
    MASK_NAMES,
    PATIENT_NAMES,
    SPLIT_NAMES,
    as_covariate,
    determining,
    named_column,
    read_table,
    usual_column,
    yes_no,
)

_ENOUGH = 0.5
_KEPT = ("case_id", "role")
_FIXED = ("case_id", "patient_id", "path", "role", "label", "split")
_TWO = Labels(("background", "foreground"))


@dataclass
class Reading:
    """A table while it is read: columns that found a use are noted, the rest become covariates."""

    table: pd.DataFrame
    path: Path
    listing: Listing
    ask: Ask
    used: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    labels: Labels | None = None
    multilabel: bool = False

    @property
    def free(self) -> list[str]:
        """Columns without a use so far."""
        return [str(name) for name in self.table.columns if name not in self.used]

    @property
    def where(self) -> str:
        """The table relative to the root."""
        return where_of(self.path, self.listing)

    def chosen(self, asked: str | None, option: str, names: tuple[str, ...]) -> list[str]:
        """The column that the person named, else those with a usual name."""
        if asked is not None:
            return [named_column(self.table, asked, option, self.path)]
        return usual_column(self.free, names)

    def use(self, column: str) -> pd.Series:
        """Take a column out of the covariates."""
        self.used.append(column)
        return self.table[column]


def where_of(path: Path, listing: Listing) -> str:
    """`path` relative to the root of the listing; a table elsewhere counts as lying in the root."""
    return path.relative_to(listing.root).as_posix() if path.is_relative_to(listing.root) else path.name


def manifest_in(listing: Listing, ask: Ask) -> Found | None:
    """A file called ``manifest.csv`` (or .tsv, .parquet) in the folder itself: somebody wrote it to be used.

    In a DICOM tree it may name patients or series instead of files, which its reader sorts out.
    """
    if 2 * len(listing.of("dicom")) > len(listing.pixels):
        return None
    for name in MANIFEST_NAMES:
        if name in listing.known:
            return read_rows(listing.root / name, listing, ask, reason=f"{name} lists the images")
    return None


def table_in(listing: Listing, ask: Ask) -> Found | None:
    """The table, or the tables named after splits, whose rows name the images of the folder.

    Raises
    ------
    UsageError
        If several tables do and nothing tells them apart.
    """
    if not listing.pixels and not listing.of("arrays"):
        return None
    fitting: dict[str, Match] = {}
    for name in [path for path in listing.of("table") if path.count("/") <= 1]:
        match = match_paths(read_table(listing.root / name), listing, name)
        if match is not None and match.share >= _ENOUGH:
            fitting[name] = match
    if not fitting:
        return None
    if len(fitting) == 1:
        name = next(iter(fitting))
        reason = f"column {fitting[name].column!r} of {name} names the images"
        return read_rows(listing.root / name, listing, ask, reason=reason)
    splits = {name: canonical_split(Path(name).stem) or "" for name in fitting}
    if len(set(splits.values())) == len(splits) and all(splits.values()):
        return _joined(splits, listing, ask)
    raise UsageError(
        f"{listing.root}: {len(fitting)} tables name the images ({', '.join(sorted(fitting)[:4])}); give the one to "
        f"use, for example {listing.root / min(fitting)}"
    )


def _joined(splits: dict[str, str], listing: Listing, ask: Ask) -> Found:
    parts = {
        split: read_rows(listing.root / name, listing, ask, reason="", part=True) for name, split in splits.items()
    }
    frames = [parts[split].frame.assign(split=split) for split in SPLITS if split in parts]
    first = next(iter(parts.values()))
    return Found(
        pd.concat(frames, ignore_index=True),
        task=first.task,
        reason=f"{', '.join(sorted(splits))} list the images of each split",
        labels=first.labels,
        multilabel=any(part.multilabel for part in parts.values()),
        patient_source=first.patient_source,
        split_source="column",
        problems=tuple(dict.fromkeys(problem for part in parts.values() for problem in part.problems)),
    )


def read_rows(path: Path, listing: Listing, ask: Ask, *, reason: str, part: bool = False) -> Found:
    """Rows of the table at `path` whose images are in `listing`.

    Parameters
    ----------
    part
        Whether it lists only some of the images on purpose.

    Raises
    ------
    DataError
        If it names files that do not exist, or no column names files.
    UsageError
        If a column that the person named does not exist.
    """
    reading = Reading(read_table(path), path, listing, ask)
    return describe(_files(reading), reading, reason=reason, part=part)


def describe(frame: pd.DataFrame, reading: Reading, *, reason: str, part: bool = True) -> Found:
    """Patients, splits, labels and covariates for the files in `frame`, from the rows of the table beside them."""
    for name in usual_column(reading.free, _KEPT):
        frame[name.casefold()] = reading.use(name)
    patient_source = _add_patients(frame, reading)
    split_source = _add_splits(frame, reading)
    _add_labels(frame, reading)
    masks = None if "role" in frame else _mask_rows(frame, reading)
    for name in reading.free:
        if name:
            frame[f"{name}_given" if name in {*frame.columns, *_FIXED} else name] = as_covariate(reading.table[name])
    if not part:
        _note_unlisted(frame, masks, reading)
    frame, task = _settle(frame, masks, reading)
    return Found(
        frame,
        task=task,
        reason=reason,
        labels=reading.labels,
        multilabel=reading.multilabel,
        patient_source=patient_source,
        split_source=split_source,
        problems=tuple(reading.problems),
    )


def _files(reading: Reading) -> pd.DataFrame:
    """The column ``path``; rows without a file name or with an empty file are dropped and told."""
    table, path, listing = reading.table, reading.path, reading.listing
    if table.empty:
        raise DataError(f"{path}: the table has no rows; expected one per image")
    match = match_paths(table, listing, reading.where)
    if match is None:
        columns = [str(name) for name in table.columns]
        shown = f"{columns[:8]}" if len(columns) <= 8 else f"{columns[:8]} and {len(columns) - 8} more"
        raise DataError(
            f"{path}: no column names a file below {listing.root} ({listing.summary()}); its columns are {shown}; "
            "expected a column `path` with paths relative to the table"
        )
    cells = table[match.column].tolist()
    below = reading.where.rpartition("/")[0]
    hollow = {cell for cell in cells if {cell, f"{below}/{cell}"} & set(listing.empty)}
    missing = [
        cell for cell, found in zip(cells, match.paths, strict=True) if cell and not found and cell not in hollow
    ]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(cells)} files in column {match.column!r} do not exist, first "
            f"{missing[0]}; expected them below {listing.root}; copy the files, correct the paths or remove the rows"
        )
    reading.used.append(match.column)
    keep = [bool(found) for found in match.paths]
    blank = sum(not cell for cell in cells)
    if blank:
        reading.problems.append(Problem("warning", path.name, f"{blank} rows name no file; they are left out"))
    reading.table = table[keep].reset_index(drop=True)
    return pd.DataFrame({"path": [found for found in match.paths if found]}, dtype="str")


def _note_unlisted(frame: pd.DataFrame, masks: pd.DataFrame | None, reading: Reading) -> None:
    listed = set(frame["path"]) | (set() if masks is None else set(masks["path"]))
    folders = listed & reading.listing.dicom_folders  # a row may name the folder of a DICOM series
    unlisted = [
        path for path in reading.listing.pixels if path not in listed and path.rpartition("/")[0] not in folders
    ]
    do = "they are left out; add rows for them if they count"
    reading.problems += some(unlisted, f"files are not in {reading.path.name}", do, "note")


def _add_patients(frame: pd.DataFrame, reading: Reading) -> str:
    names = reading.chosen(reading.ask.patient_column, "--patient-column", PATIENT_NAMES)
    if not names:
        return "none"
    frame["patient_id"] = reading.use(names[0])
    return "column"


def _add_splits(frame: pd.DataFrame, reading: Reading) -> str:
    asked = reading.ask.split_column is not None
    for name in reading.chosen(reading.ask.split_column, "--split-column", SPLIT_NAMES):
        words = reading.table[name]
        splits = words.map(lambda word: canonical_split(word) if word else "")
        unknown = words[splits.isna()]
        # "fold" or "set" may mean something else; a column that is called split may not.
        if len(unknown) and (asked or name.casefold() == "split"):
            raise DataError(
                f"{reading.path}: column {name!r} holds {unknown.iloc[0]!r} in {int((words == unknown.iloc[0]).sum())} "
                f"rows; expected train, val or test{suggest_split(unknown.iloc[0])}; rename it"
            )
        if len(unknown):
            continue
        if (words == "").all():
            reading.used.append(name)  # a column that waits to be filled
            continue
        frame["split"] = splits
        reading.used.append(name)
        empty = int((words == "").sum())
        if empty:
            text = f"{empty} rows have no {name}; they are used for nothing; write train, val or test"
            reading.problems.append(Problem("warning", reading.path.name, text))
        return "column"
    return "none"


def _add_labels(frame: pd.DataFrame, reading: Reading) -> None:
    frame["label"] = ""
    asked = reading.ask.label_column
    several = [name for name in reading.free if name.casefold().startswith("label.")]
    if asked is not None:
        several = []
        if "," in asked and asked not in reading.table.columns:
            several = [
                named_column(reading.table, name.strip(), "--label-column", reading.path) for name in asked.split(",")
            ]
    if len(several) > 1:
        _add_yes_no_labels(frame, reading, several)
        return
    names = reading.chosen(asked, "--label-column", LABEL_NAMES)
    if not names:
        return
    if len(names) > 1:
        text = f"column {names[0]!r} is taken as the label; for {names[1]!r} give --label-column {names[1]}"
        reading.problems.append(Problem("note", reading.path.name, text))
    frame["label"] = reading.use(names[0]).str.replace(r"\s*\|\s*", "|", regex=True).str.strip("|")
    reading.multilabel = bool(frame["label"].str.contains("|", regex=False).any())
    # A column in which nearly every row differs is an id or a measurement, not a class.
    values = frame["label"][frame["label"] != ""].nunique()
    if values > max(50, len(frame) / 4):
        raise DataError(
            f"{reading.path}: column {names[0]!r} has {values} different values in {len(frame)} rows; expected a few "
            "classes; choose another column with --label-column"
        )


def _add_yes_no_labels(frame: pd.DataFrame, reading: Reading, several: list[str]) -> None:
    """One column of 0 and 1 per class."""
    names = [name[6:] if name.casefold().startswith("label.") else name for name in several]
    flags = [yes_no(reading.use(name), reading.path) for name in several]
    rows = zip(*(flag.tolist() for flag in flags), strict=True)
    frame["label"] = ["|".join(name for name, yes in zip(names, row, strict=True) if yes) for row in rows]
    if (frame["label"] != "").all() and not frame["label"].str.contains("|", regex=False).any():
        text = "every row has exactly one of the label columns, so the classes are taken as exclusive"
        reading.problems.append(Problem("note", reading.path.name, text))
        return
    reading.multilabel = True
    reading.labels = Labels(tuple(names), multilabel=True)


def _mask_rows(frame: pd.DataFrame, reading: Reading) -> pd.DataFrame | None:
    """Rows for the masks that a column names, if there is such a column."""
    for name in usual_column(reading.free, MASK_NAMES):
        cells = reading.table[name].tolist()
        if not any(locate(cell, reading.listing, reading.where) for cell in cells):
            continue
        found = locate_all(cells, reading.listing, reading.where)
        missing = [cell for cell, path in zip(cells, found, strict=True) if cell and not path]
        if missing:
            raise DataError(
                f"{reading.path}: {len(missing)} of {len(cells)} masks in column {name!r} do not exist, first "
                f"{missing[0]}; expected them below {reading.listing.root}; copy the files or empty the cells"
            )
        reading.used.append(name)
        ids = frame["case_id"] if "case_id" in frame else frame["path"].map(stem_of)
        rows = frame.assign(path=found, role="mask", case_id=ids)
        return rows[rows["path"] != ""]
    return None


def _settle(frame: pd.DataFrame, masks: pd.DataFrame | None, reading: Reading) -> tuple[pd.DataFrame, str]:
    """The task that the rows can answer, and what follows from it."""
    if masks is not None and reading.ask.task in (None, "segment"):
        ids = frame["case_id"] if "case_id" in frame else frame["path"].map(stem_of)
        rows = pd.concat([frame.assign(role="image", case_id=ids), masks], ignore_index=True)
        reading.labels = _TWO
        return rows, "segment"
    roles = set(frame["role"]) if "role" in frame else set()
    if "mask" in roles:
        reading.labels = reading.labels or _TWO
        return frame, "segment"
    if not (frame["label"] != "").any():
        text = (
            "the table has no column of labels, so these cases cannot be trained on; add a column `label` or name one "
            "with --label-column"
        )
        reading.problems.append(Problem("warning", reading.path.name, text))
        return frame, "unlabelled"
    for name in determining(frame, [str(name) for name in frame.columns if name not in _FIXED]):
        text = (
            f"column {name!r} determines the label (each of its values occurs with one label only); it is kept as a "
            "covariate and never used as an input"
        )
        reading.problems.append(Problem("note", reading.path.name, text))
    return frame, "detect" if "boxes" in roles else _task_of(frame["path"])


def _task_of(paths: pd.Series) -> str:
    kinds = [KIND_OF.get(split_suffix(path.partition("#")[0])[1], "image") for path in paths.tolist()]
    return "video" if kinds.count("video") > _ENOUGH * len(kinds) else "classify"
