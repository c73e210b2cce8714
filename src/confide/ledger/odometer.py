"""How much is left, and what a planned release would do: the odometer and the filter as services. All internal.

>>> import tempfile, numpy as np
>>> from confide.accounting import Gaussian
>>> from confide.ledger import Ledger
>>> ledger = Ledger.create(f"{tempfile.mkdtemp()}/l.sqlite", cap_epsilon=2.0, cap_delta=1e-6)
>>> odometer = Odometer(ledger)
>>> price = [Gaussian(noise_multiplier=3.0).guarantee()]
>>> kept = ledger.reserve(release="a", data_set="d", contributors=["ann"], class_of=np.array([0]), classes=price)
>>> odometer.person("ann").remaining.releases, odometer.cohort(["ann", "bob"]).people
(1, 2)
>>> effect = odometer.planned(contributors=["ann", "bob"], class_of=np.array([0, 0]), classes=price)
>>> effect.dropped, effect.kept_share
(1, 0.5)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.accounting import Guarantee
from confide.errors import InputError
from confide.ledger import _tokens
from confide.ledger._keys import TOKEN_BYTES, Tokens
from confide.ledger.ledger import Ledger
from confide.ledger.records import Cohort, Remaining, Spend, WhatIf

INTERNAL = "internal, must not leave"
LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_EDGES = tuple(i / 20 for i in range(21))


@dataclass(frozen=True)
class Person:
    """One contributor: pseudonym (keyed hash), what is left, and every release they were in."""

    pseudonym: str
    remaining: Remaining
    spends: tuple[Spend, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        delta = self.remaining.delta
        return {
            "stamp": INTERNAL,
            "pseudonym": self.pseudonym,
            "remaining": self.remaining.to_dict(),
            "history": [
                {
                    "release": s.release,
                    "data_set": s.data_set,
                    "state": s.state,
                    "created": s.created,
                    "reservation": s.reservation,
                    "epsilon": s.guarantee.epsilon(delta),
                }
                for s in self.spends
            ],
        }


@dataclass(frozen=True)
class Distribution:
    """How far the balances of a group are used.

    Attributes
    ----------
    people, known : int
        Everybody asked for, and those of them the ledger has ever seen (the others have an untouched balance).
    edges, counts : tuple
        A histogram of used shares.
    levels, quantiles : tuple of float
        Quantiles of the used share.
    """

    people: int
    known: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    levels: tuple[float, ...]
    quantiles: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"stamp": INTERNAL, **{name: getattr(self, name) for name in self.__dataclass_fields__}}


@dataclass(frozen=True)
class Effect:
    """Who would drop out of a planned release, and what that does to it.

    A contributor without balance is left out and the denominators stay, so the expected signal of a step shrinks by
    `kept_share` while the noise stays as it is: the release behaves as one with `1 / kept_share` times the noise.

    Attributes
    ----------
    contributors, dropped : int
        Everybody in the plan, and those without balance for it.
    planned, kept : float
        Expected draws (entries or contributors, as the plan clips) in all steps together, of everybody and of those
        who are admitted.
    steps : int
        Steps of the longest class.
    classes : tuple of dict
        For each class: contributors, admitted, planned and kept draws a step, and the share of a balance it costs.
    what_if : WhatIf
        The decision for every contributor.
    """

    contributors: int
    dropped: int
    planned: float
    kept: float
    steps: int
    classes: tuple[dict[str, Any], ...]
    what_if: WhatIf = field(repr=False)

    @property
    def dropped_share(self) -> float:
        """The share of contributors that would drop out."""
        return self.dropped / self.contributors if self.contributors else 0.0

    @property
    def kept_share(self) -> float:
        """The share of the expected draws of a step that is left."""
        return self.kept / self.planned if self.planned else 0.0

    @property
    def refused(self) -> bool:
        """Whether nobody is left and the release would be refused."""
        return self.dropped == self.contributors

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: totals and quantiles, nothing about one person."""
        found = self.what_if.to_dict()
        return {
            "stamp": INTERNAL,
            **found,
            "classes": list(self.classes),
            "dropped_share": self.dropped_share,
            "steps": self.steps,
            "draws_per_step_planned": self.planned / max(1, self.steps),
            "draws_per_step_kept": self.kept / max(1, self.steps),
            "kept_share": self.kept_share,
            "noise_factor": 1 / self.kept_share if self.kept_share else None,
            "denominators": "unchanged",
            "refused": self.refused,
        }


