"""What a training run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from confide.training.engine import ClippedSum


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
        Where the clipping norm follows a quantile, ``clip_norm`` by step (from noisy counts alone, hence public).
        ``engine``: which engine ran the model, and why where it is not the fastest.
    snapshots : tuple of dicts of tensors
        Trainable parameters at the chosen steps: covered by the plan as the last ones are.
    arithmetic : str
        Precision of the steps, what the clips gave up for it, and where the noise came from: for the certificate.
    """

    state_dict: dict[str, Tensor]
    steps: int
    testing_only: bool
    internal: dict[str, Any]
    snapshots: tuple[dict[str, Tensor], ...] = ()
    arithmetic: str = "float32"

    def __repr__(self) -> str:
        return f"TrainingResult(steps={self.steps}, testing_only={self.testing_only})"


def empty_figures() -> dict[str, list[Any]]:
    """Return the internal figures of a run that has made no step."""
    return {name: [] for name in ("loss", "entries", "units", "norm_quantiles", "clipped")}


def keep_figures(record: dict[str, list[Any]], total: ClippedSum, views: int = 1) -> int:
    """Add the figures of a step (see `TrainingResult`); return how many units counted as zero.

    Parameters
    ----------
    record : dict of lists
        Changed in place.
    total : ClippedSum
    views : int
        Rows of each drawn entry.
    """
    units = len(total.norms)
    norms = total.norms[np.isfinite(total.norms)]
    record["loss"].append(total.loss / total.entries if total.entries else None)
    record["entries"].append(total.entries // views)
    record["units"].append(units)
    record["norm_quantiles"].append(np.quantile(norms, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(norms) else None)
    record["clipped"].append(float((total.factors < 1).mean()) if units else None)
    return total.nonfinite
