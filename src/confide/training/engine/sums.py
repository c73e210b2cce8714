"""Clip every unit, add up, and keep a unit open whose entries come in several physical batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from confide.errors import RunError
from confide.training.engine.types import ClippedSum
from confide.training.engine.units import UnitGradient


def clip_factors(norms: Tensor, bound: Tensor, gamma: float | None) -> Tensor:
    """Return what each unit's gradient is multiplied by, float64 [units]; afterwards no norm is above `bound`.

    Parameters
    ----------
    norms, bound : float64 tensors, shape (units,)
    gamma : float or None
        None: min(1, bound / norm). A number above 0: bound / (norm + gamma), which is automatic clipping (Bu, Wang,
        Zha, Karypis: Automatic clipping, NeurIPS 2023); the norm is then bound x norm / (norm + gamma) < bound, and a
        gradient of zero stays zero.
    """
    if gamma is not None:
        return bound / (norms + gamma)
    return torch.where(norms > bound, bound / norms, torch.ones_like(norms))


class ClipAndSum:
    """The running clipped sum of one step.

    Parameters
    ----------
    parameters : list of tensors
        Trainable parameters, in order.

    Attributes
    ----------
    gamma : float or None
        Of automatic clipping, see `clip_factors`.
    """

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self.gamma: float | None = None
        # Four rounding units: twice what rounding the factor and its product with a value can add.
        self.shrink = 4.0 * max(float(torch.finfo(value.dtype).eps) for value in parameters)
        self.discard()

    def discard(self) -> None:
        """Forget what was added since the last `take`: a step that was left in the middle starts anew."""
        self._sums: list[Tensor] | None = None
        self._open: list[Tensor] | None = None
        self._open_finite = True
        self._borrowed = False
        self._norms: list[npt.NDArray[np.float64]] = []
        self._factors: list[npt.NDArray[np.float64]] = []
        self._nonfinite, self._loss, self._entries = 0, 0.0, 0

    @property
    def waiting(self) -> bool:
        """True while the last part of a split unit is missing."""
        return self._open is not None

    def count(self, losses: Tensor) -> None:
        """Take note of the finite losses of some entries."""
        values = losses.detach().double()
        self._loss += float(values[torch.isfinite(values)].sum())
        self._entries += len(values)

    def add(self, gradients: list[UnitGradient], finite: Tensor, clip: Tensor) -> None:
        """Clip whole units and add them.

        Parameters
        ----------
        gradients : list of UnitGradient
        finite : bool tensor, shape (units,)
            Units whose losses were finite.
        clip : float64 tensor, shape (units,)
        """
        norms = torch.stack([value.squared_norms() for value in gradients]).sum(0).sqrt()
        factors = self._weights(norms, finite, clip)
        self._accumulate([value.clipped_sum(factors) for value in gradients], norms, factors)

    def add_part(self, gradients: list[UnitGradient], finite: bool) -> None:
        """Add a part of a single unit, not clipped yet, in float64."""
        one = torch.ones(1, dtype=torch.float64, device=self._parameters[0].device)
        parts = [value.clipped_sum(one) for value in gradients]
        self._open_finite = self._open_finite and finite
        if self._open is None:
            self._open = parts
            return
        for total, part in zip(self._open, parts, strict=True):
            total += part

    def close(self, clip: Tensor) -> None:
        """Clip the unit whose parts are all there, once, and add it."""
        opened, finite = self._open or [], self._open_finite
        self._open, self._open_finite = None, True
        norm = torch.stack([value.square().sum() for value in opened]).sum().sqrt().reshape(1)
        factors = self._weights(norm, torch.tensor([finite], device=norm.device), clip)
        factor = float(factors[0])
        self._accumulate([value * factor if factor else torch.zeros_like(value) for value in opened], norm, factors)

    def add_sums(self, parts: list[Tensor], norms: Tensor, factors: Tensor) -> None:
        """Add what a compiled step summed; its tensors may be overwritten by the next one, see `keep`."""
        self._borrowed = self._sums is None
        self._accumulate(parts, norms, factors)

    def keep(self) -> None:
        """Take over tensors that the next compiled step would overwrite."""
        if self._borrowed and self._sums is not None:
            # a float64 tensor would be its own double: without a copy the next step adds its sum to itself
            self._sums = [value.to(torch.float64, copy=True) for value in self._sums]
        self._borrowed = False

    def take(self, *, native: bool = False) -> ClippedSum:
        """Return the sum and start anew; zeros if nothing was added.

        Parameters
        ----------
        native : bool
            Leave sums of a single compiled step in the precision that it accumulates in.

        Raises
        ------
        RunError
            If the last part of a split unit is missing.
        """
        if self.waiting:
            raise RunError("the last part of a split unit is missing")
        sums = self._sums or [torch.zeros_like(value, dtype=torch.float64) for value in self._parameters]
        sums = sums if native else [value.double() for value in sums]
        empty = np.empty(0)
        result = ClippedSum(
            [value.detach() for value in sums],
            np.concatenate([empty, *self._norms]),
            np.concatenate([empty, *self._factors]),
            self._nonfinite,
            self._loss,
            self._entries,
        )
        self.discard()
        return result

    def _weights(self, norms: Tensor, finite: Tensor, clip: Tensor) -> Tensor:
        good = finite & torch.isfinite(norms)
        factors = clip_factors(norms, clip * (1.0 - self.shrink), self.gamma)
        return torch.where(good, factors, torch.zeros_like(norms))

    def _accumulate(self, parts: list[Tensor], norms: Tensor, factors: Tensor) -> None:
        if self._sums is None:
            self._sums = parts
        else:
            self._sums = [value.to(torch.float64, copy=self._borrowed) for value in self._sums]
            self._borrowed = False
            for total, part in zip(self._sums, parts, strict=True):
                total += part
        counted = norms.detach().cpu().numpy().copy()
        multiplied = factors.detach().cpu().numpy()
        counted[multiplied == 0] = np.nan
        self._norms.append(counted)
        self._factors.append(multiplied)
        self._nonfinite += int((multiplied == 0).sum())
