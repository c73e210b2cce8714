"""A conditional spline flow learnt with one clipped gradient a patient (Lee, Kim, Jeong and Ro, AAAI 2022).

Every coded value is spread evenly over its cell's share of the unit interval (shares as released) and sent through the
normal quantile function, so that each column alone is standard normal and the untrained flow is independence. Two flows
of rational-quadratic spline couplings (zuko) are learnt together: one for a patient's number of visits and static
columns, one for a visit given these and the visit before. The conditioner of a flow is one network shared by all its
couplings, which is told the number of the coupling: the paper's way to few parameters, hence less noise. Of the paper's
two finer clipping schemes none is used: a patient's whole gradient is clipped once, here as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from confide.errors import InputError
from confide.synthesis.base import NoisyModel, RowRule, Synthesizer
from confide.synthesis.contributions import Var, codes_of
from confide.synthesis.domain import Domain, Floats, Ints, Panel
from confide.synthesis.first import first_look
from confide.synthesis.meter import Meter
from confide.synthesis.neural import PUBLIC_SEED, learn, window, zuko_or_error
from confide.synthesis.rules import count_values

if TYPE_CHECKING:
    from torch import Tensor

SHARE_PATIENTS, SHARE_FIRST = 0.02, 0.3
BOUND = 5.0
SPLINE_BINS = 6
# Fractional parts of multiples of these spread values evenly over their cells without a random number.
_SPREAD = (0.7548776662466927, 0.5698402909980532, 0.6180339887498949)


@dataclass(frozen=True, eq=False)
class Scales:
    """Released shares of every column as intervals of the normal scale."""

    variables: tuple[Var, ...]
    edges: tuple[Floats, ...]

    @classmethod
    def of(cls, variables: Sequence[Var], shares: dict[Var, Floats]) -> Scales:
        """Build from released one-way tables."""
        edges = []
        for var in variables:
            p = np.maximum(shares[var], 1e-4)
            edges.append(np.concatenate([[0.0], np.cumsum(p / p.sum())[:-1], [1.0]]))
        return cls(tuple(variables), tuple(edges))

    def to_normal(self, codes: Ints, spread: Floats) -> Floats:
        """Return normal scores; a code of -1 (no previous visit) becomes 0."""
        out = np.zeros(codes.shape)
        for at, edges in enumerate(self.edges):
            code = np.maximum(codes[..., at], 0)
            u = edges[code] + spread[..., at] * (edges[code + 1] - edges[code])
            z = np.clip(special.ndtri(np.clip(u, 1e-6, 1 - 1e-6)), -4.5, 4.5)
            out[..., at] = np.where(codes[..., at] < 0, 0.0, z)
        return out

    def to_codes(self, normal: Floats) -> Ints:
        """Return the cells that normal scores fall into."""
        u = special.ndtr(normal)
        found = [np.searchsorted(e[1:-1], u[:, at], side="right") for at, e in enumerate(self.edges)]
        return np.column_stack(found).astype(np.int64) if found else np.zeros((len(normal), 0), dtype=np.int64)


def _spread(rows: Ints, columns: int, step: int) -> Floats:
    """Return places within cells in (0, 1): a function of the row, the column and the step."""
    a, b, c = _SPREAD
    start = np.mod(rows * a + step * c, 1.0)[..., None]
    return np.asarray(np.mod(start + np.arange(columns) * b, 1.0) * 0.98 + 0.01, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class FlowGenerator:
    """Draws patients from the learnt flows."""

    domain: Domain
    network: Any
    patient: Scales
    visit: Scales
    count: Floats

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients; rules between columns are not supported and refused."""
        if rules:
            raise InputError(
                "this method cannot keep plausibility rules",
                expected="the method 'patient-unit' for a study with rules",
                remedy='set method.name = "patient-unit", or leave the rules out',
            )
        domain, visits = self.domain, bool(self.domain.visit)
        drawn = self.network.draw(0, rng.standard_normal((patients, len(self.patient.edges))), None)
        codes = self.patient.to_codes(drawn)
        counts = np.zeros(patients, dtype=np.int64)
        if visits:
            for cell, (values, p) in enumerate(count_values(domain.count_starts, domain.max_visits, self.count)):
                here = np.flatnonzero(codes[:, 0] == cell)
                counts[here] = rng.choice(values, len(here), p=p)
        static = codes[:, int(visits) :]
        moving = np.zeros((int(counts.sum()), len(domain.visit)), dtype=np.int64)
        panel = Panel(domain, static, moving, counts)
        before = np.zeros((patients, len(domain.visit)))
        time = [column.name for column in domain.visit].index(domain.time) if domain.time is not None else None
        for number in range(int(counts.max(initial=0))):
            who = np.flatnonzero(counts > number)
            opening = np.full((len(who), 1), float(number == 0))
            context = np.concatenate([drawn[who], before[who], opening], axis=1)
            z = self.network.draw(1, rng.standard_normal((len(who), len(domain.visit))), context)
            rows = panel.starts[:-1][who] + number
            moving[rows] = self.visit.to_codes(z)
            if time is not None and number:
                # a time before the last visit's is moved up to it
                moving[rows, time] = np.maximum(moving[rows, time], moving[rows - 1, time])
            before[who] = z
        return panel


