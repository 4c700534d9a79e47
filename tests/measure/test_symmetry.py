"""Planes of symmetry of bodies that were made symmetric, and asymmetries that were made on purpose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vesalius.core.geometry import Grid, affine_from_axes
from vesalius.measure import symmetry as module
from vesalius.measure.symmetry import (
    Plane,
    asymmetry_index,
    left_axis,
    paired_asymmetry,
    paired_symmetry,
    reflected,
    symmetry,
    symmetry_plane,
)


def body(shape, spacing, normal, centre, *, extra=0.0):
    """Two kidneys-like ellipsoids and a spine, mirror images about the plane through `centre`; sampled exactly."""
    normal = np.array(normal, float) / np.linalg.norm(normal)
    grids = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"), -1)
    here = grids - centre
    away = here @ normal
    rest = here - away[..., None] * normal
    up, back = rest[..., 0], rest[..., 1]
    pair = ((np.abs(away) - 14) / 7) ** 2 + ((up - 2) / 13) ** 2 + ((back + 1 - up * 0.2) / 6) ** 2 <= 1
    spine = (away / 4) ** 2 + ((back - 9) / 4) ** 2 + (up / 18) ** 2 <= 1
    mass = np.linalg.norm(here - (16 * normal + np.array([8.0, 3.0, 0.0])), axis=-1) <= extra
    return pair | spine | mass


@pytest.mark.parametrize("normal", [(0, 0, 1), (0.15, 0, 1), (-0.1, 0.2, 1), (0.05, -0.28, 1)])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (2.0, 0.9, 0.8)])
def test_known_planes(normal, spacing):
    shape = tuple(int(60 / s) for s in spacing)
    centre = np.array([29.0, 30.0, 31.3])
    mask = body(shape, spacing, normal, centre)
    plane = symmetry_plane(mask, spacing)
    unit = np.array(normal) / np.linalg.norm(normal)
    assert np.degrees(np.arccos(min(plane.normal @ unit, 1))) < 0.8
    assert plane.normal @ centre == pytest.approx(plane.offset, abs=0.35)
    values = symmetry(mask, spacing)
    assert values["symmetry_dice"] > 0.93
    assert values["symmetry_distance"] < 0.5 * max(spacing)
    assert values["symmetry_tilt"] == pytest.approx(np.degrees(np.arccos(unit[2])), abs=0.8)
    assert abs(values["side_asymmetry"]) < 0.04


def test_a_mass_on_one_side_does_not_pull_the_plane():
    centre = np.array([29.0, 30.0, 30.0])
    plain = body((60, 60, 60), (1, 1, 1), (0, 0.1, 1), centre)
    mask = body((60, 60, 60), (1, 1, 1), (0, 0.1, 1), centre, extra=8.0)
    unit = np.array([0, 0.1, 1]) / np.linalg.norm([0, 0.1, 1])
    plane = symmetry_plane(mask)
    assert np.degrees(np.arccos(min(plane.normal @ unit, 1))) < 1.5
    assert plane.normal @ centre == pytest.approx(plane.offset, abs=0.8)
    whole, odd = symmetry(plain), symmetry(mask)
    extra = mask.sum() - plain.sum()
    assert odd["symmetry_dice"] < whole["symmetry_dice"] - 0.02
    assert odd["side_asymmetry"] == pytest.approx(2 * extra / mask.sum(), abs=0.05)
    mirrored = symmetry(mask[:, :, ::-1])
    assert mirrored["side_asymmetry"] == pytest.approx(-odd["side_asymmetry"], abs=0.02)


def test_a_symmetric_array_is_perfectly_symmetric():
    rng = np.random.default_rng(0)
    half = ndimage.gaussian_filter(rng.normal(size=(30, 32, 20)), 3) > 0
    half[0] = half[-1] = half[:, 0] = half[:, -1] = half[:, :, 0] = False
    for mask in (np.concatenate([half, half[:, :, ::-1]], 2), np.concatenate([half, half[:, :, -2::-1]], 2)):
        middle = (mask.shape[2] - 1) / 2
        values = symmetry(mask, plane=Plane(np.array([0.0, 0.0, 1.0]), middle))
        assert values["symmetry_dice"] == 1
        assert values["symmetry_distance"] == 0
        assert values["side_asymmetry"] == 0
        found = symmetry(mask)
        assert found["symmetry_dice"] > 0.98


@pytest.mark.parametrize("degrees", [-10, 0, 6])
def test_two_lungs_on_a_film(degrees):
    y, x = np.mgrid[:160, :200].astype(float)
    turn = np.radians(degrees)
    across = (x - 103) * np.cos(turn) + (y - 80) * np.sin(turn)
    along = -(x - 103) * np.sin(turn) + (y - 80) * np.cos(turn)
    right = ((across + 40) / 26) ** 2 + (along / 55) ** 2 <= 1
    left = ((across - 40) / 26) ** 2 + (along / 55) ** 2 <= 1
    plane = symmetry_plane(left | right, (0.5, 0.5))
    assert np.degrees(np.arctan2(plane.normal[0], plane.normal[1])) == pytest.approx(degrees, abs=0.6)
    small = left & (along < 30)  # an effusion on the left
    labels = right + 2 * small
    table = paired_symmetry(labels, [(2, 1), (2, 9), (8, 9)], plane=Plane(plane.normal, 2 * plane.offset))
    true = (small.sum() - right.sum()) / ((small.sum() + right.sum()) / 2)
    assert table["asymmetry_index"][0] == pytest.approx(true)
    assert table["pair_dice"][0] == pytest.approx(2 * small.sum() / (small.sum() + right.sum()), abs=0.02)
    assert table["asymmetry_index"][1] == 2
    assert table["pair_dice"][1] == 0
    assert np.isnan(table["pair_dice"][2])
    assert symmetry(labels > 0)["side_asymmetry"] < 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(6, 14))
def test_reflections_against_scipy(seed, first, second, offset):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(14, 15, 16)), 2) > 0.02
    spacing = np.array([2.0, 1.0, 0.7])
    normal = np.array([first, second, 1.0])
    normal /= np.linalg.norm(normal)
    turn = np.eye(3) - 2 * np.outer(normal, normal)
    matrix = turn * spacing / spacing[:, None]
    soft = ndimage.affine_transform(mask.astype(float), matrix, 2 * offset * normal / spacing, order=1, cval=0.0)
    found = reflected(mask, Plane(normal, offset), spacing)
    clear = np.abs(soft - 0.5) > 1e-6
    # Between the outer voxel centres and the edge scipy fades to nothing; here the picture reaches to the edge.
    places = np.moveaxis(np.indices(mask.shape), 0, -1) @ matrix.T + 2 * offset * normal / spacing
    # Rounding decides on which side of the edge a point on it lies.
    clear &= ((places > 1e-6) & (places < np.array(mask.shape) - 1 - 1e-6)).all(-1)
    np.testing.assert_array_equal(found[clear], (soft > 0.5)[clear])


def test_the_left_of_a_grid():
    axes = affine_from_axes((0, 0, 0), np.eye(3)[::-1], (3, 2, 1))  # rows z, y, x along S, P, L
    np.testing.assert_allclose(left_axis(Grid((4, 5, 6), affine=axes)), [0, 0, 1])
    flipped = affine_from_axes((0, 0, 0), np.eye(3)[::-1] * [[1], [1], [-1]], (3, 2, 1))
    np.testing.assert_allclose(left_axis(Grid((4, 5, 6), affine=flipped)), [0, 0, -1])
    sagittal = affine_from_axes((0, 0, 0), np.eye(3), (3, 2, 1))
    np.testing.assert_allclose(left_axis(Grid((4, 5, 6), affine=sagittal)), [1, 0, 0])
    with pytest.raises(ValueError, match="left"):
        left_axis(Grid((5, 6), affine=sagittal))
    with pytest.raises(ValueError, match="position"):
        left_axis(Grid((5, 6)))
    mask = body((50, 50, 50), (1, 1, 1), (0, 0, 1), (25, 25, 25), extra=7)
    one = symmetry(mask, left=left_axis(Grid(mask.shape, affine=axes)))
    other = symmetry(mask[:, :, ::-1], left=left_axis(Grid(mask.shape, affine=flipped)))
    assert one["side_asymmetry"] == pytest.approx(other["side_asymmetry"], abs=0.02)
    assert one["side_asymmetry"] > 0


def test_indices_of_tables():
    table = {"volume": [10.0, 30.0, 5.0], "area": [1.0, 1.0, 0.0]}
    found = paired_asymmetry(table, [2, 4, 6], [(4, 2), (2, 6), (2, 8)])
    np.testing.assert_allclose(found["volume"], [1.0, 2 / 3, np.nan])
    np.testing.assert_allclose(found["area"], [0.0, 2.0, np.nan])
    assert found["left"].tolist() == [4, 2, 2]
    assert paired_asymmetry(table, [2, 4, 6], [])["volume"].shape == (0,)
    assert np.isnan(asymmetry_index(0, 0))
    np.testing.assert_allclose(asymmetry_index([1, 3], [3, 1]), [-1, 1])


def test_empty_and_described():
    empty = np.zeros((4, 5, 6))
    assert np.isnan(list(symmetry(empty).values())).all()
    with pytest.raises(ValueError, match="empty"):
        symmetry_plane(empty)
    single = empty.copy()
    single[2, 2, 3] = 1
    values = symmetry(single)
    assert values["symmetry_dice"] > 0
    known = {quantity.name for quantity in module.QUANTITIES}
    table = paired_symmetry(np.ones((3, 4), int), [(1, 2)])
    assert {*values, *table} - {"left", "right"} == known


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: symmetry_plane(np.ones((3, 3)), left=2), "left"),
        (lambda: symmetry_plane(np.ones((3, 3)), left=(0, 0)), "left"),
        (lambda: symmetry_plane(np.ones(3)), "axes"),
        (lambda: reflected(np.ones((3, 3)), Plane(np.ones(3), 0.0)), "dimensions"),
        (lambda: paired_asymmetry({"volume": [1.0]}, [1, 2], [(1, 2)]), "volume"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()
