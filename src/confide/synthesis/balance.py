"""Synthetic patients chosen such that their tables have the shares of the model: balanced samples, by thinning.

A table of two hundred patients drawn one by one strays from its model by chance, by about as much as the privacy noise
moved the model itself. Chance is not needed for privacy, so more patients are drawn than are wanted and thinned: of two
patients that are much alike the one is kept that brings all tables of those kept so far closer to their goal (greedy
self-balancing walk over patients; Dwivedi and Mackey, "Kernel thinning", COLT 2021; Deville and Tille, "Efficient
balanced sampling", Biometrika 2004, for the idea in surveys). Every kept patient was drawn from the model with all
visits, so that rules and histories stay whole.

It is done twice. After the fit a large panel is thinned towards the released tables, which takes away what the fit,
going from visit to visit, has drifted; its one-way, two-way and transition tables are the goal of every table drawn
later. (A table of many patients is thinned towards the released tables at once.) Nothing here looks at data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from confide.synthesis.base import Generator, RowRule
from confide.synthesis.contributions import Block, Centres, Var, batch_rows, cells_of, codes_of
from confide.synthesis.domain import Domain, Floats, Ints, Panel

# Rows and patients of the panel that stands for the model, and how many times as many are drawn for it.
MODEL_ROWS, MOST_PATIENTS, LEAST_PATIENTS, MODEL_FACTOR = 24_000, 8_000, 1_000, 4
# So many times the patients of a table must stand for the model if their tables are to be goals; where the table itself
# is large, chance is small, and the released tables are goals at once.
TIMES_AS_MANY = 4
# How many times as many patients are drawn for a table, and patients that are thinned at a time.
FACTOR, POOL, LEAST_FACTOR = 16, 8_000, 2
FEATURE_BYTES = 96 << 20
# Rows a patient, where the model has next to none.
LEAST_ROWS = 0.05
#: Pairs whose halves are made at once.
HALVES_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Goal:
    """One table of the rows of patients, and the shares that it should have.

    Attributes
    ----------
    left, right : Var
        `left` is None for a one-way table.
    level : "patient" or "visit"
    cap : float
        Visits weigh min(1, cap / k); infinite for one each.
    shares : float array
        Of all rows, or of visits with a previous one where `left` is one.
    """

    right: Var
    left: Var | None
    level: str
    cap: float
    shares: Floats

    def codes(self, panel: Panel) -> tuple[Ints, Ints]:
        """Return the cell of every row, and the patient whose row it is."""
        right = codes_of(panel, self.right, self.level)
        owner = np.arange(panel.patients, dtype=np.int64) if self.level == "patient" else panel.of_visit
        if self.left is None:
            return right, owner
        left = codes_of(panel, self.left, self.level)
        here = left >= 0
        return (left * cells_of(panel.domain, self.right) + right)[here], owner[here]

    def weights(self, panel: Panel, owner: Ints) -> Floats:
        """Return the weight of every row."""
        if self.level == "patient" or not np.isfinite(self.cap):
            return np.ones(len(owner))
        return np.minimum(1.0, self.cap / np.maximum(panel.counts, 1))[owner]

    def of(self, panel: Panel) -> Floats:
        """Return the table's shares on a panel."""
        codes, owner = self.codes(panel)
        total = np.bincount(codes, self.weights(panel, owner), len(self.shares))
        return np.asarray(total / max(float(total.sum()), 1e-12), dtype=np.float64)

    def rows(self, panel: Panel, mean: float) -> Floats:
        """Return every patient's part of (table - goal), shape (patients, cells), in units of `mean` rows a patient."""
        codes, owner = self.codes(panel)
        weight = self.weights(panel, owner)
        n, cells = panel.patients, len(self.shares)
        total = np.bincount(owner * cells + codes, weight, n * cells).reshape(n, cells)
        return np.asarray((total - total.sum(1, keepdims=True) * self.shares) / mean, dtype=np.float32)

    def mean_rows(self, panel: Panel) -> float:
        """Return the weight of a patient's rows on the average."""
        _, owner = self.codes(panel)
        return max(float(self.weights(panel, owner).sum()) / max(panel.patients, 1), LEAST_ROWS)


