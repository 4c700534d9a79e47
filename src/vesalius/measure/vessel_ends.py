"""Where branches begin and end: nodes from the lines that meet there, tips from the volume beyond them.

Thinning draws the skeleton into the fork of a bifurcation and stops short of a blunt end. Both are set right from the
straight part of each branch next to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import kernel
from vesalius.measure.vessel_lines import IntArray, Lines
from vesalius.measure.vessel_voxels import Voxels

# Next to a fused stretch smoothing has bent the line with it: over two samples, or this part of the radius.
_BENT = 0.7
# A node is not moved farther than this many times the inscribed radius (and a voxel).
_FARTHEST = 1.5
# Weight of the node's old place, relative to that of the thinnest branch.
_HOLD = 0.05
# Volume of a rounded cap by (cross-section * radius).
_CAP = {2: np.pi / 4, 3: 2 / 3}
# A voxel this part of a voxel outside the ball says nothing about the end: the radius is not known better.
_DOUBT = 0.2
# An end is flat with more votes than this factor times those for a round one, plus this; in a plane there are few.
_MAJORITY = {2: (2.0, 1.0), 3: (1.0, 0.0)}


@dataclass(frozen=True)
class Scale:
    """Sizes that the geometry needs: `ndim`, the voxel's mean side in mm and its volume (area) in mm."""

    ndim: int
    spacing: FloatArray

    @property
    def used(self) -> FloatArray:
        """Spacing of the axes that exist."""
        return self.spacing[3 - self.ndim :]

    @property
    def side(self) -> float:
        """Geometric mean of the spacing."""
        return float(np.exp(np.log(self.used).mean()))

    @property
    def step(self) -> float:
        """Distance of the samples along a branch."""
        return float(self.used.min())

    @property
    def voxel(self) -> float:
        """Volume of a voxel (area of a pixel)."""
        return float(np.prod(self.used))

    def radius_of(self, section: FloatArray) -> FloatArray:
        """Radius of the circle with a cross-section in mm²; in a plane half of a width in mm."""
        return np.asarray(np.sqrt(section / np.pi) if self.ndim == 3 else section / 2)

    def section_of(self, radius: float) -> float:
        """Inverse of `radius_of`."""
        return float(np.pi * radius**2 if self.ndim == 3 else 2 * radius)


def moved_nodes(
    lines: Lines,
    ends: IntArray,
    places: FloatArray,
    depths: FloatArray,
    degree: IntArray,
    fused: NDArray[np.bool_],
    radius: FloatArray,
    scale: Scale,
) -> tuple[FloatArray, IntArray]:
    """Nodes of three branches or more where the straight continuations of their branches meet best.

    Each branch is fitted by a line just beyond the stretch in which it is fused with others; the node is the point of
    the least sum of squared distances from these lines, weighted by radius.

    Returns
    -------
    places, cut
        ``(K, 3)`` in mm, and ``(B, 2)`` how many samples at the start and at the end of each branch give way to a
        straight line to the node.
    """
    placed = places.copy()
    cut = np.zeros((len(ends), 2), dtype=np.int64)
    ways: dict[tuple[int, int], FloatArray] = {}
    pull: list[list[tuple[FloatArray, FloatArray, float]]] = [[] for _ in range(len(places))]
    for branch in range(len(ends)):
        low, high = int(lines.starts[branch]), int(lines.starts[branch + 1])
        count = high - low
        free = [degree[node] < 3 for node in ends[branch]]
        for side in (0, 1):
            if free[side]:
                continue
            rows = np.arange(low, high) if side == 0 else np.arange(high - 1, low - 1, -1)
            clear = np.flatnonzero(~fused[rows])
            most = int((count - 1) * (0.6 if free[1 - side] else 0.4))
            start = min(int(clear[0]), most) if len(clear) else most
            thick = float(radius[rows[start]])
            start = min(start + max(2, round(_BENT * thick / scale.step)), most)
            more = max(4, int(np.ceil(1.5 * thick / scale.step)), round(0.7 * start))
            stretch = lines.points[rows[start : start + more + 1]]
            cut[branch, side] = start
            if len(stretch) >= 2:
                middle, way = _line(stretch)
                pull[ends[branch, side]].append((middle, way, thick))
                ways[branch, side] = way
    for node in np.flatnonzero(degree > 2):
        found = _meeting(pull[node], places[node])
        if np.linalg.norm(found - places[node]) <= _FARTHEST * depths[node] + scale.side:
            placed[node] = found
    for (branch, side), way in ways.items():
        cut[branch, side] = _in_front(lines, branch, side, placed[ends[branch, side]], way, cut)
    return placed, cut


