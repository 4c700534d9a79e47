"""Meshes back to masks: the same mask for a raw mesh, nearly the same for a smoothed and reduced one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial import ConvexHull, Delaunay
from scipy.spatial.transform import Rotation

from vesalius.core.geometry import Grid
from vesalius.measure.contour_smoothing import simplified, smoothed
from vesalius.measure.contours import contours, fill
from vesalius.measure.mesh_smoothing import simplify, smooth
from vesalius.measure.meshes import Mesh, mesh_of, meshes_of
from vesalius.measure.voxelise import Rule, mask_of

FEW = settings(max_examples=30)
labels = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(0, 2))


@st.composite
def affines(draw):
    """Any turn, mirrored or not, sheared, different steps, far from the origin."""
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-180, 180)] * 3)), degrees=True).as_matrix()
    steps = np.array(draw(st.tuples(*[st.floats(0.2, 6)] * 3))) * [draw(st.sampled_from([-1, 1])), 1, 1]
    shear = np.eye(3)
    shear[0, 1] = draw(st.floats(-0.5, 0.5))
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ shear * steps
    matrix[:3, 3] = draw(st.tuples(*[st.floats(-2000, 2000)] * 3))
    return matrix


def sphere(radius, side):
    place = np.ogrid[:side, :side, :side]
    return sum((p - side / 2 + 0.3) ** 2 for p in place) < radius**2


def tube():
    """A bent tube of varying width."""
    out = np.zeros((40, 40, 40), bool)
    z, y, x = np.ogrid[:40, :40, :40]
    for t in np.linspace(0, 1, 60):
        centre = 6 + 28 * t, 20 + 9 * np.sin(4 * t), 20 + 9 * np.cos(5 * t)
        out |= (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < (4 + 1.5 * np.sin(9 * t)) ** 2
    return out


def lumpy(seed=0, side=36):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side,) * 3), 5)
    return np.pad(noise > np.quantile(noise, 0.7), 2)


def ellipsoid():
    place = np.ogrid[:20, :44, :52]
    return sum(((p - n / 2) / r) ** 2 for p, n, r in zip(place, (20, 44, 52), (7.3, 15.2, 20.4), strict=True)) < 1


PHANTOMS = {
    "ball of 6": (sphere(6, 18), (1, 1, 1)),
    "ball of 15": (sphere(15, 36), (1, 1, 1)),
    "ellipsoid": (ellipsoid(), (2.5, 0.9, 0.8)),
    "lumpy organ": (lumpy(), (1, 1, 1)),
    "lumpy organ, thick slices": (lumpy(1)[::3], (3, 1, 1)),
    "tube": (tube(), (1, 1, 1)),
}


def hd95(one, two):
    """95th percentile of the distances between border voxels in voxels, the larger of both ways (scipy's EDT)."""
    borders = [mask & ~ndimage.binary_erosion(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] for mask in (one, two)]
    far = [ndimage.distance_transform_edt(~border) for border in borders]
    return max(np.percentile(far[1][borders[0]], 95), np.percentile(far[0][borders[1]], 95))


@FEW
@given(labels, affines(), st.sampled_from(list(Rule)))
def test_a_raw_mesh_gives_its_mask_back(values, affine, rule):
    grid = Grid(values.shape, affine)
    for where, shape in ((grid, None), (None, values.shape), ((3.0, 0.7, 0.4), values.shape)):
        for label, mesh in meshes_of(values, where).items():
            np.testing.assert_array_equal(mask_of(mesh, where, shape, rule=rule), values == label)


@pytest.mark.parametrize("name", PHANTOMS)
def test_smoothed_and_reduced_meshes_stay_true(name):
    mask, spacing = PHANTOMS[name]
    raw = mesh_of(mask, spacing)
    np.testing.assert_array_equal(mask_of(raw, spacing, mask.shape), mask)
    smoother, _ = smooth(raw, iterations=20, max_deviation_mm=0.5 * min(spacing))
    small, _ = simplify(smoother, max_deviation_mm=0.25 * min(spacing))
    assert len(small.faces) < 0.8 * len(raw.faces)
    assert small.volume == pytest.approx(raw.volume, rel=0.01)
    for mesh in (smoother, small):
        back = mask_of(mesh, spacing, mask.shape)
        assert int(back.sum()) == pytest.approx(int(mask.sum()), rel=0.01)
        assert hd95(back, mask) < 0.6


@pytest.mark.parametrize("name", PHANTOMS)
def test_smoothed_and_reduced_outlines_stay_true(name):
    mask, spacing = PHANTOMS[name]
    rings = contours(mask)
    np.testing.assert_array_equal(fill(rings, mask.shape), mask)
    step = min(spacing[1:])
    out = simplified(smoothed(rings, spacing, max_deviation_mm=0.5 * step), spacing, tolerance_mm=0.25 * step)
    back = fill(out, mask.shape) > 0
    assert int(back.sum()) == pytest.approx(int(mask.sum()), rel=0.01)
    assert hd95(back, mask) < 0.6


@pytest.mark.parametrize("seed", range(6))
def test_a_convex_body_is_filled_as_by_its_simplices(seed):
    draw = np.random.default_rng(seed)
    points = draw.uniform(-2, 14, (20, 3))
    hull = ConvexHull(points)
    faces = hull.simplices.copy()
    corners = points[faces]
    outwards = np.einsum("fi,fi->f", np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]),
                         corners[:, 0] - points.mean(0))  # fmt: skip
    faces[outwards < 0] = faces[outwards < 0][:, ::-1]
    shape = (11, 12, 9)
    centres = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    expected = (Delaunay(points).find_simplex(centres[:, ::-1]) >= 0).reshape(shape)
    for rule in Rule:
        np.testing.assert_array_equal(mask_of(Mesh(points, faces), None, shape, rule=rule), expected)
    # Triangles that share no vertex numbers, in any order, are the same body.
    loose = Mesh(points[faces].reshape(-1, 3), draw.permutation(np.arange(3 * len(faces)).reshape(-1, 3)))
    np.testing.assert_array_equal(mask_of(loose, None, shape), expected)


