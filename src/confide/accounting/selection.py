"""The price of trying several configurations and keeping the best one.

The number of runs is drawn from a public law before the first run, and only the winner is shown.

>>> from confide.accounting import Gaussian
>>> base = Gaussian(noise_multiplier=4.0).guarantee()
>>> search = PrivateSelection(base, law="negative-binomial", shape=1.0, success=0.1)
>>> base.epsilon(1e-6) < search.guarantee().epsilon(1e-6) < 3.5 * base.epsilon(1e-6)
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from confide.accounting.guarantee import Guarantee
from confide.accounting.mechanisms import RELATIONS, Mechanism, _number
from confide.accounting.pairs import Floats, Pair
from confide.accounting.renyi import RDP_ORDERS, rdp_epsilon
from confide.errors import InputError


def mean_of_runs(shape: float, success: float) -> float:
    """Return the mean of the negative binomial truncated at 1, shape eta, success gamma (0: its limit)."""
    if shape == 0:
        return (1 / success - 1) / math.log(1 / success)
    return shape * (1 - success) / (success * -math.expm1(shape * math.log(success)))


def success_for(shape: float, mean: float) -> float:
    """Return the success gamma at which the truncated negative binomial of this shape has this mean.

    Raises
    ------
    InputError
        If the mean is not above 1: at least one run is made.
    """
    if not 1 < mean < math.inf:
        raise InputError(
            f"a mean of {mean!r} runs", expected="a number above 1: the truncated negative binomial makes one at least"
        )
    from scipy import optimize  # its import costs more than all of this package

    try:
        found = optimize.brentq(lambda u: math.log(mean_of_runs(shape, math.exp(u)) / mean), -700.0, -1e-9)
    except ValueError as error:
        raise InputError(f"no law of shape {shape:g} has a mean of {mean:g} runs", expected="another shape") from error
    return float(math.exp(found))


@lru_cache(maxsize=4096)
def _base_rdp(base: Guarantee, orders: tuple[float, ...]) -> Floats:
    """Return the curve of what one run costs; asked for again by every read-out of a search."""
    return base.rdp(np.array(orders))


@lru_cache(maxsize=4096)
def _base_deltas(base: Guarantee, orders: tuple[float, ...]) -> Floats:
    return base.deltas(np.log1p(1 / (np.array(orders) - 1)))


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
        return mean_of_runs(self.shape, self.success)

    def pair(self) -> Pair | None:
        """No single pair is known; the Renyi curve is."""
        return None

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return the Renyi curve [orders] of the whole search."""
        a = np.asarray(orders, float)
        known = self._curve(RDP_ORDERS, RDP_ORDERS)
        # A Renyi divergence grows with its order, and this bound need not: a higher order's bound serves below it.
        least = np.append(np.minimum.accumulate(known[::-1])[::-1], np.inf)[np.searchsorted(RDP_ORDERS, a)]
        return np.asarray(least if a is RDP_ORDERS else np.minimum(self._curve(a, RDP_ORDERS), least))

    def _second(self, orders: Floats) -> Floats:
        other = _base_rdp(self.base, tuple(orders.tolist()))
        return np.asarray((1 + self.shape) * ((1 - 1 / orders) * other - math.log(self.success) / orders))

    @property
    def second_order(self) -> int:
        """Which of `RDP_ORDERS` serves best as the second order of Theorem 2 (0 under the Poisson law)."""
        return 0 if self.law == "poisson" else int(np.argmin(self._second(RDP_ORDERS)))

    def epsilon_at(self, delta: float, orders: Floats) -> float:
        """Return an upper bound on epsilon from `orders` alone: quicker and looser than `Guarantee.epsilon`."""
        a = np.asarray(orders, float)
        return rdp_epsilon(self._curve(a, a), delta, a)

    def _curve(self, a: Floats, seconds: Floats) -> Floats:
        base = _base_rdp(self.base, tuple(a.tolist()))
        if self.law != "poisson":
            # Any second order may be used: take the best one on the grid.
            second = self._second(seconds)
            curve = np.maximum(base + float(np.min(second)) + math.log(self.expected_runs) / (a - 1), 0.0)
            # A pure epsilon becomes (2 + shape) epsilon (Liu and Talwar 2019 for shape 1: three times).
            return np.asarray(np.minimum(curve, (2 + self.shape) * self.base.pure_epsilon))
        # Poisson: at order a needs an (epsilon, delta) with exp(epsilon) <= 1 + 1 / (a - 1).
        deltas = _base_deltas(self.base, tuple(a.tolist()))
        some = base + self.mean * deltas + math.log(self.mean) / (a - 1)
        # No run at all has the same probability exp(-mean) with everybody's data: it adds exactly that to the moment,
        # which Theorem 6 leaves out (with a mean below 1 its bound can be negative).
        with np.errstate(invalid="ignore"):
            curve = np.logaddexp(-self.mean, (a - 1) * some) / (a - 1)
        return np.asarray(np.maximum(np.where(np.isfinite(some), curve, np.inf), 0.0))

    def restated(self, relation: str) -> PrivateSelection:
        """Return the same search with its runs under another relation that the same pairs hold for."""
        parts = tuple((dataclasses.replace(m, relation=relation), n) for m, n in self.base.parts)  # type: ignore[type-var]
        return dataclasses.replace(self, base=Guarantee(parts), relation=relation)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description that `mechanism_from_dict` reads back."""
        return {**super().to_dict(), "base": self.base.to_dict()}
