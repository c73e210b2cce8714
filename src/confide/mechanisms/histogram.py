"""Noisy histograms in which every contributor weighs 1 in total, however many entries they have.

>>> import numpy as np
>>> from confide.accounting import Gaussian
>>> from confide.mechanisms.noise import OSNoise
>>> bins, people = np.array([0, 0, 2, 2]), np.array(["ada", "ada", "ada", "ben"])
>>> released = noisy_histogram(bins, people, 3, Gaussian(noise_multiplier=2.0), noise=OSNoise())
>>> released.value.shape, released.mechanism.noise_multiplier
((3,), 2.0)

Sensitivity. A contributor's entries share weight 1, so adding or removing them changes the histogram by at most 1 in
L1, hence also in L2. The Gaussian mechanism needs L2; independent Laplace noise needs L1, and its worst case is the
whole weight in one bin, the scalar pair (checked numerically in the tests for splits over several bins).
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from confide.accounting import Gaussian, Laplace
from confide.errors import InputError
from confide.mechanisms.noise import NoiseSource
from confide.mechanisms.released import F64, I64, Released, check_epsilon, owner_codes, shares


class Counted(Protocol):
    """Anything that knows the number of entries of each contributor, such as a `ContributorIndex`."""

    @property
    def counts(self) -> I64:
        """Number of entries of each contributor."""
        ...


def add_noise(sums: F64, mechanism: Gaussian | Laplace, noise: NoiseSource) -> tuple[F64, float]:
    """Add the noise of a mechanism of sensitivity 1; returns noisy sums and the standard error of one."""
    scale = mechanism.noise_multiplier
    if isinstance(mechanism, Laplace):
        return noise.add_laplace(sums, scale=scale), math.sqrt(2) * scale
    return noise.add_normal(sums, scale=scale), scale


def margin_left(bins: int, mechanism: Gaussian | Laplace, noise: NoiseSource) -> float:
    """Return the total weight a contributor may have, so that rounding stays inside sensitivity 1."""
    left = 1.0 - noise.margin(bins, scale=mechanism.noise_multiplier, norm=1 if isinstance(mechanism, Laplace) else 2)
    if left <= 0.5:
        raise InputError("secure noise is too coarse for so many bins", remedy="use fewer bins or less noise")
    return left


def noisy_histogram(
    bins: npt.ArrayLike,
    owners: npt.ArrayLike,
    n_bins: int,
    mechanism: Gaussian | Laplace,
    *,
    noise: NoiseSource,
) -> Released[F64]:
    """Release how many contributors fall into each bin of a public list.

    Parameters
    ----------
    bins : int array, shape (entries,)
        Bin 0..n_bins-1 of each entry; an entry outside is put into no bin (its weight is lost, nobody else's changes).
    owners : array, shape (entries,)
        Contributor of each entry.
    n_bins : int
        Number of bins, public.
    mechanism : Gaussian or Laplace
        The noise, in units of one contributor.
    noise : NoiseSource

    Returns
    -------
    Released
        Value: float64 array of shape (n_bins,), unbiased, may be negative.
    """
    places = np.asarray(bins)
    codes = owner_codes(owners, len(places))
    inside = (places >= 0) & (places < n_bins)
    weights = shares(codes)[inside] * margin_left(n_bins, mechanism, noise)
    sums = np.bincount(places[inside].astype(np.int64), weights, minlength=n_bins).astype(np.float64)
    value, error = add_noise(sums, mechanism, noise)
    return Released(value, mechanism, error)


def nonnegative(noisy: F64) -> F64:
    """Return the nearest non-negative histogram with the same (unbiased) total; costs nothing, it sees only noise.

    Setting negative bins to zero would add the noise of all empty bins to the total; here a common amount is taken off
    instead (Euclidean projection on the simplex; Duchi et al., ICML 2008).
    """
    total = max(float(noisy.sum()), 0.0)
    down = np.sort(noisy)[::-1]
    excess = (np.cumsum(down) - total) / np.arange(1, len(down) + 1)
    keep = np.flatnonzero(down > excess)
    cut = excess[keep[-1]] if len(keep) else 0.0
    return np.maximum(noisy - cut, 0.0) if total > 0 else np.zeros_like(noisy)


def release_entry_counts(
    index: Counted, max_entries: int, epsilon: float, *, noise: NoiseSource
) -> Released[dict[int, float]]:
    """Release how many contributors have how many entries.

    Parameters
    ----------
    index : ContributorIndex, or anything with an int array `counts`
    max_entries : int
        Public bound; contributors with more entries are counted there.
    epsilon : float
        Price for every contributor.
    noise : NoiseSource

    Returns
    -------
    Released
        Value: {entries: contributors} for entries 1..max_entries, non-negative, not rounded, with an unbiased total
        before negative totals are set to zero. Mechanism: Laplace with scale 1 / epsilon.
    """
    if max_entries < 1:
        raise InputError(f"max_entries is {max_entries}", expected="a whole number, at least 1")
    counts = np.asarray(index.counts)
    counts = np.clip(counts, 1, max_entries)
    mechanism = Laplace(1.0 / check_epsilon(epsilon))
    released = noisy_histogram(counts - 1, np.arange(len(counts)), max_entries, mechanism, noise=noise)
    value = dict(zip(range(1, max_entries + 1), nonnegative(released.value).tolist(), strict=True))
    return Released(value, mechanism, released.standard_error)
