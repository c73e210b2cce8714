"""What adversaries really achieve: canaries in the real training loop, and what their success proves.

>>> from confide.audit import Outcome, epsilon_lower_bound
>>> round(epsilon_lower_bound(Outcome(3, 500, 240, 500), delta=1e-5), 2)
3.31
"""

from typing import TYPE_CHECKING, Any

from confide.audit.bounds import (
    Outcome,
    Violation,
    attainable_under_gdp,
    clopper_pearson,
    epsilon_lower_bound,
    epsilon_under_gdp,
    largest_epsilon_under_gdp,
    mu_lower_bound,
    tradeoff_violation,
)
from confide.audit.scores import Halves, split_halves, step_scores, thresholds

if TYPE_CHECKING:
    from confide.audit.canary import AuditReport, Inclusion, canary_audit
    from confide.audit.simulation import CanaryRun, run_canaries

__all__ = [
    "AuditReport",
    "CanaryRun",
    "Halves",
    "Inclusion",
    "Outcome",
    "Violation",
    "attainable_under_gdp",
    "canary_audit",
    "clopper_pearson",
    "epsilon_lower_bound",
    "epsilon_under_gdp",
    "largest_epsilon_under_gdp",
    "mu_lower_bound",
    "run_canaries",
    "split_halves",
    "step_scores",
    "thresholds",
    "tradeoff_violation",
]

# Audits of training need PyTorch; the game against synthetic tables does not, and must not ask for it.
_WITH_TORCH = {
    "AuditReport": "canary",
    "CanaryRun": "simulation",
    "Inclusion": "canary",
    "canary_audit": "canary",
    "run_canaries": "simulation",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"confide.audit.{_WITH_TORCH[name]}"), name)
