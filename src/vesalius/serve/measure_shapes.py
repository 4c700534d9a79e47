"""Shape, diameters and intensities of labelled structures, and how they lie to one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.image import Unit
from vesalius.measure import diameters, first_order, planar, relations, shape, symmetry, texture, thickness
from vesalius.measure.boxes import label_boxes
from vesalius.measure.quantities import Quantity, by_name
from vesalius.serve.measure_loading import Loaded
from vesalius.serve.measure_tables import NAME, CaseTables
from vesalius.serve.measure_wishes import Wishes

RELATED = (
    Quantity("first_name", "text", "Name of the first structure."),
    Quantity("second_name", "text", "Name of the second structure."),
)
# Distances between structures beyond this many mm (pixels) are not looked for.
_FAR = 30.0
_LEVELS = 32
# Measured by themselves while the boxes of all labels hold no more voxels than this; beyond, on request only.
_FEW_FOR_PAIRS, _FEW_FOR_PEAKS = 500_000, 200_000

Columns = dict[str, NDArray[Any]]


def organs(loaded: Loaded, wishes: Wishes, found: CaseTables) -> None:
    """Table ``structures``, a row for each label; ``relations``, a row for each pair of near ones, on request."""
    # Decided once: the rows of overlapping structures have the same columns.
    room = _box_voxels(loaded.labels)
    if loaded.layers:
        parts = [_groups(loaded, mask, wishes, room) for _, mask in loaded.layer_maps()]
        groups = [_stacked([part[k] for part in parts]) for k in range(len(parts[0]))]
    else:
        groups = _groups(loaded, loaded.labels, wishes, room)
    for columns, known, unit in groups:
        found.add("structures", columns, known, physical=loaded.spacing is not None, intensity=unit)
        if "label" in columns and "name" not in found.tables["structures"]:
            names = np.array([loaded.name_of(value) for value in columns["label"]], dtype=object)
            found.add("structures", {"name": names}, by_name([NAME]), physical=True)
    _put_name_second(found)
    if not len(found.tables["structures"].get("label", ())):
        found.notes.append(f"{loaded.case_id}: the mask is empty")
    if "relations" in wishes.extras:
        _relations(loaded, found)


Group = tuple[Columns, Mapping[str, Quantity], str]


def _stacked(groups: list[Group]) -> Group:
    columns = {name: np.concatenate([group[0][name] for group in groups]) for name in groups[0][0]}
    return columns, groups[0][1], groups[0][2]


def _groups(loaded: Loaded, labels: NDArray[Any], wishes: Wishes, room: int) -> list[Group]:
    """Columns with their meaning, group by group, rows in rising order of the label.

    `room` is the number of voxels in the boxes of all labels: what takes long is left out where they are many.
    """
    spacing, grey = loaded.spacing, _channels(loaded)
    unit = _unit(loaded)
    if labels.ndim == 2:
        groups: list[Group] = [(planar.planar_table(labels, spacing), by_name(planar.QUANTITIES), "")]
    else:
        single = grey[0][1] if len(grey) == 1 else None
        every = single is not None and ("autocorrelation" in wishes.extras or room <= _FEW_FOR_PAIRS)
        table = shape.shape_table(labels, spacing, single, autocorrelation=every)
        groups = [(table, by_name(shape.QUANTITIES), unit)]
    groups.append((diameters.lesion_diameters(labels, spacing), by_name(diameters.QUANTITIES), ""))
    for suffix, pixels in grey:
        ball = labels.ndim == 3 and spacing is not None
        peaks = ball and ("peaks" in wishes.extras or room <= _FEW_FOR_PEAKS)
        values = first_order.first_order_table(pixels, labels, spacing, peaks=peaks)
        values = {name: column for name, column in values.items() if name not in groups[0][0]}
        groups.append((*_suffixed(values, first_order.QUANTITIES, suffix), unit))
        if "texture" in wishes.extras:
            groups.append((*_texture(pixels, labels, suffix), ""))
    if "thickness" in wishes.extras:
        groups.append((_thickness(labels, spacing), by_name(thickness.QUANTITIES), ""))
    if "symmetry" in wishes.extras:
        groups.append((_symmetry(loaded, labels), by_name(symmetry.QUANTITIES), ""))
    taken: set[str] = set()
    out: list[Group] = []
    for columns, known, own in groups:
        out.append(({name: column for name, column in columns.items() if name not in taken}, known, own))
        taken |= set(columns)
    return out


def _box_voxels(labels: NDArray[Any]) -> int:
    boxes = label_boxes(labels)
    return int(np.prod(boxes.stop - boxes.start, axis=1).sum())


def _by_label(
    labels: NDArray[Any], quantities: tuple[Quantity, ...], measure: Callable[[NDArray[Any]], Any]
) -> Columns:
    """Columns of what `measure` says of the mask of each label, cut out with a margin of one voxel."""
    boxes = label_boxes(labels)
    rows = []
    for row, value in enumerate(boxes.values):
        part = boxes.slices(row, margin=1, shape=labels.shape)
        rows.append(measure(np.pad(labels[part] == value, 1)))
    return {
        one.name: np.array([row[one.name] for row in rows]) for one in quantities if not rows or one.name in rows[0]
    }


def _thickness(labels: NDArray[Any], spacing: tuple[float, ...] | None) -> Columns:
    return _by_label(
        labels,
        thickness.QUANTITIES,
        lambda mask: thickness.thickness_summary(thickness.local_thickness(mask, spacing)),
    )


def _symmetry(loaded: Loaded, labels: NDArray[Any]) -> Columns:
    """About the best plane across the patient's left-right axis; without a position, the last axis of the array."""
    left: Any = symmetry.left_axis(loaded.grid) if loaded.grid.affine is not None else -1
    return _by_label(labels, symmetry.QUANTITIES, lambda mask: symmetry.symmetry(mask, loaded.spacing, left=left))


