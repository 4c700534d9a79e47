"""Nothing that is tested on may have been trained on: shared patients, equal images, images saved again.

`check_leakage` looks, `Leakage.refuse` judges a split that a person wrote, `repair` takes cases out of training where
the split cannot be corrected by its user (a published benchmark) or is our own, and `duplicate_groups` tells the
splitter what must stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import LeakageError
from vesalius.core.progress import Progress
from vesalius.data.duplicates import NEAR, Duplicates, Rows, exact_groups, find_duplicates
from vesalius.data.naming import SPLITS
from vesalius.data.signature import Signatures

LARGEST_GROUP = 0.05
"""Part of all images that a chain of near duplicates may join; at least `LEAST_CAP` images are always allowed."""

LEAST_CAP = 20

_PAIR_COLUMNS = (
    "first",
    "second",
    "case_first",
    "case_second",
    "split_first",
    "split_second",
    "similarity",
    "mirrored",
)


@dataclass(frozen=True, eq=False)
class Leakage:
    """What stands on both sides of a split.

    Parameters
    ----------
    patients
        One row per patient in more than one split: ``patient_id``, ``splits`` ("train and test"), ``images``.
    exact, near
        One row per pair of images in different splits: ``first`` and ``second`` (row numbers of the frame, the first
        in the earlier split), ``case_first``..., ``similarity`` (1 for equal pixels), ``mirrored``. Of a group of equal
        images, each is paired with the first one of each other split.
    within
        Equal images that a split holds more than once: surplus copies by split ("" for rows without a split).
    near_within
        Pairs of near duplicates inside one split, or None where they were not looked for.
    label_conflicts
        One row per group of equal images with different labels: ``cases``, ``labels``, ``rows``.
    images, not_comparable, blank
        Number of images; of those with too few pixels or too little detail to be compared for likeness (only equal
        pixels count there); of those in which all pixels are the same (they count neither way).
    near_from
        The similarity from which on two images count as near duplicates.
    """

    patients: pd.DataFrame
    exact: pd.DataFrame
    near: pd.DataFrame
    within: dict[str, int]
    near_within: int | None
    label_conflicts: pd.DataFrame
    images: int
    not_comparable: int
    blank: int
    near_from: float

    @property
    def clean(self) -> bool:
        """Whether no patient and no image stands in two splits."""
        return not (len(self.patients) or len(self.exact) or len(self.near))

    def counts(self) -> dict[str, int]:
        """The numbers for ``metrics.json``."""
        return {
            "patients_shared": len(self.patients),
            "exact_duplicates": len(self.exact),
            "near_duplicates": len(self.near),
            "duplicates_within": sum(self.within.values()),
            "label_conflicts": len(self.label_conflicts),
            "not_comparable": self.not_comparable,
        }

    def lines(self) -> list[str]:
        """What was found, one line per kind, worst first; empty if there is nothing to say."""
        found = [*self._across()]
        surplus = {split or "cases without a split": n for split, n in self.within.items() if n}
        if surplus:
            listed = ", ".join(f"{n} in {split}" for split, n in surplus.items())
            found.append(f"copies of equal images inside a split: {listed}")
        if len(self.label_conflicts):
            row = self.label_conflicts.iloc[0]
            found.append(
                f"equal images with different labels: {row['cases']} are {row['labels']} "
                f"({_count(len(self.label_conflicts), 'group')} in all)"
            )
        if self.not_comparable:
            found.append(
                f"{self.not_comparable} of {self.images} images have too few pixels or too little detail to be "
                "recognised when saved again; among them only equal pixels were looked for"
            )
        return found

    def refuse(self, *, allow: bool = False) -> None:
        """Stop if anything stands in two splits.

        Parameters
        ----------
        allow
            The person insists (``--allow-leakage``); the caller marks the report.

        Raises
        ------
        LeakageError
            One line with the first finding of each kind, how many there are, and what to do.
        """
        if not allow and not self.clean:
            raise LeakageError(
                "; ".join(self._across())
                + "; correct the split column, or pass --allow-leakage, which marks the report"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data for the report: all counts and the first hundred of each list."""
        return {
            **self.counts(),
            "images": self.images,
            "blank": self.blank,
            "near_from": self.near_from,
            "within": dict(self.within),
            "near_within": self.near_within,
            "patients": self.patients.head(100).to_dict("records"),
            "exact": self.exact.head(100).to_dict("records"),
            "near": self.near.head(100).to_dict("records"),
            "conflicts": self.label_conflicts.head(100).to_dict("records"),
            "lines": self.lines(),
        }

    def _across(self) -> list[str]:
        found = []
        if len(self.patients):
            row = self.patients.iloc[0]
            images = _count(int(self.patients["images"].sum()), "image")
            found.append(
                f"patient {row['patient_id']} stands in {row['splits']} "
                f"({_count(len(self.patients), 'patient')} in all, {images})"
            )
        for pairs, what in ((self.exact, "hold the same pixels"), (self.near, "show the same picture")):
            if len(pairs):
                row = pairs.iloc[0]
                how = "" if pairs is self.exact else f", similarity {row['similarity']:.3f}"
                found.append(
                    f"{row['case_first']} ({row['split_first']}) and {row['case_second']} "
                    f"({row['split_second']}) {what} ({_count(len(pairs), 'such pair')}{how})"
                )
        return found


