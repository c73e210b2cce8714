"""Rounds of a joint release at one site: what was sent, whether anybody could read it, what a time-out may free."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from confide.errors import InputError
from confide.ledger import _chunks, _journal
from confide.ledger import _schema as schema
from confide.ledger._admission import Admission


class Rounds(Admission):
    """One site's notes on a joint release, each written before the act that it is about.

    An attempt at a round is *open* (the site computes), *sent* (its message has left), *opened* (the masked sum was
    read, or the message left in clear) or *void* (it timed out and can never be read).
    """

    def begin_round(self, reservation_id: str, round_: int, *, mask: str | None = None) -> int:
        """Begin an attempt at a round; return its number. Nothing has been sent yet.

        Parameters
        ----------
        mask : str, optional
            A fingerprint of this attempt's masks (the public keys they come from, say); None: the site sends in
            clear. A fingerprint can be used once: two messages under one mask give away their difference.

        Raises
        ------
        InputError
            The reservation is not one site's part of a joint release or has ended; an earlier attempt may still be
            read; the masks were used before.
        """
        if mask is not None and (not isinstance(mask, str) or not mask):
            raise InputError("the fingerprint of the masks is empty", expected="a text that names these masks alone")
        with self._store.write() as connection:
            row = self._joint_row(connection, reservation_id)
            table = schema.site_round
            here = sa.select(table).where(table.c.reservation == row.seq, table.c.round == round_)
            attempts = connection.execute(here.order_by(table.c.attempt)).all()
            if attempts and attempts[-1].state != "void":
                raise InputError(
                    f"round {round_} is {attempts[-1].state}",
                    where=reservation_id,
                    expected="one that timed out, or a new one",
                )
            if mask is not None and connection.execute(sa.select(table.c.round).where(table.c.mask == mask)).first():
                raise InputError(
                    "these masks were used before", where=reservation_id, expected="fresh masks for every attempt"
                )
            attempt = len(attempts) + 1
            entry = self._note(connection, row, round_, attempt, "open", mask, new=True)
        self._remember(entry)
        return attempt

    def note_sent(self, reservation_id: str, round_: int) -> None:
        """Note that this site's message of a round is about to leave; call it before sending.

        A message without masks can be read by whoever gets it: its round counts as opened at once.
        """
        with self._store.write() as connection:
            row = self._joint_row(connection, reservation_id)
            last = self._last(connection, row, round_, ("open",))
            entry = self._note(connection, row, round_, last.attempt, "sent" if last.mask else "opened", last.mask)
            entry = self._started(connection, row, entry) if not last.mask else entry
        self._remember(entry)

    def note_opened(self, reservation_id: str, round_: int) -> None:
        """Note that the sum of a round is about to be unmasked; call it before helping to."""
        with self._store.write() as connection:
            row = self._joint_row(connection, reservation_id)
            last = self._last(connection, row, round_, ("sent", "opened"))
            entry = self._note(connection, row, round_, last.attempt, "opened", last.mask)
            entry = self._started(connection, row, entry)
        self._remember(entry)

    def time_out(self, reservation_id: str, round_: int | None = None) -> bool:
        """Give up waiting for a round: free it where nothing that left this site can be read.

        Returns
        -------
        bool
            True: the round is void and may be tried again under the same reservation (with fresh masks), at no further
            charge. False: something of it could be read; the charge stays for good.
        """
        with self._store.write() as connection:
            row = self._joint_row(connection, reservation_id)
            table = schema.site_round
            here = sa.select(table).where(table.c.reservation == row.seq)
            if round_ is not None:
                here = here.where(table.c.round == round_)
            attempts = connection.execute(here.order_by(table.c.round, table.c.attempt)).all()
            entry = None
            for one in attempts:
                if one.state in ("open", "sent"):
                    entry = self._note(connection, row, one.round, one.attempt, "void", one.mask)
            freed = all(one.state != "opened" for one in attempts)
        self._remember(entry)
        return freed

    def free(self, reservation_id: str) -> bool:
        """End a site's part of a joint release that did not happen; refund it where nothing that left can be read.

        For a joint release the output is what leaves the hospital: its own staff hold the data anyway. So, other than
        for a local release (`abort`), a refund is possible after the data were read, as long as every round was not
        sent, or was masked, timed out and never opened.

        Returns
        -------
        bool
            True if the charge was given back, False if it stays.
        """
        self.time_out(reservation_id)
        with self._store.write() as connection:
            row = self._joint_row(connection, reservation_id)
            table = schema.site_round
            opened = connection.execute(
                sa.select(table.c.round).where(table.c.reservation == row.seq, table.c.state != "void")
            ).first()
            refunded = opened is None and row.state == "reserved"
            states = {"reserved": "aborted" if refunded else "abandoned", "started": "abandoned"}
            entry = self._change(connection, row, "abort", states, {})
            if refunded:
                self._recompute(connection, [c for c, _ in _chunks.manifest_of(connection, row.seq).chunks])
        self._finish(entry, reservation_id)
        return refunded

    def _joint_row(self, connection: sa.Connection, reservation_id: str) -> sa.Row[Any]:
        self._check_key(connection)
        row = self._row(connection, reservation_id)
        if row.joint is None:
            raise InputError("this reservation is no part of a joint release", where=reservation_id)
        if row.state not in ("reserved", "started"):
            raise InputError(
                f"this reservation is {row.state}", where=reservation_id, expected="one that has not ended"
            )
        return row

    def _last(self, connection: sa.Connection, row: sa.Row[Any], round_: int, states: tuple[str, ...]) -> sa.Row[Any]:
        table = schema.site_round
        here = sa.select(table).where(table.c.reservation == row.seq, table.c.round == round_)
        last = connection.execute(here.order_by(table.c.attempt.desc())).first()
        if last is None or last.state not in states:
            raise InputError(
                f"round {round_} is {'not begun' if last is None else last.state}",
                where=row.id,
                expected=" or ".join(states),
            )
        return last

    def _note(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        round_: int,
        attempt: int,
        state: str,
        mask: str | None,
        *,
        new: bool = False,
    ) -> _journal.Entry:
        table = schema.site_round
        if new:
            values = {"reservation": row.seq, "round": round_, "attempt": attempt, "state": state, "mask": mask}
            connection.execute(sa.insert(table).values(**values))
        else:
            here = sa.and_(table.c.reservation == row.seq, table.c.round == round_, table.c.attempt == attempt)
            connection.execute(sa.update(table).where(here).values(state=state))
        body = {
            "reservation": row.id,
            "seq": row.seq,
            "round": round_,
            "attempt": attempt,
            "state": state,
            "mask": mask,
        }
        return _journal.append(connection, self._keys, "round", body)

    def _started(self, connection: sa.Connection, row: sa.Row[Any], entry: _journal.Entry) -> _journal.Entry:
        """Something can be read from now on: nothing is refunded any more."""
        if row.state == "started":
            return entry
        return self._change(connection, row, "start", {"reserved": "started"}, {})
