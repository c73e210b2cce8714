"""Tables of any size, coded a part at a time: rows are dealt out by a hash of the patient's id, then parts are coded.

The sources (Parquet) are read in batches of rows in whatever order they have, and every row is written to the part of
its patient. A part holds whole patients, so that it is read, checked and coded by the same code as tables in memory;
only the numbers of rows in messages are those of the source again. Parts follow each other in the order that tables in
memory have, too (`confide.synthesis.coding.numbers_of`), so that both ways give the same exact answers.

Everything here is private data on disk: it stands in a folder of mode 0700 that is deleted when the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.data import find_file, linked_ids
from confide.data.convert import Origin
from confide.errors import InputError
from confide.synthesis.coding import (
    Bools,
    Coded,
    check_columns,
    numbers_of,
    read_coded,
    spec_of,
)
from confide.synthesis.domain import Ints
from confide.synthesis.methods import STREAMED
from confide.synthesis.sections import PatientsSection, TableSection, VisitsSection
from confide.synthesis.stream import StreamedPanel, write_part
from confide.synthesis.study import SynthesisStudy

# From this size of all sources together (public or not, it shows in nothing but time and memory) tables are streamed.
STREAM_BYTES = 64 << 20
BATCH_ROWS = 250_000
PART_ROWS = 250_000
PATIENT_BITS = 31  # of `numbers_of`
_ROW, _PART = "\x01row", "\x01part"


@dataclass(frozen=True)
class PartOrigin(Origin):
    """Where the rows of a part stand in their source."""

    rows: tuple[int, ...] | npt.NDArray[np.int64] = field(default=(), compare=False)

    def at(self, column: str | None = None, rows: npt.NDArray[np.int64] | list[int] | None = None) -> str:
        """Say file, column and row of the source; rows are counted from 1."""
        if rows is not None and len(rows):
            rows = [int(self.rows[int(rows[0])])]
        return super().at(column, rows)


@dataclass(frozen=True, repr=False, eq=False)
class StreamedCoded:
    """Private: what `Coded` is for tables in memory.

    Attributes
    ----------
    panel : StreamedPanel
        Of those who take part.
    ids_file : Path
        Parquet with their ids in the column "id", in the same order.
    level_of : uint8 array, shape (patients,), or None
        Number of each patient's consent level.
    events : mapping of event table to StreamedPanel
    aside : int
        Patients who take no part.
    clipped : mapping of "table.column" to int
    """

    panel: StreamedPanel
    ids_file: Path
    level_of: npt.NDArray[np.uint8] | None
    events: dict[str, StreamedPanel]
    aside: int
    clipped: dict[str, int]

    def level_numbers(self, levels: Sequence[str]) -> Ints | None:
        """Return the number of each patient's consent level (as declared); None where there are no levels."""
        return None if self.level_of is None else self.level_of.astype(np.int64)

    def subset(self, wanted: Bools) -> StreamedCoded:
        """Keep some patients with all their rows."""
        return StreamedCoded(
            self.panel.keep(wanted),
            self.ids_file,
            None if self.level_of is None else self.level_of[wanted],
            {name: panel.keep(wanted) for name, panel in self.events.items()},
            self.aside,
            self.clipped,
        )


def tables_of(study: SynthesisStudy) -> dict[str, PatientsSection | VisitsSection]:
    """Return the declared tables by name."""
    tables: dict[str, PatientsSection | VisitsSection] = {"patients": study.patients}
    if study.visits is not None:
        tables["visits"] = study.visits
    return tables | study.events


def streams(study: SynthesisStudy, *, base: Path) -> bool:
    """Whether the tables of a study are read a part at a time: as declared, else by method and size of the files.

    Raises
    ------
    InputError
        It is declared, and the method or the sources cannot.
    """
    wanted = study.patients.stream
    if wanted is False:
        return False
    if wanted and study.evaluation.metrics != "internal":
        raise InputError(
            "paid metrics need the tables in memory",
            where="[evaluation] metrics",
            remedy='leave [patients] stream out, or set metrics = "internal"',
        )
    able = study.method.name in STREAMED and study.evaluation.metrics == "internal"
    parquet = all(section.kind == "parquet" for section in tables_of(study).values())
    if wanted and study.method.name not in STREAMED:
        raise InputError(
            f"the method {study.method.name!r} needs the tables in memory",
            where="[patients] stream",
            expected="one of the methods " + ", ".join(sorted(STREAMED)),
            remedy="leave stream out, or choose another method",
        )
    if wanted and not parquet:
        name = next(name for name, section in tables_of(study).items() if section.kind != "parquet")
        raise InputError(
            "only Parquet files are read a part at a time",
            where=f"[{name if name in ('patients', 'visits') else f'events.{name}'}] source",
            expected="a Parquet file for every table",
            remedy="write the table as Parquet (polars: scan_csv(...).sink_parquet(...)), or leave stream out",
        )
    if wanted is None and able and parquet:
        files = {find_file(section.source, base=base) for section in tables_of(study).values()}
        return sum(file.stat().st_size for file in files) >= STREAM_BYTES
    return bool(wanted)


