"""Paired comparison, DeLong and McNemar, checked against definitions computed another way."""

from __future__ import annotations

import numpy as np
import pytest
from evaluate_cases import cohort, findings
from scipy import stats

from vesalius.core.errors import DataError
from vesalius.evaluate.compare import compare, delong, mcnemar
from vesalius.evaluate.study import study


def scores(seed=0, n=70, ties=False):
    random = np.random.default_rng(seed)
    truth = random.random(n) < 0.4
    shared = random.normal(size=n)
    one, two = shared + random.normal(size=n) + truth, shared + random.normal(size=n) + 1.5 * truth
    return truth, np.round(one) if ties else one, np.round(two) if ties else two


def delong_by_definition(truth, one, two):
    """Equations 3 to 8 of DeLong et al. 1988 with the kernel written out pair by pair."""

    def kernel(score):
        x, y = score[truth][:, None], score[~truth][None]
        return (y < x) + 0.5 * (y == x)

    psi = [kernel(one), kernel(two)]
    s10 = np.cov([p.mean(axis=1) for p in psi])
    s01 = np.cov([p.mean(axis=0) for p in psi])
    s = s10 / truth.sum() + s01 / (~truth).sum()
    contrast = np.array([-1, 1])
    return psi[0].mean(), psi[1].mean(), np.sqrt(contrast @ s @ contrast)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_delong_equals_its_definition(seed, ties):
    truth, one, two = scores(seed, ties=ties)
    first, second, error = delong_by_definition(truth, one, two)
    found = delong(truth, one, two)
    assert (found.first, found.second, found.standard_error) == pytest.approx((first, second, error), abs=1e-12)
    z = (second - first) / error
    assert found.z == pytest.approx(z)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_delong_error_is_about_that_of_the_bootstrap():
    truth, one, two = scores(5, n=300)
    random, differences = np.random.default_rng(0), []
    for _ in range(400):
        drawn = np.r_[
            random.choice(np.flatnonzero(truth), truth.sum()), random.choice(np.flatnonzero(~truth), (~truth).sum())
        ]
        pair = [stats.mannwhitneyu(s[drawn][truth[drawn]], s[drawn][~truth[drawn]]).statistic for s in (one, two)]
        differences.append((pair[1] - pair[0]) / truth.sum() / (~truth).sum())
    # 400 replicates know the deviation to 3.5 %; three times that is allowed.
    assert delong(truth, one, two).standard_error == pytest.approx(np.std(differences), rel=0.12)


