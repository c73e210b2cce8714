"""The clip of every contributor in a step: what the plan gives, less what the noise's rounding may add."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from confide.errors import InputError
from confide.mechanisms import NoiseSource
from confide.planning import Plan
from confide.training.engine import ClippedSum

F64 = npt.NDArray[np.float64]


class Clips:
    """Absolute clips, by contributor.

    Parameters
    ----------
    plan : Plan
    assigned : float64 array, shape (contributors,)
        What the plan gives everyone; see `assign`.
    margin : float
        By how much rounding to the lattice of secure noise may lift one contributor's part: the clips make room for it.
    norm : object
        The clipping norm of the methods, which may follow a quantile.

    Raises
    ------
    InputError
        If the margin would take up a whole clip of the plan (judged on its classes, which are public, never on who is
        there).
    """

    def __init__(self, plan: Plan, assigned: F64, margin: float, norm: Any) -> None:
        self.now = assigned - margin
        self._norm, self._relative, self._margin = norm, assigned / plan.clip_norm, margin / plan.clip_norm
        self.place()
        if min(c.clip_norm for c in plan.classes) * plan.clip_norm <= margin:
            raise InputError(
                "the model is too large for this noise: rounding would take up the whole clipping norm",
                where="noise",
                remedy='use noise="default" or a smaller model',
            )

    def place(self) -> None:
        """Take over the clipping norm as it stands now."""
        if self._norm.follows:
            self.now = (self._relative - self._margin) * self._norm.value

    def following(self, total: ClippedSum, drawn: npt.NDArray[np.int64], source: NoiseSource) -> Any:
        """Return the clipping norm after a step: moved by a noisy count that the plan pays for."""
        return self._norm.step(total.norms, self._relative[drawn], source)
