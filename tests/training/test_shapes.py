"""Shapes of compiled steps: physical batches are about equally large and share a few steps, in resumed runs too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_whole import TRACE, finish, make_run
from torch import nn
from torch.utils.data import TensorDataset
from training_oracle import ZeroNoise, squared

import confide
from confide.training import ContributorDataset, EngineOptions, PrivateRun
from confide.training.engine.chunks import chunks
from confide.training.engine.fast.whole import bucket


def test_draws_of_many_sizes_need_few_shapes():
    run = make_run(strategy="individual", epsilon=3.0, steps=30, **TRACE)
    finish(run)
    sizes = set(run.result().internal["entries"]) - {0}
    assert run._taking.whole.step.compilations < len(sizes)
    assert len({bucket(n) for n in range(1, 1025)}) <= 30
    assert all(n <= bucket(n) <= max(8, 1.26 * n) for n in range(1, 5000))


@pytest.mark.parametrize(("physical", "largest"), [(64, 9), (1024, 13)])
def test_ragged_batches_share_a_handful_of_compiled_steps_with_little_idle(physical, largest):
    whole = make_run(physical_batch=physical, **TRACE)
    whole.rehearse()
    whole, random = whole._taking.whole, np.random.default_rng(0)
    made, ratios = set(), []
    for _ in range(300):
        units = np.repeat(np.arange(n := random.poisson(160)), random.integers(1, largest + 1, n))
        for chunk in chunks(units, physical):
            real, count = len(chunk.rows), len(chunk.members)
            rows, most = whole.room(real, count, None)
            assert real <= rows <= physical and count <= most <= rows
            made.add((rows, most))
            ratios.append(rows / real)
    assert len(made) <= 10 and np.mean(ratios) < 1.25
    whole.forget()
    assert whole.room(5, 5, None) == (8, 8), "steps that were let go of are not counted on"
    assert whole.room(6, 2, 3) == (24, 8), "units of three entries have a step of their own"
    whole.engine.limit(16)
    assert whole.room(6, 2, 3) == (15, 5), "what no longer fits into memory is not taken"


def test_a_run_that_goes_on_takes_its_batches_through_the_steps_it_had(tmp_path):
    """Padding tells in the last bit, and what a batch is padded to has to do with the batches before it."""
    settings = {"strategy": "individual", "epsilon": 3.0, "steps": 30, "checkpoint_every": 10, **TRACE}
    want = finish(whole := make_run(checkpoint=tmp_path / "whole", **settings))
    run = make_run(checkpoint=tmp_path / "cut", **settings)
    for part in run:
        if run.steps_done == 15:
            break
        run.take(part)
    again = make_run(checkpoint=tmp_path / "cut", resume=True, **settings)
    assert again.steps_done == 10 and again._taking.rooms and again._taking.rooms <= whole._taking.rooms
    assert torch.equal(finish(again), want) and again._taking.rooms == whole._taking.rooms


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=60), size=st.integers(1, 40), single=st.booleans())
def test_physical_batches_are_of_about_equal_size(sizes, size, single):
    units = np.repeat(np.arange(len(sizes)), sizes)
    parts = list(chunks(units, size, single=single))
    assert np.concatenate([part.rows for part in parts]).tolist() == list(range(len(units)))
    assert max(len(part.rows) for part in parts) <= size
    if not single and max(sizes) == 1:
        found = [len(part.rows) for part in parts]
        assert len(found) == -(-len(units) // size) and max(found) - min(found) <= len(found)


def test_contributors_with_equally_many_entries_go_through_a_step_of_their_own():
    """Its units are plain reshapes, padding is units of its own, and the model learned is the same."""
    torch.manual_seed(0)
    ids = [f"c{i}" for i in np.repeat(np.arange(30), 3)]
    data = ContributorDataset(TensorDataset(torch.randn(90, 3), torch.randn(90)), ids)
    plan = confide.plan({3: 30}, epsilon=50.0, delta=1e-5, noise_multiplier=0.8, steps=8, strategy="contributor")
    states, ways = [], []
    for options in ({"engine": "exact"}, TRACE, {**TRACE, "physical_batch": 7}):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        run = PrivateRun(
            model, squared, torch.optim.SGD(model.parameters(), lr=0.1), plan, data, run_key=bytes(32),
            noise=ZeroNoise(), options=EngineOptions(**options),
        )  # fmt: skip
        states.append(finish(run))
        step = None if run._taking.whole is None else run._taking.whole.step
        ways.append(None if step is None else {key[0] for key in step._made})
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(states[0], states[2], rtol=1e-4, atol=2e-6)
    assert ways[1:] == [{3}, {3}]


def test_the_trial_of_tracing_leaves_random_numbers_and_weights_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    data = ContributorDataset(TensorDataset(torch.randn(90, 3), torch.randn(90)), [f"c{i // 3}" for i in range(90)])
    plan = confide.plan({3: 30}, epsilon=50.0, delta=1e-5, noise_multiplier=0.8, steps=2, strategy="contributor")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = PrivateRun(
        model, squared, optimizer, plan, data, run_key=bytes(32), noise=ZeroNoise(), options=EngineOptions(**TRACE)
    )
    before, weights = torch.get_rng_state(), [value.detach().clone() for value in model.parameters()]
    run._rehearse_in_words()
    assert run._taking.traced and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
