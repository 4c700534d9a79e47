"""Gaps, margins, contacts and encasement against closed formulas and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage.measure import marching_cubes, mesh_surface_area

from vesalius.measure import encasement as encasement_module
from vesalius.measure import relations as module
from vesalius.measure.encasement import encasement, encasement_angles
from vesalius.measure.relations import margin, margin_distances, relation, relations

STEPS = st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 2.5])] * 3)
MAPS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=6), elements=st.integers(0, 3)
)


def box_gap(first, second, spacing):
    """Every voxel box against every other."""
    apart = np.abs(np.argwhere(first)[:, None] - np.argwhere(second)[None]) - 1
    return np.sqrt(((np.maximum(apart, 0) * spacing) ** 2).sum(-1)).min()


def shared_faces(labels, a, b, spacing):
    total = 0.0
    for axis in range(labels.ndim):
        face = np.prod([step for k, step in enumerate(spacing) if k != axis])
        low, high = (
            np.take(labels, range(*ends), axis) for ends in ((0, labels.shape[axis] - 1), (1, labels.shape[axis]))
        )
        total += face * (((low == a) & (high == b)) | ((low == b) & (high == a))).sum()
    return total


def surface_faces(mask, spacing):
    return shared_faces(mask.astype(np.uint8), 0, 1, spacing)


def brute_margins(tumour, other, spacing):
    """Distance and area of every corner on the surface, by looking at each face."""
    area = {}
    for axis in range(3):
        face = np.prod([step for k, step in enumerate(spacing) if k != axis])
        for place in itertools.product(*(range(side - (k == axis)) for k, side in enumerate(tumour.shape))):
            after = tuple(p + (k == axis) for k, p in enumerate(place))
            if tumour[place] != tumour[after]:
                for step in itertools.product(*([(0,) if k == axis else (0, 1) for k in range(3)])):
                    corner = tuple(p + s for p, s in zip(after, step, strict=True))
                    area[corner] = area.get(corner, 0) + face / 4
    corners = sorted(area)
    boxes = np.argwhere(other)
    away = np.maximum(
        np.maximum(boxes[None] - np.array(corners)[:, None], np.array(corners)[:, None] - boxes[None] - 1), 0
    )
    distances = np.sqrt(((away * spacing) ** 2).sum(-1)).min(1)
    return distances, np.array([area[corner] for corner in corners])


@pytest.mark.parametrize("shift", [0, 1, 2, 7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_cubes(axis, shift):
    spacing = (2.0, 1.0, 0.7)
    labels = np.zeros((24, 24, 24), np.uint8)
    here = [slice(4, 8)] * 3
    there = list(here)
    there[axis] = slice(8 + shift, 12 + shift)
    labels[tuple(here)], labels[tuple(there)] = 3, 9
    row = {name: column[0] for name, column in relations(labels, spacing).items()}
    assert (row["first"], row["second"]) == (3, 9)
    assert row["gap"] == pytest.approx(shift * spacing[axis])
    assert row["centroid_distance"] == pytest.approx((shift + 4) * spacing[axis])
    face = 16 * np.prod([step for k, step in enumerate(spacing) if k != axis])
    assert row["contact_faces"] == pytest.approx(0 if shift else face)
    sides = 32 * (2.0 + 1.4 + 0.7)
    assert row["contact_fraction_first"] == pytest.approx(0 if shift else face / sides)
    places = np.array([[row[f"nearest_{which}_{one}"] for one in "zyx"] for which in ("first", "second")])
    assert np.linalg.norm((places[0] - places[1]) * spacing) == pytest.approx(row["gap"])
    assert places[0, axis] == 7.5
    assert places[1, axis] == 7.5 + shift


def test_diagonal_neighbours_touch_without_contact():
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[2, 2, 2], labels[3, 3, 3] = 1, 2
    row = relations(labels)
    assert row["gap"][0] == 0
    assert row["contact_faces"][0] == 0
    assert row["contact_area"][0] == pytest.approx(0, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(MAPS, STEPS)
def test_every_pair_against_brute_force(labels, steps):
    spacing = steps[3 - labels.ndim :]
    table = relations(labels, spacing, max_distance_mm=None)
    present = [value for value in (1, 2, 3) if (labels == value).any()]
    assert list(zip(table["first"], table["second"], strict=True)) == list(itertools.combinations(present, 2))
    faces = "contact_faces" if labels.ndim == 3 else "contact_edges"
    for line, (a, b) in enumerate(itertools.combinations(present, 2)):
        first, second = labels == a, labels == b
        assert table["gap"][line] == pytest.approx(box_gap(first, second, spacing), abs=1e-9)
        centres = [np.array(ndimage.center_of_mass(mask)) * spacing for mask in (first, second)]
        assert table["centroid_distance"][line] == pytest.approx(np.linalg.norm(centres[0] - centres[1]))
        assert table[faces][line] == pytest.approx(shared_faces(labels, a, b, spacing))
        surface = surface_faces(first, spacing)
        if surface:
            assert table["contact_fraction_first"][line] == pytest.approx(table[faces][line] / surface)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint8, (4, 5, 4), elements=st.integers(0, 3)), STEPS)
def test_margins_against_brute_force(both, spacing):
    tumour, other = both == 1, both == 2
    distances, areas = margin_distances(tumour, other, spacing)
    if not (tumour.any() and other.any()):
        assert len(distances) == 0
        return
    known, weights = brute_margins(tumour, other, spacing)
    np.testing.assert_allclose(distances, known, rtol=1e-6)
    np.testing.assert_allclose(areas, weights, rtol=1e-6)
    values = margin(tumour, other, spacing)
    order = np.argsort(known)
    running = np.cumsum(weights[order]) / weights.sum()
    assert values["margin_p5"] == pytest.approx(known[order][np.argmax(running >= 0.05 - 1e-9)], rel=1e-6)
    assert values["margin_mean"] == pytest.approx(np.average(known, weights=weights), rel=1e-6)
    assert values["surface_within_1"] == pytest.approx(weights[known <= 1 + 1e-9].sum() / weights.sum(), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(hnp.arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 3)), STEPS, st.permutations(range(3)))
def test_axes_may_be_turned_and_flipped(labels, spacing, order):
    table = relations(labels, spacing, max_distance_mm=None)
    turned = np.transpose(labels, order)[::-1]
    other = relations(turned, [spacing[k] for k in order], max_distance_mm=None)
    for name in table:
        if not name.startswith("nearest"):
            np.testing.assert_allclose(table[name], other[name], rtol=1e-6, err_msg=name)


def test_millimetres_scale_with_the_spacing():
    labels = np.random.default_rng(0).integers(0, 4, (6, 7, 8))
    one, two = relations(labels, (1, 2, 0.5)), relations(labels, (3, 6, 1.5), max_distance_mm=90)
    for name in ("gap", "margin_p5_first", "centroid_distance"):
        np.testing.assert_allclose(3 * one[name], two[name], rtol=1e-6)
    np.testing.assert_allclose(9 * one["contact_area"], two["contact_area"])


def ball(shape, centre, radius, spacing=(1, 1, 1)):
    grids = np.ogrid[tuple(slice(side) for side in shape)]
    return sum(((g - c) * s) ** 2 for g, c, s in zip(grids, centre, spacing, strict=True)) <= radius**2


def test_smooth_contact_of_a_ball_in_its_shell():
    spacing = (1.0, 0.8, 0.8)
    shape, centre = (50, 60, 60), (25, 30, 30)
    inner, outer = ball(shape, centre, 12, spacing), ball(shape, centre, 17, spacing)
    labels = inner + 2 * (outer & ~inner)
    row = relations(labels, spacing)
    true = 4 * np.pi * 12**2
    vertices, triangles, _, _ = marching_cubes(inner.astype(np.float32), 0.5, spacing=spacing)
    assert row["contact_area"][0] == pytest.approx(mesh_surface_area(vertices, triangles), rel=0.01)
    assert row["contact_area"][0] == pytest.approx(true, rel=0.1)
    assert row["contact_faces"][0] > 1.4 * true
    assert row["contact_fraction_first"][0] == pytest.approx(1)
    assert row["contact_fraction_second"][0] == pytest.approx(12**2 / (12**2 + 17**2), rel=0.03)


def test_a_plane_across_the_picture_has_its_exact_area():
    labels = np.ones((10, 11, 12), np.uint8)
    labels[:, :, 5:] = 2
    row = relations(labels, (2, 3, 5))
    assert row["contact_area"][0] == pytest.approx(10 * 2 * 11 * 3)
    assert row["contact_faces"][0] == pytest.approx(10 * 2 * 11 * 3)
    assert row["contact_fraction_first"][0] == 1  # the edge of the picture is no surface
    flat = relations(labels[0], (3, 5))
    assert flat["contact_length"][0] == pytest.approx(33)
    assert flat["contact_edges"][0] == pytest.approx(33)


def test_two_balls_at_a_known_gap():
    labels = ball((40, 40, 90), (20, 20, 20), 12) + 2 * ball((40, 40, 90), (20, 20, 60), 15)
    row = relations(labels, max_distance_mm=20)
    assert row["gap"][0] == pytest.approx(40 - 12 - 15 - 1)  # voxel boxes reach half a voxel beyond their centres
    near = relations(labels, max_distance_mm=11)
    assert len(near["gap"]) == 0
    asked = relations(labels, max_distance_mm=11, pairs=[(2, 1), (1, 7)])
    assert np.isnan(asked["gap"]).all()
    assert asked["centroid_distance"][0] == pytest.approx(40)
    assert np.isnan(asked["centroid_distance"][1])


@settings(max_examples=15, deadline=None)
@given(hnp.arrays(np.uint8, (5, 5, 6), elements=st.integers(0, 3)), STEPS, st.sampled_from([0.5, 1.0, 2.0]))
def test_a_limit_hides_and_changes_nothing_else(labels, spacing, limit):
    pairs = [(1, 2), (3, 1), (2, 3)]
    full = relations(labels, spacing, pairs=pairs, max_distance_mm=None)
    near = relations(labels, spacing, pairs=pairs, max_distance_mm=limit)
    for name in ("gap", "margin_p5_first", "margin_p5_second"):
        expected = np.where(full[name] <= limit * (1 + 1e-6), full[name], np.nan)
        np.testing.assert_allclose(near[name], expected, rtol=1e-6, err_msg=name)


def test_the_order_of_a_pair_is_the_callers():
    labels = np.zeros((8, 8, 20), np.uint8)
    labels[2:6, 2:6, 2:6], labels[1:7, 1:7, 10:15] = 1, 2
    one, two = relations(labels, pairs=[(1, 2)]), relations(labels, pairs=[(2, 1)])
    assert one["nearest_first_x"][0] == two["nearest_second_x"][0] == 5.5
    assert one["margin_p5_first"][0] == two["margin_p5_second"][0]


def test_large_and_few_labels_and_structures():
    labels = np.zeros((4, 4, 8), np.int64)
    labels[1:3, 1:3, 1:3], labels[1:3, 1:3, 3:5], labels[1:3, 1:3, 5:7] = 5, 10**9, 7
    table = relations(labels)
    assert [tuple(pair) for pair in np.stack([table["first"], table["second"]], 1)] == [(5, 7), (5, 10**9), (7, 10**9)]
    assert table["contact_faces"].tolist() == [0, 4, 4]
    only = relations(labels, structures=[5, 7])
    assert only["gap"].tolist() == [2]
    assert relations(np.zeros((3, 3), np.uint8))["gap"].shape == (0,)


def test_overlapping_masks():
    first, second = np.zeros((2, 10, 10, 10), bool)
    first[2:6, 2:6, 2:6], second[4:8, 2:6, 2:6] = True, True
    values = relation(first, second, (2, 1, 1))
    assert values["gap"] == 0
    assert values["overlap_volume"] == 2 * 16 * 2
    assert values["contained_first"] == values["contained_second"] == 0.5
    assert values["centroid_distance"] == pytest.approx(4)
    assert values["margin_p5_first"] == 0
    inside = relation(first, np.ones_like(first))
    assert inside["gap"] == 0
    assert inside["contained_first"] == 1
    assert inside["contact_faces"] == 0
    empty = relation(first, np.zeros_like(first))
    assert np.isnan(empty["gap"])
    assert empty["overlap_volume"] == 0
    assert empty["contained_first"] == 0
    assert np.isnan(empty["contained_second"])


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint8, (4, 4, 5), elements=st.integers(0, 3)), STEPS)
def test_masks_agree_with_the_map_and_with_cdist(both, spacing):
    first, second = (both & 1) > 0, (both & 2) > 0
    values = relation(first, second, spacing)
    if not (first.any() and second.any()):
        assert np.isnan(values["gap"])
        return
    assert values["gap"] == pytest.approx(box_gap(first, second, spacing), abs=1e-9)
    closest = cdist(np.argwhere(first) * spacing, np.argwhere(second) * spacing).min()
    assert values["gap"] <= closest <= values["gap"] + np.linalg.norm(spacing) + 1e-9
    back = relation(second, first, spacing)
    assert values["gap"] == back["gap"]
    assert values["margin_p5_first"] == pytest.approx(back["margin_p5_second"], nan_ok=True)


def test_margin_of_parallel_plates():
    tumour, vessel = np.zeros((2, 12, 12, 30), bool)
    tumour[2:10, 2:10, 2:3], vessel[:, :, 9:12] = True, True
    values = margin(tumour, vessel, (1, 1, 2))
    assert values["margin_min"] == 12
    assert values["margin_max"] == 14
    assert values["surface_within_5"] == 0
    assert values["surface_within_10"] == 0
    assert np.isnan(list(margin(tumour, vessel & False).values())).all()


@pytest.mark.parametrize("degrees", [30, 90, 150, 180, 210, 300, 360])
@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (3.0, 0.5, 0.8)])
def test_encasement_of_a_disk_by_a_sector(degrees, spacing):
    z, y, x = np.ogrid[:6, :121, :121]
    y, x = (y - 60) * spacing[1], (x - 60) * spacing[2]
    radius = np.hypot(y, x) + 0 * z
    angle = np.degrees(np.arctan2(y, x)) % 360 + 0 * z
    vessel = radius <= 14
    tumour = (radius > 14) & (radius < 24) & (angle < degrees) & (z >= 2) & (z < 5)
    values = encasement(vessel, tumour, spacing)
    assert values["encasement_angle"] == pytest.approx(degrees, abs=5)
    assert values["encasement_slices"] == 3
    assert values["encasement_length"] == 9
    assert values["encasement_slice"] == 2
    if degrees != 180:
        assert values["encasement_above_180"] == (degrees > 180)


def test_encasement_with_a_wall_a_hole_and_two_pieces():
    y, x = np.ogrid[:80, :160]
    left, right = np.hypot(y - 40, x - 40), np.hypot(y - 40, x - 115)
    vessel = ((left <= 12) & (left > 8)) | (right <= 9)
    tumour = (left > 14.6) & (left < 25) & (x < 40)
    assert encasement(vessel, tumour)["encasement_angle"] == 0
    near = encasement(vessel, tumour, tolerance=4.0)
    assert near["encasement_angle"] == pytest.approx(195, abs=8)  # the tolerance reaches a little around the corner
    assert encasement(vessel, tumour | ((right > 9) & (right < 13)))["encasement_angle"] == pytest.approx(360)
    assert np.isnan(encasement(vessel & False, tumour)["encasement_angle"])
    square = np.zeros((5, 5), bool)
    square[2, 2] = True
    beside = np.zeros((5, 5), bool)
    beside[2, 3] = True
    assert encasement(square, beside)["encasement_angle"] == pytest.approx(90)
    assert encasement(square, beside, (1, 2))["encasement_angle"] == pytest.approx(2 * np.degrees(np.arctan(0.5)))


def test_encasement_along_another_axis():
    rng = np.random.default_rng(1)
    vessel, tumour = np.zeros((2, 9, 10, 11), bool)
    vessel[2:6, 3:6, 2:7] = True
    tumour[rng.random(tumour.shape) < 0.4] = True
    for axis in range(3):
        order = [axis, *(k for k in range(3) if k != axis)]
        spacing = (1.0, 2.0, 3.0)
        moved = encasement_angles(vessel.transpose(order), tumour.transpose(order), [spacing[k] for k in order])
        np.testing.assert_allclose(encasement_angles(vessel, tumour, spacing, axis=axis), moved)


def test_every_number_is_described():
    known = {quantity.name for quantity in (*module.QUANTITIES, *encasement_module.QUANTITIES)}
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3, 1:3, 1:3] = True
    given_names = {*relation(mask, mask), *relations(mask), *margin(mask, mask), *encasement(mask, mask)}
    given_names |= {*relation(mask[1], mask[1]), *encasement(mask[1], mask[1])}
    assert given_names == known


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: relations(np.zeros((2, 2, 2, 2), int)), "axes"),
        (lambda: relations(np.zeros((2, 2), int), (1, 0)), "spacing"),
        (lambda: relations(np.zeros((2, 2), int), pairs=[(1, 1)]), "pair"),
        (lambda: relations(np.zeros((2, 2), int), max_distance_mm=-1), "max_distance_mm"),
        (lambda: relation(np.zeros((2, 2)), np.zeros((2, 3))), "shape"),
        (lambda: encasement(np.zeros((2, 2)), np.zeros((2, 2)), tolerance=-1), "tolerance"),
        (lambda: encasement(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), axis=3), "axis"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()
