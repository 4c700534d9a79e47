"""The graph of tubes drawn here and of phantom trees: counts exact, lengths and radii near the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import euler_number
from tubes import apart, bent_tree, draw, length, mean_radius, moved, straight, unit

from vesalius.measure.vessel_graph import total_length, vessel_graph
from vesalius.phantoms.vessels import make_vessels


def calibre(graph):
    """Mean radius, every mm counting alike."""
    steps = [np.linalg.norm(np.diff(graph.in_mm(one.points), axis=0), axis=1) for one in graph.branches]
    radii = [(one.radius[1:] + one.radius[:-1]) / 2 for one in graph.branches]
    return np.average(np.concatenate(radii), weights=np.concatenate(steps))


def forks(graph):
    return int((graph.degree[graph.degree > 2] - 2).sum())


def agrees(graph, curves, *, bifurcations=0, loops=0, far=0.02, thick=0.05):
    assert forks(graph) == bifurcations
    assert graph.loops == loops
    assert total_length(graph) == pytest.approx(length(curves), rel=far)
    assert calibre(graph) == pytest.approx(mean_radius(curves), rel=thick)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("radius", [1.0, 1.5, 2.2, 3.7, 6.0, 9.0, 15.0])
def test_the_radius_of_a_cylinder_is_unbiased_from_1_to_15_voxels(ndim, radius):
    """Twelve (three) directions and places: each length, and the mean radius, are right."""
    rng = np.random.default_rng(int(10 * radius))
    found = []
    size = max(40, int(2.5 * radius)) if ndim == 3 else max(50, int(5 * radius))
    for _ in range(12 if radius < 9 else 3):
        shape = (int(size + 2 * radius + 8),) * ndim
        curves = straight(np.array(shape) / 2 + rng.uniform(-0.5, 0.5, ndim), rng.normal(size=ndim), size, radius)
        graph = vessel_graph(draw(curves, shape))
        assert len(graph.branches) == 1
        assert total_length(graph) == pytest.approx(size, abs=2.0 if ndim == 3 else 2.6)
        found.append(calibre(graph))
    assert np.mean(found) == pytest.approx(radius, rel=0.025)
    assert np.abs(np.array(found) / radius - 1).max() < (0.12 if radius < 3 else 0.04)


@pytest.mark.parametrize("radius", [4.0, 5.5, 8.0])
@pytest.mark.parametrize("way", [(0, 0, 1), (0.2, 0.5, 1), (1, 1, 1)])
def test_a_flat_end_is_not_taken_for_a_round_one(radius, way):
    shape = (int(50 + 2 * radius),) * 3
    curves = straight(np.array(shape) / 2 + 0.2, way, 40, radius)
    for flat in (False, True):
        graph = vessel_graph(draw(curves, shape, flat=flat))
        assert total_length(graph) == pytest.approx(40, abs=1.0)


def test_a_vessel_that_leaves_the_image_is_measured_to_the_border():
    mask = draw(straight((20.3, 20.2, 20), (0.2, 0, 1), 80, 4.0), (40, 40, 40))
    graph = vessel_graph(mask)
    assert total_length(graph) == pytest.approx(40 * np.hypot(1, 0.2), abs=0.8)
    assert calibre(graph) == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize("radius", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 0.6, 0.6), (2, 1, 1)])
def test_helix(radius, spacing):
    if radius < max(spacing):
        pytest.skip("thinner than a voxel")
    turn = np.linspace(0, 4 * np.pi, 300)
    curves = [(np.stack([10 + 3.9 * turn, 30 + 20 * np.cos(turn), 30.3 + 20 * np.sin(turn)], 1), radius)]
    shape = tuple(int(np.ceil(side / step)) for side, step in zip((70, 61, 61), spacing, strict=True))
    agrees(vessel_graph(draw(curves, shape, spacing), spacing), curves)


@pytest.mark.parametrize("radius", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_ring(ndim, radius):
    turn = np.linspace(0, 2 * np.pi, 400)
    place = [40.3 + 25 * np.cos(turn), 39.8 + 25 * np.sin(turn)]
    curves = [(np.stack(place if ndim == 2 else [20 + 6 * np.sin(2 * turn), *place], 1), radius)]
    graph = vessel_graph(draw(curves, (80, 80) if ndim == 2 else (40, 80, 80)))
    agrees(graph, curves, loops=1, far=0.01)
    assert len(graph.nodes) == 1
    assert graph.degree.tolist() == [2]
    branch = graph.branches[0]
    assert branch.points[0] == pytest.approx(branch.points[-1])


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1.5, 1, 1), (1, 0.8, 1.3)])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("angle", [0.6, 0.9, 1.4])
def test_y_has_one_bifurcation_at_its_place(ndim, spacing, angle):
    spacing = spacing[3 - ndim :]
    turn = angle / 2
    node = np.full(ndim, 40.0)
    node[-1] = 45.3
    ahead, across = np.zeros(ndim), np.zeros(ndim)
    ahead[-1] = across[-2] = 1
    curves = [
        (np.stack([node - 35 * ahead, node]), 4.0),
        (np.stack([node, node + 36 * (np.cos(turn) * ahead + np.sin(turn) * across)]), 3.2),
        (np.stack([node, node + 36 * (np.cos(turn) * ahead - np.sin(turn) * across)]), 3.2),
    ]
    shape = tuple(int(np.ceil(side / step)) for side, step in zip((80, 80, 95)[3 - ndim :], spacing, strict=True))
    graph = vessel_graph(draw(curves, shape, spacing), spacing)
    agrees(graph, curves, bifurcations=1)
    place = graph.in_mm(graph.nodes[graph.degree == 3])[0]
    assert np.linalg.norm(place - node) < 2.0


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("thin", [1.0, 1.5, 2.5])
def test_thin_twigs_of_a_thick_trunk_are_kept(ndim, thin):
    rng = np.random.default_rng(int(10 * thin) + ndim)
    middle = np.full(ndim, 50.0)
    begin, end = middle.copy(), middle.copy()
    begin[-1], end[-1] = 20, 130
    curves = [(np.stack([begin, end]), 7.6)]
    for number, place in enumerate((40, 64, 88, 110)):
        way = np.zeros(ndim)
        way[-2], way[-1] = (-1) ** number, rng.uniform(-0.4, 0.6)
        if ndim == 3:
            way[0] = rng.uniform(-0.5, 0.5)
        root = middle.copy()
        root[-1] = place
        curves.append((np.stack([root, root + unit(way) * (7.6 + rng.uniform(10, 25))]), thin))
    graph = vessel_graph(draw(curves, (100,) * (ndim - 1) + (150,)))
    agrees(graph, curves, bifurcations=4, far=0.03)
    assert (graph.degree == 1).sum() == 6


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("curve", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1.4, 1, 0.8)])
def test_trees_that_bend_and_taper(ndim, curve, spacing):
    spacing = spacing[3 - ndim :]
    done = 0
    for seed in range(80):
        curves, bifurcations = bent_tree(seed, ndim, 4.5, 2, curve)
        curves, shape = moved(curves, spacing)
        if np.prod(shape) > 2e6 or not apart(curves, 3.5):
            continue
        agrees(vessel_graph(draw(curves, shape, spacing), spacing), curves, bifurcations=bifurcations, far=0.03)
        done += 1
        if done == 3:
            break
    assert done


@pytest.mark.parametrize(("ndim", "size"), [(2, 96), (2, 160), (2, 256), (3, 96), (3, 128)])
def test_phantom_trees_of_both_classes(ndim, size):
    for index in range(6 if ndim == 2 else 2):
        one = make_vessels(seed=21, index=index, dims=ndim, size=size)
        graph, truth = vessel_graph(one.mask, (0.5,) * ndim), one.truth
        assert forks(graph) == truth["bifurcations"]
        assert (graph.degree == 1).sum() == truth["ends"]
        assert len(graph.branches) == len(truth["edges"])
        assert total_length(graph) == pytest.approx(truth["length_mm"], rel=0.02)
        ends = truth["nodes_px"][truth["edges"]]
        sizes = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        assert calibre(graph) == pytest.approx(0.5 * np.average(truth["radii_px"], weights=sizes), rel=0.05)
        # Every node of the truth has one near it.
        far = np.linalg.norm(truth["nodes_px"][:, None] - graph.nodes[None], axis=2).min(1)
        assert np.median(far) < 1.0


@pytest.mark.parametrize(("ndim", "spacing"), [(2, (1, 1.5)), (2, (0.5, 0.5)), (3, (1.5, 1, 1)), (3, (1, 1, 1.4))])
def test_resampled_phantoms(ndim, spacing):
    for index in range(2):
        one = make_vessels(seed=5, index=index, dims=ndim, size=160 if ndim == 2 else 128)
        sides = [np.arange(0, side - 1e-9, step) for side, step in zip(one.mask.shape, spacing, strict=True)]
        cover = ndimage.map_coordinates(one.layers["cover"], np.meshgrid(*sides, indexing="ij"), order=1)
        graph = vessel_graph(cover > 0.5, spacing)
        assert forks(graph) == one.truth["bifurcations"]
        assert total_length(graph) == pytest.approx(one.truth["length_px"], rel=0.02)


@given(st.integers(0, 30), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
@settings(max_examples=15)
def test_flips_permutations_and_scale_change_nothing_that_counts(seed, order, flips):
    mask = _small_tree(seed)
    first = vessel_graph(mask, (1.0, 0.8, 1.2))
    turned = mask[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)].transpose(order)
    spacing = 3 * np.array((1.0, 0.8, 1.2))[list(order)]
    second = vessel_graph(turned, spacing)
    assert (forks(first), first.loops, len(first.branches)) == (forks(second), second.loops, len(second.branches))
    assert total_length(second) == pytest.approx(3 * total_length(first), rel=0.04)
    assert calibre(second) == pytest.approx(3 * calibre(first), rel=0.03)


def _small_tree(seed):
    curves, _ = bent_tree(seed, 3, 3.0, 1, 0.3)
    curves, shape = moved(curves, (1.0, 0.8, 1.2))
    return draw(curves, shape, (1.0, 0.8, 1.2))


def test_loops_are_those_of_the_mask_in_a_net():
    mask = np.zeros((90, 130), dtype=bool)
    for row in (10, 40, 70):
        mask[row : row + 6, 10:120] = True
    for column in (10, 45, 80, 114):
        mask[10:76, column : column + 6] = True
    graph = vessel_graph(mask)
    assert graph.loops == 6 == 1 - euler_number(mask, connectivity=2)
    assert forks(graph) == 2 * 6 - 2
    assert graph.pieces.max() == 0


def test_a_hole_of_one_pixel_is_a_flaw_and_can_be_kept():
    mask = draw(straight((20, 40), (0, 1), 60, 3.0), (40, 80))
    mask[20, 40] = False
    graph = vessel_graph(mask)
    assert (graph.loops, graph.closed, len(graph.branches)) == (0, 1, 1)
    assert vessel_graph(mask, smallest_hole=0).loops == 1


def test_bumps_are_pruned_and_branches_are_not():
    rng = np.random.default_rng(0)
    mask = draw(straight((30, 30, 60), (0.1, 0.2, 1), 90, 6.0), (60, 60, 120))
    rough = mask ^ (rng.random(mask.shape) < 0.25) & (ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask))
    rough, _ = ndimage.label(rough, np.ones((3, 3, 3)))
    rough = rough == np.bincount(rough.ravel())[1:].argmax() + 1
    graph = vessel_graph(rough)
    assert len(graph.branches) == 1
    assert total_length(graph) == pytest.approx(90, rel=0.03)


def test_two_vessels_that_cross_in_the_plane_make_one_node():
    curves = straight((50, 50), (0.3, 1), 80, 3.0) + straight((50, 50), (1, -0.2), 80, 3.0)
    graph = vessel_graph(draw(curves, (100, 100)))
    assert sorted(graph.degree.tolist()) == [1, 1, 1, 1, 4]
    assert total_length(graph) == pytest.approx(160, rel=0.02)


def test_empty_specks_and_wrong_arguments():
    empty = vessel_graph(np.zeros((5, 6, 7)))
    assert len(empty.nodes) == len(empty.branches) == empty.loops == 0
    speck = np.zeros((9, 9), dtype=np.uint8)
    speck[4, 4] = speck[1, 1] = 3
    graph = vessel_graph(speck)
    assert (len(graph.nodes), len(graph.branches), graph.pieces.tolist()) == (2, 0, [0, 1])
    for call, word in (
        (lambda: vessel_graph(np.zeros(4)), "axes"),
        (lambda: vessel_graph(speck, (1.0,)), "spacing"),
        (lambda: vessel_graph(speck, (1.0, -1.0)), "spacing"),
        (lambda: vessel_graph(speck, merge_factor=-1), "merge_factor"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
