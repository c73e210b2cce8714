"""From counted attack outcomes to lower bounds on what leaked, and to a test of the claimed trade-off curve.

>>> outcome = Outcome(false_positives=3, absent=500, false_negatives=240, present=500)
>>> round(epsilon_lower_bound(outcome, delta=1e-5), 2), round(mu_lower_bound(outcome), 2)
(3.31, 2.05)

Two different questions are kept apart. The *estimate under GDP* asks "if the trade-off curve is that of a Gaussian
mechanism, how large is mu at least?"; it is sharp and conditional, and it is labelled so. The *violation test* asks
"can the observed point lie on or above the claimed curve?"; it assumes nothing about the shape of anything.

References
----------
Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934.
Jagielski et al., "Auditing differentially private machine learning", 2020 (arXiv 2006.07709), for epsilon from counts.
Nasr et al., "Tight auditing of differentially private machine learning", 2023 (arXiv 2302.07956), for mu from counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from confide.accounting import Gaussian
from confide.errors import InputError

F64 = npt.NDArray[np.float64]
Curve = Callable[[npt.ArrayLike], F64]

__all__ = [
    "Outcome",
    "Violation",
    "attainable_under_gdp",
    "clopper_pearson",
    "epsilon_lower_bound",
    "epsilon_under_gdp",
    "largest_epsilon_under_gdp",
    "mu_lower_bound",
    "tradeoff_violation",
]


@dataclass(frozen=True)
class Outcome:
    """What one fixed threshold did on observations that had no part in choosing it.

    Attributes
    ----------
    false_positives : int
        Observations without the canary that were called "present".
    absent : int
        Observations without the canary.
    false_negatives : int
        Observations with the canary that were called "absent".
    present : int
        Observations with the canary.
    threshold : float
        Scores above it are called "present".

    Raises
    ------
    InputError
        No observations on a side, or more errors than observations.
    """

    false_positives: int
    absent: int
    false_negatives: int
    present: int
    threshold: float = math.nan

    def __post_init__(self) -> None:
        for errors, trials, side in (
            (self.false_positives, self.absent, "without"),
            (self.false_negatives, self.present, "with"),
        ):
            if not 0 <= errors <= trials or trials < 1:
                raise InputError(
                    f"{errors} errors in {trials} observations {side} the canary",
                    where="audit outcome",
                    expected="at least one observation on each side, and no more errors than observations",
                )

    @classmethod
    def at(cls, threshold: float, absent: npt.ArrayLike, present: npt.ArrayLike) -> Outcome:
        """Count the errors that `threshold` makes on scores without and with the canary."""
        without, with_ = np.asarray(absent, dtype=np.float64), np.asarray(present, dtype=np.float64)
        return cls(
            int(np.count_nonzero(without > threshold)),
            without.size,
            int(np.count_nonzero(with_ <= threshold)),
            with_.size,
            float(threshold),
        )

    def upper_rates(self, error: float) -> tuple[float, float]:
        """Return (FPR, FNR) upper bounds that hold together with probability at least 1 - `error`."""
        return (
            clopper_pearson(self.false_positives, self.absent, error=error)[1],
            clopper_pearson(self.false_negatives, self.present, error=error)[1],
        )


def clopper_pearson(successes: int, trials: int, *, error: float = 0.05) -> tuple[float, float]:
    """Return the exact two-sided confidence interval of a binomial probability.

    Parameters
    ----------
    successes, trials : int
    error : float
        Probability that the interval misses the truth, at most; each side takes half of it.

    Returns
    -------
    (low, high) : tuple of float

    Raises
    ------
    InputError
        Counts that are no counts, or an error outside (0, 1).
    """
    if not 0 < error < 1:
        raise InputError(f"error is {error}", where="clopper_pearson", expected="a probability between 0 and 1")
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(
            f"{successes} successes in {trials} trials",
            where="clopper_pearson",
            expected="0 <= successes <= trials, 1 <= trials",
        )
    low = 0.0 if successes == 0 else float(stats.beta.ppf(error / 2, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.isf(error / 2, successes + 1, trials - successes))
    return low, high


def epsilon_lower_bound(outcome: Outcome, *, delta: float, error: float = 0.05) -> float:
    """Return the epsilon that the observed rates prove at `delta`, without any assumption on the mechanism.

    Every (epsilon, delta) mechanism obeys TPR <= e^epsilon FPR + delta and the same with the roles exchanged; both are
    evaluated at Clopper-Pearson bounds that hold together with probability 1 - `error`.

    Returns
    -------
    float
        Never below 0; limited by the number of observations, so a small value is no proof of slack.
    """
    fpr, fnr = outcome.upper_rates(error)
    ratios = [(1 - fnr - delta) / fpr, (1 - fpr - delta) / fnr]
    return max(0.0, *(math.log(r) if r > 0 else 0.0 for r in ratios))


def mu_lower_bound(outcome: Outcome, *, error: float = 0.05) -> float:
    """Return the mu that the observed rates prove *if* the trade-off curve is Gaussian (estimate under GDP).

    mu >= Phi^-1(1 - FPR) - Phi^-1(FNR), at Clopper-Pearson upper bounds of both rates (Nasr et al., 2023).
    """
    fpr, fnr = outcome.upper_rates(error)
    return max(0.0, float(special.ndtri(1 - fpr) - special.ndtri(fnr)))


def epsilon_under_gdp(mu: float, *, delta: float) -> float:
    """Return epsilon at `delta` of the Gaussian mechanism with sensitivity `mu` and unit noise; the low end."""
    if mu <= 0:
        return 0.0
    return max(0.0, float(Gaussian(noise_multiplier=1 / mu).guarantee().epsilon_interval(delta)[0]))


def largest_epsilon_under_gdp(absent: int, present: int, *, delta: float, error: float = 0.05) -> float:
    """Return the estimate under GDP that a perfect separation of so many observations would give.

    No audit of this size can report more; print it beside the result.
    """
    return epsilon_under_gdp(mu_lower_bound(Outcome(0, absent, 0, present), error=error), delta=delta)


def attainable_under_gdp(claim: Curve, *, delta: float) -> float:
    """Return what the estimate under GDP tends to, with ever more observations, on a loop that leaks all it claims.

    A claimed curve that is not Gaussian has another mu at each point, and at a small delta its tail leaks more than its
    middle, where thresholds can be tested. The largest mu at error rates of 1 % and more is taken, so an estimate well
    below the claim and near this figure shows the limit of the estimate and no slack in the claim.

    Parameters
    ----------
    claim : callable
        FPR array -> lowest FNR (`Guarantee.tradeoff`).
    delta : float
    """
    fpr = np.linspace(0.01, 0.99, 99)
    fnr = np.asarray(claim(fpr), dtype=np.float64)
    inside = (fnr >= 0.01) & (fpr < 1 - fnr)
    mu = special.ndtri(1 - fpr[inside]) - special.ndtri(fnr[inside])
    return epsilon_under_gdp(float(mu.max(initial=0.0)), delta=delta)


@dataclass(frozen=True)
class Violation:
    """Result of the test of a claimed trade-off curve.

    Attributes
    ----------
    rejected : bool
        True when some point lies below the claimed curve beyond chance: the claim is wrong.
    margin : float
        Largest claimed FNR minus the upper bound of the observed FNR, over the points; positive rejects.
    error : float
        Probability, at most, that a true claim is rejected.
    points : tuple of Outcome
    """

    rejected: bool
    margin: float
    error: float
    points: tuple[Outcome, ...]


def tradeoff_violation(points: Sequence[Outcome], claim: Curve, *, error: float = 1e-4) -> Violation:
    """Test whether observed error rates can lie on or above a claimed trade-off curve.

    With probability at least 1 - `error` the Clopper-Pearson upper bounds (a, b) of (FPR, FNR) hold at all points at
    once (each of the m points gets error / m, each of its two rates half of that). A claimed curve f never rises, so a
    true claim gives b >= FNR >= f(FPR) >= f(a); b < f(a) therefore contradicts it. This is one test for both directions
    (canary added, canary removed): exchanging the hypotheses mirrors curve and point, and a point below the curve stays
    below it.

    Parameters
    ----------
    points : sequence of Outcome
        Thresholds must have been fixed on other observations.
    claim : callable
        FPR array -> the lowest FNR that the claim allows, "absent" being the null hypothesis (`Guarantee.tradeoff`).
    error : float
        Probability, at most, that a true claim is rejected.

    Returns
    -------
    Violation

    Raises
    ------
    InputError
        No points.
    """
    if not points:
        raise InputError(
            "no points to test the claim with", where="tradeoff_violation", expected="at least one threshold"
        )
    margin = -math.inf
    for point in points:
        fpr, fnr = point.upper_rates(error / len(points))
        allowed = float(np.asarray(claim(np.array([fpr])), dtype=np.float64)[0])
        margin = max(margin, allowed - fnr)
    return Violation(margin > 0, margin, error, tuple(points))
