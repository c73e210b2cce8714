"""Would another equally good model have told this patient something else? Predictive multiplicity and its remedy.

Private training draws its noise at random, so every private model is one of many that validation cannot tell apart. The
functions take the decisions of such a set, shape (models, n): 0 and 1, or numbers of classes.

>>> import numpy as np
>>> decisions = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
>>> ambiguity(decisions), discrepancy(decisions), conflict_rate(decisions)
(0.5, 0.25, 0.5)
>>> [float(round(v, 3)) for v in self_consistency(decisions)]
[1.0, 0.333, 0.333, 1.0]

References
----------
Marx, Calmon and Ustun, "Predictive multiplicity in classification", ICML 2020 (ambiguity, discrepancy). Hsu and Calmon,
"Rashomon capacity", NeurIPS 2022. Cooper et al., "Arbitrariness and social prediction", AAAI 2024 (self-consistency).
Lockfisch et al., "On arbitrary predictions from equally valid models", 2025 (ensembles with abstention).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from confide.errors import InputError
from confide.evaluation.metrics import Floats, auroc

Votes = NDArray[np.int64]


def admitted(
    labels: ArrayLike,
    scores: ArrayLike,
    contributors: ArrayLike,
    *,
    reference: int = 0,
    metric: Callable[..., Floats] = auroc,
    level: float = 0.95,
    replicates: int = 1000,
    rng: np.random.Generator | None = None,
) -> NDArray[np.bool_]:
    """Return which models validation cannot tell from the reference: a paired bootstrap over contributors.

    A model is out if it is worse in more than `level` of the replicates in which both are defined (one-sided).

    Parameters
    ----------
    labels : array, shape (n,)
        Of validation rows, never of test rows.
    scores : array, shape (models, n)
    contributors : array, shape (n,)
        Whose row each is.
    reference : int
        Row of `scores` to compare with.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    s, owner = np.asarray(scores, dtype=np.float64), np.asarray(contributors)
    y = np.asarray(labels)
    if s.ndim != 2 or s.shape[1:] != y.shape or y.shape != owner.shape or not 0 <= reference < s.shape[0]:
        raise InputError(
            f"labels, scores and contributors have shapes {y.shape}, {s.shape} and {owner.shape}",
            expected="(n,), (models, n) and (n,), and a reference among the models",
        )
    _, of_row = np.unique(owner, return_inverse=True)
    people = int(of_row.max()) + 1
    generator = np.random.default_rng() if rng is None else rng
    weights = generator.multinomial(people, np.full(people, 1.0 / people), size=replicates)[:, of_row].astype(float)
    values = np.stack([metric(y, row, weights) for row in s])
    worse = values < values[reference]
    usable = np.isfinite(values).all(axis=0)
    if not usable.any():
        raise InputError("the metric is undefined in every replicate", expected="both classes among validation people")
    kept: NDArray[np.bool_] = worse[:, usable].mean(axis=1) <= level
    kept[reference] = True
    return kept


def ambiguity(decisions: ArrayLike, *, reference: int = 0) -> float:
    """Return the share of rows on which some model differs from the reference (grows with the number of models)."""
    d = _votes(decisions)
    return float((d != d[reference]).any(axis=0).mean())


def discrepancy(decisions: ArrayLike, *, reference: int = 0) -> float:
    """Return the largest share of rows on which a single model differs from the reference."""
    d = _votes(decisions)
    return float((d != d[reference]).mean(axis=1).max())


def conflict_rate(decisions: ArrayLike) -> float:
    """Return the share of rows on which the models do not all agree."""
    d = _votes(decisions)
    return float((d != d[0]).any(axis=0).mean())


def disagreement(decisions: ArrayLike) -> float:
    """Return the mean share of rows on which two different models disagree."""
    return float(1.0 - self_consistency(decisions).mean())


def self_consistency(decisions: ArrayLike) -> Floats:
    """Return, for every row, the probability that two different models agree: ``1 - 2 b0 b1 / (b (b - 1))``.

    For several classes the sum of ``b_c (b_c - 1)`` over ``b (b - 1)``, which is the same for two.
    """
    d = _votes(decisions)
    b = d.shape[0]
    if b < 2:
        raise InputError("one model agrees with itself", expected="the decisions of at least two models")
    each = _counts(d)
    value: Floats = (each * (each - 1)).sum(axis=0) / (b * (b - 1.0))
    return value


def conflict_by_size(decisions: ArrayLike) -> Floats:
    """Return the expected conflict rate of m models drawn from the set, for m = 1 .. models.

    Ambiguity and conflict grow with the number of models, so a figure without m says nothing; this curve has them all.
    """
    d = _votes(decisions)
    return np.array([max(0.0, 1.0 - _unanimous(d, m).mean()) for m in range(1, d.shape[0] + 1)])


