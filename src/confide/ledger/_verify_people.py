"""Checking what stands beside reservations and balances: consent, caps, erasures, data sets, flows, rounds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import sqlalchemy as sa

from confide.errors import VerificationError
from confide.ledger import _chunks, _journal, _levels
from confide.ledger import _schema as schema
from confide.ledger._accounts import accounts, carried_digest, priced_at
from confide.ledger._admission import Admission

_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of no bytes
Entries = list[_journal.Entry]


def check_people(ledger: Admission, connection: sa.Connection, entries: Entries) -> None:
    """Compare every row with what the journal says.

    Raises
    ------
    VerificationError
        Naming the first that differs.
    """
    _check_policy(connection, entries)
    _check_consent(connection, entries)
    _check_account_prices(connection, entries)
    _check_data_sets(connection, entries)
    _check_flows(connection, entries)
    _check_rounds(connection, entries)


def _differs(what: str, table: str) -> VerificationError:
    return VerificationError(f"{what} differ from what the journal says", where=f"table {table}")


def _check_policy(connection: sa.Connection, entries: Entries) -> None:
    made = [e.body for e in entries if e.action == "level"]
    levels = {body["name"]: {k: v for k, v in body.items() if k not in ("rule", "carried")} for body in made}
    rows = {r["name"]: dict(r) for r in connection.execute(sa.select(schema.level)).mappings()}
    if rows != levels:
        raise _differs("consent levels", "level")
    wanted = {e.body["recipient"]: (e.body["rule"], e.body["period"]) for e in entries if e.action == "allowance"}
    declared = connection.execute(sa.select(schema.allowance)).all()
    if {r.recipient: (json.loads(r.rule), r.period) for r in declared} != wanted:
        raise _differs("allowances", "allowance")
    rules = {f"level:{body['name']}": body["rule"] for body in made if body["rule"]}
    rules |= {e.body["account"]: e.body["rule"] for e in entries if e.action == "renew"}
    if {a.name: json.loads(a.rule_text) for a in accounts(connection)} != rules:
        raise _differs("caps", "account")


def _check_consent(connection: sa.Connection, entries: Entries) -> None:
    digests: dict[int, str] = {}
    carried = _NOTHING
    for entry in entries:
        if entry.action in ("consent", "erase"):
            digests |= dict(entry.body["chunks"])
        if entry.action in ("level", "erase"):
            carried = entry.body["carried"]
    for chunk in set(digests) | set(connection.execute(sa.select(schema.consent.c.chunk)).scalars()):
        if _levels.digest(_levels.read(connection, chunk, _chunks.CHUNK)) != digests.get(chunk):
            raise _differs("records of consent", "consent")
    if carried_digest(connection) != carried:
        raise _differs("balances of erased contributors", "carried")


def _check_account_prices(connection: sa.Connection, entries: Entries) -> None:
    """A charge in an account may not be below what the accountant of today says, and none may be missing."""
    spend, side, row = schema.spend, schema.account_spend, schema.reservation
    query = sa.select(spend.c.reservation, spend.c["class"], spend.c.guarantee)
    texts = {(r.reservation, r[1]): r.guarantee for r in connection.execute(query)}
    named: dict[str, set[int]] = {}
    for entry in entries:
        if entry.action == "reserve":
            for name in entry.body.get("accounts", {}):
                named.setdefault(name, set()).add(entry.body["seq"])
    every = set(connection.execute(sa.select(row.c.seq)).scalars())
    for account in accounts(connection):
        found = connection.execute(sa.select(side).where(side.c.account == account.id)).all()
        charged = every if account.kind == "level" else named.get(account.name, set())
        if {(r.reservation, r[2]) for r in found} != {key for key in texts if key[0] in charged}:
            raise _differs("charges of a cap", "account_spend")
        for r in found:
            today = priced_at(account.rule_text, texts[r.reservation, r[2]]).charge.astype(np.float64)
            stored = np.array(json.loads(r.charge), dtype=np.float64)
            if (stored < np.minimum(today * (1 - 1e-6), today - 1)).any():
                raise VerificationError(
                    "a class was charged less than it costs", where=f"{account.name}, reservation {r.reservation}"
                )


def _check_data_sets(connection: sa.Connection, entries: Entries) -> None:
    wanted: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.action == "data_set":
            wanted[entry.body["name"]] = dict(entry.body)
        elif entry.action == "data_set_grow":
            body = entry.body
            wanted[body["name"]] |= {"members": body["members"], "contributors": body["contributors"]}
        elif entry.action == "erase":
            for name, (digest, left) in entry.body["data_sets"].items():
                wanted[name] |= {"members": digest, "contributors": left}
        elif _journal.lost_columns(entry):
            wanted = {}
    rows = {r["name"]: dict(r) for r in connection.execute(sa.select(schema.data_set)).mappings()}
    if rows != wanted:
        raise _differs("data sets", "data_set")
    for name, row in rows.items():
        if _chunks.manifest_of_set(connection, name).digest != row["members"]:
            raise VerificationError("who is in a data set was changed", where=f"data set {name!r}")


def _check_flows(connection: sa.Connection, entries: Entries) -> None:
    wanted: list[dict[str, Any]] = []
    for entry in entries:
        if entry.action in ("reserve", "derive") and "flow" in entry.body:
            wanted.append(entry.body["flow"])
        elif _journal.lost_columns(entry):
            wanted = []
    found = [dict(r) for r in connection.execute(sa.select(schema.flow).order_by(schema.flow.c.seq)).mappings()]
    if found != wanted:
        raise _differs("flows", "flow")


def _check_rounds(connection: sa.Connection, entries: Entries) -> None:
    wanted: dict[tuple[int, int, int], tuple[str, str | None]] = {}
    for entry in entries:
        if entry.action == "round":
            body = entry.body
            wanted[body["seq"], body["round"], body["attempt"]] = (body["state"], body["mask"])
    table = schema.site_round
    found = {(r.reservation, r.round, r.attempt): (r.state, r.mask) for r in connection.execute(sa.select(table))}
    if found != wanted:
        raise _differs("rounds of joint releases", "site_round")
