"""Pages people can read: of a release, of internal figures, of risk. One file each, no network, printable.

`release_report` is made of public facts alone; `internal_report` of un-noised figures, and it says so on every page.
"""

from confide.report.figures import (
    BatchSizes,
    ColumnCount,
    Curve,
    DataReport,
    Event,
    InternalFigures,
    Measured,
    Reliability,
    Source,
)
from confide.report.format import Column, Table, epsilon, interval, number, percent, plural, scientific
from confide.report.internal_page import internal_report
from confide.report.page import UNPROTECTED
from confide.report.release_page import attacker_sentence, guarantee_sentence, release_report
from confide.report.risk_page import RiskCase, risk_cases, risk_report
from confide.report.table_evaluation import table_evaluation_report
from confide.report.table_figures import (
    ColumnView,
    Coverage,
    CoxRow,
    Difference,
    Distance,
    Game,
    Inference,
    Pairing,
    Subgroup,
    SurvivalView,
    TableFigures,
    Trained,
    Utility,
    Violation,
)
from confide.report.table_release import table_release_report

__all__ = [
    "UNPROTECTED",
    "BatchSizes",
    "Column",
    "ColumnCount",
    "ColumnView",
    "Coverage",
    "CoxRow",
    "Curve",
    "DataReport",
    "Difference",
    "Distance",
    "Event",
    "Game",
    "Inference",
    "InternalFigures",
    "Measured",
    "Pairing",
    "Reliability",
    "RiskCase",
    "Source",
    "Subgroup",
    "SurvivalView",
    "Table",
    "TableFigures",
    "Trained",
    "Utility",
    "Violation",
    "attacker_sentence",
    "epsilon",
    "guarantee_sentence",
    "internal_report",
    "interval",
    "number",
    "percent",
    "plural",
    "release_report",
    "risk_cases",
    "risk_report",
    "scientific",
    "table_evaluation_report",
    "table_release_report",
]
