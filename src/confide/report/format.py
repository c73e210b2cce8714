"""Numbers and tables as people read them, for pages and for the terminal.

>>> epsilon(3.99801), epsilon(20.895), percent(0.0339), scientific(1e-5)
('4.00', '20.9', '3.39%', '10⁻⁵')

Bounds are rounded to the safe side: an epsilon or an attacker's success is never shown smaller than it is certified.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NOTHING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, thousands separated, without a trailing exponent."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    if magnitude < -4 or magnitude > 14:
        return scientific(value, digits)
    decimals = max(0, digits - 1 - magnitude)
    return f"{value:,.{decimals}f}".replace("-", "−")


def scientific(value: float, digits: int = 3) -> str:
    """Return a number as a power of ten, for example 10⁻⁵ or 2.5·10⁻⁷."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-12)
    if round(abs(value) / 10.0**exponent, digits - 1) >= 10:  # 9.99 becomes 10, not 10·10⁰
        exponent += 1
    mantissa = f"{value / 10.0**exponent:.{digits - 1}f}".rstrip("0").rstrip(".").replace("-", "−")
    power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    return power if mantissa == "1" else f"{mantissa}·{power}"


def epsilon(value: float | None) -> str:
    """Return an epsilon, rounded up: three significant digits, and two decimals below ten."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞ (no guarantee)"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(value)) if value > 0 else 0
    decimals = max(0, 2 - magnitude) if magnitude < 2 else 0
    return f"{_up(value, decimals):,.{decimals}f}"


def percent(value: float | None, digits: int = 3, *, up: bool = False) -> str:
    """Return a share as a percentage; `up` rounds upwards, for what an attacker could reach at most."""
    if value is None or math.isnan(value):
        return NOTHING
    share = 100.0 * value
    if share == 0:
        return "0%"
    magnitude = math.floor(math.log10(abs(share)))
    if magnitude < -4:
        return f"{scientific(share, 2)}%"
    decimals = max(0, digits - 1 - magnitude)
    shown = min(_up(share, decimals), 100.0) if up and value <= 1 else share
    text = f"{shown:.{decimals}f}"
    if abs(share - round(share)) < 1e-9:
        text = f"{round(share)}"
    return text.replace("-", "−") + "%"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """Return an interval as 'low to high'."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return NOTHING
    return f"{number(low, digits)} to {number(high, digits)}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return '1 entry' or '3 entries'."""
    if many is None:
        many = one[:-1] + "ies" if one.endswith("y") else one + "s"
    return f"{count:,} {one if count == 1 else many}"


def _up(value: float, decimals: int) -> float:
    """Round up, but do not let the last bit of a float make 4.00 into 4.01."""
    scale = 10.0**decimals
    return math.ceil(value * scale - 1e-7) / scale


@dataclass(frozen=True)
class Column:
    """Heading of a column and where its cells stand ('left' for words, 'right' for numbers)."""

    heading: str
    align: str = "right"


@dataclass(frozen=True)
class Table:
    """A small table of finished texts.

    Attributes
    ----------
    columns : sequence of Column
    rows : sequence of sequences of str
    caption : str
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def html(self) -> str:
        """Return the table as HTML; all texts are escaped. It scrolls sideways within itself on narrow screens."""
        head = "".join(f'<th scope="col" class="{c.align}">{escape(c.heading)}</th>' for c in self.columns)
        body = "".join(
            "<tr>"
            + "".join(f'<td class="{c.align}">{escape(cell)}</td>' for c, cell in zip(self.columns, row, strict=True))
            + "</tr>"
            for row in self.rows
        )
        # The caption stands outside what scrolls: on a phone it would be cut off with the last columns.
        caption = f'<p class="caption">{escape(self.caption)}</p>' if self.caption else ""
        label = f' aria-label="{escape(self.caption)}"' if self.caption else ""
        return (
            f'{caption}<div class="scroll" tabindex="0" role="region"{label}><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def text(self) -> str:
        """Return the table as plain text with aligned columns."""
        lines = [[c.heading for c in self.columns], *[list(row) for row in self.rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        rows = [
            "  ".join(
                cell.ljust(width) if column.align == "left" else cell.rjust(width)
                for cell, width, column in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in lines
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join(([self.caption] if self.caption else []) + [rows[0], rule, *rows[1:]])


def escape(text: object) -> str:
    """Return text that HTML shows as it is, quotes included."""
    return html.escape(str(text), quote=True)
