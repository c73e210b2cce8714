"""Consent and budgets: levels that an institution offers and people choose, and allowances of recipients that renew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.errors import InputError
from confide.ledger import _chunks, _journal, _levels
from confide.ledger import _schema as schema
from confide.ledger._accounts import PERIODS, Account, accounts, carried_digest, open_account, priced_at
from confide.ledger._admission import Admission
from confide.ledger.filter import FULL, Filter
from confide.ledger.records import Cohort


class Consent(Admission):
    """What people agreed to, what an institution's policy allows, what a recipient may receive."""

    def define_level(
        self,
        name: str,
        *,
        cap_epsilon: float | None = None,
        cap_delta: float | None = None,
        purposes: Sequence[str] | None = None,
        recipients: Sequence[str] | None = None,
        closed: bool = False,
    ) -> None:
        """Declare a consent level, for good: what people who choose it may spend in total, for what and to whom.

        The level named "default" is the institution's policy for everybody who has not chosen.

        Parameters
        ----------
        cap_epsilon, cap_delta : float, optional
            A lifetime cap below the ledger's; None: the ledger's.
        purposes, recipients : sequence of str, optional
            The only ones allowed; None: any.
        closed : bool
            Nothing at all is allowed.

        Raises
        ------
        InputError
            A name that exists, a cap above the ledger's, more than 250 levels.
        """
        if not isinstance(name, str) or not name or name in _levels.BUILT_IN:
            raise InputError(f"a consent level cannot be named {name!r}", expected="a new name")
        for what, named in (("purposes", purposes), ("recipients", recipients)):
            if named is not None and (isinstance(named, str) or not all(isinstance(v, str) and v for v in named)):
                raise InputError(f"the {what} of a consent level are not a list of texts")
        rule = self._smaller_rule(cap_epsilon, cap_delta)
        with self._store.write() as connection:
            self._check_key(connection)
            rows = connection.execute(sa.select(schema.level)).all()
            if name in {row.name for row in rows}:
                raise InputError(
                    f"there is a consent level {name!r} already", remedy="levels never change: define a new one"
                )
            used = {row.code for row in rows}
            code = _levels.DEFAULT if name == "default" else next((c for c in range(1, 251) if c not in used), 0)
            if name != "default" and not code:
                raise InputError("there are 250 consent levels already")
            account = None if rule is None else open_account(connection, f"level:{name}", "level", rule)
            values: dict[str, Any] = {
                "purposes": None if purposes is None else _journal.canonical(sorted(purposes)),
                "recipients": None if recipients is None else _journal.canonical(sorted(recipients)),
                "closed": int(closed),
            }
            row = {"code": code, "name": name, "account": account.id if account else None, **values}
            connection.execute(sa.insert(schema.level).values(**row))
            if account is not None:
                self._price_history(connection, account)
            body = {**row, "rule": None if rule is None else json.loads(rule), "carried": carried_digest(connection)}
            entry = _journal.append(connection, self._keys, "level", body)
            if account is not None:
                self._recompute(connection, range(-(-self._total(connection) // _chunks.CHUNK)))
        self._remember(entry)

    def _smaller_rule(self, epsilon: float | None, delta: float | None) -> str | None:
        """Return the rule of a cap that is no larger than the ledger's."""
        if epsilon is None and delta is None:
            return None
        rule = Filter.design(
            self.rule.epsilon if epsilon is None else epsilon, self.rule.delta if delta is None else delta
        )
        if rule.epsilon > self.rule.epsilon or rule.delta > self.rule.delta:
            raise InputError(
                "this cap is larger than the lifetime cap of the ledger",
                expected=f"at most epsilon {self.rule.epsilon} and delta {self.rule.delta}",
            )
        return _journal.canonical(rule.to_dict())

    def _price_history(self, connection: sa.Connection, account: Account) -> None:
        """Price everything that was ever reserved by a new account's rule, so that nobody's history is left behind."""
        spend = schema.spend
        rows = connection.execute(sa.select(spend.c.reservation, spend.c["class"], spend.c.guarantee)).all()
        found = [
            {
                "account": account.id,
                "reservation": r.reservation,
                "class": r[1],
                "charge": priced_at(account.rule_text, r.guarantee).charge_text,
            }
            for r in rows
        ]
        if found:
            connection.execute(sa.insert(schema.account_spend), found)
        # Of people who were erased only sums are left, and those fit no new rule: this level stays closed for them.
        kept = schema.carried
        query = sa.select(kept.c.number).where(kept.c.account == _chunks.LIFETIME)
        full = np.full(account.rule.width, FULL, dtype="<u4").tobytes()
        closed = [{"account": account.id, "number": n, "counters": full} for n in connection.execute(query).scalars()]
        if closed:
            connection.execute(sa.insert(kept), closed)

    def set_consent(self, contributors: Sequence[str] | Cohort, level: str) -> None:
        """Record the consent level of contributors; what they have spent already counts under the new level too.

        Raises
        ------
        InputError
            The level is unknown, or an id is missing or given twice.
        """
        who = self._hashed(contributors)
        with self._store.write() as connection:
            numbers, total = self._resolve(connection, who, register=True)
            codes = _levels.BUILT_IN | {r.name: r.code for r in connection.execute(sa.select(schema.level))}
            codes = {"default": _levels.DEFAULT, **codes}
            if level not in codes or level == "erased":
                raise InputError(
                    f"there is no consent level {level!r}",
                    expected=", ".join(sorted(set(codes) - {"erased"})),
                    remedy="define it first: confide ledger level NAME --cap-epsilon ...",
                )
            chunks = self._set_level(connection, numbers, codes[level], total)
            body = {"level": level, "count": len(numbers), "chunks": chunks}
            entry = _journal.append(connection, self._keys, "consent", body)
        self._remember(entry)

    def _set_level(
        self, connection: sa.Connection, numbers: npt.NDArray[np.integer[Any]], code: int, total: int
    ) -> list[list[Any]]:
        """Write a level and move balances between the levels' accounts; return [chunk, digest] for the journal."""
        out: list[list[Any]] = []
        for chunk, at in _levels.chunks_of(numbers):
            size = min(_chunks.CHUNK, total - chunk * _chunks.CHUNK)
            levels = _levels.read(connection, chunk, size)
            before = set(np.unique(levels[at]).tolist())
            levels[at] = code
            out.append([chunk, _levels.write(self._store, connection, chunk, levels)])
            touched = [a for a in accounts(connection, kind="level") if a.level in before | {code}]
            if not touched:
                continue
            codes = _chunks.read_codes(connection, chunk)
            for account in touched:
                charges = self._charges(connection, account)
                fresh = self._rebuilt(connection, chunk, size, codes, charges, account)
                _chunks.write_balance(self._store, connection, chunk, fresh, account.id)
        return out

    def withdraw(self, contributors: Sequence[str] | Cohort) -> None:
        """Record that contributors withdrew their consent: no new release admits them; what was spent stays spent."""
        self.set_consent(contributors, "withdrawn")

    def consent(self, contributor: str) -> str:
        """Return one contributor's consent level."""
        from confide.ledger._readouts import ReadOuts

        assert isinstance(self, ReadOuts)
        return self.remaining(contributor).level

    def set_allowance(self, recipient: str, *, cap_epsilon: float, cap_delta: float, period: str = "year") -> None:
        """Declare what one recipient may receive about each contributor in a period; it renews with every period.

        As soon as one allowance is declared, every release must name a recipient that has one ("*" stands for all
        others together). The lifetime cap over all recipients together holds beside it, always. A change takes effect
        with the next period for a recipient who has received something in the present one.

        Parameters
        ----------
        period : {"month", "quarter", "year", "once"}
            How often it renews (calendar periods in UTC); "once": never.

        Raises
        ------
        InputError
            A bad cap or one above the ledger's, or an unknown period.
        """
        if not isinstance(recipient, str) or not recipient:
            raise InputError("an allowance needs the name of a recipient", expected='a text, or "*" for all others')
        if period not in PERIODS:
            raise InputError(f"period={period!r}", expected=" or ".join(PERIODS))
        rule = self._smaller_rule(cap_epsilon, cap_delta)
        row = {"recipient": recipient, "rule": rule, "period": period}
        with self._store.write() as connection:
            self._check_key(connection)
            self._store.insert_or_replace(connection, schema.allowance, [row])
            body = {"recipient": recipient, "rule": json.loads(str(rule)), "period": period}
            entry = _journal.append(connection, self._keys, "allowance", body)
        self._remember(entry)

    def policy(self) -> dict[str, Any]:
        """Return the levels and allowances that are declared, as plain values."""
        with self._store.read() as connection:
            levels = connection.execute(sa.select(schema.level).order_by(schema.level.c.code)).all()
            caps = {a.id: a.rule for a in accounts(connection, kind="level")}
            declared = connection.execute(sa.select(schema.allowance).order_by(schema.allowance.c.recipient)).all()
        shown = [
            {
                "name": r.name,
                "cap_epsilon": caps[r.account].epsilon if r.account else self.rule.epsilon,
                "cap_delta": caps[r.account].delta if r.account else self.rule.delta,
                "purposes": None if r.purposes is None else json.loads(r.purposes),
                "recipients": None if r.recipients is None else json.loads(r.recipients),
                "closed": bool(r.closed),
            }
            for r in levels
        ]
        rules = [(r, Filter.from_dict(json.loads(r.rule))) for r in declared]
        return {
            "lifetime": {"cap_epsilon": self.rule.epsilon, "cap_delta": self.rule.delta},
            "levels": shown,
            "allowances": [
                {"recipient": r.recipient, "cap_epsilon": f.epsilon, "cap_delta": f.delta, "period": r.period}
                for r, f in rules
            ],
        }
