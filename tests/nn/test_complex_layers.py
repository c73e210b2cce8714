"""Complex layers against PyTorch's complex arithmetic, closed forms, and the noise and clipping that they get."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from confide import nn
from confide.errors import InputError
from confide.planning import plan
from confide.training import ClippingEngine, ContributorDataset, fit


def draw(*shape):
    return torch.randn(*shape, dtype=torch.complex64)


def test_convolution_and_linear_layer_equal_complex_arithmetic():
    conv = nn.ComplexConv2d(3, 4, 3, padding=1, stride=2, bias=True)
    with torch.no_grad():
        conv.shift.bias.normal_()
    weight = torch.complex(conv.real.weight, conv.imag.weight)
    bias = torch.view_as_complex(conv.shift.bias)
    z = draw(2, 3, 7, 7)
    want = F.conv2d(z, weight, stride=2, padding=1) + bias.reshape(-1, 1, 1)
    assert torch.allclose(conv(z), want, atol=1e-5)
    linear = nn.ComplexLinear(5, 2)
    with torch.no_grad():
        linear.shift.bias.normal_()
    z = draw(6, 5)
    want = z @ torch.complex(linear.real.weight, linear.imag.weight).T + torch.view_as_complex(linear.shift.bias)
    assert torch.allclose(linear(z), want, atol=1e-5)
    turn = torch.exp(torch.tensor(0.7j))
    free = nn.ComplexConv2d(3, 4, 3)
    z = draw(2, 3, 7, 7)
    assert torch.allclose(free(turn * z), turn * free(z), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 50), st.floats(0.1, 50), st.floats(-0.95, 0.95), st.integers(0, 1000))
def test_whitening_gives_unit_covariance_and_is_the_inverse_root(first, second, correlation, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 400, 2, generator=generator, dtype=torch.float64)
    mixed = torch.stack([first * x[..., 0], second * (correlation * x[..., 0] + x[..., 1])], -1) + 3
    z = torch.view_as_complex(mixed)
    white = nn.whiten(z, 2, eps=1e-12)
    for entry in range(2):
        for group in range(2):
            part = torch.view_as_real(white[entry, 2 * group : 2 * group + 2].reshape(-1))
            assert torch.allclose(part.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-8)
            assert torch.allclose(part.T @ part / len(part), torch.eye(2, dtype=torch.float64), atol=1e-6)
            raw = torch.view_as_real(z[entry, 2 * group : 2 * group + 2].reshape(-1))
            raw = raw - raw.mean(0)
            values, vectors = torch.linalg.eigh(raw.T @ raw / len(raw))
            root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
            assert torch.allclose(raw @ root, part, atol=1e-5)


def test_group_norm_starts_with_mean_square_one_and_stays_finite_on_constants():
    norm = nn.ComplexGroupNorm(2, 4)
    out = norm(5 * draw(3, 4, 16, 16) + 2j)
    assert torch.allclose(out.abs().square().mean((2, 3)).mean(1), torch.ones(3), atol=1e-2)
    assert sum(p.numel() for p in norm.parameters()) == 4 * (4 + 2)  # a 2 x 2 matrix and a complex shift each
    still = torch.full((1, 4, 3, 3), 2 + 1j, requires_grad=True)
    norm(still).abs().square().sum().backward()
    assert bool(torch.isfinite(torch.view_as_real(still.grad)).all())
    flat = norm(torch.complex(torch.randn(1, 4, 3, 3), torch.zeros(1, 4, 3, 3)))  # a real image: a degenerate ellipse
    assert bool(torch.isfinite(torch.view_as_real(flat)).all())


def test_activations_have_their_formulas_and_limits():
    z = draw(50)
    mish = F.mish
    assert torch.allclose(nn.ConjMish()(z), (1 + 1j) * mish(z.real) - (1 - 1j) * mish(z.imag), atol=1e-6)
    assert torch.allclose(nn.Cardioid()(z), 0.5 * (1 + torch.cos(z.angle())) * z, atol=1e-6)
    x = torch.complex(torch.linspace(-2, 2, 9), torch.zeros(9))
    assert torch.allclose(nn.Cardioid()(x).real, F.relu(x.real), atol=1e-6)
    assert torch.allclose(nn.SeparableMish()(x).real, mish(x.real))
    out = nn.iGaussian(0.4)(z)
    assert torch.allclose(out.angle(), z.angle(), atol=1e-5)
    assert torch.allclose(out.abs(), 1 - torch.exp(-z.abs().square() / 0.32), atol=1e-5)
    for layer in (nn.ConjMish(), nn.Cardioid(), nn.SeparableMish(), nn.iGaussian()):
        zero = torch.zeros(3, dtype=torch.complex64, requires_grad=True)
        layer(zero).abs().square().sum().backward()
        assert bool(torch.isfinite(torch.view_as_real(zero.grad)).all())


def test_pooling_takes_each_part_or_its_conjugate_pair():
    z = draw(2, 3, 4, 6)
    x, y = F.max_pool2d(z.real, 2), F.max_pool2d(z.imag, 2)
    assert torch.equal(nn.ComplexMaxPool2d(2)(z), torch.complex(x, y))
    assert torch.equal(nn.ComplexMaxPool2d(2, kind="conjugate")(z), torch.complex(x - y, x + y))
    mean = F.avg_pool2d(z.real, 2) + 1j * F.avg_pool2d(z.imag, 2)
    assert torch.allclose(nn.ComplexAvgPool2d(2)(z), mean)
    assert torch.allclose(nn.ComplexAvgPool2d(2, kind="conjugate")(z), (1 + 1j) * mean, atol=1e-6)
    with pytest.raises(InputError, match="did you mean 'conjugate'"):
        nn.ComplexMaxPool2d(2, kind="conjugat")
    with pytest.raises(InputError, match="4 x 6, smaller than its windows"):
        nn.ComplexAvgPool2d(5)(z)
    for layer in (nn.ComplexMaxPool2d(2), nn.ComplexGroupNorm(1, 3), nn.Cardioid(), nn.ConjMish(), nn.iGaussian()):
        with pytest.raises(InputError, match="got real numbers"):
            layer(z.real)


def test_kspace_keeps_energy_and_pairs_come_apart_in_order():
    x = torch.randn(2, 1, 8, 6)
    assert torch.allclose(nn.kspace(x).abs().square().sum((1, 2, 3)), x.square().sum((1, 2, 3)), rtol=1e-4)
    assert torch.allclose(nn.kspace(torch.ones(1, 1, 8, 8))[0, 0, 4, 4], torch.tensor(8 + 0j))
    z = draw(2, 3, 4)
    assert torch.equal(nn.as_complex(torch.cat([z.real, z.imag], 1)), z)
    with pytest.raises(InputError, match="even number"):
        nn.as_complex(torch.zeros(2, 3, 4))
    with pytest.raises(InputError, match="kspace transforms an image"):
        nn.ComplexConv2d(1, 1, 1)(torch.zeros(1, 1, 2, 2))


def complex_loss(out, y):
    return (out.abs() - y[:, None]).square().sum(1)


def test_the_norm_that_is_clipped_is_the_complex_one_over_both_parts():
    layer, z, y = nn.ComplexLinear(4, 3, bias=False), draw(5, 4), torch.randn(5)
    engine = ClippingEngine(layer)
    found = engine.clipped_sum(lambda rows: complex_loss(layer(z[rows]), y[rows]), np.arange(5), np.ones(5), np.ones(5))
    weight = torch.complex(layer.real.weight, layer.imag.weight).detach().requires_grad_()
    for i in range(5):
        (grad,) = torch.autograd.grad(complex_loss(z[i : i + 1] @ weight.T, y[i : i + 1]).sum(), weight)
        assert found.norms[i] == pytest.approx(float(torch.linalg.vector_norm(grad)), rel=1e-4)


class Recorder(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})
        self.seen = []

    def step(self, closure=None):
        self.seen.append([p.grad.clone().flatten() for g in self.param_groups for p in g["params"]])


def test_noise_has_the_full_scale_in_each_of_the_two_parts():
    """`torch.randn` of a complex type has variance 1/2 in each part: noise made with it would be too small."""
    assert float(torch.randn(20000, dtype=torch.complex64).real.var()) == pytest.approx(0.5, rel=0.1)
    made = plan({1: 10}, epsilon=4.0, delta=1e-3, noise_multiplier=1.0, steps=2, strategy="contributor", clip_norm=0.5)
    torch.manual_seed(0)
    layer = nn.ComplexLinear(60, 50, bias=False)
    data = ContributorDataset(torch.utils.data.TensorDataset(1e-9 * torch.randn(10, 60), torch.zeros(10)), range(10))
    recorder = Recorder(layer.parameters())

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(torch.complex(x, x))

    # a fixed key: 6 per cent is 4.6 standard errors of 3,000 values, too few for a new key in every run
    fit(Net(), lambda out, y: out.real.sum(1) + out.imag.sum(1) + y, recorder, made, data, run_key=bytes(32))
    expected = made.noise_multiplier * made.clip_norm / made.denominator
    for real, imaginary in recorder.seen:
        assert float(real.std()) == pytest.approx(expected, rel=0.06)
        assert float(imaginary.std()) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("whiten", [True, False])
def test_standardised_complex_filters_are_those_of_the_formula(whiten):
    torch.manual_seed(3)
    layer = nn.ComplexWSConv2d(4, 6, 3, whiten=whiten, padding=1, stride=2, groups=2)
    if whiten:
        raw = torch.view_as_complex(layer.whitened.weight.detach().double())
    else:
        raw = torch.complex(layer.real.weight, layer.imag.weight).detach().to(torch.complex128)
    want = []
    for one in raw:  # each filter by itself, by the eigenvectors of its covariance
        pairs = torch.view_as_real(one.reshape(-1))
        pairs = pairs - pairs.mean(0)
        if whiten:
            values, vectors = torch.linalg.eigh(len(pairs) * pairs.T @ pairs / len(pairs) + 1e-4 * torch.eye(2))
            pairs = pairs @ (vectors @ torch.diag(values.rsqrt()) @ vectors.T) / np.sqrt(2)
        want.append(torch.view_as_complex(pairs.contiguous()).reshape(one.shape))
    z = draw(2, 4, 7, 7)
    expected = F.conv2d(z.to(torch.complex128), torch.stack(want), stride=2, padding=1, groups=2)
    assert torch.allclose(layer(z).to(torch.complex128), expected, atol=1e-4)
    shifted = [p for n, p in layer.named_parameters() if n.endswith("weight")]
    with torch.no_grad():
        before = layer(z)
        for weight in shifted:
            weight.add_(0.3)  # what is added to all weights of a filter is taken out again
        assert torch.allclose(layer(z), before, atol=1e-4)


def test_a_whitened_filter_has_length_one_and_a_gain():
    filters = nn.ComplexWSConv2d(8, 5, 3).whitened.filters()
    assert torch.allclose(filters.abs().square().sum((1, 2, 3)), torch.ones(5), rtol=2e-2)
    assert sum(p.numel() for p in nn.ComplexWSConv2d(8, 5, 3).parameters()) == 2 * 8 * 5 * 9 + 5
    with pytest.raises(InputError, match="single weight"):
        nn.ComplexWSConv2d(1, 4, 1)
    with pytest.raises(InputError, match="real numbers"):
        nn.ComplexWSConv2d(1, 4, 3)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(InputError, match="did you mean 'whitened'"):
        nn.build("complex-cnn", (1, 8, 8), 2, weights="whitend")