def read_streamed(
    study: SynthesisStudy,
    *,
    base: Path,
    folder: Path,
    set_aside: Callable[[Coded], Bools],
    part_rows: int = PART_ROWS,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[str], None] = lambda what: None,
) -> StreamedCoded:
    """Read, check and code the tables of a study a part at a time.

    Parameters
    ----------
    folder : Path
        Empty, private, with room for the tables; the caller deletes it.
    set_aside : function
        Marks the patients of a part who take no part in the synthesis.
    part_rows, batch_rows : int
        About how many rows of all tables are in memory at a time.
    progress : function, optional
        Told what is being done; internal, as it depends on the number of rows.

    Raises
    ------
    InputError
        As `read_coded`.
    """
    sources = {name: _Source(study, name, section, base) for name, section in tables_of(study).items()}
    rows = sum(source.rows for source in sources.values())
    parts = 1 << max(0, int(np.ceil(np.log2(max(1, rows) / part_rows))))
    for name, source in sources.items():
        progress(f"reading {name}")
        source.deal(folder, parts, batch_rows)
    levels = [] if study.privacy.budget == "equal" else list(study.privacy.budget.levels)
    sizes: list[int] = []
    level_of: list[npt.NDArray[np.uint8]] = []
    aside, clipped = 0, dict[str, int]()
    for part in range(parts):
        progress(f"checking part {part + 1} of {parts}")

        def reader(section: TableSection, table: str, part: int = part) -> tuple[pl.DataFrame, Origin]:
            return sources[table].read(folder, part)

        coded = read_coded(study, base=base, reader=reader)
        for source in sources.values():
            source.forget(folder, part)
        for name, number in coded.clipped.items():
            clipped[name] = clipped.get(name, 0) + number
        out = set_aside(coded)
        aside += int(np.count_nonzero(out))
        taking = coded.subset(~out)
        write_part(folder, "main", part, taking.panel)
        for number, panel in enumerate(taking.events.values()):
            write_part(folder, f"event-{number}", part, panel)
        pl.DataFrame({"id": pl.Series(taking.ids.tolist(), dtype=pl.String)}).write_parquet(_ids(folder, part))
        sizes.append(taking.panel.patients)
        if taking.levels is not None:
            level_of.append(np.array([levels.index(level) for level in taking.levels.tolist()], dtype=np.uint8))
    # in the order of parts, which is that of the panels
    pl.scan_parquet([_ids(folder, part) for part in range(parts)]).sink_parquet(folder / "ids.parquet")
    return StreamedCoded(
        StreamedPanel(study.domain(), folder, "main", tuple(sizes)),
        folder / "ids.parquet",
        np.concatenate(level_of) if level_of else None,
        {
            name: StreamedPanel(study.event_domain(name), folder, f"event-{number}", tuple(sizes))
            for number, name in enumerate(study.events)
        },
        aside,
        clipped,
    )


def _ids(folder: Path, part: int) -> Path:
    return folder / f"ids-{part:05d}.parquet"


class _Source:
    """One table on its way into parts."""

    def __init__(self, study: SynthesisStudy, name: str, section: PatientsSection | VisitsSection, base: Path) -> None:
        self.name, self.section, self.base = name, section, base
        self.spec = spec_of(section)
        self.file = find_file(section.source, base=base, sha256=section.sha256)
        self.origin = Origin(self.file.name)
        try:
            self.scan = pl.scan_parquet(self.file)
            schema = self.scan.collect_schema()
            self.rows = int(self.scan.select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(
                f"{self.file.name} is not a readable Parquet file",
                where=str(self.file),
                expected="a Parquet file",
                remedy=f"write it again ({str(error).splitlines()[0][:120]})",
            ) from error
        whole = pl.DataFrame(schema=schema)
        check_columns(study, section, name, whole, self.origin)
        kept = {section.contributor, section.entry, *section.columns}
        self.empty = whole.select([column for column in whole.columns if column in kept])
        if self.rows == 0 and not (isinstance(section, VisitsSection) and section.min_visits == 0):
            raise InputError(
                f"{self.file.name} has no rows",
                where=self.file.name,
                expected="at least one entry",
                remedy="check the source",
            )

    def _folder(self, folder: Path, part: int) -> Path:
        return folder / f"{self.name}-{part:05d}"

    def deal(self, folder: Path, parts: int, batch_rows: int) -> None:
        """Write every row to the part of its patient."""
        for part in range(parts):
            self._folder(folder, part).mkdir(mode=0o700)
        for start in range(0, self.rows, batch_rows):
            batch = self.scan.select(self.empty.columns).slice(start, batch_rows).collect()
            where = PartOrigin(self.origin.name, rows=np.arange(start, start + batch.height))
            ids = pl.Series(linked_ids(batch, self.spec, where, "patient id", base=self.base), dtype=pl.String)
            known = ids.unique()
            part_of = numbers_of(known.to_numpy().astype(np.str_)) * parts >> PATIENT_BITS
            place = ids.replace_strict(known, pl.Series(part_of), return_dtype=pl.Int64)
            batch = batch.with_columns(pl.Series(_ROW, where.rows), place.alias(_PART))
            for (part,), rows in batch.partition_by(_PART, as_dict=True, include_key=False).items():
                rows.write_parquet(self._folder(folder, int(str(part))) / f"{start:012d}.parquet")

    def read(self, folder: Path, part: int) -> tuple[pl.DataFrame, Origin]:
        """Return the rows of one part, and where they stood."""
        files = sorted(self._folder(folder, part).iterdir())
        if not files:
            return self.empty, self.origin
        rows = pl.concat(_read(files))
        return rows.drop(_ROW), PartOrigin(self.origin.name, rows=rows[_ROW].to_numpy())

    def forget(self, folder: Path, part: int) -> None:
        """Delete the raw rows of a part that was coded."""
        for file in self._folder(folder, part).iterdir():
            file.unlink()


def _read(files: list[Path]) -> Iterator[pl.DataFrame]:
    for file in files:
        yield pl.read_parquet(file)
