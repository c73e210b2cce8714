"""Paid metrics: a contributor weighs at most one, the price is the accountant's, and the interval is honest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from confide.errors import InputError
from confide.evaluation import paid_metrics
from confide.evaluation.metrics import accuracy, auroc
from confide.mechanisms import SecureNoise, SeededNoise


class Recorder(SeededNoise):
    """Frozen noise that keeps what it was asked to noise: the pre-noise table."""

    def add_normal(self, values, *, scale):
        self.values = np.array(values)
        self.scale = scale
        return super().add_normal(values, scale=scale)


class Silent(SeededNoise):
    """No noise at all, to look at the estimator alone."""

    def add_normal(self, values, *, scale):
        return np.array(values, dtype=float)


@st.composite
def visits(draw):
    counts = draw(st.lists(st.integers(1, 6), min_size=2, max_size=8))
    owner = np.repeat(np.arange(len(counts)), counts)
    labels = draw(st.lists(st.integers(0, 1), min_size=owner.size, max_size=owner.size))
    scores = draw(st.lists(st.floats(-2, 2) | st.just(float("nan")), min_size=owner.size, max_size=owner.size))
    return np.array(labels), np.array(scores), owner, draw(st.integers(0, len(counts) - 1))


@given(visits(), st.sampled_from(["contributor", "entry"]), st.sampled_from(["mean", "max"]))
@settings(max_examples=80, deadline=None)
def test_one_contributor_moves_the_table_by_at_most_one(case, unit, aggregate):
    """Record and replay on neighbours: same noise, one person less with all their visits."""
    y, s, owner, gone = case
    tables, noises = [], []
    for keep in (np.ones(y.size, dtype=bool), owner != gone):
        noise = Recorder(1)
        paid = paid_metrics(
            y[keep], s[keep], owner[keep], noise=noise, delta=1e-5, noise_multiplier=3.0, unit=unit, aggregate=aggregate
        )
        tables.append(noise.values)
        noises.append(np.concatenate([paid.negative, paid.positive]) - noise.values)
        assert noise.scale == 3.0
    assert np.linalg.norm(tables[0] - tables[1]) <= 1 + 1e-12
    np.testing.assert_allclose(noises[0], noises[1], atol=1e-12)
    assert tables[0].sum() <= len(np.unique(owner)) + 1e-9


def test_the_price_is_the_accountants():
    y, s = np.tile([0, 1], 500), np.linspace(0, 1, 1000)
    paid = paid_metrics(y, s, np.arange(1000), noise=SeededNoise(0), delta=1e-5, epsilon=0.7)
    assert 0.693 <= paid.guarantee.epsilon(1e-5) <= 0.7
    for metric in paid.for_certificate():
        assert metric.epsilon == pytest.approx(paid.guarantee.epsilon(1e-5))
        assert metric.low <= metric.value <= metric.high
        assert metric.who == "held-out contributors"
    assert [m.metric for m in paid.for_certificate()] == ["AUROC", "accuracy", "prevalence"]


def test_without_noise_it_is_the_metric_of_rounded_scores():
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 4000)
    s = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1)
    paid = paid_metrics(y, s, np.arange(4000), noise=Silent(0), delta=1e-5, noise_multiplier=1e-3, edges=40)
    rounded = np.minimum((s * 40).astype(int), 39)
    assert paid.auroc.value == pytest.approx(float(auroc(y, rounded)))
    assert paid.accuracy.value == pytest.approx(float(accuracy(y, s)))
    assert paid.prevalence.value == pytest.approx(y.mean())
    assert paid.auroc.low <= float(auroc(y, s)) <= paid.auroc.high


def test_per_entry_everybody_counts_the_same():
    y, s, owner = np.array([1, 1, 1, 0]), np.array([0.9, 0.9, 0.9, 0.1]), np.array([0, 0, 0, 1])
    noise = Recorder(0)
    paid_metrics(y, s, owner, noise=noise, delta=1e-5, noise_multiplier=1.0, unit="entry")
    assert noise.values.sum() == pytest.approx(2.0)
    assert noise.values.max() == pytest.approx(1.0)


def test_secure_noise_works_as_well():
    y, s = np.tile([0, 1], 200), np.linspace(0, 1, 400)
    paid = paid_metrics(y, s, np.arange(400), noise=SecureNoise(), delta=1e-5, noise_multiplier=2.0)
    assert paid.auroc.low <= 0.5 <= paid.auroc.high


def coverage(people: int, noise_multiplier: float, rounds: int, *, unit: str = "contributor", level: float = 0.9):
    truth = float(ndtr(1.2 / np.sqrt(2)))
    hits, widths = {"auroc": 0, "prevalence": 0}, []
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        y = (rng.random(people) < 0.4).astype(int)
        s = ndtr(rng.normal(1.2 * y) / 1.5)
        owner = np.arange(people)
        if unit == "entry":
            owner = np.repeat(owner, 3)
        paid = paid_metrics(
            y[owner],
            s[owner],
            owner,
            noise=SeededNoise(seed),
            delta=1e-5,
            noise_multiplier=noise_multiplier,
            unit=unit,
            level=level,
        )
        hits["auroc"] += paid.auroc.low <= truth <= paid.auroc.high
        hits["prevalence"] += paid.prevalence.low <= 0.4 <= paid.prevalence.high
        widths.append(paid.auroc.high - paid.auroc.low)
    return {k: v / rounds for k, v in hits.items()}, float(np.mean(widths))


@pytest.mark.parametrize(("people", "noise_multiplier"), [(150, 1.0), (150, 6.0), (1500, 6.0), (60, 12.0)])
def test_the_interval_covers_the_truth_at_least_as_often_as_it_says(people, noise_multiplier):
    found, _ = coverage(people, noise_multiplier, 150)
    # 0.9 minus three standard errors of 150 rounds
    assert found["auroc"] >= 0.826
    assert found["prevalence"] >= 0.826


def test_the_interval_is_not_idle():
    """Coverage alone could be had with [0, 1]: with many people and little noise it must be short."""
    found, width = coverage(4000, 2.0, 40)
    assert found["auroc"] >= 0.75
    assert width < 0.12


def test_where_noise_rules_it_says_nothing():
    y, s = np.tile([0, 1], 10), np.tile([0.2, 0.8], 10)
    empty = [
        paid_metrics(y, s, np.arange(20), noise=SeededNoise(seed), delta=1e-5, noise_multiplier=50.0)
        for seed in range(20)
    ]
    assert sum(one.auroc.value is None for one in empty) >= 18
    widths = [one.auroc.high - one.auroc.low for one in empty]
    assert np.mean(widths) > 0.8


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 1.0, "noise_multiplier": 1.0},
        {},
        {"epsilon": 1.0, "edges": [0.0, 1.0]},
        {"epsilon": 1.0, "edges": [0.0, 0.7, 0.5, 1.0]},
        {"epsilon": 1.0, "unit": "visit"},
    ],
)
def test_bad_input_is_refused(options):
    with pytest.raises(InputError):
        paid_metrics([0, 1], [0.1, 0.9], [0, 1], noise=SeededNoise(0), delta=1e-5, **options)


def test_labels_that_are_not_binary_are_refused():
    with pytest.raises(InputError):
        paid_metrics([0, 2], [0.1, 0.9], [0, 1], noise=SeededNoise(0), delta=1e-5, epsilon=1.0)
