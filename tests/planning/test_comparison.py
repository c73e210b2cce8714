from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import CONSTANTS, COUNTS

from confide.errors import InputError, UnreachableError
from confide.planning import NOISE_MULTIPLIERS, STAMP, Comparison, Plan, Row, compare

PEOPLE, ENTRIES = 1000, 600 + 400 + 300 + 420 + 800


def test_shares_of_entries_are_those_that_can_be_drawn(table: Comparison) -> None:
    assert {row.strategy: row.entries_used for row in table} == {
        "contributor": 1.0,
        "individual": 1.0,
        "scale": 1.0,
        "uniform": 1.0,
        "truncate(1)": PEOPLE / ENTRIES,
        "truncate(median)": PEOPLE / ENTRIES,
        "truncate(3)": (600 + 400 + 600) / ENTRIES,
        "contributor(2)": 1.0,
        "per-entry": 1.0,
    }


def test_expected_numbers_are_sums_over_people(table: Comparison) -> None:
    for row in table:
        entries = sum((c.contributors or 0) * c.rate * c.entries_used for c in row.classes)
        if row.clip_unit == "contributor":
            people = sum((c.contributors or 0) * c.rate for c in row.classes)
            signal = people
        else:
            people = sum((c.contributors or 0) * (1 - (1 - c.rate) ** c.entries_used) for c in row.classes)
            signal = sum((c.contributors or 0) * c.rate * c.entries_used * c.clip_norm for c in row.classes)
        assert row.expected_entries == row.work == pytest.approx(entries)
        assert row.expected_contributors == pytest.approx(people)
        assert row.effective_noise == pytest.approx(row.noise_multiplier / signal)


def test_fewer_gradients_than_truncate_1_are_never_sold_as_more_signal(table: Comparison) -> None:
    reference = table.row("truncate(1)")
    for row in table:
        assert row.effective_noise is not None and row.work is not None and reference.work is not None
        assert row.effective_noise >= row.noise_multiplier / row.work * (1 - 1e-12)
        if row.effective_noise < (reference.effective_noise or 0) * (1 - 1e-9):
            assert row.work > reference.work
    assert table.row("contributor").effective_noise == pytest.approx(reference.effective_noise)


def test_overprotection_counts_people_under_99_percent_of_their_budget(table: Comparison) -> None:
    assert table.row("individual").overprotected == 0
    assert table.row("scale").overprotected == 0
    assert table.row("uniform").overprotected == pytest.approx(0.96)
    assert table.row("truncate(3)").overprotected == pytest.approx(0.8)


def test_the_estimand_says_whose_weight_moves(table: Comparison) -> None:
    assert table.row("contributor").estimand.entries == (3, 20)
    assert table.row("contributor").estimand.person == (1.0, 1.0)
    assert table.row("contributor").estimand.entry == pytest.approx((1 / 3, 1 / 20))
    assert table.row("uniform").estimand.person == pytest.approx((3, 20))
    assert table.row("uniform").estimand.entry == pytest.approx((1, 1))
    assert table.row("truncate(3)").estimand.person == pytest.approx((3, 3))
    individual = table.row("individual").estimand.person[-1]
    scale = table.row("scale").estimand.person[-1]
    assert 0.9 < individual < 1.0 < scale < 1.6


def test_only_strategies_within_everybodys_budget_are_recommended(table: Comparison) -> None:
    assert not table.row("per-entry").within_budget
    assert min(table, key=lambda row: row.effective_noise or math.inf).strategy == "per-entry"
    within = [row for row in table if row.within_budget]
    assert table.recommended == min(within, key=lambda row: row.effective_noise or math.inf).strategy == "scale"


def test_ties_go_to_less_work() -> None:
    single = compare({1: 500}, **CONSTANTS)
    noises = {row.effective_noise for row in single}
    assert max(map(float, filter(None, noises))) == pytest.approx(min(map(float, filter(None, noises))), rel=5e-3)
    assert single.recommended in {row.strategy for row in single if row.within_budget}


