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
from numpy.typing import ArrayLike, NDArray

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


def comorbidity(findings: ArrayLike, target: int, *, most: int = 2) -> NDArray[np.str_]:
    """Return how many other findings each row has beside the one that is predicted, as groups for `fairness`.

    A model may find a disease only in company of others. Whether it does is seen in groups by co-morbidity; what the
    predicted finding itself says does not enter.

    Parameters
    ----------
    findings : bool array, shape (rows, findings)
    target : int
        The column that is predicted.
    most : int
        From so many other findings on, rows share a group.

    Returns
    -------
    array of str, shape (rows,)
        "no other finding", "1 other finding", ..., "2 or more other findings".

    Raises
    ------
    InputError
        No table of 0 and 1, or no such column.

    References
    ----------
    Tayebi Arasteh et al., "Preserving fairness and diagnostic accuracy in private large-scale AI models for medical
    imaging", Communications Medicine 4:46, 2024 (co-morbidity beside age and sex).

    >>> comorbidity([[1, 0, 0], [1, 1, 0], [0, 1, 1]], 0).tolist()
    ['no other finding', '1 other finding', '2 or more other findings']
    """
    table = np.asarray(findings)
    if table.ndim != 2 or not np.isin(table, (0, 1)).all():
        raise InputError("the findings are no table of 0 and 1", where="comorbidity", expected="shape (rows, findings)")
    if not 0 <= target < table.shape[1] or most < 1:
        raise InputError(
            f"column {target} of {table.shape[1]} findings, groups up to {most}",
            where="comorbidity",
            expected="a column that is there, and 1 or more",
        )
    others = np.minimum(np.delete(table, target, axis=1).sum(axis=1), most)
    names = ["no other finding", *(f"{n} other finding{'s' if n > 1 else ''}" for n in range(1, most))]
    out: NDArray[np.str_] = np.array([*names, f"{most} or more other findings"])[others.astype(np.int64)]
    return out
