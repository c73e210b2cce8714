"""Private synthetic tables of patients with many visits: the patient is the unit, not the row.

>>> from confide.synthesis import Column, Domain, Meter, Panel, PatientUnit
>>> domain = Domain(static=(Column("sex", 2),), visit=(Column("stage", 3, ordinal=True),), max_visits=4, min_visits=1)
>>> panel = Panel.from_codes(domain, static=[[i % 2] for i in range(500)], visit=[[i % 3] for i in range(1000)],
...                          counts=[2] * 500)
>>> model = PatientUnit().fit(panel, Meter(epsilon=1.0, delta=1e-5))
>>> model.guarantee().epsilon(1e-5) <= 1.0
True
>>> model.sample(10).patients
10
"""

from confide.synthesis.aim import FlatAIM
from confide.synthesis.autoregressive import Autoregressive
from confide.synthesis.base import Measurement, NoisyModel, RowRule, Synthesizer
from confide.synthesis.domain import Column, Domain, Panel
from confide.synthesis.flow import SplineFlow
from confide.synthesis.meter import Meter
from confide.synthesis.pategan import PateGAN
from confide.synthesis.patient_unit import PatientUnit
from confide.synthesis.stream import StreamedPanel
from confide.synthesis.trees import FlatTree

__all__ = [
    "Autoregressive",
    "Column",
    "Domain",
    "FlatAIM",
    "FlatTree",
    "Measurement",
    "Meter",
    "NoisyModel",
    "Panel",
    "PateGAN",
    "PatientUnit",
    "RowRule",
    "SplineFlow",
    "StreamedPanel",
    "Synthesizer",
]
