"""Where DICOM slices are, and whether they form one even grid (PS3.3 C.7.6.2).

A `Plane` is what one slice or frame says about itself. `stack` orders planes along their normal and answers with the
grid they fill, or with the reason why they fill none. Nothing here touches pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import GeometryError
from vesalius.core.geometry import Grid
from vesalius.core.image import Act, Note
from vesalius.io.limits import ReadLimits

Vector = NDArray[np.float64]

# Direction cosines are written with few digits; what is off by more than this was not meant as a rotation.
_COSINE_ROUNDING, _COSINE_REPAIRABLE = 1e-4, 1e-2
# A slice origin this far off its line, in pixels, cannot be seen.
_INVISIBLE_PIXELS = 0.1


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice in the patient.

    Parameters
    ----------
    name
        The file, or the file and its frame; error messages name it.
    shape
        (rows, columns).
    position
        ``(3,)`` LPS mm of the centre of the first pixel: Image Position (Patient).
    along_row, along_column
        ``(3,)`` unit vectors in which the column index, and the row index, increase: Image Orientation (Patient).
    spacing
        mm between (rows, columns): Pixel Spacing.
    thickness
        Slice Thickness in mm; None if the file does not say.
    """

    name: str
    shape: tuple[int, int]
    position: Vector
    along_row: Vector
    along_column: Vector
    spacing: tuple[float, float]
    thickness: float | None = None

    @property
    def normal(self) -> Vector:
        """``(3,)`` unit vector of increasing slice index: along_row x along_column."""
        cross = np.cross(self.along_row, self.along_column)
        return cross / np.linalg.norm(cross)

    def affine(self, step: Vector) -> Vector:
        """``(4, 4)`` voxel index (z, y, x) to LPS mm, with `step` the vector from one slice to the next.

        PS3.3 C.7.6.2.1.1: column index times column spacing along the row direction, row index times row spacing along
        the column direction, from the position of the first pixel.
        """
        matrix = np.eye(4)
        matrix[:3, 0] = step
        matrix[:3, 1] = self.along_column * self.spacing[0]
        matrix[:3, 2] = self.along_row * self.spacing[1]
        matrix[:3, 3] = self.position
        return matrix


def make_plane(
    name: str,
    shape: tuple[int, int],
    position: Sequence[float],
    orientation: Sequence[float],
    spacing: Sequence[float],
    *,
    thickness: float | None = None,
) -> Plane:
    """A `Plane` from the numbers of a header.

    Raises
    ------
    GeometryError
        If a number is missing or not finite, a spacing is not positive, or the two directions are no rotation.
    """
    place, cosines, steps = (np.asarray(values, dtype=np.float64) for values in (position, orientation, spacing))
    if place.shape != (3,) or not np.isfinite(place).all():
        raise GeometryError(name, found=f"Image Position (Patient) {_numbers(place)}", expected="three finite numbers")
    if cosines.shape != (6,) or not np.isfinite(cosines).all():
        raise GeometryError(
            name, found=f"Image Orientation (Patient) {_numbers(cosines)}", expected="six finite numbers"
        )
    if steps.shape != (2,) or not (np.isfinite(steps).all() and (steps > 0).all()):
        raise GeometryError(name, found=f"Pixel Spacing {_numbers(steps)}", expected="two positive numbers in mm")
    row, column = cosines[:3], cosines[3:]
    error = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
    if error > _COSINE_REPAIRABLE:
        raise GeometryError(
            name,
            found=f"Image Orientation (Patient) {_numbers(cosines)}",
            expected="two unit vectors at a right angle",
            do="repair the header or leave the file out",
        )
    if error > _COSINE_ROUNDING:
        row = row / np.linalg.norm(row)
        column = column - (column @ row) * row
        column = column / np.linalg.norm(column)
    known = thickness if thickness is not None and np.isfinite(thickness) and thickness > 0 else None
    return Plane(name, shape, place, row, column, (float(steps[0]), float(steps[1])), known)


@dataclass(frozen=True, eq=False)
class Resampling:
    """How slices are brought onto an orthogonal grid.

    Parameters
    ----------
    shifts
        ``(n, 2)``: row and column of the output grid on which the first pixel of each slice lies.
    distances
        ``(n,)``: mm along the normal of each slice, rising.
    targets
        ``(Z,)``: mm along the normal of each output slice.
    shape
        (rows, columns) of an output slice.
    """

    shifts: Vector
    distances: Vector
    targets: Vector
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Stack:
    """The answer of `stack`: planes in order, the grid they fill, and what had to be done.

    ``order[z]`` is the index of the plane at slice z, or -1 for a slice that is absent and may be filled (`sparse`).
    """

    order: tuple[int, ...]
    grid: Grid
    resampling: Resampling | None = None
    notes: tuple[Note, ...] = ()


