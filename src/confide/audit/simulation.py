"""A simulated study with canaries in it, run through the real training loop.

The simulated data set has ordinary contributors, who train a small logistic model, and canaries. A canary is a
contributor with k entries whose gradients all point along one coordinate of a table that nothing else in the model
uses (a dead parameter), with a norm above the clip. Each canary has a coordinate of its own.

Why the observations are independent: a canary's coordinate of the noisy sum holds the clipped gradients of that canary
alone plus one coordinate of the noise. The coins of a canary's entries are its own (they involve no other contributor),
each unit is clipped on its own, the noise has independent coordinates, and a dead parameter changes nobody's
gradient, so the steps of one coordinate, and the coordinates of one run, are independent. One run with n canaries
therefore gives the same as n runs with one canary each. Whether a canary is in the data is fixed beforehand, so the
scores of those in are independent and alike, as are those of the ones left out.

What the adversary sees is what the optimiser sees: the noisy gradient of every step. Under Langevin dynamics it sees
the weights after every step instead, as these are what leaves; with correlated noise it knows everybody's group and
turns the noise of all steps back into independent noise first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from confide.accounting import SampledGaussian
from confide.audit.scores import correlated_scores, step_scores
from confide.contributors import group_of
from confide.planning import Plan
from confide.training import SGLD, Augmentation, ContributorDataset, EngineOptions, Methods, PrivateRun

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Tamper = Callable[[PrivateRun], None]

__all__ = ["CanaryRun", "run_canaries", "views"]

FEATURES = 4
# Gradient norm of one canary entry in units of its clip, before the weight 1 / k of clip unit "contributor".
STRENGTH = 8.0
# Speed only: canary gradients are single numbers, so thousands of entries fit into one pass.
OPTIONS = EngineOptions(physical_batch=8192)


class _Model(nn.Module):
    """A logistic model, and beside it a table of which no output of the task depends.

    Inputs are one tensor, features and the number of the coordinate, as views of entries are made of one tensor.
    """

    def __init__(self, coordinates: int) -> None:
        super().__init__()
        self.task = nn.Linear(FEATURES, 1)
        self.dead = nn.Embedding(coordinates, 1)
        nn.init.zeros_(self.dead.weight)

    def forward(self, x: Tensor) -> Tensor:
        coordinate = x[:, FEATURES].long().clamp(0, self.dead.num_embeddings - 1)  # a rehearsal brings any numbers
        return torch.cat([self.task(x[:, :FEATURES]), self.dead(coordinate)], dim=1)


def _jitter(inputs: Tensor, numbers: Tensor) -> Tensor:
    """Stretch the features of each row by its own numbers; the coordinate stays."""
    stretch = torch.ones_like(inputs)
    stretch[:, :FEATURES] = (0.9 + 0.2 * numbers[:, :FEATURES]).to(inputs.dtype)
    return inputs * stretch


def views(number: int) -> Augmentation:
    """Return an augmentation that suits the simulated entries: `number` views, each with its features stretched."""
    return Augmentation(number, _jitter, FEATURES)


def _loss(strength: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        label, canary = targets[:, 0], targets[:, 1]
        ordinary = nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], label, reduction="none")
        # linear, so that a canary's gradient is the same at every step, whatever the noise did to its coordinate
        return (1 - canary) * ordinary + canary * strength * outputs[:, 1]

    return loss


class _CountingDataset(ContributorDataset):
    """Counts which entries the loop reads: the inclusion count of the canaries."""

    def __init__(self, dataset: TensorDataset, contributors: list[str], budget: float | None) -> None:
        super().__init__(dataset, contributors, None if budget is None else [budget] * len(contributors))
        self.read = np.zeros(len(contributors), dtype=np.int64)

    def batch(self, positions: I64) -> tuple[Any, Any]:
        np.add.at(self.read, positions, 1)
        return super().batch(positions)


class _Eyes:
    """What an adversary keeps: the running log likelihood ratio of every coordinate of the dead table.

    With correlated noise the noisy sums of all steps are kept and scored at the end.
    """

    def __init__(self, model: _Model, plan: Plan, mechanism: SampledGaussian) -> None:
        self.table, self._plan, self.mechanism = model.dead.weight, plan, mechanism
        self.scores: F64 = np.zeros(len(self.table))
        self.sums: list[F64] = []
        self.run: PrivateRun | None = None
        self.steps = 0

    def see(self, gradient: Tensor) -> None:
        assert self.run is not None
        # the course of the clipping norm, where it follows a quantile, is a function of noisy counts: public
        methods, m = self.run._methods, self.mechanism
        noisy_sum = gradient.detach().double().numpy().ravel() * (methods.divisor / methods.norm.value)
        self.steps += 1
        if self._plan.correlation is not None:
            self.sums.append(noisy_sum)
            return
        self.scores += step_scores(
            noisy_sum,
            noise_multiplier=self._plan.gradient_noise,
            rate=m.rate,
            entries=m.entries,
            clip_norm=m.clip_norm,
        )


class _Adversary(torch.optim.SGD):
    """Looks at the noisy gradients that the optimiser is given."""

    def __init__(self, model: _Model, eyes: _Eyes) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self._eyes = eyes

    def step(self, closure: Any = None) -> Any:
        gradient = self._eyes.table.grad
        assert gradient is not None
        self._eyes.see(gradient)
        return super().step(closure)


class _LangevinAdversary(SGLD):
    """Looks at the weights before and after every step, and takes the gradient out of their difference."""

    def __init__(self, model: _Model, eyes: _Eyes, records: int) -> None:
        super().__init__(model.parameters(), lr=0.1, records=records, prior_precision=1.0)
        self._eyes = eyes

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        before = self._eyes.table.detach().clone()
        super().step(closure)
        group = self.param_groups[0]
        pull = group["prior_precision"] / self.records * before
        self._eyes.see((before - self._eyes.table) / group["lr"] - pull)


@dataclass(frozen=True, eq=False)
class CanaryRun:
    """What the adversary has after one run.

    Attributes
    ----------
    absent, present : float64 arrays
        Scores of the canaries left out and of those in the data.
    draws : int
        Times a unit of a canary was drawn, over all canaries and steps.
    chances : int
        Coins thrown for them.
    steps : int
        Steps the adversary saw.
    """

    absent: F64
    present: F64
    draws: int
    chances: int
    steps: int


def run_canaries(
    plan: Plan,
    *,
    entries: int,
    present: int,
    absent: int,
    budget: float | None = None,
    ordinary: int = 40,
    seed: int = 0,
    tamper: Tamper | None = None,
    methods: Methods | None = None,
    langevin: bool = False,
) -> CanaryRun:
    """Train once with `present` canaries of `entries` entries each, and score these and `absent` empty coordinates.

    Parameters
    ----------
    plan : Plan
        The plan that is claimed and run.
    entries : int
        Entries of each canary.
    present, absent : int
        Canaries in the data, and coordinates whose canary is not.
    budget : float, optional
        Consent level of the canaries; needed only where the plan has several.
    ordinary : int
        Other contributors, with one entry each, who train the task.
    seed : int
        Seed of the simulated data, and of coins and noise (`PrivateRun(seed=...)`).
    tamper : function, optional
        Called with the `PrivateRun` before its first step. Failure tests break the run with it, from outside, by
        replacing one of its parts; an audit passes nothing.
    methods : Methods, optional
        What the steps do besides the plain one; `views` makes an augmentation that suits the simulated entries.
    langevin : bool
        Train by Langevin dynamics at the temperature of the plan's own noise, and look at the weights.

    Returns
    -------
    CanaryRun
    """
    rng = np.random.default_rng([seed, 1])
    c = plan.class_of(entries, budget)
    data = _dataset(rng, entries=entries, present=present, absent=absent, ordinary=ordinary, budget=budget)
    loss = _loss(STRENGTH * plan.clip_norm * (entries if plan.clip_unit == "contributor" else 1))
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would queue a call for every absent device
        model = _Model(present + absent + 1)
        eyes = _Eyes(model, plan, plan.mechanism(c))
        adversary = _LangevinAdversary(model, eyes, present + ordinary) if langevin else _Adversary(model, eyes)
        run = PrivateRun(model, loss, adversary, plan, data, seed=seed, options=OPTIONS, methods=methods)
        eyes.run = run
        if tamper is not None:
            tamper(run)
        data.read[:] = 0  # making the run looked at one entry for its shape
        for batch in run:
            run.step(loss(model(batch.inputs), batch.targets))
    run.result()
    read = int(data.read[: present * entries].sum()) // run._methods.views
    coins = present * plan.steps
    scores = eyes.scores[:-1]
    if plan.correlation is not None:
        width = plan.correlation.separation
        group = rng.integers(0, width, present + absent)  # one who is not there would be in any group alike
        there = group_of(run._keys.subset, data.index, width)
        group[:present] = there[data.index.of_entry[: present * entries : entries]]
        scores = correlated_scores(
            np.array(eyes.sums)[:, :-1], group, plan.correlation, mechanism=eyes.mechanism, noise=plan.gradient_noise
        )
        coins = int(sum(len(range(g, plan.steps, width)) for g in group[:present]))
    if plan.clip_unit == "contributor":
        # a drawn contributor has `entries_used` entries read, so readings come in whole numbers of contributors
        draws, chances = read // c.entries_used, coins
    else:
        draws, chances = read, coins * c.entries_used
    return CanaryRun(scores[present:], scores[:present], draws, chances, eyes.steps)


def _dataset(
    rng: np.random.Generator, *, entries: int, present: int, absent: int, ordinary: int, budget: float | None
) -> _CountingDataset:
    """Canaries first (coordinate = own number), then ordinary contributors at the last coordinate, unused."""
    canaries = present * entries
    n = canaries + ordinary
    features = torch.zeros(n, FEATURES)
    features[canaries:] = torch.from_numpy(rng.normal(size=(ordinary, FEATURES))).float()
    targets = torch.zeros(n, 2)
    targets[:canaries, 1] = 1.0
    targets[canaries:, 0] = (features[canaries:, 0] > 0).float()
    coordinate = torch.full((n, 1), float(present + absent))
    coordinate[:canaries, 0] = torch.arange(present).repeat_interleave(entries).float()
    names = [f"canary {i}" for i in range(present) for _ in range(entries)] + [f"person {i}" for i in range(ordinary)]
    return _CountingDataset(TensorDataset(torch.cat([features, coordinate], 1), targets), names, budget)
