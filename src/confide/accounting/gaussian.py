"""The exactly Gaussian case in closed form (Balle and Wang 2018; Dong, Roth and Su 2022)."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from confide.accounting.pairs import Floats


def delta(mu: float, epsilon: Floats) -> Floats:
    """Return delta at every `epsilon` of a mu-GDP mechanism."""
    epsilon = np.asarray(epsilon, float)
    if mu <= 0:
        return np.asarray(np.maximum(-np.expm1(epsilon), 0.0))
    first = special.log_ndtr(mu / 2 - epsilon / mu)
    second = epsilon + special.log_ndtr(-mu / 2 - epsilon / mu)
    # exp(first) - exp(second), with the difference taken in logs so that small deltas keep their digits.
    return np.asarray(np.exp(first) * -np.expm1(np.minimum(second - first, 0.0)))


def epsilon(mu: float, delta_: float) -> float:
    """Return the smallest epsilon >= 0 at which a mu-GDP mechanism has at most `delta_`."""
    if mu <= 0 or float(delta(mu, np.asarray(0.0))) <= delta_:
        return 0.0
    high = 1.0
    while float(delta(mu, np.asarray(high))) > delta_:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if float(delta(mu, np.asarray(middle))) > delta_:
            low = middle
        else:
            high = middle
        if high - low <= 1e-14 * high:
            break
    return high


def mu_for(epsilon_: float, delta_: float) -> float:
    """Return the largest mu whose epsilon at `delta_` is at most `epsilon_`."""
    low, high = 0.0, 1.0
    while float(delta(high, np.asarray(epsilon_))) <= delta_ and high < 1e12:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if float(delta(middle, np.asarray(epsilon_))) <= delta_:
            low = middle
        else:
            high = middle
        if high - low <= 1e-15 * high:
            break
    return low if math.isfinite(low) else 0.0
