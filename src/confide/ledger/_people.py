"""Contributors of a ledger: ids become keyed hashes, keyed hashes become numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.errors import InputError
from confide.ledger import _journal, _keys, _tokens
from confide.ledger import _schema as schema
from confide.ledger._base import Base
from confide.ledger.records import Cohort


class People(Base):
    """Registering contributors and finding them again."""

    def register(self, contributors: Sequence[str]) -> Cohort:
        """Give every contributor a number (new ones are added) and return them as a cohort for many releases.

        Raises
        ------
        InputError
            An id is missing, not text, or given twice.
        """
        tokens = self._keys.tokens(contributors)
        with self._store.write() as connection:
            numbers, _, entry = self._numbers(connection, tokens)
        self._remember(entry)
        return Cohort(self.id, numbers)

    def register_parquet(self, file: str | Path, column: str) -> Cohort:
        """Give everybody in a column of a Parquet file a number; the file is read in pieces.

        Raises
        ------
        InputError
            The file or the column is not there, the column is not text, or an id is missing or there twice.
        """
        tokens = _keys.tokens_of_parquet(self._keys, Path(file), column)
        with self._store.write() as connection:
            numbers, _, entry = self._numbers(connection, tokens)
        self._remember(entry)
        return Cohort(self.id, numbers)

    def _numbers(
        self, connection: sa.Connection, tokens: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.integer[Any]], int, _journal.Entry | None]:
        """Look tokens up, adding new ones; return (numbers, contributors in total, journal entry)."""
        self._check_key(connection)
        total = self._total(connection)
        numbers = _tokens.lookup(connection, tokens)
        new = numbers < 0
        count = int(np.count_nonzero(new))
        if total + count > _tokens.MOST:
            raise InputError("too many contributors for one ledger", expected=f"at most {_tokens.MOST}")
        if count:
            # Millions of new people need no second copy of their hashes.
            added = tokens if count == len(tokens) else tokens[new]
            _tokens.insert(self._store, connection, added, total)
            numbers[new] = np.arange(total, total + count, dtype=numbers.dtype)
        del new
        check_unique(numbers, total + count)
        if not count:
            return numbers, total, None
        body = {"first": total, "count": count, "tokens": _tokens.digest(added)}
        entry = _journal.append(connection, self._keys, "register", body)
        total += count
        connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "contributors").values(value=str(total)))
        return numbers, total, entry

    def _resolve(
        self, connection: sa.Connection, who: Cohort | npt.NDArray[np.uint64], *, register: bool
    ) -> tuple[npt.NDArray[np.integer[Any]], int]:
        """Return numbers (-1: unknown, only when not registering) and the number of contributors."""
        if isinstance(who, Cohort):
            self._check_key(connection)
            return who.numbers, self._total(connection)
        if register:
            numbers, total, _ = self._numbers(connection, who)
            return numbers, total
        return _tokens.lookup(connection, who), self._total(connection)

    def _hashed(self, contributors: Sequence[str] | Cohort) -> Cohort | npt.NDArray[np.uint64]:
        if isinstance(contributors, Cohort):
            if contributors.ledger != self.id:
                raise InputError("this cohort belongs to another ledger", remedy="register the ids in this one")
            return contributors
        return self._keys.tokens(contributors)


def check_unique(numbers: npt.NDArray[np.integer[Any]], total: int) -> None:
    seen = np.zeros(total, dtype=bool)
    for start in range(0, len(numbers), 1 << 18):
        seen[numbers[start : start + (1 << 18)]] = True
    if np.count_nonzero(seen) < len(numbers):
        raise _tokens.given_twice()
