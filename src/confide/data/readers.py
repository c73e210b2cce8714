"""Readers for what hospitals have: CSV (plain or gzipped), Parquet, SQL through SQLAlchemy, and the vendored sets.

Every reader gives the cells as they stand. CSV cells stay text until a declared type says otherwise, so an id keeps its
leading zeros and "1.0" is never taken for "1".
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from confide._files import sha256_of
from confide.data.arrays import file_of, read_columns
from confide.data.convert import Origin
from confide.data.named import load, names
from confide.data.spec import SourceSpec
from confide.errors import InputError, MissingExtraError, nearest

DATA_FOLDER = "CONFIDE_DATA"


def find_file(name: str | Path, *, base: Path = Path("."), sha256: str | None = None) -> Path:
    """Find a data file and check that it is the expected one.

    Parameters
    ----------
    name : str or Path
        A path; a relative one is looked up in `base`, then in the folder that the environment variable
        ``CONFIDE_DATA`` names.
    base : Path
        Usually the folder of the study file.
    sha256 : str, optional
        Expected hash.

    Raises
    ------
    InputError
        No such file (with the nearest name beside it), or another file than expected.
    """
    name = Path(name)
    places = [base / name]
    if os.environ.get(DATA_FOLDER) and not name.is_absolute():
        places.append(Path(os.environ[DATA_FOLDER]) / name)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        folder = places[0].parent
        beside = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        close = nearest(name.name, beside)
        raise InputError(
            f"there is no file {name.name!r}",
            where=" or ".join(str(place.parent) for place in places),
            expected="a CSV, Parquet or npz file" if not places[0].is_dir() else "a file, not a folder",
            remedy=f"did you mean {close!r}?"
            if close
            else f"check the path, or set {DATA_FOLDER} to the folder of the data",
        )
    if sha256 is not None and (actual := sha256_of(found)) != sha256:
        raise InputError(
            f"{found.name} is not the expected file",
            where=str(found),
            expected=f"sha256 {sha256}, found {actual}",
            remedy="use the file that the study was declared for, or correct sha256",
        )
    return found


def read_source(spec: SourceSpec, *, base: Path = Path("."), allow_empty: bool = False) -> tuple[pl.DataFrame, Origin]:
    """Read one source as it stands.

    Returns
    -------
    frame : polars.DataFrame
        Text cells for CSV and named sets, the source's own types for Parquet and SQL.
    origin : Origin
        For messages.

    Raises
    ------
    InputError
        The source is missing, empty, damaged, or the query failed. Addresses and passwords are never in the message.
    """
    if spec.kind == "named":
        name = spec.source.removeprefix("named:")
        frame, origin = load(name, as_text=True), Origin(spec.source)
    elif spec.kind == "sql":
        frame, origin = _read_sql(spec, base), Origin(spec.label)
    else:
        path = find_file(file_of(spec), base=base, sha256=spec.sha256)
        if spec.kind == "npz":
            frame, origin = read_columns(path, spec), Origin(path.name)
        elif spec.kind == "parquet":
            frame, origin = _read_parquet(path), Origin(path.name)
        else:
            frame, origin = read_csv_text(path, spec.separator), Origin(path.name, 1, spec.decimal)
    if frame.height == 0 and not allow_empty:
        raise InputError(
            f"{origin.name} has no rows", where=origin.name, expected="at least one entry", remedy="check the source"
        )
    return frame, origin


def read_csv_text(path: Path, separator: str = ",") -> pl.DataFrame:
    """Read a CSV file (also gzipped) with every cell as text.

    Raises
    ------
    InputError
        Empty or damaged file, text that is not UTF-8, a row with too many cells, a column name that stands twice.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path.name} cannot be read: {getattr(error, 'strerror', None) or 'the compressed file is damaged'}",
            where=str(path),
            expected="a readable CSV file",
            remedy="check permissions, or copy the file again",
        ) from error
    if not raw.strip():
        raise InputError(
            f"{path.name} is empty",
            where=str(path),
            expected="a header line and at least one row",
            remedy="check the export",
        )
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        raise InputError(
            f"{path.name} is not UTF-8 text",
            where=f"{path}, line {line}",
            expected="a CSV file in UTF-8",
            remedy="export it as UTF-8 (in a spreadsheet: 'CSV UTF-8')",
        ) from None
    head = next(csv.reader(io.StringIO(raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")), delimiter=separator))
    twice = next((name for i, name in enumerate(head) if name in head[:i]), None)
    if twice is not None:
        raise InputError(
            f"column {twice!r} stands twice in {path.name}",
            where=f"{path}, line 1",
            expected="every column name once",
            remedy="rename one of the two",
        )
    try:
        return pl.read_csv(raw, separator=separator, infer_schema=False, truncate_ragged_lines=False)
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{path.name} is not a regular table",
            where=str(path),
            expected=f"the same number of cells in every row, separated by {separator!r}",
            remedy=f"check quotes and separators ({str(error).splitlines()[0][:120]})",
        ) from error


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"{path.name} is not a readable Parquet file",
            where=str(path),
            expected="a Parquet file",
            remedy=f"write it again ({str(error).splitlines()[0][:120]})",
        ) from error


def _database(spec: SourceSpec, base: Path) -> tuple[str, list[str]]:
    """Return the address and the words in it that no message may show."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    address = spec.source
    if address.startswith("env:"):
        variable = address.removeprefix("env:")
        address = os.environ.get(variable, "")
        if not address:
            raise InputError(
                f"the environment variable {variable} is not set",
                where="source",
                expected="a SQLAlchemy address of the database",
                remedy=f"export {variable}=... in the shell that runs confide",
            )
    try:
        url = make_url(address)
    except ArgumentError:
        raise InputError(
            "the database address is not one that SQLAlchemy understands",
            where=spec.label,
            expected="dialect://user@host/database, for example sqlite:///visits.sqlite",
        ) from None
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        # SQLite would make an empty database where there is none.
        url = url.set(database=str(find_file(url.database, base=base)))
    secret = [str(part) for part in (url.password, url.username, url.host) if part]
    return url.render_as_string(hide_password=False), secret


def _read_sql(spec: SourceSpec, base: Path) -> pl.DataFrame:
    import sqlalchemy
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    address, secret = _database(spec, base)
    engine = None
    try:
        engine = sqlalchemy.create_engine(address)
        with engine.connect() as connection:
            # The connection is closed without a commit: a query that writes leaves nothing behind.
            result = connection.execution_options(stream_results=True).execute(sqlalchemy.text(spec.query or ""))
            if not result.returns_rows:
                raise InputError("the query returns no rows", where=spec.label, expected="a SELECT statement")
            columns = list(result.keys())
            rows: list[Any] = [tuple(row) for part in result.partitions(10_000) for row in part]
    except ImportError:
        raise MissingExtraError(f"{spec.label} needs a database driver that is not installed", "postgres") from None
    except NoSuchModuleError:
        raise InputError(
            "the database dialect is unknown", where=spec.label, expected="for example postgresql+psycopg"
        ) from None
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0][:200]
        for word in secret:
            cause = cause.replace(word, "***")
        raise InputError(
            f"the query failed: {cause}",
            where=spec.label,
            expected="a database that can be reached and a SELECT statement that it understands",
            remedy="try the query in a database client with the same account",
        ) from None
    finally:
        if engine is not None:
            engine.dispose()
    if len(set(columns)) != len(columns):
        raise InputError("a column stands twice in the query", where=spec.label, remedy="rename one of the two with AS")
    return pl.DataFrame([_series(name, [row[i] for row in rows]) for i, name in enumerate(columns)])


def _series(name: str, cells: Sequence[Any]) -> pl.Series:
    """One column of a query; mixed Python types become text."""
    try:
        return pl.Series(name, cells, strict=True)
    except (TypeError, pl.exceptions.PolarsError):
        return pl.Series(name, [None if cell is None else str(cell) for cell in cells], dtype=pl.String)


def known_sources() -> str:
    """Say what a source may be, for messages."""
    return "a CSV or Parquet file, a database address, or named:" + "|".join(names())
