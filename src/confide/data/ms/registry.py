"""The tables of a registry of multiple sclerosis as CSV files: real exports and simulations alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from confide._files import write_atomic
from confide.data.readers import read_csv_text
from confide.errors import InputError, nearest

DMTS = (
    "dimethyl fumarate",
    "fingolimod",
    "glatiramer acetate",
    "interferon beta",
    "natalizumab",
    "teriflunomide",
)
_COLUMNS: dict[str, dict[str, type[pl.DataType]]] = {
    "patients": {
        "patient_id": pl.String,
        "sex": pl.String,
        "birth_year": pl.Int64,
        "onset_date": pl.Date,
        "diagnosis_date": pl.Date,
    },
    "visits": {"patient_id": pl.String, "date": pl.Date, "edss": pl.Float64},
    "relapses": {"patient_id": pl.String, "date": pl.Date},
    "treatments": {
        "patient_id": pl.String,
        "dmt": pl.String,
        "start": pl.Date,
        "stop": pl.Date,
        "line": pl.Int64,
    },
    "mri": {"patient_id": pl.String, "date": pl.Date, "new_t2": pl.String, "gd": pl.String},
}
_MAY_BE_MISSING = {("visits", "edss"), ("treatments", "stop")}


@dataclass(frozen=True, repr=False, eq=False)
class Registry:
    """Five linked tables.

    Attributes
    ----------
    patients : DataFrame
        patient_id, sex ("f", "m"), birth_year, onset_date, diagnosis_date.
    visits : DataFrame
        patient_id, date, edss (0 to 10 in half steps; null where it was not taken).
    relapses : DataFrame
        patient_id, date of onset.
    treatments : DataFrame
        patient_id, dmt (one of `DMTS`), start, stop (null: still on it), line (1, 2, ...).
    mri : DataFrame
        patient_id, date, new_t2 ("0", "1-2", "3+"), gd ("0", "1+").
    simulated : bool
        Whether the patients are made up.
    """

    patients: pl.DataFrame
    visits: pl.DataFrame
    relapses: pl.DataFrame
    treatments: pl.DataFrame
    mri: pl.DataFrame
    simulated: bool = False

    def tables(self) -> dict[str, pl.DataFrame]:
        """Return the tables by name."""
        return {name: getattr(self, name) for name in _COLUMNS}

    def __repr__(self) -> str:
        return "Registry(simulation)" if self.simulated else "Registry(private)"


def read_registry(folder: str | Path) -> Registry:
    """Read an export: one CSV file a table (``patients.csv``, ``visits.csv``, ...), with the columns of `Registry`.

    Further columns are ignored; dates are written 2001-12-31.

    Raises
    ------
    InputError
        A table or column is missing, a cell cannot be read, somebody is not among the patients, an EDSS is not on its
        scale.
    """
    folder = Path(folder)
    found = {}
    for name, columns in _COLUMNS.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            raise InputError(f"there is no {name}.csv", where=str(folder), expected=", ".join(_COLUMNS))
        frame = read_csv_text(path)
        for column in columns:
            if column not in frame.columns:
                close = nearest(column, frame.columns)
                raise InputError(
                    f"there is no column {column!r}",
                    where=str(path),
                    expected=", ".join(columns),
                    remedy=f"did you mean {close!r}?" if close else None,
                )
        found[name] = pl.DataFrame(
            [_typed(frame[column], kind, f"{path}, column {column!r}", (name, column) in _MAY_BE_MISSING)
             for column, kind in columns.items()]
        )  # fmt: skip
    registry = Registry(found["patients"], found["visits"], found["relapses"], found["treatments"], found["mri"])
    _check(registry, folder)
    return registry


def _typed(series: pl.Series, kind: type[pl.DataType], where: str, gaps: bool) -> pl.Series:
    text = series.str.strip_chars().replace("", None)
    values = text.str.to_date("%Y-%m-%d", strict=False) if kind is pl.Date else text.cast(kind, strict=False)
    bad = (values.is_null() & text.is_not_null()) | (values.is_null() & (not gaps))
    if bad.any():
        row = int(bad.arg_max() or 0)
        wanted = {pl.Date: "a date like 2001-12-31", pl.Int64: "a whole number", pl.Float64: "a number"}.get(
            kind, "text"
        )
        raise InputError(
            f"{text[row]!r} is not {wanted}" if text[row] is not None else "a cell is empty",
            where=f"{where}, row {row + 1}",
            expected=wanted,
        )
    return values


def _check(registry: Registry, folder: Path) -> None:
    known = set(registry.patients["patient_id"].to_list())
    if len(known) < registry.patients.height:
        raise InputError("a patient stands twice", where=str(folder / "patients.csv"), expected="one row a patient")
    for name in ("visits", "relapses", "treatments", "mri"):
        strange = registry.tables()[name].filter(~pl.col("patient_id").is_in(list(known)))
        if strange.height:
            raise InputError(
                f"{strange.height} rows belong to nobody in patients.csv", where=str(folder / f"{name}.csv")
            )
    edss = registry.visits["edss"].drop_nulls()
    if ((edss < 0) | (edss > 10) | (edss * 2 % 1 != 0)).any():
        raise InputError(
            "an EDSS is not on its scale", where=str(folder / "visits.csv"), expected="0 to 10 in half steps"
        )
    unknown = sorted(set(registry.treatments["dmt"].to_list()) - set(DMTS))
    if unknown:
        raise InputError(
            f"unknown therapy {unknown[0]!r}", where=str(folder / "treatments.csv"), expected=", ".join(DMTS)
        )


def write_registry(registry: Registry, folder: str | Path) -> None:
    """Write the tables as CSV files that `read_registry` reads back."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in registry.tables().items():
        write_atomic(folder / f"{name}.csv", frame.write_csv())
