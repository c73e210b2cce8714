"""`internal/evaluation.html`: a synthetic table against the real one, worst cases first. Stamped as internal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from confide.report.categories import Mark, category_chart
from confide.report.figures import Number
from confide.report.format import Column, Table, interval, number, percent
from confide.report.page import UNPROTECTED, Section, beside, bullets, cards, facts, page, paragraph
from confide.report.svg import DotRow, Series, dot_chart, plot
from confide.report.table_figures import ColumnView, Distance, Pairing, SurvivalView, TableFigures, Utility

_FLOOR = "two samples of the same real patients differ by as much as the floor says: nothing below it can be expected"


def table_evaluation_report(figures: TableFigures | Mapping[str, Any]) -> str:
    """Return the internal report of an evaluation of synthetic tables.

    Parameters
    ----------
    figures : TableFigures or mapping
        A mapping is validated.

    Returns
    -------
    str
        One self-contained HTML document, stamped "unprotected figures, must not leave".
    """
    f = figures if isinstance(figures, TableFigures) else TableFigures.model_validate(figures)
    sections = [
        Section("left-out", "What could not be measured", bullets(f.left_out)),
        Section("worst", "Worst cases first", _worst(f)),
        Section("models", "Models trained on the synthetic table", "".join(_utility(u) for u in f.utility)),
        Section("fidelity", "How far tables of columns are apart", _fidelity(f.fidelity)),
        Section("columns", "Every column, the worst first", _columns(f.columns)),
        Section("time", "Over time", _time(f)),
        Section("rules", "Rules and missing values", _rules(f)),
        Section("survival", "Time to an event", _survival(f.survival) if f.survival else ""),
        Section("groups", "Subgroups, the worst first", _groups(f)),
        Section("errors", "Do the error bars hold", _inference(f)),
        Section("audit", "What an attacker reached", _audit(f)),
        Section("copies", "Not evidence: distances to the closest record", _copies(f.not_evidence)),
        Section("time-taken", "Time", facts([(what, f"{number(s)} s") for what, s in f.seconds.items()])),
    ]
    opening = paragraph(
        "Everything on this page compares with the real patients themselves, without noise. It helps the people who "
        "may see them to judge the synthetic table. None of it is covered by the guarantee of the release."
    )
    if f.guarantee:
        opening += paragraph("The release itself: " + f.guarantee)
    opening += cards(_cards(f)) + facts(
        [(name, f"{count:,} patients, {f.visits.get(name, 0):,} visits") for name, count in f.patients.items()]
    )
    return page(
        f.name,
        sections,
        subtitle=f"Evaluation of {f.release}" + (f", {f.created[:10]}" if f.created else ""),
        opening=opening,
        stamp=UNPROTECTED[:1].upper() + UNPROTECTED[1:],
        footer="Made from evaluation.json in this folder.",
    )


def _cards(f: TableFigures) -> list[tuple[str, str]]:
    found = []
    for d in f.fidelity:
        if d.ways == 2:
            floor = f"; floor {number(d.floor)}" if d.floor is not None else ""
            found.append((number(d.mean), f"mean total variation of two columns, per {d.per}{floor}"))
    for u in f.utility[:1]:
        best = {label: _best(u, label) for label in ("synthetic", "real")}
        if best["synthetic"] is not None:
            found.append(
                (
                    number(best["synthetic"]),
                    f"AUROC for {u.outcome} of the best model trained on synthetic patients; "
                    f"on real ones {number(best['real'])}",
                )
            )
    if f.violations:
        broken = sum(v.synthetic for v in f.violations)
        found.append((f"{broken:,}", "synthetic rows that break a declared rule"))
    return found


def _best(u: Utility, label: str) -> float | None:
    values = [_f(r.value) for r in u.rows if r.trained_on == label and r.value is not None]
    return max((v for v in values if math.isfinite(v)), default=None)


def _worst(f: TableFigures) -> str:
    rows: list[tuple[float, list[str]]] = []

    def add(kind: str, what: str, value: Number, floor: Number) -> None:
        if value is not None and math.isfinite(value):
            excess = value - (floor if floor is not None and math.isfinite(floor) else 0.0)
            rows.append((excess, [kind, what, number(value), number(floor), number(excess)]))

    for c in f.columns:
        add("one column", f"{c.column} (per {c.level})", c.distance, c.floor)
    for d in f.fidelity:
        if d.ways == 2 and d.per == "visit":
            for names, distance, floor in d.ten_worst[:5]:
                add("two columns", " and ".join(names), distance, floor)
    for s in f.subgroups:
        add("subgroup", f"{s.column}: {s.group} ({s.patients:,} real patients)", s.distance, s.floor)
    for p in f.longitudinal:
        add(p.what, p.of, p.distance, p.floor)
    for view in (f.counts, f.gaps):
        if view is not None:
            add("over time", view.column, view.distance, view.floor)
    rows.sort(key=lambda row: -row[0])
    if not rows:
        return ""
    return (
        paragraph(
            f"Total variation: half the sum of the differences of shares, 0 equal, 1 nothing in common; {_FLOOR}."
        )
        + Table(
            [Column("kind", "left"), Column("what", "left"), Column("distance"), Column("floor"), Column("above it")],
            [row for _, row in rows[:15]],
        ).html()
    )


def _fidelity(distances: Sequence[Distance]) -> str:
    if not distances:
        return ""
    return Table(
        [
            Column("columns at a time"),
            Column("per", "left"),
            Column("mean"),
            Column("floor"),
            Column("worst"),
            Column("worst columns", "left"),
            Column("its floor"),
            Column("tables"),
        ],
        [
            [
                str(d.ways),
                d.per,
                number(d.mean),
                number(d.floor),
                number(d.worst),
                ", ".join(d.worst_columns),
                number(d.worst_floor),
                number(d.tables),
            ]
            for d in distances
        ],
        "Total variation between real training patients and synthetic ones; floor: held-out against training ones.",
    ).html() + paragraph(
        "Per visit every visit counts the same, so patients with many visits count more; per patient everybody does."
    )


def _columns(views: Sequence[ColumnView]) -> str:
    return beside([_bars(v) for v in views])


def _bars(v: ColumnView) -> str:
    marks = [
        Mark("real", [_f(y) for y in v.real], "bar", 0),
        Mark("synthetic", [_f(y) for y in v.synthetic], "dot", 1),
    ]
    if v.held_out is not None:
        marks.append(Mark("real, held out", [_f(y) for y in v.held_out], "ring", 5))
    said = f"Distance {number(v.distance)}" + (f", floor {number(v.floor)}" if v.floor is not None else "") + "."
    return category_chart(v.cells, marks, title=v.column, note=said, x_label=f"share of {v.level}s")


def _time(f: TableFigures) -> str:
    charts = [_bars(v) for v in (f.counts, f.gaps) if v is not None]
    for name in dict.fromkeys(c.y_label for c in f.course):
        charts.append(
            plot(
                [Series(c.label, [_f(x) for x in c.x], [_f(y) for y in c.y], "line")
                 for c in f.course if c.y_label == name],
                title=f"Mean of {name} over time",
                x_label="time",
                y_label=name,
            )
        )  # fmt: skip
    return beside(charts) + _pairings(f.longitudinal, "How a patient's visits belong together.")


def _pairings(rows: Sequence[Pairing], caption: str) -> str:
    if not rows:
        return ""
    return Table(
        [
            Column("what", "left"),
            Column("of", "left"),
            *map(Column, ("real", "synthetic", "held out", "distance", "floor")),
        ],
        [
            [p.what, p.of, *(number(v) for v in (p.real, p.synthetic, p.held_out, p.distance, p.floor))]
            for p in sorted(rows, key=lambda p: p.what)
        ],
        caption,
    ).html()


def _rules(f: TableFigures) -> str:
    text = ""
    if f.violations:
        text += Table(
            [
                Column("rule", "left"),
                Column("synthetic rows against it"),
                Column("real rows"),
                Column("synthetic rows"),
            ],
            [[v.rule, number(v.synthetic), number(v.real), number(v.rows)] for v in f.violations],
            "The synthetic count has to be zero.",
        ).html()
    return text + _pairings(f.missing, "Missing values.")


def _survival(s: SurvivalView) -> str:
    chart = plot(
        [Series(c.label, [_f(x) for x in c.x], [_f(y) for y in c.y], "step") for c in s.curves],
        title=f"Share without {s.event} over {s.time} (Kaplan-Meier)",
        x_label=s.time,
        y_label="share without the event",
        y_range=(0.0, 1.0),
    )
    text = beside([chart]) + _pairings(s.restricted_mean, "Area under the curve.")
    if s.cox:
        text += Table(
            [Column("term", "left"), *map(Column, ("real", "95%", "synthetic", "95%", "overlap"))],
            [
                [
                    c.term,
                    number(c.real),
                    interval(_f(c.real_low), _f(c.real_high)),
                    number(c.synthetic),
                    interval(_f(c.synthetic_low), _f(c.synthetic_high)),
                    number(c.overlap),
                ]
                for c in sorted(s.cox, key=lambda c: _f(c.overlap) if c.overlap is not None else -9.0)
            ],
            "Log hazard ratios of a Cox model, the least overlap first (1: the same interval, below 0: apart).",
        ).html()
    return text + paragraph(s.note)


def _utility(u: Utility) -> str:
    charts = []
    for learner in dict.fromkeys(r.learner for r in u.rows if r.learner != "any"):
        rows = [
            DotRow(r.trained_on, r.value, r.low, r.high, style=1 if r.trained_on == "synthetic" else 0)
            for r in u.rows
            if r.learner == learner
        ]
        charts.append(
            dot_chart(
                rows,
                title=f"{learner[:1].upper() + learner[1:]}",
                x_label=f"AUROC for {u.outcome}, per {u.unit}",
                guide=0.5,
                guide_label="a majority model",
                note="Rows: what it was trained on.",
            )
        )
    table = Table(
        [Column("learner", "left"), Column("difference of AUROC", "left"), Column("value"), Column("95%")],
        [[d.learner, d.what, number(d.value), interval(_f(d.low), _f(d.high))] for d in u.differences],
        "On the same people; an interval that holds 0 shows no difference.",
    )
    words = f"Outcome {u.outcome} is {' or '.join(u.positive)}; tested on {u.people:,} {u.tested_on}."
    return (
        f"<h3>Tested on {'later' if 'before' in u.tested_on else 'held-out'} patients</h3>"
        + paragraph(words)
        + beside(charts)
        + (table.html() if u.differences else "")
        + paragraph(u.note)
    )


def _groups(f: TableFigures) -> str:
    if not f.subgroups:
        return ""
    return Table(
        [
            Column("column", "left"),
            Column("group", "left"),
            Column("real patients"),
            Column("mean distance"),
            Column("floor"),
        ],
        [[s.column, s.group, number(s.patients), number(s.distance), number(s.floor)] for s in f.subgroups],
        "Mean total variation of single columns within the group; a floor only for groups with 20 held-out patients.",
    ).html()


def _inference(f: TableFigures) -> str:
    if f.inference is None:
        return ""
    i, text = f.inference, ""
    if i.marginal_inside is not None:
        text += paragraph(
            f"Of the {i.marginal_cells:,} released shares of single columns, {percent(i.marginal_inside)} lie within "
            "their stated 95% interval around the exact share. Fewer than 95% means that something besides noise "
            "moved them: patients with very many visits are cut, and shares per visit are measured with heavy patients "
            "held back."
        )
    if i.coverage:
        text += Table(
            [Column("rule", "left"), *map(Column, ("coverage", "mean width", "estimands", "runs"))],
            [
                [c.rule, percent(c.coverage), number(c.width), number(c.estimands), number(c.replicates)]
                for c in i.coverage
            ],
            "Intervals of nominally 95% from several synthetic tables of one noisy model.",
        ).html()
    return text + paragraph(i.note)


def _audit(f: TableFigures) -> str:
    if not f.audit:
        return ""
    table = Table(
        [
            Column("planted patient", "left"),
            *map(
                Column,
                (
                    "runs",
                    "false positives",
                    "true positives",
                    "advantage",
                    "epsilon at least",
                    "most that so many runs can show",
                    "claimed",
                ),
            ),
        ],
        [
            [
                g.canary,
                number(g.runs),
                percent(g.false_positive),
                percent(g.true_positive),
                percent(g.advantage),
                number(g.epsilon_lower),
                number(g.largest_possible),
                number(g.claimed),
            ]
            for g in f.audit
        ],
        "Lower bounds with 95% confidence, never a proof of privacy.",
    )
    return table.html() + "".join(paragraph(g.note) for g in f.audit)


def _copies(rows: Sequence[Pairing]) -> str:
    if not rows:
        return ""
    return (
        paragraph(
            "Distances to the closest real record say nothing about privacy: tables that pass such tests have been "
            "attacked with success, and coarse cells make copies by chance. They are shown for those who expect them; "
            "what counts is the certificate."
        )
        + Table(
            [Column("what", "left"), Column("to training patients"), Column("to held-out patients")],
            [[p.what, number(p.real), number(p.held_out)] for p in rows],
        ).html()
    )


def _f(value: Number) -> float:
    return float("nan") if value is None else float(value)
