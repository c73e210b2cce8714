"""Largest rates and clips, smallest noise, most steps for a target epsilon: always returned on the safe side.

>>> rates = calibrate_rates([1, 2], 4.0, delta=1e-6, noise_multiplier=1.0, steps=200)
>>> bool(rates[1] < rates[0] < 1)
True
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from confide.accounting import gaussian
from confide.accounting.mechanisms import SampledGaussian, _count, _number
from confide.accounting.pairs import Floats
from confide.accounting.population import by_class, clips_for, largest, rates_for
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


def _delta(delta: float) -> float:
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta!r}", expected="a probability strictly between 0 and 1")
    return float(delta)


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
    return solve_rates(
        entries, epsilon, delta=delta, noise_multiplier=noise_multiplier, steps=steps, clip_norm=clip_norm
    )[0]


def solve_rates(
    entries: ArrayLike,
    epsilon: ArrayLike,
    *,
    delta: float,
    noise_multiplier: float,
    steps: int,
    clip_norm: float = 1.0,
) -> tuple[Floats, Floats]:
    """Return the rates of `calibrate_rates` and the certified epsilon of each (an upper bound, within the target)."""
    k, e = _targets(entries, epsilon)
    _number("noise_multiplier", noise_multiplier, 0, math.inf)
    _number("clip_norm", clip_norm, 0, math.inf)
    family = rates_for(float(noise_multiplier), float(clip_norm), _count("steps", steps, 1), _delta(delta))
    return by_class(family.rate, k, e)


def calibrate_clips(
    entries: ArrayLike, epsilon: ArrayLike, *, delta: float, noise_multiplier: float, steps: int, rate: float
) -> Floats:
    """Return for every class the largest clipping norm per entry (in units of C) within its target epsilon."""
    return solve_clips(entries, epsilon, delta=delta, noise_multiplier=noise_multiplier, steps=steps, rate=rate)[0]


def solve_clips(
    entries: ArrayLike, epsilon: ArrayLike, *, delta: float, noise_multiplier: float, steps: int, rate: float
) -> tuple[Floats, Floats]:
    """Return the clips of `calibrate_clips` and the certified epsilon of each (an upper bound, within the target)."""
    k, e = _targets(entries, epsilon)
    _number("noise_multiplier", noise_multiplier, 0, math.inf)
    family = clips_for(float(noise_multiplier), _number("rate", rate, 0, 1), _count("steps", steps, 1), _delta(delta))
    return by_class(family.clip, k, e)


def calibrate_noise(epsilon: float, *, delta: float, rate: float, steps: int, entries: int = 1) -> float:
    """Return nearly the smallest noise multiplier whose certified epsilon is within the target."""
    _number("epsilon", epsilon, 0, math.inf)
    if rate == 1:
        return entries * math.sqrt(steps) / gaussian.mu_for(epsilon, delta) * (1 + 1e-9)

    def cost(inverse: float) -> float:
        return SampledGaussian(1 / inverse, rate, entries).guarantee(steps).epsilon(delta)

    found = largest(cost, epsilon, 1.0, 1e4)
    if found == 0:
        least = cost(1e-4)
        raise UnreachableError(
            f"no noise reaches epsilon {epsilon:g} at delta {delta:g}",
            expected=f"an epsilon of about {least:.3g} or more (noise 10,000 reaches it at this rate and these steps)",
        )
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
