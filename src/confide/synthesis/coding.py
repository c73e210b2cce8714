"""From declared tables to codes.

Everything outside the declaration is refused with the row it stands in, or clipped where the declaration says so;
nothing is dropped. A patient without visits stays a patient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.data import Schema, SourceSpec, linked_ids, read_source
from confide.data.convert import Counts, Origin
from confide.data.table import encode
from confide.errors import InputError, nearest
from confide.synthesis.columns import SynthesisColumn
from confide.synthesis.domain import Ints, Panel
from confide.synthesis.linked import bins_of
from confide.synthesis.preparing import check_grid, one_row_each, rolled_up, time_since
from confide.synthesis.sections import EventsSection, PatientsSection, TableSection, VisitsSection
from confide.synthesis.study import SynthesisStudy

Names = npt.NDArray[np.str_]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, repr=False, eq=False)
class Coded:
    """Private: the coded panels, whose they are, and each patient's consent level.

    Attributes
    ----------
    panel : Panel
        Patients and visits.
    ids : str array, shape (patients,)
        In the order of `numbers_of`, which is the same however the tables are read.
    levels : str array or None
    events : mapping of event table to Panel
        Its static columns are those that the event table is generated from.
    cells : mapping of table to DataFrame
        The values behind the codes, rows in the order of the codes.
    clipped : mapping of "table.column" to int
        Values moved to a bound because the declaration says so (internal).
    """

    panel: Panel
    ids: Names
    levels: Names | None
    events: Mapping[str, Panel] = field(default_factory=dict)
    cells: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    clipped: Mapping[str, int] = field(default_factory=dict)

    def level_numbers(self, levels: Sequence[str]) -> Ints | None:
        """Return the number of each patient's consent level in a list of them; None where there are no levels."""
        if self.levels is None:
            return None
        return np.array([levels.index(level) for level in self.levels.tolist()], dtype=np.int64)

    def subset(self, keep: Bools) -> Coded:
        """Keep some patients with all their rows."""
        rows = {"patients": keep, "visits": keep[self.panel.of_visit]}
        rows |= {name: keep[panel.of_visit] for name, panel in self.events.items()}
        return Coded(
            self.panel.keep(keep),
            self.ids[keep],
            None if self.levels is None else self.levels[keep],
            {name: panel.keep(keep) for name, panel in self.events.items()},
            {name: frame.filter(pl.Series(rows[name])) for name, frame in self.cells.items()},
            self.clipped,
        )


@dataclass(frozen=True, repr=False, eq=False)
class _Read:
    frame: pl.DataFrame
    cells: pl.DataFrame
    origin: Origin
    ids: Names


# What gives the rows of a table: (section, name of the table) -> (rows as they stand, where they came from).
Reader = Callable[[TableSection, str], tuple[pl.DataFrame, Origin]]


