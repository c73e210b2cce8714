"""The tables of a synthesis study and what may be measured on them afterwards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from confide.data import SourceSpec
from confide.synthesis.columns import SynthesisColumn


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True)


class TableSection(SourceSpec):
    """A table of the study.

    Attributes
    ----------
    columns : mapping of name to SynthesisColumn
    undeclared : "refuse" or "ignore"
        What happens to columns of the source that are not declared.
    """

    columns: dict[str, SynthesisColumn] = Field(min_length=1)
    undeclared: Literal["refuse", "ignore"] = "refuse"


class PatientsSection(TableSection):
    """``[patients]``: one row a patient.

    Attributes
    ----------
    repeated : bool
        The source has several rows a patient that agree in all declared columns (a visit table with the patient's facts
        on every row); a patient whose rows differ is refused.
    stream : bool, optional
        Whether the tables (Parquet) are read and coded a part at a time, so that memory does not grow with rows.
        Default: where they are Parquet files of together 64 MiB or more. Both ways give the same answers and the same
        release; only time, memory and room on disk differ.
    """

    repeated: bool = False
    stream: bool | None = None


class VisitsSection(TableSection):
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

    time: str
    max_visits: int = Field(ge=1, le=10_000)
    min_visits: Literal[0, 1] = 0

    @model_validator(mode="after")
    def _time_is_declared(self) -> VisitsSection:
        column = self.columns.get(self.time)
        if column is None:
            raise ValueError(f"time names {self.time!r}, which is not among the columns of its table")
        if column.type not in ("real", "integer", "date") or column.missing == "indicator":
            raise ValueError(f"the time column {self.time!r} must be a number or a date that is never missing")
        return self


class EventsSection(VisitsSection):
    """``[events.NAME]``: a further table of events in order (relapses, treatments), generated from the patient's row.

    What it has to do with other tables beyond the patient's columns is carried by numbers of rows (`beside`).

    Attributes
    ----------
    given : tuple of str, optional
        The patient's columns it depends on; default all of them. Fewer columns leave more budget for the events.
    beside : tuple of str
        Tables whose number of rows a patient has (in public bins that double) matters for these events: "visits", or
        event tables declared before this one. Patients with many relapses then are those with many treatments.
    share : float
        Part of the squared Gaussian budget.
    """

    max_visits: int = Field(ge=1, le=10_000, alias="max_events")
    min_visits: Literal[0, 1] = Field(default=0, alias="min_events")
    given: tuple[str, ...] | None = Field(default=None, min_length=1)
    beside: tuple[str, ...] = ()
    share: float = Field(default=0.2, gt=0, lt=1)

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True)


class OverTime(_Section):
    """``over_time = {column = "start", cut = 2018}``: prediction over time.

    Patients whose `column` is at or after `cut` take no part in the synthesis: models trained on the synthetic table
    of the earlier ones are tested on the later ones. A patient is on one side with all visits.
    """

    column: str
    cut: Any


class Survival(_Section):
    """``survival = {time = "futime", event = "status", is = [1], covariates = ["age", "sex"]}``: time to an event."""

    time: str
    event: str
    values: tuple[Any, ...] = Field(alias="is")
    covariates: tuple[str, ...] = ()
    horizon: float | None = Field(default=None, gt=0)


class PaidFigure(_Section):
    """``metrics = {epsilon = 0.5}``: what the patients who were set aside pay for a figure that may leave."""

    epsilon: float = Field(gt=0)


class EvaluationSection(_Section):
    """``[evaluation]``: who is kept out of the synthesis, and what is measured on them. Internal, unless paid for.

    Attributes
    ----------
    holdout : float
        Share of patients set aside before anything is learnt, by a public coin: a hash of the patient's id and `split`.
        They are not charged for the tables, only for what `metrics` costs.
    split : str, optional
        Label of the coin; default the study's name. The same label gives the same split in every study.
    metrics : "internal" or PaidFigure
        Whether the release says how well a model that was trained on the synthetic table does on the patients who were
        set aside: AUROC, accuracy and prevalence with their intervals, through noise, charged to these patients.
    outcome : str, optional
        What models on the synthetic table predict; default [method] target.
    predictors : tuple of str, optional
        Columns that models see; default all others. Leave out what is only known after the outcome.
    positive : tuple, optional
        Values of the outcome that count as 1; default its last category.
    subgroups : tuple of str
        Columns whose groups are looked at one by one.
    survival, over_time : optional
    """

    holdout: float = Field(default=0.0, ge=0, le=0.9)
    split: str | None = None
    outcome: str | None = None
    predictors: tuple[str, ...] | None = None
    positive: tuple[Any, ...] | None = None
    subgroups: tuple[str, ...] = ()
    survival: Survival | None = None
    over_time: OverTime | None = None
    metrics: Literal["internal"] | PaidFigure = "internal"
