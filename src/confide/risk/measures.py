"""Read-outs of a guarantee that people ask for, and the inverses: how much noise for a target in any of them.

>>> from confide.accounting import Gaussian
>>> g = Gaussian(noise_multiplier=2.0).guarantee()
>>> round(success_among(g, candidates=100), 4)
0.0339
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from confide.accounting import RDP_ORDERS, Gaussian, Guarantee
from confide.errors import InputError
from confide.risk.inverses import smallest_noise

Floats = NDArray[Any]


def true_positive_rate(guarantee: Guarantee, fpr: ArrayLike) -> Floats:
    """Return the largest true positive rate of a membership attack at false positive rates `fpr`."""
    return np.asarray(guarantee.reconstruction_bound(fpr))


def success_among(guarantee: Guarantee, candidates: int) -> float:
    """Return how often, at most, the right one of `candidates` equally likely records can be picked."""
    if candidates < 1:
        raise InputError(f"candidates is {candidates!r}", expected="a whole number, at least 1")
    return guarantee.reconstruction(1 / candidates)


def posterior_tail(guarantee: Guarantee, prior: float, posterior: float) -> float:
    """Bound the probability (contributor present) that a fully informed attacker's belief reaches `posterior`.

    The belief reaches it where the privacy loss is at least L = logit(posterior) - logit(prior). With
    delta(e) = H_e(with, without), P(loss > L) <= min over e < L of delta(e) / (1 - exp(e - L)).
    """
    if not (0 < prior < 1 and 0 < posterior < 1):
        raise InputError("prior and posterior must lie strictly between 0 and 1")
    level = math.log(posterior / (1 - posterior)) - math.log(prior / (1 - prior))
    if level <= 0:
        return 1.0
    tries = level - np.minimum(np.array([0.1, 0.3, 0.6, 1.0, 1.6]), level)
    return min(1.0, min(guarantee.delta(float(e)) / -math.expm1(e - level) for e in tries if e < level))


def divergence_between(guarantee: Guarantee, reference: Guarantee) -> float:
    """Return Delta: how far, at most, `guarantee` allows more than `reference` (both trade-off curves upper bounds).

    Kaiser et al. 2026: the smallest shift by which the curve of `guarantee` lies under that of `reference` in both
    error rates. Evaluated on 400 false positive rates; for two Gaussian curves Phi(mu2 / 2) - Phi(mu1 / 2).
    """
    alpha = np.concatenate([[0.0], np.exp(np.linspace(np.log(1e-6), 0, 200)), np.linspace(0, 1, 201)])
    alpha = np.unique(alpha)
    low, high = guarantee.tradeoff(alpha), reference.tradeoff(alpha)
    # Need high(a + k) - k <= low(a) for every a: `high` is decreasing, so bisect on the shift.
    bottom, top = 0.0, 1.0
    for _ in range(50):
        shift = (bottom + top) / 2
        fits = np.all(np.interp(np.minimum(alpha + shift, 1.0), alpha, high) - shift <= low + 1e-12)
        bottom, top = (bottom, shift) if fits else (shift, top)
    return top


@dataclass(frozen=True)
class SensitivityIndex:
    """How far apart "with" and "without" lie, in standard deviations of one Gaussian (psi = mu).

    Attributes
    ----------
    psi : float
        Exact where the guarantee is Gaussian; else that of the Gaussian whose best attack has the same advantage.
    exact : bool
    gap_over, gap_under : float
        How far, at most, the certified curve allows more (over) and less (under) than that Gaussian: zero if exact.
    label : str
        What must be said with a surrogate.
    """

    psi: float
    exact: bool
    gap_over: float
    gap_under: float
    label: str


def sensitivity_index(guarantee: Guarantee) -> SensitivityIndex:
    """Return psi (Kaissis et al. 2021), or a labelled surrogate with its distance from the certified curve."""
    if guarantee.mu is not None:
        return SensitivityIndex(guarantee.mu, True, 0.0, 0.0, "exact")
    psi = 2 * float(special.ndtri(min((1 + guarantee.advantage()) / 2, 1 - 1e-15)))
    if psi <= 0:
        return SensitivityIndex(0.0, True, 0.0, 0.0, "exact")
    stand_in = Gaussian(1 / psi, relation=guarantee.relation).guarantee()
    return SensitivityIndex(
        psi,
        False,
        divergence_between(guarantee, stand_in),
        divergence_between(stand_in, guarantee),
        "a surrogate with the same best advantage, not a guarantee: the certified curve lies below it in places",
    )


def information_bits(guarantee: Guarantee, candidates: int | None = None) -> dict[str, float]:
    """Return upper bounds, in bits, on what a release tells about one contributor.

    "mutual": from the Renyi divergence of the lowest order kept (which bounds the Kullback-Leibler divergence).
    "identification": log2(n gamma(1 / n)), how much better than blind the best guess among `candidates` is.
    """
    out = {"mutual": float(guarantee.rdp(RDP_ORDERS[:1])[0]) / math.log(2)}
    if candidates:
        out["identification"] = math.log2(candidates * success_among(guarantee, candidates))
    return out


def noise_for(
    read: Callable[[Guarantee], float],
    target: float,
    *,
    rate: float,
    steps: int,
    entries: int = 1,
    low: float = 0.2,
    high: float = 1000.0,
) -> float:
    """Return nearly the smallest noise multiplier at which `read` of the guarantee is at most `target`.

    Parameters
    ----------
    read : callable
        Any currency in which less is more private, such as ``lambda g: g.reconstruction(0.01)``.

    Raises
    ------
    UnreachableError
        If even noise `high` does not reach the target; the message names what it reaches.
    """
    return smallest_noise(read, target, rate=rate, steps=steps, entries=entries, low=low, high=high)


def noise_for_reconstruction(success: float, prior: float, *, rate: float, steps: int, entries: int = 1) -> float:
    """Return the noise multiplier at which gamma(prior) <= success."""
    return noise_for(lambda g: g.reconstruction(prior), success, rate=rate, steps=steps, entries=entries)


def noise_for_advantage(advantage: float, *, rate: float, steps: int, entries: int = 1) -> float:
    """Return the noise multiplier at which no attack has a larger membership advantage."""
    return noise_for(lambda g: g.advantage(), advantage, rate=rate, steps=steps, entries=entries)
