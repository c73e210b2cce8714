"""Named data sets: who is in, with how many entries, kept in the ledger so that releases need no list of ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from confide.errors import InputError
from confide.ledger import _chunks, _journal, _keys
from confide.ledger import _schema as schema
from confide.ledger._people import People
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
        if not count:
            raise InputError("a data set needs at least one contributor")
        amounts = np.ones(count, dtype=np.uint8) if entries is None else np.asarray(entries)
        if amounts.shape != (count,) or not np.issubdtype(amounts.dtype, np.integer) or amounts.min() < 1:
            raise InputError("entries do not fit the contributors", expected=f"{count} whole numbers of at least 1")
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
            row = connection.execute(sa.select(schema.data_set).where(schema.data_set.c.name == name)).first()
            if row is None:
                names = connection.execute(sa.select(schema.data_set.c.name).order_by(schema.data_set.c.name)).scalars()
                raise InputError(
                    f"the ledger knows no data set {name!r}",
                    expected=", ".join(names) or "none was made yet",
                    remedy="make it: confide ledger data-set NAME FILE.parquet --contributor COLUMN",
                )
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
        """Return name, number of contributors (internal), linkage and time of every data set."""
        with self._store.read() as connection:
            rows = connection.execute(sa.select(schema.data_set).order_by(schema.data_set.c.name)).all()
        return [
            {
                "name": r.name,
                "contributors": r.contributors,
                "linkage": None if r.linkage is None else json.loads(r.linkage),
                "created": r.created,
            }
            for r in rows
        ]
