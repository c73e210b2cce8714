"""From the cells of a table to numbers, by declared rules alone; whatever breaks a rule is refused with its row.

The same functions read training tables and, later, the tables that a released model is applied to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.data.spec import ColumnSpec
from confide.errors import InputError

F32 = npt.NDArray[np.float32]
# What people write for "nothing there". Anything else that is not a number is an error, never a silent gap.
MISSING = ("", "na", "n/a", "nan", "null", "none")


@dataclass(frozen=True)
class Origin:
    """Where a table's rows came from, for messages.

    Attributes
    ----------
    name : str
        File or set name.
    line_offset : int or None
        Number of file lines before row 1, or None where there are no lines.
    decimal : str
        How decimals are written.
    """

    name: str
    line_offset: int | None = None
    decimal: str = "."

    def at(self, column: str | None = None, rows: npt.NDArray[np.int64] | list[int] | None = None) -> str:
        """Say file, column and row; rows are counted from 1."""
        parts = [self.name]
        if column is not None:
            parts.append(f"column {column!r}")
        if rows is not None and len(rows):
            row = int(rows[0]) + 1
            parts.append(f"row {row}" + (f" (line {row + self.line_offset})" if self.line_offset is not None else ""))
        return ", ".join(parts)


@dataclass
class Counts:
    """How many cells were filled or clipped, by column. Depends on the data: internal."""

    filled: dict[str, int] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)


def more(rows: npt.NDArray[np.int64]) -> str:
    """Return "", or how many further rows have the same problem."""
    return f" (and {len(rows) - 1} more row{'s' if len(rows) > 2 else ''})" if len(rows) > 1 else ""


def text_of(series: pl.Series) -> pl.Series:
    """Return cells as text without surrounding blanks, null where there is nothing."""
    text = series.cast(pl.String, strict=False).str.strip_chars()
    return text.set(text.str.to_lowercase().is_in(list(MISSING)), None)


def _rows(mask: pl.Series) -> npt.NDArray[np.int64]:
    return np.flatnonzero(mask.fill_null(False).to_numpy()).astype(np.int64)


def _refuse_missing(missing: pl.Series, name: str, origin: Origin) -> None:
    rows = _rows(missing)
    if len(rows):
        raise InputError(
            f"column {name!r} has a missing value{more(rows)}",
            where=origin.at(name, rows),
            expected='a value in every row: the declared rule is missing = "refuse"',
            remedy='fill it in at the source, or declare missing = "indicator" for this column',
        )


def numbers(series: pl.Series, name: str, column: ColumnSpec, origin: Origin) -> pl.Series:
    """Return a real, integer or date column as Float64, null where missing; refuse what is no such number."""
    kind = {"real": "a number", "integer": "a whole number", "date": "a date like 2001-12-31"}[column.type or "real"]
    if column.type == "date":
        if series.dtype.is_temporal():
            dates = series.cast(pl.Date)
            missing = dates.is_null()
        else:
            text = text_of(series)
            missing = text.is_null()
            dates = text.str.to_date("%Y-%m-%d", strict=False, exact=True)
        values = dates.cast(pl.Int32).cast(pl.Float64)
    elif series.dtype.is_numeric() or series.dtype == pl.Boolean:
        values = series.cast(pl.Float64).fill_nan(None)
        missing = values.is_null()
    else:
        text = text_of(series)
        missing = text.is_null()
        plain = text.str.replace(",", ".", literal=True) if origin.decimal == "," else text
        values = plain.cast(pl.Float64, strict=False)
    rows = _rows(values.is_null() & ~missing)
    if len(rows) == 0 and column.type == "integer":
        rows = _rows((values != values.round()) & values.is_not_null())
    if len(rows):
        cell = str(series.cast(pl.String, strict=False)[int(rows[0])])[:40]
        raise InputError(
            f"column {name!r} holds {cell!r}, which is not {kind}{more(rows)}",
            where=origin.at(name, rows),
            expected=f"{kind} in every row that is not empty",
            remedy="correct the cell, or declare another type for the column",
        )
    return values


def _bounded(values: pl.Series, name: str, column: ColumnSpec, origin: Origin, counts: Counts) -> pl.Series:
    low, high = column.low_high
    rows = _rows((values < low) | (values > high))
    if len(rows) == 0:
        return values
    if column.outside == "clip":
        counts.clipped[name] = counts.clipped.get(name, 0) + len(rows)
        return values.clip(low, high)
    assert column.bounds is not None
    shown = f"{values[int(rows[0])]:g}" if column.type != "date" else "a date"
    raise InputError(
        f"column {name!r} holds {shown}, outside its declared bounds{more(rows)}",
        where=origin.at(name, rows),
        expected=f"values from {column.bounds[0]} to {column.bounds[1]}",
        remedy='correct the value, declare wider bounds, or declare outside = "clip" (clipped values are counted)',
    )


def _matcher(declared: tuple[Any, ...]) -> Callable[[pl.Series], pl.Series]:
    """Return a function from text cells to the position of the matching declared value (null: none matches)."""
    exact = {str(value): i for i, value in enumerate(declared)}
    by_number = {float(v): i for i, v in enumerate(declared) if isinstance(v, int | float) and not isinstance(v, bool)}
    by_truth = {str(v).lower(): i for i, v in enumerate(declared) if isinstance(v, bool)}

    def position(text: str) -> int | None:
        if text in exact:
            return exact[text]
        if text.lower() in by_truth:
            return by_truth[text.lower()]
        try:
            return by_number.get(float(text)) if by_number else None
        except ValueError:
            return None

    def match(cells: pl.Series) -> pl.Series:
        # Only distinct cells are looked up: there are few of them in a column with declared categories.
        table = {text: position(text) for text in cells.drop_nulls().unique().to_list()}
        return cells.replace_strict(table, return_dtype=pl.Int64) if table else cells.cast(pl.Int64, strict=False)

    return match


def positions(series: pl.Series, name: str, declared: tuple[Any, ...], origin: Origin, *, what: str) -> pl.Series:
    """Return each cell's position among the declared values, null where missing; refuse any other value."""
    raw = series.cast(pl.String, strict=False).str.strip_chars()
    known = {str(value).lower() for value in declared}
    # A declared category called "None" or "NA" is a category; otherwise such a cell is a missing value.
    gaps = [mark for mark in MISSING if mark not in known]
    text = raw.set(raw.str.to_lowercase().is_in(gaps), None)
    found = _matcher(declared)(text)
    rows = _rows(found.is_null() & text.is_not_null())
    if len(rows):
        raise InputError(
            f"column {name!r} holds {str(text[int(rows[0])])[:40]!r}, which is not a declared {what}{more(rows)}",
            where=origin.at(name, rows),
            expected="one of " + ", ".join(str(value) for value in declared),
            remedy=f"correct the value, or add it to the declared {'classes' if what == 'class' else 'categories'}",
        )
    return found


