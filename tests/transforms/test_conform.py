"""A case as a network sees it: against numpy and scipy, and against the same volume stored in another order."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from vesalius.core.errors import PlanError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.transforms.conform import Conform, Pose, air_level, pose_of, resampled_labels, sampled

POSES = [
    Pose(axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]
PLAIN = {"dims": 3, "channels": 1, "crop": "none", "normalise": {"kind": "none"}}


def axial(shape, spacing=(3.0, 2.0, 1.0), origin=(-20.0, -30.0, 40.0)):
    """Columns z, y, x of the affine along patient z, y, x (the affine maps to LPS x, y, z)."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)[::-1]
    affine[:3, 3] = origin
    return Grid(shape, affine)


def turned(pixels, grid, axes, flips):
    """The same voxels stored in another order: new array axis k is old axis ``axes[k]``, mirrored if ``flips[k]``."""
    moved = np.transpose(pixels, (0, *(axis + 1 for axis in axes)))
    affine = np.eye(4)
    affine[:3, 3] = grid.affine[:3, 3]
    for k, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        step = grid.affine[:3, axis]
        affine[:3, k] = -step if flip else step
        if flip:
            moved = np.flip(moved, k + 1)
            affine[:3, 3] += step * (grid.shape[axis] - 1)
    return np.ascontiguousarray(moved), Grid(moved.shape[1:], affine)


