"""A first synthesis study from a table, with a list of everything that was read from the data to write it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl

from confide.data import SourceSpec, read_source
from confide.data.convert import MISSING
from confide.errors import InputError, nearest

CATEGORIES_AT_MOST = 20


def draft_synthesis(table: Path, *, contributor: str, time: str | None) -> tuple[str, list[str]]:
    """Return the text of a study file and one line for each value taken from the data.

    Raises
    ------
    InputError
        There is no such column, or the file cannot be read.
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
    looked: list[str] = []
    static: list[str] = []
    moving: list[str] = []
    for name in frame.columns:
        if name == contributor:
            continue
        text = frame[name].cast(pl.String).str.strip_chars()
        text = text.set(text.str.to_lowercase().is_in(list(MISSING)), None)
        lines = _column(name, text, looked, never_missing=name == time)
        pairs = pl.DataFrame({"who": whose, "value": text}).unique()
        fixed = time is None or pairs.height == whose.n_unique()
        if time is not None:
            looked.append(f"{name}: {'the same' if fixed else 'not the same'} at all visits of every patient")
        (static if fixed and name != time else moving).append(
            "\n".join([f"[{'patients' if fixed and name != time else 'visits'}.columns.{json.dumps(name)}]", *lines])
        )
    blocks = [
        "# Drafted by looking at the data: confirm every value from public knowledge, or replace it.",
        "version = 1",
        'kind = "synthesis"',
        f"name = {json.dumps(''.join(c if c.isalnum() or c in '._-' else '-' for c in table.stem) or 'tables')}",
        "",
        "# One row a patient. This file has one row a visit: write the patients' columns to a file of their own.",
        "[patients]",
        f"source = {json.dumps(table.name if time is None else table.stem + '-patients.csv')}",
        f"contributor = {json.dumps(contributor)}",
        "",
        *static,
    ]
    if not static:
        blocks.append("# no column is the same at all visits: a synthesis needs at least one, for example sex")
    if time is not None:
        most = int(whose.value_counts()["count"].to_numpy().max())
        looked.append(f"max_visits: the largest number of visits of one patient is {most}")
        blocks += [
            "",
            "[visits]",
            f"source = {json.dumps(table.name)}",
            f"contributor = {json.dumps(contributor)}",
            f"time = {json.dumps(time)}",
            f"max_visits = {most}   # FROM THE DATA: declare from the protocol or the calendar of the study",
            "",
            *moving,
        ]
    blocks += ["", "[privacy]", "epsilon = 1.0", "", "[public]", "max_contributors = 1000000  # declare a public bound"]
    return "\n".join(blocks) + "\n", looked


def _column(name: str, text: pl.Series, looked: list[str], *, never_missing: bool) -> list[str]:
    lines = []
    gaps = text.null_count() > 0
    numbers = text.cast(pl.Float64, strict=False)
    distinct = sorted(text.drop_nulls().unique().to_list())
    if (numbers.null_count() == text.null_count() and len(distinct) > CATEGORIES_AT_MOST) or never_missing:
        if numbers.null_count() > text.null_count():
            raise InputError(f"the time column {name!r} holds text", expected="numbers", remedy="give days or years")
        values = numbers.drop_nulls().to_numpy()
        whole = bool((values == values.round()).all())
        low, high = float(values.min()), float(values.max())
        kind = "integer" if whole else "real"
        bounds = [math.floor(low), math.ceil(high) + (low == high)]
        looked.append(f"{name}: {kind} with bounds {bounds}")
        lines += [f'type = "{kind}"', f"bounds = {bounds}   # FROM THE DATA", "bins = 10"]
    elif len(distinct) > CATEGORIES_AT_MOST:
        dates = text.drop_nulls().str.to_date("%Y-%m-%d", strict=False)
        if dates.null_count():
            looked.append(f"{name}: more than {CATEGORIES_AT_MOST} different texts, so it is left out")
            return ['role = "ignore"   # free text or a code list: declare its categories, or leave it out']
        days = [str(dates.min()), str(dates.max())]
        looked.append(f"{name}: date with bounds {days}")
        lines += ['type = "date"', f"bounds = {json.dumps(days)}   # FROM THE DATA", "bins = 10"]
    else:
        looked.append(f"{name}: categories {distinct}")
        lines += ['type = "categorical"', f"categories = {json.dumps(distinct)}   # FROM THE DATA"]
    looked.append(f"{name}: {'has' if gaps else 'has no'} missing values")
    if not never_missing:
        # declared for every column, so that the schema does not tell whether the data had a gap
        lines.append('missing = "indicator"')
    return lines
