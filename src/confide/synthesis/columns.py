"""One declared column of a synthesis: its values, its bins, its grid, its codes.

>>> column = SynthesisColumn(type="real", bounds=(0, 10), step=0.5)
>>> column.coded("edss").cells
21
>>> codes = SynthesisColumn(type="categorical", categories=("K70", "K7", "other"), roll_up="prefix", other="other")
>>> codes.place("K746")
'K7'

Everything here is public: nothing is read from data.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from confide.data import ColumnSpec
from confide.synthesis.domain import Column, Floats

DEFAULT_BINS = 10
LARGEST_INTEGER_RANGE = 40
LARGEST_GRID = 120
DAYS = {"days": 1.0, "weeks": 7.0, "months": 365.25 / 12, "years": 365.25}


class SynthesisColumn(ColumnSpec):
    """A declared column with its bins.

    Attributes
    ----------
    bins : int or tuple of numbers, optional
        For real, integer and date columns: a number of equally wide bins between the bounds, or the inner edges. By
        default every value of a short integer range or of a short grid, else 10 bins.
    step : number, optional
        For real and integer columns: values lie on the grid low, low + step, ... (EDSS in half steps). A value beside
        the grid is refused; drawn values lie on it.
    roll_up : str, optional
        For categorical columns that hold codes of a hierarchy: ``"prefix"`` (ICD-10, ATC: a code lies under every
        shorter beginning of it) or a CSV file with the columns ``code`` and ``parent``. A code that is not itself among
        the categories counts as its nearest ancestor that is.
    other : str, optional
        The category of all values that are not among the categories (and roll up to none); without it they are refused.
    since : str, optional
        For a column of dates: the time since this date column of the patient (or ``"first"``: since the patient's own
        first row) in `unit`, and never a calendar date. The type is then integer or real.
    unit : "days", "weeks", "months" or "years"
        Of `since`.
    """

    bins: int | tuple[Any, ...] | None = None
    step: float | None = None
    roll_up: str | None = None
    other: str | None = None
    since: str | None = None
    unit: Literal["days", "weeks", "months", "years"] = "days"

    @model_validator(mode="after")
    def _bins_fit(self) -> SynthesisColumn:
        if self.role == "label":
            raise ValueError(
                "a synthesis has no label; declare the column like any other and name it in [method] target"
            )
        if self.role != "feature":
            return self
        discrete = self.type in ("categorical", "ordinal")
        if (self.roll_up is not None or self.other is not None) and self.type != "categorical":
            raise ValueError("roll_up and other are for categorical columns")
        if self.other is not None and self.other not in [str(value) for value in self.categories or ()]:
            raise ValueError("other names one of the categories, for every value that is not among them")
        if self.since is not None and self.type not in ("integer", "real"):
            raise ValueError('time since an index date is a number: declare type = "integer" or "real" with bounds')
        if discrete:
            if self.bins is not None or self.step is not None:
                raise ValueError("bins and step are for numbers and dates")
            return self
        self._check_grid()
        if not (np.diff(self.edges()) > 0).all():
            raise ValueError("bins must be inner edges that grow and lie inside the bounds")
        return self

    def _check_grid(self) -> None:
        if self.step is None:
            return
        low, high = self.low_high
        if self.type == "date" or not self.step > 0 or self.scale == "log":
            raise ValueError("step is a number above 0, for real and integer columns on a linear scale")
        if abs((high - low) / self.step - round((high - low) / self.step)) > 1e-6:
            raise ValueError(f"step = {self.step:g} does not divide the range from {low:g} to {high:g}")
        if isinstance(self.bins, tuple):
            off = [float(e) for e in self.bins if abs((e - low) / self.step - round((e - low) / self.step)) > 1e-6]
            if off:
                raise ValueError(f"the bin edge {off[0]:g} does not lie on the grid of step {self.step:g}")

    @property
    def grid(self) -> float | None:
        """Distance between neighbouring values, or None for a continuous column."""
        if self.step is not None:
            return float(self.step)
        return 1.0 if self.type in ("integer", "date") else None

    def edges(self) -> Floats:
        """Return all bin edges of a number or date column, bounds included."""
        low, high = self.low_high
        bins, grid = self.bins, self.grid
        # the upper bound is a value, so that on a grid the last bin ends one step above it
        top = high + (grid or 0.0)
        if bins is None:
            most = LARGEST_GRID if self.step is not None else LARGEST_INTEGER_RANGE
            if grid is not None and self.type != "date" and (high - low) / grid <= most:
                return np.asarray(low + grid * np.arange(round((high - low) / grid) + 2), dtype=np.float64)
            bins = DEFAULT_BINS
        if isinstance(bins, int):
            if bins < 1:
                raise ValueError("bins is a number of bins, at least 1, or a list of inner edges")
            if self.scale == "log":
                return np.asarray(np.geomspace(low, top, bins + 1), dtype=np.float64)
            even = np.linspace(low, top, bins + 1)
            if self.step is not None:
                even = low + self.step * np.round((even - low) / self.step)
            return np.asarray(even, dtype=np.float64)
        return np.array([low, *(self.number(edge) for edge in bins), top], dtype=np.float64)

    def coded(self, name: str) -> Column:
        """Return the coded column: one cell a category or bin, one more for a missing value."""
        missing = self.missing == "indicator"
        if self.type in ("categorical", "ordinal"):
            return Column(name, len(self.categories or ()) + missing, self.type == "ordinal", missing)
        return Column(name, len(self.edges()) - 1 + missing, True, missing)

    def cell_names(self) -> list[str]:
        """Return a readable name of every cell, "missing" last where it is one."""
        if self.type in ("categorical", "ordinal"):
            names = [str(value) for value in self.categories or ()]
        else:
            edges, grid = self.edges(), self.grid
            names = []
            for low, high in pairwise(edges):
                last = high - grid if grid is not None else high
                names.append(self._shown(low) if last <= low else f"{self._shown(low)} to {self._shown(last)}")
        return names + (["missing"] if self.missing == "indicator" else [])

    def _shown(self, value: float) -> str:
        if self.type == "date":
            return str(np.datetime64(int(value), "D"))
        return f"{value:.6g}"

    def place(self, code: str, parents: Mapping[str, str] | None = None) -> str | None:
        """Return the category a code counts as: itself, its nearest declared ancestor, `other`, or None.

        Parameters
        ----------
        code : str
        parents : mapping of code to parent, optional
            The hierarchy; without it every shorter beginning of a code is an ancestor.
        """
        declared = {str(value) for value in self.categories or ()}
        at: str | None = code
        for _ in range(len(code) if parents is None else 100):  # a hierarchy with a circle ends, too
            if at is None or at in declared:
                break
            at = (at[:-1] or None) if parents is None else parents.get(at)
        return at if at in declared else self.other
