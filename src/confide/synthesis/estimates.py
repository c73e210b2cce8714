"""From noisy tables to distributions: public priors and the known noise, nothing else.

Noise of a privacy mechanism has a known size, so a noisy histogram is read as a Bayesian reads a measurement. The prior
is public and fixed: logits of an ordinal column are smooth over neighbouring cells (Gaussian process), those of a
categorical one are independent. This is post-processing and costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize

from confide.synthesis.domain import Column, Floats

LOGIT_DEVIATION = 1.3
LENGTH_SCALE = 1.5
ROUGHNESS = 0.25
TAIL_DEVIATIONS = 2.5
INTERACTION_SCALES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
_DRAWS = 20_000
_PUBLIC_SEED = 20_240_229


@dataclass(frozen=True, eq=False)
class Answer:
    """Shares as released, noise included, and the standard deviation of that noise in every cell."""

    noisy: Floats
    deviation: float

    def joined(self, other: Answer, apart: float = 0.0) -> Answer:
        """Return the average by precision with an answer to the same question, or to one that is near it.

        Parameters
        ----------
        apart : float
            Standard deviation of how far the other question's true shares are expected to lie from this one's.
        """
        far = math.hypot(other.deviation, apart)
        lean = far**2 / (far**2 + self.deviation**2)
        both = self.deviation * far / math.hypot(self.deviation, far)
        return Answer(lean * self.noisy + (1 - lean) * other.noisy, both)


def project_to_simplex(values: Floats) -> Floats:
    """Return the closest distribution (Euclidean): Held, Wolfe and Crowder 1974."""
    ordered = np.sort(values)[::-1]
    shift = (np.cumsum(ordered) - 1) / np.arange(1, len(values) + 1)
    return np.asarray(np.maximum(values - shift[np.nonzero(ordered > shift)[0][-1]], 0.0), dtype=np.float64)


def count_kernel(cells: int) -> Floats:
    """Return the prior covariance of the logits of the number of visits: wide, and smoother than other columns."""
    place = np.arange(cells)
    smooth = 9.0 * np.exp(-0.5 * ((place[:, None] - place) / 3.0) ** 2)
    return np.asarray(smooth + 0.05 * np.eye(cells), dtype=np.float64)


@dataclass(frozen=True)
class Smoothness:
    """How uneven the shares of a column are, over how many cells they stay alike, and how rough they are besides."""

    deviation: float = LOGIT_DEVIATION
    length: float = LENGTH_SCALE
    roughness: float = ROUGHNESS


ONE = (Smoothness(),)
# A prior over priors: a column may be flat or steep, rough or smooth, and its own noisy shares say which.
SEVERAL = (
    Smoothness(length=1.0),
    Smoothness(),
    Smoothness(length=3.0, roughness=0.1),
    Smoothness(2.0, 3.0, 0.1),
    Smoothness(0.7, 3.0, 0.05),
    Smoothness(2.0),
)


def kernel(cells: int, ordinal: bool, missing: bool, smooth: Smoothness = ONE[0]) -> Floats:
    """Return the prior covariance of a column's logits, shape (cells, cells)."""
    if not ordinal or cells - missing <= 2:
        return smooth.deviation**2 * np.eye(cells)
    ordered = cells - int(missing)
    place = np.arange(ordered)
    full = (smooth.deviation**2 + smooth.roughness) * np.eye(cells)
    full[:ordered, :ordered] = smooth.deviation**2 * np.exp(
        -0.5 * ((place[:, None] - place) / smooth.length) ** 2
    ) + smooth.roughness * np.eye(ordered)
    return full


@lru_cache(maxsize=256)
def _prior_draws(cells: int, ordinal: bool, missing: bool, count: bool, priors: tuple[Smoothness, ...] = ONE) -> Floats:
    # A fixed public seed: these are quadrature points of a public prior, not privacy noise.
    rng = np.random.default_rng(_PUBLIC_SEED)
    kernels = [count_kernel(cells)] if count else [kernel(cells, ordinal, missing, smooth) for smooth in priors]
    each = _DRAWS // len(kernels)
    logits = np.concatenate([rng.multivariate_normal(np.zeros(cells), c, size=each) for c in kernels])
    logits -= logits.max(1, keepdims=True)
    values = np.exp(logits)
    return np.asarray(values / values.sum(1, keepdims=True), dtype=np.float64)


