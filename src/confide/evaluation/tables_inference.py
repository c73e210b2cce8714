"""Error bars from several synthetic tables of one noisy model: rules for combining them, and how often they hold.

>>> estimate = combine([0.50, 0.52, 0.51], [0.01, 0.01, 0.01])
>>> round(estimate.value, 3)
0.51

References
----------
Raghunathan, Reiter and Rubin 2003 (fully synthetic data: (1 + 1/M) b - v). Raab, Nowok and Dibben 2016 (synthetic data
of the same size from a fitted model: v (1 + 1/M)). Räisä, Jälkö, Kaski and Honkela 2023: rules that do not know the
privacy noise give intervals that are too short. Here all tables come from one noisy model, so that what they differ by
says nothing of the noise; it has to be added, where it is known: ``noise_aware``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from confide.errors import InputError

REACH = 1.959963984540054


@dataclass(frozen=True)
class Combined:
    """An estimate from M synthetic tables with the variances that rules use.

    Attributes
    ----------
    value : float
        Mean of the M estimates.
    within : float
        Mean of the variances that each table would state if it were real.
    between : float
        Variance of the estimates over the tables.
    tables : int
    """

    value: float
    within: float
    between: float
    tables: int

    def naive(self) -> float:
        """Standard error if one synthetic table were real."""
        return math.sqrt(self.within)

    def reiter(self) -> float:
        """Standard error by Raghunathan, Reiter and Rubin (zero where it is negative)."""
        return math.sqrt(max((1 + 1 / self.tables) * self.between - self.within, 0.0))

    def raab(self) -> float:
        """Standard error by Raab, Nowok and Dibben."""
        return math.sqrt(self.within * (1 + 1 / self.tables))

    def noise_aware(self, noise: float) -> float:
        """Standard error with the known standard error of the privacy noise in the estimate added."""
        return math.sqrt(self.within * (1 + 1 / self.tables) + noise**2)


def combine(estimates: Sequence[float], variances: Sequence[float]) -> Combined:
    """Combine the estimates of M synthetic tables.

    Raises
    ------
    InputError
        No tables, or lists of different length.
    """
    if len(estimates) != len(variances) or len(estimates) == 0:
        raise InputError("estimates and variances do not match", expected="one of each for every synthetic table")
    between = float(np.var(estimates, ddof=1)) if len(estimates) > 1 else 0.0
    return Combined(float(np.mean(estimates)), float(np.mean(variances)), between, len(estimates))


def covers(value: float, error: float, truth: float) -> bool:
    """Whether the 95% interval holds the truth."""
    return abs(value - truth) <= REACH * error + 1e-12
