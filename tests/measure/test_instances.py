"""Scores of instance maps against plain loops over all pairs of objects, and against hand-worked cases."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from vesalius.measure.contingency import contingency
from vesalius.measure.instances import (
    QUANTITIES,
    THRESHOLDS,
    Pairs,
    best_pairs,
    instance_scores,
    pool_precision,
)


def objects(seed, count=12, shape=(40, 50)):
    """Ellipses painted over one another, and the same ones moved, resized, split, lost or invented."""
    draw = np.random.default_rng(seed)
    y, x = np.indices(shape)
    true, said = np.zeros(shape, int), np.zeros(shape, int)
    for number in range(1, count + 1):
        cy, cx, a, b = draw.uniform(0, shape[0]), draw.uniform(0, shape[1]), *draw.uniform(2, 8, 2)
        true[((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1] = number
        if draw.random() < 0.85:
            cy, cx, a = cy + draw.normal(), cx + draw.normal(), a * draw.uniform(0.7, 1.3)
            inside = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1
            said[inside] = number * 7
            if draw.random() < 0.2:
                said[inside & (x > cx)] = number * 7 + 1
    return said, true


def names(array):
    return [k for k in np.unique(array).tolist() if k]


def all_iou(said, true):
    table = np.zeros((len(names(said)), len(names(true))))
    for (i, one), (j, two) in itertools.product(enumerate(names(said)), enumerate(names(true))):
        shared = ((said == one) & (true == two)).sum()
        table[i, j] = shared / ((said == one) | (true == two)).sum()
    return table


def slow_scores(said, true):
    iou = all_iou(said, true)
    s, t = iou.shape
    tp, total = (iou > 0.5).sum(), iou[iou > 0.5].sum()
    found = {
        "instances_truth": t,
        "instances_prediction": s,
        "instances_matched": tp,
        "panoptic_quality": total / (tp + (s - tp) / 2 + (t - tp) / 2),
        "segmentation_quality": total / tp if tp else math.nan,
        "recognition_quality": 2 * tp / (s + t),
        "mean_true_iou": total / t if t else math.nan,
    }
    levels = []
    for level in THRESHOLDS:
        able = iou >= level
        hits = able[linear_sum_assignment(able.astype(float) + 1e-6 * iou, maximize=True)].sum()
        levels.append(hits / (s + t - hits))
    found |= {"instance_ap_50": levels[0], "instance_ap_75": levels[5], "instance_ap": np.mean(levels)}
    inter, union, used = 0, 0, set()
    seg = 0.0
    for j, name in enumerate(names(true)):
        body = true == name
        i = int(np.argmax(iou[:, j])) if s else -1
        if s and iou[i, j] > 0:
            inter += (body & (said == names(said)[i])).sum()
            union += (body | (said == names(said)[i])).sum()
            used.add(i)
        else:
            union += body.sum()
        for i, other in enumerate(names(said)):
            if (body & (said == other)).sum() > body.sum() / 2:
                seg += iou[i, j]
    union += sum((said == name).sum() for i, name in enumerate(names(said)) if i not in used)
    found |= {"aji": inter / union, "seg": seg / t if t else math.nan}
    rows, columns = linear_sum_assignment(iou, maximize=True)
    kept = [(i, j) for i, j in zip(rows, columns, strict=True) if iou[i, j] > 0]
    inter = sum(((said == names(said)[i]) & (true == names(true)[j])).sum() for i, j in kept)
    union = (said > 0).sum() + (true > 0).sum() - inter
    found["aji_plus"] = inter / union
    mostly = [[((said == a) & (true == b)).sum() for b in names(true)] for a in names(said)]
    mostly = np.array(mostly).reshape(s, t)
    said_size, true_size = (np.array([(m == k).sum() for k in names(m)]) for m in (said, true))
    found["instances_split"] = ((mostly > said_size[:, None] / 2).sum(0) > 1).sum()
    found["instances_merged"] = ((mostly > true_size / 2).sum(1) > 1).sum()
    return found


@pytest.mark.parametrize("seed", range(12))
def test_scores_against_loops(seed):
    said, true = objects(seed)
    found, expected = instance_scores(said, true), slow_scores(said, true)
    assert found.keys() == expected.keys() == {one.name for one in QUANTITIES}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, nan_ok=True), name


def test_a_case_worked_by_hand():
    true, said = np.zeros((4, 20), int), np.zeros((4, 20), int)
    true[:, :4], said[:, :4] = 1, 1  # equal
    true[:, 5:10], said[:, 5:8], said[:, 8:10] = 2, 2, 3  # split: IoU 3/5 and 2/5
    true[:, 11:13], true[:, 13:15], said[:, 11:15] = 3, 4, 4  # merged: IoU 1/2 and 1/2
    true[:, 16:17] = 5  # missed
    said[:, 18:20] = 6  # invented
    found = instance_scores(said, true)
    assert found["instances_matched"] == 2
    assert found["panoptic_quality"] == pytest.approx(1.6 / 5)
    assert found["segmentation_quality"] == pytest.approx(0.8)
    assert found["recognition_quality"] == pytest.approx(2 / 5)
    assert (found["instances_split"], found["instances_merged"]) == (1, 1)
    # An IoU of exactly 1/2 is a pair for StarDist (one of the two, not both), none for the Data Science Bowl.
    assert found["instance_ap_50"] == pytest.approx(3 / 7)
    assert instance_scores(said, true, convention="dsb2018")["instance_ap_50"] == pytest.approx(2 / 8)
    # 16 + 12 + 8 + 8 shared; unions 16 + 20 + 16 + 16 + 4, and the unused 8 + 8.
    assert found["aji"] == pytest.approx(44 / 88)
    # One to one: 16 + 12 + 8 of 16 + 20 + 16, alone 8 and 4 true, 8 and 8 predicted.
    assert found["aji_plus"] == pytest.approx(36 / 80)
    assert found["seg"] == pytest.approx((1 + 0.6 + 0.5 + 0.5) / 5)


def test_low_thresholds_take_the_largest_assignment():
    # The greedy choice (the pair of IoU 0.4) would leave the second object without a partner.
    row, column, iou = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0.4, 0.3, 0.2])
    assert best_pairs(row, column, iou).tolist() == [1, 2]
    assert best_pairs(row, column, np.array([0.9, 0.3, 0.2]), most=False).tolist() == [0]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_the_assignment_is_the_best_of_all(seed, rows, columns, most):
    draw = np.random.default_rng(seed)
    weight = draw.random((rows, columns)) * (draw.random((rows, columns)) < 0.5)
    row, column = np.nonzero(weight)
    kept = best_pairs(row, column, weight[row, column], most=most)
    assert len(set(row[kept])) == len(set(column[kept])) == len(kept)
    able = weight > 0
    gain = weight + 100 * able if most else weight
    assert gain[row[kept], column[kept]].sum() == pytest.approx(gain[linear_sum_assignment(gain, maximize=True)].sum())


def test_void_voxels_excuse_objects():
    true, said = np.zeros((10, 40), int), np.zeros((10, 40), int)
    true[:, :10], true[:, 10:20] = 1, 255
    said[:, :10] = 4  # IoU 1
    said[:, 12:25] = 5  # 8 of 13 columns are void: not counted
    found = instance_scores(said, true, ignore=255)
    assert found["instances_prediction"] == found["instances_truth"] == 1
    assert found["panoptic_quality"] == found["instance_ap"] == found["aji"] == found["aji_plus"] == 1
    said[said == 5] = 0
    said[:, 16:25] = 5  # 4 of 9: counted, with the 5 columns outside
    found = instance_scores(said, true, ignore=255)
    assert found["instances_prediction"] == 2
    assert found["panoptic_quality"] == pytest.approx(1 / 1.5)
    assert found["aji"] == pytest.approx(100 / 150)
    # A matched object stays matched, however much of it is void.
    said[:] = 0
    said[:, 3:20] = 4
    found = instance_scores(said, true, ignore=255)
    assert found["panoptic_quality"] == pytest.approx(0.7)
    assert found["instance_ap_50"] == 1
    assert found["instance_ap_75"] == 0


def test_empty_maps():
    nothing, one = np.zeros((5, 6), int), np.zeros((5, 6), int)
    one[2:4, 2:4] = 3
    found = instance_scores(nothing, nothing)
    assert found["instances_truth"] == found["instances_split"] == 0
    assert all(math.isnan(found[name]) for name in ("panoptic_quality", "aji", "aji_plus", "instance_ap", "seg"))
    for said, true in ((nothing, one), (one, nothing)):
        found = instance_scores(said, true)
        assert found["panoptic_quality"] == found["aji"] == found["aji_plus"] == found["instance_ap"] == 0
        assert math.isnan(found["segmentation_quality"])
    with pytest.raises(ValueError, match="convention"):
        instance_scores(one, one, convention="coco")
    with pytest.raises(ValueError, match="threshold"):
        Pairs(contingency(one, one)).matched(1.5)


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.booleans())
def test_numbers_of_objects_and_flips_do_not_matter(seed, flip):
    said, true = objects(seed, count=6, shape=(24, 30))
    expected = instance_scores(said, true)
    renamed = np.where(said > 0, 10**12 - said, 0)
    turned = (np.flip(array).T if flip else array for array in (renamed, np.where(true > 0, true + 5, 0)))
    found = instance_scores(*turned)
    for name, value in expected.items():
        if name not in ("aji", "aji_plus"):  # ties of IoU are broken by the numbers
            assert found[name] == pytest.approx(value, nan_ok=True), name
    equal = instance_scores(true, true)
    assert equal["panoptic_quality"] == equal["aji"] == equal["aji_plus"] == equal["instance_ap"] == equal["seg"] == 1


def test_pooling_counts_objects_not_images():
    cases = [Pairs(contingency(*objects(seed, count=4 + 9 * seed))) for seed in range(3)]
    tallies = np.array([case.tally(THRESHOLDS) for case in cases]).sum(0)
    np.testing.assert_allclose(pool_precision(cases), tallies[0] / tallies[1])
    assert pool_precision([])[0] != pool_precision([])[0]


@pytest.mark.realdata
def test_nuclei_against_loops(real_data):
    from skimage.io import imread

    true = imread(min((real_data / "nuclei" / "labels").iterdir())).astype(int)
    said = np.roll(true, 2, axis=1)
    found = instance_scores(said, true)
    for name, value in slow_scores(said, true).items():
        assert found[name] == pytest.approx(value, nan_ok=True), name
