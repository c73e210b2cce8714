"""The Renyi cost with rare outputs set apart, against finer quadrature and the accountant."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from confide.accounting import Gaussian, Laplace, SampledGaussian, compose
from confide.ledger import Filter
from confide.ledger._renyi import at_least, clipped, costs


@pytest.mark.parametrize(
    ("noise", "rate", "entries", "tail"),
    [
        (1.0, 0.01, 3, 1e-9),
        (1.0, 0.001, 40, 1e-12),
        (0.6, 0.002, 13, 1e-10),
        (2.0, 0.1, 4, 1e-7),
        (0.4, 0.01, 1, 1e-8),
    ],
)
@pytest.mark.parametrize("order", [2.0, 3.7, 9.0])
def test_it_is_an_upper_bound_and_close(noise, rate, entries, tail, order):
    """Against the same integrals on a far finer grid in extended precision."""
    values, apart = clipped(noise, rate, entries, (order,), np.array([tail]))
    assert 0 < apart[0] <= tail
    counts = np.arange(min(entries, 14) + 1)
    weights = stats.binom.pmf(counts, entries, rate).astype(np.longdouble)
    grid = np.arange(-14 * noise, 14 + 40 * noise, noise**2 / 500).astype(np.longdouble)
    q = np.exp(-((grid / noise) ** 2) / 2) / (noise * np.sqrt(2 * np.pi))
    less_one = sum(w * np.expm1((i * grid - i * i / 2) / noise**2) for i, w in zip(counts, weights, strict=True))
    mass = sum(float(w) * stats.norm.sf((grid.astype(float) - i) / noise) for i, w in zip(counts, weights, strict=True))
    below = mass >= apart[0]

    def integral(power, where):
        bracket = np.expm1(power * np.log1p(less_one)) - power * less_one
        return float(np.sum((q * bracket)[where]) * (grid[1] - grid[0]))

    removed, added = integral(order, below), integral(1 - order, slice(None))
    exact = np.log1p(max(removed, added)) / (order - 1)
    # Above the exact value by the last cell at the cut, where the mass set apart is read off a grid.
    assert exact * 0.98 <= values[0, 0] <= exact * 1.15


def test_tiny_rates_keep_their_digits():
    values, _ = clipped(1.0, 1e-6, 2, (6.0,), np.array([1e-60]))
    weights = stats.binom.pmf(np.arange(3), 2, 1e-6)
    square = sum(weights[i] * weights[j] * np.expm1(i * j) for i in range(3) for j in range(3))
    assert 3 * square <= values[0, 0] <= 3 * square * 1.01


@pytest.mark.parametrize("entries", [1, 2, 4])
def test_with_a_tiny_tail_it_is_the_accountant(entries):
    orders = (1.7, 2.5, 4.0)
    mechanism = SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=entries)
    values, _ = clipped(1.0, 0.01, entries, orders, np.array([1e-200]))
    assert values[0] == pytest.approx(mechanism.rdp(np.array(orders)), rel=1e-5)


def test_what_is_set_apart_is_what_may_be():
    plan = SampledGaussian(noise_multiplier=1.0, rate=0.001, entries=13, clip_norm=0.5).guarantee(steps=700)
    found = list(costs(plan, (3.0, 5.0), (0.0, 1e-12, 1e-8)))
    assert [apart <= limit for (_, apart), limit in zip(found, (0.0, 1e-12, 1e-8), strict=True)] == [True] * 3
    assert found[0][1] == 0 and found[2][1] > 1e-9
    assert (found[2][0] <= found[1][0]).all() and (found[1][0] <= found[0][0]).all()


def test_other_mechanisms_are_as_the_accountant_says():
    for mechanism in (Gaussian(noise_multiplier=2.0), Laplace(noise_multiplier=3.0)):
        for rdp, apart in costs(mechanism.guarantee(steps=4), (2.0, 5.0), (0.0, 1e-8)):
            assert apart == 0
            assert rdp == pytest.approx(4 * mechanism.rdp(np.array([2.0, 5.0])))


def test_many_entries_cost_about_as_much_as_few():
    """Plans of the same epsilon at 2 and 184 entries: without setting rare outputs apart the second is hopeless."""
    rule = Filter.design(8.0, 1e-6)
    few = SampledGaussian(noise_multiplier=1.0, rate=0.0018, entries=2).guarantee(steps=2000)
    many = SampledGaussian(noise_multiplier=1.0, rate=0.0000194, entries=184).guarantee(steps=2000)
    a, b = (float(rule.share(rule.charge(g)[None, :])[0]) for g in (few, many))
    assert 0 < 0.5 * a < b < 2 * a < 0.2


@pytest.mark.parametrize(("noise", "rate", "entries"), [(1.0, 0.0005, 13), (1.0, 0.01, 1), (0.6, 0.001, 1)])
def test_what_just_fits_is_within_the_cap_and_not_far_below(noise, rate, entries):
    rule = Filter.design(8.0, 1e-6)
    mechanism = SampledGaussian(noise_multiplier=noise, rate=rate, entries=entries)
    low, high = 1, 10**7
    while high - low > max(1, low // 200):
        middle = (low + high) // 2
        fits = rule.admits(rule.charge(mechanism.guarantee(steps=middle))[None, :])[0]
        low, high = (middle, high) if fits else (low, middle)
    assert 8.0 / 1.25 <= mechanism.guarantee(steps=low).epsilon(1e-6) <= 8.0


MANY = [
    SampledGaussian(noise_multiplier=noise, rate=min(1.0, share / entries), entries=entries, clip_norm=clip)
    for noise, share, clip in ((1.0, 0.0003, 1.0), (1.0, 0.0122, 1.0), (0.6, 0.02, 0.5), (3.0, 0.3, 1.0))
    for entries in (1, 2, 3, 4, 5, 6, 8, 12)
]


@pytest.mark.parametrize("order", [1.3, 4.0537, 5.5806, 12.0])
def test_the_quick_lower_bound_is_one(order):
    for mechanism in MANY:
        assert at_least(mechanism, (order,))[0] <= mechanism.rdp(np.array([order]))[0]


@pytest.mark.parametrize("rate", [1.0, 0.9, 0.001])
def test_many_entries_that_are_mostly_drawn_have_a_price(rate):
    full = SampledGaussian(noise_multiplier=2000.0, rate=rate, entries=2000)
    assert 0 <= at_least(full, (4.0,))[0] <= full.rdp(np.array([4.0]))[0] * (1 + 1e-9)
    assert Filter.design(8.0, 1e-6).charge(full.guarantee()).max() < 2**32 - 1


@pytest.mark.parametrize("cap", [(2.0, 1e-6), (8.0, 1e-9)])
def test_integrals_that_are_left_out_change_no_charge(cap, monkeypatch):
    """Prices with the short cut equal those without it, number for number."""
    import confide.ledger.filter as rules

    plans = [mechanism.guarantee(steps=500) for mechanism in MANY]
    plans += [compose([plans[0], plans[7]]), compose([plans[3], Gaussian(noise_multiplier=20.0).guarantee()])]
    rule = Filter.design(*cap)
    quick = [rule.charge(plan).tolist() for plan in plans]
    monkeypatch.setattr(rules, "costs", lambda g, orders, tails, enough: costs(g, orders, tails))
    assert [rule.charge(plan).tolist() for plan in plans] == quick
    assert sum(2**32 - 1 in row for row in quick) < len(quick)  # not everything is out of reach


def test_pricing_the_classes_of_a_hospital_takes_few_integrals(monkeypatch):
    """103 classes of the NIH entry counts: only those with few entries need the plain divergence."""
    asked = []
    plain = SampledGaussian.rdp
    monkeypatch.setattr(SampledGaussian, "rdp", lambda self, orders: asked.append(self.entries) or plain(self, orders))
    rule = Filter.design(8.0, 1e-9)
    for k in (1, 2, 5, 13, 60, 184):
        rule.charge(SampledGaussian(noise_multiplier=1.0, rate=0.0003 / k, entries=k).guarantee(steps=500))
    assert max(asked) < 13
