"""A study of a segmentation: means over cases with intervals over patients, by structure and over all structures.

A structure's number is the mean over the cases in which it is defined; ``absent`` cases (both masks empty) count in
`empty` instead, and infinite distances (one mask empty) are left out of means, with their number stated there, while
Dice and surface Dice count them as 0. A plain name is the mean of the structures' numbers, so that a rare structure
weighs as much as a common one. Lesion sensitivity is pooled: lesions found over lesions there are. So is
``dice_pooled``, the Dice of the masks of all cases as if they were one ("Dice global" of Bilic et al., Medical Image
Analysis 2023, https://doi.org/10.1016/j.media.2022.102680): large cases weigh more.

Patients are drawn with replacement and bring all their cases (`evaluate.interval`); where nobody knows the patients,
cases are drawn. A replicate that lost all cases of a structure takes the mean over the others.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.evaluate.certain import proportion, without_width
from vesalius.evaluate.interval import Estimate, FloatArray, Patients, bootstrap
from vesalius.evaluate.segment_ranking import ranked
from vesalius.evaluate.segment_table import IDENTITY, OUTCOMES
from vesalius.evaluate.subgroup import UNKNOWN, banded, excluded
from vesalius.measure.weights import mean_defined, ratio

SCHEMA = 1
# Means of the table, in the order of the JSON, with the unit of each.
MEANS = {
    **dict.fromkeys(("dice", "iou", "nsd"), "1"),
    **{f"{name}_{unit}": unit for name in ("hd95", "assd") for unit in ("mm", "px")},
    "volume_error_ml": "ml", "volume_error_px": "px", "volume_error_percent": "percent",
    "area_error_mm2": "mm2", "area_error_px": "px", "area_error_percent": "percent",
    **dict.fromkeys(("ap50", "ap50_95", "pq", "rq", "sq", "aji"), "1"),
    "count_error": "1",
}  # fmt: skip
# Errors have a sign: their mean is the bias. Their size stands under the same name with this in front.
SIGNED = ("volume_error_ml", "volume_error_px", "volume_error_percent", "area_error_mm2", "area_error_px",
          "area_error_percent", "count_error")  # fmt: skip
ABSOLUTE = "absolute_"
LESION = ("lesions_true", "lesions_detected", "lesions_false")
# Size of prediction and truth together, the denominator of Dice.
SIZES = "sizes"
# A structure is judged lesion by lesion when it falls into several parts in at least this share of its cases.
SEVERAL = 0.25
FEWEST_IN_GROUP = 10
# How a voxel is decided, without and with structures that overlap.
RULES = ("most probable", "half")
METHOD = {"bca": "BCa bootstrap over patients", "percentile": "percentile bootstrap over patients"}

_MADE = (*IDENTITY, *MEANS, *LESION, "lesion_sensitivity", "count_true", "count_pred", "path", "role", "fold")
_PREFIXES = ("tolerance_", "volume_true_", "volume_pred_", "area_true_", "area_pred_")


@dataclass(frozen=True, eq=False)
class SegmentStudy:
    """What is known about a segmentation model on a set of cases; `to_json` is the content of ``metrics.json``.

    `table` holds the judged rows (case by structure). `whole` is by metric, `per_class` by structure and metric; the
    other mappings are plain data as they stand in the JSON.
    """

    labels: Labels
    split: str
    table: pd.DataFrame
    whole: Mapping[str, Estimate]
    per_class: Mapping[str, Mapping[str, Estimate]]
    classes: Mapping[str, Any]
    empty: Mapping[str, Any]
    distribution: Mapping[str, Any]
    ranked: Mapping[str, Any]
    tolerances: Mapping[str, Any]
    subgroups: Mapping[str, Any]
    calibration: Mapping[str, Any]
    band: Mapping[str, Any]
    decision: Mapping[str, Any]
    intervals: Mapping[str, Any]
    timing: Mapping[str, Any]
    leakage: Mapping[str, Any]
    task: str = "segment"

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json`` (schema 1); a number that is not defined is NaN, written as null."""
        cases = self.table.drop_duplicates("case_id")
        return {
            "schema": SCHEMA,
            "task": self.task,
            "split": self.split,
            "cases": len(cases),
            "patients": int(cases["patient_id"].nunique()),
            "labels": self.labels.to_json(),
            "metrics": {name: estimate.to_json() for name, estimate in self.whole.items()},
            "per_class": {
                label: {name: estimate.to_json() for name, estimate in found.items()}
                for label, found in self.per_class.items()
            },
            "classes": dict(self.classes),
            "empty": dict(self.empty),
            "distribution": dict(self.distribution),
            "ranked": dict(self.ranked),
            "tolerances": dict(self.tolerances),
            "subgroups": dict(self.subgroups),
            "calibration": dict(self.calibration),
            "band": dict(self.band),
            "decision": dict(self.decision),
            "intervals": dict(self.intervals),
            "timing": dict(self.timing),
            "leakage": dict(self.leakage),
        }

    def metrics(self) -> dict[str, Any]:
        """`to_json`, by the name of the file that it fills."""
        return self.to_json()


