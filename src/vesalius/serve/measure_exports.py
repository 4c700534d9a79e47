"""Surfaces and outlines that `vesalius measure` writes beside its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.core.errors import DataError
from vesalius.core.files import safe_stem
from vesalius.core.labels import PALETTE
from vesalius.measure import mesh_distance, meshes
from vesalius.measure.contours import Contour, contours
from vesalius.measure.mesh_smoothing import simplify, smooth
from vesalius.measure.quantities import Quantity, by_name
from vesalius.serve.measure_cases import MeasureCase
from vesalius.serve.measure_loading import Loaded
from vesalius.serve.measure_tables import CaseTables
from vesalius.serve.measure_wishes import Wishes

_LABEL = Quantity("label", "1", "Value of the region in the label map.")
# Half a voxel for smoothing takes the stairs of the voxels away; simplification gets half of that.
_SMOOTHING, _SIMPLIFYING = 0.5, 0.25
# Measurements that go with an outline into QuPath.
_IN_GEOJSON = 60


def export(loaded: Loaded, case: MeasureCase, kind: str, wishes: Wishes, out: Path, found: CaseTables) -> None:
    """Meshes and contours of one case, as wished; their paths go into ``found.files``."""
    if wishes.meshes:
        _meshes(loaded, wishes, out, found)
    if "geojson" in wishes.contours:
        _geojson(loaded, kind, out, found)
    if "rtstruct" in wishes.contours:
        _rtstruct(loaded, case, out, found)


def colour_of(value: int) -> tuple[int, int, int]:
    """The house's colour of a label, red, green and blue from 0 to 255."""
    text = PALETTE[(int(value) - 1) % (len(PALETTE) - 1)]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def surface_meshes(
    loaded: Loaded, deviation: float | None, *, simpler: bool = True
) -> Iterator[tuple[int, meshes.Mesh, dict[str, float]]]:
    """(label, smooth mesh, its deviation from the voxel surface) of every structure of a volume."""
    step = min(loaded.spacing or (1.0, 1.0, 1.0))
    limit = step * (_SMOOTHING + _SIMPLIFYING) if deviation is None else deviation
    share = _SMOOTHING / (_SMOOTHING + _SIMPLIFYING)
    where = loaded.grid if loaded.grid.affine is not None else loaded.spacing
    if loaded.layers:
        found = {value: meshes.mesh_of(layer, where) for value, layer in loaded.layers.items()}
    else:
        found = meshes.meshes_of(loaded.labels, where)
    for value, raw in found.items():
        if not len(raw.faces):
            continue
        mesh, moved = smooth(raw, max_deviation_mm=share * limit)
        if simpler:
            mesh, _ = simplify(mesh, max_deviation_mm=(1 - share) * limit)
            moved = mesh_distance.deviation(mesh, raw)
        yield value, mesh, moved


def _meshes(loaded: Loaded, wishes: Wishes, out: Path, found: CaseTables) -> None:
    from vesalius.io.mesh_out import Surface, write_surface_files, write_surfaces

    if loaded.grid.ndim != 3:
        found.notes.append(f"{loaded.case_id}: a flat mask has no surface; no mesh was written")
        return
    surfaces, rows = [], []
    for value, mesh, moved in surface_meshes(loaded, wishes.deviation):
        surfaces.append(
            Surface(mesh.vertices, mesh.faces, name=loaded.names.get(value, ""), label=value, colour=colour_of(value))
        )
        rows.append({"label": value, **meshes.measured(mesh), **moved})
    if not rows:
        return
    folder = out / "meshes" / safe_stem(loaded.case_id)
    for form in wishes.meshes:
        if form == "stl":  # which cannot tell surfaces apart
            paths = write_surface_files(surfaces, folder)
        else:
            paths = [write_surfaces(surfaces, folder.with_name(f"{folder.name}.{form}"))]
        found.files += [str(path.relative_to(out)) for path in paths]
    known = by_name([_LABEL], meshes.QUANTITIES, mesh_distance.QUANTITIES)
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    found.add("meshes", columns, known, physical=loaded.spacing is not None)


