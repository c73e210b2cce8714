"""What wrong links cost: people split into several contributors, and people merged into one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from confide.accounting import (
    ContributorSampledGaussian,
    DiscreteGaussian,
    Gaussian,
    GaussianBudget,
    Laplace,
    ReplaceSampledGaussian,
    SampledGaussian,
    ZCDPBudget,
    calibrate_rates,
    compose,
)
from confide.contributors import merged_guarantee, split, split_guarantee, wrong_links
from confide.contributors.mislinked import describe
from confide.errors import InputError

GRID = np.linspace(-60, 60, 120_001)


def individual(k: int, relation: str = "add/remove") -> SampledGaussian:
    """The NIH plan at epsilon 4: noise 1, 2000 steps, every rate calibrated to its own count."""
    rate = float(calibrate_rates([k], 4.0, delta=1e-6, noise_multiplier=1.0, steps=2000)[0])
    return SampledGaussian(noise_multiplier=1.0, rate=rate, entries=k, relation=relation)


def hockey(p, q, epsilon):
    """The delta of two densities on the grid, the larger direction."""
    step = GRID[1] - GRID[0]
    return max(float(np.sum(np.maximum(a - np.exp(epsilon) * b, 0)) * step) for a, b in ((p, q), (q, p)))


def density(shifts, weights, noise):
    return sum(w * stats.norm.pdf(GRID, s, noise) for s, w in zip(shifts, weights, strict=True))


def drawn(entries, rate):
    return stats.binom.pmf(np.arange(entries + 1), entries, rate)


@pytest.mark.parametrize("relation", ["add/remove", "zero-out"])
def test_the_guarantee_of_people_split_and_merged(relation):
    rows = wrong_links(lambda k: individual(k, relation), [1, 8], steps=2000, delta=1e-6)
    eight = rows[1]
    assert eight["planned"] == pytest.approx(4.0, abs=0.01)
    assert eight["split_in_2"] == pytest.approx(8.8, abs=0.1) and eight["split_in_3"] > 13
    assert all(row["merged"] < row["planned"] < row["split_in_2"] < row["split_in_3"] for row in rows)
    assert "known as 2 contributors" in describe(rows, 1e-6)[0]


def test_people_merged_under_one_clip_have_the_guarantee_of_an_exchange():
    """What is left of two people may point elsewhere: the sum moves by up to twice the clip norm."""
    one = ContributorSampledGaussian(noise_multiplier=1.0, rate=0.013)
    row = wrong_links(lambda _: one, [1], steps=2000, delta=1e-6, clip_unit="contributor")[0]
    other = ReplaceSampledGaussian(noise_multiplier=1.0, rate=0.013).guarantee(steps=2000).epsilon(1e-6)
    assert row["merged"] == pytest.approx(other) and row["merged"] > 1.5 * row["planned"]


@pytest.mark.parametrize(("k", "rates"), [(1, (0.2, 0.11)), (2, (0.15, 0.08)), (3, (0.3, 0.3))])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.5])
def test_no_instance_on_a_line_passes_the_bound_of_people_merged(k, rates, epsilon):
    """Both people known as one (2k entries at the lower rate) against the other alone (k entries at the higher)."""
    alone, both = rates
    one = SampledGaussian(noise_multiplier=1.0, rate=alone, entries=k).guarantee()
    two = SampledGaussian(noise_multiplier=1.0, rate=both, entries=2 * k).guarantee()
    bound = merged_guarantee(one, two, clip_unit="entry").delta(epsilon)
    whole = merged_guarantee(one, two, clip_unit="contributor").delta(epsilon)
    for mine, others in ((1, 1), (1, -1), (1, 0)):
        shifts = np.add.outer(mine * np.arange(k + 1), others * np.arange(k + 1)).ravel()
        weights = np.multiply.outer(drawn(k, both), drawn(k, both)).ravel()
        p, q = density(shifts, weights, 1.0), density(others * np.arange(k + 1), drawn(k, alone), 1.0)
        assert hockey(p, q, epsilon) <= bound * (1 + 1e-3) + 1e-9
        assert hockey(p, q, epsilon) <= whole * (1 + 1e-3) + 1e-9


@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_an_exchange_at_two_rates_and_clips_is_its_double_mixture(epsilon):
    mechanism = ReplaceSampledGaussian(
        noise_multiplier=0.8, rate=0.3, entries=2, inserted=5, inserted_rate=0.1, inserted_clip_norm=0.5
    )
    p, q = density(np.arange(6) * 0.5, drawn(5, 0.1), 0.8), density(-np.arange(3.0), drawn(2, 0.3), 0.8)
    assert mechanism.guarantee().delta(epsilon) == pytest.approx(hockey(p, q, epsilon), rel=2e-3)
    order, step = 3.0, GRID[1] - GRID[0]
    inside = np.abs(GRID) < 15
    pairs = ((p[inside], q[inside]), (q[inside], p[inside]))
    exact = max(np.log(np.sum(a * (a / b) ** (order - 1)) * step) / (order - 1) for a, b in pairs)
    assert mechanism.rdp(np.array([order]))[0] >= exact


def test_what_leaves_and_nothing_comes_is_add_remove():
    one = SampledGaussian(noise_multiplier=1.0, rate=0.02, entries=3)
    gone = ReplaceSampledGaussian(noise_multiplier=1.0, rate=0.02, entries=3, inserted=0)
    assert gone.guarantee(200).epsilon(1e-6) == pytest.approx(one.guarantee(200).epsilon(1e-6), rel=2e-3)


def test_the_pieces_of_a_contributor_clip():
    whole = ContributorSampledGaussian(noise_multiplier=1.0, rate=0.01)
    assert split(whole, 2) == SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=2)
    assert split(whole, 1).guarantee(steps=10).epsilon(1e-5) == pytest.approx(whole.guarantee(steps=10).epsilon(1e-5))
    for bad in (0, 1.5, True):
        with pytest.raises(InputError):
            split(whole, bad)
    with pytest.raises(InputError, match="put together"):
        split(DiscreteGaussian(2.0), 2)


def test_noise_on_a_sum_that_moves_twice():
    assert split(Gaussian(4.0), 2) == Gaussian(2.0) and split(Laplace(3.0), 3) == Laplace(1.0)
    assert split(GaussianBudget(0.5), 3) == GaussianBudget(1.5) and split(ZCDPBudget(0.1), 2).rho == pytest.approx(0.4)
    paid = compose([Laplace(3.0).guarantee(), individual(2).guarantee(steps=500)])
    assert split_guarantee(paid, 2).parts[0][0] == Laplace(1.5)
    twice = compose([Laplace(3.0).guarantee(), individual(4).guarantee(steps=500)])
    merged = merged_guarantee(paid, twice, clip_unit="entry")
    assert merged.relation == "replace-one" and 0 < merged.epsilon(1e-6) < 2 * paid.epsilon(1e-6)
    with pytest.raises(InputError, match="same parts"):
        merged_guarantee(paid, individual(4).guarantee(), clip_unit="entry")
