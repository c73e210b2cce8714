"""Named data sets: who is in, with how many entries, kept in the ledger so that releases need no list of ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.errors import InputError, RunError
from confide.ledger import _chunks, _journal, _keys
from confide.ledger import _schema as schema
from confide.ledger._people import People, check_unique
from confide.ledger.records import Cohort, DataSet


class DataSets(People):
    """Making and finding data sets."""

    def create_data_set(
        self,
        name: str,
        contributors: Sequence[str] | Cohort,
        *,
        entries: npt.ArrayLike | None = None,
        linkage: dict[str, Any] | None = None,
    ) -> DataSet:
        """Name a data set and keep who is in it; contributors the ledger has not seen are registered.

        Parameters
        ----------
        contributors : sequence of str or Cohort, length n
            Everybody in it, each once.
        entries : array of int, shape (n,), optional
            Entries of each contributor, at least 1; default: 1 each.
        linkage : dict, optional
            How the same person is recognised in other data sets (`confide.contributors.Linkage.to_dict`): an
            assumption, shown in certificates.

        Raises
        ------
        InputError
            The name exists; an id is missing or there twice; entries do not fit.
        """
        who = self._hashed(contributors)
        return self._make_set(name, who, entries, linkage)

    def create_data_set_from_parquet(
        self,
        name: str,
        file: str | Path,
        column: str,
        *,
        entries: str | None = None,
        linkage: dict[str, Any] | None = None,
    ) -> DataSet:
        """Name a data set whose contributors are the ids in a column of a Parquet file, read in pieces.

        Parameters
        ----------
        entries : str, optional
            The column with the number of entries of each contributor.
        """
        tokens = _keys.tokens_of_parquet(self._keys, Path(file), column)
        counts = None if entries is None else _keys.whole_numbers_of_parquet(Path(file), entries)
        return self._make_set(name, tokens, counts, linkage)

    def _make_set(
        self,
        name: str,
        who: Cohort | npt.NDArray[np.uint64],
        entries: npt.ArrayLike | None,
        linkage: dict[str, Any] | None,
    ) -> DataSet:
        if not isinstance(name, str) or not name:
            raise InputError("the data set has no name", expected="a non-empty text")
        count = len(who)
        amounts = _amounts(count, entries)
        with self._store.write() as connection:
            self._check_key(connection)
            if connection.execute(sa.select(schema.data_set.c.name).where(schema.data_set.c.name == name)).first():
                raise InputError(f"there is a data set {name!r} already", remedy="choose another name")
            numbers, total = self._resolve(connection, who, register=True)
            most = int(amounts.max())
            codes = np.zeros(total, dtype=_chunks.width_of(most))
            for start in range(0, count, _chunks.CHUNK):
                codes[numbers[start : start + _chunks.CHUNK]] = amounts[start : start + _chunks.CHUNK]
            if int(np.count_nonzero(codes)) != count:
                raise InputError("a contributor is given twice", expected="each contributor once")
            manifest = _chunks.packed(codes)
            created = _journal.now()
            row = {"name": name, "members": manifest.digest, "contributors": count, "created": created}
            row["linkage"] = None if linkage is None else _journal.canonical(linkage)
            connection.execute(sa.insert(schema.data_set).values(**row))
            _chunks.write_blobs(self._store, connection, codes, manifest)
            members = [{"data_set": name, "chunk": chunk, "digest": digest} for chunk, digest in manifest.chunks]
            connection.execute(sa.insert(schema.data_set_member), members)
            entry = _journal.append(connection, self._keys, "data_set", row)
        self._remember(entry)
        return self._as_set(name, codes, linkage)

    def extend_data_set(
        self, name: str, contributors: Sequence[str] | Cohort, *, entries: npt.ArrayLike | None = None
    ) -> DataSet:
        """Make a new version of a data set: new contributors, and more entries of those who are in it already.

        Nobody leaves a data set (other than by erasure) and nobody's entries become fewer. Releases that were made
        on an earlier version keep who was in them; the journal keeps the digest of every version.

        Parameters
        ----------
        contributors : sequence of str or Cohort, length n
            Who is new or has more entries than before, each once.
        entries : array of int, shape (n,), optional
            Entries of each of them in the new version, old ones included; default: 1 each.

        Raises
        ------
        InputError
            The data set is unknown; an id is missing or there twice; entries do not fit, or are fewer than before.
        """
        self._extend(name, self._hashed(contributors), entries)
        return self.data_set(name)

    def extend_data_set_from_parquet(
        self, name: str, file: str | Path, column: str, *, entries: str | None = None
    ) -> DataSet:
        """Make a new version of a data set from the ids in a column of a Parquet file; see `extend_data_set`."""
        tokens = _keys.tokens_of_parquet(self._keys, Path(file), column)
        self._extend(name, tokens, None if entries is None else _keys.whole_numbers_of_parquet(Path(file), entries))
        return self.data_set(name)

    def _extend(self, name: str, who: Cohort | npt.NDArray[np.uint64], entries: npt.ArrayLike | None) -> None:
        amounts = _amounts(len(who), entries)
        with self._store.write() as connection:
            self._check_key(connection)
            row = self._set_row(connection, name)
            numbers, total = self._resolve(connection, who, register=True)
            check_unique(numbers, total)
            present = dict(_chunks.manifest_of_set(connection, name).chunks)
            order = np.argsort(numbers, kind="stable")
            chunk_of = numbers[order] // _chunks.CHUNK
            replaced: set[str] = set()
            added = 0
            for chunk in np.unique(chunk_of).tolist():
                here = order[np.searchsorted(chunk_of, chunk) : np.searchsorted(chunk_of, chunk, side="right")]
                at, wanted = numbers[here] % _chunks.CHUNK, amounts[here]
                before = _chunks.one_blob(connection, present[chunk]) if chunk in present else np.empty(0, np.uint8)
                codes = np.zeros(max(len(before), int(at.max()) + 1), dtype=np.int64)
                codes[: len(before)] = before
                if (wanted < codes[at]).any():
                    raise InputError(
                        "somebody would have fewer entries than before",
                        where=f"data set {name!r}",
                        expected="the number of entries in the new version, old ones included",
                        remedy="name another data set, or erase people who have to leave (`confide ledger erase`)",
                    )
                added += int(np.count_nonzero(codes[at] == 0))
                codes[at] = wanted
                narrow = codes.astype(_chunks.width_of(int(codes.max())))
                digest = _chunks.write_chunk(self._store, connection, narrow)
                if present.get(chunk) == digest:
                    continue
                replaced |= {present[chunk]} if chunk in present else set()
                member = {"data_set": name, "chunk": chunk, "digest": digest}
                self._store.insert_or_replace(connection, schema.data_set_member, [member])
            _chunks.drop_unused(connection, replaced)
            values = {
                "members": _chunks.manifest_of_set(connection, name).digest,
                "contributors": row.contributors + added,
            }
            if values["members"] == row.members:
                return  # a repetition changes nothing
            table = schema.data_set
            if connection.execute(sa.update(table).where(table.c.name == name).values(**values)).rowcount != 1:
                raise RunError("this account may not change a data set", where=self.where)
            entry = _journal.append(connection, self._keys, "data_set_grow", {"name": name, "added": added, **values})
        self._remember(entry)

    def _set_row(self, connection: sa.Connection, name: str) -> sa.Row[Any]:
        row = connection.execute(sa.select(schema.data_set).where(schema.data_set.c.name == name)).first()
        if row is None:
            names = connection.execute(sa.select(schema.data_set.c.name).order_by(schema.data_set.c.name)).scalars()
            raise InputError(
                f"the ledger knows no data set {name!r}",
                expected=", ".join(names) or "none was made yet",
                remedy="make it: confide ledger data-set NAME FILE.parquet --contributor COLUMN",
            )
        return row

    def _as_set(self, name: str, codes: npt.NDArray[Any], linkage: dict[str, Any] | None) -> DataSet:
        pieces = [
            (np.flatnonzero(codes[start : start + _chunks.CHUNK]) + start).astype(np.uint32)
            for start in range(0, len(codes), _chunks.CHUNK)
        ]
        return DataSet(self.id, np.concatenate(pieces), name, codes[codes > 0], linkage)

    def data_set(self, name: str) -> DataSet:
        """Find a data set by its name.

        Raises
        ------
        InputError
            It is unknown.
        """
        with self._store.read() as connection:
            row = self._set_row(connection, name)
            pieces, entries = [], []
            for chunk, digest in _chunks.manifest_of_set(connection, name).chunks:
                codes = _chunks.one_blob(connection, digest)
                inside = np.flatnonzero(codes)
                pieces.append((inside + chunk * _chunks.CHUNK).astype(np.uint32))
                entries.append(codes[inside])
        linkage = None if row.linkage is None else json.loads(row.linkage)
        empty = np.empty(0, dtype=np.uint32)
        return DataSet(
            self.id,
            np.concatenate([empty, *pieces]),
            name,
            np.concatenate(entries) if entries else empty,
            linkage,
        )

    def data_sets(self) -> list[dict[str, Any]]:
        """Return name, number of contributors (internal), linkage, time and version of every data set."""
        table = schema.journal
        with self._store.read() as connection:
            rows = connection.execute(sa.select(schema.data_set).order_by(schema.data_set.c.name)).all()
            grown = connection.execute(sa.select(table.c.body).where(table.c.action == "data_set_grow")).scalars()
            versions = Counter(json.loads(body)["name"] for body in grown)
        return [
            {
                "name": r.name,
                "contributors": r.contributors,
                "linkage": None if r.linkage is None else json.loads(r.linkage),
                "created": r.created,
                "version": 1 + versions[r.name],
            }
            for r in rows
        ]


def _amounts(count: int, entries: npt.ArrayLike | None) -> npt.NDArray[np.integer[Any]]:
    """Return the entries of each contributor, checked."""
    if not count:
        raise InputError("a data set needs at least one contributor")
    amounts = np.ones(count, dtype=np.uint8) if entries is None else np.asarray(entries)
    if amounts.shape != (count,) or not np.issubdtype(amounts.dtype, np.integer) or amounts.min() < 1:
        raise InputError("entries do not fit the contributors", expected=f"{count} whole numbers of at least 1")
    return amounts
