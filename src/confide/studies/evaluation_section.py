"""``[evaluation]``: who is held out, what of their figures may leave, and which groups of people are compared.

>>> EvaluationSection(subgroups={"sex": "sex", "ill": {"count": ["diabetes", "copd"]}}).subgroups["ill"].most
2
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from confide.data import ColumnSpec
from confide.errors import nearest
from confide.studies.section import Section as _Section


class Paid(_Section):
    """A figure bought with privacy budget."""

    epsilon: float = Field(gt=0)


class Subgroups(_Section):
    """``subgroups = {age = {column = "age", cuts = [50, 65]}}``: limits of a number; a bare name is a column.

    ``{count = ["diabetes", "copd"], most = 2}``: how many of them a row has, from `most` on in one group
    (co-morbidity); each is a declared column of two categories, of which the second means that it is there.
    """

    column: str | None = None
    cuts: tuple[float, ...] = ()
    count: tuple[str, ...] = ()
    most: int = Field(default=2, ge=1)

    @field_validator("cuts")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not low < high for low, high in pairwise(value)):
            raise ValueError("cuts must ascend, for example [50, 65]")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Subgroups:
        if (self.column is None) == (not self.count) or (self.count and self.cuts):
            raise ValueError("groups come from a column, with or without cuts, or from a count of several columns")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is looked at."""
        return self.count if self.column is None else (self.column,)


class EvaluationSection(_Section):
    """``[evaluation]``: held-out contributors, and what of their figures may leave.

    `subgroups` names the declared attributes of `confide evaluate`; `threshold` is where a probability becomes a yes;
    `validation` is the share of the held-out contributors on whom thresholds and members are chosen, never on the rest.
    """

    holdout: float = Field(default=0.25, ge=0, lt=1)
    unit: Literal["contributor", "entry"] = "contributor"
    metrics: Literal["internal"] | Paid = "internal"
    baselines: tuple[str, ...] = ()
    bootstrap: int = Field(default=500, ge=50)
    threshold: float = Field(default=0.5, gt=0, lt=1)
    validation: float = Field(default=0.0, ge=0, lt=1)
    subgroups: dict[str, Subgroups] = Field(default_factory=dict)

    @field_validator("subgroups", mode="before")
    @classmethod
    def _bare_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {"column": one} if isinstance(one, str) else one for name, one in value.items()}

    @field_validator("baselines")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = (
            "non-private",
            "per-entry",
            "truncate(1)",
            "truncate(median)",
            "contributor",
            "individual",
            "scale",
            "uniform",
        )
        for name in value:
            if name not in known and not re.fullmatch(r"truncate\(\d+\)", name):
                close = nearest(name, known)
                raise ValueError(f"unknown baseline {name!r}" + (f"; did you mean {close!r}?" if close else ""))
        return value

    def check_subgroups(self, columns: Mapping[str, ColumnSpec]) -> None:
        """Refuse groups of columns that are not declared, or that cannot be counted.

        Raises
        ------
        ValueError
        """
        for name, group in self.subgroups.items():
            for column in group.columns:
                if column not in columns:
                    close = nearest(column, columns)
                    raise ValueError(
                        f"evaluation.subgroups.{name} names the column {column!r}, which is not declared"
                        + (f"; did you mean {close!r}?" if close else "; declare it under [columns] as an attribute")
                    )
                if group.count:
                    categories = columns[column].categories
                    if columns[column].role == "label" or categories is None or len(categories) != 2:
                        raise ValueError(
                            f"evaluation.subgroups.{name} counts the column {column!r}: a feature or attribute of two "
                            "categories is expected, no and yes in this order"
                        )
