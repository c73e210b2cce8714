"""What the ledger answers: frozen values without any contributor id in them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.accounting import Guarantee


@dataclass(frozen=True)
class Reservation:
    """Balance set aside for one release.

    Attributes
    ----------
    id : str
        Names the reservation for `start`, `commit`, `abort` and `resume`.
    release, data_set : str
        What was announced.
    state : str
        reserved, started, committed, aborted (refunded) or abandoned (kept although the run ended without a release).
    admitted : ndarray of bool, shape (n,)
        For every contributor in the order given: still has balance and may take part. Internal: must not leave.
    """

    id: str
    release: str
    data_set: str
    state: str
    admitted: npt.NDArray[np.bool_] = field(repr=False)

    @property
    def dropped(self) -> int:
        """How many contributors have no balance for this release (internal)."""
        return int((~self.admitted).sum())


@dataclass(frozen=True)
class Receipt:
    """Proof that a release was charged: a sealed journal entry, for the certificate."""

    ledger: str
    reservation: str
    seq: int
    hash: str
    seal: str
    release_hash: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Receipt:
        """Rebuild a receipt from `to_dict`."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Record:
    """One reservation as the ledger knows it."""

    id: str
    release: str
    data_set: str
    state: str
    created: str
    admitted: int
    dropped: int
    release_hash: str | None
    recipient: str | None = None
    purpose: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Spend:
    """One contributor's part in one release."""

    release: str
    data_set: str
    state: str
    created: str
    reservation: str
    guarantee: Guarantee
    recipient: str | None = None
    purpose: str | None = None
    joint: str | None = None

    @property
    def counts(self) -> bool:
        """Whether it lowers the balance: everything but a refunded reservation does."""
        return self.state != "aborted"


@dataclass(frozen=True)
class Cap:
    """A cap beside the lifetime cap, and the share of it that one contributor has used."""

    name: str
    kind: str
    epsilon: float
    delta: float
    used: float


@dataclass(frozen=True)
class Remaining:
    """One contributor's balance.

    Attributes
    ----------
    used : float
        Share of the balance used up, by the rule that admits (0 untouched, 1 full).
    epsilon : float
        Tight composition of everything reserved, at the ledger's delta: a read-out, never the rule that admits.
    cap_epsilon, delta : float
        The lifetime cap.
    releases : int
        Reservations that count.
    known : bool
        Whether the ledger has ever seen this contributor; an unknown id and an unused balance are two things.
    level : str
        The consent level ("default" where nothing was said).
    caps : tuple of Cap
        The caps beside the lifetime cap: of the consent level, and of each recipient and period.
    erased : bool
        Whether memberships were erased; then `epsilon` is a bound from what was carried over, and `releases` counts
        only what came after.
    """

    used: float
    epsilon: float
    cap_epsilon: float
    delta: float
    releases: int
    known: bool = True
    level: str = "default"
    caps: tuple[Cap, ...] = ()
    erased: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class WhatIf:
    """What a release would do, priced without writing anything (internal)."""

    admitted: npt.NDArray[np.bool_] = field(repr=False)
    classes: tuple[dict[str, Any], ...]
    used_before: npt.NDArray[np.float64] = field(repr=False)
    used_after: npt.NDArray[np.float64] = field(repr=False)

    @property
    def dropped(self) -> int:
        """How many contributors would be left out."""
        return int((~self.admitted).sum())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: totals and quantiles, nothing about one person."""
        levels = (0.0, 0.25, 0.5, 0.75, 1.0)

        def quantiles(values: npt.NDArray[np.float64]) -> list[float]:
            return [float(v) for v in np.quantile(values, levels)] if len(values) else []

        return {
            "contributors": len(self.admitted),
            "admitted": int(self.admitted.sum()),
            "dropped": self.dropped,
            "classes": list(self.classes),
            "used_quantiles": list(levels),
            "used_before": quantiles(self.used_before),
            "used_after": quantiles(self.used_after),
        }


@dataclass(frozen=True)
class Status:
    """The state of the whole ledger (internal)."""

    where: str
    ledger: str
    rule: dict[str, Any]
    contributors: int
    reservations: dict[str, int]
    journal: int
    used_edges: tuple[float, ...]
    used_counts: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Verified:
    """What `verify` checked, all of it found right."""

    journal: int
    contributors: int
    reservations: int
    head: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Cohort:
    """Contributors by their number in one ledger: hashed once, used for many releases on the same data set."""

    ledger: str
    numbers: npt.NDArray[np.integer[Any]]

    def __len__(self) -> int:
        """Return how many contributors."""
        return len(self.numbers)

    def __repr__(self) -> str:
        return f"Cohort({len(self.numbers)} contributors)"


@dataclass(frozen=True, repr=False)
class DataSet(Cohort):
    """A named data set of the ledger: its contributors, and how many entries each of them has in it.

    Attributes
    ----------
    name : str
        Its name in this ledger.
    numbers : ndarray of int, shape (n,)
        Its contributors, ascending.
    entries : ndarray of int, shape (n,)
        Entries of each contributor (1 where nothing was declared): what a plan's classes are chosen by.
    linkage : dict or None
        How the same person is recognised across data sets, as it was declared.
    """

    name: str
    entries: npt.NDArray[np.integer[Any]]
    linkage: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"DataSet({self.name!r}, {len(self.numbers)} contributors)"
