"""Choosing privately: the best of a public list, a quantile, and which parts of an open list may be named.

>>> from confide.mechanisms.noise import OSNoise
>>> private_selection([10.0, 500.0, 30.0], epsilon=1.0, noise=OSNoise()).value
1

What a choice costs. The exponential mechanism with exp(epsilon u / (2 sensitivity)) has *bounded range* epsilon: its
privacy loss varies by at most epsilon over the outputs (Durfee and Rogers 2019; Dong, Durfee, Rogers 2020). Its largest
hockey-stick divergence is (1 - y)^2 / (1 - e^-epsilon) with y = exp(-(epsilon - e) / 2) at level e, and that is at most
1 - y, the divergence of a Laplace pair with shift epsilon, because y >= e^-epsilon for e >= -epsilon. The cost is
therefore stated as ``Laplace(1 / epsilon)``, a valid dominating pair.

Choices are made in floating point from uniform numbers of 52 bits; the lattice guarantee of `SecureNoise` is for sums.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from confide.accounting import Gaussian, Laplace
from confide.errors import InputError
from confide.mechanisms.noise import NoiseSource
from confide.mechanisms.released import F64, Released, check_epsilon, owner_codes, shares


def private_selection(
    scores: npt.ArrayLike, *, epsilon: float, noise: NoiseSource, sensitivity: float = 1.0, monotone: bool = False
) -> Released[int]:
    """Choose a candidate with a high score by the exponential mechanism (equal to report-noisy-max with Gumbel noise).

    Parameters
    ----------
    scores : float array, shape (candidates,)
        Higher is better. One contributor may move each score by at most `sensitivity`.
    epsilon : float
        Price for every contributor.
    noise : NoiseSource
    sensitivity : float
    monotone : bool
        Declares that adding a contributor moves all scores in the same direction; the choice is then twice as sharp.

    Returns
    -------
    Released
        Value: position of the chosen candidate.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise InputError("there is nothing to choose from", expected="a list of finite scores")
    if not 0 < sensitivity < math.inf:
        raise InputError(f"sensitivity is {sensitivity}", expected="a finite number above 0")
    sharpness = check_epsilon(epsilon) / (sensitivity if monotone else 2 * sensitivity)
    gumbel = -np.log(-np.log(noise.uniform(len(values))))
    return Released(int(np.argmax(sharpness * values + gumbel)), Laplace(1.0 / epsilon))


def quantile(
    values: npt.ArrayLike,
    owners: npt.ArrayLike,
    q: float,
    *,
    low: float,
    high: float,
    epsilon: float,
    noise: NoiseSource,
    candidates: int = 1001,
) -> Released[float]:
    """Release a quantile of values in which every contributor weighs 1.

    Parameters
    ----------
    values : float array, shape (entries,)
        Values outside the public range count as its ends.
    owners : array, shape (entries,)
    q : float
        Between 0 and 1; 0.5 is the median.
    low, high : float
        Public range.
    epsilon : float
    noise : NoiseSource
    candidates : int
        Number of equally spaced public values to choose from.

    Notes
    -----
    The score of candidate x is ``-|W(<= x) - q W|`` with W the total weight. A contributor of weight 1, a share a of it
    at or below x, moves the inside by a - q, between -q and 1 - q: the sensitivity is max(q, 1 - q).
    """
    if not 0 <= q <= 1:
        raise InputError(f"q is {q}", expected="a number between 0 and 1")
    if not (low < high and math.isfinite(high - low)) or candidates < 2:
        raise InputError(
            "the public range of a quantile is wrong", expected="finite low < high and at least 2 candidates"
        )
    array = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64), nan=low), low, high)
    weights = shares(owner_codes(owners, len(array)))
    grid = np.linspace(low, high, candidates)
    order = np.argsort(array, kind="stable")
    cumulated = np.concatenate([[0.0], np.cumsum(weights[order])])
    below = cumulated[np.searchsorted(array[order], grid, side="right")]
    scores = -np.abs(below - q * cumulated[-1])
    chosen = private_selection(scores, epsilon=epsilon, noise=noise, sensitivity=max(q, 1 - q))
    return Released(float(grid[chosen.value]), chosen.mechanism)


