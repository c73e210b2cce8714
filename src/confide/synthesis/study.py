"""The study file of a synthesis: tables linked by patient, every column declared, rules, price and output.

>>> study = parse_synthesis_study('''
... name = "demo"
... [patients]
... source = "patients.csv"
... contributor = "id"
... [patients.columns.sex]
... type = "categorical"
... categories = ["f", "m"]
... [privacy]
... epsilon = 1.0
... delta = 1e-5
... ''')
>>> study.domain().static[0].cells
2

The file holds public facts only and travels with the release. Whatever the data alone could tell (a bound, a category,
a bin, the largest number of visits) has to be declared from public knowledge: nothing is discovered on the way.
"""

from __future__ import annotations

import tomllib
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from confide.data import ColumnSpec, SourceSpec, without_password
from confide.data.spec import explain
from confide.errors import InputError, nearest
from confide.synthesis.base import RowRule, Synthesizer
from confide.synthesis.contributions import Var
from confide.synthesis.domain import Column, Domain, Floats
from confide.synthesis.patient_unit import PatientUnit
from confide.synthesis.trees import FlatTree

DEFAULT_BINS = 10
LARGEST_INTEGER_RANGE = 40


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SynthesisColumn(ColumnSpec):
    """A declared column with its bins.

    Attributes
    ----------
    bins : int or tuple of numbers, optional
        For real, integer and date columns: a number of equally wide bins between the bounds, or the inner edges. By
        default every value of a short integer range, else 10 bins.
    """

    bins: int | tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _bins_fit(self) -> SynthesisColumn:
        if self.role == "label":
            raise ValueError(
                "a synthesis has no label; declare the column like any other and name it in [method] target"
            )
        if self.role == "feature":
            if self.type in ("categorical", "ordinal"):
                if self.bins is not None:
                    raise ValueError("bins are for real, integer and date columns")
            else:
                edges = self.edges()
                if not (np.diff(edges) > 0).all():
                    raise ValueError("bins must be inner edges that grow and lie inside the bounds")
        return self

    def edges(self) -> Floats:
        """Return all bin edges of a number or date column, bounds included."""
        low, high = self.low_high
        bins = self.bins
        if bins is None:
            # one cell for each whole number; the upper bound is inside the last bin
            if self.type == "integer" and high - low <= LARGEST_INTEGER_RANGE:
                return np.arange(low, high + 2, dtype=np.float64)
            bins = DEFAULT_BINS
        top = high + 1 if self.type in ("integer", "date") else high
        if isinstance(bins, int):
            if bins < 1:
                raise ValueError("bins is a number of bins, at least 1, or a list of inner edges")
            if self.scale == "log":
                return np.asarray(np.geomspace(low, top, bins + 1), dtype=np.float64)
            return np.linspace(low, top, bins + 1)
        return np.array([low, *(self.number(edge) for edge in bins), top], dtype=np.float64)

    def coded(self, name: str) -> Column:
        """Return the coded column: one cell a category or bin, one more for a missing value."""
        missing = self.missing == "indicator"
        if self.type in ("categorical", "ordinal"):
            return Column(name, len(self.categories or ()) + missing, self.type == "ordinal", missing)
        return Column(name, len(self.edges()) - 1 + missing, True, missing)


class PatientsSection(SourceSpec):
    """``[patients]``: one row a patient."""

    columns: dict[str, SynthesisColumn] = Field(min_length=1)


class VisitsSection(SourceSpec):
    """``[visits]``: several rows a patient, in the order of `time`.

    Attributes
    ----------
    time : str
        Declared column that orders a patient's visits (a number or a date).
    max_visits : int
        Public upper bound on the visits of one synthetic patient.
    min_visits : int
        0 or 1: whether it is public that every patient has a visit.
    """

    columns: dict[str, SynthesisColumn] = Field(min_length=1)
    time: str
    max_visits: int = Field(ge=1, le=10_000)
    min_visits: Literal[0, 1] = 0

    @model_validator(mode="after")
    def _time_is_declared(self) -> VisitsSection:
        column = self.columns.get(self.time)
        if column is None:
            raise ValueError(f"time names {self.time!r}, which is not among [visits.columns]")
        if column.type not in ("real", "integer", "date") or column.missing == "indicator":
            raise ValueError(f"the time column {self.time!r} must be a number or a date that is never missing")
        return self


