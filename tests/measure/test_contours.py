"""Outlines against scikit-image, scipy and matplotlib, and back to masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import find_contours

from vesalius.core.geometry import Grid
from vesalius.measure.contour_smoothing import simplified, smoothed
from vesalius.measure.contours import Contour, contours, fill, polygon_mask, signed_area

FEW = settings(max_examples=40)
maps = st.one_of(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3)),
    hnp.arrays(np.int32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=8), elements=st.integers(0, 2)),
)
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))


def blob(seed, side=64, level=0.5):
    """Lumps with holes, islands and narrow places."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 3)
    return noise > np.quantile(noise, level)


def disc(radius, side=96):
    y, x = np.ogrid[:side, :side]
    return (y - side / 2 + 0.3) ** 2 + (x - side / 2 - 0.2) ** 2 < radius**2


def to_curve(points, ring):
    """Distance of points to a closed ring, by brute force."""
    start, move = ring, np.roll(ring, -1, axis=0) - ring
    part = ((points[:, None] - start) * move).sum(-1) / np.maximum((move**2).sum(-1), 1e-30)
    foot = start + np.clip(part, 0, 1)[..., None] * move
    return np.linalg.norm(points[:, None] - foot, axis=-1).min(axis=1)


def dense(ring, pieces=8):
    part = np.arange(pieces)[:, None, None] / pieces
    return (ring + part * (np.roll(ring, -1, axis=0) - ring)).reshape(-1, ring.shape[1])


@FEW
@given(maps)
def test_filling_gives_the_map_back(labels):
    found = contours(labels)
    np.testing.assert_array_equal(fill(found, labels.shape), labels)
    one = contours(labels, 1)
    np.testing.assert_array_equal(fill(one, labels.shape), labels == 1)
    assert {ring.label for ring in one} <= {1}


@FEW
@given(masks)
def test_rings_are_those_of_scikit_image(mask):
    padded = np.pad(mask, 1).astype(float)
    theirs = [ring[:-1] - 1 for ring in find_contours(padded, 0.5, fully_connected="low")]
    ours = contours(mask)
    assert len(ours) == len(theirs)
    assert sorted(ring.area for ring in ours) == pytest.approx(sorted(abs(signed_area(r)) for r in theirs))
    corners = {tuple(p) for ring in theirs for p in ring}
    assert {tuple(p) for ring in ours for p in ring.points} <= corners


@FEW
@given(masks)
def test_rings_are_components_and_holes_and_know_each_other(mask):
    parts, count = ndimage.label(mask)
    spaces = ndimage.label(~np.pad(mask, 1), structure=np.ones((3, 3)))[1]
    found = contours(mask)
    assert sum(not ring.hole for ring in found) == count
    assert sum(ring.hole for ring in found) == spaces - 1
    whole = {}
    for k, ring in enumerate(found):
        assert (signed_area(ring.points) < 0) == ring.hole
        assert (ring.parent < 0) == (not ring.hole)
        assert ring.parent < k
        family = ring.parent if ring.hole else k
        whole[family] = whole.get(family, 0) + signed_area(ring.points)
        # Every point lies half-way between a pixel of the component and one outside it.
        near = {parts[tuple(p)] for q in ring.points for p in (np.floor(q).astype(int), np.ceil(q).astype(int))
                if (p >= 0).all() and (p < mask.shape).all()}  # fmt: skip
        assert near - {0} == {parts[tuple(component_of(found[family], mask))]}
    assert all(area > 0 for area in whole.values())


def component_of(ring, mask):
    """A pixel of the mask next to the first point of an outer ring."""
    point = ring.points[0]
    for place in (np.floor(point).astype(int), np.ceil(point).astype(int)):
        if (place >= 0).all() and (place < mask.shape).all() and mask[tuple(place)]:
            return place
    raise LookupError(point)


