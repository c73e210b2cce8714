"""Factors of correlated noise: sensitivity by brute force over every pattern, error against a matrix, round trips."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz

from confide.accounting import Correlation
from confide.errors import InputError, VerificationError
from confide.planning import Plan, plan


def matrix(factor: Correlation, steps: int) -> np.ndarray:
    return np.tril(toeplitz(factor.column(steps)))


def patterns(steps: int, separation: int):
    """Every set of steps in which any two are at least `separation` apart."""
    for chosen in itertools.product((0, 1), repeat=steps):
        at = np.flatnonzero(chosen)
        if len(at) and (np.diff(at) >= separation).all():
            yield at


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["banded", "blt"]), st.integers(1, 6), st.integers(1, 11), st.integers(0, 10**6), st.booleans())
def test_no_pattern_and_no_directions_move_more_than_the_stated_sensitivity(kind, separation, steps, seed, optimised):
    rng = np.random.default_rng(seed)
    if optimised:
        factor = Correlation.make(f"{kind}({min(separation, steps)})", steps=steps)
    elif kind == "banded":
        factor = Correlation(kind, separation, tuple(rng.random(rng.integers(1, separation + 1)) + 0.01))
    else:
        weights = rng.dirichlet(np.ones(3)) * rng.random()
        factor = Correlation(kind, separation, (0.7,), tuple(weights), tuple(rng.random(3) * 0.99))
    c = matrix(factor, steps)
    largest = 0.0
    for at in patterns(steps, factor.separation):
        largest = max(largest, float(np.linalg.norm(c[:, at].sum(axis=1))))
        x = np.zeros((steps, 4))
        x[at] = rng.normal(size=(len(at), 4))
        x[at] /= np.linalg.norm(x[at], axis=1, keepdims=True)
        assert np.linalg.norm(c @ x) <= factor.sensitivity(steps) * (1 + 1e-9)
    assert largest <= factor.sensitivity(steps) * (1 + 1e-9)
    if kind == "blt":
        assert largest == pytest.approx(factor.sensitivity(steps), rel=1e-9)
    if optimised:
        assert factor.check(steps) and factor.sensitivity(steps) <= math.sqrt(factor.rounds(steps))


@pytest.mark.parametrize("text", ["banded(4)", "blt(4)"])
def test_noise_is_that_of_the_inverse_matrix(text):
    factor, steps = Correlation.make(text, steps=24), 24
    inverse = np.linalg.inv(matrix(factor, steps))
    np.testing.assert_allclose(factor.noise(steps), np.linalg.norm(inverse, axis=1), rtol=1e-8)
    sums = np.tril(np.ones((steps, steps))) @ inverse
    left = np.linalg.norm(sums) / np.linalg.norm(np.tril(np.ones((steps, steps))))
    assert factor.noise_ratio(steps) == pytest.approx(left, rel=1e-8)


def test_optimised_factors_beat_independent_noise_and_a_plain_square_root():
    steps, bands = 256, 16
    root = np.cumprod([1.0] + [(2 * i - 1) / (2 * i) for i in range(1, bands)])
    plain = Correlation("banded", bands, tuple(root / np.linalg.norm(root)))
    found = Correlation.make(f"banded({bands})", steps=steps)
    assert found.noise_ratio(steps) <= plain.noise_ratio(steps) < 0.5


def test_a_band_of_one_is_ordinary_noise():
    one = Correlation.make("banded(1)", steps=50)
    assert one.memory == 0 and one.rounds(50) == 50 and one.noise_ratio(50) == pytest.approx(1.0, rel=1e-6)
    settings_ = {"epsilon": 2.0, "delta": 1e-5, "noise_multiplier": 1.5, "steps": 50, "max_contributors": 100}
    a = plan({1: 90, 3: 10}, correlation="banded(1)", **settings_)
    b = plan({1: 90, 3: 10}, **settings_)
    assert a.classes == b.classes and a.denominator == b.denominator


@pytest.mark.parametrize(
    ("text", "words"), [("banded", "is no correlation"), ("bande(3)", "did you mean banded"), ("blt(0)", "from 1 to")]
)
def test_what_is_no_correlation_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        Correlation.make(text, steps=10)


def test_a_plan_whose_factor_was_changed_is_found_out():
    made = plan({1: 90, 3: 10}, epsilon=2.0, delta=1e-5, noise_multiplier=2.0, steps=60, correlation="banded(6)")
    assert Plan.from_dict(made.to_dict()) == made
    made.check()
    values = made.to_dict()
    values["correlation"]["coefficients"] = [2 * c for c in values["correlation"]["coefficients"]]
    with pytest.raises(VerificationError, match="change the run by"):
        Plan.from_dict(values).check()
    always = plan(
        {1: 90, 3: 10}, epsilon=2.0, delta=1e-5, noise_multiplier=4.0, steps=60, correlation="blt(6)",
        strategy="contributor",
    )  # fmt: skip
    assert all(c.rate == 1 and c.epsilon <= 2.0 for c in always.classes)
    assert always.guarantee(always.classes[0]).mu == pytest.approx(always.classes[0].clip_norm * 10**0.5 / 4, rel=1e-9)
    values = always.to_dict()
    values["classes"][0]["rate"] = 0.5
    with pytest.raises(VerificationError, match="secret sampling"):
        Plan.from_dict(values).check()


@pytest.mark.parametrize("steps", [12, 13])
def test_a_banded_run_is_a_gaussian_mechanism_on_each_turn(steps):
    """What is released, for a person who always takes part: mu = sqrt(rounds) / noise multiplier."""
    factor, z = Correlation.make("banded(4)", steps=steps), 1.7
    c = matrix(factor, steps)
    for first in range(4):
        x = np.zeros(steps)
        x[first::4] = 1.0
        shift = np.linalg.norm(c @ x) / z  # x + C^-1 z is an invertible function of C x + z
        assert shift <= math.sqrt(factor.rounds(steps)) / z * (1 + 1e-12)
