"""Shape in two and three dimensions against scikit-image, SimpleITK, Qhull, brute force and closed formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from skimage import draw, measure

from vesalius.measure.hull import hull_size, surface_hull
from vesalius.measure.planar import planar_table
from vesalius.measure.shape import ellipsoid_area, ibsi_ellipsoid_area, shape_table
from vesalius.measure.shape_bounds import smallest_box, smallest_ellipsoid
from vesalius.measure.shape_kernels import scan

HALF_STEPS = np.concatenate([np.eye(3), -np.eye(3)]) / 2
SPACING = (2.5, 0.7, 1.1)


def blobs(seed: int, shape=(14, 22, 26), count=4) -> np.ndarray:
    """Ellipsoids that overlap, so that labels touch, and one voxel of its own."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    grid = np.indices(shape)
    for label in range(1, count + 1):
        centre = random.uniform(2, np.array(shape) - 2)
        radii = random.uniform(1.5, 8, 3)
        labels[(((grid.T - centre) / radii) ** 2).sum(-1).T <= 1] = label
    labels[0, 0, 0] = 90
    return labels


def flat_blobs(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    labels = np.zeros((120, 140), np.int32)
    for label in range(1, 12):
        y, x = random.integers(5, 115), random.integers(5, 135)
        ellipse = draw.ellipse(y, x, *random.integers(2, 25, 2), shape=labels.shape, rotation=random.uniform(0, 3))
        labels[ellipse] = label
    labels[3, 3] = 70_000_000
    return labels


small_masks = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6)).map(
    lambda k: np.random.default_rng(k[3]).random(k[:3]) < np.random.default_rng(k[3] + 1).uniform(0.1, 1)
)
steps_of = st.tuples(*[st.floats(0.3, 4)] * 3)


def surface_vertices(mask: np.ndarray, spacing) -> np.ndarray:
    """Vertices of the surface at level 0.5 and more points within its hull."""
    return (np.argwhere(mask)[:, None] + HALF_STEPS).reshape(-1, 3) * spacing


# Three dimensions.


@pytest.mark.parametrize("seed", range(3))
def test_regionprops_and_label_statistics_agree(seed):
    labels = blobs(seed)
    table = shape_table(labels, SPACING)
    regions = measure.regionprops(labels, spacing=SPACING)
    assert table["label"].tolist() == [one.label for one in regions]
    assert table["voxel_count"].tolist() == [one.num_pixels for one in regions]
    assert table["euler_number"].tolist() == [one.euler_number for one in regions]
    assert table["label"].dtype == np.int64
    starts = np.stack([table[f"box_start_{a}"] for a in "zyx"] + [table[f"box_stop_{a}"] for a in "zyx"], axis=1)
    np.testing.assert_array_equal(starts, [one.bbox for one in regions])
    centres = np.stack([table[f"centroid_{a}"] for a in "zyx"], axis=1)
    np.testing.assert_allclose(centres, [one.centroid for one in regions], atol=1e-9)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(SPACING[::-1])
    filter_ = sitk.LabelShapeStatisticsImageFilter()
    filter_.Execute(image)
    for row, label in enumerate(table["label"].tolist()):
        assert table["voxel_volume"][row] == pytest.approx(filter_.GetPhysicalSize(label))
        moments = [table[f"{name}_moment"][row] for name in ("least", "minor", "major")]
        np.testing.assert_allclose(moments, filter_.GetPrincipalMoments(label), atol=1e-8)
        assert table["equivalent_diameter"][row] == pytest.approx(2 * filter_.GetEquivalentSphericalRadius(label))
        if moments[2] - moments[1] > 1e-6 and moments[1] - moments[0] > 1e-6:
            axis = np.array([table[f"major_axis_{a}"][row] for a in "xyz"])
            assert abs(axis @ filter_.GetPrincipalAxes(label)[6:]) == pytest.approx(1, abs=1e-6)


def test_surface_and_volume_are_those_of_the_mesh_of_scikit_image():
    z, y, x = np.mgrid[-12:13, -12:13, -12:13]
    ball = (z * 1.3) ** 2 + y**2 + (x * 0.8) ** 2 <= 81
    vertices, faces, _, _ = measure.marching_cubes(np.pad(ball, 1).astype(float), 0.5, method="lorensen")
    table = shape_table(ball)
    assert table["surface_area"][0] == pytest.approx(measure.mesh_surface_area(vertices, faces), rel=1e-6)
    a, b, c = (vertices[faces[:, k]].astype(float) for k in range(3))
    assert table["volume"][0] == pytest.approx(abs(np.einsum("ij,ij->", a, np.cross(b, c))) / 6, rel=1e-6)


