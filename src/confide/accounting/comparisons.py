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

from confide.accounting.calibration import calibrate_rates
from confide.accounting.mechanisms import SampledGaussian
from confide.accounting.pairs import Floats
from confide.errors import InputError, UnreachableError


@dataclass(frozen=True)
class Coupled:
    """Noise multiplier and rates [groups] of the coupled design "Sample". A comparison, not a policy."""

    noise_multiplier: float
    rates: Floats
    label: str = "comparison only: one person's curve depends on other people's budgets"


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
    budget, share = np.asarray(epsilons, float), np.asarray(shares, float)
    if budget.shape != share.shape or budget.size == 0 or abs(share.sum() - 1) > 1e-9:
        raise InputError("budgets and shares do not match", expected="one share for each budget, summing to 1")

    def rates(log_noise: float) -> Floats:
        noise = math.exp(log_noise)
        return calibrate_rates(1, budget, delta=delta, noise_multiplier=noise, steps=steps)

    low, high = math.log(0.3), math.log(100.0)
    if not float(share @ rates(low)) <= mean_rate <= float(share @ rates(high)):
        raise UnreachableError(f"no noise multiplier between 0.3 and 100 gives the mean rate {mean_rate:g}")
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if float(share @ rates(middle)) < mean_rate else (low, middle)
    # Rates are calibrated at the noise that is returned, so every group's budget holds.
    return Coupled(math.exp(high), rates(high))


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
