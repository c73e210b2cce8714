"""A SIMULATION of a registry of relapsing multiple sclerosis with known coefficients. Nobody in it exists.

Relapses follow a Poisson process whose yearly rate is log-linear in age, the relapses of the year before diagnosis and
the therapy, times a gamma frailty of the patient (so that counts are over-dispersed: negative binomial). Progression
is a yearly hazard, log-linear in age, sex and EDSS. EDSS moves up by progression, for 60 days by relapses (one in six
leaves half a point), and is read with an error of half a point. Rates lie where published registries put them: 0.2 to
0.4 relapses a year, EDSS around 2, visits every 90 days, therapies of about three years.
"""

from __future__ import annotations

import datetime
from bisect import bisect_right

import numpy as np
import polars as pl

from confide.data.ms.registry import DMTS, Registry

COEFFICIENTS = {
    "relapse": {
        "intercept": -1.25,  # log of relapses a year, untreated man or woman of 40 without earlier relapses
        "age, per 10 years above 40": -0.30,
        "relapses in the year before diagnosis": 0.35,
        "dimethyl fumarate": -0.45,
        "fingolimod": -0.70,
        "glatiramer acetate": -0.25,
        "interferon beta": -0.25,
        "natalizumab": -0.95,
        "teriflunomide": -0.25,
        "variance of the frailty": 0.5,
    },
    "progression": {
        "intercept": -2.8,  # log of the yearly hazard, woman of 40 with EDSS 2
        "age, per 10 years above 40": 0.50,
        "man": 0.40,
        "EDSS, per point above 2": 0.30,
    },
}
_END = datetime.date(2022, 12, 31)
_EPOCH = datetime.date(1970, 1, 1)
_YEAR = 365.25


def _below(shares: list[float]) -> list[float]:
    """Return the edges that a uniform number is looked up in; Generator.choice makes them anew for every number."""
    edges = np.cumsum(shares)
    return list((edges / edges[-1]).tolist())


_FIRST_EDSS = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
_FIRST_EDSS_BELOW = _below([0.1, 0.2, 0.25, 0.2, 0.1, 0.1, 0.05])
_RATER = (-0.5, 0.0, 0.5)
_RATER_BELOW = _below([0.06, 0.88, 0.06])


