"""The only door between private tables and what is computed from them: every look is noised, metered and on record.

>>> meter = Meter(epsilon=1.0, delta=1e-5, noise=OSNoise())
>>> noisy = meter.gaussian("number of patients", np.array([219.0]), sensitivity=1.0, share=0.1)
>>> round(meter.guarantee().epsilon(1e-5), 2) <= 1.0
True

Everything released through `Meter.gaussian` is Gaussian with standard deviation sensitivity / mu_i, and the squares of
the mu_i add up to at most mu^2 of the whole budget, however the shares were chosen on the way: fully adaptive
composition holds for Gaussian differential privacy (Smith and Thakurta, "Fully adaptive composition for Gaussian
differential privacy", 2022, Theorem 3.1). A choice by the exponential mechanism (`Meter.choose`) is charged with the mu
of the Gaussian mechanism that is everywhere easier to attack than it (`choice_epsilon`).

A meter with a `journal` writes every released answer down before it is used, so that a run that was killed goes on with
the answers it had (and paid for) instead of asking again: see `confide.synthesis.journal`.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from scipy import optimize, special

from confide.accounting import Gaussian, Guarantee, Mechanism, compose
from confide.errors import BudgetError, InputError
from confide.mechanisms import NoiseSource, OSNoise
from confide.synthesis.domain import Floats


@dataclass(frozen=True, repr=False, eq=False)
class Look:
    """One pass over the private tables: what was asked, its exact answer, what it claimed and what was released.

    `norm` says in which norm one patient moves the exact answer by at most `sensitivity`: 2 (Gaussian noise), or
    "inf" (scores of a choice).
    """

    name: str
    exact: Floats
    sensitivity: float
    released: Any
    norm: str = "2"


class Journal(Protocol):
    """Where a meter writes released answers down, and finds those of an earlier, killed run of the same study."""

    key: bytes

    def next(self, name: str) -> Any | None:
        """Return the next answer of the earlier run, or None if it had come no further."""
        ...

    def write(self, name: str, released: Any) -> None:
        """Keep an answer for good; returns when it is on disk."""
        ...


@lru_cache(maxsize=4096)
def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu such that mu-GDP implies (epsilon, delta).

    Balle and Wang, "Improving the Gaussian mechanism", ICML 2018, Theorem 8; rounded down by 1e-9 relative so that the
    certified reading of the accountant stays at or under `epsilon`.
    """
    if not (epsilon > 0 and 0 < delta < 1):
        raise InputError(f"the budget is ({epsilon}, {delta})", expected="epsilon above 0 and delta between 0 and 1")

    def excess(mu: float) -> float:
        second = math.exp(min(epsilon, 700.0) + special.log_ndtr(-epsilon / mu - mu / 2))
        return float(special.ndtr(-epsilon / mu + mu / 2) - second) - delta

    root = float(optimize.brentq(excess, 1e-6, 50.0 + 2 * math.sqrt(epsilon), xtol=1e-14, rtol=1e-13))
    certified = Gaussian(noise_multiplier=1 / root).guarantee()
    while certified.epsilon(delta) > epsilon:  # the accountant reads at the safe end of its interval
        root *= 1 - 1e-5
        certified = Gaussian(noise_multiplier=1 / root).guarantee()
    return root


