"""One restricted adversary: the generalised likelihood-ratio test of someone who does not know the two exact means.

Labelled, always: it is an attack that many think of as realistic, not a guarantee (Kaissis, Ziller et al. 2022).

>>> round(float(glrt_power(2.0, 0.05, dimension=1)), 4)
0.516
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from confide.accounting.composition import Composition
from confide.accounting.pairs import AtomPair, gaussian_mass
from confide.errors import InputError

Floats = NDArray[Any]

LABEL = "one restricted adversary, not a guarantee"


def glrt_power(mu: float, fpr: ArrayLike, *, dimension: int = 1) -> Floats:
    """Return the true positive rate of the test at false positive rates `fpr` (null: absent).

    Parameters
    ----------
    mu : float
        Gaussian-DP parameter of the release.
    dimension : int
        Number of coordinates the adversary is unsure about; 1 is the strongest test of this kind.

    Raises
    ------
    InputError
        If `mu` or `dimension` is out of range.
    """
    if not (0 <= mu < math.inf and dimension >= 1):
        raise InputError("mu must be at least 0 and dimension at least 1")
    fpr = np.asarray(fpr, float)
    threshold = special.chdtri(dimension, fpr)
    return np.asarray(1 - special.chndtr(threshold, dimension, mu * mu)) if mu > 0 else fpr


def glrt_reconstruction(prior: ArrayLike, *, noise_multiplier: float, rate: float, steps: int) -> Floats:
    """Return the identification success of the one-dimensional test over sampled steps, at every `prior`.

    Per step the statistic is ``|x|``, with log-likelihood log(1 - p + p exp(-mu^2/2) cosh(mu x)): a pair of a folded
    normal against itself mixed with a symmetric pair of shifts. Discretised into 6,000 outputs.
    """
    if not (noise_multiplier > 0 and 0 < rate <= 1 and steps >= 1):
        raise InputError("noise_multiplier must be above 0, rate in (0, 1] and steps at least 1")
    mu = 1 / noise_multiplier
    edges = np.concatenate([np.linspace(0, 12 + mu, 6000), [np.inf]])
    absent = 2 * gaussian_mass(edges[:-1], edges[1:])
    present = gaussian_mass(edges[:-1] - mu, edges[1:] - mu) + gaussian_mass(edges[:-1] + mu, edges[1:] + mu)
    mixed = (1 - rate) * absent + rate * present
    with np.errstate(divide="ignore"):
        pair = AtomPair(np.log(mixed), np.log(absent))
    value = Composition(((pair, int(steps)),)).success_bound(np.atleast_1d(np.asarray(prior, float)))
    return np.asarray(value.reshape(np.shape(prior)))
