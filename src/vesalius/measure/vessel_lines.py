"""Centrelines with sub-voxel accuracy: smoothing, owners of the voxels, cross-sections.

All branches lie in one table of samples ``(M, 3)`` in mm; branch b has the rows ``starts[b]`` to ``starts[b + 1]``,
evenly spaced. Each voxel of the mask is owned by its nearest sample. A slab of the vessel between two samples then has
a volume, a cross-section (volume by thickness) and a centre of mass; as these count voxels they do not depend on how
the surface falls between them, where a distance to the surface does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import in_threads, kernel
from vesalius.measure.vessel_voxels import Voxels, is_set, pieces, row_of

IntArray = NDArray[np.int64]


@dataclass
class Lines:
    """Samples of all branches.

    Parameters
    ----------
    points
        ``(M, 3)`` in mm.
    starts
        ``(B + 1,)``: first row of each branch.
    closed
        ``(B,)``: rings that pass through their node without a corner.
    """

    points: FloatArray
    starts: IntArray
    closed: NDArray[np.bool_]

    def branch_of(self) -> IntArray:
        """``(M,)``: the branch of each sample."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass
class Sections:
    """What the voxels say at each sample, ``(M, ...)``.

    Parameters
    ----------
    volume, width
        Volume in mm³ (area in mm² in a plane) of the slab of a sample and its thickness in mm.
    shift
        From the sample to the centre of mass of its slab in mm, across the line.
    fused
        The slab touches one of another branch: what belongs to which vessel is not defined there.
    """

    volume: FloatArray
    width: FloatArray
    shift: FloatArray
    fused: NDArray[np.bool_]


def evenly(points: FloatArray, starts: IntArray, counts: IntArray) -> tuple[FloatArray, IntArray]:
    """Each polyline resampled to `counts` points at even distance along it; ends stay.

    The first three columns of `points` are the place in mm; others are interpolated along.
    """
    fresh = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    out = np.empty((int(fresh[-1]), points.shape[1]))
    _evenly(np.ascontiguousarray(points), starts, fresh, out)
    return out, fresh


def smoothed(lines: Lines, sigma: FloatArray) -> FloatArray:
    """Samples after a Gaussian of `sigma` samples ``(M,)`` along the branch, ends fixed.

    What the Gaussian took away is smoothed too and given back (twicing: Tukey 1977), so that bends do not shrink: the
    error is of the fourth order in sigma.
    """
    once = _gaussian(lines.points, lines.points, lines.starts, lines.closed, sigma)
    rest = lines.points - once
    return once + np.asarray(_gaussian(rest, rest, lines.starts, lines.closed, sigma))


def owners(voxels: Voxels, places: NDArray[Any], spacing: FloatArray, lines: Lines) -> NDArray[np.int32]:
    """``(N,)``: the sample nearest to each voxel along ways inside the mask; -1 in pieces without samples."""
    owner = np.full(len(voxels), -1, dtype=np.int32)
    slab, row, _ = voxels.steps
    first, last = _limits(lines)
    seeds = np.rint(lines.points / spacing).astype(np.int64)
    inside = ((seeds >= 0) & (seeds < np.array(voxels.shape))).all(axis=1)
    address = np.where(inside, voxels.addresses(seeds), -1)
    flat = int(voxels.shape[0] == 1)
    _spread(
        voxels.words, voxels.before, voxels.address, places, lines.points, first, last, address, slab, row, flat, owner
    )
    return owner


def sections(
    voxels: Voxels,
    places: NDArray[Any],
    voxel: float,
    lines: Lines,
    owner: NDArray[np.int32],
    reach: FloatArray,
    *,
    move: bool,
) -> Sections:
    """Slabs of all samples; `voxel` is the volume (area) of one. With `move`, owners are first brought up to date.

    In a bend slabs are wedges, thicker outside than inside. A voxel counts as much as if they were not: by one over the
    thickness of the wedge where it lies. The bend is taken from samples `reach` ``(M,)`` samples apart.
    """
    first, last = _limits(lines)
    slab, row, _ = voxels.steps
    if move:
        _descend(places, lines.points, first, last, owner)
        _exchange(voxels.words, voxels.before, voxels.address, places, lines.points, first, last, slab, row, owner)
    parts = pieces(len(voxels), 8 * len(voxels))
    width = np.empty(len(lines.points))
    tangents, bends = np.empty_like(lines.points), np.zeros_like(lines.points)
    _frames(lines.points, lines.starts, lines.closed, reach, tangents, bends, width)

    def add(part: tuple[int, int]) -> tuple[Any, Any]:
        sums = np.zeros((len(lines.points), 4))
        fused = np.zeros(len(lines.points), dtype=np.bool_)
        _add(places, lines.points, first, last, tangents, bends, owner, part[0], part[1], sums)
        _contacts(voxels.words, voxels.before, voxels.address, first, owner, part[0], part[1], slab, row, fused)
        return sums, fused

    found = in_threads(add, parts)
    sums = sum((one for one, _ in found), np.zeros((len(lines.points), 4)))
    fused = np.zeros(len(lines.points), dtype=np.bool_)
    for _, one in found:
        fused |= one
    shift = sums[:, 1:] / np.maximum(sums[:, :1], 1e-12)
    return Sections(sums[:, 0] * voxel, width, shift, fused)


