"""A small autoregressive network over a patient's sequence, one clipped gradient a patient.

Columns are drawn one after another: number of visits, static columns, then visit by visit. A column's logits are those
of its released one-way table plus a linear read-out of

    h = tanh(sum of embeddings of everything drawn before it that it may look at),

for a visit column the static columns, the number of visits, the visit before and the earlier columns of its own visit.
All parameters start at the independent model and are learnt together (`confide.synthesis.neural`): every patient, with
all visits, moves a step's sum by at most the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from confide.errors import InputError
from confide.synthesis.base import NoisyModel, RowRule, Synthesizer
from confide.synthesis.chain import allowed_cells, drawing_order, time_var
from confide.synthesis.conditional import draw_rows, probabilities
from confide.synthesis.contributions import Var, cells_of, codes_of
from confide.synthesis.domain import Domain, Floats, Ints, Panel
from confide.synthesis.first import first_look
from confide.synthesis.meter import Meter
from confide.synthesis.neural import PUBLIC_SEED, learn, torch_or_error, window
from confide.synthesis.rules import count_values

if TYPE_CHECKING:
    from torch import Tensor

SHARE_PATIENTS, SHARE_FIRST = 0.02, 0.3
Weights = dict[str, Floats]


def _names(domain: Domain) -> tuple[list[Var], list[Var]]:
    return [Var("count")] * bool(domain.visit) + [Var("static", i) for i in range(len(domain.static))], drawing_order(
        domain
    )


def _key(var: Var) -> str:
    return f"{var.kind}{var.position}"


@dataclass(frozen=True, eq=False)
class SequenceGenerator:
    """Draws patients from the learnt network; holds numpy arrays only."""

    domain: Domain
    weights: Weights
    base: dict[Var, Floats]

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients with their visits; rules are kept by leaving out what they forbid."""
        domain, (first, moving) = self.domain, _names(self.domain)
        hidden = np.tile(self.weights["start"], (patients, 1))
        counts = np.zeros(patients, dtype=np.int64)
        static = np.zeros((patients, len(domain.static)), dtype=np.int64)
        panel = Panel(domain, static, np.zeros((0, len(domain.visit)), dtype=np.int64), counts)
        drawn: dict[Var, Ints] = {}
        for var in first:
            allowed = None if var.kind == "count" else allowed_cells(panel, var, rules, "patient", None)
            drawn[var] = draw_rows(probabilities(self._logits(var, hidden), allowed), rng)
            hidden = hidden + self.weights["in " + _key(var)][drawn[var]]
            if var.kind == "static":
                static[:, var.position] = drawn[var]
        if not domain.visit:
            return panel
        law = count_values(domain.count_starts, domain.max_visits, probabilities(self.base[Var("count")][None])[0])
        for cell, (values, p) in enumerate(law):
            here = np.flatnonzero(drawn[Var("count")] == cell)
            counts[here] = values[draw_rows(np.broadcast_to(p, (len(here), len(p))), rng)]
        visits = np.zeros((int(counts.sum()), len(domain.visit)), dtype=np.int64)
        panel = Panel(domain, static, visits, counts)
        context = np.tile(self.weights["visit"], (patients, 1))
        for var in first:
            context = context + self.weights["context " + _key(var)][drawn[var]]
        for number in range(int(counts.max(initial=0))):
            who = np.flatnonzero(counts > number)
            rows = panel.starts[:-1][who] + number
            before = None if number == 0 else rows - 1
            state = context[who]
            if before is not None:
                for var in moving:
                    state = state + self.weights["lag " + _key(var)][visits[before, var.position]]
            else:
                state = state + self.weights["first"]
            for var in moving:
                logits = self._logits(var, state)
                if var == time_var(domain) and before is not None:
                    past = np.arange(logits.shape[1]) < visits[before, var.position][:, None]
                    logits = np.where(past, -np.inf, logits)
                allowed = allowed_cells(panel, var, rules, "visit", (rows, who, before))
                visits[rows, var.position] = draw_rows(probabilities(logits, allowed), rng)
                state = state + self.weights["now " + _key(var)][visits[rows, var.position]]
        return panel

    def _logits(self, var: Var, hidden: Floats) -> Floats:
        key = _key(var)
        out = np.tanh(hidden) @ self.weights["out " + key].T + self.weights["bias " + key]
        return np.asarray(self.base[var] + out, dtype=np.float64)


@dataclass(frozen=True)
class Autoregressive(Synthesizer):
    """The network above.

    Attributes
    ----------
    hidden : int
        Width.
    steps : int
    clip : float
        Norm of a patient's gradient.
    rate : float
        Learning rate of Adam.
    """

    hidden: int = 16
    steps: int = 60
    clip: float = 1.0
    rate: float = 0.03
    name: str = "autoregressive"

    def fit(
        self, panel: Panel, meter: Meter, *, scale: Floats | None = None, rules: Sequence[RowRule] = ()
    ) -> NoisyModel:
        """Release one-way tables, then learn dependences; see `Synthesizer.fit`."""
        if min(self.hidden, self.steps) < 1 or self.clip <= 0:
            raise InputError("hidden, steps and clip must be positive")
        torch_or_error()
        domain = panel.domain
        first = first_look(panel, meter, patients_share=SHARE_PATIENTS, tables_share=SHARE_FIRST, scale=scale)
        base = {var: np.log(np.maximum(p, 1e-4)) for var, p in first.shares.items()}
        network = _network(domain, base, self.hidden)
        tensors = _Tensors(panel)
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
        generator = SequenceGenerator(domain, network.arrays(), base)
        parts = tuple(meter.parts)
        return NoisyModel(self.name, domain, first.patients, generator, first.measured, parts, tuple(rules))