@dataclass(frozen=True)
class SplineFlow(Synthesizer):
    """The flows above.

    Attributes
    ----------
    hidden : int
        Width of the conditioner.
    blocks : int
        Couplings of each flow.
    steps, clip, rate
        As for `Autoregressive`.
    """

    hidden: int = 16
    blocks: int = 4
    steps: int = 60
    clip: float = 1.0
    rate: float = 0.02
    name: str = "flow"

    def fit(
        self, panel: Panel, meter: Meter, *, scale: Floats | None = None, rules: Sequence[RowRule] = ()
    ) -> NoisyModel:
        """Release one-way tables, then learn the flows; see `Synthesizer.fit`."""
        if min(self.hidden, self.blocks, self.steps) < 1 or self.clip <= 0:
            raise InputError("hidden, blocks, steps and clip must be positive")
        zuko_or_error()
        domain = panel.domain
        first = first_look(panel, meter, patients_share=SHARE_PATIENTS, tables_share=SHARE_FIRST, scale=scale)
        fixed = [var for var in first.shares if var.kind != "visit"]
        moving = [Var("visit", i) for i in range(len(domain.visit))]
        patient, visit = Scales.of(fixed, dict(first.shares)), Scales.of(moving, dict(first.shares))
        network = _network(len(fixed), len(moving), self.hidden, self.blocks)
        tensors = _Tensors(panel, patient, visit)
        learn(
            network,
            tensors,
            meter,
            name="gradient",
            patients=first.patients,
            clip=self.clip,
            share=meter.left * (1 - 1e-9),
            steps=self.steps,
            rate=self.rate,
            scale=scale,
        )
        count = first.shares[Var("count")] if domain.visit else np.ones(1)
        generator = FlowGenerator(domain, network.eval(), patient, visit, count)
        parts = tuple(meter.parts)
        return NoisyModel(self.name, domain, first.patients, generator, first.measured, parts, tuple(rules))


