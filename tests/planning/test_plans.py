from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import ALL, CONSTANTS, COUNTS, KEEPS_BUDGETS

from confide.errors import InputError, UnreachableError, VerificationError
from confide.planning import STAMP, Plan, plan

SMALL: dict[str, Any] = {**CONSTANTS, "strategy": "contributor"}


@pytest.mark.parametrize("strategy", ALL)
def test_a_plan_goes_through_json_unchanged(plans: dict[str, Plan], strategy: str) -> None:
    made = plans[strategy]
    back = Plan.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)))
    assert back == made
    assert back.fingerprint() == made.fingerprint()
    back.check()


def test_whole_and_floating_numbers_make_the_same_plan() -> None:
    whole = plan({1: 600}, epsilon=2, delta=1e-5, noise_multiplier=1, steps=300)
    floating = plan({1: 600.0}, epsilon=2.0, delta=1e-5, noise_multiplier=1.0, steps=300)
    assert whole.fingerprint() == floating.fingerprint()


def test_every_public_constant_is_in_the_fingerprint(plans: dict[str, Plan]) -> None:
    made = plans["individual"]
    changed = [
        dataclasses.replace(made, clip_norm=2.0),
        dataclasses.replace(made, denominator=made.denominator + 1),
        dataclasses.replace(made, relation="add/remove"),
        dataclasses.replace(made, steps=made.steps - 1),
        dataclasses.replace(made, classes=made.classes[:-1]),
    ]
    assert len({p.fingerprint() for p in [made, *changed]}) == len(changed) + 1


