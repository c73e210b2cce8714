"""Checking a ledger against itself: journal, index, reservations and balances must tell one story."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from confide.accounting import Guarantee
from confide.errors import RunError, VerificationError
from confide.ledger import _chunks, _journal, _tokens
from confide.ledger import _schema as schema
from confide.ledger._accounts import Account, accounts
from confide.ledger._admission import Admission
from confide.ledger._promises import JOURNALLED
from confide.ledger._verify_people import check_people
from confide.ledger.records import Verified


def verify(ledger: Admission, connection: sa.Connection, head_file: Path) -> Verified:
    """Check everything; see `Ledger.verify`."""
    entries = list(_journal.replay(connection, ledger._keys))
    head = entries[-1].hash if entries else _journal.START
    _check_head(entries, head_file)
    _check_facts(ledger, connection, entries)
    try:
        contributors = _check_index(connection, entries)
        _check_reservations(ledger, connection, entries)
        check_people(ledger, connection, entries)
        _check_balances(ledger, connection, contributors)
    except RunError as error:
        raise VerificationError(error.what, where=error.where, remedy=error.remedy) from error
    reservations = sum(entry.action == "reserve" for entry in entries)
    return Verified(len(entries), contributors, reservations, head)


def _check_head(entries: list[_journal.Entry], head_file: Path) -> None:
    """The journal must still hold the last entry noted outside the database."""
    try:
        noted = json.loads(head_file.read_text())
        seq, digest = int(noted["seq"]), str(noted["hash"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationError("the note of the journal's head cannot be read", where=str(head_file)) from error
    if seq > len(entries):
        raise VerificationError(
            f"the journal ends at entry {len(entries)}, but entry {seq} was written",
            where=str(head_file),
            expected="a journal that only grows",
            remedy="restore a newer backup; if there is none, whatever was released since is missing from the balances",
        )
    if seq < 1 or entries[seq - 1].hash != digest:
        raise VerificationError("the journal is not the one that was written here", where=str(head_file))


def _check_facts(ledger: Admission, connection: sa.Connection, entries: list[_journal.Entry]) -> None:
    if not entries or entries[0].action != "create":
        raise VerificationError("the journal does not begin with the creation of the ledger")
    facts = {row.name: row.value for row in connection.execute(sa.select(schema.meta))}
    for name, value in entries[0].body.items():
        if facts.get(name) != value:
            raise VerificationError(f"the ledger's {name} was changed after its creation", where="table meta")


def _check_index(connection: sa.Connection, entries: list[_journal.Entry]) -> int:
    """Every contributor who was ever registered must still have the same number."""
    tokens = _tokens.everything(connection)
    expected = 0
    segments: list[tuple[int, int, str]] = []
    for entry in entries:
        if entry.action == "register":
            segments.append((entry.body["first"], entry.body["count"], entry.body["tokens"]))
            expected = entry.body["first"] + entry.body["count"]
        elif entry.action == "rotate" or (entry.action == "erase" and "tokens" in entry.body):
            segments = [(0, expected, entry.body["tokens"])]
    stored = connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.name == "contributors")).scalar()
    if len(tokens) != expected or stored != str(expected):
        raise VerificationError(
            f"the index holds {len(tokens)} contributors", where="table token", expected=f"{expected} by the journal"
        )
    for first, count, digest in segments:
        if _tokens.digest(tokens[first : first + count]) != digest:
            raise VerificationError(
                "contributors were changed in the index",
                where=f"table token, numbers {first} to {first + count - 1}",
                remedy="restore the last backup",
            )
    return expected


def _check_reservations(ledger: Admission, connection: sa.Connection, entries: list[_journal.Entry]) -> None:
    """Replay the journal and compare every row with what it says."""
    expected: dict[str, dict[str, Any]] = {}
    by_seq: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.action == "reserve":
            known = {**dict.fromkeys(JOURNALLED), **entry.body, "state": "reserved", "release_hash": None}
            expected[entry.body["reservation"]] = by_seq[str(entry.body["seq"])] = known
        elif entry.action in ("start", "commit", "abort"):
            known = expected.get(entry.body["reservation"], {})
            if known.get("state") != entry.body["from"]:
                raise VerificationError("a change without its reservation", where=f"journal entry {entry.seq}")
            known["state"] = entry.body["to"]
            known["release_hash"] = entry.body.get("release_hash", known["release_hash"])
        elif entry.action == "erase":
            for seq, cohort in entry.body["cohorts"].items():
                by_seq[seq]["cohort"] = cohort
        elif _journal.lost_columns(entry):
            for known in expected.values():
                known |= dict.fromkeys(("recipient", "purpose", "owner", "joint"))
    rows = connection.execute(sa.select(schema.reservation)).all()
    if {row.id for row in rows} != set(expected) or len(rows) != len(expected):
        raise VerificationError("reservations and journal differ", where="table reservation")
    spends: dict[int, list[list[Any]]] = {}
    for found in connection.execute(
        sa.select(schema.spend).order_by(schema.spend.c.reservation, schema.spend.c["class"])
    ):
        spends.setdefault(found.reservation, []).append([found.guarantee, found.charge, found.admitted])
    members = schema.membership
    strangers = connection.execute(
        sa.select(sa.func.count())
        .select_from(members)
        .where(members.c.reservation.not_in(sa.select(schema.reservation.c.seq)))
    ).scalar()
    if strangers:
        raise VerificationError("memberships without a reservation", where="table membership")
    for row in rows:
        want = expected[row.id]
        for name in (*JOURNALLED, "state", "release_hash"):
            if getattr(row, name) != want[name]:
                raise VerificationError(f"the {name} of a reservation was changed", where=f"reservation {row.id}")
        if spends.get(row.seq) != want["classes"]:
            raise VerificationError("the price of a reservation was changed", where=f"reservation {row.id}")
        if _chunks.manifest_of(connection, row.seq).digest != row.cohort:
            raise VerificationError("who was in a reservation was changed", where=f"reservation {row.id}")
        _check_prices(ledger, row.id, want["classes"])


def _check_prices(ledger: Admission, reservation: str, classes: list[list[Any]]) -> None:
    """A charge may not be below what the accountant of today says (a few units of rounding aside)."""
    for text, charge, _ in classes:
        stored = np.array(json.loads(charge), dtype=np.float64)
        today = _charge(ledger, text)
        if (stored < np.minimum(today * (1 - 1e-6), today - 1)).any():
            raise VerificationError("a class was charged less than it costs", where=f"reservation {reservation}")


def _charge(ledger: Admission, text: str) -> Any:
    key = hashlib.sha256(text.encode()).hexdigest()
    cache: dict[str, Any] = ledger.__dict__.setdefault("_charge_cache", {})
    if key not in cache:
        cache[key] = ledger.rule.charge(Guarantee.from_dict(json.loads(text))).astype(np.float64)
    return cache[key]


def _check_balances(ledger: Admission, connection: sa.Connection, contributors: int) -> None:
    """Balances of every account must be exactly what the reservations add up to."""
    chunks = -(-contributors // _chunks.CHUNK)
    for table in (schema.balance, schema.account_balance):
        last = connection.execute(sa.select(sa.func.max(table.c.chunk))).scalar()
        if last is not None and last >= chunks:
            raise VerificationError(
                "balances of contributors that do not exist", where=f"table {table.name}, chunk {last}"
            )
    everything: list[Account | None] = [None, *accounts(connection)]
    charges = [ledger._charges(connection, account) for account in everything]
    for chunk in range(chunks):
        size = min(_chunks.CHUNK, contributors - chunk * _chunks.CHUNK)
        codes = _chunks.read_codes(connection, chunk)
        for account, charge in zip(everything, charges, strict=True):
            number, rule = (account.id, account.rule) if account else (_chunks.LIFETIME, ledger.rule)
            want = ledger._rebuilt(connection, chunk, size, codes, charge, account)
            if not np.array_equal(want, _chunks.read_balance(connection, chunk, size, rule.width, number)):
                name = f" of {account.name}" if account else ""
                raise VerificationError(
                    f"balances{name} do not match what was reserved",
                    where=f"contributors {chunk * _chunks.CHUNK} to {chunk * _chunks.CHUNK + size - 1}",
                    remedy="restore the last backup",
                )
