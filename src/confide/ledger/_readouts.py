"""Read-outs: histories, balances, what a release would do, receipts, the state of the whole ledger. All internal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.accounting import Guarantee
from confide.errors import InputError, VerificationError
from confide.ledger import _chunks, _levels, _tokens
from confide.ledger import _schema as schema
from confide.ledger._accounts import accounts, carried_of
from confide.ledger._admission import Admission
from confide.ledger._people import check_unique
from confide.ledger._pricing import guarantee_of, tight_epsilon, used_epsilon
from confide.ledger.records import Cap, Cohort, Receipt, Record, Remaining, Spend, Status, WhatIf

_EDGES = tuple(i / 20 for i in range(21))


class ReadOuts(Admission):
    """What the ledger answers without changing anything."""

    def what_if(
        self,
        *,
        contributors: Sequence[str] | Cohort,
        class_of: npt.NDArray[Any],
        classes: Sequence[Guarantee],
        recipient: str = "",
        purpose: str = "",
    ) -> WhatIf:
        """Price a release without writing: who would be dropped, and how full balances would be."""
        priced, members = self._priced(contributors, class_of, classes)
        who = self._hashed(contributors)
        with self._store.read() as connection:
            numbers, total = self._resolve(connection, who, register=False)
            # Contributors the ledger has never seen get numbers past the end: untouched balances.
            unknown = np.flatnonzero(numbers < 0)
            numbers = numbers.copy()
            numbers[unknown] = np.arange(total, total + len(unknown))
            check_unique(numbers, total + len(unknown))
            codes = _chunks.scatter(numbers, members, len(priced), total + len(unknown))
            before = self._used(connection, numbers, len(codes))
            caps, allowed = self._caps(connection, purpose=purpose, recipient=recipient, write=False)
            used = np.zeros(len(codes))
            for chunk, part, counters, _ in self._judge(connection, codes, priced, caps, allowed):
                here = slice(chunk * _chunks.CHUNK, (chunk + 1) * _chunks.CHUNK)
                codes[here], used[here] = part, self.rule.used(counters.T)
        admitted, after = codes[numbers] > 0, used[numbers]
        rows = tuple(
            {
                "class": i,
                "contributors": int((members == i).sum()),
                "admitted": int((admitted & (members == i)).sum()),
                "used": float(self.rule.used(p.charge[None, :])[0]),
            }
            for i, p in enumerate(priced)
        )
        return WhatIf(admitted, rows, before, after)

    def history(self, contributor: str) -> tuple[Spend, ...]:
        """Return every reservation that admitted one contributor, oldest first."""
        with self._store.read() as connection:
            return self._history(connection, _tokens.lookup(connection, self._keys.tokens([contributor])))

    def remaining(self, contributor: str) -> Remaining:
        """Return one contributor's balance; somebody the ledger has never seen (`known` is False) has an untouched one.

        The lifetime composition is over all recipients together; `caps` are those beside it.
        """
        with self._store.read() as connection:
            return self._remaining(connection, _tokens.lookup(connection, self._keys.tokens([contributor])))

    def _remaining(self, connection: sa.Connection, numbers: npt.NDArray[np.integer[Any]]) -> Remaining:
        total = self._total(connection)
        used = float(self._used(connection, numbers, total)[0])
        spends = [text for row, text in self._spends(connection, int(numbers[0])) if row.state != "aborted"]
        known = bool(numbers[0] >= 0)
        level, caps, carried = self._beside(connection, int(numbers[0]), total) if known else ("default", [], False)
        texts = tuple(sorted(spends))
        # Of somebody who was erased only sums are left: their epsilon is the bound that the rule's own sums give.
        epsilon = used_epsilon(self.rule, used) if carried else tight_epsilon(texts, self.rule.delta)
        return Remaining(
            used, epsilon, self.rule.epsilon, self.rule.delta, len(spends), known, level, tuple(caps), carried
        )

    def _beside(self, connection: sa.Connection, number: int, total: int) -> tuple[str, list[Cap], bool]:
        """Return one contributor's consent level, the caps beside the lifetime cap, and whether they were erased."""
        chunk, at = divmod(number, _chunks.CHUNK)
        size = min(_chunks.CHUNK, total - chunk * _chunks.CHUNK)
        code = int(_levels.read(connection, chunk, size)[at])
        names = {code: name for name, code in _levels.BUILT_IN.items()} | {_levels.DEFAULT: "default"}
        names |= {r.code: r.name for r in connection.execute(sa.select(schema.level))}
        caps = []
        for account in accounts(connection):
            if account.level in (None, code):
                rule = account.rule
                counters = _chunks.read_balance(connection, chunk, size, rule.width, account.id)[:, at]
                if account.level is not None or counters.any():
                    share = float(rule.used(counters[None, :])[0])
                    caps.append(Cap(account.name, account.kind, rule.epsilon, rule.delta, share))
        carried = bool(carried_of(connection, _chunks.LIFETIME, number, 1))
        return names[code], caps, carried

    def used(self, contributors: Sequence[str] | Cohort) -> npt.NDArray[np.float64]:
        """Return the used share of each contributor's balance, shape (n,), by the rule that admits (internal)."""
        who = self._hashed(contributors)
        with self._store.read() as connection:
            numbers, total = self._resolve(connection, who, register=False)
            return self._used(connection, numbers, total)

    def reservations(self) -> tuple[Record, ...]:
        """Return all reservations, oldest first."""
        with self._store.read() as connection:
            rows = connection.execute(sa.select(schema.reservation).order_by(schema.reservation.c.seq)).all()
        return tuple(_record(row) for row in rows)

    def reservation(self, reservation_id: str) -> Record:
        """Return one reservation.

        Raises
        ------
        InputError
            It is unknown.
        """
        with self._store.read() as connection:
            return _record(self._row(connection, reservation_id))

    def is_joint(self, reservation_id: str) -> bool:
        """Whether a reservation is one site's part of a joint release."""
        with self._store.read() as connection:
            return self._row(connection, reservation_id).joint is not None

    def receipt(self, reservation_id: str) -> Receipt:
        """Return the receipt of a committed reservation, for a run that was killed before it could read it.

        Raises
        ------
        InputError
            It is unknown or not committed.
        """
        with self._store.read() as connection:
            row = self._row(connection, reservation_id)
            query = sa.select(schema.journal).where(schema.journal.c.action == "commit")
            for found in connection.execute(query.order_by(schema.journal.c.seq.desc())):
                body = json.loads(found.body)
                if body["reservation"] == row.id:
                    return Receipt(self.id, row.id, found.seq, found.hash, found.seal, body["release_hash"])
        raise InputError(f"this reservation is {row.state}", where=reservation_id, expected="a committed one")

    def find(self, receipt: Receipt | dict[str, Any]) -> Record:
        """Find what a receipt stands for.

        Raises
        ------
        VerificationError
            The receipt is of another ledger, or the journal does not hold this entry.
        """
        try:
            wanted = receipt if isinstance(receipt, Receipt) else Receipt.from_dict(receipt)
        except (KeyError, TypeError) as error:
            raise VerificationError("this is not a receipt of a ledger") from error
        if wanted.ledger != self.id:
            raise VerificationError("the receipt is of another ledger", where=self.where)
        with self._store.read() as connection:
            found = connection.execute(sa.select(schema.journal).where(schema.journal.c.seq == wanted.seq)).first()
            body = json.loads(found.body) if found is not None else {}
            if (
                found is None
                or (found.action, found.hash, found.seal) != ("commit", wanted.hash, wanted.seal)
                or (body.get("reservation"), body.get("release_hash")) != (wanted.reservation, wanted.release_hash)
            ):
                raise VerificationError(
                    "the ledger does not hold this receipt", where=self.where, expected="the entry it names"
                )
            return _record(self._row(connection, wanted.reservation))

    def status(self) -> Status:
        """Return the state of the whole ledger: cap, number of contributors, balances as a histogram (internal)."""
        counts = np.zeros(len(_EDGES) - 1, dtype=np.int64)
        with self._store.read() as connection:
            total = self._total(connection)
            for chunk in range(-(-total // _chunks.CHUNK)):
                size = min(_chunks.CHUNK, total - chunk * _chunks.CHUNK)
                used = self.rule.used(_chunks.read_balance(connection, chunk, size, self.rule.width).T)
                counts += np.histogram(used, bins=_EDGES)[0]
            table = schema.reservation
            states = connection.execute(sa.select(table.c.state, sa.func.count()).group_by(table.c.state)).all()
            last = connection.execute(sa.select(sa.func.max(schema.journal.c.seq))).scalar()
        by_state = {str(state): int(count) for state, count in states}
        return Status(
            self.where, self.id, self.rule.to_dict(), total, by_state, int(last or 0), _EDGES, tuple(counts.tolist())
        )

    def export_releases(self) -> list[dict[str, Any]]:
        """Return one row a class of every reservation: what was released, to whom it applied and by which mechanism."""
        row, spend = schema.reservation, schema.spend
        query = (
            sa.select(row, spend.c["class"], spend.c.guarantee, spend.c.admitted.label("in_class"))
            .join(spend, spend.c.reservation == row.c.seq)
            .order_by(row.c.seq, spend.c["class"])
        )
        with self._store.read() as connection:
            found = connection.execute(query).mappings().all()
        names = ("id", "release", "data_set", "state", "created", "release_hash", "class", "in_class", "guarantee")
        return [{name: item[name] for name in names} for item in found]

    def export_balances(self) -> dict[str, Any]:
        """Return pseudonym and used share of everybody (internal), as two columns."""
        with self._store.read() as connection:
            tokens = _tokens.everything(connection)
            used = self._used(connection, np.arange(len(tokens)), len(tokens))
        raw = tokens.astype(">u8").tobytes().hex()
        return {"pseudonym": [raw[i : i + 32] for i in range(0, len(raw), 32)], "used": used}

    def _used(
        self, connection: sa.Connection, numbers: npt.NDArray[np.integer[Any]], total: int
    ) -> npt.NDArray[np.float64]:
        out = np.zeros(len(numbers))
        known = np.flatnonzero(numbers >= 0)
        chunk_of = numbers[known] // _chunks.CHUNK
        for chunk in np.unique(chunk_of).tolist():
            inside = known[chunk_of == chunk]
            if len(inside) <= 4:
                at = (numbers[inside] % _chunks.CHUNK).tolist()
                rows = [_chunks.read_one_balance(connection, chunk, one, self.rule.width) for one in at]
                out[inside] = self.rule.used(np.stack(rows))
                continue
            size = max(1, min(_chunks.CHUNK, total - chunk * _chunks.CHUNK))
            counters = _chunks.read_balance(connection, chunk, size, self.rule.width)
            out[inside] = self.rule.used(counters.T[numbers[inside] % _chunks.CHUNK])
        return out

    def _history(self, connection: sa.Connection, numbers: npt.NDArray[np.integer[Any]]) -> tuple[Spend, ...]:
        return tuple(
            Spend(
                row.release,
                row.data_set,
                row.state,
                row.created,
                row.id,
                guarantee_of(text),
                row.recipient,
                row.purpose,
                row.joint,
            )
            for row, text in self._spends(connection, int(numbers[0]))
        )

    def _spends(self, connection: sa.Connection, number: int) -> list[tuple[sa.Row[Any], str]]:
        """Return each reservation that admitted one contributor with the guarantee of their class, oldest first."""
        if number < 0:
            return []
        chunk, at = divmod(number, _chunks.CHUNK)
        wanted = _chunks.codes_of_one(connection, chunk, at)
        found: list[tuple[sa.Row[Any], str]] = []
        table, spend = schema.reservation, schema.spend
        for start in range(0, len(wanted), 300):
            these = sa.tuple_(spend.c.reservation, spend.c["class"]).in_(
                [(seq, code - 1) for seq, code in wanted[start : start + 300]]
            )
            query = sa.select(table, spend.c.guarantee).join(spend, spend.c.reservation == table.c.seq).where(these)
            found += [(row, row.guarantee) for row in connection.execute(query.order_by(table.c.seq))]
        return found


def _record(row: sa.Row[Any]) -> Record:
    return Record(
        row.id,
        row.release,
        row.data_set,
        row.state,
        row.created,
        row.admitted,
        row.dropped,
        row.release_hash,
        row.recipient,
        row.purpose,
    )
