"""Pictures of measured cases for the page: outlines on the image, surfaces in three dimensions, vessel graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vesalius.core.errors import VesaliusError
from vesalius.measure.cells import cell_points
from vesalius.measure.planar import planar_table
from vesalius.measure.spatial import Window, density_map
from vesalius.report.measure_page import MeasurePicture
from vesalius.report.measure_pictures import (
    contour_picture,
    density_picture,
    montage,
    ripley_chart,
    vessel_graph_picture,
)
from vesalius.report.pictures import png
from vesalius.report.rendering import Mesh as Drawn
from vesalius.report.rendering import calibre_colours, render, tube
from vesalius.serve.measure_cases import MeasureCase
from vesalius.serve.measure_exports import colour_of, surface_meshes
from vesalius.serve.measure_loading import Loaded

MOST_CONTOURS, MOST_SOLID, MOST_GRAPHS = 24, 3, 4
# Rendering the surfaces of a larger volume would take longer than measuring it.
_MOST_VOXELS = 40_000_000
_MOST_SURFACES = 40
_GLASS = 0.3
_FEWEST_POINTS, _DENSITY_SIDE = 10, 320


def pictures_of(study: Any, work: Any) -> list[MeasurePicture]:
    """Pictures of a few cases: the least and most alike to the reference where there is one, else evenly spread."""
    out: list[MeasurePicture] = []
    chosen = _chosen(study, MOST_CONTOURS)
    solid: list[Loaded] = []
    flat, names = [], []
    for case in chosen:
        try:
            loaded = work.open(case)
        except VesaliusError:
            continue
        if loaded.grid.ndim == 3 and len(solid) < MOST_SOLID:
            solid.append(loaded)
        flat.append(_outlined(loaded, study.kind, len(chosen)))
        names.append(loaded.case_id)
        if study.kind == "vessels" and len(out) < MOST_GRAPHS:
            out += _graph(loaded)
        if loaded.grid.ndim == 3 and len(flat) >= MOST_CONTOURS // 2:
            break
    if flat:
        sheet = flat[0] if len(flat) == 1 else montage(flat, 4 if len(flat) > 4 else 2, names=names)
        said = "Outlines of what was measured" + (
            f", {len(flat)} of {len(study.records)} cases" if len(flat) > 1 else ""
        )
        out.insert(0, MeasurePicture("Outlines", f"{said}.", sheet, f"{said}: {', '.join(names)}"))
    if study.kind != "vessels":
        out += [picture for loaded in solid for picture in _rendered(loaded)]
    if study.kind == "cells":
        out += _density(study, work)
    if "ripley" in study.tables():
        out += _ripley(study)
    return out


def _chosen(study: Any, most: int) -> list[MeasureCase]:
    done = {record["case_id"] for record in study.records}
    cases = [case for case in study.cases if case.case_id in done]
    if len(cases) <= most:
        return cases
    if "reference" in study.tables():
        frame, _ = study.store.frame(study.records, "reference", 200_000)
        order = frame.groupby("case_id")["dice"].mean().sort_values().index.tolist()
        ranks = np.unique(np.linspace(0, len(order) - 1, most).astype(int))
        by_id = {case.case_id: case for case in cases}
        return [by_id[order[rank]] for rank in ranks if order[rank] in by_id]
    return [cases[place] for place in np.unique(np.linspace(0, len(cases) - 1, most).astype(int))]


def _outlined(loaded: Loaded, kind: str, count: int) -> bytes:
    names = {} if kind in ("cells", "lesions") else loaded.names
    side = 480 if count == 1 else 240
    return contour_picture(
        loaded.image,
        loaded.labels,
        names,
        side=side,
        spacing=loaded.spacing,
        views=loaded.grid.ndim == 3 and count <= 3,
        legend=count <= 3,
    )


def _rendered(loaded: Loaded) -> list[MeasurePicture]:
    if loaded.labels.size > _MOST_VOXELS:
        return []
    drawn: list[Drawn] = []
    for value, mesh, _ in surface_meshes(loaded, None, simpler=False):
        drawn.append((mesh.vertices, mesh.faces, tuple(part / 255 for part in colour_of(value))))
        if len(drawn) == _MOST_SURFACES:
            break
    if not drawn:
        return []
    drawn = _with_windows(drawn)
    views = [render(drawn, (360, 360), view=view, letters=True) for view in ("anterior", "left")]
    said = f"Surfaces of {loaded.case_id}, seen from the front and from the left"
    if loaded.grid.affine is None:
        said = f"Surfaces of {loaded.case_id}; without a position in the patient, the sides are those of the array"
    return [MeasurePicture("Surfaces", f"{said}.", png(np.concatenate(views, axis=1)), said)]


def _with_windows(drawn: list[Drawn]) -> list[Drawn]:
    """A structure around others lets them be seen."""
    boxes = [(np.min(vertices, axis=0), np.max(vertices, axis=0)) for vertices, _, _ in drawn]
    out: list[Drawn] = []
    for number, (vertices, faces, colour) in enumerate(drawn):
        low, high = boxes[number]
        holds = sum((low <= a).all() and (b <= high).all() for k, (a, b) in enumerate(boxes) if k != number)
        out.append((vertices, faces, (*colour, _GLASS) if holds else colour))
    return out


def _graph(loaded: Loaded) -> list[MeasurePicture]:
    from vesalius.serve.measure_trees import measured_vessels

    found = measured_vessels(loaded)
    lines = [(branch.points, branch.radius) for branch in found.graph.branches]
    if not lines:
        return []
    chart = vessel_graph_picture(
        lines,
        found.graph.nodes,
        found.graph.degree,
        shape=loaded.labels.shape,
        spacing=loaded.spacing,
        narrowings=_narrowings(found),
    )
    said = f"Vessel graph of {loaded.case_id}: branches in the colour of their calibre, forks, ends, narrowings"
    out = [MeasurePicture("Vessel graph", f"{said}.", chart, said)]
    if loaded.grid.ndim == 3:
        low = min(float(radius.min()) for _, radius in lines)
        high = max(float(radius.max()) for _, radius in lines)
        steps = np.array(loaded.spacing or (1.0, 1.0, 1.0))
        tubes = [
            tube((points * steps)[:, ::-1], radius, calibre_colours(radius, low, high)) for points, radius in lines
        ]
        picture = png(render(tubes, (420, 420), view="oblique"))
        said = f"Calibre of {loaded.case_id} in three dimensions"
        out.append(MeasurePicture("Vessels", f"{said}.", picture, said))
    return out


def _narrowings(found: Any) -> Sequence[tuple[Any, float]]:
    """(place, percent) of the candidates."""
    table = found.stenoses
    axes = [f"place_{axis}" for axis in "zyx"[-len(found.graph.shape) :]]
    places = np.stack([table[axis] for axis in axes], axis=1)
    return list(zip(places, table["diameter_stenosis"].tolist(), strict=True))


def _density(study: Any, work: Any) -> list[MeasurePicture]:
    """Cells per area across the image that has most of them."""
    frame, _ = study.store.frame(study.records, "images", 200_000)
    fullest = frame.loc[frame["cell_count"].idxmax(), "case_id"]
    case = next(case for case in study.cases if case.case_id == fullest)
    loaded = work.open(case)
    table = planar_table(loaded.labels, loaded.spacing)
    if len(table["label"]) < _FEWEST_POINTS:
        return []
    points = cell_points(table, loaded.spacing)
    shape = (loaded.labels.shape[0], loaded.labels.shape[1])
    density = density_map(points, Window.of_image(shape, loaded.spacing), _coarse(shape))
    unit = "cells per mm²" if loaded.spacing else "cells per px²"
    places = points / np.array(loaded.spacing or (1.0, 1.0)) * np.array(density.shape) / np.array(shape) - 0.5
    picture = density_picture(density, spacing=loaded.spacing, unit=unit, points=places)
    said = f"Density of cells in {case.case_id}, the image with most ({len(points)})"
    return [MeasurePicture("Density", f"{said}.", picture, said)]


def _coarse(shape: tuple[int, int]) -> tuple[int, int]:
    """The shape of a picture of at most `_DENSITY_SIDE` pixels a side."""
    step = max(1, -(-max(shape) // _DENSITY_SIDE))
    return max(shape[0] // step, 1), max(shape[1] // step, 1)


def _ripley(study: Any) -> list[MeasurePicture]:
    frame, _ = study.store.frame(study.records, "ripley", 20_000)
    out = []
    for case, part in list(frame.groupby("case_id", sort=False))[:2]:
        columns = {name.rpartition("_")[0]: part[name].to_numpy(dtype=float) for name in part if name != "case_id"}
        unit = next(name for name in part if name.startswith("ripley_radius")).rpartition("_")[2]
        radius = columns["ripley_radius"]
        low, high = (columns[f"ripley_l_{end}"] - radius for end in ("low", "high"))
        chart = ripley_chart(radius, columns["ripley_l"] - radius, low, high, unit=unit)
        said = f"Ripley's L of {case}: above the band cells lie closer than by chance, below it farther apart"
        out.append(MeasurePicture("Ripley's L", f"{said}.", chart, said))
    return out
