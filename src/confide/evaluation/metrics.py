"""Discrimination and calibration of a binary prediction, with a weight for every row.

>>> import numpy as np
>>> labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
>>> float(auroc(labels, scores)), float(accuracy(labels, scores)), round(float(brier(labels, scores)), 4)
(0.75, 0.75, 0.1581)

Every metric takes weights of shape (..., n) and returns shape (...): a bootstrap is one call with one row of weights a
replicate, and ties are sorted out once. Undefined values (one class only, no weight) are nan.

References
----------
Fawcett, "An introduction to ROC analysis", 2006 (AUROC with ties counted one half). Davis and Goadrich, 2006 (AUPRC as
average precision, no interpolation). Guo et al., "On calibration of modern neural networks", 2017, and Nguyen and
O'Connor, 2015 (ECE with equal-width and with adaptive, equally filled bins).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.errors import InputError

Floats = NDArray[np.float64]
Metric = Callable[..., Floats]


def auroc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the probability that a positive row scores higher than a negative one, ties counted one half.

    Parameters
    ----------
    labels : array of 0 and 1, shape (n,)
    scores : array, shape (n,)
    weights : array, shape (..., n), optional
        Non-negative; default 1.

    Returns
    -------
    ndarray, shape (...)
        nan where one class has no weight.

    Raises
    ------
    InputError
        If the shapes differ, a label is neither 0 nor 1, or a score is not finite.
    """
    y, s, w = _checked(labels, scores, weights)
    order, first = _tie_groups(s)
    positive = _grouped(w[..., order] * y[order], first)
    negative = _grouped(w[..., order] * (1 - y[order]), first)
    below = np.cumsum(negative, axis=-1) - negative
    wins = np.sum(positive * (below + 0.5 * negative), axis=-1)
    return _ratio(wins, positive.sum(axis=-1) * negative.sum(axis=-1))


def auprc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the average precision: the sum of precision times the step in recall, from the highest score down."""
    y, s, w = _checked(labels, scores, weights)
    order, first = _tie_groups(-s)
    positive = _grouped(w[..., order] * y[order], first)
    everything = _grouped(w[..., order], first)
    precision = _ratio(np.cumsum(positive, axis=-1), np.cumsum(everything, axis=-1), empty=0.0)
    return _ratio(np.sum(positive * precision, axis=-1), positive.sum(axis=-1))


def accuracy(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, threshold: float = 0.5
) -> Floats:
    """Return the share of rows on the right side of `threshold` (a score at the threshold counts as positive)."""
    y, s, w = _checked(labels, scores, weights)
    return _ratio(w @ ((s >= threshold) == y).astype(np.float64), w.sum(axis=-1))


def sensitivity(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, threshold: float = 0.5
) -> Floats:
    """Return the share of positive rows that are predicted positive (true positive rate, recall)."""
    y, s, w = _checked(labels, scores, weights)
    return _ratio(w @ (y * (s >= threshold)), w @ y)


def positive_rate(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, threshold: float = 0.5
) -> Floats:
    """Return the share of rows that are predicted positive, whatever they are."""
    _, s, w = _checked(labels, scores, weights)
    return _ratio(w @ (s >= threshold).astype(np.float64), w.sum(axis=-1))


def mcc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, threshold: float = 0.5) -> Floats:
    """Return Matthews' correlation of prediction and label; 0 where one of them does not vary (as scikit-learn)."""
    y, s, w = _checked(labels, scores, weights)
    hit = (s >= threshold).astype(np.float64)
    total = w.sum(axis=-1)
    labelled, predicted, both = w @ y, w @ hit, w @ (y * hit)
    spread = labelled * (total - labelled) * predicted * (total - predicted)
    value = _ratio(both * total - labelled * predicted, np.sqrt(np.maximum(spread, 0.0)), empty=0.0)
    return np.where(total > 0, value, np.nan)


