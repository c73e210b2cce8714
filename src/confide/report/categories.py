"""Shares of named cells as rows: what a cell is stands beside its bar, so that nobody has to count ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from confide.report.format import escape, number
from confide.report.svg import COLOURS, Scale, _figure, _marker, _short, _ticks

_WIDTH, _LABEL, _RIGHT, _ROW, _BOTTOM = 440.0, 144.0, 16.0, 19.0, 40.0


@dataclass(frozen=True)
class Mark:
    """One figure for every cell.

    Attributes
    ----------
    label : str
    values : sequence of float
    kind : "bar", "dot" or "ring"
    style : int
        Index of colour and marker.
    error : float
        Half of an interval drawn around every value.
    """

    label: str
    values: Sequence[float]
    kind: str = "dot"
    style: int = 0
    error: float = 0.0


def category_chart(cells: Sequence[str], marks: Sequence[Mark], *, title: str, x_label: str, note: str = "") -> str:
    """Draw one row a cell, with a bar or a marker for every figure.

    Parameters
    ----------
    cells : sequence of str
        Names of the cells; all of them are shown.
    marks : sequence of Mark
    title, x_label, note : str
        See `confide.report.svg.plot`.
    """
    known = [v + s * m.error for m in marks for v in m.values for s in (-1, 1) if math.isfinite(v)]
    low, high = min([0.0, *known]), max([1e-9, *known])
    high += 0.04 * (high - low)
    height = 8.0 + _ROW * len(cells) + _BOTTOM
    bottom, right = height - _BOTTOM, _WIDTH - _RIGHT

    def across(value: float) -> float:
        return _LABEL + (value - low) / (high - low) * (right - _LABEL)

    parts = [_axis(low, high, across, right, bottom, height, x_label)]
    for i, cell in enumerate(cells):
        y = 8.0 + _ROW * (i + 0.5)
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(cell, 15)}</text>')
        for mark in marks:
            if i < len(mark.values) and math.isfinite(mark.values[i]):
                parts.append(_drawn(mark, cell, mark.values[i], across, y))
    legend = "".join(f'<li><i class="key">{_key(mark)}</i>{escape(mark.label)}</li>' for mark in marks if mark.label)
    return _figure("".join(parts), _WIDTH, height, title, note, legend)


def _axis(low: float, high: float, across: Scale, right: float, bottom: float, height: float, label: str) -> str:
    parts = []
    for value, text in _ticks(low, high, False):
        x = across(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{bottom:.1f}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{escape(text)}</text>')
    zero = across(0.0)
    parts.append(f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="6" y2="{bottom:.1f}" class="axis"/>')
    middle = (_LABEL + right) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{height - 6:.1f}" text-anchor="middle" class="axislabel">{_short(label, 52)}</text>'
    )
    return "".join(parts)


def _drawn(mark: Mark, cell: str, value: float, across: Scale, y: float) -> str:
    colour, x, zero = COLOURS[mark.style % len(COLOURS)], across(value), across(0.0)
    said = f"{mark.label}, {cell}: {number(value)}"
    if mark.kind == "bar":
        return (
            f'<rect x="{min(x, zero):.1f}" y="{y - 6:.1f}" width="{abs(x - zero):.1f}" height="12" fill="{colour}" '
            f'opacity=".45"><title>{escape(said)}</title></rect>'
        )
    line = ""
    if mark.error > 0:
        a, b = across(value - mark.error), across(value + mark.error)
        line = (
            f'<path d="M{a:.1f} {y:.1f}H{b:.1f}M{a:.1f} {y - 4:.1f}v8M{b:.1f} {y - 4:.1f}v8" stroke="{colour}" '
            'stroke-width="1.6" fill="none"/>'
        )
    return line + _marker(x, y, mark.style, 3.8, said)


def _key(mark: Mark) -> str:
    if mark.kind == "bar":
        inner = f'<rect x="5" y="2" width="16" height="10" fill="{COLOURS[mark.style % len(COLOURS)]}" opacity=".45"/>'
        return f'<svg viewBox="0 0 26 14" width="26" height="14" aria-hidden="true">{inner}</svg>'
    inner = _marker(13.0, 7.0, mark.style, 3.6, mark.label)
    return f'<svg viewBox="0 0 26 14" width="26" height="14" aria-hidden="true">{inner}</svg>'
