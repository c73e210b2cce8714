"""A private run from its first step to its last, for whoever does not want to write the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from confide.planning import Plan
from confide.training.batch import Loss
from confide.training.dataset import ContributorDataset
from confide.training.result import TrainingResult
from confide.training.run import PrivateRun


def fit(
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    dataset: ContributorDataset,
    **settings: Any,
) -> TrainingResult:
    """Train a model under a plan and return it with its internal figures.

    Parameters
    ----------
    model, loss, optimizer, plan, dataset, **settings
        See `PrivateRun`.

    Returns
    -------
    TrainingResult
    """
    run = PrivateRun(model, loss, optimizer, plan, dataset, **settings)
    devices = [torch.cuda.current_device()] if run._device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # the caller's random numbers go on as if nothing had happened
        for batch in run:
            run.take(batch)
    return run.result()
