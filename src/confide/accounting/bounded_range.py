"""The exponential mechanism by its bounded range: tighter than any account of its pure epsilon alone.

>>> one = Exponential(epsilon=0.5).guarantee(steps=20)
>>> from confide.accounting.more_mechanisms import RandomisedResponse
>>> one.epsilon(1e-6) < 0.6 * RandomisedResponse(0.5, relation="add/remove").guarantee(steps=20).epsilon(1e-6)
True

Choosing with probability proportional to exp(epsilon u / (2 sensitivity)) has losses in an interval [t - epsilon, t]
for a t in [0, epsilon] (Durfee and Rogers 2019). By convexity the worst such mechanism at each t answers with one of
the two ends; its hockey-stick divergence at level x is largest at t = (x + epsilon) / 2 and there equals

    H(x) = (1 - exp((x - epsilon) / 2))^2 / (1 - exp(-epsilon)),   |x| <= epsilon

(Dong, Durfee and Rogers 2020, Lemma 3.2 in another form). The largest of convex curves is convex, so H is that of a
pair (Zhu, Dong and Wang 2022, Proposition 15), which dominates under adaptive composition: its loss has density
proportional to exp(-x / 2) without and exp(x / 2) with, on [-epsilon, epsilon]. It is tight for one use at every level.
Over many uses no mechanism is the worst at all levels at once, so the Renyi curve is read as well, and the smaller of
the two is stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from confide.accounting.mechanisms import RELATIONS, Mechanism, _number
from confide.accounting.pairs import _UNIT, Cells, Floats, Nodes, _Whole
from confide.accounting.renyi import RDP_ORDERS

__all__ = ["BoundedRangePair", "Exponential"]

# Ranges of t that are bounded together in the Renyi divergence.
_PIECES = 400


@dataclass(frozen=True)
class BoundedRangePair(_Whole):
    """Loss x in [-e, e] with density c exp(x / 2) under P and c exp(-x / 2) under Q; the module says why."""

    range: float

    @property
    def bound(self) -> float:
        """Largest absolute loss."""
        return self.range * (1 + 1e-15)

    def cells(self, edges: Floats) -> Cells:
        """Return the masses of P and Q between increasing privacy losses `edges`."""
        e = self.range
        x = np.clip(edges, -e, e)
        left, right = np.concatenate([[-e], x]), np.concatenate([x, [e]])
        middle = -np.expm1((left - right) / 2) / -math.expm1(-e)
        q = np.exp(-(left + e) / 2) * middle
        p = np.exp((right - e) / 2) * middle
        with np.errstate(divide="ignore"):
            error = 8 * _UNIT * (1 + (1 + e) / np.where(right > left, right - left, 1.0))
        return Cells(p, q, error, 8 * _UNIT * float(np.max(np.abs(edges), initial=1.0)))

    def span(self, tail: float) -> tuple[float, float]:
        """Return losses (low, high) with Q(loss < low) <= tail and P(loss > high) <= tail."""
        return -self.range, self.range

    def nodes(self, tail: float) -> Nodes:
        """Return a coarse quadrature of the pair, exact enough to choose grids with."""
        edges = np.linspace(-self.range, self.range, 402)
        cells = self.cells(edges[1:-1])
        loss = (edges[:-1] + edges[1:]) / 2
        return Nodes(loss, np.log(cells.p), np.log(cells.q))


def bounded_range_rdp(bounded: float, orders: Floats = RDP_ORDERS) -> Floats:
    """Return Renyi divergences [orders] of any mechanism of bounded range `bounded`, never below the true value.

    The worst mechanism for each t answers with one of two losses; the t of a short piece share the two losses that
    contain all of theirs. Never above order * bounded^2 / 8 (Cesar and Rogers 2021) or the range itself.
    """
    a = np.asarray(orders, float)[:, None]
    t = np.linspace(0.0, bounded, _PIECES + 1)
    top, bottom = t[1:], t[:-1] - bounded
    # Q(top) from E_Q[exp(loss)] = 1; the losses are bottom and top.
    chance = -np.expm1(bottom) / (np.exp(top) - np.exp(bottom))
    with np.errstate(divide="ignore"):
        terms = np.logaddexp(np.log(chance) + a * top, np.log1p(-chance) + a * bottom)
    value = np.max(terms, axis=1) / (a[:, 0] - 1)
    simple = np.minimum(a[:, 0] * bounded * bounded / 8, bounded)
    return np.asarray(np.minimum(value * (1 + 1e-12) + 1e-15, simple * (1 + 1e-15)))


@dataclass(frozen=True)
class Exponential(Mechanism):
    """The exponential mechanism (report-noisy-max with Gumbel noise) of bounded range and pure epsilon `epsilon`.

    Parameters
    ----------
    epsilon : float
        Candidates are chosen with probability proportional to exp(epsilon u / (2 sensitivity)), or, where one
        contributor moves all scores in the same direction, to exp(epsilon u / sensitivity).
    """

    epsilon: float
    relation: str = "add/remove"
    kind: ClassVar[str] = "exponential"
    relations: ClassVar[tuple[str, ...]] = RELATIONS
    renyi_too: ClassVar[bool] = True
    assumed_public: ClassVar[tuple[str, ...]] = ("the candidates",)

    def __post_init__(self) -> None:
        _number("epsilon", self.epsilon, 0, 700)
        self._check_relation()

    def pair(self) -> BoundedRangePair:
        """Return the pair that dominates every mechanism of this bounded range."""
        return BoundedRangePair(float(self.epsilon))

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return the largest Renyi divergence of a mechanism of this bounded range, its error added."""
        return bounded_range_rdp(float(self.epsilon), orders)
