"""Patients drawn one after another: number of visits, static columns, then visit by visit.

Every column is a maximum-entropy conditional (`confide.synthesis.conditional`) given columns drawn before it. Fitting
alternates between drawing a large panel from the current parameters and re-solving each column on that panel, so that
what comes out of the generator, pooled over visits, has the released tables; a chain fitted step by step without
looking at its own output drifts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from confide.errors import RunError
from confide.synthesis.base import RowRule
from confide.synthesis.conditional import Conditional, Moments, Parent, Targets, draw_rows, fit, probabilities
from confide.synthesis.contributions import Block, Centres, Var, centre_of, codes_of
from confide.synthesis.domain import Domain, Floats, Ints, Panel
from confide.synthesis.rules import CountLaw, count_values

PANEL_ROWS = 16_000
PASSES = 2
LARGEST = 0.95
ITERATIONS = 40
# The panel on which equations are solved is not a release; a fixed public seed keeps fits repeatable.
_PANEL_SEED = 7


@dataclass(frozen=True, eq=False)
class Step:
    """One column of the generator with the variables it is drawn from."""

    var: Var
    model: Conditional
    parents: tuple[Var, ...] = ()
    tilted: bool = False
    scored: tuple[Var, ...] = ()
    bases: tuple[Floats, ...] = ()

    @property
    def looks_at(self) -> tuple[Var, ...]:
        """Every variable that has to be known before this one is drawn."""
        return (*self.parents, *self.scored)

    def draw(
        self,
        codes: Sequence[Ints],
        tilt: Floats | None,
        rng: np.random.Generator,
        rows: int,
        allowed: npt.NDArray[np.bool_] | None,
    ) -> Ints:
        """Draw a value a row; `codes` are those of `looks_at`."""
        parents, scored = codes[: len(self.parents)], codes[len(self.parents) :]
        scores = join_scores(self.bases, scored, rows) if self.scored else None
        return self.model.draw(parents, tilt if self.tilted else None, rng, rows, allowed, scores)

    def probabilities(self, codes: Sequence[Ints], rows: int, allowed: npt.NDArray[np.bool_] | None) -> Floats:
        """Return the probabilities of every row's cells; `codes` are those of `looks_at`."""
        parents, scored = codes[: len(self.parents)], codes[len(self.parents) :]
        scores = join_scores(self.bases, scored, rows) if self.scored else None
        return probabilities(self.model.logits(parents, None, rows, scores), allowed)


def join_scores(bases: Sequence[Floats], codes: Sequence[Ints], rows: int) -> Floats:
    """Return the scores of several columns side by side; 0 where a code is -1 (no previous visit)."""
    parts = [basis[np.maximum(code, 0)] * (code >= 0)[:, None] for basis, code in zip(bases, codes, strict=True)]
    return np.concatenate(parts, axis=1) if parts else np.zeros((rows, 0))


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
    """

    basis: Mapping[Var, Floats]
    covariance: Mapping[Block, Floats]
    variance: Mapping[Block, Floats]

    def of(self, var: Var) -> Floats:
        """Return the scores of a variable; the previous visit's value has those of the value itself."""
        return self.basis[Var("visit", var.position) if var.kind == "lag" else var]


NOTHING = Linked({}, {}, {})


