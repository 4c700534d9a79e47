"""Which cleaning of masks is worth it, decided on predictions of cases that the networks had not seen.

The order is fixed, and each step is judged on top of those taken before it:

1. the largest component of the whole foreground (where there are several labels),
2. for each label its largest component and a smallest volume: the better of them, then the other on top of it,
3. for each label, filled holes.

A step is taken when the mean Dice rises by more than `GAIN` and the patient-level interval of the difference does not
reach below 0 (it never does when no case loses). The first step must moreover not cost any single label more than
`GAIN`. Labels that too few patients have are left alone: for them there is no evidence.

A case without the label in the truth scores 1 when nothing is predicted and 0 otherwise, before and after; else
clearing false alarms of healthy patients, the most common use of such steps, would count for nothing. Candidates of the
smallest volume are percentiles of the volumes of the true components. All candidates are tried on the same cases, so
the gain of the chosen ones is flattered a little: judge the result on a test set.

Every case is read once and then forgotten. What stays of it are its pieces: the largest sets of voxels that all of
these steps treat alike. The Dice after any of them is a sum over pieces, the same number as that of the mask which
`apply_steps` would give.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.evaluate.interval import Estimate, Patients, bootstrap
from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import checked_labels, label_boxes
from vesalius.measure.components import Nesting, Step, nesting, part_voxels, staying
from vesalius.measure.contingency import contingency
from vesalius.measure.lesions import components
from vesalius.measure.weights import FloatArray, IntArray

BoolArray = NDArray[np.bool_]
Case = tuple[NDArray[Any], NDArray[Any], Sequence[float] | None, str]

# A smaller rise of the mean Dice is not worth a step that can go wrong.
GAIN = 1e-4
ENOUGH_PATIENTS = 5
# Stands for the ignored value in layers, where labels are numbered anew.
_IGNORED = 1 << 30
PERCENTILES = (1.0, 5.0, 10.0, 25.0, 50.0)
COLUMNS = (
    "name", "label", "cases", "patients", "before", "after", "difference", "low", "high", "false_before",
    "false_after", "missed_before", "missed_after", "chosen", "reason",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Choice:
    """Steps for `apply_steps` (`apply_to_layers` for overlapping regions), in order, and why.

    `evidence` has one row per candidate, in the order in which they were judged, with `COLUMNS`: mean Dice over the
    cases ``before`` and ``after``, their ``difference`` with its interval, mean number per case of predicted components
    that touch no true one (``false``) and of true ones that none touches (``missed``), both counted before holes are
    filled. The last row is all chosen steps together against none, as a mean over the labels.
    """

    steps: tuple[Step, ...]
    evidence: pd.DataFrame


def choose_steps(
    cases: Iterable[Case],
    labels: Labels,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    enough_patients: int = ENOUGH_PATIENTS,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Choice:
    """Choose the steps that cross-validated predictions speak for.

    Parameters
    ----------
    cases
        Prediction, truth, spacing in mm (None for pixels) and patient id of each held-out case, read once, one at a
        time. Maps ``(Z, Y, X)`` or ``(Y, X)``; with `labels.multilabel` stacks of layers ``(K, *S)``.
    percentiles
        Of the true component volumes of a label: the smallest volumes to try.
    enough_patients
        Labels that fewer patients have in the truth are left alone.
    level, resamples, seed
        Of the paired bootstrap of patients.

    Raises
    ------
    DataError
        Without cases, or where some cases have a spacing and others none.
    ValueError
        For shapes that differ or maps that are not label maps.
    """
    pieces: list[tuple[Pieces, ...]] = []
    who: list[str] = []
    kinds: set[str] = set()
    for prediction, truth, spacing, patient in cases:
        pieces.append(tuple(_case(np.asarray(prediction), np.asarray(truth), spacing, labels)))
        who.append(str(patient))
        kinds.add("voxels" if spacing is None else "mm³" if len(spacing) == 3 else "mm²")
    if not pieces:
        raise DataError("no held-out case to choose post-processing on; predict the validation cases first")
    if len(kinds) > 1:
        raise DataError(
            f"the volumes of the held-out cases are in {' and '.join(sorted(kinds))}; give all cases a spacing of as "
            "many axes, or none"
        )
    judge = _Judge(labels, pieces, Patients.of(who), kinds.pop(),
                   level=level, resamples=resamples, seed=seed, enough=enough_patients)  # fmt: skip
    if len(judge.values) > 1:
        judge.foreground()
    for value in judge.values:
        judge.removals(value, percentiles)
    for value in judge.values:
        judge.filling(value)
    return judge.choice()


@dataclass(frozen=True)
class _Recipe:
    """Steps in the fixed order; values as in `Pieces.label`."""

    foreground: bool = False
    removal: Mapping[int, Step] = field(default_factory=dict)
    filling: tuple[int, ...] = ()

    def with_removal(self, value: int, **change: Any) -> _Recipe:
        step = replace(self.removal.get(value, Step(value)), **change)
        return replace(self, removal={**self.removal, value: step})

    def steps(self, shift: int) -> tuple[Step, ...]:
        """As `apply_steps` takes them; `shift` is what a value lies above the label of its step."""
        joint = (Step(None, keep="largest"),) if self.foreground else ()
        removal = [replace(step, label=value - shift) for value, step in sorted(self.removal.items())]
        return (*joint, *removal, *(Step(value - shift, fill_holes=True) for value in self.filling))


@dataclass(frozen=True, eq=False)
class _Scores:
    """One row per case, one column per label: Dice, and numbers of false and of missed components."""

    dice: FloatArray
    false: FloatArray
    missed: FloatArray


class _Judge:
    """Judges candidates one after the other and remembers what was chosen."""

    def __init__(
        self, labels: Labels, pieces: list[tuple[Pieces, ...]], patients: Patients, unit: str, *,
        level: float, resamples: int, seed: int, enough: int,
    ) -> None:  # fmt: skip
        self.shift = 1 if labels.multilabel else 0
        self.names = dict(enumerate(labels.structures, start=1))
        self.values = list(self.names)
        self.pieces, self.patients, self.unit, self.enough = pieces, patients, unit, enough
        self.options: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
        self.recipe = _Recipe()
        self.first = self.now = self.scores(self.recipe)
        self.rows: list[dict[str, Any]] = []
        held = np.array([[any(len(p.true_volumes.get(v, ())) for p in case) for v in self.values] for case in pieces])
        self.having = {v: patients.count(held[:, k]) for k, v in enumerate(self.values)}

    def scores(self, recipe: _Recipe) -> _Scores:
        """What `recipe` gives in every case."""
        table = np.zeros((3, len(self.pieces), len(self.values)))
        for row, case in enumerate(self.pieces):
            for part in case:
                for value, numbers in part.outcome(recipe).items():
                    table[:, row, value - 1] = numbers
        return _Scores(*table)

    def foreground(self) -> None:
        """Largest component of all labels together."""
        enough = [v for v in self.values if self.having[v] >= self.enough]
        name, recipe = "largest component of all labels together", replace(self.recipe, foreground=True)
        after = self.scores(recipe)
        estimate = self.differences({0: after}, None)[0]
        change = (after.dice - self.now.dice).mean(axis=0)
        worst = int(np.argmin(change))
        reason = self.objection(estimate)
        if not enough:
            reason = f"no label has the {self.enough} patients that are needed to judge it"
        elif not reason and change[worst] < -GAIN:
            reason = f"label {self.names[worst + 1]!r} loses {-change[worst]:.4f}"
        self.add(name, None, self.now, after, estimate, not reason, reason)
        if not reason:
            self.recipe, self.now = recipe, after

    def removals(self, value: int, percentiles: Sequence[float]) -> None:
        """Largest component and smallest volume of one label."""
        open_ones = {"largest component": {"keep": "largest"}} | {
            f"components of at least {volume:g} {self.unit}": {"min_volume": volume}
            for volume in self.volumes(value, percentiles)
        }
        while open_ones:
            recipes = {name: self.recipe.with_removal(value, **change) for name, change in open_ones.items()}
            after = {name: self.scores(recipe) for name, recipe in recipes.items()}
            estimates = self.differences(after, value)
            reasons = {name: self.objection(estimates[name], value) for name in recipes}
            able = [name for name in recipes if not reasons[name]]
            # Of equal gains the first: the largest component, else the smallest volume.
            best = max(able, key=lambda name: estimates[name].value, default=None)
            for name in recipes:
                why = reasons[name] or ("" if name == best else f"{best!r} gains at least as much")
                self.add(name, value, self.now, after[name], estimates[name], name == best, why)
            if best is None:
                return
            self.recipe, self.now = recipes[best], after[best]
            taken = set(open_ones[best])
            open_ones = {name: change for name, change in open_ones.items() if not taken & set(change)}

    def filling(self, value: int) -> None:
        """Holes of one label."""
        recipe = replace(self.recipe, filling=(*self.recipe.filling, value))
        after = self.scores(recipe)
        estimate = self.differences({0: after}, value)[0]
        reason = self.objection(estimate, value)
        self.add("filled holes", value, self.now, after, estimate, not reason, reason)
        if not reason:
            self.recipe, self.now = recipe, after

    def choice(self) -> Choice:
        """What was chosen, with a last row for all of it."""
        estimate = self.differences({0: self.now}, None, against=self.first)[0]
        steps = self.recipe.steps(self.shift)
        reason = "" if steps else "no step is worth it"
        self.add("all chosen steps", None, self.first, self.now, estimate, bool(steps), reason)
        return Choice(steps, pd.DataFrame(self.rows, columns=list(COLUMNS)))

    def volumes(self, value: int, percentiles: Sequence[float]) -> list[float]:
        """Smallest volumes to try, rising, rounded to three digits."""
        true = [p.true_volumes[value] for case in self.pieces for p in case if value in p.true_volumes]
        if not true or not len(percentiles):
            return []
        found = np.percentile(np.concatenate(true), list(percentiles))
        return sorted({float(f"{volume:.3g}") for volume in found})

    def differences(
        self, after: Mapping[Any, _Scores], value: int | None, against: _Scores | None = None
    ) -> dict[Hashable, Estimate]:
        """Rise of the mean Dice with its paired interval: of one label, or of the mean over the labels (None)."""
        before = against or self.now
        rises = {key: _column(one.dice, value) - _column(before.dice, value) for key, one in after.items()}
        moved = {key: rise for key, rise in rises.items() if rise.any()}
        still = {key: Estimate(0.0, 0.0, 0.0, self.options["level"]) for key in rises if key not in moved}

        def mean(weights: FloatArray | None) -> dict[Hashable, FloatArray]:
            if weights is None:
                return {key: rise.mean() for key, rise in moved.items()}
            return {key: weights @ rise / weights.sum(axis=1) for key, rise in moved.items()}

        return still | (bootstrap(mean, self.patients, **self.options) if moved else {})

    def objection(self, found: Estimate, value: int | None = None) -> str:
        """Why the step is not taken, in a few words; empty if it is."""
        if value is not None and self.having[value] < self.enough:
            return f"patients with this label: {self.having[value]}, needed to judge it: {self.enough}"
        if not found.value > GAIN:
            return "nothing changes" if found.value == found.low == found.high == 0 else (
                f"mean Dice changes by {found.value:+.4f}, more than +{GAIN:g} is asked for")  # fmt: skip
        return "" if found.low >= 0 else f"a loss is not excluded: the interval reaches down to {found.low:+.4f}"

    def add(
        self, name: str, value: int | None, before: _Scores, after: _Scores, found: Estimate, chosen: bool, reason: str
    ) -> None:
        means = {
            f"{what}_{when}": float(_column(getattr(one, what), value).mean())
            for what in ("false", "missed")
            for when, one in (("before", before), ("after", after))
        }
        gained = f"mean Dice rises by {found.value:.4f} (interval {found.low:.4f} to {found.high:.4f})"
        sentence = f"{'Taken' if chosen else 'Not taken'}: {gained if chosen else reason}."
        self.rows.append(
            {
                "name": name,
                "label": "all labels" if value is None else self.names[value],
                "cases": len(self.pieces),
                "patients": len(self.patients),
                "before": float(_column(before.dice, value).mean()),
                "after": float(_column(after.dice, value).mean()),
                "difference": found.value,
                "low": found.low,
                "high": found.high,
                **means,
                "chosen": chosen,
                "reason": sentence,
            }
        )


def _column(table: FloatArray, value: int | None) -> FloatArray:
    """``(N,)``: one label of ``(N, K)``, or the mean over the labels."""
    return np.asarray(table.mean(axis=1) if value is None else table[:, value - 1])


@dataclass(frozen=True, eq=False)
class Pieces:
    """A case, or one layer of it, as pieces that the steps treat alike.

    Parameters
    ----------
    values
        Labels that are judged.
    unit
        Volume of a voxel.
    label, voxels, joint
        ``(C + 1,)``: label and voxels of each predicted component, and its component of the whole foreground; number 0
        is the background.
    joint_voxels
        ``(J + 1,)``: voxels of the components of the whole foreground.
    component
        ``(pieces,)``: predicted component of each piece; 0 for background.
    piece, truth, count
        ``(P,)``: so many voxels of the piece have this label in the truth; ignored voxels are left out.
    nests
        By label, where it encloses anything: how its parts lie in one another, and the node each piece lies in.
    true_volumes
        By label: volume of each true component.
    hits
        ``(H, 2)``: numbers of predicted and true components of one label that share voxels.
    true_label
        ``(T + 1,)``: label of each true component, 0 at 0.
    """

    values: tuple[int, ...]
    unit: float
    label: IntArray
    voxels: IntArray
    joint: IntArray
    joint_voxels: IntArray
    component: IntArray
    piece: IntArray
    truth: IntArray
    count: IntArray
    nests: Mapping[int, tuple[Nesting, IntArray]]
    true_volumes: Mapping[int, FloatArray]
    hits: IntArray
    true_label: IntArray

    def outcome(self, recipe: _Recipe) -> dict[int, tuple[float, float, float]]:
        """Dice, false and missed components of each label after the steps."""
        alive = np.arange(len(self.label)) > 0
        if recipe.foreground:
            alive[1:] &= staying(self.joint_voxels[1:], Step(None, keep="largest"))[self.joint[1:] - 1]
        for value, step in recipe.removal.items():
            those = np.flatnonzero(alive & (self.label == value))
            alive[those] = staying(self.voxels[those], step, self.unit)
        said = np.where(alive, self.label, 0)[self.component]
        for value in recipe.filling:
            if value in self.nests:
                nest, node = self.nests[value]
                said[nest.enclosed(alive)[node] & (said == 0)] = value
        top = max((*self.values, int(self.label.max()), int(self.truth.max(initial=0)))) + 1
        here = said[self.piece]
        both = np.bincount(here[here == self.truth], self.count[here == self.truth], top)
        sizes = np.bincount(here, self.count, top) + np.bincount(self.truth, self.count, top)
        untrue = alive.copy()
        untrue[self.hits[:, 0]] = False
        found = np.zeros(len(self.true_label), dtype=bool)
        found[self.hits[alive[self.hits[:, 0]], 1]] = True
        false, missed = (
            np.bincount(self.label[untrue], minlength=top),
            np.bincount(self.true_label[~found], minlength=top),
        )
        return {
            value: (
                float(2 * both[value] / sizes[value]) if sizes[value] else 1.0,
                float(false[value]),
                float(missed[value]),
            )
            for value in self.values
        }


def _case(
    prediction: NDArray[Any], truth: NDArray[Any], spacing: Sequence[float] | None, labels: Labels
) -> Iterator[Pieces]:
    """Pieces of a label map, or of each layer."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, got {prediction.shape} and {truth.shape}")
    if labels.multilabel:
        if len(prediction) != len(labels):
            raise ValueError(f"{len(labels)} layers are expected, got shape {prediction.shape}")
        joint = components((prediction != 0).any(axis=0))
        for index, layers in enumerate(zip(prediction, truth, strict=True)):
            said, true = (np.where(layer != 0, index + 1, 0).astype(np.int32) for layer in layers)
            if labels.ignore is not None:
                true[layers[1] == labels.ignore] = _IGNORED
            yield _pieces(said, true, joint, spacing, (index + 1,), _IGNORED)
        return
    said, true = checked_labels(prediction, name="prediction"), checked_labels(truth, name="truth")
    yield _pieces(said, true, components(said != 0), spacing, tuple(range(1, len(labels))), labels.ignore)


