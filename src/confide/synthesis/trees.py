"""Flat baselines: every visit a row of its own, joined with the static columns; independence and a spanning tree (MST).

These are what other tools offer, made sound for patients: rows carry the weight min(1, cap / k), so that a patient with
all visits moves a table by at most `cap`. They know nothing of order: each synthetic patient has one visit.

References
----------
McKenna, Miklau and Sheldon, "Winning the NIST contest", JPC 2021 (MST): one-way tables, a maximum spanning tree chosen
under noise, two-way tables of its edges. Here the tree is chosen from one release of all strengths on the 1/k table
(Gaussian noise for the Euclidean sensitivity of the whole vector), and consistency along the tree is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from confide.errors import InputError
from confide.synthesis.base import Measurement, NoisyModel, RowRule, Synthesizer
from confide.synthesis.conditional import draw_rows
from confide.synthesis.contributions import Block, Patients, Var, batch_sum, block_size, cells_of, name_of, split
from confide.synthesis.domain import Domain, Floats, Ints, Panel
from confide.synthesis.estimates import project_to_simplex
from confide.synthesis.meter import Meter

SHARE_PATIENTS = 0.01


def fit_to_margins(table: Floats, p: Floats, q: Floats, *, iterations: int = 200) -> Floats:
    """Return the table with the given margins closest in relative entropy (iterative proportional fitting)."""
    fitted = np.maximum(table, 1e-12)
    for _ in range(iterations):
        fitted *= (p / np.maximum(fitted.sum(1), 1e-300))[:, None]
        fitted *= q / np.maximum(fitted.sum(0), 1e-300)
    return np.asarray(fitted, dtype=np.float64)


def maximum_spanning_tree(nodes: int, edges: Sequence[tuple[int, int]], weight: Floats) -> list[tuple[int, int]]:
    """Return the edges of a maximum spanning tree (Kruskal)."""
    group = list(range(nodes))
    tree = []
    for at in np.argsort(-weight, kind="stable"):
        a, b = edges[int(at)]
        if group[a] != group[b]:
            old, new = group[b], group[a]
            group = [new if g == old else g for g in group]
            tree.append((a, b))
    return tree


@dataclass(frozen=True, eq=False)
class Tree:
    """A directed tree of conditional tables over all columns."""

    domain: Domain
    variables: tuple[Var, ...]
    order: tuple[tuple[int, int | None, Floats], ...]

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients with one visit each; rules between columns are not supported and refused."""
        if rules:
            raise InputError(
                "this baseline cannot keep plausibility rules",
                expected="the method 'patient-unit' for a study with rules",
                remedy='set method.name = "patient-unit", or leave the rules out',
            )
        codes: dict[int, Ints] = {}
        for node, parent, table in self.order:
            if parent is None:
                codes[node] = draw_rows(np.broadcast_to(table, (patients, len(table))), rng)
            else:
                codes[node] = draw_rows(table[codes[parent]], rng, [codes[parent]])
        static = np.zeros((patients, len(self.domain.static)), dtype=np.int64)
        visit = np.zeros((patients if self.domain.visit else 0, len(self.domain.visit)), dtype=np.int64)
        for node, var in enumerate(self.variables):
            (static if var.kind == "static" else visit)[:, var.position] = codes[node]
        counts = np.full(patients, 1 if self.domain.visit else 0, dtype=np.int64)
        return Panel(self.domain, static, visit, counts)


