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
from dataclasses import replace
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from confide.data.spec import explain
from confide.errors import InputError, UnreachableError, nearest
from confide.ledger.section import LedgerSection, LinkageSection
from confide.synthesis.base import RowRule, Synthesizer
from confide.synthesis.columns import SynthesisColumn
from confide.synthesis.declared_rules import Columns, Rule, row_rule
from confide.synthesis.domain import Column, Domain, visit_bins
from confide.synthesis.methods import METHODS, WITHOUT_BUDGETS, WITHOUT_RULES
from confide.synthesis.sections import EvaluationSection, EventsSection, PatientsSection, VisitsSection
from confide.synthesis.useful import smallest_useful_epsilon

__all__ = [
    "EvaluationSection",
    "EventsSection",
    "PatientsSection",
    "SynthesisColumn",
    "SynthesisStudy",
    "VisitsSection",
    "parse_synthesis_study",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


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
    """``[method]``: how.

    Attributes
    ----------
    focus : "history" or "visit"
        "visit" puts the whole budget into single visits (method "patient-unit").
    """

    name: str = "patient-unit"
    estimand: Literal["visit", "patient"] = "visit"
    focus: Literal["history", "visit"] = "history"
    target: str | None = None
    cap: float = Field(default=1.0, ge=1)
    slots: int = Field(default=8, ge=1, le=64)

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            close = nearest(value, METHODS)
            raise ValueError(
                f"there is no method {value!r}; known are {', '.join(METHODS)}"
                + (f"; did you mean {close!r}?" if close else "")
            )
        return value


class PaidSchema(_Section):
    """What ``confide schema estimate`` wrote: values of this file that were learnt privately, and charged."""

    epsilon: float = Field(gt=0)
    delta: float = Field(ge=0, lt=1)
    receipt: str
    values: tuple[str, ...]


class SynthesisPublic(_Section):
    """``[public]``: declared knowledge.

    Attributes
    ----------
    max_contributors : int, optional
        Public upper bound on the number of patients; delta defaults to 0.1 / this.
    paid_schema : optional
        Values of this file that are not public knowledge but were re-estimated privately and charged to the ledger.
    """

    max_contributors: int | None = Field(default=None, ge=1)
    paid_schema: PaidSchema | None = None


class SampleSection(_Section):
    """``[sample]``: how much to draw; more costs nothing.

    Attributes
    ----------
    patients : int, optional
        Default: the released (noisy) number of patients.
    tables : int
        How many tables to draw from the one noisy model, for users who combine estimates; all but the first are
        written as ``patients-2.parquet``, ``visits-2.parquet`` and so on.
    """

    patients: int | None = Field(default=None, ge=1)
    tables: int = Field(default=1, ge=1, le=20)


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
    events: dict[str, EventsSection] = Field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    privacy: SynthesisPrivacy
    method: MethodSection = MethodSection()
    public: SynthesisPublic = SynthesisPublic()
    sample: SampleSection = SampleSection()
    evaluation: EvaluationSection = EvaluationSection()
    ledger: LedgerSection = LedgerSection()
    linkage: LinkageSection = LinkageSection()
    output: SynthesisOutput = SynthesisOutput()

    @model_validator(mode="after")
    def _whole(self) -> SynthesisStudy:
        if self.privacy.delta is None and self.public.max_contributors is None:
            raise ValueError(
                "give [privacy] delta, or [public] max_contributors (delta is then 0.1 / max_contributors)"
            )
        self._known("target", self.method.target)
        self._known("outcome", self.evaluation.outcome)
        if self.evaluation.metrics != "internal" and self.evaluation.holdout == 0:
            raise ValueError("[evaluation] metrics are paid for by patients set aside: give holdout, for example 0.2")
        if self.evaluation.metrics != "internal" and self.privacy.budget != "equal":
            least, price = min(self.privacy.budget.levels.values()), self.evaluation.metrics.epsilon
            if price > least:
                raise ValueError(
                    f"[evaluation] metrics cost every patient set aside epsilon {price:g}, and "
                    f"some agreed to {least:g}: give metrics = {{epsilon = {least:g}}} or less"
                )
        if self.evaluation.metrics != "internal" and (self.evaluation.outcome or self.method.target) is None:
            raise ValueError('[evaluation] metrics need an outcome that models predict: outcome = "COLUMN"')
        for group in self.evaluation.subgroups:
            self._known("subgroups", group)
        for name in self.evaluation.predictors or ():
            self._known("predictors", name)
        if self.privacy.budget != "equal" and self.privacy.budget.column not in self.patients.columns:
            raise ValueError('the budget column must be declared under [patients.columns] (role = "attribute")')
        if self.privacy.budget != "equal" and self.method.name in WITHOUT_BUDGETS:
            raise ValueError(
                f'the method "{self.method.name}" cannot honour budgets by column; use the method "patient-unit"'
            )
        if self.rules and self.method.name in WITHOUT_RULES:
            raise ValueError(f"the method {self.method.name!r} cannot keep rules; use the method 'patient-unit'")
        if not self.features(self.patients):
            raise ValueError("[patients.columns] declares no column to synthesise, for example sex")
        if not set(self.events).isdisjoint({"patients", "visits", "table"}):
            raise ValueError("an event table cannot be called patients, visits or table")
        if sum(section.share for section in self.events.values()) > 0.9:
            raise ValueError("the shares of the event tables leave less than a tenth of the budget for the main tables")
        for name in ("visits", *self.events):
            self._check_since(name)
        self.domain()
        for name in self.events:
            self.event_domain(name)
        self.row_rules()
        if (limit := self.evaluation.over_time) is not None:
            column = self.features(self.patients).get(limit.column)
            if column is None or column.type not in ("integer", "real", "date"):
                raise ValueError(f"over_time names {limit.column!r}, which is no number or date of [patients.columns]")
            column.number(limit.cut)
        return self

    def _known(self, what: str, name: str | None) -> None:
        if name is not None and name not in self._names():
            close = nearest(name, self._names())
            raise ValueError(f"{what} names {name!r}" + (f"; did you mean {close!r}?" if close else ""))

    def _check_since(self, table: str) -> None:
        section = self.visits if table == "visits" else self.events[table]
        for name, column in (section.columns if section is not None else {}).items():
            if column.since not in (None, "first") and column.since not in self.patients.columns:
                raise ValueError(
                    f"{name!r} is counted since {column.since!r}, which is not under [patients.columns] "
                    '(role = "ignore" keeps it out of the synthesis)'
                )

    @property
    def delta(self) -> float:
        """The delta of the claim."""
        if self.privacy.delta is not None:
            return self.privacy.delta
        assert self.public.max_contributors is not None
        return 0.1 / self.public.max_contributors

    @property
    def share(self) -> float:
        """Part of the squared Gaussian budget for patients and visits; the rest goes to the event tables."""
        return 1.0 - sum(section.share for section in self.events.values())

    def features(self, section: PatientsSection | VisitsSection | None) -> dict[str, SynthesisColumn]:
        """Return the columns of a section that are synthesised."""
        if section is None:
            return {}
        return {name: column for name, column in section.columns.items() if column.role == "feature"}

    def _names(self) -> list[str]:
        return [*self.features(self.patients), *self.features(self.visits)]

    def given(self, name: str) -> dict[str, SynthesisColumn]:
        """Return the patient's columns that an event table is generated from."""
        columns, chosen = self.features(self.patients), self.events[name].given
        for wanted in chosen or ():
            if wanted not in columns:
                close = nearest(wanted, columns)
                raise ValueError(
                    f"[events.{name}] given names {wanted!r}" + (f"; did you mean {close!r}?" if close else "")
                )
        return {key: column for key, column in columns.items() if chosen is None or key in chosen}

    def domain(self) -> Domain:
        """Return the coded domain of patients and visits."""
        return _domain(self.features(self.patients), self.visits, self.features(self.visits), self.method.target)

    def event_domain(self, name: str) -> Domain:
        """Return the coded domain of an event table with the patient's columns it is generated from."""
        section = self.events[name]
        domain = _domain(self.given(name), section, self.features(section), None)
        return replace(domain, static=(*domain.static, *self.beside(name)))

    def beside(self, name: str) -> tuple[Column, ...]:
        """Return, for every table an event table stands beside, the column of how many rows a patient has there."""
        section, before = self.events[name], list(self.events)[: list(self.events).index(name)]
        known = ["visits", *before] if self.visits is not None else before
        for other in section.beside:
            if other not in known:
                raise ValueError(
                    f"[events.{name}] beside names {other!r}; it may name "
                    + (", ".join(known) if known else "nothing here, as no table stands before it")
                )
        return tuple(Column(f"rows in {other}", len(self.row_bins(other)), ordinal=True) for other in section.beside)

    def row_bins(self, table: str) -> tuple[int, ...]:
        """Return the starts of the public bins of how many rows a patient has in a table: 0, 1, 2, 4, 8 and so on."""
        section = self.visits if table == "visits" else self.events[table]
        assert section is not None
        return tuple(start for start in visit_bins(section.max_visits, 2.0) if start >= section.min_visits)

    def synthesizer(self) -> Synthesizer:
        """Return the method that was asked for."""
        return METHODS[self.method.name](self.method)

    def row_rules(self, table: str = "visits") -> tuple[RowRule, ...]:
        """Return the rules of patients and visits, or of an event table, over codes."""
        unknown = [rule.table for rule in self.rules if rule.table not in ("visits", *self.events)]
        if unknown:
            raise ValueError(f"a rule names the table {unknown[0]!r}; known are {', '.join(('visits', *self.events))}")
        columns = self.columns_of(table)
        return tuple(row_rule(rule, columns) for rule in self.rules if rule.table == table)

    def columns_of(self, table: str) -> Columns:
        """Return where the columns of a table and of its patients stand."""
        if table == "visits":
            return Columns(
                self.features(self.patients), self.features(self.visits), self.visits.time if self.visits else None
            )
        section = self.events[table]
        return Columns(self.given(table), self.features(section), section.time)

    def check_useful(self) -> None:
        """Refuse a budget with which even as many patients as could be there would say nothing.

        Raises
        ------
        UnreachableError
            Names the smallest useful epsilon for this schema.
        """
        people = self.public.max_contributors or round(1 / self.delta)
        epsilon = self.privacy.epsilon
        least = smallest_useful_epsilon(self.domain(), people, self.delta)
        if epsilon < least * (1 - 1e-9):
            raise UnreachableError(
                f"epsilon {epsilon:g} is too small for this schema: even with {people:,} patients (the public upper "
                "bound) the noise would be larger than what the one-way tables can say",
                where="[privacy] epsilon",
                expected=f"at least {least:.2g} for these columns and bins",
                remedy="raise epsilon, or declare fewer columns and coarser bins; nothing was spent",
            )


def _domain(
    static: dict[str, SynthesisColumn],
    section: VisitsSection | None,
    visit: dict[str, SynthesisColumn],
    target: str | None,
) -> Domain:
    return Domain(
        tuple(column.coded(name) for name, column in static.items()),
        tuple(column.coded(name) for name, column in visit.items()),
        max_visits=section.max_visits if section else 1,
        min_visits=section.min_visits if section else 0,
        time=section.time if section else None,
        target=target,
    )


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
        raise explain(error, _section_at(error), where) from None


def _section_at(error: ValidationError) -> type[BaseModel]:
    """Return the section that an error is about, so that the nearest key is looked for where the wrong one stands."""
    model: type[BaseModel] = SynthesisStudy
    for part in error.errors()[0]["loc"][:-1]:
        found = model.model_fields.get(str(part))
        inner = _models_in(found.annotation) if found is not None else []
        if inner:
            model = inner[0]
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
