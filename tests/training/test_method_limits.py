"""Limits of single methods: Langevin temperature, finite differences, norms of gradients under bias-aware steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from training_oracle import small_plan

from confide.errors import InputError
from confide.training import SGLD, BiasAware, ClippingEngine, ContributorDataset, Methods, fit, make_optimizer
from confide.training.methods import natural_temperature


def loss(out, y):
    return nn.functional.binary_cross_entropy_with_logits(out.squeeze(1), y, reduction="none") * 50


def test_the_finite_difference_approaches_the_gradient_of_the_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x, y, parameters = torch.randn(1, 4).double(), torch.ones(1).double(), list(model.parameters())

    def gradient():
        return torch.autograd.grad(loss(model(x), y).sum(), parameters, create_graph=True)

    g = gradient()
    norm = torch.stack([v.square().sum() for v in g]).sum().sqrt()
    exact = torch.cat([v.reshape(-1) for v in torch.autograd.grad(norm, parameters)])
    errors = []
    for radius in (0.1, 0.01, 0.001):
        start = nn.utils.parameters_to_vector(parameters).detach().clone()
        flat = torch.cat([v.reshape(-1) for v in g]).detach()
        with torch.no_grad():
            nn.utils.vector_to_parameters(start + radius * flat / flat.norm(), parameters)
        moved = torch.cat([v.reshape(-1) for v in gradient()]).detach()
        with torch.no_grad():
            nn.utils.vector_to_parameters(start, parameters)
        errors.append(float(((moved - flat) / radius - exact).norm() / exact.norm()))
    assert errors[0] < 0.3 and errors[1] < 0.2 * errors[0] and errors[2] < 0.2 * errors[1]


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_langevin_steps_have_the_variance_of_a_posterior_at_their_temperature(temperature):
    """A normal mean with known variance: the stationary variance is temperature x posterior variance."""
    torch.manual_seed(0)
    records, lr, sd = 100, 0.1, 0.05
    theta = nn.Parameter(torch.zeros(4000))
    optimizer = SGLD([theta], lr=lr, records=records, temperature=temperature)
    reached = natural_temperature(lr=lr, noise_variance=sd**2, records=records) if temperature is None else temperature
    draws = []
    for step in range(400):
        theta.grad = theta.detach() + sd * torch.randn(4000)  # mean loss theta^2 / 2, posterior variance 1 / records
        optimizer.inform(noise_variance=sd**2, seed=step)
        optimizer.step()
        if step >= 100:
            draws.append(theta.detach().clone())
    # the discretised chain's variance is larger by 1 / (1 - lr / 2)
    assert float(torch.stack(draws).var()) * records == pytest.approx(reached / (1 - lr / 2), rel=0.05)


def test_the_learning_rate_of_a_proper_posterior_is_the_published_one():
    """lr = 2 B^2 / (N sigma^2 C^2) has temperature 1; the usual rates have a far colder one."""
    records, batch, sigma, clip = 60_000, 512, 1.1, 1.0
    variance = (sigma * clip / batch) ** 2
    proper = 2 * batch**2 / (records * sigma**2 * clip**2)
    assert natural_temperature(lr=proper, noise_variance=variance, records=records) == pytest.approx(1.0)
    assert natural_temperature(lr=0.1, noise_variance=variance, records=records) == pytest.approx(0.014, rel=0.02)


def test_the_bias_of_a_clipped_mean_is_at_most_what_the_norms_exceed_the_clip_by():
    """|mean clip(g) - mean g| <= mean max(0, |g| - C), and both are zero where nothing is clipped."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x, y, everybody = torch.randn(9, 3), torch.rand(9).round(), np.arange(9)
    engine = ClippingEngine(model)

    def clipped_mean(clip):
        found = engine.clipped_sum(lambda rows: loss(model(x[rows]), y[rows]), everybody, np.ones(9), np.full(9, clip))
        return np.concatenate([np.asarray(g).reshape(-1) for g in found.gradients]) / 9, np.asarray(found.norms)

    whole, norms = clipped_mean(1e9)
    for clip in (1e8, 40.0, 10.0, 0.5):
        bias = float(np.linalg.norm(clipped_mean(clip)[0] - whole))
        excess = float(np.maximum(0, norms - clip).mean())
        assert bias <= excess * (1 + 1e-5) + 1e-6 and (excess > 0) == (bias > 1e-5)


def test_a_temperature_below_that_of_the_plan_is_refused_with_the_learning_rate_that_fits():
    optimizer = SGLD([nn.Parameter(torch.zeros(1))], lr=0.5, records=1000, temperature=1.0)
    optimizer.inform(noise_variance=0.01, seed=0)
    with pytest.raises(InputError, match=r"at most 0\.2"):
        optimizer.added(0.5)
    assert optimizer.added(0.2) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.slow
def test_bias_aware_minimisation_lowers_the_norms_of_gradients_at_about_the_same_loss():
    torch.manual_seed(0)
    x = torch.randn(600, 10)
    y = (x @ torch.randn(10) > 0).float()
    data = ContributorDataset(TensorDataset(x, y), [f"c{i}" for i in range(600)])
    plan = small_plan("contributor", {1: 600}, steps=150, noise_multiplier=1.0, clip_norm=0.3, epsilon=20.0)
    bce = nn.functional.binary_cross_entropy_with_logits
    found = []
    for strength in (0.0, 0.5):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
        fit(model, lambda out, t: bce(out.squeeze(1), t, reduction="none"),
            make_optimizer("sgd", model.parameters(), lr=1.0), plan, data, seed=0,
            methods=Methods(sharpness=BiasAware(strength)))  # fmt: skip
        losses, parameters = bce(model(x).squeeze(1), y, reduction="none"), list(model.parameters())
        squares = [
            sum(float(g.square().sum()) for g in torch.autograd.grad(one, parameters, retain_graph=True))
            for one in losses
        ]
        found.append((float(losses.detach().mean()), float(np.sqrt(squares).mean())))
    assert found[1][1] < found[0][1] and found[1][0] < found[0][0] + 0.02
