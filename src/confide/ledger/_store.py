"""One database behind the ledger: transactions that cannot interleave, and database errors in the user's words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc, pool

from confide.errors import ConfideError, InputError, MissingExtraError, RunError

_PAGE_SIZE = 8192
_LOGGER = "confide-ledger"
_LOCK = 0x636F6E66696465  # "confide": the advisory lock that makes writers of a PostgreSQL ledger take turns


def parse_url(url: str | Path) -> sa.URL:
    """Turn a path or a SQLAlchemy URL into a URL of a supported database.

    Raises
    ------
    InputError
        If the URL cannot be read or names another database.
    """
    text = str(url)
    if "://" not in text:
        return sa.URL.create("sqlite", database=text)
    try:
        parsed = sa.make_url(text)
    except exc.ArgumentError as error:
        raise InputError("the ledger's URL cannot be read", expected="sqlite:///FILE or postgresql://...") from error
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        raise InputError(
            f"a ledger cannot live in {parsed.get_backend_name()}", expected="sqlite:///FILE or postgresql://..."
        )
    if not parsed.database or parsed.database == ":memory:":
        raise InputError("a ledger in memory would forget what was spent", expected="sqlite:///FILE")
    return parsed


@lru_cache(maxsize=64)
def _upsert(table: sa.Table, sqlite: bool, replace: bool) -> Any:
    """Return the statement of `Store.insert_or_replace`: built once, because it is run for every chunk."""
    if sqlite:
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        statement: Any = sqlite_insert(table)
    else:
        from sqlalchemy.dialects.postgresql import insert as postgres_insert

        statement = postgres_insert(table)
    keys = [column.name for column in table.primary_key]
    if not replace:
        return statement.on_conflict_do_nothing(index_elements=keys)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=changed)


def _no_rows(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


class Store:
    """A database: `write()` and `read()` are transactions."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.sqlite = url.get_backend_name() == "sqlite"
        self.file = Path(url.database).absolute() if self.sqlite and url.database else None
        # A hash or a blob of the ledger must not reach a log: neither as a parameter of an error, nor as a row that
        # SQLAlchemy prints when somebody turns its debugging on for the whole program.
        logging.getLogger(f"sqlalchemy.engine.Engine.{_LOGGER}").addFilter(_no_rows)
        if self.sqlite:
            self.engine = sa.create_engine(
                url,
                poolclass=pool.NullPool,
                hide_parameters=True,
                logging_name=_LOGGER,
                connect_args={"timeout": 120.0},
            )
            sa.event.listen(self.engine, "connect", _configure_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            try:
                self.engine = sa.create_engine(
                    url, hide_parameters=True, logging_name=_LOGGER, pool_pre_ping=True, pool_size=2
                )
            except ImportError as error:
                raise MissingExtraError("a ledger on PostgreSQL needs psycopg", "postgres") from error

    @property
    def where(self) -> str:
        """The place of the database, without a password."""
        return str(self.file) if self.file else self.url.render_as_string(hide_password=True)

    def account(self, connection: sa.Connection) -> str | None:
        """Return the database account that is at work; SQLite has none."""
        return None if self.sqlite else str(connection.execute(sa.select(sa.func.session_user())).scalar())

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Run a transaction alone among all writers; everything in it happens or nothing does."""
        with (
            self._errors(),
            self.engine.connect().execution_options(confide_write=True) as connection,
            connection.begin(),
        ):
            if not self.sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Run a transaction that sees one state of the database throughout."""
        options = {} if self.sqlite else {"isolation_level": "REPEATABLE READ"}
        with (
            self._errors(),
            self.engine.connect().execution_options(**options) as connection,
            connection.begin(),
        ):
            yield connection

    def insert_or_replace(
        self, connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]], *, replace: bool = True
    ) -> None:
        """Insert rows; a row whose primary key exists is replaced, or left as it is."""
        if rows:
            connection.execute(_upsert(table, self.sqlite, replace), rows)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ConfideError:
            raise
        except exc.DBAPIError as error:
            raise self._translate(str(error.orig).lower()) from None
        except exc.SQLAlchemyError as error:
            raise RunError(f"the ledger's database refused: {type(error).__name__}", where=self.where) from None
        except OSError as error:
            raise RunError(f"the ledger cannot be reached: {error.strerror}", where=self.where) from None

    def _translate(self, text: str) -> ConfideError:
        if "full" in text or "no space" in text:
            return RunError(
                "the disk is full; nothing was changed in the ledger",
                where=self.where,
                remedy="free some space, then try again",
            )
        if "locked" in text or "busy" in text or "lock timeout" in text:
            return RunError(
                "another run holds the ledger; nothing was changed",
                where=self.where,
                expected="a turn within two minutes",
                remedy="try again when the other run has finished its reservation",
            )
        if "no such table" in text or "does not exist" in text or "undefinedtable" in text:
            return InputError("this database holds no ledger", where=self.where, remedy="confide ledger init")
        if "not a database" in text or "malformed" in text or "corrupt" in text:
            return RunError(
                "the ledger's database is damaged; nothing was changed",
                where=self.where,
                remedy="restore the last backup, then run `confide ledger verify`",
            )
        if "readonly" in text or "read-only" in text or "permission denied" in text:
            return RunError(
                "the ledger cannot be written with this account", where=self.where, remedy="ask its privacy officer"
            )
        if "unable to open" in text or "connection" in text or "password" in text or "role" in text:
            return RunError(
                "the ledger cannot be reached; nothing was changed",
                where=self.where,
                remedy="check that the database runs and that this account may connect",
            )
        # The driver's text is not repeated: it may quote values.
        return RunError("the ledger's database refused the change; nothing was changed", where=self.where)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA page_size={_PAGE_SIZE}")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA cache_size=-16384")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # IMMEDIATE: a writer takes its turn before it reads a balance, so two runs never judge the same balance.
    write = connection.get_execution_options().get("confide_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
