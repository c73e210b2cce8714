"""Who may still be admitted, for everybody at once: charges are added to packed balances and judged by the rule."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.accounting import Guarantee
from confide.errors import BudgetError, InputError
from confide.ledger import _chunks, _journal, _levels
from confide.ledger import _schema as schema
from confide.ledger._accounts import Account, Scale, accounts, carried_of, open_account, period_key, rebuilt
from confide.ledger._people import People
from confide.ledger._pricing import Priced
from confide.ledger.filter import Counters
from confide.ledger.records import Cohort

RELATIONS = {"add/remove": ("add/remove", "zero-out"), "replace-one": ("replace-one",)}


class Judged(NamedTuple):
    """A chunk after a release: codes of the admitted, new counters, and those of the accounts beside."""

    chunk: int
    part: npt.NDArray[Any]
    counters: Counters
    beside: list[tuple[int, Counters]]


class Admission(People):
    """Pricing, judging and recomputing balances, set by set."""

    def _priced(
        self, contributors: Sequence[str] | Cohort, class_of: npt.NDArray[Any], classes: Sequence[Guarantee]
    ) -> tuple[list[Priced], npt.NDArray[Any]]:
        """Check classes and price each of them once."""
        members = np.asarray(class_of)
        if len(classes) == 0 or len(contributors) == 0:
            raise InputError("a reservation needs at least one contributor and one class")
        if members.ndim != 1 or len(members) != len(contributors) or not np.issubdtype(members.dtype, np.integer):
            raise InputError(
                "class_of does not fit the contributors",
                expected=f"{len(contributors)} integers, one a contributor",
            )
        if members.min() < 0 or members.max() >= len(classes):
            raise InputError("class_of names a class that is not there", expected=f"0 to {len(classes) - 1}")
        for guarantee in classes:
            if guarantee.relation not in RELATIONS[self.relation]:
                raise InputError(
                    f"this ledger counts {self.relation} guarantees, not {guarantee.relation}",
                    expected=" or ".join(RELATIONS[self.relation]),
                    remedy="plan with that relation, or keep a second ledger",
                )
        return [self._price(_journal.canonical(g.to_dict())) for g in classes], members

    def _judge(
        self,
        connection: sa.Connection,
        codes: npt.NDArray[Any],
        priced: Sequence[Priced],
        also: Sequence[Account] = (),
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> Iterator[Judged]:
        """Apply every rule to all contributors at once, a chunk at a time.

        Parameters
        ----------
        also : sequence of Account
            Caps beside the lifetime cap.
        allowed : ndarray of bool, shape (256,), optional
            Which consent levels allow the release; None: nothing was ever recorded.
        """
        scale = Scale(self.rule, priced)
        sides = [(account, Scale(account.rule, account.prices(priced))) for account in also]
        for chunk in _chunks.touched(codes):
            part = codes[chunk * _chunks.CHUNK : (chunk + 1) * _chunks.CHUNK]
            old = _chunks.read_balance(connection, chunk, len(part), scale.orders)
            new, good = scale.weigh(old, part)
            beside: list[tuple[int, Counters, Counters]] = []
            if allowed is not None:
                levels = _levels.read(connection, chunk, len(part))
                good &= allowed[levels]
                for account, side in sides:
                    mine = part if account.level is None else np.where(levels == account.level, part, 0)
                    before = _chunks.read_balance(connection, chunk, len(part), side.orders, account.id)
                    after, holds = side.weigh(before, mine)
                    good &= holds | (mine == 0)
                    beside.append((account.id, before, after))
            out = (part > 0) & ~good
            if out.any():
                new[:, out] = old[:, out]
                for _, before, after in beside:
                    after[:, out] = before[:, out]
                part = np.where(out, 0, part).astype(codes.dtype)
            yield Judged(chunk, part, new, [(account, after) for account, _, after in beside])

    def _caps(
        self, connection: sa.Connection, *, purpose: str, recipient: str, write: bool
    ) -> tuple[list[Account], npt.NDArray[np.bool_] | None]:
        """Return the caps beside the lifetime cap that a release falls under, and which levels allow it."""
        caps = accounts(connection, kind="level")
        table = schema.allowance
        declared = connection.execute(sa.select(table)).all()
        row = next((r for r in declared if r.recipient == recipient), None)
        row = row or next((r for r in declared if r.recipient == "*"), None)
        if declared and row is None:
            raise BudgetError(
                "this recipient has no allowance" if recipient else "no recipient was named",
                where=self.where,
                expected="a recipient with a declared allowance: " + ", ".join(sorted(r.recipient for r in declared)),
                remedy='declare one (`confide ledger allowance`), or one for "*", all others together',
            )
        if row is not None:
            at = self._ledger_time(connection)
            name = f"{row.recipient}:{period_key(row.period, at)}"
            found = next((a for a in accounts(connection, kind="allowance") if a.name == name), None)
            if found is None and write:
                found = open_account(connection, name, "allowance", row.rule)
                body = {"account": name, "recipient": row.recipient, "rule": json.loads(row.rule), "clock": at}
                _journal.append(connection, self._keys, "renew", body)
            caps.append(found or Account(-1, name, "allowance", row.rule))
        if not caps and not _levels.anything(connection):
            return [], None
        return caps, _levels.allowed(connection, purpose=purpose, recipient=recipient)

    def check_recipient(self, recipient: str) -> None:
        """Refuse a recipient without an allowance where allowances are declared; nothing is written.

        Raises
        ------
        BudgetError
            As `reserve` would.
        """
        with self._store.read() as connection:
            self._caps(connection, purpose="", recipient=recipient, write=False)

    def _ledger_time(self, connection: sa.Connection) -> str:
        """Return the time that periods follow: the clock, but never earlier than the last entry of the journal.

        A clock that is set back cannot reopen an old period, and one that jumps ahead renews an allowance early at
        most: the lifetime cap does not read the clock.
        """
        table = schema.journal
        last = connection.execute(sa.select(sa.func.max(table.c.at))).scalar()
        return max(_journal.now(), str(last or ""))

    def _refuse(self, admitted: npt.NDArray[np.bool_], exhausted: str) -> None:
        if admitted.all() or (exhausted == "drop" and admitted.any()):
            return
        raise BudgetError(
            f"internal, must not leave: {int((~admitted).sum())} of {len(admitted)} contributors have too little "
            "balance left; nothing was spent",
            where=self.where,
            expected=f"a plan within what is left of epsilon {self.rule.epsilon} at delta {self.rule.delta}",
            remedy="plan a cheaper release (`confide ledger what-if` prices it)",
        )

    def _recompute(self, connection: sa.Connection, chunks: Sequence[int]) -> None:
        """Rebuild counters from every reservation that counts, in every account."""
        everything: list[Account | None] = [None, *accounts(connection)]
        charges = {a.id if a else _chunks.LIFETIME: self._charges(connection, a) for a in everything}
        total = self._total(connection)
        for chunk in chunks:
            size = min(_chunks.CHUNK, total - chunk * _chunks.CHUNK)
            codes = _chunks.read_codes(connection, chunk)
            for account in everything:
                number = account.id if account else _chunks.LIFETIME
                fresh = self._rebuilt(connection, chunk, size, codes, charges[number], account)
                if account is None or fresh.any() or _chunks.has_balance(connection, chunk, number):
                    _chunks.write_balance(self._store, connection, chunk, fresh, number)

    def _rebuilt(
        self,
        connection: sa.Connection,
        chunk: int,
        size: int,
        codes: dict[int, npt.NDArray[Any]],
        charges: dict[int, Counters],
        account: Account | None,
    ) -> Counters:
        """Return what one account's counters of a chunk must be."""
        number = account.id if account else _chunks.LIFETIME
        rule = account.rule if account else self.rule
        only = None
        if account is not None and account.level is not None:
            only = _levels.read(connection, chunk, size) == account.level
        carried = carried_of(connection, number, chunk * _chunks.CHUNK, size)
        return rebuilt(codes, charges, size, rule.width, carried=carried, only=only)

    def _charges(self, connection: sa.Connection, account: Account | None = None) -> dict[int, Counters]:
        """Return {reservation: charge of every code, shape (K, classes + 1)} of everything that counts."""
        spend = schema.spend if account is None else schema.account_spend
        row = schema.reservation
        query = (
            sa.select(spend.c.reservation, spend.c.charge)
            .join(row, row.c.seq == spend.c.reservation)
            .where(row.c.state != "aborted")
            .order_by(spend.c.reservation, spend.c["class"])
        )
        if account is not None:
            query = query.where(schema.account_spend.c.account == account.id)
        width = (account.rule if account else self.rule).width
        columns: dict[int, list[list[int]]] = {}
        for found in connection.execute(query):
            columns.setdefault(found.reservation, [[0] * width]).append(json.loads(found.charge))
        return {seq: np.array(rows, dtype=np.uint32).T for seq, rows in columns.items()}
