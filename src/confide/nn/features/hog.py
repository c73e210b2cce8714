"""Histograms of oriented gradients.

>>> HOG((1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
torch.Size([2, 1296])
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from confide.errors import InputError
from confide.nn.features.fixed import FixedFeatures, keep
from confide.nn.parts import InputShape, choice

__all__ = ["HOG"]

EPS = 1e-5


@keep("hog")
class HOG(FixedFeatures):
    """Histograms of oriented gradients, each block of cells normalised by itself.

    Central differences, orientations without sign in `bins` bins weighted by the length of the gradient, their mean
    over cells, every `block` x `block` cells side by side divided by their length; with "l2-hys" clipped at 0.2 and
    divided once more. Every channel has histograms of its own. Divided by the square root of the number of blocks,
    so that the norm of all features is at most 1.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width), at least `block` cells along both sides.
    cell : int
        Pixels along each side of a cell.
    block : int
        Cells along each side of a block.
    bins : int
    norm : "l2-hys" or "l2"

    Attributes
    ----------
    size : int

    References
    ----------
    Dalal, Triggs: Histograms of oriented gradients for human detection, CVPR 2005.
    """

    def __init__(
        self, inputs: tuple[int, ...], *, cell: int = 4, block: int = 2, bins: int = 9, norm: str = "l2-hys"
    ) -> None:
        super().__init__()
        if min(cell, block, bins) < 1:
            raise InputError(f"cell {cell}, block {block}, bins {bins}", where="model", expected="1 or more of each")
        self.check = InputShape("hog", inputs, least=cell * block, fixed=True)
        self.cell, self.block, self.bins = cell, block, bins
        self.norm = choice(norm, ("l2-hys", "l2"), "model norm")
        self.cells = (inputs[1] // cell, inputs[2] // cell)
        self.blocks = (self.cells[0] - block + 1, self.cells[1] - block + 1)
        self.count = inputs[0] * self.blocks[0] * self.blocks[1]
        self.size = self.count * block**2 * bins

    def histograms(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to the normalised blocks (n, channels, rows, columns, block, block, bins)."""
        x = self.check(x)
        down, right = torch.zeros_like(x), torch.zeros_like(x)
        down[..., 1:-1, :] = x[..., 2:, :] - x[..., :-2, :]
        right[..., 1:-1] = x[..., 2:] - x[..., :-2]
        angle = torch.rad2deg(torch.atan2(down, right)).remainder(180.0)
        bin_of = (angle * (self.bins / 180.0)).long().clamp_max(self.bins - 1)
        length = torch.hypot(down, right)
        spread = torch.zeros(*x.shape[:2], self.bins, *x.shape[2:], dtype=x.dtype, device=x.device)
        spread.scatter_(2, bin_of.unsqueeze(2), length.unsqueeze(2))
        cells = F.avg_pool2d(spread.flatten(0, 1), self.cell).reshape(*spread.shape[:3], *self.cells)
        blocks = cells.unfold(3, self.block, 1).unfold(4, self.block, 1).permute(0, 1, 3, 4, 5, 6, 2)
        out = self._unit(blocks)
        return self._unit(out.clamp_max(0.2)) if self.norm == "l2-hys" else out

    def _unit(self, blocks: Tensor) -> Tensor:
        return blocks / (blocks.square().sum((4, 5, 6), keepdim=True) + EPS**2).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, size)."""
        return self.histograms(x).flatten(1) / math.sqrt(self.count)
