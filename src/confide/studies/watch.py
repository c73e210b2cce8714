"""Who watches a run, what they are shown before it, and what they get after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from confide.planning import Plan
from confide.release import Release


class Watcher(Protocol):
    """What sees a run: a terminal, a test, nobody."""

    def say(self, text: str) -> None:
        """Take one line of text."""

    def price(self, price: Price) -> bool:
        """Take the price; return True to go on."""

    def begin(self, what: str, total: int) -> None:
        """Begin something long."""

    def step(self, done: int, *, note: str = "") -> None:
        """Note progress of it."""

    def end(self) -> None:
        """End it."""


class Quiet:
    """A watcher that agrees to the price and says nothing."""

    def say(self, text: str) -> None:
        """Ignore."""

    def price(self, price: Price) -> bool:
        """Accept."""
        return True

    def begin(self, what: str, total: int) -> None:
        """Ignore."""

    def step(self, done: int, *, note: str = "") -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Price:
    """What a run will cost: the plan, and lines about the rest."""

    plan: Plan
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Where a finished run left things.

    Attributes
    ----------
    release : Release
    sentence : str
        The guarantee in one sentence.
    paths : dict of str to Path
        What to open: release folder, its report, the internal report.
    """

    release: Release
    sentence: str
    paths: dict[str, Path] = field(default_factory=dict)


def outcome_of(release: Release) -> Outcome:
    """Put a finished release into words and paths."""
    from confide.report import guarantee_sentence

    paths = {"release": release.path, "report": release.path / "report.html"}
    if (release.internal / "report.html").exists():
        paths["internal report"] = release.internal / "report.html"
    return Outcome(release, guarantee_sentence(release.certificate), paths)


def spent_note(done: int, steps: int) -> str:
    """Say how much of what was reserved is used after `done` of `steps` steps."""
    return f"{100 * done / steps:.0f}% of the reserved budget used"
