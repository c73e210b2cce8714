"""A membership game against a synthesis: patients planted on purpose, and what their detection proves.

The method is run many times on a public base of made-up patients, half of the times with one planted patient (the
canary) who is as conspicuous as the schema allows: the rarest values everywhere, the most visits. The attacker knows
everything but whether the canary took part, sees all released noisy tables, and scores how far they lean towards the
canary. The rates of being right give a lower bound on epsilon that holds with 95% confidence. It can show that a claim
is false; it can never show that one is true, and a small bound from few runs says little.

References: Jagielski, Ullman and Oprea 2020; Nasr et al. 2023 (Clopper-Pearson bounds on a separate half of the runs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from confide.audit.bounds import Outcome, epsilon_lower_bound
from confide.audit.scores import split_halves, thresholds
from confide.synthesis import NoisyModel, Panel
from confide.synthesis.domain import Floats, Ints

Fit = Callable[[Panel], NoisyModel]


@dataclass(frozen=True)
class GameResult:
    """What the attacker reached on the reporting half of the runs.

    Attributes
    ----------
    canary : str
    runs : int
    false_positive, true_positive : float
    epsilon_lower : float
        Proven at 95% confidence without assumptions on the mechanism; 0 proves nothing.
    largest_possible : float
        What so many runs could have shown at most, by the same bound.
    advantage : float
    """

    canary: str
    runs: int
    false_positive: float
    true_positive: float
    epsilon_lower: float
    largest_possible: float
    advantage: float


def rare_patient(base: Panel, *, visits: int) -> tuple[Ints, Ints]:
    """Return the codes of a conspicuous patient: the rarest cell of every column, on `visits` equal visits."""

    def rarest(codes: Ints, cells: int) -> int:
        return int(np.argmin(np.bincount(codes, minlength=cells)))

    static = [rarest(base.static[:, i], c.cells) for i, c in enumerate(base.domain.static)]
    visit = [rarest(base.visit[:, i], c.cells) for i, c in enumerate(base.domain.visit)]
    rows = np.tile(np.array(visit, dtype=np.int64), (visits if base.domain.visit else 0, 1))
    return np.array(static, dtype=np.int64), rows.reshape(-1, len(base.domain.visit))


def with_canary(base: Panel, canary: tuple[Ints, Ints]) -> Panel:
    """Return the base with the canary as its last patient."""
    static, visit = canary
    return Panel(
        base.domain,
        np.vstack([base.static, static[None, :]]),
        np.vstack([base.visit, visit]),
        np.append(base.counts, len(visit)),
    )


def lean(model: NoisyModel, base: Panel, canary: tuple[Ints, Ints]) -> float:
    """Score how far released one-way tables lean from the base towards the canary, noise taken into account."""
    static, visit = canary
    cells = {c.name: (base.static[:, i], static[i], c.cells) for i, c in enumerate(base.domain.static)}
    if len(visit):
        cells |= {c.name: (base.visit[:, i], visit[0, i], c.cells) for i, c in enumerate(base.domain.visit)}
        codes = base.count_codes()
        own = Panel(base.domain, static[None, :], visit, np.array([len(visit)])).count_codes()[0]
        cells["number of visits"] = (codes, own, len(base.domain.count_starts))
    total = model.patients  # the canary moves the released number of patients, too
    for m in model.measurements:
        if len(m.columns) != 1 or m.columns[0] not in cells:
            continue
        known, own, size = cells[m.columns[0]]
        if m.level == "visit" and len(known) == base.patients:
            known = known[base.of_visit]
        share = np.bincount(known, minlength=size) / max(len(known), 1)
        towards = -share
        towards[own] += 1.0
        noisy: Floats = np.asarray(m.noisy, dtype=np.float64).reshape(-1)
        total += float((noisy - share) @ towards) / (m.deviation**2 * max(model.patients, 1.0))
    return total


def membership_game(
    fit: Fit, base: Panel, *, runs: int, visits: int, delta: float, progress: Callable[[int], None] | None = None
) -> GameResult:
    """Play the game `runs` times with and `runs` times without the canary.

    Parameters
    ----------
    fit : callable
        Runs the method as it is, with fresh noise, on a panel.
    base : Panel
        Made-up patients (synthetic ones): the guarantee is the same whoever the others are.
    runs : int
        At least 4 of each; half of them choose the threshold.
    visits : int
        Of the canary.
    delta : float
    """
    canary = rare_patient(base, visits=visits)
    both = with_canary(base, canary)
    absent, present = np.empty(runs), np.empty(runs)
    for run in range(runs):
        absent[run] = lean(fit(base), base, canary)
        present[run] = lean(fit(both), base, canary)
        if progress is not None:
            progress(run + 1)
    halves = split_halves(absent, present)
    outcome = halves.outcome(thresholds(halves)[0])
    found = outcome.false_positives / outcome.absent
    caught = 1 - outcome.false_negatives / outcome.present
    return GameResult(
        f"the rarest value in every column, {visits} visits",
        2 * runs,
        found,
        caught,
        epsilon_lower_bound(outcome, delta=delta),
        epsilon_lower_bound(Outcome(0, outcome.absent, 0, outcome.present), delta=delta),
        caught - found,
    )