def _rings(loaded: Loaded) -> dict[int, list[Contour]]:
    rings: dict[int, list[Contour]] = {}
    if loaded.layers:
        for value, mask in loaded.layer_maps():
            rings[value] = contours(mask, value)
        return rings
    everything = contours(loaded.labels)
    place: dict[int, int] = {}  # position in the whole list to position among the rings of its label
    for number, ring in enumerate(everything):
        mine = rings.setdefault(ring.label, [])
        place[number] = len(mine)
        parent = place[ring.parent] if ring.parent >= 0 else -1
        mine.append(Contour(ring.label, ring.slice_index, ring.points, ring.hole, parent))
    return rings


def _geojson(loaded: Loaded, kind: str, out: Path, found: CaseTables) -> None:
    from vesalius.io.geojson_out import ObjectType, Outline, write_geojson

    if loaded.grid.ndim != 2:
        raise DataError(f"{loaded.source}: GeoJSON holds outlines of flat images; use --contours rtstruct for volumes")
    table = found.tables.get("cells") or found.tables.get("structures") or {}
    rows = {int(value): row for row, value in enumerate(table.get("label", ()))}
    numbers = [name for name, column in table.items() if name != "label" and column.dtype.kind in "fiu"][:_IN_GEOJSON]

    def outlines() -> Iterator[Outline]:
        for value, rings in _rings(loaded).items():
            row = rows.get(value)
            told = {} if row is None else {name: float(table[name][row]) for name in numbers}
            yield Outline(
                [ring.points for ring in rings],
                [ring.parent for ring in rings],
                identity=value,
                classification="" if kind == "cells" else loaded.name_of(value),
                colour=None if kind == "cells" else colour_of(value),
                measurements=told,
            )

    path = out / "contours" / f"{safe_stem(loaded.case_id)}.geojson"
    form = ObjectType.DETECTION if kind == "cells" else ObjectType.ANNOTATION
    write_geojson(outlines(), path, kind=form, namespace=loaded.case_id)
    found.files.append(str(path.relative_to(out)))


def _rtstruct(loaded: Loaded, case: MeasureCase, out: Path, found: CaseTables) -> None:
    from vesalius.io.rtstruct_out import Region, write_rtstruct

    if loaded.grid.affine is None or loaded.grid.ndim != 3:
        raise DataError(
            f"{loaded.source}: has no position in the patient, which an RTSTRUCT needs; expected a volume with geometry"
        )
    regions = [
        Region(
            loaded.name_of(value),
            [ring.to_patient(loaded.grid) for ring in rings],
            [ring.parent for ring in rings],
            colour=colour_of(value),
            number=number,
            description=f"label {value}",
        )
        for number, (value, rings) in enumerate(sorted(_rings(loaded).items()), start=1)
    ]
    if not regions:
        found.notes.append(f"{loaded.case_id}: no structure, no RTSTRUCT")
        return
    path = out / "contours" / f"{safe_stem(loaded.case_id)}.dcm"
    write_rtstruct(regions, path, source=_source_files(case), seed=loaded.case_id, meta=_meta(loaded, case))
    found.files.append(str(path.relative_to(out)))


def _source_files(case: MeasureCase) -> Sequence[Path]:
    """The DICOM files of the image, if it is a folder of them."""
    from vesalius.data.listing import list_files

    place = Path(case.image) if case.image else None
    if place is None or not place.is_dir():
        return ()
    return [place / name for name in list_files(place).of("dicom")]


def _meta(loaded: Loaded, case: MeasureCase) -> Mapping[str, Any] | None:
    """Who the patient is where no DICOM file says it."""
    return None if _source_files(case) else {"patient_id": loaded.case_id}
