"""What adversaries really achieve: canaries in the real training loop, and what their success proves.

>>> from confide.audit import Outcome, epsilon_lower_bound
>>> round(epsilon_lower_bound(Outcome(3, 500, 240, 500), delta=1e-5), 2)
3.31
"""

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
from confide.audit.canary import AuditReport, Inclusion, canary_audit
from confide.audit.scores import Halves, split_halves, step_scores, thresholds
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
