"""`TableFigures`: everything exact that was measured on a synthetic table, for the people who hold the real one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from confide.report.figures import Curve, Figure, Number


class ColumnView(Figure):
    """Shares of one column's cells: real training patients, synthetic, held-out patients."""

    column: str
    level: Literal["patient", "visit"]
    cells: list[str]
    real: list[Number]
    synthetic: list[Number]
    held_out: list[Number] | None = None
    distance: Number
    floor: Number = None


class Distance(Figure):
    """Total variation over all tables of so many columns.

    `floor` is that of held-out against training patients: what two samples of the same people differ by.
    """

    ways: int
    per: Literal["visit", "patient"]
    mean: Number
    floor: Number = None
    worst: Number
    worst_columns: list[str]
    worst_floor: Number = None
    tables: int
    ten_worst: list[tuple[list[str], Number, Number]] = Field(
        default_factory=list, description="columns, distance, floor"
    )


class Subgroup(Figure):
    """One group of patients: how far its columns are from the real group's."""

    column: str
    group: str
    patients: int
    distance: Number
    floor: Number = None


class Pairing(Figure):
    """One figure of the real table beside the same of the synthetic one."""

    what: str
    of: str = ""
    real: Number
    synthetic: Number
    held_out: Number = None
    distance: Number = None
    floor: Number = None


class Violation(Figure):
    """A declared rule: rows that break it, synthetic (has to be 0) and real."""

    rule: str
    synthetic: int
    real: int
    rows: int


class CoxRow(Figure):
    """A coefficient of a Cox model fitted on both tables, with the overlap of its 95% intervals (1: the same)."""

    term: str
    real: Number
    real_low: Number
    real_high: Number
    synthetic: Number
    synthetic_low: Number
    synthetic_high: Number
    overlap: Number


class SurvivalView(Figure):
    """Time to an event: Kaplan-Meier curves, restricted means, Cox models."""

    time: str
    event: str
    horizon: Number
    curves: list[Curve]
    restricted_mean: list[Pairing]
    cox: list[CoxRow] = Field(default_factory=list)
    note: str = ""


class Trained(Figure):
    """A learner, what it was trained on, and its AUROC on real people who took no part, with interval."""

    learner: str
    trained_on: str
    value: Number
    low: Number
    high: Number


class Difference(Figure):
    """A paired difference of AUROC over the same people, with its interval."""

    learner: str
    what: str
    value: Number
    low: Number
    high: Number


class Utility(Figure):
    """What models trained on the synthetic table are worth on real people."""

    outcome: str
    positive: list[str]
    unit: str
    people: int
    tested_on: str
    rows: list[Trained]
    differences: list[Difference]
    note: str = ""


class Coverage(Figure):
    """How often intervals of nominally 95% held the truth, in a simulation with a known truth."""

    rule: str
    coverage: Number
    width: Number
    estimands: int
    replicates: int


class Inference(Figure):
    """Error bars: of the released marginals on the real data, and of rules for several synthetic tables."""

    marginal_cells: int = 0
    marginal_inside: Number = None
    coverage: list[Coverage] = Field(default_factory=list)
    note: str = ""


class Game(Figure):
    """A membership game against the mechanism with planted patients: a lower bound on epsilon, never a proof."""

    canary: str
    runs: int
    false_positive: Number
    true_positive: Number
    epsilon_lower: Number
    claimed: Number
    largest_possible: Number
    advantage: Number
    note: str = ""


class TableFigures(Figure):
    """What ``confide evaluate`` measured; the content of ``evaluation.json``. Every part may be left out."""

    name: str
    release: str = ""
    created: str = ""
    guarantee: str = ""
    patients: dict[str, int] = Field(default_factory=dict)
    visits: dict[str, int] = Field(default_factory=dict)
    columns: list[ColumnView] = Field(default_factory=list)
    fidelity: list[Distance] = Field(default_factory=list)
    subgroups: list[Subgroup] = Field(default_factory=list)
    counts: ColumnView | None = None
    gaps: ColumnView | None = None
    longitudinal: list[Pairing] = Field(default_factory=list)
    course: list[Curve] = Field(default_factory=list, description="means over time; y_label names the column")
    missing: list[Pairing] = Field(default_factory=list)
    violations: list[Violation] = Field(default_factory=list)
    survival: SurvivalView | None = None
    utility: list[Utility] = Field(default_factory=list)
    inference: Inference | None = None
    audit: list[Game] = Field(default_factory=list)
    not_evidence: list[Pairing] = Field(default_factory=list)
    left_out: list[str] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)

    def to_json(self) -> str:
        """Return the content of ``evaluation.json``."""
        return self.model_dump_json(indent=1) + "\n"
