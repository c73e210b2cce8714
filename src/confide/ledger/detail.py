"""One release and one contributor in detail, read for pages and exports. Internal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from confide.accounting import Guarantee
from confide.errors import InputError
from confide.ledger import _journal, _tokens
from confide.ledger import _schema as schema
from confide.ledger._pricing import guarantee_of, tight_epsilon
from confide.ledger.flows import CURVE
from confide.ledger.ledger import Ledger
from confide.ledger.odometer import Person, draws, tokens_of
from confide.ledger.records import Receipt, Record


@dataclass(frozen=True)
class ClassDetail:
    """Contributors of a release who share a guarantee: how many, and which share of an untouched balance it costs."""

    number: int
    admitted: int
    share: float
    text: str = field(repr=False)

    @property
    def guarantee(self) -> Guarantee:
        """What each of them is guaranteed."""
        return guarantee_of(self.text)


@dataclass(frozen=True)
class ReleaseDetail:
    """A release as the ledger holds it."""

    record: Record
    recipient: str
    purpose: str
    owner: str
    joint: str
    classes: tuple[ClassDetail, ...]
    receipt: Receipt | None
    delta: float

    @property
    def dearest(self) -> ClassDetail:
        """The class that it costs most."""
        return max(self.classes, key=lambda c: (c.share, draws(c.guarantee)))

    def epsilon(self, one: ClassDetail) -> float:
        """Return the tight epsilon of a class at the ledger's delta."""
        return tight_epsilon((one.text,), self.delta)

    def tradeoff(self) -> tuple[list[float], list[float]]:
        """Return (false positive rates, least false negative rates) of the dearest class."""
        fpr = sorted({0.0, *CURVE, *np.linspace(0, 1, 41).round(4).tolist(), 1.0})
        return fpr, [float(v) for v in self.dearest.guarantee.tradeoff(np.asarray(fpr))]


def release_detail(ledger: Ledger, reservation: str) -> ReleaseDetail:
    """Return one release.

    Raises
    ------
    InputError
        It is unknown.
    """
    spend = schema.spend
    record = ledger.reservation(reservation)
    with ledger._store.read() as connection:
        row = ledger._row(connection, reservation)
        found = connection.execute(
            sa.select(spend).where(spend.c.reservation == row.seq).order_by(spend.c["class"])
        ).mappings()
        classes = []
        for one in found:
            charge = np.array(json.loads(one["charge"]), dtype=np.uint64)
            share = float(ledger.rule.used(charge[None, :])[0])
            classes.append(ClassDetail(one["class"], one["admitted"], share, one["guarantee"]))
    if not classes:
        raise InputError("the release has no classes", where=reservation)
    receipt = ledger.receipt(reservation) if record.state == "committed" else None
    return ReleaseDetail(
        record,
        row.recipient or "",
        row.purpose or "",
        row.owner or "",
        row.joint or "",
        tuple(classes),
        receipt,
        ledger.rule.delta,
    )


def course_of(ledger: Ledger, person: Person) -> tuple[list[float], list[float]]:
    """Return the used share after each release of a contributor, and the tight epsilon of each release alone."""
    with ledger._store.read() as connection:
        number = int(_tokens.lookup(connection, tokens_of(person.pseudonym))[0])
        found = ledger._spends(connection, number)
    total = np.zeros(ledger.rule.width, dtype=np.uint64)
    used, epsilons = [], []
    for row, text in found[: len(person.spends)]:
        if row.state != "aborted":
            total = total + ledger._price(text).charge
        used.append(float(ledger.rule.used(total[None, :])[0]))
        epsilons.append(tight_epsilon((text,), ledger.rule.delta))
    return used, epsilons


def journal_end(ledger: Ledger) -> dict[str, Any]:
    """Return number, time and hash of the journal's last entry."""
    table = schema.journal
    with ledger._store.read() as connection:
        row = connection.execute(sa.select(table).order_by(table.c.seq.desc()).limit(1)).first()
    if row is None:
        return {"seq": 0, "at": "", "hash": _journal.START, "action": ""}
    return {"seq": row.seq, "at": row.at, "hash": row.hash, "action": row.action}
