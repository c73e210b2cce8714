"""Numbers as people read them; bounds never look better than they are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.report import Column, Table, epsilon, interval, number, percent, plural, scientific


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1945, "1,945"),
        (0.81234, "0.812"),
        (12.345, "12.3"),
        (-0.5, "−0.500"),
        (2.5e-7, "2.5·10⁻⁷"),
        (math.inf, "∞"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.99801, "4.00"),
        (4.0, "4.00"),
        (4.0001, "4.01"),
        (20.895, "20.9"),
        (181.2, "182"),
        (0.0421, "0.0421"),
        (0, "0"),
        (math.inf, "∞ (no guarantee)"),
        (None, "–"),
    ],
)
def test_epsilon_is_rounded_up(value, text):
    assert epsilon(value) == text


@given(st.floats(1e-6, 1e4))
def test_no_epsilon_is_shown_smaller_than_it_is(value):
    shown = float(epsilon(value).replace(",", ""))
    assert shown >= value * (1 - 1e-6) - 1e-6
    assert shown <= value * 1.02 + 0.01


@given(st.floats(1e-9, 1.0))
def test_no_attack_is_shown_weaker_than_it_is(value):
    text = percent(value, up=True)
    if "·" not in text and "10" not in text[:2]:
        assert float(text.rstrip("%")) >= 100 * value * (1 - 1e-5) - 1e-7


@pytest.mark.parametrize(
    ("value", "text"), [(0.0339, "3.39%"), (1.0, "100%"), (0.95, "95%"), (0.3897, "39.0%"), (0, "0%"), (None, "–")]
)
def test_percentages(value, text):
    assert percent(value) == text


def test_words():
    assert scientific(1e-5) == "10⁻⁵"
    assert scientific(2e-6) == "2·10⁻⁶"
    assert scientific(9.999e-6) == "10⁻⁵"
    assert interval(0.7, 0.9) == "0.700 to 0.900"
    assert interval(None, 0.9) == "–"
    assert (plural(1, "entry"), plural(3, "entry"), plural(2, "step")) == ("1 entry", "3 entries", "2 steps")


def test_a_table_as_text_and_as_html():
    table = Table([Column("k"), Column("who", "left")], [["1", "<b>"], ["22", "x & y"]], "caption")
    assert table.text().splitlines() == ["caption", " k  who", "--  -----", " 1  <b>", "22  x & y"]
    assert "&lt;b&gt;" in table.html()
    assert "x &amp; y" in table.html()
    assert "<b>" not in table.html()
