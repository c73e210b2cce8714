"""PATE-GAN (Jordon, Yoon and van der Schaar, ICLR 2019), rebuilt with a data-independent bound at patient level.

Patients are split among teachers by secret coins, once. Each teacher tells its own patients' visits from generated
ones. The student sees generated visits only, labelled by how many teachers call them real; the generator learns to
please the student. Removing a patient changes one teacher, so each count of votes moves by at most 1 and a batch of m
counts by at most sqrt(m): Gaussian noise for that is all that is spent. The original charges a data-dependent bound
that is private itself, and public versions of it resample data between teachers or scale with private minima and
maxima; here neither is done, and visits are coded by the declared domain.

What an honest bound leaves at small budgets is little more than one-way tables (from which the generator starts), so
this is a method to compare with, not to recommend. It knows nothing of order: each synthetic patient has one visit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from confide.errors import InputError
from confide.synthesis.base import NoisyModel, RowRule, Synthesizer
from confide.synthesis.conditional import draw_rows, probabilities
from confide.synthesis.contributions import Var, cells_of
from confide.synthesis.domain import Domain, Floats, Ints, Panel
from confide.synthesis.first import first_look
from confide.synthesis.meter import Meter
from confide.synthesis.neural import PUBLIC_SEED, torch_or_error

if TYPE_CHECKING:
    from torch import Tensor

SHARE_PATIENTS, SHARE_FIRST = 0.02, 0.3
NOISE_SIZE = 8
PATIENTS_A_TEACHER = 40
TEMPERATURE = 0.5


@dataclass(frozen=True, eq=False)
class RowGenerator:
    """Draws rows with the learnt generator; numpy arrays only."""

    domain: Domain
    layers: tuple[tuple[Floats, Floats], ...]
    base: Floats
    sizes: tuple[int, ...]

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients with one visit each; rules between columns are not supported and refused."""
        if rules:
            raise InputError(
                "this baseline cannot keep plausibility rules",
                expected="the method 'patient-unit' for a study with rules",
                remedy='set method.name = "patient-unit", or leave the rules out',
            )
        (w, b), (v, c) = self.layers
        logits = self.base + np.tanh(rng.standard_normal((patients, NOISE_SIZE)) @ w.T + b) @ v.T + c
        parts = np.split(logits, np.cumsum(self.sizes)[:-1], axis=1)
        codes = np.column_stack([draw_rows(probabilities(part), rng) for part in parts])
        d = len(self.domain.static)
        visits = bool(self.domain.visit)
        return Panel(
            self.domain,
            codes[:, :d],
            codes[:, d:] if visits else np.zeros((0, 0), dtype=np.int64),
            np.full(patients, int(visits), dtype=np.int64),
        )


@dataclass(frozen=True)
class PateGAN(Synthesizer):
    """PATE-GAN as above.

    Attributes
    ----------
    rounds : int
        Rounds of teachers, student, generator.
    queries : int
        Generated visits that are put to the vote in a round.
    hidden : int
        Width of teachers, student and generator.
    """

    rounds: int = 20
    queries: int = 16
    hidden: int = 16
    name: str = "pate-gan"

    def fit(
        self, panel: Panel, meter: Meter, *, scale: Floats | None = None, rules: Sequence[RowRule] = ()
    ) -> NoisyModel:
        """Release one-way tables, then play the rounds; see `Synthesizer.fit`."""
        if min(self.rounds, self.queries, self.hidden) < 1:
            raise InputError("rounds, queries and hidden must be at least 1")
        if scale is not None and bool((scale < 1).any()):
            raise InputError(
                "a vote cannot be scaled to a patient's own budget",
                expected='budget = "equal" with the method "pate-gan"',
                remedy="use another method, or give everybody the smallest budget",
            )
        torch_or_error()
        return _Game(panel, meter, self, tuple(rules)).run()


