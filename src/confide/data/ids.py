"""Whose a row is: ids as they are written, and the person behind an id where a table of persons says so."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from confide.data.convert import Origin, more, text_of
from confide.data.readers import read_source
from confide.data.spec import SourceSpec
from confide.errors import InputError, nearest


def check_columns(frame: pl.DataFrame, wanted: Iterable[str], origin: Origin) -> None:
    """Refuse a column that the source does not have."""
    for name in wanted:
        if name not in frame.columns:
            close = nearest(name, frame.columns)
            raise InputError(
                f"unknown column {name!r}",
                where=origin.name,
                expected="a column of the source: "
                + ", ".join(frame.columns[:30])
                + (" ..." if frame.width > 30 else ""),
                remedy=f"did you mean {close!r}?" if close else "correct the name, or remove its declaration",
            )


def contributor_ids(frame: pl.DataFrame, column: str, origin: Origin, what: str) -> list[str]:
    """Return ids as verbatim text; refuse gaps, decimals and stray blanks: one person must never become two."""
    series = frame[column]
    if series.dtype.is_float() or series.dtype.is_decimal():
        raise InputError(
            f"the {what} column {column!r} holds decimal numbers",
            where=origin.at(column),
            expected="text or whole numbers: an id stored as a decimal may have lost zeros or digits",
            remedy="store the column as text at the source",
        )
    text = series.cast(pl.String)
    gone = np.flatnonzero(text_of(series).is_null().to_numpy())
    if len(gone):
        raise InputError(
            f"the {what} is missing{more(gone)}",
            where=origin.at(column, gone),
            expected=f"a {what} in every row; an entry that belongs to nobody known cannot be protected",
            remedy="fill it in at the source, or leave the row out",
        )
    padded = np.flatnonzero((text != text.str.strip_chars()).to_numpy())
    if len(padded):
        raise InputError(
            f"a {what} has blanks around it{more(padded)}",
            where=origin.at(column, padded),
            expected="ids without surrounding blanks: ' 7' and '7' would count as two people",
            remedy="trim the column at the source",
        )
    return text.to_list()


def linked_ids(frame: pl.DataFrame, spec: SourceSpec, origin: Origin, what: str, *, base: Path) -> list[str]:
    """Return whose each row is: `contributor_ids`, and the person where the source's table of persons names an id.

    Nothing is added to either, so that a person is the same contributor for the ledger in every study, whether their
    ids came through a table or not.
    """
    owners = contributor_ids(frame, spec.contributor, origin, what)
    table = persons_of(spec, base=base)
    return [table.get(one, one) for one in owners]


def persons_of(spec: SourceSpec, *, base: Path) -> dict[str, str]:
    """Return the person of each id that the source's table of persons names; empty where there is no table.

    Raises
    ------
    InputError
        An id that stands twice, or a chain of ids.
    """
    if spec.persons is None:
        return {}
    links, origin = read_source(SourceSpec(source=spec.persons, contributor="id"), base=base)
    check_columns(links, ["id", "person"], origin)
    ids, people = (contributor_ids(links, name, origin, name) for name in ("id", "person"))
    table = dict(zip(ids, people, strict=True))
    if len(table) < len(ids):
        raise InputError(
            "an id stands twice in the table of persons",
            where=origin.at("id"),
            expected="one person for each id: an entry of two people belongs to neither",
            remedy="keep one row for each id",
        )
    onward = np.flatnonzero([table.get(person, person) != person for person in people])
    if len(onward):
        raise InputError(
            "a person of the table of persons is an id that the table gives to somebody else",
            where=origin.at("person", onward),
            expected="the same person in every row of one person: a chain would leave one person with two balances",
            remedy="write the last person of the chain in all its rows",
        )
    return table