@settings(max_examples=60)
@given(small_masks, steps_of)
def test_hull_box_ellipsoid_and_diameter_against_brute_force(mask, spacing):
    if not mask.any():
        return
    steps = np.array(spacing)
    points = surface_vertices(mask, steps)
    hull = surface_hull(scan(mask).corners)
    qhull = ConvexHull(points)
    volume, area = hull_size(hull, steps)
    assert (volume, area) == pytest.approx((qhull.volume, qhull.area), rel=1e-9)
    box = smallest_box(hull, steps)
    np.testing.assert_allclose(box.axes @ box.axes.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.ptp(points @ box.axes.T, axis=0), box.lengths, rtol=1e-9)
    assert box.lengths.prod() == pytest.approx(least_flush_box(points, qhull), rel=1e-7)
    ellipsoid = smallest_ellipsoid(hull.points * steps / 2)
    inside = (((points - ellipsoid.centre) @ ellipsoid.axes.T / ellipsoid.radii) ** 2).sum(1)
    assert inside.max() <= 1 + 1e-9
    assert shape_table(mask, spacing, bounds=False)["maximum_diameter"][0] == pytest.approx(pdist(points).max())


def least_flush_box(points: np.ndarray, hull: ConvexHull) -> float:
    best, corners = np.inf, points[hull.vertices]
    for normal in hull.equations[:, :3]:
        plane = np.linalg.svd(normal[None])[2][1:]
        shadow = corners @ plane.T
        shadow = shadow[ConvexHull(shadow).vertices]
        for side in np.roll(shadow, -1, 0) - shadow:
            u = side / np.linalg.norm(side)
            rectangle = np.ptp(shadow @ u) * np.ptp(shadow @ [-u[1], u[0]])
            best = min(best, rectangle * np.ptp(corners @ normal))
    return best


def test_smallest_ellipsoid_of_known_sets():
    cube = np.array(list(itertools.product((-1.0, 1.0), repeat=3))) * (3, 2, 1) + 7
    found = smallest_ellipsoid(cube, tolerance=1e-7)
    np.testing.assert_allclose(found.radii, np.sqrt(3) * np.array([3, 2, 1]), rtol=1e-5)
    np.testing.assert_allclose(found.centre, 7, atol=1e-5)
    random = np.random.default_rng(1)
    directions = random.normal(size=(3000, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    found = smallest_ellipsoid(directions * (9, 5, 4) @ turn.T)
    assert found.radii.prod() == pytest.approx(180, rel=5e-3)
    assert found.radii.prod() <= 180 * 1.002


def test_area_of_ellipsoids():
    radii = np.array([[3.0, 3, 3], [5, 5, 2], [4, 2, 2]])
    flat, long = np.sqrt(1 - 4 / 25), np.sqrt(1 - 1 / 4)
    truth = [
        36 * np.pi,
        2 * np.pi * 25 * (1 + (1 - flat**2) / flat * np.arctanh(flat)),
        2 * np.pi * 4 * (1 + 2 / long * np.arcsin(long)),
    ]
    np.testing.assert_allclose(ellipsoid_area(radii), truth)
    assert ibsi_ellipsoid_area(radii[:1])[0] == pytest.approx(truth[0])


def test_a_block_has_the_numbers_of_a_block():
    labels = np.zeros((9, 9, 12), np.uint8)
    labels[2:6, 3:6, 1:11] = 3
    table = {name: column[0] for name, column in shape_table(labels, (1.0, 2.0, 0.5)).items()}
    assert table["voxel_volume"] == 4 * 3 * 10
    assert (table["oriented_box_1"], table["oriented_box_2"], table["oriented_box_3"]) == pytest.approx((6, 5, 4))
    assert table["volume_density_box"] == pytest.approx(table["volume"] / 120)
    assert table["volume_density_convex_hull"] == pytest.approx(1)
    assert table["area_density_convex_hull"] == pytest.approx(1)
    assert table["euler_number"] == 1
    variances = sorted([1 * (16 - 1) / 12, 4 * (9 - 1) / 12, 0.25 * (100 - 1) / 12], reverse=True)
    assert [table[f"{name}_moment"] for name in ("major", "minor", "least")] == pytest.approx(variances)
    assert table["major_axis_length"] == pytest.approx(4 * np.sqrt(variances[0] * 120 / 119))


def test_balls_come_close_to_the_formulas():
    z, y, x = np.mgrid[-21:22, -21:22, -21:22]
    table = shape_table(z**2 + y**2 + x**2 <= 400)
    assert table["sphericity"][0] == pytest.approx(0.92, abs=0.02)  # steps of the surface cost 8 %
    assert table["maximum_diameter"][0] == pytest.approx(41)
    assert table["volume_density_ellipsoid"][0] == pytest.approx(1, abs=0.08)
    assert table["elongation"][0] == pytest.approx(1)


def test_a_single_voxel_and_an_empty_map():
    one = {name: column[0] for name, column in shape_table(np.ones((1, 1, 1), bool), (3, 2, 1)).items()}
    assert one["volume"] == pytest.approx(1.0)  # an octahedron of the half steps: a sixth of the voxel
    assert one["maximum_diameter"] == 3
    for name in ("elongation", "flatness", "major_axis_length", "volume_density_axis_ellipsoid", "major_axis_tilt"):
        assert np.isnan(one[name]), name
    empty = shape_table(np.zeros((3, 4, 5), np.uint8), image=np.zeros((3, 4, 5)))
    assert set(one) < set(empty)
    assert all(column.shape == (0,) for column in empty.values())
    assert all(len(column) == 0 for column in shape_table(np.zeros((0, 4, 5), np.uint8)).values())


SCALES = {"mm": 1, "mm2": 2, "mm3": 3, "mm-1": -1}


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0)])
def test_flips_and_permutations_and_scale(order):
    from vesalius.measure.quantities import by_name
    from vesalius.measure.shape import QUANTITIES

    labels = blobs(5)
    units = by_name(QUANTITIES)
    table = shape_table(labels, SPACING)
    turned = np.ascontiguousarray(labels[::-1, :, ::-1].transpose(order))
    other = shape_table(turned, [2 * SPACING[k] for k in order])
    moving = ("box_", "centroid_", "_axis_z", "_axis_y", "_axis_x", "tilt", "azimuth", "ellipsoid", "oriented")
    for name, column in table.items():
        if not any(word in name for word in moving) or name == "volume_density_axis_ellipsoid":
            scale = 2.0 ** SCALES.get(units[name].unit, 0)
            np.testing.assert_allclose(other[name], column * scale, rtol=1e-9, err_msg=name)
        elif "density_ellipsoid" in name or "oriented_box" in name or "ellipsoid_axis" in name:
            scale = 2.0 ** SCALES.get(units[name].unit, 0)
            np.testing.assert_allclose(other[name], column * scale, rtol=2e-2, err_msg=name)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.uint64])