def draws(guarantee: Guarantee) -> float:
    """Return the expected number of draws of one contributor over all steps of a plan (1 a step if not sampled)."""
    total = 0.0
    for mechanism, steps in guarantee.parts:
        rate, entries = getattr(mechanism, "rate", 1.0), getattr(mechanism, "entries", 1)
        total += steps * float(rate) * float(entries)
    return total


class Odometer:
    """Reads a ledger for one person, for a cohort, and ahead of a release; writes nothing."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def pseudonym(self, contributor: str) -> str:
        """Return the keyed hash that stands for an id in this ledger, 32 hexadecimal characters."""
        return pseudonym_of(self.ledger._keys.tokens([contributor]))

    def person(self, contributor: str | None = None, *, pseudonym: str | None = None) -> Person:
        """Return what is left for one contributor, found by the id or by the pseudonym.

        Raises
        ------
        InputError
            Neither or both were given, or the pseudonym is not one.
        """
        if (contributor is None) == (pseudonym is None):
            raise InputError("one contributor is asked for", expected="an id or a pseudonym")
        keys, ledger = self.ledger._keys, self.ledger
        tokens = keys.tokens([contributor]) if contributor is not None else tokens_of(str(pseudonym))
        with ledger._store.read() as connection:
            numbers = _tokens.lookup(connection, tokens)
            return Person(
                pseudonym_of(tokens), ledger._remaining(connection, numbers), ledger._history(connection, numbers)
            )

    def cohort(self, contributors: Sequence[str] | Cohort | None = None) -> Distribution:
        """Return how far balances are used, of a cohort or data set, or of everybody the ledger knows."""
        ledger = self.ledger
        with ledger._store.read() as connection:
            total = ledger._total(connection)
            if contributors is None:
                numbers: npt.NDArray[Any] = np.arange(total)
            else:
                numbers, _ = ledger._resolve(connection, ledger._hashed(contributors), register=False)
            used = ledger._used(connection, numbers, total)
        quantiles = np.quantile(used, LEVELS).tolist() if len(used) else [0.0] * len(LEVELS)
        counts = np.histogram(used, bins=_EDGES)[0].tolist()
        return Distribution(len(used), int((numbers >= 0).sum()), _EDGES, tuple(counts), LEVELS, tuple(quantiles))

    def planned(
        self,
        *,
        contributors: Sequence[str] | Cohort,
        class_of: npt.NDArray[Any],
        classes: Sequence[Guarantee],
        recipient: str = "",
        purpose: str = "",
    ) -> Effect:
        """Return who would drop out of a release and what that does to it; nothing is written.

        Parameters
        ----------
        contributors, class_of, classes, recipient, purpose
            As for `Ledger.reserve`.
        """
        found = self.ledger.what_if(
            contributors=contributors, class_of=class_of, classes=classes, recipient=recipient, purpose=purpose
        )
        steps = max(1, *(guarantee.steps for guarantee in classes))
        rows, planned, kept = [], 0.0, 0.0
        for row, guarantee in zip(found.classes, classes, strict=True):
            each = draws(guarantee)
            planned += each * row["contributors"]
            kept += each * row["admitted"]
            rows.append(
                {
                    **row,
                    "draws_per_step_planned": each * row["contributors"] / steps,
                    "draws_per_step_kept": each * row["admitted"] / steps,
                }
            )
        if not math.isfinite(planned):
            raise InputError("a class draws without end", expected="finite rates and numbers of entries")
        return Effect(len(found.admitted), found.dropped, planned, kept, steps, tuple(rows), found)


def pseudonym_of(tokens: Tokens) -> str:
    """Return the pseudonym of the first token."""
    return tokens[:1].astype(">u8").tobytes().hex()


def tokens_of(pseudonym: str) -> Tokens:
    """Read a pseudonym.

    Raises
    ------
    InputError
        If it is not 32 hexadecimal characters; the message does not repeat it.
    """
    text = pseudonym.strip().lower()
    if len(text) != 2 * TOKEN_BYTES or any(c not in "0123456789abcdef" for c in text):
        raise InputError("this is not a pseudonym", expected=f"{2 * TOKEN_BYTES} hexadecimal characters")
    return np.frombuffer(bytes.fromhex(text), dtype=">u8").astype(np.uint64).reshape(1, 2)
