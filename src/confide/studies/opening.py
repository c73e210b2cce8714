"""Before a study of any kind begins: its draft is confirmed, its ledger is open, and its release has an addressee."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from confide.contributors import Linkage
from confide.data import persons_of
from confide.errors import InputError
from confide.ledger import Ledger
from confide.release import FlowFacts, LedgerReference


def refuse_unconfirmed(text: str, *, where: str, otherwise: str = "--rehearse runs without") -> None:
    """Refuse a drafted study in which values read from the data still wait to be confirmed as public knowledge.

    `otherwise` is said at the end of the remedy.

    Raises
    ------
    InputError
        With the lines that are marked CONFIRM.
    """
    lines = [number for number, line in enumerate(text.splitlines(), 1) if re.search(r"#.*\bCONFIRM:", line)]
    if lines:
        shown = ", ".join(map(str, lines[:12])) + (" ..." if len(lines) > 12 else "")
        raise InputError(
            f"{len(lines)} values of this draft were read from the data and nobody has confirmed them",
            where=f"{where}, lines {shown}",
            expected="values that are public knowledge; one that only the data tell is a leak that no guarantee covers",
            remedy=f"replace or confirm each value, then remove its CONFIRM mark ({otherwise})",
        )


class HasLedger(Protocol):
    """Any study with a ``[ledger]`` section."""

    @property
    def ledger(self) -> Any:
        """Its `url` and `key_file`."""


def check_ledger(study: HasLedger, base: Path, url: str | None, *, resume: bool = False) -> None:
    """Open the ledger and close it again, before anything slow is loaded: a wrong address, key or recipient shows.

    A run that goes on has been charged already, so its recipient is not judged again.

    Raises
    ------
    InputError
        No ledger was named, there is none at that place, or the key is another ledger's.
    BudgetError
        Allowances are declared and the study names no recipient that has one.
    """
    with open_ledger(study, base, url) as ledger:
        if not resume:
            ledger.check_recipient(study.ledger.recipient)
            _refuse_spent_ids(study, base, ledger)


def _refuse_spent_ids(study: Any, base: Path, ledger: Ledger) -> None:
    """Refuse a table of persons that would leave behind what an id has spent: its person would begin anew.

    The message is for those who hold the ledger; like every refusal it must not leave.
    """
    for source in _sources(study):
        replaced = [one for one, person in persons_of(source, base=base).items() if one != person]
        used = ledger.used(replaced) if replaced else np.zeros(0)
        if (used > 0).any():
            raise InputError(
                "ids that a table of persons replaces were charged under their own name (internal message, must not "
                "leave)",
                where=f"persons of {source.label}",
                expected="ids that have spent nothing: the person would get a new balance beside the old one",
                remedy="let the person bear the id that was charged",
            )


def attributes_of(study: Any) -> tuple[str, ...]:
    """Return the names of the columns that a study reads; they are public, and travel with the release."""
    columns: Mapping[str, Any] | None = getattr(study, "columns", None)
    tables = [columns] if columns is not None else [section.columns for section in _sources(study)]
    read = [name for table in tables for name, column in table.items() if getattr(column, "role", "") != "ignore"]
    return tuple(dict.fromkeys(read))


def linkage_of(study: Any) -> Linkage:
    """Return how people were linked, for the certificate: as the study says, or by its tables of persons."""
    declared: Linkage = study.linkage.linkage
    tables = list(dict.fromkeys(source.label for source in _sources(study) if source.persons is not None))
    if not tables or study.linkage.rule is not None:
        return declared
    return Linkage("table", f"declared tables of ids for {', '.join(tables)}; else equal ids are one person")


def _sources(study: Any) -> list[Any]:
    """Return the tables that a study of any kind reads."""
    if not hasattr(study, "patients"):
        return list(getattr(study, "data", ()))
    return [section for section in (study.patients, study.visits, *study.events.values()) if section is not None]


def flow_of(study: Any) -> dict[str, Any]:
    """Return what `Ledger.reserve` writes into the register of flows for a study."""
    return {**study.ledger.flow, "attributes": attributes_of(study)}


def stated_flow(study: Any) -> FlowFacts | None:
    """Return what the certificate says about who receives the release; None where the study says nothing."""
    return FlowFacts(**flow_of(study)) if study.ledger.declared else None


def noted(ledger: Ledger) -> dict[str, str]:
    """Return what internal figures keep of a ledger that is a file: its place, where `confide evaluate` finds it.

    The address of a server may hold a password; it is named again.
    """
    return {"ledger": f"sqlite:///{ledger.where}"} if Path(ledger.where).is_file() else {}


def still_admitted(
    study: HasLedger,
    base: Path,
    url: str | None,
    *,
    written: LedgerReference | None,
    noted: str | None,
    people: Sequence[str],
) -> npt.NDArray[np.bool_]:
    """Return who of a release's training contributors may be trained on again, inside, shape (people,).

    The release does not say who took part; its ledger does. Left out are those whom it had dropped and those who have
    withdrawn, chosen a level that does not allow the release, or been erased since. Where the certificate says that no
    ledger was kept, nobody was dropped.

    Parameters
    ----------
    url : str, optional
        The ledger's address; else the study's, else ``CONFIDE_LEDGER``, else where the run had `noted` it.
    written : LedgerReference, optional
        The ledger's entry that the certificate names.

    Raises
    ------
    InputError
        The ledger is not to be found, or is another one.
    """
    if written is None:
        return np.ones(len(people), dtype=bool)
    remedy = "name the ledger of this release with --ledger"
    try:
        if url is None and study.ledger.url is None and "CONFIDE_LEDGER" not in os.environ:
            url = noted
        ledger = open_ledger(study, base, url)
    except InputError as error:
        raise InputError(
            f"the ledger of this release is not at hand: {error.what}",
            where=error.where,
            expected="the ledger, which alone knows whom the training left out: nobody else may be trained on again",
            remedy=remedy,
        ) from error
    with ledger:
        if ledger.id != written.ledger:
            raise InputError(
                "this is not the ledger of the release",
                where=ledger.where,
                expected=f"the ledger {written.ledger}, which knows who took part",
                remedy=remedy,
            )
        return ledger.admitted(written.reservation, people)


def open_ledger(study: HasLedger, base: Path, url: str | None) -> Ledger:
    """Open the ledger: the argument, then the study's, then ``CONFIDE_LEDGER``.

    A relative file in the study starts from the study's folder, so that the same study finds the same ledger wherever
    it is run from. ``env:VARIABLE`` reads the address from the environment, as the study file travels.

    Raises
    ------
    InputError
        No ledger was named, or there is none at that place.
    """
    relative = url is None and study.ledger.url is not None
    chosen = url or study.ledger.url or os.environ.get("CONFIDE_LEDGER")
    if not chosen:
        raise InputError(
            "no ledger was named: what contributors spend has to be remembered",
            where="--ledger, [ledger] url, or the environment variable CONFIDE_LEDGER",
            expected="sqlite:///FILE or postgresql://...",
            remedy="make one: confide ledger init --url sqlite:///ledger.sqlite --cap-epsilon 8 --cap-delta 1e-5",
        )
    if chosen.startswith("env:"):
        name = chosen.removeprefix("env:")
        chosen = os.environ.get(name, "")
        if not chosen:
            raise InputError(
                f"the environment variable {name} is not set", where="[ledger] url", expected="the ledger's address"
            )
    prefix = "sqlite:///"
    if relative and chosen.startswith(prefix) and not chosen.startswith(prefix + "/"):
        chosen = prefix + str((base / chosen.removeprefix(prefix)).absolute())
    key = study.ledger.key_file
    return Ledger.open(chosen, key=base / key if key else None)
