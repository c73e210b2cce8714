"""From one version of the tables to another, up and down, with a backup made first."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from confide.errors import InputError, RunError
from confide.ledger import _journal
from confide.ledger import _schema as schema
from confide.ledger._create import key_path
from confide.ledger._keys import Keys
from confide.ledger._store import Store, parse_url

# What an older version could not hold: going down would give people balance back or forget what they agreed to.
_PROMISES = {
    "carried": "balances of erased contributors",
    "level": "consent levels",
    "consent": "consent",
    "allowance": "allowances of recipients",
    "site_round": "rounds of joint releases",
}


@dataclass(frozen=True)
class Migrated:
    """What a migration did: versions before and after, and where the backup is (None: nothing was to be done)."""

    before: int
    after: int
    backup: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def version_of(connection: sa.Connection) -> int:
    """Return the version of the tables that a database states."""
    stated = connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.name == "schema")).scalar()
    if stated is None or not stated.isdigit():
        raise RunError("the ledger's declared facts are damaged", remedy="restore a backup")
    return int(stated)


def check_version(stated: str, where: str) -> None:
    """Refuse tables of another version, saying what to do.

    Raises
    ------
    InputError
        The tables are older or newer than this program's.
    """
    if stated == str(schema.SCHEMA_VERSION):
        return
    newer = not stated.isdigit() or int(stated) > schema.SCHEMA_VERSION
    raise InputError(
        f"this ledger has schema version {stated}, this confide reads version {schema.SCHEMA_VERSION}",
        where=where,
        expected=f"version {schema.SCHEMA_VERSION}",
        remedy="install the newer confide (pip install -U confide), or go down with it: confide ledger migrate --to "
        f"{schema.SCHEMA_VERSION}"
        if newer
        else "stop all runs, then: confide ledger migrate",
    )


def migrate(
    url: str | Path, *, key: str | Path | None = None, to: int = schema.SCHEMA_VERSION, backup: str | Path | None = None
) -> Migrated:
    """Bring a ledger's tables to a version; see `Ledger.migrate`."""
    if isinstance(to, bool) or not isinstance(to, int) or not 1 <= to <= schema.SCHEMA_VERSION:
        raise InputError(
            f"there is no schema version {to}",
            expected=f"1 to {schema.SCHEMA_VERSION}",
            remedy="a newer version needs a newer confide",
        )
    store = Store(parse_url(url))
    if store.file is not None and not store.file.is_file():
        raise InputError("there is no ledger here", where=store.where, remedy="check the path")
    with store.read() as connection:
        before = version_of(connection)
        check = connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.name == "key")).scalar()
    keys = Keys.read(key_path(store, key))
    if keys.check() != check:
        raise InputError("this key file belongs to another ledger", where=str(key_path(store, key)))
    if before > schema.SCHEMA_VERSION:
        check_version(str(before), store.where)
    if before == to:
        return Migrated(before, to, None)
    copy = _back_up(store, before, None if backup is None else Path(backup))
    try:
        with store.write() as connection:
            if version_of(connection) != before:
                raise InputError("another program is migrating this ledger", where=store.where, remedy="try again")
            if to < before:
                _check_nothing_is_lost(connection, store.where)
            _run_alembic(connection, before, to)
            connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "schema").values(value=str(to)))
            entry = _journal.append(connection, keys, "migrate", {"from": before, "to": to})
    finally:
        store.engine.dispose()
    _journal.note_head(key_path(store, key), entry)
    return Migrated(before, to, str(copy))


def _check_nothing_is_lost(connection: sa.Connection, where: str) -> None:
    present = set(sa.inspect(connection).get_table_names())
    for name, what in _PROMISES.items():
        if (
            name in present
            and connection.execute(sa.select(sa.literal(1)).select_from(sa.table(name)).limit(1)).first()
        ):
            raise InputError(
                f"this ledger holds {what}, which the older version cannot keep",
                where=where,
                remedy="stay at this version, or restore the backup that was made before the migration",
            )


def _run_alembic(connection: sa.Connection, before: int, to: int) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "confide.ledger:migrations")
    config.attributes["connection"] = connection
    if before and not sa.inspect(connection).has_table("alembic_version"):
        command.stamp(config, f"{before:04d}")
    if to > before:
        command.upgrade(config, f"{to:04d}")
    else:
        command.downgrade(config, f"{to:04d}")


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a SQLite database that others may be writing, whole or not at all.

    Raises
    ------
    InputError
        The target exists.
    RunError
        The disk refuses.
    """
    import sqlite3

    if target.exists():
        raise InputError("there is a file already", where=str(target), remedy="choose another name")
    part = target.with_name(target.name + ".part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        with (
            contextlib.closing(sqlite3.connect(source)) as origin,
            contextlib.closing(sqlite3.connect(part)) as copy,
        ):
            origin.backup(copy)
        os.replace(part, target)
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RunError("the backup cannot be written; the ledger is unharmed", where=str(target)) from error


def _back_up(store: Store, version: int, target: Path | None) -> Path:
    """Copy the database before it changes: SQLite by its own backup, PostgreSQL by pg_dump."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    if store.file is not None:
        target = target or store.file.with_name(f"{store.file.name}.schema-{version}-{stamp}")
        copy_sqlite(store.file, target)
        return target
    target = target or Path(f"ledger.schema-{version}-{stamp}.dump").absolute()
    if target.exists():
        raise InputError("there is a file already", where=str(target), remedy="choose another name")
    program = shutil.which("pg_dump") or next(
        (str(found) for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"), reverse=True)), None
    )
    if program is None:
        raise InputError(
            "a backup must be made before the tables change, and pg_dump is not there",
            where=store.where,
            remedy="install the PostgreSQL client programs (apt-get install postgresql-client)",
        )
    # The password travels in the environment: a command line can be read by everybody on the machine.
    url = store.url.set(drivername="postgresql")
    environment = os.environ | ({"PGPASSWORD": str(url.password)} if url.password else {})
    bare = url.set(password=None).render_as_string(hide_password=False)
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as out:
            subprocess.run(
                [program, "--format=custom", bare], stdout=out, stderr=subprocess.PIPE, check=True, env=environment
            )
            out.flush()
            os.fsync(out.fileno())
    except (OSError, subprocess.CalledProcessError) as error:
        with contextlib.suppress(OSError):
            target.unlink()
        raise RunError("the backup cannot be written; the ledger is unharmed", where=str(target)) from error
    return target
