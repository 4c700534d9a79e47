"""Voxels and millimetres against hand formulas and nibabel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.core.geometry import Grid, affine_from_axes, affine_from_nifti, affine_to_nifti

sides = st.integers(1, 40)
steps = st.floats(0.05, 12.0)
angles = st.floats(-np.pi, np.pi)
places = st.floats(-500.0, 500.0)


def turned(a, b, c):
    """Three orthonormal rows from Euler angles, right handed."""
    ca, sa, cb, sb, cc, sc = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(c), np.sin(c)
    one = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    two = np.array([[1, 0, 0], [0, cb, -sb], [0, sb, cb]])
    three = np.array([[cc, 0, sc], [0, 1, 0], [-sc, 0, cc]])
    return one @ two @ three


@st.composite
def poses(draw):
    """Origin, directions (rows z, y, x) and spacing (z, y, x); some mirrored."""
    directions = turned(draw(angles), draw(angles), draw(angles))
    directions[0] *= draw(st.sampled_from([1.0, -1.0]))
    return np.array([draw(places) for _ in range(3)]), directions, [draw(steps) for _ in range(3)]


@given(poses(), st.tuples(sides, sides, sides), st.randoms(use_true_random=False))
def test_an_index_comes_back_from_the_patient(pose, shape, random):
    grid = Grid(shape, affine_from_axes(*pose))
    index = np.array([[random.uniform(-5, side + 5) for side in shape] for _ in range(4)])
    assert np.allclose(grid.to_index(grid.to_patient(index)), index, atol=1e-6)


@given(poses(), st.tuples(sides, sides), st.randoms(use_true_random=False))
def test_an_index_of_a_slice_comes_back(pose, shape, random):
    origin, directions, spacing = pose
    grid = Grid(shape, affine_from_axes(origin, directions, [1.0, *spacing[1:]]))
    index = np.array([random.uniform(0, side) for side in shape])
    assert np.allclose(grid.to_index(grid.to_patient(index)), index, atol=1e-6)
    assert grid.spacing_mm == pytest.approx(spacing[1:])


@given(poses(), st.tuples(sides, sides, sides))
def test_the_affine_from_axes_walks_along_the_axes(pose, shape):
    origin, (dz, dy, dx), (sz, sy, sx) = pose
    grid = Grid(shape, affine_from_axes(*pose))
    z, y, x = 3.0, -2.0, 7.5
    by_hand = origin + z * sz * dz + y * sy * dy + x * sx * dx
    assert np.allclose(grid.to_patient([z, y, x]), by_hand, atol=1e-9)
    assert grid.spacing_mm == pytest.approx((sz, sy, sx))
    assert grid.voxel_mm3 == pytest.approx(sz * sy * sx)


def test_a_known_axial_ct():
    # Feet to head along z, 512 pixels of 0.7 mm, slices of 2.5 mm: written out by hand.
    affine = affine_from_axes([-179.2, -150.0, -300.0], [[0, 0, 1], [0, 1, 0], [1, 0, 0]], (2.5, 0.7, 0.7))
    assert np.array_equal(affine, [[0, 0, 0.7, -179.2], [0, 0.7, 0, -150.0], [2.5, 0, 0, -300.0], [0, 0, 0, 1]])
    grid = Grid((100, 512, 512), affine)
    assert grid.spacing_mm == pytest.approx((2.5, 0.7, 0.7))
    assert grid.to_patient([10, 20, 30]) == pytest.approx([-179.2 + 21.0, -150.0 + 14.0, -300.0 + 25.0])
    assert grid.to_patient(np.zeros((2, 5, 3))).shape == (2, 5, 3)
    assert grid.voxel_mm3 == pytest.approx(2.5 * 0.7 * 0.7)


def test_a_sheared_grid_has_the_volume_of_the_parallelepiped():
    affine = np.array([[0, 0.3, 1, 5], [0, 2, 0, 6], [4, 0, 0, 7], [0, 0, 0, 1]], dtype=float)
    assert Grid((2, 2, 2), affine).voxel_mm3 == pytest.approx(8.0)


@given(poses())
def test_nifti_conversion_is_its_own_inverse(pose):
    affine = affine_from_axes(*pose)
    assert np.allclose(affine_from_nifti(affine_to_nifti(affine)), affine, atol=1e-9)


def test_corners_lie_where_nibabel_puts_them():
    nib = pytest.importorskip("nibabel")
    ras = np.array([[-1.2, 0.1, 0.3, 90.0], [0.05, 1.1, -0.2, -126.0], [0.2, 0.15, 2.0, -72.0], [0, 0, 0, 1]])
    shape = (9, 8, 7)  # i, j, k
    file = nib.Nifti1Image(np.zeros(shape, np.uint8), ras)
    grid = Grid(shape[::-1], affine_from_nifti(file.affine))
    for i in (0, shape[0] - 1):
        for j in (0, shape[1] - 1):
            for k in (0, shape[2] - 1):
                right, anterior, superior = nib.affines.apply_affine(file.affine, [i, j, k])
                assert grid.to_patient([k, j, i]) == pytest.approx([-right, -anterior, superior])
    assert grid.spacing_mm == pytest.approx(nib.affines.voxel_sizes(file.affine)[::-1])


def test_spacing_without_a_position():
    grid = Grid((10, 20), spacing=(0.2, 0.3))
    assert grid.spacing_mm == (0.2, 0.3)
    assert grid.voxel_mm3 is None
    assert Grid((2, 10, 20), spacing=(5, 0.2, 0.3)).voxel_mm3 == pytest.approx(0.3)
    assert Grid((10, 20)).spacing_mm is None
    assert Grid((3, 10, 20)).voxel_mm3 is None
    for call in (grid.to_patient, Grid((10, 20)).to_patient):
        with pytest.raises(ValueError, match="no position"):
            call([1, 2])
    with pytest.raises(ValueError, match="no position"):
        grid.to_index([1, 2, 3])


def test_same_place():
    base = affine_from_axes([1, 2, 3], np.eye(3), (2, 1, 1))
    grid = Grid((5, 100, 100), base)
    near, far = base.copy(), base.copy()
    near[0, 3] += 5e-4
    far[0, 3] += 5e-3
    assert grid.same_place(Grid((5, 100, 100), near))
    assert not grid.same_place(Grid((5, 100, 100), far))
    assert not grid.same_place(Grid((5, 100, 99), base))
    # A wrong spacing of 1e-4 mm is 1e-2 mm at the far corner: corners decide, not numbers of the matrix.
    stretched = base.copy()
    stretched[:, 2] *= 1 + 1e-4
    assert not grid.same_place(Grid((5, 100, 100), stretched))
    assert grid.same_place(Grid((5, 100, 100), stretched), tolerance_mm=0.05)
    assert not grid.same_place(Grid((5, 100, 100)))
    assert Grid((4, 4)).same_place(Grid((4, 4)))
    assert not Grid((4, 4)).same_place(Grid((4, 4), spacing=(1, 1)))
    assert Grid((4, 4), spacing=(1, 1)).same_place(Grid((4, 4), spacing=(1, 1)))
    assert not Grid((4, 4), spacing=(1, 1)).same_place(Grid((4, 4), spacing=(1, 1.1)))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"shape": (5,)}, "shape"),
        ({"shape": (0, 5)}, "shape"),
        ({"shape": (2, 3, 4, 5)}, "shape"),
        ({"shape": (5, 5), "affine": np.eye(3)}, r"\(4, 4\)"),
        ({"shape": (5, 5), "affine": np.diag([1, 1, 0, 1])}, "singular"),
        ({"shape": (5, 5), "affine": np.diag([1, 1, np.nan, 1])}, "finite"),
        ({"shape": (5, 5), "affine": np.diag([1, 1, 1, 2])}, "last row"),
        ({"shape": (5, 5), "affine": np.eye(4), "spacing": (1, 1)}, "either"),
        ({"shape": (5, 5), "spacing": (1, 0)}, "positive"),
        ({"shape": (5, 5), "spacing": (1, 1, 1)}, "one positive number per axis"),
        ({"shape": (5, 5), "spacing": (1, np.inf)}, "positive"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Grid(**options)


def test_an_affine_is_kept_from_change():
    mine = np.eye(4)
    grid = Grid((3, 3, 3), mine)
    mine[0, 3] = 99
    assert grid.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 3] = 1


def test_an_index_of_wrong_length_is_refused():
    with pytest.raises(ValueError, match="axis of 3"):
        Grid((3, 3, 3), np.eye(4)).to_patient([1, 2])