def oblique(grid, degrees=(11.0, -17.0, 8.0)):
    """The grid turned about the three patient axes."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one, two = [k for k in range(3) if k != axis]
        part = np.eye(3)
        part[one, one] = part[two, two] = np.cos(angle)
        part[one, two], part[two, one] = -np.sin(angle), np.sin(angle)
        turn = part @ turn
    affine = grid.affine.copy()
    affine[:3] = turn @ affine[:3]
    return Grid(grid.shape, affine)


def noise(shape, seed=0, channels=1):
    return np.random.default_rng(seed).normal(100, 30, (channels, *shape)).astype(np.float32)


@pytest.mark.parametrize("pose", POSES, ids=lambda p: f"{p.axes}{''.join('-' if f else '+' for f in p.flips)}")
def test_every_turn_is_undone(pose):
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    seen = pose.turn(values)
    assert seen.shape == (2, *(values.shape[1:][axis] for axis in pose.axes))
    assert np.shares_memory(seen, values)
    np.testing.assert_array_equal(pose.back(seen), values)
    # Voxel by voxel, from the words of the definition.
    for place in itertools.product(*(range(side) for side in seen.shape[1:])):
        source = [0, 0, 0]
        for k, (axis, flip) in enumerate(zip(pose.axes, pose.flips, strict=True)):
            source[axis] = values.shape[1 + axis] - 1 - place[k] if flip else place[k]
        assert seen[(1, *place)] == values[(1, *source)]
    assert pose.still == (pose == POSES[0])


@settings(max_examples=60)
@given(
    st.permutations(range(3)),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    arrays(np.int16, st.tuples(*[st.integers(1, 5)] * 4)),
)
def test_turn_and_back_is_nothing(axes, flips, values):
    pose = Pose(tuple(axes), flips)
    np.testing.assert_array_equal(pose.back(pose.turn(values)), values)
    np.testing.assert_array_equal(pose.turn(pose.back(values)), values)
    np.testing.assert_array_equal(pose.back(pose.turn(values[0])), values[0])


@pytest.mark.parametrize("tilted", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize("pose", POSES, ids=lambda p: f"{p.axes}{''.join('-' if f else '+' for f in p.flips)}")
def test_any_storage_order_is_seen_the_same(pose, tilted):
    grid = axial((6, 7, 8))
    grid = oblique(grid) if tilted else grid
    pixels = noise(grid.shape)
    conform = Conform(PLAIN | {"spacing_mm": [2.0, 2.5, 1.5]})
    wanted = conform(Image(grid, pixels))
    stored, place = turned(pixels, grid, pose.axes, pose.flips)
    seen = conform(Image(place, stored))
    assert seen.shape == wanted.shape == (9, 6, 5)
    np.testing.assert_allclose(seen.spacing_mm, wanted.spacing_mm, rtol=1e-12)
    np.testing.assert_array_equal(seen.all(), wanted.all())
    mask = (pixels[0] > 110).astype(np.uint8)
    there, _ = turned(mask[None], grid, pose.axes, pose.flips)
    np.testing.assert_array_equal(seen.labels(there[0]), wanted.labels(mask))


def test_axes_that_could_both_be_z_are_not_used_twice():
    # Two steps lie nearly along patient z: the pair with the larger sum of cosines wins.
    grid = oblique(axial((4, 5, 6)), (44.0, 0.0, 0.0))
    assert sorted(pose_of(grid).axes) == [0, 1, 2]
    assert pose_of(grid).still
    assert pose_of(oblique(axial((4, 5, 6)), (46.0, 0.0, 0.0))).axes == (1, 0, 2)


def test_without_a_place_in_the_patient_nothing_turns():
    assert pose_of(Grid((4, 5, 6), spacing=(3.0, 1.0, 1.0))).still
    assert pose_of(Grid((5, 6))).still
    pixels = noise((4, 5, 6))
    stored, grid = turned(pixels, axial((4, 5, 6)), (2, 1, 0), (True, False, True))
    off = Conform(PLAIN | {"orient": False})(Image(grid, stored))
    np.testing.assert_array_equal(off.all(), stored)


def one_axis(values, axis, side):
    """Linear interpolation between voxel centres, edges kept (scipy's nearest), from its definition."""
    old = values.shape[axis]
    places = (np.arange(side) + 0.5) * old / side - 0.5
    out = np.empty((*values.shape[:axis], side, *values.shape[axis + 1 :]))
    lines, found = np.moveaxis(values, axis, -1), np.moveaxis(out, axis, -1)
    for place in np.ndindex(lines.shape[:-1]):
        found[place] = ndimage.map_coordinates(lines[place], [places], order=1, mode="nearest")
    return out


SIDES = [((5, 6, 7), (9, 11, 8)), ((4, 9, 5), (4, 18, 10)), ((6, 7), (13, 9))]


@pytest.mark.parametrize(("old", "new"), SIDES)
def test_labels_are_those_with_the_largest_linear_weight(old, new):
    draw = np.random.default_rng(1)
    mask = draw.integers(0, 4, old).astype(np.uint8)
    hot = np.stack([(mask == k).astype(float) for k in range(4)])
    for axis, side in enumerate(new, start=1):
        hot = one_axis(hot, axis, side)
    two = np.sort(hot, axis=0)
    clear = two[-1] - two[-2] > 1e-5
    found = resampled_labels(mask, new)
    assert found.dtype == mask.dtype
    np.testing.assert_array_equal(found[clear], hot.argmax(axis=0)[clear])
    # Where two labels weigh the same, the smaller one is told.
    tie = (np.abs(hot - two[-1]) < 1e-7).argmax(axis=0)
    sure = clear | ((two[-1] - two[-2] < 1e-7) & (two[-2] - two[-3] > 1e-5))
    assert (found == tie)[sure].mean() > 0.97


def test_labels_that_shrink_use_every_voxel():
    # To half the size a triangle of width 2 weighs four voxels 1, 3, 3, 1; at the edges what is left of it.
    mask = np.random.default_rng(4).integers(0, 2, (16, 1)).astype(np.uint8)
    lined = np.pad(mask[:, 0].astype(float), 1)
    there = np.pad(np.ones(16), 1)
    parts = [np.dot(lined[k : k + 4], [1, 3, 3, 1]) / np.dot(there[k : k + 4], [1, 3, 3, 1]) for k in range(0, 16, 2)]
    np.testing.assert_array_equal(resampled_labels(mask, (8, 1))[:, 0], np.array(parts) > 0.5)
    assert len({round(part, 3) for part in parts}) > 2


@settings(max_examples=40)
@given(
    arrays(np.uint16, st.tuples(*[st.integers(1, 6)] * 3), elements=st.sampled_from([0, 1, 2, 300])),
    st.tuples(*[st.integers(1, 9)] * 3),
)
def test_resampling_invents_no_label(mask, shape):
    found = resampled_labels(mask, shape)
    assert found.shape == shape
    assert set(np.unique(found)) <= set(np.unique(mask)) | {0}
    if len(np.unique(mask)) == 1:
        assert (found == mask.flat[0]).all()
    if mask.shape == shape:
        np.testing.assert_array_equal(found, mask)


def test_a_hundred_labels_are_resampled_one_by_one():
    mask = (np.arange(100, dtype=np.uint8).reshape(10, 10)[None] + np.zeros((2, 1, 1), np.uint8)).repeat(2, axis=1)
    assert set(np.unique(resampled_labels(mask, (4, 40, 20)))) == set(range(100))


@pytest.mark.parametrize(
    ("shape", "spacing"), [((8, 9, 10), [2.0, 1.0, 1.5]), ((8, 9, 10), [6.0, 4.0, 0.5]), ((8, 9, 10), [3.0, 2.0, 1.0])]
)
@pytest.mark.parametrize("crop", ["none", "border"])
def test_planes_are_parts_of_the_whole(shape, spacing, crop):
    pixels = noise(shape, channels=2)
    pixels[:, :2] = pixels[:, :, :, 7:] = -5
    spec = PLAIN | {"channels": 2, "spacing_mm": spacing, "crop": crop, "window": [60.0, 150.0]}
    seen = Conform(spec | {"normalise": {"kind": "body"}})(Image(axial(shape), pixels))
    whole = seen.all()
    assert whole.shape == (2, *seen.shape)
    assert whole.dtype == np.float32
    for a, b in itertools.combinations(range(seen.shape[0] + 1), 2):
        np.testing.assert_allclose(seen.read(a, b), whole[:, a:b], atol=2e-6)


@pytest.mark.parametrize("spacing", [[1.5, 1.0, 0.5], [2.0, 1.3, 0.8]])
def test_pixels_are_interpolated_linearly(spacing):
    shape = (5, 6, 7)
    pixels = noise(shape)
    seen = Conform(PLAIN | {"spacing_mm": spacing})(Image(axial(shape), pixels))
    wanted = pixels.astype(float)
    for axis, side in enumerate(seen.shape, start=1):
        wanted = one_axis(wanted, axis, side)
    np.testing.assert_allclose(seen.all(), wanted, rtol=1e-5)
    assert seen.shape == tuple(round(n * a / b) for n, a, b in zip(shape, (3, 2, 1), spacing, strict=True))
    # The extent in mm is kept.
    np.testing.assert_allclose(np.multiply(seen.shape, seen.spacing_mm), np.multiply(shape, (3, 2, 1)))


def test_reading_planes_does_not_change_the_file():
    pixels = noise((4, 5, 6))
    before = pixels.copy()
    seen = Conform(PLAIN | {"window": [90.0, 110.0], "normalise": {"kind": "body"}})(Image(axial((4, 5, 6)), pixels))
    np.testing.assert_array_equal(seen.all(), seen.all())
    np.testing.assert_array_equal(pixels, before)


class TestNormalisation:
    def test_body_of_a_padded_volume(self):
        """Many voxels share the smallest value: all others are the body."""
        pixels = noise((10, 10, 10), channels=2)
        pixels[:, :5] = -7
        seen = Conform(PLAIN | {"channels": 2, "normalise": {"kind": "body"}})(Image(axial((10, 10, 10)), pixels))
        inside = pixels[:, 5:].reshape(2, -1).astype(float)
        wanted = (pixels - inside.mean(axis=1).reshape(2, 1, 1, 1)) / inside.std(axis=1).reshape(2, 1, 1, 1)
        np.testing.assert_allclose(seen.all(), wanted, atol=2e-4)

    def test_body_of_a_noisy_volume(self):
        """Air with noise: what lies above a tenth of the robust range is the body."""
        draw = np.random.default_rng(2)
        pixels = draw.rayleigh(3, (1, 20, 20, 20)).astype(np.float32)
        pixels[:, 5:15, 5:15, 5:15] += draw.normal(400, 20, (1, 10, 10, 10)).astype(np.float32)
        seen = Conform(PLAIN | {"normalise": {"kind": "body"}})(Image(axial((20, 20, 20)), pixels))
        body = pixels[:, 5:15, 5:15, 5:15].astype(float)
        wanted = (pixels - body.mean()) / body.std()
        np.testing.assert_allclose(seen.all(), wanted, atol=1e-3)
        low, high = np.percentile(pixels, (0.5, 99.5))
        assert air_level(pixels) == pytest.approx(low + 0.1 * (high - low))

    def test_gain_and_offset_of_a_scanner_do_not_matter(self):
        pixels = noise((8, 9, 10))
        conform = Conform(PLAIN | {"normalise": {"kind": "body"}})
        one = conform(Image(axial((8, 9, 10)), pixels)).all()
        two = conform(Image(axial((8, 9, 10)), pixels * 7 + 1000)).all()
        np.testing.assert_allclose(one, two, atol=1e-3)

    def test_fixed_and_window(self):
        pixels = noise((4, 5, 6))
        spec = PLAIN | {"window": [80.0, 120.0], "normalise": {"kind": "fixed", "mean": [100.0], "std": [20.0]}}
        seen = Conform(spec)(Image(axial((4, 5, 6)), pixels)).all()
        np.testing.assert_allclose(seen, (np.clip(pixels, 80, 120) - 100) / 20, atol=1e-5)

    def test_percentiles_keep_the_relation_of_colours(self):
        pixels = np.random.default_rng(0).integers(0, 200, (3, 20, 30)).astype(np.uint8)
        spec = {"dims": 2, "channels": 3, "normalise": {"kind": "percentile"}}
        seen = Conform(spec)(Image(Grid((20, 30)), pixels)).all()
        low, high = np.percentile(pixels, (0.5, 99.5))
        np.testing.assert_allclose(seen, (pixels.astype(float) - low) / (high - low) * 4 - 2, atol=1e-4)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"normalise": {"kind": "zscore"}}, "fixed, body, percentile, none"),
            ({"normalise": {}}, "fixed, body, percentile, none"),
            ({"normalise": {"kind": "fixed", "mean": [0.0]}}, "needs mean and std"),
            ({"window": [5.0]}, "low, high"),
            ({"window": [5.0, 5.0]}, "low below high"),
        ],
    )
    def test_specs_that_cannot_be_are_refused(self, change, words):
        with pytest.raises(PlanError, match=words):
            Conform(PLAIN | change)

    def test_large_images_are_normalised_by_a_sample(self):
        values = np.zeros((1, 1500, 1600), dtype=np.uint8)
        values[:, ::2] = 200
        drawn = sampled(values)
        assert drawn.shape[1] <= 2 * (1 << 21)
        assert drawn.dtype == np.float32
        small = values[:, :40, :40]
        np.testing.assert_array_equal(sampled(small)[0], small.reshape(-1))


