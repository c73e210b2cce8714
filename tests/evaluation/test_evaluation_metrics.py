"""Metrics agree with scikit-learn, weights and ties included; one call does a whole bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

from confide.errors import InputError
from confide.evaluation import accuracy, auprc, auroc, brier, ece, reliability, roc_curve


@st.composite
def rows(draw):
    n = draw(st.integers(2, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    # few distinct scores: ties are the hard part
    scores = draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    weights = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    y, w = np.array(labels), np.array(weights, dtype=float)
    w[[np.argmax(y == 1), np.argmax(y == 0)]] += 1
    return y, np.array(scores) / 8, w


@given(rows())
@settings(max_examples=60, deadline=None)
def test_against_scikit_learn(case):
    y, s, w = case
    assert auroc(y, s, w) == pytest.approx(oracle.roc_auc_score(y, s, sample_weight=w))
    assert auprc(y, s, w) == pytest.approx(oracle.average_precision_score(y, s, sample_weight=w))
    assert accuracy(y, s, w) == pytest.approx(oracle.accuracy_score(y, s >= 0.5, sample_weight=w))
    assert brier(y, s, w) == pytest.approx(oracle.brier_score_loss(y, s, sample_weight=w))


@given(rows())
@settings(max_examples=30, deadline=None)
def test_a_weight_is_a_number_of_copies(case):
    y, s, w = case
    copies = np.repeat(np.arange(y.size), w.astype(int))
    for metric in (auroc, auprc, accuracy, brier, ece):
        assert metric(y, s, w) == pytest.approx(metric(y[copies], s[copies]))


def test_many_rows_of_weights_are_many_calls():
    rng = np.random.default_rng(0)
    y, s = rng.integers(0, 2, 50), rng.integers(0, 12, 50) / 11
    w = rng.integers(0, 3, (7, 50)).astype(float)
    for metric in (auroc, auprc, accuracy, brier, ece):
        together = metric(y, s, w)
        assert together.shape == (7,)
        np.testing.assert_allclose(together, [metric(y, s, one) for one in w])


@given(rows())
@settings(max_examples=50, deadline=None)
def test_reversing_scores_and_labels_leaves_auroc_as_it_is(case):
    y, s, w = case
    assert auroc(1 - y, -s, w) == pytest.approx(float(auroc(y, s, w)))
    assert auroc(y, -s, w) == pytest.approx(1 - float(auroc(y, s, w)))


def test_roc_curve_has_the_area_it_should():
    rng = np.random.default_rng(1)
    y, s = rng.integers(0, 2, 300), rng.integers(0, 40, 300) / 40
    fpr, tpr = roc_curve(y, s)
    theirs_fpr, theirs_tpr, _ = oracle.roc_curve(y, s, drop_intermediate=False)
    np.testing.assert_allclose(fpr, theirs_fpr)
    np.testing.assert_allclose(tpr, theirs_tpr)
    assert np.trapezoid(tpr, fpr) == pytest.approx(float(auroc(y, s)))


def test_reliability_and_ece_against_scikit_learn():
    rng = np.random.default_rng(2)
    s = rng.random(2000)
    y = (rng.random(2000) < s**2).astype(int)
    predicted, observed, weight = reliability(y, s, bins=10)
    theirs_observed, theirs_predicted = calibration_curve(y, s, n_bins=10, strategy="uniform")
    np.testing.assert_allclose(predicted, theirs_predicted)
    np.testing.assert_allclose(observed, theirs_observed)
    assert ece(y, s, bins=10) == pytest.approx(np.sum(weight * np.abs(observed - predicted)) / 2000)


def test_ece_is_zero_for_a_calibrated_and_large_for_a_reversed_prediction():
    s = np.repeat([0.25, 0.75], 400)
    y = np.concatenate([np.repeat([1, 0], [100, 300]), np.repeat([1, 0], [300, 100])])
    assert ece(y, s) == pytest.approx(0.0)
    assert ece(y, 1 - s) == pytest.approx(0.5)
    assert ece(y, s, spacing="adaptive") == pytest.approx(0.0)


def test_adaptive_bins_see_what_equal_ones_average_away():
    # all predictions in one equal-width bin, wrong in opposite ways at its two ends
    s = np.repeat([0.501, 0.599], 500)
    y = np.concatenate([np.ones(500), np.zeros(500)]).astype(int)
    assert ece(y, s, bins=10) < 0.06
    assert ece(y, s, bins=10, spacing="adaptive") > 0.5


def test_undefined_is_nan_not_an_error():
    one_class = np.ones(5, dtype=int)
    assert np.isnan(auroc(one_class, np.arange(5) / 5))
    assert np.isnan(auprc(np.zeros(5, dtype=int), np.arange(5) / 5))
    assert np.isnan(accuracy(one_class, np.arange(5) / 5, np.zeros(5)))


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 1, 2], [0.1, 0.2, 0.3]), ([0, 1], [0.1]), ([0, 1], [0.1, np.nan]), ([[0, 1]], [[0.1, 0.2]])],
)
def test_bad_input_is_refused(labels, scores):
    with pytest.raises(InputError):
        auroc(labels, scores)
