"""Boxes against scikit-learn, published rules written out slowly, and cases worked by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_curve

from vesalius.measure.detection import (
    FROC_QUANTITIES,
    QUANTITIES,
    RATES,
    SCORE_QUANTITIES,
    ImageBoxes,
    average_precision,
    box_iou,
    detection_scores,
    detection_table,
    froc_curve,
    froc_scores,
    match_boxes,
    precision_recall,
)
from vesalius.measure.instances import THRESHOLDS


def scene(seed, ndim=2, images=6, equal_scores=False, **options):
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        low = draw.uniform(0, 50, (draw.integers(0, 6), ndim))
        truth = np.hstack([low, low + draw.uniform(4, 12, low.shape)])
        near = truth[draw.random(len(truth)) < 0.8]
        near = np.repeat(near, draw.integers(1, 3, len(near)), axis=0)
        near = near + draw.normal(0, 0.6, near.shape)
        low = draw.uniform(0, 50, (draw.integers(0, 4), ndim))
        boxes = np.vstack([near, np.hstack([low, low + draw.uniform(4, 12, low.shape)])])
        scores = draw.integers(0, 6, len(boxes)) / 5 if equal_scores else draw.random(len(boxes))
        found.append(ImageBoxes(boxes, scores, truth, **options))
    return found


def volume(box):
    half = len(box) // 2
    return math.prod(max(b - a, 0) for a, b in zip(box[:half], box[half:], strict=True))


def slow_iou(one, two):
    half = len(one) // 2
    shared = volume([*np.maximum(one[:half], two[:half]), *np.minimum(one[half:], two[half:])])
    union = volume(one) + volume(two) - shared
    return shared / union if union else 0.0


@pytest.mark.parametrize("ndim", [2, 3])
def test_iou_against_loops_and_pixels(ndim):
    image = scene(1, ndim, images=1)[0]
    expected = [[slow_iou(one, two) for two in image.truth] for one in image.boxes]
    np.testing.assert_allclose(box_iou(image.boxes, image.truth), expected)
    masks = np.zeros((2, *(12,) * ndim), bool)
    masks[(0, *(slice(2, 9),) * ndim)] = masks[(1, *(slice(4, 11),) * ndim)] = True
    corners = [[2] * ndim + [9] * ndim, [4] * ndim + [11] * ndim]
    assert box_iou(corners[:1], corners[1:])[0, 0] == pytest.approx((masks[0] & masks[1]).sum() / masks.any(0).sum())
    point = [[3.0] * ndim * 2]
    assert box_iou(point, point)[0, 0] == 0


def coco(images, threshold):
    """COCO's matching as its page tells it: falling scores, best free box, last of equals."""
    rows, total = [], 0
    for image in images:
        free = set(range(len(image.truth)))
        total += len(free)
        for k in np.argsort(-image.scores, kind="stable"):
            able = [(slow_iou(image.boxes[k], image.truth[j]), j) for j in free]
            able = [pair for pair in able if pair[0] >= threshold]
            if able:
                free.discard(max(able)[1])
            rows.append((image.scores[k], bool(able)))
    rows.sort(key=lambda pair: -pair[0])
    return np.array([score for score, _ in rows]), np.array([hit for _, hit in rows]), total


def sampled(scores, hits, total):
    found, called = np.cumsum(hits), np.arange(1, len(hits) + 1)
    values = []
    for percent in range(101):
        able = [found[k] / called[k] for k in range(len(hits)) if found[k] / total >= percent / 100]
        values.append(max(able, default=0))
    return np.mean(values)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ndim", [2, 3])
def test_average_precision_against_the_rules(seed, ndim):
    images = scene(seed, ndim)
    for threshold in (0.3, 0.5, 0.75):
        scores, hits, total = coco(images, threshold)
        assert average_precision(images, threshold) == pytest.approx(sampled(scores, hits, total))
        # scikit-learn does not know of the true boxes that nothing hit.
        known = average_precision_score(hits, scores) * hits.sum() / total if hits.any() else 0
        assert average_precision(images, threshold, method="step") == pytest.approx(known)
    found = detection_scores(images)
    values = [average_precision(images, threshold) for threshold in THRESHOLDS]
    assert found["box_ap"] == pytest.approx(np.mean(values))
    assert (found["box_ap_50"], found["box_ap_75"]) == (values[0], values[5])
    assert found["box_recall"] == pytest.approx(np.mean([coco(images, t)[1].sum() / total for t in THRESHOLDS]))
    assert list(found) == [one.name for one in SCORE_QUANTITIES]


