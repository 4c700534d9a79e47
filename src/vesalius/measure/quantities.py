"""What a measured number is called, its unit and its definition: where column names and dictionaries come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# What a physical unit becomes where a file has no physical geometry.
_WITHOUT_GEOMETRY = {
    "mm": "px",
    "mm2": "px2",
    "mm3": "px3",
    "ml": "px3",
    "mm-1": "px-1",
    "mm-2": "px-2",
    "mm-3": "px-3",
}


@dataclass(frozen=True)
class Quantity:
    """One measured quantity.

    Parameters
    ----------
    name
        Lower case, words joined by ``_``, without the unit: ``surface_area``.
    unit
        ``mm``, ``mm2``, ``mm3``, ``ml``, ``deg``, ``percent``, ``count``, ``intensity`` (the unit of the image),
        ``intensity2`` (its square), ``1`` for a pure number, or ``text``.
    meaning
        One sentence a clinician can follow: definition, what is counted, the rule for an empty mask.
    source
        Paper or section of a standard.
    ibsi
        Tag in the reference table of IBSI 1, e.g. ``morph_volume``.
    """

    name: str
    unit: str
    meaning: str
    source: str = ""
    ibsi: str = ""

    def unit_in(self, *, physical: bool, intensity: str = "") -> str:
        """The unit as written: pixels where there is no geometry, the image's own unit for intensities."""
        parts = self.unit.split(" ")
        if not physical:
            parts = [_WITHOUT_GEOMETRY.get(part, part) for part in parts]
        if intensity:
            parts = [part.replace("intensity", intensity, 1) for part in parts]
        return " ".join(parts)

    def column(self, *, physical: bool, intensity: str = "") -> str:
        """Name of the column: ``surface_area_mm2``, ``surface_area_px2``, ``sphericity``, ``density_per_mm2``."""
        unit = self.unit_in(physical=physical, intensity=intensity)
        whole, minus, power = unit.replace(" ", "_").partition("-")
        if minus:
            whole = f"per_{whole}" + ("" if power == "1" else power)
        return self.name if unit in ("1", "text", "count") else f"{self.name}_{whole}"


def by_name(*groups: Iterable[Quantity]) -> dict[str, Quantity]:
    """Quantities by name.

    Raises
    ------
    ValueError
        If two different quantities share a name.
    """
    found: dict[str, Quantity] = {}
    for group in groups:
        for one in group:
            if found.setdefault(one.name, one) != one:
                raise ValueError(f"two different quantities are called {one.name!r}")
    return found


def columns(
    values: Mapping[str, Any], known: Mapping[str, Quantity], *, physical: bool, intensity: str = ""
) -> dict[str, Any]:
    """`values` by quantity name as values by column name, in order.

    Raises
    ------
    KeyError
        For a value whose quantity is not described.
    """
    return {known[name].column(physical=physical, intensity=intensity): value for name, value in values.items()}
