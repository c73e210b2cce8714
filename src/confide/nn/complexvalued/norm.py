"""Group normalisation of complex numbers: each group is centred and whitened within its own entry.

>>> z = torch.randn(2, 4, 8, 8, dtype=torch.complex64) * (3 + 1j)
>>> out = whiten(z, groups=2)
>>> out[0, :2].real.var().round(decimals=2)
tensor(1.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from confide.nn.complexvalued.checks import refuse_real
from confide.nn.complexvalued.pairs import joined
from confide.nn.parts import groups_for

__all__ = ["ComplexGroupNorm", "whiten"]

EPS = 1e-5


def whiten(z: Tensor, groups: int, eps: float = EPS) -> Tensor:
    """Centre each group of channels within each entry and give it unit covariance of real and imaginary part.

    With the covariance V = [[a, c], [c, b]] + eps I, s = sqrt(a b - c^2) and t = sqrt(a + b + 2 s), the symmetric
    whitening matrix is V^(-1/2) = 1/(s t) [[b + s, -c], [-c, a + s]].

    Parameters
    ----------
    z : complex tensor, shape (n, channels, ...)
    groups : int
    eps : float

    Returns
    -------
    complex tensor of the same shape

    References
    ----------
    Trabelsi et al.: Deep complex networks, ICLR 2018 (whitening); Riess et al., arXiv 2110.03478 (within one entry).
    """
    refuse_real(z, "whitening")
    x = z.reshape(len(z), groups, -1)
    x = x - x.mean(2, keepdim=True)
    re, im = x.real, x.imag
    a, b = re.square().mean(2, keepdim=True) + eps, im.square().mean(2, keepdim=True) + eps
    c = (re * im).mean(2, keepdim=True)
    s = (a * b - c.square()).clamp_min(eps**2).sqrt()
    scale = 1 / (s * (a + b + 2 * s).sqrt())
    out = torch.complex(scale * ((b + s) * re - c * im), scale * ((a + s) * im - c * re))
    return out.reshape(z.shape)


class ComplexGroupNorm(nn.Module):
    """Whitening of each group (see `whiten`), then a learned 2 x 2 matrix and a complex shift for each channel.

    The matrix starts at the identity over sqrt(2), so that ``|z|^2`` has mean 1. Matrix and shift are one grouped
    convolution over (real, imaginary), a layer that every engine knows.

    Parameters
    ----------
    groups, channels : int
    eps : float

    References
    ----------
    As `whiten`.
    """

    def __init__(self, groups: int, channels: int, eps: float = EPS) -> None:
        super().__init__()
        self.groups, self.eps = groups_for(channels, groups, "ComplexGroupNorm"), eps
        self.affine = nn.Conv1d(2 * channels, 2 * channels, 1, groups=channels)
        with torch.no_grad():
            self.affine.weight.copy_((torch.eye(2) * math.sqrt(0.5)).repeat(channels, 1).unsqueeze(2))
            assert self.affine.bias is not None
            self.affine.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:
        """Complex (n, channels, ...) to the same."""
        white = whiten(z, self.groups, self.eps)
        n, channels = z.shape[:2]
        pairs = torch.view_as_real(white).reshape(n, channels, -1, 2).permute(0, 1, 3, 2).reshape(n, 2 * channels, -1)
        out = self.affine(pairs).reshape(n, channels, 2, -1)
        return joined(out[:, :, 0].contiguous(), out[:, :, 1].contiguous()).reshape(z.shape)
