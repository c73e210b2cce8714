"""The public rule from (own number of entries, own budget) to a sampling rate and a clip.

>>> policy = Policy("individual", max_entries=4, noise_multiplier=1.0, steps=1000, delta=1e-5, reference_budget=2.0)
>>> table = policy.assign([1, 4], [2.0, 2.0])
>>> bool(table.rates[1] < table.rates[0] / 3.9), table.clips.tolist()
(True, [1.0, 1.0])

A policy never looks at anybody else: whatever other contributors have or ask for, the rate and the clip of a
(k, epsilon) stay the same bit for bit. This is what individualised sampling at a fixed batch size cannot offer
(Boenisch et al., NeurIPS 2023: rates re-balanced until the batch fits; Kaiser et al., SaTML 2026, arXiv 2601.12922:
one person's exposure then depends on everybody's budgets).

========================  ==============================================  ===========================================
strategy                  rate of each entry (or contributor)             clip of each entry, in units of C
========================  ==============================================  ===========================================
contributor, also (m)     q(1, epsilon), drawn as a person                1 for the mean of the drawn entries
individual                p(k, epsilon)                                   1
scale                     p(1, largest declared budget), one for all      C(k, epsilon) <= 1
uniform                   p(max_entries, epsilon)                         1
truncate(m)               p(m, epsilon), on a fixed random subset of m    1
per-entry                 p(1, epsilon): the budget holds per entry only  1
========================  ==============================================  ===========================================

p(k, epsilon) is the largest Poisson rate at which k entries of one person meet epsilon: the pair is
N(0, s^2) against sum_i Binomial(k, p)(i) N(i, s^2) (Choquette-Choo et al., arXiv 2310.15526, Cor. 4.7; tight by Charles
et al., arXiv 2407.07737). C(k, epsilon) is the largest clip that does so at the common rate of `scale`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from confide.accounting import SampledGaussian, epsilons, solve_clips, solve_rates
from confide.errors import InputError, nearest

__all__ = ["STRATEGIES", "Assignment", "Policy", "resolve_strategy"]

STRATEGIES = ("contributor", "individual", "scale", "uniform", "truncate(1)", "truncate(median)", "per-entry")
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def resolve_strategy(name: str, *, median: int | None = None) -> str:
    """Return the canonical name of a strategy, with `truncate(median)` turned into its number.

    Raises
    ------
    InputError
        Unknown name (the nearest one is offered), ``truncate(0)``, or a median where no histogram may be used.
    """
    text = str(name).strip().lower().replace(" ", "").replace("_", "-")
    match = re.fullmatch(r"(truncate|contributor)\(([^()]*)\)", text)
    if match and match[2] == "median" and match[1] == "truncate":
        if median is None:
            raise InputError(
                "truncate(median) needs the median number of entries, and no histogram was declared or paid for",
                where="strategy",
                expected="truncate(m) with a number, or a histogram of entry counts",
                remedy="declare the entry counts public, pay for a noisy histogram, or choose m without looking",
            )
        return f"truncate({median})"
    if match:
        if not re.fullmatch(r"[0-9]{1,12}", match[2]) or int(match[2]) < 1:
            raise InputError(
                f"{match[1]}({match[2]}) keeps no entries" if match[2].strip("0") == "" else f"{name!r} is no strategy",
                where="strategy",
                expected=f"{match[1]}(m) with a whole number m of 1 or more",
                remedy=f"{match[1]}(1) keeps one entry of everybody",
            )
        return f"{match[1]}({int(match[2])})"
    if text in STRATEGIES:
        return text
    if text == "truncate":
        raise InputError(
            "truncate needs the number of entries to keep", where="strategy", expected="truncate(1), truncate(4), ..."
        )
    close = nearest(text, STRATEGIES)
    raise InputError(
        f"unknown strategy {name!r}",
        where="strategy",
        expected="contributor, contributor(m), individual, scale, uniform, truncate(m), truncate(median) or per-entry",
        remedy=f"did you mean {close!r}?" if close else None,
    )


#: Beyond so many classes the calibration's own bound is stated; it is 0.3 % wider at most.
READ_EACH = 64


@dataclass(frozen=True)
class Assignment:
    """What a policy gives each of n classes.

    Attributes
    ----------
    rates : float64 array, shape (n,)
        Probability per step: of each entry, or of the contributor as one.
    clips : float64 array, shape (n,)
        Clip of each unit in units of the plan's clipping norm C; never above 1.
    used : int64 array, shape (n,)
        How many entries of such a contributor can enter a step.
    epsilon : float64 array, shape (n,)
        What the class really spends over all steps: the safe end, at the policy's delta.
    """

    rates: F64
    clips: F64
    used: I64
    epsilon: F64


class Costs:
    """Calibrated rates and spent epsilons at one (noise multiplier, steps, delta), each worked out once.

    Strategies share most of their numbers (five of them need p(1, epsilon)); this is a memory of pure functions and
    changes no value.
    """

    def __init__(self, noise_multiplier: float, steps: int, delta: float) -> None:
        self.noise_multiplier, self.steps, self.delta = noise_multiplier, steps, delta
        self._rates: dict[tuple[int, float], float] = {}
        self._clips: dict[tuple[int, float, float], float] = {}
        self._spent: dict[tuple[int, float, float], float] = {}
        self._rate_bounds: dict[tuple[int, float], float] = {}
        self._clip_bounds: dict[tuple[int, float, float], float] = {}

    def rate_bounds(self, entries: Sequence[int], budgets: Sequence[float]) -> F64:
        """Return the certified epsilon of the rates that `rates` gives: known from calibrating them."""
        self.rates(entries, budgets)
        return np.array([self._rate_bounds[int(k), float(b)] for k, b in zip(entries, budgets, strict=True)])

    def clip_bounds(self, entries: Sequence[int], budgets: Sequence[float], rate: float) -> F64:
        """Return the certified epsilon of the clips that `clips` gives: known from calibrating them."""
        self.clips(entries, budgets, rate)
        return np.array(
            [self._clip_bounds[int(k), float(b), float(rate)] for k, b in zip(entries, budgets, strict=True)]
        )

    def rates(self, entries: Sequence[int], budgets: Sequence[float]) -> F64:
        """Return the largest rate at which each (k, epsilon) meets its budget."""
        keys = [(int(k), float(b)) for k, b in zip(entries, budgets, strict=True)]
        new = sorted(set(keys) - self._rates.keys())
        if new:
            found, spent = solve_rates(
                np.array([k for k, _ in new], dtype=np.int64),
                np.array([b for _, b in new]),
                delta=self.delta,
                noise_multiplier=self.noise_multiplier,
                steps=self.steps,
            )
            self._rates.update(zip(new, map(float, found), strict=True))
            self._rate_bounds.update(zip(new, map(float, spent), strict=True))
        return np.array([self._rates[key] for key in keys])

    def clips(self, entries: Sequence[int], budgets: Sequence[float], rate: float) -> F64:
        """Return the largest clip, at most 1, at which each (k, epsilon) meets its budget at a common rate."""
        keys = [(int(k), float(b), float(rate)) for k, b in zip(entries, budgets, strict=True)]
        new = sorted(set(keys) - self._clips.keys())
        if new:
            found, spent = solve_clips(
                np.array([k for k, _, _ in new], dtype=np.int64),
                np.array([b for _, b, _ in new]),
                delta=self.delta,
                noise_multiplier=self.noise_multiplier,
                steps=self.steps,
                rate=rate,
            )
            self._clips.update(zip(new, (min(float(c), 1.0) for c in found), strict=True))
            # A clip cut down to 1 spends less than the one that was calibrated.
            for key, clip, bound in zip(new, found, spent, strict=True):
                self._clip_bounds[key] = float(bound) if clip <= 1 else float(self.spent([key[0]], [rate], [1.0])[0])
        return np.array([self._clips[key] for key in keys])

    def spent(self, entries: Sequence[int], rates: Sequence[float], clips: Sequence[float]) -> F64:
        """Return the epsilon of each (k, rate, clip), never below the true one."""
        keys = [(int(k), float(p), float(c)) for k, p, c in zip(entries, rates, clips, strict=True)]
        new = sorted(set(keys) - self._spent.keys())
        if new:
            found = epsilons(
                noise_multiplier=self.noise_multiplier,
                rate=np.array([p for _, p, _ in new]),
                entries=np.array([k for k, _, _ in new], dtype=np.int64),
                clip_norm=np.array([c for _, _, c in new]),
                steps=self.steps,
                delta=self.delta,
            )
            self._spent.update(zip(new, map(float, np.atleast_1d(found)), strict=True))
        return np.array([self._spent[key] for key in keys])


@dataclass(frozen=True)
class Policy:
    """A strategy with the public constants it needs; a pure function of one contributor's own figures.

    Parameters
    ----------
    strategy : str
        Canonical name, see `resolve_strategy`.
    max_entries : int
        Public bound K on the entries of one contributor; above it a fixed, uniformly random subset of K is used
        (strategy `contributor`: K anew in every step).
    noise_multiplier : float
        Noise standard deviation in units of the clipping norm.
    steps : int
        Number of steps, empty ones included.
    delta : float
        Delta at which budgets are stated.
    reference_budget : float
        Largest declared budget. Only `scale` uses it: its common rate is that of a one-entry contributor with this
        budget, so that no clip exceeds C and more signal per step can only come from more gradients per step.
    """

    strategy: str
    max_entries: int
    noise_multiplier: float
    steps: int
    delta: float
    reference_budget: float
    _costs: Costs | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", resolve_strategy(self.strategy))
        for name in ("max_entries", "steps"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name))
        for name in ("noise_multiplier", "reference_budget", "delta"):
            object.__setattr__(self, name, positive(getattr(self, name), name))
        if self.delta >= 1:
            raise InputError(
                f"delta is {self.delta:g}", where="delta", expected="a probability between 0 and 1, both excluded"
            )

    @cached_property
    def costs(self) -> Costs:
        """The memory of calibrated figures that policies with the same constants may share."""
        return self._costs or Costs(self.noise_multiplier, self.steps, self.delta)

    @property
    def clip_unit(self) -> str:
        """``"contributor"`` (a person's drawn entries are clipped as one) or ``"entry"``."""
        return "contributor" if self.strategy.startswith("contributor") else "entry"

    @property
    def limit(self) -> int:
        """Most entries of one contributor that can enter a step: min(m, max_entries)."""
        match = re.search(r"\((\d+)\)", self.strategy)
        return min(int(match[1]), self.max_entries) if match else self.max_entries

    def used(self, entries: npt.ArrayLike) -> I64:
        """Return how many entries of contributors with `entries` entries can enter one step."""
        return np.minimum(np.asarray(entries, dtype=np.int64), self.limit)

    def accounted(self, entries: npt.ArrayLike) -> I64:
        """Return the number of separately drawn and clipped units of a contributor, as the accountant counts them."""
        used = self.used(entries)
        return np.ones_like(used) if self.clip_unit == "contributor" else used

    def assign(self, entries: Sequence[int] | I64, budgets: Sequence[float] | F64) -> Assignment:
        """Return rate, clip, entries in use and spent epsilon of each (k, budget).

        Parameters
        ----------
        entries : int array, shape (n,)
            Own number of entries, 1 or more.
        budgets : float array, shape (n,)
            Own budget (epsilon).

        Returns
        -------
        Assignment
        """
        k = np.asarray(entries, dtype=np.int64)
        b = np.asarray(budgets, dtype=np.float64)
        ones = np.ones(len(k))
        costs = self.costs
        clips = ones
        if self.strategy.startswith("contributor") or self.strategy == "per-entry":
            rates = costs.rates(np.ones_like(k).tolist(), b.tolist())
        elif self.strategy == "individual":
            rates = costs.rates(self.used(k).tolist(), b.tolist())
        elif self.strategy == "scale":
            rate = float(costs.rates([1], [self.reference_budget])[0])
            rates = rate * ones
            clips = costs.clips(self.used(k).tolist(), b.tolist(), rate)
        else:
            # uniform and truncate(m): safe for the most entries anybody can use
            rates = costs.rates([self.limit] * len(k), b.tolist())
        # Each class's own figure takes about 10 ms; with many, the bound of the calibration (0.3 % wider) serves.
        many = len(k) > READ_EACH
        if many and self.strategy == "individual":
            spent = costs.rate_bounds(self.used(k).tolist(), b.tolist())
        elif many and self.strategy == "scale":
            spent = costs.clip_bounds(self.used(k).tolist(), b.tolist(), rate)
        else:
            spent = costs.spent(self.accounted(k).tolist(), rates.tolist(), clips.tolist())
        return Assignment(rates, clips, self.used(k), spent)

    def mechanism(
        self, *, entries: int, rate: float, clip_norm: float, relation: str = "add/remove"
    ) -> SampledGaussian:
        """Return one step's mechanism as it meets a contributor with `entries` entries."""
        return SampledGaussian(
            noise_multiplier=self.noise_multiplier,
            rate=rate,
            entries=int(self.accounted([entries])[0]),
            clip_norm=clip_norm,
            relation=relation,
        )


def positive(value: object, name: str) -> float:
    """Return a positive finite number, or say what is wrong with it."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not (math.isfinite(number) and number > 0):
        shown = f"{number:g}" if math.isfinite(number) else repr(value)
        raise InputError(f"{name} is {shown}", where=name, expected="a finite number above 0")
    return number


def whole_number(value: object, name: str) -> int:
    """Return a whole number of 1 or more, or say what is wrong with it."""
    number = positive(value, name)
    if not number.is_integer():
        raise InputError(f"{name} is {number:g}", where=name, expected="a whole number, 1 or more")
    return int(number)