@dataclass(frozen=True, eq=False)
class CentredGoal:
    """One released two-way table, centred as it was measured.

    Attributes
    ----------
    block : Block
    centres : mapping Var -> distribution
    cap : float
    shares : float array
        Sum over rows of weight (e_left - p)(e_right - q)', over the weight of all rows.
    """

    block: Block
    centres: Centres
    cap: float
    shares: Floats

    def rows(self, panel: Panel, mean: float) -> Floats:
        """Return every patient's part of (table - goal); see `Goal.rows`."""
        ones = self.block.level == "patient"
        mass = np.ones(panel.patients) if ones else np.minimum(panel.counts, self.cap).astype(np.float64)

        def weight(counts: Ints) -> Floats:
            return np.ones(len(counts)) if ones else np.minimum(1.0, self.cap / np.maximum(counts, 1))

        rows = batch_rows(panel, [self.block], self.centres, clip=np.inf, weight=weight)
        return np.asarray((rows - mass[:, None] * self.shares) / mean, dtype=np.float32)

    def mean_rows(self, panel: Panel) -> float:
        """Return the weight of a patient's rows on the average."""
        return (
            1.0 if self.block.level == "patient" else max(float(np.minimum(panel.counts, self.cap).mean()), LEAST_ROWS)
        )


def take(panel: Panel, patients: Ints) -> Panel:
    """Return the chosen patients with their visits, in the given order."""
    counts = panel.counts[patients]
    starts = np.repeat(panel.starts[:-1][patients] - (np.cumsum(counts) - counts), counts)
    return Panel(panel.domain, panel.static[patients], panel.visit[starts + np.arange(int(counts.sum()))], counts)


def halve(rows: Floats, order: Ints, off: Floats) -> tuple[Ints, Floats]:
    """Keep one of every two neighbours in `order` such that what is kept sums to as little as possible.

    Parameters
    ----------
    rows : float array, shape (patients, features)
        Parts of (table - goal).
    order : int array, shape (2 m,)
    off : float array, shape (features,)
        What the others that are kept sum to.

    Returns
    -------
    kept : int array, shape (m,)
    off : float array
        What all that are kept sum to.
    """
    off = off + rows[order].sum(0) / 2
    pairs = order.reshape(-1, 2)
    kept = np.empty(len(pairs), dtype=np.int64)
    for start in range(0, len(pairs), HALVES_AT_ONCE):
        # each sign needs the sum so far, so the loop stays; the halves are made for many pairs at once
        first, second = pairs[start : start + HALVES_AT_ONCE].T
        halves = ((rows[first] - rows[second]) / 2).astype(np.float64)
        take_second = np.empty(len(halves), dtype=bool)
        for at, half in enumerate(halves):
            if off.dot(half) > 0:
                off -= half
                take_second[at] = True
            else:
                off += half
                take_second[at] = False
        kept[start : start + len(halves)] = np.where(take_second, second, first)
    return kept, off