def _limits(lines: Lines) -> tuple[IntArray, IntArray]:
    """First and last sample of the branch of each sample."""
    branch = lines.branch_of()
    return lines.starts[branch], lines.starts[branch + 1] - 1


def spread_along(values: FloatArray, good: NDArray[np.bool_], starts: IntArray) -> FloatArray:
    """`values` ``(M,)`` with those that are not `good` interpolated along the branch; NaN in branches without good."""
    out = values.copy()
    _fill(out, good, starts)
    return out


def section_means(found: Sections, starts: IntArray, good: NDArray[np.bool_], sigma: FloatArray) -> FloatArray:
    """Cross-section ``(M,)`` in mm² (mm): volume by thickness, both under a Gaussian over the `good` samples nearby.

    NaN where no good sample lies within three sigma.
    """
    return np.asarray(_section_means(found.volume, found.width, starts, good, sigma))


@kernel
def _gap(points, one, two):  # type: ignore[no-untyped-def]
    """Distance in mm of two rows."""
    return np.sqrt(
        (points[one, 0] - points[two, 0]) ** 2
        + (points[one, 1] - points[two, 1]) ** 2
        + (points[one, 2] - points[two, 2]) ** 2
    )


@kernel
def _evenly(points, starts, fresh, out):  # type: ignore[no-untyped-def]
    """Linear interpolation at even steps of the length along each polyline."""
    for b in range(starts.shape[0] - 1):
        low, high = starts[b], starts[b + 1]
        total = 0.0
        for k in range(low + 1, high):
            total += _gap(points, k, k - 1)
        count = fresh[b + 1] - fresh[b]
        step = total / (count - 1)
        k = low
        done = 0.0
        gap = _gap(points, min(k + 1, high - 1), k)
        for j in range(count):
            want = j * step
            while k < high - 2 and done + gap < want:
                done += gap
                k += 1
                gap = _gap(points, k + 1, k)
            part = min((want - done) / gap, 1.0) if gap > 0 else 0.0
            out[fresh[b] + j] = points[k] + part * (points[min(k + 1, high - 1)] - points[k])
        out[fresh[b + 1] - 1] = points[high - 1]


@kernel
def _gaussian(values, ends, starts, closed, sigma):  # type: ignore[no-untyped-def]
    """Gaussian along each branch. Beyond an end the branch goes on as its own point reflection; a ring goes round."""
    out = np.empty_like(values)
    for b in range(starts.shape[0] - 1):
        low, high = starts[b], starts[b + 1] - 1
        for i in range(low, high + 1):
            reach = int(np.ceil(3 * sigma[i]))
            total = 1.0
            x, y, z = values[i, 0], values[i, 1], values[i, 2]
            # exp(-k^2 / 2 sigma^2) from one k to the next: times a factor that shrinks by the same ratio each time.
            ratio = np.exp(-1.0 / sigma[i] ** 2)
            factor, weight = np.sqrt(ratio), 1.0
            for k in range(1, reach + 1):
                weight *= factor
                factor *= ratio
                total += 2 * weight
                for side in (-k, k):
                    j = i + side
                    if closed[b]:
                        j = low + (j - low) % (high - low)
                        x += weight * values[j, 0]
                        y += weight * values[j, 1]
                        z += weight * values[j, 2]
                    elif j < low or j > high:
                        end = low if j < low else high
                        j = min(max(2 * end - j, low), high)
                        x += weight * (2 * ends[end, 0] - values[j, 0])
                        y += weight * (2 * ends[end, 1] - values[j, 1])
                        z += weight * (2 * ends[end, 2] - values[j, 2])
                    else:
                        x += weight * values[j, 0]
                        y += weight * values[j, 1]
                        z += weight * values[j, 2]
            out[i, 0] = x / total
            out[i, 1] = y / total
            out[i, 2] = z / total
    return out


