"""Complex models: clipped as real vectors of twice the length, circular noise of the plan's variance per component."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from training_oracle import ZeroNoise, small_plan

from confide.accounting import ComplexGaussian, Gaussian
from confide.errors import InputError
from confide.nn import build
from confide.training import ClippingEngine, ContributorDataset, EngineOptions, PrivateRun, fit, make_optimizer
from confide.training.engine.fast.compiled import CompiledStep
from confide.training.methods import complex_state, realify


class Net(nn.Module):
    def __init__(self, inputs=3, width=4):
        super().__init__()
        self.layer = nn.Linear(inputs, width, dtype=torch.complex64)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.layer(x).abs()).squeeze(1)


def data_of(people=10, drop=None):
    generator = torch.Generator().manual_seed(3)
    x = 50 * torch.randn(people, 3, dtype=torch.complex64, generator=generator)
    keep = [i for i in range(people) if i != drop]
    return ContributorDataset(TensorDataset(x[keep], torch.ones(len(keep))), [f"c{i}" for i in keep])


def loss(out, y):
    return (out - y).square()


class Recorder(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})
        self.seen = []

    def step(self, closure=None):
        self.seen.append([p.grad.double().numpy().copy() for group in self.param_groups for p in group["params"]])


def steps_of(data, plan, noise=None, **settings):
    torch.manual_seed(0)
    model = realify(Net())
    recorder = Recorder(model.parameters())
    fit(model, loss, recorder, plan, data, noise=noise or ZeroNoise(), run_key=bytes(32), **settings)
    return [np.concatenate([g.ravel() for g in grads]) * plan.denominator for grads in recorder.seen]


def test_neighbours_differ_by_at_most_the_clip_in_the_complex_norm():
    plan = small_plan("contributor", {1: 10}, steps=4, epsilon=30.0, clip_norm=0.7)
    largest = 0.0
    for person in range(10):
        pairs = zip(steps_of(data_of(), plan), steps_of(data_of(drop=person), plan), strict=True)
        largest = max(largest, *(float(np.linalg.norm(a - b)) for a, b in pairs))
    assert 0.99 * 0.7 < largest <= 0.7 * (1 + 1e-6)


def test_the_gradient_of_a_realified_model_is_the_complex_gradient():
    torch.manual_seed(0)
    plain = Net()
    model = realify(Net())
    for name, value in complex_state(model).items():
        plain.state_dict()[name].copy_(value)
    x = torch.randn(5, 3, dtype=torch.complex64)
    torch.testing.assert_close(plain(x), model(x))
    plain(x).sum().backward()
    model(x).sum().backward()
    pair = model.layer.parametrizations.weight
    torch.testing.assert_close(torch.complex(pair.original0.grad, pair.original1.grad), plain.layer.weight.grad)
    assert set(complex_state(model)) == set(plain.state_dict())


@pytest.mark.parametrize("noise", ["default", "secure"])
def test_noise_is_circular_with_the_variance_of_the_plan_in_every_component(noise):
    plan = small_plan("contributor", {1: 10}, steps=12, noise_multiplier=1.3, clip_norm=2.0)
    model = realify(Net(width=500))
    recorder = Recorder(model.parameters())
    # a fixed key: with a new one each time the last line would fail in one of 3,000 runs, exp(-0.06^2 18000 / 8)
    nobody = np.zeros(10, dtype=bool)
    fit(model, loss, recorder, plan, data_of(), admitted=nobody, noise=noise, run_key=bytes(32))
    names = [name for name, _ in model.named_parameters()]
    real, imaginary = (names.index(f"layer.parametrizations.weight.original{i}") for i in (0, 1))
    z = np.concatenate([(g[real] + 1j * g[imaginary]).ravel() for g in recorder.seen]) * plan.denominator
    sd = 1.3 * 2.0
    assert len(z) == 12 * 1500
    assert z.real.var() == pytest.approx(sd**2, rel=0.05) and z.imag.var() == pytest.approx(sd**2, rel=0.05)
    assert (np.abs(z) ** 2).mean() == pytest.approx(2 * sd**2, rel=0.05)
    assert abs((z**2).mean()) < 0.06 * sd**2, "the noise is not circular"


def test_the_accounting_is_that_of_a_real_sum_of_twice_the_length():
    assert ComplexGaussian(1.3).guarantee().epsilon(1e-5) == Gaussian(1.3).guarantee().epsilon(1e-5)


def test_complex_parameters_are_refused_with_the_way_out_and_shared_ones_at_all():
    model = Net()
    optimizer = make_optimizer("sgd", model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="realify"):
        PrivateRun(model, loss, optimizer, small_plan(), data_of())
    shared = nn.ModuleList([nn.Linear(2, 2, dtype=torch.complex64), nn.Linear(2, 2, dtype=torch.complex64)])
    shared[1].weight = shared[0].weight
    with pytest.raises(InputError, match="shared"):
        realify(shared)


@pytest.mark.parametrize("weights", ["plain", pytest.param("centred", marks=pytest.mark.slow)])
def test_steps_in_bfloat16_go_through_complex_layers(weights):
    """There are no complex numbers of half precision: products are rounded to it, what they are joined to is not."""
    net = build("complex-cnn", (2, 8, 8), 3, widths=(4,), representation="pairs", weights=weights, seed=0)
    x, y = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
    units, weight, clips = torch.arange(6) // 2, torch.full((6,), 0.5), torch.full((3,), 0.7, dtype=torch.float64)
    found = []
    for autocast in (None, torch.bfloat16):
        engine = ClippingEngine(net, EngineOptions(engine="fast"))
        step = CompiledStep(
            engine, lambda out, t: cross_entropy(out.float(), t, reduction="none"), autocast=autocast, compiler=False
        )
        sums = step.run(x, y, units, weight, clips, 2)
        found.append((sums.norms, torch.cat([g.reshape(-1) for g in sums.gradients])))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=0.02)
    assert 0 < float((found[1][1] - found[0][1]).norm() / found[0][1].norm()) < 0.05
