"""Whole populations: every class spends 99% to 100% of its budget, and its answer depends on nobody else."""

import numpy as np
import pytest
from scipy import stats

from confide.accounting import SampledGaussian, calibrate_clips, calibrate_rates
from confide.accounting.calibration import solve_clips, solve_rates
from confide.accounting.mechanisms import binomial
from confide.accounting.population import Clips, Rates, rung

PUBLIC = {"delta": 1e-6, "noise_multiplier": 1.0, "steps": 2000}


@pytest.mark.parametrize(
    ("sigma", "steps", "delta", "budgets"),
    [
        (1.0, 2000, 1e-6, (4.0,)),
        pytest.param(1.0, 2000, 1e-6, (0.7,), marks=pytest.mark.slow),
        pytest.param(0.7, 50, 1e-5, (1.3, 9.0), marks=pytest.mark.slow),
        pytest.param(6.0, 20, 1e-9, (2.0, 0.11), marks=pytest.mark.slow),
    ],
)
def test_every_class_spends_its_budget_and_no_more(sigma, steps, delta, budgets):
    entries = np.array([1, 2, 37, 150])
    for budget in budgets:
        rates, stated = solve_rates(entries, budget, delta=delta, noise_multiplier=sigma, steps=steps)
        clips, clip_stated = solve_clips(entries, budget, delta=delta, noise_multiplier=sigma, steps=steps, rate=0.01)
        assert np.all(np.diff(rates) <= 0) and np.all(np.diff(clips) < 0)
        for k, rate, clip, said, clip_said in zip(entries, rates, clips, stated, clip_stated, strict=True):
            for one, bound in (
                (SampledGaussian(sigma, rate, int(k)), said),
                (SampledGaussian(sigma, 0.01, int(k), clip), clip_said),
            ):
                low, high = one.guarantee(steps).epsilon_interval(delta)
                assert low <= bound <= budget
                assert high >= 0.99 * budget or one.rate == 1.0
                assert one.guarantee(steps).epsilon(delta) <= budget


def test_an_answer_does_not_depend_on_who_else_asks_or_when():
    entries, budgets = [1, 9, 33, 700, 33], [2.0, 2.1, 2.3, 2.0, 2.1]
    together = calibrate_rates(entries, budgets, **PUBLIC)
    for i in (4, 2):
        assert Rates(1.0, 1.0, 2000, 1e-6).rate(entries[i], budgets[i])[0] == together[i]
    clips = calibrate_clips([3, 4, 21], [2.0, 1.0, 2.0], rate=0.01, **PUBLIC)
    assert Clips(1.0, 0.01, 2000, 1e-6).clip(21, 2.0)[0] == clips[2]


def test_fewer_draws_at_the_same_chance_of_none_are_stochastically_fewer():
    # What lets k entries take their rate from a larger number of entries.
    for small, large, rate in ((1, 2, 0.3), (3, 50, 0.02), (17, 18, 0.5), (200, 1 << 40, 1e-12)):
        own = -np.expm1(large / small * np.log1p(-rate))
        i = np.arange(small + 1)
        few, many = stats.binom.sf(i, small, own), stats.binom.sf(i, large, rate)
        assert np.all(few <= many * (1 + 1e-6) + 1e-15)


@pytest.mark.parametrize(("n", "p"), [(3, 0.2), (184, 0.3), (999, 0.01), (200, 0.999), (5000, 1e-3), (1 << 30, 1e-8)])
def test_binomial_probabilities(n, p):
    w = binomial(n, p)
    peer = stats.binom.pmf(np.arange(len(w)), n, p)
    np.testing.assert_allclose(w[peer > 1e-30], peer[peer > 1e-30], rtol=2e-7 if n > 10_000 else 1e-11)
    assert w.sum() == pytest.approx(1, abs=1e-12)


def test_the_ladder_of_budgets():
    x = np.exp(np.random.default_rng(2).uniform(-7, 6, 3000))
    share = np.array([rung(float(v)) / v for v in x])
    assert share.max() <= 1 and share.min() > 0.997
    assert [rung(v) for v in (4.0, 0.3, 1.25, 0.75, 12.0, 1e-3)] == [4.0, 0.3, 1.25, 0.75, 12.0, 1e-3]


def test_epsilon_is_the_same_whatever_was_asked_before():
    fresh = SampledGaussian(1.0, 0.01, 4).guarantee(500)
    asked = SampledGaussian(1.0, 0.01, 4).guarantee(500)
    asked.advantage(), asked.epsilon(1e-3), asked.epsilon_interval(1e-5), asked.tradeoff(0.01), asked.delta(1.0)
    assert asked.epsilon(1e-5) == fresh.epsilon(1e-5)


@pytest.mark.slow
def test_ten_thousand_classes():
    rng = np.random.default_rng(8)
    entries, budgets = rng.integers(1, 200, 10_000), rng.uniform(0.5, 8, 10_000)
    rates = calibrate_rates(entries, budgets, **PUBLIC)
    for i in rng.choice(10_000, 40):
        spent = SampledGaussian(1.0, rates[i], int(entries[i])).guarantee(2000).epsilon_interval(1e-6)
        assert 0.99 * budgets[i] <= spent[1] and spent[0] <= budgets[i]