def test_identical_patients_count_once():
    truth, one, two = scores(1)
    plain = delong(truth, one, two)
    tripled = delong(*(np.repeat(a, 3) for a in (truth, one, two)), patients=np.repeat(np.arange(len(truth)), 3))
    assert tripled.standard_error == pytest.approx(plain.standard_error)
    assert delong(truth, one, two, patients=np.arange(len(truth))[::-1]).p == pytest.approx(plain.p)
    mixed = delong(truth, one, two, patients=np.arange(len(truth)) // 2)
    assert mixed.standard_error != pytest.approx(plain.standard_error, rel=1e-6)


def test_clustered_error_is_about_that_of_drawing_patients():
    # Each patient has a case of both classes and a score level of his own, which cancels between them.
    random = np.random.default_rng(3)
    who = np.repeat(np.arange(120), 2)
    truth = np.arange(240) % 2 == 1
    level = 2 * random.normal(size=120)[who]
    one, two = random.normal(size=240) + 3 * truth, level + random.normal(size=240) + 2 * truth
    differences = []
    for _ in range(400):
        drawn = random.integers(0, 120, 120)
        drawn = np.r_[2 * drawn, 2 * drawn + 1]
        pair = [stats.mannwhitneyu(s[drawn][120:], s[drawn][:120]).statistic for s in (one, two)]
        differences.append((pair[1] - pair[0]) / 120**2)
    found = delong(truth, one, two, patients=who)
    assert found.standard_error == pytest.approx(np.std(differences), rel=0.12)
    assert delong(truth, one, two).standard_error > 1.3 * found.standard_error


def test_delong_without_difference_or_cases():
    truth, one, _ = scores(2)
    same = delong(truth, one, 2 * one + 1)
    assert (same.difference, same.standard_error) == (0, 0)
    assert np.isnan(same.p)
    assert np.isnan(delong([True, False], [0.1, 0.2], [0.2, 0.1]).p)
    assert np.isnan(delong([True, True], [0.1, 0.2], [0.2, 0.1]).first)
    with pytest.raises(ValueError, match="axes"):
        delong([True, False], [0.1], [0.2, 0.1])


def test_mcnemar_equals_the_binomial_sum():
    one = np.array([1] * 3 + [0] * 11 + [1] * 20 + [0] * 5, dtype=bool)
    two = np.array([0] * 3 + [1] * 11 + [1] * 20 + [0] * 5, dtype=bool)
    found = mcnemar(one, two)
    assert (found.only_first, found.only_second) == (3, 11)
    assert found.p == pytest.approx(2 * stats.binom.cdf(3, 14, 0.5))
    assert mcnemar(one, one).p == 1
    with pytest.raises(ValueError, match="axes"):
        mcnemar(one, two[1:])


def test_mcnemar_agresti_table_10_1():
    # Approval of the prime minister: 794 approve twice, 150 and 86 change, 570 disapprove twice (Agresti 1990).
    found = mcnemar(np.repeat([True, True, False, False], [794, 150, 86, 570]),
                    np.repeat([True, False, True, False], [794, 150, 86, 570]))  # fmt: skip
    assert found.p == pytest.approx(stats.chi2.sf((150 - 86) ** 2 / 236, 1), rel=0.3)
    assert found.p < 4e-5


def pair(seed=0):
    labels, first = cohort(("no", "yes"), patients=160, per_patient=1, signal=1.0)
    _, second = cohort(("no", "yes"), patients=160, per_patient=1, signal=2.0)
    return labels, first, second.sample(frac=1, random_state=seed)


def test_a_better_model_is_seen_in_any_order_of_rows():
    labels, first, second = pair()
    found = compare(first, second, labels, resamples=300)
    gain = found.difference["auroc"]
    assert 0 < gain.low < gain.value < gain.high
    assert gain.value == pytest.approx(found.second["auroc"] - found.first["auroc"])
    assert found.delong["yes"].difference == pytest.approx(gain.value)
    assert found.delong["yes"].p < 0.05
    test = first[first["split"] == "test"].merge(second, on="case_id")
    assert found.mcnemar.only_second == (~test["correct_x"] & test["correct_y"]).sum()
    data = found.to_json()
    assert data["metrics"]["auroc"]["difference"]["low"] == gain.low
    assert data["tests"]["mcnemar"]["p"] == found.mcnemar.p


def test_pairing_makes_the_interval_of_the_difference_narrow():
    labels, first, second = pair()
    found = compare(first, second, labels, resamples=300)
    same = compare(first, first, labels, resamples=50)
    assert same.difference["auroc"].high == same.difference["auroc"].low == 0
    gain, back = found.difference["auroc"], compare(second, first, labels, resamples=300).difference["auroc"]
    assert (back.low, back.high) == pytest.approx((-gain.high, -gain.low))
    # Both models see the same noise: of two independent intervals the widths would add up as squares.
    apart = [study(t, labels, resamples=300, covariates=()).metrics["auroc"] for t in (first, second)]
    assert gain.high - gain.low < 0.8 * np.hypot(*(estimate.high - estimate.low for estimate in apart))


def test_dependent_cases_have_no_mcnemar():
    labels, table = cohort(("no", "yes"))
    assert compare(table, table, labels, resamples=20).mcnemar is None
    labels, table, _ = findings()
    found = compare(table, table, labels, resamples=20)
    assert found.mcnemar is None
    assert list(found.delong) == list(labels.names)


def test_tables_that_do_not_match_are_refused():
    labels, first, second = pair()
    with pytest.raises(DataError, match="is in one table only"):
        compare(first, second[second["case_id"] != "c0000"], labels)
    with pytest.raises(DataError, match="different label"):
        compare(first, second.assign(label="no"), labels)
    with pytest.raises(DataError, match="different patient_id"):
        compare(first, second.assign(patient_id="x"), labels)
    with pytest.raises(DataError, match="no case belongs"):
        compare(first, second, labels, split="train")
