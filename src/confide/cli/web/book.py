"""A ledger opened for reading only, with what the pages ask for; slow answers are kept until the journal grows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from confide.errors import ConfideError
from confide.ledger import Distribution, Flow, Ledger, Odometer, Person, Record
from confide.ledger.detail import ReleaseDetail, course_of, journal_end, release_detail

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Checked:
    """The outcome of the last verification: when (journal entry), and what differed, if anything."""

    entry: int
    text: str
    good: bool


class Book:
    """What the pages read. The database itself refuses every write on these connections."""

    def __init__(self, ledger: Ledger, releases: Path | None = None) -> None:
        self.ledger, self.releases = ledger, releases
        self.odometer = Odometer(ledger)
        self.checked: Checked | None = None
        self._lock, self._busy = threading.Lock(), threading.Lock()
        self._kept: dict[str, tuple[int, Any]] = {}
        read_only(ledger)

    def end(self) -> dict[str, Any]:
        """Return the journal's last entry."""
        return journal_end(self.ledger)

    def records(self) -> tuple[Record, ...]:
        """Return all releases, oldest first."""
        return self.ledger.reservations()

    def distribution(self) -> Distribution:
        """Return how far everybody's balance is used."""
        return self._keep("distribution", lambda: self.odometer.cohort(None))

    def flows(self) -> tuple[tuple[Flow, float], ...]:
        """Return the register of flows with the bound of each in bits."""
        return self._keep("flows", lambda: tuple((flow, flow.bits()) for flow in self.ledger.flows()))

    def release(self, reservation: str) -> ReleaseDetail:
        """Return one release."""
        return release_detail(self.ledger, reservation)

    def pseudonym(self, text: str) -> str:
        """Return the pseudonym of an id."""
        return self.odometer.pseudonym(text)

    def person(self, pseudonym: str) -> tuple[Person, list[float], list[float]]:
        """Return one contributor, the used share after each release, and the epsilon of each."""
        person = self.odometer.person(pseudonym=pseudonym)
        return person, *course_of(self.ledger, person)

    def verify(self) -> Checked:
        """Check the whole ledger; one at a time."""
        with self._busy:
            entry = self.end()["seq"]
            try:
                found = self.ledger.verify()
                self.checked = Checked(
                    entry,
                    f"nothing differs: {found.journal} journal entries, {found.reservations} reservations, "
                    f"{found.contributors} contributors",
                    True,
                )
            except ConfideError as error:
                self.checked = Checked(entry, error.what, False)
            return self.checked

    def certificate(self, reservation: str) -> dict[str, Any] | None:
        """Return the certificate of a release from the folder of releases, if one was given and holds it."""
        if self.releases is None:
            return None
        for file in sorted(self.releases.glob("*/certificate.json")):
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                if found["ledger"]["ledger"] == self.ledger.id and found["ledger"]["reservation"] == reservation:
                    return dict(found)
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def _keep(self, name: str, make: Callable[[], Answer]) -> Answer:
        with self._lock:
            now = self.end()["seq"]
            if name not in self._kept or self._kept[name][0] != now:
                self._kept[name] = (now, make())
            answer: Answer = self._kept[name][1]
            return answer


def read_only(ledger: Ledger) -> None:
    """Make the database refuse writes on every connection of this ledger from now on."""
    store = ledger._store
    statement = "PRAGMA query_only=ON" if store.sqlite else "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"

    def configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        if not store.sqlite:
            connection.commit()

    sa.event.listen(store.engine, "connect", configure)
    store.engine.dispose()
