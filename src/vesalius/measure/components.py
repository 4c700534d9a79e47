"""Cleaning a mask by its connected components: the largest one, a smallest volume, filled holes.

A `Step` says what happens to one label, in this order: components below the smallest volume go, then all but the
largest, then holes are filled. What goes becomes background. A hole is background that the label encloses: no path of
background or other labels leads from it to the edge of the array. Only background is filled, never another label, so
a tumour within a kidney stays. Steps are applied one after the other.

Components and what surrounds them need a pair of adjacencies, or a curve could cross a closed surface (Rosenfeld,
J ACM 1970, 17:146): a hole of a label with 26 (18) neighbours is bounded for paths over faces (6), one of a label with
6 neighbours for paths over corners (26); 8 and 4 in images. With 26 the holes are those of SciPy's
``binary_fill_holes``, with 6 those of MONAI's ``FillHoles``.

Each map is read once, to find the box around each label; all else happens in these boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import checked_labels, label_boxes
from vesalius.measure.compiled import kernel
from vesalius.measure.lesions import CONNECTIVITY, components
from vesalius.measure.weights import IntArray

BoolArray = NDArray[np.bool_]
Box = tuple[slice, ...]

# Neighbours of the background for each kind of neighbours of a label.
AROUND = {26: 6, 18: 6, 6: 26, 8: 4, 4: 8}
# A volume that equals the smallest one asked for stays, whatever was rounded in the product of the spacing.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Step:
    """What is done to one label.

    Parameters
    ----------
    label
        Value in the label map, or position in a stack of layers; None for all of the foreground taken together.
    keep
        ``"largest"``: only the component with the most voxels, or several if they are of equal size (so that no flip
        changes the result). None keeps all.
    fill_holes
        Fill enclosed background. Not for the whole foreground, whose holes belong to no label.
    min_volume
        Smaller components go: mm³ (mm² in an image), voxels where there is no spacing.
    connectivity
        Neighbours that make one component: 26, 18 or 6, in an image 8 or 4; the most if None.

    Raises
    ------
    ValueError
        For an unknown `keep`, a bad volume or connectivity, a negative label, or holes of the whole foreground.
    """

    label: int | None
    keep: str | None = None
    fill_holes: bool = False
    min_volume: float = 0.0
    connectivity: int | None = None

    def __post_init__(self) -> None:
        if self.keep not in (None, "largest"):
            raise ValueError(f"keep must be 'largest' or None, got {self.keep!r}")
        if not (np.isfinite(self.min_volume) and self.min_volume >= 0):
            raise ValueError(f"min_volume must be a number of at least 0, got {self.min_volume}")
        if self.connectivity is not None and self.connectivity not in AROUND:
            raise ValueError(f"connectivity must be one of {', '.join(map(str, AROUND))}, got {self.connectivity}")
        if self.label is not None and (self.label < 0 or self.label != int(self.label)):
            raise ValueError(f"label must be a whole number of at least 0, got {self.label}")
        if self.label is None and self.fill_holes:
            raise ValueError("holes of the whole foreground belong to no label; fill the holes of single labels")

    def to_json(self) -> dict[str, Any]:
        """As it stands in a bundle."""
        return asdict(self)

    @classmethod
    def of(cls, spec: Step | Mapping[str, Any]) -> Step:
        """A step, or one from its JSON.

        Raises
        ------
        ValueError
            For keys that a step does not have, or without ``label``.
        """
        if isinstance(spec, Step):
            return spec
        known = tuple(cls.__dataclass_fields__)
        odd = [key for key in spec if key not in known]
        if odd or "label" not in spec:
            raise ValueError(f"a step has the keys {', '.join(known)}, of which label is needed; got {list(spec)}")
        return cls(**spec)


def apply_steps(
    mask: NDArray[Any],
    steps: Iterable[Step | Mapping[str, Any]],
    spacing: Sequence[float] | None = None,
    *,
    workers: int | None = None,
) -> NDArray[Any]:
    """A cleaned copy of a label map.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` or ``(Y, X)`` of whole numbers, 0 for the background; a mask of booleans has the label 1.
    steps
        Applied in this order. A label that the map does not hold is passed over.
    spacing
        mm per axis; None counts voxels.
    workers
        Threads of the pass that finds the labels; all cores if None.

    Returns
    -------
    An array of the same shape and type.

    Raises
    ------
    ValueError
        For other axes, numbers that are not labels, a step for label 0, or a connectivity of the other dimension.
    """
    todo = [Step.of(step) for step in steps]
    labels = checked_labels(mask, name="mask")
    if any(step.label == 0 for step in todo):
        raise ValueError("a step names label 0, which is the background of a label map")
    unit = float(np.prod(checked_spacing(spacing, labels.ndim)))
    _check_connectivity(todo, labels.ndim)
    out = np.array(labels, order="C")
    found = label_boxes(out, workers=workers)
    if len(found):
        boxes: dict[int | None, Box] = {int(value): found.slices(row) for row, value in enumerate(found.values)}
        low, high = found.start.min(axis=0), found.stop.max(axis=0)
        boxes[None] = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        for step in todo:
            if step.label in boxes:
                _apply(out[boxes[step.label]], step, unit)
    kind = np.asarray(mask).dtype
    return out.view(np.bool_) if kind == np.bool_ else out.astype(kind, copy=False)


def apply_to_layers(
    layers: NDArray[Any],
    steps: Iterable[Step | Mapping[str, Any]],
    spacing: Sequence[float] | None = None,
    *,
    workers: int | None = None,
) -> NDArray[Any]:
    """A cleaned copy of a stack of masks that may overlap.

    Parameters
    ----------
    layers
        ``(K, Z, Y, X)`` or ``(K, Y, X)``; anything but 0 is inside.
    steps
        `Step.label` is the position of a layer, from 0; None stands for the union of all layers, and what goes from
        the union goes from every layer. A hole of a layer is filled in that layer, whatever the others hold.
    spacing
        mm per axis of one layer; None counts voxels.

    Returns
    -------
    Booleans of the same shape.

    Raises
    ------
    ValueError
        For other axes, or a layer that is not there.
    """
    stack = np.asarray(layers)
    if stack.ndim not in (3, 4):
        raise ValueError(f"layers must have axes (K, Z, Y, X) or (K, Y, X), got shape {stack.shape}")
    todo = [Step.of(step) for step in steps]
    for step in todo:
        if step.label is not None and step.label >= len(stack):
            raise ValueError(f"a step names layer {step.label} of {len(stack)}; layers count from 0")
    unit = float(np.prod(checked_spacing(spacing, stack.ndim - 1)))
    _check_connectivity(todo, stack.ndim - 1)
    out = np.array(stack != 0, order="C")
    boxes: dict[int | None, Box] = {}
    for index, layer in enumerate(out):
        found = label_boxes(layer, workers=workers)
        if len(found):
            boxes[index] = found.slices(0)
    for step in todo:
        if step.label is not None:
            if step.label in boxes:
                _apply(out[step.label][boxes[step.label]].view(np.uint8), Step.of({**asdict(step), "label": 1}), unit)
        elif boxes:
            axes = zip(*boxes.values(), strict=True)
            box = tuple(slice(min(one.start for one in axis), max(one.stop for one in axis)) for axis in axes)
            inside = out[(slice(None), *box)]
            union: BoolArray = np.asarray(inside.any(axis=0))
            inside &= kept(union, step, unit)
    return out


def kept(mask: BoolArray, step: Step, unit: float = 1.0) -> BoolArray:
    """The components of `mask` ``(Z, Y, X)`` or ``(Y, X)`` that `step` leaves; `unit` is the volume of a voxel."""
    if not step.min_volume and step.keep is None:
        return mask
    parts = components(mask, step.connectivity)
    voxels = part_voxels(parts)
    if len(voxels) == 1:
        return mask
    stay = staying(voxels[1:], step, unit)
    return mask if stay.all() else np.concatenate([[False], stay])[parts]


def staying(voxels: IntArray, step: Step, unit: float = 1.0) -> BoolArray:
    """``(N,)``: which of the components with so many `voxels` each stay; holes play no part here."""
    stay: BoolArray = voxels * unit >= step.min_volume * (1 - ROUNDING)
    if step.keep == "largest" and stay.any():
        stay &= voxels == voxels[stay].max()
    return stay


def part_voxels(parts: NDArray[Any]) -> IntArray:
    """Voxels of each part of a map of components, from 0 (the background) to the last one."""
    sums = np.zeros(int(parts.max()) + 1 if parts.size else 1, dtype=np.int64)
    _count(parts.reshape(-1), sums)
    return sums


def holes(mask: BoolArray, connectivity: int | None = None) -> BoolArray:
    """What `mask` encloses: all that cannot be reached from outside; ``(Z, Y, X)`` or ``(Y, X)`` as `mask`.

    Parameters
    ----------
    connectivity
        Neighbours of the mask; the outside moves over those of the other kind (`AROUND`).
    """
    return np.asarray((_open_parts(mask, connectivity) > 1)[(slice(1, -1),) * mask.ndim])


@dataclass(frozen=True, eq=False)
class Nesting:
    """Which part of a mask lies within which: a tree of its components and of the open parts between them.

    Parameters
    ----------
    parent
        ``(N,)``: the node around each node, which has a lower number; node 0 is the outside, its own parent.
    component
        ``(N,)``: number of the component, 0 for open parts.
    """

    parent: IntArray
    component: IntArray

    def enclosed(self, alive: BoolArray) -> BoolArray:
        """``(N,)``: nodes that a component encloses, of those which are `alive` (by number)."""
        inside = np.zeros(len(self.parent), dtype=bool)
        for node in range(1, len(inside)):
            above = self.parent[node]
            inside[node] = inside[above] or (self.component[above] > 0 and alive[self.component[above]])
        return inside


def nesting(mask: BoolArray, parts: NDArray[Any], connectivity: int | None = None) -> tuple[Nesting, IntArray] | None:
    """How the components of `mask` lie in one another; None where it encloses nothing.

    With a pair of adjacencies, components and open parts that share faces form a tree whose root is the outside
    (Rosenfeld, J ACM 1974, 21:26). So what is filled when some components are removed first can be read from it.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` or ``(Y, X)``.
    parts
        Its components of that `connectivity`; only voxels of `mask` are looked at.

    Returns
    -------
    The tree, and the node of each voxel.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order

    open_parts = _open_parts(mask, connectivity)
    amount = int(open_parts.max())
    if amount < 2:
        return None
    # Open part k is k - 1 for now, and component c is amount + c.
    voxels = open_parts.astype(np.int64) - 1
    voxels[(slice(1, -1),) * mask.ndim][mask] = parts[mask].astype(np.int64) + amount
    size = int(voxels.max()) + 1
    pairs = []
    for axis in range(mask.ndim):
        one, other = (np.moveaxis(voxels, axis, 0)[cut] for cut in (slice(None, -1), slice(1, None)))
        edge = (one < amount) != (other < amount)
        pairs.append(np.unique(one[edge] * size + other[edge]))
    first, second = np.divmod(np.unique(np.concatenate(pairs)), size)
    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(size, size)).tocsr()
    order, above = breadth_first_order(links, 0, directed=False)
    place = np.zeros(size, dtype=np.int64)
    place[order] = np.arange(len(order))
    parent = np.zeros(len(order), dtype=np.int64)
    parent[1:] = place[above[order[1:]]]
    nodes = place[voxels[(slice(1, -1),) * mask.ndim]]
    return Nesting(parent, np.maximum(order.astype(np.int64) - amount, 0)), nodes


def _open_parts(mask: BoolArray, connectivity: int | None) -> NDArray[Any]:
    """Components of what is not in `mask`, with a border of 1 at every side; 1 is the outside, 0 the mask."""
    near = AROUND[connectivity or CONNECTIVITY[mask.ndim][0]]
    return components(np.pad(~mask, 1, constant_values=True), near)


def _apply(view: NDArray[Any], step: Step, unit: float) -> None:
    """Clean one label in its box, in place."""
    inside: BoolArray = np.asarray(view != 0 if step.label is None else view == step.label)
    stay = kept(inside, step, unit)
    if stay is not inside:
        view[inside & ~stay] = 0
    if step.fill_holes and step.label is not None:
        view[holes(stay, step.connectivity) & (view == 0)] = step.label


def _check_connectivity(steps: Iterable[Step], ndim: int) -> None:
    for step in steps:
        if step.connectivity is not None and step.connectivity not in CONNECTIVITY[ndim]:
            raise ValueError(f"connectivity in {ndim}-D must be one of {CONNECTIVITY[ndim]}, got {step.connectivity}")


@kernel
def _count(parts, sums):  # type: ignore[no-untyped-def]
    for voxel in parts:
        sums[voxel] += 1
