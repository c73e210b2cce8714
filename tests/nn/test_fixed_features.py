"""Scattering and HOG against kymatio 0.3.0 and scikit-image 0.26.0, whose values lie beside this file; their limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from confide import nn
from confide.errors import InputError

REFERENCE = np.load(Path(__file__).with_name("reference_features.npz"))


@pytest.mark.parametrize(("which", "shape", "angles"), [("a", (1, 32, 32), 4), ("b", (1, 28, 20), 8)])
def test_scattering_equals_kymatio(which, shape, angles):
    images = torch.tensor(REFERENCE[which])[:, None]
    found = nn.Scattering2d(shape, angles=angles, groups=0).coefficients(images)[:, 0].numpy()
    # kymatio takes pi = 3.1415, which its wavelets keep
    np.testing.assert_allclose(found, REFERENCE[f"scattering_{which}"], atol=1e-4 * np.abs(found).max())


def test_scattering_of_three_scales_has_its_paths_and_norm():
    layer = nn.Scattering2d((2, 32, 24), scales=3, angles=4)
    assert layer.channels == 2 * (1 + 12 + 16 * 3) and layer.grid == (4, 3)
    out = layer(torch.randn(5, 2, 32, 24))
    assert out.shape == (5, layer.size)
    norms = out.norm(dim=1)
    assert float(norms.max()) <= 1 + 1e-5 and float(norms.min()) > 0.99


def test_scattering_of_a_constant_is_its_mean_and_nothing_else():
    out = nn.Scattering2d((1, 16, 16), groups=0).coefficients(torch.full((1, 1, 16, 16), 3.0))
    assert torch.allclose(out[:, :, 0], torch.full((1, 1, 4, 4), 3.0), rtol=1e-3)
    assert float(out[:, :, 1:].abs().max()) < 1e-3


def test_hog_equals_scikit_image():
    a, b = (torch.tensor(REFERENCE[k])[:, None] for k in "ab")
    found = nn.HOG((1, 32, 32), cell=8).histograms(a)[0, 0].numpy()
    np.testing.assert_allclose(found, REFERENCE["hog_a"], atol=1e-5)
    found = nn.HOG((1, 28, 20), cell=4, block=3, bins=6, norm="l2").histograms(b)[0, 0].numpy()
    np.testing.assert_allclose(found, REFERENCE["hog_b"], atol=1e-5)


def test_hog_ignores_light_and_its_norm_is_at_most_one():
    # fixed pictures: a gradient that points along the border of two bins changes sides by rounding (1 in 1,500 draws)
    layer, x = nn.HOG((3, 20, 20)), torch.randn(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    out = layer(x)
    assert out.shape == (4, layer.size) and float(out.norm(dim=1).max()) <= 1 + 1e-5
    assert torch.allclose(out, layer(10 * x + 5), atol=1e-3)
    assert torch.equal(layer(torch.ones(2, 3, 20, 20)), torch.zeros(2, layer.size))


def test_transform_goes_over_an_array_in_parts_and_names_are_checked():
    images = np.random.default_rng(0).normal(size=(7, 1, 16, 16))
    layer = nn.features_named("hog", (1, 16, 16))
    found = layer.transform(images, batch=3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, layer(torch.tensor(images, dtype=torch.float32)).numpy(), atol=1e-6)
    with pytest.raises(InputError, match="did you mean 'scattering'"):
        nn.features_named("scatering", (1, 16, 16))
    with pytest.raises(InputError, match="made for"):
        layer(torch.zeros(1, 1, 20, 20))


def test_features_may_be_computed_before():
    model, x = nn.hog((1, 16, 16), 2), torch.randn(3, 1, 16, 16)
    torch.nn.init.normal_(model.head.weight)
    assert torch.equal(model(x), model(model.features(x)))
    with pytest.raises(InputError, match="a batch of shape"):
        model(torch.zeros(3, 7))


def test_only_the_linear_layer_is_learned():
    model = nn.scattering((1, 28, 28), 1)
    assert [n for n, _ in model.named_parameters()] == ["head.weight", "head.bias"]
    assert sum(p.numel() for p in model.parameters()) == 81 * 49 + 1