def simulate_registry(patients: int = 3_000, *, seed: int = 0) -> Registry:
    """Simulate a registry.

    Parameters
    ----------
    patients : int
    seed : int
        Of the simulation; nobody's privacy depends on it.

    Returns
    -------
    Registry
        With `simulated` true.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, list[tuple[object, ...]]] = {n: [] for n in ("patients", "visits", "relapses", "treatments", "mri")}
    for number in range(patients):
        _patient(f"sim{number:05d}", rng, rows)
    names = {
        "patients": ["patient_id", "sex", "birth_year", "onset_date", "diagnosis_date"],
        "visits": ["patient_id", "date", "edss"],
        "relapses": ["patient_id", "date"],
        "treatments": ["patient_id", "dmt", "start", "stop", "line"],
        "mri": ["patient_id", "date", "new_t2", "gd"],
    }
    frames = {n: pl.DataFrame(rows[n], schema=names[n], orient="row") for n in names}
    kinds = {"date": pl.Date, "start": pl.Date, "stop": pl.Date, "edss": pl.Float64, "line": pl.Int64}
    frames = {
        n: f.with_columns(pl.col(c).cast(k) for c, k in kinds.items() if c in f.columns) for n, f in frames.items()
    }
    return Registry(
        frames["patients"],
        frames["visits"],
        frames["relapses"],
        frames["treatments"],
        frames["mri"],
        simulated=True,
    )


def _date(day: float) -> datetime.date:
    return _EPOCH + datetime.timedelta(days=int(day))


def _patient(name: str, rng: np.random.Generator, rows: dict[str, list[tuple[object, ...]]]) -> None:
    end = float((_END - _EPOCH).days)
    man = bool(rng.random() < 0.28)
    diagnosed = float((datetime.date(2004, 1, 1) - _EPOCH).days) + rng.random() * 17 * _YEAR
    onset = diagnosed - rng.gamma(1.2, 1.2 * _YEAR)
    age = float(np.clip(rng.normal(36, 9), 18, 65))
    birth_year = _date(diagnosed).year - int(age)
    before = int(min(rng.poisson(1.1), 4))
    variance = COEFFICIENTS["relapse"]["variance of the frailty"]
    frailty = float(rng.gamma(1 / variance, variance))
    therapies = _therapies(diagnosed, end, rng)
    leaves = min(end, diagnosed + rng.exponential(9 * _YEAR) + _YEAR)
    therapies = [(dmt, a, b if b < leaves else leaves) for dmt, a, b in therapies if a < leaves]
    relapses = [diagnosed - rng.random() * _YEAR for _ in range(before)]
    relapses += _relapses(diagnosed, leaves, age, before, frailty, therapies, rng)
    visits, mri = _course(diagnosed, leaves, age, man, relapses, rng)
    rows["patients"].append((name, "m" if man else "f", birth_year, _date(onset), _date(diagnosed)))
    rows["relapses"] += [(name, _date(day)) for day in sorted(relapses)]
    rows["treatments"] += [
        (name, dmt, _date(a), _date(b) if b < leaves else None, line) for line, (dmt, a, b) in enumerate(therapies, 1)
    ]
    rows["visits"] += [(name, _date(day), edss) for day, edss in visits]
    rows["mri"] += [(name, _date(day), t2, gd) for day, t2, gd in mri]


def _therapies(diagnosed: float, end: float, rng: np.random.Generator) -> list[tuple[str, float, float]]:
    found: list[tuple[str, float, float]] = []
    day, line = diagnosed + rng.exponential(0.3 * _YEAR), 1
    share = {1: [0.25, 0.05, 0.25, 0.25, 0.05, 0.15], 2: [0.2, 0.35, 0.05, 0.05, 0.25, 0.1]}
    while day < end and line <= 4:
        dmt = str(rng.choice(DMTS, p=share[min(line, 2)]))
        stop = day + 0.25 * _YEAR + rng.exponential(3 * _YEAR)
        found.append((dmt, day, stop))
        if rng.random() > 0.75:
            break
        day, line = stop + rng.exponential(0.15 * _YEAR), line + 1
    return found


def _relapses(
    start: float,
    end: float,
    age: float,
    before: int,
    frailty: float,
    therapies: list[tuple[str, float, float]],
    rng: np.random.Generator,
) -> list[float]:
    b = COEFFICIENTS["relapse"]
    highest = frailty * np.exp(b["intercept"] + b["relapses in the year before diagnosis"] * before) * np.exp(0.8)
    found: list[float] = []
    day = start
    while True:  # thinning of a Poisson process at its highest rate
        day += rng.exponential(_YEAR / highest)
        if day >= end:
            return found
        now = age + (day - start) / _YEAR
        rate = b["intercept"] + b["relapses in the year before diagnosis"] * before
        rate += b["age, per 10 years above 40"] * (now - 40) / 10
        rate += sum(b[dmt] for dmt, a, stop in therapies if a <= day < stop)
        if rng.random() < frailty * np.exp(rate) / highest:
            found.append(day)
            day += 30  # a new attack within 30 days is the same relapse


def _course(
    start: float, end: float, age: float, man: bool, relapses: list[float], rng: np.random.Generator
) -> tuple[list[tuple[float, float | None]], list[tuple[float, str, str]]]:
    b = COEFFICIENTS["progression"]
    level, last, day = _FIRST_EDSS[bisect_right(_FIRST_EDSS_BELOW, rng.random())], start, start
    visits: list[tuple[float, float | None]] = []
    mri: list[tuple[float, str, str]] = []
    scan = start
    while day < end:
        hazard = b["intercept"] + b["age, per 10 years above 40"] * (age + (day - start) / _YEAR - 40) / 10
        hazard += b["man"] * man + b["EDSS, per point above 2"] * (level - 2)
        if rng.random() < 1 - np.exp(-np.exp(hazard) * (day - last) / _YEAR):
            level += 1.0 if level <= 5 else 0.5
        level += 0.5 * sum(last <= r < day and rng.random() < 1 / 6 for r in relapses)
        level = min(level, 9.0)
        seen = (
            level
            + (1.0 if any(0 <= day - r < 60 for r in relapses) else 0.0)
            + _RATER[bisect_right(_RATER_BELOW, rng.random())]
        )
        edss = min(max(round(2 * seen) / 2, 0.0), 9.5)
        visits.append((day, None if rng.random() < 0.08 else edss))
        if day - scan >= 300:
            recent = sum(day - _YEAR <= r < day for r in relapses)
            t2 = rng.poisson(0.7 + 1.2 * recent)
            mri.append(
                (day, "0" if t2 == 0 else "1-2" if t2 < 3 else "3+", "1+" if rng.random() < 0.1 + 0.2 * recent else "0")
            )
            scan = day
        last = day
        day += max(14.0, rng.normal(90, 40))
    return visits, mri