def check_leakage(
    frame: pd.DataFrame,
    signatures: Signatures,
    *,
    near: float = NEAR,
    within: bool = False,
    duplicates: Duplicates | None = None,
    progress: Progress | None = None,
) -> Leakage:
    """Look for patients and images that stand in more than one split.

    Parameters
    ----------
    frame
        One row per image, in the order of `signatures`: columns ``case_id``, ``patient_id``, ``split`` ("" for rows
        that are not used, which are not compared) and, for label conflicts, ``label``.
    near
        Least similarity of near duplicates; see ``docs/leakage.md``. Above 1: equal images only.
    within
        Also look for near duplicates inside each split.
    duplicates
        Those of these signatures over all pairs, if they are known already; saves the search.

    Raises
    ------
    ValueError
        If frame and signatures have different lengths.
    """
    if len(frame) != len(signatures):
        raise ValueError(f"{len(frame)} rows but {len(signatures)} signatures; give one signature per image")
    frame = frame.reset_index(drop=True)
    split = frame["split"].fillna("").astype(str).to_numpy(dtype=object)
    if duplicates is None:
        duplicates = find_duplicates(signatures, near=near, parts=None if within else split, progress=progress)
        complete = within
    else:
        complete = True
    group = np.where(signatures.blank, -1, duplicates.group)
    pairs, source = _all_copies(duplicates.pairs, group, split)
    similarity, flipped = duplicates.similarity[source], duplicates.flipped[source]
    same = split[pairs[:, 0]] == split[pairs[:, 1]]
    strong = (similarity >= near) & (split[pairs] != "").all(axis=1)
    crossing = strong & ~same
    exact = _crossing_exact(group, split)
    ones = np.ones(len(exact))
    return Leakage(
        patients=_shared_patients(frame, split),
        exact=_pair_table(frame, split, exact, ones, ones == 0),
        near=_pair_table(frame, split, pairs[crossing], similarity[crossing], flipped[crossing]),
        within=_within(group, split),
        near_within=int((strong & same).sum()) if complete else None,
        label_conflicts=_label_conflicts(frame, group),
        images=len(frame),
        blank=int(signatures.blank.sum()),
        near_from=float(near),
        not_comparable=int((~signatures.comparable & ~signatures.blank).sum()),
    )


@dataclass(frozen=True, eq=False)
class Repair:
    """Cases that are taken out of training or validation.

    Parameters
    ----------
    leave_out
        Row numbers of the frame, ascending.
    note
        One line for the report.
    """

    leave_out: Rows
    note: str


def repair_published(leakage: Leakage, frame: pd.DataFrame) -> Repair:
    """Leave out of training what a published split also has in validation.

    Raises
    ------
    LeakageError
        If anything touches test: such a benchmark measures something else, and only a person may decide to use it.
    """
    touching = [table for table in (leakage.exact, leakage.near) if "test" in set(table["split_second"])]
    shared = leakage.patients[leakage.patients["splits"].str.contains("test")]
    if touching or len(shared):
        if touching:
            row = touching[0][touching[0]["split_second"] == "test"].iloc[0]
            what = f"{row['case_first']} ({row['split_first']}) and {row['case_second']} (test) show the same image"
        else:
            what = f"patient {shared.iloc[0]['patient_id']} stands in {shared.iloc[0]['splits']}"
        raise LeakageError(
            f"the published split leaks into its test part: {what}; use another version of the "
            "benchmark, or pass --allow-leakage, which marks the report"
        )
    return repair(leakage, frame)


