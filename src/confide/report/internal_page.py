"""`internal/report.html`: exact figures for the people who hold the data, stamped on every screen and printed page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from confide.report.evaluation_sections import (
    budgets_section,
    deferral_chart,
    groups_section,
    multiplicity_section,
    slices_section,
)
from confide.report.figures import BatchSizes, Curve, DataReport, InternalFigures, Measured, Number, Reliability
from confide.report.format import Column, Table, interval, number, plural
from confide.report.page import UNPROTECTED, Section, beside, bullets, facts, page, paragraph
from confide.report.svg import DotRow, Series, dot_chart, plot

# Figures of which a smaller one is better.
_SMALLER = ("brier", "ece", "negative", "hd95", "mean absolute", "root mean")
_POINTS = 300  # a curve of more steps is averaged in blocks: more points than pixels only hide its course


def internal_report(figures: InternalFigures | Mapping[str, Any]) -> str:
    """Return the internal report of a run.

    Parameters
    ----------
    figures : InternalFigures or mapping
        See `InternalFigures`; a mapping is validated.

    Returns
    -------
    str
        One self-contained HTML document, stamped "unprotected figures, must not leave".

    Raises
    ------
    pydantic.ValidationError
        If a mapping has unknown keys or wrong types.
    """
    f = figures if isinstance(figures, InternalFigures) else InternalFigures.model_validate(figures)
    sections = [
        Section("worth", "What the result is worth", _metrics(f)),
        Section("calibration", "Calibration", _calibration(f)),
        Section("groups", "Groups of people", groups_section(f)),
        Section("multiplicity", "What depends on chance", multiplicity_section(f.multiplicity)),
        Section("budgets", "Other budgets", budgets_section(f)),
        Section("slices", "Which slices mattered", slices_section(f)),
        Section("learning", "Learning", _learning(f)),
        Section("events", "What was counted", _events(f)),
        Section("data", "The data", _data(f.data) if f.data is not None else ""),
        Section("time", "Time", facts([(what, f"{number(s)} s") for what, s in f.timing.items()])),
        Section("notes", "Notes", bullets(f.notes)),
    ]
    opening = paragraph(
        "Everything on this page was measured on the data themselves, without noise. It helps the people who may see "
        "the data to judge the result. None of it is covered by the guarantee of the release."
    )
    if f.guarantee:
        opening += paragraph("The release itself: " + f.guarantee)
    subtitle = (
        "Internal report" + (f" of {f.release}" if f.release else "") + (f", {f.created[:10]}" if f.created else "")
    )
    return page(
        f.name,
        sections,
        subtitle=subtitle,
        opening=opening,
        stamp=UNPROTECTED[:1].upper() + UNPROTECTED[1:],
        footer="Made from figures.json in this folder.",
    )


def _metrics(f: InternalFigures) -> str:
    if not f.metrics and not f.roc:
        return ""
    text = paragraph(
        f"Measured per {f.measured_per} on people who took no part in training; intervals come from drawing whole "
        "contributors again."
    )
    names = list(dict.fromkeys(m.metric for m in f.metrics))
    charts = [_metric_chart(name, [m for m in f.metrics if m.metric == name]) for name in names]
    if f.roc:
        charts.append(
            plot(
                [
                    *(Series(c.label, *_xy(c), "step") for c in f.roc),
                    Series("guessing", [0, 1], [0, 1], "guide"),
                ],
                title="ROC on held-out people",
                x_label="false positive rate",
                y_label="true positive rate",
                x_range=(0.0, 1.0),
                y_range=(0.0, 1.0),
            )
        )
    table = Table(
        [Column("metric", "left"), Column("model", "left"), Column("value"), Column("interval"), Column("level")],
        [
            [m.metric, m.model, number(_f(m.value)), interval(m.low, m.high), f"{100 * m.level:g}%"]
            for name in names
            for m in f.metrics
            if m.metric == name
        ],
    )
    return text + beside(charts) + (table.html() if f.metrics else "")


def _metric_chart(name: str, rows: Sequence[Measured]) -> str:
    lower = name.lower()
    guessing = 0.5 if lower.startswith("auroc") else None
    good = "Smaller is better." if lower.startswith(_SMALLER) else "Larger is better."
    return dot_chart(
        [DotRow(m.model, m.value, m.low, m.high, style=0 if m.role == "release" else 1) for m in rows],
        title=f"{name[:1].upper() + name[1:]} on held-out people",
        note=good,
        x_label=name if lower.startswith(("hd95", "mean absolute", "root mean")) else f"{name} (no unit)",
        guide=guessing,
        guide_label="guessing",
    )


def _calibration(f: InternalFigures) -> str:
    models = f.calibration
    if not models:
        return ""
    text = paragraph(
        "Measured per entry, because that is what the model predicts; a person's mean score is not the probability "
        "that any of their entries is positive."
    )
    return text + beside([*_reliability(models), *filter(None, [deferral_chart(f)])])


def _reliability(models: Sequence[Reliability]) -> list[str]:
    series = []
    for m in models:
        kept = [(p, o) for p, o in zip(m.predicted, m.observed, strict=True) if p is not None and o is not None]
        kept = [(p, o) for p, o in kept if p == p and o == o]
        series.append(Series(m.model, [p for p, _ in kept], [o for _, o in kept], "line"))
    return [
        plot(
            [*series, Series("perfect calibration", [0, 1], [0, 1], "guide")],
            title="Reliability",
            note="On the diagonal, a predicted 30% happens in 30 of 100 cases. Every dot stands for as many cases.",
            x_label="mean predicted probability in a bin",
            y_label="observed share",
            x_range=(0.0, 1.0),
            y_range=(0.0, 1.0),
        ),
    ]


def _learning(f: InternalFigures) -> str:
    charts = []
    for y_label in dict.fromkeys(c.y_label for c in f.learning):
        curves = [c for c in f.learning if c.y_label == y_label]
        averaged = max(len(c.x) for c in curves) > _POINTS
        charts.append(
            plot(
                [Series(c.label, *_thinned(*_xy(c)), "line") for c in curves],
                title=y_label[:1].upper() + y_label[1:],
                note="Averaged over blocks of steps." if averaged else "",
                x_label="step",
                y_label=y_label,
            )
        )
    charts += [_batch_chart(b) for b in f.batches if b.realised]
    return beside(charts)


def _batch_chart(b: BatchSizes) -> str:
    sizes = np.asarray(b.realised)
    low, high = int(sizes.min()), int(sizes.max())
    width = max(1, -(-(high - low + 1) // 30))
    starts = np.arange(low, high + 1, width)
    counts = np.bincount((sizes - low) // width, minlength=starts.size)
    expected = _f(b.expected)
    series = [Series("realised", list(starts + (width - 1) / 2.0), [float(c) for c in counts], "bars")]
    if np.isfinite(expected):
        series.append(
            Series(f"expected: {number(expected)}", [expected, expected], [0.0, float(counts.max())], "guide")
        )
    mean, empty = float(sizes.mean()), int((sizes == 0).sum())
    return plot(
        series,
        title=f"Batch sizes: {b.unit} drawn in a step",
        note=f"Mean {number(mean)} over {plural(int(sizes.size), 'step')}; empty steps (they count): {empty:,}.",
        x_label=f"{b.unit} in the step",
        y_label="steps",
    )


def _events(f: InternalFigures) -> str:
    if not f.events:
        return ""
    return Table(
        [Column("what", "left"), Column("count"), Column("what it means", "left")],
        [[e.what, number(float(e.count)), e.meaning] for e in f.events],
    ).html()


def _data(d: DataReport) -> str:
    rows = [
        ("training", d.training_contributors, d.training_entries),
        ("held out", d.held_out_contributors, d.held_out_entries),
    ]
    text = facts(
        [
            (what, ", ".join(filter(None, [_count(people, "contributor"), _count(entries, "entry")])))
            for what, people, entries in rows
            if people is not None or entries is not None
        ]
    )
    if d.sources:
        text += Table(
            [Column("source", "left"), *map(Column, ("rows", "used", "refused", "imputed", "contributors"))],
            [
                [
                    s.source,
                    *(number(float(v)) for v in (s.rows, s.used, s.refused, s.imputed)),
                    number(_f(s.contributors)),
                ]
                for s in d.sources
            ],
            "What was read. Refused and imputed rows follow the rules in the study file.",
        ).html()
    if d.columns:
        text += Table(
            [
                Column("column", "left"),
                Column("type", "left"),
                Column("missing"),
                Column("outside"),
                Column("note", "left"),
            ],
            [[c.column, c.kind, number(float(c.missing)), number(float(c.outside)), c.note] for c in d.columns],
        ).html()
    if d.entry_counts:
        ks = sorted(d.entry_counts)
        narrow = (max(0.0, ks[0] - 2.0), ks[-1] + 2.0) if ks[-1] - ks[0] < 4 else None  # else the ticks fall between
        text += beside(
            [
                plot(
                    [Series("", [float(k) for k in ks], [float(d.entry_counts[k]) for k in ks], "bars")],
                    title="Entries per contributor",
                    x_label="entries of one contributor (k)",
                    y_label="contributors",
                    x_range=narrow,
                )
            ]
        )
    return text


def _count(value: int | None, word: str) -> str:
    return "" if value is None else plural(value, word)


def _xy(curve: Curve) -> tuple[list[float], list[float]]:
    return [_f(v) for v in curve.x], [_f(v) for v in curve.y]


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    if len(x) <= _POINTS:
        return list(x), list(y)
    blocks = np.array_split(np.arange(len(x)), _POINTS)
    xs, ys = np.asarray(x), np.asarray(y)
    means = [float(np.nanmean(ys[b])) if np.isfinite(ys[b]).any() else float("nan") for b in blocks]
    return [float(np.mean(xs[b])) for b in blocks], means


def _f(value: Number | int) -> float:
    return float("nan") if value is None else float(value)
