"""A first study file from a table: a draft that says what it looked at and what a person must confirm.

>>> text, looked_at = draft_study("named:pbcseq", contributor="id", label="status")
>>> 'contributor = "id"' in text and any("bili" in line for line in looked_at)
True

A bound read from the data is a fact about somebody in the data. The draft therefore marks every such value CONFIRM: it
has to be replaced by, or agreed to be, public knowledge before the study may count it as free.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from confide.data.convert import text_of
from confide.data.readers import read_source
from confide.data.spec import SourceSpec
from confide.errors import InputError, nearest

MOST_CATEGORIES = 12


def draft_study(
    source: str | Path,
    contributor: str,
    label: str,
    *,
    entry: str | None = None,
    name: str | None = None,
    base: Path = Path("."),
) -> tuple[str, list[str]]:
    """Read a table and write a commented first study file.

    Parameters
    ----------
    source : str or Path
        A CSV or Parquet file, or ``named:NAME``.
    contributor, label : str
        Columns of the contributor ids (``"row"``: none) and of the label.
    entry : str, optional
        Column that tells a contributor's entries apart.
    name : str, optional
        Name of the study; default: from the file.
    base : Path
        Folder that a relative path starts from.

    Returns
    -------
    text : str
        TOML; every value that was read from the data is marked CONFIRM.
    looked_at : list of str
        One line for each value that was read from the data.

    Raises
    ------
    InputError
        Unknown column or unreadable source.
    """
    spec = SourceSpec(source=str(source), contributor=contributor, entry=entry)
    frame, origin = read_source(spec, base=base)
    for column in [label, *([] if contributor == "row" else [contributor]), *([entry] if entry else [])]:
        if column not in frame.columns:
            close = nearest(column, frame.columns)
            raise InputError(
                f"unknown column {column!r}",
                where=origin.name,
                expected="one of " + ", ".join(frame.columns),
                remedy=f"did you mean {close!r}?" if close else None,
            )
    looked: list[str] = []
    blocks: list[str] = []
    for column in frame.columns:
        if column in (contributor, entry):
            continue
        blocks.append(_label(frame[column], looked) if column == label else _column(frame[column], looked))
    if contributor == "row":
        people, most = frame.height, 1
    else:
        sizes = text_of(frame[contributor]).drop_nulls().value_counts()["count"]
        people, most = len(sizes), int(sizes.max() or 1)  # type: ignore[arg-type]
    looked.append(f"the largest number of entries of one contributor: {most}")
    looked.append(f"the number of contributors: {people}")
    bound = 10 ** math.ceil(math.log10(people + 1))
    # Rounding up hides the exact numbers; whether the round number is public is still for a person to say.
    entries = 2 ** math.ceil(math.log2(most)) if most > 1 else 1
    study = (
        name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(source).removeprefix("named:")).name.split(".")[0]) or "study"
    )
    return _file(study, spec, blocks, entries, bound), looked


def _file(name: str, spec: SourceSpec, blocks: list[str], entries: int, people: int) -> str:
    quoted = {
        key: json.dumps(value, ensure_ascii=False) for key, value in (("source", spec.source), ("id", spec.contributor))
    }
    entry = f"entry = {json.dumps(spec.entry, ensure_ascii=False)}\n" if spec.entry else (
        '# entry = "COLUMN"            # a column that tells the entries of one contributor apart, if there is one\n'
    )  # fmt: skip
    return (
        "# A first study file. Values marked CONFIRM were read from the data: each is a fact about the people in it\n"
        "# until somebody states that it is public knowledge, or replaces it by a value that is (a clinical range,\n"
        "# a code list).\n"
        "version = 1\n"
        f'name = "{name}"\n\n'
        "[[data]]\n"
        f"source = {quoted['source']}\n"
        f"contributor = {quoted['id']}\n"
        f"{entry}\n"
        "# Every used column is declared. Remove what the model should not see, above all what names a person.\n"
        + "\n".join(blocks)
        + "\n[public]\n"
        f"max_entries = {entries}   # CONFIRM: above it a uniform random subset of a contributor's entries is used\n"
        f"max_contributors = {people}   # CONFIRM: a public upper bound; delta defaults to 0.1 / this\n"
        '# entry_counts = "counts.csv"  # how many contributors have how many entries, if that is public knowledge;\n'
        "# entry_counts = {epsilon = 0.1}   # or pay for a noisy version\n\n"
        "[privacy]\n"
        "epsilon = 4.0                 # the price of this release for every contributor\n"
        'strategy = "individual"       # `confide plan` compares the strategies\n'
        "noise_multiplier = 2.0\n"
        "steps = 500\n\n"
        "[model]\n"
        'name = "logistic"\n\n'
        "[optimizer]\n"
        'name = "sgd"\n'
        "lr = 0.5\n\n"
        "[evaluation]\n"
        "holdout = 0.25                # share of contributors set aside by a keyed hash\n"
    )


def _header(column: str) -> str:
    return (
        f"[columns.{column}]"
        if re.fullmatch(r"[A-Za-z0-9_-]+", column)
        else f"[columns.{json.dumps(column, ensure_ascii=False)}]"
    )


def _value(text: str) -> str:
    """Write a cell as TOML: plain numbers bare, everything else (leading zeros too) quoted."""
    return (
        text if re.fullmatch(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,6})?", text) else json.dumps(text, ensure_ascii=False)
    )


def _distinct(text: pl.Series) -> list[str]:
    values = {_trim(value) for value in text.drop_nulls().unique().to_list()}
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)


def _trim(text: str) -> str:
    return text[:-2] if re.fullmatch(r"-?[0-9]+\.0", text) else text


def _label(series: pl.Series, looked: list[str]) -> str:
    classes = _distinct(text_of(series))
    if len(classes) > 50:
        raise InputError(
            f"the label {series.name!r} has {len(classes)} different values",
            expected="a label with a few classes",
            remedy="choose another label column, or group its values at the source",
        )
    looked.append(f"column {series.name!r}: its classes ({len(classes)} values)")
    written = f"positive = [{_value(classes[-1])}]               # the classes that count as 1, the event"
    # with two classes the last one counts as 1 anyway: written out, so that nobody has to guess which
    positive = f"{written}; the other one if that is meant\n" if len(classes) == 2 else f"# {written}\n"
    return (
        f"{_header(series.name)}\n"
        'role = "label"\n'
        f"classes = [{', '.join(map(_value, classes))}]      # CONFIRM\n{positive}"
    )


def _column(series: pl.Series, looked: list[str]) -> str:
    text = text_of(series)
    values = _distinct(text)
    lines = [_header(series.name)]
    missing = text.null_count() > 0
    numbers = text.cast(pl.Float64, strict=False)
    numeric = (
        bool(values) and numbers.null_count() == text.null_count() and bool(numbers.drop_nulls().is_finite().all())
    )
    dates = None if numeric else text.str.to_date("%Y-%m-%d", strict=False)
    if numeric and len(values) > MOST_CATEGORIES:
        known = numbers.drop_nulls().to_numpy()
        whole = bool(np.all(known == np.round(known)))
        low, high = _round_out(float(known.min()), float(known.max()))
        looked.append(f"column {series.name!r}: its range, rounded outwards to {low:g} to {high:g}")
        lines += [
            f'type = "{"integer" if whole else "real"}"',
            f"bounds = [{_number(low)}, {_number(high)}]      # CONFIRM: replace by a range known without the data",
            '# outside = "clip"            # move values outside to the bound instead of refusing them',
        ]
    elif dates is not None and values and dates.null_count() == text.null_count():
        low_year, high_year = dates.min().year, dates.max().year + 1  # type: ignore[union-attr]
        looked.append(f"column {series.name!r}: the years {low_year} to {high_year}")
        bounds = [datetime.date(year, 1, 1).isoformat() for year in (low_year, high_year)]
        lines += ['type = "date"', f'bounds = ["{bounds[0]}", "{bounds[1]}"]      # CONFIRM']
    elif 0 < len(values) <= MOST_CATEGORIES:
        looked.append(f"column {series.name!r}: its {len(values)} values")
        lines += ['type = "categorical"', f"categories = [{', '.join(map(_value, values))}]      # CONFIRM"]
    else:
        reason = "no value in any row" if not values else f"{len(values)} different texts: free text or a name"
        looked.append(f"column {series.name!r}: {reason}")
        return "\n".join([lines[0], f'role = "ignore"               # {reason}']) + "\n"
    if missing:
        looked.append(f"column {series.name!r}: that it has missing values")
        lines.append('missing = "indicator"         # CONFIRM: that values can be missing')
    return "\n".join(lines) + "\n"


def _round_out(low: float, high: float) -> tuple[float, float]:
    """Round a range outwards to one leading digit of its width."""
    step = 10.0 ** math.floor(math.log10(high - low)) if high > low else max(abs(low), 1.0)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _number(value: float) -> Any:
    return int(value) if value == int(value) and abs(value) < 1e15 else round(value, 12)
