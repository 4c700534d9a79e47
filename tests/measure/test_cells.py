"""Cells and tissue against scikit-image, counting pixel by pixel, phantoms and fields cut at random."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import poisson
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.measure import regionprops

from vesalius.measure import cells, spatial, texture, tissue
from vesalius.measure.cells import (
    cell_points,
    cell_quantities,
    cell_summary,
    cell_table,
    intensity_table,
    poisson_interval,
    touching_pairs,
)
from vesalius.measure.planar import planar_table
from vesalius.measure.quantities import by_name, columns
from vesalius.measure.tissue import class_areas, interface_lengths, otsu, tile_fractions, tissue_mask
from vesalius.phantoms.smear import make_smear

DRAW = np.random.default_rng(3)


def blobs(seed, shape=(60, 70), parts=14, gap=0.35):
    """An instance map of ragged pieces, some touching, with label values that have holes."""
    draw = np.random.default_rng(seed)
    seeds = draw.random((parts, 2)) * shape
    places = np.stack(np.indices(shape), -1)
    apart = np.linalg.norm(places[:, :, None] - seeds, axis=-1) + draw.normal(0, 0.7, (*shape, parts))
    names = np.sort(draw.choice(np.arange(1, 5 * parts), parts, replace=False))
    # The outside of the pieces is background, more or less of it from piece to piece.
    near = apart.min(-1) < draw.uniform(3, 9, parts)[apart.argmin(-1)] * (1 - gap * 0.5)
    return np.where(near, names[apart.argmin(-1)], 0).astype(np.uint16)


def spread_out(seed, pitch=40, many=12, margin=0):
    """Ellipses of very different sizes, one per place of a shaken lattice, whole and apart, in an empty margin."""
    draw = np.random.default_rng(seed)
    field = np.zeros((pitch * many + 2 * margin,) * 2, dtype=np.int32)
    y, x = np.indices((pitch, pitch)) - pitch / 2
    for label, (i, j) in enumerate(product(range(many), repeat=2), start=1):
        a, b = draw.uniform(2, pitch / 2 - 4, 2)
        held = ((y - draw.uniform(-3, 3)) / a) ** 2 + ((x - draw.uniform(-3, 3)) / b) ** 2 <= 1
        field[margin + i * pitch :, margin + j * pitch :][:pitch, :pitch][held] = label
    return field


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64, np.int32])
def test_intensities_equal_those_of_scikit_image(kind):
    label, image = blobs(1), (DRAW.gamma(3, 20, (60, 70))).astype(kind)
    found = cell_table(label, None, image)
    known = regionprops(label, image)
    assert found["label"].tolist() == [one.label for one in known]
    for ours, theirs in (("mean", "intensity_mean"), ("min", "intensity_min"), ("max", "intensity_max")):
        np.testing.assert_allclose(found[f"cell_intensity_{ours}"], [one[theirs] for one in known], rtol=1e-6)
    values = [image[label == one.label].astype(np.float64) for one in known]
    np.testing.assert_allclose(found["cell_intensity_sd"], [one.std() for one in values], rtol=1e-6)
    np.testing.assert_allclose(found["cell_intensity_median"], [np.median(one) for one in values])
    np.testing.assert_allclose(found["cell_intensity_sum"], [one.sum() for one in values], rtol=1e-9)
    np.testing.assert_allclose(found["centroid_index_y"], [one.centroid[0] for one in known])


def test_pixels_that_are_not_finite_are_left_out():
    label, image = np.array([[1, 1, 2], [1, 2, 2]]), np.array([[1.0, np.nan, np.inf], [3.0, np.nan, -np.inf]])
    found = intensity_table(label, image)
    assert [column[0] for column in found.values()] == [2, 1, 1, 3, 2, 4]
    assert all(np.isnan(column[1]) for column in found.values())


def test_a_volume_has_intensities_too():
    label, image = DRAW.integers(0, 4, (5, 6, 7)), DRAW.normal(size=(5, 6, 7))
    found = intensity_table(label, image)
    np.testing.assert_allclose(found["cell_intensity_median"], ndimage.median(image, label, [1, 2, 3]))
    np.testing.assert_allclose(found["cell_intensity_sd"], ndimage.standard_deviation(image, label, [1, 2, 3]))


def test_channels_become_suffixes_and_colour_has_a_luminance():
    label, colour = blobs(2), DRAW.integers(0, 256, (3, 60, 70), dtype=np.uint8)
    found = cell_table(label, None, colour)
    known = by_name(cell_quantities((*cells.RGB, "luminance")))
    assert set(found) <= set(known)
    luma = np.tensordot(cells.LUMINANCE, colour.astype(float), axes=1)
    expected = ndimage.mean(luma, label, found["label"])
    np.testing.assert_allclose(found["cell_intensity_mean_luminance"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["cell_intensity_mean_green"], ndimage.mean(colour[1], label, found["label"]))
    assert "glcm_contrast_luminance" in found
    assert "glcm_contrast_red" not in found
    stained = cell_table(label, None, colour[:2], ["dapi", "gfp"])
    levels = texture.fixed_bins(colour[1], label, 32, value_range=(0, 256))
    pairs = texture.cooccurrence(levels, label, level_count=32)
    np.testing.assert_array_equal(stained["glcm_energy_gfp"], pairs["glcm_energy"])
    np.testing.assert_array_equal(cell_table(label, None, colour[1])["glcm_energy"], pairs["glcm_energy"])
    names = columns(stained, by_name(cell_quantities(("dapi", "gfp"))), physical=False, intensity="counts")
    assert "cell_intensity_mean_dapi_counts" in names
    assert "area_px2" in names


def slow_neighbours(label, spacing):
    """Pairs that touch and the smallest gap of each label, comparing all pixels of all labels."""
    held = {int(v): np.argwhere(label == v) for v in np.unique(label) if v}
    pairs, gaps = set(), dict.fromkeys(held, np.inf)
    for a, b in product(held, held):
        if a < b:
            steps = np.abs(held[a][:, None] - held[b][None]).reshape(-1, 2)
            if (steps.max(1) <= 1).any():
                pairs.add((a, b))
            gap = np.linalg.norm(np.maximum(steps - 1, 0) * spacing, axis=1).min()
            gaps[a], gaps[b] = min(gaps[a], gap), min(gaps[b], gap)
    return pairs, gaps


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 16), st.sampled_from([(1.0, 1.0), (0.5, 0.2), (0.3, 2.0)]))
def test_neighbours_by_comparing_all_pixels(seed, parts, spacing):
    label = blobs(seed, (40, 30), parts, gap=1.2)
    found = cell_table(label, spacing)
    pairs, gaps = slow_neighbours(label, spacing)
    assert set(map(tuple, touching_pairs(label).tolist())) == pairs
    many = [sum(value in pair for pair in pairs) for value in found["label"].tolist()]
    assert found["touching_cells"].tolist() == many
    if len(gaps) > 1:
        np.testing.assert_allclose(found["gap_distance"], [gaps[v] for v in found["label"].tolist()], rtol=1e-12)
    else:
        assert np.isnan(found["gap_distance"]).all()
    edge = {*label[0], *label[-1], *label[:, 0], *label[:, -1]}
    assert found["touches_border"].tolist() == [int(value in edge) for value in found["label"]]


def test_a_gap_across_a_wide_field_and_inside_a_ring():
    label = np.zeros((700, 900), dtype=np.int32)
    label[3, 5], label[690, 880], label[1, 1] = 1, 2_000_000_000, 7
    found = cell_table(label)
    assert found["label"].tolist() == [1, 7, 2_000_000_000]
    assert found["gap_distance"] == pytest.approx([np.hypot(1, 3), np.hypot(1, 3), np.hypot(686, 874)])
    y, x = np.indices((101, 101)) - 50
    radius = np.hypot(y, x)
    ring = np.where(radius < 6, 1, np.where((radius > 30) & (radius < 40), 2, 0))
    # Both centres are the same place, and yet the cells do not touch.
    table = cell_table(ring)
    assert table["nearest_centroid_distance"] == pytest.approx([0, 0], abs=1e-12)
    assert table["gap_distance"] == pytest.approx([24, 24], abs=1.5)


def test_large_images_run_in_threads_and_give_the_same(monkeypatch):
    label = np.kron(blobs(8, (60, 70), 30), np.ones((3, 3), dtype=np.uint16))
    image = DRAW.integers(0, 256, label.shape, dtype=np.uint8)
    one = cell_table(label, (0.5, 0.4), image)
    monkeypatch.setattr(texture, "_SMALL", 1)
    two = cell_table(label, (0.5, 0.4), image)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans())
def test_swapped_axes_and_flips_change_nothing_but_the_place(seed, swap):
    label, image = blobs(seed), np.random.default_rng(seed).integers(0, 256, (60, 70), dtype=np.uint8)
    first = cell_table(label, (0.5, 0.2), image)
    second = cell_table(label.T, (0.2, 0.5), image.T) if swap else cell_table(label[::-1], (0.5, 0.2), image[::-1])
    shape = planar_table(label)
    for name in set(first) - set(shape):
        np.testing.assert_allclose(second[name], first[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_millimetres_scale_lengths_and_densities():
    label = blobs(4)
    one, two = cell_table(label), cell_table(label, (0.25, 0.25))
    np.testing.assert_allclose(two["gap_distance"], one["gap_distance"] / 4)
    np.testing.assert_allclose(two["nearest_centroid_distance"], one["nearest_centroid_distance"] / 4)
    first, second = cell_summary(one, label.shape), cell_summary(two, label.shape, (0.25, 0.25))
    units = {quantity.name: quantity.unit for quantity in cells.SUMMARY}
    for name, value in first.items():
        power = {"mm2": 1 / 16, "mm-2": 16}.get(units[name], 1)
        assert second[name] == pytest.approx(value * power), name
    assert set(first) == set(units)
    assert spatial.Window.of_image(label.shape, (0.25, 0.25)).contains(cell_points(two, (0.25, 0.25))).all()
    assert cell_points(cell_table(np.ones((4, 6), int), (2, 1)), (2, 1)).tolist() == [[4, 3]]


def test_an_empty_image_and_a_full_one():
    none = cell_table(np.zeros((5, 6), dtype=np.uint16), None, np.ones((5, 6)))
    assert all(len(column) == 0 for column in none.values())
    summary = cell_summary(none, (5, 6))
    assert summary["cell_count"] == summary["cell_density"] == summary["confluence"] == 0
    assert summary["cell_count_high"] == pytest.approx(3.689, abs=1e-3)
    assert np.isnan(summary["cell_area_mean"])
    full = cell_table(np.full((5, 6), 9), None, np.full((5, 6), 7.0))
    assert full["cell_intensity_sd"].tolist() == [0]
    assert np.isnan([full["gap_distance"][0], full["nearest_centroid_distance"][0], full["glcm_correlation"][0]]).all()
    summary = cell_summary(full, (5, 6))
    assert (summary["confluence"], summary["border_cells"], summary["frame_count"]) == (100, 1, 0)
    assert np.isnan(summary["cell_area_mean_corrected"])


def test_the_poisson_interval_of_garwood():
    # Table of Garwood (1936), also in Altman, Statistics with Confidence.
    low, high = poisson_interval([0, 1, 10, 100])
    np.testing.assert_allclose(low, [0, 0.0253, 4.795, 81.36], atol=6e-3)
    np.testing.assert_allclose(high, [3.689, 5.572, 18.39, 121.63], atol=6e-3)
    for mean in (0.5, 3.0, 20.0):
        counts = np.arange(100)
        low, high = poisson_interval(counts, 0.9)
        assert poisson.pmf(counts[(low <= mean) & (mean <= high)], mean).sum() >= 0.9


@pytest.mark.parametrize("size", [70, 110])
def test_the_counting_frame_counts_each_cell_once(size):
    """Frames edge to edge over all cells: the sum of their counts is the number of cells."""
    whole = frames = plain = 0
    for seed in range(3):
        field = spread_out(seed, margin=size)
        whole += field.max() if np.unique(field).size == field.max() + 1 else 0
        corners = range(int(DRAW.integers(0, size)) - size + 1, field.shape[0], size)
        wide = np.pad(field, size)
        for y, x in product(corners, repeat=2):
            piece = wide[y + size : y + 2 * size, x + size : x + 2 * size]
            found = cell_summary(planar_table(piece), piece.shape)
            frames += found["frame_count"]
            plain += found["cell_count"]
    assert whole == 3 * 144
    # The lines of the frame beyond its corners cannot be seen; nothing else is missed or counted twice.
    assert frames == pytest.approx(whole, rel=0.03)
    assert plain > 1.3 * whole


def test_the_corrected_area_is_free_of_the_edge():
    size, corrected, naive = 100, [], []
    for seed in (5, 6, 7):
        field = spread_out(seed)
        true = planar_table(field)["area"].mean()
        for y, x in product(range(0, field.shape[0] - size, 29), repeat=2):
            piece = field[y : y + size, x : x + size]
            table = planar_table(piece)
            edge = np.isin(table["label"], [piece[0], piece[-1], piece[:, 0], piece[:, -1]])
            naive.append(table["area"][~edge].mean() / true)
            corrected.append(cell_summary(table, piece.shape)["cell_area_mean_corrected"] / true)
    assert np.mean(naive) < 0.96
    assert np.mean(corrected) == pytest.approx(1, abs=0.03)
    two = np.zeros((20, 30), dtype=int)
    two[2:4, 2:6], two[6:16, 5:15], two[0, 0] = 1, 2, 3
    weights = 1 / np.array([(20 - 2 - 1) * (30 - 4 - 1), (20 - 10 - 1) * (30 - 10 - 1)])
    found = cell_summary(planar_table(two), two.shape)["cell_area_mean_corrected"]
    assert found == pytest.approx(np.sum(weights * [8, 100]) / weights.sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_smear_phantom_has_its_count_and_areas(seed):
    phantom = make_smear(seed=seed, index=0, size=512)
    truth = phantom.truth["cells"]
    found = cell_table(phantom.layers["instances"], None, phantom.case.images["image"].pixels)
    assert found["label"].tolist() == list(range(1, len(truth) + 1))
    areas = np.array([cell["area_px"] for cell in truth])
    assert found["area"].mean() == pytest.approx(areas.mean(), rel=0.02)
    large = areas > 300
    np.testing.assert_allclose(found["area"][large], areas[large], rtol=0.02)
    longest = 2 * np.array([max(cell["axes_px"]) for cell in truth])
    np.testing.assert_allclose(found["major_axis_length"][large], longest[large], rtol=0.02)
    summary = cell_summary(found, (512, 512))
    assert summary["cell_count"] == sum(phantom.truth["counts"].values())
    assert summary["border_cells"] == 0


@pytest.mark.realdata
def test_every_nucleus_of_the_real_images_is_counted(real_data):
    from skimage.io import imread

    files, total = sorted((real_data / "nuclei" / "labels").glob("*.png")), 0
    assert len(files) == 334
    for path in files:
        label, colour = imread(path), imread(real_data / "nuclei" / "images" / path.name)
        table = cell_table(label, None, np.moveaxis(colour[..., :3], -1, 0))
        values, pixels = np.unique(label[label > 0], return_counts=True)
        assert table["label"].tolist() == values.tolist(), path.name
        assert table["area"].tolist() == pixels.tolist()
        summary = cell_summary(table, label.shape)
        assert summary["cell_count"] == len(values)
        assert summary["confluence"] == pytest.approx(100 * np.mean(label > 0))
        total += len(values)
    assert total > 9000


def test_areas_of_classes():
    classes, inside = DRAW.integers(0, 4, (30, 41)), DRAW.random((30, 41)) < 0.5
    found = class_areas(classes, (0.5, 0.2), tissue=inside, count=6)
    assert found["class_pixels"].tolist() == [np.sum(classes == k) for k in range(6)]
    assert found["class_area"].sum() == pytest.approx(30 * 41 * 0.1)
    assert found["tissue_fraction"] == pytest.approx([np.mean(classes[inside] == k) for k in range(6)])
    empty = class_areas(classes, tissue=np.zeros_like(classes))
    assert np.isnan(empty["tissue_fraction"]).all()
    assert empty["image_fraction"].sum() == pytest.approx(1)
    assert class_areas(np.zeros((0, 4), int), count=2)["class_pixels"].tolist() == [0, 0]


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.8)])
def test_interfaces_of_a_disc_of_two_halves(spacing):
    places = (np.indices((300, 300)) - 149.7) * np.array(spacing)[:, None, None]
    inside = np.hypot(*places) < 60
    classes = np.where(inside, np.where(places[0] + 0.37 * places[1] > 0, 1, 2), 0)
    found = interface_lengths(classes, spacing)
    assert found[0, 1] + found[0, 2] == pytest.approx(2 * np.pi * 60, rel=0.01)
    assert found[1, 2] == pytest.approx(120, rel=0.06)
    assert np.array_equal(found, found.T)
    assert np.diag(found).tolist() == [0, 0, 0]
    np.testing.assert_allclose(interface_lengths(classes.T, spacing[::-1]), found)
    np.testing.assert_allclose(interface_lengths(classes[:, ::-1], spacing), found)
    # The same estimate as the perimeter of a region.
    assert found[0, 1] + found[0, 2] == pytest.approx(planar_table(inside, spacing)["perimeter"][0])


@pytest.mark.parametrize("tile", [7, (4, 13), 100])
def test_shares_per_tile(tile):
    classes, inside = DRAW.integers(0, 3, (25, 38)).astype(np.uint8), DRAW.random((25, 38)) < 0.3
    found = tile_fractions(classes, tile, tissue=inside)
    high, wide = (tile, tile) if isinstance(tile, int) else tile
    assert found.shape == (-(-25 // high), -(-38 // wide), 3)
    for i, j in np.ndindex(found.shape[:2]):
        box = (slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide))
        held = classes[box][inside[box]]
        expected = [np.mean(held == k) for k in range(3)] if held.size else [np.nan] * 3
        np.testing.assert_allclose(found[i, j], expected)
    np.testing.assert_allclose(tile_fractions(classes, 100)[0, 0], class_areas(classes)["image_fraction"])


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_the_threshold_of_otsu(seed):
    draw = np.random.default_rng(seed)
    values = np.concatenate([draw.normal(0, 1, 700), draw.normal(draw.uniform(2, 8), 1, 500)])

    def between(cut):
        above = values > cut
        return above.mean() * (1 - above.mean()) * (values[above].mean() - values[~above].mean()) ** 2

    # Between two values any threshold is as good: what counts is the variance it reaches.
    assert between(otsu(values)) >= 0.999 * max(between(cut) for cut in np.sort(values)[:-1])
    assert between(otsu(values)) >= 0.999 * between(threshold_otsu(values))


def test_tissue_on_glass():
    y, x = np.indices((90, 110))
    held = (y - 45) ** 2 + (x - 50) ** 2 < 900
    colour = np.where(held, np.array([200, 90, 160])[:, None, None], 240) + DRAW.integers(-4, 5, (3, 90, 110))
    colour = colour.astype(np.uint8)
    for method in tissue.TISSUE_METHODS:
        found = tissue_mask(colour, method=method)
        assert np.array_equal(found.mask, held), method
        assert found.measures((0.1, 0.1)) == pytest.approx(
            {"tissue_area": held.sum() / 100, "tissue_share": held.mean()}
        )
    saturation = rgb2hsv(np.moveaxis(colour, 0, -1))[..., 1]
    assert np.array_equal(tissue_mask(colour, threshold=0.2).mask, saturation > 0.2)
    colour[:, 45, 50], colour[:, 3, 3] = 240, (200, 90, 160)
    found = tissue_mask(colour, smallest_px=5, smallest_hole_px=5)
    assert np.array_equal(found.mask, held)
    assert not np.array_equal(tissue_mask(colour).mask, held)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cell_table(np.ones((2, 3, 4), int)), "axes"),
        (lambda: cell_table(np.full((3, 3), -1)), "negative"),
        (lambda: cell_table(np.ones((3, 3), int), (1, 0)), "spacing"),
        (lambda: cell_table(np.ones((3, 3), int), None, np.ones((3, 3, 3, 1))), "image must have axes"),
        (lambda: cell_table(np.ones((5, 6), int), None, np.ones((5, 6, 3))), "image must have axes"),
        (lambda: cell_table(np.ones((3, 3), int), None, np.ones((2, 3, 3)), ["a"]), "2 different names"),
        (lambda: cell_table(np.ones((3, 3), int), None, np.ones((3, 3)), ["a", "b"]), "one channel"),
        (lambda: cell_summary(cell_table(np.ones((9, 9), int)), (5, 9)), "beyond"),
        (lambda: poisson_interval(-1), "counts"),
        (lambda: class_areas(np.full((3, 3), 5), count=3), "value 5"),
        (lambda: class_areas(np.full((3, 3), 5000)), "instance map"),
        (lambda: class_areas(np.ones((3, 3), int), tissue=np.ones((3, 4))), "tissue mask"),
        (lambda: interface_lengths(np.ones((2, 3, 3), int)), "axes"),
        (lambda: tile_fractions(np.ones((3, 3), int), 0), "tile"),
        (lambda: tissue_mask(np.ones((4, 3, 3))), "rgb"),
        (lambda: tissue_mask(np.ones((3, 3, 3)), method="hsv"), "method"),
        (lambda: tissue_mask(np.full((3, 3, 3), np.nan)), "finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_no_name_has_two_meanings():
    groups = (cells.QUANTITIES, texture.QUANTITIES, spatial.QUANTITIES, tissue.QUANTITIES)
    assert len(by_name(*groups)) >= len(cells.QUANTITIES)
    assert "overlap" not in by_name(cell_quantities())
