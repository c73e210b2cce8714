"""AIM on the flattened table: one wide row a patient, two-way tables chosen one after another.

McKenna, Mullins, Sheldon and Miklau, "AIM: an adaptive and iterative mechanism for differentially private synthetic
data", VLDB 2022, Algorithm 1, with the workload of all two-way tables: all one-way tables, then rounds of (choose the
table that the model gets most wrong, beyond the noise of measuring it; measure it; fit again), with the budget of a
round doubled in standard deviation whenever a round changed less than its own noise. The privacy unit is a patient,
since a patient is one row (`confide.synthesis.slots`). Budget is kept in squared mu (Gaussian differential privacy)
instead of zCDP, the choice charged as `confide.synthesis.meter.choice_epsilon` says.

Flattening loses visits after the first K and, at small budgets, the relation between neighbouring visits: this is a
baseline, not a recommendation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from confide.errors import InputError
from confide.synthesis.base import Measurement, NoisyModel, RowRule, Synthesizer
from confide.synthesis.domain import Floats, Panel
from confide.synthesis.graphical import Clique, GraphicalModel, Table, cells
from confide.synthesis.meter import Meter
from confide.synthesis.slots import Slots, one_hot_gram

SHARE_PATIENTS = 0.02
ROUNDS_PER_COLUMN = 16
SELECTION = 0.1
NOISE_L1 = math.sqrt(2 / math.pi)
# The model's own two-way tables are read from a sample of this size: public, and free.
SAMPLE = 8_000
_PUBLIC_SEED = 11


@dataclass(frozen=True, eq=False)
class SlotGenerator:
    """Draws wide rows from a graphical model and cuts them into visits."""

    slots: Slots
    model: GraphicalModel

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients; rules between columns are not supported and refused."""
        if rules:
            raise InputError(
                "this baseline cannot keep plausibility rules",
                expected="the method 'patient-unit' for a study with rules",
                remedy='set method.name = "patient-unit", or leave the rules out',
            )
        return self.slots.panel(self.model.sample(patients, rng), rng)


@dataclass(frozen=True)
class FlatAIM(Synthesizer):
    """AIM over static columns and the first visits as slots.

    Attributes
    ----------
    visits : int
        K, the slots of a row.
    megabytes : float
        Limit on the size of the junction tree's tables.
    iterations : int
        Steps of mirror descent a round.
    """

    visits: int = 8
    megabytes: float = 8.0
    iterations: int = 60
    name: str = "aim"

    def fit(
        self, panel: Panel, meter: Meter, *, scale: Floats | None = None, rules: Sequence[RowRule] = ()
    ) -> NoisyModel:
        """Measure and choose until the budget is spent; see `Synthesizer.fit`."""
        if self.visits < 1 or self.megabytes <= 0:
            raise InputError("visits and megabytes of AIM must be positive", expected="for example 8 and 8")
        return _Run(panel, meter, self, scale, tuple(rules)).run()


