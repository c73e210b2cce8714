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
import os
import secrets
from pathlib import Path

import sqlalchemy as sa

from confide.errors import InputError, RunError
from confide.ledger import _journal
from confide.ledger import _schema as schema
from confide.ledger._admission import RELATIONS
from confide.ledger._balances import Balances
from confide.ledger._create import create_tables, key_path
from confide.ledger._datasets import DataSets
from confide.ledger._erasure import Erasure
from confide.ledger._flows import Flows
from confide.ledger._keys import Keys, next_key
from confide.ledger._migrate import Migrated, check_version, migrate
from confide.ledger._promises import Promises
from confide.ledger._rounds import Rounds
from confide.ledger._store import Store, parse_url
from confide.ledger._upkeep import Upkeep
from confide.ledger.filter import Filter


class Ledger(Promises, Balances, Erasure, DataSets, Flows, Rounds, Upkeep):
    """A ledger that is open. Make one with `Ledger.create` or `Ledger.open`."""

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
        if relation not in RELATIONS:
            raise InputError(f"unknown relation {relation!r}", expected=" or ".join(RELATIONS))
        store = Store(parse_url(url))
        key_file = key_path(store, key)
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
        for folder in {key_file.parent, *([store.file.parent] if store.file else [])}:
            if not folder.is_dir():
                raise InputError("the folder does not exist", where=str(folder), remedy=f"mkdir -p {folder}")
        keys.create(key_file)
        try:
            create_tables(store)
            with store.write() as connection:
                connection.execute(sa.insert(schema.meta), [{"name": k, "value": v} for k, v in facts.items()])
                _journal.append(connection, keys, "create", {k: facts[k] for k in ("ledger", "rule", "relation")})
        except BaseException:
            with contextlib.suppress(OSError):
                key_file.unlink()
            raise
        return cls(store, keys, key_file, facts)

    @classmethod
    def migrate(
        cls,
        url: str | Path,
        *,
        key: str | Path | None = None,
        to: int = schema.SCHEMA_VERSION,
        backup: str | Path | None = None,
    ) -> Migrated:
        """Bring a ledger's tables to another version, up or down, after making a backup. Stop all runs first.

        Parameters
        ----------
        to : int
            The version to reach; default: the newest.
        backup : path, optional
            Where to put the backup; default: beside the database (SQLite), in the working folder (PostgreSQL).

        Raises
        ------
        InputError
            No ledger, the wrong key, no such version; going down would lose promises; pg_dump is missing.
        RunError
            The backup cannot be written or the database refuses; then nothing changed.
        """
        return migrate(url, key=key, to=to, backup=backup)

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
        check_version(facts["schema"], store.where)
        key_file = key_path(store, key)
        keys = Keys.read(key_file)
        if keys.check() != facts["key"] and next_key(key_file).exists():
            # A rotation was cut off after the database had switched: the new key takes its place now.
            following = Keys.read(next_key(key_file))
            if following.check() == facts["key"]:
                keys = following
                os.replace(next_key(key_file), key_file)
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

    def __enter__(self) -> Ledger:
        return self
