from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InputError
from confide.planning import BudgetRule


@pytest.mark.parametrize(
    ("text", "k", "budget"),
    [
        ("4 if k <= 10 else 2", 10, 4.0),
        ("4 if k <= 10 else 2", 11, 2.0),
        ("epsilon", 3, 8.0),
        ("epsilon / 2 if 2 < k < 5 else epsilon", 3, 4.0),
        ("max(1, min(4, 8 / k))", 4, 2.0),
        ("1 if k == 1 or not k < 9 else -k + 12", 2, 10.0),
        ("sqrt(k) + log(1) + k // 2 + k % 2", 4, 4.0),
        (" min(k) ", 2, 2.0),
    ],
)
def test_a_rule_is_read_as_written(text: str, k: int, budget: float) -> None:
    rule = BudgetRule(text, epsilon=8.0)
    assert rule(k) == budget
    assert rule.closed()(k) == budget
    assert "epsilon" not in rule.closed().text


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "(lambda: 4)()",
        "k.real",
        "[4][0]",
        "'4'",
        "True",
        "9 ** 9 ** 9",
        "k << 4",
        "~k",
        "exp(k)",
        "min()",
        "max(k, key=4)",
        "n + 1",
        "4 if k <= 10",
        "4; 5",
        "",
        "(x := 4)",
        "{k: 4}",
        "4 if k < 5 else open('x')",
        "4 if k is 5 else 2",
        "k in (1, 2)",
        "1" + " + 1" * 200,
    ],
)
def test_anything_but_plain_arithmetic_of_k_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="budget rule"):
        BudgetRule(text, epsilon=4.0)


@pytest.mark.parametrize(
    ("text", "k"), [("5 - k", 5), ("1 / (k - 3)", 3), ("log(k - 4)", 2), ("k < 3", 1), ("1e308 * k * 10", 9)]
)
def test_a_rule_without_a_budget_names_the_k(text: str, k: int) -> None:
    with pytest.raises(InputError, match=f"k = {k}"):
        BudgetRule(text)(k)


def test_a_misspelt_name_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'epsilon'"):
        BudgetRule("epsilom / 2", epsilon=4.0)
    with pytest.raises(InputError, match="no epsilon was given"):
        BudgetRule("epsilon / 2")


@given(st.text(max_size=40))
def test_no_text_does_anything_but_a_rule_or_a_refusal(text: str) -> None:
    try:
        value = BudgetRule(text, epsilon=2.0)(3)
    except InputError:
        return
    assert value > 0
