"""How a unit's gradient is brought into its ball, and a clipping norm that follows a quantile (paid for in the plan).

>>> Clipping("automatic", gamma=0.01), Clipping(normalise=True)
(Clipping(rule='automatic', gamma=0.01, normalise=False), Clipping(rule='flat', gamma=0.01, normalise=True))

flat: g min(1, C / |g|). automatic: g C / (|g| + gamma), whose norm C |g| / (|g| + gamma) is below C for every g, so the
sensitivity is C as before; small gradients are lifted, the learning rate no longer depends on C, and gamma > 0 keeps
their order. normalise: the noisy sum is divided by the clipping norm, so that the learning rate does not depend on it
either (clip, then rescale to unit norm: De et al.); that is post-processing.

References
----------
Bu, Wang, Zha, Karypis: Automatic clipping: differentially private deep learning made easier and stronger. NeurIPS 2023.
De et al.: arXiv 2204.13650. Andrew et al.: NeurIPS 2021 (quantile; see `confide.planning.QuantileClipping`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confide.errors import InputError, nearest
from confide.mechanisms import NoiseSource
from confide.planning import Plan

RULES = ("flat", "automatic")


@dataclass(frozen=True)
class Clipping:
    """The rule that brings a unit's gradient into its ball.

    Parameters
    ----------
    rule : str
        "flat" or "automatic".
    gamma : float
        Added to the norm by "automatic", in units of the gradient's norm.
    normalise : bool
        Divide the noisy sum by the clipping norm.
    """

    rule: str = "flat"
    gamma: float = 0.01
    normalise: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            close = nearest(str(self.rule), RULES)
            raise InputError(
                f"unknown clipping rule {self.rule!r}",
                where="clipping",
                expected=" or ".join(map(repr, RULES)),
                remedy=f"did you mean {close!r}?" if close else None,
            )
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise InputError(f"gamma is {self.gamma!r}", where="clipping", expected="a number above 0")


class ClipNorm:
    """The clipping norm of each step: constant, or after the plan's quantile.

    Parameters
    ----------
    plan : Plan

    Attributes
    ----------
    value : float
        C of the current step; from noisy counts alone, hence public.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self.value = plan, plan.clip_norm
        self.course: list[float] = []

    @property
    def follows(self) -> bool:
        """True where the plan pays for a count in every step."""
        return self._plan.clipping is not None

    def step(self, norms: npt.NDArray[np.float64], relative: npt.NDArray[np.float64], source: NoiseSource) -> float:
        """Move after a step, by the noisy number of units within the norm; return the new norm.

        Parameters
        ----------
        norms : float64 array, shape (units,)
            Norm of each unit before clipping; NaN counts as above.
        relative : float64 array, shape (units,)
            Clip of each unit's class in units of the plan's norm: the weight of its vote.
        source : NoiseSource
        """
        rule = self._plan.clipping
        if rule is None:
            return self.value
        self.course.append(self.value)
        within = np.where(np.isnan(norms), np.inf, norms) <= self.value * relative
        scale = rule.count_noise(self._plan.noise_multiplier)
        # rounding to the lattice of secure noise may lift a vote by the margin: each vote makes room for it
        largest = np.maximum(max(rule.quantile, 1.0 - rule.quantile) * relative, 1e-300)
        room = np.maximum(0.0, 1.0 - source.margin(1, scale=scale) / largest)
        votes = float(np.sum(room * relative * (within - rule.quantile)))
        noisy = float(source.add_normal(np.array([votes]), scale=scale)[0])
        moved = math.exp(-rule.rate * min(max(noisy / self._plan.denominator, -1.0), 1.0))
        start = self._plan.clip_norm
        self.value = min(max(self.value * moved, 1e-6 * start), 1e6 * start)
        return self.value
