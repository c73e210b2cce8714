"""Ways in which one person could have counted twice, or tipped a choice, found by review and kept closed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from training_oracle import small_plan

from confide.mechanisms import SecureNoise
from confide.training import ContributorDataset, EngineOptions, PrivateRun
from confide.training.engine import ClippingEngine
from confide.training.engine.sums import ClipAndSum
from confide.training.methods.temperature import brier


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_that_reuses_its_buffers_never_adds_a_sum_to_itself(dtype):
    buffer = torch.zeros(3, dtype=dtype)
    sums = ClipAndSum([torch.nn.Parameter(torch.zeros(3, dtype=dtype))])
    for value in (1.0, 10.0, 100.0):
        sums.keep()
        buffer.fill_(value)  # as the replay of a recorded step does
        sums.add_sums([buffer], torch.ones(1), torch.ones(1))
    np.testing.assert_allclose(sums.take().gradients[0], 111.0)


@pytest.mark.parametrize("logits", [np.array([8.0, -8.0, 0.0]), np.array([[9.0, 0.0], [0.0, 9.0], [1.0, 1.0]])])
def test_a_label_outside_the_classes_has_a_score_like_any_other(logits):
    score = brier(logits, np.array([255, -7, 2]))
    assert ((score >= 0) & (score <= 1)).all()


@pytest.mark.parametrize("noise", ["secure", SecureNoise()], ids=["name", "source"])
def test_secure_noise_stands_on_sums_in_float64(noise):
    model = torch.nn.Linear(3, 1)
    run = PrivateRun(
        model,
        lambda out, y: out.square().mean(1),
        torch.optim.SGD(model.parameters(), lr=0.1),
        small_plan("individual"),
        ContributorDataset(TensorDataset(torch.randn(8, 3), torch.zeros(8)), contributors=list("aabbccdd")),
        noise=noise,
        options=EngineOptions(engine="fast"),
    )
    assert type(run.engine) is ClippingEngine  # its sums are float64; the fast one adds in float32