def read_coded(study: SynthesisStudy, *, base: Path, reader: Reader | None = None) -> Coded:
    """Read the tables of a study and code them.

    Parameters
    ----------
    reader : optional
        Gives the rows, for tables that are read a part at a time; default: the whole sources.

    Raises
    ------
    InputError
        A missing or undeclared column, a value outside its declaration, a missing or repeated patient, a visit of
        somebody who is not in the patient table, two visits with one key.
    """
    clipped: dict[str, int] = {}
    read = _Reading(study, base, clipped, reader or whole_sources(base))
    people = read.table(study.patients, "patients")
    ids, order = people.ids, np.lexsort((people.ids, numbers_of(people.ids)))
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(twice):
        raise InputError(
            "a patient stands twice in the patient table",
            where=people.origin.at(study.patients.contributor, np.sort(order[twice[0] : twice[0] + 2])),
            expected="one row a patient",
            remedy="join the rows at the source, declare repeated = true where all rows of a patient agree, or declare "
            "what changes as a visit column",
        )
    static = codes_of(people.cells, study.features(study.patients))
    levels = None
    if study.privacy.budget != "equal":
        levels = people.cells[study.privacy.budget.column].cast(pl.String).fill_null("").to_numpy().astype(np.str_)
        levels = levels[order]
        unknown = sorted(set(levels.tolist()) - set(study.privacy.budget.levels))
        if unknown:
            raise InputError(
                f"the budget column holds {unknown[0]!r}",
                where=people.origin.at(study.privacy.budget.column),
                expected="one of " + ", ".join(study.privacy.budget.levels),
                remedy="declare the level with its epsilon, or leave these patients out at the source",
            )
    raw = people.frame[order]
    ids, static = ids[order], static[order]
    cells = {"patients": people.cells[order]}
    visit, counts = np.zeros((0, 0), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
    if study.visits is not None:
        visit, counts, cells["visits"] = _rows(read, study.visits, "visits", ids, raw)
    events: dict[str, Panel] = {}
    names = list(study.features(study.patients))
    for name, section in study.events.items():
        rows, numbers, cells[name] = _rows(read, section, name, ids, raw)
        given = [names.index(column) for column in study.given(name)]
        others = {"visits": counts} | {other: panel.counts for other, panel in events.items()}
        beside = [bins_of(others[other], study.row_bins(other)) for other in section.beside]
        known = np.column_stack([static[:, given], *beside])
        events[name] = Panel(study.event_domain(name), known, rows, numbers, numbers_of(ids))
    panel = Panel(study.domain(), static, visit, counts, numbers_of(ids))
    return Coded(panel, ids, levels, events, cells, clipped)


def numbers_of(ids: Names) -> Ints:
    """Return a number of each patient from the id alone: who else is in the tables changes nobody's coins or places."""
    digests = (hashlib.blake2b(str(one).encode(), digest_size=4).digest() for one in ids)
    return np.fromiter((int.from_bytes(one, "little") >> 1 for one in digests), dtype=np.int64, count=len(ids))


def whole_sources(base: Path) -> Reader:
    """Return a reader of whole sources into memory."""

    def read(section: TableSection, table: str) -> tuple[pl.DataFrame, Origin]:
        # a table of visits may be empty where nobody needs to have one; saying so must not depend on the data
        may_be_empty = isinstance(section, VisitsSection) and section.min_visits == 0
        return read_source(spec_of(section), base=base, allow_empty=may_be_empty)

    return read


def spec_of(section: TableSection) -> SourceSpec:
    """Return where a table comes from."""
    return SourceSpec.model_validate(section.model_dump(include=set(SourceSpec.model_fields)))


@dataclass(frozen=True, repr=False, eq=False)
class _Reading:
    study: SynthesisStudy
    base: Path
    clipped: dict[str, int]
    reader: Reader

    def table(
        self, section: PatientsSection | VisitsSection, table: str, index: tuple[Names, pl.DataFrame] | None = None
    ) -> _Read:
        return _read(self, section, table, *self.reader(section, table), index)


def check_columns(
    study: SynthesisStudy, section: PatientsSection | VisitsSection, table: str, frame: pl.DataFrame, origin: Origin
) -> None:
    """Refuse a table without its column of ids, or with columns that are not declared; looks at names alone.

    Raises
    ------
    InputError
    """
    if section.contributor not in frame.columns:
        close = nearest(section.contributor, frame.columns)
        raise InputError(
            f"there is no column {section.contributor!r}",
            where=origin.at(),
            expected="the column of patient ids",
            remedy=f"did you mean {close!r}?" if close else "correct `contributor`",
        )
    _refuse_undeclared(study, frame, section, table, origin)


def _read(
    read: _Reading,
    section: PatientsSection | VisitsSection,
    table: str,
    frame: pl.DataFrame,
    origin: Origin,
    index: tuple[Names, pl.DataFrame] | None,
) -> _Read:
    check_columns(read.study, section, table, frame, origin)
    base, spec = read.base, spec_of(section)
    # the same reading as for training: a person who is "7" in one place and "7.0" in another would have two balances
    ids = np.array(linked_ids(frame, spec, origin, "patient id", base=base), dtype=np.str_)
    used = {name: column for name, column in section.columns.items() if column.role != "ignore"}
    if isinstance(section, PatientsSection) and section.repeated:
        keep = one_row_each(frame, ids, [name for name in section.columns if name in frame.columns], origin)
        frame, ids = frame[keep], ids[keep]
    if index is not None:
        _refuse_strangers(ids, index[0], section, origin)
    frame = rolled_up(frame, used, origin, base)
    if index is not None:
        frame = time_since(frame, used, ids, index, origin)
    cells, _, _, counts = encode(frame, Schema.model_construct(columns=dict(section.columns)), origin)
    _count(counts, table, read.clipped)
    check_grid(cells, used, origin)
    return _Read(frame, cells, origin, ids)


def _refuse_undeclared(
    study: SynthesisStudy, frame: pl.DataFrame, section: PatientsSection | VisitsSection, table: str, origin: Origin
) -> None:
    # the facts of patients may stand beside their visits, and visits beside patients: one file for both is usual
    known = {section.contributor, section.entry}
    for other in (study.patients, study.visits, *study.events.values()):
        if other is not None and (other is section or other.source == section.source):
            known |= set(other.columns)
    extra = [name for name in frame.columns if name not in known]
    if extra and section.undeclared == "refuse":
        missing = [name for name, column in section.columns.items() if name not in frame.columns]
        close = nearest(extra[0], missing)
        part = f"events.{table}" if table not in ("patients", "visits") else table
        raise InputError(
            f"column {extra[0]!r} is in the table and not in the schema"
            + (f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""),
            where=origin.at(),
            expected=f"every column declared under [{part}.columns]",
            remedy=(f"is it the declared {close!r}? Otherwise " if close else "")
            + f'declare it (role = "ignore" leaves it out), or set undeclared = "ignore" in [{part}]',
        )


def _refuse_strangers(ids: Names, known: Names, section: TableSection, origin: Origin) -> None:
    at = np.searchsorted(known, ids)
    strange = np.flatnonzero((np.append(known, "")[at] != ids) | (at == len(known))).astype(np.int64)
    if len(strange):
        raise InputError(
            "a visit belongs to nobody in the patient table",
            where=origin.at(section.contributor, strange),
            expected="every patient of a visit in the patient table",
            remedy="add the patient's row, or leave the visits out at the source",
        )


def _count(counts: Counts, table: str, clipped: dict[str, int]) -> None:
    for name, number in counts.clipped.items():
        clipped[f"{table}.{name}"] = number


def _rows(
    reading: _Reading, section: VisitsSection | EventsSection, table: str, ids: Names, patients: pl.DataFrame
) -> tuple[Ints, Ints, pl.DataFrame]:
    by_name = np.argsort(ids, kind="stable")
    read = reading.table(section, table, (ids[by_name], patients[by_name]))
    whose, origin, cells = read.ids, read.origin, read.cells
    at = by_name[np.searchsorted(ids, whose, sorter=by_name)] if len(whose) else np.zeros(0, dtype=np.int64)
    time = cells[section.time].cast(pl.Float64 if section.columns[section.time].type != "date" else pl.Int32).to_numpy()
    if section.entry is not None:
        keys = read.frame[section.entry].cast(pl.String).fill_null("").to_numpy().astype(np.str_)
        by_key = np.lexsort((keys, at))
        same = np.flatnonzero((at[by_key][1:] == at[by_key][:-1]) & (keys[by_key][1:] == keys[by_key][:-1]))
        if len(same):
            raise InputError(
                "two visits of one patient have the same key",
                where=origin.at(section.entry, np.sort(by_key[same[0] : same[0] + 2])),
                expected="every (patient, entry) pair once",
            )
    order = np.lexsort((time, at))
    counts = np.bincount(at, minlength=len(ids)).astype(np.int64)
    if section.min_visits and (counts == 0).any():
        raise InputError(
            "a patient has no visit, and min_visits = 1 declares that everybody has one",
            where=origin.at(),
            remedy="set min_visits = 0",
        )
    return codes_of(cells, reading.study.features(section))[order], counts, cells[order]


def codes_of(cells: pl.DataFrame, columns: Mapping[str, SynthesisColumn]) -> Ints:
    """Return the codes of declared columns, shape (rows, columns)."""
    coded = []
    for name, column in columns.items():
        series = cells[name]
        gap = series.is_null().to_numpy()
        if column.type in ("categorical", "ordinal"):
            place = {str(value): number for number, value in enumerate(column.categories or ())}
            codes = np.array([place.get(value, 0) for value in series.cast(pl.String).to_list()], dtype=np.int64)
        else:
            values = series.cast(pl.Int32) if column.type == "date" else series
            numbers = values.cast(pl.Float64).fill_null(0.0).to_numpy()
            edges = column.edges()
            # a value of the grid may lie a rounding error under its edge
            slack = 1e-9 * column.grid if column.grid is not None else 0.0
            codes = np.clip(np.searchsorted(edges, numbers + slack, side="right") - 1, 0, len(edges) - 2)
        coded.append(np.where(gap, column.coded(name).cells - 1, codes))
    return np.column_stack(coded).astype(np.int64) if coded else np.zeros((cells.height, 0), dtype=np.int64)
