"""Time to an event on real and on synthetic patients: Kaplan-Meier, restricted means, Cox models. Internal.

statsmodels fits the curves and models (extra ``evaluate``). References: Kaplan and Meier 1958; Royston and Parmar 2013
(restricted mean); Karr et al. 2006 (overlap of confidence intervals as utility of synthetic data).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.errors import MissingExtraError
from confide.evaluation.tables import restricted_mean

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def _statsmodels(what: str) -> Any:
    try:
        import statsmodels.duration.api as duration
    except ImportError as error:
        raise MissingExtraError(f"{what} needs statsmodels", "evaluate") from error
    return duration


def kaplan_meier(times: Floats, events: Bools) -> tuple[Floats, Floats]:
    """Return the steps (time, share without the event) of the Kaplan-Meier curve, beginning at (0, 1)."""
    fitted = _statsmodels("a Kaplan-Meier curve").SurvfuncRight(times, events.astype(np.int64))
    return (
        np.concatenate([[0.0], np.asarray(fitted.surv_times, dtype=np.float64)]),
        np.concatenate([[1.0], np.asarray(fitted.surv_prob, dtype=np.float64)]),
    )


def restricted_mean_interval(
    times: Floats, events: Bools, horizon: float, rng: np.random.Generator, *, replicates: int = 100
) -> tuple[float, float, float]:
    """Return the restricted mean up to `horizon` with a 95% bootstrap interval over patients.

    At most 2,000 patients are drawn for each replicate, with the interval scaled to the whole number.
    """
    n = len(times)
    value, part = restricted_mean(times, events, horizon), min(n, 2_000)
    draws = (rng.integers(0, n, part) for _ in range(replicates))
    spread = float(np.std([restricted_mean(times[d], events[d], horizon) for d in draws])) * np.sqrt(part / n)
    return value, value - 1.96 * spread, value + 1.96 * spread


@dataclass(frozen=True)
class Coefficient:
    """A log hazard ratio with its 95% interval."""

    term: str
    value: float
    low: float
    high: float


def cox(times: Floats, events: Bools, covariates: dict[str, Floats]) -> list[Coefficient]:
    """Fit a proportional hazards model (Efron ties); terms that do not vary are left out.

    Parameters
    ----------
    covariates : mapping of term to float array, shape (patients,)
    """
    terms = [name for name, values in covariates.items() if np.isfinite(values).all() and values.std() > 1e-9]
    if not terms or events.sum() < 2 * len(terms):
        return []
    x = np.column_stack([covariates[name] for name in terms])
    model = _statsmodels("a Cox model").PHReg(times, x, status=events.astype(np.int64), ties="efron")
    fitted = model.fit()
    return [
        Coefficient(name, float(b), float(b - 1.96 * s), float(b + 1.96 * s))
        for name, b, s in zip(terms, fitted.params, fitted.bse, strict=True)
    ]


def interval_overlap(a: Coefficient, b: Coefficient) -> float:
    """Return the mean share of each interval that the other one covers; negative where they do not meet."""
    shared = min(a.high, b.high) - max(a.low, b.low)
    widths = a.high - a.low, b.high - b.low
    if min(widths) <= 0 or not np.isfinite(shared):
        return float("nan")
    return 0.5 * (shared / widths[0] + shared / widths[1])
