"""Thickness of slabs, shells, tubes and balls against what they were made with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vesalius.measure import thickness as module
from vesalius.measure.thickness import local_thickness, thickness_summary, wall_thickness

GRID = np.mgrid[-26:27, -26:27, -26:27].astype(float)
CENTRE = (0.3, 0.1, 0.45)
OBLIQUE = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)


def far(spacing=(1, 1, 1)):
    return np.sqrt(sum(((g - c) * s) ** 2 for g, c, s in zip(GRID, CENTRE, spacing, strict=True)))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_are_exact(count, axis):
    spacing = (2.0, 1.0, 0.7)
    mask = np.zeros((16, 17, 18), bool)
    here = [slice(None)] * 3
    here[axis] = slice(4, 4 + count)
    mask[tuple(here)] = True
    found = local_thickness(mask, spacing)
    np.testing.assert_allclose(found[mask], count * spacing[axis], rtol=1e-6)
    assert (found[~mask] == 0).all()
    inner = np.zeros_like(mask)
    here[axis] = slice(0, 4)
    inner[tuple(here)] = True
    wall = wall_thickness(mask, inner, spacing)
    np.testing.assert_allclose(wall[mask], count * spacing[axis], rtol=2e-4)
    assert np.isnan(wall[~mask]).all()


@pytest.mark.parametrize("width", [3.0, 4.3, 6.0, 9.5])
def test_oblique_slabs(width):
    away = np.tensordot(OBLIQUE, GRID, 1)
    mask, core = np.abs(away - 0.2) <= width / 2, far() < 18
    found = local_thickness(mask)[mask & core]
    np.testing.assert_allclose(found, width, atol=0.4)
    inner, outer = away - 0.2 < -width / 2, away - 0.2 > width / 2
    wall = wall_thickness(mask, inner, outer=outer)[mask & core & (np.abs(GRID) < 15).all(0)]
    # The slab that voxels can show is made of layers 1 / sqrt(14) apart.
    layers = np.floor((0.2 + width / 2) * np.sqrt(14)) - np.ceil((0.2 - width / 2) * np.sqrt(14)) + 1
    assert wall.mean() == pytest.approx(layers / np.sqrt(14), abs=0.15)
    np.testing.assert_allclose(wall, width, atol=0.7)


@pytest.mark.parametrize(("low", "high"), [(10, 14), (15, 21), (14, 17)])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1.5, 1, 0.9)])
def test_shells(low, high, spacing):
    away = far(spacing)
    mask, inner = (away > low) & (away <= high), away <= low
    found = local_thickness(mask, spacing)[mask]
    assert found.mean() == pytest.approx(high - low, abs=0.2)
    assert np.abs(found - (high - low)).max() < 1.1 * max(spacing)
    wall = wall_thickness(mask, inner, spacing)[mask]
    assert wall.mean() == pytest.approx(high - low, abs=0.1)
    assert np.abs(wall - (high - low)).max() < 0.8 * max(spacing)


@pytest.mark.parametrize("radius", [3.0, 6.4, 10.0])
def test_tubes_are_at_most_a_voxel_too_thin(radius):
    along = np.tensordot(OBLIQUE, GRID, 1)
    across = np.sqrt(np.maximum((GRID**2).sum(0) - along**2, 0))
    core = far() < 18
    for mask in (np.hypot(GRID[1] - 0.3, GRID[2] - 0.2) <= radius, across <= radius):
        found = local_thickness(mask)[mask & core]
        assert np.median(found) - 2 * radius > -1.1
        assert found.min() - 2 * radius > -1.5
        assert found.max() - 2 * radius < 0.3
    ball = far() <= radius
    found = local_thickness(ball)[ball]
    assert -1.4 < np.median(found) - 2 * radius < 0.3
    flat = local_thickness(np.hypot(GRID[1, 0] - 0.3, GRID[2, 0] - 0.2) <= radius)
    assert -1.2 < np.median(flat[flat > 0]) - 2 * radius < 0.3


def test_a_thick_and_a_thin_part_keep_their_own():
    mask = np.zeros((20, 40, 60), bool)
    mask[8:11, :, :30] = True
    mask[4:16, :, 40:] = True
    found = local_thickness(mask)
    assert (found[8:11, :, :30] == 3).all()
    assert (found[4:16, 8:32, 46:] == 12).all()


def test_each_voxel_gets_the_largest_ball_by_brute_force():
    """Against every ball around every voxel, centres and background voxels only: within a voxel's diagonal."""
    rng = np.random.default_rng(5)
    mask = ndimage.gaussian_filter(rng.normal(size=(26, 26, 26)), 2.5) > 0.02
    mask[[0, -1]] = mask[:, [0, -1]] = mask[:, :, [0, -1]] = False
    radius = ndimage.distance_transform_edt(mask)
    best = np.zeros(mask.shape)
    grid = np.argwhere(mask)
    values = radius[mask]
    for centre, size in sorted(zip(map(tuple, grid), values, strict=True), key=lambda one: one[1]):
        close = ((grid - centre) ** 2).sum(1) < size**2
        best[tuple(grid[close].T)] = 2 * size
    found = local_thickness(mask)[mask]
    assert np.abs(found - (best[mask] - 0.5)).mean() < 0.7
    assert np.corrcoef(found, best[mask])[0, 1] > 0.9


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(3)), st.booleans())
def test_axes_may_be_turned_and_flipped(seed, order, flip):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(12, 14, 16)), 2) > 0
    spacing = np.array([1.5, 1.0, 0.8])
    turned = np.transpose(mask, order)
    found = np.transpose(local_thickness(mask, spacing), order)
    other = local_thickness(turned[::-1] if flip else turned, spacing[order])
    # Of equally near boundary faces only some are looked at, which may differ.
    apart = np.abs((other[::-1] if flip else other) - found)
    assert apart.mean() < 0.02
    assert (apart > 0.3).mean() < 0.01
    np.testing.assert_allclose(local_thickness(mask, 2 * spacing), 2 * local_thickness(mask, spacing), rtol=1e-4)


