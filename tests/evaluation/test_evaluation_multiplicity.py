"""Multiplicity: closed forms against simulation and against the definitions written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import InputError
from confide.evaluation import dice, evaluate_masks, hd95
from confide.evaluation.multiplicity import (
    admitted,
    ambiguity,
    conflict_by_size,
    conflict_rate,
    coverage,
    disagreement,
    discrepancy,
    ensemble_decision,
    ensemble_report,
    rashomon_capacity,
    residual_multiplicity,
    self_consistency,
)

votes = st.integers(2, 6).flatmap(
    lambda b: st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=b, max_size=b)
)


@given(votes)
@settings(max_examples=60, deadline=None)
def test_against_the_definitions_written_out(rows):
    d = np.array(rows)
    b = len(d)
    pairs = list(combinations(range(b), 2))
    assert ambiguity(d) == np.mean([any(m[i] != d[0][i] for m in d) for i in range(5)])
    assert discrepancy(d) == max(np.mean(m != d[0]) for m in d)
    agree = np.mean([[d[i][k] == d[j][k] for i, j in pairs] for k in range(5)], axis=1)
    np.testing.assert_allclose(self_consistency(d), agree)
    assert disagreement(d) == pytest.approx(np.mean([np.mean(d[i] != d[j]) for i, j in pairs]))
    for m in range(1, b + 1):
        exact = np.mean([conflict_rate(d[list(s)]) for s in combinations(range(b), m)])
        assert conflict_by_size(d)[m - 1] == pytest.approx(exact, abs=1e-12)


def test_residual_multiplicity_of_unanimous_ensembles():
    assert residual_multiplicity(0.5, 5) == pytest.approx(0.001953125)
    assert residual_multiplicity(0.5, 1) == pytest.approx(0.5)
    q = np.linspace(0, 1, 11)
    np.testing.assert_allclose(coverage(q, 5), q**5 + (1 - q) ** 5)
    falling = [float(np.mean(residual_multiplicity(q, m))) for m in range(1, 10)]
    assert falling == sorted(falling, reverse=True)
    rng = np.random.default_rng(0)
    draws = rng.random((2, 5, 200_000)) < 0.5
    one, two = (np.where(v.all(0), 1, np.where((~v).all(0), 0, -1)) for v in draws)
    assert np.mean((one >= 0) & (two >= 0) & (one != two)) == pytest.approx(0.001953, abs=3e-4)


def test_an_ensemble_answers_where_enough_members_agree():
    d = np.array([[1, 1, 0, 0], [1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]])
    assert ensemble_decision(d).tolist() == [1, -1, 0, -1]
    assert ensemble_decision(d, share=0.6).tolist() == [1, 1, 0, 1]
    report = ensemble_report(d, [1, 0, 1, 0], groups=["f", "f", "m", "m"])
    assert report.coverage == 0.5
    assert report.accuracy == 0.5
    assert report.coverage_by_group == {"f": 0.5, "m": 0.5}
    with pytest.raises(InputError, match="no majority"):
        ensemble_decision(d, share=0.5)


def test_capacity_has_its_two_limits_and_the_binary_channel():
    same = np.tile([0.3, 0.7], (4, 3, 1))
    np.testing.assert_allclose(rashomon_capacity(same), 0.0, atol=1e-9)
    opposite = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(rashomon_capacity(opposite), 1.0, atol=1e-6)
    e = 0.11  # capacity of the binary symmetric channel: 1 - H(e)
    channel = np.array([[[1 - e, e]], [[e, 1 - e]]])
    entropy = -(e * np.log2(e) + (1 - e) * np.log2(1 - e))
    np.testing.assert_allclose(rashomon_capacity(channel), 1 - entropy, atol=1e-6)


def test_a_clearly_worse_model_is_not_admitted():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    good = y + rng.normal(0, 1.0, (3, 300))
    bad = rng.normal(0, 1.0, (1, 300))
    kept = admitted(y, np.concatenate([good, bad]), np.arange(300), replicates=200, rng=rng)
    assert kept.tolist() == [True, True, True, False]


def test_masks_are_averaged_over_people_and_intervals_draw_people_again():
    square = np.zeros((10, 10), bool)
    square[2:6, 2:6] = True
    moved, nothing = np.roll(square, 1, axis=0), np.zeros((10, 10), bool)
    # one person with three perfect masks, one with a shifted one, one whose organ was not found
    truth, found = [square] * 5, [square, square, square, moved, nothing]
    got = evaluate_masks(truth, found, ["a", "a", "a", "b", "c"], rng=np.random.default_rng(0))
    assert got["dice"].value == pytest.approx((1 + 0.75 + 0) / 3)
    assert got["hd95"].value == pytest.approx((0 + 1 + np.hypot(10, 10)) / 3)
    assert (got["dice"].contributors, got["dice"].rows) == (3, 5)
    assert got["dice"].low == 0 and got["dice"].high == 1  # three people: one alone may be drawn three times
    whole = evaluate_masks([square], [moved], ["a"], spacing=(2.0, 1.0))
    assert (whole["hd95"].value, whole["hd95"].low, whole["hd95"].high) == (2, 2, 2)
    with pytest.raises(InputError, match="the same number of each"):
        evaluate_masks(truth, found[:4], ["a"] * 5)
    with pytest.raises(InputError, match="the same shape"):
        evaluate_masks([square], [square[:5]], ["a"])


def test_dice_and_surface_distance():
    a = np.zeros((20, 20, 20), bool)
    a[5:15, 5:15, 5:15] = True
    assert dice(a, a) == 1.0
    assert hd95(a, a) == 0.0
    b = np.roll(a, 3, axis=0)
    assert dice(a, b) == pytest.approx(0.7)
    assert hd95(a, b, spacing=(2.0, 1.0, 1.0)) == 6.0
    empty = np.zeros_like(a)
    assert dice(empty, empty) == 1.0
    assert hd95(a, empty) == float("inf")
    with pytest.raises(InputError, match="shapes"):
        dice(a, a[0])


classes = st.integers(2, 5).flatmap(
    lambda b: st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=b, max_size=b)
)


@settings(max_examples=30, deadline=None)
@given(classes)
def test_several_classes_by_their_definitions(rows):
    d = np.array(rows)
    pairs = list(combinations(range(len(d)), 2))
    np.testing.assert_allclose(self_consistency(d), np.mean([d[i] == d[j] for i, j in pairs], axis=0))
    for m, found in enumerate(conflict_by_size(d), 1):
        sets = [d[list(some)] for some in combinations(range(len(d)), m)]
        assert found == pytest.approx(np.mean([(one != one[0]).any(axis=0).mean() for one in sets]), abs=1e-9)
    said = ensemble_decision(d, share=0.75)
    for column, answer in zip(d.T, said, strict=True):
        most = max((column == c).sum() for c in range(4))
        assert (answer >= 0) == (most >= np.ceil(0.75 * len(d) - 1e-9))
        assert answer < 0 or (column == answer).sum() == most


def test_two_ensembles_of_three_classes_contradict_each_other_as_often_as_simulated():
    rng = np.random.default_rng(0)
    q = np.array([0.5, 0.3, 0.2])
    votes = rng.choice(3, p=q, size=(2, 3, 200_000))
    one, two = (np.where((v == v[0]).all(0), v[0], -1) for v in votes)
    simulated = np.mean((one >= 0) & (two >= 0) & (one != two))
    members = np.repeat([0, 1, 2], [5, 3, 2])[:, None]  # ten models with these shares; then the closed form for three
    given = q**3
    assert simulated == pytest.approx(given.sum() ** 2 - (given**2).sum(), abs=1e-3)
    report = ensemble_report(members, [0])
    shares = q**10
    assert report.residual_multiplicity == pytest.approx(shares.sum() ** 2 - (shares**2).sum())
