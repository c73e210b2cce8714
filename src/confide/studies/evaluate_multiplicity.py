"""What depends on the noise that was drawn: models of other noise beside a release, or the members of an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.accounting import compose
from confide.errors import InputError
from confide.evaluation import accuracy, admitted, auroc, ensemble_report, per_contributor
from confide.evaluation import multiplicity as mult
from confide.evaluation.fairness import MINIMUM
from confide.planning import Plan
from confide.report.figures import Multiplicity
from confide.report.format import scientific

F64 = npt.NDArray[np.float64]
#: Per-person figures in the internal folder.
FILE = "arbitrariness.csv"


@dataclass
class Rows:
    """Held-out rows in the unit of the study: entries, or one row a contributor; entries if classes are `several`."""

    labels: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    entry_labels: npt.NDArray[np.int64]
    of_entry: npt.NDArray[np.int64]
    unit: Any
    validation: npt.NDArray[np.bool_]
    validation_entries: npt.NDArray[np.bool_]
    several: bool = False

    def scores(self, by_entry: F64) -> F64:
        """Return one score for each row."""
        if self.unit == "entry":
            return by_entry
        dummy = np.zeros(by_entry.shape, dtype=np.int64)
        return per_contributor(dummy, by_entry, self.of_entry)[1]

    def groups(self, member: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
        """Return one group for each row from that of each entry."""
        if self.unit == "entry":
            return member
        _, first = np.unique(self.of_entry, return_index=True)
        return member[first]


def answer_of(rows: Rows, by_entry: F64) -> tuple[npt.NDArray[np.int64], F64]:
    """Return for every held-out entry whether its most likely class is right, 0 or 1, and that class's probability."""
    right = (by_entry.argmax(axis=1) == rows.entry_labels).astype(np.int64)
    return right, by_entry.max(axis=1)


def measure_multiplicity(
    rows: Rows,
    models: Sequence[F64],
    threshold: float,
    private: Plan,
    groups: Mapping[str, npt.NDArray[np.str_]],
    ids: Sequence[str],
    *,
    agree: float | None = None,
) -> tuple[Multiplicity, pl.DataFrame]:
    """Compare models on held-out rows.

    Parameters
    ----------
    rows : Rows
    models : sequence of float64 arrays
        Scores of every held-out entry by each model, that of the release first; shape (entries,), or (entries, classes)
        where the most likely class is the answer and `rows` are entries.
    threshold : float
        Where a score becomes a yes, the same for all.
    private : Plan
    groups : mapping of attribute to array of str
        Group of every held-out entry.
    ids : sequence of str
        Contributor ids in the order of `rows.owners`.
    agree : float, optional
        Given where the models are the members of the released ensemble: the share of them that has to agree. All of
        them are then kept, as all of them answer.

    Returns
    -------
    Multiplicity
    polars.DataFrame
        One row for each held-out row outside validation: contributor, votes, self-consistency and capacity.
    """
    classes = models[0].ndim == 2
    scores = np.stack(list(models)) if classes else np.stack([rows.scores(one) for one in models])
    decided = scores.argmax(axis=2) if classes else (scores >= threshold).astype(np.int64)
    compared = agree is None
    kept = np.ones(len(models), dtype=bool)
    if agree is None:
        choose = rows.validation if rows.validation.any() else np.ones(rows.labels.size, dtype=bool)
        # of classes the share of right answers is compared, of two sides the ranking
        judged = (decided == rows.labels).astype(np.float64) if classes else scores
        truth, metric = (np.ones_like(rows.labels), accuracy) if classes else (rows.labels, auroc)
        try:
            kept = admitted(truth[choose], judged[:, choose], rows.owners[choose], metric=metric, replicates=500)
        except InputError:  # one class alone: no AUROC by which one could be worse
            compared = False
    share = 1.0 if agree is None else agree
    test = ~rows.validation
    chosen, said = scores[kept][:, test], decided[kept][:, test]
    labels = rows.labels[test]
    several = len(said) > 1
    consistent = mult.self_consistency(said) if several else np.ones(labels.size)
    capacity = mult.rashomon_capacity(chosen if classes else np.stack([1.0 - chosen, chosen], axis=2))
    report = ensemble_report(said, labels, share=share)
    votes = [
        ensemble_report(said, labels, share=needed / len(said)) for needed in range(len(said) // 2 + 1, len(said) + 1)
    ]
    found = Multiplicity(
        models=len(models),
        admitted=int(kept.sum()),
        compared=compared,
        released=agree is not None,
        ambiguity=mult.ambiguity(said),
        discrepancy=mult.discrepancy(said),
        disagreement=mult.disagreement(said) if several else 0.0,
        capacity=float(capacity.mean()) if capacity.size else None,
        capacity_high=float(np.quantile(capacity, 0.95)) if capacity.size else None,
        conflict=mult.conflict_by_size(said).tolist(),
        consistency=[float((consistent <= level / 10 + 1e-9).mean()) for level in range(1, 11)],
        coverage=report.coverage,
        accuracy=report.accuracy,
        residual=report.residual_multiplicity,
        votes=[(one.coverage, one.accuracy) for one in votes],
        coverage_by_group=_by_group(rows, said, groups, share),
        price=_price(private, int(kept.sum()), released=agree is not None),
        each=True,
    )
    each = pl.DataFrame(
        {
            "contributor": [str(ids[i]) for i in rows.owners[test]],
            "models": np.full(labels.size, len(said)),
            **_most(said, classes),
            "self_consistency": consistent.round(4),
            "capacity_bits": capacity.round(4),
        }
    )
    return found, each


def _most(said: npt.NDArray[np.int64], classes: bool) -> dict[str, Any]:
    """Votes of each row: for yes, or for the class that most say."""
    if not classes:
        return {"votes_yes": said.sum(axis=0)}
    each = np.stack([(said == c).sum(axis=0) for c in range(int(said.max()) + 1)])
    return {"class_number": each.argmax(axis=0), "votes": each.max(axis=0)}


def _by_group(
    rows: Rows, said: npt.NDArray[np.int64], groups: Mapping[str, npt.NDArray[np.str_]], share: float
) -> dict[str, float | None]:
    """Coverage of each group that is large enough for a figure."""
    test = ~rows.validation
    out: dict[str, float | None] = {}
    for attribute, member in groups.items():
        of_row = rows.groups(member)[test]
        covered = ensemble_report(said, rows.labels[test], share=share, groups=of_row.tolist()).coverage_by_group
        for name, value in covered.items():
            if len(set(rows.owners[test][of_row == name].tolist())) >= MINIMUM:  # as for all figures of a group
                out[f"{attribute}: {name}"] = value
    return out


def _price(private: Plan, models: int, *, released: bool) -> str:
    worst = max(private.classes, key=lambda c: c.epsilon)
    if released:
        return (
            f"This release holds all {models} members; its epsilon of {worst.epsilon:.2f} at delta "
            f"{scientific(private.delta)} is for all of them together."
        )
    whole = compose([private.guarantee(worst)] * models).epsilon(private.delta)
    return (
        f"Releasing all {models} models would cost epsilon {whole:.2f} at delta {scientific(private.delta)} instead of "
        f"{worst.epsilon:.2f}. An ensemble at the same total ([training] ensemble = {max(models, 2)}) shares the steps "
        "of one run."
    )
