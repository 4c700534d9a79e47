"""The table behind every reported number: one row per case.

Columns: ``case_id, patient_id, split, label, predicted, correct``, then ``p.NAME`` and ``logit.NAME`` per class,
``spread``, and the covariates of the manifest. ``label`` and ``predicted`` are class names; for labels that may hold
together ``"a|b"``, in the order of the classes, and ``""`` for none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vesalius.core.errors import DataError, UnreadableFile
from vesalius.core.files import atomic
from vesalius.core.labels import Labels
from vesalius.evaluate.decision import Decision

FIXED = ("case_id", "patient_id", "split", "label", "predicted", "correct", "spread")
# Where a case lies is not a property of the case: these columns of a manifest are no covariates.
PLACES = ("path", "role")
SEPARATOR = "|"


def build_table(
    rows: pd.DataFrame,
    labels: Labels,
    probabilities: ArrayLike,
    logits: ArrayLike | None = None,
    *,
    spread: ArrayLike | None = None,
    decision: Decision | None = None,
) -> pd.DataFrame:
    """The table of cases from rows of a manifest and what the model said of them.

    Parameters
    ----------
    rows
        N rows with ``case_id``, ``patient_id``, ``label``, possibly ``split`` and covariates.
    probabilities
        ``(N, K)`` in the order of `labels`, calibrated; ``(N,)`` of the positive class for a yes/no question.
    logits
        ``(N, K)`` before calibration, or ``(N,)`` of the positive class (that of the other is then 0).
    spread
        ``(N,)``, standard deviation of the top probability over views or members.
    decision
        Default: the most probable class, or 0.5.

    Raises
    ------
    DataError
        For columns that are missing, case ids that repeat, and labels that are not among the classes.
    ValueError
        For arrays that do not fit.
    """
    missing = [name for name in ("case_id", "patient_id", "label") if name not in rows.columns]
    if missing:
        raise DataError(f"the rows of the cases have no column {missing[0]!r}; they have {', '.join(rows.columns)}")
    stated = _per_class(probabilities, labels, len(rows), 1.0)
    if not ((stated >= 0) & (stated <= 1 + 1e-6)).all():
        raise ValueError("probabilities must lie between 0 and 1")
    table = pd.DataFrame(
        {
            "case_id": rows["case_id"].astype(str).to_numpy(),
            "patient_id": rows["patient_id"].astype(str).to_numpy(),
            "split": rows["split"].astype(str).to_numpy() if "split" in rows.columns else "",
            "label": rows["label"].fillna("").astype(str).to_numpy(),
        }
    )
    repeated = table["case_id"][table["case_id"].duplicated()]
    if len(repeated):
        raise DataError(
            f"case {repeated.iloc[0]!r} stands in the table more than once; give every case its own case_id"
        )
    parts = {f"p.{name}": stated[:, k] for k, name in enumerate(labels.names)}
    if logits is not None:
        raw = _per_class(logits, labels, len(rows), 0.0)
        parts |= {f"logit.{name}": raw[:, k] for k, name in enumerate(labels.names)}
    parts["spread"] = np.full(len(rows), np.nan) if spread is None else np.asarray(spread, dtype=np.float64)
    covariates = [name for name in rows.columns if name not in (*FIXED, *PLACES, *parts)]
    table = pd.concat([table, pd.DataFrame(parts), rows[covariates].reset_index(drop=True)], axis=1)
    return decided(table, labels, decision or Decision())


def decided(table: pd.DataFrame, labels: Labels, decision: Decision) -> pd.DataFrame:
    """A copy of the table with ``predicted`` and ``correct`` by `decision`."""
    guess = decision.guess(labels, probabilities_of(table, labels))
    correct = guess == truth_of(table, labels)
    out = table.drop(columns=[name for name in ("predicted", "correct") if name in table.columns])
    place = list(out.columns).index("label") + 1
    out.insert(place, "predicted", names_of(guess, labels))
    out.insert(place + 1, "correct", correct.all(axis=1) if labels.multilabel else correct)
    return out


def truth_of(table: pd.DataFrame, labels: Labels) -> NDArray[Any]:
    """Class numbers ``(N,)``, or ``(N, K)`` bool for labels that may hold together.

    Raises
    ------
    DataError
        Names the first case whose label is not one of the classes.
    """
    index = {name: number for number, name in enumerate(labels.names)}
    if not labels.multilabel:
        numbers = table["label"].map(index)
        if numbers.isna().any():
            row = table.loc[numbers.isna()].iloc[0]
            raise DataError(
                f"case {row['case_id']}: label {row['label']!r} is not one of {', '.join(labels.names)}; "
                "correct the label or leave the case out"
            )
        return numbers.to_numpy(dtype=np.int64)
    held = np.zeros((len(table), len(labels)), dtype=bool)
    for row_number, (case_id, text) in enumerate(zip(table["case_id"], table["label"], strict=True)):
        for name in filter(None, str(text).split(SEPARATOR)):
            if name not in index:
                raise DataError(f"case {case_id}: label {name!r} is not one of {', '.join(labels.names)}")
            held[row_number, index[name]] = True
    return held


def names_of(guess: NDArray[Any], labels: Labels) -> list[str]:
    """The inverse of `truth_of`: names, or names joined by ``|``."""
    if not labels.multilabel:
        return [labels.names[number] for number in guess]
    return [SEPARATOR.join(name for name, yes in zip(labels.names, row, strict=True) if yes) for row in guess]


def probabilities_of(table: pd.DataFrame, labels: Labels) -> NDArray[np.float64]:
    """``(N, K)`` calibrated probabilities in the order of `labels`."""
    return _columns(table, labels, "p")


def logits_of(table: pd.DataFrame, labels: Labels) -> NDArray[np.float64] | None:
    """``(N, K)`` logits before calibration, or None where the table has none."""
    if f"logit.{labels.names[0]}" not in table.columns:
        return None
    return _columns(table, labels, "logit")


def covariates_of(table: pd.DataFrame) -> list[str]:
    """Columns that describe the case and are neither identity, truth nor prediction."""
    return [str(c) for c in table.columns if c not in (*FIXED, *PLACES) and not str(c).startswith(("p.", "logit."))]


def write_table(path: str | Path, table: pd.DataFrame) -> Path:
    """Write ``cases.parquet``, atomically."""
    with atomic(path) as file:
        table.to_parquet(file, index=False)
    return Path(path)


def read_table(path: str | Path, labels: Labels | None = None) -> pd.DataFrame:
    """Read ``cases.parquet``; with `labels` its columns of probabilities are checked.

    Raises
    ------
    UnreadableFile
        If the file is absent, broken, or lacks a column.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UnreadableFile(
            path,
            found=str(error) or type(error).__name__,
            expected="a table of cases (Parquet)",
            do="evaluate the run again",
        ) from error
    wanted: Sequence[str] = [name for name in FIXED if name != "spread"]
    if labels is not None:
        wanted = [*wanted, *(f"p.{name}" for name in labels.names)]
    absent = [name for name in wanted if name not in table.columns]
    if absent:
        raise UnreadableFile(
            path, found=f"no column {absent[0]!r}", expected="a table of cases", do="evaluate the run again"
        )
    return table


