"""A band around a predicted border in which the true one lies: an error bar for a segmentation.

`fit_band` learns from held-out cases two distances per label, inward and outward from the predicted border. What it
promises: for a new patient like those it was fitted on, whose structure is there, with a probability of at least
``level`` (95 %) at least the share ``content`` (95 %) of the true border lies within the band, in every case of his.

The probability is over the draw of the patients, fitted and new ones together. It needs no assumption but that they
are exchangeable, and holds for any number of them: split conformal prediction with one score per patient (Vovk et al.,
Algorithmic Learning in a Random World, 2005; Angelopoulos and Bates, arXiv:2107.07511). It holds in the mean over
patients, not for every kind of patient or part of the border, and not for scanners or diseases that were not among
them. It holds for each label for itself.

The border is made of surface elements (`vesalius.measure.surface_points`): cells of eight voxel centres, four pixel
centres in an image, of which some but not all are in the true mask, weighted by the area of the surface in the cell. An
element lies in the band unless all its corners are in the inner mask of `apply_band`, or all beyond the outer mask; so
the promise is on exactly the masks that are shown. Elements at the edge of the array do not count: there the image
ends, not the structure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import checked_labels, label_boxes
from vesalius.measure.distance import distance_field
from vesalius.measure.surface_bits import packed
from vesalius.measure.surface_points import element_sizes, elements
from vesalius.measure.weights import FloatArray, ratio

BoolArray = NDArray[np.bool_]
Needs = tuple[FloatArray, FloatArray, FloatArray]

SIDES = ("equal", "separate", "auto")
# Distances are float32: one that equals a width counts as within it, whatever was rounded.
_ROUNDING = 1e-6
_WORTH_THREADS = 1 << 17


@dataclass(frozen=True)
class LabelBand:
    """How far inward and outward the band of a label goes, and from how many patients and cases that is known.

    In the unit of the `Band`. inf: too few patients (or too many with a missed structure) for the promise.
    """

    inner_mm: float
    outer_mm: float
    patients: int
    cases: int


@dataclass(frozen=True)
class Band:
    """Widths of the boundary band by label, and the promise they keep (see the top of the module).

    `unit` is ``mm`` or ``px``; with `scaled`, widths are multiples of the scale given at each voxel.
    """

    labels: Mapping[int, LabelBand]
    level: float
    content: float
    unit: str
    scaled: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``inner`` and ``outer`` carry the unit in their names, and a width without bound is null."""
        rows = {
            str(label): {
                f"inner_{self.unit}": one.inner_mm if math.isfinite(one.inner_mm) else None,
                f"outer_{self.unit}": one.outer_mm if math.isfinite(one.outer_mm) else None,
                "patients": one.patients,
                "cases": one.cases,
            }
            for label, one in self.labels.items()
        }
        return {"level": self.level, "content": self.content, "unit": self.unit, "scaled": self.scaled, "labels": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Band:
        """The inverse of `to_json`."""
        unit = str(data["unit"])

        def width(row: Mapping[str, Any], side: str) -> float:
            value = row[f"{side}_{unit}"]
            return math.inf if value is None else float(value)

        labels = {
            int(label): LabelBand(width(row, "inner"), width(row, "outer"), int(row["patients"]), int(row["cases"]))
            for label, row in data["labels"].items()
        }
        return cls(labels, float(data["level"]), float(data["content"]), unit, bool(data["scaled"]))


def fit_band(
    cases: Iterable[tuple[Any, ...]],
    level: float = 0.95,
    *,
    content: float = 0.95,
    labels: Sequence[int] | None = None,
    sides: str = "auto",
    layers: bool = False,
) -> Band:
    """Learn the band from held-out cases.

    The score of a patient is the worst of his cases. Of n patients the ``ceil((n + 1) level)``-th smallest score is the
    width; if there are not that many, the width is inf.

    Parameters
    ----------
    cases
        Prediction, truth, spacing in mm (None for pixels), patient id and, if wanted, a scale: positive numbers
        ``(*S)`` known without the truth, such as ``0.1 + entropy``, by which the width is multiplied at each voxel.
        Read once. Cases without the label in the truth say nothing about its border; where the prediction lacks the
        label, no width is enough.
    level, content
        Of the promise.
    labels
        Labels (numbers of layers); None for all in the truth.
    sides
        ``"equal"``: as far inward as outward. ``"separate"``: each side for itself, with half of the error for each,
        which shows a bias and needs twice the patients. ``"auto"``: separate where there are patients enough.
    layers
        Maps are stacks of masks ``(K, *S)``.

    Raises
    ------
    ValueError
        For shapes that differ, mixed units, some cases with a scale and some without, or options out of range.
    """
    if not (0 < level < 1 and 0 < content <= 1) or sides not in SIDES:
        raise ValueError(f"level lies in (0, 1), content in (0, 1], sides is one of {SIDES}; "
                         f"got {level}, {content} and {sides!r}")  # fmt: skip
    worst: dict[int, dict[str, FloatArray]] = {}
    amount: dict[int, int] = {}
    units: set[tuple[str, bool]] = set()
    for label, patient, kind, needs in _borders(cases, labels, layers):
        score = _scores(needs, content)
        mine = worst.setdefault(label, {})
        mine[patient] = np.maximum(mine.get(patient, score), score)
        amount[label] = amount.get(label, 0) + 1
        units.add(kind)
    if len(units) > 1:
        raise ValueError("cases of one band need one unit (mm or px), and all of them a scale or none")
    unit, scaled = units.pop() if units else ("mm", False)
    found = {
        int(label): _label_band(list(worst.get(label, {}).values()), amount.get(label, 0), level, sides)
        for label in sorted(worst if labels is None else labels)
    }
    return Band(found, level, content, unit, scaled)


def _scores(needs: Needs, content: float) -> FloatArray:
    """Least width that holds enough of the border of a case: ``(3,)`` for both sides alike, inward, outward."""
    inward, outward, weight = needs
    half = (1 + content) / 2
    both = _reached(np.maximum(inward, outward), weight, content)
    return np.array([both, _reached(inward, weight, half), _reached(outward, weight, half)])


def _label_band(scores: list[FloatArray], cases: int, level: float, sides: str) -> LabelBand:
    """Widths from the scores of the patients."""
    table = np.array(scores).reshape(-1, 3)
    half = (1 + level) / 2
    apart = sides == "separate" or (sides == "auto" and math.isfinite(_rank(len(table), half)))
    columns = (1, 2) if apart else (0, 0)
    inner, outer = (conformal_quantile(table[:, column], half if apart else level) for column in columns)
    return LabelBand(inner, outer, len(table), cases)


def conformal_quantile(scores: NDArray[Any], level: float) -> float:
    """The ``ceil((n + 1) level)``-th smallest of n scores: a new one is not above it with probability `level` or more.

    inf where n is too small.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    rank = _rank(len(ordered), level)
    return float(ordered[int(rank) - 1]) if math.isfinite(rank) else math.inf


def _rank(amount: int, level: float) -> float:
    # 20 * 0.95 must stay 19, whatever was rounded.
    rank = max(1, math.ceil((amount + 1) * level - 1e-9))
    return rank if rank <= amount else math.inf


def apply_band(
    mask: NDArray[Any],
    band: Band,
    spacing: Sequence[float] | None,
    label: int,
    scale: NDArray[Any] | None = None,
) -> tuple[BoolArray, BoolArray]:
    """The inner and the outer mask of a label: the first lies within the mask, the mask within the second.

    Parameters
    ----------
    mask
        Label map ``(Z, Y, X)`` or ``(Y, X)``; booleans are the mask of the label itself.
    spacing
        mm per axis; None for pixels.
    scale
        Where the band is scaled, as in `fit_band`.

    Raises
    ------
    ValueError
        For a label without a finite band, or a unit or scale other than that of the band.
    """
    one = band.labels.get(label)
    if one is None or not (math.isfinite(one.inner_mm) and math.isfinite(one.outer_mm)):
        told = "it was not fitted" if one is None else f"{one.patients} patients do not carry a level of {band.level:g}"
        raise ValueError(f"there is no band for label {label}: {told}")
    if (spacing is not None) != (band.unit == "mm") or (scale is not None) != band.scaled:
        raise ValueError(f"the band is in {band.unit} and {'' if band.scaled else 'not '}scaled; give what it needs")
    array = np.asarray(mask)
    inside = (array if array.dtype == np.bool_ else array == label).copy()
    inner, outer = inside.copy(), inside
    steps = checked_spacing(spacing, inside.ndim)
    found = label_boxes(inside)
    if not len(found):
        return inner, outer
    reach = one.outer_mm * (1.0 if scale is None else float(np.max(scale)))
    wide = [math.floor(reach * (1 + _ROUNDING) / step) + 1 for step in steps]
    low, high = np.maximum(found.start[0] - wide, 0), np.minimum(found.stop[0] + wide, inside.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    inward, outward = _fields(inside[box], steps, None if scale is None else np.asarray(scale)[box])
    inner[box] &= inward > np.float32(one.inner_mm * (1 + _ROUNDING))
    outer[box] |= outward <= np.float32(one.outer_mm * (1 + _ROUNDING))
    return inner, outer


def band_coverage(cases: Iterable[tuple[Any, ...]], band: Band, *, layers: bool = False) -> dict[str, NDArray[Any]]:
    """How much of the true border of other cases lies in the band.

    Parameters
    ----------
    cases, layers
        As in `fit_band`.

    Returns
    -------
    Columns ``patient``, ``label``, ``share`` (part of the border, by area, within the band) and ``covered`` (whether it
    is at least the content that was promised), one row per case and label that the truth shows. A label whose band has
    no bound is left out. The promise is on patients: all cases of one covered, in the share `level` of the patients.
    """
    able = [label for label, one in band.labels.items() if math.isfinite(max(one.inner_mm, one.outer_mm))]
    rows: list[tuple[str, int, float]] = []
    for label, patient, unit, (inward, outward, weight) in _borders(cases, able, layers):
        if unit != (band.unit, band.scaled):
            raise ValueError(f"the band is in {band.unit} and {'' if band.scaled else 'not '}scaled, the cases are not")
        one, grown = band.labels[label], 1 + _ROUNDING
        within = (inward <= one.inner_mm * grown) & (outward <= one.outer_mm * grown)
        rows.append((patient, label, float(ratio(weight[within].sum(), weight.sum()))))
    share = np.array([row[2] for row in rows], dtype=np.float64)
    return {
        "patient": np.array([row[0] for row in rows], dtype=np.str_),
        "label": np.array([row[1] for row in rows], dtype=np.int64),
        "share": share,
        "covered": share >= band.content * (1 - _ROUNDING),
    }


def _borders(
    cases: Iterable[tuple[Any, ...]], labels: Sequence[int] | None, layers: bool
) -> Iterator[tuple[int, str, tuple[str, bool], Needs]]:
    """Label, patient, unit and what each element of the true border needs, for every label that a truth shows."""
    for prediction, truth, spacing, patient, *rest in cases:
        said, true = np.asarray(prediction), np.asarray(truth)
        if said.shape != true.shape:
            raise ValueError(f"prediction and truth must have one shape, got {said.shape} and {true.shape}")
        scale = np.asarray(rest[0]) if rest and rest[0] is not None else None
        shape = said.shape[1:] if layers else said.shape
        if scale is not None and (scale.shape != shape or not (np.isfinite(scale).all() and (scale > 0).all())):
            raise ValueError(f"scale must be positive and finite with shape {shape}, got shape {scale.shape}")
        steps = checked_spacing(spacing, len(shape))
        unit = ("px" if spacing is None else "mm", scale is not None)
        if layers:
            wanted: Sequence[int] = range(len(true)) if labels is None else labels
        else:
            said, true = checked_labels(said, name="prediction"), checked_labels(true, name="truth")
            held = label_boxes(true).values.tolist()
            wanted = held if labels is None else [label for label in labels if label in held]
        for label in wanted:
            pair = [np.asarray(one[label] != 0 if layers else one == label) for one in (said, true)]
            needs = _needs(pair[0], pair[1], steps, scale)
            if needs[2].sum() > 0:
                yield int(label), str(patient), unit, needs


def _needs(said: BoolArray, true: BoolArray, steps: tuple[float, ...], scale: NDArray[Any] | None) -> Needs:
    """For each element of the true border: the least inner and outer width that let it lie in the band, and its area.

    Elements at the edge of the array are left out.
    """
    found = label_boxes(said | true)
    if not len(found):
        return np.zeros(0), np.zeros(0), np.zeros(0)
    # The nearest voxel of the other kind is never farther than one voxel beyond the box of a mask.
    box = found.slices(0, margin=1, shape=said.shape)
    said, true = said[box], true[box]
    flat = (1,) * (3 - said.ndim)
    volume = np.ascontiguousarray(true).view(np.uint8).reshape(flat + true.shape)
    surface = elements(packed(volume, 1, 1), volume.shape[2], true.ndim == 2, element_sizes(steps))
    row = np.repeat(np.arange(len(surface.points.start) - 1), np.diff(surface.points.start))
    z, y = np.divmod(row, volume.shape[1] + 1)
    cells = np.stack([z, y, surface.points.columns.astype(np.int64)])[3 - true.ndim :]
    inner = ((cells > 0) & (cells < np.array(true.shape)[:, None])).all(axis=0)
    cells, weight = cells[:, inner], surface.weights[inner] if surface.weights is not None else np.ones(inner.sum())
    inward, outward = _fields(said, steps, None if scale is None else scale[box])
    least = [np.full(cells.shape[1], np.inf) for _ in range(2)]
    for corner in range(1 << true.ndim):
        at = tuple(cells[axis] - (corner >> axis & 1) for axis in range(true.ndim))
        for need, field in zip(least, (inward, outward), strict=True):
            np.minimum(need, field[at], out=need)
    return least[0], least[1], weight


def _fields(
    mask: BoolArray, steps: tuple[float, ...], scale: NDArray[Any] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Depth of each voxel in the mask and its distance from it, over the scale; 0 on the other side."""
    workers = 1 if mask.size < _WORTH_THREADS else None
    inward, outward = (distance_field(points, steps, workers) for points in (~mask, mask))
    if scale is not None:
        inward, outward = inward / scale.astype(np.float32), outward / scale.astype(np.float32)
    return inward, outward


def _reached(needs: FloatArray, weight: FloatArray, share: float) -> float:
    """The smallest width within which at least this share of the border lies."""
    order = np.argsort(needs, kind="stable")
    total = np.cumsum(weight[order])
    place = int(np.searchsorted(total, share * total[-1] * (1 - 1e-12)))
    return float(needs[order[min(place, len(order) - 1)]])
