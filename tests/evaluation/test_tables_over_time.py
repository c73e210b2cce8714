"""Figures over time and of survival against independent computations, and rules for several synthetic tables."""

from __future__ import annotations

import numpy as np
import pytest

from confide.errors import InputError
from confide.evaluation import tables_inference as inference
from confide.evaluation import tables_survival as survival
from confide.evaluation import tables_time as over
from confide.evaluation import tables_utility as utility
from confide.evaluation.tables import CodedTable, restricted_mean


def test_intraclass_correlation_finds_a_known_share_of_variance():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(2_000), rng.integers(1, 8, 2_000))
    values = rng.normal(0, 2, 2_000)[owner] + rng.normal(0, 1, len(owner))
    assert over.intraclass_correlation(values, owner) == pytest.approx(0.8, abs=0.02)
    with_gaps = np.where(rng.random(len(values)) < 0.1, np.nan, values)
    assert over.intraclass_correlation(with_gaps, owner) == pytest.approx(0.8, abs=0.02)
    assert abs(over.intraclass_correlation(rng.normal(size=len(owner)), owner)) < 0.03


def test_gaps_and_lags_stay_within_a_patient():
    time, owner = np.array([0.0, 10.0, 5.0, 6.0, 6.0]), np.array([0, 0, 1, 1, 1])
    np.testing.assert_array_equal(over.gaps(time, owner), [10.0, 1.0, 0.0])
    values = np.array([1.0, 2.0, 100.0, 101.0, 102.0])
    assert over.lag_correlation(values, owner) == pytest.approx(1.0)


def test_courses_leave_out_bins_with_few_values():
    time = np.r_[np.zeros(10), np.full(3, 9.0)]
    means = over.course(time, np.r_[np.full(10, 2.0), np.full(3, 50.0)], np.array([0.0, 5.0, 10.0]))
    assert means[0] == 2.0 and np.isnan(means[1])


def test_missing_patterns_see_what_single_columns_do_not():
    owner = np.arange(4)
    together = CodedTable({"a": np.array([1, 1, 0, 0]), "b": np.array([1, 1, 0, 0])}, {"a": 2, "b": 2}, owner)
    apart = CodedTable({"a": np.array([1, 1, 0, 0]), "b": np.array([0, 0, 1, 1])}, {"a": 2, "b": 2}, owner)
    assert over.pattern_distance(together, apart, {"a": 1, "b": 1}) == 1.0


def test_kaplan_meier_agrees_with_the_restricted_mean():
    rng = np.random.default_rng(1)
    times, events = rng.exponential(10, 500), rng.random(500) < 0.7
    x, y = survival.kaplan_meier(times, events)
    keep = x <= 12
    steps = np.append(x[keep], 12.0)
    area = float((np.diff(steps) * y[keep]).sum())
    assert restricted_mean(times, events, 12.0) == pytest.approx(area)
    value, low, high = survival.restricted_mean_interval(times, events, 12.0, rng)
    assert low < value < high and value == pytest.approx(area)


def test_cox_finds_known_coefficients_and_overlap_is_one_for_the_same():
    rng = np.random.default_rng(2)
    x, z = rng.normal(size=1_500), (rng.random(1_500) < 0.5).astype(float)
    times = rng.exponential(np.exp(-0.7 * x + 0.4 * z))
    censor = rng.exponential(3, 1_500)
    found = survival.cox(np.minimum(times, censor), times <= censor, {"x": x, "z": z, "constant": np.ones(1_500)})
    assert [c.term for c in found] == ["x", "z"]
    assert found[0].low < 0.7 < found[0].high and found[1].low < -0.4 < found[1].high
    assert survival.interval_overlap(found[0], found[0]) == 1.0
    assert survival.interval_overlap(found[0], found[1]) < 0


def test_only_the_noise_aware_rule_covers_when_tables_share_one_noise():
    """Known world: a share p, n people, one Gaussian error for all M tables."""
    rng = np.random.default_rng(3)
    p, n, noise, held = 0.3, 2_000, 0.03, {"naive": 0, "aware": 0}
    for _ in range(400):
        model = rng.binomial(n, p) / n + rng.normal(0, noise)
        shares = rng.binomial(n, np.clip(model, 0, 1), 5) / n
        one = inference.combine(shares, [s * (1 - s) / n for s in shares])
        held["naive"] += inference.covers(shares[0], one.naive(), p)
        held["aware"] += inference.covers(one.value, one.noise_aware(noise), p)
    assert held["naive"] < 280 and held["aware"] > 365
    with pytest.raises(InputError):
        inference.combine([0.1], [])


def test_models_are_compared_on_the_same_people(monkeypatch):
    rng = np.random.default_rng(4)

    def table(n, strength, start=0):
        x = rng.integers(0, 3, n)
        y = (rng.random(n) < 1 / (1 + np.exp(-strength * (x - 1)))).astype(np.int64)
        return CodedTable({"x": x, "noise": rng.integers(0, 2, n), "y": y}, {"x": 3, "noise": 2, "y": 2},
                          start + np.arange(n) // 2)  # fmt: skip

    good, useless, test = table(800, 2.0), table(800, 0.0), table(600, 2.0)
    monkeypatch.setattr(utility, "LEARNERS", ("logistic regression", "boosted trees"))
    scores, gains = utility.compare(
        {"synthetic": useless, "real": good, "real + synthetic": utility.stacked(good, useless)},
        test,
        outcome="y",
        positive=[1],
        names=["x", "noise"],
        per_patient=False,
        pairs=[("synthetic", "real", "instead")],
        replicates=100,
    )
    by = {(s.learner, s.trained_on): s for s in scores}
    assert by["any", "majority: one answer for all"].value == 0.5
    assert all(by[learner, "real"].value > 0.7 for learner in utility.LEARNERS)
    assert all(g.value < 0.05 for g in gains) and all(g.low <= g.value <= g.high for g in gains)
    one_sided = CodedTable({"x": good.columns["x"], "noise": good.columns["noise"], "y": np.zeros(800, dtype=np.int64)},
                           good.cells, good.patient)  # fmt: skip
    assert utility.scores_of(one_sided, test, ["x"], "y", [1], "logistic regression") is None