class _Game:
    def __init__(self, panel: Panel, meter: Meter, options: PateGAN, rules: tuple[RowRule, ...]) -> None:
        self.panel, self.meter, self.options, self.rules = panel, meter, options, rules
        domain = panel.domain
        self.variables = [Var("static", i) for i in range(len(domain.static))]
        self.variables += [Var("visit", i) for i in range(len(domain.visit))]
        self.sizes = tuple(cells_of(domain, var) for var in self.variables)

    def _real(self, teachers: int) -> list[Any]:
        """Return each teacher's rows; whose they are is a secret coin of the patient alone."""
        import torch

        panel, offset = self.panel, self.meter.coins("partition").integers(2**63, size=2).tolist()
        of_patient = np.array(
            [np.random.default_rng([*offset, key]).integers(teachers) for key in panel.keys.tolist()], dtype=np.int64
        )
        codes = panel.static
        owner = of_patient
        if panel.domain.visit:
            codes = np.concatenate([panel.static[panel.of_visit], panel.visit], axis=1)
            owner = of_patient[panel.of_visit]
        return [torch.from_numpy(self._one_hot(codes[owner == t])) for t in range(teachers)]

    def _one_hot(self, codes: Ints) -> Any:
        hot = np.zeros((len(codes), sum(self.sizes)), dtype=np.float32)
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)
        hot[np.arange(len(codes))[:, None], codes + starts] = 1.0
        return hot

    def run(self) -> NoisyModel:
        import torch
        from torch import nn

        meter, options = self.meter, self.options
        first = first_look(self.panel, meter, patients_share=SHARE_PATIENTS, tables_share=SHARE_FIRST)
        base = np.concatenate([np.log(np.maximum(first.shares[var], 1e-4)) for var in self.variables])
        number = int(np.clip(first.patients / PATIENTS_A_TEACHER, 5, 100))
        width, total = options.hidden, sum(self.sizes)
        with torch.random.fork_rng([]):
            torch.manual_seed(PUBLIC_SEED)
            judges = [nn.Sequential(nn.Linear(total, width), nn.Tanh(), nn.Linear(width, 1)) for _ in range(number)]
            student = nn.Sequential(nn.Linear(total, width), nn.Tanh(), nn.Linear(width, 1))
            generator = nn.Sequential(nn.Linear(NOISE_SIZE, width), nn.Tanh(), nn.Linear(width, total))
            for value in list(generator.parameters())[2:]:
                nn.init.zeros_(value)
        teachers = [_Judge(judge, 0.02) for judge in judges]
        pupil = _Judge(student, 0.02)
        adam = torch.optim.Adam(generator.parameters(), lr=0.002)
        real = self._real(number)
        public = torch.Generator().manual_seed(PUBLIC_SEED)
        start = torch.from_numpy(base.astype(np.float32))

        def fake(count: int) -> Tensor:
            logits = start + generator(torch.randn((count, NOISE_SIZE), generator=public))
            uniform = torch.rand(logits.shape, generator=public).clamp(1e-6, 1 - 1e-6)
            noisy = (logits - torch.log(-torch.log(uniform))) / TEMPERATURE
            return torch.cat([torch.softmax(part, -1) for part in noisy.split(list(self.sizes), -1)], -1)

        share = meter.left * (1 - 1e-9) / options.rounds
        seen, labels = [], []
        for turn in range(options.rounds):
            with torch.no_grad():
                against, asked = fake(64), fake(options.queries)
            votes = np.zeros(options.queries)
            for teacher, rows in zip(teachers, real, strict=True):
                if len(rows):
                    # a stretch of the teacher's own rows: which one depends on nobody else
                    at = (torch.arange(64) + 64 * turn) % len(rows)
                    teacher.learn(torch.cat([rows[at], against]), torch.cat([torch.ones(64), torch.zeros(64)]), 4)
                votes += teacher.says_real(asked)
            bound = math.sqrt(options.queries)
            noisy = meter.gaussian(f"votes of round {turn + 1}", votes, sensitivity=bound, share=share)
            seen.append(asked)
            labels.append(torch.from_numpy((noisy > number / 2).astype(np.float32)))
            pupil.learn(torch.cat(seen), torch.cat(labels), 10)
            for _ in range(3):
                adam.zero_grad()
                loss: Any = nn.functional.softplus(-student(fake(64))[:, 0]).mean()
                loss.backward()
                adam.step()
        layers = tuple(
            (_plain(layer.weight), _plain(layer.bias)) for layer in generator if isinstance(layer, nn.Linear)
        )
        made = RowGenerator(self.panel.domain, layers, base, self.sizes)
        return NoisyModel(
            options.name, self.panel.domain, first.patients, made, first.measured, tuple(meter.parts), self.rules
        )


def _plain(value: Any) -> Floats:
    return np.asarray(value.detach().double().numpy(), dtype=np.float64)


class _Judge:
    """A small network that says how real a row looks."""

    def __init__(self, network: Any, rate: float) -> None:
        import torch

        self.network = network
        self._adam = torch.optim.Adam(network.parameters(), lr=rate)

    def learn(self, rows: Tensor, labels: Tensor, steps: int) -> None:
        from torch import nn

        for _ in range(steps):
            self._adam.zero_grad()
            loss: Any = nn.functional.binary_cross_entropy_with_logits(self.network(rows)[:, 0], labels)
            loss.backward()
            self._adam.step()

    def says_real(self, rows: Tensor) -> Floats:
        import torch

        with torch.no_grad():
            return np.asarray((self.network(rows)[:, 0] > 0).double().numpy(), dtype=np.float64)