def posterior_mode(noisy: Floats, deviation: float, covariance: Floats) -> Floats:
    """Return the most probable distribution: logits with a Gaussian prior, solved in coordinates where it is round."""
    root = np.linalg.cholesky(covariance)
    reach = 1e-3 + deviation

    def loss(z: Floats) -> tuple[float, Floats]:
        logits = root @ z
        values = np.exp(logits - logits.max())
        p = values / values.sum()
        miss = (p - noisy) / reach**2
        return float(0.5 * reach**2 * miss @ miss + 0.5 * z @ z), root.T @ (p * (miss - p @ miss)) + z

    start = np.log(np.maximum(project_to_simplex(noisy), 1e-3))
    z0 = np.linalg.solve(root, start - start.mean())
    z = optimize.minimize(loss, z0, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    logits = root @ z
    values = np.exp(logits - logits.max())
    return np.asarray(values / values.sum(), dtype=np.float64)


def posterior_distribution(
    noisy: Floats,
    deviation: float,
    column: Column,
    *,
    count: bool = False,
    priors: tuple[Smoothness, ...] = ONE,
) -> Floats:
    """Return the posterior mean of a distribution seen with Gaussian noise of `deviation` in every cell.

    Computed over draws from the prior; where too few of them come near the measurement there is little noise, and the
    closest distribution is as good (for the number of visits, whose far tail matters: the posterior mode).

    Parameters
    ----------
    noisy : float array, shape (cells,)
    deviation : float
    column : Column
    count : bool
        Whether this is the number of visits, which has a prior of its own.
    priors : tuple of Smoothness
        Equally likely beforehand.
    """
    if column.cells == 1:
        return np.ones(1)
    draws = _prior_draws(column.cells, column.ordinal, column.missing, count, priors)
    if count:
        return _without_far_tail(_posterior(draws, noisy, deviation, count_kernel(column.cells)), noisy, deviation)
    return _posterior(draws, noisy, deviation, None)


def _without_far_tail(p: Floats, noisy: Floats, deviation: float) -> Floats:
    """Empty the last bins as long as none stands out of the noise.

    A bin of several hundred visits that only noise filled would hold few patients and a large part of all rows.
    """
    seen = np.flatnonzero(noisy > TAIL_DEVIATIONS * deviation)
    if not len(seen):
        return p
    kept = np.where(np.arange(len(p)) <= seen[-1], p, 0.0)
    return np.asarray(kept / kept.sum(), dtype=np.float64)


def _posterior(draws: Floats, noisy: Floats, deviation: float, mode: Floats | None) -> Floats:
    fit = -0.5 * ((draws - noisy) ** 2).sum(1) / deviation**2
    weights = np.exp(fit - fit.max())
    if weights.sum() ** 2 / (weights**2).sum() < 60:
        return posterior_mode(noisy, deviation, mode) if mode is not None else project_to_simplex(noisy)
    return np.asarray(weights @ draws / weights.sum(), dtype=np.float64)


def posterior_interaction(
    noisy: Floats, deviation: float, p: Floats, q: Floats, left: Column, right: Column
) -> tuple[Floats, float]:
    """Return the posterior mean of a centred two-way table, and the prior scale that the noisy table supports.

    Parameters
    ----------
    noisy : float array, shape (cells of left, cells of right)
        Centred table over total mass: P(left, right) - p q' plus Gaussian noise.
    deviation : float
        Standard deviation of that noise in each cell.
    p, q : float arrays
        Centres.

    Notes
    -----
    Prior: the table is (p q') times a Gaussian process over the cells, smooth along ordinal columns and centred, with a
    scale picked among `INTERACTION_SCALES` by marginal likelihood of the noisy table (post-processing).
    """
    a, b = noisy.shape

    def side(mass: Floats, column: Column) -> Floats:
        covariance = kernel(column.cells, column.ordinal, column.missing) / (LOGIT_DEVIATION**2 + ROUGHNESS)
        centring = np.eye(len(mass)) - np.outer(np.ones(len(mass)), mass)
        factor = np.diag(mass) @ centring
        return factor @ covariance @ factor.T

    values_a, vectors_a = np.linalg.eigh(side(p, left))
    values_b, vectors_b = np.linalg.eigh(side(q, right))
    spectrum = np.maximum(np.outer(values_a, values_b), 0.0)
    rotated = vectors_a.T @ noisy @ vectors_b
    best, best_fit = 0.0, -np.inf
    for scale in INTERACTION_SCALES:
        variance = scale**2 * spectrum + deviation**2
        fit = float(-0.5 * (np.log(variance) + rotated**2 / variance).sum()) - (0.5 if scale > 0 else 0.0)
        if fit > best_fit:
            best, best_fit = scale, fit
    variance = best**2 * spectrum
    shrunk = rotated * variance / (variance + deviation**2)
    return np.asarray(vectors_a @ shrunk @ vectors_b.T, dtype=np.float64).reshape(a, b), best
