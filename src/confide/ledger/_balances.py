"""Balances of many people at once: a few queries a chunk instead of a dozen a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.ledger import _chunks, _levels
from confide.ledger import _schema as schema
from confide.ledger._accounts import Account, accounts, carried_of
from confide.ledger._pricing import tight_epsilon, used_epsilon
from confide.ledger._readouts import ReadOuts
from confide.ledger.records import Cap, Cohort, Remaining

_SOME = 300  # reservations a query: databases limit how many values one may name


class Balances(ReadOuts):
    """What `remaining` answers, for a list of people."""

    def remaining_of(self, contributors: Sequence[str] | Cohort) -> tuple[Remaining, ...]:
        """Return the balance of each contributor, in order; every one is what `remaining` says of that person.

        People with one and the same history share what is dear, the tight composition of it. All of it is internal.

        Raises
        ------
        InputError
            An id is missing or not text, or a cohort of another ledger.
        """
        who = self._hashed(contributors)
        with self._store.read() as connection:
            numbers, total = self._resolve(connection, who, register=False)
            used = self._used(connection, numbers, total)
            found = [Remaining(float(u), 0.0, self.rule.epsilon, self.rule.delta, 0, False) for u in used]
            known = np.flatnonzero(numbers >= 0)
            if not len(known):
                return tuple(found)
            names = {code: name for name, code in _levels.BUILT_IN.items()} | {_levels.DEFAULT: "default"}
            names |= {r.code: r.name for r in connection.execute(sa.select(schema.level))}
            beside = accounts(connection)
            for chunk in np.unique(numbers[known] // _chunks.CHUNK).tolist():
                people = known[numbers[known] // _chunks.CHUNK == chunk]
                at = (numbers[people] % _chunks.CHUNK).astype(np.int64)
                size = min(_chunks.CHUNK, total - chunk * _chunks.CHUNK)
                levels = _levels.read(connection, chunk, size)[at]
                caps = self._caps_of(connection, beside, chunk, size, at, levels)
                carried = set(carried_of(connection, _chunks.LIFETIME, chunk * _chunks.CHUNK, size))
                histories = self._histories(connection, chunk, at)
                for i, person in enumerate(people.tolist()):
                    texts, erased = histories[i], int(at[i]) in carried
                    # see `ReadOuts._remaining` for whom sums are all that is left
                    epsilon = (
                        used_epsilon(self.rule, float(used[person]))
                        if erased
                        else tight_epsilon(texts, self.rule.delta)
                    )
                    level = names[int(levels[i])]
                    found[person] = Remaining(
                        float(used[person]),
                        epsilon,
                        self.rule.epsilon,
                        self.rule.delta,
                        len(texts),
                        True,
                        level,
                        tuple(caps[i]),
                        erased,
                    )
        return tuple(found)

    def _caps_of(
        self,
        connection: sa.Connection,
        beside: Sequence[Account],
        chunk: int,
        size: int,
        at: npt.NDArray[np.int64],
        levels: npt.NDArray[np.uint8],
    ) -> list[list[Cap]]:
        """Return the caps beside the lifetime cap of the people at some places of a chunk."""
        caps: list[list[Cap]] = [[] for _ in at]
        for account in beside:
            mine = np.ones(len(at), dtype=bool) if account.level is None else levels == account.level
            if not mine.any():
                continue
            rule = account.rule
            counters = _chunks.read_balance(connection, chunk, size, rule.width, account.id)[:, at]
            if account.level is None:  # an allowance of which nothing was used is not shown
                mine = counters.any(axis=0)
            shares = rule.used(counters.T)
            for i in np.flatnonzero(mine).tolist():
                caps[i].append(Cap(account.name, account.kind, rule.epsilon, rule.delta, float(shares[i])))
        return caps

    def _histories(self, connection: sa.Connection, chunk: int, at: npt.NDArray[np.int64]) -> list[tuple[str, ...]]:
        """Return the guarantees, sorted, of everything that counts and admitted the people at some places."""
        codes = _chunks.read_codes(connection, chunk)
        numbers = sorted(codes)
        inside = np.zeros((len(at), len(numbers)), dtype=np.int64)
        for column, seq in enumerate(numbers):
            here = at < len(codes[seq])
            inside[here, column] = codes[seq][at[here]]
        texts: dict[tuple[int, int], str] = {}
        table, spend = schema.reservation, schema.spend
        for start in range(0, len(numbers), _SOME):
            query = (
                sa.select(spend.c.reservation, spend.c["class"].label("class_"), spend.c.guarantee)
                .join(table, spend.c.reservation == table.c.seq)
                .where(table.c.state != "aborted", table.c.seq.in_(numbers[start : start + _SOME]))
            )
            texts |= {(row.reservation, row.class_ + 1): row.guarantee for row in connection.execute(query)}
        each, which = np.unique(inside, axis=0, return_inverse=True)

        def history(row: npt.NDArray[Any]) -> tuple[str, ...]:
            pairs = ((numbers[column], int(row[column])) for column in np.flatnonzero(row).tolist())
            return tuple(sorted(texts[pair] for pair in pairs if pair in texts))

        known = [history(row) for row in each]
        return [known[i] for i in which.reshape(-1).tolist()]
