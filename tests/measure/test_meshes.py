"""Meshes against scikit-image, closed formulas and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.measure import euler_number, marching_cubes, mesh_surface_area

from vesalius.core.geometry import Grid
from vesalius.measure.mesh_distance import QUANTITIES as DISTANCES
from vesalius.measure.mesh_distance import deviation, distances, triangle_tree
from vesalius.measure.mesh_smoothing import simplify, smooth
from vesalius.measure.meshes import QUANTITIES, Mesh, edges, measured, mesh_of, meshes_of

FEW = settings(max_examples=40)
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7))
ANISOTROPIC = (2.5, 0.8, 0.7)


def ellipsoid(shape=(40, 44, 48), radii=(12, 15, 18), spacing=(1, 1, 1)):
    """Half axes in mm."""
    place = np.ogrid[tuple(slice(n) for n in shape)]
    terms = [((p - n / 2 + 0.2) * s / r) ** 2 for p, n, s, r in zip(place, shape, spacing, radii, strict=True)]
    return sum(terms) < 1


def lumpy(seed=0, side=36, smooth_by=4.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side,) * 3), smooth_by)
    return np.pad(noise > np.quantile(noise, 0.7), 2)


def box_mesh(low=(0, 0, 0), high=(1, 1, 1)):
    corners = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)]) * np.subtract(high, low) + low
    faces = [[0, 2, 3], [0, 3, 1], [4, 5, 7], [4, 7, 6], [0, 1, 5], [0, 5, 4],
             [2, 6, 7], [2, 7, 3], [0, 4, 6], [0, 6, 2], [1, 3, 7], [1, 7, 5]]  # fmt: skip
    return Mesh(corners, np.array(faces))


@FEW
@given(masks)
def test_any_mask_has_a_closed_outward_surface_of_the_right_topology(mask):
    found = measured(mesh_of(mask))
    assert set(found) == {quantity.name for quantity in QUANTITIES}
    if not mask.any():
        assert found["mesh_volume"] == found["mesh_area"] == found["mesh_components"] == 0
        return
    assert found["mesh_watertight"] == 1
    assert found["mesh_volume"] > 0
    # The Euler number of a surface is twice that of the solid it bounds. Where all but two opposite corners of a cell
    # are inside, scikit-image takes the two for connected, which makes a handle; here they are apart.
    solid = euler_number(np.pad(mask, 1), connectivity=1) + opposite_corners(mask)
    assert found["mesh_euler_number"] == 2 * solid
    parts = ndimage.label(mask)[1]
    cavities = ndimage.label(~np.pad(mask, 1), structure=ndimage.generate_binary_structure(3, 2))[1] - 1
    assert found["mesh_components"] == parts + cavities


def opposite_corners(mask):
    """Cells of eight voxels with exactly two outside, which share nothing but a corner."""
    cells = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2)).reshape(-1, 8)
    return sum(int((~cells[:, k] & ~cells[:, 7 - k] & (cells.sum(axis=1) == 6)).sum()) for k in range(4))


@FEW
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(0, 3)))
def test_every_label_gets_the_mesh_of_its_mask(labels):
    found = meshes_of(labels, ANISOTROPIC)
    assert list(found) == [value for value in np.unique(labels) if value]
    for label, mesh in found.items():
        alone = mesh_of(labels == label, ANISOTROPIC)
        np.testing.assert_array_equal(mesh.vertices, alone.vertices)
        np.testing.assert_array_equal(mesh.faces, alone.faces)
        np.testing.assert_array_equal(mesh_of(labels, ANISOTROPIC, label).faces, alone.faces)


@pytest.mark.parametrize("mask", [ellipsoid(), lumpy()], ids=["ellipsoid", "lumpy"])
def test_area_and_volume_are_those_of_scikit_image(mask):
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=ANISOTROPIC)
    mesh = mesh_of(mask, ANISOTROPIC)
    assert len(mesh.vertices) == len(vertices)
    # Where polygons are not flat the tables may cut them in another, equally large way.
    assert mesh.area == pytest.approx(mesh_surface_area(vertices, faces), rel=1e-3)
    theirs = abs(Mesh(vertices, faces).volume)
    assert mesh.volume == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("mirrored", [False, True])
def test_vertices_lie_in_the_patient_and_triangles_face_outwards(mirrored):
    mask = lumpy(1, 16, 2.0)
    affine = np.eye(4)
    turn = Rotation.from_euler("zyx", [20, -35, 70], degrees=True).as_matrix()
    affine[:3, :3] = turn * [2, 0.7, -0.6 if mirrored else 0.6]
    affine[:3, 3] = 100, -200, 1500
    grid = Grid(mask.shape, affine)
    placed, plain = mesh_of(mask, grid), mesh_of(mask)
    expected = grid.to_patient(plain.vertices[:, ::-1])  # without a grid vertices are (x, y, z) indices
    np.testing.assert_allclose(placed.vertices, expected)
    assert placed.volume == pytest.approx(plain.volume * 2 * 0.7 * 0.6)
    normal_end = placed.corners.mean(axis=1) + 0.05 * normals(placed)
    index = np.rint(grid.to_index(normal_end)).astype(int)
    assert placed.is_watertight
    assert plain.volume > 0
    assert index.shape == (len(placed.faces), 3)


def normals(mesh):
    a, b, c = np.moveaxis(mesh.corners, 1, 0)
    across = np.cross(b - a, c - a)
    return across / np.linalg.norm(across, axis=1, keepdims=True)


def test_flips_and_permutations_keep_volume_and_topology():
    mask = lumpy(2, 14, 2.0)
    reference = measured(mesh_of(mask, (1, 2, 3)))
    for other, spacing in (
        (mask[::-1], (1, 2, 3)),
        (mask[:, :, ::-1], (1, 2, 3)),
        (mask.transpose(2, 0, 1), (3, 1, 2)),
    ):
        found = measured(mesh_of(other, spacing))
        for name in ("mesh_vertices", "mesh_triangles", "mesh_euler_number", "mesh_components"):
            assert found[name] == reference[name]
        assert found["mesh_volume"] == pytest.approx(reference["mesh_volume"], rel=5e-3)


def test_a_box_by_hand():
    found = measured(box_mesh((10, 20, 30), (11, 22, 33)))
    assert found["mesh_area"] == pytest.approx(2 * (2 + 3 + 6))
    assert found["mesh_volume"] == pytest.approx(6)
    assert (found["mesh_euler_number"], found["mesh_watertight"]) == (2, 1)
    assert len(edges(box_mesh())) == 18
    lid_off = Mesh(box_mesh().vertices, box_mesh().faces[2:])
    assert not lid_off.is_watertight
    assert np.isnan(measured(lid_off)["mesh_volume"])
    turned = Mesh(box_mesh().vertices, np.concatenate([box_mesh().faces[:1, ::-1], box_mesh().faces[1:]]))
    assert not turned.is_watertight


def test_bad_input():
    with pytest.raises(ValueError, match="volume"):
        mesh_of(np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="spacing"):
        mesh_of(np.ones((3, 3, 3), bool), (1, 1))
    with pytest.raises(ValueError, match="grid"):
        mesh_of(np.ones((3, 3, 3), bool), Grid((3, 3, 4)))
    with pytest.raises(ValueError, match="name vertices"):
        Mesh(np.zeros((3, 3)), np.array([[0, 1, 3]]))
    with pytest.raises(ValueError, match="either"):
        simplify(box_mesh())
    with pytest.raises(ValueError, match="ratio"):
        simplify(box_mesh(), ratio=0)
    with pytest.raises(ValueError, match="negative"):
        smooth(box_mesh(), max_deviation_mm=-1)
    with pytest.raises(ValueError, match="without triangles"):
        triangle_tree(mesh_of(np.zeros((3, 3, 3), bool)))


def test_distances_to_triangles_equal_a_search_by_quadratic_programming():
    """Nearest point of each triangle by its seven regions, solved one by one with least squares."""
    draw = np.random.default_rng(3)
    mesh = Mesh(draw.normal(size=(30, 3)), draw.integers(0, 30, (25, 3)))  # some triangles are lines or points
    points = draw.normal(size=(60, 3)) * 2
    found = distances(points, triangle_tree(mesh))
    expected = np.full(len(points), np.inf)
    for corners in mesh.corners:
        for use in ([0], [1], [2], [0, 1], [1, 2], [0, 2], [0, 1, 2]):
            spread = (corners[use[1:]] - corners[use[0]]).T
            if spread.shape[1]:
                part = np.linalg.lstsq(spread, (points - corners[use[0]]).T, rcond=None)[0]
                ok = (part >= 0).all(axis=0) & (part.sum(axis=0) <= 1)
                foot = corners[use[0]] + (spread @ part).T
            else:
                ok, foot = np.ones(len(points), bool), corners[use]
            expected = np.where(ok, np.minimum(expected, np.linalg.norm(points - foot, axis=1)), expected)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_deviation_of_boxes_is_known():
    small, large = box_mesh((1, 1, 1), (4, 4, 4)), box_mesh((0, 0, 0), (5, 5, 5))
    found = deviation(small, large)
    assert set(found) == {quantity.name for quantity in DISTANCES}
    assert found["mesh_deviation_max"] == pytest.approx(np.sqrt(3))  # a corner of the large box
    back = deviation(large, small)
    assert back == pytest.approx(found)
    same = deviation(small, small)
    assert max(same.values()) < 1e-12
    moved = Mesh(small.vertices + np.array([0.25, 0, 0]), small.faces)
    found = deviation(small, moved, points=200_000)
    assert found["mesh_deviation_max"] == pytest.approx(0.25)
    # Of each box one end stands out by 0.25 and four strips of its sides with it (0.125 on average); the other end lies
    # inside, 0.25 from the end of the other box but less near its sides: 0.25 minus the integral of (12 t - 4 t^2) / 9.
    inner = 0.25 - (6 * 0.25**2 - 4 / 3 * 0.25**3) / 9
    assert found["mesh_deviation_mean"] == pytest.approx((9 * 0.25 + 9 * inner + 3 * 0.125) / 54, rel=1e-3)
    empty = mesh_of(np.zeros((3, 3, 3), bool))
    assert all(np.isnan(value) for value in deviation(small, empty).values())


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2.0, 1.0, 1.0)])
def test_a_smoothed_ball_has_the_area_of_a_ball(spacing):
    radius = 14.0
    shape = tuple(int(2 * radius / s) + 6 for s in spacing)
    mesh = mesh_of(ellipsoid(shape, (radius,) * 3, spacing), spacing)
    out, found = smooth(mesh, iterations=20, max_deviation_mm=0.5 * max(spacing))
    assert found["mesh_deviation_max"] <= 0.5 * max(spacing) + 1e-9
    assert np.linalg.norm(out.vertices - mesh.vertices, axis=1).max() <= 0.5 * max(spacing) + 1e-9
    assert out.volume == pytest.approx(mesh.volume, rel=1e-3)
    assert mesh.area > 1.06 * 4 * np.pi * radius**2
    assert out.area == pytest.approx(4 * np.pi * radius**2, rel=0.02)
    assert out.is_watertight
    _, found = smooth(mesh, max_deviation_mm=0.1)
    assert found["mesh_deviation_max"] <= 0.1 + 1e-9
    assert smooth(mesh, iterations=0)[0] is mesh


def test_reduction_stays_within_its_limit_and_gives_less_for_more():
    mesh, _ = smooth(mesh_of(lumpy(0, 24, 4.0), ANISOTROPIC), max_deviation_mm=0.8)
    sizes = []
    for limit in (0.2, 0.6):
        out, found = simplify(mesh, max_deviation_mm=limit)
        assert found["mesh_deviation_max"] <= limit
        assert found == pytest.approx(deviation(out, mesh), abs=1e-9)
        assert out.is_watertight
        assert out.volume == pytest.approx(mesh.volume, rel=0.01)
        assert out.euler == mesh.euler
        sizes.append(len(out.faces))
    assert len(mesh.faces) > sizes[0] > sizes[1]
    half, found = simplify(mesh, ratio=0.5)
    assert len(half.faces) == pytest.approx(0.5 * len(mesh.faces), rel=0.12)
    assert half.is_watertight
    assert found["mesh_deviation_mean"] > 0
    assert simplify(mesh, max_deviation_mm=0)[0] is mesh
