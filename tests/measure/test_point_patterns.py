"""Point patterns against counting, closed formulas and patterns whose functions are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist
from scipy.stats import kstest

from vesalius.measure import spatial
from vesalius.measure.spatial import (
    CORRECTIONS,
    Window,
    clark_evans,
    delaunay_pairs,
    density_map,
    moran,
    nearest_distances,
    randomness_test,
    ripley,
    spatial_summary,
)

FIELD = Window((3.0, 5.0))
RADII = np.linspace(0, 1.4, 15)


def points(number, seed=0, window=FIELD):
    return window.random_points(number, np.random.default_rng(seed))


def masked():
    """A disc and a strip."""
    y, x = np.indices((80, 120))
    return Window((8.0, 12.0), ((y - 39.5) ** 2 + (x - 60) ** 2 < 38**2) | (x < 20))


def thomas(seed, parents=25, children=20, spread=0.1):
    """Clusters of a Gaussian shape around random parents, wrapped at the edges of the field."""
    draw = np.random.default_rng(seed)
    centres = draw.random((draw.poisson(parents), 2)) * FIELD.size
    count = draw.poisson(children, len(centres))
    return (np.repeat(centres, count, axis=0) + draw.normal(0, spread, (count.sum(), 2))) % FIELD.size


def slow_k(places, goal, same, radii, weight):
    """Ripley's K with a function of two points for the weight."""
    total = np.zeros(len(radii))
    for i, one in enumerate(places):
        for j, other in enumerate(goal):
            apart = np.hypot(*(one - other))
            if not (same and i == j) and apart <= radii[-1]:
                total += (apart <= radii) * weight(one, other)
    return total * FIELD.area / (len(places) * (len(goal) - same))


def circle_share(one, other):
    """Full circle over the part in the field, from 4000 places on the circle."""
    turn = (np.arange(4000) + 0.5) / 4000 * 2 * np.pi
    circle = one + np.hypot(*(one - other)) * np.stack([np.sin(turn), np.cos(turn)], axis=1)
    return 1 / np.mean(np.all((circle >= 0) & (circle <= FIELD.size), axis=1))


def overlap_share(one, other):
    dy, dx = np.abs(one - other)
    return 15 / ((3 - dy) * (5 - dx))


@pytest.mark.parametrize(
    ("correction", "weight"),
    [("isotropic", circle_share), ("translation", overlap_share), ("none", lambda one, other: 1.0)],
)
def test_edge_weights_counted_pair_by_pair(correction, weight):
    places, others = points(40), points(25, 1)
    alone = ripley(places, FIELD, RADII, correction=correction)["ripley_k"]
    np.testing.assert_allclose(alone, slow_k(places, places, True, RADII, weight), rtol=2e-4)
    cross = ripley(places, FIELD, RADII, others=others, correction=correction)["ripley_k"]
    np.testing.assert_allclose(cross, slow_k(places, others, False, RADII, weight), rtol=2e-4)


def test_a_full_mask_is_the_rectangle():
    full = Window.of_image((30, 50), (0.1, 0.1), np.ones((30, 50)))
    expected = ripley(points(80), FIELD, RADII, correction="translation")
    for name, column in ripley(points(80), full, RADII).items():
        np.testing.assert_allclose(column, expected[name], rtol=1e-9, err_msg=name)
    assert full.area == pytest.approx(FIELD.area)


@pytest.mark.parametrize("shift", [(0.33, 0.71), (-1.234, 2.345), (2.05, -3.0), (0.0, 0.0)])
def test_the_overlap_of_a_mask_with_its_shift(shift):
    window = masked()
    grid = (np.stack(np.meshgrid(np.arange(800), np.arange(1200), indexing="ij"), -1).reshape(-1, 2) + 0.5) * 0.01
    counted = np.mean(window.contains(grid) & window.contains(grid + shift)) * 96
    assert spatial._overlap(*shift, *window.covariance) == pytest.approx(counted, rel=2e-3)