def segment_study(
    table: pd.DataFrame,
    labels: Labels,
    *,
    split: str = "test",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    method: str = "bca",
    lesions: Sequence[str] | None = None,
    covariates: Sequence[str] | None = None,
    timing: Mapping[str, Any] | None = None,
    leakage: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    band: Mapping[str, Any] | None = None,
    decision: Mapping[str, Any] | None = None,
) -> SegmentStudy:
    """Judge the cases of one split.

    Parameters
    ----------
    table
        As `segment_table.segment_table` makes it; only cases of `split` are judged.
    level, resamples, seed, method
        Of the patient-level bootstrap; ``"bca"`` or ``"percentile"``.
    lesions
        Structures that are judged lesion by lesion; None: those in several parts in a quarter of their cases.
    covariates
        Columns for subgroups; None takes every covariate of the table, an empty list none.
    timing, leakage, calibration, band, decision
        Recorded as given; what is not known is null in the JSON, not 0.

    Raises
    ------
    DataError
        When the split has no cases, or a structure of `labels` has no rows.
    """
    judged = _of_split(table, split)
    grid = Arrays.of(judged, labels, lesions)
    draws: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed, "method": method}
    whole, per_class, mended = _estimates(grid, **draws)
    columns = covariates_of(table) if covariates is None else covariates
    return SegmentStudy(
        labels=labels,
        split=split,
        table=judged,
        whole=whole,
        per_class=per_class,
        classes=_sizes(grid),
        empty=_empty(grid),
        distribution=_distribution(grid),
        ranked=ranked(judged),
        tolerances=_tolerances(judged, labels),
        subgroups=_subgroups(grid, columns, whole=table, **draws),
        calibration=_known(calibration, temperature=None, ece={"before": None, "after": None}, reliability=[]),
        band=_known(band),
        decision=_known(decision, rule=RULES[labels.multilabel], thresholds={}, chosen_on="fixed"),
        intervals={**draws, "method": METHOD.get(method, method), "mended": mended},
        timing=_known(timing, train_s=None, predict_ms_per_case=None),
        leakage=_known(leakage, patients_shared=None, near_duplicates=None),
    )


def _known(given: Mapping[str, Any] | None, **expected: Any) -> dict[str, Any]:
    """What was given, and what the contract names but nobody gave."""
    return {**expected, **(given or {})}


# ------------------------------------------------------------------------------------------------------------- arrays


