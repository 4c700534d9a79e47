"""Vessels: the whole, every branch, every bifurcation, and places that are narrow."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.measure import vessels as trees
from vesalius.measure.quantities import by_name
from vesalius.measure.vessel_fundus import FUNDUS_QUANTITIES
from vesalius.measure.vessel_narrowing import STENOSIS_QUANTITIES
from vesalius.measure.vessel_tables import BIFURCATION_QUANTITIES, BRANCH_QUANTITIES
from vesalius.serve.measure_loading import Loaded
from vesalius.serve.measure_tables import CaseTables
from vesalius.serve.measure_wishes import Wishes

_ARTERY = re.compile(r"arter", re.IGNORECASE)
_VEIN = re.compile(r"ven(ule|ous|a\b)|vein", re.IGNORECASE)


def vessels(loaded: Loaded, wishes: Wishes, found: CaseTables) -> None:
    """Tables ``vessels``, ``branches``, ``bifurcations`` and ``narrowings``; labels are vessels of one mask.

    In a flat mask with labels named arteries and veins the calibres of both are summarised, as for the retina.
    """
    del wishes
    physical = loaded.spacing is not None
    measured = measured_vessels(loaded)
    found.add("vessels", measured.whole, by_name(trees.WHOLE_QUANTITIES), physical=physical)
    if measured.fundus:
        found.add("vessels", measured.fundus, by_name(FUNDUS_QUANTITIES), physical=physical)
    for name, table, quantities in (
        ("branches", measured.branches, BRANCH_QUANTITIES),
        ("bifurcations", measured.bifurcations, BIFURCATION_QUANTITIES),
        ("narrowings", measured.stenoses, STENOSIS_QUANTITIES),
    ):
        found.add(name, table, by_name(quantities), physical=physical)
    if not len(measured.graph.branches):
        found.notes.append(f"{loaded.case_id}: no vessel long enough to have a centreline")


def measured_vessels(loaded: Loaded) -> trees.VesselMeasures:
    """The graph of a case and all that follows from it."""
    classes = _classes(loaded) if loaded.grid.ndim == 2 else None
    return trees.measure_vessels(loaded.labels > 0, loaded.spacing, classes=classes)


def _classes(loaded: Loaded) -> NDArray[np.uint8] | None:
    """1 for arteries and 2 for veins, where both are named."""
    kinds: list[Any] = [
        [value for value, name in loaded.names.items() if pattern.search(name)] for pattern in (_ARTERY, _VEIN)
    ]
    if not all(kinds):
        return None
    return (np.isin(loaded.labels, kinds[0]) + 2 * np.isin(loaded.labels, kinds[1])).astype(np.uint8)
