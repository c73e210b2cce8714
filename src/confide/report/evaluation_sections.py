"""Sections of the internal report that `confide evaluate` fills: groups, arbitrariness, deferral, budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from confide.report.figures import GroupFigure, InternalFigures, Multiplicity
from confide.report.format import Column, Table, interval, number, percent
from confide.report.page import beside, bullets, paragraph
from confide.report.svg import DotRow, Series, dot_chart, plot

_LONG = 20
# Figures of masks and of numbers: drawn by group under their own names.
_OWN = ("Dice", "HD95", "mean absolute error")
_WORDS = {
    "positive_rate_difference": "positive rate, group minus everybody else (statistical parity difference)",
    "accuracy_difference": "accuracy, group minus everybody else (some authors call it statistical parity difference)",
    "equal_opportunity_difference": "sensitivity, group minus everybody else (equal opportunity difference)",
    "auroc_difference": "AUROC, group minus everybody else",
}


def groups_section(f: InternalFigures) -> str:
    """One chart of AUROC an attribute with both models, the differences of the release, and all figures in a table."""
    if not f.groups and not f.group_notes:
        return ""
    text = paragraph(
        "Figures inside each declared group of held-out people. An interval that excludes 0 in a difference is "
        "unlikely to be chance, but many groups and figures are looked at, so some will be."
    )
    charts = []
    for attribute in dict.fromkeys(g.attribute for g in f.groups):
        mine = [g for g in f.groups if g.attribute == attribute]
        charts.append(_dots(f"AUROC by {attribute}", mine, "AUROC", guide=0.5, said="guessing"))
        own = dict.fromkeys(g.metric for g in mine if g.metric.startswith(_OWN))
        charts += [_dots(f"{metric} by {attribute}", mine, metric) for metric in own]
        for key, what in (
            ("accuracy_difference", "Accuracy"),
            ("equal_opportunity_difference", "Sensitivity"),
            ("positive_rate_difference", "Positive rate"),
        ):
            charts.append(
                _dots(f"{what} by {attribute}, minus everybody else", mine, key, guide=0.0, said="no difference")
            )
    rows = [
        [
            g.attribute,
            g.group,
            g.model,
            _WORDS.get(g.metric, g.metric),
            g.suppressed or number(_f(g.value)),
            "" if g.suppressed else interval(g.low, g.high),
            number(_f(g.contributors)),
        ]
        for g in f.groups
    ]
    names = ("attribute", "group", "model", "figure")
    columns = [*(Column(n, "left") for n in names), Column("value"), Column("interval"), Column("people")]
    table = Table(columns, rows).html() if rows else ""
    if len(rows) > _LONG:
        table = f"<details><summary>All {len(rows)} figures as a table</summary>{table}</details>"
    return text + bullets(f.group_notes) + beside([c for c in charts if c]) + table


def _dots(title: str, groups: Sequence[GroupFigure], metric: str, *, guide: float | None = None, said: str = "") -> str:
    kept = [g for g in groups if g.metric == metric and not g.suppressed]
    if not kept:
        return ""
    rows = [
        DotRow(f"{g.group} ({'private' if g.model == 'this release' else g.model})", g.value, g.low, g.high, style=s)
        for name in dict.fromkeys(g.group for g in kept)
        for g in kept
        if g.group == name
        for s in [0 if g.model == "this release" else 1]
    ]
    label = "AUROC (no unit)" if metric == "AUROC" else "difference (no unit)"
    label = metric if metric.startswith(_OWN) else label
    return dot_chart(rows, title=title, x_label=label, guide=guide, guide_label=said)


def deferral_chart(f: InternalFigures) -> str:
    """Accuracy against the share that is answered."""
    if not f.selective:
        return ""
    return plot(
        [Series(c.label, [_f(v) for v in c.x], [_f(v) for v in c.y], "line") for c in f.selective],
        title="Deferring the least certain",
        note="Further left, more cases go to a person; a useful model is then right more often on the rest.",
        x_label="share of cases that get an answer",
        y_label="share of them answered rightly",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )


def multiplicity_section(m: Multiplicity | None) -> str:
    """What depends on the noise that happened to be drawn."""
    if m is None:
        return ""
    told = (
        f"{m.admitted} of them cannot be told apart by their AUROC, of several classes their accuracy (paired "
        "bootstrap over people)."
        if m.compared
        else "all are kept, as people of one class alone left no AUROC to compare them by."
    )
    begun = f"{m.models} models were trained under the same plan with other noise; {told}"
    if m.released:
        begun = f"This release is an ensemble of {m.models} members of one run."
    text = paragraph(f"{begun} Where they contradict one another, what a person is told depends on chance.")
    first = "the first member" if m.released else "the release"
    table = Table(
        [Column("figure", "left"), Column("value"), Column("what it means", "left")],
        [
            ["ambiguity", percent(_f(m.ambiguity)), f"some model says otherwise than {first}"],
            ["discrepancy", percent(_f(m.discrepancy)), f"the model that differs most from {first}"],
            ["disagreement", percent(_f(m.disagreement)), "two models drawn at random contradict each other"],
            *(
                [
                    [
                        "Rashomon capacity",
                        f"{number(m.capacity)} bits",
                        f"mean; above {number(m.capacity_high)} for 5 in 100 (0: all probabilities alike, 1: certain "
                        "contradiction)",
                    ]
                ]
                if m.capacity is not None
                else []
            ),
            ["coverage", percent(_f(m.coverage)), "enough models agree, so that their ensemble answers"],
            ["selective accuracy", percent(_f(m.accuracy)), "of what the ensemble answers"],
            ["residual multiplicity", percent(_f(m.residual)), "two such ensembles would contradict each other"],
        ],
    ).html()
    sizes = [float(i) for i in range(1, len(m.conflict) + 1)]
    charts = [
        plot(
            [Series("share of people in conflict", sizes, [_f(v) for v in m.conflict], "line")],
            title="Conflict grows with the number of models",
            note="A figure without the number of models says nothing.",
            x_label="models compared",
            y_label="share on which they do not all agree",
            y_range=(0.0, 1.0),
        ),
        plot(
            [
                Series(
                    "share of people at most this consistent",
                    [i / 10 for i in range(1, 11)],
                    [_f(v) for v in m.consistency],
                    "step",
                )
            ],
            title="Self-consistency",
            note="1: all models agree. Near 0.5: a coin.",
            x_label="probability that two models agree on a person",
            y_label="share of people",
            x_range=(0.0, 1.0),
            y_range=(0.0, 1.0),
        ),
    ]
    if len(m.votes) > 1:
        needed = [float(m.admitted - len(m.votes) + 1 + i) for i in range(len(m.votes))]
        charts.append(
            plot(
                [
                    Series("share of people who get an answer", needed, [_f(v) for v, _ in m.votes], "line"),
                    Series("share of those answered rightly", needed, [_f(v) for _, v in m.votes], "line"),
                ],
                title="Coverage and accuracy of the ensemble",
                note=f"At the right all {m.admitted} models have to agree.",
                x_label="models that have to agree",
                y_label="share",
                x_range=(0.0, float(m.admitted)),
                y_range=(0.0, 1.0),
            )
        )
    if m.coverage_by_group:
        charts.append(
            dot_chart(
                [DotRow(name, value) for name, value in m.coverage_by_group.items()],
                title="Who gets an answer from the ensemble",
                x_label="share of the group on which enough models agree",
                x_range=(0.0, 1.0),
            )
        )
    who = paragraph("Votes and self-consistency of each person: arbitrariness.csv beside this page.") if m.each else ""
    return text + table + beside(charts) + (paragraph(m.price) if m.price else "") + who


def budgets_section(f: InternalFigures) -> str:
    """Privacy against utility: a curve over budgets beside the non-private model, and the figures one by one."""
    if not f.budgets:
        return ""
    dots = dot_chart(
        [DotRow(m.model, m.value, m.low, m.high, style=0 if m.role == "release" else 1) for m in f.budgets],
        title="Every budget with its interval",
        x_label=f"{f.budgets[0].metric} on held-out people"
        + ("" if f.budgets[0].metric.startswith("mean") else " (no unit)"),
        guide=0.5 if f.budgets[0].metric == "AUROC" else None,
        guide_label="guessing",
        note="One model a budget, so that differences smaller than the intervals mean nothing.",
    )
    return beside([chart for chart in (_curve_of_budgets(f), dots) if chart])


def _curve_of_budgets(f: InternalFigures) -> str:
    """AUROC over epsilon; nothing for a single budget."""
    bought = {}
    for m in f.budgets:
        word, _, number_of = m.model.partition(" ")
        if word == "epsilon" and m.value is not None:
            bought[float(number_of)] = m
    if len(bought) < 2:
        return ""
    at = sorted(bought)
    ends = [at[0] / 1.15, at[-1] * 1.15]
    mine = [bought[epsilon] for epsilon in at]
    series = [
        Series(
            "private", at, [_f(m.value) for m in mine], "line", [_f(m.low) for m in mine], [_f(m.high) for m in mine], 0
        )
    ]
    for m in f.budgets:
        if m.model == "non-private" and m.value is not None:
            series.append(Series("non-private", ends, [m.value, m.value], "guide"))
    known = [v for m in f.budgets for v in (_f(m.value), _f(m.low), _f(m.high)) if math.isfinite(v)]
    low, high = min(known), max(known)
    metric = f.budgets[0].metric
    room = 0.02 if high <= 1 else 0.05 * high
    return plot(
        series,
        title="Privacy against utility",
        note="To the left, more privacy; bars are 95% intervals over people.",
        x_label="epsilon (logarithmic)",
        y_label=f"{metric} on held-out people" + ("" if metric.startswith("mean") else " (no unit)"),
        x_range=(ends[0], ends[1]),
        y_range=(max(0.0, low - room), min(1.0, high + room) if high <= 1 else high + room),
        x_log=True,
    )


def slices_section(f: InternalFigures) -> str:
    """Mean weight of every slice along the three axes of a volume."""
    if not f.slices:
        return ""
    text = paragraph(
        "Mean attention over held-out volumes, times the number of slices: 1 is what every slice would have if all "
        "weighed the same. Weights may be compared within volumes of one size. They speak of slices, not of voxels, "
        "and a model that answers badly looks anywhere."
    )
    charts = []
    for axis in dict.fromkeys(c.y_label for c in f.slices):
        mine = [c for c in f.slices if c.y_label == axis]
        last = max(_f(c.x[-1]) for c in mine)
        top = max(_f(v) for c in mine for v in c.y)
        charts.append(
            plot(
                [
                    *(Series(c.label, [_f(v) for v in c.x], [_f(v) for v in c.y], "line") for c in mine),
                    Series("all slices alike", [1.0, last], [1.0, 1.0], "guide"),
                ],
                title=f"Slices along the {axis}",
                x_label="number of the slice",
                y_label="relative weight",
                y_range=(0.0, 1.1 * max(top, 1.0)),
            )
        )
    return text + beside(charts)


def _f(value: float | None) -> float:
    return float("nan") if value is None else float(value)