@dataclass
class Column:
    """One converted column: the cells as declared (for tables and synthesis) and as features."""

    cells: pl.Series
    features: F32 | None = None


def convert(series: pl.Series, name: str, column: ColumnSpec, origin: Origin, counts: Counts) -> Column:
    """Convert a feature or attribute column by its declaration.

    Returns
    -------
    Column
        `cells`: Float64, Int64, Date or String (declared spelling of the category), null where missing; `features`:
        float32 array of shape (rows, width), None for an attribute.
    """
    if column.type is None:
        return Column(text_of(series).rename(name))
    if column.type in ("categorical", "ordinal"):
        declared = column.categories or ()
        found = positions(series, name, declared, origin, what="category")
        spelled = found.replace_strict(dict(enumerate(map(str, declared))), return_dtype=pl.String)
        cells, missing = spelled.rename(name), found.is_null()
    else:
        values = _bounded(numbers(series, name, column, origin), name, column, origin, counts)
        target = {"real": pl.Float64, "integer": pl.Int64, "date": pl.Int32}[column.type]
        cells, missing = values.cast(target).rename(name), values.is_null()
        if column.type == "date":
            cells = cells.cast(pl.Date)
    if column.role != "feature":
        return Column(cells)
    if column.missing == "refuse":
        _refuse_missing(missing, name, origin)
    elif missing.sum():
        counts.filled[name] = counts.filled.get(name, 0) + int(missing.sum())
    gap = missing.to_numpy()
    if column.type == "categorical":
        declared = column.categories or ()
        fill = declared.index(column.fill) if column.fill is not None else -1
        place = found.fill_null(fill).to_numpy()
        block = (place[:, None] == np.arange(len(declared))[None, :]).astype(np.float32)
    else:
        if column.type == "ordinal":
            scaled = 2 * found.cast(pl.Float64).to_numpy() / (len(column.categories or ()) - 1) - 1
        else:
            scaled = column.scaled(values.to_numpy())
        block = np.where(gap, column.fill_scaled, scaled).astype(np.float32)[:, None]
    if column.missing == "indicator":
        block = np.concatenate([block, gap.astype(np.float32)[:, None]], axis=1)
    return Column(cells, block)


def convert_number(
    series: pl.Series, name: str, column: ColumnSpec, origin: Origin, counts: Counts
) -> tuple[pl.Series, F32]:
    """Return a label that is a number: its cells, and the numbers spread over -1 to 1 by the declared bounds."""
    values = _bounded(numbers(series, name, column, origin), name, column, origin, counts)
    rows = _rows(values.is_null())
    if len(rows):
        raise InputError(
            f"the label {name!r} is missing{more(rows)}",
            where=origin.at(name, rows),
            expected="a number in every row",
            remedy="leave out the rows without a label at the source; which ones may not depend on the result",
        )
    return values.rename(name), np.asarray(column.scaled(values.to_numpy()), dtype=np.float32)


def convert_label(
    series: pl.Series, name: str, column: ColumnSpec, origin: Origin
) -> tuple[pl.Series, npt.NDArray[np.int64]]:
    """Return the label's cells in their declared spelling, and as 0/1 (with `positive`) or positions in `classes`."""
    classes = column.classes or ()
    found = positions(series, name, classes, origin, what="class")
    rows = _rows(found.is_null())
    if len(rows):
        raise InputError(
            f"the label {name!r} is missing{more(rows)}",
            where=origin.at(name, rows),
            expected="a class in every row",
            remedy="leave out the rows without a label at the source; which ones may not depend on the result",
        )
    spelled = found.replace_strict(dict(enumerate(map(str, classes))), return_dtype=pl.String).rename(name)
    labels = found.to_numpy().astype(np.int64)
    if column.positive is not None:
        winning = np.array([value in column.positive for value in classes])
        labels = winning[labels].astype(np.int64)
    return spelled, labels
