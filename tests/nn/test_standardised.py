"""Weight standardisation: mean, length and floor of each filter, and the same numbers as the released recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import InputError
from confide.nn import WSConv1d, WSConv2d, WSConv3d, standardise


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 4), st.floats(0.1, 100), st.floats(-5, 5))
def test_filters_have_mean_zero_and_length_of_the_gain_whatever_their_scale_and_shift(out, channels, kernel, scale, up):
    torch.manual_seed(out)
    weight = torch.randn(out, channels, kernel, kernel, dtype=torch.float64) * scale + up
    gain = torch.rand(out, dtype=torch.float64) + 0.5
    found = standardise(weight, gain)
    assert torch.allclose(found.mean((1, 2, 3)), torch.zeros(out, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(found.flatten(1).norm(dim=1), gain, rtol=1e-9)
    assert torch.allclose(found, standardise(3 * weight + 1, gain), rtol=1e-6, atol=1e-9)


def test_the_formula_of_the_released_recipe():
    weight = np.random.default_rng(0).normal(size=(3, 2, 3, 3))
    gain = np.array([1.0, 2.0, 0.5])
    mean, var = weight.mean((1, 2, 3), keepdims=True), weight.var((1, 2, 3), keepdims=True)
    want = gain[:, None, None, None] * (weight - mean) / np.sqrt(np.maximum(18 * var, 1e-4))
    np.testing.assert_allclose(standardise(torch.tensor(weight), torch.tensor(gain)).numpy(), want, rtol=1e-12)


def test_a_constant_filter_meets_the_floor_and_stays_finite_with_its_gradient():
    weight = torch.full((1, 2, 3, 3), 0.7, requires_grad=True)
    found = standardise(weight)
    found.square().sum().backward()
    assert torch.equal(found, torch.zeros_like(found)) or float(found.detach().abs().max()) < 1e-4
    assert bool(torch.isfinite(weight.grad).all())


def test_centring_alone_keeps_the_length():
    weight = torch.randn(4, 3, 3, 3)
    assert torch.allclose(standardise(weight, centre_only=True), weight - weight.mean((1, 2, 3), keepdim=True))


@pytest.mark.parametrize(
    ("layer", "plain", "shape"),
    [(WSConv1d, "conv1d", (2, 4, 9)), (WSConv2d, "conv2d", (2, 4, 9, 8)), (WSConv3d, "conv3d", (2, 4, 5, 6, 5))],
)
def test_it_is_the_plain_convolution_with_other_filters(layer, plain, shape):
    made = layer(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(shape)
    want = getattr(torch.nn.functional, plain)(x, made.standardised_weight(), made.bias, 2, 1, 1, 2)
    assert torch.equal(made(x), want)
    assert set(dict(made.named_parameters())) == {"weight", "bias", "gain"}
    assert set(dict(layer(4, 6, 3, gain=False, bias=False).named_parameters())) == {"weight"}


def test_refusals_say_what_to_do():
    with pytest.raises(InputError, match="ReflectionPad2d"):
        WSConv2d(2, 2, 3, padding=1, padding_mode="reflect")
    with pytest.raises(InputError, match="fan-in of 2"):
        WSConv2d(1, 4, 1)
