"""Who computes what in a step: contributors go to ranks whole, balanced by their numbers of entries.

>>> draw = Draw(0, np.arange(6), np.array([0, 1, 1, 1, 2, 2]), np.array([7, 8, 9]), np.ones(6))
>>> [share(draw, rank, 2).draw.contributors.tolist() for rank in (0, 1)]
[[8], [7, 9]]

Every rank holds the secret key of the sampler and evaluates the same coins, so all know the whole draw without a word
between them, and who is drawn does not depend on how many ranks there are. A share decides only where a unit's gradient
is computed. All entries of a contributor stay on one rank: a unit that were split over ranks would be clipped once a
part and could add several times its bound.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confide.contributors import Draw


@dataclass(frozen=True, eq=False, repr=False)
class Share:
    """What one rank computes of a step; private.

    Attributes
    ----------
    draw : Draw
        The rank's units alone, numbered 0, 1, ... anew; it may be empty, and the step takes place all the same.
    units : int64 array, shape (units of this rank,)
        Their numbers in the whole draw.
    whole : int
        Units of the whole draw.
    """

    draw: Draw
    units: npt.NDArray[np.int64]
    whole: int


def ranks_of_units(draw: Draw, world: int) -> npt.NDArray[np.int64]:
    """Return the rank of each unit of a draw: the largest contributor first, each to the least loaded rank.

    Parameters
    ----------
    draw : Draw
        All entries of one step.
    world : int
        Number of ranks.

    Returns
    -------
    int64 array, shape (units,)
        The same on every rank. The fullest rank gets at most 4/3 of what it would get in the best division (Graham
        1969).
    """
    people, where = np.unique(draw.contributors, return_inverse=True)
    sizes = np.bincount(draw.units, minlength=len(draw.contributors))
    load = np.bincount(where, weights=sizes, minlength=len(people)).astype(np.int64)
    ranks = np.empty(len(people), dtype=np.int64)
    least = [(0, rank) for rank in range(world)]
    for person in np.lexsort((people, -load)).tolist():
        entries, rank = least[0]
        ranks[person] = rank
        heapq.heapreplace(least, (entries + int(load[person]), rank))
    return ranks[where]


def share(draw: Draw, rank: int, world: int) -> Share:
    """Return what one rank computes of a draw.

    Parameters
    ----------
    draw : Draw
    rank, world : int
    """
    count = len(draw.contributors)
    if world == 1:
        return Share(draw, np.arange(count, dtype=np.int64), count)
    mine = ranks_of_units(draw, world) == rank
    rows = mine[draw.units]
    number = np.cumsum(mine) - 1
    part = Draw(
        draw.step,
        draw.entries[rows],
        number[draw.units[rows]].astype(np.int64),
        draw.contributors[mine],
        draw.weights[rows],
    )
    return Share(part, np.flatnonzero(mine).astype(np.int64), count)
