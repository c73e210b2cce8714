"""What an attacker could do at best: bounds against closed forms, published values and simulation."""

import json

import numpy as np
import pytest

from confide.accounting import Gaussian, SampledGaussian
from confide.errors import InputError, UnreachableError
from confide.risk import (
    LABEL,
    MeanEstimation,
    divergence_between,
    glrt_power,
    glrt_reconstruction,
    information_bits,
    noise_for,
    noise_for_error,
    noise_for_reconstruction,
    percent,
    posterior_tail,
    profile,
    profiles,
    success_among,
    true_positive_rate,
)


@pytest.mark.parametrize(
    ("mu", "powers"),
    [(1, (0.1701, 0.0820, 0.0583)), (2, (0.5160, 0.2149, 0.0886)), (3, (0.8508, 0.4896, 0.1582))],
)
def test_glrt_power(mu, powers):
    found = [float(glrt_power(mu, 0.05, dimension=d)) for d in (1, 10, 100)]
    np.testing.assert_allclose(found, powers, atol=6e-5)
    assert found[0] < float(true_positive_rate(Gaussian(1 / mu).guarantee(), 0.05))
    assert "not a guarantee" in LABEL


def test_glrt_over_sampled_steps_stays_below_the_bound():
    found = glrt_reconstruction([0.1, 0.01], noise_multiplier=1.0, rate=0.1, steps=100)
    np.testing.assert_allclose(found, [0.28647, 0.06012], rtol=2e-3)
    assert np.all(found < SampledGaussian(1.0, 0.1).guarantee(100).reconstruction_bound([0.1, 0.01]))


def test_mean_estimation_against_simulation():
    rng = np.random.default_rng(5)
    n, noise = 64, 0.3
    x = rng.uniform(0, 1, n)
    law = MeanEstimation(noise, float(np.linalg.norm(x)), n)
    error = ((noise * np.linalg.norm(x) * rng.standard_normal((20_000, n))) ** 2).mean(1)
    assert error.mean() == pytest.approx(law.mean_squared_error, rel=1e-2)
    for quantile in (0.1, 0.5, 0.9):
        assert float(law.mse_below(np.quantile(error, quantile))) == pytest.approx(quantile, abs=0.015)
        decibel = float(law.psnr_at(quantile))
        assert float(law.psnr_above(decibel)) == pytest.approx(quantile, abs=1e-9)
    needed = noise_for_error(0.01, 0.05, norm=law.norm, dimension=n)
    assert float(MeanEstimation(needed, law.norm, n).mse_below(0.01)) == pytest.approx(0.05)


def test_delta_divergence_of_gaussian_curves():
    weak, strong = Gaussian(1 / 1.5).guarantee(), Gaussian(1.0).guarantee()
    assert divergence_between(weak, strong) == pytest.approx(0.0819, abs=2e-4)
    assert divergence_between(strong, weak) < 1e-6


def test_posterior_tail_bounds_a_simulation():
    mu, prior = 1.0, 0.1
    x = mu + np.random.default_rng(1).standard_normal(200_000)
    odds = prior / (1 - prior) * np.exp(mu * x - mu * mu / 2)
    real = float(np.mean(odds / (1 + odds) >= 0.5))
    assert real <= posterior_tail(Gaussian(1.0).guarantee(), prior, 0.5) <= 1
    assert posterior_tail(Gaussian(1.0).guarantee(), 0.5, 0.4) == 1.0


def test_inverse_in_the_reconstruction_currency():
    noise = noise_for_reconstruction(0.05, 0.01, rate=0.01, steps=1000)
    assert SampledGaussian(noise, 0.01).guarantee(1000).reconstruction(0.01) <= 0.05
    assert SampledGaussian(noise * 0.98, 0.01).guarantee(1000).reconstruction(0.01) > 0.05
    with pytest.raises(UnreachableError, match="at least"):
        noise_for(lambda g: g.reconstruction(0.01), 0.001, rate=0.01, steps=10)


def test_information_bits():
    bits = information_bits(Gaussian(1.0).guarantee(), candidates=100)
    assert 0.5 / np.log(2) <= bits["mutual"] <= 0.56 / np.log(2)
    assert 2 ** bits["identification"] / 100 == pytest.approx(success_among(Gaussian(1.0).guarantee(), 100))


def test_profile_is_plain_data_with_sentences():
    target = MeanEstimation(1.0, 10.0, 784)
    both = profiles(
        [
            ("worst class", SampledGaussian(1.0, 0.01, 4).guarantee(1000)),
            ("median", SampledGaussian(1.0, 0.01).guarantee(1000)),
        ],
        delta=1e-5,
        target=target,
    )
    worst, median = both
    assert worst.epsilon > median.epsilon and worst.advantage > median.advantage
    json.dumps(worst.to_dict())
    tpr = [t for _, t in worst.roc]
    assert tpr == sorted(tpr) and all(t >= f for f, t in worst.roc)
    assert all(gamma >= kappa for kappa, gamma in worst.reconstruction)
    assert all(0 <= value <= 1 for _, _, value in worst.precision)
    assert worst.corridor.best_informed_assumption and worst.corridor.uninformed_assumption
    assert len(worst.sentences) == 3 and all("epsilon" not in text for text in worst.sentences)
    assert worst.assumed_public == ("number of entries of the contributor",)


def test_percent_never_rounds_down():
    assert percent(0.0931) == "9.4%" and percent(0.785) == "79%" and percent(0.9999) == "more than 99.9%"
    assert percent(1.0) == "100%" and percent(1.21e-5) == "0.0013%"


def test_bad_input():
    with pytest.raises(InputError):
        MeanEstimation(0.0, 1.0, 3)
    with pytest.raises(InputError):
        glrt_power(-1.0, 0.1)
    with pytest.raises(InputError):
        profiles([], delta=1e-5)
    with pytest.raises(InputError):
        profile(Gaussian(1.0).guarantee(), delta=0.0)
