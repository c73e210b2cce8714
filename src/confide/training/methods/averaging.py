"""Averages of the weights over steps, and snapshots of them: post-processing of what the plan has paid for.

>>> Snapshots(keep=3, burn_in=0.5).steps(100)
(67, 83, 100)

Every iterate of a private run is covered by the plan's guarantee, whether it is looked at or not. Which ones enter an
average or are kept is fixed here by public numbers; choosing them by a private validation figure would have to be paid
for.

References
----------
De, Berrada, Hayes, Smith, Balle: Unlocking high-accuracy differentially private image classification through scale.
arXiv 2204.13650 (average with warm-up). Knolle et al.: Differentially
private training of neural networks with Langevin dynamics for calibrated predictive uncertainty. arXiv 2107.04296.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from confide.errors import InputError


@dataclass(frozen=True)
class Averaging:
    """Exponential moving average of the weights: what leaves is the average, not the last iterate.

    Parameters
    ----------
    decay : float
        In [0, 1).
    warmup : bool
        Use min(decay, (1 + t) / (10 + t)) after step t, so that the start is forgotten at once.
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise InputError(f"decay is {self.decay!r}", where="averaging", expected="a number in [0, 1)")

    def at(self, step: int) -> float:
        """Return the decay after step number `step` (from 0)."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


@dataclass(frozen=True)
class Snapshots:
    """Weights at evenly spaced steps after a burn-in; the last one is the last step.

    Parameters
    ----------
    keep : int
        How many.
    burn_in : float
        Share of the steps before the first may be taken, in [0, 1).
    """

    keep: int = 20
    burn_in: float = 0.6

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 1:
            raise InputError(f"keep is {self.keep!r}", where="snapshots", expected="a whole number, 1 or more")
        if not 0 <= self.burn_in < 1:
            raise InputError(f"burn_in is {self.burn_in!r}", where="snapshots", expected="a number in [0, 1)")

    def steps(self, total: int) -> tuple[int, ...]:
        """Return after how many steps of a run of `total` steps a snapshot is taken."""
        left = total * (1 - self.burn_in)
        return tuple(
            sorted({max(1, round(total - left * (self.keep - i) / self.keep)) for i in range(1, self.keep + 1)})
        )


class Trail:
    """Average and snapshots of one run as it goes.

    Parameters
    ----------
    parameters : sequence of tensors
        Trainable parameters.
    averaging : Averaging or None
    snapshots : Snapshots or None
    total : int
        Steps of the run.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], averaging: Averaging | None, snapshots: Snapshots | None, total: int
    ) -> None:
        self._parameters, self._averaging = list(parameters), averaging
        self._wanted = frozenset(() if snapshots is None else snapshots.steps(total))
        self._average = None if averaging is None else [value.detach().clone() for value in parameters]
        self._kept: list[list[Tensor]] = []
        self._began = 0

    @torch.no_grad()
    def step(self, number: int) -> None:
        """Take note of the weights after step `number` (from 0)."""
        if self._averaging is not None and self._average is not None:
            decay = self._averaging.at(number - self._began)
            for mean, value in zip(self._average, self._parameters, strict=True):
                mean.lerp_(value, 1 - decay)
        if number + 1 in self._wanted:
            self._kept.append([value.detach().cpu().clone() for value in self._parameters])

    @torch.no_grad()
    def keep(self) -> None:
        """Keep what would leave now: the average, or else the weights."""
        self._kept.append([value.detach().cpu().clone() for value in self._average or self._parameters])

    @torch.no_grad()
    def begin(self, number: int) -> None:
        """Begin the average anew from the weights as they are, before step `number`."""
        self._began = number
        for mean, value in zip(self._average or (), self._parameters, strict=False):
            mean.copy_(value)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the average into the model."""
        for value, mean in zip(self._parameters, self._average or (), strict=False):
            value.copy_(mean)

    def snapshots(self, names: Sequence[str]) -> tuple[dict[str, Tensor], ...]:
        """Return the snapshots by name of parameter, on the CPU."""
        return tuple(dict(zip(names, kept, strict=True)) for kept in self._kept)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"average": self._average, "kept": self._kept, "began": self._began}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        for mean, value in zip(self._average or (), state["average"] or (), strict=False):
            mean.copy_(value)
        self._kept = [list(kept) for kept in state["kept"]]
        self._began = int(state.get("began", 0))
