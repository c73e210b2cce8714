"""Follow-up as part of the patient: when the first visit was, and how long after it the last one.

Times that are drawn one by one and put in order have no gaps to speak of: everybody is seen from the first bin to the
last. When a patient's visits begin and how long they go on are facts of the patient, of which there is one row, so that
they are learnt at patient level beside the static columns, together with the number of visits and what else is known of
the patient. Of the times drawn, one is the first, one the last, and the others lie between. Both columns are derived
inside the method and do not appear in what is released as a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from confide.synthesis.base import Generator, RowRule
from confide.synthesis.contributions import Patients, Var
from confide.synthesis.domain import Column, Domain, Ints, Panel

DERIVED = 2


@dataclass(frozen=True)
class FollowedDomain(Domain):
    """A domain whose last two static columns are the bin of the first visit and the bins from there to the last."""


def followed(domain: Domain) -> Domain:
    """Return the domain with follow-up, or the domain itself where there is no time to follow."""
    place = [column.name for column in domain.visit].index(domain.time) if domain.time is not None else -1
    if place < 0 or domain.visit[place].missing or domain.visit[place].cells < 2 or domain.max_visits < 2:
        return domain
    cells, none = domain.visit[place].cells, domain.min_visits == 0
    first, span = (
        Column(_free(name, domain.names), cells + none, True, none)
        for name in (f"first {domain.time}", f"from first to last {domain.time}")
    )
    kept = {field.name: getattr(domain, field.name) for field in fields(domain)}
    return FollowedDomain(**{**kept, "static": (*domain.static, first, span)})


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += " (derived)"
    return name


def own_static(domain: Domain) -> int:
    """Return how many static columns are the table's own."""
    return len(domain.static) - (DERIVED if isinstance(domain, FollowedDomain) else 0)


def _time(domain: Domain) -> int:
    return [column.name for column in domain.visit].index(str(domain.time))


def _with_follow_up(panel: Panel, domain: Domain) -> Panel:
    some = panel.counts > 0
    # a patient without visits has the value "missing", which is the last
    derived = np.full((panel.patients, DERIVED), domain.static[-1].cells - 1, dtype=np.int64)
    times = panel.visit[:, _time(domain)]
    if some.any():
        first = np.minimum.reduceat(times, panel.starts[:-1][some])
        derived[some, 0] = first
        derived[some, 1] = np.maximum.reduceat(times, panel.starts[:-1][some]) - first
    return Panel(domain, np.hstack([panel.static, derived]), panel.visit, panel.counts, panel.keys)


@dataclass(frozen=True, repr=False, eq=False)
class FollowedPatients:
    """Patients with the two derived columns; each patient's depend on that patient's own visits alone."""

    source: Patients
    domain: Domain

    @property
    def patients(self) -> int:
        """Number of patients (private)."""
        return self.source.patients

    def blocks(self, size: int) -> Iterator[tuple[int, Panel]]:
        """Return (number of the first patient, panel of at most `size` patients), one after the other."""
        for start, panel in self.source.blocks(size):
            yield start, _with_follow_up(panel, self.domain)

    def __repr__(self) -> str:
        return "FollowedPatients(private)"


def follow_up_rules(domain: Domain) -> tuple[RowRule, ...]:
    """Return what holds between the number of visits, the first and the last of them."""
    if not isinstance(domain, FollowedDomain):
        return ()
    first, span = Var("static", own_static(domain)), Var("static", own_static(domain) + 1)
    cells, none = domain.static[-1].cells, domain.static[-1].missing
    times, starts = cells - none, domain.count_starts
    place = np.arange(cells)
    gone = place == times  # the cell "no visit", if there is one
    after_first = (place[:, None] + place <= times - 1) & ~gone & ~gone[:, None]
    after_first |= gone & gone[:, None]
    of_count = np.ones((len(starts), cells), dtype=bool)
    if none:
        of_count[:, times] = [start == 0 for start in starts]
        of_count[[start == 0 for start in starts], :times] = False
    once = of_count.copy()
    once[[start == 1 and 2 in starts for start in starts], 1:] = False
    return (
        RowRule(Var("count"), first, of_count, "who has visits has a first one"),
        RowRule(Var("count"), span, once, "a single visit is first and last"),
        RowRule(first, span, after_first, "the last visit lies within the declared times"),
    )


def times_within(panel: Panel) -> npt.NDArray[np.bool_] | None:
    """Return which times each visit may have, shape (visits, cells): the first, the last, those between."""
    if not isinstance(panel.domain, FollowedDomain):
        return None
    cells = panel.domain.visit[_time(panel.domain)].cells
    first = np.clip(panel.static[:, -2], 0, cells - 1)
    last = np.clip(first + panel.static[:, -1], 0, cells - 1)
    owner = panel.of_visit
    low, high = first[owner].copy(), last[owner].copy()
    some = panel.counts > 0
    low[(panel.starts[1:] - 1)[some]] = last[some]
    opening = panel.starts[:-1][some]
    low[opening] = high[opening] = first[some]
    place = np.arange(cells)
    return np.asarray((place >= low[:, None]) & (place <= high[:, None]), dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class WithoutDerived:
    """A generator whose panels are given back without the derived columns."""

    inner: Generator
    domain: Domain
    rules: tuple[RowRule, ...]

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients with their visits."""
        drawn = self.inner.simulate(patients, rng, (*self.rules, *rules))
        static: Ints = drawn.static[:, : len(self.domain.static)]
        return Panel(self.domain, static, drawn.visit, drawn.counts)
