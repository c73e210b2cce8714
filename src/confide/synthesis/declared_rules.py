"""Plausibility rules as a study declares them, and what they mean for coded columns.

Three kinds: a column never decreases (or increases) from visit to visit; values that cannot stand together; a number
that never lies after (or before) a number of the patient, such as a visit after death. Rules are public knowledge;
they hold in everything that is drawn, down to the value inside its bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from confide.errors import nearest
from confide.synthesis.base import RowRule
from confide.synthesis.columns import SynthesisColumn
from confide.synthesis.contributions import Var


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Condition(_Declared):
    """``when = {column = "stage", is = [0]}``."""

    column: str
    values: tuple[Any, ...] = Field(alias="is")


class Rule(_Declared):
    """``[[rules]]``: what can never be.

    Attributes
    ----------
    column : str
    never : "decreases" or "increases", optional
        From one visit to the next (for ordinal and number columns; by bin).
    not_ : tuple, optional (``not`` in the file)
        Categories that cannot stand where `when` holds.
    not_after, not_before : str, optional
        A number or date column of the patient: `column` (of visits, in the same unit) never lies after or before it.
        Where the patient's value is missing (alive), nothing is excluded.
    table : str
        "visits", or the name of an event table.
    """

    column: str
    never: Literal["decreases", "increases"] | None = None
    not_: tuple[Any, ...] | None = Field(default=None, alias="not")
    when: Condition | None = None
    not_after: str | None = None
    not_before: str | None = None
    table: str = "visits"

    @model_validator(mode="after")
    def _one_kind(self) -> Rule:
        kinds = [self.never, self.not_, self.not_after, self.not_before]
        if sum(kind is not None for kind in kinds) != 1 or (self.not_ is None) != (self.when is None):
            raise ValueError(
                'a rule is one of: never = "decreases" | "increases"; not = [...] with when = {...}; '
                'not_after = "COLUMN"; not_before = "COLUMN"'
            )
        return self

    @property
    def limit(self) -> str | None:
        """The patient's column that bounds `column`, if the rule is of that kind."""
        return self.not_after or self.not_before


class Columns:
    """Where the columns of one linked pair of tables stand.

    Parameters
    ----------
    static, visit : mapping of name to SynthesisColumn
        Features in their order.
    time : str or None
        Name of the column that orders visits.
    """

    def __init__(
        self, static: Mapping[str, SynthesisColumn], visit: Mapping[str, SynthesisColumn], time: str | None
    ) -> None:
        self.static, self.visit, self.time = static, visit, time

    def find(self, name: str) -> tuple[Var, SynthesisColumn]:
        """Return the variable and declaration of a column; ValueError names the nearest one."""
        for kind, columns in (("static", self.static), ("visit", self.visit)):
            if name in columns:
                return Var(kind, list(columns).index(name)), columns[name]
        close = nearest(name, [*self.static, *self.visit])
        raise ValueError(f"a rule names {name!r}, which is no column" + (f"; did you mean {close!r}?" if close else ""))

    def drawn_before(self, first: Var, second: Var) -> bool:
        """Whether the generator knows `first` when it draws `second`."""
        if first.kind != second.kind:
            return first.kind == "static"
        if first.kind == "visit" and self.time is not None:
            time = list(self.visit).index(self.time)
            if time in (first.position, second.position):
                return first.position == time
        return first.position < second.position


def row_rule(rule: Rule, columns: Columns) -> RowRule:
    """Turn a declared rule into allowed cells.

    Raises
    ------
    ValueError
        The rule does not fit the columns.
    InputError
        The rule can never hold.
    """
    var, column = columns.find(rule.column)
    if rule.never is not None:
        return _monotone(rule, var, column, columns)
    if rule.limit is not None:
        return _limited(rule, rule.limit, var, column, columns)
    assert rule.when is not None
    assert rule.not_ is not None
    other, other_column = columns.find(rule.when.column)
    mine, theirs = (
        _cells_of(column, rule.column, rule.not_),
        _cells_of(other_column, rule.when.column, rule.when.values),
    )
    allowed = np.ones((other_column.coded(rule.when.column).cells, column.coded(rule.column).cells), dtype=bool)
    allowed[np.ix_(theirs, mine)] = False
    text = f"{rule.column} is not {list(rule.not_)} when {rule.when.column} is {list(rule.when.values)}"
    if columns.drawn_before(other, var):
        return RowRule(other, var, allowed, text)
    return RowRule(var, other, allowed.T.copy(), text)


def _monotone(rule: Rule, var: Var, column: SynthesisColumn, columns: Columns) -> RowRule:
    ordered = column.coded(rule.column)
    if var.kind != "visit" or not ordered.ordinal:
        raise ValueError(f"never = {rule.never!r} is for ordinal and number columns of visits, not {rule.column!r}")
    if rule.column == columns.time:
        raise ValueError("time never decreases by itself")
    grow = np.triu(np.ones((ordered.cells, ordered.cells), dtype=bool))
    allowed = grow if rule.never == "decreases" else grow.T.copy()
    if ordered.missing:  # a gap says nothing about the order
        allowed[-1, :] = allowed[:, -1] = True
    return RowRule(Var("lag", var.position), var, allowed, f"{rule.column} never {rule.never}")


def _limited(rule: Rule, limit: str, var: Var, column: SynthesisColumn, columns: Columns) -> RowRule:
    other, other_column = columns.find(limit)
    numbers = ("real", "integer", "date")
    if var.kind != "visit" or other.kind != "static" or not {column.type, other_column.type} <= set(numbers):
        raise ValueError(
            f"not_after and not_before compare a number or date of visits with one of the patient, "
            f"not {rule.column!r} with {limit!r}"
        )
    mine, theirs = column.edges(), other_column.edges()
    if rule.not_after is not None:
        # a bin that begins at or before the patient's bin begins can always be cut at the patient's own value
        fits = mine[None, :-1] <= theirs[:-1, None]
        text = f"{rule.column} is not after {limit}"
    else:
        fits = mine[None, 1:] >= theirs[1:, None]
        text = f"{rule.column} is not before {limit}"
    allowed = np.ones((other_column.coded(limit).cells, column.coded(rule.column).cells), dtype=bool)
    allowed[: len(theirs) - 1, : len(mine) - 1] = fits
    return RowRule(other, var, allowed, text)


def _cells_of(column: SynthesisColumn, name: str, values: tuple[Any, ...]) -> list[int]:
    declared = [str(value) for value in column.categories or ()]
    if not declared:
        raise ValueError(f"a rule with values is for categorical and ordinal columns; {name!r} has none")
    unknown = [value for value in values if str(value) not in declared]
    if unknown:
        raise ValueError(f"a rule names {unknown[0]!r}, which is not among the categories of {name!r}")
    return [declared.index(str(value)) for value in values]
