"""Erasure: everything about a person that can go, goes; the token and the balance stay, to honour past promises."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.errors import InputError
from confide.ledger import _chunks, _journal, _levels, _tokens
from confide.ledger import _schema as schema
from confide.ledger._accounts import Account, accounts, carried_digest, carried_of, rebuilt
from confide.ledger._consent import Consent


class Erasure(Consent):
    """The right to be forgotten, beside the promise that nobody returns with a fresh balance."""

    def erase(self, contributors: Sequence[str], *, override: str | None = None) -> int:
        """Remove every membership and attribute of contributors; keep their token and their balance.

        Which releases and data sets they were in, with which class, and what they agreed to are removed. What stays is
        the keyed hash and the sums that were spent, the least that keeps past promises: somebody who returns finds the
        balance they left. No new release admits them unless consent is recorded anew. Copies made earlier (backups)
        still hold what they held.

        Parameters
        ----------
        override : str, optional
            A stated reason to remove token and sums as well. The journal keeps it as "budget history lost": whoever
            returns under the same id then starts with an untouched balance, and the lifetime cap no longer covers
            what was released before.

        Returns
        -------
        int
            How many of them the ledger knew.

        Raises
        ------
        InputError
            An id is missing or not text, or the override gives no reason.
        """
        if override is not None and (not isinstance(override, str) or not override.strip()):
            raise InputError("an override needs a stated reason", expected="a text that the journal keeps")
        tokens = self._keys.tokens(contributors)
        with self._store.write() as connection:
            self._check_key(connection)
            if self._store.sqlite:
                connection.exec_driver_sql("PRAGMA secure_delete = ON")
            numbers = np.unique(_tokens.lookup(connection, tokens))
            numbers = numbers[numbers >= 0]
            if not len(numbers):
                return 0
            total = self._total(connection)
            self._carry(connection, numbers, total, keep=override is None)
            body: dict[str, Any] = {"count": len(numbers), **self._forget_memberships(connection, numbers, total)}
            body["chunks"] = self._set_level(connection, numbers, _levels.ERASED, total)
            if override is not None:
                body |= {"override": override.strip(), "note": "budget history lost"}
                everything = _tokens.everything(connection)
                for number in numbers.tolist():
                    # A random token that no key maps to: the number stays taken, and nobody can be found under it.
                    everything[number] = np.frombuffer(secrets.token_bytes(16), dtype=">u8").astype(np.uint64)
                _tokens.replace_all(self._store, connection, everything)
                body["tokens"] = _tokens.digest(everything)
            self._recompute(connection, [chunk for chunk, _ in _levels.chunks_of(numbers)])
            body["carried"] = carried_digest(connection)
            entry = _journal.append(connection, self._keys, "erase", body)
        self._remember(entry)
        return len(numbers)

    def _carry(
        self, connection: sa.Connection, numbers: npt.NDArray[np.integer[Any]], total: int, *, keep: bool
    ) -> None:
        """Keep the sums of people whose memberships go, in every account."""
        rows: list[dict[str, Any]] = []
        everything: list[Account | None] = [None, *accounts(connection)]
        for account in everything if keep else []:
            number, rule = (account.id, account.rule) if account else (_chunks.LIFETIME, self.rule)
            charges = self._charges(connection, account)
            for chunk, at in _levels.chunks_of(numbers):
                size = min(_chunks.CHUNK, total - chunk * _chunks.CHUNK)
                # At every level, not only at the one they have now: whoever comes back may choose another.
                codes = _chunks.read_codes(connection, chunk)
                carried = carried_of(connection, number, chunk * _chunks.CHUNK, size)
                counters = rebuilt(codes, charges, size, rule.width, carried=carried)[:, at]
                for position, column in zip(at.tolist(), counters.T, strict=True):
                    if column.any():
                        kept = column.astype("<u4").tobytes()
                        rows.append({"account": number, "number": chunk * _chunks.CHUNK + position, "counters": kept})
        table = schema.carried
        for start in range(0, len(numbers), 500):
            some = numbers[start : start + 500].tolist()
            connection.execute(sa.delete(table).where(table.c.number.in_(some)))
        if rows:
            connection.execute(sa.insert(table), rows)

    def _forget_memberships(
        self, connection: sa.Connection, numbers: npt.NDArray[np.integer[Any]], total: int
    ) -> dict[str, Any]:
        """Take people out of the packed lists of releases and data sets; return the new digests for the journal."""
        old: set[str] = set()
        touched: dict[str, set[Any]] = {"membership": set(), "data_set_member": set()}
        for chunk, at in _levels.chunks_of(numbers):
            for table, owner in ((schema.membership, "reservation"), (schema.data_set_member, "data_set")):
                rows = connection.execute(sa.select(table).where(table.c.chunk == chunk)).all()
                for row in rows:
                    codes = _chunks.one_blob(connection, row.digest).copy()
                    inside = at[at < len(codes)]
                    if not codes[inside].any():
                        continue
                    codes[inside] = 0
                    digest = _chunks.write_chunk(self._store, connection, codes)
                    key = getattr(row, owner)
                    here = sa.and_(table.c[owner] == key, table.c.chunk == chunk)
                    connection.execute(sa.update(table).where(here).values(digest=digest))
                    old.add(row.digest)
                    touched[table.name].add(key)
        _chunks.drop_unused(connection, old)
        cohorts, sets = {}, {}
        for seq in sorted(touched["membership"]):
            cohorts[str(seq)] = _chunks.manifest_of(connection, seq).digest
            changed = sa.update(schema.reservation).where(schema.reservation.c.seq == seq)
            connection.execute(changed.values(cohort=cohorts[str(seq)]))
        for name in sorted(touched["data_set_member"]):
            manifest = _chunks.manifest_of_set(connection, name)
            left = sum(int(np.count_nonzero(_chunks.one_blob(connection, d))) for _, d in manifest.chunks)
            sets[name] = [manifest.digest, left]
            changed = sa.update(schema.data_set).where(schema.data_set.c.name == name)
            connection.execute(changed.values(members=manifest.digest, contributors=left))
        return {"cohorts": cohorts, "data_sets": sets}
