"""Plans that pay for a hyper-parameter search."""

from __future__ import annotations

import pytest

from confide.errors import InputError, UnreachableError
from confide.planning import Plan, Search, plan, search_price

COUNTS = {1: 40, 2: 30, 5: 20, 12: 10}
CONSTANTS = {"epsilon": 3.0, "delta": 1e-5, "noise_multiplier": 4.0, "steps": 200}
GEOMETRIC = Search("negative-binomial", mean_runs=5.0, shape=1.0, score_noise_multiplier=15.0)


@pytest.mark.parametrize("strategy", ["individual", "scale", "contributor"])
def test_the_searched_guarantee_meets_the_budget_and_uses_it(strategy: str) -> None:
    alone = plan(COUNTS, strategy=strategy, **CONSTANTS)
    searched = plan(COUNTS, strategy=strategy, search=GEOMETRIC, **CONSTANTS)
    for one, other in zip(alone.classes, searched.classes, strict=True):
        whole = searched.guarantee(other)
        assert whole.epsilon(1e-5) <= 3.0
        assert other.epsilon == pytest.approx(whole.epsilon(1e-5), rel=1e-9)
        assert other.epsilon >= 0.99 * 3.0
        assert other.rate * other.clip_norm < one.rate * one.clip_norm  # the search is paid for
        # one run alone would spend much less: that is what the search costs
        assert searched.mechanism(other).guarantee(200).epsilon(1e-5) < 0.8 * 3.0
    searched.check()


def test_every_candidate_and_its_score_are_in_the_base() -> None:
    searched = plan(COUNTS, search=GEOMETRIC, **CONSTANTS)
    ((selection, times),) = searched.guarantee(searched.classes[0]).parts
    assert times == 1
    kinds = [(m.kind, n) for m, n in selection.base.parts]
    assert kinds == [("sampled-gaussian", 200), ("gaussian", 1)]


def test_a_plan_with_a_search_is_written_and_read_again() -> None:
    searched = plan(COUNTS, search=Search("poisson", mean_runs=3.0), strategy="uniform", **CONSTANTS)
    again = Plan.from_dict(searched.to_dict())
    assert again == searched
    assert again.fingerprint() == searched.fingerprint()
    assert "search" not in plan(COUNTS, **CONSTANTS).to_dict()


def test_an_altered_search_is_found() -> None:
    values = plan(COUNTS, search=GEOMETRIC, **CONSTANTS).to_dict()
    values["search"]["mean_runs"] = 50.0
    with pytest.raises(Exception, match="states epsilon"):
        Plan.from_dict(values).check()


def test_a_budget_that_the_choice_alone_spends_is_refused_with_the_least_one() -> None:
    loud = Search("negative-binomial", mean_runs=50.0, shape=1.0, score_noise_multiplier=1.0)
    with pytest.raises(UnreachableError, match="scores and the choice alone spend"):
        plan(COUNTS, search=loud, **CONSTANTS)


def test_price_beside_the_plan_without_it() -> None:
    price = search_price(GEOMETRIC, "individual", entry_counts=COUNTS, **CONSTANTS)
    assert price.noise_ratio is not None
    assert 1.1 < price.noise_ratio < 4
    assert price.to_dict()["expected_runs"] == pytest.approx(5.0)


@pytest.mark.parametrize(
    "terms", [{"law": "poison", "mean_runs": 3.0}, {"law": "poisson"}, {"law": "negative-binomial"}]
)
def test_terms_that_do_not_fit_are_refused(terms: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Search(**terms)  # type: ignore[arg-type]
