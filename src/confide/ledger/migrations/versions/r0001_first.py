"""Version 1: contributors, balances, reservations, journal."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of version 1 (only tests start here: a new ledger is made at the newest version)."""
    text, big, small, blob = sa.Text(), sa.BigInteger(), sa.Integer(), sa.LargeBinary()

    def column(name: str, kind: sa.types.TypeEngine[Any], *more: sa.ForeignKey) -> sa.Column[Any]:
        return sa.Column(name, kind, *more, nullable=False, autoincrement=False)

    op.create_table("meta", column("name", text), column("value", text), sa.PrimaryKeyConstraint("name"))
    op.create_table(
        "token",
        column("bucket", small),
        column("tokens", blob),
        column("numbers", blob),
        sa.PrimaryKeyConstraint("bucket"),
    )
    op.create_table("balance", column("chunk", small), column("counters", blob), sa.PrimaryKeyConstraint("chunk"))
    op.create_table(
        "reservation",
        column("seq", small),
        column("id", text),
        column("release", text),
        column("data_set", text),
        column("state", text),
        column("cohort", text),
        column("admitted", big),
        column("dropped", big),
        column("created", text),
        sa.Column("release_hash", text),
        sa.Column("idempotency_key", text),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("idempotency_key"),
        sa.CheckConstraint("state IN ('reserved', 'started', 'committed', 'aborted', 'abandoned')", name="known_state"),
    )
    op.create_table(
        "spend",
        column("reservation", small, sa.ForeignKey("reservation.seq")),
        column("class", small),
        column("guarantee", text),
        column("charge", text),
        column("admitted", big),
        sa.PrimaryKeyConstraint("reservation", "class"),
    )
    op.create_table(
        "codes",
        column("digest", text),
        column("width", small),
        column("packed", blob),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "membership",
        column("reservation", small, sa.ForeignKey("reservation.seq")),
        column("chunk", small),
        column("digest", text, sa.ForeignKey("codes.digest")),
        sa.PrimaryKeyConstraint("reservation", "chunk"),
    )
    op.create_table(
        "journal",
        *(
            column(name, small if name == "seq" else text)
            for name in ("seq", "at", "action", "body", "previous", "hash", "seal")
        ),
        sa.PrimaryKeyConstraint("seq"),
    )


def downgrade() -> None:
    """Never reached: below version 1 there is no ledger, and `migrate` refuses to go there."""
    raise RuntimeError("there is no ledger below version 1")