def cube(low, high):
    corners = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)]) * (high - low) + low
    faces = [[0, 2, 3], [0, 3, 1], [4, 5, 7], [4, 7, 6], [0, 1, 5], [0, 5, 4],
             [2, 6, 7], [2, 7, 3], [0, 4, 6], [0, 6, 2], [1, 3, 7], [1, 7, 5]]  # fmt: skip
    return Mesh(corners, np.array(faces))


def both(one, two):
    return Mesh(
        np.concatenate([one.vertices, two.vertices]), np.concatenate([one.faces, two.faces + len(one.vertices)])
    )


def test_faces_through_centres_belong_to_one_side():
    """Corners, edges and faces on voxel centres: a box owns its lower faces, so boxes in a row own each voxel once."""
    first = mask_of(cube(1, 4), None, (8, 8, 8))
    expected = np.zeros((8, 8, 8), bool)
    expected[1:4, 1:4, 1:4] = True
    np.testing.assert_array_equal(first, expected)
    moved = [Mesh(cube(1, 4).vertices + shift, cube(1, 4).faces) for shift in np.eye(3) * 3]
    for mesh in moved:
        other = mask_of(mesh, None, (8, 8, 8))
        assert other.sum() == 27
        assert not (first & other).any()


def test_an_octahedron_with_its_tips_on_centres():
    tips = np.array([[3, 0, 0], [-3, 0, 0], [0, 3, 0], [0, -3, 0], [0, 0, 3], [0, 0, -3.0]]) + 4
    mesh = Mesh(tips, np.array(ConvexHull(tips).simplices))
    mask = mask_of(mesh, None, (9, 9, 9))
    place = np.abs(np.indices((9, 9, 9)) - 4).sum(0)
    assert mask[place < 3].all()
    assert not mask[place > 3].any()


def test_rules_differ_where_parts_overlap():
    joined = both(cube(0.5, 5.5), cube(3.5, 8.5))
    one, two = (mask_of(mesh, None, (10, 10, 10)) for mesh in (cube(0.5, 5.5), cube(3.5, 8.5)))
    np.testing.assert_array_equal(mask_of(joined, None, (10, 10, 10)), one ^ two)
    np.testing.assert_array_equal(mask_of(joined, None, (10, 10, 10), rule="non-zero"), one | two)


def test_a_mesh_may_reach_out_of_the_grid():
    whole = mask_of(cube(-3.5, 4.5), None, (20, 20, 20))
    np.testing.assert_array_equal(mask_of(cube(-3.5, 4.5), None, (3, 4, 9)), whole[:3, :4, :9])
    assert mask_of(cube(-9, 40), None, (4, 4, 4)).all()
    assert not mask_of(cube(30, 40), None, (4, 4, 4)).any()
    assert not mask_of(cube(-1e30, -1e29), None, (4, 4, 4)).any()
    assert mask_of(cube(-1e30, 1e30), None, (4, 4, 4)).all()


def test_open_meshes_and_bad_input():
    box = cube(0.5, 5.5)
    with pytest.raises(ValueError, match="not closed"):
        mask_of(Mesh(box.vertices, box.faces[:-1]), None, (8, 8, 8))
    with pytest.raises(ValueError, match="three axes"):
        mask_of(box, None)
    with pytest.raises(ValueError, match="three axes"):
        mask_of(box, Grid((5, 5)))
    with pytest.raises(ValueError, match="valid Rule"):
        mask_of(box, None, (8, 8, 8), rule="odd")
    assert not mask_of(Mesh(np.zeros((0, 3)), np.zeros((0, 3), int)), None, (2, 2, 2)).any()
