"""All strategies side by side: what each uses, what it guarantees, how much noise it bears, whose weight it moves.

>>> table = compare({1: 900, 2: 100}, epsilon=2.0, delta=1e-5, noise_multiplier=1.0, steps=500)
>>> table.row("truncate(1)").entries_used < table.row("individual").entries_used == 1.0
True

What *effective noise* says and what it does not. It is the noise standard deviation divided by the expected sum of
(weight x clip) of a step: the noise per coordinate, relative to the longest expected update that the strategy can
carry (every unit at its clip norm, all aligned). A drawn person counts once under `contributor`, however many entries
are averaged; a drawn entry counts with its own clip, not with 1. No weight and no clip exceeds 1, so effective noise is
never below noise_multiplier / (gradients per step), and a strategy can beat truncate(1) only with more gradients per
step, never with fewer. It does not say how much the drawn gradients vary among themselves; the estimand and the
gradients per step stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from confide.errors import UnreachableError
from confide.planning.comparison import Comparison, Estimand, Row
from confide.planning.histogram import STAMP, EntryCounts
from confide.planning.planner import classes_of
from confide.planning.policy import STRATEGIES, Assignment, Costs, Policy, positive, resolve_strategy
from confide.planning.search import Search, costs_for
from confide.planning.setting import Budgets, Setting, settle

__all__ = ["NOISE_MULTIPLIERS", "OVERPROTECTED_BELOW", "SearchPrice", "compare", "search_price"]

# shown side by side when no noise multiplier is given: fixed here, whatever the data
NOISE_MULTIPLIERS = (0.7, 1.0, 2.0)
# who spends less than this share of their budget is protected beyond what they asked
OVERPROTECTED_BELOW = 0.99
_TIE = 1e-9


def _estimand(setting: Setting, policy: Policy, table: Assignment) -> Estimand:
    level = max(setting.levels)
    chosen = np.ones(len(setting.entries), bool) if setting.rule is not None else setting.budgets == level
    ks = setting.entries[chosen]
    units = 1 if policy.clip_unit == "contributor" else table.used[chosen]
    weight = np.asarray(units * table.rates[chosen] * table.clips[chosen], dtype=np.float64)
    compared = [len(ks) - 1]
    if setting.counts is not None:
        at = int(np.searchsorted(ks, min(setting.counts.percentile(0.9), int(ks[-1]))))
        compared = sorted({at, len(ks) - 1})
    person = [float(weight[i] / weight[0]) for i in compared]
    entry = [float(weight[i] / ks[i] / (weight[0] / ks[0])) for i in compared]
    return Estimand(int(ks[0]), tuple(int(ks[i]) for i in compared), tuple(person), tuple(entry))


def _row(name: str, setting: Setting, policy: Policy) -> tuple[Row, UnreachableError | None]:
    table = policy.assign(setting.entries, setting.budgets)
    problem: UnreachableError | None = None
    try:
        setting.require_reachable(policy, table)
    except UnreachableError as error:
        problem = error
    n = setting.numbers
    people_drawn = (
        table.rates
        if policy.clip_unit == "contributor"
        else -np.expm1(table.used * np.log1p(-np.minimum(table.rates, 1 - 1e-16)))
    )
    used = overprotected = entries = contributors = noise = None
    inhabited = np.ones(len(setting.entries), bool)
    if n is not None and setting.counts is not None:
        inhabited = n > 0
        total = float(n.sum())
        entries = float(np.sum(n * table.rates * table.used))
        contributors = float(np.sum(n * people_drawn))
        per_person = table.rates * table.clips * policy.accounted(setting.entries)
        noise = float(policy.noise_multiplier / np.sum(n * per_person))
        if policy.clip_unit == "contributor":
            # the entries of a drawn person are chosen anew in every step, so each has its chance
            used = 1.0
        else:
            used = float(
                sum(m * min(k, policy.limit) for k, _, m in setting.counts.cells) / setting.counts.total_entries
            )
        overprotected = float(n[table.epsilon < OVERPROTECTED_BELOW * setting.budgets].sum() / total)
    row = Row(
        strategy=name,
        resolved=policy.strategy,
        noise_multiplier=policy.noise_multiplier,
        clip_unit=policy.clip_unit,
        entries_used=used,
        overprotected=overprotected,
        expected_entries=entries,
        expected_contributors=contributors,
        effective_noise=noise,
        epsilon_min=float(table.epsilon[inhabited].min()),
        epsilon_max=float(table.epsilon[inhabited].max()),
        work=entries,
        within_budget=bool(np.all(table.epsilon <= setting.budgets * (1 + 1e-12))),
        estimand=_estimand(setting, policy, table),
        classes=classes_of(setting, table, show_numbers=True),
    )
    return row, problem


def _better(row: Row, best: Row) -> bool:
    """Tell whether a row beats another: less effective noise, then less work, then more entries in use."""
    for mine, other in (
        (row.effective_noise, best.effective_noise),
        (row.work, best.work),
        (-(row.entries_used or 0.0), -(best.entries_used or 0.0)),
    ):
        if mine is not None and other is not None and not math.isclose(mine, other, rel_tol=_TIE):
            return mine < other
    return False


def _recommended(rows: Sequence[Row]) -> str | None:
    """Return the best strategy within everybody's budget; without contributor numbers there is none."""
    best: Row | None = None
    for row in rows:
        if row.within_budget and row.effective_noise is not None and (best is None or _better(row, best)):
            best = row
    return None if best is None else best.strategy


