"""Splits and intervals are about people, never about entries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import InputError
from confide.evaluation import auroc, evaluate, per_contributor, split_contributors

KEY = b"split of a test"


@given(st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=2, max_size=40), st.randoms())
@settings(max_examples=40, deadline=None)
def test_nobody_moves_when_a_person_or_the_order_changes(ids, random):
    side = dict(zip(ids, split_contributors(ids, holdout=0.4, key=KEY), strict=True))
    fewer = random.sample(ids, len(ids) - 1)
    assert dict(zip(fewer, split_contributors(fewer, holdout=0.4, key=KEY), strict=True)) == {
        one: side[one] for one in fewer
    }


def test_share_held_out_and_independence_of_repeats():
    ids = [str(i) for i in range(20_000)]
    first = split_contributors(ids, holdout=0.25, key=KEY)
    second = split_contributors(ids, holdout=0.25, key=KEY, repeat=1)
    assert abs(first.mean() - 0.25) < 0.015
    assert abs((first & second).mean() - 0.0625) < 0.01
    assert not split_contributors(ids, holdout=0.0, key=KEY).any()
    assert split_contributors(ids, holdout=1.0, key=KEY).all()


@pytest.mark.parametrize("options", [{"holdout": 1.5, "key": KEY}, {"holdout": 0.5, "key": b"x" * 65}])
def test_bad_splits_are_refused(options):
    with pytest.raises(InputError):
        split_contributors(["a"], **options)


def test_one_row_a_person():
    labels, scores = per_contributor([0, 1, 0, 0], [0.2, 0.6, 0.1, 0.3], [0, 0, 1, 1])
    assert labels.tolist() == [1, 0]
    np.testing.assert_allclose(scores, [0.4, 0.2])
    _, most = per_contributor([0, 1, 0, 0], [0.2, 0.6, 0.1, 0.3], [0, 0, 1, 1], aggregate="max")
    np.testing.assert_allclose(most, [0.6, 0.3])


def people(n: int, visits: int, rng: np.random.Generator, shift: float = 1.0):
    """n people with `visits` visits each, whose scores belong to the person more than to the visit."""
    sick = rng.integers(0, 2, n)
    own = rng.normal(shift * sick) + 0.0
    owner = np.repeat(np.arange(n), visits)
    return sick[owner], 1 / (1 + np.exp(-(own[owner] + 0.05 * rng.normal(size=owner.size)))), owner


def test_visits_of_one_person_are_not_more_people():
    """Ten visits a person: resampling entries would shorten the interval about threefold."""
    rng = np.random.default_rng(3)
    y, s, owner = people(80, 10, rng)
    right = evaluate(y, s, owner, unit="entry", rng=np.random.default_rng(0), metrics={"auroc": auroc})["auroc"]
    wrong = evaluate(y, s, np.arange(y.size), unit="entry", rng=np.random.default_rng(0), metrics={"auroc": auroc})[
        "auroc"
    ]
    assert right.value == wrong.value
    assert (right.high - right.low) > 2.2 * (wrong.high - wrong.low)
    assert right.contributors == 80
    assert right.rows == 800


def test_interval_covers_the_truth_about_as_often_as_it_says():
    from scipy.special import ndtr

    truth = float(ndtr(1.0 / np.sqrt(2)))
    hits = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        sick = rng.integers(0, 2, 150)
        score = ndtr(rng.normal(1.0 * sick))
        owner = np.repeat(np.arange(150), 3)
        one = evaluate(sick[owner], score[owner], owner, replicates=300, level=0.9, rng=rng, metrics={"auroc": auroc})[
            "auroc"
        ]
        hits += one.low <= truth <= one.high
    assert 0.80 <= hits / 120 <= 0.98  # 0.9 within three standard errors, and a little for the percentile method


def test_all_metrics_come_with_intervals_in_order():
    rng = np.random.default_rng(4)
    found = evaluate(*people(60, 4, rng), rng=rng, replicates=200)
    assert set(found) == {"auroc", "auprc", "accuracy", "mcc", "nll", "brier", "ece", "ece-adaptive"}
    for name, one in found.items():
        assert one.low <= one.high, name
        assert 0 <= one.low <= 1, name
        assert one.contributors == one.rows == 60
    assert found["auroc"].low <= found["auroc"].value <= found["auroc"].high


def test_replicates_without_one_class_are_counted():
    y, s = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3])
    one = evaluate(y, s, np.arange(4), rng=np.random.default_rng(0), replicates=400, metrics={"auroc": auroc})["auroc"]
    assert 60 < one.undefined < 200
    assert one.value == 1.0


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (([], [], []), {}),
        (([0, 1], [0.1, 0.2], [0]), {}),
        (([0, 1], [0.1, 0.2], [0, 1]), {"unit": "patient"}),
        (([0, 1], [0.1, 0.2], [0, 1]), {"level": 1.0}),
        (([0, 1], [0.1, 0.2], [0, 1]), {"aggregate": "last"}),
    ],
)
def test_bad_input_is_refused(arguments, options):
    with pytest.raises(InputError):
        evaluate(*arguments, **options)
