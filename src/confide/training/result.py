"""What a training run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TrainingResult:
    """The trained model and the figures that must not leave.

    Attributes
    ----------
    state_dict : dict of tensors
        Parameters and buffers after the last step, on the CPU: what may be released under the plan.
    steps : int
        Steps made, empty ones included.
    testing_only : bool
        True when the run's randomness was chosen by the user, so that it protects nobody.
    internal : dict
        Un-noised figures, private: ``loss`` (mean of the drawn entries by step, None in empty steps), ``entries`` and
        ``units`` by step, ``norm_quantiles`` by step (0, 25, 50, 75, 100 per cent of unit norms before clipping, None
        in empty steps), ``clipped`` (share of units by step), ``nonfinite`` (units that counted as zero, all steps).
    """

    state_dict: dict[str, Tensor]
    steps: int
    testing_only: bool
    internal: dict[str, Any]

    def __repr__(self) -> str:
        return f"TrainingResult(steps={self.steps}, testing_only={self.testing_only})"
