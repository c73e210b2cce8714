"""The price of trying several configurations and keeping the best one.

The number of runs is drawn from a public law before the first run, and only the winner is shown.

>>> from confide.accounting import Gaussian
>>> base = Gaussian(noise_multiplier=4.0).guarantee()
>>> search = PrivateSelection(base, law="negative-binomial", shape=1.0, success=0.1)
>>> base.epsilon(1e-6) < search.guarantee().epsilon(1e-6) < 3.5 * base.epsilon(1e-6)
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from confide.accounting.guarantee import Guarantee
from confide.accounting.mechanisms import RELATIONS, Mechanism, _number
from confide.accounting.pairs import Floats, Pair
from confide.accounting.renyi import RDP_ORDERS
from confide.errors import InputError


@dataclass(frozen=True)
class PrivateSelection(Mechanism):
    """Run a private procedure a random number of times and release the best result (Papernot and Steinke 2022).

    Parameters
    ----------
    base : Guarantee
        What one run costs: training and scoring, dominating every candidate.
    law : str
        "negative-binomial" (truncated at 1; Theorem 2), "poisson" (Theorem 6), or "geometric": after every run stop
        with probability `success` (the random stopping of Liu and Talwar 2019, the negative binomial of shape 1).
    shape, success : float
        eta > -1 and gamma in (0, 1) of the negative binomial; shape 1 is geometric with mean 1 / gamma.
    mean : float
        Mean of the Poisson law.
    """

    base: Guarantee
    law: str = "negative-binomial"
    shape: float = 1.0
    success: float = 0.1
    mean: float = 10.0
    relation: str = ""
    kind: ClassVar[str] = "private-selection"
    relations: ClassVar[tuple[str, ...]] = RELATIONS
    renyi_only: ClassVar[bool] = True
    assumed_public: ClassVar[tuple[str, ...]] = ("the candidates", "the law of the number of runs")

    def __post_init__(self) -> None:
        if isinstance(self.base, Mapping):
            object.__setattr__(self, "base", Guarantee.from_dict(self.base))
        if self.law not in ("negative-binomial", "poisson", "geometric"):
            raise InputError(f"unknown law {self.law!r}", expected="negative-binomial, geometric or poisson")
        if self.law == "geometric" and self.shape != 1.0:
            raise InputError(f"shape is {self.shape!r}", expected="no shape: random stopping has shape 1")
        if not self.shape > -1:
            raise InputError(f"shape is {self.shape!r}", expected="a number above -1")
        if not 0 < self.success < 1:
            raise InputError(f"success is {self.success!r}", expected="a number strictly between 0 and 1")
        _number("mean", self.mean, 0, math.inf)
        object.__setattr__(self, "relation", self.relation or self.base.relation)
        if self.relation != self.base.relation:
            raise InputError("the selection and its base have different neighbouring relations")

    @property
    def expected_runs(self) -> float:
        """Expected number of runs."""
        if self.law == "poisson":
            return self.mean
        g, e = self.success, self.shape
        return (1 / g - 1) / math.log(1 / g) if e == 0 else e * (1 - g) / (g * (1 - g**e))

    def pair(self) -> Pair | None:
        """No single pair is known; the Renyi curve is."""
        return None

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return the Renyi curve [orders] of the whole search."""
        a = np.asarray(orders, float)
        base = self.base.rdp(a)
        extra = math.log(self.expected_runs) / (a - 1)
        if self.law != "poisson":
            # Any second order may be used: take the best one on the grid.
            other = self.base.rdp(RDP_ORDERS)
            second = (1 + self.shape) * ((1 - 1 / RDP_ORDERS) * other - math.log(self.success) / RDP_ORDERS)
            curve = np.maximum(base + float(np.min(second)) + extra, 0.0)
            # A pure epsilon becomes (2 + shape) epsilon (Liu and Talwar 2019 for shape 1: three times).
            return np.asarray(np.minimum(curve, (2 + self.shape) * self.base.pure_epsilon))
        # Poisson: at order a needs an (epsilon, delta) with exp(epsilon) <= 1 + 1 / (a - 1).
        deltas = self.base.deltas(np.log1p(1 / (a - 1)))
        return np.asarray(np.maximum(base + self.mean * deltas + extra, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description that `mechanism_from_dict` reads back."""
        return {**super().to_dict(), "base": self.base.to_dict()}
