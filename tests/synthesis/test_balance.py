"""Answers that are averaged, priors that shrink, and samples that are balanced: what they promise, by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthesis_panels import dependent_panel

from confide.errors import InputError
from confide.mechanisms import SeededNoise
from confide.synthesis import Column, Meter, PatientUnit
from confide.synthesis.balance import Balanced, thin
from confide.synthesis.estimates import SEVERAL, Answer, posterior_distribution, project_to_simplex
from confide.synthesis.rules import CountLaw, uneven_weights
from confide.synthesis.study import parse_synthesis_study

sizes = st.floats(1e-3, 1.0)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.floats(0, 1))
def test_an_average_of_answers_has_the_deviation_it_says_and_is_never_worse(own, other, apart):
    rng = np.random.default_rng(0)
    truth = np.array([0.2, 0.8])
    errors = []
    for _ in range(400):
        mine = Answer(truth + own * rng.standard_normal(2), own)
        theirs = Answer(truth + apart * rng.standard_normal(2) + other * rng.standard_normal(2), other)
        both = mine.joined(theirs, apart)
        errors.append(both.noisy - truth)
    assert both.deviation <= min(own, np.hypot(other, apart)) * (1 + 1e-12)
    assert np.std(errors) == pytest.approx(both.deviation, rel=0.12)
    assert np.abs(np.mean(errors)) < 5 * both.deviation / np.sqrt(800)


@pytest.mark.parametrize("deviation", [0.02, 0.05, 0.1])
def test_shrinking_never_adds_to_the_expected_error(deviation):
    """Against the closest distribution, over distributions that were not drawn from the prior."""
    rng = np.random.default_rng(1)
    shapes = [rng.dirichlet(np.full(6, size)) for size in (0.3, 1.0, 5.0) for _ in range(40)]
    shapes += [np.exp(-0.5 * ((np.arange(6) - m) / w) ** 2) for m in (0, 2.5) for w in (0.7, 1.5, 4) for _ in range(10)]
    for ordinal in (False, True):
        column = Column("x", 6, ordinal)
        kept, shrunk = [], []
        for shape in shapes:
            p = shape / shape.sum()
            noisy = p + deviation * rng.standard_normal(6)
            kept.append(np.abs(project_to_simplex(noisy) - p).sum())
            shrunk.append(np.abs(posterior_distribution(noisy, deviation, column, priors=SEVERAL) - p).sum())
        assert np.mean(shrunk) < np.mean(kept) * 1.02


@pytest.mark.parametrize("ordinal", [False, True])
def test_a_flat_table_without_noise_stays_itself(ordinal):
    flat = np.full(5, 0.2)
    np.testing.assert_allclose(
        posterior_distribution(flat, 1e-6, Column("x", 5, ordinal), priors=SEVERAL), flat, atol=1e-5
    )


def test_shares_of_visits_are_shares_of_patients_where_all_have_as_many():
    same, other = np.array([1.0, 2.0]), np.array([0.0, 1.0])
    assert uneven_weights(CountLaw(100.0, same, other), 9.0) == 0
    assert uneven_weights(CountLaw(100.0, np.array([1.0, 9.0]), np.array([0.5, 0.5])), 9.0) > 0.1
    assert uneven_weights(CountLaw(100.0, np.array([1.0, 9.0]), np.array([0.5, 0.5])), 1.0) == 0


def fitted(epsilon=3.0, **options):
    panel = dependent_panel(np.random.default_rng(3), patients=400)
    return panel, PatientUnit(**options).fit(panel, Meter(epsilon=epsilon, delta=1e-5, noise=SeededNoise(1)))


def far(panel, from_):
    """Return the mean total variation of all two-way tables of visits, static columns included."""

    def tables(p):
        rows = np.hstack([p.static[p.of_visit], p.visit])
        cells = [c.cells for c in (*p.domain.static, *p.domain.visit)]
        for a in range(len(cells)):
            for b in range(a + 1, len(cells)):
                yield np.bincount(rows[:, a] * cells[b] + rows[:, b], minlength=cells[a] * cells[b]) / len(rows)

    return np.mean([np.abs(x - y).sum() / 2 for x, y in zip(tables(panel), tables(from_), strict=True)])


def test_thinning_says_what_is_left_and_keeps_whole_patients():
    panel = dependent_panel(np.random.default_rng(0), patients=512)
    rng = np.random.default_rng(1)
    rows, off = rng.standard_normal((512, 20)), 3 * rng.standard_normal(20)
    kept, left = thin(panel, rows, 64, off, rng)
    assert len(set(kept.tolist())) == 64
    np.testing.assert_allclose(left, off + rows[kept].sum(0))
    chance = [np.linalg.norm(off + rows[rng.permutation(512)[:64]].sum(0)) for _ in range(50)]
    assert np.linalg.norm(left) < 0.3 * np.mean(chance)


def test_a_balanced_sample_is_closer_to_its_model_than_chance():
    _, model = fitted()
    outer = model.generator
    balanced = outer if isinstance(outer, Balanced) else outer.inner
    chain = balanced.inner if outer is balanced else replace(outer, inner=balanced.inner)
    large = model.sample(3000, rng=np.random.default_rng(0))
    drawn = [model.sample(150, rng=np.random.default_rng(seed)) for seed in range(3)]
    plain = [chain.simulate(150, np.random.default_rng(seed)) for seed in range(3)]
    assert all(panel.patients == 150 for panel in drawn)
    assert np.mean([far(p, large) for p in drawn]) < 0.6 * np.mean([far(p, large) for p in plain])


def test_with_the_focus_on_visits_nothing_is_asked_about_time_between_them():
    panel, model = fitted(epsilon=8.0, focus="visit")
    assert not any(name.startswith("previous") for m in model.measurements for name in m.columns)
    assert model.sample(50, rng=np.random.default_rng(0)).patients == 50
    with pytest.raises(InputError, match="focus"):
        PatientUnit(focus="day").fit(panel, Meter(epsilon=1.0, delta=1e-5, noise=SeededNoise(1)))


def test_a_study_names_the_focus_in_one_line():
    text = """
    name = "demo"
    [patients]
    source = "patients.csv"
    contributor = "id"
    [patients.columns.sex]
    type = "categorical"
    categories = ["f", "m"]
    [privacy]
    epsilon = 1.0
    delta = 1e-5
    """
    assert parse_synthesis_study(text).synthesizer() == PatientUnit()
    chosen = parse_synthesis_study(text + '\n[method]\nfocus = "visit"\n').synthesizer()
    assert chosen == PatientUnit(focus="visit")
    with pytest.raises(InputError, match="focus"):
        parse_synthesis_study(text + '\n[method]\nfocus = "day"\n')
