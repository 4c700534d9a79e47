"""Tables that people write: read as text, columns recognised by their names and by what is in them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from vesalius.core.errors import DataError, UnreadableFile, UsageError
from vesalius.data.naming import nearest

PATH_NAMES = (
    "path",
    "image",
    "image_path",
    "img_path",
    "file",
    "filename",
    "file_name",
    "file_path",
    "filepath",
    "img",
    "image_id",
    "image_name",
    "image_file",
    "image_index",
    "video",
    "clip",
    "video_path",
    "series_instance_uid",
    "series_uid",
    "series",
    "scan",
    "volume",
    "id",
    "name",
    "isic_id",
    "study_id",
)
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "classes",
    "class_name",
    "diagnosis",
    "dx",
    "target",
    "category",
    "finding",
    "finding_labels",
    "findings",
    "pathology",
    "outcome",
    "y",
)
PATIENT_NAMES = (
    "patient_id",
    "patient",
    "patientid",
    "patient_name",
    "subject",
    "subject_id",
    "participant_id",
    "participant",
    "person",
    "person_id",
    "pid",
    "case_patient",
    "individual",
)
SPLIT_NAMES = ("split", "subset", "partition", "set", "fold", "phase", "usage", "dataset")
MASK_NAMES = (
    "mask",
    "mask_path",
    "mask_file",
    "segmentation",
    "segmentation_path",
    "seg",
    "seg_path",
    "label_path",
    "annotation_path",
    "ground_truth",
    "gt",
)
MANIFEST_NAMES = ("manifest.csv", "manifest.parquet", "manifest.tsv")
GAPS = frozenset({"", "na", "n/a", "nan", "null", "<na>"})
_MOST_BYTES = 1 << 31


def plain(name: str) -> str:
    """A column's name without case, spaces and punctuation."""
    return re.sub(r"[^a-z0-9]+", "", name.casefold())


def read_table(path: Path) -> pd.DataFrame:
    """All cells as text, "" for gaps.

    Raises
    ------
    UnreadableFile
        If it is no table.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UnreadableFile(
                path,
                found=f"{path.stat().st_size} bytes",
                expected="a table of at most 2 GB",
                do="keep one row per image and only the columns that matter",
            )
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(
                path,
                sep=_delimiter(path),
                dtype=str,
                keep_default_na=False,
                encoding=_encoding(path),
                skipinitialspace=True,
            )
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UnreadableFile(path, found=reason, do="check the path and its permissions") from error
    except (ValueError, csv.Error) as error:
        raise UnreadableFile(
            path,
            found=f"not readable as a table ({error})",
            expected="one header line and one row per image, separated by commas, semicolons or tabs",
            do="correct or export it again",
        ) from error
    table.columns = [str(name).strip() for name in table.columns]
    return table.apply(_as_written)


def _as_written(column: pd.Series) -> pd.Series:
    """Text with "" for gaps; numbers that a tool turned into "10.0" because of gaps are whole again."""
    if column.dtype.kind == "f":
        whole = column.dropna() % 1 == 0
        column = column.astype("Int64") if bool(whole.all()) else column
    text = column.astype("str").where(column.notna(), "").str.strip()
    text = text.where(~text.str.casefold().isin(list(GAPS)), "")
    filled = text[text != ""]
    if len(filled) and filled.str.fullmatch(r"-?\d+\.0+").all():
        text = text.str.replace(r"\.0+$", "", regex=True)
    return text


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(1 << 20)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        head[: head.rfind(b"\n") + 1].decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


def _delimiter(path: Path) -> str:
    """The separator that cuts the first lines into the same number (more than one) of cells."""
    with path.open(encoding=_encoding(path), errors="replace", newline="") as file:
        lines = [line for line in (file.readline() for _ in range(20)) if line.strip()]
    if path.suffix.lower() == ".tsv" or not lines:
        return "\t"
    best, most = ",", 1
    for mark in (",", ";", "\t", "|"):
        cells = [len(row) for row in csv.reader(lines, delimiter=mark)]
        steady = cells and cells[0] > 1 and sum(count == cells[0] for count in cells) >= 0.9 * len(cells)
        if steady and cells[0] > most:
            best, most = mark, cells[0]
    return best


def named_column(table: pd.DataFrame, wanted: str, option: str, where: Path) -> str:
    """The column a person named, by its exact name or without regard to case and punctuation.

    Raises
    ------
    UsageError
        With the columns that exist.
    """
    if wanted in table.columns:
        return wanted
    by_plain = {plain(str(name)): str(name) for name in table.columns}
    if plain(wanted) in by_plain:
        return by_plain[plain(wanted)]
    raise UsageError(
        f"{where}: {option} names column {wanted!r}, which does not exist; it has "
        f"{[str(name) for name in table.columns][:12]}{nearest(wanted, map(str, table.columns))}"
    )


def usual_column(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Columns with one of the usual `names`, in the order of `names`."""
    by_plain: dict[str, str] = {}
    for column in columns:
        by_plain.setdefault(plain(column), column)
    found = [by_plain[plain(name)] for name in names if plain(name) in by_plain]
    return list(dict.fromkeys(found))


def as_covariate(column: pd.Series) -> pd.Series:
    """Numbers as numbers (gaps become NaN), codes with leading zeros and everything else as text."""
    filled = column[column != ""]
    if filled.empty or filled.str.fullmatch(r"-?0\d+").any():
        return column
    numbers = pd.to_numeric(filled, errors="coerce")
    if numbers.isna().any():
        return column
    return pd.to_numeric(column.where(column != "", None), errors="coerce")


def yes_no(column: pd.Series, where: Path) -> pd.Series:
    """A column of 0 and 1 (or true and false, yes and no) as booleans; a gap is no.

    Raises
    ------
    DataError
        If it holds anything else.
    """
    words = column.str.casefold()
    yes = words.isin(["1", "true", "yes", "1.0"])
    no = words.isin(["0", "false", "no", "", "0.0"])
    wrong = ~(yes | no)
    if wrong.any():
        raise DataError(
            f"{where}: column {column.name!r} holds {column[wrong].iloc[0]!r} in {int(wrong.sum())} rows; "
            "expected 0 or 1 as in a table of several labels; correct it or choose other label columns"
        )
    return yes


def determining(frame: pd.DataFrame, covariates: Iterable[str]) -> list[str]:
    """Covariates each of whose values occurs with one label only: the label in other words.

    Columns whose values are rare (fewer than five cases each on average) are not judged: chance would convict them.
    """
    labelled = frame[frame["label"] != ""]
    if labelled["label"].nunique() < 2:
        return []
    found = []
    for name in covariates:
        column = labelled[name]
        known = labelled[(column.notna()) & (column.astype("str") != "")]
        values = known[name].nunique()
        if not 2 <= values <= len(known) / 5 or known["label"].nunique() < 2:
            continue
        if int(known.groupby(name)["label"].nunique().max()) == 1:
            found.append(name)
    return found
