"""Outlines and surfaces of a predicted mask, by the writers of `serve.measure_exports`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.predict.segmenter import Segmented
from vesalius.serve.measure_cases import MeasureCase
from vesalius.serve.measure_exports import export
from vesalius.serve.measure_loading import Loaded
from vesalius.serve.measure_tables import CaseTables
from vesalius.serve.measure_wishes import Wishes

if TYPE_CHECKING:
    from vesalius.serve.segment_predicting import SegmentItem


def outlines(found: Segmented, item: SegmentItem, out: Path, formats: Sequence[str], notes: list[str]) -> list[str]:
    """RTSTRUCT and meshes, as asked for; names of the files, relative to `out`."""
    labels, values = found.mask.labels, found.mask.values
    layers: dict[int, NDArray[Any]] = {}
    if values.ndim > found.mask.grid.ndim:
        layers = {number: np.asarray(layer != 0) for number, layer in enumerate(values, 1)}
        values = np.zeros(found.mask.grid.shape, dtype=np.uint8)
    names = {} if labels.instances else dict(enumerate(labels.structures, 1))
    loaded = Loaded(item.case_id, item.source, found.mask.grid, values, layers, names, found.image)
    case = MeasureCase(item.case_id, str(out), image=item.sources[0])
    wishes = Wishes(
        meshes=("stl",) if "mesh" in formats else (), contours=("rtstruct",) if "rtstruct" in formats else ()
    )
    tables = CaseTables()
    export(loaded, case, "organs", wishes, out, tables)
    notes += tables.notes
    return tables.files