@pytest.mark.parametrize("window", [FIELD, masked()], ids=["rectangle", "mask"])
@pytest.mark.parametrize("correction", ["isotropic", "translation"])
def test_random_points_have_k_of_a_disc_and_g_of_one(window, correction):
    if window.mask is not None and correction == "isotropic":
        with pytest.raises(ValueError, match="rectangles"):
            ripley(points(9, 0, window), window, correction=correction)
        return
    radii = np.array([0.4, 0.8, 1.2])
    drawn = [ripley(points(80, seed, window), window, radii, correction=correction) for seed in range(200)]
    for name, expected in (("ripley_k", np.pi * radii**2), ("pair_correlation", np.ones(3))):
        found = np.array([one[name] for one in drawn])
        error = found.std(0) / np.sqrt(len(found))
        assert np.all(np.abs(found.mean(0) - expected) < 4 * error), name
        assert np.all(error < 0.03 * expected)


def test_clusters_follow_the_formula_of_thomas():
    radii, spread = np.linspace(0.05, 0.6, 8), 0.1
    found = [ripley(thomas(seed), FIELD, radii) for seed in range(60)]
    k = np.mean([one["ripley_k"] for one in found], axis=0)
    # The intensity of parents is 25 / 15.
    expected = np.pi * radii**2 + (1 - np.exp(-(radii**2) / (4 * spread**2))) / (25 / 15)
    np.testing.assert_allclose(k, expected, rtol=0.08)
    assert np.mean([one["pair_correlation"][1] for one in found]) > 2


def test_a_lattice_has_no_close_pairs_and_four_at_one_step():
    y, x = np.indices((30, 50))
    places = np.stack([y.ravel() + 0.5, x.ravel() + 0.5], axis=1) / 10
    found = ripley(places, FIELD, [0.05, 0.0999, 0.1001, 0.15])
    assert found["ripley_k"][:2].tolist() == [0, 0]
    density = len(places) / 15
    # Pairs straight across an edge have the largest weight: a little above the four and eight of a plane.
    assert found["ripley_k"][2:] * density == pytest.approx([4, 8], rel=0.04)
    assert clark_evans(places, FIELD)["clark_evans"] == pytest.approx(2, rel=0.06)
    assert clark_evans(places, FIELD)["clark_evans_p"] < 1e-6


def test_envelopes_tell_clusters_from_randomness():
    found = randomness_test(thomas(1, 12, 12), FIELD, RADII[1:], simulations=99, seed=4)
    assert found["randomness_p"] == pytest.approx(0.01)
    assert np.all(found["ripley_l"][:4] > found["ripley_l_high"][:4])
    assert np.all(found["ripley_l_low"] <= found["ripley_l_high"])
    again = randomness_test(thomas(1, 12, 12), FIELD, RADII[1:], simulations=99, seed=4)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_p_values_of_random_points_are_uniform():
    drawn = [randomness_test(points(50, seed), FIELD, RADII[1:], simulations=39, seed=seed) for seed in range(100)]
    chances = np.array([one["randomness_p"] for one in drawn])
    assert kstest(chances - np.random.default_rng(0).random(100) / 40, "uniform").pvalue > 0.01
    inside = np.mean(
        [(one["ripley_l"] <= one["ripley_l_high"]) & (one["ripley_l"] >= one["ripley_l_low"]) for one in drawn]
    )
    assert inside == pytest.approx(0.95, abs=0.03)


