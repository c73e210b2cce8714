"""Laws of policies: monotone, within budget, and blind to everybody else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import ALL, KEEPS_BUDGETS

from confide.errors import InputError
from confide.planning import Policy, resolve_strategy


def _policy(strategy: str, **changes: object) -> Policy:
    constants = {"max_entries": 24, "noise_multiplier": 1.0, "steps": 300, "delta": 1e-5, "reference_budget": 6.0}
    return Policy(strategy, **{**constants, **changes})  # type: ignore[arg-type]


# calibration stops within 0.2 % of a budget: budgets closer than that may get rates in either order
budgets = st.integers(6, 120).map(lambda twentieths: twentieths / 20)
own = st.tuples(st.integers(1, 24), st.floats(0.3, 6.0))


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(ALL), own, st.lists(own, max_size=3))
def test_nobody_else_moves_a_rate_a_clip_or_an_epsilon(
    strategy: str, me: tuple[int, float], others: list[tuple[int, float]]
) -> None:
    alone = _policy(strategy).assign([me[0]], [me[1]])
    among = _policy(strategy).assign([*(k for k, _ in others), me[0]], [*(b for _, b in others), me[1]])
    for field in dataclasses.fields(alone):
        assert getattr(alone, field.name)[0] == getattr(among, field.name)[-1], field.name


@pytest.mark.parametrize("strategy", ALL)
def test_larger_and_smaller_neighbours_change_nothing(strategy: str) -> None:
    alone = _policy(strategy).assign([3], [2.0])
    among = _policy(strategy).assign([24, 1, 3], [0.5, 6.0, 2.0])
    for field in dataclasses.fields(alone):
        assert getattr(alone, field.name)[0] == getattr(among, field.name)[-1], field.name


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KEEPS_BUDGETS), own)
def test_a_guarantee_is_always_within_the_budget(strategy: str, me: tuple[int, float]) -> None:
    table = _policy(strategy).assign([me[0]], [me[1]])
    assert 0 < table.epsilon[0] <= me[1]
    assert 0 < table.rates[0] <= 1 and 0 < table.clips[0] <= 1


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(ALL), st.integers(1, 23), st.integers(1, 23), budgets, budgets)
def test_more_entries_never_raise_a_rate_and_more_budget_never_lowers_it(
    strategy: str, k: int, other_k: int, budget: float, other_budget: float
) -> None:
    few, many = sorted((k, other_k))
    small, large = sorted((budget, other_budget))
    table = _policy(strategy).assign([few, many, few], [small, small, large])
    assert table.rates[0] >= table.rates[1] and table.rates[0] <= table.rates[2]
    assert table.clips[0] >= table.clips[1] and table.clips[0] <= table.clips[2]


@pytest.mark.parametrize("strategy", ["individual", "scale", "contributor", "truncate(1)"])
def test_budgets_are_used_up(strategy: str) -> None:
    table = _policy(strategy).assign([1, 5, 24], [1.5, 1.5, 1.5])
    assert (table.epsilon >= 0.99 * 1.5).all()


def test_scale_has_one_rate_and_the_reference_class_is_not_clipped_below_c() -> None:
    table = _policy("scale").assign([1, 1, 24], [6.0, 2.0, 6.0])
    assert len(set(table.rates)) == 1
    assert table.clips[0] == pytest.approx(1.0, abs=2e-3)
    assert table.clips[1] < 1


def test_the_guarantee_of_contributor_does_not_depend_on_k() -> None:
    table = _policy("contributor").assign([1, 2, 24], [2.0, 2.0, 2.0])
    assert len(set(table.rates)) == len(set(table.epsilon)) == 1


def test_truncation_leaves_short_contributors_their_own_smaller_epsilon() -> None:
    table = _policy("truncate(4)").assign([1, 2, 4, 24], [2.0] * 4)
    assert table.epsilon[0] < table.epsilon[1] < table.epsilon[2] == table.epsilon[3]
    assert table.used.tolist() == [1, 2, 4, 4]


def test_per_entry_shows_what_is_really_spent() -> None:
    table = _policy("per-entry").assign([1, 2, 24], [2.0] * 3)
    assert table.epsilon[0] <= 2.0 < 3.5 < table.epsilon[1] < table.epsilon[2]


def test_uniform_is_what_max_entries_needs() -> None:
    uniform, own_rate = _policy("uniform").assign([1, 24], [2.0] * 2), _policy("individual").assign([24], [2.0])
    assert uniform.rates[0] == uniform.rates[1] == own_rate.rates[0]
    assert uniform.epsilon[0] < 0.2 < 1.9 < uniform.epsilon[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncate(0)", "keeps no entries"),
        ("contributor(0)", "keeps no entries"),
        ("truncate()", "keeps no entries"),
        ("truncate(-1)", "no strategy"),
        ("truncate(1.5)", "no strategy"),
        ("truncate", "the number of entries"),
        ("truncate(median)", "no histogram"),
        ("indvidual", "did you mean 'individual'"),
        ("per_entri", "did you mean 'per-entry'"),
        ("zzz", "unknown strategy"),
    ],
)
def test_a_wrong_strategy_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match="strategy") as caught:
        resolve_strategy(name)
    assert message in str(caught.value)


def test_names_have_one_spelling() -> None:
    assert resolve_strategy(" Truncate( 03 ) ") == "truncate(3)"
    assert resolve_strategy("per_entry") == "per-entry"
    assert resolve_strategy("truncate(median)", median=4) == "truncate(4)"


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("nan")},
        {"steps": 0},
        {"steps": 1.5},
        {"delta": 1.0},
        {"delta": 0.0},
        {"max_entries": 0},
        {"reference_budget": -1.0},
        {"steps": True},
    ],
)
def test_constants_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        _policy("individual", **changes)