def _texture(pixels: NDArray[Any], labels: NDArray[Any], suffix: str) -> tuple[Columns, Mapping[str, Quantity]]:
    boxes = label_boxes(labels)
    levels = texture.fixed_bins(pixels, labels, _LEVELS, boxes=boxes)
    found = texture.cooccurrence(levels, labels, level_count=_LEVELS, boxes=boxes)
    found.pop("label", None)
    return _suffixed(found, texture.GLCM, suffix)


def _suffixed(values: Columns, quantities: tuple[Quantity, ...], suffix: str) -> tuple[Columns, Mapping[str, Quantity]]:
    """Columns of one channel of several carry its name."""
    if not suffix:
        return values, by_name(quantities)
    known = {
        f"{one.name}_{suffix}": Quantity(
            f"{one.name}_{suffix}", one.unit, f"{one.meaning.rstrip('.')} (channel {suffix}).", one.source
        )
        for one in quantities
    }
    return {f"{name}_{suffix}": column for name, column in values.items()}, known


def _channels(loaded: Loaded) -> list[tuple[str, NDArray[Any]]]:
    """(suffix, pixels) of every channel of the image; a single one has no suffix, transparency is left out."""
    if loaded.image is None:
        return []
    pixels = loaded.image.pixels
    if pixels.shape[0] == 1:
        return [("", pixels[0])]
    if loaded.image.unit is Unit.RED_GREEN_BLUE:
        return list(zip(("red", "green", "blue"), pixels[:3], strict=False))
    names = [name.replace(" ", "_") for name in loaded.image.channels]
    return list(zip(names, pixels, strict=True))


def _unit(loaded: Loaded) -> str:
    """The unit of the image where it has one."""
    if loaded.image is None or loaded.image.unit in (Unit.INTENSITY, Unit.RED_GREEN_BLUE, Unit.LABEL):
        return ""
    return str(loaded.image.unit)


def _put_name_second(found: CaseTables) -> None:
    """Label and name first."""
    table = found.tables["structures"]
    if "label" in table and "name" in table:
        rest = {name: column for name, column in table.items() if name not in ("label", "name")}
        found.tables["structures"] = {"label": table["label"], "name": table["name"], **rest}


def _relations(loaded: Loaded, found: CaseTables) -> None:
    table = relations.relations(loaded.labels, loaded.spacing, max_distance_mm=_FAR)
    physical = loaded.spacing is not None
    known = by_name(relations.QUANTITIES, RELATED)
    for end in ("first", "second"):
        names = np.array([loaded.name_of(value) for value in table[end]], dtype=object)
        found.add("relations", {f"{end}_name": names}, known, physical=physical)
    found.add("relations", table, known, physical=physical)