@dataclass(frozen=True, eq=False)
class Arrays:
    """The table as numbers.

    Parameters
    ----------
    cases
        One row per case: ``case_id``, ``patient_id`` and covariates.
    names
        Structures, L of them.
    outcome
        ``(N, L)`` positions in `OUTCOMES`.
    values
        By metric ``(N, L)``; NaN where it is not defined, infinite distances as they are.
    lesions
        Structures that are judged lesion by lesion.
    """

    cases: pd.DataFrame
    names: tuple[str, ...]
    outcome: NDArray[np.int64]
    values: Mapping[str, FloatArray]
    lesions: tuple[str, ...]

    @classmethod
    def of(cls, table: pd.DataFrame, labels: Labels, lesions: Sequence[str] | None = None) -> Arrays:
        """Arrays of a table whose cases all have a row for each structure.

        Raises
        ------
        DataError
            For a case that lacks a structure.
        """
        cases = table.drop_duplicates("case_id").reset_index(drop=True)
        row = cases.reset_index().set_index("case_id")["index"].reindex(table["case_id"]).to_numpy()
        names = labels.structures
        column = pd.Index(names).get_indexer(pd.Index(table["label"]))
        if (column < 0).any():
            strange = table["label"].to_numpy()[column < 0][0]
            raise DataError(f"the table holds the structure {strange!r}, which is not one of {', '.join(names)}")
        filled = np.zeros((len(cases), len(names)), dtype=np.int64)
        np.add.at(filled, (row, column), 1)
        if (filled != 1).any():
            n, k = np.argwhere(filled != 1)[0]
            raise DataError(f"case {cases['case_id'][n]}: {filled[n, k]} rows for {names[k]!r}, expected one")
        outcome = np.zeros(filled.shape, dtype=np.int64)
        outcome[row, column] = pd.Index(OUTCOMES).get_indexer(pd.Index(table["outcome"]))
        values = {}
        for name in (*MEANS, *LESION):
            if name in table.columns and table[name].notna().any():
                values[name] = np.full(filled.shape, np.nan)
                values[name][row, column] = table[name].to_numpy(dtype=np.float64)
        sizes = _both_sizes(table)
        if sizes is not None and "dice" in values:
            values[SIZES] = np.zeros(filled.shape)
            values[SIZES][row, column] = sizes
        for name in [name for name in values if name in SIGNED]:
            values[ABSOLUTE + name] = np.abs(values[name])
        return cls(cases, names, outcome, values, _by_lesion(values, names, lesions))

    def means(self) -> list[str]:
        """Metrics that are means over cases, in order."""
        found = []
        for name in MEANS:
            found += [one for one in (name, ABSOLUTE + name) if one in self.values]
        return found

    def part(self, chosen: NDArray[np.bool_]) -> Arrays:
        """The same for some of the cases."""
        values = {name: array[chosen] for name, array in self.values.items()}
        return replace(self, cases=self.cases.loc[chosen].reset_index(drop=True), outcome=self.outcome[chosen],
                       values=values)  # fmt: skip


def _both_sizes(table: pd.DataFrame) -> FloatArray | None:
    """Sizes of both masks together by row; None if they are unknown or come in several units, which have no sum."""
    units = [name for name in table.columns if name.startswith(("volume_true_", "area_true_"))]
    units = [name for name in units if table[name].notna().any()]
    if len(units) != 1:
        return None
    true, said = (table[name].to_numpy(dtype=np.float64) for name in (units[0], units[0].replace("_true_", "_pred_")))
    return np.asarray(true + said)


def _by_lesion(values: Mapping[str, FloatArray], names: Sequence[str], asked: Sequence[str] | None) -> tuple[str, ...]:
    if asked is not None:
        unknown = sorted(set(asked) - set(names))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of the structures {', '.join(names)}")
        return tuple(name for name in names if name in asked)
    if "lesions_true" not in values:
        return ()
    true = values["lesions_true"]
    several = ratio((true > 1).sum(axis=0), (true > 0).sum(axis=0))
    return tuple(name for name, share in zip(names, several, strict=True) if share >= SEVERAL)


def covariates_of(table: pd.DataFrame) -> list[str]:
    """Columns that describe the case and are neither identity, truth nor score."""
    return [str(c) for c in table.columns if c not in _MADE and not str(c).startswith(_PREFIXES)]


