"""The strongest score an adversary who sees every noisy step can have, and thresholds fixed on a separate half.

>>> import numpy as np
>>> absent, present = np.array([0.0]), np.array([3.0])
>>> def score(y):
...     return step_scores(y, noise_multiplier=1.0, rate=0.5, entries=1, clip_norm=1.0)
>>> bool((score(present) > score(absent)).all())
True

By the lemma of Neyman and Pearson no test between "the canary is in" and "it is not" beats thresholds on the log
likelihood ratio. A canary whose entries all push one coordinate by exactly the clip makes the dominating pair of a step
real, so the ratio of that pair is the exact score, and independent steps add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from confide.accounting import Correlation, SampledGaussian
from confide.audit.bounds import Outcome, mu_lower_bound
from confide.errors import InputError

F64 = npt.NDArray[np.float64]

_STRETCH = 51

__all__ = ["Halves", "correlated_scores", "split_halves", "step_scores", "thresholds"]


def step_scores(
    observed: npt.ArrayLike, *, noise_multiplier: float, rate: float, entries: int, clip_norm: float = 1.0
) -> F64:
    """Return log(P / Q) of one step's observation under the dominating pair.

    P = sum_j Binomial(entries, rate)(j) N(j clip_norm, noise_multiplier^2), Q = N(0, noise_multiplier^2)
    (Choquette-Choo et al., arXiv 2310.15526).

    Parameters
    ----------
    observed : array, any shape
        Noisy sum on the canary's coordinate, in units of the plan's clipping norm C.
    noise_multiplier : float
        Standard deviation of the noise in units of C.
    rate : float
        Probability with which each unit is drawn.
    entries : int
        Separately drawn and clipped units of the canary.
    clip_norm : float
        Clip of each unit in units of C.

    Returns
    -------
    float64 array of the same shape
    """
    y = np.asarray(observed, dtype=np.float64)
    if not (noise_multiplier > 0 and 0 <= rate <= 1 and entries >= 1 and clip_norm > 0):
        raise InputError(
            "no score exists for these parameters",
            where="audit score",
            expected="noise and clip above 0, a rate in 0..1, 1 or more entries",
        )
    total = np.full(y.shape, -np.inf)
    shifts = np.arange(entries + 1)
    weights = stats.binom.logpmf(shifts, entries, rate)
    for shift, weight in zip(shifts * clip_norm / noise_multiplier, weights, strict=True):
        if weight > -np.inf:
            np.logaddexp(total, weight + shift * (y / noise_multiplier) - shift * shift / 2, out=total)
    return total


def correlated_scores(
    sums: F64, groups: npt.NDArray[np.int64], factor: Correlation, *, mechanism: SampledGaussian, noise: float
) -> F64:
    """Return log(P / Q) of a whole run under correlated noise, for people whose group is known.

    The noise of all steps is C^-1 z, so C times the noisy sums has the independent noise z, and a contribution x_t of
    step t shows as x_t times column t of C. With a banded factor the columns of one group's steps are orthogonal and of
    norm 1 (those at the end, cut off, less): the projection on each is one step of the plan's mechanism. With the other
    factor everybody takes part in every turn of their group, and the projection on the sum of those columns says all.

    Parameters
    ----------
    sums : float64 array, shape (steps, people)
        Noisy sums on each person's coordinate, in units of the clipping norm.
    groups : int64 array, shape (people,)
    factor : Correlation
    mechanism : SampledGaussian
        Of a step in which it is one's turn.
    noise : float
        Standard deviation of z in units of the clipping norm.

    Returns
    -------
    float64 array, shape (people,)
    """
    steps = len(sums)
    whole = np.zeros((steps, steps))
    column = factor.column(steps)
    for t in range(steps):
        whole[t:, t] = column[: steps - t]
    seen = whole @ sums
    out = np.zeros(sums.shape[1])
    for group in np.unique(groups):
        turns = np.arange(group, steps, factor.separation)
        if not len(turns):
            continue
        mine = groups == group
        ways = whole[:, turns] if factor.amplifies else whole[:, turns].sum(1, keepdims=True)
        for way in ways.T:
            length = float(np.linalg.norm(way))
            out[mine] += step_scores(
                way @ seen[:, mine] / length,
                noise_multiplier=noise,
                rate=mechanism.rate,
                entries=mechanism.entries,
                clip_norm=mechanism.clip_norm * length,
            )
    return out


@dataclass(frozen=True)
class Halves:
    """Scores without and with the canary, one half to choose thresholds on and one to report on."""

    choose_absent: F64
    choose_present: F64
    report_absent: F64
    report_present: F64

    def outcome(self, threshold: float) -> Outcome:
        """Count what `threshold` does on the reporting half."""
        return Outcome.at(threshold, self.report_absent, self.report_present)


def split_halves(absent: npt.ArrayLike, present: npt.ArrayLike) -> Halves:
    """Split independent scores into a first half for choosing thresholds and a second half for reporting."""
    without, with_ = np.asarray(absent, dtype=np.float64), np.asarray(present, dtype=np.float64)
    if min(without.size, with_.size) < 2:
        raise InputError(
            f"{without.size} scores without and {with_.size} with the canary",
            where="audit",
            expected="at least two of each, half of them to choose thresholds on",
        )
    a, b = without.size // 2, with_.size // 2
    return Halves(without[:a], with_[:b], without[a:], with_[b:])


def thresholds(halves: Halves, *, low_rates: Sequence[float] = (0.01, 0.1), error: float = 0.05) -> tuple[float, ...]:
    """Choose thresholds on the first half only.

    The first one is the middle of the stretch of thresholds (a tenth of all) with the largest mean of mu lower bounds
    there. The others have false positive rates and false negative rates of
    about `low_rates`: a broken mechanism often shows in one tail before it shows in the middle.

    Returns
    -------
    tuple of float
        The one for the estimate under GDP first, then those added for the violation test; distinct.
    """
    pooled = np.concatenate([halves.choose_absent, halves.choose_present])
    candidates = np.unique(np.quantile(pooled, np.linspace(0.002, 0.998, 499)))
    found = [
        mu_lower_bound(Outcome.at(float(t), halves.choose_absent, halves.choose_present), error=error)
        for t in candidates
    ]
    # The largest single value is often luck in a tail, where the other half then shows less: look for the best stretch.
    width = min(_STRETCH, len(candidates))
    best = int(np.argmax(np.convolve(found, np.ones(width) / width, mode="valid"))) + width // 2
    chosen = [float(candidates[best])]
    for rate in low_rates:
        chosen.append(float(np.quantile(halves.choose_absent, 1 - rate)))
        chosen.append(float(np.quantile(halves.choose_present, rate)))
    return tuple(dict.fromkeys(chosen))