def _tamper(field: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(values: dict[str, Any]) -> None:
        values["classes"][-1][field] = change(values["classes"][-1][field])

    return apply


@pytest.mark.parametrize(
    "tamper",
    [
        _tamper("rate", lambda p: p * 1.05),
        _tamper("clip_norm", lambda c: 1.5),
        _tamper("epsilon", lambda e: e * 0.9),
        _tamper("entries_used", lambda m: m - 1),
        _tamper("entries", lambda k: 2 * k),
        _tamper("budget", lambda b: b / 2),
        _tamper("rate", lambda p: 1.5),
        lambda values: values.update(noise_multiplier=0.8),
        lambda values: values.update(steps=600),
        lambda values: values.update(delta=1e-7),
    ],
)
@pytest.mark.parametrize("strategy", ["individual", "scale"])
def test_a_changed_plan_is_found_out(
    plans: dict[str, Plan], strategy: str, tamper: Callable[[dict[str, Any]], None]
) -> None:
    values = json.loads(json.dumps(plans[strategy].to_dict()))
    tamper(values)
    with pytest.raises(VerificationError):
        Plan.from_dict(values).check()


@pytest.mark.parametrize("strategy", KEEPS_BUDGETS)
def test_stated_epsilons_are_those_of_the_guarantee(plans: dict[str, Plan], strategy: str) -> None:
    made = plans[strategy]
    for c in (made.classes[0], made.classes[2]):
        guarantee = made.guarantee(c)
        assert guarantee.relation == made.relation == "zero-out"
        assert guarantee.epsilon(made.delta) == pytest.approx(c.epsilon, rel=1e-6)
        assert c.epsilon <= c.budget


def test_the_denominator_is_the_expected_number_of_units(plans: dict[str, Plan]) -> None:
    for name, made in plans.items():
        units = [1 if name.startswith("contributor") else c.entries_used for c in made.classes]
        expected = sum((c.contributors or 0) * c.rate * u for c, u in zip(made.classes, units, strict=True))
        assert made.denominator == pytest.approx(expected)
    assert plan(COUNTS, denominator=12.5, **SMALL).denominator == 12.5


def test_classes_are_found_by_own_entries(plans: dict[str, Plan]) -> None:
    made = plans["individual"]
    assert made.class_of(3).entries == 3
    assert made.class_of(4).entries == 7, "between two classes the larger one is safe"
    assert made.class_of(10_000).entries == made.max_entries == 20
    for wrong in (0, -1, 1.5):
        with pytest.raises(InputError, match="entries"):
            made.class_of(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no class has a budget of 9"):
        made.class_of(3, 9.0)


def test_levels_are_classes_of_their_own() -> None:
    made = plan({(1, 2.0): 300, (1, 1.0): 100, (4, 1.0): 50}, **{**SMALL, "strategy": "individual"})
    assert made.budgets == (1.0, 2.0)
    assert [(c.entries, c.budget, c.contributors) for c in made.classes] == [
        (1, 1, 100),
        (1, 2, 300),
        (4, 1, 50),
        (4, 2, 0),
    ]
    assert made.class_of(1, 1.0).rate < made.class_of(1, 2.0).rate
    with pytest.raises(InputError, match="none was given"):
        made.class_of(1)
    made.check()
    assert Plan.from_dict(made.to_dict()) == made


def test_levels_without_joint_counts_show_no_numbers() -> None:
    made = plan(COUNTS, budgets=[1, 2], **SMALL)
    assert {c.contributors for c in made.classes} == {None}
    assert made.denominator == pytest.approx(1000 * made.class_of(1, 2.0).rate)


def test_a_rule_gives_each_k_its_budget() -> None:
    made = plan(COUNTS, budgets="epsilon if k <= 3 else epsilon / 2", **SMALL)
    assert made.rule is not None and "epsilon" not in made.rule
    assert [c.budget for c in made.classes] == [2 if c.entries <= 3 else 1 for c in made.classes]
    assert [c.entries for c in made.classes] == list(range(1, made.max_entries + 1))
    assert made.class_of(3).budget == 2 and made.class_of(5).budget == 1
    assert Plan.from_dict(made.to_dict()) == made
    rising = plan(COUNTS, budgets="1 if k <= 5 else 2", **SMALL)
    # a number of entries that the histogram does not hold has its own class: nobody's count can stop a run
    assert all(rising.class_of(k).budget == (1 if k <= 5 else 2) for k in range(1, rising.max_entries + 1))


def test_without_a_histogram_the_plan_is_a_function_of_k() -> None:
    made = plan(
        max_entries=6, max_contributors=2000, epsilon=2.0, noise_multiplier=1.0, steps=300, strategy="contributor"
    )
    assert made.histogram == "none" and made.relation == "add/remove" and made.entry_counts is None
    assert [c.entries for c in made.classes] == [1, 2, 3, 4, 5, 6]
    assert made.delta == 0.1 / 2000
    assert made.denominator == 2000 * made.class_of(1).rate
    assert all(c.contributors is None for c in made.classes)


def test_a_preview_leaves_no_counts_in_the_plan_and_stamps_it() -> None:
    made = plan(COUNTS, histogram="preview", max_contributors=5000, **SMALL)
    assert made.stamp == STAMP and made.to_dict()["stamp"] == STAMP
    assert made.entry_counts is None and all(c.contributors is None for c in made.classes)
    assert [c.entries for c in made.classes] == list(range(1, 21))
    assert plan(COUNTS, **SMALL).stamp is None


def test_a_paid_histogram_shows_its_noisy_numbers() -> None:
    made = plan({1: 600.7, 3: 20.25}, histogram="paid", max_entries=3, **SMALL)
    assert made.relation == "add/remove"
    assert [c.contributors for c in made.classes] == [600.7, 0, 20.25]
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_max_entries_bounds_what_is_used() -> None:
    made = plan(COUNTS, max_entries=5, **{**CONSTANTS, "strategy": "individual"})
    assert [(c.entries, c.contributors) for c in made.classes] == [(1, 600), (2, 200), (3, 100), (5, 100)]
    assert made.class_of(20).entries_used == 5 == made.entry_limit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"epsilon": math.inf}, "epsilon is inf"),
        ({"epsilon": None}, "epsilon is missing"),
        ({"delta": 0.0}, "delta is 0"),
        ({"delta": 1.0}, "delta is 1"),
        ({"noise_multiplier": 0.0}, "noise_multiplier is 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0"),
        ({"max_entries": 0}, "max_entries is 0"),
        ({"max_contributors": 10}, "max_contributors is 10"),
        ({"denominator": 0.0}, "denominator is 0"),
        ({"strategy": "truncate(0)"}, "keeps no entries"),
        ({"strategy": "individul"}, "did you mean 'individual'"),
        ({"histogram": "publik"}, "did you mean 'public'"),
        ({"relation": "swap"}, "relation is 'swap'"),
        ({"relation": "add/remove"}, "cannot be added or removed"),
        ({"budgets": [4.0]}, "above the price of the release"),
        ({"budgets": []}, "epsilon is missing"),
        ({"budgets": [1.0, -2.0]}, "budgets is -2"),
        ({"budgets": "4 if k"}, "not an expression"),
        ({"budgets": "3"}, "above the price of the release"),
    ],
)
def test_wrong_declarations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(COUNTS, **{**SMALL, **changes})
    assert message in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "max_entries is missing"),
        ({"max_entries": 3}, "what to divide the noisy sum by"),
        ({"max_entries": 3, "delta": None}, "delta is missing"),
        ({"max_entries": 3, "histogram": "paid"}, "a paid histogram without counts"),
        ({"max_entries": 3, "strategy": "truncate(median)"}, "no histogram"),
    ],
)
def test_without_a_histogram_other_constants_must_be_declared(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(**{**SMALL, **arguments})
    assert message in str(caught.value)


def test_counts_must_agree_with_the_declared_levels() -> None:
    with pytest.raises(InputError, match="was not declared"):
        plan({(1, 1.5): 10}, budgets=[1.0, 2.0], **SMALL)
    with pytest.raises(InputError, match="a rule and from a column"):
        plan({(1, 1.5): 10}, budgets="1", **SMALL)


def test_a_budget_that_no_plan_can_meet_names_one_that_can_be_met() -> None:
    with pytest.raises(UnreachableError) as caught:
        plan({1: 50}, epsilon=1e-2, delta=1e-9, noise_multiplier=1.0, steps=10)
    message = str(caught.value)
    assert "no plan meets a budget of 0.01" in message
    least = float(message.split("epsilon of about ")[1].split()[0])
    assert plan({1: 50}, epsilon=1.1 * least, delta=1e-9, noise_multiplier=1.0, steps=10).classes
    with pytest.raises(UnreachableError, match="no plan meets"):  # far away, and still an answer
        plan({1: 50}, epsilon=1e-9, delta=1e-5, noise_multiplier=1.0, steps=30)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.pop("steps"),
        lambda v: v.update(colour="red"),
        lambda v: v.update(format=2),
        lambda v: v.update(classes=[]),
        lambda v: v.update(classes=v["classes"] * 2),
        lambda v: v["classes"][0].pop("rate"),
        lambda v: v["classes"][0].update(entries=0),
        lambda v: v["classes"][0].update(rate="much"),
        lambda v: v.update(classes=3),
        lambda v: v.update(clip_unit="entry"),
        lambda v: v.update(histogram="secret"),
        lambda v: v.update(delta=2.0),
        lambda v: v.update(budgets=["a"]),
        lambda v: v.update(entry_counts=[[1, 2]]),
    ],
)
def test_a_damaged_file_is_refused(plans: dict[str, Plan], change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(json.dumps(plans["contributor"].to_dict()))
    change(values)
    with pytest.raises(InputError):
        Plan.from_dict(values).check()
    with pytest.raises(InputError):
        Plan.from_dict([])  # type: ignore[arg-type]


@settings(max_examples=6, deadline=None)
@given(st.dictionaries(st.integers(1, 9), st.integers(1, 500), min_size=1, max_size=3), st.integers(1, 9))
def test_who_else_is_in_the_data_moves_nobodys_class(others: dict[int, int], k: int) -> None:
    constants = {**CONSTANTS, "max_entries": 9, "strategy": "individual"}
    alone, among = plan({k: 100}, **constants).class_of(k), plan({**others, k: 100}, **constants).class_of(k)
    assert alone == among


def test_a_contributor_of_every_size_has_a_safe_class(plans: dict[str, Plan]) -> None:
    made = plans["individual"]
    for k in np.arange(1, 21):
        c = made.class_of(int(k))
        assert c.entries >= k
