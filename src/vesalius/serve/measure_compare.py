"""A mask against its reference: overlap, surfaces, objects."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vesalius.measure import instances, lesions, overlap, surface
from vesalius.measure.contingency import contingency
from vesalius.measure.quantities import by_name
from vesalius.serve.measure_loading import Loaded
from vesalius.serve.measure_tables import NAME, CaseTables
from vesalius.serve.measure_wishes import Wishes


def compare(loaded: Loaded, kind: str, wishes: Wishes, found: CaseTables) -> None:
    """Tables ``reference`` (a row for each label) and ``reference_images`` (a row for each image).

    Instance maps are compared object by object and, as foreground against background, voxel by voxel.
    """
    labels, truth = loaded.labels, loaded.reference
    if truth is None:
        return
    if wishes.labels and kind != "cells":
        truth = np.where(np.isin(truth, list(wishes.labels)), truth, 0).astype(truth.dtype)
    physical = loaded.spacing is not None
    if kind == "cells":
        scores = instances.instance_scores(labels, truth)
        found.add("reference_images", scores, by_name(instances.QUANTITIES), physical=physical)
        labels, truth = (labels > 0).view(np.uint8), (truth > 0).view(np.uint8)
    elif kind == "lesions":
        labels, truth = (labels > 0).view(np.uint8), (truth > 0).view(np.uint8)
        scores = lesions.lesion_scores(labels, truth, loaded.spacing)
        found.add("reference_images", scores, by_name(lesions.SCORE_QUANTITIES), physical=physical)
    table = overlap.table_of(contingency(labels, truth), loaded.spacing or (1.0,) * labels.ndim, physical=physical)
    rows = len(table["label"])
    if not rows:
        found.notes.append(f"{loaded.case_id}: neither the mask nor the reference holds a label")
        return
    found.add("reference", {"label": table.pop("label")}, by_name([overlap.TABLE_QUANTITIES[0]]), physical=physical)
    names = _names(loaded, kind, found.tables["reference"]["label"])
    found.add("reference", {"name": np.array(names, dtype=object)}, by_name([NAME]), physical=physical)
    found.add("reference", table, by_name(overlap.TABLE_QUANTITIES), physical=physical)
    distances = surface.surface_table(
        labels, truth, loaded.spacing, found.tables["reference"]["label"], tolerances=wishes.tolerances
    )
    distances.pop("label", None)
    found.add("reference", distances, by_name(surface.quantities(wishes.tolerances)), physical=physical)


def _names(loaded: Loaded, kind: str, values: Iterable[int]) -> list[str]:
    if kind in ("cells", "lesions"):
        return ["foreground" for _ in values]
    return [loaded.name_of(value) for value in values]
