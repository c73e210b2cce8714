"""Patients drawn one after another: number of visits, static columns, then visit by visit.

Every column is a maximum-entropy conditional (`confide.synthesis.conditional`) given columns drawn before it and, for
what stays with a patient, a random effect. How the parameters are found stands in `confide.synthesis.chain_fit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.errors import RunError
from confide.synthesis.base import RowRule
from confide.synthesis.conditional import Conditional, draw_rows, probabilities
from confide.synthesis.contributions import Var, codes_of
from confide.synthesis.domain import Domain, Floats, Ints, Panel
from confide.synthesis.followup import times_within
from confide.synthesis.history import effects


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

    @property
    def effects(self) -> int:
        """How many random effects of a patient the column looks at."""
        own = Var("past", self.var.position)
        return self.bases[self.scored.index(own)].shape[1] if own in self.scored else 0

    def draw(
        self,
        codes: Sequence[Any],
        tilt: Floats | None,
        rng: np.random.Generator,
        rows: int,
        allowed: npt.NDArray[np.bool_] | None,
    ) -> Ints:
        """Draw a value a row; `codes` are those of `looks_at` (for all visits before: the scores themselves)."""
        parents, scored = codes[: len(self.parents)], codes[len(self.parents) :]
        scores = join_scores(self.bases, scored, rows) if self.scored else None
        return self.model.draw(parents, tilt if self.tilted else None, rng, rows, allowed, scores)

    def probabilities(self, codes: Sequence[Any], rows: int, allowed: npt.NDArray[np.bool_] | None) -> Floats:
        """Return the probabilities of every row's cells; `codes` are those of `looks_at`."""
        parents, scored = codes[: len(self.parents)], codes[len(self.parents) :]
        scores = join_scores(self.bases, scored, rows) if self.scored else None
        return probabilities(self.model.logits(parents, None, rows, scores), allowed)


def join_scores(bases: Sequence[Floats], codes: Sequence[Any], rows: int) -> Floats:
    """Return the scores of several columns side by side; 0 where a code is -1 (no previous visit)."""
    parts = [
        code if code.ndim == 2 else basis[np.maximum(code, 0)] * (code >= 0)[:, None]
        for basis, code in zip(bases, codes, strict=True)
    ]
    return np.concatenate(parts, axis=1) if parts else np.zeros((rows, 0))


