"""What each kind of question measures on one case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import DataError, VesaliusError
from vesalius.measure import cells, spatial, tissue
from vesalius.measure.boxes import label_boxes
from vesalius.measure.lesions import components
from vesalius.measure.quantities import by_name
from vesalius.serve import measure_compare, measure_exports, measure_hearts, measure_shapes, measure_trees
from vesalius.serve.measure_cases import MeasureCase
from vesalius.serve.measure_loading import Loaded, load
from vesalius.serve.measure_tables import NAME, CaseTables
from vesalius.serve.measure_wishes import Wishes

# A flat mask with more labels than this is taken for an instance map.
_MANY = 8
_LOOKED_AT = 5
_SIMULATIONS = 99


@dataclass(frozen=True)
class Work:
    """Measures one case after another; may be called from several threads."""

    kind: str
    wishes: Wishes
    names: Mapping[int, str]
    out: Path

    def open(self, case: MeasureCase) -> Loaded:
        """The case as it is measured: binary masks of cells and lesions have become components."""
        only = () if self.kind in ("cells", "lesions") else self.wishes.labels
        loaded = load(case, names=self.names, only=only, spacing=self.wishes.spacing)
        return prepared(loaded, self.kind)

    def __call__(self, case: MeasureCase) -> CaseTables:
        """Open, measure, compare and export."""
        loaded = self.open(case)
        _check_layers(loaded, self.kind, self.wishes)
        found = CaseTables(notes=list(loaded.notes))
        _MEASURES[self.kind](loaded, self.wishes, found)
        measure_compare.compare(loaded, self.kind, self.wishes, found)
        measure_exports.export(loaded, case, self.kind, self.wishes, self.out, found)
        return found


def _check_layers(loaded: Loaded, kind: str, wishes: Wishes) -> None:
    """Segments that overlap have no label map, which some measurements need."""
    if not loaded.layers:
        return
    if kind != "organs" or "relations" in wishes.extras:
        what = "--with relations" if kind == "organs" else f"--kind {kind}"
        raise DataError(
            f"{loaded.source}: its segments overlap, and {what} needs one label per voxel; "
            "choose segments that do not overlap with --labels"
        )


def prepared(loaded: Loaded, kind: str) -> Loaded:
    """The components of a binary mask where single objects are measured."""
    if kind not in ("cells", "lesions") or loaded.layers:
        return loaded
    values = label_boxes(loaded.labels).values
    if len(values) != 1 and kind == "cells":
        return loaded
    parts = components(loaded.labels > 0)
    said = f"{loaded.case_id}: one label, taken apart into {int(parts.max(initial=0))} connected components"
    notes = [*loaded.notes, said] if kind == "cells" and len(values) else loaded.notes
    return replace(loaded, labels=parts, names={}, notes=notes)


def decide(kind: str, cases: Sequence[MeasureCase]) -> tuple[str, str]:
    """The kind and why; ``auto`` looks at the first masks that can be opened.

    Raises
    ------
    DataError
        If ``auto`` can open none of the first masks.
    """
    if kind != "auto":
        return kind, "as asked"
    counts: list[int] = []
    first: VesaliusError | None = None
    for case in cases[:_LOOKED_AT]:
        try:
            loaded = load(replace(case, reference=None), names={})
        except VesaliusError as error:
            first = first or error
            continue
        if loaded.grid.ndim == 3:
            return "organs", "the masks are volumes"
        counts.append(len(label_boxes(loaded.labels)))
    if not counts:
        raise DataError(str(first)) from first
    most = max(counts)
    if most > _MANY:
        return "cells", f"the masks are flat with up to {most} labels each"
    return "organs", f"the masks are flat with at most {most} labels; say --kind cells, vessels or tissue if they are"


def _cells(loaded: Loaded, wishes: Wishes, found: CaseTables) -> None:
    """Tables ``cells``, ``images`` and, on request, ``ripley``."""
    if loaded.grid.ndim != 2:
        raise DataError(f"{loaded.source}: cells are measured on flat images; expected (Y, X), got {loaded.grid.shape}")
    physical, spacing = loaded.spacing is not None, loaded.spacing
    pixels = None if loaded.image is None else loaded.image.pixels
    names = _channel_names(pixels)
    table = cells.cell_table(loaded.labels, spacing, _grey(pixels), names or None)
    known = by_name(cells.cell_quantities((*names, "luminance") if names == cells.RGB else names))
    found.add("cells", table, known, physical=physical)
    shape = (loaded.labels.shape[0], loaded.labels.shape[1])
    summary: dict[str, Any] = dict(cells.cell_summary(table, shape, spacing))
    points, window = cells.cell_points(table, spacing), spatial.Window.of_image(shape, spacing)
    around = spatial.spatial_summary(points, window)
    for name in ("point_count", "window_area", "point_density"):
        around.pop(name)
    found.add("images", summary, by_name(cells.SUMMARY), physical=physical)
    found.add("images", around, by_name(spatial.QUANTITIES), physical=physical)
    if "ripley" not in wishes.extras:
        return
    curves = spatial.randomness_test(points, window, simulations=_SIMULATIONS)
    columns = {name: column for name, column in curves.items() if np.ndim(column) == 1}
    found.add("ripley", columns, by_name(spatial.QUANTITIES), physical=physical)


def _channel_names(pixels: NDArray[Any] | None) -> tuple[str, ...]:
    if pixels is None or pixels.shape[0] == 1:
        return ()
    if pixels.shape[0] in (3, 4) and pixels.dtype == np.uint8:
        return cells.RGB
    return tuple(f"channel_{number}" for number in range(1, pixels.shape[0] + 1))


def _grey(pixels: NDArray[Any] | None) -> NDArray[Any] | None:
    """Pixels without a single channel axis and without transparency."""
    if pixels is None:
        return None
    if pixels.shape[0] == 1:
        return pixels[0]
    return pixels[:3] if pixels.shape[0] == 4 and pixels.dtype == np.uint8 else pixels


def _tissue(loaded: Loaded, wishes: Wishes, found: CaseTables) -> None:
    """Table ``tissue``: a row for each class but the background."""
    physical, spacing = loaded.spacing is not None, loaded.spacing
    seen = None
    picture = loaded.image
    if picture is not None and picture.pixels.shape[0] >= 3 and picture.pixels.dtype == np.uint8:
        seen = tissue.tissue_mask(picture.pixels[:3]).mask
    # Values may be colours or codes of any size; classes are counted by their rank.
    values = np.union1d([0], loaded.labels)
    table = tissue.class_areas(np.searchsorted(values, loaded.labels), spacing, tissue=seen)
    table["class"] = values[table["class"]]
    present = (table["class"] > 0) & (table["class_pixels"] > 0)
    table = {name: column[present] for name, column in table.items()}
    known = by_name(tissue.QUANTITIES)
    found.add("tissue", {"class": table.pop("class")}, known, physical=physical)
    names = np.array([loaded.name_of(value) for value in found.tables["tissue"]["class"]], dtype=object)
    found.add("tissue", {"name": names}, by_name([NAME]), physical=physical)
    found.add("tissue", table, known, physical=physical)


_MEASURES: Mapping[str, Callable[[Loaded, Wishes, CaseTables], None]] = {
    "organs": measure_shapes.organs,
    "lesions": measure_shapes.organs,
    "cells": _cells,
    "vessels": measure_trees.vessels,
    "tissue": _tissue,
    "heart": measure_hearts.heart,
    "chest": measure_hearts.chest,
}