def check_parallel(planes: Sequence[Plane], limits: ReadLimits) -> None:
    """Refuse planes of different size, pixel spacing or orientation; the line names the first two that differ."""
    first = planes[0]
    cosine = np.cos(np.radians(limits.orientation_tolerance_degrees))
    for plane in planes[1:]:
        if plane.shape != first.shape:
            what, mine, theirs = "size", "x".join(map(str, plane.shape)), "x".join(map(str, first.shape))
        elif not np.allclose(plane.spacing, first.spacing, rtol=limits.spacing_tolerance, atol=0):
            what, mine, theirs = "pixel spacing", _numbers(plane.spacing), _numbers(first.spacing)
        elif min(plane.along_row @ first.along_row, plane.along_column @ first.along_column) < cosine:
            what = "orientation"
            mine, theirs = (_numbers([*p.along_row, *p.along_column]) for p in (plane, first))
        else:
            continue
        raise GeometryError(
            plane.name,
            found=f"{what} {mine} while {first.name} has {theirs}",
            expected=f"one {what} in a volume",
            do="open the parts apart: list_series tells them apart",
        )


def positions(planes: Sequence[Plane], limits: ReadLimits) -> list[list[int]]:
    """Indices of `planes` by position, ordered along the normal of the first; planes at one position share a list.

    Raises
    ------
    GeometryError
        If two slices have one distance along the normal but stand side by side.
    """
    offsets = np.array([plane.position for plane in planes]) - planes[0].position
    distances = offsets @ planes[0].normal
    groups: list[list[int]] = []
    for index in np.argsort(distances, kind="stable"):
        plane = int(index)
        if groups and distances[plane] - distances[groups[-1][0]] < limits.origin_tolerance_mm:
            gap = float(np.linalg.norm(offsets[plane] - offsets[groups[-1][0]]))
            if gap > max(10 * limits.origin_tolerance_mm, _INVISIBLE_PIXELS * min(planes[0].spacing)):
                raise GeometryError(
                    planes[plane].name,
                    expected="one slice per plane of a volume",
                    found=f"a slice beside {planes[groups[-1][0]].name}, {gap:.2f} mm away in one plane",
                    do="open the files one by one",
                )
            groups[-1].append(plane)
        else:
            groups.append([plane])
    return groups


def single(plane: Plane) -> tuple[Grid, tuple[Note, ...]]:
    """The grid of one slice alone: ``(1, Y, X)`` if its thickness is known, else ``(Y, X)`` with its place.

    A thickness is never made up: a grid of two dimensions has a position and an orientation without one.
    """
    if plane.thickness is not None:
        return Grid((1, *plane.shape), affine=plane.affine(plane.normal * plane.thickness)), ()
    note = Note(Act.NOTED, "one slice without Slice Thickness: kept two-dimensional, with its place in the patient")
    return Grid(plane.shape, affine=plane.affine(plane.normal)), (note,)


