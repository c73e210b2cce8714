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

ENGINES = ("auto", "exact", "fast")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
COMPILE = ("auto", "yes", "no", "trace")
# What "auto" means on each kind of device: the one that benchmarks/engine found at least as fast.
AUTO = {"cuda": "fast", "cpu": "fast"}


@dataclass(frozen=True)
class EngineOptions:
    """What changes only speed, memory and rounding, never the guarantee: clips make room for every rounding.

    Attributes
    ----------
    physical_batch : int, optional
        Most entries that pass through the model at once; by default chosen from the memory that is free.
    device : str
        "cpu", "cuda", ..., or "auto": the first CUDA device if there is one, else the CPU.
    engine : str
        "exact": unit gradients formed one by one and summed in float64. "fast": one backward pass, ghost norms or kept
        gradients, sums in float32 (a model with a layer that it does not cover runs by the exact one all the same).
        "auto": fast on CUDA, elsewhere what was measured to be the faster one.
    compile : str
        Whether `PrivateRun.take` (and so `fit` and `confide train`) runs a step of the fast engine as one compiled
        function: "yes", "no", "auto" (on CUDA), or "trace" (traced and run as it is, to look for errors).
    precision : str
        Of compiled steps: "fp32", "tf32" (products round their float32 factors to 11 bits), "bf16" (products in
        bfloat16), "auto": bf16 on CUDA devices that have it, else fp32. The certificate states it.
    """

    physical_batch: int | None = None
    device: str = "cpu"
    engine: str = "auto"
    compile: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if str(self.precision).lower() in ("fp16", "float16", "half"):
            raise InputError(
                "float16 is not offered",
                where="precision",
                expected=" or ".join(map(repr, PRECISIONS)),
                remedy="take bf16: it needs no loss scale (one that follows the gradients skips steps because of "
                "single people, which no guarantee covers)",
            )
        for name, known in (("engine", ENGINES), ("compile", COMPILE), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"unknown {name} {value!r}", expected=" or ".join(map(repr, known)), where=name)
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

    @property
    def compiled(self) -> bool:
        """True when steps are to be traced and run whole."""
        if self.compile == "auto":
            return self.fast and self.torch_device().type == "cuda"
        return self.fast and self.compile != "no"

    @property
    def arithmetic(self) -> str:
        """The precision that compiled steps use: "fp32", "tf32" or "bf16"."""
        if self.precision != "auto":
            return self.precision
        if self.compiled and self.torch_device().type == "cuda" and torch.cuda.is_bf16_supported():
            return "bf16"
        return "fp32"


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
