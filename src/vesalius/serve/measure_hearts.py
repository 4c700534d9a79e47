"""Function of the heart from masks: volumes and ejection fraction, and its width on a chest film."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vesalius.core.errors import DataError
from vesalius.measure import heart as function
from vesalius.measure.quantities import by_name
from vesalius.serve.measure_cases import MeasureCase
from vesalius.serve.measure_loading import Loaded, load
from vesalius.serve.measure_tables import CaseTables
from vesalius.serve.measure_wishes import Wishes

_DIASTOLE = re.compile(r"(?<![a-z])(ed|diastole|end[-_ ]?diastole)(?![a-z])", re.IGNORECASE)
_SYSTOLE = re.compile(r"(?<![a-z])(es|systole|end[-_ ]?systole)(?![a-z])", re.IGNORECASE)
_CAVITY = re.compile(r"cavity|endo|blood|^lv$|left ventric", re.IGNORECASE)
_MUSCLE = re.compile(r"myo|muscle|wall", re.IGNORECASE)


def pair_phases(cases: Sequence[MeasureCase]) -> list[MeasureCase]:
    """Each mask of the end of diastole with that of systole, by ``ED``/``ES`` or ``diastole``/``systole`` in the name.

    Masks with neither word stay alone: clips, whose frames hold both.
    """
    systole = {_SYSTOLE.sub("*", case.case_id): case for case in cases if _SYSTOLE.search(case.case_id)}
    out: list[MeasureCase] = []
    used: set[str] = set()
    for case in cases:
        key = _DIASTOLE.sub("*", case.case_id)
        if key in systole and _DIASTOLE.search(case.case_id):
            out.append(replace(case, systole=systole[key].mask))
            used.add(systole[key].case_id)
        elif not _SYSTOLE.search(case.case_id):
            out.append(case)
    alone = [case for name, case in systole.items() if case.case_id not in used]
    if alone:
        raise DataError(
            f"{alone[0].mask}: a mask of systole without one of diastole; expected the same name with ED or diastole"
        )
    return out


def heart(loaded: Loaded, wishes: Wishes, found: CaseTables) -> None:
    """Table ``heart``: a row for each pair of phases, or each clip ``(T, Y, X)``."""
    physical = loaded.spacing is not None
    cavity, muscle = _labels(loaded)
    if loaded.systole is None:
        if loaded.grid.ndim != 3 or loaded.grid.affine is not None:
            raise DataError(
                f"{loaded.source}: one mask and no clip; expected two masks named ..._ED and ..._ES, "
                "or the masks of a clip as pages of a TIFF"
            )
        curve = function.volume_curve((loaded.labels == cavity).view(np.uint8), _in_plane(loaded, wishes))
        values = function.clip_function(curve, physical=physical or _in_plane(loaded, wishes) is not None)
        physical = physical or _in_plane(loaded, wishes) is not None
    else:
        other = load(
            MeasureCase(loaded.case_id, loaded.systole), names=loaded.names, only=wishes.labels, spacing=wishes.spacing
        )
        if loaded.grid.ndim == 3:
            values = function.short_axis_function(
                loaded.labels, other.labels, loaded.spacing, cavity=cavity, myocardium=muscle
            )
        else:
            views = tuple((one.labels == cavity).view(np.uint8) for one in (loaded, other))
            values = function.apical_function((views[0], views[1]), spacing=loaded.spacing)
    found.add("heart", values, by_name(function.QUANTITIES), physical=physical)


def _in_plane(loaded: Loaded, wishes: Wishes) -> tuple[float, ...] | None:
    spacing = wishes.spacing or loaded.spacing
    return None if spacing is None else tuple(spacing[-2:])


def _labels(loaded: Loaded) -> tuple[int, int | None]:
    """The labels of the cavity and of the muscle: by name, else 1, and no muscle."""
    cavity = [value for value, name in loaded.names.items() if _CAVITY.search(name) and not _MUSCLE.search(name)]
    muscle = [value for value, name in loaded.names.items() if _MUSCLE.search(name)]
    return (cavity[0] if cavity else 1), (muscle[0] if muscle else None)


def chest(loaded: Loaded, wishes: Wishes, found: CaseTables) -> None:
    """Table ``chest``: a row for each film. Heart and lungs are told apart by their names."""
    del wishes
    hearts = [value for value, name in loaded.names.items() if re.search(r"heart|cardiac|cor\b", name, re.IGNORECASE)]
    lungs = [value for value, name in loaded.names.items() if re.search(r"lung|pulmo", name, re.IGNORECASE)]
    if not hearts or not lungs:
        raise DataError(
            f"{loaded.source}: which labels are heart and lungs is not known; name them, e.g. --names 1=lungs,2=heart"
        )
    if loaded.grid.ndim != 2:
        raise DataError(f"{loaded.source}: the cardiothoracic ratio is that of a film; expected (Y, X), got a volume")
    measured = function.cardiothoracic_ratio(
        np.isin(loaded.labels, hearts), np.isin(loaded.labels, lungs), loaded.spacing
    )
    found.add("chest", measured.values, by_name(function.QUANTITIES), physical=loaded.spacing is not None)
