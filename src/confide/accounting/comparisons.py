"""Individualised DP-SGD as published (Boenisch et al. 2023): comparisons only, because it couples people.

Here everybody's rate (or the noise) is re-balanced so that an average stays fixed; one person's whole trade-off curve
then moves with other people's budgets although their own (epsilon, delta) point holds (Kaiser et al. 2026). Plans of
confide never do this: see `collusion` for what the difference is worth to an attacker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from confide.accounting.calibration import calibrate_noise, calibrate_rates
from confide.accounting.mechanisms import SampledGaussian
from confide.accounting.pairs import Floats
from confide.errors import InputError, UnreachableError


@dataclass(frozen=True)
class Coupled:
    """Noise multiplier, rates [groups] and clips [groups] (in units of C) of a coupled design; never a policy here."""

    noise_multiplier: float
    rates: Floats
    clips: Floats
    label: str = "comparison only: one person's curve depends on other people's budgets"


def _groups(epsilons: Sequence[float], shares: Sequence[float]) -> tuple[Floats, Floats]:
    budget, share = np.asarray(epsilons, float), np.asarray(shares, float)
    if budget.shape != share.shape or budget.size == 0 or abs(share.sum() - 1) > 1e-9 or np.any(share < 0):
        raise InputError("budgets and shares do not match", expected="one share for each budget, summing to 1")
    return budget, share


def coupled_sample(
    epsilons: Sequence[float], shares: Sequence[float], *, mean_rate: float, steps: int, delta: float
) -> Coupled:
    """Return Boenisch et al.'s "Sample": the noise at which the calibrated rates average `mean_rate`.

    Raises
    ------
    InputError
        If budgets and shares do not match.
    UnreachableError
        If no noise multiplier between 0.3 and 100 gives that average.
    """
    budget, share = _groups(epsilons, shares)

    def rates(log_noise: float) -> Floats:
        noise = math.exp(log_noise)
        return calibrate_rates(1, budget, delta=delta, noise_multiplier=noise, steps=steps)

    low, high = math.log(0.3), math.log(100.0)
    known = {x: math.log(max(float(share @ rates(x)), 1e-300) / mean_rate) for x in (low, high)}
    if not known[low] <= 0 <= known[high]:
        raise UnreachableError(
            f"no noise multiplier between 0.3 and 100 gives the mean rate {mean_rate:g}",
            expected=f"{mean_rate * math.exp(known[low]):.3g} to {mean_rate * math.exp(known[high]):.3g}",
        )
    for turn in range(60):
        if high - low <= 1e-3:
            break
        # The mean rate is nearly a power of the noise: aim a little beyond the crossing, so that both ends move in.
        aim = low + (high - low) * -known[low] / (known[high] - known[low])
        middle = min(max(aim + (4e-4 if turn % 2 else -4e-4), low + 1e-4), high - 1e-4)
        middle = (low + high) / 2 if turn % 4 == 3 else middle
        known[middle] = math.log(float(share @ rates(middle)) / mean_rate)
        low, high = (middle, high) if known[middle] < 0 else (low, middle)
    # Rates are calibrated at the noise that is returned, so every group's budget holds.
    return Coupled(math.exp(high), rates(high), np.ones(budget.size))


def coupled_scale(
    epsilons: Sequence[float], shares: Sequence[float], *, rate: float, steps: int, delta: float
) -> Coupled:
    """Return Boenisch et al.'s "Scale": one rate, clips in inverse proportion to each group's own noise, mean clip C.

    A group's whole curve depends on its own budget alone here (noise over clip is its own); what other people's
    budgets move is how strongly it is heard. The noise multiplier is the harmonic mean of the groups' own ones.

    Raises
    ------
    InputError
        If budgets and shares do not match.
    UnreachableError
        If no noise reaches a budget.
    """
    budget, share = _groups(epsilons, shares)
    own = np.array([calibrate_noise(float(e), delta=delta, rate=rate, steps=steps) for e in budget])
    noise = 1 / float(np.sum(share / own))
    return Coupled(
        noise,
        np.full(budget.size, float(rate)),
        # Rounded down: noise over clip is never below the calibrated noise.
        noise / own * (1 - 1e-12),
        "comparison only: how strongly one person is heard depends on other people's budgets",
    )


def collusion(
    own: float, others: Sequence[float], share: float, *, mean_rate: float, steps: int, delta: float
) -> list[tuple[float, float]]:
    """Return (other people's epsilon, largest advantage against a person of budget `own`) under coupled rates.

    With uncoupled rates (a pure function of the own budget) the second column would be constant.
    """
    out = []
    for other in others:
        found = coupled_sample([own, other], [1 - share, share], mean_rate=mean_rate, steps=steps, delta=delta)
        pair = SampledGaussian(found.noise_multiplier, float(found.rates[0]))
        out.append((float(other), pair.guarantee(steps).advantage()))
    return out
