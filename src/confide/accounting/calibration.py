"""Largest rates and clips, smallest noise, most steps for a target epsilon: always returned on the safe side.

>>> rates = calibrate_rates([1, 2], 4.0, delta=1e-6, noise_multiplier=1.0, steps=200)
>>> bool(rates[1] < rates[0] < 1)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from confide.accounting import gaussian
from confide.accounting.mechanisms import SampledGaussian, _count, _number
from confide.accounting.pairs import Floats
from confide.errors import InputError, UnreachableError


@lru_cache(maxsize=1 << 16)
def _epsilon(noise_multiplier: float, rate: float, entries: int, clip_norm: float, steps: int, delta: float) -> float:
    """Return the certified epsilon of one class. Calibration, plans and checks ask for the same ones again."""
    return SampledGaussian(noise_multiplier, rate, entries, clip_norm).guarantee(steps).epsilon(delta)


def epsilons(
    *,
    noise_multiplier: ArrayLike,
    rate: ArrayLike,
    entries: ArrayLike,
    clip_norm: ArrayLike = 1.0,
    steps: ArrayLike,
    delta: float,
) -> Floats:
    """Return certified upper bounds on epsilon of many classes; the arguments broadcast.

    Raises
    ------
    InputError
        If any argument is out of range.
    """
    arrays = np.broadcast_arrays(noise_multiplier, rate, entries, clip_norm, steps)
    out = np.empty(arrays[0].shape)
    for index in np.ndindex(out.shape):
        s, p, k, c, t = (float(a[index]) for a in arrays)
        out[index] = _epsilon(s, p, _count("entries", k, 0), c, _count("steps", t, 1), float(delta))
    return out


def _largest(cost: Callable[[float], float], budget: float, start: float, ceiling: float) -> float:
    """Return nearly the largest x in (0, ceiling] with cost(x) <= budget, for increasing cost; 0 if none is found."""
    x = min(start, ceiling)
    good, bad = 0.0, math.inf
    good_cost, bad_cost = 0.0, math.inf
    for _ in range(60):
        value = cost(x)
        if value <= budget:
            good, good_cost = x, value
            if x >= ceiling or value >= 0.996 * budget:
                break
        else:
            bad, bad_cost = x, value
        if bad == math.inf:
            # close by, epsilon is nearly proportional to x; aim at the middle of what is accepted
            close = 0.998 * budget / good_cost if good_cost > 0.8 * budget else 1.3
            x = min(ceiling, x * (close if good_cost > 0.5 * budget else 3.0))
        elif good == 0.0:
            # close by, epsilon is nearly proportional to x
            aim = 0.998 if bad_cost < 1.05 * budget else 0.97
            x = x * max(0.2, aim * budget / bad_cost) if math.isfinite(bad_cost) else x / 4
        else:
            # Regula falsi in logs, aimed slightly under the budget, kept inside the bracket.
            share = 0.5
            if math.isfinite(bad_cost) and good_cost > 0:
                aim = math.log(0.9985 * budget / good_cost) / math.log(bad_cost / good_cost)
                share = min(max(aim, 0.05), 0.95)
            x = good * (bad / good) ** share
        if good > 0 and bad / good < 1 + 1e-9:
            break
        if x < 1e-300:
            break
    return good


def _per_class(
    entries: Floats, epsilon: Floats, cost: Callable[[int, float], float], first: float, ceiling: float
) -> Floats:
    """Solve cost(k, x) = epsilon for every class; each answer is a function of its own (k, epsilon) alone.

    A search started from another class's answer would let that class's presence move this one's within the tolerance.
    So starts come from fixed public ladders, k = 1, 2, 4, ... and epsilon = 2^(j/4), whoever else is asked for: k x is
    nearly constant, and straight lines through logarithms are right to a few parts in a thousand.
    """
    known: dict[tuple[int, float], float] = {}

    def ladder(j: int) -> float:
        return float(2.0 ** (j / 4))

    def along_entries(k: int, target: float) -> float:
        low = 1 << (k.bit_length() - 1)
        if k == 1:
            return first
        if k == low:
            start = solve(k // 2, target) / 2
            # half the last change of k x is a good guess of the next one
            return (
                start * math.sqrt(2 * solve(k // 2, target) / solve(k // 4, target)) if k > 2 and start > 0 else start
            )
        below, above = solve(low, target) * low, solve(2 * low, target) * 2 * low
        share = math.log2(k / low)
        return below ** (1 - share) * above**share / k if below > 0 and above > 0 else first / k

    def solve(k: int, target: float) -> float:
        if (k, target) not in known:
            place = 4 * math.log2(target)
            j = round(place)
            if ladder(j) == target:
                start = along_entries(k, target)
            else:
                j = math.floor(place)
                below, above = along_ladder(k, ladder(j)), along_ladder(k, ladder(j + 1))
                share = place - j
                start = below ** (1 - share) * above**share if below > 0 and above > 0 else first / k
            known[k, target] = _largest(lambda x: cost(k, x), target, min(start or first / k, ceiling), ceiling)
        return known[k, target]

    def along_ladder(k: int, target: float) -> float:
        return solve(k, target) if k & (k - 1) == 0 else along_entries(k, target)

    out = np.empty(entries.shape)
    for index in np.ndindex(out.shape):
        out[index] = solve(int(entries[index]), float(epsilon[index]))
    return out


def _targets(entries: ArrayLike, epsilon: ArrayLike) -> tuple[Floats, Floats]:
    e, k = np.broadcast_arrays(np.asarray(epsilon, float), np.asarray(entries, float))
    for value in np.unique(k):
        _count("entries", float(value), 1)
    if not np.all(np.isfinite(e) & (e > 0)):
        raise InputError("a target epsilon is not a positive number", expected="a number above 0")
    return np.asarray(k), np.asarray(e)


def calibrate_rates(
    entries: ArrayLike,
    epsilon: ArrayLike,
    *,
    delta: float,
    noise_multiplier: float,
    steps: int,
    clip_norm: float = 1.0,
) -> Floats:
    """Return for every class the largest sampling rate (at most 1) whose certified epsilon is within the target.

    Parameters
    ----------
    entries, epsilon : array-like
        Entries a contributor has and the epsilon to keep; broadcast against each other.

    Raises
    ------
    InputError
        If an argument is out of range.
    """
    k, e = _targets(entries, epsilon)

    def cost(n: int, rate: float) -> float:
        return _epsilon(float(noise_multiplier), rate, n, float(clip_norm), steps, float(delta))

    return _per_class(k, e, cost, 0.01 * noise_multiplier / math.sqrt(steps / 1000), 1.0)


def calibrate_clips(
    entries: ArrayLike, epsilon: ArrayLike, *, delta: float, noise_multiplier: float, steps: int, rate: float
) -> Floats:
    """Return for every class the largest clipping norm per entry (in units of C) within its target epsilon."""
    k, e = _targets(entries, epsilon)
    _number("rate", rate, 0, 1)

    def cost(n: int, clip: float) -> float:
        return _epsilon(float(noise_multiplier), float(rate), n, clip, steps, float(delta))

    return _per_class(k, e, cost, float(noise_multiplier), math.inf)


def calibrate_noise(epsilon: float, *, delta: float, rate: float, steps: int, entries: int = 1) -> float:
    """Return nearly the smallest noise multiplier whose certified epsilon is within the target."""
    _number("epsilon", epsilon, 0, math.inf)
    if rate == 1:
        return entries * math.sqrt(steps) / gaussian.mu_for(epsilon, delta) * (1 + 1e-9)

    def cost(inverse: float) -> float:
        return SampledGaussian(1 / inverse, rate, entries).guarantee(steps).epsilon(delta)

    found = _largest(cost, epsilon, 1.0, 1e4)
    if found == 0:
        raise UnreachableError(f"no noise reaches epsilon {epsilon:g} at delta {delta:g}", expected="a larger epsilon")
    return 1 / found


def calibrate_steps(epsilon: float, *, delta: float, noise_multiplier: float, rate: float, entries: int = 1) -> int:
    """Return the largest number of steps whose certified epsilon is within the target.

    Raises
    ------
    UnreachableError
        If one step already spends more.
    """

    def cost(steps: int) -> float:
        return SampledGaussian(noise_multiplier, rate, entries).guarantee(steps).epsilon(delta)

    one = cost(1)
    if one > epsilon:
        raise UnreachableError(f"one step already spends epsilon {one:.4g}", expected=f"a target of at least {one:.4g}")
    good, bad = 1, 2
    while bad < 10**8 and cost(bad) <= epsilon:
        good, bad = bad, bad * 2
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if cost(middle) <= epsilon else (good, middle)
    return good
