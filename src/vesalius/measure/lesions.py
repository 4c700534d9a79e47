"""Lesions one by one: which were found, which were invented, and how well each was outlined.

A lesion is a connected component of a mask (of one label, for label maps). Four rules say when a predicted lesion hits
a true one:

``overlap``
    They share at least one voxel. Many to many: a true lesion is detected when anything hits it.
``centroid``
    The middle of the predicted lesion (the voxel nearest to its centre of mass) lies in the true one. Many to many.
``iou``, ``dice``
    Their IoU or Dice is at least `threshold`. One to one: the largest set of pairs, and of those the best sum.

Further predictions that hit a detected lesion are neither hits nor false, so the counts are: detected and missed true
lesions, and false predicted lesions, which hit nothing. With `min_volume`, smaller true lesions are not asked for, and
what hits only them is not false; smaller predicted lesions may hit but are never false (the rule of COCO for objects
outside the range of sizes).

Empty rule: a rate with nothing to count is NaN. See docs/overlap-metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import checked_labels, label_boxes
from vesalius.measure.compiled import kernel
from vesalius.measure.contingency import Contingency, contingency
from vesalius.measure.instances import best_pairs
from vesalius.measure.quantities import Quantity
from vesalius.measure.weights import FloatArray, IntArray, ratio

BoolArray = NDArray[np.bool_]

RULES = ("overlap", "centroid", "iou", "dice")
# Neighbours that make one component: faces, edges, corners; and the widest of each dimension as default.
CONNECTIVITY = {2: (8, 4), 3: (26, 18, 6)}

_F1 = "Maier-Hein et al., Nature Methods 2024, 21:195"
_BRATS = "BraTS 2023, lesion-wise scores: Moawad et al., arXiv 2306.00838; LaBella et al., arXiv 2405.09787"

SCORE_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("lesions_truth", "count", "True lesions, without those below the smallest volume asked for."),
    Quantity("lesions_prediction", "count", "Predicted lesions that hit a true lesion or are false."),
    Quantity("lesions_detected", "count", "True lesions that a predicted lesion hits."),
    Quantity("lesions_missed", "count", "True lesions that no predicted lesion hits."),
    Quantity("lesions_false", "count", "Predicted lesions that hit no true lesion: false positives."),
    Quantity("lesion_sensitivity", "1", "Detected lesions over true lesions. NaN without true lesions.", _F1),
    Quantity(
        "lesion_precision",
        "1",
        "Detected lesions over detected plus false ones; further hits on one count neither way. NaN without any.",
        _F1,
    ),
    Quantity("lesion_f1", "1", "2 detected / (2 detected + missed + false). NaN without any lesion.", _F1),
    Quantity(
        "lesion_dice_detected", "1", "Mean Dice of the detected lesions with all that hits them. NaN without any."
    ),
    Quantity("lesions_split", "count", "True lesions that two or more predicted lesions hit."),
    Quantity("lesions_merged", "count", "Predicted lesions that hit two or more true lesions."),
)
POOLED_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("cases", "count", "Cases that were counted together."),
    Quantity("lesions_false_per_case", "count", "False predicted lesions per case."),
)
TABLE_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("lesion", "1", "Number of the lesion in the map of components."),
    Quantity("lesion_label", "1", "Value of the lesion in the label map."),
    Quantity("lesion_volume", "mm3", "Voxels of the lesion times the volume of a voxel (3-D)."),
    Quantity("lesion_area", "mm2", "Pixels of the lesion times the area of a pixel (2-D)."),
    Quantity("lesion_counted", "1", "1 if the lesion counts in the scores, 0 if it is too small or excused."),
    Quantity("lesion_hit", "1", "1 if a lesion of the other map hits it (or is hit by it), else 0."),
    Quantity("lesion_dice", "1", "Dice with all lesions of the other map that are paired with it together; 0 if none."),
    Quantity("lesion_partners", "count", "Lesions of the other map that are paired with it."),
    Quantity("lesion_partner", "1", "Number of the partner that shares most voxels with it; 0 if none."),
)
BRATS_QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        "lesion_wise_dice",
        "1",
        "Sum of the Dice of the true lesions, neighbours joined, over true plus false lesions; missed lesions count 0. "
        "1 if there are none (NaN with empty='nan').",
        _BRATS,
    ),
    Quantity("brats_detected", "count", "True lesions (neighbours joined) near which something was predicted.", _BRATS),
    Quantity("brats_missed", "count", "True lesions (neighbours joined) near which nothing was predicted.", _BRATS),
    Quantity("brats_false", "count", "Predicted lesions that are near no true lesion, of any volume.", _BRATS),
)
_LABEL = Quantity("label", "1", "Value of the region in the label map.")
QUANTITIES = (_LABEL, *SCORE_QUANTITIES, *POOLED_QUANTITIES, *TABLE_QUANTITIES, *BRATS_QUANTITIES)


def components(mask: NDArray[Any], connectivity: int | None = None) -> NDArray[Any]:
    """Number the connected parts of a mask, or of every label of a label map, from 1; 0 is the background.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` or ``(Y, X)`` of booleans or whole numbers. Voxels of different labels are never joined.
    connectivity
        26, 18 or 6 in 3-D, 8 or 4 in 2-D; the largest if None.
    """
    import cc3d

    array = checked_labels(mask, name="mask")
    known = CONNECTIVITY[array.ndim]
    if connectivity is not None and connectivity not in known:
        raise ValueError(f"connectivity in {array.ndim}-D must be one of {known}, got {connectivity}")
    if not array.size:
        return np.zeros(array.shape, dtype=np.uint16)
    neighbours: Any = connectivity or known[0]
    return np.asarray(cc3d.connected_components(array, connectivity=neighbours))


@dataclass(frozen=True, eq=False)
class LesionMatch:
    """Lesions of two maps and which hits which.

    Parameters
    ----------
    prediction, truth
        Maps of the lesions, numbered from 1.
    prediction_label, truth_label
        ``(S,)`` and ``(T,)``: label value of each lesion; 1 for masks.
    counts
        The voxels that the lesions share; lesion k is position k.
    hits
        ``(P, 2)``: numbers of the predicted and the true lesion of each pair.
    unit
        Volume (area) of a voxel (pixel) in mm3 (mm2); 1 without spacing.
    large_prediction, large_truth
        ``(S,)`` and ``(T,)``: lesions of at least the smallest volume asked for.
    """

    prediction: NDArray[Any]
    truth: NDArray[Any]
    prediction_label: IntArray
    truth_label: IntArray
    counts: Contingency
    hits: IntArray
    unit: float
    large_prediction: BoolArray
    large_truth: BoolArray

    def counted(self) -> tuple[BoolArray, BoolArray, BoolArray, BoolArray]:
        """Per predicted lesion: hits a large true one, is false; per true lesion: is asked for, is detected."""
        said, true = self.hits[:, 0] - 1, self.hits[:, 1] - 1
        some, useful = np.zeros(len(self.prediction_label), bool), np.zeros(len(self.prediction_label), bool)
        some[said] = True
        useful[said[self.large_truth[true]]] = True
        detected = np.zeros(len(self.truth_label), bool)
        detected[true] = True
        return useful, ~some & self.large_prediction, self.large_truth, detected & self.large_truth

    def scores(self, label: int | None = None) -> dict[str, float]:
        """Counts and rates of the case, or of one label; the keys are `SCORE_QUANTITIES`."""
        useful, false, asked, detected = self.counted()
        rows = np.ones(len(false), bool) if label is None else self.prediction_label == label
        columns = np.ones(len(asked), bool) if label is None else self.truth_label == label
        partners, _, dice = self._partners(1)
        asked, detected = asked & columns, detected & columns
        hitting = self.hits[asked[self.hits[:, 1] - 1], 0]
        merged = np.bincount(hitting, minlength=len(false) + 1)[1:] > 1
        found = {
            "lesions_truth": float(asked.sum()),
            "lesions_prediction": float(((useful | false) & rows).sum()),
            "lesions_detected": float(detected.sum()),
            "lesions_missed": float((asked & ~detected).sum()),
            "lesions_false": float((false & rows).sum()),
        }
        return (
            found
            | _rates(found)
            | {
                "lesion_dice_detected": float(ratio(dice[detected].sum(), detected.sum())),
                "lesions_split": float((asked & (partners > 1)).sum()),
                "lesions_merged": float((merged & rows).sum()),
            }
        )

    def scores_by_label(self) -> dict[str, NDArray[Any]]:
        """`scores` with one row per label that either map holds, in rising order, and the column ``label``."""
        labels = np.union1d(self.prediction_label, self.truth_label)
        rows = [self.scores(label) for label in labels.tolist()]
        names = [quantity.name for quantity in SCORE_QUANTITIES]
        return {"label": labels} | {name: np.array([row[name] for row in rows]) for name in names}

    def truth_table(self) -> dict[str, NDArray[Any]]:
        """One row per true lesion; the columns are `TABLE_QUANTITIES`."""
        _, _, asked, _ = self.counted()
        return self._table(1, self.truth_label, self.counts.second, self.counts.second_voxels, asked)

    def prediction_table(self) -> dict[str, NDArray[Any]]:
        """One row per predicted lesion; the columns are `TABLE_QUANTITIES`."""
        useful, false, _, _ = self.counted()
        return self._table(0, self.prediction_label, self.counts.first, self.counts.first_voxels, useful | false)

    def _table(
        self, side: int, labels: IntArray, names: IntArray, voxels: IntArray, counted: BoolArray
    ) -> dict[str, NDArray[Any]]:
        partners, best, dice = self._partners(side)
        size = "lesion_volume" if self.truth.ndim == 3 else "lesion_area"
        return {
            "lesion": names[1:],
            "lesion_label": labels,
            size: voxels[1:] * self.unit,
            "lesion_counted": counted.astype(np.int64),
            "lesion_hit": (partners > 0).astype(np.int64),
            "lesion_dice": dice,
            "lesion_partners": partners,
            "lesion_partner": best,
        }

    def _partners(self, side: int) -> tuple[IntArray, IntArray, FloatArray]:
        """For each lesion of one side: number of partners, the one that shares most, Dice with all of them."""
        counts, ours, theirs = self.counts, self.hits[:, side], self.hits[:, 1 - side]
        voxels = (counts.first_voxels, counts.second_voxels)
        shared = _shared(counts, self.hits)
        size = len(voxels[side])
        sums, union = np.zeros(size, dtype=np.int64), voxels[side].copy()
        np.add.at(sums, ours, shared)
        np.add.at(union, ours, voxels[1 - side][theirs])
        best = np.zeros(size, dtype=np.int64)
        order = np.lexsort((-theirs, shared))  # the last one written stays: most shared, then the lowest number
        best[ours[order]] = theirs[order]
        partners = np.bincount(ours, minlength=size)
        return partners[1:], best[1:], ratio(2 * sums, union)[1:]


def match_lesions(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    rule: str = "overlap",
    threshold: float | None = None,
    connectivity: int | None = None,
    min_volume: float = 0.0,
    per_label: bool = False,
    workers: int | None = None,
) -> LesionMatch:
    """Find the lesions of two masks and pair them.

    Parameters
    ----------
    prediction, truth
        ``(Z, Y, X)`` or ``(Y, X)``; anything but 0 is lesion.
    spacing
        mm per axis; None counts voxels.
    rule
        ``"overlap"``, ``"centroid"``, ``"iou"`` or ``"dice"``: see the top of this module.
    threshold
        The smallest IoU or Dice of a pair, in (0, 1]; 0.5 for ``"iou"`` and ``"dice"`` if None. No use elsewhere.
    connectivity
        As in `components`.
    min_volume
        Smallest lesion asked for in mm3 (mm2 in 2-D; voxels without spacing).
    per_label
        Keep the labels of two label maps apart: only lesions of one label can hit each other.

    Raises
    ------
    ValueError
        For shapes that differ, other axes, unknown rules and bad numbers.
    """
    level = _checked_rule(rule, threshold)
    if not (np.isfinite(min_volume) and min_volume >= 0):
        raise ValueError(f"min_volume must be a number of at least 0, got {min_volume}")
    said, true = checked_labels(prediction, name="prediction"), checked_labels(truth, name="truth")
    if said.shape != true.shape:
        raise ValueError(f"prediction and truth must have one shape, got {said.shape} and {true.shape}")
    unit = float(np.prod(checked_spacing(spacing, true.ndim)))
    if not per_label:
        said, true = (said != 0).view(np.uint8), (true != 0).view(np.uint8)
    parts = components(said, connectivity), components(true, connectivity)
    counts = contingency(*parts, workers=workers)
    labels = _label_of(parts[0], said), _label_of(parts[1], true)
    large = counts.first_voxels[1:] * unit >= min_volume, counts.second_voxels[1:] * unit >= min_volume
    pairs = _inside(*parts) if rule == "centroid" else np.stack(counts.foreground()[:2], axis=1)
    pairs = pairs[labels[0][pairs[:, 0] - 1] == labels[1][pairs[:, 1] - 1]]
    if rule in ("iou", "dice"):
        pairs = _one_to_one(counts, pairs, rule, level, large)
    return LesionMatch(*parts, *labels, counts, pairs, unit, *large)


def lesion_scores(
    prediction: NDArray[Any], truth: NDArray[Any], spacing: Sequence[float] | None = None, **options: Any
) -> dict[str, float]:
    """Lesion-wise sensitivity, precision, F1 and counts of one case; arguments as `match_lesions`."""
    return match_lesions(prediction, truth, spacing, **options).scores()


def pool_lesions(cases: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Counts of several `lesion_scores` added up, the rates of the sums, and the false lesions per case."""
    many = list(cases)
    names = ("lesions_truth", "lesions_prediction", "lesions_detected", "lesions_missed", "lesions_false")
    found = {name: float(sum(case[name] for case in many)) for name in names}
    per_case = float(ratio(found["lesions_false"], len(many)))
    return found | _rates(found) | {"cases": float(len(many)), "lesions_false_per_case": per_case}


def brats_lesions(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    dilations: int = 3,
    min_volume: float = 50.0,
    empty: str = "one",
) -> dict[str, float]:
    """Lesion-wise Dice as the BraTS 2023 challenge counts it; the keys are `BRATS_QUANTITIES`.

    The truth is dilated `dilations` times with the 18-neighbourhood; true parts within one dilated component are one
    lesion. Its Dice is taken with all predicted components (26 neighbours) that touch the dilated lesion, a component
    that touches two counting for both. True lesions of `min_volume` or less are left out; predicted components that
    touch no dilated lesion, of whatever volume, are false.

    Parameters
    ----------
    prediction, truth
        Masks of one tissue ``(Z, Y, X)`` or ``(Y, X)`` (8 neighbours there).
    spacing
        mm per axis; None counts voxels. The challenge resamples to 1 mm, so its dilation is one voxel a time.
    dilations, min_volume
        3 and 50 mm3 for glioma, sub-Saharan and paediatric cases, 1 and 50 for meningioma, 1 and 2 for metastases.
    empty
        ``"one"`` as the challenge does, or ``"nan"``: a case without true (large) or false lesions.
    """
    if empty not in ("nan", "one"):
        raise ValueError(f"empty must be 'nan' or 'one', got {empty!r}")
    if dilations < 0:
        raise ValueError(f"dilations must not be negative, got {dilations}")
    said, true = checked_labels(prediction, name="prediction") != 0, checked_labels(truth, name="truth") != 0
    if said.shape != true.shape:
        raise ValueError(f"prediction and truth must have one shape, got {said.shape} and {true.shape}")
    unit = float(np.prod(checked_spacing(spacing, true.ndim)))
    zones, parts = components(_dilated(true, dilations)), components(said)
    # Every zone holds true voxels, so zone k is lesion k in both counts.
    touching, shared = contingency(parts, zones), contingency(parts, np.where(true, zones, 0))
    volume = shared.second_voxels
    sums, reached = np.zeros(len(volume), np.int64), np.zeros(len(volume), np.int64)
    row, column, count = shared.foreground()
    np.add.at(sums, column, count)
    row, column, _ = touching.foreground()
    np.add.at(reached, column, touching.first_voxels[row])
    dice = ratio(2 * sums, reached + volume)[1:]
    asked = volume[1:] * unit > min_volume
    false = len(touching.first) - 1 - len(np.unique(row))
    below = int(asked.sum()) + false
    nothing = 1.0 if empty == "one" else float("nan")
    score = float(dice[asked].sum()) / below if below else nothing
    hit = reached[1:] > 0
    return {
        "lesion_wise_dice": score,
        "brats_detected": float((asked & hit).sum()),
        "brats_missed": float((asked & ~hit).sum()),
        "brats_false": float(false),
    }


def _dilated(mask: BoolArray, times: int) -> BoolArray:
    """`mask` grown by the neighbours that share a face or an edge, in its box only."""
    from scipy.ndimage import binary_dilation, generate_binary_structure

    near, box = mask.copy(), label_boxes(mask)
    if times and len(box):
        part = box.slices(0, margin=times, shape=mask.shape)
        near[part] = binary_dilation(mask[part], generate_binary_structure(mask.ndim, 2), iterations=times)
    return near


def _rates(found: Mapping[str, float]) -> dict[str, float]:
    detected, missed, false = found["lesions_detected"], found["lesions_missed"], found["lesions_false"]
    return {
        "lesion_sensitivity": float(ratio(detected, detected + missed)),
        "lesion_precision": float(ratio(detected, detected + false)),
        "lesion_f1": float(ratio(2 * detected, 2 * detected + missed + false)),
    }


def _checked_rule(rule: str, threshold: float | None) -> float:
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if threshold is None:
        return 0.5
    if rule not in ("iou", "dice"):
        raise ValueError(f"threshold goes with the rules iou and dice, not with {rule!r}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    return threshold


def _label_of(parts: NDArray[Any], labels: NDArray[Any]) -> IntArray:
    """The label of each component, in the order of their numbers."""
    pairs = contingency(parts, labels)
    return pairs.second[pairs.column[pairs.row > 0]]


def _shared(counts: Contingency, pairs: IntArray) -> IntArray:
    """Voxels that both lesions of each pair hold."""
    width = len(counts.second)
    code, wanted = counts.row * width + counts.column, pairs[:, 0] * width + pairs[:, 1]
    if not len(code):
        return np.zeros(len(pairs), dtype=np.int64)
    place = np.minimum(np.searchsorted(code, wanted), len(code) - 1)
    return np.where(code[place] == wanted, counts.count[place], 0)


def _one_to_one(
    counts: Contingency, pairs: IntArray, rule: str, level: float, large: tuple[BoolArray, BoolArray]
) -> IntArray:
    """The pairs to keep: first between lesions that are asked for, then what is left with the small ones."""
    shared = _shared(counts, pairs)
    both = counts.first_voxels[pairs[:, 0]] + counts.second_voxels[pairs[:, 1]]
    score = ratio(2 * shared, both) if rule == "dice" else ratio(shared, both - shared)
    pairs, score = pairs[score >= level], score[score >= level]
    grade = large[1][pairs[:, 1] - 1] * 2 + large[0][pairs[:, 0] - 1]
    free = [np.ones(len(large[0]) + 1, bool), np.ones(len(large[1]) + 1, bool)]
    kept = []
    for one in (3, 2, 1, 0):
        able = np.flatnonzero((grade == one) & free[0][pairs[:, 0]] & free[1][pairs[:, 1]])
        chosen = pairs[able[best_pairs(pairs[able, 0], pairs[able, 1], score[able])]]
        free[0][chosen[:, 0]] = free[1][chosen[:, 1]] = False
        kept.append(chosen)
    return np.concatenate(kept)


def _inside(parts: NDArray[Any], truth: NDArray[Any]) -> IntArray:
    """Pairs of a predicted lesion and the true lesion its middle lies in.

    A middle halfway between voxels lies in all of them, so that flips of the image change nothing.
    """
    ndim = parts.ndim
    sums = np.zeros((int(parts.max()) + 1 if parts.size else 1, 4), dtype=np.int64)
    _moments(parts.reshape((1,) * (3 - ndim) + parts.shape), sums)
    found = set()
    for number in range(1, len(sums)):
        voxels, *total = sums[number].tolist()
        middle = total[3 - ndim :]
        low = [-((voxels - 2 * s) // (2 * voxels)) for s in middle]
        high = [(voxels + 2 * s) // (2 * voxels) for s in middle]
        around = truth[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
        found |= {(number, int(other)) for other in np.unique(around) if other}
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


@kernel
def _moments(parts, sums):  # type: ignore[no-untyped-def]
    """Voxels of each component and the sums of their indices."""
    for z in range(parts.shape[0]):
        for y in range(parts.shape[1]):
            for x in range(parts.shape[2]):
                number = parts[z, y, x]
                if number:
                    sums[number, 0] += 1
                    sums[number, 1] += z
                    sums[number, 2] += y
                    sums[number, 3] += x
