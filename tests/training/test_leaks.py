"""Ways in which a careless loop, model or number type would leak, and does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from training_oracle import ZeroNoise, small_plan

from confide.errors import InputError
from confide.training import ContributorDataset, EngineOptions, PrivateRun
from confide.training.engine.sums import ClipAndSum
from confide.training.engine.units import Segments, UnitGradient


def people(n: int = 12) -> ContributorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=generator) * 100
    return ContributorDataset(TensorDataset(x, torch.zeros(n)), [f"p{i}" for i in range(n)])


def loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (out.squeeze(1) - target).square()


def run_of(**settings: object) -> PrivateRun:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    plan = small_plan("individual", {1: 12}, steps=2, noise_multiplier=1.0, epsilon=30.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = EngineOptions(physical_batch=2)
    return PrivateRun(
        model, loss, optimizer, plan, people(), run_key=bytes(32), noise=ZeroNoise(), options=options, **settings
    )


def drive(run: PrivateRun, breaks: int) -> list[np.ndarray]:
    seen: list[np.ndarray] = []
    run.optimizer.register_step_post_hook(
        lambda *_: seen.append(np.concatenate([p.grad.numpy().ravel() for p in run.model.parameters()]))
    )
    for _ in range(breaks):
        for batch in run:
            run.step(loss(run.model(batch.inputs), batch.targets))
            break
    for batch in run:
        run.step(loss(run.model(batch.inputs), batch.targets))
    return seen


def test_a_loop_left_in_the_middle_of_a_step_counts_nobody_twice() -> None:
    whole, broken = drive(run_of(), 0), drive(run_of(), 3)
    assert len(whole) == len(broken)
    for a, b in zip(whole, broken, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


class Counting(nn.Module):
    """Counts the entries that pass through: exact, and it would leave with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.layer(x)


def test_a_counting_buffer_is_refused() -> None:
    plan = small_plan("individual", {1: 12}, steps=2, noise_multiplier=1.0, epsilon=30.0)
    model = Counting()
    run = PrivateRun(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), plan, people())
    with pytest.raises(InputError, match="remembers data"):
        run.rehearse()


@pytest.mark.parametrize(
    ("dtype", "value", "size", "clip"),
    [
        (torch.float16, 6e4, 4000, 0.1),
        (torch.float16, 6e4, 4000, 1.0),
        (torch.bfloat16, 3e38, 1000, 1.0),
        (torch.float32, 3e38, 100_000, 1e-3),
    ],
)
def test_the_clip_holds_where_the_factor_is_subnormal(dtype: torch.dtype, value: float, size: int, clip: float) -> None:
    parameter = nn.Parameter(torch.zeros(size, dtype=dtype))
    gradient = UnitGradient(parameter, 1)
    segments = Segments(torch.zeros(1, dtype=torch.int64), 1)
    gradient.add(segments.groups[0].units, torch.full((1, size), value, dtype=dtype))
    sums = ClipAndSum([parameter])
    sums.add([gradient], torch.ones(1, dtype=torch.bool), torch.tensor([clip], dtype=torch.float64))
    norm = float(torch.linalg.vector_norm(sums.take().gradients[0]))
    assert 0.9 * clip < norm <= clip


def test_a_given_key_is_for_testing_only() -> None:
    assert run_of().testing_only
