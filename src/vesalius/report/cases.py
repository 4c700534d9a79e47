"""The per-case table as arrays: what the charts draw and which cases are worth a picture.

The charts are drawn from the table and not from ready-made curves, so that what a reader sees is what the cases say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.measure.ranking import precision_recall_curve, roc_curve

Floats = NDArray[np.float64]
PREFIX = "p."


@dataclass(frozen=True, eq=False)
class Cases:
    """Truth and probabilities of the cases whose label is known.

    Parameters
    ----------
    labels
        The classes, in the order of the columns of the arrays.
    table
        Only rows with a known label.
    truth
        ``(cases, classes)`` of True and False.
    probability
        ``(cases, classes)``.
    """

    labels: Labels
    table: pd.DataFrame
    truth: NDArray[np.bool_]
    probability: Floats

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def decided(self) -> NDArray[np.bool_]:
        """``(cases, classes)``: what the column `predicted` says."""
        return _one_hot(self.table["predicted"], self.labels)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """The column `correct`."""
        return np.asarray(self.table["correct"].fillna(False), dtype=bool)

    @cached_property
    def sureness(self) -> Floats:
        """How strongly the model believed in what it said, from 0.5 (or 1 / classes) to 1.

        Of several findings that may hold at once, the one whose probability was furthest from the truth counts for a
        wrong case, and the least decided one for a right case.
        """
        if not self.labels.multilabel:
            return np.asarray(self.probability.max(axis=1))
        belief = np.where(self.decided, self.probability, 1 - self.probability)
        wrong = self.decided != self.truth
        worst = np.where(wrong, belief, -np.inf).max(axis=1)
        fallen = np.where(np.isfinite(worst), worst, belief.max(axis=1))
        return np.asarray(np.where(self.correct, belief.min(axis=1), fallen))


def read_cases(table: pd.DataFrame, labels: Labels | None = None) -> Cases:
    """Arrays of a table with columns ``case_id, patient_id, label, predicted, correct, p.NAME...``.

    Raises
    ------
    DataError
        If a column is missing, or a label is not one of the classes.
    """
    missing = [c for c in ("case_id", "patient_id", "label", "predicted", "correct") if c not in table.columns]
    names = [str(c)[len(PREFIX) :] for c in table.columns if str(c).startswith(PREFIX)]
    if labels is not None:
        missing += [PREFIX + name for name in labels.names if name not in names]
    elif not names:
        missing.append(PREFIX + "NAME")
    if missing:
        raise DataError(
            f"the table of cases lacks {', '.join(missing)}; it has {', '.join(map(str, table.columns))}; "
            "write it again with `vesalius evaluate`"
        )
    if labels is None:
        texts = [str(v) for v in pd.concat([table["label"], table["predicted"]]).dropna()]
        several = len(names) < 2 or any("|" in text and text not in names for text in texts)
        labels = Labels(tuple(names), multilabel=several)
    columns = [PREFIX + name for name in labels.names]
    known = table["label"].notna() & table[columns].notna().all(axis=1)
    if not labels.multilabel:
        known &= table["label"].astype(str) != ""
    rows = table.loc[known].reset_index(drop=True)
    return Cases(labels, rows, _one_hot(rows["label"], labels), rows[columns].to_numpy(dtype=float))


def _one_hot(column: pd.Series, labels: Labels) -> NDArray[np.bool_]:
    place = {name: index for index, name in enumerate(labels.names)}
    hot = np.zeros((len(column), len(labels)), dtype=bool)
    for row, text in enumerate(column.fillna("").astype(str)):
        for name in [text] if text in place else text.split("|"):
            if name in place:
                hot[row, place[name]] = True
            elif name:
                raise DataError(f"label {name!r} in the table of cases is not one of {list(labels.names)}")
    return hot


# ---------------------------------------------------------------------------------------------------------- curves


def roc(truth: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """False and true positive rate from (0, 0) to (1, 1); empty if one of the two answers never is the truth."""
    if truth.all() or not truth.any():
        return np.empty(0), np.empty(0)
    x, y, _ = roc_curve(truth, score)
    return x, y


def precision_recall(truth: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """Recall and precision; empty if nobody has the finding.

    The conventional first point (recall 0, precision 1) is left out: no threshold of the model reaches it.
    """
    if not truth.any():
        return np.empty(0), np.empty(0)
    x, y, _ = precision_recall_curve(truth, score)
    return x[1:], y[1:]


def area(x: Floats, y: Floats) -> float:
    """Area under straight lines between the points; NaN without points."""
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)) if len(x) > 1 else float("nan")


def thinned(x: Floats, y: Floats, *, at_most: int = 400) -> tuple[Floats, Floats]:
    """The points that a screen can show: the ends, and no two closer than 2 / `at_most` of the square."""
    if len(x) <= at_most:
        return x, y
    kept = [0]
    for index in range(1, len(x) - 1):
        if abs(x[index] - x[kept[-1]]) + abs(y[index] - y[kept[-1]]) >= 2.0 / at_most:
            kept.append(index)
    kept.append(len(x) - 1)
    return x[kept], y[kept]


def claims(cases: Cases) -> tuple[NDArray[np.bool_], Floats]:
    """What calibration is about: (it came true, the probability that was given to it).

    Two classes: the positive one. Several exclusive classes: the class that was named. Several findings: every one.
    """
    if cases.labels.multilabel:
        return cases.truth.ravel(), cases.probability.ravel()
    if cases.labels.binary:
        return cases.truth[:, cases.labels.positive], cases.probability[:, cases.labels.positive]
    top = cases.probability.argmax(axis=1)
    rows = np.arange(len(cases))
    return cases.truth[rows, top], cases.probability[rows, top]


def confusion(cases: Cases) -> NDArray[np.int64]:
    """``(classes, classes)``: true class by named class, for exclusive classes."""
    return cases.truth.astype(np.int64).T @ cases.decided.astype(np.int64)


# ---------------------------------------------------------------------------------------------------------- gallery


@dataclass(frozen=True)
class Group:
    """Cases that belong side by side, with the reason why a reader should look at them."""

    title: str
    why: str
    case_ids: tuple[str, ...] = field(default=())


def groups(cases: Cases, *, each: int = 6) -> list[Group]:
    """Which cases to look at: surest wrong ones (by kind of error), borderline ones, surest right ones."""
    wrong = ~cases.correct
    sure = cases.sureness
    everyone = np.ones(len(cases), dtype=bool)
    out = []
    if cases.labels.binary:
        yes, no = cases.labels.names[cases.labels.positive], cases.labels.names[1 - cases.labels.positive]
        present = cases.truth[:, cases.labels.positive]
        # With a threshold away from 0.5, "sure" means far from it on the wrong side.
        doubt = _doubt_binary(cases)
        alarms, missed = f"False alarms: called {yes}, in truth {no}", f"Missed: called {no}, in truth {yes}"
        out.append(_group(cases, alarms, _WHY_ALARM, wrong & ~present, key=-doubt, each=each))
        out.append(_group(cases, missed, _WHY_MISSED, wrong & present, key=-doubt, each=each))
    else:
        doubt = sure if cases.labels.multilabel else _margin(cases.probability)
        out.append(_group(cases, "Surest wrong answers", _WHY_WRONG, wrong, key=-sure, each=2 * each))
    out.append(_group(cases, "Borderline", _WHY_BORDERLINE, everyone, key=doubt, each=each))
    out.append(_group(cases, "Surest right answers", _WHY_RIGHT, ~wrong, key=-sure, each=each))
    return [group for group in out if group.case_ids]


_WHY_ALARM = "Surest first. Look for what misled the model: a marker, a device, another disease, a wrong label."
_WHY_MISSED = "Surest first. Would a reader have seen it?"
_WHY_WRONG = "Surest first. Look for what misled the model, or for a wrong label."
_WHY_BORDERLINE = "The model was least decided here; a small change of the image may turn the answer."
_WHY_RIGHT = "What the model finds typical. Check that it is the disease that is typical, not the frame around it."


def threshold_used(cases: Cases) -> float | None:
    """The threshold of two-class answers: it lies between the highest "no" and the lowest "yes"; None if unclear."""
    if not cases.labels.binary or not len(cases):
        return None
    p = cases.probability[:, cases.labels.positive]
    called = cases.decided[:, cases.labels.positive]
    if called.all() or not called.any():
        return None
    highest_no, lowest_yes = float(p[~called].max()), float(p[called].min())
    if highest_no > lowest_yes:
        return None
    # One half where it explains the answers: a reader must not wonder about 0.4983.
    return 0.5 if highest_no <= 0.5 <= lowest_yes else (highest_no + lowest_yes) / 2


def _doubt_binary(cases: Cases) -> Floats:
    """Distance of the positive probability from the threshold that the answers were given with."""
    threshold = threshold_used(cases)
    return np.abs(cases.probability[:, cases.labels.positive] - (0.5 if threshold is None else threshold))


def _margin(probability: Floats) -> Floats:
    """Lead of the first class over the second."""
    ordered = np.sort(probability, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def _group(cases: Cases, title: str, why: str, which: NDArray[np.bool_], *, key: Floats, each: int) -> Group:
    order = np.argsort(key, kind="stable")
    ids = cases.table["case_id"].to_numpy()[order[which[order]]][:each]
    return Group(title, why, tuple(str(i) for i in ids))


def cases_worth_a_picture(table: pd.DataFrame, labels: Labels | None = None, *, each: int = 6) -> list[str]:
    """Case ids that the study report would show, each once; the caller makes the pictures of just these."""
    shown = [case for group in groups(read_cases(table, labels), each=each) for case in group.case_ids]
    return list(dict.fromkeys(shown))
