"""Outlines of cells and regions as GeoJSON (RFC 7946) with the properties that QuPath reads.

QuPath counts in pixels of the full-resolution image from the upper left corner of the first pixel, whose centre is
therefore at (0.5, 0.5); outlines in index units have centres at whole numbers. Outer rings run counter-clockwise in
(x, y) as RFC 7946 asks, holes the other way round, and the first point is repeated at the end.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UsageError
from vesalius.core.files import atomic

FloatArray = NDArray[np.float64]


class ObjectType(StrEnum):
    """What QuPath makes of an outline."""

    DETECTION = "detection"
    """Light-weight, not editable: cells by the ten thousand."""
    ANNOTATION = "annotation"
    """Editable, with a place in the list of annotations."""
    CELL = "cell"
    """A detection that may hold the outline of its nucleus."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One object.

    Parameters
    ----------
    rings
        Closed rings ``(N, 2)`` of (y, x) in index units, any orientation; the first point is not repeated.
    parents
        Per ring the position of the outer ring whose hole it is, or -1. Empty: every ring is an outer one. Several
        outer rings make a MultiPolygon.
    identity
        What the object's UUID is made from, such as the label; a UUID is taken as it is. None for the place in the
        list.
    classification
        Name of its class, or empty.
    colour
        Red, green and blue of the class from 0 to 255; None leaves it to QuPath.
    measurements
        Numbers by name; those that are not finite are left out, since JSON has none.
    nucleus
        Ring of the nucleus of a cell, or None.
    """

    rings: Sequence[FloatArray]
    parents: Sequence[int] = ()
    identity: str | int | None = None
    classification: str = ""
    colour: tuple[int, int, int] | None = None
    measurements: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    nucleus: FloatArray | None = None


def write_geojson(
    outlines: Iterable[Outline],
    path: str | Path,
    *,
    kind: ObjectType | str = ObjectType.DETECTION,
    downsample: float = 1.0,
    origin: tuple[float, float] = (0.0, 0.0),
    decimals: int = 2,
    locked: bool = False,
    namespace: str = "",
) -> Path:
    """Write outlines as one FeatureCollection, a feature per line, without reading them all into memory.

    Parameters
    ----------
    outlines
        Objects in the order of the file; objects without a ring of three points are refused.
    kind
        ``detection``, ``annotation`` or ``cell``.
    downsample
        Full-resolution pixels per pixel of the outlines.
    origin
        Place (y, x) in full-resolution pixels of the upper left corner of the outlined image.
    decimals
        Digits behind the point of a coordinate.
    locked
        Whether the objects are protected from editing.
    namespace
        Name of the slide: the same identity on two slides gives two UUIDs.

    Raises
    ------
    UsageError
        For another kind, a downsample that is not positive, or rings that are no ``(N, 2)`` finite numbers with N of at
        least 3.
    """
    path = Path(path)
    if str(kind) not in tuple(ObjectType):
        raise UsageError(f"{path}: objects are {', '.join(ObjectType)}, got {kind!r}")
    if not (math.isfinite(downsample) and downsample > 0) or decimals < 0:
        raise UsageError(f"{path}: downsample must be positive and decimals not negative: {downsample}, {decimals}")
    place = _Place(downsample, origin, decimals, path)
    with atomic(path) as file:
        file.write(b'{"type":"FeatureCollection","features":[')
        for line in _features(outlines, place, ObjectType(kind), locked, namespace):
            file.write(line)
        file.write(b"\n]}\n")
    return path


@dataclass(frozen=True)
class _Place:
    """From index units to the coordinates of the file."""

    downsample: float
    origin: tuple[float, float]
    decimals: int
    path: Path

    def ring(self, points: FloatArray, *, hole: bool) -> list[list[float]]:
        """Closed ring of [x, y] in the orientation of RFC 7946."""
        array = np.asarray(points, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] != 2 or len(array) < 3 or not np.isfinite(array).all():
            raise UsageError(f"{self.path}: a ring is (N, 2) finite numbers with N of at least 3, got {array.shape}")
        y, x = ((array + 0.5) * self.downsample + np.asarray(self.origin)).round(self.decimals).T
        area = float((x - x[0]) @ np.roll(y, -1) - np.roll(x - x[0], -1) @ y)
        pairs = np.column_stack([x, y]).tolist()
        if (area < 0) != hole:
            pairs.reverse()
        pairs.append(pairs[0])
        return pairs


def _features(
    outlines: Iterable[Outline], place: _Place, kind: ObjectType, locked: bool, namespace: str
) -> Iterator[bytes]:
    space = uuid.uuid5(uuid.NAMESPACE_URL, namespace)
    for number, outline in enumerate(outlines):
        feature: dict[str, Any] = {
            "type": "Feature",
            "id": _uuid(number if outline.identity is None else outline.identity, space),
            "geometry": _geometry(outline, place),
        }
        if outline.nucleus is not None and kind is ObjectType.CELL:
            nucleus = place.ring(outline.nucleus, hole=False)
            feature["nucleusGeometry"] = {"type": "Polygon", "coordinates": [nucleus]}
        properties: dict[str, Any] = {"objectType": str(kind), "isLocked": locked}
        if outline.name:
            properties["name"] = outline.name
        if outline.classification:
            properties["classification"] = {"name": outline.classification}
            if outline.colour is not None:
                properties["classification"]["color"] = [int(part) for part in outline.colour]
        numbers = {str(name): float(value) for name, value in outline.measurements.items() if math.isfinite(value)}
        if numbers:
            properties["measurements"] = numbers
        feature["properties"] = properties
        text = json.dumps(feature, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        yield (",\n" if number else "\n").encode() + text.encode()


def _geometry(outline: Outline, place: _Place) -> dict[str, Any]:
    parents = list(outline.parents) or [-1] * len(outline.rings)
    if len(parents) != len(outline.rings) or any(p >= 0 and (p >= len(parents) or parents[p] >= 0) for p in parents):
        raise UsageError(f"{place.path}: an outline has {len(outline.rings)} rings, but their parents are {parents}")
    polygons = {k: [place.ring(outline.rings[k], hole=False)] for k, parent in enumerate(parents) if parent < 0}
    if not polygons:
        raise UsageError(f"{place.path}: an outline has no outer ring")
    for ring, parent in zip(outline.rings, parents, strict=True):
        if parent >= 0:
            polygons[parent].append(place.ring(ring, hole=True))
    found = list(polygons.values())
    if len(found) == 1:
        return {"type": "Polygon", "coordinates": found[0]}
    return {"type": "MultiPolygon", "coordinates": found}


def _uuid(identity: str | int, space: uuid.UUID) -> str:
    try:
        return str(uuid.UUID(str(identity)))
    except ValueError:
        return str(uuid.uuid5(space, str(identity)))