@FEW
@given(masks)
def test_flips_and_turns_change_nothing(mask):
    def measures(rings):
        return sorted((ring.hole, ring.area) for ring in rings)

    expected = measures(contours(mask))
    for other in (mask[::-1], mask[:, ::-1], mask.T, np.rot90(mask)):
        assert measures(contours(other)) == expected


def test_a_pixel_a_square_and_corners_that_touch():
    (one,) = contours(np.ones((1, 1), bool))
    assert one.area == 0.5
    assert one.slice_index is None
    (square,) = contours(np.ones((3, 4), bool))
    assert square.area == pytest.approx(12 - 4 * 0.125)
    assert len(square.points) == 8
    assert len(contours(np.eye(4, dtype=int))) == 4
    ring, hole = contours(np.pad(np.ones((3, 3), int), 1) - np.pad(np.ones((1, 1), int), 2))
    assert (ring.hole, hole.hole, hole.parent) == (False, True, 0)
    assert hole.area == 0.5


def test_touching_labels_share_their_edge_and_do_not_overlap():
    labels = np.zeros((6, 8), int)
    labels[1:5, 1:4], labels[1:5, 4:7] = 3, 9
    three, nine = contours(labels)
    assert (three.label, nine.label) == (3, 9)
    assert three.points[:, 1].max() == nine.points[:, 1].min() == 3.5
    np.testing.assert_array_equal(fill([three, nine], labels.shape), labels)


def test_points_of_a_volume_go_to_the_patient():
    volume = np.zeros((3, 5, 6), np.uint8)
    volume[2, 1:4, 2:5] = 7
    affine = np.array([[0, 0.2, 0.5, 10], [0, 0.7, -0.2, 20], [3, 0, 0, -30], [0, 0, 0, 1.0]])
    grid = Grid(volume.shape, affine)
    (ring,) = contours(volume)
    assert ring.slice_index == 2
    assert (ring.points[:, 0] == 2).all()
    np.testing.assert_allclose(grid.to_index(ring.to_patient(grid)), ring.points, atol=1e-12)


def test_empty_and_bad_input():
    assert contours(np.zeros((4, 4), int)) == []
    assert contours(np.zeros((0, 4), int)) == []
    assert contours(np.ones((4, 4), np.uint8), 300) == []
    assert fill([], (3, 3)).sum() == 0
    with pytest.raises(ValueError, match="positive"):
        contours(np.ones((2, 2)), 0)
    with pytest.raises(ValueError, match="axes"):
        contours(np.ones(3))
    ring = Contour(1, 5, np.zeros((3, 3)), False, -1)
    with pytest.raises(ValueError, match="slice 5"):
        fill([ring], (2, 2, 2))
    with pytest.raises(ValueError, match="points"):
        fill([ring], (2, 2))
    with pytest.raises(ValueError, match="finite"):
        polygon_mask([np.array([[0, 0], [0, np.nan], [1, 1.0]])], (2, 2))
    with pytest.raises(ValueError, match="spacing"):
        smoothed(contours(disc(5)), (1, 1, 1))
    with pytest.raises(ValueError, match="negative"):
        simplified(contours(disc(5)), tolerance_mm=-1)


@pytest.mark.parametrize("seed", range(20))
def test_polygons_fill_as_matplotlib_does(seed):
    # Random places: no centre lies on an edge, where the two have different rules.
    points = np.random.default_rng(seed).uniform(-5, 25, (9, 2))
    y, x = np.mgrid[:20, :17]
    ours = polygon_mask([points], (20, 17))
    inside = np.zeros(ours.shape, bool)
    for k in range(1, len(points) - 1):  # even-odd of a polygon: exclusive or of its fan of triangles
        a, b, c = points[[0, k, k + 1]]
        sides = [
            (end[0] - start[0]) * (x - start[1]) - (end[1] - start[1]) * (y - start[0])
            for start, end in ((a, b), (b, c), (c, a))
        ]
        inside ^= np.logical_and.reduce([side > 0 for side in sides])
        inside ^= np.logical_and.reduce([side < 0 for side in sides])
    np.testing.assert_array_equal(ours, inside)