def _pieces(
    said: NDArray[Any],
    true: NDArray[Any],
    joint: NDArray[Any],
    spacing: Sequence[float] | None,
    values: tuple[int, ...],
    ignore: int | None,
) -> Pieces:
    unit = float(np.prod(checked_spacing(spacing, said.ndim)))
    joint_voxels = part_voxels(joint)
    box = label_boxes((said != 0) | (true != 0))
    if len(box):
        part = box.slices(0)
        said, true, joint = said[part], true[part], joint[part]
    parts, true_parts = components(said), components(true)
    label, true_label = _carried(parts, said), _carried(true_parts, true)
    voxels, volumes = part_voxels(parts), part_voxels(true_parts) * unit
    atoms, component, nests = _split(said, parts, label)
    counts, pairs = contingency(atoms, true), contingency(parts, true_parts)
    if ignore is not None:
        counts = counts.without(ignore)
        unknown = true_label == ignore
        true_label = np.where(unknown, 0, true_label)
    row, column, _ = pairs.foreground()
    # A component among ignored voxels may be right: it hits the true number 0, which is no component.
    ours, theirs = pairs.first[row], pairs.second[column]
    same = label[ours] == true_label[theirs]
    if ignore is not None:
        same |= unknown[theirs]
        theirs = np.where(unknown[theirs], 0, theirs)
    return Pieces(
        values=values,
        unit=unit,
        label=label,
        voxels=voxels,
        joint=_carried(parts, joint),
        joint_voxels=joint_voxels,
        component=component,
        piece=counts.first[counts.row],
        truth=counts.second[counts.column],
        count=counts.count,
        nests=nests,
        true_volumes={value: volumes[true_label == value] for value in values if (true_label == value).any()},
        hits=np.stack([ours[same], theirs[same]], axis=1),
        true_label=true_label,
    )


