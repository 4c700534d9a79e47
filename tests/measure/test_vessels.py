"""Numbers of vessels against closed formulas, published values and the phantom's truth."""

import numpy as np
import pytest
from tubes import draw, straight

from vesalius.measure.quantities import by_name
from vesalius.measure.vessel_fractal import box_dimension
from vesalius.measure.vessel_fundus import equivalent
from vesalius.measure.vessel_graph import Branch, VesselGraph
from vesalius.measure.vessel_tables import branch_table, murray_exponent, rooted
from vesalius.measure.vessels import QUANTITIES, measure_vessels
from vesalius.phantoms.vessels import make_vessels


def graph_of(nodes, edges, radii, curve=None):
    """A graph of straight branches (or of one `curve`), without a mask."""
    nodes = np.asarray(nodes, dtype=float)
    branches = []
    for (first, last), radius in zip(edges, radii, strict=True):
        points = np.linspace(nodes[first], nodes[last], 40) if curve is None else curve
        branches.append(Branch(first, last, points, np.full(len(points), radius), np.zeros(len(points), dtype=bool)))
    return VesselGraph(
        (99,) * nodes.shape[1], (1.0,) * nodes.shape[1], False, nodes, np.ones(len(nodes)), tuple(branches)
    )


def test_every_number_is_described_once():
    known = by_name(QUANTITIES)
    mask = make_vessels(seed=1, index=0, size=128).mask
    found = measure_vessels(mask, classes=mask)
    for part in (found.whole, found.branches, found.bifurcations, found.stenoses, found.fundus):
        assert part
        assert set(part) <= set(known)
    solid = measure_vessels(make_vessels(seed=1, index=0, dims=3, size=64).mask)
    assert set(solid.whole) <= set(known)


@pytest.mark.parametrize(("ndim", "size"), [(2, 200), (3, 96)])
def test_whole_numbers_of_a_phantom(ndim, size):
    one = make_vessels(seed=4, index=1, dims=ndim, size=size)
    whole = measure_vessels(one.mask, (0.5,) * ndim).whole
    truth = one.truth
    assert whole["bifurcations"] == truth["bifurcations"]
    assert whole["ends"] == truth["ends"]
    assert whole["branches"] == len(truth["edges"])
    assert (whole["components"], whole["loops"], whole["crossings"]) == (1, 0, 0)
    assert whole["total_length"] == pytest.approx(truth["length_mm"], rel=0.02)
    assert whole["vessel_area" if ndim == 2 else "vessel_volume"] == np.count_nonzero(one.mask) * 0.5**ndim
    assert whole["vessel_density"] == np.count_nonzero(one.mask) / one.mask.size
    per = whole["length_per_area" if ndim == 2 else "length_per_volume"]
    assert per == pytest.approx(whole["total_length"] / (size * 0.5) ** ndim)
    sizes = np.linalg.norm(np.diff(truth["nodes_px"][truth["edges"]], axis=1)[:, 0], axis=1)
    assert whole["mean_calibre"] == pytest.approx(np.average(truth["radii_px"], weights=sizes), rel=0.06)


def test_the_field_of_view_is_the_reference():
    mask = draw(straight((30, 30), (0, 1), 40, 2.5), (60, 60))
    field = np.zeros((60, 60))
    field[:, :30] = 1
    half, all_ = measure_vessels(mask, field=field).whole, measure_vessels(mask).whole
    assert half["length_per_area"] == pytest.approx(2 * all_["length_per_area"])
    assert half["vessel_density"] == pytest.approx(mask[:, :30].mean())
    with pytest.raises(ValueError, match="field"):
        measure_vessels(mask, field=field[:5])