def test_any_integer_type_large_labels_and_any_number_of_threads(kind):
    labels = blobs(2, shape=(10, 16, 24)).astype(kind)
    table = shape_table(labels, SPACING, workers=1)
    for other in (labels, np.asfortranarray(labels), np.pad(labels, ((0, 0), (0, 0), (0, 3)))):
        found = shape_table(other, SPACING, workers=3)
        for name, column in table.items():
            np.testing.assert_allclose(found[name], column, rtol=1e-12, err_msg=name)
    # Values beyond the tables of the one-pass way: 5000 by a pass before, 2**40 by renumbering.
    for largest in (5000, 2**40):
        wide = labels.astype(np.int64)
        wide[wide == 90] = largest
        found = shape_table(wide, SPACING)
        assert found["label"][-1] == largest
        np.testing.assert_array_equal(found["surface_area"], table["surface_area"])
        np.testing.assert_array_equal(found["volume_density_convex_hull"], table["volume_density_convex_hull"])


def test_intensity_shift_and_autocorrelation_by_brute_force():
    random = np.random.default_rng(0)
    labels = (random.random((5, 6, 7)) < 0.5).astype(np.uint8) * random.integers(1, 3, (5, 6, 7), dtype=np.uint8)
    image = random.normal(size=labels.shape)
    table = shape_table(labels, SPACING, image, autocorrelation=True)
    for row, label in enumerate(table["label"]):
        places, values = np.argwhere(labels == label) * SPACING, image[labels == label]
        shift = np.linalg.norm(np.average(places, axis=0, weights=values) - places.mean(0))
        assert table["centre_of_mass_shift"][row] == pytest.approx(shift)
        assert table["integrated_intensity"][row] == pytest.approx(table["volume"][row] * values.mean())
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)
        weights = np.divide(1, gaps, out=np.zeros_like(gaps), where=gaps > 0)
        off, n = values - values.mean(), len(values)
        moran = n / weights.sum() * (off @ weights @ off) / (off**2).sum()
        geary = (n - 1) / (2 * weights.sum()) * (weights * (values[:, None] - values) ** 2).sum() / (off**2).sum()
        assert (table["moran_i"][row], table["geary_c"][row]) == pytest.approx((moran, geary), rel=1e-9)
    constant = shape_table(labels, SPACING, np.full(labels.shape, 7.3), autocorrelation=True)
    assert np.isnan(constant["moran_i"]).all()
    np.testing.assert_allclose(constant["centre_of_mass_shift"], 0, atol=1e-9)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.zeros((4, 4), int), {}, "axes \\(Z, Y, X\\)"),
        (np.zeros((4, 4, 4)) + 0.5, {}, "whole"),
        (np.zeros((4, 4, 4), int) - 1, {}, "negative"),
        (np.zeros((4, 4, 4), int), {"spacing": (1, 1)}, "spacing"),
        (np.zeros((4, 4, 4), int), {"spacing": (1, 0, 1)}, "spacing"),
        (np.zeros((4, 4, 4), int), {"image": np.zeros((4, 4, 5))}, "does not fit"),
        (np.zeros((4, 4, 4), int), {"autocorrelation": True}, "image"),
    ],
)
def test_bad_arguments_are_named(labels, options, message):
    with pytest.raises(ValueError, match=message):
        shape_table(labels, **options)


