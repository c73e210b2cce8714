"""Fitting the chain to released tables: no look at the data, only at what was released and at simulated patients.

Fitting alternates between drawing a large panel from the current parameters and re-solving each column on that panel,
so that what comes out of the generator, pooled over visits, has the released tables; a chain fitted step by step
without looking at its own output drifts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from confide.synthesis.base import RowRule
from confide.synthesis.chain import Chain, Step, allowed_cells, allowed_times, drawing_order, tilt_of, time_var
from confide.synthesis.conditional import Conditional, Moments, Parent, Targets, fit
from confide.synthesis.contributions import Block, Centres, Var, centre_of, codes_of
from confide.synthesis.domain import Domain, Floats, Panel
from confide.synthesis.history import OWN_PAST, effects, past_correlation, share_of_same
from confide.synthesis.rules import CountLaw, count_values

PANEL_ROWS = 16_000
PASSES = 2
LARGEST = 0.95
# Random effects: most of a score's variance, and how far their size goes at a time to where it should be.
MOST_OWN, CALIBRATION = 0.9, 0.6
ITERATIONS = 40
# The panel on which equations are solved is not a release; a fixed public seed keeps fits repeatable.
_PANEL_SEED = 7


@dataclass(frozen=True, eq=False)
class Linked:
    """Two-way tables of which only the covariances of scores are known.

    Attributes
    ----------
    basis : mapping Var -> float array, shape (cells, scores)
        Orthonormal scores.
    covariance : mapping Block -> float array, shape (scores of left, scores of right)
        For a previous visit's value: among visits that have one.
    variance : mapping Block -> float array, same shape
        Of the noise that is left in it.
    same : (share, deviation of its noise), optional
        Of visits in the time bin of the visit before.
    """

    basis: Mapping[Var, Floats]
    covariance: Mapping[Block, Floats]
    variance: Mapping[Block, Floats]
    same: tuple[float, float] | None = None

    def of(self, var: Var) -> Floats:
        """Return the scores of a variable; the previous visit's value has those of the value itself."""
        return self.basis[Var("visit", var.position) if var.kind in OWN_PAST else var]


NOTHING = Linked({}, {}, {})


def fit_chain(
    domain: Domain,
    law: CountLaw,
    centres: Centres,
    one_way: Mapping[Var, Floats],
    tilted: Mapping[Var, Floats],
    pairs: Mapping[Block, tuple[Floats, float]],
    *,
    cap: float,
    rules: Sequence[RowRule] = (),
    linked: Linked = NOTHING,
) -> Chain:
    """Fit the generator to released tables.

    Parameters
    ----------
    centres : mapping Var -> distribution
        The centres that the two-way tables were measured at.
    one_way : mapping Var -> distribution
        Of patients for static columns and the number of visits, of (capped) visits for visit columns.
    tilted : mapping Var -> distribution
        Of static columns over (capped) visits.
    pairs : mapping Block -> (centred table over total mass, standard deviation of its noise)
    cap : float
        Row weights are min(1, cap / k).
    linked : Linked
        Two-way tables of which only scores are known; a block in `pairs` is left out.
    """
    rng = np.random.default_rng(_PANEL_SEED)
    rows_per_patient = max(law.mean, 0.5) if domain.visit else 1.0
    size = int(np.clip(PANEL_ROWS / rows_per_patient, 2_000, 20_000))
    values = tuple(count_values(domain.count_starts, domain.max_visits, law.p)) if domain.visit else ()
    chain = Chain(domain, law.p, cap, (), (), values)
    counts = chain.draw_counts(size, rng)
    static = np.zeros((size, len(domain.static)), dtype=np.int64)
    panel = Panel(domain, static, np.zeros((int(counts.sum()), len(domain.visit)), dtype=np.int64), counts)
    tilt = tilt_of(counts, cap)
    steps: list[Step] = []
    for position in range(len(domain.static)):
        var = Var("static", position)
        parents = _parents(panel, var, "patient", pairs, centres, set())
        scored, moments = _moments(panel, var, "patient", pairs, linked, one_way, np.ones(size), set(), {}, lags=False)
        targets = Targets(
            centres[var],
            one_way[var],
            tuple(p for _, p in parents),
            tilt if var in tilted else None,
            tilted.get(var),
            allowed_cells(panel, var, rules, "patient", None),
            moments,
        )
        model = fit(targets, np.ones(size), iterations=80)
        bases = tuple(basis for _, basis in scored)
        step = Step(var, model, tuple(v for v, _ in parents), var in tilted, tuple(v for v, _ in scored), bases)
        steps.append(step)
        codes = [codes_of(panel, parent, "patient") for parent in step.looks_at]
        static[:, position] = step.draw(codes, tilt, rng, size, targets.allowed)
    chain = replace(chain, static=tuple(steps))
    if not domain.visit or not len(panel.visit):
        return chain
    weights = np.repeat(np.minimum(1.0, cap / np.maximum(counts, 1)), counts)
    known_past = {
        b: _no_more_than_lag(panel, b, c, pairs, linked, one_way, weights)
        for b, c in linked.covariance.items()
        if b.left is not None and b.left.kind == "past"
    }
    linked = replace(linked, covariance={**linked.covariance, **known_past})
    wide = {b.left: len(c) for b, c in known_past.items() if b.left is not None}
    drawn = effects(counts, sum(wide.values()), rng)
    edges = np.cumsum([0, *wide.values()])
    own = {v: drawn[:, a:b] for v, a, b in zip(wide, edges, edges[1:], strict=False)}
    moving: dict[Var, Step] = {}
    lagged = any(block.left is not None and block.left.kind == "lag" for block in [*pairs, *linked.covariance])
    order = drawing_order(domain)
    done: set[Var] = set()
    for var in order:
        moving[var] = _solve(
            panel, var, pairs, centres, one_way, weights, done, rules, linked, own, lags=False, start=None
        )
        done.add(var)
        now = replace(chain, visit=tuple(moving[v] for v in order if v in done))
        if var == time_var(domain) and linked.same is not None:
            chain = replace(chain, regular=_regularity(now, panel, linked.same, rules, rng))
            now = replace(now, regular=chain.regular)
        now.draw_column(panel, var, rng, rules, own)
    chain = replace(chain, visit=tuple(moving[v] for v in order))
    without = dict(moving)
    linked = _calibrated(panel, linked, known_past, one_way)
    for number in range(PASSES if lagged else 0):
        for at, var in enumerate(order):
            if var == time_var(domain):
                continue
            start = moving[var].model if number else None
            moving[var] = _solve(
                panel,
                var,
                pairs,
                centres,
                one_way,
                weights,
                set(order[:at]),
                rules,
                linked,
                own,
                lags=True,
                start=start,
                without=without[var],
            )
            chain = replace(chain, visit=tuple(moving[v] for v in order))
            # In the first pass the next column is solved on visits that already move like the ones before it: on
            # visits that do not, what the columns ask for together may be impossible.
            if number == 0 or at == len(order) - 1:
                chain.draw_visits(panel, rng, rules, own)
        linked = _calibrated(panel, linked, known_past, one_way)
    return chain


