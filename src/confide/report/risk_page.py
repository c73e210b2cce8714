"""What an attacker could do at best, for people who have to decide: several classes or budgets side by side.

Every curve is a bound that no attack can exceed, computed from the guarantee; none was observed. Each kind of figure
stands beside the assumption it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.accounting import Guarantee
from confide.errors import InputError
from confide.release import Certificate, ClassGuarantee, guarantee_of
from confide.report.format import Column, Table, epsilon, escape, number, percent, plural, scientific
from confide.report.images import data_url, degraded, phantom
from confide.report.page import Section, beside, bullets, page, paragraph
from confide.report.svg import Series, plot
from confide.risk import MeanEstimation, RiskProfile, profile

Floats = NDArray[np.float64]
_FPR = np.unique(np.concatenate([np.linspace(0.0, 1.0, 101), np.geomspace(1e-4, 0.1, 40)]))
_SMALL = np.geomspace(1e-4, 1.0, 60)
_BLIND = np.geomspace(1e-8, 1.0, 65)
_DECIBEL = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0)


@dataclass(frozen=True)
class RiskCase:
    """One column of the comparison.

    Attributes
    ----------
    name : str
        "least protected class", "budget 4", ...
    guarantee : Guarantee
        What such a contributor gets.
    target : MeanEstimation, optional
        The from-scratch attack on one record of theirs: noise, norm and dimension declared by the user.
    """

    name: str
    guarantee: Guarantee
    target: MeanEstimation | None = None


def risk_cases(certificate: Certificate, *, target: MeanEstimation | None = None) -> tuple[RiskCase, ...]:
    """Return the most exposed class, the class of the median contributor and the least exposed one of a release.

    The median contributor is known only where the entry counts were declared public or paid for; elsewhere the middle
    class stands for it, and is called that. Classes with one and the same guarantee appear once.
    """
    classes = sorted(certificate.classes, key=lambda one: (one.tpr_at_fpr_1pct or 0.0, one.epsilon))
    middle, word = _median(certificate)
    chosen = [("most exposed class", classes[-1]), (word, middle), ("least exposed class", classes[0])]
    cases: dict[Any, RiskCase] = {}
    for name, one in chosen:
        guarantee = guarantee_of(one)
        cases.setdefault(guarantee.parts, RiskCase(f"{name} ({plural(one.entries, 'entry')})", guarantee, target))
    return tuple(cases.values())


def _median(c: Certificate) -> tuple[ClassGuarantee, str]:
    people = {(row.get("entries"), row.get("budget")): row.get("contributors") for row in c.plan.get("classes") or []}
    classes = sorted(c.classes, key=lambda one: one.entries)
    numbers = np.array([float(people.get((one.entries, one.budget)) or 0.0) for one in classes])
    if numbers.sum() <= 0:
        return classes[len(classes) // 2], "middle class"
    return classes[int(np.searchsorted(np.cumsum(numbers), numbers.sum() / 2))], "median contributor"


def risk_report(
    cases: Iterable[RiskCase], *, delta: float, title: str = "What an attacker could do at best", subtitle: str = ""
) -> str:
    """Return the risk page.

    Parameters
    ----------
    cases : iterable of RiskCase
        Classes, or budgets to choose from; three stand well side by side, six at most can be told apart.
    delta : float
        Where epsilon is quoted.
    title, subtitle : str

    Returns
    -------
    str
        One self-contained HTML document.

    Raises
    ------
    InputError
        If there is no case, or more than six.
    """
    shown = tuple(cases)
    if not 1 <= len(shown) <= 6:
        raise InputError(f"{len(shown)} cases to compare", expected="between one and six")
    profiles = [profile(one.guarantee, name=one.name, delta=delta, target=one.target) for one in shown]
    sections = [
        Section("words", "In words", _words(profiles)),
        Section("figures", "Side by side", _table(shown, profiles)),
        Section("membership", "Did this person take part?", beside([roc(shown), roc_small(shown)])),
        Section("precision", "Is an accusation right?", _precision_text() + beside(precision_plots(shown))),
        Section("identify", "Which record is it?", _identify_text() + beside([identification(shown)])),
        Section("rebuild", "Can a record be rebuilt?", _rebuild(shown, profiles)),
        Section("assumptions", "What these figures rest on", _assumptions(profiles)),
    ]
    opening = paragraph(
        "Every figure is an upper bound that holds against every attacker of its kind, known or not yet invented. "
        "None of them was observed; real attacks reach less."
    )
    return page(title, sections, subtitle=subtitle, opening=opening)


def roc(cases: Sequence[RiskCase]) -> str:
    """Draw the ROC curve that no membership attack can lie above."""
    return plot(
        [*_curves(cases, _FPR, _bound), Series("guessing", [0, 1], [0, 1], "guide")],
        title="Best possible attack (ROC)",
        note="No attack can lie above these curves: a certified bound, not the result of an attack that was run.",
        x_label="false positive rate (people wrongly accused)",
        y_label="true positive rate (people recognised)",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )


def roc_small(cases: Sequence[RiskCase]) -> str:
    """Draw the same where few people are accused wrongly."""
    return plot(
        [*_curves(cases, _SMALL, _bound), Series("guessing", [1e-4, 1], [1e-4, 1], "guide")],
        title="The same where few are accused wrongly",
        note="Both axes logarithmic.",
        x_label="false positive rate",
        y_label="true positive rate",
        x_range=(1e-4, 1.0),
        y_range=(1e-4, 1.0),
        x_log=True,
        y_log=True,
    )


def precision_plots(cases: Sequence[RiskCase], priors: Sequence[float] = (0.01, 0.1)) -> list[str]:
    """Draw the largest share of right accusations against the false positive rate, at several priors."""

    def at(prior: float) -> str:
        def right(guarantee: Guarantee, fpr: Floats) -> Floats:
            hits = prior * _bound(guarantee, fpr)
            return hits / (hits + (1 - prior) * fpr)

        return plot(
            [*_curves(cases, _SMALL, right), Series("before the attack", [1e-4, 1.0], [prior, prior], "guide")],
            title=f"Accusations that are right, if {percent(prior)} took part",
            x_label="false positive rate (people wrongly accused)",
            y_label="share of those accused who took part",
            x_range=(1e-4, 1.0),
            y_range=(0.0, 1.0),
            x_log=True,
        )

    return [at(prior) for prior in priors]


def identification(cases: Sequence[RiskCase]) -> str:
    """Draw gamma against kappa: the success of the best informed attacker against that of blind guessing."""
    return plot(
        [*_curves(cases, _BLIND, _bound), Series("guessing", [1e-8, 1], [1e-8, 1], "guide")],
        title="Picking the right record",
        note="Success against that of blind guessing (gamma against kappa); 10⁻⁶ is one in a million candidates.",
        x_label="success of guessing blindly",
        y_label="success of the best attack, at most",
        x_range=(1e-8, 1.0),
        y_range=(1e-8, 1.0),
        x_log=True,
        y_log=True,
    )


def _bound(guarantee: Guarantee, at: Floats) -> Floats:
    return np.asarray(guarantee.reconstruction_bound(at), dtype=np.float64)


def _curves(cases: Sequence[RiskCase], x: Floats, read: Callable[[Guarantee, Floats], Floats]) -> list[Series]:
    return [
        Series(one.name, x.tolist(), read(one.guarantee, x).tolist(), "line", style=i) for i, one in enumerate(cases)
    ]


def _words(profiles: Sequence[RiskProfile]) -> str:
    columns = "".join(
        f"<div><h3>{escape(one.name)}</h3><p><b>epsilon {escape(epsilon(one.epsilon))}</b> at delta "
        f"{escape(scientific(one.delta))}</p>{''.join(paragraph(text) for text in one.sentences)}</div>"
        for one in profiles
    )
    return f'<div class="columns">{columns}</div>'


def _table(cases: Sequence[RiskCase], profiles: Sequence[RiskProfile]) -> str:
    def reached(blind: float) -> list[str]:
        return [percent(one.guarantee.reconstruction(blind), up=True) for one in cases]

    rows = [["epsilon", *(epsilon(one.epsilon) for one in profiles)]]
    if any(one.mu is not None for one in profiles):
        rows.append(["mu (Gaussian DP), where exact", *(number(one.mu) for one in profiles)])
    rows += [
        ["largest advantage of any membership attack", *(percent(one.advantage, up=True) for one in profiles)],
        ["area under the ROC curve of any attack", *(number(one.auc) for one in profiles)],
        *([f"recognised at {100 * fpr:g}% wrong accusations", *reached(fpr)] for fpr in (0.001, 0.01, 0.1)),
        [
            "accusations right, 1% took part, 1% accused wrongly",
            *(percent(one.guarantee.posterior(0.01, 0.01), up=True) for one in cases),
        ],
        *([f"right record of {n:,} candidates", *reached(1 / n)] for n in (10, 100, 1_000_000)),
        ["information about one contributor, bits", *(number(one.mutual_bits) for one in profiles)],
    ]
    return Table(
        [Column("at most", "left"), *(Column(one.name) for one in profiles)], rows, "Smaller protects more."
    ).html()


def _precision_text() -> str:
    return paragraph(
        "How often an accusation is right depends on how many took part at all, so each picture names what was likely "
        "before the attack."
    )


def _identify_text() -> str:
    return paragraph(
        "The attacker knows everything about everybody else, holds a list of candidate records for one person, and "
        "picks one. Candidates are taken to be equally likely; where one stands out, read the picture at its chance."
    )


def _rebuild(cases: Sequence[RiskCase], profiles: Sequence[RiskProfile]) -> str:
    ends = Table(
        [Column("case", "left"), Column("best informed attacker"), Column("uninformed attacker")],
        [
            [
                one.name,
                f"right in at most {percent(one.corridor.best_informed, up=True)}",
                "not declared"
                if one.corridor.uninformed_psnr is None
                else f"{number(one.corridor.uninformed_psnr)} dB",
            ]
            for one in profiles
        ],
        "The corridor between the two ends of what reconstruction can mean; the right end is reached in half of all "
        "attempts. Attackers who know something, but not everything, stand between them.",
    ).html()
    rests = [text for p in profiles for text in (p.corridor.best_informed_assumption, p.corridor.uninformed_assumption)]
    ends += bullets([text[:1].upper() + text[1:] + "." for text in dict.fromkeys(rests)])
    known = [(i, one) for i, one in enumerate(cases) if one.target is not None]
    if not known:
        return ends + paragraph(
            "How sharp a picture an uninformed attacker could get needs the norm and the number of values of a record; "
            "they were not declared."
        )
    reach = [float(one.target.psnr_at(p)) for _, one in known if one.target is not None for p in (0.001, 0.999)]
    low, high = min(*reach, 0.0), max(*reach, 30.0)
    decibel = np.linspace(low, high, 160)
    curves = [
        Series(one.name, decibel.tolist(), one.target.psnr_above(decibel).tolist(), "line", style=i)
        for i, one in known
        if one.target is not None
    ]
    chart = plot(
        curves,
        title="Sharpness that an uninformed attacker reaches",
        note="Probability that the rebuilt record reaches a peak signal-to-noise ratio (PSNR). It rests on the noise "
        "of one step and the record alone: budgets that share a noise multiplier share one curve.",
        x_label="PSNR, dB",
        y_label="probability",
        x_range=(float(low), float(high)),
        y_range=(0.0, 1.0),
    )
    picture = phantom()
    pictures = [(level, f"{level:g} dB") for level in _DECIBEL]
    pictures += [
        (float(p.corridor.uninformed_psnr), f"{p.name}: {number(p.corridor.uninformed_psnr)} dB")
        for p in profiles
        if p.corridor.uninformed_psnr is not None
    ]
    strip = "".join(_pictured(degraded(picture, level), said) for level, said in sorted(pictures))
    strip += _pictured(picture, "original")
    words = paragraph("What these figures look like, on a drawn phantom (no patient):", "caption")
    return ends + beside([chart]) + words + f'<ul class="strip">{strip}</ul>'


def _pictured(picture: Floats, words: str) -> str:
    return f'<li><img alt="drawn phantom, {escape(words)}" src="{data_url(picture)}"><span>{escape(words)}</span></li>'


def _assumptions(profiles: Sequence[RiskProfile]) -> str:
    public = list(dict.fromkeys(text for one in profiles for text in one.assumed_public))
    relations = list(dict.fromkeys(one.relation for one in profiles))
    return bullets(
        [
            f"Neighbouring relation: {', '.join(relations)}. Whether a person took part, with all their entries, is "
            "the question asked.",
            *(f"Taken as known to the attacker: {text}." for text in public),
            "The noise and the sampling coins are secret and were not reused.",
            "Findings about many people, which hold for a person whether or not they took part, are not counted.",
        ]
    )
