"""Patient-level bootstrap: what is drawn, coverage of known truths, scipy as the reference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vesalius.evaluate import interval
from vesalius.evaluate.interval import Estimate, Patients, bootstrap


def mean_of(values):
    def score(weights):
        if weights is None:
            return {"mean": values.mean()}
        return {"mean": weights @ values / weights.sum(axis=1)}

    return score


def all_draws(patients, resamples=64, seed=0):
    return np.concatenate(list(patients.draws(resamples, seed)))


def test_all_cases_of_a_patient_are_drawn_together_and_as_many_patients_as_there_are():
    ids = ["a", "b", "b", "c", "a", "b"]
    weights = all_draws(Patients.of(ids))
    np.testing.assert_array_equal(weights[:, 1], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 5])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    assert (weights[:, 0] != weights[:, 1]).any()


def test_draws_are_uniform_multinomial():
    weights = all_draws(Patients.of(np.arange(5)), 4000)
    # Each patient is drawn binomial(5, 1/5) times.
    seen = np.bincount(weights.astype(int).ravel(), minlength=6)
    expected = stats.binom.pmf(np.arange(6), 5, 0.2) * weights.size
    assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-3
    np.testing.assert_allclose(np.cov(weights.T)[0, 1], -0.2, atol=0.05)


def test_strata_keep_every_class_of_a_yes_no_question():
    truth = np.array([1, 0, 0, 0, 0, 0, 0, 1, 0])
    weights = all_draws(Patients.of(["a", "b", "c", "d", "e", "f", "g", "h", "h"], truth), 500)
    assert (weights[:, truth == 1].sum(axis=1) == 2).all()
    assert (weights[:, truth == 0].sum(axis=1) > 0).all()
    assert (all_draws(Patients.of(np.arange(9)), 500)[:, truth == 1].sum(axis=1) == 0).any()


def test_a_patient_belongs_to_his_rarest_class():
    truth = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=bool)
    np.testing.assert_array_equal(Patients.of(["a", "b", "c", "d"], truth).stratum, [0, 0, 1, 2])


def test_draws_depend_on_the_seed_and_not_on_the_size_of_blocks(monkeypatch):
    patients = Patients.of(np.arange(40) // 2, np.arange(40) % 3)
    whole = all_draws(patients, 100, seed=5)
    assert whole.shape == (100, 40)
    assert (whole != all_draws(patients, 100, seed=6)).any()
    monkeypatch.setattr(interval, "BLOCK", 16 * 40)
    assert len(list(patients.draws(100, 5))) == 7
    np.testing.assert_array_equal(all_draws(patients, 100, seed=5), whole)
    # More replicates only add to those already drawn.
    np.testing.assert_array_equal(all_draws(patients, 50, seed=5), whole[:50])


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_interval_equals_scipys_bootstrap(method):
    values = np.random.default_rng(0).exponential(size=80)
    found = bootstrap(mean_of(values), Patients.of(np.arange(80)), resamples=20000, seed=1, method=method)["mean"]
    name = {"percentile": "percentile", "bca": "BCa"}[method]
    expected = stats.bootstrap((values,), np.mean, n_resamples=20000, method=name, rng=1).confidence_interval
    # Two runs of 20,000 agree to about 0.02 of the interval's width of 0.4.
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.012)
    assert found.value == values.mean()


def test_clustered_cases_widen_the_interval_as_theory_says():
    # Ten identical cases per patient carry the information of one.
    values = np.random.default_rng(1).normal(size=60)
    once = bootstrap(mean_of(values), Patients.of(np.arange(60)), seed=3)["mean"]
    ten = bootstrap(mean_of(np.repeat(values, 10)), Patients.of(np.repeat(np.arange(60), 10)), seed=3)["mean"]
    naive = bootstrap(mean_of(np.repeat(values, 10)), Patients.of(np.arange(600)), seed=3)["mean"]
    assert (ten.low, ten.high) == pytest.approx((once.low, once.high))
    assert (naive.high - naive.low) < 0.4 * (ten.high - ten.low)


def test_coverage_of_a_known_mean():
    random, hits = np.random.default_rng(2), 0
    patients = Patients.of(np.arange(40) // 2)
    for run in range(200):
        values = np.repeat(random.normal(size=20), 2) + 0.3 * random.normal(size=40)
        found = bootstrap(mean_of(values), patients, resamples=200, seed=run)["mean"]
        hits += found.low <= 0 <= found.high
    # Percentile intervals of 20 patients cover a little less than 95 %: about 92 %; 86 % is four standard errors lower.
    assert 172 <= hits <= 199


def test_replicates_without_a_value_are_left_out_and_too_few_give_nan():
    values = np.array([1.0, 2, 3, 4])

    def score(weights):
        if weights is None:
            return {"often": np.float64(2.5), "rarely": np.float64(2.5), "never": np.float64("nan")}
        means = weights @ values / 4
        row = np.arange(len(means))
        return {"often": np.where(row % 4 == 0, np.nan, means), "rarely": np.where(row % 4, np.nan, means),
                "never": means}  # fmt: skip

    found = bootstrap(score, Patients.of(np.arange(4)), resamples=400)
    assert 1 <= found["often"].low < 2.5 < found["often"].high <= 4
    assert np.isnan([found["rarely"].low, found["rarely"].high, found["never"].value, found["never"].high]).all()


def test_an_interval_holds_its_value_even_for_a_biased_statistic():
    found = bootstrap(lambda w: {"x": np.float64(0.0) if w is None else np.linspace(1, 2, len(w))},
                      Patients.of([1, 2, 3]), resamples=50)["x"]  # fmt: skip
    assert found.low == 0.0
    assert found.high > 1


def test_bca_without_spread_falls_back():
    found = bootstrap(lambda w: {"x": np.float64(1.0) if w is None else np.ones(len(w))}, Patients.of([1, 2, 3]),
                      method="bca")["x"]  # fmt: skip
    assert (found.low, found.high) == (1.0, 1.0)


def test_wrong_settings_are_refused():
    score, patients = mean_of(np.ones(3)), Patients.of([1, 2, 3])
    with pytest.raises(ValueError, match="percentile, bca"):
        bootstrap(score, patients, method="student")
    with pytest.raises(ValueError, match="level"):
        bootstrap(score, patients, level=95)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap(score, patients, resamples=0)


def test_json_of_an_estimate():
    assert Estimate(0.9, 0.8, 0.95).to_json() == {"value": 0.9, "low": 0.8, "high": 0.95, "unit": "1", "level": 0.95}
