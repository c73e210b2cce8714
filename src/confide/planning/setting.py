"""The public setting of a plan: constants, budget levels and the grid of classes, checked before any calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from confide.errors import InputError, UnreachableError, nearest
from confide.planning.histogram import HISTOGRAMS, EntryCounts
from confide.planning.policy import F64, I64, Assignment, Costs, Policy, positive, whole_number
from confide.planning.rules import BudgetRule

__all__ = ["Budgets", "Setting", "public_grid", "settle"]

Budgets = str | Sequence[float] | float | None
# Up to here every k has a class of its own; above, neighbours 1 % apart share the larger one's (safe) class
_DENSE = 512
_STEP = 1.01
_DELTA_SHARE = 0.1


def public_grid(max_entries: int) -> tuple[int, ...]:
    """Return the numbers of entries that get a class when no histogram may be used: 1..K, coarser (1 %) above 512.

    >>> public_grid(4)
    (1, 2, 3, 4)
    >>> len(public_grid(100_000)), public_grid(100_000)[-1]
    (1053, 100000)
    """
    grid = list(range(1, min(max_entries, _DENSE) + 1))
    while grid[-1] < max_entries:
        grid.append(min(max_entries, max(grid[-1] + 1, int(grid[-1] * _STEP))))
    return tuple(grid)


@dataclass(frozen=True)
class Setting:
    """Everything declared, resolved and checked; no calibrated figure yet.

    `numbers` holds the contributors of each cell of the grid (entries above `max_entries` counted at it), or None where
    no histogram may be used or where it does not say who asked for which level.
    """

    counts: EntryCounts | None
    histogram: str
    max_entries: int
    levels: tuple[float, ...]
    rule: BudgetRule | None
    entries: I64
    budgets: F64
    numbers: F64 | None
    steps: int
    delta: float
    max_contributors: int | None
    relation: str

    @property
    def median(self) -> int | None:
        """Median number of entries of a contributor, where a histogram may be used."""
        return None if self.counts is None else min(self.counts.percentile(0.5), self.max_entries)

    @property
    def people(self) -> float | None:
        """Number of contributors, or the declared bound on it."""
        return float(self.counts.total_contributors) if self.counts is not None else self.max_contributors

    def policy(self, strategy: str, costs: Costs) -> Policy:
        """Return the policy of a strategy under these constants."""
        return Policy(
            strategy,
            max_entries=self.max_entries,
            noise_multiplier=costs.noise_multiplier,
            steps=self.steps,
            delta=self.delta,
            reference_budget=max(self.levels),
            _costs=costs,
        )

    def units_per_step(self, policy: Policy, table: Assignment) -> float | None:
        """Expected number of clip units of a step, or N x rate(1) without a histogram, or None without either."""
        if self.numbers is not None:
            return float(np.sum(self.numbers * table.rates * policy.accounted(self.entries)))
        if self.people is None:
            return None
        # the smallest k at the largest level: a public number that nobody's data moves
        first = int(np.lexsort((-self.budgets, self.entries))[0])
        return float(self.people * table.rates[first])

    def require_reachable(self, policy: Policy, table: Assignment) -> None:
        """Refuse budgets so small that the whole run is not expected to use a single entry of anybody.

        Raises
        ------
        UnreachableError
            With the smallest budget that can be met.
        """
        units = self.units_per_step(policy, table)
        if units is None or self.people is None or units * self.steps >= 1:
            return
        rate = min(1.0, 1.0 / (self.steps * self.people))
        least = float(policy.costs.spent([1], [rate], [1.0])[0])
        raise UnreachableError(
            f"no plan meets a budget of {min(self.levels):g}: {policy.strategy} would draw {units * self.steps:.2g} "
            f"contributions in all {self.steps} steps",
            where=f"epsilon, with delta {self.delta:g}, noise multiplier {policy.noise_multiplier:g}",
            expected=f"an epsilon of about {least:.3g} or more, at which one contribution is expected in the whole run",
            remedy="raise epsilon or the noise multiplier, or take fewer steps",
        )


def settle(
    entry_counts: EntryCounts | Mapping[Any, Any] | str | Path | None,
    *,
    epsilon: float | None,
    delta: float | None,
    steps: int,
    max_entries: int | None,
    histogram: str | None,
    budgets: Budgets,
    max_contributors: int | None,
    relation: str | None = None,
) -> Setting:
    """Resolve and check what was declared; see `confide.planning.plan` for the parameters."""
    if histogram is None:
        histogram = "none" if entry_counts is None else "public"
    if histogram not in HISTOGRAMS:
        close = nearest(histogram, HISTOGRAMS)
        raise InputError(
            f"unknown histogram {histogram!r}",
            where="histogram",
            expected="public, paid, preview or none",
            remedy=f"did you mean {close!r}?" if close else None,
        )
    if entry_counts is None and histogram in ("paid", "preview"):
        raise InputError(
            f"a {histogram} histogram without counts", where="entry_counts", expected="{entries: contributors} or a CSV"
        )
    if entry_counts is None or histogram == "none":
        counts, histogram = None, "none"
    else:
        counts = EntryCounts.of(entry_counts, kind=histogram)
    if relation is None:
        relation = "zero-out" if histogram in ("public", "preview") else "add/remove"
    if relation not in ("add/remove", "zero-out"):
        raise InputError(f"relation is {relation!r}", where="relation", expected="'add/remove' or 'zero-out'")
    if relation == "add/remove" and histogram == "public":
        raise InputError(
            "a public histogram fixes how many contributors there are, so one cannot be added or removed",
            where="relation",
            expected="'zero-out': the person's entries contribute nothing and every declared constant stays",
            remedy="leave relation out, or plan without the histogram (histogram='none')",
        )
    steps = whole_number(steps, "steps")
    if max_contributors is not None:
        max_contributors = whole_number(max_contributors, "max_contributors")
        if counts is not None and histogram == "public" and counts.total_contributors > max_contributors:
            raise InputError(
                f"{counts.total_contributors} contributors are counted, and max_contributors is {max_contributors}",
                where="max_contributors",
                expected=f"{counts.total_contributors} or more",
            )
    if max_entries is not None:
        max_entries = whole_number(max_entries, "max_entries")
    elif counts is not None:
        max_entries = counts.largest
    else:
        raise InputError(
            "max_entries is missing: without a histogram the plan needs a public bound on one contributor's entries",
            where="max_entries",
            expected="a whole number, 1 or more (above it a uniform random subset is used, and that is stated)",
        )
    if delta is None:
        bound = max_contributors or (
            counts.total_contributors if counts is not None and histogram == "public" else None
        )
        if bound is None:
            raise InputError(
                "delta is missing and there is no public bound to derive it from",
                where="delta",
                expected="delta, or max_contributors (delta then is 0.1 / max_contributors)",
            )
        delta = _DELTA_SHARE / bound
    delta = positive(delta, "delta")
    if delta >= 1:
        raise InputError(f"delta is {delta:g}", where="delta", expected="a probability between 0 and 1, both excluded")
    return _with_grid(counts, histogram, max_entries, epsilon, budgets, steps, delta, max_contributors, relation)


def _with_grid(
    counts: EntryCounts | None,
    histogram: str,
    max_entries: int,
    epsilon: float | None,
    budgets: Budgets,
    steps: int,
    delta: float,
    max_contributors: int | None,
    relation: str,
) -> Setting:
    price = None if epsilon is None else positive(epsilon, "epsilon")
    if isinstance(budgets, str):
        # a rule may differ at every k, so no two k share a class, and nobody's k can be one without a class
        ks = tuple(range(1, max_entries + 1))
    elif counts is not None and histogram == "public":
        ks = tuple(sorted({min(k, max_entries) for k in counts.distinct} | {max_entries}))
    else:
        ks = public_grid(max_entries)
    rule: BudgetRule | None = None
    in_table = counts.levels if counts is not None else ()
    if isinstance(budgets, str):
        if in_table:
            raise InputError(
                "budgets from a rule and from a column of the counts", where="budgets", expected="one of them"
            )
        rule = BudgetRule(budgets, price).closed()
        own = [rule(k) for k in ks]
        grid = list(zip(ks, own, strict=True))
        levels = tuple(sorted(set(own)))
    else:
        if budgets is None:
            given = list(in_table) if in_table else [price]
        else:
            given = [budgets] if isinstance(budgets, int | float) else list(budgets)
        if not given or given == [None]:
            raise InputError(
                "epsilon is missing", where="epsilon", expected="a budget, or several levels as budgets=[...]"
            )
        levels = tuple(sorted({positive(b, "budgets") for b in given}))
        odd = sorted(set(in_table) - set(levels))
        if odd:
            raise InputError(
                f"the counts name a budget of {odd[0]:g}, which was not declared",
                where="budgets",
                expected=f"one of {', '.join(f'{b:g}' for b in levels)}",
            )
        grid = [(k, b) for k in ks for b in levels]
    if price is not None and max(levels) > price * (1 + 1e-12):
        raise InputError(
            f"a budget of {max(levels):g} is above the price of the release, epsilon {price:g}",
            where="budgets",
            expected=f"levels of at most {price:g}",
            remedy="raise epsilon or lower the level",
        )
    entries = np.array([k for k, _ in grid], dtype=np.int64)
    asked = np.array([b for _, b in grid])
    numbers: F64 | None = None
    if counts is not None and (in_table or len(levels) == 1 or rule is not None):
        position = {cell: i for i, cell in enumerate(grid)}
        by_entries = {k: i for i, (k, _) in enumerate(grid)}
        numbers = np.zeros(len(grid))
        # off the grid (coarse above 512) a contributor belongs to the next larger class, as in Plan.class_of
        for k, b, n in counts.cells:
            k = ks[int(np.searchsorted(ks, min(k, max_entries)))]
            numbers[position[(k, b)] if b is not None else by_entries[k]] += n
    return Setting(
        counts, histogram, max_entries, levels, rule, entries, asked, numbers, steps, delta, max_contributors, relation
    )
