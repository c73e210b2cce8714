"""Version 2: consent, allowances, erasure, named data sets, information flows, joint releases."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TABLES = (
    "site_round",
    "flow",
    "data_set_member",
    "data_set",
    "carried",
    "allowance",
    "consent",
    "level",
    "account_spend",
    "account_balance",
    "account",
)
_COLUMNS = ("recipient", "purpose", "owner", "joint")


def upgrade() -> None:
    """Add the tables and the columns; nothing that is there changes."""
    text, big, small, blob = sa.Text(), sa.BigInteger(), sa.Integer(), sa.LargeBinary()

    def column(name: str, kind: sa.types.TypeEngine[Any], *more: sa.ForeignKey) -> sa.Column[Any]:
        return sa.Column(name, kind, *more, nullable=False, autoincrement=False)

    for name in _COLUMNS:
        op.add_column("reservation", sa.Column(name, text))
    op.create_table(
        "account",
        column("id", small),
        column("name", text),
        column("kind", text),
        column("rule", text),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "account_balance",
        column("account", small, sa.ForeignKey("account.id")),
        column("chunk", small),
        column("counters", blob),
        sa.PrimaryKeyConstraint("account", "chunk"),
    )
    op.create_table(
        "account_spend",
        column("account", small, sa.ForeignKey("account.id")),
        column("reservation", small, sa.ForeignKey("reservation.seq")),
        column("class", small),
        column("charge", text),
        sa.PrimaryKeyConstraint("account", "reservation", "class"),
    )
    op.create_table(
        "level",
        column("code", small),
        column("name", text),
        sa.Column("account", small, sa.ForeignKey("account.id")),
        sa.Column("purposes", text),
        sa.Column("recipients", text),
        column("closed", small),
        sa.PrimaryKeyConstraint("code"),
        sa.UniqueConstraint("name"),
    )
    op.create_table("consent", column("chunk", small), column("packed", blob), sa.PrimaryKeyConstraint("chunk"))
    op.create_table(
        "allowance",
        column("recipient", text),
        column("rule", text),
        column("period", text),
        sa.PrimaryKeyConstraint("recipient"),
    )
    op.create_table(
        "carried",
        column("account", small),
        column("number", big),
        column("counters", blob),
        sa.PrimaryKeyConstraint("account", "number"),
    )
    op.create_table(
        "data_set",
        column("name", text),
        column("members", text),
        column("contributors", big),
        sa.Column("linkage", text),
        column("created", text),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "data_set_member",
        column("data_set", text, sa.ForeignKey("data_set.name")),
        column("chunk", small),
        column("digest", text, sa.ForeignKey("codes.digest")),
        sa.PrimaryKeyConstraint("data_set", "chunk"),
    )
    op.create_table(
        "flow",
        column("seq", small),
        sa.Column("reservation", small, sa.ForeignKey("reservation.seq")),
        column("release", text),
        column("sender", text),
        column("recipient", text),
        column("subject", text),
        column("attributes", text),
        column("purpose", text),
        column("parents", text),
        sa.Column("release_hash", text),
        sa.Column("checked", text),
        column("created", text),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("reservation"),
    )
    op.create_table(
        "site_round",
        column("reservation", small, sa.ForeignKey("reservation.seq")),
        column("round", small),
        column("attempt", small),
        column("state", text),
        sa.Column("mask", text),
        sa.PrimaryKeyConstraint("reservation", "round", "attempt"),
        sa.UniqueConstraint("mask"),
        sa.CheckConstraint("state IN ('open', 'sent', 'opened', 'void')", name="known_round_state"),
    )


def downgrade() -> None:
    """Take them away again; `migrate` has checked that no promise is lost with them."""
    for table in _TABLES:
        op.drop_table(table)
    for name in _COLUMNS:
        op.drop_column("reservation", name)
