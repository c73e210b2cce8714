"""Packed per-contributor numbers: counters of what was spent, and codes of who was in a release."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.errors import RunError
from confide.ledger import _schema as schema
from confide.ledger._store import Store
from confide.ledger.filter import Counters

CHUNK = 65536  # contributors a row; half of it was measured too: 30% more CPU a release, no faster balance
LIFETIME = 0  # the account of the lifetime cap; every other account is a cap beside it
Codes = npt.NDArray[np.unsignedinteger]  # class + 1; 0 = not in

_WIDTHS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}


def width_of(classes: int) -> np.dtype[Any]:
    """Return the narrowest number that holds class + 1."""
    return _WIDTHS[1] if classes < 256 else _WIDTHS[2] if classes < 65536 else _WIDTHS[4]


def scatter(numbers: npt.NDArray[np.integer[Any]], class_of: npt.NDArray[Any], classes: int, total: int) -> Codes:
    """Return the code of all `total` contributors: class + 1 for those in `numbers`, else 0."""
    out: Codes = np.zeros(total, dtype=width_of(classes))
    for start in range(0, len(numbers), CHUNK):
        here = slice(start, start + CHUNK)
        out[numbers[here]] = class_of[here].astype(out.dtype) + out.dtype.type(1)
    return out


def touched(codes: Codes) -> list[int]:
    """Return the chunks in which anybody is in."""
    return [chunk for chunk in range(-(-len(codes) // CHUNK)) if codes[chunk * CHUNK : (chunk + 1) * CHUNK].any()]


def read_balance(connection: sa.Connection, chunk: int, size: int, orders: int, account: int = LIFETIME) -> Counters:
    """Return the counters of a chunk, shape (orders, size); people whom nothing has touched have zeros.

    Raises
    ------
    RunError
        If the stored row does not have the shape of counters.
    """
    raw = connection.execute(sa.select(_table(account).c.counters).where(*_at(account, chunk))).scalar()
    counters = np.zeros((orders, size), dtype=np.uint32)
    if raw is not None:
        if len(raw) % (4 * orders) or len(raw) > 4 * orders * size:
            raise RunError("a row of balances is damaged", where=f"chunk {chunk}", remedy="restore the last backup")
        stored = np.frombuffer(raw, dtype="<u4").reshape(orders, -1)
        counters[:, : stored.shape[1]] = stored
    return counters


@lru_cache(maxsize=8)
def _one_balance(orders: int) -> sa.TextClause:
    stride = f"(length(counters) / {4 * orders})"
    pieces = ", ".join(f"substr(counters, {stride} * {4 * k} + :at, 4)" for k in range(orders))
    return sa.text(f"SELECT length(counters), {pieces} FROM balance WHERE chunk = :chunk")


def read_one_balance(connection: sa.Connection, chunk: int, at: int, orders: int) -> Counters:
    """Return the counters of one contributor, shape (orders,), without reading the whole row of their chunk."""
    row = connection.execute(_one_balance(orders), {"chunk": chunk, "at": 4 * at + 1}).first()
    if row is not None and row[0] % (4 * orders):
        raise RunError("a row of balances is damaged", where=f"chunk {chunk}", remedy="restore the last backup")
    if row is None or at >= row[0] // (4 * orders):
        return np.zeros(orders, dtype=np.uint32)
    return np.frombuffer(b"".join(bytes(piece) for piece in row[1:]), dtype="<u4").astype(np.uint32)


def write_balance(
    store: Store, connection: sa.Connection, chunk: int, counters: Counters, account: int = LIFETIME
) -> None:
    """Replace the counters of a chunk."""
    row = {"chunk": chunk, "counters": counters.astype("<u4").tobytes()}
    store.insert_or_replace(connection, _table(account), [row if account == LIFETIME else {"account": account, **row}])


def has_balance(connection: sa.Connection, chunk: int, account: int) -> bool:
    """Whether an account has a row for a chunk."""
    return connection.execute(sa.select(_table(account).c.chunk).where(*_at(account, chunk))).first() is not None


def _table(account: int) -> sa.Table:
    return schema.balance if account == LIFETIME else schema.account_balance


def _at(account: int, chunk: int) -> list[sa.ColumnElement[bool]]:
    table = _table(account)
    return [table.c.chunk == chunk, *([] if account == LIFETIME else [table.c.account == account])]


def _trimmed(codes: Codes) -> bytes:
    """Return the bytes of the codes of one chunk without trailing zeros, so that later contributors change nothing."""
    inside = codes != 0
    return codes[: len(codes) - int(inside[::-1].argmax())].tobytes() if inside.any() else b""


def unpack(digest: str, width: int, packed: bytes) -> Codes:
    """Return the codes of a chunk.

    Raises
    ------
    RunError
        If the content does not match its digest.
    """
    try:
        raw = zlib.decompress(packed)
    except zlib.error:
        raw = b"\0"
    if hashlib.sha256(bytes([width]) + raw).hexdigest()[:40] != digest or width not in _WIDTHS:
        raise RunError(
            "a record of who was in a release is damaged", where=f"codes {digest}", remedy="restore the last backup"
        )
    codes: Codes = np.frombuffer(raw, dtype=_WIDTHS[width])
    return codes


@dataclass(frozen=True)
class Manifest:
    """Which blobs say who was in a reservation."""

    chunks: tuple[tuple[int, str], ...]

    @property
    def digest(self) -> str:
        """One hash for the whole cohort with its classes."""
        text = ";".join(f"{chunk}:{digest}" for chunk, digest in self.chunks)
        return hashlib.sha256(text.encode()).hexdigest()


def packed(codes: Codes) -> Manifest:
    """Return which blobs say who is in, without writing them."""
    chunks = []
    for chunk in touched(codes):
        raw = _trimmed(codes[chunk * CHUNK : (chunk + 1) * CHUNK])
        chunks.append((chunk, hashlib.sha256(bytes([codes.dtype.itemsize]) + raw).hexdigest()[:40]))
    return Manifest(tuple(chunks))


def write_codes(store: Store, connection: sa.Connection, reservation: int, codes: Codes, manifest: Manifest) -> None:
    """Store who is in a reservation."""
    write_blobs(store, connection, codes, manifest)
    members = [{"reservation": reservation, "chunk": chunk, "digest": digest} for chunk, digest in manifest.chunks]
    connection.execute(sa.insert(schema.membership), members)


def write_blobs(store: Store, connection: sa.Connection, codes: Codes, manifest: Manifest) -> None:
    """Store packed codes; contents that are there already are stored once."""
    digests = sorted({digest for _, digest in manifest.chunks})
    present: set[str] = set()
    for start in range(0, len(digests), 500):
        query = sa.select(schema.codes.c.digest).where(schema.codes.c.digest.in_(digests[start : start + 500]))
        present |= {row[0] for row in connection.execute(query)}
    for chunk, digest in manifest.chunks:
        if digest not in present:
            raw = _trimmed(codes[chunk * CHUNK : (chunk + 1) * CHUNK])
            row = {"digest": digest, "width": codes.dtype.itemsize, "packed": zlib.compress(raw, 1)}
            store.insert_or_replace(connection, schema.codes, [row], replace=False)
            present.add(digest)


def write_chunk(store: Store, connection: sa.Connection, part: Codes) -> str:
    """Store the codes of one chunk and return their digest."""
    raw = _trimmed(part)
    digest = hashlib.sha256(bytes([part.dtype.itemsize]) + raw).hexdigest()[:40]
    row = {"digest": digest, "width": part.dtype.itemsize, "packed": zlib.compress(raw, 1)}
    store.insert_or_replace(connection, schema.codes, [row], replace=False)
    return digest


def drop_unused(connection: sa.Connection, digests: set[str]) -> None:
    """Delete packed codes that nothing refers to any more."""
    for digest in sorted(digests):
        for table in (schema.membership, schema.data_set_member):
            if connection.execute(sa.select(table.c.chunk).where(table.c.digest == digest).limit(1)).first():
                break
        else:
            connection.execute(sa.delete(schema.codes).where(schema.codes.c.digest == digest))


def one_blob(connection: sa.Connection, digest: str) -> Codes:
    """Return the codes stored under a digest."""
    blob = connection.execute(sa.select(schema.codes).where(schema.codes.c.digest == digest)).one()
    return unpack(digest, blob.width, blob.packed)


def read_codes(connection: sa.Connection, chunk: int) -> dict[int, Codes]:
    """Return {reservation: codes} of everything that ever touched a chunk, in order."""
    member, blob = schema.membership, schema.codes
    query = (
        sa.select(member.c.reservation, blob.c.digest, blob.c.width, blob.c.packed)
        .join(blob, blob.c.digest == member.c.digest)
        .where(member.c.chunk == chunk)
        .order_by(member.c.reservation)
    )
    cache: dict[str, Codes] = {}
    out: dict[int, Codes] = {}
    for row in connection.execute(query):
        if row.digest not in cache:
            cache[row.digest] = unpack(row.digest, row.width, row.packed)
        out[row.reservation] = cache[row.digest]
    return out


_recent_lock = threading.Lock()
_recent: OrderedDict[str, Codes] = OrderedDict()  # contents never change under a digest
_RECENT = 192  # some 12 MB: one chunk of as many releases


def codes_of_one(connection: sa.Connection, chunk: int, at: int) -> list[tuple[int, int]]:
    """Return (reservation, code) of every reservation that one contributor is in, in order."""
    member, blob = schema.membership, schema.codes
    query = sa.select(member.c.reservation, member.c.digest).where(member.c.chunk == chunk)
    rows = connection.execute(query.order_by(member.c.reservation)).all()
    with _recent_lock:
        here = {row.digest: _recent[row.digest] for row in rows if row.digest in _recent}
    missing = sorted({row.digest for row in rows} - set(here))
    for start in range(0, len(missing), 300):
        found = connection.execute(sa.select(blob).where(blob.c.digest.in_(missing[start : start + 300])))
        here |= {row.digest: unpack(row.digest, row.width, row.packed) for row in found}
    with _recent_lock:
        for row in rows:
            _recent[row.digest] = here[row.digest]
            _recent.move_to_end(row.digest)
        while len(_recent) > _RECENT:
            _recent.popitem(last=False)
    return [(r.reservation, int(here[r.digest][at])) for r in rows if at < len(here[r.digest]) and here[r.digest][at]]


def manifest_of_set(connection: sa.Connection, name: str) -> Manifest:
    """Return which blobs a data set has."""
    member = schema.data_set_member
    query = sa.select(member.c.chunk, member.c.digest).where(member.c.data_set == name).order_by(member.c.chunk)
    return Manifest(tuple((row.chunk, row.digest) for row in connection.execute(query)))


def manifest_of(connection: sa.Connection, reservation: int) -> Manifest:
    """Return which blobs a reservation has."""
    member = schema.membership
    query = (
        sa.select(member.c.chunk, member.c.digest).where(member.c.reservation == reservation).order_by(member.c.chunk)
    )
    return Manifest(tuple((row.chunk, row.digest) for row in connection.execute(query)))