class _Run:
    def __init__(
        self, panel: Panel, meter: Meter, options: FlatAIM, scale: Floats | None, rules: tuple[RowRule, ...]
    ) -> None:
        self.meter, self.options, self.rules = meter, options, rules
        self.slots = Slots(panel.domain, min(options.visits, panel.domain.max_visits) if panel.domain.visit else 0)
        self.sizes = self.slots.sizes
        self.edges = np.concatenate([[0], np.cumsum(self.sizes)])
        weights = np.ones(panel.patients) if scale is None else scale
        self.total = float(weights.sum())
        self.exact = one_hot_gram(self.slots.rows(panel), self.sizes, weights=weights)
        self.measured: list[Table] = []
        self.released: list[Measurement] = []

    def _block(self, gram: Floats, clique: Clique) -> Floats:
        a, b = clique[0], clique[-1]
        part = gram[self.edges[a] : self.edges[a + 1], self.edges[b] : self.edges[b + 1]]
        return np.asarray(part.diagonal() if len(clique) == 1 else part, dtype=np.float64)

    def _measure(self, clique: Clique, share: float) -> None:
        exact = self._block(self.exact, clique)
        names = tuple(self.slots.names[v] for v in clique)
        noisy = self.meter.gaussian(" x ".join(names), exact.ravel(), sensitivity=1.0, share=share)
        shares = noisy.reshape(exact.shape) / self.patients
        deviation = self.meter.deviation(1.0, share) / self.patients
        self.measured.append(Table(clique, shares, deviation))

    def run(self) -> NoisyModel:
        meter, d = self.meter, len(self.sizes)
        count = meter.gaussian("number of patients", np.array([self.total]), sensitivity=1.0, share=SHARE_PATIENTS)
        self.patients = max(float(count[0]), 1.0)
        whole = meter.left * (1 - 1e-9)
        measure = whole * (1 - SELECTION) / (ROUNDS_PER_COLUMN * d)
        select = whole * SELECTION / (ROUNDS_PER_COLUMN * d)
        for var in range(d):
            self._measure((var,), measure)
        model = GraphicalModel(self.sizes, [(v,) for v in range(d)])
        model.fit(self.measured, iterations=self.options.iterations)
        pairs: list[Clique] = [(a, b) for a in range(d) for b in range(a + 1, d)]
        size = np.array([self.sizes[a] * self.sizes[b] for a, b in pairs], dtype=np.float64)
        rng = np.random.default_rng(_PUBLIC_SEED)
        while pairs and meter.left > 1e-9:
            if meter.left < 2 * (measure + select):  # the last round takes what is left
                select = min(SELECTION * meter.left, meter.left) * (1 - 1e-9)
                measure = (meter.left - select) * (1 - 1e-9)
            clique = self._choose(model, pairs, size, measure, select, rng, whole)
            before = self._table(model, clique, rng)
            self._measure(clique, measure)
            wanted = {t.clique for t in self.measured}
            model = GraphicalModel(self.sizes, wanted, start=model)
            model.fit(self.measured, iterations=self.options.iterations)
            moved = float(np.abs(model.table(clique) - before).sum())
            if moved <= NOISE_L1 * self.measured[-1].deviation * before.size:
                measure, select = min(4 * measure, meter.left), min(4 * select, meter.left)
        model.fit(self.measured, iterations=4 * self.options.iterations)
        self.released = [
            Measurement(
                tuple(self.slots.names[v] for v in t.clique), "patient", t.values, t.deviation, model.table(t.clique)
            )
            for t in self.measured
        ]
        return NoisyModel(
            self.options.name,
            self.slots.domain,
            self.patients,
            SlotGenerator(self.slots, model),
            tuple(self.released),
            tuple(meter.parts),
            self.rules,
        )

    def _choose(
        self,
        model: GraphicalModel,
        pairs: list[Clique],
        size: Floats,
        measure: float,
        select: float,
        rng: np.random.Generator,
        whole: float,
    ) -> Clique:
        drawn = one_hot_gram(model.sample(SAMPLE, rng), self.sizes) * (self.patients / SAMPLE)
        gap = np.abs(self.exact - drawn)
        # sums over blocks of cells, all pairs at once
        sums = np.add.reduceat(np.add.reduceat(gap, self.edges[:-1], axis=0), self.edges[:-1], axis=1)
        deviation = self.meter.deviation(1.0, measure)
        scores = np.array([sums[a, b] for a, b in pairs]) - NOISE_L1 * deviation * size
        known = {t.clique for t in self.measured}
        spent = 1 - self.meter.left / max(whole, 1e-12)
        limit = max(spent, 0.05) * self.options.megabytes * 2**20 / 8
        inside = [set(clique) for clique in model.cliques]

        def allowed(candidate: int) -> bool:
            pair = pairs[candidate]
            if any(set(pair) <= clique for clique in inside):
                return True
            return cells(self.sizes, known | {pair}) <= limit

        # every score is a sum of absolute differences of one table, which one patient moves by at most 1
        choice = self.meter.choose("which table next", scores, sensitivity=1.0, share=select, allowed=allowed)
        return pairs[choice]

    def _table(self, model: GraphicalModel, clique: Clique, rng: np.random.Generator) -> Floats:
        if any(set(clique) <= set(other) for other in model.cliques):
            return model.table(clique)
        rows = model.sample(SAMPLE, rng)[:, list(clique)]
        flat = np.bincount(
            rows[:, 0] * self.sizes[clique[1]] + rows[:, 1], minlength=self.sizes[clique[0]] * self.sizes[clique[1]]
        )
        return np.asarray(flat.reshape(self.sizes[clique[0]], self.sizes[clique[1]]) / SAMPLE, dtype=np.float64)
