"""From declared constants to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from confide.accounting import Correlation
from confide.accounting.gaussian import mu_for
from confide.errors import InputError
from confide.planning.histogram import EntryCounts, tidy
from confide.planning.options import QuantileClipping
from confide.planning.plans import Plan, PlanClass
from confide.planning.policy import Assignment, Policy, positive, resolve_strategy, whole_number
from confide.planning.search import Search, costs_for
from confide.planning.setting import Budgets, Setting, settle

__all__ = ["plan"]


def classes_of(setting: Setting, table: Assignment, *, show_numbers: bool) -> tuple[PlanClass, ...]:
    """Put the figures of a strategy into one row a class."""
    rows = []
    for i in range(len(setting.entries)):
        number = tidy(float(setting.numbers[i])) if show_numbers and setting.numbers is not None else None
        rows.append(
            PlanClass(
                entries=int(setting.entries[i]),
                budget=float(setting.budgets[i]),
                rate=float(table.rates[i]),
                clip_norm=float(table.clips[i]),
                entries_used=int(table.used[i]),
                epsilon=float(table.epsilon[i]),
                contributors=number,
            )
        )
    return tuple(rows)


def plan(
    entry_counts: EntryCounts | Mapping[Any, Any] | str | Path | None = None,
    *,
    epsilon: float | None = None,
    delta: float | None = None,
    noise_multiplier: float,
    steps: int,
    strategy: str = "individual",
    clip_norm: float = 1.0,
    max_entries: int | None = None,
    histogram: str | None = None,
    budgets: Budgets = None,
    max_contributors: int | None = None,
    denominator: float | None = None,
    relation: str | None = None,
    clipping: QuantileClipping | None = None,
    correlation: str | Correlation | None = None,
    search: Search | None = None,
) -> Plan:
    """Fix a plan before any data is touched.

    Parameters
    ----------
    entry_counts : mapping, CSV path or None
        ``{entries: contributors}``, ``{(entries, budget): contributors}``, or a CSV with the columns
        ``entries,contributors`` and, where contributors chose a level, ``budget``.
    epsilon : float
        The budget of everybody, or the most that any level or rule may ask for.
    delta : float, optional
        Default 0.1 / `max_contributors`, or 0.1 / the contributors of a public histogram.
    noise_multiplier : float
        Noise standard deviation in units of `clip_norm`.
    steps : int
        Number of steps, empty ones included.
    strategy : str
        contributor, contributor(m), individual, scale, uniform, truncate(m), truncate(median) or per-entry.
    clip_norm : float
        C, in units of a gradient's norm.
    max_entries : int, optional
        Public bound on the entries of one contributor; default the largest declared number. Required without histogram.
    histogram : str, optional
        Where `entry_counts` come from: ``"public"`` (default where given), ``"paid"``, ``"preview"`` or ``"none"``.
    budgets : sequence of float, str or None
        Consent levels (all declared, whoever chose them), or a rule such as ``"4 if k <= 10 else 2"``; None: equal.
    max_contributors : int, optional
        Public upper bound on the number of contributors.
    denominator : float, optional
        Fixed number to divide the noisy sum by; default the expected number of clip units in a step, or without a
        histogram `max_contributors` x the rate of a contributor with one entry.
    relation : str, optional
        Default ``"zero-out"`` for a public histogram (and a preview), else ``"add/remove"``.
    clipping : QuantileClipping, optional
        Let the clipping norm follow a quantile of the norms, paid for out of the same noise multiplier.
    correlation : str or Correlation, optional
        ``"banded(b)"`` or ``"blt(b)"``: noise correlated over steps; every contributor then takes part in at most one
        of any b steps in a row (b groups in turn), and is accounted over ceil(steps / b) steps.
    search : Search, optional
        Terms of a hyper-parameter search: rates or clips are then solved so that the whole search, all its runs and
        scores together, stays within the budgets.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        A value that is missing, out of range or contradicts another one.
    UnreachableError
        A budget that no plan can meet; the message names the reachable range.

    Examples
    --------
    >>> p = plan({1: 17503, 2: 4113}, epsilon=4.0, delta=1e-6, noise_multiplier=1.0, steps=2000)
    >>> all(0.99 * 4 <= c.epsilon <= 4 for c in p.classes)
    True
    """
    total = whole_number(steps, "steps")
    if isinstance(correlation, str):
        correlation = Correlation.make(correlation, steps=total)
    rounds = total if correlation is None else correlation.rounds(total)
    setting = settle(
        entry_counts,
        epsilon=epsilon,
        delta=delta,
        steps=rounds,
        max_entries=max_entries,
        histogram=histogram,
        budgets=budgets,
        max_contributors=max_contributors,
        relation=relation,
    )
    if search is not None and correlation is not None and not correlation.amplifies:
        raise InputError(
            "a search cannot be priced with this correlation: its clips are not solved for",
            where="search",
            expected='independent noise, or correlation "banded(b)"',
        )
    clip_norm = positive(clip_norm, "clip_norm")
    costs = costs_for(positive(noise_multiplier, "noise_multiplier"), setting.steps, setting.delta, search)
    policy = setting.policy(resolve_strategy(strategy, median=setting.median), costs)
    if correlation is None or correlation.amplifies:
        table = policy.assign(setting.entries, setting.budgets)
    else:
        table = _always(policy, setting)
    setting.require_reachable(policy, table)
    if denominator is None:
        denominator = setting.units_per_step(policy, table)
        if denominator is None:
            raise InputError(
                "nothing public says what to divide the noisy sum by",
                where="denominator",
                expected="max_contributors (the denominator is then max_contributors x the rate of one entry), "
                "a declared denominator, or a histogram",
            )
        denominator /= 1 if correlation is None else correlation.separation  # a step meets one group of so many
    open_numbers = setting.histogram in ("public", "paid")
    return Plan(
        strategy=policy.strategy,
        clip_unit=policy.clip_unit,
        noise_multiplier=costs.noise_multiplier,
        steps=total,
        clip_norm=clip_norm,
        delta=setting.delta,
        max_entries=setting.max_entries,
        budgets=setting.levels,
        denominator=positive(denominator, "denominator"),
        relation=setting.relation,
        histogram=setting.histogram,
        classes=classes_of(setting, table, show_numbers=open_numbers),
        rule=None if setting.rule is None else setting.rule.text,
        entry_counts=setting.counts if open_numbers else None,
        clipping=clipping,
        correlation=correlation,
        search=search,
    )


def _always(policy: Policy, setting: Setting) -> Assignment:
    """Everybody takes part whenever their group's turn comes; who asks for less is clipped at less."""
    if policy.strategy == "per-entry":
        raise InputError(
            "per-entry budgets rest on secret sampling, which this correlation does not count on",
            where="strategy",
            expected='strategy "contributor", or correlation "banded(b)"',
        )
    units = policy.accounted(setting.entries)
    level = np.array([mu_for(float(b), setting.delta) for b in setting.budgets])
    # a hair below the exact norm: the certified epsilon is read with a margin of its own
    clips = np.minimum(level * policy.noise_multiplier / (units * np.sqrt(setting.steps)) * (1 - 1e-8), 1.0)
    rates = np.ones(len(clips))
    spent = policy.costs.spent(units.tolist(), rates.tolist(), clips.tolist())
    return Assignment(rates, clips, policy.used(setting.entries), spent)
