"""A first synthesis study from a table, with a list of everything that was read from the data to write it.

Every such value carries a CONFIRM mark: nothing is synthesised before somebody has stated that it is public knowledge,
replaced it, or had it estimated privately (`confide.studies.schema_estimate`).
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import polars as pl

from confide.data import SourceSpec, read_source
from confide.data.convert import text_of
from confide.errors import InputError, nearest

CATEGORIES_AT_MOST = 20
MARK = "# CONFIRM:"


def draft_synthesis(
    table: Path, *, contributor: str, time: str | None, home: Path | None = None
) -> tuple[str, list[str]]:
    """Return the text of a study file and one line for each value taken from the data.

    Parameters
    ----------
    table : Path
        With `time`, one row a visit; without, one row a patient.
    contributor : str
        Column of patient ids.
    time : str, optional
        Column that orders a patient's visits.
    home : Path, optional
        Folder of the study file, which its sources start from; default that of the table.

    Raises
    ------
    InputError
        There is no such column, the file cannot be read, or patients have several rows and no time is named.
    """
    frame, _ = read_source(SourceSpec(source=table.name, contributor=contributor), base=table.parent)
    for wanted in (contributor, *([time] if time else [])):
        if wanted not in frame.columns:
            close = nearest(wanted, frame.columns)
            raise InputError(
                f"there is no column {wanted!r}",
                where=str(table),
                expected=", ".join(frame.columns),
                remedy=f"did you mean {close!r}?" if close else None,
            )
    whose = frame[contributor].cast(pl.String)
    if time is None and whose.n_unique() < len(whose):
        raise InputError(
            "patients have several rows",
            where=str(table),
            expected="one row a patient, or the column that orders the rows of a patient",
            remedy="add --time COLUMN",
        )
    looked: list[str] = []
    static: list[str] = []
    moving: list[str] = []
    for name in frame.columns:
        if name == contributor:
            continue
        text = text_of(frame[name])
        fixed = name != time
        if time is not None and name != time:
            # per patient: the same text, gaps included, on every row
            fixed = pl.DataFrame({"who": whose, "value": text}).unique().height == whose.n_unique()
            looked.append(f"{name}: {'the same' if fixed else 'not the same'} at all visits of every patient")
        section = "patients" if fixed else "visits"
        lines = [f"[{section}.columns.{_key(name)}]", *_column(name, text, looked, never_missing=name == time)]
        (static if fixed else moving).append("\n".join(lines) + "\n")
    place = os.path.relpath(table, home) if home is not None else table.name
    return _file(table, place, contributor, time, whose, static, moving, looked), looked


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _file(
    table: Path,
    place: str,
    contributor: str,
    time: str | None,
    whose: pl.Series,
    static: list[str],
    moving: list[str],
    looked: list[str],
) -> str:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in table.stem).lstrip("._-") or "tables"
    source = [f"source = {json.dumps(place)}", f"contributor = {json.dumps(contributor)}"]
    blocks = [
        "# Drafted by LOOKING AT THE DATA. Every value marked CONFIRM was read from it: state that it is public",
        "# knowledge by removing the mark, replace it, or let `confide schema estimate` learn it privately.",
        "# What only the data tell is a leak that no guarantee covers.",
        "# Worth a look: bins have even width. Where most values lie near one end, as laboratory values do, list the",
        '# borders of practice instead, as in bins = [1, 2, 4, 8]; words in an order (a stage) are type = "ordinal".',
        "version = 1",
        'kind = "synthesis"',
        f"name = {json.dumps(name)}",
        "",
        "[patients]                    # what is true of a patient at all visits",
        *source,
    ]
    if time is not None:
        blocks.append(
            "repeated = true               # the same file as [visits]: a patient's rows agree in these columns"
        )
    blocks += ["", *static]
    if not static:
        blocks.append("# No column is the same at all visits: a synthesis needs at least one, for example sex.")
    if time is not None:
        most = int(whose.value_counts()["count"].to_numpy().max()) if len(whose) else 1
        looked.append(f"max_visits: the largest number of visits of one patient is {most}")
        blocks += [
            "",
            "[visits]",
            *source,
            f"time = {json.dumps(time)}",
            f"max_visits = {most}   {MARK} declare it from the protocol or the calendar of the study",
            "min_visits = 1                # everybody in this file has a row, so everybody has a visit",
            "",
            *moving,
        ]
    people = 10 ** math.ceil(math.log10(whose.n_unique() + 1))
    looked.append(f"max_contributors: {people} is the number of patients, rounded up to a power of ten")
    blocks += [
        "",
        "[privacy]",
        "epsilon = 1.0                 # for one patient with all visits",
        "",
        "[method]",
        'estimand = "visit"            # "patient": everybody counts the same, however many visits',
        '# target = "COLUMN"           # whose relations matter most to the users of the table',
        "",
        "[evaluation]",
        "holdout = 0.2                 # patients set aside by a public coin; `confide evaluate` measures on them",
        '# outcome = "COLUMN"          # what models trained on the table should predict',
        "",
        "[public]",
        f"max_contributors = {people}   {MARK} a public upper bound on the number of patients; delta is 0.1 / this",
    ]
    return "\n".join(blocks) + "\n"


def _column(name: str, text: pl.Series, looked: list[str], *, never_missing: bool) -> list[str]:
    lines = []
    gaps = text.null_count() > 0
    numbers = text.cast(pl.Float64, strict=False)
    distinct = sorted(text.drop_nulls().unique().to_list())
    plain = numbers.null_count() == text.null_count()
    dates = text.drop_nulls().str.to_date("%Y-%m-%d", strict=False)
    if len(distinct) and not plain and dates.null_count() == 0 and (never_missing or len(distinct) > 2):
        days = [str(dates.min()), str(dates.max())]
        looked.append(f"{name}: date with bounds {days}")
        lines += ['type = "date"', f"bounds = {json.dumps(days)}   {MARK} read from the data", "bins = 10"]
    elif plain and len(distinct) and (len(distinct) > CATEGORIES_AT_MOST or never_missing):
        values = numbers.drop_nulls().to_numpy()
        whole = bool((values == values.round()).all())
        low, high = float(values.min()), float(values.max())
        kind = "integer" if whole else "real"
        bounds = [math.floor(low), math.ceil(high) + (low == high)]
        looked.append(f"{name}: {kind} with bounds {bounds}")
        lines += [f'type = "{kind}"', f"bounds = {bounds}   {MARK} read from the data", "bins = 10"]
    elif never_missing:
        raise InputError(f"the time column {name!r} holds text", expected="numbers or dates like 2001-12-31")
    elif len(distinct) > CATEGORIES_AT_MOST:
        looked.append(f"{name}: more than {CATEGORIES_AT_MOST} different texts, so it is left out")
        return ['role = "ignore"   # free text or a code list: declare its categories, or leave it out']
    else:
        looked.append(f"{name}: categories {distinct}")
        kept = json.dumps(distinct or ["?"], ensure_ascii=False)
        lines += ['type = "categorical"', f"categories = {kept}   {MARK} read from the data"]
    looked.append(f"{name}: {'has' if gaps else 'has no'} missing values")
    if not never_missing:
        # declared for every column, so that the schema does not tell whether the data had a gap
        lines.append('missing = "indicator"')
    return lines
