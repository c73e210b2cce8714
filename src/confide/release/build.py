"""Making a certificate from a plan and what the run declared: public facts in, a frozen statement out.

Nothing here takes data. What the data looked like cannot reach a certificate, because no argument can carry it.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import numpy as np

from confide.accounting import Guarantee, compose
from confide.contributors import BY_PSEUDONYM, Linkage
from confide.errors import InputError
from confide.release.certificate import (
    NOT_RECORDED,
    PER_ENTRY,
    PREVIEW,
    TESTING_ONLY,
    AssumedPublic,
    Certificate,
    Citation,
    ClassGuarantee,
    FlowFacts,
    LedgerReference,
    PaidMetric,
    Part,
    Spent,
)
from confide.release.linking import linkage_facts
from confide.release.rebuild import exchanged, restate
from confide.release.words import ADVERSARY, NOT_COVERED, RELATION_MEANING, TRUSTED, UNIT_MEANING

_EXCHANGES = 20
_LIBRARIES = ("confide", "numpy", "scipy", "polars", "pydantic", "torch", "safetensors")


class PlanLike(Protocol):
    """What is read of a plan: `confide.planning.Plan` has it, and this room lies below planning."""

    @property
    def delta(self) -> float:
        """Where epsilon is read."""
        ...

    @property
    def relation(self) -> str:
        """Neighbouring relation."""
        ...

    @property
    def histogram(self) -> str:
        """Where entry counts are known from."""
        ...

    @property
    def classes(self) -> Sequence[Any]:
        """Rows with entries, budget, rate, clip_norm and entries_used."""
        ...

    def guarantee(self, plan_class: Any, /) -> Guarantee:
        """Return the guarantee of a class over all steps."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        ...

    def fingerprint(self) -> str:
        """Return the SHA-256 of the canonical JSON."""
        ...


def facts_of(guarantee: Guarantee, *, delta: float, attacks: bool = True, exchange: bool = False) -> dict[str, Any]:
    """Read off a guarantee what a certificate states of it.

    Parameters
    ----------
    guarantee : Guarantee
        The composed guarantee of one contributor.
    delta : float
        Where epsilon is read.
    attacks : bool
        Also read what a membership attack could do at best (needs the whole trade-off curve).
    exchange : bool
        Also read what exchanging a contributor costs, under zero-out (seconds for a class of many entries).

    Returns
    -------
    dict
        Fields of `confide.release.Facts`; every figure is the safe end.
    """
    low, high = guarantee.epsilon_interval(delta)
    mu = guarantee.mu
    facts: dict[str, Any] = {
        "parts": tuple(Part(mechanism=m.to_dict(), steps=steps) for m, steps in guarantee.parts),
        "epsilon": float(high),
        "epsilon_lower": float(min(low, high)),
        "delta": float(delta),
        "mu": None if mu is None else float(mu),
    }
    if attacks:
        found = _probability(1.0 - float(guarantee.tradeoff(0.01)))
        facts |= {
            "membership_advantage": _probability(guarantee.advantage()),
            "tpr_at_fpr_1pct": found,
            # Bayes: of those named, the share that took part, at a prior and a false positive rate of 1%
            "posterior_prior_1pct_fpr_1pct": 0.01 * found / (0.01 * found + 0.99 * 0.01),
        }
    if exchange and guarantee.relation == "zero-out" and (other := exchanged(guarantee)) is not None:
        facts["replace_one_epsilon"] = float(other.epsilon(delta))
    return facts


