"""Poisson samplers whose coins belong to one person each.

>>> import numpy as np
>>> from confide.contributors.keys import new_key
>>> index = ContributorIndex.from_labels(["ada", "ben", "ada"])
>>> sampler = EntrySampler(new_key(), index, np.array([1.0, 0.0]))
>>> sampler.draw(step=0).entries.tolist()
[0, 2]

A coin is SipHash-2-4 under a secret key of (contributor, entry number within the contributor, step). It involves nobody
else and no position in the table, so taking one person out of the data leaves all other draws bit for bit as they were:
the neighbouring runs differ in that person's entries alone, as the accountant assumes. A coin of rate p comes up with
probability floor(p 2^64) / 2^64, never above p. Steps without any drawn entry are steps too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confide.contributors import siphash
from confide.contributors.index import I64, Bools, ContributorIndex
from confide.contributors.keys import derive
from confide.contributors.siphash import U64, State
from confide.errors import InputError

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Draw:
    """What one step uses; private, like everything that says who was drawn.

    Attributes
    ----------
    step : int
    entries : int64 array, shape (n,)
        Positions of the drawn entries, grouped so that each unit is contiguous.
    units : int64 array, shape (n,)
        Unit 0..U-1 of each drawn entry: what is clipped as one.
    contributors : int64 array, shape (U,)
        Contributor (position in the index) of each unit.
    weights : float64 array, shape (n,)
        1 / (entries drawn of that contributor) for contributor units, else 1.
    """

    step: int
    entries: I64
    units: I64
    contributors: I64
    weights: F64

    def __len__(self) -> int:
        return len(self.entries)


def _check_rates(rates: npt.ArrayLike, index: ContributorIndex) -> F64:
    values = np.asarray(rates, dtype=np.float64)
    if values.shape != (index.n_contributors,):
        raise InputError(
            "sampling rates have the wrong shape",
            expected=f"one rate for each of the {index.n_contributors} contributors, in the order of index.ids",
        )
    if not bool(np.all((values >= 0) & (values <= 1))):
        raise InputError("a sampling rate is no probability", expected="rates between 0 and 1, none missing")
    return values


def _check_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise InputError("max_entries must be at least 1", expected="a whole number, 1 or more, or None for no limit")
    return limit


def _highest_winning_word(rates: F64) -> U64:
    """Return t with P(u64 <= t) = floor(p 2^64) / 2^64; callers leave out rates too small to have one."""
    winning = np.full(rates.shape, np.iinfo(np.uint64).max, dtype=np.uint64)
    below = rates < 1.0
    winning[below] = (rates[below] * 2.0**64).astype(np.uint64) - np.uint64(1)
    return winning


def _has_coin(rates: F64) -> Bools:
    return np.asarray(rates * 2.0**64 >= 1.0)


def _prefix(key: bytes, index: ContributorIndex, entries: I64) -> State:
    """Return the hash states after (contributor, entry ordinal): the part that no step changes."""
    who = index.words[index.of_entry[entries]]
    state = siphash.absorb(siphash.start(key), who[:, 0])
    state = siphash.absorb(state, who[:, 1])
    return siphash.absorb(state, index.ordinals[entries].astype(np.uint64))


def _smallest_per_contributor(words: U64, of_entry: I64, limit: int) -> Bools:
    """Mark the `limit` smallest words of each contributor: a uniform subset when the words are random."""
    order = np.lexsort((words, of_entry))
    sorted_owner = of_entry[order]
    first = np.concatenate([[True], sorted_owner[1:] != sorted_owner[:-1]]) if len(order) else np.empty(0, bool)
    starts = np.flatnonzero(first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    keep = np.zeros(len(order), dtype=bool)
    keep[order] = rank < limit
    return keep


def secret_subset(key: bytes, index: ContributorIndex, max_entries: int | None) -> Bools:
    """Choose up to `max_entries` entries of every contributor, uniformly, once and for all.

    Parameters
    ----------
    key : bytes
        32 secret bytes.
    index : ContributorIndex
    max_entries : int or None
        None keeps everything.

    Returns
    -------
    bool array, shape (entries,)
        What is kept. A person's subset depends on the key and their own entries alone.
    """
    limit = _check_limit(max_entries)
    keep = np.ones(index.n_entries, dtype=bool)
    if limit is None:
        return keep
    long = np.flatnonzero(index.counts[index.of_entry] > limit).astype(np.int64)
    if len(long):
        words = siphash.finish(_prefix(derive(key, "subset", 16), index, long), words=3)
        keep[long] = _smallest_per_contributor(words, index.of_entry[long], limit)
    return keep


class EntrySampler:
    """Draw every entry on its own with its contributor's rate; each drawn entry is a clip unit.

    The draws of a contributor with k usable entries at rate p are Binomial(k, p): the pair of `individual`, `scale`,
    `uniform` and, with `max_entries`, `truncate(m)`.

    Parameters
    ----------
    key : bytes
        32 secret bytes of this run (`new_key`).
    index : ContributorIndex
    rates : float64 array, shape (contributors,)
        Probability per step with which each entry of a contributor is drawn.
    max_entries : int, optional
        Above it a fixed, uniformly random, secret subset of a contributor's entries is used in the whole run.
    subset_key : bytes, optional
        Key of that subset, 32 bytes; give it when `key` is ratcheted during a run, so that the subset stays.

    Raises
    ------
    InputError
        Rates of the wrong shape or outside [0, 1], `max_entries` below 1, a key that is not 32 bytes.
    """

    clip_unit = "entry"

    def __init__(
        self,
        key: bytes,
        index: ContributorIndex,
        rates: npt.ArrayLike,
        *,
        max_entries: int | None = None,
        subset_key: bytes | None = None,
    ) -> None:
        self._index, self._rates = index, _check_rates(rates, index)
        self.included: Bools = secret_subset(key if subset_key is None else subset_key, index, max_entries)
        usable = self.included & _has_coin(self._rates)[index.of_entry]
        self._entries = np.flatnonzero(usable).astype(np.int64)
        self._limits = _highest_winning_word(self._rates[index.of_entry[self._entries]])
        self.rekey(key)

    def rekey(self, key: bytes) -> None:
        """Use another key for the coins from now on (after a ratchet); subset and rates stay."""
        self._state = _prefix(derive(key, "entry coins", 16), self._index, self._entries)

    def draw(self, step: int) -> Draw:
        """Return the draw of a step; the same step under the same key always gives the same draw."""
        words = siphash.finish(self._state, words=3, last=[step])
        entries = self._entries[words <= self._limits]
        owners = self._index.of_entry[entries]
        return Draw(step, entries, np.arange(len(entries), dtype=np.int64), owners, np.ones(len(entries)))

    def __repr__(self) -> str:
        return "EntrySampler(private)"


class ContributorSampler:
    """Draw every contributor with their rate, then up to `max_entries` of their entries; the person is the clip unit.

    The entries of a drawn contributor are chosen without replacement, anew in each step, and weigh 1 / (number drawn):
    the pair of `contributor` is the sampled Gaussian, whatever the number of entries.

    Parameters
    ----------
    key, index, rates
        As for `EntrySampler`; a rate is the probability that the contributor is drawn in a step.
    max_entries : int, optional
        Most entries of one contributor in one step; None takes all.
    """

    clip_unit = "contributor"

    def __init__(
        self, key: bytes, index: ContributorIndex, rates: npt.ArrayLike, *, max_entries: int | None = None
    ) -> None:
        self._index, self._rates = index, _check_rates(rates, index)
        self._limit = _check_limit(max_entries)
        self._people = np.flatnonzero(_has_coin(self._rates)).astype(np.int64)
        self._limits = _highest_winning_word(self._rates[self._people])
        self.rekey(key)

    def rekey(self, key: bytes) -> None:
        """Use another key for the coins from now on (after a ratchet)."""
        who = self._index.words[self._people]
        state = siphash.absorb(siphash.start(derive(key, "contributor coins", 16)), who[:, 0])
        self._state = siphash.absorb(state, who[:, 1])
        self._choice_key = derive(key, "entry choice", 16)

    def draw(self, step: int) -> Draw:
        """Return the draw of a step; the same step under the same key always gives the same draw."""
        words = siphash.finish(self._state, words=2, last=[step])
        people = self._people[words <= self._limits]
        counts = self._index.counts[people]
        units = np.repeat(np.arange(len(people), dtype=np.int64), counts)
        within = np.arange(len(units)) - np.repeat(np.cumsum(counts) - counts, counts)
        entries = self._index.order[np.repeat(self._index.starts[people], counts) + within]
        if self._limit is not None and len(people) and int(counts.max()) > self._limit:
            keep = np.ones(len(entries), dtype=bool)
            long = np.flatnonzero(counts[units] > self._limit)
            ranks = siphash.finish(_prefix(self._choice_key, self._index, entries[long]), words=3, last=[step])
            keep[long] = _smallest_per_contributor(ranks, units[long], self._limit)
            entries, units = entries[keep], units[keep]
            counts = np.minimum(counts, self._limit)
        return Draw(step, entries, units, people, np.repeat(1.0 / np.maximum(counts, 1), counts))

    def __repr__(self) -> str:
        return "ContributorSampler(private)"
