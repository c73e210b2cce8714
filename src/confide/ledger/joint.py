"""One release of several hospitals: reserved at every site or at none, each person charged once with the joint event.

>>> from confide.accounting import SampledGaussian
>>> base = SampledGaussian(noise_multiplier=1.0, rate=0.01)
>>> [round(joint_mechanism(base, 2, rule).guarantee(steps=1000).epsilon(1e-5), 2) for rule in RULES]
[1.83, 1.33, 3.98]

A person who is known at s of the sites is in the joint sum up to s times. What that costs depends on a public rule:

- *home*: one declared site uses the person's data, the others leave them out: the event is that of one site.
- *split*: every site clips the person to C/s and flips its own coin: s coins, each worth C/s.
- *mixture*: every site clips to C and flips its own coin: the sum can move by jC with j ~ Binomial(s, rate).

All three are one dominating pair each (`SampledGaussian` with several entries), valid for add/remove of a whole
person.
Where people are not linked across sites nobody knows s, so everybody is charged the mixture at the largest s declared.

Every site's ledger records the joint event once, under the joint release's name: later local releases compose with it,
and a composition over several ledgers (`together`) counts it once. Each ledger enforces its own cap over what it knows;
what a person spends in local releases of another site is shown by `together` and enforced by nobody, because every site
would have to tell the others each local release of each person beforehand. One cap for all sites is agreed on as caps
that add up to it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.accounting import Guarantee, SampledGaussian, compose
from confide.errors import BudgetError, ConfideError, InputError
from confide.ledger import _journal
from confide.ledger.ledger import Ledger
from confide.ledger.records import Receipt, Reservation

RULES = ("home", "split", "mixture")


def shared_tokens(key: bytes, ids: Sequence[str]) -> list[str]:
    """Return the federation's pseudonyms of people: HMAC-SHA256 under a key that only the sites hold.

    Raises
    ------
    InputError
        The key is shorter than 32 bytes, or an id is missing.
    """
    if len(key) < 32:
        raise InputError("the federation's key is too short", expected="32 bytes from a secure source")
    if isinstance(ids, str) or not all(isinstance(one, str) and one for one in ids):
        raise InputError("a contributor id is missing or is not text", expected="a sequence of texts")
    return [hmac.digest(key, b"confide federation\0" + one.encode(), "sha256").hex() for one in ids]


def joint_mechanism(base: SampledGaussian, sites: int, rule: str) -> SampledGaussian:
    """Return the event of a person who is known at `sites` sites, under a rule of the module's docstring.

    Parameters
    ----------
    base : SampledGaussian
        What a person known at one site costs in one step.

    Raises
    ------
    InputError
        An unknown rule, or fewer than one site.
    """
    if rule not in RULES:
        raise InputError(f"rule={rule!r}", expected=" or ".join(RULES))
    if isinstance(sites, bool) or not isinstance(sites, int) or sites < 1:
        raise InputError(f"a person cannot be known at {sites!r} sites", expected="a whole number of at least 1")
    if rule == "home":
        return base
    clip = base.clip_norm / sites if rule == "split" else base.clip_norm
    return replace(base, entries=base.entries * sites, clip_norm=clip)


@dataclass(frozen=True)
class Site:
    """One hospital in a joint release.

    Attributes
    ----------
    ledger : Ledger
        Its own.
    contributors : sequence of str
        Its people, by the ids its ledger knows.
    shared : sequence of str or None
        Their shared tokens, in the same order (`shared_tokens`); None where people are not linked.
    """

    ledger: Ledger
    contributors: Sequence[str] = field(repr=False)
    shared: Sequence[str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Part:
    """One site's part: its reservation, and who of its people takes part here (internal)."""

    reservation: Reservation
    takes_part: npt.NDArray[np.bool_] = field(repr=False)