class _Tensors:
    """Normal scores of a step: patients, visits, visits before, whether a visit is the first, weights."""

    def __init__(self, panel: Panel, patient: Scales, visit: Scales) -> None:
        self.panel, self.patient, self.visit = panel, patient, visit
        codes = [codes_of(panel, var, "patient") for var in patient.variables]
        self.fixed = np.column_stack(codes) if codes else np.zeros((panel.patients, 0), dtype=np.int64)
        self.place = np.arange(len(panel.visit)) - panel.starts[panel.of_visit]

    def __call__(self, step: int) -> tuple[Any, ...]:
        import torch

        def tensor(values: Floats) -> Any:
            return torch.from_numpy(np.asarray(values, dtype=np.float32))

        panel = self.panel
        fixed = self.patient.to_normal(self.fixed, _spread(panel.keys, self.fixed.shape[1], step))
        d = len(panel.domain.visit)
        if not d or not len(panel.visit):
            empty = np.zeros((panel.patients, 1, d))
            return tensor(fixed), tensor(empty), tensor(empty), tensor(empty[..., :1]), tensor(empty[..., 0:0].sum(2))
        rows, weights = window(panel, step)
        number = panel.keys[:, None] * 1009 + self.place[rows]
        now = self.visit.to_normal(panel.visit[rows], _spread(number, d, step))
        opening = self.place[rows] == 0
        earlier = np.where(opening[..., None], -1, panel.visit[np.maximum(rows - 1, 0)])
        before = self.visit.to_normal(earlier, _spread(number - 1, d, step))
        return tensor(fixed), tensor(now), tensor(before), tensor(opening[..., None]), tensor(weights)


def _network(fixed: int, moving: int, hidden: int, blocks: int) -> Any:
    import torch
    import zuko
    from torch import nn

    shape = 3 * SPLINE_BINS - 1

    class Flow(nn.Module):
        """Spline couplings with one conditioner for all blocks."""

        def __init__(self, features: int, context: int) -> None:
            super().__init__()
            self.features = features
            self.first = nn.Linear(features + context + blocks, hidden)
            self.last = nn.Linear(hidden, features * shape)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

        def coupling(self, block: int, x: Tensor, context: Tensor | None) -> tuple[Any, Tensor]:
            kept = ((torch.arange(self.features) + block) % 2).to(x.dtype)
            if self.features == 1:
                kept = torch.zeros(1, dtype=x.dtype)
            number = torch.zeros((*x.shape[:-1], blocks), dtype=x.dtype)
            number[..., block] = 1.0
            parts = [x * kept, number] if context is None else [x * kept, number, context]
            raw = self.last(torch.tanh(self.first(torch.cat(parts, -1))))
            raw = raw.reshape(*x.shape, shape)
            widths, heights, slopes = raw.split([SPLINE_BINS, SPLINE_BINS, SPLINE_BINS - 1], -1)
            return zuko.transforms.MonotonicRQSTransform(widths, heights, slopes, bound=BOUND), kept

        def loss(self, x: Tensor, context: Tensor | None) -> Tensor:
            total = torch.zeros(x.shape[:-1], dtype=x.dtype)
            for block in range(blocks):
                spline, kept = self.coupling(block, x, context)
                y, slope = spline.call_and_ladj(x)
                total = total + ((1 - kept) * slope).sum(-1)
                x = kept * x + (1 - kept) * y
            return 0.5 * (x**2).sum(-1) - total

        def inverse(self, x: Tensor, context: Tensor | None) -> Tensor:
            for block in reversed(range(blocks)):
                spline, kept = self.coupling(block, x, context)
                x = kept * x + (1 - kept) * spline.inv(x)
            return x

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng([]):
                torch.manual_seed(PUBLIC_SEED)
                self.patient = Flow(fixed, 0)
                self.visit = Flow(moving, fixed + moving + 1) if moving else None

        def forward(self, x: Tensor, now: Tensor, before: Tensor, opening: Tensor, weights: Tensor) -> Tensor:
            total: Tensor = self.patient.loss(x, None)
            if self.visit is None:
                return total
            around = torch.cat([x[:, None, :].expand(-1, now.shape[1], -1), before, opening], -1)
            return total + (weights * self.visit.loss(now, around)).sum(-1)

        def draw(self, which: int, noise: Floats, context: Floats | None) -> Floats:
            flow = self.patient if which == 0 else self.visit
            assert flow is not None
            with torch.no_grad():
                around = None if context is None else torch.from_numpy(context).float()
                values = flow.inverse(torch.from_numpy(noise).float(), around)
            return np.asarray(values.double().numpy(), dtype=np.float64)

    return Network()
