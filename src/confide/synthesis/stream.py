"""One-way, two-way and score sums over tables that do not fit into memory: Parquet files read in blocks of patients.

The tables are scanned by polars in batches and handed on as panels of whole patients, so that what is in memory is one
batch and the sums, however many rows there are. A streamed panel can be given to the methods that only ask for sums:
`PatientUnit` and `FlatTree`.

The visits file must hold whole numbers (codes of the declared domain), with the rows of a patient side by side and in
order, and the patients file one row a patient in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from confide.errors import InputError
from confide.synthesis.domain import Domain, Ints, Panel

BLOCK_PATIENTS = 20_000


@dataclass(frozen=True, repr=False, eq=False)
class StreamedPanel:
    """A panel on disk.

    Attributes
    ----------
    domain : Domain
    patients_file : Path
        Parquet: one row a patient with the static columns and ``visits``, the number of visits.
    visits_file : Path or None
        Parquet: the visit columns, patient after patient.
    block : int
        Patients that are in memory at a time.
    """

    domain: Domain
    patients_file: Path
    visits_file: Path | None = None
    block: int = BLOCK_PATIENTS

    def __post_init__(self) -> None:
        for path, columns in ((self.patients_file, self.domain.static), (self.visits_file, self.domain.visit)):
            if path is None:
                continue
            found = pl.read_parquet_schema(path)
            wanted = [column.name for column in columns] + (["visits"] if path == self.patients_file else [])
            lacking = [name for name in wanted if name not in found or not found[name].is_integer()]
            if lacking:
                raise InputError(
                    f"the file has no column of codes {lacking[0]!r}",
                    where=str(path),
                    expected="whole numbers for " + ", ".join(map(repr, wanted)),
                )

    @cached_property
    def patients(self) -> int:
        """Number of patients (private)."""
        return int(pl.scan_parquet(self.patients_file).select(pl.len()).collect().item())

    def blocks(self, size: int) -> Iterator[tuple[int, Panel]]:
        """Return (number of the first patient, panel of at most `size` whole patients), one after the other.

        Raises
        ------
        InputError
            The two files do not belong together, or a code lies outside the domain.
        """
        static = [column.name for column in self.domain.static]
        moving = [column.name for column in self.domain.visit]
        row = 0
        for start in range(0, self.patients, self.block):
            part = pl.scan_parquet(self.patients_file).slice(start, self.block).select([*static, "visits"]).collect()
            counts = part["visits"].to_numpy().astype(np.int64)
            total = int(counts.sum())
            visits: Ints = np.zeros((total, len(moving)), dtype=np.int64)
            if self.visits_file is not None and moving:
                found = pl.scan_parquet(self.visits_file).slice(row, total).select(moving).collect()
                if len(found) != total:
                    raise InputError(
                        "the visits file has fewer rows than the patients file counts",
                        where=str(self.visits_file),
                        expected="the numbers of visits in the patients file to add up to its rows",
                    )
                visits = found.to_numpy().astype(np.int64)
            row += total
            codes = part.select(static).to_numpy().astype(np.int64) if static else np.zeros((len(part), 0), np.int64)
            keys = np.arange(start, start + len(part), dtype=np.int64)
            for inside, piece in Panel(self.domain, codes, visits, counts, keys).blocks(size):
                yield start + inside, piece

    def __repr__(self) -> str:
        return "StreamedPanel(private)"
