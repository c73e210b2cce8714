"""The index token -> number: packed, sorted groups instead of one row per person."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.errors import InputError, RunError
from confide.ledger import _schema as schema
from confide.ledger._keys import Tokens
from confide.ledger._store import Store

Numbers = npt.NDArray[np.signedinteger[Any]]
MOST = 2**31 - 1  # contributors that one ledger can number
_QUERY_BUCKETS = 500
_SLICE = 400_000  # tokens sorted at a time


def bucket_of(tokens: Tokens) -> npt.NDArray[np.int64]:
    """Return the group of every token: its first two bytes."""
    return (tokens[:, 0] >> np.uint64(48)).astype(np.int64)


def _rows(connection: sa.Connection, buckets: npt.NDArray[np.int64]) -> Iterator[tuple[int, bytes, bytes]]:
    columns = (schema.token.c.bucket, schema.token.c.tokens, schema.token.c.numbers)
    query = sa.select(*columns).order_by(schema.token.c.bucket)
    if len(buckets) and len(buckets) > 0.5 * (buckets[-1] - buckets[0]):
        inside = schema.token.c.bucket.between(int(buckets[0]), int(buckets[-1]))
        yield from (tuple(row) for row in connection.execute(query.where(inside)))
        return
    for start in range(0, len(buckets), _QUERY_BUCKETS):
        part = buckets[start : start + _QUERY_BUCKETS].tolist()
        for row in connection.execute(query.where(schema.token.c.bucket.in_(part))):
            yield row[0], row[1], row[2]


def _unpack(rows: list[tuple[int, bytes, bytes]]) -> tuple[Tokens, Numbers]:
    raw_tokens, raw_numbers = b"".join(row[1] for row in rows), b"".join(row[2] for row in rows)
    if len(raw_tokens) % 16 or len(raw_tokens) != 4 * len(raw_numbers):
        raise RunError("the ledger's index of contributors is damaged", remedy="restore the last backup")
    tokens = np.frombuffer(raw_tokens, dtype=">u8").astype(np.uint64).reshape(-1, 2)
    return tokens, np.frombuffer(raw_numbers, dtype="<u4").astype(np.int64)


def _slices(tokens: Tokens) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the positions of tokens by ranges of groups, so that millions of them need little memory at a time."""
    parts = min(64, max(1, len(tokens) // _SLICE))
    part_of = np.empty(len(tokens), dtype=np.uint8)
    for start in range(0, len(tokens), _SLICE):
        high = (tokens[start : start + _SLICE, 0] >> np.uint64(48)).astype(np.uint32)
        part_of[start : start + _SLICE] = (high * np.uint32(parts)) >> np.uint32(16)
    for part in range(parts):
        yield np.flatnonzero(part_of == part)


def lookup(connection: sa.Connection, tokens: Tokens) -> Numbers:
    """Return the number of every token, -1 where it is unknown; numbers stay below 2^31 (`MOST`)."""
    found = np.full(len(tokens), -1, dtype=np.int32)
    for positions in _slices(tokens):
        found[positions] = _lookup(connection, tokens[positions])
    return found


def _lookup(connection: sa.Connection, tokens: Tokens) -> Numbers:
    known, numbers = _unpack(list(_rows(connection, np.unique(bucket_of(tokens)))))
    found = np.full(len(tokens), -1, dtype=np.int64)
    if len(known) == 0 or len(tokens) == 0:
        return found
    # Groups come in order and are sorted inside, so the whole is sorted by the high half. Equal high halves of
    # different people are all but impossible; the loop makes them harmless.
    position = np.searchsorted(known[:, 0], tokens[:, 0])
    open_ = np.arange(len(tokens))
    while len(open_):
        inside = position[open_] < len(known)
        open_ = open_[inside]
        at = position[open_]
        same_high = known[at, 0] == tokens[open_, 0]
        same = same_high & (known[at, 1] == tokens[open_, 1])
        found[open_[same]] = numbers[at[same]]
        open_ = open_[same_high & ~same]
        position[open_] += 1
    return found


def insert(store: Store, connection: sa.Connection, tokens: Tokens, first: int) -> None:
    """Give the numbers first, first + 1, ... to new tokens, in their order.

    Raises
    ------
    InputError
        If a token is there twice.
    """
    for positions in _slices(tokens):
        if len(positions):
            _write(store, connection, tokens[positions], first + positions)


def given_twice() -> InputError:
    """Return the error for a contributor who is there twice."""
    return InputError(
        "a contributor is given twice",
        expected="each contributor once: a person's entries are one unit",
        remedy="group entries by contributor first",
    )


def _write(store: Store, connection: sa.Connection, tokens: Tokens, numbers: Numbers) -> None:
    present = list(_rows(connection, np.unique(bucket_of(tokens))))
    if present:
        old_tokens, old_numbers = _unpack(present)
        tokens, numbers = np.concatenate([old_tokens, tokens]), np.concatenate([old_numbers, numbers])
    order = np.lexsort((tokens[:, 1], tokens[:, 0]))
    tokens, packed_numbers = tokens[order], numbers[order].astype("<u4")
    if (tokens[1:] == tokens[:-1]).all(axis=1).any():
        raise given_twice()
    buckets = bucket_of(tokens)
    starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
    ends = np.r_[starts[1:], len(buckets)]
    raw_tokens, raw_numbers = tokens.astype(">u8").tobytes(), packed_numbers.tobytes()
    rows = [
        {"bucket": int(buckets[a]), "tokens": raw_tokens[16 * a : 16 * b], "numbers": raw_numbers[4 * a : 4 * b]}
        for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    store.insert_or_replace(connection, schema.token, rows)


def everything(connection: sa.Connection) -> Tokens:
    """Return all tokens in the order of their numbers.

    Raises
    ------
    RunError
        If the numbers are not exactly 0..n-1: rows were lost or copied.
    """
    columns = (schema.token.c.bucket, schema.token.c.tokens, schema.token.c.numbers)
    total = int(connection.execute(sa.select(sa.func.sum(sa.func.length(schema.token.c.numbers)))).scalar() or 0) // 4
    ordered, seen = np.empty((total, 2), dtype=np.uint64), np.zeros(total, dtype=bool)
    query = sa.select(*columns).order_by(schema.token.c.bucket).execution_options(yield_per=1024)
    rows = connection.execute(query)
    for some in rows.partitions():
        tokens, numbers = _unpack([(r[0], r[1], r[2]) for r in some])
        if len(numbers) and int(numbers.max()) < total:
            ordered[numbers], seen[numbers] = tokens, True
    if not seen.all():
        raise RunError("the ledger's index of contributors is damaged", remedy="restore the last backup")
    return ordered


def replace_all(store: Store, connection: sa.Connection, tokens: Tokens) -> None:
    """Write a whole new index: number i gets tokens[i]."""
    connection.execute(sa.delete(schema.token))
    insert(store, connection, tokens, 0)


def digest(tokens: Tokens) -> str:
    """Return the SHA-256 of tokens in the order of their numbers, for the journal."""
    running = hashlib.sha256()
    for start in range(0, len(tokens), _SLICE):
        running.update(tokens[start : start + _SLICE].astype(">u8").tobytes())
    return running.hexdigest()
