"""The durable record of what every contributor has spent.

>>> import tempfile, numpy as np
>>> from confide.accounting import Gaussian
>>> folder = tempfile.mkdtemp()
>>> ledger = Ledger.create(f"{folder}/ledger.sqlite", cap_epsilon=8.0, cap_delta=1e-6)
>>> price = [Gaussian(noise_multiplier=8.0).guarantee(steps=4)]
>>> kept = ledger.reserve(release="first", contributors=["ann", "bob"], class_of=np.array([0, 0]), classes=price,
...                       data_set="clinic")
>>> ledger.start(kept.id)
>>> receipt = ledger.commit(kept.id, release_hash="ab" * 32)
>>> len(ledger.history("ann")), 0 < ledger.remaining("ann").used < 1, ledger.remaining("eve").used
(1, True, 0.0)

A reservation is charged before the run reads anything. `abort` refunds only before `start`, which the run calls when
it is about to read the first private batch; whatever ends a run after that, the charge stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide._files import write_atomic
from confide.accounting import Guarantee
from confide.errors import BudgetError, ConfideError, InputError, RunError, VerificationError
from confide.ledger import _chunks, _journal, _keys, _tokens
from confide.ledger import _schema as schema
from confide.ledger._keys import Keys
from confide.ledger._pricing import Priced, price, tight_epsilon
from confide.ledger._store import Store, parse_url
from confide.ledger.filter import FULL, Counters, Filter, add, within
from confide.ledger.records import Cohort, Receipt, Record, Remaining, Reservation, Spend, Status, Verified, WhatIf

_RELATIONS = {"add/remove": ("add/remove", "zero-out"), "replace-one": ("replace-one",)}
_EDGES = tuple(i / 20 for i in range(21))


class Ledger:
    """A ledger that is open. Make one with `Ledger.create` or `Ledger.open`."""

    def __init__(self, store: Store, keys: Keys, key_file: Path, facts: dict[str, str]) -> None:
        self._store, self._keys, self._key_file = store, keys, key_file
        self.id = facts["ledger"]
        self.rule = Filter.from_dict(json.loads(facts["rule"]))
        self.relation = facts["relation"]
        self._price = lru_cache(maxsize=4096)(lambda text: price(self.rule, text))

    # -- life ---------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        url: str | Path,
        *,
        cap_epsilon: float,
        cap_delta: float,
        key: str | Path | None = None,
        relation: str = "add/remove",
    ) -> Ledger:
        """Create a ledger with a lifetime cap for every contributor.

        Parameters
        ----------
        url : str or Path
            A file (SQLite) or a SQLAlchemy URL (sqlite:///FILE, postgresql://...).
        cap_epsilon, cap_delta : float
            What one contributor may spend in total, over all releases and data sets.
        key : path, optional
            Where to write the secret key (mode 0600); default: the database file's name + ".key".
        relation : str
            "add/remove" (also takes zero-out guarantees: the same pairs hold) or "replace-one".

        Raises
        ------
        InputError
            Bad cap, a ledger or a key file that is there already, an unsupported database.
        RunError
            The disk or the database refuses.
        """
        rule = Filter.design(cap_epsilon, cap_delta)
        if relation not in _RELATIONS:
            raise InputError(f"unknown relation {relation!r}", expected=" or ".join(_RELATIONS))
        store = Store(parse_url(url))
        key_file = _key_path(store, key)
        keys = Keys.new()
        facts = {
            "schema": str(schema.SCHEMA_VERSION),
            "ledger": secrets.token_hex(16),
            "rule": _journal.canonical(rule.to_dict()),
            "relation": relation,
            "key": keys.check(),
            "contributors": "0",
        }
        if store.file is not None and store.file.exists() and store.file.stat().st_size:
            raise InputError("there is a file already", where=store.where, remedy="open it, or choose another path")
        keys.create(key_file)
        try:
            _create_tables(store)
            with store.write() as connection:
                connection.execute(sa.insert(schema.meta), [{"name": k, "value": v} for k, v in facts.items()])
                _journal.append(connection, keys, "create", {k: facts[k] for k in ("ledger", "rule", "relation")})
        except BaseException:
            with contextlib.suppress(OSError):
                key_file.unlink()
            raise
        return cls(store, keys, key_file, facts)

    @classmethod
    def open(cls, url: str | Path, *, key: str | Path | None = None) -> Ledger:
        """Open a ledger.

        Raises
        ------
        InputError
            There is no ledger, or the key file is missing, readable by others or of another ledger.
        RunError
            The database is damaged or cannot be reached.
        """
        store = Store(parse_url(url))
        if store.file is not None and not store.file.is_file():
            raise InputError(
                "there is no ledger here",
                where=store.where,
                remedy=f"check the path, or make one: confide ledger init --url {store.url.render_as_string()} "
                "--cap-epsilon 8 --cap-delta 1e-5",
            )
        with store.read() as connection:
            facts: dict[str, str] = {
                row.name: row.value for row in connection.execute(sa.select(schema.meta.c.name, schema.meta.c.value))
            }
        missing = {"schema", "ledger", "rule", "relation", "key", "contributors"} - set(facts)
        if missing:
            raise RunError("the ledger's declared facts are damaged", where=store.where, remedy="restore a backup")
        if facts["schema"] != str(schema.SCHEMA_VERSION):
            raise InputError(
                f"this ledger has schema version {facts['schema']}",
                where=store.where,
                expected=f"version {schema.SCHEMA_VERSION}",
                remedy="confide ledger migrate",
            )
        key_file = _key_path(store, key)
        keys = Keys.read(key_file)
        if keys.check() != facts["key"] and _next_key(key_file).exists():
            # A rotation was cut off after the database had switched: the new key takes its place now.
            following = Keys.read(_next_key(key_file))
            if following.check() == facts["key"]:
                keys = following
                os.replace(_next_key(key_file), key_file)
        if keys.check() != facts["key"]:
            raise InputError(
                "this key file belongs to another ledger",
                where=str(key_file),
                expected=f"the key of the ledger {store.where}",
                remedy="give the key file that was written when this ledger was created",
            )
        try:
            return cls(store, keys, key_file, facts)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError("the ledger's declared facts are damaged", where=store.where) from error

    def close(self) -> None:
        """Give connections back."""
        self._store.engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def where(self) -> str:
        """The place of the database, without a password."""
        return self._store.where

    # -- contributors -------------------------------------------------------------------------------------------------

    def register(self, contributors: Sequence[str]) -> Cohort:
        """Give every contributor a number (new ones are added) and return them as a cohort for many releases.

        Raises
        ------
        InputError
            An id is missing, not text, or given twice.
        """
        tokens = self._keys.tokens(contributors)
        with self._store.write() as connection:
            numbers, _, entry = self._numbers(connection, tokens)
        self._remember(entry)
        return Cohort(self.id, numbers)

    def register_parquet(self, file: str | Path, column: str) -> Cohort:
        """Give everybody in a column of a Parquet file a number; the file is read in pieces.

        Raises
        ------
        InputError
            The file or the column is not there, the column is not text, or an id is missing or there twice.
        """
        tokens = _keys.tokens_of_parquet(self._keys, Path(file), column)
        with self._store.write() as connection:
            numbers, _, entry = self._numbers(connection, tokens)
        self._remember(entry)
        return Cohort(self.id, numbers)

    def _numbers(
        self, connection: sa.Connection, tokens: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.int64], int, _journal.Entry | None]:
        """Look tokens up, adding new ones; return (numbers, contributors in total, journal entry)."""
        self._check_key(connection)
        total = self._total(connection)
        numbers = _tokens.lookup(connection, tokens)
        fresh = np.flatnonzero(numbers < 0)
        if len(fresh):
            # Millions of new people need no second copy of their hashes.
            added = tokens if len(fresh) == len(tokens) else tokens[fresh]
            _tokens.insert(self._store, connection, added, total)
            numbers[fresh] = np.arange(total, total + len(fresh))
        _check_unique(numbers, total + len(fresh))
        if not len(fresh):
            return numbers, total, None
        body = {"first": total, "count": len(fresh), "tokens": _tokens.digest(added)}
        entry = _journal.append(connection, self._keys, "register", body)
        total += len(fresh)
        connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "contributors").values(value=str(total)))
        return numbers, total, entry

    def _check_key(self, connection: sa.Connection) -> None:
        """A key rotation may have happened since this ledger was opened; old hashes must then not be added."""
        stored = connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.name == "key")).scalar()
        if stored != self._keys.check():
            raise InputError("the ledger's key was rotated", where=self.where, remedy="open the ledger again")

    def _total(self, connection: sa.Connection) -> int:
        query = sa.select(schema.meta.c.value).where(schema.meta.c.name == "contributors")
        return int(connection.execute(query).scalar_one())

    def _resolve(
        self, connection: sa.Connection, who: Cohort | npt.NDArray[np.uint64], *, register: bool
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Return numbers (-1: unknown, only when not registering) and the number of contributors."""
        if isinstance(who, Cohort):
            self._check_key(connection)
            return who.numbers, self._total(connection)
        if register:
            numbers, total, _ = self._numbers(connection, who)
            return numbers, total
        return _tokens.lookup(connection, who), self._total(connection)

    def _hashed(self, contributors: Sequence[str] | Cohort) -> Cohort | npt.NDArray[np.uint64]:
        if isinstance(contributors, Cohort):
            if contributors.ledger != self.id:
                raise InputError("this cohort belongs to another ledger", remedy="register the ids in this one")
            return contributors
        return self._keys.tokens(contributors)

    # -- promises -----------------------------------------------------------------------------------------------------

    def reserve(
        self,
        *,
        release: str,
        contributors: Sequence[str] | Cohort,
        class_of: npt.NDArray[Any],
        classes: Sequence[Guarantee],
        data_set: str,
        exhausted: str = "drop",
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Charge a release to everybody in it, in one transaction, before it runs.

        Parameters
        ----------
        release, data_set : str
            Names for the history.
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

        Raises
        ------
        BudgetError
            Nobody can be admitted, or `exhausted="refuse"` and somebody cannot. Nothing was spent.
        InputError
            Ids given twice or missing, classes out of range, a relation that this ledger does not take.
        """
        if exhausted not in ("drop", "refuse"):
            raise InputError(f"exhausted={exhausted!r}", expected="'drop' or 'refuse'")
        for name, value in (("release", release), ("data_set", data_set)):
            if not isinstance(value, str) or not value:
                raise InputError(f"the {name} has no name", expected="a non-empty text")
        priced, members = self._priced(contributors, class_of, classes)
        who = self._hashed(contributors)
        with self._store.write() as connection:
            if idempotency_key is not None:
                query = sa.select(schema.reservation).where(schema.reservation.c.idempotency_key == idempotency_key)
                earlier = connection.execute(query).first()
                if earlier is not None:
                    return self._same_again(connection, earlier, who, members, priced, release, data_set)
            numbers, total = self._resolve(connection, who, register=True)
            codes = _chunks.scatter(numbers, members, len(priced), total)
            per_class = np.zeros(len(priced) + 1, dtype=np.int64)
            for chunk, part, counters in self._judge(connection, codes, priced):
                codes[chunk * _chunks.CHUNK : (chunk + 1) * _chunks.CHUNK] = part
                per_class += np.bincount(part, minlength=len(per_class))
                if part.any():
                    _chunks.write_balance(self._store, connection, chunk, counters)
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
            entry = _journal.append(connection, self._keys, "reserve", _reserve_body(row, spends))
        self._remember(entry)
        return Reservation(reservation_id, release, data_set, "reserved", admitted)

    def what_if(
        self, *, contributors: Sequence[str] | Cohort, class_of: npt.NDArray[Any], classes: Sequence[Guarantee]
    ) -> WhatIf:
        """Price a release without writing: who would be dropped, and how full balances would be."""
        priced, members = self._priced(contributors, class_of, classes)
        who = self._hashed(contributors)
        with self._store.read() as connection:
            numbers, total = self._resolve(connection, who, register=False)
            # Contributors the ledger has never seen get numbers past the end: untouched balances.
            unknown = np.flatnonzero(numbers < 0)
            numbers = numbers.copy()
            numbers[unknown] = np.arange(total, total + len(unknown))
            _check_unique(numbers, total + len(unknown))
            codes = _chunks.scatter(numbers, members, len(priced), total + len(unknown))
            before = self._used(connection, numbers, len(codes))
            used = np.zeros(len(codes))
            for chunk, part, counters in self._judge(connection, codes, priced):
                here = slice(chunk * _chunks.CHUNK, (chunk + 1) * _chunks.CHUNK)
                codes[here], used[here] = part, self.rule.used(counters.T)
        admitted, after = codes[numbers] > 0, used[numbers]
        rows = tuple(
            {
                "class": i,
                "contributors": int((members == i).sum()),
                "admitted": int((admitted & (members == i)).sum()),
                "used": float(self.rule.used(p.charge[None, :])[0]),
            }
            for i, p in enumerate(priced)
        )
        return WhatIf(admitted, rows, before, after)

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

    # -- read-outs ----------------------------------------------------------------------------------------------------

    def history(self, contributor: str) -> tuple[Spend, ...]:
        """Return every reservation that admitted one contributor, oldest first."""
        with self._store.read() as connection:
            return self._history(connection, contributor)

    def remaining(self, contributor: str) -> Remaining:
        """Return one contributor's balance; somebody the ledger has never seen has an untouched one."""
        with self._store.read() as connection:
            numbers = _tokens.lookup(connection, self._keys.tokens([contributor]))
            used = float(self._used(connection, numbers, self._total(connection))[0])
            spends = [spend for spend in self._history(connection, contributor, numbers) if spend.counts]
        texts = tuple(sorted(_journal.canonical(spend.guarantee.to_dict()) for spend in spends))
        epsilon = tight_epsilon(texts, self.rule.delta)
        return Remaining(used, epsilon, self.rule.epsilon, self.rule.delta, len(spends))

    def used(self, contributors: Sequence[str] | Cohort) -> npt.NDArray[np.float64]:
        """Return the used share of each contributor's balance, shape (n,), by the rule that admits (internal)."""
        who = self._hashed(contributors)
        with self._store.read() as connection:
            numbers, total = self._resolve(connection, who, register=False)
            return self._used(connection, numbers, total)

    def reservations(self) -> tuple[Record, ...]:
        """Return all reservations, oldest first."""
        with self._store.read() as connection:
            rows = connection.execute(sa.select(schema.reservation).order_by(schema.reservation.c.seq)).all()
        return tuple(_record(row) for row in rows)

    def reservation(self, reservation_id: str) -> Record:
        """Return one reservation.

        Raises
        ------
        InputError
            It is unknown.
        """
        with self._store.read() as connection:
            return _record(self._row(connection, reservation_id))

    def receipt(self, reservation_id: str) -> Receipt:
        """Return the receipt of a committed reservation, for a run that was killed before it could read it.

        Raises
        ------
        InputError
            It is unknown or not committed.
        """
        with self._store.read() as connection:
            row = self._row(connection, reservation_id)
            query = sa.select(schema.journal).where(schema.journal.c.action == "commit")
            for found in connection.execute(query.order_by(schema.journal.c.seq.desc())):
                body = json.loads(found.body)
                if body["reservation"] == row.id:
                    return Receipt(self.id, row.id, found.seq, found.hash, found.seal, body["release_hash"])
        raise InputError(f"this reservation is {row.state}", where=reservation_id, expected="a committed one")

    def find(self, receipt: Receipt | dict[str, Any]) -> Record:
        """Find what a receipt stands for.

        Raises
        ------
        VerificationError
            The receipt is of another ledger, or the journal does not hold this entry.
        """
        try:
            wanted = receipt if isinstance(receipt, Receipt) else Receipt.from_dict(receipt)
        except (KeyError, TypeError) as error:
            raise VerificationError("this is not a receipt of a ledger") from error
        if wanted.ledger != self.id:
            raise VerificationError("the receipt is of another ledger", where=self.where)
        with self._store.read() as connection:
            found = connection.execute(sa.select(schema.journal).where(schema.journal.c.seq == wanted.seq)).first()
            body = json.loads(found.body) if found is not None else {}
            if (
                found is None
                or (found.action, found.hash, found.seal) != ("commit", wanted.hash, wanted.seal)
                or (body.get("reservation"), body.get("release_hash")) != (wanted.reservation, wanted.release_hash)
            ):
                raise VerificationError(
                    "the ledger does not hold this receipt", where=self.where, expected="the entry it names"
                )
            return _record(self._row(connection, wanted.reservation))

    def status(self) -> Status:
        """Return the state of the whole ledger: cap, number of contributors, balances as a histogram (internal)."""
        counts = np.zeros(len(_EDGES) - 1, dtype=np.int64)
        with self._store.read() as connection:
            total = self._total(connection)
            for chunk in range(-(-total // _chunks.CHUNK)):
                size = min(_chunks.CHUNK, total - chunk * _chunks.CHUNK)
                used = self.rule.used(_chunks.read_balance(connection, chunk, size, self.rule.width).T)
                counts += np.histogram(used, bins=_EDGES)[0]
            table = schema.reservation
            states = connection.execute(sa.select(table.c.state, sa.func.count()).group_by(table.c.state)).all()
            last = connection.execute(sa.select(sa.func.max(schema.journal.c.seq))).scalar()
        by_state = {str(state): int(count) for state, count in states}
        return Status(
            self.where, self.id, self.rule.to_dict(), total, by_state, int(last or 0), _EDGES, tuple(counts.tolist())
        )

    def export_releases(self) -> list[dict[str, Any]]:
        """Return one row a class of every reservation: what was released, to whom it applied and by which mechanism."""
        row, spend = schema.reservation, schema.spend
        query = (
            sa.select(row, spend.c["class"], spend.c.guarantee, spend.c.admitted.label("in_class"))
            .join(spend, spend.c.reservation == row.c.seq)
            .order_by(row.c.seq, spend.c["class"])
        )
        with self._store.read() as connection:
            found = connection.execute(query).mappings().all()
        names = ("id", "release", "data_set", "state", "created", "release_hash", "class", "in_class", "guarantee")
        return [{name: item[name] for name in names} for item in found]

    def export_balances(self) -> dict[str, Any]:
        """Return pseudonym and used share of everybody (internal), as two columns."""
        with self._store.read() as connection:
            tokens = _tokens.everything(connection)
            used = self._used(connection, np.arange(len(tokens)), len(tokens))
        raw = tokens.astype(">u8").tobytes().hex()
        return {"pseudonym": [raw[i : i + 32] for i in range(0, len(raw), 32)], "used": used}

    # -- keys and copies ----------------------------------------------------------------------------------------------

    def rotate_key(self) -> None:
        """Hash every pseudonym again with a fresh key, in one transaction; nobody's balance changes.

        The new key file is written first and kept under its name plus ".next" until the database has switched, so
        that a crash at any point leaves a database and a key file that fit: `open` finishes what was begun.

        Raises
        ------
        RunError
            The disk or the database refuses; then nothing changed.
        """
        fresh = Keys((*self._keys.keys, secrets.token_bytes(32)))
        with self._store.write() as connection:
            self._check_key(connection)
            tokens = _keys.rehash(_tokens.everything(connection), fresh.keys[-1])
            fresh.write(_next_key(self._key_file))
            _tokens.replace_all(self._store, connection, tokens)
            facts = schema.meta
            connection.execute(sa.update(facts).where(facts.c.name == "key").values(value=fresh.check()))
            body = {"count": len(tokens), "tokens": _tokens.digest(tokens)}
            entry = _journal.append(connection, self._keys, "rotate", body)
        os.replace(_next_key(self._key_file), self._key_file)
        self._keys = fresh
        self._remember(entry)

    def backup(self, file: str | Path) -> None:
        """Copy a SQLite ledger to a new file while others go on writing.

        Raises
        ------
        InputError
            The file exists, or the ledger is on PostgreSQL (use pg_dump).
        RunError
            The disk refuses.
        """
        import sqlite3

        target = Path(file)
        if self._store.file is None:
            raise InputError("a ledger on PostgreSQL is backed up with pg_dump", where=self.where)
        if target.exists():
            raise InputError("there is a file already", where=str(target), remedy="choose another name")
        part = target.with_name(target.name + ".part")
        try:
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
            with (
                contextlib.closing(sqlite3.connect(self._store.file)) as source,
                contextlib.closing(sqlite3.connect(part)) as copy,
            ):
                source.backup(copy)
            os.replace(part, target)
        except (OSError, sqlite3.Error) as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise RunError("the backup cannot be written; the ledger is unharmed", where=str(target)) from error

    # -- verification -------------------------------------------------------------------------------------------------

    def verify(self) -> Verified:
        """Check the journal's chain and seals, and compute every balance again from what was reserved.

        Raises
        ------
        VerificationError
            Naming the first thing that does not fit.
        """
        from confide.ledger._verify import verify

        with self._store.read() as connection:
            return verify(self, connection, self._head_file)

    # -- inside -------------------------------------------------------------------------------------------------------

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
            if guarantee.relation not in _RELATIONS[self.relation]:
                raise InputError(
                    f"this ledger counts {self.relation} guarantees, not {guarantee.relation}",
                    expected=" or ".join(_RELATIONS[self.relation]),
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

    def _same_again(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        who: Cohort | npt.NDArray[np.uint64],
        members: npt.NDArray[Any],
        priced: Sequence[Priced],
        release: str,
        data_set: str,
    ) -> Reservation:
        """Answer a retry: the same content gets the same reservation, anything else is refused."""
        numbers, _ = self._resolve(connection, who, register=False)
        stored = self._codes(connection, row.seq, numbers)
        spends = connection.execute(sa.select(schema.spend.c.guarantee).where(schema.spend.c.reservation == row.seq))
        same = (
            (row.release, row.data_set, row.admitted + row.dropped) == (release, data_set, len(members))
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

    def _codes(self, connection: sa.Connection, seq: int, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
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

    def _used(self, connection: sa.Connection, numbers: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.float64]:
        out = np.zeros(len(numbers))
        known = np.flatnonzero(numbers >= 0)
        chunk_of = numbers[known] // _chunks.CHUNK
        for chunk in np.unique(chunk_of).tolist():
            inside = known[chunk_of == chunk]
            size = max(1, min(_chunks.CHUNK, total - chunk * _chunks.CHUNK))
            counters = _chunks.read_balance(connection, chunk, size, self.rule.width)
            out[inside] = self.rule.used(counters.T[numbers[inside] % _chunks.CHUNK])
        return out

    def _history(
        self, connection: sa.Connection, contributor: str, numbers: npt.NDArray[np.int64] | None = None
    ) -> tuple[Spend, ...]:
        if numbers is None:
            numbers = _tokens.lookup(connection, self._keys.tokens([contributor]))
        number = int(numbers[0])
        if number < 0:
            return ()
        chunk, at = divmod(number, _chunks.CHUNK)
        classes = {
            seq: int(codes[at])
            for seq, codes in _chunks.read_codes(connection, chunk).items()
            if at < len(codes) and codes[at]
        }
        if not classes:
            return ()
        rows: dict[int, sa.Row[Any]] = {}
        prices: dict[int, str] = {}
        table, spend = schema.reservation, schema.spend
        wanted = sorted((seq, code - 1) for seq, code in classes.items())
        for start in range(0, len(wanted), 300):
            part = wanted[start : start + 300]
            seqs = [seq for seq, _ in part]
            rows |= {r.seq: r for r in connection.execute(sa.select(table).where(table.c.seq.in_(seqs)))}
            these = sa.tuple_(spend.c.reservation, spend.c["class"]).in_(part)
            query = sa.select(spend.c.reservation, spend.c.guarantee).where(these)
            prices |= {found.reservation: found.guarantee for found in connection.execute(query)}
        return tuple(
            Spend(
                row.release,
                row.data_set,
                row.state,
                row.created,
                row.id,
                Guarantee.from_dict(json.loads(prices[seq])),
            )
            for seq, row in sorted(rows.items())
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

    def _next_reservation(self, connection: sa.Connection) -> int:
        return int(connection.execute(sa.select(sa.func.max(schema.reservation.c.seq))).scalar() or 0) + 1

    def _row(self, connection: sa.Connection, reservation_id: str) -> sa.Row[Any]:
        query = sa.select(schema.reservation).where(schema.reservation.c.id == reservation_id)
        row = connection.execute(query).first()
        if row is None:
            raise InputError("the ledger knows no such reservation", where=self.where)
        return row

    def _change(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        action: str,
        states: dict[str, str],
        details: dict[str, Any],
    ) -> _journal.Entry:
        """Move a reservation on, or note in the journal that the move was refused."""
        body = {"reservation": row.id, **details}
        if row.state not in states:
            return _journal.append(connection, self._keys, "refused", {"wanted": action, "state": row.state, **body})
        values = {"state": states[row.state], **details}
        connection.execute(sa.update(schema.reservation).where(schema.reservation.c.seq == row.seq).values(**values))
        return _journal.append(connection, self._keys, action, {"from": row.state, "to": states[row.state], **body})

    def _finish(self, entry: _journal.Entry, reservation_id: str) -> None:
        """After the transaction: keep the head, and raise if the move was refused (which is itself journalled)."""
        self._remember(entry)
        if entry.action == "refused":
            raise InputError(
                f"cannot {entry.body['wanted']}: this reservation is {entry.body['state']}",
                where=reservation_id,
                expected="a reservation that has not ended",
            )

    def _receipt(self, entry: _journal.Entry) -> Receipt:
        body = entry.body
        return Receipt(self.id, body["reservation"], entry.seq, entry.hash, entry.seal, body["release_hash"])

    @property
    def _head_file(self) -> Path:
        return self._key_file.with_name(self._key_file.name + ".head")

    def _remember(self, entry: _journal.Entry | None) -> None:
        """Keep the last entry outside the database too, so that `verify` notices a database put back to an old state.

        The transaction is over: a failure here must not look like a failed reservation.
        """
        if entry is not None:
            with contextlib.suppress(ConfideError):
                write_atomic(self._head_file, json.dumps({"seq": entry.seq, "hash": entry.hash}), mode=0o600)


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


def _reserve_body(row: dict[str, Any], spends: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the journal keeps of a reservation: enough to find any later change of its rows."""
    kept = ("seq", "id", "release", "data_set", "cohort", "admitted", "dropped", "created", "idempotency_key")
    classes = [[s["guarantee"], s["charge"], s["admitted"]] for s in spends]
    return {"reservation": row["id"], **{name: row[name] for name in kept}, "classes": classes}


def _record(row: sa.Row[Any]) -> Record:
    return Record(
        row.id, row.release, row.data_set, row.state, row.created, row.admitted, row.dropped, row.release_hash
    )


def _check_unique(numbers: npt.NDArray[np.int64], total: int) -> None:
    seen = np.zeros(total, dtype=bool)
    seen[numbers] = True
    if np.count_nonzero(seen) < len(numbers):
        raise _tokens.given_twice()


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def _key_path(store: Store, key: str | Path | None) -> Path:
    if key is not None:
        return Path(key).absolute()
    if store.file is None:
        raise InputError(
            "a ledger on PostgreSQL needs its key file named", expected="key=PATH", remedy="give --key-file PATH"
        )
    return store.file.with_name(store.file.name + ".key")


def _next_key(key_file: Path) -> Path:
    return key_file.with_name(key_file.name + ".next")


def _create_tables(store: Store) -> None:
    if store.sqlite:
        import sqlite3

        assert store.file is not None
        try:
            # 0600 from the first byte on; WAL stays set in the file.
            os.close(os.open(store.file, os.O_WRONLY | os.O_CREAT, 0o600))
            with contextlib.closing(sqlite3.connect(store.file)) as raw:
                raw.execute("PRAGMA page_size=8192")
                raw.execute("PRAGMA journal_mode=WAL")
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"the ledger cannot be created: {error}", where=store.where) from error
    with store.write() as connection:
        if sa.inspect(connection).has_table("meta"):
            raise InputError("there is a ledger already", where=store.where, remedy="open it")
        schema.metadata.create_all(connection)
        if not store.sqlite:
            # Packed numbers hardly compress; trying costs PostgreSQL more time than writing them.
            for table, column in (
                ("balance", "counters"),
                ("token", "tokens"),
                ("token", "numbers"),
                ("codes", "packed"),
            ):
                connection.exec_driver_sql(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")
