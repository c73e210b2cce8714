"""Activations for complex numbers, none with parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from confide.nn.complexvalued.checks import refuse_real

__all__ = ["Cardioid", "ConjMish", "SeparableMish", "iGaussian"]


class ConjMish(nn.Module):
    """(1 + i) mish(Re z) - (1 - i) mish(Im z), that is (mish(x) - mish(y)) + i (mish(x) + mish(y)).

    References
    ----------
    Riess et al.: Complex-valued federated learning with differential privacy and MRI applications, arXiv 2110.03478.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Same shape in and out."""
        refuse_real(z, type(self).__name__)
        x, y = F.mish(z.real), F.mish(z.imag)
        return torch.complex(x - y, x + y)


class SeparableMish(nn.Module):
    """mish(Re z) + i mish(Im z)."""

    def forward(self, z: Tensor) -> Tensor:
        """Same shape in and out."""
        refuse_real(z, type(self).__name__)
        return torch.complex(F.mish(z.real), F.mish(z.imag))


class Cardioid(nn.Module):
    """``(1 + cos arg z) z / 2``: keeps the phase, halves what points sideways, stops what points left; ReLU on real z.

    cos arg z is ``Re z / |z|``, here with ``|z| >= 1e-12`` so that the gradient stays finite at 0.

    References
    ----------
    Virtue, Yu, Lustig: Better than real: complex-valued neural nets for MRI fingerprinting, ICIP 2017.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Same shape in and out."""
        refuse_real(z, type(self).__name__)
        return 0.5 * (1 + z.real * (z.real.square() + z.imag.square()).clamp_min(1e-24).rsqrt()) * z


class iGaussian(nn.Module):
    """``(1 - exp(-|z|^2 / (2 s^2))) z / |z|``: keeps the phase, brings the length to below 1.

    Parameters
    ----------
    sigma : float
    """

    def __init__(self, sigma: float = 0.4) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, z: Tensor) -> Tensor:
        """Same shape in and out."""
        refuse_real(z, type(self).__name__)
        square = z.real.square() + z.imag.square()
        length = square.clamp_min(1e-24).sqrt()
        return -torch.expm1(-square / (2 * self.sigma**2)) / length * z