# Two dimensions.


@pytest.mark.parametrize("seed", range(3))
def test_planar_table_equals_regionprops(seed):
    labels = flat_blobs(seed)
    labels[labels > 1000] = 500  # scikit-image makes a list as long as the largest label
    table = planar_table(labels)
    regions = measure.regionprops(labels)
    same = {
        "label": "label", "area": "area", "extent": "extent", "eccentricity": "eccentricity",
        "major_axis_length": "axis_major_length", "minor_axis_length": "axis_minor_length",
        "perimeter": "perimeter_crofton", "euler_number": "euler_number",
        "equivalent_diameter": "equivalent_diameter_area",
    }  # fmt: skip
    for name, theirs in same.items():
        expected = np.array([getattr(one, theirs) for one in regions], dtype=float)
        if name == "eccentricity":
            expected[[one.area == 1 for one in regions]] = np.nan
        np.testing.assert_allclose(table[name], expected, atol=1e-9, err_msg=name)
    for row, one in enumerate(regions):
        assert (table["centroid_index_y"][row], table["centroid_index_x"][row]) == pytest.approx(one.centroid)
        lines = measure.find_contours(np.pad(one.image, 1).astype(float), 0.5)
        length = sum(np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in lines)
        assert table["polygon_perimeter"][row] == pytest.approx(length)
        points = np.concatenate(lines)
        hull = ConvexHull(points)
        assert table["convex_area"][row] == pytest.approx(hull.volume)
        assert table["convex_perimeter"][row] == pytest.approx(hull.area)
        assert table["feret_max"][row] == pytest.approx(pdist(points[hull.vertices]).max())
        widths = np.ptp(points @ hull.equations[:, :2].T, axis=0)
        assert table["feret_min"][row] == pytest.approx(widths.min())
        along = np.ptp(points @ (hull.equations[:, :2] @ [[0, 1], [-1, 0]]).T, axis=0)
        assert table["box_min_area"][row] == pytest.approx((widths * along).min())


def test_planar_spacing_turns_and_large_labels():
    labels = flat_blobs(7)
    table = planar_table(labels, (0.5, 2.0))
    assert table["label"][-1] == 70_000_000
    flipped = planar_table(np.ascontiguousarray(labels.T[::-1]), (2.0, 0.5))
    for name, column in table.items():
        if not name.startswith(("box_st", "centroid", "orientation")):
            np.testing.assert_allclose(flipped[name], column, rtol=1e-9, atol=1e-12, err_msg=name)
    doubled = planar_table(np.kron(labels, np.ones((4, 1), int)), (0.125, 2.0))
    np.testing.assert_allclose(doubled["area"], table["area"])


@pytest.mark.parametrize("angle", [-80, -45, 0, 30, 89])
def test_planar_orientation_turns_from_x_to_y(angle):
    y, x = np.mgrid[-40:41, -40:41]
    t = np.radians(angle)
    bar = (np.abs(np.cos(t) * x + np.sin(t) * y) <= 30) & (np.abs(np.cos(t) * y - np.sin(t) * x) <= 4)
    assert planar_table(bar)["orientation"][0] == pytest.approx(angle, abs=1)


def test_planar_perimeter_of_discs_is_unbiased():
    random = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        y, x = np.mgrid[-13:14, -13:14] - random.random(2)[:, None, None]
        ratios.append(planar_table(y**2 + x**2 <= 100, workers=1)["perimeter"][0] / (20 * np.pi))
    assert np.mean(ratios) == pytest.approx(1, abs=0.003)
    assert np.std(ratios) < 0.011


def test_planar_edge_cases():
    one = {name: column[0] for name, column in planar_table(np.ones((1, 1), bool)).items()}
    assert (one["area"], one["feret_max"], one["polygon_area"], one["solidity"]) == pytest.approx((1, 1, 0.5, 1))
    assert np.isnan(one["eccentricity"])
    assert np.isnan(one["orientation"])
    assert all(len(column) == 0 for column in planar_table(np.zeros((5, 0), int)).values())
    with pytest.raises(ValueError, match="axes"):
        planar_table(np.zeros((2, 2, 2), int))
