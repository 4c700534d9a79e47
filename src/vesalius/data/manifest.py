"""The table of a data set: one row per file, and what is known about the whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError, FileError, UnreadableFile, UsageError
from vesalius.core.files import atomic
from vesalius.core.labels import Labels
from vesalius.data.naming import SPLITS, suggest_split
from vesalius.data.problem import Problem

SCHEMA = 1
COLUMNS = ("case_id", "patient_id", "path", "role", "label", "split")
TASKS = ("classify", "segment", "detect", "video", "unlabelled")
PATIENT_SOURCES = ("column", "pattern", "dicom", "none")
SPLIT_SOURCES = ("official", "column", "folder", "made", "none")
IMAGE = "image"
_METADATA = b"vesalius"
_SEPARATOR = "\x1f"


@dataclass(frozen=True, eq=False)
class Manifest:
    """Which files there are, whose they are, what they show and what they are used for.

    Parameters
    ----------
    root
        Folder that the paths are relative to.
    frame
        One row per file. `COLUMNS` are text and always there: ``case_id``; ``patient_id`` (the case's own id where
        nobody knows the patient); ``path`` (with ``/``;
        ``file.npz#train_images/17`` for one item of an array file, ``file.json#17`` for one image of an annotation
        file, a folder for a DICOM series); ``role`` (``image``, further channels ``image_1``..., truth ``mask`` or
        ``boxes``); ``label`` (class name, several joined by ``|``, "" for none); ``split`` (train, val, test or "").
        Every other column is a covariate.
    layout, task
        Which layout was read, and the task the data can answer.
    labels
        Classes in the order of a model's outputs, or None where there are none.
    patient_source
        Where ``patient_id`` comes from: ``column``, ``pattern``, ``dicom`` or ``none`` (each case is its own patient).
    split_source
        Where ``split`` comes from: ``official``, ``column``, ``folder``, ``made`` (by `split_manifest`) or ``none``.
    published
        Whether this is a fixed benchmark file, which its user cannot correct.
    problems
        What a person should know, in the order it was found.

    Raises
    ------
    DataError
        If the frame has no rows, lacks a column, names a split that does not exist or repeats a case.
    """

    root: Path
    frame: pd.DataFrame
    layout: str
    task: str
    labels: Labels | None = None
    patient_source: str = "none"
    split_source: str = "none"
    published: bool = False
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        for name, value, known in (
            ("task", self.task, TASKS),
            ("patient_source", self.patient_source, PATIENT_SOURCES),
            ("split_source", self.split_source, SPLIT_SOURCES),
        ):
            if value not in known:
                raise UsageError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "frame", _tidy(self.frame, self.root))
        object.__setattr__(self, "problems", tuple(self.problems))
        _refuse_unknown_splits(self.frame, self.root)
        _refuse_repeated_cases(self.frame, self.root)

    @property
    def cases(self) -> pd.DataFrame:
        """One row per case: those with role ``image``, index kept from `frame`."""
        return self.frame[self.frame["role"] == IMAGE]

    def __len__(self) -> int:
        return int((self.frame["role"] == IMAGE).sum())

    @property
    def covariates(self) -> list[str]:
        """Columns beyond the fixed ones."""
        return [str(name) for name in self.frame.columns if name not in (*COLUMNS, "mask_values")]

    def absolute(self, path: str) -> Path:
        """`path` of a row as a path on this machine; what follows ``#`` stays at the end."""
        return self.root / path

    def counts(self) -> dict[str, Any]:
        """Cases, patients, cases and patients per class, cases per split, and cases per split and class."""
        cases = self.cases
        names = self.labels.names if self.labels is not None and self.task != "segment" else ()
        has = {name: _shows(cases["label"], name) for name in names}
        splits = [split for split in SPLITS if (cases["split"] == split).any()]
        return {
            "cases": len(cases),
            "patients": int(cases["patient_id"].nunique()),
            "classes": {name: int(mask.sum()) for name, mask in has.items()},
            "class_patients": {name: int(cases.loc[mask, "patient_id"].nunique()) for name, mask in has.items()},
            "splits": {split: int((cases["split"] == split).sum()) for split in splits},
            "split_patients": {
                split: int(cases.loc[cases["split"] == split, "patient_id"].nunique()) for split in splits
            },
            "split_classes": {
                split: {name: int((mask & (cases["split"] == split)).sum()) for name, mask in has.items()}
                for split in splits
            },
        }

    def content_hash(self) -> str:
        """Checksum of the rows and the order of the classes: the same for any row order and on any machine."""
        frame = self.frame.sort_values(["case_id", "role", "path"], kind="stable")
        names = [*COLUMNS, *sorted(self.covariates)]
        digest = hashlib.blake2b(digest_size=16)
        digest.update(_SEPARATOR.join([*names, "", *(self.labels.names if self.labels else ())]).encode())
        for name in names:
            column = "\n".join(_as_text(value) for value in frame[name].tolist())
            digest.update(f"{_SEPARATOR}{name}{_SEPARATOR}{column}".encode())
        return digest.hexdigest()

    def with_frame(self, frame: pd.DataFrame, **changes: Any) -> Manifest:
        """The same manifest with other rows."""
        return replace(self, frame=frame, **changes)

    def with_problems(self, *problems: Problem) -> Manifest:
        """The same manifest with more to tell."""
        known = set(self.problems)
        return replace(self, problems=(*self.problems, *(p for p in problems if p not in known)))

    def to_parquet(self, path: str | Path) -> Path:
        """Write rows and everything that is known about the whole, atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        facts = {
            "schema": SCHEMA,
            "root": str(self.root),
            "layout": self.layout,
            "task": self.task,
            "labels": None if self.labels is None else self.labels.to_json(),
            "patient_source": self.patient_source,
            "split_source": self.split_source,
            "published": self.published,
            "problems": [asdict(problem) for problem in self.problems],
        }
        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA: json.dumps(facts).encode()})
        with atomic(path) as file:
            pq.write_table(table, file)
        return Path(path)

    @classmethod
    def from_parquet(cls, path: str | Path, *, root: str | Path | None = None) -> Manifest:
        """The inverse of `to_parquet`; `root` replaces the folder, for data that have moved.

        Raises
        ------
        UnreadableFile
            If it is no Parquet file or was not written by `to_parquet`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except FileNotFoundError:
            raise FileError(path, found="there is no such file", do="check the path") from None
        except (pa.ArrowException, OSError) as error:
            raise UnreadableFile(
                path,
                found=f"not readable as Parquet ({error})",
                expected="a manifest in Parquet",
                do="run the command that wrote it again",
            ) from error
        facts = read_facts(table.schema.metadata)
        if facts is None:
            raise UnreadableFile(
                path,
                found="a Parquet table without the facts of a manifest",
                expected=f"one written by Vesalius (schema {SCHEMA})",
                do="pass it to discover() as a table instead",
            )
        labels = None if facts["labels"] is None else Labels.from_json(facts["labels"])
        return cls(
            root=Path(root if root is not None else facts["root"]),
            frame=table.to_pandas(),
            layout=facts["layout"],
            task=facts["task"],
            labels=labels,
            patient_source=facts["patient_source"],
            split_source=facts["split_source"],
            published=bool(facts["published"]),
            problems=tuple(Problem(**problem) for problem in facts["problems"]),
        )

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as CSV, atomically; `discover` reads them again when the file lies in the root."""
        with atomic(path) as file:
            file.write(self.frame.to_csv(index=False, lineterminator="\n").encode())
        return Path(path)


def read_facts(metadata: dict[bytes, bytes] | None) -> dict[str, Any] | None:
    """What `Manifest.to_parquet` keeps beside the rows; None for a table from elsewhere."""
    if not metadata or _METADATA not in metadata:
        return None
    facts = json.loads(metadata[_METADATA])
    return facts if isinstance(facts, dict) and facts.get("schema") == SCHEMA else None


def targets(manifest: Manifest) -> NDArray[Any]:
    """The truth of `manifest.cases` in numbers: ``(N,)`` int64 class indices, or ``(N, K)`` uint8 if multi-label.

    Raises
    ------
    DataError
        If there are no classes, or a case has no label or one that is not a class.
    """
    labels = manifest.labels
    if labels is None or manifest.task == "segment":
        raise DataError(
            f"{manifest.root}: task {manifest.task} has no class per case; give labels by class folders or "
            "a column `label`"
        )
    column = manifest.cases["label"]
    if not labels.multilabel:
        codes = pd.Index(list(labels.names)).get_indexer(pd.Index(column)).astype(np.int64)
        if (codes < 0).any():
            first = int(np.argmax(codes < 0))
            raise DataError(
                f"{manifest.root}: {int((codes < 0).sum())} cases have no class, first "
                f"{manifest.cases['case_id'].iloc[first]!r} with label {column.iloc[first]!r}; expected "
                f"one of {list(labels.names)}; correct the labels"
            )
        return codes
    matrix = np.stack([_shows(column, name).to_numpy(dtype=np.uint8) for name in labels.names], axis=1)
    stated = column.str.split("|").map(lambda parts: len({part for part in parts if part})).to_numpy()
    wrong = stated != matrix.sum(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"{manifest.root}: {int(wrong.sum())} cases have labels that are no class, first "
            f"{manifest.cases['case_id'].iloc[first]!r} with {column.iloc[first]!r}; expected some of "
            f"{list(labels.names)}; correct the labels"
        )
    return matrix


def _shows(column: pd.Series, name: str) -> pd.Series:
    """Whether each cell of "a|b" form holds `name`."""
    return ("|" + column + "|").str.contains(f"|{name}|", regex=False)


def _as_text(value: Any) -> str:
    """A cell as text: whole floats without ".0" (a CSV of a column with gaps has them), nothing for a gap."""
    if pd.isna(value):
        return ""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def text_column(column: pd.Series) -> pd.Series:
    """`column` as text with "" for gaps, whatever it was."""
    values = [_as_text(value).strip() for value in column.tolist()]
    return pd.Series(values, index=column.index, name=column.name, dtype="str")


def _tidy(frame: pd.DataFrame, root: Path) -> pd.DataFrame:
    if len(frame) == 0:
        raise DataError(f"{root}: no cases were found; expected at least one image; check the path")
    frame = frame.copy()
    for name, value in (("role", IMAGE), ("label", ""), ("split", "")):
        if name not in frame.columns:
            frame[name] = value
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise DataError(f"{root}: the table of cases lacks the columns {missing}; it has {list(frame.columns)}")
    for name in COLUMNS:
        frame[name] = text_column(frame[name])
    # Nobody is not a person: cases without a patient must not become one group.
    frame["patient_id"] = frame["patient_id"].where(frame["patient_id"] != "", frame["case_id"])
    rest = [name for name in frame.columns if name not in COLUMNS]
    return frame[[*COLUMNS, *rest]].reset_index(drop=True)


def _refuse_unknown_splits(frame: pd.DataFrame, root: Path) -> None:
    unknown = sorted(set(frame["split"].unique()) - {*SPLITS, ""})
    if unknown:
        raise DataError(
            f"{root}: column `split` holds {unknown[0]!r} in {int((frame['split'] == unknown[0]).sum())} "
            f"rows; expected train, val or test{suggest_split(unknown[0])}; rename it"
        )


def _refuse_repeated_cases(frame: pd.DataFrame, root: Path) -> None:
    twice = frame.duplicated(["case_id", "role"], keep=False)
    if not twice.any():
        return
    first = frame[twice].iloc[0]
    again = frame[(frame["case_id"] == first["case_id"]) & (frame["role"] == first["role"])]
    raise DataError(
        f"{root}: {int(frame.duplicated(['case_id', 'role']).sum())} case ids are used twice, first "
        f"{first['case_id']!r} for {' and '.join(again['path'].tolist()[:2])}; expected one row per case "
        "and role; give each its own case_id"
    )


def find_problems(manifest: Manifest) -> tuple[Problem, ...]:
    """What is odd about the cohort as a whole: classes, patients and splits. Files are not touched."""
    found: list[Problem] = []
    counts = manifest.counts()
    for name, cases in counts["classes"].items():
        patients = counts["class_patients"][name]
        if cases == 0:
            found.append(Problem("warning", "", f"class {name!r} has no case; remove it or add cases"))
        elif patients == 1:
            found.append(
                Problem(
                    "warning",
                    "",
                    f"class {name!r} has {cases} case(s) of one patient only; it cannot be "
                    "both learnt and tested: add patients, merge it with another class or leave it out",
                )
            )
    folded: dict[str, list[str]] = {}
    for name in counts["classes"]:
        folded.setdefault(" ".join(name.casefold().replace("_", " ").replace("-", " ").split()), []).append(name)
    for names in folded.values():
        if len(names) > 1:
            found.append(
                Problem(
                    "warning",
                    "",
                    f"classes {names} differ only in spelling; if they mean the same, write them the same way",
                )
            )
    found += _problems_of_patients(manifest)
    return tuple(found)


def _problems_of_patients(manifest: Manifest) -> list[Problem]:
    cases = manifest.cases
    if manifest.patient_source == "none" and manifest.published:
        text = "the file holds no patient ids, so each image counts as its own patient; intervals are per image"
        return [Problem("note", "", text)]
    if manifest.patient_source == "none":
        if len(cases) == 1:
            return []
        return [
            Problem(
                "warning",
                "",
                "no patient ids are known, so each image counts as its own patient; if patients "
                "have several images, give --patient-pattern 'REGEX' (its first group is the patient) or a "
                "manifest with a column patient_id, else results look better than they are",
            )
        ]
    found = []
    used = cases[cases["split"] != ""]
    per_patient = used.groupby("patient_id")["split"].nunique()
    shared = per_patient[per_patient > 1]
    if len(shared):
        found.append(
            Problem(
                "warning",
                "",
                f"{len(shared)} patients stand in more than one split, first "
                f"{shared.index[0]!r}; a test on them is no test: correct the split column",
            )
        )
    return found