@dataclass(frozen=True, eq=False)
class Chain:
    """The generator of the default method; see the module's description."""

    domain: Domain
    count: Floats
    cap: float
    static: tuple[Step, ...]
    visit: tuple[Step, ...]
    values: tuple[tuple[Ints, Floats], ...] = field(default=())

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients with their visits."""
        counts = self._counts(patients, rng)
        static = np.zeros((patients, len(self.domain.static)), dtype=np.int64)
        panel = Panel(
            self.domain, static, np.zeros((int(counts.sum()), len(self.domain.visit)), dtype=np.int64), counts
        )
        tilt = tilt_of(counts, self.cap)
        for step in self.static:
            codes = [codes_of(panel, parent, "patient") for parent in step.looks_at]
            allowed = allowed_cells(panel, step.var, rules, "patient", None)
            # the array inside the panel is filled in place: later columns read it as their parent
            static[:, step.var.position] = step.draw(codes, tilt, rng, patients, allowed)
        self._visits(panel, rng, rules)
        return panel

    def _counts(self, patients: int, rng: np.random.Generator) -> Ints:
        if not self.domain.visit:
            return np.zeros(patients, dtype=np.int64)
        bins = draw_rows(np.broadcast_to(self.count, (patients, len(self.count))), rng)
        counts = np.zeros(patients, dtype=np.int64)
        for number, (values, p) in enumerate(self.values):
            here = np.flatnonzero(bins == number)
            counts[here] = values[draw_rows(np.broadcast_to(p, (len(here), len(p))), rng)]
        return counts

    def _visits(self, panel: Panel, rng: np.random.Generator, rules: Sequence[RowRule]) -> None:
        if not len(panel.visit):
            return
        steps = list(self.visit)
        if steps and self.domain.time is not None and steps[0].var == time_var(self.domain):
            first = steps.pop(0)
            codes = [codes_of(panel, parent, "visit") for parent in first.looks_at]
            allowed = allowed_cells(panel, first.var, rules, "visit", None)
            times = first.draw(codes, None, rng, len(panel.visit), allowed)
            # draws of one patient share all parents, so putting them in order changes no table
            panel.visit[:, first.var.position] = times[np.lexsort((times, panel.of_visit))]
        lagged = any(parent.kind == "lag" for step in steps for parent in step.looks_at) or any(
            rule.parent.kind == "lag" for rule in rules
        )
        if not lagged:
            rows = np.arange(len(panel.visit))
            self._draw(panel, steps, rows, None, rng, rules)
            return
        order = np.argsort(-panel.counts, kind="stable")
        active = panel.counts[order]
        for visit in range(int(panel.counts.max())):
            here = order[: int(np.searchsorted(-active, -visit, side="left"))]
            rows = panel.starts[here] + visit
            self._draw(panel, steps, rows, None if visit == 0 else rows - 1, rng, rules)

    def _visits_of(self, panel: Panel, var: Var, rng: np.random.Generator, rules: Sequence[RowRule]) -> None:
        """Draw one visit column of a panel whose earlier columns are there, without looking at previous visits."""
        step = next(step for step in self.visit if step.var == var)
        if var == time_var(self.domain):
            replace(self, visit=(step,))._visits(panel, rng, ())
        else:
            still = [rule for rule in rules if rule.parent.kind != "lag"]
            self._draw(panel, [step], np.arange(len(panel.visit)), None, rng, still)

    def _draw(
        self,
        panel: Panel,
        steps: Sequence[Step],
        rows: Ints,
        previous: Ints | None,
        rng: np.random.Generator,
        rules: Sequence[RowRule],
    ) -> None:
        owner = panel.of_visit[rows] if len(rows) != len(panel.visit) else panel.of_visit
        known: dict[Var, Ints] = {}
        for step in steps:
            for parent in step.looks_at:
                if parent.kind in ("static", "count") and parent not in known:
                    known[parent] = codes_of(panel, parent, "patient")[owner]
        for step in steps:
            codes = [_at(panel, parent, rows, previous, known) for parent in step.looks_at]
            allowed = allowed_cells(panel, step.var, rules, "visit", (rows, owner, previous))
            opening = np.full(len(rows), float(previous is None))
            panel.visit[rows, step.var.position] = step.draw(codes, opening, rng, len(rows), allowed)


def _at(panel: Panel, var: Var, rows: Ints, previous: Ints | None, known: Mapping[Var, Ints]) -> Ints:
    if var.kind == "visit":
        return np.asarray(panel.visit[rows, var.position], dtype=np.int64)
    if var.kind == "lag":
        if previous is None:
            return np.full(len(rows), -1, dtype=np.int64)
        return np.asarray(panel.visit[previous, var.position], dtype=np.int64)
    return known[var]


def allowed_cells(
    panel: Panel, var: Var, rules: Sequence[RowRule], level: str, at: tuple[Ints, Ints, Ints | None] | None
) -> npt.NDArray[np.bool_] | None:
    """Return which cells the rules leave open for `var` on the given rows, or None where no rule speaks of it."""
    mask: npt.NDArray[np.bool_] | None = None
    for rule in rules:
        if rule.child != var:
            continue
        if at is None:
            codes = codes_of(panel, rule.parent, level)
        elif rule.parent.kind in ("static", "count"):
            codes = codes_of(panel, rule.parent, "patient")[at[1]]
        else:
            codes = _at(panel, rule.parent, at[0], at[2], {})
        one = np.where((codes >= 0)[:, None], rule.allowed[codes], True)
        mask = one if mask is None else mask & one
    if mask is not None and not mask.any(axis=1).all():
        raise RunError(
            "the rules leave no value for a column",
            where=", ".join(rule.text for rule in rules if rule.child == var),
            expected="rules that can hold together",
            remedy="correct the rules of the study; the noisy model is not affected",
        )
    return mask


def time_var(domain: Domain) -> Var | None:
    """Return the time column as a variable."""
    if domain.time is None:
        return None
    return Var("visit", [column.name for column in domain.visit].index(domain.time))


def tilt_of(counts: Ints, cap: float) -> Floats:
    """Return each patient's weight in tables of visits, with mean 1."""
    weight = np.minimum(counts, cap).astype(np.float64)
    return weight / max(float(weight.mean()), 1e-9)


