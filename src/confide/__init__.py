"""confide: learn from, synthesise and share medical data with a stated guarantee for every contributor.

>>> import confide
>>> plan = confide.plan(entry_counts={1: 17503, 2: 4113}, epsilon=4.0, delta=1e-6, noise_multiplier=1.0, steps=2000)
>>> [round(row.epsilon, 1) for row in plan.classes]
[4.0, 4.0]

Names are loaded when they are first used (PEP 562), so that planning never pays for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "plan": ("confide.planning", "plan"),
    "compare": ("confide.planning", "compare"),
    "Plan": ("confide.planning", "Plan"),
    "compose": ("confide.accounting", "compose"),
    "Ledger": ("confide.ledger", "Ledger"),
    "ContributorDataset": ("confide.training", "ContributorDataset"),
    "PrivateRun": ("confide.training", "PrivateRun"),
    "Trainer": ("confide.studies", "Trainer"),
    "load": ("confide.studies", "load"),
    "verify": ("confide.release", "verify"),
}

__all__ = [
    "ContributorDataset",
    "Ledger",
    "Plan",
    "PrivateRun",
    "Trainer",
    "compare",
    "compose",
    "load",
    "plan",
    "verify",
]

if TYPE_CHECKING:
    from confide.accounting import compose
    from confide.ledger import Ledger
    from confide.planning import Plan, compare, plan
    from confide.release import verify
    from confide.studies import Trainer, load
    from confide.training import ContributorDataset, PrivateRun


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        room, attribute = _WHERE[name]
        value = getattr(import_module(room), attribute)
        globals()[name] = value
        return value
    try:
        return import_module(f"confide.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"confide.{name}":
            raise
        raise AttributeError(f"module 'confide' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