@kernel
def _apart(places, voxel, points, sample):  # type: ignore[no-untyped-def]
    """Squared distance of a voxel to a sample."""
    return (
        (places[voxel, 0] - points[sample, 0]) ** 2
        + (places[voxel, 1] - points[sample, 1]) ** 2
        + (places[voxel, 2] - points[sample, 2]) ** 2
    )


@kernel
def _nearest(places, voxel, points, first, last, sample):  # type: ignore[no-untyped-def]
    """Walk along the branch of `sample` while the voxel comes nearer: (sample, squared distance)."""
    best = _apart(places, voxel, points, sample)
    for way in (-1, 1):
        while first[sample] <= sample + way <= last[sample]:
            near = _apart(places, voxel, points, sample + way)
            if near >= best:
                break
            best = near
            sample += way
    return sample, best


@kernel
def _near_rows(words, before, here, slab, row, flat, out):  # type: ignore[no-untyped-def]
    """Rows in the tables of the set voxels around `here`, itself included; returns how many."""
    count = 0
    for dz in range(-1 + flat, 2 - flat):
        for dy in range(-1, 2):
            first = here + dz * slab + dy * row - 1
            word, shift = first >> 6, first & 63
            bits = words[word] >> np.uint64(shift)
            if shift > 61:
                bits |= words[word + 1] << np.uint64(64 - shift)
            bits &= np.uint64(7)
            if bits == np.uint64(0):
                continue
            # Set voxels next to each other along x have consecutive rows.
            voxel = row_of(words, before, first)
            for k in range(3):
                if (bits >> np.uint64(k)) & np.uint64(1) != np.uint64(0):
                    out[count] = voxel
                    voxel += 1
                    count += 1
    return count


@kernel
def _spread(words, before, address, places, points, first, last, seeds, slab, row, flat, owner):  # type: ignore[no-untyped-def]
    """Fill the mask from the samples; a voxel is asked again when a neighbour has found a nearer sample."""
    total = address.shape[0]
    best = np.full(total, np.inf, dtype=np.float32)
    queue = np.empty(total + 1, dtype=np.int32)
    queued = np.zeros(total, dtype=np.bool_)
    near = np.empty(27, dtype=np.int64)
    head, count = 0, 0
    for sample in range(seeds.shape[0]):
        if seeds[sample] < 0:
            continue
        for k in range(_near_rows(words, before, seeds[sample], slab, row, flat, near)):
            voxel = near[k]
            far = np.float32(_apart(places, voxel, points, sample))
            if far < best[voxel]:
                best[voxel] = far
                owner[voxel] = sample
                if not queued[voxel]:
                    queued[voxel] = True
                    queue[(head + count) % (total + 1)] = voxel
                    count += 1
    while count > 0:
        voxel = np.int64(queue[head])
        head = head + 1 if head < total else 0
        count -= 1
        queued[voxel] = False
        mine = np.int64(owner[voxel])
        for k in range(_near_rows(words, before, address[voxel], slab, row, flat, near)):
            other = near[k]
            if owner[other] == mine:
                continue
            sample, distance = _nearest(places, other, points, first, last, mine)
            far = np.float32(distance)
            if far < best[other]:
                best[other] = far
                owner[other] = sample
                if not queued[other]:
                    queued[other] = True
                    place = head + count
                    queue[place if place <= total else place - total - 1] = other
                    count += 1


@kernel
def _descend(places, points, first, last, owner):  # type: ignore[no-untyped-def]
    """Let each voxel walk to the nearest sample of its branch."""
    for voxel in range(owner.shape[0]):
        if owner[voxel] >= 0:
            sample, _ = _nearest(places, voxel, points, first, last, owner[voxel])
            owner[voxel] = sample


@kernel
def _exchange(words, before, address, places, points, first, last, slab, row, owner):  # type: ignore[no-untyped-def]
    """One sweep up and one down: take over the branch of a face neighbour where that is nearer."""
    total = owner.shape[0]
    for sweep in range(2):
        for number in range(total):
            voxel = number if sweep == 0 else total - 1 - number
            for step in (1, row, slab):
                other = address[voxel] - step if sweep == 0 else address[voxel] + step
                if not is_set(words, other):
                    continue
                theirs = owner[row_of(words, before, other)]
                mine = owner[voxel]
                if theirs < 0 or mine < 0 or first[theirs] == first[mine]:
                    continue
                sample, near = _nearest(places, voxel, points, first, last, theirs)
                if near < _apart(places, voxel, points, mine):
                    owner[voxel] = sample