def failing(table: pd.DataFrame, n: int = 20) -> pd.DataFrame:
    """The `n` wrong cases with the highest confidence, surest first."""
    return _ranked(table.loc[~table["correct"].astype(bool)], n, ascending=False)


def surest(table: pd.DataFrame, n: int = 20) -> pd.DataFrame:
    """The `n` right cases with the highest confidence, surest first."""
    return _ranked(table.loc[table["correct"].astype(bool)], n, ascending=False)


def borderline(table: pd.DataFrame, n: int = 20) -> pd.DataFrame:
    """The `n` cases, right or wrong, with the lowest confidence, least sure first."""
    return _ranked(table, n, ascending=True)


def confidence_of(table: pd.DataFrame) -> NDArray[np.float64]:
    """How sure the model is of each case, ``(N,)``.

    The highest probability where they sum to 1; for labels that may hold together the distance from undecided of the
    least sure label, ``max(p, 1 - p)``, since one doubtful label makes the answer doubtful.
    """
    stated = table[[c for c in table.columns if str(c).startswith("p.")]].to_numpy(dtype=np.float64)
    if stated.shape[1] > 1 and np.allclose(stated.sum(axis=1), 1.0, atol=1e-4):
        return np.asarray(stated.max(axis=1))
    return np.asarray(np.maximum(stated, 1 - stated).min(axis=1))


def _ranked(table: pd.DataFrame, n: int, *, ascending: bool) -> pd.DataFrame:
    ranked = table.assign(confidence=confidence_of(table))
    # The case id breaks ties, so that the list does not depend on the order of the rows.
    return ranked.sort_values(["confidence", "case_id"], ascending=[ascending, True]).head(n).reset_index(drop=True)


def _columns(table: pd.DataFrame, labels: Labels, kind: str) -> NDArray[np.float64]:
    wanted = [f"{kind}.{name}" for name in labels.names]
    absent = [name for name in wanted if name not in table.columns]
    if absent:
        raise DataError(f"the table of cases has no column {absent[0]!r}; it was made for other classes")
    return table[wanted].to_numpy(dtype=np.float64)


def _per_class(values: ArrayLike, labels: Labels, cases: int, total: float) -> NDArray[np.float64]:
    """``(N, K)``; a single column of the positive class is completed to two whose other is ``total - it`` or 0."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1 and labels.binary:
        other = total - array if total else np.zeros_like(array)
        array = np.stack([other, array] if labels.positive == 1 else [array, other], axis=1)
    elif array.ndim == 1 and len(labels) == 1:
        array = array[:, None]
    if array.shape != (cases, len(labels)):
        raise ValueError(f"{cases} cases of {len(labels)} classes, but the values have shape {np.shape(values)}")
    return array
