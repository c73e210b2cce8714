"""Splitting people, never entries: all entries of a contributor land on one side.

>>> import numpy as np
>>> held_out = split_contributors(["ann", "bob", "cat", "dan"], holdout=0.5, key=b"public label of the split")
>>> held_out.dtype
dtype('bool')

A keyed hash decides for each contributor alone, so that adding or removing a person moves nobody else, and a person
lands on the same side in every data set that is split with the same key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from confide.errors import InputError

_SPAN = 1 << 64


def split_contributors(ids: Sequence[str], *, holdout: float, key: bytes, repeat: int = 0) -> NDArray[np.bool_]:
    """Decide who is held out.

    Parameters
    ----------
    ids : sequence of str, length n
        One id a contributor.
    holdout : float
        Probability, between 0 and 1, that a contributor is held out.
    key : bytes
        Label of the split, at most 64 bytes; a secret where membership in the split must not be guessable.
    repeat : int
        Number of the split, for repeated random splits with one key.

    Returns
    -------
    ndarray of bool, shape (n,)
        True where the contributor is held out.

    Raises
    ------
    InputError
        If `holdout` is not a probability or `key` is too long.
    """
    if not 0.0 <= holdout <= 1.0:
        raise InputError(f"holdout is {holdout}", expected="a number between 0 and 1", where="[evaluation] holdout")
    if len(key) > 64:
        raise InputError(f"the key of the split has {len(key)} bytes", expected="at most 64 bytes")
    threshold = int(holdout * _SPAN)
    salt = repeat.to_bytes(8, "little", signed=True)
    draws = (hashlib.blake2b(salt + str(one).encode(), key=key, digest_size=8).digest() for one in ids)
    return np.fromiter((int.from_bytes(d, "little") < threshold for d in draws), dtype=bool, count=len(ids))
