"""Members of an ensemble trained one after another inside one plan, which pays for all of them together.

>>> Ensemble(members=3).ends(100)
(33, 66, 100)

A plan covers the noisy gradients of all its steps, whatever weights they are taken at, as long as these come from
public values and from earlier noisy gradients. So a run may go back to its public initial weights after a share of the
steps and learn a second model from the rest, and so on: m models that are released together cost what a single one of
as many steps costs. The optimiser, the average and the direction of sharpness begin anew with each member.

References
----------
Lockfisch et al., "On arbitrary predictions from equally valid models", arXiv 2507.19408, 2025 (ensembles that abstain);
adaptive composition: Dong, Roth, Su, "Gaussian differential privacy", JRSS B 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from confide.errors import InputError


@dataclass(frozen=True)
class Ensemble:
    """Members that share the steps of a plan; all of them leave, and nothing more is spent.

    Parameters
    ----------
    members : int
        How many; each has its share of the plan's steps.
    """

    members: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.members, bool) or not isinstance(self.members, int) or self.members < 2:
            raise InputError(f"members is {self.members!r}", where="ensemble", expected="a whole number, 2 or more")

    def ends(self, total: int) -> tuple[int, ...]:
        """Return after how many steps of a run of `total` steps each member is complete.

        Raises
        ------
        InputError
            Fewer steps than members.
        """
        if total < self.members:
            raise InputError(
                f"{total} steps for {self.members} members", where="ensemble", expected="at least one step for each"
            )
        return tuple(total * (i + 1) // self.members for i in range(self.members))


class Restart:
    """Puts weights and optimiser back to where a run began.

    Parameters
    ----------
    parameters : sequence of tensors
        Trainable parameters.
    ends : sequence of int
        After how many steps each member is complete.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ends: Sequence[int]) -> None:
        self._parameters, self._ends = list(parameters), tuple(ends)
        self._optimizer: torch.optim.Optimizer | None = None
        self.weights: list[Tensor] | None = None
        self.moments: dict[str, Any] | None = None

    def begin(self) -> None:
        """Before the first batch of a run: keep the public initial weights."""
        if self.weights is None:
            self.weights = [value.detach().clone() for value in self._parameters]

    def meet(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the optimiser moves: keep the state it began with."""
        self._optimizer = optimizer
        if self.moments is None:
            self.moments = _moments(optimizer)

    def due(self, steps: int) -> bool:
        """Whether a member is complete after `steps` steps."""
        return steps in self._ends

    def last(self, steps: int) -> bool:
        """Whether that was the last one."""
        return steps == self._ends[-1]

    @torch.no_grad()
    def back(self) -> None:
        """Go back to where the run began."""
        assert self.weights is not None
        assert self.moments is not None
        assert self._optimizer is not None
        for value, first in zip(self._parameters, self.weights, strict=True):
            value.copy_(first)
        _restore(self._optimizer, self.moments)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"weights": self.weights, "moments": self.moments}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        kept = state["weights"]
        pairs = zip(kept or (), self._parameters, strict=False)
        self.weights = None if kept is None else [first.to(value.device) for first, value in pairs]
        self.moments = state["moments"]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser knows of each parameter, and the settings of its groups."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    values = [value for group in optimizer.param_groups for value in group["params"]]
    return copy.deepcopy({"groups": groups, "state": [dict(optimizer.state.get(value, {})) for value in values]})


def _restore(optimizer: torch.optim.Optimizer, moments: Mapping[str, Any]) -> None:
    """Put back what `_moments` kept.

    Not by ``load_state_dict``, which adds to the optimiser's defaults: a checkpoint would not know it again.
    """
    for group, first in zip(optimizer.param_groups, moments["groups"], strict=True):
        for key in [k for k in group if k != "params" and k not in first]:
            del group[key]
        group.update(copy.deepcopy(first))
    values = [value for group in optimizer.param_groups for value in group["params"]]
    for value, first in zip(values, moments["state"], strict=True):
        optimizer.state.pop(value, None)
        if first:
            optimizer.state[value] = {
                # counters of steps stay where they were, moments go where the parameter is
                k: v.clone().to(value.device) if isinstance(v, Tensor) and v.dim() else copy.deepcopy(v)
                for k, v in first.items()
            }


def without_schedule(ensemble: Ensemble | None, scheduler: Any) -> None:
    """Refuse a learning rate that changes over the run: it would differ from member to member.

    Raises
    ------
    InputError
    """
    if ensemble is not None and scheduler is not None:
        raise InputError(
            "the members of an ensemble begin anew, and this learning rate goes on over all of them",
            where="scheduler",
            expected="no scheduler beside an ensemble",
            remedy="take a constant learning rate",
        )
