"""Who may still be admitted, for everybody at once: charges are added to packed balances and judged by the rule."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.accounting import Guarantee
from confide.errors import BudgetError, InputError
from confide.ledger import _chunks, _journal
from confide.ledger import _schema as schema
from confide.ledger._people import People
from confide.ledger._pricing import Priced
from confide.ledger.filter import FULL, Counters, add, within
from confide.ledger.records import Cohort

RELATIONS = {"add/remove": ("add/remove", "zero-out"), "replace-one": ("replace-one",)}


class Admission(People):
    """Pricing, judging and recomputing balances, set by set."""

    def _priced(
        self, contributors: Sequence[str] | Cohort, class_of: npt.NDArray[Any], classes: Sequence[Guarantee]
    ) -> tuple[list[Priced], npt.NDArray[Any]]:
        """Check classes and price each of them once."""
        members = np.asarray(class_of)
        if len(classes) == 0 or len(contributors) == 0:
            raise InputError("a reservation needs at least one contributor and one class")
        if members.ndim != 1 or len(members) != len(contributors) or not np.issubdtype(members.dtype, np.integer):
            raise InputError(
                "class_of does not fit the contributors",
                expected=f"{len(contributors)} integers, one a contributor",
            )
        if members.min() < 0 or members.max() >= len(classes):
            raise InputError("class_of names a class that is not there", expected=f"0 to {len(classes) - 1}")
        for guarantee in classes:
            if guarantee.relation not in RELATIONS[self.relation]:
                raise InputError(
                    f"this ledger counts {self.relation} guarantees, not {guarantee.relation}",
                    expected=" or ".join(RELATIONS[self.relation]),
                    remedy="plan with that relation, or keep a second ledger",
                )
        return [self._price(_journal.canonical(g.to_dict())) for g in classes], members

    def _judge(
        self, connection: sa.Connection, codes: npt.NDArray[Any], priced: Sequence[Priced]
    ) -> Iterator[tuple[int, npt.NDArray[Any], Counters]]:
        """Apply the rule to all contributors at once, a chunk at a time.

        Yields
        ------
        tuple of (int, ndarray, ndarray)
            Chunk, codes of the admitted, new counters.
        """
        orders = self.rule.width
        lut = np.zeros((orders, len(priced) + 1), dtype=np.uint32)
        lut[:, 1:] = np.stack([p.charge for p in priced], axis=1)
        closing = np.zeros(len(priced) + 1, dtype=bool)
        closing[1:] = [p.closes for p in priced]
        for chunk in _chunks.touched(codes):
            part = codes[chunk * _chunks.CHUNK : (chunk + 1) * _chunks.CHUNK]
            old = _chunks.read_balance(connection, chunk, len(part), orders)
            new = np.empty_like(old)
            for k in range(orders):
                new[k] = add(old[k], lut[k][part])
            good = within(new)
            if closing.any():
                closes = closing[part] & ~good & (old == 0).all(axis=0)
                new[:, closes] = FULL
                good |= closes
            out = (part > 0) & ~good
            if out.any():
                new[:, out] = old[:, out]
                part = np.where(out, 0, part).astype(codes.dtype)
            yield chunk, part, new

    def _refuse(self, admitted: npt.NDArray[np.bool_], exhausted: str) -> None:
        if admitted.all() or (exhausted == "drop" and admitted.any()):
            return
        raise BudgetError(
            f"{int((~admitted).sum())} of {len(admitted)} contributors have too little balance left; nothing was spent",
            where=self.where,
            expected=f"a plan within what is left of epsilon {self.rule.epsilon} at delta {self.rule.delta}",
            remedy="plan a cheaper release (`confide ledger what-if` prices it); this message must not leave",
        )

    def _recompute(self, connection: sa.Connection, chunks: Sequence[int]) -> None:
        """Rebuild counters from every reservation that counts."""
        charges = self._charges(connection)
        total = self._total(connection)
        for chunk in chunks:
            size = min(_chunks.CHUNK, total - chunk * _chunks.CHUNK)
            fresh = rebuilt(_chunks.read_codes(connection, chunk), charges, size, self.rule.width)
            _chunks.write_balance(self._store, connection, chunk, fresh)

    def _charges(self, connection: sa.Connection) -> dict[int, Counters]:
        """Return {reservation: charge of every code, shape (K, classes + 1)} of everything that counts."""
        spend, row = schema.spend, schema.reservation
        query = (
            sa.select(spend.c.reservation, spend.c.charge)
            .join(row, row.c.seq == spend.c.reservation)
            .where(row.c.state != "aborted")
            .order_by(spend.c.reservation, spend.c["class"])
        )
        columns: dict[int, list[list[int]]] = {}
        for found in connection.execute(query):
            columns.setdefault(found.reservation, [[0] * self.rule.width]).append(json.loads(found.charge))
        return {seq: np.array(rows, dtype=np.uint32).T for seq, rows in columns.items()}


def rebuilt(codes: dict[int, npt.NDArray[Any]], charges: dict[int, Counters], size: int, orders: int) -> Counters:
    """Return the counters that reservations add up to, shape (orders, size)."""
    total = np.zeros((orders, size), dtype=np.uint64)
    for seq, array in codes.items():
        if seq in charges:
            total[:, : len(array)] += charges[seq][:, array]
    counters = np.minimum(total, FULL).astype(np.uint32)
    # Only a balance that one release closed can be past every allowance; it is closed at every order.
    counters[:, ~within(counters)] = FULL
    return counters
