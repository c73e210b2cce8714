"""Published settings of private training: what they cost by loss distributions and by Renyi orders (delta 1e-5)."""

from __future__ import annotations

import numpy as np
import pytest

from confide.accounting import ComplexGaussian, Gaussian, SampledGaussian
from confide.accounting.renyi import RDP_ORDERS, mixture_rdp, rdp_epsilon

CIFAR = 50_000
# rate, steps, noise multiplier, epsilon by Renyi orders, by loss distributions (None: not in the source)
SETTINGS = {
    "De et al., WRN-16-4, epsilon 1": (4096 / CIFAR, 875, 10.0, 0.988, 0.904),
    "De et al., epsilon 2": (4096 / CIFAR, 1125, 6.0, 2.00, None),
    "De et al., epsilon 3": (4096 / CIFAR, 1593, 5.0, 2.98, None),
    "De et al., epsilon 4": (4096 / CIFAR, 1687, 4.0, 4.00, None),
    "De et al., epsilon 6": (4096 / CIFAR, 1843, 3.0, 5.95, None),
    "De et al., WRN-40-4, epsilon 8": (16384 / CIFAR, 2000, 9.4, 8.01, 7.42),
    "TAN, epsilon 8": (4096 / CIFAR, 2500, 3.0, 7.10, 6.58),
    "TAN, 45,000 images": (4096 / 45_000, 2468, 3.0, 7.98, 7.40),
    "SmoothNet, epsilon 7, 90 epochs": (256 / 40_000, 90 * 157, 0.841, 7.0, None),
    "ResNet-9, epsilon 8": (4096 / 45_000, 2197, 2.84, 8.0, None),
    "IDP-SGD, CIFAR-10, epsilon 1": (1024 / CIFAR, 1465, 3.299, 1.0, None),
    "IDP-SGD, CIFAR-10, epsilon 2": (1024 / CIFAR, 1465, 1.870, 2.0, None),
    "IDP-SGD, SVHN, epsilon 1": (1024 / 73_257, 2146, 2.754, 1.0, None),
    "IDP-SGD, MNIST, epsilon 1": (512 / 60_000, 9375, 3.436, 1.0, None),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_published_settings_cost_what_was_published(name):
    rate, steps, noise, renyi, exact = SETTINGS[name]
    orders = mixture_rdp(noise, np.array([0.0, 1.0]), np.array([1 - rate, rate])) * steps
    assert rdp_epsilon(orders, 1e-5) == pytest.approx(renyi, rel=0.005)
    low, high = SampledGaussian(noise_multiplier=noise, rate=rate).guarantee(steps=steps).epsilon_interval(delta=1e-5)
    assert low <= high < rdp_epsilon(orders, 1e-5)  # Renyi orders give away 7 to 9 per cent
    if exact is not None:
        assert high == pytest.approx(exact, rel=0.002)


@pytest.mark.parametrize(("rho", "epsilon"), [(0.0306, 1.0), (0.224, 3.0), (1.230, 8.0)])
def test_concentrated_privacy_of_a_budget(rho, epsilon):
    assert rdp_epsilon(rho * RDP_ORDERS, 1e-5) == pytest.approx(epsilon, rel=0.01)


def test_complex_noise_of_a_total_variance_costs_what_its_components_do():
    """mu = sensitivity / s per component = sqrt(2) sensitivity / sqrt(total variance); correlation only costs more."""
    s = 1.3
    mu = Gaussian(s).guarantee().mu
    assert ComplexGaussian(s).guarantee().mu == pytest.approx(mu) == pytest.approx(1 / s)
    assert mu == pytest.approx(np.sqrt(2) / np.sqrt(2 * s**2))
    for correlation in (0.0, 0.3, 0.9):  # the same total variance, the worst direction of a change of length 1
        covariance = s**2 * np.array([[1.0, correlation], [correlation, 1.0]])
        worst = 1 / np.sqrt(np.linalg.eigvalsh(covariance)[0])
        assert worst == pytest.approx(mu / np.sqrt(1 - correlation))
