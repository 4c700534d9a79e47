"""Wilson's interval against a published table and scipy; sums by group against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from vesalius.measure import weights
from vesalius.measure.intervals import wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 1998;17:857-872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_newcombes_table(hits, total, low, high):
    found = wilson(hits, total)
    assert (round(float(found[0]), 4), round(float(found[1]), 4)) == (low, high)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_equals_scipy_for_every_count(level):
    hits = np.arange(13)
    low, high = wilson(hits, 12, level)
    for k in hits:
        expected = binomtest(int(k), 12).proportion_ci(level, method="wilson")
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_is_known_without_cases():
    low, high = wilson([0, 3], [0, 4])
    assert (low[0], high[0]) == (0, 1)
    assert 0 < low[1] < 0.75 < high[1] < 1


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="between 0 and total"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="between 0 and total"):
        wilson(-1, 2)
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, 95)


def test_sums_by_group_equal_bincount():
    random = np.random.default_rng(0)
    group, values = random.integers(0, 5, 40), random.random((6, 40))
    found = weights.sum_by_group(values, group, 9)
    for row, sums in zip(values, found, strict=True):
        np.testing.assert_allclose(sums, np.bincount(group, row, minlength=9))
    assert weights.sum_by_group(np.ones((2, 0)), np.zeros(0, dtype=int), 3).sum() == 0


def test_mean_defined_equals_nanmean_and_ratio_divides():
    table = np.array([[1.0, np.nan, 3.0], [np.nan] * 3])
    np.testing.assert_array_equal(weights.mean_defined(table), [2.0, np.nan])
    np.testing.assert_array_equal(weights.mean_defined(table, axis=0), [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(weights.ratio([1.0, 0.0], [2.0, 0.0]), [0.5, np.nan])
