"""Who is behind which entry.

>>> index = ContributorIndex.from_labels(["ada", "ben", "ada"])
>>> index.ids.tolist(), index.of_entry.tolist(), index.counts.tolist()
(['ada', 'ben'], [0, 1, 0], [2, 1])
>>> index.entries_of(0).tolist()
[0, 2]

The index holds private facts (ids, counts): it is passed in as an argument, never printed, never
stored in a release. Its `repr` shows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.contributors.siphash import U64, words_of
from confide.errors import InputError

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def _text_ids(labels: Any, what: str) -> npt.NDArray[np.str_]:
    """Return ids as a text array; refuse what is missing or may have lost digits on the way."""
    values = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    out: list[str] = []
    for row, value in enumerate(values):
        if isinstance(value, str):
            text = value
        elif isinstance(value, int) and not isinstance(value, bool):
            text = str(value)
        elif value is None or (isinstance(value, float) and value != value):
            text = ""
        else:
            raise InputError(
                f"a {what} is a {type(value).__name__}, not text",
                where=f"entry {row}",
                expected="text (or whole numbers); ids read as decimal numbers may have lost zeros or digits",
                remedy=f"read the {what} column as text",
            )
        if not text.strip():
            raise InputError(
                f"a {what} is missing",
                where=f"entry {row}",
                expected=f"a {what} for every entry: an entry without one cannot be protected",
                remedy="fill it in at the source, or leave the entry out",
            )
        if "\x00" in text:
            raise InputError(f"a {what} contains a NUL character", where=f"entry {row}", expected="printable text")
        out.append(text)
    return np.array(out, dtype=np.str_) if out else np.empty(0, dtype="<U1")


@dataclass(frozen=True, eq=False, repr=False)
class ContributorIndex:
    """The mapping from entries to contributors (people), as arrays.

    Attributes
    ----------
    ids : str array, shape (contributors,)
        Distinct contributor ids, sorted as text.
    of_entry : int64 array, shape (entries,)
        Position in `ids` of each entry's contributor.
    ordinals : int64 array, shape (entries,)
        Number 0, 1, ... of each entry within its contributor: the rank of its entry key when keys were given, else the
        order of the rows. It depends on nobody else.
    counts : int64 array, shape (contributors,)
        Number of entries of each contributor.
    """

    ids: npt.NDArray[np.str_]
    of_entry: I64
    ordinals: I64
    counts: I64

    @classmethod
    def from_labels(cls, labels: Sequence[str], entries: Sequence[str] | None = None) -> ContributorIndex:
        """Build the index from one contributor id per entry.

        Parameters
        ----------
        labels : sequence of str, one for each entry
            Contributor ids. Whole numbers are taken as their text; other types are refused.
        entries : sequence of str, optional
            A stable key of each entry, unique within its contributor (a visit number, a file name). With it, the
            sampling coins of a person do not depend on the order of their rows.

        Raises
        ------
        InputError
            A missing id, an id that is not text, no entries at all, or a repeated (contributor, entry) pair.
        """
        texts = _text_ids(labels, "contributor id")
        if len(texts) == 0:
            raise InputError(
                "there are no entries", expected="at least one entry with a contributor id", remedy="check the source"
            )
        ids, of_entry = np.unique(texts, return_inverse=True)
        of_entry = of_entry.astype(np.int64).reshape(-1)
        counts = np.bincount(of_entry, minlength=len(ids)).astype(np.int64)
        if entries is None:
            order = np.argsort(of_entry, kind="stable")
        else:
            keys = _text_ids(entries, "entry key")
            if len(keys) != len(texts):
                raise InputError(
                    "contributor ids and entry keys differ in number",
                    expected=f"{len(texts)} entry keys, got {len(keys)}",
                )
            order = np.lexsort((keys, of_entry))
            same = (of_entry[order][1:] == of_entry[order][:-1]) & (keys[order][1:] == keys[order][:-1])
            if same.any():
                first, second = sorted(order[[int(np.argmax(same)), int(np.argmax(same)) + 1]].tolist())
                raise InputError(
                    "the same entry stands twice for one contributor",
                    where=f"entries {first} and {second}",
                    expected="every (contributor, entry) pair once",
                    remedy="remove the duplicate, or declare an entry column that tells the two apart",
                )
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        ordinals = np.empty(len(texts), dtype=np.int64)
        ordinals[order] = np.arange(len(texts)) - np.repeat(starts, counts)
        return cls(ids, of_entry, ordinals, counts)

    @property
    def n_contributors(self) -> int:
        """Number of contributors."""
        return len(self.ids)

    @property
    def n_entries(self) -> int:
        """Number of entries."""
        return len(self.of_entry)

    @cached_property
    def order(self) -> I64:
        """Entry positions grouped by contributor, within one by ordinal; shape (entries,)."""
        return np.lexsort((self.ordinals, self.of_entry)).astype(np.int64)

    @cached_property
    def starts(self) -> I64:
        """Where each contributor's group starts in `order`, with the end appended; shape (contributors + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @cached_property
    def words(self) -> U64:
        """A 128-bit name of each contributor as two words, shape (contributors, 2)."""
        return words_of(self.ids.tolist())

    def entries_of(self, contributor: int) -> I64:
        """Return the entry positions of contributor number `contributor`, by ordinal."""
        return self.order[self.starts[contributor] : self.starts[contributor + 1]]

    def subset(self, contributors: Bools) -> tuple[ContributorIndex, I64]:
        """Keep some contributors with all their entries.

        Parameters
        ----------
        contributors : bool array, shape (contributors,)

        Returns
        -------
        index : ContributorIndex
        entries : int64 array
            Positions (in this index) of the entries that stay, in their old order; ordinals are kept.
        """
        keep = np.asarray(contributors)
        if keep.dtype != np.bool_ or keep.shape != (self.n_contributors,):
            raise InputError(
                "a contributor mask has the wrong shape", expected=f"{self.n_contributors} booleans, one a contributor"
            )
        entries = np.flatnonzero(keep[self.of_entry]).astype(np.int64)
        renumber = np.cumsum(keep) - 1
        return (
            ContributorIndex(
                self.ids[keep],
                renumber[self.of_entry[entries]].astype(np.int64),
                self.ordinals[entries],
                self.counts[keep],
            ),
            entries,
        )

    def histogram(self) -> dict[int, int]:
        """Return {number of entries: number of contributors}. Exact, hence private: internal use only."""
        values, numbers = np.unique(self.counts, return_counts=True)
        return dict(zip(values.tolist(), numbers.tolist(), strict=True))

    def __repr__(self) -> str:
        return "ContributorIndex(private)"
