"""The coupled designs of others: what they promise holds, and whose choices they depend on."""

import numpy as np
import pytest

from confide.accounting import SampledGaussian, collusion, coupled_sample, coupled_scale
from confide.errors import InputError, UnreachableError

PUBLIC = {"steps": 100, "delta": 1e-5}


def test_sample_keeps_budgets_and_the_mean_rate():
    found = coupled_sample([1.0, 3.0], [0.4, 0.6], mean_rate=0.05, **PUBLIC)
    assert "comparison only" in found.label
    assert float(np.array([0.4, 0.6]) @ found.rates) == pytest.approx(0.05, rel=5e-3)
    for rate, budget in zip(found.rates, (1.0, 3.0), strict=True):
        assert 0.99 * budget <= SampledGaussian(found.noise_multiplier, rate).guarantee(100).epsilon(1e-5) <= budget


@pytest.mark.slow
def test_under_sample_other_budgets_move_the_own_curve_and_not_the_own_budget():
    # Kaiser et al. 2026: when the others lower their budgets, a person of budget 8 is more exposed.
    (_, alike), (_, lowered) = collusion(8.0, [8.0, 1.0], 0.8, mean_rate=0.05, **PUBLIC)
    assert lowered > alike * 1.02


def test_scale_has_the_harmonic_noise_and_leaves_the_own_curve_alone():
    shares = np.array([0.34, 0.43, 0.23])
    found = coupled_scale([1.0, 2.0, 3.0], shares, rate=0.05, **PUBLIC)
    assert float(shares @ found.clips) == pytest.approx(1.0, rel=1e-9)
    assert np.all(np.diff(found.clips) > 0) and np.all(found.rates == 0.05)
    for clip, budget in zip(found.clips, (1.0, 2.0, 3.0), strict=True):
        spent = SampledGaussian(found.noise_multiplier, 0.05, 1, clip).guarantee(100).epsilon(1e-5)
        assert 0.99 * budget <= spent <= budget * (1 + 1e-9)
    other = coupled_scale([1.0, 0.5, 0.5], shares, rate=0.05, **PUBLIC)
    assert other.noise_multiplier / other.clips[0] == pytest.approx(found.noise_multiplier / found.clips[0])
    assert other.clips[0] > found.clips[0]


def test_shares_that_do_not_fit_and_rates_nobody_can_have():
    with pytest.raises(InputError, match="share"):
        coupled_sample([1.0], [0.5], mean_rate=0.1, **PUBLIC)
    with pytest.raises(UnreachableError, match="mean rate"):
        coupled_sample([0.1], [1.0], mean_rate=0.999, steps=5000, delta=1e-9)