def _of_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    part = table.loc[table["split"] == split].reset_index(drop=True)
    if part.empty:
        there = ", ".join(repr(name) for name in sorted(table["split"].unique()))
        raise DataError(f"no case belongs to split {split!r}; the table has {there or 'no cases'}")
    unknown = part["patient_id"].isna() | (part["patient_id"].astype(str) == "")
    return part.assign(patient_id=part["patient_id"].where(~unknown, part["case_id"]).astype(str))


# ---------------------------------------------------------------------------------------------------------- intervals


@dataclass(frozen=True, eq=False)
class Means:
    """Weighted means and ratios of all structures at once, as `interval.bootstrap` asks for them.

    `above` and `below` ``(N, M)`` are what is summed; a number is the one sum over the other. `keys` are (structure,
    metric) of the M columns.
    """

    keys: Sequence[tuple[str, str]]
    above: FloatArray
    below: FloatArray

    @classmethod
    def of(cls, grid: Arrays) -> Means:
        """Every metric of every structure that has a value in at least one case."""
        keys, above, below = [], [], []
        for k, name in enumerate(grid.names):
            for metric in grid.means():
                mine = grid.values[metric][:, k]
                known = np.isfinite(mine)
                if known.any():
                    keys.append((name, metric))
                    above.append(np.where(known, mine, 0.0))
                    below.append(known.astype(np.float64))
            if SIZES in grid.values and grid.values[SIZES][:, k].any():
                weight = grid.values[SIZES][:, k]
                keys.append((name, "dice_pooled"))
                above.append(np.nan_to_num(grid.values["dice"][:, k]) * weight)
                below.append(weight)
            if name in grid.lesions and "lesions_true" in grid.values:
                true, found, false = (np.nan_to_num(grid.values[one][:, k]) for one in LESION)
                keys += [(name, "lesion_sensitivity"), (name, "lesion_false_per_case")]
                above += [found, false]
                below += [true, np.ones(len(true))]
        empty = np.zeros((len(grid.cases), 0))
        stacked = [np.stack(one, axis=1) if one else empty for one in (above, below)]
        return cls(keys, *stacked)

    def __call__(self, weights: FloatArray | None) -> dict[Hashable, FloatArray]:
        """By (structure, metric), and by ("", metric) the mean over the structures; ``()`` or ``(R,)``."""
        each = np.ones((1, len(self.above))) if weights is None else weights
        found = ratio(each @ self.above, each @ self.below)
        out: dict[Hashable, FloatArray] = {}
        for metric in dict.fromkeys(metric for _, metric in self.keys):
            mine = [place for place, (_, other) in enumerate(self.keys) if other == metric]
            out["", metric] = mean_defined(found[:, mine])
        out |= {key: found[:, place] for place, key in enumerate(self.keys)}
        return {key: value[0] if weights is None else value for key, value in out.items()}


def _estimates(grid: Arrays, **draws: Any) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]], list[str]]:
    """Numbers of the whole, of each structure, and the names of those whose interval had no width."""
    patients = Patients.of(grid.cases["patient_id"])
    found = bootstrap(Means.of(grid), patients, **draws)
    whole: dict[str, Estimate] = {}
    per_class: dict[str, dict[str, Estimate]] = {name: {} for name in grid.names}
    mended: list[str] = []
    for key, estimate in found.items():
        name, metric = key if isinstance(key, tuple) else ("", str(key))
        shown = replace(estimate, unit=MEANS.get(metric.removeprefix(ABSOLUTE), "1"))
        if without_width(shown):
            mended.append(f"{name}/{metric}" if name else metric)
            low, high = _without_spread(shown, metric, len(patients))
            shown = replace(shown, low=low, high=high)
        (per_class[name] if name else whole)[metric] = shown
    return whole, per_class, sorted(mended)


def _without_spread(estimate: Estimate, metric: str, patients: int) -> tuple[float, float]:
    """Limits where every replicate is the value itself: a certainty that a few patients cannot give.

    All or none of the lesions found is a proportion (Wilson, with the patients as its size); no false lesion in so many
    patients bounds a Poisson rate (Garwood, Biometrika 1936); of other means nothing is known.
    """
    if metric == "lesion_sensitivity":
        mended = proportion(estimate, patients)
        return mended.low, mended.high
    if metric == "lesion_false_per_case" and estimate.value == 0 and patients:
        return 0.0, float(-np.log((1 - estimate.level) / 2) / patients)
    return float("nan"), float("nan")


