"""A budget with a failure probability: read against the closed form, and taken by a ledger."""

from __future__ import annotations

import math

import numpy as np
import pytest

from confide.accounting import ApproximateBudget, Gaussian, Guarantee, Laplace, compose
from confide.ledger import Ledger


@pytest.mark.parametrize(("epsilon", "failure"), [(0.5, 1e-8), (2.0, 1e-6)])
def test_delta_is_that_of_its_two_outputs_and_the_failure(epsilon, failure):
    g = ApproximateBudget(epsilon=epsilon, failure=failure).guarantee()
    for at in (0.0, 0.3 * epsilon, 0.9 * epsilon):
        exact = failure + (1 - failure) * (math.exp(epsilon) - math.exp(at)) / (1 + math.exp(epsilon))
        low, high = g.delta_interval(at)
        assert low <= exact <= high and high - low < 1e-3
    assert g.epsilon(failure * 1.001) <= epsilon * 1.02
    assert g.epsilon(failure * 0.5) == math.inf
    assert Guarantee.from_dict(g.to_dict()).epsilon(1e-3) == g.epsilon(1e-3)


def test_failures_add_up_under_composition():
    one = ApproximateBudget(epsilon=0.2, failure=1e-7).guarantee()
    whole = compose([one, one, Laplace(noise_multiplier=5.0).guarantee()])
    assert whole.epsilon(2.01e-7) <= 0.6 * 1.02 and whole.epsilon(1.5e-7) == math.inf


def test_a_ledger_sets_the_failure_apart_or_refuses(tmp_path):
    with Ledger.create(f"sqlite:///{tmp_path}/l.sqlite", cap_epsilon=3.0, cap_delta=1e-6) as ledger:

        def admitted(mechanism):
            found = ledger.reserve(
                release="r", contributors=["ann"], class_of=np.zeros(1, dtype=np.int64),
                classes=[mechanism.guarantee()], data_set="d", exhausted="drop",
            )  # fmt: skip
            return bool(found.admitted[0])

        assert admitted(ApproximateBudget(epsilon=0.5, failure=1e-8))
        assert admitted(Gaussian(noise_multiplier=8.0))  # the balance is still open
        assert not ledger_admits_more_than_the_cap(admitted)


def ledger_admits_more_than_the_cap(admitted) -> bool:
    """A failure above the ledger's own delta can never be admitted."""
    from confide.errors import BudgetError

    try:
        return admitted(ApproximateBudget(epsilon=0.1, failure=1e-5))
    except BudgetError:
        return False
