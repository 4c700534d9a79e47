"""The same metrics for parts of the cohort: by sex, site, scanner, age.

A number from too few cases says more about chance than about the group, so it is not given: a group needs 20 cases and
two classes. A column that determines the label (the cause of a finding) cuts the cohort by the answer and is left out,
with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from vesalius.core.labels import Labels
from vesalius.evaluate.certain import widened
from vesalius.evaluate.decision import Decision
from vesalius.evaluate.interval import Patients, bootstrap
from vesalius.evaluate.scores import Scores, of_whole

ENOUGH_CASES = 20
MOST_GROUPS = 20
UNKNOWN = "unknown"
# A number with more different values than this is cut into bands.
MOST_NUMBERS = 10


def subgroups(
    table: pd.DataFrame,
    labels: Labels,
    columns: Sequence[str],
    *,
    decision: Decision,
    whole: pd.DataFrame | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics by column and value, as plain data.

    Parameters
    ----------
    table
        The judged cases.
    columns
        Covariates.
    whole
        All cases that are known, to see whether a column determines the label; default `table`.

    Returns
    -------
    groups
        By column ``{"groups": {value: {"cases", "patients", "metrics"}}}`` or ``{"excluded": reason}``. A group that is
        too small has ``"note": "not enough cases: ..."`` instead of ``metrics``.
    """
    found: dict[str, Any] = {}
    for column in columns:
        reason = excluded(table if whole is None else whole, column)
        if reason:
            found[column] = {"excluded": reason}
            continue
        values = banded(table[column], column)
        groups = {}
        for value in _in_order(values):
            part = table.loc[(values == value).to_numpy()]
            groups[value] = _group(part, labels, decision, resamples=resamples, level=level, seed=seed)
        found[column] = {"groups": groups}
    return found


def excluded(table: pd.DataFrame, column: str) -> str:
    """Why `column` is no basis for subgroups; empty if it is one."""
    if column not in table.columns:
        return "the table has no such column"
    values = banded(table[column], column)
    count = values.nunique()
    if count < 2:
        return "has one value only"
    if count > MOST_GROUPS:
        return f"has {count} different values (at most {MOST_GROUPS} groups are shown)"
    if table["label"].nunique() > 1 and (table.groupby(values.to_numpy())["label"].nunique() == 1).all():
        return "determines the label, so every group would hold one class only"
    return ""


def banded(values: pd.Series, name: str) -> pd.Series:
    """Values as text; many different numbers become bands, absent values ``unknown``.

    Ages (a name with the word "age") become decades where at least half of these hold 20 cases, other numbers and
    sparse ages become quartiles of the known values. Bands are written ``"low to high"``: the ends of the decade, or
    the smallest and largest value of the quartile.
    """
    numbers = pd.to_numeric(values, errors="coerce").astype(np.float64)
    known = numbers.notna()
    # Dates can be read as numbers too, but a band of nanoseconds says nothing.
    other = pd.api.types.is_bool_dtype(values) or pd.api.types.is_datetime64_any_dtype(values)
    is_number = not other and known.any() and (known == values.notna()).all()
    if not is_number or numbers.nunique() <= MOST_NUMBERS:
        text = values.astype(object).where(values.notna(), UNKNOWN).astype(str)
        return text.where(text.str.strip() != "", UNKNOWN)
    held = numbers[known]
    out = pd.Series(UNKNOWN, index=values.index, dtype=object)
    if "age" in name.lower().replace("-", "_").split("_"):
        decades = (held // 10 * 10).astype(int)
        if (decades.value_counts() >= ENOUGH_CASES).mean() >= 0.5:
            out[known] = decades.map(lambda start: f"{start} to {start + 9}")
            return out.astype(str)
    out[known] = _spans(held, pd.qcut(held, 4, duplicates="drop"))
    return out.astype(str)


def _spans(held: pd.Series, bands: pd.Series) -> pd.Series:
    edges = held.groupby(bands, observed=True).agg(["min", "max"])
    names = {band: f"{row['min']:g} to {row['max']:g}" for band, row in edges.iterrows()}
    return bands.astype(object).map(names)


def _group(
    part: pd.DataFrame, labels: Labels, decision: Decision, *, resamples: int, level: float, seed: int
) -> dict[str, Any]:
    group: dict[str, Any] = {"cases": len(part), "patients": int(part["patient_id"].nunique())}
    if len(part) < ENOUGH_CASES:
        return group | {"note": f"not enough cases: {len(part)} (at least {ENOUGH_CASES})"}
    if part["label"].nunique() < 2:
        return group | {"note": f"not enough cases: one class only ({part['label'].iloc[0] or 'none'})"}
    scores = Scores.of(part, labels, decision)
    patients = Patients.of(part["patient_id"], scores.truth)
    estimates = bootstrap(scores, patients, resamples=resamples, level=level, seed=seed)
    estimates, _ = widened(estimates, scores, patients)
    return group | {"metrics": {name: estimate.to_json() for name, estimate in of_whole(estimates).items()}}


def _in_order(values: pd.Series) -> list[str]:
    """Bands by their lower end, names by alphabet, unknown last."""

    def place(text: str) -> tuple[bool, float, str]:
        head = text.split(" to ", maxsplit=1)[0]
        try:
            return text == UNKNOWN, float(head), text
        except ValueError:
            return text == UNKNOWN, float("inf"), text

    return sorted(values.unique(), key=place)