def thin(panel: Panel, rows: Floats, keep: int, off: Floats, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Choose `keep` patients of a panel that has a power of two times as many; see `halve`."""
    # like beside like (number of visits, static columns), the pairs in random order
    place = np.empty(panel.patients, dtype=np.int64)
    place[np.lexsort((rng.random(panel.patients), *panel.static.T[::-1], panel.counts))] = np.arange(panel.patients)
    chosen: Ints = np.argsort(place)
    total = off + rows.sum(0)
    while len(chosen) > keep:
        pairs = chosen.reshape(-1, 2)
        chosen, total = halve(rows, pairs[rng.permutation(len(pairs))].ravel(), off)
        chosen = chosen[np.argsort(place[chosen])]
    return chosen[rng.permutation(len(chosen))], total


def everything(domain: Domain) -> list[tuple[Var, Var | None, str]]:
    """Return every one-way table, two-way table of rows, and table of a value with that at the visit before."""
    static = [Var("static", i) for i in range(len(domain.static))]
    visit = [Var("visit", i) for i in range(len(domain.visit))]
    count = [Var("count")] if domain.visit else []
    level = "visit" if visit else "patient"
    singles: list[tuple[Var, Var | None, str]] = [(v, None, "patient") for v in (*count, *static)]
    singles += [(v, None, "visit") for v in (*static, *visit) if visit]
    columns = [*static, *visit]
    pairs: list[tuple[Var, Var | None, str]] = [(b, a, level) for i, a in enumerate(columns) for b in columns[i + 1 :]]
    return [*singles, *pairs, *((v, Var("lag", v.position), "visit") for v in visit)]


@dataclass(frozen=True, eq=False)
class Balanced:
    """A generator whose panels are balanced samples of another's; see the module's description."""

    inner: Generator
    goals: tuple[Goal | CentredGoal, ...]
    means: tuple[float, ...]

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients with their visits."""
        width = sum(len(goal.shares) for goal in self.goals)
        at_once = max(1, min(POOL, FEATURE_BYTES // (4 * max(width, 1))))
        factor = FACTOR
        while factor > LEAST_FACTOR and factor * patients > at_once:
            factor //= 2
        size = max(1, at_once // factor)
        off = np.zeros(width)
        parts = []
        for start in range(0, patients, size):
            wanted = min(size, patients - start)
            pool = self.inner.simulate(wanted * factor, rng, rules)
            chosen, off = thin(pool, features(pool, self.goals, self.means), wanted, off, rng)
            parts.append(take(pool, chosen))
        return Panel(
            parts[0].domain,
            np.concatenate([part.static for part in parts]),
            np.concatenate([part.visit for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )


def features(panel: Panel, goals: Sequence[Goal | CentredGoal], means: Sequence[float]) -> Floats:
    """Return every patient's part of all tables less their goals, side by side."""
    return np.concatenate([goal.rows(panel, mean) for goal, mean in zip(goals, means, strict=True)], axis=1)


def balanced(
    inner: Generator,
    domain: Domain,
    one_way: Mapping[Var, Floats],
    tilted: Mapping[Var, Floats],
    pairs: Mapping[Block, tuple[Floats, float]],
    centres: Centres,
    *,
    cap: float,
    patients: float,
    visits: float,
    rng: np.random.Generator,
    rules: Sequence[RowRule] = (),
) -> Balanced:
    """Return a generator of balanced samples, with released one-way tables as the goal of the model.

    Parameters
    ----------
    one_way, tilted, pairs, centres
        As for `confide.synthesis.chain_fit.fit_chain`.
    patients, visits : float
        Released number of patients, and of visits of one.
    """
    goals: list[Goal | CentredGoal] = [
        Goal(v, None, "patient", np.inf, p) for v, p in one_way.items() if v.kind != "visit"
    ]
    visit_shares = {**{v: p for v, p in one_way.items() if v.kind == "visit"}, **tilted}
    goals += [Goal(v, None, "visit", cap, p) for v, p in visit_shares.items()]
    goals += [CentredGoal(block, centres, cap, table.ravel()) for block, (table, _) in pairs.items()]
    size = int(np.clip(MODEL_ROWS / max(visits, 1.0), LEAST_PATIENTS, MOST_PATIENTS))
    width = sum(len(goal.shares) for goal in goals)
    size = min(size, max(1, FEATURE_BYTES // (4 * max(width, 1) * MODEL_FACTOR)))
    small = size >= TIMES_AS_MANY * patients
    pool = inner.simulate(size * (MODEL_FACTOR if small else 1), rng, rules)
    means = tuple(goal.mean_rows(pool) for goal in goals)
    if not small:
        return Balanced(inner, tuple(goals), means)
    rows = features(pool, goals, means)
    chosen, _ = thin(pool, rows, size, np.zeros(rows.shape[1]), rng)
    model = take(pool, chosen)
    final = []
    for right, left, level in everything(domain):
        cells = cells_of(domain, right) * (cells_of(domain, left) if left is not None else 1)
        empty = Goal(right, left, level, np.inf, np.zeros(cells))
        final.append(Goal(right, left, level, np.inf, empty.of(model)))
    return Balanced(inner, tuple(final), tuple(goal.mean_rows(model) for goal in final))
