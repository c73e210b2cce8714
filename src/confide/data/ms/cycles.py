"""Therapy cycles: one row for every time on a therapy, with what was known at its start and what happened on it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import polars as pl

from confide.data.ms.progression import confirmed_progression
from confide.data.ms.registry import Registry

_YEAR = 365.25
SHORTEST = 90  # days on a therapy before it can have worked
WINDOW = 24 * _YEAR / 12  # activity is looked for in the first two years of a cycle
_EPOCH = datetime.date(1970, 1, 1)


def _by_patient(frame: pl.DataFrame, columns: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {}
    for name, *rest in frame.select("patient_id", *columns).iter_rows():
        found.setdefault(name, []).append(tuple(rest))
    return found


def _day(value: datetime.date) -> float:
    return float((value - _EPOCH).days)


def therapy_cycles(registry: Registry, *, end: datetime.date | None = None) -> pl.DataFrame:
    """Return one row for every therapy cycle of at least 90 days with an EDSS in the year before its start.

    Parameters
    ----------
    registry : Registry
    end : date, optional
        Where observation ends for therapies that go on; default the patient's own last visit.

    Returns
    -------
    DataFrame
        patient_id, line, start (date), start_year, months since the first cycle (`since_first`), dmt, age, duration
        (years since onset), edss, relapses_before (in the 12 months before; 3 means 3 or more), months (until the
        therapy or its observation ended, at most 24), n_relapses, cdp (confirmed progression, 12 weeks), active
        (1 if a relapse or a confirmed progression fell into the first two years of the cycle).

    Notes
    -----
    Only visits of the cycle count for progression, so that nothing after a switch leaks into it.
    """
    visits = _by_patient(registry.visits.drop_nulls("edss").sort("patient_id", "date"), ["date", "edss"])
    relapses = _by_patient(registry.relapses.sort("patient_id", "date"), ["date"])
    treatments = _by_patient(registry.treatments.sort("patient_id", "line"), ["dmt", "start", "stop", "line"])
    rows: list[Mapping[str, Any]] = []
    for patient in registry.patients.iter_rows(named=True):
        name = patient["patient_id"]
        seen = [(_day(d), e) for d, e in visits.get(name, [])]
        attacks = [_day(d) for (d,) in relapses.get(name, [])]
        first: float | None = None
        for dmt, start, stop, line in treatments.get(name, []):
            row = _cycle(patient, dmt, start, stop, line, seen, attacks, end)
            if row is None:
                continue
            first = row["start_day"] if first is None else first
            rows.append(row | {"since_first": int((row["start_day"] - first) / _YEAR * 12)})
    return pl.DataFrame(rows).drop("start_day")


def _cycle(
    patient: Mapping[str, Any],
    dmt: str,
    start: datetime.date,
    stop: datetime.date | None,
    line: int,
    visits: list[tuple[float, float]],
    attacks: list[float],
    end: datetime.date | None,
) -> dict[str, Any] | None:
    a = _day(start)
    last = _day(end) if end is not None else max((d for d, _ in visits), default=a)
    b = min(_day(stop) if stop is not None else last, a + WINDOW)
    before = [e for d, e in visits if a - _YEAR <= d <= a]
    if b - a < SHORTEST or not before:
        return None
    inside = [(d, e) for d, e in visits if a <= d <= b]
    found = confirmed_progression([d for d, _ in inside], [e for _, e in inside], attacks)
    on_therapy = sum(a <= r < b for r in attacks)
    return {
        "patient_id": patient["patient_id"],
        "line": line,
        "start": start,
        "start_day": a,
        "start_year": start.year,
        "dmt": dmt,
        "age": start.year - patient["birth_year"],
        "duration": round((a - _day(patient["onset_date"])) / _YEAR, 2),
        "edss": before[-1],
        "relapses_before": min(sum(a - _YEAR <= r < a for r in attacks), 3),
        "months": int((b - a) / _YEAR * 12),
        "n_relapses": on_therapy,
        "cdp": int(found is not None),
        "active": int(on_therapy > 0 or found is not None),
    }


def first_cycle_patients(registry: Registry, cycles: pl.DataFrame) -> pl.DataFrame:
    """Return one row a patient with a cycle: sex, age and disease duration at the first one, year of its start."""
    first = cycles.group_by("patient_id", maintain_order=True).first()
    joined = first.join(registry.patients.select("patient_id", "sex"), on="patient_id", how="left")
    return joined.select(
        "patient_id",
        "sex",
        pl.col("age").alias("age_first"),
        pl.col("duration").alias("duration_first"),
        pl.col("start_year").alias("first_year"),
        pl.col("start").alias("index_date"),
    )


def linked_tables(registry: Registry) -> dict[str, pl.DataFrame]:
    """Return the tables of the study: patients with a therapy cycle, cycles, and what happened from the first one on.

    Returns
    -------
    dict
        ``patients`` (with the index date: start of the first cycle), ``cycles``, ``visits`` (EDSS), ``relapses`` and
        ``mri`` of these patients from their index date on.
    """
    cycles = therapy_cycles(registry)
    patients = first_cycle_patients(registry, cycles)
    found = {"patients": patients, "cycles": cycles.drop("age", "duration", "start", "start_year")}
    index = patients.select("patient_id", "index_date")
    for name in ("visits", "relapses", "mri"):
        frame = registry.tables()[name].join(index, on="patient_id", how="inner", maintain_order="left")
        found[name] = frame.filter(pl.col("date") >= pl.col("index_date")).drop("index_date")
    return found
