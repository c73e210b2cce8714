"""Set contributors aside by a keyed hash of their own id: nobody's side depends on who else is in the data.

>>> index = ContributorIndex.from_labels(["ada", "ben", "cleo", "dan"])
>>> mask = holdout_mask(index, 0.25, "study 7")
>>> mask.shape, mask.dtype
((4,), dtype('bool'))

A global shuffle would let one person's presence move others across the split; and a person with entries on both sides
would make held-out figures look better than they are. Here a person is on one side with all their entries.
"""

from __future__ import annotations

import hashlib

import numpy as np

from confide.contributors import siphash
from confide.contributors.index import Bools, ContributorIndex
from confide.contributors.samplers import _highest_winning_word
from confide.errors import InputError


def holdout_mask(index: ContributorIndex, share: float, key: bytes | str) -> Bools:
    """Mark the held-out contributors.

    Parameters
    ----------
    index : ContributorIndex
    share : float
        Probability with which each contributor is held out, in [0, 1].
    key : bytes or str
        A secret key, or a public salt such as the name of the study (then anyone who knows an id knows its side, which
        is no private fact: it does not depend on the data).

    Returns
    -------
    bool array, shape (contributors,)
    """
    if not 0.0 <= share <= 1.0:
        raise InputError("the holdout share is no probability", expected="a number between 0 and 1", where="holdout")
    secret = key.encode() if isinstance(key, str) else bytes(key)
    words = siphash.absorb(
        siphash.start(hashlib.blake2b(secret, digest_size=16, person=b"confide holdout").digest()), index.words[:, 0]
    )
    coins = siphash.finish(siphash.absorb(words, index.words[:, 1]), words=2)
    if share * 2.0**64 < 1.0:
        return np.zeros(len(coins), dtype=bool)
    return np.asarray(coins <= _highest_winning_word(np.full(len(coins), share)))
