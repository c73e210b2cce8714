"""MoNet: a small segmentation net that sees far through dilated convolutions.

>>> monet((1, 64, 64), 1)(torch.zeros(2, 1, 64, 64)).shape
torch.Size([2, 1, 64, 64])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from confide.errors import InputError
from confide.nn.parts import InputShape, groups_for, seeded
from confide.nn.registry import register

__all__ = ["MoNet", "RepeatBlock", "monet"]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _unit(dims: int, channels: int, out: int, groups: int, *, dilation: int = 1) -> nn.Sequential:
    """Convolution 3 x 3 without bias, group normalisation, ELU."""
    conv = _CONV[dims](channels, out, 3, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(groups_for(out, groups, "model groups"), out), nn.ELU())


class RepeatBlock(nn.Module):
    """Four units with dilation 4, 3, 2, 1: c1 = u4(x), c2 = u3(x + c1), c3 = u2(c2), out = u1(c2 + c3).

    Parameters
    ----------
    dims, channels, groups : int
    """

    def __init__(self, dims: int, channels: int, groups: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(_unit(dims, channels, channels, groups, dilation=d) for d in (4, 3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        c2 = self.units[1](x + self.units[0](x))
        out: Tensor = self.units[3](c2 + self.units[2](c2))
        return out


class MoNet(nn.Module):
    """See `monet`.

    Parameters
    ----------
    inputs : tuple of int
    outputs, width, levels, groups : int
    """

    def __init__(
        self, inputs: tuple[int, ...], outputs: int, *, width: int = 16, levels: int = 2, groups: int = 8
    ) -> None:
        super().__init__()
        if levels < 1 or width < 1:
            raise InputError(f"levels {levels}, width {width}", where="model", expected="1 or more of each")
        self.check = InputShape("monet", inputs, dims=(2, 3), least=2**levels, multiple=2**levels)
        dims = len(inputs) - 1

        def sampled(kind: type[nn.Module], channels: int) -> nn.Sequential:
            conv = kind(channels, channels, 4, stride=2, padding=1, bias=False)
            return nn.Sequential(conv, nn.GroupNorm(groups_for(channels, groups, "model groups"), channels), nn.ELU())

        def stage(channels: int, out: int) -> nn.Sequential:
            return nn.Sequential(_unit(dims, channels, out, groups), RepeatBlock(dims, out, groups))

        sizes = [width * 2**i for i in range(levels + 1)]
        before = [inputs[0], *sizes[:-1]]
        self.down = nn.ModuleList(stage(a, b) for a, b in zip(before, sizes, strict=True))
        self.shrink = nn.ModuleList(sampled(_CONV[dims], size) for size in sizes[:-1])
        rising = list(zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.grow = nn.ModuleList(sampled(_TRANSPOSED[dims], low) for low, _ in rising)
        self.join = nn.ModuleList(stage(low + high, high) for low, high in rising)
        self.head = _CONV[dims](width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, ...) to logits (n, outputs, ...)."""
        x = self.check(x)
        kept: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(self.shrink[i - 1](x) if i else x)
            kept.append(x)
        for grow, join, skip in zip(self.grow, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([skip, grow(x)], 1))
        out: Tensor = self.head(x)
        return out


@register("monet")
def monet(
    inputs: tuple[int, ...], outputs: int, *, width: int = 16, levels: int = 2, groups: int = 8, seed: int = 0
) -> nn.Module:
    """MoNet in 2D or 3D, as `inputs` has it; gives one logit for each class and pixel.

    Each level is a convolution unit and a `RepeatBlock`; levels are joined by strided 4 x 4 convolutions, which replace
    pooling. Two things differ from the released code, for privacy: batch normalisation became group normalisation (and
    spatial dropout was left out), and the head has a bias instead of a normalisation: normalising a single output
    channel within one image would force the same share of foreground on every image. With 1 channel and 1 output there
    are 401,665 parameters (the released code's 403,556 contain running statistics).

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width) or (channels, depth, height, width), sizes multiples of 2^levels.
    outputs : int
        1 for a mask, otherwise the number of classes.
    width : int
        Channels of the first level.
    levels, groups : int
    seed : int
        Public seed of the initial weights.

    References
    ----------
    Knolle, Kaissis, Jungmann, Ziegelmayer, Sasse, Makowski, Rueckert, Braren: Efficient, high-performance semantic
    segmentation using multi-scale feature extraction. PLOS ONE 2021.
    """
    return seeded(seed, lambda: MoNet(inputs, outputs, width=width, levels=levels, groups=groups))
