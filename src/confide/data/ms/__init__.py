"""Multiple sclerosis: the tables of a registry, outcomes by a published definition, therapy cycles, and a SIMULATION.

>>> registry = simulate_registry(patients=50, seed=1)
>>> sorted(registry.tables())
['mri', 'patients', 'relapses', 'treatments', 'visits']

Real registries cannot be shipped. What `simulate_registry` returns is made up from declared coefficients and is called
a simulation wherever it is used; `read_registry` reads a real export in the same schema.
"""

from confide.data.ms.cycles import first_cycle_patients, linked_tables, therapy_cycles
from confide.data.ms.progression import Progression, confirmed_progression, smallest_change
from confide.data.ms.registry import Registry, read_registry, write_registry
from confide.data.ms.simulation import COEFFICIENTS, simulate_registry

__all__ = [
    "COEFFICIENTS",
    "Progression",
    "Registry",
    "confirmed_progression",
    "first_cycle_patients",
    "linked_tables",
    "read_registry",
    "simulate_registry",
    "smallest_change",
    "therapy_cycles",
    "write_registry",
]