class Condition(_Section):
    """``when = {column = "stage", is = [0]}``."""

    column: str
    values: tuple[Any, ...] = Field(alias="is")


class Rule(_Section):
    """``[[rules]]``: what can never be.

    Attributes
    ----------
    column : str
    never : "decreases" or "increases", optional
        From one visit to the next (for ordinal and number columns; by bin).
    not_ : tuple, optional (``not`` in the file)
        Categories that cannot stand where `when` holds.
    """

    column: str
    never: Literal["decreases", "increases"] | None = None
    not_: tuple[Any, ...] | None = Field(default=None, alias="not")
    when: Condition | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Rule:
        if (self.never is None) == (self.not_ is None) or (self.not_ is None) != (self.when is None):
            raise ValueError('a rule is either never = "decreases" | "increases", or not = [...] with when = {...}')
        return self


class Levels(_Section):
    """``budget = {column = "consent", levels = {research = 1.0, basic = 0.5}}``: epsilon each patient agreed to."""

    column: str
    levels: dict[str, float] = Field(min_length=1)


class SynthesisPrivacy(_Section):
    """``[privacy]``: the price of this release for one patient with all visits."""

    epsilon: float = Field(gt=0)
    delta: float | None = Field(default=None, gt=0, lt=1)
    budget: Literal["equal"] | Levels = "equal"
    noise: Literal["os", "secure"] = "os"
    seed: int | None = None


class MethodSection(_Section):
    """``[method]``: how."""

    name: Literal["patient-unit", "independence", "mst"] = "patient-unit"
    estimand: Literal["visit", "patient"] = "visit"
    target: str | None = None
    cap: float = Field(default=1.0, ge=1)


class SynthesisPublic(_Section):
    """``[public]``: declared knowledge."""

    max_contributors: int | None = Field(default=None, ge=1)


class SampleSection(_Section):
    """``[sample]``: how much to draw; more costs nothing."""

    patients: int | None = Field(default=None, ge=1)


