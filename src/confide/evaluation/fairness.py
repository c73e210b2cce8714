"""How well a prediction serves the groups that a study declares, with intervals that know who the rows belong to.

Two published figures carry the name "statistical parity difference". They are kept apart here:

- `positive_rate_difference`: share predicted positive in the group minus that of everybody else (the usual sense,
  fairlearn's demographic parity).
- `accuracy_difference`: accuracy in the group minus accuracy of everybody else (the sense of Tayebi Arasteh et al.
  2024, where "positive" means "predicted correctly"; everybody else is the sample-size-weighted mean of the others).

References
----------
Tayebi Arasteh et al., "Preserving fairness and diagnostic accuracy in private large-scale AI models for medical
imaging", Communications Medicine 4:46, 2024. Hardt, Price and Srebro, "Equality of opportunity in supervised learning",
NeurIPS 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.errors import InputError
from confide.evaluation.bootstrap import Estimate, per_contributor
from confide.evaluation.metrics import Floats, accuracy, auroc, mcc, positive_rate, sensitivity

MINIMUM = 10
_DIFFERENCES = {
    "positive_rate_difference": "positive rate",
    "accuracy_difference": "accuracy",
    "equal_opportunity_difference": "sensitivity",
    "auroc_difference": "AUROC",
}


@dataclass(frozen=True)
class Group:
    """One group of people and how well it is served.

    Attributes
    ----------
    name : str
    contributors, rows : int
        Internal counts.
    suppressed : str
        Why there are no figures; empty where there are.
    metrics : dict of str to Estimate
        "AUROC", "accuracy", "sensitivity", "positive rate", "MCC" inside the group.
    differences : dict of str to Estimate
        The group minus everybody else: `positive_rate_difference`, `accuracy_difference`,
        `equal_opportunity_difference`, `auroc_difference`.
    """

    name: str
    contributors: int
    rows: int
    suppressed: str = ""
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    differences: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Fairness:
    """All groups of one declared attribute. Internal: nothing here is noised."""

    attribute: str
    threshold: float
    groups: tuple[Group, ...]

    def group(self, name: str) -> Group:
        """Return one group.

        Raises
        ------
        InputError
            If there is no such group.
        """
        for one in self.groups:
            if one.name == name:
                return one
        raise InputError(
            f"{self.attribute!r} has no group {name!r}",
            expected="one of " + ", ".join(repr(g.name) for g in self.groups),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def fairness(
    labels: ArrayLike,
    scores: ArrayLike,
    contributors: ArrayLike,
    groups: ArrayLike,
    *,
    attribute: str = "group",
    threshold: float = 0.5,
    unit: Literal["contributor", "entry"] = "contributor",
    aggregate: Literal["mean", "max"] = "mean",
    known: Sequence[str] | None = None,
    minimum: int = MINIMUM,
    replicates: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator | None = None,
) -> Fairness:
    """Measure a binary prediction group by group.

    Parameters
    ----------
    labels, scores, contributors, unit, aggregate, replicates, level, rng
        As for `evaluate`.
    groups : array of str, shape (n entries,)
        Group of each entry. With ``unit = "contributor"`` a person belongs to the group of most of their entries.
    threshold : float
        Where a score becomes a positive prediction. Choose it on validation contributors or declare it; choosing it on
        these same people makes every figure here too good.
    known : sequence of str, optional
        The declared groups, in their order. A declared group that nobody belongs to is listed as suppressed; a value
        outside them is an error.
    minimum : int
        Groups of fewer people get no figures: their intervals would say nothing, and the figures would be about
        individuals.

    Raises
    ------
    InputError
        Shapes differ, or an entry belongs to a group that was not declared.
    """
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    owner, member = np.asarray(contributors), np.asarray(groups).astype(str)
    if not (y.shape == s.shape == owner.shape == member.shape) or y.ndim != 1 or y.size == 0:
        raise InputError(
            f"labels, scores, contributors and groups have shapes {y.shape}, {s.shape}, {owner.shape}, {member.shape}",
            expected="four arrays of one and the same length, at least 1",
        )
    present = sorted(set(member.tolist()))
    names = list(known) if known is not None else present
    strange = [name for name in present if name not in names]
    if strange:
        raise InputError(
            f"{strange[0]!r} is no declared group of {attribute!r}", expected="one of " + ", ".join(map(repr, names))
        )
    _, of_entry = np.unique(owner, return_inverse=True)
    if unit == "contributor":
        member = _majority(member, of_entry, names)
        y, s = per_contributor(y, s, of_entry, aggregate=aggregate)
        of_entry = np.arange(y.size)
    elif unit != "entry":
        raise InputError(f"unknown unit {unit!r}", expected="'contributor' or 'entry'")
    people = int(of_entry.max()) + 1
    generator = np.random.default_rng() if rng is None else rng
    times = generator.multinomial(people, np.full(people, 1.0 / people), size=replicates)
    weights = np.concatenate([np.ones((1, y.size)), times[:, of_entry]])  # first row: the estimate itself
    found = []
    for name in names:
        mine = member == name
        count, rows = int(np.unique(of_entry[mine]).size), int(mine.sum())
        if count < minimum:
            found.append(Group(name, count, rows, f"fewer than {minimum} people", {}, {}))
            continue
        inside = _figures(y, s, weights, mine, threshold)
        outside = _figures(y, s, weights, ~mine, threshold)
        others = people - count if unit == "contributor" else int(np.unique(of_entry[~mine]).size)
        differences = (
            {key: _estimate(inside[of] - outside[of], level, people, int(y.size)) for key, of in _DIFFERENCES.items()}
            if others >= minimum
            else {}
        )
        metrics = {key: _estimate(values, level, count, rows) for key, values in inside.items()}
        found.append(Group(name, count, rows, "", metrics, differences))
    return Fairness(attribute, threshold, tuple(found))


def gap_correlation(gaps: ArrayLike, explanation: ArrayLike) -> tuple[float, float]:
    """Return Pearson's r and its p value between the private/non-private gap of groups and their size or difficulty.

    Parameters
    ----------
    gaps : array, shape (groups,)
        Metric of the private model minus that of the non-private one.
    explanation : array, shape (groups,)
        Number of people, or the non-private metric as difficulty.

    Raises
    ------
    InputError
        Fewer than four groups (three points nearly always lie near a line), or one side does not vary.
    """
    from scipy.stats import pearsonr

    x, y = np.asarray(explanation, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    usable = np.isfinite(x) & np.isfinite(y)
    x, y = x[usable], y[usable]
    if x.size < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError(
            f"{x.size} groups with figures", expected="at least four groups that differ, for a correlation"
        )
    result = pearsonr(x, y)
    return float(result.statistic), float(result.pvalue)


def _figures(y: Floats, s: Floats, weights: Floats, mine: NDArray[np.bool_], threshold: float) -> dict[str, Floats]:
    w = weights[:, mine]
    y, s = y[mine], s[mine]
    return {
        "AUROC": auroc(y, s, w),
        "accuracy": accuracy(y, s, w, threshold=threshold),
        "sensitivity": sensitivity(y, s, w, threshold=threshold),
        "positive rate": positive_rate(y, s, w, threshold=threshold),
        "MCC": mcc(y, s, w, threshold=threshold),
    }


def _estimate(values: Floats, level: float, people: int, rows: int) -> Estimate:
    tail = (1.0 - level) / 2.0
    usable = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(usable, [tail, 1.0 - tail]) if usable.size else (np.nan, np.nan)
    missing = int(values.size - 1 - usable.size)
    return Estimate(float(values[0]), float(low), float(high), level, people, rows, missing)


def _majority(member: NDArray[np.str_], of_entry: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.str_]:
    """The group of most of a person's entries; the first declared one where it is a draw."""
    people = int(of_entry.max()) + 1
    votes = np.stack([np.bincount(of_entry[member == name], minlength=people) for name in names], axis=1)
    chosen: NDArray[np.str_] = np.asarray(list(names))[votes.argmax(axis=1)]
    return chosen
