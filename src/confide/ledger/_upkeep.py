"""Upkeep: key rotation, copies, verification."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import sqlalchemy as sa

from confide.errors import InputError
from confide.ledger import _journal, _keys, _tokens
from confide.ledger import _schema as schema
from confide.ledger._admission import Admission
from confide.ledger._keys import Keys, next_key
from confide.ledger._migrate import copy_sqlite
from confide.ledger.records import Verified


class Upkeep(Admission):
    """What keeps a ledger sound over years."""

    def rotate_key(self) -> None:
        """Hash every pseudonym again with a fresh key, in one transaction; nobody's balance changes.

        The new key file is written first and kept under its name plus ".next" until the database has switched, so
        that a crash at any point leaves a database and a key file that fit: `open` finishes what was begun.

        Raises
        ------
        RunError
            The disk or the database refuses; then nothing changed.
        """
        fresh = Keys((*self._keys.keys, secrets.token_bytes(32)))
        with self._store.write() as connection:
            self._check_key(connection)
            tokens = _keys.rehash(_tokens.everything(connection), fresh.keys[-1])
            fresh.write(next_key(self._key_file))
            _tokens.replace_all(self._store, connection, tokens)
            facts = schema.meta
            connection.execute(sa.update(facts).where(facts.c.name == "key").values(value=fresh.check()))
            body = {"count": len(tokens), "tokens": _tokens.digest(tokens)}
            entry = _journal.append(connection, self._keys, "rotate", body)
        os.replace(next_key(self._key_file), self._key_file)
        self._keys = fresh
        self._remember(entry)

    def backup(self, file: str | Path) -> None:
        """Copy a SQLite ledger to a new file while others go on writing.

        Raises
        ------
        InputError
            The file exists, or the ledger is on PostgreSQL (use pg_dump).
        RunError
            The disk refuses.
        """
        if self._store.file is None:
            raise InputError("a ledger on PostgreSQL is backed up with pg_dump", where=self.where)
        copy_sqlite(self._store.file, Path(file))

    def verify(self) -> Verified:
        """Check the journal's chain and seals, and compute every balance again from what was reserved.

        Raises
        ------
        VerificationError
            Naming the first thing that does not fit.
        """
        from confide.ledger._verify import verify

        with self._store.read() as connection:
            return verify(self, connection, _journal.head_file(self._key_file))
