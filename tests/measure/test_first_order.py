"""Intensities in regions against numpy, scipy.stats, SimpleITK and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from vesalius.measure import first_order
from vesalius.measure.boxes import label_boxes


def scene(seed: int = 0, shape=(9, 12, 15)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, shape).astype(np.int16) * 3
    return random.normal(40, 12, shape).astype(np.float32), labels


@settings(max_examples=80)
@given(st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 2)), min_size=2, max_size=40))
def test_statistics_against_numpy_and_scipy(values):
    found, x = first_order.statistics(values), np.array(values)
    p10, p25, p75, p90 = np.percentile(x, [10, 25, 75, 90])
    inner = x[(x >= p10) & (x <= p90)]
    expected = {
        "mean": x.mean(), "variance": x.var(), "median": np.median(x), "minimum": x.min(), "maximum": x.max(),
        "percentile_10": p10, "percentile_90": p90, "interquartile_range": p75 - p25, "range": np.ptp(x),
        "mean_absolute_deviation": np.abs(x - x.mean()).mean(), "energy": (x**2).sum(),
        "median_absolute_deviation": np.abs(x - np.median(x)).mean(), "root_mean_square": np.sqrt((x**2).mean()),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-7), name
    # Percentiles that fall on a value up to rounding may count it or not.
    if not len(inner):
        assert np.isnan(found["robust_mean_absolute_deviation"])
    elif not any(np.isclose(x, p, atol=1e-9).any() for p in (p10, p90)):
        assert found["robust_mean_absolute_deviation"] == pytest.approx(np.abs(inner - inner.mean()).mean(), abs=1e-9)
    if np.ptp(x) > 1:
        assert found["skewness"] == pytest.approx(stats.skew(x), abs=1e-7)
        assert found["excess_kurtosis"] == pytest.approx(stats.kurtosis(x), abs=1e-7)


def test_table_against_label_statistics():
    image, labels = scene()
    table = first_order.first_order_table(image, labels, bins=16)
    filter_ = sitk.LabelStatisticsImageFilter()
    filter_.Execute(sitk.GetImageFromArray(image), sitk.GetImageFromArray(labels))
    for row, label in enumerate(table["label"].tolist()):
        n = filter_.GetCount(label)
        assert table["voxel_count"][row] == n
        assert table["mean"][row] == pytest.approx(filter_.GetMean(label), rel=1e-6)
        assert table["variance"][row] * n / (n - 1) == pytest.approx(filter_.GetVariance(label), rel=1e-5)
        assert table["maximum"][row] == pytest.approx(filter_.GetMaximum(label))
        own = first_order.statistics(image[labels == label])
        levels = first_order.discretised(image[labels == label], bins=16)
        own |= first_order.histogram(levels, bins=16) | first_order.volume_histogram(image[labels == label])
        for name, value in own.items():
            assert table[name][row] == pytest.approx(value, rel=1e-12), name


def test_collected_values_keep_type_and_order():
    image, labels = scene(3)
    boxes = label_boxes(labels)
    values, first = first_order.collected(image, labels, boxes)
    assert values.dtype == image.dtype
    for row, label in enumerate(boxes.values):
        np.testing.assert_array_equal(values[first[row] : first[row + 1]], image[labels == label])


def test_bins():
    values = np.array([0.0, 0.24, 0.25, 0.99, 1.0])
    assert first_order.discretised(values, bins=4).tolist() == [1, 1, 2, 4, 4]
    assert first_order.discretised([-1000, -976, -975, 40], width=25, minimum=-1000).tolist() == [1, 1, 2, 42]
    assert first_order.discretised([3.0, 3.0], bins=8).tolist() == [1, 1]
    for wrong in ({}, {"bins": 3, "width": 1.0}, {"bins": 0}, {"width": -1.0}, {"width": 1.0, "minimum": 0.5}):
        with pytest.raises(ValueError, match=r"bins|width|minimum"):
            first_order.discretised(values, **wrong)


def test_histogram_features():
    levels = np.repeat([1, 2, 3, 5], [4, 1, 4, 2])
    found = first_order.histogram(levels, bins=6)
    share = np.array([4, 1, 4, 2]) / 11
    assert found["histogram_entropy"] == pytest.approx(stats.entropy(share, base=2))
    assert found["histogram_uniformity"] == pytest.approx((share**2).sum())
    assert found["histogram_mode"] == 3  # as frequent as 1, closer to the mean
    slope = np.gradient([4.0, 1, 4, 0, 2, 0])
    assert found["histogram_maximum_gradient"] == slope.max()
    assert found["histogram_minimum_gradient"] == slope.min()
    assert found["histogram_minimum_gradient_bin"] == slope.argmin() + 1
    with pytest.raises(ValueError, match="whole"):
        first_order.histogram([1.5])


def test_volume_histogram_of_a_uniform_ramp():
    found = first_order.volume_histogram(np.linspace(0, 1, 100_001))
    assert found["volume_fraction_10"] == pytest.approx(0.9, abs=1e-3)
    assert found["volume_fraction_90"] == pytest.approx(0.1, abs=1e-3)
    assert found["intensity_fraction_10"] == pytest.approx(0.9, abs=2e-3)
    assert found["intensity_fraction_90"] == pytest.approx(0.1, abs=2e-3)
    assert found["volume_histogram_area"] == pytest.approx(0.5, abs=1e-3)


def test_peaks_against_a_convolution():
    image, labels = scene(5, (14, 20, 22))
    spacing = (2.5, 1.0, 1.7)
    table = first_order.first_order_table(image, labels, spacing, peaks=True)
    radius = (3 / (4 * np.pi)) ** (1 / 3) * 10
    reach = [int(radius // step) for step in spacing]
    offsets = np.meshgrid(*[np.arange(-k, k + 1) * step for k, step in zip(reach, spacing, strict=True)], indexing="ij")
    ball = (sum(o**2 for o in offsets) <= radius**2).astype(float)
    total = ndimage.convolve(image.astype(float), ball, mode="constant")
    mean = total / ndimage.convolve(np.ones(image.shape), ball, mode="constant")
    for row, label in enumerate(table["label"]):
        inside = labels == label
        assert table["global_peak"][row] == pytest.approx(mean[inside].max())
        assert table["local_peak"][row] == pytest.approx(mean[inside][image[inside].argmax()])


def test_constants_nothing_and_what_is_refused():
    found = first_order.statistics([5, 5, 5])
    assert (found["mean"], found["variance"], found["range"]) == (5, 0, 0)
    assert np.isnan(found["skewness"])
    assert all(np.isnan(value) for value in first_order.statistics([]).values())
    assert np.isnan(first_order.statistics([-1, 1])["variation_coefficient"])
    image, labels = scene()
    image[0, 0, 0], labels[0, 0, 0] = np.nan, 0
    table = first_order.first_order_table(image, labels)  # NaN in the background does no harm
    assert np.isfinite(table["mean"]).all()
    assert not any(name.startswith("histogram_") for name in table)
    labels[0, 0, 0] = 6
    with pytest.raises(ValueError, match=r"label 6 .*NaN"):
        first_order.first_order_table(image, labels)
    with pytest.raises(ValueError, match="NaN"):
        first_order.statistics([1, np.inf])
    with pytest.raises(ValueError, match="does not fit"):
        first_order.first_order_table(image[1:], labels)
    with pytest.raises(ValueError, match="spacing"):
        first_order.first_order_table(image, labels, peaks=True)
    empty = first_order.first_order_table(np.zeros((4, 4), np.int16), np.zeros((4, 4), bool))
    assert all(len(column) == 0 for column in empty.values())
    assert "histogram_mode" in empty


def test_planes_and_whole_intensities():
    image, labels = scene(1, (1, 30, 30))
    whole = image.astype(np.int16)
    flat = first_order.first_order_table(whole[0], labels[0])
    deep = first_order.first_order_table(whole, labels)
    for name, column in deep.items():
        np.testing.assert_array_equal(flat[name], column, err_msg=name)
    assert flat["histogram_mean"] == pytest.approx(flat["mean"])