class _Tensors:
    """One-hot inputs of a step: first columns, visits and the visits before them, weights and whether one is first."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.first, self.moving = _names(panel.domain)
        self.fixed = self._one_hot([codes_of(panel, var, "patient") for var in self.first], self.first)
        self.lagged = [codes_of(panel, Var("lag", var.position), "visit") for var in self.moving]

    def _one_hot(self, codes: Sequence[Ints], variables: Sequence[Var]) -> Any:
        import torch

        if not variables:
            return torch.zeros((self.panel.patients, 0))
        domain = self.panel.domain
        parts = [c[..., None] == np.arange(cells_of(domain, v)) for c, v in zip(codes, variables, strict=True)]
        return torch.from_numpy(np.concatenate(parts, axis=-1).astype(np.float32))

    def __call__(self, step: int) -> tuple[Any, ...]:
        import torch

        if not self.moving or not len(self.panel.visit):
            empty = torch.zeros((self.panel.patients, 1, sum(cells_of(self.panel.domain, v) for v in self.moving)))
            none = torch.zeros((self.panel.patients, 1))
            return self.fixed, empty, empty, none, none
        rows, weights = window(self.panel, step)
        now = self._one_hot([self.panel.visit[rows, var.position] for var in self.moving], self.moving)
        before = self._one_hot([lag[rows] for lag in self.lagged], self.moving)
        opening = (self.lagged[0][rows] < 0).astype(np.float32)
        return self.fixed, now, before, torch.from_numpy(weights.astype(np.float32)), torch.from_numpy(opening)


def _network(domain: Domain, base: dict[Var, Floats], hidden: int) -> Any:
    import torch
    from torch import nn

    first, moving = _names(domain)

    def linear(cells: int) -> Any:
        return nn.Linear(cells, hidden, bias=False)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng([]):
                torch.manual_seed(PUBLIC_SEED)
                self.entry, self.context, self.lag, self.now = (
                    nn.ModuleList(linear(cells_of(domain, var)) for var in group)
                    for group in (first, first, moving, moving)
                )
                self.opening = linear(1)
                self.out = nn.ModuleList(nn.Linear(hidden, cells_of(domain, var)) for var in (*first, *moving))
                for path, value in self.named_parameters():
                    if path.startswith("out"):
                        nn.init.zeros_(value)
                    else:
                        nn.init.normal_(value, std=0.7)
                self.start: Tensor
                self.register_buffer("start", 0.3 * torch.randn(hidden))
            for var in (*first, *moving):
                self.register_buffer("base_" + _key(var), torch.from_numpy(base[var].astype(np.float32)))

        def forward(self, fixed: Tensor, now: Tensor, before: Tensor, weights: Tensor, opening: Tensor) -> Tensor:
            state = self.start.expand(len(fixed), -1)
            context = self.start.expand(len(fixed), -1)
            total = torch.zeros(len(fixed), dtype=fixed.dtype)
            at = 0
            for number, var in enumerate(first):
                one = fixed[:, at : at + cells_of(domain, var)]
                at += cells_of(domain, var)
                total = total + self._loss(number, var, state, one)
                state = state + self.entry[number](one)
                context = context + self.context[number](one)
            if not moving:
                return total
            run = context[:, None, :] + self.opening(opening[..., None])
            at = 0
            for number, var in enumerate(moving):
                run = run + self.lag[number](before[..., at : at + cells_of(domain, var)])
                at += cells_of(domain, var)
            at = 0
            for number, var in enumerate(moving):
                one = now[..., at : at + cells_of(domain, var)]
                at += cells_of(domain, var)
                total = total + (weights * self._loss(len(first) + number, var, run, one)).sum(1)
                if number + 1 < len(moving):
                    run = run + self.now[number](one)
            return total

        def _loss(self, number: int, var: Var, state: Tensor, one: Tensor) -> Tensor:
            base: Tensor = getattr(self, "base_" + _key(var))
            logits = base + self.out[number](torch.tanh(state))
            return -(one * torch.log_softmax(logits, -1)).sum(-1)

        def arrays(self) -> Weights:
            def plain(value: Any) -> Floats:
                return np.asarray(value.detach().double().numpy(), dtype=np.float64)

            found = {"start": plain(self.start), "visit": plain(self.start), "first": plain(self.opening.weight)[:, 0]}
            for number, var in enumerate(first):
                found["in " + _key(var)] = plain(self.entry[number].weight).T
                found["context " + _key(var)] = plain(self.context[number].weight).T
            for number, var in enumerate(moving):
                found["lag " + _key(var)] = plain(self.lag[number].weight).T
                found["now " + _key(var)] = plain(self.now[number].weight).T
            for layer, var in zip(self.out, (*first, *moving), strict=True):
                found["out " + _key(var)] = plain(layer.weight)
                found["bias " + _key(var)] = plain(layer.bias)
            return found

    return Network()
