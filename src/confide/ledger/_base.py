"""What every part of a ledger stands on: the open database, the keys, and one journalled change of a reservation."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from confide.errors import InputError, RunError
from confide.ledger import _journal
from confide.ledger import _schema as schema
from confide.ledger._keys import Keys
from confide.ledger._pricing import price
from confide.ledger._store import Store
from confide.ledger.filter import Filter


class Base:
    """An open database with its keys and declared facts."""

    def __init__(self, store: Store, keys: Keys, key_file: Path, facts: dict[str, str]) -> None:
        self._store, self._keys, self._key_file = store, keys, key_file
        self.id = facts["ledger"]
        self.rule = Filter.from_dict(json.loads(facts["rule"]))
        self.relation = facts["relation"]
        self._price = lru_cache(maxsize=4096)(lambda text: price(self.rule, text))

    def close(self) -> None:
        """Give connections back."""
        self._store.engine.dispose()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def where(self) -> str:
        """The place of the database, without a password."""
        return self._store.where

    def _check_key(self, connection: sa.Connection) -> None:
        """A key rotation or a migration may have happened since this ledger was opened: then nothing may be added."""
        wanted = ("key", "schema")
        query = sa.select(schema.meta.c.name, schema.meta.c.value).where(schema.meta.c.name.in_(wanted))
        facts = {row.name: row.value for row in connection.execute(query)}
        if facts.get("key") != self._keys.check():
            raise InputError("the ledger's key was rotated", where=self.where, remedy="open the ledger again")
        if facts.get("schema") != str(schema.SCHEMA_VERSION):
            raise InputError("the ledger was migrated", where=self.where, remedy="open it with the confide that did so")

    def _total(self, connection: sa.Connection) -> int:
        query = sa.select(schema.meta.c.value).where(schema.meta.c.name == "contributors")
        return int(connection.execute(query).scalar_one())

    def _row(self, connection: sa.Connection, reservation_id: str) -> sa.Row[Any]:
        query = sa.select(schema.reservation).where(schema.reservation.c.id == reservation_id)
        row = connection.execute(query).first()
        if row is None:
            raise InputError("the ledger knows no such reservation", where=self.where)
        return row

    def _change(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        action: str,
        states: dict[str, str],
        details: dict[str, Any],
    ) -> _journal.Entry:
        """Move a reservation on, or note in the journal that the move was refused."""
        body = {"reservation": row.id, **details}
        if row.state not in states:
            return _journal.append(connection, self._keys, "refused", {"wanted": action, "state": row.state, **body})
        values = {"state": states[row.state], **details}
        update = sa.update(schema.reservation).where(schema.reservation.c.seq == row.seq).values(**values)
        if connection.execute(update).rowcount != 1:
            # Row-level rights hide the row from the update without an error; the journal must not say otherwise.
            raise RunError(
                f"this account may not {action} the reservation of another",
                where=row.id,
                expected="the account that reserved, or the owner of the ledger",
            )
        return _journal.append(connection, self._keys, action, {"from": row.state, "to": states[row.state], **body})

    def _finish(self, entry: _journal.Entry, reservation_id: str) -> None:
        """After the transaction: keep the head, and raise if the move was refused (which is itself journalled)."""
        self._remember(entry)
        if entry.action == "refused":
            raise InputError(
                f"cannot {entry.body['wanted']}: this reservation is {entry.body['state']}",
                where=reservation_id,
                expected="a reservation that has not ended",
            )

    def _remember(self, entry: _journal.Entry | None) -> None:
        """Note the journal's head outside the database, after the transaction."""
        if entry is not None:
            _journal.note_head(self._key_file, entry)
