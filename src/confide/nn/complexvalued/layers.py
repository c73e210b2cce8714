"""Complex convolution and linear layer from two real layers: W = A + iB, W z = (A x - B y) + i (A y + B x).

>>> ComplexLinear(3, 2)(torch.zeros(5, 3, dtype=torch.complex64)).dtype
torch.complex64

A and B are parameters of their own. Clipping then takes the complex norm over all of them (the real norm of both parts
together), and ordinary Gaussian noise is the circular complex mechanism with the full standard deviation in *each* of
the real and imaginary part. `torch.randn` of a complex type would give half of the variance to each: noise made that
way is too small by the square root of 2, which real parameters rule out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from confide.errors import InputError

__all__ = ["ComplexConv2d", "ComplexLinear", "as_complex", "kspace"]


def as_complex(x: Tensor) -> Tensor:
    """Return (n, c, ...) complex from (n, 2 c, ...) real, whose first c channels are the real parts.

    Raises
    ------
    InputError
        An odd number of channels.
    """
    if x.is_complex():
        return x
    if x.shape[1] % 2:
        raise InputError(
            f"{x.shape[1]} channels cannot be real and imaginary parts",
            where="model",
            expected="an even number: all real parts, then all imaginary parts",
            remedy='for plain images take representation = "kspace", which applies a Fourier transform',
        )
    real, imaginary = x.chunk(2, 1)
    return torch.complex(real.contiguous(), imaginary.contiguous())


def kspace(x: Tensor) -> Tensor:
    """Return the centred orthonormal 2D Fourier transform of images (n, c, h, w): the k-space of a scanner."""
    out: Tensor = torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"), (-2, -1))
    return out


class _Shift(nn.Module):
    """Add a complex constant to each channel, kept as real and imaginary part."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 2))

    def forward(self, z: Tensor) -> Tensor:
        bias = torch.complex(self.bias[:, 0], self.bias[:, 1])
        return z + bias.reshape(-1, *[1] * (z.dim() - 2))


def _product(first: nn.Module, second: nn.Module, z: Tensor, name: str) -> Tensor:
    if not z.is_complex():
        raise InputError(
            f"{name} got real numbers",
            where="model",
            expected="a complex tensor",
            remedy="as_complex joins real and imaginary parts, kspace transforms an image",
        )
    x, y = z.real.contiguous(), z.imag.contiguous()
    return torch.complex(first(x) - second(y), first(y) + second(x))


def _halve(*layers: Any) -> None:
    """Share the initial variance between the two parts (Trabelsi et al., Deep complex networks, ICLR 2018)."""
    with torch.no_grad():
        for layer in layers:
            layer.weight *= math.sqrt(0.5)


class ComplexConv2d(nn.Module):
    """Complex 2D convolution.

    Parameters
    ----------
    channels, out, kernel : int
    bias : bool
        A complex number for each output channel.
    **options
        stride, padding, dilation, groups of ``nn.Conv2d``.

    References
    ----------
    Riess et al.: Complex-valued federated learning with differential privacy and MRI applications, arXiv 2110.03478.
    """

    def __init__(self, channels: int, out: int, kernel: int, *, bias: bool = False, **options: Any) -> None:
        super().__init__()
        self.real = nn.Conv2d(channels, out, kernel, bias=False, **options)
        self.imag = nn.Conv2d(channels, out, kernel, bias=False, **options)
        self.shift = _Shift(out) if bias else nn.Identity()
        _halve(self.real, self.imag)

    def forward(self, z: Tensor) -> Tensor:
        """Complex (n, channels, h, w) to complex (n, out, h', w')."""
        out: Tensor = self.shift(_product(self.real, self.imag, z, "ComplexConv2d"))
        return out


class ComplexLinear(nn.Module):
    """Complex linear layer.

    Parameters
    ----------
    features, out : int
    bias : bool
        A complex number for each output.

    References
    ----------
    As `ComplexConv2d`.
    """

    def __init__(self, features: int, out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.real = nn.Linear(features, out, bias=False)
        self.imag = nn.Linear(features, out, bias=False)
        self.shift = _Shift(out) if bias else nn.Identity()
        _halve(self.real, self.imag)

    def forward(self, z: Tensor) -> Tensor:
        """Complex (n, features) to complex (n, out)."""
        out: Tensor = self.shift(_product(self.real, self.imag, z, "ComplexLinear"))
        return out
