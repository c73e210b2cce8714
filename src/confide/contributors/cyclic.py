"""Groups in turn: step t draws from group t mod b alone, so nobody takes part twice within b steps.

>>> import numpy as np
>>> from confide.contributors import ContributorIndex, EntrySampler, new_key
>>> index = ContributorIndex.from_labels(["ada", "ben", "ada"])
>>> key = new_key()
>>> groups = group_of(key, index, 3)
>>> sampler = CyclicSampler(groups, 3, lambda rates: EntrySampler(key, index, rates), np.ones(2))
>>> [len(sampler.draw(t)) > 0 for t in range(3)].count(True) <= 2
True

The group of a contributor is a keyed hash of their id: fixed for the whole run, whoever else is there. All their
entries share it, so however many entries a step uses, that is one participation of one person.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.contributors import siphash
from confide.contributors.index import I64, ContributorIndex
from confide.contributors.keys import derive
from confide.contributors.samplers import Draw
from confide.errors import InputError


def group_of(key: bytes, index: ContributorIndex, groups: int) -> I64:
    """Return the group 0..groups-1 of each contributor, int64 [contributors].

    Parameters
    ----------
    key : bytes
        32 secret bytes that stay the same for the whole run.
    index : ContributorIndex
    groups : int

    Raises
    ------
    InputError
        Fewer than one group.
    """
    if groups < 1:
        raise InputError(f"{groups} groups of contributors", expected="a whole number, 1 or more")
    state = siphash.absorb(siphash.start(derive(key, "cyclic groups", 16)), index.words[:, 0])
    words = siphash.finish(siphash.absorb(state, index.words[:, 1]), words=2)
    return np.asarray(words % np.uint64(groups)).astype(np.int64)


class CyclicSampler:
    """A Poisson sampler for each group, asked in turn.

    Parameters
    ----------
    group : int64 array, shape (contributors,)
        From `group_of`.
    groups : int
    make : function
        Rates to a sampler; rates are zero outside of a group.
    rates : float64 array, shape (contributors,)
        Probability with which a contributor (or each of their entries) is drawn in a step of their group.
    """

    def __init__(self, group: I64, groups: int, make: Callable[[Any], Any], rates: npt.NDArray[np.float64]) -> None:
        self.group = group
        self._parts = [make(np.where(group == number, rates, 0.0)) for number in range(groups)]

    @property
    def clip_unit(self) -> str:
        """What is clipped as one."""
        unit: str = self._parts[0].clip_unit
        return unit

    def rekey(self, key: bytes) -> None:
        """Use another key for the coins from now on; the groups stay."""
        for part in self._parts:
            part.rekey(key)

    def draw(self, step: int) -> Draw:
        """Return the draw of a step: of the group whose turn it is."""
        found: Draw = self._parts[step % len(self._parts)].draw(step)
        return found

    def __repr__(self) -> str:
        return "CyclicSampler(private)"
