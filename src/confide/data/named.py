"""Small real data sets that come with the package, with their attribution.

>>> load("pbcseq").shape
(1945, 19)
>>> "icu" in names()
True

Larger sets, and those with unchecked terms, are read from a path (`find_file`, ``CONFIDE_DATA``) and never fetched.
Sources and terms stand in ``sets/README.md`` beside the files and in NOTICE.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files

import polars as pl

from confide.errors import InputError, nearest

_FILES = {
    "pbcseq": "pbcseq.csv.gz",
    "nafld1": "nafld1.csv.gz",
    "nafld2": "nafld2.csv.gz",
    "nafld3": "nafld3.csv.gz",
    "nih14_entry_counts": "nih14_entry_counts.csv",
    "icu_patient": "icu_patient.csv.gz",
    "icu_daily": "icu_daily.csv.gz",
}


def names() -> tuple[str, ...]:
    """Names that `load` and ``source = "named:NAME"`` know."""
    return tuple(sorted([*_FILES, *_JOINED]))


def load(name: str, *, as_text: bool = False) -> pl.DataFrame:
    """Read a set that comes with the package.

    Parameters
    ----------
    name : str
        ``pbcseq``: 1,945 visits of 312 liver patients; ``nafld1``, ``nafld2``, ``nafld3``: fatty-liver cohort (people,
        laboratory values, events), as shipped: in ``nafld2`` every chol value equals that day's hdl value and every
        dbp the sbp, see `without_duplicates`; ``icu_patient``, ``icu_daily``: 2,000 intensive-care patients and their
        days, ``icu``: the two joined; ``nafld_yearly``: laboratory values averaged per person and year, joined with
        ``nafld1``; ``ms_simulated_patients``, ``_cycles``, ``_visits``, ``_relapses``, ``_mri``: a SIMULATION of a
        registry of multiple sclerosis, see `confide.data.ms`; ``nih14_entry_counts``: number of images per patient in
        NIH ChestX-ray14.
    as_text : bool
        Leave every cell as text (what the study reader uses).

    Raises
    ------
    InputError
        Unknown name; the message names the nearest one.
    """
    if name not in names():
        close = nearest(name, names())
        raise InputError(
            f"there is no data set named {name!r}",
            expected="one of " + ", ".join(names()),
            remedy=f"did you mean {close!r}?" if close else "give the path of a file instead",
        )
    # A frame can be changed in place, so everybody gets one of their own.
    return (_cells(name) if as_text else _typed(name)).clone()


def _cells(name: str) -> pl.DataFrame:
    return _text(name) if name in _FILES else _JOINED[name]()


@cache
def _text(name: str) -> pl.DataFrame:
    raw = files("confide.data").joinpath("sets", _FILES[name]).read_bytes()
    return pl.read_csv(raw, infer_schema=False)


@cache
def _typed(name: str) -> pl.DataFrame:
    """Infer types from the text of a set that is public as a whole."""
    return pl.read_csv(_cells(name).write_csv().encode(), infer_schema_length=None)


def without_duplicates(laboratory: pl.DataFrame) -> pl.DataFrame:
    """Drop from ``nafld2`` the tests that repeat another one as shipped: chol (equal to hdl) and dbp (equal to sbp).

    The upstream table lists both names with the same value for the same person and day. By their size (means of 51
    mg/dl and 137 mmHg) the values are HDL cholesterol and systolic pressure, so those two names stay.
    """
    return laboratory.filter(~pl.col("test").is_in(["chol", "dbp"]))


def _icu() -> pl.DataFrame:
    """One row a day in intensive care, with the facts about the patient."""
    return _text("icu_daily").join(_text("icu_patient"), on="CombinedID", how="inner", maintain_order="left")


def _nafld_yearly() -> pl.DataFrame:
    """One row a person and year of follow-up, with the mean of each laboratory test in that year."""
    laboratory = without_duplicates(_typed("nafld2")).with_columns(pl.col("days").floordiv(365).alias("year"))
    tests = ["hdl", "sbp", "fib4", "smoke"]
    yearly = laboratory.group_by("id", "year").agg(
        *[pl.col("value").filter(pl.col("test") == test).mean().round(3).alias(test) for test in tests]
    )
    people = _typed("nafld1").select("id", "age", "male", "bmi", "case.id", "futime", "status")
    fatty = people.with_columns((pl.col("id") == pl.col("case.id")).fill_null(False).cast(pl.Int64).alias("nafld"))
    joined = yearly.join(fatty.drop("case.id"), on="id", how="inner").sort("id", "year")
    return joined.with_columns(pl.all().cast(pl.String))


@cache
def _simulated_ms() -> dict[str, pl.DataFrame]:
    """A simulation: nobody in it exists. See `confide.data.ms`."""
    from confide.data.ms import linked_tables, simulate_registry

    return linked_tables(simulate_registry(3_000, seed=0))


def _ms(table: str) -> Callable[[], pl.DataFrame]:
    return lambda: _simulated_ms()[table].with_columns(pl.all().cast(pl.String))


_JOINED: dict[str, Callable[[], pl.DataFrame]] = {
    "icu": cache(_icu),
    "nafld_yearly": cache(_nafld_yearly),
    **{f"ms_simulated_{table}": _ms(table) for table in ("patients", "cycles", "visits", "relapses", "mri")},
}


def declaration(name: str) -> str:
    """Return the ready-made ``[columns]`` of a named set as TOML text.

    Bounds are round clinical ranges written down from general medical knowledge, not read from the data; values outside
    are moved to the bound where the declaration says ``outside = "clip"``. Declared so far: ``pbcseq``, ``icu``,
    ``nafld_yearly``.

    Raises
    ------
    InputError
        There is no declaration for the name.
    """
    folder = files("confide.data").joinpath("declarations")
    path = folder.joinpath(f"{name}.toml")
    if not path.is_file():
        known = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
        raise InputError(f"there is no declaration for {name!r}", expected="one of " + ", ".join(known))
    return path.read_text(encoding="utf-8")
