"""What a synthetic table of patients and visits is worth, measured against real tables: internal figures.

>>> import numpy as np
>>> real = CodedTable({"stage": np.array([0, 1, 1, 2])}, {"stage": 3}, np.array([0, 0, 1, 1]))
>>> fidelity(real, real, ways=1).mean
0.0

Every figure here is computed from exact real data and must not leave. Totals are total variation distances between
shares of cells: half the sum of absolute differences, 0 equal, 1 nothing in common.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confide.errors import InputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, repr=False, eq=False)
class CodedTable:
    """Visits as small whole numbers, one array a column, in order of time within a patient.

    Attributes
    ----------
    columns : mapping name -> int array, shape (visits,)
    cells : mapping name -> number of values
    patient : int array, shape (visits,)
        Whose visit a row is; rows of a patient stand together.
    """

    columns: Mapping[str, Ints]
    cells: Mapping[str, int]
    patient: Ints

    def __post_init__(self) -> None:
        for name, values in self.columns.items():
            if name not in self.cells:
                raise InputError(f"column {name!r} has no declared number of cells")
            if len(values) != len(self.patient):
                raise InputError(f"column {name!r} has {len(values)} rows", expected=f"{len(self.patient)}")
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.cells[name]:
                raise InputError(f"column {name!r} holds a code outside 0..{self.cells[name] - 1}")

    def per_patient_weights(self) -> Floats:
        """Return weights under which every patient counts the same."""
        _, where, counts = np.unique(self.patient, return_inverse=True, return_counts=True)
        return np.asarray(1.0 / counts[where.reshape(-1)], dtype=np.float64)


def shares(table: CodedTable, names: Sequence[str], weights: Floats | None = None) -> Floats:
    """Return the share of every cell of the table over some columns, flattened."""
    code = np.zeros(len(table.patient), dtype=np.int64)
    for name in names:
        code = code * table.cells[name] + table.columns[name]
    size = int(np.prod([table.cells[name] for name in names]))
    counts = np.bincount(code, weights=weights, minlength=size).astype(np.float64)
    return counts / max(float(counts.sum()), 1e-300)


def total_variation(p: Floats, q: Floats) -> float:
    """Return half the sum of absolute differences."""
    return 0.5 * float(np.abs(p - q).sum())


@dataclass(frozen=True)
class Fidelity:
    """Total variation over all tables of some number of columns.

    Attributes
    ----------
    mean, worst : float
    worst_columns : tuple of str
    by_columns : dict
    """

    mean: float
    worst: float
    worst_columns: tuple[str, ...]
    by_columns: dict[tuple[str, ...], float]


def fidelity(real: CodedTable, synthetic: CodedTable, *, ways: int, per_patient: bool = False) -> Fidelity:
    """Compare all `ways`-way tables.

    Parameters
    ----------
    real, synthetic : CodedTable
    ways : int
        1, 2 or 3 columns at a time.
    per_patient : bool
        Give every real patient the same weight; synthetic visits always count one each, as a user of the table would
        count them, except where `per_patient` weighs both.
    """
    weights = real.per_patient_weights() if per_patient else None
    others = synthetic.per_patient_weights() if per_patient else None
    found = {
        names: total_variation(shares(real, names, weights), shares(synthetic, names, others))
        for names in itertools.combinations(real.columns, ways)
    }
    worst = max(found, key=lambda names: found[names])
    return Fidelity(float(np.mean(list(found.values()))), found[worst], worst, found)


def transitions(table: CodedTable, name: str) -> Floats:
    """Return the shares of (value, value at the next visit) pairs of a column, flattened."""
    same = table.patient[1:] == table.patient[:-1]
    values, n = table.columns[name], table.cells[name]
    counts = np.bincount(values[:-1][same] * n + values[1:][same], minlength=n * n).astype(np.float64)
    return counts / max(float(counts.sum()), 1e-300)


def transition_distance(real: CodedTable, synthetic: CodedTable, names: Sequence[str]) -> dict[str, float]:
    """Return the total variation of transition tables, a column at a time (1 if a table has no transitions)."""
    found = {}
    for name in names:
        q = transitions(synthetic, name)
        found[name] = total_variation(transitions(real, name), q) if q.sum() > 0 else 1.0
    return found


def visit_count_distance(real: CodedTable, synthetic: CodedTable) -> float:
    """Return the total variation between distributions of the number of visits per patient."""
    a = np.unique(real.patient, return_counts=True)[1]
    b = np.unique(synthetic.patient, return_counts=True)[1]
    size = int(max(a.max(), b.max())) + 1
    return total_variation(np.bincount(a, minlength=size) / len(a), np.bincount(b, minlength=size) / len(b))


def within_patient_agreement(table: CodedTable, name: str) -> float:
    """Return how much likelier two neighbouring visits agree than two visits of anybody (0 none, 1 always)."""
    joint = transitions(table, name).reshape(table.cells[name], -1)
    chance = float(joint.sum(1) @ joint.sum(0))
    return (float(np.trace(joint)) - chance) / max(1 - chance, 1e-9)


def violations(table: CodedTable, broken: Callable[[CodedTable], npt.NDArray[np.bool_]]) -> int:
    """Count rows that break a rule."""
    return int(np.count_nonzero(broken(table)))


def restricted_mean(times: Floats, events: npt.NDArray[np.bool_], horizon: float) -> float:
    """Return the area under the Kaplan-Meier curve up to `horizon`.

    Parameters
    ----------
    times : float array
        Follow-up of each patient.
    events : bool array
        Whether it ended with the event (else censored).
    """
    order = np.argsort(times, kind="stable")
    t, d = np.asarray(times, dtype=np.float64)[order], np.asarray(events)[order]
    area, alive, last = 0.0, 1.0, 0.0
    for moment in np.unique(t):
        if moment > horizon:
            break
        area += alive * (moment - last)
        last = float(moment)
        at_risk = int((t >= moment).sum())
        alive *= 1 - int(d[t == moment].sum()) / at_risk
    return area + alive * max(horizon - last, 0.0)


Learner = Callable[[Floats, Ints, Floats], Floats]


def train_on_synthetic(
    synthetic: CodedTable, test: CodedTable, *, target: str, learner: Learner, positive: int = 1
) -> float:
    """Train on synthetic visits, test on real held-out patients: area under the ROC curve.

    Parameters
    ----------
    learner : callable (features, outcome, test features) -> scores
        Any classifier; it sees the codes as numbers.

    Returns
    -------
    float
        0.5 where the synthetic table holds one outcome only.
    """
    from confide.evaluation.metrics import auroc

    names = [name for name in test.columns if name != target]
    y = (synthetic.columns[target] == positive).astype(np.int64)
    if y.min() == y.max():
        return 0.5
    x = np.column_stack([synthetic.columns[name] for name in names]).astype(np.float64)
    held_out = np.column_stack([test.columns[name] for name in names]).astype(np.float64)
    scores = learner(x, y, held_out)
    return float(auroc((test.columns[target] == positive).astype(np.int64), scores))