def rashomon_capacity(probabilities: ArrayLike, *, iterations: int = 1000, tolerance: float = 1e-9) -> Floats:
    """Return the capacity in bits of the channel from model to class, for every row (Blahut-Arimoto).

    0: all models say the same. log2(classes): they contradict one another with certainty.

    Parameters
    ----------
    probabilities : array, shape (models, n, classes)
        Each row of classes adds up to 1.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 3 or not np.allclose(p.sum(axis=-1), 1.0, atol=1e-6) or (p < -1e-12).any():
        raise InputError("these are no class probabilities", expected="shape (models, n, classes), adding up to 1")
    p = np.clip(p, 0.0, 1.0)
    weight = np.full(p.shape[:2], 1.0 / p.shape[0])
    capacity = np.zeros(p.shape[1])
    for _ in range(iterations):
        mixture = np.einsum("mn,mnc->nc", weight, p)
        ratio = np.divide(p, mixture[None], out=np.ones_like(p), where=p > 0)
        divergence = np.sum(p * np.log2(ratio), axis=-1)  # (models, n)
        lower = np.log2(np.sum(weight * np.exp2(divergence), axis=0))
        capacity = np.maximum(lower, 0.0)
        if np.max(divergence.max(axis=0) - lower) < tolerance:
            break
        weight = weight * np.exp2(divergence)
        weight /= weight.sum(axis=0)
    return capacity


@dataclass(frozen=True)
class EnsembleReport:
    """What an ensemble with abstention answers.

    Attributes
    ----------
    size : int
        Members.
    share : float
        Votes needed for an answer; 1 is unanimity.
    coverage : float
        Share of rows that get an answer.
    accuracy : float
        Share of the answered rows that are right.
    residual_multiplicity : float
        Probability that two independently drawn ensembles give contradicting answers, neither deferring.
    coverage_by_group : dict of str to float
        Abstention has a price, and not everybody pays the same.
    """

    size: int
    share: float
    coverage: float
    accuracy: float
    residual_multiplicity: float
    coverage_by_group: dict[str, float]


def ensemble_decision(decisions: ArrayLike, *, share: float = 1.0) -> NDArray[np.int64]:
    """Return the majority's class where its share of the votes reaches `share`, and -1 (deferred) elsewhere.

    Raises
    ------
    InputError
        If `share` is not above one half.
    """
    if not 0.5 < share <= 1.0:
        raise InputError(f"a share of {share} of the votes is no majority", expected="0.5 < share <= 1")
    d = _votes(decisions)
    each = _counts(d)
    needed = np.ceil(share * d.shape[0] - 1e-9)
    return np.where(each.max(axis=0) >= needed, each.argmax(axis=0), -1)


def ensemble_report(
    decisions: ArrayLike, labels: ArrayLike, *, share: float = 1.0, groups: Sequence[str] | None = None
) -> EnsembleReport:
    """Describe the ensemble of all given models, whose answers are `ensemble_decision`.

    The residual multiplicity takes each class's share of a row's votes as the probability of a single model's, so that
    it is an estimate; `residual_multiplicity` gives the closed form behind it for two classes.
    """
    d, y = _votes(decisions), np.asarray(labels)
    if y.shape != d.shape[1:]:
        raise InputError(f"decisions and labels have shapes {d.shape} and {y.shape}", expected="(models, n) and (n,)")
    said = ensemble_decision(d, share=share)
    answered = said >= 0
    accuracy = float((said == y)[answered].mean()) if answered.any() else float("nan")
    given = _answers(_counts(d) / d.shape[0], d.shape[0], share)
    residual = given.sum(axis=0) ** 2 - (given**2).sum(axis=0)
    by_group = {}
    if groups is not None:
        names = np.asarray(groups).astype(str)
        by_group = {str(name): float(answered[names == name].mean()) for name in np.unique(names)}
    return EnsembleReport(d.shape[0], share, float(answered.mean()), accuracy, float(np.mean(residual)), by_group)


def residual_multiplicity(positive: ArrayLike, size: int, *, share: float = 1.0) -> Floats:
    """Return the probability that two independent ensembles contradict each other without deferring.

    With q the probability that a single model says 1 and unanimity of m: ``2 q^m (1 - q)^m``.

    Parameters
    ----------
    positive : array
        q of every row.
    size : int
        m.
    """
    q = np.asarray(positive, dtype=np.float64)
    yes, no = _answers(np.stack([q, 1.0 - q]), size, share)
    value: Floats = 2.0 * yes * no
    return value


def coverage(positive: ArrayLike, size: int, *, share: float = 1.0) -> Floats:
    """Return the probability that an ensemble answers: ``q^m + (1 - q)^m`` for unanimity."""
    q = np.asarray(positive, dtype=np.float64)
    yes, no = _answers(np.stack([q, 1.0 - q]), size, share)
    value: Floats = yes + no
    return value


def _answers(q: Floats, size: int, share: float) -> Floats:
    """Probability that an ensemble answers each class; more than half of the votes exclude one another."""
    from scipy.stats import binom

    if size < 1 or not 0.5 < share <= 1.0:
        raise InputError(f"{size} members and a share of {share}", expected="at least 1 member, 0.5 < share <= 1")
    found: Floats = binom.sf(int(np.ceil(share * size - 1e-9)) - 1, size, q)
    return found


def _unanimous(d: Votes, m: int) -> Floats:
    """Probability, for every row, that m models drawn without replacement all agree."""
    b = d.shape[0]

    def drawn(count: NDArray[np.int64]) -> Floats:
        whole = gammaln(b + 1) - gammaln(b - m + 1)
        possible = count >= m
        log = gammaln(count + 1.0) - gammaln(np.where(possible, count - m, 0) + 1.0) - whole
        return np.where(possible, np.exp(log), 0.0)

    return np.asarray(sum(drawn(one) for one in _counts(d)))


def _counts(d: Votes) -> Votes:
    """Votes for every class, shape (classes, n); two classes at least."""
    return np.stack([(d == c).sum(axis=0) for c in range(max(2, int(d.max()) + 1))])


def _votes(decisions: ArrayLike) -> Votes:
    d = np.asarray(decisions)
    if d.ndim != 2 or d.size == 0 or not (np.isfinite(d).all() and (d >= 0).all() and (d == np.floor(d)).all()):
        raise InputError(
            f"decisions of shape {d.shape}", expected="numbers of classes, shape (models, n), at least one of each"
        )
    return d.astype(np.int64)
