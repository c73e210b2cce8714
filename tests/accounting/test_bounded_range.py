"""The exponential mechanism: tight for one use, dominating for every real one, looser than nothing it must cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.accounting import RDP_ORDERS, Exponential, Guarantee, RandomisedResponse, mechanism_from_dict


@pytest.mark.parametrize("epsilon", [0.05, 0.7, 3.0])
def test_one_use_has_the_published_curve(epsilon: float) -> None:
    one = Exponential(epsilon).guarantee()
    for x in np.linspace(0, 0.95 * epsilon, 5):
        exact = (1 - math.exp((x - epsilon) / 2)) ** 2 / (1 - math.exp(-epsilon))
        low, high = one.delta_interval(float(x))
        assert low <= exact * (1 + 1e-9)
        assert exact <= high * (1 + 1e-12)
        assert high == pytest.approx(exact, rel=2e-2)
    assert one.pure_epsilon == pytest.approx(epsilon)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(-3, 3), min_size=2, max_size=8),
    moves=st.lists(st.floats(-1, 1), min_size=8, max_size=8),
    epsilon=st.floats(0.1, 3.0),
    order=st.sampled_from([1.5, 4.0, 16.0]),
)
def test_real_exponential_mechanisms_are_covered(
    scores: list[float], moves: list[float], epsilon: float, order: float
) -> None:
    u, v = np.array(scores), np.array(scores) + np.array(moves[: len(scores)])
    p, q = np.exp(epsilon * u / 2), np.exp(epsilon * v / 2)
    p, q = p / p.sum(), q / q.sum()
    for one, other in ((p, q), (q, p)):
        for x in (-0.5 * epsilon, 0.0, 0.4 * epsilon):
            covered = (1 - math.exp((x - epsilon) / 2)) ** 2 / (1 - math.exp(-epsilon))
            assert np.maximum(one - math.exp(x) * other, 0).sum() <= covered + 1e-12
        renyi = math.log(np.sum(one**order * other ** (1 - order))) / (order - 1)
        assert renyi <= float(Exponential(epsilon).rdp(np.array([order]))[0]) + 1e-12


def test_composition_is_tighter_than_pure_epsilon_and_covers_the_optimal_one() -> None:
    epsilon, steps, delta = 0.2, 50, 1e-6
    ours = Exponential(epsilon).guarantee(steps).epsilon(delta)
    pure = RandomisedResponse(epsilon, relation="add/remove").guarantee(steps).epsilon(delta)
    assert ours < 0.55 * pure
    # non-adaptive composition of the worst two-valued mechanism (Dong, Durfee and Rogers 2020) is what ours must cover
    from scipy import stats

    levels = []
    for t in np.linspace(0.05, 0.95, 19) * epsilon:
        top = -math.expm1(t - epsilon) / (math.exp(t) - math.exp(t - epsilon))
        k = np.arange(steps + 1)
        p, q = stats.binom.pmf(k, steps, math.exp(t) * top), stats.binom.pmf(k, steps, top)
        grid = np.linspace(0, 5, 4000)
        deltas = np.maximum(p[None] - np.exp(grid)[:, None] * q[None], 0).sum(axis=1)
        levels.append(grid[np.argmax(deltas <= delta)])
    assert max(levels) <= ours + 2e-3
    assert ours <= 1.08 * max(levels)


def test_renyi_curve_is_below_both_simple_bounds_and_near_the_pair_for_small_orders() -> None:
    for epsilon in (0.1, 1.0, 5.0):
        curve = Exponential(epsilon).rdp()
        assert np.all(curve <= np.minimum(RDP_ORDERS * epsilon**2 / 8, epsilon) * (1 + 1e-12))
        assert np.all(np.diff(curve) >= -1e-12)


def test_written_and_read_again() -> None:
    one = Exponential(0.3)
    assert mechanism_from_dict(one.to_dict()) == one
    assert Guarantee.from_dict(one.guarantee(3).to_dict()) == one.guarantee(3)