def test_lengths_angles_and_murray_of_phantom_bifurcations():
    errors, exponents = [], []
    for index in range(6):
        one = make_vessels(seed=8, index=index, size=256)
        found, truth = measure_vessels(one.mask), one.truth
        nodes, edges = truth["nodes_px"], truth["edges"]
        for row, node in enumerate(found.bifurcations["node"].astype(int)):
            true = np.linalg.norm(nodes - found.graph.nodes[node], axis=1).argmin()
            one_, two = (nodes[b] - nodes[a] for a, b in edges if a == true)
            angle = np.degrees(np.arccos(one_ @ two / np.linalg.norm(one_) / np.linalg.norm(two)))
            errors.append(found.bifurcations["angle_daughters"][row] - angle)
        exponents += found.bifurcations["murray_exponent"].tolist()
        # The trunk is the root: the only branch of generation 0, and of the highest order.
        start = nodes[np.bincount(edges.ravel(), minlength=len(nodes)) == 1][0]
        trunk = int(np.flatnonzero(found.branches["generation"] == 0)[0])
        assert np.linalg.norm(found.graph.nodes[int(found.branches["first_node"][trunk])] - start) < 3
        assert found.branches["strahler"][trunk] == found.whole["largest_strahler"]
    assert abs(np.mean(errors)) < 1.0
    assert np.abs(errors).mean() < 2.5
    assert np.nanmedian(exponents) == pytest.approx(3.0, abs=0.35)


def test_orders_of_a_small_tree_by_hand():
    #        4   5         Strahler: 4 and 5 are 1, their parent 2; the ends 2 and 6 are 1; the trunk stays 2.
    #         \ /
    #     2    3
    #      \  /
    #   6---1 ---0 (root, widest)
    nodes = [(50, 80), (50, 50), (20, 40), (60, 30), (80, 10), (60, 5), (45, 10)]
    edges = [(0, 1), (1, 2), (1, 3), (3, 4), (3, 5), (6, 1)]
    tree = rooted(graph_of(nodes, edges, [5, 1, 2, 1, 1, 1]))
    assert tree.generation.tolist() == [0, 1, 1, 2, 2, 1]
    assert tree.strahler.tolist() == [2, 1, 2, 1, 1, 1]
    other = rooted(graph_of(nodes, edges, [5, 1, 2, 1, 1, 1]), np.array([[81.0, 9.0]]))
    assert other.generation.tolist() == [2, 2, 1, 0, 1, 2]


def test_orders_are_undefined_in_loops_but_generations_are_not():
    nodes = [(5, 5), (5, 20), (5, 50), (5, 80)]
    arc = [(0, 1), (1, 2), (1, 2), (2, 3)]
    tree = rooted(graph_of(nodes, arc, [3, 1, 1, 2]))
    assert np.isnan(tree.strahler).all()
    assert tree.generation.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(("waves", "height"), [(1, 4.0), (2, 6.0), (3, 3.0)])
def test_tortuosity_of_a_sine(waves, height):
    size, fine = 120.0, np.linspace(0, 120, 40001)
    wave = 2 * np.pi * waves / size
    slope, bend = height * wave * np.cos(wave * fine), -height * wave**2 * np.sin(wave * fine)
    speed = np.hypot(1, slope)
    curvature = bend / speed**3
    along = np.r_[0, np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(fine))]
    even = np.interp(np.linspace(0, along[-1], int(along[-1] / 0.5)), along, fine)
    curve = np.stack([20 + height * np.sin(wave * even), 5 + even], 1)
    graph = graph_of([curve[0], curve[-1]], [(0, 1)], [1.0], curve)
    row = {name: column[0] for name, column in branch_table(graph, rooted(graph)).items()}
    step = fine[1]
    assert row["length"] == pytest.approx(along[-1], rel=1e-3)
    assert row["arc_chord"] == pytest.approx(along[-1] / size, rel=1e-3)
    assert row["inflections"] == 2 * waves - 1
    assert row["inflection_count_metric"] == pytest.approx(2 * waves * along[-1] / size, rel=1e-3)
    assert row["squared_curvature"] == pytest.approx((curvature**2 * speed).sum() * step, rel=0.14)
    assert row["sum_of_angles"] == pytest.approx(np.abs(curvature * speed).sum() * step / along[-1], rel=0.15)
    # All 2 * waves arches are alike: half a wave each.
    arch = along[-1] / (size / (2 * waves) * 2 * waves) - 1
    assert row["grisan_tau"] == pytest.approx((2 * waves - 1) * arch / along[-1], rel=0.08)


