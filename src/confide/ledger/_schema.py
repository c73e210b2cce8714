"""The tables of a ledger, the same on SQLite and PostgreSQL.

Nothing here holds one row per contributor: ten million people are a few hundred rows of packed numbers, so that a
release on all of them is one short transaction and a backup is a plain copy of the database.
"""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 1

metadata = sa.MetaData()

# Declared facts: cap, orders, relation, version, fingerprint of the key, number of contributors.
meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

# Keyed hashes, grouped by their first two bytes and sorted inside a group; beside each its number (position).
token = sa.Table(
    "token",
    metadata,
    sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tokens", sa.LargeBinary, nullable=False),
    sa.Column("numbers", sa.LargeBinary, nullable=False),
)

# What has been spent: packed counters of some ten thousand contributors a row, one run of counters for each order.
balance = sa.Table(
    "balance",
    metadata,
    sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("counters", sa.LargeBinary, nullable=False),
)

reservation = sa.Table(
    "reservation",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("release", sa.Text, nullable=False),
    sa.Column("data_set", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cohort", sa.Text, nullable=False),
    sa.Column("admitted", sa.BigInteger, nullable=False),
    sa.Column("dropped", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("release_hash", sa.Text),
    sa.Column("idempotency_key", sa.Text, unique=True),
    sa.CheckConstraint("state IN ('reserved', 'started', 'committed', 'aborted', 'abandoned')", name="known_state"),
)

# One row per class of a reservation: contributors who share a guarantee share it.
spend = sa.Table(
    "spend",
    metadata,
    sa.Column("reservation", sa.Integer, sa.ForeignKey("reservation.seq"), primary_key=True),
    sa.Column("class", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("guarantee", sa.Text, nullable=False),
    sa.Column("charge", sa.Text, nullable=False),
    sa.Column("admitted", sa.BigInteger, nullable=False),
)

# Who was in: class + 1 of every contributor of a chunk (0: not in), stored once for equal contents.
codes = sa.Table(
    "codes",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("packed", sa.LargeBinary, nullable=False),
)
membership = sa.Table(
    "membership",
    metadata,
    sa.Column("reservation", sa.Integer, sa.ForeignKey("reservation.seq"), primary_key=True),
    sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, sa.ForeignKey("codes.digest"), nullable=False),
)

# Append-only: every change, chained by hashes and sealed with the key of the ledger.
journal = sa.Table(
    "journal",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("seal", sa.Text, nullable=False),
)
