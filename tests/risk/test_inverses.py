"""Inverses meet their target in every currency, and say what can be reached where they cannot."""

import pytest

from confide.accounting import Gaussian, PrivateSelection, RandomisedResponse, SampledGaussian
from confide.errors import InputError, UnreachableError
from confide.risk import (
    largest_clip,
    largest_rate,
    most_steps,
    sensitivity_index,
    smallest_noise,
    success_among,
)

CURRENCIES = {
    "epsilon": (lambda g: g.epsilon(1e-6), 3.0),
    "advantage": (lambda g: g.advantage(), 0.2),
    "picking one of 100": (lambda g: success_among(g, 100), 0.05),
    "precision": (lambda g: g.posterior(0.01, 0.01), 0.06),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "advantage" else pytest.mark.slow) for name in CURRENCIES]
)
def test_each_parameter_in_each_currency(name):
    read, target = CURRENCIES[name]

    def spent(noise=1.0, rate=0.02, clip=1.0, steps=50, entries=2):
        return read(SampledGaussian(noise, rate, entries, clip).guarantee(steps))

    noise = smallest_noise(read, target, rate=0.02, steps=50, entries=2)
    assert spent(noise=noise) <= target < spent(noise=noise * 0.99)
    rate = largest_rate(read, target, noise_multiplier=1.0, steps=50, entries=2)
    assert spent(rate=rate) <= target < spent(rate=rate * 1.01)
    clip = largest_clip(read, target, noise_multiplier=1.0, rate=0.02, steps=50, entries=2)
    assert spent(clip=clip) <= target < spent(clip=clip * 1.01)
    steps = most_steps(read, target, noise_multiplier=1.0, rate=0.005, entries=2)
    assert spent(rate=0.005, steps=steps) <= target < spent(rate=0.005, steps=steps + 1)


def test_a_target_nobody_can_reach_names_what_can_be_reached():
    def read(g):
        return g.reconstruction(0.01)

    for solve in (
        lambda: smallest_noise(read, 0.001, rate=0.01, steps=10),
        lambda: largest_rate(read, 0.001, noise_multiplier=1.0, steps=10),
        lambda: largest_clip(read, 0.001, noise_multiplier=1.0, rate=0.01, steps=10),
        lambda: most_steps(read, 0.001, noise_multiplier=1.0, rate=0.01),
    ):
        with pytest.raises(UnreachableError, match="at least"):
            solve()
    with pytest.raises(InputError):
        largest_rate(read, float("nan"), noise_multiplier=1.0, steps=10)
    with pytest.raises(InputError):
        most_steps(lambda g: float("nan"), 0.1, noise_multiplier=1.0, rate=0.1)


def test_everything_in_every_step_is_allowed_where_the_budget_is_large():
    assert largest_rate(lambda g: g.advantage(), 0.9, noise_multiplier=30.0, steps=2) == 1.0


def test_a_surrogate_says_that_it_is_one_and_how_far_off():
    exact = sensitivity_index(Gaussian(2.0).guarantee())
    assert exact.exact and exact.psi == 0.5 and exact.gap_over == 0
    found = sensitivity_index(SampledGaussian(1.0, 0.01, 4).guarantee(200))
    assert not found.exact and "not a guarantee" in found.label
    # Rare events: heavier where few are accused, so no Gaussian fits and the gap says so.
    assert 0.002 < found.gap_over < 0.05 and found.gap_under >= 0


def test_random_stopping_costs_three_times_a_pure_epsilon():
    base = RandomisedResponse(0.5).guarantee()
    assert base.pure_epsilon == pytest.approx(0.5) and Gaussian(1.0).guarantee().pure_epsilon == float("inf")
    search = PrivateSelection(base, law="geometric", success=0.05)
    assert search.expected_runs == pytest.approx(20)
    assert search.guarantee().epsilon(1e-9) <= 1.5 * (1 + 1e-3) + 0.02
    assert search.rdp().max() <= 1.5 * (1 + 1e-9)
    with pytest.raises(InputError, match="shape"):
        PrivateSelection(base, law="geometric", shape=2.0)


@pytest.mark.parametrize(("sigma", "rate", "k", "steps"), [(1.0, 0.01, 4, 300), (4.7, 7e-4, 1, 5), (2.0, 0.1, 9, 50)])
def test_fast_readouts_stay_above_and_close_to_certified_ones(sigma, rate, k, steps):
    guarantee = SampledGaussian(sigma, rate, k).guarantee(steps)
    low, high = guarantee.delta_interval(0.0)
    assert low <= guarantee.advantage() <= max(high, low * 1.01)
