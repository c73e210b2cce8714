"""The append-only journal: every change, chained by hashes, sealed with the ledger's key."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from confide._files import write_atomic
from confide.errors import ConfideError, VerificationError
from confide.ledger import _schema as schema
from confide.ledger._keys import Keys

START = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One change: its position, time, kind, content and hashes."""

    seq: int
    at: str
    action: str
    body: dict[str, Any]
    previous: str
    hash: str
    seal: str


def canonical(body: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal contents give equal texts."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def now() -> str:
    """Return the time in UTC. It is a note for people: no rule depends on it, so a clock that jumps harms nothing."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _hash(seq: int, at: str, action: str, body: str, previous: str) -> str:
    return hashlib.sha256(canonical([seq, at, action, body, previous]).encode()).hexdigest()


def append(connection: sa.Connection, keys: Keys, action: str, body: dict[str, Any]) -> Entry:
    """Add an entry after the last one, inside the caller's transaction."""
    table = schema.journal
    last = connection.execute(sa.select(table.c.seq, table.c.hash).order_by(table.c.seq.desc()).limit(1)).first()
    seq, previous = (last.seq + 1, last.hash) if last else (1, START)
    at, text = now(), canonical(body)
    digest = _hash(seq, at, action, text, previous)
    seal = keys.seal(digest)
    connection.execute(
        sa.insert(table).values(seq=seq, at=at, action=action, body=text, previous=previous, hash=digest, seal=seal)
    )
    return Entry(seq, at, action, body, previous, digest, seal)


def replay(connection: sa.Connection, keys: Keys) -> Iterator[Entry]:
    """Yield every entry, checking position, chain and seal.

    Raises
    ------
    VerificationError
        At the first entry that was changed, removed or forged.
    """
    previous, expected = START, 1
    for row in connection.execute(sa.select(schema.journal).order_by(schema.journal.c.seq)):
        where = f"journal entry {row.seq}"
        if row.seq != expected:
            raise VerificationError("entries are missing from the journal", where=where, expected=f"entry {expected}")
        if row.previous != previous or row.hash != _hash(row.seq, row.at, row.action, row.body, row.previous):
            raise VerificationError(
                "the journal was changed after it was written", where=where, remedy="restore the last backup"
            )
        if not hmac.compare_digest(row.seal, keys.seal(row.hash)):
            raise VerificationError("an entry was not written with this ledger's key", where=where)
        previous, expected = row.hash, expected + 1
        yield Entry(row.seq, row.at, row.action, json.loads(row.body), row.previous, row.hash, row.seal)


def lost_columns(entry: Entry) -> bool:
    """Whether an entry is a migration down to version 1, which has neither flows nor data sets."""
    return entry.action == "migrate" and int(entry.body["to"]) < 2


def head_file(key_file: Path) -> Path:
    """Return where the last entry is noted outside the database."""
    return key_file.with_name(key_file.name + ".head")


def note_head(key_file: Path, entry: Entry) -> None:
    """Keep the last entry outside the database too, so that `verify` notices a database put back to an old state.

    The transaction is over: a failure here must not look like a failed reservation.
    """
    with contextlib.suppress(ConfideError):
        write_atomic(head_file(key_file), json.dumps({"seq": entry.seq, "hash": entry.hash}), mode=0o600)
