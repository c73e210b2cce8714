"""What is done to a table before its cells are checked: one row each, codes rolled up, dates counted from an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.data import find_file
from confide.data.convert import Origin, more, numbers, text_of
from confide.data.readers import read_csv_text
from confide.errors import InputError
from confide.synthesis.columns import DAYS, SynthesisColumn
from confide.synthesis.domain import Ints

Names = npt.NDArray[np.str_]


def one_row_each(frame: pl.DataFrame, ids: Names, columns: Sequence[str], origin: Origin) -> Ints:
    """Return the first row of every patient; refuse a patient whose rows differ in a declared column.

    Raises
    ------
    InputError
        With the first two rows that differ.
    """
    _, first, of_row = np.unique(ids, return_index=True, return_inverse=True)
    for name in columns:
        text = text_of(frame[name]).fill_null("").to_numpy().astype(np.str_)
        differs = np.flatnonzero(text != text[first][of_row.reshape(-1)])
        if len(differs):
            raise InputError(
                f"the rows of a patient differ in {name!r}{more(differs)}",
                where=origin.at(name, differs),
                expected="the same value on all rows of a patient: repeated = true says so",
                remedy="declare the column under [visits.columns], or correct the row",
            )
    return np.sort(first).astype(np.int64)


def rolled_up(frame: pl.DataFrame, columns: Mapping[str, SynthesisColumn], origin: Origin, base: Path) -> pl.DataFrame:
    """Replace codes of a hierarchy by the declared category they count as.

    Raises
    ------
    InputError
        A code without an ancestor among the categories, where no `other` is declared.
    """
    for name, column in columns.items():
        if (column.roll_up is None and column.other is None) or name not in frame.columns:
            continue
        parents: dict[str, str] | None = {}
        if column.roll_up is not None:
            parents = None if column.roll_up == "prefix" else _parents(column.roll_up, base)
        text = text_of(frame[name])
        found = {code: column.place(code, parents) for code in text.drop_nulls().unique().to_list()}
        lost = [code for code, place in found.items() if place is None]
        if lost:
            rows = np.flatnonzero(text.is_in(lost).fill_null(False).to_numpy()).astype(np.int64)
            raise InputError(
                f"column {name!r} holds the code {str(text[int(rows[0])])[:40]!r}, which lies under no declared "
                f"category{more(rows)}",
                where=origin.at(name, rows),
                expected="a code among the categories, or one that rolls up to one of them",
                remedy='add the category, or declare other = "..." for all remaining codes',
            )
        mapped = text.replace_strict(found, return_dtype=pl.String) if found else text
        frame = frame.with_columns(mapped.rename(name))
    return frame


def _parents(file: str, base: Path) -> dict[str, str]:
    table = read_csv_text(find_file(file, base=base))
    if not {"code", "parent"} <= set(table.columns):
        raise InputError(
            "the file of a hierarchy needs the columns code and parent", where=file, expected="code,parent"
        )
    pairs = zip(table["code"].to_list(), table["parent"].to_list(), strict=True)
    return {code.strip(): parent.strip() for code, parent in pairs if code and parent}


def time_since(
    frame: pl.DataFrame,
    columns: Mapping[str, SynthesisColumn],
    ids: Names,
    index: tuple[Names, pl.DataFrame],
    origin: Origin,
) -> pl.DataFrame:
    """Replace dates by the time since the patient's index date; no calendar date remains.

    Raises
    ------
    InputError
        A cell that is no date, or a patient without the index date.
    """
    known, patients = index
    for name, column in columns.items():
        if column.since is None or name not in frame.columns:
            continue
        day = _days(frame[name], name, origin)
        if column.since == "first":
            start = _first(day, ids)
        else:
            of_patient = _days(patients[column.since], column.since, origin)
            at = np.clip(np.searchsorted(known, ids), 0, max(len(known) - 1, 0))
            found = known[at] == ids if len(known) else np.zeros(len(ids), dtype=bool)
            start = np.where(found, of_patient[at] if len(known) else np.nan, 0.0)
            gone = np.flatnonzero(np.isnan(start) & ~np.isnan(day)).astype(np.int64)
            if len(gone):
                raise InputError(
                    f"a patient with a value of {name!r} has no {column.since!r} to count from{more(gone)}",
                    where=origin.at(name, gone),
                    expected=f"an index date {column.since!r} for every patient with such a row",
                    remedy='fill it in at the source, or count from since = "first"',
                )
        value = (day - start) / DAYS[column.unit]
        if column.type == "integer":
            value = np.floor(value + 1e-9)
        frame = frame.with_columns(pl.Series(name, value, dtype=pl.Float64).fill_nan(None))
    return frame


def _days(series: pl.Series, name: str, origin: Origin) -> npt.NDArray[np.float64]:
    as_date = SynthesisColumn(type="date", bounds=("1000-01-01", "3000-01-01"))
    return numbers(series, name, as_date, origin).fill_null(float("nan")).to_numpy().astype(np.float64)


def _first(day: npt.NDArray[np.float64], ids: Names) -> npt.NDArray[np.float64]:
    people, of_row = np.unique(ids, return_inverse=True)
    first = np.full(len(people), np.inf)
    np.minimum.at(first, of_row.reshape(-1), np.where(np.isnan(day), np.inf, day))
    return np.asarray(first[of_row.reshape(-1)], dtype=np.float64)


def check_grid(cells: pl.DataFrame, columns: Mapping[str, SynthesisColumn], origin: Origin) -> None:
    """Refuse a value beside the declared grid.

    Raises
    ------
    InputError
        With its row.
    """
    for name, column in columns.items():
        if column.step is None or column.type not in ("real", "integer") or name not in cells.columns:
            continue
        place = (cells[name].cast(pl.Float64).fill_null(column.low_high[0]).to_numpy() - column.low_high[0]) / (
            column.step
        )
        off = np.flatnonzero(np.abs(place - np.round(place)) > 1e-6).astype(np.int64)
        if len(off):
            raise InputError(
                f"column {name!r} holds {cells[name][int(off[0])]:g}, which is not on its grid{more(off)}",
                where=origin.at(name, off),
                expected=f"{column.low_high[0]:g} and steps of {column.step:g}",
                remedy="correct the value, or leave step out",
            )
