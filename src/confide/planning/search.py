"""A search for hyper-parameters as a part of the plan: its public law, and the rates that pay for it.

>>> search = Search("negative-binomial", mean_runs=10.0, score_noise_multiplier=20.0)
>>> from confide.accounting import SampledGaussian
>>> one = SampledGaussian(2.0, 0.01).guarantee(300)
>>> one.epsilon(1e-5) < search.over(one).epsilon(1e-5)
True

Every run trains one candidate and asks one noisy score; the run with the best score is shown, and nothing else. One
Renyi curve a class covers all candidates, because none of them changes noise multiplier, steps or rates: it is that of
training and score composed, raised to the price of showing the best of a random number of runs (Papernot and Steinke,
"Hyperparameter tuning with Renyi differential privacy", ICLR 2022, Theorems 2 and 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.accounting import RDP_ORDERS, Gaussian, Guarantee, PrivateSelection, SampledGaussian, success_for
from confide.errors import InputError, UnreachableError, nearest
from confide.planning.policy import Costs, positive

__all__ = ["LAWS", "Search", "SearchedCosts", "costs_for"]

LAWS = ("negative-binomial", "poisson")
F64 = npt.NDArray[np.float64]
# Solutions lie this far below the budget at most, as a share of it (in epsilon).
_SLACK = 2e-3
# While solving, this many orders on either side of the best one are read.
_AROUND = 5


@dataclass(frozen=True)
class Search:
    """The public terms of a search.

    Parameters
    ----------
    law : str
        "negative-binomial" (truncated at 1: at least one run) or "poisson" (no run at all is possible: then the
        untrained model of the first candidate is released, which no data has touched).
    mean_runs : float, optional
        Mean number of runs; or give `success` for the negative binomial.
    shape : float
        eta of the negative binomial, above -1. 0, the logarithmic law, is cheap for its mean; 1 is geometric.
    success : float, optional
        gamma of the negative binomial.
    score_noise_multiplier : float
        Noise of one score over what one contributor can move it by.
    """

    law: str
    mean_runs: float | None = None
    shape: float = 0.0
    success: float | None = None
    score_noise_multiplier: float = 10.0

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            close = nearest(str(self.law), LAWS)
            raise InputError(
                f"unknown law {self.law!r} of the number of runs",
                where="search law",
                expected=" or ".join(LAWS),
                remedy=f"did you mean {close!r}?" if close else None,
            )
        positive(self.score_noise_multiplier, "search score_noise_multiplier")
        if self.mean_runs is not None:
            positive(self.mean_runs, "search mean_runs")
        if self.law == "poisson" and (self.success is not None or self.mean_runs is None):
            raise InputError(
                "the poisson law is given by its mean", where="search", expected="mean_runs, and no success or shape"
            )
        if self.law == "negative-binomial" and (self.success is None) == (self.mean_runs is None):
            raise InputError(
                "the negative binomial is given by its mean or by gamma",
                where="search",
                expected="mean_runs, or success (gamma), with shape (eta)",
            )
        self.over(Gaussian(1.0).guarantee())  # the accountant refuses what is out of range

    @cached_property
    def _terms(self) -> dict[str, Any]:
        if self.law == "poisson":
            return {"law": self.law, "mean": float(self.mean_runs or 0.0)}
        success = success_for(self.shape, float(self.mean_runs)) if self.mean_runs is not None else self.success
        return {"law": self.law, "shape": float(self.shape), "success": float(success or 0.0)}

    @property
    def terms(self) -> dict[str, Any]:
        """Arguments of the law, as `PrivateSelection` and `confide.mechanisms.draw_runs` take them."""
        return dict(self._terms)

    @property
    def expected_runs(self) -> float:
        """Mean number of runs."""
        return PrivateSelection(Gaussian(1.0).guarantee(), **self._terms).expected_runs

    def base(self, training: Guarantee) -> Guarantee:
        """Return what one run costs: training and one score."""
        score = Gaussian(float(self.score_noise_multiplier), relation=training.relation)
        parts = (*training.parts, (score, 1))
        return Guarantee(parts)

    def selection(self, training: Guarantee) -> PrivateSelection:
        """Return the whole search as one mechanism."""
        return PrivateSelection(self.base(training), **self._terms)

    def over(self, training: Guarantee) -> Guarantee:
        """Return the guarantee of the whole search, whose runs each cost `training` and one score."""
        return self.selection(training).guarantee()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "law": self.law,
            "mean_runs": self.mean_runs,
            "shape": self.shape,
            "success": self.success,
            "score_noise_multiplier": self.score_noise_multiplier,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Search:
        """Read what `to_dict` wrote.

        Raises
        ------
        InputError
            A missing or unknown key, or a value out of range.
        """
        try:
            return cls(**dict(values))
        except TypeError as error:
            raise InputError(
                f"a search that cannot be read: {error}", where="plan", expected="Plan.to_dict()"
            ) from error


class SearchedCosts(Costs):
    """Calibrated rates and clips whose *searched* guarantee meets the budget; see `Costs`."""

    def __init__(self, noise_multiplier: float, steps: int, delta: float, search: Search) -> None:
        super().__init__(noise_multiplier, steps, delta)
        self.search = search

    def rates(self, entries: Sequence[int], budgets: Sequence[float]) -> F64:
        """Return the largest rate at which the whole search of each (k, epsilon) meets its budget."""
        keys = [(int(k), float(b)) for k, b in zip(entries, budgets, strict=True)]
        guess = 0.05
        for k, b in sorted(set(keys) - self._rates.keys()):
            rate, spent = self._solve(b, lambda p, k=k: (k, min(p, 1.0), 1.0), guess / k, 1.0)
            self._rates[k, b], self._rate_bounds[k, b] = rate, spent
            guess = rate * k  # neighbours of the same budget draw nearly the same number
        return np.array([self._rates[key] for key in keys])

    def clips(self, entries: Sequence[int], budgets: Sequence[float], rate: float) -> F64:
        """Return the largest clip, at most 1, at which the whole search of each (k, epsilon) meets its budget."""
        keys = [(int(k), float(b), float(rate)) for k, b in zip(entries, budgets, strict=True)]
        guess = 1.0
        for k, b, p in sorted(set(keys) - self._clips.keys()):
            clip, spent = self._solve(b, lambda c, k=k: (k, rate, c), min(guess / k, 1.0), 1.0)
            self._clips[k, b, p], self._clip_bounds[k, b, p] = clip, spent
            guess = clip * k
        return np.array([self._clips[key] for key in keys])

    def spent(self, entries: Sequence[int], rates: Sequence[float], clips: Sequence[float]) -> F64:
        """Return the epsilon of the whole search for each (k, rate, clip), never below the true one."""
        keys = [(int(k), float(p), float(c)) for k, p, c in zip(entries, rates, clips, strict=True)]
        for key in set(keys) - self._spent.keys():
            self._spent[key] = self._searched(*key).guarantee().epsilon(self.delta)
        return np.array([self._spent[key] for key in keys])

    def _searched(self, entries: int, rate: float, clip: float) -> PrivateSelection:
        return self.search.selection(SampledGaussian(self.noise_multiplier, rate, entries, clip).guarantee(self.steps))

    @cached_property
    def least(self) -> float:
        """Epsilon of a search whose training never touches the contributor: below it no rate can go."""
        return self._searched(1, 0.0, 1.0).guarantee().epsilon(self.delta)

    def _solve(self, budget: float, at: Any, start: float, ceiling: float) -> tuple[float, float]:
        """Return nearly the largest x in (0, ceiling] within the budget, and its epsilon (both from the safe side)."""
        if self.least >= budget * (1 - _SLACK):
            raise UnreachableError(
                f"no plan meets a budget of {budget:g} with this search: scores and the choice alone spend "
                f"{self.least:.4g}",
                where=f"epsilon, with delta {self.delta:g}",
                expected=f"an epsilon well above {self.least:.4g}",
                remedy="raise epsilon or score_noise_multiplier, or lower mean_runs",
            )
        x, orders = start, self._orders(at(start), budget)

        def cost(value: float) -> float:
            return self._searched(*at(value)).epsilon_at(self.delta, orders)

        for _ in range(4):
            x = self._largest(cost, budget, x, ceiling)
            if not x:
                return 0.0, self.least
            # every order counts in what is stated: it can only be less than what a few of them gave
            whole = self._searched(*at(x)).guarantee().epsilon(self.delta)
            if x >= ceiling or whole >= (1 - 2 * _SLACK) * budget:
                break
            orders = self._orders(at(x), budget)
        return x, whole

    def _largest(self, cost: Callable[[float], float], budget: float, start: float, ceiling: float) -> float:
        """Return nearly the largest x in (0, ceiling] with cost(x) <= budget, by regula falsi in logarithms; or 0."""
        x, good, good_cost, bad, bad_cost = start, 0.0, 0.0, math.inf, math.inf
        floor = 0.999 * self.least  # what does not depend on x
        aim = math.log((1 - _SLACK / 2) * budget - floor)
        for _ in range(40):
            value = cost(x)
            if value <= budget:
                good, good_cost = x, value
                if x >= ceiling or value >= (1 - _SLACK) * budget:
                    break
            else:
                bad, bad_cost = x, value
            if bad == math.inf:
                x = min(ceiling, x * min(4.0, math.exp(aim) / max(good_cost - floor, 1e-9)))
            elif good == 0.0:
                finite = math.isfinite(bad_cost)
                x *= max(0.05, min(0.999, math.exp(aim) / (bad_cost - floor))) if finite else 0.2
            else:
                low = math.log(max(good_cost - floor, 1e-12))
                share = (aim - low) / (math.log(bad_cost - floor) - low) if math.isfinite(bad_cost) else 0.5
                x = good * (bad / good) ** min(max(share, 0.03), 0.97)
            if good and bad / good < 1 + 1e-7:
                break
        return good

    def _orders(self, where: tuple[int, float, float], budget: float) -> F64:
        """Return the orders that matter near a class's budget: of the conversion and, for the second, of the price."""
        entries, rate, clip = where
        for _ in range(6):
            search = self._searched(entries, rate, clip)
            curve = search.rdp(RDP_ORDERS)
            epsilon = curve + np.log1p(-1 / RDP_ORDERS) - (np.log(self.delta) + np.log(RDP_ORDERS)) / (RDP_ORDERS - 1)
            best = int(np.argmin(np.where(np.isfinite(epsilon), epsilon, np.inf)))
            if epsilon[best] <= 3 * budget:
                break
            rate, clip = (rate / 2, clip) if rate < 1 else (rate, clip / 2)
        chosen = {best, search.second_order}
        near = {i for j in chosen for i in range(max(0, j - _AROUND), min(j + _AROUND + 1, len(RDP_ORDERS)))}
        return np.asarray(RDP_ORDERS[sorted(near)])


def costs_for(noise_multiplier: float, steps: int, delta: float, search: Search | None) -> Costs:
    """Return the calibration of a plan with or without a search."""
    if search is None:
        return Costs(noise_multiplier, steps, delta)
    return SearchedCosts(noise_multiplier, steps, delta, search)