class TestBorder:
    @settings(max_examples=60)
    @given(
        st.tuples(*[st.integers(2, 7)] * 3),
        st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 3),
        st.integers(-2, 2),
        st.integers(1, 2),
    )
    def test_only_equal_planes_go(self, inner, pads, value, channels):
        box = np.random.default_rng(3).integers(-5, 5, (channels, *inner)).astype(np.int16)
        box[0].flat[0], box[0].flat[-1] = 9, 8
        pixels = np.pad(box, ((0, 0), *pads), constant_values=value)
        seen = Conform(PLAIN | {"channels": channels, "crop": "border"})(Image(Grid(pixels.shape[1:]), pixels))
        assert seen.whole == pixels.shape[1:]
        kept = np.zeros(pixels.shape[1:], dtype=bool)
        kept[tuple(slice(a, a + n) for a, n in zip(seen.lower, seen.cut, strict=True))] = True
        # Never anything that differs from the padding, which is the value of the first voxel.
        corner = pixels[:, :1, :1, :1]
        assert not (pixels != corner).any(axis=0)[~kept].any()
        # And all there is to cut: every face of the box holds something else.
        for axis in range(3):
            for face in (0, -1):
                assert (np.take(seen.source != corner, face, axis=axis + 1)).any()

    def test_all_channels_count(self):
        pixels = np.zeros((2, 6, 6, 6), dtype=np.int16)
        pixels[0, 2:4, 2:4, 2:4] = 5
        pixels[1, 1, 3, 4] = 1
        seen = Conform(PLAIN | {"channels": 2, "crop": "border"})(Image(Grid((6, 6, 6)), pixels))
        assert (seen.lower, seen.cut) == ((1, 2, 2), (3, 2, 3))

    def test_labels_are_cut_as_pixels_are(self):
        pixels = np.zeros((1, 8, 8, 8), dtype=np.int16)
        pixels[0, 2:6, 3:7, 1:5] = np.random.default_rng(0).integers(1, 99, (4, 4, 4))
        seen = Conform(PLAIN | {"crop": "border"})(Image(Grid((8, 8, 8)), pixels))
        np.testing.assert_array_equal(seen.labels((pixels[0] > 50).astype(np.uint8)), seen.all()[0] > 50)


