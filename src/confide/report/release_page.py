"""`report.html` of a release: what is promised, to whom, what an attacker could do at best, what the result is worth.

Made of the certificate and the study file alone, so that anyone who holds the release can make it again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from confide.release import NOT_RECORDED, PER_ENTRY, PREVIEW, TESTING_ONLY, Certificate, ClassGuarantee, guarantee_of
from confide.report.format import NOTHING, Column, Table, epsilon, escape, interval, number, percent, plural, scientific
from confide.report.page import Section, beside, bullets, cards, code, facts, page, paragraph
from confide.report.risk_page import RiskCase, identification, precision_plots, roc, roc_small
from confide.report.svg import DotRow, Series, dot_chart, plot

_ROWS = 24  # a longer table of classes goes to the end of the page, a selection stays in the text

STAMP_MEANING = {
    TESTING_ONLY: "The noise came from a seed that somebody set, so whoever knows it can take the noise away.",
    PREVIEW: "Looking at exact counts before choosing is not covered by the guarantee.",
    PER_ENTRY: "The data have no person ids. A person with several entries is protected less than stated.",
    NOT_RECORDED: "No ledger knows this release, so its cost is not added to what the same people spend elsewhere.",
}

_PLAN_WORDS = {
    "strategy": "strategy",
    "clip_unit": "clipped as one",
    "noise_multiplier": "noise multiplier",
    "steps": "steps",
    "clip_norm": "clipping norm",
    "delta": "delta",
    "max_entries": "most entries of one contributor",
    "budgets": "budget levels (epsilon)",
    "denominator": "sum is divided by (fixed)",
    "relation": "neighbouring relation",
    "histogram": "entry counts known from",
}


def release_report(
    certificate: Certificate,
    study_text: str = "",
    *,
    extra: Sequence[Section] = (),
    guarantee: Section | None = None,
) -> str:
    """Return `report.html` of a release.

    Parameters
    ----------
    certificate : Certificate
        Public facts only; hashes of the artefacts are shown where they are filled in.
    study_text : str
        The study file as run.
    extra : sequence of Section
        What a kind of release adds at the top; made of released figures only.
    guarantee : Section, optional
        Instead of the guarantee by number of entries, where that number plays no part in it.

    Returns
    -------
    str
        One self-contained HTML document.
    """
    c = certificate
    worst = c.worst
    opening = "".join(_stamp(text) for text in c.stamps)
    opening += paragraph(guarantee_sentence(c), "lead")
    alike = epsilon(worst.epsilon) == epsilon(c.best.epsilon)
    whose = "epsilon of every class at most" if alike else f"epsilon at most, with {plural(worst.entries, 'entry')}"
    if c.kind == "table":
        whose = "epsilon of every patient at most" if alike else "epsilon at most, for those who agreed to most"
    exposed = most_exposed(c)
    opening += cards(
        [
            (epsilon(worst.epsilon), whose),
            (scientific(c.delta), "delta, the same for everybody"),
            ("a person" if c.unit == "contributor" else "an entry", "is protected as a whole"),
            (
                percent(exposed.tpr_at_fpr_1pct, up=True),
                "of the people in the data are recognised, at best, by an attack that accuses 1% wrongly",
            ),
        ]
    )
    sections = [
        *extra,
        guarantee or Section("guarantee", "The guarantee by number of entries", _guarantee(c)),
        Section("attacker", "What an attacker could do at best", _attacker(c)),
        Section("plan", "How it was made", _plan(c)),
        Section("worth", "What the result is worth", _worth(c)),
        Section("linkage", "If a person's ids were linked wrongly", _linkage(c)),
        Section("flow", "Who receives it", _flow(c)),
        Section("public", "Assumed public", _public(c)),
        Section("spent", "Learnt from the data and paid for", _spent(c)),
        Section("limits", "What this does not cover", _limits(c)),
        Section("verify", "How to verify", _verify(c)),
        Section("cite", "How to cite", paragraph(c.cite.text) + (code(c.cite.bibtex) if c.cite.bibtex else "")),
        Section("study", "The study as run", code(study_text) if study_text else ""),
        Section("classes", "Every class", _class_table(c, c.classes).html() if len(c.classes) > _ROWS else ""),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in c.versions.items())
    also = ", marginals.json" if c.kind == "table" and extra else ""
    return page(
        c.name,
        sections,
        subtitle=f"A {_KINDS[c.kind]} released under {_unit_level(c)} differential privacy, {c.created[:10]}",
        opening=opening,
        footer=f"Made from certificate.json{also} and study.toml alone. {versions}. Precision {c.precision}.",
    )


def guarantee_sentence(certificate: Certificate) -> str:
    """Return the guarantee of the whole release in one sentence, stated for the least protected class."""
    c, worst = certificate, certificate.worst
    whom = "Every person" if c.unit == "contributor" else "Every single entry"
    used = max(one.entries_used for one in c.classes)
    whole = f" with all their entries (at most {used:,} of them used)" if c.unit == "contributor" else ""
    if c.kind == "table":
        # a table is measured on all visits of a patient, bounded by clipping, not by leaving visits out
        whom, whole = "Every patient", " with all visits, however many,"
    range_ = ""
    if c.kind == "table" and epsilon(c.best.epsilon) != epsilon(worst.epsilon):
        range_ = f" For those who agreed to least, epsilon is at most {epsilon(c.best.epsilon)}."
    elif epsilon(c.best.epsilon) != epsilon(worst.epsilon):
        range_ = (
            f" The best protected class ({plural(c.best.entries, 'entry')}) has epsilon {epsilon(c.best.epsilon)}, the "
            f"least protected one ({plural(worst.entries, 'entry')}) {epsilon(worst.epsilon)}."
        )
    if np.isinf(worst.epsilon):
        return f"This release gives no finite guarantee to contributors with {plural(worst.entries, 'entry')}.{range_}"
    return (
        f"{whom} in these data is protected{whole} with epsilon at most {epsilon(worst.epsilon)} at delta "
        f"{scientific(c.delta)} (neighbouring relation: {c.relation}).{range_}"
    )


def most_exposed(certificate: Certificate) -> ClassGuarantee:
    """Return the class of which the best attack recognises most; the largest epsilon need not be its own."""
    return max(certificate.classes, key=lambda one: (one.tpr_at_fpr_1pct or 0.0, one.epsilon))


def attacker_sentence(certificate: Certificate) -> str:
    """Return in one sentence what the best possible membership attack reaches against any class."""
    facts = most_exposed(certificate)
    if facts.tpr_at_fpr_1pct is None or facts.posterior_prior_1pct_fpr_1pct is None:
        return "What an attacker could do at best was not computed for this class."
    return (
        f"An attacker who knows everything except whether a person took part, and who accepts accusing 1 in 100 people "
        f"wrongly, recognises at most {percent(facts.tpr_at_fpr_1pct, up=True)} of those who did (1% would be "
        f"guessing); someone thought 1% likely to have taken part, and then named by this attack, is at most "
        f"{percent(facts.posterior_prior_1pct_fpr_1pct, up=True)} likely to have done so."
    )


_KINDS = {
    "model": "model",
    "table": "synthetic table",
    "statistic": "statistic",
    "federated": "federated model",
}


def _unit_level(c: Certificate) -> str:
    return "contributor-level" if c.unit == "contributor" else "entry-level"


def _stamp(text: str) -> str:
    meaning = STAMP_MEANING.get(text, "")
    tail = f" <span>{escape(meaning)}</span>" if meaning else ""
    return f'<div class="stamp" role="note"><p>{escape(text[:1].upper() + text[1:])}.{tail}</p></div>'


def _guarantee(c: Certificate) -> str:
    text = paragraph(c.relation_meaning)
    if c.relation == "zero-out":
        known = any(one.replace_one_epsilon is not None for one in c.classes)
        text += paragraph(
            "Replace-one epsilon is what holds when a person is exchanged for another one of the same class."
            if known
            else "What exchanging a person for another one costs is not stated: the accountant has no figure for it."
        )
    text += paragraph(f"Protected as a whole: {c.unit_meaning}")
    several_budgets = len({one.budget for one in c.classes}) > 1
    groups: dict[Any, list[ClassGuarantee]] = {}
    for one in c.classes:
        groups.setdefault(one.budget, []).append(one)
    series = [
        Series(
            f"budget {number(budget)}" if several_budgets and budget is not None else "certified epsilon",
            [float(one.entries) for one in rows],
            [one.epsilon for one in rows],
            "line",
        )
        for budget, rows in groups.items()
    ]
    entries = [float(one.entries) for one in c.classes]
    edge = [min(entries) - 0.5, max(entries) + 0.5]
    budgets = [
        Series(f"budget {number(budget)} asked for", edge, [budget, budget], "guide")
        for budget in groups
        if budget is not None
    ][:4]
    finite = [one.epsilon for one in c.classes if np.isfinite(one.epsilon)]
    charts = []
    if finite:
        top = max([*finite, *(b for b in groups if b is not None and np.isfinite(b))])
        charts.append(
            plot(
                [*series, *budgets],
                title="Epsilon by number of entries",
                note="Smaller protects more. Every point is certified: the true value is not above it.",
                x_label="entries of one contributor (k)",
                y_label=f"epsilon at delta {scientific(c.delta)}",
                x_range=(edge[0], edge[1]),
                y_range=(0.0, 1.15 * top),
            )
        )
    if all(one.tpr_at_fpr_1pct is not None for one in c.classes):
        charts.append(
            plot(
                [
                    Series(
                        f"budget {number(budget)}" if several_budgets and budget is not None else "best attack",
                        [float(one.entries) for one in rows],
                        [100.0 * (one.tpr_at_fpr_1pct or 0.0) for one in rows],
                        "line",
                    )
                    for budget, rows in groups.items()
                ]
                + [Series("guessing", edge, [1.0, 1.0], "guide")],
                title="People recognised by the best attack",
                note="At a false positive rate of 1%.",
                x_label="entries of one contributor (k)",
                y_label="true positive rate, %",
                x_range=(edge[0], edge[1]),
                y_range=(0.0, 1.15 * max(100.0 * (one.tpr_at_fpr_1pct or 0.01) for one in c.classes)),
            )
        )
    shown = _selection(c.classes)
    table = _class_table(c, shown)
    more = (
        paragraph(f"{len(shown)} of {len(c.classes)} classes; all of them stand at the end of this page.", "sub")
        if len(shown) < len(c.classes)
        else ""
    )
    return text + beside(charts) + table.html() + more


def _selection(classes: Sequence[ClassGuarantee]) -> Sequence[ClassGuarantee]:
    if len(classes) <= _ROWS:
        return classes
    chosen = sorted({round(i) for i in np.geomspace(1, len(classes), 14) - 1})
    return [classes[i] for i in chosen]


def _class_table(c: Certificate, rows: Sequence[ClassGuarantee]) -> Table:
    budgets = len({one.budget for one in c.classes}) > 1
    used = any(one.entries_used != one.entries for one in c.classes)
    replaced = any(one.replace_one_epsilon is not None for one in c.classes)
    exact = any(one.mu is not None for one in c.classes)
    columns = ["entries k"] + ["budget"] * budgets + ["entries used"] * used
    columns += (
        ["sampling rate", "clip", "epsilon at most", "at least"] + ["replace-one epsilon"] * replaced + ["mu"] * exact
    )
    columns += ["attack advantage", "TPR at 1% FPR", "posterior at 1% prior"]
    body = [
        [number(one.entries)]
        + [number(one.budget)] * budgets
        + [number(one.entries_used)] * used
        + [number(one.rate), number(one.clip_norm), epsilon(one.epsilon), number(one.epsilon_lower)]
        + [epsilon(one.replace_one_epsilon)] * replaced
        + [number(one.mu)] * exact
        + [
            percent(one.membership_advantage, up=True),
            percent(one.tpr_at_fpr_1pct, up=True),
            percent(one.posterior_prior_1pct_fpr_1pct, up=True),
        ]
        for one in rows
    ]
    return Table(
        [Column(heading) for heading in columns],
        body,
        f"Guarantee by class, delta {scientific(c.delta)}. Clip is in units of the plan's clipping norm.",
    )


def _attacker(c: Certificate) -> str:
    exposed, sheltered = most_exposed(c), min(c.classes, key=lambda one: (one.tpr_at_fpr_1pct or 0.0, one.epsilon))
    text = paragraph(attacker_sentence(c), "lead")
    text += paragraph("This holds for every class, and against this adversary: " + c.adversary)
    chosen = [exposed] if exposed.parts == sheltered.parts else [exposed, sheltered]
    cases = [
        RiskCase(
            f"{'a patient' if c.kind == 'table' else plural(one.entries, 'entry')}, epsilon {epsilon(one.epsilon)}",
            guarantee_of(one),
        )
        for one in chosen
    ]
    charts = [roc(cases), roc_small(cases), precision_plots(cases, (0.01,))[0], identification(cases)]
    return text + beside(charts) + "<h3>Who has to be trusted</h3>" + bullets(c.trusted)


def _plan(c: Certificate) -> str:
    rows = []
    for key, words in _PLAN_WORDS.items():
        if key in c.plan and c.plan[key] is not None:
            rows.append((words, _shown(key, c.plan[key])))
    known = {*_PLAN_WORDS, "classes", "format", "stamp", "entry_counts"}
    rows += [
        (key.replace("_", " "), _value(value))
        for key, value in c.plan.items()
        if key not in known and value is not None
    ]
    rows.append(("arithmetic precision", c.precision))
    if c.plan_fingerprint:
        rows.append(("fingerprint of the plan", c.plan_fingerprint))
    return facts(rows) + _declared_counts(c)


def _declared_counts(c: Certificate) -> str:
    """Draw the entry counts that were declared public or paid for; there are none otherwise."""
    counts: dict[int, float] = {}
    for row in c.plan.get("classes") or []:
        if row.get("contributors") is not None:
            counts[int(row["entries"])] = counts.get(int(row["entries"]), 0.0) + float(row["contributors"])
    if not counts:
        return ""
    ks = sorted(counts)
    return plot(
        [Series("", [float(k) for k in ks], [counts[k] for k in ks], "bars")],
        title="Contributors by number of entries, as the plan was told",
        note="Declared public." if c.plan.get("histogram") == "public" else "Released with noise, and paid for.",
        x_label="entries of one contributor (k)",
        y_label="contributors",
    )


_HISTOGRAMS = {
    "public": "a table that was declared public",
    "paid": "a noisy histogram that was paid for",
    "preview": "a look at private counts",
    "none": "nothing: the plan does not use them",
}
_CLIP_UNITS = {"contributor": "all drawn entries of a contributor", "entry": "each entry"}


def _shown(key: str, value: Any) -> str:
    if key == "delta":
        return scientific(float(value))
    if key == "histogram":
        return _HISTOGRAMS.get(str(value), str(value))
    if key == "clip_unit":
        return _CLIP_UNITS.get(str(value), str(value))
    return _value(value)


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, (int, float)):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float, str)) for v in value):
        return ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in value)
    if isinstance(value, dict):
        shown = [f"{key} {_value(inner)}" for key, inner in value.items() if inner not in ({}, [], None)]
        return ", ".join(shown) or NOTHING
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _worth(c: Certificate) -> str:
    if not c.evaluation:
        return paragraph(
            "No figure about the quality of the result was released. Exact figures exist only in the internal report "
            "of the institution that ran the study; a figure that leaves costs privacy and was not bought here."
        )
    rows = [DotRow(f"{m.metric}, per {m.measured_per}", m.value, m.low, m.high, style=0) for m in c.evaluation]
    table = Table(
        [
            Column("metric", "left"),
            *map(Column, ("noisy estimate", "interval", "level", "epsilon at most")),
            *[Column("measured on, and charged to", "left")],
        ],
        [
            [m.metric, number(m.value), interval(m.low, m.high), percent(m.level), epsilon(m.epsilon), m.who]
            for m in c.evaluation
        ],
        "Paid metrics. The interval covers noise, sampling of people and rounding.",
    )
    notes = bullets(list(dict.fromkeys(m.note for m in c.evaluation if m.note)))
    chart = dot_chart(
        rows,
        title="Paid metrics with their intervals",
        x_label="value (0 to 1)",
        x_range=(0.0, 1.0),
    )
    return chart + table.html() + notes


def _public(c: Certificate) -> str:
    if not c.assumed_public:
        return paragraph("Nothing was assumed public.")
    return (
        paragraph(
            "These facts were taken as known to everybody. Using them cost nothing; if one of them was in truth learnt "
            "from these data, the guarantee does not cover that."
        )
        + Table(
            [Column("what", "left"), Column("value", "left"), Column("declared by", "left")],
            [[fact.what, _value(fact.value), fact.source] for fact in c.assumed_public],
        ).html()
    )


def _linkage(c: Certificate) -> str:
    linkage = c.linkage
    if linkage is None:
        return ""
    said = paragraph(f"Assumed, and no part of epsilon: {linkage.assumption}.")
    if not linkage.wrong_links:
        return said + (paragraph(linkage.note[:1].upper() + linkage.note[1:] + ".") if linkage.note else "")
    return (
        said
        + Table(
            [Column("entries"), Column("as stated"), Column("split in 2"), Column("split in 3"), Column("merged")],
            [
                [number(row.entries), *map(epsilon, (row.epsilon, row.split_in_2, row.split_in_3, row.merged))]
                for row in linkage.wrong_links
            ],
        ).html()
        + paragraph(
            f"Epsilon at delta {scientific(c.delta)} of a person known as two or three contributors with so many "
            "entries each, and of a person taken for one contributor together with another such person."
        )
    )


def _flow(c: Certificate) -> str:
    if c.flow is None:
        return ""
    said = [("from", c.flow.sender), ("to", c.flow.recipient), ("for", c.flow.purpose)]
    said.append(("computed from", ", ".join(c.flow.attributes)))
    return facts([(name, text) for name, text in said if text])


def _spent(c: Certificate) -> str:
    if not c.spent:
        return paragraph("Nothing else: the figures above are the whole cost of this release.")
    return (
        paragraph("Already contained in the figures above for the people it was charged to.")
        + Table(
            [Column("what", "left"), Column("mechanism", "left"), Column("times"), Column("charged to", "left")],
            [[s.what, _mechanism(s.mechanism), number(s.steps), s.who] for s in c.spent],
        ).html()
    )


def _mechanism(mechanism: dict[str, Any]) -> str:
    rest = ", ".join(f"{k.replace('_', ' ')} {_value(v)}" for k, v in mechanism.items() if k != "mechanism")
    return f"{mechanism.get('mechanism', 'mechanism')} ({rest})" if rest else str(mechanism.get("mechanism"))


def _limits(c: Certificate) -> str:
    return bullets([text[:1].upper() + text[1:] + "." for text in c.not_covered])


def _verify(c: Certificate) -> str:
    commands = (
        "pip install 'confide[verify]'\n\n"
        "# recomputes every epsilon and checks every hash; exit code 4 on any difference\n"
        "confide verify FOLDER\n"
    )
    if c.ledger is not None:
        commands += "\n# also asks the ledger, where you may read it\nconfide verify FOLDER --ledger URL\n"
    commands += "\n# what an attacker could do at best, in more detail\nconfide risk FOLDER"
    entry = [("ledger", c.ledger.ledger), ("entry in the ledger", c.ledger.reservation)] if c.ledger else []
    return (
        paragraph("FOLDER is the folder that holds this page.")
        + code(commands)
        + facts([*((f"SHA-256 of {name}", digest) for name, digest in sorted(c.artefacts.items())), *entry])
    )
