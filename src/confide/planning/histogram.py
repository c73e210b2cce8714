"""Who brings how many entries: the declared, paid or previewed histogram of entry counts.

>>> counts = EntryCounts.of({1: 17503, 2: 4113})
>>> counts.total_contributors, counts.total_entries
(21616, 25729)

Where the numbers come from decides what may be shown of them: ``public`` was declared to be public knowledge, ``paid``
was released with noise and charged, ``preview`` was counted on private data and is internal, ``none`` was not given.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import InputError, nearest

__all__ = ["HISTOGRAMS", "STAMP", "EntryCounts"]

HISTOGRAMS = ("public", "paid", "preview", "none")
STAMP = "parameters chosen after looking at private counts"
_COLUMNS = ("entries", "contributors", "budget")


def tidy(value: float) -> int | float:
    """Return a whole number as int, so that 17503.0 and 17503 are written and hashed alike."""
    return int(value) if float(value).is_integer() else float(value)


@dataclass(frozen=True)
class EntryCounts:
    """How many contributors have how many entries.

    Attributes
    ----------
    cells : tuple of (entries, budget or None, contributors)
        Sorted; budget None where the table does not say who asked for which level.
    """

    cells: tuple[tuple[int, float | None, int | float], ...]

    @classmethod
    def of(cls, source: EntryCounts | Mapping[Any, Any] | str | Path, *, kind: str = "public") -> EntryCounts:
        """Read counts from ``{entries: contributors}``, ``{(entries, budget): contributors}`` or a CSV file.

        Parameters
        ----------
        source : mapping, str, Path or EntryCounts
            A CSV has the columns ``entries,contributors`` and, with consent levels, ``budget``.
        kind : str
            ``"paid"`` allows fractional (noisy) numbers of contributors in a file; a mapping may always hold them
            (counts times the share of contributors that are not held out).

        Raises
        ------
        InputError
            Missing file or column, duplicated rows, entries below 1, negative or fractional counts, no contributors.
        """
        if isinstance(source, EntryCounts):
            return source
        if isinstance(source, str | Path):
            return cls._from_csv(Path(source), kind)
        if not isinstance(source, Mapping):
            raise InputError(
                f"entry_counts is a {type(source).__name__}",
                where="entry_counts",
                expected="{entries: contributors}, {(entries, budget): contributors}, or the path of a CSV file "
                "with the columns entries,contributors",
            )
        rows = []
        for key, number in source.items():
            entries, budget = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
            rows.append((entries, budget, number, f"entry_counts[{key!r}]"))
        return cls._checked(rows, "entry_counts", kind)

    @classmethod
    def _from_csv(cls, path: Path, kind: str) -> EntryCounts:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                lines = list(csv.reader(file))
        except OSError as error:
            raise InputError(
                f"cannot read the entry counts: {error.strerror or error}",
                where=str(path),
                expected="a CSV file with the columns entries,contributors",
            ) from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError("the entry counts are not a CSV file in UTF-8", where=str(path)) from error
        lines_numbered = [
            (n, [cell.strip() for cell in line]) for n, line in enumerate(lines, 1) if any(map(str.strip, line))
        ]
        header = [name.lower() for name in lines_numbered[0][1]] if lines_numbered else []
        for name in header:
            if name not in _COLUMNS:
                close = nearest(name, _COLUMNS)
                raise InputError(
                    f"unknown column {name!r}",
                    where=f"{path}, line {lines_numbered[0][0]}",
                    expected="the columns entries,contributors (and budget, where contributors chose a level)",
                    remedy=f"did you mean {close!r}?" if close else "name the columns in the first line of the file",
                )
        for name in _COLUMNS[:2]:
            if header.count(name) != 1:
                raise InputError(
                    f"column {name!r} is {'missing' if name not in header else 'there twice'}",
                    where=str(path),
                    expected="the columns entries,contributors in the first line",
                )
        rows = []
        for number, line in lines_numbered[1:]:
            where = f"{path}, line {number}"
            if len(line) != len(header):
                raise InputError(
                    f"{len(line)} cells in a row", where=where, expected=f"{len(header)} cells, as in the first line"
                )
            row = dict(zip(header, line, strict=True))
            rows.append((row["entries"], row.get("budget"), row["contributors"], where))
        return cls._checked(rows, str(path), kind)

    @classmethod
    def _checked(cls, rows: list[tuple[Any, Any, Any, str]], where: str, kind: str) -> EntryCounts:
        cells: dict[tuple[int, float | None], int | float] = {}
        for raw_entries, raw_budget, raw_number, place in rows:
            entries = _number(raw_entries, place, "entries")
            if not entries.is_integer() or entries < 1:
                raise InputError(
                    f"a contributor with {raw_entries} entries",
                    where=place,
                    expected="a whole number of entries, 1 or more",
                    remedy="leave out contributors without entries: nothing of theirs is used",
                )
            number = _number(raw_number, place, "contributors")
            # a fraction is no count in a file of counts; from Python it may be a share of one (those not held out)
            whole = kind != "paid" and isinstance(raw_number, str)
            if number < 0 or (whole and not number.is_integer()):
                raise InputError(
                    f"{raw_number} contributors",
                    where=place,
                    expected="a whole number, 0 or more" if whole else "a number, 0 or more",
                    remedy="set negative noisy counts to 0 (post-processing costs nothing)" if kind == "paid" else None,
                )
            budget = None if raw_budget is None else _number(raw_budget, place, "budget")
            if budget is not None and budget <= 0:
                raise InputError(f"a budget of {raw_budget}", where=place, expected="a positive epsilon")
            key = (int(entries), budget)
            if key in cells:
                level = f" and budget {budget:g}" if budget is not None else ""
                raise InputError(
                    f"{key[0]} entries{level} are counted twice",
                    where=place,
                    expected="one row for each number of entries",
                    remedy="add the rows up: which of them is right cannot be guessed",
                )
            cells[key] = tidy(number)
        if sum(cells.values()) <= 0:
            raise InputError(
                "no contributors are counted", where=where, expected="at least one contributor with one entry"
            )
        if len({budget is None for _, budget in cells}) > 1:
            raise InputError(
                "some counts name a budget and some do not", where=where, expected="a budget in every row, or in none"
            )
        return cls(
            tuple((k, b, n) for (k, b), n in sorted(cells.items(), key=lambda item: (item[0][0], item[0][1] or 0.0)))
        )

    @property
    def total_contributors(self) -> int | float:
        """Number of contributors."""
        return tidy(sum(n for _, _, n in self.cells))

    @property
    def total_entries(self) -> int | float:
        """Number of entries, before any bound on a contributor's entries."""
        return tidy(sum(k * n for k, _, n in self.cells))

    @property
    def largest(self) -> int:
        """Most entries of one contributor."""
        return max(k for k, _, n in self.cells if n > 0)

    @property
    def distinct(self) -> tuple[int, ...]:
        """The numbers of entries that occur in the table."""
        return tuple(sorted({k for k, _, _ in self.cells}))

    @property
    def levels(self) -> tuple[float, ...]:
        """The budget levels that occur in the table; empty where it names none."""
        return tuple(sorted({b for _, b, _ in self.cells if b is not None}))

    def percentile(self, share: float) -> int:
        """Smallest k such that at least `share` of the contributors have k entries or fewer (0.5: the median)."""
        below, total = 0.0, float(self.total_contributors)
        for k in self.distinct:
            below += sum(n for kk, _, n in self.cells if kk == k)
            if below >= share * total * (1 - 1e-12):
                return k
        return self.largest

    def to_list(self) -> list[list[int | float | None]]:
        """Return the cells as lists for JSON."""
        return [list(cell) for cell in self.cells]


def _number(value: Any, where: str, name: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise InputError(f"{name} is {value!r}", where=where, expected="a number")
    return number
