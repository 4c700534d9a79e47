"""Entropy, disagreement and calibration against SciPy and plain formulas; the band against brute force and by trial."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from scipy.special import expit, softmax

from vesalius.measure import calibration
from vesalius.measure.boundary_band import Band, LabelBand, apply_band, band_coverage, conformal_quantile, fit_band
from vesalius.measure.surface import surface_distances
from vesalius.measure.uncertainty import calibrate_temperature, count_voxels, disagreement, entropy


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_entropy_is_that_of_scipy(classes):
    table = softmax(3 * np.random.default_rng(classes).normal(size=(classes, 5, 6, 7)), axis=0).astype(np.float32)
    np.testing.assert_allclose(entropy(table), stats.entropy(table, axis=0) / math.log(classes), atol=1e-6)
    np.testing.assert_array_equal(entropy(np.moveaxis(table, 0, -1), axis=-1), entropy(table))


def test_entropy_at_its_ends():
    assert entropy(np.array([[1.0, 0.5], [0.0, 0.5]])).tolist() == [0.0, 1.0]
    assert entropy(np.array([[1.0, 0.0, 0.5]])).tolist() == [0.0, 0.0, 1.0]  # one probability of yes
    assert entropy(np.full((3, 4), 1 / 3, np.float16)).max() <= 1


def test_disagreement_is_that_of_the_formulas():
    members = softmax(2 * np.random.default_rng(1).normal(size=(5, 4, 6, 7)), axis=1).astype(np.float32)
    found = disagreement(iter(members))
    mean = members.mean(axis=0)
    whole = stats.entropy(mean, axis=0)
    inner = stats.entropy(members, axis=1).mean(axis=0)
    np.testing.assert_allclose(found.entropy, whole / math.log(4), atol=2e-6)
    np.testing.assert_allclose(found.mutual_information, (whole - inner) / math.log(4), atol=2e-6)
    top = np.take_along_axis(members, mean.argmax(axis=0)[None, None], axis=1)[:, 0]
    np.testing.assert_allclose(found.spread, top.std(axis=0), atol=2e-5)


def test_members_that_agree_or_contradict_each_other():
    one = softmax(np.random.default_rng(2).normal(size=(3, 8, 9)), axis=0)
    same = disagreement(np.stack([one] * 4))
    assert same.mutual_information.max() < 1e-6
    assert same.spread.max() < 1e-6
    sure = np.zeros((2, 2, 3, 3))
    sure[0, 0] = sure[1, 1] = 1
    split = disagreement(sure)
    np.testing.assert_allclose(split.mutual_information, 1)
    np.testing.assert_allclose(split.spread, 0.5)
    with pytest.raises(ValueError, match="one shape"):
        disagreement([np.ones((2, 3, 3)), np.ones((2, 3, 4))])
    with pytest.raises(ValueError, match="at least one"):
        disagreement([])


def voxels(seed, classes=3, shape=(12, 20, 21), sharp=2.0):
    """Logits that are `sharp` times too sure, and a truth drawn from the honest ones."""
    random = np.random.default_rng(seed)
    honest = np.stack([ndimage.gaussian_filter(random.normal(size=shape), 1.5) for _ in range(classes)])
    honest *= 2 / honest.std()
    share = softmax(honest, axis=0).cumsum(axis=0)
    truth = (random.random(shape) > share[:-1]).sum(axis=0).astype(np.uint8)
    return sharp * honest, truth


def test_reliability_and_error_are_those_of_a_count_by_hand():
    logits, truth = voxels(4)
    counts = count_voxels(logits, truth, (3.0, 1.0, 1.0), reach=4.0, bins=10)
    said, table = logits.argmax(axis=0), softmax(logits, axis=0)
    for label in (1, 2):
        near = (said == label) | (truth == label)
        low, high = np.argwhere(near).min(axis=0), np.argwhere(near).max(axis=0) + 1
        wide = np.array([2, 4, 4])
        box = tuple(slice(max(a - w, 0), b + w) for a, b, w in zip(low, high, wide, strict=True))
        stated, held = table[label][box].ravel(), truth[box].ravel() == label
        assert counts.ece()[label - 1] == pytest.approx(float(calibration.ece(held, stated, bins=10)), abs=1e-9)
        curve = calibration.reliability_curve(held, stated, bins=10)
        np.testing.assert_allclose(counts.curve()[0][label - 1], curve.confidence, atol=1e-9)
        np.testing.assert_allclose(counts.curve()[1][label - 1], curve.share, atol=1e-9)
        assert counts.weight[label - 1].sum() == held.size


def test_only_what_is_near_counts_and_ignored_voxels_do_not():
    logits = np.zeros((2, 40, 40))
    logits[1] = -5
    logits[1, 20, 20] = 5
    truth = np.zeros((40, 40), np.uint8)
    truth[20, 22] = 1
    assert count_voxels(logits, truth, reach=2).weight.sum() == 5 * 7
    truth[20, 21] = 7
    assert count_voxels(logits, truth, reach=2, ignore=7).weight.sum() == 5 * 7 - 1
    assert np.isnan(count_voxels(logits, np.full((40, 40), 7), ignore=7).ece()).all()


def test_the_temperature_of_two_classes_is_that_of_single_voxels():
    logits, truth = voxels(5, classes=2, sharp=3.0)
    counts = count_voxels(logits, truth, reach=100)
    flat = logits.reshape(2, -1).T
    expected = calibration.fit_temperature(flat, truth.ravel())
    assert expected == pytest.approx(3.0, rel=0.1)
    assert calibrate_temperature(counts) == pytest.approx(expected, rel=2e-3)
    assert counts.temperature(0) == calibrate_temperature(counts, 0)


def test_the_temperature_of_layers_and_sums_over_cases():
    random = np.random.default_rng(6)
    honest = random.normal(size=(2, 3, 30, 30)) * 2
    truth = random.random(honest.shape) < expit(honest)
    total = sum(
        (count_voxels(2 * one, held, layers=True, reach=50) for one, held in zip(honest[1:], truth[1:], strict=True)),
        start=count_voxels(2 * honest[0], truth[0], layers=True, reach=50),
    )
    flat = np.moveaxis(2 * honest, 1, -1).reshape(-1, 3)
    expected = calibration.fit_temperature(flat, np.moveaxis(truth, 1, -1).reshape(-1, 3), multilabel=True)
    assert calibrate_temperature(total) == pytest.approx(expected, rel=2e-3)
    single = calibration.fit_temperature(flat[:, 1], np.moveaxis(truth, 1, -1).reshape(-1, 3)[:, 1])
    assert calibrate_temperature(total, 1) == pytest.approx(single, rel=2e-3)


def test_no_wrong_voxel_is_no_evidence():
    truth = np.zeros((9, 9), np.uint8)
    truth[3:6, 3:6] = 1
    counts = count_voxels(np.stack([1.0 - truth, 1.0 * truth]), truth)
    assert calibrate_temperature(counts) == 1.0


def test_logarithms_of_probabilities_serve_as_logits():
    logits, truth = voxels(7)
    one, two = count_voxels(logits, truth), count_voxels(np.log(softmax(logits, axis=0)), truth)
    np.testing.assert_allclose(one.stated, two.stated)
    with pytest.raises(ValueError, match="does not fit"):
        count_voxels(logits, truth[:-1])


# --- the boundary band ---


def ball(shape, centre, radius, spacing=(1, 1, 1)):
    place = np.stack(np.indices(shape), axis=-1) * np.asarray(spacing)
    return np.linalg.norm(place - np.asarray(centre), axis=-1) <= radius


def corners_of_the_border(true):
    """Every cell with voxels in and out of the mask, none beyond the array: loops only."""
    cells = []
    for place in np.ndindex(*(side - 1 for side in true.shape)):
        block = true[tuple(slice(p, p + 2) for p in place)]
        if block.any() and not block.all():
            cells.append(place)
    return cells


def share_inside(true, inner, outer):
    """Part of the cells (all alike in weight) that are neither all in `inner` nor all beyond `outer`."""
    cells = corners_of_the_border(true)
    good = 0
    for place in cells:
        cut = tuple(slice(p, p + 2) for p in place)
        good += not inner[cut].all() and bool(outer[cut].any())
    return good / len(cells)


def test_the_conformal_quantile_is_an_order_statistic():
    scores = np.arange(1.0, 20.0)
    assert conformal_quantile(scores, 0.95) == 19  # the 19th of 19: ceil(20 * 0.95)
    assert conformal_quantile(scores[:18], 0.95) == math.inf
    assert conformal_quantile(np.arange(1.0, 100.0), 0.95) == 95
    assert conformal_quantile(scores[::-1], 0.5) == 10


def test_a_known_shift_gives_a_known_band():
    cases = []
    for number in range(20):
        true = np.zeros((40, 30), bool)
        true[10:, :] = True  # one straight border from edge to edge
        said = np.zeros_like(true)
        said[10 + 2 :, :] = True  # two pixels too small
        cases.append((said, true, (1.5, 1.0), f"p{number}"))
    band = fit_band(cases, sides="separate", level=0.9)
    assert band.labels[1] == LabelBand(0.0, 3.0, 20, 20)
    inner, outer = apply_band(cases[0][0], band, (1.5, 1.0), 1)
    np.testing.assert_array_equal(inner, cases[0][0])
    assert outer[10:].all()
    assert not outer[:10].any()


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.5), (0.5, 2.0, 1.0)])
def test_masks_of_the_band_are_those_of_scipy(spacing):
    mask = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(14, 18, 20)), 2) > 0.05
    band = Band({4: LabelBand(1.7, 2.6, 30, 30)}, 0.95, 0.95, "mm")
    inner, outer = apply_band(4 * mask.astype(np.uint8), band, spacing, 4)
    np.testing.assert_array_equal(inner, mask & (ndimage.distance_transform_edt(mask, spacing) > 1.7))
    np.testing.assert_array_equal(outer, ndimage.distance_transform_edt(~mask, spacing) <= 2.6)
    assert inner.sum() < mask.sum() < outer.sum()


def test_widths_and_coverage_are_those_of_brute_force():
    random = np.random.default_rng(8)
    cases = []
    for number in range(24):
        field = ndimage.gaussian_filter(random.normal(size=(30, 32)), 2.5)
        moved = field + 0.4 * ndimage.gaussian_filter(random.normal(size=field.shape), 3)
        cases.append((moved > 0, field > 0, None, f"p{number}"))
    band = fit_band(cases, 0.9, content=0.9, sides="equal")
    width = band.labels[1].outer_mm
    assert band.unit == "px"
    assert band.labels[1].inner_mm == width
    found = band_coverage(cases, band)
    lengths = {1: math.sqrt(0.5), 2: None, 3: math.sqrt(0.5)}
    for (said, true, *_), share in zip(cases, found["share"], strict=True):
        inner, outer = apply_band(said, band, None, 1)
        assert (inner <= said).all()
        assert (said <= outer).all()
        good = whole = 0.0
        for place in corners_of_the_border(true):
            cut = tuple(slice(p, p + 2) for p in place)
            block = true[cut]
            weight = lengths[int(block.sum())]
            if weight is None:
                weight = math.sqrt(2) if block[0, 0] == block[1, 1] else 1.0
            whole += weight
            good += weight * (not inner[cut].all() and bool(outer[cut].any()))
        assert share == pytest.approx(good / whole, abs=1e-9)
    assert found["covered"].sum() >= 23  # ceil(25 * 0.9) of the 24 that it was fitted on; distances of pixels are tied
    slim = Band({1: LabelBand(width - 0.01, width - 0.01, 24, 24)}, 0.9, 0.9, "px")
    assert band_coverage(cases, slim)["covered"].sum() < 23


def shifted(random, count, name):
    """Squares whose border is predicted too far out or in by a random number of pixels, alike within a patient."""
    cases = []
    for number in range(count):
        off = int(np.rint(random.normal(0.5, 2.0)))
        for visit in range(1 + number % 2):
            true, said = np.zeros((44, 44), bool), np.zeros((44, 44), bool)
            true[12:32, 12:32] = True
            worse = off + visit
            said[12 - worse : 32 + worse, 12 - worse : 32 + worse] = True
            cases.append((said, true, (1.0, 1.0), f"{name}{number}"))
    return cases


def test_a_new_score_is_covered_exactly_as_often_as_promised():
    draws = np.random.default_rng(17).normal(size=(4000, 20))
    found = np.mean([draw[19] <= conformal_quantile(draw[:19], 0.8) for draw in draws])
    assert abs(found - 0.8) < 4 * math.sqrt(0.16 / 4000)


@pytest.mark.parametrize("sides", ["equal", "separate"])
def test_new_patients_are_covered_as_often_as_promised(sides):
    """Offsets of whole pixels are tied, so coverage may be above what is promised, but not below."""
    random = np.random.default_rng(21)
    level, patients, fresh, trials = 0.8, 19, 10, 25
    covered = 0
    for _ in range(trials):
        band = fit_band(shifted(random, patients, "a"), level, sides=sides)
        found = band_coverage(shifted(random, fresh, "b"), band)
        names, share = found["patient"], found["covered"]
        covered += sum(share[names == one].all() for one in np.unique(names))
    # The coverage of one band is Beta(16, 4), and its new patients are drawn from that.
    variance = stats.beta(16, 4).var() / trials + level * (1 - level) / (trials * fresh)
    assert covered / (trials * fresh) >= level - 4 * math.sqrt(variance)


def test_the_worst_case_of_a_patient_counts():
    random = np.random.default_rng(2)
    cases = shifted(random, 30, "p")
    band = fit_band(cases, 0.8, sides="equal")
    assert (band.labels[1].patients, band.labels[1].cases) == (30, 45)
    alone = fit_band([(*case[:3], str(k)) for k, case in enumerate(cases)], 0.8, sides="equal")
    assert alone.labels[1].patients == 45


def test_too_few_patients_or_missed_structures_have_no_bound():
    random = np.random.default_rng(5)
    cases = shifted(random, 18, "p")
    assert fit_band(cases).labels[1].outer_mm == math.inf
    with pytest.raises(ValueError, match=r"18 patients do not carry a level of 0\.95"):
        apply_band(cases[0][0], fit_band(cases), (1.0, 1.0), 1)
    enough = shifted(random, 19, "p")
    assert fit_band(enough).labels[1].outer_mm < math.inf
    missed = [(np.zeros_like(enough[0][0]), *enough[0][1:]), *enough[1:]]
    assert fit_band(missed).labels[1].outer_mm == math.inf
    assert band_coverage(missed, fit_band(missed))["share"].size == 0
    with pytest.raises(ValueError, match="not fitted"):
        apply_band(cases[0][0], fit_band(enough), (1.0, 1.0), 3)


def test_sides_are_separate_where_there_are_patients_enough():
    random = np.random.default_rng(7)
    few, many = fit_band(shifted(random, 38, "p")).labels[1], fit_band(shifted(random, 39, "p")).labels[1]
    assert few.inner_mm == few.outer_mm
    assert many.inner_mm != many.outer_mm
    assert math.isfinite(many.outer_mm)


def test_a_prediction_that_is_the_truth_needs_no_band():
    mask = ball((16, 18, 20), (8, 9, 10), 5)
    cases = [(mask, mask, (1, 1, 1), str(k)) for k in range(19)]
    band = fit_band(cases)
    assert band.labels[1] == LabelBand(0.0, 0.0, 19, 19)
    inner, outer = apply_band(mask, band, (1, 1, 1), 1)
    np.testing.assert_array_equal(inner, mask)
    np.testing.assert_array_equal(outer, mask)


def test_the_width_is_never_above_the_hausdorff_distance():
    one, two = ball((24, 26, 28), (12, 13, 13), 7), ball((24, 26, 28), (12, 14, 15), 8)
    band = fit_band([(one, two, (1, 1, 1), str(k)) for k in range(3)], 0.5, content=1.0, sides="equal")
    far = surface_distances(two, one)["hausdorff_distance"]
    assert far - math.sqrt(3) <= band.labels[1].outer_mm <= far + math.sqrt(3)


def test_a_scale_widens_the_band_where_the_network_is_unsure():
    random = np.random.default_rng(9)
    shape = (40, 60)
    scale = np.where(np.arange(60) < 30, 0.5, 2.0) * np.ones(shape)
    cases = []
    for number in range(25):
        true, said = np.zeros(shape, bool), np.zeros(shape, bool)
        true[20:] = True
        said[20 + random.integers(-1, 2) :, :30] = True
        said[20 + random.integers(-5, 6) :, 30:] = True
        cases.append((said, true, (1.0, 1.0), f"p{number}", scale))
    band = fit_band(cases, 0.9, content=1.0, sides="equal")
    assert band.scaled
    inner, outer = apply_band(cases[0][0], band, (1.0, 1.0), 1, scale)
    thickness = (outer & ~inner).sum(axis=0)
    assert thickness[5:25].mean() < thickness[35:55].mean()
    found = band_coverage(cases, band)
    for (said, true, *_), share in zip(cases[:5], found["share"], strict=False):
        inner, outer = apply_band(said, band, (1.0, 1.0), 1, scale)
        assert share_inside(true, inner, outer) == pytest.approx(share, abs=0.05)
        assert (share == 1) == (share_inside(true, inner, outer) == 1)
    with pytest.raises(ValueError, match="scaled"):
        apply_band(cases[0][0], band, (1.0, 1.0), 1)
    with pytest.raises(ValueError, match="positive"):
        fit_band([(*cases[0][:4], 0 * scale)])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations([0, 1, 2]), st.lists(st.booleans(), min_size=3, max_size=3))
def test_flips_and_turned_axes_change_no_width(seed, axes, flips):
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=(3, 9, 11, 10)), (0, 1.5, 1.5, 1.5))
    spacing = np.array([2.0, 1.0, 0.5])
    turned = tuple(slice(None, None, -1 if one else 1) for one in flips)
    maps = [(np.digitize(one, [0.0, 0.08]), np.digitize(one + 0.3 * field[0], [0.0, 0.08])) for one in field]
    one = fit_band([(*pair, spacing, str(k)) for k, pair in enumerate(maps)], 0.5)
    two = fit_band(
        [
            (*(np.transpose(array, axes)[turned] for array in pair), spacing[list(axes)], str(k))
            for k, pair in enumerate(maps)
        ],
        0.5,
    )
    assert one.labels.keys() == two.labels.keys()
    for label, first in one.labels.items():
        second = two.labels[label]
        assert (first.inner_mm, first.outer_mm) == pytest.approx((second.inner_mm, second.outer_mm), rel=1e-6)


def test_layers_and_label_maps_give_one_band():
    random = np.random.default_rng(12)
    cases = shifted(random, 20, "p")
    stacks = [(np.stack([said, true]), np.stack([true, true]), g, p) for said, true, g, p in cases]
    layered = fit_band(stacks, 0.9, layers=True)
    assert layered.labels[0] == fit_band(cases, 0.9).labels[1]
    assert layered.labels[1].outer_mm == 0
    assert (band_coverage(stacks, layered, layers=True)["label"] == 1).sum() == len(cases)


def test_the_edge_of_the_array_is_no_border():
    true = np.zeros((20, 20), bool)
    true[8:, :] = True
    said = np.zeros_like(true)
    said[8:, 3:] = True  # three columns at the edge are missing; the border above them is far
    band = fit_band([(said, true, None, str(k)) for k in range(9)], 0.9, content=1.0)
    assert band.labels[1].outer_mm == 3 - 1


def test_a_band_survives_json():
    band = Band({1: LabelBand(1.5, math.inf, 7, 9), 3: LabelBand(0.5, 2.0, 40, 41)}, 0.9, 0.95, "mm", True)
    assert Band.from_json(band.to_json()) == band
    assert band.to_json()["labels"]["1"]["outer_mm"] is None


def test_what_does_not_fit_is_said():
    mask = np.ones((4, 4), np.uint8)
    with pytest.raises(ValueError, match="one shape"):
        fit_band([(mask, mask[:3], None, "p")])
    with pytest.raises(ValueError, match="sides"):
        fit_band([], sides="both")
    with pytest.raises(ValueError, match="level"):
        fit_band([], 1.0)
    mask[0] = 0
    with pytest.raises(ValueError, match="one unit"):
        fit_band([(mask, mask, None, "p"), (mask, mask, (1, 1), "q")])
    band = Band({1: LabelBand(1, 1, 40, 40)}, 0.95, 0.95, "mm")
    with pytest.raises(ValueError, match="in mm"):
        apply_band(mask, band, None, 1)
    with pytest.raises(ValueError, match="in mm"):
        band_coverage([(mask, mask, None, "p")], band)
