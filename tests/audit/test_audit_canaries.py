"""The canary audit passes what is right, and fails each way in which the loop can be wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from confide.audit import canary_audit, run_canaries
from confide.errors import InputError, VerificationError
from confide.planning import Plan, plan

_PATH = Path(__file__).parents[2] / "benchmarks" / "audit" / "breaks.py"
_SPEC = importlib.util.spec_from_file_location("audit_breaks", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
breaks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(breaks)
BREAKS = breaks.BREAKS
CASES = [(strategy, name) for strategy, named in BREAKS.items() for name in named]


def small(strategy: str, *, entries: int, steps: int, noise: float) -> Plan:
    return plan({entries: 1000}, epsilon=5.0, delta=1e-5, noise_multiplier=noise, steps=steps, strategy=strategy)


# fast suite: seconds, and only enough observations to see large failures


def test_a_right_loop_passes_and_a_broken_one_fails():
    p = small("individual", entries=3, steps=12, noise=2.5)
    report = canary_audit(p, entries=3, canaries=1200, seed=1)
    assert not report.rejected and not report.violation.rejected and not report.inclusion.rejected
    assert report.require() is report and "does not contradict" in report.sentence
    assert 0 < report.lower_bound < report.claim <= 5.0 and report.steps == 12 and report.observations == 1200

    broken = canary_audit(p, entries=3, canaries=1200, seed=1, tamper=breaks.noise_halved)
    assert broken.violation.rejected and not broken.inclusion.rejected and "contradicts the claim" in broken.sentence
    with pytest.raises(VerificationError) as caught:
        broken.require()
    assert caught.value.exit_code == 4


def test_clipping_entries_one_by_one_fails_for_contributors():
    p = small("contributor", entries=4, steps=8, noise=2.5)
    assert not canary_audit(p, entries=4, canaries=800, seed=2).rejected
    broken = canary_audit(p, entries=4, canaries=800, seed=2, tamper=breaks.entries_clipped_one_by_one)
    assert broken.violation.rejected


def test_the_same_seed_gives_the_same_audit_and_another_seed_another():
    p = small("scale", entries=2, steps=4, noise=2.0)
    first, again, other = (canary_audit(p, canaries=100, seed=seed) for seed in (3, 3, 4))
    assert first.to_dict() == again.to_dict() != other.to_dict()


def test_observed_steps_follow_the_dominating_pair():
    # With one step and a canary that is always drawn, y is N(k, s^2) against N(0, s^2), so the score is linear in it.
    p = plan({2: 10}, epsilon=30.0, delta=1e-5, noise_multiplier=3.0, steps=1, strategy="per-entry")
    assert p.classes[0].rate == 1.0
    seen = run_canaries(p, entries=2, present=1500, absent=1500, seed=5)
    for scores, shift in ((seen.absent, 0.0), (seen.present, 2.0)):
        y = (scores * 9 + 2) / 2
        assert stats.kstest((y - shift) / 3, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(seen.absent, seen.present)[0, 1]) < 4 / np.sqrt(1500)
    assert seen.draws == seen.chances == 3000


def test_the_audit_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    run_canaries(small("individual", entries=2, steps=2, noise=2.0), entries=2, present=4, absent=4, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_consent_levels_have_audits_of_their_own():
    p = plan(
        None,
        epsilon=6.0,
        budgets=[2.0, 6.0],
        delta=1e-5,
        noise_multiplier=2.0,
        steps=4,
        max_entries=2,
        denominator=10.0,
    )
    low, high = (canary_audit(p, entries=2, canaries=60, budget=b, seed=0) for b in (2.0, 6.0))
    assert low.claim <= 2.0 < high.claim <= 6.0
    with pytest.raises(InputError):
        canary_audit(p, entries=2, canaries=60)


@pytest.mark.parametrize("wrong", [{"entries": 5}, {"entries": 0}, {"canaries": 4}])
def test_impossible_audits_are_refused(wrong):
    with pytest.raises(InputError):
        canary_audit(small("individual", entries=3, steps=4, noise=2.0), **wrong)


# slow: the figures that the documentation states, in small

SETTINGS = {
    "contributor": {"entries": 4, "noise": 3.5, "steps": 90},
    "individual": {"entries": 4, "noise": 9.0, "steps": 90},
    "scale": {"entries": 4, "noise": 3.5, "steps": 90},
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", sorted(SETTINGS))
def test_the_lower_bound_comes_close_to_the_claim_and_stays_below(strategy):
    report = canary_audit(small(strategy, **SETTINGS[strategy]), canaries=10_000, seed=20)
    assert 4.0 <= report.claim <= 6.0 and not report.rejected
    assert 0.7 <= report.ratio <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "name"), CASES)
def test_every_way_of_breaking_the_loop_is_rejected(strategy, name):
    report = canary_audit(small(strategy, **SETTINGS[strategy]), canaries=2000, seed=21, tamper=BREAKS[strategy][name])
    assert report.violation.rejected and report.violation.error == 1e-4
    assert report.inclusion.rejected == (name == "rate doubled")


@pytest.mark.slow
def test_a_true_claim_is_hardly_ever_rejected():
    p = small("individual", entries=2, steps=6, noise=2.0)
    assert not any(canary_audit(p, canaries=400, seed=seed).rejected for seed in range(20))
