"""The rule that admits: its claim under adaptivity, against an exact computation on finite mechanisms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.accounting import Gaussian, SampledGaussian
from confide.errors import InputError
from confide.ledger import Filter
from confide.ledger.filter import FULL, UNITS, add


@dataclass(frozen=True)
class Finite:
    """A mechanism with finitely many outputs: their probabilities with and without the contributor."""

    with_: tuple[float, ...]
    without: tuple[float, ...]

    def rdp(self, orders: np.ndarray) -> np.ndarray:
        p, q = np.array(self.with_), np.array(self.without)
        both = [(p, q), (q, p)]
        a = np.asarray(orders)[:, None]
        return np.max([np.log((x**a * y ** (1 - a)).sum(axis=1)) / (a[:, 0] - 1) for x, y in both], axis=0).clip(0)

    @property
    def parts(self):
        return ((self, 1),)

    def turned(self) -> Finite:
        return Finite(self.without, self.with_)


def flip(epsilon: float) -> Finite:
    """Randomised response."""
    high = math.exp(epsilon) / (1 + math.exp(epsilon))
    return Finite((high, 1 - high), (1 - high, high))


def leak(probability: float, size: float) -> Finite:
    """With a small probability, an output that says much; else one that says next to nothing."""
    low = probability * math.exp(-size)
    return Finite((probability, 1 - probability - low, low), (low, 1 - probability - low, probability))


def worst(menu: list[Finite], allowed, epsilon: float, state, depth: int, log_ratio: float = 0.0) -> float:
    """Exact delta(epsilon) of the most harmful adaptive analyst, who may only use what `allowed(state, m)` lets in.

    `allowed` returns the state after m, or None if m is refused.
    """
    best = max(0.0, 1 - math.exp(epsilon - log_ratio))
    if depth == 0:
        return best
    for mechanism in menu:
        after = allowed(state, mechanism)
        if after is None:
            continue
        value = sum(
            p * worst(menu, allowed, epsilon, after, depth - 1, log_ratio + math.log(p / q))
            for p, q in zip(mechanism.with_, mechanism.without, strict=True)
        )
        best = max(best, value)
    return best


def composed_delta(sequence: tuple[Finite, ...], epsilon: float) -> float:
    """Exact delta(epsilon) of a sequence fixed in advance."""
    losses, masses = np.zeros(1), np.ones(1)
    for mechanism in sequence:
        p, q = np.array(mechanism.with_), np.array(mechanism.without)
        losses = (losses[:, None] + np.log(p / q)).ravel()
        masses = (masses[:, None] * p).ravel()
    return float((masses * np.maximum(0, 1 - np.exp(epsilon - losses))).sum())


def test_a_cap_on_the_composed_epsilon_is_no_filter():
    """Two mechanisms suffice: after a good first answer gamble on the small leak, after a bad one press on."""
    epsilon, delta = 2.0, 0.05
    first, leaky = flip(1.0), leak(0.05, 9.0)
    chance = first.with_[0]
    # The strength at which the sequence (first, response) uses exactly delta, by bisection.
    low, high = 1.0, 3.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if composed_delta((first, flip(middle)), epsilon) <= delta else (low, middle)
    response = flip(low)
    assert response.with_[0] * chance > delta
    assert composed_delta((first, leaky), epsilon) <= delta
    assert composed_delta((first, response), epsilon) <= delta

    def capped(state: tuple[Finite, ...], mechanism: Finite):
        after = (*state, mechanism)
        fits = all(composed_delta(side, epsilon) <= delta for side in (after, tuple(m.turned() for m in after)))
        return after if fits else None

    # Each fixed sequence stays within the cap; choosing between them after the first answer does not.
    assert worst([first, response, leaky], capped, epsilon, (), 2) > 1.2 * delta

    rule = Filter.design(epsilon, delta)
    assert worst([first, response, leaky], filtered(rule), epsilon, start(rule), 3) <= delta


def start(rule: Filter) -> np.ndarray:
    return np.zeros(rule.width, dtype=np.uint32)


def filtered(rule: Filter):
    def allowed(state: np.ndarray, mechanism: Finite):
        after = add(state, rule.charge(mechanism))  # type: ignore[arg-type]
        return after if rule.admits(after[None, :])[0] else None

    return allowed


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0.5, 4),
    delta=st.sampled_from([1e-3, 0.01, 0.1, 0.3]),
    flips=st.lists(st.floats(0.05, 3), min_size=1, max_size=2),
    leaks=st.lists(st.tuples(st.floats(1e-4, 0.3), st.floats(0.5, 6)), min_size=1, max_size=2),
)
def test_no_adaptive_analyst_exceeds_the_claim(epsilon, delta, flips, leaks):
    rule = Filter.design(epsilon, delta)
    menu = [flip(size) for size in flips] + [leak(p, size) for p, size in leaks]
    for side in (menu, [m.turned() for m in menu]):
        assert worst(side, filtered(rule), epsilon, start(rule), 3) <= delta * (1 + 1e-9)


def test_each_allowance_is_the_conversion_at_its_share():
    rule = Filter.design(8.0, 1e-6)
    for order, share, allowance in zip(rule.orders, rule.deltas, rule.allowances, strict=True):
        loss = np.linspace(7, 40, 200_001)
        needed = np.max(np.log1p(-np.exp(8.0 - loss[loss > 8])) - (order - 1) * loss[loss > 8])
        assert allowance == pytest.approx(-(needed - math.log(share)) / (order - 1), rel=1e-6)
    assert math.fsum((*rule.deltas, rule.tail)) <= 1e-6 * (1 + 1e-12)


def test_charges_never_round_down():
    rule = Filter.design(8.0, 1e-6)
    for guarantee in (
        Gaussian(noise_multiplier=30.0).guarantee(steps=3),
        SampledGaussian(noise_multiplier=1.0, rate=0.001).guarantee(steps=100),
    ):
        exact = guarantee.rdp(np.array(rule.orders)) / np.array(rule.allowances) * UNITS
        charge = rule.charge(guarantee).astype(float)[:-1]
        assert (charge >= exact).all()
        assert (charge <= exact + 1.5).all()


def test_what_cannot_be_held_saturates():
    top = np.array([FULL, 7], dtype=np.uint32)
    assert add(top, np.array([FULL, 3], dtype=np.uint32)).tolist() == [FULL, 10]
    assert not Filter.design(1.0, 1e-6).admits(np.full((1, 3), FULL, dtype=np.uint32))[0]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, True, "8"])
def test_a_senseless_cap_is_refused(epsilon):
    with pytest.raises(InputError, match="epsilon"):
        Filter.design(epsilon, 1e-6)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6, math.nan])
def test_a_senseless_delta_is_refused(delta):
    with pytest.raises(InputError, match="delta"):
        Filter.design(1.0, delta)


@pytest.mark.parametrize("values", [[-1.0, 0.0], [math.nan, 0.0]])
def test_absurd_costs_are_refused(values):
    class Broken:
        @property
        def parts(self):
            return ((self, 1),)

        def rdp(self, orders):
            return np.array(values)

    with pytest.raises(InputError, match="negative or undefined"):
        Filter.design(1.0, 1e-6).charge(Broken())  # type: ignore[arg-type]
