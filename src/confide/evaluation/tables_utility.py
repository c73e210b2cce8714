"""What models trained on a synthetic table are worth on real people who took no part. Internal.

Three learners of scikit-learn (extra ``evaluate``) see declared cells as one-hot columns: no scaling, no vocabulary and
no choice is taken from the test people. Intervals and paired differences draw whole patients again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.errors import MissingExtraError
from confide.evaluation.metrics import auroc
from confide.evaluation.tables import CodedTable, Floats, Ints

LEARNERS = ("logistic regression", "boosted trees", "random forest")
MOST_ROWS = 20_000


@dataclass(frozen=True)
class Score:
    """AUROC of one learner trained on one table, with its 95% interval over patients."""

    learner: str
    trained_on: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """A paired difference of AUROC on the same people."""

    learner: str
    what: str
    value: float
    low: float
    high: float


def design(table: CodedTable, names: Sequence[str]) -> Floats:
    """Return declared cells as one-hot columns, shape (rows, cells)."""
    blocks = [
        (table.columns[name][:, None] == np.arange(table.cells[name])[None, :]).astype(np.float64) for name in names
    ]
    return np.concatenate(blocks, axis=1)


def make_learner(name: str, seed: int = 0) -> Any:
    """Return an unfitted classifier of scikit-learn with fixed, public settings."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError("training on synthetic tables needs scikit-learn", "evaluate") from error
    if name == "logistic regression":
        return LogisticRegression(C=1.0, max_iter=300)
    if name == "boosted trees":
        return HistGradientBoostingClassifier(max_iter=100, learning_rate=0.1, random_state=seed)
    return RandomForestClassifier(n_estimators=100, min_samples_leaf=10, max_features="sqrt", random_state=seed)


def scores_of(
    train: CodedTable, test: CodedTable, names: Sequence[str], outcome: str, positive: Sequence[int], learner: str
) -> Floats | None:
    """Return predicted scores on `test`, or None where the training table holds one outcome only."""
    y = np.isin(train.columns[outcome], positive).astype(np.int64)
    if len(y) == 0 or y.min() == y.max():
        return None
    rows = np.arange(len(y))
    if len(rows) > MOST_ROWS:  # a fixed public seed: which rows are used is not a release
        rows = np.random.default_rng(0).choice(len(y), MOST_ROWS, replace=False)
    model = make_learner(learner)
    model.fit(design(train, names)[rows], y[rows])
    return np.asarray(model.predict_proba(design(test, names))[:, 1], dtype=np.float64)


def stacked(a: CodedTable, b: CodedTable) -> CodedTable:
    """Return the rows of both tables, patients kept apart."""
    shift = int(a.patient.max()) + 1 if len(a.patient) else 0
    columns = {name: np.concatenate([a.columns[name], b.columns[name]]) for name in a.columns}
    return CodedTable(columns, a.cells, np.concatenate([a.patient, b.patient + shift]))


def compare(
    training: Mapping[str, CodedTable],
    test: CodedTable,
    *,
    outcome: str,
    positive: Sequence[int],
    names: Sequence[str],
    per_patient: bool,
    pairs: Sequence[tuple[str, str, str]] = (),
    replicates: int = 500,
    rng: np.random.Generator | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[list[Score], list[Gain]]:
    """Train every learner on every table and test all on the same real people.

    Parameters
    ----------
    training : mapping of label to CodedTable
    test : CodedTable
    outcome : str
    positive : sequence of int
        Codes of the outcome that count as 1.
    names : sequence of str
        Columns to predict from.
    per_patient : bool
        One score a patient (the mean over visits) instead of one a visit.
    pairs : sequence of (label, label, words)
        Differences first minus second to report.
    """
    y = np.isin(test.columns[outcome], positive).astype(np.int64)
    owner = np.unique(test.patient, return_inverse=True)[1].reshape(-1).astype(np.int64)
    weights = _replicates(owner, replicates, rng or np.random.default_rng(), per_patient)
    scores: list[Score] = []
    gains: list[Gain] = []
    constant = np.zeros(len(y))
    scores.append(_score("any", "majority: one answer for all", y, constant, owner, weights, per_patient)[0])
    for learner in LEARNERS:
        drawn: dict[str, tuple[float, Floats]] = {}
        for label, table in training.items():
            if note is not None:
                note(f"{learner}, {label}")
            found = scores_of(table, test, names, outcome, positive, learner)
            score, values = _score(learner, label, y, constant if found is None else found, owner, weights, per_patient)
            scores.append(score)
            drawn[label] = (score.value, values)
        for a, b, words in pairs:
            if a in drawn and b in drawn:
                low, high = _interval(drawn[a][1] - drawn[b][1])
                gains.append(Gain(learner, words, drawn[a][0] - drawn[b][0], low, high))
    return scores, gains


def _replicates(owner: Ints, replicates: int, rng: np.random.Generator, per_patient: bool) -> Floats:
    people = int(owner.max()) + 1
    times = rng.multinomial(people, np.full(people, 1 / people), size=replicates).astype(np.float64)
    return times if per_patient else times[:, owner]


def _score(
    learner: str, label: str, y: Ints, s: Floats, owner: Ints, weights: Floats, per_patient: bool
) -> tuple[Score, Floats]:
    if per_patient:
        counts = np.bincount(owner)
        s = np.bincount(owner, weights=s) / counts
        y = (np.bincount(owner, weights=y) / counts >= 0.5).astype(np.int64)
    values = np.concatenate([auroc(y, s, part) for part in np.array_split(weights, max(1, weights.size // 4_000_000))])
    low, high = _interval(values)
    return Score(learner, label, float(auroc(y, s)), low, high), values


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    usable = values[np.isfinite(values)]
    if not usable.size:
        return float("nan"), float("nan")
    low, high = np.quantile(usable, [0.025, 0.975])
    return float(low), float(high)