def stack(planes: Sequence[Plane], where: str, limits: ReadLimits, *, sparse: bool = False) -> Stack:
    """The grid of two or more parallel `planes`, one per position, in rising order along the normal.

    Parameters
    ----------
    planes
        As `positions` orders them.
    where
        The folder or file that an error names.
    sparse
        Absent slices are legal (a segmentation leaves empty frames out): they get -1 in ``order``.

    Raises
    ------
    GeometryError
        For missing or uneven slices or a gantry tilt, unless `limits` say to resample.
    """
    offsets = np.array([plane.position for plane in planes]) - planes[0].position
    normal = planes[0].normal
    distances = offsets @ normal
    step = float(np.median(np.diff(distances)))
    places = np.arange(len(planes))
    if sparse:
        step = _sparse_step(np.diff(distances), planes[0].thickness)
        places = np.rint(distances / step).astype(int)
    uneven = float(np.abs(distances - places * distances[-1] / places[-1]).max())
    off_line, tilt = _leaning(offsets, distances, normal)
    irregular = uneven > max(limits.gap_tolerance * step, limits.origin_tolerance_mm)
    crooked = off_line > max(_INVISIBLE_PIXELS * min(planes[0].spacing), limits.origin_tolerance_mm)
    reach = float(np.linalg.norm(offsets[-1] - distances[-1] * normal))
    tilted = tilt > limits.tilt_tolerance_degrees and reach > _INVISIBLE_PIXELS * min(planes[0].spacing)
    if irregular or crooked:
        _complain(planes, distances, step, where, limits, crooked=crooked and not irregular, off_line=off_line)
        notes = [Note(Act.RESAMPLED, _irregular_note(distances, step, crooked, off_line))]
    else:
        notes = _repair_notes(distances, uneven, limits) + _thin_notes(planes[0].thickness, step, sparse=sparse)
    if tilted and not crooked:
        notes.append(_tilt_note(tilt, where, limits))
    if irregular or crooked or (tilted and limits.tilt == "resample"):
        return _resampled(
            planes,
            offsets,
            distances,
            step if irregular else distances[-1] / places[-1],
            count=int(places[-1]) + 1,
            notes=notes,
            irregular=irregular,
        )
    order = np.full(places[-1] + 1, -1)
    order[places] = np.arange(len(planes))
    affine = planes[0].affine(offsets[-1] / places[-1])
    return Stack(
        tuple(int(index) for index in order), Grid((len(order), *planes[0].shape), affine=affine), None, tuple(notes)
    )


def _repair_notes(distances: Vector, uneven: float, limits: ReadLimits) -> list[Note]:
    if uneven <= limits.origin_tolerance_mm:
        return []
    gaps = np.diff(distances)
    text = f"slice distances vary from {gaps.min():.4g} to {gaps.max():.4g} mm: set on an even grid"
    return [Note(Act.REPAIRED, f"{text}, no slice moved more than {uneven:.2g} mm")]


def _thin_notes(thickness: float | None, step: float, *, sparse: bool) -> list[Note]:
    # Gaps of up to half a slice are usual in MR; twice the thickness is what remains when every other slice is lost.
    if sparse or thickness is None or step < 1.95 * thickness:
        return []
    return [
        Note(Act.NOTED, f"slices of {thickness:.4g} mm lie {step:.4g} mm apart: what is between them is in no file")
    ]


def _sparse_step(gaps: Vector, thickness: float | None) -> float:
    """Slice distance of frames some of which were left out: the largest step that divides all gaps."""
    smallest = float(gaps.min())
    if thickness is not None and thickness < 0.95 * smallest and _divides(thickness, gaps):
        return thickness
    for parts in (1, 2, 3):  # frames 1, 3 and 6 of a stack: the gaps are 2 and 3 steps
        if _divides(smallest / parts, gaps):
            return smallest / parts
    return smallest


def _divides(step: float, gaps: Vector) -> bool:
    ratio = gaps / step
    return bool(np.abs(ratio - np.rint(ratio)).max() < 0.05)


def _leaning(offsets: Vector, distances: Vector, normal: Vector) -> tuple[float, float]:
    """Largest distance in mm of an origin from the line through first and last, and its angle in degrees."""
    in_plane = offsets - distances[:, None] * normal
    slope = in_plane[-1] / distances[-1]
    off_line = float(np.linalg.norm(in_plane - distances[:, None] * slope, axis=1).max())
    return off_line, float(np.degrees(np.arctan(np.linalg.norm(slope))))