def repair(leakage: Leakage, frame: pd.DataFrame) -> Repair:
    """Take out of the earlier split (train before val before test) whatever also stands in a later one.

    Test cases are never taken out, so a test result stays comparable.
    """
    split = frame["split"].fillna("").astype(str).to_numpy(dtype=object)
    out = set(leakage.exact["first"]) | set(leakage.near["first"])
    patient = frame["patient_id"].astype(str).to_numpy(dtype=object)
    for row in leakage.patients.itertuples():
        rows = np.flatnonzero(patient == str(row.patient_id))
        last = max(_order(s) for s in split[rows] if s)
        out |= {int(r) for r in rows if split[r] and _order(split[r]) < last}
    leave_out = np.array(sorted(out), dtype=np.int64)
    if not len(leave_out):
        return Repair(leave_out, "")
    parts = [f"{n} from {name}" for name in SPLITS if (n := int((split[leave_out] == name).sum()))]
    why = [
        _count(n, word)
        for n, word in (
            (len(leakage.patients), "shared patient"),
            (len(leakage.exact), "pair of equal images"),
            (len(leakage.near), "pair of near duplicates"),
        )
        if n
    ]
    return Repair(
        leave_out, f"left out {' and '.join(parts)} because the split held {', '.join(why)}; what was kept is untouched"
    )


def duplicate_groups(
    duplicates: Duplicates, signatures: Signatures, *, patients: Sequence[Any] | None = None, cap: int | None = None
) -> tuple[Rows, int]:
    """What a splitter must keep together.

    Equal images and images of one patient always share a group. Near duplicates are joined from the most similar pair
    downwards, as long as the group stays within `cap` images: in a scan of thin slices each resembles the next, and
    such a chain must not swallow the collection.

    Parameters
    ----------
    patients
        ``(N,)`` patient of each image, to start from.
    cap
        Most images that near duplicates may join; default `LARGEST_GROUP` of all, at least `LEAST_CAP`.

    Returns
    -------
    tuple
        ``(N,)`` group numbers from 0, and how many near pairs were not joined (`check_leakage` after the split finds
        those that it separated, and `repair` takes them out of training).
    """
    count = len(signatures)
    limit = max(LEAST_CAP, round(LARGEST_GROUP * count)) if cap is None else cap
    forest = _Forest(count)
    for keys in (np.where(signatures.blank, -1, duplicates.group), _codes(patients)):
        if keys is not None:
            order = np.argsort(keys, kind="stable")
            for a, b in pairwise(order):
                if keys[a] == keys[b] and keys[a] >= 0:
                    forest.join(int(a), int(b), limit=count)
    order = np.argsort(-duplicates.similarity, kind="stable")
    cut = sum(not forest.join(int(a), int(b), limit=limit) for a, b in duplicates.pairs[order])
    roots = np.array([forest.root(row) for row in range(count)], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].reshape(-1).astype(np.int64), cut


