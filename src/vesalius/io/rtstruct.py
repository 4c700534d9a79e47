"""DICOM RT Structure Sets in: their closed outlines, and the label map that they make on a grid.

Rings of a region in one slice are combined by the even-odd rule (exclusive or), which reads keyholes, CLOSEDPLANAR_XOR
and separate inner rings alike; programs that join CLOSED_PLANAR rings instead can be followed with `Rings.UNION`. A
voxel belongs to a region when its centre does; a centre on an upper or left edge is inside, on a lower or right edge
outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import GeometryError, UnreadableFile, UsageError
from vesalius.core.geometry import FloatArray, Grid
from vesalius.core.image import Act, Image, Note, Unit
from vesalius.io.dicom_header import gather_meta, guarded, items, plain, read_header
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes, check_pixels
from vesalius.io.rtstruct_out import RTSTRUCT_CLASS, Region

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# Part of the slice distance by which the points of one ring may leave their common plane, and by which a plane may miss
# the slice that it is counted to without a note.
_FLAT, _OFF = 0.2, 0.05


@dataclass(frozen=True, eq=False)
class StructureSet:
    """What an RT Structure Set holds.

    Parameters
    ----------
    regions
        In the order of the file. ``rings`` are the closed planar contours in patient LPS mm; ``parents`` are empty,
        since the file does not say which ring is a hole of which.
    frame_of_reference_uid, series_uid
        The space of the points, and the image series that was outlined; empty where the file does not say.
    record
        What was left out.
    """

    regions: tuple[Region, ...]
    frame_of_reference_uid: str = ""
    series_uid: str = ""
    record: tuple[Note, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


def read_rtstruct(path: str | Path, *, limits: ReadLimits | None = None) -> StructureSet:
    """The regions of a structure set.

    Raises
    ------
    UnreadableFile, LimitError
        If the file is no RT Structure Set, is broken, contradicts itself or is too large.
    """
    path = Path(path)
    with guarded(path, "opening"):
        check_file_bytes(path, active_limits(limits))
    dataset = read_header(path)
    if str(dataset.get("SOPClassUID", "")) != RTSTRUCT_CLASS and "StructureSetROISequence" not in dataset:
        raise UnreadableFile(path, found="another DICOM object", expected="an RT Structure Set")
    with guarded(path, "reading the contours"):
        return _structure_set(dataset, path)


def _structure_set(dataset: Dataset, path: Path) -> StructureSet:
    listed: dict[int, Dataset] = {}
    for item in items(dataset, "StructureSetROISequence"):
        number = plain(item, "ROINumber")
        if number is None or int(number) in listed:
            raise UnreadableFile(path, found=f"ROI number {number} absent or twice", expected="every region once")
        listed[int(number)] = item
    drawn: dict[int, Dataset] = {}
    for item in items(dataset, "ROIContourSequence"):
        number = plain(item, "ReferencedROINumber")
        if number is None or int(number) not in listed:
            raise UnreadableFile(
                path, found=f"contours of ROI number {number}", expected=f"one of the regions {sorted(listed)}"
            )
        drawn[int(number)] = item
    kinds = {plain(o, "ReferencedROINumber"): o for o in items(dataset, "RTROIObservationsSequence")}
    regions, others = [], 0
    for number, item in listed.items():
        rings = []
        for contour in items(drawn.get(number), "ContourSequence"):
            points = _points(contour, path)
            if str(plain(contour, "ContourGeometricType")) in _AREAS and len(points) >= 3:
                rings.append(points)
            else:
                others += 1
        shade = plain(drawn[number], "ROIDisplayColor") if number in drawn else None
        colour = (int(shade[0]), int(shade[1]), int(shade[2])) if isinstance(shade, list) and len(shade) == 3 else None
        name = str(plain(item, "ROIName") or f"region {number}")
        kind = str(plain(kinds[number], "RTROIInterpretedType") or "") if number in kinds else ""
        algorithm = str(plain(item, "ROIGenerationAlgorithm") or "")
        regions.append(Region(name, tuple(rings), (), colour, number, kind, algorithm))
    notes = (Note(Act.NOTED, f"{others} points, open or shorter contours enclose nothing"),) if others else ()
    frame, series = _spaces(dataset)
    meta = gather_meta(dataset)
    return StructureSet(tuple(regions), frame, series, notes, meta, str(path))


def _spaces(dataset: Dataset) -> tuple[str, str]:
    """UIDs of the frame of reference and of the first image series."""
    frame, series = str(plain(dataset, "FrameOfReferenceUID") or ""), ""
    for item in items(dataset, "ReferencedFrameOfReferenceSequence"):
        frame = str(plain(item, "FrameOfReferenceUID") or frame)
        for study in items(item, "RTReferencedStudySequence"):
            for one in items(study, "RTReferencedSeriesSequence"):
                series = series or str(plain(one, "SeriesInstanceUID") or "")
    return frame, series


def _points(contour: Dataset, path: Path) -> FloatArray:
    """``(N, 3)``, read from the raw text where it is still raw: pydicom's decimal strings are slow by the million."""
    element = contour.get_item("ContourData")
    value = element.value if element is not None else None
    if isinstance(value, bytes):
        parts: Sequence[Any] = value.replace(b"\0", b" ").split(b"\\") if value.strip(b" \0") else []
    else:
        parts = [] if value is None else (list(value) if hasattr(value, "__iter__") else [value])
    points = np.array(parts, dtype=np.float64)
    if len(points) % 3 or not np.isfinite(points).all():
        raise UnreadableFile(path, found=f"a contour of {len(points)} numbers", expected="three finite ones per point")
    return points.reshape(-1, 3)