def test_equal_scores_make_one_point():
    images = scene(3, equal_scores=True)
    scores, hits, total = coco(images, 0.5)
    expected = average_precision_score(hits, scores) * hits.sum() / total
    assert average_precision(images, method="step") == pytest.approx(expected)
    for method in ("coco", "voc", "step"):
        assert average_precision(images, method=method) == average_precision(images[::-1], method=method)
    assert average_precision(images, ties="order") == pytest.approx(sampled(scores, hits, total))
    recall, precision, levels = precision_recall(images)
    for level, r, p in zip(levels, recall, precision, strict=True):
        assert r == pytest.approx(hits[scores >= level].sum() / total)
        assert p == pytest.approx(hits[scores >= level].mean())


def test_a_case_worked_by_hand():
    truth = [[0, 0, 10, 10], [0, 20, 10, 30], [0, 40, 10, 50], [0, 60, 10, 70]]
    boxes = [[0, 0, 10, 10], [0, 1, 10, 11], [0, 20, 10, 30], [30, 0, 40, 10], [0, 40, 10, 50]]
    image = ImageBoxes(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], truth)
    # Right, twice the same, right, wrong, right: precision 1/1, 1/2, 2/3, 2/4, 3/5 at recall 1/4, 1/4, 2/4, 2/4, 3/4.
    np.testing.assert_allclose(precision_recall([image])[1], [1, 1 / 2, 2 / 3, 2 / 4, 3 / 5])
    assert average_precision([image], method="voc") == pytest.approx(0.25 + 0.25 * 2 / 3 + 0.25 * 3 / 5)
    assert average_precision([image], method="step") == pytest.approx(0.25 + 0.25 * 2 / 3 + 0.25 * 3 / 5)
    assert average_precision([image]) == pytest.approx((26 + 25 * 2 / 3 + 25 * 3 / 5) / 101)
    assert average_precision([image], max_detections=3) == pytest.approx((26 + 25 * 2 / 3) / 101)


def test_where_coco_and_voc_part():
    # Both detections overlap the first box most; COCO gives the second one the box that is left.
    iou = np.array([[0.9, 0.6], [0.8, 0.7]])
    assert match_boxes(iou, 0.5).tolist() == [0, 1]
    assert match_boxes(iou, 0.5, rule="voc").tolist() == [0, -1]
    assert match_boxes(iou, 0.5, ignore=[True, False]).tolist() == [1, -2]
    assert match_boxes(iou, 0.5, ignore=[True, True]).tolist() == [-2, -2]
    assert match_boxes(iou, 0.95).tolist() == [-1, -1]


def test_ignored_boxes():
    boxes = [[0, 0, 10, 10], [0, 20, 10, 30], [0, 21, 10, 31], [50, 50, 60, 60]]
    image = ImageBoxes(boxes, [0.1, 0.9, 0.8, 0.7], boxes[:2], ignore=[False, True])
    for method in ("coco", "voc", "step"):
        assert average_precision([image], method=method) == pytest.approx(0.5)
    rate, sensitivity, _ = froc_curve([image])
    assert rate.tolist() == [0, 1, 1]
    assert sensitivity.tolist() == [0, 0, 1]
    assert detection_scores([image])["boxes_truth"] == 1


def test_classes_are_averaged_where_there_is_truth():
    boxes = [[0, 0, 10, 10], [0, 20, 10, 30], [0, 40, 10, 50]]
    image = ImageBoxes(boxes, [0.9, 0.8, 0.7], boxes, labels=[1, 2, 3], truth_labels=[1, 1, 2])
    table = detection_table([image])
    assert table["label"].tolist() == [1, 2, 3]
    assert table["box_ap"][:2] == pytest.approx([51 / 101, 0])
    assert math.isnan(table["box_ap"][2])
    assert detection_scores([image])["box_ap"] == pytest.approx(51 / 202)
    assert average_precision([image], label=1) == pytest.approx(51 / 101)


def slow_froc(images):
    """LUNA16's rule for boxes by IoU, with scikit-learn's curve as in its script."""
    held, scores, total = [], [], 0
    for image in images:
        total += len(image.truth)
        iou = box_iou(image.boxes, image.truth)
        best = {}
        for k, score in enumerate(image.scores):
            j = int(iou[k].argmax()) if len(image.truth) else -1
            if j >= 0 and iou[k, j] >= 0.5:
                best[j] = max(best.get(j, 0), score)
            else:
                held.append(0)
                scores.append(score)
        held += [1] * len(best)
        scores += best.values()
    fall, right, _ = roc_curve(held, scores)
    return fall * held.count(0) / len(images), right * sum(held) / total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("equal_scores", [False, True])
