"""Confirmed disability progression from visits with EDSS and dates of relapses, by a published definition.

The rule is that of Montobbio et al., "msprog/pymsprog", with its defaults for the first confirmed worsening: the
baseline is the first visit at least 30 days after the last relapse; an event is a visit whose EDSS is higher by at
least the smallest meaningful change; it is confirmed when the change holds at every visit up to one that lies 84 days
later (7 days earlier and two years later are tolerated) and at least 30 days after a relapse. Checked against pymsprog
1.0.7 on simulated patients (expected outputs are kept with the tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONFIRM_DAYS = 84.0
EARLIER, LATER = 7.0, 730.5
AFTER_RELAPSE = 30.0


@dataclass(frozen=True)
class Progression:
    """The first confirmed worsening: positions of baseline, event and confirming visit among the given ones."""

    baseline: int
    event: int
    confirmed: int


def smallest_change(baseline: float) -> float:
    """Return the smallest meaningful rise of EDSS: 1.5 from 0, 1.0 up to 5.0, 0.5 above."""
    if baseline == 0:
        return 1.5
    return 1.0 if baseline <= 5 else 0.5


def confirmed_progression(
    days: Sequence[float], edss: Sequence[float], relapses: Sequence[float] = (), *, confirm_days: float = CONFIRM_DAYS
) -> Progression | None:
    """Return the first confirmed worsening of one patient, or None.

    Parameters
    ----------
    days : sequence of float
        Days of the visits, increasing.
    edss : sequence of float
        EDSS at each visit.
    relapses : sequence of float
        Days of relapse onsets on the same scale.
    confirm_days : float
        84 (12 weeks) or 168 (24 weeks).
    """
    n = len(days)
    first = next((i for i in range(n) if _after(days[i], relapses)), None)
    if first is None:
        return None
    at_least = edss[first] + smallest_change(edss[first])
    for event in range(first + 1, n):
        if edss[event] < at_least:
            continue
        for later in range(event + 1, n):
            if edss[later] < at_least:
                break
            gap = days[later] - days[event]
            if confirm_days - EARLIER <= gap <= confirm_days + LATER and _after(days[later], relapses):
                return Progression(first, event, later)
    return None


def _after(day: float, relapses: Sequence[float]) -> bool:
    """Whether no relapse began in the days before."""
    return not any(0 <= day - relapse < AFTER_RELAPSE for relapse in relapses)
