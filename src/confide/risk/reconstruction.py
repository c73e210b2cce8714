"""What an attacker without any prior knowledge of the data can rebuild: exact laws of error, PSNR and correlation.

The attack is the strongest from-scratch gradient inversion there is (a malicious linear layer, Riess, Ziller et al.
2024, "From Mean to Extreme"): it sees the target x itself plus normal noise of standard deviation s |x| per
coordinate. Real images help an attacker who knows what images look like: these figures do not bound that attacker.

>>> bounds = MeanEstimation(noise=0.1, norm=10.0, dimension=100, data_range=1.0)
>>> round(bounds.mean_squared_error, 6)
1.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from confide.errors import InputError

Floats = NDArray[Any]


@dataclass(frozen=True)
class MeanEstimation:
    """Law of the reconstruction error of the optimal attack without a data prior, in one noisy step.

    Parameters
    ----------
    noise : float
        Noise multiplier of the step.
    norm : float
        Euclidean norm of the target. For a population use the smallest norm: it favours the attacker most.
    dimension : int
        Number of values in the target.
    data_range : float
        Largest minus smallest value a coordinate can take (for PSNR).
    """

    noise: float
    norm: float
    dimension: int
    data_range: float = 1.0
    assumption: str = "the attacker knows nothing about what data look like, sees one step and may choose the model"

    def __post_init__(self) -> None:
        for name in ("noise", "norm", "dimension", "data_range"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise InputError(f"{name} is {value!r}", expected="a number above 0")

    @property
    def mean_squared_error(self) -> float:
        """Expected mean squared error, noise^2 norm^2 (the error is Gamma distributed around it)."""
        return self.noise**2 * self.norm**2

    def mse_below(self, error: ArrayLike) -> Floats:
        """Return the probability that the mean squared error is at most `error`."""
        n = self.dimension
        return np.asarray(special.gammainc(n / 2, n * np.asarray(error, float) / (2 * self.mean_squared_error)))

    def psnr_above(self, decibel: ArrayLike) -> Floats:
        """Return the probability that the peak signal-to-noise ratio reaches `decibel`."""
        return self.mse_below(self.data_range**2 * 10 ** (-np.asarray(decibel, float) / 10))

    def psnr_at(self, probability: ArrayLike) -> Floats:
        """Return the peak signal-to-noise ratio in dB that is reached with `probability`."""
        n = self.dimension
        error = special.gammaincinv(n / 2, np.asarray(probability, float)) * 2 * self.mean_squared_error / n
        with np.errstate(divide="ignore"):
            return np.asarray(10 * np.log10(self.data_range**2 / error))

    @property
    def correlation(self) -> float:
        """Typical normalised cross-correlation with the target, sqrt(1 / (1 + dimension noise^2))."""
        return math.sqrt(1 / (1 + self.dimension * self.noise**2))


def noise_for_error(error: float, probability: float, *, norm: float, dimension: int) -> float:
    """Return the noise multiplier at which an error of at most `error` has at most `probability`.

    Raises
    ------
    InputError
        If an argument is out of range.
    """
    if not (error > 0 and norm > 0 and dimension > 0 and 0 < probability < 1):
        raise InputError("error, norm and dimension must be above 0 and probability strictly between 0 and 1")
    quantile = float(special.gammaincinv(dimension / 2, probability))
    return math.sqrt(dimension * error / (2 * norm**2 * quantile))