def _complain(
    planes: Sequence[Plane],
    distances: Vector,
    step: float,
    where: str,
    limits: ReadLimits,
    *,
    crooked: bool,
    off_line: float,
) -> None:
    """Raise the error for uneven slices, unless they are to be resampled."""
    if limits.irregular == "resample":
        return
    do = 'supply the files, or read with read_limits(irregular="resample")'
    if crooked:
        raise GeometryError(
            where,
            found=f"slice origins up to {off_line:.2f} mm off a straight line",
            expected="slices above each other",
            do='read with read_limits(irregular="resample")',
        )
    missing = missing_distances(distances, step, limits.gap_tolerance)
    if missing:
        gap = int(np.argmax(np.diff(distances)))
        places = ", ".join(_place(planes, distances, value) for value in missing[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise GeometryError(
            where,
            found=f"{len(missing)} missing slice{'s' if len(missing) > 1 else ''} at {places}{more} (the widest gap is "
            f"between {_short(planes[gap])} and {_short(planes[gap + 1])})",
            expected=f"a slice every {step:.4g} mm",
            do=do,
        )
    gaps = np.diff(distances)
    worst = int(np.argmax(np.abs(gaps - step)))
    raise GeometryError(
        where,
        found=f"uneven slice distances from {gaps.min():.4g} to {gaps.max():.4g} mm, the worst between "
        f"{_short(planes[worst])} and {_short(planes[worst + 1])}",
        expected=f"{step:.4g} mm everywhere",
        do='read with read_limits(irregular="resample")',
    )


def _place(planes: Sequence[Plane], distances: Vector, value: float) -> str:
    """`value` mm along the normal as patient coordinates of a slice origin."""
    index = int(np.searchsorted(distances, value)) - 1
    part = (value - distances[index]) / (distances[index + 1] - distances[index])
    point = planes[index].position + part * (planes[index + 1].position - planes[index].position)
    return "(" + ", ".join(f"{number:.4g}" for number in point) + ") mm"


def missing_distances(distances: Vector, step: float, tolerance: float) -> list[float]:
    """Distances in mm at which a slice is missing, if every gap is a whole number of steps; else an empty list."""
    counts = np.diff(distances) / step
    if np.abs(counts - np.rint(counts)).max() > 2 * tolerance or np.rint(counts).min() < 1:
        return []
    missing: list[float] = []
    for start, count in zip(distances[:-1], np.rint(counts).astype(int), strict=True):
        missing += [float(start + step * part) for part in range(1, count)]
    return missing


def _irregular_note(distances: Vector, step: float, crooked: bool, off_line: float) -> str:
    gaps = np.diff(distances)
    parts = []
    if np.ptp(gaps) > 1e-6 * step:
        parts.append(
            f"slice distances vary from {gaps.min():.4g} to {gaps.max():.4g} mm: resampled linearly to {step:.4g} mm"
        )
    if crooked:
        parts.append(f"slice origins up to {off_line:.2f} mm off a straight line: slices shifted into place (linear)")
    return "; ".join(parts)


def _short(plane: Plane) -> str:
    """Its file without the folder, which the error names already."""
    return Path(plane.name).name


def _tilt_note(tilt: float, where: str, limits: ReadLimits) -> Note:
    if limits.tilt == "refuse":
        raise GeometryError(
            where,
            found=f"a gantry tilt of {tilt:.1f} degrees",
            expected="slices above each other",
            do='read with read_limits(tilt="resample") or tilt="keep"',
        )
    if limits.tilt == "keep":
        return Note(Act.NOTED, f"gantry tilt of {tilt:.1f} degrees: the affine is sheared")
    return Note(
        Act.RESAMPLED,
        f"gantry tilt of {tilt:.1f} degrees: slices shifted in their plane (linear) onto an "
        "orthogonal grid; what lies outside every slice has the lowest value",
    )


def _resampled(
    planes: Sequence[Plane],
    offsets: Vector,
    distances: Vector,
    step: float,
    *,
    count: int,
    notes: list[Note],
    irregular: bool,
) -> Stack:
    """The orthogonal grid that covers every slice, and where each slice lies on it."""
    first = planes[0]
    if irregular:
        # Nothing is made up beyond the last slice, except for its rounding.
        count = int(np.floor(distances[-1] / step + 0.1)) + 1
        targets = np.arange(count) * step
    else:
        targets = distances
    in_plane = np.stack(
        [offsets @ first.along_column / first.spacing[0], offsets @ first.along_row / first.spacing[1]], 1
    )
    corner = np.floor(in_plane.min(axis=0) + 1e-6)
    shape = np.array(first.shape) + np.ceil((in_plane - corner).max(axis=0) - 1e-6).astype(int)
    affine = first.affine(first.normal * step)
    affine[:3, 3] += affine[:3, 1] * corner[0] + affine[:3, 2] * corner[1]
    grid = Grid((count, int(shape[0]), int(shape[1])), affine=affine)
    resampling = Resampling(
        in_plane - corner, distances, np.asarray(targets, np.float64), (int(shape[0]), int(shape[1]))
    )
    return Stack(tuple(range(len(planes))), grid, resampling, tuple(notes))


def _numbers(values: Sequence[float] | Vector) -> str:
    return "[" + ", ".join(f"{float(value):.6g}" for value in np.ravel(values)) + "]"
