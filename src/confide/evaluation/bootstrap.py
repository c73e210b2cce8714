"""Intervals that know who the rows belong to: whole contributors are drawn again, with all their entries.

Drawing entries would pretend that ten visits of one patient are ten patients, and give intervals that are too short.

References
----------
Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 (clusters) and 13 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.errors import InputError
from confide.evaluation.calibration import nll
from confide.evaluation.metrics import Metric, accuracy, auprc, auroc, brier, ece, mcc

_CHUNK = 4_000_000  # weights held at once, in numbers: 32 MB

METRICS: Mapping[str, Metric] = {
    "auroc": auroc,
    "auprc": auprc,
    "accuracy": accuracy,
    "mcc": mcc,
    "nll": nll,
    "brier": brier,
    "ece": ece,
    "ece-adaptive": partial(ece, spacing="adaptive"),
}


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes
    ----------
    value, low, high : float
        Estimate and percentile interval; nan where the metric is undefined.
    level : float
        Confidence level.
    contributors, rows : int
        How many people and how many rows it rests on (internal).
    undefined : int
        Replicates in which the metric was undefined, for example because one class was not drawn.
    """

    value: float
    low: float
    high: float
    level: float
    contributors: int
    rows: int
    undefined: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


def check_interval(level: float, replicates: int) -> None:
    """Raise InputError where a level or a number of replicates cannot be."""
    if not 0.0 < level < 1.0 or replicates < 1:
        raise InputError(f"level {level} with {replicates} replicates", expected="0 < level < 1 and replicates >= 1")


def evaluate(
    labels: ArrayLike,
    scores: ArrayLike,
    contributors: ArrayLike,
    *,
    unit: Literal["contributor", "entry"] = "contributor",
    aggregate: Literal["mean", "max"] = "mean",
    metrics: Mapping[str, Metric] = METRICS,
    replicates: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator | None = None,
) -> dict[str, Estimate]:
    """Measure a binary prediction on held-out people. The result is internal: nothing here is noised.

    Parameters
    ----------
    labels : array of 0 and 1, shape (n entries,)
    scores : array, shape (n entries,)
        Predicted probability of the positive class.
    contributors : array, shape (n entries,)
        Whose entry each row is (any hashable ids).
    unit : str
        "contributor": one row a person, with the mean (or maximum) score of their entries and the label 1 if any of
        their entries is positive. "entry": every entry is a row.
    aggregate : str
        How the scores of a person become one.
    metrics : mapping of str to callable
        Each takes (labels, scores, weights).
    replicates, level, rng
        Bootstrap over contributors; `rng` defaults to one seeded by the operating system.

    Returns
    -------
    dict of str to Estimate

    Raises
    ------
    InputError
        If the shapes differ, there are no rows, or an option is unknown.
    """
    y, s, owner = np.asarray(labels), np.asarray(scores, dtype=np.float64), np.asarray(contributors)
    if y.ndim != 1 or y.shape != s.shape or y.shape != owner.shape or y.size == 0:
        raise InputError(
            f"labels, scores and contributors have shapes {y.shape}, {s.shape} and {owner.shape}",
            expected="three arrays of one and the same length, at least 1",
        )
    check_interval(level, replicates)
    _, of_entry = np.unique(owner, return_inverse=True)
    if unit == "contributor":
        y, s = per_contributor(y, s, of_entry, aggregate=aggregate)
        of_entry = np.arange(y.size)
    elif unit != "entry":
        raise InputError(f"unknown unit {unit!r}", where="[evaluation] unit", expected="'contributor' or 'entry'")
    generator = np.random.default_rng() if rng is None else rng
    people = int(of_entry.max()) + 1
    drawn: dict[str, list[NDArray[np.float64]]] = {name: [] for name in metrics}
    step = max(1, _CHUNK // max(1, y.size))
    for start in range(0, replicates, step):
        times = generator.multinomial(people, np.full(people, 1.0 / people), size=min(step, replicates - start))
        weights = times[:, of_entry].astype(np.float64)
        for name, metric in metrics.items():
            drawn[name].append(metric(y, s, weights))
    tail = (1.0 - level) / 2.0
    result = {}
    for name, metric in metrics.items():
        values = np.concatenate(drawn[name])
        usable = values[np.isfinite(values)]
        low, high = np.quantile(usable, [tail, 1.0 - tail]) if usable.size else (np.nan, np.nan)
        result[name] = Estimate(
            float(metric(y, s)), float(low), float(high), level, people, int(y.size), int(values.size - usable.size)
        )
    return result


def per_contributor(
    labels: ArrayLike, scores: ArrayLike, of_entry: ArrayLike, *, aggregate: Literal["mean", "max"] = "mean"
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Turn entries into one (label, score) a person; `of_entry` numbers the people 0..n-1.

    Raises
    ------
    InputError
        If `aggregate` is unknown.
    """
    y, s = np.asarray(labels, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    owner = np.asarray(of_entry, dtype=np.int64)
    people = int(owner.max()) + 1 if owner.size else 0
    label = np.zeros(people, dtype=np.int64)
    np.maximum.at(label, owner, y)
    if aggregate == "mean":
        counts = np.bincount(owner, minlength=people)
        score = np.bincount(owner, weights=s, minlength=people) / np.maximum(counts, 1)
    elif aggregate == "max":
        score = np.full(people, -np.inf)
        np.maximum.at(score, owner, s)
    else:
        raise InputError(f"unknown aggregate {aggregate!r}", expected="'mean' or 'max'")
    return label, score
