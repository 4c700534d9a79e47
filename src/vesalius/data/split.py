"""Training, validation and test parts in which no patient and no group of duplicates stands twice.

Parts are filled class by class, the rarest first (iterative stratification, Sechidis et al., "On the stratification of
multi-label data", ECML PKDD 2011), with whole groups instead of single cases. Within a class the large groups are dealt
first and each goes to the part that is furthest behind its share by Sainte-Laguë's rule, so that every part gets large
and small patients alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vesalius.core.errors import DataError, UsageError
from vesalius.core.randomness import generator
from vesalius.data.manifest import Manifest
from vesalius.data.naming import SPLITS, nearest
from vesalius.data.problem import Problem

Ints = NDArray[np.int64]

PATIENT = "patient"
_GIVEN = ("official", "column", "folder")
_MOST_KEPT_BACK = 0.95
# Up to this many sites every choice of test sites is weighed.
_FEW_SITES = 12
_OFF_TARGET = 0.05
_SHOWN = 12


def split_manifest(
    manifest: Manifest,
    *,
    seed: int,
    val: float = 0.15,
    test: float = 0.2,
    by: str | None = PATIENT,
    groups: Sequence[Sequence[int]] = (),
    folds: int = 0,
) -> Manifest:
    """The manifest with every case in a part, and a note on what was achieved.

    A split that came with the data is kept. Only what it lacks is cut out of its training part: `val` (and `test`) are
    then parts of the training cases. Cases to which such a split gives no part stay without one.

    Parameters
    ----------
    seed
        The same seed gives the same split, whatever the order of the rows.
    val, test
        Parts of all cases; 0 for none.
    by
        ``patient``, or a column such as ``site`` whose values are left out as a whole for the test.
    groups
        Cases that must stay together beyond the patient (duplicates): positions in ``manifest.cases``.
    folds
        At least 2: a column ``fold`` numbers equal parts of everything but the test (-1 there) for cross-validation.

    Raises
    ------
    UsageError
        If the parts, the column or the number of folds make no sense.
    DataError
        If a class has too few patients to stand in every part.
    """
    by = by or PATIENT
    _check_settings(manifest, val, test, by, folds)
    cohort = _Cohort(manifest, groups)
    given = cohort.cases["split"].to_numpy(dtype=object).copy()
    if manifest.split_source in _GIVEN and (given != "").any():
        if by != PATIENT:
            raise UsageError(
                f"{manifest.root}: the data come with a split, so they cannot be split by {by!r} as well; remove the "
                "split from the manifest or split by patient"
            )
        parts, notes = _complete(cohort, given, seed, {"val": val, "test": test})
        source = manifest.split_source
    elif by == PATIENT:
        parts = np.array(SPLITS, dtype=object)[_deal(cohort, cohort.everyone, _shares(val, test), seed, "split")]
        notes, source = [], "made"
    else:
        parts, notes = _by_column(cohort, by, seed, val, test)
        source = "made"
    frame = manifest.frame.copy()
    ids = cohort.cases["case_id"].tolist()
    frame["split"] = frame["case_id"].map(dict(zip(ids, parts.tolist(), strict=True))).fillna("").astype("str")
    if folds:
        frame["fold"] = frame["case_id"].map(dict(zip(ids, _folds(cohort, parts, folds, seed).tolist(), strict=True)))
    made = manifest.with_frame(frame, split_source=source)
    return made.with_problems(*notes, *achieved(made, _shares(val, test) if source == "made" else {}, by))


def _check_settings(manifest: Manifest, val: float, test: float, by: str, folds: int) -> None:
    if not (val >= 0 and test >= 0 and val + test <= _MOST_KEPT_BACK):
        raise UsageError(
            f"split val={val:g} test={test:g}: expected parts of at least 0 that leave {1 - _MOST_KEPT_BACK:.0%} for "
            "training, for example val=0.15 test=0.2"
        )
    if folds and folds < 2:
        raise UsageError(f"folds={folds}: expected 0 for none, or at least 2")
    if by != PATIENT and by not in manifest.covariates:
        raise UsageError(
            f"split by {by!r}: there is no such column{nearest(by, manifest.covariates)}; the data have "
            f"{manifest.covariates or 'no covariates'}; add it to the manifest or split by patient"
        )


def _shares(val: float, test: float) -> dict[str, float]:
    return {"train": 1 - val - test, "val": val, "test": test}


class _Cohort:
    """Cases in the order of their ids, the group of each, and the classes that each shows."""

    def __init__(self, manifest: Manifest, groups: Sequence[Sequence[int]] = ()) -> None:
        unsorted = manifest.cases
        order = np.argsort(unsorted["case_id"].to_numpy(dtype=object), kind="stable")
        self.root = manifest.root
        self.cases = unsorted.iloc[order].reset_index(drop=True)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        self.group = _joined(self.cases["patient_id"], [place[_checked(members, len(place))] for members in groups])
        self.shows, self.names = _classes(manifest, self.cases["label"])
        self.strict = manifest.task in ("classify", "video")

    @property
    def everyone(self) -> NDArray[np.bool_]:
        return np.ones(len(self.cases), dtype=bool)


def _checked(members: Sequence[int], cases: int) -> Ints:
    rows = np.asarray(members, dtype=np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= cases):
        raise UsageError(
            f"groups name row {int(rows.max())}, but there are {cases} cases; give positions in manifest.cases"
        )
    return rows


def _joined(patients: pd.Series, groups: Sequence[Ints]) -> Ints:
    """A number per case, equal for cases that share a patient or a group, directly or through others."""
    cases = len(patients)
    ends = [np.arange(cases)]
    starts = [cases + pd.factorize(patients)[0].astype(np.int64)]
    for members in groups:
        ends.append(members[1:])
        starts.append(np.broadcast_to(members[:1], members[1:].shape))
    tail, head = np.concatenate(ends), np.concatenate(starts)
    nodes = 2 * cases
    links = coo_array((np.ones(len(tail), dtype=np.int8), (tail, head)), shape=(nodes, nodes))
    _, component = connected_components(links, directed=False)
    return pd.factorize(component[:cases])[0].astype(np.int64)


def _classes(manifest: Manifest, labels: pd.Series) -> tuple[NDArray[np.bool_], list[str]]:
    """Which case shows which class ``(N, K)``; cases without any form a class of their own, which has no name."""
    names: list[str] = []
    if manifest.labels is not None and manifest.task != "segment":
        names = list(manifest.labels.names)
    columns = [("|" + labels + "|").str.contains(f"|{name}|", regex=False).to_numpy(dtype=bool) for name in names]
    columns = [column for column in columns if column.any()]
    names = [name for name in names if ("|" + labels + "|").str.contains(f"|{name}|", regex=False).any()]
    shows = np.stack(columns, axis=1) if columns else np.zeros((len(labels), 0), dtype=bool)
    nothing = ~shows.any(axis=1, keepdims=True)
    return np.concatenate([shows, nothing], axis=1), names


def _deal(cohort: _Cohort, chosen: NDArray[np.bool_], shares: Mapping[str, float], seed: int, purpose: str) -> Ints:
    """The part (index into `shares`) of each case, -1 for those that are not `chosen`.

    Raises
    ------
    DataError
        If there are fewer groups than parts, in all or in a class.
    """
    fractions = np.array(list(shares.values()))
    open_parts = np.flatnonzero(fractions > 0)
    numbers, group = np.unique(cohort.group[chosen], return_inverse=True)
    weights = np.zeros((len(numbers), cohort.shows.shape[1]), dtype=np.int64)
    np.add.at(weights, group, cohort.shows[chosen])
    sizes = np.bincount(group, minlength=len(numbers))
    _refuse_few(cohort, weights, [list(shares)[part] for part in open_parts])
    # Chance decides among groups of one size only.
    order = generator(seed, purpose).permutation(len(numbers))
    order = order[np.argsort(-sizes[order], kind="stable")]
    part_of = np.full(len(numbers), -1, dtype=np.int64)
    filled = np.zeros((len(fractions), weights.shape[1]), dtype=np.int64)
    rest = weights > 0
    while rest.any():
        waiting = rest.sum(axis=0)
        label = int(np.argmin(np.where(waiting > 0, waiting, np.iinfo(np.int64).max)))
        left = int(waiting[label])
        for one in order[rest[order, label]]:
            lacking = open_parts[filled[open_parts, label] == 0]
            # When as many groups are left as parts without this class, each of these must get one.
            wanted = lacking if len(lacking) >= left else open_parts
            behind = (filled[wanted, label] + weights[one, label] / 2) / fractions[wanted]
            part = int(wanted[np.argmin(behind)])
            part_of[one] = part
            filled[part] += weights[one]
            left -= 1
        rest[part_of >= 0] = False
    result = np.full(len(chosen), -1, dtype=np.int64)
    result[chosen] = part_of[group]
    return result


def _refuse_few(cohort: _Cohort, weights: Ints, parts: Sequence[str]) -> None:
    needed = len(parts)
    if len(weights) < needed:
        raise DataError(
            f"{cohort.root}: {len(weights)} patients cannot fill {needed} parts ({', '.join(parts)}); add patients, or "
            "set a part to 0 (--set split.val=0)"
        )
    if not cohort.strict:
        return
    for index, name in enumerate(cohort.names):
        patients = int((weights[:, index] > 0).sum())
        if 0 < patients < needed:
            raise DataError(
                f"{cohort.root}: class {name!r} has {int(weights[:, index].sum())} cases of {patients} patient(s), too "
                f"few for each of {', '.join(parts)}; add patients, merge it with another class, leave it out, or "
                "give a column `split`"
            )


def _complete(
    cohort: _Cohort, given: NDArray[np.object_], seed: int, asked: Mapping[str, float]
) -> tuple[NDArray[np.object_], list[Problem]]:
    """A split that came with the data, and what it lacks cut out of its training part."""
    if not (given == "train").any():
        raise DataError(
            f"{cohort.root}: the split that comes with the data has no training cases; expected train, and "
            "usually val and test; correct the split"
        )
    lacking = {part: share for part, share in asked.items() if share > 0 and not (given == part).any()}
    notes = []
    if lacking:
        # A patient who also stands elsewhere stays in training: moving him would spoil a part that was given.
        elsewhere = np.unique(cohort.group[(given != "train")])
        free = (given == "train") & ~np.isin(cohort.group, elsewhere)
        shares = {"train": 1 - sum(lacking.values()), **lacking}
        dealt = _deal(cohort, free, shares, seed, "complete split")
        names = np.array(list(shares), dtype=object)
        given[free] = names[dealt[free]]
        cut = " and ".join(f"{int((given == part).sum())} cases for {part}" for part in lacking)
        notes.append(
            Problem(
                "note",
                "",
                f"the split that came with the data has no {' and no '.join(lacking)}; {cut} were "
                "cut out of train, by patient",
            )
        )
    if not (given == "test").any():
        notes.append(
            Problem(
                "warning",
                "",
                "there is no test part, so the result is known on validation only, which "
                "chose the model; keep some patients back for a test",
            )
        )
    return given, notes


def _by_column(
    cohort: _Cohort, by: str, seed: int, val: float, test: float
) -> tuple[NDArray[np.object_], list[Problem]]:
    """Whole sites for the test; validation out of the other sites, by patient."""
    site = cohort.cases[by].astype("str").where(cohort.cases[by].notna(), "")
    if (site == "").any():
        first = cohort.cases.loc[site == "", "case_id"].iloc[0]
        raise DataError(
            f"{cohort.root}: {int((site == '').sum())} cases have no {by}, first {first!r}; expected one per "
            "case; fill the column or split by patient"
        )
    # A patient seen at two sites ties them together.
    unit = _joined(
        cohort.cases["patient_id"].str.cat(site, sep="\x1f"),
        [
            np.flatnonzero(codes == number)
            for codes in (cohort.group, pd.factorize(site)[0])
            for number in np.unique(codes)
        ],
    )
    if unit.max() == 0:
        raise DataError(
            f"{cohort.root}: {site.nunique()} value(s) of {by}, tied together by shared patients, are one unit; "
            f"expected at least two independent ones to leave some out; split by patient"
        )
    held = _held_out(cohort, unit, test, seed) if test > 0 else np.zeros(len(unit), dtype=bool)
    parts = np.full(len(unit), "test", dtype=object)
    shares = {"train": 1 - val / (1 - test), "val": val / (1 - test)}
    dealt = _deal(cohort, ~held, shares, seed, "split of the other sites")
    parts[~held] = np.array(list(shares), dtype=object)[dealt[~held]]
    names = ", ".join(sorted(site[held].unique())[:6])
    return parts, [
        Problem("note", "", f"test holds {site[held].nunique()} of {site.nunique()} values of {by} as a whole: {names}")
    ]


def _held_out(cohort: _Cohort, unit: Ints, test: float, seed: int) -> NDArray[np.bool_]:
    """Units whose cases come nearest to the part `test` while both sides keep every class they can."""
    count = int(unit.max()) + 1
    weights = np.zeros((count, cohort.shows.shape[1]), dtype=np.int64)
    np.add.at(weights, unit, cohort.shows)
    sizes = np.bincount(unit, minlength=count)
    order = generator(seed, "sites").permutation(count)

    def cost(choice: Sequence[int]) -> float:
        inside = np.zeros(count, dtype=bool)
        inside[list(choice)] = True
        lost = ((weights[inside].sum(axis=0) == 0) ^ (weights[~inside].sum(axis=0) == 0))[: len(cohort.names)].sum()
        return float(lost) + abs(float(sizes[inside].sum()) / float(sizes.sum()) - test)

    if count <= _FEW_SITES:
        choices = (choice for number in range(1, count) for choice in combinations(order.tolist(), number))
        best = min(choices, key=cost)
    else:
        best = (int(order[0]),)
        for one in order[1:].tolist():
            best = min(best, (*best, one), key=cost)
    return np.isin(unit, best)


def _folds(cohort: _Cohort, parts: NDArray[np.object_], folds: int, seed: int) -> Ints:
    rest = (parts != "test") & (parts != "")
    return _deal(cohort, rest, {f"fold {index}": 1 / folds for index in range(folds)}, seed, "folds")


def achieved(manifest: Manifest, asked: Mapping[str, float], by: str = PATIENT) -> list[Problem]:
    """What the parts hold, per class, and a warning where they are far from what was asked."""
    counts = manifest.counts()
    total = sum(counts["splits"].values())
    told = [
        f"{part} {cases} cases of {counts['split_patients'][part]} patients ({cases / total:.1%})"
        for part, cases in counts["splits"].items()
    ]
    text = f"split by {by}: {', '.join(told)}"
    classes = []
    for name, whole in list(counts["classes"].items())[:_SHOWN]:
        parts = [f"{shown[name] / whole:.1%}" for shown in counts["split_classes"].values() if whole]
        classes.append(f"{name} {'/'.join(parts)}")
    if classes:
        text += f"; per class {'/'.join(counts['splits'])}: {', '.join(classes)}"
    problems = [Problem("note", "", text)]
    for part, share in asked.items():
        found = counts["splits"].get(part, 0) / total
        if abs(found - share) > _OFF_TARGET:
            problems.append(
                Problem(
                    "warning",
                    "",
                    f"{part} holds {found:.1%} of the cases instead of {share:.1%}, because "
                    f"a {by} or a group of duplicates cannot be divided; more patients would help",
                )
            )
    if manifest.task in ("classify", "video", "detect"):
        for part, shown in counts["split_classes"].items():
            absent = [name for name, number in shown.items() if number == 0]
            if absent:
                problems.append(
                    Problem(
                        "warning",
                        "",
                        f"{part} has no case of class {absent[0]!r}"
                        f"{f' and {len(absent) - 1} more' if len(absent) > 1 else ''}; nothing can be said "
                        "about it there",
                    )
                )
    return problems
