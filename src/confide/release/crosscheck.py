"""A second opinion on epsilon: the same mixtures of Gaussians in Google's dp_accounting, both directions.

Independent of our engine in theory (connect-the-dots discretisation), code and authors. It needs seconds for a class,
so `verify` asks it about a few classes only and says which. Neither library replaces the proof cited with a mechanism.

References
----------
Doroshenko et al., "Connect the dots: tighter discrete approximations of privacy loss distributions", PoPETs 2022.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from confide.accounting import Gaussian, Guarantee, Laplace, SampledGaussian

TOLERANCE = 0.01
_TAIL = 1e-15  # mass of the Binomial that is moved to its largest value: far below anything delta resolves


@dataclass(frozen=True)
class SecondOpinion:
    """What dp_accounting says: an upper bound of its own, and the grid it was computed on."""

    epsilon: float
    grid: float


def available() -> bool:
    """Return whether dp_accounting is installed."""
    return importlib.util.find_spec("dp_accounting") is not None


def second_opinion(guarantee: Guarantee, delta: float, *, claimed: float) -> SecondOpinion | None:
    """Compute epsilon with dp_accounting, on a finer grid for as long as it disagrees.

    Parameters
    ----------
    guarantee : Guarantee
        All parts Gaussian, sampled Gaussian or Laplace.
    delta : float
    claimed : float
        Stated epsilon: a coarse grid (fast, and looser) is enough where it already agrees.

    Returns
    -------
    SecondOpinion or None
        None where a part has no counterpart there.
    """
    opinion = None
    for grid in (1e-2, 2e-3, 5e-4):
        pld = _pld(guarantee, grid)
        if pld is None:
            return None
        opinion = SecondOpinion(float(pld.get_epsilon_for_delta(delta)), grid)
        if abs(opinion.epsilon - claimed) <= TOLERANCE * claimed:
            break
    return opinion


def _pld(guarantee: Guarantee, grid: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    composed = None
    for mechanism, steps in guarantee.parts:
        if isinstance(mechanism, SampledGaussian):
            if mechanism.mu == 0:
                continue
            clip, sigma = float(mechanism.clip_norm), float(mechanism.noise_multiplier)
            if mechanism.entries == 1:
                one = pld.from_gaussian_mechanism(
                    sigma, sensitivity=clip, sampling_prob=float(mechanism.rate), value_discretization_interval=grid
                )
            else:
                drawn, weights = _binomial(int(mechanism.entries), float(mechanism.rate))
                one = pld.from_mixture_gaussian_mechanism(
                    sigma, [float(v) * clip for v in drawn], weights, value_discretization_interval=grid
                )
        elif isinstance(mechanism, Gaussian):
            one = pld.from_gaussian_mechanism(float(mechanism.noise_multiplier), value_discretization_interval=grid)
        elif isinstance(mechanism, Laplace):
            one = pld.from_laplace_mechanism(float(mechanism.noise_multiplier), value_discretization_interval=grid)
        else:
            return None
        part = one.self_compose(steps)
        composed = part if composed is None else composed.compose(part)
    return composed


def _binomial(entries: int, rate: float) -> tuple[list[int], list[float]]:
    """Return the numbers of drawn entries that matter and their probabilities, which add up to 1."""
    from scipy.stats import binom  # slow to import, and only a second opinion comes here

    last = max(1, int(np.searchsorted(-binom.sf(np.arange(entries + 1), entries, rate), -_TAIL)))
    last = min(entries, last)
    weights = binom.pmf(np.arange(last + 1), entries, rate)
    weights[-1] += max(0.0, 1.0 - float(weights.sum()))
    weights /= weights.sum()
    return list(range(last + 1)), [float(w) for w in weights]
