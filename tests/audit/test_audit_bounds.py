"""Bounds from counts: against closed forms, an independent library's figures, and their own coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from confide.accounting import Gaussian, SampledGaussian
from confide.audit import (
    Outcome,
    attainable_under_gdp,
    clopper_pearson,
    epsilon_lower_bound,
    epsilon_under_gdp,
    largest_epsilon_under_gdp,
    mu_lower_bound,
    tradeoff_violation,
)
from confide.errors import InputError


@given(st.integers(1, 3000), st.data(), st.sampled_from([0.2, 0.05, 1e-4]))
@settings(max_examples=60, deadline=None)
def test_clopper_pearson_equals_scipys_exact_interval(trials, data, error):
    successes = data.draw(st.integers(0, trials))
    expected = stats.binomtest(successes, trials).proportion_ci(confidence_level=1 - error, method="exact")
    assert clopper_pearson(successes, trials, error=error) == pytest.approx(
        (expected.low, expected.high), rel=1e-9, abs=1e-12
    )


def test_clopper_pearson_covers_at_least_as_often_as_it_says():
    rng = np.random.default_rng(5)
    truth, trials = 0.03, 120
    draws = rng.binomial(trials, truth, 4000)
    bounds = {int(k): clopper_pearson(int(k), trials, error=0.1) for k in np.unique(draws)}
    covered = np.mean([bounds[int(k)][0] <= truth <= bounds[int(k)][1] for k in draws])
    assert covered >= 0.9 - 3 * np.sqrt(0.09 / 4000)


def test_epsilon_from_counts_is_the_textbook_formula_in_both_directions():
    outcome = Outcome(3, 500, 240, 500)
    fpr, fnr = outcome.upper_rates(0.05)
    assert fpr == pytest.approx(stats.beta.isf(0.025, 4, 497)) and fnr == pytest.approx(stats.beta.isf(0.025, 241, 260))
    assert epsilon_lower_bound(outcome, delta=1e-5) == pytest.approx(np.log((1 - fnr - 1e-5) / fpr))
    mirrored = Outcome(240, 500, 3, 500)
    assert epsilon_lower_bound(mirrored, delta=1e-5) == epsilon_lower_bound(outcome, delta=1e-5)
    assert mu_lower_bound(mirrored) == pytest.approx(mu_lower_bound(outcome))


def test_no_evidence_gives_no_bound():
    useless = Outcome(250, 500, 250, 500)
    assert (
        epsilon_lower_bound(useless, delta=1e-5) == 0 == mu_lower_bound(useless) == epsilon_under_gdp(0.0, delta=1e-5)
    )


def test_five_hundred_and_five_hundred_trials_never_prove_more_than_five():
    # A known ceiling of the assumption-free bound: ln((1 - u) / u) with u the bound at zero errors.
    assert epsilon_lower_bound(Outcome(0, 500, 0, 500), delta=0) == pytest.approx(4.9, abs=0.05)
    assert largest_epsilon_under_gdp(500, 500, delta=1e-5) > 20


@pytest.mark.parametrize("mu", [0.5, 1.1, 2.0])
def test_the_estimate_under_gdp_stays_below_a_gaussian_truth_and_comes_close(mu):
    truth = Gaussian(noise_multiplier=1 / mu).guarantee().epsilon(1e-5)
    rng, found = np.random.default_rng(11), []
    for _ in range(200):
        fp, fn = rng.binomial(5000, stats.norm.sf(mu / 2)), rng.binomial(5000, stats.norm.cdf(-mu / 2))
        found.append(mu_lower_bound(Outcome(int(fp), 5000, int(fn), 5000)))
    assert np.mean(np.array(found) <= mu) >= 0.95
    assert 0.8 * truth < epsilon_under_gdp(float(np.median(found)), delta=1e-5) < truth


def _gaussian_claim(mu):
    return lambda fpr: stats.norm.cdf(stats.norm.isf(np.asarray(fpr)) - mu)


def test_a_true_claim_on_the_edge_is_not_rejected_more_often_than_stated():
    rng, mu, error = np.random.default_rng(3), 1.0, 0.05
    rejected = 0
    for _ in range(500):
        points = [
            Outcome(
                int(rng.binomial(2000, stats.norm.sf(t))), 2000, int(rng.binomial(2000, stats.norm.cdf(t - mu))), 2000
            )
            for t in (0.5, 2.0)
        ]
        rejected += tradeoff_violation(points, _gaussian_claim(mu), error=error).rejected
    assert rejected / 500 <= error


@pytest.mark.parametrize("reverse", [False, True])
def test_a_false_claim_is_rejected_in_both_directions(reverse):
    counts = (40, 1000, 100, 1000)  # mu about 3
    outcome = Outcome(*(counts[2:] + counts[:2] if reverse else counts))
    assert tradeoff_violation([outcome], _gaussian_claim(1.0)).rejected
    assert not tradeoff_violation([outcome], _gaussian_claim(3.5)).rejected


def test_an_asymmetric_claim_is_read_with_absent_as_the_null():
    def claim(fpr):  # allows nothing at an FPR below one half, and everything above
        return np.where(np.asarray(fpr) < 0.5, 1.0, 0.0)

    assert tradeoff_violation([Outcome(10, 1000, 900, 1000)], claim).rejected
    assert not tradeoff_violation([Outcome(900, 1000, 10, 1000)], claim).rejected


def test_more_points_need_stronger_evidence():
    outcome = Outcome(130, 1000, 480, 1000)
    one = tradeoff_violation([outcome], _gaussian_claim(1.0)).margin
    assert tradeoff_violation([outcome] * 10, _gaussian_claim(1.0)).margin < one


@pytest.mark.parametrize("bad", [(1, 0, 0, 1), (5, 4, 0, 1), (-1, 4, 0, 1), (0, 1, 2, 1)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(InputError):
        Outcome(*bad)


def test_bad_calls_are_refused():
    with pytest.raises(InputError):
        clopper_pearson(1, 2, error=0.0)
    with pytest.raises(InputError):
        clopper_pearson(3, 2)
    with pytest.raises(InputError):
        tradeoff_violation([], _gaussian_claim(1.0))


def test_a_gaussian_claim_is_attainable_in_full_and_a_tail_is_not():
    truth = Gaussian(noise_multiplier=0.9).guarantee()
    assert attainable_under_gdp(truth.tradeoff, delta=1e-5) == pytest.approx(truth.epsilon(1e-5), rel=1e-6)
    rare = SampledGaussian(noise_multiplier=0.8, rate=0.004).guarantee(steps=300)
    assert 0 < attainable_under_gdp(rare.tradeoff, delta=1e-5) < 0.75 * rare.epsilon(1e-5)