def test_froc_against_the_script_of_luna16(seed, equal_scores):
    images = scene(seed, 3, images=12, equal_scores=equal_scores)
    rate, sensitivity = slow_froc(images)
    expected = np.interp(RATES, rate, sensitivity)
    found = froc_scores(images)
    assert list(found) == [one.name for one in FROC_QUANTITIES]
    np.testing.assert_allclose(list(found.values()), [*expected, expected.mean()])


def test_froc_by_distance_of_centres():
    truth = [[0, 0, 0, 4, 10, 10]]  # sides of 8, 5, 5 mm: radius 3 mm; centre 2, 5, 5
    points = [[3, 5, 5] * 2, [2, 11, 5] * 2, [2, 10, 5] * 2]
    image = ImageBoxes(points, [0.3, 0.9, 0.5], truth, spacing=(2, 0.5, 0.5))
    rate, sensitivity, levels = froc_curve([image], hit="centre")
    assert levels.tolist() == [np.inf, 0.9, 0.5]  # the second hit at 0.3 changes nothing
    assert rate.tolist() == [0, 1, 1]  # 3 mm away is not less than the radius, 2.5 mm is
    assert sensitivity.tolist() == [0, 0, 1]
    empty = ImageBoxes([], [], [], spacing=(2, 0.5, 0.5))
    assert froc_curve([image, empty], hit="centre")[0].tolist() == [0, 0.5, 0.5]


def test_nothing_there():
    empty = ImageBoxes([], [], [])
    some = ImageBoxes([[0, 0, 1, 1]], [0.5], [])
    missed = ImageBoxes([], [], [[0, 0, 1, 1]])
    for images in ([], [empty], [some]):
        assert math.isnan(average_precision(images))
        assert math.isnan(detection_scores(images)["box_ap"])
        assert math.isnan(froc_scores(images)["cpm"])
    for method in ("coco", "voc", "step"):
        assert average_precision([missed], method=method) == 0
    assert froc_scores([missed])["cpm"] == 0
    assert froc_scores([ImageBoxes(missed.truth, [1], missed.truth)])["cpm"] == 1


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.permutations([0, 1, 2]))
def test_axes_scale_and_monotonic_scores_do_not_matter(seed, order):
    images = scene(seed, 3, images=4)
    columns = [*order, *(3 + axis for axis in order)]
    turned = [
        ImageBoxes(image.boxes[:, columns] * 3 + 5, np.exp(image.scores), image.truth[:, columns] * 3 + 5)
        for image in images
    ]
    for method in ("coco", "voc"):
        expected = detection_scores(images, method=method)
        assert detection_scores(turned, method=method) == pytest.approx(expected, nan_ok=True)
    assert froc_scores(turned, hit="centre") == pytest.approx(froc_scores(images, hit="centre"), nan_ok=True)


def test_bad_arguments():
    box = [[0, 0, 1, 1]]
    for words, given_ in {
        "axes": ([[0, 0, 1]], [1], box),
        "same axes": ([[0, 0, 0, 1, 1, 1]], [1], box),
        "lower corner, upper corner": ([[2, 0, 1, 1]], [1], box),
        "finite": ([[0, 0, 1, np.nan]], [1], box),
        "scores": (box, [np.nan], box),
        "one per box": (box, [1, 2], box),
    }.items():
        with pytest.raises(ValueError, match=words):
            ImageBoxes(*given_)
    with pytest.raises(ValueError, match="labels must have"):
        ImageBoxes(box, [1], box, labels=[1, 2])
    image = ImageBoxes(box, [1], box)
    for words, options in itertools.chain(
        {"method": {"method": "area"}, "ties": {"ties": "random"}, "threshold": {"threshold": 0}}.items(),
        {"max_detections": {"max_detections": -1}}.items(),
    ):
        with pytest.raises(ValueError, match=words):
            average_precision([image], **options)
    with pytest.raises(ValueError, match="hit must be"):
        froc_curve([image], hit="touch")
    with pytest.raises(ValueError, match="same axes"):
        box_iou(box, [[0, 0, 0, 1, 1, 1]])
    assert len({one.name for one in QUANTITIES}) == len(QUANTITIES)