def _carried(parts: NDArray[Any], other: NDArray[Any]) -> IntArray:
    """``(C + 1,)``: the one value that `other` has in each part; 0 for the background."""
    pairs = contingency(parts, other)
    out = np.zeros(int(pairs.first[-1]) + 1, dtype=np.int64)
    inside = pairs.row > 0
    out[pairs.first[pairs.row[inside]]] = pairs.second[pairs.column[inside]]
    return out


def _split(
    said: NDArray[Any], parts: NDArray[Any], label: IntArray
) -> tuple[IntArray, IntArray, dict[int, tuple[Nesting, IntArray]]]:
    """Pieces as a map of numbers, the component of each, and by label the nesting and the node of each piece in it.

    The pieces are at first the components and the background; each hole of a label then splits what lies in it.
    """
    atoms, component = parts.astype(np.int64), np.arange(len(label))
    nests: dict[int, tuple[Nesting, IntArray]] = {}
    found = label_boxes(said)
    for row, value in enumerate(found.values.tolist()):
        box = found.slices(row)
        tree = nesting(said[box] == value, parts[box])
        if tree is None:
            continue
        nest, nodes = tree
        # Which node each piece is in: the outside, unless it is a component of this label or lies in a hole.
        place = np.zeros(len(label), dtype=np.int64)
        place[nest.component] = np.arange(len(nest.component))
        place[0] = 0
        deep = (nodes > 0) & (nest.component[nodes] == 0)
        key, number = np.unique(atoms[box][deep] * len(nest.parent) + nodes[deep], return_inverse=True)
        old, hole = np.divmod(key, len(nest.parent))
        atoms[box][deep] = len(component) + number
        nests = {other: (one, np.r_[node, node[old]]) for other, (one, node) in nests.items()}
        nests[value] = (nest, np.r_[place[component], hole])
        component = np.r_[component, component[old]]
    return atoms, component, nests
