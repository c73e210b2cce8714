"""What goes into the engine and what comes out: options, the clipped sum, and what counts as per-entry losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from confide.errors import InputError

# Bytes of unit gradients that one physical batch may hold when `physical_batch` is not given.
MEMORY = 512 * 2**20
ENGINES = ("auto", "exact", "fast")
# What "auto" means on each kind of device.
AUTO = {"cuda": "exact", "cpu": "exact"}


@dataclass(frozen=True)
class EngineOptions:
    """What changes only speed and memory, never the guarantee or the result beyond floating-point rounding.

    Attributes
    ----------
    physical_batch : int, optional
        Most entries that pass through the model at once; by default chosen from the number of parameters.
    device : str
        "cpu", "cuda", ..., or "auto": the first CUDA device if there is one, else the CPU.
    engine : str
        "exact": unit gradients formed one by one and summed in float64. "fast": one backward pass, ghost norms or kept
        gradients, sums in float32 (a model with a layer that it does not cover runs by the exact one all the same).
        "auto": exact, until the fast one has been run and timed on its own on the device.
    """

    physical_batch: int | None = None
    device: str = "cpu"
    engine: str = "auto"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InputError(
                f"unknown engine {self.engine!r}", expected=" or ".join(map(repr, ENGINES)), where="engine"
            )
        if self.physical_batch is not None and self.physical_batch < 1:
            raise InputError("physical_batch must be at least 1", expected="a whole number of entries, or None")

    def torch_device(self) -> torch.device:
        """Return the device that is meant."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(name)

    @property
    def fast(self) -> bool:
        """True when the fast engine is meant."""
        chosen = AUTO.get(self.torch_device().type, "exact") if self.engine == "auto" else self.engine
        return chosen == "fast"


@dataclass(frozen=True)
class ClippedSum:
    """The result of one step before noise. Private: it must not leave.

    Attributes
    ----------
    gradients : list of float64 tensors
        Sum over units of the clipped gradients, for each trainable parameter in the order of ``model.parameters()``.
    norms : float64 array, shape (units,)
        Norm of every unit before clipping (NaN where it was not finite).
    factors : float64 array, shape (units,)
        What each unit was multiplied by.
    nonfinite : int
        Units that counted as zero because something in them was not finite.
    loss : float
        Sum of the finite losses.
    entries : int
    """

    gradients: list[Tensor]
    norms: npt.NDArray[np.float64]
    factors: npt.NDArray[np.float64]
    nonfinite: int
    loss: float
    entries: int


class UnseenUse(InputError):
    """A parameter was used outside of the module that owns it, past the rule of that module."""

    def __init__(self, position: int, names: Sequence[str]) -> None:
        self.position = position
        super().__init__(
            "a parameter is used outside of the module that owns it, which was not seen on random inputs",
            where=names[position],
            expected="the same uses of every parameter in every step",
            remedy="declare an example that takes the same path through the model",
        )


def check_losses(losses: Any, entries: int) -> None:
    """Refuse anything but one loss for each entry.

    Raises
    ------
    InputError
        A scalar, or the wrong number of values.
    """
    if not isinstance(losses, Tensor):
        raise InputError(
            f"the loss is a {type(losses).__name__}", expected="a tensor with one loss for each entry", where="loss"
        )
    if losses.dim() != 1 or len(losses) != entries:
        kind = "one number for the whole batch" if losses.dim() == 0 else f"a tensor of shape {tuple(losses.shape)}"
        raise InputError(
            f"the loss gives {kind}",
            where="loss",
            expected=f"one value for each entry, shape ({entries},)",
            remedy='use reduction="none" (and average over all axes but the first, e.g. .flatten(1).mean(1))',
        )
