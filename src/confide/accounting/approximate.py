"""A budget with a failure probability, for choices that are private but for a rare event (partition selection).

>>> from confide.accounting.approximate import ApproximateBudget
>>> g = ApproximateBudget(epsilon=0.5, failure=1e-8).guarantee()
>>> bool(g.epsilon(1e-6) < 0.51)
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from confide.accounting.mechanisms import RELATIONS, _number
from confide.accounting.more_mechanisms import _Atoms
from confide.accounting.pairs import Floats


@dataclass(frozen=True)
class ApproximateBudget(_Atoms):
    """Anything that is (epsilon, delta)-DP: a budget rather than a mechanism, such as a choice that fails rarely.

    Kairouz, Oh and Viswanath 2015, Theorem 3.4 (its pair): with probability `failure` the answer tells who it is about,
    otherwise it is randomised response. Every (epsilon, delta) mechanism is a post-processing of it. The Renyi
    divergence is infinite; a ledger sets the failure apart instead.
    """

    epsilon: float
    failure: float
    relation: str = "add/remove"
    kind: ClassVar[str] = "approximate-budget"
    relations: ClassVar[tuple[str, ...]] = RELATIONS

    def __post_init__(self) -> None:
        _number("epsilon", self.epsilon, 0, 700)
        _number("failure", self.failure, 0, 1)
        self._check_relation()

    def _atoms(self) -> tuple[Floats, Floats]:
        yes, no = -np.log1p(np.exp(-self.epsilon)), -self.epsilon - np.log1p(np.exp(-self.epsilon))
        tells = np.log(self.failure) if self.failure > 0 else -np.inf
        rest = np.log1p(-self.failure)
        p = np.array([tells, rest + yes, rest + no, -np.inf])
        return p, p[::-1].copy()
