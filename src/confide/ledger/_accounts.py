"""Caps beside the lifetime cap, all judged at once: consent levels with a cap of their own, allowances of recipients.

Every account is a filter of its own over the releases that are charged to it (`confide.ledger.filter` has the proof); a
release is admitted for a contributor only if every account that applies to them still holds, so an account can only
take admissions away and the lifetime cap holds whatever the others say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.ledger import _schema as schema
from confide.ledger._pricing import Priced, price
from confide.ledger.filter import FULL, Counters, Filter, add, within

Codes = npt.NDArray[Any]

PERIODS = ("month", "quarter", "year", "once")


@lru_cache(maxsize=64)
def _rule(text: str) -> Filter:
    return Filter.from_dict(json.loads(text))


@lru_cache(maxsize=8192)
def priced_at(rule_text: str, guarantee_text: str) -> Priced:
    """Price a class by the rule of an account."""
    return price(_rule(rule_text), guarantee_text)


@dataclass(frozen=True)
class Account:
    """One cap: its number, name, kind ("level" or "allowance"), rule, and the consent level that it is of, if any."""

    id: int
    name: str
    kind: str
    rule_text: str
    level: int | None = None

    @property
    def rule(self) -> Filter:
        """The filter that admits."""
        return _rule(self.rule_text)

    def prices(self, priced: Sequence[Priced]) -> list[Priced]:
        """Return what classes cost by this account's rule."""
        return [priced_at(self.rule_text, one.text) for one in priced]


def accounts(connection: sa.Connection, *, kind: str | None = None) -> list[Account]:
    """Return all accounts, or those of a kind, in the order of their numbers."""
    table, level = schema.account, schema.level
    query = sa.select(table, level.c.code).outerjoin(level, level.c.account == table.c.id).order_by(table.c.id)
    found = [Account(r.id, r.name, r.kind, r.rule, r.code) for r in connection.execute(query)]
    return [one for one in found if kind in (None, one.kind)]


def open_account(connection: sa.Connection, name: str, kind: str, rule: str) -> Account:
    """Add an account."""
    last = connection.execute(sa.select(sa.func.max(schema.account.c.id))).scalar()
    number = int(last or 0) + 1
    connection.execute(sa.insert(schema.account).values(id=number, name=name, kind=kind, rule=rule))
    return Account(number, name, kind, rule)


def period_key(period: str, at: str) -> str:
    """Return the name of the period that a time (ISO 8601, UTC) lies in.

    >>> [period_key(period, "2026-11-22T02:00:00+00:00") for period in PERIODS]
    ['2026-11', '2026-Q4', '2026', 'lifetime']
    """
    year, month = at[:4], int(at[5:7])
    return {"month": at[:7], "quarter": f"{year}-Q{(month + 2) // 3}", "year": year, "once": "lifetime"}[period]


class Scale:
    """What each code of a release costs by one rule, and how balances are weighed with it."""

    def __init__(self, rule: Filter, priced: Sequence[Priced]) -> None:
        self.orders = rule.width
        self.lut: Counters = np.zeros((rule.width, len(priced) + 1), dtype=np.uint32)
        self.lut[:, 1:] = np.stack([p.charge for p in priced], axis=1)
        self.closing = np.zeros(len(priced) + 1, dtype=bool)
        self.closing[1:] = [p.closes for p in priced]

    def weigh(self, old: Counters, part: Codes) -> tuple[Counters, npt.NDArray[np.bool_]]:
        """Return the counters after the release, and for whom the rule still holds."""
        new, at = np.empty_like(old), part.astype(np.intp)
        for k in range(self.orders):
            new[k] = add(old[k], self.lut[k].take(at))
        good = within(new)
        if self.closing.any():
            closes = self.closing.take(at) & ~good & (old == 0).all(axis=0)
            new[:, closes] = FULL
            good |= closes
        return new, good


def carried_of(connection: sa.Connection, account: int, first: int, size: int) -> dict[int, Counters]:
    """Return {position in a chunk: counters} of erased people."""
    table = schema.carried
    query = sa.select(table.c.number, table.c.counters).where(
        table.c.account == account, table.c.number >= first, table.c.number < first + size
    )
    return {int(r.number) - first: np.frombuffer(r.counters, dtype="<u4").copy() for r in connection.execute(query)}


def rebuilt(
    codes: dict[int, Codes],
    charges: dict[int, Counters],
    size: int,
    orders: int,
    *,
    carried: dict[int, Counters] | None = None,
    only: npt.NDArray[np.bool_] | None = None,
) -> Counters:
    """Return the counters that reservations add up to, shape (orders, size).

    Parameters
    ----------
    carried : dict, optional
        What erased people had spent before their memberships were removed.
    only : ndarray of bool, shape (size,), optional
        Whom the account is for; everybody else has zeros.
    """
    total = np.zeros((orders, size), dtype=np.uint64)
    for seq, array in codes.items():
        if seq in charges:
            total[:, : len(array)] += charges[seq][:, array]
    if only is not None:
        total[:, ~only] = 0
    for at, counters in (carried or {}).items():
        total[:, at] += counters
    found = np.minimum(total, FULL).astype(np.uint32)
    # Past every allowance is who was closed by one release, or came to a level having spent more than it allows.
    found[:, ~within(found)] = FULL
    return found


def carried_digest(connection: sa.Connection) -> str:
    """Return one hash of everything that was carried over."""
    table = schema.carried
    running = hashlib.sha256()
    for row in connection.execute(sa.select(table).order_by(table.c.account, table.c.number)):
        running.update(f"{row.account}:{row.number}:".encode() + bytes(row.counters))
    return running.hexdigest()