class Rings(StrEnum):
    """How several rings of one region in one slice are combined."""

    EVEN_ODD = "even-odd"
    UNION = "union"


def label_image(
    structures: StructureSet,
    grid: Grid,
    *,
    rings: Rings | str = Rings.EVEN_ODD,
    limits: ReadLimits | None = None,
) -> Image:
    """The regions as voxels of `grid`, a volume with a position in the same frame of reference.

    Parameters
    ----------
    rings
        ``even-odd``: a ring in a ring is a hole; ``union``: it changes nothing.

    Returns
    -------
    Image
        One channel of ROI numbers (0 is background) where no two regions overlap, else one channel of 0 and 1 per
        region. ``meta["segments"]`` lists ``"number: name"``. Notes say how many rings lie outside the grid, or between
        two slices (they count to the nearer one). Slices between rings that are further apart than slices stay empty.

    Raises
    ------
    UsageError
        For another way to combine rings.
    GeometryError
        If the grid has no position, or a ring is not parallel to its slices.
    """
    path = structures.source or "structure set"
    if grid.affine is None or grid.ndim != 3:
        raise GeometryError(path, found="a grid without a position", expected="a volume with one to put contours on")
    if str(rings) not in tuple(Rings):
        raise UsageError(f"{path}: rings are combined by {', '.join(Rings)}, got {rings!r}")
    fill = inside if Rings(rings) is Rings.EVEN_ODD else _union
    bounds = active_limits(limits)
    check_pixels(path, (1, *grid.shape), bounds)
    numbers = [region.number or 0 for region in structures.regions]
    planes, notes = _planes(structures, grid, path)
    whole = np.zeros((1, *grid.shape), np.min_scalar_type(max(numbers, default=1)))
    apart = min(numbers, default=1) > 0
    for number, slices in zip(numbers, planes, strict=True):
        for z, drawn in slices.items():
            found = fill(drawn, (grid.shape[1], grid.shape[2]))
            apart = apart and not whole[0, z][found].any()
            whole[0, z][found] = number
    channels: tuple[str, ...] = ("labels",)
    if not apart:
        check_pixels(path, (len(planes), *grid.shape), bounds)
        whole = np.zeros((len(planes), *grid.shape), dtype=np.uint8)
        for layer, slices in zip(whole, planes, strict=True):
            for z, drawn in slices.items():
                layer[z] = fill(drawn, (grid.shape[1], grid.shape[2]))
        names = [region.name for region in structures.regions]
        channels = tuple(f"{name} {k + 1}" if names.count(name) > 1 else name for k, name in enumerate(names))
        notes += (Note(Act.NOTED, "regions overlap or have no number: one channel of 0 and 1 per region"),)
    meta = {**structures.meta, "segments": [f"{region.number}: {region.name}" for region in structures.regions]}
    return Image(grid, whole, Unit.LABEL, channels, structures.record + notes, meta, structures.source)


def _planes(
    structures: StructureSet, grid: Grid, path: str
) -> tuple[list[dict[int, list[FloatArray]]], tuple[Note, ...]]:
    """Per region the rings (y, x) of each slice of the grid."""
    planes: list[dict[int, list[FloatArray]]] = []
    outside, off = 0, 0.0
    for region in structures.regions:
        slices: dict[int, list[FloatArray]] = defaultdict(list)
        for ring in region.rings:
            index = grid.to_index(ring)
            z = float(index[:, 0].mean())
            if float(np.abs(index[:, 0] - z).max()) > _FLAT:
                raise GeometryError(
                    path,
                    found=f"a contour of {region.name} that crosses {float(np.ptp(index[:, 0])):.1f} slices",
                    expected="contours parallel to the slices of the grid",
                    do="use the grid of the series that was outlined",
                )
            if not 0 <= round(z) < grid.shape[0]:
                outside += 1
                continue
            off = max(off, abs(z - round(z)))
            slices[round(z)].append(index[:, 1:])
        planes.append(slices)
    notes: tuple[Note, ...] = ()
    if outside:
        notes += (Note(Act.NOTED, f"{outside} contours lie outside the grid and are left out"),)
    if off > _OFF:
        notes += (Note(Act.NOTED, f"contours lie up to {off:.2f} slices off a slice and count to the nearest"),)
    return planes, notes


def inside(rings: Sequence[FloatArray], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of a slice of `shape` (Y, X) whose centres lie inside the `rings` ``(N, 2)`` of (y, x), even-odd."""
    rows, columns = shape
    odd = np.zeros((rows, columns + 1), dtype=np.bool_)
    for ring in rings:
        after = np.roll(ring, -1, axis=0)
        swap = ring[:, 0] > after[:, 0]
        low, high = np.where(swap[:, None], after, ring), np.where(swap[:, None], ring, after)
        # Rows with low <= y < high: two edges that share a point never count it twice.
        first = np.clip(np.ceil(low[:, 0]), 0, rows).astype(np.int64)
        count = np.maximum(np.clip(np.ceil(high[:, 0]), 0, rows).astype(np.int64) - first, 0)
        edge = np.repeat(np.arange(len(ring)), count)
        y = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
        low, high = low[edge], high[edge]
        x = low[:, 1] + (high[:, 1] - low[:, 1]) * ((y - low[:, 0]) / (high[:, 0] - low[:, 0]))
        column = np.clip(np.ceil(x), 0, columns).astype(np.int64)
        np.logical_xor.at(odd, (y, column), True)
    return np.asarray(np.logical_xor.accumulate(odd, axis=1)[:, :columns])


def _union(rings: Sequence[FloatArray], shape: tuple[int, int]) -> NDArray[np.bool_]:
    return np.logical_or.reduce([inside([ring], shape) for ring in rings])