def _in_front(lines: Lines, branch: int, side: int, place: FloatArray, way: FloatArray, cut: IntArray) -> int:
    """How many samples to cut so that none lies behind the node: a branch must not run past it and turn back."""
    low, high = int(lines.starts[branch]), int(lines.starts[branch + 1])
    points = lines.points[low:high] if side == 0 else lines.points[low:high][::-1]
    start, most = int(cut[branch, side]), high - low - 1 - int(cut[branch, 1 - side])
    step = float(np.linalg.norm(points[1] - points[0]))
    while start < most and float((points[start] - place) @ way) < step:
        start += 1
    return start


def _line(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and unit direction of nearly straight, evenly spaced points, in their order."""
    middle = points.mean(axis=0)
    order = np.arange(len(points)) - (len(points) - 1) / 2
    way = order @ (points - middle)
    return middle, way / max(float(np.linalg.norm(way)), 1e-12)


def _parabola(points: FloatArray, straight: FloatArray, least: float) -> tuple[FloatArray, FloatArray]:
    """Direction at the first point, away from the rest, and curvature vector of a smooth line.

    A line that strays less than `least` from its chord counts as straight, with the direction `straight`.
    """
    if len(points) < 5:
        return straight, np.zeros(3)
    middle, inwards = _line(points)
    step = float(np.linalg.norm(points[-1] - points[0])) / (len(points) - 1)
    order = (np.arange(len(points)) - (len(points) - 1) / 2) * step
    square = order**2 - (order**2).mean()
    bend = 2 * (square @ (points - middle)) / max(float(square @ square), 1e-12)
    bend -= (bend @ inwards) * inwards
    half = float(order[-1])
    if np.linalg.norm(bend) * half**2 / 2 < least:
        return straight, np.zeros(3)
    # Half-way the line is tangent to its fit; from there back to the first point it turns.
    way = -inwards + bend * half
    way /= np.linalg.norm(way)
    return way, bend - (bend @ way) * way


def _meeting(lines: list[tuple[FloatArray, FloatArray, float]], start: FloatArray) -> FloatArray:
    """The point nearest to all lines (point, direction, weight); `start` holds it where the lines leave it free."""
    if len(lines) < 2:
        return start
    matrix = np.eye(3) * _HOLD * min(weight for _, _, weight in lines)
    right = matrix @ start
    for middle, way, weight in lines:
        across = weight * (np.eye(3) - np.outer(way, way))
        matrix += across
        right += across @ middle
    return np.asarray(np.linalg.solve(matrix, right))


def tips(
    lines: Lines,
    ends: IntArray,
    degree: IntArray,
    radius: FloatArray,
    voxels: Voxels,
    places: NDArray[Any],
    owner: NDArray[np.int32],
    scale: Scale,
    fused: NDArray[np.bool_],
    cut: IntArray,
) -> dict[tuple[int, int], FloatArray]:
    """Place in mm of the blind ends, by (branch, side); adds to `cut` what the straight line to them replaces.

    The vessel from a sample p about one radius before the end has a volume V beyond p. A tube of cross-section A that
    ends in a half ball of its own radius r is ``V / A - 2/3 r`` long from p (in a plane ``V / A - pi/4 r``): to the
    centre of the ball, where its axis ends. One with a flat end is ``V / A`` long. It counts as flat where it touches
    the border of the image, or where more voxels lie in what only the tube with the flat end would fill than in
    what only the one with the round end would. Ends of thin vessels (radius up to 2 voxels, 4 in a plane), which hardly
    anybody can tell apart, mostly count as round.
    """
    base: list[tuple[int, int, int]] = []
    frames: list[FloatArray] = []
    limit = np.full((len(ends), 2), -1, dtype=np.int64)
    table = np.full((len(ends), 2), -1, dtype=np.int64)
    for branch, side in np.argwhere(degree[ends] == 1).tolist():
        low, high = int(lines.starts[branch]), int(lines.starts[branch + 1])
        rows = np.arange(low, high) if side == 0 else np.arange(high - 1, low - 1, -1)
        joined = np.flatnonzero(fused[rows])
        room = int(joined[0]) - 1 if len(joined) else len(rows) - 1 - int(cut[branch, 1 - side])
        room = max(room, 1)
        thick = float(radius[rows[min(room, len(rows) // 2)]])
        thick = float(radius[rows[min(room, int(thick / scale.step) + 1)]])
        start = min(int(np.ceil(thick / scale.step)) + 1, max(int(0.5 * room), 1))
        more = min(start + max(4, int(np.ceil(2 * thick / scale.step))), max(room, start + 1), len(rows) - 1)
        long = min(start + max(8, int(np.ceil(4 * thick / scale.step))), max(room, more), len(rows) - 1)
        table[branch, side], limit[branch, side] = len(base), more
        base.append((branch, side, start))
        _, inwards = _line(lines.points[rows[start if more > start else 0 : more + 1]])
        way, bend = _parabola(lines.points[rows[start : long + 1]], -inwards, 0.5 * scale.side)
        frames.append(np.concatenate([lines.points[rows[start]], way, bend, [max(thick, 0.5 * scale.side)]]))
    if not base:
        return {}
    measured = _lengths(lines, np.array(frames), table, limit, voxels, places, owner, scale)
    out = {}
    for number, (branch, side, start) in enumerate(base):
        cut[branch, side] = start
        place, way, bend = frames[number][:3], frames[number][3:6], frames[number][6:9]
        far = measured[number]
        out[branch, side] = place + far * way + 0.5 * far**2 * bend
    return out


def _lengths(
    lines: Lines,
    frames: FloatArray,
    table: IntArray,
    limit: IntArray,
    voxels: Voxels,
    places: NDArray[Any],
    owner: NDArray[np.int32],
    scale: Scale,
) -> FloatArray:
    """Length in mm of the axis beyond the base of each tip.

    `frames` ``(T, 10)`` hold its place, the outward way, the curvature vector and the radius.
    """
    near = _near_tips(owner, lines.branch_of(), lines.starts, table, limit)
    offset = 3 - scale.ndim
    border = (np.array(voxels.shape)[offset:] - 1) * scale.used
    found = np.zeros((len(frames), 2))
    _beyond(places, near, frames, scale.spacing, border, offset, found)
    radius = frames[:, 9]
    section = np.array([scale.section_of(one) for one in radius])
    even = found[:, 0] * scale.voxel / section
    round_ = np.maximum(even - _CAP[scale.ndim] * radius, 0.0)
    votes = np.zeros((len(frames), 2))
    _vote(places, near, frames, even, round_, _DOUBT * scale.side, votes)

    factor, more = _MAJORITY[scale.ndim]
    flat = (found[:, 1] > 0) | (votes[:, 0] > factor * votes[:, 1] + more)
    return np.where(flat, even, round_)


@kernel
def _near_tips(owner, owned, starts, table, limit):  # type: ignore[no-untyped-def]
    """``(N, 2)``: voxels that belong to the stretch before a tip, and the number of the tip."""
    found, size = np.empty((2 * owner.shape[0], 2), np.int64), 0
    for voxel in range(owner.shape[0]):
        sample = owner[voxel]
        if sample < 0:
            continue
        branch = owned[sample]
        for side in range(2):
            away = sample - starts[branch] if side == 0 else starts[branch + 1] - 1 - sample
            if table[branch, side] >= 0 and away <= limit[branch, side]:
                found[size, 0], found[size, 1] = voxel, table[branch, side]
                size += 1
    return found[:size].copy()


@kernel
def _beyond(places, near, frames, spacing, border, offset, out):  # type: ignore[no-untyped-def]
    """Per tip: voxels beyond the plane through its base, and whether one lies at the border of the image."""
    for k in range(near.shape[0]):
        voxel, tip = near[k, 0], near[k, 1]
        along, thick = 0.0, 0.0
        for axis in range(3):
            along += (places[voxel, axis] - frames[tip, axis]) * frames[tip, 3 + axis]
            thick += abs(frames[tip, 3 + axis]) * spacing[axis]
        if along < -0.5 * thick:
            continue
        out[tip, 0] += min(along / thick + 0.5, 1.0)
        if along > 0:
            for axis in range(offset, 3):
                at = places[voxel, axis]
                if at <= 0.25 * spacing[axis] or at >= border[axis - offset] - 0.25 * spacing[axis]:
                    out[tip, 1] = 1.0


@kernel
def _vote(places, near, frames, even, rounded, doubt, out):  # type: ignore[no-untyped-def]
    """Per tip: voxels that only a flat end at `even`, and that only a round one with its centre at `rounded`, holds."""
    for k in range(near.shape[0]):
        voxel, tip = near[k, 0], near[k, 1]
        along, far = 0.0, 0.0
        for axis in range(3):
            along += (places[voxel, axis] - frames[tip, axis]) * frames[tip, 3 + axis]
        over = along - rounded[tip]
        if over <= 0:
            continue
        for axis in range(3):
            ahead = frames[tip, axis] + along * frames[tip, 3 + axis] + 0.5 * along**2 * frames[tip, 6 + axis]
            far += (places[voxel, axis] - ahead) ** 2
        square = far + over * over
        if along <= even[tip] and square > (frames[tip, 9] + doubt) ** 2:
            out[tip, 0] += 1.0
        elif along > even[tip] and square <= frames[tip, 9] ** 2:
            out[tip, 1] += 1.0
