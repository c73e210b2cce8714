"""Before anything is spent: policies, calibrated plans, strategies side by side.

>>> from confide.planning import plan
>>> p = plan({1: 17503, 2: 4113}, epsilon=4.0, delta=1e-6, noise_multiplier=1.0, steps=2000)
>>> [round(c.epsilon, 1) for c in p.classes]
[4.0, 4.0]

A `Policy` maps (own number of entries, own budget) to a rate and a clip; a `Plan` adds noise, steps and the guarantee
of every class; `compare` shows what each strategy would use, cost and favour. Nothing here loads PyTorch or a table
library, and nothing here sees data: only declared, paid or (stamped) previewed counts come in.
"""

from confide.planning.comparison import Comparison, Estimand, Row
from confide.planning.histogram import STAMP, EntryCounts
from confide.planning.options import QuantileClipping
from confide.planning.planner import plan
from confide.planning.plans import Plan, PlanClass
from confide.planning.policy import STRATEGIES, Assignment, Policy, resolve_strategy
from confide.planning.rules import BudgetRule
from confide.planning.search import Search
from confide.planning.side_by_side import NOISE_MULTIPLIERS, OVERPROTECTED_BELOW, SearchPrice, compare, search_price

__all__ = [
    "NOISE_MULTIPLIERS",
    "OVERPROTECTED_BELOW",
    "STAMP",
    "STRATEGIES",
    "Assignment",
    "BudgetRule",
    "Comparison",
    "EntryCounts",
    "Estimand",
    "Plan",
    "PlanClass",
    "Policy",
    "QuantileClipping",
    "Row",
    "Search",
    "SearchPrice",
    "compare",
    "plan",
    "resolve_strategy",
    "search_price",
]
