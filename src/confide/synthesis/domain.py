"""Coded tables: every value a small whole number out of a declared, finite domain.

>>> domain = Domain(static=(Column("sex", 2),), visit=(Column("fibrosis", 4, ordinal=True),), max_visits=8)
>>> panel = Panel.from_codes(domain, static=[[0], [1]], visit=[[3], [2], [1]], counts=[2, 1])
>>> panel.of_visit.tolist()
[0, 0, 1]

A `Domain` is public and may be printed whole. A `Panel` built from real patients is private: it is only ever passed in
as an argument, its `repr` shows nothing, and mechanisms reach it through `confide.synthesis.meter.Meter` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.errors import InputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAX_CELLS = 200
# Patients that one pass looks at together: the same in memory and on disk, so that both add up in the same order.
BLOCK_PATIENTS = 20_000


@dataclass(frozen=True)
class Column:
    """One coded column.

    Attributes
    ----------
    name : str
    cells : int
        Number of values, the cell "missing" included.
    ordinal : bool
        Whether neighbouring cells resemble each other (bins of a number, an ordered scale).
    missing : bool
        Whether the last cell means "missing".
    """

    name: str
    cells: int
    ordinal: bool = False
    missing: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= MAX_CELLS:
            raise InputError(
                f"column {self.name!r} has {self.cells} cells",
                expected=f"1 to {MAX_CELLS} declared categories or bins",
                remedy="declare coarser bins or group rare categories from public knowledge",
            )


def visit_bins(max_visits: int, ratio: float = 1.3) -> tuple[int, ...]:
    """Return the public bin starts of the number of visits: 0, 1, 2, ... and then growing by `ratio`."""
    starts = [0, 1]
    while True:
        following = max(starts[-1] + 1, int(np.ceil(starts[-1] * ratio)))
        if following > max_visits:
            return tuple(starts)
        starts.append(following)


@dataclass(frozen=True)
class Domain:
    """What the tables may hold: one static row a patient, several visits a patient in order.

    Attributes
    ----------
    static, visit : tuple of Column
    max_visits : int
        Public upper bound on the visits of one patient in the output; contributions of patients above it are bounded
        by clipping like everybody's.
    time : str, optional
        Name of the visit column that never decreases within a patient (time since the index date, in bins).
    target : str, optional
        Column whose relations matter most to the users of the table (a public choice).
    """

    static: tuple[Column, ...]
    visit: tuple[Column, ...]
    max_visits: int = 1
    time: str | None = None
    target: str | None = None
    min_visits: int = 0

    def __post_init__(self) -> None:
        names = self.names
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"two columns are called {twice!r}", expected="every column name once over all tables")
        if not names:
            raise InputError("the domain has no columns", expected="at least one declared column")
        if self.time is not None and self.time not in [c.name for c in self.visit]:
            raise InputError(f"the time column {self.time!r} is no visit column")
        if self.max_visits < max(1, self.min_visits):
            raise InputError(f"max_visits is {self.max_visits}", expected="at least 1, and at least min_visits")

    @property
    def names(self) -> tuple[str, ...]:
        """All column names, static ones first."""
        return tuple(column.name for column in (*self.static, *self.visit))

    @cached_property
    def count_starts(self) -> tuple[int, ...]:
        """Starts of the public bins of the number of visits."""
        return tuple(start for start in visit_bins(self.max_visits) if start >= self.min_visits)


@dataclass(frozen=True, repr=False, eq=False)
class Panel:
    """Patients with their visits as codes.

    Attributes
    ----------
    static : int64 array, shape (patients, static columns)
    visit : int64 array, shape (visits, visit columns)
        Grouped by patient, within a patient in order of time.
    counts : int64 array, shape (patients,)
        Visits of each patient, zero allowed.
    keys : int64 array, shape (patients,)
        A number of each patient for secret coins, kept when others are removed; by default the position.
    """

    domain: Domain
    static: Ints
    visit: Ints
    counts: Ints
    keys: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    starts: Ints = field(init=False)

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.counts):
            object.__setattr__(self, "keys", np.arange(len(self.counts), dtype=np.int64))
        object.__setattr__(self, "starts", np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64))
        if self.static.shape != (len(self.counts), len(self.domain.static)):
            raise InputError("the static codes have the wrong shape", expected="one row a patient")
        if self.visit.shape != (int(self.starts[-1]), len(self.domain.visit)):
            raise InputError("the visit codes have the wrong shape", expected="as many rows as the counts add up to")
        for codes, columns in ((self.static, self.domain.static), (self.visit, self.domain.visit)):
            for position, column in enumerate(columns):
                values = codes[:, position]
                if len(values) and (values.min() < 0 or values.max() >= column.cells):
                    raise InputError(
                        f"column {column.name!r} holds a code outside its domain", expected=f"0 to {column.cells - 1}"
                    )

    @classmethod
    def from_codes(cls, domain: Domain, *, static: Any, visit: Any, counts: Sequence[int] | Ints) -> Panel:
        """Build a panel from nested lists or arrays of codes; errors if a code lies outside the domain."""
        numbers = np.asarray(counts, dtype=np.int64)
        parts = []
        for codes, rows, columns in (
            (static, len(numbers), len(domain.static)),
            (visit, int(numbers.sum()), len(domain.visit)),
        ):
            array = np.asarray(codes, dtype=np.int64)
            if array.size != rows * columns:
                raise InputError(
                    "the codes have the wrong shape", expected=f"{rows} rows of {columns} columns, got {array.shape}"
                )
            parts.append(array.reshape(rows, columns))
        return cls(domain, parts[0], parts[1], numbers)

    @property
    def patients(self) -> int:
        """Number of patients (private for a panel of real patients)."""
        return len(self.counts)

    @property
    def of_visit(self) -> Ints:
        """Position of each visit's patient, shape (visits,)."""
        return np.repeat(np.arange(self.patients, dtype=np.int64), self.counts)

    def slice(self, start: int, stop: int) -> Panel:
        """Return patients `start` to `stop` with all their visits."""
        return Panel(
            self.domain,
            self.static[start:stop],
            self.visit[self.starts[start] : self.starts[stop]],
            self.counts[start:stop],
            self.keys[start:stop],
        )

    def blocks(self, size: int) -> Iterator[tuple[int, Panel]]:
        """Return (number of the first patient, panel of at most `size` patients), one after the other."""
        size = min(size, BLOCK_PATIENTS)
        for start in range(0, self.patients, size):
            yield start, self.slice(start, min(start + size, self.patients))

    @classmethod
    def joined(cls, domain: Domain, panels: Sequence[Panel]) -> Panel:
        """Return the patients of several panels, one panel after the other."""
        if len(panels) == 1:
            return panels[0]
        empty = cls.from_codes(domain, static=[], visit=[], counts=[])
        several = [empty, *panels]
        parts = ([getattr(p, name) for p in several] for name in ("static", "visit", "counts", "keys"))
        return cls(domain, *(np.concatenate(part) for part in parts))

    def keep(self, wanted: npt.NDArray[np.bool_]) -> Panel:
        """Return some patients with all their visits."""
        visits = self.visit[wanted[self.of_visit]]
        return Panel(self.domain, self.static[wanted], visits, self.counts[wanted], self.keys[wanted])

    def without(self, patient: int) -> Panel:
        """Return the neighbouring data set: the same panel without one patient."""
        return self.keep(np.arange(self.patients) != patient)

    def count_codes(self) -> Ints:
        """Bin of each patient's number of visits; above the last start, the last bin."""
        return np.clip(
            np.searchsorted(np.asarray(self.domain.count_starts), self.counts, side="right") - 1, 0, None
        ).astype(np.int64)

    def __repr__(self) -> str:
        return "Panel(private)"
