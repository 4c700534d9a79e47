"""The compiled loops of `vesalius.tasks.instances`, over flat or three-dimensional arrays.

Flat arrays are padded, so that a step to a neighbour (`jumps`) never leaves them.
"""

from __future__ import annotations

import numpy as np

from vesalius.measure.compiled import kernel


@kernel
def run_distances(label, field, squared):  # type: ignore[no-untyped-def]
    """One axis of the distance to another label: ``min over q of field[q] + squared (y - q)²`` within each run."""
    outer, length, inner = label.shape
    line = np.empty(length, dtype=np.float32)
    for o in range(outer):
        for i in range(inner):
            start = 0
            while start < length:
                name = label[o, start, i]
                stop = start + 1
                while stop < length and label[o, stop, i] == name:
                    stop += 1
                if name == 0:
                    start = stop
                    continue
                blank = True
                for y in range(start, stop):
                    line[y] = field[o, y, i]
                    blank = blank and line[y] == np.inf
                for y in range(start, stop):
                    best = line[y]
                    if start > 0:
                        best = min(best, np.float32(squared * (y - start + 1) ** 2))
                    if stop < length:
                        best = min(best, np.float32(squared * (stop - y) ** 2))
                    if not blank:
                        k = 1
                        while y - k >= start or y + k < stop:
                            away = np.float32(squared * k * k)
                            if away >= best:
                                break
                            if y - k >= start:
                                best = min(best, line[y - k] + away)
                            if y + k < stop:
                                best = min(best, line[y + k] + away)
                            k += 1
                    field[o, y, i] = best
                start = stop


@kernel
def to_depth(label, field, top):  # type: ignore[no-untyped-def]
    """Squared distances to depth in (0, 1], in place; an object without any border is 1 all over."""
    most = np.zeros(top + 1, dtype=np.float32)
    for n in range(label.shape[0]):
        most[label[n]] = max(most[label[n]], field[n])
    for n in range(label.shape[0]):
        if label[n] == 0:
            field[n] = 0.0
        elif most[label[n]] == np.inf:
            field[n] = 1.0
        else:
            field[n] = np.sqrt(field[n] / most[label[n]])


@kernel
def tell_near(label, faces, jumps, squares, first, second):  # type: ignore[no-untyped-def]
    """Squared distances to the nearest and second nearest object; inside an object `second` is to the nearest other."""
    holder = np.zeros(label.shape[0], dtype=np.int32)
    for n in range(label.shape[0]):
        name = label[n]
        if name == 0:
            continue
        surface = False
        for jump in faces:
            # The padding is background, so a voxel at the edge of the array counts as surface.
            surface = surface or label[n + jump] != name
        if not surface:
            continue
        for k in range(jumps.shape[0]):
            there, away = n + jumps[k], squares[k]
            other = label[there]
            if other == name:
                continue
            if other != 0:
                second[there] = min(second[there], away)
            elif holder[there] == name:
                first[there] = min(first[there], away)
            elif away < first[there]:
                second[there], first[there], holder[there] = first[there], away, name
            else:
                second[there] = min(second[there], away)


@kernel
def _find(parent, n):  # type: ignore[no-untyped-def]
    while parent[n] != n:
        parent[n] = parent[parent[n]]
        n = parent[n]
    return n


@kernel
def find_prominences(peaks, inside, order, jumps):  # type: ignore[no-untyped-def]
    """Maxima and their prominence: pieces grow from the top down, and where two meet the lower one ends.

    The piece's root is its highest voxel, the first in `order` among equals.
    """
    parent = np.full(peaks.shape[0], -1, dtype=np.int64)
    fall = np.zeros(peaks.shape[0], dtype=np.int32)
    for at in order:
        parent[at] = at
        mine = at
        for jump in jumps:
            there = at + jump
            if parent[there] < 0:
                continue
            other = _find(parent, there)
            if other == mine:
                continue
            if peaks[other] < peaks[mine]:
                other, mine = mine, other
            fall[mine] = peaks[mine] - peaks[at]
            parent[mine] = other
            mine = other
    count = 0
    for at in order:
        if parent[at] == at:
            fall[at] = 1 << 30
        count += fall[at] > 0
    place, prominence = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    count = 0
    for at in order:
        if fall[at] > 0:
            place[count], prominence[count] = at, fall[at]
            count += 1
    return place, prominence


@kernel
def mark_seeds(peaks, inside, place, height, jumps, labels):  # type: ignore[no-untyped-def]
    """Number each maximum and all that is joined to it less than `height` below: no order of equal voxels shows."""
    room = np.empty(peaks.shape[0], dtype=np.int64)
    for k in range(place.shape[0]):
        floor = peaks[place[k]] - height
        room[0], used = place[k], 1
        labels[place[k]] = k + 1
        while used:
            used -= 1
            at = room[used]
            for jump in jumps:
                there = at + jump
                if inside[there] and labels[there] == 0 and peaks[there] > floor:
                    labels[there] = k + 1
                    room[used] = there
                    used += 1


@kernel
def flood(relief, inside, labels, jumps, top):  # type: ignore[no-untyped-def]
    """Grow `labels` over `inside` from high to low relief, in place; equal voxels in the order they are reached."""
    after = np.full(relief.shape[0], -1, dtype=np.int64)
    head, tail = np.full(top + 1, -1, dtype=np.int64), np.full(top + 1, -1, dtype=np.int64)
    for at in range(relief.shape[0]):
        if labels[at] == 0:
            continue
        for jump in jumps:
            if inside[at + jump] and labels[at + jump] == 0:
                level = relief[at]
                if head[level] < 0:
                    head[level] = at
                else:
                    after[tail[level]] = at
                tail[level] = at
                break
    level = top
    while level >= 0:
        at = head[level]
        if at < 0:
            level -= 1
            continue
        head[level] = after[at]
        for jump in jumps:
            there = at + jump
            if inside[there] and labels[there] == 0:
                labels[there] = labels[at]
                # Higher ground behind a saddle is reached at the height of the saddle.
                to = min(relief[there], level)
                after[there] = -1
                if head[to] < 0:
                    head[to] = there
                else:
                    after[tail[to]] = there
                tail[to] = there


@kernel
def hole_owners(holes, labels, count):  # type: ignore[no-untyped-def]
    """The only object around each hole; -1 if there are several, or the edge of the array."""
    owner = np.zeros(count + 1, dtype=np.int32)
    depth, height, width = holes.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                hole = holes[z, y, x]
                if hole == 0 or owner[hole] < 0:
                    continue
                if y == 0 or y == height - 1 or x == 0 or x == width - 1 or (depth > 1 and (z == 0 or z == depth - 1)):
                    owner[hole] = -1
                    continue
                for axis in range(3):
                    if axis == 0 and depth == 1:
                        continue
                    for step in (-1, 1):
                        name = labels[z + step * (axis == 0), y + step * (axis == 1), x + step * (axis == 2)]
                        if name != 0:
                            owner[hole] = name if owner[hole] == 0 or owner[hole] == name else -1
                    if owner[hole] < 0:
                        break
    return owner


@kernel
def renumbered(labels, kept):  # type: ignore[no-untyped-def]
    """Kept objects numbered by their first voxels, the others 0."""
    names = np.zeros(kept.shape[0], dtype=np.int32)
    out = np.zeros(labels.shape[0], dtype=np.int32)
    used = 0
    for n in range(labels.shape[0]):
        old = labels[n]
        if old == 0 or not kept[old]:
            continue
        if names[old] == 0:
            used += 1
            names[old] = used
        out[n] = names[old]
    return out