def _no_more_than_lag(
    panel: Panel,
    block: Block,
    own: Floats,
    pairs: Mapping[Block, tuple[Floats, float]],
    linked: Linked,
    one_way: Mapping[Var, Floats],
    weights: Floats,
) -> Floats:
    """Bound what stays with a patient by how neighbouring visits move together, where their table was measured."""
    var = block.right
    lag = Var("lag", var.position)
    measured = pairs.get(Block("visit", var, lag))
    if measured is None:
        return own
    score = linked.of(var) - one_way[var] @ linked.of(var)
    score = score / np.sqrt(np.maximum(one_way[var] @ score**2, 1e-9))
    share = float(weights @ (codes_of(panel, lag, "visit") >= 0)) / max(float(weights.sum()), 1e-12)
    most = np.einsum("as,ab,bs->s", score, measured[0], score) / max(share, 1e-3)
    return np.diag(np.minimum(own.diagonal(), np.maximum(most, 0.0)))


def _calibrated(panel: Panel, linked: Linked, goals: Mapping[Block, Floats], one_way: Mapping[Var, Floats]) -> Linked:
    """Move the size of the random effects by what the simulated visits lack of the released correlations.

    Static columns, other columns and the visit before explain part of what stays with a patient.
    """
    sizes = dict(linked.covariance)
    for block, goal in goals.items():
        score = linked.of(block.right) - one_way[block.right] @ linked.of(block.right)
        score = score / np.sqrt(np.maximum(one_way[block.right] @ score**2, 1e-9))
        lacks = goal.diagonal() - past_correlation(panel, score, block.right.position)
        sizes[block] = np.diag(np.clip(sizes[block].diagonal() + CALIBRATION * lacks, 0.0, MOST_OWN))
    return replace(linked, covariance=sizes)


def _parents(
    panel: Panel,
    var: Var,
    level: str,
    pairs: Mapping[Block, tuple[Floats, float]],
    centres: Centres,
    drawn: set[Var],
    *,
    lags: bool = True,
) -> list[tuple[Var, Parent]]:
    """Return the released two-way tables in which `var` is the column drawn later."""
    found = []
    for block, (table, deviation) in pairs.items():
        if block.level != level or block.left is None:
            continue
        left, right, interaction = block.left, block.right, table
        if left == var and right in drawn:
            left, right, interaction = right, left, table.T
        if right != var or (left.kind == "visit" and left not in drawn) or (left.kind == "lag" and not lags):
            continue
        parent = Parent(codes_of(panel, left, level), centre_of(centres, left), interaction, deviation**2 * SLACK)
        found.append((left, parent))
    return found


# The tables were already shrunk towards independence; this only keeps the equations solvable.
SLACK = 0.1


