"""How much noise, which rate, which clip, how many steps for a target in any currency.

>>> rate = largest_rate(lambda g: g.reconstruction(0.01), 0.05, noise_multiplier=1.0, steps=200)
>>> from confide.accounting import SampledGaussian
>>> SampledGaussian(1.0, rate).guarantee(200).reconstruction(0.01) <= 0.05
True

A currency is any read-out of a guarantee in which less is more private: ``lambda g: g.epsilon(1e-6)``,
``lambda g: g.advantage()``, ``lambda g: success_among(g, 100)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from confide.accounting import Guarantee, SampledGaussian
from confide.errors import InputError, UnreachableError

Currency = Callable[[Guarantee], float]
_TIGHT = 1e-3
_MOST_STEPS = 1 << 20


def _read(read: Currency, build: Callable[[float], Guarantee]) -> Callable[[float], float]:
    def value(x: float) -> float:
        found = float(read(build(x)))
        if math.isnan(found):
            raise InputError("the currency is not a number for some guarantee", expected="a function of a guarantee")
        return found

    return value


def _largest(name: str, value: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Return nearly the largest x in [low, high] with value(x) <= target, value increasing in x."""
    if not math.isfinite(target):
        raise InputError(f"the target is {target!r}", expected="a finite number")
    if not 0 < low < high < math.inf:
        raise InputError(f"{name} is sought from {low:g} to {high:g}", expected="0 < low < high")
    floor = value(low)
    if floor > target:
        raise UnreachableError(
            f"the target {target:g} cannot be reached",
            expected=f"at least {floor:.4g}, reached at {name} {low:g}",
        )
    ceiling = value(high)
    if ceiling <= target:
        return high
    y_low, y_high = floor, ceiling
    for turn in range(60):
        if high / low <= 1 + _TIGHT:
            break
        # Straight line through logarithms, kept inside; every third turn halve, which always ends.
        share = 0.5
        if turn % 3 != 2 and 0 < y_low < target < y_high < math.inf:
            share = min(max(math.log(target / y_low) / math.log(y_high / y_low), 0.02), 0.98)
        middle = low * (high / low) ** share
        found = value(middle)
        low, high, y_low, y_high = (middle, high, found, y_high) if found <= target else (low, middle, y_low, found)
    return low


def smallest_noise(
    read: Currency,
    target: float,
    *,
    rate: float,
    steps: int,
    entries: int = 1,
    clip_norm: float = 1.0,
    low: float = 0.2,
    high: float = 1000.0,
) -> float:
    """Return nearly the smallest noise multiplier in [low, high] at which `read` is at most `target`.

    Raises
    ------
    UnreachableError
        If even noise `high` does not reach the target; the message names what it reaches.
    """
    value = _read(read, lambda x: SampledGaussian(1 / x, rate, entries, clip_norm).guarantee(steps))
    try:
        return 1 / _largest("1 / noise", value, target, 1 / high, 1 / low)
    except UnreachableError as error:
        raise UnreachableError(
            f"the target {target:g} cannot be reached",
            expected=f"at least {value(1 / high):.4g}, reached at noise {high:g}",
        ) from error


def largest_rate(
    read: Currency,
    target: float,
    *,
    noise_multiplier: float,
    steps: int,
    entries: int = 1,
    clip_norm: float = 1.0,
    low: float = 1e-9,
) -> float:
    """Return nearly the largest sampling rate per entry, at most 1, at which `read` is at most `target`.

    Raises
    ------
    UnreachableError
        If even rate `low` spends more; the message names what it spends.
    """
    value = _read(read, lambda p: SampledGaussian(noise_multiplier, p, entries, clip_norm).guarantee(steps))
    return _largest("rate", value, target, low, 1.0)


def largest_clip(
    read: Currency,
    target: float,
    *,
    noise_multiplier: float,
    rate: float,
    steps: int,
    entries: int = 1,
    low: float = 1e-6,
    high: float = 100.0,
) -> float:
    """Return nearly the largest clipping norm per entry (in units of C) at which `read` is at most `target`.

    Raises
    ------
    UnreachableError
        If even clip `low` spends more; the message names what it spends.
    """
    value = _read(read, lambda c: SampledGaussian(noise_multiplier, rate, entries, c).guarantee(steps))
    return _largest("clip", value, target, low, high)


def most_steps(
    read: Currency,
    target: float,
    *,
    noise_multiplier: float,
    rate: float,
    entries: int = 1,
    clip_norm: float = 1.0,
) -> int:
    """Return the largest number of steps, at most 2^20, at which `read` is at most `target`.

    Raises
    ------
    UnreachableError
        If one step already spends more; the message names what it spends.
    """

    def value(steps: int) -> float:
        return _read(read, lambda _: SampledGaussian(noise_multiplier, rate, entries, clip_norm).guarantee(steps))(0.0)

    one = value(1)
    if one > target:
        raise UnreachableError(
            f"the target {target:g} cannot be reached", expected=f"at least {one:.4g}, reached with a single step"
        )
    good, bad = 1, 2
    while bad <= _MOST_STEPS and value(bad) <= target:
        good, bad = bad, bad * 2
    if bad > _MOST_STEPS:
        return good
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if value(middle) <= target else (good, middle)
    return good
