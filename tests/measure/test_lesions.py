"""Lesions one by one against scipy.ndimage and plain loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vesalius.measure.lesions import (
    BRATS_QUANTITIES,
    POOLED_QUANTITIES,
    QUANTITIES,
    SCORE_QUANTITIES,
    TABLE_QUANTITIES,
    brats_lesions,
    components,
    lesion_scores,
    match_lesions,
    pool_lesions,
)

STEP = {8: 2, 4: 1, 26: 3, 18: 2, 6: 1}


def spots(seed, shape=(14, 26, 26), count=7):
    """Balls, and the same ones moved, lost, doubled or invented."""
    draw = np.random.default_rng(seed)
    place = np.stack(np.indices(shape), axis=-1)
    true, said = np.zeros(shape, bool), np.zeros(shape, bool)
    for _ in range(count):
        centre, radius = draw.uniform(0, shape, len(shape)), draw.uniform(1.5, 4)
        fate = draw.random()
        if fate < 0.85:
            true |= ((place - centre) ** 2).sum(-1) < radius**2
        if fate > 0.2:
            moved = centre + draw.normal(0, 0.5, len(shape))
            said |= ((place - moved) ** 2).sum(-1) < (radius * draw.uniform(0.75, 1.2)) ** 2
    return said, true


def parts(mask, connectivity):
    return ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, STEP[connectivity]))


@pytest.mark.parametrize("connectivity", [26, 18, 6, 8, 4])
def test_components_against_scipy(connectivity):
    shape = (9, 10, 11) if connectivity in (26, 18, 6) else (20, 30)
    draw = np.random.default_rng(1)
    mask = draw.random(shape) < 0.25
    expected, count = parts(mask, connectivity)
    found = components(mask, connectivity)
    assert found.max() == count
    assert len(np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1).T) == count + 1
    labels = np.where(mask, draw.integers(1, 3, shape) * 10**9, 0)
    assert components(labels, connectivity).max() == sum(
        parts(labels == k, connectivity)[1] for k in (10**9, 2 * 10**9)
    )


def slow_pairs(said, true, rule, threshold):
    """Every pair that the rule allows, from the two maps of components."""
    pairs = {}
    for i, j in itertools.product(range(1, said.max() + 1), range(1, true.max() + 1)):
        one, two = said == i, true == j
        shared = (one & two).sum()
        if rule == "overlap" and shared:
            pairs[i, j] = shared
        if rule == "centroid":
            middle = ndimage.center_of_mass(one)
            near = itertools.product(*({math.ceil(c - 0.5), math.floor(c + 0.5)} for c in middle))
            if any(two[at] for at in near):
                pairs[i, j] = shared
        value = shared / (one | two).sum() if rule == "iou" else 2 * shared / (one.sum() + two.sum())
        if rule in ("iou", "dice") and value >= threshold:
            pairs[i, j] = value
    return pairs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rule", "threshold"), [("overlap", None), ("centroid", None), ("iou", 0.5), ("dice", 0.7)])
def test_scores_against_loops(seed, rule, threshold):
    said, true = spots(seed)
    found = match_lesions(said, true, (3, 1, 2), rule=rule, threshold=threshold)
    pairs = slow_pairs(found.prediction, found.truth, rule, threshold)  # unique above 0.5 for iou and 0.667 for dice
    assert {tuple(pair) for pair in found.hits.tolist()} == set(pairs)
    scores = found.scores()
    hit, detected = {i for i, _ in pairs}, {j for _, j in pairs}
    t, s = parts(true, 26)[1], parts(said, 26)[1]
    assert scores["lesions_truth"] == t
    assert scores["lesions_detected"] == len(detected)
    assert scores["lesions_missed"] == t - len(detected)
    assert scores["lesions_false"] == s - len(hit)
    assert scores["lesions_prediction"] == s
    assert scores["lesion_sensitivity"] == pytest.approx(len(detected) / t)
    assert scores["lesion_precision"] == pytest.approx(len(detected) / (len(detected) + s - len(hit)))
    sensitivity, precision = scores["lesion_sensitivity"], scores["lesion_precision"]
    assert scores["lesion_f1"] == pytest.approx(2 / (1 / sensitivity + 1 / precision))
    table = found.truth_table()
    for row, lesion in enumerate(table["lesion"].tolist()):
        body = found.truth == lesion
        partners = [i for i, j in pairs if j == lesion]
        union = np.isin(found.prediction, partners)
        sizes = body.sum() + union.sum()
        assert table["lesion_volume"][row] == pytest.approx(body.sum() * 6)
        assert table["lesion_dice"][row] == pytest.approx(2 * (body & union).sum() / sizes)
        assert table["lesion_partners"][row] == len(partners)
        if partners:
            best = max(partners, key=lambda i: (body & (found.prediction == i)).sum())
            assert table["lesion_partner"][row] == best
        else:
            assert table["lesion_partner"][row] == 0
    dice = [value for value, hit in zip(table["lesion_dice"], table["lesion_hit"], strict=True) if hit]
    assert scores["lesion_dice_detected"] == pytest.approx(np.mean(dice))
    assert len(found.prediction_table()["lesion"]) == s


def row(length, *stretches):
    mask = np.zeros((3, length), bool)
    for start, stop in stretches:
        mask[1, start:stop] = True
    return mask


def test_splits_merges_and_further_hits():
    true = row(40, (0, 10), (12, 15), (17, 20), (30, 35))
    said = row(40, (1, 4), (6, 9), (12, 20), (25, 28))
    found = lesion_scores(said, true)
    assert found["lesions_detected"] == 3
    assert (found["lesions_split"], found["lesions_merged"]) == (1, 1)
    assert (found["lesions_missed"], found["lesions_false"]) == (1, 1)
    assert found["lesion_precision"] == found["lesion_sensitivity"] == found["lesion_f1"] == 0.75
    # The merged one holds 3 of 8 voxels of either lesion: no pair at 0.5, one pair of the two at 0.3.
    assert lesion_scores(said, true, rule="iou")["lesions_detected"] == 0
    assert lesion_scores(said, true, rule="iou", threshold=0.3)["lesions_detected"] == 2
    # Its middle lies in the gap between them.
    assert lesion_scores(said, true, rule="centroid")["lesions_detected"] == 1


def test_small_lesions_are_neither_asked_for_nor_false():
    true = row(60, (0, 10), (20, 22), (40, 50))
    said = row(60, (1, 9), (20, 23), (30, 31), (41, 42))
    found = lesion_scores(said, true, (1, 2), min_volume=5)  # 20, 4, 20 mm2; 16, 6, 2, 2 mm2
    assert (found["lesions_truth"], found["lesions_detected"]) == (2, 2)
    assert found["lesions_false"] == 0  # one hits a small lesion only, one is small itself
    assert found["lesions_prediction"] == 2
    assert lesion_scores(said, true, (1, 2))["lesions_false"] == 1
    match = match_lesions(said, true, (1, 2), min_volume=5)
    assert match.truth_table()["lesion_counted"].tolist() == [1, 0, 1]
    assert match.truth_table()["lesion_area"].tolist() == [20, 4, 20]
    assert match.prediction_table()["lesion_counted"].tolist() == [1, 0, 0, 1]
    # One to one, the lesion that is asked for goes first although the small one fits better.
    true, said = row(30, (0, 9), (10, 14)), row(30, (4, 14))
    assert lesion_scores(said, true, rule="iou", threshold=0.3, min_volume=5)["lesions_detected"] == 1
    assert lesion_scores(said, true, rule="iou", threshold=0.36, min_volume=5)["lesions_detected"] == 0


def test_labels_are_kept_apart():
    true, said = np.zeros((3, 20), int), np.zeros((3, 20), int)
    true[1, :4], true[1, 4:8], true[1, 12:15] = 1, 2, 2
    said[1, :4], said[1, 4:8], said[1, 12:15] = 1, 1, 5
    together = lesion_scores(said, true)
    assert together["lesions_truth"] == together["lesions_detected"] == 2
    table = match_lesions(said, true, per_label=True).scores_by_label()
    assert table["label"].tolist() == [1, 2, 5]
    assert table["lesions_detected"].tolist() == [1, 0, 0]
    assert table["lesions_missed"].tolist() == [0, 2, 0]
    assert table["lesions_false"].tolist() == [0, 0, 1]
    assert list(table) == ["label", *(one.name for one in SCORE_QUANTITIES)]


@pytest.mark.parametrize("rule", ["overlap", "centroid", "iou", "dice"])
def test_empty_maps(rule):
    nothing, one = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    one[1:3, 1:3, 1:3] = True
    found = lesion_scores(nothing, nothing, rule=rule)
    assert all(math.isnan(found[name]) for name in ("lesion_sensitivity", "lesion_precision", "lesion_f1"))
    found = lesion_scores(one, nothing, rule=rule)
    assert (found["lesions_false"], found["lesion_precision"], found["lesion_f1"]) == (1, 0, 0)
    assert math.isnan(found["lesion_sensitivity"])
    found = lesion_scores(nothing, one, rule=rule)
    assert (found["lesions_missed"], found["lesion_sensitivity"], found["lesion_f1"]) == (1, 0, 0)
    assert math.isnan(found["lesion_precision"])
    assert lesion_scores(one, one, rule=rule)["lesion_dice_detected"] == 1
    assert len(match_lesions(nothing, nothing, rule=rule).truth_table()["lesion"]) == 0


def test_pooling_adds_counts():
    cases = [lesion_scores(*spots(seed)) for seed in range(3)]
    found = pool_lesions(cases)
    assert found["lesions_false_per_case"] == pytest.approx(sum(case["lesions_false"] for case in cases) / 3)
    detected, truth = (sum(case[name] for case in cases) for name in ("lesions_detected", "lesions_truth"))
    assert found["lesion_sensitivity"] == pytest.approx(detected / truth)
    assert math.isnan(pool_lesions([])["lesions_false_per_case"])


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.permutations([0, 1, 2]), st.sampled_from(["overlap", "centroid", "iou", "dice"]))
def test_flips_permutations_and_scale(seed, order, rule):
    said, true = spots(seed, shape=(8, 14, 12), count=5)
    step = (2.5, 0.8, 1.0)
    expected = lesion_scores(said, true, step, rule=rule, min_volume=20)
    turned = (np.flip(array, seed % 3).transpose(order) for array in (said, true))
    found = lesion_scores(*turned, [2 * step[axis] for axis in order], rule=rule, min_volume=160)
    assert found == pytest.approx(expected, nan_ok=True)


def slow_brats(said, true, dilations, smallest):
    """The published steps, one lesion at a time."""
    ball = ndimage.generate_binary_structure(3, 2)
    zones, many = parts(ndimage.binary_dilation(true, ball, iterations=dilations), 26)
    blobs, count = parts(said, 26)
    scores, touched, missed = [], set(), 0
    for zone in range(1, many + 1):
        lesion = true & (zones == zone)
        near = set(np.unique(blobs[ndimage.binary_dilation(lesion, ball, iterations=dilations)]).tolist()) - {0}
        touched |= near
        if lesion.sum() <= smallest:
            continue
        union = np.isin(blobs, list(near))
        missed += not near
        scores.append(2 * (union & lesion).sum() / (union.sum() + lesion.sum()))
    false = count - len(touched)
    return sum(scores) / (len(scores) + false), len(scores) - missed, missed, false


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("dilations", "smallest"), [(3, 50), (1, 50), (1, 2)])
def test_brats_against_its_steps(seed, dilations, smallest):
    said, true = spots(seed + 20, shape=(20, 36, 36), count=9)
    found = brats_lesions(said, true, dilations=dilations, min_volume=smallest)
    assert tuple(found.values()) == pytest.approx(slow_brats(said, true, dilations, smallest))
    assert list(found) == [one.name for one in BRATS_QUANTITIES]


def test_brats_without_lesions():
    nothing, one = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    one[2:7, 2:7, 2:7] = True
    assert brats_lesions(nothing, nothing)["lesion_wise_dice"] == 1
    assert math.isnan(brats_lesions(nothing, nothing, empty="nan")["lesion_wise_dice"])
    assert brats_lesions(one, nothing)["lesion_wise_dice"] == 0
    assert brats_lesions(nothing, one)["lesion_wise_dice"] == 0
    assert brats_lesions(one, one, (0.5, 0.5, 0.5))["lesion_wise_dice"] == 1  # 15.6 mm3: nothing asked for
    assert brats_lesions(one, one, dilations=0)["brats_detected"] == 1


def test_bad_arguments():
    mask = np.ones((4, 4), bool)
    for words, options in {
        "rule must be": {"rule": "hausdorff"},
        "threshold goes with": {"threshold": 0.5},
        "threshold must lie": {"rule": "iou", "threshold": 0.0},
        "connectivity in 2-D": {"connectivity": 26},
        "min_volume": {"min_volume": -1},
        "spacing": {"spacing": (1, 0)},
    }.items():
        with pytest.raises(ValueError, match=words):
            lesion_scores(mask, mask, **options)
    with pytest.raises(ValueError, match="one shape"):
        lesion_scores(mask, mask[:2])
    with pytest.raises(ValueError, match="dilations"):
        brats_lesions(mask, mask, dilations=-1)
    with pytest.raises(ValueError, match="empty"):
        brats_lesions(mask, mask, empty="zero")


def test_every_number_is_described():
    solid, flat = match_lesions(*spots(1)), match_lesions(*spots(1, shape=(30, 30)))
    assert {*solid.truth_table(), *flat.prediction_table()} == {one.name for one in TABLE_QUANTITIES}
    assert list(solid.scores()) == [one.name for one in SCORE_QUANTITIES]
    assert set(pool_lesions([solid.scores()])) - set(solid.scores()) == {one.name for one in POOLED_QUANTITIES}
    assert len({one.name for one in QUANTITIES}) == len(QUANTITIES)
