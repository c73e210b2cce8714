"""Groups of people that a study declares, from a column of its table.

>>> age = GroupRule(column="age", cuts=(50, 65))
>>> age.names(None)
('below 50', '50 to 65', '65 and above')
>>> age.assign(["49.9", "50", "", "80"]).tolist()
['below 50', '50 to 65', 'not known', '65 and above']

The cuts and categories are declared, never taken from the data, so that the groups mean the same in every hospital.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from confide.errors import InputError

UNKNOWN = "not known"


@dataclass(frozen=True)
class GroupRule:
    """How a column becomes groups.

    Attributes
    ----------
    column : str
        Name in the table.
    cuts : tuple of float
        Ascending limits for a number; without them every declared category is a group.
    """

    column: str
    cuts: tuple[float, ...] = ()

    def names(self, categories: Iterable[object] | None) -> tuple[str, ...]:
        """Return the declared groups in their order, without the one for missing values."""
        if not self.cuts:
            return tuple(str(value) for value in categories or ())
        limits = [f"{cut:g}" for cut in self.cuts]
        middle = [f"{low} to {high}" for low, high in pairwise(limits)]
        return (f"below {limits[0]}", *middle, f"{limits[-1]} and above")

    def assign(self, values: Sequence[str] | NDArray[np.str_]) -> NDArray[np.str_]:
        """Return the group of each value ("" is a missing one).

        Raises
        ------
        InputError
            A value is no number although cuts are declared.
        """
        texts = [str(value) for value in values]
        if not self.cuts:
            return np.array([text or UNKNOWN for text in texts], dtype=str)
        names = self.names(None)
        out = []
        for text in texts:
            if not text:
                out.append(UNKNOWN)
                continue
            try:
                number = float(text)
            except ValueError:
                raise InputError(
                    f"column {self.column!r} holds a value that is no number",
                    where=f"[evaluation] subgroups, column {self.column!r}",
                    expected="numbers, as cuts are declared",
                    remedy="leave out the cuts to make every category a group",
                ) from None
            out.append(names[int(np.searchsorted(self.cuts, number, side="right"))])
        return np.array(out, dtype=str)
