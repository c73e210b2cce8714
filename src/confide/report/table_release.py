"""`report.html` of a synthetic table: the guarantee in words, and what was measured, with its error bars.

Made of the certificate, the study file and the released noisy tables alone: no exact count or curve can reach it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from confide.release import Certificate
from confide.report.categories import Mark, category_chart
from confide.report.format import Column, Table, epsilon, number, percent, plural, scientific
from confide.report.page import Section, beside, bullets, paragraph
from confide.report.release_page import most_exposed, release_report

_MOST_CHARTS = 40
_MOST_TABLES = 60
# 95% of a normal distribution lies within so many standard errors.
_REACH = 1.96


def table_release_report(certificate: Certificate, study_text: str, marginals: Mapping[str, Any]) -> str:
    """Return the report of a release of synthetic tables.

    Parameters
    ----------
    certificate : Certificate
    study_text : str
        The study file as it may leave.
    marginals : mapping
        The content of ``marginals.json``: released noisy tables and their standard errors.
    """
    sections = [
        Section("board", "For a data-sharing board", _board(certificate, marginals)),
        Section("marginals", "What was measured, with its error", _marginals(marginals)),
        Section("pairs", "Relations that were measured", _pairs(marginals)),
    ]
    guarantee = Section("guarantee", "The guarantee, and for whom", _guarantee(certificate))
    return release_report(certificate, study_text, extra=sections, guarantee=guarantee)


def _guarantee(c: Certificate) -> str:
    """Say that the number of visits plays no part in the guarantee of a table; rows are levels of consent."""
    text = paragraph(c.relation_meaning) + paragraph(f"Protected as a whole: {c.unit_meaning}")
    text += paragraph(
        "The guarantee is the same for every number of visits: what a patient adds to any sum that was measured is "
        "bounded for all their visits together."
    )
    table = Table(
        [
            Column(heading)
            for heading in ("budget agreed to", "epsilon at most", "at least", "mu", "attack advantage",
                            "TPR at 1% FPR", "posterior at 1% prior")
        ],
        [
            [
                number(one.budget),
                epsilon(one.epsilon),
                number(one.epsilon_lower),
                number(one.mu),
                percent(one.membership_advantage, up=True),
                percent(one.tpr_at_fpr_1pct, up=True),
                percent(one.posterior_prior_1pct_fpr_1pct, up=True),
            ]
            for one in c.classes
        ],
        f"Delta {scientific(c.delta)}.",
    )  # fmt: skip
    return text + table.html()


def _board(c: Certificate, marginals: Mapping[str, Any]) -> str:
    worst = c.worst
    exposed = most_exposed(c)
    named = exposed.posterior_prior_1pct_fpr_1pct
    odds = math.exp(min(worst.epsilon, 700.0))
    even = odds / (1 + odds)
    text = paragraph(
        "These tables describe people who do not exist. They were drawn from a model that saw the real patients only "
        "through random noise. The noise was made large enough to hide any one patient with all their visits, "
        "however many visits that are."
    )
    items = [
        f"For whom: every patient in the source, with all visits and events. Epsilon is at most "
        f"{epsilon(worst.epsilon)}, delta {scientific(c.delta)}, {c.relation}.",
        f"In words: whatever these tables tell somebody about a patient, they would have told nearly the same had the "
        f"patient never been in the source. Who thought it as likely as not that a patient took part can become at "
        f"most {percent(even, up=True)} sure (but for a probability of delta).",
        "What it does not say: that a statement made from the tables is true. Findings have to be checked on the real "
        "data, by those who hold them.",
        "What may still be learnt: facts about groups. That smokers fall ill more often is not hidden, whoever is in "
        "the data.",
        "The tables may be used, joined, copied and published without any further cost to the patients.",
    ]
    if named is not None:
        items.insert(
            2,
            f"Somebody thought 1% likely to be in the data, and then accused by the best possible attack, is at most "
            f"{percent(named, up=True)} likely to have been in it.",
        )
    patients = marginals.get("patients")
    if patients is not None:
        rounded = plural(round(patients), "patient")
        items.append(f"The source had about {rounded}: a noisy figure, paid for like all others.")
    return text + bullets(items)


def _one_way(marginals: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The last measurement of each column: earlier looks are refined by later ones."""
    found: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for table in marginals.get("tables", []):
        if len(table["columns"]) == 1:
            found[(table.get("table", ""), table["level"], table["columns"][0])] = table
    return list(found.values())


def _marginals(marginals: Mapping[str, Any]) -> str:
    tables = _one_way(marginals)
    if not tables:
        return ""
    text = paragraph(
        "Shares as they were measured, privacy noise included, with intervals of 95%: the noise is known exactly, so "
        "these figures can be used in their own right. A share below zero is noise. The intervals cover the privacy "
        "noise alone: not what was cut off from patients with unusually many visits, and not that the patients are a "
        "sample."
    )
    return text + beside([_chart(table) for table in tables[:_MOST_CHARTS]]) + _list(tables)


def _name(table: Mapping[str, Any]) -> str:
    of = f"{table['table']}: " if table.get("table") else ""
    return of + " and ".join(table["columns"])


def _chart(table: Mapping[str, Any]) -> str:
    values = [float(v) for v in table["noisy"]]
    names = (table.get("cells") or [[]])[0] or [str(i) for i in range(1, len(values) + 1)]
    return category_chart(
        names,
        [
            Mark("what the tables were drawn from", [float(v) for v in table["estimate"]], "bar", 0),
            Mark("measured, with its interval", values, "dot", 1, _REACH * float(table["standard_error"])),
        ],
        title=_name(table),
        x_label=f"share of {table['level']}s",
    )


def _list(tables: list[Mapping[str, Any]]) -> str:
    rows = []
    for table in tables:
        names = (table.get("cells") or [[]])[0]
        for i, (noisy, drawn) in enumerate(zip(table["noisy"], table["estimate"], strict=True)):
            label = names[i] if i < len(names) else str(i + 1)
            error = float(table["standard_error"])
            rows.append([_name(table), label, number(noisy), "± " + number(_REACH * error), number(drawn)])
    return (
        "<details><summary>All measured shares as a table</summary>"
        + Table(
            [
                Column("column", "left"),
                Column("cell", "left"),
                Column("measured"),
                Column("95% of the noise"),
                Column("used"),
            ],
            rows,
        ).html()
        + "</details>"
    )


def _pairs(marginals: Mapping[str, Any]) -> str:
    tables = [table for table in marginals.get("tables", []) if len(table["columns"]) == 2]
    if not tables:
        return paragraph(
            "No relation between two columns was measured: at this budget and number of patients every such table "
            "would have been noise. Columns of the synthetic tables are independent of each other: do not look for "
            "relations in them."
        )
    rows = [[_name(t), t["level"], number(float(t["standard_error"]))] for t in tables[:_MOST_TABLES]]
    text = paragraph(
        "Relations between other columns were not measured: the tables show them only as far as these explain them. "
        "All cells are in marginals.json."
    )
    return (
        text
        + Table(
            [Column("columns", "left"), Column("share of", "left"), Column("standard error of a cell")],
            rows,
            f"{plural(len(tables), 'two-way table')} with noise.",
        ).html()
    )
