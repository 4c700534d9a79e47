"""Masks of tubes with known centrelines and radii, drawn here without the package's phantoms."""

import numpy as np
from scipy.spatial import cKDTree


def unit(way):
    way = np.asarray(way, dtype=float)
    return way / np.linalg.norm(way)


def draw(curves, shape, spacing=None, flat=False):
    """Voxels within the radius of a curve; curves are (points in mm (n, ndim), radius or radii)."""
    spacing = np.ones(len(shape)) if spacing is None else np.array(spacing, dtype=float)
    mask = np.zeros(shape, dtype=bool)
    for place, size in curves:
        points = np.asarray(place, dtype=float)
        radius = np.broadcast_to(np.asarray(size, dtype=float), (len(points),))
        low = np.maximum(np.floor((points.min(0) - radius.max()) / spacing) - 1, 0).astype(int)
        high = np.minimum(np.ceil((points.max(0) + radius.max()) / spacing) + 2, shape).astype(int)
        axes = [np.arange(a, b) * s for a, b, s in zip(low, high, spacing, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
        fine = np.linspace(0, along[-1], max(int(along[-1] / 0.15), 2))
        line = np.stack([np.interp(fine, along, column) for column in points.T], 1)
        wide = np.interp(fine, along, radius)
        far, nearest = cKDTree(line).query(grid.reshape(-1, len(shape)), distance_upper_bound=radius.max() + 1)
        inside = (nearest < len(line)) & (far <= wide[np.minimum(nearest, len(line) - 1)])
        inside = inside.reshape(grid.shape[:-1])
        if flat:
            inside &= ((grid - line[0]) @ unit(line[1] - line[0]) >= 0) & (
                (grid - line[-1]) @ unit(line[-1] - line[-2]) <= 0
            )
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] |= inside
    return mask


def length(curves):
    return sum(np.linalg.norm(np.diff(points, axis=0), axis=1).sum() for points, _ in curves)


def mean_radius(curves):
    """Every mm of curve counting alike."""
    total = weight = 0.0
    for points, size in curves:
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        radius = np.broadcast_to(np.asarray(size, dtype=float), (len(points),))
        total += (steps * (radius[1:] + radius[:-1]) / 2).sum()
        weight += steps.sum()
    return total / weight


def straight(centre, way, size, radius):
    """One straight tube around a centre."""
    centre, way = np.asarray(centre, dtype=float), unit(way)
    return [(np.stack([centre - way * size / 2, centre + way * size / 2]), radius)]


def bent_tree(seed, ndim, radius, depth, curve):
    """Tubes that taper, bend and divide in two, in free space from the origin: (curves, bifurcations)."""
    rng = np.random.default_rng(seed)
    curves = []

    def grow(place, way, radius, left):
        size = max(radius * rng.uniform(8, 12), 14)
        bend = rng.normal(size=ndim) * curve / 30
        points = [place]
        for _ in range(30):
            way = unit(way + bend)
            points.append(points[-1] + way * size / 30)
        curves.append((np.array(points), np.linspace(radius, 0.92 * radius, 31)))
        if not left:
            return
        part = rng.uniform(0.35, 0.65)
        across = rng.normal(size=ndim)
        across = unit(across - across @ way * way)
        for sign, share in ((1, part), (-1, 1 - part)):
            angle = rng.uniform(0.45, 0.85)
            turned = np.cos(angle) * way + sign * np.sin(angle) * across
            grow(points[-1], turned, 0.92 * radius * share ** (1 / 3), left - 1)

    grow(np.zeros(ndim), unit([0] * (ndim - 1) + [1]), radius, depth)
    return curves, 2**depth - 1


def moved(curves, spacing, margin=5.0):
    """Curves moved into a box that begins at 0: (curves, shape for that spacing)."""
    low = np.min([points.min(0) - np.max(radius) for points, radius in curves], axis=0) - margin
    high = np.max([points.max(0) + np.max(radius) for points, radius in curves], axis=0) + margin
    return [(points - low, radius) for points, radius in curves], tuple(np.ceil((high - low) / spacing).astype(int))


def apart(curves, gap):
    """Whether curves without a common end keep a gap, and those with one do away from it."""
    for i, (one, thick) in enumerate(curves):
        for other, wide in curves[:i]:
            far = np.linalg.norm(one[:, None] - other[None], axis=2) - thick[:, None] - wide[None]
            parent = np.allclose(one[0], other[-1])
            sister = np.allclose(one[0], other[0])
            if parent:
                far = far[len(one) // 2 :]
            elif sister:
                far = np.minimum(far[len(one) // 2 :].min(), far[:, len(other) // 2 :].min())
            if np.min(far) < gap:
                return False
    return True
