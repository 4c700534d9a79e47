"""From a manifest and its prepared pixels to who is trained on, who is validated on and who is tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.core.progress import Progress, Silent
from vesalius.data.duplicates import Duplicates, find_duplicates
from vesalius.data.fingerprint import data_hash
from vesalius.data.leakage import Leakage, check_leakage, duplicate_groups, repair, repair_published
from vesalius.data.manifest import Manifest, targets
from vesalius.data.problem import Problem
from vesalius.data.signature import Signatures
from vesalius.data.split import split_manifest


class Prepared(Protocol):
    """What is asked of a store, of images or of cases with masks."""

    @property
    def index(self) -> pd.DataFrame:
        """One row per case with ``ok`` and ``reason``."""

    def signatures(self) -> Signatures:
        """For the search for duplicates."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """Cases that can be used, each with its split, its row in the store and its target.

    Parameters
    ----------
    manifest
        Readable cases only; column ``split`` is complete.
    rows
        ``(N,)``: row of the store of every case, in the order of ``manifest.cases``.
    targets
        ``(N,)`` class indices or ``(N, K)``; -1 where the label is empty.
    leakage
        What was found across splits.
    notes
        Lines for the report: what was left out and why.
    leaked
        Leakage was found and allowed by the person.
    """

    manifest: Manifest
    rows: NDArray[np.int64]
    targets: NDArray[Any]
    leakage: Leakage
    data_hash: str
    notes: tuple[str, ...] = ()
    leaked: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """The classes."""
        if self.manifest.labels is None:
            raise DataError(f"{self.manifest.root}: has no labels; give a label column or class folders")
        return self.manifest.labels

    @property
    def frame(self) -> pd.DataFrame:
        """One row per case, in the order of `rows`."""
        return self.manifest.cases.reset_index(drop=True)

    def part(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """(store rows, targets) of some places."""
        return self.rows[places], self.targets[places]

    def places(self, split: str) -> NDArray[np.int64]:
        """Places of the cases of a split."""
        return np.flatnonzero(self.frame["split"].to_numpy() == split)


def assemble(
    manifest: Manifest,
    store: Prepared,
    *,
    seed: int,
    val: float,
    test: float,
    by: str = "patient",
    folds: int = 0,
    allow_leakage: bool = False,
    progress: Progress | None = None,
) -> Cohort:
    """Leave out what cannot be read, split, and look for leakage.

    A split that a person wrote and that leaks is refused; in a published benchmark, and in our own split where chains
    of near duplicates had to be cut, the copies are taken out of training instead.

    Raises
    ------
    LeakageError
        Exit code 4; one line with the first finding of each kind.
    DataError
        If a part has no cases.
    """
    progress = progress or Silent()
    manifest, rows, notes = _readable(manifest, store)
    signatures = store.signatures().take(rows)
    given = manifest.split_source not in ("none", "made")
    if given:
        manifest = split_manifest(manifest, seed=seed, val=val, test=test, by=by, folds=folds)
        leakage = check_leakage(manifest.cases, signatures, progress=progress)
    else:
        duplicates = find_duplicates(signatures, progress=progress)
        group, _ = duplicate_groups(duplicates, signatures, patients=manifest.cases["patient_id"].tolist())
        manifest = split_manifest(manifest, seed=seed, val=val, test=test, by=by, folds=folds, groups=members(group))
        leakage = check_leakage(manifest.cases, signatures, duplicates=duplicates)
        notes += _told(duplicates)
    leaked = False
    if not leakage.clean:
        leaked = given and allow_leakage
        if not leaked:
            if given and not manifest.published:
                leakage.refuse()
            mended = repair_published(leakage, manifest.cases) if given else repair(leakage, manifest.cases)
            manifest, rows, notes = _without(manifest, rows, mended.leave_out, mended.note, notes)
    cohort = Cohort(
        manifest,
        rows,
        _targets(manifest),
        leakage,
        data_hash(manifest.cases, store.signatures().take(rows)),
        tuple(notes),
        leaked,
    )
    _require_parts(cohort)
    return cohort


def assembled_before(manifest: Manifest, store: Prepared) -> Cohort:
    """The cohort of a finished run once more, its split as it stands; fold 0 is validated on where it had folds.

    Raises
    ------
    DataError
        If no case is left for training.
    """
    manifest, rows, notes = _readable(manifest, store)
    frame = manifest.frame
    if "fold" in frame.columns and not (frame["split"] == "val").any():
        first = (frame["fold"] == 0) & (frame["split"] == "train")
        manifest = manifest.with_frame(frame.assign(split=frame["split"].where(~first, "val")))
    signatures = store.signatures().take(rows)
    leakage = check_leakage(manifest.cases, signatures)
    cohort = Cohort(
        manifest,
        rows,
        _targets(manifest),
        leakage,
        data_hash(manifest.cases, signatures),
        tuple(notes),
        not leakage.clean,
    )
    _require_parts(cohort)
    return cohort


def _readable(manifest: Manifest, store: Prepared) -> tuple[Manifest, NDArray[np.int64], list[str]]:
    ok = store.index["ok"].to_numpy(dtype=bool)
    notes = []
    cases = manifest.cases
    if not ok.all():
        reasons = store.index.loc[~ok, "reason"].tolist()
        notes.append(f"{len(reasons)} of {len(ok)} images cannot be read and were left out; the first: {reasons[0]}")
        manifest = manifest.with_problems(
            *(
                Problem("error", cases["path"].iloc[place], reason)
                for place, reason in zip(np.flatnonzero(~ok), reasons, strict=True)
            )
        )
    unlabelled = (cases["label"] == "").to_numpy() & ok
    classes = manifest.task != "segment" and manifest.labels is not None and not manifest.labels.multilabel
    if classes and unlabelled.any():
        notes.append(f"{int(unlabelled.sum())} cases have no label and were left out")
        ok = ok & ~unlabelled
    return manifest.with_frame(_keep(manifest, ok)), np.flatnonzero(ok), notes


def _targets(manifest: Manifest) -> NDArray[Any]:
    """Classes of the cases; of masks, whose truth lies in the store, zeros."""
    return np.zeros(len(manifest), dtype=np.int64) if manifest.task == "segment" else targets(manifest)


def _keep(manifest: Manifest, ok: NDArray[np.bool_]) -> pd.DataFrame:
    if ok.all():
        return manifest.frame
    kept = set(manifest.cases["case_id"].to_numpy()[ok])
    return manifest.frame[manifest.frame["case_id"].isin(kept)]


def _without(
    manifest: Manifest, rows: NDArray[np.int64], leave_out: NDArray[np.int64], note: str, notes: list[str]
) -> tuple[Manifest, NDArray[np.int64], list[str]]:
    ok = np.ones(len(rows), dtype=bool)
    ok[leave_out] = False
    return manifest.with_frame(_keep(manifest, ok)), rows[ok], [*notes, *([note] if note else [])]


def members(group: NDArray[np.int64]) -> list[list[int]]:
    """Places of each group of more than one member; -1 is no group."""
    order = np.argsort(group, kind="stable")
    order = order[group[order] >= 0]
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    return [part.tolist() for part in np.split(order, cuts) if len(part) > 1]


def _told(duplicates: Duplicates) -> list[str]:
    count = len(duplicates.pairs)
    same = (
        int((np.bincount(duplicates.group[duplicates.group >= 0]) - 1).clip(min=0).sum())
        if len(duplicates.group)
        else 0
    )
    found = []
    if same:
        found.append(f"{same} images repeat the pixels of another; copies were kept in one part")
    if count:
        found.append(f"{count} pairs of images show the same picture (near duplicates); they were kept in one part")
    return found


def _require_parts(cohort: Cohort) -> None:
    counts = cohort.frame["split"].value_counts()
    if counts.get("train", 0) == 0:
        raise DataError(f"{cohort.manifest.root}: no case is left for training; check the split column")
