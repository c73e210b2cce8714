"""What the methods learn: tables come back when noise is small, the guarantee is the one asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from synthesis_panels import dependent_panel

from confide.accounting import Gaussian
from confide.errors import BudgetError, InputError
from confide.mechanisms import SecureNoise, SeededNoise
from confide.synthesis import Column, Domain, FlatTree, Meter, Panel, PatientUnit, RowRule
from confide.synthesis.contributions import Var, cells_of, codes_of
from confide.synthesis.meter import gaussian_mu


def table(panel, a, b, level="visit"):
    x, y = codes_of(panel, a, level), codes_of(panel, b, level)
    keep = x >= 0
    out = np.zeros((cells_of(panel.domain, a), cells_of(panel.domain, b)))
    np.add.at(out, (x[keep], y[keep]), 1.0)
    return out / out.sum()


def tv(real, synthetic, a, b, level="visit"):
    return 0.5 * float(np.abs(table(real, a, b, level) - table(synthetic, a, b, level)).sum())


@pytest.fixture(scope="module")
def real():
    return dependent_panel(np.random.default_rng(0))


@pytest.fixture(scope="module")
def model(real):
    return PatientUnit().fit(real, Meter(epsilon=20.0, delta=1e-5, noise=SeededNoise(0)))


def test_a_generous_budget_gives_the_tables_back(real, model):
    drawn = model.sample(3000, rng=np.random.default_rng(1))
    stage, drug, risk, sex = Var("visit", 1), Var("visit", 2), Var("static", 1), Var("static", 0)
    for a, b in ((stage, drug), (risk, stage), (Var("lag", 1), stage), (Var("visit", 0), stage)):
        assert tv(real, drawn, a, b) < 0.12, (a, b)  # what persists and rises from visit to visit is met least well
    assert tv(real, drawn, sex, risk, "patient") < 0.05
    assert tv(real, drawn, Var("count"), risk, "patient") < 0.06


def test_structure_beats_independence_when_there_is_budget(real, model):
    alone = PatientUnit(structure="none").fit(real, Meter(epsilon=20.0, delta=1e-5, noise=SeededNoise(0)))
    drawn, plain = (m.sample(3000, rng=np.random.default_rng(1)) for m in (model, alone))
    pair = (Var("lag", 1), Var("visit", 1))
    assert tv(real, drawn, *pair) < 0.3 * tv(real, plain, *pair)


def test_time_never_runs_backwards(model):
    drawn = model.sample(500, rng=np.random.default_rng(2))
    before, now = codes_of(drawn, Var("lag", 0), "visit"), drawn.visit[:, 0]
    assert (now >= before)[before >= 0].all()


def test_rules_hold_in_everything_sampled(real):
    never_down = RowRule(Var("lag", 1), Var("visit", 1), np.triu(np.ones((4, 4), dtype=bool)), "stage never falls")
    no_drug = RowRule(Var("visit", 1), Var("visit", 2), np.array([[True, False]] + [[True, True]] * 3), "no drug at 0")
    fitted = PatientUnit().fit(real, Meter(epsilon=1.0, delta=1e-5, noise=SeededNoise(3)), rules=(never_down, no_drug))
    drawn = fitted.sample(2000, rng=np.random.default_rng(4))
    before = codes_of(drawn, Var("lag", 1), "visit")
    assert (drawn.visit[:, 1] >= before)[before >= 0].all()
    assert not ((drawn.visit[:, 1] == 0) & (drawn.visit[:, 2] == 1)).any()
    with pytest.raises(InputError, match="never hold"):
        RowRule(Var("visit", 1), Var("visit", 2), np.zeros((4, 2), dtype=bool), "nothing")


@pytest.mark.parametrize("estimand", ["visit", "patient"])
def test_the_estimand_is_the_one_asked_for(real, estimand):
    """Patients with many visits are sicker here, so per visit and per patient differ."""
    fitted = PatientUnit(estimand=estimand).fit(real, Meter(epsilon=30.0, delta=1e-5, noise=SeededNoise(0)))
    stage = next(m for m in fitted.measurements if m.columns == ("stage",))
    weights = np.ones(len(real.visit)) if estimand == "visit" else (1 / real.counts)[real.of_visit]
    truth = np.bincount(real.visit[:, 1], weights=weights, minlength=4)
    assert 0.5 * np.abs(stage.estimate - truth / truth.sum()).sum() < 0.03


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-6), (1.0, 1e-5), (3.0, 1e-5), (30.0, 1e-9)])
def test_mu_is_the_textbook_one(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    exact = stats.norm.cdf(-epsilon / mu + mu / 2) - np.exp(epsilon) * stats.norm.cdf(-epsilon / mu - mu / 2)
    assert exact <= delta * (1 + 1e-6)
    assert exact >= delta * 0.99
    assert Gaussian(noise_multiplier=1 / mu).guarantee().epsilon(delta) <= epsilon


@pytest.mark.parametrize("method", [PatientUnit(), FlatTree(), FlatTree(edges=False)])
def test_the_guarantee_is_within_the_budget_and_uses_it(real, method):
    fitted = method.fit(real, Meter(epsilon=1.0, delta=1e-5, noise=SeededNoise(0)))
    assert 0.98 < fitted.guarantee().epsilon(1e-5) <= 1.0


def test_a_meter_refuses_to_overspend():
    meter = Meter(epsilon=1.0, delta=1e-5, noise=SeededNoise(0))
    meter.gaussian("first", np.zeros(2), sensitivity=1.0, share=0.7)
    with pytest.raises(BudgetError):
        meter.gaussian("second", np.zeros(2), sensitivity=1.0, share=0.31)


def test_noise_has_the_size_that_was_charged_for():
    answers = []
    for seed in range(400):
        meter = Meter(epsilon=1.0, delta=1e-5, noise=SeededNoise(seed))
        answers.append(meter.gaussian("x", np.zeros(20), sensitivity=2.0, share=0.25))
    wanted = 2.0 / (gaussian_mu(1.0, 1e-5) * 0.5)
    assert abs(np.std(answers) / wanted - 1) < 0.03


def test_secure_noise_works_and_costs_a_little_more():
    meter = Meter(epsilon=1.0, delta=1e-5, noise=SecureNoise(bytes(32)))
    out = meter.gaussian("x", np.zeros(50), sensitivity=1.0, share=1.0)
    assert np.isfinite(out).all() and np.std(out) > 1


def test_a_tree_learns_the_strongest_pair(real):
    fitted = FlatTree(cap=8.0).fit(real, Meter(epsilon=20.0, delta=1e-5, noise=SeededNoise(0)))
    drawn = fitted.sample(20000, rng=np.random.default_rng(0))
    assert tv(real, drawn, Var("visit", 1), Var("visit", 2)) < 0.03


def test_static_tables_alone_work():
    rng = np.random.default_rng(0)
    domain = Domain((Column("a", 3), Column("b", 3)), ())
    a = rng.integers(0, 3, 2000)
    panel = Panel.from_codes(domain, static=np.column_stack([a, a]), visit=np.zeros((0, 0)), counts=np.zeros(2000, int))
    for method in (PatientUnit(), FlatTree()):
        fitted = method.fit(panel, Meter(epsilon=5.0, delta=1e-5, noise=SeededNoise(0)))
        drawn = fitted.sample(1000, rng=rng)
        assert (drawn.static[:, 0] == drawn.static[:, 1]).mean() > 0.9


def test_codes_outside_the_domain_are_refused():
    domain = Domain((Column("a", 2),), (Column("v", 2),), max_visits=2)
    with pytest.raises(InputError, match="outside its domain"):
        Panel.from_codes(domain, static=[[2]], visit=[[0]], counts=[1])
    with pytest.raises(InputError, match="wrong shape"):
        Panel.from_codes(domain, static=[[1], [0]], visit=[[0]], counts=[1, 1]).static.sum()


@pytest.mark.parametrize("estimand", ["visit", pytest.param("patient", marks=pytest.mark.slow)])
@pytest.mark.parametrize("epsilon", [0.05, pytest.param(1.0, marks=pytest.mark.slow)])
def test_few_patients_and_patients_without_visits_work(estimand, epsilon):
    domain = Domain((Column("a", 2),), (Column("t", 3, ordinal=True), Column("v", 2)), max_visits=30, time="t")
    for counts in ([0, 0, 0], [0, 1, 0], [30]):
        n = len(counts)
        panel = Panel.from_codes(
            domain, static=np.zeros((n, 1)), visit=np.zeros((sum(counts), 2)), counts=np.array(counts)
        )
        for seed in range(5):
            meter = Meter(epsilon=epsilon, delta=1e-5, noise=SeededNoise(seed))
            drawn = PatientUnit(estimand=estimand).fit(panel, meter).sample(20, rng=np.random.default_rng(0))
            assert drawn.patients == 20