def test_a_straight_vessel_is_not_tortuous():
    table = measure_vessels(draw(straight((40.2, 40.4, 40), (0.3, 0.5, 1), 60, 3.0), (80,) * 3)).branches
    assert table["arc_chord"][0] == pytest.approx(1, abs=2e-3)
    assert table["inflections"][0] == 0
    assert table["squared_curvature"][0] < 0.01
    assert table["grisan_tau"][0] == 0


@pytest.mark.parametrize("exponent", [2.0, 2.7, 3.0, 4.0])
def test_murray_exponent_is_found_again(exponent):
    minor = (1 - 0.8**exponent) ** (1 / exponent)
    assert murray_exponent(5.0, 4.0, 5 * minor) == pytest.approx(exponent)
    assert np.isnan(murray_exponent(1.0, 1.0, 0.5))


@pytest.mark.parametrize(("ndim", "size", "most_missed"), [(2, 128, 1), (2, 256, 1), (3, 128, 1)])
def test_narrowings_are_found_with_few_false_ones(ndim, size, most_missed):
    missed = false = count = 0
    for index in range(12 if ndim == 2 else 4):
        one = make_vessels(seed=13, index=index, dims=ndim, size=size)
        spot, found = one.truth["narrowing"], measure_vessels(one.mask).stenoses
        places = np.stack([found[f"place_{axis}"] for axis in "zyx"[3 - ndim :]], 1)
        hit = np.zeros(len(places), dtype=bool)
        if spot:
            count += 1
            radius = one.truth["radii_px"][spot["edge"]]
            hit = np.linalg.norm(places - np.array(spot["centre_px"]), axis=1) < 2.5 * radius
            missed += not hit.any()
            if hit.any() and radius > 4:
                assert found["diameter_stenosis"][hit].max() == pytest.approx(100 * (1 - spot["open"]), abs=8)
        false += int((~hit).sum())
    assert count
    assert missed <= most_missed
    assert false <= 1


def test_the_depth_and_length_of_a_narrowing():
    along = np.linspace(10, 110, 201)
    radius = 8 * (1 - 0.5 * np.exp(-(((along - 60) / 8) ** 2)))
    points = np.stack([np.full_like(along, 30.2), np.full_like(along, 29.7), along], 1)
    found = measure_vessels(draw([(points, radius)], (60, 60, 120))).stenoses
    assert len(found["branch"]) == 1
    assert found["diameter_stenosis"][0] == pytest.approx(50, abs=5)
    assert found["place_x"][0] == pytest.approx(60, abs=1.5)
    assert found["calibre_healthy"][0] == pytest.approx(16, rel=0.03)
    # Half of the narrowing: exp(-(x / 8)^2) = 1 / 2.
    assert found["narrowed_length"][0] == pytest.approx(2 * 8 * np.sqrt(np.log(2)), rel=0.25)
    taper = np.linspace(8, 4, 201)
    assert not len(measure_vessels(draw([(points, taper)], (60, 60, 120))).stenoses["branch"])


