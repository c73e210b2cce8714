"""The register of information flows: who receives what about whom, what for, and how much it can be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from confide.accounting import Guarantee
from confide.errors import InputError
from confide.ledger import _journal
from confide.ledger import _schema as schema
from confide.ledger._base import Base
from confide.ledger.flows import Flow, NoPrivateAccess


def flow_facts(sender: str, recipient: str, purpose: str, attributes: Sequence[str]) -> dict[str, Any]:
    """Check what is said about a flow and return it as the columns of its row."""
    for name, value in (("sender", sender), ("recipient", recipient), ("purpose", purpose)):
        if not isinstance(value, str):
            raise InputError(f"the {name} of a flow is not text", expected="text")
    if isinstance(attributes, str) or not all(isinstance(one, str) for one in attributes):
        raise InputError(
            "the attributes of a flow are not a list of texts", expected="names of columns, or of what is shown"
        )
    return {
        "sender": sender,
        "recipient": recipient,
        "purpose": purpose,
        "attributes": _journal.canonical(list(attributes)),
    }


def insert_flow(
    connection: sa.Connection, reservation: int | None, release: str, subject: str, facts: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Add a row to the register and return what the journal keeps of it."""
    last = connection.execute(sa.select(sa.func.max(schema.flow.c.seq))).scalar()
    row = {
        "seq": int(last or 0) + 1,
        "reservation": reservation,
        "release": release,
        "subject": subject,
        "parents": "[]",
        "release_hash": None,
        "checked": None,
        "created": _journal.now(),
        **facts,
        **more,
    }
    connection.execute(sa.insert(schema.flow).values(**row))
    return row


class Flows(Base):
    """Reading the register, and adding releases that are made of other releases alone."""

    def derive(
        self,
        *,
        release: str,
        parents: Sequence[str],
        release_hash: str,
        checked: NoPrivateAccess | None,
        recipient: str = "",
        purpose: str = "",
        attributes: Sequence[str] = (),
        sender: str = "",
    ) -> Flow:
        """Record a release that was computed from other releases alone: post-processing costs nobody anything.

        Parameters
        ----------
        parents : sequence of str
            SHA-256 of every release that it was made of; the ledger must hold each of them as committed or derived.
        release_hash : str
            SHA-256 of what leaves.
        checked : NoPrivateAccess
            What the runner (`confide.ledger.run_derived`) found: the job opened nothing but its parents.

        Raises
        ------
        InputError
            A parent is unknown, there is none, or nothing says that the job had no access to private data: then it is
            a release like any other and must be reserved.
        """
        wanted = list(dict.fromkeys(parents))
        if not isinstance(checked, NoPrivateAccess) or set(checked.parents) != set(wanted):
            raise InputError(
                "nothing says that this job had no access to private data",
                expected="the report of confide.ledger.run_derived for exactly these parents",
                remedy="run the job with it, or reserve the release like any other",
            )
        if checked.output != release_hash:
            raise InputError("the report of the runner is of another output", expected=checked.output)
        if not isinstance(release, str) or not release or not wanted:
            raise InputError("a derived release needs a name and at least one parent")
        facts = flow_facts(sender, recipient, purpose, attributes)
        with self._store.write() as connection:
            self._check_key(connection)
            rows = schema.reservation
            held = set(
                connection.execute(sa.select(rows.c.release_hash).where(rows.c.release_hash.in_(wanted))).scalars()
            ) | set(
                connection.execute(
                    sa.select(schema.flow.c.release_hash).where(schema.flow.c.release_hash.in_(wanted))
                ).scalars()
            )
            missing = [one for one in wanted if one not in held]
            if missing:
                raise InputError(
                    "the ledger does not hold every parent of this release",
                    where=missing[0],
                    expected="hashes of releases that were committed or derived here",
                    remedy="commit the parents first, or reserve this release like any other",
                )
            row = insert_flow(
                connection,
                None,
                release,
                "what its parents are about",
                facts,
                parents=_journal.canonical(wanted),
                release_hash=release_hash,
                checked=_journal.canonical(checked.to_dict()),
            )
            entry = _journal.append(connection, self._keys, "derive", {"flow": row})
        self._remember(entry)
        return self.flows()[-1]

    def flows(self) -> tuple[Flow, ...]:
        """Return every flow, oldest first, with the guarantees that bound it (internal)."""
        flow, row, spend = schema.flow, schema.reservation, schema.spend
        with self._store.read() as connection:
            query = (
                sa.select(flow, row.c.state, row.c.id, row.c.data_set, row.c.release_hash.label("committed"))
                .outerjoin(row, row.c.seq == flow.c.reservation)
                .order_by(flow.c.seq)
            )
            rows = connection.execute(query).all()
            prices: dict[int, list[Guarantee]] = {}
            query = sa.select(spend.c.reservation, spend.c.guarantee).order_by(spend.c.reservation, spend.c["class"])
            texts: dict[str, Guarantee] = {}
            for found in connection.execute(query):
                if found.guarantee not in texts:
                    texts[found.guarantee] = Guarantee.from_dict(json.loads(found.guarantee))
                prices.setdefault(found.reservation, []).append(texts[found.guarantee])
        return tuple(
            Flow(
                release=r.release,
                sender=r.sender,
                recipient=r.recipient,
                subject=r.subject,
                attributes=tuple(json.loads(r.attributes)),
                purpose=r.purpose,
                state=r.state or "derived",
                created=r.created,
                release_hash=r.committed or r.release_hash,
                parents=tuple(json.loads(r.parents)),
                reservation=r.id,
                guarantees=tuple(prices.get(r.reservation, ())) if r.reservation is not None else (),
            )
            for r in rows
        )