def test_turned_walls():
    away = far()
    mask, inner = (away > 8) & (away <= 13), away <= 8
    found = wall_thickness(mask, inner, (1, 2, 1.5))
    turned = wall_thickness(mask.transpose(2, 0, 1)[:, ::-1], inner.transpose(2, 0, 1)[:, ::-1], (1.5, 1, 2))
    np.testing.assert_allclose(turned, found.transpose(2, 0, 1)[:, ::-1], rtol=2e-3)
    np.testing.assert_allclose(wall_thickness(mask, inner, (2, 4, 3)), 2 * found, rtol=1e-4)


def test_streamlines_follow_a_wall_of_changing_width():
    # A wedge between two planes: streamlines are arcs around the edge, of length radius times angle.
    y, x = np.mgrid[:80, :80] + 0.5
    turn, radius = np.arctan2(y, x), np.hypot(y, x)
    reach = (radius > 25) & (radius < 70)
    wall = reach & (turn > 0.4) & (turn < 1.0)
    found = wall_thickness(wall, reach & (turn <= 0.4), outer=reach & (turn >= 1.0))
    middle = wall & (radius > 30) & (radius < 65)
    np.testing.assert_allclose(found[middle], 0.6 * radius[middle], rtol=0.05, atol=0.7)


def test_what_does_not_reach_both_sides_is_undefined():
    wall = np.zeros((10, 20), bool)
    inner = np.zeros_like(wall)
    wall[3:6, 2:8], inner[0:3, 2:8] = True, True
    wall[3:6, 12:16] = True  # a piece without an inner side
    found = wall_thickness(wall, inner)
    assert np.isfinite(found[3:6, 2:8]).all()
    assert np.isnan(found[3:6, 12:16]).all()
    closed = wall_thickness(wall, inner, outer=np.zeros_like(wall))
    assert np.isnan(closed).all()


def test_empty_full_and_cut():
    assert (local_thickness(np.zeros((3, 4, 5))) == 0).all()
    assert np.isinf(local_thickness(np.ones((3, 4)))).all()
    assert np.isnan(wall_thickness(np.zeros((3, 4)), np.ones((3, 4)))).all()
    cut = np.zeros((9, 9, 9), bool)
    cut[:, :, :3] = True  # the slab goes on beyond the edge: 3 is its half, as far as one can see
    assert local_thickness(cut).max() == pytest.approx(6)
    single = np.zeros((5, 5, 5), bool)
    single[2, 2, 2] = True
    assert 0.9 < local_thickness(single)[2, 2, 2] <= 1.5


def test_summary_against_numpy():
    values = np.random.default_rng(0).gamma(3, size=(5, 6))
    values[0, 0], values[0, 1] = 0, np.nan
    kept = values[np.isfinite(values) & (values > 0)]
    found = thickness_summary(values)
    assert list(found) == [quantity.name for quantity in module.QUANTITIES]
    assert found["thickness_mean"] == pytest.approx(kept.mean())
    assert found["thickness_sd"] == pytest.approx(kept.std(ddof=1))
    assert found["thickness_p95"] == pytest.approx(np.percentile(kept, 95))
    assert np.isnan(list(thickness_summary(np.zeros(3)).values())).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: local_thickness(np.zeros(3)), "axes"),
        (lambda: local_thickness(np.zeros((3, 3)), (1, -1)), "spacing"),
        (lambda: wall_thickness(np.zeros((3, 3)), np.zeros((3, 4))), "inner"),
        (lambda: wall_thickness(np.zeros((3, 3)), np.zeros((3, 3)), outer=np.zeros((4, 3))), "outer"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()
