"""The methods a study can name, behind one interface: name -> what builds the synthesiser from ``[method]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from confide.synthesis.aim import FlatAIM
from confide.synthesis.autoregressive import Autoregressive
from confide.synthesis.base import Synthesizer
from confide.synthesis.flow import SplineFlow
from confide.synthesis.pategan import PateGAN
from confide.synthesis.patient_unit import PatientUnit
from confide.synthesis.trees import FlatTree


class Options(Protocol):
    """What a builder may read: the ``[method]`` section of a study."""

    @property
    def estimand(self) -> Any:
        """Per visit or per patient."""

    @property
    def focus(self) -> Any:
        """Histories or single visits."""

    @property
    def cap(self) -> float:
        """Rows of a patient that count fully, for flat baselines."""

    @property
    def slots(self) -> int:
        """First visits of a patient that "aim" keeps."""


METHODS: dict[str, Callable[[Options], Synthesizer]] = {
    "patient-unit": lambda m: PatientUnit(estimand=m.estimand, focus=m.focus),
    "independence": lambda m: PatientUnit(estimand=m.estimand, structure="none"),
    "mst": lambda m: FlatTree(cap=m.cap),
    "aim": lambda m: FlatAIM(visits=m.slots),
    "autoregressive": lambda m: Autoregressive(),
    "flow": lambda m: SplineFlow(),
    "pate-gan": lambda m: PateGAN(),
}
# Flat baselines draw rows without order, so that no rule can be kept from visit to visit; a flow draws a visit at once.
WITHOUT_RULES = frozenset({"mst", "aim", "flow", "pate-gan"})
# A vote is counted in whole teachers and cannot be scaled to a patient's own budget.
WITHOUT_BUDGETS = frozenset({"pate-gan"})
# Methods that only ask for sums over patients can read tables a part at a time.
STREAMED = frozenset({"patient-unit", "independence", "mst"})
