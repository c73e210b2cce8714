"""Rates and clips of many classes at once, each answer a function of its own (entries, budget) alone.

Three things make it fast. Budgets are rounded down to a fixed public ladder (neighbours at most 0.3% apart). Rates for
k entries come from a larger number of entries K wherever that costs next to nothing: the number drawn out of k at rate
p is stochastically at most the number drawn out of K at rate P exactly if (1 - p)^k >= (1 - P)^K and k <= K (Klenke
and Mattner 2010, Theorem 1), and a mixture with stochastically smaller shifts is dominated. And searches start, with
tilt and lattice chosen, from solutions on a coarse public grid. What is returned has been certified: by an upper bound
of its own or by that of the dominating class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from confide.accounting.composition import Place
from confide.accounting.mechanisms import SampledGaussian
from confide.accounting.pairs import Floats

#: How far above the true epsilon the upper bounds that decide here lie, about.
_RTOL = 1e-3
#: A solution spends this share of its (rounded) budget, by its own upper bound. Below 1, so that a bound of the same
#: class computed on another grid does not contradict it.
_LOW, _AIM, _HIGH = 0.9982, 0.9990, 0.9996
#: Classes share the rate of a larger number of entries where expected draws differ by at most this share.
_SHARED = 1.0010
_LARGEST = 1 << 40
_COARSE = 0.5  # coarse budgets are 2^(j / 2)
_NEAR = 16  # coarse budgets up to so many from 2^(2 / 2) are solved one after the other
_PER_DECADE = 800


def rung(epsilon: float) -> float:
    """Return the largest number of the public ladder of budgets that is at most `epsilon`.

    Neighbours are 0.29% apart at most; two-digit decimals and quarters, which people write, are on it.
    """
    i = math.floor(_PER_DECADE * math.log10(epsilon))
    unit = math.floor(math.log10(epsilon)) - 1
    digits = math.floor(epsilon / 10.0**unit)
    tries = [10.0 ** (n / _PER_DECADE) for n in (i - 1, i, i + 1)]
    tries += [float(f"{n}e{unit}") for n in (digits - 1, digits, digits + 1)]
    tries.append(math.floor(4 * epsilon) / 4)
    return float(max(value for value in tries if value <= epsilon))


def largest(cost: Callable[[float], float], budget: float, start: float, ceiling: float) -> float:
    """Return nearly the largest x in (0, ceiling] with cost(x) <= budget, for increasing cost; 0 if none is found."""
    return _search(cost, budget, start, ceiling)[0]


def _search(
    cost: Callable[[float], float], budget: float, start: float, ceiling: float, power: float = 1.0
) -> tuple[float, float]:
    """Return (x, cost(x)); `power` is the slope of log cost against log x near the answer, as far as it is known."""
    x = min(start, ceiling)
    good, bad = 0.0, math.inf
    good_cost, bad_cost = 0.0, math.inf
    for _ in range(60):
        value = cost(x)
        if value <= _HIGH * budget:
            good, good_cost = x, value
            if x >= ceiling or value >= _LOW * budget:
                break
        else:
            bad, bad_cost = x, value
        if bad == math.inf:
            close = (_AIM * budget / good_cost) ** (1 / power) if good_cost > 0.5 * budget else 3.0
            x = min(ceiling, x * close)
        elif good == 0.0:
            x = x * max(0.2, (_AIM * budget / bad_cost) ** (1 / power)) if math.isfinite(bad_cost) else x / 4
        else:
            # Regula falsi in logs, kept inside the bracket.
            share = 0.5
            if math.isfinite(bad_cost) and good_cost > 0:
                aim = math.log(_AIM * budget / good_cost) / math.log(bad_cost / good_cost)
                share = min(max(aim, 0.02), 0.98)
            x = good * (bad / good) ** share
        if (good > 0 and bad / good < 1 + 1e-9) or x < 1e-300:
            break
    return good, good_cost


def _interpolate(values: list[float], x: float) -> float:
    """Interpolate the logarithms of `values` at 0, 1, 2, ... by a polynomial, at `x`."""
    y = [math.log(v) for v in values]
    total = 0.0
    for i, one in enumerate(y):
        weight = 1.0
        for j in range(len(y)):
            if j != i:
                weight *= (x - j) / (i - j)
        total += one * weight
    return math.exp(total)


class _Family:
    """Solutions x(k, epsilon) of "a class costs at most epsilon" for one increasing parameter x of a class."""

    def __init__(self, noise_multiplier: float, steps: int, delta: float) -> None:
        self.noise_multiplier, self.steps, self.delta = noise_multiplier, steps, delta
        self._coarse: dict[tuple[int, int], tuple[float, tuple[Place, ...]]] = {}
        self._solved: dict[tuple[int, float], tuple[float, float]] = {}

    def mechanism(self, entries: int, x: float) -> SampledGaussian:
        """Return the mechanism of a class."""
        raise AssertionError("every family states its mechanism")

    ceiling = 1.0

    def _cost(self, entries: int, x: float, places: tuple[Place, ...] = ()) -> float:
        guarantee = self.mechanism(entries, x).guarantee(self.steps)
        if guarantee.mu is not None:
            return guarantee.epsilon(self.delta)
        return guarantee._composition.epsilon_upper(self.delta, rtol=_RTOL, places=places)

    def _guess(self, entries: int, j: int) -> float:
        """Return where to start the search at the coarse budget 2^(j / 2)."""
        raise AssertionError("every family states its starts")

    def coarse(self, entries: int, j: int) -> tuple[float, tuple[Place, ...]]:
        """Return the solution at the coarse budget 2^(j / 2) and where it is read."""
        if (entries, j) not in self._coarse:
            budget = 2.0 ** (j * _COARSE)
            x, spent = _search(lambda x: self._cost(entries, x), budget, self._guess(entries, j), self.ceiling, 1.2)
            guarantee = self.mechanism(entries, x).guarantee(self.steps)
            places: tuple[Place, ...] = ()
            if guarantee.mu is None and x > 0:
                places = guarantee._composition.places(self.delta, rtol=_RTOL, found=spent)
            self._coarse[entries, j] = (x, places)
        return self._coarse[entries, j]

    def _near(self, entries: int, epsilon: float) -> tuple[float, float, tuple[Place, ...]]:
        """Return start, slope of log cost and places for (entries, epsilon), from coarse budgets around it."""
        at = math.log2(epsilon) / _COARSE
        j = round(at)
        around = [self.coarse(entries, i) for i in (j - 1, j, j + 1)]
        values = [x for x, _ in around]
        if not all(0 < x < self.ceiling for x in values):
            return values[1] or values[2], 1.2, ()
        start = _interpolate(values, at - j + 1)
        slope = 2 * _COARSE * math.log(2) / max(math.log(values[2] / values[0]), 1e-3)
        left = 0 if at < j else 1
        places = _between(around[left][1], around[left + 1][1], at - j + 1 - left)
        return start, min(max(slope, 0.5), 4.0), places

    def solve(self, entries: int, epsilon: float) -> tuple[float, float]:
        """Return (x, certified epsilon) of one class at a budget."""
        if (entries, epsilon) not in self._solved:
            start, slope, places = self._near(entries, epsilon)
            found = _search(
                lambda x: self._cost(entries, x, places), epsilon, start or self.ceiling / 2, self.ceiling, slope
            )
            self._solved[entries, epsilon] = found
        return self._solved[entries, epsilon]


def _nearer(j: int) -> int:
    """Return the coarse budget that the search at 2^(j / 2) starts from: the next one towards 2, from afar half-way."""
    far = j - 2
    return j - (1 if far > 0 else -1) if abs(far) <= _NEAR else 2 + int(far / 2)


def _between(low: tuple[Place, ...], high: tuple[Place, ...], share: float) -> tuple[Place, ...]:
    """Interpolate places in logarithms; nothing where the order of the directions changes."""
    if [p.remove for p in low] != [p.remove for p in high] or not low:
        return ()

    def mean(a: float, b: float) -> float:
        return a ** (1 - share) * b**share if a > 0 and b > 0 else a + share * (b - a)

    return tuple(
        Place(a.remove, mean(a.tilt, b.tilt), mean(a.loss, b.loss), mean(a.step, b.step), mean(a.aliasing, b.aliasing))
        for a, b in zip(low, high, strict=True)
    )


class Rates(_Family):
    """Largest sampling rates per entry at a fixed noise; 1 at most."""

    def __init__(self, noise_multiplier: float, clip_norm: float, steps: int, delta: float) -> None:
        super().__init__(noise_multiplier, steps, delta)
        self.clip_norm = clip_norm
        self._parents: dict[int, tuple[int, int]] = {}

    def mechanism(self, entries: int, x: float) -> SampledGaussian:
        """Return the mechanism of a class; `x` is the rate."""
        return SampledGaussian(self.noise_multiplier, x, entries, self.clip_norm)

    def _guess(self, entries: int, j: int) -> float:
        if entries in self._parents:
            # Expected draws are nearly a straight line in 1 / k.
            low, high = self._parents[entries]
            a, b = (_draws(k, self.coarse(k, j)[0]) for k in (low, high))
            share = (1 / entries - 1 / high) / (1 / low - 1 / high)
            if math.isfinite(a + b):
                return _rate(entries, b + share * (a - b))
        if j != 2:
            nearer = _nearer(j)
            return self.coarse(entries, nearer)[0] * 2 ** (_COARSE * (j - nearer))
        return 0.005 * self.noise_multiplier / self.clip_norm / math.sqrt(self.steps / 1000) / entries

    def _knot(self, entries: int, j: int) -> int:
        """Return the number of entries whose rate serves `entries`, decided at the coarse budget 2^(j / 2)."""
        if entries > _LARGEST:
            return entries
        low, high = 1, _LARGEST
        # A public tree of numbers of entries: halve 1 / k until both ends draw nearly the same number.
        while entries != low and high - low > 1:
            if _draws(low, self.coarse(low, j)[0]) <= _SHARED * _draws(high, self.coarse(high, j)[0]):
                break
            middle = min(max(round(2 * low * high / (low + high)), low + 1), high - 1)
            self._parents.setdefault(middle, (low, high))
            low, high = (low, middle) if entries <= middle else (middle, high)
        return low if entries == low else high

    def rate(self, entries: int, epsilon: float) -> tuple[float, float]:
        """Return the rate of a class and the certified epsilon that it stays within (at most `epsilon`)."""
        epsilon = rung(epsilon)
        knot = self._knot(entries, round(math.log2(epsilon) / _COARSE))
        rate, spent = self.solve(knot, epsilon)
        # One part in 1e12 less: the comparison of the two classes must survive rounding.
        return (rate if knot == entries else _rate(entries, _draws(knot, rate)) * (1 - 1e-12)), spent


def _draws(entries: int, rate: float) -> float:
    """Return -k log(1 - p): classes with the same value and more entries dominate those with fewer."""
    return -entries * math.log1p(-rate) if rate < 1 else math.inf


def _rate(entries: int, draws: float) -> float:
    return -math.expm1(-draws / entries)


class Clips(_Family):
    """Largest clipping norms per entry at a fixed noise and rate."""

    ceiling = math.inf

    def __init__(self, noise_multiplier: float, rate: float, steps: int, delta: float) -> None:
        super().__init__(noise_multiplier, steps, delta)
        self._at_rate = rate

    def mechanism(self, entries: int, x: float) -> SampledGaussian:
        """Return the mechanism of a class; `x` is the clipping norm."""
        return SampledGaussian(self.noise_multiplier, self._at_rate, entries, x)

    def _guess(self, entries: int, j: int) -> float:
        if entries > 1:
            return self.coarse(entries // 2, j)[0] / 2
        if j != 2:
            nearer = _nearer(j)
            return self.coarse(1, nearer)[0] * 2 ** (_COARSE * (j - nearer))
        return self.noise_multiplier

    def clip(self, entries: int, epsilon: float) -> tuple[float, float]:
        """Return the clipping norm of a class and the certified epsilon that it stays within (at most `epsilon`)."""
        epsilon = rung(epsilon)
        power = entries.bit_length() - 1
        if entries == 1 << power:
            return self.solve(entries, epsilon)
        if (entries, epsilon) not in self._solved:
            # Powers of two are solved first; k c is smooth in log k.
            knots = [1 << i for i in range(max(power - 1, 0), power + 3)]
            values = [k * self.solve(k, epsilon)[0] for k in knots]
            start = _interpolate(values, math.log2(entries) - math.log2(knots[0])) / entries if all(values) else 0.0
            low, high = self._near(1 << power, epsilon), self._near(2 << power, epsilon)
            places = _between(low[2], high[2], math.log2(entries / (1 << power)))
            self._solved[entries, epsilon] = _search(
                lambda x: self._cost(entries, x, places), epsilon, start or low[0], self.ceiling, low[1]
            )
        return self._solved[entries, epsilon]


@lru_cache(maxsize=16)
def rates_for(noise_multiplier: float, clip_norm: float, steps: int, delta: float) -> Rates:
    """Return the family, which remembers what it has solved (pure functions of public numbers)."""
    return Rates(noise_multiplier, clip_norm, steps, delta)


@lru_cache(maxsize=16)
def clips_for(noise_multiplier: float, rate: float, steps: int, delta: float) -> Clips:
    """Return the family, which remembers what it has solved (pure functions of public numbers)."""
    return Clips(noise_multiplier, rate, steps, delta)


def by_class(
    solve: Callable[[int, float], tuple[float, float]], entries: Floats, epsilon: Floats
) -> tuple[Floats, Floats]:
    """Return solutions and what they spend, both of the shape of `entries`."""
    x, spent = np.empty(entries.shape), np.empty(entries.shape)
    for index in np.ndindex(entries.shape):
        x[index], spent[index] = solve(int(entries[index]), float(epsilon[index]))
    return x, spent