@dataclass(frozen=True, eq=False)
class Chain:
    """The generator of the default method; see the module's description."""

    domain: Domain
    count: Floats
    cap: float
    static: tuple[Step, ...]
    visit: tuple[Step, ...]
    values: tuple[tuple[Ints, Floats], ...] = field(default=())
    regular: float = 0.0

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients with their visits."""
        counts = self.draw_counts(patients, rng)
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
        self.draw_visits(panel, rng, rules)
        return panel

    def draw_counts(self, patients: int, rng: np.random.Generator) -> Ints:
        """Draw the number of visits of every patient."""
        if not self.domain.visit:
            return np.zeros(patients, dtype=np.int64)
        bins = draw_rows(np.broadcast_to(self.count, (patients, len(self.count))), rng)
        counts = np.zeros(patients, dtype=np.int64)
        for number, (values, p) in enumerate(self.values):
            here = np.flatnonzero(bins == number)
            counts[here] = values[draw_rows(np.broadcast_to(p, (len(here), len(p))), rng)]
        return counts

    def draw_visits(
        self, panel: Panel, rng: np.random.Generator, rules: Sequence[RowRule], own: Mapping[Var, Floats] | None = None
    ) -> None:
        """Fill in the visits of a panel whose static columns are there; `own` holds the random effects, if drawn."""
        if not len(panel.visit):
            return
        steps = list(self.visit)
        if steps and self.domain.time is not None and steps[0].var == time_var(self.domain):
            first = steps.pop(0)
            codes = [codes_of(panel, parent, "visit") for parent in first.looks_at]
            allowed = allowed_times(panel, first.var, rules)
            p = first.probabilities(codes, len(panel.visit), allowed)
            times = spread_times(panel, p, draw_rows(p, rng, codes), self.regular, rng)
            # draws of one patient share all parents, so putting them in order changes no table
            panel.visit[:, first.var.position] = times[np.lexsort((times, panel.of_visit))]
        lagged = any(parent.kind == "lag" for step in steps for parent in step.looks_at) or any(
            rule.parent.kind == "lag" for rule in rules
        )
        own = own_effects(steps, panel.counts, rng) if own is None else own
        if not lagged:
            rows = np.arange(len(panel.visit))
            self._draw(panel, steps, rows, None, rng, rules, own)
            return
        order = np.argsort(-panel.counts, kind="stable")
        active = panel.counts[order]
        for visit in range(int(panel.counts.max())):
            here = order[: int(np.searchsorted(-active, -visit, side="left"))]
            rows = panel.starts[here] + visit
            self._draw(panel, steps, rows, None if visit == 0 else rows - 1, rng, rules, own)

    def draw_column(
        self, panel: Panel, var: Var, rng: np.random.Generator, rules: Sequence[RowRule], own: Mapping[Var, Floats]
    ) -> None:
        """Draw one visit column of a panel whose earlier columns are there, without looking at previous visits."""
        step = next(step for step in self.visit if step.var == var)
        still = [rule for rule in rules if rule.parent.kind != "lag"]
        if var == time_var(self.domain):
            replace(self, visit=(step,)).draw_visits(panel, rng, still, {})
        else:
            self._draw(panel, [step], np.arange(len(panel.visit)), None, rng, still, own)

    def _draw(
        self,
        panel: Panel,
        steps: Sequence[Step],
        rows: Ints,
        previous: Ints | None,
        rng: np.random.Generator,
        rules: Sequence[RowRule],
        own: Mapping[Var, Floats],
    ) -> None:
        owner = panel.of_visit[rows] if len(rows) != len(panel.visit) else panel.of_visit
        known: dict[Var, Ints] = {}
        for step in steps:
            for parent in step.looks_at:
                if parent.kind in ("static", "count") and parent not in known:
                    known[parent] = codes_of(panel, parent, "patient")[owner]
        for step in steps:
            codes: list[Any] = [
                own[parent][owner] if parent in own else _at(panel, parent, rows, previous, known)
                for parent in step.looks_at
            ]
            allowed = allowed_cells(panel, step.var, rules, "visit", (rows, owner, previous))
            opening = np.full(len(rows), float(previous is None))
            panel.visit[rows, step.var.position] = step.draw(codes, opening, rng, len(rows), allowed)


def own_effects(steps: Sequence[Step], counts: Ints, rng: np.random.Generator) -> dict[Var, Floats]:
    """Draw what is the patients' own, for every column that looks at it."""
    wide = {Var("past", step.var.position): step.effects for step in steps if step.effects}
    drawn = effects(counts, sum(wide.values()), rng)
    edges = np.cumsum([0, *wide.values()])
    return {var: drawn[:, a:b] for var, a, b in zip(wide, edges, edges[1:], strict=False)}


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


def allowed_times(panel: Panel, var: Var, rules: Sequence[RowRule]) -> npt.NDArray[np.bool_] | None:
    """Return which times each visit may have: within the follow-up, unless a rule speaks against it."""
    declared = allowed_cells(panel, var, [rule for rule in rules if rule.parent.kind != "lag"], "visit", None)
    within = times_within(panel)
    if within is None or declared is None:
        return declared if within is None else within
    both = within & declared
    return np.asarray(np.where(both.any(axis=1, keepdims=True), both, declared), dtype=np.bool_)


def spread_times(panel: Panel, p: Floats, times: Ints, regular: float, rng: np.random.Generator) -> Ints:
    """Redraw the times of a share of patients, who are seen at regular intervals, evenly over what is likely for them.

    Every visit still has the probabilities it had: one patient's uniform numbers are (0, 1, 2, ... + U) over how many.
    """
    open_ = (p > 0).sum(1) > 1
    count = np.bincount(panel.of_visit, open_, panel.patients)
    chosen = (rng.random(panel.patients) < regular)[panel.of_visit] & open_
    shift = rng.random(panel.patients)[panel.of_visit]
    rank = np.cumsum(open_) - open_
    rank = rank - np.repeat(rank[panel.starts[:-1][panel.counts > 0]], panel.counts[panel.counts > 0])
    u = ((rank + shift) / np.maximum(count, 1)[panel.of_visit])[chosen]
    edges = np.cumsum(p[chosen], axis=1)
    spread = times.copy()
    spread[chosen] = (u[:, None] * edges[:, -1:] > edges[:, :-1]).sum(1)
    return spread


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
