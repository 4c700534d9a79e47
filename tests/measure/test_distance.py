"""The distance transform against scipy's, the closed answer and its own symmetries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from vesalius.measure import distance, surface_search
from vesalius.measure.distance import distance_field, distances_at

CASES = [
    ((9, 12, 14), (2.5, 0.7, 0.9)),
    ((5, 6, 150), (1.0, 1.0, 1.0)),
    ((30, 4, 7), (0.1, 3.0, 0.4)),
    ((1, 9, 70), (1.0, 2.0, 1.0)),
    ((40, 33), (1.3, 0.6)),
    ((1, 5), (1.0, 1.0)),
]


def scattered(shape, part, seed=0):
    return np.random.default_rng(seed).random(shape) < part


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.parametrize("part", [0.002, 0.05, 0.5, 1.0])
def test_the_field_is_that_of_scipy(shape, spacing, part):
    points = scattered(shape, part)
    points.flat[points.size // 3] = True
    expected = distance_transform_edt(~points, sampling=spacing)
    np.testing.assert_allclose(distance_field(points, spacing, dtype=np.float64), expected, rtol=1e-14, atol=1e-14)
    single = distance_field(points, spacing)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=4e-7)
    np.testing.assert_array_equal(distance_field(points, spacing, workers=1), single)


def test_without_spacing_steps_are_ones_and_any_number_but_0_is_set():
    points = scattered((7, 8, 9), 0.05).astype(np.float32) * -3.5
    np.testing.assert_allclose(distance_field(points), distance_transform_edt(points == 0), rtol=4e-7)


def test_a_limit_keeps_what_lies_within_it():
    points = scattered((20, 21, 22), 0.002)
    expected = distance_transform_edt(~points)
    found = distance_field(points, limit=3.0)
    assert (expected == 3).any()
    np.testing.assert_allclose(found, np.where(expected <= 3, expected, np.inf), rtol=4e-7)


def test_nothing_set_is_infinitely_far():
    empty = np.zeros((3, 4, 5), dtype=bool)
    assert np.isinf(distance_field(empty)).all()
    assert np.isinf(distances_at(empty, ~empty)).all()
    assert distances_at(~empty, empty).shape == (0,)
    assert distance_field(np.zeros((0, 4))).shape == (0, 4)


def test_bad_arguments_are_refused():
    points = np.ones((3, 4), dtype=bool)
    for spacing in [(1.0,), (1.0, 0.0), (1.0, np.nan)]:
        with pytest.raises(ValueError, match="spacing"):
            distance_field(points, spacing)
    with pytest.raises(ValueError, match="axes"):
        distance_field(np.ones(3))
    with pytest.raises(ValueError, match="limit"):
        distance_field(points, limit=-1.0)
    with pytest.raises(ValueError, match="dtype"):
        distance_field(points, dtype=np.float16)
    with pytest.raises(ValueError, match="one shape"):
        distances_at(points, points[:2])


@pytest.mark.parametrize("brick_work", [0, 120, 1e12], ids=["bricks", "mixed", "planes"])
@pytest.mark.parametrize(("shape", "spacing"), [*CASES, ((40, 41, 130), (1.0, 0.8, 0.8)), ((60, 7, 60), (5, 0.5, 2))])
@pytest.mark.parametrize("part", [0.0002, 0.01, 0.3])
def test_distances_at_some_voxels_are_those_of_the_field(monkeypatch, brick_work, shape, spacing, part):
    monkeypatch.setattr(distance, "_BRICK_WORK", brick_work)
    points, queries = scattered(shape, part), scattered(shape, 0.1, seed=1)
    points.flat[-1] = True
    expected = distance_transform_edt(~points, sampling=spacing)[queries]
    np.testing.assert_allclose(distances_at(points, queries, spacing), expected, rtol=1e-14, atol=1e-14)


def test_every_way_to_search_is_walked(monkeypatch):
    """Far queries in long rows: so many misses that most are passed on untried, in bricks and then in planes."""
    points = np.zeros((40, 90, 300), dtype=bool)
    points[3, 4, 5] = points[20, 80, 290] = True
    queries = scattered(points.shape, 0.05)
    expected = distance_transform_edt(~points)[queries]
    for work in (0, 1e12):
        monkeypatch.setattr(distance, "_BRICK_WORK", work)
        np.testing.assert_allclose(distances_at(points, queries), expected, rtol=1e-14)
    monkeypatch.setattr(surface_search, "_AROUND", 1)
    monkeypatch.setattr(distance, "_BRICK_WORK", 0)
    np.testing.assert_allclose(distances_at(points, queries), expected, rtol=1e-14)


def test_a_dense_set_of_nearly_equal_distances():
    """From the middle of a sphere everything is equally far."""
    z, y, x = np.ogrid[-30:31, -30:31, -30:31]
    square = z * z + y * y + x * x
    shell = (square >= 28 * 28) & (square < 29 * 29)
    middle = square < 9
    expected = distance_transform_edt(~shell)[middle]
    np.testing.assert_allclose(distances_at(shell, middle), expected, rtol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 80)),
    steps=st.tuples(*[st.sampled_from([0.3, 0.7, 1.0, 2.5, 6.0])] * 3),
    part=st.sampled_from([0.003, 0.05, 0.4]),
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
)
def test_turning_the_array_turns_the_answer(seed, sides, steps, part, order, flips):
    points = scattered(sides, part, seed)
    points.flat[seed % points.size] = True
    field = distance_field(points, steps, dtype=np.float64)
    there = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    turned = np.transpose(points, order)[there]
    new = distance_field(turned, [steps[k] for k in order], dtype=np.float64)
    np.testing.assert_allclose(new, np.transpose(field, order)[there], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(distance_field(points, np.multiply(steps, 3), dtype=np.float64), 3 * field, rtol=1e-13)
    every = np.ones(sides, dtype=bool)
    np.testing.assert_allclose(distances_at(points, every, steps), field.ravel(), rtol=1e-13, atol=1e-13)
