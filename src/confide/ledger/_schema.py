"""The tables of a ledger, the same on SQLite and PostgreSQL.

Nothing here holds one row per contributor: ten million people are a few hundred rows of packed numbers, so that a
release on all of them is one short transaction and a backup is a plain copy of the database.
"""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 2  # the newest of `migrations/versions`

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
    # To whom and what for; the account of the database that reserved; the joint release that this is a site's part of.
    sa.Column("recipient", sa.Text),
    sa.Column("purpose", sa.Text),
    sa.Column("owner", sa.Text),
    sa.Column("joint", sa.Text),
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

# Further caps beside the lifetime cap: one a consent level with a cap of its own, one a recipient and period.
account = sa.Table(
    "account",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
)
account_balance = sa.Table(
    "account_balance",
    metadata,
    sa.Column("account", sa.Integer, sa.ForeignKey("account.id"), primary_key=True),
    sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("counters", sa.LargeBinary, nullable=False),
)
account_spend = sa.Table(
    "account_spend",
    metadata,
    sa.Column("account", sa.Integer, sa.ForeignKey("account.id"), primary_key=True),
    sa.Column("reservation", sa.Integer, sa.ForeignKey("reservation.seq"), primary_key=True),
    sa.Column("class", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("charge", sa.Text, nullable=False),
)

# What people agreed to: the levels an institution offers, and one code a person (0: the institution's default).
level = sa.Table(
    "level",
    metadata,
    sa.Column("code", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("account", sa.Integer, sa.ForeignKey("account.id")),
    sa.Column("purposes", sa.Text),
    sa.Column("recipients", sa.Text),
    sa.Column("closed", sa.Integer, nullable=False),
)
consent = sa.Table(
    "consent",
    metadata,
    sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("packed", sa.LargeBinary, nullable=False),
)

# Allowances that renew: what one recipient may receive about each contributor in one period.
allowance = sa.Table(
    "allowance",
    metadata,
    sa.Column("recipient", sa.Text, primary_key=True),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("period", sa.Text, nullable=False),
)

# Balances of people who were erased: what is left of them beside their token.
carried = sa.Table(
    "carried",
    metadata,
    sa.Column("account", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("counters", sa.LargeBinary, nullable=False),
)

# Named data sets: who is in (the number of entries of each contributor; 0: not in), packed like the codes of a release.
data_set = sa.Table(
    "data_set",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("members", sa.Text, nullable=False),
    sa.Column("contributors", sa.BigInteger, nullable=False),
    sa.Column("linkage", sa.Text),
    sa.Column("created", sa.Text, nullable=False),
)
data_set_member = sa.Table(
    "data_set_member",
    metadata,
    sa.Column("data_set", sa.Text, sa.ForeignKey("data_set.name"), primary_key=True),
    sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, sa.ForeignKey("codes.digest"), nullable=False),
)

# Who receives what: one row a release, derived or not.
flow = sa.Table(
    "flow",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("reservation", sa.Integer, sa.ForeignKey("reservation.seq"), unique=True),
    sa.Column("release", sa.Text, nullable=False),
    sa.Column("sender", sa.Text, nullable=False),
    sa.Column("recipient", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("attributes", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("parents", sa.Text, nullable=False),
    sa.Column("release_hash", sa.Text),
    sa.Column("checked", sa.Text),
    sa.Column("created", sa.Text, nullable=False),
)

# Rounds of a joint release at this site: what was sent, and whether anybody could read it.
site_round = sa.Table(
    "site_round",
    metadata,
    sa.Column("reservation", sa.Integer, sa.ForeignKey("reservation.seq"), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("mask", sa.Text, unique=True),
    sa.CheckConstraint("state IN ('open', 'sent', 'opened', 'void')", name="known_round_state"),
)

# Alembic's own table: which migration the tables have reached.
alembic_version = sa.Table("alembic_version", metadata, sa.Column("version_num", sa.String(32), primary_key=True))
