"""Entries with several owners (mother and child, twins): refused, unless the attribution graph is declared public.

>>> graph = AttributionGraph.declared([("ada",), ("ada", "ben"), ("ben",)], public=True)
>>> graph.bounded(1).accepted.tolist()               # greedy in the declared order: at most one entry an owner
[True, False, True]

With a fixed public graph the neighbouring relation is *zero-out*: one person's entries contribute nothing, and the
graph, its order, everybody's rates and the accepted entries stay as they are. Without that, taking a person out would
change which entries of others are accepted, and no bound on one person's influence would hold.

- An entry is drawn at the smallest rate of its owners, so that each owner's own rate is never exceeded.
- It counts in the k of each of its owners.
- At most `most` entries an owner are accepted by one greedy pass in the declared order: an entry is accepted if all of
  its owners have room (Ganesh et al. 2025; competitive with the NP-hard optimum in their experiments).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from confide.accounting import SampledGaussian, UnequalSampledGaussian
from confide.contributors.index import Bools, ContributorIndex
from confide.contributors.samplers import EntrySampler
from confide.errors import InputError

F64 = npt.NDArray[np.float64]


def refuse_shared(owners: Sequence[Sequence[str]]) -> list[str]:
    """Return the only owner of every entry.

    Raises
    ------
    InputError
        An entry has none, or several; the message names positions, never ids.
    """
    for position, some in enumerate(owners):
        if len(set(some)) != 1:
            raise InputError(
                "an entry has several owners" if len(set(some)) > 1 else "an entry has no owner",
                where=f"entry {position}",
                expected="one contributor for every entry",
                remedy="attribute it to one of them, leave it out, or declare the attribution graph and its order "
                "public (AttributionGraph.declared)",
            )
    return [some[0] for some in owners]


@dataclass(frozen=True, eq=False, repr=False)
class AttributionGraph:
    """Which contributors own which entry: a fixed, public graph with a fixed, public order of its entries.

    Attributes
    ----------
    names : tuple of str
        The contributors, sorted.
    owners : tuple of tuple of int
        For every entry the positions in `names` of its owners.
    order : tuple of int
        The order in which entries are looked at; public.
    accepted : ndarray of bool, shape (entries,)
        Entries that are used.
    """

    names: tuple[str, ...]
    owners: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    accepted: Bools

    @classmethod
    def declared(
        cls, owners: Sequence[Sequence[str]], *, public: bool, order: Sequence[int] | None = None
    ) -> AttributionGraph:
        """Declare a graph.

        Parameters
        ----------
        owners : sequence of sequence of str
            The owners of every entry.
        public : bool
            True states that who owns which entry may be known to everybody: without it entries with several owners are
            refused. The statement stands in the certificate.
        order : sequence of int, optional
            The public order of the entries; default: as given.

        Raises
        ------
        InputError
            Entries with several owners and no such statement; an entry without an owner; an order that is no
            permutation.
        """
        if not public:
            refuse_shared(owners)
        for position, some in enumerate(owners):
            if not some or not all(isinstance(one, str) and one.strip() for one in some):
                raise InputError(
                    "an entry has no owner", where=f"entry {position}", expected="at least one contributor id"
                )
        positions = tuple(range(len(owners))) if order is None else tuple(int(i) for i in order)
        if sorted(positions) != list(range(len(owners))):
            raise InputError(
                "the order is no permutation of the entries", expected=f"0 to {len(owners) - 1}, each once"
            )
        names = tuple(sorted({one for some in owners for one in some}))
        number = {name: i for i, name in enumerate(names)}
        packed = tuple(tuple(sorted({number[one] for one in some})) for some in owners)
        return cls(names, packed, positions, np.ones(len(packed), dtype=bool))

    def __repr__(self) -> str:
        return f"AttributionGraph({len(self.owners)} entries, {len(self.names)} contributors)"

    @property
    def assumption(self) -> str:
        """What a certificate says."""
        return (
            "who owns which entry, and the order of the entries, are public; neighbouring data sets differ by the "
            "entries of one contributor contributing nothing (zero-out); graph, order, rates and acceptance are fixed"
        )

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Accepted entries of every contributor, shape (contributors,): an entry counts for each of its owners."""
        out = np.zeros(len(self.names), dtype=np.int64)
        for entry in np.flatnonzero(self.accepted).tolist():
            out[list(self.owners[entry])] += 1
        return out

    def bounded(self, most: int) -> AttributionGraph:
        """Accept entries greedily in the declared order while all of their owners have room for another.

        Raises
        ------
        InputError
            `most` is below 1.
        """
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise InputError(f"at most {most!r} entries a contributor", expected="a whole number of at least 1")
        room = np.full(len(self.names), most)
        accepted = np.zeros(len(self.owners), dtype=bool)
        for entry in self.order:
            mine = list(self.owners[entry])
            if self.accepted[entry] and (room[mine] > 0).all():
                room[mine] -= 1
                accepted[entry] = True
        return replace(self, accepted=accepted)

    def entry_rates(self, rates: npt.ArrayLike) -> F64:
        """Return the rate of every entry, shape (entries,): the smallest of its owners', 0 where it is not accepted.

        Parameters
        ----------
        rates : array, shape (contributors,)
            The rate of every contributor by a policy that looks at their own count and budget only.
        """
        own = np.asarray(rates, dtype=np.float64)
        if own.shape != (len(self.names),) or not ((own >= 0) & (own <= 1)).all():
            raise InputError("rates do not fit the contributors", expected=f"{len(self.names)} numbers between 0 and 1")
        out = np.array([own[list(some)].min() for some in self.owners])
        return np.where(self.accepted, out, 0.0)

    def sampler(self, key: bytes, rates: npt.ArrayLike) -> EntrySampler:
        """Return a Poisson sampler with a secret coin for every entry that belongs to the entry alone."""
        index = ContributorIndex.from_labels([f"{i:012d}" for i in range(len(self.owners))])
        return EntrySampler(key, index, self.entry_rates(rates))

    def mechanism(self, contributor: int, rates: npt.ArrayLike, *, noise_multiplier: float) -> UnequalSampledGaussian:
        """Return what a step costs one contributor: the exact mixture over their accepted entries.

        It is never above `bound`, which depends on the contributor's own count and rate alone; the exact one depends on
        the owners they share entries with, which the declared graph makes public.
        """
        mine = [
            self.entry_rates(rates)[e] for e, some in enumerate(self.owners) if contributor in some and self.accepted[e]
        ]
        if not mine:
            raise InputError("this contributor has no accepted entry", where=f"contributor {contributor}")
        return UnequalSampledGaussian(
            noise_multiplier=noise_multiplier,
            rates=tuple(float(rate) for rate in mine),
            clip_norms=(1.0,) * len(mine),
            relation="zero-out",
        )

    def bound(self, contributor: int, rates: npt.ArrayLike, *, noise_multiplier: float) -> SampledGaussian:
        """Return the class of a contributor: all of their accepted entries at their own rate."""
        own = np.asarray(rates, dtype=np.float64)
        return SampledGaussian(
            noise_multiplier=noise_multiplier,
            rate=float(own[contributor]),
            entries=int(self.counts[contributor]),
            relation="zero-out",
        )
