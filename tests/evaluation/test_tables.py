"""Figures about synthetic tables against hand-made cases and other libraries."""

from __future__ import annotations

import numpy as np
import pytest

from confide.errors import InputError
from confide.evaluation import tables as score


def table(a, b, who):
    return score.CodedTable({"a": np.array(a), "b": np.array(b)}, {"a": 2, "b": 3}, np.array(who))


def test_total_variation_by_hand():
    real = table([0, 0, 1, 1], [0, 1, 2, 2], [1, 1, 1, 2])
    other = table([0, 0, 0, 0], [0, 1, 2, 2], [1, 2, 3, 4])
    assert score.fidelity(real, other, ways=1).by_columns == {("a",): 0.5, ("b",): 0.0}
    pair = score.fidelity(real, other, ways=2)
    assert pair.mean == pair.worst == 0.5 and pair.worst_columns == ("a", "b")
    assert score.fidelity(real, real, ways=2).mean == 0.0
    per = score.fidelity(real, other, ways=1, per_patient=True).by_columns[("a",)]
    assert per == pytest.approx(2 / 3)  # patient 1: two thirds zeros, patient 2: none


def test_transitions_stay_within_patients():
    real = table([0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 2, 2])
    np.testing.assert_allclose(score.transitions(real, "a"), [0.5, 0.5, 0, 0])
    alone = table([0, 1, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4])
    assert score.transition_distance(real, alone, ["a"]) == {"a": 1.0}
    assert score.visit_count_distance(real, alone) == 1.0
    sticky = table([0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 2, 2])
    assert score.within_patient_agreement(sticky, "a") == pytest.approx(1.0)


def test_restricted_mean_is_the_area_under_kaplan_meier():
    statsmodels = pytest.importorskip("statsmodels.duration.survfunc")
    rng = np.random.default_rng(0)
    times, events = np.round(rng.exponential(5, 200), 1) + 0.1, rng.random(200) < 0.6
    curve = statsmodels.SurvfuncRight(times, events.astype(int))
    grid = np.linspace(0, 8, 80001)
    height = np.ones_like(grid)
    for moment, value in zip(curve.surv_times, curve.surv_prob, strict=True):
        height[grid >= moment] = value
    assert score.restricted_mean(times, events, 8.0) == pytest.approx(np.trapezoid(height, grid), abs=2e-3)


def test_training_on_a_copy_is_training_on_real():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 500)
    b = np.clip(a + rng.integers(0, 2, 500), 0, 2)
    real = table(a, b, np.arange(500))

    def learner(x, y, held_out):
        return held_out @ np.array([np.corrcoef(x[:, 0], y)[0, 1]])

    assert score.train_on_synthetic(real, real, target="a", learner=learner) > 0.75
    constant = table(np.zeros(500, int), b, np.arange(500))
    assert score.train_on_synthetic(constant, real, target="a", learner=learner) == 0.5


def test_codes_outside_are_refused():
    with pytest.raises(InputError, match="outside"):
        table([0, 2], [0, 0], [1, 1])