class JointRelease:
    """A release of several hospitals in two phases: `reserve` at all of them, then `commit` at all of them.

    Parameters
    ----------
    name : str
        Its name in every ledger.
    base : SampledGaussian
        What one step costs a person known at one site.
    steps : int
        Steps of the joint training.
    rule : {"home", "split", "mixture"}
        How a person known at several sites takes part; public.
    most_sites : int
        The largest number of sites that one person may be known at; declared, public. Where sites give no shared
        tokens everybody is charged for it.
    """

    def __init__(
        self, name: str, base: SampledGaussian, *, steps: int, rule: str = "home", most_sites: int | None = None
    ) -> None:
        joint_mechanism(base, most_sites or 1, rule)
        self.id = secrets.token_hex(16)
        self.name, self.base, self.steps, self.rule, self.most_sites = name, base, steps, rule, most_sites

    def guarantee(self, sites: int) -> Guarantee:
        """Return the guarantee of a person known at `sites` sites."""
        return joint_mechanism(self.base, sites, self.rule).guarantee(steps=self.steps)

    def reserve(self, sites: Mapping[str, Site], *, data_set: str = "joint", **more: Any) -> dict[str, Part]:
        """Reserve at every site, or at none.

        A person whom one site has to drop for want of balance is dropped at every site that knows them.

        Returns
        -------
        dict of str to Part
            Under the rule "home" a person takes part at the first of their sites in the order of the sites' names.

        Raises
        ------
        BudgetError
            A site refuses; what the others had reserved is given back, because nothing was sent.
        InputError
            Sites do not fit the rule: "home" and "split" need shared tokens at every site.
        """
        where, counts = self._where_known(sites)
        parts: dict[str, Part] = {}
        try:
            out: set[str] = set()
            for name in sorted(sites):
                out |= self._without_balance(sites[name], counts[name])
            for name in sorted(sites):
                parts[name] = self._reserve_at(name, sites[name], counts[name], where, out, data_set, more)
        except BaseException:
            for name, part in parts.items():
                sites[name].ledger.free(part.reservation.id)
            raise
        return parts

    def _where_known(self, sites: Mapping[str, Site]) -> tuple[dict[str, list[str]], dict[str, npt.NDArray[np.int64]]]:
        """Return {shared token: sites that know it} and for every site the number s of each of its people."""
        if not sites:
            raise InputError("a joint release needs sites")
        for name, site in sites.items():
            if site.shared is not None and len(set(site.shared)) != len(site.contributors):
                raise InputError("shared tokens do not fit the contributors", where=name, expected="one a contributor")
        linked = all(site.shared is not None for site in sites.values())
        where: dict[str, list[str]] = {}
        if not linked:
            if self.rule != "mixture" or self.most_sites is None:
                raise InputError(
                    "without shared tokens nobody knows at how many sites a person is",
                    expected="rule='mixture' with most_sites declared, or shared tokens at every site",
                )
            most = min(self.most_sites, len(sites))
            return where, {name: np.full(len(site.contributors), most) for name, site in sites.items()}
        for name in sorted(sites):
            for token in sites[name].shared or ():
                where.setdefault(token, []).append(name)
        most = max(len(names) for names in where.values())
        if self.most_sites is not None and most > self.most_sites:
            raise InputError(
                f"somebody is known at more sites than declared ({self.most_sites})",
                remedy="declare a larger most_sites; this message must not leave",
            )
        return where, {
            name: np.array([len(where[token]) for token in site.shared or ()]) for name, site in sites.items()
        }

    def _without_balance(self, site: Site, counts: npt.NDArray[np.int64]) -> set[str]:
        """Return shared tokens of people whom this site could not admit."""
        if site.shared is None:
            return set()
        kinds, class_of = np.unique(counts, return_inverse=True)
        found = site.ledger.what_if(
            contributors=site.contributors, class_of=class_of, classes=[self.guarantee(int(s)) for s in kinds]
        )
        return {site.shared[i] for i in np.flatnonzero(~found.admitted).tolist()}

    def _reserve_at(
        self,
        name: str,
        site: Site,
        counts: npt.NDArray[np.int64],
        where: dict[str, list[str]],
        out: set[str],
        data_set: str,
        more: dict[str, Any],
    ) -> Part:
        keep = (
            np.array([token not in out for token in site.shared], bool) if site.shared else np.ones(len(counts), bool)
        )
        if not keep.any():
            raise BudgetError("no contributor of a site has balance left; nothing was spent", where=name)
        kinds, class_of = np.unique(counts[keep], return_inverse=True)
        # The ledger charges the joint event wherever the person is known: later local releases compose with it.
        reservation = site.ledger.reserve(
            release=self.name,
            contributors=[person for person, kept in zip(site.contributors, keep, strict=True) if kept],
            class_of=class_of,
            classes=[self.guarantee(int(s)) for s in kinds],
            data_set=data_set,
            idempotency_key=f"joint:{self.id}:{name}",
            joint=self.id,
            **more,
        )
        takes_part = keep.copy()
        takes_part[keep] = reservation.admitted
        if self.rule == "home" and site.shared is not None:
            takes_part &= np.array([where[token][0] == name for token in site.shared], bool)
        return Part(reservation, takes_part)

    def give_up(self, sites: Mapping[str, Site], parts: Mapping[str, Part]) -> dict[str, bool]:
        """End a joint release that did not happen; return for every site whether its charge was given back."""
        return {name: sites[name].ledger.free(part.reservation.id) for name, part in parts.items()}

    def commit(self, sites: Mapping[str, Site], parts: Mapping[str, Part], *, release_hash: str) -> dict[str, Receipt]:
        """Commit at every site; a repeat after a crash commits those that are left and returns all receipts.

        Raises
        ------
        ConfideError
            A site cannot commit: the others have, and its charge stays reserved until a repeat succeeds.
        """
        receipts: dict[str, Receipt] = {}
        failed: ConfideError | None = None
        for name, part in parts.items():
            ledger, which = sites[name].ledger, part.reservation.id
            try:
                done = ledger.reservation(which)
                if done.state == "committed" and done.release_hash == release_hash:
                    receipts[name] = ledger.receipt(which)
                else:
                    receipts[name] = ledger.commit(which, release_hash=release_hash)
            except ConfideError as error:
                failed = error
        if failed is not None:
            raise failed
        return receipts


def together(known_at: Sequence[tuple[Ledger, str]]) -> Guarantee | None:
    """Return what one person has spent over several hospitals' ledgers; a joint event counts once. None: nothing.

    Parameters
    ----------
    known_at : sequence of (Ledger, str)
        The ledgers with the person's id in each.
    """
    seen: set[str] = set()
    found: list[Guarantee] = []
    for ledger, person in known_at:
        for spend in ledger.history(person):
            joint = spend.joint
            if not spend.counts or (joint is not None and joint in seen):
                continue
            seen |= {joint} if joint is not None else set()
            found.append(spend.guarantee)
    return compose(found) if found else None


def fingerprint(keys: Sequence[bytes]) -> str:
    """Return the fingerprint of a round's masks from the public keys they are made of, for `Ledger.begin_round`."""
    return hashlib.sha256(_journal.canonical(sorted(key.hex() for key in keys)).encode()).hexdigest()


def to_json(receipts: Mapping[str, Receipt]) -> str:
    """Return the receipts of all sites as JSON, for the certificate of the joint release."""
    return json.dumps({name: receipt.to_dict() for name, receipt in sorted(receipts.items())}, indent=1)
