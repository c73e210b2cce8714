"""Values computed independently (dp_accounting, closed forms, Monte Carlo): never below, and close above."""

import json
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pl
from scipy import stats

from confide.accounting import (
    CappedSampledGaussian,
    DiscreteGaussian,
    Gaussian,
    Laplace,
    LocalGaussian,
    RandomisedResponse,
    ReclippedSampledGaussian,
    ReplaceSampledGaussian,
    SampledGaussian,
    UnequalSampledGaussian,
    ZCDPBudget,
    calibrate_clips,
    calibrate_noise,
    calibrate_rates,
)

FIXTURES = Path(__file__).parent / "fixtures" / "nih_dp_accounting.json"


@pytest.mark.parametrize(
    ("sigma", "rate", "k", "steps", "delta", "oracle"),
    [
        (1.0, 0.01, 1, 1000, 1e-5, 1.8283),
        (1.0, 0.01, 2, 1000, 1e-5, 3.97910),
        (1.0, 0.01, 4, 1000, 1e-5, 8.899),
        (1.0, 0.01, 5, 1000, 1e-5, 11.63798),
        (1.0, 0.01, 10, 1000, 1e-5, 27.89956),
        (1.0, 0.01, 1, 10_000, 1e-5, 6.191),
        (0.8, 0.001, 4, 10_000, 1e-6, 4.139),
        (2.0, 0.1, 1, 500, 1e-5, 5.556),
        (2.0, 0.1, 4, 500, 1e-5, 32.19),
    ],
)
def test_epsilon_matches_the_computed_tables(sigma, rate, k, steps, delta, oracle):
    guarantee = SampledGaussian(sigma, rate, k).guarantee(steps)
    low, high = guarantee.epsilon_interval(delta)
    assert low <= oracle * 1.001
    assert high == pytest.approx(oracle, rel=2e-3)
    assert guarantee.epsilon(delta) == pytest.approx(oracle, rel=2e-3)
    assert (high - low) <= 1.1e-3 * high


@pytest.mark.parametrize(
    ("mu", "epsilon", "auc", "advantage"),
    [(0.5, 1.9931, 0.6382, 0.1974), (1, 4.3772, 0.7602, 0.3829), (5, 33.1037, 0.9998, 0.9876)],
)
def test_gaussian_closed_forms(mu, epsilon, auc, advantage):
    guarantee = Gaussian(1 / mu).guarantee()
    assert guarantee.mu == pytest.approx(mu)
    assert guarantee.epsilon(1e-5) == pytest.approx(epsilon, abs=1e-4)
    assert guarantee.auc() == pytest.approx(auc, abs=1e-4)
    assert guarantee.advantage() == pytest.approx(advantage, abs=1e-4)
    # The lattice must agree with the closed form: all entries always drawn is a Gaussian too.
    lattice = ReplaceSampledGaussian(2 / mu, 1.0, 1, 1).guarantee()
    low, high = lattice.epsilon_interval(1e-5)
    assert low <= epsilon + 1e-4
    assert high == pytest.approx(epsilon, rel=2e-3)


@pytest.mark.parametrize(
    ("mechanism", "steps", "delta", "oracle"),
    [
        (RandomisedResponse(1.0), 1, 1e-9, 1.0),
        (Laplace(0.5), 1, 1e-9, 2.0),
        (CappedSampledGaussian(1.0, 0.05, 8, 1), 500, 1e-5, 74.2),
        (CappedSampledGaussian(1.0, 0.05, 8, 2), 500, 1e-5, 108.9),
        (ReclippedSampledGaussian(1.0, 0.01, 4), 1000, 1e-5, 8.35),
        (UnequalSampledGaussian(1.0, (0.01,) * 4, (1.0,) * 4), 1000, 1e-5, 8.899),
        (SampledGaussian(1.0, 0.01, 2, 0.5), 1000, 1e-5, 1.334),
        (SampledGaussian(1.0, 0.01, 8, 0.125), 1000, 1e-5, 1.215),
        (LocalGaussian(4.0), 1, 1e-5, 1.9931),
        (ZCDPBudget(0.5), 1, 1e-5, 4.728),
        (ReplaceSampledGaussian(1.0, 0.01, 1, 0), 1000, 1e-5, 1.8283),
    ],
)
def test_other_mechanisms(mechanism, steps, delta, oracle):
    assert mechanism.guarantee(steps).epsilon(delta) == pytest.approx(oracle, rel=2e-3)


def test_wide_discrete_noise_is_nearly_continuous():
    discrete = DiscreteGaussian(2.0, 8).guarantee(3).epsilon(1e-6)
    assert discrete == pytest.approx(Gaussian(2.0).guarantee(3).epsilon(1e-6), rel=2e-3)


