"""Predicted numbers: figures against scikit-learn, people of equal weight, intervals that hold, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from confide.errors import InputError
from confide.evaluation import evaluate_numbers


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**31))
def test_figures_are_those_of_scikit_learn_with_people_of_equal_weight(people, seed):
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(people), rng.integers(1, 5, people))
    y = rng.normal(5, 3, owner.size)
    z = y + rng.normal(0, 2, owner.size)
    weight = 1 / np.bincount(owner)[owner]
    found = evaluate_numbers(y, z, owner, replicates=50)
    assert found["mean absolute error"].value == pytest.approx(mean_absolute_error(y, z, sample_weight=weight))
    want = mean_squared_error(y, z, sample_weight=weight)
    assert found["root mean squared error"].value == pytest.approx(want**0.5)
    assert found["R2"].value == pytest.approx(r2_score(y, z, sample_weight=weight), abs=1e-9)
    for one in found.values():
        assert one.contributors == people and one.rows == owner.size
        assert not one.low > one.high


def test_intervals_hold_over_people():
    """The true mean absolute error of a person's entries is 1; 100 people with equal errors inside each."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        error = np.repeat(rng.exponential(1.0, 100), 4)  # four entries say what one says
        y = rng.normal(size=400)
        e = evaluate_numbers(y, y + error, np.arange(400) // 4, replicates=200, rng=rng)["mean absolute error"]
        hits += e.low <= 1.0 <= e.high
    assert 0.89 <= hits / 200 <= 0.985


def test_one_true_value_leaves_r2_undefined():
    found = evaluate_numbers([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], ["a", "b", "c"], replicates=20)
    assert np.isnan(found["R2"].value) and found["R2"].undefined == 20
    assert found["mean absolute error"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("y", "z", "owner", "words"),
    [
        ([1.0], [1.0, 2.0], ["a"], "one and the same length"),
        ([], [], [], "at least 1"),
        ([1.0], [np.nan], ["a"], "not finite"),
    ],
)
def test_refusals(y, z, owner, words):
    with pytest.raises(InputError, match=words):
        evaluate_numbers(y, z, owner)
