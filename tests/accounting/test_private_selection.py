"""The price of showing the best of a random number of runs: against formulas, another library, and the exact law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.accounting import (
    RDP_ORDERS,
    Gaussian,
    Guarantee,
    PrivateSelection,
    RandomisedResponse,
    SampledGaussian,
    mean_of_runs,
    rdp_epsilon,
    success_for,
)
from confide.accounting.more_mechanisms import _Atoms
from confide.errors import InputError
from confide.mechanisms import SeededNoise, draw_runs, runs_probabilities


@pytest.mark.parametrize("shape", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("rho", [0.001, 0.02, 0.3])
def test_theorem_2_for_a_gaussian_in_closed_form(shape: float, rho: float) -> None:
    # Theorem 2 with R(order) = rho order; the second order minimises rho (o - 1) + log(1 / gamma) / o at its root
    success, orders = 0.1, np.array([2.0, 8.0, 32.0])
    o = max(1.0, math.sqrt(math.log(1 / success) / rho))
    rest = (1 + shape) * (rho * (o - 1) + math.log(1 / success) / o)
    exact = rho * orders + rest + math.log(mean_of_runs(shape, success)) / (orders - 1)
    base = Gaussian(1 / math.sqrt(2 * rho)).guarantee()
    found = PrivateSelection(base, shape=shape, success=success).rdp(orders)
    assert np.all(found <= exact * 1.02)  # our second order is on a grid
    # a bound at a higher order serves a lower one too, so only the smallest of those can be compared
    higher = np.exp(np.linspace(0, 12, 4000))
    for order, value in zip(orders, found, strict=True):
        a = order * higher
        assert value >= float(np.min(rho * a + rest + math.log(mean_of_runs(shape, success)) / (a - 1))) * (1 - 1e-9)


def test_theorem_2_agrees_with_dp_accounting() -> None:
    accountant = pytest.importorskip("dp_accounting.rdp.rdp_privacy_accountant")
    event = pytest.importorskip("dp_accounting.dp_event")
    one = SampledGaussian(2.0, 0.02).guarantee(200)
    inner = event.SelfComposedDpEvent(event.PoissonSampledDpEvent(0.02, event.GaussianDpEvent(2.0)), 200)
    for shape in (0.0, 1.0, 3.0):
        theirs = accountant.RdpAccountant(orders=RDP_ORDERS.tolist())
        theirs.compose(event.RepeatAndSelectDpEvent(inner, 12.0, shape))
        ours = PrivateSelection(one, shape=shape, success=success_for(shape, 12.0)).rdp()
        whole = (RDP_ORDERS <= 256) & (np.round(RDP_ORDERS) == RDP_ORDERS)  # theirs is looser at fractional orders
        assert ours[whole] == pytest.approx(theirs.rdp[whole], rel=2e-3)
        assert rdp_epsilon(ours, 1e-6) == pytest.approx(theirs.get_epsilon(1e-6), rel=2e-3)


def test_theorem_6_by_hand_and_never_below_it() -> None:
    mean, one = 8.0, Gaussian(4.0).guarantee()
    orders = np.array([2.0, 5.0, 20.0])
    epsilon = np.log1p(1 / (orders - 1))
    deltas = np.array([one.delta(float(e)) for e in epsilon])
    published = orders / 32 + mean * deltas + math.log(mean) / (orders - 1)
    found = PrivateSelection(one, law="poisson", mean=mean)._curve(orders, orders)
    assert np.all(found >= published)
    assert found == pytest.approx(published, rel=1e-4)  # the chance of no run at all, exp(-8), is what is added


def test_geometric_stopping_triples_a_pure_epsilon() -> None:
    base = RandomisedResponse(0.5).guarantee()
    curve = PrivateSelection(base, law="geometric", success=0.01).rdp()
    assert curve[-1] <= 3 * 0.5 * (1 + 1e-9)  # Liu and Talwar 2019, Theorem 1.3


@dataclass(frozen=True)
class Listed(_Atoms):
    """A test mechanism: finitely many outputs with stated probabilities."""

    p: tuple[float, ...]
    q: tuple[float, ...]
    relation: str = "add/remove"

    def _atoms(self) -> tuple[np.ndarray, np.ndarray]:
        return np.log(np.array(self.p)), np.log(np.array(self.q))


def winner_law(one: np.ndarray, runs: list[float]) -> np.ndarray:
    """Exact law of the best of a random number of runs (outputs in rising order of score; the last: no run at all)."""
    weight = np.array(runs)
    at_most = np.concatenate([[0.0], np.minimum(np.cumsum(one), 1.0)])
    k = np.arange(1, len(weight))
    generating = np.array([float(np.sum(weight[1:] * value**k)) for value in at_most])
    return np.concatenate([np.diff(generating), [weight[0]]])


def divergence(p: np.ndarray, q: np.ndarray, order: float) -> float:
    alive = p > 0
    return float(np.log(np.sum(p[alive] ** order * q[alive] ** (1 - order))) / (order - 1))


laws = st.sampled_from(
    [
        {"law": "poisson", "mean": 0.4},
        {"law": "poisson", "mean": 3.0},
        {"law": "poisson", "mean": 15.0},
        {"law": "negative-binomial", "shape": 0.0, "success": 0.05},
        {"law": "negative-binomial", "shape": 1.0, "success": 0.2},
        {"law": "negative-binomial", "shape": -0.5, "success": 0.1},
        {"law": "negative-binomial", "shape": 3.0, "success": 0.3},
    ]
)


@settings(max_examples=25, deadline=None)
@given(
    terms=laws,
    weights=st.lists(st.tuples(st.floats(0.02, 1), st.floats(-1.0, 1.0)), min_size=2, max_size=6),
    order=st.sampled_from([1.5, 2.0, 4.0, 10.0]),
)
def test_the_exact_law_of_the_winner_stays_below_the_curve(
    terms: dict[str, float], weights: list[tuple[float, float]], order: float
) -> None:
    p = np.array([w for w, _ in weights])
    q = p * np.exp([tilt for _, tilt in weights])
    p, q = p / p.sum(), q / q.sum()
    base = Guarantee(((Listed(tuple(p), tuple(q)), 1),))
    bound = float(PrivateSelection(base, **terms).rdp(np.array([order]))[0])  # type: ignore[arg-type]
    runs = runs_probabilities(**terms)  # type: ignore[arg-type]
    one, other = winner_law(p, runs), winner_law(q, runs)
    assert max(divergence(one, other, order), divergence(other, one, order)) <= bound * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    "terms", [{"law": "poisson", "mean": 2.0}, {"law": "negative-binomial", "shape": 0.0, "success": 0.1}]
)
def test_monte_carlo_of_the_search_itself(terms: dict[str, float]) -> None:
    """The code that draws the runs, then an argmax over randomised responses: the winner's law is the exact one."""
    one = np.array([0.5, 0.3, 0.2])
    rng, noise, tries = np.random.default_rng(4), SeededNoise(9), 20_000
    counts = np.zeros(4)
    for _ in range(tries):
        runs = len(draw_runs(noise, candidates=3, **terms))  # type: ignore[arg-type]
        counts[rng.choice(3, size=runs, p=one).max() if runs else 3] += 1
    exact = winner_law(one, runs_probabilities(**terms))  # type: ignore[arg-type]
    deviation = np.sqrt(exact * (1 - exact) / tries)
    assert np.all(np.abs(counts / tries - exact) <= 4.5 * deviation + 1e-12)


@pytest.mark.parametrize("shape", [-0.5, 0.0, 0.5, 1.0, 4.0])
def test_the_law_has_its_mean(shape: float) -> None:
    success = success_for(shape, 9.0)
    runs = runs_probabilities("negative-binomial", shape=shape, success=success)
    assert sum(runs) == pytest.approx(1.0, abs=1e-12)
    assert runs[0] == 0
    assert sum(k * p for k, p in enumerate(runs)) == pytest.approx(9.0, rel=1e-9)


def test_refusals_name_what_can_be_had() -> None:
    with pytest.raises(InputError, match="above 1"):
        success_for(1.0, 0.5)
    with pytest.raises(InputError, match="unknown law"):
        runs_probabilities("binomial")


def test_written_and_read_again() -> None:
    search = PrivateSelection(SampledGaussian(2.0, 0.02, 4).guarantee(50), law="poisson", mean=4.0).guarantee()
    again = Guarantee.from_dict(search.to_dict())
    assert again == search
    assert again.epsilon(1e-5) == search.epsilon(1e-5)