def test_box_dimension_of_known_sets():
    side = 256
    line = np.stack([np.arange(side), np.zeros(side)], 1)
    assert box_dimension(line, 1.0) == pytest.approx(1, abs=0.02)
    assert box_dimension(np.argwhere(np.ones((side, side))), 1.0) == pytest.approx(2, abs=0.02)
    assert box_dimension(np.argwhere(np.ones((64, 64, 64))), 1.0) == pytest.approx(3, abs=0.05)
    row, column = np.indices((side, side))
    sierpinski = np.argwhere((row & column) == 0)
    assert box_dimension(sierpinski, 1.0) == pytest.approx(np.log(3) / np.log(2), abs=0.02)
    carpet = np.ones((1, 1), dtype=bool)
    for _ in range(5):
        hole = np.zeros_like(carpet)
        carpet = np.block([[carpet] * 3, [carpet, hole, carpet], [carpet] * 3])
    assert box_dimension(np.argwhere(carpet), 1.0) == pytest.approx(np.log(8) / np.log(3), abs=0.06)
    assert box_dimension(3.0 * line, 3.0) == pytest.approx(box_dimension(line, 1.0))
    assert np.isnan(box_dimension(np.zeros((0, 2)), 1.0))
    assert np.isnan(box_dimension(np.zeros((1, 2)), 1.0))


def test_knudtson_by_hand():
    # Pairs of six: (10, 5), (9, 6), (8, 7); of three: widest with narrowest, the middle waits; then the two.
    pairs = sorted(0.88 * np.sqrt([10**2 + 5**2, 9**2 + 6**2, 8**2 + 7**2]))
    last = 0.88 * np.hypot(pairs[0], pairs[2])
    assert equivalent([10, 9, 8, 7, 6, 5], 0.88) == pytest.approx(0.88 * np.hypot(last, pairs[1]))
    assert equivalent([7.0], 0.88) == 7.0
    assert np.isnan(equivalent([], 0.88))


@pytest.mark.parametrize("spacing", [None, (0.01, 0.01)])
def test_the_eye_with_vessels_of_known_width(spacing):
    middle, disc = np.array([200.0, 200.0]), 40.0
    mask, classes = np.zeros((401, 401), dtype=bool), np.zeros((401, 401), dtype=np.uint8)
    widths = {1: [], 2: []}
    for number in range(12):
        turn = 2 * np.pi * number / 12 + 0.1
        way, radius, kind = np.array([np.sin(turn), np.cos(turn)]), 3.2 + 0.2 * number, 1 + number % 2
        one = draw([(np.stack([middle + 60 * way, middle + 180 * way]), radius)], mask.shape)
        mask |= one
        classes[one] = kind
        widths[kind].append(2 * radius)
    step = spacing[0] if spacing else 1.0
    found = measure_vessels(mask, spacing, classes=classes, disc=(200, 200, disc * step)).fundus
    assert (found["arterioles"], found["venules"]) == (6, 6)
    assert found["crae"] == pytest.approx(step * equivalent(widths[1], 0.88), rel=0.02)
    assert found["crve"] == pytest.approx(step * equivalent(widths[2], 0.95), rel=0.02)
    assert found["avr"] == pytest.approx(found["crae"] / found["crve"])
    whole = measure_vessels(mask, spacing, classes=classes).fundus
    assert whole["crae"] == pytest.approx(found["crae"], rel=0.02)
    # A disc far away: nothing in its ring.
    none = measure_vessels(mask, spacing, classes=classes, disc=(0, 0, 5 * step)).fundus
    assert none["arterioles"] == 0
    assert np.isnan(none["avr"])
    with pytest.raises(ValueError, match="disc"):
        measure_vessels(mask, classes=classes, disc=(1, 2, 0))
    with pytest.raises(ValueError, match="classes"):
        measure_vessels(mask, classes=classes[:5])


def test_an_empty_mask_has_no_vessels():
    for shape in ((6, 7), (4, 6, 7)):
        found = measure_vessels(np.zeros(shape))
        assert found.whole["total_length"] == found.whole["branches"] == found.whole["components"] == 0
        assert np.isnan(found.whole["mean_calibre"])
        assert np.isnan(found.whole["fractal_dimension"])
        assert all(
            len(column) == 0
            for table in (found.branches, found.bifurcations, found.stenoses)
            for column in table.values()
        )
