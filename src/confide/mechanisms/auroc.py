"""The area under the ROC curve from noisy score histograms: a discrimination figure that may leave.

>>> import numpy as np
>>> from confide.mechanisms.noise import OSNoise
>>> rng = np.random.default_rng(0)
>>> labels = rng.integers(0, 2, 2000)
>>> scores = 1 / (1 + np.exp(-rng.normal(1.5 * labels)))
>>> released = noisy_auroc(scores, labels, np.arange(2000), epsilon=1.0, noise=OSNoise())
>>> released.value.low < released.value.auroc < released.value.high
True

Every contributor of the evaluation puts a total weight of 1 into one histogram of (label, score bin), so one Laplace
mechanism pays for everything that follows. The interval is simulated from the noisy histogram alone: it holds the
sampling of contributors, the noise and the bins, and it costs nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confide.accounting import Laplace
from confide.errors import InputError
from confide.mechanisms.histogram import noisy_histogram, nonnegative
from confide.mechanisms.noise import NoiseSource
from confide.mechanisms.released import F64, Released, check_epsilon


@dataclass(frozen=True)
class NoisyAUROC:
    """A noisy AUROC with its interval.

    Attributes
    ----------
    auroc : float or None
        None where the noise is as large as the signal: one of the classes has too few contributors.
    low, high : float
        Interval at `level`; 0 and 1 where `auroc` is None.
    level : float
    """

    auroc: float | None
    low: float
    high: float
    level: float


def _auroc(negative: F64, positive: F64) -> F64:
    """AUROC of histograms, last axis the score bins; ties within a bin count one half."""
    below = np.cumsum(negative, axis=-1) - 0.5 * negative
    total = negative.sum(-1) * positive.sum(-1)
    return np.asarray((below * positive).sum(-1) / np.where(total == 0, 1, total))


def noisy_auroc(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    owners: npt.ArrayLike,
    *,
    epsilon: float,
    noise: NoiseSource,
    bins: int = 20,
    level: float = 0.95,
    simulations: int = 2000,
) -> Released[NoisyAUROC]:
    """Release the AUROC of scores, charged to the contributors they were measured on.

    Parameters
    ----------
    scores : float array, shape (entries,)
        Between 0 and 1 (for example probabilities); values outside count as the ends.
    labels : array of 0 and 1, shape (entries,)
    owners : array, shape (entries,)
        Contributor of each entry; all entries of a contributor share weight 1.
    epsilon : float
        Price for every contributor in the evaluation.
    noise : NoiseSource
    bins : int
        Number of equal score bins, public; fewer bins mean less noise and more ties.
    level : float
        Confidence level of the interval.
    simulations : int

    Returns
    -------
    Released
        Value: `NoisyAUROC`. Mechanism: Laplace with scale 1 / epsilon.
    """
    marks = np.asarray(labels)
    values = np.clip(np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=0.5), 0.0, 1.0)
    if marks.shape != values.shape or not np.isin(marks, (0, 1)).all():
        raise InputError("labels do not fit the scores", expected="one 0 or 1 for each score")
    if not 0 < level < 1 or bins < 2:
        raise InputError("the interval is not well defined", expected="level between 0 and 1, at least 2 bins")
    place = np.minimum((values * bins).astype(np.int64), bins - 1) + bins * marks.astype(np.int64)
    mechanism = Laplace(1.0 / check_epsilon(epsilon))
    released = noisy_histogram(place, owners, 2 * bins, mechanism, noise=noise)
    value = _interval(released.value.reshape(2, bins), released.standard_error, mechanism, noise, level, simulations)
    return Released(value, mechanism, released.standard_error)


def _interval(
    noisy: F64, error: float, mechanism: Laplace, noise: NoiseSource, level: float, simulations: int
) -> NoisyAUROC:
    """Read AUROC and a basic (reflected) parametric bootstrap interval off a noisy histogram; post-processing."""
    bins = noisy.shape[1]
    # The total of a class has the noise of all its bins; below three standard errors it is not told from zero.
    if noisy.sum(-1).min() < 3 * error * np.sqrt(bins):
        return NoisyAUROC(None, 0.0, 1.0, level)
    smooth = np.stack([nonnegative(row) for row in noisy])
    centre = float(_auroc(smooth[0], smooth[1]))
    people = max(round(float(smooth.sum())), 1)
    share = (smooth / smooth.sum()).ravel()
    # Simulated people and simulated noise come from a generator of their own, seeded by the source: no data in it.
    generator = np.random.default_rng(int(noise.uniform(1)[0] * 2**52))
    drawn = generator.multinomial(people, share, size=simulations).astype(np.float64)
    again = (drawn + generator.laplace(0.0, mechanism.noise_multiplier, drawn.shape)).reshape(simulations, 2, bins)
    again = np.apply_along_axis(nonnegative, -1, again)
    spread = _auroc(again[:, 0], again[:, 1]) - centre
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return NoisyAUROC(centre, float(np.clip(centre - high, 0, centre)), float(np.clip(centre - low, centre, 1)), level)