def test_json_has_exactly_the_shape_of_the_design(table: Comparison) -> None:
    values = json.loads(json.dumps(table.to_json_dict(), allow_nan=False))
    assert set(values) == {"strategies", "recommended"}
    assert values["recommended"] == "scale"
    for name, strategy in values["strategies"].items():
        assert set(strategy) == {"entries_used", "expected_entries", "classes"}, name
        for row in strategy["classes"]:
            assert set(row) == {"entries", "contributors", "rate", "clip_norm", "epsilon"}
    assert json.loads(json.dumps(table.to_dict(), allow_nan=False))["rows"][0]["estimand"]["reference_entries"] == 1


def test_a_plan_compares_itself_with_the_others(plans: dict[str, Plan], table: Comparison) -> None:
    own = plans["truncate(3)"].compare()
    assert own.row("truncate(3)") == table.row("truncate(3)")
    assert own.recommended == table.recommended


def test_without_a_noise_multiplier_three_fixed_ones_are_shown() -> None:
    three = compare({1: 50, 2: 10}, epsilon=2.0, delta=1e-5, steps=50)
    assert three.noise_multipliers == NOISE_MULTIPLIERS == (0.7, 1.0, 2.0)
    assert len(three.rows) == 3 * 7
    assert all(three.row("individual", s).entries_used == 1 for s in NOISE_MULTIPLIERS)
    values = three.to_json_dict()
    assert list(values) == ["noise_multipliers"] and list(values["noise_multipliers"]) == ["0.7", "1.0", "2.0"]
    assert three.row("individual", 2.0).noise_multiplier == 2.0
    with pytest.raises(InputError, match="no row"):
        three.row("individual")


def test_without_a_histogram_no_numbers_no_median_no_recommendation() -> None:
    table = compare(max_entries=4, **CONSTANTS)
    assert "truncate(median)" not in {row.strategy for row in table}
    for row in table:
        assert row.entries_used is row.overprotected is row.effective_noise is row.work is None
        assert all(c.contributors is None for c in row.classes)
        assert row.estimand.entries == (4,)
    assert table.recommended is None and table.to_json_dict()["recommended"] is None
    assert any("no histogram" in note for note in table.notes)


def test_a_preview_is_stamped() -> None:
    table = compare({1: 50, 3: 10}, histogram="preview", **CONSTANTS)
    assert table.stamp == STAMP == table.to_json_dict()["stamp"]
    assert STAMP in table.notes


def test_contributor_levels_change_shares_and_guarantees() -> None:
    table = compare({(1, 2.0): 300, (1, 1.0): 100, (4, 1.0): 50}, **CONSTANTS)
    assert (table.row("individual").epsilon_min, table.row("individual").epsilon_max) == pytest.approx(
        (1.0, 2.0), rel=0.01
    )
    assert "budget" in table.to_json_dict()["strategies"]["individual"]["classes"][0]
    assert table.row("scale").classes[0].clip_norm < table.row("scale").classes[1].clip_norm <= 1


def test_a_large_delta_is_pointed_out() -> None:
    assert any("delta" in note for note in compare({1: 5000}, **{**CONSTANTS, "delta": 1e-3}).notes)


def test_hopeless_budgets_and_names_are_refused() -> None:
    with pytest.raises(UnreachableError, match="no plan meets"):
        compare({1: 50}, epsilon=1e-2, delta=1e-9, noise_multiplier=1.0, steps=10)
    with pytest.raises(InputError, match="keeps no entries"):
        compare({1: 50}, strategies=("truncate(0)",), **CONSTANTS)
    with pytest.raises(InputError, match="noise_multiplier"):
        compare({1: 50}, epsilon=2.0, delta=1e-5, noise_multiplier=0.0, steps=10)


@settings(max_examples=4, deadline=None)
@given(st.dictionaries(st.integers(1, 8), st.integers(50, 90), min_size=1, max_size=2), st.sampled_from([0.7, 4.0]))
def test_the_recommended_row_beats_every_other_that_keeps_the_budgets(counts: dict[int, int], epsilon: float) -> None:
    table = compare(counts, **{**CONSTANTS, "epsilon": epsilon, "steps": 100})
    assert table.recommended is not None
    best: Row = table.row(table.recommended)
    assert best.within_budget and best.effective_noise is not None
    for row in table:
        if row.within_budget:
            assert row.effective_noise is not None and best.effective_noise <= row.effective_noise * (1 + 1e-8)


def test_constants_of_the_fixture_are_those_of_the_table(table: Comparison) -> None:
    assert table.budgets == (CONSTANTS["epsilon"],) and sum(COUNTS.values()) == PEOPLE
