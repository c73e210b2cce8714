"""Coded tables that do not fit into memory: files of some thousand patients each, read one after the other.

What is in memory is a part and the sums, however many rows there are. A streamed panel can be given to the methods that
only ask for sums: `PatientUnit` and `FlatTree`. Blocks have the same borders as those of a panel in memory with the
same patients in the same order, so that both give the same exact answers to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.errors import InputError
from confide.synthesis.domain import BLOCK_PATIENTS, MAX_CELLS, Domain, Ints, Panel

assert MAX_CELLS <= 255  # a code takes one byte


@dataclass(frozen=True, repr=False, eq=False)
class StreamedPanel:
    """A panel on disk, made by `StreamedPanel.write`.

    Attributes
    ----------
    domain : Domain
    folder : Path
    name : str
        Beginning of its files: several panels may lie in one folder.
    sizes : tuple of int
        Patients in every part (private).
    wanted : bool array, shape (patients written,), optional
        Who takes part; default everybody.
    """

    domain: Domain
    folder: Path
    name: str
    sizes: tuple[int, ...]
    wanted: npt.NDArray[np.bool_] | None = None

    @classmethod
    def write(cls, folder: Path, domain: Domain, panels: Iterable[Panel], *, name: str = "panel") -> StreamedPanel:
        """Write panels one after the other and return them as one."""
        sizes = []
        for number, panel in enumerate(panels):
            write_part(folder, name, number, panel)
            sizes.append(panel.patients)
        return cls(domain, folder, name, tuple(sizes))

    @property
    def patients(self) -> int:
        """Number of patients (private)."""
        return sum(self.sizes) if self.wanted is None else int(np.count_nonzero(self.wanted))

    def keep(self, wanted: npt.NDArray[np.bool_]) -> StreamedPanel:
        """Return some patients with all their visits."""
        assert self.wanted is None
        return self if wanted.all() else replace(self, wanted=wanted)

    def blocks(self, size: int) -> Iterator[tuple[int, Panel]]:
        """Return (number of the first patient, panel of at most `size` whole patients), one after the other.

        Raises
        ------
        InputError
            The files of a part do not belong together, or a code lies outside the domain.
        """
        size = min(size, BLOCK_PATIENTS)
        start, held, number = 0, list[Panel](), 0
        for part in self._parts():
            held.append(part)
            number += part.patients
            if number < size:
                continue
            whole = Panel.joined(self.domain, held)
            for inside in range(0, number - number % size, size):
                yield start, whole.slice(inside, inside + size)
                start += size
            held, number = [whole.slice(number - number % size, number)], number % size
        if number:
            yield start, Panel.joined(self.domain, held)

    def _parts(self) -> Iterator[Panel]:
        before = 0
        for number, patients in enumerate(self.sizes):
            if patients:
                panel = read_part(self.folder, self.name, number, self.domain)
                yield panel if self.wanted is None else panel.keep(self.wanted[before : before + patients])
            before += patients

    def __repr__(self) -> str:
        return "StreamedPanel(private)"


def _files(folder: Path, name: str, number: int) -> tuple[Path, Path]:
    return folder / f"{name}-{number:05d}-patients.parquet", folder / f"{name}-{number:05d}-rows.parquet"


def write_part(folder: Path, name: str, number: int, panel: Panel) -> None:
    """Write the patients and the rows of one part."""
    patients, rows = _files(folder, name, number)
    _frame(panel.static).with_columns(rows=pl.Series(panel.counts), key=pl.Series(panel.keys)).write_parquet(patients)
    if panel.domain.visit:
        _frame(panel.visit).write_parquet(rows)


def _frame(codes: Ints) -> pl.DataFrame:
    columns = {f"{place}": codes[:, place].astype(np.uint8) for place in range(codes.shape[1])}
    return pl.DataFrame({name: pl.Series(values) for name, values in columns.items()})


def read_part(folder: Path, name: str, number: int, domain: Domain) -> Panel:
    """Read one part.

    Raises
    ------
    InputError
        Its files do not belong together.
    """
    patients, rows = _files(folder, name, number)
    people = pl.read_parquet(patients)
    visits = pl.read_parquet(rows) if domain.visit else pl.DataFrame()
    counts = people["rows"].to_numpy().astype(np.int64)
    if len(domain.visit) != visits.width or (visits.width and len(visits) != int(counts.sum())):
        raise InputError(
            "the rows of a part are not as many as its patients count",
            where=str(rows),
            expected="the two files as they were written together",
        )
    static = people.drop("rows", "key")
    return Panel(
        domain,
        _codes(static, len(people)),
        _codes(visits, int(counts.sum())),
        counts,
        people["key"].to_numpy().astype(np.int64),
    )


def _codes(frame: pl.DataFrame, rows: int) -> Ints:
    codes = np.empty((rows, frame.width), dtype=np.int64)
    for place, column in enumerate(frame.columns):
        codes[:, place] = frame[column].to_numpy()
    return codes
