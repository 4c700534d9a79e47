"""Surface distances against closed formulas, brute force and other programs."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt
from scipy.spatial.distance import cdist
from skimage.measure import find_contours

from vesalius.measure import surface_band
from vesalius.measure.cube import areas
from vesalius.measure.quantities import by_name, columns
from vesalius.measure.surface import (
    DEFINITIONS,
    QUANTITIES,
    TABLE_QUANTITIES,
    quantities,
    surface_distances,
    surface_table,
)
from vesalius.measure.surface_bits import packed
from vesalius.measure.surface_mesh import mesh_distances
from vesalius.measure.surface_points import element_sizes, elements

every_definition = pytest.mark.parametrize("definition", DEFINITIONS)
DISTANCES = [one.name for one in QUANTITIES if one.unit == "mm"]
OVERLAPS = [one.name for one in QUANTITIES if one.unit == "1"]


def box(shape, *spans):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


def ball(radius, side=48, centre=(0.0, 0.0, 0.0), spacing=(1.0, 1.0, 1.0)):
    axes = [(np.arange(side) - (side - 1) / 2) * step - shift for step, shift in zip(spacing, centre, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z**2 + y**2 + x**2 <= radius**2


def blobs(shape, seed, part=0.5, smooth=1):
    """Random blobs: noise, opened a little, that may touch the border."""
    mask = np.random.default_rng(seed).random(shape) < part
    for _ in range(smooth):
        mask = binary_dilation(binary_erosion(mask, border_value=1))
    mask.flat[mask.size // 2] = True
    return mask


# --- By brute force -------------------------------------------------------------------------------------------------


def cells_by_hand(mask, spacing):
    """Centres of the cells with mixed corners in mm and their areas, from eight (four) shifted copies."""
    padded = np.pad(mask, 1).astype(int)
    inner = tuple(side - 1 for side in padded.shape)
    code = np.zeros(inner, dtype=int)
    for k in range(2**mask.ndim):
        corner = [k >> (mask.ndim - 1 - axis) & 1 for axis in range(mask.ndim)]
        code |= padded[tuple(slice(c, c + n) for c, n in zip(corner, inner, strict=True))] << k
    full = 2 ** (2**mask.ndim) - 1
    held = (code > 0) & (code < full)
    if mask.ndim == 3:
        sizes = areas(spacing)[code[held]]
    else:
        tall, wide = spacing
        half = np.hypot(tall, wide) / 2
        by_code = {0b0011: wide, 0b1100: wide, 0b0101: tall, 0b1010: tall, 0b0110: 2 * half, 0b1001: 2 * half}
        sizes = np.array([by_code.get(c, half) for c in code[held]])
    return np.argwhere(held) * spacing, sizes


def voxels_by_hand(mask, spacing):
    edge = mask & ~binary_erosion(mask)
    return np.argwhere(edge) * spacing, np.ones(edge.sum())


def by_hand(first, second, spacing, definition, tolerances, percentile):
    find = cells_by_hand if definition == "elements" else voxels_by_hand
    (a, wa), (b, wb) = find(first, spacing), find(second, spacing)
    between = cdist(a, b)
    there, back = between.min(1), between.min(0)
    ranks = []
    for distances, weights in ((there, wa), (back, wb)):
        if definition == "voxels":
            ranks.append(np.percentile(distances, percentile))
            continue
        order = np.argsort(distances)
        reached = np.cumsum(weights[order]) / weights.sum()
        ranks.append(distances[order][np.argmax(reached >= percentile / 100 - 1e-9)])
    total = wa.sum() + wb.sum()
    one, two = np.average(there, weights=wa), np.average(back, weights=wb)
    return [
        max(there.max(), back.max()),
        max(ranks),
        ((there * wa).sum() + (back * wb).sum()) / total,
        (one + two) / 2,
        one,
        two,
        *((wa[there <= t + 1e-9].sum() + wb[back <= t + 1e-9].sum()) / total for t in tolerances),
    ]


@pytest.mark.parametrize("definition", ["elements", "voxels"])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((9, 10, 11), (1.0, 1.0, 1.0)), ((5, 12, 13), (3.0, 0.7, 0.9)), ((3, 4, 70), (1, 2, 0.5)), ((20, 25), (0.6, 1.4))],
)
@pytest.mark.parametrize("seed", range(4))
def test_all_numbers_by_brute_force(definition, shape, spacing, seed):
    first, second = blobs(shape, seed, 0.55), blobs(shape, seed + 100, 0.45)
    spacing, tolerances = np.asarray(spacing, dtype=float), (0.0, 1.0, 2.1)
    found = surface_distances(first, second, spacing, tolerances=tolerances, percentiles=(90,), definition=definition)
    expected = by_hand(first, second, spacing, definition, tolerances, 90)
    np.testing.assert_allclose(list(found.values())[:-1], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.6, 1.7)])
def test_the_lengths_of_contour_elements_are_those_of_skimage(seed, spacing):
    mask = blobs((14, 17), seed, smooth=0)
    bits = packed(mask[None].view(np.uint8), 1, 1)
    found = elements(bits, 17, True, element_sizes(spacing)).weights.sum()
    lines = find_contours(np.pad(mask, 1).astype(float), 0.5)
    assert found == pytest.approx(sum(np.linalg.norm(np.diff(line * spacing, axis=0), axis=1).sum() for line in lines))


@pytest.mark.parametrize(
    ("shape", "spacing", "band_mm"),
    [
        ((9, 10, 11), (1, 1, 1), 1.0),
        ((9, 12, 75), (2, 1, 0.8), 2.0),
        ((12, 70), (1, 0.5), 2.5),
        ((6, 7, 8), (5, 3, 3), 2),
    ],
)
@pytest.mark.parametrize("most", [surface_band._MOST_ROWS, 0], ids=["rows", "transform"])
def test_boundary_iou_by_brute_force(monkeypatch, shape, spacing, band_mm, most):
    monkeypatch.setattr(surface_band, "_MOST_ROWS", most)
    first, second = blobs(shape, 1, 0.7), blobs(shape, 2, 0.7)
    bands = []
    for mask in (first, second):
        inside = np.pad(mask, 1)
        inner = tuple(slice(1, -1) for _ in shape)
        away = distance_transform_edt(inside, sampling=spacing)[inner]
        bands.append(mask & ((away <= band_mm + 1e-9) | ~binary_erosion(inside)[inner]))
    expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    found = surface_distances(first, second, spacing, band_mm=band_mm)["boundary_iou"]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_wide_band_reaches_over_words_of_bits():
    first, second = ball(40, 90)[45], ball(41, 90)[45]
    for width in (30.0, 35.0, 500.0):
        away = [distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] for mask in (first, second)]
        bands = [mask & (far <= width) for mask, far in zip((first, second), away, strict=True)]
        expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
        assert surface_distances(first, second, band_mm=width)["boundary_iou"] == pytest.approx(expected, rel=1e-12)


# --- Other programs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_boundary_voxels_and_hausdorff_are_those_of_simpleitk(seed):
    """`HausdorffDistanceImageFilter` compares all voxels of two objects: here it is given their outlines."""
    spacing = (2.0, 0.8, 1.1)
    first, second = np.pad(blobs((8, 13, 12), seed, 0.6), 1), np.pad(blobs((8, 13, 12), seed + 9, 0.6), 1)
    outlines = []
    for mask in (first, second):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        outlines.append(sitk.LabelContour(image, fullyConnected=False))
    judge = sitk.HausdorffDistanceImageFilter()
    judge.Execute(*outlines)
    found = surface_distances(first, second, spacing, definition="voxels")
    assert found["hausdorff_distance"] == pytest.approx(judge.GetHausdorffDistance(), rel=1e-6)
    # Its average is the mean of the two one-way means.
    assert found["masd"] == pytest.approx(judge.GetAverageHausdorffDistance(), rel=1e-6)


# --- Closed formulas ------------------------------------------------------------------------------------------------


@every_definition
@pytest.mark.parametrize("spacing", [None, (2.5, 0.5, 0.8)])
@pytest.mark.parametrize("shift", [(1, 0, 0), (0, 3, 0), (0, 0, 7)])
def test_a_shifted_cube_is_as_far_as_it_was_shifted(definition, spacing, shift):
    first = box((24, 24, 24), (6, 14), (6, 14), (6, 14))
    second = np.roll(first, shift, (0, 1, 2))
    found = surface_distances(first, second, spacing, definition=definition)
    steps = np.ones(3) if spacing is None else np.array(spacing)
    assert found["hausdorff_distance"] == pytest.approx(float(np.dot(steps, shift)))


@every_definition
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.8, 0.8)])
def test_concentric_balls_are_as_far_as_their_radii_differ(definition, spacing):
    found = surface_distances(
        ball(17, spacing=spacing), ball(11, spacing=spacing), spacing, definition=definition, tolerances=(3.5, 8.5)
    )
    voxel = max(spacing)
    for name in DISTANCES:
        assert abs(found[name] - 6) < voxel, name
    assert found["surface_dice_at_3_5"] < 0.1
    assert found["surface_dice_at_8_5"] == 1.0
    assert found["boundary_iou"] == 0.0


def test_the_mesh_is_nearest_to_the_distance_of_two_discs():
    """Elements lie in a layer of cells: the nearest one is on average nearer than the contour itself."""
    first, second = ball(40, 100)[50], ball(31, 100)[50]
    exact, cells = (surface_distances(first, second, definition=name)["assd"] for name in ("mesh", "elements"))
    assert exact == pytest.approx(9, abs=0.3)
    assert abs(exact - 9) < abs(cells - 9) < 0.6


@every_definition
def test_a_thin_plate_and_its_shift(definition):
    """A plate of one voxel has surfaces on both sides; seen from a parallel one, 4 voxels lie between."""
    first, second = box((20, 20, 20), (5, 6), (4, 16), (4, 16)), box((20, 20, 20), (9, 10), (4, 16), (4, 16))
    found = surface_distances(first, second, (2, 1, 1), definition=definition, percentiles=(1, 50, 100))
    assert found["hausdorff_distance"] == pytest.approx(8)
    assert found["hausdorff_distance_100"] == found["hausdorff_distance"]
    # Elements and triangles know the near side from the far one.
    nearest = 8 if definition == "voxels" else 6
    assert nearest - 1e-9 <= found["hausdorff_distance_1"] <= nearest + 0.5


@every_definition
def test_a_mask_that_touches_the_border_is_closed_there(definition):
    first = box((6, 7, 8), (0, 6), (0, 4), (0, 8))
    second = box((6, 7, 8), (0, 6), (0, 7), (0, 8))
    inside = surface_distances(first, second, (1, 2, 3), definition=definition)
    padded = surface_distances(np.pad(first, 3), np.pad(second, 3), (1, 2, 3), definition=definition)
    assert inside == pytest.approx(padded)
    assert inside["hausdorff_distance"] == pytest.approx(6)


@every_definition
def test_an_image_is_not_a_volume_of_one_slice(definition):
    first, second = ball(9, 30)[15], ball(7, 30)[15]
    flat = surface_distances(first, second, (0.7, 0.9), definition=definition)
    assert 1.4 < flat["hausdorff_distance"] < 3
    slab = surface_distances(first[None], second[None], (5, 0.7, 0.9), definition=definition)
    assert slab["masd"] < flat["masd"]  # the faces of the slab lie on each other


def test_the_distance_to_a_mesh_is_the_smallest_to_its_triangles():
    """Against points strewn densely over every triangle: never nearer than the truth, and seldom much further."""
    spacing = (1.5, 1.0, 0.8)
    pair = [blobs((5, 6, 7), seed, 0.5) for seed in (3, 4)]
    a, b = (elements(packed(mask.view(np.uint8), 1, 1), 7, False, element_sizes(spacing)) for mask in pair)
    found, _ = mesh_distances(a, b, spacing, False, 1.0)
    from vesalius.measure.surface_mesh import _samples, mesh

    starts, _ = _samples(mesh(a, spacing, False), 1.0, False)
    rng = np.random.default_rng(0)
    weights = rng.dirichlet([0.6, 0.6, 0.6], size=400)
    strewn = np.einsum("pk,tkd->tpd", weights, mesh(b, spacing, False)).reshape(-1, 3)
    some = rng.choice(len(starts), 300, replace=False)
    upper = np.concatenate([cdist(starts[part], strewn).min(1) for part in np.array_split(some, 10)])
    assert (found[some] <= upper + 1e-12).all()
    assert (upper - found[some]).max() < 0.15


# --- Empty masks, equal masks, label maps, arguments -----------------------------------------------------------------


@every_definition
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5), (1, 1, 1)])
def test_empty_and_equal_masks(definition, shape):
    none, full = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    for pair in ((none, none), (full, full)):
        found = surface_distances(*pair, definition=definition)
        assert {found[name] for name in DISTANCES} == {0.0}
        assert {found[name] for name in OVERLAPS} == {1.0}
    for pair in ((none, full), (full, none)):
        found = surface_distances(*pair, definition=definition)
        assert {found[name] for name in DISTANCES} == {np.inf}
        assert {found[name] for name in OVERLAPS} == {0.0}
        found = surface_distances(*pair, definition=definition, empty="nan")
        assert np.isnan([found[name] for name in DISTANCES]).all()
        assert {found[name] for name in OVERLAPS} == {0.0}
    assert np.isnan(list(surface_distances(none, none, empty="nan").values())).all()
    assert surface_distances(full, full, empty="nan")["hausdorff_distance"] == 0


def test_names_units_and_options():
    mask = ball(5, 16)
    found = surface_distances(mask, np.roll(mask, 1, 0), tolerances=(0.5, 3), percentiles=(97.5, 50))
    described = by_name(quantities((0.5, 3), (97.5, 50)))
    assert list(found) == list(described)
    assert "surface_dice_at_0_5" in found
    assert found["hausdorff_distance_97_5"] >= found["hausdorff_distance_50"]
    assert "hausdorff_distance_97_5_px" in columns(found, described, physical=False)
    assert list(surface_distances(mask, mask)) == [one.name for one in QUANTITIES]
    assert len(surface_distances(mask, mask, tolerances=(), percentiles=())) == 6


def test_bad_arguments_are_refused():
    mask = np.ones((3, 4, 5), dtype=bool)
    for options, word in [
        ({"tolerances": (-1,)}, "tolerances"),
        ({"tolerances": (1, 1)}, "tolerances"),
        ({"percentiles": (0,)}, "percentiles"),
        ({"percentiles": (101,)}, "percentiles"),
        ({"definition": "surfels"}, "definition"),
        ({"band_mm": 0}, "band_mm"),
        ({"empty": "zero"}, "empty"),
        ({"resolution": -1}, "resolution"),
        ({"spacing": (1, 1)}, "spacing"),
    ]:
        with pytest.raises(ValueError, match=word):
            surface_distances(mask, mask, **options)
    with pytest.raises(ValueError, match="one shape"):
        surface_distances(mask, mask[:2])
    with pytest.raises(ValueError, match="labels"):
        surface_table(mask, mask, labels=[0])
    with pytest.raises(ValueError, match="second must not be negative"):
        surface_table(mask, -mask.astype(int))


@every_definition
@pytest.mark.parametrize("shape", [(14, 15, 16), (30, 31)])
def test_a_table_holds_what_each_label_gives_alone(definition, shape):
    rng = np.random.default_rng(5)
    coarse = [rng.integers(0, 5, [-(-side // 4) for side in shape]) for _ in range(2)]
    first, second = (np.kron(one, np.ones((4,) * len(shape), dtype=int)) for one in coarse)
    first, second = (array[tuple(slice(side) for side in shape)] for array in (first, second))
    second[second == 4] = 300  # a value that the type of the other map cannot hold
    spacing = (2.0, 0.8, 1.1)[-len(shape) :]
    table = surface_table(first.astype(np.uint8), second.astype(np.int32), spacing, definition=definition)
    assert list(table) == [one.name for one in TABLE_QUANTITIES]
    assert table["label"].tolist() == [1, 2, 3, 4, 300]
    for row, label in enumerate(table["label"]):
        alone = surface_distances(first == label, second == label, spacing, definition=definition)
        for name, value in alone.items():
            assert table[name][row] == pytest.approx(value, rel=1e-12), name


@every_definition
def test_the_order_of_the_axes_in_memory_does_not_matter(definition):
    first, second = ball(9, 24), ball(8, 24, centre=(1.0, 2.0, 0.0))
    expected = surface_distances(first, second, (2, 1, 0.5), definition=definition)
    pair = [np.asfortranarray(mask) for mask in (first, second)]
    assert surface_distances(*pair, (2, 1, 0.5), definition=definition) == pytest.approx(expected)
    assert surface_distances(pair[0], second, (2, 1, 0.5), definition=definition) == expected
    table = surface_table(*pair, (2, 1, 0.5), definition=definition)
    assert {name: column[0] for name, column in table.items() if name != "label"} == pytest.approx(expected)


def test_a_table_of_chosen_labels():
    first = np.zeros((6, 7, 8), dtype=np.int16)
    first[1:4, 2:5, 3:6] = 3
    table = surface_table(first, first, labels=[9, 3])
    assert table["label"].tolist() == [3, 9]
    assert table["hausdorff_distance"].tolist() == [0, 0]
    assert surface_table(first, first, labels=[9], empty="nan")["surface_dice_at_1"][0] != 1
    assert surface_table(first * 0, first * 0)["assd"].shape == (0,)