def compare(
    entry_counts: EntryCounts | Mapping[Any, Any] | str | Path | None = None,
    *,
    epsilon: float | None = None,
    delta: float | None = None,
    noise_multiplier: float | None = None,
    steps: int,
    max_entries: int | None = None,
    histogram: str | None = None,
    budgets: Budgets = None,
    max_contributors: int | None = None,
    strategies: Sequence[str] = (),
) -> Comparison:
    """Put the strategies side by side before anything is spent.

    Parameters
    ----------
    entry_counts, epsilon, delta, steps, max_entries, histogram, budgets, max_contributors
        As for `confide.plan`.
    noise_multiplier : float, optional
        Without it, 0.7, 1 and 2 are shown side by side.
    strategies : sequence of str
        Further strategies to show, such as ``"truncate(3)"`` or ``"contributor(4)"``.

    Returns
    -------
    Comparison
        With exact private counts (``histogram="preview"``) it is internal and stamped so.

    Raises
    ------
    InputError
        A value that is missing, out of range or contradicts another one.
    UnreachableError
        Budgets that no strategy can meet; the message names the reachable range.
    """
    setting = settle(
        entry_counts,
        epsilon=epsilon,
        delta=delta,
        steps=steps,
        max_entries=max_entries,
        histogram=histogram,
        budgets=budgets,
        max_contributors=max_contributors,
    )
    sigmas = NOISE_MULTIPLIERS if noise_multiplier is None else (positive(noise_multiplier, "noise_multiplier"),)
    names = [s for s in STRATEGIES if setting.median is not None or s != "truncate(median)"]
    for extra in strategies:
        canonical = "truncate(median)" if "median" in extra else resolve_strategy(extra)
        resolve_strategy(canonical, median=setting.median)
        if canonical not in names:
            names.insert(len(names) - 1, canonical)
    rows: list[Row] = []
    recommendations: list[tuple[float, str | None]] = []
    for sigma in sigmas:
        costs = Costs(sigma, setting.steps, setting.delta)
        made = []
        for name in names:
            row, problem = _row(name, setting, setting.policy(resolve_strategy(name, median=setting.median), costs))
            if problem is not None and name == "contributor":
                # it draws whole people at the rate of one entry: where that is hopeless, so is everything else
                raise problem
            made.append((row, problem))
        rows += [row for row, _ in made]
        recommendations.append((sigma, _recommended([row for row, problem in made if problem is None])))
    return Comparison(
        tuple(rows),
        sigmas,
        tuple(recommendations),
        setting.histogram,
        setting.steps,
        setting.delta,
        setting.levels,
        _notes(setting),
    )


@dataclass(frozen=True)
class SearchPrice:
    """One strategy without a hyper-parameter search and with it: the same budgets, noise and steps, other rates.

    Attributes
    ----------
    search : Search
    without, searched : Row
        The strategy's figures for one run, and for each run of the search.
    """

    search: Search
    without: Row
    searched: Row

    @property
    def noise_ratio(self) -> float | None:
        """How many times noisier each run of the search is than one run alone; None without a histogram."""
        alone, within = self.without.effective_noise, self.searched.effective_noise
        return None if not alone or not within else within / alone

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **self.search.to_dict(),
            "expected_runs": self.search.expected_runs,
            "strategy": self.searched.strategy,
            "noise_ratio": self.noise_ratio,
            "without": self.without.to_dict(),
            "searched": self.searched.to_dict(),
        }


def search_price(search: Search, strategy: str, **constants: Any) -> SearchPrice:
    """Say what a search costs one strategy.

    Parameters
    ----------
    search : Search
    strategy : str
    **constants
        As for `compare`, with a noise multiplier.

    Raises
    ------
    UnreachableError
        The scores and the choice alone spend the budget; the message names the least one.
    """
    sigma = positive(constants.pop("noise_multiplier"), "noise_multiplier")
    setting = settle(**{"max_entries": None, "histogram": None, "budgets": None, "max_contributors": None} | constants)
    name = resolve_strategy(strategy, median=setting.median)
    rows = []
    for terms in (None, search):
        costs = costs_for(sigma, setting.steps, setting.delta, terms)
        row, problem = _row(name, setting, setting.policy(name, costs))
        if problem is not None:
            raise problem
        rows.append(row)
    return SearchPrice(search, rows[0], rows[1])


def _notes(setting: Setting) -> tuple[str, ...]:
    notes = []
    if setting.histogram == "preview":
        notes.append(STAMP)
    if setting.people is not None and setting.delta * setting.people > 1:
        notes.append(
            f"delta {setting.delta:g} is above 1 / {setting.people:g} contributors: publishing one person's data "
            "outright would meet it; take 0.1 / contributors or less"
        )
    if setting.counts is None:
        notes.append("no histogram: numbers of contributors, the median and a recommendation are not shown")
        if setting.max_contributors is not None:
            notes.append(
                f"a step is not expected to have a known size: its sum is divided by the size at the declared bound, "
                f"{setting.max_contributors:,} contributors with one entry each"
            )
    elif setting.numbers is None:
        notes.append("the histogram does not say who asked for which budget: only guarantees are shown")
    if setting.counts is not None and setting.counts.largest > setting.max_entries:
        notes.append(
            f"above {setting.max_entries} entries a fixed, uniformly random subset of a contributor's entries is used"
        )
    return tuple(notes)