def drawing_order(domain: Domain) -> list[Var]:
    """Return the visit columns in the order they are drawn: time first, then as declared."""
    time = time_var(domain)
    rest = [Var("visit", i) for i in range(len(domain.visit)) if Var("visit", i) != time]
    return ([time] if time is not None else []) + rest


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
    counts = chain._counts(size, rng)
    static = np.zeros((size, len(domain.static)), dtype=np.int64)
    panel = Panel(domain, static, np.zeros((int(counts.sum()), len(domain.visit)), dtype=np.int64), counts)
    tilt = tilt_of(counts, cap)
    steps: list[Step] = []
    for position in range(len(domain.static)):
        var = Var("static", position)
        parents = _parents(panel, var, "patient", pairs, centres, set())
        scored, moments = _moments(panel, var, "patient", pairs, linked, one_way, np.ones(size), set(), lags=False)
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
    moving: dict[Var, Step] = {}
    lagged = any(block.left is not None and block.left.kind == "lag" for block in [*pairs, *linked.covariance])
    order = drawing_order(domain)
    done: set[Var] = set()
    for var in order:
        moving[var] = _solve(panel, var, pairs, centres, one_way, weights, done, rules, linked, lags=False, start=None)
        done.add(var)
        now = replace(chain, visit=tuple(moving[v] for v in order if v in done))
        now._visits_of(panel, var, rng, rules)
    chain = replace(chain, visit=tuple(moving[v] for v in order))
    without = dict(moving)
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
                lags=True,
                start=start,
                without=without[var],
            )
            chain = replace(chain, visit=tuple(moving[v] for v in order))
            # In the first pass the next column is solved on visits that already move like the ones before it: on
            # visits that do not, what the columns ask for together may be impossible.
            if number == 0 or at == len(order) - 1:
                chain._visits(panel, rng, rules)
    return chain


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
    *,
    lags: bool,
    start: Conditional | None,
    without: Step | None = None,
) -> Step:
    parents = _parents(panel, var, "visit", pairs, centres, drawn, lags=lags)
    allowed = allowed_cells(panel, var, [r for r in rules if lags or r.parent.kind != "lag"], "visit", None)
    scored, moments = _moments(panel, var, "visit", pairs, linked, one_way, weights, drawn, lags=lags)
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
