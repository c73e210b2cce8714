"""The price of a choice, and what is left of noisy correlations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from confide.accounting import Gaussian
from confide.errors import InputError
from confide.mechanisms import SeededNoise
from confide.synthesis import Column, Meter
from confide.synthesis.meter import choice_epsilon
from confide.synthesis.scores import denoise, pull_together, score_basis, shrink_eigenvalues


@pytest.mark.parametrize("mu", [0.01, 0.1, 0.5, 1.0, 3.0])
def test_a_choice_is_never_easier_to_attack_than_what_it_is_charged_as(mu):
    """Every two-point pair with losses t and t - epsilon has a smaller delta than the Gaussian, at every epsilon."""
    epsilon = choice_epsilon(mu)
    for t in np.linspace(0.02, 0.98, 25) * epsilon:
        q = (1 - np.exp(t - epsilon)) / (np.exp(t) - np.exp(t - epsilon))
        p = q * np.exp(t)
        for e in np.linspace(0, epsilon, 9):
            for a, b in (((p, 1 - p), (q, 1 - q)), ((q, 1 - q), (p, 1 - p))):
                delta = sum(max(x - np.exp(e) * y, 0.0) for x, y in zip(a, b, strict=True))
                gauss = stats.norm.cdf(-e / mu + mu / 2) - np.exp(e) * stats.norm.cdf(-e / mu - mu / 2)
                assert delta <= gauss + 1e-9


@pytest.mark.slow
def test_choices_have_the_odds_of_the_exponential_mechanism():
    scores, counts = np.array([0.0, 2.0, 4.0]), np.zeros(3)
    for seed in range(3000):
        meter = Meter(epsilon=3.0, delta=1e-5, noise=SeededNoise(seed))
        counts[meter.choose("x", scores, sensitivity=1.0, share=0.5)] += 1
    odds = np.exp(choice_epsilon(meter.mu * np.sqrt(0.5)) / 2 * scores)
    np.testing.assert_allclose(counts / 3000, odds / odds.sum(), atol=0.03)
    assert meter.parts == [Gaussian(noise_multiplier=1 / (meter.mu * np.sqrt(0.5)))]
    assert meter.choose("y", scores, sensitivity=1.0, share=0.1, allowed=lambda c: c == 0) == 0
    with pytest.raises(InputError, match="nothing to choose"):
        meter.choose("z", scores, sensitivity=1.0, share=0.1, allowed=lambda c: False)


def test_scores_are_centred_and_orthonormal():
    p = np.array([0.5, 0.2, 0.1, 0.2])
    q = 0.9 * p + 0.1 / 4
    for column in (Column("a", 4), Column("a", 4, ordinal=True), Column("a", 4, ordinal=True, missing=True)):
        basis = score_basis(p, column)
        assert basis.shape[1] == (1 if column.ordinal and not column.missing else 2 if column.ordinal else 3)
        np.testing.assert_allclose(q @ basis, 0, atol=1e-9)
        np.testing.assert_allclose(basis.T @ (q[:, None] * basis), np.eye(basis.shape[1]), atol=1e-9)


def test_noise_comes_off_a_correlation_matrix_and_signal_stays():
    rng = np.random.default_rng(0)
    loading = rng.normal(size=25)
    truth = np.outer(loading, loading) * 0.3
    known = ~np.eye(25, dtype=bool)
    noise = np.triu(rng.normal(size=(25, 25)), 1) * 0.5
    noisy = np.where(known, truth + noise + noise.T, 0.0)
    clean = denoise(noisy, known, 0.5)
    assert ((clean - truth)[known] ** 2).mean() < 0.3 * ((noisy - truth)[known] ** 2).mean()
    np.testing.assert_allclose(denoise(noisy, known, 1e-6)[known], noisy[known], atol=1e-3)
    assert not shrink_eigenvalues(np.where(known, noise + noise.T, 0.0), 0.6).any()
    pulled = pull_together(np.array([0.5, 0.7, 0.6]), np.full(3, 0.5))
    np.testing.assert_allclose(pulled, 0.6)
