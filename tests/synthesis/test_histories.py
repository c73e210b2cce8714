"""What stays with a patient: random effects, follow-up and regular visits, learnt through noise and drawn again."""

from __future__ import annotations

import numpy as np
import pytest
from synthesis_panels import random_panel
from test_neighbours import worst_ratio

from confide.evaluation.tables_time import intraclass_correlation, lag_correlation
from confide.mechanisms import SeededNoise
from confide.synthesis import Column, Domain, Meter, Panel, PatientUnit
from confide.synthesis import patient_unit as module
from confide.synthesis.followup import FollowedPatients, follow_up_rules, followed
from confide.synthesis.history import effects, past_mean, share_of_same


def own_level(rng, *, patients=2500, own=1.4, years=6):
    """Patients who keep a level of their own, seen over a stretch of years of their own, once a year."""
    domain = Domain(
        (Column("sex", 2),),
        (Column("year", years, ordinal=True), Column("level", 5, ordinal=True)),
        max_visits=8,
        min_visits=1,
        time="year",
    )
    first = rng.integers(0, 3, patients)
    last = np.minimum(first + rng.integers(0, 4, patients), years - 1)
    counts = last - first + 1
    effect = np.repeat(own * rng.normal(size=patients), counts)
    year = np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)])
    level = np.clip(np.round(2 + effect + 0.6 * rng.normal(size=len(year))), 0, 4).astype(int)
    return Panel.from_codes(
        domain,
        static=rng.integers(0, 2, patients)[:, None],
        visit=np.column_stack([year, level]),
        counts=counts,
    )


def fitted(panel, epsilon=20.0):
    model = PatientUnit().fit(panel, Meter(epsilon=epsilon, delta=1e-5, noise=SeededNoise(0)))
    return model.sample(4000, rng=np.random.default_rng(1))


def test_what_is_the_patients_own_comes_back():
    real = own_level(np.random.default_rng(0))
    drawn = fitted(real)
    icc = [intraclass_correlation(p.visit[:, 1].astype(float), p.of_visit) for p in (real, drawn)]
    assert icc[0] > 0.6
    assert abs(icc[1] - icc[0]) < 0.12
    # a patient does not forget: visits far apart agree as in the real table, where a chain alone would lose it
    ends = []
    for panel in (real, drawn):
        long = panel.counts >= 4
        a, b = panel.starts[:-1][long], panel.starts[1:][long] - 1
        ends.append(np.corrcoef(panel.visit[a, 1], panel.visit[b, 1])[0, 1])
    assert abs(ends[1] - ends[0]) < 0.15


def test_nothing_of_ones_own_is_invented():
    rng = np.random.default_rng(0)
    real = own_level(rng)
    real.visit[:, 1] = rng.integers(0, 5, len(real.visit))
    drawn = fitted(real)
    assert abs(intraclass_correlation(drawn.visit[:, 1].astype(float), drawn.of_visit)) < 0.1
    assert abs(lag_correlation(drawn.visit[:, 1].astype(float), drawn.of_visit)) < 0.1


def test_follow_up_and_regular_visits_come_back():
    real = own_level(np.random.default_rng(0))
    drawn = fitted(real)
    assert drawn.domain == real.domain  # nothing derived is handed out
    shares = []
    for panel in (real, drawn):
        first, last = panel.visit[panel.starts[:-1], 0], panel.visit[panel.starts[1:] - 1, 0]
        shares.append(np.bincount(first * 6 + last, minlength=36) / panel.patients)
        assert (np.diff(panel.visit[:, 0])[np.diff(panel.of_visit) == 0] >= 0).all()
    assert 0.5 * np.abs(shares[0] - shares[1]).sum() < 0.12
    assert share_of_same(real, 0) == 0.0
    assert share_of_same(drawn, 0) < 0.2


def test_patients_without_visits_have_no_follow_up():
    domain = Domain((Column("sex", 2),), (Column("year", 3, ordinal=True),), max_visits=3, time="year")
    wider = followed(domain)
    panel = Panel.from_codes(domain, static=[[0], [1], [0]], visit=[[1], [2], [0]], counts=[2, 0, 1])
    ((_, seen),) = FollowedPatients(panel, wider).blocks(10)
    assert seen.static[:, 1:].tolist() == [[1, 1], [3, 3], [0, 0]]
    assert [rule.allowed.shape for rule in follow_up_rules(wider)] == [(4, 4), (4, 4), (4, 4)]
    assert followed(wider.__class__.__base__((Column("sex", 2),), ())) == Domain((Column("sex", 2),), ())


def test_means_of_the_visits_before():
    domain = Domain((Column("sex", 2),), (Column("x", 3),), max_visits=3)
    panel = Panel.from_codes(domain, static=[[0]] * 3, visit=[[0], [2], [1], [1]], counts=[3, 0, 1])
    assert past_mean(panel, np.array([[1.0], [3.0], [5.0], [7.0]])).ravel().tolist() == [0.0, 1.0, 2.0, 0.0]


def test_effects_are_standard_normal_and_even_among_the_heaviest():
    drawn = effects(np.arange(2000), 3, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(drawn.std(0), 1, atol=0.02)
    np.testing.assert_allclose(drawn[-100:].mean(0), 0, atol=0.12)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(100, 250), marks=pytest.mark.slow)])
def test_no_vector_moves_more_than_claimed_with_follow_up(seeds, monkeypatch):
    """The derived columns and what is asked of a patient's own past are inside the clipped contribution."""
    monkeypatch.setattr(module, "fit_chain", lambda *a, **k: None)
    monkeypatch.setattr(module, "balanced", lambda *a, **k: None)
    monkeypatch.setattr(module, "FOLLOW_ERROR", np.inf)
    reached, seen = 0.0, set()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        panel = random_panel(rng, heavy=int(rng.choice([1, 8, 60, 400])), min_visits=int(rng.integers(2)))
        seen.add(type(followed(panel.domain)) is not Domain)
        reached = max(reached, worst_ratio(PatientUnit(), panel, epsilon=60.0, seed=seed))
    assert seen == {True, False}
    assert 0.5 < reached <= 1 + 1e-9


def test_nothing_else_moves_with_follow_up(monkeypatch):
    monkeypatch.setattr(module, "FOLLOW_ERROR", np.inf)
    panel = own_level(np.random.default_rng(3), patients=40)
    meter = Meter(epsilon=3.0, delta=1e-5, noise=SeededNoise(1), record=True)
    model = PatientUnit().fit(panel, meter)
    other = Meter(epsilon=3.0, delta=1e-5, replay=[look.released for look in meter.looks])
    neighbour = PatientUnit().fit(panel.without(7), other)
    first, second = (m.sample(40, rng=np.random.default_rng(3)) for m in (model, neighbour))
    np.testing.assert_array_equal(first.visit, second.visit)
    np.testing.assert_array_equal(first.static, second.static)