@pytest.mark.parametrize(
    ("rate", "sigma", "steps", "expected"),
    [
        (0.002, 0.5, 10_000, {0.1: 0.4786, 0.01: 0.1606, 1e-3: 0.0479, 1e-4: 0.01347, 1e-6: 9.63e-4}),
        (0.01, 1.0, 1000, {0.1: 0.19426, 0.01: 0.02915, 1e-3: 4.071e-3, 1e-4: 5.48e-4, 1e-6: 9.37e-6}),
        (0.25, 1.0, 400, {0.1: 0.99996, 0.01: 0.99859, 1e-3: 0.98910, 1e-4: 0.95765, 1e-6: 0.7844}),
    ],
)
def test_reconstruction_at_small_priors(rate, sigma, steps, expected):
    guarantee = SampledGaussian(sigma, rate).guarantee(steps)
    priors = np.array(list(expected))
    found = guarantee.reconstruction_bound(priors)
    np.testing.assert_allclose(found, list(expected.values()), rtol=1.5e-2)
    assert np.all(found >= priors)


@pytest.mark.parametrize(
    ("epsilon", "prior", "gamma"), [(1, 0.1, 0.27183), (2, 0.1, 0.66166), (4, 0.1, 0.95421), (2, 0.5, 0.93233)]
)
def test_reconstruction_under_laplace_noise(epsilon, prior, gamma):
    found = Laplace(1 / epsilon).guarantee().reconstruction(prior)
    assert gamma - 1e-5 <= found <= gamma * 1.02


def test_the_three_popular_shortcuts_are_too_small():
    truth = SampledGaussian(1.0, 0.01, 4).guarantee(1000).epsilon_interval(1e-5)[0]
    one = SampledGaussian(1.0, 0.01).guarantee(1000).epsilon(1e-5)
    assert 4 * one < truth
    assert SampledGaussian(1.0, 0.04).guarantee(1000).epsilon(1e-5) < truth
    assert SampledGaussian(1.0, 0.01).guarantee(4000).epsilon(1e-5) < truth


def test_one_step_against_monte_carlo():
    k, p, sigma = 4, 0.1, 1.5
    rng = np.random.default_rng(20240)
    n = 400_000
    shift = rng.binomial(k, p, n)
    x = shift + sigma * rng.standard_normal(n)
    w = stats.binom.pmf(np.arange(k + 1), k, p)
    loss = np.log((w * np.exp((np.outer(x, np.arange(k + 1)) - np.arange(k + 1) ** 2 / 2) / sigma**2)).sum(1))
    guarantee = SampledGaussian(sigma, p, k).guarantee()
    for epsilon, oracle in ((0.0, 0.10155), (0.5, 0.01957), (1.0, 0.00417)):
        sample = np.maximum(1 - np.exp(epsilon - loss), 0)
        low, high = guarantee.delta_interval(epsilon)
        assert abs(sample.mean() - high) < 5 * sample.std() / np.sqrt(n)
        assert low <= oracle * 1.001 and high == pytest.approx(oracle, rel=3e-3)


@pytest.mark.parametrize("row", json.loads(FIXTURES.read_text())["rows"], ids=lambda row: f"k={row['entries']}")
def test_nih_rates_against_stored_dp_accounting(row):
    stored = json.loads(FIXTURES.read_text())
    guarantee = SampledGaussian(stored["noise_multiplier"], row["rate"], row["entries"]).guarantee(stored["steps"])
    low, high = guarantee.epsilon_interval(stored["delta"])
    peer = max(row["pessimistic"].values())
    assert max(row["optimistic"].values()) <= high
    assert low <= peer
    assert high == pytest.approx(peer, rel=1e-2)


def test_both_directions_against_dp_accounting():
    sigma, rate, steps, delta = 1.0, 0.02, 300, 1e-6
    peer = pl.from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=1e-4).self_compose(steps)
    composition = SampledGaussian(sigma, rate).guarantee(steps)._composition
    for remove, pmf in ((True, peer._pmf_remove), (False, peer._pmf_add)):
        found = composition._epsilon(remove, delta, 1e-3, 1e-5, 0.0)
        truth = pmf.get_epsilon_for_delta(delta)
        assert found[0] <= truth * (1 + 1e-4)
        assert found[1] == pytest.approx(truth, rel=1.2e-3)


def test_sample_and_scale_reference():
    kw = {"delta": 1e-5, "noise_multiplier": 1.0, "steps": 1000}
    k = np.array([2, 4, 8, 16, 32])
    rates = calibrate_rates(k, 1.829, **kw)
    np.testing.assert_allclose(rates, [0.004934, 0.002447, 0.001218, 0.000608, 0.000304], rtol=6e-3)
    clips = calibrate_clips(k, 1.829, rate=0.01, **kw)
    np.testing.assert_allclose(clips, [0.6315, 0.3475, 0.1795, 0.0908, 0.0456], rtol=6e-3)
    for n, rate, clip in zip(k, rates, clips, strict=True):
        assert 0.99 * 1.829 <= SampledGaussian(1.0, rate, int(n)).guarantee(1000).epsilon(1e-5) <= 1.829
        assert SampledGaussian(1.0, 0.01, int(n), clip).guarantee(1000).epsilon(1e-5) <= 1.829


def test_noise_reference():
    assert calibrate_noise(8, delta=1e-5, rate=0.01, steps=1000) == pytest.approx(0.586, rel=5e-3)
    assert calibrate_noise(8, delta=1e-5, rate=0.01, steps=1000, entries=8) == pytest.approx(1.723, rel=5e-3)
