"""Plots drawn by us as SVG: lines, steps, dots with intervals and bars, readable in colour, in grey and when printed.

>>> figure = plot([Series("guessing", [0, 1], [0, 1])], title="ROC", x_label="false positive rate", y_label="power")
>>> figure.startswith("<figure") and "http" not in figure.replace("http://www.w3.org/2000/svg", "")
True

References
----------
Okabe and Ito, "Color Universal Design", 2008: colours that people with any colour vision can tell apart. Every series
also has its own dash and marker. Labels stand horizontally; legends are text below the plot and wrap on a phone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from confide.report.format import escape, number, scientific

COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#A8508A", "#000000", "#8A6100")
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "12 4", "4 2 1 2 1 2")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "ring")
GREY = "#404040"

_WIDTH, _HEIGHT = 440.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 30.0, 44.0

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """One set of points.

    Attributes
    ----------
    label : str
        As the legend shows it; empty for none.
    x, y : sequence of float
        Points; a nan breaks a line.
    kind : str
        "line", "step", "dots", "bars", or "guide" (a thin grey dashed line: guessing, a budget).
    low, high : sequence of float, optional
        Ends of intervals around y.
    style : int, optional
        Index of colour, dash and marker; default the position among the series that are not guides.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Literal["line", "step", "dots", "bars", "guide"] = "line"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: int | None = None


def plot(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    x_log: bool = False,
    y_log: bool = False,
    note: str = "",
) -> str:
    """Draw series over two numeric axes.

    Parameters
    ----------
    series : sequence of Series
    title : str
        Caption, and the name of the picture for screen readers.
    x_label, y_label : str
        With units.
    x_range, y_range : (float, float), optional
        Default: the data with a margin; bars and non-negative data start at zero.
    x_log, y_log : bool
        Logarithmic axes; values that are not positive are left out.
    note : str
        A sentence under the title.

    Returns
    -------
    str
        A `<figure>` with inline SVG and a legend in text.
    """
    styled = _styled(series)
    x0, x1 = x_range or _extent([v for s in series for v in s.x], x_log, bars=False)
    tall = [v for s in series for v in (*s.y, *(s.low or ()), *(s.high or ()))]
    y0, y1 = y_range or _extent(tall, y_log, bars=any(s.kind == "bars" for s in series))
    barred = [v for s in series if s.kind == "bars" for v in s.x]
    if barred and x_range is None:
        half = 0.6 * _spacing(barred)
        reach = [v for s in series for v in s.x]
        x0, x1 = min(reach) - half, max(reach) + half
    across = _scale(x0, x1, _LEFT, _WIDTH - _RIGHT, x_log)
    up = _scale(y0, y1, _HEIGHT - _BOTTOM, _TOP, y_log)
    axes = _axes(x0, x1, y0, y1, across, up, x_log, y_log, x_label, y_label)
    # Guides lie under lines, which they would hide, and over bars, which would hide them.
    order = sorted(styled, key=lambda pair: (pair[1] >= 0) != bool(barred))
    drawn = "".join(_draw(s, style, across, up, x_log, y_log, over=bool(barred)) for s, style in order)
    return _figure(axes + drawn, _WIDTH, _HEIGHT, title, note, _legend(styled))


