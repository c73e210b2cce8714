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
import torch.nn.functional as F
from torch import Tensor, nn

from confide.errors import InputError
from confide.nn.complexvalued.checks import refuse_real
from confide.nn.complexvalued.norm import whiten
from confide.nn.complexvalued.pairs import joined
from confide.nn.standardised import EPS, WSConv2d

__all__ = ["ComplexConv2d", "ComplexLinear", "ComplexWSConv2d", "as_complex", "kspace"]


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
    refuse_real(z, name)
    x, y = z.real.contiguous(), z.imag.contiguous()
    return joined(first(x) - second(y), first(y) + second(x))


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


class _WhitenedConv2d(nn.Module):
    """Convolution of real numbers with either part of one whitened complex weight."""

    def __init__(self, channels: int, out: int, kernel: int, options: dict[str, Any]) -> None:
        super().__init__()
        # Shapes and initial values are those of PyTorch's own layer; padding, stride and so on are checked by it too.
        like = nn.Conv2d(channels, out, kernel, bias=False, **options)
        other = nn.Conv2d(channels, out, kernel, bias=False, **options)
        self.weight = nn.Parameter(torch.stack([like.weight.detach(), other.weight.detach()], -1))
        self.gain = nn.Parameter(torch.ones(out))
        self._options = {k: getattr(like, k) for k in ("stride", "padding", "dilation", "groups")}

    def filters(self) -> Tensor:
        """Return the whitened filters, complex, shape (out, channels / groups, kernel, kernel)."""
        fan_in = self.weight[0, ..., 0].numel()
        raw = torch.view_as_complex(self.weight.contiguous() * math.sqrt(fan_in))
        white = whiten(raw[None], len(raw), EPS)[0]
        gain = self.gain.reshape(-1, 1, 1, 1) / math.sqrt(2 * fan_in)
        return torch.complex(white.real * gain, white.imag * gain)

    def forward(self, z: Tensor) -> Tensor:
        filters = self.filters()
        a, b = filters.real.contiguous(), filters.imag.contiguous()
        x, y = z.real.contiguous(), z.imag.contiguous()
        real = F.conv2d(x, a, None, **self._options) - F.conv2d(y, b, None, **self._options)
        return joined(real, F.conv2d(y, a, None, **self._options) + F.conv2d(x, b, None, **self._options))


class ComplexWSConv2d(nn.Module):
    """Complex 2D convolution with standardised weights: a function of the weights alone, which mixes no entries.

    Parameters
    ----------
    channels, out, kernel : int
    whiten : bool
        True: each filter is centred and whitened, so that real and imaginary parts of its weights are uncorrelated and
        equally large; then divided by the root of twice its fan-in (a filter has length 1) and multiplied by a learned
        gain, 1 at the start. False: each filter's complex mean is subtracted and nothing else, the cheaper way.
    bias : bool
        A complex number for each output channel.
    **options
        stride, padding, dilation, groups of ``nn.Conv2d``.

    Raises
    ------
    InputError
        Filters of a single weight: they would be zero.

    References
    ----------
    Riess et al.: Complex-valued federated learning with differential privacy and MRI applications, arXiv 2110.03478
    (both ways; the division by the fan-in, as in scaled weight standardisation, is ours). The whitening matrix is that
    of `whiten`.
    """

    def __init__(
        self, channels: int, out: int, kernel: int, *, whiten: bool = True, bias: bool = False, **options: Any
    ) -> None:
        super().__init__()
        if channels // int(options.get("groups", 1)) * kernel * kernel < 2:
            raise InputError(
                "a filter of a single weight has nothing to standardise: it would be zero",
                where="ComplexWSConv2d",
                expected="a fan-in of 2 or more",
                remedy="use ComplexConv2d here",
            )
        self.whitened = _WhitenedConv2d(channels, out, kernel, options) if whiten else None
        if not whiten:
            self.real = WSConv2d(channels, out, kernel, bias=False, gain=False, centre_only=True, **options)
            self.imag = WSConv2d(channels, out, kernel, bias=False, gain=False, centre_only=True, **options)
            _halve(self.real, self.imag)
        self.shift = _Shift(out) if bias else nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        """Complex (n, channels, h, w) to complex (n, out, h', w')."""
        refuse_real(z, "ComplexWSConv2d")
        if self.whitened is not None:
            out: Tensor = self.shift(self.whitened(z))
            return out
        out = self.shift(_product(self.real, self.imag, z, "ComplexWSConv2d"))
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