@kernel
def _frames(points, starts, closed, reach, tangents, bends, width):  # type: ignore[no-untyped-def]
    """Unit tangent, curvature vector and slab thickness at each sample; half a step at the ends of a branch."""
    for b in range(starts.shape[0] - 1):
        begin, end = starts[b], starts[b + 1] - 1
        for i in range(begin, end + 1):
            low, high = max(i - 1, begin), min(i + 1, end)
            length = _gap(points, high, low)
            width[i] = max(length / 2, 1e-9)
            for axis in range(3):
                tangents[i, axis] = (points[high, axis] - points[low, axis]) / max(length, 1e-9)
            far = max(int(np.ceil(reach[i])), 2)
            low, high = i - far, i + far
            if closed[b]:
                low, high = begin + (low - begin) % (end - begin), begin + (high - begin) % (end - begin)
            else:
                far = min(far, i - begin, end - i)
                low, high = i - far, i + far
            step = length / 2 * far
            if far < 2 or step <= 0:
                continue
            along = 0.0
            for axis in range(3):
                bends[i, axis] = (points[low, axis] - 2 * points[i, axis] + points[high, axis]) / step**2
                along += bends[i, axis] * tangents[i, axis]
            for axis in range(3):
                bends[i, axis] -= along * tangents[i, axis]


@kernel
def _add(places, points, first, last, tangents, bends, owner, start, stop, sums):  # type: ignore[no-untyped-def]
    """Share each voxel between its sample and the next one on its side, by distance along the line."""
    for voxel in range(start, stop):
        i = np.int64(owner[voxel])
        if i < 0:
            continue
        d0 = places[voxel, 0] - points[i, 0]
        d1 = places[voxel, 1] - points[i, 1]
        d2 = places[voxel, 2] - points[i, 2]
        along = d0 * tangents[i, 0] + d1 * tangents[i, 1] + d2 * tangents[i, 2]
        j = i + 1 if along >= 0 else i - 1
        if j < first[i] or j > last[i]:
            continue  # beyond the end of the line: a cap is no part of a cross-section
        step = np.sqrt(((points[j] - points[i]) ** 2).sum())
        part = min(abs(along) / step, 1.0) if step > 0 else 0.0
        d0 -= along * tangents[i, 0]
        d1 -= along * tangents[i, 1]
        d2 -= along * tangents[i, 2]
        whole = 1.0 / max(1.0 - d0 * bends[i, 0] - d1 * bends[i, 1] - d2 * bends[i, 2], 0.3)
        for k, weight in ((i, whole * (1.0 - part)), (j, whole * part)):
            sums[k, 0] += weight
            sums[k, 1] += weight * d0
            sums[k, 2] += weight * d1
            sums[k, 3] += weight * d2


@kernel
def _contacts(words, before, address, first, owner, start, stop, slab, row, fused):  # type: ignore[no-untyped-def]
    """Mark the samples that own a voxel with a face neighbour of another branch."""
    for voxel in range(start, stop):
        if owner[voxel] < 0:
            continue
        for step in (1, row, slab):
            if not is_set(words, address[voxel] + step):
                continue
            other = owner[row_of(words, before, address[voxel] + step)]
            if other >= 0 and first[other] != first[owner[voxel]]:
                fused[other] = True
                fused[owner[voxel]] = True


@kernel
def _fill(values, good, starts):  # type: ignore[no-untyped-def]
    """Linear between good neighbours, constant beyond the first and the last."""
    for b in range(starts.shape[0] - 1):
        behind = -1
        for i in range(starts[b], starts[b + 1] + 1):
            if i < starts[b + 1] and not good[i]:
                continue
            # `i` is good or one past the end: fill what lies between it and the good one before.
            for k in range(max(behind + 1, starts[b]), i):
                if behind < 0:
                    values[k] = values[i] if i < starts[b + 1] else np.nan
                elif i == starts[b + 1]:
                    values[k] = values[behind]
                else:
                    part = (k - behind) / (i - behind)
                    values[k] = (1 - part) * values[behind] + part * values[i]
            behind = i


@kernel
def _section_means(volume, width, starts, good, sigma):  # type: ignore[no-untyped-def]
    """Ratio of the weighted sums of volume and thickness."""
    out = np.full(volume.shape[0], np.nan)
    for b in range(starts.shape[0] - 1):
        for i in range(starts[b], starts[b + 1]):
            reach = int(np.ceil(3 * sigma[i]))
            mass, thick = 0.0, 0.0
            for j in range(max(i - reach, starts[b]), min(i + reach + 1, starts[b + 1])):
                if good[j]:
                    weight = np.exp(-0.5 * ((j - i) / sigma[i]) ** 2)
                    mass += weight * volume[j]
                    thick += weight * width[j]
            if thick > 0:
                out[i] = mass / thick
    return out