def test_clark_evans_is_standard_normal_for_random_points():
    drawn = [clark_evans(points(60, seed), FIELD) for seed in range(400)]
    scores = np.array([one["clark_evans_z"] for one in drawn])
    assert abs(scores.mean()) < 0.2
    assert scores.std() == pytest.approx(1, abs=0.12)
    assert np.mean([one["clark_evans_p"] < 0.05 for one in drawn]) < 0.1
    places = thomas(2)
    assert clark_evans(places, FIELD)["clark_evans"] < 0.8
    full = Window(FIELD.size, np.ones((3, 5), dtype=bool))
    simulated = clark_evans(places, full, simulations=99)
    assert simulated["clark_evans"] == pytest.approx(clark_evans(places, FIELD)["clark_evans"], rel=0.02)
    assert simulated["clark_evans_p"] == pytest.approx(0.01)


@given(st.integers(0, 10**6), st.floats(0.01, 100))
@settings(max_examples=25)
def test_lengths_grow_with_the_spacing_and_axes_can_be_swapped(seed, factor):
    places = points(30, seed)
    larger = Window((3 * factor, 5 * factor))
    first, second = ripley(places, FIELD, RADII), ripley(places * factor, larger, RADII * factor * (1 + 1e-12))
    np.testing.assert_allclose(second["ripley_k"], first["ripley_k"] * factor**2, rtol=1e-6)
    swapped = ripley(places[:, ::-1], Window((5.0, 3.0)), RADII)
    for name in first:
        np.testing.assert_allclose(swapped[name], first[name], rtol=1e-9, err_msg=name)
    one, two = spatial_summary(places, FIELD), spatial_summary(places * factor, larger)
    for name, power in (("clark_evans", 0), ("nearest_distance_mean", 1), ("window_area", 2), ("point_density", -2)):
        assert two[name] == pytest.approx(one[name] * factor**power), name


def test_nearest_distances_by_comparing_all():
    places, others = points(50), points(20, 1)
    apart = cdist(places, places)
    np.fill_diagonal(apart, np.inf)
    np.testing.assert_allclose(nearest_distances(places), apart.min(1))
    np.testing.assert_allclose(nearest_distances(places, others), cdist(places, others).min(1))


def test_delaunay_pairs_by_their_number_and_the_nearest():
    places = points(40)
    pairs = delaunay_pairs(places)
    # Of n points, h of them on the hull, a triangulation has 3 n - 3 - h edges.
    assert len(pairs) == 3 * 40 - 3 - len(ConvexHull(places).vertices)
    assert np.all(pairs[:, 0] < pairs[:, 1])
    # Nearest neighbours are always joined.
    near = np.argsort(cdist(places, places) + np.eye(40) * 99, axis=1)[:, 0]
    joined = {tuple(pair) for pair in pairs.tolist()}
    assert all((min(a, b), max(a, b)) in joined for a, b in enumerate(near.tolist()))
    lengths = np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1)
    assert len(delaunay_pairs(places, longest=0.5)) == np.sum(lengths <= 0.5)
    assert delaunay_pairs([[0, 0], [1, 1], [2, 2]]).shape == (0, 2)
    assert delaunay_pairs([]).shape == (0, 2)


@pytest.mark.parametrize("window", [FIELD, masked()], ids=["rectangle", "mask"])
def test_a_density_map_is_flat_for_a_lattice_and_keeps_the_count(window):
    fine = (np.stack(np.meshgrid(np.arange(120), np.arange(200), indexing="ij"), -1).reshape(-1, 2) + 0.5) / 200
    places = fine * 200 / [120, 200] * window.size
    places = places[window.contains(places)]
    shape = (30, 50) if window.mask is None else window.mask.shape
    found = density_map(places, window, shape, bandwidth=window.size[0] / 10)
    expected = 120 * 200 / np.prod(window.size)
    np.testing.assert_allclose(found[np.isfinite(found)], expected, rtol=0.04)
    assert np.isfinite(found).mean() == pytest.approx(window.area / np.prod(window.size))