@dataclass(frozen=True)
class DotRow:
    """One line of a dot chart: a label, a value and the ends of its interval."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    style: int = 0


def dot_chart(
    rows: Sequence[DotRow],
    *,
    title: str,
    x_label: str,
    x_range: tuple[float, float] | None = None,
    guide: float | None = None,
    guide_label: str = "",
    note: str = "",
) -> str:
    """Draw one dot with its interval a row, labels above the lines so that long ones fit on a phone.

    Parameters
    ----------
    rows : sequence of DotRow
    title, x_label, x_range, note
        See `plot`.
    guide : float, optional
        A vertical line, for example 0.5 for guessing.
    guide_label : str
        What it means.
    """
    line = 34.0
    height = 14.0 + line * max(1, len(rows)) + _BOTTOM
    bottom = height - _BOTTOM
    left, right = 14.0, _WIDTH - 14.0
    known = [v for r in rows for v in (r.value, r.low, r.high) if v is not None and math.isfinite(v)]
    x0, x1 = x_range or _extent([*known, *([] if guide is None else [guide])], False, bars=False)
    across = _scale(x0, x1, left, right, False)
    parts = [_x_axis(x0, x1, across, False, x_label, left, right, bottom, 8.0, height)]
    if guide is not None:
        x = across(guide)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{bottom:.1f}" class="guide"/>')
    for i, row in enumerate(rows):
        y = 8.0 + line * i + 25.0
        colour = COLOURS[row.style % len(COLOURS)]
        said = f"{number(row.value)}" if row.value is not None else "no value"
        if row.low is not None and row.high is not None:
            said += f" ({number(row.low)} to {number(row.high)})"
        parts.append(f'<text x="{left}" y="{y - 9:.1f}" class="rowlabel halo">{_short(row.label, 26)}</text>')
        parts.append(f'<text x="{right}" y="{y - 9:.1f}" text-anchor="end" class="halo">{escape(said)}</text>')
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        if row.low is not None and row.high is not None and math.isfinite(row.low) and math.isfinite(row.high):
            a, b = _clamp(across(row.low), left, right), _clamp(across(row.high), left, right)
            parts.append(
                f'<path d="M{a:.1f} {y:.1f}H{b:.1f}M{a:.1f} {y - 4:.1f}v8M{b:.1f} {y - 4:.1f}v8" stroke="{colour}" '
                'stroke-width="2" fill="none"/>'
            )
        if row.value is not None and math.isfinite(row.value):
            parts.append(_marker(_clamp(across(row.value), left, right), y, row.style, 4.6, row.label + ": " + said))
    legend = f'<li><i class="key">{_key_guide()}</i>{escape(guide_label)}</li>' if guide is not None else ""
    return _figure("".join(parts), _WIDTH, height, title, note, legend)


def _styled(series: Sequence[Series]) -> list[tuple[Series, int]]:
    styled, position = [], 0
    for one in series:
        if one.kind == "guide":
            styled.append((one, -1))
        else:
            styled.append((one, one.style if one.style is not None else position))
            position += 1
    return styled


def _draw(s: Series, style: int, across: Scale, up: Scale, x_log: bool, y_log: bool, *, over: bool) -> str:
    colour = COLOURS[style % len(COLOURS)] if style >= 0 else GREY
    points = [
        (across(x), up(y)) if _drawable(x, x_log) and _drawable(y, y_log) else None
        for x, y in zip(s.x, s.y, strict=True)
    ]
    parts = []
    if s.kind == "bars":
        inside = [p for p in points if p is not None]
        width = max(1.0, 0.8 * _spacing([p[0] for p in inside])) if len(inside) > 1 else 24.0
        floor = _HEIGHT - _BOTTOM
        for p, x, y in zip(points, s.x, s.y, strict=True):
            if p is not None:
                parts.append(
                    f'<rect x="{p[0] - width / 2:.1f}" y="{p[1]:.1f}" width="{width:.1f}" '
                    f'height="{max(0.0, floor - p[1]):.1f}" fill="{colour}"><title>'
                    f"{escape(number(x))}: {escape(number(y))}</title></rect>"
                )
    if s.low is not None and s.high is not None:
        for p, low, high in zip(points, s.low, s.high, strict=True):
            if p is not None and _drawable(low, y_log) and _drawable(high, y_log):
                a, b = _inside(up(low)), _inside(up(high))
                parts.append(
                    f'<path d="M{p[0]:.1f} {a:.1f}V{b:.1f}M{p[0] - 3:.1f} {a:.1f}h6M{p[0] - 3:.1f} {b:.1f}h6" '
                    f'stroke="{colour}" stroke-width="1.6" fill="none"/>'
                )
    if s.kind in ("line", "step", "guide"):
        dash = "5 4" if style < 0 else DASHES[style % len(DASHES)]
        path = _path(points, stepped=s.kind == "step")
        if style < 0 and over:
            parts.append(f'<path d="{path}" fill="none" stroke="#fff" stroke-width="3.4" opacity=".75"/>')
        parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{1.5 if style < 0 else 2.2}" '
            f'stroke-linejoin="round"{f" stroke-dasharray={chr(34)}{dash}{chr(34)}" if dash else ""}/>'
        )
    # A line of few points shows them; a dense one would become a caterpillar.
    if s.kind == "dots" or (s.kind in ("line", "step") and len(points) <= 24):
        for p, x, y in zip(points, s.x, s.y, strict=True):
            if p is not None and -4 <= p[1] <= _HEIGHT:
                said = f"{s.label}: {number(x)}, {number(y)}" if s.label else f"{number(x)}, {number(y)}"
                parts.append(_marker(p[0], p[1], style, 4.2 if s.kind == "dots" else 3.4, said))
    return "".join(parts)


def _path(points: Sequence[tuple[float, float] | None], *, stepped: bool) -> str:
    out, down = [], False
    for p in points:
        if p is None:
            down = False
            continue
        x, y = p[0], _inside(p[1])
        if not down:
            out.append(f"M{x:.1f} {y:.1f}")
        else:
            out.append(f"H{x:.1f}V{y:.1f}" if stepped else f"L{x:.1f} {y:.1f}")
        down = True
    return "".join(out)


def _inside(y: float) -> float:
    return _clamp(y, _TOP - 4.0, _HEIGHT - _BOTTOM + 4.0)


def _clamp(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))


def _marker(x: float, y: float, style: int, r: float, title: str) -> str:
    colour = COLOURS[style % len(COLOURS)] if style >= 0 else GREY
    shape = MARKERS[style % len(MARKERS)] if style >= 0 else "circle"
    label = f"<title>{escape(title)}</title>"
    if shape in ("circle", "ring"):
        fill = colour if shape == "circle" else "#fff"
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{fill}" stroke="{colour}">{label}</circle>'
    path = {
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        "triangle": f"M{x:.1f} {y - 1.2 * r:.1f}l{1.15 * r:.2f} {2 * r:.2f}h{-2.3 * r:.2f}z",
        "diamond": f"M{x:.1f} {y - 1.3 * r:.1f}l{1.2 * r:.2f} {1.3 * r:.2f}l{-1.2 * r:.2f} {1.3 * r:.2f}"
        f"l{-1.2 * r:.2f} {-1.3 * r:.2f}z",
        "cross": f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
    }[shape]
    paint = f'fill="none" stroke="{colour}" stroke-width="2"' if shape == "cross" else f'fill="{colour}"'
    return f'<path d="{path}" {paint}>{label}</path>'


def _axes(
    x0: float,
    x1: float,
    y0: float,
    y1: float,
    across: Scale,
    up: Scale,
    x_log: bool,
    y_log: bool,
    x_label: str,
    y_label: str,
) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [_x_axis(x0, x1, across, x_log, x_label, _LEFT, right, bottom, _TOP, _HEIGHT)]
    for value, label in _ticks(y0, y1, y_log):
        y = up(value)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    parts.append(f'<line x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{bottom}" class="axis"/>')
    parts.append(f'<text x="2" y="14" class="axislabel">{_short(y_label, 52)}</text>')
    return "".join(parts)


def _x_axis(
    x0: float,
    x1: float,
    across: Scale,
    log: bool,
    label: str,
    left: float,
    right: float,
    bottom: float,
    top: float,
    height: float,
) -> str:
    parts = []
    for value, text in _ticks(x0, x1, log):
        x = across(value)
        anchor = "start" if x < left + 6 and left < 20 else "end" if x > right - 8 else "middle"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="{anchor}">{escape(text)}</text>')
    parts.append(f'<line x1="{left}" x2="{right}" y1="{bottom:.1f}" y2="{bottom:.1f}" class="axis"/>')
    middle = (left + right) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{height - 8:.1f}" text-anchor="middle" class="axislabel">{_short(label, 52)}</text>'
    )
    return "".join(parts)


def _legend(styled: Sequence[tuple[Series, int]]) -> str:
    items = []
    for s, style in styled:
        if not s.label:
            continue
        items.append(f'<li><i class="key">{_key(s, style)}</i>{escape(s.label)}</li>')
    return "".join(items)


def _key(s: Series, style: int) -> str:
    if style < 0:
        return _key_guide()
    colour = COLOURS[style % len(COLOURS)]
    if s.kind == "bars":
        inner = f'<rect x="7" y="2" width="12" height="10" fill="{colour}"/>'
    else:
        inner = _marker(13.0, 7.0, style, 3.6, s.label) if s.kind == "dots" or len(s.x) <= 24 else ""
        if s.kind != "dots":
            dash = DASHES[style % len(DASHES)]
            dashed = f' stroke-dasharray="{dash}"' if dash else ""
            inner = f'<path d="M0 7H26" stroke="{colour}" stroke-width="2.2"{dashed}/>' + inner
    return f'<svg viewBox="0 0 26 14" width="26" height="14" aria-hidden="true">{inner}</svg>'


def _key_guide() -> str:
    return (
        f'<svg viewBox="0 0 26 14" width="26" height="14" aria-hidden="true"><path d="M0 7H26" stroke="{GREY}" '
        'stroke-width="1.3" stroke-dasharray="5 4"/></svg>'
    )


def _figure(inner: str, width: float, height: float, title: str, note: str, legend: str) -> str:
    said = f"<small>{escape(note)}</small>" if note else ""
    keys = f'<ul class="legend">{legend}</ul>' if legend else ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{said}</figcaption>"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}">{inner}</svg>{keys}</figure>'
    )


def _short(text: str, most: int) -> str:
    """Return escaped text that fits a picture; the whole of it when pointed at."""
    if len(text) <= most:
        return escape(text)
    return f"{escape(text[: most - 1].rstrip())}…<title>{escape(text)}</title>"


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _scale(low: float, high: float, start: float, end: float, log: bool) -> Scale:
    if log:
        a, b = math.log10(low), math.log10(high)
        return lambda v: start + (end - start) * (math.log10(v) - a) / (b - a)
    return lambda v: start + (end - start) * (v - low) / (high - low)


def _extent(values: Sequence[float], log: bool, *, bars: bool) -> tuple[float, float]:
    usable = [v for v in values if _drawable(v, log)]
    if not usable:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(usable), max(usable)
    if log:
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        return (low / 10.0, high * 10.0) if low == high else (low, high)
    if bars or (low >= 0 and low < 0.5 * high):
        low = min(0.0, low)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    pad = 0.05 * (high - low)
    return (low if low == 0.0 else low - pad), high + pad


def _spacing(values: Sequence[float]) -> float:
    distinct = sorted(set(values))
    gaps = [b - a for a, b in itertools.pairwise(distinct)]
    return min(gaps) if gaps else 1.0


def _ticks(low: float, high: float, log: bool, wanted: int = 5) -> list[tuple[float, str]]:
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        if last - first < 2:  # few powers of ten: their doubles and fives as well
            fine = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)]
            return [
                (v, f"{v:,g}" if 1e-3 < v < 1e4 else scientific(v)) for v in fine if low * 0.999 <= v <= high * 1.001
            ]
        stride = max(1, math.ceil((last - first + 1) / 6))
        return [
            (10.0**e, scientific(10.0**e) if not -2 <= e <= 3 else f"{10.0**e:,g}")
            for e in range(first, last + 1, stride)
        ]
    raw = (high - low) / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * size >= raw * 0.999)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if abs(step / size - 2.5) < 1e-9 else 0))
    wide = decimals > 4 or max(abs(low), abs(high)) >= 1e5  # would not fit beside the axis

    def words(value: float) -> str:
        if not value:
            return "0"
        return scientific(value, 2) if wide else f"{value:,.{decimals}f}".replace("-", "−")

    ticks: list[tuple[float, str]] = []
    k = math.ceil(low / step - 1e-9)
    while k * step <= high + 1e-9 * step:
        ticks.append((k * step, words(k * step)))
        k += 1
    return ticks
