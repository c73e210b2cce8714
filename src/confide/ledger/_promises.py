"""Promises: reserve before a run, commit what left, abort without a release, resume a run that was killed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.accounting import Guarantee
from confide.errors import InputError
from confide.ledger import _chunks, _journal, _levels
from confide.ledger import _schema as schema
from confide.ledger._admission import Admission
from confide.ledger._flows import flow_facts, insert_flow
from confide.ledger._pricing import Priced
from confide.ledger.records import Cohort, DataSet, Receipt, Reservation

# What the journal keeps of a reservation's row.
JOURNALLED = (
    *("seq", "id", "release", "data_set", "cohort", "admitted", "dropped", "created", "idempotency_key"),
    *("recipient", "purpose", "owner", "joint"),
)


class Promises(Admission):
    """What changes balances."""

    def reserve(
        self,
        *,
        release: str,
        contributors: Sequence[str] | Cohort,
        class_of: npt.NDArray[Any],
        classes: Sequence[Guarantee],
        data_set: str | None = None,
        exhausted: str = "drop",
        idempotency_key: str | None = None,
        recipient: str = "",
        purpose: str = "",
        attributes: Sequence[str] = (),
        sender: str = "",
        joint: str | None = None,
    ) -> Reservation:
        """Charge a release to everybody in it, in one transaction, before it runs.

        Parameters
        ----------
        release, data_set : str
            Names for the history; the name of a `DataSet` given as `contributors` need not be repeated.
        contributors : sequence of str or Cohort, length n
            Everybody whose entries the release may read, each once.
        class_of : ndarray of int, shape (n,)
            The class of every contributor, an index into `classes`.
        classes : sequence of Guarantee
            What the whole plan costs a contributor of each class.
        exhausted : {"drop", "refuse"}
            Contributors without enough balance are left out (`admitted` is False; run with denominators unchanged), or
            make the whole release refused.
        idempotency_key : str, optional
            A retry with the same key and content gets the first reservation back instead of a second charge.
        recipient, purpose, attributes, sender : str, str, sequence of str, str
            Who receives what, and what for: the entry in the register of flows. Consent levels and allowances are
            judged by recipient and purpose.
        joint : str, optional
            The joint release of several hospitals that this reservation is one site's part of.

        Raises
        ------
        BudgetError
            Nobody can be admitted, or `exhausted="refuse"` and somebody cannot; or allowances are declared and none
            is for this recipient. Nothing was spent.
        InputError
            Ids given twice or missing, classes out of range, a relation that this ledger does not take.
        """
        if exhausted not in ("drop", "refuse"):
            raise InputError(f"exhausted={exhausted!r}", expected="'drop' or 'refuse'")
        if data_set is None and isinstance(contributors, DataSet):
            data_set = contributors.name
        for name, value in (("release", release), ("data_set", data_set)):
            if not isinstance(value, str) or not value:
                raise InputError(f"the {name} has no name", expected="a non-empty text")
        assert data_set is not None
        flow = flow_facts(sender, recipient, purpose, attributes)
        priced, members = self._priced(contributors, class_of, classes)
        who = self._hashed(contributors)
        with self._store.write() as connection:
            if idempotency_key is not None:
                query = sa.select(schema.reservation).where(schema.reservation.c.idempotency_key == idempotency_key)
                earlier = connection.execute(query).first()
                if earlier is not None:
                    wanted = (release, data_set, recipient or None, purpose or None, joint)
                    return self._same_again(connection, earlier, who, members, priced, wanted)
            numbers, total = self._resolve(connection, who, register=True)
            caps, allowed = self._caps(connection, purpose=purpose, recipient=recipient, write=True)
            codes = _chunks.scatter(numbers, members, len(priced), total)
            per_class = np.zeros(len(priced) + 1, dtype=np.int64)
            for chunk, part, counters, beside in self._judge(connection, codes, priced, caps, allowed):
                codes[chunk * _chunks.CHUNK : (chunk + 1) * _chunks.CHUNK] = part
                per_class += np.bincount(part, minlength=len(per_class))
                if part.any():
                    _chunks.write_balance(self._store, connection, chunk, counters)
                    for account, after in beside:
                        if after.any():
                            _chunks.write_balance(self._store, connection, chunk, after, account)
            admitted = codes[numbers] > 0
            self._refuse(admitted, exhausted)
            reservation_id, seq = secrets.token_hex(8), self._next_reservation(connection)
            row = {
                "seq": seq,
                "id": reservation_id,
                "release": release,
                "data_set": data_set,
                "state": "reserved",
                "admitted": int(per_class[1:].sum()),
                "dropped": len(admitted) - int(per_class[1:].sum()),
                "created": _journal.now(),
                "idempotency_key": idempotency_key,
                "recipient": recipient or None,
                "purpose": purpose or None,
                "owner": self._store.account(connection),
                "joint": joint,
            }
            members_of = _chunks.packed(codes)
            row["cohort"] = members_of.digest
            connection.execute(sa.insert(schema.reservation).values(**row))
            _chunks.write_codes(self._store, connection, seq, codes, members_of)
            spends = [
                {"reservation": seq, "class": i, "guarantee": p.text, "charge": p.charge_text, "admitted": n}
                for i, (p, n) in enumerate(zip(priced, per_class[1:].tolist(), strict=True))
            ]
            connection.execute(sa.insert(schema.spend), spends)
            body = _reserve_body(row, spends)
            for cap in caps:
                charges = [one.charge_text for one in cap.prices(priced)]
                body["accounts"] = body.get("accounts", {}) | {cap.name: charges}
                connection.execute(
                    sa.insert(schema.account_spend),
                    [{"account": cap.id, "reservation": seq, "class": i, "charge": c} for i, c in enumerate(charges)],
                )
            body["flow"] = insert_flow(connection, seq, release, f"contributors of {data_set}", flow)
            entry = _journal.append(connection, self._keys, "reserve", body)
        self._remember(entry)
        return Reservation(reservation_id, release, data_set, "reserved", admitted)

    def start(self, reservation_id: str) -> None:
        """Note that the first private batch is about to be read: from now on `abort` does not refund.

        Calling it again (a resumed run) changes nothing.
        """
        with self._store.write() as connection:
            row = self._row(connection, reservation_id)
            if row.state == "started":
                return
            entry = self._change(connection, row, "start", {"reserved": "started"}, {})
        self._finish(entry, reservation_id)

    def commit(self, reservation_id: str, *, release_hash: str) -> Receipt:
        """Make a charge permanent and bind it to what left.

        Parameters
        ----------
        release_hash : str
            SHA-256 of the release, hexadecimal.

        Raises
        ------
        InputError
            The reservation is unknown, refunded, or committed already (`receipt` gives the first receipt back).
        """
        if not _is_sha256(release_hash):
            raise InputError("the hash of the release is not a SHA-256", expected="64 hexadecimal characters")
        with self._store.write() as connection:
            row = self._row(connection, reservation_id)
            states = {"reserved": "committed", "started": "committed"}
            entry = self._change(connection, row, "commit", states, {"release_hash": release_hash})
        self._finish(entry, reservation_id)
        return self._receipt(entry)

    def abort(self, reservation_id: str) -> bool:
        """End a run without a release; refund only if it has read nothing private yet.

        Returns
        -------
        bool
            True if the charge was given back, False if it stays.
        """
        with self._store.write() as connection:
            row = self._row(connection, reservation_id)
            states = {"reserved": "aborted", "started": "abandoned"}
            entry = self._change(connection, row, "abort", states, {})
            refunded = bool(row.state == "reserved")
            if refunded:
                self._recompute(connection, [c for c, _ in _chunks.manifest_of(connection, row.seq).chunks])
        self._finish(entry, reservation_id)
        return refunded

    def resume(self, reservation_id: str, contributors: Sequence[str] | Cohort) -> Reservation:
        """Find the reservation of a run that was killed, with who was admitted; it is not charged again.

        Raises
        ------
        InputError
            Unknown reservation, or one that has ended.
        """
        who = self._hashed(contributors)
        with self._store.read() as connection:
            row = self._row(connection, reservation_id)
            if row.state not in ("reserved", "started"):
                raise InputError(
                    f"this reservation is {row.state}", where=reservation_id, expected="one that is reserved or started"
                )
            numbers, _ = self._resolve(connection, who, register=False)
            admitted = self._codes(connection, row.seq, numbers) > 0
        return Reservation(row.id, row.release, row.data_set, row.state, admitted)

    def admitted(self, reservation_id: str, contributors: Sequence[str] | Cohort) -> npt.NDArray[np.bool_]:
        """Say who was admitted to a reservation, of any state, and agrees to it still, shape (n,) (internal).

        Whoever was dropped, was erased or is unknown took no part; of those who did, whoever has since withdrawn or
        chosen a level that does not allow its purpose or its recipient is left out as well. It is for whatever trains
        again on the people of a release, to stay inside, without charging anybody.

        Raises
        ------
        InputError
            The reservation is unknown.
        """
        who = self._hashed(contributors)
        with self._store.read() as connection:
            row = self._row(connection, reservation_id)
            numbers, total = self._resolve(connection, who, register=False)
            found: npt.NDArray[np.bool_] = self._codes(connection, row.seq, numbers) > 0
            if not _levels.anything(connection):
                return found
            allowed = _levels.allowed(connection, purpose=row.purpose or "", recipient=row.recipient or "")
            took_part = np.flatnonzero(found)
            chunk_of = numbers[took_part] // _chunks.CHUNK
            for chunk in np.unique(chunk_of).tolist():
                here = took_part[chunk_of == chunk]
                levels = _levels.read(connection, chunk, min(_chunks.CHUNK, total - chunk * _chunks.CHUNK))
                found[here] = allowed[levels[numbers[here] % _chunks.CHUNK]]
        return found

    def _same_again(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        who: Cohort | npt.NDArray[np.uint64],
        members: npt.NDArray[Any],
        priced: Sequence[Priced],
        wanted: tuple[str | None, ...],
    ) -> Reservation:
        """Answer a retry: the same content gets the same reservation, anything else is refused."""
        numbers, _ = self._resolve(connection, who, register=False)
        stored = self._codes(connection, row.seq, numbers)
        spends = connection.execute(sa.select(schema.spend.c.guarantee).where(schema.spend.c.reservation == row.seq))
        same = (
            (row.release, row.data_set, row.recipient, row.purpose, row.joint) == wanted
            and row.admitted + row.dropped == len(members)
            and [s.guarantee for s in spends] == [p.text for p in priced]
            and bool(((stored == members.astype(np.int64) + 1) | (stored == 0)).all())
            and int((stored > 0).sum()) == row.admitted
        )
        if not same or row.state not in ("reserved", "started"):
            raise InputError(
                "this idempotency key was used for another reservation or one that has ended",
                where=row.id,
                remedy="choose a new key for a new release",
            )
        return Reservation(row.id, row.release, row.data_set, row.state, stored > 0)

    def _codes(
        self, connection: sa.Connection, seq: int, numbers: npt.NDArray[np.integer[Any]]
    ) -> npt.NDArray[np.int64]:
        """Return class + 1 in one reservation for every number, 0 where not in."""
        out = np.zeros(len(numbers), dtype=np.int64)
        for chunk, digest in _chunks.manifest_of(connection, seq).chunks:
            inside = np.flatnonzero((numbers >= 0) & (numbers // _chunks.CHUNK == chunk))
            if len(inside) == 0:
                continue
            blob = connection.execute(sa.select(schema.codes).where(schema.codes.c.digest == digest)).one()
            codes = _chunks.unpack(digest, blob.width, blob.packed)
            at = numbers[inside] % _chunks.CHUNK
            known = at < len(codes)
            out[inside[known]] = codes[at[known]]
        return out

    def _next_reservation(self, connection: sa.Connection) -> int:
        return int(connection.execute(sa.select(sa.func.max(schema.reservation.c.seq))).scalar() or 0) + 1

    def _receipt(self, entry: _journal.Entry) -> Receipt:
        body = entry.body
        return Receipt(self.id, body["reservation"], entry.seq, entry.hash, entry.seal, body["release_hash"])


def _reserve_body(row: dict[str, Any], spends: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the journal keeps of a reservation: enough to find any later change of its rows."""
    classes = [[s["guarantee"], s["charge"], s["admitted"]] for s in spends]
    return {"reservation": row["id"], **{name: row[name] for name in JOURNALLED}, "classes": classes}


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and all(c in "0123456789abcdef" for c in text)
