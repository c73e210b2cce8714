"""What a mechanism hands back: the value that may leave, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from confide.accounting import Mechanism
from confide.errors import InputError

T = TypeVar("T")
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Released(Generic[T]):
    """A noisy value and its price.

    Attributes
    ----------
    value : T
        What may leave.
    mechanism : confide.accounting.Mechanism
        What it cost every contributor: ``released.mechanism.guarantee()``.
    standard_error : float
        Of the noise in one number of the value; 0 where the value is a choice.
    delta : float
        To be added to the delta at which the guarantee is read (partition selection); else 0.
    """

    value: T
    mechanism: Mechanism
    standard_error: float = 0.0
    delta: float = 0.0


def owner_codes(owners: npt.ArrayLike, entries: int) -> I64:
    """Return contributor numbers 0..n-1 per entry, or refuse a wrong length."""
    array = np.asarray(owners)
    if array.shape != (entries,):
        raise InputError(
            "the contributors do not fit the entries", expected=f"one contributor for each of {entries} entries"
        )
    return np.unique(array, return_inverse=True)[1].astype(np.int64).reshape(-1)


def shares(owners: I64) -> F64:
    """Return each entry's weight: 1 / (number of entries of its contributor), so that everybody weighs 1 in total."""
    return 1.0 / np.bincount(owners)[owners] if len(owners) else np.empty(0)


def check_epsilon(epsilon: float) -> float:
    """Return a positive finite epsilon, or refuse it."""
    if not 0 < epsilon < float("inf"):
        raise InputError(f"epsilon is {epsilon}", expected="a finite number above 0")
    return float(epsilon)
