"""What the plan gives each contributor, and whether an optimiser fits the model: checks before a run begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from confide.contributors import ContributorIndex, ContributorSampler, CyclicSampler, EntrySampler, group_of
from confide.errors import InputError
from confide.planning import Plan
from confide.training.dataset import ContributorDataset
from confide.training.keys import RunKeys

Sampler = EntrySampler | ContributorSampler | CyclicSampler


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Refuse an optimiser that cannot move exactly the model's trainable parameters by one noisy gradient.

    Raises
    ------
    InputError
        LBFGS, a parameter that is not the model's, or trainable parameters without an optimiser.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError(
            "LBFGS evaluates the loss several times a step",
            where="optimizer",
            expected="an optimiser that makes one step from one gradient",
            remedy="use SGD, Adam or AdamW",
        )
    known = {id(value) for value in parameters}
    held = [value for group in optimizer.param_groups for value in group["params"] if value.requires_grad]
    if any(id(value) not in known for value in held):
        raise InputError(
            "the optimizer holds a parameter that the model does not have",
            where="optimizer",
            expected="an optimizer over model.parameters(); only those get clipped, noisy gradients",
            remedy="make the optimizer after the model is complete (and in its final precision)",
        )
    if {id(value) for value in held} != known:
        raise InputError(
            "the optimizer misses trainable parameters of the model",
            where="optimizer",
            expected="an optimizer over all trainable parameters: the others would take up norm for nothing",
            remedy="freeze the others with requires_grad_(False), or give the optimizer all of them",
        )


def assign(
    plan: Plan, dataset: ContributorDataset, admitted: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return (rate, absolute clip) of each contributor: a function of their own count and budget alone."""
    index, budgets = dataset.index, dataset.budgets
    rates, clips = np.zeros(index.n_contributors), np.zeros(index.n_contributors)
    # -1 stands for "the same budget as everybody": budgets are positive, and NaN would equal nothing, not even itself
    level = np.full(index.n_contributors, -1.0) if budgets is None else budgets
    pairs, which = np.unique(np.stack([index.counts.astype(np.float64), level]), axis=1, return_inverse=True)
    for number in range(pairs.shape[1]):
        budget = None if pairs[1, number] < 0 else float(pairs[1, number])
        found = plan.class_of(int(pairs[0, number]), budget)
        mine = which.reshape(-1) == number
        rates[mine], clips[mine] = found.rate, found.clip_norm * plan.clip_norm
    if admitted is not None:
        keep = np.asarray(admitted)
        if keep.dtype != np.bool_ or keep.shape != rates.shape:
            raise InputError(
                "the mask of admitted contributors has the wrong shape",
                expected=f"{index.n_contributors} booleans, in the order of dataset.index.ids",
            )
        rates[~keep] = 0.0
    return rates, clips


def make_sampler(plan: Plan, keys: RunKeys, index: ContributorIndex, rates: npt.NDArray[np.float64]) -> Sampler:
    """Return the sampler that the plan accounts for; with correlated noise, one group after another is asked."""
    limit = plan.entry_limit

    def of(chosen: npt.NDArray[np.float64]) -> EntrySampler | ContributorSampler:
        if plan.clip_unit == "entry":
            return EntrySampler(keys.coins, index, chosen, max_entries=limit, subset_key=keys.subset)
        return ContributorSampler(keys.coins, index, chosen, max_entries=limit)

    if plan.correlation is None:
        return of(rates)
    groups = plan.correlation.separation
    return CyclicSampler(group_of(keys.subset, index, groups), groups, of, rates)
