"""Metrics that may leave: one noisy histogram of scores, paid for by the people it was measured on.

>>> import numpy as np
>>> from confide.mechanisms import OSNoise
>>> rng = np.random.default_rng(0)
>>> labels = rng.integers(0, 2, 2000)
>>> scores = 1 / (1 + np.exp(-rng.normal(1.5 * labels)))
>>> paid = paid_metrics(labels, scores, np.arange(2000), epsilon=1.0, delta=1e-5, noise=OSNoise())
>>> paid.auroc.low < paid.auroc.value < paid.auroc.high
True

Each held-out contributor adds a total weight of at most 1 to a histogram over (label, score bin), so the vector moves
by at most 1 in Euclidean norm when a contributor with all their entries comes or goes. Gaussian noise of standard
deviation `noise_multiplier` is added to every cell once. AUROC, accuracy and prevalence are read from that one noisy
table, so together they cost what the table cost.

The intervals are honest about three things at once: the noise, the sampling of people, and the rounding of scores into
bins. With M the comparison matrix of bins, the set of all A for which the bilinear statistic
T(A) = positive' (M - A) negative lies within z of its standard deviation is reported (Fieller's construction, which
stays valid when the noisy denominators are small); the lower end counts ties within a bin as losses, the upper end
counts them as wins.

References
----------
Fieller, "Some problems in interval estimation", JRSS B 1954. Dwork et al., "Our data, ourselves", 2006 (Gaussian
mechanism); the exact cost is that of `confide.accounting.Gaussian`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from confide.accounting import Gaussian, Guarantee, calibrate_noise
from confide.errors import InputError
from confide.evaluation.bootstrap import per_contributor
from confide.mechanisms import NoiseSource, noisy_histogram
from confide.release import PaidMetric, paid_metric

Floats = NDArray[np.float64]
_GRID = np.linspace(0.0, 1.0, 2001)
NOTE = (
    "AUROC, accuracy and prevalence are read from one noisy histogram of scores and were paid for once; "
    "every contributor has a total weight of 1"
)


@dataclass(frozen=True)
class PaidEstimate:
    """A noisy figure and an interval that covers noise, sampling and rounding; value None where noise rules."""

    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class PaidMetrics:
    """What one noisy histogram says. All of it may leave.

    Attributes
    ----------
    auroc, accuracy, prevalence : PaidEstimate
    positive, negative : ndarray, shape (bins,)
        The noisy histogram itself.
    edges : ndarray, shape (bins + 1,)
    mechanism : Gaussian
        What it cost each contributor it was measured on, once.
    """

    auroc: PaidEstimate
    accuracy: PaidEstimate
    prevalence: PaidEstimate
    positive: Floats
    negative: Floats
    edges: Floats
    mechanism: Gaussian
    level: float
    delta: float
    measured_per: Literal["contributor", "entry"]

    @property
    def guarantee(self) -> Guarantee:
        """Guarantee of every contributor the metrics were measured on."""
        return self.mechanism.guarantee()

    def for_certificate(self, *, who: str = "held-out contributors") -> tuple[PaidMetric, ...]:
        """Return the figures as they stand in a certificate."""
        return tuple(
            paid_metric(
                name,
                self.guarantee,
                delta=self.delta,
                value=one.value,
                low=one.low,
                high=one.high,
                who=who,
                level=self.level,
                measured_per=self.measured_per,
                note=NOTE,
            )
            for name, one in (("AUROC", self.auroc), ("accuracy", self.accuracy), ("prevalence", self.prevalence))
        )


def paid_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    contributors: ArrayLike,
    *,
    noise: NoiseSource,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    unit: Literal["contributor", "entry"] = "contributor",
    aggregate: Literal["mean", "max"] = "mean",
    edges: ArrayLike | int = 20,
    threshold: float = 0.5,
    level: float = 0.95,
) -> PaidMetrics:
    """Release AUROC, accuracy and prevalence on held-out people from one noisy histogram.

    Parameters
    ----------
    labels : array of 0 and 1, shape (n entries,)
    scores : array, shape (n entries,)
        Predictions; values outside the outer edges count as these.
    contributors : array, shape (n entries,)
        Whose entry each row is.
    noise : NoiseSource
        Of `confide.mechanisms`.
    delta : float
        Where the cost is read.
    epsilon, noise_multiplier : float
        Exactly one of them: the price, or the standard deviation of the noise in units of one contributor.
    unit : str
        "contributor": one row a person (see `evaluate`). "entry": every entry counts 1 / (entries of that person), so
        the figure is about entries, weighted such that every person counts the same.
    edges : int or array
        Public bin edges, or their number for equal widths over [0, 1]. Choose finer ones where scores are crowded: the
        interval covers the worst case within a bin.
    threshold : float
        For accuracy; moved to the nearest edge.
    level : float
        Confidence level of the intervals.

    Returns
    -------
    PaidMetrics

    Raises
    ------
    InputError
        If shapes differ, labels are not 0 and 1, edges do not increase, or not exactly one price is given.
    """
    y, s, owner = np.asarray(labels), np.asarray(scores, dtype=np.float64), np.asarray(contributors)
    if y.ndim != 1 or y.shape != s.shape or y.shape != owner.shape or not np.all((y == 0) | (y == 1)):
        raise InputError(
            f"labels, scores and contributors have shapes {y.shape}, {s.shape} and {owner.shape}",
            expected="three arrays of one length, with labels 0 and 1",
        )
    if (epsilon is None) == (noise_multiplier is None):
        raise InputError(
            "the price of the metrics is not clear", expected="exactly one of epsilon and noise_multiplier"
        )
    cuts = np.linspace(0.0, 1.0, edges + 1) if isinstance(edges, int) else np.asarray(edges, dtype=np.float64)
    if cuts.ndim != 1 or cuts.size < 3 or not np.all(np.diff(cuts) > 0):
        raise InputError("the bin edges of the metrics cannot be used", expected="at least 2 bins, edges increasing")
    if noise_multiplier is None:
        noise_multiplier = calibrate_noise(float(epsilon or 0.0), delta=delta, rate=1.0, steps=1)
    # A score that is not a number counts as the lowest one: leaving it out would tell that it was there.
    s = np.clip(np.nan_to_num(s, nan=-np.inf, posinf=np.inf, neginf=-np.inf), cuts[0], cuts[-1])
    _, of_entry = np.unique(owner, return_inverse=True)
    if unit == "contributor":
        y, s = per_contributor(y, s, of_entry, aggregate=aggregate)
        of_entry = np.arange(y.size)
    elif unit != "entry":
        raise InputError(f"unknown unit {unit!r}", expected="'contributor' or 'entry'")
    place = np.searchsorted(cuts[1:-1], s, side="right")
    bins = cuts.size - 1
    mechanism = Gaussian(noise_multiplier=float(noise_multiplier))
    released = noisy_histogram(place + bins * y.astype(np.int64), of_entry, 2 * bins, mechanism, noise=noise)
    return _read(released.value.reshape(2, bins), cuts, mechanism, threshold, level, float(delta), unit)


def _read(
    noisy: Floats,
    cuts: Floats,
    mechanism: Gaussian,
    threshold: float,
    level: float,
    delta: float,
    unit: Literal["contributor", "entry"],
) -> PaidMetrics:
    sigma = mechanism.noise_multiplier
    z = float(ndtri(0.5 + level / 2.0))
    negative, positive = noisy
    bins = positive.size
    above = np.tril(np.ones((bins, bins)), -1)
    middle, tied = above + 0.5 * np.eye(bins), above + np.eye(bins)
    low, _ = _accepted(lambda a: _auroc_statistic(positive, negative, above, a, sigma), z)
    _, high = _accepted(lambda a: _auroc_statistic(positive, negative, tied, a, sigma), z)
    # Below three standard deviations of their own noise, the class totals say nothing that a ratio could stand on.
    clear = min(positive.sum(), negative.sum()) > 3.0 * sigma * np.sqrt(bins)
    value = float(positive @ middle @ negative / (positive.sum() * negative.sum())) if clear else None
    edge = int(np.argmin(np.abs(cuts - threshold)))
    says_positive = np.arange(bins) >= edge
    correct = np.concatenate([~says_positive, says_positive]).astype(np.float64)
    is_positive = np.repeat([0.0, 1.0], bins)
    return PaidMetrics(
        auroc=_estimate(value, low, high),
        accuracy=_share(noisy.ravel(), correct, sigma, z),
        prevalence=_share(noisy.ravel(), is_positive, sigma, z),
        positive=positive.copy(),
        negative=negative.copy(),
        edges=cuts,
        mechanism=mechanism,
        level=level,
        delta=delta,
        measured_per=unit,
    )


def _auroc_statistic(
    positive: Floats, negative: Floats, wins: Floats, candidates: Floats, sigma: float
) -> tuple[Floats, Floats]:
    """Return T(A) and an upper estimate of its variance for every candidate A."""
    against = (wins @ negative)[:, None] - candidates * negative.sum()
    behind = (wins.T @ positive)[:, None] - candidates * positive.sum()
    statistic = positive @ against
    # Plugging noisy counts in overestimates both terms on average, which keeps the interval on the wide side.
    noise = sigma**2 * (np.sum(against**2, axis=0) + np.sum(behind**2, axis=0))
    people = np.maximum(positive, 0.0) @ against**2 + np.maximum(negative, 0.0) @ behind**2
    return statistic, noise + people


def _share(cells: Floats, member: Floats, sigma: float, z: float) -> PaidEstimate:
    """Estimate the share of the weight in member cells, with the same construction."""

    def statistic(candidates: Floats) -> tuple[Floats, Floats]:
        influence = member[:, None] - candidates
        variance = np.sum((sigma**2 + np.maximum(cells, 0.0))[:, None] * influence**2, axis=0)
        return cells @ influence, variance

    low, high = _accepted(statistic, z)
    total = float(cells.sum())
    clear = total > 3.0 * sigma * np.sqrt(cells.size)
    return _estimate(float(cells @ member) / total if clear else None, low, high)


def _accepted(statistic: Callable[[Floats], tuple[Floats, Floats]], z: float) -> tuple[float, float]:
    """Return the smallest and the largest candidate that the noisy counts do not contradict."""
    value, variance = statistic(_GRID)
    kept = np.flatnonzero(np.abs(value) <= z * np.sqrt(variance))
    if kept.size == 0:  # an interval shorter than the grid: keep the grid cell around the best candidate
        kept = np.array([int(np.argmin(np.abs(value)))])
    step = _GRID[1]
    return max(0.0, float(_GRID[kept[0]] - step)), min(1.0, float(_GRID[kept[-1]] + step))


def _estimate(value: float | None, low: float, high: float) -> PaidEstimate:
    if value is None:
        return PaidEstimate(None, low, high)
    value = min(1.0, max(0.0, value))
    return PaidEstimate(value, min(low, value), max(high, value))
