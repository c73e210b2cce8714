"""Which consent level every contributor has: one byte a person, packed; and what a level allows."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.errors import RunError
from confide.ledger import _schema as schema
from confide.ledger._chunks import CHUNK
from confide.ledger._store import Store

DEFAULT, WITHDRAWN, ERASED = 0, 254, 255
BUILT_IN = {"withdrawn": WITHDRAWN, "erased": ERASED}
Levels = npt.NDArray[np.uint8]


def read(connection: sa.Connection, chunk: int, size: int) -> Levels:
    """Return the level of everybody in a chunk, shape (size,); 0 is the institution's default."""
    packed = connection.execute(sa.select(schema.consent.c.packed).where(schema.consent.c.chunk == chunk)).scalar()
    levels = np.zeros(size, dtype=np.uint8)
    if packed is not None:
        try:
            stored = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
        except zlib.error as error:
            raise RunError(
                "a record of consent is damaged", where=f"chunk {chunk}", remedy="restore a backup"
            ) from error
        levels[: min(size, len(stored))] = stored[:size]
    return levels


def write(store: Store, connection: sa.Connection, chunk: int, levels: Levels) -> str:
    """Replace the levels of a chunk; return their digest."""
    inside = np.flatnonzero(levels)
    raw = levels[: inside[-1] + 1].tobytes() if len(inside) else b""
    store.insert_or_replace(connection, schema.consent, [{"chunk": chunk, "packed": zlib.compress(raw, 1)}])
    return digest(levels)


def digest(levels: Levels) -> str:
    """Return a hash of the levels of a chunk that does not depend on people who came later."""
    inside = np.flatnonzero(levels)
    return hashlib.sha256(levels[: inside[-1] + 1].tobytes() if len(inside) else b"").hexdigest()


def anything(connection: sa.Connection) -> bool:
    """Whether any level was defined or any consent recorded: without, nothing needs to be looked at."""
    return any(
        connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first()
        for table in (schema.level, schema.consent)
    )


def allowed(connection: sa.Connection, *, purpose: str, recipient: str) -> npt.NDArray[np.bool_]:
    """Return for every code whether its level allows a release for a purpose to a recipient, shape (256,)."""
    out = np.zeros(256, dtype=bool)
    out[DEFAULT] = True
    for row in connection.execute(sa.select(schema.level)):
        purposes, recipients = _list(row.purposes), _list(row.recipients)
        out[row.code] = (
            not row.closed
            and (purposes is None or purpose in purposes)
            and (recipients is None or recipient in recipients)
        )
    return out


def _list(text: str | None) -> list[Any] | None:
    return None if text is None else list(json.loads(text))


def chunks_of(numbers: npt.NDArray[np.integer[Any]]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Return (chunk, positions inside it) of contributors."""
    chunk_of = numbers // CHUNK
    return [(int(chunk), (numbers[chunk_of == chunk] % CHUNK).astype(np.int64)) for chunk in np.unique(chunk_of)]
