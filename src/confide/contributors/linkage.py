"""The same person across data sets: how ids are linked, by a public rule.

>>> by_table(["17", "18"], {"17": "ann"}, data_set="x-rays")[0]
['person:ann', 'x-rays:18']

Correct linkage is an *assumption* of every guarantee per person, not a probability inside epsilon: it stands in the
certificate in words, with the guarantee that is left for a person whom the linkage split, or merged with somebody
(`confide.contributors.mislinked`).

Three ways to link, each a public rule that is applied to one pair (or one id) at a time, so that nobody's presence
changes how others are linked:

- a shared pseudonym: equal ids are one person (`by_pseudonym`);
- a declared table of ids that are one person (`by_table`);
- private record linkage: two records are one person if the Bloom filters of their declared fields are similar enough
  (`PrivateRecords`, extra ``confide[linkage]``).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from confide.errors import InputError, MissingExtraError


@dataclass(frozen=True)
class Linkage:
    """How people were linked: public, for the certificate and for `Ledger.create_data_set`.

    Attributes
    ----------
    method : str
        "pseudonym", "table" or "private records".
    rule : str
        The public rule that each decision followed.
    """

    method: str
    rule: str

    @property
    def assumption(self) -> str:
        """What a guarantee per person takes for granted."""
        return (
            f"all entries of a person carry one contributor id ({self.rule}); a person whom the linkage split into "
            "several contributors, or merged with another, has the guarantee printed for that case, not the plan's"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "assumption": self.assumption}


BY_PSEUDONYM = Linkage("pseudonym", "equal pseudonyms are one person")


def by_table(ids: Sequence[str], table: Mapping[str, str], *, data_set: str) -> tuple[list[str], Linkage]:
    """Replace the ids of one data set by person ids from a declared table.

    Parameters
    ----------
    ids : sequence of str
        Contributor ids as the data set has them.
    table : mapping of str to str
        Local id -> person; an id it does not name is a person of their own in this data set.

    Raises
    ------
    InputError
        An id or a person is missing or not text.
    """
    for value in (*ids, *table.values()):
        if not isinstance(value, str) or not value.strip():
            raise InputError("an id in the linkage table or in the data is missing or not text", where=data_set)
    # A prefix keeps ids that the table does not name apart from persons, and from other data sets' ids.
    people = [f"person:{table[one]}" if one in table else f"{data_set}:{one}" for one in ids]
    return people, Linkage("table", f"a declared table of ids of {data_set!r}; ids it does not name are not linked")


@dataclass(frozen=True)
class PrivateRecords:
    """Private record linkage: sites exchange keyed Bloom filters of identifying fields, never the fields.

    Each field's normalised text is cut into q-grams; each q-gram sets `hashes` bits of the field's part of the filter,
    at positions from HMAC-SHA256 under the sites' key (double hashing). Two records are linked if their `block` fields
    are equal and the Dice similarity of their filters is at least `threshold`: a decision about these two records and
    nobody else. Filters are pseudonyms, not anonymous: frequent names can be guessed by whoever sees many of them, so
    they go to a party that sees nothing else, and are deleted after linking.

    Parameters
    ----------
    fields : tuple of str
        Names of the fields that are compared.
    threshold : float
        Smallest Dice similarity of a link, in (0, 1].
    block : tuple of str
        Fields that must be equal exactly (year of birth, say).
    bits, hashes, q : int
        Length of the filter, bits a q-gram, length of a q-gram.
    """

    fields: tuple[str, ...]
    threshold: float = 0.85
    block: tuple[str, ...] = ()
    bits: int = 1024
    hashes: int = 12
    q: int = 2
    _engine: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.fields or isinstance(self.fields, str):
            raise InputError("private record linkage needs the names of its fields", expected="a tuple of names")
        if not 0 < self.threshold <= 1:
            raise InputError(f"a threshold of {self.threshold}", expected="above 0 and at most 1")
        if min(self.bits, self.hashes, self.q) < 1:
            raise InputError("bits, hashes and q must be at least 1")
        try:
            import fable_core.bits
            import fable_core.similarity
            import fable_core.transform
        except ImportError as error:
            raise MissingExtraError("private record linkage needs fable-core", "linkage") from error
        object.__setattr__(self, "_engine", fable_core)

    @property
    def linkage(self) -> Linkage:
        """The public rule, for the certificate."""
        equal = f"equal {', '.join(self.block)} and " if self.block else ""
        rule = f"{equal}Dice similarity of {', '.join(self.fields)} at least {self.threshold:g}"
        return Linkage(
            "private records", f"{rule} ({self.q}-grams, {self.bits} bits, {self.hashes} hashes), pair by pair"
        )

    def encode(self, key: bytes, records: Iterable[Mapping[str, str]]) -> list[tuple[str, bytes]]:
        """Return (keyed hash of the block, Bloom filter) of every record: what may leave a site.

        Raises
        ------
        InputError
            A key shorter than 32 bytes, or a record without one of the fields; the message names positions, no values.
        """
        from bitarray import bitarray

        if len(key) < 32:
            raise InputError("the key of a record linkage is too short", expected="32 bytes from a secure source")
        normalise = self._engine.transform.normalize()
        out = []
        for position, record in enumerate(records):
            texts = {}
            for name in (*self.fields, *self.block):
                value = record.get(name)
                if not isinstance(value, str) or not value.strip():
                    raise InputError(f"a record has no {name}", where=f"record {position}", expected="a non-empty text")
                texts[name] = normalise(value)
            bits = bitarray(self.bits)
            bits.setall(0)
            for name in self.fields:
                padded = "_" * (self.q - 1) + texts[name] + "_" * (self.q - 1)
                for gram in {padded[i : i + self.q] for i in range(len(padded) - self.q + 1)}:
                    digest = hmac.digest(key, f"{name}\0{gram}".encode(), "sha256")
                    first, second = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")
                    self._engine.bits.double_hash(bits, self.hashes, first, second)
            block = "\0".join(texts[name] for name in self.block)
            out.append((hmac.digest(key, b"block\0" + block.encode(), "sha256").hex(), bits.tobytes()))
        return out

    def links(self, left: Sequence[tuple[str, bytes]], right: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """Return (left, right) positions of linked records, every pair decided on its own."""
        from bitarray import bitarray

        by_block: dict[str, list[tuple[int, Any]]] = {}
        for j, (block, raw) in enumerate(right):
            by_block.setdefault(block, []).append((j, bitarray(raw)))
        found = []
        for i, (block, raw) in enumerate(left):
            mine = bitarray(raw)
            for j, theirs in by_block.get(block, ()):
                if self._engine.similarity.dice(mine, theirs) >= self.threshold:
                    found.append((i, j))
        return found


def owners_of(left: int, right: int, links: Iterable[tuple[int, int]]) -> list[tuple[str, ...]]:
    """Return the owners of every record of both sides (left first): a linked right record belongs to its left ones.

    A right record that is linked to several left records has several owners: it is not merged with either, and nobody
    else's links change. `confide.contributors.AttributionGraph` says what may be done with such entries.
    """
    owners: list[tuple[str, ...]] = [(f"left:{i}",) for i in range(left)]
    linked: dict[int, list[int]] = {}
    for i, j in links:
        linked.setdefault(j, []).append(i)
    return owners + [
        tuple(f"left:{i}" for i in sorted(set(linked[j]))) if j in linked else (f"right:{j}",) for j in range(right)
    ]


def keyed(key: bytes, text: str) -> str:
    """Return a keyed hash of an id (HMAC-SHA256), for pseudonyms that several data sets share."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
