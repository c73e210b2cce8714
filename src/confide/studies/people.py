"""The people of a study as training and ledger want them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confide.accounting import Guarantee
from confide.contributors import ContributorIndex
from confide.errors import InputError
from confide.planning import Plan
from confide.studies.prepare import Prepared

if TYPE_CHECKING:
    from confide.training import ContributorDataset


def dataset_of(prepared: Prepared) -> ContributorDataset:
    """The training entries as a torch data set with their contributors."""
    import torch
    from torch.utils.data import TensorDataset

    from confide.training import ContributorDataset

    table = prepared.table
    assert table.labels is not None
    tensors = TensorDataset(
        torch.from_numpy(np.ascontiguousarray(prepared.inputs[prepared.train])),
        torch.from_numpy(np.ascontiguousarray(table.labels[prepared.train])),
    )
    budgets = prepared.budgets
    return ContributorDataset(
        tensors,
        contributors=prepared.train_index,
        budgets=None if budgets is None else budgets[prepared.train_index.of_entry].tolist(),
    )


def only(prepared: Prepared, keep: npt.NDArray[np.bool_]) -> Prepared:
    """Return the same study with some of its training contributors alone, shape of `keep` (training contributors,).

    Divisors and rates come from the plan, so a private run on them takes the steps it would have taken with the others
    dropped by the ledger.

    Raises
    ------
    InputError
        Nobody is left.
    """
    if keep.all():
        return prepared
    if not keep.any():
        raise InputError(
            "nobody who took part in this release may be used again (internal message, must not leave)",
            where="the ledger: dropped, erased or consent withdrawn",
            expected="people to train models for comparison on",
        )
    index, entries = prepared.train_index.subset(keep)
    budgets = None if prepared.budgets is None else prepared.budgets[keep]
    return dataclasses.replace(prepared, train=prepared.train[entries], train_index=index, budgets=budgets)


def classes_for(
    plan: Plan, index: ContributorIndex, budgets: npt.NDArray[np.float64] | None
) -> tuple[list[Guarantee], npt.NDArray[np.int64]]:
    """Return the guarantee of each class that occurs and the class of each contributor: the ledger's input."""
    level = np.full(index.n_contributors, -1.0) if budgets is None else budgets
    pairs, which = np.unique(np.stack([index.counts.astype(np.float64), level]), axis=1, return_inverse=True)
    found: dict[Any, int] = {}
    guarantees: list[Guarantee] = []
    number = np.empty(pairs.shape[1], dtype=np.int64)
    for i in range(pairs.shape[1]):
        budget = None if pairs[1, i] < 0 else float(pairs[1, i])
        row = plan.class_of(int(pairs[0, i]), budget)
        mechanism = plan.mechanism(row)
        if mechanism not in found:
            found[mechanism] = len(guarantees)
            guarantees.append(plan.guarantee(row))
        number[i] = found[mechanism]
    return guarantees, number[which.reshape(-1)]