class _Forest:
    """Disjoint sets with a limit to their size."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))
        self.size = [1] * count

    def root(self, row: int) -> int:
        while self.parent[row] != row:
            self.parent[row] = self.parent[self.parent[row]]
            row = self.parent[row]
        return row

    def join(self, a: int, b: int, *, limit: int) -> bool:
        """Whether `a` and `b` are in one set afterwards."""
        a, b = self.root(a), self.root(b)
        if a == b:
            return True
        if self.size[a] + self.size[b] > limit:
            return False
        if self.size[a] < self.size[b]:
            a, b = b, a
        self.parent[b] = a
        self.size[a] += self.size[b]
        return True


def _codes(names: Sequence[Any] | None) -> Rows | None:
    if names is None:
        return None
    codes, _ = pd.factorize(pd.Series(list(names)).astype(str))
    return codes.astype(np.int64)


def _order(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else -1


def _shared_patients(frame: pd.DataFrame, split: NDArray[Any]) -> pd.DataFrame:
    seen = pd.DataFrame({"patient_id": frame["patient_id"].astype(str), "split": split})[split != ""]
    groups = seen.groupby("patient_id", sort=True)["split"]
    shared = groups.nunique()
    rows = []
    for patient in shared.index[shared > 1]:
        splits = groups.get_group(patient)
        rows.append((patient, " and ".join(sorted(set(splits), key=_order)), len(splits)))
    return pd.DataFrame(rows, columns=["patient_id", "splits", "images"]).astype({"images": np.int64})


def _crossing_exact(group: Rows, split: NDArray[Any]) -> Rows:
    pairs = []
    for rows in exact_groups(group):
        firsts: dict[str, int] = {}
        for row in rows:
            firsts.setdefault(split[row], int(row))
        firsts.pop("", None)
        for row in rows:
            here = split[row]
            if here:
                pairs += [(int(row), other) for there, other in firsts.items() if _order(there) > _order(here)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _all_copies(pairs: Rows, group: Rows, split: NDArray[Any]) -> tuple[Rows, Rows]:
    """`pairs` also for the images that equal those named, and which pair each comes from.

    Every copy is paired with one copy of the other picture per split: enough to know which splits meet and which rows
    to leave out, without the square of their number.
    """
    members = {int(group[rows[0]]): rows for rows in exact_groups(group)}

    def copies(row: int) -> tuple[list[int], list[int]]:
        rows = members.get(int(group[row]), np.array([row]))
        firsts: dict[str, int] = {}
        for each in rows:
            firsts.setdefault(split[each], int(each))
        return [int(each) for each in rows], list(firsts.values())

    found: dict[tuple[int, int], int] = {}
    for number, (a, b) in enumerate(pairs):
        every_a, some_a = copies(int(a))
        every_b, some_b = copies(int(b))
        for first, second in [(x, y) for x in every_a for y in some_b] + [(x, y) for x in some_a for y in every_b]:
            found.setdefault((min(first, second), max(first, second)), number)
    return (np.array(list(found), dtype=np.int64).reshape(-1, 2), np.array(list(found.values()), dtype=np.int64))


def _pair_table(
    frame: pd.DataFrame, split: NDArray[Any], pairs: Rows, similarity: NDArray[Any], mirrored: NDArray[Any]
) -> pd.DataFrame:
    later = np.array([_order(split[a]) > _order(split[b]) for a, b in pairs], dtype=bool)
    pairs = np.where(later[:, None], pairs[:, ::-1], pairs)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -np.asarray(similarity, dtype=np.float64)))
    pairs = pairs[order]
    cases = frame["case_id"].astype(str).to_numpy(dtype=object)
    columns = (
        pairs[:, 0],
        pairs[:, 1],
        cases[pairs[:, 0]],
        cases[pairs[:, 1]],
        split[pairs[:, 0]],
        split[pairs[:, 1]],
        np.asarray(similarity, dtype=np.float64)[order],
        np.asarray(mirrored, dtype=bool)[order],
    )
    return pd.DataFrame(dict(zip(_PAIR_COLUMNS, columns, strict=True)))


def _within(group: Rows, split: NDArray[Any]) -> dict[str, int]:
    surplus = dict.fromkeys(sorted(set(split), key=_order), 0)
    for rows in exact_groups(group):
        for name, count in zip(*np.unique(split[rows].astype(str), return_counts=True), strict=True):
            surplus[str(name)] += int(count) - 1
    return surplus


def _label_conflicts(frame: pd.DataFrame, group: Rows) -> pd.DataFrame:
    rows = []
    if "label" in frame:
        labels = frame["label"].fillna("").astype(str).to_numpy(dtype=object)
        cases = frame["case_id"].astype(str).to_numpy(dtype=object)
        for members in exact_groups(group):
            if len(set(labels[members]) - {""}) > 1:
                rows.append((", ".join(cases[members]), ", ".join(labels[members]), members.tolist()))
    return pd.DataFrame(rows, columns=["cases", "labels", "rows"])


def _count(number: int, word: str) -> str:
    if number == 1:
        return f"1 {word}"
    if word.startswith("pair "):
        return f"{number} pairs{word[4:]}"
    return f"{number} {word}s"
