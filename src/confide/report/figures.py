"""`InternalFigures`: everything un-noised that a run may show its own people, and nothing that may leave.

>>> figures = InternalFigures(name="pbc-death", learning=[Curve(label="loss", x=[0, 1], y=[0.7, 0.6])])
>>> InternalFigures.model_validate_json(figures.to_json()) == figures
True

The runner of a study fills it; `internal_report` draws it; `figures.json` in the internal folder holds it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

# JSON has no nan: an undefined figure is written as null.
Number = Annotated[
    float | None, PlainSerializer(lambda v: None if v is None or v != v or v in (float("inf"), float("-inf")) else v)
]


class Figure(BaseModel):
    """Base: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


class Curve(Figure):
    """A line: learning curve, ROC curve."""

    label: str
    x: list[Number]
    y: list[Number]
    y_label: str = "mean training loss"


class BatchSizes(Figure):
    """How many units took part in each step, beside what the plan expects."""

    unit: str = "contributors"
    expected: Number
    realised: list[int]


class Measured(Figure):
    """One exact metric of one model on held-out people, with its interval."""

    model: str = Field(description="'this release', 'non-private', 'truncate(1)', ...")
    metric: str = "AUROC"
    value: Number
    low: Number = None
    high: Number = None
    level: float = 0.95
    role: Literal["release", "baseline"] = "baseline"


class Reliability(Figure):
    """Calibration in bins: mean prediction, observed share, weight."""

    model: str
    predicted: list[Number]
    observed: list[Number]
    weight: list[Number]


class GroupFigure(Figure):
    """One metric of one declared group of held-out people; `suppressed` says why there is none."""

    attribute: str
    group: str
    metric: str = Field(description="'AUROC', 'accuracy_difference' (group minus everybody else), ...")
    model: str = "this release"
    value: Number = None
    low: Number = None
    high: Number = None
    contributors: int | None = None
    suppressed: str = ""


class Multiplicity(Figure):
    """How much of what people are told depends on the noise that was drawn.

    Attributes
    ----------
    models, admitted : int
        Trained under the same plan with other noise, and those that validation cannot tell apart.
    compared : bool
        False where validation people of one class alone left nothing to compare by: all are admitted.
    released : bool
        True where the models are the members of the released ensemble.
    ambiguity, discrepancy, disagreement : number
        Shares of held-out rows.
    capacity, capacity_high : number
        Rashomon capacity in bits: mean over rows, and the value that 5 in 100 exceed.
    conflict : list of number
        Expected share of rows in conflict for 1, 2, ... models.
    consistency : list of number
        Share of rows with a self-consistency of at most 0.1, 0.2, ... 1.
    coverage, accuracy, residual : number
        Of the unanimous ensemble of the admitted models, or of the released one by its own rule.
    votes : list of (coverage, accuracy)
        The same ensemble where a bare majority of its members, one more, ..., all have to agree.
    coverage_by_group : dict
        Attribute and group to coverage.
    price : str
        What releasing such an ensemble would cost.
    each : bool
        Whether the figures of each person lie beside the page.
    """

    models: int
    admitted: int
    compared: bool = True
    released: bool = False
    ambiguity: Number
    discrepancy: Number
    disagreement: Number
    capacity: Number = None
    capacity_high: Number = None
    conflict: list[Number]
    consistency: list[Number]
    coverage: Number
    accuracy: Number
    residual: Number
    votes: list[tuple[Number, Number]] = []
    coverage_by_group: dict[str, Number] = {}
    price: str = ""
    each: bool = False


class Event(Figure):
    """Something that was counted instead of silently happening."""

    what: str
    count: int
    meaning: str = ""


class Source(Figure):
    """What was read from one source."""

    source: str
    rows: int
    used: int
    refused: int = 0
    imputed: int = 0
    contributors: int | None = None
    sha256: str | None = None


class ColumnCount(Figure):
    """What a column held."""

    column: str
    kind: str = ""
    missing: int = 0
    outside: int = 0
    note: str = ""


class DataReport(Figure):
    """Exact counts about the data."""

    sources: list[Source] = []
    columns: list[ColumnCount] = []
    entry_counts: dict[int, int] = Field(default_factory=dict, description="entries k -> contributors with k entries")
    training_contributors: int | None = None
    training_entries: int | None = None
    held_out_contributors: int | None = None
    held_out_entries: int | None = None


class InternalFigures(Figure):
    """Un-noised figures of one run. Every field may be left out.

    Attributes
    ----------
    name : str
        Of the study.
    release : str
        Name of the release folder that these figures belong to.
    guarantee : str
        The guarantee of the release in one sentence, for orientation.
    learning : list of Curve
        Over steps; curves with the same `y_label` share a plot.
    batches : list of BatchSizes
    measured_per : str
        "contributor" or "entry".
    metrics : list of Measured
    roc : list of Curve
        False positive rate to true positive rate.
    calibration : list of Reliability
    selective : list of Curve
        Coverage to accuracy, the least certain predictions deferred first.
    groups, group_notes : lists
        Figures by declared group, and how they were made.
    multiplicity : Multiplicity
    budgets : list of Measured
    slices : list of Curve
        Mean weight of every slice by model and class; curves with the same `y_label` (the orientation) share a plot.
    events : list of Event
    data : DataReport
    timing : dict of str to float
        Seconds.
    notes : list of str
    """

    name: str
    created: str = ""
    release: str = ""
    guarantee: str = ""
    learning: list[Curve] = []
    batches: list[BatchSizes] = []
    measured_per: Literal["contributor", "entry"] = "contributor"
    metrics: list[Measured] = []
    roc: list[Curve] = []
    calibration: list[Reliability] = []
    selective: list[Curve] = []
    groups: list[GroupFigure] = []
    group_notes: list[str] = []
    multiplicity: Multiplicity | None = None
    budgets: list[Measured] = Field(default=[], description="AUROC of models made for other budgets, named 'epsilon 4'")
    slices: list[Curve] = []
    events: list[Event] = []
    data: DataReport | None = None
    timing: dict[str, float] = {}
    notes: list[str] = []
    extra: dict[str, Any] = Field(default_factory=dict, description="anything else; kept in figures.json, not drawn")

    def to_json(self) -> str:
        """Return the content of `figures.json`."""
        return self.model_dump_json(indent=2) + "\n"
