"""Record and replay: remove any patient, and no pre-noise vector moves by more than it claims; nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest
from tests.synthesis.panels import random_panel

from confide.mechanisms import SeededNoise
from confide.synthesis import FlatTree, Meter, PatientUnit, Synthesizer
from confide.synthesis import patient_unit as module

METHODS: list[Synthesizer] = [
    PatientUnit(),
    PatientUnit(estimand="patient"),
    PatientUnit(structure="none"),
    FlatTree(),
    FlatTree(edges=False, cap=5.0),
    FlatTree(cap=3.0),
]


def worst_ratio(method, panel, *, epsilon, seed, scale=None):
    meter = Meter(epsilon=epsilon, delta=1e-5, noise=SeededNoise(seed), record=True)
    method.fit(panel, meter, scale=scale)
    released = [look.released for look in meter.looks]
    worst = 0.0
    for patient in (0, panel.patients // 2):
        other = Meter(epsilon=epsilon, delta=1e-5, noise=SeededNoise(seed), record=True, replay=released)
        kept = None if scale is None else np.delete(scale, patient)
        method.fit(panel.without(patient), other, scale=kept)
        assert [(a.name, a.sensitivity, a.exact.shape) for a in meter.looks] == [
            (b.name, b.sensitivity, b.exact.shape) for b in other.looks
        ]
        assert meter.parts == other.parts
        for a, b in zip(meter.looks, other.looks, strict=True):
            own = 1.0 if scale is None else scale[patient]
            worst = max(worst, float(np.linalg.norm(a.exact - b.exact)) / (a.sensitivity * own))
    return worst


@pytest.fixture
def no_fit(monkeypatch):
    """Leave out what happens after the last look at the data; `test_nothing_else` has the whole."""
    monkeypatch.setattr(module, "fit_chain", lambda *a, **k: None)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m}"[:60])
def test_no_vector_moves_more_than_claimed(method, no_fit):
    assert 0.5 < most(method, range(12)) <= 1 + 1e-9  # the claim holds and is not empty


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m}"[:60])
def test_no_vector_moves_more_than_claimed_over_many_tables(method, no_fit):
    assert 0.5 < most(method, range(100, 350)) <= 1 + 1e-9


def most(method, seeds):
    reached = 0.0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        panel = random_panel(rng, heavy=int(rng.choice([1, 8, 60, 400])))
        # a large epsilon makes the adaptive method measure everything it can
        epsilon = float(rng.choice([0.5, 3.0, 60.0]))
        reached = max(reached, worst_ratio(method, panel, epsilon=epsilon, seed=seed))
    return reached


def test_individual_budgets_bound_each_patient(no_fit):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        panel = random_panel(rng)
        scale = rng.choice([0.25, 0.5, 1.0], panel.patients)
        method = METHODS[seed % len(METHODS)]
        assert worst_ratio(method, panel, epsilon=10.0, seed=seed, scale=scale) <= 1 + 1e-9


@pytest.mark.parametrize("method", METHODS[:4], ids=lambda m: m.name)
def test_nothing_else_moves(method):
    """With the same released answers, the neighbouring data set gives the same model and the same table."""
    panel = random_panel(np.random.default_rng(5), patients=30)
    meter = Meter(epsilon=3.0, delta=1e-5, noise=SeededNoise(1), record=True)
    model = method.fit(panel, meter)
    other = Meter(epsilon=3.0, delta=1e-5, replay=[look.released for look in meter.looks])
    neighbour = method.fit(panel.without(0), other)
    first, second = (m.sample(40, rng=np.random.default_rng(3)) for m in (model, neighbour))
    for name in ("static", "visit", "counts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert model.patients == neighbour.patients
    for a, b in zip(model.measurements, neighbour.measurements, strict=True):
        np.testing.assert_array_equal(a.noisy, b.noisy)
        assert a.deviation == b.deviation
