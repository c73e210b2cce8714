"""The methods a study can name, behind one interface: name -> what builds the synthesiser from ``[method]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from confide.synthesis.base import Synthesizer
from confide.synthesis.patient_unit import PatientUnit
from confide.synthesis.trees import FlatTree


class Options(Protocol):
    """What a builder may read: the ``[method]`` section of a study."""

    @property
    def estimand(self) -> Any:
        """Per visit or per patient."""

    @property
    def cap(self) -> float:
        """Rows of a patient that count fully, for flat baselines."""


METHODS: dict[str, Callable[[Options], Synthesizer]] = {
    "patient-unit": lambda m: PatientUnit(estimand=m.estimand),
    "independence": lambda m: PatientUnit(estimand=m.estimand, structure="none"),
    "mst": lambda m: FlatTree(cap=m.cap),
}
# Flat baselines draw rows without order, so that no rule can be kept from visit to visit.
WITHOUT_RULES = frozenset({"mst"})
