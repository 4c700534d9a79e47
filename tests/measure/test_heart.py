"""Ventricles against closed formulas of ellipsoids, and the chest film against drawn widths."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.measure.heart import (
    DENSITY,
    QUANTITIES,
    apical_function,
    area_length_volume,
    cardiothoracic_ratio,
    clip_function,
    disc_volume,
    ejection,
    long_axis,
    short_axis_function,
    volume_curve,
)

STEP = (0.6, 0.8)


def view(long, half_width, *, turn=0.0, cut=None, tilt=0.0, step=STEP, shape=(260, 220), shift=(0.3, -0.2)):
    """An ellipse with the half axes `long` and `half_width` (mm), apex up, turned; cut off at the base."""
    y, x = np.indices(shape)
    y, x = (y - shape[0] / 2 + shift[0]) * step[0], (x - shape[1] / 2 + shift[1]) * step[1]
    up, side = -(y * np.cos(turn) - x * np.sin(turn)), y * np.sin(turn) + x * np.cos(turn)
    mask = (up / long) ** 2 + (side / half_width) ** 2 <= 1
    return mask if cut is None else mask & (up >= cut * long + np.tan(tilt) * side)


def ends(long, *, turn=0.0, cut=None, step=STEP, shape=(260, 220), shift=(0.3, -0.2)):
    """Base and apex of that view in index units."""
    found = []
    for up in (-long if cut is None else cut * long, long):
        y, x = -up * np.cos(turn), up * np.sin(turn)
        found.append((y / step[0] + shape[0] / 2 - shift[0], x / step[1] + shape[1] / 2 - shift[1]))
    return found


def spheroid(long, one, two, cut=None):
    """ml of an ellipsoid with these half axes above the plane at `cut` times the long one."""
    low = -1.0 if cut is None else cut
    return math.pi * long * one * two * ((1 - 1 / 3) - (low - low**3 / 3)) / 1000


@pytest.mark.parametrize("turn", np.deg2rad([0, 23, 45, 90, 160]))
@pytest.mark.parametrize(("long", "half_width", "cut"), [(45, 22, None), (72, 22, 0.0), (55, 21, -0.4)])
def test_one_view_against_formulas(turn, long, half_width, cut):
    found = long_axis(view(long, half_width, turn=turn, cut=cut), STEP)
    length = long * (2 if cut is None else 1 - cut)
    # Two of the pixels' 0.8 mm along the axis, and 1.5 % in volume for the outline in pixels and 20 discs.
    assert found.length == pytest.approx(length, abs=0.8)
    assert disc_volume(found) == pytest.approx(spheroid(long, half_width, half_width, cut), rel=0.015)
    if cut != -0.4:  # the formula of area and length is exact for whole and half spheroids only
        assert area_length_volume(found) == pytest.approx(spheroid(long, half_width, half_width, cut), rel=0.015)
    if cut is not None:
        for point, true in zip((found.base, found.apex), ends(long, turn=turn, cut=cut), strict=True):
            assert np.hypot(*((np.array(point) - true) * STEP)) < 2.5
    assert found.diameters.shape == (20,)
    assert found.area == pytest.approx(view(long, half_width, turn=turn, cut=cut).sum() * 0.48)


@pytest.mark.parametrize("tilt", np.deg2rad([-15, 10, 15]))
def test_a_tilted_base(tilt):
    mask = view(72, 22, cut=0.0, tilt=tilt, turn=0.3)
    found = long_axis(mask, STEP)
    assert found.length == pytest.approx(72, abs=1)
    assert disc_volume(found) == pytest.approx(spheroid(72, 22, 22, 0), rel=0.03)


def test_the_atrium_or_a_hint_says_where_the_base_is():
    lower = view(45, 22, cut=-0.5)
    whole = view(45, 22)
    atrium = whole & ~lower
    found = long_axis(lower, STEP, atrium=atrium)
    base, apex = ends(45, cut=-0.5)
    assert np.hypot(*((np.array(found.base) - base) * STEP)) < 1
    assert np.hypot(*((np.array(found.apex) - apex) * STEP)) < 1.5
    assert long_axis(whole, STEP).apex[0] < long_axis(whole, STEP).base[0]
    for hint in ((0, 110), (259, 110)):
        turned = long_axis(whole, STEP, apex=hint)
        assert abs(turned.apex[0] - hint[0]) < abs(turned.base[0] - hint[0])
        assert disc_volume(turned) == pytest.approx(spheroid(45, 22, 22), rel=0.01)


def test_specks_and_holes_do_not_move_the_axis():
    mask = view(72, 22, cut=0.0, turn=0.3)
    spoiled = mask.copy()
    spoiled[2:4, 2:4] = True
    y, x = (int(value) for value in np.argwhere(mask).mean(0))
    spoiled[y : y + 3, x : x + 3] = False
    expected, found = long_axis(mask, STEP), long_axis(spoiled, STEP)
    assert (found.base, found.apex) == (expected.base, expected.apex)
    np.testing.assert_array_equal(found.diameters, expected.diameters)


@settings(max_examples=10)
@given(st.integers(0, 3), st.floats(0.3, 3.0))
def test_turns_of_the_picture_and_scale(quarter, scale):
    mask = view(70, 22, cut=0.0, turn=0.2, step=(0.7, 0.7))
    expected = disc_volume(long_axis(mask, (0.7, 0.7)))
    turned = np.rot90(mask, quarter)[:, :: (-1) ** quarter]
    assert disc_volume(long_axis(turned, (0.7, 0.7))) == pytest.approx(expected, rel=1e-2)
    assert disc_volume(long_axis(mask, (0.7 * scale,) * 2)) == pytest.approx(expected * scale**3, rel=2e-3)
    pixels = disc_volume(long_axis(mask), physical=False)
    assert pixels * 0.7**3 / 1000 == pytest.approx(expected, rel=2e-3)


def test_biplane_ejection_fraction():
    four = view(80, 24, cut=0.0, turn=0.2), view(66, 17, cut=0.0, turn=0.2)
    two = view(80, 20, cut=0.0, turn=-0.3), view(66, 15, cut=0.0, turn=-0.3)
    found = apical_function(four, two, STEP, heart_rate=70)
    full, emptied = spheroid(80, 24, 20, 0), spheroid(66, 17, 15, 0)
    assert found["end_diastolic_volume"] == pytest.approx(full, rel=0.015)
    assert found["end_systolic_volume"] == pytest.approx(emptied, rel=0.015)
    assert found["ejection_fraction"] == pytest.approx(100 * (1 - emptied / full), abs=1)
    assert found["stroke_volume"] == pytest.approx(full - emptied, rel=0.02)
    assert found["cardiac_output"] == pytest.approx(found["stroke_volume"] * 0.07)
    assert found["long_axis_diastole"] == pytest.approx(80, abs=1)
    assert found["long_axis_systole"] == pytest.approx(66, abs=1)
    assert found["long_axis_difference"] < 2
    single = apical_function(four, None, STEP)
    assert single["ejection_fraction"] == pytest.approx(100 * (1 - 66 * 17**2 / (80 * 24**2)), abs=1)
    assert math.isnan(single["long_axis_difference"])
    short = apical_function(four, (view(64, 20, cut=0.0), two[1]), STEP)
    assert short["long_axis_difference"] == pytest.approx(20, abs=1.5)


def ball(a, b, c, step, shape):
    index = np.indices(shape).astype(float)
    middle = [(side - 1) / 2 + 0.1 for side in shape]
    return sum(((index[k] - middle[k]) * step[k] / (a, b, c)[k]) ** 2 for k in range(3)) <= 1


def test_short_axis_against_ellipsoids():
    step, shape = (4.0, 1.2, 1.5), (26, 70, 56)
    maps = []
    for size in ((40, 24, 22), (32, 16, 15)):
        cavity = ball(*size, step, shape)
        muscle = ball(*(side + 8 for side in size), step, shape) & ~cavity
        maps.append(np.where(cavity, 3, np.where(muscle, 2, 0)).astype(np.uint8))
    found = short_axis_function(*maps, step, cavity=3, myocardium=2, heart_rate=60)
    full, emptied = (4 / 3 * math.pi * math.prod(size) / 1000 for size in ((40, 24, 22), (32, 16, 15)))
    wall = 4 / 3 * math.pi * (48 * 32 * 30 - 40 * 24 * 22) / 1000
    assert found["end_diastolic_volume"] == pytest.approx(full, rel=0.01)
    assert found["end_systolic_volume"] == pytest.approx(emptied, rel=0.01)
    assert found["ejection_fraction"] == pytest.approx(100 * (1 - emptied / full), abs=0.5)
    assert found["myocardial_mass"] == pytest.approx(DENSITY * wall, rel=0.01)
    assert found["cardiac_output"] == pytest.approx(found["stroke_volume"] * 0.06)
    pixels = short_axis_function(*maps, cavity=3, myocardium=2)
    assert pixels["end_diastolic_volume"] == (maps[0] == 3).sum()
    assert pixels["ejection_fraction"] == pytest.approx(found["ejection_fraction"])
    assert math.isnan(pixels["myocardial_mass"])
    nothing = short_axis_function(maps[0], np.zeros((3, 4, 5), int), step, cavity=3)
    assert math.isnan(nothing["ejection_fraction"])
    assert nothing["end_diastolic_volume"] == found["end_diastolic_volume"]


@pytest.mark.parametrize(("rate", "fps"), [(60, 30), (72, 50), (110, 25)])
def test_a_beating_clip(rate, fps):
    time = np.arange(int(2.6 * 60 / rate * fps)) / fps
    part = 0.5 + 0.5 * np.cos(2 * np.pi * time * rate / 60)
    frames = np.array([view(60 + 15 * p, 15 + 7 * p, cut=0.0, step=(1.2, 1.2), shape=(140, 60)) for p in part])
    frames = frames[:, :80]
    frames[5] = False
    curve = volume_curve(frames, (1.2, 1.2))
    assert np.flatnonzero(np.isnan(curve)).tolist() == [5]
    found = clip_function(curve, fps=fps)
    full, emptied = spheroid(75, 22, 22, 0), spheroid(60 + 15 * part.min(), 15 + 7 * part.min(), 15, 0)
    emptied *= (15 + 7 * part.min()) / 15
    assert found["end_diastolic_volume"] == pytest.approx(full, rel=0.03)
    assert found["ejection_fraction"] == pytest.approx(100 * (1 - emptied / full), abs=2)
    assert found["heart_rate"] == pytest.approx(rate, rel=0.03)
    assert part[int(found["frame_diastole"])] > 0.97
    assert part[int(found["frame_systole"])] < 0.03
    areas = volume_curve(frames, (1.2, 1.2), method="area", workers=1)
    np.testing.assert_allclose(areas, curve, rtol=0.03)


def test_the_median_takes_out_single_frames():
    curve = 100 + 30 * np.cos(np.arange(90) * 2 * np.pi / 30)
    spoiled = curve.copy()
    spoiled[[12, 47]] = 400, 5
    assert clip_function(spoiled)["frame_diastole"] == 12
    found = clip_function(spoiled, median=3)
    assert found["end_diastolic_volume"] == pytest.approx(130, abs=1)
    assert found["end_systolic_volume"] == pytest.approx(70, abs=1)
    with_notch = curve + 6 * np.cos(np.arange(90) * 4 * np.pi / 30 + 1)
    assert clip_function(with_notch, fps=30)["heart_rate"] == pytest.approx(60, rel=0.02)


def test_clips_without_volume_or_period():
    found = clip_function(np.full(20, np.nan), fps=30)
    assert all(math.isnan(value) for value in found.values())
    found = clip_function([], fps=30)
    assert math.isnan(found["ejection_fraction"])
    for curve in (np.full(40, 80.0), np.linspace(120, 50, 40), np.random.default_rng(0).normal(80, 5, 60)):
        assert math.isnan(clip_function(curve, fps=30)["heart_rate"])
    assert "heart_rate" not in clip_function(np.full(40, 80.0))
    assert np.isnan(volume_curve(np.zeros((3, 5, 5), bool))).all()


def test_tiny_masks():
    for pixels in ([(3, 3)], [(3, 3), (3, 4)], [(3, 3), (4, 4)]):
        mask = np.zeros((8, 8), bool)
        mask[tuple(np.transpose(pixels))] = True
        found = long_axis(mask, STEP)
        assert found.length > 0
        assert found.area == pytest.approx(len(pixels) * 0.48)
    assert long_axis(np.zeros((8, 8), bool)) is None
    assert math.isnan(disc_volume(None))
    assert math.isnan(ejection(0.0, 0.0)["ejection_fraction"])


def film(shape=(120, 160)):
    y, x = np.indices(shape)
    lungs = ((y - 60) / 45) ** 2 + ((x - 40) / 24) ** 2 <= 1
    lungs |= ((y - 60) / 45) ** 2 + ((x - 118) / 22) ** 2 <= 1
    heart = (np.abs(y - 80) <= 12) & (np.abs(x - 84) <= 30)
    lungs &= ~heart
    return heart, lungs


def test_cardiothoracic_ratio_of_a_drawn_film():
    heart, lungs = film()
    found = cardiothoracic_ratio(heart, lungs, (0.5, 0.4))
    assert found.values["heart_width"] == pytest.approx(61 * 0.4)
    assert found.values["thorax_width"] == pytest.approx((140 - 16 + 1) * 0.4)
    assert found.values["cardiothoracic_ratio"] == pytest.approx(61 / 125)
    assert found.heart == ((80, 53.5), (80, 114.5))
    assert found.thorax == ((60, 15.5), (60, 140.5))
    assert cardiothoracic_ratio(heart, lungs).values["cardiothoracic_ratio"] == pytest.approx(61 / 125)
    mirrored = cardiothoracic_ratio(heart[:, ::-1], lungs[:, ::-1], (0.5, 0.4))
    assert mirrored.values == pytest.approx(found.values)


def test_the_outermost_points_may_lie_on_different_rows():
    heart, lungs = film()
    heart[70, 50:90], heart[90, 80:120] = True, True
    found = cardiothoracic_ratio(heart, lungs)
    assert found.values["heart_width"] == 70
    assert found.heart == ((70, 49.5), (90, 119.5))


def test_films_without_heart_or_lung():
    heart, lungs = film()
    nothing = np.zeros_like(heart)
    found = cardiothoracic_ratio(nothing, lungs)
    assert found.heart is None
    assert math.isnan(found.values["cardiothoracic_ratio"])
    one_lung = lungs.copy()
    one_lung[:, 80:] = False
    for other in (nothing, one_lung):
        found = cardiothoracic_ratio(heart, other)
        assert found.thorax is None
        assert found.values["heart_width"] == 61
        assert math.isnan(found.values["cardiothoracic_ratio"])


def test_bad_arguments():
    flat, solid = np.ones((4, 4), int), np.ones((2, 4, 4), int)
    for words, call in {
        "stacks must": lambda: short_axis_function(flat, flat),
        "a view must": lambda: long_axis(solid),
        "discs must be at least": lambda: long_axis(flat, discs=0),
        "one shape": lambda: long_axis(flat, atrium=flat[:2]),
        "same discs": lambda: disc_volume(long_axis(flat), long_axis(flat, discs=10)),
        "a clip must": lambda: volume_curve(flat),
        "method must": lambda: volume_curve(solid, method="simpson"),
        "median must": lambda: clip_function([1.0], median=2),
        "fps must": lambda: clip_function([1.0], fps=0),
        "curve must": lambda: clip_function(flat),
        "heart and lungs": lambda: cardiothoracic_ratio(flat, flat[:2]),
        "spacing": lambda: long_axis(flat, (1, -1)),
        "two_spacing without": lambda: apical_function((flat, flat), (flat, flat), two_spacing=(1, 1)),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_every_number_is_described():
    known = {one.name for one in QUANTITIES}
    assert len(known) == len(QUANTITIES)
    mask = view(45, 22)
    solid = np.stack([mask.astype(int)] * 2)
    named = {
        *short_axis_function(solid, solid, (1, 1, 1), myocardium=2, heart_rate=60),
        *apical_function((mask, mask), (mask, mask), STEP),
        *clip_function([1.0, 2.0]),
        *cardiothoracic_ratio(mask, mask).values,
    }
    assert named == known
