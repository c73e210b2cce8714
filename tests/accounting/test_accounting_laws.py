"""Laws: intervals contain finer grids, more of anything costs more, nothing is optimistic, bad input is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.accounting import (
    RDP_ORDERS,
    Gaussian,
    GaussianFilter,
    Guarantee,
    Laplace,
    Odometer,
    PrivateSelection,
    RenyiFilter,
    SampledGaussian,
    calibrate_noise,
    calibrate_rates,
    calibrate_steps,
    compose,
    epsilons,
    mechanism_from_dict,
    rdp_epsilon,
)
from confide.accounting.mechanisms import _KINDS, binomial
from confide.errors import InputError, UnreachableError

sampled = st.builds(
    lambda s, p, k, c: SampledGaussian(s, p, k, c),
    st.floats(0.6, 8.0),
    st.floats(1e-4, 0.4),
    st.integers(1, 12),
    st.sampled_from([0.25, 1.0]),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(sampled, st.integers(1, 300), st.sampled_from([1e-3, 1e-5, 1e-8, 1e-11]))
def test_interval_contains_a_finer_grid(mechanism, steps, delta):
    coarse = mechanism.guarantee(steps).epsilon_interval(delta, rtol=1e-2)
    fine = mechanism.guarantee(steps).epsilon_interval(delta, rtol=1e-4)
    # Both contain the truth, so they meet; the fine one may miss its width, never its validity.
    assert coarse[0] <= fine[1] * (1 + 1e-9) + 1e-12
    assert fine[0] <= coarse[1] * (1 + 1e-9) + 1e-12
    assert mechanism.guarantee(steps).epsilon(delta) >= fine[0] * (1 - 1e-9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(sampled, st.integers(1, 100))
def test_renyi_conversion_is_looser(mechanism, steps):
    guarantee = mechanism.guarantee(steps)
    assert guarantee.epsilon_interval(1e-6)[0] <= rdp_epsilon(guarantee.rdp(), 1e-6) + 1e-9


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.floats(0.8, 4.0), st.floats(1e-3, 0.2), st.integers(1, 8), st.integers(1, 100))
def test_more_costs_more(sigma, rate, k, steps):
    base = SampledGaussian(sigma, rate, k).guarantee(steps).epsilon_interval(1e-6)[0]
    for other in (
        SampledGaussian(sigma * 0.9, rate, k).guarantee(steps),
        SampledGaussian(sigma, min(rate * 1.2, 1.0), k).guarantee(steps),
        SampledGaussian(sigma, rate, k + 1).guarantee(steps),
        SampledGaussian(sigma, rate, k, 1.1).guarantee(steps),
        SampledGaussian(sigma, rate, k).guarantee(steps + 10),
    ):
        assert other.epsilon(1e-6) >= base
    # k entries drawn one by one are never safer than one entry drawn whenever any of them is
    assert (
        SampledGaussian(sigma, rate, k).guarantee(steps).epsilon(1e-6)
        >= (SampledGaussian(sigma, 1 - (1 - rate) ** k).guarantee(steps).epsilon_interval(1e-6)[0])
    )


@pytest.mark.parametrize("steps", [1, 7, 500])
def test_split_composition_equals_whole(steps):
    one = SampledGaussian(1.2, 0.02, 3)
    two = SampledGaussian(1.2000001, 0.02, 3)
    whole = one.guarantee(2 * steps).epsilon_interval(1e-6)
    split = compose([one.guarantee(steps), two.guarantee(steps)]).epsilon_interval(1e-6)
    assert split[0] <= whole[1] and whole[0] <= split[1] * (1 + 1e-6)


def test_heterogeneous_composition_with_gaussian_and_laplace():
    parts = [SampledGaussian(1.0, 0.01, 4).guarantee(1000), Gaussian(2.0).guarantee(), Laplace(3.0).guarantee(2)]
    low, high = compose(parts).epsilon_interval(1e-5)
    assert max(g.epsilon_interval(1e-5)[0] for g in parts) < low <= high < sum(g.epsilon(1e-5 / 3) for g in parts)


def test_small_delta_stays_right_over_many_steps():
    # p = 1 has a closed form; the sampled path with rate just under 1 must approach it from below even at 1e-12.
    sigma, steps, delta = 400.0, 100_000, 1e-12
    exact = Gaussian(sigma).guarantee(steps).epsilon(delta)
    low, high = SampledGaussian(sigma, 0.9999).guarantee(steps).epsilon_interval(delta)
    assert high == pytest.approx(exact, rel=2e-3)
    assert low <= exact


def test_readouts_agree_with_each_other():
    guarantee = SampledGaussian(1.0, 0.01, 4).guarantee(1000)
    epsilon = guarantee.epsilon(1e-5)
    assert guarantee.delta(epsilon) <= 1e-5 * 1.002
    assert guarantee.delta_interval(0.0)[0] <= guarantee.advantage()
    fpr = np.array([0.0, 1e-6, 1e-3, 0.1, 0.5, 0.9, 1.0])
    fnr = guarantee.tradeoff(fpr)
    assert np.all(np.diff(fnr) <= 1e-12) and np.all(fnr <= 1 - fpr + 1e-12) and np.all(fnr >= 0)
    # Best TPR - FPR over the curve is the advantage.
    grid = np.linspace(0.001, 0.999, 400)
    best = float(np.max(1 - guarantee.tradeoff(grid) - grid))
    assert best == pytest.approx(guarantee.advantage(), rel=5e-3)
    assert guarantee.posterior(0.01, 0.01) == pytest.approx(
        0.01 * (1 - fnr_at(guarantee, 0.01)) / (0.01 * (1 - fnr_at(guarantee, 0.01)) + 0.0099)
    )
    assert 0.5 < guarantee.auc() < 1


def fnr_at(guarantee, fpr):
    return float(guarantee.tradeoff(fpr))


def test_descriptions_survive_json():
    guarantee = compose([SampledGaussian(1.0, 0.01, 4).guarantee(10), Laplace(3.0).guarantee(2)])
    again = Guarantee.from_dict(json.loads(json.dumps(guarantee.to_dict())))
    assert again == guarantee and hash(again) == hash(guarantee)
    search = PrivateSelection(guarantee, success=0.2)
    assert mechanism_from_dict(json.loads(json.dumps(search.to_dict()))) == search
    assert len(_KINDS) >= 15


def test_mixed_relations_are_refused():
    with pytest.raises(InputError, match="relation"):
        compose([Gaussian(1.0).guarantee(), Gaussian(1.0, relation="zero-out").guarantee()])


@pytest.mark.parametrize(
    "build",
    [
        lambda: SampledGaussian(1.0, 1.5),
        lambda: SampledGaussian(0.0, 0.1),
        lambda: SampledGaussian(float("nan"), 0.1),
        lambda: SampledGaussian(1.0, 0.1, 2.5),
        lambda: SampledGaussian(1.0, 0.1).guarantee(0),
        lambda: SampledGaussian(1.0, 0.1).guarantee(10).epsilon(0.0),
        lambda: SampledGaussian(1.0, 0.1).guarantee(10).epsilon(1.0),
        lambda: SampledGaussian(1.0, 0.1).guarantee(10).delta(-1.0),
        lambda: SampledGaussian(1.0, 0.1).guarantee(10).delta(float("nan")),
        lambda: SampledGaussian(1.0, 0.1).guarantee(10).tradeoff([0.5, 1.5]),
        lambda: Gaussian(1.0, relation="add-remove"),
        lambda: mechanism_from_dict({"mechanism": "gausian"}),
        lambda: mechanism_from_dict({"mechanism": "gaussian", "sigma": 1.0}),
        lambda: compose([]),
        lambda: calibrate_rates([0], 1.0, delta=1e-5, noise_multiplier=1.0, steps=10),
        lambda: calibrate_rates([1], -1.0, delta=1e-5, noise_multiplier=1.0, steps=10),
        lambda: GaussianFilter(1.0, 3).admit(0.1, rate=0.5),
    ],
)
def test_bad_input_is_refused_in_words(build):
    with pytest.raises(InputError):
        build()


def test_unreachable_targets_name_the_range():
    with pytest.raises(UnreachableError, match="at least"):
        calibrate_steps(0.01, delta=1e-9, noise_multiplier=0.5, rate=0.5)


def test_nothing_used_costs_nothing():
    assert SampledGaussian(1.0, 0.0).guarantee(5).epsilon(1e-5) == 0
    assert SampledGaussian(1.0, 0.5, 0).guarantee(5).advantage() == 0


def test_calibration_is_a_function_of_the_own_class_alone():
    kw = {"delta": 1e-5, "noise_multiplier": 1.0, "steps": 200}
    alone = calibrate_rates([7], 2.0, **kw)[0]
    among = calibrate_rates([1, 3, 7, 20], [2.0, 1.0, 2.0, 4.0], **kw)
    assert among[2] == alone
    assert np.all(
        epsilons(noise_multiplier=1.0, rate=among, entries=[1, 3, 7, 20], steps=200, delta=1e-5) <= [2, 1, 2, 4]
    )
    assert calibrate_noise(2.0, delta=1e-5, rate=1.0, steps=4) == pytest.approx(
        2 * calibrate_noise(2.0, delta=1e-5, rate=1.0, steps=1)
    )


def test_gaussian_filter_never_overspends():
    rng = np.random.default_rng(3)
    keep = GaussianFilter(1.0, 50)
    total = np.zeros(50)
    for _ in range(40):
        charge = rng.uniform(0, 0.4, 50)
        total += np.where(keep.admit(charge), charge**2, 0)
    assert total.max() <= 1.0 and total.max() > 0.9


def test_renyi_filter_drops_before_any_order_overflows_and_for_good():
    budget = SampledGaussian(1.0, 0.02).guarantee(10).rdp()
    step = np.stack([SampledGaussian(1.0, 0.02).rdp(), SampledGaussian(1.0, 0.04).rdp()])
    keep, odometer = RenyiFilter(budget * (1 + 1e-9), 2), Odometer(2)
    took = []
    for _ in range(12):
        active = keep.admit(step, [0, 1])
        odometer.charge(step * active[:, None])
        took.append(active)
    took = np.array(took)
    assert took[:, 0].sum() == 10 and took[:, 1].sum() < 10
    assert not np.any(np.diff(took.astype(int), axis=0) > 0)
    finite = np.isfinite(budget)
    assert np.all(keep.spent[:, finite] <= budget[finite] * (1 + 1e-8))
    assert np.all(odometer.epsilon(1e-5) <= rdp_epsilon(budget, 1e-5) * (1 + 1e-6))


def test_private_selection_costs_more_than_one_run_and_less_than_all():
    base = SampledGaussian(2.0, 0.01).guarantee(500)
    for law in ({"success": 0.1}, {"law": "poisson", "mean": 10.0}):
        search = PrivateSelection(base, **law)
        assert search.expected_runs == pytest.approx(10)
        spent = search.guarantee().epsilon(1e-6)
        assert base.epsilon(1e-6) < spent < compose([base] * 30).epsilon(1e-6)
    assert np.all(PrivateSelection(base).rdp() >= base.rdp(RDP_ORDERS))


def test_import_stays_light():
    code = (
        "import sys, confide.accounting; "
        "bad = {'torch', 'polars', 'pydantic', 'rich', 'sqlalchemy', 'scipy.stats', 'scipy.signal', 'scipy.optimize'};"
        "print(sorted(bad & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("step", [0.02, 0.11, 0.7])
@pytest.mark.parametrize(("sigma", "rate", "k"), [(1.0, 0.01, 1), (0.6, 0.2, 3), (2.0, 0.05, 12), (0.5, 1e-3, 2)])
@pytest.mark.parametrize("remove", [True, False])
def test_coarse_lattices_bracket_one_step_everywhere(step, sigma, rate, k, remove):
    # One step has a direct formula; a coarse lattice must stay above (upper) and below (lower) it at every epsilon.
    composition = SampledGaussian(sigma, rate, k).guarantee()._composition
    x = np.linspace(-14 * sigma, k + 14 * sigma, 200_001)
    weights = binomial(k, rate)
    without = np.exp(-0.5 * (x / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)) * (x[1] - x[0])
    present = sum(w * np.exp((i * x - i * i / 2) / sigma**2) for i, w in enumerate(weights)) * without
    p, q = (present, without) if remove else (without, present)
    epsilons_ = np.linspace(0, 6, 241)
    truth = np.array([np.maximum(p - np.exp(e) * q, 0).sum() for e in epsilons_])
    for upper in (True, False):
        curve = composition.curve(remove, upper, step=step, tilt=0.5, read=1e-10, aliasing=1e-13)
        bound = curve.delta(epsilons_)
        if upper:
            assert np.all(bound >= truth * (1 - 1e-6) - 1e-14)
        else:
            assert np.all(bound <= truth * (1 + 1e-6) + 1e-14)
