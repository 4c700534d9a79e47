"""What a reader of a layout is asked, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from vesalius.core.errors import DataError, UsageError
from vesalius.core.labels import Labels
from vesalius.core.progress import Progress, Silent
from vesalius.data.listing import Listing
from vesalius.data.naming import order_classes
from vesalius.data.problem import Problem

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Ask:
    """The options of `discover` that a reader may use."""

    task: str | None = None
    label_column: str | None = None
    patient_column: str | None = None
    patient_pattern: str | None = None
    split_column: str | None = None
    progress: Progress = field(default_factory=Silent)

    def require_task(self, layout: str, given: str, *others: str) -> str:
        """The task of a layout: `given` unless the person asked for one of `others`.

        Raises
        ------
        UsageError
            If the person asked for a task that the layout cannot answer.
        """
        if self.task in (None, given, UNLABELLED):  # to leave the truth out is always possible
            return given
        if self.task in others:
            return self.task or given
        if given == UNLABELLED:
            raise UsageError(
                f"task {self.task} needs truth, but none was found; put the cases of each class into a folder, or add "
                "a manifest.csv with columns path and label"
            )
        raise UsageError(
            f"layout {layout} holds the truth for task {' or '.join([given, *others])}, not for "
            f"{self.task}; leave --task out or choose another folder"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """Rows as a reader found them, before patients and classes are settled for every layout alike.

    Parameters
    ----------
    frame
        As in `Manifest`, with at least ``path``; ``case_id`` and ``patient_id`` may be left out.
    task, reason
        The task that can be answered, and why this layout was recognised.
    labels
        The classes if the layout names them; None to collect them from the column ``label``.
    multilabel
        Whether ``a|b`` in the column ``label`` means two classes.
    """

    frame: pd.DataFrame
    task: str
    reason: str
    labels: Labels | None = None
    multilabel: bool = False
    patient_source: str = "none"
    split_source: str = "none"
    published: bool = False
    problems: tuple[Problem, ...] = ()
    root: Path | None = None

    def noting(self, *problems: Problem) -> Found:
        """The same rows with more to tell."""
        return replace(self, problems=(*self.problems, *problems))


def some(paths: Sequence[str], what: str, consequence: str, severity: str = "warning") -> list[Problem]:
    """One problem for many files: their number, the first of them, and what follows; nothing for no file."""
    if not paths:
        return []
    return [Problem(severity, "", f"{len(paths)} {what}, first {paths[0]}; {consequence}")]


def collect_labels(frame: pd.DataFrame, *, multilabel: bool) -> tuple[Labels | None, list[Problem]]:
    """The classes in the column ``label`` of the images, ordered, and what was assumed about their order."""
    cells = frame.loc[frame["role"] == "image", "label"] if "role" in frame else frame["label"]
    names = {part for cell in cells.unique() for part in (cell.split("|") if multilabel else [cell])} - {""}
    ordered, sure = order_classes(names)
    if len(ordered) < (1 if multilabel else 2):
        return None, []
    if multilabel:
        return Labels(tuple(sorted(ordered)) if len(ordered) == 2 else ordered, multilabel=True), []
    problems = []
    if not sure:
        problems.append(
            Problem(
                "note",
                "",
                f"the names do not say which class is the finding; {ordered[1]!r} is taken "
                f"as positive and {ordered[0]!r} as negative",
            )
        )
    return Labels(ordered), problems


def patients_by_pattern(paths: pd.Series, pattern: str, root: Path) -> pd.Series:
    """The patient of each path: the group ``patient``, else the first group, of a regular expression.

    Raises
    ------
    UsageError
        If the expression is broken or has no group.
    DataError
        If it does not fit a path.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--patient-pattern {pattern!r} is no regular expression ({error})") from error
    if not compiled.groups:
        raise UsageError(
            f"--patient-pattern {pattern!r} has no group; put the patient in brackets, for example '(person\\d+)_'"
        )
    group: str | int = "patient" if "patient" in compiled.groupindex else 1
    found = [match[group] if (match := compiled.search(path)) else "" for path in paths.tolist()]
    missed = [path for path, patient in zip(paths.tolist(), found, strict=True) if not patient]
    if missed:
        raise DataError(
            f"{root}: --patient-pattern {pattern!r} does not fit {len(missed)} of {len(found)} paths, first "
            f"{missed[0]}; expected every path to name its patient; correct the pattern"
        )
    return pd.Series(found, index=paths.index, dtype="str")


def missing_files(listing: Listing, paths: Sequence[str], where: str) -> None:
    """Refuse a description that names files which do not exist.

    Raises
    ------
    DataError
        With their number and the first of them.
    """
    present = listing.known
    missing = [path for path in paths if path not in present and not (listing.root / path).exists()]
    if missing:
        empty = set(listing.empty)
        state = "have no content" if all(path in empty for path in missing) else "do not exist"
        raise DataError(
            f"{where}: {len(missing)} of {len(paths)} files it names {state}, first {missing[0]}; expected "
            f"them below {listing.root}; copy the files, or remove their rows"
        )
