"""Memory that runs out and devices that fail, wherever in a step: the same result, or words and a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from training_oracle import ZeroNoise, small_plan, squared

from confide.errors import InputError, RunError
from confide.mechanisms import SecureNoise
from confide.training import ContributorDataset, EngineOptions, PrivateRun, Ranks, ShardedRun

COUNTS = [1, 5, 2, 3, 5, 1, 2, 4]
IDS = [f"c{i}" for i, k in enumerate(COUNTS) for _ in range(k)]
LARGE = EngineOptions(physical_batch=64)


class Rows(Dataset):
    """Entries that may be read at most `most` at a time."""

    def __init__(self, most=1000):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(len(IDS), 3, generator=generator)
        self.y, self.most = torch.randn(len(IDS), generator=generator), most

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]

    def __getitems__(self, where):
        if len(where) > self.most:
            raise MemoryError
        return [self[i] for i in where]


def run_of(most=1000, options=LARGE, admitted=None, steps=6, **settings):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    plan = small_plan("contributor", {1: 2, 2: 2, 3: 1, 4: 1, 5: 2}, epsilon=50.0, steps=steps)
    make = settings.pop("make", PrivateRun)
    return make(model, squared, torch.optim.SGD(model.parameters(), lr=0.1), plan,
                ContributorDataset(Rows(most), IDS), run_key=None if settings.get("resume") else bytes(32),
                noise=settings.pop("noise", None) or ZeroNoise(), options=options, admitted=admitted,
                **settings)  # fmt: skip


def finish(run):
    for batch in run:
        run.take(batch)
    return torch.cat([value.flatten() for value in run.result().state_dict.values()])


def own_loop(run):
    for batch in run:
        run.step(run.loss(run.model(batch.inputs), batch.targets))
    return torch.cat([value.flatten() for value in run.result().state_dict.values()])


@pytest.fixture(scope="module")
def want():
    return finish(run_of())


class Greedy(torch.autograd.Function):
    """Asks for more memory than any machine has in the backward pass of more than four entries."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        if len(grad) > 4:
            torch.empty(len(grad) << 54)
        return grad


def greedy(outputs, targets):
    if len(targets) > 4:
        torch.empty(len(targets) << 54)
    return squared(outputs, targets)


@pytest.mark.parametrize(
    ("options", "loss", "most", "loop"),
    [
        (LARGE, greedy, 1000, finish),
        (LARGE, squared, 4, finish),
        (LARGE, squared, 4, own_loop),
        (LARGE, lambda out, y: squared(Greedy.apply(out), y), 1000, own_loop),
        (EngineOptions(engine="fast", compile="trace", physical_batch=64), greedy, 1000, finish),
    ],
    ids=["the allocator of the CPU", "reading entries", "reading entries, own loop", "backward, own loop", "tracing"],
)
def test_memory_that_runs_out_anywhere_in_a_pass_halves_the_batch(options, loss, most, loop, want):
    run = run_of(most, options)
    run.rehearse()
    run.rehearse = lambda: None
    run.loss = loss
    if run._taking.whole is not None:
        run._taking.whole.step.loss = loss
    with pytest.warns(RuntimeWarning, match="out of memory: from now on at most"):
        found = loop(run)
    assert run.engine.physical_batch <= 4
    if run._taking.whole is not None:
        assert run._taking.whole.step.compilations <= 4, "steps of batches that did not fit are still held"
    torch.testing.assert_close(found, want, rtol=1e-4, atol=2e-6)


def test_what_no_smaller_batch_can_mend_is_said():
    run = run_of()
    run.optimizer.register_step_pre_hook(lambda *_: torch.empty(1 << 58))
    with pytest.raises(RunError, match="memory ran out") as caught:
        finish(run)
    assert "smaller model" in str(caught.value)
    run = run_of()
    run.loss = lambda out, y: squared(out, y) * torch.empty(1 << 58).sum()
    with pytest.raises(RunError, match="memory ran out"):
        finish(run)
    run = run_of()
    run.optimizer.register_step_pre_hook(lambda *_: [][0].bad)
    with pytest.raises(IndexError):
        finish(run)