def test_shared_edges_belong_to_one_polygon():
    """A square cut in two along a line of centres: no pixel twice, none lost."""
    left = np.array([[1, 1], [1, 3], [4, 3], [4, 1.0]])
    right = np.array([[1, 3], [1, 6], [4, 6], [4, 3.0]])
    one, two = polygon_mask([left], (8, 8)), polygon_mask([right], (8, 8))
    assert not (one & two).any()
    expected = np.zeros((8, 8), bool)
    expected[1:4, 1:6] = True
    np.testing.assert_array_equal(one | two, expected)


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_changed_outlines_stay_within_their_bounds(seed, spacing):
    mask = blob(seed)
    rings = contours(mask)
    scale = np.array(spacing or (1, 1))
    least = float(scale.min())
    for out, limit in (
        (smoothed(rings, spacing, max_deviation_mm=0.5 * least), 0.5 * least),
        (simplified(rings, spacing, tolerance_mm=0.4 * least), 0.4 * least),
    ):
        assert [(r.label, r.hole, r.parent) for r in out] == [(r.label, r.hole, r.parent) for r in rings]
        for before, after in zip(rings, out, strict=True):
            a, b = before.points * scale, after.points * scale
            assert to_curve(dense(a), b).max() <= limit + 1e-9
            assert to_curve(dense(b), a).max() <= limit + 1e-9
            assert signed_area(a) * signed_area(b) > 0
        assert crossings(out) == 0
    both = simplified(smoothed(rings, spacing, max_deviation_mm=0.5 * least), spacing, tolerance_mm=0.2 * least)
    assert abs(int(fill(both, mask.shape).sum()) - int(mask.sum())) <= 0.01 * mask.sum()


def crossings(rings):
    """Pairs of edges of one family that properly cross, by brute force."""
    total = 0
    for k, ring in enumerate(rings):
        if ring.hole:
            continue
        family = [ring.points] + [r.points for r in rings if r.parent == k]
        a = np.concatenate(family)
        b = np.concatenate([np.roll(p, -1, axis=0) for p in family])

        def side(p, q, r):
            return np.sign((q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1])
                           - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0]))  # fmt: skip

        p, q, r, s = a[:, None], b[:, None], a[None], b[None]
        total += int(((side(p, q, r) * side(p, q, s) < 0) & (side(r, s, p) * side(r, s, q) < 0)).sum())
    return total


def test_a_disc_keeps_its_area_and_loses_points():
    mask = disc(30)
    (ring,) = contours(mask)
    (smooth,) = smoothed([ring], max_deviation_mm=0.5)
    (small,) = simplified([smooth], tolerance_mm=0.5)
    assert smooth.area == pytest.approx(ring.area, rel=1e-4)
    assert small.area == pytest.approx(ring.area, rel=3e-3)
    assert len(small.points) < 0.4 * len(ring.points)
    length = np.linalg.norm(np.roll(smooth.points, -1, 0) - smooth.points, axis=1).sum()
    assert length == pytest.approx(2 * np.pi * np.sqrt(mask.sum() / np.pi), rel=0.01)


def test_holes_need_their_ring():
    rings = contours(np.pad(np.ones((3, 3), int), 1) - np.pad(np.ones((1, 1), int), 2))
    with pytest.raises(ValueError, match="hole of ring"):
        smoothed(rings[1:])


def test_wide_labels_are_traced_in_one_pass():
    labels = np.arange(1, 10_001, dtype=np.int64).reshape(100, 100).repeat(3, 0).repeat(3, 1) * 10**9
    found = contours(labels)
    assert [ring.label for ring in found] == list(np.arange(1, 10_001) * 10**9)
    assert all(ring.area == pytest.approx(8.5) for ring in found)
