"""The score is the log likelihood ratio, and thresholds never see the half they are reported on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from confide.audit import Halves, split_halves, step_scores, thresholds
from confide.errors import InputError


@pytest.mark.parametrize(("entries", "rate", "clip"), [(1, 0.3, 1.0), (4, 0.1, 1.0), (3, 0.5, 0.4), (2, 1.0, 1.0)])
def test_score_equals_the_ratio_of_the_densities(entries, rate, clip):
    y = np.linspace(-6, 9, 61)
    with_ = sum(stats.binom.pmf(j, entries, rate) * stats.norm.pdf(y, j * clip, 1.7) for j in range(entries + 1))
    found = step_scores(y, noise_multiplier=1.7, rate=rate, entries=entries, clip_norm=clip)
    np.testing.assert_allclose(found, np.log(with_) - stats.norm.logpdf(y, 0, 1.7), rtol=1e-10, atol=1e-12)


def test_score_survives_observations_far_out():
    assert np.isfinite(step_scores([-1e6, 1e6], noise_multiplier=0.5, rate=1e-3, entries=50, clip_norm=1.0)).all()


def test_score_refuses_impossible_parameters():
    with pytest.raises(InputError):
        step_scores([0.0], noise_multiplier=0.0, rate=0.5, entries=1)


def test_thresholds_depend_on_the_first_half_only():
    rng = np.random.default_rng(0)
    absent, present = rng.normal(0, 1, 400), rng.normal(1, 1, 400)
    halves = split_halves(absent, present)
    changed = Halves(halves.choose_absent, halves.choose_present, halves.report_absent + 9, halves.report_present - 9)
    assert thresholds(halves) == thresholds(changed)
    assert halves.outcome(0.0).absent == 200 and halves.outcome(0.0).present == 200


def test_splitting_needs_two_of_each():
    with pytest.raises(InputError):
        split_halves([1.0], [1.0, 2.0])


def test_no_observation_is_in_both_halves_and_none_is_lost():
    halves = split_halves(np.arange(7.0), np.arange(10.0, 21.0))
    assert sorted([*halves.choose_absent, *halves.report_absent]) == list(range(7))
    assert sorted([*halves.choose_present, *halves.report_present]) == list(range(10, 21))
