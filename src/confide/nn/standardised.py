"""Convolutions with standardised weights: each filter has mean 0 and, after scaling by its fan-in, length 1.

>>> layer = WSConv2d(3, 16, 3, padding=1)
>>> layer(torch.zeros(2, 3, 8, 8)).shape
torch.Size([2, 16, 8, 8])

The standardised filter is a function of the weights alone, never of the entries, so it mixes nothing and every
entry keeps a gradient of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from confide.errors import InputError

__all__ = ["WSConv1d", "WSConv2d", "WSConv3d", "standardise"]

EPS = 1e-4


def standardise(weight: Tensor, gain: Tensor | None = None, *, eps: float = EPS, centre_only: bool = False) -> Tensor:
    """Return the standardised filters.

    ``gain (w - mean(w)) / sqrt(max(n var(w), eps))`` for each filter w of n = fan-in weights, with the population
    variance; with `centre_only` just ``gain (w - mean(w))``.

    Parameters
    ----------
    weight : tensor, shape ``(out, in / groups, *kernel)``
    gain : tensor, shape (out,), optional
        1 if not given.
    eps : float
        Least value under the root.
    centre_only : bool

    Returns
    -------
    tensor of the same shape

    References
    ----------
    Brock, De, Smith: Characterizing signal propagation to close the performance gap in unnormalized ResNets, ICLR 2021
    (scaled weight standardisation); De, Berrada, Hayes, Smith, Balle: Unlocking high-accuracy differentially private
    image classification through scale, arXiv 2204.13650 (fan-in under the root, a floor of 1e-4).
    """
    axes = tuple(range(1, weight.dim()))
    out = weight - weight.mean(axes, keepdim=True)
    if not centre_only:
        fan_in = weight[0].numel()
        out = out * torch.rsqrt(torch.clamp(fan_in * weight.var(axes, unbiased=False, keepdim=True), min=eps))
    return out if gain is None else out * gain.reshape(-1, *[1] * len(axes))


class _Standardised(nn.modules.conv._ConvNd):
    """What the three sizes share; the arguments are those of PyTorch's convolution and three more.

    Parameters
    ----------
    *args, **kwargs
        As for ``nn.Conv1d`` / ``nn.Conv2d`` / ``nn.Conv3d``.
    gain : bool
        Learn one factor for each filter, 1 at the start.
    eps : float
    centre_only : bool
        Subtract each filter's mean but leave its length alone.

    Attributes
    ----------
    weight : parameter, shape (out, in / groups, *kernel)
        Before standardisation.
    gain : parameter, shape (out,), or None
    bias : parameter, shape (out,), or None
    """

    gain: nn.Parameter | None

    def __init__(
        self, *args: Any, gain: bool = True, eps: float = EPS, centre_only: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_mode != "zeros":
            raise InputError(
                f"padding_mode is {self.padding_mode!r}",
                where=type(self).__name__,
                expected="'zeros'",
                remedy="pad the input first (nn.ReflectionPad2d, ...) and give padding=0",
            )
        if self.weight[0].numel() < 2:
            raise InputError(
                "a filter of a single weight has nothing to standardise: it would be zero",
                where=type(self).__name__,
                expected="a fan-in of 2 or more",
                remedy="use PyTorch's own convolution here",
            )
        self.eps, self.centre_only = eps, centre_only
        self.gain = nn.Parameter(torch.ones(self.out_channels)) if gain else None

    def standardised_weight(self) -> Tensor:
        """Return the filters that the convolution uses, shape of `weight`."""
        return standardise(self.weight, self.gain, eps=self.eps, centre_only=self.centre_only)


class WSConv1d(_Standardised, nn.Conv1d):
    """1D convolution with scaled weight standardisation; see `standardise` for the equation and the papers."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, in, length) to (n, out, length')."""
        weight = self.standardised_weight()
        return F.conv1d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class WSConv2d(_Standardised, nn.Conv2d):
    """2D convolution with scaled weight standardisation; see `standardise` for the equation and the papers."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, in, height, width) to (n, out, height', width')."""
        weight = self.standardised_weight()
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class WSConv3d(_Standardised, nn.Conv3d):
    """3D convolution with scaled weight standardisation; see `standardise` for the equation and the papers."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, in, depth, height, width) to (n, out, depth', height', width')."""
        weight = self.standardised_weight()
        return F.conv3d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
