"""Overlap of label maps against scikit-learn, scikit-image, SimpleITK and plain counting."""

import math

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import variation_of_information
from sklearn.metrics import accuracy_score, adjusted_rand_score, cohen_kappa_score, f1_score, jaccard_score
from sklearn.metrics.cluster import contingency_matrix

from vesalius.measure.contingency import Contingency, contingency
from vesalius.measure.overlap import MAP_QUANTITIES, QUANTITIES, TABLE_QUANTITIES, map_agreement, overlap_table

KINDS = [bool, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


def blobs(seed, shape=(9, 20, 31), labels=5, coarse=3):
    """Blocks of equal labels, so that there are long and short runs."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, labels, [-(-side // coarse) for side in shape])
    for axis in range(len(shape)):
        small = np.repeat(small, coarse, axis=axis)
    return small[tuple(slice(0, side) for side in shape)]


def pair(seed, **options):
    first = blobs(seed, **options)
    second = first.copy()
    other = blobs(seed + 1, **options)
    changed = np.random.default_rng(seed + 2).random(first.shape) < 0.3
    second[changed] = other[changed]
    return second, first


def counted(first, second):
    table = {}
    for one, two in zip(np.ravel(first).tolist(), np.ravel(second).tolist(), strict=True):
        table[one, two] = table.get((one, two), 0) + 1
    return table


def as_table(counts):
    names = zip(counts.first[counts.row].tolist(), counts.second[counts.column].tolist(), strict=True)
    return dict(zip(names, counts.count.tolist(), strict=True))


@pytest.mark.parametrize("one", [np.uint8, np.int16, np.uint64])
@pytest.mark.parametrize("two", [bool, np.int8, np.uint16, np.int32, np.int64])
def test_counts_of_all_kinds_of_numbers(one, two):
    first, second = pair(3)
    first, second = first.astype(one), second.astype(two)
    assert as_table(contingency(first, second)) == counted(first.astype(int), second.astype(int))


def test_counts_against_sklearn():
    said, true = pair(8, labels=12)
    np.testing.assert_array_equal(contingency(said, true).dense(), contingency_matrix(said.ravel(), true.ravel()))


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 70), st.integers(1, 40), st.integers(1, 3))
def test_counts_do_not_depend_on_threads_or_runs(seed, z, x, labels, workers):
    said, true = pair(seed, shape=(z, 3, x), labels=labels, coarse=1 + seed % 9)
    assert as_table(contingency(said, true, workers=workers)) == counted(said, true)


def test_large_values_and_many_pairs():
    draw = np.random.default_rng(0)
    names = np.unique(draw.integers(1, 2**62, 3000))
    first, second = draw.choice(names, (40, 50, 10)), draw.choice(names, (40, 50, 10))
    found = contingency(first, second)
    assert as_table(found) == counted(first, second)
    assert found.first[0] == 0
    assert found.first_voxels[0] == 0
    assert found.total == first.size
    np.testing.assert_array_equal(found.first[1:], np.unique(first))
    assert as_table(contingency(first.astype(np.uint64), second)) == counted(first, second)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("other", ["C", "F"])
def test_memory_order_and_slices(order, other):
    said, true = pair(5, shape=(8, 9, 10))
    expected = counted(said, true)
    assert as_table(contingency(np.array(said, order=order), np.array(true, order=other))) == expected
    wide = np.zeros((8, 18, 10), dtype=said.dtype)
    wide[:, ::2] = said
    assert as_table(contingency(wide[:, ::2], true)) == expected
    assert as_table(contingency(said.astype(">i2"), true)) == expected
    assert as_table(contingency(said.astype(np.float64), true)) == expected


def test_empty_arrays_and_bad_arguments():
    found = contingency(np.zeros((0, 4), int), np.zeros((0, 4), int))
    assert isinstance(found, Contingency)
    assert found.total == 0
    assert found.dense().tolist() == [[0]]
    with pytest.raises(ValueError, match="one shape"):
        contingency(np.zeros((2, 2), int), np.zeros((2, 3), int))
    for kind in (np.int8, np.int64, np.float32):
        with pytest.raises(ValueError, match="first map must not be negative"):
            contingency(np.full((2, 2), -1, kind), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"second map must be below 2\*\*63"):
        contingency(np.zeros((2, 2), int), np.full((2, 2), 2**63, np.uint64))
    for bad in (0.5, np.nan):
        with pytest.raises(ValueError, match="whole numbers"):
            contingency(np.zeros((2, 2), int), np.full((2, 2), bad))
    maps = np.ones((4, 4), int)
    with pytest.raises(ValueError, match="empty must be"):
        overlap_table(maps, maps, empty="zero")
    with pytest.raises(ValueError, match="spacing"):
        overlap_table(maps, maps, (1, 1, 1))
    with pytest.raises(ValueError, match="axes"):
        overlap_table(maps[0], maps[0])


@pytest.mark.parametrize("seed", range(4))
def test_table_against_sklearn_and_simpleitk(seed):
    said, true = pair(seed)
    table = overlap_table(said, true, (2.0, 0.5, 0.25))
    labels = table["label"]
    assert labels.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(table["dice"], f1_score(true.ravel(), said.ravel(), labels=labels, average=None))
    np.testing.assert_allclose(table["iou"], jaccard_score(true.ravel(), said.ravel(), labels=labels, average=None))
    other = SimpleITK.LabelOverlapMeasuresImageFilter()
    other.Execute(
        SimpleITK.GetImageFromArray(said.astype(np.uint8)), SimpleITK.GetImageFromArray(true.astype(np.uint8))
    )
    for row, label in enumerate(labels.tolist()):
        assert table["dice"][row] == pytest.approx(other.GetDiceCoefficient(label))
        assert table["iou"][row] == pytest.approx(other.GetJaccardCoefficient(label))
        # ITK's first image is its source, the second the target that its errors are measured against.
        assert 1 - table["sensitivity"][row] == pytest.approx(other.GetFalseNegativeError(label))
        assert 1 - table["precision"][row] == pytest.approx(other.GetFalseDiscoveryRate(label))
        assert 1 - table["specificity"][row] == pytest.approx(other.GetFalsePositiveError(label))
        assert 1 - table["volumetric_similarity"][row] == pytest.approx(abs(other.GetVolumeSimilarity(label)) / 2)
        assert table["volume_prediction"][row] == pytest.approx((said == label).sum() * 0.25 / 1000)
        assert table["volume_truth"][row] == pytest.approx((true == label).sum() * 0.25 / 1000)
        error = 100 * ((said == label).sum() / (true == label).sum() - 1)
        assert table["relative_volume_error"][row] == pytest.approx(error)
        assert table["tp"][row] == ((said == label) & (true == label)).sum()
        assert table["fp"][row] == ((said == label) & (true != label)).sum()
        assert table["fn"][row] == ((said != label) & (true == label)).sum()


@pytest.mark.parametrize("seed", range(4))
def test_map_scores_against_sklearn_and_skimage(seed):
    said, true = pair(seed, labels=7)
    found = map_agreement(said, true)
    assert found["adjusted_rand"] == pytest.approx(adjusted_rand_score(true.ravel(), said.ravel()), abs=1e-12)
    split, merge = variation_of_information(true, said)
    assert found["vi_split"] == pytest.approx(split)
    assert found["vi_merge"] == pytest.approx(merge)
    assert found["vi"] == pytest.approx(split + merge)
    assert found["accuracy"] == pytest.approx(accuracy_score(true.ravel(), said.ravel()))
    assert found["kappa"] == pytest.approx(cohen_kappa_score(true.ravel(), said.ravel()))
    foreground = true != 0
    assert map_agreement(said, true, ignore=0)["adjusted_rand"] == pytest.approx(
        adjusted_rand_score(true[foreground], said[foreground])
    )


def test_split_and_merge_are_not_exchanged():
    whole, halves = np.ones((4, 8), int), np.ones((4, 8), int)
    halves[:, 4:] = 2
    found = map_agreement(halves, whole)
    assert (found["vi_split"], found["vi_merge"]) == (1.0, 0.0)
    found = map_agreement(whole, halves)
    assert (found["vi_split"], found["vi_merge"]) == (0.0, 1.0)


def test_generalised_dice_by_hand():
    true, said = np.zeros((10, 10), int), np.zeros((10, 10), int)
    true[0, :8], true[1, :2] = 1, 2
    said[0, :6], said[1, :4] = 1, 2
    weights = np.array([1 / 64, 1 / 4])
    expected = 2 * weights @ [6, 2] / (weights @ [14, 6])
    assert map_agreement(said, true)["generalised_dice"] == pytest.approx(expected)
    said[2, :3] = 3  # not in the truth: weighted like the smallest true label
    weights = np.array([1 / 64, 1 / 4, 1 / 4])
    assert map_agreement(said, true)["generalised_dice"] == pytest.approx(
        2 * weights @ [6, 2, 0] / (weights @ [14, 6, 3])
    )


def test_the_empty_rule():
    nothing, something = np.zeros((3, 4, 5), int), np.zeros((3, 4, 5), int)
    something[1] = 1
    table = overlap_table(nothing, nothing, labels=[1])
    for name in ("dice", "iou", "volumetric_similarity", "sensitivity", "precision", "relative_volume_error"):
        assert math.isnan(table[name][0]), name
    assert table["specificity"][0] == 1
    table = overlap_table(nothing, nothing, labels=[1], empty="one")
    assert table["dice"][0] == table["iou"][0] == table["volumetric_similarity"][0] == 1
    assert math.isnan(table["sensitivity"][0])
    for said, true in ((nothing, something), (something, nothing)):
        for rule in ("nan", "one"):
            table = overlap_table(said, true, empty=rule)
            assert table["dice"][0] == table["iou"][0] == table["volumetric_similarity"][0] == 0
    assert len(overlap_table(nothing, nothing)["dice"]) == 0
    found = map_agreement(nothing, nothing)
    assert math.isnan(found["generalised_dice"])
    assert math.isnan(found["kappa"])
    assert found["accuracy"] == found["adjusted_rand"] == 1
    assert map_agreement(nothing, nothing, empty="one")["generalised_dice"] == 1
    assert map_agreement(something, nothing)["generalised_dice"] == 0
    assert all(math.isnan(value) for value in map_agreement(nothing, nothing, ignore=0).values())


def test_ignored_voxels_are_as_if_not_there():
    said, true = pair(11)
    true[2:4] = 255
    kept = true != 255
    found = overlap_table(said, true, ignore=255)
    expected = overlap_table(said[kept].reshape(1, 1, -1), true[kept].reshape(1, 1, -1))
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert map_agreement(said, true, ignore=255) == map_agreement(said[kept], true[kept])


def test_named_labels_give_rows_in_rising_order():
    said, true = pair(2)
    table = overlap_table(said, true, labels=[9, 0, 2, 2])
    assert table["label"].tolist() == [0, 2, 9]
    assert table["tp"].tolist() == [((said == k) & (true == k)).sum() for k in (0, 2, 9)]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.permutations([0, 1, 2]), st.lists(st.booleans(), min_size=3, max_size=3))
def test_flips_permutations_and_scale(seed, order, flips):
    said, true = pair(seed, shape=(4, 6, 8))
    step = (3.0, 0.7, 1.1)

    def turned(array):
        return np.flip(array, [axis for axis in range(3) if flips[axis]]).transpose(order)

    table = overlap_table(said, true, step)
    other = overlap_table(turned(said), turned(true), [2 * step[axis] for axis in order])
    for name in table:
        factor = 8 if name in ("volume_prediction", "volume_truth", "volume_error") else 1
        np.testing.assert_allclose(other[name], table[name] * factor)
    assert map_agreement(said, true) == map_agreement(turned(said), turned(true))
    back, there = overlap_table(true, said, step), table
    np.testing.assert_array_equal(back["dice"], there["dice"])
    np.testing.assert_array_equal(back["sensitivity"], there["precision"])


def test_every_number_is_described():
    said, true = pair(1)
    table = overlap_table(said, true, (1, 1, 1))
    flat = overlap_table(said[0], true[0])
    assert {*table, *flat} == {one.name for one in TABLE_QUANTITIES}
    assert list(map_agreement(said, true)) == [one.name for one in MAP_QUANTITIES]
    assert len({one.name for one in QUANTITIES}) == len(QUANTITIES)
    assert flat["area_truth"].tolist() == [(true[0] == k).sum() for k in flat["label"]]


@pytest.mark.parametrize("kind", KINDS)
def test_long_runs_and_ends(kind):
    first, second = np.zeros((3, 1000), kind), np.zeros((3, 1000), kind)
    first[1, 130:131], second[1, 64:195] = 1, 1
    first[2, -1] = 1
    assert as_table(contingency(first, second, workers=1)) == counted(first.astype(int), second.astype(int))