FLAT = {"dims": 2, "channels": 1, "normalise": {"kind": "none"}}


class TestChannels:
    def test_colours_become_gray_and_gray_three_equal_colours(self):
        colours = np.random.default_rng(0).integers(0, 256, (3, 5, 6)).astype(np.uint8)
        gray = Conform(FLAT)(Image(Grid((5, 6)), colours)).all()[0]
        # ITU-R BT.601
        wanted = 0.299 * colours[0] + 0.587 * colours[1] + 0.114 * colours[2]
        np.testing.assert_allclose(gray, wanted, rtol=1e-5)
        three = Conform(FLAT | {"channels": 3})(Image(Grid((5, 6)), colours[:1])).all()
        assert three.shape == (3, 5, 6)
        assert (three == colours[:1]).all()

    def test_transparency_is_left_out(self):
        colours = np.random.default_rng(0).integers(0, 256, (4, 5, 6)).astype(np.uint8)
        three = Conform(FLAT | {"channels": 3})(Image(Grid((5, 6)), colours)).all()
        np.testing.assert_array_equal(three, colours[:3])

    @pytest.mark.parametrize(("have", "want"), [(2, 3), (5, 1), (1, 2), (3, 4)])
    def test_other_numbers_are_refused(self, have, want):
        pixels = np.random.default_rng(0).integers(0, 9, (have, 5, 6))
        with pytest.raises(ValueError, match=f"has {have} channels, the model needs {want}"):
            Conform(FLAT | {"channels": want})(Image(Grid((5, 6)), pixels))

    def test_channels_of_volumes_are_no_colours(self):
        with pytest.raises(ValueError, match="has 3 channels, the model needs 1"):
            Conform(PLAIN)(Image(axial((4, 5, 6)), noise((4, 5, 6), channels=3)))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((1, 4, 5, 6), np.nan, np.float32), "120 values are not finite"),
        (np.where(np.arange(120).reshape(1, 4, 5, 6) == 7, np.inf, 1.0).astype(np.float32), "1 values are not finite"),
        (np.full((1, 4, 5, 6), 3, np.int16), "every pixel has the value 3"),
        (np.arange(30).reshape(1, 1, 5, 6), "has one slice only"),
        (np.arange(30).reshape(1, 5, 6), "has 2 dimensions (5, 6), the model has 3"),
        (np.arange(240).reshape(2, 4, 5, 6), "has 2 channels, the model needs 1"),
    ],
    ids=["NaN", "infinite", "constant", "one slice", "2-D", "channels"],
)
def test_what_no_network_can_see_is_refused_in_one_line(pixels, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        Conform(PLAIN)(Image(Grid(pixels.shape[1:]), pixels))
    assert "\n" not in str(caught.value)


def test_pictures_without_physical_size_are_magnified():
    pixels = np.random.default_rng(0).integers(0, 99, (1, 20, 30)).astype(np.uint8)
    conform = Conform({"dims": 2, "channels": 1, "scale": 0.5, "spacing_mm": None, "normalise": {"kind": "none"}})
    seen = conform(Image(Grid((20, 30)), pixels))
    assert seen.shape == (10, 15)
    assert conform(Image(Grid((20, 30)), pixels), scale=2.0).shape == (40, 60)
    assert seen.labels((pixels[0] > 50).astype(np.uint8)).shape == (10, 15)


def test_a_file_without_spacing_keeps_its_voxels():
    conform = Conform(PLAIN | {"spacing_mm": [1.0, 1.0, 1.0]})
    assert conform(Image(Grid((4, 5, 6)), noise((4, 5, 6)))).shape == (4, 5, 6)
