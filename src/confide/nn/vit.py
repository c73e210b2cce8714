"""A small vision transformer without a class token and with fixed positions.

>>> vit((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 10])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from confide.errors import InputError
from confide.nn.parts import InputShape, seeded
from confide.nn.registry import register

__all__ = ["positions", "vit"]


def positions(height: int, width: int, size: int) -> Tensor:
    """Return fixed sine and cosine positions of a grid, shape (height x width, size).

    A quarter of the features each: sin and cos of the column, sin and cos of the row, times 10000^(-i / (size/4 - 1)).
    """
    if size % 4 or size < 8:
        raise InputError(f"width is {size}", where="model width", expected="a multiple of 4, at least 8")
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    omega = 10000.0 ** (-torch.arange(size // 4) / (size // 4 - 1))
    rows, columns = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], 1).float()


class _Tokens(nn.Module):
    """(n, width, h, w) to (n, h x w, width), with the positions added."""

    positions: Tensor

    def __init__(self, height: int, width: int, size: int) -> None:
        super().__init__()
        self.register_buffer("positions", positions(height, width, size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2) + self.positions


class _Mean(nn.Module):
    """Mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@register("vit")
def vit(
    inputs: tuple[int, ...],
    outputs: int,
    *,
    patch: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    ratio: int = 2,
    seed: int = 0,
) -> nn.Module:
    """A small vision transformer: patches, `depth` pre-norm encoder layers, mean over the tokens, linear layer.

    The positions are fixed and there is no class token: every parameter is part of a plain layer, and the initial
    weights alone are public.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width), multiples of `patch`; the model is made for this size.
    outputs : int
    patch : int
        Pixels along each side of a patch.
    width : int
        Features of a token, a multiple of 4 and of `heads`.
    depth, heads : int
    ratio : int
        Width of the hidden layer over `width`.
    seed : int
        Public seed of the initial weights.

    References
    ----------
    Dosovitskiy et al.: An image is worth 16x16 words, ICLR 2021. Beyer, Zhai, Kolesnikov: Better plain ViT baselines
    for ImageNet-1k, arXiv 2205.01580 (mean over tokens, fixed positions).
    """
    if heads < 1 or width % heads:
        raise InputError(f"width {width} with {heads} heads", where="model heads", expected="heads that divide width")
    if patch < 1 or (len(inputs) == 3 and any(size % patch for size in inputs[1:])):
        raise InputError(
            f"patches of {patch} do not tile entries of {' x '.join(map(str, inputs[1:]))}",
            where="model patch",
            expected="a size that divides height and width",
        )

    def make() -> nn.Module:
        check = InputShape("vit", inputs, least=patch, fixed=True)
        layers = [
            nn.TransformerEncoderLayer(
                width, heads, ratio * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        ]
        return nn.Sequential(
            check,
            nn.Conv2d(inputs[0], width, patch, stride=patch),
            _Tokens(inputs[1] // patch, inputs[2] // patch, width),
            *layers,
            nn.LayerNorm(width),
            _Mean(),
            nn.Linear(width, outputs),
        )

    return seeded(seed, make)