def certify(
    plan: PlanLike,
    *,
    name: str,
    charged: Sequence[tuple[Spent, Guarantee]] = (),
    kind: Literal["model", "table", "statistic", "federated"] = "model",
    unit: Literal["contributor", "entry"] = "contributor",
    unit_meaning: str | None = None,
    assumed_public: Iterable[AssumedPublic] = (),
    evaluation: Iterable[PaidMetric] = (),
    stamps: Iterable[str] = (),
    testing_only: bool = False,
    precision: str = "float32",
    ledger: LedgerReference | None = None,
    trusted: Iterable[str] = TRUSTED,
    not_covered: Iterable[str] = (),
    cite: Citation | None = None,
    created: datetime | None = None,
    versions: Mapping[str, str] | None = None,
    flow: FlowFacts | None = None,
    linkage: Linkage = BY_PSEUDONYM,
) -> Certificate:
    """State the guarantee of a release made with `plan`.

    Parameters
    ----------
    plan : Plan
        Policy and public constants; the guarantee of each of its classes is recomputed here.
    name : str
        Name of the study.
    charged : sequence of (Spent, Guarantee)
        What else the same contributors paid for this release (a noisy histogram, a DP quantile); composed into the
        guarantee of every class.
    kind, unit, unit_meaning, precision, trusted
        See `Certificate`.
    assumed_public : iterable of AssumedPublic
        Every declared fact that the run relied on.
    evaluation : iterable of PaidMetric
        Paid metrics, charged to the people they were measured on.
    stamps : iterable of str
        Further warnings. The stamps for a preview, for a guarantee per entry, for a missing ledger entry and for a set
        seed (`testing_only`) are added by themselves.
    ledger : LedgerReference, optional
        The reservation that was charged; None stamps the certificate "not recorded".
    not_covered : iterable of str
        Further limits, added to the standing list.
    flow : FlowFacts, optional
        Who receives the release and what for.
    linkage : Linkage
        How the entries of a person were found to be one person's; what wrong links cost is worked out here. Left out
        where the unit is an entry.

    Returns
    -------
    Certificate
        Without hashes; `write_release` adds them.

    Raises
    ------
    InputError
        If the plan's neighbouring relation is unknown.
    """
    if plan.relation not in RELATION_MEANING:
        raise InputError(
            f"unknown neighbouring relation {plan.relation!r}",
            where="plan.relation",
            expected=", ".join(RELATION_MEANING),
        )
    classes = _classes(plan, [guarantee for _, guarantee in charged])
    described = plan.to_dict()
    clip_unit = str(described.get("clip_unit", "contributor"))
    linked = None if unit == "entry" else linkage_facts(linkage, classes, clip_unit=clip_unit, delta=plan.delta)
    moment = (created or datetime.now(UTC)).astimezone(UTC)
    marks = list(dict.fromkeys(stamps))
    for needed, stamp in (
        (testing_only, TESTING_ONLY),
        (plan.histogram == "preview", PREVIEW),
        (unit == "entry", PER_ENTRY),
        (ledger is None, NOT_RECORDED),
    ):
        if needed and stamp not in marks:
            marks.append(stamp)
    return Certificate(
        name=name,
        kind=kind,
        created=moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        unit=unit,
        unit_meaning=unit_meaning or UNIT_MEANING[unit],
        relation=plan.relation,  # type: ignore[arg-type]
        relation_meaning=RELATION_MEANING[plan.relation],
        adversary=ADVERSARY,
        trusted=tuple(trusted),
        delta=plan.delta,
        plan=described,
        plan_fingerprint=plan.fingerprint(),
        classes=classes,
        assumed_public=tuple(assumed_public),
        spent=tuple(spent for spent, _ in charged),
        not_covered=(*NOT_COVERED, *not_covered),
        stamps=tuple(marks),
        evaluation=tuple(evaluation),
        precision=precision,
        versions=dict(versions) if versions is not None else library_versions(),
        ledger=ledger,
        flow=flow,
        linkage=linked,
        cite=cite or _citation(name, moment),
    )


def paid_metric(
    metric: str,
    guarantee: Guarantee,
    *,
    delta: float,
    value: float | None,
    low: float,
    high: float,
    who: str,
    level: float = 0.95,
    measured_per: Literal["contributor", "entry"] = "contributor",
    note: str = "",
) -> PaidMetric:
    """State a metric that leaves, with what it cost the people it was measured on."""
    return PaidMetric(
        **facts_of(guarantee, delta=delta, attacks=False),
        metric=metric,
        value=value,
        low=low,
        high=high,
        level=level,
        measured_per=measured_per,
        who=who,
        note=note,
    )


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries a result may depend on (installed ones only)."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _classes(plan: PlanLike, charged: Sequence[Guarantee]) -> tuple[ClassGuarantee, ...]:
    # Exchanging takes seconds where k is large: the extremes and a sample between them say enough.
    sampled = {round(i) for i in np.linspace(0, len(plan.classes) - 1, min(len(plan.classes), _EXCHANGES))}
    known: dict[Any, dict[str, Any]] = {}  # classes above the largest k share a mechanism: read each one off once
    rows = []
    for number, c in enumerate(plan.classes):
        total = compose([restate(one, plan.relation) for one in (plan.guarantee(c), *charged)])
        if total.parts not in known:
            known[total.parts] = facts_of(total, delta=plan.delta, exchange=number in sampled)
        rows.append(
            ClassGuarantee(
                **known[total.parts],
                entries=c.entries,
                entries_used=c.entries_used,
                budget=c.budget,
                rate=c.rate,
                clip_norm=c.clip_norm,
            )
        )
    return tuple(rows)


def _citation(name: str, moment: datetime) -> Citation:
    version = library_versions().get("confide", "")
    text = f"{name}, released {moment:%Y-%m-%d} under contributor-level differential privacy with confide {version}."
    key = "".join(letter for letter in name if letter.isalnum()) or "release"
    bibtex = (
        f"@misc{{{key}{moment:%Y%m%d},\n  title = {{{name}}},\n  year = {{{moment:%Y}}},\n"
        f"  note = {{Released under contributor-level differential privacy with confide {version}; "
        "see certificate.json}\n}"
    )
    return Citation(text=text, bibtex=bibtex)


def _probability(value: float) -> float:
    return min(1.0, max(0.0, float(value)))
