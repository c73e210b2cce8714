"""Whole tables for the data protection officer, as CSV or Parquet: balances by pseudonym, and releases. Internal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from confide._files import new_file
from confide.errors import InputError
from confide.ledger import _tokens
from confide.ledger.ledger import Ledger

TABLES = ("releases", "balances")
FORMATS = ("csv", "parquet")
RELEASES = (
    *("id", "release", "data_set", "state", "created", "admitted", "dropped", "release_hash"),
    *("recipient", "purpose"),
)
BALANCES = ("pseudonym", "used_share", "left_share")
_PIECE = 250_000


def cell(value: Any) -> Any:
    """Return a value for a CSV cell; a text that a spreadsheet would run as a formula gets a leading apostrophe.

    >>> cell("=1+1"), cell("ward 3"), cell(-2)
    ("'=1+1", 'ward 3', -2)
    """
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def csv_text(names: tuple[str, ...] | list[str], rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if row[name] is None else cell(row[name]) for name in names] for row in rows])
    return text.getvalue()


def releases_csv(ledger: Ledger) -> str:
    """Return all releases with their states as CSV."""
    return csv_text(RELEASES, [row.to_dict() for row in ledger.reservations()])


def export(ledger: Ledger, what: str, file: str | Path, *, format: str = "csv") -> int:
    """Write a table to a new file (mode 0600), whole or not at all, and return its number of rows.

    Parameters
    ----------
    what : {"releases", "balances"}
        One row a release; or one row a contributor: pseudonym, used and remaining share of the balance.
    format : {"csv", "parquet"}

    Raises
    ------
    InputError
        An unknown table or format, or the file exists: nothing is ever overwritten.
    RunError
        The disk refuses.
    """
    for name, value, allowed in (("table", what, TABLES), ("format", format, FORMATS)):
        if value not in allowed:
            raise InputError(f"unknown {name} {value!r}", expected=" or ".join(allowed))
    with new_file(Path(file)) as temporary:
        return _releases(ledger, temporary, format) if what == "releases" else _balances(ledger, temporary, format)


def _releases(ledger: Ledger, file: Path, format: str) -> int:
    rows = [row.to_dict() for row in ledger.reservations()]
    if format == "csv":
        file.write_text(csv_text(RELEASES, rows), encoding="utf-8")
        return len(rows)
    import polars as pl

    kinds: dict[str, Any] = {n: pl.Int64 if n in ("admitted", "dropped") else pl.String for n in RELEASES}
    pl.DataFrame([{n: row[n] for n in RELEASES} for row in rows], schema=kinds).write_parquet(file)
    return len(rows)


def _pieces(ledger: Ledger) -> Iterator[Any]:
    import polars as pl

    with ledger._store.read() as connection:
        tokens = _tokens.everything(connection)
        used = ledger._used(connection, np.arange(len(tokens)), len(tokens))
    for start in range(0, max(1, len(tokens)), _PIECE):
        raw = tokens[start : start + _PIECE].astype(">u8").tobytes().hex()
        share = used[start : start + _PIECE]
        names = [raw[i : i + 32] for i in range(0, len(raw), 32)]
        columns = {"pseudonym": pl.Series(names, dtype=pl.String), "used_share": share, "left_share": 1 - share}
        yield pl.DataFrame(columns)


def _balances(ledger: Ledger, file: Path, format: str) -> int:
    import polars as pl

    if format == "parquet":
        whole = pl.concat(list(_pieces(ledger)), rechunk=False)
        whole.write_parquet(file)
        return len(whole)
    count = 0
    with file.open("wb") as out:
        for piece in _pieces(ledger):
            piece.write_csv(out, include_header=count == 0)
            count += len(piece)
    return count