def youden_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the threshold with the largest sensitivity + specificity - 1; use it on validation contributors only.

    Raises
    ------
    InputError
        If only one class is there.
    """
    y, s, _ = _checked(labels, scores, None)
    if y.size == 0 or y.min() == y.max():
        raise InputError("a threshold cannot be chosen", expected="rows of both classes")
    order, first = _tie_groups(-s)
    ones = np.ones(y.size)
    true = np.cumsum(_grouped((ones * y)[order], first)) / y.sum()
    false = np.cumsum(_grouped((ones * (1 - y))[order], first)) / (1 - y).sum()
    return float(s[order][first][int(np.argmax(true - false))])


def brier(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the mean squared difference between the predicted probability and the label."""
    y, s, w = _checked(labels, scores, weights)
    return _ratio(w @ (s - y) ** 2, w.sum(axis=-1))


def ece(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    bins: int = 10,
    spacing: Literal["equal-width", "adaptive"] = "equal-width",
) -> Floats:
    """Return the expected calibration error: the weighted mean of ``|observed share - mean prediction|`` over bins.

    Parameters
    ----------
    labels, scores, weights
        See `auroc`; scores are probabilities.
    bins : int
        Number of bins.
    spacing : str
        "equal-width" over [0, 1], or "adaptive": edges at quantiles of all scores (fixed over bootstrap replicates;
        equal scores share a bin).
    """
    y, s, w = _checked(labels, scores, weights)
    mass, predicted, observed = _binned(y, s, w, bins=bins, spacing=spacing)
    return _ratio(np.sum(np.abs(observed - predicted), axis=-1), mass.sum(axis=-1))


def reliability(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    bins: int = 10,
    spacing: Literal["equal-width", "adaptive"] = "equal-width",
) -> tuple[Floats, Floats, Floats]:
    """Return (mean prediction, observed share, weight) of every bin, each of shape (..., bins); nan where empty."""
    y, s, w = _checked(labels, scores, weights)
    mass, predicted, observed = _binned(y, s, w, bins=bins, spacing=spacing)
    return _ratio(predicted, mass), _ratio(observed, mass), mass


def roc_curve(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Return (false positive rate, true positive rate) from (0, 0) to (1, 1), one point a distinct score."""
    y, s, w = _checked(labels, scores, weights)
    order, first = _tie_groups(-s)
    curves = []
    for side in (1 - y, y):
        counted = np.cumsum(_grouped(w[..., order] * side[order], first), axis=-1)
        curves.append(_ratio(counted, counted[..., -1:]))
    start = np.zeros((*curves[0].shape[:-1], 1))
    return np.concatenate([start, curves[0]], axis=-1), np.concatenate([start, curves[1]], axis=-1)


def _binned(y: Floats, s: Floats, w: Floats, *, bins: int, spacing: str) -> tuple[Floats, Floats, Floats]:
    if spacing == "equal-width":
        inner = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    elif spacing == "adaptive":
        inner = np.quantile(s, np.linspace(0.0, 1.0, bins + 1)[1:-1], method="inverted_cdf") if s.size else np.empty(0)
    else:
        raise InputError(f"unknown spacing {spacing!r}", expected="'equal-width' or 'adaptive'")
    member = np.zeros((s.size, bins))
    member[np.arange(s.size), np.searchsorted(inner, s, side="right")] = 1.0
    return w @ member, (w * s) @ member, (w * y) @ member


def _checked(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    y = np.asarray(labels, dtype=np.float64)
    s = np.asarray(scores, dtype=np.float64)
    w = np.ones(y.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if y.ndim != 1 or s.shape != y.shape or w.shape[-1:] != y.shape:
        raise InputError(
            f"labels, scores and weights have shapes {y.shape}, {s.shape} and {w.shape}",
            expected="(n,), (n,) and (..., n)",
        )
    if not np.all((y == 0) | (y == 1)):
        raise InputError("a label is neither 0 nor 1", expected="binary labels; compare one class with the rest")
    if not np.all(np.isfinite(s)):
        raise InputError("a score is not finite", expected="one number for every row")
    return y, s, w


def _tie_groups(scores: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the ascending order of the scores and where each group of equal scores begins in it."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    return order, np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: ordered.size])


def _grouped(values: Floats, first: NDArray[np.intp]) -> Floats:
    if first.size == 0:
        return np.zeros((*values.shape[:-1], 1))
    summed: Floats = np.add.reduceat(values, first, axis=-1)
    return summed


def _ratio(top: Floats, bottom: Floats, *, empty: float = np.nan) -> Floats:
    top, bottom = np.broadcast_arrays(np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64))
    out = np.full(top.shape, empty)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return out