@dataclass(frozen=True)
class FlatTree(Synthesizer):
    """Independence (``edges=False``) or a spanning tree over the flattened table.

    Attributes
    ----------
    edges : bool
    cap : float
        Public: a patient's rows together count as at most this many; 1 is the estimand "per patient".
    """

    edges: bool = True
    cap: float = 1.0
    name: str = "mst"

    def fit(
        self, panel: Patients, meter: Meter, *, scale: Floats | None = None, rules: Sequence[RowRule] = ()
    ) -> NoisyModel:
        """Measure one-way tables, choose a tree, measure its edges; see `Synthesizer.fit`."""
        if not self.cap >= 1:
            raise InputError(f"cap is {self.cap}", expected="at least 1 row per patient")
        domain = panel.domain
        level = "visit" if domain.visit else "patient"
        variables = [Var("static", i) for i in range(len(domain.static))]
        variables += [Var("visit", i) for i in range(len(domain.visit))]
        count = np.array([panel.patients if scale is None else scale.sum()], dtype=np.float64)
        patients = float(meter.gaussian("number of patients", count, sensitivity=1.0, share=SHARE_PATIENTS)[0])
        patients = max(patients, 1.0)
        rest = meter.left * (1 - 1e-9)

        def weight(counts: Ints) -> Floats:
            return np.asarray(np.minimum(1.0, self.cap / np.maximum(counts, 1)), dtype=np.float64)

        def one_over_k(counts: Ints) -> Floats:
            return np.asarray(1.0 / np.maximum(counts, 1), dtype=np.float64)

        measured: list[Measurement] = []
        zero = {var: np.zeros(cells_of(domain, var)) for var in variables}
        singles = [Block(level, var) for var in variables]
        bound = self.cap * math.sqrt(len(singles))
        share = rest * (1 / 3 if self.edges else 1.0)
        exact = batch_sum(panel, singles, zero, clip=bound, weight=weight, scale=scale)
        noisy = split(domain, singles, meter.gaussian("one-way tables", exact, sensitivity=bound, share=share))
        mass = max(float(np.mean([part.sum() for part in noisy])), 1.0)
        deviation = meter.deviation(bound, share) / mass
        p = []
        for var, part in zip(variables, noisy, strict=True):
            p.append(project_to_simplex(part / mass))
            measured.append(Measurement((name_of(domain, var),), level, part / mass, deviation, p[-1]))
        order: list[tuple[int, int | None, Floats]] = [(node, None, p[node]) for node in range(len(variables))]
        if self.edges and len(variables) > 1:
            pairs = [(a, b) for a in range(len(variables)) for b in range(a + 1, len(variables))]
            tree = self._choose(panel, meter, variables, pairs, p, one_over_k, scale, share, level)
            blocks = [Block(level, variables[b], variables[a]) for a, b in tree]
            bound = self.cap * math.sqrt(len(blocks))
            exact = batch_sum(panel, blocks, zero, clip=bound, weight=weight, scale=scale)
            last = meter.left * (1 - 1e-9)
            noisy = split(domain, blocks, meter.gaussian("two-way tables", exact, sensitivity=bound, share=last))
            deviation = meter.deviation(bound, last) / mass
            tables = {}
            for (a, b), block, part in zip(tree, blocks, noisy, strict=True):
                shares = part / mass
                flat = project_to_simplex(shares).reshape(len(p[a]), len(p[b]))
                tables[a, b] = fit_to_margins(flat, p[a], p[b])
                assert block.left is not None
                names = (name_of(domain, block.left), name_of(domain, block.right))
                measured.append(Measurement(names, level, shares.reshape(flat.shape), deviation, tables[a, b]))
            order = directed(p, tables)
        return NoisyModel(
            self.name,
            domain,
            patients,
            Tree(domain, tuple(variables), tuple(order)),
            tuple(measured),
            tuple(meter.parts),
            tuple(rules),
        )

    def _choose(
        self,
        panel: Patients,
        meter: Meter,
        variables: Sequence[Var],
        pairs: Sequence[tuple[int, int]],
        p: Sequence[Floats],
        weight: object,
        scale: Floats | None,
        share: float,
        level: str,
    ) -> list[tuple[int, int]]:
        assert callable(weight)
        centres = dict(zip(variables, p, strict=True))
        blocks = [Block(level, variables[b], variables[a]) for a, b in pairs]
        clip = math.sqrt(sum((1 - float(p[a] @ p[a])) * (1 - float(p[b] @ p[b])) for a, b in pairs)) or 1.0
        exact = batch_sum(panel, blocks, centres, clip=clip, weight=weight, scale=scale)
        norms = np.array([float(np.linalg.norm(part)) for part in split(panel.domain, blocks, exact)])
        noisy = meter.gaussian("strength of two-way tables", norms, sensitivity=clip, share=share)
        cells = np.array([block_size(panel.domain, block) for block in blocks])
        return maximum_spanning_tree(len(variables), pairs, noisy * np.sqrt(cells))


def directed(p: Sequence[Floats], tables: dict[tuple[int, int], Floats]) -> list[tuple[int, int | None, Floats]]:
    """Turn an undirected tree of tables into conditionals, parents before children."""
    order: list[tuple[int, int | None, Floats]] = []
    seen: set[int] = set()
    for root in range(len(p)):
        if root in seen:
            continue
        order.append((root, None, p[root]))
        seen.add(root)
        queue = [root]
        while queue:
            node = queue.pop(0)
            for (a, b), table in tables.items():
                if node in (a, b) and (a not in seen or b not in seen):
                    child, joint = (b, table) if node == a else (a, table.T)
                    order.append((child, node, joint / np.maximum(joint.sum(1, keepdims=True), 1e-300)))
                    seen.add(child)
                    queue.append(child)
    return order
