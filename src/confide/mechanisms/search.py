"""How many runs a private search makes, and which candidate each run tries: drawn before the first run, without data.

>>> from confide.mechanisms.noise import SeededNoise
>>> runs = draw_runs(SeededNoise(1), law="poisson", mean=10.0, candidates=3)
>>> set(runs) <= {0, 1, 2}
True

The number of runs follows a public law (Papernot and Steinke 2022): Poisson, or the negative binomial truncated at 1.
It is secret, and it is drawn before anything is seen; every run tries a candidate drawn uniformly, with replacement.
Uniform numbers have 52 bits, so the law is met up to 1e-15 in total variation.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import count

import numpy as np

from confide.errors import InputError
from confide.mechanisms.noise import F64, NoiseSource

__all__ = ["draw_runs", "runs_probabilities"]


@lru_cache(maxsize=64)
def _at_most(law: str, shape: float, success: float, mean: float) -> F64:
    """Return the distribution function of the number of runs."""
    return np.cumsum(runs_probabilities(law, shape=shape, success=success, mean=mean))


def runs_probabilities(law: str, *, shape: float = 0.0, success: float = 0.1, mean: float = 10.0) -> list[float]:
    """Return the probabilities of 0, 1, 2, ... runs, up to where less than 1e-16 is left.

    Parameters
    ----------
    law : str
        "poisson" or "negative-binomial" (truncated at 1).
    shape, success : float
        eta and gamma of the negative binomial.
    mean : float
        Of the Poisson law.

    Raises
    ------
    InputError
        Another law.
    """
    if law == "poisson":
        found, total = [], 0.0
        for k in count():
            found.append(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)))
            total += found[-1]
            if k > mean and (1 - total < 1e-16 or found[-1] < 1e-18):
                return found
    if law != "negative-binomial":
        raise InputError(f"unknown law {law!r}", expected="poisson or negative-binomial")
    # Papernot and Steinke, Definition 1: P(k + 1) / P(k) = (1 - gamma) (k + eta) / (k + 1) for every eta above -1.
    first = (
        (1 - success) / -math.log(success)
        if shape == 0
        else shape * (1 - success) / math.expm1(-shape * math.log(success))
    )
    found = [0.0, first]
    for k in count(1):
        found.append(found[-1] * (1 - success) * (k + shape) / (k + 1))
        # from here on the terms fall at least as fast as a geometric series
        falling = (1 - success) * max(1.0, (k + 1 + shape) / (k + 2))
        if falling < 1 and found[-1] / (1 - falling) < 1e-16:
            return found
    raise AssertionError("unreachable")


def draw_runs(
    noise: NoiseSource, *, law: str, candidates: int, shape: float = 0.0, success: float = 0.1, mean: float = 10.0
) -> list[int]:
    """Draw the number of runs, then the candidate of each run.

    Parameters
    ----------
    noise : NoiseSource
        `OSNoise` for a release.
    law, shape, success, mean
        See `runs_probabilities`.
    candidates : int
        How many there are; each run tries one of them with equal probability.

    Returns
    -------
    list of int
        The candidate of each run, in order; empty when no run is made (Poisson only).
    """
    if candidates < 1:
        raise InputError("a search without candidates", expected="at least one")
    left = float(noise.uniform(1)[0])
    below = _at_most(law, shape, success, mean)
    runs = min(int(np.searchsorted(below, left)), len(below) - 1)
    return [min(int(u * candidates), candidates - 1) for u in noise.uniform(runs)] if runs else []