class SynthesisLedger(_Section):
    """``[ledger]``: where the spend is remembered."""

    url: str | None = None
    key_file: str | None = None
    exhausted: Literal["drop", "refuse"] = "drop"

    @field_validator("url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        return without_password(value)


class SynthesisOutput(_Section):
    """``[output]``: the folder of releases."""

    dir: str = "releases"


class SynthesisStudy(_Section):
    """One declared synthesis."""

    version: Literal[1] = 1
    kind: Literal["synthesis"] = "synthesis"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    patients: PatientsSection
    visits: VisitsSection | None = None
    rules: tuple[Rule, ...] = ()
    privacy: SynthesisPrivacy
    method: MethodSection = MethodSection()
    public: SynthesisPublic = SynthesisPublic()
    sample: SampleSection = SampleSection()
    ledger: SynthesisLedger = SynthesisLedger()
    output: SynthesisOutput = SynthesisOutput()

    @model_validator(mode="after")
    def _whole(self) -> SynthesisStudy:
        if self.privacy.delta is None and self.public.max_contributors is None:
            raise ValueError(
                "give [privacy] delta, or [public] max_contributors (delta is then 0.1 / max_contributors)"
            )
        target = self.method.target
        if target is not None and target not in self._names():
            close = nearest(target, self._names())
            raise ValueError(f"target names {target!r}" + (f"; did you mean {close!r}?" if close else ""))
        if self.privacy.budget != "equal" and self.privacy.budget.column not in self.patients.columns:
            raise ValueError('the budget column must be declared under [patients.columns] (role = "attribute")')
        if self.rules and self.method.name == "mst":
            raise ValueError('the baseline "mst" cannot keep rules; use the method "patient-unit"')
        self.domain()
        self.row_rules()
        return self

    @property
    def delta(self) -> float:
        """The delta of the claim."""
        if self.privacy.delta is not None:
            return self.privacy.delta
        assert self.public.max_contributors is not None
        return 0.1 / self.public.max_contributors

    def features(self, section: PatientsSection | VisitsSection | None) -> dict[str, SynthesisColumn]:
        """Return the columns of a section that are synthesised."""
        if section is None:
            return {}
        return {name: column for name, column in section.columns.items() if column.role == "feature"}

    def _names(self) -> list[str]:
        return [*self.features(self.patients), *self.features(self.visits)]

    def domain(self) -> Domain:
        """Return the coded domain."""
        return Domain(
            tuple(column.coded(name) for name, column in self.features(self.patients).items()),
            tuple(column.coded(name) for name, column in self.features(self.visits).items()),
            max_visits=self.visits.max_visits if self.visits else 1,
            min_visits=self.visits.min_visits if self.visits else 0,
            time=self.visits.time if self.visits else None,
            target=self.method.target,
        )

    def synthesizer(self) -> Synthesizer:
        """Return the method that was asked for."""
        if self.method.name == "mst":
            return FlatTree(cap=self.method.cap)
        return PatientUnit(
            estimand=self.method.estimand, structure="none" if self.method.name == "independence" else "rule"
        )

    def row_rules(self) -> tuple[RowRule, ...]:
        """Return the rules over codes, in the order columns are drawn."""
        return tuple(self._row_rule(rule) for rule in self.rules)

    def _var(self, name: str) -> tuple[Var, SynthesisColumn]:
        for kind, section in (("static", self.patients), ("visit", self.visits)):
            columns = self.features(section)
            if name in columns:
                return Var(kind, list(columns).index(name)), columns[name]
        close = nearest(name, self._names())
        raise ValueError(f"a rule names {name!r}, which is no column" + (f"; did you mean {close!r}?" if close else ""))

    def _row_rule(self, rule: Rule) -> RowRule:
        var, column = self._var(rule.column)
        n = column.coded(rule.column).cells
        if rule.never is not None:
            ordered = column.coded(rule.column)
            if var.kind != "visit" or not ordered.ordinal:
                raise ValueError(
                    f"never = {rule.never!r} is for ordinal and number columns of [visits], not {rule.column!r}"
                )
            if self.visits is not None and rule.column == self.visits.time:
                raise ValueError("time never decreases by itself")
            grow = np.triu(np.ones((n, n), dtype=bool))
            allowed = grow if rule.never == "decreases" else grow.T.copy()
            if ordered.missing:  # a gap says nothing about the order
                allowed[-1, :] = allowed[:, -1] = True
            return RowRule(Var("lag", var.position), var, allowed, f"{rule.column} never {rule.never}")
        assert rule.when is not None
        assert rule.not_ is not None
        other, other_column = self._var(rule.when.column)
        mine, theirs = (
            _cells_of(column, rule.column, rule.not_),
            _cells_of(other_column, rule.when.column, rule.when.values),
        )
        allowed = np.ones((other_column.coded(rule.when.column).cells, n), dtype=bool)
        allowed[np.ix_(theirs, mine)] = False
        text = f"{rule.column} is not {list(rule.not_)} when {rule.when.column} is {list(rule.when.values)}"
        if _drawn_before(other, var, self.domain()):
            return RowRule(other, var, allowed, text)
        return RowRule(var, other, allowed.T.copy(), text)


def _drawn_before(first: Var, second: Var, domain: Domain) -> bool:
    if first.kind != second.kind:
        return first.kind == "static"
    names = [column.name for column in domain.visit]
    if first.kind == "visit" and domain.time is not None:
        time = names.index(domain.time)
        if first.position == time or second.position == time:
            return first.position == time
    return first.position < second.position


def _cells_of(column: SynthesisColumn, name: str, values: tuple[Any, ...]) -> list[int]:
    declared = [str(value) for value in column.categories or ()]
    if not declared:
        raise ValueError(f"a rule with values is for categorical and ordinal columns; {name!r} has none")
    unknown = [value for value in values if str(value) not in declared]
    if unknown:
        raise ValueError(f"a rule names {unknown[0]!r}, which is not among the categories of {name!r}")
    return [declared.index(str(value)) for value in values]


def parse_synthesis_study(text: str, *, where: str = "study.toml") -> SynthesisStudy:
    """Check the text of a synthesis study.

    Raises
    ------
    InputError
        Not TOML, an unknown key (with the nearest known one), a declaration that cannot hold.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the study file is not valid TOML: {error}", where=where) from error
    try:
        return SynthesisStudy.model_validate(raw)
    except ValidationError as error:
        raise explain(error, SynthesisStudy, where) from None
