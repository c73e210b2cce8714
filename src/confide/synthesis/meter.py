"""The only door between private tables and what is computed from them: every look is noised, metered and on record.

>>> meter = Meter(epsilon=1.0, delta=1e-5, noise=OSNoise())
>>> noisy = meter.gaussian("number of patients", np.array([219.0]), sensitivity=1.0, share=0.1)
>>> round(meter.guarantee().epsilon(1e-5), 2) <= 1.0
True

Everything released through `Meter.gaussian` is Gaussian with standard deviation sensitivity / mu_i, and the squares of
the mu_i add up to at most mu^2 of the whole budget, however the shares were chosen on the way: fully adaptive
composition holds for Gaussian differential privacy (Smith and Thakurta, "Fully adaptive composition for Gaussian
differential privacy", 2022, Theorem 3.1). Methods that select with the exponential mechanism fix every parameter
before the first look, so that ordinary composition applies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from confide.accounting import Gaussian, Guarantee, Mechanism, compose
from confide.errors import BudgetError, InputError
from confide.mechanisms import NoiseSource, OSNoise
from confide.synthesis.domain import Floats


@dataclass(frozen=True, repr=False, eq=False)
class Look:
    """One pass over the private tables: what was asked, its exact answer, what it claimed and what was released."""

    name: str
    exact: Floats
    sensitivity: float
    released: Any


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu such that mu-GDP implies (epsilon, delta).

    Balle and Wang, "Improving the Gaussian mechanism", ICML 2018, Theorem 8; rounded down by 1e-9 relative so that the
    certified reading of the accountant stays at or under `epsilon`.
    """
    if not (epsilon > 0 and 0 < delta < 1):
        raise InputError(f"the budget is ({epsilon}, {delta})", expected="epsilon above 0 and delta between 0 and 1")

    def excess(mu: float) -> float:
        second = math.exp(min(epsilon, 700.0) + stats.norm.logcdf(-epsilon / mu - mu / 2))
        return float(stats.norm.cdf(-epsilon / mu + mu / 2) - second) - delta

    root = float(optimize.brentq(excess, 1e-6, 50.0 + 2 * math.sqrt(epsilon), xtol=1e-14, rtol=1e-13))
    certified = Gaussian(noise_multiplier=1 / root).guarantee()
    while certified.epsilon(delta) > epsilon:  # the accountant reads at the safe end of its interval
        root *= 1 - 1e-5
        certified = Gaussian(noise_multiplier=1 / root).guarantee()
    return root


class Meter:
    """Draws noise for answers from private tables and keeps the account.

    Parameters
    ----------
    epsilon, delta : float
        The whole budget of one patient with all visits.
    noise : NoiseSource, optional
        Default: seeded by the operating system. A source that rounds gets its rounding margin added to every
        sensitivity.
    smallest : float
        Smallest declared share of a patient's part (individual budgets), public: rounding does not shrink with the
        part, so its margin is counted against the smallest one.
    record : bool
        Keep exact answers (for tests and internal figures only; the record never leaves).
    replay : sequence, optional
        Released answers to give instead of noised ones, in order: with them a neighbouring data set is walked through
        the same control flow (for tests).
    """

    def __init__(
        self,
        *,
        epsilon: float,
        delta: float,
        noise: NoiseSource | None = None,
        smallest: float = 1.0,
        record: bool = False,
        replay: list[Any] | None = None,
    ) -> None:
        self.epsilon, self.delta = float(epsilon), float(delta)
        self.mu = gaussian_mu(epsilon, delta)
        self.noise = noise if noise is not None else OSNoise()
        self._smallest = min(1.0, float(smallest))
        self._record, self._replay = record, list(replay) if replay is not None else None
        self._left = 1.0
        self.parts: list[Mechanism] = []
        self.looks: list[Look] = []

    @property
    def left(self) -> float:
        """Share of the squared Gaussian budget that is not yet spent."""
        return self._left

    def deviation(self, sensitivity: float, share: float) -> float:
        """Standard deviation of the noise that `gaussian` will add."""
        return sensitivity / (self.mu * math.sqrt(share))

    def gaussian(self, name: str, exact: Floats, *, sensitivity: float, share: float) -> Floats:
        """Release `exact` plus Gaussian noise for a share of the budget.

        Parameters
        ----------
        name : str
            What is asked, public.
        exact : float array
            Sum over patients; one patient with all visits moves it by at most `sensitivity` in the Euclidean norm.
        sensitivity : float
        share : float
            Part of mu^2; all shares of a meter add up to at most 1.

        Raises
        ------
        BudgetError
            If more than the remaining budget is asked for.
        """
        if not 0 < share <= self._left * (1 + 1e-9):
            raise BudgetError(
                f"{name} asks for {share:.3f} of the budget and {self._left:.3f} is left",
                expected="shares that add up to at most 1",
            )
        self._left = max(0.0, self._left - share)
        multiplier = 1 / (self.mu * math.sqrt(share))
        exact = np.asarray(exact, dtype=np.float64)
        # rounding to a lattice may enlarge one patient's part by `margin` per unit of the noise's own scale
        margin = self.noise.margin(exact.size, scale=1.0) / self._smallest
        if margin * multiplier >= 0.5:
            raise InputError(
                f"{name}: this noise source is too coarse for {exact.size} cells",
                remedy='use noise = "os", or declare fewer bins',
            )
        deviation = sensitivity * multiplier / (1 - margin * multiplier)
        self.parts.append(Gaussian(noise_multiplier=multiplier))
        released = self.noise.add_normal(exact, scale=deviation)
        return np.asarray(self._put(name, exact, sensitivity, released), dtype=np.float64)

    def _put(self, name: str, exact: Floats, sensitivity: float, released: Any) -> Any:
        if self._replay is not None:
            released = self._replay.pop(0)
        if self._record:  # never in a real run: the record holds exact answers
            self.looks.append(Look(name, exact.copy(), sensitivity, released))
        return released

    def guarantee(self) -> Guarantee:
        """Return the composed guarantee of a patient for everything released so far."""
        if not self.parts:
            raise InputError("nothing was released yet", expected="at least one look at the data")
        return compose([part.guarantee() for part in self.parts])