def test_a_device_that_fails_outside_of_a_pass_leaves_a_checkpoint_too(tmp_path, want):
    run = run_of(checkpoint=tmp_path / "c", checkpoint_every=2)

    def fail(*_):
        if run.steps_done == 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")

    run.optimizer.register_step_pre_hook(fail)
    with pytest.raises(RunError, match="the device failed") as caught:
        finish(run)
    assert "--resume" in str(caught.value)
    again = run_of(checkpoint=tmp_path / "c", resume=True)
    assert again.steps_done == 2
    torch.testing.assert_close(finish(again), want)


def test_the_stated_arithmetic_tells_nothing_about_who_was_there():
    """A person with more entries than a physical batch holds goes layer by layer, all others go compiled."""
    options = EngineOptions(engine="fast", compile="trace", physical_batch=4)
    everybody, few = run_of(options=options), run_of(options=options, admitted=np.array(COUNTS) < 5)
    nobody = run_of(options=options, admitted=np.zeros(len(COUNTS), dtype=bool))
    for run in (everybody, few, nobody):
        finish(run)
    assert list(everybody._taking.ways) != list(few._taking.ways)
    assert everybody.arithmetic() == few.arithmetic() == nobody.arithmetic()
    assert "compiled steps: float32" in nobody.arithmetic() and "others: float32" in nobody.arithmetic()


def test_the_arithmetic_of_steps_before_a_resume_is_stated_too(tmp_path):
    def stop(done, _steps):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(run_of(checkpoint=tmp_path / "c", checkpoint_every=1, progress=stop))
    same = run_of(checkpoint=tmp_path / "c", resume=True)
    other = run_of(options=EngineOptions(engine="exact"), checkpoint=tmp_path / "c", resume=True)
    finish(other)
    assert "resumed with" not in same.arithmetic()
    assert (
        "3.8e-06" in other.arithmetic()
        and "; resumed with: float32, clip weights shrunk by 4.8e-07" in other.arithmetic()
    )


@pytest.mark.parametrize("noise", ["secure", SecureNoise()], ids=["name", "source"])
def test_secure_noise_is_not_put_on_the_float32_sums_of_shards(noise):
    with pytest.raises(InputError, match="float64") as caught:
        run_of(make=ShardedRun, noise=noise, ranks=Ranks())
    assert "without shards" in str(caught.value)


def test_internal_figures_say_which_engine_ran_the_model_and_why():
    def described(model, options):
        run = PrivateRun(model, squared, torch.optim.SGD(model.parameters(), lr=0.1), run_of().plan,
                         ContributorDataset(Rows(), IDS), noise=ZeroNoise(), options=options)  # fmt: skip
        finish(run)
        return run.result().internal["engine"]

    class Looks(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * (1.0 if float(x.detach().sum()) < 1e9 else 2.0)

    fast, trace = EngineOptions(engine="fast"), EngineOptions(engine="fast", compile="trace")
    plain, normed = nn.Linear(3, 1), nn.utils.parametrizations.weight_norm(nn.Linear(3, 1))
    assert described(plain, EngineOptions(engine="exact")) == "exact engine, layer by layer"
    assert described(plain, fast) == "fast engine, layer by layer"
    assert described(plain, trace) == "fast engine, whole steps compiled"
    found = described(normed, fast)
    assert found.startswith("exact engine, layer by layer: parametrizations.weight.original0 is used in a way")
    assert "one backward row for each unit" in found
    with pytest.warns(RuntimeWarning, match="steps are not compiled"):
        assert described(Looks(nn.Linear(3, 1)), trace).startswith("fast engine, layer by layer: it cannot be")