@lru_cache(maxsize=4096)
def choice_epsilon(mu: float) -> float:
    """Return the parameter of an exponential mechanism that a mu-GDP budget pays for.

    The exponential mechanism with parameter epsilon has privacy losses in an interval [t - epsilon, t] for some t
    (bounded range; Dong, Durfee and Rogers, "Optimal differential privacy composition for exponential mechanisms",
    ICML 2020), so the two-point pair on the ends of that interval dominates it. Its trade-off function is a polygon
    with one inner corner, and since the region above a Gaussian trade-off function is convex, the polygon lies in it
    as soon as the corner does: mu(t) = PhiInv(p) - PhiInv(q). Taken at the worst t.
    """

    def cost(epsilon: float) -> float:
        t = epsilon * np.linspace(0.005, 0.995, 199)
        q = -np.expm1(t - epsilon) / (np.exp(t) - np.exp(t - epsilon))
        p = np.minimum(q * np.exp(t), 1 - 1e-16)
        return float(np.max(special.ndtri(p) - special.ndtri(q)))

    high = 1.0
    while cost(high) < mu and high < 64:
        high *= 2
    if high >= 64:
        return 32.0
    # the grid over t misses the maximum by less than one part in a thousand
    return float(optimize.brentq(lambda e: cost(e) - mu, 1e-7, high, xtol=1e-12)) * (1 - 1e-3)


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
    part : float
        Part of the squared Gaussian budget that this meter may spend; other meters hold the rest (event tables).
    record : bool
        Keep exact answers (for tests and internal figures only; the record never leaves).
    replay : sequence, optional
        Released answers to give instead of noised ones, in order: with them a neighbouring data set is walked through
        the same control flow (for tests).
    journal : Journal, optional
        Makes the run resumable.
    progress : function, optional
        Called with (what was asked, share of the budget spent so far) after every answer.
    """

    def __init__(
        self,
        *,
        epsilon: float,
        delta: float,
        noise: NoiseSource | None = None,
        smallest: float = 1.0,
        part: float = 1.0,
        record: bool = False,
        replay: list[Any] | None = None,
        journal: Journal | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self.epsilon, self.delta = float(epsilon), float(delta)
        if not 0 < part <= 1:
            raise InputError(f"a meter was given {part} of the budget", expected="a part above 0 and at most 1")
        self.mu = gaussian_mu(epsilon, delta) * math.sqrt(part)
        self.noise = noise if noise is not None else OSNoise()
        self._smallest = min(1.0, float(smallest))
        self._record, self._replay = record, list(replay) if replay is not None else None
        self._journal, self._progress = journal, progress
        self._left = 1.0
        # a test that repeats the noise repeats the coins, too
        fixed = self._replay is not None or self.noise.testing_only
        self._key = journal.key if journal is not None else bytes(32) if fixed else secrets.token_bytes(32)
        self.parts: list[Mechanism] = []
        self.looks: list[Look] = []

    @property
    def left(self) -> float:
        """Share of the squared Gaussian budget that is not yet spent."""
        return self._left

    def coins(self, purpose: str) -> np.random.Generator:
        """Return a secret generator for coins (partitions, starting values), the same again after a resume."""
        words = np.frombuffer(self._key, dtype=np.uint32).tolist()
        return np.random.default_rng([*words, *purpose.encode()])

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
        self._spend(name, share)
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
        found = self._put(name, exact, sensitivity, lambda: self.noise.add_normal(exact, scale=deviation), "2")
        return np.asarray(found, dtype=np.float64)

    def choose(
        self,
        name: str,
        scores: Floats,
        *,
        sensitivity: float,
        share: float,
        allowed: Callable[[int], bool] | None = None,
    ) -> int:
        """Choose a candidate with a high score by the exponential mechanism, for a share of the budget.

        Parameters
        ----------
        name : str
        scores : float array, shape (candidates,)
            One patient with all visits moves every score by at most `sensitivity`.
        sensitivity : float
        share : float
            Part of mu^2; see `choice_epsilon` for what it buys.
        allowed : function, optional
            Whether a candidate may be chosen, from released figures alone. Asked in descending order of noisy score,
            which is the exponential mechanism over the allowed candidates (Gumbel noise).

        Raises
        ------
        BudgetError
            More than the remaining budget is asked for.
        InputError
            No candidate is allowed.
        """
        self._spend(name, share)
        mu = self.mu * math.sqrt(share)
        self.parts.append(Gaussian(noise_multiplier=1 / mu))
        scores = np.asarray(scores, dtype=np.float64)

        def draw() -> int:
            uniform = np.clip(self.noise.uniform(len(scores)), 1e-300, 1 - 1e-16)
            noisy = scores * (choice_epsilon(mu) / (2 * sensitivity)) - np.log(-np.log(uniform))
            for candidate in np.argsort(-noisy, kind="stable"):
                if allowed is None or allowed(int(candidate)):
                    return int(candidate)
            raise InputError(f"{name}: there is nothing to choose from", expected="at least one allowed candidate")

        return int(self._put(name, scores, sensitivity, draw, "inf"))

    def _spend(self, name: str, share: float) -> None:
        if not 0 < share <= self._left * (1 + 1e-9):
            raise BudgetError(
                f"{name} asks for {share:.3f} of the budget and {self._left:.3f} is left",
                expected="shares that add up to at most 1",
            )
        self._left = max(0.0, self._left - share)

    def _put(self, name: str, exact: Floats, sensitivity: float, draw: Callable[[], Any], norm: str) -> Any:
        if self._replay is not None:
            released = self._replay.pop(0)
        else:
            released = self._journal.next(name) if self._journal is not None else None
            if released is None:
                released = draw()
                if self._journal is not None:
                    self._journal.write(name, released)
        if self._record:  # never in a real run: the record holds exact answers
            self.looks.append(Look(name, exact.copy(), sensitivity, released, norm))
        if self._progress is not None:
            self._progress(name, 1.0 - self._left)
        return released

    def guarantee(self) -> Guarantee:
        """Return the composed guarantee of a patient for everything released so far."""
        if not self.parts:
            raise InputError("nothing was released yet", expected="at least one look at the data")
        return compose([part.guarantee() for part in self.parts])
