"""Where a ledger's files are, and how its tables come into being."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import sqlalchemy as sa

from confide.errors import InputError, RunError
from confide.ledger import _schema as schema
from confide.ledger._store import Store


def key_path(store: Store, key: str | Path | None) -> Path:
    """Return where the key file is: as given, or beside a SQLite database."""
    if key is not None:
        return Path(key).absolute()
    if store.file is None:
        raise InputError(
            "a ledger on PostgreSQL needs its key file named", expected="key=PATH", remedy="give --key-file PATH"
        )
    return store.file.with_name(store.file.name + ".key")


def create_tables(store: Store) -> None:
    """Make all tables at the newest version, in a file that only its owner may read."""
    if store.sqlite:
        import sqlite3

        assert store.file is not None
        try:
            # 0600 from the first byte on; WAL stays set in the file.
            os.close(os.open(store.file, os.O_WRONLY | os.O_CREAT, 0o600))
            with contextlib.closing(sqlite3.connect(store.file)) as raw:
                raw.execute("PRAGMA page_size=8192")
                raw.execute("PRAGMA journal_mode=WAL")
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"the ledger cannot be created: {error}", where=store.where) from error
    with store.write() as connection:
        if sa.inspect(connection).has_table("meta"):
            raise InputError("there is a ledger already", where=store.where, remedy="open it")
        schema.metadata.create_all(connection)
        connection.execute(sa.insert(schema.alembic_version).values(version_num=f"{schema.SCHEMA_VERSION:04d}"))
        if not store.sqlite:
            # Packed numbers hardly compress; trying costs PostgreSQL more time than writing them.
            for table, column in (
                ("balance", "counters"),
                ("token", "tokens"),
                ("token", "numbers"),
                ("codes", "packed"),
                ("account_balance", "counters"),
            ):
                connection.exec_driver_sql(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")
