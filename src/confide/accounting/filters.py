"""Filters and odometers: who may still take part when every step's charge is chosen along the way.

A filter's verdicts are functions of data when the charges are (clipped norms, for instance): keep them internal. The
ledger is charged the filter's budget, which does not depend on data.

>>> import numpy as np
>>> keep = GaussianFilter(budget=1.0, contributors=2)
>>> [keep.admit(np.array([0.8, 0.5])).tolist() for _ in range(2)]
[[True, True], [False, True]]
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.accounting.mechanisms import _count, _number
from confide.accounting.pairs import Floats
from confide.accounting.renyi import RDP_ORDERS, rdp_epsilon
from confide.errors import InputError

Mask = NDArray[np.bool_]


class GaussianFilter:
    """Keep a contributor while the squares of their Gaussian-DP charges fit a budget (Koskela et al. 2023).

    Valid for unsampled Gaussian steps only: the whole adaptive procedure is then `budget`-GDP for everyone. Charges
    may be individual (clipped norm over noise). Once dropped, a contributor contributes exactly nothing.

    Parameters
    ----------
    budget : float
        Gaussian-DP parameter that nobody exceeds.
    contributors : int
        How many contributors are followed.
    """

    def __init__(self, budget: float, contributors: int) -> None:
        self.budget = _number("budget", budget, 0, math.inf)
        self.spent: Floats = np.zeros(_count("contributors", contributors, 1))

    def admit(self, charge: ArrayLike, *, rate: float = 1.0) -> Mask:
        """Charge everybody who can still pay mu = `charge` [contributors] for this step; return who takes part.

        Raises
        ------
        InputError
            If the step is sampled (`rate` below 1): this filter does not hold there, use `RenyiFilter`.
        """
        if rate != 1.0:
            raise InputError(
                f"a Gaussian filter cannot charge a step sampled at rate {rate:g}",
                expected="every contributor in every step",
                remedy="use RenyiFilter with the subsampled Renyi curve",
            )
        square = np.broadcast_to(np.asarray(charge, float), self.spent.shape) ** 2
        if not np.all(np.isfinite(square)):
            raise InputError("a charge is not a finite number")
        active = self.spent + square <= self.budget**2
        self.spent = np.where(active, self.spent + square, self.spent)
        return np.asarray(active)


class RenyiFilter:
    """Keep a contributor while their summed Renyi curve stays under a declared curve at every order.

    Feldman and Zrnic 2021, on a grid of orders: dropping at the first order that would overflow certifies every order.
    Under Poisson sampling the charge of a step is the subsampled curve, for everybody active, drawn or not, at the
    bound they are clipped to.

    Parameters
    ----------
    budget : float array [orders]
        Curve that nobody exceeds, on `RDP_ORDERS`.
    contributors : int
        How many contributors are followed.
    """

    def __init__(self, budget: ArrayLike, contributors: int) -> None:
        self.budget = np.asarray(budget, float)
        if self.budget.shape != RDP_ORDERS.shape or np.any(np.isnan(self.budget)) or np.any(self.budget < 0):
            raise InputError("a budget curve does not fit", expected=f"{len(RDP_ORDERS)} numbers, at least 0")
        self.spent: Floats = np.zeros((_count("contributors", contributors, 1), len(RDP_ORDERS)))
        self._active: Mask = np.ones(contributors, bool)

    def admit(self, curves: ArrayLike, class_of: ArrayLike | None = None) -> Mask:
        """Charge one step; return who takes part.

        Parameters
        ----------
        curves : float array [classes, orders] or [orders]
            Renyi curve of this step for every class (or for all).
        class_of : int array [contributors], optional
            Class of every contributor; needed with several curves.
        """
        rows = np.atleast_2d(np.asarray(curves, float))
        if rows.shape[1] != len(RDP_ORDERS) or np.any(np.isnan(rows)) or np.any(rows < 0):
            raise InputError("a Renyi curve does not fit", expected=f"{len(RDP_ORDERS)} numbers, at least 0")
        if class_of is None and rows.shape[0] not in (1, len(self.spent)):
            raise InputError("several curves need the class of every contributor")
        charge = rows[np.asarray(class_of)] if class_of is not None else rows
        # A dropped contributor never comes back: the filter's theorem is about stopping.
        self._active &= np.all(self.spent + charge <= self.budget, axis=1)
        self.spent = np.where(self._active[:, None], self.spent + charge, self.spent)
        return self._active.copy()


class Odometer:
    """What every contributor has spent so far, after the fact. A function of the data: confidential, never a claim."""

    def __init__(self, contributors: int) -> None:
        self.spent: Floats = np.zeros((_count("contributors", contributors, 1), len(RDP_ORDERS)))

    def charge(self, curves: ArrayLike) -> None:
        """Add one step's Renyi curves [contributors, orders] (or one curve for all)."""
        self.spent = self.spent + np.asarray(curves, float)

    def epsilon(self, delta: float) -> Floats:
        """Return the running epsilon [contributors] at `delta`."""
        _number("delta", delta, 0, 1)
        return np.array([rdp_epsilon(row, delta) for row in self.spent])
