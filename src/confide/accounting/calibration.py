"""Largest rates and clips, smallest noise, most steps for a target epsilon: always returned on the safe side.

>>> rates = calibrate_rates([1, 2], 4.0, delta=1e-6, noise_multiplier=1.0, steps=200)
>>> bool(rates[1] < rates[0] < 1)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from confide.accounting import gaussian
from confide.accounting.mechanisms import SampledGaussian, _count, _number
from confide.accounting.pairs import Floats
from confide.errors import InputError, UnreachableError


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
    known: dict[tuple[float, ...], float] = {}
    for index in np.ndindex(out.shape):
        s, p, k, c, t = (float(a[index]) for a in arrays)
        if (s, p, k, c, t) not in known:
            guarantee = SampledGaussian(s, p, _count("entries", k, 0), c).guarantee(_count("steps", t, 1))
            known[s, p, k, c, t] = guarantee.epsilon(delta)
        out[index] = known[s, p, k, c, t]
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
            if x >= ceiling or value >= 0.998 * budget:
                break
        else:
            bad, bad_cost = x, value
        if bad == math.inf:
            x = min(ceiling, x * (1.3 if good_cost > 0.5 * budget else 3.0))
        elif good == 0.0:
            x = x * max(0.2, 0.97 * budget / bad_cost) if math.isfinite(bad_cost) else x / 4
        else:
            # Regula falsi in logs, aimed slightly under the budget, kept inside the bracket.
            share = 0.5
            if math.isfinite(bad_cost) and good_cost > 0:
                aim = math.log(0.999 * budget / good_cost) / math.log(bad_cost / good_cost)
                share = min(max(aim, 0.05), 0.95)
            x = good * (bad / good) ** share
        if good > 0 and bad / good < 1 + 1e-9:
            break
        if x < 1e-300:
            break
    return good


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
    out = np.empty(k.shape)
    cache: dict[tuple[float, float], float] = {}
    last: dict[float, float] = {}
    for index in sorted(np.ndindex(k.shape), key=lambda i: (e[i], k[i])):
        key = (float(k[index]), float(e[index]))
        if key not in cache:

            def cost(rate: float, n: int = int(key[0])) -> float:
                return SampledGaussian(noise_multiplier, rate, n, clip_norm).guarantee(steps).epsilon(delta)

            start = last.get(key[1], 0.01 * noise_multiplier / math.sqrt(steps / 1000)) / key[0]
            cache[key] = _largest(cost, key[1], start, 1.0)
            last[key[1]] = cache[key] * key[0]
        out[index] = cache[key]
    return out


def calibrate_clips(
    entries: ArrayLike, epsilon: ArrayLike, *, delta: float, noise_multiplier: float, steps: int, rate: float
) -> Floats:
    """Return for every class the largest clipping norm per entry (in units of C) within its target epsilon."""
    k, e = _targets(entries, epsilon)
    _number("rate", rate, 0, 1)
    out = np.empty(k.shape)
    cache: dict[tuple[float, float], float] = {}
    last: dict[float, float] = {}
    for index in sorted(np.ndindex(k.shape), key=lambda i: (e[i], k[i])):
        key = (float(k[index]), float(e[index]))
        if key not in cache:
            n = int(key[0])

            def cost(clip: float, n: int = n) -> float:
                return SampledGaussian(noise_multiplier, rate, n, clip).guarantee(steps).epsilon(delta)

            start = last.get(key[1], noise_multiplier) / math.sqrt(key[0])
            cache[key] = _largest(cost, key[1], start, math.inf)
            last[key[1]] = cache[key] * math.sqrt(key[0])
        out[index] = cache[key]
    return out


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
        raise UnreachableError(
            f"one step already spends epsilon {one:.4g}", expected=f"a target of at least {one:.4g}"
        )
    good, bad = 1, 2
    while bad < 10**8 and cost(bad) <= epsilon:
        good, bad = bad, bad * 2
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if cost(middle) <= epsilon else (good, middle)
    return good