def partition_threshold(noise_multiplier: float, delta: float, max_partitions: int) -> float:
    """Return the noisy count above which a partition may be named.

    A partition that exists because of one contributor alone has count 1 / sqrt(k) if that contributor has k of them;
    the chance that any of the k is named must stay below `delta`, for every k up to `max_partitions`.
    """
    k = np.arange(1, max_partitions + 1)
    # 1 - (1 - delta)^(1/k), the share of delta for each of k independent partitions.
    share = -np.expm1(np.log1p(-delta) / k)
    return float(np.max(1 / np.sqrt(k) - noise_multiplier * ndtri(share)))


def select_partitions(
    partitions: Sequence[str],
    owners: npt.ArrayLike,
    mechanism: Gaussian,
    *,
    delta: float,
    max_partitions: int,
    noise: NoiseSource,
) -> Released[dict[str, float]]:
    """Release which values of an open list occur (diagnoses, words), without naming a value that only few people have.

    Parameters
    ----------
    partitions : sequence of str, one for each entry
    owners : array, shape (entries,)
    mechanism : Gaussian
        Noise on the counts, in units of one contributor.
    delta : float
        Chance that something is named that occurs for one contributor only; it adds to the delta of the guarantee.
    max_partitions : int
        Most values of one contributor; above it those with the smallest public hash are kept, a rule that looks at
        nobody else.
    noise : NoiseSource

    Returns
    -------
    Released
        Value: {partition: noisy count}, where a contributor with k partitions adds 1 / sqrt(k) to each. The guarantee
        holds at ``delta`` more than the mechanism's own delta.

    References
    ----------
    Korolova et al. 2009; Wilson et al. 2020; Swanberg, Desfontaines, Haney 2023 (weighted Gaussian thresholding).
    """
    if not 0 < delta < 1 or max_partitions < 1:
        raise InputError(
            "partition selection is not well defined", expected="delta in (0, 1), max_partitions at least 1"
        )
    codes = owner_codes(owners, len(partitions))
    names, place = np.unique(np.asarray(partitions, dtype=np.str_), return_inverse=True)
    pairs = (
        np.unique(np.stack([codes, place.reshape(-1)], axis=1), axis=0) if len(codes) else np.empty((0, 2), np.int64)
    )
    rank = _rank_by_hash(pairs, names)
    pairs = pairs[rank < max_partitions]
    held = np.bincount(pairs[:, 0]) if len(pairs) else np.empty(0, dtype=np.int64)
    left = 1.0 - noise.margin(max_partitions, scale=mechanism.noise_multiplier)
    weights = left / np.sqrt(held[pairs[:, 0]])
    sums = np.bincount(pairs[:, 1], weights, minlength=len(names)).astype(np.float64)
    present = np.bincount(pairs[:, 1], minlength=len(names)) > 0
    names, sums = names[present], sums[present]
    noisy = noise.add_normal(sums, scale=mechanism.noise_multiplier)
    named = noisy > partition_threshold(mechanism.noise_multiplier, delta, max_partitions)
    value = dict(zip(names[named].tolist(), noisy[named].tolist(), strict=True))
    return Released(value, mechanism, mechanism.noise_multiplier, delta)


def _rank_by_hash(pairs: npt.NDArray[np.int64], names: npt.NDArray[np.str_]) -> F64:
    """Return the rank of each (contributor, partition) pair within its contributor, by a public hash."""
    hashes = np.array(
        [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names.tolist()], np.uint64
    )
    order = np.lexsort((hashes[pairs[:, 1]], pairs[:, 0]))
    owner = pairs[order, 0]
    first = np.searchsorted(owner, owner, side="left")
    rank = np.empty(len(pairs))
    rank[order] = np.arange(len(pairs)) - first
    return rank
