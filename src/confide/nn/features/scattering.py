"""The scattering transform of images: two layers of fixed Morlet wavelets, absolute values and local means.

>>> Scattering2d((1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
torch.Size([2, 3969])
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from confide.errors import InputError
from confide.nn.features.fixed import FixedFeatures, keep
from confide.nn.parts import InputShape, groups_for

__all__ = ["Scattering2d", "morlet"]


def morlet(
    shape: tuple[int, int], sigma: float, theta: float, xi: float, slant: float = 1.0
) -> npt.NDArray[np.complex128]:
    """Return a periodic Gabor window (xi = 0: a Gaussian) on a grid; `Scattering2d` makes Morlet wavelets of two.

    exp(-u^T R diag(1, slant^2) R^T u / (2 sigma^2) + i xi (cos theta, sin theta) u) / (2 pi sigma^2 / slant), summed
    over the 25 nearest copies of the grid.

    Parameters
    ----------
    shape : (int, int)
    sigma, theta, xi, slant : float
        Width in pixels, angle, centre frequency in radians per pixel, shape of the ellipse.
    """
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    curve = turn @ np.diag([1.0, slant**2]) @ turn.T / (2 * sigma**2)
    m, n = shape
    x, y = np.mgrid[-2 * m : 3 * m, -2 * n : 3 * n].astype(np.float64)
    power = -(curve[0, 0] * x * x + 2 * curve[0, 1] * x * y + curve[1, 1] * y * y)
    wave = np.exp(power + 1j * xi * (x * math.cos(theta) + y * math.sin(theta)))
    folded: npt.NDArray[np.complex128] = wave.reshape(5, m, 5, n).sum((0, 2)) / (2 * math.pi * sigma**2 / slant)
    return folded


def _wavelet(shape: tuple[int, int], sigma: float, theta: float, xi: float, slant: float) -> npt.NDArray[np.float64]:
    """Fourier transform (real) of a Morlet wavelet: a Gabor window with its mean removed."""
    wave, window = morlet(shape, sigma, theta, xi, slant), morlet(shape, sigma, theta, 0.0, slant)
    out: npt.NDArray[np.float64] = np.fft.fft2(wave - wave.sum() / window.sum() * window).real
    return out


def _coarser(spectrum: npt.NDArray[np.float64], level: int) -> npt.NDArray[np.float64]:
    """Fourier transform of the filter on a grid 2^level times coarser; what the grid cannot hold is left out."""
    kept = spectrum.copy()
    for axis in (0, 1):
        size = spectrum.shape[axis]
        start = int(size * 2.0 ** (-level - 1))
        moved = np.moveaxis(kept, axis, 0)
        moved[start : start + int(size * (1 - 2.0**-level))] = 0
    f, (m, n) = 2**level, spectrum.shape
    out: npt.NDArray[np.float64] = kept.reshape(f, m // f, f, n // f).sum((0, 2))
    return out


def _thin(spectrum: Tensor, factor: int) -> Tensor:
    """Fourier transform of every `factor`-th pixel."""
    if factor == 1:
        return spectrum
    # Sums of whole blocks, one axis after the other: a mean over two inner axes of complex numbers is 20 times slower.
    across = sum(spectrum.chunk(factor, -1)[1:], spectrum.chunk(factor, -1)[0])
    down = sum(across.chunk(factor, -2)[1:], across.chunk(factor, -2)[0])
    return down * factor**-2


@keep("scattering")
class Scattering2d(FixedFeatures):
    """Scattering coefficients of order 0, 1 and 2, normalised within each image.

    ``S0 = x * phi``, ``S1 = |x * psi_1| * phi``, ``S2 = ||x * psi_1| * psi_2| * phi`` with Morlet wavelets psi of
    `scales` octaves and `angles` directions and a Gaussian phi, all sampled every 2^scales pixels. Wavelets are those
    of the library kymatio. The coefficients are then normalised in groups within each image (mean 0, variance 1) and
    divided by the square root of their number, so that every image has features of norm 1 (at most, by rounding in the
    variance).

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width); 2^(scales + 1) pixels or more along both sides.
    scales, angles : int
    groups : int, optional
        Groups of coefficients that are normalised together, a divisor of their number; 0 leaves the plain
        coefficients. By default 27 where it divides, else one group for the whole image.

    Attributes
    ----------
    channels : int
        channels x (1 + angles scales + angles^2 scales (scales - 1) / 2).
    grid : (int, int)
    size : int

    References
    ----------
    Bruna, Mallat: Invariant scattering convolution networks, PAMI 2013. Tramer, Boneh: Differentially private learning
    needs better features (or much more data), ICLR 2021. Andreux et al.: Kymatio, JMLR 2020.
    """

    def __init__(self, inputs: tuple[int, ...], *, scales: int = 2, angles: int = 8, groups: int | None = None) -> None:
        super().__init__()
        if scales < 1 or angles < 1:
            raise InputError(f"scales {scales}, angles {angles}", where="model", expected="1 or more of each")
        self.check = InputShape("scattering", inputs, least=2 ** (scales + 1), fixed=True)
        self.scales, self.angles = scales, angles
        step = 2**scales
        padded = [((size + step) // step + 1) * step for size in inputs[1:]]
        self.grid = (padded[0] // step - 2, padded[1] // step - 2)
        extra = [big - size for big, size in zip(padded, inputs[1:], strict=True)]
        self._pad = (extra[1] // 2, (extra[1] + 1) // 2, extra[0] // 2, (extra[0] + 1) // 2)
        self.channels = inputs[0] * (1 + angles * scales + angles**2 * scales * (scales - 1) // 2)
        self.size = self.channels * self.grid[0] * self.grid[1]
        self.groups = (27 if self.channels % 27 == 0 else 1) if groups is None else groups
        if self.groups:
            groups_for(self.channels, self.groups, "model groups")
        self._filters((padded[0], padded[1]))

    def _filters(self, shape: tuple[int, int]) -> None:
        mean = np.fft.fft2(morlet(shape, 0.8 * 2 ** (self.scales - 1), 0.0, 0.0)).real
        for level in range(self.scales):
            self._constant(f"phi{level}", _coarser(mean, level))
        for j in range(self.scales):
            waves = [
                _wavelet(
                    shape,
                    0.8 * 2**j,
                    (int(self.angles - self.angles / 2 - 1) - t) * math.pi / self.angles,
                    0.75 * math.pi / 2**j,
                    4.0 / self.angles,
                )
                for t in range(self.angles)
            ]
            for level in range(max(j, 1)):
                self._constant(f"psi{j}_{level}", np.stack([_coarser(wave, level) for wave in waves]))

    def _constant(self, name: str, value: npt.NDArray[np.float64]) -> None:
        self.register_buffer(name, torch.from_numpy(value).float(), persistent=False)

    def coefficients(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w)`` to the plain coefficients ``(n, channels, paths, *grid)``."""
        start = torch.fft.fft2(F.pad(self.check(x), self._pad, mode="reflect"))
        out = [self._mean(start, 0).unsqueeze(2)]
        second: list[Tensor] = []
        for j in range(self.scales):
            first = self._modulus(start, 0, j)
            out.append(self._mean(first, j))
            finer = [self._modulus(first, j, k) for k in range(j + 1, self.scales)]
            if finer:
                each = [self._mean(wave, k) for k, wave in zip(range(j + 1, self.scales), finer, strict=True)]
                second.append(torch.cat(each, 3).flatten(2, 3))
        return torch.cat([*out, *second], 2)

    def _modulus(self, spectrum: Tensor, level: int, j: int) -> Tensor:
        """Fourier transform of |wave| for every direction at scale j; a new axis before the image."""
        filters: Tensor = getattr(self, f"psi{j}_{level}")
        waves = torch.fft.ifft2(_thin(spectrum.unsqueeze(-3) * filters, 2 ** (j - level)))
        out: Tensor = torch.fft.fft2(waves.abs())
        return out

    def _mean(self, spectrum: Tensor, level: int) -> Tensor:
        filters: Tensor = getattr(self, f"phi{level}")
        smooth: Tensor = torch.fft.ifft2(_thin(spectrum * filters, 2 ** (self.scales - level))).real
        return smooth[..., 1:-1, 1:-1]

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, size)."""
        out = self.coefficients(x).flatten(1, 2)
        if not self.groups:
            return out.flatten(1)
        return F.group_norm(out, self.groups).flatten(1) / math.sqrt(self.size)