def _solve(
    panel: Panel,
    var: Var,
    pairs: Mapping[Block, tuple[Floats, float]],
    centres: Centres,
    one_way: Mapping[Var, Floats],
    weights: Floats,
    drawn: set[Var],
    rules: Sequence[RowRule],
    linked: Linked,
    own: Mapping[Var, Floats],
    *,
    lags: bool,
    start: Conditional | None,
    without: Step | None = None,
) -> Step:
    parents = _parents(panel, var, "visit", pairs, centres, drawn, lags=lags)
    if var == time_var(panel.domain):
        allowed = allowed_times(panel, var, rules)
    else:
        allowed = allowed_cells(panel, var, [r for r in rules if lags or r.parent.kind != "lag"], "visit", None)
    scored, moments = _moments(panel, var, "visit", pairs, linked, one_way, weights, drawn, own, lags=lags)
    parts = tuple(p for _, p in parents)
    opening, at_opening = None, None
    if lags and any(v.kind == "lag" for v in [*(v for v, _ in parents), *(v for v, _ in scored)]):
        # First visits have logits of their own and are distributed as without looking back: a chain that is only right
        # on average over first and later visits drifts where values persist.
        first = codes_of(panel, Var("lag", var.position), "visit") < 0
        opening = first.astype(np.float64)
        rows = np.flatnonzero(first)
        assert without is not None
        codes = [codes_of(panel, v, "visit")[rows] for v in without.looks_at]
        p = without.probabilities(codes, len(rows), None if allowed is None else allowed[rows])
        w = weights[rows] / weights.sum()
        at_opening = w @ p
    targets = Targets(centres[var], one_way[var], parts, opening, at_opening, allowed, moments)
    model = fit(targets, weights, start=start, iterations=ITERATIONS)
    bases = tuple(basis for _, basis in scored)
    return Step(var, model, tuple(v for v, _ in parents), opening is not None, tuple(v for v, _ in scored), bases)


def _moments(
    panel: Panel,
    var: Var,
    level: str,
    pairs: Mapping[Block, tuple[Floats, float]],
    linked: Linked,
    one_way: Mapping[Var, Floats],
    weights: Floats,
    drawn: set[Var],
    own: Mapping[Var, Floats],
    *,
    lags: bool,
) -> tuple[list[tuple[Var, Floats]], Moments | None]:
    """Return the columns whose scores are known to move with `var`, centred on the panel, and the targets."""
    found: list[tuple[Var, Floats]] = []
    scores, goals, slacks = [], [], []
    w = weights / weights.sum()
    right_scores = linked.of(var) - one_way[var] @ linked.of(var) if var in linked.basis else np.zeros((0, 0))
    for block, table in linked.covariance.items():
        if block.level != level or block.left is None or block in pairs:
            continue
        left, right, covariance, variance = block.left, block.right, table, linked.variance[block]
        if left == var and right in drawn:
            left, right, covariance, variance = right, left, table.T, variance.T
        if right != var or (left.kind == "visit" and left not in drawn) or (left.kind == "lag" and not lags):
            continue
        if left.kind == "past":
            found.append((left, linked.of(left)))
            scores.append(own[left][panel.of_visit])
            # a patient's own part explains this much of the variance, so it moves with the score by its root
            goals.append(
                np.diag(np.sqrt(np.clip(covariance.diagonal(), 0.0, 1.0))) * np.sqrt(one_way[var] @ right_scores**2)
            )
            slacks.append(variance * SLACK)
            continue
        codes = codes_of(panel, left, level)
        here = codes >= 0
        share = float(w @ here)
        if share <= 0 or not covariance.any():
            continue
        raw = linked.of(left)
        basis = raw - (w * here) @ raw[np.maximum(codes, 0)] / share
        found.append((left, basis))
        scores.append(basis[np.maximum(codes, 0)] * here[:, None])
        # no more than the scores can move together: their deviations here may be smaller than where they were released
        most = np.outer(np.sqrt(w @ scores[-1] ** 2 / share), np.sqrt(one_way[var] @ right_scores**2))
        goals.append(np.clip(covariance, -LARGEST * most, LARGEST * most) * share)
        slacks.append(variance * SLACK)
    if not found:
        return [], None
    joined = Moments(np.concatenate(scores, axis=1), right_scores, np.concatenate(goals), np.concatenate(slacks))
    return found, joined


def _regularity(
    chain: Chain, panel: Panel, same: tuple[float, float], rules: Sequence[RowRule], rng: np.random.Generator
) -> float:
    """Return the share of patients seen at regular intervals: its posterior mean, all shares being as likely before."""
    time = time_var(chain.domain)
    assert time is not None
    shares = []
    for regular in (0.0, 1.0):
        replace(chain, regular=regular).draw_column(panel, time, rng, rules, {})
        shares.append(share_of_same(panel, time.position))
    if shares[1] >= shares[0]:
        return 0.0
    grid = np.linspace(0, 1, 41)
    miss = (shares[0] + grid * (shares[1] - shares[0]) - same[0]) / max(same[1], 1e-3)
    likely = np.exp(-0.5 * (miss**2 - (miss**2).min()))
    return float(likely @ grid / likely.sum())
