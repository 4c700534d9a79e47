"""What a person may ask of `vesalius measure`, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from vesalius.core.errors import UsageError

KINDS = ("auto", "organs", "lesions", "cells", "vessels", "tissue", "heart", "chest")
EXTRAS = ("texture", "relations", "thickness", "symmetry", "autocorrelation", "peaks", "ripley")
MESHES = ("stl", "ply", "obj", "vtk")
CONTOURS = ("geojson", "rtstruct")
FORMATS = ("csv", "parquet")


@dataclass(frozen=True)
class Wishes:
    """What to measure and how.

    Parameters
    ----------
    kind
        ``organs`` (shape of each label), ``lesions`` (shape of each connected part), ``cells`` (instance maps),
        ``vessels``, ``tissue`` (area fractions), ``heart`` (volumes and ejection fraction), ``chest`` (cardiothoracic
        ratio), or ``auto``.
    names
        ``1=liver,2=tumour``, a JSON file, or a mapping.
    labels
        Only these label values.
    spacing
        mm per axis in the order (z, y, x), for files without physical size.
    tolerances
        mm (pixels without geometry) at which the normalised surface distance is taken.
    extras
        Of `EXTRAS`: further, slower measurements.
    meshes, contours
        Formats of `MESHES` and `CONTOURS` to write.
    deviation
        Largest distance in mm (pixels) that smoothing and simplification may move a mesh.
    formats
        Of `FORMATS`.
    """

    kind: str = "auto"
    names: str | Mapping[int, str] | None = None
    labels: Sequence[int] = ()
    spacing: Sequence[float] | None = None
    tolerances: Sequence[float] = (1.0, 2.0)
    extras: Sequence[str] = ()
    meshes: Sequence[str] = ()
    contours: Sequence[str] = ()
    deviation: float | None = None
    formats: Sequence[str] = ("csv", "parquet")

    def __post_init__(self) -> None:
        _one_of("kind", [self.kind], KINDS)
        for option, name, known in (
            ("with", "extras", EXTRAS),
            ("mesh", "meshes", MESHES),
            ("contours", "contours", CONTOURS),
            ("format", "formats", FORMATS),
        ):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
            _one_of(option, getattr(self, name), known)
        if not self.formats:
            raise UsageError("--format: at least one of csv, parquet")
        object.__setattr__(self, "labels", (self.labels,) if isinstance(self.labels, int) else tuple(self.labels))
        if isinstance(self.names, Mapping):
            object.__setattr__(self, "names", ",".join(f"{value}={name}" for value, name in self.names.items()))
        spacing = self.spacing
        if spacing is not None and not (len(spacing) in (2, 3) and all(isfinite(s) and s > 0 for s in spacing)):
            raise UsageError(f"--spacing {list(spacing)}: expected two or three positive numbers, in the order z,y,x")
        if not self.tolerances or not all(isfinite(one) and one >= 0 for one in self.tolerances):
            raise UsageError(f"--tolerance {list(self.tolerances)}: expected numbers of 0 or more")
        if self.deviation is not None and not (isfinite(self.deviation) and self.deviation >= 0):
            raise UsageError(f"--deviation {self.deviation}: expected a number of 0 or more")


def _one_of(option: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise UsageError(f"--{option} {value!r}: expected one of {', '.join(known)}")