# ------------------------------------------------------------------------------------------------ what stands beside it


def _sizes(grid: Arrays) -> dict[str, Any]:
    """Cases and patients that truly have each structure."""
    people = Patients.of(grid.cases["patient_id"])
    held = grid.outcome < OUTCOMES.index("invented")
    return {
        name: {"cases": int(held[:, k].sum()), "patients": people.count(held[:, k])}
        for k, name in enumerate(grid.names)
    }


def _empty(grid: Arrays) -> dict[str, Any]:
    """Per structure how many cases had it found, missed, invented, and rightly left empty."""
    return {
        name: {outcome: int((grid.outcome[:, k] == n).sum()) for n, outcome in enumerate(OUTCOMES)}
        for k, name in enumerate(grid.names)
    }


def _distribution(grid: Arrays) -> dict[str, Any]:
    """Median, quartiles and ends per structure and metric; infinite distances count as larger than any other."""
    out: dict[str, Any] = {}
    for k, name in enumerate(grid.names):
        out[name] = {}
        for metric in grid.means():
            mine = grid.values[metric][:, k]
            known = np.sort(mine[~np.isnan(mine)])
            if len(known):
                # Quantiles that are values of cases: between a distance and an infinite one there is no mean.
                low, q1, median, q3, high = np.quantile(known, (0, 0.25, 0.5, 0.75, 1), method="inverted_cdf").tolist()
                out[name][metric] = {"cases": len(known), "least": low, "q1": q1, "median": median, "q3": q3,
                                     "most": high, "infinite": int(np.isinf(known).sum())}  # fmt: skip
    return out


def _tolerances(table: pd.DataFrame, labels: Labels) -> dict[str, Any]:
    """Tolerances of the surface Dice by structure; they may differ between cases of different voxel size."""
    out: dict[str, Any] = {}
    for unit in ("mm", "px"):
        if f"tolerance_{unit}" in table.columns:
            ends = table.groupby("label")[f"tolerance_{unit}"].agg(["min", "max"]).dropna()
            for name in labels.structures:
                if name in ends.index:
                    low, high = ends.loc[name].to_numpy(dtype=np.float64).tolist()
                    out.setdefault(name, []).append({"low": low, "high": high, "unit": unit})
    return out


def _subgroups(grid: Arrays, columns: Sequence[str], *, whole: pd.DataFrame, **draws: Any) -> dict[str, Any]:
    """The numbers of the whole by covariate and group, or why a covariate is no basis for groups."""
    cases = whole.drop_duplicates("case_id").assign(label="")
    found: dict[str, Any] = {}
    for column in columns:
        reason = excluded(cases, column)
        if reason:
            found[column] = {"excluded": reason}
            continue
        values = banded(grid.cases[column], column).to_numpy()
        groups: dict[str, Any] = {}
        for value in sorted(set(values), key=_place):
            part = grid.part(values == value)
            groups[value] = {"cases": len(part.cases), "patients": int(part.cases["patient_id"].nunique())}
            if len(part.cases) < FEWEST_IN_GROUP:
                groups[value]["note"] = f"not enough cases: {len(part.cases)} (at least {FEWEST_IN_GROUP})"
                continue
            estimates, _, _ = _estimates(part, **draws)
            groups[value]["metrics"] = {name: one.to_json() for name, one in estimates.items()}
        found[column] = {"groups": groups}
    return found


def _place(text: str) -> tuple[bool, float, str]:
    """Order of groups: bands by their lower end, names by alphabet, unknown last."""
    try:
        return text == UNKNOWN, float(text.split(" to ", maxsplit=1)[0]), text
    except ValueError:
        return text == UNKNOWN, float("inf"), text