def test_a_density_map_around_one_point_is_a_gaussian():
    window = Window((200.0, 200.0))
    found = density_map([[100.5, 100.5]], window, (200, 200), bandwidth=8)
    y, x = np.indices((200, 200)) - 100
    expected = np.exp(-(y**2 + x**2) / 128) / (2 * np.pi * 64)
    near = expected > expected.max() / 100
    np.testing.assert_allclose(found[near], expected[near], rtol=0.01)


def test_moran_by_its_double_sum_and_by_shuffling():
    places, draw = points(40), np.random.default_rng(9)
    pairs, values = delaunay_pairs(places), draw.gamma(2, size=40)
    weights = np.zeros((40, 40))
    weights[pairs[:, 0], pairs[:, 1]] = weights[pairs[:, 1], pairs[:, 0]] = 1

    def by_definition(held):
        off = held - held.mean()
        return 40 / weights.sum() * np.sum(weights * np.outer(off, off)) / np.sum(off**2)

    found = moran(values, pairs)
    assert found["point_moran_i"] == pytest.approx(by_definition(values))
    shuffled = np.array([by_definition(draw.permutation(values)) for _ in range(4000)])
    assert found["point_moran_expected"] == pytest.approx(-1 / 39)
    spread = (found["point_moran_i"] - found["point_moran_expected"]) / found["point_moran_z"]
    assert spread == pytest.approx(shuffled.std(), rel=0.05)
    assert moran(values, pairs, permutations=999)["point_moran_p"] == pytest.approx(found["point_moran_p"], abs=0.06)
    smooth = moran(places[:, 0], pairs, permutations=99)
    assert smooth["point_moran_i"] > 0.6
    assert smooth["point_moran_p"] == 0.01
    assert np.isnan(moran(np.ones(40), pairs)["point_moran_i"])
    assert np.isnan(moran([], pairs[:0])["point_moran_p"])


def test_too_few_points_give_nan_and_no_error():
    for few in ([], [[1.0, 2.0]]):
        found = spatial_summary(few, FIELD)
        assert found["point_count"] == len(few)
        assert np.isnan(found["clark_evans"])
        assert np.isnan(ripley(few, FIELD)["ripley_k"]).all()
        assert np.isnan(nearest_distances(few)).all()
        assert np.isnan(randomness_test(few, FIELD, simulations=39)["randomness_p"])
    assert np.isnan(ripley([[1, 1]], FIELD, others=[])["ripley_l"]).all()
    for correction in CORRECTIONS:
        corners = ripley([[0, 0], [3, 5], [3, 0], [0, 5], [1, 1], [1, 1]], FIELD, [0.5, 2.99], correction=correction)
        assert all(np.isfinite(column).all() for column in corners.values())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ripley([[4, 1]], FIELD), "1 of 1 points lie outside"),
        (lambda: ripley([[1, 1]], FIELD, [0, 3]), "shorter side"),
        (lambda: ripley([[1, 1]], FIELD, [1, 0.5]), "rising"),
        (lambda: ripley([[1, 1]], FIELD, correction="border"), "correction"),
        (lambda: ripley([[1, 1]], FIELD, bandwidth=-1), "bandwidth"),
        (lambda: ripley([[1, np.nan]], FIELD), "finite"),
        (lambda: randomness_test([[1, 1]], FIELD, simulations=19), "simulations"),
        (lambda: Window((0, 1)), "positive"),
        (lambda: Window((1, 1), np.zeros((2, 2), bool)), "True"),
        (lambda: Window.of_image((3, 3), None, np.ones((2, 2))), "shape"),
        (lambda: moran([1, np.nan], np.zeros((0, 2), int)), "finite"),
        (lambda: density_map([[1, 1]], FIELD, (0, 3)), "positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_every_quantity_is_described():
    held = {one.name for one in spatial.QUANTITIES}
    pairs = delaunay_pairs(points(20))
    returned = {**spatial_summary(points(20), FIELD), **moran(np.arange(20), pairs)}
    returned |= randomness_test(points(20), FIELD, simulations=39)
    assert set(returned) == held
