"""Is a predicted 30% a 30%? Calibration beside what a perfectly calibrated model would show, and selective prediction.

>>> import numpy as np
>>> scores = np.linspace(0.01, 0.99, 200)
>>> null = null_ece(scores, bins=15, rng=np.random.default_rng(0))
>>> bool(0.0 < null.mean < 0.15)  # never 0: a finite test set looks miscalibrated by chance
True

References
----------
Guo et al., "On calibration of modern neural networks", ICML 2017. Vaicenavicius et al., "Evaluating model calibration
in classification", AISTATS 2019 (resampling labels under the null of perfect calibration). Geifman and El-Yaniv,
"Selective classification for deep neural networks", NeurIPS 2017 (risk and coverage).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.errors import InputError
from confide.evaluation.metrics import Floats, _checked, _ratio, ece


@dataclass(frozen=True)
class NullEce:
    """The expected calibration error that a perfectly calibrated model with these scores would show by chance.

    Attributes
    ----------
    mean, high : float
        Mean, and the 95% quantile: a measured value above it is more than chance.
    """

    mean: float
    high: float


def null_ece(
    scores: ArrayLike,
    *,
    bins: int = 15,
    spacing: Literal["equal-width", "adaptive"] = "equal-width",
    draws: int = 1000,
    rng: np.random.Generator | None = None,
) -> NullEce:
    """Return the calibration error under perfect calibration: labels are drawn from the scores themselves.

    Parameters
    ----------
    scores : array, shape (n,)
        Probabilities.
    bins, spacing
        As for `ece`.
    draws : int
        Label vectors to draw.

    Raises
    ------
    InputError
        If a score is not a probability.
    """
    p = np.asarray(scores, dtype=np.float64)
    if p.ndim != 1 or p.size == 0 or not np.all((p >= 0) & (p <= 1)):
        raise InputError("scores are not probabilities", expected="numbers from 0 to 1, at least one")
    generator = np.random.default_rng() if rng is None else rng
    found = [
        float(ece((generator.random(p.size) < p).astype(int), p, bins=bins, spacing=spacing)) for _ in range(draws)
    ]
    return NullEce(float(np.mean(found)), float(np.quantile(found, 0.95)))


def nll(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, floor: float = 1e-7) -> Floats:
    """Return the mean negative log-likelihood in nats; probabilities are kept `floor` away from 0 and 1."""
    y, s, w = _checked(labels, scores, weights)
    p = np.clip(s, floor, 1.0 - floor)
    return _ratio(w @ -(y * np.log(p) + (1 - y) * np.log1p(-p)), w.sum(axis=-1))


def selective_curve(
    labels: ArrayLike, scores: ArrayLike, *, threshold: float = 0.5
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (coverage, accuracy on what is covered) when the least certain predictions are deferred first.

    Certainty is the distance of a score from `threshold`. Rows that are equally certain enter together.

    Returns
    -------
    coverage : ndarray
        Share of rows that get an answer, ascending, the last one 1.
    accuracy : ndarray
        Share of those that are answered correctly.
    """
    y, s, _ = _checked(labels, scores, None)
    if y.size == 0:
        raise InputError("there are no rows", expected="at least one prediction")
    certain = np.round(-np.abs(s - threshold), 12)  # 0.45 and 0.55 are equally far from 0.5
    order = np.argsort(certain, kind="stable")
    right = ((s >= threshold) == y)[order]
    ordered = certain[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    answered = last + 1.0
    return answered / y.size, np.cumsum(right)[last] / answered
